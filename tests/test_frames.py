"""Tables of Python: what a DataFrame keeps in its index or its types is read as it is meant, or refused with a hint."""

from __future__ import annotations

import inspect
from decimal import Decimal

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from memory_index.errors import DataError, UsageError
from memory_index.tables.columns import ReadOptions
from memory_index.tables.reading import read_frame
from memory_index.windows import to_ns

DAYS = pd.date_range("2024-01-01", periods=30)
FIRST = pd.DataFrame({"unique_id": "a", "ds": DAYS, "y": np.arange(30.0)})
SECOND = FIRST.assign(unique_id="b", y=FIRST.y + 100)
LATER = SECOND.assign(ds=DAYS + pd.Timedelta("60D"))
LONG = pd.concat([FIRST, SECOND])


def series_of(table):
    return {one.series_id: (one.times[0], one.values.tolist()) for one in table.series}


@pytest.mark.parametrize("other", [SECOND, LATER], ids=["at the same time", "one after the other"])
@pytest.mark.parametrize(
    "shape",
    {
        "unique_id": lambda frame: frame.set_index("unique_id"),
        "no name": lambda frame: frame.set_index("unique_id").rename_axis(None),
        "both": lambda frame: frame.set_index(["unique_id", "ds"]),
        "both, time first": lambda frame: frame.set_index(["ds", "unique_id"]),
        "levels without names": lambda frame: frame.set_index(["unique_id", "ds"]).rename_axis([None, None]),
        "numbered by concat": lambda frame: pd.concat(
            {name: part.drop(columns="unique_id").reset_index(drop=True) for name, part in frame.groupby("unique_id")}
        ),
        "categories": lambda frame: frame.assign(unique_id=frame.unique_id.astype("category")).set_index("unique_id"),
    }.items(),
    ids=lambda each: each[0],
)
def test_names_of_series_in_the_index_are_a_column(shape, other):
    frame = pd.concat([FIRST, other])
    table = read_frame(shape[1](frame))
    assert table.layout == "long"
    assert series_of(table) == series_of(read_frame(frame))


def test_names_under_another_name_are_a_column():
    table = read_frame(LONG.rename(columns={"unique_id": "shop"}).set_index("shop"))
    assert series_of(table) == series_of(read_frame(LONG))
    apart = pd.concat([FIRST, LATER]).rename(columns={"unique_id": "shop"}).set_index("shop")
    with pytest.raises(DataError, match="the column 'shop' holds no number") as caught:  # it could be a remark
        read_frame(apart)
    assert 'if it names the series of each row: --id-column "shop"' in caught.value.hint
    assert read_frame(apart, ReadOptions(id_column="shop")).series_ids == ("a", "b")


def test_a_single_series_keeps_its_name():
    assert read_frame(FIRST.set_index("unique_id")).series_ids == ("a",)


def test_numbers_of_series_in_the_index_are_a_column():
    frame = LONG.assign(unique_id=LONG.unique_id.map({"a": 7, "b": 8}))
    assert read_frame(frame.set_index("unique_id")).series_ids == ("7", "8")


def test_row_numbers_in_the_index_are_no_column():
    wide = pd.DataFrame({"ds": DAYS, "load": np.arange(30.0)})
    assert read_frame(wide[::2]).series_ids == ("load",)
    assert read_frame(wide.rename_axis("row")).series_ids == ("load",)
    assert read_frame(LONG.set_index("unique_id", drop=False).rename_axis("unique_id")).series_ids == ("a", "b")


@pytest.mark.parametrize(
    "frame",
    [
        pd.DataFrame({"y": range(60)}, index=pd.period_range("2019-01", periods=60, freq="M")),
        pd.DataFrame({"y": range(60), "month": pd.period_range("2019-01", periods=60, freq="M")}),
        pd.DataFrame({"y": range(60), "ds": pd.period_range("2019-01", periods=60, freq="M").astype(object)}),
    ],
    ids=["index", "column", "objects"],
)
def test_periods_are_their_first_moment(frame):
    table = read_frame(frame)
    assert table.step.frequency == "MS"
    assert np.array_equal(table.times, to_ns(pd.date_range("2019-01", periods=60, freq="MS")))


COLUMNS = {
    "sparse": pd.arrays.SparseArray(np.arange(30.0)),
    "sparse numpy": pd.Series(np.arange(30.0)).astype(pd.SparseDtype("float64", 0.0)).array,
    "nullable": pd.array(range(30), dtype="Int64"),
    "arrow": pd.array(range(30), dtype="int64[pyarrow]"),
    "decimals": pd.Series([Decimal(n) for n in range(30)], dtype=object).array,
    "text and numbers": pd.Series([str(n) if n % 2 else float(n) for n in range(30)], dtype=object).array,
    "numpy objects": pd.Series([np.float32(n) for n in range(30)], dtype=object).array,
    "float16": pd.Series(np.arange(30, dtype=np.float16)).array,
}


@pytest.mark.parametrize("name", COLUMNS)
def test_columns_of_every_type(name):
    assert read_frame(FIRST.assign(y=COLUMNS[name]))["a"].values.tolist() == [float(n) for n in range(30)]


@pytest.mark.parametrize("power", [53, 64, 70, 100])
def test_very_large_whole_numbers(power, tmp_path):
    cells = [2**power + n * 2 ** (power - 50) for n in range(30)]
    frame = FIRST.assign(y=pd.Series(cells, dtype=object))
    expected = [float(cell) for cell in cells]
    assert read_frame(frame)["a"].values.tolist() == expected
    from memory_index.tables.reading import read_table

    frame.to_csv(tmp_path / "large.csv", index=False)
    assert read_table(str(tmp_path / "large.csv"))["a"].values.tolist() == expected


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        (10**400, "a whole number that float64 cannot hold"),
        ([1, 2], "holds no number"),
        ({"a": 1}, "neither numbers nor text|holds no number"),
        (1 + 2j, "neither numbers nor text"),
        ("two", "'two' in the column 'y' is not a number"),
    ],
)
def test_cells_that_are_no_numbers_are_refused_in_one_line(cell, message):
    cells = pd.Series([cell if n == 3 or isinstance(cell, list | dict) else n for n in range(30)], dtype=object)
    with pytest.raises(DataError, match=message) as caught:
        read_frame(FIRST.assign(y=cells))
    assert caught.value.hint
    assert "\n" not in str(caught.value)


# --- other libraries


class OnlyProtocol:
    """A table that is known by the dataframe protocol alone."""

    def __init__(self, frame):
        self.frame = frame

    def __dataframe__(self, **options):
        return self.frame.__dataframe__(**options)


class OnlyStream:
    """A table that is known by the Arrow stream alone."""

    def __init__(self, table):
        self.table, self.columns = table, table.column_names

    def __arrow_c_stream__(self, requested_schema=None):
        return self.table.__arrow_c_stream__(requested_schema)


@pytest.mark.parametrize("wide", [False, True])
def test_tables_of_other_libraries(wide):
    frame = LONG.pivot(index="ds", columns="unique_id", values="y").reset_index() if wide else LONG
    frame = frame.rename_axis(columns=None).reset_index(drop=True)
    arrow = pa.Table.from_pandas(frame, preserve_index=False)
    expected = series_of(read_frame(frame))
    for table in (arrow, OnlyStream(arrow), OnlyProtocol(arrow)):
        assert series_of(read_frame(table)) == expected


def test_polars():
    polars = pytest.importorskip("polars")
    frame = polars.from_pandas(LONG.reset_index(drop=True))
    for table in (frame, frame.lazy(), frame.with_columns(polars.col("unique_id").cast(polars.Categorical))):
        assert series_of(read_frame(table)) == series_of(read_frame(LONG))
    whole = frame.with_columns(polars.col("y").cast(polars.Int64), polars.col("ds").cast(polars.Date))
    assert series_of(read_frame(whole)) == series_of(read_frame(LONG))
    empty = frame.with_columns(polars.when(polars.col("y") == 3).then(None).otherwise(polars.col("y")).alias("y"))
    assert np.isnan(read_frame(empty, ReadOptions(on_nan="drop"))["a"].values).sum() == 1
    with pytest.raises(UsageError, match="a table is a pandas DataFrame"):
        read_frame(frame["y"])


# --- a path is a string too


@pytest.mark.parametrize("module", ["memory_index", "forecaster"])
def test_public_functions_that_take_a_path_take_a_string(module):
    package = __import__(module)
    asked = 0
    for name in package.__all__:
        each = getattr(package, name)
        if inspect.isclass(each) and issubclass(each, Exception):
            continue
        calls = [each] if inspect.isfunction(each) else [each.__init__] if inspect.isclass(each) else []
        for call in calls:
            for parameter in inspect.signature(call).parameters.values():
                words = set(str(parameter.annotation).replace("|", " ").split())
                if "Path" in words and not (name in ("load_encoder", "Version", "Run") or name.endswith("Record")):
                    asked += 1
                    assert "str" in words, f"{name}({parameter.name})"
    assert asked >= 1
