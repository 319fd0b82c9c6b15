"""Scores of a model: every window once, plain means, the same whatever is asked at once, and blind to what follows."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from forecaster_fixtures import (
    NUM_STEPS,
    SPLIT,
    TABLE,
    WITHOUT_NETWORK,
    K,
    config_of,
    forecasts_at,
    make_model,
    make_small,
    memory_of,
    train_small,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from memory_fixtures import WINDOW, poisoned, ragged_table, with_missing

from forecaster.evaluate import GATE_BINS, Histogram, evaluate
from forecaster.explain import explain
from forecaster.model.tapr import labels, trend_change
from forecaster.predictor import Predictor, load_predictor, memory_fan, require_same_memory
from forecaster.retrieval import batches
from forecaster.runs.intervals import LEVELS, Intervals, MemoryFan, expected_width
from forecaster.training.fit_intervals import calibrated, errors_of
from forecaster.training.windows import windows_of
from memory_index import bounds, memory_only, queries
from memory_index.errors import DataError, UsageError
from memory_index.evaluation import Evaluation, standard_units
from memory_index.memory_only import MemoryOptions
from memory_index.metrics import Score
from memory_index.splits import part_origins
from memory_index.tables.series import Series, SeriesTable

COVERED = (0.1, 0.5, 0.9)
LOOKBACK, HORIZON = config_of().model.lookback, WINDOW.horizon
FIRST_TEST = 336  # of 420 rows, and the last fifth is for the test
UNTIL_TRAIN = 252
TEST_ROWS = [np.arange(FIRST_TEST - 1, NUM_STEPS)] * 3

SHOWN_LEVELS = (0.1, 0.5, 0.9)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return make_small(tmp_path_factory.getbasetemp())


def figures(result: Evaluation) -> dict:
    """Everything but how long it took."""
    return {name: getattr(result, name) for name in Evaluation.__dataclass_fields__ if name != "seconds"}


def stranger_of(table: SeriesTable = TABLE) -> Series:
    return replace(table["load"], series_id="stranger", values=3 * table["load"].values + np.sin(np.arange(NUM_STEPS)))


def untrained(memory, table: SeriesTable = TABLE, **changed) -> Predictor:
    """A model with weights from anywhere, and quantiles that are its errors' own."""
    config = config_of(dropout=0.0, **changed)
    until = TABLE.times[UNTIL_TRAIN - 1]
    units = {series.series_id: float(series.values[series.times <= until].std()) for series in table.series}
    residual = np.repeat(np.linspace(-2, 2, len(LEVELS), dtype=np.float32)[:, None], config.model.horizon, axis=1)
    return Predictor(
        config=config,
        model=make_model(len(memory.manifest.spaces), **changed),
        units=units,
        intervals=Intervals(residual=residual, factors={}, num=9),
        seen_until=TABLE.times[FIRST_TEST - 1],
    )


# Which windows, and how they are counted


def test_every_test_window_is_scored_once(small):
    result = evaluate(small.predictor, small.memory, TABLE)
    assert result.part == "test"
    assert result.num_windows == (NUM_STEPS - FIRST_TEST) - HORIZON + 1
    assert result.num_scored == 3 * result.num_windows
    assert (result.num_series, result.num_without_neighbours, result.in_sample) == (3, 0, False)
    assert result.seconds > 0


def test_scores_are_plain_means_over_windows_steps_and_series(small):
    """Asked one window at a time, and added up in a loop."""
    model, memory = small.predictor.model, small.memory
    squared, absolute, right, gates, feature_gates = [], [], [], [], []
    below, num_open, spaces = np.zeros(3), 0, memory.manifest.key_spaces
    for n, series in enumerate(TABLE.series):
        unit = series.values[:UNTIL_TRAIN].std()
        for row in range(FIRST_TEST - 1, NUM_STEPS - HORIZON):
            origins = [np.array([row]) if number == n else np.array([], dtype=np.int64) for number in range(3)]
            (block,) = batches.live_blocks(memory, TABLE, origins, model.config, K, small.predictor.units)
            asked = block.batch.take(slice(n, n + 1))
            np.testing.assert_array_equal(
                asked.context[0], series.values[row + 1 - LOOKBACK : row + 1].astype(np.float32)
            )
            with torch.inference_mode():
                output = model(asked.context, asked.neighbours, unit=asked.unit)
            future = series.values[row + 1 : row + 1 + HORIZON]
            error = (output.forecast[0].numpy() - future) / unit
            squared.append(np.mean(error**2))
            absolute.append(np.mean(np.abs(error)))
            gates.append(output.gate[0].numpy())
            feature_gates.append(output.gating.gate.item())
            change = trend_change(asked.context, torch.from_numpy(future).float()[None], output.spread)
            right.append(output.trend.direction.argmax() == labels(change, model.thresholds)[0])
            forecast = output.forecast.numpy()
            width = expected_width(
                block.condensed.take([n]),
                memory.windows,
                spaces,
                spread=output.spread.numpy(),
                unit=asked.unit.numpy(),
                horizon=HORIZON,
            )
            fan = MemoryFan(*(part[[n]] for part in memory_fan(block.found, block.condensed, SHOWN_LEVELS, HORIZON)))
            levels = small.predictor.intervals.quantiles(forecast, width, [series.series_id], SHOWN_LEVELS, fan)
            if series.series_id == "beat":  # whole numbers not below zero: counts
                levels = np.maximum(levels, 0)
            is_open = (future[:, None] != levels[0]).any(axis=1)  # what was certain is not covered by an interval
            below += (future[:, None] <= levels[0])[is_open].sum(axis=0)
            num_open += is_open.sum()
    result = evaluate(small.predictor, memory, TABLE)
    assert result.mse == pytest.approx(np.mean(squared), rel=1e-4)
    assert result.mae == pytest.approx(np.mean(absolute), rel=1e-4)
    assert result.trend_accuracy == pytest.approx(np.mean(right), abs=1e-6)
    assert list(result.coverage) == [f"q0.{decile}" for decile in range(1, 10)]
    found = [result.coverage[f"q{level}"] for level in SHOWN_LEVELS]
    np.testing.assert_allclose(found, below / num_open, atol=1e-3)
    for found, values in ((result.gate, gates), (result.feature_gate, feature_gates)):
        assert found.mean == pytest.approx(np.mean(values), rel=1e-4)
        expected = np.quantile(values, [0.1, 0.5, 0.9], method="inverted_cdf")
        np.testing.assert_allclose([found.p10, found.p50, found.p90], expected, atol=0.0011)


@pytest.mark.parametrize("model_batch", [1, 50])
@pytest.mark.parametrize("block", [3, 1000])
def test_scores_do_not_depend_on_how_many_are_asked_at_once(small, monkeypatch, model_batch, block):
    whole = evaluate(small.predictor, small.memory, TABLE)
    monkeypatch.setattr(batches.parts_of, "__defaults__", (model_batch,))
    monkeypatch.setattr(queries.query_blocks, "__kwdefaults__", {"block": block})
    other = evaluate(small.predictor, small.memory, TABLE)
    assert other.baselines["last_value"] == whole.baselines["last_value"]
    assert other.baselines["memory_only"].mse == pytest.approx(whole.baselines["memory_only"].mse, rel=1e-5)
    assert (other.mse, other.mae) == pytest.approx((whole.mse, whole.mae), rel=1e-5)
    assert other.coverage == pytest.approx(whole.coverage, abs=2e-3)
    assert other.gate.mean == pytest.approx(whole.gate.mean, rel=1e-5)
    for name in ("num_windows", "num_scored", "num_series", "num_without_neighbours", "in_sample"):
        assert getattr(other, name) == getattr(whole, name)


@pytest.mark.parametrize("kind", ["wide", "with an unseen series", "with gaps", "ragged"])
@pytest.mark.parametrize("part", ["test", "val"])
def test_baselines_are_those_of_the_memory_by_itself(small, tmp_path, kind, part):
    memory, predictor = small.memory, small.predictor
    table = {
        "wide": TABLE,
        "with an unseen series": replace(TABLE, series=(*TABLE.series, stranger_of())),
        "with gaps": with_missing(TABLE, [("flat", 300), ("load", 370)]),
        "ragged": ragged_table(NUM_STEPS),
    }[kind]
    if kind == "ragged":
        memory = memory_of(tmp_path / "indexes", table)
        predictor = untrained(memory, table)
    found = evaluate(predictor, memory, table, part)
    expected = memory_only.evaluate(memory, table, part, options=MemoryOptions(k=K, on_empty="last-value"))
    for name in ("last_value", "seasonal_naive", "memory_only"):
        _assert_close(found.baselines[name], expected.baselines[name])
    assert list(found.by_space) == list(expected.by_space)
    for name, score in expected.by_space.items():
        _assert_close(found.by_space[name], score)
    for name in ("num_windows", "num_series", "num_scored", "num_without_neighbours"):
        assert getattr(found, name) == getattr(expected, name)
    assert found.in_sample == (part != "test" or expected.in_sample)  # intervals were calibrated on validation


def _assert_close(found: Score | None, expected: Score | None) -> None:
    assert found is not None
    assert (found.mse, found.mae) == pytest.approx((expected.mse, expected.mae), rel=1e-6)


def test_windows_that_are_only_asked_beside_others_do_not_count(small, monkeypatch):
    """A gap in the future of one series leaves its window out; whole moments are asked all the same."""
    added, add = [], Histogram.add
    monkeypatch.setattr(Histogram, "add", lambda self, values: (added.append(values.size), add(self, values)))
    table = replace(with_missing(TABLE, [("load", NUM_STEPS - 1)]), whole_windows=True)
    found = evaluate(small.predictor, small.memory, table)
    assert found.num_scored == 230
    assert sorted(added) == [230, 230 * HORIZON]
    alone = evaluate(small.predictor, small.memory, replace(table, series=table.series[:1]))
    assert alone.num_scored == 76


def test_the_linear_baseline_is_the_shortcut_alone(small):
    whole = evaluate(small.predictor, small.memory, TABLE).baselines["linear"]
    weight = small.predictor.model.shortcut.weight.double().numpy()
    squared = []
    for series in TABLE.series:
        unit = series.values[:UNTIL_TRAIN].std()
        for row in range(FIRST_TEST - 1, NUM_STEPS - HORIZON):
            context = series.values[row + 1 - LOOKBACK : row + 1]
            spread = max(context.std(), 0.3 * unit)
            made = (context - context.mean()) / spread @ weight * spread + context.mean()
            squared.append(np.mean(((made - series.values[row + 1 : row + 1 + HORIZON]) / unit) ** 2))
    assert whole.mse == pytest.approx(np.mean(squared), rel=1e-4)


def test_a_shorter_horizon_has_more_windows(small):
    found = evaluate(untrained(small.memory, horizon=3), small.memory, TABLE)
    assert found.num_windows == (NUM_STEPS - FIRST_TEST) - 3 + 1


@pytest.mark.parametrize(
    ("changed", "absent"),
    [
        ({"use_gram": False}, {"gate", "feature_gate", "memory_only"}),
        ({"use_tapr": False}, {"trend_accuracy"}),
        ({"use_shortcut": False}, {"linear"}),
        (WITHOUT_NETWORK, {"trend_accuracy", "feature_gate"}),
    ],
)
def test_what_a_model_does_not_have_is_not_scored(small, changed, absent):
    found = evaluate(untrained(small.memory, **changed), small.memory, TABLE)
    values = {name: getattr(found, name) for name in ("gate", "feature_gate", "trend_accuracy")} | found.baselines
    assert {name for name, value in values.items() if value is None} == absent
    assert (found.by_space == {}) == ("memory_only" in absent)


@pytest.fixture
def no_counts(monkeypatch):
    """As if no series were one of counts, whose quantiles are kept at zero or above."""
    monkeypatch.setattr(bounds, "may_count", lambda values: np.zeros(values.shape, dtype=bool))


def test_coverage_is_the_share_at_or_below(small, no_counts):
    """Quantiles far off on either side, and one in the middle of the errors."""
    predictor = untrained(small.memory, **WITHOUT_NETWORK)
    for shift, expected in ((-1e4, 0.0), (1e4, 1.0)):
        residual = np.full((len(LEVELS), HORIZON), shift, dtype=np.float32)
        intervals = Intervals(residual=residual, factors={}, num=9)
        found = evaluate(replace(predictor, intervals=intervals), small.memory, TABLE)
        assert list(found.coverage.values()) == [expected] * 9


def test_validation_is_covered_as_it_was_calibrated(small, no_counts):
    """The windows that calibrated the quantiles are split by them as the ranks say, but for equal errors."""
    config, record = small.predictor.config, small.trained.run.record
    windows = windows_of(TABLE, small.memory, config, record, "val", small.folder / "neighbours")
    errors = errors_of(small.predictor.model, windows, np.zeros(len(windows), dtype=np.int64))
    alone = replace(small.predictor, intervals=calibrated(errors, TABLE.series_ids, HORIZON))
    found = evaluate(alone, small.memory, TABLE, "val").coverage
    num = 3 * (84 - HORIZON + 1)
    expected = {"q0.1": np.floor(0.1 * (num + 1)) / num, "q0.5": np.ceil(0.5 * (num + 1)) / num}
    assert found["q0.1"] == pytest.approx(expected["q0.1"], abs=0.02)
    assert found["q0.5"] == pytest.approx(expected["q0.5"], abs=0.02)


def test_validation_scores_what_training_has_selected_by(small):
    found = evaluate(small.predictor, small.memory, TABLE, "val")
    assert found.mse == pytest.approx(small.trained.result.best_val_mse, rel=1e-4)
    assert found.mse < 0.6 * found.baselines["last_value"].mse


def test_a_version_with_another_split_does_not_make_validation_windows_unseen(small, tmp_path):
    """The same training part, so the same encoder: a version whose test part begins where the run's validation did."""
    split = replace(SPLIT, val_until=None, test_until=SPLIT.test_until)
    other = memory_of(tmp_path, split=split)
    require_same_memory(small.trained.run, other.manifest, "m@1", newer=True)
    assert evaluate(small.predictor, other, TABLE).in_sample
    assert not memory_only.evaluate(other, TABLE).in_sample
    found = [explain(small.predictor, other, TABLE, "load", TABLE.times[row]).in_sample for row in (334, 335)]
    assert found == [True, False]


def test_training_windows_are_in_sample_and_the_first_have_no_past(small):
    found = evaluate(small.predictor, small.memory, TABLE, "train")
    assert found.in_sample
    assert 0 < found.num_without_neighbours < found.num_scored
    assert found.gate.p90 < 1


def test_progress_is_told(small):
    told = []
    evaluate(small.predictor, small.memory, TABLE, report=lambda done, total: told.append((done, total)))
    assert told[-1] == (231, 231)


def test_parts_that_are_not_there(small):
    with pytest.raises(UsageError, match="unknown part"):
        evaluate(small.predictor, small.memory, TABLE, "tset")
    short = replace(TABLE, series=tuple(replace(s, times=s.times[:300], values=s.values[:300]) for s in TABLE.series))
    with pytest.raises(DataError, match="no whole window of 36 \\+ 8 steps in the test part"):
        evaluate(small.predictor, small.memory, short)


# Other series


def test_an_unseen_series_is_scored_and_changes_nothing_for_the_others(small):
    mixed = replace(TABLE, series=(*TABLE.series, stranger_of()))
    alone, together = evaluate(small.predictor, small.memory, TABLE), evaluate(small.predictor, small.memory, mixed)
    only = evaluate(small.predictor, small.memory, replace(TABLE, series=(stranger_of(),)))
    assert set(only.by_space) == {"pooled-12", "pooled-36"}
    assert together.num_scored == alone.num_scored + only.num_scored
    expected = (alone.mse * alone.num_scored + only.mse * only.num_scored) / together.num_scored
    assert together.mse == pytest.approx(expected, rel=1e-5)


def test_errors_of_an_unseen_series_are_counted_in_its_own_training_deviation(small):
    stranger = stranger_of()
    table = replace(TABLE, series=(*TABLE.series, stranger))
    units = standard_units(small.predictor.units, table, SPLIT)
    expected = [series.values[:UNTIL_TRAIN].std() for series in table.series]
    np.testing.assert_allclose(units, expected, rtol=1e-9)
    late = replace(stranger, values=np.where(np.arange(NUM_STEPS) < 300, np.nan, stranger.values))
    found = evaluate(small.predictor, small.memory, replace(TABLE, series=(*TABLE.series, late)))
    assert [each.series_id for each in found.skipped] == ["stranger"]
    assert "is new and has no value" in found.skipped[0].reason


def test_a_table_of_some_of_the_series(small):
    origins = part_origins(TABLE, WINDOW, SPLIT, "test")
    found = evaluate(small.predictor, small.memory, replace(TABLE, series=TABLE.series[:2]))
    assert found.num_scored == sum(len(rows) for rows in origins[:2])
    assert set(found.by_space) == {"own-12", "own-36", "pooled-12", "pooled-36"}


# The future


def test_ragged_series_are_trained_on_scored_and_forecast(tmp_path):
    table = ragged_table(NUM_STEPS)
    memory = memory_of(tmp_path / "indexes", table)
    trained = train_small(memory, tmp_path / "run", table, epochs=1)
    predictor = load_predictor(trained.run, device="cpu")
    found = evaluate(predictor, memory, table)
    origins = part_origins(table, WINDOW, SPLIT, "test")
    assert found.num_scored == sum(len(rows) for rows in origins)
    times = [series.times[rows] for series, rows in zip(table.series, origins, strict=True)]
    assert found.num_windows == len(np.unique(np.concatenate(times)))


@settings(max_examples=10)
@given(after=st.integers(FIRST_TEST - 1, NUM_STEPS - 2), seed=st.integers(0, 99))
def test_windows_are_forecast_the_same_whatever_follows_them(small, clean, after, seed):
    garbage = poisoned(TABLE, TABLE.times[after], seed=seed)
    dirty = forecasts_at(small.predictor, small.memory, garbage, TEST_ROWS)
    assert dirty.keys() == clean.keys()
    for (name, row), forecast in dirty.items():
        if row <= after:
            np.testing.assert_array_equal(forecast, clean[name, row])


@pytest.fixture(scope="module")
def clean(small):
    """The forecasts of all test windows."""
    return forecasts_at(small.predictor, small.memory, TABLE, TEST_ROWS)


def test_scores_of_validation_do_not_see_the_test_part(small):
    garbage = poisoned(TABLE, TABLE.times[FIRST_TEST - 1], seed=3)
    assert figures(evaluate(small.predictor, small.memory, garbage, "val")) == figures(
        evaluate(small.predictor, small.memory, TABLE, "val")
    )


# The distribution of a gate


@given(values=st.lists(st.floats(0, 1, width=32), min_size=1, max_size=200), parts=st.integers(1, 4))
def test_a_histogram_is_the_distribution_to_a_thousandth(values, parts):
    histogram = Histogram()
    for part in np.array_split(np.array(values, dtype=np.float32), parts):
        histogram.add(part)
    found = histogram.distribution()
    assert found.mean == pytest.approx(np.mean(values), abs=1e-6)
    expected = np.quantile(values, [0.1, 0.5, 0.9], method="inverted_cdf")
    np.testing.assert_allclose([found.p10, found.p50, found.p90], expected, atol=0.5 / GATE_BINS + 1e-9)


def test_nothing_has_no_distribution():
    assert Histogram().distribution() is None
