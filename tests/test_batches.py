"""From tables to batches: the right steps, the right unit, and the same neighbours out of the cache and live."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from forecaster_fixtures import SPLIT, TABLE, K, config_of, memory_of
from memory_fixtures import WINDOW, ragged_table, with_missing

from forecaster.config import Config
from forecaster.model.types import Batch, NeighbourTensors
from forecaster.retrieval.batches import CachedWindows, flat_values, live_blocks, parts_of
from forecaster.training.fit import run_record
from forecaster.training.windows import windows_of
from memory_index.leakage import Policy
from memory_index.local import LocalMemory
from memory_index.missing import filled
from memory_index.splits import part_origins
from memory_index.tables.series import Series, SeriesTable

SHORT = {"lookback": 20, "horizon": 5}
TABLES = {
    "wide": TABLE,
    "ragged": ragged_table(420),
    "with gaps": with_missing(TABLE, [("flat", 100), ("flat", 300), ("load", 310)]),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Memories and folders for neighbours, by name of the table."""
    return {
        name: (memory_of(tmp_path_factory.mktemp("memory"), table), tmp_path_factory.mktemp("neighbours"))
        for name, table in TABLES.items()
    }


def cached(
    memory: LocalMemory, folder: Path, table: SeriesTable, part: str, config: Config
) -> tuple[CachedWindows, list[tuple[int, int]]]:
    """Windows of a part, and which they are: (series, origin row)."""
    record = run_record(table, memory, "m@1", config, None, "cpu")
    windows = windows_of(table, memory, config, record, part, folder)
    offset = flat_values(table)[1]
    series = np.searchsorted(offset, windows.position, side="right") - 1
    return windows, list(zip(series.tolist(), (windows.position - offset[series]).tolist(), strict=True))


def assert_equal(found: NeighbourTensors, expected: NeighbourTensors) -> None:
    for name in NeighbourTensors.__dataclass_fields__:
        assert torch.equal(getattr(found, name), getattr(expected, name)), name


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("part", ["train", "val"])
@pytest.mark.parametrize("changed", [{}, SHORT], ids=["horizon of the version", "shorter"])
def test_a_batch_is_cut_from_the_series(made, name, part, changed):
    table, (memory, folder) = TABLES[name], made[name]
    config = config_of(**changed)
    lookback, horizon = config.model.lookback, config.model.horizon
    windows, which = cached(memory, folder, table, part, config)
    spec = replace(WINDOW, horizon=horizon)
    origins = part_origins(table, spec, SPLIT, part)
    assert sorted(which) == [(n, int(row)) for n, rows in enumerate(origins) for row in rows]
    chosen = np.random.default_rng(0).permutation(len(windows))[:60]
    batch = windows.batch(chosen)
    for place, number in enumerate(chosen):
        n, row = which[number]
        series = table.series[n]
        training = series.values[series.times <= np.datetime64(SPLIT.train_until, "ns")]
        expected = series.values.astype(np.float32)
        context = expected[row + 1 - WINDOW.lookback : row + 1]
        np.testing.assert_array_equal(batch.context[place], filled(context, table.step.season)[-lookback:])
        np.testing.assert_array_equal(batch.future[place], expected[row + 1 : row + 1 + horizon])
        assert batch.unit[place].item() == pytest.approx(np.nanstd(training), rel=1e-6)
    assert (batch.fold is None) == (part == "val")
    assert torch.isfinite(batch.context).all()
    assert torch.isfinite(batch.future).all() or name == "with gaps"


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("changed", [{}, SHORT], ids=["horizon of the version", "shorter"])
def test_what_is_cached_is_what_a_live_memory_says_bit_for_bit(made, name, changed):
    table, (memory, folder) = TABLES[name], made[name]
    config = config_of(**changed)
    windows, which = cached(memory, folder, table, "val", config)
    number_of = {each: number for number, each in enumerate(which)}
    origins = part_origins(table, replace(WINDOW, horizon=config.model.horizon), SPLIT, "val")
    units = dict(zip(table.series_ids, [1.0, 2.0, 3.0], strict=True))
    seen = 0
    for block in live_blocks(memory, table, origins, config.model, K, units):
        wanted = block.asked.wanted.ravel()
        series = np.broadcast_to(block.asked.series, block.asked.wanted.shape).ravel()[wanted]
        rows = block.asked.row.ravel()[wanted]
        numbers = np.array([number_of[n, row] for n, row in zip(series.tolist(), rows.tolist(), strict=True)])
        expected = windows.batch(numbers)
        places = torch.from_numpy(np.flatnonzero(wanted))
        near = block.batch.neighbours
        live = NeighbourTensors(**{n: getattr(near, n)[places] for n in NeighbourTensors.__dataclass_fields__})
        assert_equal(live, expected.neighbours)
        assert torch.equal(block.batch.context[places], expected.context)
        assert block.batch.unit[places].tolist() == [series_unit + 1.0 for series_unit in series]
        assert block.batch.future.shape == (len(block.batch), 0)
        seen += len(numbers)
    assert seen == len(windows)


def test_an_unseen_series_takes_its_own_deviation_and_the_pooled_spaces(made):
    memory = made["wide"][0]
    load = TABLE["load"]
    wave, still = replace(load, series_id="wave", values=3 * load.values), np.full(len(load), 4.0)
    table = replace(TABLE, series=(*TABLE.series, wave, Series(series_id="still", times=load.times, values=still)))
    origins = [np.array([400])] * 5
    units = {"load": 7.0, "flat": 8.0, "beat": 9.0}
    known, new = live_blocks(memory, table, origins, config_of().model, K, units)
    assert [table.series_ids[n] for n in new.asked.series] == ["wave", "still"]
    assert known.batch.unit.tolist() == [7.0, 8.0, 9.0]
    own = wave.values[401 - WINDOW.lookback : 401].std()
    assert new.batch.unit.tolist() == [pytest.approx(own, rel=1e-5), 1.0]
    assert len(known.found.spaces) == 6
    assert [space.scope for space in new.found.spaces] == ["pooled"] * 2
    scopes = [record.space.scope for record in memory.manifest.spaces]
    for found in new.batch.neighbours.found:
        assert {scope for scope, is_found in zip(scopes, found, strict=True) if is_found} <= {"pooled"}
    assert new.batch.neighbours.found[0].any()


def test_a_model_without_memory_asks_none(made, monkeypatch):
    memory = made["wide"][0]
    monkeypatch.setattr(LocalMemory, "search", None)
    blocks = list(live_blocks(memory, TABLE, [np.array([400])] * 3, config_of(use_gram=False).model, K, {}))
    assert [(block.condensed, block.batch.neighbours, block.found) for block in blocks] == [(None, None, None)]
    windows, _ = cached(memory, Path("nothing is retrieved"), TABLE, "train", config_of(use_gram=False))
    assert windows.batch(np.arange(3)).neighbours is None


def test_live_windows_are_asked_as_of_their_own_time(made, monkeypatch):
    memory, asked = made["wide"][0], []
    search = LocalMemory.search

    def remembered(self, queries, k, **options):
        asked.append((queries.policy, k, queries.origin))
        return search(self, queries, k, **options)

    monkeypatch.setattr(LocalMemory, "search", remembered)
    list(live_blocks(memory, TABLE, [np.array([390, 400])] * 3, config_of().model, 4, {}))
    assert [(policy, k) for policy, k, _ in asked] == [(Policy.CAUSAL, 4)]
    np.testing.assert_array_equal(asked[0][2], TABLE.times[[390, 400]])


def test_many_series_are_asked_few_moments_at_a_time(made, monkeypatch):
    """Memory is bounded by windows, not by moments: a table may have hundreds of series."""
    memory, config = made["wide"][0], config_of().model
    origins = part_origins(TABLE, WINDOW, SPLIT, "val")
    whole = list(live_blocks(memory, TABLE, origins, config, K, {}))
    monkeypatch.setattr("forecaster.retrieval.batches.LIVE_WINDOWS", 31)
    blocks = list(live_blocks(memory, TABLE, origins, config, K, {}))
    assert max(len(block.batch) for block in blocks) == 30
    assert sum(len(block.batch) for block in blocks) == sum(len(block.batch) for block in whole) > 60
    for name in NeighbourTensors.__dataclass_fields__:
        parts, expected = (
            torch.cat([getattr(block.batch.neighbours, name) for block in each]) for each in (blocks, whole)
        )
        assert torch.equal(parts, expected), name


def test_training_windows_are_thinned_by_the_stride(made):
    memory, folder = made["wide"]
    for changed in ({"use_gram": False}, {}):
        windows, which = cached(memory, folder, TABLE, "train", config_of(train_stride=7, **changed))
        rows = sorted({row for _, row in which})
        assert set(np.diff(rows)) == {7}
        assert len(windows) == 3 * len(rows)
        validated = {row for _, row in cached(memory, folder, TABLE, "val", config_of(train_stride=7, **changed))[1]}
        assert set(np.diff(sorted(validated))) == {1}


@pytest.mark.parametrize("size", [1, 4, 7, 100])
def test_parts_are_the_whole_in_order(made, size):
    memory, folder = made["wide"]
    windows, _ = cached(memory, folder, TABLE, "train", config_of())
    batch = windows.batch(np.arange(7))
    parts = list(parts_of(batch, size))
    assert [len(part) for part in parts] == [size] * (7 // size) + ([7 % size] if 7 % size else [])
    for name in ("context", "future", "unit", "fold"):
        assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(batch, name))
    joined = {
        name: torch.cat([getattr(part.neighbours, name) for part in parts])
        for name in NeighbourTensors.__dataclass_fields__
    }
    assert_equal(NeighbourTensors(**joined), batch.neighbours)
    assert isinstance(batch.to(torch.device("cpu")), Batch)
