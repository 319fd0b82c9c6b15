"""The origins that operation has: every so often, at a time of day, on the clock of the table's own zone.

Which windows a part of a split has is `splits.py`; here some of them are chosen, for scoring, storing or forecasting
again and again.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

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
        """As people say it."""
        return f"every {_typed(self.every)}" + ("" if self.at is None else f" at {_clock(self.at)}")

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
    _require_whole_steps(schedule, table.step)
    times = [series.times for series in table.series]
    chosen = on_schedule(table.step, times, origins, schedule)
    if any(len(rows) for rows in origins) and not any(len(rows) for rows in chosen):
        first, last = _ends(times, origins)
        raise UsageError(
            f"no origin of {table.source} is {schedule}: its steps of {table.step.frequency} go from "
            f"{table.step.isoformat(first)} to {table.step.isoformat(last)}",
            hint="choose --at as the time of a step",
        )
    return chosen


def on_schedule(
    step: Step, times: Sequence[np.ndarray], origins: Sequence[np.ndarray], schedule: Schedule | None
) -> list[np.ndarray]:
    """Those of some origins, rows of each series, that a schedule has; all where there is none. times: of the steps of
    each series.
    """
    if schedule is None or not any(len(rows) for rows in origins):
        return list(origins)
    moments = schedule.moments(step, *_ends(times, origins))
    return [rows[np.isin(each[rows], moments)] for each, rows in zip(times, origins, strict=True)]


def _ends(times: Sequence[np.ndarray], origins: Sequence[np.ndarray]) -> tuple[np.datetime64, np.datetime64]:
    """The first and the last origin of all series."""
    some = [(each[rows[0]], each[rows[-1]]) for each, rows in zip(times, origins, strict=True) if len(rows)]
    return min(first for first, _ in some), max(last for _, last in some)


def schedule_of_a_version(every: str | None, at: str | None) -> Schedule | None:
    """As `parse_schedule`, for origins that are stored: the same times of each day, however far the table goes on.

    Raises `UsageError` for a schedule that depends on where it begins.
    """
    schedule = parse_schedule(every, at)
    if schedule is None:
        return None
    if schedule.at is None or DAY % schedule.every != pd.Timedelta(0):
        raise UsageError(
            f"windows cannot be stored {schedule}: which ones would depend on where a table begins",
            hint="give a time of day with --at, as --at 23:00, and --every as a day or a part of one, as 24h or 6h",
        )
    return schedule


def typed(schedule: Schedule | None) -> dict[str, Any]:
    """`every` and `at` of a stored schedule, as `schedule_of_a_version` takes them; nothing without one."""
    if schedule is None or schedule.at is None:
        return {}
    return {"every": _typed(schedule.every), "at": _clock(schedule.at)}


def steps_apart(schedule: Schedule | None, step: Step) -> int:
    """Steps from one origin to the next; 1 without a schedule."""
    length = step_length(step)
    return 1 if schedule is None or length is None else max(1, round(schedule.every / length))


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


def _clock(at: pd.Timedelta) -> str:
    return f"{at.components.hours:02}:{at.components.minutes:02}"


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
