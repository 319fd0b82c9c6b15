"""The rule that decides which stored windows a query may see (rule 1 of docs/architecture.md).

Three forms of one rule live here and nowhere else: the rule itself for any pair of times
(`is_admissible`), the same rule as row ranges for the search (`admissible_ranges`), and the check that
every result runs on itself (`require_admissible`). This file knows times only: no vectors, no distances.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

import numpy as np

from memory_index.errors import MemoryIndexError


class Policy(StrEnum):
    """When a stored window may be used.

    `CAUSAL`: everything about it was known at the query's origin: `known_at <= origin`. The only policy
    of evaluation, forecasting and inspection.
    `DISJOINT`: its whole window shares no step with the query's whole window (lookback and horizon),
    whichever series it comes from; windows *later* than the query are allowed. For training only.
    """

    CAUSAL = "causal"
    DISJOINT = "disjoint"


class LeakError(MemoryIndexError):
    """A neighbour that its query must not see. Always a defect of a search path, never of the input."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TimeSpans:
    """When windows start, end and become known; arrays of one shape, datetime64[ns], UTC or naive.

    `start_at` is the first context step, `end_at` the last future step, `known_at` the time from which
    the whole window is known (`end_at` plus the publication delay).
    """

    start_at: np.ndarray
    end_at: np.ndarray
    known_at: np.ndarray


class Times(Protocol):
    """What has the times of windows, each worked out when it is first needed; see `TimeSpans`."""

    @property
    def start_at(self) -> np.ndarray:
        """The first context step."""
        ...

    @property
    def end_at(self) -> np.ndarray:
        """The last future step."""
        ...

    @property
    def known_at(self) -> np.ndarray:
        """The time from which the whole window is known."""
        ...


def is_admissible(
    policy: Policy, windows: TimeSpans, *, origin: np.ndarray, query_start: np.ndarray, query_end: np.ndarray
) -> np.ndarray:
    """Whether each window may be seen; all arguments broadcast. A missing time (NaT) is never admissible."""
    if policy is Policy.CAUSAL:
        return windows.known_at <= origin
    return (windows.end_at < query_start) | (windows.start_at > query_end)


def admissible_ranges(
    policy: Policy, windows: Times, *, origin: np.ndarray, query_start: np.ndarray, query_end: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The admissible rows of `n` windows in time order, for each of B queries, as two ranges of rows.

    Rows `[0, before)` and `[after, n)` are admissible, all others are not. Windows of one version have one
    length, so `start_at`, `end_at` and `known_at` rise together: `CAUSAL` is a prefix (`after == n`) and
    `DISJOINT` the complement of one contiguous range.

    Returns `(before, after)`, both int64 [B], `before <= after`.
    """
    n = len(windows.known_at)
    if policy is Policy.CAUSAL:
        before = np.searchsorted(windows.known_at, origin, side="right")
        return before.astype(np.int64), np.full(len(origin), n, dtype=np.int64)
    before = np.searchsorted(windows.end_at, query_start, side="left").astype(np.int64)
    after = np.searchsorted(windows.start_at, query_end, side="right").astype(np.int64)
    return before, np.maximum(before, after)


def require_admissible(
    policy: Policy,
    windows: TimeSpans,
    valid: np.ndarray,
    *,
    origin: np.ndarray,
    query_start: np.ndarray,
    query_end: np.ndarray,
) -> None:
    """Raise `LeakError` if any valid slot holds a window that its query must not see."""
    allowed = is_admissible(policy, windows, origin=origin, query_start=query_start, query_end=query_end)
    late = valid & ~allowed
    if not late.any():
        return
    where = tuple(int(i) for i in np.argwhere(late)[0])
    raise LeakError(
        f"{int(late.sum())} of {int(valid.sum())} neighbours are not admissible under '{policy}': "
        f"first at slot {where}, known at {windows.known_at[where]}, "
        f"for a query with origin {np.broadcast_to(origin, late.shape)[where]}",
        hint="this is a defect of the memory that answered, please report it; the result was discarded",
    )
