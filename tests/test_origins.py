"""Origins by a schedule: on the clock of the table's zone, through its changes, and one line for what cannot be."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from memory_fixtures import WINDOW, ragged_table, wide_table

from memory_index.errors import UsageError
from memory_index.origins import Schedule, parse_schedule, scheduled
from memory_index.splits import part_origins, split_by_name
from memory_index.tables.series import SeriesTable
from memory_index.windows import Step

BERLIN = Step(frequency="h", time_zone="Europe/Berlin")
SPRING, AUTUMN = "2024-03-31", "2024-10-27"  # its clock skips 02:00, and shows 02:00 twice


def chosen(step: Step, first: str, last: str, every: str | None, at: str | None = None) -> list[str]:
    schedule = parse_schedule(every, at)
    assert schedule is not None
    return [step.isoformat(each) for each in schedule.moments(step, step.parse(first), step.parse(last))]


@pytest.mark.parametrize("day", [SPRING, AUTUMN])
def test_every_day_at_a_time_is_that_time_on_days_of_23_and_25_hours(day):
    first = pd.Timestamp(day) - pd.Timedelta(days=2)
    found = chosen(BERLIN, f"{first:%Y-%m-%d} 05:00", f"{first + pd.Timedelta(days=4):%Y-%m-%d} 22:00", "24h", "23:00")
    assert [each[:16] for each in found] == [f"{first + pd.Timedelta(days=n):%Y-%m-%d}T23:00" for n in range(4)]
    apart = {b - a for a, b in pairwise(pd.to_datetime(found, utc=True))}
    assert apart == {pd.Timedelta(hours=24), pd.Timedelta(hours=23 if day == SPRING else 25)}


def test_a_time_that_the_clock_skips_is_the_moment_that_it_shows_next():
    found = chosen(BERLIN, "2024-03-30 00:00", "2024-04-01 12:00", "1d", "02:00")
    assert found == ["2024-03-30T02:00:00+01:00", "2024-03-31T03:00:00+02:00", "2024-04-01T02:00:00+02:00"]


def test_a_time_that_the_clock_shows_twice_is_the_first():
    found = chosen(BERLIN, "2024-10-26 00:00", "2024-10-28 12:00", "24h", "02:00")
    assert found == ["2024-10-26T02:00:00+02:00", "2024-10-27T02:00:00+02:00", "2024-10-28T02:00:00+01:00"]


def test_every_hour_is_every_hour_of_a_day_of_25():
    found = chosen(BERLIN, "2024-10-27 00:00", "2024-10-27 23:00", "1h")
    assert len(found) == 25
    assert len(chosen(BERLIN, "2024-03-31 00:00", "2024-03-31 23:00", "1h")) == 23
    twice = [each for each in chosen(BERLIN, "2024-10-27 00:00", "2024-10-27 23:00", "2h") if each[11:13] == "02"]
    assert twice == ["2024-10-27T02:00:00+02:00"]


def test_several_a_day_begin_before_the_time_that_is_named():
    found = chosen(Step(frequency="h"), "2024-01-01 00:00", "2024-01-02 05:00", "6h", "23:00")
    assert [each[8:13] for each in found] == ["01T05", "01T11", "01T17", "01T23", "02T05"]


@pytest.mark.parametrize("every", ["7d", "1w", "168h"])
def test_weekly(every):
    found = chosen(BERLIN, "2024-03-20 12:00", "2024-04-15 00:00", every, "08:00")
    assert [each[:16] for each in found] == [f"2024-{day}T08:00" for day in ("03-21", "03-28", "04-04", "04-11")]


def test_without_a_time_the_first_origin_decides():
    assert chosen(Step(frequency="h"), "2024-01-01 07:00", "2024-01-03 06:00", "24h") == [
        "2024-01-01T07:00:00",
        "2024-01-02T07:00:00",
    ]
    assert parse_schedule(None, "07:00") == parse_schedule("24h", "07:00")
    assert parse_schedule(None, None) is None


ZONES = ["Europe/Berlin", "America/Santiago", "America/Havana", "Australia/Lord_Howe", "Asia/Kathmandu", "UTC"]


@settings(max_examples=40)
@given(
    zone=st.sampled_from(ZONES),
    day=st.integers(0, 700),
    hours=st.sampled_from([1, 2, 3, 6, 12, 24, 48]),
    at=st.integers(0, 23),
)
def test_a_schedule_has_each_of_its_clock_times_once(zone, day, hours, at):
    step, schedule = Step(frequency="h", time_zone=zone), parse_schedule(f"{hours}h", f"{at:02}:00")
    first = np.datetime64("2023-01-01T00:00", "ns") + np.timedelta64(day, "D")
    last = first + np.timedelta64(20, "D")
    found = schedule.moments(step, first, last)
    assert (np.diff(found) > np.timedelta64(0)).all()
    assert first <= found[0]
    assert found[-1] <= last
    clock = step.local(found).tz_localize(None)
    since = (clock - clock[0].normalize() - pd.Timedelta(hours=at)) % pd.Timedelta(hours=hours)
    changes = len({each.utcoffset() for each in step.local(found)}) - 1
    assert (since != pd.Timedelta(0)).sum() <= changes  # only where the clock skips it
    assert abs(len(found) - 20 * 24 / hours) <= 1 + 2 * changes


def test_a_part_has_the_origins_of_the_schedule_alone():
    table = wide_table(step=BERLIN)
    split = split_by_name("60/20/20", table.times)
    every = part_origins(table, WINDOW, split, "test")
    some = part_origins(table, WINDOW, split, "test", schedule=parse_schedule("24h", "23:00"))
    for rows, kept, series in zip(every, some, table.series, strict=True):
        local = table.step.local(series.times[rows])
        np.testing.assert_array_equal(kept, rows[local.hour == 23])
        assert len(kept) > 1


def test_all_series_have_one_schedule():
    """Also those that begin later: whoever forecasts every other day forecasts all of them on the same days."""
    table = ragged_table()
    origins = [np.arange(40, len(series)) for series in table.series]
    kept = scheduled(table, origins, Schedule(every=pd.Timedelta(hours=48)))
    times = np.concatenate([series.times[rows] for series, rows in zip(table.series, kept, strict=True)])
    assert len({*((times - times.min()) % np.timedelta64(48, "h")).tolist()}) == 1


@pytest.mark.parametrize(
    ("every", "at", "text"),
    [
        ("24", None, "--every 24: expected a number of min, h, d or w"),
        ("0h", None, "--every 0h"),
        ("-1d", None, "--every -1d"),
        ("month", None, "--every month"),
        ("24h", "24:00", "--at 24:00: expected a time of day"),
        ("24h", "noon", "--at noon"),
    ],
)
def test_what_is_no_schedule(every, at, text):
    with pytest.raises(UsageError, match=text):
        parse_schedule(every, at)


def origins_of(table: SeriesTable) -> list[np.ndarray]:
    return [np.arange(40, len(series)) for series in table.series]


def test_what_a_table_does_not_go_with():
    table = wide_table()
    with pytest.raises(UsageError, match=r"every 90min is no whole number of steps of h") as raised:
        scheduled(table, origins_of(table), parse_schedule("90min", None))
    assert "--every 1h" in raised.value.hint
    with pytest.raises(UsageError, match=r"no origin of .* is every 24h at 23:30: its steps of h go from"):
        scheduled(table, origins_of(table), parse_schedule("24h", "23:30"))
    monthly = wide_table(120, step=Step(frequency="MS"), start=np.datetime64("2001-01-01", "ns"))
    with pytest.raises(UsageError, match="steps of MS, which differ in length"):
        scheduled(monthly, origins_of(monthly), parse_schedule("7d", None))
    daily = wide_table(120, step=Step(frequency="D", time_zone="Europe/Berlin"), start=BERLIN.parse("2024-01-01"))
    with pytest.raises(UsageError, match="no whole number of steps of D"):
        scheduled(daily, origins_of(daily), parse_schedule("36h", None))
    assert len(scheduled(daily, origins_of(daily), parse_schedule("7d", None))[0]) == 12
