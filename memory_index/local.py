"""A version opened on this machine: from queries to neighbours.

Which key spaces are asked and how the answer is put together is told here. One key space over all segments is
`key_spaces.py`, the nearest keys of one group `search.py`, the leak rule `leakage.py`; the result checks itself in
`neighbours.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from memory_index.cores import num_cores
from memory_index.encoder import Encoded, KeyEncoder
from memory_index.growing_maps import growing_maps
from memory_index.key_spaces import BLOCK, UNUSED, Found, KeySpaceSearch, Segment
from memory_index.memory import (
    linear_forecast,
    require_counts,
    require_covariates,
    require_lookback,
    spaces_asked,
    too_much_missing,
)
from memory_index.missing import filled
from memory_index.neighbours import Neighbours
from memory_index.scaling import SeriesScale, WindowStatistics
from memory_index.threads import Workers, one_blas_thread
from memory_index.types import Filter, KeySpace, Queries, Scope
from memory_index.versions.manifest import Manifest
from memory_index.windows import StoredWindows


class LocalMemory:
    """A version on this machine. Implements `Memory`; safe to use from several threads.

    threads: how many threads one search uses, but no more than there are cores (default: `cores.num_cores`).
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
        widths = {space: (record.value_width, record.condition_width) for space, record in self._records.items()}
        self.growing = growing_maps(windows, encoder.arrays, manifest.fitted_known_at)
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
        require_covariates(queries, self.manifest)
        return linear_forecast(self.encoder, self.windows, queries, self.growing)

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
        require_covariates(queries, self.manifest)
        spec, series = self.windows.spec, self.windows.numbers_of(queries.series_id)
        spaces = spaces_asked(self.manifest, self.windows, queries, scopes, views, where)
        shape = (len(queries), len(series), len(spaces), k)
        found = Found.empty(shape)
        location, spread = np.empty(shape[:3]), np.empty(shape[:3])
        inside = self.windows.queries_inside(queries)
        whole = replace(inside, context=filled(inside.context, self.windows.step.season))
        with one_blas_thread():  # the threads are ours: a BLAS that wants all cores as well gets in their way
            for view in dict.fromkeys(space.view for space in spaces):
                wanted = tuple(space.scope for space in spaces if space.view == view)
                encoded = self._encode(view, whole, series, wanted)
                for place, space in enumerate(spaces):
                    if space.view == view:
                        result = self._key_spaces.nearest(space, encoded, queries, series, k, where, min_gap)
                        for every, part in zip(found, result, strict=True):
                            every[:, :, place] = part
                        location[:, :, place], spread[:, :, place] = encoded.statistics[:2]
        if whole.context is not inside.context:
            for place, space in enumerate(spaces):
                hidden = too_much_missing(queries.context, space, spec)
                for part, unused in zip(found, UNUSED, strict=True):
                    part[:, :, place][hidden] = unused
        return self._neighbours(queries, spaces, found, location, spread)

    def _encode(self, view: int, queries: Queries, series: np.ndarray, scopes: tuple[Scope, ...]) -> Encoded:
        """Keys of all queries, in blocks; the joint scope wants the series in the version's order."""
        each, order = tuple(scope for scope in scopes if scope != "joint"), np.argsort(series)
        together = "joint" not in scopes or np.array_equal(order, np.arange(len(series)))

        def encode(start: int) -> Encoded:
            context, beside = queries.context[start : start + BLOCK], None
            if self.encoder.covariates is not None and queries.covariates is not None:
                values = queries.covariates[start : start + BLOCK]
                beside = self.encoder.key_numbers(view, self.encoder.covariates.of_values(values, (view,)))
            if together:
                return self.encoder.encode(view, context, series, scopes, beside)
            encoded = self.encoder.encode(view, context, series, each, beside)
            in_order = beside if beside is None else beside[:, order]
            joint = self.encoder.encode(view, context[:, order], series[order], ("joint",), in_order).keys
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
        found: Found,
        location: np.ndarray,
        spread: np.ndarray,
    ) -> Neighbours:
        """Take the parts apart: keys hold `sqrt(w) * shape`, `sqrt(1 - w) * value` and the condition."""
        squared, row, value, condition = found
        has_value = np.array([self._records[space].value_width > 0 for space in spaces])[:, None]
        w = np.where(has_value, self.encoder.config.shape_weight, 1.0)
        with np.errstate(invalid="ignore"):
            rest = squared - value if self.encoder.covariates is None else squared - value - condition
            shape = np.where(row >= 0, np.sqrt(np.maximum(rest, 0) / w), np.inf)
        value = np.where(row >= 0, np.sqrt(value / np.where(w < 1, 1 - w, 1)), np.inf)
        return Neighbours(
            queries=queries,
            spaces=spaces,
            row=row,
            distance=np.sqrt(squared),
            shape_distance=shape.astype(np.float32),
            value_distance=value.astype(np.float32),
            condition_distance=None if self.encoder.covariates is None else np.sqrt(condition),
            query_location=location,
            query_spread=spread,
            temperature=np.array([self._records[space].temperature for space in spaces], dtype=np.float32),
            linear_maps={space.view: self.encoder.linear_map(space.view) for space in spaces},
            windows=self.windows,
            fingerprint=self.fingerprint,
            growing=self.growing,
        )
