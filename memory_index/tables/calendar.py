"""Covariates that the calendar makes: hour, weekday, week of the year and so on, and public holidays.

They are functions of the time alone, on the table's own clock: known at any time, however far ahead. What goes round
(the hour of a day, the week of a year) is a pair of numbers, its sine and cosine, so that 23:00 is next to 00:00; the
weekday is a category.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from memory_index.covariates import Covariate, Covariates, CovariateValues
from memory_index.errors import ResourceError, UsageError
from memory_index.tables.series import SeriesTable
from memory_index.windows import Step

CALENDAR, HOLIDAYS = "calendar", "holidays "  # sources of columns; the country follows the second
HOLIDAY = "holiday"
WEEKDAYS = ("Fri", "Mon", "Sat", "Sun", "Thu", "Tue", "Wed")  # sorted, as the words of every category
FROM_MONDAY = np.array([WEEKDAYS.index(name) for name in ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")])
ROUND = ("hour", "day", "week", "month", "quarter")  # each a pair NAME_sin, NAME_cos
FEATURES = ("hour", "weekday", "day", "week", "month", "quarter")
YEARLY = {"week", "month", "quarter"}
FEW_YEARS = 2  # of so many a yearly feature tells the season from a trend


def require_features(names: Sequence[str]) -> None:
    """Raise `UsageError` for a name that is no feature, or `none` and `auto` beside others."""
    for name in names:
        if name not in (*FEATURES, "none", "auto"):
            raise UsageError(f"--calendar {name}: there is no such feature", hint=f"choose of {', '.join(FEATURES)}")
    if len(names) > 1 and {"none", "auto"} & set(names):
        raise UsageError(f"--calendar {','.join(names)}: none and auto stand alone", hint="give one or the other")


def features_by_step(step: Step, times: np.ndarray) -> tuple[str, ...]:
    """What `auto` stands for: every cycle longer than a step, those of a year only where times span two of them."""
    if len(times) < 2:
        return ()
    length = float(np.median(np.diff(times).astype(np.int64))) / 86_400e9  # days
    years = float((times[-1] - times[0]).astype(np.int64)) / 365.25 / 86_400e9
    names = [name for name, least in (("hour", 0.9), ("weekday", 3), ("week", 20), ("month", 80)) if length < least]
    names = [name for name in names if name != "month" or length > 20]  # weeks tell more
    if 80 <= length < 300:
        names = ["quarter"]
    return tuple(name for name in names if name not in YEARLY or years >= FEW_YEARS)


def names_of(columns: Iterable[str]) -> tuple[str, ...]:
    """The features that columns such as `hour_sin` are of, each once."""
    return tuple(dict.fromkeys(name.removesuffix("_sin").removesuffix("_cos") for name in columns))


def calendar_columns(features: Sequence[str], country: str | None) -> tuple[Covariate, ...]:
    """The columns of features, and `holiday` where a country is named."""
    columns: list[Covariate] = []
    for name in features:
        if name in ROUND:
            columns += [
                Covariate(name=f"{name}_{part}", role="known", kind="number", source=CALENDAR)
                for part in ("sin", "cos")
            ]
        else:
            columns.append(Covariate(name=name, role="known", kind="category", categories=WEEKDAYS, source=CALENDAR))
    if country is not None:
        columns.append(Covariate(name=HOLIDAY, role="known", kind="boolean", source=f"{HOLIDAYS}{country}"))
    return tuple(columns)


def calendar_values(columns: Sequence[Covariate], times: np.ndarray, step: Step) -> np.ndarray:
    """float64 [C, T]: the values of columns that the calendar makes, at any times (datetime64[ns] [T]).

    A row of NaN for every other column. Raises `UsageError` for a country that is not known, and `ResourceError` if the
    package `holidays` is not installed.
    """
    values = np.full((len(columns), len(times)), np.nan)
    local = step.local(times)
    for number, column in enumerate(columns):
        if column.source == CALENDAR and column.kind == "category":
            values[number] = FROM_MONDAY[local.day_of_week.to_numpy()]
        elif column.source == CALENDAR:
            name, part = column.name.rsplit("_", 1)
            turn = 2 * np.pi * _turns(local, name)
            values[number] = np.sin(turn) if part == "sin" else np.cos(turn)
        elif column.source.startswith(HOLIDAYS):
            values[number] = _holidays(local, column.source.removeprefix(HOLIDAYS))
    return values


def _turns(local: pd.DatetimeIndex, name: str) -> np.ndarray:
    """float64 [T]: how much of its round a feature has gone, by the clock that people there read."""
    if name == "hour":
        return ((local.hour * 60 + local.minute) / (24 * 60) + local.second / 86_400).to_numpy()
    if name == "day":
        return ((local.day - 1) / local.days_in_month).to_numpy()
    if name == "week":  # by the day, so that it does not jump from one week to the next
        return ((local.day_of_year - 1) / (365 + local.is_leap_year)).to_numpy()
    return ((local.month - 1) / 12 if name == "month" else (local.quarter - 1) / 4).to_numpy()


def _holidays(local: pd.DatetimeIndex, country: str) -> np.ndarray:
    """float64 [T]: 1 on public holidays. country: ISO 3166, as `DE`, or with a part of it, as `DE-BY`."""
    try:
        import holidays
    except ImportError as error:
        raise ResourceError(
            "--holidays needs the package holidays, which is not installed",
            hint="install it with the extra calendar: pip install 'gram-forecaster[calendar]'",
        ) from error
    code, _, part = country.partition("-")
    days = pd.DatetimeIndex(local.tz_localize(None)).normalize()
    years = range(int(days.year.min()), int(days.year.max()) + 1) if len(days) else range(0)
    try:
        found = holidays.country_holidays(code, subdiv=part or None, years=years)
    except NotImplementedError as error:
        raise UsageError(
            f"--holidays {country}: the package holidays knows no such country or part of one",
            hint="give its ISO 3166 code, as DE or DE-BY",
        ) from error
    return days.isin(pd.DatetimeIndex(sorted(found.keys()))).astype(np.float64)


def with_calendar(table: SeriesTable, features: Sequence[str], country: str | None) -> SeriesTable:
    """The table with these columns behind its own. Raises `UsageError` for a name that it has already."""
    columns = calendar_columns(features, country)
    if not columns:
        return table
    own = () if table.covariates is None else table.covariates.columns
    taken = {column.name for column in own} | set(table.series_ids if table.layout == "wide" else ())
    for column in columns:
        if column.name in taken:
            flag = "--holidays" if column.name == HOLIDAY else "--calendar"
            raise UsageError(
                f"{flag} adds a column '{column.name}', which {table.source} has already",
                hint=f"leave {flag} out, or rename the column",
            )
    beside = times_beside(table)
    of_times: dict[tuple[int, int], np.ndarray] = {}  # by first time and number of steps
    made: dict[int, CovariateValues] = {}  # series that share their covariates still do
    every = []
    for each in beside:
        span = int(each.times[0].astype(np.int64)), len(each.times)
        if span not in of_times:
            of_times[span] = calendar_values(columns, each.times, table.step)
        if id(each) not in made:
            made[id(each)] = replace(each, values=np.concatenate([each.values, of_times[span]]))
        every.append(made[id(each)])
    given = None if table.covariates is None else table.covariates.vintages
    return replace(table, covariates=Covariates(columns=(*own, *columns), series=tuple(every), vintages=given))


def times_beside(table: SeriesTable) -> tuple[CovariateValues, ...]:
    """The covariates of the table, or none at the steps of its series: those of a wide table share the longest."""
    if table.covariates is not None:
        return table.covariates.series
    if table.layout == "wide":
        times = max((series.times for series in table.series), key=len)
        return (CovariateValues(times=times, values=np.empty((0, len(times)))),) * len(table.series)
    shared: dict[int, CovariateValues] = {}  # series of the same steps share their times
    for series in table.series:
        shared.setdefault(
            id(series.times), CovariateValues(times=series.times, values=np.empty((0, len(series.times))))
        )
    return tuple(shared[id(series.times)] for series in table.series)
