"""What goes into the model and what comes out of it: tensors only. How they are made is `batches.py`.

One legend of letters for the whole package: B windows (moments x variates), L lookback, H horizon, P patches,
D model width, S TAPR scales, V key spaces of the memory, K neighbours that the model looks at one by one (`top_k`),
M bases of the model part (`shortcut.py`).
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple, Self

import numpy as np
from torch import Tensor, device


@dataclass(frozen=True, kw_only=True, slots=True)
class NeighbourTensors:
    """What a memory answered for B windows.

    forecasts: float32 [B, V, H], raw units: the mean of the neighbours' futures in each key space, read as they would
    follow the query. found: bool [B, V], whether that key space had any neighbour; what `forecasts`
    holds elsewhere does not matter. contexts, futures: float32 [B, K, L] and [B, K, H]: the nearest `top_k`
    neighbours over all key spaces, each in its own location and spread. similarity: float32 [B, K],
    `softmax(-distance^2 / temperature)` over the valid ones. valid: bool [B, K]; what the other fields hold in an
    unused slot does not matter.
    """

    forecasts: Tensor
    found: Tensor
    contexts: Tensor
    futures: Tensor
    similarity: Tensor
    valid: Tensor

    def to(self, target: device) -> Self:
        """The same on another device."""
        return replace(self, **{field.name: getattr(self, field.name).to(target) for field in fields(self)})

    def take(self, chosen: slice | np.ndarray | Tensor) -> Self:
        """Some of the windows. chosen: a slice, or numbers."""
        return replace(self, **{field.name: getattr(self, field.name)[chosen] for field in fields(self)})


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """B windows with what followed them.

    context: float32 [B, L], raw units, oldest step first. future: float32 [B, H], raw units. unit: float32 [B], the
    training standard deviation of each window's series, in which errors are counted. neighbours: None where the model
    has no memory. fold: int64 [B], in training only: the block of time that each window lies in, whose linear
    shortcut was fitted on the other blocks, and whose network was trained on them; None uses the fit on all and the
    mean of the networks. admitted: bool [B, F], in training only: which network may be trained on which window. beside:
    float32 [B, P], the numbers of covariates in training units (`retrieval/beside.py`), None for a model that reads
    none.
    """

    context: Tensor
    future: Tensor
    unit: Tensor
    neighbours: NeighbourTensors | None
    fold: Tensor | None = None
    admitted: Tensor | None = None
    beside: Tensor | None = None

    def __len__(self) -> int:
        return len(self.context)

    def to(self, target: device) -> Self:
        """The same on another device."""
        return replace(self, **{name: part.to(target) for name, part in self._parts().items()})

    def take(self, chosen: slice | np.ndarray | Tensor) -> Self:
        """Some of the windows. chosen: a slice, or numbers."""
        parts: dict[str, Any] = {
            name: part.take(chosen) if isinstance(part, NeighbourTensors) else part[chosen]
            for name, part in self._parts().items()
        }
        return replace(self, **parts)

    def _parts(self) -> dict[str, Any]:
        """The fields that are there, by name."""
        parts = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: part for name, part in parts.items() if part is not None}


class TrendOutput(NamedTuple):
    """What TAPR says of the direction.

    direction: logits [B, 3], up / flat / down. magnitude: logits [B, 4], strong up /
    weak up / weak down / strong down. forecast: [B, H], the level-3 regression, standardised units of the window.
    embedding: [B, D].
    """

    direction: Tensor
    magnitude: Tensor
    forecast: Tensor
    embedding: Tensor


class GatingOutput(NamedTuple):
    """What GRA-M's feature-space gating did.

    context: [B, D], the fused embedding. gate: [B], 1 trusts the current features,
    0 the neighbours; exactly 1 without any. match: [B, K], 0 in unused slots. weights: [B, K], how much each
    neighbour has in what was retrieved; they sum to 1, or to 0 where there is nothing to weigh. confidence: [B], sum
    of similarity * match.
    """

    context: Tensor
    gate: Tensor
    match: Tensor
    weights: Tensor
    confidence: Tensor


class NetworkOutput(NamedTuple):
    """What one network says. forecast: [B, H]. trend, gating: None where TAPR or GRA-M is off."""

    forecast: Tensor
    trend: TrendOutput | None
    gating: GatingOutput | None


class ModelOutput(NamedTuple):
    """A forecast and how it came about, in raw units.

    `forecast = gate * model_part + (1 - gate) * memory_part`, all [B, H].

    gate: the value-space gate, exactly 1 where no neighbour is. weights: [B, M + V, H], how much each base and each key
    space has in the forecast; they sum to 1. bases: [B, M, H], what the weights of the model part apply to. networks:
    [B, F, H], what each network forecasts, of which the base `network` is the mean; one per window where folds are
    given, none without networks. location, spread: [B], the window's own statistics. trend, gating: means over the
    networks, None without any, or where TAPR or GRA-M is off.
    """

    forecast: Tensor
    model_part: Tensor
    memory_part: Tensor
    gate: Tensor
    weights: Tensor
    bases: Tensor
    networks: Tensor
    location: Tensor
    spread: Tensor
    trend: TrendOutput | None
    gating: GatingOutput | None
