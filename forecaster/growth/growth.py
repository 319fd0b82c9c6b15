"""The closed form of a run, as something that goes on: normal equations of the linear map, and of the value gate.

At a time `at`, the map has been fitted on every window whose future is known by then, and the gate on the errors that
the parts made on windows known by then, as they were forecast at their origins. Both are sums, so what has happened
since is one more term, and what lies back can be made to count less:

    G(at) = 2^(-n / half_life) G(before) + sum of windows known in between, each with 2^(-steps since / half_life)

n: steps from `before` to `at`. So one long stretch and several short ones give the same sums, to rounding. What is
asked of which memory, and when, is `operation.py`; where states lie is `states.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch

from forecaster.config import Config
from forecaster.model.model import ForecastModel
from forecaster.retrieval.batches import LiveBlock, fill_of, units_inside
from forecaster.retrieval.beside import of_stored
from forecaster.training.closed_form import beside_of
from forecaster.training.fit_gate import (
    Evidence,
    GateFit,
    add_errors,
    choose_gate,
    errors_of_parts,
    horizon_steps,
    part_forecasts,
)
from forecaster.training.linear_maps import MapChoice, prior_maps, solve_map
from forecaster.training.normal_equations import CHUNK, NormalEquations, normalised
from forecaster.training.quadratics import Quadratic
from memory_index.covariate_map import CovariateLayout
from memory_index.memory import Memory
from memory_index.origins import on_schedule, steps_apart
from memory_index.windows import StoredWindows, cut, origin_rows

Sums = dict[bytes, Quadratic]


@dataclass(frozen=True, kw_only=True, slots=True)
class Trained:
    """What training decided, and every state has. began_at: datetime64[ns], the end of the training part.

    choice: of the linear map. names: of the P parts, the first num_bases of which are bases. train_stride: steps
    between two training windows of a series: in the sums, each window stands for so many. made_do: whether these asked
    with less of a memory than a forecast has. series_weight: how much the windows of each trained series count
    (`training/weighing.py`). units: their training standard deviations, raw. folds: evidence of the held-out training
    windows. layout: of the covariates that the map reads, None for none.
    """

    began_at: np.datetime64
    choice: MapChoice
    names: tuple[str, ...]
    num_bases: int
    train_stride: int
    made_do: bool
    series_weight: Mapping[str, float]
    units: Mapping[str, float]
    folds: tuple[tuple[Quadratic, ...], ...]
    layout: CovariateLayout | None = None

    def thinned(self, rows: np.ndarray, times: np.ndarray, memory: Memory, stride: int) -> np.ndarray:
        """Of some origins of a series, those on the memory's schedule, `stride` steps apart, counted from the end of
        the training part. rows: int64, ascending. times: of the steps of the series.
        """
        schedule, step = memory.manifest.schedule, memory.windows.step
        apart = steps_apart(schedule, step)
        rows = on_schedule(step, [times], [rows], schedule)[0]
        number = (rows - np.searchsorted(times, self.began_at)) // apart
        return rows[number % max(1, stride // apart) == 0]


class Waiting(NamedTuple):
    """What the parts said of n windows whose futures are not known yet; units of the memory's transform.

    origin: datetime64[ns] [n]. series: int64 [n], numbers in `Trained.series_weight`. parts: float32 [n, P, S]. there:
    bool [n, P]. weight: float64 [n], training windows that each stands for.
    """

    origin: np.ndarray
    series: np.ndarray
    parts: np.ndarray
    there: np.ndarray
    weight: np.ndarray

    def take(self, chosen: np.ndarray) -> Waiting:
        """Some of them. chosen: bool [n]."""
        return Waiting(*(each[chosen] for each in self))

    def and_then(self, more: Waiting) -> Waiting:
        """These, then others."""
        return Waiting(*(np.concatenate(each) for each in zip(self, more, strict=True)))


def nobody(num_parts: int, num_steps: int) -> Waiting:
    """No window waits."""
    return Waiting(
        np.empty(0, dtype="datetime64[ns]"),
        np.empty(0, dtype=np.int64),
        np.empty((0, num_parts, num_steps), dtype=np.float32),
        np.empty((0, num_parts), dtype=bool),
        np.empty(0),
    )


@dataclass(kw_only=True)
class Growth:
    """Map and gate as of a time.

    equations: of the map. since: evidence of what has been forecast since training. scale: what is left of the
    training folds' weight. until: all that was known by then has been learned. half_life: steps, None where nothing is
    forgotten. num_windows: that the map has taken in since training.
    """

    config: Config
    trained: Trained
    equations: NormalEquations
    until: np.datetime64
    since: Sums = field(default_factory=dict)
    scale: float = 1.0
    half_life: float | None = None
    waiting: Waiting = None  # type: ignore[assignment]  # made below
    num_windows: int = 0

    def __post_init__(self) -> None:
        self.steps = horizon_steps(self.config.model.horizon)
        if self.waiting is None:
            self.waiting = nobody(len(self.trained.names), len(self.steps))

    def note(self, model: ForecastModel, block: LiveBlock, apart: float) -> None:
        """Keep what the parts say of windows that are asked, for when their futures are known.

        apart: steps between two such windows of a series. Series that were not trained are left out, and origins that
        training has seen: what it fitted there is too good.
        """
        number = {name: n for n, name in enumerate(self.trained.series_weight)}
        asked = np.array([number.get(str(name), -1) for name in block.asked.queries.series_id])
        fresh = block.asked.queries.origin >= self.trained.began_at
        flat = (block.asked.wanted & (asked >= 0) & fresh[:, None]).ravel()
        if not flat.any():
            return
        batch = block.batch.take(np.flatnonzero(flat))
        memory = None if batch.neighbours is None else batch.neighbours.forecasts
        with torch.inference_mode():
            parts = part_forecasts(model, batch.context, batch.unit, memory, self.steps, beside=batch.beside).numpy()
        there = np.ones(parts.shape[:2], dtype=bool)
        if batch.neighbours is not None:
            there[:, self.trained.num_bases :] = batch.neighbours.found.numpy()
        b, n = np.divmod(np.flatnonzero(flat), len(asked))
        weight = np.full(len(b), apart / self.trained.train_stride)
        self.waiting = self.waiting.and_then(Waiting(block.asked.queries.origin[b], asked[n], parts, there, weight))

    def advance(self, memory: Memory, at: np.datetime64) -> None:
        """Learn what has become known by a time, first the gate, then the map. memory: which holds it by then."""
        windows, step = memory.windows, memory.windows.step
        grid = step.until(self.trained.began_at, at)
        elapsed = len(grid) - int(np.searchsorted(grid, self.until, side="right"))
        kept = self._kept(np.array([elapsed]))[0]
        self.equations, self.scale = self.equations.scaled(kept), self.scale * kept
        self.since = {key: each.scaled(kept) for key, each in self.since.items()}
        units = units_inside(memory, self.trained.units)
        self._learn_gate(windows, at, grid, units)
        self._learn_map(memory, at, grid, units)
        self.until = at

    def _kept(self, steps: np.ndarray) -> np.ndarray:
        """What is left of a weight of one after so many steps."""
        return np.ones(len(steps)) if self.half_life is None else 0.5 ** (steps / self.half_life)

    def _learn_gate(
        self, windows: StoredWindows, at: np.datetime64, grid: np.ndarray, units: Mapping[str, float]
    ) -> None:
        horizon, names = self.config.model.horizon, list(self.trained.series_weight)
        known_at = windows.step.add(self.waiting.origin, horizon + windows.spec.known_delay)
        known = known_at <= at
        found, known_at = self.waiting.take(known), known_at[known]
        self.waiting = self.waiting.take(~known)
        if not len(found.origin):
            return
        future = np.full((len(found.origin), len(self.steps)), np.nan, dtype=np.float32)
        for number in np.unique(found.series):
            mine = np.flatnonzero(found.series == number)
            place = windows.series_number[names[number]]
            first, end = windows.offset[place], windows.offset[place + 1]
            position = first + np.searchsorted(windows.times[first:end], found.origin[mine])
            inside = position + horizon < end  # a series that lags has not told yet
            future[mine[inside]] = cut(windows.inside.values, position[inside] + 1, horizon)[:, self.steps]
        unit = np.array([units[names[number]] for number in found.series], dtype=np.float32)
        counted = np.array([self.trained.series_weight[names[number]] for number in found.series])
        there = torch.from_numpy(found.there)
        errors = errors_of_parts(torch.from_numpy(found.parts), torch.from_numpy(future), torch.from_numpy(unit), there)
        errors = errors * torch.from_numpy(np.sqrt(counted)).to(errors)[:, None, None]
        age = len(grid) - np.searchsorted(grid, known_at, side="right")
        told = ~np.isnan(future).all(axis=1)
        weight = (found.weight * self._kept(age))[told]
        add_errors(errors[torch.from_numpy(told)], there[torch.from_numpy(told)], self.since, weight)

    def _learn_map(self, memory: Memory, at: np.datetime64, grid: np.ndarray, units: Mapping[str, float]) -> None:
        windows, model = memory.windows, self.config.model
        spec = windows.spec.scored(model.horizon)
        delay = windows.spec.known_delay
        since, until = windows.step.add(np.array([self.until, at], dtype="datetime64[ns]"), -delay)
        positions, weights, of_unit = [np.empty(0, dtype=np.int64)], [np.empty(0)], [np.empty(0, dtype=np.float32)]
        for name, counted in self.trained.series_weight.items():
            place = windows.series_number[name]
            first, last = windows.offset[place], windows.offset[place + 1]
            times = windows.times[first:last]
            begin, end = np.searchsorted(times, [since, until], side="right") - model.horizon  # of origin rows
            low = max(0, begin - spec.lookback + 1)
            values = windows.values[first + low : first + end + model.horizon]
            if end <= max(begin, 0) or len(values) < spec.length:
                continue
            rows = low + origin_rows(values, spec, views=windows.views)
            rows = self.trained.thinned(rows[rows >= begin], times, memory, self.trained.train_stride)
            known_at = windows.step.add(times[rows], model.horizon + delay)
            age = len(grid) - np.searchsorted(grid, known_at, side="right")
            positions.append(first + rows)
            weights.append(counted * self._kept(age))
            of_unit.append(np.full(len(rows), units[name], dtype=np.float32))
        position, weight, unit = (np.concatenate(each) for each in (positions, weights, of_unit))
        for start in range(0, len(position), CHUNK):
            part = slice(start, start + CHUNK)
            found = normalised(
                windows.inside.values,
                position[part],
                unit[part],
                lookback=model.lookback,
                horizon=model.horizon,
                floor=model.spread_floor,
                fill=fill_of(windows),
            )
            x = found.z
            if self.trained.layout is not None:
                number = np.searchsorted(windows.offset, position[part], side="right") - 1
                beside = of_stored(self.trained.layout, windows, number, position[part] - windows.offset[number])
                x = np.concatenate([x, beside * (unit[part] / found.spread)[:, None]], axis=1)
            self.equations = self.equations + NormalEquations.of(x, found.future, weight[part])
        self.num_windows += len(position)

    def linear_map(self) -> np.ndarray:
        """float64 [L + P, H], as of now."""
        model, layout = self.config.model, self.trained.layout
        priors = prior_maps(model.lookback, model.horizon, model.season)
        return solve_map(self.equations, self.trained.choice, priors, None if layout is None else beside_of(layout))

    def gate(self, hats: torch.Tensor) -> tuple[torch.Tensor, GateFit]:
        """Logits [P, knots] as of now, and how they were chosen. hats: float64 [knots, H]."""
        folds: Sequence[tuple[Quadratic, ...]] = [
            tuple(each.scaled(self.scale) for each in fold) for fold in self.trained.folds
        ]
        since = [tuple(self.since.values())] if self.since else []
        evidence = Evidence(names=self.trained.names, steps=self.steps, folds=(*folds, *since))
        penalty = self.config.train.gate_shrinkage
        num_since, num_trained = (sum(each.num for fold in part for each in fold) for part in (since, folds))
        made_do = self.trained.made_do and num_since < num_trained  # what was forecast since had all of the memory
        num_bases, horizon = self.trained.num_bases, self.config.model.horizon
        return choose_gate(evidence, num_bases, hats, horizon, penalty, made_do=made_do)

    def take_over(self, model: ForecastModel, *, gate: bool = True) -> GateFit | None:
        """Give a model the map, and the gate, as of now."""
        assert model.shortcut is not None, "what grows has a linear map"
        model.shortcut.set_weights(self.linear_map())
        if not gate:
            return None
        logits, fit = self.gate(model.value_gate.hats.double())
        with torch.no_grad():
            model.value_gate.logits.copy_(logits)
        return fit

    def to_arrays(self) -> dict[str, np.ndarray]:
        """All but what training decided: to go on from."""
        num_parts, num_steps = len(self.trained.names), len(self.steps)
        there, matrix, num = packed(self.since.values(), num_parts, num_steps)
        own = {name: getattr(self.equations, name) for name in ("gram", "cross", "square")}
        own |= {"num": np.array(self.equations.num), "scale": np.array(self.scale)}
        own |= {"until": _as_int(self.until), "num_windows": np.array(self.num_windows, dtype=np.int64)}
        own |= {"since_there": there, "since_matrix": matrix, "since_num": num}
        waiting = self.waiting._replace(origin=_as_int(self.waiting.origin))
        return own | {f"waiting_{name}": array for name, array in waiting._asdict().items()}

    def restore(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Go on from what `to_arrays` gave."""
        self.equations = NormalEquations(
            **{name: arrays[name] for name in ("gram", "cross", "square")}, num=arrays["num"].item()
        )
        self.scale, self.num_windows = arrays["scale"].item(), int(arrays["num_windows"].item())
        self.until = np.datetime64(int(arrays["until"].item()), "ns")
        since = unpacked(*(arrays[f"since_{name}"] for name in ("there", "matrix", "num")))
        self.since = {each.there.numpy().tobytes(): each for each in since}
        waiting = Waiting(*(arrays[f"waiting_{name}"] for name in Waiting._fields))
        self.waiting = waiting._replace(origin=waiting.origin.astype("datetime64[ns]"))


def packed(
    quadratics: Iterable[Quadratic], num_parts: int, num_steps: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Evidence as arrays: there [k, P], matrix [k, S, P, P], num [k]."""
    every = list(quadratics)
    there = np.array([each.there.numpy() for each in every], dtype=bool).reshape(-1, num_parts)
    matrix = np.array([each.matrix.numpy() for each in every]).reshape(-1, num_steps, num_parts, num_parts)
    return there, matrix, np.array([each.num for each in every], dtype=np.float64)


def unpacked(there: np.ndarray, matrix: np.ndarray, num: np.ndarray) -> list[Quadratic]:
    """What `packed` was given."""
    return [
        Quadratic(torch.from_numpy(a.copy()), torch.from_numpy(b.copy()), float(c))
        for a, b, c in zip(there, matrix, num, strict=True)
    ]


def _as_int(times: np.ndarray | np.datetime64) -> np.ndarray:
    return np.asarray(times, dtype="datetime64[ns]").astype(np.int64)
