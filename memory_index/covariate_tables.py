"""From the covariates of a table to those of a version: its columns in its order, its codes, its steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from memory_index.covariate_map import CovariateColumn, CovariateLayout, StoredCovariates
from memory_index.covariates import Covariate, Vintages
from memory_index.errors import IncompatibleError
from memory_index.step_vintages import StepVintages, on_steps
from memory_index.tables.series import SeriesTable


class AlignedValues(NamedTuple):
    """Values of columns on the steps of a table's series.

    times: datetime64[ns] [T'] and values: float32 [C, T'], NaN where missing, of all series end to end; of a table
    whose series share their covariates (`shared`) one stretch from the first step of any to the last. first: int64 [N],
    where each series begins. vintages: of each column that has any, whose values are missing.
    """

    times: np.ndarray
    values: np.ndarray
    first: np.ndarray
    shared: bool
    vintages: tuple[StepVintages | None, ...] = ()


def aligned_values(
    table: SeriesTable, columns: tuple[CovariateColumn, ...], *, shared: bool | None = None
) -> AlignedValues:
    """The covariates of a table up to the last step of each series; words that a column does not have become -1.

    shared: whether one stretch is wanted, default where all series have the same. Raises what `matching` and
    `require_vintages` raise.
    """
    taken = matching(table, columns)
    require_vintages(table, columns)
    given = table.covariates.series if table.covariates is not None else ()
    if shared is None:
        shared = len({id(each.values) for each in given}) == 1 and not _of_each(table)
    starts = np.array([series.times[0] for series in table.series])
    if not shared:
        parts = [taken(n, series.times) for n, series in enumerate(table.series)]
        first = np.cumsum([0, *(len(series) for series in table.series)])[:-1]
        times = np.concatenate([series.times for series in table.series])
        vintages = vintages_on(table, columns, [(series.series_id, series.times) for series in table.series])
        return AlignedValues(times, np.concatenate(parts, axis=1), first, False, vintages)
    times = table.step.until(starts.min(), max(series.times[-1] for series in table.series))
    longest = max(range(len(given)), key=lambda n: len(given[n].times)) if given else 0
    vintages = vintages_on(table, columns, [(None, times)])
    return AlignedValues(times, taken(longest, times), np.searchsorted(times, starts), True, vintages)


def stored_in(
    found: AlignedValues, layout: CovariateLayout, unit: np.ndarray, origins: list[np.ndarray]
) -> StoredCovariates:
    """The same as windows are compared with. unit: see `StoredCovariates`; origins: origin rows, per series."""
    position = np.concatenate([start + rows for start, rows in zip(found.first, origins, strict=True)])
    return StoredCovariates(
        layout=layout, values=found.values, first=found.first, unit=unit, vintages=found.vintages, origins=position
    )


def _of_each(table: SeriesTable) -> bool:
    """Whether each series has vintages of its own."""
    vintages = None if table.covariates is None else table.covariates.vintages
    return vintages is not None and bool(vintages.series_ids)


def vintages_on(
    table: SeriesTable, columns: tuple[CovariateColumn, ...], stretches: list[tuple[str | None, np.ndarray]]
) -> tuple[StepVintages | None, ...]:
    """Of each column of a version, its vintages in a table on some steps (`on_steps`); None where it has none."""
    given = table.covariates
    if given is None or given.vintages is None:
        return (None,) * len(columns)
    of_name = {column.name: column for column in given.columns}
    return tuple(
        on_steps(given.vintages, column.name, stretches, codes_of(of_name[column.name], column))
        if column.vintages and column.name in given.vintages.columns
        else None
        for column in columns
    )


def vintages_of(table: SeriesTable, columns: tuple[CovariateColumn, ...]) -> Vintages | None:
    """The vintages of a table as a version stores them: in its order of columns, its codes, float32.

    None for a version without any. Raises what `require_vintages` raises.
    """
    require_vintages(table, columns)
    given, wanted = table.covariates, [column for column in columns if column.vintages]
    if not wanted or given is None or given.vintages is None:
        return None
    found = given.vintages.of_columns([column.name for column in wanted])
    value = found.value.copy()
    for number, column in enumerate(wanted):
        codes = codes_of(given.columns[given.names.index(column.name)], column)
        if codes is not None:
            rows = found.rows_of(column.name, None)
            value[rows] = codes[value[rows].astype(np.int64)]
        assert found.columns[number] == column.name, "they are in this order"
    return replace(found, value=value.astype(np.float32))


def matching(table: SeriesTable, columns: tuple[CovariateColumn, ...]) -> Callable[[int, np.ndarray], np.ndarray]:
    """How to take the values of a version's columns from a table: (number of a series, times [S]) -> float32 [C, S].

    NaN where the table has none. Raises `IncompatibleError` that names the columns which the table does not have, or
    has in another role or kind.
    """
    have = {} if table.covariates is None else {column.name: n for n, column in enumerate(table.covariates.columns)}
    require_columns(table.source, tuple(have), columns)
    if not columns:
        return lambda number, times: np.empty((0, len(times)), dtype=np.float32)
    assert table.covariates is not None, "it has the columns"
    given, order, codes = table.covariates, [have[column.name] for column in columns], []
    issued = () if given.vintages is None else given.vintages.columns
    for column, place in zip(columns, order, strict=True):
        theirs = given.columns[place]
        if column.name in issued and not column.vintages:
            raise IncompatibleError(
                f"{table.source}: '{column.name}' has vintages, but the version was built on what is known at any time",
                hint="leave out --vintages, or build a version with it",
            )
        if (theirs.role, theirs.kind) != (column.role, column.kind):
            raise IncompatibleError(
                f"{table.source}: '{column.name}' is {theirs.role}, a {theirs.kind}, but in the version it is "
                f"{column.role}, a {column.kind}",
                hint=f"name it --{column.role} {column.name}, with values of that kind",
            )
        codes.append(codes_of(theirs, column))

    def take(number: int, times: np.ndarray) -> np.ndarray:
        source = given.series[number]
        at = np.searchsorted(source.times, times)
        there = (at < len(source.times)) & (source.times[np.minimum(at, len(source.times) - 1)] == times)
        values = np.where(there, source.values[order][:, np.minimum(at, len(source.times) - 1)], np.nan)
        for row, code in enumerate(codes):
            if code is not None:
                known = np.isfinite(values[row])
                values[row, known] = code[values[row, known].astype(np.int64)]
        return values.astype(np.float32)

    return take


def codes_of(theirs: Covariate, column: CovariateColumn) -> np.ndarray | None:
    """float64: the version's code of each word that a table has, then of any other word; None for no category."""
    if column.kind != "category":
        return None
    word = {name: float(code) for code, name in enumerate(column.categories)}
    return np.array([*(word.get(name, -1.0) for name in theirs.categories), -1.0])


def require_vintages(table: SeriesTable, columns: tuple[CovariateColumn, ...]) -> None:
    """Raise `IncompatibleError` that names the columns of which a version has vintages and the table none."""
    vintages = None if table.covariates is None else table.covariates.vintages
    have = () if vintages is None else vintages.columns
    if missing := [f"'{column.name}'" for column in columns if column.vintages and column.name not in have]:
        raise IncompatibleError(
            f"{table.source} does not say when the values of {', '.join(missing)} were issued, but this version was "
            "built with vintages",
            hint="give the table of vintages too: --vintages FILE, with ds, issued_at and the values",
        )


def require_columns(source: str, have: tuple[str, ...], columns: tuple[CovariateColumn, ...]) -> None:
    """Raise `IncompatibleError` that names the columns of a version which are not there."""
    missing = [column for column in columns if column.name not in have]
    if missing:
        named = " ".join(f"--{column.role} {column.name}" for column in missing)
        raise IncompatibleError(
            f"{source} has no covariate {', '.join(repr(column.name) for column in missing)}, which this version was "
            "built with",
            hint=f"give a table with the columns, and name their roles: {named}",
        )
