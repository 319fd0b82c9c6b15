"""Metrics: a statistic for each cell (one step of one forecast), and how cells are put together (docs/method.md).

To add one, write its statistic and its entry in `METRICS`, or in `quantile_metrics` if it reads quantiles. Everything
else (scores by arm, step and series, documents) goes by that list; printed tables choose among them. Which windows are
scored, and beside what, is `evaluation.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np

DECILES = tuple(level / 10 for level in range(1, 10))
CHUNK_CELLS = 1 << 16  # scored at once: their arrays stay in the cache of a core


class Actual(NamedTuple):
    """What W windows of H steps are scored against; raw units.

    future: float64 [W, H], NaN where nothing was observed. weight: float64 [W, H], what each cell counts; 0 where
    nothing was observed. series: int64 [W], numbers in the table. last: float32 [W], last value of the context.
    unit: float64 [W], training standard deviation of the series. naive_absolute, naive_squared: float64 [W], errors of
    the seasonal naive forecast in sample (`scaling.NaiveErrors`), NaN where it has none.
    """

    future: np.ndarray
    weight: np.ndarray
    series: np.ndarray
    last: np.ndarray
    unit: np.ndarray
    naive_absolute: np.ndarray
    naive_squared: np.ndarray


@dataclass(frozen=True, kw_only=True, eq=False)
class Cells:
    """Forecasts of W windows beside what came, as statistics read them. A cell that is not observed has the future 0.

    forecast: float64 [W, H]. quantiles: float64 [W, H, Q], one for each of `levels`; Q may be 0.
    """

    actual: Actual
    forecast: np.ndarray
    quantiles: np.ndarray
    levels: tuple[float, ...]

    @cached_property
    def future(self) -> np.ndarray:
        """float64 [W, H]."""
        return self.actual.future if self.is_whole else np.where(self.actual.weight > 0, self.actual.future, 0.0)

    @cached_property
    def is_whole(self) -> bool:
        """Whether each cell counts once."""
        return bool((self.actual.weight == 1).all())

    @cached_property
    def weight_sums(self) -> tuple[np.ndarray, np.ndarray]:
        """Of each window [W], and of each step [H]."""
        return self.actual.weight.sum(axis=1), self.actual.weight.sum(axis=0)

    @cached_property
    def error(self) -> np.ndarray:
        """float64 [W, H], forecast minus future."""
        return self.forecast - self.future

    @cached_property
    def standard_error(self) -> np.ndarray:
        """float64 [W, H], the error in training standard deviations of the series."""
        return self.error / self.actual.unit[:, None]

    @cached_property
    def quantile_loss(self) -> np.ndarray:
        """float64 [W, H]: twice the pinball loss, in the mean over levels. Of equal quantiles, the absolute error."""
        loss = np.zeros_like(self.future)
        for number, level in enumerate(self.levels):
            missed = self.future - self.quantiles[..., number]
            loss += np.maximum(level * missed, (level - 1) * missed)
        return loss * (2 / len(self.levels))


Statistic = Callable[[Cells], np.ndarray]  # -> [W, H]; of `defined` also [W, 1]


@dataclass(frozen=True, kw_only=True, slots=True)
class Metric:
    """The mean of a statistic over all cells that count, or the sum of it over the sum of another, `over`.

    defined: bool, where the statistic can be made: other cells are left out and counted. root: of the mean, the square
    root.
    """

    name: str
    statistic: Statistic
    defined: Statistic | None = None
    over: Statistic | None = None
    root: bool = False


def _divided(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """The quotient, 0 where the denominator is not above 0: such a cell is not defined, and does not count."""
    return numerator / np.where(denominator > 0, denominator, np.inf)


def _share(cells: Cells) -> np.ndarray:
    size = np.abs(cells.forecast) + np.abs(cells.future)
    return _divided(2 * np.abs(cells.error), size)


def _direction(cells: Cells) -> np.ndarray:
    """Whether forecast and future lie on the same side of the last value, as float32 tells them apart."""
    last = cells.actual.last[:, None]
    told, came = (np.sign(part.astype(np.float32) - last) for part in (cells.forecast, cells.future))
    return (told == came).astype(np.float64)


def _moved(cells: Cells) -> np.ndarray:
    """Whether the future differs from the last value."""
    change = cells.future.astype(np.float32) - cells.actual.last[:, None]
    return np.isfinite(change) & (change != 0)


def _has_absolute(cells: Cells) -> np.ndarray:
    return cells.actual.naive_absolute[:, None] > 0


METRICS = (
    Metric(name="mse", statistic=lambda cells: np.square(cells.standard_error)),
    Metric(name="mae", statistic=lambda cells: np.abs(cells.standard_error)),
    Metric(name="mse_original", statistic=lambda cells: np.square(cells.error)),
    Metric(name="mae_original", statistic=lambda cells: np.abs(cells.error)),
    Metric(
        name="mase",
        statistic=lambda cells: _divided(np.abs(cells.error), cells.actual.naive_absolute[:, None]),
        defined=_has_absolute,
    ),
    Metric(
        name="rmsse",
        statistic=lambda cells: _divided(np.square(cells.error), cells.actual.naive_squared[:, None]),
        defined=lambda cells: cells.actual.naive_squared[:, None] > 0,
        root=True,
    ),
    Metric(
        name="smape",
        statistic=_share,
        defined=lambda cells: (cells.forecast != 0) | (cells.future != 0),
    ),
    Metric(name="direction_accuracy", statistic=_direction, defined=_moved),
)


def quantile_metrics(levels: tuple[float, ...]) -> tuple[Metric, ...]:
    """Those that read quantiles of these levels: WQL, SQL, and for each level the share of values at or below it,
    without those that were certain: all quantiles were the value that came.
    """
    if not levels:
        return ()
    return (
        Metric(
            name="wql",
            statistic=lambda cells: cells.quantile_loss,
            over=lambda cells: np.abs(cells.future),
        ),
        Metric(
            name="sql",
            statistic=lambda cells: _divided(cells.quantile_loss, cells.actual.naive_absolute[:, None]),
            defined=_has_absolute,
        ),
        *(_coverage(number, level) for number, level in enumerate(levels)),
    )


def _coverage(number: int, level: float) -> Metric:
    return Metric(
        name=f"coverage_q{level:g}",
        statistic=lambda cells: (cells.future <= cells.quantiles[..., number]).astype(np.float64),
        defined=lambda cells: uncertain(cells.quantiles, cells.future),
    )


def uncertain(quantiles: np.ndarray, future: np.ndarray) -> np.ndarray:
    """Where quantiles can cover, bool [...]: not where all are the one value that came, as of solar power at night.

    quantiles: [..., Q]. future: [...].
    """
    return (quantiles != future[..., None]).any(axis=-1)


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """What one arm scored, by metric name; None where no cell has the metric.

    left_out: observed cells that a metric had to leave out, because what it divides by is 0 or not known (of
    `direction_accuracy`: because nothing moved; of coverage: because all quantiles were the value that came); metrics
    that left out none are not named. by_step: the same metrics at each of the H steps. by_series: float64 [N] of each
    series of the table; NaN where there is none.
    """

    metrics: dict[str, float | None]
    left_out: dict[str, int] = field(default_factory=dict)
    by_step: dict[str, tuple[float | None, ...]] = field(default_factory=dict)
    by_series: dict[str, np.ndarray] = field(default_factory=dict, compare=False, repr=False)

    def __getitem__(self, name: str) -> float | None:
        """One metric. Raises `KeyError` for one that was not measured."""
        return self.metrics[name]

    @property
    def mse(self) -> float:
        """Mean squared error in standardised units."""
        return self._number("mse")

    @property
    def mae(self) -> float:
        """Mean absolute error in standardised units."""
        return self._number("mae")

    @property
    def coverage(self) -> dict[str, float]:
        """Share of values at or below each quantile, by its column name (`q0.1`), without those that were certain."""
        return {name.removeprefix("coverage_"): self._number(name) for name in self.metrics if "coverage_" in name}

    def _number(self, name: str) -> float:
        value = self.metrics[name]
        assert value is not None, "an evaluation has at least one observed cell"
        return value


@dataclass(slots=True)
class _Sums:
    """Of one metric: numerator and denominator by series [N] and by step [H], and cells left out."""

    num_series: int
    horizon: int
    by_series: np.ndarray = field(init=False)
    by_step: np.ndarray = field(init=False)
    left_out: int = 0

    def __post_init__(self) -> None:
        self.by_series, self.by_step = np.zeros((2, self.num_series)), np.zeros((2, self.horizon))

    def add(self, metric: Metric, cells: Cells) -> None:
        weight, is_whole, sums = cells.actual.weight, cells.is_whole, cells.weight_sums
        value = metric.statistic(cells)
        if metric.defined is not None:
            defined = np.broadcast_to(metric.defined(cells), weight.shape)
            if not defined.all():
                self.left_out += int(((weight > 0) & ~defined).sum())
                weight, is_whole = np.where(defined, weight, 0.0), False
                sums = weight.sum(axis=1), weight.sum(axis=0)
        value = value if is_whole else np.where(weight > 0, value * weight, 0.0)
        if metric.over is not None:
            size = metric.over(cells) * weight
            sums = size.sum(axis=1), size.sum(axis=0)
        for part, (of_windows, of_steps) in enumerate(((value.sum(axis=1), value.sum(axis=0)), sums)):
            np.add.at(self.by_series[part], cells.actual.series, of_windows)
            self.by_step[part] += of_steps


class ScoreSum:
    """Adds up the metrics of one arm, in bounded memory. The score does not depend on how windows were batched.

    num_series: N, of the table. levels: of the quantiles that come with each forecast; none, if none do.
    """

    def __init__(self, num_series: int, horizon: int, levels: tuple[float, ...] = ()) -> None:
        self.levels, self.metrics = levels, (*METRICS, *quantile_metrics(levels))
        self.sums = [_Sums(num_series, horizon) for _ in self.metrics]
        self.at_once = max(1, CHUNK_CELLS // horizon)  # windows
        self.waiting: list[tuple[Actual, np.ndarray, np.ndarray]] = []
        self.num_waiting = 0

    def add(self, actual: Actual, forecast: np.ndarray, quantiles: np.ndarray | None = None) -> None:
        """forecast: [W, H]; quantiles: [W, H, Q], if there are levels; raw units, windows in any number."""
        quantiles = np.empty((*forecast.shape, 0)) if quantiles is None else quantiles
        assert quantiles.shape == (*actual.future.shape, len(self.levels)), "a quantile for each level and cell"
        for start in range(0, len(forecast), self.at_once):
            part = _part((actual, forecast, quantiles), slice(start, start + self.at_once))
            self.waiting.append(part)
            self.num_waiting += len(part[1])
            self._count_whole_chunk()

    def score(self) -> Score:
        """The metrics of everything added."""
        if self.waiting:
            self._count(_joined(self.waiting))
            self.waiting, self.num_waiting = [], 0
        metrics, left_out, by_step, by_series = {}, {}, {}, {}
        for metric, sums in zip(self.metrics, self.sums, strict=True):
            (metrics[metric.name],) = _quotients(sums.by_series.sum(axis=1, keepdims=True), metric)
            by_step[metric.name] = _quotients(sums.by_step, metric)
            by_series[metric.name] = np.array(_quotients(sums.by_series, metric), dtype=np.float64)
            if sums.left_out:
                left_out[metric.name] = sums.left_out
        return Score(metrics=metrics, left_out=left_out, by_step=by_step, by_series=by_series)

    def _count_whole_chunk(self) -> None:
        """Count what waits in chunks of one size: then sums are made in one order, whatever came at once."""
        if self.num_waiting >= self.at_once:
            joined = _joined(self.waiting)
            self._count(_part(joined, slice(0, self.at_once)))
            self.waiting = [_part(joined, slice(self.at_once, None))]
            self.num_waiting -= self.at_once

    def _count(self, waiting: _Waiting) -> None:
        actual, forecast, quantiles = waiting
        cells = Cells(actual=actual, forecast=forecast.astype(np.float64), quantiles=quantiles, levels=self.levels)
        with np.errstate(invalid="ignore", over="ignore"):  # NaN in the context: no last value, and no direction
            for metric, sums in zip(self.metrics, self.sums, strict=True):
                sums.add(metric, cells)


_Waiting = tuple[Actual, np.ndarray, np.ndarray]  # with forecast and quantiles


def _joined(waiting: list[_Waiting]) -> _Waiting:
    actual, forecast, quantiles = zip(*waiting, strict=True)
    fields = (np.concatenate(parts) for parts in zip(*actual, strict=True))
    return Actual(*fields), np.concatenate(forecast), np.concatenate(quantiles)


def _part(waiting: _Waiting, part: slice) -> _Waiting:
    actual, forecast, quantiles = waiting
    return Actual(*(each[part] for each in actual)), forecast[part], quantiles[part]


def _quotients(sums: np.ndarray, metric: Metric) -> tuple[float | None, ...]:
    """sums: [2, n], numerators and denominators -> n numbers, None where nothing counted."""
    found = np.divide(sums[0], sums[1], out=np.zeros_like(sums[0]), where=sums[1] > 0)
    found = np.sqrt(found) if metric.root else found
    return tuple(
        value if is_there else None for value, is_there in zip(found.tolist(), (sums[1] > 0).tolist(), strict=True)
    )
