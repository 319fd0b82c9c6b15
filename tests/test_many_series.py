"""Tables of many series: what is done in parts or side by side comes out as if it were done at once."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from memory_fixtures import ENCODER, NUM_TRAINING, WINDOW, Store, build, build_until, open_version, wide_table

from benchmarks.retail import START, sales, write_retail
from cli.main import run
from memory_index import fit_encoder, memory_only, queries
from memory_index.leakage import Policy
from memory_index.queries import query_blocks
from memory_index.splits import split_until
from memory_index.tables.columns import ReadOptions
from memory_index.tables.reading import read_table
from memory_index.versions import segments
from memory_index.versions.key_files import read_keys
from memory_index.windows import WindowSpec

TABLE = wide_table()
LAST = TABLE.times[NUM_TRAINING - 1]


def test_a_retail_table_is_the_same_however_much_of_it_is_asked_for(tmp_path):
    few, more = tmp_path / "few.parquet", tmp_path / "more.parquet"
    assert write_retail(few, num_series=3, num_days=60, first_day=20) == 120
    write_retail(more, num_series=5, num_days=80)
    whole = pq.read_table(more).to_pandas().astype({"unique_id": str})
    day = (whole["ds"] - START) // np.timedelta64(1, "D")
    part = whole[(whole["unique_id"] < "item00003") & (day >= 20) & (day < 60)].reset_index(drop=True)
    assert part.equals(pq.read_table(few).to_pandas().astype({"unique_id": str}))


def test_a_retail_table_has_counts_many_zeros_and_late_starts():
    units = np.stack([sales(number, 400) for number in range(60)])
    known = units[np.isfinite(units)]
    assert (known == known.astype(int)).all()
    assert known.min() == 0
    assert 0.2 < (known == 0).mean() < 0.9
    assert 0.1 < np.isnan(units[:, 0]).mean() < 0.9


def test_rows_in_any_order_are_the_same_table(tmp_path):
    write_retail(tmp_path / "sorted.parquet", num_series=7, num_days=300)
    rows = pq.read_table(tmp_path / "sorted.parquet")
    order = np.random.default_rng(3).permutation(len(rows))
    pq.write_table(rows.take(pa.array(order)), tmp_path / "mixed.parquet")
    plain, mixed = (read_table(tmp_path / f"{name}.parquet") for name in ("sorted", "mixed"))
    assert {*plain.series_ids} == {*mixed.series_ids}
    for series in plain.series:
        np.testing.assert_array_equal(mixed[series.series_id].values, series.values)
        np.testing.assert_array_equal(mixed[series.series_id].times, series.times)


def test_names_are_coded_as_they_appear_trimmed_and_joined(tmp_path):
    rows = {
        "store": ["b ", "b", "a", "a", "b", "b"],
        "item": ["2", "2", "1", "1", "1", " 1"],
        "ds": np.tile(np.array(["2024-01-01", "2024-01-02"], dtype="datetime64[ns]"), 3),
        "y": [1.0, 2, 3, 4, 5, 6],
    }
    pq.write_table(pa.table(rows), tmp_path / "t.parquet")
    table = read_table(tmp_path / "t.parquet", ReadOptions(id_column=("store", "item")))
    assert table.series_ids == ("b/2", "a/1", "b/1")
    np.testing.assert_array_equal([series.values for series in table.series], [[1, 2], [3, 4], [5, 6]])


@pytest.mark.parametrize("kept", [0, 1 << 30])
def test_a_fit_without_room_for_gram_matrices_is_the_same(kept, monkeypatch, tmp_path):
    expected = build_until(Store(tmp_path / "expected"), TABLE, LAST).manifest.encoder
    monkeypatch.setattr(fit_encoder, "GRAM_BYTES", kept)
    monkeypatch.setattr(fit_encoder, "AT_ONCE", 2)
    assert build_until(Store(tmp_path / "m"), TABLE, LAST).manifest.encoder == expected


def test_keys_do_not_depend_on_how_many_windows_are_encoded_at_once(monkeypatch, tmp_path):
    expected = build_until(Store(tmp_path / "expected"), TABLE, LAST)
    monkeypatch.setattr(segments, "LOT", 50)
    monkeypatch.setattr(segments, "CHUNK", 16)
    found = build_until(Store(tmp_path / "m"), TABLE, LAST)
    for space in expected.manifest.key_spaces:
        of_each = [read_keys(version.path / "segment-0", space) for version in (expected, found)]
        np.testing.assert_array_equal(*of_each)


def test_series_are_asked_in_parts_of_few_series_and_many_moments(monkeypatch):
    monkeypatch.setattr(queries, "MAX_JOINT_SERIES", 2)
    origins = [np.arange(100, 180)] * 3
    asked, shapes = [], set()
    for block in query_blocks(TABLE, origins, WINDOW, Policy.CAUSAL, known=TABLE.series_ids, block=16, max_windows=40):
        shapes.add(block.row.shape)
        asked += [(int(n), int(row)) for n, rows in zip(block.series, block.row.T, strict=True) for row in rows]
    assert shapes == {(16, 2), (16, 1)}
    assert len(asked) == len(set(asked)) == 240


def test_short_and_late_series_are_built_and_forecast_with_what_they_have(tmp_path):
    write_retail(tmp_path / "t.parquet", num_series=90, num_days=400)
    table = read_table(tmp_path / "t.parquet")
    split, window = split_until("end", None, table.times, table.step), WindowSpec(lookback=56, horizon=14)
    version = build(table, Store(tmp_path), "m", window=window, split=split, encoder=ENCODER)
    skipped = {each.series_id for each in version.manifest.built.skipped}
    assert skipped
    assert skipped | {*version.manifest.series_ids} == {*table.series_ids}
    forecast = memory_only.forecast(open_version(version), table, quantiles=(0.5,))
    told = {each["series_id"] for each in forecast.attrs["skipped"]}
    assert told | {*forecast["unique_id"]} == {*table.series_ids}
    assert (forecast.groupby("unique_id").size() == 14).all()


def test_a_check_of_many_series_shows_the_worst_and_counts_the_others(tmp_path, capfd):
    write_retail(tmp_path / "t.parquet", num_series=130, num_days=1941, first_day=1841)
    assert run(["data", "check", str(tmp_path / "t.parquet")]) == 0
    shown, said = capfd.readouterr()
    listed = [line for line in shown.split("Findings")[0].splitlines() if line.startswith("item")]
    assert 10 <= len(listed) <= 20
    assert "of 130 series are shown" in said
    assert run(["data", "check", str(tmp_path / "t.parquet"), "--json"]) == 0
    assert len(json.loads(capfd.readouterr().out)["series"]) == 130
