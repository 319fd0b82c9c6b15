"""How a data file is to be read: the options that every command with a FILE takes, as one `ReadOptions`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.record_options import with_record

if TYPE_CHECKING:
    from memory_index.tables.columns import ReadOptions

FILL = (
    "error, drop (left missing; windows that touch it are not used), ffill (the last value before; knows nothing "
    "later) or interpolate (a straight line; a filled cell then knows the NEXT observed value, flattering scores there)"
)
COLUMNS = "Read only these variates or series: A,B. For a name with a comma in it, --ignore the others."


def _option(flag: str, text: str) -> Any:
    return typer.Option(flag, help=text)


# name: (type, default). Lists become tuples, and an option that is not given leaves the default of ReadOptions.
OPTIONS: dict[str, tuple[Any, Any]] = {
    "layout": (Annotated[str | None, _option("--layout", "wide or long; detected if not given.")], None),
    "time_column": (Annotated[str | None, _option("--time-column", "Column of the times.")], None),
    "id_column": (
        Annotated[str | None, _option("--id-column", "Long table: column that names the series, or several: store,item.")],
        None,
    ),
    "value_column": (Annotated[str | None, _option("--value-column", "Long table: column of the values.")], None),
    "columns": (Annotated[str | None, _option("--columns", COLUMNS)], None),
    "ignore": (
        Annotated[list[str] | None, _option("--ignore", "Leave out a column or series; may be repeated.")],
        None,
    ),
    "missing": (Annotated[list[str] | None, _option("--missing", "A cell that means no value, such as -999.")], None),
    "decimal": (
        Annotated[
            str | None,
            _option("--decimal", "Decimal mark of a CSV file, ',' or '.'; the other one separates thousands then."),
        ],
        None,
    ),
    "step": (
        Annotated[str | None, _option("--step", "pandas frequency (h, 15min, D, B, MS); found if not given.")],
        None,
    ),
    "time_format": (Annotated[str | None, _option("--time-format", "strptime format, such as %d/%m/%Y %H:%M.")], None),
    "time_zone": (Annotated[str | None, _option("--time-zone", "Zone of the times, such as Europe/Berlin.")], None),
    "time_unit": (
        Annotated[
            str | None,
            _option("--time-unit", "Times are numbers: s, ms, us or ns since 1970 (UTC), or excel (days)."),
        ],
        None,
    ),
    "time_start": (
        Annotated[str | None, _option("--time-start", "Times are numbers that count steps: the time of the number 0.")],
        None,
    ),
    "on_gap": (Annotated[str, _option("--on-gap", f"Rows that are not there: {FILL}.")], "error"),
    "on_nan": (Annotated[str, _option("--on-nan", "Cells without a finite value: as --on-gap.")], "error"),
    "on_duplicate": (Annotated[str, _option("--on-duplicate", "Repeated times: error, first, last or mean.")], "error"),
    "max_cells": (Annotated[int | None, _option("--max-cells", "Refuse larger files.")], None),
}


def reads_table(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command these options, and hand them to its keyword argument `table_options` as a `ReadOptions`."""

    def record(given: dict[str, Any]) -> ReadOptions:
        from memory_index.tables.columns import ReadOptions

        if given["columns"] is not None:
            given["columns"] = tuple(name.strip() for name in given["columns"].split(","))
        given |= {name: tuple(given[name]) for name in ("ignore", "missing") if given[name] is not None}
        return ReadOptions(**{name: value for name, value in given.items() if value is not None})

    return with_record(command, "table_options", OPTIONS, record)


def reading_flags(options: ReadOptions) -> list[str]:
    """The flags that make these reading options, without those that say the default."""
    flags = []
    for field in fields(options):
        value = getattr(options, field.name)
        if value == field.default:
            continue
        values = value if isinstance(value, tuple) else (value,)
        values = (",".join(values),) if field.name in ("columns", "id_column") else values
        flags += [part for each in values for part in (f"--{field.name.replace('_', '-')}", str(each))]
    return flags
