"""Steps of the season at which a series is closed: always 0, as a shop on Sundays or the sun at night; or never known.

A linear map and means over neighbours smear a step that is always 0 with those beside it. The window that a forecast is
made from tells such steps by itself: by nothing later, and by no other series.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from memory_index.types import Queries

LEAST_SEASONS = 4  # values of one step of the season that tell anything of it
MOSTLY_OPEN = 0.75  # share of the other steps' values that are not 0: of a series of rare sales a zero tells nothing
CHANCE = 0.001  # that any step of the season is 0 in all of them though zeros fall anywhere, at most


class Closed(NamedTuple):
    """bool [B, N, H]: steps of the horizon at which a series is always 0; steps at which it is never observed."""

    zero: np.ndarray
    unobserved: np.ndarray


def closed_steps(queries: Queries, season: int | None, horizon: int, known: tuple[int, ...] = ()) -> Closed | None:
    """Of each query; None where there is no such step, or where the windows are too short to tell.

    A step is always 0 if it is in all of at least `LEAST_SEASONS` seasons of the context in which it is known, while
    most values at other steps are not 0, so few of them that this is no accident: with a share q of zeros at other
    steps, any of S steps is 0 in all of n seasons with a chance of at most S q^n. known: numbers of the covariates that
    are known ahead; one that was the same at this step in all seasons of the context, and is another now, says that
    this time may differ (an open Sunday).
    """
    context = queries.context
    b, n, lookback = context.shape
    num = lookback // season if season and season > 1 else 0
    if num < LEAST_SEASONS or season is None or not ((context == 0) | np.isnan(context)).any():
        return None
    seasons = context[..., lookback - num * season :].reshape(b, n, num, season)
    observed, zeros = (~np.isnan(seasons)).sum(axis=2), (seasons == 0).sum(axis=2)  # [B, N, season]
    always = (observed >= LEAST_SEASONS) & (zeros == observed)
    others, others_zero = (np.where(always, 0, each).sum(axis=2) for each in (observed, zeros))
    is_open = (others >= LEAST_SEASONS) & (others_zero <= (1 - MOSTLY_OPEN) * others)
    share = (others_zero + 1) / (others + 1)  # one more, as none in a few says little of how rare they are
    always &= season * share[..., None] ** observed <= CHANCE
    never = (observed == 0) & (observed.max(axis=2) >= LEAST_SEASONS)[..., None]
    phase = np.arange(horizon) % season  # the context ends with the last step of a season
    zero, unobserved = (always & is_open[..., None])[..., phase], never[..., phase]
    if queries.covariates is not None and known and zero.any():
        zero &= _as_usual(queries.covariates[:, :, list(known)], lookback, num, season)
    return Closed(zero, unobserved) if zero.any() or unobserved.any() else None


def _as_usual(covariates: np.ndarray, lookback: int, num: int, season: int) -> np.ndarray:
    """bool [B, N, H]: whether no covariate [B, N, C, L + H] that was the same in all seasons is another now."""
    b, n, c, width = covariates.shape
    before = covariates[..., lookback - num * season : lookback].reshape(b, n, c, num, season)
    low, high = (part[..., np.arange(width - lookback) % season] for part in (before.min(axis=3), before.max(axis=3)))
    ahead = covariates[..., lookback:]
    return np.asarray(~((low == high) & (ahead != low) & ~np.isnan(ahead)).any(axis=2))
