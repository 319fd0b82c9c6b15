"""Runs with covariates: the linear map reads them, goes on with them, and sees nothing from after the origin."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from covariate_fixtures import ENCODER, SKY, TEMPERATURE, covariate_table
from covariate_fixtures import WINDOW as SHAPE
from forecaster_fixtures import WITHOUT_NETWORK
from memory_fixtures import Store, append, between, open_version, poisoned
from test_covariate_leakage import poison

from forecaster.backtest import cross_validation_frame, growing
from forecaster.config import Config
from forecaster.evaluate import evaluate
from forecaster.explain import explain
from forecaster.growth.operation import beat_steps
from forecaster.growth.updates import read_growth, update_run
from forecaster.predictor import Predictor, load_predictor
from forecaster.retrieval.batches import live_blocks
from forecaster.runs.run import Run, open_run
from forecaster.training.fit import train_run
from memory_index.backtest.plan import BacktestPlan, parse_update, plan_backtest
from memory_index.covariates import Covariate
from memory_index.local import LocalMemory
from memory_index.scenarios import parse_changes, with_changes
from memory_index.splits import Split
from memory_index.tables.series import SeriesTable
from memory_index.versions.build import build
from memory_index.versions.grown import grown

NUM_STEPS, TRAINED, VALIDATED = 900, 560, 640
ORIGIN = 700


def trained(folder: Path, table: SeriesTable, **settings: object) -> tuple[LocalMemory, Predictor, list[str]]:
    """A run without networks in `folder`/run, its version in `folder`."""
    times, notes = table.series[0].times, list[str]()
    split = Split(
        name="until", train_until=str(times[TRAINED]), val_until=str(times[VALIDATED]), test_until=str(times[-1])
    )
    version = build(table, Store(folder), "weather", window=SHAPE, encoder=ENCODER, split=split)
    memory = open_version(version)
    config = Config.from_dict({"lookback": 24, "horizon": 6, **WITHOUT_NETWORK, **settings})
    neighbours = folder / "neighbours"
    run = train_run(
        table, memory, "weather@1", config, folder / "run", neighbours_dir=neighbours, device="cpu", note=notes.append
    ).run
    return memory, load_predictor(run, device="cpu"), notes


@pytest.fixture(scope="module")
def table() -> SeriesTable:
    return covariate_table(NUM_STEPS)


@pytest.fixture(scope="module")
def folder(table: SeriesTable, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds a version and `run`, which no test may change."""
    folder = tmp_path_factory.mktemp("weather")
    trained(folder, table)
    return folder


def opened_run(folder: Path) -> Run:
    return open_run(folder / "run")


def opened(folder: Path) -> tuple[LocalMemory, Predictor]:
    return open_version(Store(folder).resolve("weather@1")), load_predictor(opened_run(folder), device="cpu")


def forecast_at(memory: LocalMemory, predictor: Predictor, table: SeriesTable, row: int) -> tuple[np.ndarray, ...]:
    [block] = live_blocks(
        memory, table, [np.array([row])] * 2, predictor.config.model, predictor.config.train.memory_k, predictor.units
    )
    predicted = predictor.predict(block.batch)
    quantiles = predictor.quantiles(memory, block, predicted, (0.1, 0.9))
    assert predicted.linear is not None
    return predicted.forecast, predicted.linear, quantiles


def test_the_linear_map_reads_them(table: SeriesTable, folder: Path, tmp_path: Path) -> None:
    memory, predictor = opened(folder)
    reads = evaluate(predictor, memory, table).scores
    memory, blind, _ = trained(tmp_path, table, use_covariates=False)
    alone = evaluate(blind, memory, table).scores
    assert reads["linear"].mse < 0.5 * alone["linear"].mse
    assert reads["memory_only"].mse == alone["memory_only"].mse
    columns = read_growth(opened_run(folder))[1].trained.choice.columns
    assert {*columns} == {"temperature", "holiday", "sky", "pressure", "size"}
    assert columns["temperature"] is not None


def test_a_run_without_the_memory_reads_them_too(table: SeriesTable, tmp_path: Path) -> None:
    memory, predictor, notes = trained(tmp_path / "reads", table, use_gram=False)
    assert notes == []
    forecast, linear, _ = forecast_at(memory, predictor, table, ORIGIN)
    assert not np.array_equal(forecast, np.zeros_like(forecast))
    dirty = poison(table, known_after=table.series[0].times[ORIGIN], observed_after=table.series[0].times[-1], seed=3)
    assert not np.array_equal(forecast_at(memory, predictor, dirty, ORIGIN)[1], linear)
    _, _, notes = trained(tmp_path / "blind", table, use_gram=False, use_covariates=False)
    assert notes == ["covariates are not read: without memory and linear map a run reads the target alone"]


@pytest.mark.parametrize("seed", [1, 2])
def test_what_a_forecast_must_not_see_changes_nothing(table: SeriesTable, folder: Path, seed: int) -> None:
    memory, predictor = opened(folder)
    times = table.series[0].times
    dirty = poison(table, known_after=times[ORIGIN + SHAPE.horizon], observed_after=times[ORIGIN], seed=seed)
    dirty = poisoned(dirty, times[ORIGIN], seed=seed)
    for clean, found in zip(
        forecast_at(memory, predictor, table, ORIGIN), forecast_at(memory, predictor, dirty, ORIGIN), strict=True
    ):
        np.testing.assert_array_equal(found, clean)


def test_scenarios_and_explanations_see_no_more(table: SeriesTable, folder: Path) -> None:
    """A scenario replaces the known values of the horizon alone: what else must not be seen has no say in it either."""
    memory, predictor = opened(folder)
    times, changes = table.series[0].times, parse_changes(["temperature=3", "holiday=true", "sky=fog"])
    dirty = poisoned(
        poison(table, known_after=times[ORIGIN + SHAPE.horizon], observed_after=times[ORIGIN], seed=7),
        times[ORIGIN],
        seed=7,
    )
    unasked = poison(table, known_after=times[ORIGIN], observed_after=times[ORIGIN], seed=8)  # all of it is replaced
    at = times[ORIGIN]
    columns = memory.manifest.covariates
    asked = [with_changes(each, changes, columns, SHAPE.horizon, at=at) for each in (table, dirty, unasked)]
    firsts = []
    for first, *others in (asked, [table, dirty]):
        expected = explain(predictor, memory, first, "south", at)
        for other in others:
            found = explain(predictor, memory, other, "south", at)
            np.testing.assert_array_equal(found.forecast, expected.forecast)
            np.testing.assert_array_equal(found.quantiles, expected.quantiles)
        firsts.append(expected.forecast)
    assert not np.array_equal(*firsts)


def test_nothing_after_validation_has_a_say_in_training(table: SeriesTable, folder: Path, tmp_path: Path) -> None:
    last = table.series[0].times[VALIDATED]
    dirty = poisoned(poison(table, known_after=last, observed_after=last, seed=4), last, seed=4)
    _, again, _ = trained(tmp_path, dirty)
    _, clean = opened(folder)
    for name, weight in clean.model.state_dict().items():
        np.testing.assert_array_equal(again.model.state_dict()[name].numpy(), weight.numpy(), err_msg=name)


@pytest.mark.parametrize("kind", ["number", "boolean"])
def test_a_useless_column_costs_next_to_nothing(tmp_path: Path, kind: str) -> None:
    random = np.random.default_rng(5)
    plain = covariate_table(NUM_STEPS, columns=(TEMPERATURE, SKY))
    column = Covariate(name="noise", role="known", kind=kind)  # type: ignore[arg-type]
    assert plain.covariates is not None
    [each, _] = plain.covariates.series
    noise = random.normal(size=each.values.shape[1])
    noisy = replace(each, values=np.vstack([each.values, noise if kind == "number" else noise > 0.5]))
    beside = replace(plain.covariates, columns=(*plain.covariates.columns, column), series=(noisy, noisy))
    scores = []
    for name, table in (("plain", plain), ("noisy", replace(plain, covariates=beside))):
        memory, predictor, _ = trained(tmp_path / name, table)
        scores.append(evaluate(predictor, memory, table).scores)
    for arm in ("model", "linear"):
        assert scores[1][arm].mse < 1.005 * scores[0][arm].mse


def test_an_update_takes_them_in(table: SeriesTable, folder: Path, tmp_path: Path) -> None:
    """The map of a state is fitted on all that was known by then, and on nothing later."""
    times, maps = table.series[0].times, []
    late = 800
    dirty = poisoned(poison(table, known_after=times[late], observed_after=times[late], seed=5), times[late], seed=5)
    for name, later in (("clean", table), ("dirty", dirty)):
        trained(tmp_path / name, table)
        run, store = opened_run(tmp_path / name), Store(tmp_path / name)
        version = append(store, "weather@1", between(table, 0, late + 1))
        version = append(store, version.ref, later)
        model = load_predictor(run, device="cpu").model
        state = update_run(run, model, open_version(version), version.ref, until=times[late])
        assert state is not None
        assert state.num_windows > 0
        maps.append(load_predictor(run, device="cpu").model.shortcut.weight.numpy())
    np.testing.assert_array_equal(maps[1], maps[0])
    assert not np.array_equal(maps[0], opened(folder)[1].model.shortcut.weight.numpy())
    beats = beat_steps(SHAPE.horizon, 24)
    _, growth = read_growth(opened_run(tmp_path / "clean"))
    assert (late - TRAINED) - (np.searchsorted(times, growth.until) - TRAINED) < beats
    assert growth.equations.gram.shape[0] == 24 + growth.trained.layout.width


def test_rows_of_a_growing_backtest_do_not_see_what_follows(table: SeriesTable, folder: Path) -> None:
    """Memory, map, gate and recalibrated quantiles of rows up to an origin: what follows it has no say in any."""
    times, found = table.series[0].times, []
    dirty = poison(table, known_after=times[ORIGIN + SHAPE.horizon], observed_after=times[ORIGIN], seed=6)
    for each in (table, poisoned(dirty, times[ORIGIN], seed=6)):
        _, predictor = opened(folder)
        rows = np.arange(VALIDATED + 12, ORIGIN + 25, 6)
        plan = BacktestPlan(origins=[rows] * 2, updates=times[rows[::4]], in_sample=False)
        with grown(Store(folder).resolve("weather@1"), each) as memory:
            subject = growing(opened_run(folder), predictor, memory, plan)
            found.append(cross_validation_frame(subject, each, plan, levels=(0.1, 0.9)).drop(columns="y"))
    clean, poisoned_rows = (frame[frame["cutoff"] <= times[ORIGIN]].reset_index(drop=True) for frame in found)
    assert clean["cutoff"].nunique() > 5
    pd.testing.assert_frame_equal(poisoned_rows, clean)
    assert not found[0].equals(found[1])


def test_a_backtest_lets_map_and_gate_go_on(table: SeriesTable, folder: Path) -> None:
    _, predictor = opened(folder)
    version, run = Store(folder).resolve("weather@1"), opened_run(folder)
    with grown(version, table) as memory:
        fitted_at = max(version.manifest.fitted_known_at, predictor.seen_until)
        arguments = {"horizon": SHAPE.horizon, "fitted_at": fitted_at}
        plan = plan_backtest(table, version.manifest, predictor.units, update=parse_update("48h"), **arguments)
        subject = growing(run, predictor, memory, plan)
        first = subject.predictor.model.shortcut.weight.clone()
        for at in plan.updates[1:4]:
            [origin] = [np.searchsorted(table.series[0].times, at) - SHAPE.horizon - 3]
            [found] = subject.ask(table, [np.array([origin])] * 2, ())
            found.note(np.array([0]), np.empty(0), np.empty(0))
            subject.advance(0, at)
        assert subject.growth.since
        assert not np.array_equal(subject.predictor.model.shortcut.weight.numpy(), first.numpy())
