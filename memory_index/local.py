"""A version opened on this machine: from queries to neighbours.

Reading order: `LocalMemory.search` (which key spaces, then one search each), `_search_space` (which group of
keys each query looks at, and which rows of it are admissible), `_merge`. Finding the nearest keys of a group
is `search.py`; the leak rule is `leakage.py`; the result checks itself in `types.py`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import faiss
import numpy as np

from memory_index.encoder import DualKeyEncoder, Encoded
from memory_index.errors import IncompatibleError, NotFoundError, UsageError
from memory_index.leakage import TimeSpans, admissible_ranges
from memory_index.manifest import Manifest
from memory_index.search import BLOCK_VALUES, KeyGroup, Ranges, nearest, search_group
from memory_index.segments import SegmentWindows
from memory_index.types import SCOPES, Filter, KeySpace, Neighbours, Queries, Scope
from memory_index.windows import StoredWindows

BLOCK = 256  # queries searched at once by one thread


@dataclass(frozen=True, kw_only=True)
class Segment:
    """One opened segment. first_row: id of its first window in the version."""

    windows: SegmentWindows
    first_row: int
    groups: dict[KeySpace, list[KeyGroup]]
    joint_series: tuple[int, ...]
    num_series: int

    @cached_property
    def own_rows(self) -> np.ndarray:
        """int64 [n]: local row of each `own` key."""
        return self.windows.by_series()

    @cached_property
    def own_offsets(self) -> np.ndarray:
        """int64 [num_series + 1]: where each series' keys begin."""
        return np.searchsorted(self.windows.series[self.own_rows], np.arange(self.num_series + 1))

    @cached_property
    def moments(self) -> np.ndarray:
        """int64 [M, N]: local rows of each `joint` key."""
        return self.windows.moments(self.joint_series)

    def rows(self, scope: Scope, group: int) -> np.ndarray | slice:
        """Local row of every key of a group; for `joint` that of the moment's first series."""
        if scope == "own":
            return self.own_rows[self.own_offsets[group] : self.own_offsets[group + 1]]
        return self.moments[:, 0] if scope == "joint" else slice(None)


class LocalMemory:
    """A version on this machine. Implements `Memory`; safe to use from several threads.

    threads: how many threads one search uses (default: the cores that this process may run on).
    """

    def __init__(
        self,
        manifest: Manifest,
        encoder: DualKeyEncoder,
        windows: StoredWindows,
        segments: Sequence[Segment],
        *,
        threads: int | None = None,
    ) -> None:
        self.manifest = manifest
        self.encoder = encoder
        self.windows = windows
        self.segments = tuple(segments)
        self.threads = threads or len(os.sched_getaffinity(0))
        self._records = {record.space: record for record in manifest.spaces}
        self._times: dict[tuple[int, Scope, int], tuple[TimeSpans, np.ndarray]] = {}

    def with_segments(self, segments: Sequence[Segment]) -> LocalMemory:
        """The same memory over other segments."""
        return LocalMemory(self.manifest, self.encoder, self.windows, segments, threads=self.threads)

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
        if k < 1 or min_gap < 0:
            raise UsageError(f"k must be at least 1 and min_gap at least 0, not {k} and {min_gap}")
        where = where or Filter()
        series = self.series_numbers(queries)
        spaces = self._spaces(queries, series, scopes, views, where)
        shape = (len(queries), len(series), len(spaces), k)
        squared, value = np.full(shape, np.inf, dtype=np.float32), np.full(shape, np.inf, dtype=np.float32)
        row = np.full(shape, -1, dtype=np.int64)
        location, spread = np.empty(shape[:3]), np.empty(shape[:3])
        for view in dict.fromkeys(space.view for space in spaces):
            wanted = tuple(space.scope for space in spaces if space.view == view)
            encoded = self._encode(view, queries, series, wanted)
            for place, space in enumerate(spaces):
                if space.view == view:
                    result = self._search_space(space, encoded, queries, series, k, where, min_gap)
                    squared[:, :, place], row[:, :, place], value[:, :, place] = result
                    location[:, :, place], spread[:, :, place] = encoded.statistics[:2]
        return self._neighbours(queries, spaces, row, squared, value, location, spread)

    # -- which key spaces -------------------------------------------------------------------------------------

    def series_numbers(self, queries: Queries) -> np.ndarray:
        """int64 [N]: number of each queried series in the version, -1 for one it has never seen."""
        lookback = self.windows.spec.lookback
        if queries.context.shape[2] != lookback:
            raise IncompatibleError(
                f"the query has a lookback of {queries.context.shape[2]} steps, but this memory's windows have {lookback}",
                hint=f"give the last {lookback} steps, or build a version with another --lookback",
            )
        number = self.windows.series_number
        return np.array([number.get(str(name), -1) for name in queries.series_id], dtype=np.int64)

    def _spaces(
        self,
        queries: Queries,
        series: np.ndarray,
        scopes: tuple[Scope, ...] | None,
        views: tuple[int, ...] | None,
        where: Filter,
    ) -> tuple[KeySpace, ...]:
        """The key spaces to search, in the version's order. Raises if one that was asked for cannot be served."""
        for name in where.series_id or ():
            if name not in self.windows.series_number:
                known = ", ".join(self.windows.series_ids[:8])
                raise NotFoundError(f"the filter's series '{name}' is not in this memory", hint=f"it has {known}")
        built = tuple(dict.fromkeys(space.scope for space in self._records))
        refused = {scope: self._refusal(scope, queries, series, where) for scope in SCOPES}
        if scopes is None:
            served = [scope for scope in built if not refused[scope]]
            scopes = tuple(s for s in served if s != "pooled") or tuple(served)
            if not scopes:
                raise NotFoundError(next(reason for scope in built if (reason := refused[scope])))
        if not scopes:
            raise UsageError("at least one scope is needed", hint=f"choose {', '.join(SCOPES)}")
        for scope in scopes:
            if scope not in SCOPES:
                raise UsageError(f"unknown scope '{scope}'", hint=f"choose {', '.join(SCOPES)}")
            if refused[scope]:
                raise IncompatibleError(f"scope '{scope}' cannot be served: {refused[scope]}")
        for view in views or ():
            if view not in self.windows.views:
                raise IncompatibleError(f"this memory has no view of {view} steps", hint=f"it has {list(self.windows.views)}")
        chosen = views or self.windows.views
        return tuple(space for space in self._records if space.scope in scopes and space.view in chosen)

    def _refusal(self, scope: Scope, queries: Queries, series: np.ndarray, where: Filter) -> str:
        """Why a scope cannot answer these queries; empty if it can."""
        known = self.windows.series_ids
        unseen = [str(queries.series_id[n]) for n in np.flatnonzero(series < 0)]
        if scope not in {space.scope for space in self._records}:
            return f"this memory was built without it ({self.manifest.joint})" if scope == "joint" else "this memory was built without it"
        if scope != "pooled" and unseen:
            return f"series '{unseen[0]}' is not in this memory, which has {', '.join(known[:8])}{', ...' if len(known) > 8 else ''}"
        if scope == "joint" and not np.array_equal(np.sort(series), np.arange(len(known))):
            return f"it compares all {len(known)} series of a moment, but the query has {len(series)}"
        if scope != "pooled" and where.series_id is not None:
            return "a filter by series needs the scope 'pooled'"
        return ""

    def _encode(self, view: int, queries: Queries, series: np.ndarray, scopes: tuple[Scope, ...]) -> Encoded:
        """Keys of all queries; the joint group's series are put in its order first."""
        parts = []
        order = np.argsort(series) if "joint" in scopes else np.arange(len(series))
        for start in range(0, max(len(queries), 1), BLOCK):
            context = queries.context[start : start + BLOCK, order]
            parts.append(self.encoder.encode(view, context, series[order], scopes))
        back = np.argsort(order)
        keys = {
            scope: np.concatenate([part.keys[scope] if scope == "joint" else part.keys[scope][:, back] for part in parts])
            for scope in scopes
        }
        return Encoded(keys, type(parts[0].statistics)(*(np.concatenate(s)[:, back] for s in zip(*(p.statistics for p in parts), strict=True))))

    # -- one key space ----------------------------------------------------------------------------------------

    def _search_space(
        self, space: KeySpace, encoded: Encoded, queries: Queries, series: np.ndarray, k: int, where: Filter, min_gap: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Squared distance, row and the value part of the squared distance, each [B, N, k]."""
        b, n = len(queries), len(series)
        fetch = k if min_gap == 0 else 4 * k
        while True:
            squared, row, value = self._search_segments(space, encoded, queries, series, fetch, where)
            if min_gap == 0:
                break
            squared, row, value, settled = self._spread_out(squared, row, value, k, min_gap)
            if settled:
                break
            fetch *= 4
        if space.scope != "joint":
            return squared.reshape(b, n, k), row.reshape(b, n, k), value.reshape(b, n, k)
        return self._per_series(space, squared, row, value, encoded.statistics.flat, series)

    def _search_segments(
        self, space: KeySpace, encoded: Encoded, queries: Queries, series: np.ndarray, k: int, where: Filter
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The k nearest over all segments, flat over queries: [B * N, k], or [B, k] for `joint`."""
        keys = encoded.keys[space.scope]
        num_per_moment = 1 if space.scope == "joint" else len(series)
        keys = np.ascontiguousarray(keys.reshape(-1, keys.shape[-1]))
        moment = np.repeat(np.arange(len(queries)), num_per_moment)
        group = np.tile(series, len(queries)) if space.scope == "own" else np.zeros(len(keys), dtype=np.int64)
        is_flat = np.zeros(len(keys), dtype=bool) if space.scope == "joint" else encoded.statistics.flat.ravel()
        found = []
        for number, segment in enumerate(self.segments):
            squared = np.full((len(keys), k), np.inf, dtype=np.float32)
            row, value = np.full((len(keys), k), -1, dtype=np.int64), np.full((len(keys), k), np.inf, dtype=np.float32)
            tasks = []
            for g in np.unique(group):
                ranges = self._ranges(number, space.scope, int(g), queries, where)
                for flat in (False, True):
                    chosen = np.flatnonzero((group == g) & (is_flat == flat))
                    if len(chosen) == 0 or len(segment.groups[space][g]) == 0:
                        continue
                    excluded = self._excluded(segment, space, int(g), flat, where)
                    chosen = chosen[np.argsort(ranges.before[moment[chosen]], kind="stable")]
                    tasks += [
                        (segment, space, int(g), part, ranges.take(moment[part]), excluded)
                        for part in np.split(chosen, range(BLOCK, len(chosen), BLOCK))
                    ]

            def run(task: Any, squared: np.ndarray = squared, row: np.ndarray = row, value: np.ndarray = value) -> None:
                segment, space, g, part, ranges, excluded = task
                squared[part], row[part], value[part] = self._search_block(segment, space, g, keys[part], ranges, k, excluded)

            self._run_all(run, tasks)
            found.append((squared, row, value))
        return _merge(found, k)

    def _search_block(
        self,
        segment: Segment,
        space: KeySpace,
        group: int,
        keys: np.ndarray,
        ranges: Ranges,
        k: int,
        excluded: np.ndarray | None,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """One block of queries against one group of keys, with row ids of the version."""
        key_group = segment.groups[space][group]
        squared, position = search_group(key_group, keys, ranges, k, excluded=excluded)
        valid, safe = position >= 0, np.maximum(position, 0)
        width = self._records[space].value_width
        difference = key_group.keys[:, key_group.keys.shape[1] - width :][safe] - keys[:, None, keys.shape[1] - width :]
        value = np.where(valid, np.square(difference).sum(axis=-1), np.inf)
        local = segment.rows(space.scope, group)
        row = safe if isinstance(local, slice) else local[safe]
        return squared, np.where(valid, row + segment.first_row, -1), value

    def _run_all(self, run: Callable[[Any], None], tasks: list[Any]) -> None:
        """Run tasks on this memory's threads: several tasks side by side, a single one with all threads inside FAISS."""
        if self.threads == 1 or len(tasks) <= 1:
            with faiss_threads(self.threads):
                for task in tasks:
                    run(task)
            return
        with ThreadPoolExecutor(self.threads, initializer=faiss.omp_set_num_threads, initargs=(1,)) as pool:
            list(pool.map(run, tasks))

    def _ranges(self, segment: int, scope: Scope, group: int, queries: Queries, where: Filter) -> Ranges:
        """The rows of a group that each moment may see, by the leak rule and the filter's dates."""
        spans, origin = self._group_times(segment, scope, group)
        spec, step = self.windows.spec, self.windows.step
        before, after = admissible_ranges(
            queries.policy,
            spans,
            origin=queries.origin,
            query_start=step.add(queries.origin, 1 - spec.lookback),
            query_end=step.add(queries.origin, spec.horizon),
        )
        first = 0 if where.after is None else int(np.searchsorted(origin, where.after, side="left"))
        last = len(origin) if where.before is None else int(np.searchsorted(origin, where.before, side="right"))
        last = max(first, last)
        return Ranges(first, np.clip(before, first, last), np.clip(after, first, last), last)

    def _group_times(self, segment: int, scope: Scope, group: int) -> tuple[TimeSpans, np.ndarray]:
        """Spans and origins of the windows of a group of keys, in time order; kept, since every search needs them."""
        name = (segment, scope, group)
        if name not in self._times:
            part = self.segments[segment]
            local = part.rows(scope, group)
            rows = part.first_row + (np.arange(len(part.windows)) if isinstance(local, slice) else local)
            self._times[name] = self.windows.spans(rows), self.windows.origin(rows)
        return self._times[name]

    def _excluded(self, segment: Segment, space: KeySpace, group: int, flat: bool, where: Filter) -> np.ndarray | None:
        """bool [n]: keys of a group that cannot answer: of another flatness than the query, or of a series filtered out."""
        if space.scope == "joint":
            return None  # flatness is a matter of each series: see _per_series
        local = segment.rows(space.scope, group)
        excluded = segment.windows.flat[local, self.windows.views.index(space.view)] != flat
        if where.series_id is not None:
            numbers = [self.windows.series_number.get(name, -1) for name in where.series_id]
            excluded |= ~np.isin(segment.windows.series[local], numbers)
        return excluded if excluded.any() else None

    def _spread_out(
        self, squared: np.ndarray, row: np.ndarray, value: np.ndarray, k: int, min_gap: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, bool]:
        """Greedily keep the nearest k whose origins are `min_gap` steps apart: [q, m] -> [q, k], and whether more would change nothing."""
        origin = self.windows.origin(np.maximum(row, 0))
        earliest = self.windows.step.add(origin, 1 - min_gap)  # inclusive bounds of what a kept row rules out
        latest = self.windows.step.add(origin, min_gap - 1)
        free = row >= 0
        chosen = np.full((len(row), k), -1, dtype=np.int64)
        for slot in range(k):
            pick = free.argmax(axis=1)
            some = free.any(axis=1)
            chosen[some, slot] = pick[some]
            low, high = (np.take_along_axis(bound, pick[:, None], axis=1) for bound in (earliest, latest))
            free &= ~(some[:, None] & (origin >= low) & (origin <= high))
        kept = chosen >= 0
        settled = bool((kept[:, -1] | (row[:, -1] < 0)).all())
        safe = np.maximum(chosen, 0)
        take = [np.take_along_axis(part, safe, axis=1) for part in (squared, row, value)]
        return np.where(kept, take[0], np.inf), np.where(kept, take[1], -1), np.where(kept, take[2], np.inf), settled

    def _per_series(
        self, space: KeySpace, squared: np.ndarray, row: np.ndarray, value: np.ndarray, flat: np.ndarray, series: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Moments [B, k] -> the windows of each queried series at those moments, [B, N, k].

        The rows of a moment are consecutive (SegmentWindows.moments). A series takes part only where it is
        as flat at the neighbour as in the query: dividing by the spread of a constant stretch explodes.
        """
        rows = np.where(row[:, None, :] >= 0, row[:, None, :] + series[None, :, None], -1)
        view = self.windows.views.index(space.view)
        fits = (rows >= 0) & (self.windows.flat[np.maximum(rows, 0), view] == flat[..., None])
        order = np.argsort(~fits, axis=-1, kind="stable")  # unused slots last, the others still nearest first
        squared = np.where(fits, squared[:, None, :], np.inf)
        value = np.where(fits, value[:, None, :], np.inf)
        return tuple(  # type: ignore[return-value]
            np.take_along_axis(part, order, axis=-1) for part in (squared, np.where(fits, rows, -1), value)
        )

    # -- the answer -------------------------------------------------------------------------------------------

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
            windows=self.windows,
            fingerprint=self.manifest.fingerprint,
        )


def _merge(found: list[tuple[np.ndarray, np.ndarray, np.ndarray]], k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Results of several segments, each [q, k], by (distance, row id)."""
    if len(found) == 1:
        return found[0]
    squared, row, value = (np.concatenate(parts, axis=1) for parts in zip(*found, strict=True))
    order = np.lexsort((row, squared), axis=-1)[:, :k]
    return tuple(np.take_along_axis(part, order, axis=1) for part in (squared, row, value))  # type: ignore[return-value]


@contextmanager
def faiss_threads(num: int) -> Iterator[None]:
    """Let FAISS use so many threads when called from this one; the setting is per calling thread."""
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(num)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)
