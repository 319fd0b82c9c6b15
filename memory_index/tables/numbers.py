"""Cells of a column of values -> float64. A cell that is no number is a fault, told in the terms of what it looks like.

Numbers are written with a decimal point unless `ReadOptions.decimal` says otherwise: of 1,001 nobody can tell whether
it is just above one or a thousand and one.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from memory_index.tables.columns import MISSING, ReadOptions, Roles
from memory_index.tables.problems import Problem, ProblemLog
from memory_index.tables.table_files import RawTable

SPACES = " \u00a0\u202f'\u2019"  # between groups of three digits, in some countries
NUMBER_WITH_MARKS = re.compile(rf"[+-]?\d[\d.,{SPACES}]*([eE][+-]?\d+)?")
GROUPS_OF_POINTS = re.compile(r"[+-]?\d{1,3}(\.\d{3})+")
GROUPS_OF_COMMAS = re.compile(r"[+-]?\d{1,3}(,\d{3})+")
UNIT = re.compile(r"[^\w.,]*[+-]?\d[\d.,]*\s*[^\d]*")  # a number with something around it: 5 kWh, <0.1, 12 %
SEEN = 2000  # different cells of a column that are looked at to say what it holds


@dataclass(frozen=True, kw_only=True, slots=True)
class Cells:
    """What is needed to read cells and to say where a bad one is. moment: ISO 8601 of a row, None if it has no time."""

    options: ReadOptions
    log: ProblemLog
    moment: Callable[[int], str | None]


def numbers(raw: RawTable, name: str, roles: Roles, cells: Cells) -> tuple[np.ndarray, np.ndarray] | None:
    """A column as float64 [n], NaN where missing, and bool [n] where its text is no number.

    None, and a fault, if the column holds no number at all.
    """
    column, options = raw.columns[name], cells.options
    values, unreadable = converted(column, options)
    if options.missing:
        values = np.where(np.isin(values, _missing_numbers(column, options.missing)), np.nan, values)
    marks, others = _marks(column, unreadable, options), unreadable
    if marks is not None:
        marked = _with_marks(column, unreadable)
        others, first = unreadable & ~marked, int(marked.argmax())
        message = f"{int(marked.sum())} cells of the column '{name}' {marks[0]}"
        series_id, row = named_series(raw, name, roles, first), int(raw.row_number[first])
        beside = column_of(name, roles)
        cells.log.add(
            Problem(kind="decimal", series_id=series_id, row=row, message=message, fix=marks[1], column=beside)
        )
    elif np.isnan(values).all():
        cells.log.add(_no_number(column, name, roles, unreadable))
        return None

    def problem_at(place: int) -> Problem:
        cell = column[place].as_py()
        with_number = UNIT.fullmatch(str(cell).strip()) is not None
        say = f'correct the cell, or say that it means no value: --missing "{cell}"'
        return Problem(
            kind="not-a-number",
            series_id=named_series(raw, name, roles, place),
            at=cells.moment(place),
            row=int(raw.row_number[place]),
            message=f"'{cell}' in the column '{name}' is not a number",
            fix="write the number alone in the cell" if with_number else say,
            column=column_of(name, roles),
        )

    cells.log.add_at(np.flatnonzero(others), int(others.sum()), problem_at, kind="not-a-number")
    if np.isnan(values).all():
        return None
    _note_thousands(column, name, roles, cells)
    return values, unreadable


def _no_number(column: pa.ChunkedArray, name: str, roles: Roles, unreadable: np.ndarray) -> Problem:
    """The fault of a column without a number: empty, or another kind of column."""
    cell = str(column[int(unreadable.argmax())].as_py()).strip()
    fix = "name the right one with --value-column" if roles.id else f'leave it out with --ignore "{name}"'
    beside = column_of(name, roles)
    if beside is not None:
        fix = "fill it, or give it no role"
    elif not roles.id and 2 <= pc.count_distinct(column).as_py() <= len(column) // 2:
        fix = f'if it names the series of each row: --id-column "{name}"; else {fix}'
    if UNIT.fullmatch(cell):
        fix = "write the number alone in each cell"
    what = f"holds no number (its first text is '{cell}')" if unreadable.any() else "is empty"
    series_id = None if roles.id or beside else name
    message = f"the column '{name}' {what}"
    return Problem(kind="column", series_id=series_id, message=message, fix=fix, column=beside)


def converted(column: pa.ChunkedArray, options: ReadOptions) -> tuple[np.ndarray, np.ndarray]:
    """(float64 [n], NaN where missing; bool [n], text that is no number)."""
    decimal = options.decimal if pa.types.is_string(column.type) else None
    if decimal is None:
        try:
            return np.asarray(column.cast(pa.float64()).to_numpy(), dtype=np.float64), np.zeros(len(column), dtype=bool)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            pass
    text = pc.utf8_trim_whitespace(column.cast(pa.string())).to_pandas()
    missing = (text.isna() | text.isin((*MISSING, *options.missing))).to_numpy()
    read = text.mask(missing).astype(object)
    if decimal is not None:
        read = _with_points(read, decimal)
    values = pd.to_numeric(read, errors="coerce").to_numpy(dtype=np.float64)
    return values, np.isnan(values) & ~missing


def _with_points(text: pd.Series, decimal: str) -> pd.Series:
    """Numbers with this decimal mark and whole groups of three digits, as Python writes them; other text is none."""
    group = "." if decimal == "," else ","
    between = re.escape(group) + SPACES
    whole = rf"[+-]?(?:\d+|\d{{1,3}}(?:[{between}]\d{{3}})+)?"
    form = rf"({whole})(?:{re.escape(decimal)}(\d*))?([eE][+-]?\d+)?"
    parts = text.astype("string").str.extract(rf"^{form}$")
    digits = parts[0].str.replace(rf"[{between}]", "", regex=True).fillna("")
    joined = digits + "." + parts[1].fillna("") + parts[2].fillna("")
    other = text.astype("string").str.fullmatch(r"[+-]?(?:inf|infinity)", case=False).fillna(False)
    return joined.where(parts.notna().any(axis=1), text.where(other)).astype(object)


def _missing_numbers(column: pa.ChunkedArray, missing: tuple[str, ...]) -> np.ndarray:
    """The numbers that mean no value; -9999.9 of a column of float32 is not that of float64."""
    numbers = [float(cell) for cell in missing if _is_number(cell)]
    if pa.types.is_float32(column.type):
        with np.errstate(over="ignore"):
            numbers += [float(np.float32(number)) for number in numbers]
    return np.array(numbers, dtype=np.float64)


def _marks(column: pa.ChunkedArray, unreadable: np.ndarray, options: ReadOptions) -> tuple[str, str] | None:
    """(what, fix) if most cells that do not read are numbers with commas or separators of thousands; else None."""
    if not unreadable.any():
        return None
    texts = [str(cell).strip() for cell in column.filter(pa.array(unreadable)).slice(0, SEEN).to_pylist()]
    marked = [each for each in texts if NUMBER_WITH_MARKS.fullmatch(each)]
    if 2 * len(marked) <= len(texts):
        return None
    shown = f"are like '{marked[0]}', with decimal commas or separators of thousands"
    plain = "write numbers with a decimal point and without separators"
    if options.decimal is not None:
        other = "." if options.decimal == "," else ","
        return f"are like '{marked[0]}', which --decimal \"{options.decimal}\" does not read", f"{plain}" + (
            f', or with --decimal "{other}"' if _reads(marked, other) else ""
        )
    both = [mark for mark in (",", ".") if _reads(marked, mark)]
    if len(both) == 2:
        return shown, (
            f'{plain}, or say what \'{marked[0]}\' has: --decimal "," for a decimal comma, --decimal "." for a '
            "separator of thousands"
        )
    return shown, plain + (f', or have them read with --decimal "{both[0]}"' if both else "")


def _with_marks(column: pa.ChunkedArray, unreadable: np.ndarray) -> np.ndarray:
    """bool [n]: cells that do not read, but are numbers with marks between their digits."""
    text = column.filter(pa.array(unreadable)).cast(pa.string()).to_pandas()
    marked = np.zeros(len(unreadable), dtype=bool)
    marked[unreadable] = text.str.strip().str.fullmatch(NUMBER_WITH_MARKS).to_numpy(dtype=bool)
    return marked


def _reads(texts: list[str], decimal: str) -> bool:
    read = pd.to_numeric(_with_points(pd.Series(texts, dtype=object), decimal), errors="coerce")
    return bool(read.notna().all())


def _note_thousands(column: pa.ChunkedArray, name: str, roles: Roles, cells: Cells) -> None:
    """Say that 1.001 beside 985 may be a thousand and one: all with three decimals, none of the others with any."""
    if not pa.types.is_string(column.type) or cells.options.decimal is not None:
        return
    texts = [cell for cell in pc.unique(column).slice(0, SEEN).to_pylist() if cell and cell not in MISSING]
    pointed = [text for text in texts if "." in text]
    if not pointed or len(pointed) == len(texts) or not all(GROUPS_OF_POINTS.fullmatch(text) for text in pointed):
        return
    if all(re.fullmatch(r"[+-]?\d{1,3}", text) for text in texts if "." not in text):
        message = f"'{pointed[0]}' in the column '{name}' was read as {float(pointed[0]):.15g}"
        fix = f'if it means {pointed[0].replace(".", "")}, have points read as separators of thousands: --decimal ","'
        beside = column_of(name, roles)
        series_id = None if roles.id or beside else name
        cells.log.add(
            Problem(kind="thousands", series_id=series_id, message=message, fix=fix, severity="note", column=beside)
        )


def named_series(raw: RawTable, name: str, roles: Roles, place: int) -> str | None:
    """The series of a cell: in a long table it is named by other columns of the same row; None where all share it."""
    if roles.id:
        return "/".join(str(raw.columns[each][place].as_py()).strip() for each in roles.id)
    return name if name in roles.values else None


def column_of(name: str, roles: Roles) -> str | None:
    """The name of a column beside the targets, None for one of a target."""
    return None if name in roles.values else name


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True
