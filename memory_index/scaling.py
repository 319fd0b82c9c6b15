"""Location and spread: of a series over its training part, and of a window over its last steps."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class SeriesScale(NamedTuple):
    """Mean and standard deviation (ddof 0) of each series over the training split, float64 [N].

    A series that is constant over the training split has a standard deviation of 1.
    """

    mean: np.ndarray
    std: np.ndarray


class WindowStatistics(NamedTuple):
    """Instance normalisation of windows, float64 [...]: `z = (x - location) / spread`.

    `spread` is the standard deviation (ddof 0), but at least a floor; `flat` tells windows that are as
    good as constant and have no shape to compare.
    """

    location: np.ndarray
    spread: np.ndarray
    flat: np.ndarray


def fit_scale(values: list[np.ndarray]) -> SeriesScale:
    """Training values of each series (float64 [T], NaN where missing) -> their scale."""
    mean = np.array([np.nanmean(v) if np.isfinite(v).any() else 0.0 for v in values])
    std = np.array([np.nanstd(v) if np.isfinite(v).any() else 0.0 for v in values])
    return SeriesScale(mean=mean, std=np.where(std > 1e-12 * np.maximum(np.abs(mean), 1e-300), std, 1.0))


def window_statistics(windows: np.ndarray, *, floor: np.ndarray, flat_below: np.ndarray) -> WindowStatistics:
    """windows: float64 [..., view], raw units; floor, flat_below: [...], raw units."""
    std = windows.std(axis=-1)
    return WindowStatistics(location=windows.mean(axis=-1), spread=np.maximum(std, floor), flat=std < flat_below)
