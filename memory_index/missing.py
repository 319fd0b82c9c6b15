"""Missing cells: how much of a window may be missing, and the fill that keys and linear maps read instead.

A missing cell stays missing (NaN) in series, queries and futures. What compares windows reads `filled` contexts: each
missing cell is the mean of its phase of the season in the context, plus the distance of the nearest known cells from
theirs, interpolated in between. Everything in it is a cell of the context itself, so that a stored window and a query
are filled alike and no fill knows anything later than its window's origin (docs/method.md).
"""

from __future__ import annotations

import numpy as np

MAX_MISSING = 0.5  # of a view, above which it is left out for that window (docs/experiments.md)


def has_missing(windows: np.ndarray) -> bool:
    """Whether any cell is missing (NaN)."""
    return bool(np.isnan(windows).any())


def filled(context: np.ndarray, season: int | None) -> np.ndarray:
    """Contexts [..., L] with a value in every cell; the array itself where nothing is missing.

    season: steps of the usual season (`baselines.season_length`); without one, or with less than two of it in the
    context, all cells are of one phase. A context without any value is filled with 0. What comes out for one context
    does not depend on the others, bit for bit.
    """
    missing = np.isnan(context)
    if not missing.any():
        return context
    result = context.reshape(-1, context.shape[-1]).copy()
    missing = missing.reshape(result.shape)
    rows = np.flatnonzero(missing.any(axis=1))
    result[rows] = _filled(result[rows].astype(np.float64), missing[rows], season)
    return result.reshape(context.shape)


def last_known(context: np.ndarray) -> np.ndarray:
    """The last value that is not missing of contexts [..., L], [..., 1]; NaN where there is none."""
    if not np.isnan(context[..., -1]).any():
        return context[..., -1:]
    place = context.shape[-1] - 1 - np.argmax(~np.isnan(context[..., ::-1]), axis=-1)
    return np.take_along_axis(context, place[..., None], axis=-1)


def share_missing(context: np.ndarray, view: int) -> np.ndarray:
    """What share of the last `view` cells is missing: context [..., L] -> float64 [...]."""
    return np.isnan(context[..., -view:]).sum(axis=-1) / view


def missing_before(values: np.ndarray) -> np.ndarray:
    """int64 [T + 1]: how many of the first t cells of a series [T] are missing (not finite)."""
    return np.concatenate([[0], np.cumsum(~np.isfinite(values))])


def _filled(context: np.ndarray, missing: np.ndarray, season: int | None) -> np.ndarray:
    """float64 [n, L], each with a missing cell, and bool [n, L] -> the same without missing cells."""
    known = np.where(missing, 0.0, context)
    usual = _phase_means(known, ~missing, season)
    away = np.where(missing, 0.0, known - usual)
    return np.where(missing, usual + _interpolated(away, missing), known)


def _phase_means(known: np.ndarray, there: np.ndarray, season: int | None) -> np.ndarray:
    """The mean of each cell's phase over the context, [n, L]; of the whole context where its phase has no cell.

    known: [n, L], 0 where missing. there: bool [n, L].
    """
    length = known.shape[1]
    total, num = known.sum(axis=1, keepdims=True), there.sum(axis=1, keepdims=True)
    mean = total / np.maximum(num, 1)
    if season is None or length < 2 * season or season == 1:
        return np.broadcast_to(mean, known.shape)
    sums, counts = np.zeros((len(known), season)), np.zeros((len(known), season), dtype=np.int64)
    for end in range(length, 0, -season):  # phases are counted from the origin
        start = max(0, end - season)
        sums[:, season - (end - start) :] += known[:, start:end]
        counts[:, season - (end - start) :] += there[:, start:end]
    means = np.where(counts > 0, sums / np.maximum(counts, 1), mean)
    return np.tile(means, -(-length // season))[:, -length:]


def _interpolated(values: np.ndarray, missing: np.ndarray) -> np.ndarray:
    """A straight line between the known cells before and after each cell; beyond the first and last, their value."""
    num, length = values.shape
    step = np.arange(length)
    before = np.maximum.accumulate(np.where(missing, -1, step), axis=1)
    after = np.minimum.accumulate(np.where(missing, length, step)[:, ::-1], axis=1)[:, ::-1]
    row, cell = np.nonzero(missing)
    low, high = before[row, cell], after[row, cell]
    low, high = np.where(low < 0, high, low), np.where(high >= length, low, high)
    low, high = np.minimum(low, length - 1), np.maximum(high, 0)  # of a context without any value
    part = np.where(high > low, (cell - low) / np.maximum(high - low, 1), 0.0)
    result = np.zeros_like(values)
    result[row, cell] = values[row, low] * (1 - part) + values[row, high] * part
    return result
