"""One network: the design's model of patches, TAPR, GRA-M and a frozen language model, as a forecast of its own.

    z [B, L] -> patches -> TAPR -> GRA-M -> reprogramming, language model, head (or a linear head) -> [B, H]

Several of them, each trained without one block of time, are a part of the value gate (`model.py`). This file owns how
the parts of one join, and how it reads what the memory's key spaces forecast.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from forecaster.language_models.backbone import Backbone
from forecaster.model.gram import AdaptiveKnowledgeGating, RetrievalAugmentedPrompt, match_weights
from forecaster.model.llm_path import LlmPath
from forecaster.model.patching import PatchEmbedding
from forecaster.model.tapr import Tapr, TrendResidual
from forecaster.model.types import GatingOutput, NeighbourTensors, NetworkOutput, TrendOutput

if TYPE_CHECKING:
    from forecaster.config import ModelConfig


class PatchHead(nn.Module):
    """Patches straight to the horizon, for a model without a language model: [B, P, D] -> [B, H]. Starts at zero."""

    def __init__(self, num_patches: int, d_model: int, horizon: int, dropout: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(num_patches * d_model, horizon)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, patches: Tensor) -> Tensor:
        """[B, P, D] -> [B, H]."""
        return self.linear(self.dropout(patches.flatten(1)))


class MemoryReading(nn.Module):
    """How a network reads the V key spaces' own forecasts, in the window's location and spread.

        centre = mean of the forecasts of the key spaces that found any                [B, H]
        read   = GELU(W_1 [forecasts - centre, centre, found])                         [B, D_r]
        forecast starts from centre + W_2 read, patches from patches + W_3 read

    W_2 starts at zero: before anything is learned the network says what the memory says. Without a neighbour centre
    is 0.
    """

    def __init__(self, num_spaces: int, horizon: int, d_model: int, d_repr: int, *, dropout: float) -> None:
        super().__init__()
        self.read = nn.Sequential(
            nn.Linear(num_spaces * (horizon + 1) + horizon, d_repr), nn.GELU(), nn.Dropout(dropout)
        )
        self.to_forecast = nn.Linear(d_repr, horizon)
        self.to_patches = nn.Linear(d_repr, d_model)
        nn.init.zeros_(self.to_forecast.weight)
        nn.init.zeros_(self.to_forecast.bias)
        nn.init.normal_(self.to_patches.weight, std=0.01)
        nn.init.zeros_(self.to_patches.bias)

    def forward(self, memory: Tensor, found: Tensor) -> tuple[Tensor, Tensor]:
        """memory: [B, V, H], found: bool [B, V] -> what the forecast starts from [B, H], the patches' part [B, D]."""
        there = found[..., None].to(memory.dtype)
        kept = memory.masked_fill(~found[..., None], 0)
        centre = kept.sum(dim=1) / there.sum(dim=1).clamp(min=1)  # [B, H]
        apart = (kept - centre[:, None]) * there
        read = self.read(torch.cat([apart.flatten(1), centre, there[..., 0]], dim=1))
        return centre + self.to_forecast(read).float(), self.to_patches(read)


class Network(nn.Module):
    """One network. What is switched off has no module, no token and no loss.

    num_spaces: V, the key spaces whose forecasts it reads; 0 in the design's own form, which reads neighbours only.
    `state_dict()` holds what is trained; the frozen language model is not in it.
    """

    def __init__(self, config: ModelConfig, *, num_spaces: int, backbone: Backbone | None) -> None:
        super().__init__()
        d_model, horizon = config.d_model, config.horizon
        self.patches = PatchEmbedding(
            config.lookback, config.patch_length, config.patch_stride, d_model, dropout=config.dropout
        )
        self.reading = None
        if num_spaces:
            self.reading = MemoryReading(num_spaces, horizon, d_model, config.d_repr, dropout=config.dropout)
        self.tapr = self.trend_residual = self.trend_token = None
        if config.use_tapr:
            self.tapr = Tapr(config.num_patches, d_model, horizon, config.n_scales, dropout=config.dropout)
            self.trend_residual = TrendResidual(horizon)
        self.gating = self.retrieval_prompt = None
        if config.use_gram:
            self.gating = AdaptiveKnowledgeGating(
                config.lookback, horizon, d_model, d_repr=config.d_repr, dropout=config.dropout
            )
        self.llm_path = self.patch_head = None
        if backbone is None:
            self.patch_head = PatchHead(config.num_patches, d_model, horizon, config.dropout)
            return
        self.llm_path = LlmPath(config, backbone, num_tokens=config.use_tapr + config.use_gram)
        if config.use_tapr:
            self.trend_token = nn.Linear(d_model, backbone.width)
        if config.use_gram:
            self.retrieval_prompt = RetrievalAugmentedPrompt(d_model, backbone.width)

    def forward(self, z: Tensor, neighbours: NeighbourTensors | None, memory: Tensor, found: Tensor) -> NetworkOutput:
        """z: [B, L]; memory: [B, V, H]; found: bool [B, V]. All of it, the forecast too, in the window's own location
        and spread.
        """
        patches = self.patches(z)  # [B, P, D]
        start: Tensor | float = 0.0
        if self.reading is not None:
            start, read = self.reading(memory, found)
            patches = patches + read[:, None]
        trend: TrendOutput | None = None
        gating: GatingOutput | None = None
        trend_token = retrieval_tokens = None
        if self.tapr is not None:
            patches, trend = self.tapr(patches)
            if self.trend_token is not None:
                trend_token = self.trend_token(trend.embedding)[:, None]  # [B, 1, llm_dim]
        if self.gating is not None:
            assert neighbours is not None, "a model with GRA-M is given neighbours"
            patches, gating = self.gating(patches, neighbours)
            if self.retrieval_prompt is not None:
                retrieval_tokens = self.retrieval_prompt(gating.context, gating.confidence)  # [B, T, llm_dim]
        if self.llm_path is not None:
            forecast = self.llm_path(z, patches, trend_token, retrieval_tokens)
        else:
            assert self.patch_head is not None, "one of the two heads is always there"
            forecast = self.patch_head(patches)
        forecast = forecast.float() + start
        if self.trend_residual is not None:
            assert trend is not None, "the residual belongs to TAPR"
            forecast = forecast + self.trend_residual(trend.forecast.float())
        return NetworkOutput(forecast=forecast, trend=trend, gating=gating)


def mean_of(
    outputs: list[NetworkOutput], neighbours: NeighbourTensors | None
) -> tuple[TrendOutput | None, GatingOutput | None]:
    """What several networks say on their way to the forecast: the mean of each number. A neighbour's weight is the one
    that its mean match score makes, so that it is `similarity * match` here too.
    """

    def mean(parts: list[TrendOutput] | list[GatingOutput]) -> list[Tensor]:
        return [torch.stack(each).mean(dim=0) for each in zip(*parts, strict=True)]

    trends = [output.trend for output in outputs if output.trend is not None]
    gatings = [output.gating for output in outputs if output.gating is not None]
    trend = TrendOutput(*mean(trends)) if trends else None
    if not gatings or neighbours is None:
        return trend, None
    gating = GatingOutput(*mean(gatings))
    similarity = neighbours.similarity.masked_fill(~neighbours.valid, 0)
    return trend, gating._replace(weights=match_weights(similarity, gating.match)[0])
