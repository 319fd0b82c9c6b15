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
from forecaster.training.fit import fit_closed_form, run_record, windows_of
from forecaster.training.fit_gate import Quadratic, add_errors, fit_logits, horizon_steps, prior_shares
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
    fit_closed_form(model, training, TABLE, memory, config)
    return model


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
    prior, free = prior_shares([True, False], 2)
    torch.testing.assert_close(prior, torch.tensor([0.5, fit_gate.LEAST_SHARE, 0.25, 0.25], dtype=torch.float64))
    assert free.tolist() == [False, True, False, False]
    best = fit_logits(sums_of(errors, there), prior, free, HATS, 0.0)
    for seed in range(5):
        torch.manual_seed(seed)
        assert mse(errors, best) <= mse(errors, best + 0.05 * torch.randn_like(best)) + 1e-9
    held = fit_logits(sums_of(errors, there), prior, free, HATS, 0.05)
    bound = fit_logits(sums_of(errors, there), prior, free, HATS, 10.0)
    assert mse(errors, best) < mse(errors, held) < mse(errors, bound)
    shares = weights_of(bound)[[0, 2, 3]]
    torch.testing.assert_close(shares / shares.sum(dim=0), prior[[0, 2, 3], None].expand(3, HORIZON), atol=0.01, rtol=0)
    # The last value is held by nothing: its share is what the data say, however strong the penalty.
    assert abs(float(weights_of(bound)[1].mean()) - fit_gate.LEAST_SHARE) > 0.01


def test_windows_without_a_part_count_by_what_they_have():
    errors, there = some_errors(200, 4, seed=3), torch.ones(200, 4, dtype=torch.bool)
    there[::3, 2] = False
    there[::7, 2:] = False
    sums = sums_of(torch.where(there[..., None], errors, 0.0), there)
    assert sorted(each.num for each in sums) == sorted(np.unique(there.numpy(), axis=0, return_counts=True)[1])
    prior, free = prior_shares([True, False], 2)
    best = fit_logits(sums, prior, free, HATS, 0.0)

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
        ({}, True),
        (WITHOUT_NETWORK, True),
        ({"use_gram": False}, True),
        ({**WITHOUT_NETWORK, "use_shortcut": False}, True),
        ({"use_shortcut": False}, False),
    ],
    ids=["network", "no network", "no memory", "memory alone", "network is the whole forecast"],
)
def test_where_the_network_is_the_whole_forecast_the_gate_is_trained_with_it(memory, tmp_path, changed, is_fitted):
    training = training_of(memory, tmp_path, **changed)
    gate = fitted(memory, training, **changed).value_gate
    assert gate.logits.requires_grad != is_fitted
    assert bool(gate.logits.any()) == is_fitted


def test_where_every_mix_is_right_the_prior_stays():
    prior, free = prior_shares([True, False], 2)
    nothing = Quadratic(torch.ones(4, dtype=torch.bool), torch.zeros(HORIZON, 4, 4, dtype=torch.float64), 5)
    logits = fit_logits([nothing], prior, free, HATS, 0.01)
    torch.testing.assert_close(weights_of(logits)[:, 0], prior / prior.sum())


def test_long_horizons_are_looked_at_in_steps():
    assert horizon_steps(24).tolist() == list(range(24))
    steps = horizon_steps(720)
    assert (len(steps), steps[0], steps[-1]) == (fit_gate.NUM_STEPS, 0, 719)
    assert cut(np.arange(720), np.array([0]), 720)[:, steps].shape == (1, fit_gate.NUM_STEPS)
