"""The value gate in closed form: it minimises what it says, takes windows with any parts, and looks at nothing else."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from forecaster_fixtures import SPLIT, TABLE, WITHOUT_NETWORK, config_of, memory_of
from memory_fixtures import with_values

from forecaster.model.model import ForecastModel
from forecaster.model.value_gate import hat_functions
from forecaster.retrieval.batches import CachedWindows
from forecaster.training import fit_gate
from forecaster.training.closed_form import fit_closed_form
from forecaster.training.fit import run_record
from forecaster.training.fit_gate import (
    MEMORY,
    MIX,
    Evidence,
    GateSetting,
    Quadratic,
    add_errors,
    best_of,
    choose_gate,
    fit_logits,
    held_by,
    horizon_steps,
    prior_shares,
)
from forecaster.training.windows import windows_of
from memory_index.windows import cut

HORIZON, KNOTS = 12, 3
HATS = hat_functions(KNOTS, HORIZON).double()


@pytest.fixture(scope="module")
def memory(tmp_path_factory):
    return memory_of(tmp_path_factory.mktemp("fit-gate"))


def training_of(memory, folder, **changed) -> CachedWindows:
    config = config_of(**changed)
    record = run_record(TABLE, memory, "m@1", config, None, "cpu")
    return windows_of(TABLE, memory, config, record, "train", folder)


def fitted(memory, training, **changed):
    config = config_of(use_llm=False, **changed) if "use_llm" not in changed else config_of(**changed)
    model = ForecastModel(config.model, num_spaces=len(memory.manifest.spaces), backbone=None)
    fit_closed_form(model, training, TABLE, config)
    return model


PARTS = ("linear", "last_value", "own-96", "own-168")


def prior_and_held(penalty: float, *, hold_last: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    return prior_shares(PARTS, 2), held_by(GateSetting(penalty=penalty, hold_last=hold_last), PARTS)


def some_errors(num: int, parts: int, seed: int = 0) -> torch.Tensor:
    drawn = np.random.default_rng(seed)
    scale = drawn.uniform(0.5, 2.0, (1, parts, 1))
    return torch.from_numpy(drawn.normal(size=(num, 1, HORIZON)) + scale * drawn.normal(size=(num, parts, HORIZON)))


def weights_of(logits: torch.Tensor) -> torch.Tensor:
    return torch.softmax(logits @ HATS, dim=0)  # [P, H]


def sums_of(errors: torch.Tensor, there: torch.Tensor) -> list[Quadratic]:
    sums: dict[bytes, Quadratic] = {}
    for part in range(0, len(errors), 7):
        add_errors(errors[part : part + 7], there[part : part + 7], sums)
    return list(sums.values())


def mse(errors: torch.Tensor, logits: torch.Tensor) -> float:
    return float((weights_of(logits) * errors).sum(dim=1).square().mean())


def test_the_matrices_are_the_error_of_every_mix():
    errors = some_errors(50, 4)
    there = torch.ones(50, 4, dtype=torch.bool)
    (found,) = sums_of(errors, there)
    logits = torch.randn(4, KNOTS, dtype=torch.float64)
    weights = weights_of(logits).T[..., None]
    by_matrix = float((found.matrix @ weights * weights).sum(dim=1).mean()) / found.num
    assert by_matrix == pytest.approx(mse(errors, logits))


def test_without_a_penalty_it_is_the_least_error_and_with_one_it_stays_near_the_prior():
    errors, there = some_errors(400, 4), torch.ones(400, 4, dtype=torch.bool)
    prior = prior_shares(PARTS, 2)
    torch.testing.assert_close(prior, torch.tensor([0.5, fit_gate.LEAST_SHARE, 0.25, 0.25], dtype=torch.float64))

    def fitted_with(penalty: float, *, hold_last: bool = False) -> torch.Tensor:
        return fit_logits(sums_of(errors, there), *prior_and_held(penalty, hold_last=hold_last), HATS)

    best, held, bound = fitted_with(0.0), fitted_with(0.05), fitted_with(10.0)
    for seed in range(5):
        torch.manual_seed(seed)
        assert mse(errors, best) <= mse(errors, best + 0.05 * torch.randn_like(best)) + 1e-9
    assert mse(errors, best) < mse(errors, held) < mse(errors, bound)
    shares = weights_of(bound)[[0, 2, 3]]
    torch.testing.assert_close(shares / shares.sum(dim=0), prior[[0, 2, 3], None].expand(3, HORIZON), atol=0.01, rtol=0)
    # The last value is held like the others, or by nothing: then its share is what the data say.
    assert abs(float(weights_of(bound)[1].mean()) - fit_gate.LEAST_SHARE) > 0.01
    everything = weights_of(fitted_with(10.0, hold_last=True))
    torch.testing.assert_close(everything, (prior / prior.sum())[:, None].expand(4, HORIZON), atol=0.01, rtol=0)


def test_windows_without_a_part_count_by_what_they_have():
    errors, there = some_errors(200, 4, seed=3), torch.ones(200, 4, dtype=torch.bool)
    there[::3, 2] = False
    there[::7, 2:] = False
    sums = sums_of(torch.where(there[..., None], errors, 0.0), there)
    assert sorted(each.num for each in sums) == sorted(np.unique(there.numpy(), axis=0, return_counts=True)[1])
    best = fit_logits(sums, *prior_and_held(0.0), HATS)

    def error(logits: torch.Tensor) -> float:
        masked = (logits @ HATS)[None].masked_fill(~there[..., None], -torch.inf)
        return float((torch.softmax(masked, dim=1) * errors).sum(dim=1).square().mean())

    for seed in range(5):
        torch.manual_seed(seed)
        assert error(best) <= error(best + 0.05 * torch.randn_like(best)) + 1e-9


def test_a_model_has_the_gate_of_least_error_on_its_training_windows(memory, tmp_path):
    training = training_of(memory, tmp_path, **WITHOUT_NETWORK, gate_shrinkage=0.0)
    model = fitted(memory, training, **WITHOUT_NETWORK, gate_shrinkage=0.0)
    batch = training.batch(np.arange(len(training)))

    def error() -> float:
        with torch.no_grad():
            found = model(batch.context, batch.neighbours, unit=batch.unit, fold=batch.fold)
        return float(((found.forecast - batch.future) / batch.unit[:, None]).square().mean())

    best, logits = error(), model.value_gate.logits.clone()
    assert not model.value_gate.logits.requires_grad
    for seed in range(5):
        torch.manual_seed(seed)
        with torch.no_grad():
            model.value_gate.logits.copy_(logits + 0.1 * torch.randn_like(logits))
        assert best <= error() + 1e-7


@pytest.mark.parametrize("chunk", [13, 100_000])
def test_how_many_windows_are_read_at_once_changes_nothing(memory, tmp_path, monkeypatch, chunk):
    training = training_of(memory, tmp_path, **WITHOUT_NETWORK)
    expected = fitted(memory, training, **WITHOUT_NETWORK).value_gate.logits
    monkeypatch.setattr(fit_gate, "CHUNK", chunk)
    torch.testing.assert_close(
        fitted(memory, training, **WITHOUT_NETWORK).value_gate.logits, expected, atol=2e-3, rtol=1e-3
    )


def test_nothing_after_the_training_part_is_read(memory, tmp_path):
    training = training_of(memory, tmp_path, **WITHOUT_NETWORK)
    until = np.datetime64(SPLIT.train_until, "ns")
    poisoned = with_values(TABLE, lambda series: np.where(series.times > until, np.nan, series.values))
    values = np.concatenate([series.values for series in poisoned.series]).astype(np.float32)
    spoiled = replace(training, values=values)
    expected = fitted(memory, training, **WITHOUT_NETWORK).value_gate.logits
    assert torch.equal(fitted(memory, spoiled, **WITHOUT_NETWORK).value_gate.logits, expected)


@pytest.mark.parametrize(
    ("changed", "is_fitted"),
    [
        ({}, False),
        (WITHOUT_NETWORK, True),
        ({**WITHOUT_NETWORK, "use_gram": False}, True),
        ({**WITHOUT_NETWORK, "use_shortcut": False}, True),
        ({"gram_form": "design"}, False),
    ],
    ids=["network", "no network", "no memory", "memory alone", "network is the whole forecast"],
)
def test_the_gate_waits_for_networks_and_no_gradient_ever_trains_it(memory, tmp_path, changed, is_fitted):
    training = training_of(memory, tmp_path, **changed)
    gate = fitted(memory, training, **changed).value_gate
    assert not gate.logits.requires_grad
    assert bool(gate.logits.any()) == is_fitted


def test_where_every_mix_is_right_the_prior_stays():
    prior, held = prior_and_held(0.01)
    nothing = Quadratic(torch.ones(4, dtype=torch.bool), torch.zeros(HORIZON, 4, 4, dtype=torch.float64), 5)
    logits = fit_logits([nothing], prior, held, HATS)
    torch.testing.assert_close(weights_of(logits)[:, 0], prior / prior.sum())


def test_long_horizons_are_looked_at_in_steps():
    assert horizon_steps(24).tolist() == list(range(24))
    steps = horizon_steps(720)
    assert (len(steps), steps[0], steps[-1]) == (fit_gate.NUM_STEPS, 0, 719)
    assert cut(np.arange(720), np.array([0]), 720)[:, steps].shape == (1, fit_gate.NUM_STEPS)


# What is chosen


def evidence_of(sizes: list[float], folds: int = 4, num: int = 300, seed: int = 0) -> Evidence:
    """Folds of independent errors of these sizes."""
    drawn = np.random.default_rng(seed)
    found = []
    for _ in range(folds):
        errors = torch.from_numpy(drawn.normal(size=(num, 4, HORIZON)) * np.array(sizes)[:, None])
        found.append(tuple(sums_of(errors, torch.ones(num, 4, dtype=torch.bool))))
    return Evidence(names=PARTS, steps=np.arange(HORIZON), folds=tuple(found))


def test_parts_that_err_apart_are_mixed():
    logits, found = choose_gate(evidence_of([1.0, 3.0, 1.0, 1.0]), 2, HATS, HORIZON)
    assert found.kept == MIX
    assert found.errors[MIX] < min(error for name, error in found.errors.items() if name != MIX)
    assert found.shares["last_value"] < 0.2
    torch.testing.assert_close(weights_of(logits).mean(dim=1).tolist(), list(found.shares.values()))


@pytest.mark.parametrize(("part", "better"), [("last_value", [1]), ("linear", [0]), ("own", [2, 3]), (MEMORY, [2, 3])])
def test_a_part_that_beats_the_mix_beyond_doubt_is_kept_in_its_place(part, better):
    """Its error is part of all others', so no mix is better than it alone."""
    drawn, folds = np.random.default_rng(0), []
    for _ in range(4):
        common = drawn.normal(size=(200, 1, HORIZON))
        errors = common + 2 * np.abs(drawn.normal(size=(200, 4, 1))) * np.sign(common) * np.ones((1, 4, HORIZON))
        errors[:, better] = common
        folds.append(tuple(sums_of(torch.from_numpy(errors), torch.ones(200, 4, dtype=torch.bool))))
    logits, found = choose_gate(
        Evidence(names=PARTS, steps=np.arange(HORIZON), folds=tuple(folds)), 2, HATS, HORIZON, penalty=3.0
    )
    assert found.kept in {part, *(("own", MEMORY) if better == [2, 3] else ())}
    shares = weights_of(logits)
    torch.testing.assert_close(shares[better].sum(dim=0), torch.ones(HORIZON, dtype=torch.float64))
    # A window that does not have it falls back on the linear map, or on what else there is.
    rest = [number for number in range(4) if number not in better]
    left = torch.softmax((logits @ HATS)[rest], dim=0)
    if 0 in rest:
        torch.testing.assert_close(left[rest.index(0)], torch.ones(HORIZON, dtype=torch.float64))


def test_a_difference_within_its_error_does_not_change_the_mix():
    num = np.full(5, 100.0)
    mixed = np.array([1.0, 1.2, 0.9, 1.1, 1.0])
    assert best_of({MIX: mixed, "linear": mixed - np.array([0.3, -0.3, 0.2, -0.2, 0.01])}, num) == MIX
    assert best_of({MIX: mixed, "linear": mixed - 0.05, "own": mixed - 0.01}, num) == "linear"
    assert best_of({MIX: mixed, "linear": mixed + 0.05}, num) == MIX


def test_windows_that_asked_with_less_of_a_memory_put_no_part_in_the_place_of_the_mix():
    """However bad they make the memory look, it keeps some weight; the more they say, the more."""
    evidence = evidence_of([0.5, 3.0, 4.0, 4.0])
    assert choose_gate(evidence, 2, HATS, HORIZON)[1].shares["own-96"] < 0.02
    _, found = choose_gate(evidence, 2, HATS, HORIZON, made_do=True)
    assert (found.kept, found.setting) == (MIX, GateSetting(penalty=fit_gate.MADE_DO, hold_last=True))
    assert 0.02 < found.shares["own-96"] < 0.25  # its share before anything was fitted


def test_where_nothing_is_held_out_the_prior_stays_unless_a_penalty_is_stated():
    one_fold = evidence_of([1.0, 3.0, 1.0, 1.0], folds=1)
    logits, found = choose_gate(one_fold, 2, HATS, HORIZON)
    prior = prior_shares(PARTS, 2)
    torch.testing.assert_close(weights_of(logits)[:, 0], prior / prior.sum())
    assert (found.errors, found.setting) == ({}, None)
    stated, _ = choose_gate(one_fold, 2, HATS, HORIZON, penalty=0.01)
    assert not torch.allclose(weights_of(stated), weights_of(logits), atol=0.01)


# Networks as a part


WITH_NETWORK = ("linear", "last_value", "network", "own-12", "joint-12")


def evidence_with_network(share: float, folds: int = 4, seed: int = 0) -> Evidence:
    """Parts that err as one, and a network whose errors have `share` of theirs and else its own, as large."""
    drawn, found = np.random.default_rng(seed), []
    for _ in range(folds):
        common = drawn.normal(size=(300, 1, HORIZON))
        errors = common + 0.3 * drawn.normal(size=(300, 5, HORIZON))
        own = drawn.normal(size=(300, HORIZON))
        errors[:, 2] = share * errors[:, 2] + (1 - share) * own if share <= 1 else share * errors[:, 2]
        found.append(tuple(sums_of(torch.from_numpy(errors), torch.ones(300, 5, dtype=torch.bool))))
    return Evidence(names=WITH_NETWORK, steps=np.arange(HORIZON), folds=tuple(found))


def test_networks_that_err_apart_are_a_part_and_it_is_told_why():
    logits, found = choose_gate(evidence_with_network(0.2), 3, HATS, HORIZON)
    verdict = found.network
    assert verdict.kept
    assert verdict.gain > verdict.doubt
    assert verdict.with_network < min(verdict.without, verdict.alone)
    assert found.shares["network"] > 0.3
    torch.testing.assert_close(weights_of(logits).mean(dim=1).tolist(), list(found.shares.values()))


def test_networks_that_add_nothing_leave_the_mix_as_it_is_without_them():
    evidence = evidence_with_network(1.5)
    logits, found = choose_gate(evidence, 3, HATS, HORIZON)
    alone, without = choose_gate(evidence.without("network"), 2, HATS, HORIZON)
    assert not found.network.kept
    assert found.shares == {**without.shares, "network": 0.0}
    weights = weights_of(logits)
    assert weights[2].max() < 1e-12
    torch.testing.assert_close(weights[[0, 1, 3, 4]], weights_of(alone))
    assert (found.kept, found.setting, found.errors) == (without.kept, without.setting, without.errors)


def test_where_nothing_is_held_out_networks_are_not_judged():
    _, found = choose_gate(evidence_with_network(0.2, folds=1), 3, HATS, HORIZON)
    assert found.network is None
