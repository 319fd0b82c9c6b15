"""The map of a version with covariates in closed form: sums over windows, and a ridge with a penalty for each column.

D = view + P numbers of a window. Which windows are looked at is `fit_covariates.py`; a try of a penalty costs 2/3 D^3
flops.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

NUM_FOLDS = 3  # blocks of time
OFF = math.inf  # the penalty of a column that takes no part
COLUMN_PENALTIES = (0.03, 0.3, 3.0, OFF)  # relative to the mean square of the column's numbers
WINDOW_PENALTIES = (0.01, 0.03, 0.1)  # likewise of the window itself
SWEEPS = 1  # over all columns
LEAST_GAIN = 0.001  # of the squared error: what a column must be worth to take part


@dataclass(frozen=True, kw_only=True)
class Sums:
    """Over some windows: of x x^T [D, D] and x f^T [D, H], x the window and what stands beside it, f its future, both
    in the window's own location and spread; of f^2, and how many windows.
    """

    gram: np.ndarray
    cross: np.ndarray
    square: float
    num: float

    @classmethod
    def zero(cls, width: int, horizon: int) -> Sums:
        """Of no windows."""
        return cls(gram=np.zeros((width, width)), cross=np.zeros((width, horizon)), square=0.0, num=0)

    def __add__(self, other: Sums) -> Sums:
        return Sums(
            gram=self.gram + other.gram,
            cross=self.cross + other.cross,
            square=self.square + other.square,
            num=self.num + other.num,
        )

    def scaled(self, factor: float) -> Sums:
        """As if each window counted so many times as much."""
        return Sums(
            gram=factor * self.gram, cross=factor * self.cross, square=factor * self.square, num=factor * self.num
        )

    def of(self, chosen: np.ndarray) -> Sums:
        """With some of the numbers x only. chosen: int64 [d]."""
        return replace(self, gram=self.gram[np.ix_(chosen, chosen)], cross=self.cross[chosen])


def choose(by_fold: list[Sums], total: Sums, block: np.ndarray, num_blocks: int) -> np.ndarray:
    """The penalty of the window and of each column with the least error on blocks of time that were left out.

    One after the other, from all columns at a middle one; a column that is worth less than `LEAST_GAIN` is off. Tables
    that are too short for blocks of their own keep the middle ones.
    """
    penalties = np.full(num_blocks, COLUMN_PENALTIES[1])
    penalties[0] = WINDOW_PENALTIES[0]
    folds = [fold for fold in by_fold[:NUM_FOLDS] if fold.num]
    if len(folds) < 2:
        return penalties
    known: dict[tuple[float, ...], float] = {}
    others = [_others(fold, folds) for fold in folds]

    def of_trial(trial: np.ndarray) -> float:
        name = tuple(trial.tolist())
        if name not in known:
            known[name] = sum(
                squared_error(fold, other, trial, block) for fold, other in zip(folds, others, strict=True)
            )
        return known[name]

    for _ in range(SWEEPS):
        for number in (*range(1, num_blocks), 0):
            found = []
            for value in COLUMN_PENALTIES if number else WINDOW_PENALTIES:
                trial = penalties.copy()
                trial[number] = value
                found.append((of_trial(trial) * (1 + LEAST_GAIN * (number > 0 and value != OFF)), value))
            penalties[number] = min(found)[1]
    return penalties


def of_folds(by_fold: list[Sums], penalties: np.ndarray, block: np.ndarray) -> np.ndarray:
    """[F, D, H]: of each block of time the map of the others; none where there are fewer than two."""
    folds = by_fold[:NUM_FOLDS]
    if not all(fold.num for fold in folds):
        return np.empty((0, len(block), folds[0].cross.shape[1]))
    return np.stack([solve(_others(fold, folds), penalties, block) for fold in folds])


def recent(by_fold: list[Sums]) -> Sums:
    """Of all windows, each block of time with half the weight of the next: its windows are half a block back on
    average. Those that reach over an edge, a few, count as the middle block.
    """
    total = by_fold[NUM_FOLDS].scaled(0.5 ** (NUM_FOLDS / 2))
    for number, fold in enumerate(by_fold[:NUM_FOLDS]):
        total = total + fold.scaled(0.5 ** (NUM_FOLDS - number - 0.5))
    return total


def _others(held_out: Sums, folds: list[Sums]) -> Sums:
    total = Sums.zero(*held_out.cross.shape)
    for fold in folds:
        if fold is not held_out:
            total = total + fold
    return total


def squared_error(held_out: Sums, others: Sums, penalties: np.ndarray, block: np.ndarray) -> float:
    """The squared error on a block of time of the map that is fitted on the others."""
    ridge = solve(others, penalties, block)
    return held_out.square + float(np.sum(ridge * (held_out.gram @ ridge - 2 * held_out.cross)))


def solve(sums: Sums, penalties: np.ndarray, block: np.ndarray) -> np.ndarray:
    """[D, H]: the ridge with a penalty for each block of numbers, relative to their mean square; 0 where it is off."""
    used = np.flatnonzero(np.isfinite(penalties[block]))
    part, of = sums.of(used), block[used]
    square = np.bincount(of, weights=np.diagonal(part.gram), minlength=len(penalties))
    mean_square = square / np.maximum(np.bincount(of, minlength=len(penalties)), 1)
    floor = 1e-9 * max(float(mean_square.max(initial=0)), 1e-300)  # a column that never changes has no mean square
    penalty = penalties[of] * np.maximum(mean_square[of], floor)
    ridge = np.zeros((len(block), part.cross.shape[1]))
    ridge[used] = np.linalg.solve(part.gram + np.diag(penalty), part.cross)
    return ridge
