"""Tables of the future: joined to a history, made to be filled in, and everything that can be wrong with one."""

from __future__ import annotations

import contextlib
import json
import re
import shlex

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from benchmarks import pictures
from cli.main import app
from memory_index import (
    DataError,
    ReadOptions,
    UsageError,
    make_future,
    missing_future,
    read_frame,
    read_future,
    read_table,
)
from memory_index.tables.catalog import shipped

STEPS, HORIZON = 48, 6
HOURS = pd.date_range("2024-01-01", periods=STEPS + HORIZON, freq="h")
OPTIONS = ReadOptions(known=("temperature", "promo", "sky"), observed=("pressure",))


def whole() -> pd.DataFrame:
    number = np.arange(len(HOURS))
    return pd.DataFrame(
        {
            "ds": HOURS,
            "load": number * 1.0,
            "temperature": 10 + np.sin(number),
            "promo": number % 3 == 0,
            "sky": np.array(["clear", "cloudy", "fog"])[number % 3],
            "pressure": number + 1000.0,
        }
    )


def wide_parts() -> tuple[pd.DataFrame, pd.DataFrame]:
    return whole()[:STEPS], whole()[STEPS:].drop(columns=["load", "pressure"])


def long_parts(num_series: int = 3) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Each series ends one step before the next one."""
    past, future = [], []
    for number in range(num_series):
        frame = whole().rename(columns={"load": "y"}).assign(unique_id=f"s{number}")
        frame["temperature"] += 10 * number
        until = STEPS - num_series + number + 1
        past.append(frame[:until])
        future.append(frame[until : until + HORIZON].drop(columns=["y", "pressure"]))
    return pd.concat(past), pd.concat(future)


@pytest.mark.parametrize("parts", [wide_parts, long_parts])
def test_a_table_of_the_future_says_what_the_same_rows_of_the_file_would(parts):
    history, future = parts()
    joined = read_future(future.sample(frac=1, random_state=2), read_frame(history, OPTIONS), OPTIONS, horizon=HORIZON)
    at_once = read_frame(pd.concat([history, future]), OPTIONS)
    assert joined.covariates.columns == at_once.covariates.columns
    for one, other in zip(joined.covariates.series, at_once.covariates.series, strict=True):
        assert np.array_equal(one.times, other.times)
        assert np.array_equal(one.values, other.values, equal_nan=True)
    assert len({id(each) for each in joined.covariates.series}) == len({id(e) for e in at_once.covariates.series})
    assert joined.notes == ()
    assert missing_future(joined, HORIZON) == ()


@pytest.mark.parametrize("parts", [wide_parts, long_parts])
@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_the_table_to_be_filled_in_is_one_that_is_read(parts, suffix, tmp_path):
    history, filled = parts()
    options = ReadOptions(known=OPTIONS.known, calendar=("hour", "weekday"), holidays="DE", ignore=("pressure",))
    table = read_frame(history, options)
    empty = make_future(table, HORIZON, like=options)
    assert len(empty) == HORIZON * len({each.series_id for each in missing_future(table, HORIZON)})
    assert list(empty)[-4:] == ["hour_sin", "hour_cos", "weekday", "holiday"]
    assert empty[list(OPTIONS.known)].isna().all().all()
    assert empty.iloc[:, -4:].notna().all().all()
    keys = [name for name in ("unique_id", "ds") if name in filled]
    assert [list(empty[key]) for key in keys] == [list(filled[key]) for key in keys]
    path = tmp_path / f"future{suffix}"
    empty.to_csv(path, index=False) if suffix == ".csv" else empty.to_parquet(path)
    with pytest.raises(DataError, match="the column 'temperature' is empty"):
        read_future(path, table, options)
    for name in OPTIONS.known:
        empty[name] = filled[name].to_numpy()
    empty.to_csv(path, index=False) if suffix == ".csv" else empty.to_parquet(path)
    assert missing_future(read_future(path, table, options, horizon=HORIZON), HORIZON) == ()
    empty.loc[2, "holiday"] = True
    with pytest.raises(DataError, match="row 3: 'holiday' differs from what it is by the holidays DE"):
        read_future(empty, table, options)


def test_what_the_file_knows_already_is_in_the_table_to_be_filled_in():
    history, future = wide_parts()
    table = read_frame(pd.concat([history, future[:2].drop(columns="sky")]), OPTIONS)
    made = make_future(table, 4)
    assert made.temperature.notna().tolist() == [True, True, False, False]
    assert made.temperature[:2].tolist() == future.temperature[:2].tolist()
    assert made.promo[:2].tolist() == future.promo[:2].tolist()
    missing = {(each.column, each.num_steps, each.at) for each in missing_future(table, 4)}
    assert missing == {
        ("temperature", 2, "2024-01-03T02:00:00"),
        ("promo", 2, "2024-01-03T02:00:00"),
        ("sky", 4, "2024-01-03T00:00:00"),
    }
    later = read_future(future[:3].assign(temperature=0.0), table, OPTIONS)
    assert (later.covariates.series[0].values[0, STEPS : STEPS + 3] == 0).all()  # the newer table counts


def changed(name: str, row: int, value: object):
    def change(future: pd.DataFrame) -> pd.DataFrame:
        future = future.reset_index(drop=True).astype({name: object})
        future.loc[row, name] = value
        return future

    return change


FAULTS = {
    "target column": (lambda f: f.assign(y=1.0), "series 's0', .*, row 1: the target column 'y' holds 18 values"),
    "other column": (lambda f: f.assign(wind=1.0), "the table has no column 'wind'"),
    "other kind": (changed("temperature", 3, "warm"), "series 's0', .*, row 4: 'warm' in the column 'temperature'"),
    "numbers for words": (lambda f: f.assign(sky=range(len(f))), "the column 'sky' holds numbers"),
    "no flag": (lambda f: f.assign(promo=2.5), "series 's0', .*'2.5' in the column 'promo' is neither true nor"),
    "other id": (changed("unique_id", 2, "s9"), "series 's9': the table has no such series"),
    "too few steps": (lambda f: f[f.unique_id != "s1"], r"series 's1', .*T23:00:00: the known column .*\(0 rows of 6"),
    "short": (lambda f: f[:-1], r"series 's2', 2024-01-03T05:00:00: the known column 'temperature' .*\(5 rows of 6"),
    "gap": (lambda f: f.drop(index=f.index[3]), "series 's0', 2024-01-03T01:00:00: the known column 'temperature'"),
    "before the end": (
        changed("ds", 0, HOURS[3]),
        "series 's0', 2024-01-01T03:00:00, row 1: the time is not after the last target value, at 2024-01-02T21:00:00",
    ),
    "beside the grid": (
        changed("ds", 0, HOURS[-1] + pd.Timedelta("30min")),
        "series 's0', .*, row 1: the time is not one of the expected steps: they are 'h' from 2024-01-02T22:00:00 on",
    ),
    "far ahead": (changed("ds", 5, HOURS[-1] + pd.Timedelta("400D")), "row 6: the time is not one of the expected"),
    "twice": (changed("ds", 1, HOURS[STEPS - 2]), "series 's0', 2024-01-02T22:00:00, row 2: the time is there twice"),
    "empty cell": (changed("sky", 7, None), "series 's1', 2024-01-03T00:00:00: the known column 'sky' has no value"),
    "empty column": (lambda f: f.assign(temperature=np.nan), "the column 'temperature' is empty"),
    "no column": (lambda f: f.drop(columns="promo"), "series 's0', 2024-01-02T22:00:00: the known column 'promo'"),
    "infinite": (changed("temperature", 8, np.inf), "series 's1', .*, row 9: the value of 'temperature' is infinite"),
    "offsets": (
        lambda f: f.assign(ds=f.ds.dt.tz_localize("UTC")),
        "the times have a time zone or UTC offset, those of the table have none",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_each_fault_names_series_time_and_column(name):
    change, message = FAULTS[name]
    history, future = long_parts()
    with pytest.raises(DataError, match=message) as caught:
        read_future(change(future), read_frame(history, OPTIONS), OPTIONS, horizon=HORIZON)
    assert caught.value.hint
    assert "\n" not in str(caught.value) + caught.value.hint


def test_what_is_no_fault_is_told():
    history, future = wide_parts()
    future = future.assign(sky="storm", temperature=future.temperature + 273.15, pressure=1.0, load=np.nan)
    joined = read_future(future, read_frame(history, OPTIONS), OPTIONS)
    assert (joined.covariates.series[0].values[2, STEPS:] == -1).all()
    assert np.isnan(joined.covariates.series[0].values[3, STEPS:]).all()
    said = "\n".join(joined.notes)
    assert "'storm' in the column 'sky' was never seen before: it counts as the class \"other\"" in said
    assert "'temperature' goes from 282" in said
    assert "in the past from 9" in said
    assert "'pressure' is not used: it is observed" in said


def test_a_table_without_known_columns_has_no_future():
    history, future = wide_parts()
    table = read_frame(history, ReadOptions(observed=("temperature",), ignore=("promo", "sky")))
    for call in (lambda: read_future(future, table), lambda: make_future(table, 3)):
        with pytest.raises(UsageError, match="no known covariate"):
            call()


def test_local_times_over_a_clock_change():
    zone = "Australia/Melbourne"
    times = pd.date_range("2024-04-06 12:00", periods=40, freq="30min", tz=zone)  # clocks go back at 03:00 on the 7th
    frame = pd.DataFrame({"ds": times.tz_localize(None), "load": 1.0 * np.arange(40), "temperature": np.arange(40) % 7})
    options = ReadOptions(known=("temperature",), calendar=("hour",), time_zone=zone, step="30min")
    table = read_frame(frame[:25], options)
    joined = read_future(frame[25:].drop(columns="load"), table, options, horizon=15)
    beside = joined.covariates.series[0]
    assert beside.values[0].tolist() == (np.arange(40) % 7).tolist()
    assert np.array_equal(joined.step.local(beside.times), times)
    turn = np.arctan2(beside.values[1], beside.values[2]) / (2 * np.pi) % 1 * 24
    assert turn == pytest.approx(times.hour + times.minute / 60)


def test_commands(tmp_path):
    history, future = wide_parts()
    file, made = tmp_path / "load.csv", tmp_path / "future.csv"
    history.to_csv(file, index=False)
    roles = [part for name in OPTIONS.known for part in ("--known", name)] + ["--observed", "pressure"]

    def run(*arguments: str):
        return CliRunner().invoke(app, [*map(str, arguments)])

    written = run("data", "future", file, "--horizon", "6", *roles, "--holidays", "DE", "--out", made, "--json")
    assert written.exit_code == 0, written.output
    assert json.loads(written.stdout)["empty"] == ["promo", "sky", "temperature"]
    checked = run("data", "check", file, *roles, "--holidays", "DE", "--future", made, "--horizon", "6", "--json")
    assert checked.exit_code == 3
    document = json.loads(checked.stdout)
    missing = [(m["series_id"], m["column"], m["at"], m["num_steps"]) for m in document["future_missing"]]
    assert missing == [(None, name, "2024-01-03T00:00:00", 6) for name in OPTIONS.known]
    assert {each["column"] for each in document["problems"] if each["severity"] == "fault"} == set(OPTIONS.known)
    filled = pd.read_csv(made)
    for name in OPTIONS.known:
        filled[name] = future[name].to_numpy()
    filled.to_csv(made, index=False)
    checked = run("data", "check", file, *roles, "--holidays", "DE", "--future", made, "--json")
    assert checked.exit_code == 0, checked.output
    covariates = {each["name"]: each for each in json.loads(checked.stdout)["covariates"]}
    assert covariates["temperature"]["steps_ahead"] == 6
    assert covariates["temperature"]["known_until"] == "2024-01-03T05:00:00"
    assert covariates["pressure"]["steps_ahead"] == 0
    assert covariates["sky"]["words"] == ["clear", "cloudy", "fog"]
    assert covariates["holiday"]["source"] == "holidays DE"
    shown = run("data", "check", file, *roles, "--horizon", "2")
    assert "Missing of the future" in shown.stdout
    assert "steps ahead" in shown.stdout
    assert read_table(file, ReadOptions(known=OPTIONS.known, ignore=("pressure",))).covariates.names == OPTIONS.known


def test_the_page_on_covariates_does_what_it_says(tmp_path, repository, capsys):
    page = repository / "docs" / "covariates.md"
    (tmp_path / "load.csv").write_text("".join(shipped("sample.csv").read_text().splitlines(keepends=True)[:500]))
    make, check, *_ = (shlex.split(command)[1:] for command in pictures.commands(page))
    snippet, *_ = re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.DOTALL)
    with contextlib.chdir(tmp_path):
        assert CliRunner().invoke(app, make).exit_code == 0
        assert CliRunner().invoke(app, check).exit_code == 3
        pd.read_csv("future.csv").assign(wind=12.5).to_csv("future.csv", index=False)
        assert CliRunner().invoke(app, check).exit_code == 0
        exec(snippet, {})  # noqa: S102 - of our own docs
    assert capsys.readouterr().out == "()\n"
