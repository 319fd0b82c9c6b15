"""Tables whose temperature and sky are forecasts as they were issued, made by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from covariate_fixtures import AHEAD, NUM_STEPS, WINDOW, covariate_table
from memory_fixtures import SeriesTable

from memory_index.covariates import Vintages

ISSUED = ("temperature", "sky")
EVERY, REACH = 4, 14  # steps from one issue to the next, and how far each looks ahead


def issues(num_steps: int, *, num_series: int, seed: int = 21) -> tuple[np.ndarray, ...]:
    """int64 [n] each: column, series, step and step of issue. Now and then a value is issued again after its time."""
    random = np.random.default_rng(seed)
    issue, lead = (each.ravel() for each in np.meshgrid(np.arange(-16, num_steps, EVERY), np.arange(1, REACH + 1)))
    late = np.sort(random.choice(num_steps - 30, size=60, replace=False))
    step = np.concatenate([issue + lead, late])
    issue = np.concatenate([issue, late + random.integers(0, 30, size=60)])
    there = (step >= 0) & (step < num_steps)
    step, issue = step[there], issue[there]
    column, series = (np.repeat(np.arange(n), len(step)) for n in (len(ISSUED), 1))
    column = np.tile(column, num_series)
    series = np.repeat(np.arange(num_series), len(step) * len(ISSUED))
    return column, series, np.tile(step, len(ISSUED) * num_series), np.tile(issue, len(ISSUED) * num_series)


def vintage_table(num_steps: int = NUM_STEPS, *, shared: bool = True, seed: int = 3, **options: object) -> SeriesTable:
    """`covariate_table` whose temperature and sky are known as of their issue, with errors that grow with the lead."""
    table = covariate_table(num_steps, shared=shared, seed=seed, **options)  # type: ignore[arg-type]
    assert table.covariates is not None
    times = table.covariates.series[0].times
    column, series, step, issue = issues(len(times), num_series=1 if shared else 2)
    random, names = np.random.default_rng(5), table.covariates.names
    row = np.array([names.index(name) for name in ISSUED])[column]
    truth = np.stack([each.values for each in table.covariates.series])[series, row, step]
    noise = 0.3 * np.maximum(step - issue, 0) * random.normal(size=len(step))
    flips = random.random(len(step)) < 0.02 * np.maximum(step - issue, 0)
    value = np.where(column == 0, truth + noise, np.where(flips, (truth + 1) % 3, truth))
    order = np.lexsort((issue, step, series, column))
    hour = np.timedelta64(1, "h").astype("timedelta64[ns]")
    vintages = Vintages(
        columns=ISSUED,
        series_ids=() if shared else table.series_ids,
        column=column[order].astype(np.int32),
        series=series[order].astype(np.int32),
        time=times[step[order]],
        issued_at=times[0] + issue[order] * hour,
        value=value[order].astype(np.float32).astype(np.float64),
    )
    return with_vintages_of(table, vintages)


def with_vintages_of(table: SeriesTable, vintages: Vintages) -> SeriesTable:
    """A table made by hand, with vintages in place of what it says of their columns."""
    given, made = table.covariates, {}
    assert given is not None
    for each in given.series:
        values = each.values.copy()
        values[[given.names.index(name) for name in vintages.columns]] = np.nan
        made.setdefault(id(each), replace(each, values=values))
    columns = tuple(replace(column, vintages=column.name in vintages.columns) for column in given.columns)
    series = tuple(made[id(each)] for each in given.series)
    return replace(table, covariates=replace(given, columns=columns, series=series, vintages=vintages))


def with_values(table: SeriesTable, poisoned: np.ndarray, *, seed: int) -> SeriesTable:
    """The table with garbage in the place of some issued values. poisoned: bool [n]."""
    assert table.covariates is not None
    vintages, random = table.covariates.vintages, np.random.default_rng(seed)
    assert vintages is not None
    wild = random.normal(size=len(vintages)) * 10.0 ** random.integers(-3, 6, size=len(vintages))
    wild = np.where(vintages.column == 0, wild, random.integers(-1, 3, size=len(vintages)))
    value = np.where(poisoned, wild, vintages.value).astype(np.float32).astype(np.float64)
    return replace(table, covariates=replace(table.covariates, vintages=replace(vintages, value=value)))


def issued_steps(table: SeriesTable) -> tuple[np.ndarray, np.ndarray]:
    """int64 [n] each: the step of each issued value, and the step of its issue, counted from the table's first."""
    assert table.covariates is not None
    vintages, start = table.covariates.vintages, table.series[0].times[0]
    assert vintages is not None
    hour = np.timedelta64(1, "h").astype("timedelta64[ns]")
    return (vintages.time - start) // hour, (vintages.issued_at - start) // hour


__all__ = ["AHEAD", "WINDOW", "issued_steps", "vintage_table", "with_values", "with_vintages_of"]
