"""Reprogramming: patches in words that the frozen language model knows (Time-LLM, Jin et al. 2024, section 3.1).

Owns the text prototypes and the cross-attention from patches to them. The language model itself is `backbone.py`.

The original learns its prototypes as `Linear(vocabulary -> num_prototypes)` over the frozen word embeddings: 50
million weights for GPT-2 and 77 GFLOP forward in each step, whatever the batch. A matrix of embeddings has full
column rank, so prototypes learned directly are exactly the same set of functions, with 65 times fewer weights and no
such product. They start as words of the vocabulary. The original stays as an option.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812 (its usual name)
from torch import Tensor, nn

from forecaster.bounds import at_least


@dataclass(frozen=True, kw_only=True)
class ReprogrammingSettings:
    """num_heads: of the attention; they divide d_model. num_prototypes: U, at most.

    vocabulary_mapping: learn prototypes as a map over the whole vocabulary, as the original does.
    """

    num_heads: int = 8
    num_prototypes: int = 1000
    vocabulary_mapping: bool = False

    def __post_init__(self) -> None:
        at_least(self, 1, "num_heads", "num_prototypes")


class Reprogramming(nn.Module):
    """Patches [B, P, D] -> [B, P, llm_dim], as mixtures of text prototypes E [U, llm_dim]:

        head_i  = softmax(W_q,i patches (W_k,i E)^T / sqrt(D / 2)) W_v,i E
        output  = W_o [head_1 .. head_n]

    U: `num_prototypes`, but never more than the vocabulary has words, since more of them would only repeat. Each head
    is D / 2 wide: a score is bilinear in a patch of width D, so heads wider than D could score nothing more, and
    these products are the larger part of a step with a small language model. No dropout on the attention: it would
    have to hold B x P x U numbers per head. Keys and values of the prototypes are the same for all windows and are
    computed once per call; all patches of a batch are then one long row of queries.

    prototypes: E, learned; the words at even distances in the vocabulary at first. With `vocabulary_mapping`
    they are `mapping` over all words instead, which is learned.
    """

    def __init__(
        self, words: Tensor, *, d_model: int, num_heads: int, num_prototypes: int, vocabulary_mapping: bool = False
    ) -> None:
        super().__init__()
        vocabulary, llm_dim = words.shape
        num = min(num_prototypes, vocabulary)
        self.num_heads, self.head_width = num_heads, max(1, d_model // 2)
        inner = num_heads * self.head_width
        self.mapping: nn.Linear | None = None
        self.prototypes: nn.Parameter | None = None
        if vocabulary_mapping:
            self.mapping = nn.Linear(vocabulary, num)
        else:
            chosen = torch.linspace(0, vocabulary - 1, num, device=words.device).round().long()
            self.prototypes = nn.Parameter(words[chosen].float().clone())
        self.query = nn.Linear(d_model, inner)
        self.key = nn.Linear(llm_dim, inner)
        self.value = nn.Linear(llm_dim, inner)
        self.output = nn.Linear(inner, llm_dim)

    def forward(self, patches: Tensor, words: Tensor) -> Tensor:
        """patches [B, P, D], words [vocabulary, llm_dim] (frozen; read with `vocabulary_mapping` only)."""
        prototypes = self.text_prototypes(words)
        rows = patches.flatten(0, 1)  # [B*P, D]
        query, key, value = self.query(rows), self.key(prototypes), self.value(prototypes)
        heads = F.scaled_dot_product_attention(self._split(query), self._split(key), self._split(value))
        mixed = heads[0].transpose(0, 1).reshape(len(rows), -1)  # [B*P, heads * D / 2]
        return self.output(mixed).view(*patches.shape[:2], -1)

    def text_prototypes(self, words: Tensor) -> Tensor:
        """E, [U, llm_dim]."""
        if self.mapping is None:
            assert self.prototypes is not None, "one of the two is always there"
            return self.prototypes
        return self.mapping(words.to(self.mapping.weight.dtype).T).T

    def _split(self, rows: Tensor) -> Tensor:
        """[N, heads * D / 2] -> [1, heads, N, D / 2]."""
        return rows.view(1, len(rows), self.num_heads, self.head_width).transpose(1, 2)
