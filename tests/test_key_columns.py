"""Long tables without a column called `unique_id`: which columns name the series is told, nothing is thrown away."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from memory_index.errors import DataError, NotFoundError
from memory_index.tables.columns import ReadOptions
from memory_index.tables.reading import read_frame, read_table

DAYS = pd.date_range("2023-01-01", periods=60)


def sales(*, stores=2, items=3, text=False, order="series"):
    names = [(f"S{s}", f"I{i}") if text else (s, i) for s in range(1, stores + 1) for i in range(1, items + 1)]
    frame = pd.DataFrame(
        [(day, s, i, 10.0 * n + day.day) for n, (s, i) in enumerate(names) for day in DAYS],
        columns=["date", "store", "item", "sales"],
    )
    return frame.sort_values("date", kind="stable") if order == "time" else frame


def written(frame, tmp_path):
    frame.to_csv(tmp_path / "sales.csv", index=False)
    return tmp_path / "sales.csv"


@pytest.mark.parametrize("order", ["series", "time"])
@pytest.mark.parametrize("text", [False, True])
@pytest.mark.parametrize(("stores", "items"), [(2, 1), (1, 3), (2, 3), (4, 5)])
def test_columns_that_name_the_series_are_told_and_read(tmp_path, stores, items, text, order):
    frame = sales(stores=stores, items=items, text=text, order=order)
    path = written(frame, tmp_path)
    keys = [name for name, num in (("store", stores), ("item", items)) if num > 1]
    with pytest.raises(
        DataError, match=f"every time is there {stores * items} times, as if 'store' and 'item'|as if '{keys[0]}'"
    ) as caught:
        read_table(path)
    assert caught.value.hint.startswith(f'read the rows as series with --id-column "{",".join(keys)}"')
    assert "--on-duplicate" not in caught.value.hint
    options = {"id_column": ",".join(keys), "ignore": tuple({"store", "item"} - set(keys))}
    table = read_table(path, ReadOptions(**options))
    assert len(table.series) == stores * items
    assert sorted(value for one in table.series for value in one.values) == sorted(frame.sales)
    name = table.series_ids[-1]
    assert name == "/".join(str(frame[key].max()) for key in keys)
    assert read_table(path, ReadOptions(**{**options, "id_column": tuple(keys)})).series_ids == table.series_ids


@pytest.mark.parametrize("policy", ["first", "last", "mean"])
@pytest.mark.parametrize("ignore", [(), ("store", "item")])
def test_repeated_times_are_not_resolved_where_columns_name_the_series(tmp_path, policy, ignore):
    path = written(sales(text=bool(ignore)), tmp_path)
    with pytest.raises(DataError, match="as if 'store' and 'item' named the series"):
        read_table(path, ReadOptions(on_duplicate=policy, ignore=ignore))


def test_series_that_begin_at_different_times(tmp_path):
    frame = sales(stores=5, items=4)
    starts = np.random.default_rng(0).integers(0, 30, 20)
    number = (frame.store - 1) * 4 + frame.item - 1
    frame = frame[(frame.date - DAYS[0]).dt.days >= starts[number]]
    with pytest.raises(DataError, match="as if 'store' and 'item' named the series"):
        read_table(written(frame, tmp_path))


def test_several_columns_of_values_are_named(tmp_path):
    frame = sales(stores=3, items=1).drop(columns="item").assign(price=lambda f: f.sales / 3)
    with pytest.raises(DataError) as caught:
        read_table(written(frame, tmp_path))
    assert '--id-column "store" --value-column NAME (one of sales, price; leave the others out)' in caught.value.hint
    options = ReadOptions(id_column="store", value_column="price")
    [note] = read_table(tmp_path / "sales.csv", options).notes
    assert "the column 'sales' is not used: a long table has one column of values, here 'price'" in note


def test_rows_of_several_series_without_any_name(tmp_path):
    frame = sales().drop(columns=["store", "item"])
    with pytest.raises(
        DataError, match="every time is there 6 times, and no column tells the series of these rows"
    ) as caught:
        read_table(written(frame, tmp_path))
    assert "add a column that names the series" in caught.value.hint
    assert read_table(tmp_path / "sales.csv", ReadOptions(on_duplicate="mean")).series_ids == ("sales",)


def test_a_table_that_was_written_twice_is_no_table_of_series(tmp_path):
    frame = pd.DataFrame({"date": DAYS, "load": range(60), "wind": 1})
    path = written(pd.concat([frame, frame]), tmp_path)
    with pytest.raises(DataError, match="the time is there twice, with the same values"):
        read_table(path)
    assert read_table(path, ReadOptions(on_duplicate="first"))["load"].values.tolist() == list(range(60))


def test_a_wide_table_is_read_as_it_was(tmp_path):
    frame = pd.DataFrame({"date": DAYS, "store": range(60), "item": 1.5})
    assert read_table(written(frame, tmp_path)).layout == "wide"
    assert read_table(written(sales(), tmp_path), ReadOptions(layout="wide", on_duplicate="mean")).series_ids == (
        "store",
        "item",
        "sales",
    )


def test_columns_that_name_a_series_together(tmp_path):
    path = written(sales(), tmp_path)
    with pytest.raises(NotFoundError, match="has no column 'stor'"):
        read_table(path, ReadOptions(id_column="stor,item"))
    frame = pd.DataFrame({"a": ["x/y", "x"], "b": ["z", "y/z"], "ds": [DAYS[0]] * 2, "y": [1.0, 2.0]})
    with pytest.raises(DataError, match="are not different"):
        read_frame(frame, ReadOptions(id_column=("a", "b"), step="D"))
    unnamed = sales().astype({"store": object})
    unnamed.loc[3, "store"] = None
    with pytest.raises(DataError, match="the row names no series in 'store' and 'item'"):
        read_frame(unnamed, ReadOptions(id_column=("store", "item")))


@pytest.mark.parametrize("ignore", [(), ("a",)])
def test_rows_that_name_no_series_at_all(tmp_path, ignore):
    path = tmp_path / "nobody.csv"
    path.write_text("unique_id,ds,y\n" + "".join(f",{day.date()},1\n" for day in DAYS))
    with pytest.raises((DataError, NotFoundError), match="no series"):
        read_table(path, ReadOptions(ignore=ignore))
