"""How much the windows of each series of a panel count where one map and one gate serve all of them.

Errors are counted in training deviations of each series. In those, a series that hardly repeats makes errors many times
those of one that does, and a fit of squares would listen to it alone; a scaled error (MASE) counts them alike. So
windows count by the inverse of what the naive forecast errs on their series: halfway between the two
(docs/experiments.md).
"""

from __future__ import annotations

import numpy as np

from forecaster.retrieval.batches import CachedWindows
from memory_index.types import MAX_JOINT_SERIES
from memory_index.windows import cut

LEAST = 0.05  # of the median series' naive error: a series that all but repeats is not all that counts
STEPS = 48  # of the horizon that are looked at, at most
CHUNK = 4096  # windows handled at once


def weights_of(windows: CachedWindows) -> np.ndarray:
    """`series_weights` of the windows of a panel, one of more series than the scope `joint` takes. 1 for each window of
    another table: its errors are scored in training deviations.
    """
    if len(np.unique(windows.series)) <= MAX_JOINT_SERIES:
        return np.ones(len(windows))
    return series_weights(
        windows.values,
        windows.position,
        windows.unit,
        windows.series,
        lookback=windows.config.lookback,
        horizon=windows.config.horizon,
        season=windows.config.season,
    )


def series_weights(
    values: np.ndarray,
    position: np.ndarray,
    unit: np.ndarray,
    series: np.ndarray,
    *,
    lookback: int,
    horizon: int,
    season: int | None,
) -> np.ndarray:
    """float64 [n], 1 on average. The arguments are those of `linear_maps.Windows`.

    The naive forecast repeats the last season of the window, or its last value where there is none. Where either that
    or what came is missing, nothing is counted.
    """
    back = season if season is not None and 1 < season <= lookback else 1
    ahead = np.unique(np.linspace(0, horizon - 1, STEPS).round().astype(np.int64))
    squared, known = np.empty(len(position)), np.ones(len(position), dtype=bool)
    for start in range(0, len(position), CHUNK):
        part = position[start : start + CHUNK]
        naive = cut(values, part - back + 1, back)[:, ahead % back]
        future = cut(values, part + 1, horizon)[:, ahead]
        error = (future - naive) / unit[start : start + CHUNK, None].astype(np.float64)
        if (missing := np.isnan(error)).any():
            known[start : start + CHUNK] = ~missing.all(axis=1)
            error = np.where(missing, 0.0, error) * np.sqrt(len(ahead) / np.maximum((~missing).sum(axis=1), 1))[:, None]
        squared[start : start + CHUNK] = np.square(error).mean(axis=1)
    num = np.bincount(series[known], minlength=int(series.max()) + 1)
    usual = np.sqrt(np.bincount(series, weights=squared) / np.maximum(num, 1))
    median = np.median(usual[num > 0])
    if not median > 0:
        return np.ones(len(position))
    weight = (1 / np.maximum(usual / median, LEAST))[series]
    return np.asarray(weight / weight.mean())
