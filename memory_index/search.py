"""Top-k within one set of keys: the exact scan, the FAISS path, and the one final distance.

A `KeyGroup` is keys in time order that one query may compare itself with: the windows of one series
(`own`), all moments (`joint`) or all windows (`pooled`) of one segment. Admissible rows arrive as the two
ranges of `leakage.admissible_ranges`. Every path only *proposes* candidates; `squared_distances`
recomputes their distances pair by pair, and ties are broken by row, so that the answer does not depend
on the path, the batch or the number of threads.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import faiss
import numpy as np

from memory_index.threads import faiss_threads

DEALT = 8  # columns in a group while the smallest of a line are looked for
MORE = 8  # times as many candidates for a query that the first ones do not settle
SPARE = 14  # candidates beyond k: room for the rounding of the proposal
OVERFETCH = 64  # candidates asked of a FAISS index beyond k, for those the time guard rejects
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


@dataclass(frozen=True, kw_only=True)
class KeyGroup:
    """n keys of width E in time order. keys: float32 [n, E], may be mapped from disk. index: FAISS index over them."""

    keys: np.ndarray
    index: faiss.Index | None = None

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

    See `search_group`. Cost: 2 n E flops a query and one partial sort of n numbers.
    """
    distances = np.full((len(queries), k), np.inf, dtype=np.float32)
    rows = np.full((len(queries), k), -1, dtype=np.int64)
    if len(group) == 0:
        return distances, rows
    size = max(1, BLOCK_VALUES // len(group))
    for start in range(0, len(queries), size):
        block = slice(start, start + size)
        where = Ranges(ranges.first, ranges.before[block], ranges.after[block], ranges.last)
        distances[block], rows[block] = _scan_block(group, queries[block], where, k, excluded)
    return distances, rows


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
    """Candidates from the FAISS index where much is visible; all queries that come back short are scanned exactly."""
    assert group.index is not None, "a group without an index is scanned"
    distances = np.full((len(queries), k), np.inf, dtype=np.float32)
    rows = np.full((len(queries), k), -1, dtype=np.int64)
    visible = np.minimum(ranges.num_visible, len(group) if excluded is None else int((~excluded).sum()))
    fetch = _num_fetched(k, visible, len(group))
    short = fetch == 0
    for num in np.unique(fetch[~short]):
        chosen = np.flatnonzero(fetch == num)
        where = ranges.take(chosen)
        _, found = group.index.search(
            np.ascontiguousarray(queries[chosen]), int(num), params=_parameters(group.index, int(num))
        )
        admissible = (found >= where.first) & (found < where.before[:, None])
        admissible |= (found >= where.after[:, None]) & (found < where.last)
        if excluded is not None:
            admissible &= ~excluded[found]
        found = np.where(admissible, found, -1)
        distances[chosen], rows[chosen] = nearest(squared_distances(group.keys, queries[chosen], found), found, k)
        short[chosen] = (rows[chosen] >= 0).sum(axis=1) < np.minimum(k, visible[chosen])
    again = np.flatnonzero(short)
    if len(again):
        distances[again], rows[again] = scan(group, queries[again], ranges.take(again), k, excluded=excluded)
    return distances, rows


def _num_fetched(k: int, visible: np.ndarray, n: int) -> np.ndarray:
    """How many candidates to ask the index for, int64 [q]: enough to keep k after the time guard; 0 means scan.

    If admissible rows were spread evenly among the nearest, `k * n / visible` would hold k of them. Powers of
    two, so that queries of like visibility are searched in one call.
    """
    wanted = (k + SPARE) * n / np.maximum(visible, 1) + OVERFETCH
    fetch = np.power(2, np.ceil(np.log2(wanted))).astype(np.int64)
    return np.where((visible <= EXACT_ROWS) | (fetch > n), 0, fetch)


def _parameters(index: faiss.Index, num: int) -> faiss.SearchParameters | None:
    """Search effort in proportion to how many candidates are wanted."""
    if isinstance(index, faiss.IndexHNSW):
        return faiss.SearchParametersHNSW(efSearch=max(MIN_EFFORT, num))
    if isinstance(index, faiss.IndexIVF):
        return faiss.SearchParametersIVF(nprobe=max(1, min(index.nlist, index.nlist // 16)))
    return None
