"""Errors of forecasts in standardised units: a statistic per window, then a mean over all of them (docs/method.md)."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """Mean squared and mean absolute error over all windows, steps and variates, in standardised units."""

    mse: float
    mae: float


@dataclass(slots=True)
class ScoreSum:
    """Collects per-window errors, so that the mean does not depend on how windows were batched.

    share: of each window's steps, how many are scored: a missing one counts for nothing.
    """

    squared: list[np.ndarray] = field(default_factory=list)
    absolute: list[np.ndarray] = field(default_factory=list)
    share: list[np.ndarray] = field(default_factory=list)

    def add(self, forecast: np.ndarray, future: np.ndarray, unit: np.ndarray, wanted: np.ndarray) -> None:
        """forecast, future: [B, N, H] in raw units, the future NaN where missing; wanted: bool [B, N], what counts.

        unit: [N], the training standard deviation of each series.
        """
        known = np.isfinite(future[wanted])
        error = np.where(known, ((forecast.astype(np.float64) - future) / unit[:, None])[wanted], 0.0)
        self.squared.append(np.square(error).mean(axis=1))
        self.absolute.append(np.abs(error).mean(axis=1))
        self.share.append(known.mean(axis=1))

    def score(self) -> Score:
        """The mean over everything added: every known step counts the same."""
        # Sorted, because blocks of windows arrive in an order that depends on their size.
        parts = (self.squared, self.absolute, self.share)
        squared, absolute, share = (float(np.sort(np.concatenate(part)).mean()) for part in parts)
        return Score(mse=squared / share, mae=absolute / share)
