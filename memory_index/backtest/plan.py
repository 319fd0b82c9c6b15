"""Which origins a backtest has, when it updates, and which origins it refuses."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from memory_index.errors import IncompatibleError, UsageError
from memory_index.evaluation import scored_origins
from memory_index.origins import Schedule, interval, scheduled
from memory_index.skipped import Skipped
from memory_index.tables.series import SeriesTable
from memory_index.versions.manifest import Manifest
from memory_index.windows import WindowSpec, origin_rows

NAMED = {"daily": pd.Timedelta(days=1), "weekly": pd.Timedelta(days=7), "never": None}
MOMENTS, WINDOWS = 64, 4096  # asked at once, and kept together: at most so many


@dataclass(frozen=True, kw_only=True, slots=True)
class BacktestPlan:
    """What a backtest does.

    origins: origin rows by series. updates: datetime64[ns] [U], ascending; from each on, forecasts are made with what
    was known by then. The first is the first origin, and the only one where nothing is ever updated. in_sample: whether
    it was asked for although something was fitted on later steps. skipped: series without an origin.
    """

    origins: list[np.ndarray]
    updates: np.ndarray
    in_sample: bool
    skipped: tuple[Skipped, ...] = ()

    @property
    def num_windows(self) -> int:
        """Origins times series."""
        return sum(len(rows) for rows in self.origins)

    def parts(self, table: SeriesTable) -> Iterator[list[np.ndarray]]:
        """The origins in consecutive stretches of time that are asked at once."""
        times = [series.times[rows] for series, rows in zip(table.series, self.origins, strict=True)]
        moments = np.unique(np.concatenate(times))
        size = max(1, min(MOMENTS, WINDOWS // len(table.series)))
        for start in range(0, len(moments), size):
            part = moments[start : start + size]
            yield [rows[(each >= part[0]) & (each <= part[-1])] for rows, each in zip(self.origins, times, strict=True)]

    def update_before(self, origins: np.ndarray) -> np.ndarray:
        """Number of the last update that a forecast at each of these times has, int64."""
        return np.searchsorted(self.updates, origins, side="right") - 1

    def update_that_knows(self, known_at: np.ndarray) -> np.ndarray:
        """Number of the first update at which what is known at these times is known, int64; U if there is none."""
        return np.searchsorted(self.updates, known_at, side="left")


def parse_update(text: str) -> pd.Timedelta | None:
    """`weekly`, `daily`, `12h`; `never` is None. Raises `UsageError`."""
    return NAMED[text] if text in NAMED else interval(text, flag="--update")


def plan_backtest(
    table: SeriesTable,
    manifest: Manifest,
    units: Mapping[str, float],
    *,
    horizon: int,
    fitted_at: np.datetime64,
    schedule: Schedule | None = None,
    first: np.datetime64 | None = None,
    last: np.datetime64 | None = None,
    update: pd.Timedelta | None = None,
    in_sample: bool = False,
) -> BacktestPlan:
    """Plan the origins from `first` to `last` whose whole horizon lies in the table.

    manifest: of the version that is asked. units: as in `evaluation.scored_origins`, which says what series are left
    out. horizon: of the forecast. fitted_at: from when on everything that fitting saw was known. Without `first`
    origins begin there; an earlier one is in sample. update: time between two updates; None never updates.

    Raises `IncompatibleError` for origins in sample unless `in_sample` asks for them, `UsageError` if there is no
    origin, `DataError` if no series can be scored.
    """
    origins, step, every = [], table.step, table.rule(manifest.window).scored(horizon)
    begin = fitted_at if first is None and not in_sample else first
    asked = [each for each in (first, last) if each is not None]
    if not in_sample and any(each < fitted_at for each in asked):
        raise IncompatibleError(
            f"origins before {step.isoformat(fitted_at)} are in sample: what forecasts has been fitted on steps up to "
            "there",
            hint=f"choose --from {step.isoformat(fitted_at)} or later, or say --in-sample, which marks every row",
        )
    views = tuple(dict.fromkeys(space.view for space in manifest.key_spaces))
    for series in table.series:
        # What is missing later must not decide which origins there are: only the context does.
        rows = origin_rows(series.values, every, views=views, with_future=False)
        rows = rows[rows + horizon < len(series)]
        times = series.times[rows]
        keep = np.ones(len(rows), dtype=bool)
        if begin is not None:
            keep &= times >= begin
        if last is not None:
            keep &= times <= last
        origins.append(rows[keep])
    if not any(len(rows) for rows in origins):
        _refuse(table, every, fitted_at, is_default=not asked and not in_sample)
    origins = origins if schedule is None else scheduled(table, origins, schedule)
    origins, skipped = scored_origins(table, origins, manifest.split, units, "backtest")
    return replace(planned(table, origins, update=update, in_sample=in_sample), skipped=skipped)


def last_origins(
    table: SeriesTable, spec: WindowSpec, *, num_windows: int, step_size: int, views: tuple[int, ...] = ()
) -> list[np.ndarray]:
    """The origins of a cross-validation by series: the last has the horizon behind it, each one before is `step_size`
    steps earlier. spec, views: of the memory. Raises `UsageError` unless all series have so many, each with a lookback
    of which enough is known.
    """
    if num_windows < 1 or step_size < 1:
        raise UsageError(f"n_windows is {num_windows} and step_size {step_size}, but both must be at least 1")
    origins = []
    for series in table.series:
        rows = len(series) - 1 - spec.horizon - step_size * np.arange(num_windows)[::-1]
        usable = origin_rows(series.values, table.rule(spec).scored(), views=views, with_future=False)
        if rows[0] < 0 or not np.isin(rows, usable).all():
            raise UsageError(
                f"{table.source}: series '{series.series_id}' has {len(series)} steps, too few, or too many of them "
                f"missing, for {num_windows} windows of {spec.lookback} + {spec.horizon} steps, {step_size} apart",
                hint="ask for fewer windows, or for a smaller step_size",
            )
        origins.append(rows)
    return origins


def planned(
    table: SeriesTable, origins: list[np.ndarray], *, update: pd.Timedelta | None, in_sample: bool
) -> BacktestPlan:
    """The plan of origins that are chosen already."""
    times = np.concatenate([series.times[rows] for series, rows in zip(table.series, origins, strict=True)])
    begin, end = times.min(), times.max()
    updates = np.array([begin]) if update is None else np.arange(begin, end + 1, update.to_timedelta64())
    return BacktestPlan(origins=origins, updates=updates.astype("datetime64[ns]"), in_sample=in_sample)


def _refuse(table: SeriesTable, spec: WindowSpec, fitted_at: np.datetime64, *, is_default: bool) -> None:
    step, end = table.step, max(series.times[-1] for series in table.series)
    if is_default:
        raise IncompatibleError(
            f"{table.source} has no origin with {spec.horizon} steps after it from {step.isoformat(fitted_at)} on: it "
            f"ends at {step.isoformat(end)}, and everything earlier was there when it was fitted",
            hint="give a longer table, fit on less of it, or say --in-sample, which marks every row",
        )
    raise UsageError(
        f"{table.source} has no origin between --from and --to with {spec.lookback} steps before it and {spec.horizon} "
        "after it",
        hint=f"the table ends at {step.isoformat(end)}",
    )
