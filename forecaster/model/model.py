"""The model: a pure function of tensors, `(context, neighbours) -> forecast`. Read `types.py` first, then this.

    context [B, L]
     -> instance normalisation                                 z [B, L]
     -> patches                                                [B, P, D]      patching.py
     -> TAPR: several scales, trend classes, trend embedding   [B, P, D]      tapr.py
     -> GRA-M: gating with the neighbours                      [B, P, D]      gram.py
     -> reprogramming, prompt, frozen language model, head     [B, H]         llm_path.py
     -> + shortcut, mixed with the memory's own forecasts      [B, H]         shortcut.py, value_gate.py

Where windows and neighbours come from is `batches.py`; how the weights are found is `train.py`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from forecaster.config import ModelConfig
from forecaster.language_models.backbone import Backbone
from forecaster.model.gram import AdaptiveKnowledgeGating, RetrievalAugmentedPrompt
from forecaster.model.llm_path import LlmPath
from forecaster.model.patching import PatchEmbedding, instance_norm
from forecaster.model.shortcut import NO_BASE, LinearShortcut
from forecaster.model.tapr import Tapr, TrendResidual
from forecaster.model.types import GatingOutput, ModelOutput, NeighbourTensors, TrendOutput
from forecaster.model.value_gate import ValueGate


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


class ForecastModel(nn.Module):
    """The whole model.

    Names of the method: TAPR = `tapr` (+ `trend_token`, `trend_residual`), GRA-M = `gating`,
    `retrieval_prompt` and `value_gate`, the reprogrammed language model = `llm_path`.

    num_spaces: V, the key spaces of the memory that it is trained against; without GRA-M none is used. A part that is
    switched off has no module, no token, no loss. `state_dict()` holds what is trained or fitted; the frozen language
    model is not in it.
    """

    def __init__(self, config: ModelConfig, *, num_spaces: int, backbone: Backbone | None) -> None:
        super().__init__()
        if (backbone is None) == config.use_llm:
            raise ValueError("a model with a language model needs a backbone, one without must not get any")
        self.config = config
        d_model, horizon = config.d_model, config.horizon
        self.patches = None
        if config.use_network:
            self.patches = PatchEmbedding(
                config.lookback, config.patch_length, config.patch_stride, d_model, dropout=config.dropout
            )
        self.tapr = self.trend_residual = self.trend_token = None
        if config.use_tapr:
            self.tapr = Tapr(config.num_patches, d_model, horizon, config.n_scales, dropout=config.dropout)
            self.trend_residual = TrendResidual(horizon)
        self.gating = self.retrieval_prompt = None
        if config.use_gram and config.use_network:
            self.gating = AdaptiveKnowledgeGating(config.lookback, horizon, d_model, dropout=config.dropout)
        self.llm_path = self.patch_head = None
        if backbone is not None:
            self.llm_path = LlmPath(config, backbone, num_tokens=config.use_tapr + config.use_gram)
            if config.use_tapr:
                self.trend_token = nn.Linear(d_model, backbone.width)
            if config.use_gram:
                self.retrieval_prompt = RetrievalAugmentedPrompt(d_model, backbone.width)
        elif config.use_network:
            self.patch_head = PatchHead(config.num_patches, d_model, horizon, config.dropout)
        self.shortcut = LinearShortcut(config.lookback, horizon, config.season) if config.use_shortcut else None
        self.base_names = NO_BASE if self.shortcut is None else self.shortcut.names
        self.value_gate = ValueGate(len(self.base_names), num_spaces if config.use_gram else 0, horizon)

    def forward(
        self, context: Tensor, neighbours: NeighbourTensors | None, *, unit: Tensor, fold: Tensor | None = None
    ) -> ModelOutput:
        """One forecast of B windows.

        context: float32 [B, L], raw units. neighbours: required with GRA-M, and None without. unit: [B], the training
        standard deviation of each window's series. fold: see `Batch.fold`.
        """
        if (neighbours is None) == self.config.use_gram:
            raise ValueError("a model with GRA-M needs neighbours, one without must not get any")
        location, spread = instance_norm(context, unit, self.config.spread_floor)  # [B], [B]
        z = (context - location[:, None]) / spread[:, None]  # [B, L]
        network, trend, gating = self._network(z, neighbours)
        bases = self.bases(z, fold)
        if neighbours is None:
            memory, found = z.new_zeros(len(z), 0, network.shape[1]), z.new_zeros(len(z), 0, dtype=torch.bool)
        else:
            memory = (neighbours.forecasts - location[:, None, None]) / spread[:, None, None]  # [B, V, H]
            found = neighbours.found
        mixed = self.value_gate(bases, network, memory, found)

        def raw(part: Tensor) -> Tensor:
            return part * spread[:, None] + location[:, None]

        return ModelOutput(
            forecast=raw(mixed.forecast),
            model_part=raw(mixed.model_part),
            memory_part=raw(mixed.memory_part),
            gate=mixed.gate,
            weights=mixed.weights,
            bases=bases * spread[:, None, None] + location[:, None, None],
            network=network * spread[:, None],
            location=location,
            spread=spread,
            trend=trend,
            gating=gating,
        )

    def bases(self, z: Tensor, fold: Tensor | None) -> Tensor:
        """What the network is a residual on: [B, L] -> [B, M, H]; a zero without the shortcut."""
        return (
            z.new_zeros(len(z), len(NO_BASE), self.config.horizon) if self.shortcut is None else self.shortcut(z, fold)
        )

    def _network(
        self, z: Tensor, neighbours: NeighbourTensors | None
    ) -> tuple[Tensor, TrendOutput | None, GatingOutput | None]:
        """What the trained network adds to the bases, float32 [B, H], in the window's own location and spread."""
        if self.patches is None:
            return z.new_zeros(len(z), self.config.horizon), None, None
        patches = self.patches(z)  # [B, P, D]
        trend = gating = trend_token = retrieval_tokens = None
        if self.tapr is not None:
            patches, trend = self.tapr(patches)
            if self.trend_token is not None:
                trend_token = self.trend_token(trend.embedding)[:, None]  # [B, 1, llm_dim]
        if self.gating is not None:
            patches, gating = self.gating(patches, neighbours)
            if self.retrieval_prompt is not None:
                retrieval_tokens = self.retrieval_prompt(gating.context, gating.confidence)  # [B, T, llm_dim]
        if self.llm_path is not None:
            network = self.llm_path(z, patches, trend_token, retrieval_tokens)
        else:
            assert self.patch_head is not None, "one of the two heads is always there"
            network = self.patch_head(patches)
        network = network.float()
        if self.trend_residual is not None:
            assert trend is not None, "the residual belongs to TAPR"
            network = network + self.trend_residual(trend.forecast.float())
        return network, trend, gating
