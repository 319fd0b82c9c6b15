"""The origins that operation has: every so often, at a time of day, on the clock of the table's own zone.

Which windows a part of a split has is `splits.py`; here some of them are chosen, for scoring, storing or forecasting
again and again.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import pandas as pd

from memory_index.errors import UsageError
from memory_index.tables.series import SeriesTable
from memory_index.windows import Step, to_ns

DAY = pd.Timedelta(days=1)
UNITS = {"min": pd.Timedelta(minutes=1), "h": pd.Timedelta(hours=1), "d": DAY, "w": 7 * DAY}


@dataclass(frozen=True, kw_only=True, slots=True)
class Schedule:
    """When operation forecasts. every: from one origin to the next. at: time of day of one of them, since midnight.

    Both are read off the clock of the table's zone (of a table without one, off its times). With `every` a day or more,
    each origin is at that time of day, on a day of 23 or 25 hours too. A time that the clock skips is the moment that
    it shows next; of one that it shows twice the first counts, and the second as well where so often is asked for
    (every hour, say). Without `at` the first origin there is decides.
    """

    every: pd.Timedelta
    at: pd.Timedelta | None = None

    def __str__(self) -> str:
        """As it would be typed."""
        hours = self.every / pd.Timedelta(hours=1)
        every = f"every {hours:g}h" if hours == int(hours) else f"every {hours * 60:g}min"
        return every if self.at is None else f"{every} at {self.at.components.hours:02}:{self.at.components.minutes:02}"

    def moments(self, step: Step, first: np.datetime64, last: np.datetime64) -> np.ndarray:
        """Every moment of the schedule from `first` to `last`, datetime64[ns] [n], ascending.

        Without `at`, `first` is one of them. They need not be steps of a table.
        """
        shown, end = step.local(np.array([first, last], dtype="datetime64[ns]")).tz_localize(None)
        one = shown if self.at is None else shown.normalize() + self.at
        one = one + DAY if one < shown else one  # within the next day
        begin = one - (one - shown) // self.every * self.every
        clock = pd.date_range(begin, max(end, begin) + DAY, freq=self.every)  # the clock may be put back at the end
        moments = to_ns(clock) if step.time_zone is None else _first_and_second(clock, step.time_zone, self.every)
        return moments[(moments >= first) & (moments <= last)]


def parse_schedule(every: str | None, at: str | None) -> Schedule | None:
    """`24h` and `23:00` as a schedule; None if neither is given, a day if only the time is. Raises `UsageError`."""
    if every is None and at is None:
        return None
    return Schedule(every=DAY if every is None else interval(every), at=None if at is None else _time_of_day(at))


def scheduled(table: SeriesTable, origins: list[np.ndarray], schedule: Schedule) -> list[np.ndarray]:
    """Those of some origins (rows by series) that a schedule has. It is one for all series of the table.

    Raises `UsageError` if it does not go with the steps of the table, or there are origins but none is on it.
    """
    times = [series.times[rows] for series, rows in zip(table.series, origins, strict=True)]
    some = [each for each in times if len(each)]
    _require_whole_steps(schedule, table.step)
    if not some:
        return origins
    first, last = min(each[0] for each in some), max(each[-1] for each in some)
    moments = schedule.moments(table.step, first, last)
    chosen = [rows[np.isin(each, moments)] for rows, each in zip(origins, times, strict=True)]
    if not any(len(rows) for rows in chosen):
        raise UsageError(
            f"no origin of {table.source} is {schedule}: its steps of {table.step.frequency} go from "
            f"{table.step.isoformat(first)} to {table.step.isoformat(last)}",
            hint="choose --at as the time of a step",
        )
    return chosen


def _first_and_second(clock: pd.DatetimeIndex, time_zone: str, every: pd.Timedelta) -> np.ndarray:
    """When a zone's clock shows these times, datetime64[ns] ascending; see `Schedule`."""
    first, second = (
        to_ns(clock.tz_localize(time_zone, ambiguous=np.full(len(clock), is_first), nonexistent="shift_forward"))
        for is_first in (True, False)
    )
    return np.union1d(first, second[(second - first) % every.to_timedelta64() == np.timedelta64(0)])


def step_length(step: Step) -> pd.Timedelta | None:
    """How long a step lasts on the clock; None where steps differ in length."""
    offset = step.offset
    if step.is_fixed:
        return pd.Timedelta(step.add(np.zeros(1, dtype="datetime64[ns]"), 1)[0].astype("timedelta64[ns]"))
    if isinstance(offset, pd.tseries.offsets.Day | pd.tseries.offsets.Week | pd.tseries.offsets.BusinessDay):
        return pd.Timedelta(offset.n * (7 * DAY if isinstance(offset, pd.tseries.offsets.Week) else DAY))
    return None


def num_steps(text: str, step: Step, *, flag: str) -> float:
    """A length of time such as `26w`, or a number of steps, in steps. Raises `UsageError`, which names the flag."""
    if text.strip().isdigit() and int(text) > 0:
        return float(text)
    asked, length = interval(text, flag=flag), step_length(step)
    if length is None:
        raise UsageError(
            f"{flag} {text} does not go with steps of {step.frequency}, which differ in length",
            hint=f"give a number of steps, such as {flag} 24",
        )
    return asked / length


def _require_whole_steps(schedule: Schedule, step: Step) -> None:
    length = step_length(step)
    if length is None:
        raise UsageError(
            f"--every {schedule} does not go with steps of {step.frequency}, which differ in length",
            hint="leave it out: every step is an origin",
        )
    if schedule.every % length != pd.Timedelta(0):
        raise UsageError(
            f"{schedule} is no whole number of steps of {step.frequency}",
            hint=f"choose a multiple of the step, such as --every {_typed(max(1, schedule.every // length) * length)}",
        )


def _typed(length: pd.Timedelta) -> str:
    minutes = length // pd.Timedelta(minutes=1)
    return f"{minutes // 60}h" if minutes % 60 == 0 else f"{minutes}min"


def interval(text: str, *, flag: str = "--every") -> pd.Timedelta:
    """`30min`, `24h`, `7d` or `1w` as a length of time. Raises `UsageError`, which names the flag."""
    match = re.fullmatch(r"([1-9]\d{0,5})\s*(min|[hdw])", text.strip().lower())
    if not match:
        raise UsageError(f"{flag} {text}: expected a number of min, h, d or w", hint=f"for example {flag} 24h")
    return int(match[1]) * UNITS[match[2]]


def _time_of_day(text: str) -> pd.Timedelta:
    match = re.fullmatch(r"([01]?\d|2[0-3]):([0-5]\d)", text.strip())
    if not match:
        raise UsageError(f"--at {text}: expected a time of day", hint="for example --at 23:00")
    return pd.Timedelta(hours=int(match[1]), minutes=int(match[2]))
