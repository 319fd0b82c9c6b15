"""Numbers as people write them: decimal commas, thousands, units, codes for no value, what float32 cannot hold."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.retail import write_retail
from memory_index.errors import DataError, UsageError
from memory_index.tables.checking import check_table
from memory_index.tables.columns import ReadOptions
from memory_index.tables.reading import read_table

HOURS = pd.date_range("2024-01-01", periods=48, freq="h")
NUMBERS = [round(995 + 0.3 * n, 1) for n in range(48)]


def with_marks(number, decimal, thousands, digits=1):
    return f"{number:,.{digits}f}".translate(str.maketrans({",": thousands, ".": decimal}))


@pytest.fixture
def write(tmp_path):
    def write_cells(cells, delimiter=";", name="grid.csv"):
        path = tmp_path / name
        path.write_text(
            f"date{delimiter}a\n" + "".join(f'{t}{delimiter}"{c}"\n' for t, c in zip(HOURS, cells, strict=False))
        )
        return path

    return write_cells


@pytest.mark.parametrize("delimiter", [",", ";"])
@pytest.mark.parametrize(
    ("decimal", "thousands"), [(",", ""), (",", "."), (",", " "), (",", "\u00a0"), (".", ","), (".", "'")]
)
@pytest.mark.parametrize("whole", [False, True])
def test_decimal_marks_in_all_or_some_cells(write, decimal, thousands, delimiter, whole):
    """whole: numbers without decimals are written without them, as spreadsheets do: some cells read as they are."""
    cells = [with_marks(n, decimal, thousands).removesuffix(f"{decimal}0" if whole else "x") for n in NUMBERS]
    path = write(cells, delimiter)
    with pytest.raises(
        DataError, match=r"\d+ cells of the column 'a' are like .* decimal commas or separators"
    ) as caught:
        read_table(path)
    assert "write numbers with a decimal point and without separators" in caught.value.hint
    assert f'--decimal "{decimal}"' in caught.value.hint
    assert "--missing" not in caught.value.hint
    assert "--ignore" not in caught.value.hint
    assert len([each for each in check_table(path).problems if each.severity == "fault"]) == 1
    assert read_table(path, ReadOptions(decimal=decimal))["a"].values.tolist() == NUMBERS


def test_a_word_among_decimal_commas_is_named_with_them(write):
    cells = [with_marks(number, ",", "") for number in NUMBERS]
    cells[9] = "n.v."
    decimal, word = check_table(write(cells)).problems[:2]
    assert (decimal.kind, word.kind, word.row) == ("decimal", "not-a-number", 11)
    assert decimal.message.startswith("47 cells of the column 'a' are like '995,0'")
    assert word.fix.endswith('--missing "n.v."')


def test_marks_that_may_mean_either_are_asked_for(write):
    path = write([f"{n // 1000},{n % 1000:03d}" if n > 999 else str(n) for n in range(980, 1028)])
    with pytest.raises(DataError) as caught:
        read_table(path)
    assert '--decimal "," for a decimal comma, --decimal "." for a separator of thousands' in caught.value.hint
    assert read_table(path, ReadOptions(decimal="."))["a"].values.tolist() == list(range(980, 1028))
    assert read_table(path, ReadOptions(decimal=","))["a"].values[-1] == 1.027


def test_points_that_may_separate_thousands_are_noted(write):
    path = write([f"{n // 1000}.{n % 1000:03d}" if n > 999 else str(n) for n in range(980, 1028)])
    table = read_table(path)
    assert any("'1.000' in the column 'a' was read as 1" in note for note in table.notes)
    [problem] = [each for each in check_table(path).problems if each.kind == "thousands"]
    assert '--decimal ","' in problem.fix
    assert read_table(path, ReadOptions(decimal=","))["a"].values.tolist() == list(range(980, 1028))
    assert check_table(write([f"{n / 8:.3f}" for n in range(48)])).problems == ()
    assert check_table(write([f"{n / 8}" for n in range(48)])).problems == ()


@given(numbers=st.lists(st.floats(-1e9, 1e9), min_size=8, max_size=8), decimal=st.sampled_from(".,"))
def test_numbers_with_marks_are_read_as_without(tmp_path_factory, numbers, decimal):
    path = tmp_path_factory.mktemp("marks") / "grid.csv"
    other = "." if decimal == "," else ","
    cells = [with_marks(number, decimal, other, digits=3) for number in numbers]
    path.write_text("date;a\n" + "".join(f"{t};{c}\n" for t, c in zip(HOURS, cells, strict=False)))
    assert read_table(path, ReadOptions(decimal=decimal))["a"].values.tolist() == [round(n, 3) for n in numbers]


@pytest.mark.parametrize("cell", ["1.2.3", "12,34,5", "1,00.5", "--5", "1e", "1,234,56"])
def test_what_is_no_number_stays_none(write, cell):
    for decimal in (",", "."):
        with pytest.raises(DataError):
            read_table(write([cell, *NUMBERS[1:]]), ReadOptions(decimal=decimal))
    with pytest.raises(UsageError, match="--decimal is ';'"):
        ReadOptions(decimal=";")


@pytest.mark.parametrize("cell", ["5 kWh", "<0.1", "12 %", "EUR 7"])
@pytest.mark.parametrize("every", [False, True])
def test_a_number_with_a_unit_is_not_called_missing(write, cell, every):
    with pytest.raises(DataError) as caught:
        read_table(write([cell] * 48 if every else [cell, *NUMBERS[1:]]))
    if not cell.startswith("EUR"):
        assert "write the number alone" in caught.value.hint
        assert "--missing" not in caught.value.hint
        assert "--ignore" not in caught.value.hint


# --- codes for "no value"

CODES = ["-9999", "-999", "-99.9", "-999.9", "-9999.0", "9999", "99999", "-32768", "1e20", "-1e30", "9.96921e+36"]
CODES += ["-3.4028234663852886e+38", "-2147483648"]


@pytest.mark.parametrize("code", CODES)
def test_codes_far_outside_a_series_are_named_with_what_removes_them(write, code):
    cells = [f"{10 * np.sin(n):.2f}" for n in range(48)]
    cells[5] = cells[17] = code
    path = write(cells)
    report = check_table(path)
    assert report.ok
    [note] = [each for each in report.problems if each.kind == "fill-value"]
    assert note.message.startswith(f"2 values are {float(code):.15g}"[:18])
    flag = note.fix.split("--missing ")[1]
    table = read_table(path, ReadOptions(missing=(flag,), on_nan="drop"))
    assert np.flatnonzero(np.isnan(table["a"].values)).tolist() == [5, 17]
    assert "--missing" in note.fix


@pytest.mark.parametrize("code", [-9999.9, -999.0, 1e20])
@pytest.mark.parametrize("kind", [pa.float32(), pa.float64()])
def test_codes_of_parquet_are_removed_as_written_and_as_told(tmp_path, code, kind):
    values = [code if n == 5 else float(n) for n in range(48)]
    pq.write_table(pa.table({"ds": pa.array(HOURS), "a": pa.array(values, kind)}), tmp_path / "a.parquet")
    [note] = [each for each in check_table(tmp_path / "a.parquet").problems if each.kind == "fill-value"]
    for flag in (note.fix.split("--missing ")[1], str(code)):
        table = read_table(tmp_path / "a.parquet", ReadOptions(missing=(flag,), on_nan="drop"))
        assert np.flatnonzero(np.isnan(table["a"].values)).tolist() == [5]


def test_two_codes_of_one_series_are_both_named(write):
    cells = [f"{10 * np.sin(n):.2f}" for n in range(48)]
    cells[5], cells[9] = "-999", "-9999"
    notes = [each.fix for each in check_table(write(cells)).problems if each.kind == "fill-value"]
    assert ["-9999" in notes[0], "-999" in notes[1]] == [True, True]


@pytest.mark.parametrize(
    "cells", [range(9960, 10008), [9 * n for n in range(12)], [99] * 48, [-99 + n for n in range(48)]]
)
def test_what_belongs_to_a_series_is_no_code(write, cells):
    assert not [each for each in check_table(write(list(cells))).problems if each.kind == "fill-value"]


def test_a_code_that_another_series_has_by_right_is_not_removed_everywhere(tmp_path):
    frame = pd.DataFrame({"ds": HOURS, "a": np.sin(np.arange(48)), "b": 9960.0 + np.arange(48)})
    frame.loc[7, "a"] = 9999
    [note] = [each for each in check_frame(frame, tmp_path).problems if each.kind == "fill-value"]
    assert note.series_id == "a"
    assert "empty these cells" in note.fix
    assert "--missing" not in note.fix


# --- single values that may be faults


def check_frame(frame, folder):
    frame.to_csv(folder / "t.csv", index=False)
    return check_table(folder / "t.csv")


def outliers(values, folder):
    times = pd.date_range("2024-01-01", periods=len(values), freq="h")
    report = check_frame(pd.DataFrame({"ds": times, "a": values, "b": np.arange(len(values))}), folder)
    return [each for each in report.problems if each.kind == "outlier"]


@settings(max_examples=40)
@given(
    seed=st.integers(0, 10**6),
    level=st.sampled_from([-300.0, 0.0, 50.0, 1000.0]),
    places=st.lists(st.integers(1, 398), min_size=1, max_size=3, unique=True),
    times=st.sampled_from([100.0, -100.0, 3000.0]),
)
def test_a_value_a_hundred_times_as_large_is_named_with_time_range_and_what_to_do(
    tmp_path_factory, seed, level, places, times
):
    values = level + np.random.default_rng(seed).normal(0, 3, 400).round(2)
    usual = np.delete(values, places)
    values[places] = (np.abs(level) + 17.3) * times + np.arange(len(places))
    folder = tmp_path_factory.mktemp("outliers")
    [note] = outliers(values, folder)
    assert (note.series_id, note.severity) == ("a", "note")
    assert note.at == (pd.Timestamp("2024-01-01") + pd.Timedelta(hours=min(places))).isoformat()
    assert f"({usual.min():.6g} to {usual.max():.6g})" in note.message
    flags = tuple(re.findall(r"--missing ([^\s;]+)", note.fix))
    held = read_table(folder / "t.csv", ReadOptions(missing=flags))
    assert np.flatnonzero(np.isnan(held["a"].values)).tolist() == sorted(places)
    assert not np.isnan(held["b"].values).any()


@settings(max_examples=30)
@given(seed=st.integers(0, 10**6), kind=st.sampled_from(["sales", "amounts", "spikes", "rain", "rounded", "switch"]))
def test_heavy_tails_and_counts_with_many_zeros_raise_no_alarm(tmp_path_factory, seed, kind):
    random = np.random.default_rng(seed)
    values = {
        "sales": random.negative_binomial(0.3, 0.1, 700) * (random.random(700) < 0.3),
        "amounts": random.lognormal(3, 1.0, 700).round(2),
        "spikes": (50 + random.standard_t(4, 700) * 8).round(2),
        "rain": (random.gamma(0.5, 10, 700) * (random.random(700) < 0.2)).round(1),
        "rounded": random.integers(0, 3, 700),
        "switch": (np.arange(700) % 200 == 7) * 1000.0,
    }[kind]
    assert not outliers(values, tmp_path_factory.mktemp("outliers"))


def test_a_retailers_table_and_the_public_sets_raise_no_alarm(tmp_path, repository):
    write_retail(tmp_path / "t.parquet", num_series=400, num_days=1941)
    for path in (tmp_path / "t.parquet", repository / "datasets" / "sample.csv"):
        assert not {"outlier", "fill-value"} & {each.kind for each in check_table(path).problems}


# --- beyond float32


@pytest.mark.parametrize("value", ["1.7976931348623157e+308", "-1e39"])
def test_a_value_too_large_for_float32_is_a_fault(write, value):
    path = write([*NUMBERS[:9], value, *NUMBERS[10:]])
    with pytest.raises(DataError, match=r"row 11: the value .* is too large for float32") as caught:
        read_table(path)
    flag = caught.value.hint.split("--missing ")[1].split(",")[0]
    for options in (ReadOptions(missing=(flag,), on_nan="drop"), ReadOptions(on_nan="drop")):
        assert np.flatnonzero(np.isnan(read_table(path, options)["a"].values)).tolist() == [9]
    filled = read_table(path, ReadOptions(on_nan="ffill"))["a"].values
    assert filled[9] == filled[8]


@pytest.mark.parametrize("scale", [1e-310, 1e-100, 1e-42])
def test_a_series_too_small_for_float32_is_refused(write, scale):
    with pytest.raises(DataError, match="too small for float32") as caught:
        read_table(write([repr(number * scale) for number in NUMBERS]))
    assert "power of ten" in caught.value.hint
    assert read_table(write(["0"] * 48))["a"].values.tolist() == [0.0] * 48
    assert read_table(write(["0", "5", *["1e-300"] * 46])).series_ids == ("a",)
