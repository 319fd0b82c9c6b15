"""Numbers as times: counts since 1970, days of a spreadsheet, running numbers. Read only if an option says which.

Without one the table is refused, with the option that its numbers look like.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from memory_index.errors import UsageError
from memory_index.tables.problems import Guess, Problem, ProblemLog
from memory_index.tables.steps import step_of

UNITS = {"s": 10**9, "ms": 10**6, "us": 10**3, "ns": 1}  # ns of one
NAMES = {"s": "seconds", "ms": "milliseconds", "us": "microseconds", "ns": "nanoseconds"}
EXCEL = "excel"
EXCEL_EPOCH = np.datetime64("1899-12-30", "ns")
PLAIN = r"^[+-]?\d+(\.\d*)?$"
CALENDAR_DIGITS = r"^(19|20)\d\d((0[1-9]|1[0-2])([0-2]\d|3[01]))?$"  # 2024, 20240131: told by their digits
COMPACT = {r"(19|20)\d\d(0[1-9]|1[0-2])": "%Y%m", r"(19|20)\d\d[01]\d[0-3]\d[0-2]\d": "%Y%m%d%H"}
COMPACT |= {r"(19|20)\d\d[01]\d[0-3]\d[0-2]\d[0-5]\d": "%Y%m%d%H%M"}
SINCE_1980 = (315_532_800, 4_102_444_800)  # s, up to 2100
SERIAL_DAYS = (20_000, 80_000)  # 1954 to 2119
LONGEST = 10**7  # steps that running numbers may span


@dataclass(frozen=True, kw_only=True, slots=True)
class TimeOptions:
    """What `ReadOptions` says of the time column and the step."""

    time_format: str | None
    time_zone: str | None
    time_unit: str | None
    time_start: str | None
    step: str | None

    @property
    def as_numbers(self) -> bool:
        """Whether the cells are to be read as numbers."""
        return self.time_unit is not None or self.time_start is not None


def are_numbers(column: pa.ChunkedArray) -> bool:
    """Whether all cells of a column are plain numbers that do not read as a year or as YYYYMMDD."""
    if pa.types.is_string(column.type):
        filled = column.filter(pc.not_equal(column, "")).drop_null()
        if not len(filled) or not pc.all(pc.match_substring_regex(filled, PLAIN)).as_py():
            return False
        return 2 * pc.sum(pc.match_substring_regex(filled, CALENDAR_DIGITS)).as_py() < len(filled)
    return pa.types.is_integer(column.type) or pa.types.is_floating(column.type) or pa.types.is_decimal(column.type)


def calendar_text(column: pa.ChunkedArray) -> pa.ChunkedArray | None:
    """Whole numbers that are all years or YYYYMMDD, as text; None for others."""
    if not pa.types.is_integer(column.type):
        return None
    text = column.cast(pa.string())
    return text if pc.all(pc.match_substring_regex(text, CALENDAR_DIGITS)).as_py() else None


def number_times(column: pa.ChunkedArray, options: TimeOptions, log: ProblemLog) -> tuple[np.ndarray, str | None]:
    """(times as datetime64[ns] [n], NaT where a cell is none; their zone: UTC for counts since 1970).

    Raises `DataError` where no option says what the numbers mean, `UsageError` for options that do not go together.
    """
    if options.time_start is not None:
        return _running(_exact(column), options.time_start, options, log), options.time_zone
    if (time_unit := options.time_unit) is None:
        numbers = _floats(column)
        lowest, highest = (f"{each:.6f}".rstrip("0").rstrip(".") for each in (np.nanmin(numbers), np.nanmax(numbers)))
        shown = f" from {lowest} to {highest}"
        fix, said = "name the right one with --time-column, or write times as ISO 8601", told_by_size(column)
        if said is not None:
            fix = f"{said[0]}: {said[1]}; else {fix}"
        message, guess = f"the time column holds numbers{shown}, not times", () if said is None else said[2]
        log.stop(Problem(kind="time", message=message, fix=fix, guess=guess))
    if time_unit == EXCEL:
        seconds = np.round(_floats(column) * 86_400)
        return _since(EXCEL_EPOCH, seconds, 10**9), None
    whole = _exact(column)
    if whole is not None:
        return _since(np.datetime64(0, "ns"), whole, UNITS[time_unit]), "UTC"
    return _since(np.datetime64(0, "ns"), np.round(_floats(column) * UNITS[time_unit]), 1), "UTC"


def _running(numbers: np.ma.MaskedArray | None, time_start: str, options: TimeOptions, log: ProblemLog) -> np.ndarray:
    if options.step is None:
        raise UsageError(f"--time-start {time_start} needs the step that the numbers count", hint="name it with --step")
    counted = step_of(options.step, options.time_zone)
    start = counted.parse(time_start)
    if numbers is None or numbers.mask.all():
        message = "the time column is to be read as running numbers, but not all of its cells are whole numbers"
        log.stop(Problem(kind="time", message=message, fix="name the right one with --time-column"))
    lowest, highest = int(numbers.min()), int(numbers.max())
    if highest - min(lowest, 0) > LONGEST:
        message = f"running numbers go from {lowest} to {highest}, more than {LONGEST} steps"
        log.stop(
            Problem(kind="time", message=message, fix="say what they count instead: --time-unit s, ms, us, ns or excel")
        )
    first = counted.add(np.array([start]), min(lowest, 0))[0]
    times = counted.range(first, max(highest, 0) - min(lowest, 0) + 1)
    return np.where(numbers.mask, np.datetime64("NaT"), times[numbers.filled(0) - min(lowest, 0)])


def _floats(column: pa.ChunkedArray) -> np.ndarray:
    if pa.types.is_string(column.type):
        return pd.to_numeric(column.to_pandas(), errors="coerce").to_numpy(dtype=np.float64)
    return np.asarray(column.cast(pa.float64(), safe=False).to_numpy(), dtype=np.float64)


def _exact(column: pa.ChunkedArray) -> np.ma.MaskedArray | None:
    """Whole numbers as int64 [n], masked where a cell is empty; None if there are others."""
    text = pa.types.is_string(column.type)
    try:
        if text:
            column = pc.if_else(pc.equal(column, ""), None, column)
        whole = column.cast(pa.int64())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return None
    mask = np.asarray(whole.is_null().to_numpy())
    return np.ma.MaskedArray(whole.fill_null(0).to_numpy(), mask=np.broadcast_to(mask, len(whole)))


def _since(epoch: np.datetime64, counts: np.ndarray, unit: int) -> np.ndarray:
    """epoch + counts * unit ns; NaT where a count is missing or too large for nanoseconds."""
    values = np.ma.filled(counts, 0) if isinstance(counts, np.ma.MaskedArray) else counts
    bad = np.ma.getmaskarray(counts) if isinstance(counts, np.ma.MaskedArray) else ~np.isfinite(counts)
    bad = bad | (np.abs(values.astype(np.float64)) * unit > 8e18)
    moved = np.where(bad, 0, values).astype(np.int64) * unit
    return np.where(bad, np.datetime64("NaT"), epoch + moved.astype("timedelta64[ns]"))


def told_by_size(column: pa.ChunkedArray) -> tuple[str, str, Guess] | None:
    """(what numbers of this size may be, the options that read them so, as words and by name); None if they look like
    nothing in use.
    """
    cells = _floats(column)
    cells = cells[np.isfinite(cells)]
    if len(cells) == 0:
        return None
    low, high = cells.min(), cells.max()
    whole = bool((cells == np.round(cells)).all())
    for pattern, time_format in COMPACT.items():
        if whole and all(re.fullmatch(pattern, f"{each:.0f}") for each in (low, high)):
            return (
                "if its numbers are dates in digits",
                f'--time-format "{time_format}"',
                (("time_format", time_format),),
            )
    for unit, length in UNITS.items():
        per_second = 10**9 // length
        if SINCE_1980[0] * per_second <= low and high <= SINCE_1980[1] * per_second:
            return f"if its numbers are {NAMES[unit]} since 1970", f"--time-unit {unit}", (("time_unit", unit),)
    if SERIAL_DAYS[0] <= low and high <= SERIAL_DAYS[1]:
        return "if its numbers are the days of a spreadsheet", f"--time-unit {EXCEL}", (("time_unit", EXCEL),)
    if whole and high - low <= 2 * len(cells):
        start, flags = "2024-01-01 00:00", '--time-start "2024-01-01 00:00" --step h (the time of 0, and the step)'
        return "if its numbers count steps", flags, (("time_start", start), ("step", "h"))
    return None
