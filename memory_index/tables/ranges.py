"""Values that are no measurement: codes for "no value" far outside a series' range, and what float32 cannot hold.

Windows are kept and compared in float32. What is too large for it is a fault of its cell (`regular.py`); a series that
is too small as a whole is refused here.
"""

from __future__ import annotations

import numpy as np

from memory_index.tables.problems import Problem, ProblemLog
from memory_index.tables.series import Series

LARGEST = float(np.finfo(np.float32).max)
SMALLEST = float(np.finfo(np.float32).tiny)  # smaller numbers lose digits, the smallest all of them
HUGE = 1e20  # from here on a power of ten, or the largest number of a type, is no measurement
CODES = frozenset(float(2**bits) for bits in (15, 31, 63)) | frozenset(float(2**bits - 1) for bits in (15, 16, 31, 32))
NETCDF = 9.96920996838687e36  # its default of floating numbers
MAX_CODES = 3  # different codes of one series


def note_ranges(series: tuple[Series, ...], log: ProblemLog) -> None:
    """Note codes for missing values, each with the `--missing` that removes it, and series that float32 cannot hold."""
    for one in series:
        known = one.values[np.isfinite(one.values)]
        if len(known) == 0:
            continue
        low, high = float(known.min()), float(known.max())
        if 0 < max(abs(low), abs(high)) < SMALLEST:
            message = f"the values, from {low:.3g} to {high:.3g}, are too small for float32, in which windows are kept"
            fix = "multiply the series by a power of ten first, and divide its forecasts by it"
            log.add(Problem(kind="too-small", series_id=one.series_id, message=message, fix=fix))
        else:
            note_codes(known, log, series_id=one.series_id)


def is_code(value: float) -> bool:
    """Whether a number is one that programs write for "no value": all nines, a limit of a type, a huge power of ten."""
    size = abs(value)
    if size in CODES or size >= LARGEST or np.float32(size) == np.float32(NETCDF):
        return True
    if size >= HUGE:
        return bool(np.isclose(np.log10(size), np.round(np.log10(size)), rtol=0, atol=1e-6))
    text = f"{size:.6g}"
    return len(text) > 1 and set(text) <= {"9", "."}


def outlying_code(known: np.ndarray) -> float | None:
    """A code for "no value" far outside of all other values, float64 [n], none missing."""
    ends = (float(known.min()), float(known.max())) if len(known) else ()
    return next((each for each in ends if is_code(each) and _is_far(known, each)), None)


def as_typed(code: float) -> str:
    """A number as one types it after `--missing`."""
    return f"{code:.15g}" if float(f"{code:.15g}") == code else repr(code)


def note_codes(known: np.ndarray, log: ProblemLog, *, series_id: str | None = None, column: str | None = None) -> None:
    """Note the codes for missing values among the values of a series or of a covariate. known: [n], n > 0, finite."""
    for _ in range(MAX_CODES):
        code = outlying_code(known)
        if code is None:
            return
        count, known, written = int((known == code).sum()), known[known != code], as_typed(code)
        whose = "" if column is None else f" of '{column}'"
        message = (
            f"{count} values{whose} are {written}, far outside the others ({known.min():.6g} to {known.max():.6g})"
        )
        fix = f"if {written} means no value: --missing {written}"
        log.add(
            Problem(kind="fill-value", series_id=series_id, message=message, fix=fix, severity="note", column=column)
        )


def _is_far(known: np.ndarray, code: float) -> bool:
    """Whether all other values lie together on one side, as far from it as they are apart or the sign differs."""
    rest = known[known != code]
    if len(rest) < 2:
        return False
    low, high = float(rest.min()), float(rest.max())
    span = high - low
    if code > high:
        return code - high > span
    return code < low and (low - code > span or (code < 0 <= low and low - code > span / 10))
