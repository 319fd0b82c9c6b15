"""Time columns: text or typed cells -> datetime64[ns] and a zone, the step between rows, and rows on its grid.

Nothing is guessed where two readings are possible: 01/02/2024 needs `--time-format`.
"""

from __future__ import annotations

import re
from itertools import product

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from memory_index.errors import UsageError
from memory_index.problems import Problem, ProblemLog
from memory_index.windows import Step, to_ns

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
OFFSET = r"\d:\d\d(?::\d\d(?:\.\d+)?)?\s*(?P<offset>Z|[+-]\d\d(?::?\d\d)?)$"  # a UTC offset after a time of day
ONE_DAY = 86_400 * 10**9  # ns
COARSE = 20 * 3600 * 10**9  # ns; from such a median distance on, steps are counted in local calendar days
WEEKDAYS = ("MON", "TUE", "WED", "THU", "FRI", "SAT", "SUN")
MONTHS = ("JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC")


def parse_times(
    column: pa.ChunkedArray, row_number: np.ndarray, log: ProblemLog, *, time_format: str | None, time_zone: str | None
) -> tuple[np.ndarray, str | None]:
    """The cells of a time column as datetime64[ns] [n] (UTC if there is a zone, else naive), and the zone.

    One UTC offset throughout is kept as a zone such as `UTC+02:00`; several become UTC with a note, unless
    `time_zone` names the zone. Cells that are no time are NaT and noted as faults. Raises `DataError` when
    the column as a whole is not a time or can be read in two ways, `UsageError` for an unknown zone.
    """
    if time_zone is not None:
        _check_zone(time_zone)
    if pa.types.is_temporal(column.type):
        local, zone, offsets = _ns_or_nat(_typed(column)), getattr(column.type, "tz", None), None
        zone = f"UTC{zone}" if zone and zone[0] in "+-" else zone
    elif pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        local, zone, offsets = _parse_text(column, log, time_format)
    else:
        message = f"the time column holds {column.type} numbers, not times"
        log.stop(
            Problem(
                kind="time", message=message, fix="name the right one with --time-column, or write times as ISO 8601"
            )
        )
    problem_rows = np.isnat(local)
    _note_bad_times(column, problem_rows, row_number, log, "is not a time")
    if offsets is not None:
        without = np.isnat(offsets) & ~problem_rows
        _note_bad_times(column, without, row_number, log, "has no UTC offset, but other rows have one")
        return local - offsets, time_zone or zone
    if time_zone is not None and zone is None:
        return _localized(column, local, time_zone, row_number, log), time_zone
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


def _localized(
    column: pa.ChunkedArray, local: np.ndarray, time_zone: str, row_number: np.ndarray, log: ProblemLog
) -> np.ndarray:
    """Wall-clock times of a zone as UTC; the repeated hour of autumn is told apart by the order of the rows."""
    index = pd.DatetimeIndex(local)
    try:
        times = to_ns(index.tz_localize(time_zone, ambiguous="infer", nonexistent="NaT"))
    except ValueError:  # pandas: the order of the rows does not tell which of the two hours is meant
        times = to_ns(index.tz_localize(time_zone, ambiguous="NaT", nonexistent="NaT"))
    unclear = np.isnat(times) & ~np.isnat(local)
    _note_bad_times(
        column,
        unclear,
        row_number,
        log,
        f"does not name one moment in {time_zone}: daylight saving begins or ends there",
    )
    return times


def _note_bad_times(
    column: pa.ChunkedArray, bad: np.ndarray, row_number: np.ndarray, log: ProblemLog, what: str
) -> None:
    def problem_at(place: int) -> Problem:
        cell = column[place].as_py()
        message = f"'{cell}' {what}" if cell not in (None, "") else "the time is missing"
        fix = "write this time as ISO 8601 with its UTC offset, or remove the row"
        return Problem(kind="time", row=int(row_number[place]), message=message, fix=fix)

    log.add_at(np.flatnonzero(bad), int(bad.sum()), problem_at, kind="time")


def step_of(frequency: str, time_zone: str | None) -> Step:
    """A `Step` from a frequency that a user wrote. Raises `UsageError` if pandas does not know it."""
    step = Step(frequency=frequency, time_zone=time_zone)
    try:
        forward = step.offset.n > 0
    except (ValueError, KeyError) as error:
        raise UsageError(
            f"'{frequency}' is not a step", hint="a pandas frequency such as h, 15min, D, B, W-SUN, MS or QS"
        ) from error
    if not forward:
        raise UsageError(
            f"the step '{frequency}' does not go forward",
            hint="a pandas frequency such as h, 15min, D, B, W-SUN, MS or QS",
        )
    return step


def infer_step(times: np.ndarray, time_zone: str | None) -> Step | None:
    """The step on whose grid most times lie and which leaves the fewest holes; None if there is no such step.

    times: datetime64[ns] [n], ascending, distinct. Every candidate (the most common, the smallest and the
    greatest common distance; calendar steps of about that length) scores (share of times on its grid) x
    (share of its grid that is filled), so gaps, a stray time stamp, weekends and months of unequal length do
    not mislead it.
    """
    if len(times) < 2:
        return None
    wall = to_ns(Step(frequency="h", time_zone=time_zone).local(times).tz_localize(None))
    coarse = bool(np.median(np.diff(times).astype(np.int64)) >= COARSE)
    ticks = (wall if coarse else times).astype(np.int64)
    distances, counts = np.unique(np.diff(ticks), return_counts=True)
    common = int(distances[counts.argmax()])
    fixed = dict.fromkeys((common, int(distances[0]), int(np.gcd.reduce(distances))))
    scored = []
    if coarse:
        scored = [
            (frequency, *_calendar_score(wall, frequency))
            for frequency in _long_steps(np.median(distances.repeat(counts)))
        ]
    scored += [(_name(d, wall, coarse), *_fixed_score(ticks, d)) for d in fixed if d > 0]
    if coarse and common == ONE_DAY:
        scored.append(("B", *_calendar_score(wall, "B")))  # after D, which wins a table without a weekend
    frequency, on_grid, filled = max(scored, key=lambda each: each[1] * each[2])
    if on_grid < 0.5 or (filled < 0.1 and counts.max() < 0.5 * counts.sum()):
        return None
    return Step(frequency=frequency, time_zone=time_zone)


def _long_steps(median: float) -> tuple[str, ...]:
    """Calendar steps of a month or more that fit a median distance in ns."""
    days = median / ONE_DAY
    if 27 <= days <= 32:
        return ("MS", "ME", "BMS", "BME")
    if 88 <= days <= 93:
        return (*(f"QS-{month}" for month in MONTHS[:3]), *(f"QE-{month}" for month in ("DEC", "JAN", "FEB")))
    if 360 <= days <= 370:
        return (*(f"YS-{month}" for month in MONTHS), *(f"YE-{month}" for month in MONTHS))
    return ()


def _name(distance: int, wall: np.ndarray, coarse: bool) -> str:
    if coarse and distance % (7 * ONE_DAY) == 0:
        weeks, day = distance // (7 * ONE_DAY), WEEKDAYS[pd.Timestamp(wall[-1]).weekday()]
        return f"W-{day}" if weeks == 1 else f"{weeks}W-{day}"
    if coarse and distance % ONE_DAY == 0:
        return "D" if distance == ONE_DAY else f"{distance // ONE_DAY}D"
    return str(pd.tseries.frequencies.to_offset(pd.Timedelta(distance, "ns")).freqstr)


def _fixed_score(ticks: np.ndarray, distance: int) -> tuple[float, float]:
    on = ticks[_on_phase(ticks, distance)]
    return len(on) / len(ticks), len(on) / ((on[-1] - on[0]) // distance + 1)


def _calendar_score(wall: np.ndarray, frequency: str) -> tuple[float, float]:
    position = grid_positions(wall, Step(frequency=frequency))
    on = position[position >= 0]
    return len(on) / len(wall), (len(on) / (on[-1] - on[0] + 1) if len(on) else 0.0)


def _on_phase(ticks: np.ndarray, distance: int) -> np.ndarray:
    """bool [n]: the times that lie whole steps apart from each other, as most of them do."""
    phase = (ticks - ticks[0]) % distance
    if not phase.any():
        return np.ones(len(ticks), dtype=bool)
    values, counts = np.unique(phase, return_counts=True)
    return phase == values[counts.argmax()]


def grid_positions(times: np.ndarray, step: Step) -> np.ndarray:
    """int64 [n]: the number of steps from the first time on the grid, -1 for times that are not on it.

    times: datetime64[ns] [n], ascending, distinct.
    """
    ticks = times.astype(np.int64)
    if step.is_fixed:
        distance = int((step.add(times[:1], 1) - times[:1])[0].astype(np.int64))
        on = _on_phase(ticks, distance)
        return np.where(on, (ticks - ticks[on][0]) // distance, -1)
    local = step.local(times)
    clock = to_ns(local.tz_localize(None)).astype(np.int64) % ONE_DAY
    clocks, counts = np.unique(clock, return_counts=True)
    first = local[clock == clocks[counts.argmax()]][0]
    grid = to_ns(pd.date_range(first, local[-1], freq=step.offset)).astype(np.int64)
    if len(grid) == 0:
        return np.full(len(times), -1)
    position = np.minimum(np.searchsorted(grid, ticks), len(grid) - 1)
    on = grid[position] == ticks
    return np.where(on, position - (position[on][0] if on.any() else 0), -1)


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
