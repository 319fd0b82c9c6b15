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
    the table's step, 1 leaves the part out. use_covariates: whether the map reads the covariates of the version too,
    where it has any; the memory does in any case.
    """

    use_shortcut: bool = True
    use_covariates: bool = True
    ridge: float | None = None
    season: int | None = None

    @property
    def reads_covariates(self) -> bool:
        """Whether there is a map that reads them."""
        return self.use_shortcut and self.use_covariates

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

    names: of the M bases. weight: buffer float32 [L + P, H], fitted on the whole training part, of which the last P
    rows are for the numbers of covariates (`retrieval/beside.py`). fold_weights: buffer float32 [F, L + P, H], one map
    for each fold, fitted without it; only there while training, and never saved.
    """

    weight: Tensor
    fold_weights: Tensor

    def __init__(self, lookback: int, horizon: int, season: int | None = None, num_beside: int = 0) -> None:
        super().__init__()
        self.lookback = lookback
        self.names = base_names(season, lookback)
        self.season = season
        self.register_buffer("weight", torch.zeros(lookback + num_beside, horizon))
        self.register_buffer("fold_weights", torch.zeros(0, lookback + num_beside, horizon), persistent=False)

    def set_weights(self, weight: np.ndarray, fold_weights: Sequence[np.ndarray] = ()) -> None:
        """Take over fitted maps [L + P, H], without and with cross-fitting."""
        self.weight = torch.as_tensor(weight, dtype=torch.float32, device=self.weight.device)
        stacked = np.stack(fold_weights) if len(fold_weights) else np.zeros((0, *weight.shape))
        self.fold_weights = torch.as_tensor(stacked, dtype=torch.float32, device=self.weight.device)

    def forward(self, z: Tensor, fold: Tensor | None = None, beside: Tensor | None = None) -> Tensor:
        """fold: int64 [B] in training (see `Batch.fold`). beside: [B, P], scaled as the window is; None without any."""
        # Half precision would cost the shortcut more than it gains: it is one small product.
        with torch.autocast(z.device.type, enabled=False):
            x = z if beside is None else torch.cat([z, beside], dim=1)
            if fold is None:
                linear = x @ self.weight  # [B, H]
            else:
                every = torch.einsum("bl,flh->bfh", x, self.fold_weights)
                linear = every[torch.arange(len(z), device=z.device), fold]
        bases = [linear, z[:, -1:].expand_as(linear)]
        if self.season is not None and len(self.names) > len(bases):
            ahead = torch.arange(linear.shape[1], device=z.device) % self.season
            bases.append(z[:, z.shape[1] - self.season + ahead])
        return torch.stack(bases, dim=1)
