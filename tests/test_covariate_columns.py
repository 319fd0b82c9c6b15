"""Columns beside the targets: roles, kinds, wide and long, the future in the same file, and what is wrong with them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import typer
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from cli.options import reading_flags, reads_table
from memory_index import DataError, IncompatibleError, NotFoundError, ReadOptions, UsageError, read_frame, read_table
from memory_index.covariates import Covariate
from memory_index.tables.checking import check_table
from memory_index.tables.recorded_roles import with_recorded

STEPS, AHEAD = 40, 6
HOURS = pd.date_range("2024-01-01", periods=STEPS + AHEAD, freq="h")
ROLES = ReadOptions(known=("temperature", "promo", "sky"), observed=("pressure",), static=("size",))


def wide(**columns: object) -> pd.DataFrame:
    target = np.where(np.arange(len(HOURS)) < STEPS, np.arange(len(HOURS)) * 1.5, np.nan)
    frame = {
        "ds": HOURS,
        "load": target,
        "temperature": np.linspace(-5, 9, len(HOURS)),
        "promo": ["yes", "no"] * (len(HOURS) // 2),
        "sky": (["fog", "clear", None, "clear"] * len(HOURS))[: len(HOURS)],
        "pressure": np.arange(len(HOURS)) + 0.25,
        "size": 3.5,
    }
    return pd.DataFrame(frame | columns)


def long(num_series: int = 3) -> pd.DataFrame:
    parts = []
    for number in range(num_series):
        part = wide(size=float(number), temperature=np.arange(len(HOURS)) + 100.0 * number)
        part = part.rename(columns={"load": "y"}).assign(unique_id=f"s{number}")
        parts.append(part.iloc[: len(HOURS) - number])
    return pd.concat(parts, ignore_index=True)


def test_a_wide_table_shares_its_covariates_and_they_are_no_series():
    table = read_frame(wide(wind=1.0), ROLES)
    assert table.series_ids == ("load", "wind")
    [first, second] = table.covariates.series
    assert first is second
    assert table.covariates.columns == (
        Covariate(name="temperature", role="known", kind="number"),
        Covariate(name="promo", role="known", kind="boolean"),
        Covariate(name="sky", role="known", kind="category", categories=("clear", "fog")),
        Covariate(name="pressure", role="observed", kind="number"),
        Covariate(name="size", role="static", kind="number"),
    )
    assert first.values[2, :4].tolist()[:2] == [1, 0]
    assert np.isnan(first.values[2, 2])
    assert first.values[1, :2].tolist() == [1, 0]


def test_rows_after_the_last_target_value_are_the_future():
    table = read_frame(wide(), replace(ROLES, on_nan="error", on_gap="error"))  # their empty targets are no fault
    assert len(table["load"]) == STEPS
    beside = table.covariates.series[0]
    assert len(beside.times) == STEPS + AHEAD
    assert np.array_equal(beside.times[:STEPS], table["load"].times)
    assert not np.isnan(beside.values[0]).any()
    pressure = beside.values[3]
    assert np.isnan(pressure[STEPS:]).all()
    assert not np.isnan(pressure[:STEPS]).any()
    assert (beside.values[4] == 3.5).all()
    assert "missing" not in " ".join(table.notes)


def test_a_long_table_has_values_for_each_series(tmp_path):
    path = tmp_path / "shops.csv"
    long().sample(frac=1, random_state=1).to_csv(path, index=False)
    table = read_table(path, ROLES)
    for name in ("s0", "s1", "s2"):
        number = int(name[1])
        beside = table.covariates.series[table.series_ids.index(name)]
        assert len(table[name]) == STEPS
        assert len(beside.times) == STEPS + AHEAD - number
        assert beside.values[0].tolist() == (np.arange(STEPS + AHEAD - number) + 100 * number).tolist()
        assert (beside.values[4] == number).all()
    chosen = read_table(path, replace(ROLES, columns=("s1",)))
    assert len(chosen.covariates.series) == len(chosen.series) == 1
    assert chosen.covariates.series[0].values[4, 0] == 1


def test_a_column_without_a_role_is_named_as_unused(tmp_path):
    options = replace(ROLES, observed=(), static=())
    notes = read_frame(long(), options).notes
    assert any("the column 'pressure' is not used" in note for note in notes)
    assert any("the column 'size' is not used" in note for note in notes)
    frame = wide(wind=2.0, other=1.0)
    table = read_frame(frame, replace(ROLES, columns=("load",), ignore=("other",)))
    assert table.series_ids == ("load",)
    [note] = [note for note in table.notes if "not used" in note]
    assert note.startswith("the table: the column 'wind' is not used: --columns names the targets; give it a role")


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.integers(0, STEPS + AHEAD - 1), unique=True, max_size=12),
    st.integers(0, AHEAD),
    st.booleans(),
)
def test_gaps_and_ends_are_laid_on_the_grid_as_a_plain_loop_would(dropped, behind, shuffled):
    frame = wide()
    frame = frame[~frame.index.isin([row for row in dropped if 0 < row < STEPS - 1])]
    frame = frame[frame.index < STEPS + behind]
    expected = {(row.ds): (row.temperature, row.pressure) for row in frame.itertuples()}
    table = read_frame(frame.sample(frac=1, random_state=3) if shuffled else frame, ROLES)
    beside = table.covariates.series[0]
    assert len(beside.times) == STEPS + behind
    for place, time in enumerate(pd.DatetimeIndex(beside.times)):
        temperature, pressure = expected.get(time, (np.nan, np.nan))
        assert np.array_equal(beside.values[0, place], temperature, equal_nan=True)
        assert np.array_equal(beside.values[3, place], pressure if place < STEPS else np.nan, equal_nan=True)


def test_repeated_rows_are_resolved_like_targets():
    frame = wide()
    twice = pd.concat([frame, frame.iloc[[5]].assign(temperature=99.0, sky="fog")], ignore_index=True)
    with pytest.raises(DataError, match="the time is there twice, with different values"):
        read_frame(twice, ROLES)
    mean = read_frame(twice, replace(ROLES, on_duplicate="mean")).covariates.series[0].values
    assert mean[0, 5] == pytest.approx((99 + frame.temperature[5]) / 2)
    assert mean[2, 5] == 0  # the first of the two words
    last = read_frame(twice, replace(ROLES, on_duplicate="last")).covariates.series[0].values
    assert (last[0, 5], last[2, 5]) == (99, 1)


KINDS = {
    "numbers": ([1.5, 2, None], "number", [1.5, 2, np.nan]),
    "flags": ([1, 0, 1], "boolean", [1, 0, 1]),
    "booleans": ([True, None, False], "boolean", [1, np.nan, 0]),
    "words of booleans": (["True", "no", ""], "boolean", [1, 0, np.nan]),
    "words": (["b", " a", "NA"], "category", [1, 0, np.nan]),
    "a category of pandas": (pd.Categorical(["b", "a", None]), "category", [1, 0, np.nan]),
    "decimal commas": (["1,5", "2,5", ""], "number", [1.5, 2.5, np.nan]),
}


@pytest.mark.parametrize("name", KINDS)
def test_kinds(name):
    cells, kind, values = KINDS[name]
    frame = pd.DataFrame({"ds": HOURS[:3], "y": ["1", "2", "3"], "x": cells})
    options = ReadOptions(known=("x",), decimal="," if "commas" in name else None)
    table = read_frame(frame, options)
    assert table.covariates.columns[0].kind == kind
    assert np.array_equal(table.covariates.series[0].values[0], values, equal_nan=True)


FAULTS = {
    "infinite": (
        wide(temperature=[np.inf, *range(len(HOURS) - 1)]),
        "2024-01-01T00:00:00, row 1: .*'temperature' is inf",
    ),
    "too large": (wide(temperature=[1e39, *range(len(HOURS) - 1)]), "row 1: .*'temperature' 1e\\+39 is too large"),
    "empty": (wide(temperature=np.nan), "the column 'temperature' is empty"),
    "text": (wide(temperature=["warm", *map(str, range(len(HOURS) - 1))]), "'warm' in the column 'temperature' is not"),
    "times": (wide(temperature=HOURS), "'temperature' holds times"),
    "static that moves": (
        wide(size=[None, 1, *[2] * (len(HOURS) - 2)]),
        "T02:00:00, row 3: the static column 'size' has several values",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_faults_name_time_and_column(name, tmp_path):
    frame, message = FAULTS[name]
    with pytest.raises(DataError, match=message) as caught:
        read_frame(frame, ROLES)
    assert caught.value.hint
    path = tmp_path / "load.parquet"
    frame.to_parquet(path)
    faults = [each for each in check_table(path, ROLES).problems if each.severity == "fault"]
    assert [each.column for each in faults] == ["size" if "static" in name else "temperature"]


def test_a_fault_of_a_long_table_names_the_series():
    frame = long()
    frame.loc[frame.index[-1], "temperature"] = -np.inf
    with pytest.raises(DataError, match=r"series 's2', 2024-01-02T19:00:00, row 135: .*'temperature' is infinite"):
        read_frame(frame, ROLES)


def test_a_constant_column_is_a_note():
    table = read_frame(wide(temperature=7.0), ROLES)
    assert table.notes == ("the table: the column 'temperature' is constant: 7",)


def test_a_code_for_no_value_is_named_and_can_be_removed():
    frame = wide()
    frame.loc[3:5, "temperature"] = -9999
    [note] = read_frame(frame, ROLES).notes
    assert "3 values of 'temperature' are -9999, far outside the others" in note
    table = read_frame(frame, replace(ROLES, missing=("-9999",)))
    assert table.notes == ()
    assert np.isnan(table.covariates.series[0].values[0, 3:6]).all()


def test_flags_make_the_options_that_they_were_made_of():
    options = ReadOptions(step="15min", on_gap="ffill", on_nan="drop", on_duplicate="last", max_cells=1000)
    seen = []

    def command(*, table_options: ReadOptions) -> None:
        seen.append(table_options)

    app = typer.Typer()
    app.command()(reads_table(command))
    remembered = replace(options, known=("a, b", "temperature"), calendar=("hour",), ignore=("x",), decimal=",")
    remembered = replace(remembered, recorded=(Covariate(name="a, b", role="known", kind="number"),))
    assert CliRunner().invoke(app, reading_flags(remembered)).exit_code == 0
    assert seen == [options]  # the rest is what a version remembers


def test_names_that_make_no_sense():
    with pytest.raises(UsageError, match="known is the text 'price', not a list of names"):
        ReadOptions(known="price")
    with pytest.raises(UsageError, match="'x' is named twice: --known and --static"):
        ReadOptions(known=("x",), static=("x",))
    with pytest.raises(UsageError, match="'x' is named twice: --observed and --ignore"):
        ReadOptions(observed=("x",), ignore=("x",))
    with pytest.raises(NotFoundError, match="the table has no column 'temprature'") as caught:
        read_frame(wide(), replace(ROLES, known=("temprature",)))
    assert "'temperature'" in caught.value.hint


def test_recorded_roles_need_not_be_typed_again():
    first = read_frame(wide(), replace(ROLES, calendar=("hour",), holidays="DE"))
    options = with_recorded(ReadOptions(), first.covariates.columns)
    # Dry weather: by itself it would be a flag; and a word that was not there before.
    second = read_frame(wide(temperature=0.0, sky="storm"), options)
    assert [(c.name, c.role, c.kind) for c in second.covariates.columns] == [
        (c.name, c.role, c.kind) for c in first.covariates.columns
    ]
    assert second.covariates.columns[2].categories == ("clear", "fog")
    assert (second.covariates.series[0].values[2] == -1).all()
    assert any("'storm' in the column 'sky' was never seen before" in note for note in second.notes)
    with_recorded(replace(ROLES, calendar=("auto",)), first.covariates.columns)  # what agrees may be typed
    for wrong, message in (
        (ReadOptions(observed=("temperature",)), "'temperature' is known"),
        (ReadOptions(known=("price",)), "no such covariate"),
        (ReadOptions(calendar=("week",)), "built with hour"),
        (ReadOptions(holidays="FR"), "built with DE"),
    ):
        with pytest.raises(IncompatibleError, match=message):
            with_recorded(wrong, first.covariates.columns)
    with pytest.raises(IncompatibleError, match=r"no column 'sky' \(known\), 'size' \(static\), which the version"):
        read_frame(wide().drop(columns=["sky", "size"]), options)
