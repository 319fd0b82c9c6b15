"""Time columns: text or typed cells -> datetime64[ns] and a zone. The step between them is `steps.py`.

Nothing is guessed where two readings are possible: 01/02/2024 needs `--time-format`.
"""

from __future__ import annotations

import re
from contextlib import suppress
from itertools import product

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from memory_index.errors import UsageError
from memory_index.tables.problems import Problem, ProblemLog
from memory_index.tables.steps import is_coarse, step_of
from memory_index.windows import to_ns

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
)
CLOCK_FORMATS = ("", " %H:%M", " %H:%M:%S", " %H:%M:%S.%f", " %I:%M %p", " %I:%M:%S %p", "T%H:%M", "T%H:%M:%S")
END_OF_DAY = re.compile(r"\d[ T]24:00")
OFFSET = r"\d:\d\d(?::\d\d(?:\.\d+)?)?\s*(?P<offset>Z|[+-]\d\d(?::?\d\d)?)$"  # a UTC offset after a time of day


def parse_times(
    column: pa.ChunkedArray,
    row_number: np.ndarray,
    log: ProblemLog,
    *,
    time_format: str | None,
    time_zone: str | None,
    step: str | None = None,
) -> tuple[np.ndarray, str | None]:
    """The cells of a time column as datetime64[ns] [n] (UTC if there is a zone, else naive), and the zone.

    One UTC offset throughout is kept as a zone such as `UTC+02:00`; several become UTC with a note, unless
    `time_zone` names the zone. step: a pandas frequency, None if it is yet to be found; a day or a longer step begins
    as `Step` says. Cells that are no time are NaT and noted as faults. Raises `DataError` when the column as a whole is
    not a time or can be read in two ways, `UsageError` for an unknown zone or step.
    """
    if time_zone is not None:
        _check_zone(time_zone)
    if pa.types.is_temporal(column.type):
        local, zone, offsets = _ns_or_nat(_typed(column)), getattr(column.type, "tz", None), None
        zone = f"UTC{zone}" if zone and zone[0] in "+-" else zone
    elif pa.types.is_string(column.type):
        local, zone, offsets = _parse_text(column, log, time_format)
    else:
        message = f"the time column holds {column.type} numbers, not times"
        log.stop(
            Problem(
                kind="time", message=message, fix="name the right one with --time-column, or write times as ISO 8601"
            )
        )
    problem_rows = np.isnat(local)
    form = "as ISO 8601" if offsets is None else "as ISO 8601 with its UTC offset"
    fix = f"write this time {form}, or remove the row"
    if pa.types.is_string(column.type) and 2 * problem_rows.sum() > len(local):
        fix = "name their format with --time-format (such as '%d/%m/%Y %H:%M'), or the right column with --time-column"
    _note_bad_times(column, problem_rows, row_number, log, "is not a time", fix)
    if offsets is not None:
        without = np.isnat(offsets) & ~problem_rows
        _note_bad_times(column, without, row_number, log, "has no UTC offset, but other rows have one", fix)
        return local - offsets, time_zone or zone
    if time_zone is not None and zone is None:
        times = _localized(local, time_zone, step)
        what = f"does not name one moment in {time_zone}: daylight saving begins or ends there"
        fix = "correct this time or remove the row, or write all times as ISO 8601 with their UTC offsets"
        _note_bad_times(column, np.isnat(times) & ~problem_rows, row_number, log, what, fix)
        return times, time_zone
    return local, time_zone or zone


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


def _parse_text(
    column: pa.ChunkedArray, log: ProblemLog, time_format: str | None
) -> tuple[np.ndarray, str | None, np.ndarray | None]:
    """(local times, zone, timedelta64[ns] to subtract or None) of a text column."""
    text = pc.utf8_trim_whitespace(column)
    found = pc.struct_field(pc.extract_regex(text, OFFSET), "offset")
    distinct = [offset for offset in pc.unique(found).to_pylist() if offset is not None]
    offsets, zone = None, None
    if distinct:
        text = pc.replace_substring_regex(text, r"(\d)\s*(Z|[+-]\d\d(:?\d\d)?)$", r"\1")
        length = {offset: _offset_length(offset) for offset in distinct}
        offsets = found.to_pandas().map(length).to_numpy().astype("timedelta64[ns]")
        zone = "UTC"
        if len(set(length.values())) == 1:
            zone = _zone_name(length[distinct[0]])
        else:
            message = (
                f"the times have {len(distinct)} UTC offsets ({', '.join(sorted(distinct)[:4])}) and are counted in UTC"
            )
            fix = "for steps of a day or more, name their zone with --time-zone"
            log.add(Problem(kind="mixed-offsets", message=message, fix=fix, severity="note"))
    texts = text.to_pandas()
    chosen = time_format or _find_format(texts, log)
    return _ns_or_nat(_parse(texts, chosen)), zone, offsets


def _offset_length(offset: str) -> np.timedelta64:
    if offset == "Z":
        return np.timedelta64(0, "ns")
    minutes = int(offset[1:3]) * 60 + int(offset[3:].lstrip(":") or 0)
    return np.timedelta64(minutes * 60 * 10**9 * (-1 if offset[0] == "-" else 1), "ns")


def _zone_name(length: np.timedelta64) -> str:
    minutes = int(length.astype(np.int64)) // (60 * 10**9)
    return (
        "UTC" if minutes == 0 else f"UTC{'+' if minutes > 0 else '-'}{abs(minutes) // 60:02d}:{abs(minutes) % 60:02d}"
    )


def _parse(texts: pd.Series, time_format: str) -> np.ndarray:
    try:
        return np.asarray(pd.to_datetime(texts, format=time_format, errors="coerce").to_numpy())
    except ValueError as error:
        raise UsageError(f"'{time_format}' is not a time format: {error}", hint="such as '%d/%m/%Y %H:%M'") from error


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
        log.stop(Problem(kind="time", message=message, fix=f'say which with --time-format "{best[0]}"'))
    return best[0]


def _ns_or_nat(times: np.ndarray) -> np.ndarray:
    """datetime64[ns]; NaT for what nanoseconds cannot hold (before 1678, after 2261)."""
    years = times.astype("datetime64[Y]").astype(np.int64) + 1970
    outside = ~np.isnat(times) & ((years < 1678) | (years > 2261))
    return np.where(outside, np.datetime64("NaT"), times).astype("datetime64[ns]")


def _localized(local: np.ndarray, time_zone: str, frequency: str | None) -> np.ndarray:
    """Wall-clock times of a zone as UTC, NaT where unclear; the order of rows tells a repeated hour of autumn apart."""
    index = pd.DatetimeIndex(local)
    if frequency is None:
        frequency = "D" if is_coarse(np.unique(local[~np.isnat(local)])) else "h"
    step = step_of(frequency, time_zone)
    if step.is_fixed:
        with suppress(ValueError):  # pandas: the order of the rows does not tell which of the two hours is meant
            return to_ns(index.tz_localize(time_zone, ambiguous="infer", nonexistent="NaT"))
    return step.named(index)


def _note_bad_times(
    column: pa.ChunkedArray, bad: np.ndarray, row_number: np.ndarray, log: ProblemLog, what: str, fix: str
) -> None:
    def problem_at(place: int) -> Problem:
        cell = column[place].as_py()
        message = f"'{cell}' {what}" if cell not in (None, "") else "the time is missing"
        midnight = "write the end of a day as 00:00 of the next day" if END_OF_DAY.search(str(cell)) else fix
        return Problem(kind="time", row=int(row_number[place]), message=message, fix=midnight)

    log.add_at(np.flatnonzero(bad), int(bad.sum()), problem_at, kind="time")


def looks_like_times(column: pa.ChunkedArray) -> bool:
    """Whether the first filled cell of a column reads as a time (a plain number does not)."""
    if pa.types.is_temporal(column.type):
        return True
    if not pa.types.is_string(column.type):
        return False
    first = next((cell.strip() for cell in column.slice(0, 100).to_pylist() if cell and cell.strip()), "")
    if re.fullmatch(r"[+-]?\d*\.?\d*", first):
        return bool(re.fullmatch(r"(19|20)\d\d(\d{4})?", first))  # a year, or YYYYMMDD
    cell = pd.Series([re.sub(r"(?<=\d)\s*(Z|[+-]\d\d(:?\d\d)?)$", "", first) if ":" in first else first])
    formats = ("ISO8601", *(date + clock for date, clock in product(DATE_FORMATS, CLOCK_FORMATS)))
    return any(not np.isnat(_parse(cell, each)).all() for each in formats)
