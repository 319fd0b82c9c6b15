"""Top-k within one set of keys: exactly, or through an index.

A `KeyGroup` is keys in time order that one query may compare itself with: the windows of one series
(`own`), all moments (`joint`) or all windows (`pooled`) of one segment. Admissible rows arrive as the two
ranges of `leakage.admissible_ranges`. Every path only *proposes* candidates; the one final distance of
`exact_scan.py` is computed of each pair by itself, and ties are broken by row, so that the answer does not
depend on the path, the batch or the number of threads.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import faiss
import numpy as np

from memory_index.exact_scan import Keys, Ranges, scan, squared_distances

SPARE = 14  # candidates beyond k, for rows that an index names twice
OVERFETCH = 64  # candidates asked of an index beyond k, for those the time guard rejects
NEAR = 64  # rows: a filter begins and ends at multiples of it, so that queries close in time are asked with one
EXACT_ROWS = 20_000  # with fewer visible rows an exact scan is faster than a filtered graph search
MIN_EFFORT = 128  # efSearch of a graph index, at least


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
class KeyGroup(Keys):
    """Keys that one query may compare itself with. index: over them, if any."""

    index: Index | None = None


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


def nearest(distances: np.ndarray, rows: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k smallest of each line by (distance, row): [q, m] -> [q, k], padded with (+inf, -1)."""
    if distances.shape[1] < k:
        pad = ((0, 0), (0, k - distances.shape[1]))
        distances, rows = np.pad(distances, pad, constant_values=np.inf), np.pad(rows, pad, constant_values=-1)
    order = np.lexsort((rows, distances), axis=-1)[:, :k]
    distances, rows = np.take_along_axis(distances, order, axis=1), np.take_along_axis(rows, order, axis=1)
    return distances, np.where(np.isfinite(distances), rows, -1)


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
