"""Closed steps: what is always 0 stays 0, what was never observed is a guess that says so; likewise what is below 0."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from forecaster_fixtures import WITHOUT_NETWORK, memory_of, train_small
from memory_fixtures import poisoned

from forecaster.forecast import forecast as forecast_by_run
from forecaster.predictor import load_predictor
from memory_index import Bounds, memory_only
from memory_index.closed import closed_steps
from memory_index.inspection import inspect_window
from memory_index.leakage import Policy
from memory_index.splits import split_by_name
from memory_index.tables.series import Series, SeriesTable
from memory_index.types import Queries
from memory_index.weighted import as_wide_as_beside
from memory_index.windows import Step

LEVELS = (0.1, 0.5, 0.9)
COLUMNS = ["yhat", "q0.1", "q0.5", "q0.9"]
SUNDAY = 6


def shop(*, closed: float = 0.0, num_days: int = 500) -> SeriesTable:
    """Three daily series of amounts: a shop that is closed on Sundays, one of rare sales, one that is always open."""
    random = np.random.default_rng(4)
    times = np.datetime64("2022-01-03", "ns") + np.arange(num_days) * np.timedelta64(1, "D")  # a Monday
    weekday = np.arange(num_days) % 7
    busy = 100 * (1 + weekday / 6) * np.exp(random.normal(0, 0.1, num_days))
    values = {
        "shop": np.where(weekday == SUNDAY, closed, busy),
        "rare": np.where((random.random(num_days) < 0.3) & (weekday != SUNDAY), busy, 0.0),
        "open": np.abs(busy - 150 + random.normal(0, 30, num_days)) + 0.5,
    }
    series = tuple(Series(series_id=name, times=times, values=each) for name, each in values.items())
    return SeriesTable(step=Step(frequency="D"), layout="wide", series=series, source="shop.csv")


def memory(folder, table):
    return memory_of(folder, table, split=split_by_name("70/10/20", table.times))


def by_series(result: pd.DataFrame, name: str) -> tuple[np.ndarray, pd.DataFrame]:
    """(whether each step is a Sunday, the forecasts) of a series."""
    rows = result[result.unique_id == name]
    return (pd.DatetimeIndex(rows.ds).day_of_week == SUNDAY), rows[COLUMNS].reset_index(drop=True)


def test_a_closed_day_is_forecast_as_0_and_nothing_else_is_touched(tmp_path):
    table = shop()
    held = memory(tmp_path / "indexes", table)
    free = memory_only.forecast(held, table, quantiles=LEVELS, bounds=Bounds(lower=-math.inf))
    predictor = load_predictor(train_small(held, tmp_path / "run", table, **WITHOUT_NETWORK).run, device="cpu")
    alone = memory_only.forecast(held, table, quantiles=LEVELS)
    for result in (alone, forecast_by_run(predictor, held, table, quantiles=LEVELS)):
        sunday, rows = by_series(result, "shop")
        assert sunday.sum() == 1
        assert (rows[sunday] == 0).all(axis=None)
        assert (rows[~sunday] > 0).all(axis=None)
        assert "'shop' is always 0 at a step of the season: forecasts there are 0 (2023-05-21T00:00:00" in str(
            result.attrs["notes"]
        )
    assert (by_series(free, "shop")[1][sunday] != 0).any(axis=None)  # or there would be nothing to hold
    for name in ("rare", "open"):
        pd.testing.assert_frame_equal(by_series(alone, name)[1], by_series(free, name)[1])
    assert "always 0" not in str(free.attrs["notes"])
    bounded = memory_only.forecast(held, table, quantiles=LEVELS, bounds=Bounds(lower=5))
    assert bounded[COLUMNS].min(axis=None) == 5


def test_scores_hold_the_memory_at_0_and_leave_plain_forecasts_as_they_are(tmp_path):
    table = shop()
    written: list = []
    scores = memory_only.evaluate(memory(tmp_path, table), table, each=written.append).scores
    ends = np.concatenate([block.asked.queries.origin for block in written])
    forecast = np.concatenate([block.forecast[:, 0] for block in written])
    first = pd.DatetimeIndex(ends + np.timedelta64(1, "D")).day_of_week == SUNDAY
    assert (forecast[first, 0] == 0).all()
    assert (forecast[~first, 0] > 0).all()
    assert scores["last_value"].mse > scores["seasonal_naive"].mse > scores["memory_only"].mse


def test_a_later_value_changes_nothing(tmp_path):
    table, at = shop(), shop().times[400]
    held = memory(tmp_path, table)
    before = inspect_window(held, table, "shop", at)
    after = inspect_window(held, poisoned(table, at, seed=3), "shop", at)
    np.testing.assert_array_equal(before.forecast, after.forecast)
    np.testing.assert_array_equal(before.quantiles, after.quantiles)


def queries(context, covariates=None) -> Queries:
    return Queries(
        context=context.astype(np.float32)[None, None],
        origin=np.array(["2022-03-06"], dtype="datetime64[ns]"),
        series_id=np.array(["shop"]),
        policy=Policy.CAUSAL,
        covariates=None if covariates is None else covariates.astype(np.float32)[None, None],
    )


CONTEXT = np.where(np.arange(63) % 7 == SUNDAY, 0.0, 10.0)


@pytest.mark.parametrize(
    ("context", "season", "zero"),
    [
        (CONTEXT, 7, [6]),
        (CONTEXT[3:], 7, [6]),
        (CONTEXT[:-2], 7, [1]),  # it ends on a Friday
        (np.where(np.arange(63) == 13, np.nan, CONTEXT), 7, [6]),
        (np.zeros(63), 7, None),  # closed for good: nothing tells one step from another
        (np.where(np.arange(63) % 3, 0.0, CONTEXT), 7, None),  # rare sales
        (CONTEXT[:27], 7, None),  # too few weeks
        (np.where(np.arange(63) == 13, 4.0, CONTEXT), 7, None),  # open on a Sunday
        (CONTEXT, None, None),
    ],
)
def test_which_steps_are_closed(context, season, zero):
    found = closed_steps(queries(context), season, 7)
    assert (None if found is None else np.flatnonzero(found.zero[0, 0]).tolist()) == zero


@pytest.mark.parametrize(("num_seasons", "share"), [(4, 0.05), (4, 0.15), (7, 0.2), (21, 0.24)])
def test_zeros_that_fall_anywhere_close_no_step(num_seasons, share):
    """Of 2,000 windows of a day's season at most a few in a thousand, as many as the chance that is allowed."""
    random = np.random.default_rng(num_seasons)
    context = np.where(random.random((1, 2000, 24 * num_seasons)) < share, 0.0, 1.5).astype(np.float32)
    names = np.arange(2000).astype(str)
    found = closed_steps(replace(queries(CONTEXT), context=context, series_id=names), 24, 24)
    assert found is None or found.zero.any(axis=2).sum() <= 6


def test_a_known_covariate_that_is_not_as_usual_opens_a_step():
    quiet, weather = np.zeros(71), np.arange(71) * 0.3
    assert closed_steps(queries(CONTEXT, np.stack([quiet, weather])), 7, 8, (0, 1)).zero.sum() == 1
    sunday_opening = np.where(np.arange(71) == 69, 1.0, quiet)
    assert closed_steps(queries(CONTEXT, np.stack([sunday_opening, weather])), 7, 8, (0, 1)) is None
    assert closed_steps(queries(CONTEXT, np.stack([sunday_opening, weather])), 7, 8, (1,)).zero.sum() == 1


def test_steps_that_were_never_observed_are_as_uncertain_as_those_beside_them_and_named(tmp_path):
    table = shop(closed=np.nan)
    result = memory_only.forecast(memory(tmp_path, table), table, quantiles=LEVELS)
    sunday, rows = by_series(result, "shop")
    width = (rows["q0.9"] - rows["q0.1"]).to_numpy()
    assert width[sunday].min() > 0.5 * np.median(width)
    assert ((rows["q0.1"] <= rows["q0.5"]) & (rows["q0.5"] <= rows["q0.9"])).all()
    assert "'shop' is never observed at a step of the season" in str(result.attrs["notes"])


def test_widths_of_unknown_steps_lie_between_those_beside_them():
    quantiles = np.stack([np.full(6, -1.0), np.array([1.0, 9, 9, 4, 9, 7])], axis=-1)[None, None]
    unknown = np.array([False, True, True, False, True, False])[None, None]
    center = np.arange(6.0)[None, None]
    found = as_wide_as_beside(quantiles, center, unknown)[0, 0]
    np.testing.assert_array_equal(found[~unknown[0, 0]], quantiles[0, 0][~unknown[0, 0]])
    np.testing.assert_allclose(found[1:3, 1] - [1, 2], [1, 1])  # 1 above the center at both edges
    np.testing.assert_allclose(found[4, 0] - 4, (-4 - 6) / 2)
    every = np.ones_like(unknown)
    np.testing.assert_array_equal(as_wide_as_beside(quantiles, center, every), quantiles)
    ends = np.array([True, False, False, False, False, True])[None, None]
    assert as_wide_as_beside(quantiles, center, ends)[0, 0, 0, 1] == 0 + quantiles[0, 0, 1, 1] - 1


def test_series_that_were_never_below_0_and_are_forecast_below_it_are_named(tmp_path):
    table = shop()
    noise = np.random.default_rng(1).normal(0, 1, 500)
    wave = np.maximum(0.01, 3 * np.sin(np.arange(500) * 2 * np.pi / 11) + noise)
    below = replace(table.series[2], series_id="wave", values=wave - 0.4)
    table = replace(table, series=(replace(table.series[2], values=wave), below))
    held = memory(tmp_path, table)
    free = memory_only.forecast(held, table, quantiles=LEVELS, bounds=Bounds(lower=-math.inf))
    assert (by_series(free, "open")[1] < 0).any(axis=None)  # or there would be nothing to say
    assert "'open' was never below 0, but forecasts or quantiles are" in str(
        memory_only.forecast(held, table, quantiles=LEVELS).attrs["notes"]
    )
    for bounds in (Bounds(lower=0), Bounds(lower=-math.inf)):
        assert memory_only.forecast(held, table, quantiles=LEVELS, bounds=bounds).attrs["notes"] == []
