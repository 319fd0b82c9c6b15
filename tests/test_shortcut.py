"""The linear shortcut: least squares on a design written out, and never on what it is asked about in training."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from forecaster_fixtures import SPLIT, TABLE, config_of, make_model, memory_of
from memory_fixtures import WINDOW, between, ragged_table, with_values

from forecaster.model.shortcut import LinearShortcut
from forecaster.retrieval.batches import CachedWindows, flat_values
from forecaster.retrieval.folds import LEAST, FoldPlan, lay_folds, time_blocks
from forecaster.training import closed_form as closed_form_module
from forecaster.training.closed_form import fit_closed_form
from forecaster.training.fit import run_record
from forecaster.training.linear_maps import MapChoice, Windows, fold_equations, prior_maps
from forecaster.training.normal_equations import NormalEquations, normalised
from forecaster.training.weighing import weights_of
from forecaster.training.windows import windows_of
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


def equations(windows, **changed) -> NormalEquations:
    values, position, unit = windows
    found = normalised(values, position, unit, **{"lookback": L, "horizon": H, "floor": FLOOR} | changed)
    return NormalEquations.of(found.z, found.future)


def fitted(windows, penalty: float = PENALTY) -> np.ndarray:
    return equations(windows).solve(penalty)


@pytest.mark.parametrize("penalty", [1e-3, 0.1, 10])
def test_it_is_least_squares_with_a_penalty(windows, penalty):
    expected = ridge(*design(*windows), penalty)
    np.testing.assert_allclose(fitted(windows, penalty), expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("lookback", [3, 7, L])
def test_it_shrinks_to_a_prior_and_changes_its_last_rows_only(windows, lookback):
    z, f = design(*windows)
    prior = np.random.default_rng(1).normal(size=(L, H))
    found = equations(windows).solve(0.3, prior, lookback)
    np.testing.assert_array_equal(found[: L - lookback], prior[: L - lookback])
    moved = ridge(z[:, L - lookback :], f - z @ prior, 0.3)
    np.testing.assert_allclose(found[L - lookback :], prior[L - lookback :] + moved, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(equations(windows).solve(1e9, prior), prior, atol=1e-6)


def test_equations_add_up_and_know_the_error_of_any_map(windows):
    values, position, unit = windows
    first = np.arange(len(position)) % 3 == 0
    whole, part, rest = (
        equations((values, position[chosen], unit[chosen])) for chosen in (first | True, first, ~first)
    )
    for name in ("gram", "cross", "square", "num"):
        np.testing.assert_allclose(getattr(part + rest, name), getattr(whole, name), rtol=1e-10, atol=1e-9)
        np.testing.assert_allclose(getattr(whole - part, name), getattr(rest, name), rtol=1e-10, atol=1e-9)
    weight = np.random.default_rng(0).normal(size=(L, H))
    z, f = design(values, position, unit)
    assert whole.squared_error(weight) == pytest.approx(np.square(f - z @ weight).sum())


def test_units_and_levels_of_series_do_not_matter(windows):
    values, position, unit = windows
    scaled = values.astype(np.float64)
    scaled[:80] = 40 * scaled[:80] - 7
    factor = np.where(position < 80, 40, 1)
    np.testing.assert_allclose(fitted((scaled, position, unit * factor)), fitted(windows), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("season", [None, 1, 4, L, L + 1])
def test_priors_are_the_plain_forecasts(season):
    z = np.random.default_rng(0).normal(size=(5, L))
    maps = prior_maps(L, H, season)
    np.testing.assert_allclose(z @ maps["last value"], np.repeat(z[:, -1:], H, axis=1))
    np.testing.assert_allclose(z @ maps[f"mean of {L}"], np.repeat(z.mean(axis=1, keepdims=True), H, axis=1))
    assert ("last season" in maps) == (season in (4, L))
    if season == 4:
        np.testing.assert_allclose(z @ maps["last season"], z[:, -4:][:, np.arange(H) % 4])
        expected = z.reshape(5, L // 4, 4).mean(axis=1)[:, np.arange(H) % 4]
        np.testing.assert_allclose(z @ maps["mean of seasons"], expected)


@pytest.mark.parametrize("season", [None, 5])
def test_bases_are_the_map_the_last_value_and_the_last_season(season):
    module, rng = LinearShortcut(L, H, season), np.random.default_rng(0)
    assert module.names == ("linear", "last_value", "seasonal_naive")[: 2 + (season is not None)]
    weight, folds = rng.normal(size=(L, H)), rng.normal(size=(3, L, H))
    module.set_weights(weight, list(folds))
    z = torch.from_numpy(rng.normal(size=(7, L)).astype(np.float32))
    fold = torch.tensor([2, 0, 1, 1, 0, 2, 2])
    for made, maps in ((module(z), [weight] * 7), (module(z, fold), [folds[f] for f in fold])):
        assert made.shape == (7, len(module.names), H)
        expected = np.stack([row @ used for row, used in zip(z.numpy(), maps, strict=True)])
        np.testing.assert_allclose(made[:, 0], expected, rtol=1e-4, atol=1e-5)
        assert torch.equal(made[:, 1], z[:, -1:].expand(-1, H))
        if season is not None:
            assert torch.equal(made[:, 2], z[:, L - season + torch.arange(H) % season])


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
    """The shortcut as training fits it, the training windows, and how it was chosen."""
    config = config_of(**ALONE | changed)
    record = run_record(table, memory, "m@1", config, None, "cpu")
    training = windows_of(table, memory, config, record, "train", UNUSED)
    model = make_model(**ALONE | changed)
    return model.shortcut, training, fit_closed_form(model, training, table, config).linear_map


def origin_times(training: CachedWindows, table: SeriesTable) -> np.ndarray:
    return np.concatenate([series.times for series in table.series])[training.position]


def expected_map(training: CachedWindows, chosen: np.ndarray, choice: MapChoice) -> np.ndarray:
    """Weighted least squares towards the chosen prior, on some of the windows, with plain least squares."""
    z, f = design(training.values, training.position[chosen], training.unit[chosen], 32, WINDOW.horizon)
    prior, weight = prior_maps(32, WINDOW.horizon, None)[choice.prior], weights_of(training)[chosen, None]
    last, root = slice(32 - choice.lookback, None), np.sqrt(weight * len(z) / weight.sum())
    moved = ridge(root * z[:, last], root * (f - z @ prior), choice.penalty)
    found = prior.copy()
    found[last] += moved
    return found


def test_all_training_windows_and_no_other_make_the_map(memory):
    found, training, choice = closed_form(memory)
    rows = np.arange(WINDOW.lookback - 1, 252 - WINDOW.horizon)  # the first 60% of 420 steps are for training
    _, offset = flat_values(TABLE)
    assert sorted(training.position) == sorted(np.concatenate([begin + rows for begin in offset]))
    everything = np.ones(len(training), dtype=bool)
    np.testing.assert_allclose(found.weight, expected_map(training, everything, choice), rtol=1e-3, atol=1e-5)


def test_each_fold_has_the_map_of_the_windows_that_lie_off_it(memory):
    found, training, choice = closed_form(memory)
    times, plan = origin_times(training, TABLE), training.folds
    assert (plan.kind, found.fold_weights.shape[0]) == ("time", plan.num)
    for number, (first, last) in enumerate(time_blocks(times, plan.num)):
        assert set(training.fold[(times >= first) & (times <= last)]) == {number}
        off = (times <= first - np.timedelta64(plan.gap, "h")) | (times >= last + np.timedelta64(plan.gap, "h"))
        assert LEAST <= off.mean() < (training.fold != number).mean()
        np.testing.assert_allclose(
            found.fold_weights[number], expected_map(training, off, choice), rtol=1e-3, atol=1e-5
        )


def test_the_candidate_of_least_held_out_error_is_chosen(memory):
    """Every candidate is fitted for each fold and scored on its windows, one by one."""
    _, training, choice = closed_form(memory)
    times, errors = origin_times(training, TABLE), {}
    folds = lay_folds(training.folds, times, training.series)
    weight, (z, f) = weights_of(training), design(training.values, training.position, training.unit, 32, WINDOW.horizon)
    spread = [
        max(training.values[row - 31 : row + 1].std(), FLOOR * unit) / unit
        for row, unit in zip(training.position, training.unit, strict=True)
    ]
    for penalty in (choice.penalty, 100.0):
        for prior in (choice.prior, "last value", "mean of 32"):
            one, squared = replace(choice, prior=prior, penalty=penalty), 0.0
            for number in range(folds.plan.num):
                mine = training.fold == number
                used = expected_map(training, folds.admitted(number, times, training.series, TABLE.step), one)
                error = (f[mine] - z[mine] @ used) * np.array(spread)[mine, None]
                squared += (weight[mine, None] * np.square(error)).sum()
            errors[prior, penalty] = squared / (len(training) * WINDOW.horizon)
    assert min(errors, key=errors.__getitem__) == (choice.prior, choice.penalty)
    assert errors[choice.prior, choice.penalty] == pytest.approx(choice.error, rel=1e-3)


def test_a_fit_for_a_block_has_not_seen_a_single_step_of_its_windows(memory):
    _, training, _ = closed_form(memory)
    times, plan = origin_times(training, TABLE), FoldPlan(kind="time", num=3, gap=WINDOW.length)
    folds = lay_folds(plan, times, training.series)

    def maps(values: np.ndarray) -> list[np.ndarray]:
        ones = np.ones(len(training))
        given = (values, training.position, training.unit, times, training.series, ones, folds, TABLE.step)
        rest, _, total = fold_equations(Windows(*given), 32, WINDOW.horizon, FLOOR)
        return [each.solve(0.1) for each in (*rest, total)]

    clean = maps(training.values)
    for number, (first, last) in enumerate(folds.bounds):
        begin = first - np.timedelta64(WINDOW.lookback - 1, "h")
        inside = (TABLE.times >= begin) & (TABLE.times <= last + np.timedelta64(WINDOW.horizon, "h"))
        garbage = with_values(TABLE, lambda series, inside=inside: np.where(inside, 9.0, series.values))
        spoiled = maps(flat_values(garbage)[0])
        np.testing.assert_allclose(spoiled[number], clean[number], rtol=1e-6, atol=1e-9)
        assert not np.allclose(spoiled[-1], clean[-1], rtol=1e-3)


def test_without_blocks_there_is_one_map(memory):
    found, training, choice = closed_form(memory, num_folds=1)
    assert training.fold is None
    assert found.fold_weights.shape[0] == 0
    assert choice.error is None


def test_a_part_too_short_for_blocks_is_not_refused(tmp_path):
    table = between(TABLE, 0, 80)
    short = memory_of(tmp_path, table, split=split_by_name("60/20/20", table.times))
    found, training, _ = closed_form(short, table, num_folds=None)
    assert len(training) == 3 * (48 - WINDOW.length + 1)
    assert np.isfinite(found.weight.numpy()).all()
    assert training.folds.kind in ("time", "none")


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
        monkeypatch.setattr(closed_form_module, "CHUNK", chunk)
        fit_closed_form(model, training, table, config)
        expected = np.quantile(changes, [1 / 6, 1 / 3, 1 / 2, 2 / 3, 5 / 6])
        np.testing.assert_allclose(model.thresholds, expected, rtol=1e-3, atol=1e-4)
