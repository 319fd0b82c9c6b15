"""Vintages on the steps of series: what was known of a covariate at each origin, for many windows at once.

The steps of all series stand end to end, T in all; a place among them is a position. A value of step p that was issued
at step i or before it counts for every origin r >= i of its series. Each row of n is one ascending number,
p (T + 1) + i; what an origin r knows of a step p is the last row up to p (T + 1) + r, found by one binary search over n
numbers: no loop over windows, origins or steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from memory_index.covariates import Vintages

UNITS_OF_SUMS = 2.0**24  # sums are made of whole numbers: what a window does not see leaves no rounding behind
LARGEST_OF_SUMS = 2.0**26  # deviations beyond it count as this


@dataclass(frozen=True, kw_only=True)
class StepVintages:
    """The vintages of one column on the steps of some series, in ascending order of (position, issue); n rows.

    position, issued: int64 [n], the step that a value is of, and the first step of its series at which it is known.
    value: float32 [n]. edges: int64, where each stretch of steps begins, and T.
    """

    position: np.ndarray
    issued: np.ndarray
    value: np.ndarray
    edges: np.ndarray

    def rows(self, position: np.ndarray, origin: np.ndarray) -> np.ndarray:
        """int64 [...]: the row that each origin knows of a position, -1 where nothing was issued by then.

        position, origin: int64, broadcast; both of one series.
        """
        if not len(self.value):
            return np.full(np.broadcast_shapes(position.shape, origin.shape), -1)
        first = position * self._width
        row = np.searchsorted(self._numbers, first + origin, side="right") - 1
        return np.where(self._numbers[row] >= first, row, -1) if row.size else row

    def as_of(self, position: np.ndarray, origin: np.ndarray) -> np.ndarray:
        """float32 [...]: the newest value that was issued by each origin, NaN where none was."""
        row = self.rows(position, origin)
        return np.where(row >= 0, self.value[row], np.float32(np.nan)) if len(self.value) else row * np.float32(np.nan)

    def means(self, channels: np.ndarray, view: int) -> np.ndarray:
        """float32 [T, J]: at each origin, the mean over its last `view` steps of what it knows of them.

        channels: float32 [n, J], of each row; what is not known counts as 0. A row changes the sum of every origin from
        where it is known up to `view` steps behind its own: two additions for each row and number, then running sums.
        """
        num_steps = int(self.edges[-1])
        whole = np.rint(np.clip(channels, -LARGEST_OF_SUMS, LARGEST_OF_SUMS) * UNITS_OF_SUMS).astype(np.int64)
        change = whole.copy()
        again = np.flatnonzero(self.position[1:] == self.position[:-1]) + 1
        change[again] -= whole[again - 1]
        start = np.maximum(self.position, self.issued)
        end_of_series = self.edges[np.searchsorted(self.edges, self.position, side="right")]
        end = np.minimum(self.position + view, end_of_series)
        seen = start < end
        sums = np.zeros((num_steps + 1, channels.shape[1]), dtype=np.int64)
        np.add.at(sums, start[seen], change[seen])
        np.subtract.at(sums, end[seen], change[seen])
        np.cumsum(sums, axis=0, out=sums)
        return (sums[:num_steps] / (view * UNITS_OF_SUMS)).astype(np.float32)

    @property
    def _width(self) -> int:
        return int(self.edges[-1]) + 1

    @cached_property
    def _numbers(self) -> np.ndarray:
        """int64 [n]: one number for (position, issue), in ascending order."""
        return self.position * self._width + self.issued


def on_steps(
    vintages: Vintages, column: str, stretches: list[tuple[str | None, np.ndarray]], codes: np.ndarray | None = None
) -> StepVintages:
    """The vintages of one column on the steps of series.

    stretches: of each the name of its series, None where all share them, and its steps, datetime64[ns], ascending.
    codes: float64, what each code of a category becomes, the last one for a word that is not among them.
    Values of other times, and those issued after the last step, are left out: no window of these steps knows them.
    """
    edges = np.cumsum([0, *(len(times) for _, times in stretches)])
    parts = []
    for (name, times), start in zip(stretches, edges, strict=False):
        rows = vintages.rows_of(column, name)
        place = np.searchsorted(times, vintages.time[rows])
        issued = np.searchsorted(times, vintages.issued_at[rows], side="left")
        there = (place < len(times)) & (issued < len(times))
        there[there] &= times[place[there]] == vintages.time[rows][there]
        parts.append((start + place[there], start + issued[there], vintages.value[rows][there]))
    position, issued, value = (np.concatenate(each) for each in zip(*parts, strict=True))
    if codes is not None:
        value = codes[value.astype(np.int64)]
    return StepVintages(position=position, issued=issued, value=value.astype(np.float32), edges=edges)
