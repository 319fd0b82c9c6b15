"""Forecasts of a run: they go on where each series ends, in its units, and nothing that comes later changes them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from forecaster_fixtures import SPLIT, TABLE, forecasts_at, make_small, memory_of
from hypothesis import given, settings
from hypothesis import strategies as st
from memory_fixtures import HOURLY, WINDOW, Store, append, between, open_version, poisoned, wide_table, with_missing

from forecaster.forecast import forecast
from forecaster.predictor import memory_fan
from forecaster.retrieval.batches import live_blocks
from forecaster.runs.intervals import expected_width
from memory_index.errors import DataError, UsageError
from memory_index.splits import split_by_name
from memory_index.tables.series import Series
from memory_index.windows import Step

HOUR, HORIZON = pd.Timedelta(hours=1), WINDOW.horizon


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return make_small(tmp_path_factory.getbasetemp())


def of(result: pd.DataFrame, name: str) -> pd.DataFrame:
    return result[result["unique_id"] == name].reset_index(drop=True)


def test_a_forecast_continues_every_series(small):
    result = forecast(small.predictor, small.memory, TABLE, quantiles=(0.1, 0.5, 0.975))
    assert list(result.columns) == ["unique_id", "ds", "yhat", "q0.1", "q0.5", "q0.975"]
    assert list(result["unique_id"]) == [name for name in TABLE.series_ids for _ in range(HORIZON)]
    last = pd.Timestamp(TABLE.times[-1])
    for name in TABLE.series_ids:
        assert list(of(result, name)["ds"]) == [last + number * HOUR for number in range(1, HORIZON + 1)]
    assert (result["q0.1"] <= result["q0.5"]).all()
    assert (result["q0.5"] <= result["q0.975"]).all()  # the same where counts are kept at 0
    assert list(forecast(small.predictor, small.memory, TABLE).columns) == ["unique_id", "ds", "yhat"]


def test_it_is_what_the_model_says_of_the_last_window_in_original_units(small):
    result = forecast(small.predictor, small.memory, TABLE)
    last = len(TABLE.times) - 1
    expected = forecasts_at(small.predictor, small.memory, TABLE, [np.array([last])] * 3)
    for name in TABLE.series_ids:
        np.testing.assert_array_equal(of(result, name)["yhat"], expected[name, last])
    truth = wide_table(len(TABLE.times) + HORIZON)
    for series in truth.series:
        error = of(result, series.series_id)["yhat"] - series.values[-HORIZON:]
        assert error.abs().mean() < series.values.std()


def test_a_model_that_is_left_in_training_mode_forecasts_without_dropout(small):
    expected = forecast(small.predictor, small.memory, TABLE)
    assert small.predictor.config.model.dropout > 0
    small.predictor.model.train()
    pd.testing.assert_frame_equal(forecast(small.predictor, small.memory, TABLE), expected)


def test_quantiles_are_the_intervals_of_the_last_window(small):
    levels = (0.05, 0.5, 0.95)
    result = forecast(small.predictor, small.memory, TABLE, quantiles=levels)
    (block,) = live_blocks(
        small.memory, TABLE, [np.array([419])] * 3, small.predictor.config.model, 5, small.predictor.units
    )
    predicted = small.predictor.predict(block.batch)
    spaces = small.memory.manifest.key_spaces
    width = expected_width(
        block.condensed,
        small.memory.windows,
        spaces,
        spread=predicted.spread,
        unit=np.array([small.predictor.units[name] for name in TABLE.series_ids], dtype=np.float32),
        horizon=HORIZON,
    )
    expected = small.predictor.intervals.quantiles(
        predicted.forecast, width, TABLE.series_ids, levels, memory_fan(block.found, block.condensed, levels, HORIZON)
    )
    for number, name in enumerate(TABLE.series_ids):
        within = np.maximum(expected[number], 0) if name == "beat" else expected[number]  # which is a count
        np.testing.assert_array_equal(of(result, name)[["q0.05", "q0.5", "q0.95"]].to_numpy(), within)


def test_a_quantile_that_is_not_calibrated_is_refused(small):
    with pytest.raises(UsageError, match=r"quantile 0\.999"):
        forecast(small.predictor, small.memory, TABLE, quantiles=(0.5, 0.999))


def test_series_that_end_at_different_times_go_on_from_there(small):
    ends = {"load": 420, "flat": 401, "beat": 413}
    table = replace(
        TABLE,
        layout="long",
        series=tuple(
            replace(s, times=s.times[: ends[s.series_id]], values=s.values[: ends[s.series_id]]) for s in TABLE.series
        ),
    )
    result = forecast(small.predictor, small.memory, table, quantiles=(0.5,))
    assert list(dict.fromkeys(result["unique_id"])) == list(TABLE.series_ids)
    for name, end in ends.items():
        assert of(result, name)["ds"].iloc[0] == pd.Timestamp(TABLE.times[end - 1]) + HOUR
    missing = with_missing(TABLE, [(name, row) for name, end in ends.items() for row in range(end, 420)])
    again = forecast(small.predictor, small.memory, missing, quantiles=(0.5,))
    pd.testing.assert_frame_equal(again[["unique_id", "ds"]], result[["unique_id", "ds"]])


def test_an_unseen_series_is_forecast_and_changes_nothing_for_the_others(small):
    stranger = Series(series_id="stranger", times=TABLE.times, values=-7 * TABLE["load"].values + 1e4)
    mixed = replace(TABLE, series=(stranger, *TABLE.series))
    together = forecast(small.predictor, small.memory, mixed, quantiles=(0.1, 0.9))
    alone = forecast(small.predictor, small.memory, TABLE, quantiles=(0.1, 0.9))
    pd.testing.assert_frame_equal(together[HORIZON:].reset_index(drop=True), alone)
    own = of(together, "stranger")
    assert np.isfinite(own[["yhat", "q0.1", "q0.9"]].to_numpy()).all()
    assert (own["yhat"] - stranger.values[-24:].mean()).abs().max() < 3 * stranger.values[-24:].std()


def test_a_series_at_a_time_without_any_neighbour_has_a_forecast_and_an_interval(small):
    """Right after the first lookback nothing is known, so the model stands alone."""
    early = between(TABLE, 0, WINDOW.lookback)
    result = forecast(small.predictor, small.memory, early, quantiles=(0.1, 0.9))
    assert np.isfinite(result[["yhat", "q0.1", "q0.9"]].to_numpy()).all()
    (block,) = live_blocks(
        small.memory, early, [np.array([WINDOW.lookback - 1])] * 3, small.predictor.config.model, 5, {}
    )
    assert not block.batch.neighbours.found.any()
    assert (small.predictor.predict(block.batch).gate == 1).all()


def test_times_are_in_the_zone_of_the_table(small, tmp_path):
    zoned = Step(frequency="h", time_zone="Europe/Berlin")
    assert zoned.frequency == HOURLY.frequency
    table = wide_table(420, step=zoned)
    memory = memory_of(tmp_path, table, split=split_by_name(SPLIT.name, table.times))
    result = forecast(small.predictor, memory, table)
    assert str(result["ds"].dt.tz) == "Europe/Berlin"
    plain = forecast(small.predictor, small.memory, TABLE)
    np.testing.assert_array_equal(result["yhat"], plain["yhat"])


def test_a_missing_value_in_the_context_hinders_nobody(small):
    holed, whole = (
        forecast(small.predictor, small.memory, table) for table in (with_missing(TABLE, [("flat", 417)]), TABLE)
    )
    pd.testing.assert_frame_equal(holed[["unique_id", "ds"]], whole[["unique_id", "ds"]])
    assert np.isfinite(holed["yhat"]).all()


@pytest.mark.parametrize("num_steps", [1, 32, 35])  # the model needs 32, the keys of the memory 36
def test_a_history_shorter_than_the_lookback_of_the_version_is_refused(small, num_steps):
    steps = "1 step" if num_steps == 1 else f"{num_steps} steps"
    with pytest.raises(DataError, match=f"'load' has {steps}, but a forecast needs the last 36"):
        forecast(small.predictor, small.memory, between(TABLE, 420 - num_steps, 420))


def test_no_more_than_the_lookback_is_read(small):
    short, whole = (
        forecast(small.predictor, small.memory, table, quantiles=(0.1,))
        for table in (between(TABLE, 420 - WINDOW.lookback, 420), TABLE)
    )
    pd.testing.assert_frame_equal(short, whole)


# The future


@settings(max_examples=8)
@given(end=st.integers(300, 400), seed=st.integers(0, 99))
def test_what_is_appended_later_changes_no_forecast_of_an_earlier_origin(small, end, seed):
    """The memory holds garbage from after the origin; only what was known by then may answer."""
    store = Store(small.folder / "indexes")
    history = between(TABLE, 0, end)
    later = poisoned(TABLE, TABLE.times[end - 1], seed=seed)
    answers = []
    for known in (history, later):
        version = append(store, "m@1", known)
        answers.append(forecast(small.predictor, open_version(version, threads=1), history, quantiles=(0.1, 0.9)))
        store.remove(version.ref)
    pd.testing.assert_frame_equal(*answers, check_exact=True)


def test_what_is_appended_before_the_origin_is_used(small):
    store = Store(small.folder / "indexes")
    version = append(store, "m@1", TABLE)
    newer = forecast(small.predictor, open_version(version, threads=1), TABLE)
    store.remove(version.ref)
    older = forecast(small.predictor, small.memory, TABLE)
    assert (newer["yhat"] != older["yhat"]).any()
