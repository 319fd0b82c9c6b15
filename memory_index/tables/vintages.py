"""Tables of vintages: values of known columns with the time at which each was issued -> `Vintages`.

Rows are `unique_id, column, ds, issued_at, value`, or `unique_id, ds, issued_at` and a column of values for each
covariate; `unique_id` is left out where all series of the table share their covariates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from memory_index.covariates import Covariate, Covariates, CovariateValues, Vintages
from memory_index.errors import DataError, UsageError
from memory_index.tables.calendar import times_beside
from memory_index.tables.columns import ID_NAMES, TIME_NAMES, ReadOptions, Roles, id_columns, require_known
from memory_index.tables.covariate_columns import read_cells
from memory_index.tables.future import opened, require_same_zone
from memory_index.tables.numbers import Cells, named_series
from memory_index.tables.problems import Problem, ProblemLog
from memory_index.tables.recorded_roles import like_remembered
from memory_index.tables.rows import raw_table, series_codes, without_blank_rows
from memory_index.tables.series import SeriesTable
from memory_index.tables.table_files import RawTable
from memory_index.tables.timestamps import TimeColumn, parse_times

ISSUED, COLUMN, VALUE = "issued_at", "column", "value"
FORM = "columns are unique_id, column, ds, issued_at, value, or ds, issued_at and one for each covariate"


def read_vintages(source: Any, table: SeriesTable, options: ReadOptions | None = None) -> Vintages:
    """The vintages of the known columns of a table. source: path of a CSV or Parquet file, or a DataFrame.

    Times are read as those of the table. Empty cells are no values. Raises `DataError` for the first fault (columns or
    series that the table does not have, times that are none or beside the table's steps, values of another kind,
    infinite ones, two values for one issue), `NotFoundError` and `UsageError` as `read_future` does.
    """
    log = _log_of(source)
    result, _ = assemble_vintages(source, table, options or ReadOptions(), log)
    log.raise_faults()
    return result


def with_vintages(table: SeriesTable, source: Any, options: ReadOptions | None = None) -> SeriesTable:
    """The table with vintages, beside those that it has already: what is known of their columns is what was issued.

    source, options: as for `read_vintages`. The columns are known covariates of the table, or named as such in the
    options; what the table itself says of them is not looked at, and a note says so. Raises what `read_vintages`
    raises, `NotFoundError` for a known column of the options that neither table has.
    """
    log, options = _log_of(source), options or ReadOptions()
    found, kinds = assemble_vintages(source, table, options, log)
    log.raise_faults()
    return joined_vintages(table, found, kinds, options, log)


def joined_vintages(
    table: SeriesTable, found: Vintages, kinds: dict[str, Covariate], options: ReadOptions, log: ProblemLog
) -> SeriesTable:
    """The table with what `assemble_vintages` found."""
    given = () if table.covariates is None else table.covariates.columns
    there = {*(column.name for column in given), *found.with_rows}
    for name in options.known:
        require_known(name, there, ProblemLog(source=f"{table.source} with {log.source}"), what="column")
    before = None if table.covariates is None else table.covariates.vintages
    found = found.of_columns(found.with_rows)
    new = [name for name in found.columns if name not in {column.name for column in given}]
    columns = tuple(
        replace(kinds[column.name], vintages=True) if column.name in found.columns else column for column in given
    ) + tuple(replace(kinds[name], vintages=True) for name in new)
    place = np.array([n for n, column in enumerate(given) if column.name in found.columns], dtype=np.int64)
    made: dict[int, CovariateValues] = {}
    every, held = [], np.zeros(len(given), dtype=bool)
    for each in times_beside(table):
        if id(each) not in made:
            values = np.concatenate([each.values, np.full((len(new), len(each.times)), np.nan)])
            held |= np.isfinite(each.values).any(axis=1)
            values[place] = np.nan
            made[id(each)] = CovariateValues(times=each.times, values=values)
        every.append(made[id(each)])
    for number in place:
        if held[number] and not given[number].vintages:
            message = f"what {table.source} says of '{given[number].name}' is not looked at: {log.source} says when it"
            log.add(Problem(kind="unused", message=f"{message} was known", fix="nothing to do", severity="note"))
    vintages = found if before is None else united(before, found, table)
    covariates = Covariates(columns=columns, series=tuple(every), vintages=vintages)
    return replace(table, covariates=covariates, notes=(*table.notes, *log.notes))


def united(before: Vintages, new: Vintages, table: SeriesTable) -> Vintages:
    """Those of two tables together. Raises `DataError` for two values of one issue."""
    columns = tuple(dict.fromkeys((*before.columns, *new.columns)))
    place = np.array([columns.index(name) for name in new.columns], dtype=np.int32)
    whole = replace(before, columns=columns).and_of(replace(new, columns=columns, column=place[new.column]))
    again = np.ones(len(whole) - 1, dtype=bool)
    for name in ("column", "series", "time", "issued_at"):
        again &= getattr(whole, name)[1:] == getattr(whole, name)[:-1]
    if (differs := np.flatnonzero(again & (whole.value[1:] != whole.value[:-1]))).size:
        row = int(differs[0])
        whose = f"series '{whole.series_ids[whole.series[row]]}': " if whole.series_ids else ""
        at, by = (table.step.isoformat(each[row]) for each in (whole.time, whole.issued_at))
        message = f"{whose}'{columns[whole.column[row]]}' at {at} was issued twice at {by} with different values"
        raise DataError(message, hint="keep one of the two tables, or one of the values")
    return whole.take(np.append(True, ~again))


def _log_of(source: Any) -> ProblemLog:
    return ProblemLog(source=Path(source).name if isinstance(source, str | Path) else "the table of vintages")


def assemble_vintages(
    source: Any, table: SeriesTable, options: ReadOptions, log: ProblemLog
) -> tuple[Vintages, dict[str, Covariate]]:
    """The same, and what each column of it is; faults go to the log. Raises `DataError` where nothing more can be read.

    The kind and the words of a column are those of the table where it has any value of it, or else those recorded.
    """
    columns = () if table.covariates is None else table.covariates.columns
    known = tuple(column.name for column in columns if column.role == "known" and not column.source)
    known += tuple(name for name in options.known if name not in known)
    if not known:
        hint = "name the columns that have vintages with --known"
        raise UsageError(f"{table.source} has no known covariate that could have vintages", hint=hint)
    options = _options_like(table, options)
    raw = without_blank_rows(raw_table(opened(source), options, log), log)
    options = like_remembered(options, raw.columns)
    time, ids = _keys(raw, table, options, log)
    is_long = COLUMN in raw.columns and VALUE in raw.columns
    names = _covariates(raw, (time, *ids, ISSUED), known, is_long, options, log)
    codes, series_ids = series_codes(raw, ids, log)
    series = _numbers(series_ids, codes, table, log) if ids else np.zeros(len(raw), dtype=np.int64)
    times, issued = _times(raw, time, codes, table, options, log)
    _note_beside(times, raw, table, log)

    def moment(place: int) -> str | None:
        return None if np.isnat(times[place]) else table.step.isoformat(times[place])

    usable = (series >= 0) & ~np.isnat(times) & ~np.isnat(issued)
    parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []  # column, row, value
    roles, kinds = Roles(time=time, id=ids, values=()), dict[str, Covariate]()
    for name, part, rows in _of_columns(raw, ids, names, is_long):
        cells = Cells(options=options, log=log, moment=lambda place, rows=rows: moment(int(rows[place])))  # type: ignore[misc]
        found = read_cells(part, replace(roles, covariates=((name, "known"),)), cells)
        assert found is not None, "it has a column"
        [kinds[name]] = found.columns
        held = usable[rows] & ~np.isnan(found.values[0])
        parts.append((np.full(int(held.sum()), known.index(name)), rows[held], found.values[0][held]))
    if not parts or not sum(len(part[1]) for part in parts):
        log.stop(Problem(kind="empty", message="there is no row with a time, an issue and a value", fix=FORM))
    column, row, value = (np.concatenate(each) for each in zip(*parts, strict=True))
    order = np.lexsort((issued[row], times[row], series[row], column))
    column, row, value = column[order], row[order], value[order]
    again = np.ones(len(row) - 1, dtype=bool)
    for each in (column, series[row], times[row], issued[row]):
        again &= each[1:] == each[:-1]
    _note_conflicts(np.flatnonzero(again & (value[1:] != value[:-1])) + 1, row, column, known, raw, ids, moment, log)
    keep = np.append(True, ~again)
    row = row[keep]
    vintages = Vintages(
        columns=known,
        series_ids=table.series_ids if ids else (),
        column=column[keep].astype(np.int32),
        series=series[row].astype(np.int32),
        time=times[row],
        issued_at=issued[row],
        value=value[keep],
    )
    return vintages, kinds


def _options_like(table: SeriesTable, options: ReadOptions) -> ReadOptions:
    """Options to read vintages for a table: its step, its zone, and what is known of the kinds of values."""
    said = () if table.covariates is None else table.covariates.columns
    held = np.zeros(len(said), dtype=bool)
    for each in {id(values): values for values in (table.covariates.series if table.covariates else ())}.values():
        held |= np.isfinite(each.values).any(axis=1)
    kinds = {column.name: column for column in options.recorded}
    kinds |= {column.name: column for column, any_value in zip(said, held, strict=True) if any_value or column.vintages}
    return replace(
        options,
        step=table.step.frequency,
        time_zone=options.time_zone or table.step.time_zone,
        recorded=tuple(replace(column, source="") for column in kinds.values()),
    )


def _keys(raw: RawTable, table: SeriesTable, options: ReadOptions, log: ProblemLog) -> tuple[str, tuple[str, ...]]:
    """The column of the times and those that name the series."""
    given = options.time_column
    times = [given] if given in raw.columns else [name for name in raw.columns if name.lower() in TIME_NAMES]
    if ISSUED not in raw.columns or len(times) != 1 or times[0] is None:
        what = "of the time of issue, issued_at" if ISSUED not in raw.columns else "of times such as ds"
        log.stop(Problem(kind="column", message=f"there is no column {what}", fix=FORM))
    ids = id_columns(raw, options)
    if not ids or not all(name in raw.columns for name in ids):
        ids = tuple(name for name in raw.columns if name in ID_NAMES)[:1]
    if table.layout == "long" and not ids:
        fix = "call it unique_id, or name it with --id-column"
        log.stop(Problem(kind="series", message="no column names the series of the rows", fix=fix))
    if table.layout == "wide" and ids:
        message = f"the column '{ids[0]}' names series, but all series of {table.source} share their covariates"
        log.stop(Problem(kind="series", message=message, fix=f'leave it out with --ignore "{ids[0]}"'))
    return times[0], ids


def _covariates(
    raw: RawTable, keys: tuple[str, ...], known: tuple[str, ...], is_long: bool, options: ReadOptions, log: ProblemLog
) -> list[str]:
    """The covariates that there are values of; others are noted."""
    if is_long:
        texts = pc.unique(pc.utf8_trim_whitespace(raw.columns[COLUMN].cast(pa.string()))).to_pylist()
        named = [text for text in texts if text]
        for name in (name for name in raw.columns if name not in (*keys, COLUMN, VALUE, *options.ignore)):
            message = f"the column '{name}' is not used: values are in the column '{VALUE}'"
            log.add(Problem(kind="unused", column=name, message=message, fix="nothing to do", severity="note"))
    else:
        named = [name for name in raw.columns if name not in (*keys, *options.ignore)]
    for name in (name for name in named if name not in known):
        message = f"'{name}' is no known covariate: these are {', '.join(known)}"
        fix = f'name it with --known "{name}", or leave it out' + ("" if is_long else f' with --ignore "{name}"')
        log.add(Problem(kind="column", column=name, message=message, fix=fix))
    return [name for name in named if name in known]


def _of_columns(
    raw: RawTable, ids: tuple[str, ...], names: list[str], is_long: bool
) -> Iterator[tuple[str, RawTable, np.ndarray]]:
    """(covariate, its rows as a table with a column of that name, the places of these rows) for each covariate."""
    every = np.arange(len(raw))
    text = pc.utf8_trim_whitespace(raw.columns[COLUMN].cast(pa.string())) if is_long else None
    for name in names:
        if text is None:
            yield name, raw, every
            continue
        mask = pc.fill_null(pc.equal(text, name), False)
        rows = np.flatnonzero(np.asarray(mask.to_numpy()))
        columns = {each: raw.columns[each].filter(mask) for each in ids} | {name: raw.columns[VALUE].filter(mask)}
        yield name, RawTable(columns=columns, row_number=raw.row_number[rows]), rows


def _numbers(names: list[str], codes: np.ndarray, table: SeriesTable, log: ProblemLog) -> np.ndarray:
    """int64 [n]: the place of the series of each row in the table, -1 where it has no such series."""
    there = {name: number for number, name in enumerate(table.series_ids)}
    for name in (name for name in names if name not in there):
        fix = "correct the name, or leave its rows out"
        log.add(Problem(kind="series", series_id=name, message=f"{table.source} has no such series", fix=fix))
    return np.append([there.get(name, -1) for name in names], -1).astype(np.int64)[codes]


def _times(
    raw: RawTable, time: str, codes: np.ndarray, table: SeriesTable, options: ReadOptions, log: ProblemLog
) -> tuple[np.ndarray, np.ndarray]:
    """The times and the issues of all rows. The hour that a clock shows twice is told apart within each issue."""
    issue = pd.factorize(raw.columns[ISSUED].to_pandas())[0].astype(np.int64)
    columns = (
        pd.factorize(raw.columns[COLUMN].to_pandas())[0] if COLUMN in raw.columns else np.zeros(len(raw), np.int64)
    )
    groups = pd.factorize((codes.astype(np.int64) * (issue.max() + 2) + issue) * (columns.max() + 2) + columns)[0]
    found = []
    for name, rows_of, step in ((time, groups, options.step), (ISSUED, np.arange(len(raw)), None)):
        of_times = replace(options.of_times, step=step)
        column = TimeColumn(
            column=raw.columns[name], row_number=raw.row_number, groups=rows_of, options=of_times, log=log
        )
        values, zone = parse_times(column)
        require_same_zone(zone, table, log)
        found.append(values)
    return found[0], found[1]


def _note_beside(times: np.ndarray, raw: RawTable, table: SeriesTable, log: ProblemLog) -> None:
    """Note times that no step of the table has: their values would never be looked at."""
    start = table.times[0]
    later = np.flatnonzero(~np.isnat(times) & (times >= start))
    if not len(later):
        return
    steps = np.union1d(table.times, table.step.until(start, times[later].max()))
    place = np.minimum(np.searchsorted(steps, times[later]), len(steps) - 1)
    bad = later[steps[place] != times[later]]

    def problem_at(place: int) -> Problem:
        at, row = table.step.isoformat(times[place]), int(raw.row_number[place])
        message = f"the time is not on the grid of the step '{table.step.frequency}' of {table.source}"
        return Problem(kind="off-step", at=at, row=row, message=message, fix="correct the time, or resample the values")

    log.add_at(bad, len(bad), problem_at, kind="off-step")


def _note_conflicts(
    places: np.ndarray,
    row: np.ndarray,
    column: np.ndarray,
    known: tuple[str, ...],
    raw: RawTable,
    ids: tuple[str, ...],
    moment: Callable[[int], str | None],
    log: ProblemLog,
) -> None:
    def problem_at(place: int) -> Problem:
        series_id = named_series(raw, COLUMN, Roles(time="", id=ids, values=()), int(row[place]))
        name, before = known[column[place]], int(raw.row_number[row[place - 1]])
        message = f"'{name}' was issued twice at one time with different values (before in row {before})"
        at, number = moment(int(row[place])), int(raw.row_number[row[place]])
        return Problem(
            kind="conflict",
            series_id=series_id,
            at=at,
            row=number,
            message=message,
            fix="keep one of the rows",
            column=name,
        )

    log.add_at(places, len(places), problem_at, kind="conflict")
