"""The frozen language model as the forecaster sees it: embeddings in, hidden states out, no gradient of its own.

Owns the one seam between the network and any language model (`Backbone`), the keys and values of what stands before
(`Prefix`), and the choice by name. The two implementations are `tiny.py` (ships with the package) and `pretrained.py`
(what transformers loads). Which tokens the model reads is decided in `llm_path.py`.

A backbone is no `nn.Module`, so that a module that holds one neither trains it, nor switches its mode, nor writes its
weights into a checkpoint. It computes in its own dtype: an autocast around it is switched off inside, or each step
would copy every weight.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, Self

import torch
from torch import Tensor

from forecaster.bounds import at_least
from forecaster.errors import ConfigError, RunIncompatibleError

TINY = "builtin:tiny"


@dataclass(frozen=True, kw_only=True)
class BackboneSettings:
    """llm: `builtin:tiny`, a folder, or `ID@REVISION`. llm_layers: its first so many layers, None for all."""

    llm: str = TINY
    llm_layers: int | None = None

    def __post_init__(self) -> None:
        if self.llm_layers is not None:
            at_least(self, 1, "llm_layers")


@dataclass(frozen=True, kw_only=True, slots=True)
class Prefix:
    """Keys and values of the positions before, one pair per layer, each [B or 1, heads, T, head width]."""

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]

    @property
    def length(self) -> int:
        """T, positions."""
        return self.keys[0].shape[2]

    def expand(self, num_windows: int) -> Self:
        """The same before each of B windows, without a copy."""
        return type(self)(
            keys=tuple(key.expand(num_windows, -1, -1, -1) for key in self.keys),
            values=tuple(value.expand(num_windows, -1, -1, -1) for value in self.values),
        )


class Backbone(Protocol):
    """A frozen language model.

    width: of its embeddings and hidden states. is_causal: no position sees a later one. max_positions: the
    longest sequence it was made for, None where it has no limit. reference: JSON-able, which weights these are:
    `id`, `revision` (a commit, or None), `layers`, `fingerprint`.
    """

    width: int
    is_causal: bool
    max_positions: int | None
    reference: dict[str, Any]

    @property
    def word_embeddings(self) -> Tensor:
        """[vocabulary, width], frozen, in the backbone's dtype."""
        ...

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, without special tokens."""
        ...

    def embed(self, ids: Tensor) -> Tensor:
        """Token ids int64 [..., T] -> [..., T, width]."""
        ...

    def forward(self, embeddings: Tensor, prefix: Prefix | None = None) -> Tensor:
        """[B, T, width] -> hidden states [B, T, width] in the backbone's dtype, after the last layer used.

        prefix: what stands before, of the same B; its positions come first. Gradients reach `embeddings` only.
        """
        ...

    def prefix(self, embeddings: Tensor, before: Prefix | None = None) -> Prefix:
        """Keys and values of [B, T, width], with those `before` them first. Never with a gradient."""
        ...

    def to(self, target: torch.device, dtype: torch.dtype | None = None) -> None:
        """Move the weights, and turn them into another dtype, unless they are there already and have it."""
        ...


def check_reference(backbone: Backbone, expected: Mapping[str, Any], where: str) -> None:
    """Raise `RunIncompatibleError` unless a backbone has the very weights that something was trained against.

    expected: a `reference`. where: what it was trained for, for the message. A folder may have moved: only weights
    count.
    """
    found = backbone.reference
    for name in ("layers", "fingerprint"):
        if found[name] != expected.get(name):
            raise RunIncompatibleError(
                f"{where} was trained with {_named(expected)}, but this is {_named(found)}: {name} "
                f"{str(expected.get(name))[:12]}, not {str(found[name])[:12]}",
                hint="give the language model that it was trained with (--llm)",
            )


def weights_fingerprint(weights: Iterable[Tensor]) -> str:
    """sha256 over the stored values of all weights, whatever their names and order: libraries rename them."""
    digests = []
    for weight in weights:
        values = weight.detach().cpu().contiguous()
        digest = hashlib.sha256(f"{values.dtype} {list(values.shape)}".encode())
        digest.update(values.reshape(-1).view(torch.uint8).numpy().data)
        digests.append(digest.digest())
    return hashlib.sha256(b"".join(sorted(digests))).hexdigest()


def check_layers(llm: str, layers: int | None, has: int) -> int:
    """How many layers to use. Raises `ConfigError` that says how many the model has."""
    if layers is not None and not 1 <= layers <= has:
        raise ConfigError(f"llm_layers is {layers}, but {llm} has {has}", hint=f"choose 1 to {has}")
    return has if layers is None else layers


def _named(reference: Mapping[str, Any]) -> str:
    revision = reference.get("revision")
    return f"{reference.get('id')}@{revision}" if revision else str(reference.get("id"))
