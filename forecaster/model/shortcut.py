"""The linear shortcut: what the network's forecast is a residual on, and the bases that the value gate mixes.

Two bases stand beside the memory: a linear map from the normalised context to the normalised future, fitted in closed
form, and the last value. In training every block of time uses the map that was fitted on the other blocks: in-sample
values are a few percent too good, and a mix that is trained on them trusts them too much (docs/experiments.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from forecaster.bounds import above_zero
from memory_index.windows import cut

CHUNK = 4096  # windows handled at once
BASES = ("linear", "last_value")  # M = 2, in this order
NO_BASE = ("window_mean",)  # M = 1: what the network adds to where there is no shortcut


@dataclass(frozen=True, kw_only=True)
class ShortcutSettings:
    """ridge: penalty of the linear map, relative to the mean square of a normalised window (docs/experiments.md)."""

    use_shortcut: bool = True
    ridge: float = 0.1

    def __post_init__(self) -> None:
        above_zero(self, "ridge")


def fit_linear(
    values: np.ndarray,
    position: np.ndarray,
    unit: np.ndarray,
    *,
    lookback: int,
    horizon: int,
    floor: float,
    penalty: float,
) -> np.ndarray:
    """`argmin_W mean |f - z W|^2 + penalty |W|^2` over n windows of all series: float64 [L, H].

    z and f are a window's context and future in its own location and spread (`patching.instance_norm`), so that z has
    mean square 1 and one penalty suits every table. values: float [T], all series end to end. position: int64 [n], of
    each window's last context step in `values`. unit: [n], the training standard deviation of each window's series.
    """
    gram, cross = np.zeros((lookback, lookback)), np.zeros((lookback, horizon))
    for start in range(0, len(position), CHUNK):
        part = position[start : start + CHUNK]
        context = cut(values, part - lookback + 1, lookback).astype(np.float64)
        location = context.mean(axis=1, keepdims=True)
        spread = np.maximum(context.std(axis=1, keepdims=True), floor * unit[start : start + CHUNK, None])
        z = (context - location) / spread
        future = (cut(values, part + 1, horizon) - location) / spread
        gram, cross = gram + z.T @ z, cross + z.T @ future
    return np.linalg.solve(gram / len(position) + penalty * np.eye(lookback), cross / len(position))


class LinearShortcut(nn.Module):
    """z [B, L] -> bases [B, M, H], both in the window's own location and spread.

    weight: buffer float32 [L, H], fitted on the whole training part. fold_weights: buffer float32 [F, L, H], one map
    for each block of time, fitted on the others; only there while training, and never saved.
    """

    weight: Tensor
    fold_weights: Tensor

    def __init__(self, lookback: int, horizon: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.zeros(lookback, horizon))
        self.register_buffer("fold_weights", torch.zeros(0, lookback, horizon), persistent=False)

    def set_weights(self, weight: np.ndarray, fold_weights: Sequence[np.ndarray] = ()) -> None:
        """Take over fitted maps [L, H], without and with cross-fitting."""
        self.weight = torch.as_tensor(weight, dtype=torch.float32, device=self.weight.device)
        stacked = np.stack(fold_weights) if len(fold_weights) else np.zeros((0, *weight.shape))
        self.fold_weights = torch.as_tensor(stacked, dtype=torch.float32, device=self.weight.device)

    def forward(self, z: Tensor, fold: Tensor | None = None) -> Tensor:
        """fold: int64 [B] in training (see `Batch.fold`)."""
        # Half precision would cost the shortcut more than it gains: it is one small product.
        with torch.autocast(z.device.type, enabled=False):
            if fold is None:
                linear = z @ self.weight  # [B, H]
            else:
                every = torch.einsum("bl,flh->bfh", z, self.fold_weights)
                linear = every[torch.arange(len(z), device=z.device), fold]
        last = z[:, -1:].expand_as(linear)
        return torch.stack([linear, last], dim=1)
