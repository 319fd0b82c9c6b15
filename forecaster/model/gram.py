"""GRA-M inside the network: retrieved neighbours meet the current features, and become a token (docs/method.md).

This file owns the gate in the space of features and the retrieval token. It does not search (that is the memory), does
not make tensors of what was found (`neighbours.py`), and does not own the gate in the space of values, which mixes the
memory's forecast into the model's (`value_gate.py`).

Neighbours are a set. Their order says nothing, and a slot without a neighbour says nothing whatever it holds: it is
emptied before anything is computed from it, because NaN times zero is NaN, in gradients too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from forecaster.bounds import at_least, one_of
from forecaster.model.types import GatingOutput, NeighbourTensors

GramForm = Literal["full", "design"]
LEAST_KNOWLEDGE = 1e-6  # below this sum of similarity * match, what was retrieved fades out instead of being scaled up


@dataclass(frozen=True, kw_only=True)
class GramSettings:
    """use_gram: off, no neighbour is used at all. top_k: neighbours that enter the gating and the prompt. d_repr: width
    of what is read of a neighbour before it becomes one of `d_model`. gram_form: `full`, or `design`: the gate over
    features and the retrieval prompt alone, without the value gate, the linear shortcut and the key spaces' forecasts.
    """

    use_gram: bool = True
    top_k: int = 5
    d_repr: int = 128
    gram_form: GramForm = "full"

    def __post_init__(self) -> None:
        at_least(self, 1, "top_k", "d_repr")
        one_of(self, "gram_form", GramForm)


def match_weights(similarity: Tensor, match: Tensor) -> tuple[Tensor, Tensor]:
    """Weights of the neighbours [B, K], and the confidence [B], which is what the weights summed to before: both
    from `similarity_k * match_k`. similarity, match: [B, K].

    Weights sum to 1, or to 0 where there is nothing to weigh.
    """
    product = similarity * match
    confidence = product.sum(dim=1)
    return product / confidence.clamp(min=LEAST_KNOWLEDGE)[:, None], confidence


class AdaptiveKnowledgeGating(nn.Module):
    """How far to trust what followed similar stretches of the past: patches [B, P, D] -> patches, `GatingOutput`.

        current     = MLP_c(mean_p patches_p)                                  [B, D]
        retrieved_k = MLP_r([context_k, future_k])                             [B, K, D]
        match_k     = sigmoid(MLP_m([current, retrieved_k]))                   [B, K]
        weights_k   = similarity_k match_k / sum_j similarity_j match_j        [B, K]
        ref         = sum_k weights_k retrieved_k                              [B, D]
        gate        = sigmoid(MLP_g([current, ref]))                           [B]
        fused       = gate * current + (1 - gate) * ref                        [B, D]
        patches_p   = patches_p + W fused                                      the same for every p
        confidence  = sum_k similarity_k match_k                               [B], in [0, 1]

    A neighbour is read standardised by its own location and spread, which is how it reads in the query's. Without any
    valid neighbour ref is 0, gate is exactly 1, fused is current, and match and confidence are 0.

    current: MLP_c. retrieved: MLP_r, (L + H) -> d_repr -> D: at L 512, H 96, D 32 and d_repr 128 it takes 82 thousand
    multiply-adds for a neighbour, 92 million for 224 windows of K = 5, which is a few milliseconds of one core. match:
    MLP_m. gate: MLP_g. enhancement: W; small at first, so that the patches start out nearly as they came while
    gradients reach everything.
    """

    def __init__(self, lookback: int, horizon: int, d_model: int, *, d_repr: int, dropout: float) -> None:
        super().__init__()
        self.current = _mlp(d_model, d_model, d_model, dropout)
        self.retrieved = _mlp(lookback + horizon, d_repr, d_model, dropout)
        self.match = _mlp(2 * d_model, d_model, 1, dropout)
        self.gate = _mlp(2 * d_model, d_model, 1, dropout)
        self.enhancement = nn.Linear(d_model, d_model)
        nn.init.normal_(self.enhancement.weight, std=0.01)
        nn.init.zeros_(self.enhancement.bias)

    def forward(self, patches: Tensor, neighbours: NeighbourTensors) -> tuple[Tensor, GatingOutput]:
        """patches: [B, P, D]. Of the neighbours: contexts, futures, similarity and valid. What is returned is float32
        under autocast too, except the patches.
        """
        valid = neighbours.valid  # [B, K]
        pairs = torch.cat([neighbours.contexts, neighbours.futures], dim=-1)  # [B, K, L + H]
        pairs = pairs.masked_fill(~valid[..., None], 0)
        similarity = neighbours.similarity.masked_fill(~valid, 0)

        current = self.current(patches.mean(dim=1)).float()  # [B, D]
        retrieved = self.retrieved(pairs).float()  # [B, K, D]
        beside = torch.cat([current[:, None].expand_as(retrieved), retrieved], dim=-1)  # [B, K, 2 * D]
        match = self.match(beside).float().squeeze(-1).sigmoid().masked_fill(~valid, 0)
        weights, confidence = match_weights(similarity, match)
        ref = (weights[..., None] * retrieved).sum(dim=1)  # [B, D]

        gate = self.gate(torch.cat([current, ref], dim=-1)).float().squeeze(-1).sigmoid()
        gate = gate.masked_fill(~valid.any(dim=1), 1)
        fused = gate[:, None] * current + (1 - gate)[:, None] * ref
        enhanced = patches + self.enhancement(fused)[:, None]
        return enhanced, GatingOutput(context=fused, gate=gate, match=match, weights=weights, confidence=confidence)


class RetrievalAugmentedPrompt(nn.Module):
    """What was retrieved, as tokens for the language model: context [B, D], confidence [B] -> [B, num_tokens, llm_dim].

        tokens = W [confidence * context, confidence] + b

    W and b: projection. A confidence of 0 gives b whatever the context is: one learned way of saying that nothing
    was found, which a little confidence only changes a little.
    """

    def __init__(self, d_model: int, llm_dim: int, num_tokens: int = 1) -> None:
        super().__init__()
        self.num_tokens = num_tokens
        self.projection = nn.Linear(d_model + 1, num_tokens * llm_dim)

    def forward(self, context: Tensor, confidence: Tensor) -> Tensor:
        """context and confidence as in `GatingOutput`."""
        known = confidence[:, None] * torch.cat([context, torch.ones_like(confidence)[:, None]], dim=-1)  # [B, D + 1]
        tokens: Tensor = self.projection(known).unflatten(-1, (self.num_tokens, -1))
        return tokens


def _mlp(width_in: int, hidden: int, width_out: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width_in, hidden), nn.GELU(), nn.Dropout(dropout), nn.Linear(hidden, width_out))
