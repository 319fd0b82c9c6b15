"""The linear shortcut: a linear map and plain forecasts, bases that the value gate mixes.

Beside the memory stand a linear map from the normalised context to the normalised future, fitted in closed form
(`training/linear_maps.py`), the last value and the last season. In training every fold uses the map that was fitted
without it: in-sample values are a few percent too good, and a mix that is trained on them trusts them too much
(docs/experiments.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from forecaster.bounds import above_zero, at_least

NO_BASE = ("window_mean",)  # M = 1: the base of a model with neither shortcut nor network


@dataclass(frozen=True, kw_only=True)
class ShortcutSettings:
    """ridge: penalty of the linear map, relative to the mean square of a normalised window; None chooses it by
    cross-validation (`training/linear_maps.py`). season: steps of the seasonal naive part; None takes the usual one of
    the table's step, 1 leaves the part out.
    """

    use_shortcut: bool = True
    ridge: float | None = None
    season: int | None = None

    def __post_init__(self) -> None:
        if self.ridge is not None:
            above_zero(self, "ridge")
        if self.season is not None:
            at_least(self, 1, "season")


def base_names(season: int | None, lookback: int) -> tuple[str, ...]:
    """The M bases in their order. season: steps, None or 1 where the table has no usual one."""
    seasonal = season is not None and 1 < season <= lookback
    return ("linear", "last_value", *(("seasonal_naive",) if seasonal else ()))


class LinearShortcut(nn.Module):
    """z [B, L] -> bases [B, M, H], both in the window's own location and spread.

    names: of the M bases. weight: buffer float32 [L, H], fitted on the whole training part. fold_weights: buffer
    float32 [F, L, H], one map for each fold, fitted without it; only there while training, and never saved.
    """

    weight: Tensor
    fold_weights: Tensor

    def __init__(self, lookback: int, horizon: int, season: int | None = None) -> None:
        super().__init__()
        self.names = base_names(season, lookback)
        self.season = season
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
        bases = [linear, z[:, -1:].expand_as(linear)]
        if self.season is not None and len(self.names) > len(bases):
            ahead = torch.arange(linear.shape[1], device=z.device) % self.season
            bases.append(z[:, z.shape[1] - self.season + ahead])
        return torch.stack(bases, dim=1)
