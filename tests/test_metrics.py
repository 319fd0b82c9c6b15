"""Metrics: what each one is, cell by cell in a loop; what does not count; and that neither batches nor order matter."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from memory_fixtures import poisoned, ragged_table, wide_table, with_missing

from memory_index import metrics
from memory_index.errors import UsageError
from memory_index.metrics import DECILES, Actual, Metric, Score, ScoreSum
from memory_index.scaling import naive_errors

LEVELS = (0.1, 0.5, 0.9)
NUM_SERIES = 3


def made(seed: int, num: int, horizon: int, *, missing: float = 0.2) -> tuple[Actual, np.ndarray, np.ndarray]:
    """Windows of three series with forecasts and quantiles; some cells missing, some equal, some scales zero."""
    random = np.random.default_rng(seed)
    future = np.round(random.normal(size=(num, horizon)) * 3)  # whole numbers: some are 0, some equal the last value
    future[random.random(future.shape) < missing] = np.nan
    series = random.integers(0, NUM_SERIES, num)
    actual = Actual(
        future=future,
        weight=np.isfinite(future).astype(np.float64),
        series=series,
        last=np.round(random.normal(size=num)).astype(np.float32),
        unit=np.array([1.0, 2.0, 0.5])[series],
        naive_absolute=np.array([1.5, 0.0, 3.0])[series],
        naive_squared=np.array([2.5, 0.0, np.nan])[series],
    )
    forecast = np.round(random.normal(size=(num, horizon)) * 2).astype(np.float32)
    quantiles = np.sort(random.normal(size=(num, horizon, len(LEVELS))), axis=2).astype(np.float32)
    return actual, forecast, quantiles


def in_a_loop(actual: Actual, forecast: np.ndarray, quantiles: np.ndarray, chosen: np.ndarray) -> dict[str, float]:
    """The definitions of docs/method.md over the chosen cells, bool [W, H]."""
    parts: dict[str, list[float]] = {}
    losses, sizes = 0.0, 0.0
    for w, h in np.argwhere(chosen & np.isfinite(actual.future)):
        y, f, unit, last = actual.future[w, h], float(forecast[w, h]), actual.unit[w], actual.last[w]
        found = {"mse": ((f - y) / unit) ** 2, "mae": abs(f - y) / unit}
        found |= {"mse_original": (f - y) ** 2, "mae_original": abs(f - y)}
        pinball = [max(q * (y - v), (q - 1) * (y - v)) for q, v in zip(LEVELS, quantiles[w, h].tolist(), strict=True)]
        loss = 2 * sum(pinball) / len(pinball)
        losses, sizes = losses + loss, sizes + abs(y)
        if actual.naive_absolute[w] > 0:
            found |= {"mase": abs(f - y) / actual.naive_absolute[w], "sql": loss / actual.naive_absolute[w]}
        if actual.naive_squared[w] > 0:
            found["rmsse"] = (f - y) ** 2 / actual.naive_squared[w]
        if abs(f) + abs(y) > 0:
            found["smape"] = 2 * abs(f - y) / (abs(f) + abs(y))
        if y != last:
            found["direction_accuracy"] = float(np.sign(f - last) == np.sign(y - last))
        if (quantiles[w, h] != y).any():
            found |= {f"coverage_q{q:g}": float(y <= v) for q, v in zip(LEVELS, quantiles[w, h], strict=True)}
        for name, value in found.items():
            parts.setdefault(name, []).append(value)
    means = {name: math.fsum(values) / len(values) for name, values in parts.items()}
    if "rmsse" in means:
        means["rmsse"] = math.sqrt(means["rmsse"])
    return means | ({"wql": losses / sizes} if sizes > 0 else {})


def scored(actual: Actual, forecast: np.ndarray, quantiles: np.ndarray, *, at_once: int = 1000) -> Score:
    total = ScoreSum(NUM_SERIES, forecast.shape[1], LEVELS)
    for start in range(0, len(forecast), at_once):
        part = slice(start, start + at_once)
        total.add(Actual(*(each[part] for each in actual)), forecast[part], quantiles[part])
    return total.score()


def known(values: dict[str, float | None]) -> dict[str, float]:
    return {name: value for name, value in values.items() if value is not None and not math.isnan(value)}


@settings(max_examples=25)
@given(seed=st.integers(0, 999), num=st.integers(1, 30), horizon=st.integers(1, 5))
def test_every_metric_is_its_definition_for_all_cells_each_step_and_each_series(seed, num, horizon):
    actual, forecast, quantiles = made(seed, num, horizon)
    score = scored(actual, forecast, quantiles)
    everything = np.ones(forecast.shape, dtype=bool)
    assert known(score.metrics) == pytest.approx(in_a_loop(actual, forecast, quantiles, everything))
    for step in range(horizon):
        chosen = everything & (np.arange(horizon) == step)
        found = {name: values[step] for name, values in score.by_step.items()}
        assert known(found) == pytest.approx(in_a_loop(actual, forecast, quantiles, chosen))
    for series in range(NUM_SERIES):
        chosen = everything & (actual.series == series)[:, None]
        found = {name: float(values[series]) for name, values in score.by_series.items()}
        assert known(found) == pytest.approx(in_a_loop(actual, forecast, quantiles, chosen))


def test_what_a_metric_cannot_divide_by_is_left_out_and_counted():
    actual, forecast, quantiles = made(1, 40, 4)
    observed = np.isfinite(actual.future)
    zero = observed & (actual.naive_absolute == 0)[:, None]
    unknown = observed & ~(actual.naive_squared > 0)[:, None]
    both = observed & (np.nan_to_num(actual.future) == 0) & (forecast == 0)
    still = observed & (actual.future == actual.last[:, None])
    score = scored(actual, forecast, quantiles)
    expected = {"mase": zero, "sql": zero, "rmsse": unknown, "smape": both, "direction_accuracy": still}
    assert score.left_out == {name: int(each.sum()) for name, each in expected.items()}
    assert np.isnan(score.by_series["mase"][1])
    assert np.isfinite(score.by_series["mae"]).all()


@settings(max_examples=15)
@given(seed=st.integers(0, 99), at_once=st.integers(1, 50), chunk=st.integers(1, 60))
def test_scores_do_not_depend_on_how_windows_are_batched_bit_for_bit(seed, at_once, chunk):
    given_windows = made(seed, 50, 3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics, "CHUNK_CELLS", chunk)
        one, other = scored(*given_windows), scored(*given_windows, at_once=at_once)
    assert one == other
    for name, values in one.by_series.items():
        np.testing.assert_array_equal(values, other.by_series[name])


def test_a_cell_that_is_not_observed_does_not_count_whatever_is_in_it():
    actual, forecast, quantiles = made(2, 30, 4, missing=0.4)
    hidden = ~np.isfinite(actual.future)
    garbage = np.where(hidden, np.float32(np.nan), forecast)
    wild = np.where(hidden[..., None], np.float32(1e30), quantiles)
    assert scored(actual, garbage, wild) == scored(actual, forecast, quantiles)
    masked = replace_weight(actual, np.where(hidden, 0.0, 1.0), np.where(hidden, 1e9, actual.future))
    assert scored(masked, forecast, quantiles) == scored(actual, forecast, quantiles)


def replace_weight(actual: Actual, weight: np.ndarray, future: np.ndarray) -> Actual:
    return actual._replace(weight=weight, future=future)


def test_coverage_leaves_out_what_was_certain():
    """Quantiles that are all 0: where 0 came, they say nothing about intervals; where something else came, they do."""
    actual, forecast, quantiles = made(2, 40, 4, missing=0)
    quantiles[:20] = 0
    certain = (actual.future == 0)[:20].sum()
    assert certain > 0
    score = scored(actual, forecast, quantiles)
    assert {score.left_out[f"coverage_q{level:g}"] for level in LEVELS} == {certain}
    below = (actual.future <= quantiles[..., 0]).sum() - certain
    assert score["coverage_q0.1"] == pytest.approx(below / (actual.future.size - certain))


def test_a_weight_counts_a_cell_so_often():
    actual, forecast, quantiles = made(3, 20, 2, missing=0.0)
    doubled = replace_weight(actual, np.where(np.arange(20)[:, None] < 5, [2.0, 2.0], 1.0), actual.future)
    twice = Actual(*(np.concatenate([each, each[:5]]) for each in actual))
    again = np.concatenate([forecast, forecast[:5]]), np.concatenate([quantiles, quantiles[:5]])
    assert scored(doubled, forecast, quantiles).metrics == pytest.approx(scored(twice, *again).metrics)


def test_a_forecast_that_is_no_number_shows():
    actual, forecast, quantiles = made(4, 5, 2, missing=0.0)
    forecast[2, 1] = np.nan
    assert math.isnan(scored(actual, forecast, quantiles).mse)


def test_quantiles_that_are_all_the_forecast_make_scaled_quantile_loss_the_mase():
    """Over levels that are symmetric about a half: twice the pinball loss is then the absolute error in the mean."""
    actual, forecast, _ = made(5, 40, 4)
    total = ScoreSum(NUM_SERIES, 4, DECILES)
    total.add(actual, forecast, np.repeat(forecast[..., None], len(DECILES), axis=2))
    score = total.score()
    assert score["sql"] == pytest.approx(score["mase"])
    assert list(score.coverage) == [f"q{level:g}" for level in DECILES]


def test_mse_and_mae_are_means_of_the_means_of_windows_where_all_are_whole():
    """As they were computed before there were other metrics."""
    actual, forecast, quantiles = made(6, 60, 5, missing=0.0)
    error = (forecast.astype(np.float64) - actual.future) / actual.unit[:, None]
    score = scored(actual, forecast, quantiles)
    assert score.mse == pytest.approx(np.sort(np.square(error).mean(axis=1)).mean(), rel=1e-14)
    assert score.mae == pytest.approx(np.sort(np.abs(error).mean(axis=1)).mean(), rel=1e-14)


def test_a_new_metric_is_one_entry_and_has_steps_and_series_too(monkeypatch):
    worst = Metric(name="bias", statistic=lambda cells: cells.error)
    monkeypatch.setattr(metrics, "METRICS", (*metrics.METRICS, worst))
    actual, forecast, quantiles = made(7, 30, 3, missing=0.0)
    score = scored(actual, forecast, quantiles)
    error = pd.DataFrame(forecast - actual.future)
    assert score["bias"] == pytest.approx(error.to_numpy().mean())
    assert score.by_step["bias"] == pytest.approx(tuple(error.mean()))
    np.testing.assert_allclose(score.by_series["bias"], error.mean(axis=1).groupby(actual.series).mean())


# The seasonal naive error in sample

SEASON = 24


def plain(values: np.ndarray) -> tuple[float, float]:
    change = values[SEASON:] - values[:-SEASON]
    change = change[np.isfinite(change)]
    return (float(np.abs(change).mean()), float(np.square(change).mean())) if len(change) else (np.nan, np.nan)


@pytest.mark.parametrize("table", [with_missing(wide_table(), [("load", 100), ("flat", 300)]), ragged_table()])
def test_naive_errors_are_of_the_training_part_or_of_all_up_to_the_origin(table):
    until = table.series[0].times[200]
    training = naive_errors(table, SEASON, by="training", train_until=until)
    lived = naive_errors(table, SEASON, by="origin", train_until=until)
    for n, series in enumerate(table.series):
        rows = np.array([SEASON - 1, SEASON, 150, len(series) - 1])
        numbers = np.full(len(rows), n)
        expected = plain(series.values[series.times <= until])
        np.testing.assert_allclose(np.transpose(training.at(numbers, rows)), [expected] * len(rows))
        expected_at = [plain(series.values[: row + 1]) for row in rows]
        np.testing.assert_allclose(np.transpose(lived.at(numbers, rows)), expected_at)
        assert np.isnan(lived.at(numbers, rows)[0][0])  # not a season yet


@settings(max_examples=10)
@given(row=st.integers(30, 350), seed=st.integers(0, 9))
def test_naive_errors_up_to_an_origin_do_not_see_what_follows(row, seed):
    table = wide_table()
    garbage = poisoned(table, table.times[row], seed=seed)
    for each in range(len(table.series)):
        one, other = (naive_errors(t, SEASON, by="origin", train_until=t.times[200]) for t in (table, garbage))
        place = np.array([each]), np.array([row])
        np.testing.assert_array_equal(one.at(*place), other.at(*place))


def test_a_series_that_repeats_exactly_has_no_scale():
    table = wide_table()
    beat = table.series_ids.index("beat")  # repeats every 12 steps
    found = naive_errors(table, SEASON, by="training", train_until=table.times[200])
    assert found.absolute[beat] == found.squared[beat] == 0


def test_another_scale_is_refused():
    with pytest.raises(UsageError, match="cannot be scaled by 'test'"):
        naive_errors(wide_table(), SEASON, by="test", train_until=wide_table().times[5])
