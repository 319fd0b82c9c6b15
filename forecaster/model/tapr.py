"""TAPR, the trend-aware patch router: several resolutions of the patches, and what the trend will do (docs/method.md).

Reading order: `MultiScaleDecomposition` (look at the patches at S resolutions), `CoarseToFineHead` (say the direction,
then how strong, then the course), `Tapr` (both), `TrendResidual` (how the course reaches the forecast), and the trend
labels that the head is taught with. The losses are in `losses.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from forecaster.errors import ConfigError
from forecaster.model.types import TrendOutput

POOL = 4  # scale s averages POOL^s patches: 1, 4, 16, ...
MOVING_AVERAGE = 5  # pooled positions, odd; the trend of scale s is smoothed over 5 * 4^s patches
TREND_LEVELS = (1 / 6, 1 / 3, 1 / 2, 2 / 3, 5 / 6)  # quantiles of the training windows' change; see `fit_thresholds`
CLASSES_BY_SIXTH = ((2, 3), (2, 2), (1, 2), (1, 1), (0, 1), (0, 0))  # (direction, magnitude), lowest sixth first


@dataclass(frozen=True, kw_only=True)
class TaprSettings:
    """use_tapr: off, its module, token and losses go. n_scales: S."""

    use_tapr: bool = False
    n_scales: int = 3

    def __post_init__(self) -> None:
        if not 2 <= self.n_scales <= 4:
            raise ConfigError(f"n_scales is {self.n_scales}, but must be 2, 3 or 4")


class Decomposition(NamedTuple):
    """What several resolutions make of the patches. enhanced: [B, P, D]. weighted_trend: [B, P, D], the scales' trends
    under the fusion weights. trends: [B, S, P, D], finest scale first.
    """

    enhanced: Tensor
    weighted_trend: Tensor
    trends: Tensor


def largest_num_scales(num_patches: int) -> int:
    """The most scales of which only the last pools to a single position: 4 for P = 64, 3 for P = 12."""
    num_scales = 1
    while num_patches > 1:
        num_patches = -(-num_patches // POOL)
        num_scales += 1
    return num_scales


def require_scales_fit(num_patches: int, n_scales: int) -> None:
    """Raise `ConfigError` if two scales would both pool to one position: they would say the same."""
    most = largest_num_scales(num_patches)
    if n_scales > most:
        raise ConfigError(
            f"n_scales {n_scales} is too many for {num_patches} patches: two scales would both pool to one position",
            hint=f"the largest n_scales that fits is {most}; lower n_scales, or raise lookback",
        )


def moving_average(values: Tensor, width: int) -> Tensor:
    """Centred mean over `width` (odd) positions, the ends repeated outwards: [B, D, N] -> [B, D, N]."""
    half = width // 2
    first, last = values[..., :1].expand(-1, -1, half), values[..., -1:].expand(-1, -1, half)
    return functional.avg_pool1d(torch.cat([first, values, last], dim=-1), kernel_size=width, stride=1)


class MultiScaleDecomposition(nn.Module):
    """Patches seen at S resolutions, coarse ones informing fine ones: x [B, P, D] -> `Decomposition`.

    For each scale s = 0 .. S-1 (micro: noise and bursts; meso: daily and weekly cycles; macro: the long trend)

        features_s = GELU(Conv1d(average_pool(x, 4^s)))                      at ceil(P / 4^s) positions
        trend_s    = moving_average(features_s),   rest_s = features_s - trend_s
        f_s        = interpolate(trend_s + a_s * rest_s)                     linear, back to P positions

    then, from coarse to fine, `f_i += Attention(q = f_i, k = v = f_(i+1))` for i = S-2 .. 0, and

        w = softmax(scale_weights),   enhanced = x + dropout(W concat_s(w_s f_s)),   weighted_trend = sum_s w_s trend_s.

    convolutions: the Conv1d of each scale. seasonal_share: a, [S, D], how much of its seasonal rest a scale passes on;
    all of it (1) at first. attentions: by i. fusion: W. Ends are repeated, never padded by zeros, so that a constant
    stays constant at every scale. Raises `ConfigError` as `require_scales_fit` does.

    One head of attention is the default: eight of D / 8 = 4 numbers each take four times as long on a CPU.
    """

    def __init__(self, num_patches: int, d_model: int, n_scales: int, *, dropout: float) -> None:
        super().__init__()
        require_scales_fit(num_patches, n_scales)
        self.convolutions = nn.ModuleList(
            nn.Conv1d(d_model, d_model, kernel_size=3, padding=1, padding_mode="replicate") for _ in range(n_scales)
        )
        self.seasonal_share = nn.Parameter(torch.ones(n_scales, d_model))
        self.attentions = nn.ModuleList(
            nn.MultiheadAttention(d_model, num_heads=1, batch_first=True) for _ in range(n_scales - 1)
        )
        self.scale_weights = nn.Parameter(torch.zeros(n_scales))
        self.fusion = nn.Linear(n_scales * d_model, d_model)
        self.dropout = nn.Dropout(dropout)

    def scale_shares(self) -> Tensor:
        """w, [S]: how much each scale has in what is fused, finest first; they sum to 1."""
        return self.scale_weights.softmax(dim=0)

    def forward(self, x: Tensor) -> Decomposition:
        """x: [B, P, D]."""
        scales, trends = zip(*(self._scale(s, x) for s in range(len(self.convolutions))), strict=True)
        f = list(scales)  # S of [B, P, D]
        for i in reversed(range(len(f) - 1)):
            f[i] = f[i] + self.attentions[i](f[i], f[i + 1], f[i + 1], need_weights=False)[0]
        weights = self.scale_shares()
        joined = torch.cat([weight * scale for weight, scale in zip(weights, f, strict=True)], dim=-1)  # [B, P, S * D]
        stacked = torch.stack(trends, dim=1)  # [B, S, P, D]
        weighted_trend = (weights[:, None, None] * stacked).sum(dim=1)  # [B, P, D]
        enhanced = x + self.dropout(self.fusion(joined))
        return Decomposition(enhanced=enhanced, weighted_trend=weighted_trend, trends=stacked)

    def _scale(self, s: int, x: Tensor) -> tuple[Tensor, Tensor]:
        """f_s and the trend of scale s, both [B, P, D]."""
        factor, num_patches = POOL**s, x.shape[1]
        pooled = functional.avg_pool1d(x.transpose(1, 2), factor, ceil_mode=True)  # [B, D, ceil(P / 4^s)]
        features = functional.gelu(self.convolutions[s](pooled))
        trend = moving_average(features, MOVING_AVERAGE)
        both = torch.cat([trend + self.seasonal_share[s, :, None] * (features - trend), trend], dim=1)
        if both.shape[-1] != num_patches:
            both = functional.interpolate(both, size=num_patches, mode="linear")  # [B, 2 * D, P]
        scale, trend = both.transpose(1, 2).chunk(2, dim=-1)
        return scale, trend


class CoarseToFineHead(nn.Module):
    """What the trend will do, each level told what the one above said: features [B, D] -> `TrendOutput`.

        level 1   direction = W_1 features                            [B, 3]
        level 2   magnitude = MLP_2([features, p(direction)])         [B, 4]
                  embedding = p(direction) E_1 + p(magnitude) E_2     [B, D]
        level 3   forecast  = MLP_3([features, embedding])            [B, H]

    p is the softmax of the logits above it; classes and units are `TrendOutput`'s. direction: W_1. magnitude: MLP_2.
    direction_embedding, magnitude_embedding: E_1 [3, D] and E_2 [4, D], through which the head's opinion reaches
    everything after it. regression: MLP_3.
    """

    def __init__(self, d_model: int, horizon: int) -> None:
        super().__init__()
        self.direction = nn.Linear(d_model, 3)
        self.magnitude = nn.Sequential(nn.Linear(d_model + 3, d_model), nn.GELU(), nn.Linear(d_model, 4))
        self.direction_embedding = nn.Parameter(torch.randn(3, d_model) / d_model**0.5)
        self.magnitude_embedding = nn.Parameter(torch.randn(4, d_model) / d_model**0.5)
        self.regression = nn.Sequential(nn.Linear(2 * d_model, d_model), nn.GELU(), nn.Linear(d_model, horizon))

    def forward(self, features: Tensor) -> TrendOutput:
        """features: [B, D], pooled over patches."""
        direction = self.direction(features)  # [B, 3]
        direction_share = direction.softmax(dim=-1)
        magnitude = self.magnitude(torch.cat([features, direction_share], dim=-1))  # [B, 4]
        embedding = direction_share @ self.direction_embedding + magnitude.softmax(dim=-1) @ self.magnitude_embedding
        forecast = self.regression(torch.cat([features, embedding], dim=-1))
        return TrendOutput(direction=direction, magnitude=magnitude, forecast=forecast, embedding=embedding)


class Tapr(nn.Module):
    """TAPR: patches [B, P, D] -> enhanced patches [B, P, D] and `TrendOutput`.

        enhanced, weighted_trend = MultiScaleDecomposition(patches)
        trend = CoarseToFineHead(mean_p(enhanced + weighted_trend))

    thresholds: float32 [5], of `fit_thresholds`; a buffer, so that the labels' definition travels with the weights. NaN
    until it is set. Raises `ConfigError` as `require_scales_fit` does.
    """

    thresholds: Tensor

    def __init__(self, num_patches: int, d_model: int, horizon: int, n_scales: int, *, dropout: float) -> None:
        super().__init__()
        self.decomposition = MultiScaleDecomposition(num_patches, d_model, n_scales, dropout=dropout)
        self.head = CoarseToFineHead(d_model, horizon)
        self.register_buffer("thresholds", torch.full((len(TREND_LEVELS),), torch.nan))

    def forward(self, patches: Tensor) -> tuple[Tensor, TrendOutput]:
        """patches: [B, P, D]."""
        enhanced, weighted_trend, _ = self.decomposition(patches)
        return enhanced, self.head((enhanced + weighted_trend).mean(dim=1))


class TrendResidual(nn.Module):
    """How much of the level-3 regression reaches the forecast: `tanh(strength_h) * forecast_h`, [B, H] -> [B, H].

    strength: [H], one per horizon step and 0 at first: the residual starts at exactly zero, while its gradient, which
    is the regression itself, does not. From the first step on the regression learns from the forecast's error.
    """

    def __init__(self, horizon: int) -> None:
        super().__init__()
        self.strength = nn.Parameter(torch.zeros(horizon))

    def forward(self, forecast: Tensor) -> Tensor:
        """forecast: [B, H], of `TrendOutput` -> what to add to the network's own, both standardised."""
        return self.strength.tanh() * forecast


def trend_change(context: Tensor, future: Tensor, spread: Tensor) -> Tensor:
    """What labels are made from, [B]: mean of the future minus the last observed value, in spreads of the window.

    context: [B, L], future: [B, H], spread: [B], raw units. Differences come first: a large level costs no digits. The
    mean is over the steps that are not missing (NaN); 0 where all are.
    """
    change = future - context[:, -1:]
    if bool((missing := change.isnan()).any()):
        known = (~missing).sum(dim=1)
        return change.where(~missing, 0.0).sum(dim=1) / known.clamp(min=1) / spread
    return change.mean(dim=1) / spread


def fit_thresholds(change: Tensor) -> Tensor:
    """The borders between trend classes, float32 [5], ascending, from the `trend_change` [N] of the training windows.

    They are the quantiles 1/6, 1/3, 1/2, 2/3 and 5/6: directions are the three thirds, strong and weak the two halves
    within up and within down, and flat windows are weakly up or weakly down by the side of the median that they are on.
    These are the shares that the hierarchical loss expects of directions that are equally likely (`losses.py`).
    """
    values = change.detach().to("cpu", torch.float64).numpy()  # torch.quantile takes at most 16 million values
    return torch.from_numpy(np.quantile(values, TREND_LEVELS)).to(change.device, torch.float32)


def labels(change: Tensor, thresholds: Tensor) -> tuple[Tensor, Tensor]:
    """Trend classes of `trend_change` [B]: direction and magnitude, int64 [B], in the order of `TrendOutput`'s logits.

    A change that several equal thresholds share belongs to the middle of the sixths that meet there: where nothing ever
    changes, everything is flat.
    """
    below = torch.bucketize(change, thresholds)  # thresholds below the change
    reached = torch.bucketize(change, thresholds, right=True)  # thresholds at most the change
    classes = torch.tensor(CLASSES_BY_SIXTH, device=change.device)  # [6, 2]
    direction, magnitude = classes[(below + reached) // 2].unbind(dim=-1)
    return direction, magnitude
