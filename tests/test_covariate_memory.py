"""A memory with covariates: what versions store, what queries bring, and what keys, maps and forecasts make of it."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from covariate_fixtures import (
    AHEAD,
    ENCODER,
    NUM_STEPS,
    SKY,
    TEMPERATURE,
    WINDOW,
    built_with,
    covariate_table,
    with_covariates,
    without,
)
from memory_fixtures import Store, append, assert_close, assert_same, between, compact, open_version, use_indexes
from service_fixtures import served

from memory_index import memory_only
from memory_index.covariates import Covariate, CovariateValues
from memory_index.encoder import DualKeyEncoder
from memory_index.errors import DataError, IncompatibleError, UsageError
from memory_index.leakage import Policy
from memory_index.local import LocalMemory
from memory_index.milvus.publish import publish
from memory_index.milvus.searching import open_milvus
from memory_index.queries import query_blocks
from memory_index.remote import RemoteMemory
from memory_index.splits import Split
from memory_index.tables.series import SeriesTable
from memory_index.types import Queries
from memory_index.versions.build import build
from memory_index.versions.opening import verify_contents
from memory_index.versions.version import verify
from memory_index.wire import Limits

ORIGINS = np.arange(600, 640)


def queries_of(memory: LocalMemory, table: SeriesTable, rows: np.ndarray = ORIGINS) -> Queries:
    """All series at origin rows, asked together under `causal`."""
    [block] = query_blocks(
        table,
        [rows] * len(table.series),
        memory.windows.spec,
        Policy.CAUSAL,
        known=memory.manifest.series_ids,
        views=memory.windows.views,
        layout=memory.manifest.covariate_layout,
    )
    return block.queries


@pytest.fixture(scope="module", params=[True, False], ids=["shared", "each its own"])
def shared(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture(scope="module")
def table(shared: bool) -> SeriesTable:
    return covariate_table(shared=shared)


@pytest.fixture(scope="module")
def memory(table: SeriesTable, tmp_path_factory: pytest.TempPathFactory) -> LocalMemory:
    return open_version(built_with(tmp_path_factory.mktemp("weather"), table))


def test_a_version_says_and_verifies_what_it_was_built_with(tmp_path: Path, table: SeriesTable, shared: bool) -> None:
    version = built_with(tmp_path, table)
    by_name = {column.name: column for column in version.manifest.covariates}
    assert [*by_name] == ["temperature", "holiday", "sky", "pressure", "size"]
    assert (by_name["sky"].kind, by_name["sky"].categories) == ("category", ("clear", "cloudy", "fog"))
    assert by_name["temperature"].weight[0] > 0
    assert by_name["pressure"].weight == (0.0, 0.0)  # of the past only: no condition of the horizon
    assert version.manifest.shared_covariates == shared
    assert "segment-0/covariates.parquet" in version.manifest.files
    assert verify(version) == ()
    assert verify_contents(version) == []
    plain = built_with(tmp_path, without(table), name="plain").manifest
    assert not any("covariate" in text for text in plain.to_document() | plain.files)


def test_nothing_of_the_future_is_stored(memory: LocalMemory, table: SeriesTable) -> None:
    stored = memory.windows.covariates
    assert stored is not None
    assert stored.values.shape[1] == (560 if memory.manifest.shared_covariates else 2 * 560)
    assert len(table.covariates.series[0].times) == NUM_STEPS + AHEAD


def test_the_parts_of_a_distance_sum_to_it(memory: LocalMemory, table: SeriesTable) -> None:
    found = memory.search(queries_of(memory, table), 9)
    has_value = np.array([space.scope != "pooled" for space in found.spaces])[:, None]
    w = np.where(has_value, ENCODER.shape_weight, 1.0)
    total = w * found.shape_distance**2 + (1 - w) * np.where(has_value, found.value_distance, 0) ** 2
    np.testing.assert_allclose(total + found.condition_distance**2, found.distance**2, rtol=1e-3, atol=1e-4)
    assert (found.condition_distance > 0).mean() > 0.9
    assert found.condition_distance.std() > 0


def test_keys_of_a_version_of_an_earlier_program_read_all_numbers(memory: LocalMemory, table: SeriesTable) -> None:
    """They were made of the numbers beside a window themselves, by arrays with as many rows: the same keys."""
    encoder, scopes = memory.encoder, ("own", "joint", "pooled")
    assert isinstance(encoder, DualKeyEncoder)
    layout = encoder.covariates
    arrays = dict(encoder.arrays)
    for view in encoder.config.views:
        beside = arrays.pop(f"beside-{view}")
        parts = beside[:, : beside.shape[1] - layout.condition_width]
        arrays[f"condition-{view}"] = beside[layout.width - layout.num_horizon :, parts.shape[1] :]
        for name in (f"own-{view}", f"pooled-{view}"):
            arrays[name] = np.concatenate(
                [arrays[name][..., :view, :], parts @ arrays[name][..., view:, :]], axis=-2, dtype=np.float32
            )
    earlier = replace(encoder, arrays=arrays)
    asked = queries_of(memory, table, np.arange(100, 600, 50))
    beside = layout.of_values(asked.covariates, encoder.config.views)
    for view in encoder.config.views:
        keys, expected = (
            each.encode(view, asked.context, np.arange(2), scopes, each.key_numbers(view, beside)).keys
            for each in (earlier, encoder)
        )
        for scope in scopes:
            np.testing.assert_allclose(keys[scope], expected[scope], atol=2e-5)


def test_answers_do_not_depend_on_the_batch(memory: LocalMemory, table: SeriesTable) -> None:
    queries = queries_of(memory, table)
    whole = memory.search(queries, 5)
    for chosen in (slice(3, 4), slice(10, 17)):
        assert_same(memory.search(queries.at_moments(chosen), 5), whole.at_moments(np.arange(len(ORIGINS))[chosen]))


def test_a_grown_or_compacted_version_answers_as_one_that_was_built_so(
    tmp_path: Path, table: SeriesTable, memory: LocalMemory
) -> None:
    store = Store(tmp_path)
    version = built_with(tmp_path, table, num_training=500)
    grown = append(store, append(store, version.ref, between(table, 0, 530)).ref, between(table, 300, 640))
    assert verify_contents(grown) == []
    merged = compact(store, grown.ref)
    assert verify_contents(merged) == []
    queries = queries_of(memory, table)
    assert_same(open_version(merged).search(queries, 7), open_version(grown).search(queries, 7), rows=False)
    assert grown.manifest.covariates == version.manifest.covariates
    once = append(store, version.ref, between(table, 0, 640))
    np.testing.assert_array_equal(
        open_version(once).windows.covariates.values, open_version(merged).windows.covariates.values
    )


def test_a_query_brings_what_the_version_was_built_with(
    memory: LocalMemory, table: SeriesTable, tmp_path: Path
) -> None:
    queries = queries_of(memory, table)
    with pytest.raises(IncompatibleError, match="no covariate 'temperature', 'holiday', 'sky', 'pressure', 'size'"):
        memory.search(replace(queries, covariates=None), 3)
    with pytest.raises(IncompatibleError, match="4 columns over 30 steps, but this version has 5"):
        memory.search(replace(queries, covariates=np.ascontiguousarray(queries.covariates[:, :, 1:])), 3)
    with pytest.raises(IncompatibleError, match="has no covariate 'temperature'"):
        memory_only.forecast(memory, without(table))
    plain = open_version(built_with(tmp_path, without(table)))
    with pytest.raises(IncompatibleError, match="built without any"):
        plain.search(queries, 3)
    assert memory_only.forecast(plain, table).equals(memory_only.forecast(plain, without(table)))
    with pytest.raises(UsageError, match="covariates must be float32"):
        replace(queries, covariates=queries.covariates.astype(np.float64))
    infinite = np.array(queries.covariates)
    infinite[1, 0, 2, -1] = np.inf
    with pytest.raises(DataError, match=r"covariate number 3 .* infinite value .*\+6 steps"):
        replace(queries, covariates=infinite)


def test_a_forecast_names_known_values_that_are_missing(memory: LocalMemory, table: SeriesTable) -> None:
    def cut(each: CovariateValues) -> np.ndarray:
        values = each.values.copy()
        values[0, NUM_STEPS + 2] = np.nan
        return values

    with pytest.raises(DataError, match=r"'temperature' of series 'north' has no value at 2021-03-30T06:00") as told:
        memory_only.forecast(memory, with_covariates(table, cut))
    assert "--future" in told.value.hint
    short = covariate_table(shared=memory.manifest.shared_covariates, ahead=2)
    with pytest.raises(DataError, match=r"has no value at .* and 1 more steps"):
        memory_only.forecast(memory, short)


def test_every_memory_answers_alike(tmp_path: Path, table: SeriesTable, monkeypatch: pytest.MonkeyPatch) -> None:
    version = append(Store(tmp_path), built_with(tmp_path, table).ref, between(table, 0, 600))
    local = open_version(version)
    queries = queries_of(local, table)
    scattered = queries.at_moments(np.array([1, 5, 3, 30]))
    with ExitStack() as stack:
        address = stack.enter_context(served(tmp_path, ["weather"], limits=Limits(max_windows=16, max_slots=20_000)))
        remote = RemoteMemory(f"{address}/weather")
        for asked in (queries, scattered):
            assert_same(remote.search(asked, 6), local.search(asked, 6))
            np.testing.assert_array_equal(remote.linear_forecast(asked), local.linear_forecast(asked))
        found = remote.search(queries, 6)
        np.testing.assert_array_equal(found.condition_distance, local.search(queries, 6).condition_distance)
        with pytest.raises(IncompatibleError, match="no covariate 'temperature'"):
            remote.search(replace(queries, covariates=None), 3)


def test_milvus_proposes_candidates_for_keys_with_a_condition(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_indexes(monkeypatch)
    table = covariate_table()
    version = built_with(tmp_path, table, encoder=replace(ENCODER, views=(12,)), scopes=("own",))
    address = f"milvus:{tmp_path / 'milvus.db'}"
    publish(version, address, index="FLAT")
    local = open_version(version, with_indexes=False)
    queries = queries_of(local, table).at_moments(slice(0, 3))
    assert_close(open_milvus(version, address, threads=1).search(queries, 5), local.search(queries, 5))


def test_days_with_a_holiday_find_days_with_a_holiday(memory: LocalMemory, table: SeriesTable) -> None:
    queries = queries_of(memory, table, np.arange(570, 690))
    holiday = queries.covariates[:, :, 1, WINDOW.lookback :]
    found = memory.search(queries, 10, scopes=("own",), views=(24,))
    stored = memory.windows.covariates.raw(memory.windows.series[found.row], memory.windows.origin_row[found.row])
    differ = (stored[..., 1, WINDOW.lookback :] != holiday[:, :, None, None]).mean()
    by_chance = 2 * holiday.mean() * (1 - holiday.mean())
    assert differ < 0.6 * by_chance


def scores(folder: Path, table: SeriesTable) -> float:
    """Mean squared error of the memory alone over the last steps, in training deviations."""
    times = table.series[0].times
    split = Split(name="until", train_until=str(times[499]), val_until=str(times[540]), test_until=str(times[-1]))
    version = build(table, Store(folder), "scored", window=WINDOW, split=split, encoder=ENCODER)
    evaluated = memory_only.evaluate(open_version(version), table, "test")
    return float(evaluated.scores["memory_only"].metrics["mse"])


def test_an_effect_that_is_known_is_used_at_any_level_and_spread(tmp_path: Path, table: SeriesTable) -> None:
    assert scores(tmp_path / "with", table) < 0.25 * scores(tmp_path / "without", without(table))


@pytest.mark.parametrize("kind", ["number", "boolean"])
def test_a_useless_column_costs_next_to_nothing(tmp_path: Path, kind: str) -> None:
    random = np.random.default_rng(5)
    table = covariate_table(columns=(TEMPERATURE, SKY))
    noise = random.normal(size=NUM_STEPS + AHEAD)
    column = Covariate(name="noise", role="known", kind=kind)  # type: ignore[arg-type]
    [each, _] = table.covariates.series
    values = np.vstack([each.values, noise if kind == "number" else noise > 0.5])
    noisy = replace(each, values=values)
    beside = replace(table.covariates, columns=(*table.covariates.columns, column), series=(noisy, noisy))
    plain = scores(tmp_path / "plain", table)
    assert scores(tmp_path / "noisy", replace(table, covariates=beside)) < 1.005 * plain
