"""Backtests: forecasts as in operation, nothing that is known later, the same numbers after a kill, and coverage."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from forecaster_fixtures import SPLIT, TABLE, make_small, memory_of
from memory_fixtures import WINDOW, Store, open_version, wide_table

from forecaster.backtest import OfRun
from forecaster.evaluate import evaluate as evaluate_run
from forecaster.forecast import forecast as forecast_by_run
from memory_index import memory_only
from memory_index.backtest import plan as planning
from memory_index.backtest.kept import KeptForecasts
from memory_index.backtest.lived import identity_of, run_backtest
from memory_index.backtest.memory_alone import MemoryAlone
from memory_index.backtest.plan import BacktestPlan, parse_update, plan_backtest
from memory_index.backtest.recalibration import NEVER, Recalibration, levels_with
from memory_index.errors import IncompatibleError, UsageError, VerificationError
from memory_index.memory import Memory
from memory_index.memory_only import MemoryOptions
from memory_index.origins import parse_schedule
from memory_index.tables.series import SeriesTable
from memory_index.versions.build import steps_until
from memory_index.versions.grown import grown

LEVELS = (0.1, 0.5, 0.9)
OPTIONS = MemoryOptions(k=5, on_empty="last-value")
DAILY, SIX_HOURS = pd.Timedelta(days=1), parse_schedule("6h", None)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return make_small(tmp_path_factory.getbasetemp())


@pytest.fixture(params=["memory", "run"])
def subject_of(request, small) -> Callable[[Memory], object]:
    """The memory alone, or the run, asking a memory."""
    if request.param == "memory":
        return lambda memory: MemoryAlone(memory=memory, options=OPTIONS)
    return lambda memory: OfRun(predictor=small.predictor, memory=memory)


def fitted_at(small) -> np.datetime64:
    return max(small.memory.manifest.fitted_known_at, small.predictor.seen_until)


def plan_of(small, table: SeriesTable = TABLE, **changed) -> BacktestPlan:
    options = {"fitted_at": fitted_at(small), "schedule": SIX_HOURS, "update": DAILY} | changed
    return plan_backtest(table, small.memory.manifest, small.predictor.units, horizon=WINDOW.horizon, **options)


@contextmanager
def memory_grown(small, table: SeriesTable) -> Iterator[Memory]:
    with grown(Store(small.folder / "indexes").resolve("m@1"), table) as memory:
        yield memory


def kept_in(folder: Path, small, plan: BacktestPlan, table: SeriesTable = TABLE) -> KeptForecasts:
    return KeptForecasts(folder, identity_of(table, plan, small.memory.manifest))


def rows_of(kept: KeptForecasts, table: SeriesTable, arm: str) -> dict[tuple[str, int], tuple[np.ndarray, np.ndarray]]:
    """Forecast [H] and quantiles [H, Q] by series and origin row."""
    rows = {}
    for piece in kept.pieces():
        for b, n in zip(*np.nonzero(piece.wanted), strict=True):
            key = (table.series_ids[piece.series[n]], int(piece.row[b, n]))
            rows[key] = piece.forecasts[arm][b, n], piece.quantiles[b, n]
    return rows


def lived(small, subject_of, folder: Path, table: SeriesTable = TABLE, plan: BacktestPlan | None = None):
    """A backtest of a table: what it says, and its rows."""
    plan = plan or plan_of(small, table)
    kept = kept_in(folder, small, plan, table)
    with memory_grown(small, table) as memory:
        subject = subject_of(memory)
        return run_backtest(subject, table, plan, kept, levels=LEVELS), rows_of(kept, table, subject.arm)


def same(found: dict, expected: dict) -> None:
    assert found.keys() == expected.keys()
    for key in expected:
        for one, other in zip(found[key], expected[key], strict=True):
            np.testing.assert_array_equal(one, other)


def test_forecasts_are_those_that_operation_would_have_made(small, subject_of, tmp_path):
    """At each of a few origins: cut the table there, append it to a version of its own, and ask that."""
    plan = plan_of(small)
    _, rows = lived(small, subject_of, tmp_path / "kept", plan=plan)
    store, version = Store(tmp_path / "store"), Store(small.folder / "indexes").resolve("m@1")
    for row in plan.origins[0][[0, 3, -1]]:
        cut = steps_until(TABLE, TABLE.times[row])
        with grown(version, cut) as memory:
            subject = subject_of(memory)
            if isinstance(subject, OfRun):
                expected = forecast_by_run(small.predictor, memory, cut)
            else:
                expected = memory_only.forecast(memory, cut, options=OPTIONS)
        for series_id in TABLE.series_ids:
            told = expected.loc[expected["unique_id"] == series_id, "yhat"].to_numpy()
            np.testing.assert_array_equal(rows[series_id, int(row)][0], told)
    assert not store.names()


def test_holes_and_a_transform_are_lived_with(tmp_path):
    holes = [replace(s, values=np.where(np.arange(len(s)) % 97 == 50, np.nan, s.values)) for s in TABLE.series]
    table = replace(TABLE, series=tuple(holes))
    memory = memory_of(tmp_path / "i", table, transform="asinh")
    version = Store(tmp_path / "i").resolve("m@1")
    units = dict.fromkeys(TABLE.series_ids, 1.0)
    late = version.manifest.fitted_known_at
    plan = plan_backtest(table, memory.manifest, units, horizon=8, fitted_at=late, schedule=SIX_HOURS, update=DAILY)
    with grown(version, table) as whole:
        subject = MemoryAlone(memory=whole, options=OPTIONS)
        kept = KeptForecasts(tmp_path / "kept", {})
        result = run_backtest(subject, table, plan, kept, levels=LEVELS)
        rows = rows_of(kept, table, subject.arm)
    assert result.evaluation.mse < result.evaluation.baselines["last_value"].mse
    cut = steps_until(table, table.times[plan.origins[0][5]])
    with grown(version, cut) as known:
        expected = memory_only.forecast(known, cut, options=OPTIONS)
    told = expected.loc[expected["unique_id"] == "load", "yhat"].to_numpy()
    np.testing.assert_array_equal(rows["load", int(plan.origins[0][5])][0], told)


@pytest.mark.parametrize("row", [345, 380, 405])
def test_rows_do_not_see_what_follows_their_cutoff(small, subject_of, tmp_path, row):
    """Garbage in place of all later values, over the whole backtest: forecasts and recalibrated quantiles."""
    _, clean = lived(small, subject_of, tmp_path / "clean")
    random = np.random.default_rng(row)
    poisoned = replace(
        TABLE,
        series=tuple(
            replace(s, values=np.append(s.values[: row + 1], random.normal(size=len(s) - row - 1) * 1e4))
            for s in TABLE.series
        ),
    )
    _, dirty = lived(small, subject_of, tmp_path / "dirty", poisoned)
    before = {key for key in clean if key[1] <= row}
    assert before
    same({key: dirty[key] for key in before}, {key: clean[key] for key in before})
    last = max(key[1] for key in clean)
    assert row > last - WINDOW.horizon or not np.array_equal(clean["load", last][0], dirty["load", last][0])


def test_the_update_that_knows_a_step_is_the_first_after_it(small):
    plan = plan_of(small)
    known = TABLE.times[[340, 345, 360]]
    assert (plan.update_that_knows(known) >= plan.update_before(known)).all()
    at = plan.updates[plan.update_that_knows(known[:2])]
    assert (at >= known[:2]).all()
    assert (at - known[:2] < np.timedelta64(1, "D")).all()


def test_a_backtest_that_was_stopped_goes_on_with_the_same_numbers(small, subject_of, tmp_path, monkeypatch):
    monkeypatch.setattr(planning, "MOMENTS", 3)
    whole, expected = lived(small, subject_of, tmp_path / "whole")
    plan, folder = plan_of(small), tmp_path / "stopped"

    def stop(done: float, total: float | None) -> None:
        if done > plan.num_windows // 2:
            raise KeyboardInterrupt

    with memory_grown(small, TABLE) as memory, pytest.raises(KeyboardInterrupt):
        run_backtest(subject_of(memory), TABLE, plan, kept_in(folder, small, plan), levels=LEVELS, report=stop)
    (folder / "part-00099.safetensors").write_bytes(b"of a kill")
    result, rows = lived(small, subject_of, folder, plan=plan)
    same(rows, expected)
    assert plan.num_windows > result.num_resumed > 0
    assert result.evaluation.scores == whole.evaluation.scores
    assert result.stretches == whole.stretches


def test_how_many_are_asked_at_once_changes_nothing(small, subject_of, tmp_path, monkeypatch):
    _, expected = lived(small, subject_of, tmp_path / "a")
    monkeypatch.setattr(planning, "MOMENTS", 2)
    same(lived(small, subject_of, tmp_path / "b")[1], expected)


def test_without_updates_the_scores_are_those_of_an_evaluation(small, subject_of, tmp_path):
    begin = TABLE.times[335]  # before the first row of the test part
    plan = plan_of(small, first=begin, update=None)
    subject = subject_of(small.memory)
    result = run_backtest(subject, TABLE, plan, kept_in(tmp_path, small, plan), levels=LEVELS)
    how = {"schedule": SIX_HOURS, "levels": LEVELS}
    if isinstance(subject, OfRun):
        expected = evaluate_run(small.predictor, small.memory, TABLE, **how)
    else:
        expected = memory_only.evaluate(small.memory, TABLE, options=OPTIONS, **how)
    assert result.num_updates == 0
    assert result.evaluation.num_scored == expected.num_scored
    for name in ("linear", "last_value", "seasonal_naive", "memory_only", subject.arm):
        assert result.evaluation.scores[name] == expected.scores[name]


def test_scores_along_time_add_up_to_the_whole(small, subject_of, tmp_path):
    result, rows = lived(small, subject_of, tmp_path)
    weight = [each.num_windows for each in result.stretches]
    assert sum(weight) == result.evaluation.num_scored
    for name in ("memory_only", "last_value"):
        mean = np.average([each.mae[name] for each in result.stretches], weights=weight)
        assert mean == pytest.approx(result.evaluation.scores[name].mae)
    came = {key: TABLE[key[0]].values[key[1] + 1 : key[1] + 1 + WINDOW.horizon] for key in rows}
    for each in result.stretches:
        inside: list[bool] = []
        for key, (_, q) in rows.items():
            if each.first <= TABLE.times[key[1]] <= each.last:
                is_open = (q != came[key][:, None]).any(axis=1)  # what was certain is not covered by an interval
                inside += list(((q[:, 0] <= came[key]) & (came[key] <= q[:, -1]))[is_open])
        assert each.coverage == pytest.approx(np.mean(inside))
    assert [each.first for each in result.stretches] == sorted(each.first for each in result.stretches)


def test_origins_that_were_fitted_on_are_refused(small):
    late = fitted_at(small)
    assert TABLE.times[plan_of(small).origins[0][0]] >= late
    with pytest.raises(IncompatibleError, match="in sample"):
        plan_of(small, first=late - np.timedelta64(1, "h"))
    marked = plan_of(small, first=late - np.timedelta64(30, "h"), in_sample=True)
    assert marked.in_sample
    assert TABLE.times[marked.origins[0][0]] < late
    with pytest.raises(IncompatibleError, match="no origin with 8 steps after it"):
        plan_of(small, steps_until(TABLE, late))
    assert plan_of(small, steps_until(TABLE, late), in_sample=True).num_windows
    with pytest.raises(UsageError, match="no origin between"):
        plan_of(small, first=TABLE.times[400], last=TABLE.times[390])


def test_what_is_missing_later_does_not_decide_which_origins_there_are(small):
    holes = [replace(s, values=np.where(np.arange(len(s)) == 380, np.nan, s.values)) for s in TABLE.series]
    plan, whole = plan_of(small, replace(TABLE, series=tuple(holes))), plan_of(small)
    assert {*whole.origins[0][whole.origins[0] < 380]} <= {*plan.origins[0]}


@pytest.mark.parametrize(("text", "expected"), [("weekly", 7 * DAILY), ("12h", DAILY / 2), ("never", None)])
def test_time_between_updates(text, expected):
    assert parse_update(text) == expected


def test_an_unknown_update_is_refused():
    with pytest.raises(UsageError, match="--update often"):
        parse_update("often")


def test_a_folder_of_another_backtest_or_with_damage_is_refused(small, subject_of, tmp_path):
    plan = plan_of(small)
    lived(small, subject_of, tmp_path, plan=plan)
    other = plan_of(small, schedule=parse_schedule("12h", None))
    with pytest.raises(IncompatibleError, match="another backtest, with another choice of origins"):
        kept_in(tmp_path, small, other)
    file = tmp_path / "part-00000.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(VerificationError, match="part-00000"):
        [*kept_in(tmp_path, small, plan).pieces()]
    (tmp_path / "progress.json").write_text("{")
    with pytest.raises(VerificationError, match=r"progress\.json"):
        kept_in(tmp_path, small, plan)


def test_a_grown_version_leaves_no_trace(small):
    store = Store(small.folder / "indexes")
    before = store.numbers("m")
    with memory_grown(small, wide_table(500)) as memory:
        assert len(memory.windows) > len(small.memory.windows)
        assert Path(store.resolve("m@1").path).is_dir()
    assert store.numbers("m") == before
    assert open_version(store.resolve("m@1")).fingerprint == small.memory.fingerprint
    with memory_grown(small, steps_until(TABLE, np.datetime64(SPLIT.train_until, "ns"))) as same_memory:
        assert same_memory.fingerprint == small.memory.fingerprint  # nothing new


# Recalibration


def followed(errors: np.ndarray, believed: float, rate: float, horizon: int = 4) -> Recalibration:
    """Daily forecasts of 0 with normal quantiles of some deviation, of which each error [n] is known a step later."""
    levels = (0.1, 0.5, 0.9)
    base = believed * np.array([-1.2816, 0.0, 1.2816], dtype=np.float32)
    state = Recalibration(levels, 1, horizon, rate=rate)
    for number, error in enumerate(errors):
        state.advance(number)
        shown = state.applied(np.tile(base, (1, 1, horizon, 1)), np.array([0]), np.ones(1))
        future, update = np.full((1, 1, horizon), error), np.full((1, horizon), number + 1)
        row = np.array([[number * horizon]])
        state.observe(shown, future, np.ones((1, 1), dtype=bool), np.array([0]), row, update)
    return state


@pytest.mark.parametrize("believed", [0.4, 1.0, 2.5])
def test_levels_come_to_cover_what_they_say(believed):
    """Errors of deviation 1 where another is believed."""
    errors = np.random.default_rng(3).normal(size=3000)
    state = followed(errors, believed, rate=0.05)
    base = believed * np.array([-1.2816, 0.0, 1.2816])
    found = base + state.offset[0] * (base[2] - base[0])
    assert found == pytest.approx([-1.2816, 0, 1.2816], abs=0.45)
    if believed == 1.0:
        assert np.abs(state.offset).max() < 0.15
    assert followed(errors[:50], believed, rate=0.0).offset.any() == np.False_


def test_a_step_teaches_only_the_update_that_knows_it():
    state = Recalibration((0.1, 0.5, 0.9), 2, 3, rate=0.1)
    quantiles, wanted = np.zeros((1, 2, 3, 3), dtype=np.float32), np.array([[True, False]])
    future = np.array([[[5.0, np.nan, 5.0], [5.0, 5.0, 5.0]]])
    state.observe(quantiles, future, wanted, np.array([0, 1]), np.array([[7, 7]]), np.array([[1, 2, NEVER]]))
    state.advance(0)
    assert not state.offset.any()
    again = Recalibration((0.1, 0.5, 0.9), 2, 3, rate=0.1)
    again.restore(state.to_arrays())
    for each in (state, again):
        each.advance(1)
        np.testing.assert_allclose(each.offset[0], 0.1 / 3 * np.array([-0.4, 0, 0.4]))  # a third of a horizon
        assert not each.offset[1].any()
        before = each.offset.copy()
        each.advance(9)
        np.testing.assert_array_equal(each.offset, before)  # its step was missing, and the last is never known


def test_many_forecasts_of_the_same_steps_count_once():
    """An hourly backtest does not learn faster than a daily one of what happened in a day."""
    offsets = []
    for origins in ([0], range(8)):
        state = Recalibration((0.1, 0.9), 1, 8, rate=0.1)
        for row in origins:
            known = np.where(row + np.arange(1, 9) <= 8, 1, NEVER)[None]
            shape = (1, 1, 8)
            state.observe(
                np.zeros((*shape, 2)), np.ones(shape), np.ones((1, 1), bool), np.array([0]), np.array([[row]]), known
            )
        state.advance(1)
        offsets.append(state.offset)
    assert offsets[0].any()
    np.testing.assert_allclose(*offsets)


def test_levels_come_with_the_other_ends_of_their_intervals():
    assert levels_with((0.025, 0.3, 0.5)) == (0.025, 0.1, 0.3, 0.5, 0.7, 0.9, 0.975)


def test_recalibrated_quantiles_are_in_order():
    state = Recalibration((0.1, 0.5, 0.9), 1, 1)
    state.offset[:] = [[2.0, 0.0, -2.0]]
    shown = state.applied(np.array([[[[0.0, 1.0, 2.0]]]], dtype=np.float32), np.array([0]), np.ones(1))
    assert (np.diff(shown) >= 0).all()
