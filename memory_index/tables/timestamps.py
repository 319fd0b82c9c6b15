"""Time columns: text or typed cells -> datetime64[ns] and a zone. The step between them is `steps.py`.

Nothing is guessed where two readings are possible: 01/02/2024 needs `--time-format`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from memory_index.errors import UsageError
from memory_index.tables.local_times import localized
from memory_index.tables.number_times import TimeOptions, are_numbers, calendar_text, number_times
from memory_index.tables.offsets import DIRECTIVE, offset_length, split_offsets, without_offset, zone_name
from memory_index.tables.period_names import ANY, first_day
from memory_index.tables.problems import Problem, ProblemLog

DATE_FORMATS = (
    "%Y-%m-%d",
    "%Y/%m/%d",
    "%Y.%m.%d",
    "%Y%m%d",
    "%d.%m.%Y",
    "%d/%m/%Y",
    "%m/%d/%Y",
    "%d-%m-%Y",
    "%m-%d-%Y",
    "%d-%b-%Y",
    "%d %b %Y",
    "%d %B %Y",
    "%b %d, %Y",
    "%B %d, %Y",
    "%a, %d %b %Y",
    "%b %Y",
    "%b-%Y",
    "%B %Y",
)
CLOCK_FORMATS = ("", " %H:%M", " %H:%M:%S", " %H:%M:%S.%f", " %I:%M %p", " %I:%M:%S %p", "T%H:%M", "T%H:%M:%S")
ZONE_WORDS = (
    "words for zones, such as CET, are not read: write UTC offsets (+01:00), or leave the words out and name the zone "
    "with --time-zone"
)
END_OF_DAY = re.compile(r"\d[ T]24:00")


@dataclass(frozen=True, kw_only=True, slots=True)
class TimeColumn:
    """A time column and how it is to be read. groups: int [n], the series of each row."""

    column: pa.ChunkedArray
    row_number: np.ndarray
    groups: np.ndarray
    options: TimeOptions
    log: ProblemLog

    def note_bad(self, bad: np.ndarray, what: str, fix: str) -> None:
        """Note a fault for each of these cells (bool [n])."""

        def problem_at(place: int) -> Problem:
            cell, row = self.column[place].as_py(), int(self.row_number[place])
            message = f"'{cell}' {what}" if cell not in (None, "") else "the time is missing"
            todo = fix
            if END_OF_DAY.search(str(cell)):
                todo = "write the end of a day as 00:00 of the next day"
            elif cell in (None, ""):
                todo = f"remove row {row} if it is of no time, such as one of units or of a total; else {fix}"
            elif not any(character.isdigit() for character in str(cell)):
                todo = f"remove row {row} if it is a remark, such as a source or a total; else {fix}"
            return Problem(kind="time", row=row, message=message, fix=todo)

        self.log.add_at(np.flatnonzero(bad), int(bad.sum()), problem_at, kind="time")


class Wall(NamedTuple):
    """Times as they are written, datetime64[ns] [n] with NaT for what is no time; how they lie to UTC, if that is told.

    zone: set if the times are UTC already, or become so by taking off the offsets, timedelta64[ns] [n].
    """

    local: np.ndarray
    zone: str | None = None
    offsets: np.ndarray | None = None


def parse_times(times: TimeColumn) -> tuple[np.ndarray, str | None]:
    """The cells of a time column as datetime64[ns] [n] (UTC if there is a zone, else naive), and the zone.

    One UTC offset throughout is kept as a zone such as `UTC+02:00`; several become UTC with a note, unless
    `time_zone` of the options names the zone. The order of the rows of a series tells a repeated hour apart.
    Cells that are no time are NaT and noted as faults. Raises `DataError` when the column as a whole is
    not a time or can be read in two ways, `UsageError` for an unknown zone or step.
    """
    named = times.options.time_zone
    if named is not None:
        _check_zone(named)
    wall = _read(times)
    unread = np.isnat(wall.local)
    fix = _fix_of_unread(times, unread, "" if wall.offsets is None else " with its UTC offset")
    times.note_bad(unread, "is not a time", fix)
    if wall.offsets is not None:
        without = np.isnat(wall.offsets) & ~unread
        times.note_bad(without, "has no UTC offset, but other rows have one", fix)
        return wall.local - wall.offsets, named or wall.zone
    if wall.zone is not None or named is None:
        return wall.local, named or wall.zone
    moments = localized(wall.local, named, times.options.step, times.groups)
    what = f"does not name one moment in {named}: daylight saving begins or ends there"
    fix = "write all times as ISO 8601 with their UTC offsets, or sort the rows of each series by time"
    times.note_bad(np.isnat(moments) & ~unread, what, fix)
    return moments, named


def _read(times: TimeColumn) -> Wall:
    column, options, log = times.column, times.options, times.log
    digits = calendar_text(column)
    column = column if digits is None else digits
    if pa.types.is_temporal(column.type):
        zone = getattr(column.type, "tz", None)
        return Wall(_ns_or_nat(_typed(column)), f"UTC{zone}" if zone and zone[0] in "+-" else zone)
    if options.as_numbers or (options.time_format is None and are_numbers(column)):
        return Wall(*number_times(column, options, log))
    if not pa.types.is_string(column.type) and not are_numbers(column):
        fix = "name the right one with --time-column, or write times as ISO 8601"
        log.stop(Problem(kind="time", message=f"the time column holds {column.type} values, not times", fix=fix))
    return _parse_text(column.cast(pa.string()), log, options.time_format)


def _fix_of_unread(times: TimeColumn, unread: np.ndarray, offset: str) -> str:
    options = times.options
    if options.as_numbers:
        return "correct this cell: the others are numbers"
    if 2 * unread.sum() <= len(unread):
        return f"write this time as ISO 8601{offset}"
    if options.time_format is not None and DIRECTIVE.search(options.time_format):
        return ZONE_WORDS
    return "name their format with --time-format (such as '%d/%m/%Y %H:%M'), or the right column with --time-column"


def _typed(column: pa.ChunkedArray) -> np.ndarray:
    if pa.types.is_date(column.type):
        column = column.cast(pa.timestamp("s"))
    return np.asarray(column.cast(pa.timestamp(column.type.unit)).to_numpy())  # values are UTC already


def _check_zone(time_zone: str) -> None:
    try:
        pd.DatetimeIndex([]).tz_localize(time_zone)
    except (KeyError, ValueError, TypeError) as error:
        raise UsageError(
            f"unknown time zone '{time_zone}'", hint="a name such as Europe/Berlin, UTC or UTC+02:00"
        ) from error


def _parse_text(column: pa.ChunkedArray, log: ProblemLog, time_format: str | None) -> Wall:
    """The times of a text column. Each distinct text is read once."""
    coded = pc.utf8_trim_whitespace(column).dictionary_encode().unify_dictionaries()
    codes = np.concatenate([chunk.indices.fill_null(-1).to_numpy(zero_copy_only=False) for chunk in coded.chunks])
    texts, found, time_format = split_offsets(coded.chunk(0).dictionary, time_format, log)
    offsets, zone = None, None
    distinct = sorted({offset for offset in found if offset})
    if distinct:
        length = {offset: offset_length(offset) for offset in distinct}
        none = np.timedelta64("NaT", "ns")
        offsets = np.array([length[each] if each else none for each in (*found, None)], dtype="timedelta64[ns]")[codes]
        zone = zone_name(length[distinct[0]]) or "UTC" if len(set(length.values())) == 1 else "UTC"
        if len(set(length.values())) > 1:
            message = f"the times have {len(distinct)} UTC offsets ({', '.join(distinct[:4])}) and are counted in UTC"
            fix = "nothing to do for steps below a day; for longer ones, name their zone with --time-zone"
            log.add(Problem(kind="mixed-offsets", message=message, fix=fix, severity="note"))
    cells = pc.replace_substring_regex(texts, r"(:\d\d),(\d+)$", r"\1.\2").to_pandas()
    if time_format is None and pc.any(pc.match_substring_regex(texts, ANY)).as_py():
        cells = cells.map(first_day)
    local = _ns_or_nat(_parse(cells, time_format or _find_format(cells, log)))
    return Wall(np.append(local, np.datetime64("NaT", "ns"))[codes], zone, offsets)


def _parse(texts: pd.Series, time_format: str) -> np.ndarray:
    try:
        parsed = pd.to_datetime(texts, format=time_format, errors="coerce")
    except ValueError as error:
        raise UsageError(f"'{time_format}' is not a time format: {error}", hint="such as '%d/%m/%Y %H:%M'") from error
    if parsed.dtype.kind != "M" or getattr(parsed.dtype, "tz", None) is not None:
        return np.full(len(texts), np.datetime64("NaT"))  # an offset in a form that nobody writes
    return np.asarray(parsed.to_numpy())


def _find_format(texts: pd.Series, log: ProblemLog) -> str:
    """`ISO8601` if it reads a sample of the cells, else the one strptime format that reads most of all cells."""
    filled = texts[texts.notna() & (texts != "")]
    sample = filled.iloc[:: max(1, len(filled) // 64)]
    if len(sample) and not np.isnat(_parse(sample, "ISO8601")).any():
        return "ISO8601"
    formats = ("ISO8601", *(date + clock for date, clock in product(DATE_FORMATS, CLOCK_FORMATS)))
    num_read = {each: int((~np.isnat(_parse(sample, each))).sum()) for each in formats}
    best = [each for each in formats if num_read[each] and num_read[each] == max(num_read.values())]
    if not best:
        shown = filled.iloc[0] if len(filled) else ""
        message = f"the time column cannot be read as times: its first cell is '{shown}'"
        log.stop(
            Problem(
                kind="time",
                message=message,
                fix="name the right one with --time-column, or its format with --time-format",
            )
        )
    full = {each: _parse(filled, each) for each in best}
    num_bad = {each: int(np.isnat(times).sum()) for each, times in full.items()}
    best = [each for each in best if num_bad[each] == min(num_bad.values())]
    if any(not np.array_equal(full[each], full[best[0]], equal_nan=True) for each in best[1:]):
        message = f"the times can be read in {len(best)} ways: '{filled.iloc[0]}' as {' or '.join(best)}"
        guess = (("time_format", best[0]),)
        log.stop(Problem(kind="time", message=message, fix=f'say which with --time-format "{best[0]}"', guess=guess))
    return best[0]


def _ns_or_nat(times: np.ndarray) -> np.ndarray:
    """datetime64[ns]; NaT for what nanoseconds cannot hold (before 1678, after 2261)."""
    outside = (times < np.datetime64("1678-01-01")) | (times >= np.datetime64("2262-01-01"))
    times = np.where(outside, np.datetime64("NaT"), times) if outside.any() else times
    return times.astype("datetime64[ns]", copy=False)


def looks_like_times(column: pa.ChunkedArray) -> bool:
    """Whether the first filled cell of a column reads as a time (a plain number does not)."""
    if pa.types.is_temporal(column.type):
        return True
    if not pa.types.is_string(column.type):
        digits = calendar_text(column)
        return digits is not None and all(len(cell or "") == 8 for cell in digits.slice(0, 100).to_pylist())
    first = next((cell.strip() for cell in column.slice(0, 100).to_pylist() if cell and cell.strip()), "")
    if re.fullmatch(r"[+-]?\d*\.?\d*", first):
        return bool(re.fullmatch(r"(19|20)\d\d(\d{4})?", first))  # a year, or YYYYMMDD
    cell = pd.Series([first_day(without_offset(first))])
    formats = ("ISO8601", *(date + clock for date, clock in product(DATE_FORMATS, CLOCK_FORMATS)))
    return any(not np.isnat(_parse(cell, each)).all() for each in formats)
