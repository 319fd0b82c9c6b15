"""From the covariates of a table to those of a version: its columns in its order, its codes, its steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from memory_index.covariate_map import CovariateColumn
from memory_index.errors import IncompatibleError
from memory_index.tables.series import SeriesTable


class AlignedValues(NamedTuple):
    """Values of columns on the steps of a table's series.

    times: datetime64[ns] [T'] and values: float32 [C, T'], NaN where missing, of all series end to end; of a table
    whose series share their covariates (`shared`) one stretch from the first step of any to the last. first: int64 [N],
    where each series begins.
    """

    times: np.ndarray
    values: np.ndarray
    first: np.ndarray
    shared: bool


def aligned_values(
    table: SeriesTable, columns: tuple[CovariateColumn, ...], *, shared: bool | None = None
) -> AlignedValues:
    """The covariates of a table up to the last step of each series; words that a column does not have become -1.

    shared: whether one stretch is wanted, default where all series have the same. Raises what `matching` raises.
    """
    taken = matching(table, columns)
    given = table.covariates.series if table.covariates is not None else ()
    if shared is None:
        shared = len({id(each.values) for each in given}) == 1
    starts = np.array([series.times[0] for series in table.series])
    if not shared:
        parts = [taken(n, series.times) for n, series in enumerate(table.series)]
        first = np.cumsum([0, *(len(series) for series in table.series)])[:-1]
        times = np.concatenate([series.times for series in table.series])
        return AlignedValues(times, np.concatenate(parts, axis=1), first, False)
    times = table.step.until(starts.min(), max(series.times[-1] for series in table.series))
    longest = max(range(len(given)), key=lambda n: len(given[n].times)) if given else 0
    return AlignedValues(times, taken(longest, times), np.searchsorted(times, starts), True)


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
    for column, place in zip(columns, order, strict=True):
        theirs = given.columns[place]
        if (theirs.role, theirs.kind) != (column.role, column.kind):
            raise IncompatibleError(
                f"{table.source}: '{column.name}' is {theirs.role}, a {theirs.kind}, but in the version it is "
                f"{column.role}, a {column.kind}",
                hint=f"name it --{column.role} {column.name}, with values of that kind",
            )
        word = {name: float(code) for code, name in enumerate(column.categories)}
        codes.append(np.array([*(word.get(name, -1.0) for name in theirs.categories), -1.0]))

    def take(number: int, times: np.ndarray) -> np.ndarray:
        source = given.series[number]
        at = np.searchsorted(source.times, times)
        there = (at < len(source.times)) & (source.times[np.minimum(at, len(source.times) - 1)] == times)
        values = np.where(there, source.values[order][:, np.minimum(at, len(source.times) - 1)], np.nan)
        for row, column in enumerate(columns):
            if column.kind == "category":
                known = np.isfinite(values[row])
                values[row, known] = codes[row][values[row, known].astype(np.int64)]
        return values.astype(np.float32)

    return take


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
