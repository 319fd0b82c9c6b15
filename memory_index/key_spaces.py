"""One key space over all segments: which keys each query looks at, which of them it may see, and the k nearest.

Finding the nearest keys of one group is `search.py`; the leak rule is `leakage.py`; which key spaces are asked, and
what becomes of the answer, is `local.py`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from memory_index.encoder import Encoded
from memory_index.exact_scan import Ranges
from memory_index.leakage import admissible_ranges
from memory_index.search import KeyGroup, search_group
from memory_index.threads import Workers
from memory_index.types import Filter, KeySpace, Queries, Scope
from memory_index.versions.segments import SegmentWindows
from memory_index.windows import StoredWindows

BLOCK = 256  # queries searched at once by one thread
LEAST_BLOCK = 16  # with fewer, the search is not shared among threads
UNUSED: tuple[float, ...] = (np.inf, -1, np.inf, np.inf)  # of an unused slot, as in `Found`
MAX_FETCHED = 1 << 22  # candidates held at once while neighbours that lie far apart are looked for


@dataclass(frozen=True, kw_only=True)
class Segment:
    """One opened segment. first_row: id of its first window in the version."""

    windows: SegmentWindows
    first_row: int
    groups: dict[KeySpace, list[KeyGroup]]
    num_series: int

    @cached_property
    def own_rows(self) -> np.ndarray:
        """int64 [n]: local row of each `own` key."""
        return self.windows.by_series()

    @cached_property
    def own_offsets(self) -> np.ndarray:
        """int64 [num_series + 1]: where each series' keys begin."""
        return self.windows.group_offsets(KeySpace("own", 0), self.num_series)

    @cached_property
    def moments(self) -> np.ndarray:
        """int64 [M, N]: local rows of each `joint` key; below 0 for one of an earlier segment."""
        across = self.windows.across
        return self.windows.moments(self.num_series) if across is None else across - self.first_row

    def rows(self, scope: Scope, group: int) -> np.ndarray | slice:
        """Local row of every key of a group; for `joint` that of the moment's first series."""
        if scope == "own":
            return self.own_rows[self.own_offsets[group] : self.own_offsets[group + 1]]
        return self.moments[:, 0] if scope == "joint" else slice(None)


class Found(NamedTuple):
    """What was found, [..., k]: squared distance, float32, and row ids, int64 (-1 unused); of the distance its value
    part and its condition part, float32, which is 0 where there are no covariates.
    """

    squared: np.ndarray
    row: np.ndarray
    value: np.ndarray
    condition: np.ndarray

    @classmethod
    def empty(cls, shape: tuple[int, ...]) -> Found:
        """Nothing found yet."""
        return cls(
            np.full(shape, np.inf, dtype=np.float32),
            np.full(shape, -1, dtype=np.int64),
            np.full(shape, np.inf, dtype=np.float32),
            np.full(shape, np.inf, dtype=np.float32),
        )

    def put(self, chosen: np.ndarray, part: Found) -> None:
        """Set the answers of some queries."""
        for mine, theirs in zip(self, part, strict=True):
            mine[chosen] = theirs


class Asked(NamedTuple):
    """q queries of one key space.

    keys: float32 [q, E]. moment, group: int64 [q], number of a query's moment, and of the group of keys it looks at.
    flat: bool [q], whether its window is flat; always False for `joint`, where that is a matter of each series.
    """

    keys: np.ndarray
    moment: np.ndarray
    group: np.ndarray
    flat: np.ndarray

    def take(self, chosen: np.ndarray) -> Asked:
        """Some of the queries."""
        return Asked(*(part[chosen] for part in self))


class Task(NamedTuple):
    """One block of queries (numbers in `part`) against one group of keys."""

    segment: Segment
    group: int
    part: np.ndarray
    ranges: Ranges
    excluded: np.ndarray | None


class GroupTimes:
    """The times of the windows of a group of n keys, datetime64[ns] [n] in time order. Implements `leakage.Times`.

    Each is kept once it has been needed: a search under `causal` needs `known_at` only, which of `pooled` is no copy.
    """

    def __init__(self, windows: StoredWindows, segment: Segment, scope: Scope, group: int) -> None:
        self.windows, self.segment, self.scope, self.group = windows, segment, scope, group

    @cached_property
    def known_at(self) -> np.ndarray:
        """When everything about each window is known."""
        return self.windows.known_at[self._rows]

    @cached_property
    def start_at(self) -> np.ndarray:
        """The first context step of each window."""
        return self.windows.spans(self._rows).start_at

    @cached_property
    def end_at(self) -> np.ndarray:
        """The last future step of each window."""
        return self.windows.spans(self._rows).end_at

    @cached_property
    def origin(self) -> np.ndarray:
        """The last context step of each window."""
        return self.windows.origin(self._rows)

    @property
    def _rows(self) -> np.ndarray | slice:
        first, local = self.segment.first_row, self.segment.rows(self.scope, self.group)
        return slice(first, first + len(self.segment.windows)) if isinstance(local, slice) else first + local


class KeySpaceSearch:
    """Searches one key space at a time over the segments of a version."""

    def __init__(
        self,
        windows: StoredWindows,
        segments: Sequence[Segment],
        part_widths: dict[KeySpace, tuple[int, int]],
        workers: Workers,
    ) -> None:
        """part_widths: numbers of the value part of a key, and of the condition part behind it."""
        self.windows = windows
        self.segments = tuple(segments)
        self.part_widths = part_widths
        self.workers = workers
        self._times: dict[tuple[int, Scope, int], GroupTimes] = {}
        self._moments: np.ndarray | None = None  # int64 [M, N], row ids, where those of a moment are not consecutive
        if any(segment.windows.across is not None for segment in segments):
            moments = np.concatenate([segment.first_row + segment.moments for segment in segments])
            self._moments = moments[np.argsort(moments[:, 0])]

    def nearest(
        self,
        space: KeySpace,
        encoded: Encoded,
        queries: Queries,
        series: np.ndarray,
        k: int,
        where: Filter,
        min_gap: int,
    ) -> Found:
        """The k nearest admissible windows of each of B x N queries, [B, N, k]."""
        b, n = len(queries), len(series)
        keys = encoded.keys[space.scope]
        keys = np.ascontiguousarray(keys.reshape(math.prod(keys.shape[:-1]), keys.shape[-1]))
        per_moment = 1 if space.scope == "joint" else n
        asked = Asked(
            keys=keys,
            moment=np.repeat(np.arange(b), per_moment),
            group=np.tile(series, b) if space.scope == "own" else np.zeros(len(keys), dtype=np.int64),
            flat=np.zeros(len(keys), dtype=bool) if space.scope == "joint" else encoded.statistics.flat.ravel(),
        )
        if min_gap == 0:
            found = self._over_segments(space, asked, queries, k, where)
        else:
            found = self._far_apart(space, asked, queries, k, where, min_gap)
        if space.scope == "joint":
            return self._per_series(space, found, encoded.statistics.flat, series)
        return Found(*(part.reshape(b, n, k) for part in found))

    def _far_apart(self, space: KeySpace, asked: Asked, queries: Queries, k: int, where: Filter, min_gap: int) -> Found:
        """The nearest k whose origins are `min_gap` steps apart, [q, k]; fetches more until k of them are found."""
        result = Found.empty((len(asked.keys), k))
        pending, fetch = np.arange(len(asked.keys)), 4 * k
        while len(pending):
            unsettled = []
            for part in np.array_split(pending, -(-len(pending) * fetch // MAX_FETCHED)):
                found = self._over_segments(space, asked.take(part), queries, fetch, where)
                kept, settled = self._spread_out(found, k, min_gap)
                result.put(part, kept)
                unsettled.append(part[~settled])
            pending, fetch = np.concatenate(unsettled), 4 * fetch
        return result

    def _over_segments(self, space: KeySpace, asked: Asked, queries: Queries, k: int, where: Filter) -> Found:
        """The k nearest over all segments, [q, k]."""
        results = []
        for number in range(len(self.segments)):
            found = Found.empty((len(asked.keys), k))

            def run(task: Task, found: Found = found) -> None:
                found.put(task.part, self._block(space, task, asked.keys[task.part], k))

            self.workers.run(run, self._tasks(number, space, asked, queries, where))
            results.append(found)
        return _merged(results, k)

    def _tasks(self, number: int, space: KeySpace, asked: Asked, queries: Queries, where: Filter) -> Iterator[Task]:
        """Blocks of queries that look at one group of keys and are flat or not alike, those that see little first."""
        segment = self.segments[number]
        by_group = np.lexsort((asked.flat, asked.group))  # once, for thousands of groups of few queries each
        edges = np.flatnonzero(np.diff(asked.group[by_group], prepend=-1, append=-1))
        for of_group in (by_group[start:end] for start, end in pairwise(edges)):
            group = int(asked.group[of_group[0]])
            if len(segment.groups[space][group]) == 0:
                continue
            ranges = self._ranges(number, space.scope, group, queries, where)
            num_other = int(np.searchsorted(asked.flat[of_group], True))
            for flat, chosen in ((False, of_group[:num_other]), (True, of_group[num_other:])):
                if len(chosen) == 0:
                    continue
                chosen = chosen[np.argsort(ranges.before[asked.moment[chosen]], kind="stable")]
                excluded = self._excluded(segment, space, group, flat, where)
                size = min(BLOCK, max(LEAST_BLOCK, -(-len(chosen) // self.workers.num)))
                for start in range(0, len(chosen), size):
                    part = chosen[start : start + size]
                    yield Task(segment, group, part, ranges.take(asked.moment[part]), excluded)

    def _block(self, space: KeySpace, task: Task, keys: np.ndarray, k: int) -> Found:
        """One block of queries against one group of keys, with row ids of the version."""
        group = task.segment.groups[space][task.group]
        squared, position = search_group(group, keys, task.ranges, k, excluded=task.excluded)
        valid, safe = position >= 0, np.maximum(position, 0)
        value_width, condition_width = self.part_widths[space]
        last = keys.shape[1] - condition_width
        value, condition = (np.zeros(position.shape, dtype=np.float32) for _ in range(2))
        for column in range(last - value_width, keys.shape[1]):  # quicker than [q, k, width] at once
            part = value if column < last else condition
            part += np.square(group.keys[safe, column] - keys[:, column, None])
        local = task.segment.rows(space.scope, task.group)
        row = safe if isinstance(local, slice) else local[safe]
        row = np.where(valid, row + task.segment.first_row, -1)
        return Found(squared, row, *(np.where(valid, part, np.inf) for part in (value, condition)))

    def _ranges(self, segment: int, scope: Scope, group: int, queries: Queries, where: Filter) -> Ranges:
        """The rows of a group that each moment may see, by the leak rule and the filter's dates."""
        times = self._group_times(segment, scope, group)
        spec, step = self.windows.spec, self.windows.step
        before, after = admissible_ranges(
            queries.policy,
            times,
            origin=queries.origin,
            query_start=step.add(queries.origin, 1 - spec.lookback),
            query_end=step.add(queries.origin, spec.horizon),
        )
        first = 0 if where.after is None else int(np.searchsorted(times.origin, where.after, side="left"))
        last = (
            len(times.known_at)
            if where.before is None
            else int(np.searchsorted(times.origin, where.before, side="right"))
        )
        last = max(first, last)
        return Ranges(first, np.clip(before, first, last), np.clip(after, first, last), last)

    def _group_times(self, segment: int, scope: Scope, group: int) -> GroupTimes:
        """The times of a group of keys; kept, since every search needs them."""
        name = (segment, scope, group)
        if name not in self._times:
            self._times[name] = GroupTimes(self.windows, self.segments[segment], scope, group)
        return self._times[name]

    def _excluded(self, segment: Segment, space: KeySpace, group: int, flat: bool, where: Filter) -> np.ndarray | None:
        """bool [n]: keys of a group that cannot answer; None if there are none.

        Flat where the query is not (or not flat), too much of them missing, or filtered out.
        """
        view, missing = self.windows.views.index(space.view), segment.windows.missing
        most = self.windows.spec.most_missing(space.view)
        if space.scope == "joint":  # flatness is a matter of each series: see _per_series
            if self.windows.missing is None:
                return None
            excluded = self.windows.missing[segment.first_row + segment.moments, view].mean(axis=1) > most
            return excluded if excluded.any() else None
        local = segment.rows(space.scope, group)
        excluded = segment.windows.flat[local, view] != flat
        if missing is not None:
            excluded |= missing[local, view] > most
        if where.series_id is not None:
            numbers = [self.windows.series_number.get(name, -1) for name in where.series_id]
            excluded |= ~np.isin(segment.windows.series[local], numbers)
        return excluded if excluded.any() else None

    def _spread_out(self, found: Found, k: int, min_gap: int) -> tuple[Found, np.ndarray]:
        """Greedily keep the nearest k, `min_gap` steps apart: [q, m] -> [q, k], and where more would change nothing."""
        origin = self.windows.origin(np.maximum(found.row, 0))
        earliest = self.windows.step.add(origin, 1 - min_gap)  # inclusive bounds of what a kept row rules out
        latest = self.windows.step.add(origin, min_gap - 1)
        free = found.row >= 0
        chosen = np.full((len(free), k), -1, dtype=np.int64)
        for slot in range(k):
            pick, some = free.argmax(axis=1), np.any(free, axis=1)
            chosen[some, slot] = pick[some]
            low, high = (np.take_along_axis(bound, pick[:, None], axis=1) for bound in (earliest, latest))
            free &= ~(some[:, None] & (origin >= low) & (origin <= high))
        kept = chosen >= 0
        settled = kept[:, -1] | (found.row[:, -1] < 0)
        taken = Found(*(np.take_along_axis(part, np.maximum(chosen, 0), axis=1) for part in found))
        return Found(*(np.where(kept, part, unused) for part, unused in zip(taken, UNUSED, strict=True))), settled

    def _per_series(self, space: KeySpace, found: Found, flat: np.ndarray, series: np.ndarray) -> Found:
        """Moments [B, k] -> the windows of each queried series at those moments, [B, N, k].

        The rows of a moment are consecutive (SegmentWindows.moments), but where a series lagged. A series takes part
        only where it is as flat at the neighbour as in the query: dividing by the spread of a constant stretch
        explodes. Likewise only where enough of it is known.
        """
        moment = found.row[:, None, :]
        rows = np.where(moment >= 0, moment + series[None, :, None], -1)
        if self._moments is not None:  # by its first series' row, which no other moment has
            place = np.searchsorted(self._moments[:, 0], np.maximum(moment, 0))
            rows = np.where(
                moment >= 0, self._moments[np.minimum(place, len(self._moments) - 1), series[None, :, None]], -1
            )
        view = self.windows.views.index(space.view)
        fits = (rows >= 0) & (self.windows.flat[np.maximum(rows, 0), view] == flat[..., None])
        if self.windows.usable is not None:
            fits &= self.windows.usable[np.maximum(rows, 0), view]
        order = np.argsort(~fits, axis=-1, kind="stable")  # unused slots last, the others still nearest first
        of_moments = Found(found.squared[:, None], rows, found.value[:, None], found.condition[:, None])
        parts = (np.where(fits, part, unused) for part, unused in zip(of_moments, UNUSED, strict=True))
        return Found(*(np.take_along_axis(part, order, axis=-1) for part in parts))


def _merged(results: list[Found], k: int) -> Found:
    """Results of several segments, each [q, k], by (distance, row id)."""
    if len(results) == 1:
        return results[0]
    joined = Found(*(np.concatenate(parts, axis=1) for parts in zip(*results, strict=True)))
    order = np.lexsort((joined.row, joined.squared), axis=-1)[:, :k]
    return Found(*(np.take_along_axis(part, order, axis=1) for part in joined))
