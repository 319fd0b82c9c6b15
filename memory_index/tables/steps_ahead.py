"""The steps after the last target value: what is known there of covariates, what is missing, and a table to fill in.

H: steps ahead. Series of a wide table share their covariates, so the steps ahead are those after the last value of any.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from memory_index.covariates import Covariate, Covariates, CovariateValues
from memory_index.errors import UsageError
from memory_index.tables.calendar import calendar_values
from memory_index.tables.columns import ReadOptions
from memory_index.tables.frames import SERIES_NAME, TIME_NAME
from memory_index.tables.series import SeriesTable


@dataclass(frozen=True, kw_only=True, slots=True)
class Beside:
    """Covariates that one series, or all series of a wide table, have.

    series_id: None where all share them. numbers: of the series in the table. num_target: steps up to the last target
    value.
    """

    series_id: str | None
    numbers: range
    num_target: int
    covariates: CovariateValues


@dataclass(frozen=True, kw_only=True, slots=True)
class MissingFuture:
    """Steps ahead at which a known column of a series has no value. at, until: first and last of them, ISO 8601."""

    series_id: str | None
    column: str
    at: str
    until: str
    num_steps: int


def stretches(table: SeriesTable) -> Iterator[Beside]:
    """Each stretch of covariates of a table: one of a wide table, one for each series of a long one."""
    assert table.covariates is not None, "it has some"
    every = table.covariates.series
    if table.layout == "wide":
        last = max(series.times[-1] for series in table.series)
        num_target = int(np.searchsorted(every[0].times, last, side="right"))
        yield Beside(series_id=None, numbers=range(len(every)), num_target=num_target, covariates=every[0])
        return
    for number, (series, values) in enumerate(zip(table.series, every, strict=True)):
        yield Beside(
            series_id=series.series_id, numbers=range(number, number + 1), num_target=len(series), covariates=values
        )


def covariates_ahead(table: SeriesTable, horizon: int) -> SeriesTable:
    """The table with covariates that reach at least H steps beyond its last target values.

    What the calendar makes is known there, static columns repeat their value; what only the user's tables say stays
    missing. A table without covariates is returned as it is.
    """
    if table.covariates is None:
        return table
    columns = table.covariates.columns
    static = np.array([column.role == "static" for column in columns])
    made = np.array([bool(column.source) for column in columns])
    times_of: dict[tuple[int, int], tuple[np.ndarray, np.ndarray]] = {}  # thousands of series share a few spans
    longer: dict[tuple[int, int], CovariateValues] = {}
    every = list(table.covariates.series)
    for one in stretches(table):
        values, reach = one.covariates.values, max(one.num_target + horizon, len(one.covariates.times))
        if reach == values.shape[1]:
            continue
        key = id(one.covariates), reach
        if key not in longer:
            span = int(one.covariates.times[0].astype(np.int64)), reach
            if span not in times_of:
                times = table.step.range(one.covariates.times[0], reach)
                of_calendar = calendar_values(columns, times, table.step) if made.any() else np.empty((0, 0))
                times_of[span] = times, of_calendar
            times, of_calendar = times_of[span]
            whole = np.full((len(columns), reach), np.nan)
            whole[:, : values.shape[1]] = values
            whole[static] = values[static, :1]
            if made.any():
                whole[made] = of_calendar[made]
            longer[key] = CovariateValues(times=times, values=whole)
        for number in one.numbers:
            every[number] = longer[key]
    return replace(table, covariates=replace(table.covariates, series=tuple(every)))


def known_now(table: SeriesTable, horizon: int = 0) -> SeriesTable:
    """`covariates_ahead` with vintages said plainly: the newest values that were issued by the last target value."""
    ahead = covariates_ahead(table, horizon) if horizon else table
    given = ahead.covariates
    if given is None or given.vintages is None:
        return ahead
    every, columns = list(given.series), tuple(replace(column, vintages=False) for column in given.columns)
    for one in stretches(ahead):
        values, times = one.covariates.values.copy(), one.covariates.times
        name = table.series_ids[one.numbers[0]]
        for number, column in enumerate(given.columns):
            if column.name in given.vintages.columns and one.num_target:
                issued = given.vintages.of_series(column.name, name, times, times[one.num_target - 1])
                values[number] = np.where(np.isnan(values[number]), issued, values[number])
        for each in one.numbers:
            every[each] = CovariateValues(times=times, values=values)
    return replace(ahead, covariates=Covariates(columns=columns, series=tuple(every)))


def make_future(table: SeriesTable, horizon: int, *, like: ReadOptions | None = None) -> Any:
    """The table of the next H steps of every series, to be filled in: a pandas DataFrame.

    A long table has the columns `unique_id, ds`, a wide one `ds`, under these names or those of the options `like` that
    the table was read with; then one for each known column: filled with what is known already (rows after the last
    target value, the calendar), else empty. Times are in the table's own zone. Raises `UsageError` for a horizon below
    1 or a table without known columns.
    """
    if horizon < 1:
        raise UsageError(f"a horizon of {horizon} has no steps", hint="ask for one step at least")
    known = () if table.covariates is None else tuple(c for c in table.covariates.columns if c.role == "known")
    if not known:
        raise UsageError(
            f"{table.source} has no known covariate, so there is nothing to fill in",
            hint="name the columns whose future is known with --known, or ask for --calendar or --holidays",
        )
    ahead = known_now(table, horizon)
    assert ahead.covariates is not None, "it has some"
    rows = [number for number, column in enumerate(ahead.covariates.columns) if column.role == "known"]
    parts = list(stretches(ahead))
    steps = [slice(one.num_target, one.num_target + horizon) for one in parts]
    times = np.concatenate([one.covariates.times[s] for one, s in zip(parts, steps, strict=True)])
    values = np.concatenate([one.covariates.values[rows, s] for one, s in zip(parts, steps, strict=True)], axis=1)
    columns: dict[str, object] = {}
    like = like or ReadOptions()
    id_name = like.id_column if isinstance(like.id_column, str) and "," not in like.id_column else SERIES_NAME
    if table.layout == "long":
        columns[id_name] = np.repeat(np.array([one.series_id for one in parts], dtype=object), horizon)
    columns[like.time_column or TIME_NAME] = table.step.local(times)
    columns |= {column.name: _as_written(column, line) for column, line in zip(known, values, strict=True)}
    return pd.DataFrame(columns)


def missing_future(table: SeriesTable, horizon: int) -> tuple[MissingFuture, ...]:
    """What is missing of the next H steps: one entry for each series and known column that is not complete."""
    if table.covariates is None:
        return ()
    ahead = known_now(table, horizon)
    assert ahead.covariates is not None, "it has some"
    columns = ahead.covariates.columns
    known = np.array([column.role == "known" for column in columns])
    found = []
    for one in stretches(ahead):
        missing = np.isnan(one.covariates.values[:, one.num_target : one.num_target + horizon]) & known[:, None]
        for number in np.flatnonzero(missing.any(axis=1)):
            steps = np.flatnonzero(missing[number]) + one.num_target
            at, until = (table.step.isoformat(one.covariates.times[steps[place]]) for place in (0, -1))
            found.append(
                MissingFuture(
                    series_id=one.series_id, column=columns[number].name, at=at, until=until, num_steps=len(steps)
                )
            )
    return tuple(found)


def _as_written(column: Covariate, line: np.ndarray) -> Any:
    """Values as a user writes them: numbers, true and false, words; missing where not known."""
    if column.kind == "boolean":
        return pd.array([None if np.isnan(value) else bool(value) for value in line], dtype="boolean")
    if column.kind == "category":
        words = np.array([*column.categories, None], dtype=object)
        return words[np.where(np.isnan(line) | (line < 0), len(column.categories), line).astype(np.int64)]
    return line
