"""Top-k within one set of keys: the exact scan, the path through an index, and the one final distance.

A `KeyGroup` is keys in time order that one query may compare itself with: the windows of one series
(`own`), all moments (`joint`) or all windows (`pooled`) of one segment. Admissible rows arrive as the two
ranges of `leakage.admissible_ranges`. Every path only *proposes* candidates; `squared_distances`
recomputes their distances pair by pair, and ties are broken by row, so that the answer does not depend
on the path, the batch or the number of threads.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, Protocol

import faiss
import numpy as np

from memory_index.threads import faiss_threads

DEALT = 8  # columns in a group while the smallest of a line are looked for
MORE = 8  # times as many candidates for a query that the first ones do not settle
SPARE = 14  # candidates beyond k: room for the rounding of the proposal
OVERFETCH = 64  # candidates asked of an index beyond k, for those the time guard rejects
NEAR = 64  # rows: a filter begins and ends at multiples of it, so that queries close in time are asked with one
PART = 8  # a part of a group is scanned by itself where it is so many times smaller
EXACT_ROWS = 20_000  # with fewer visible rows an exact scan is faster than a filtered graph search
MIN_EFFORT = 128  # efSearch of a graph index, at least
BLOCK_VALUES = 1 << 19  # proposed distances held at once by one thread: 2 MiB stay in the cache of a core


class Ranges(NamedTuple):
    """What each of q queries may see of n rows: `[first, before)` and `[after, last)`.

    before, after: int64 [q]. first, last: one window of time for all queries.
    """

    first: int
    before: np.ndarray
    after: np.ndarray
    last: int

    @property
    def num_visible(self) -> np.ndarray:
        """int64 [q]: how many rows each query may see."""
        return np.maximum(self.before - self.first, 0) + np.maximum(self.last - self.after, 0)

    def take(self, chosen: np.ndarray) -> Ranges:
        """The ranges of some of the queries."""
        return Ranges(self.first, self.before[chosen], self.after[chosen], self.last)


Within = tuple[tuple[int, int], ...]  # rows of a group, as half-open ranges in ascending order


class Index(Protocol):
    """What names keys of a group that are probably near, without looking at all of them.

    It only proposes: it may name hidden rows, the same row twice, or too few. Rows are checked and measured by the
    search.
    """

    @property
    def most(self) -> int:
        """How many candidates it can be asked for at once."""
        ...

    @property
    def can_filter(self) -> bool:
        """Whether it can be told which rows to look at."""
        ...

    def __len__(self) -> int: ...

    def propose(self, queries: np.ndarray, num: int, within: Within | None = None) -> np.ndarray:
        """Candidates int64 [q, num or more] for queries float32 [q, E]: rows of the group, -1 in unused slots.

        They are in any order.
        """
        ...


@dataclass(frozen=True)
class FaissIndex:
    """A FAISS index over the keys of a group, or over more of which the group is the rows `first` to `last`.

    whole: what holds the index in memory, where that is a part of something.
    """

    faiss_index: faiss.Index
    first: int = 0
    last: int | None = None
    whole: faiss.Index | None = None
    can_filter = False  # FAISS takes one filter for all queries, and a graph loses its way where little is admissible

    @property
    def most(self) -> int:
        """All of them."""
        return len(self)

    def __len__(self) -> int:
        return (int(self.faiss_index.ntotal) if self.last is None else self.last) - self.first

    def propose(self, queries: np.ndarray, num: int, within: Within | None = None) -> np.ndarray:
        """See `Index.propose`. Of more than the group as many times more is asked, and what lies outside left out."""
        assert within is None, "it does not filter"
        num *= -(-int(self.faiss_index.ntotal) // len(self))
        parameters = _parameters(self.faiss_index, num)
        found = self.faiss_index.search(np.ascontiguousarray(queries), num, params=parameters)[1]
        return np.where((found >= self.first) & (found < self.first + len(self)), found - self.first, -1)


@dataclass(frozen=True, kw_only=True)
class KeyGroup:
    """n keys of width E in time order. keys: float32 [n, E], may be mapped from disk. index: over them, if any."""

    keys: np.ndarray
    index: Index | None = None

    def __len__(self) -> int:
        return len(self.keys)

    @cached_property
    def norms(self) -> np.ndarray:
        """float32 [n]: squared length of each key."""
        return np.einsum("ne,ne->n", self.keys, self.keys)


def search_group(
    group: KeyGroup, queries: np.ndarray, ranges: Ranges, k: int, *, excluded: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest visible keys of each query, by (squared distance, row).

    queries: float32 [q, E]. excluded: bool [n], rows that a filter rejects. Returns squared distances float32
    [q, k] (+inf in unused slots) and rows int64 [q, k] (-1 there).
    """
    if group.index is None:
        return scan(group, queries, ranges, k, excluded=excluded)
    return _search_index(group, queries, ranges, k, excluded)


def squared_distances(keys: np.ndarray, queries: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """The one final distance: float32 [q, m] from queries [q, E] to keys[rows], rows int64 [q, m].

    +inf where a row is -1. Each pair is summed by itself in a fixed order (FAISS `fvec_L2sqr`), whatever else is in the
    batch.
    """
    queries, rows = np.ascontiguousarray(queries), np.ascontiguousarray(rows)
    result = np.empty(rows.shape, dtype=np.float32)
    if rows.size:
        pointer = faiss.swig_ptr
        with faiss_threads(1):  # waking a second one takes longer than the distances of a block
            faiss.fvec_L2sqr_by_idx(
                pointer(result), pointer(queries), pointer(np.asarray(keys)), pointer(rows), keys.shape[1], *rows.shape
            )
    result[rows < 0] = np.inf
    return result


def nearest(distances: np.ndarray, rows: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k smallest of each line by (distance, row): [q, m] -> [q, k], padded with (+inf, -1)."""
    if distances.shape[1] < k:
        pad = ((0, 0), (0, k - distances.shape[1]))
        distances, rows = np.pad(distances, pad, constant_values=np.inf), np.pad(rows, pad, constant_values=-1)
    order = np.lexsort((rows, distances), axis=-1)[:, :k]
    distances, rows = np.take_along_axis(distances, order, axis=1), np.take_along_axis(rows, order, axis=1)
    return distances, np.where(np.isfinite(distances), rows, -1)


def scan(
    group: KeyGroup, queries: np.ndarray, ranges: Ranges, k: int, *, excluded: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Exact search: a matrix product proposes, the final distance decides, and a bound proves that nothing was missed.

    See `search_group`. Cost: 2 n E flops a query and one partial sort of n numbers; n are the rows that some query may
    see where these are few, else all.
    """
    distances = np.full((len(queries), k), np.inf, dtype=np.float32)
    rows = np.full((len(queries), k), -1, dtype=np.int64)
    if len(group) == 0:
        return distances, rows
    if (part := _small_part(group, ranges, excluded)) is not None:
        kept, ranges = part
        if len(kept) == 0:
            return distances, rows
        distances, rows = scan(KeyGroup(keys=group.keys[kept]), queries, ranges, k)
        return distances, np.where(rows >= 0, kept[rows], -1)
    size = max(1, BLOCK_VALUES // len(group))
    for start in range(0, len(queries), size):
        block = slice(start, start + size)
        where = Ranges(ranges.first, ranges.before[block], ranges.after[block], ranges.last)
        distances[block], rows[block] = _scan_block(group, queries[block], where, k, excluded)
    return distances, rows


def _small_part(group: KeyGroup, ranges: Ranges, excluded: np.ndarray | None) -> tuple[np.ndarray, Ranges] | None:
    """The rows that some query may see, int64 [m] ascending, and the ranges in terms of them; None unless they are few.

    Then neither the norms nor the product of the whole group are needed, which may not even fit into memory.
    """
    last = ranges.last if (ranges.after < ranges.last).any() else int(max(ranges.before.max(initial=0), ranges.first))
    num = last - ranges.first
    if excluded is not None:
        num -= int(np.count_nonzero(excluded[ranges.first : last]))
    if num * PART > len(group):
        return None
    kept = np.arange(ranges.first, last)
    if excluded is not None:
        kept = kept[~excluded[ranges.first : last]]
    before, after = (np.searchsorted(kept, bound) for bound in (ranges.before, ranges.after))
    return kept, Ranges(0, before, after, len(kept))


def _scan_block(
    group: KeyGroup, queries: np.ndarray, ranges: Ranges, k: int, excluded: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Scan the visible keys for one block of queries; those that a few candidates do not settle get more of them."""
    first = ranges.first
    last = ranges.last if (ranges.after < ranges.last).any() else int(max(ranges.before.max(), first))
    distances = np.full((len(queries), k), np.inf, dtype=np.float32)
    rows = np.full((len(queries), k), -1, dtype=np.int64)
    if last <= first:
        return distances, rows
    proposed = _proposed_distances(group, queries, first, last)
    _hide(proposed, ranges, last)
    if excluded is not None:
        proposed[:, excluded[first:last]] = np.inf
    pending, num = np.arange(len(queries)), k + SPARE
    while len(pending):
        part = proposed if len(pending) == len(queries) else proposed[pending]
        found, row, proved = _best(group, queries[pending], part, first, min(num, last - first), k)
        distances[pending[proved]], rows[pending[proved]] = found[proved], row[proved]
        pending, num = pending[~proved], num * MORE
    return distances, rows


def _best(
    group: KeyGroup, queries: np.ndarray, proposed: np.ndarray, first: int, num: int, k: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The k nearest among the `num` best proposals, and whether that proves them the k nearest of all, bool [q].

    A row that is no candidate was estimated at `farthest` or more. If the k-th exact distance is smaller than that by
    more than the rounding of both, no such row belongs to the answer. Rounding: a sum of E products in float32 is off
    by at most E u (|q| + |key|)^2 <= E eps (|q|^2 + |key|^2), in whatever order it is summed.
    """
    n, width = proposed.shape[1], group.keys.shape[1]
    columns = np.broadcast_to(np.arange(n), proposed.shape) if num == n else _smallest(proposed, num)
    estimate = np.take_along_axis(proposed, columns, axis=1)
    candidates = np.where(np.isfinite(estimate), columns + first, -1).astype(np.int64)
    distances, rows = nearest(squared_distances(group.keys, queries, candidates), candidates, k)
    if num == n:
        return distances, rows, np.ones(len(queries), dtype=bool)
    lengths = np.einsum("qe,qe->q", queries, queries)
    farthest = estimate.max(axis=1) + lengths
    longest = group.norms[first : first + n].max()
    rounding = 2 * (width + 8) * np.finfo(np.float32).eps * (lengths + longest)
    return distances, rows, ~np.isfinite(farthest) | (distances[:, -1] < farthest - rounding)


def _smallest(proposed: np.ndarray, num: int) -> np.ndarray:
    """Columns of the `num` smallest of each line, int64 [q, num], in any order.

    Long lines are thinned first: columns are dealt into groups of `DEALT`, and the `num` groups with the smallest
    minima hold the `num` smallest values. One pass of minima is cheaper than a partial sort of everything.
    """
    q, n = proposed.shape
    num_groups = n // DEALT
    if num_groups < 2 * num:
        return np.argpartition(proposed, num - 1, axis=1)[:, :num]
    row, column = proposed.strides
    dealt = np.lib.stride_tricks.as_strided(proposed, (q, DEALT, num_groups), (row, num_groups * column, column))
    groups = np.argpartition(dealt.min(axis=1), num - 1, axis=1)[:, :num]
    columns = (groups[:, None, :] + num_groups * np.arange(DEALT)[:, None]).reshape(q, num * DEALT)
    rest = np.broadcast_to(np.arange(num_groups * DEALT, n), (q, n - num_groups * DEALT))
    columns = np.concatenate([columns, rest], axis=1)
    best = np.argpartition(np.take_along_axis(proposed, columns, axis=1), num - 1, axis=1)[:, :num]
    return np.take_along_axis(columns, best, axis=1)


def _proposed_distances(group: KeyGroup, queries: np.ndarray, first: int, last: int) -> np.ndarray:
    """`|key|^2 - 2 query.key`, float32 [q, last - first]: squared distance less the query's own length."""
    proposed = (-2 * queries) @ group.keys[first:last].T  # the factor costs nothing on the side of the queries
    proposed += group.norms[first:last]
    return proposed


def _hide(proposed: np.ndarray, ranges: Ranges, last: int) -> None:
    """Put +inf where a query may not look; only columns that are hidden from some query are touched."""
    low = int(np.clip(ranges.before.min(), ranges.first, last))
    high = int(np.clip(ranges.after.max(), low, last))
    columns = np.arange(low, high)
    hidden = (columns >= ranges.before[:, None]) & (columns < ranges.after[:, None])
    proposed[:, low - ranges.first : high - ranges.first][hidden] = np.inf


def _search_index(
    group: KeyGroup, queries: np.ndarray, ranges: Ranges, k: int, excluded: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Candidates from the index where much is visible; queries that come back short are scanned exactly in the end.

    An index that filters is asked by them once more before that, so that a scan is left only for few visible rows, and
    for an index that finds fewer rows than there are. That the scan is exact makes the answer complete in any case.
    """
    index = group.index
    assert index is not None, "a group without an index is scanned"
    distances = np.full((len(queries), k), np.inf, dtype=np.float32)
    rows = np.full((len(queries), k), -1, dtype=np.int64)
    num_kept = len(group) if excluded is None else len(group) - int(np.count_nonzero(excluded))
    visible = np.minimum(ranges.num_visible, num_kept)
    fetch = _num_fetched(k, visible, len(group))
    short = np.ones(len(queries), dtype=bool)

    def take_up(chosen: np.ndarray, num: int, within: Within | None = None) -> None:
        found = _admissible(index.propose(queries[chosen], num, within), ranges.take(chosen), excluded)
        distances[chosen], rows[chosen] = nearest(squared_distances(group.keys, queries[chosen], found), found, k)
        short[chosen] = (rows[chosen] >= 0).sum(axis=1) < np.minimum(k, visible[chosen])

    for num in np.unique(fetch[(fetch > 0) & (fetch <= index.most)]):
        take_up(np.flatnonzero(fetch == num), int(num))
    # Twice NEAR of what a filter admits may be hidden from a query, and what is excluded is not known to the index.
    num = _power_of_two((k + SPARE) * len(group) / max(num_kept, 1) + 2 * NEAR)
    if index.can_filter and num <= index.most:
        for chosen, within in _lots(ranges, np.flatnonzero(short & (fetch > 0))):
            take_up(chosen, int(num), within)
    again = np.flatnonzero(short)
    if len(again):
        distances[again], rows[again] = scan(group, queries[again], ranges.take(again), k, excluded=excluded)
    return distances, rows


def _admissible(found: np.ndarray, ranges: Ranges, excluded: np.ndarray | None) -> np.ndarray:
    """What was proposed, int64 [q, m] in any order: -1 for what a query may not see, and where a row comes again."""
    seen = (found >= ranges.first) & (found < ranges.before[:, None])
    seen |= (found >= ranges.after[:, None]) & (found < ranges.last)
    if excluded is not None:
        seen &= ~excluded[np.where(seen, found, 0)]
    found = np.sort(np.where(seen, found, -1), axis=1)
    found[:, 1:][found[:, 1:] == found[:, :-1]] = -1
    return found


def _lots(ranges: Ranges, pending: np.ndarray) -> Iterator[tuple[np.ndarray, Within]]:
    """Split queries into lots that share a filter: what they may see, and up to `NEAR` rows more at each end.

    Which filter a query gets depends on its own ranges alone, and so does what an approximate index answers.
    """
    first, last = ranges.first, ranges.last
    before = np.clip(-(-ranges.before[pending] // NEAR) * NEAR, first, last)
    after = np.where(ranges.after[pending] < last, np.maximum(ranges.after[pending] // NEAR * NEAR, first), last)
    edges, lot = np.unique(np.stack([before, after], axis=1), axis=0, return_inverse=True)
    for place, (low, high) in enumerate(edges.tolist()):
        parts = ((first, last),) if high <= low else ((first, low), (high, last))
        yield pending[lot.reshape(-1) == place], tuple((start, end) for start, end in parts if start < end)


def _num_fetched(k: int, visible: np.ndarray, n: int) -> np.ndarray:
    """How many candidates to ask the index for, int64 [q]: enough to keep k after the time guard; 0 means scan.

    If admissible rows were spread evenly among the nearest, `k * n / visible` would hold k of them. Powers of
    two, so that queries of like visibility are searched in one call.
    """
    fetch = _power_of_two((k + SPARE) * n / np.maximum(visible, 1) + OVERFETCH)
    return np.where((visible <= EXACT_ROWS) | (fetch > n), 0, fetch)


def _power_of_two(wanted: np.ndarray | float) -> np.ndarray:
    """The next power of two, int64."""
    return np.power(2, np.ceil(np.log2(wanted))).astype(np.int64)


def _parameters(index: faiss.Index, num: int) -> faiss.SearchParameters | None:
    """Search effort in proportion to how many candidates are wanted."""
    if isinstance(index, faiss.IndexHNSW):
        return faiss.SearchParametersHNSW(efSearch=max(MIN_EFFORT, num))
    if isinstance(index, faiss.IndexIVF):
        return faiss.SearchParametersIVF(nprobe=max(1, min(index.nlist, index.nlist // 16)))
    return None
