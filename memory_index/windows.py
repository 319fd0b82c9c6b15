"""All lookback, horizon and origin arithmetic, and the record of the windows that a version stores.

A window is `lookback + horizon` consecutive steps of one series. Its *origin* is the time of the last
context step, its *known_at* the time of its last future step plus the publication delay. Rows of a
segment are ordered by (known_at, series), and a later segment's rows follow: a row id never changes.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from memory_index.errors import DataError, UsageError
from memory_index.leakage import TimeSpans
from memory_index.missing import MAX_MISSING, filled, missing_before
from memory_index.transforms import NO_TRANSFORM, Curve, Transform, out_of_domain
from memory_index.types import Queries

if TYPE_CHECKING:
    from memory_index.covariate_map import StoredCovariates

DAY = pd.Timedelta(days=1)
# Steps in a week (days) or a year, by the rule that a pandas frequency follows, business days or not.
CALENDAR_SEASONS = {"D": 7, "B": 5, "C": 5, "W": 52, "SMS": 24, "SME": 24}
CALENDAR_SEASONS |= dict.fromkeys(("MS", "ME", "BMS", "BME", "CBMS", "CBME"), 12)
CALENDAR_SEASONS |= dict.fromkeys(("QS", "QE", "BQS", "BQE"), 4)


@dataclass(frozen=True, kw_only=True)
class Step:
    """The distance between two steps of a series: a pandas frequency, calendar ones (`MS`, `B`) included.

    Times are handled as datetime64[ns] in UTC (or naive when `time_zone` is None); the zone matters only
    for steps of a day or more, whose length in hours changes with daylight saving. They are counted on the zone's
    clock: a day whose midnight it skips begins at the first moment that there is, and a time that it shows twice is
    the first of the two. Where a step would begin at another time that it skips, counting raises `DataError`: the
    moment it shows next does not tell what time was meant.
    """

    frequency: str
    time_zone: str | None = None

    def add(self, times: np.ndarray, num_steps: int) -> np.ndarray:
        """`times` (datetime64[ns], any shape) moved by `num_steps`, which may be negative."""
        offset = self.offset
        if num_steps == 0:
            return times
        if self.is_fixed:
            length = pd.Timedelta(offset).value  # type: ignore[arg-type]  # the stubs forget Day, which has a length too
            return times + np.timedelta64(length * num_steps, "ns")
        return self._counted(self.clock(times.ravel()) + num_steps * offset).reshape(times.shape)

    def range(self, start: np.datetime64, num_steps: int) -> np.ndarray:
        """`num_steps` consecutive times, datetime64[ns] [num_steps], the first being `start`."""
        first = self.clock(np.array([start], dtype="datetime64[ns]"))[0]
        return self._counted(pd.date_range(first, periods=num_steps, freq=self.offset))

    def until(self, start: np.datetime64, last: np.datetime64) -> np.ndarray:
        """All consecutive times from `start` that are not after `last`, datetime64[ns] [n]."""
        first, end = self.clock(np.array([start, last], dtype="datetime64[ns]"))
        return self._counted(pd.date_range(first, end, freq=self.offset))

    def clock(self, times: np.ndarray) -> pd.DatetimeIndex:
        """`times` [n] on the clock by which steps are counted: the zone's if it decides their length, else UTC."""
        if self.time_zone is None or self.is_fixed:
            return pd.DatetimeIndex(times)
        shown = self.local(times).tz_localize(None)
        midnight = shown.normalize()
        return shown.where(self._first_moments(midnight) != times, midnight)

    def named(self, shown: pd.DatetimeIndex) -> np.ndarray:
        """The moments that times without a UTC offset mean in the zone, datetime64[ns] [n].

        NaT where its clock shows the time twice or never, unless that is where a step begins.
        """
        found = to_ns(shown.tz_localize(self.time_zone, ambiguous="NaT", nonexistent="NaT"))
        return found if self.is_fixed else np.where(np.isnat(found), self._moments(shown), found)

    def local(self, times: np.ndarray) -> pd.DatetimeIndex:
        """`times` as pandas shows them to a person: in the table's own time zone."""
        index = pd.DatetimeIndex(times)
        return index if self.time_zone is None else index.tz_localize("UTC").tz_convert(self.time_zone)

    def isoformat(self, time: np.datetime64 | np.ndarray) -> str:
        """One time (a scalar or an array of shape []) as ISO 8601, with the table's UTC offset if it has a zone."""
        return str(self.local(np.array([time], dtype="datetime64[ns]"))[0].isoformat())

    def parse(self, text: str | datetime | np.datetime64) -> np.datetime64:
        """A time as a person types it -> datetime64[ns], UTC or naive; without an offset it is in the table's own zone.

        The year comes first: of 01/07/2017 nobody can tell which number is the month. A time of Python, pandas or numpy
        will do as well. Raises `UsageError`.
        """
        try:
            if not isinstance(text, datetime | np.datetime64) and not re.match(r"\s*\d{4}[-/.]?\d", text):
                raise ValueError("it must begin with the year, then month and day")
            index = pd.DatetimeIndex([pd.Timestamp(text)]).as_unit("ns")
            if self.time_zone is None and index.tz is not None:
                raise ValueError("it has a UTC offset, but the table's times have none")
            if self.time_zone is not None and index.tz is None:
                index = pd.DatetimeIndex(self.named(index))
                if index.isna().any():
                    raise ValueError(f"{self.time_zone} has it twice or not at all, so add its UTC offset")
        except (ValueError, TypeError, OverflowError) as error:
            raise UsageError(f"'{text}' is not a time: {error}", hint="for example '2018-02-01 00:00'") from error
        return to_ns(index)[0]

    @property
    def offset(self) -> pd.tseries.offsets.BaseOffset:
        """The step as pandas counts with it."""
        return pd.tseries.frequencies.to_offset(self.frequency)

    @property
    def is_fixed(self) -> bool:
        """Whether a step always lasts the same time (hours, minutes; days only without a time zone)."""
        if isinstance(self.offset, pd.tseries.offsets.Tick):
            return True
        return isinstance(self.offset, pd.tseries.offsets.Day) and self.time_zone is None

    @property
    def season(self) -> int | None:
        """Steps of the usual season: a day for steps below a day, a week of days, a year of weeks, months or quarters.

        None where the step has no usual season (yearly steps, or steps that do not divide a day).
        """
        if self.is_fixed:
            length = pd.Timedelta(self.add(np.zeros(1, dtype="datetime64[ns]"), 1)[0].astype("timedelta64[ns]"))
            if length < DAY:
                return int(DAY / length) if DAY % length == pd.Timedelta(0) else None
            return 7 if length == DAY else 52 if length == 7 * DAY else None
        rule, num = self.offset.rule_code.split("-")[0], self.offset.n
        if rule == "D" and num % 7 == 0:
            rule, num = "W", num // 7
        season = CALENDAR_SEASONS.get(rule)
        return season // num if season and season % num == 0 and season > num else None

    def _counted(self, clock: pd.DatetimeIndex) -> np.ndarray:
        """The moments of steps, datetime64[ns] [n]. Raises `DataError` for one that the zone's clock skips."""
        moments = self._moments(clock)
        skipped = np.flatnonzero(np.isnat(moments) & clock.notna())
        if len(skipped):
            raise DataError(
                f"a step of '{self.frequency}' would begin at {clock[skipped[0]]}, which the clock in "
                f"{self.time_zone} skips or reads instead of midnight",
                hint="write times of steps of a day or more as dates, or leave out the time zone",
            )
        return moments

    def _moments(self, clock: pd.DatetimeIndex) -> np.ndarray:
        """When `clock` reads so, datetime64[ns] [n]; NaT where it never does."""
        if self.time_zone is None or self.is_fixed:
            return to_ns(clock)
        found = self._first_moments(clock)
        return np.where(self.clock(found) == clock, found, np.datetime64("NaT", "ns"))

    def _first_moments(self, clock: pd.DatetimeIndex) -> np.ndarray:
        """When the zone's clock first shows these times, or skips them: datetime64[ns] [n]."""
        first = np.ones(len(clock), dtype=bool)
        return to_ns(clock.tz_localize(self.time_zone, ambiguous=first, nonexistent="shift_forward"))


def to_ns(index: pd.DatetimeIndex) -> np.ndarray:
    """A DatetimeIndex as datetime64[ns] in UTC (or naive)."""
    if index.tz is not None:
        index = index.tz_convert("UTC").tz_localize(None)
    return index.to_numpy().astype("datetime64[ns]")


@dataclass(frozen=True, kw_only=True, slots=True)
class WindowSpec:
    """The shape of every window of a version, in steps.

    `stride` is the distance between the origins of two stored windows of a series; `known_delay` how long
    after its last step a window's values are published. `max_missing` is the share of a view's cells that may be
    missing: a window is left out of the views where more are. 0 asks for whole windows, their futures included.
    """

    lookback: int
    horizon: int
    stride: int = 1
    known_delay: int = 0
    max_missing: float = MAX_MISSING

    def __post_init__(self) -> None:
        for name, least in (("lookback", 2), ("horizon", 1), ("stride", 1), ("known_delay", 0)):
            if getattr(self, name) < least:
                raise UsageError(f"{name} is {getattr(self, name)}, but must be at least {least}")
        if not 0 <= self.max_missing < 1:
            raise UsageError(f"max_missing is {self.max_missing}, but must be at least 0 and below 1")

    def scored(self, horizon: int | None = None) -> WindowSpec:
        """The windows that are asked and scored: every origin, whatever the stride of those that are stored."""
        return replace(self, stride=1, known_delay=0, horizon=self.horizon if horizon is None else horizon)

    def most_missing(self, view: int) -> int:
        """How many of the cells of a view may be missing."""
        return int(self.max_missing * view + 1e-9)

    @property
    def length(self) -> int:
        """Steps of a whole window: lookback + horizon."""
        return self.lookback + self.horizon

    def to_dict(self) -> dict[str, int | float]:
        """The fields by name, in steps but for `max_missing`."""
        return asdict(self)


def origin_rows(
    values: np.ndarray, spec: WindowSpec, *, views: tuple[int, ...] = (), with_future: bool = True
) -> np.ndarray:
    """Rows of a series that can be an origin: a window around them of which enough is known.

    values: float [T], NaN where missing. views: of which one must be usable (see `WindowSpec.max_missing`), default the
    whole lookback. with_future: at least one step of the future must be known. Returns int64 [n], ascending, every
    `spec.stride`-th row counted from the first row that has a full lookback, so that a longer series only adds origins
    at the end.
    """
    ahead = spec.horizon if with_future else 0
    rows = np.arange(spec.lookback - 1, len(values) - ahead, spec.stride, dtype=np.int64)
    missing = missing_before(values)
    if missing[-1] == 0 or len(rows) == 0:
        return rows
    if spec.max_missing == 0:
        return rows[missing[rows + 1 + ahead] == missing[rows + 1 - spec.lookback]]
    usable = np.zeros(len(rows), dtype=bool)
    for view in views or (spec.lookback,):
        usable |= missing[rows + 1] - missing[rows + 1 - view] <= spec.most_missing(view)
    if with_future:
        usable &= missing[rows + 1 + ahead] - missing[rows + 1] < ahead
    return rows[usable]


def cut(values: np.ndarray, first: np.ndarray, length: int) -> np.ndarray:
    """Stretches of `length` steps that begin at `first`: values [T], first int [...] -> [..., length]."""
    return np.lib.stride_tricks.sliding_window_view(values, length)[first]


def complete_moments(known_at: np.ndarray, num_series: int) -> np.ndarray:
    """int64 [M, N]: the rows of each moment at which all N series have a window. known_at: of rows [n] in row order.

    Rows are ordered by (known_at, series), so the rows of a complete moment are consecutive.
    """
    if len(known_at) < num_series:
        return np.empty((0, num_series), dtype=np.int64)
    last = num_series - 1
    first = np.flatnonzero(known_at[last:] == known_at[: len(known_at) - last])
    return first[:, None] + np.arange(num_series)


def check_views(views: tuple[int, ...], spec: WindowSpec) -> None:
    """Raise `UsageError` unless every view (a number of last steps) fits into the lookback."""
    for view in views:
        if not 2 <= view <= spec.lookback:
            raise UsageError(
                f"view {view} does not fit a lookback of {spec.lookback} steps",
                hint=f"choose views between 2 and {spec.lookback}, or a longer lookback",
            )
    if len(set(views)) != len(views) or not views:
        raise UsageError(f"views must be distinct and at least one, not {list(views)}")


@dataclass(frozen=True, kw_only=True)
class StoredWindows:
    """Every window of a version by row id, with the series that they are cut from (stored once).

    R rows, T steps over all series end to end, V views.
    """

    spec: WindowSpec
    step: Step
    series_ids: tuple[str, ...]
    views: tuple[int, ...]
    values: np.ndarray  # float32 [T], raw units but in `inside`
    times: np.ndarray  # datetime64[ns] [T]
    offset: np.ndarray  # int64 [num_series + 1], where each series begins in values and times
    series: np.ndarray  # int32 [R], number of the series
    origin_row: np.ndarray  # int64 [R], the last context step, counted from the start of its series
    known_at: np.ndarray  # datetime64[ns] [R]
    location: np.ndarray  # float32 [R, V], see scaling.window_statistics
    spread: np.ndarray  # float32 [R, V]
    flat: np.ndarray  # bool [R, V]
    missing: np.ndarray | None = None  # int32 [R, V], missing cells under each view; None where no window misses one
    transform: Transform = NO_TRANSFORM  # of whose units location and spread are
    covariates: StoredCovariates | None = None

    def __len__(self) -> int:
        return len(self.series)

    @cached_property
    def inside(self) -> StoredWindows:
        """The same with values in units of the transform; this record itself where there is none."""
        if not self.transform:
            return self
        return replace(self, values=self.transform.of_values(self.values, self.offset), transform=NO_TRANSFORM)

    def curve(self, queries: Queries) -> Curve:
        """The transform with the numbers of each query, [B, N]."""
        return self.transform.of_queries(self.numbers_of(queries.series_id), queries.context)

    def queries_inside(self, queries: Queries) -> Queries:
        """Queries in units of the transform; themselves where there is none. Raises `DataError` for a value it cannot
        transform.
        """
        if not self.transform:
            return queries
        if self.transform.kind == "log1p" and (queries.context <= -1).any():
            b, n, place = (int(i) for i in np.argwhere(queries.context <= -1)[0])
            at = self.step.add(queries.origin[b : b + 1], place + 1 - queries.context.shape[2])[0]
            value = queries.context[b, n, place]
            raise out_of_domain(f"series '{queries.series_id[n]}' at {self.step.isoformat(at)} is {value:g}")
        return replace(queries, context=self.curve(queries).forward(queries.context))

    @cached_property
    def usable(self) -> np.ndarray | None:
        """bool [R, V]: whether few enough cells of a view are missing; None where nothing is missing."""
        if self.missing is None:
            return None
        return self.missing <= [self.spec.most_missing(view) for view in self.views]

    @cached_property
    def has_holes(self) -> np.ndarray | None:
        """bool [R]: whether any cell of a window's context is missing; None where none is."""
        if self.missing is None:
            return None
        before, position = missing_before(self.values), self.origin_position
        return before[position + 1] > before[position + 1 - self.spec.lookback]

    @cached_property
    def origin_position(self) -> np.ndarray:
        """int64 [R]: where each window's last context step is in `values` and `times`."""
        return self.offset[self.series] + self.origin_row

    @cached_property
    def series_number(self) -> dict[str, int]:
        """The number of each series, by its name: its place in `series_ids`."""
        return {series_id: number for number, series_id in enumerate(self.series_ids)}

    def numbers_of(self, series_id: np.ndarray) -> np.ndarray:
        """int64 [N]: the number of each of these series (str [N]), -1 for one that the version has never seen."""
        return np.array([self.series_number.get(str(name), -1) for name in series_id], dtype=np.int64)

    def moments(self) -> np.ndarray:
        """int64 [M, N]: the rows of moments at which all N series have a window; see `complete_moments`.

        Those of which an earlier segment has a part, because some series lagged, are not among them.
        """
        moments = complete_moments(self.known_at, len(self.series_ids))
        return moments[np.all(self.series[moments] == np.arange(len(self.series_ids)), axis=1)]

    @cached_property
    def num_steps_spanned(self) -> int:
        """Steps from the first origin to the last, whichever series they are of."""
        origins = self.times[self.origin_position]
        return len(self.step.until(origins.min(), origins.max())) - 1

    def origin(self, rows: np.ndarray | slice) -> np.ndarray:
        """Time of the last context step, datetime64[ns], shape of `rows`."""
        return self.times[self.origin_position[rows]]

    def spans(self, rows: np.ndarray | slice) -> TimeSpans:
        """When the windows start, end and become known; each has the shape of `rows`."""
        position = self.origin_position[rows]
        return TimeSpans(
            start_at=self.times[position - self.spec.lookback + 1],
            end_at=self.times[position + self.spec.horizon],
            known_at=self.known_at[rows],
        )

    def contexts(self, rows: np.ndarray) -> np.ndarray:
        """float32 [..., L], raw units, oldest step first; NaN where missing."""
        return cut(self.values, self.origin_position[rows] - self.spec.lookback + 1, self.spec.lookback)

    def futures(self, rows: np.ndarray) -> np.ndarray:
        """float32 [..., H], raw units: what followed; NaN where missing."""
        return cut(self.values, self.origin_position[rows] + 1, self.spec.horizon)

    def covariates_of(self, rows: np.ndarray) -> np.ndarray | None:
        """float32 [..., C, L + H], raw: the covariates of windows, as a query brings them; None without any."""
        return None if self.covariates is None else self.covariates.raw(self.series[rows], self.origin_row[rows])

    def filled_windows(self, rows: np.ndarray, lookback: int, horizon: int) -> np.ndarray:
        """float32 [..., lookback + horizon], units of `values`: the last steps of each context, filled, and the
        first that followed, NaN where missing (`missing.py`). lookback, horizon: at most those of the windows.
        """
        windows = cut(self.values, self.origin_position[rows] - lookback + 1, lookback + horizon)
        if self.has_holes is not None and (holes := self.has_holes[rows]).any():
            distinct, number = np.unique(rows[holes], return_inverse=True)
            windows[holes, :lookback] = filled(self.contexts(distinct), self.step.season)[number, -lookback:]
        return windows
