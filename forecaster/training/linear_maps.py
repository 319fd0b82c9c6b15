"""The linear map from a window to its future, chosen by cross-validation: what it shrinks to, how far it looks, how
strongly it is held.

A ridge that shrinks to nothing says "the mean of the window", whatever the table. Here it shrinks to one of a few plain
forecasts, each a linear map of the window itself: the mean of its last steps, its last value, its last season, or the
mean of its seasons. Then little evidence leaves a good forecast as it is, and much evidence overrules it. Every
candidate is scored on each fold in closed form, from the fold's normal equations (`normal_equations.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np

from forecaster.retrieval.batches import Fill
from forecaster.retrieval.folds import Folds
from forecaster.training.column_penalties import FIRST, Beside, choose_columns, of_window, solve_beside
from forecaster.training.normal_equations import CHUNK, NormalEquations, normalised, ridge_path
from memory_index.covariate_ridge import OFF
from memory_index.windows import Step

PENALTIES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 100.0)  # relative to the mean square of z, which is 1
SHARES = (1, 2, 4)  # the map reads the whole lookback, half or a quarter of it
MEANS = (1, 2, 4, 8)  # likewise, the mean that it shrinks to
SCORED_STEPS = 48  # of the horizon that candidates are scored on, at most
DEFAULT_PENALTY = 0.1  # where nothing can be cross-validated


@dataclass(frozen=True, kw_only=True, slots=True)
class MapChoice:
    """A candidate. prior: what it shrinks to, see `prior_maps`. lookback: steps that it reads. penalty: of the ridge.

    error: its cross-validated mean squared error, standardised and weighed by series (`weighing.py`), None where it
    was not measured. columns: penalty of each covariate by name (`column_penalties.py`), None where it takes no part.
    """

    prior: str
    lookback: int
    penalty: float
    error: float | None = None
    columns: Mapping[str, float | None] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """In terms of JSON."""
        return asdict(self)


class Windows(NamedTuple):
    """Training windows as maps are fitted on them: see `normal_equations.normalised`, with the fill of
    missing cells. folds: over them. covariates: numbers beside windows, [n, P] of some of them by their numbers in
    training units (`retrieval/beside.py`), and which columns they are of; None where the map reads none.

    times, series: origin and series number of each, [n]. weight: how much each counts, float64 [n].
    """

    values: np.ndarray
    position: np.ndarray
    unit: np.ndarray
    times: np.ndarray
    series: np.ndarray
    weight: np.ndarray
    folds: Folds
    step: Step
    fill: Fill | None = None
    covariates: tuple[Callable[[np.ndarray], np.ndarray], Beside] | None = None

    @property
    def beside(self) -> Beside | None:
        """What the numbers of covariates are of."""
        return None if self.covariates is None else self.covariates[1]


class FittedMaps(NamedTuple):
    """The map of the whole training part and one per fold, fitted without it: float64 [L + P, H] each.

    equations: of all training windows, from which it can go on.
    """

    choice: MapChoice
    weight: np.ndarray
    fold_weights: list[np.ndarray]
    equations: NormalEquations


def prior_maps(lookback: int, horizon: int, season: int | None) -> dict[str, np.ndarray]:
    """Plain forecasts as maps of the window [L, H], by name. season: steps, None where the table has no usual one."""
    maps = {}
    for share in MEANS:
        length = max(2, lookback // share)
        maps[f"mean of {length}"] = _spread_over(lookback, horizon, length)
    maps["last value"] = _spread_over(lookback, horizon, 1)
    if season is not None and 1 < season <= lookback:
        maps["last season"] = _seasons(lookback, horizon, season, 1)
        if (num := lookback // season) > 1:
            maps["mean of seasons"] = _seasons(lookback, horizon, season, num)
    return maps


def _spread_over(lookback: int, horizon: int, length: int) -> np.ndarray:
    weight = np.zeros((lookback, horizon))
    weight[lookback - length :] = 1 / length
    return weight


def _seasons(lookback: int, horizon: int, season: int, num: int) -> np.ndarray:
    weight, ahead = np.zeros((lookback, horizon)), np.arange(horizon)
    for back in range(1, num + 1):
        weight[lookback - back * season + ahead % season, ahead] = 1 / num
    return weight


def fit_maps(
    windows: Windows,
    *,
    lookback: int,
    horizon: int,
    floor: float,
    season: int | None,
    penalty: float | None = None,
) -> FittedMaps:
    """Choose a map by cross-validation, and fit it on all windows and for every fold on the others.

    floor: least spread of a window in units of its series. penalty: the only one to try; None tries `PENALTIES`.
    Without folds nothing can be chosen: then it shrinks to the mean of the window.
    """
    rest, scored, total = fold_equations(windows, lookback, horizon, floor)
    priors = prior_maps(lookback, horizon, season)
    beside, penalties = windows.beside, PENALTIES if penalty is None else (penalty,)
    if not rest:
        columns = {} if beside is None else dict.fromkeys(beside.names, FIRST)
        held = penalty or DEFAULT_PENALTY
        choice = MapChoice(prior=f"mean of {lookback}", lookback=lookback, penalty=held, columns=columns)
    else:
        alone, scored_alone = ([of_window(each, lookback) for each in every] for every in (rest, scored))
        choice = choose_map(alone, scored_alone, priors, penalties)
        if beside is not None:
            choice = with_columns(choice, rest, scored, priors, beside, penalties)

    def fitted(equations: NormalEquations) -> np.ndarray:
        return solve_map(equations, choice, priors, beside)

    return FittedMaps(choice, fitted(total), [fitted(each) for each in rest], total)


def solve_map(
    equations: NormalEquations, choice: MapChoice, priors: dict[str, np.ndarray], beside: Beside | None
) -> np.ndarray:
    """The map that a choice makes of normal equations, float64 [L + P, H]."""
    prior = priors[choice.prior]
    if beside is None:
        return equations.solve(choice.penalty, prior, choice.lookback)
    columns = [OFF if (held := choice.columns[name]) is None else held for name in beside.names]
    return solve_beside(
        equations, beside, penalty=choice.penalty, prior=prior, lookback=choice.lookback, columns=columns
    )


def with_columns(
    choice: MapChoice,
    rest: Sequence[NormalEquations],
    scored: Sequence[NormalEquations],
    priors: dict[str, np.ndarray],
    beside: Beside,
    penalties: Sequence[float],
) -> MapChoice:
    """What was chosen for the window alone, with the penalties of columns beside it."""
    prior = priors[choice.prior]
    steps = _scored_steps(prior.shape[1])
    penalty, columns, error = choose_columns(
        [_at_steps(each, steps) for each in rest],
        [_at_steps(each, steps) for each in scored],
        beside,
        prior[:, steps],
        choice.lookback,
        choice.penalty,
        penalties,
    )
    num = sum(each.num for each in scored) * len(steps)
    told = {name: None if held == OFF else held for name, held in zip(beside.names, columns, strict=True)}
    return replace(choice, penalty=penalty, error=error / max(num, 1), columns=told)


def choose_map(
    rest: Sequence[NormalEquations],
    scored: Sequence[NormalEquations],
    priors: dict[str, np.ndarray],
    penalties: Sequence[float],
) -> MapChoice:
    """The candidate with the least cross-validated error.

    rest: of each fold, what its maps are fitted on. scored: of each fold, its own windows, weighted as they are scored.
    """
    lookback, horizon = rest[0].cross.shape
    steps = _scored_steps(horizon)
    kept = {name: prior[:, steps] for name, prior in priors.items()}
    errors: dict[tuple[str, int, float], float] = {}
    for fitted_on, scored_on in zip(rest, scored, strict=True):
        some, theirs = _at_steps(fitted_on, steps), _at_steps(scored_on, steps)
        for length in dict.fromkeys(max(2, lookback // share) for share in SHARES):
            for name, penalty, weight in ridge_path(some, kept, length, penalties):
                key = (name, length, penalty)
                errors[key] = errors.get(key, 0.0) + theirs.squared_error(weight)
    (prior, length, penalty), error = min(errors.items(), key=lambda item: item[1])
    num = sum(each.num for each in scored) * len(steps)
    return MapChoice(prior=prior, lookback=length, penalty=penalty, error=error / max(num, 1))


def _scored_steps(horizon: int) -> np.ndarray:
    return np.unique(np.linspace(0, horizon - 1, SCORED_STEPS).round().astype(np.int64))


def _at_steps(equations: NormalEquations, steps: np.ndarray) -> NormalEquations:
    return NormalEquations(
        gram=equations.gram, cross=equations.cross[:, steps], square=equations.square[steps], num=equations.num
    )


def fold_equations(
    windows: Windows, lookback: int, horizon: int, floor: float
) -> tuple[list[NormalEquations], list[NormalEquations], NormalEquations]:
    """Normal equations: of each fold, of the windows that what serves it is fitted on; of each, of its own windows as
    they are scored; and of all windows.
    """
    folds = windows.folds
    num_folds = folds.plan.num

    def summed(chosen: np.ndarray, *, as_scored: bool = False) -> NormalEquations:
        width = lookback + (0 if windows.beside is None else len(windows.beside.block))
        equations, numbers = NormalEquations.empty(width, horizon), np.flatnonzero(chosen)
        for start in range(0, len(numbers), CHUNK):
            part = numbers[start : start + CHUNK]
            unit, weight = windows.unit[part], windows.weight[part]
            found = normalised(
                windows.values,
                windows.position[part],
                unit,
                lookback=lookback,
                horizon=horizon,
                floor=floor,
                fill=windows.fill,
            )
            x = found.z
            if windows.covariates is not None:
                x = np.concatenate([x, windows.covariates[0](part) * (unit / found.spread)[:, None]], axis=1)
            if as_scored:  # errors in units of the series: those of z, times the window's spread in such units
                weight = weight * np.square(found.spread / unit)
            equations = equations + NormalEquations.of(x, found.future, weight)
        return equations if not as_scored else _counted(equations, len(numbers))

    if not num_folds:
        return [], [], summed(np.ones(len(windows.position), dtype=bool))
    own = [summed(folds.number == fold) for fold in range(num_folds)]
    scored = [summed(folds.number == fold, as_scored=True) for fold in range(num_folds)]
    total, rest = sum(own[1:], own[0]), []
    for fold, mine in enumerate(own):
        admitted = folds.admitted(fold, windows.times, windows.series, windows.step)
        rest.append(total - mine - summed(~admitted & (folds.number != fold)))
    return rest, scored, total


def _counted(equations: NormalEquations, num: int) -> NormalEquations:
    """Weighted equations whose `num` counts windows: a mean of scored errors is over windows."""
    return NormalEquations(gram=equations.gram, cross=equations.cross, square=equations.square, num=float(num))
