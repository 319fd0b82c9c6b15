"""The bulk neighbours of training: the same as a live answer, cross-fitted, never from the future, never half there."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from fake_memory import FakeMemory
from killing import run_together
from memory_fixtures import (
    ENCODER,
    WINDOW,
    Policy,
    Store,
    append,
    between,
    build,
    compact,
    open_version,
    poisoned,
    queries_at,
    ragged_table,
    wide_table,
    with_missing,
)

from forecaster.errors import ConfigError
from forecaster.retrieval import cache_folder, neighbour_cache
from forecaster.retrieval.folds import NO_FOLDS, FoldPlan
from forecaster.retrieval.neighbour_cache import NeighbourCache, part_neighbours, training_neighbours
from forecaster.retrieval.neighbours import Condensed, condense, neighbour_tensors
from memory_index.errors import DataError, IncompatibleError, ResourceError
from memory_index.fit_encoder import fit_encoder
from memory_index.leakage import LeakError
from memory_index.local import LocalMemory
from memory_index.splits import Split, part_origins
from memory_index.tables.series import SeriesTable

TABLE = wide_table()
TIMES = TABLE.series[0].times
SPLIT = Split(name="rows", train_until=str(TIMES[259]), val_until=str(TIMES[309]), test_until=str(TIMES[-1]))
K = 12
MODEL = {"lookback": WINDOW.lookback, "horizon": WINDOW.horizon, "top_k": 5}


def make(folder: Path, table: SeriesTable = TABLE, **options) -> LocalMemory:
    version = build(table, Store(folder), "m", window=WINDOW, split=SPLIT, encoder=ENCODER, **options)
    return open_version(version, threads=1)


@pytest.fixture(scope="module")
def memory(tmp_path_factory):
    return make(tmp_path_factory.mktemp("memory"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Caches that several tests share."""
    return tmp_path_factory.mktemp("caches")


BLOCKS = FoldPlan(kind="time", num=3, gap=WINDOW.length)


def training(memory, folder, table: SeriesTable = TABLE, **changes) -> NeighbourCache:
    options = {"policy": Policy.DISJOINT, "k": K, "folds": BLOCKS, "stride": 1, "horizon": WINDOW.horizon} | changes
    return training_neighbours(memory, table, folder=folder, **options)


def validation(memory, folder, table: SeriesTable = TABLE, **changes) -> NeighbourCache:
    return part_neighbours(memory, table, folder=folder, **{"k": K, "horizon": WINDOW.horizon} | changes)


def spaces_of(memory):
    return memory.manifest.key_spaces


def assert_equal(found: Condensed, expected: Condensed) -> None:
    for name in Condensed._fields:
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name), err_msg=name)


def of_series(cache: NeighbourCache, number: int) -> Condensed:
    return cache.condensed.take(np.flatnonzero(cache.series == number))


# What is kept of an answer


def test_the_nearest_distinct_rows_over_all_key_spaces_are_kept(memory):
    spaces = spaces_of(memory)
    neighbours = memory.search(queries_at(TABLE, range(60, 260, 9), Policy.DISJOINT), K)
    found = condense(neighbours, spaces, slots=7)
    scaled = np.square(neighbours.distance.astype(np.float64)) / neighbours.temperature.astype(np.float64)[:, None]
    for n, (b, series) in enumerate(np.ndindex(neighbours.row.shape[:2])):
        best: dict[int, tuple[float, int]] = {}
        for v in range(len(spaces)):
            for row, value in zip(neighbours.row[b, series, v], scaled[b, series, v], strict=True):
                if row >= 0 and value < best.get(row, (np.inf, 0))[0]:
                    best[int(row)] = (value, v)
        nearest = sorted(best, key=lambda row, best=best: (best[row][0], row))[:7]
        assert found.row[n, : len(nearest)].tolist() == nearest
        assert found.space[n, : len(nearest)].tolist() == [best[row][1] for row in nearest]
        np.testing.assert_array_equal(found.logit[n, : len(nearest)], np.float32([-best[row][0] for row in nearest]))
    np.testing.assert_array_equal(
        found.forecasts, neighbours.space_forecasts().reshape(found.forecasts.shape), strict=True
    )
    assert len(set(found.space.ravel().tolist())) > 2, "only a few key spaces take part: the test proves little"


def test_what_is_not_found_is_marked(memory):
    neighbours = memory.search(queries_at(TABLE, [40, 45, 200]), K)  # hardly anything is known at the first two
    found = condense(neighbours, spaces_of(memory))
    assert not found.found[:3].any()
    assert found.found[6:].any(axis=1).all()
    assert np.isfinite(found.forecasts).all()
    assert ((found.row < 0) == np.isneginf(found.logit)).all()
    tensors = neighbour_tensors(found, memory.windows, spaces_of(memory), **MODEL)
    assert not tensors.valid[:3].any()
    assert (tensors.similarity[:3] == 0).all()
    assert torch.isfinite(tensors.contexts).all()


def test_an_unseen_series_has_the_pooled_key_spaces_only(memory):
    queries = queries_at(TABLE, [200], series=["load"])
    unseen = replace(queries, series_id=np.array(["new"]))
    found = condense(memory.search(unseen, K), spaces_of(memory))
    assert found.found[0].tolist() == [space.scope == "pooled" for space in spaces_of(memory)]
    assert all(spaces_of(memory)[number].scope == "pooled" for number in found.space[0])


# What the model reads


def test_tensors_are_the_neighbours_in_their_own_location_and_spread(memory):
    spaces, windows = spaces_of(memory), memory.windows
    condensed = condense(memory.search(queries_at(TABLE, range(100, 250, 10)), K), spaces)
    tensors = neighbour_tensors(condensed, windows, spaces, lookback=20, horizon=5, top_k=4)
    for n, slot in zip(*np.nonzero(tensors.valid.numpy()), strict=True):
        row, view = condensed.row[n, slot], windows.views.index(spaces[condensed.space[n, slot]].view)
        location, spread = windows.location[row, view], windows.spread[row, view]
        np.testing.assert_allclose(
            tensors.contexts[n, slot], (windows.contexts(row)[-20:] - location) / spread, rtol=1e-5, atol=1e-6
        )
        np.testing.assert_allclose(
            tensors.futures[n, slot], (windows.futures(row)[:5] - location) / spread, rtol=1e-5, atol=1e-6
        )
    expected = torch.softmax(torch.from_numpy(condensed.logit[:, :4]).double(), dim=1)
    torch.testing.assert_close(tensors.similarity.double(), expected, rtol=1e-5, atol=1e-7)
    assert tensors.forecasts.shape[2] == 5


def test_a_model_that_the_memory_cannot_serve_is_refused(memory):
    spaces = spaces_of(memory)
    condensed = condense(memory.search(queries_at(TABLE, [200]), K), spaces)
    with pytest.raises(IncompatibleError, match="37"):
        neighbour_tensors(condensed, memory.windows, spaces, **MODEL | {"lookback": 37})
    with pytest.raises(IncompatibleError, match="9 steps"):
        neighbour_tensors(condensed, memory.windows, spaces, **MODEL | {"horizon": 9})
    with pytest.raises(ConfigError, match="top_k"):
        neighbour_tensors(condensed, memory.windows, spaces, **MODEL | {"top_k": 11})


@pytest.mark.parametrize("size", [1, 7])
def test_a_cached_batch_is_the_live_one_bit_for_bit(memory, folder, size):
    cache = validation(memory, folder)
    chosen = np.random.default_rng(5).permutation(len(cache))[: 3 * size]
    for start in range(0, len(chosen), size):
        part = chosen[start : start + size]
        cached = neighbour_tensors(cache.condensed.take(part), memory.windows, cache.spaces, **MODEL)
        for place, number in enumerate(part):
            series = int(cache.series[number])
            answer = memory.search(queries_at(TABLE, [int(cache.origin_row[number])]), K)
            one = condense(answer, cache.spaces).take(np.array([series]))
            live = neighbour_tensors(one, memory.windows, cache.spaces, **MODEL)
            for name in ("forecasts", "found", "contexts", "futures", "similarity", "valid"):
                assert torch.equal(getattr(cached, name)[place], getattr(live, name)[0]), name


# Which windows, and who answers them


def test_every_window_of_the_part_is_there_once_in_time_order(memory, folder):
    for cache, part in ((training(memory, folder), "train"), (validation(memory, folder), "val")):
        origins = part_origins(TABLE, WINDOW, SPLIT, part)
        for number, rows in enumerate(origins):
            np.testing.assert_array_equal(cache.origin_row[cache.series == number], rows)
        assert len(cache) == sum(map(len, origins))
        times = TIMES[cache.origin_row]
        assert (np.lexsort((cache.series, times)) == np.arange(len(cache))).all()


def test_blocks_of_time_have_the_same_borders_for_all_series(memory, folder):
    cache = training(memory, folder)
    assert (np.diff(cache.fold) >= 0).all()
    assert np.unique(cache.fold).tolist() == [0, 1, 2]
    for rows in np.split(cache.fold, np.flatnonzero(np.diff(cache.origin_row)) + 1):
        assert len(set(rows.tolist())) == 1
    assert (validation(memory, folder).fold == -1).all()
    assert (training(memory, folder, folds=NO_FOLDS).fold == -1).all()


def test_each_block_is_answered_by_keys_that_were_fitted_on_the_others(memory, folder, tmp_path):
    cache = training(memory, folder)
    rows = part_origins(TABLE, WINDOW, SPLIT, "train")[0]
    for fold in range(3):
        own = np.unique(cache.origin_row[cache.fold == fold])
        others = rows[(rows <= own[0] - WINDOW.length) | (rows >= own[-1] + WINDOW.length)]
        assert 0 < len(others) < len(rows)
        trial = make(tmp_path / str(fold), fit=partial(fit_encoder, target_origins=[others] * 3))
        asked = trial.search(queries_at(TABLE, own, Policy.DISJOINT), K)
        assert_equal(cache.condensed.take(cache.fold == fold), condense(asked, cache.spaces))
    in_sample = training(memory, folder, folds=NO_FOLDS)
    assert (in_sample.condensed.logit != cache.condensed.logit).mean() > 0.5


def test_a_stride_and_a_shorter_horizon(memory, folder):
    thin = training(memory, folder, stride=4, horizon=3, folds=NO_FOLDS)
    for number, rows in enumerate(part_origins(TABLE, replace(WINDOW, horizon=3), SPLIT, "train")):
        np.testing.assert_array_equal(thin.origin_row[thin.series == number], rows[::4])
    assert thin.condensed.forecasts.shape[2] == 3
    whole = training(memory, folder, folds=NO_FOLDS)
    same = np.isin(whole.origin_row, thin.origin_row)
    kept = thin.origin_row <= whole.origin_row.max()
    np.testing.assert_array_equal(thin.condensed.forecasts[kept], whole.condensed.forecasts[same][..., :3])


def test_any_memory_can_be_asked(memory, tmp_path):
    fake = FakeMemory.of(memory)
    found = validation(fake, tmp_path / "fake", stride=10)
    expected = validation(memory, tmp_path / "local", stride=10)
    assert (found.condensed.row == expected.condensed.row).mean() > 0.97  # its sums are float64
    np.testing.assert_allclose(found.condensed.forecasts, expected.condensed.forecasts, rtol=1e-2, atol=0.05)


@pytest.mark.parametrize("kind", ["missing", "ragged"])
def test_series_need_not_share_their_windows(tmp_path, kind):
    table = ragged_table() if kind == "ragged" else with_missing(TABLE, [("load", 100), ("flat", 280)])
    memory = make(tmp_path / "m", table)
    for cache, part in (
        (training(memory, tmp_path, table, folds=replace(BLOCKS, num=2)), "train"),
        (validation(memory, tmp_path, table), "val"),
    ):
        for number, rows in enumerate(part_origins(table, WINDOW, SPLIT, part)):
            np.testing.assert_array_equal(cache.origin_row[cache.series == number], rows)
        assert (cache.condensed.row[:, 0] >= 0).all()


# Time


def test_what_has_been_appended_is_not_seen_by_training(memory, folder, tmp_path):
    make(tmp_path)
    store = Store(tmp_path)
    grown = append(store, "m", between(TABLE, 0, 300))
    for version in (grown, compact(store, grown.ref)):
        later = open_version(version, threads=1)
        assert len(later.windows) > len(memory.windows)
        for options in ({}, {"folds": NO_FOLDS}, {"folds": NO_FOLDS, "policy": Policy.CAUSAL}):
            found = training(later, tmp_path / "caches", **options)
            assert_equal(found.condensed, training(memory, folder, **options).condensed)
    seen = validation(later, tmp_path / "caches").condensed.row
    assert later.windows.known_at[seen[seen >= 0]].max() > TIMES[259], "validation should see what was appended"


def test_training_does_not_depend_on_what_comes_after_it(memory, folder, tmp_path):
    garbage = poisoned(TABLE, TIMES[259], seed=1)
    assert training(memory, folder, garbage).path == training(memory, folder).path
    again = training(memory, tmp_path, garbage)
    assert_equal(again.condensed, training(memory, folder).condensed)


@pytest.mark.parametrize("at", [262, 280, 299])
def test_causal_neighbours_do_not_depend_on_what_comes_after_the_origin(memory, folder, tmp_path, at):
    cache, again = validation(memory, folder), validation(memory, tmp_path, poisoned(TABLE, TIMES[at], seed=at))
    before = cache.origin_row <= at
    assert before.any()
    assert_equal(again.condensed.take(before), cache.condensed.take(before))


def test_a_planted_late_row_is_refused_although_its_hash_is_right(memory, tmp_path, monkeypatch):
    def leaky(*arguments, **options) -> Condensed:
        found = condense(*arguments, **options)
        found.row[0, 0] = len(memory.windows) - 1
        return found

    monkeypatch.setattr(neighbour_cache, "condense", leaky)
    with pytest.raises(LeakError):
        training(memory, tmp_path, policy=Policy.CAUSAL, folds=NO_FOLDS)


# On disk


def test_a_second_call_opens_what_the_first_has_made(memory, folder, monkeypatch):
    first = training(memory, folder)
    monkeypatch.setattr(neighbour_cache, "condense", None)  # nothing is asked
    second = training(memory, folder)
    assert_equal(second.condensed, first.condensed)
    assert isinstance(second.condensed.forecasts, np.memmap)
    assert second.notes == ()


@pytest.mark.parametrize(
    "changes",
    [
        {"k": 13},
        {"folds": replace(BLOCKS, num=2)},
        {"stride": 2},
        {"policy": Policy.CAUSAL},
        {"horizon": 7},
        {"slots": 9},
    ],
)
def test_another_setting_is_another_cache(memory, folder, changes):
    assert training(memory, folder, **changes).path != training(memory, folder).path


@pytest.mark.parametrize("name", ["forecasts.npy", "row.npy", "cache.json"])
def test_a_damaged_cache_is_made_again_and_says_so(memory, tmp_path, name):
    first = validation(memory, tmp_path)
    expected, path = first.condensed.take(np.arange(len(first))), first.path / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.chmod(0o644)
    path.write_bytes(content)
    second = validation(memory, tmp_path)
    assert "damaged" in second.notes[0]
    assert_equal(second.condensed, expected)
    assert validation(memory, tmp_path).notes == ()


@pytest.mark.parametrize("record", ["[]", "null", '{"files": null}', '{"files": LIST}', "[" * 100_000])
def test_a_record_of_another_form_is_damage(memory, tmp_path, record):
    path = validation(memory, tmp_path).path
    names = json.dumps([file.name for file in path.glob("*.npy")])
    (path / cache_folder.RECORD).write_text(record.replace("LIST", names))
    assert "found again" in validation(memory, tmp_path).notes[0]
    assert validation(memory, tmp_path).notes == ()


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """A folder that cannot be written, by root neither: it gives up its rights meanwhile."""
    user = os.geteuid()
    folder.chmod(0o555)
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)
        folder.chmod(0o755)


def test_a_whole_cache_in_a_folder_that_cannot_be_written_is_used(memory):
    with tempfile.TemporaryDirectory() as name:  # tmp_path cannot even be seen without the rights of its owner
        folder = Path(name)
        first = validation(memory, folder)
        for file in folder.glob(".*.lock"):
            file.unlink()
        with read_only(folder):
            again = validation(memory, folder)
            assert_equal(again.condensed, first.condensed)
            assert again.notes == ()
            with pytest.raises(ResourceError, match="permission denied") as caught:
                validation(memory, folder, k=K + 1)
            assert "--neighbours-dir" in caught.value.hint


def test_what_fails_leaves_nothing_to_be_seen(memory, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", full)
        with pytest.raises(ResourceError, match="no space left"):
            validation(memory, tmp_path)
    assert [path.name for path in tmp_path.iterdir() if not path.name.startswith(".")] == []
    assert not list(tmp_path.glob(".staging-*"))


def test_leftovers_of_killed_processes_are_deleted(memory, tmp_path):
    left = tmp_path / f"{cache_folder.STAGING}0123"
    (left / "trial").mkdir(parents=True)
    (left / "row.npy").write_bytes(b"half")
    validation(memory, tmp_path)
    assert not left.exists()


def make_cache(indexes: Path, folder: Path) -> tuple[str, float]:
    cache = validation(open_version(Store(indexes).resolve("m"), threads=1), folder)
    return cache.path.name, float(cache.condensed.forecasts.sum(dtype=np.float64))


def test_two_that_make_the_same_cache_at_once_both_get_it(memory, tmp_path):
    make(tmp_path / "indexes")
    found = run_together(make_cache, *[(tmp_path / "indexes", tmp_path / "caches")] * 3)
    assert len(set(found)) == 1
    assert [path.name for path in (tmp_path / "caches").iterdir() if path.is_dir()] == [found[0][0]]
    record = json.loads((tmp_path / "caches" / found[0][0] / cache_folder.RECORD).read_text())
    assert record["settings"]["memory"] == memory.manifest.fingerprint


# Refusals


def test_a_table_of_other_values_is_refused(memory, tmp_path):
    with pytest.raises(IncompatibleError, match="load"):
        training(memory, tmp_path, poisoned(TABLE, TIMES[100], seed=3))


def test_a_longer_horizon_is_refused(memory, tmp_path):
    with pytest.raises(IncompatibleError, match="9 steps"):
        training(memory, tmp_path, horizon=9)


def test_too_many_blocks_are_refused(memory, tmp_path):
    with pytest.raises(DataError, match="blocks"):
        training(memory, tmp_path, folds=replace(BLOCKS, num=120), stride=2)


class Approximate(LocalMemory):
    """The same version, asked by way of something else."""

    answered_by = "milvus HNSW 1"


def test_answers_of_an_approximate_index_are_kept_apart(memory, tmp_path):
    other = Approximate(memory.manifest, memory.encoder, memory.windows, memory.segments)
    asked = [(validation, {}), (training, {"folds": NO_FOLDS}), (training, {})]
    own, theirs = ([find(each, tmp_path, **options).path for find, options in asked] for each in (memory, other))
    # Blocks of time are asked of versions that are searched here either way.
    assert [mine == other for mine, other in zip(own, theirs, strict=True)] == [False, False, True]
    settings = json.loads((own[0] / cache_folder.RECORD).read_text())["settings"]
    assert settings.pop("answered_by") == ""
    assert hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:32] == own[0].name
