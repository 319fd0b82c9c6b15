"""Gating in the space of values: how much of each step comes from the model, and how much from each key space.

The rest of GRA-M (gating of features, the retrieval token) is `gram.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from forecaster.bounds import at_least

NUM_KNOTS = 9  # of the weights' course over the horizon; 1, 3, 9 and H differ by less than 0.1% (docs/experiments.md)


@dataclass(frozen=True, kw_only=True)
class GateSettings:
    """gate_shrinkage: how strongly its fit is held at half linear map, half memory; None chooses it by cross-validation
    (`training/fit_gate.py`).
    """

    gate_shrinkage: float | None = None

    def __post_init__(self) -> None:
        if self.gate_shrinkage is not None:
            at_least(self, 0, "gate_shrinkage")


class Mix(NamedTuple):
    """A mixed forecast [B, H] and how it came about; see `ModelOutput`, whose fields these are, here without units."""

    forecast: Tensor
    model_part: Tensor
    memory_part: Tensor
    gate: Tensor
    weights: Tensor


def hat_functions(num_knots: int, horizon: int) -> Tensor:
    """Piecewise linear interpolation between knots spread evenly over the horizon: float32 [num_knots, H]."""
    if num_knots == 1 or horizon == 1:
        return torch.cat([torch.ones(1, horizon), torch.zeros(num_knots - 1, horizon)])
    place = torch.linspace(0, num_knots - 1, horizon)
    return (1 - (place - torch.arange(num_knots)[:, None]).abs()).clamp(min=0)


def mix(bases: Tensor, memory: Tensor, found: Tensor, weights: Tensor) -> Mix:
    """`y = gate * y_model + (1 - gate) * y_memory`, per step of the horizon.

    bases: [B, M, H]; memory: [B, V, H]; found: bool [B, V]; weights: [B, M + V, H], softmax over the
    parts that are there, so 0 for a key space without neighbours. gate = 1 - sum of the key spaces' weights: exactly
    1 without any neighbour, whatever `memory` holds. y_model = weighted mean of the bases; y_memory = weighted mean of
    the key spaces.
    """
    num_bases = bases.shape[1]
    of_bases, of_memory = weights[:, :num_bases], weights[:, num_bases:]
    memory_share = of_memory.sum(dim=1)  # [B, H]
    gate = 1 - memory_share
    share = of_bases.sum(dim=1).clamp(min=torch.finfo(weights.dtype).tiny)  # which a softmax rounds to 0 in the end
    model_part = (of_bases * bases).sum(dim=1) / share
    usable = torch.where(found[..., None], memory, torch.zeros_like(memory))
    safe_share = torch.where(memory_share > 0, memory_share, torch.ones_like(memory_share))
    memory_part = (of_memory * usable).sum(dim=1) / safe_share
    return Mix(gate * model_part + memory_share * memory_part, model_part, memory_part, gate, weights)


class ValueGate(nn.Module):
    """One softmax over the M bases and V key spaces, the same for every window, smooth in the horizon step.

    `weights[p, h] = softmax_p(sum_j logits[p, j] hat_j(h))` over the parts that a window has. It does not look at the
    window: a gate that also sees distances and spreads fits ETTh1's training part better and its test part worse
    (docs/experiments.md). logits: parameter [M + V, knots], zero (every part counts the same) until
    `fit_gate.py` fits them; no gradient trains them.
    """

    hats: Tensor

    def __init__(self, num_bases: int, num_spaces: int, horizon: int, num_knots: int = NUM_KNOTS) -> None:
        super().__init__()
        knots = min(num_knots, horizon)
        self.logits = nn.Parameter(torch.zeros(num_bases + num_spaces, knots), requires_grad=False)
        self.register_buffer("hats", hat_functions(knots, horizon), persistent=False)
        self.num_bases = num_bases

    def forward(self, bases: Tensor, memory: Tensor, found: Tensor) -> Mix:
        """Shapes as in `mix`."""
        there = torch.cat([found.new_ones(len(found), self.num_bases), found], dim=1)  # [B, M + V]
        # Not a matrix product: one would be rounded to half precision under autocast, and the weights decide
        # everything.
        logits = (self.logits[:, :, None] * self.hats).sum(dim=1)  # [M + V, H]
        weights = torch.softmax(logits.masked_fill(~there[..., None], -torch.inf), dim=1)
        return mix(bases, memory, found, weights)
