"""CSV and Parquet files -> `SeriesTable`: the one door through which every user's file goes.

`read_table` raises the first fault; `checking.check_table` runs the same passes and reports all of them.
Opening files is `table_files.py`, columns are `columns.py`, times are `timestamps.py`; what is left to this
file is cells to numbers and rows to series. Duplicates, gaps and filling are `regular.py`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from memory_index.errors import DataError, UsageError
from memory_index.tables.columns import MISSING, ReadOptions, Roles, find_roles, require_known, time_candidates
from memory_index.tables.problems import Problem, ProblemLog
from memory_index.tables.regular import Block, Grid, regular
from memory_index.tables.series import SeriesTable
from memory_index.tables.steps import infer_step, step_of
from memory_index.tables.table_files import RawTable, frame_columns, read_columns
from memory_index.tables.timestamps import parse_times
from memory_index.windows import Step


def read_table(path: str | Path, options: ReadOptions | None = None) -> SeriesTable:
    """Read a CSV or Parquet file, told apart by its content.

    The result has float64 values on a regular grid and datetime64[ns] times (UTC if zoned); all series
    of a wide table share one array of times. What was done to the file on request (filled, sorted,
    left out), and what is no fault but worth a look, is in `SeriesTable.notes`.

    Raises `DataError` for the first fault in the file (file, series, time stamp, row, and the flag that
    resolves it), `NotFoundError` (no such file or column), `UsageError` (an option) and `ResourceError`
    (larger than `options.max_cells`).
    """
    log = ProblemLog(source=Path(path).name)
    table, _ = assemble(Path(path), options or ReadOptions(), log)
    log.raise_faults()
    return table


def read_frame(frame: pd.DataFrame, options: ReadOptions | None = None) -> SeriesTable:
    """A DataFrame, wide or long, read just as `read_table` reads a file.

    An index of times is the time column of a frame that has no other, named as it is, or `ds`; else the index is not
    read. Raises what `read_table` raises, and `UsageError` for what is no DataFrame.
    """
    if not isinstance(frame, pd.DataFrame):
        hint = "series.to_frame() makes one; a file is read with pandas.read_csv or memory_index.read_table"
        raise UsageError(f"a table is a pandas DataFrame, not of the type {type(frame).__name__}", hint=hint)
    log = ProblemLog(source="the table")
    table, _ = assemble(frame, options or ReadOptions(), log)
    log.raise_faults()
    return table


DECIMAL_COMMA = re.compile(r"\s*[+-]?\d+,\d+\s*")


@dataclass(frozen=True, kw_only=True, slots=True)
class Cells:
    """What is needed to read cells and to say where a bad one is. moment: ISO 8601 of a row, None if it has no time."""

    missing: tuple[str, ...]
    log: ProblemLog
    moment: Callable[[int], str | None]


def assemble(source: Path | pd.DataFrame, options: ReadOptions, log: ProblemLog) -> tuple[SeriesTable, int]:
    """The table of a file or DataFrame and its number of rows.

    Faults go to the log and are worked around where possible. Raises what `read_table` raises, but for faults that do
    not hinder reading on.
    """
    if isinstance(source, pd.DataFrame):
        raw = _frame_columns(source, options, log)
    else:
        raw = read_columns(source, log, max_cells=options.max_cells)
    raw = _without_blank_rows(raw, log)
    roles = find_roles(raw, options, log)
    times, zone = parse_times(
        raw.columns[roles.time],
        raw.row_number,
        log,
        time_format=options.time_format,
        time_zone=options.time_zone,
        step=options.step,
    )
    clock = Step(frequency="h", time_zone=zone)

    def moment(place: int) -> str | None:
        return None if np.isnat(times[place]) else clock.isoformat(times[place])

    blocks = list(_blocks(raw, roles, times, Cells(missing=options.missing, log=log, moment=moment), options))
    if not blocks:
        log.raise_faults()
        message = "there is no row with a time and a number"
        log.stop(Problem(kind="empty", message=message, fix="give a file with at least one numeric column"))
    step = step_of(options.step, zone) if options.step else _inferred(blocks, zone, log)
    grid = Grid(step=step, options=options, log=log)
    try:
        series = [one for block in blocks for one in regular(block, grid)]
    except DataError as error:  # the step's, where the zone has no such moment
        log.stop(Problem(kind="time", message=str(error), fix=error.hint))
    for what, count in grid.changes.items():
        log.add(Problem(kind="changed", message=f"{count} {what}", fix="", severity="note"))
    return SeriesTable(step=step, layout=roles.layout, series=tuple(series), source=log.source, notes=log.notes), len(
        raw
    )


def _frame_columns(frame: pd.DataFrame, options: ReadOptions, log: ProblemLog) -> RawTable:
    """The columns of a DataFrame; its index of times is the first of them if no other can be the time."""
    raw = frame_columns(frame, log, max_cells=options.max_cells)
    named = options.time_column
    if not isinstance(frame.index, pd.DatetimeIndex) or named in raw.columns:
        return raw
    names = [name for name in raw.columns if name not in options.ignore]
    if named is None and time_candidates(raw, names):
        return raw
    whole = frame.reset_index(names=str(frame.index.name or "ds"), allow_duplicates=True)
    return frame_columns(whole, log, max_cells=options.max_cells)


def _without_blank_rows(raw: RawTable, log: ProblemLog) -> RawTable:
    first = next(iter(raw.columns.values()))
    if not pa.types.is_string(first.type):
        return raw
    blank = pc.equal(first, "")
    for column in raw.columns.values():
        if not pc.any(blank).as_py():
            return raw
        blank = pc.and_(blank, pc.equal(column, ""))
    keep = ~blank.to_numpy(zero_copy_only=False) if isinstance(blank, pa.Array) else ~np.asarray(blank.to_numpy())
    if not keep.any():
        log.stop(
            Problem(kind="empty", message="the file has a header but only blank lines", fix="give a file with rows")
        )
    mask = pa.array(keep)
    return RawTable(
        columns={name: column.filter(mask) for name, column in raw.columns.items()}, row_number=raw.row_number[keep]
    )


def _blocks(raw: RawTable, roles: Roles, times: np.ndarray, cells: Cells, options: ReadOptions) -> Iterator[Block]:
    """The usable rows of a file as one block (wide) or one per series in order of appearance (long)."""
    columns = {name: _numbers(raw, name, roles, cells) for name in roles.values}
    used = {name: column for name, column in columns.items() if column is not None}
    known = np.flatnonzero(~np.isnat(times))
    if not used or len(known) == 0:
        return
    whole = Block(
        series_ids=tuple(used),
        times=times,
        values=np.stack([values for values, _ in used.values()]),
        row_number=raw.row_number,
        unreadable=np.stack([unreadable for _, unreadable in used.values()]),
    )
    if roles.id is None:
        yield whole if len(known) == len(times) else whole.take(known)
        return
    codes, names = _series_codes(raw, roles.id, cells.log)
    wanted = _wanted_series(names, raw, options, cells.log)
    order = known[np.argsort(codes[known], kind="stable")]
    starts = np.flatnonzero(np.diff(codes[order], prepend=-2))
    for rows in np.split(order, starts[1:]):
        if codes[rows[0]] >= 0 and names[codes[rows[0]]] in wanted:
            yield replace(whole.take(rows), series_ids=(names[codes[rows[0]]],))


def _series_codes(raw: RawTable, name: str, log: ProblemLog) -> tuple[np.ndarray, list[str]]:
    """(number of the series of each row, -1 without a name; names in order of appearance)."""
    text = pc.utf8_trim_whitespace(raw.columns[name].cast(pa.string())).to_pandas().replace("", None)
    codes, names = pd.factorize(text)
    unnamed = np.flatnonzero(codes < 0)

    def problem_at(place: int) -> Problem:
        fix = "fill in the name, or remove the row"
        return Problem(
            kind="unnamed", row=int(raw.row_number[place]), message=f"the row names no series in '{name}'", fix=fix
        )

    log.add_at(unnamed, len(unnamed), problem_at, kind="unnamed")
    return codes, [str(each) for each in names]


def _wanted_series(names: list[str], raw: RawTable, options: ReadOptions, log: ProblemLog) -> set[str]:
    """The series of a long table that are to be read. Raises `NotFoundError` for one that is not there."""
    left_out = [name for name in options.ignore if name not in raw.columns]
    for name in (*(options.columns or ()), *left_out):
        require_known(name, names, log, what="series")
    return set(names if options.columns is None else options.columns) - set(left_out)


def _numbers(raw: RawTable, name: str, roles: Roles, cells: Cells) -> tuple[np.ndarray, np.ndarray] | None:
    """A column as float64 [n], NaN where missing, and bool [n] where its text is no number.

    None, and a fault, if the column holds no number at all.
    """
    column = raw.columns[name]
    unreadable = np.zeros(len(raw), dtype=bool)
    try:
        values = np.asarray(column.cast(pa.float64()).to_numpy(), dtype=np.float64)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        text = pc.utf8_trim_whitespace(column.cast(pa.string())).to_pandas()
        missing = (text.isna() | text.isin((*MISSING, *cells.missing))).to_numpy()
        values = pd.to_numeric(text.mask(missing).astype(object), errors="coerce").to_numpy(dtype=np.float64)
        unreadable = np.isnan(values) & ~missing
    if cells.missing:
        values = np.where(np.isin(values, [float(cell) for cell in cells.missing if _is_number(cell)]), np.nan, values)
    if np.isnan(values).all():
        cell = column[int(unreadable.argmax())].as_py()
        what = f"holds no number (its first text is '{cell}')" if unreadable.any() else "is empty"
        fix = f'leave it out with --ignore "{name}"' if roles.id is None else "name the right one with --value-column"
        if DECIMAL_COMMA.fullmatch(str(cell)):
            fix = "write numbers with a decimal point"
        problem = Problem(
            kind="column", series_id=name if roles.id is None else None, message=f"the column '{name}' {what}", fix=fix
        )
        cells.log.add(problem)
        return None

    def problem_at(place: int) -> Problem:
        cell = column[place].as_py()
        return Problem(
            kind="not-a-number",
            # In a long table the series is named by another column of the same row.
            series_id=name if roles.id is None else str(raw.columns[roles.id][place].as_py()),
            at=cells.moment(place),
            row=int(raw.row_number[place]),
            message=f"'{cell}' in the column '{name}' is not a number",
            fix=f'correct the cell, or say that it means no value: --missing "{cell}"',
        )

    cells.log.add_at(np.flatnonzero(unreadable), int(unreadable.sum()), problem_at, kind="not-a-number")
    return values, unreadable


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _inferred(blocks: list[Block], zone: str | None, log: ProblemLog) -> Step:
    longest = max(blocks, key=lambda block: len(block.times))
    distinct = np.unique(longest.times)
    step = infer_step(distinct, zone)
    if step is None:
        what = "has one time stamp only" if len(distinct) < 2 else "has no regular step"
        series_id = None if len(longest.series_ids) > 1 else longest.series_ids[0]
        message = f"the time column {what}, from {distinct[0]} to {distinct[-1]}"
        fix = "name the step with --step (a pandas frequency), or resample the data to one"
        log.stop(Problem(kind="step", series_id=series_id, message=message, fix=fix))
    return step
