"""What an evaluation says, of a memory alone as of a trained run: scores by arm, by step and by series.

Both (`memory_only.py`, and `evaluate.py` of the forecaster) hand their forecasts, block by block, to a `Tally`. What
is measured is `metrics.py`; which origins there are, `splits.py`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import numpy as np

from memory_index.errors import DataError
from memory_index.metrics import Actual, Score, ScoreSum
from memory_index.missing import last_known
from memory_index.queries import QueryBlock, futures_of
from memory_index.scaling import NaiveErrors, ScaledBy, fit_scale, naive_errors
from memory_index.skipped import Skipped, skipped_sentence
from memory_index.splits import Split, num_moments
from memory_index.tables.series import SeriesTable

MODEL, MEMORY_ONLY = "model", "memory_only"  # the two arms that an evaluation can be of
BASELINES = ("last_value", "seasonal_naive", "linear", MEMORY_ONLY)  # what a forecast is scored beside

Report = Callable[[float, float | None], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Distribution:
    """How a number in [0, 1] is distributed, to a thousandth."""

    mean: float
    p10: float
    p50: float
    p90: float


class ForecastBlock(NamedTuple):
    """Forecasts of a block of queries beside what came, raw units; windows that `asked.wanted` leaves out among them.

    forecast: float32 [B, N, H]. quantiles: [B, N, H, Q], one for each of `levels`. future: float64 [B, N, H], NaN where
    nothing was observed.
    """

    asked: QueryBlock
    forecast: np.ndarray
    quantiles: np.ndarray
    levels: tuple[float, ...]
    future: np.ndarray


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """Scores of every window that was asked for, of one part of a split.

    arm: whose forecast it is, `model` (a run) or `memory_only`. scores: of that arm, of what stands beside it
    (`last_value`, `seasonal_naive`, `linear`, `memory_only`, where they can be made) and of each key space by itself
    (`own-96`). num_windows: origins. num_scored: windows, that is origins times series. num_without_neighbours: those
    of them for which no neighbour was admissible; the memory's forecast is the last value there.

    series_ids, windows_by_series: of the table, in the order of `Score.by_series`. scaled_by, season: what MASE, RMSSE
    and SQL divide by. levels: of the quantiles behind WQL, SQL and coverage.

    gate: of a run, over all windows and steps, 1 trusts the model, 0 the memory. feature_gate: of GRA-M's gating of
    features, one per window. trend_accuracy: share of windows whose class (up, flat, down) TAPR's head told. None for
    what an arm does not have. skipped: series without a scored window. in_sample: whether training or validation used
    the part, or a fitted part has seen steps later than some origin.
    """

    part: str
    arm: str
    scores: dict[str, Score]
    num_windows: int
    num_series: int
    num_scored: int
    num_without_neighbours: int
    series_ids: tuple[str, ...] = ()
    windows_by_series: tuple[int, ...] = ()
    scaled_by: ScaledBy = "training"
    season: int = 1
    levels: tuple[float, ...] = ()
    gate: Distribution | None = None
    feature_gate: Distribution | None = None
    trend_accuracy: float | None = None
    skipped: tuple[Skipped, ...] = ()
    in_sample: bool
    seconds: float

    @property
    def score(self) -> Score:
        """Of the arm itself."""
        return self.scores[self.arm]

    @property
    def mse(self) -> float:
        """Mean squared error of the arm, in standardised units."""
        return self.score.mse

    @property
    def mae(self) -> float:
        """Mean absolute error of the arm, in standardised units."""
        return self.score.mae

    @property
    def direction_accuracy(self) -> float | None:
        """Share of cells that moved, up or down from the last value, as the arm's forecast said."""
        return self.score["direction_accuracy"]

    @property
    def coverage(self) -> dict[str, float]:
        """Share of values at or below each quantile of the arm, by its column (`q0.1`); empty without quantiles."""
        return self.score.coverage

    @property
    def baselines(self) -> dict[str, Score | None]:
        """What stands beside, by name; None where it cannot be made (no usual season in the lookback)."""
        return {name: self.scores.get(name) for name in BASELINES}

    @property
    def by_space(self) -> dict[str, Score]:
        """Of each key space by itself."""
        return {name: score for name, score in self.scores.items() if name not in (MODEL, *BASELINES)}

    def to_dict(self) -> dict[str, Any]:
        """In terms of JSON, but for what is known of each series and step."""
        document = {name: getattr(self, name) for name in self.__dataclass_fields__}
        for name in ("series_ids", "windows_by_series"):
            del document[name]
        for name in ("gate", "feature_gate"):
            document[name] = None if document[name] is None else asdict(document[name])
        scores = {name: {"metrics": score.metrics, "left_out": score.left_out} for name, score in self.scores.items()}
        skipped = [asdict(each) for each in self.skipped]
        return document | {"scores": scores, "levels": list(self.levels), "skipped": skipped}

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Evaluation:
        """What `to_dict` made."""
        gates = {name: document[name] and Distribution(**document[name]) for name in ("gate", "feature_gate")}
        scores = {name: Score(**score) for name, score in document["scores"].items()}
        skipped = tuple(Skipped(**each) for each in document.get("skipped", ()))
        return cls(**{**document, **gates, "scores": scores, "levels": tuple(document["levels"]), "skipped": skipped})


@dataclass(slots=True, kw_only=True)
class Tally:
    """What is added up over the blocks of an evaluation.

    origins: rows by series, all that will come. unit: float64 [N], see `standard_units`. levels: of the arm's
    quantiles. num_without: windows without any neighbour, which those who search count.
    """

    table: SeriesTable
    origins: list[np.ndarray]
    arm: str
    horizon: int
    unit: np.ndarray
    naive: NaiveErrors
    levels: tuple[float, ...]
    sums: dict[str, ScoreSum] = field(default_factory=dict)
    started: float = field(default_factory=time.perf_counter)
    num_without: int = 0
    done: int = 0

    @property
    def total(self) -> int:
        """Windows that will be scored."""
        return sum(len(rows) for rows in self.origins)

    def add(
        self, asked: QueryBlock, forecasts: Mapping[str, np.ndarray], quantiles: np.ndarray | None = None
    ) -> ForecastBlock:
        """Count a block. forecasts: by arm, [B, N, H]; quantiles: of the arm itself, [B, N, H, Q]; raw units."""
        wanted, future = asked.wanted, futures_of(self.table, asked, self.horizon)
        chosen = future[wanted]  # [W, H]
        series = np.broadcast_to(asked.series, wanted.shape)[wanted]
        absolute, squared = self.naive.at(series, asked.row[wanted])
        actual = Actual(
            future=chosen,
            weight=np.isfinite(chosen).astype(np.float64),
            series=series,
            last=last_known(asked.queries.context)[..., 0][wanted],
            unit=self.unit[series],
            naive_absolute=absolute,
            naive_squared=squared,
        )
        for name, values in forecasts.items():
            own = quantiles if name == self.arm else None
            if name not in self.sums:
                self.sums[name] = ScoreSum(len(self.table.series), self.horizon, () if own is None else self.levels)
            self.sums[name].add(actual, values[wanted], None if own is None else own[wanted])
        self.done += len(chosen)
        none = np.empty((*future.shape, 0), dtype=np.float32)
        return ForecastBlock(asked, forecasts[self.arm], none if quantiles is None else quantiles, self.levels, future)

    def evaluation(self, part: str, *, in_sample: bool, **of_run: Any) -> Evaluation:
        """Of everything added. of_run: what else a run knows, by field of `Evaluation`.

        Raises `DataError` if nothing was observed in any future.
        """
        names = dict.fromkeys([self.arm, *BASELINES, *self.sums])  # in the order in which they are shown
        scores = {name: self.sums[name].score() for name in names if name in self.sums}
        if scores[self.arm]["mse"] is None:
            raise DataError(
                f"{self.table.source}: no value is known after any origin of the {part} part",
                hint="give a table that goes on after the origins",
            )
        return Evaluation(
            part=part,
            arm=self.arm,
            scores=scores,
            num_windows=num_moments(self.table, self.origins),
            num_series=sum(len(rows) > 0 for rows in self.origins),
            num_scored=self.total,
            num_without_neighbours=self.num_without,
            series_ids=self.table.series_ids,
            windows_by_series=tuple(len(rows) for rows in self.origins),
            scaled_by="training" if self.naive.first is None else "origin",
            season=self.naive.season,
            levels=self.levels,
            in_sample=in_sample,
            seconds=time.perf_counter() - self.started,
            **of_run,
        )


def tally(
    table: SeriesTable,
    origins: list[np.ndarray],
    split: Split,
    units: Mapping[str, float],
    *,
    arm: str,
    horizon: int,
    scaled_by: ScaledBy,
    levels: tuple[float, ...],
) -> Tally:
    """An empty tally. units: training standard deviations by series. Raises as `naive_errors`."""
    until = np.datetime64(split.train_until, "ns")
    return Tally(
        table=table,
        origins=origins,
        arm=arm,
        horizon=horizon,
        unit=standard_units(units, table, split),
        naive=naive_errors(table, table.step.season or 1, by=scaled_by, train_until=until),
        levels=levels,
    )


def scored_origins(
    table: SeriesTable, origins: list[np.ndarray], split: Split, units: Mapping[str, float], part: str
) -> tuple[list[np.ndarray], tuple[Skipped, ...]]:
    """The origins of the series that can be scored, and the other series with the reason.

    units: as in `standard_units`. Raises `DataError` if no series is left.
    """
    until, kept, skipped = np.datetime64(split.train_until, "ns"), [], []
    for series, rows in zip(table.series, origins, strict=True):
        reason = "" if len(rows) else f"has no window in the {part} part"
        if not reason and series.series_id not in units and not np.isfinite(series.values[series.times <= until]).any():
            reason = (
                f"is new and has no value up to {table.step.isoformat(until)}, the end of the training part, to "
                "standardise its errors by"
            )
        kept.append(rows[:0] if reason else rows)
        if reason:
            skipped.append(Skipped(series_id=series.series_id, reason=reason))
    if len(skipped) == len(table.series):
        raise DataError(
            f"{table.source}: {skipped_sentence(skipped, 'cannot be scored')}",
            hint="leave new series out (--ignore), or build on a table that has them",
        )
    return kept, tuple(skipped)


def standard_units(units: Mapping[str, float], table: SeriesTable, split: Split) -> np.ndarray:
    """In what the errors of each series of a table are counted, float64 [N]: its training standard deviation.

    units: by series. One that they do not have is counted in that of its own values over the same stretch of time; 1
    where it has none there, which `scored_origins` leaves out.
    """
    until, found = np.datetime64(split.train_until, "ns"), []
    for series in table.series:
        unit = units.get(series.series_id)
        found.append(fit_scale([series.values[series.times <= until]]).std[0] if unit is None else unit)
    return np.array(found)
