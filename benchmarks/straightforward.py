"""A frozen language model for forecasting, written the straightforward way: what benchmarks/llm_speed.py compares with.

It follows the reference code of Time-LLM (Jin et al. 2024): prototypes from a `Linear` over the whole vocabulary,
wide reprogramming heads with their attention written out, eager attention that returns all attentions and hidden
states, float32, text prompts with raw numbers, written and tokenised one by one in each step and padded. Unlike
there, the frozen model is in eval mode, attention over prompts sees no padding, and the trend and retrieval tokens of
this project come first, so that both compute the same kind of thing. Nothing in the product uses this file.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoTokenizer


class StraightforwardPath(nn.Module):
    """Standardised windows and patches -> forecast [B, H]; arguments and result as those of `LlmPath`."""

    def __init__(
        self, folder: Path, *, description: str, num_layers: int, lookback: int, horizon: int, num_patches: int
    ) -> None:
        super().__init__()
        d_model, self.d_ff, self.num_heads, num_prototypes = 32, 128, 8, 1000
        config = AutoConfig.from_pretrained(folder)
        config.num_hidden_layers = num_layers
        config.output_attentions = config.output_hidden_states = True
        self.llm = AutoModel.from_pretrained(folder, config=config, attn_implementation="eager")
        self.llm.float().eval().requires_grad_(False)
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.words = self.llm.get_input_embeddings().weight
        vocabulary, llm_dim = self.words.shape
        self.about = (description, lookback, horizon)
        self.num_patches = num_patches
        self.mapping = nn.Linear(vocabulary, num_prototypes)
        inner = self.d_ff * self.num_heads
        self.query = nn.Linear(d_model, inner)
        self.key = nn.Linear(llm_dim, inner)
        self.value = nn.Linear(llm_dim, inner)
        self.output = nn.Linear(inner, llm_dim)
        self.dropout = nn.Dropout(0.1)
        self.head = nn.Linear(self.d_ff * num_patches, horizon)

    def forward(self, z: Tensor, patches: Tensor, trend_token: Tensor, retrieval_tokens: Tensor) -> Tensor:
        """z [B, L], patches [B, P, D], two tokens [B, 1, llm_dim] -> [B, H]."""
        ids, seen = self.prompts(z)
        prototypes = self.mapping(self.words.T).T
        embeddings = torch.cat([trend_token, retrieval_tokens, self.words[ids], self.reprogram(patches, prototypes)], 1)
        ones = seen.new_ones(len(z), 1)
        mask = torch.cat([ones.expand(-1, 2), seen, ones.expand(-1, self.num_patches)], dim=1)
        hidden = self.llm(inputs_embeds=embeddings, attention_mask=mask).last_hidden_state
        return self.head(hidden[:, -self.num_patches :, : self.d_ff].flatten(1))

    def prompts(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Token ids [B, T] and which of them are no padding."""
        rows = [self.tokenizer(self.text(window)).input_ids for window in z]
        longest = max(len(row) for row in rows)
        ids = torch.tensor([[0] * (longest - len(row)) + row for row in rows])
        seen = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
        return ids, seen

    def text(self, window: Tensor) -> str:
        """The prompt of one window [L]."""
        spectrum = torch.fft.rfft(window)
        lags = torch.fft.irfft(spectrum * spectrum.conj()).topk(5).indices
        trend = "upward" if window.diff().sum() > 0 else "downward"
        description, lookback, horizon = self.about
        return (
            f"<|start_prompt|>Dataset description: {description} Task description: forecast the next {horizon} steps "
            f"given the previous {lookback} steps information; Input statistics: min value {window.min().item()}, max "
            f"value {window.max().item()}, median value {window.median().item()}, the trend of input is {trend}, top 5 "
            f"lags are : {lags.tolist()}<|<end_prompt>|>"
        )

    def reprogram(self, patches: Tensor, prototypes: Tensor) -> Tensor:
        """patches [B, P, D], prototypes [1000, llm_dim] -> [B, P, llm_dim]."""
        num, length, _ = patches.shape
        query = self.query(patches).view(num, length, self.num_heads, -1)
        key = self.key(prototypes).view(len(prototypes), self.num_heads, -1)
        value = self.value(prototypes).view(len(prototypes), self.num_heads, -1)
        scores = torch.einsum("blhe,she->bhls", query, key) / math.sqrt(query.shape[-1])
        attention = self.dropout(torch.softmax(scores, dim=-1))
        mixed = torch.einsum("bhls,she->blhe", attention, value)
        return self.output(mixed.reshape(num, length, -1))
