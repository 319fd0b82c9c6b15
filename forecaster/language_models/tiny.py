"""`builtin:tiny`: a small frozen GPT-2 that has never read anything. Its weights are random and always the same.

It needs no download, and is what the default, the demo and the tests use. Whatever it does for a forecast, it does as
a fixed random mixing of positions, not as knowledge of language; a pretrained model is one `--llm` away.

The forward pass is GPT-2's (Radford et al. 2019), written out here because importing transformers takes longer than a
whole forecast with this model; a test holds it against `transformers.GPT2Model`. The weights come from the raw bits
of numpy's PCG64, which never change, rather than from a generator of torch, which may. The tokenizer is a byte-level
BPE of 512 tokens (tests/make_tokenizer.py), so that no text has an unknown token.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 (its usual name)
from tokenizers import Tokenizer
from torch import Tensor

from forecaster.language_models.backbone import TINY, Prefix, check_layers, weights_fingerprint

TOKENIZER = Path(__file__).parent / "shipped" / "tiny_tokenizer.json"
NUM_LAYERS, WIDTH, NUM_HEADS, MAX_POSITIONS = 2, 64, 4, 2048
SEED = 20240
REVISION = "1"  # raised when the weights or the tokenizer change


class TinyBackbone:
    """The `Backbone` that ships with the package. Per layer, pre-norm:

        x = x + W_o attention(LN(x) W_qkv);  x = x + W_2 gelu(W_1 LN(x));  hidden = LN(x)

    with causal attention, learned positions added to the embeddings, and all norms without scale and shift.
    """

    width = WIDTH
    is_causal = True
    max_positions: int | None = MAX_POSITIONS

    def __init__(self, *, layers: int | None, dtype: torch.dtype) -> None:
        self.num_layers = check_layers(TINY, layers, NUM_LAYERS)
        self.tokenizer = Tokenizer.from_file(str(TOKENIZER))
        weights = tiny_weights(self.tokenizer.get_vocab_size())
        used = {name: weight for name, weight in weights.items() if _layer(name) < self.num_layers}
        self.reference = {
            "id": TINY,
            "revision": REVISION,
            "layers": self.num_layers,
            "fingerprint": weights_fingerprint(used.values()),
        }
        self.weights = {name: weight.to(dtype) for name, weight in used.items()}

    @property
    def word_embeddings(self) -> Tensor:
        """[vocabulary, 64]."""
        return self.weights["words"]

    def encode(self, text: str) -> list[int]:
        """Token ids of a text."""
        return list(self.tokenizer.encode(text).ids)

    def embed(self, ids: Tensor) -> Tensor:
        """Token ids int64 [..., T] -> [..., T, 64]."""
        return self.word_embeddings[ids]

    def forward(self, embeddings: Tensor, prefix: Prefix | None = None) -> Tensor:
        """[B, T, 64] -> hidden states [B, T, 64]. See `Backbone.forward`."""
        return self._run(embeddings, prefix)[0]

    @torch.no_grad()
    def prefix(self, embeddings: Tensor, before: Prefix | None = None) -> Prefix:
        """Keys and values of [B, T, 64]. See `Backbone.prefix`."""
        return self._run(embeddings, before)[1]

    def to(self, target: torch.device, dtype: torch.dtype | None = None) -> None:
        """See `Backbone.to`."""
        words = self.word_embeddings
        if words.device != target or dtype not in (None, words.dtype):
            self.weights = {name: weight.to(target, dtype) for name, weight in self.weights.items()}

    def _run(self, embeddings: Tensor, before: Prefix | None) -> tuple[Tensor, Prefix]:
        num_before = 0 if before is None else before.length
        length = embeddings.shape[1]
        x = embeddings.to(self.word_embeddings.dtype) + self.weights["positions"][num_before : num_before + length]
        keys, values = [], []
        with torch.autocast(x.device.type, enabled=False):
            for layer in range(self.num_layers):
                past = None if before is None else (before.keys[layer], before.values[layer])
                mixed, key, value = self._attention(layer, _norm(x), past)
                x = x + mixed
                inner = F.gelu(_norm(x) @ self.weights[f"{layer}.in"], approximate="tanh")
                x = x + inner @ self.weights[f"{layer}.out"]
                keys.append(key)
                values.append(value)
            return _norm(x), Prefix(keys=tuple(keys), values=tuple(values))

    def _attention(self, layer: int, x: Tensor, past: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor, Tensor]:
        """x [B, T, 64] -> what it adds [B, T, 64], and the keys and values [B, heads, T before + T, 16]."""
        num, length, _ = x.shape
        projected = (x @ self.weights[f"{layer}.qkv"]).view(num, length, 3, NUM_HEADS, WIDTH // NUM_HEADS)
        query, key, value = projected.permute(2, 0, 3, 1, 4)  # each [B, heads, T, 16]
        if past is None:
            mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        else:
            key, value = torch.cat([past[0], key], dim=2), torch.cat([past[1], value], dim=2)
            seen = torch.ones(length, key.shape[2], dtype=torch.bool, device=x.device).tril(key.shape[2] - length)
            mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=seen)
        return mixed.transpose(1, 2).reshape(num, length, WIDTH) @ self.weights[f"{layer}.mix"], key, value


def tiny_weights(vocabulary: int) -> dict[str, Tensor]:
    """All weights, float32, by name; matrices are [in, out]. The same on every machine and under every version.

    Matrices have standard deviation 1/sqrt(in), so that a layer changes what it reads by about as much as that is;
    embeddings have 0.1, positions 0.02.
    """
    shapes: dict[str, tuple[int, int, float]] = {
        "words": (vocabulary, WIDTH, 0.1),
        "positions": (MAX_POSITIONS, WIDTH, 0.02),
    }
    for layer in range(NUM_LAYERS):
        shapes[f"{layer}.qkv"] = (WIDTH, 3 * WIDTH, WIDTH**-0.5)
        shapes[f"{layer}.mix"] = (WIDTH, WIDTH, WIDTH**-0.5)
        shapes[f"{layer}.in"] = (WIDTH, 4 * WIDTH, WIDTH**-0.5)
        shapes[f"{layer}.out"] = (4 * WIDTH, WIDTH, (4 * WIDTH) ** -0.5)
    bits = np.random.PCG64(SEED)
    weights = {}
    for name, (rows, columns, deviation) in shapes.items():
        uniform = (bits.random_raw(rows * columns) >> np.uint64(11)) * 2.0**-53  # in [0, 1)
        scaled = (2 * uniform - 1) * (3**0.5 * deviation)
        weights[name] = torch.from_numpy(scaled.astype(np.float32)).view(rows, columns)
    return weights


def _norm(x: Tensor) -> Tensor:
    return F.layer_norm(x, (WIDTH,))


def _layer(name: str) -> int:
    """Which layer a weight is of; -1 for the embeddings."""
    number = name.split(".")[0]
    return int(number) if number.isdigit() else -1
