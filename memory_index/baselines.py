"""Forecasts that need no memory, to stand beside it: last value and seasonal naive.

The linear forecast is made by the encoder: `encoder.linear_forecast`.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from memory_index.windows import Step

DAY = pd.Timedelta(days=1)
# Steps in a week (days) or a year, by the rule that a pandas frequency follows, business days or not.
CALENDAR_SEASONS = {"D": 7, "B": 5, "C": 5, "W": 52, "SMS": 24, "SME": 24}
CALENDAR_SEASONS |= dict.fromkeys(("MS", "ME", "BMS", "BME", "CBMS", "CBME"), 12)
CALENDAR_SEASONS |= dict.fromkeys(("QS", "QE", "BQS", "BQE"), 4)


def last_value(context: np.ndarray, horizon: int) -> np.ndarray:
    """Repeat the last observed value: [B, N, L] -> [B, N, H]."""
    return np.repeat(context[..., -1:], horizon, axis=-1)


def seasonal_naive(context: np.ndarray, horizon: int, season: int) -> np.ndarray:
    """Repeat the last observed season: [B, N, L] -> [B, N, H], season <= L."""
    return context[..., -season:][..., np.arange(horizon) % season]


def baseline_forecasts(context: np.ndarray, horizon: int, step: Step) -> dict[str, np.ndarray]:
    """Those that can be made of a context [B, N, L], by name: [B, N, H] each."""
    forecasts, season = {"last_value": last_value(context, horizon)}, season_length(step)
    if season is not None and season <= context.shape[-1]:
        forecasts["seasonal_naive"] = seasonal_naive(context, horizon, season)
    return forecasts


def season_length(step: Step) -> int | None:
    """Steps of the usual season: a day for steps below a day, a week of days, a year of weeks, months or quarters.

    None where the step has no usual season (yearly steps, or steps that do not divide a day).
    """
    if step.is_fixed:
        length = pd.Timedelta(step.add(np.zeros(1, dtype="datetime64[ns]"), 1)[0].astype("timedelta64[ns]"))
        if length < DAY:
            return int(DAY / length) if DAY % length == pd.Timedelta(0) else None
        return 7 if length == DAY else 52 if length == 7 * DAY else None
    rule, num = step.offset.rule_code.split("-")[0], step.offset.n
    if rule == "D" and num % 7 == 0:
        rule, num = "W", num // 7
    season = CALENDAR_SEASONS.get(rule)
    return season // num if season and season % num == 0 and season > num else None
