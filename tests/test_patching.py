"""Instance normalisation against float64, and patches against slices written out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from forecaster.config import ModelConfig
from forecaster.model.patching import PatchEmbedding, instance_norm, patches_of


def windows(*, level: float = 0.0, spread: float = 1.0, count: int = 6, lookback: int = 64) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return level + spread * torch.randn(count, lookback, generator=generator)


def test_location_and_spread_are_mean_and_standard_deviation() -> None:
    context = windows(level=5.0, spread=2.0)
    location, spread = instance_norm(context, torch.ones(6), floor=0.01)
    np.testing.assert_allclose(location, context.double().mean(dim=1), rtol=1e-6)
    np.testing.assert_allclose(spread, context.double().std(dim=1, correction=0), rtol=1e-6)


@given(
    level=st.sampled_from([0.0, 1.0, -1e3, 1e6, -1e6, 1e12]),
    spread=st.sampled_from([1e-12, 1e-3, 1.0, 1e4, 1e25]),
    lookback=st.integers(2, 200),
)
def test_large_levels_and_odd_units_cost_no_accuracy(level: float, spread: float, lookback: int) -> None:
    context = windows(level=level, spread=spread, lookback=lookback)
    exact = context.double()
    unit = torch.full((6,), spread)
    location, measured = instance_norm(context, unit, floor=1e-3)
    expected = exact.std(dim=1, correction=0).clamp(min=1e-3 * spread)
    np.testing.assert_allclose(measured, expected, rtol=1e-4)
    error = (location.double() - exact.mean(dim=1)).abs()
    assert (error <= 1e-6 * (abs(level) + 10 * spread)).all()


def test_a_constant_window_gets_the_floor_in_its_own_unit() -> None:
    context = torch.tensor([[7.0] * 16, [1e6] * 16])
    location, spread = instance_norm(context, torch.tensor([2.0, 50.0]), floor=0.1)
    assert torch.equal(location, context[:, 0])
    np.testing.assert_allclose(spread, [0.2, 5.0], rtol=1e-6)


def test_the_floor_changes_only_what_is_below_it() -> None:
    context = windows(spread=0.5)
    free = instance_norm(context, torch.ones(6), floor=1e-6)[1]
    assert torch.equal(instance_norm(context, torch.ones(6), floor=0.3)[1], free)
    assert torch.equal(instance_norm(context, torch.ones(6), floor=3.0)[1], torch.full((6,), 3.0))


def test_windows_are_normalised_each_by_itself() -> None:
    context, unit = windows(), torch.linspace(1, 2, 6)
    together = instance_norm(context, unit, floor=0.1)
    for b in range(6):
        alone = instance_norm(context[b : b + 1], unit[b : b + 1], floor=0.1)
        assert (together[0][b], together[1][b]) == (alone[0], alone[1])


@pytest.mark.parametrize(
    ("lookback", "patch_length", "stride"), [(512, 16, 8), (96, 16, 8), (20, 16, 8), (16, 16, 8), (37, 5, 7), (9, 4, 1)]
)
def test_patches_are_slices_of_the_window_with_its_last_value_repeated(
    lookback: int, patch_length: int, stride: int
) -> None:
    config = ModelConfig(lookback=lookback, horizon=4, patch_length=patch_length, patch_stride=stride)
    z = windows(lookback=lookback)
    patches = patches_of(z, patch_length, stride)
    assert patches.shape == (6, config.num_patches, patch_length)
    for p in range(config.num_patches):
        for step in range(patch_length):
            expected = z[:, min(p * stride + step, lookback - 1)]
            assert torch.equal(patches[:, p, step], expected)


def test_the_embedding_is_a_projection_plus_a_position() -> None:
    embedding = PatchEmbedding(96, 16, 8, 32, dropout=0.5).eval()
    z = windows(lookback=96)
    expected = patches_of(z, 16, 8) @ embedding.projection.weight.T + embedding.projection.bias + embedding.position
    torch.testing.assert_close(embedding(z), expected)
    assert embedding(z).shape == (6, 12, 32)
    assert not torch.equal(embedding.train()(z), expected)  # dropout


def test_a_shorter_window_is_refused() -> None:
    with pytest.raises(RuntimeError):
        PatchEmbedding(96, 16, 8, 32, dropout=0.0)(windows(lookback=64))


def test_every_parameter_of_the_embedding_learns() -> None:
    embedding = PatchEmbedding(96, 16, 8, 32, dropout=0.0)
    embedding(windows(lookback=96)).square().sum().backward()
    assert [name for name, parameter in embedding.named_parameters() if not parameter.grad.any()] == []
