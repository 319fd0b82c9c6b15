"""Forecasts that need no memory, to stand beside it: last value and seasonal naive.

The linear forecast is made by the encoder: `encoder.linear_forecast`.
"""

from __future__ import annotations

import numpy as np

from memory_index.missing import filled, last_known
from memory_index.windows import Step

PLAIN = ("last_value", "seasonal_naive", "linear")  # arms that others are compared with


def last_value(context: np.ndarray, horizon: int) -> np.ndarray:
    """Repeat the last observed value: [B, N, L], NaN where missing -> [B, N, H]."""
    return np.repeat(last_known(context), horizon, axis=-1)


def seasonal_naive(context: np.ndarray, horizon: int, season: int) -> np.ndarray:
    """Repeat the last observed season: [B, N, L] -> [B, N, H], season <= L."""
    return context[..., -season:][..., np.arange(horizon) % season]


def baseline_forecasts(context: np.ndarray, horizon: int, step: Step) -> dict[str, np.ndarray]:
    """Those that can be made of a context [B, N, L], NaN where missing, by name: [B, N, H] each."""
    forecasts, season = {"last_value": last_value(context, horizon)}, season_length(step)
    if season is not None and season <= context.shape[-1]:
        forecasts["seasonal_naive"] = seasonal_naive(filled(context, season), horizon, season)
    return forecasts


def season_length(step: Step) -> int | None:
    """Steps of the usual season, None where there is none: see `Step.season`."""
    return step.season
