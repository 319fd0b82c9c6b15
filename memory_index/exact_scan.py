"""The exact search of one set of keys: a matrix product proposes, and the one final distance decides.

What it costs, for one query and n keys of E numbers: 2 n E flops of the product, and then n distances of 4 bytes each
from which the smallest are taken. With n = 8,033 and E = 53 that is 0.85 MFLOP and 32 KB, each of which is read three
times: to add the lengths of the keys, to find a bound, and where they lie below it. The bound is as good as the k-th
distance, so some 80 candidates are left for k = 50, and only these are measured and sorted.

Why nothing is missed: a proposal differs from the distance of its pair by no more than the rounding of both. Sums of E
products in float32 are off by at most E u (|q| + |key|)^2 <= E eps (|q|^2 + |key|^2), in whatever order they are
summed. A row whose proposal lies above the bound by more than that twice is farther away than k others.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import faiss
import numpy as np

from memory_index.threads import faiss_threads

PART = 8  # a part of the keys is scanned by itself where it is so many times smaller
BLOCK_QUERIES = 128  # queries of one product: with fewer, keys are arranged for it more often than they are used
BLOCK_VALUES = 1 << 20  # proposed distances held at once by one thread: 4 MiB; twice that took a fifth longer
GROUPS = 16  # times k: so many groups of columns there are, at least, so that few hold two of the k smallest
MOST_DEALT = 32  # columns in a group, at most
UNUSED = np.uint64(0x7F800000FFFFFFFF)  # a distance of +inf: orders behind all that was found
ROW_BITS = np.uint64(0xFFFFFFFF)
LARGEST = np.finfo(np.float32).max


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

    def take(self, chosen: np.ndarray | slice) -> Ranges:
        """The ranges of some of the queries."""
        return Ranges(self.first, self.before[chosen], self.after[chosen], self.last)


@dataclass(frozen=True, kw_only=True)
class Keys:
    """n keys of width E in time order, n < 2^32. keys: float32 [n, E], may be mapped from disk."""

    keys: np.ndarray

    def __len__(self) -> int:
        return len(self.keys)

    @cached_property
    def norms(self) -> np.ndarray:
        """float32 [n]: squared length of each key."""
        return np.einsum("ne,ne->n", self.keys, self.keys)


class SeenRows(NamedTuple):
    """The rows that some query may see, one after the other: `[first, before)`, then `[after, last)`."""

    first: int
    before: int
    after: int
    last: int

    @classmethod
    def of(cls, ranges: Ranges) -> SeenRows:
        """Of one query or more."""
        before = min(max(int(ranges.before.max()), ranges.first), ranges.last)
        after = min(max(int(ranges.after.min()), before), ranges.last)
        return cls(ranges.first, before, after, ranges.last)

    @property
    def num(self) -> int:
        """How many they are."""
        return self.before - self.first + self.last - self.after

    def pieces(self, start: int, end: int) -> Iterator[slice]:
        """The rows from the `start`-th to the `end`-th of them."""
        middle = self.before - self.first
        if start < middle:
            yield slice(self.first + start, self.first + min(end, middle))
        if end > middle:
            yield slice(self.after + max(start - middle, 0), self.after + end - middle)

    def rows(self, place: np.ndarray) -> np.ndarray:
        """The row at each place."""
        row = self.first + place
        return row + (row >= self.before) * (self.after - self.before)

    def places(self, row: np.ndarray) -> np.ndarray:
        """How many of them come before each of these rows."""
        return np.clip(row, self.first, self.before) - self.first + np.clip(row, self.after, self.last) - self.after


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


def pair_distances(keys: np.ndarray, queries: np.ndarray, query: np.ndarray, row: np.ndarray) -> np.ndarray:
    """The same of m pairs: float32 [m] from queries[query] to keys[row], both int64 [m]."""
    queries, query, row = (np.ascontiguousarray(each) for each in (queries, query, row))
    result = np.empty(len(query), dtype=np.float32)
    if len(query):
        pointers = [faiss.swig_ptr(each) for each in (queries, query, np.asarray(keys), row, result)]
        with faiss_threads(1):
            faiss.pairwise_indexed_L2sqr(keys.shape[1], len(query), *pointers)
    return result


def scan(
    keys: Keys, queries: np.ndarray, ranges: Ranges, k: int, *, excluded: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest visible keys of each query, by (squared distance, row).

    queries: float32 [q, E]. excluded: bool [n], rows that a filter rejects. Returns squared distances float32
    [q, k] (+inf in unused slots) and rows int64 [q, k] (-1 there). Only rows that some query may see are looked at.
    """
    distances = np.full((len(queries), k), np.inf, dtype=np.float32)
    rows = np.full((len(queries), k), -1, dtype=np.int64)
    if len(keys) == 0:
        return distances, rows
    if (part := _small_part(keys, ranges, excluded)) is not None:
        kept, ranges = part
        if len(kept) == 0:
            return distances, rows
        distances, rows = scan(Keys(keys=keys.keys[kept]), queries, ranges, k)
        return distances, np.where(rows >= 0, kept[rows], -1)
    for start in range(0, len(queries), BLOCK_QUERIES):
        block = slice(start, start + BLOCK_QUERIES)
        distances[block], rows[block] = _scan_block(keys, queries[block], ranges.take(block), k, excluded)
    return distances, rows


def _small_part(keys: Keys, ranges: Ranges, excluded: np.ndarray | None) -> tuple[np.ndarray, Ranges] | None:
    """The rows that some query may see, int64 [m] ascending, and the ranges in terms of them; None unless they are few.

    Then the lengths of all keys are not needed, which may not even fit into memory.
    """
    last = ranges.last if (ranges.after < ranges.last).any() else int(max(ranges.before.max(initial=0), ranges.first))
    num = last - ranges.first
    if excluded is not None:
        num -= int(np.count_nonzero(excluded[ranges.first : last]))
    if num * PART > len(keys):
        return None
    kept = np.arange(ranges.first, last)
    if excluded is not None:
        kept = kept[~excluded[ranges.first : last]]
    before, after = (np.searchsorted(kept, bound) for bound in (ranges.before, ranges.after))
    return kept, Ranges(0, before, after, len(kept))


def _scan_block(
    keys: Keys, queries: np.ndarray, ranges: Ranges, k: int, excluded: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Scan for one block of queries, a chunk of the rows after the other; see `scan`.

    The k best so far are kept as one number each: the bits of a distance, which order like it, and then the row.
    """
    queries, seen = np.ascontiguousarray(queries), SeenRows.of(ranges)
    lengths, doubled = np.einsum("qe,qe->q", queries, queries), -2 * queries
    before, after = seen.places(ranges.before), seen.places(ranges.after)
    best = np.full((len(queries), k), UNUSED)
    size = max(BLOCK_VALUES // len(queries), 1)
    room = np.empty(len(queries) * (min(size, seen.num) + MOST_DEALT), dtype=np.float32)
    for start in range(0, seen.num, size):
        end = min(start + size, seen.num)
        dealt = max(1, min(MOST_DEALT, (end - start) // (GROUPS * k)))
        width = -(-(end - start) // dealt) * dealt
        proposed = room[: len(queries) * width].reshape(len(queries), width)
        longest = _propose(proposed, keys, doubled, seen.pieces(start, end), excluded)
        _hide(proposed, before - start, after - start)
        rounding = 2 * (queries.shape[1] + 8) * np.finfo(np.float32).eps * (lengths + longest)
        query, place = _candidates(proposed, dealt, _distance(best) - (lengths + rounding)[:, None], 2 * rounding)
        best = _measured(best, keys.keys, queries, query, seen.rows(start + place))
    distances = _distance(best)
    return distances, np.where(np.isfinite(distances), (best & ROW_BITS).astype(np.int64), -1)


def _propose(
    proposed: np.ndarray, keys: Keys, doubled: np.ndarray, pieces: Iterator[slice], excluded: np.ndarray | None
) -> float:
    """Write `|key|^2 - 2 query.key`, squared distance less the query's own length, for the keys of all pieces.

    proposed: float32 [q, width]; +inf goes where no key is left, or it is excluded. doubled: the queries times 2,
    negative, since the factor costs nothing on their side. Returns the largest `|key|^2`.
    """
    longest, end = 0.0, 0
    for rows in pieces:
        start, end = end, end + rows.stop - rows.start
        part, norms = proposed[:, start:end], keys.norms[rows]
        longest = max(longest, float(norms.max()))
        np.matmul(doubled, keys.keys[rows].T, out=part)
        part += norms if excluded is None else np.where(excluded[rows], np.float32(np.inf), norms)
    proposed[:, end:] = np.inf
    return longest


def _hide(proposed: np.ndarray, before: np.ndarray, after: np.ndarray) -> None:
    """Put +inf between `before` and `after` of each line, int64 [q], which may lie outside.

    Columns that are hidden from all are filled; only where some see and others do not is each looked at.
    """
    before, after = (np.clip(bound, 0, proposed.shape[1]) for bound in (before, after))
    low, start, end, high = (int(each) for each in (before.min(), before.max(), after.min(), after.max()))
    if start > end:
        part = proposed[:, low:high]
        np.maximum(part, np.minimum(_from(before, low, high), -_from(after, low, high)), out=part)
        return
    np.maximum(proposed[:, low:start], _from(before, low, start), out=proposed[:, low:start])
    proposed[:, start:end] = np.inf
    np.maximum(proposed[:, end:high], -_from(after, end, high), out=proposed[:, end:high])


def _from(column: np.ndarray, first: int, last: int) -> np.ndarray:
    """+inf from a column on and -inf before it, for each of these, int64 [q]: float32 [q, last - first]."""
    width = last - first
    line = np.repeat(np.array([-np.inf, np.inf], dtype=np.float32), width)
    return np.lib.stride_tricks.sliding_window_view(line, width)[first + width - column] if width else line[None]


def _candidates(
    proposed: np.ndarray, dealt: int, found: np.ndarray, margin: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Which of a chunk may belong to the k nearest: int64 [m] lines, ascending, and columns.

    proposed: [q, width]. found: [q, k], the nearest so far. margin: [q]. Columns are dealt into groups in turn, `dealt`
    into each, since keys close in time are close to one another. The minima of the groups and what was found are all
    of different rows, so the k-th smallest of these is at least the k-th smallest of all.
    """
    q, width = proposed.shape
    groups, k = width // dealt, found.shape[1]
    minima = proposed.reshape(q, dealt, groups).min(axis=1)
    limit = np.partition(np.concatenate([found, minima], axis=1), k - 1, axis=1)[:, k - 1] + margin
    limit = np.minimum(limit, LARGEST)  # what is hidden lies above it
    line, group = np.divmod(np.flatnonzero(minima <= limit[:, None]), groups)
    place = (line * width + group)[:, None] + groups * np.arange(dealt)
    within = np.flatnonzero(proposed.ravel().take(place) <= limit[line][:, None])
    line = line[within // dealt]
    return line, place.ravel()[within] - line * width


def _measured(
    best: np.ndarray, keys: np.ndarray, queries: np.ndarray, query: np.ndarray, row: np.ndarray
) -> np.ndarray:
    """The k best so far, [q, k], once these pairs have been measured. query: int64 [m], ascending. row: int64 [m]."""
    if len(query) == 0:
        return best
    counts = np.bincount(query, minlength=len(queries))
    place = np.arange(len(query)) - np.repeat(np.cumsum(counts) - counts, counts)
    candidates = np.full((len(queries), int(counts.max())), UNUSED)
    bits = pair_distances(keys, queries, query, row).view(np.uint32)
    candidates[query, place] = bits.astype(np.uint64) << np.uint64(32) | row.astype(np.uint64)
    return np.sort(np.concatenate([best, candidates], axis=1), axis=1)[:, : best.shape[1]]


def _distance(best: np.ndarray) -> np.ndarray:
    """The squared distances, float32, in such numbers."""
    return (best >> np.uint64(32)).astype(np.uint32).view(np.float32)
