"""Weighted means and quantiles of arrays."""

from __future__ import annotations

import numpy as np


def mean_of_known(moved: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Weighted mean [n, H] of futures [n, K, H], each step over those that are not missing there.

    weight: [n, K].
    """
    share = np.where(np.isnan(moved), 0.0, weight[..., None])
    total = share.sum(axis=1)
    return (np.where(share > 0, moved, 0.0) * share).sum(axis=1) / np.where(total > 0, total, np.nan)


def weighted_quantiles(values: np.ndarray, weight: np.ndarray, levels: tuple[float, ...]) -> np.ndarray:
    """values [b, N, M, H], weight [b, N, M, 1] -> [b, N, H, Q]. Weightless values take no part."""
    values = np.where(weight > 0, values, np.inf)
    order = np.argsort(values, axis=2, kind="stable")
    ordered = np.take_along_axis(values, order, axis=2)
    share = np.take_along_axis(np.broadcast_to(weight, values.shape), order, axis=2).astype(np.float64)
    cumulative = np.cumsum(share, axis=2)
    total = cumulative[:, :, -1:, :]
    middle = (cumulative - share / 2) / np.where(total > 0, total, 1)
    num = (share > 0).sum(axis=2, keepdims=True)
    result = []
    for level in levels:
        upper = np.clip((middle < level).sum(axis=2, keepdims=True), 1, np.maximum(num - 1, 1))
        upper = np.minimum(upper, num - 1)
        lower = np.maximum(upper - 1, 0)
        a, c = (np.take_along_axis(ordered, i, axis=2) for i in (lower, upper))
        p, q = (np.take_along_axis(middle, i, axis=2) for i in (lower, upper))
        part = np.clip(np.where(q > p, (level - p) / np.where(q > p, q - p, 1), 0), 0, 1)
        with np.errstate(invalid="ignore"):  # inf - inf where a query has no neighbour at all
            result.append((a + part * (c - a))[:, :, 0])
    return np.stack(result, axis=-1)
