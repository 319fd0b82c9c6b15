"""A run that goes on: what it learns, from what it was forecast then, from nothing later, and its states on disk."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from forecaster_fixtures import TABLE, WITHOUT_NETWORK, Trained, memory_of, train_small
from killing import run_together
from memory_fixtures import WINDOW, Store, poisoned

from forecaster.backtest import OfRun, growing
from forecaster.errors import RunDamagedError, RunIncompatibleError
from forecaster.evaluate import evaluate
from forecaster.growth.growth import Growth
from forecaster.growth.operation import beat_steps, catch_up, gate_stride, known_until
from forecaster.growth.updates import read_growth, update_run
from forecaster.predictor import Predictor, load_predictor
from forecaster.runs import states
from forecaster.runs.run import open_run
from forecaster.training.normal_equations import NormalEquations, normalised
from memory_index import files
from memory_index.backtest import plan as planning
from memory_index.backtest.kept import KeptForecasts
from memory_index.backtest.lived import run_backtest
from memory_index.backtest.plan import parse_update, plan_backtest
from memory_index.errors import NotFoundError, ResourceError
from memory_index.memory import Memory
from memory_index.origins import parse_schedule
from memory_index.tables.series import SeriesTable
from memory_index.versions.build import steps_until
from memory_index.versions.grown import grown

LATE = TABLE.times[379]
HORIZON = WINDOW.horizon


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Holds `indexes` and `run`, which no test may change."""
    folder = tmp_path_factory.mktemp("growth")
    train_small(memory_of(folder / "indexes"), folder / "run", **WITHOUT_NETWORK)
    return folder


@contextmanager
def memory_grown(folder: Path, table: SeriesTable = TABLE) -> Iterator[Memory]:
    with grown(Store(folder / "indexes").resolve("m@1"), table) as memory:
        yield memory


def copied(folder: Path, to: Path) -> Path:
    """The run, to be changed."""
    shutil.copytree(folder / "run", to)
    return to


def learned(folder: Path, stops: list[np.datetime64], table: SeriesTable = TABLE, half_life: float | None = None):
    """Map and gate after updates at these times, all from state 0."""
    run = open_run(folder / "run")
    model = load_predictor(run, device="cpu").model
    _, growth = read_growth(run, 0)
    growth.half_life = half_life
    with memory_grown(folder, table) as memory:
        for each in stops:
            growth = restored(growth)
            growth.take_over(model, gate=False)
            catch_up(growth, model, memory, each)
    growth.take_over(model)
    return growth, model


def restored(growth: Growth) -> Growth:
    """As it is read again from its arrays."""
    again = replace(growth)
    again.restore(growth.to_arrays())
    return again


def test_state_0_is_what_training_made(folder):
    run = open_run(folder / "run")
    model = load_predictor(run, device="cpu").model
    _, growth = read_growth(run)
    weight, logits = model.shortcut.weight.clone(), model.value_gate.logits.clone()
    growth.take_over(model)
    torch.testing.assert_close(model.shortcut.weight, weight, atol=1e-6, rtol=0)
    torch.testing.assert_close(model.value_gate.logits, logits, atol=1e-5, rtol=0)
    assert growth.until == np.datetime64(run.record.data.split["train_until"], "ns")


@pytest.mark.parametrize("half_life", [None, 40.0])
def test_many_short_updates_are_one_long_one(folder, half_life):
    stops = [TABLE.times[row] for row in (260, 263, 264, 300, 333, 379)]
    many, model = learned(folder, stops, half_life=half_life)
    one, other = learned(folder, stops[-1:], half_life=half_life)
    for name, array in one.to_arrays().items():
        np.testing.assert_allclose(many.to_arrays()[name], array, rtol=1e-9, atol=1e-12, err_msg=name)
    torch.testing.assert_close(model.shortcut.weight, other.shortcut.weight)
    torch.testing.assert_close(model.value_gate.logits, other.value_gate.logits)
    assert (one.scale < 0.2) == (half_life is not None)


@pytest.mark.parametrize("half_life", [None, 30.0])
def test_the_map_is_fitted_on_every_window_that_is_known(folder, half_life):
    """Window by window."""
    growth, _ = learned(folder, [LATE], half_life=half_life)
    _, first = read_growth(open_run(folder / "run"), 0)
    model, at = growth.config.model, int(np.flatnonzero(TABLE.times == growth.until)[0])
    began = int(np.flatnonzero(TABLE.times == growth.trained.began_at)[0])
    kept = (lambda steps: 1.0) if half_life is None else (lambda steps: 0.5 ** (steps / half_life))
    expected = first.equations.scaled(kept(at - began))
    for series in TABLE.series:
        unit = np.array([growth.trained.units[series.series_id]], dtype=np.float32)
        for row in range(began - HORIZON + 1, at - HORIZON + 1):
            how = {"lookback": model.lookback, "horizon": model.horizon, "floor": model.spread_floor}
            one = normalised(series.values.astype(np.float32), np.array([row]), unit, **how)
            expected = expected + NormalEquations.of(one.z, one.future, np.array([kept(at - row - HORIZON)]))
    for name in ("gram", "cross", "square", "num"):
        np.testing.assert_allclose(getattr(growth.equations, name), getattr(expected, name), rtol=1e-6, atol=1e-6)
    assert growth.num_windows == len(TABLE.series) * (at - began)


def test_the_gate_learns_from_the_forecasts_as_they_were_made(folder):
    """Of each origin with the map of the beat before it, although later ones know more."""
    _, first = read_growth(open_run(folder / "run"), 0)
    model, began = first.config.model, int(np.flatnonzero(TABLE.times == first.trained.began_at)[0])
    beat, last = beat_steps(HORIZON, model.season), began + 2
    assert (beat, gate_stride(HORIZON, model.season)) == (2, 1)
    total = 0.0
    for row in range(began, last + 1):
        weight = learned(folder, [TABLE.times[began + (row - began) // beat * beat]])[0].linear_map()
        for series in TABLE.series:
            unit = np.array([first.trained.units[series.series_id]], dtype=np.float32)
            how = {"lookback": model.lookback, "horizon": model.horizon, "floor": model.spread_floor}
            one = normalised(series.values.astype(np.float32), np.array([row]), unit, **how)
            total += float(np.square((one.future - one.z @ weight) * one.spread / unit).sum())
    (found,) = learned(folder, [TABLE.times[last + HORIZON]])[0].since.values()
    assert found.num == 3 * len(TABLE.series)
    assert float(found.matrix[:, 0, 0].sum()) == pytest.approx(total, rel=1e-4)
    assert not learned(folder, [TABLE.times[began + HORIZON - 1]])[0].since


@pytest.mark.parametrize("row", [300, 341])
def test_nothing_later_changes_a_state(folder, row):
    """Garbage in place of all later values: bit for bit the same."""
    at = TABLE.times[row]
    clean, model = learned(folder, [at])
    dirty, other = learned(folder, [at], poisoned(TABLE, at, seed=3))
    cut, _ = learned(folder, [at], steps_until(TABLE, at))
    for name, array in clean.to_arrays().items():
        np.testing.assert_array_equal(dirty.to_arrays()[name], array, err_msg=name)
        np.testing.assert_array_equal(cut.to_arrays()[name], array, err_msg=name)
    assert torch.equal(model.shortcut.weight, other.shortcut.weight)
    assert torch.equal(model.value_gate.logits, other.value_gate.logits)
    later, _ = learned(folder, [TABLE.times[-1]], poisoned(TABLE, at, seed=3))
    assert not np.allclose(later.equations.cross, learned(folder, [TABLE.times[-1]])[0].equations.cross)


def test_a_series_that_lags_is_waited_for_and_one_that_has_ended_is_not(folder):
    for missing, expected in ((3, 416), (50, 419)):
        lagging = [
            replace(each, values=np.where(np.arange(len(each)) >= 420 - missing, np.nan, each.values))
            if n == 1
            else each
            for n, each in enumerate(TABLE.series)
        ]
        with memory_grown(folder, replace(TABLE, series=tuple(lagging))) as memory:
            assert known_until(memory.windows, TABLE.series_ids, HORIZON) == TABLE.times[expected]


# States


def updated(run: Path, folder: Path, until: np.datetime64 | None = None):
    opened = open_run(run)
    with memory_grown(folder) as memory:
        return update_run(opened, load_predictor(opened, device="cpu").model, memory, "m@2", until=until)


def test_states_are_numbered_listed_used_and_gone_back_to(folder, tmp_path):
    run = copied(folder, tmp_path / "run")
    trained = load_predictor(open_run(run), device="cpu")
    first, second = updated(run, folder, TABLE.times[340]), updated(run, folder)
    assert (first.number, first.parent, second.number, second.parent) == (1, 0, 2, 1)
    assert second.num_windows > first.num_windows > 0
    assert updated(run, folder) is None
    now = load_predictor(open_run(run), device="cpu")
    assert (now.state, now.seen_until) == (2, np.datetime64(second.until, "ns"))
    assert not torch.equal(now.model.shortcut.weight, trained.model.shortcut.weight)
    states.use_state(run, 0)
    back = load_predictor(open_run(run), device="cpu")
    assert torch.equal(back.model.shortcut.weight, trained.model.shortcut.weight)
    assert torch.equal(back.model.value_gate.logits, trained.model.value_gate.logits)
    again = updated(run, folder)
    assert (again.number, again.parent) == (3, 0)
    arrays = [states.read_arrays(run, states.read_state(run, number)) for number in (2, 3)]
    np.testing.assert_allclose(arrays[0]["weight"], arrays[1]["weight"], atol=1e-5)
    assert states.numbers_of(run) == [0, 1, 2, 3]
    with pytest.raises(NotFoundError, match="no state 7"):
        load_predictor(open_run(run), device="cpu", state=7)


def test_old_states_go_but_not_0_nor_the_one_in_use(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(states, "KEPT", 1)
    run = copied(folder, tmp_path / "run")
    for row in (300, 320, 340, 360):
        updated(run, folder, TABLE.times[row])
    assert states.numbers_of(run) == [0, 3, 4]


def test_a_damaged_state_is_refused(folder, tmp_path):
    run = copied(folder, tmp_path / "run")
    updated(run, folder)
    file = run / "states" / "000001" / states.ARRAYS
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(RunDamagedError, match=states.ARRAYS):
        load_predictor(open_run(run), device="cpu")
    assert load_predictor(open_run(run), device="cpu", state=0).state == 0


def test_a_run_that_keeps_no_equations_says_so(folder, tmp_path):
    trained: Trained = train_small(memory_of(tmp_path / "indexes"), tmp_path / "run")
    assert trained.run.config.model.use_network
    with pytest.raises(RunIncompatibleError, match="cannot go on"):
        updated(tmp_path / "run", folder)
    assert load_predictor(trained.run, device="cpu").state == 0


def die_at_a_rename(run: str, folder: str, number: int) -> None:
    """An errand: an update that is killed when it makes something visible for the so many-th time."""
    left = [number]

    def dying(whole: Callable[..., None]) -> Callable[..., None]:
        def once_too_often(*arguments: object) -> None:
            left[0] -= 1
            if left[0] < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            whole(*arguments)

        return once_too_often

    opened, at = open_run(run), Path(folder)
    with memory_grown(at) as memory:
        model = load_predictor(opened, device="cpu").model
        files.publish_folder, files.replace = dying(files.publish_folder), dying(files.replace)
        update_run(opened, model, memory, "m@2")


@pytest.mark.parametrize("number", [0, 1])
def test_a_killed_update_leaves_the_old_state(folder, tmp_path, number):
    """Killed before its state is visible, and before the run uses it."""
    run = copied(folder, tmp_path / "run")
    before = updated(run, folder, TABLE.times[340])
    with pytest.raises(EOFError):
        run_together(die_at_a_rename, (str(run), str(folder), number))
    predictor = load_predictor(open_run(run), device="cpu")
    assert predictor.state == before.number == 1
    after = updated(run, folder)
    assert after.number == 2 + number
    assert load_predictor(open_run(run), device="cpu").state == after.number
    assert not [*(run / "states").glob(".staging*")]


def test_two_updates_at_once_are_one_after_the_other(folder, tmp_path):
    run = copied(folder, tmp_path / "run")
    with files.locked(run / ".lock"), pytest.raises(ResourceError):
        updated(run, folder)


# Backtests


def plan_of(folder: Path, predictor: Predictor, table: SeriesTable = TABLE, **changed):
    with memory_grown(folder, table) as memory:
        options = {"schedule": parse_schedule("6h", None), "update": parse_update("12h")} | changed
        return plan_backtest(
            table, memory.manifest, predictor.units, horizon=HORIZON, fitted_at=predictor.seen_until, **options
        )


def lived(folder: Path, to: Path, table: SeriesTable = TABLE, half_life: float | None = None, **how):
    """A backtest that grows: the subject, and forecasts by series and origin row."""
    run = open_run(folder / "run")
    predictor = load_predictor(run, device="cpu")
    plan = plan_of(folder, predictor, table)
    kept = KeptForecasts(to, {})
    with memory_grown(folder, table) as memory:
        subject = growing(run, predictor, memory, plan, half_life=half_life)
        run_backtest(subject, table, plan, kept, levels=(0.1, 0.5, 0.9), **how)
    rows = {}
    for piece in kept.pieces():
        for b, n in zip(*np.nonzero(piece.wanted), strict=True):
            key = table.series_ids[piece.series[n]], int(piece.row[b, n])
            rows[key] = piece.forecasts["model"][b, n], piece.quantiles[b, n]
    return subject, rows


@pytest.mark.parametrize("row", [345, 372])
def test_rows_of_a_backtest_that_grows_do_not_see_what_follows_their_cutoff(folder, tmp_path, row):
    _, clean = lived(folder, tmp_path / "clean")
    _, dirty = lived(folder, tmp_path / "dirty", poisoned(TABLE, TABLE.times[row], seed=row))
    before = [key for key in clean if key[1] <= row]
    assert len(before) > 2
    for key in before:
        for one, other in zip(clean[key], dirty[key], strict=True):
            np.testing.assert_array_equal(one, other)
    last = max(key[1] for key in clean)
    assert not np.array_equal(clean["load", last][0], dirty["load", last][0])


def test_a_backtest_that_grows_moves_map_and_gate_and_leaves_the_run(folder, tmp_path):
    predictor = load_predictor(open_run(folder / "run"), device="cpu")
    subject, rows = lived(folder, tmp_path / "kept")
    assert isinstance(subject, OfRun)
    assert not torch.equal(subject.predictor.model.shortcut.weight, predictor.model.shortcut.weight)
    assert subject.growth.until == max(plan_of(folder, predictor).updates)
    plan = plan_of(folder, predictor)
    still = KeptForecasts(tmp_path / "still", {})
    with memory_grown(folder) as memory:
        run_backtest(OfRun(predictor=predictor, memory=memory), TABLE, plan, still, levels=())
        evaluation = evaluate(predictor, memory, TABLE)
    assert evaluation.num_windows
    last = max(rows)
    pieces = [p.forecasts["model"] for p in still.pieces()]
    assert not np.allclose(rows[last][0], pieces[-1][-1, -1])


def test_a_backtest_that_grows_goes_on_with_the_same_numbers(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(planning, "MOMENTS", 3)
    _, expected = lived(folder, tmp_path / "whole", half_life=50.0)

    def stop(done: float, total: float | None) -> None:
        if total is not None and done > total / 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        lived(folder, tmp_path / "stopped", half_life=50.0, report=stop)
    _, found = lived(folder, tmp_path / "stopped", half_life=50.0)
    assert found.keys() == expected.keys()
    for key, (forecast, _) in expected.items():
        np.testing.assert_allclose(found[key][0], forecast, rtol=1e-5, atol=1e-5)
