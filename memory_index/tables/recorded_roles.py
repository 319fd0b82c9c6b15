"""Reading a table as one was read before: the covariates and the names of columns that a version has recorded, merged
with what is typed.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from memory_index.covariates import Covariate
from memory_index.errors import IncompatibleError
from memory_index.tables.calendar import CALENDAR, HOLIDAYS, names_of
from memory_index.tables.columns import ReadOptions
from memory_index.tables.covariate_roles import ROLES
from memory_index.tables.number_times import are_numbers
from memory_index.tables.series import Remembered
from memory_index.tables.timestamps import looks_like_times

OF_TIMES = ("time_format", "time_unit", "time_start")
NAMES = ("time_column", "id_column", "value_column", "columns", "ignore")
NAMING = (*NAMES, "missing", "decimal", *OF_TIMES)  # what is remembered
FIRST = 50  # cells that tell in which form times are written


def with_recorded(options: ReadOptions, columns: Iterable[Covariate], remembered: Remembered = ()) -> ReadOptions:
    """Reading options with the roles, kinds and words of covariates that were recorded, as by a version, and the names
    that it remembers.

    Nothing needs to be typed again; what is typed must agree. Raises `IncompatibleError` for a role, a column, a
    calendar or holidays that differ from what was recorded.
    """
    columns = tuple(columns)
    recorded = {column.name: column for column in columns if not column.source}
    for name, role in options.roles.items():
        if name not in recorded:
            known = ", ".join(f"'{each}'" for each in recorded) or "none"
            raise IncompatibleError(
                f"--{role} {name}: the version has no such covariate (it has {known})",
                hint="leave the option out, or build a new version with it",
            )
        if recorded[name].role != role:
            raise IncompatibleError(
                f"--{role} {name}: in the version '{name}' is {recorded[name].role}",
                hint="leave the option out, or build a new version with it",
            )
    features = tuple(dict.fromkeys(name for c in columns if c.source == CALENDAR for name in names_of([c.name])))
    countries = [column.source.removeprefix(HOLIDAYS) for column in columns if column.source.startswith(HOLIDAYS)]
    country = countries[0] if countries else None
    typed = tuple(name for name in options.calendar if name != "none")
    if typed not in ((), ("auto",)) and set(typed) != set(features):
        raise IncompatibleError(
            f"--calendar {','.join(typed)}: the version was built with {','.join(features) or 'none'}",
            hint="leave the option out, or build a new version with it",
        )
    if typed == ("auto",) and not features:
        raise IncompatibleError(
            "--calendar auto: the version was built without a calendar", hint="build a new version with it"
        )
    if options.holidays is not None and options.holidays != country:
        raise IncompatibleError(
            f"--holidays {options.holidays}: the version was built with {country or 'none'}",
            hint="leave the option out, or build a new version with it",
        )
    by_role = {role: tuple(c.name for c in recorded.values() if c.role == role) for role in ROLES}
    return replace(
        options,
        known=by_role["known"],
        observed=by_role["observed"],
        static=by_role["static"],
        calendar=features,
        holidays=country,
        recorded=columns,
        remembered=remembered,
    )


def remembered_of(options: ReadOptions, names: Collection[str]) -> Remembered:
    """What a version remembers of how its table, whose columns have these names, was read."""
    said = {name: getattr(options, name) for name in NAMING}
    said |= {name: tuple(each for each in said[name] or () if each in names) for name in ("columns", "ignore")}
    return tuple((name, value) for name, value in said.items() if value)


def as_remembered(options: ReadOptions, names: Collection[str]) -> ReadOptions:
    """The options for a table whose columns have these names: what was not typed is as a version remembers it, where
    the table has these columns.
    """
    said, taken = dict(options.remembered), {*options.roles, *options.ignore, *(options.columns or ())}
    free = [name for name in names if name not in taken]
    found: dict[str, Any] = {}
    for name in ("time_column", "id_column", "value_column"):
        value = said.get(name, ())
        wanted = value if not isinstance(value, str) else (value,) if value in free else _parts(value)
        if wanted and getattr(options, name) is None and set(wanted) <= set(free):
            found[name] = value
    if "id_column" in said and "id_column" not in found and options.id_column is None:
        found.pop("value_column", None)  # this table is wide, the one before was long
    if options.columns is None and (columns := tuple(name for name in said.get("columns", ()) if name in free)):
        found["columns"] = columns
    if not options.ignore:
        found["ignore"] = tuple(name for name in said.get("ignore", ()) if name in free)
    if not options.missing:
        found["missing"] = said.get("missing", ())
    return replace(options, remembered=(), **found)


def like_remembered(options: ReadOptions, columns: Mapping[str, pa.ChunkedArray]) -> ReadOptions:
    """The same, and the form of numbers and times where none was typed and the table has some in the remembered one."""
    remembered: dict[str, Any] = dict(options.remembered)
    said, decimal = {name: remembered[name] for name in OF_TIMES if name in remembered}, remembered.get("decimal")
    options = as_remembered(options, [*columns])
    if decimal and options.decimal is None and any(_has_mark(column, decimal) for column in columns.values()):
        options = replace(options, decimal=decimal)
    if not said or any(getattr(options, name) is not None for name in OF_TIMES):
        return options
    named = options.time_column
    times = [columns[named]] if named is not None and named in columns else list(columns.values())
    if "time_format" in said:
        fits = any(_has_format(column, said["time_format"]) for column in times)
    else:  # numbers are times only where nothing else is
        fits = any(map(are_numbers, times)) and not any(map(looks_like_times, times))
    return replace(options, **said) if fits else options


def _has_mark(column: pa.ChunkedArray, decimal: str) -> bool:
    """Whether any cell is a number with this decimal mark: 1.125 must not become 1125 because others had commas."""
    number = rf"^\s*[-+]?[\d.,' ]*[{decimal}]\d+\s*$"
    return pa.types.is_string(column.type) and bool(pc.any(pc.match_substring_regex(column, number)).as_py())


def _has_format(column: pa.ChunkedArray, time_format: str) -> bool:
    """Whether the first cells of a column are times in a format; offsets and zones are left to whoever reads them."""
    cells = column.slice(0, FIRST).to_pylist() if pa.types.is_string(column.type) else []
    texts = [cell.strip() for cell in cells if cell and cell.strip()]
    if "%z" in time_format.lower():
        return bool(texts)
    return bool(texts) and bool(pd.to_datetime(pd.Series(texts), format=time_format, errors="coerce").notna().any())


def _parts(names: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in names.split(","))
