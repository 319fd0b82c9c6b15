"""The step between the rows of a table: found from its times, or named by the user; and times on its grid."""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import pandas as pd

from memory_index.errors import DataError, UsageError
from memory_index.windows import Step, to_ns

ONE_DAY = 86_400 * 10**9  # ns
COARSE = 20 * 3600 * 10**9  # ns; from such a median distance on, steps are counted in local calendar days
WEEKDAYS = ("MON", "TUE", "WED", "THU", "FRI", "SAT", "SUN")
STEP_HINT = "a pandas frequency such as h, 15min, D, B, W-SUN, MS or QS"
NUM_COMPARED = 400  # steps after which two steps that still agree are the same: over a year of days
WORDS = {
    "hourly": "h",
    "daily": "D",
    "weekly": "W",
    "monthly": "MS",
    "quarterly": "QS",
    "yearly": "YS",
    "annual": "YS",
}
OLD_NAMES = {  # of pandas before 2.2
    "H": "h",
    "T": "min",
    "S": "s",
    "L": "ms",
    "U": "us",
    "N": "ns",
    "M": "ME",
    "Q": "QE",
    "A": "YE",
    "Y": "YE",
    "AS": "YS",
    "BM": "BME",
    "BQ": "BQE",
    "BA": "BYE",
    "BY": "BYE",
    "BAS": "BYS",
    "SM": "SME",
    "CBM": "CBME",
}
MONTHS = ("JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC")


def step_of(frequency: str, time_zone: str | None) -> Step:
    """A `Step` from a frequency that a user wrote, under any of its names. Raises `UsageError` if it has none."""
    step = Step(frequency=_renamed(frequency), time_zone=time_zone)
    try:
        forward = step.offset.n > 0
    except (ValueError, KeyError) as error:
        raise UsageError(f"'{frequency}' is not a step", hint=STEP_HINT) from error
    if not forward:
        raise UsageError(f"the step '{frequency}' does not go forward", hint=STEP_HINT)
    return step


def _renamed(frequency: str) -> str:
    """A step as pandas spells it now: `H`, `T`, `M` of older releases, `hourly`, `15 minutes`, `PT15M`."""
    text = frequency.strip()
    if (word := text.lower()) in WORDS:
        return WORDS[word]
    if number := re.fullmatch(r"(\d*)([A-Z]+)(-[A-Z0-9]+)?", text):
        count, letters, anchor = number.groups()
        if letters in OLD_NAMES:
            return f"{count}{OLD_NAMES[letters]}{anchor or ''}"
    if re.fullmatch(r"P[T\dDHMS.]+|\d+ *[A-Za-z]{3,}", text) and not text.endswith(("min", "SMS", "BMS", "BME", "SME")):
        with suppress(ValueError):
            length = pd.Timedelta(text).value
            return _tick_name(length) if length % ONE_DAY else f"{length // ONE_DAY}D"
    return text


def same_step(one: Step, other: Step, at: np.datetime64) -> bool:
    """Whether two steps count the same times from a time on, whatever they are called: `h` and `60min`, `QS`, `3MS`."""
    if one == other:
        return True
    if one.time_zone != other.time_zone:
        return False
    if one.is_fixed and other.is_fixed:
        return bool(one.add(np.array([at]), 1)[0] == other.add(np.array([at]), 1)[0])
    for num in (NUM_COMPARED, NUM_COMPARED // 4, NUM_COMPARED // 40):  # fewer of years, before nanoseconds end
        with suppress(DataError, pd.errors.OutOfBoundsDatetime, ValueError, OverflowError):
            return np.array_equal(one.range(at, num), other.range(at, num))
    return False


@dataclass(frozen=True, kw_only=True, slots=True)
class Fit:
    """How well a step fits times: the share of the times on its grid, and the share of its grid that has a time."""

    step: Step
    on_grid: float
    filled: float

    @property
    def is_regular(self) -> bool:
        """Whether times may be read on this grid without the user having named it."""
        return self.on_grid >= 0.5 and self.filled >= 0.5


def infer_step(times: np.ndarray, time_zone: str | None) -> Step | None:
    """The step of these times, None if the one that fits them best leaves most of its grid empty. See `best_fit`."""
    fit = best_fit(times, time_zone)
    return fit.step if fit is not None and fit.is_regular else None


def best_fit(times: np.ndarray, time_zone: str | None) -> Fit | None:
    """The step on whose grid most times lie and which leaves the fewest holes; None for a single time.

    times: datetime64[ns] [n], ascending, distinct. Every candidate (the most common, the smallest and the
    greatest common distance; calendar steps of about that length) scores (share of times on its grid) x
    (share of its grid that is filled), so gaps, a stray time stamp, weekends and months of unequal length do
    not mislead it.
    """
    if len(times) < 2:
        return None
    wall, coarse = to_ns(Step(frequency="D", time_zone=time_zone).clock(times)), is_coarse(times)
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
    return Fit(step=Step(frequency=frequency, time_zone=time_zone), on_grid=on_grid, filled=filled)


def is_coarse(times: np.ndarray) -> bool:
    """Whether most of these times (datetime64[ns] [n], ascending, distinct) are at least about a day apart."""
    return len(times) > 1 and bool(np.median(np.diff(times).astype(np.int64)) >= COARSE)


def _long_steps(median: float) -> tuple[str, ...]:
    """Calendar steps of a month or more that fit a median distance in ns."""
    days = median / ONE_DAY
    if 27 <= days <= 32:
        return ("MS", "ME", "BMS", "BME")
    if 88 <= days <= 93:
        ends = ("DEC", "JAN", "FEB")
        plain = (*(f"QS-{month}" for month in MONTHS[:3]), *(f"QE-{month}" for month in ends))
        return (*plain, *(f"BQS-{month}" for month in MONTHS[:3]), *(f"BQE-{month}" for month in ends))
    if 360 <= days <= 370:
        return tuple(f"{kind}-{month}" for kind in ("YS", "YE", "BYS", "BYE") for month in MONTHS)
    return ()


def _name(distance: int, wall: np.ndarray, coarse: bool) -> str:
    if coarse and distance % (7 * ONE_DAY) == 0:
        weeks, day = distance // (7 * ONE_DAY), WEEKDAYS[pd.Timestamp(wall[-1]).weekday()]
        return f"W-{day}" if weeks == 1 else f"{weeks}W-{day}"
    if coarse and distance % ONE_DAY == 0:
        return "D" if distance == ONE_DAY else f"{distance // ONE_DAY}D"
    return _tick_name(distance)


def _tick_name(distance: int) -> str:
    return str(pd.tseries.frequencies.to_offset(pd.Timedelta(distance, "ns")).freqstr)


def _fixed_score(ticks: np.ndarray, distance: int) -> tuple[float, float]:
    on = ticks[_on_phase(ticks, distance)]
    return len(on) / len(ticks), len(on) / ((float(on[-1]) - float(on[0])) // distance + 1)


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

    times: datetime64[ns] [n], ascending, distinct. Raises `DataError` as `Step` does.
    """
    ticks = times.astype(np.int64)
    if step.is_fixed:
        distance = int((step.add(times[:1], 1) - times[:1])[0].astype(np.int64))
        on = _on_phase(ticks, distance)
        return np.where(on, (ticks - ticks[on][0]) // distance, -1)
    clock = to_ns(step.clock(times)).astype(np.int64) % ONE_DAY
    clocks, counts = np.unique(clock, return_counts=True)
    first = times[clock == clocks[counts.argmax()]][0]
    grid = step.until(first, times[-1]).astype(np.int64)
    if len(grid) == 0:
        return np.full(len(times), -1)
    position = np.minimum(np.searchsorted(grid, ticks), len(grid) - 1)
    on = grid[position] == ticks
    return np.where(on, position - (position[on][0] if on.any() else 0), -1)
