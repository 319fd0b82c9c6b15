"""What a training will do is decided before it begins, from table, version and settings alone, and said."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from forecaster_fixtures import SPLIT, TABLE, config_of, memory_of
from hypothesis import given
from hypothesis import strategies as st
from memory_fixtures import WINDOW, between

from forecaster.retrieval.folds import ENOUGH, LEAST_SERIES, NO_FOLDS, FoldPlan, lay_folds, plan_folds
from forecaster.training.plan import plan_training, smallest_stride
from forecaster.training.weighing import LEAST, series_weights
from memory_index.leakage import Policy
from memory_index.splits import split_by_name
from memory_index.windows import Step

HOUR = Step(frequency="h")
START = np.datetime64("2024-01-01", "ns")


@pytest.fixture(scope="module")
def memory(tmp_path_factory):
    return memory_of(tmp_path_factory.mktemp("plan"))


def windows(num: int, num_series: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Origins and series of windows at stride 1."""
    times = START + np.arange(num) * np.timedelta64(1, "h")
    return np.tile(times, num_series), np.repeat(np.arange(num_series), num)


@given(
    num=st.integers(2, 400),
    num_series=st.sampled_from([1, 3, LEAST_SERIES]),
    lookback=st.integers(2, 60),
    horizon=st.integers(1, 30),
    num_folds=st.sampled_from([None, 1, 2, 4]),
)
def test_every_window_is_held_out_once_from_a_fit_that_shares_no_future_with_it(
    num, num_series, lookback, horizon, num_folds
):
    times, series = windows(num, num_series)
    plan = plan_folds(times, series, HOUR, lookback=lookback, horizon=horizon, num_folds=num_folds)
    folds = lay_folds(plan, times, series)
    assert set(folds.number.tolist()) == (set(range(plan.num)) or {-1})
    for fold in range(plan.num):
        mine, admitted = folds.number == fold, folds.admitted(fold, times, series, HOUR)
        assert admitted.any()
        assert not (mine & admitted).any()
        if plan.kind == "series":
            assert not set(series[mine]) & set(series[admitted])
            continue
        apart = np.abs((times[admitted][:, None] - times[mine]) // np.timedelta64(1, "h")).min()
        assert apart >= plan.gap >= horizon


def test_folds_are_what_the_table_allows():
    def planned(num: int, num_series: int = 1, **sizes: int) -> FoldPlan:
        sizes = {"lookback": 48, "horizon": 24} | sizes
        return plan_folds(*windows(num, num_series), HOUR, **sizes)

    assert planned(2000) == FoldPlan(kind="time", num=3, gap=72)
    assert planned(300) == FoldPlan(kind="time", num=3, gap=24)  # lookback + horizon off would leave too few
    assert planned(30, LEAST_SERIES) == FoldPlan(kind="series", num=5)
    assert planned(30) == NO_FOLDS
    assert planned(1) == NO_FOLDS
    times, series = windows(300)
    folds = lay_folds(planned(300), times, series)
    assert min(folds.admitted(fold, times, series, HOUR).mean() for fold in range(3)) >= ENOUGH


@pytest.mark.parametrize(
    ("least", "season", "stride"), [(0.2, 24, 1), (1.0, None, 1), (1.01, 24, 5), (3.0, 7, 3), (7, 7, 8)]
)
def test_a_stride_visits_every_phase_of_the_season(least, season, stride):
    assert smallest_stride(least, season) == stride


def test_work_is_bounded_by_a_count_of_operations_and_the_same_every_time(memory):
    whole = plan_training(memory, TABLE, config_of())
    assert (whole.train_stride, whole.val_stride) == (1, 1)
    assert whole.work < config_of().train.max_work
    thinned = plan_training(memory, TABLE, config_of(max_work=whole.work / 4))
    assert thinned == plan_training(memory, TABLE, config_of(max_work=whole.work / 4))
    assert (thinned.train_stride, thinned.val_stride) == (5, 5)  # 4 would see six phases of the day only
    assert thinned.work <= whole.work / 4
    assert any("every 5th window" in note and "--max-work" in note for note in thinned.notes)
    stated = plan_training(memory, TABLE, config_of(max_work=whole.work / 4, train_stride=2, val_stride=3))
    assert (stated.train_stride, stated.val_stride) == (2, 3)
    assert not any("--max-work" in note for note in stated.notes)
    assert whole.told == whole.notes  # it takes less than a minute
    assert f"{whole.num_train:,} training" in replace(whole, work=1e12).told[-1]


def test_windows_that_would_find_nothing_ask_under_the_other_policy(tmp_path):
    table = between(TABLE, 0, 120)
    short = memory_of(tmp_path, table, split=split_by_name(SPLIT.name, table.times))
    plan = plan_training(short, table, config_of(num_folds=None))
    assert plan.policy is Policy.CAUSAL
    assert any("they ask under 'causal'" in note for note in plan.notes)
    assert plan_training(short, table, config_of(policy="causal")).policy is Policy.CAUSAL
    assert plan.made_do(config_of(num_folds=None))
    assert not plan.made_do(config_of(policy="causal"))
    assert not plan.made_do(config_of(num_folds=None, use_gram=False))


def test_without_a_validation_window_the_plan_says_what_stands_in(tmp_path):
    table = between(TABLE, 0, 100)
    split = replace(split_by_name("60/20/20", table.times), val_until=str(table.times[59 + WINDOW.horizon - 1]))
    plan = plan_training(memory_of(tmp_path, table, split=split), table, config_of(num_folds=None))
    assert (plan.validates, plan.num_val) == (False, 0)
    assert any("stand in" in note for note in plan.notes)


def test_windows_count_by_what_the_naive_forecast_errs_on_their_series():
    rng, steps, lookback, horizon, season = np.random.default_rng(0), 200, 24, 6, 12
    cycle = np.sin(2 * np.pi * np.arange(steps) / season)
    tables = [cycle + 0.1 * rng.normal(size=steps), cycle + rng.normal(size=steps), np.tile(cycle[:season], 17)[:steps]]
    values = np.concatenate(tables).astype(np.float32)
    rows = np.arange(lookback - 1, steps - horizon)
    position = np.concatenate([number * steps + rows for number in range(3)])
    series = np.repeat(np.arange(3), len(rows))
    unit = np.array([each.std() for each in tables], dtype=np.float32)[series]
    found = series_weights(values, position, unit, series, lookback=lookback, horizon=horizon, season=season)
    assert found.mean() == pytest.approx(1)
    expected = []
    for number, each in enumerate(tables):
        ahead = rows[:, None] + 1 + np.arange(horizon)
        expected.append(np.sqrt(np.mean(np.square((each[ahead] - each[ahead - season]) / each.std()))))
        assert len(set(found[series == number])) == 1
    relative = np.maximum(np.array(expected) / np.median(expected), LEAST)
    np.testing.assert_allclose(found[[0, len(rows)]] * relative[:2], found[0] * relative[0], rtol=1e-4)
    assert found[-1] == pytest.approx(found[0] * relative[0] / LEAST, rel=1e-4), (
        "one that repeats is not all that counts"
    )
