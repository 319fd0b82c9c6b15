"""From patches to a forecast through the frozen language model: what it reads, in which order, and what is read off it.

Owns the order of tokens, the text's place in it and the head. The text is `prompt.py`, the words for patches are
`reprogramming.py`, the model is `backbone.py`; where the trend and retrieval tokens come from is `tapr.py` and
`gram.py`.

Two orders. `spec` is the method's: trend, retrieval, text, patches. All positions are computed for all windows, with
gradients, because the text comes after tokens that have one. `cached` puts the text first. In a causal model nothing
in the text then depends on anything learned: the keys and values of the static text are computed once and for all,
those of the statistics once per batch and without a gradient, and gradients visit the positions after them only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from forecaster.bounds import at_least, one_of
from forecaster.errors import ConfigError
from forecaster.language_models.backbone import Backbone, Prefix
from forecaster.model.patching import PatchSettings
from forecaster.model.prompt import Prompt, PromptSettings
from forecaster.model.reprogramming import Reprogramming, ReprogrammingSettings

PromptLayout = Literal["spec", "cached"]


@dataclass(frozen=True, kw_only=True)
class LlmPathSettings(PatchSettings, ReprogrammingSettings, PromptSettings):
    """What the path is made with.

    d_ff: features of the language model's output that the head reads, at most the model's own width. prompt_layout:
    `spec` (trend, retrieval, text, patches) or `cached` (text first).
    """

    use_llm: bool = False
    d_ff: int = 128
    prompt_layout: PromptLayout = "spec"

    def __post_init__(self) -> None:
        PatchSettings.__post_init__(self)
        ReprogrammingSettings.__post_init__(self)
        at_least(self, 1, "d_ff")
        one_of(self, "prompt_layout", PromptLayout)


class LlmPath(nn.Module):
    """Standardised windows and their patches -> what the language model adds to the forecast, [B, H].

        words  = Reprogramming(patches)                                              [B, P, llm_dim]
        hidden = LLM([trend, retrieval, text, words])  or  LLM([text, trend, retrieval, words])
        output = W_head flatten(hidden[last P positions, first d_ff features]) + b   [B, H], standardised

    d_ff features, or all llm_dim if the model has fewer. The head starts at zero, because the network adds to
    closed-form shortcuts; the first step therefore moves the head only. The frozen model is held outside of PyTorch's
    registry: it is not in `state_dict()`, not among `parameters()`, and follows the input to its device. It computes
    in its own dtype, whatever autocast is on; the rest follows autocast.

    num_tokens: of the trend and the retrieval, as they will be given. prompt: token ids. reprogramming: patches to
    words. head: W_head, b.
    """

    def __init__(self, config: LlmPathSettings, backbone: Backbone, *, num_tokens: int = 0) -> None:
        super().__init__()
        if config.prompt_layout == "cached" and not backbone.is_causal:
            raise ConfigError(
                f"prompt_layout=cached needs a causal language model, and {backbone.reference['id']} is not one",
                hint="use prompt_layout=spec, or another --llm",
            )
        self.config = config
        self.backbone = backbone
        self.prompt = Prompt(
            backbone.encode, description=config.description, lookback=config.lookback, horizon=config.horizon
        )
        self.reprogramming = Reprogramming(
            backbone.word_embeddings,
            d_model=config.d_model,
            num_heads=config.num_heads,
            num_prototypes=config.num_prototypes,
            vocabulary_mapping=config.vocabulary_mapping,
        )
        self.num_features = min(config.d_ff, backbone.width)
        self.dropout = nn.Dropout(config.dropout)
        self.head = nn.Linear(config.num_patches * self.num_features, config.horizon)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self._static: tuple[torch.device, Prefix] | None = None
        _check_positions(config, backbone, self.prompt, num_tokens)

    def forward(
        self, z: Tensor, patches: Tensor, trend_token: Tensor | None, retrieval_tokens: Tensor | None
    ) -> Tensor:
        """z [B, L], patches [B, P, D], trend_token [B, 1, llm_dim], retrieval_tokens [B, T, llm_dim] -> [B, H]."""
        if not (torch.is_grad_enabled() or self.head.weight.any() or self.head.bias.any()):
            return z.new_zeros(len(z), self.config.horizon)  # nothing comes out of a head that is still zero
        self.backbone.to(z.device)
        words = self.reprogramming(patches, self.backbone.word_embeddings)  # [B, P, llm_dim]
        tokens = [token for token in (trend_token, retrieval_tokens) if token is not None]
        if self.config.prompt_layout == "cached":
            prefix = self._text_prefix(z)
            hidden = self.backbone.forward(_joined([*tokens, words]), prefix)
        else:
            hidden = self.backbone.forward(_joined([*tokens, self._text(z), words]))
        read = hidden[:, -self.config.num_patches :, : self.num_features]  # [B, P, features]
        return self.head(self.dropout(read.flatten(1).to(words.dtype)))

    @torch.no_grad()
    def _text(self, z: Tensor) -> Tensor:
        """Embeddings of the whole prompt, static part first, [B, T, llm_dim]."""
        static = self.prompt.static_ids.expand(len(z), -1)
        return self.backbone.embed(torch.cat([static, self.prompt(z)], dim=1))

    @torch.no_grad()
    def _text_prefix(self, z: Tensor) -> Prefix:
        """Keys and values of the whole prompt before each window."""
        statistics = self.backbone.embed(self.prompt(z))  # [B, T, llm_dim]
        return self.backbone.prefix(statistics, self._static_prefix(z.device).expand(len(z)))

    def _static_prefix(self, device: torch.device) -> Prefix:
        """Keys and values of the static text, computed when they are first asked for on a device."""
        if self._static is None or self._static[0] != device:
            # Outside of inference mode even if the first to ask is in it: training could not use them otherwise.
            with torch.inference_mode(mode=False), torch.no_grad():
                self._static = device, self.backbone.prefix(self.backbone.embed(self.prompt.static_ids[None]))
        return self._static[1]


def _joined(parts: list[Tensor]) -> Tensor:
    """Parts [B, T_i, llm_dim] one after the other, in the dtype of the last."""
    return torch.cat([part.to(parts[-1].dtype) for part in parts], dim=1)


def _check_positions(config: LlmPathSettings, backbone: Backbone, prompt: Prompt, num_tokens: int) -> None:
    """Raise `ConfigError` if what the model reads is longer than it can be."""
    num = prompt.num_static + prompt.num_dynamic + num_tokens + config.num_patches
    if backbone.max_positions is not None and num > backbone.max_positions:
        raise ConfigError(
            f"{backbone.reference['id']} reads {backbone.max_positions} positions, but {config.num_patches} patches of "
            f"lookback {config.lookback} and the prompt are {num}",
            hint="lower lookback, raise patch_stride, or shorten description",
        )
