"""Scenarios: the same origin, asked with other known values over the horizon (`--set-known temperature+=5`).

A scenario changes what a query brings, never what a version stores.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from memory_index.covariate_map import CovariateColumn
from memory_index.covariates import Covariate, CovariateValues
from memory_index.errors import UsageError
from memory_index.tables.columns import several
from memory_index.tables.series import SeriesTable
from memory_index.tables.steps_ahead import covariates_ahead

TRUE, FALSE = ("true", "yes", "1"), ("false", "no", "0")


@dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    """One known covariate over the whole horizon: set to a value (`=`), or changed by one (`+=`)."""

    name: str
    how: Literal["=", "+="]
    value: str

    def __str__(self) -> str:
        """As it is typed."""
        return f"{self.name}{self.how}{self.value}"


def parse_changes(texts: str | Iterable[str] | None) -> tuple[Change, ...]:
    """`temperature=5` or `temperature+=5`: one, several, or none. Raises `UsageError`."""
    changes = []
    for text in several(texts):
        found = re.fullmatch(r"\s*([^=]*?[^=+\s])\s*(\+?=)\s*(.*?)\s*", text, flags=re.DOTALL)
        if found is None or not found[3]:
            raise UsageError(
                f"'{text}' is no change of a known covariate", hint="for example temperature=5, or temperature+=5"
            )
        changes.append(Change(name=found[1], how="+=" if found[2] == "+=" else "=", value=found[3]))
    return tuple(changes)


def with_changes(
    table: SeriesTable,
    changes: tuple[Change, ...],
    columns: tuple[CovariateColumn, ...],
    horizon: int,
    *,
    at: np.datetime64 | None = None,
) -> SeriesTable:
    """The table with changed known values over the horizon after the last target value of each series, or after `at`.

    columns: those of the version. `=` also fills what the table does not have there yet.

    Raises `UsageError` for a column that is not known in version and table, or a value that does not fit its kind.
    """
    if not changes:
        return table
    table = covariates_ahead(table, horizon)
    given = table.covariates
    names = [] if given is None else list(given.names)
    settings = [(names.index(change.name), change) for change in changes if _require_known(change, columns, names)]
    assert given is not None, "it has the columns"
    of_each = given.vintages is not None and bool(given.vintages.series_ids)
    made: dict[tuple[int, str, np.datetime64], CovariateValues] = {}
    series = []
    for each, values in zip(table.series, given.series, strict=True):
        known = np.flatnonzero(np.isfinite(each.values))
        origin = at if at is not None else each.times[known[-1] if len(known) else 0]
        key = (id(values), each.series_id if of_each else "", origin)
        if key not in made:
            made[key] = _changed(table, each.series_id, values, settings, origin, horizon)
        series.append(made[key])
    return replace(table, covariates=replace(given, series=tuple(series)))


def _require_known(change: Change, columns: tuple[CovariateColumn, ...], names: list[str]) -> bool:
    """True. Raises `UsageError` unless a change is of a column that is known ahead."""
    known = [column.name for column in columns if column.role == "known"]
    role = next((column.role for column in columns if column.name == change.name), None)
    if role == "known" and change.name in names:
        return True
    reason = f"is {role}, not known ahead" if role not in (None, "known") else "is no known covariate of this version"
    raise UsageError(
        f"--set-known {change}: '{change.name}' {reason}",
        hint=f"known ahead are {', '.join(known)}" if known else "build a version with --known to ask for scenarios",
    )


def _changed(
    table: SeriesTable,
    series_id: str,
    given: CovariateValues,
    settings: list[tuple[int, Change]],
    origin: np.datetime64,
    horizon: int,
) -> CovariateValues:
    """The values of one series with the changes after an origin; longer where the horizon reaches beyond them."""
    assert table.covariates is not None, "it has the columns"
    columns, vintages = table.covariates.columns, table.covariates.vintages
    ahead = table.step.range(origin, horizon + 1)[1:]
    beyond = ahead[ahead > given.times[-1]]
    times = np.concatenate([given.times, beyond])
    values = np.concatenate([given.values, np.full((len(columns), len(beyond)), np.nan)], axis=1)
    place = np.searchsorted(times, ahead)
    for number, change in settings:
        if vintages is not None and columns[number].name in vintages.columns:
            issued = vintages.of_series(columns[number].name, series_id, ahead, origin)
            values[number, place] = np.where(np.isnan(values[number, place]), issued, values[number, place])
        value = _number(change, columns[number])
        values[number, place] = value if change.how == "=" else values[number, place] + value
    return CovariateValues(times=times, values=values)


def _number(change: Change, column: Covariate) -> float:
    """What is set or added, as values of a column are kept. Raises `UsageError`."""
    if change.how == "+=" and column.kind != "number":
        raise UsageError(f"--set-known {change}: '{column.name}' is a {column.kind}", hint=f"set it: {column.name}=...")
    if column.kind == "category":
        if change.value in column.categories:
            return float(column.categories.index(change.value))
        listed = ", ".join(column.categories[:8])
        raise UsageError(f"--set-known {change}: '{column.name}' is never '{change.value}'", hint=f"it is {listed}")
    if column.kind == "boolean" and change.value.lower() in (*TRUE, *FALSE):
        return float(change.value.lower() in TRUE)
    try:
        value = float(change.value)
    except ValueError:
        value = np.nan
    if not np.isfinite(value) or (column.kind == "boolean" and value not in (0.0, 1.0)):
        fits = "a finite number" if column.kind == "number" else "true or false"
        raise UsageError(f"--set-known {change}: '{change.value}' is not {fits}")
    return value
