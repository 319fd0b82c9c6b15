"""From neighbours to a forecast: weights, alignment, mean and quantiles, against sums written out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from memory_fixtures import (
    LocalMemory,
    Neighbours,
    Policy,
    Queries,
    SeriesTable,
    Store,
    build_until,
    built,
    open_version,
    queries_at,
    take,
    wide_table,
    with_values,
)

from memory_index import neighbours
from memory_index.errors import NotFoundError, UsageError
from memory_index.weighted import weighted_quantiles


@pytest.fixture(scope="module")
def memory(tmp_path_factory: pytest.TempPathFactory) -> LocalMemory:
    return open_version(built(tmp_path_factory.mktemp("combine")))


@pytest.fixture(scope="module")
def answer(memory: LocalMemory) -> Neighbours:
    return memory.search(queries_at(wide_table(), range(48, 360, 13)), 9)


def test_weights_are_a_softmax_of_squared_distances(answer: Neighbours) -> None:
    weights = answer.weights
    for b, n, v in np.ndindex(weights.shape[:3]):
        valid = answer.valid[b, n, v]
        raw = np.exp(-np.square(answer.distance[b, n, v].astype(np.float64)) / float(answer.temperature[v]))
        expected = raw / raw.sum() if valid.any() else np.zeros(9)
        np.testing.assert_allclose(weights[b, n, v], expected, rtol=1e-5, atol=1e-12)
        assert (weights[b, n, v][~valid] == 0).all()
    assert not answer.valid.all()


def test_far_neighbours_do_not_underflow(answer: Neighbours) -> None:
    cold = replace(answer, temperature=np.full_like(answer.temperature, 1e-12))
    total = cold.weights.sum(axis=-1)
    np.testing.assert_allclose(total[answer.valid.any(axis=-1)], 1, rtol=1e-6)
    assert np.isfinite(cold.space_forecasts()[answer.valid.any(axis=-1)]).all()


def test_the_temperature_is_the_median_of_the_last_neighbour(memory: LocalMemory) -> None:
    for record in memory.manifest.spaces:
        assert record.temperature > 0
    asked = queries_at(wide_table(), range(35, 252), Policy.DISJOINT)
    found = memory.search(asked, 50, scopes=("own",))
    last = np.maximum(found.valid.sum(axis=-1) - 1, 0)[..., None]
    squared = np.square(np.take_along_axis(found.distance, last, axis=-1)[..., 0])
    for v, space in enumerate(found.spaces):
        expected = np.median(squared[:, :, v][np.isfinite(squared[:, :, v])])
        # The version asks a sample of its windows, here every third or so.
        assert found.temperature[v] == pytest.approx(expected, rel=0.15), str(space)


def test_contexts_and_futures_are_cut_from_the_table(answer: Neighbours) -> None:
    table = wide_table()
    contexts, futures = answer.contexts(), answer.futures()
    assert contexts.dtype == futures.dtype == np.float32
    for slot in [tuple(place) for place in np.argwhere(answer.valid)[::37]]:
        series = table.series[answer.series[slot]]
        origin = int(np.searchsorted(series.times, answer.windows.origin(answer.row[slot])))
        np.testing.assert_array_equal(contexts[slot], series.values[origin - 35 : origin + 1].astype(np.float32))
        np.testing.assert_array_equal(futures[slot], series.values[origin + 1 : origin + 9].astype(np.float32))
        assert answer.known_at[slot] == series.times[origin + 8]


def test_futures_are_read_as_they_would_follow_the_query(memory: LocalMemory, answer: Neighbours) -> None:
    aligned, futures, contexts = answer.aligned_futures(), answer.futures(), answer.contexts()
    for b, n, v, k in [tuple(place) for place in np.argwhere(answer.valid)[::37]]:
        view = answer.spaces[v].view
        row = answer.row[b, n, v, k]
        query = answer.queries.context[b, n, -view:].astype(np.float64)
        window = contexts[b, n, v, k, -view:].astype(np.float64)
        assert answer.query_location[b, n, v] == pytest.approx(query.mean(), abs=1e-9)
        assert answer.query_spread[b, n, v] >= query.std() * (1 - 1e-9)
        spread = answer.windows.spread[row, answer.view_number[v]]
        assert spread >= window.std() * (1 - 1e-6)
        standard = (futures[b, n, v, k].astype(np.float64) - window.mean()) / spread
        z = (query - query.mean()) / answer.query_spread[b, n, v]
        standard += (z - (window - window.mean()) / spread) @ memory.encoder.arrays[f"ridge-{view}"]
        expected = query.mean() + answer.query_spread[b, n, v] * standard
        np.testing.assert_allclose(aligned[b, n, v, k], expected, rtol=1e-4, atol=1e-3)


def test_what_the_linear_map_knows_is_taken_from_it_and_the_rest_from_the_neighbours(memory: LocalMemory) -> None:
    """A key space's forecast is the map's, plus the mean of what the map missed after the neighbours."""
    answer = memory.search(queries_at(wide_table(), range(100, 340, 7)), 9, scopes=("own",), views=(36,))
    some = answer.valid.all(axis=(2, 3))
    assert some.sum() > 50
    row = np.maximum(answer.row, 0)
    z = (answer.windows.contexts(row) - answer.windows.location[row, -1:]) / answer.windows.spread[row, -1:]
    linear = memory.encoder.linear_forecast(36, answer.queries.context, np.arange(3))
    ours = answer.space_forecasts()[:, :, 0]
    missed = answer.windows.spread[row, -1:] * (z.astype(np.float64) @ memory.encoder.linear_map(36))
    missed = (answer.futures() - answer.windows.location[row, -1:] - missed) / answer.windows.spread[row, -1:]
    expected = linear + answer.query_spread * (answer.weights[..., None] * missed).sum(axis=3)[:, :, 0]
    np.testing.assert_allclose(ours[some], expected[some], rtol=1e-4, atol=1e-2)


def test_the_forecast_is_the_mean_of_the_key_spaces_that_have_neighbours(answer: Neighbours) -> None:
    aligned, weights = answer.aligned_futures().astype(np.float64), answer.weights
    some = answer.valid.any(axis=-1)
    assert not some.all()
    by_space = answer.space_forecasts()
    assert np.isnan(by_space[~some]).all()
    expected = np.where(answer.valid[..., None], weights[..., None] * aligned, 0).sum(axis=3)
    np.testing.assert_allclose(by_space[some], expected[some], rtol=1e-5, atol=1e-5)
    answered = some.any(axis=-1).all(axis=-1)
    kept = select(answer, answered)
    mean = np.nanmean(kept.space_forecasts().astype(np.float64), axis=2)
    np.testing.assert_allclose(kept.forecast(), mean, rtol=1e-5, atol=1e-5)


def select(answer: Neighbours, moments: np.ndarray) -> Neighbours:
    names = ("row", "distance", "shape_distance", "value_distance", "query_location", "query_spread")
    parts = {name: getattr(answer, name)[moments] for name in names}
    return replace(answer, queries=take(answer.queries, moments), **parts)


def test_a_query_without_any_neighbour_is_named(memory: LocalMemory) -> None:
    nothing = memory.search(queries_at(wide_table(), [200, 38]), 3)
    with pytest.raises(
        NotFoundError,
        match=r"for 3 of 6 queries: first series 'load' at origin 2021-03-02T14:00:00; .* known at 2021-03-02T19",
    ):
        nothing.forecast()
    with pytest.raises(NotFoundError):
        nothing.quantiles((0.5,))


def test_quantiles_are_those_of_the_weighted_futures(answer: Neighbours) -> None:
    kept = select(answer, answer.valid.any(axis=-1).any(axis=-1).all(axis=-1))
    levels = (0.05, 0.5, 0.9)
    found = kept.quantiles(levels)
    assert found.shape == (*kept.row.shape[:2], 8, 3)
    assert (np.diff(found, axis=-1) >= 0).all()
    aligned, weights = kept.aligned_futures().astype(np.float64), kept.weights.astype(np.float64)
    for b, n, h in list(np.ndindex(found.shape[:3]))[::17]:
        values, weight = aligned[b, n, ..., h].ravel(), weights[b, n].ravel()
        values, weight = values[weight > 0], weight[weight > 0]
        order = np.argsort(values, kind="stable")
        middle = (np.cumsum(weight[order]) - weight[order] / 2) / weight.sum()
        np.testing.assert_allclose(found[b, n, h], np.interp(levels, middle, values[order]), rtol=1e-4, atol=1e-3)


def test_quantiles_of_equal_weights_are_the_known_ones() -> None:
    values = np.array([4.0, 1.0, 3.0, 2.0, 99.0]).reshape(1, 1, 5, 1)
    weight = np.array([1.0, 1.0, 1.0, 1.0, 0.0]).reshape(1, 1, 5, 1)
    found = weighted_quantiles(values, weight, (0.01, 0.25, 0.5, 0.99))
    np.testing.assert_allclose(found[0, 0, 0], [1, 1.5, 2.5, 4])
    alone = weighted_quantiles(values, np.where(values == 3.0, 0.25, 0.0), (0.1, 0.9))
    np.testing.assert_array_equal(alone[0, 0, 0], [3, 3])


@pytest.mark.parametrize("levels", [(0.0,), (1.0,), (0.5, 1.5), (float("nan"),)])
def test_wrong_levels_are_refused(answer: Neighbours, levels: tuple[float, ...]) -> None:
    with pytest.raises(UsageError, match="quantile levels"):
        answer.quantiles(levels)


def test_no_levels_are_no_quantiles(answer: Neighbours) -> None:
    assert answer.quantiles((), on_empty="last-value").shape == (*answer.forecast(on_empty="last-value").shape, 0)


def test_work_in_chunks_is_work_at_once(answer: Neighbours, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = select(answer, answer.valid.any(axis=-1).any(axis=-1).all(axis=-1))
    expected = kept.forecast(), kept.quantiles((0.2, 0.8))
    b, n = kept.row.shape[:2]
    assert n > 1
    for size in (1, 3000):
        monkeypatch.setattr(neighbours, "CHUNK_VALUES", size)
        if size == 1:  # a moment of many series is cut too
            assert len(neighbours._chunks(b, n, kept.row.shape[3] * neighbours.num_values(kept, 0))) == b * n
        np.testing.assert_array_equal(kept.forecast(), expected[0])
        np.testing.assert_array_equal(kept.quantiles((0.2, 0.8)), expected[1])


def test_a_forecast_follows_its_query_s_units(tmp_path: Path) -> None:
    """The same table in other units gives the same forecast in those units."""

    def scaled(table: SeriesTable, factor: float, shift: float) -> SeriesTable:
        return with_values(table, lambda series: series.values * factor + shift)

    found = []
    for number, (factor, shift) in enumerate(((1.0, 0.0), (2.0**10, -(2.0**14)))):
        table = scaled(wide_table(), factor, shift)
        memory = open_version(build_until(Store(tmp_path / str(number)), table, table.series[0].times[259]))
        asked: Queries = queries_at(table, range(100, 330, 30))
        found.append((memory.search(asked, 12, scopes=("pooled",)).forecast() - shift) / factor)
    np.testing.assert_allclose(found[1], found[0], rtol=2e-3, atol=2e-2)


def test_the_past_repeats_where_the_series_does(memory: LocalMemory) -> None:
    """`beat` repeats exactly: its forecast from memory is exact."""
    rows = np.arange(100, 340)
    found = memory.search(queries_at(wide_table(), rows, series=["beat"]), 3, scopes=("own",), views=(36,))
    beat = wide_table()["beat"].values
    expected = np.stack([beat[row + 1 : row + 9] for row in rows])
    np.testing.assert_allclose(found.forecast()[:, 0], expected, atol=1e-4)
