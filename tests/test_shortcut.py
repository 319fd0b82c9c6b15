"""The linear shortcut: least squares on a design written out, and never on what it is asked about in training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from forecaster_fixtures import SPLIT, TABLE, config_of, make_model, memory_of
from memory_fixtures import WINDOW, between, ragged_table, with_values

from forecaster.model import shortcut
from forecaster.model.shortcut import LinearShortcut, fit_linear
from forecaster.retrieval.batches import CachedWindows, flat_values
from forecaster.retrieval.cross_fit import time_blocks
from forecaster.training import fit
from forecaster.training.fit import fit_closed_form, run_record, windows_of
from memory_index.errors import DataError
from memory_index.splits import split_by_name
from memory_index.tables.series import SeriesTable

L, H, FLOOR, PENALTY = 12, 5, 0.3, 0.1
UNUSED = Path("nothing is retrieved")
ALONE = {"use_gram": False, "use_tapr": False, "use_llm": False, "use_network": False}


@pytest.fixture(scope="module")
def windows():
    """Values, positions and units of windows of three series, flat stretches and levels far from 0 among them."""
    rng = np.random.default_rng(0)
    walk = rng.normal(size=80).cumsum()
    flat = np.where(np.arange(70) < 30, 5.0, np.sin(np.arange(70)))
    values = np.concatenate([walk, flat, 1000 + 3 * rng.normal(size=60)]).astype(np.float32)
    parts = [np.arange(L - 1, 80 - H), 80 + np.arange(L - 1, 70 - H), 150 + np.arange(L - 1, 60 - H)]
    unit = np.repeat([walk.std(), 1.0, 3.0], [len(part) for part in parts])
    return values, np.concatenate(parts), unit


def design(values, position, unit, lookback=L, horizon=H) -> tuple[np.ndarray, np.ndarray]:
    """z [n, L] and f [n, H], one window at a time."""
    z, f = [], []
    for row, one in zip(position, unit, strict=True):
        context = values[row - lookback + 1 : row + 1].astype(np.float64)
        spread = max(context.std(), FLOOR * one)
        z.append((context - context.mean()) / spread)
        f.append((values[row + 1 : row + 1 + horizon] - context.mean()) / spread)
    return np.stack(z), np.stack(f)


def ridge(z: np.ndarray, f: np.ndarray, penalty: float) -> np.ndarray:
    """The penalty as L more windows, so that plain least squares does it."""
    width = z.shape[1]
    more = np.sqrt(penalty * len(z)) * np.eye(width)
    return np.linalg.lstsq(np.concatenate([z, more]), np.concatenate([f, np.zeros((width, f.shape[1]))]))[0]


def fitted(windows, **changed) -> np.ndarray:
    return fit_linear(*windows, **{"lookback": L, "horizon": H, "floor": FLOOR, "penalty": PENALTY} | changed)


@pytest.mark.parametrize("penalty", [1e-3, 0.1, 10])
def test_it_is_least_squares_with_a_penalty(windows, penalty):
    expected = ridge(*design(*windows), penalty)
    np.testing.assert_allclose(fitted(windows, penalty=penalty), expected, rtol=1e-6, atol=1e-8)


def test_the_number_of_windows_handled_at_once_does_not_matter(windows, monkeypatch):
    whole = fitted(windows)
    monkeypatch.setattr(shortcut, "CHUNK", 7)
    np.testing.assert_allclose(fitted(windows), whole, rtol=1e-10, atol=1e-12)


def test_units_and_levels_of_series_do_not_matter(windows):
    values, position, unit = windows
    scaled = values.astype(np.float64)
    scaled[:80] = 40 * scaled[:80] - 7
    factor = np.where(position < 80, 40, 1)
    np.testing.assert_allclose(fitted((scaled, position, unit * factor)), fitted(windows), rtol=1e-4, atol=1e-6)


def test_bases_are_the_map_and_the_last_value():
    module, rng = LinearShortcut(L, H), np.random.default_rng(0)
    weight, folds = rng.normal(size=(L, H)), rng.normal(size=(3, L, H))
    module.set_weights(weight, list(folds))
    z = torch.from_numpy(rng.normal(size=(7, L)).astype(np.float32))
    fold = torch.tensor([2, 0, 1, 1, 0, 2, 2])
    for made, maps in ((module(z), [weight] * 7), (module(z, fold), [folds[f] for f in fold])):
        assert made.shape == (7, 2, H)
        expected = np.stack([row @ used for row, used in zip(z.numpy(), maps, strict=True)])
        np.testing.assert_allclose(made[:, 0], expected, rtol=1e-4, atol=1e-5)
        assert torch.equal(made[:, 1], z[:, -1:].expand(-1, H))


def test_maps_of_blocks_are_not_kept():
    module = LinearShortcut(L, H)
    module.set_weights(np.ones((L, H)), [np.ones((L, H))])
    assert list(module.state_dict()) == ["weight"]
    assert not list(module.parameters())


def test_autocast_leaves_it_alone():
    model = make_model(**ALONE)
    z = torch.randn(5, model.config.lookback, generator=torch.Generator().manual_seed(0))
    for fold in (None, torch.tensor([0, 1, 1, 0, 1])):
        with torch.autocast("cpu", torch.bfloat16):
            made = model.shortcut(z, fold)
        assert made.dtype == torch.float32
        assert torch.equal(made, model.shortcut(z, fold))


# Cross-fitting


@pytest.fixture(scope="module")
def memory(tmp_path_factory):
    return memory_of(tmp_path_factory.mktemp("memory"))


def closed_form(memory, table: SeriesTable = TABLE, **changed):
    """The shortcut as training fits it, and the training windows."""
    config = config_of(**ALONE | {"num_folds": 3} | changed)
    record = run_record(table, memory, "m@1", config, None, "cpu")
    training = windows_of(table, memory, config, record, "train", UNUSED)
    model = make_model(**ALONE | changed)
    fit_closed_form(model, training, table, memory, config)
    return model.shortcut, training


def origin_times(training: CachedWindows, table: SeriesTable) -> np.ndarray:
    return np.concatenate([series.times for series in table.series])[training.position]


def test_all_training_windows_and_no_other_make_the_map(memory):
    found, training = closed_form(memory)
    config = config_of().model
    rows = np.arange(WINDOW.lookback - 1, 252 - WINDOW.horizon)  # the first 60% of 420 steps are for training
    values, offset = flat_values(TABLE)
    position = np.concatenate([begin + rows for begin in offset])
    unit = np.repeat([series.values[:252].std() for series in TABLE.series], len(rows))
    assert sorted(training.position) == sorted(position)
    z, f = design(values, position, unit, config.lookback, config.horizon)
    np.testing.assert_allclose(found.weight, ridge(z, f, config.ridge), rtol=1e-3, atol=1e-5)


def test_each_block_has_the_map_of_the_windows_that_lie_off_it(memory):
    found, training = closed_form(memory)
    times, length = origin_times(training, TABLE), np.timedelta64(WINDOW.length, "h")
    blocks = time_blocks(times, 3)
    assert found.fold_weights.shape[0] == 3
    for number, (first, last) in enumerate(blocks):
        assert set(training.fold[(times >= first) & (times <= last)]) == {number}
        off = (times <= first - length) | (times >= last + length)
        assert 0 < off.sum() < (training.fold != number).sum()
        z, f = design(training.values, training.position[off], training.unit[off], 32, WINDOW.horizon)
        np.testing.assert_allclose(found.fold_weights[number], ridge(z, f, 0.1), rtol=1e-3, atol=1e-5)


def test_a_map_has_not_seen_a_single_step_of_the_windows_it_is_asked_about(memory):
    clean, training = closed_form(memory)
    for number, (first, last) in enumerate(time_blocks(origin_times(training, TABLE), 3)):
        begin = first - np.timedelta64(WINDOW.lookback - 1, "h")
        end = last + np.timedelta64(WINDOW.horizon, "h")
        inside = (TABLE.times >= begin) & (TABLE.times <= end)
        garbage = with_values(TABLE, lambda series, inside=inside: np.where(inside, 1e4, series.values))
        units = {"unit": training.unit, "values": flat_values(garbage)[0]}
        spoiled = CachedWindows(**vars(training) | units)
        model = make_model(**ALONE)
        fit_closed_form(model, spoiled, garbage, memory, config_of(**ALONE, num_folds=3))
        assert torch.equal(model.shortcut.fold_weights[number], clean.fold_weights[number])
        assert not torch.equal(model.shortcut.weight, clean.weight)


def test_without_blocks_there_is_one_map(memory):
    found, training = closed_form(memory, num_folds=1)
    assert training.fold is None
    assert found.fold_weights.shape[0] == 0


def test_blocks_that_leave_nothing_to_fit_on_are_refused(tmp_path):
    table = between(TABLE, 0, 180)
    short = memory_of(tmp_path, table, split=split_by_name("60/20/20", table.times))
    with pytest.raises(DataError, match="no training window left to fit the linear shortcut on") as caught:
        closed_form(short, table)
    assert "num_folds" in caught.value.hint


def test_thresholds_are_quantiles_of_the_training_windows_change(tmp_path, monkeypatch):
    table = ragged_table(420)
    memory = memory_of(tmp_path, table, split=SPLIT)
    config = config_of(use_gram=False, use_llm=False)
    record = run_record(table, memory, "m@1", config, None, "cpu")
    training = windows_of(table, memory, config, record, "train", UNUSED)
    changes = []
    for row, unit in zip(training.position, training.unit, strict=True):
        context = training.values[row - 31 : row + 1].astype(np.float64)
        future = training.values[row + 1 : row + 1 + WINDOW.horizon]
        changes.append((future.mean() - context[-1]) / max(context.std(), FLOOR * unit))
    model = make_model(use_gram=False, use_llm=False)
    for chunk in (4096, 13):
        monkeypatch.setattr(fit, "CHUNK", chunk)
        fit_closed_form(model, training, table, memory, config)
        expected = np.quantile(changes, [1 / 6, 1 / 3, 1 / 2, 2 / 3, 5 / 6])
        np.testing.assert_allclose(model.tapr.thresholds, expected, rtol=1e-3, atol=1e-4)
