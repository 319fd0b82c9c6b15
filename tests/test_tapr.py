"""TAPR: what the scales keep, what reaches the forecast, and labels computed by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from forecaster.errors import ConfigError
from forecaster.model.tapr import (
    CoarseToFineHead,
    MultiScaleDecomposition,
    Tapr,
    TrendResidual,
    fit_thresholds,
    labels,
    largest_num_scales,
    moving_average,
    trend_change,
)

UP, FLAT, DOWN = range(3)
STRONG_UP, WEAK_UP, WEAK_DOWN, STRONG_DOWN = range(4)
B, D, H = 5, 16, 7


def patches(num_patches: int = 64) -> Tensor:
    return torch.randn(B, num_patches, D, generator=torch.Generator().manual_seed(1))


def decomposition(num_patches: int = 64, n_scales: int = 3, **options) -> MultiScaleDecomposition:
    torch.manual_seed(0)
    return MultiScaleDecomposition(num_patches, D, n_scales, dropout=0.0, **options)


def tapr(num_patches: int = 64, n_scales: int = 3, dropout: float = 0.0) -> Tapr:
    torch.manual_seed(0)
    return Tapr(num_patches, D, H, n_scales, dropout=dropout)


def without_gradient(module: nn.Module) -> list[str]:
    return [name for name, parameter in module.named_parameters() if parameter.grad is None or not parameter.grad.any()]


# Several scales


@pytest.mark.parametrize(("num_patches", "n_scales"), [(64, 2), (64, 3), (64, 4), (12, 2), (12, 3), (2, 2), (42, 4)])
def test_shapes_at_every_number_of_scales(num_patches: int, n_scales: int) -> None:
    result = decomposition(num_patches, n_scales)(patches(num_patches))
    assert result.enhanced.shape == result.weighted_trend.shape == (B, num_patches, D)
    assert result.trends.shape == (B, n_scales, num_patches, D)
    assert all(part.isfinite().all() for part in result)


@pytest.mark.parametrize(("num_patches", "n_scales", "most"), [(12, 4, 3), (4, 3, 2), (4, 4, 2), (16, 4, 3)])
def test_too_many_scales_is_an_error_that_names_the_most(num_patches: int, n_scales: int, most: int) -> None:
    with pytest.raises(ConfigError, match=f"n_scales {n_scales} is too many for {num_patches} patches") as raised:
        tapr(num_patches, n_scales)
    assert f"the largest n_scales that fits is {most};" in raised.value.hint
    tapr(num_patches, most)


@given(num_patches=st.integers(1, 300))
def test_the_most_scales_pool_to_one_position_just_once(num_patches: int) -> None:
    pooled = [-(-num_patches // 4**s) for s in range(largest_num_scales(num_patches) + 1)]
    assert pooled.count(1) == 2  # the largest number, and one scale too many
    assert pooled[-2:] == [1, 1]


@given(num=st.integers(1, 20), width=st.sampled_from([1, 3, 5]))
def test_moving_average_repeats_the_ends(num: int, width: int) -> None:
    values = torch.randn(2, 3, num, generator=torch.Generator().manual_seed(num))
    averaged = moving_average(values, width)
    assert averaged.shape == values.shape
    for n in range(num):
        near = [min(max(n + offset, 0), num - 1) for offset in range(-(width // 2), width // 2 + 1)]
        torch.testing.assert_close(averaged[..., n], values[..., near].mean(dim=-1))


@pytest.mark.parametrize(("num_patches", "n_scales"), [(64, 4), (12, 3), (42, 3)])
def test_constant_patches_have_constant_trends(num_patches: int, n_scales: int) -> None:
    constant = patches(1).expand(-1, num_patches, -1)
    result = decomposition(num_patches, n_scales)(constant)
    for part in (result.enhanced[:, None], result.weighted_trend[:, None], result.trends):
        torch.testing.assert_close(part, part[:, :, :1].expand_as(part))


def test_coarse_scales_see_less_of_fast_changes() -> None:
    alternating = patches(1) * torch.tensor([1.0, -1.0]).repeat(32)[None, :, None]
    trends = decomposition(64, 3)(alternating).trends
    variation = trends.std(dim=2).mean(dim=(0, 2))  # of each scale
    assert variation[1:].max() < 1e-5 * variation[0] + 1e-6
    assert trends[:, 2].std(dim=1).max() < 1e-5


def test_a_scale_is_the_features_split_in_two_and_put_together_again() -> None:
    module, x = decomposition(64, 2), patches()
    features = torch.nn.functional.gelu(module.convolutions[0](x.transpose(1, 2))).transpose(1, 2)
    scale, trend = module._scale(0, x)
    torch.testing.assert_close(scale, features)
    with torch.no_grad():
        module.seasonal_share.zero_()
    torch.testing.assert_close(module._scale(0, x)[0], trend)
    assert not torch.allclose(trend, features, atol=0.01)


def test_the_weighted_trend_and_the_fusion_follow_the_formula() -> None:
    module, x = decomposition(64, 3), patches()
    with torch.no_grad():
        module.scale_weights.copy_(torch.tensor([0.5, -1.0, 2.0]))
        for attention in module.attentions:  # without attention, f_s is what _scale says
            attention.out_proj.weight.zero_()
            attention.out_proj.bias.zero_()
    weights = np.exp([0.5, -1.0, 2.0]) / np.exp([0.5, -1.0, 2.0]).sum()
    result = module(x)
    scales = [module._scale(s, x)[0] for s in range(3)]
    joined = torch.cat([float(w) * f for w, f in zip(weights, scales, strict=True)], dim=-1)
    torch.testing.assert_close(result.enhanced, x + module.fusion(joined))
    torch.testing.assert_close(
        result.weighted_trend, sum(float(w) * result.trends[:, s] for s, w in enumerate(weights))
    )


def test_attention_goes_from_coarse_to_fine() -> None:
    module, x = decomposition(64, 3), patches()
    with torch.no_grad():
        module.fusion.weight[:, D:] = 0  # only the finest scale reaches the output
    before = module(x).enhanced
    with torch.no_grad():
        module.convolutions[2].bias += 1  # the coarsest scale, two steps away
    assert (module(x).enhanced - before).abs().max() > 1e-4
    with torch.no_grad():
        module.fusion.weight[:, D:] = 1
        module.fusion.weight[:, : 2 * D] = 0  # only the coarsest
    before = module(x).enhanced
    with torch.no_grad():
        module.convolutions[0].bias += 1
    assert torch.equal(module(x).enhanced, before)


def test_windows_do_not_see_one_another() -> None:
    module, x = tapr().eval(), patches()
    changed = torch.cat([x[:1], x[1:] + 5])
    torch.testing.assert_close(module(changed)[0][0], module(x)[0][0])


@pytest.mark.parametrize(("num_patches", "n_scales"), [(64, 3), (12, 3), (64, 4)])
def test_every_parameter_of_tapr_learns(num_patches: int, n_scales: int) -> None:
    module = Tapr(num_patches, D, H, n_scales, dropout=0.1)
    enhanced, trend = module(patches(num_patches))
    (enhanced.square().mean() + sum(part.square().mean() for part in trend)).backward()
    assert without_gradient(module) == []


# The head


def test_the_head_is_what_tapr_pools() -> None:
    module, x = tapr(), patches()
    enhanced, trend = module(x)
    result = module.decomposition(x)
    assert torch.equal(enhanced, result.enhanced)
    expected = module.head((result.enhanced + result.weighted_trend).mean(dim=1))
    assert all(torch.equal(a, b) for a, b in zip(trend, expected, strict=True))
    assert [part.shape for part in trend] == [(B, 3), (B, 4), (B, H), (B, D)]


def test_the_embedding_is_a_mean_of_classes_by_probability() -> None:
    torch.manual_seed(0)
    head = CoarseToFineHead(D, H)
    trend = head(patches(1)[:, 0])
    by_direction = torch.exp(trend.direction) / torch.exp(trend.direction).sum(dim=1, keepdim=True)
    by_magnitude = torch.exp(trend.magnitude) / torch.exp(trend.magnitude).sum(dim=1, keepdim=True)
    expected = by_direction @ head.direction_embedding + by_magnitude @ head.magnitude_embedding
    torch.testing.assert_close(trend.embedding, expected)


def test_the_direction_decides_the_magnitude_and_both_the_regression() -> None:
    torch.manual_seed(0)
    head, features = CoarseToFineHead(D, H), patches(1)[:, 0]
    before = head(features)
    with torch.no_grad():
        head.direction.bias[UP] += 10  # nothing but the opinion on the direction
    after = head(features)
    assert (after.magnitude - before.magnitude).abs().max() > 1e-3
    assert (after.forecast - before.forecast).abs().max() > 1e-3


def test_the_residual_starts_at_zero_and_learns() -> None:
    module, residual = tapr(), TrendResidual(H)
    trend = module(patches())[1]
    added = residual(trend.forecast)
    assert torch.equal(added, torch.zeros(B, H))
    (added - 1).square().mean().backward()
    assert residual.strength.grad.all()
    with torch.no_grad():
        residual.strength -= residual.strength.grad
    (residual(module(patches())[1].forecast) - 1).square().mean().backward()
    assert all(parameter.grad.any() for parameter in module.head.parameters())


def test_the_thresholds_travel_with_the_weights() -> None:
    module = tapr()
    assert module.thresholds.isnan().all()
    module.thresholds.copy_(fit_thresholds(torch.arange(13.0)))
    other = tapr()
    other.load_state_dict(module.state_dict())
    assert other.thresholds.tolist() == [2, 4, 6, 8, 10]


# Labels


def test_the_change_is_counted_from_the_last_value_in_spreads() -> None:
    context = torch.tensor([[9.0, 1.0, 2.0], [0.0, 0.0, 1e6]])
    future = torch.tensor([[3.0, 7.0], [1e6 + 1, 1e6 + 2]])
    change = trend_change(context, future, torch.tensor([2.0, 0.5]))
    assert change.tolist() == [1.5, 3.0]


def test_labels_by_hand() -> None:
    thresholds = fit_thresholds(torch.arange(13.0))  # 2, 4, 6, 8, 10
    direction, magnitude = labels(torch.tensor([-99.0, 1, 3, 5, 7, 9, 11, 99]), thresholds)
    assert direction.tolist() == [DOWN, DOWN, DOWN, FLAT, FLAT, UP, UP, UP]
    assert magnitude.tolist() == [
        STRONG_DOWN, STRONG_DOWN, WEAK_DOWN, WEAK_DOWN, WEAK_UP, WEAK_UP, STRONG_UP, STRONG_UP,
    ]  # fmt: skip
    assert direction.dtype == magnitude.dtype == torch.int64


@given(num=st.integers(60, 400), skew=st.sampled_from([1.0, 3.0]), seed=st.integers(0, 9))
def test_classes_of_the_training_windows_are_balanced(num: int, skew: float, seed: int) -> None:
    change = torch.randn(num, generator=torch.Generator().manual_seed(seed)).exp() ** skew
    direction, magnitude = labels(change, fit_thresholds(change))
    np.testing.assert_allclose(direction.bincount(minlength=3) / num, [1 / 3] * 3, atol=2 / num)
    np.testing.assert_allclose(magnitude.bincount(minlength=4) / num, [1 / 6, 1 / 3, 1 / 3, 1 / 6], atol=2 / num)


@given(st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=1, max_size=50))
def test_labels_rise_with_the_change_and_never_contradict_each_other(values: list[float]) -> None:
    change = torch.tensor(values)
    direction, magnitude = labels(change, fit_thresholds(change))
    order = change.argsort()
    assert (direction[order].diff() <= 0).all()
    assert (magnitude[order].diff() <= 0).all()
    allowed = {UP: {STRONG_UP, WEAK_UP}, FLAT: {WEAK_UP, WEAK_DOWN}, DOWN: {WEAK_DOWN, STRONG_DOWN}}
    assert all(m in allowed[d] for d, m in zip(direction.tolist(), magnitude.tolist(), strict=True))


@pytest.mark.parametrize("value", [0.0, -3.5, 1e20])
def test_where_nothing_ever_changes_everything_is_flat(value: float) -> None:
    change = torch.full((9,), value)
    direction, magnitude = labels(change, fit_thresholds(change))
    assert direction.tolist() == [FLAT] * 9
    assert set(magnitude.tolist()) <= {WEAK_UP, WEAK_DOWN}


def test_a_value_that_many_windows_share_is_the_middle_of_its_sixths() -> None:
    change = torch.tensor([-1.0] * 4 + [0.0] * 16 + [1.0] * 4)  # the still middle two thirds
    direction, _ = labels(change, fit_thresholds(change))
    assert direction.tolist() == [DOWN] * 4 + [FLAT] * 16 + [UP] * 4
