"""A frozen language model by name: the one that ships, a folder, or one in the local cache. Nothing is downloaded."""

from __future__ import annotations

import torch

from forecaster.errors import ConfigError
from forecaster.language_models.backbone import TINY, Backbone

BUILTIN = "builtin:"


def load_backbone(llm: str, *, layers: int | None = None, dtype: torch.dtype = torch.float32) -> Backbone:
    """A language model by name: `builtin:tiny`, a folder, or `ID` or `ID@REVISION` in the Hugging Face cache.

    layers: its first so many, None for all. dtype: what its weights are held and computed in. Nothing is downloaded
    and no other model stands in. Raises `BackboneNotFoundError` (not on this machine, or a folder that holds none),
    `ConfigError` (a name or a number of layers that does not exist, a kind of model that cannot be used).
    """
    if llm.startswith(BUILTIN):
        if llm != TINY:
            raise ConfigError(f"there is no language model '{llm}'", hint=f"the one that ships is {TINY}")
        from forecaster.language_models.tiny import TinyBackbone

        return TinyBackbone(layers=layers, dtype=dtype)
    # Importing transformers takes longer than a forecast with the built-in model.
    from forecaster.language_models.pretrained import load_pretrained

    return load_pretrained(llm, layers=layers, dtype=dtype)
