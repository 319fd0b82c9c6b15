"""Bounds: no forecast and no quantile leaves them; counts stay at 0 or above, by what is known at the origin alone."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from forecaster_fixtures import TABLE, WITHOUT_NETWORK, memory_of, train_small
from memory_fixtures import HOURLY, poisoned

from forecaster.evaluate import evaluate as evaluate_run
from forecaster.explain import explain
from forecaster.forecast import forecast as forecast_by_run
from forecaster.predictor import load_predictor
from memory_index import Bounds, memory_only
from memory_index.bounds import BoundsOf
from memory_index.errors import UsageError
from memory_index.inspection import inspect_window
from memory_index.tables.series import Series, SeriesTable

LEVELS = (0.05, 0.1, 0.5, 0.9, 0.95)
COLUMNS = ["yhat", *(f"q{level:g}" for level in LEVELS)]


def counts(num_steps: int = 420) -> SeriesTable:
    """Two series of counts with many zeros, and one that goes below zero."""
    random = np.random.default_rng(2)
    busy = np.maximum(0, np.sin(np.arange(num_steps) * 2 * np.pi / 24)) * random.gamma(0.5, 4, num_steps)
    rare = random.random(num_steps) < 0.1
    values = {"sold": random.poisson(busy), "rare": rare * random.integers(1, 9, num_steps), "wave": busy - 3}
    times = TABLE.step.range(TABLE.times[0], num_steps)
    series = tuple(Series(series_id=n, times=times, values=np.asarray(v, dtype=np.float64)) for n, v in values.items())
    return SeriesTable(step=HOURLY, layout="wide", series=series, source="sales.csv")


@pytest.fixture(scope="module")
def sales(tmp_path_factory):
    folder, table = tmp_path_factory.mktemp("sales"), counts()
    memory = memory_of(folder / "indexes", table)
    predictor = load_predictor(train_small(memory, folder / "run", table, **WITHOUT_NETWORK).run, device="cpu")
    return table, memory, predictor


def both(sales, bounds: Bounds | None = None) -> list[pd.DataFrame]:
    """The forecast of the memory alone and that of a run, by series."""
    table, memory, predictor = sales
    alone = memory_only.forecast(memory, table, quantiles=LEVELS, bounds=bounds)
    by_run = forecast_by_run(predictor, memory, table, quantiles=LEVELS, bounds=bounds)
    return [alone.set_index("unique_id"), by_run.set_index("unique_id")]


def test_counts_stay_at_zero_or_above_and_other_series_are_left_alone(sales):
    free = both(sales, Bounds(lower=-math.inf))
    assert (free[0].loc["sold", COLUMNS] < 0).any(axis=None)  # or there would be nothing to keep
    assert (free[1].loc["sold", COLUMNS] < 0).any(axis=None)
    for kept, before in zip(both(sales), free, strict=True):
        assert (kept.loc[["sold", "rare"], COLUMNS] >= 0).all(axis=None)
        pd.testing.assert_frame_equal(kept.loc[["wave"]], before.loc[["wave"]])
        np.testing.assert_array_equal(kept.loc["sold", COLUMNS], np.maximum(before.loc["sold", COLUMNS], 0))


def test_given_bounds_hold_for_all_series(sales):
    for result in both(sales, Bounds(lower=-1, upper=0.5)):
        assert result[COLUMNS].min(axis=None) == -1
        assert result[COLUMNS].max(axis=None) == 0.5
    for result in both(sales, Bounds(upper=-2)):  # even below what counts can be
        assert (result[COLUMNS] <= -2).all(axis=None)


@pytest.mark.parametrize(
    ("bounds", "match"), [((2, 1), "lower is 2, above upper 1"), ((math.nan, None), "not a number")]
)
def test_bounds_that_leave_nothing_are_refused(bounds, match):
    with pytest.raises(UsageError, match=match):
        Bounds(lower=bounds[0], upper=bounds[1])


def test_scores_are_of_what_is_forecast(sales):
    table, memory, predictor = sales
    written: list = []
    scores = memory_only.evaluate(memory, table, levels=(0.1, 0.9), each=written.append)
    assert all((block.forecast[:, :2] >= 0).all() and (block.quantiles[:, :2] >= 0).all() for block in written)
    run = evaluate_run(predictor, memory, table, each=written.append)
    assert all((block.forecast[:, :2] >= 0).all() and (block.quantiles[:, :2] >= 0).all() for block in written)
    assert run.scores["last_value"].mse == scores.scores["last_value"].mse


def test_what_is_shown_of_one_window_keeps_them_too(sales):
    table, memory, predictor = sales
    for found in (
        inspect_window(memory, table, "sold", table.times[-1]),
        explain(predictor, memory, table, "sold", table.times[-1]),
    ):
        assert (found.forecast >= 0).all()
        assert (found.quantiles >= 0).all()


def test_training_part_and_window_alone_tell_counts(sales, tmp_path):
    table, memory, _ = sales
    assert BoundsOf(memory).counts.tolist() == [True, True, False]
    assert "'sold' and 1 more are counts" in BoundsOf(memory).said(table)
    assert BoundsOf(memory, Bounds(lower=1)).said(table) == ""
    grown = memory_of(tmp_path, poisoned(table, table.times[251], seed=1))
    assert BoundsOf(grown).counts.tolist() == [True, True, False]
    # A window that holds something else is not held back.
    other = replace(table, series=(replace(table.series[0], values=table.series[0].values - 0.25), *table.series[1:]))
    result = memory_only.forecast(memory, other, quantiles=LEVELS).set_index("unique_id")
    assert (result.loc["sold", COLUMNS] < 0).any(axis=None)


def test_numbers_too_large_to_be_told_from_whole_ones_are_no_counts(tmp_path):
    large = replace(TABLE, series=tuple(replace(s, values=s.values * 1.1 + 3e7) for s in TABLE.series))
    assert not BoundsOf(memory_of(tmp_path, large)).counts.any()
