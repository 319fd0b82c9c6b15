"""One backtest: forecasts origin after origin, kept as they are made, then scored beside plain ones.

Time goes in one direction. At each update, whatever became known since the last one is learned, in this order:
quantiles are recalibrated, then the forecaster itself learns; both learn from the forecasts as they were made then.
Between two updates forecasts are made with what was learned, and with the neighbours that are known at each origin.
What a cell teaches counts from when its target is known, never earlier.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

import numpy as np

from memory_index.backtest.along_time import AlongTime, Stretch
from memory_index.backtest.kept import KeptForecasts, Piece
from memory_index.backtest.plan import BacktestPlan
from memory_index.backtest.recalibration import NEVER, RATE, Recalibration, levels_with
from memory_index.baselines import baseline_forecasts
from memory_index.bounds import BoundsOf
from memory_index.evaluation import Evaluation, ForecastBlock, Report, standard_units, tally
from memory_index.leakage import Policy
from memory_index.queries import QueryBlock, futures_of
from memory_index.scaling import ScaledBy
from memory_index.tables.series import SeriesTable
from memory_index.types import Queries
from memory_index.versions.manifest import Manifest
from memory_index.windows import cut

BACKTEST = "backtest"  # the part, in an `Evaluation`


class Forecasts(NamedTuple):
    """Of a block of moments: by arm, [B, N, H], and quantiles of the arm itself [B, N, H, Q]; raw units.
    num_without: wanted windows without any neighbour.
    """

    by_arm: dict[str, np.ndarray]
    quantiles: np.ndarray
    num_without: int


class AskedBlock(Protocol):
    """Windows whose neighbours are found."""

    @property
    def asked(self) -> QueryBlock:
        """The windows."""
        ...

    def forecast(self, moments: np.ndarray) -> Forecasts:
        """Of some of the moments (int64 [b]), by what has been learned so far."""
        ...

    def note(self, moments: np.ndarray, future: np.ndarray, update: np.ndarray) -> None:
        """Keep what came after them for the updates that will know it. future: float64 [b, N, H], NaN where nothing
        was observed. update: int64 [b, H], number of the first update that knows each step, `NEVER` if there is none.
        """
        ...


class Subject(Protocol):
    """Whose forecasts they are: a memory's alone, or a run's."""

    @property
    def arm(self) -> str:
        """Its name among the arms."""
        ...

    @property
    def horizon(self) -> int:
        """Steps that it forecasts."""
        ...

    @property
    def manifest(self) -> Manifest:
        """Of the version that it asks."""
        ...

    @property
    def units(self) -> Mapping[str, float]:
        """Training standard deviations by series."""
        ...

    @property
    def bounds(self) -> BoundsOf:
        """What no forecast and no quantile leaves."""
        ...

    def ask(self, table: SeriesTable, origins: list[np.ndarray], levels: tuple[float, ...]) -> Iterator[AskedBlock]:
        """Find the neighbours of windows, under `causal`. levels: of the quantiles that will be wanted."""
        ...

    def advance(self, update: int, at: np.datetime64) -> None:
        """Learn what all updates up to this one know, which happens at this time."""
        ...

    def to_arrays(self) -> dict[str, np.ndarray]:
        """What it has learned, and what later updates will learn: to go on from."""
        ...

    def restore(self, arrays: dict[str, np.ndarray]) -> None:
        """Go on from what `to_arrays` gave."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Backtest:
    """What a backtest says. stretches: scores along time. first, last: origins. num_updates: after the first origin.
    num_resumed: windows whose forecasts were there already. in_sample: see `BacktestPlan`, as in `evaluation`.
    """

    evaluation: Evaluation
    stretches: list[Stretch]
    first: np.datetime64
    last: np.datetime64
    num_updates: int
    num_resumed: int


def run_backtest(
    subject: Subject,
    table: SeriesTable,
    plan: BacktestPlan,
    kept: KeptForecasts,
    *,
    levels: tuple[float, ...],
    rate: float = RATE,
    scaled_by: ScaledBy = "training",
    each: Callable[[ForecastBlock], None] = lambda block: None,
    report: Report = lambda done, total: None,
) -> Backtest:
    """Make the forecasts that are not kept yet, then score all of them.

    Bounded memory: one stretch of origins at a time. levels: of the quantiles that are scored. rate: of their
    recalibration. each: called with every block of forecasts, in the end. report: called with (windows done, all).
    Raises what `subject.ask` raises, and `DataError` if nothing was observed after any origin.
    """
    started = time.perf_counter()
    num_resumed = forecast_all(subject, table, plan, kept, levels=levels, rate=rate, report=report)
    evaluation, along = score(subject, table, plan, kept, levels=levels, scaled_by=scaled_by, each=each)
    return Backtest(
        evaluation=replace(evaluation, seconds=time.perf_counter() - started),
        stretches=along.stretches(),
        first=along.moments[0],
        last=along.moments[-1],
        num_updates=len(plan.updates) - 1,
        num_resumed=num_resumed,
    )


def forecast_all(
    subject: Subject,
    table: SeriesTable,
    plan: BacktestPlan,
    kept: KeptForecasts,
    *,
    levels: tuple[float, ...],
    rate: float = RATE,
    report: Report = lambda done, total: None,
) -> int:
    """Make and keep the forecasts that are not kept yet; returns how many windows were there already."""
    every = levels_with(levels) if levels else ()
    wanted = [every.index(round(level, 12)) for level in levels]
    unit = standard_units(subject.units, table, subject.manifest.split)
    recalibration = Recalibration(every, len(table.series), subject.horizon, rate=rate if levels else 0.0)
    if state := kept.state():
        recalibration.restore(_below(state, "quantiles"))
        subject.restore(_below(state, "subject"))
    done = num_resumed = 0
    for number, origins in enumerate(plan.parts(table)):
        num = sum(len(rows) for rows in origins)
        if number < len(kept):
            num_resumed += num
        else:
            pieces = list(_part(subject, table, plan, origins, every, wanted, recalibration, unit))
            state = {f"quantiles {name}": array for name, array in recalibration.to_arrays().items()}
            kept.add(pieces, state | {f"subject {name}": array for name, array in subject.to_arrays().items()})
        done += num
        report(done, plan.num_windows)
    return num_resumed


def _part(
    subject: Subject,
    table: SeriesTable,
    plan: BacktestPlan,
    origins: list[np.ndarray],
    levels: tuple[float, ...],
    wanted: list[int],
    recalibration: Recalibration,
    unit: np.ndarray,
) -> Iterator[Piece]:
    """The forecasts of one stretch of origins, update after update."""
    step, horizon, delay = table.step, subject.horizon, subject.manifest.window.known_delay
    blocks = list(subject.ask(table, origins, levels))
    before = [plan.update_before(block.asked.queries.origin) for block in blocks]
    for update in np.unique(np.concatenate(before)):
        recalibration.advance(int(update))
        subject.advance(int(update), plan.updates[update])
        for block, number in zip(blocks, before, strict=True):
            moments = np.flatnonzero(number == update)
            if not len(moments):
                continue
            made, asked = block.forecast(moments), block.asked.at_moments(moments)
            quantiles = None
            if levels:
                quantiles = recalibration.applied(made.quantiles, asked.series, unit[asked.series])
                quantiles = subject.bounds.kept(asked.queries, quantiles)
            ahead = np.stack([step.add(asked.queries.origin, h + delay) for h in range(1, horizon + 1)], axis=1)
            known_by, future = plan.update_that_knows(ahead), futures_of(table, asked, horizon)
            known_by = np.where(known_by < len(plan.updates), known_by, NEVER)
            if quantiles is not None:
                recalibration.observe(quantiles, future, asked.wanted, asked.series, asked.row, known_by)
            block.note(moments, future, known_by)
            yield Piece(
                series=asked.series.astype(np.int64),
                row=asked.row,
                wanted=asked.wanted,
                forecasts={
                    name: np.asarray(values, dtype=np.float32)
                    for name, values in subject.bounds.kept_arms(asked.queries, made.by_arm).items()
                },
                quantiles=np.empty((*asked.row.shape, horizon, 0), dtype=np.float32)
                if quantiles is None
                else np.ascontiguousarray(quantiles[..., wanted], dtype=np.float32),
                num_without=made.num_without,
            )


def score(
    subject: Subject,
    table: SeriesTable,
    plan: BacktestPlan,
    kept: KeptForecasts,
    *,
    levels: tuple[float, ...],
    scaled_by: ScaledBy = "training",
    each: Callable[[ForecastBlock], None] = lambda block: None,
) -> tuple[Evaluation, AlongTime]:
    """Score everything that is kept, beside last value, seasonal naive and what stands beside the arm."""
    counted = tally(
        table,
        plan.origins,
        subject.manifest.split,
        subject.units,
        arm=subject.arm,
        horizon=subject.horizon,
        scaled_by=scaled_by,
        levels=levels,
    )
    times = [series.times[rows] for series, rows in zip(table.series, plan.origins, strict=True)]
    along = AlongTime(np.unique(np.concatenate(times)), counted.unit)
    for piece in kept.pieces():
        asked = _asked_again(table, piece, subject.manifest.window.lookback)
        beside = baseline_forecasts(asked.queries.context, subject.horizon, table.step)
        forecasts = piece.forecasts | subject.bounds.kept_arms(asked.queries, beside)
        block = counted.add(asked, forecasts, piece.quantiles if levels else None)
        counted.num_without += piece.num_without
        along.add(block, forecasts)
        each(block)
    return counted.evaluation(BACKTEST, in_sample=plan.in_sample, skipped=plan.skipped), along


def forecast_blocks(
    subject: Subject, table: SeriesTable, kept: KeptForecasts, *, levels: tuple[float, ...]
) -> Iterator[ForecastBlock]:
    """The arm's forecasts that are kept, beside what came."""
    for piece in kept.pieces():
        asked = _asked_again(table, piece, subject.manifest.window.lookback)
        future = futures_of(table, asked, subject.horizon)
        yield ForecastBlock(asked, piece.forecasts[subject.arm], piece.quantiles, levels, future)


def _asked_again(table: SeriesTable, piece: Piece, lookback: int) -> QueryBlock:
    """The windows of a piece, cut from the table again."""
    members = [table.series[n] for n in piece.series]
    contexts = [
        cut(series.values.astype(np.float32), piece.row[:, i] - lookback + 1, lookback)
        for i, series in enumerate(members)
    ]
    queries = Queries(
        context=np.stack(contexts, axis=1),
        origin=members[0].times[piece.row[:, 0]],
        series_id=np.array([series.series_id for series in members]),
        policy=Policy.CAUSAL,
    )
    return QueryBlock(queries, piece.series, piece.row, piece.wanted)


def _below(state: dict[str, np.ndarray], name: str) -> dict[str, np.ndarray]:
    return {key.removeprefix(f"{name} "): array for key, array in state.items() if key.startswith(f"{name} ")}


def identity_of(table: SeriesTable, plan: BacktestPlan, manifest: Manifest, **of_subject: Any) -> dict[str, Any]:
    """What forecasts depend on: see `KeptForecasts`. Names are those that a message shows."""
    rows = np.concatenate(plan.origins)
    return {
        "table": table.input_hash,
        "version": manifest.fingerprint,
        "choice of origins": [len(rows), int(rows.sum()), *(str(plan.updates[end]) for end in (0, -1))],
        "update": len(plan.updates),
        "--in-sample": plan.in_sample,
        **of_subject,
    }
