"""GRA-M's feature-space gating: the formula written out, neighbours as a set, and slots that hold nothing."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from forecaster.model.gram import AdaptiveKnowledgeGating, RetrievalAugmentedPrompt, match_weights
from forecaster.model.types import GatingOutput, NeighbourTensors

B, P, K, L, H, D = 6, 4, 5, 24, 8, 16


def gating(dropout: float = 0.0) -> AdaptiveKnowledgeGating:
    torch.manual_seed(0)
    return AdaptiveKnowledgeGating(L, H, D, d_repr=2 * D, dropout=dropout)


def patches() -> Tensor:
    return torch.randn(B, P, D, generator=torch.Generator().manual_seed(1))


def neighbours(valid: Tensor | None = None) -> NeighbourTensors:
    """All slots hold a neighbour, but for those that `valid` says do not."""
    generator = torch.Generator().manual_seed(2)
    valid = torch.ones(B, K, dtype=torch.bool) if valid is None else valid
    raw = torch.rand(B, K, generator=generator).masked_fill(~valid, 0)
    return NeighbourTensors(
        forecasts=torch.randn(B, 2, H, generator=generator),
        found=torch.ones(B, 2, dtype=torch.bool),
        contexts=torch.randn(B, K, L, generator=generator),
        futures=torch.randn(B, K, H, generator=generator),
        similarity=raw / raw.sum(dim=1, keepdim=True).clamp(min=1e-9),
        valid=valid,
    )


def filled(batch: NeighbourTensors, value: float) -> NeighbourTensors:
    """The same with every unused slot full of one value."""
    slots = {name: getattr(batch, name).clone() for name in ("contexts", "futures", "similarity")}
    for slot in slots.values():
        slot[~batch.valid] = value
    return replace(batch, **slots)


def some_valid() -> Tensor:
    """From no neighbour at all in the first window to a full row, with gaps."""
    valid = torch.zeros(B, K, dtype=torch.bool)
    for b in range(1, B):
        valid[b, torch.randperm(K, generator=torch.Generator().manual_seed(b))[:b]] = True
    return valid


def assert_same(left: tuple[Tensor, GatingOutput], right: tuple[Tensor, GatingOutput], **tolerance: float) -> None:
    for a, b in zip((left[0], *left[1]), (right[0], *right[1]), strict=True):
        torch.testing.assert_close(a, b, **(tolerance or {"rtol": 0, "atol": 0}))


# The formula


def test_gating_follows_the_formula_one_neighbour_at_a_time() -> None:
    module, x, retrieved = gating(), patches(), neighbours()
    enhanced, output = module(x, retrieved)
    for b in range(B):
        current = module.current(x[b].mean(dim=0))
        encoded = [module.retrieved(torch.cat([retrieved.contexts[b, k], retrieved.futures[b, k]])) for k in range(K)]
        match = [torch.sigmoid(module.match(torch.cat([current, encoded[k]])))[0] for k in range(K)]
        product = [retrieved.similarity[b, k] * match[k] for k in range(K)]
        ref = sum(product[k] / sum(product) * encoded[k] for k in range(K))
        gate = torch.sigmoid(module.gate(torch.cat([current, ref])))[0]
        fused = gate * current + (1 - gate) * ref
        torch.testing.assert_close(output.match[b], torch.stack(match))
        torch.testing.assert_close(output.weights[b], torch.stack(product) / sum(product))
        torch.testing.assert_close(output.confidence[b], sum(product))
        torch.testing.assert_close(output.gate[b], gate)
        torch.testing.assert_close(output.context[b], fused)
        torch.testing.assert_close(enhanced[b], x[b] + module.enhancement(fused))
    assert 0.2 < output.gate.min() < output.gate.max() < 0.8  # nobody has decided anything yet


def test_shapes_and_ranges() -> None:
    enhanced, output = gating()(patches(), neighbours(some_valid()))
    assert [part.shape for part in (enhanced, *output)] == [(B, P, D), (B, D), (B,), (B, K), (B, K), (B,)]
    for part in (output.gate, output.match, output.confidence):
        assert (part >= 0).all()
        assert (part <= 1).all()


def test_match_weights_by_hand() -> None:
    similarity = torch.tensor([[0.5, 0.3, 0.2], [0.0, 0.0, 0.0], [0.5, 0.5, 0.0]])
    match = torch.tensor([[0.2, 1.0, 0.0], [0.5, 0.5, 0.5], [0.0, 0.0, 1.0]])
    weights, confidence = match_weights(similarity, match)
    np.testing.assert_allclose(weights, [[0.25, 0.75, 0], [0, 0, 0], [0, 0, 0]], rtol=1e-6)
    np.testing.assert_allclose(confidence, [0.4, 0, 0], rtol=1e-6)


def test_patches_start_out_nearly_as_they_came() -> None:
    enhanced, _ = gating()(patches(), neighbours())
    assert 0 < (enhanced - patches()).abs().max() < 0.1


def test_every_patch_is_told_the_same() -> None:
    added = gating()(patches(), neighbours())[0] - patches()
    torch.testing.assert_close(added, added[:, :1].expand_as(added), rtol=0, atol=1e-6)


# Neighbours matter


def test_a_late_change_of_one_future_changes_everything() -> None:
    module, before = gating(), neighbours()
    futures = before.futures.clone()
    futures[2, 3, -1] += 3  # one neighbour, its last step
    then, now = module(patches(), before), module(patches(), replace(before, futures=futures))
    changed = [
        (a - b).abs().reshape(B, -1).amax(dim=1) for a, b in zip((then[0], *then[1]), (now[0], *now[1]), strict=True)
    ]
    for part in changed:
        assert part[2] > 1e-6
        assert (part[[0, 1, 3, 4, 5]] == 0).all()


def test_similarity_matters() -> None:
    before = neighbours()
    after = gating()(patches(), replace(before, similarity=before.similarity.flip(1)))
    assert (after[1].context - gating()(patches(), before)[1].context).abs().max() > 1e-4


def test_every_parameter_learns_from_the_first_step() -> None:
    module = gating()
    enhanced, output = module(patches(), neighbours(some_valid()))
    (enhanced.square().mean() + output.context.square().mean()).backward()
    assert without_gradient(module) == []
    module.zero_grad()
    module(patches(), neighbours())[0].square().mean().backward()  # through the patches alone
    assert without_gradient(module) == []


# Neighbours are a set, and empty slots are empty


@given(order=st.permutations(range(K)), gaps=st.booleans())
def test_the_order_of_neighbours_does_not_matter(order: list[int], gaps: bool) -> None:
    module, batch = gating(), neighbours(some_valid() if gaps else None)
    slots = ("contexts", "futures", "similarity", "valid")
    shuffled = replace(batch, **{name: getattr(batch, name)[:, order] for name in slots})
    enhanced, output = module(patches(), shuffled)
    back = torch.tensor(order).argsort()
    unshuffled = output._replace(match=output.match[:, back], weights=output.weights[:, back])
    assert_same((enhanced, unshuffled), module(patches(), batch), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1e30, 7.0])
def test_what_an_unused_slot_holds_does_not_matter(value: float) -> None:
    module, batch = gating(), neighbours(some_valid())
    assert_same(module(patches(), filled(batch, value)), module(patches(), filled(batch, 0.0)))


def test_unused_slots_are_as_if_they_were_not_there() -> None:
    valid = torch.zeros(B, K, dtype=torch.bool)
    valid[:, :2] = True
    batch = neighbours(valid)
    fewer = replace(
        batch, **{name: getattr(batch, name)[:, :2] for name in ("contexts", "futures", "similarity", "valid")}
    )
    enhanced, output = gating()(patches(), fewer)
    match, weights = (nn.functional.pad(part, (0, K - 2)) for part in (output.match, output.weights))
    padded = output._replace(match=match, weights=weights)
    assert_same(gating()(patches(), filled(batch, float("nan"))), (enhanced, padded), rtol=1e-5, atol=1e-6)


def test_unused_slots_leave_no_nan_in_gradients() -> None:
    found = {}
    for value in (float("nan"), 0.0):
        module, x = gating(), patches().requires_grad_()
        enhanced, output = module(x, filled(neighbours(some_valid()), value))
        (enhanced.square().sum() + sum(part.square().sum() for part in output)).backward()
        found[value] = [x.grad, *(parameter.grad for parameter in module.parameters())]
    for with_nan, with_zero in zip(*found.values(), strict=True):
        assert with_nan.isfinite().all()
        assert torch.equal(with_nan, with_zero)


@pytest.mark.parametrize("num_slots", [K, 0])
def test_without_neighbours_the_model_relies_on_itself(num_slots: int) -> None:
    module, nothing = gating(), torch.zeros(B, K, dtype=torch.bool)
    batch = filled(neighbours(nothing), float("nan"))
    batch = replace(
        batch, **{name: getattr(batch, name)[:, :num_slots] for name in ("contexts", "futures", "similarity", "valid")}
    )
    enhanced, output = module(patches(), batch)
    current = module.current(patches().mean(dim=1))
    assert torch.equal(output.gate, torch.ones(B))
    assert torch.equal(output.context, current)
    assert torch.equal(output.confidence, torch.zeros(B))
    assert torch.equal(output.match, torch.zeros(B, num_slots))
    assert torch.equal(output.weights, torch.zeros(B, num_slots))
    assert torch.equal(enhanced, patches() + module.enhancement(current)[:, None])


def test_a_window_without_neighbours_does_not_notice_the_others() -> None:
    alone, among = torch.zeros(B, K, dtype=torch.bool), torch.ones(B, K, dtype=torch.bool)
    among[0] = False
    left, right = gating()(patches(), neighbours(alone)), gating()(patches(), neighbours(among))
    torch.testing.assert_close(left[0][0], right[0][0])
    assert right[1].gate[0] == 1
    assert (right[1].gate[1:] < 1).all()


def test_neighbours_that_match_nothing_say_nothing() -> None:
    module = gating()
    with torch.no_grad():
        module.match[-1].bias.fill_(-200)  # a match that underflows to 0
    enhanced, output = module(patches(), neighbours())
    assert output.confidence.max() < 1e-30
    assert all(part.isfinite().all() for part in (enhanced, *output))
    enhanced.sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in module.parameters())


def test_only_the_records_that_it_names_are_read() -> None:
    batch = neighbours()
    other = replace(batch, forecasts=torch.full_like(batch.forecasts, torch.nan), found=~batch.found)
    assert {field.name for field in fields(batch)} > {"forecasts", "found"}
    assert_same(gating()(patches(), other), gating()(patches(), batch))


def test_half_precision_keeps_the_gate_exact() -> None:
    valid = some_valid()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        enhanced, output = gating()(patches(), neighbours(valid))
    assert {part.dtype for part in (enhanced, *output)} == {torch.float32}
    assert output.gate[0] == 1
    assert_same((enhanced, output), gating()(patches(), neighbours(valid)), rtol=0.05, atol=0.02)


# The token


@pytest.mark.parametrize("num_tokens", [1, 3])
def test_the_token_follows_the_formula(num_tokens: int) -> None:
    torch.manual_seed(0)
    prompt = RetrievalAugmentedPrompt(D, 32, num_tokens)
    context, confidence = torch.randn(B, D), torch.rand(B)
    tokens = prompt(context, confidence)
    assert tokens.shape == (B, num_tokens, 32)
    for b in range(B):
        read = torch.cat([confidence[b] * context[b], confidence[b : b + 1]])
        torch.testing.assert_close(tokens[b].flatten(), prompt.projection(read))


def test_nothing_found_is_always_said_in_the_same_way() -> None:
    prompt = RetrievalAugmentedPrompt(D, 32)
    tokens = prompt(torch.randn(B, D), torch.zeros(B))
    assert torch.equal(tokens, tokens[:1].expand_as(tokens))
    found = prompt(torch.randn(B, D), torch.ones(B))
    assert (found - tokens).abs().amax(dim=(1, 2)).min() > 0.01


def test_the_token_teaches_the_gating() -> None:
    module, prompt = gating(), RetrievalAugmentedPrompt(D, 32)
    _, output = module(patches(), neighbours())
    prompt(output.context, output.confidence).square().mean().backward()
    assert without_gradient(prompt) == []
    assert [name for name in without_gradient(module) if not name.startswith("enhancement")] == []


def without_gradient(module: nn.Module) -> list[str]:
    return [name for name, parameter in module.named_parameters() if parameter.grad is None or not parameter.grad.any()]
