"""Location and spread: of a series over its training part, and of a window over its last steps.

And the errors of the seasonal naive forecast in sample, which scaled metrics divide by.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from memory_index.errors import UsageError
from memory_index.tables.series import SeriesTable

ScaledBy = Literal["training", "origin"]


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


def units_of(deviation: np.ndarray, series: np.ndarray, context: np.ndarray) -> np.ndarray:
    """float64 [B, N]: the training deviation (float64 [N_v]) of the series of each query, int [N]; for an unseen one
    (-1) that of its whole context [B, N, L], or 1 where that is constant.
    """
    unit = np.broadcast_to(np.where(series >= 0, deviation[np.maximum(series, 0)], 1.0), context.shape[:2])
    if (series < 0).any():
        own = context.astype(np.float64, order="C").std(axis=-1)
        unit = np.where(series >= 0, unit, np.where(own > 0, own, 1.0))
    return unit


def window_statistics(windows: np.ndarray, *, floor: np.ndarray, flat_below: np.ndarray) -> WindowStatistics:
    """windows: float64 [..., view], any units; floor, flat_below: [...], the same units."""
    std = windows.std(axis=-1)
    return WindowStatistics(location=windows.mean(axis=-1), spread=np.maximum(std, floor), flat=std < flat_below)


@dataclass(frozen=True, kw_only=True, slots=True)
class NaiveErrors:
    """Mean absolute and mean squared error of `y[t] = y[t - season]` in sample: what MASE, RMSSE and SQL divide by.

    Hyndman and Koehler, *Another look at measures of forecast accuracy*, IJF 2006; for squares, the M5 competition.
    absolute, squared: float64, of each series over the training part [N], or at each step over all steps up to it, all
    series end to end [T]; NaN where no step has one. first: int64 [N], where each series begins in them, or None where
    each has one place.
    """

    season: int
    absolute: np.ndarray
    squared: np.ndarray
    first: np.ndarray | None

    def at(self, series: np.ndarray, row: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """absolute and squared, float64 [W]. series, row: int64 [W], number in the table and origin row."""
        place = series if self.first is None else self.first[series] + row
        return self.absolute[place], self.squared[place]


def naive_errors(table: SeriesTable, season: int, *, by: ScaledBy, train_until: np.datetime64) -> NaiveErrors:
    """Of all series of a table. by: `training`, the steps until `train_until`; `origin`, all steps up to each origin.

    Missing values take no part. Raises `UsageError` for another `by`.
    """
    if by not in ("training", "origin"):
        raise UsageError(f"scaled errors cannot be scaled by '{by}'", hint="choose training or origin")
    found = []
    for series in table.series:
        change = np.full(len(series), np.nan)
        change[season:] = np.abs(series.values[season:] - series.values[:-season])
        known = np.isfinite(change)
        if by == "training":
            known &= series.times <= train_until
            change = change[known]
            found.append([[np.mean(part)] if len(part) else [np.nan] for part in (change, np.square(change))])
            continue
        num = np.cumsum(known)
        sums = (np.cumsum(np.where(known, part, 0.0)) for part in (change, np.square(change)))
        found.append([np.divide(part, num, out=np.full(len(num), np.nan), where=num > 0) for part in sums])
    absolute, squared = (np.concatenate(parts) for parts in zip(*found, strict=True))
    lengths = [len(series) for series in table.series]
    first = None if by == "training" else np.cumsum([0, *lengths])[:-1]
    return NaiveErrors(season=season, absolute=absolute, squared=squared, first=first)
