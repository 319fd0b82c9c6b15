"""Vintages: read from either form of table, and looked up as of a time just as a plain loop would."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from cli.main import app
from memory_index import (
    DataError,
    NotFoundError,
    ReadOptions,
    UsageError,
    make_future,
    missing_future,
    read_frame,
    read_vintages,
)
from memory_index.tables.known_ahead import read_known_ahead
from memory_index.tables.vintages import with_vintages

HOURS = pd.date_range("2024-01-01", periods=30, freq="h")
OPTIONS = ReadOptions(known=("temperature", "sky"))


def history(num_series: int = 2) -> pd.DataFrame:
    part = pd.DataFrame({"ds": HOURS, "y": 1.0 * np.arange(30), "temperature": np.arange(30) % 7 + 0.5})
    part["sky"] = ["clear", "fog"] * 15
    return pd.concat([part.assign(unique_id=f"s{number}") for number in range(num_series)])


def issued(num_series: int = 2) -> pd.DataFrame:
    """Each series gets a forecast of the next 6 hours every 4 hours."""
    rows = [
        (f"s{series}", HOURS[start + ahead], HOURS[start], 100.0 * series + start + ahead / 10, "fog")
        for series in range(num_series)
        for start in range(0, 24, 4)
        for ahead in range(1, 7)
    ]
    return pd.DataFrame(rows, columns=["unique_id", "ds", "issued_at", "temperature", "sky"])


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_as_of_is_what_a_plain_loop_finds(data):
    hour = st.integers(0, 12)
    rows = data.draw(
        st.dictionaries(
            st.tuples(st.integers(0, 1), st.sampled_from(["temperature", "sky"]), hour, hour),
            st.integers(0, 1),
            max_size=60,
        )
    )
    rows[(0, "temperature", 3, 2)] = 1
    frame = pd.DataFrame(
        [
            (f"s{s}", c, HOURS[t], HOURS[i], str(v) if c == "temperature" else ("clear", "fog")[v])
            for (s, c, t, i), v in rows.items()
        ],
        columns=["unique_id", "column", "ds", "issued_at", "value"],
    ).sample(frac=1, random_state=len(rows))
    vintages = read_vintages(frame, read_frame(history(), OPTIONS), OPTIONS)
    assert len(vintages) == len(rows)
    series, times, by = np.meshgrid(np.arange(2), np.arange(14), np.arange(14), indexing="ij")
    for column in ("temperature", "sky"):
        asked = vintages.as_of(column, series, HOURS.to_numpy()[times], HOURS.to_numpy()[by])
        for place in np.ndindex(series.shape):
            s, t, b = series[place], times[place], by[place]
            known = [(i, v) for (s_, c, t_, i), v in rows.items() if (s_, c, t_) == (s, column, t) and i <= b]
            assert np.array_equal(asked[place], max(known)[1] if known else np.nan, equal_nan=True)
    cut = vintages.cut(HOURS.to_numpy()[5])
    later, early = HOURS.to_numpy()[times[..., 0]], HOURS.to_numpy()[5]
    assert np.array_equal(
        cut.as_of("temperature", series[..., 0], later, HOURS.to_numpy()[13]),
        vintages.as_of("temperature", series[..., 0], later, early),
        equal_nan=True,
    )


def test_both_forms_and_both_layouts_say_the_same(tmp_path):
    table = read_frame(history(), OPTIONS)
    by_column = issued()
    path = tmp_path / "vintages.csv"
    by_column.melt(["unique_id", "ds", "issued_at"], var_name="column").to_csv(path, index=False)
    one, other = read_vintages(by_column, table, OPTIONS), read_vintages(path, table, OPTIONS)
    assert one.columns == other.columns == ("temperature", "sky")
    for name in ("column", "series", "time", "issued_at", "value"):
        assert np.array_equal(getattr(one, name), getattr(other, name))
    origins, ahead = HOURS.to_numpy()[[4, 7, 9]][:, None], np.arange(1, 4)
    times = HOURS.to_numpy()[np.array([4, 7, 9])[:, None] + ahead]
    assert one.as_of("temperature", 1, times, origins).tolist() == [
        [104.1, 104.2, 104.3],
        [104.4, 104.5, 104.6],
        [108.2, 108.3, 108.4],
    ]
    wide = read_frame(history(1).drop(columns="unique_id"), OPTIONS)
    shared = read_vintages(issued(1).drop(columns="unique_id"), wide, OPTIONS)
    assert shared.series_ids == ()
    assert shared.as_of("temperature", 3, times[0], origins[0]).tolist() == [4.1, 4.2, 4.3]


def melted() -> pd.DataFrame:
    return issued().melt(["unique_id", "ds", "issued_at"], var_name="column").astype({"value": object})


FAULTS = {
    "column": (lambda f: f.replace({"column": {"sky": "wind"}}), "'wind' is no known covariate"),
    "series": (lambda f: f.replace({"unique_id": {"s1": "s7"}}), "series 's7': the table has no such series"),
    "no issue": (lambda f: f.drop(columns="issued_at"), "no column of the time of issue, issued_at"),
    "no time": (lambda f: f.drop(columns="ds"), "no column of times such as ds"),
    "no series": (lambda f: f.drop(columns="unique_id"), "no column names the series"),
    "missing issue": (lambda f: f.assign(issued_at=f.issued_at.where(f.index != 3)), "row 4: the time is missing"),
    "beside the grid": (
        lambda f: f.assign(ds=f.ds.where(f.index != 3, HOURS[2] + pd.Timedelta("1min"))),
        "2024-01-01T02:01:00, row 4: the time is not on the grid",
    ),
    "infinite": (
        lambda f: f.assign(value=f.value.where(f.index != 3, np.inf)),
        "series 's0', 2024-01-01T04:00:00, row 4: the value of 'temperature' is infinite",
    ),
    "other kind": (
        lambda f: f.assign(value=f.value.where(f.index != 3, "warm")),
        "series 's0', 2024-01-01T04:00:00, row 4: 'warm' in the column 'temperature' is not a number",
    ),
    "conflict": (
        lambda f: pd.concat([f, f[:1].assign(value=9.0)], ignore_index=True),
        "series 's0', 2024-01-01T01:00:00, row 145: 'temperature' was issued twice at one time with different values",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_faults(name):
    change, message = FAULTS[name]
    with pytest.raises(DataError, match=message) as caught:
        read_vintages(change(melted()), read_frame(history(), OPTIONS), OPTIONS)
    assert caught.value.hint


def test_a_table_without_known_columns_has_no_vintages():
    with pytest.raises(UsageError, match="no known covariate that could have vintages"):
        read_vintages(melted(), read_frame(history(), ReadOptions(observed=("temperature", "sky"))))


def test_the_command_checks_them(tmp_path):
    history().to_csv(tmp_path / "load.csv", index=False)
    melted().replace({"unique_id": {"s1": "s7"}}).to_csv(tmp_path / "issued.csv", index=False)
    arguments = ["--known", "temperature", "--known", "sky", "--vintages", str(tmp_path / "issued.csv"), "--json"]
    result = CliRunner().invoke(app, ["data", "check", str(tmp_path / "load.csv"), *arguments])
    assert result.exit_code == 3
    [fault] = [each for each in json.loads(result.stdout)["problems"] if each["severity"] == "fault"]
    assert (fault["series_id"], fault["message"]) == ("s7", "issued.csv: load.csv has no such series")


@pytest.mark.parametrize("layout", ["long", "wide"])
def test_a_table_takes_its_vintages_in_place_of_what_it_says(layout):
    num = 2 if layout == "long" else 1
    told, given = (frame if num == 2 else frame.drop(columns="unique_id") for frame in (history(num), issued(num)))
    plain = read_frame(told.drop(columns=["temperature", "sky"]).assign(price=1.5), ReadOptions(known=("price",)))
    options = ReadOptions(known=("price", "temperature", "sky"), vintages=given)
    for frame in (told.assign(price=1.5), told.drop(columns=["temperature", "sky"]).assign(price=1.5)):
        table = read_frame(frame, options)
        by_name = {column.name: column for column in table.covariates.columns}
        assert {name for name, column in by_name.items() if column.vintages} == {"temperature", "sky"}
        assert by_name["sky"].kind == "category"
        assert table.covariates.vintages.series_ids == (("s0", "s1") if num == 2 else ())
        for each in table.covariates.series:
            assert np.isnan(each.values[[table.covariates.names.index(name) for name in ("temperature", "sky")]]).all()
            assert (each.values[table.covariates.names.index("price")] == 1.5).all()
        said = [note for note in table.notes if "is not looked at" in note]
        assert len(said) == (2 if "temperature" in frame else 0)
        assert table.input_hash != plain.input_hash
    with pytest.raises(NotFoundError, match="has no column 'wind'"):
        read_frame(told, ReadOptions(known=("temperature", "sky", "wind"), vintages=given))


def test_two_tables_of_vintages_join_unless_they_differ():
    frame, wide = issued(1).drop(columns="unique_id"), history(1).drop(columns="unique_id")
    first, second = frame[frame["issued_at"] < HOURS[12]], frame[frame["issued_at"] >= HOURS[8]]
    table = read_frame(wide, ReadOptions(known=("temperature", "sky"), vintages=first))
    joined, whole = (
        with_vintages(each, part, OPTIONS) for each, part in ((table, second), (read_frame(wide, OPTIONS), frame))
    )
    for name in ("column", "time", "issued_at", "value"):
        found, expected = (getattr(each.covariates.vintages, name) for each in (joined, whole))
        assert np.array_equal(found, expected)
    with pytest.raises(DataError, match=r"'temperature' at 2024-01-01T09:00:00 was issued twice at 2024-01-01T08"):
        with_vintages(table, second.assign(temperature=second["temperature"] + 1), OPTIONS)


def test_what_is_known_now_is_what_was_issued_by_the_last_target_value():
    wide, frame = history(1).drop(columns="unique_id").head(20), issued(1).drop(columns="unique_id")
    table = read_frame(
        wide.drop(columns=["temperature", "sky"]), ReadOptions(known=("temperature", "sky"), vintages=frame)
    )
    future = make_future(table, 4)
    assert future["temperature"].tolist()[:3] == [16.4, 16.5, 16.6]  # issued at 16:00
    assert future["sky"].tolist()[:3] == ["fog"] * 3
    missing = missing_future(table, 4)
    assert [(each.column, each.num_steps) for each in missing] == [("temperature", 1), ("sky", 1)]
    plain = read_frame(wide, OPTIONS)
    ahead = read_known_ahead(frame, plain, OPTIONS, horizon=3, plain=("temperature", "sky"))
    assert ahead.covariates.vintages is None
    values = ahead.covariates.series[0].values[ahead.covariates.names.index("temperature")]
    assert values[:20].tolist() == plain.covariates.series[0].values[0, :20].tolist()
    assert values[20:23].tolist() == [16.4, 16.5, 16.6]
