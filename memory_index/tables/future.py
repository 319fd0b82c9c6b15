"""Tables of the future: the known covariates of the steps after the last target value, joined to those of a table.

All that is wrong is gathered as in `reading.py`; `read_future` raises the first fault, `cli data check --future` lists
all. A fault names series, time and column.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow.compute as pc

from memory_index.covariates import Covariate, CovariateValues
from memory_index.errors import UsageError
from memory_index.tables.calendar import calendar_values
from memory_index.tables.columns import ID_NAMES, MISSING, VALUE_NAMES, ReadOptions, Roles, find_time, id_columns
from memory_index.tables.covariate_columns import CovariateCells, read_cells
from memory_index.tables.frames import arrow_table
from memory_index.tables.numbers import Cells
from memory_index.tables.problems import Problem, ProblemLog
from memory_index.tables.recorded_roles import like_remembered
from memory_index.tables.rows import raw_table, series_codes, without_blank_rows
from memory_index.tables.series import SeriesTable
from memory_index.tables.steps_ahead import covariates_ahead, missing_future, stretches
from memory_index.tables.table_files import RawTable
from memory_index.tables.timestamps import TimeColumn, parse_times
from memory_index.windows import Step

FAR = 1.0  # past ranges beyond the past range: another unit rather than an unusual day
FIX_TIMES = "'cli data future' writes a table with the expected times"


def read_future(
    source: Any, table: SeriesTable, options: ReadOptions | None = None, *, horizon: int | None = None
) -> SeriesTable:
    """The table with covariates that reach as far as a table of the future says.

    source: path of a CSV or Parquet file, or a DataFrame as `read_frame` takes. It is laid out like the table: a wide
    one has the times and the known columns, a long one names the series as well. Its rows are the steps after the last
    target value (of a wide table: after that of any series), without a gap. What it says of a step replaces what the
    table says of it. options: those that the table was read with. horizon: steps that every series must have; default
    as many as the longest.

    Raises `DataError` for the first fault (target columns that hold values; columns, series or kinds of values that the
    table does not have; times that are not the expected ones; too few steps; missing and infinite values),
    `NotFoundError` for a file that is not there, and `UsageError` for a table without known covariates. Words that were
    never seen and values far outside their past range are in the notes of the result.
    """
    is_file = isinstance(source, str | Path)
    log = ProblemLog(source=Path(source).name if is_file else "the table of the future")
    result = assemble_future(source, table, options or ReadOptions(), log, horizon=horizon)
    log.raise_faults()
    return replace(result, notes=(*table.notes, *log.notes))


def assemble_future(
    source: Any, table: SeriesTable, options: ReadOptions, log: ProblemLog, *, horizon: int | None
) -> SeriesTable:
    """The same; faults go to the log. Raises `DataError` where nothing more can be read."""
    columns = () if table.covariates is None else table.covariates.columns
    if not any(column.role == "known" and not column.source for column in columns):
        raise UsageError(
            f"{table.source} has no known covariate that a table of the future could fill in",
            hint="name the columns whose future is known with --known",
        )
    options = options_like(table, options)
    raw = without_blank_rows(raw_table(opened(source), options, log), log)
    options = like_remembered(options, raw.columns)
    roles = _roles(raw, table, options, log)
    codes, names = series_codes(raw, roles.id, log)
    times, zone = parse_times(
        TimeColumn(
            column=raw.columns[roles.time], row_number=raw.row_number, groups=codes, options=options.of_times, log=log
        )
    )
    require_same_zone(zone, table, log)
    clock = Step(frequency="h", time_zone=table.step.time_zone)

    def moment(place: int) -> str | None:
        return None if np.isnat(times[place]) else clock.isoformat(times[place])

    cells = Cells(options=options, log=log, moment=moment)
    _refuse_targets(raw, table, roles, options, cells)
    found = read_cells(raw, roles, cells)
    rows = _rows(raw, times, codes, names, table, options, log)
    if found is None or not len(rows.place):
        message = "there is no row with a time and a known covariate"
        log.stop(Problem(kind="empty", message=message, fix=FIX_TIMES))
    _refuse_other_calendar(found, rows, raw, times, columns, table.step, log)
    result = _joined(table, found, rows, horizon or 0)
    most = horizon if horizon is not None else int(rows.step.max()) + 1
    _note_missing(result, most, rows, log)
    _note_far(table, result, log)
    return result


def require_same_zone(zone: str | None, table: SeriesTable, log: ProblemLog) -> None:
    """Raise `DataError` if times have a zone and those of the table have none, or the other way round."""
    if (zone is None) != (table.step.time_zone is None):
        have, had = ("no", "one") if zone is None else ("a", "none")
        message = f"the times have {have} time zone or UTC offset, those of {table.source} have {had}"
        log.stop(Problem(kind="time", message=message, fix="write the times of both tables in the same way"))


def opened(source: Any) -> Any:
    """A path, or a table of Python that `raw_table` takes. Raises `UsageError` for what is neither."""
    if isinstance(source, str | Path):
        return Path(source)
    frame = source if isinstance(source, pd.DataFrame) else arrow_table(source)
    if frame is None:
        raise UsageError(f"a table is a file or a pandas DataFrame, not of the type {type(source).__name__}")
    return frame


def options_like(table: SeriesTable, options: ReadOptions) -> ReadOptions:
    """Options to read another table for this one: its step, its zone, its kinds of values and their words."""
    assert table.covariates is not None, "it has some"
    return replace(
        options,
        step=table.step.frequency,
        time_zone=options.time_zone or table.step.time_zone,
        recorded=tuple(replace(column, source="") for column in table.covariates.columns),
    )


def _roles(raw: RawTable, table: SeriesTable, options: ReadOptions, log: ProblemLog) -> Roles:
    """What the columns are. Those that a table of the future cannot have are noted as faults."""
    assert table.covariates is not None, "it has some"
    columns = {column.name: column for column in table.covariates.columns}
    names = [name for name in raw.columns if name not in options.ignore]
    free = [name for name in names if name not in columns]
    given = options.time_column
    time = given if given in raw.columns else find_time(raw, free, replace(options, time_column=None), log)
    ids = _ids(raw, [name for name in free if name != time], options, log) if table.layout == "long" else ()
    targets = _targets(raw, table, options)
    for name in free:
        if name not in (time, *ids, *targets):
            message = f"{table.source} has no column '{name}'"
            fix = f'leave it out with --ignore "{name}", or give the history this column and a role'
            log.add(Problem(kind="column", column=name, message=message, fix=fix))
    for name in names:
        if name in columns and columns[name].role != "known":
            message = f"the column '{name}' is not used: it is {columns[name].role}, which has no future"
            log.add(Problem(kind="unused", column=name, message=message, fix="nothing to do", severity="note"))
    known = tuple((name, columns[name].role) for name in names if name in columns and columns[name].role == "known")
    return Roles(time=time, id=ids, values=(), covariates=known)


def _ids(raw: RawTable, free: list[str], options: ReadOptions, log: ProblemLog) -> tuple[str, ...]:
    given = id_columns(raw, options)
    if given and all(name in raw.columns for name in given):
        return given
    found = [name for name in free if name in ID_NAMES]
    if len(found) != 1:
        message = "no column names the series of the rows"
        log.stop(Problem(kind="series", message=message, fix="call it unique_id, or name it with --id-column"))
    return (found[0],)


def _targets(raw: RawTable, table: SeriesTable, options: ReadOptions) -> tuple[str, ...]:
    if table.layout == "wide":
        return tuple(name for name in table.series_ids if name in raw.columns)
    named = options.value_column
    return tuple(name for name in ((named,) if named else VALUE_NAMES) if name in raw.columns)


def _refuse_targets(raw: RawTable, table: SeriesTable, roles: Roles, options: ReadOptions, cells: Cells) -> None:
    """Note target columns that hold values: they would be looked at, or be ignored, and both are wrong."""
    for name in _targets(raw, table, options):
        text = pc.utf8_trim_whitespace(raw.columns[name].cast("string")).to_pandas()
        held = np.flatnonzero(~(text.isna() | text.isin((*MISSING, *options.missing))).to_numpy())
        if not len(held):
            continue
        place = int(held[0])
        series = name if not roles.id else str(raw.columns[roles.id[0]][place].as_py()).strip()
        cells.log.add(
            Problem(
                kind="target",
                series_id=series,
                at=cells.moment(place),
                row=int(raw.row_number[place]),
                message=f"the target column '{name}' holds {len(held)} values of the future",
                fix="leave the column out, or empty; values that have come belong into the history",
                column=name,
            )
        )


class _Rows(NamedTuple):
    """The rows that are used: their places in the file, the number of their series (0 in a wide table), and their step
    after the last target value, counted from 0. int64 [n] each.
    """

    place: np.ndarray
    series: np.ndarray
    step: np.ndarray


def _rows(
    raw: RawTable,
    times: np.ndarray,
    codes: np.ndarray,
    names: list[str],
    table: SeriesTable,
    options: ReadOptions,
    log: ProblemLog,
) -> _Rows:
    """Find the step of each row; note other series, and times that are not expected or there twice."""
    last = np.array([series.times[-1] for series in table.series])
    if table.layout == "wide":
        last, numbers = last.max(keepdims=True), np.zeros(len(raw), dtype=np.int64)
    else:
        known = {name: number for number, name in enumerate(table.series_ids)}
        numbers = np.append([known.get(name, -1) for name in names], -1).astype(np.int64)[codes]
        for name in (name for name in names if name not in known and name not in options.ignore):
            message = f"{table.source} has no such series"
            fix = f'correct the name, or leave it out with --ignore "{name}"'
            log.add(Problem(kind="series", series_id=name, message=message, fix=fix))
    step = np.full(len(raw), -1)
    usable = (numbers >= 0) & ~np.isnat(times)
    ends, end_of = np.unique(last, return_inverse=True)
    most = int(np.bincount(numbers[usable], minlength=len(last)).max()) if usable.any() else 0
    end_of_row = np.where(usable, end_of[np.maximum(numbers, 0)], -1)
    order = np.argsort(end_of_row, kind="stable")
    edges = np.searchsorted(end_of_row[order], np.arange(len(ends) + 1))
    for number, end in enumerate(ends):
        rows = order[edges[number] : edges[number + 1]]
        expected = table.step.range(end, 2 * most + 1)[1:]  # steps may be missing in between
        place = np.minimum(np.searchsorted(expected, times[rows]), len(expected) - 1)
        if len(rows):
            step[rows] = np.where(expected[place] == times[rows], place, -1)
    _note_times(raw, times, np.flatnonzero(usable & (step < 0)), numbers, last, table, log)
    good = np.flatnonzero(step >= 0)
    good = good[np.lexsort((step[good], numbers[good]))]
    again = (np.diff(numbers[good]) == 0) & (np.diff(step[good]) == 0)
    _note_twice(raw, times, good[1:][again], numbers, table, log)
    good = good[np.append(True, ~again)] if len(good) else good
    return _Rows(good, numbers[good], step[good])


def _note_times(
    raw: RawTable,
    times: np.ndarray,
    places: np.ndarray,
    numbers: np.ndarray,
    last: np.ndarray,
    table: SeriesTable,
    log: ProblemLog,
) -> None:
    def problem_at(place: int) -> Problem:
        end = last[numbers[place]]
        first = table.step.isoformat(table.step.range(end, 2)[1])
        what = f"the time is not one of the expected steps: they are '{table.step.frequency}' from {first} on, in a row"
        if times[place] <= end:
            what = f"the time is not after the last target value, at {table.step.isoformat(end)}; {first} is expected"
        return _at_row(raw, times, place, numbers, table, kind="time", message=what)

    log.add_at(places, len(places), problem_at, kind="time")


def _note_twice(
    raw: RawTable, times: np.ndarray, places: np.ndarray, numbers: np.ndarray, table: SeriesTable, log: ProblemLog
) -> None:
    def problem_at(place: int) -> Problem:
        return _at_row(raw, times, place, numbers, table, kind="duplicate", message="the time is there twice")

    log.add_at(places, len(places), problem_at, kind="duplicate")


def _at_row(
    raw: RawTable, times: np.ndarray, place: int, numbers: np.ndarray, table: SeriesTable, *, kind: str, message: str
) -> Problem:
    series_id = None if table.layout == "wide" else table.series_ids[numbers[place]]
    at, row = table.step.isoformat(times[place]), int(raw.row_number[place])
    return Problem(kind=kind, series_id=series_id, at=at, row=row, message=message, fix=FIX_TIMES)


def _refuse_other_calendar(
    found: CovariateCells,
    rows: _Rows,
    raw: RawTable,
    times: np.ndarray,
    columns: Sequence[Covariate],
    step: Step,
    log: ProblemLog,
) -> None:
    """Note cells that differ from what the calendar makes: it cannot be changed by a table."""
    made = {column.name: column for column in columns if column.source}
    for line, column in zip(found.values, found.columns, strict=True):
        if column.name not in made:
            continue
        theirs = line[rows.place]
        [ours] = calendar_values([made[column.name]], times[rows.place], step)
        other = np.flatnonzero(~np.isnan(theirs) & ~np.isclose(theirs, ours, atol=1e-6))

        def problem_at(place: int, name: str = column.name, source: str = made[column.name].source) -> Problem:
            at = step.isoformat(times[rows.place[place]])
            message = f"'{name}' differs from what it is by the {source}"
            fix = "leave the column out: it is made of the times"
            row = int(raw.row_number[rows.place[place]])
            return Problem(kind="calendar", at=at, row=row, message=message, fix=fix, column=name)

        log.add_at(other, len(other), problem_at, kind="calendar")


def _joined(table: SeriesTable, found: CovariateCells, rows: _Rows, horizon: int) -> SeriesTable:
    """The table with the values of these rows."""
    ahead = covariates_ahead(table, max(horizon, int(rows.step.max()) + 1))
    assert ahead.covariates is not None, "it has some"
    names = ahead.covariates.names
    use = [n for n, c in enumerate(found.columns) if not ahead.covariates.columns[names.index(c.name)].source]
    place_of = [names.index(found.columns[number].name) for number in use]
    every = list(ahead.covariates.series)
    edges = np.searchsorted(rows.series, np.arange(len(every) + 1))
    for number, one in enumerate(stretches(ahead)):
        part = slice(edges[number], edges[number + 1])
        if rows.place[part].size == 0:
            continue
        values, at = one.covariates.values.copy(), one.num_target + rows.step[part]
        for line, place in zip(use, place_of, strict=True):
            given = found.values[line, rows.place[part]]
            values[place, at] = np.where(np.isnan(given), values[place, at], given)
        filled = CovariateValues(times=one.covariates.times, values=values)
        for each in one.numbers:
            every[each] = filled
    return replace(table, covariates=replace(ahead.covariates, series=tuple(every)))


def _note_missing(result: SeriesTable, horizon: int, rows: _Rows, log: ProblemLog) -> None:
    """Note, for each series and column, that known values are missing of the next `horizon` steps."""
    missing = missing_future(result, horizon)
    num_rows = dict(zip(*np.unique(rows.series, return_counts=True), strict=True))
    number_of = {name: number for number, name in enumerate(result.series_ids)}

    def problem_at(place: int) -> Problem:
        one = missing[place]
        has = int(num_rows.get(number_of[one.series_id] if one.series_id is not None else 0, 0))
        until = "" if one.num_steps == 1 else f", and at {one.num_steps - 1} more steps up to {one.until}"
        short = f" ({has} rows of {horizon} steps)" if has < horizon else ""
        return Problem(
            kind="future",
            series_id=one.series_id,
            at=one.at,
            message=f"the known column '{one.column}' has no value here{until}{short}",
            fix=f"fill it in; {FIX_TIMES}",
            column=one.column,
        )

    log.add_at(range(len(missing)), len(missing), problem_at, kind="future")


def _note_far(table: SeriesTable, result: SeriesTable, log: ProblemLog) -> None:
    """Warn of numbers that lie far outside the range of their past, as in another unit."""
    assert table.covariates is not None, "it has some"
    past, future = list(stretches(table)), list(stretches(result))
    for number, column in enumerate(table.covariates.columns):
        if column.role != "known" or column.kind != "number" or column.source:
            continue
        before = _range([one.covariates.values[number, : one.num_target] for one in past])
        ahead = _range([one.covariates.values[number, one.num_target :] for one in future])
        reach = FAR * (before[1] - before[0])
        if ahead[0] < before[0] - reach or ahead[1] > before[1] + reach:
            message = (
                f"'{column.name}' goes from {ahead[0]:g} to {ahead[1]:g}, in the past from {before[0]:g} to "
                f"{before[1]:g}: another unit?"
            )
            fix = "nothing to do if this is real"
            log.add(Problem(kind="range", column=column.name, message=message, fix=fix, severity="note"))


def _range(parts: list[np.ndarray]) -> tuple[float, float]:
    known = [part[~np.isnan(part)] for part in parts]
    low = min((float(part.min()) for part in known if len(part)), default=np.nan)
    return low, max((float(part.max()) for part in known if len(part)), default=np.nan)
