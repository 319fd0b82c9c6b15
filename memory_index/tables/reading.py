"""CSV and Parquet files -> `SeriesTable`: the one door through which every user's file goes.

`read_table` raises the first fault; `checking.check_table` runs the same passes and reports all of them.
Opening files is `table_files.py`, tables of Python `frames.py`, columns `columns.py`, times `timestamps.py`, numbers
`numbers.py`, raw rows `rows.py`; what is left to this file is rows to series. Duplicates, gaps and filling are
`regular.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from memory_index.covariates import Covariates, CovariateValues
from memory_index.errors import DataError, UsageError
from memory_index.tables.calendar import features_by_step, with_calendar
from memory_index.tables.columns import ReadOptions, Roles, find_roles, require_known
from memory_index.tables.covariate_columns import CovariateCells, note_values, read_cells
from memory_index.tables.frames import arrow_table
from memory_index.tables.irregular import inferred_step, named_step
from memory_index.tables.numbers import Cells, numbers
from memory_index.tables.problems import Problem, ProblemLog
from memory_index.tables.ranges import note_ranges
from memory_index.tables.recorded_roles import like_remembered, remembered_of
from memory_index.tables.regular import Block, Grid, regular
from memory_index.tables.rows import raw_table, series_codes, without_blank_rows
from memory_index.tables.series import SeriesTable
from memory_index.tables.table_files import RawTable
from memory_index.tables.timestamps import TimeColumn, parse_times
from memory_index.tables.vintages import with_vintages
from memory_index.windows import Step


def read_table(path: str | Path, options: ReadOptions | None = None) -> SeriesTable:
    """Read a CSV or Parquet file, told apart by its content.

    The result has float64 values on a regular grid and datetime64[ns] times (UTC if zoned); series that cover the same
    steps share one array of times. A series ends with its last value: empty cells behind it are steps that are not
    there yet. What was done to the file on request (filled, sorted, left out), and what is no fault but worth a look,
    is in `SeriesTable.notes`.

    Raises `DataError` for the first fault in the file (file, series, time stamp, row, and the flag that
    resolves it), `NotFoundError` (no such file or column), `UsageError` (an option) and `ResourceError`
    (larger than `options.max_cells`).
    """
    log = ProblemLog(source=Path(path).name)
    table, _ = assemble(Path(path), options or ReadOptions(), log)
    log.raise_faults()
    return _with_vintages(table, options)


def read_frame(frame: Any, options: ReadOptions | None = None) -> SeriesTable:
    """A DataFrame, wide or long, read just as `read_table` reads a file.

    frame: of pandas; or of polars or any other library that hands its tables on as Arrow or by the dataframe protocol.
    What a pandas index holds is a column if it says something: names of series, periods, several levels; times if the
    frame has no other time column. Raises what `read_table` raises, and `UsageError` for what is no table.
    """
    source = frame if isinstance(frame, pd.DataFrame) else arrow_table(frame)
    if source is None:
        hint = "series.to_frame() makes one; a file is read with pandas.read_csv or memory_index.read_table"
        raise UsageError(f"a table is a pandas DataFrame, not of the type {type(frame).__name__}", hint=hint)
    log = ProblemLog(source="the table")
    table, _ = assemble(source, options or ReadOptions(), log)
    log.raise_faults()
    return _with_vintages(table, options)


def _with_vintages(table: SeriesTable, options: ReadOptions | None) -> SeriesTable:
    """The table with the vintages that the options name."""
    if options is None or options.vintages is None:
        return table
    return with_vintages(table, options.vintages, options)


def assemble(source: Path | pd.DataFrame | pa.Table, options: ReadOptions, log: ProblemLog) -> tuple[SeriesTable, int]:
    """The table of a file or DataFrame and its number of rows.

    Faults go to the log and are worked around where possible. Raises what `read_table` raises, but for faults that do
    not hinder reading on.
    """
    raw = without_blank_rows(raw_table(source, options, log), log)
    options = like_remembered(options, raw.columns)
    reading = remembered_of(options, raw.columns)
    roles = find_roles(raw, options, log)
    codes, names = series_codes(raw, roles.id, log)
    times, zone = parse_times(
        TimeColumn(
            column=raw.columns[roles.time], row_number=raw.row_number, groups=codes, options=options.of_times, log=log
        )
    )
    clock = Step(frequency="h", time_zone=zone)

    def moment(place: int) -> str | None:
        return None if np.isnat(times[place]) else clock.isoformat(times[place])

    num_rows = len(raw)
    cells = Cells(options=options, log=log, moment=moment)
    whole, beside = _whole(raw, roles, times, cells), read_cells(raw, roles, cells)
    if whole is not None and beside is not None:
        whole = replace(whole, covariates=beside.values)
    blocks: list[Block] = []
    if whole is not None and roles.id:
        wanted = _wanted_series(names, raw, options, log)
        del raw  # of tens of millions of rows
        pa.default_memory_pool().release_unused()
        blocks = list(_of_series(whole, codes, names, wanted))
    elif whole is not None:
        blocks = [whole.take(np.flatnonzero(~np.isnat(times)))] if np.isnat(times).any() else [whole]
    if not blocks:
        log.raise_faults()
        message = "there is no row with a time and a number"
        log.stop(Problem(kind="empty", message=message, fix="give a file with at least one numeric column"))
    step = named_step(options.step, blocks, zone, log) if options.step else inferred_step(blocks, zone, log)
    try:
        grid = Grid.over(blocks, step, options, log, () if beside is None else beside.columns)
        found = [each for block in blocks for each in regular(block, grid)]
    except DataError as error:  # the step's, where the zone has no such moment
        log.stop(Problem(kind="time", message=str(error), fix=error.hint))
    series = tuple(one for one, _ in found)
    note_ranges(series, step, log)
    for what, count in grid.changes.items():
        log.add(Problem(kind="changed", message=f"{count} {what}", fix="", severity="note"))
    table = SeriesTable(
        step=step,
        layout=roles.layout,
        series=series,
        source=log.source,
        reading=reading,
        whole_windows="drop" in (options.on_gap, options.on_nan),
    )
    table = _with_covariates(table, beside, [values for _, values in found if values is not None], options, log)
    return replace(table, notes=log.notes), num_rows


def _with_covariates(
    table: SeriesTable,
    beside: CovariateCells | None,
    every: list[CovariateValues],
    options: ReadOptions,
    log: ProblemLog,
) -> SeriesTable:
    """The table with the columns beside its targets, and those that the calendar makes."""
    if beside is not None:
        covariates = Covariates(columns=beside.columns, series=tuple(every))
        note_values(covariates, log)
        table = replace(table, covariates=covariates)
    features = tuple(name for name in options.calendar if name != "none")
    if features == ("auto",):
        features = features_by_step(table.step, table.times)
    return with_calendar(table, features, options.holidays)


def _whole(raw: RawTable, roles: Roles, times: np.ndarray, cells: Cells) -> Block | None:
    """All rows with a time as one block, as if they were of one table; None if there is no number."""
    columns = {name: numbers(raw, name, roles, cells) for name in roles.values}
    used = {name: column for name, column in columns.items() if column is not None}
    if not used or np.isnat(times).all():
        return None
    return Block(
        series_ids=tuple(used),
        times=times,
        values=_stacked([values for values, _ in used.values()]),
        row_number=raw.row_number,
        unreadable=_stacked([unreadable for _, unreadable in used.values()]),
    )


def _stacked(lines: list[np.ndarray]) -> np.ndarray:
    """[n] each -> [N, n], without a copy of a single one."""
    return lines[0][None] if len(lines) == 1 else np.stack(lines)


def _of_series(whole: Block, codes: np.ndarray, names: list[str], wanted: set[str]) -> Iterator[Block]:
    """The rows of each wanted series, in order of appearance."""
    if np.isnat(whole.times).any() or codes.min(initial=0) < 0 or (codes[1:] < codes[:-1]).any():
        known = np.flatnonzero(~np.isnat(whole.times) & (codes >= 0))
        order = known[np.argsort(codes[known], kind="stable")]
        whole, codes = whole.take(order), codes[order]
    edges = np.flatnonzero(np.diff(codes, prepend=-2, append=-2))
    for start, end in pairwise(edges):
        if (name := names[codes[start]]) in wanted:
            yield replace(whole.take(slice(start, end)), series_ids=(name,))


def _wanted_series(names: list[str], raw: RawTable, options: ReadOptions, log: ProblemLog) -> set[str]:
    """The series of a long table that are to be read. Raises `NotFoundError` for one that is not there."""
    there, left_out = set(names), [name for name in options.ignore if name not in raw.columns]
    for name in (*(options.columns or ()), *left_out):
        if name not in there:
            require_known(name, names, log, what="series")
    return (there if options.columns is None else set(options.columns)) - set(left_out)
