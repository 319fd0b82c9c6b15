"""The learned key: a transformer over the patches of a window, and an MLP over what normalisation removed.

It is a `KeyEncoder` (memory_index/encoder.py) with the same key spaces, widths and dual distance as the built-in one:

    d^2 = w * d_shape^2 + (1 - w) * d_value^2.

Only how a window becomes its shape and value parts differs. It is trained when an index is built (`fit_pattern.py`),
then frozen, stored with the version and loaded from there. Keys are independent of batching, bit for bit: windows go
through the network in blocks of one fixed size.
"""

from __future__ import annotations

import dataclasses
import json
import math
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from memory_index.covariate_map import CovariateWindows
from memory_index.encoder import NUM_VALUES, DualKeyEncoder, Encoded, EncoderConfig, joint_key
from memory_index.errors import IncompatibleError, VerificationError
from memory_index.files import sha256_of
from memory_index.scaling import SeriesScale, WindowStatistics
from memory_index.types import KeySpace, Scope
from memory_index.versions.manifest import Manifest
from memory_index.versions.opening import read_arrays

PATTERN = "pattern"  # the kind of `PatternKeyEncoder`
BLOCK = 64  # windows that go through the network at once, always

_lock = threading.Lock()
_num_inside, _before = 0, 1  # threads that have asked torch for one thread, and what there was before


@dataclass(frozen=True, kw_only=True, slots=True)
class PatternConfig:
    """Settings of the network and of its training; stored in the manifest.

    d_model, num_layers, num_heads: of the transformer. patch_length: steps of a patch; patches overlap by half.
    batch_size: windows compared with one another in a step. num_steps: optimizer steps per view. forecast_weight: of
    the loss of a linear forecast from the shape part, which is thrown away after training.
    """

    d_model: int = 64
    num_layers: int = 2
    num_heads: int = 4
    patch_length: int = 16
    batch_size: int = 320
    num_steps: int = 200
    learning_rate: float = 1e-3
    forecast_weight: float = 1.0
    seed: int = 0


class PatternEncoder(nn.Module):
    """z [B, view] -> shape part [B, E].

        p = patches(z) W_p + position                 # [B, P, D]
        h = Transformer([CLS, p])                     # [B, 1 + P, D], `num_layers` layers
        shape = LayerNorm(h_CLS W_o) / sqrt(E)        # so that |shape| is about 1

    patch: W_p. cls: CLS. position: [1 + P, D]. projection: W_o. norm: LayerNorm.
    """

    def __init__(self, view: int, width: int, config: PatternConfig) -> None:
        super().__init__()
        self.patch_length = min(config.patch_length, max(2, view // 2))
        self.stride = max(1, self.patch_length // 2)
        num_patches = -(-(view - self.patch_length) // self.stride) + 1
        self.padding = (num_patches - 1) * self.stride + self.patch_length - view
        self.patch = nn.Linear(self.patch_length, config.d_model)
        self.cls = nn.Parameter(torch.zeros(config.d_model))
        self.position = nn.Parameter(0.02 * torch.randn(1 + num_patches, config.d_model))
        layer = nn.TransformerEncoderLayer(
            config.d_model, config.num_heads, 2 * config.d_model, 0.0, "gelu", batch_first=True, norm_first=True
        )
        self.transformer = nn.TransformerEncoder(layer, config.num_layers, enable_nested_tensor=False)
        self.projection = nn.Linear(config.d_model, width)
        self.norm = nn.LayerNorm(width)

    def forward(self, z: Tensor) -> Tensor:
        """z: float32 [B, view] -> float32 [B, E]."""
        padded = torch.cat([z[:, :1].expand(-1, self.padding), z], dim=1)  # the newest step ends the last patch
        tokens = self.patch(padded.unfold(1, self.patch_length, self.stride))  # [B, P, D]
        tokens = torch.cat([self.cls.expand(len(z), 1, -1), tokens], dim=1) + self.position  # [B, 1 + P, D]
        summary = self.transformer(tokens)[:, 0]  # [B, D]
        shape: Tensor = self.norm(self.projection(summary)) / math.sqrt(self.norm.normalized_shape[0])
        return shape


class ValueEncoder(nn.Module):
    """Value part [B, 5] -> value part [B, 5]: `v + W_2 gelu(v W_1)`, at first the built-in one (W_2 is 0).

    hidden: W_1. out: W_2.
    """

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.hidden = nn.Linear(NUM_VALUES, width)
        self.out = nn.Linear(width, NUM_VALUES)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, value: Tensor) -> Tensor:
        """value: float32 [B, 5] -> float32 [B, 5]."""
        changed: Tensor = value + self.out(nn.functional.gelu(self.hidden(value)))
        return changed


class ViewNetwork(nn.Module):
    """Both encoders of one view. shape: `PatternEncoder`. value: `ValueEncoder`."""

    def __init__(self, view: int, width: int, config: PatternConfig) -> None:
        super().__init__()
        self.shape = PatternEncoder(view, width, config)
        self.value = ValueEncoder()


def view_network(view: int, config: EncoderConfig, pattern: PatternConfig) -> ViewNetwork:
    """The untrained network of a view, seeded; leaves torch's own random state as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(pattern.seed)
        return ViewNetwork(view, min(config.shape_width, view), pattern)


@dataclass(frozen=True, kw_only=True)
class PatternKeyEncoder:
    """The learned encoder. Implements `KeyEncoder`; safe to use from several threads.

    base: normalises windows, has the training scale and the linear baseline (`ridge-VIEW`), and the projections of the
    joint scope (`joint-VIEW`, `joint-value-VIEW`): a PCA of the learned parts of all series of a moment side by side.
    networks: by view, frozen, on the CPU.
    """

    base: DualKeyEncoder
    pattern: PatternConfig
    networks: Mapping[int, ViewNetwork]

    @property
    def config(self) -> EncoderConfig:
        """See `KeyEncoder.config`."""
        return self.base.config

    @property
    def scale(self) -> SeriesScale:
        """See `KeyEncoder.scale`."""
        return self.base.scale

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """See `KeyEncoder.arrays`; weights are named `network-VIEW.NAME`."""
        weights = {
            f"network-{view}.{name}": tensor.numpy()
            for view, network in self.networks.items()
            for name, tensor in network.state_dict().items()
        }
        return self.base.arrays | weights

    @property
    def fingerprint(self) -> str:
        """See `KeyEncoder.fingerprint`."""
        made_of = dataclasses.replace(self.base, arrays=self.arrays).fingerprint
        settings = json.dumps(dataclasses.asdict(self.pattern), sort_keys=True)
        return sha256_of(f"{PATTERN} {settings} {made_of}".encode())

    def describe(self) -> dict[str, Any]:
        """See `KeyEncoder.describe`."""
        return {
            "kind": PATTERN,
            "settings": self.config.to_dict(),
            "pattern": dataclasses.asdict(self.pattern),
            "fingerprint": self.fingerprint,
        }

    def value_width(self, space: KeySpace) -> int:
        """See `KeyEncoder.value_width`."""
        return self.base.value_width(space)

    @property
    def covariates(self) -> None:
        """See `KeyEncoder.covariates`: there are none, `fit_pattern` refuses them."""
        return

    def key_numbers(self, view: int, covariates: CovariateWindows) -> np.ndarray:
        """See `KeyEncoder.key_numbers`: it has none."""
        raise AssertionError("it was not fitted with any covariates")

    def num_key_numbers(self, view: int) -> int:
        """See `KeyEncoder.num_key_numbers`."""
        return 0

    def encode(
        self,
        view: int,
        context: np.ndarray,
        series: np.ndarray,
        scopes: tuple[Scope, ...],
        covariates: np.ndarray | None = None,
    ) -> Encoded:
        """See `KeyEncoder.encode`. `joint` needs the series of the joint group, in its order."""
        assert covariates is None, "it was not fitted with any"
        windows = context[..., -view:].astype(np.float64, order="C")
        statistics = self.base.statistics(windows, context, series)
        keys: dict[Scope, np.ndarray] = {}
        if scopes:
            shape = self.shape_part(view, windows, statistics)
            w = self.config.shape_weight
        if "pooled" in scopes:
            keys["pooled"] = shape.astype(np.float32)
        if "own" in scopes or "joint" in scopes:
            value = self.value_part(view, windows, statistics, series)
            if "own" in scopes:
                keys["own"] = np.concatenate([np.sqrt(w) * shape, np.sqrt(1 - w) * value], axis=-1).astype(np.float32)
            if "joint" in scopes:
                joint = joint_key(self.base.arrays, view, shape, value, shape_weight=w)
                keys["joint"] = joint.astype(np.float32)
        return Encoded(keys=keys, statistics=statistics)

    def parts(
        self, view: int, context: np.ndarray, covariates: CovariateWindows | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Own shape [B, N, E] and value parts [B, N, 5], float64, of the contexts [B, N, L] of all series."""
        series = np.arange(context.shape[1])
        windows = context[..., -view:].astype(np.float64, order="C")
        statistics = self.base.statistics(windows, context, series)
        return self.shape_part(view, windows, statistics), self.value_part(view, windows, statistics, series)

    def shape_part(self, view: int, windows: np.ndarray, statistics: WindowStatistics) -> np.ndarray:
        """Windows [B, N, view] -> float64 [B, N, E], whose distance is d_shape."""
        z = (windows - statistics.location[..., None]) / statistics.spread[..., None]
        return in_blocks(self.networks[view].shape, z)

    def value_part(
        self, view: int, windows: np.ndarray, statistics: WindowStatistics, series: np.ndarray
    ) -> np.ndarray:
        """Windows [B, N, view] -> float64 [B, N, 5], whose distance is d_value."""
        return in_blocks(self.networks[view].value, self.base.value_part(windows, statistics, series))

    def linear_map(self, view: int) -> np.ndarray:
        """See `KeyEncoder.linear_map`."""
        return self.base.linear_map(view)

    def linear_forecast(
        self, view: int, context: np.ndarray, series: np.ndarray, covariates: CovariateWindows | None = None
    ) -> np.ndarray:
        """See `KeyEncoder.linear_forecast`."""
        assert covariates is None, "it was not fitted with any"
        return self.base.linear_forecast(view, context, series)


def in_blocks(network: Callable[[Tensor], Tensor], rows: np.ndarray) -> np.ndarray:
    """rows [..., A] through a network in blocks of `BLOCK` rows, the last one padded -> float64 [..., E]."""
    num_rows = math.prod(rows.shape[:-1])
    num_blocks = max(1, -(-num_rows // BLOCK))
    padded = np.zeros((num_blocks, BLOCK, rows.shape[-1]), dtype=np.float32)
    padded.reshape(-1, rows.shape[-1])[:num_rows] = rows.reshape(num_rows, rows.shape[-1])
    with one_torch_thread(), torch.no_grad():
        out = torch.cat([network(block) for block in torch.from_numpy(padded)]).numpy()
    return out[:num_rows].astype(np.float64).reshape(*rows.shape[:-1], out.shape[-1])


@contextmanager
def one_torch_thread() -> Iterator[None]:
    """Ask torch for one thread while inside; afterwards it has as many as before.

    Products as small as these gain little from a second thread, and where cores are busy its threads spend nearly all
    their time waiting for one another: 20 times slower was seen. What comes out does not depend on it.

    The setting is the calling thread's own, and that of threads which begin later: so each thread puts back, on its way
    out, what there was when nobody was inside.
    """
    global _num_inside, _before
    with _lock:
        if _num_inside == 0:
            _before = torch.get_num_threads()
        _num_inside += 1
        torch.set_num_threads(1)
    try:
        yield
    finally:
        with _lock:
            _num_inside -= 1
            torch.set_num_threads(_before)


def load_encoder(folder: Path, manifest: Manifest) -> PatternKeyEncoder:
    """The encoder that a version carries; give it to `open_memory` and its like.

    Raises `IncompatibleError` for another kind, `VerificationError` if the stored weights are not of such a network.
    """
    if manifest.encoder["kind"] != PATTERN:
        raise IncompatibleError(
            f"this version's keys were made by an encoder of kind '{manifest.encoder['kind']}'",
            hint="upgrade the program, or build the version again",
        )
    stored = read_arrays(folder, manifest)
    try:
        pattern = PatternConfig(**manifest.encoder["pattern"])
        networks = {}
        for view in stored.config.views:
            prefix = f"network-{view}."
            names = [name for name in stored.arrays if name.startswith(prefix)]
            weights = {name.removeprefix(prefix): torch.from_numpy(stored.arrays.pop(name)) for name in names}
            networks[view] = view_network(view, stored.config, pattern)
            networks[view].load_state_dict(weights)
    except (TypeError, KeyError, ValueError, RuntimeError) as error:
        first_line = str(error).partition("\n")[0]
        raise VerificationError(
            f"the encoder in {folder} does not have the weights that its settings ask for: {first_line}",
            hint="restore the version, or build it again",
        ) from error
    return PatternKeyEncoder(base=stored, pattern=pattern, networks=frozen(networks))


def frozen(networks: Mapping[int, ViewNetwork]) -> dict[int, ViewNetwork]:
    """The same networks, in eval mode and without gradients."""
    return {view: network.eval().requires_grad_(False) for view, network in networks.items()}
