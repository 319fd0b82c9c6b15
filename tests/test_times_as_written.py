"""Times as people write them: offsets, local clocks, numbers, calendars that pandas does not find, names of steps."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memory_index.errors import DataError, UsageError
from memory_index.tables.checking import check_table
from memory_index.tables.columns import ReadOptions
from memory_index.tables.reading import read_frame, read_table
from memory_index.tables.steps import same_step, step_of
from memory_index.windows import Step, to_ns

BERLIN = "Europe/Berlin"
HOURS = pd.date_range("2024-01-01", periods=40, freq="h")


def csv_of(times, name="date"):
    """A CSV file of these cells and the numbers from 0; cells are quoted, since some have commas in them."""
    return f"{name},a\n" + "".join(f'"{time}",{number}.5\n' for number, time in enumerate(times))


@pytest.fixture
def read(tmp_path):
    def read_text(text, **options):
        path = tmp_path / "grid.csv"
        path.write_text(text)
        return read_table(path, ReadOptions(**options))

    return read_text


# --- UTC offsets


FORMS = {
    "%Y%m%dT%H%M%SZ": "UTC",
    "%Y%m%dT%H%M%S+0100": "UTC+01:00",
    "%Y%m%dT%H%MZ": "UTC",
    "%Y%m%dT%HZ": "UTC",
    "%Y%m%dT%H-03": "UTC-03:00",
    "%Y-%m-%dT%HZ": "UTC",
    "%Y-%m-%dT%H+01": "UTC+01:00",
    "%Y-%m-%d %H+05:30": "UTC+05:30",
    "%Y-%m-%dT%H:%M:%S+0100": "UTC+01:00",
    "%Y-%m-%dT%H:%M:%S.000-11:00": "UTC-11:00",
    "%Y-%m-%dT%H:%M:%S,000Z": "UTC",
    "%Y-%m-%dT%H:%M:%S\u221203:00": "UTC-03:00",
    "%Y-%m-%dt%H:%M:%Sz": "UTC",
    "%Y-%m-%dT%H:%M+01:00[Europe/Berlin]": "UTC+01:00",
    "%Y-%m-%d %H:%M:%S UTC": "UTC",
    "%d.%m.%Y %H:%M GMT": "UTC",
    "%d-%b-%Y %H:%M +01": "UTC+01:00",
    "%a, %d %b %Y %H:%M:%S GMT": "UTC",
    "%Y/%m/%d %I:%M %p +0100": "UTC+01:00",
}


@pytest.mark.parametrize("form", FORMS)
def test_offsets_in_every_form(read, form):
    table = read(csv_of(HOURS.strftime(form)))
    assert table.step == Step(frequency="h", time_zone=FORMS[form])
    assert [table.step.isoformat(table.times[n])[:19] for n in (0, -1)] == [
        HOURS[0].isoformat(),
        HOURS[-1].isoformat(),
    ]


@pytest.mark.parametrize(
    ("form", "directives"),
    [
        ("%Y-%m-%d %H:%M:%S UTC", "%Y-%m-%d %H:%M:%S %Z"),
        ("%Y-%m-%dT%H:%M:%S+0000", "%Y-%m-%dT%H:%M:%S%z"),
        ("%d/%b/%Y:%H:%M:%S +0000", "%d/%b/%Y:%H:%M:%S %z"),
        ("%a %b %d %H:%M:%S UTC %Y", "%a %b %d %H:%M:%S %Z %Y"),
        ("%a %b %d %H:%M:%S +0000 %Y", "%a %b %d %H:%M:%S %z %Y"),
    ],
)
def test_directives_for_offsets_in_a_format(read, form, directives):
    table = read(csv_of(HOURS.strftime(form)), time_format=directives)
    assert table.step == Step(frequency="h", time_zone="UTC")
    assert np.array_equal(table.times, to_ns(HOURS))


@pytest.mark.parametrize(
    ("form", "step"),
    [
        (lambda day: f"{day.year}-Q{day.quarter}", "QS-JAN"),
        (lambda day: f"{day.year}Q{day.quarter}", "QS-JAN"),
        (lambda day: f"Q{day.quarter} {day.year}", "QS-JAN"),
        (lambda day: f"{day.year}-M{day.month:02d}", "MS"),
        (lambda day: f"{day:%Y-%m}", "MS"),
        (lambda day: f"{day:%b %Y}", "MS"),
        (lambda day: f"{day:%B %Y}", "MS"),
        (lambda day: f"{day:%G-W%V}", "W-MON"),
        (lambda day: f"{day:%GW%V}", "W-MON"),
        (lambda day: f"{day:%G-W%V-%u}", "D"),
    ],
)
def test_names_of_periods_are_their_first_day(read, form, step):
    times = pd.date_range("2001-01-01", periods=40, freq=step)
    table = read(csv_of([form(day) for day in times], name="TIME_PERIOD"))
    assert table.step.frequency == step
    assert np.array_equal(table.times, to_ns(times))


def test_what_is_no_period_is_no_time(read):
    for cell in ("2001-Q5", "2001-W54", "Q1"):
        with pytest.raises(DataError, match=f"'{cell}' is not a time"):
            read(csv_of([f"{y}-Q{q}" for y in range(2001, 2010) for q in range(1, 5)] + [cell]))


@pytest.mark.parametrize("columns", [["year", "week"], ["Year", "Month"], ["year", "month", "day"]])
def test_a_time_that_is_spread_over_columns_is_told(tmp_path, columns):
    parts = {
        name: range(2020, 2023) if "year" in name.lower() else range(1, 13 if "onth" in name else 20)
        for name in columns
    }
    frame = pd.MultiIndex.from_product(parts.values(), names=parts).to_frame(index=False)
    frame["cases"] = np.arange(len(frame)) / 2
    frame.to_csv(tmp_path / "spread.csv", index=False)
    with pytest.raises(DataError, match=f"spread over '{columns[0]}' and '{', '.join(columns[1:])}'") as caught:
        read_table(tmp_path / "spread.csv")
    assert "join these columns" in caught.value.hint
    assert "--id-column" not in caught.value.hint


def test_words_for_zones_are_refused_with_what_to_do(read):
    with pytest.raises(DataError, match="'2024-01-01 00:00 CET' is not a time") as caught:
        read(csv_of(HOURS.strftime("%Y-%m-%d %H:%M CET")), time_format="%Y-%m-%d %H:%M %Z")
    assert "--time-zone" in caught.value.hint


def test_ranges_of_time_are_not_taken_for_offsets(read):
    ranges = [f"{time:%d.%m.%Y %H:%M}-{time + pd.Timedelta('1h'):%H:%M}" for time in HOURS]
    with pytest.raises(DataError, match="seem to be ranges") as caught:
        read(csv_of(ranges))
    assert "keep one time of each" in caught.value.hint


# --- local times: the order of the rows of a series tells the hour that is there twice


def local(times, form="%Y-%m-%d %H:%M"):
    return [time.strftime(form) for time in times.tz_convert(BERLIN)]


@pytest.mark.parametrize("step", ["5min", "15min", "30min", "h", "2h", "3h"])
@pytest.mark.parametrize("newest_first", [False, True])
def test_both_clock_changes_in_either_order_of_rows(read, step, newest_first):
    times = pd.date_range("2023-03-20", "2023-11-05", freq=step, tz="UTC")
    rows = csv_of(local(times)).splitlines(keepends=True)
    if newest_first:
        rows = [rows[0], *rows[:0:-1]]
    table = read("".join(rows), time_zone=BERLIN)
    assert np.array_equal(table.times, to_ns(times))
    assert np.array_equal(table["a"].values, np.arange(len(times)) + 0.5)


@given(data=st.data())
def test_a_series_own_order_decides_however_its_rows_lie_among_others(tmp_path_factory, data):
    """Series with rows oldest or newest first, of one step or another, woven together at random."""
    draw = data.draw
    series = {}
    for name in draw(st.lists(st.sampled_from("abc"), min_size=1, max_size=3, unique=True)):
        first = draw(st.integers(0, 30))
        times = pd.date_range(f"2023-10-2{draw(st.integers(6, 8))} {first % 24:02d}:00", periods=60, freq="h", tz="UTC")
        series[name] = (times, draw(st.booleans()))
    rows = {
        name: list(zip(local(times), range(len(times)), strict=True))[:: -1 if back else 1]
        for name, (times, back) in series.items()
    }
    order = draw(st.permutations([name for name in rows for _ in rows[name]]))
    text = "unique_id,ds,y\n"
    for name in order:
        time, value = rows[name].pop(0)
        text += f"{name},{time},{value}\n"
    path = tmp_path_factory.mktemp("local") / "grid.csv"
    path.write_text(text)
    table = read_table(path, ReadOptions(time_zone=BERLIN, step="h"))
    for name, (times, _) in series.items():
        assert np.array_equal(table[name].times, to_ns(times))
        assert np.array_equal(table[name].values, np.arange(60.0))


def test_rows_in_no_order_are_refused_where_the_hour_cannot_be_told(read):
    times = pd.date_range("2023-10-28", periods=72, freq="h", tz="UTC")
    order = np.random.default_rng(1).permutation(72)
    shuffled = [local(times)[n] for n in order]
    with pytest.raises(DataError, match=r"does not name one moment in Europe/Berlin.*\(and 1 more") as caught:
        read(csv_of(shuffled), time_zone=BERLIN)
    assert "sort the rows of each series by time" in caught.value.hint
    assert "remove" not in caught.value.hint


def test_an_hour_that_is_there_once_and_could_be_either_is_refused(read):
    times = pd.date_range("2023-10-28", periods=72, freq="h", tz="UTC")
    cells = local(times)
    del cells[cells.index("2023-10-29 02:00")]
    with pytest.raises(DataError, match="'2023-10-29 02:00' does not name one moment"):
        read(csv_of(cells), time_zone=BERLIN)


# --- numbers as times: read by an option, else refused with the option


SINCE_1970 = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}


@pytest.mark.parametrize("kind", ["csv", "whole", "float"])
@pytest.mark.parametrize("name", SINCE_1970)
def test_counts_since_1970(read, name, kind):
    counts = to_ns(HOURS).astype(np.int64) // 10**9 * SINCE_1970[name]
    if kind == "csv":
        table = read(csv_of(counts), time_unit=name)
    else:
        frame = pd.DataFrame({"date": counts.astype(np.int64 if kind == "whole" else np.float64), "a": range(40)})
        table = read_frame(frame, ReadOptions(time_unit=name))
    assert table.step == Step(frequency="h", time_zone="UTC")
    assert np.array_equal(table.times, to_ns(HOURS))
    with pytest.raises(DataError, match="the time column holds numbers from 1704067200") as caught:
        read(csv_of(counts))
    assert f"--time-unit {name};" in caught.value.hint
    shown = read(csv_of(counts), time_unit=name, time_zone=BERLIN)
    assert shown.step.isoformat(shown.times[0]) == "2024-01-01T01:00:00+01:00"


def test_days_of_a_spreadsheet(read):
    serials = (to_ns(HOURS) - np.datetime64("1899-12-30", "ns")) / np.timedelta64(1, "D")
    cells = [f"{serial:.9f}" for serial in serials]
    table = read(csv_of(cells), time_unit="excel")
    assert table.step == Step(frequency="h")
    assert np.array_equal(table.times, to_ns(HOURS))
    assert read(csv_of(cells), time_unit="excel", time_zone=BERLIN).step.time_zone == BERLIN
    with pytest.raises(DataError, match="holds numbers") as caught:
        read(csv_of(cells))
    assert "--time-unit excel" in caught.value.hint


@pytest.mark.parametrize("step", ["h", "MS", "15min"])
def test_running_numbers_count_steps_from_a_time(read, step):
    with pytest.raises(DataError, match="holds numbers from 1 to 40") as caught:
        read(csv_of(range(1, 41)))
    assert "--time-start" in caught.value.hint
    table = read(csv_of(range(1, 41)), time_start="2024-01-01 00:00", step=step)
    assert np.array_equal(table.times, to_ns(pd.date_range("2024-01-01", periods=41, freq=step))[1:])
    later = read(csv_of(range(30, 50)), time_start="2024-01-01 00:00", step=step)
    assert later.times[0] == table.times[29]
    with pytest.raises(UsageError, match="needs the step"):
        read(csv_of(range(1, 41)), time_start="2024-01-01 00:00")
    gap = check_table_of(read, csv_of([1, 2, 3, 7, 8, 9]), time_start="2024-01-01 00:00", step=step, on_gap="error")
    assert "3 steps are missing" in gap


def check_table_of(read, text, **options):
    with pytest.raises(DataError) as caught:
        read(text, **options)
    return str(caught.value)


def test_a_cell_that_is_no_number_among_numbers_of_time(read):
    counts = [*range(1704067200, 1704067200 + 3600 * 20, 3600), "soon"]
    with pytest.raises(DataError, match="row 22: 'soon' is not a time") as caught:
        read(csv_of(counts), time_unit="s")
    assert "correct this cell" in caught.value.hint


def test_digits_that_are_dates(read, tmp_path):
    days = pd.date_range("2023-12-25", periods=20)
    whole = pa.table({"day": pa.array(days.strftime("%Y%m%d").astype(int)), "a": np.arange(20.0)})
    pq.write_table(whole, tmp_path / "a.parquet")
    assert np.array_equal(read_table(tmp_path / "a.parquet").times, to_ns(days))
    months = pd.date_range("2020-01-01", periods=20, freq="MS").strftime("%Y%m")
    with pytest.raises(DataError) as caught:
        read(csv_of(months))
    assert '--time-format "%Y%m"' in caught.value.hint
    assert read(csv_of(months), time_format="%Y%m").step.frequency == "MS"


@pytest.mark.parametrize("name", ["t", "stamp"])
def test_numbers_under_another_name_are_found_if_they_are_asked_for(read, name):
    counts = to_ns(HOURS).astype(np.int64) // 10**9
    with pytest.raises(DataError, match="there is no time column") as caught:
        read(csv_of(counts, name=name))
    assert f'--time-column "{name}" --time-unit s' in caught.value.hint
    assert read(csv_of(counts, name=name), time_unit="s").series_ids == ("a",)


def test_options_for_numbers_that_exclude_each_other():
    with pytest.raises(UsageError, match="two ways"):
        ReadOptions(time_unit="s", time_start="2024-01-01")
    with pytest.raises(UsageError, match="--time-unit is 'weeks'"):
        ReadOptions(time_unit="weeks")


# --- steps


NAMES = [
    ("h", "60min"),
    ("h", "H"),
    ("h", "hourly"),
    ("h", "PT1H"),
    ("15min", "15T"),
    ("15min", "15 minutes"),
    ("D", "24h"),
    ("D", "P1D"),
    ("W-MON", "7D"),
    ("MS", "monthly"),
    ("ME", "M"),
    ("QS", "QS-JAN"),
    ("QS", "3MS"),
    ("QE-DEC", "Q"),
    ("YS", "12MS"),
    ("YE-DEC", "A-DEC"),
]


@pytest.mark.parametrize(("one", "other"), NAMES)
def test_a_step_under_any_of_its_names(one, other):
    at = np.datetime64("2024-01-01", "ns")
    assert same_step(step_of(one, None), step_of(other, None), at)
    assert same_step(step_of(other, None), step_of(one, None), at)


@pytest.mark.parametrize(
    ("one", "other"), [("h", "30min"), ("D", "B"), ("MS", "ME"), ("MS", "BMS"), ("W-MON", "W-TUE")]
)
def test_steps_that_are_not_the_same(one, other):
    assert not same_step(step_of(one, None), step_of(other, None), np.datetime64("2024-01-01", "ns"))
    day, hours = step_of("D", BERLIN), step_of("24h", BERLIN)
    assert not same_step(day, hours, np.datetime64("2024-01-01", "ns"))  # a day of a clock change has 23 or 25


def calendar(name):
    months = pd.date_range("2014-01-01", periods=80, freq="MS")
    return {
        "mid_month": months + pd.Timedelta("14D"),
        "semi_month": pd.date_range("2014-01-01", periods=160, freq="SMS"),
        "month_end_and_middle": pd.date_range("2014-01-15", periods=160, freq="SME"),
        "dekads": pd.DatetimeIndex(sorted(month + pd.Timedelta(days=d) for month in months for d in (0, 10, 20))),
        "retail_445": pd.Timestamp("2014-02-01") + pd.to_timedelta(np.cumsum([28, 28, 35] * 30), unit="D"),
    }[name]


@pytest.mark.parametrize(
    ("name", "said", "todo"),
    [
        ("mid_month", "months that are stamped on day 15", "--step MS"),
        ("semi_month", "half months", "--step SMS"),
        ("month_end_and_middle", "half months", "--step SME"),
        ("dekads", "thirds of months, stamped on the days 1, 11, 21", "resample"),
        ("retail_445", "4 and 5 weeks", "resample"),
    ],
)
def test_calendars_that_pandas_does_not_find_are_named(read, name, said, todo):
    times = calendar(name)
    with pytest.raises(DataError, match=f"no regular step.*{said}") as caught:
        read(csv_of(times.strftime("%Y-%m-%d")))
    assert todo in caught.value.hint
    assert "--on-gap" not in caught.value.hint
    if "--step SM" in todo:
        table = read(csv_of(times.strftime("%Y-%m-%d")), step=todo.split()[1])
        assert np.array_equal(table.times, to_ns(times))


@pytest.mark.parametrize(
    ("name", "step", "said", "todo"),
    [
        (
            "mid_month",
            "MS",
            "months that are stamped on day 15",
            "(2014-01-01 for 2014-01-15) and read it with --step MS",
        ),
        ("semi_month", "MS", "half months", "--step SMS"),
        ("dekads", "W", "thirds of months", "resample"),
        ("days", "MS", "not on the grid of the step 'MS'", "--step D"),
        ("hours", "2h", "24 of 48 times", "--step h"),
    ],
)
def test_a_step_that_was_named_and_is_another_is_one_fault_with_what_the_times_are(read, name, step, said, todo):
    other = {"days": ("2014-01-03", "D"), "hours": ("2014-01-01", "h")}
    times = pd.date_range(other[name][0], periods=48, freq=other[name][1]) if name in other else calendar(name)
    with pytest.raises(DataError, match=said) as caught:
        read(csv_of(times.strftime("%Y-%m-%d %H:%M")), step=step)
    assert todo in caught.value.hint
    assert "more; 'cli data check'" not in str(caught.value)


def test_series_of_two_steps_in_one_table_are_named(tmp_path):
    path = tmp_path / "mixed.csv"
    days, months = pd.date_range("2020-01-01", periods=90), pd.date_range("2020-01-01", periods=50, freq="MS")
    for parts in (((months, "slow"), (days, "fast")), ((days, "fast"), (months, "slow"))):
        rows = [f"{name},{time.date()},{n}\n" for times, name in parts for n, time in enumerate(times)]
        path.write_text("unique_id,ds,y\n" + "".join(rows))
        [fault] = check_table(path).problems
        assert (fault.kind, fault.series_id) == ("step", "slow")
        assert fault.message == "its step is 'MS', but that of series 'fast' is 'D'"
        assert "--step D reads 'slow' with missing steps" in fault.fix


def test_a_step_that_was_found_fills_half_of_its_grid_or_is_named(read):
    days = pd.date_range("2024-01-01", periods=200)
    some = days[np.sort(np.random.default_rng(0).choice(200, 60, replace=False))]
    with pytest.raises(DataError, match=r"'D' fits best, but 60 of its \d+ steps have a row") as caught:
        read(csv_of(some.date), on_gap="drop")
    assert "say so: --step D" in caught.value.hint
    assert read(csv_of(some.date), on_gap="drop", step="D").step.frequency == "D"
    most = days[np.sort(np.random.default_rng(0).choice(200, 140, replace=False))]
    assert read(csv_of(most.date), on_gap="drop").step.frequency == "D"


@pytest.mark.parametrize("frequency", ["BQE-DEC", "BQS-JAN", "BYE-DEC", "BME", "BMS"])
def test_business_months_and_quarters_are_found(read, frequency):
    times = pd.date_range("1990-01-01", periods=60, freq=frequency)
    assert read(csv_of(times.date)).step.frequency == frequency
