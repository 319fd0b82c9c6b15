"""Tables with covariates made by hand, and versions of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from memory_fixtures import HOURLY, START, Series, SeriesTable, Store, Version, build_until

from memory_index.covariates import Covariate, Covariates, CovariateValues
from memory_index.encoder import EncoderConfig
from memory_index.windows import WindowSpec

WINDOW = WindowSpec(lookback=24, horizon=6)
ENCODER = EncoderConfig(views=(12, 24))
NUM_STEPS, AHEAD = 700, 12  # steps of the target, and known ones beyond
TEMPERATURE = Covariate(name="temperature", role="known", kind="number")
HOLIDAY = Covariate(name="holiday", role="known", kind="boolean")
SKY = Covariate(name="sky", role="known", kind="category", categories=("clear", "cloudy", "fog"))
PRESSURE = Covariate(name="pressure", role="observed", kind="number")
SIZE = Covariate(name="size", role="static", kind="number")
COLUMNS = (TEMPERATURE, HOLIDAY, SKY, PRESSURE, SIZE)


def values_of(num_steps: int, *, num_known: int, seed: int = 3, size: float = 1.0) -> np.ndarray:
    """float64 [5, num_steps], of `COLUMNS`; a longer one begins with the same values."""
    random = np.random.default_rng(seed)
    row = np.arange(num_steps)
    steps = np.repeat(random.normal(size=(4, 400)), 6, axis=1)[:, :num_steps]
    temperature = 10 + 8 * steps[0] + 2 * np.sin(row * 2 * np.pi / 24)
    holiday = (steps[1] > 1.2).astype(np.float64)
    sky = np.digitize(steps[2], [-0.5, 0.7]).astype(np.float64)
    pressure = np.where(row < num_known, 1000 + 5 * steps[3], np.nan)
    return np.stack([temperature, holiday, sky, pressure, np.full(num_steps, size)])


def covariate_table(
    num_steps: int = NUM_STEPS,
    *,
    ahead: int = AHEAD,
    shared: bool = True,
    columns: tuple[Covariate, ...] = COLUMNS,
    effect: float = 1.0,
    seed: int = 3,
) -> SeriesTable:
    """Two series whose values follow temperature, holiday and sky at the same step; `ahead` known steps beyond."""
    times, every = HOURLY.range(START, num_steps + ahead), []
    series = []
    noise = np.random.default_rng(11).normal(size=(2, 4000))
    place = [COLUMNS.index(column) for column in columns]
    for number, (name, level, spread) in enumerate((("north", 50.0, 4.0), ("south", 500.0, 40.0))):
        values = values_of(num_steps + ahead, num_known=num_steps, seed=seed + (0 if shared else number), size=number)
        if shared:
            values[4] = 1.0
        season = np.sin(np.arange(num_steps) * 2 * np.pi / 24)
        target = (
            season
            + effect * (0.2 * (values[0] - 10) + 3 * values[1] - values[2])[:num_steps]
            + 0.3 * noise[number][:num_steps]
        )
        series.append(Series(series_id=name, times=times[:num_steps], values=level + spread * target))
        every.append(CovariateValues(times=times, values=values[place]))
    if shared:
        every = [every[0], every[0]]
    return SeriesTable(
        step=HOURLY,
        layout="wide" if shared else "long",
        series=tuple(series),
        source="weather.csv",
        covariates=Covariates(columns=columns, series=tuple(every)),
    )


def without(table: SeriesTable) -> SeriesTable:
    """The same without covariates."""
    return replace(table, covariates=None)


def built_with(folder: Path, table: SeriesTable | None = None, num_training: int = 560, **options: object) -> Version:
    """A version of the first steps of a table."""
    table = table or covariate_table()
    options = {"window": WINDOW, "encoder": ENCODER, "name": "weather"} | options
    return build_until(Store(folder), table, table.series[0].times[num_training - 1], **options)  # type: ignore[arg-type]


def with_covariates(table: SeriesTable, change: object) -> SeriesTable:
    """The table with other values of its covariates: `change` gets the CovariateValues of each series."""
    assert table.covariates is not None
    made: dict[int, CovariateValues] = {}
    series = []
    for each in table.covariates.series:
        if id(each) not in made:
            made[id(each)] = replace(each, values=change(each))  # type: ignore[operator]
        series.append(made[id(each)])
    return replace(table, covariates=replace(table.covariates, series=tuple(series)))
