"""The model: a pure function of tensors, `(context, neighbours) -> forecast`. Read `types.py` first, then this.

    context [B, L]
     -> instance normalisation                                 z [B, L]
     -> linear map, last value, last season                    [B, M, H]      shortcut.py
     -> networks, if there are any: their mean is one more     [B, H]         network.py
     -> mixed with the memory's own forecasts                  [B, H]         value_gate.py

Where windows and neighbours come from is `batches.py`; how the weights are found is `training/fit.py`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from forecaster.config import ModelConfig
from forecaster.language_models.backbone import Backbone
from forecaster.model.network import Network, mean_of
from forecaster.model.patching import instance_norm
from forecaster.model.shortcut import NO_BASE, LinearShortcut
from forecaster.model.types import Batch, GatingOutput, ModelOutput, NeighbourTensors, NetworkOutput, TrendOutput
from forecaster.model.value_gate import ValueGate

NETWORK = "network"  # the base that is the mean of the networks


class ForecastModel(nn.Module):
    """The whole model.

    Names of the method: TAPR = `tapr` (+ `trend_token`, `trend_residual`) of each of the `networks`, GRA-M = their
    `gating` and `retrieval_prompt`, and `value_gate`; the reprogrammed language model = their `llm_path`.

    num_spaces: V, the key spaces of the memory that it is trained against; without GRA-M none is used. num_networks: F,
    one for each fold, or one where the network is the whole forecast; none without `use_network`. num_beside: P, the
    numbers of covariates that the linear map reads beside a window. A part that is
    switched off has no module, no token, no loss. `state_dict()` holds what is trained or fitted; the frozen language
    model, which all networks share, is not in it.
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        num_spaces: int,
        backbone: Backbone | None,
        num_networks: int = 1,
        num_beside: int = 0,
    ) -> None:
        super().__init__()
        if (backbone is None) == config.use_llm:
            raise ValueError("a model with a language model needs a backbone, one without must not get any")
        self.config = config
        self.num_mixed = num_spaces if config.mixes_memory else 0
        self.networks = nn.ModuleList(
            Network(config, num_spaces=self.num_mixed, backbone=backbone)
            for _ in range(num_networks if config.use_network else 0)
        )
        self.shortcut = None
        if config.use_shortcut:
            self.shortcut = LinearShortcut(config.lookback, config.horizon, config.season, num_beside)
        names = () if self.shortcut is None else self.shortcut.names
        self.base_names = (*names, *((NETWORK,) if len(self.networks) else ())) or NO_BASE
        self.value_gate = ValueGate(len(self.base_names), self.num_mixed, config.horizon)

    @property
    def thresholds(self) -> Tensor | None:
        """Of the trend classes, float32 [5]; the same in all networks. None without TAPR."""
        tapr = next((network.tapr for network in self.of_folds), None)
        return None if tapr is None else tapr.thresholds

    @property
    def of_folds(self) -> list[Network]:
        """The networks, by fold."""
        return [network for network in self.networks if isinstance(network, Network)]

    def forward(
        self,
        context: Tensor,
        neighbours: NeighbourTensors | None,
        *,
        unit: Tensor,
        fold: Tensor | None = None,
        beside: Tensor | None = None,
    ) -> ModelOutput:
        """One forecast of B windows.

        context: float32 [B, L], raw units. neighbours: required with GRA-M, and None without. unit: [B], the training
        standard deviation of each window's series. fold, beside: see `Batch`.
        """
        location, spread, z = self._normalised(context, neighbours, unit)
        memory, found = self._memory(neighbours, location, spread)
        networks, trend, gating = self._networks(z, neighbours, memory, found, fold)
        bases = self.bases(z, fold, scaled_beside(beside, unit, spread))
        if len(self.networks):
            bases = torch.cat([bases, networks.mean(dim=1, keepdim=True)], dim=1)
        mixed = self.value_gate(bases, memory, found)

        def raw(part: Tensor) -> Tensor:
            return part * spread[:, None] + location[:, None]

        def raw_parts(parts: Tensor) -> Tensor:
            return parts * spread[:, None, None] + location[:, None, None]

        return ModelOutput(
            forecast=raw(mixed.forecast),
            model_part=raw(mixed.model_part),
            memory_part=raw(mixed.memory_part),
            gate=mixed.gate,
            weights=mixed.weights,
            bases=raw_parts(bases),
            networks=raw_parts(networks),
            location=location,
            spread=spread,
            trend=trend,
            gating=gating,
        )

    def of_network(self, number: int, batch: Batch) -> tuple[NetworkOutput, Tensor]:
        """What one network says of a batch, its forecast in raw units, and the windows' spreads [B]."""
        location, spread, z = self._normalised(batch.context, batch.neighbours, batch.unit)
        memory, found = self._memory(batch.neighbours, location, spread)
        output: NetworkOutput = self.networks[number](z, batch.neighbours, memory, found)
        return output._replace(forecast=output.forecast * spread[:, None] + location[:, None]), spread

    def _normalised(
        self, context: Tensor, neighbours: NeighbourTensors | None, unit: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Location [B], spread [B] and the windows in these, z [B, L]."""
        if (neighbours is None) == self.config.use_gram:
            raise ValueError("a model with GRA-M needs neighbours, one without must not get any")
        location, spread = instance_norm(context, unit, self.config.spread_floor)
        return location, spread, (context - location[:, None]) / spread[:, None]

    def _memory(self, neighbours: NeighbourTensors | None, location: Tensor, spread: Tensor) -> tuple[Tensor, Tensor]:
        """The key spaces' forecasts that are mixed, in the window's location and spread [B, V, H]; which there are."""
        num = len(location)
        if neighbours is None or not self.num_mixed:
            return location.new_zeros(num, 0, self.config.horizon), location.new_zeros(num, 0, dtype=torch.bool)
        return (neighbours.forecasts - location[:, None, None]) / spread[:, None, None], neighbours.found

    def _networks(
        self, z: Tensor, neighbours: NeighbourTensors | None, memory: Tensor, found: Tensor, fold: Tensor | None
    ) -> tuple[Tensor, TrendOutput | None, GatingOutput | None]:
        """Their forecasts [B, F, H], or [B, 1, H] by the one of each window's fold; means of what else they say."""
        if not len(self.networks):
            return z.new_zeros(len(z), 0, self.config.horizon), None, None
        if fold is None or len(self.networks) == 1:
            outputs = [network(z, neighbours, memory, found) for network in self.networks]
            trend, gating = mean_of(outputs, neighbours)
            return torch.stack([output.forecast for output in outputs], dim=1), trend, gating
        forecast = z.new_zeros(len(z), 1, self.config.horizon)
        for number in range(len(self.networks)):
            rows = torch.nonzero(fold == number)[:, 0]
            if not len(rows):
                continue
            own = None if neighbours is None else neighbours.take(rows)
            output: NetworkOutput = self.networks[number](z[rows], own, memory[rows], found[rows])
            forecast = forecast.index_copy(0, rows, output.forecast[:, None])
        return forecast, None, None

    def bases(self, z: Tensor, fold: Tensor | None, beside: Tensor | None = None) -> Tensor:
        """The bases that need no network, [B, M, H]; a zero where there is no base at all. beside: scaled."""
        if self.shortcut is None:
            return z.new_zeros(len(z), 0 if len(self.networks) else len(NO_BASE), self.config.horizon)
        bases: Tensor = self.shortcut(z, fold, beside)
        return bases


def scaled_beside(beside: Tensor | None, unit: Tensor, spread: Tensor) -> Tensor | None:
    """Numbers of covariates [B, P] as a window is scaled: their effect is in the target's units."""
    return None if beside is None else beside * (unit / spread)[:, None]


def num_networks_in(names: set[str]) -> int:
    """How many networks the weights of these names are of."""
    return 1 + max((int(name.split(".")[1]) for name in names if name.startswith("networks.")), default=-1)
