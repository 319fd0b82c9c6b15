"""How strongly the linear map of a run holds what covariates say: one penalty for each column, by cross-validation.

The map shrinks to a plain forecast of the window alone (`linear_maps.py`); what it adds for a column is held by a
penalty relative to the mean square of the column's numbers, and a column that is worth nothing is off. Everything is
told by normal equations of [window, numbers of covariates]: see `normal_equations.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from forecaster.training.normal_equations import NormalEquations
from memory_index.covariate_ridge import COLUMN_PENALTIES, LEAST_GAIN, OFF

FIRST = 0.3  # of each column, before anything is chosen
NEARBY = 10.0  # of the window's penalties, those within this factor of the one without covariates are tried


@dataclass(frozen=True, kw_only=True, slots=True)
class Beside:
    """Which numbers stand beside a window. names: of the columns. block: int64 [P], the column of each number."""

    names: tuple[str, ...]
    block: np.ndarray


def of_window(equations: NormalEquations, lookback: int) -> NormalEquations:
    """The equations of the window alone."""
    return replace(equations, gram=equations.gram[:lookback, :lookback], cross=equations.cross[:lookback])


def solve_beside(
    equations: NormalEquations,
    beside: Beside,
    *,
    penalty: float,
    prior: np.ndarray,
    lookback: int,
    columns: Sequence[float],
) -> np.ndarray:
    """`argmin_W mean |f - x W|^2 + penalties |W - W_0|^2`, float64 [L + P, H].

    prior: [L, H], what the window's rows shrink to; the others shrink to 0. lookback: only the last so many rows of the
    window may differ from the prior. columns: penalty of each, `OFF` for one that takes no part.
    """
    size, num = len(prior), max(equations.num, 1.0)
    start = np.zeros((len(equations.gram), prior.shape[1]))
    start[:size] = prior
    square = np.diagonal(equations.gram) / num
    penalties = np.full(len(start), OFF)
    penalties[size - lookback : size] = penalty
    for number, each in enumerate(columns):
        rows = size + np.flatnonzero(beside.block == number)
        penalties[rows] = each * max(float(square[rows].mean()), 1e-9) if len(rows) else OFF
    used = np.flatnonzero(np.isfinite(penalties))
    left = (equations.cross - equations.gram[:, :size] @ prior)[used] / num
    weight = start
    weight[used] += np.linalg.solve(equations.gram[np.ix_(used, used)] / num + np.diag(penalties[used]), left)
    return weight


def choose_columns(
    rest: Sequence[NormalEquations],
    scored: Sequence[NormalEquations],
    beside: Beside,
    prior: np.ndarray,
    lookback: int,
    penalty: float,
    penalties: Sequence[float],
) -> tuple[float, tuple[float, ...], float]:
    """Penalty of the window, of each column, and their cross-validated sum of squared errors.

    One after the other, the columns first, from `FIRST` on. The arguments are those of `linear_maps.choose_map`, at the
    steps that candidates are scored on; prior, lookback, penalty: what was chosen without covariates.
    """
    known: dict[tuple[float, ...], float] = {}

    def error(of_window: float, columns: tuple[float, ...]) -> float:
        if (name := (of_window, *columns)) not in known:
            maps = (
                solve_beside(some, beside, penalty=of_window, prior=prior, lookback=lookback, columns=columns)
                for some in rest
            )
            known[name] = sum(theirs.squared_error(weight) for theirs, weight in zip(scored, maps, strict=True))
        return known[name]

    columns = (FIRST,) * len(beside.names)
    for number in range(len(columns)):
        tried = [(*columns[:number], each, *columns[number + 1 :]) for each in COLUMN_PENALTIES]
        worth = [error(penalty, each) * (1 + LEAST_GAIN * (each[number] != OFF)) for each in tried]
        columns = tried[int(np.argmin(worth))]
    near = [each for each in penalties if penalty / NEARBY <= each <= penalty * NEARBY * (1 + 1e-9)] or [penalty]
    chosen = min(near, key=lambda each: error(each, columns))
    return chosen, columns, error(chosen, columns)
