"""Values that may be no measurement: codes for "no value" and faults far outside a series' range, and what float32
cannot hold.

Windows are kept and compared in float32. What is too large for it is a fault of its cell (`regular.py`); a series that
is too small as a whole is refused here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from memory_index.tables.problems import Problem, ProblemLog
from memory_index.tables.series import Series
from memory_index.windows import Step

LARGEST = float(np.finfo(np.float32).max)
SMALLEST = float(np.finfo(np.float32).tiny)  # smaller numbers lose digits, the smallest all of them
HUGE = 1e20  # from here on a power of ten, or the largest number of a type, is no measurement
CODES = frozenset(float(2**bits) for bits in (15, 31, 63)) | frozenset(float(2**bits - 1) for bits in (15, 16, 31, 32))
NETCDF = 9.96920996838687e36  # its default of floating numbers
MAX_CODES = 3  # different codes of one series
FAR = 10.0  # times as far from the median as the farthest of the others: heavy tails and spikes reach five
FEW, MOST_FAR = 0.005, 48  # share and number of values that may lie so far; three may in any series
LEAST_VALUES, LEAST_DIFFERENT = 30, 20  # values, and values that are not the median, without which nothing is far


@dataclass(frozen=True, kw_only=True, slots=True)
class Far:
    """Values of one series far outside of its others, ascending. code: whether programs write them for "no value"."""

    series: int
    values: tuple[float, ...]
    count: int
    low: float
    high: float
    code: bool

    @property
    def others(self) -> str:
        """The range of the others."""
        return f"{self.low:.6g} to {self.high:.6g}"


def note_ranges(series: Sequence[Series], step: Step, log: ProblemLog) -> None:
    """Note codes for missing values and single values far outside of a series' others, each with what removes it; and
    series that float32 cannot hold.
    """
    found: list[Far] = []
    for number, one in enumerate(series):
        known = one.values[np.isfinite(one.values)]
        if len(known) == 0:
            continue
        low, high = float(known.min()), float(known.max())
        if 0 < max(abs(low), abs(high)) < SMALLEST:
            message = f"the values, from {low:.3g} to {high:.3g}, are too small for float32, in which windows are kept"
            fix = "multiply the series by a power of ten first, and divide its forecasts by it"
            log.add(Problem(kind="too-small", series_id=one.series_id, message=message, fix=fix))
        else:
            found += far_values(known, number)

    @cache
    def usual_elsewhere(value: float) -> bool:
        far = {each.series for each in found if value in each.values}
        return any(number not in far and (one.values == value).any() for number, one in enumerate(series))

    for kind, codes in (("fill-value", True), ("outlier", False)):
        those = [each for each in found if each.code == codes]

        def problem_at(place: int, those: list[Far] = those, kind: str = kind) -> Problem:
            far = those[place]
            one = series[far.series]
            removable = [value for value in far.values if not usual_elsewhere(value)] == list(far.values)
            first = int(np.isin(one.values, far.values).argmax())
            return Problem(
                kind=kind,
                series_id=one.series_id,
                at=step.isoformat(one.times[first]),
                message=message_of(far),
                fix=fix_of(far, removable=removable),
                severity="note",
            )

        names = (series[each.series].series_id for each in those)
        log.add_at(range(len(those)), len(those), problem_at, kind=kind, series=names)


def far_values(known: np.ndarray, number: int = 0) -> list[Far]:
    """What lies far outside of the other values of a series (float64 [n], none missing): codes, then faults."""
    found = []
    for _ in range(MAX_CODES):
        code = outlying_code(known)
        if code is None:
            break
        count, known = int((known == code).sum()), known[known != code]
        low, high = float(known.min()), float(known.max())
        found.append(Far(series=number, values=(code,), count=count, low=low, high=high, code=True))
    far = outlying(known)
    if far.any():
        rest, values = known[~far], tuple(float(each) for each in np.unique(known[far]))
        low, high = float(rest.min()), float(rest.max())
        found.append(Far(series=number, values=values, count=int(far.sum()), low=low, high=high, code=False))
    return found


def message_of(far: Far, column: str = "") -> str:
    """What a note says of it."""
    whose = f" of '{column}'" if column else ""
    if len(far.values) == 1:
        count = f"{far.count} values{whose} are" if far.count > 1 or far.code else f"the value{whose} is"
        return f"{count} {as_typed(far.values[0])}, far outside the others ({far.others})"
    lowest, highest = as_typed(far.values[0]), as_typed(far.values[-1])
    return f"{far.count} values{whose}, from {lowest} to {highest}, are far outside the others ({far.others})"


def fix_of(far: Far, *, removable: bool) -> str:
    """What to do about it. removable: whether no other series has these values by right."""
    flags = " ".join(f"--missing {as_typed(value)}" for value in far.values)
    it = as_typed(far.values[0])
    if far.code:
        return f"if {it} means no value: " + (
            flags if removable else "empty these cells, since other series have it too"
        )
    todo = flags if removable and len(far.values) <= MAX_CODES else "empty these cells"
    return f"if this is a fault: {todo}; if it is real, --transform asinh keeps it from outweighing the others"


def outlying(known: np.ndarray) -> np.ndarray:
    """bool [n]: the few values that lie at least `FAR` times as far from the median as all others.

    Of a smooth distribution, and of counts with many zeros, the largest value is not much larger than the next.
    """
    far = np.zeros(len(known), dtype=bool)
    if len(known) < LEAST_VALUES:
        return far
    apart = np.abs(known - np.median(known))
    most = min(max(3, int(FEW * len(known))), MOST_FAR)
    farthest = np.sort(np.partition(apart, len(apart) - most - 1)[-most - 1 :])
    enough = np.count_nonzero(apart) - np.arange(most, 0, -1) >= LEAST_DIFFERENT
    jumps = np.flatnonzero((farthest[1:] >= FAR * farthest[:-1]) & enough)
    return np.asarray(apart > farthest[jumps[0]]) if len(jumps) else far


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


def note_column(known: np.ndarray, log: ProblemLog, column: str) -> None:
    """The same for a covariate. known: float64 [n], n > 0, finite."""
    for far in far_values(known):
        kind, message = "fill-value" if far.code else "outlier", message_of(far, column)
        fix = fix_of(far, removable=True)
        log.add(Problem(kind=kind, message=message, fix=fix, severity="note", column=column))


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
