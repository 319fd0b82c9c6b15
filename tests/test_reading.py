"""Files to tables: what is read, and that every fault is found, named and resolved only on request."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memory_index.errors import DataError, NotFoundError, ResourceError, UsageError
from memory_index.tables.checking import check_table
from memory_index.tables.columns import ReadOptions
from memory_index.tables.future import missing_future, read_future
from memory_index.tables.reading import read_frame, read_table
from memory_index.tables.steps import grid_positions, infer_step
from memory_index.windows import Step, to_ns

HOURLY = "date,load,wind\n" + "".join(f"2024-01-01 {hour:02d}:00,{hour}.5,{hour * 2}\n" for hour in range(24))


@pytest.fixture
def write(tmp_path):
    def write_file(text: str | bytes, name: str = "grid.csv") -> Path:
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write_file


def hourly_without(*hours: int) -> str:
    return "".join(line for number, line in enumerate(HOURLY.splitlines(True)) if number - 1 not in hours)


def hourly_with(hour: int, load: str) -> str:
    lines = HOURLY.splitlines()
    lines[hour + 1] = f"2024-01-01 {hour:02d}:00,{load},0"
    return "\n".join(lines) + "\n"


# --- what is read


def test_wide_csv(write):
    table = read_table(write(HOURLY))
    assert (table.layout, table.step, table.series_ids, table.source) == (
        "wide",
        Step(frequency="h"),
        ("load", "wind"),
        "grid.csv",
    )
    assert table.series[0].times.dtype == np.dtype("datetime64[ns]")
    assert table.series[0].times[0] == np.datetime64("2024-01-01T00:00")
    assert table.series[0].times is table.series[1].times
    assert table["load"].values.dtype == np.float64
    assert table["wind"].values.tolist() == [2.0 * hour for hour in range(24)]
    assert table.notes == ()


def test_unknown_series_names_the_nearest(write):
    with pytest.raises(NotFoundError, match=r"grid\.csv has no series 'laod'") as caught:
        read_table(write(HOURLY))["laod"]
    assert "'load'" in caught.value.hint


@pytest.mark.parametrize("header", ["unique_id,ds,y", "ds,unique_id,y", "time,name,amount"])
def test_long_csv_in_any_column_order(write, header):
    frame = pd.read_csv(write(HOURLY)).melt("date", var_name="name", value_name="amount")
    names = dict(zip(("unique_id", "ds", "y"), ("name", "date", "amount"), strict=True)) | {"time": "date"}
    frame = frame[[names.get(column, column) for column in header.split(",")]]
    frame.columns = header.split(",")
    long = read_table(write(frame.to_csv(index=False), "long.csv"))
    wide = read_table(write(HOURLY))
    assert long.layout == "long"
    assert long.content_hash == wide.content_hash
    assert long.series[0].times is long.series[1].times


def test_interleaved_rows_of_a_long_table_are_not_out_of_order(write):
    text = "unique_id,ds,y\n" + "".join(f"{name},2024-01-01 0{hour}:00,{hour}\n" for hour in range(5) for name in "ab")
    table = read_table(write(text))
    assert table.series_ids == ("a", "b")
    assert table.notes == ()


@given(
    values=st.lists(
        st.lists(st.floats(-(2.0**120), 2.0**120, width=32, allow_subnormal=False), min_size=3, max_size=3),
        min_size=3,
        max_size=20,
    ),
    frequency=st.sampled_from(["h", "15min", "D", "W-MON", "MS", "YE-DEC"]),
    parquet=st.booleans(),
)
def test_wide_and_long_are_the_same_table(tmp_path_factory, values, frequency, parquet):
    folder = tmp_path_factory.mktemp("tables")
    wide = pd.DataFrame(values, columns=["b", "a", "c"])
    wide.insert(0, "ds", pd.date_range("2020-02-29", periods=len(values), freq=frequency))
    long = wide.melt("ds", var_name="unique_id", value_name="y")
    tables = []
    for name, frame in (("wide", wide), ("long", long)):
        path = folder / (name + (".parquet" if parquet else ".csv"))
        frame.to_parquet(path) if parquet else frame.to_csv(path, index=False)
        tables.append(read_table(path))
    assert tables[0].content_hash == tables[1].content_hash
    assert tables[0].step == tables[1].step
    assert np.array_equal(tables[0].series[0].values, wide["b"].to_numpy())


def test_parquet_is_told_by_its_content(write, tmp_path):
    frame = pd.read_csv(write(HOURLY), parse_dates=["date"])
    frame.to_parquet(tmp_path / "grid.data")
    assert read_table(tmp_path / "grid.data").content_hash == read_table(write(HOURLY)).content_hash


@pytest.mark.parametrize("delimiter", [";", "\t", "|"])
def test_other_delimiters_line_ends_and_byte_order_marks(write, delimiter):
    text = "\ufeff" + HOURLY.replace(",", delimiter).replace("\n", "\r\n")
    assert read_table(write(text)).content_hash == read_table(write(HOURLY)).content_hash


def test_row_numbers_are_lines_of_the_file_with_blank_lines(write):
    text = HOURLY.replace("2024-01-01 03:00,3.5", "\n\n2024-01-01 03:00,oops")
    with pytest.raises(DataError, match=r"row 7: 'oops' in the column 'load' is not a number"):
        read_table(write(text))


# --- times


@pytest.mark.parametrize(
    "form",
    [
        "%Y-%m-%d %H:%M:%S",
        "%Y-%m-%dT%H:%M",
        "%Y/%m/%d %H:%M",
        "%d.%m.%Y %H:%M",
        "%d/%m/%Y %H:%M",
        "%m/%d/%Y %I:%M %p",
        "%b %d, %Y %H:%M",
        "%d %B %Y %H:%M",
    ],
)
def test_common_forms_of_time(write, form):
    times = pd.date_range("2024-01-01", periods=400, freq="h")
    text = "date,a\n" + "".join(f'"{time.strftime(form)}",1.5\n' for time in times)
    assert np.array_equal(read_table(write(text)).series[0].times, to_ns(times))


def test_times_without_leading_zeros(write):
    table = read_table(write("date,a\n1990/1/1 0:00,1\n1990/1/2 0:00,2\n1990/1/3 0:00,3\n"))
    assert table.step.frequency == "D"
    assert table.series[0].times[-1] == np.datetime64("1990-01-03")


def test_a_time_that_can_be_read_in_two_ways_is_not_guessed(write):
    path = write("date,a\n" + "".join(f"{day:02d}/01/2024,{day}\n" for day in range(1, 10)))
    with pytest.raises(DataError, match=r"2 ways: '01/01/2024' as %d/%m/%Y or %m/%d/%Y") as caught:
        read_table(path)
    assert "--time-format" in caught.value.hint
    assert read_table(path, ReadOptions(time_format="%d/%m/%Y")).step.frequency == "D"
    assert read_table(path, ReadOptions(time_format="%m/%d/%Y")).step.frequency == "MS"


def test_one_offset_is_kept_as_given(write):
    text = HOURLY.replace(":00,", ":00+05:30,")
    table = read_table(write(text))
    assert table.step == Step(frequency="h", time_zone="UTC+05:30")
    assert table.series[0].times[0] == np.datetime64("2023-12-31T18:30")
    assert table.step.isoformat(table.series[0].times[0]) == "2024-01-01T00:00:00+05:30"
    assert read_table(write(HOURLY.replace(":00,", ":00Z,"))).step.time_zone == "UTC"


def test_hourly_times_with_offsets_across_a_clock_change(write):
    times = pd.date_range("2024-03-30", periods=72, freq="h", tz="Europe/Berlin")
    path = write("date,a\n" + "".join(f"{time.isoformat()},{number}\n" for number, time in enumerate(times)))
    table = read_table(path)
    assert table.step == Step(frequency="h", time_zone="UTC")
    assert np.array_equal(table.series[0].times, to_ns(times))
    assert any("2 UTC offsets" in note and "--time-zone" not in note for note in table.notes)
    named = read_table(path, ReadOptions(time_zone="Europe/Berlin"))
    assert named.step == Step(frequency="h", time_zone="Europe/Berlin")
    assert named.content_hash == table.content_hash


def test_local_days_across_a_clock_change_need_their_zone(write):
    times = pd.date_range("2024-03-25", periods=20, freq="D", tz="Europe/Berlin")
    path = write("date,a\n" + "".join(f"{time.isoformat()},{number}\n" for number, time in enumerate(times)))
    with pytest.raises(DataError, match="not on the grid") as caught:
        read_table(path)
    assert "if days begin by local time, name its zone: --time-zone" in caught.value.hint
    table = read_table(path, ReadOptions(time_zone="Europe/Berlin"))
    assert table.step == Step(frequency="D", time_zone="Europe/Berlin")
    assert np.array_equal(table.series[0].times, to_ns(times))


def test_local_times_with_the_repeated_hour_of_autumn(write):
    times = pd.date_range("2024-10-26", periods=72, freq="h", tz="Europe/Berlin")
    path = write(
        "date,a\n" + "".join(f"{time.strftime('%Y-%m-%d %H:%M')},1.{number}\n" for number, time in enumerate(times))
    )
    table = read_table(path, ReadOptions(time_zone="Europe/Berlin"))
    assert np.array_equal(table.series[0].times, to_ns(times))
    with pytest.raises(DataError, match="the time is there twice"):
        read_table(path)


def test_a_local_time_that_never_was(write):
    text = "date,a\n" + "".join(f"2024-03-31 0{hour}:00,1.{hour}\n" for hour in range(9))
    with pytest.raises(DataError, match=r"row 4: '2024-03-31 02:00' does not name one moment in Europe/Berlin"):
        read_table(write(text), ReadOptions(time_zone="Europe/Berlin"))


def days(first: str, num: int, *, without: int | None = None) -> str:
    shown = pd.date_range(first, periods=num)
    return "date,a\n" + "".join(f"{day.date()},{n * n}\n" for n, day in enumerate(shown) if n != without)


@pytest.mark.parametrize("step", [None, "D"])
def test_dates_across_a_midnight_that_never_was(step, write):
    options = ReadOptions(time_zone="America/Santiago", step=step)
    whole = read_table(write(days("2024-09-01", 20)), options)
    assert whole.step == Step(frequency="D", time_zone="America/Santiago")
    assert whole.step.isoformat(whole.times[7]) == "2024-09-08T01:00:00-03:00"
    gap = write(days("2024-09-01", 20, without=7))
    problem, _ = check_table(gap, options).problems
    assert (problem.kind, problem.at, problem.row) == ("gap", "2024-09-08T01:00:00-03:00", 8)
    dropped = read_table(gap, ReadOptions(time_zone="America/Santiago", step=step, on_gap="drop"))
    assert np.array_equal(dropped.times, whole.times)
    assert np.flatnonzero(np.isnan(dropped["a"].values)).tolist() == [7]
    offsets = "date,a\n" + "".join(f"{whole.step.isoformat(time)},{n * n}\n" for n, time in enumerate(whole.times))
    assert read_table(write(offsets), options).content_hash == whole.content_hash


def test_dates_of_two_series_across_a_midnight_that_was_twice(write):
    lines = [
        f"{name},{day.date()},{n}\n" for n, day in enumerate(pd.date_range("2024-10-30", periods=9)) for name in "ab"
    ]
    table = read_table(write("unique_id,ds,y\n" + "".join(lines)), ReadOptions(time_zone="America/Havana"))
    assert table.shares_times
    assert table.step.isoformat(table.times[4]) == "2024-11-03T00:00:00-04:00"
    assert len(table.times) == 9


def test_days_that_begin_at_a_time_that_never_was(write):
    text = days("2024-03-25", 12).replace(",", " 02:30,").replace("date 02:30", "date")
    options = ReadOptions(time_zone="Europe/Berlin")
    never, skipped = check_table(write(text), options).problems
    assert never.row == 8
    assert "'2024-03-31 02:30' does not name one moment" in never.message
    assert skipped.message.startswith("a step of 'D' would begin at 2024-03-31 02:30")
    assert "as dates" in skipped.fix
    assert read_table(write(text)).step == Step(frequency="D")  # without the zone there is nothing to skip


@pytest.mark.parametrize("step", ["15min", "30min", "h"])
@pytest.mark.parametrize(("day", "kind"), [("2024-10-27", "conflict"), ("2024-03-31", "gap")])
def test_an_hour_that_a_clock_change_doubles_or_drops_may_need_a_zone(write, step, day, kind):
    times = pd.date_range(pd.Timestamp(day) - pd.Timedelta("2D"), periods=400, freq=step, tz="Europe/Berlin")
    path = write("date,a\n" + "".join(f"{time:%Y-%m-%d %H:%M},1.{number}\n" for number, time in enumerate(times)))
    report = check_table(path, ReadOptions(on_gap="error"))
    faults = [each for each in report.problems if each.severity == "fault"]
    assert {each.kind for each in faults} == {kind}
    assert all("--time-zone Europe/Berlin; otherwise " in each.fix for each in faults)
    assert read_table(path, ReadOptions(time_zone="Europe/Berlin")).series[0].values.size == 400


@pytest.mark.parametrize("hours", [(14,), (2, 3)])
def test_other_gaps_and_repeated_times_are_no_clock_change(write, hours):
    report = check_table(write(hourly_without(*hours) + "2024-01-01 23:00,1,1\n"), ReadOptions(on_gap="error"))
    assert [each.kind for each in report.problems] == ["conflict", "gap"]
    assert not any("--time-zone" in each.fix for each in report.problems)


@pytest.mark.parametrize(
    ("hour", "zone"),
    [("2024-10-27 02", "Europe/Berlin"), ("2024-10-27 01", "Europe/London"), ("2024-11-03 01", "America/New_York")],
)
def test_the_zone_is_named_whose_clocks_show_an_hour_twice(write, hour, zone):
    times = pd.date_range(pd.Timestamp(hour) - pd.Timedelta("2D"), periods=90, freq="h")
    rows = sorted([*times, pd.Timestamp(hour)])
    path = write("date,a\n" + "".join(f"{time:%Y-%m-%d %H:%M},1.{number}\n" for number, time in enumerate(rows)))
    [fault] = check_table(path).problems
    assert f"clocks were changed then in {zone}: --time-zone {zone}; otherwise " in fault.fix
    assert len(read_table(path, ReadOptions(time_zone=zone)).times) == 91
    other = path.read_text().replace(hour[:7], "2024-12")  # a night of winter
    [fault] = check_table(write(other)).problems
    assert fault.kind == "conflict"
    assert "--time-zone" not in fault.fix


def test_rows_that_say_the_same_are_resolved_without_those_that_differ(write):
    rows = HOURLY.splitlines()
    path = write("\n".join([*rows, rows[5], rows[9] + "5"]) + "\n")
    same, other = (each for each in check_table(path).problems if each.severity == "fault")
    assert same.fix == "one of both says all: --on-duplicate same"
    assert other.fix == "correct the time, or keep one: --on-duplicate first, last or mean"
    with pytest.raises(DataError, match=r"with different values \(before in row 10\)$"):
        read_table(path, ReadOptions(on_duplicate="same"))
    table = read_table(write("\n".join([*rows, rows[5]]) + "\n"), ReadOptions(on_duplicate="same"))
    assert len(table.times) == len(rows) - 1
    assert any("1 rows that say the same as one before were left out" in note for note in table.notes)


@pytest.mark.parametrize("line", ["Source: grid operator", '"Source: grid operator, 2024"', "Source: x,", "Total,1,2"])
def test_a_remark_below_the_table_is_named_by_its_line(write, line):
    text = HOURLY + line + "\n"
    [fault] = [each for each in check_table(write(text)).problems if each.severity == "fault"][:1]
    number = len(text.splitlines())
    assert fault.row == number
    assert re.match(rf"remove (line|row) {number} if it is a remark, such as a source or a total; else", fault.fix)
    with pytest.raises(DataError, match=f"row {number}"):
        read_table(write(text))


def test_lines_above_the_names_of_the_columns_are_named(write):
    text = "Export of a utility\nMeter;G4711\n\n" + HOURLY.replace(",", ";").replace(".5", ",5")
    with pytest.raises(DataError) as caught:
        read_table(write(text))
    assert caught.value.hint == "the names of the columns seem to stand in line 4: remove the lines above it"
    below = "".join(text.splitlines(keepends=True)[3:])
    units = below.replace("\n", "\n;kWh;bar\n", 1)
    assert read_table(write(below), ReadOptions(decimal=",")).content_hash == read_table(write(HOURLY)).content_hash
    faults = [each for each in check_table(write(units)).problems if each.kind == "time"]
    assert faults[0].fix.startswith("remove row 2 if it is of no time, such as one of units")


def test_times_across_the_first_line_are_told(write):
    names = [f"2020-{month:02d}" for month in range(1, 13)]
    with pytest.raises(DataError, match="times stand in the first line, from 2020-01 to 2020-12") as caught:
        read_table(write(f"region,{','.join(names)}\n" + "".join(f"r{n},{','.join('5' * 12)}\n" for n in range(4))))
    assert caught.value.hint == "turn the table round, so that each time is a row and each series a column"


def test_many_notes_of_a_kind_are_a_few_sentences(tmp_path):
    days = pd.date_range("2024-01-01", periods=60)
    values = np.random.default_rng(3).normal(50, 5, (40, 60))
    values[:, 30] = 1e5
    frame = pd.DataFrame({"unique_id": np.repeat([f"s{n}" for n in range(40)], 60), "ds": np.tile(days, 40)})
    frame["y"] = values.ravel()
    table = read_frame(frame)
    assert len(table.notes) == 4
    assert table.notes[-1] == "the table: and more notes: 37 of the kind 'outlier'; 'cli data check' lists them"
    frame.to_csv(tmp_path / "t.csv", index=False)
    report = check_table(tmp_path / "t.csv")
    assert (len(report.problems), report.unlisted, report.num_series) == (20, {"outlier": 20}, {"outlier": 40})


def test_a_hint_speaks_of_offsets_only_if_some_times_have_one(write):
    assert "offset" not in check_table(write(HOURLY + "soon,1,1\n")).problems[0].fix
    zoned = HOURLY.replace(":00,", ":00+01:00,")
    assert "offset" in check_table(write(zoned + "soon,1,1\n")).problems[0].fix


def test_parquet_keeps_its_zone(tmp_path):
    frame = pd.DataFrame(
        {"ds": pd.date_range("2024-03-30", periods=9, freq="D", tz="Europe/Berlin"), "a": np.arange(9.0)}
    )
    frame.to_parquet(tmp_path / "zoned.parquet")
    assert read_table(tmp_path / "zoned.parquet").step == Step(frequency="D", time_zone="Europe/Berlin")


STEPS = [
    "h",
    "15min",
    "10min",
    "D",
    "B",
    "3D",
    "W-TUE",
    "2W-MON",
    "MS",
    "ME",
    "BMS",
    "QS-FEB",
    "QE-DEC",
    "YS-JAN",
    "YE-DEC",
]


@pytest.mark.parametrize("zone", [None, "Europe/Berlin"])
@pytest.mark.parametrize("frequency", STEPS)
def test_the_step_is_found_in_spite_of_gaps_and_a_stray_time(frequency, zone):
    times = to_ns(pd.date_range(pd.Timestamp("2001-02-27", tz=zone), periods=100, freq=frequency))
    step = infer_step(times, zone)
    assert step == Step(frequency=frequency, time_zone=zone)
    assert np.array_equal(grid_positions(times, step), np.arange(100))
    keep = np.sort(np.random.default_rng(3).choice(100, 80, replace=False))
    with_gaps = times[keep]
    assert infer_step(with_gaps, zone) == step
    assert np.array_equal(grid_positions(with_gaps, step), keep - keep[0])
    with_gaps[40] += np.timedelta64(7, "m")
    assert infer_step(with_gaps, zone) == step
    assert np.flatnonzero(grid_positions(with_gaps, step) < 0).tolist() == [40]


def test_times_without_a_step(write):
    rng = np.random.default_rng(0)
    times = np.sort(rng.integers(0, 10**9, 300)).astype("datetime64[s]")
    path = write("date,a\n" + "".join(f"{time},1\n" for time in times))
    with pytest.raises(DataError, match="no regular step") as caught:
        read_table(path)
    assert "--step" in caught.value.hint


def test_the_step_can_be_named(write):
    assert read_table(write("date,a\n2024-01-31,1\n"), ReadOptions(step="ME")).step.frequency == "ME"
    with pytest.raises(DataError, match="has one time stamp only"):
        read_table(write("date,a\n2024-01-31,1\n"))
    for wrong in ("fortnight", "-1h"):
        with pytest.raises(UsageError, match=f"'{wrong}'"):
            read_table(write(HOURLY), ReadOptions(step=wrong))


def test_a_series_is_left_out_of_a_table_in_which_none_has_a_name(write):
    rows = "".join(f",2024-01-{day:02d},{day}\n" for day in range(1, 20))
    with pytest.raises(NotFoundError, match="no series 'a'"):
        read_table(write("unique_id,ds,y\n" + rows), ReadOptions(ignore=("a",)))


def test_one_name_where_several_go_is_told(write):
    for name in ("columns", "ignore", "known", "calendar", "missing"):
        with pytest.raises(UsageError, match=f"{name} is the text 'a', not a list of names"):
            ReadOptions(**{name: "a"})
    with pytest.raises(NotFoundError, match="no column 'a, b'") as caught:
        read_table(write("date,a,b\n2024-01-01,1,2\n2024-01-02,1,2\n"), ReadOptions(columns=("a, b",)))
    assert "'a' and 'b': give the option once for each" in caught.value.hint


# --- faults: file, series, time, row and the flag


CASES = {
    "gap": (
        hourly_without(3, 4),
        r"2024-01-01T03:00:00, row 4: 2 steps are missing after this row, up to 2024-01-01T04:00:00",
        "--on-gap",
    ),
    "missing": (hourly_with(5, ""), r"series 'load', 2024-01-01T05:00:00, row 7: the value is missing", "--on-nan"),
    "missing word": (
        hourly_with(5, "NaN"),
        r"series 'load', 2024-01-01T05:00:00, row 7: the value is missing",
        "--on-nan",
    ),
    "infinite": (
        hourly_with(5, "-inf"),
        r"series 'load', 2024-01-01T05:00:00, row 7: the value is infinite",
        "--on-nan",
    ),
    "not a number": (
        hourly_with(5, "oops"),
        r"series 'load', 2024-01-01T05:00:00, row 7: 'oops' in the column 'load' is not a number",
        '--missing "oops"',
    ),
    "same row twice": (
        HOURLY + "2024-01-01 23:00,23.5,46\n",
        r"2024-01-01T23:00:00, row 26: the time is there twice, with the same values \(before in row 25\)",
        "--on-duplicate",
    ),
    "two values": (
        HOURLY + "2024-01-01 23:00,99,46\n",
        r"2024-01-01T23:00:00, row 26: the time is there twice, with different values \(before in row 25\)",
        "--on-duplicate",
    ),
    "off the grid": (
        HOURLY + "2024-01-01 23:07,1,1\n",
        r"2024-01-01T23:07:00, row 26: the time is not on the grid of the step 'h'",
        "--step",
    ),
    "not a time": (HOURLY + "soon,1,1\n", r"row 26: 'soon' is not a time", "ISO 8601"),
    "a total": (
        HOURLY + "Total,276,552\n",
        r"row 26: 'Total' is not a time",
        "remove row 26 if it is a remark, such as a source or a total",
    ),
    "a preamble of cells": (
        "Station,Berlin,1\nElement,Load,2\n" + HOURLY,
        r"there is no time column among Station, Berlin",
        "seem to stand in row 3: remove the rows above",
    ),
    "a day's end": (
        HOURLY + "2024-01-01 24:00,1,1\n",
        r"row 26: '2024-01-01 24:00' is not a time",
        "00:00 of the next day",
    ),
    "hardly a time": (
        HOURLY + "".join(f"day {day},1,1\n" for day in range(40)),
        r"row 26: 'day 0' is not a time",
        "--time-format",
    ),
    "no time": (HOURLY + ",1,1\n", r"row 26: the time is missing", "ISO 8601"),
    "out of range": (HOURLY + "9999-01-01 00:00,1,1\n", r"row 26: '9999-01-01 00:00' is not a time", "ISO 8601"),
    "some offsets": (
        HOURLY + "2024-01-02 00:00+00:00,1,1\n",
        r"row 2: '2024-01-01 00:00' has no UTC offset, but other",
        "offset",
    ),
    "short row": (
        HOURLY + "2024-01-02 00:00,1\n",
        r"row 26: the row has 2 cells, but the header has 3: '2024-01-02 00:00,1'",
        "repair",
    ),
    "long row": (HOURLY + "2024-01-02 00:00,1,2,3\n", r"row 26: the row has 4 cells, but the header has 3", "repair"),
    "text column": (
        HOURLY.replace("\n", ",ok\n").replace("wind,ok", "wind,remark"),
        r"the column 'remark' holds no number",
        '--ignore "remark"',
    ),
    "empty column": (
        HOURLY.replace("\n", ",\n").replace("wind,", "wind,remark"),
        r"the column 'remark' is empty",
        '--ignore "remark"',
    ),
    "no series name": (
        "unique_id,ds,y\na,2024-01-01,1\n,2024-01-02,1\na,2024-01-02,2\n",
        r"row 3: the row names no series",
        "name",
    ),
    "row numbers": (
        "".join(f"{number or ''},{line}\n" for number, line in enumerate(HOURLY.splitlines())),
        r"the column 'column 1' has no name of its own",
        '--ignore "column 1"',
    ),
    "decimal commas": (
        "date;a\n2024-01-01;1,5\n2024-01-02;2,5\n",
        r"row 2: 2 cells of the column 'a' are like '1,5', with decimal commas or separators of thousands",
        '--decimal ","',
    ),
    "zero bytes": (HOURLY.encode() * 200 + bytes(9), r"row 5001: there are zero bytes in the text", "restore"),
    "no number": ("date,a\n2024-01-01,x\n2024-01-02,y\n", r"the column 'a' holds no number", "--ignore"),
    "preamble": (
        "Netz GmbH\n\n" + HOURLY,
        r"row 1: the header 'Netz GmbH' has one column",
        "the names of the columns seem to stand in line 3: remove the lines above it",
    ),
    "one column": ("date\n2024-01-01\n", r"row 1: the header 'date' has one column", "commas"),
    "no header": (
        HOURLY.partition("\n")[2],
        r"row 1: the first line '2024-01-01 00:00,0.5,0' is data, not a header",
        "first line",
    ),
    "repeated name": (HOURLY.replace("wind", "load"), r"the column 'load' is there 2 times", "own name"),
    "no time column": ("a,b\n1,2\n3,4\n", r"there is no time column among a, b", "--time-column"),
    "two time columns": (
        "date,time,b\n2024-01-01,00:00,4\n",
        r"several columns could be the time: date, time",
        "--time-column",
    ),
    "dates beside times of day": (
        "Datum,Uhrzeit,a\n" + "".join(f"0{h // 4 + 1}.01.2024,0{h % 4}:00,{h}\n" for h in range(12)),
        r"the column 'Uhrzeit' holds times of day, and 'Datum' dates that repeat",
        "join 'Datum' and 'Uhrzeit' into one column",
    ),
    "dates beside times of day, two values": (
        "date,time,a,b\n" + "".join(f"2024-01-0{h // 4 + 1},0{h % 4}:00,{h},1\n" for h in range(12)),
        r"the column 'time' holds times of day, and 'date' dates that repeat",
        "join 'date' and 'time' into one column",
    ),
    "numbers for times": (
        "date,b\nx1,2\nx2,4\n",
        r"the time column cannot be read as times: its first cell is 'x1'",
        "--time-format",
    ),
    "empty": ("", r"the file is empty", "header"),
    "header only": ("date,a\n", r"the file has a header but no usable rows", "rows"),
    "blank rows only": ("date,a\n\n\n", r"the file has a header but only blank lines", "rows"),
    "latin-1": (
        HOURLY.encode() + "2024-01-02,\xfc,1\n".encode("latin-1"),
        r"row 26: the byte 0xfc is not UTF-8 text",
        "UTF-8",
    ),
    "utf-16": (HOURLY.encode("utf-16"), r"binary file or UTF-16", "UTF-8"),
    "gzip": (b"\x1f\x8b\x08" + bytes(50), r"compressed file", "unpack"),
    "lfs pointer": (
        "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n",
        r"Git LFS pointer",
        "git lfs pull",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_each_fault_says_what_where_and_what_to_do(write, name):
    text, message, hint = CASES[name]
    path, strict = write(text), ReadOptions(on_gap="error", on_nan="error")
    with pytest.raises(DataError, match=r"^grid\.csv[,:] .*" + message) as caught:
        read_table(path, strict)
    assert hint in caught.value.hint
    assert "\n" not in str(caught.value) + caught.value.hint
    report = check_table(path, strict)
    assert not report.ok
    assert report.problems[0].severity == "fault"


def test_a_parquet_file_that_is_none(write, tmp_path):
    with pytest.raises(DataError, match=r"not a Parquet file"):
        read_table(write(HOURLY, "grid.parquet"))
    with pytest.raises(DataError, match=r"Git LFS pointer"):
        read_table(write("version https://git-lfs.github.com/spec/v1\n", "pointer.parquet"))
    whole = tmp_path / "whole.parquet"
    pd.read_csv(write(HOURLY), parse_dates=["date"]).to_parquet(whole)
    with pytest.raises(DataError, match=r"cut\.parquet: the Parquet file cannot be read"):
        read_table(write(whole.read_bytes()[:-20], "cut.parquet"))


@pytest.mark.parametrize(
    ("column", "kind"),
    [
        (pa.array([[1], [2], [3]]), "list"),
        (pa.array([1, 2, 3], pa.time32("s")), "time32"),
        (pa.array([b"a", b"b", b"c"]), "binary"),
        (pa.array([0, 1, 2], pa.timestamp("s")), "1970-01-01"),
    ],
)
def test_parquet_columns_that_hold_no_numbers(tmp_path, column, kind):
    days = pa.array([0, 1, 2], pa.date32())
    pq.write_table(pa.table({"date": days, "a": [1, 2, 3], "b": column}), tmp_path / "odd.parquet")
    with pytest.raises(DataError, match=f"the column 'b' holds no number .*{kind}"):
        read_table(tmp_path / "odd.parquet")
    assert read_table(tmp_path / "odd.parquet", ReadOptions(ignore=("b",))).series_ids == ("a",)
    with pytest.raises(DataError, match="time"):
        read_table(tmp_path / "odd.parquet", ReadOptions(time_column="a"))


NUMBERS = [pa.array([1, 0, 1], kind) for kind in (pa.int8(), pa.uint64(), pa.float32(), pa.decimal128(9, 2))]


@pytest.mark.parametrize("column", [*NUMBERS, pa.array([True, False, True]), NUMBERS[0].dictionary_encode()])
def test_parquet_columns_of_every_kind_of_number(tmp_path, column):
    pq.write_table(pa.table({"date": pa.array([0, 1, 2], pa.date32()), "a": column}), tmp_path / "numbers.parquet")
    assert read_table(tmp_path / "numbers.parquet")["a"].values.tolist() == [1.0, 0.0, 1.0]


@pytest.mark.parametrize(("name", "options"), [(None, {}), ("when", {}), ("when", {"time_column": "when"})])
def test_an_index_of_times_is_the_time_column_of_a_frame_without_one(write, name, options):
    frame = pd.read_csv(write(HOURLY), index_col="date", parse_dates=True).rename_axis(name)
    table = read_frame(frame, ReadOptions(**options))
    assert (table.step.frequency, table.series_ids) == ("h", ("load", "wind"))
    assert np.array_equal(table.series[0].times, to_ns(frame.index))
    other = read_frame(frame.assign(ds=frame.index + pd.Timedelta("1D")))  # a frame that has a time column keeps it
    assert other.series[0].times[0] == np.datetime64("2024-01-02T00:00")
    with pytest.raises(DataError, match="the column 'load' is there 2 times"):
        read_frame(frame.rename_axis("load"))


@pytest.mark.parametrize("wrong", [[1, 2, 3], pd.Series([1.0, 2.0]), "load.csv", None])
def test_what_is_no_frame_is_refused_in_one_line(wrong):
    with pytest.raises(UsageError, match=f"a table is a pandas DataFrame, not of the type {type(wrong).__name__}"):
        read_frame(wrong)


def test_a_date_column_beside_a_time_column_of_parquet(tmp_path):
    times = pd.date_range("2024-01-01", periods=48, freq="h")
    table = pa.table({"date": pa.array(times.date), "clock": pa.array(times.time), "a": np.arange(48.0)})
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(DataError, match="'clock' holds times of day, and 'date' dates that repeat"):
        read_table(tmp_path / "a.parquet")


def test_a_time_of_day_in_a_table_of_days_is_a_remark(write):
    text = "date,load,peak\n" + "".join(f"2024-01-{day:02d},{day},17:{day}\n" for day in range(10, 30))
    with pytest.raises(DataError, match="the column 'peak' holds no number"):
        read_table(write(text))
    assert read_table(write(text), ReadOptions(ignore=("peak",))).step.frequency == "D"


def test_large_files_are_refused_before_they_are_decoded(tmp_path, monkeypatch, write):
    path = tmp_path / "huge.parquet"
    pq.write_table(pa.table({"date": pa.array([0, 1, 2], pa.timestamp("s")), "a": [1.0, 2.0, 3.0]}), path)
    monkeypatch.setattr(pq.ParquetFile, "read", lambda self: pytest.fail("decoded"))
    with pytest.raises(ResourceError, match=r"3 rows of 2 columns, more than the limit of 5 cells") as caught:
        read_table(path, ReadOptions(max_cells=5))
    assert "--max-cells" in caught.value.hint
    with pytest.raises(ResourceError, match=r"24 rows of 3 columns"):
        read_table(write(HOURLY), ReadOptions(max_cells=70))


def test_a_stray_year_does_not_fill_the_memory(write):
    with pytest.raises(
        ResourceError, match=r"from 2024-01-01T00:00:00 to 2200-01-01T00:00:00 .* steps of 'h'"
    ) as caught:
        read_table(write(HOURLY + "2200-01-01 00:00,1,1\n"), ReadOptions(max_cells=1_000_000, on_gap="drop", step="h"))
    assert "stray time stamp" in caught.value.hint
    with pytest.raises(DataError, match="from 2024-01-01T23:00:00 to 2200-01-01T00:00:00 there is no row") as caught:
        read_table(write(HOURLY + "2200-01-01 00:00,1,1\n"))
    assert "stray time stamp" in caught.value.hint
    assert "--step h" in caught.value.hint


def test_files_and_columns_that_are_not_there(write, tmp_path):
    with pytest.raises(NotFoundError, match="does not exist"):
        read_table(tmp_path / "nothing.csv")
    with pytest.raises(NotFoundError, match="is a folder"):
        read_table(tmp_path)
    for options in (ReadOptions(time_column="dat"), ReadOptions(columns=("laod",)), ReadOptions(ignore=("winds",))):
        with pytest.raises(NotFoundError, match=r"grid\.csv has no column"):
            read_table(write(HOURLY), options)


def test_options_that_do_not_exist(write):
    for options in (
        {"on_gap": "guess"},
        {"on_nan": "zero"},
        {"on_duplicate": "any"},
        {"layout": "tall"},
        {"max_cells": 0},
    ):
        with pytest.raises(UsageError, match=next(iter(options)).replace("_", "-")):
            ReadOptions(**options)
    for options in (
        {"time_zone": "Mars/Olympus"},
        {"id_column": "load", "layout": "wide"},
    ):
        with pytest.raises(UsageError):
            read_table(write(HOURLY), ReadOptions(**options))


# --- what is done on request


@pytest.mark.parametrize(
    ("policy", "filled"),
    [("interpolate", [2.5, 3.5, 4.5, 5.5]), ("ffill", [2.5, 2.5, 2.5, 5.5]), ("drop", [2.5, None, None, 5.5])],
)
def test_gaps_and_missing_cells_by_policy(write, policy, filled):
    expected = np.array([np.nan if value is None else value for value in filled])
    gap = read_table(write(hourly_without(3, 4)), ReadOptions(on_gap=policy))
    assert np.array_equal(gap["load"].values[2:6], expected, equal_nan=True)
    assert len(gap["load"]) == 24
    assert "2 steps without a row" in gap.notes[0]  # as `data check` counts them, however many series there are
    assert policy in gap.notes[0]
    cells = hourly_with(3, "").replace("2024-01-01 04:00,4.5", "2024-01-01 04:00,inf")
    holes = read_table(write(cells), ReadOptions(on_nan=policy))
    assert np.array_equal(holes["load"].values[2:6], expected, equal_nan=True)


def test_a_policy_for_gaps_does_not_touch_missing_cells(write):
    text = hourly_without(3).replace("2024-01-01 05:00,5.5", "2024-01-01 05:00,")
    with pytest.raises(DataError, match="row 6: the value is missing"):
        read_table(write(text), ReadOptions(on_gap="interpolate", on_nan="error"))
    table = read_table(write(text), ReadOptions(on_gap="interpolate", on_nan="drop"))
    assert table["load"].values[3] == 3.5
    assert np.isnan(table["load"].values[5])


@pytest.mark.parametrize("policy", ["interpolate", "ffill", "drop"])
def test_nothing_reaches_past_the_ends_of_a_series(write, policy):
    table = read_table(write(hourly_with(0, "").replace("23:00,23.5", "23:00,")), ReadOptions(on_nan=policy))
    assert np.flatnonzero(np.isnan(table["load"].values)).tolist() == [0]
    assert len(table["load"]) == 23  # what is empty behind the last value is not there yet
    assert len(table["wind"]) == 24
    assert policy == "drop" or any(
        "2 of these cells lie before the first or after the last" in note for note in table.notes
    )


def test_interpolation_is_linear_in_time_and_not_in_rows(write):
    cells = {4: "4", 5: "", 8: "8", 9: "9", 10: "10", 11: "11", 12: "12", 15: "15"}
    text = "date,a\n" + "".join(f"2024-01-{day:02d},{cell}\n" for day, cell in cells.items())
    table = read_table(write(text), ReadOptions(on_nan="interpolate"))
    assert table.step.frequency == "B"
    assert table["a"].values[1] == 5.0


@given(later=st.floats(-1e6, 1e6))
def test_ffill_is_causal_and_interpolation_is_not(tmp_path_factory, later):
    path = tmp_path_factory.mktemp("fill") / "grid.csv"
    path.write_text("".join(HOURLY.splitlines(True)[:12]) + f"2024-01-01 13:00,{later},0\n2024-01-01 14:00,1,0\n")
    assert read_table(path, ReadOptions(on_gap="ffill"))["load"].values[12] == 10.5
    between = read_table(path, ReadOptions(on_gap="interpolate"))["load"].values[12]
    assert between == pytest.approx(10.5 + (later - 10.5) * 2 / 3)


@pytest.mark.parametrize(("policy", "value"), [("first", 23.5), ("last", 99.5), ("mean", 61.5)])
def test_duplicates_by_policy(write, policy, value):
    table = read_table(write(HOURLY + "2024-01-01 23:00,99.5,46\n"), ReadOptions(on_duplicate=policy))
    assert table["load"].values[-1] == value
    assert table["wind"].values[-1] == 46
    assert table["load"].values[-2] == 22.5
    assert "1 rows with a time that was there already" in table.notes[0]


@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
def test_a_last_line_without_an_end_is_noted(write, end):
    """It may be half of a number: the 4 of 46."""
    table = read_table(write(HOURLY.removesuffix("6\n") + end))
    noted = (
        "grid.csv, row 25: the last line has no line end, as if the file were cut off there or still being written",
    )
    assert table.notes == (() if end else noted)
    assert table["wind"].values[-1] == 4


def test_rows_out_of_order_are_sorted_and_noted(write):
    lines = HOURLY.splitlines()
    table = read_table(write("\n".join([lines[0], *lines[:0:-1], ""])))
    assert table.content_hash == read_table(write(HOURLY)).content_hash
    assert "row 3: times go back here (rows where they do: 23); the rows were sorted" in table.notes[0]


def test_columns_are_left_out_only_on_request(write):
    assert read_table(write(HOURLY), ReadOptions(ignore=("wind",))).series_ids == ("load",)
    assert read_table(write(HOURLY), ReadOptions(columns=("wind",))).series_ids == ("wind",)


def test_other_words_for_missing(write):
    for word in ("?", "-999"):
        text = hourly_with(5, word)
        table = read_table(write(text), ReadOptions(missing=(word,), on_nan="drop"))
        assert np.flatnonzero(np.isnan(table["load"].values)).tolist() == [5]


# --- the report


def test_a_report_has_every_fault_and_counts_what_it_does_not_list(write):
    lines = HOURLY.splitlines()
    lines[6] = "2024-01-01 05:00,oops,1"
    lines[9] = "2024-01-01 08:00,,1"
    del lines[15]
    text = "\n".join([*lines, lines[-1], "never,1,1", "2024-01-02 00:30,1,1"]) + "\n"
    report = check_table(write(text), ReadOptions(on_gap="error", on_nan="error"))
    kinds = [problem.kind for problem in report.problems]
    assert sorted(kinds) == ["duplicate", "gap", "missing", "not-a-number", "off-step", "time"]
    assert (report.layout, report.step, report.num_rows) == ("wide", "h", 26)
    minutes = pd.date_range("2024-01-01", periods=600, freq="min")
    many = check_table(write("date,a\n" + "".join(f"{minute},\n" for minute in minutes) + "2024-01-01 10:00,1\n"))
    assert len([problem for problem in many.problems if problem.kind == "missing"]) == 20
    assert many.unlisted == {"missing": 580}


def test_what_stands_still_is_a_note_and_not_a_fault(write):
    hours = pd.date_range("2024-01-01", periods=200, freq="h")
    text = "date,flat,still\n" + "".join(
        f"{hour},{number if number < 100 else 100},7\n" for number, hour in enumerate(hours)
    )
    report = check_table(write(text))
    assert report.ok
    found = {(problem.kind, problem.series_id): problem for problem in report.problems}
    assert set(found) == {("flat", "flat"), ("constant", "still")}
    assert found["flat", "flat"].at == hours[100].isoformat()
    assert "100 steps in a row have the value 100" in found["flat", "flat"].message
    assert '--ignore "still" if it says nothing' in found["constant", "still"].fix
    assert read_table(write(text)).series_ids == ("flat", "still")


@pytest.mark.parametrize(("level", "is_coarse"), [(1e4, False), (1e7, True)])
def test_a_level_too_high_for_float32_is_a_note(write, level, is_coarse):
    hours, random = pd.date_range("2024-01-01", periods=100, freq="h"), np.random.default_rng(0)
    report = check_table(write("date,a\n" + "".join(f"{hour},{level + 10 * random.normal()}\n" for hour in hours)))
    assert report.ok
    assert [problem.kind for problem in report.problems] == ["coarse"] * is_coarse
    if is_coarse:
        assert "where float32 numbers, in which windows are kept, are 1 apart" in report.problems[0].message
        assert "subtract a level" in report.problems[0].fix


def test_short_series_are_faults_only_if_no_series_is_long_enough(write):
    text = "unique_id,ds,y\n" + "".join(
        f"{name},{day.date()},{day.day}.5\n"
        for name, n in (("a", 9), ("b", 30))
        for day in pd.date_range("2024-01-01", periods=n)
    )
    some = check_table(write(text), lookback=10, horizon=5)
    assert some.ok
    assert [(p.kind, p.series_id) for p in some.problems] == [("short", "a")]
    assert "9 steps, but a window needs 15" in some.problems[0].message
    none = check_table(write(text), lookback=30, horizon=5)
    assert not none.ok
    assert [p.kind for p in none.problems] == ["short", "short"]
    assert check_table(write(text)).problems == ()


def test_a_series_that_begins_after_the_training_part_is_a_note(write):
    days = {"late": pd.date_range("2024-01-22", periods=9), "whole": pd.date_range("2024-01-01", periods=30)}
    text = "unique_id,ds,y\n" + "".join(f"{name},{day.date()},{day.day}.5\n" for name in days for day in days[name])
    report = check_table(write(text), lookback=5, horizon=3)
    assert report.ok
    assert [(p.kind, p.series_id) for p in report.problems] == [("short", "late")]
    assert "of 9 steps 0 are in the training part of the split 70/10/20" in report.problems[0].message
    assert '--ignore "late"' in report.problems[0].fix
    assert check_table(write("date,a\n2024-01-01,1\n"), ReadOptions(step="D"), lookback=1).ok


# --- the sample


def test_the_samples_are_what_their_script_makes(repository, tmp_path):
    runpy.run_path(str(repository / "benchmarks" / "make_sample.py"))["main"](tmp_path)
    for name in ("sample.csv", "demand.csv", "tomorrow.csv"):
        assert (repository / "datasets" / name).read_bytes() == (tmp_path / name).read_bytes(), name


def test_the_sample_has_no_fault(repository):
    path = repository / "datasets" / "sample.csv"
    assert path.stat().st_size <= 400_000
    report = check_table(path, lookback=512, horizon=96)
    assert report.problems == ()
    assert (report.layout, report.step, len(report.series)) == ("wide", "h", 5)


def test_the_sample_with_covariates_has_no_fault(repository):
    """Its holidays are those of the calendar, and the day after it is known as far as a forecast needs it."""
    path, options = repository / "datasets" / "demand.csv", ReadOptions(known=("temperature", "holiday"))
    assert path.stat().st_size <= 500_000
    assert check_table(path, options, lookback=168, horizon=24).problems == ()
    table = read_table(path, options)
    whole = read_future(path.with_name("tomorrow.csv"), table, options, horizon=24)
    assert missing_future(whole, 24) == ()
    assert [column.kind for column in whole.covariates.columns] == ["number", "boolean"]
    by_country = read_table(path, ReadOptions(known=("temperature",), ignore=("holiday",), holidays="DE-BY"))
    marked, told = (
        each.covariates.series[0].values[each.covariates.names.index("holiday")] for each in (table, by_country)
    )
    weekday = np.repeat(np.arange(4, 604) % 7, 24)  # it begins on a Friday
    np.testing.assert_array_equal(marked[weekday != 6], told[weekday != 6])


LONG = "unique_id,ds,y\n" + "".join(
    f"{name},2024-01-01 {hour:02d}:00,{hour}\n" for name in ("north", "south", "new") for hour in range(24)
)


def test_series_of_a_long_table_are_chosen_and_left_out(write):
    assert read_table(write(LONG), ReadOptions(columns=("new", "north"))).series_ids == ("north", "new")
    assert read_table(write(LONG), ReadOptions(ignore=("new",))).series_ids == ("north", "south")
    with pytest.raises(NotFoundError, match=r"grid\.csv has no series 'sout'") as caught:
        read_table(write(LONG), ReadOptions(ignore=("sout",)))
    assert "'south'" in caught.value.hint
