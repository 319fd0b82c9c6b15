"""What was issued after an origin has no say: at the origin of a query, nor at that of a stored window."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from covariate_fixtures import ENCODER, WINDOW, built_with
from forecaster_fixtures import WITHOUT_NETWORK
from memory_fixtures import SeriesTable, Store, append, assert_same, between, open_version, poisoned
from test_covariate_memory import queries_of
from vintage_fixtures import issued_steps, vintage_table, with_values

from forecaster.backtest import OfRun, cross_validation_frame
from forecaster.config import Config
from forecaster.explain import explain
from forecaster.forecast import forecast
from forecaster.growth.updates import update_run
from forecaster.predictor import Predictor, load_predictor
from forecaster.runs.run import open_run
from forecaster.training.fit import train_run
from memory_index import memory_only
from memory_index.backtest.plan import BacktestPlan
from memory_index.local import LocalMemory
from memory_index.splits import Split
from memory_index.versions.build import build
from memory_index.versions.version import Version

ORIGIN, TRAINING = 600, 560


def poisoned_after(table: SeriesTable, origin: int, *, seed: int) -> SeriesTable:
    """Targets after an origin are garbage, and everything that was issued after it, of whatever time."""
    dirty = with_values(table, issued_steps(table)[1] > origin, seed=seed)
    return poisoned(dirty, table.series[0].times[origin], seed=seed)


def asked_at(memory: LocalMemory, table: SeriesTable, origin: int = ORIGIN) -> object:
    return memory.search(queries_of(memory, table, np.array([origin])), 10)


@pytest.mark.parametrize("shared", [True, False])
def test_what_is_issued_after_the_origin_of_a_query_changes_nothing(tmp_path: Path, shared: bool) -> None:
    table = vintage_table(shared=shared)
    memory = open_version(built_with(tmp_path, table))
    for origin in (ORIGIN, ORIGIN + 1, ORIGIN + 2, ORIGIN + 3):
        clean = asked_at(memory, table, origin)
        for seed in (1, 2):
            found = asked_at(memory, poisoned_after(table, origin, seed=seed), origin)
            np.testing.assert_array_equal(found.queries.covariates, clean.queries.covariates)
            assert_same(found, clean)
            np.testing.assert_array_equal(found.quantiles((0.1, 0.9)), clean.quantiles((0.1, 0.9)))
    step, issue = issued_steps(table)
    seen = with_values(table, (issue <= ORIGIN) & (step > ORIGIN), seed=3)
    changed = asked_at(memory, seen)
    assert not np.array_equal(changed.forecast(), asked_at(memory, table).forecast()), "what was issued by then does"


def seen_by_windows(table: SeriesTable, origins: np.ndarray) -> np.ndarray:
    """bool [n]: which issued values any window with one of these origins sees, found one by one."""
    vintages, (step, issue) = table.covariates.vintages, issued_steps(table)
    newest: dict[tuple[int, int, int], list[int]] = {}
    for row in range(len(vintages)):  # in ascending order of the issue
        newest.setdefault((vintages.column[row], vintages.series[row], step[row]), []).append(row)
    seen = np.zeros(len(vintages), dtype=bool)
    for (_, _, at), rows in newest.items():
        for origin in origins[(origins >= at - WINDOW.horizon) & (origins < at + WINDOW.lookback)]:
            known = [row for row in rows if issue[row] <= origin]
            seen[known[-1:]] = True
    return seen


@pytest.mark.parametrize("shared", [True, False])
def test_what_no_window_saw_changes_neither_keys_nor_maps(tmp_path: Path, shared: bool) -> None:
    """Windows every 12 steps: what was issued between two origins, and issued again before the next, nobody sees."""
    table, window = vintage_table(shared=shared), replace(WINDOW, stride=12)
    origins = np.arange(WINDOW.lookback - 1, TRAINING - WINDOW.horizon, 12)
    hidden = ~seen_by_windows(table, origins)
    inside = issued_steps(table)[1] < TRAINING
    assert 0.3 < hidden[inside].mean() < 0.9
    dirty = with_values(table, hidden, seed=4)
    clean, built = (
        built_with(tmp_path / name, each, window=window, name=name) for name, each in (("a", table), ("b", dirty))
    )
    assert len(np.unique(open_version(clean).windows.origin_row)) == len(origins)
    assert built.manifest.covariates == clean.manifest.covariates
    assert built.manifest.encoder == clean.manifest.encoder
    differing = {path for path, record in built.manifest.files.items() if record != clean.manifest.files[path]}
    assert differing == {"segment-0/vintages.parquet"}
    for each in (open_version(built), open_version(clean)):
        assert_same(asked_at(each, table), asked_at(open_version(clean), table))
    np.testing.assert_array_equal(asked_at(open_version(built), table).forecast(), asked_at(each, table).forecast())
    some = with_values(table, ~hidden & inside, seed=5)
    assert built_with(tmp_path / "c", some, window=window).manifest.encoder != clean.manifest.encoder


@pytest.mark.parametrize("shared", [True, False])
def test_nothing_that_is_issued_after_the_training_part_is_stored(tmp_path: Path, shared: bool) -> None:
    table = vintage_table(shared=shared)
    clean, built = (
        built_with(tmp_path / name, each)
        for name, each in (("a", table), ("b", poisoned_after(table, TRAINING - 1, seed=6)))
    )
    assert built.manifest.fingerprint == clean.manifest.fingerprint


@pytest.mark.parametrize("shared", [True, False])
def test_what_is_appended_later_changes_no_earlier_answer(tmp_path: Path, shared: bool) -> None:
    table, answers = vintage_table(shared=shared), []
    for number, later in enumerate((table, poisoned_after(table, ORIGIN, seed=7))):
        store = Store(tmp_path / str(number))
        version = append(store, built_with(tmp_path / str(number), table).ref, between(table, 0, ORIGIN + 1))
        version = append(store, version.ref, later)
        answers.append(asked_at(open_version(version), table))
    assert_same(answers[1], answers[0])
    np.testing.assert_array_equal(answers[1].forecast(), answers[0].forecast())


SPLIT_AT, SCORED = (440, 560), 640  # training and validation part end there; the last origin that is looked at


def split_version(folder: Path, table: SeriesTable) -> Version:
    times = table.series[0].times
    train, val = (str(times[place - 1]) for place in SPLIT_AT)
    split = Split(name="until", train_until=train, val_until=val, test_until=str(times[-1]))
    return build(table, Store(folder), "m", window=WINDOW, split=split, encoder=ENCODER)


def trained(folder: Path, table: SeriesTable) -> tuple[Predictor, LocalMemory]:
    version = split_version(folder, table)
    memory = open_version(version)
    shape = {"lookback": WINDOW.lookback, "horizon": WINDOW.horizon, "memory_k": 6, "num_folds": 2}
    config = Config.from_dict({**shape, **WITHOUT_NETWORK})
    train_run(table, memory, version.ref, config, folder / "run", neighbours_dir=folder / "n", device="cpu")
    return load_predictor(open_run(folder / "run"), device="cpu"), memory


def backtested(predictor: Predictor, memory: LocalMemory, table: SeriesTable) -> pd.DataFrame:
    rows = np.arange(SPLIT_AT[1] + 20, SCORED + 1, 10)
    plan = BacktestPlan(origins=[rows] * 2, updates=table.series[0].times[rows[:1]], in_sample=False)
    return cross_validation_frame(OfRun(predictor=predictor, memory=memory), table, plan, levels=(0.1, 0.9))


def test_training_evaluation_and_forecasts_see_what_was_issued_by_each_origin(tmp_path: Path) -> None:
    table = vintage_table()
    later = poisoned(
        with_values(table, issued_steps(table)[1] >= SPLIT_AT[1], seed=8), table.series[0].times[559], seed=8
    )
    clean, dirty = trained(tmp_path / "clean", table), trained(tmp_path / "dirty", later)
    for one, other in zip(clean[0].model.parameters(), dirty[0].model.parameters(), strict=True):
        np.testing.assert_array_equal(one.detach().numpy(), other.detach().numpy())

    scored = poisoned_after(table, SCORED, seed=9)
    found, expected = (backtested(*clean, each) for each in (scored, table))
    pd.testing.assert_frame_equal(found.drop(columns="y"), expected.drop(columns="y"))
    one, other = (
        memory_only.evaluate(clean[1], between(each, 0, SCORED + 1), "test").to_dict() for each in (scored, table)
    )
    assert {**one, "seconds": 0} == {**other, "seconds": 0}
    at = table.series[0].times[SCORED]
    explained = [explain(*clean, each, "south", at).forecast for each in (scored, table)]
    np.testing.assert_array_equal(*explained)

    states = []
    for folder, each in (("clean", table), ("dirty", scored)):  # the runs are the same so far
        store, run = Store(tmp_path / folder), open_run(tmp_path / folder / "run")
        version = append(store, append(store, "m@1", between(table, 0, SCORED + 1)).ref, each)
        update_run(run, load_predictor(run, device="cpu").model, open_version(version), version.ref, until=at)
        states.append(load_predictor(run, device="cpu").model.shortcut.weight.numpy())
    np.testing.assert_array_equal(*states)
    assert not np.array_equal(states[0], clean[0].model.shortcut.weight.numpy())

    now = between(table, 0, SCORED + 1)
    last = [forecast(*clean, between(each, 0, SCORED + 1), quantiles=(0.1,)) for each in (scored, now)]
    pd.testing.assert_frame_equal(*last)
    alone = [memory_only.forecast(clean[1], between(each, 0, SCORED + 1)) for each in (scored, now)]
    pd.testing.assert_frame_equal(*alone)
