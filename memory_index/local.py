"""A version opened on this machine: from queries to neighbours.

Which key spaces are asked and how the answer is put together is told here. One key space over all segments is
`key_spaces.py`, the nearest keys of one group `search.py`, the leak rule `leakage.py`; the result checks itself in
`types.py`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from memory_index.encoder import Encoded, KeyEncoder
from memory_index.errors import IncompatibleError, NotFoundError, UsageError
from memory_index.key_spaces import BLOCK, KeySpaceSearch, Segment
from memory_index.scaling import SeriesScale, WindowStatistics
from memory_index.threads import Workers, num_cores, one_blas_thread
from memory_index.types import SCOPES, Filter, KeySpace, Neighbours, Queries, Scope
from memory_index.versions.manifest import Manifest
from memory_index.windows import StoredWindows


class LocalMemory:
    """A version on this machine. Implements `Memory`; safe to use from several threads.

    threads: how many threads one search uses (default: as many as can run at once, see `threads.num_cores`).
    """

    def __init__(
        self,
        manifest: Manifest,
        encoder: KeyEncoder,
        windows: StoredWindows,
        segments: Sequence[Segment],
        *,
        threads: int | None = None,
    ) -> None:
        self.manifest = manifest
        self.encoder = encoder
        self.windows = windows
        self.segments = tuple(segments)
        self.threads = threads or num_cores()
        self.fingerprint = manifest.fingerprint
        self._records = {record.space: record for record in manifest.spaces}
        widths = {space: record.value_width for space, record in self._records.items()}
        self._workers = Workers(self.threads)
        self._key_spaces = KeySpaceSearch(windows, self.segments, widths, self._workers)

    @property
    def causal_only(self) -> bool:
        """See `Memory.causal_only`."""
        return False

    @property
    def answered_by(self) -> str:
        """See `Memory.answered_by`."""
        return ""

    def with_segments(self, segments: Sequence[Segment]) -> LocalMemory:
        """The same memory over other segments."""
        return LocalMemory(self.manifest, self.encoder, self.windows, segments, threads=self.threads)

    @property
    def scale(self) -> SeriesScale:
        """See `Memory.scale`."""
        return self.encoder.scale

    def linear_forecast(self, queries: Queries) -> np.ndarray:
        """See `Memory.linear_forecast`."""
        require_lookback(queries, self.windows)
        series = self.windows.numbers_of(queries.series_id)
        return self.encoder.linear_forecast(max(self.windows.views), queries.context, series)

    def search(
        self,
        queries: Queries,
        k: int,
        *,
        scopes: tuple[Scope, ...] | None = None,
        views: tuple[int, ...] | None = None,
        where: Filter | None = None,
        min_gap: int = 0,
    ) -> Neighbours:
        """See `Memory.search`."""
        require_counts(k, min_gap)
        min_gap = min(min_gap, self.windows.num_steps_spanned + 1)  # more means no more, and times would overflow
        where = where or Filter()
        require_lookback(queries, self.windows)
        series = self.windows.numbers_of(queries.series_id)
        spaces = spaces_asked(self.manifest, self.windows, queries, scopes, views, where)
        shape = (len(queries), len(series), len(spaces), k)
        squared, value = np.full(shape, np.inf, dtype=np.float32), np.full(shape, np.inf, dtype=np.float32)
        row = np.full(shape, -1, dtype=np.int64)
        location, spread = np.empty(shape[:3]), np.empty(shape[:3])
        with one_blas_thread():  # the threads are ours: a BLAS that wants all cores as well gets in their way
            for view in dict.fromkeys(space.view for space in spaces):
                wanted = tuple(space.scope for space in spaces if space.view == view)
                encoded = self._encode(view, queries, series, wanted)
                for place, space in enumerate(spaces):
                    if space.view == view:
                        result = self._key_spaces.nearest(space, encoded, queries, series, k, where, min_gap)
                        squared[:, :, place], row[:, :, place], value[:, :, place] = result
                        location[:, :, place], spread[:, :, place] = encoded.statistics[:2]
        return self._neighbours(queries, spaces, row, squared, value, location, spread)

    def _encode(self, view: int, queries: Queries, series: np.ndarray, scopes: tuple[Scope, ...]) -> Encoded:
        """Keys of all queries, in blocks; the joint scope wants the series in the version's order."""
        each, order = tuple(scope for scope in scopes if scope != "joint"), np.argsort(series)
        together = "joint" not in scopes or np.array_equal(order, np.arange(len(series)))

        def encode(start: int) -> Encoded:
            context = queries.context[start : start + BLOCK]
            if together:
                return self.encoder.encode(view, context, series, scopes)
            encoded = self.encoder.encode(view, context, series, each)
            joint = self.encoder.encode(view, context[:, order], series[order], ("joint",)).keys
            return Encoded(encoded.keys | joint, encoded.statistics)

        blocks = self._workers.run(encode, range(0, max(len(queries), 1), BLOCK))
        return Encoded(
            {scope: np.concatenate([block.keys[scope] for block in blocks]) for scope in scopes},
            WindowStatistics(
                *(np.concatenate(parts) for parts in zip(*(block.statistics for block in blocks), strict=True))
            ),
        )

    def _neighbours(
        self,
        queries: Queries,
        spaces: tuple[KeySpace, ...],
        row: np.ndarray,
        squared: np.ndarray,
        value: np.ndarray,
        location: np.ndarray,
        spread: np.ndarray,
    ) -> Neighbours:
        """Take the weighted parts apart: keys hold `sqrt(w) * shape` and `sqrt(1 - w) * value`."""
        has_value = np.array([self._records[space].value_width > 0 for space in spaces])[:, None]
        w = np.where(has_value, self.encoder.config.shape_weight, 1.0)
        with np.errstate(invalid="ignore"):
            shape = np.where(row >= 0, np.sqrt(np.maximum(squared - value, 0) / w), np.inf)
        value = np.where(row >= 0, np.sqrt(value / np.where(w < 1, 1 - w, 1)), np.inf)
        return Neighbours(
            queries=queries,
            spaces=spaces,
            row=row,
            distance=np.sqrt(squared),
            shape_distance=shape.astype(np.float32),
            value_distance=value.astype(np.float32),
            query_location=location,
            query_spread=spread,
            temperature=np.array([self._records[space].temperature for space in spaces], dtype=np.float32),
            linear_maps={space.view: self.encoder.linear_map(space.view) for space in spaces},
            windows=self.windows,
            fingerprint=self.fingerprint,
        )


def spaces_asked(
    manifest: Manifest,
    windows: StoredWindows,
    queries: Queries,
    scopes: tuple[Scope, ...] | None,
    views: tuple[int, ...] | None,
    where: Filter | None,
) -> tuple[KeySpace, ...]:
    """The key spaces that a question is answered from, in the version's order; see `Memory.search`.

    Raises if one that was asked for cannot be served. Whoever asks another machine knows by it what must come back.
    """
    where = where or Filter()
    for name in where.series_id or ():
        if name not in windows.series_number:
            known = ", ".join(windows.series_ids[:8])
            raise NotFoundError(f"the filter's series '{name}' is not in this memory", hint=f"it has {known}")
    built = manifest.scopes
    series = windows.numbers_of(queries.series_id)
    refused = {scope: _refusal(scope, manifest, windows, queries, series, where) for scope in SCOPES}
    if scopes is None:
        scopes = tuple(scope for scope in built if not refused[scope])
        if not scopes:
            raise NotFoundError(next(reason for scope in built if (reason := refused[scope])))
    if not scopes:
        raise UsageError("at least one scope is needed", hint=f"choose {', '.join(SCOPES)}")
    for scope in scopes:
        if scope not in SCOPES:
            raise UsageError(f"unknown scope '{scope}'", hint=f"choose {', '.join(SCOPES)}")
        if refused[scope]:
            raise IncompatibleError(f"scope '{scope}' cannot be served: {refused[scope]}")
    if views == ():
        raise UsageError("no view is asked for", hint=f"choose from {list(windows.views)}, or leave views out")
    for view in views or ():
        if view not in windows.views:
            raise IncompatibleError(f"this memory has no view of {view} steps", hint=f"it has {list(windows.views)}")
    chosen = views or windows.views
    return tuple(space for space in manifest.key_spaces if space.scope in scopes and space.view in chosen)


def _refusal(
    scope: Scope, manifest: Manifest, windows: StoredWindows, queries: Queries, series: np.ndarray, where: Filter
) -> str:
    """Why a scope cannot answer these queries; empty if it can."""
    known = windows.series_ids
    unseen = [str(queries.series_id[n]) for n in np.flatnonzero(series < 0)]
    if scope not in manifest.scopes:
        return (
            f"this memory was built without it ({manifest.joint})"
            if scope == "joint"
            else "this memory was built without it"
        )
    if scope != "pooled" and unseen:
        listed = ", ".join(known[:8]) + (", ..." if len(known) > 8 else "")
        return f"series '{unseen[0]}' is not in this memory, which has {listed}"
    if scope == "joint" and not np.array_equal(np.sort(series), np.arange(len(known))):
        return f"it compares all {len(known)} series of a moment, but the query has {len(series)}"
    if scope != "pooled" and where.series_id is not None:
        return "a filter by series needs the scope 'pooled'"
    return ""


def require_lookback(queries: Queries, windows: StoredWindows) -> None:
    """Raise `IncompatibleError` unless the queries are as long as the stored windows' contexts."""
    lookback = windows.spec.lookback
    if queries.context.shape[2] != lookback:
        raise IncompatibleError(
            f"the query has a lookback of {queries.context.shape[2]} steps, but this memory's windows have {lookback}",
            hint=f"give the last {lookback} steps, or build a version with another --lookback",
        )


def require_counts(k: int, min_gap: int) -> None:
    """Raise `UsageError` unless these can be searched with; see `Memory.search`."""
    if k < 1 or min_gap < 0:
        raise UsageError(f"k must be at least 1 and min_gap at least 0, not {k} and {min_gap}")
