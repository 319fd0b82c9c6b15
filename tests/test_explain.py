"""A forecast taken apart: every number is the forward pass's, together they make the forecast, and none knows later."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import fields, is_dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from forecaster_fixtures import SETTINGS, TABLE, WITHOUT_NETWORK, K, Small, awaken, make_small, train_small
from hypothesis import given, settings
from hypothesis import strategies as st
from memory_fixtures import WINDOW, Store, append, between, open_version, poisoned

from forecaster.errors import RunIncompatibleError
from forecaster.explain import Explanation, explain
from forecaster.forecast import forecast
from forecaster.model.types import ModelOutput
from forecaster.predictor import Predictor, load_predictor
from forecaster.retrieval.batches import LiveBlock, live_blocks
from memory_index.closeness import usual_distances
from memory_index.errors import NotFoundError, UsageError
from memory_index.tables.series import Series, SeriesTable

LAST = len(TABLE.times) - 1
HORIZON, TOP_K = WINDOW.horizon, SETTINGS["top_k"]
BASES = ("linear", "last_value", "seasonal_naive", "network")
SPACES = ["own-12", "own-36", "joint-12", "joint-36", "pooled-12", "pooled-36"]
FAST = {"use_llm": False, "max_steps": 3, "save_steps": 100}


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Small:
    """The small run with networks that say something of their own, and have a say."""
    made = make_small(tmp_path_factory.getbasetemp())
    model = deepcopy(made.predictor.model)
    torch.manual_seed(0)
    awaken(model)
    with torch.no_grad():
        model.value_gate.logits.zero_()
    return replace(made, predictor=replace(made.predictor, model=model))


def explained(
    small: Small, name: str = "load", row: int = 400, table: SeriesTable = TABLE, **options: Any
) -> Explanation:
    return explain(small.predictor, small.memory, table, name, table[name].times[row], **options)


def forward(predictor: Predictor, small: Small, row: int, table: SeriesTable = TABLE) -> tuple[LiveBlock, ModelOutput]:
    """All windows of a moment through the model, without anything that explains."""
    config = predictor.config
    origins = [np.array([row])] * len(table.series)
    [block] = live_blocks(small.memory, table, origins, config.model, config.train.memory_k, predictor.units)
    with torch.no_grad():
        return block, predictor.model.eval()(block.batch.context, block.batch.neighbours, unit=block.batch.unit)


def everything(value: Any, where: str = "") -> Iterator[tuple[str, Any]]:
    """All numbers and texts of an explanation by their place, but for what tells of the truth."""
    if where.endswith((".actual", ".match")):
        return
    if is_dataclass(value):
        for field in fields(value):
            yield from everything(getattr(value, field.name), f"{where}.{field.name}")
    elif isinstance(value, tuple):
        for number, each in enumerate(value):
            yield from everything(each, f"{where}[{number}]")
    else:
        yield where, value


def assert_same(found: Explanation, expected: Explanation) -> None:
    found_values, expected_values = dict(everything(found)), dict(everything(expected))
    assert found_values.keys() == expected_values.keys()
    for where, value in expected_values.items():
        np.testing.assert_array_equal(found_values[where], value, err_msg=where)


def within_bounds(name: str, forecast: np.ndarray) -> np.ndarray:
    """What a forecast comes to: `beat` is a count."""
    return np.maximum(forecast, 0) if name == "beat" else forecast


# The forward pass


@pytest.mark.parametrize("name", TABLE.series_ids)
def test_a_window_of_any_block_of_the_moment_is_found(small, monkeypatch, name):
    whole = explained(small, name, 400)
    monkeypatch.setattr("forecaster.explain.MODEL_BATCH", 2)
    found = explained(small, name, 400)
    np.testing.assert_allclose(found.forecast, whole.forecast, rtol=1e-5)
    np.testing.assert_allclose(found.model_part, whole.model_part, rtol=1e-5)
    assert [part.nearest for part in found.parts] == [part.nearest for part in whole.parts]


@pytest.mark.parametrize("name", TABLE.series_ids)
def test_every_number_is_that_of_the_forward_pass(small, name):
    row = 400
    found, (block, output) = explained(small, name, row), forward(small.predictor, small, row)
    n = TABLE.series_ids.index(name)
    for field in ("gate", "model_part", "memory_part", "networks"):
        np.testing.assert_array_equal(getattr(found, field), getattr(output, field)[n], err_msg=field)
    np.testing.assert_array_equal(found.forecast, within_bounds(name, output.forecast[n].numpy()))
    assert len(found.networks) == 2
    np.testing.assert_allclose(found.parts[3].forecast, found.networks.mean(axis=0), rtol=1e-5)
    np.testing.assert_array_equal([part.weight for part in found.parts], output.weights[n])
    assert [part.name for part in found.parts] == [*BASES, *SPACES]
    assert [part.of_memory for part in found.parts] == [False] * len(BASES) + [True] * len(SPACES)
    bases, spaces = found.parts[: len(BASES)], found.parts[len(BASES) :]
    np.testing.assert_array_equal([part.forecast for part in bases], output.bases[n])
    np.testing.assert_array_equal([part.forecast for part in spaces], block.batch.neighbours.forecasts[n])
    assert found.feature_gate == output.gating.gate[n].item()
    assert found.confidence == output.gating.confidence[n].item()
    for given_name, tensor in (("direction", output.trend.direction), ("magnitude", output.trend.magnitude)):
        np.testing.assert_array_equal(list(getattr(found.trend, given_name).values()), tensor[n].softmax(dim=0))
    assert list(found.trend.direction) == ["up", "flat", "down"]
    assert list(found.trend.magnitude) == ["strong up", "weak up", "weak down", "strong down"]
    neighbours = found.neighbours
    assert len(neighbours) == TOP_K
    np.testing.assert_array_equal([each.similarity for each in neighbours], block.batch.neighbours.similarity[n])
    np.testing.assert_array_equal([each.match_score for each in neighbours], output.gating.match[n])
    np.testing.assert_array_equal([each.weight for each in neighbours], output.gating.weights[n])
    # In its own location and spread each is what the network was given: the record is of the right window.
    windows = small.memory.windows
    for k, record in enumerate(each.record for each in neighbours):
        view = windows.views.index(record.view)
        location, spread = windows.location[record.row_id, view], windows.spread[record.row_id, view]
        given_future, given_context = block.batch.neighbours.futures[n, k], block.batch.neighbours.contexts[n, k]
        np.testing.assert_array_equal((record.future - location) / spread, given_future)
        np.testing.assert_array_equal((record.context[-len(found.context) :] - location) / spread, given_context)


def test_what_the_memory_found_is_reported_as_it_was_found(small):
    found, (block, _) = explained(small), forward(small.predictor, small, 400)
    answer = small.memory.search(block.asked.queries, K)
    assert [str(space) for space in answer.spaces] == SPACES
    assert [part.num_neighbours for part in found.parts] == [*[0] * len(BASES), *answer.valid[0, 0].sum(axis=1)]
    assert [part.nearest for part in found.parts] == [*[None] * len(BASES), *answer.distance[0, 0, :, 0]]
    scaled = np.square(answer.distance[0, 0].astype(np.float64)) / answer.temperature[:, None]
    best: dict[int, tuple[float, int, int]] = {}
    for v, rank in np.argwhere(answer.valid[0, 0]):
        row = int(answer.row[0, 0, v, rank])
        best[row] = min(best.get(row, (np.inf, 0, 0)), (scaled[v, rank], v, rank))
    nearest = sorted(best, key=lambda row: (best[row][0], row))[:TOP_K]
    assert [each.record.row_id for each in found.neighbours] == nearest
    for row, each in zip(nearest, found.neighbours, strict=True):
        _, v, rank = best[row]
        assert (f"{each.record.scope}-{each.record.view}", each.record.rank) == (SPACES[v], rank + 1)
        assert each.record.distance == answer.distance[0, 0, v, rank]
        assert each.record.weight == answer.weights[0, 0, v, rank]


def test_it_is_what_is_forecast(small):
    levels = (0.05, 0.5, 0.95)
    table = forecast(small.predictor, small.memory, TABLE, quantiles=levels)
    for name in TABLE.series_ids:
        found, expected = explained(small, name, LAST, levels=levels), table[table["unique_id"] == name]
        np.testing.assert_array_equal(found.forecast, expected["yhat"].to_numpy())
        np.testing.assert_array_equal(found.quantiles, expected[["q0.05", "q0.5", "q0.95"]].to_numpy())
        assert list(found.times[-HORIZON:]) == list(expected["ds"].to_numpy().astype("datetime64[ns]"))
        assert np.isnan(found.actual).all()
        assert all(each.record.match is None for each in found.neighbours)


def test_what_is_known_around_the_origin(small):
    found, lookback = explained(small, "load", 400), SETTINGS["lookback"]
    values = TABLE["load"].values.astype(np.float32)
    np.testing.assert_array_equal(found.context, values[401 - lookback : 401])
    np.testing.assert_array_equal(found.actual, values[401 : 401 + HORIZON])
    np.testing.assert_array_equal(found.times, TABLE.times[401 - lookback : 401 + HORIZON])
    assert found.origin_text == "2021-03-17T16:00:00"
    for each in found.neighbours:
        assert each.record.match == pytest.approx(np.corrcoef(each.record.future, found.actual)[0, 1], abs=1e-6)


def test_in_sample_is_said_of_what_training_or_validation_used(small):
    # 252 steps to train, 84 to validate: the first origin of the test part is that of the last validation step.
    assert [explained(small, "load", row).in_sample for row in (200, 334, 335, 400)] == [True, True, False, False]


# What makes what


def assert_parts_make_the_forecast(found: Explanation) -> None:
    def close(left: np.ndarray, right: np.ndarray) -> None:
        np.testing.assert_allclose(left, right, rtol=0, atol=2e-6 * abs(found.forecast).max())

    made = {part.name: part.weight * np.where(part.weight > 0, part.forecast, 0) for part in found.parts}
    bases, spaces = ([part for part in found.parts if part.of_memory is which] for which in (False, True))
    np.testing.assert_allclose(sum(part.weight for part in found.parts), 1, rtol=1e-6)
    np.testing.assert_allclose(sum(part.weight for part in bases), found.gate, atol=1e-6)
    mixed = found.gate * found.model_part + (1 - found.gate) * found.memory_part
    close(within_bounds(found.series_id, mixed), found.forecast)
    close(sum(made[part.name] for part in bases), found.gate * found.model_part)
    close(sum(made[part.name] for part in spaces), (1 - found.gate) * found.memory_part)
    close(sum(made.values()), mixed)


@pytest.mark.parametrize("name", TABLE.series_ids)
def test_the_parts_make_the_forecast(small, name):
    found = explained(small, name)
    assert_parts_make_the_forecast(found)
    assert ((found.gate > 0.01) & (found.gate < 0.99)).all()
    product = [each.similarity * each.match_score for each in found.neighbours]
    np.testing.assert_allclose([each.weight for each in found.neighbours], np.array(product) / sum(product), rtol=1e-5)
    assert found.confidence == pytest.approx(sum(product), rel=1e-5)
    for shares in (found.trend.direction.values(), found.trend.magnitude.values(), found.trend.scale_shares):
        assert sum(shares) == pytest.approx(1, abs=1e-5)
    assert sum(each.similarity for each in found.neighbours) == pytest.approx(1, abs=1e-5)


def test_classes_change_where_the_labels_do(small):
    """A future whose mean lies between two borders is labelled as the class between them."""
    from forecaster.model.tapr import labels, trend_change

    found = explained(small)
    borders = found.trend.borders
    assert (np.diff(borders) > 0).all()
    thresholds = small.predictor.model.thresholds
    _, output = forward(small.predictor, small, 400)
    means = np.concatenate([[borders[0] - 1], (borders[1:] + borders[:-1]) / 2, [borders[-1] + 1]])
    futures = torch.tensor(means[:, None].repeat(HORIZON, axis=1), dtype=torch.float32)
    context = torch.from_numpy(found.context).expand(len(means), -1)
    direction, magnitude = labels(trend_change(context, futures, output.spread[:1]), thresholds)
    assert [list(found.trend.direction)[n] for n in direction] == ["down", "down", "flat", "flat", "up", "up"]
    named = [list(found.trend.magnitude)[n] for n in magnitude]
    assert named == ["strong down", "weak down", "weak down", "weak up", "weak up", "strong up"]


def test_a_scale_says_how_many_steps_it_averages(small):
    # Patches of 8 steps, one every 4: four of them span 20.
    assert explained(small).trend.scale_steps == (8, 20)


# The future


@settings(max_examples=8)
@given(row=st.integers(255, 400), seed=st.integers(0, 99))
def test_what_comes_later_in_the_table_changes_nothing(small, row, seed):
    expected, later = explained(small, "load", row), poisoned(TABLE, TABLE.times[row], seed=seed)
    found = explained(small, "load", row, later)
    assert_same(found, expected)
    assert (found.actual != expected.actual).all()


@settings(max_examples=6)
@given(row=st.integers(300, 400), seed=st.integers(0, 99))
def test_what_is_appended_later_changes_nothing(small, row, seed):
    store, answers = Store(small.folder / "indexes"), []
    for known in (TABLE, poisoned(TABLE, TABLE.times[row], seed=seed)):
        version = append(store, "m@1", known)
        memory = open_version(version, threads=1)
        answers.append(explain(small.predictor, memory, between(TABLE, 0, row + 1), "load", TABLE.times[row]))
        store.remove(version.ref)
    assert_same(*answers)
    assert any(part.share_closer is not None for part in answers[0].parts)


def test_what_is_appended_before_the_origin_is_looked_at(small):
    store = Store(small.folder / "indexes")
    version = append(store, "m@1", TABLE)
    newer = explain(small.predictor, open_version(version, threads=1), TABLE, "load", TABLE.times[LAST])
    store.remove(version.ref)
    older = explained(small, "load", LAST)
    assert max(each.record.known_at for each in newer.neighbours) > max(
        each.record.known_at for each in older.neighbours
    )


# Which runs and windows there are


def variant(small: Small, tmp_path, **changed: Any) -> Predictor:
    out = tmp_path / "run"
    trained = train_small(small.memory, out, neighbours_dir=small.folder / "neighbours", **FAST | changed)
    return load_predictor(trained.run, device="cpu")


def test_without_tapr_there_is_no_trend(small, tmp_path):
    found = explain(variant(small, tmp_path, use_tapr=False), small.memory, TABLE, "load", TABLE.times[400])
    assert found.trend is None
    assert found.feature_gate is not None
    assert_parts_make_the_forecast(found)


def test_without_a_network_the_gate_mixes_alone(small, tmp_path):
    predictor = variant(small, tmp_path, **WITHOUT_NETWORK)
    found = explain(predictor, small.memory, TABLE, "load", TABLE.times[400])
    assert (found.trend, found.feature_gate, found.confidence) == (None, None, None)
    assert [(each.match_score, each.weight) for each in found.neighbours] == [(None, None)] * TOP_K
    assert found.networks.shape == (0, WINDOW.horizon)
    assert_parts_make_the_forecast(found)


def test_without_the_shortcut_the_networks_are_all_that_stands_beside_the_memory(small, tmp_path):
    predictor = variant(small, tmp_path, use_shortcut=False)
    found = explain(predictor, small.memory, TABLE, "load", TABLE.times[400])
    assert [part.name for part in found.parts] == ["network", *SPACES]
    assert_parts_make_the_forecast(found)


def test_as_the_design_says_the_network_is_the_whole_forecast(small, tmp_path):
    predictor = variant(small, tmp_path, gram_form="design")
    found = explain(predictor, small.memory, TABLE, "load", TABLE.times[400])
    assert [part.name for part in found.parts] == ["network"]
    np.testing.assert_allclose(found.forecast, found.networks[0], rtol=1e-6)
    assert found.feature_gate is not None
    assert (found.gate == 1).all()


@pytest.mark.parametrize("horizon", [1, 5])
def test_a_horizon_shorter_than_that_of_the_version(small, tmp_path, horizon):
    predictor = variant(small, tmp_path, horizon=horizon)
    found = explain(predictor, small.memory, TABLE, "load", TABLE.times[400])
    for name in ("forecast", "gate", "actual", "memory_part"):
        assert getattr(found, name).shape == (horizon,)
    assert found.quantiles.shape == (horizon, 3)
    assert len(found.times) == SETTINGS["lookback"] + horizon
    assert_parts_make_the_forecast(found)
    for each in found.neighbours:  # one number has no correlation
        future = each.record.future[:horizon]
        expected = None if horizon == 1 else pytest.approx(np.corrcoef(future, found.actual)[0, 1], abs=1e-6)
        assert each.record.match == expected


def test_an_unseen_series_rests_on_windows_of_all_series(small):
    stranger = Series(series_id="stranger", times=TABLE.times, values=-7 * TABLE["load"].values + 1e4)
    table = replace(TABLE, series=(stranger, *TABLE.series))
    found = explained(small, "stranger", LAST, table)
    np.testing.assert_array_equal(
        found.forecast, forecast(small.predictor, small.memory, table)["yhat"].to_numpy()[:HORIZON]
    )
    for part in found.parts:
        if part.of_memory and not part.name.startswith("pooled"):
            assert (part.num_neighbours, part.nearest, part.share_closer) == (0, None, None)
            assert not part.weight.any()
            assert np.isnan(part.forecast).all()
    assert {each.record.scope for each in found.neighbours} == {"pooled"}
    assert_parts_make_the_forecast(found)


def test_a_flat_window_is_explained(small):
    """The series stands still for 60 steps: every number is finite, and where they were compared so did the others."""
    found = explained(small, "flat", 397)
    assert (found.context == found.context[0]).all()
    assert np.isfinite(found.forecast).all()
    assert np.isfinite(found.quantiles).all()
    for each in found.neighbours:
        compared = each.record.context[-each.record.view :]
        assert (compared == compared[0]).all()


def test_how_close_counts_windows_that_were_known(small):
    usual, at = usual_distances(small.memory), TABLE.times[180]
    parts = [part for part in explained(small, row=180).parts if part.of_memory]
    by_then, by_now = (
        [usual.share_closer(space, part.nearest, until) for space, part in zip(usual.known_at, parts, strict=True)]
        for until in (at, TABLE.times[LAST])
    )
    assert [part.share_closer for part in parts] == by_then
    assert by_then != by_now


def test_usual_distances_can_be_kept(small):
    assert_same(explained(small, usual=usual_distances(small.memory)), explained(small))


# What cannot be explained


def test_a_run_without_a_memory_has_nothing_to_explain(small, tmp_path):
    predictor = variant(small, tmp_path, use_gram=False)
    with pytest.raises(RunIncompatibleError, match="without the memory"):
        explain(predictor, small.memory, TABLE, "load", TABLE.times[400])


def test_a_time_before_anything_is_known_is_refused(small):
    with pytest.raises(NotFoundError, match="no admissible neighbour for series 'load'"):
        explained(small, "load", WINDOW.lookback)


@pytest.mark.parametrize(
    ("name", "at", "words"),
    [
        ("laod", TABLE.times[400], "no series 'laod'"),
        ("load", TABLE.times[400] + np.timedelta64(1, "m"), "no step at"),
        ("load", TABLE.times[LAST] + np.timedelta64(9, "h"), "no step at"),
        ("load", TABLE.times[10], "11 steps"),
    ],
)
def test_a_window_that_is_not_there(small, name, at, words):
    with pytest.raises(NotFoundError, match=words):
        explain(small.predictor, small.memory, TABLE, name, at)


def test_a_level_that_is_not_calibrated_is_refused(small):
    with pytest.raises(UsageError, match=r"quantile 0\.999"):
        explained(small, levels=(0.5, 0.999))
