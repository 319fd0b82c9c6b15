"""The gate in the space of values: smooth weights that sum to one over the parts that a window has."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from forecaster.model.value_gate import ValueGate, hat_functions, mix

NUM, BASES, SPACES, HORIZON = 6, 2, 3, 10


def make_gate(num_knots: int = 4) -> ValueGate:
    gate = ValueGate(BASES, SPACES, HORIZON, num_knots).requires_grad_(True)
    torch.nn.init.normal_(gate.logits, generator=torch.Generator().manual_seed(0))
    return gate


def inputs() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    found = torch.tensor([[1, 1, 1], [0, 1, 1], [1, 0, 0], [0, 0, 0], [0, 0, 1], [1, 1, 0]], dtype=torch.bool)
    return {
        "bases": torch.randn(NUM, BASES, HORIZON, generator=generator),
        "memory": torch.randn(NUM, SPACES, HORIZON, generator=generator),
        "found": found,
    }


@pytest.mark.parametrize(("num_knots", "horizon"), [(2, 7), (4, 10), (9, 96), (5, 5), (9, 720)])
def test_hats_interpolate_between_knots(num_knots, horizon):
    at_knots = np.random.default_rng(0).normal(size=num_knots)
    course = at_knots @ hat_functions(num_knots, horizon).double().numpy()
    place = np.linspace(0, num_knots - 1, horizon)
    np.testing.assert_allclose(course, np.interp(place, np.arange(num_knots), at_knots), atol=2e-4)
    assert course[0] == pytest.approx(at_knots[0])
    assert course[-1] == pytest.approx(at_knots[-1])


@pytest.mark.parametrize(("num_knots", "horizon"), [(1, 6), (1, 1), (3, 1)])
def test_one_knot_or_one_step_is_constant(num_knots, horizon):
    hats = hat_functions(num_knots, horizon)
    assert hats.shape == (num_knots, horizon)
    assert hats[0].tolist() == [1.0] * horizon
    assert not hats[1:].any()


def test_a_short_horizon_has_no_more_knots_than_steps():
    assert ValueGate(1, 2, 3).logits.shape == (3, 3)
    assert ValueGate(1, 2, 1).logits.shape == (3, 1)


def test_every_part_counts_the_same_at_first():
    given = inputs()
    weights = ValueGate(BASES, SPACES, HORIZON)(**given).weights
    for row, found in zip(weights, given["found"], strict=True):
        share = 1 / (BASES + int(found.sum()))
        expected = torch.cat([torch.full((BASES,), share), found * share])
        torch.testing.assert_close(row, expected[:, None].expand(-1, HORIZON))


def test_softmax_over_the_parts_that_are_there_written_out():
    gate, given = make_gate(), inputs()
    made = gate(**given)
    logits, hats = gate.logits.detach().double().numpy(), hat_functions(4, HORIZON).double().numpy()
    bases, memory = (given[name].double().numpy() for name in ("bases", "memory"))
    for b, h in np.ndindex(NUM, HORIZON):
        parts = [*range(BASES), *(BASES + v for v in range(SPACES) if given["found"][b, v])]
        raw = {p: np.exp(sum(logits[p, j] * hats[j, h] for j in range(4))) for p in parts}
        weight = {p: raw[p] / sum(raw.values()) for p in parts}
        of_bases = sum(weight[p] for p in range(BASES))
        model_part = sum(weight[p] * bases[b, p, h] for p in range(BASES)) / of_bases
        of_memory = sum(weight[p] * memory[b, p - BASES, h] for p in parts if p >= BASES)
        assert made.gate[b, h].item() == pytest.approx(of_bases, abs=1e-6)
        assert made.model_part[b, h].item() == pytest.approx(model_part, abs=1e-5)
        assert made.forecast[b, h].item() == pytest.approx(of_bases * model_part + of_memory, abs=1e-5)
        if len(parts) > BASES:
            assert made.memory_part[b, h].item() == pytest.approx(of_memory / (1 - of_bases), abs=1e-4)
        for p in range(BASES + SPACES):
            assert made.weights[b, p, h].item() == pytest.approx(weight.get(p, 0), abs=1e-6)


def test_weights_sum_to_one_and_the_parts_make_the_forecast():
    made = make_gate()(**inputs())
    torch.testing.assert_close(made.weights.sum(dim=1), torch.ones(NUM, HORIZON))
    torch.testing.assert_close(made.forecast, made.gate * made.model_part + (1 - made.gate) * made.memory_part)
    assert ((made.gate >= 0) & (made.gate <= 1)).all()


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -1e30])
def test_what_is_not_found_does_not_matter_to_value_or_gradient(value):
    given = inputs()
    spoiled = given | {"memory": given["memory"].masked_fill(~given["found"][..., None], value)}
    gradients = []
    for each in (given, spoiled):
        gate = make_gate()
        made = gate(**each)
        made.forecast.square().sum().backward()
        gradients.append(gate.logits.grad)
        assert torch.equal(made.forecast[3], made.model_part[3])  # the window that has no neighbour at all
        assert made.gate[3].tolist() == [1.0] * HORIZON
    assert torch.isfinite(gradients[0]).all()
    assert torch.equal(*gradients)
    for ours, theirs in zip(make_gate()(**given), make_gate()(**spoiled), strict=True):
        assert torch.equal(ours, theirs)


def test_no_key_space_at_all():
    given = inputs() | {"memory": torch.zeros(NUM, 0, HORIZON), "found": torch.zeros(NUM, 0, dtype=torch.bool)}
    made = ValueGate(BASES, 0, HORIZON)(**given)
    torch.testing.assert_close(made.forecast, given["bases"].mean(dim=1))
    assert (made.gate == 1).all()


@pytest.mark.parametrize("strength", [50.0, 500.0])
def test_the_memory_may_take_everything(strength):
    gate, given = make_gate(), inputs()
    with torch.no_grad():
        gate.logits[BASES] += strength
    made = gate(**given)
    made.forecast.sum().backward()
    has_first = given["found"][:, 0]
    torch.testing.assert_close(made.forecast[has_first], given["memory"][has_first, 0])
    assert all(torch.isfinite(part).all() for part in made)
    assert torch.isfinite(gate.logits.grad).all()


def test_weights_are_exact_under_autocast():
    gate, given = make_gate(), inputs()
    with torch.autocast("cpu", torch.bfloat16):
        made = gate(**given)
    assert torch.equal(made.weights, gate(**given).weights)


def test_mix_by_hand():
    made = mix(
        bases=torch.tensor([[[1.0], [3.0]]]),
        memory=torch.tensor([[[10.0]]]),
        found=torch.tensor([[True]]),
        weights=torch.tensor([[[0.2], [0.6], [0.2]]]),
    )
    assert made.gate.item() == pytest.approx(0.8)
    assert made.model_part.item() == pytest.approx((0.2 + 1.8) / 0.8)
    assert made.memory_part.item() == pytest.approx(10)
    assert made.forecast.item() == pytest.approx(0.8 * 2.5 + 0.2 * 10)
