"""What the calendar makes: by the clock that people read, whatever it does at night, and as far ahead as is asked."""

from __future__ import annotations

import sys

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memory_index import ReadOptions, ResourceError, Step, UsageError, read_frame
from memory_index.tables.calendar import FEATURES, calendar_columns, calendar_values, features_by_step
from memory_index.tables.steps_ahead import covariates_ahead
from memory_index.windows import to_ns

ZONES = (None, "Europe/Berlin", "Australia/Melbourne", "America/New_York", "UTC+02:00")


def by_a_plain_loop(columns, times: pd.DatetimeIndex) -> np.ndarray:
    rows = []
    for time in times:
        begin, days = time.replace(month=1, day=1), 366 if time.is_leap_year else 365
        turns = {
            "hour": (time.hour + time.minute / 60 + time.second / 3600) / 24,
            "day": (time.day - 1) / time.days_in_month,
            "week": (time.replace(tzinfo=None).normalize() - begin.replace(tzinfo=None).normalize()).days / days,
            "month": (time.month - 1) / 12,
            "quarter": (time.quarter - 1) / 4,
        }
        row = []
        for column in columns:
            name, _, part = column.name.partition("_")
            if name == "weekday":
                row.append(column.categories.index(time.strftime("%a")))
            else:
                row.append((np.sin if part == "sin" else np.cos)(2 * np.pi * turns[name]))
        rows.append(row)
    return np.array(rows).T


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(ZONES),
    st.sampled_from(["15min", "h", "7h", "D", "MS"]),
    st.datetimes(min_value=pd.Timestamp("2020-01-01"), max_value=pd.Timestamp("2027-12-31")),
)
def test_features_are_those_of_the_local_clock(zone, frequency, start):
    step = Step(frequency=frequency, time_zone=zone)
    begin = pd.Timestamp(start).floor("D") if frequency in ("D", "MS") else pd.Timestamp(start).floor("min")
    local = pd.date_range(begin, periods=60, freq=frequency).tz_localize("UTC" if zone else None)
    local = local if zone is None else local.tz_convert(zone)
    columns = calendar_columns(FEATURES, None)
    assert calendar_values(columns, to_ns(local), step) == pytest.approx(by_a_plain_loop(columns, local), abs=1e-9)


@pytest.mark.parametrize("night", ["2024-03-31", "2024-10-27"])
def test_both_clock_changes(night):
    """The hour that is skipped is left out, the one that is shown twice is there twice; holidays begin at midnight."""
    local = pd.date_range(f"{night} 00:00", periods=30, freq="h", tz="Europe/Berlin")
    columns = calendar_columns(("hour", "weekday"), "DE")
    hour_sin, hour_cos, weekday, holiday = calendar_values(
        columns, to_ns(local), Step(frequency="h", time_zone="Europe/Berlin")
    )
    hour = np.round(np.arctan2(hour_sin, hour_cos) / (2 * np.pi) * 24) % 24
    assert hour.tolist() == local.hour.tolist()
    assert (2 in hour[:4]) == (night == "2024-10-27")
    assert [columns[2].categories[int(code)] for code in weekday] == [time.strftime("%a") for time in local]
    easter = pd.DatetimeIndex(["2024-03-29", "2024-04-01"]).date
    assert holiday.tolist() == [float(time.date() in easter) for time in local]


def test_holidays_of_a_part_of_a_country():
    days = to_ns(pd.date_range("2024-01-01", periods=366))
    step = Step(frequency="D")
    [country], [part] = (calendar_values(calendar_columns((), code), days, step) for code in ("DE", "DE-BY"))
    assert country.sum() == 9
    assert part.sum() == 12  # Epiphany, Corpus Christi and All Saints beside them
    with pytest.raises(UsageError, match="--holidays XX"):
        calendar_values(calendar_columns((), "XX"), days, step)
    with pytest.raises(UsageError, match="--holidays DE-XX"):
        calendar_values(calendar_columns((), "DE-XX"), days, step)


def test_without_the_package_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "holidays", None)
    frame = pd.DataFrame({"ds": pd.date_range("2024-01-01", periods=9), "y": range(9)})
    with pytest.raises(ResourceError, match="needs the package holidays") as caught:
        read_frame(frame, ReadOptions(holidays="DE"))
    assert "gram-forecaster[calendar]" in caught.value.hint


@pytest.mark.parametrize(
    ("frequency", "periods", "expected"),
    [
        ("15min", 900, ("hour", "weekday")),
        ("h", 3 * 8766, ("hour", "weekday", "week")),
        ("D", 300, ("weekday",)),
        ("D", 800, ("weekday", "week")),
        ("W", 120, ("week",)),
        ("MS", 40, ("month",)),
        ("QS", 12, ("quarter",)),
        ("YS", 20, ()),
    ],
)
def test_auto_goes_by_the_step_and_the_span(frequency, periods, expected):
    times = to_ns(pd.date_range("2015-01-01", periods=periods, freq=frequency))
    assert features_by_step(Step(frequency=frequency), times) == expected


def test_the_calendar_needs_no_other_covariate_and_ends_nowhere():
    hours = pd.date_range("2024-01-01", periods=40, freq="h")
    frame = pd.DataFrame({"ds": hours, "a": 1.0 * np.arange(40), "b": [*range(30), *[np.nan] * 10]})
    table = read_frame(frame, ReadOptions(calendar=("hour",)))
    assert [len(series) for series in table.series] == [40, 30]
    assert table.covariates.series[0] is table.covariates.series[1]
    ahead = covariates_ahead(table, 50)
    assert ahead.covariates.series[0] is ahead.covariates.series[1]
    assert len(ahead.covariates.series[0].times) == 90
    assert not np.isnan(ahead.covariates.series[0].values).any()
    long = frame.melt("ds", var_name="unique_id", value_name="y").dropna()
    ragged = covariates_ahead(read_frame(long, ReadOptions(calendar=("hour",))), 5)
    assert [len(each.times) for each in ragged.covariates.series] == [45, 35]


def test_names_that_make_no_sense():
    with pytest.raises(UsageError, match="--calendar hours: there is no such feature"):
        ReadOptions(calendar=("hours",))
    with pytest.raises(UsageError, match="none and auto stand alone"):
        ReadOptions(calendar=("auto", "hour"))
    frame = pd.DataFrame({"ds": pd.date_range("2024-01-01", periods=9), "weekday": range(9)})
    with pytest.raises(UsageError, match="--calendar adds a column 'weekday', which the table has already"):
        read_frame(frame, ReadOptions(calendar=("weekday",)))
