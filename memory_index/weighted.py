"""Weighted means and quantiles of arrays."""

from __future__ import annotations

import numpy as np

BLOCK_VALUES = 1 << 16  # ordered at once: what is made of them fits the cache of a core
REST = np.int32(0x7FFFFFFF)  # all bits but the sign


def mean_of_known(moved: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Weighted mean [n, H] of futures [n, K, H], each step over those that are not missing there.

    weight: [n, K].
    """
    share = np.where(np.isnan(moved), 0.0, weight[..., None])
    total = share.sum(axis=1)
    return (np.where(share > 0, moved, 0.0) * share).sum(axis=1) / np.where(total > 0, total, np.nan)


def weighted_quantiles(values: np.ndarray, weight: np.ndarray, levels: tuple[float, ...]) -> np.ndarray:
    """values [b, N, M, H], read as float32, weight [b, N, M, H] or [b, N, M, 1] -> float64 [b, N, H, Q].

    levels: each in (0, 1). Weightless values take no part.
    """
    b, n, num, horizon = values.shape
    values, weight = values.reshape(b * n, num, horizon), weight.reshape(b * n, num, -1)
    size = max(1, BLOCK_VALUES // max(1, num * horizon))
    parts = [
        _quantiles(values[start : start + size], weight[start : start + size], levels)
        for start in range(0, b * n, size)
    ]
    return np.concatenate(parts).reshape(b, n, horizon, len(levels))


def as_wide_as_beside(quantiles: np.ndarray, center: np.ndarray, unknown: np.ndarray) -> np.ndarray:
    """Quantiles [b, N, H, Q] that lie as far from `center` [b, N, H] at unknown steps (bool [b, N, H]) as at the steps
    beside them, in proportion to how near these are. Unchanged where no step is known.
    """
    if not unknown.any():
        return quantiles
    horizon = unknown.shape[-1]
    step = np.arange(horizon)
    before = np.maximum.accumulate(np.where(unknown, -1, step), axis=-1)
    after = np.minimum.accumulate(np.where(unknown, horizon, step)[..., ::-1], axis=-1)[..., ::-1]
    first, last = np.where(before < 0, after, before), np.where(after == horizon, before, after)
    first, last = (np.clip(each, 0, horizon - 1)[..., None] for each in (first, last))
    part = (step[:, None] - first) / np.maximum(last - first, 1)
    apart = quantiles - center[..., None]
    mixed = (1 - part) * np.take_along_axis(apart, first, axis=2) + part * np.take_along_axis(apart, last, axis=2)
    inside = unknown & ~unknown.all(axis=-1, keepdims=True)
    return np.asarray(np.where(inside[..., None], center[..., None] + mixed, quantiles))


def _quantiles(values: np.ndarray, weight: np.ndarray, levels: tuple[float, ...]) -> np.ndarray:
    """values [n, M, H], weight [n, M, H] or [n, M, 1] -> [n, H, Q]."""
    there = weight > 0
    ordered, order = _sorted(np.where(there, values, np.inf).swapaxes(1, 2).astype(np.float32))  # [n, H, M]
    share = np.take_along_axis(weight.swapaxes(1, 2).astype(np.float64), order, axis=2)
    middle = np.cumsum(share, axis=2)
    total = middle[..., -1:].copy()
    share /= 2
    middle -= share
    middle /= np.where(total > 0, total, 1)
    below = np.stack([np.count_nonzero(middle < level, axis=2) for level in levels], axis=-1)  # [n, H, Q]
    last = there.sum(axis=1)[..., None] - 1
    upper = np.minimum(np.clip(below, 1, np.maximum(last, 1)), last)
    lower = np.maximum(upper - 1, 0)
    a, c = (np.take_along_axis(ordered, at, axis=2) for at in (lower, upper))
    p, q = (np.take_along_axis(middle, at, axis=2) for at in (lower, upper))
    part = np.clip(np.where(q > p, (np.array(levels) - p) / np.where(q > p, q - p, 1), 0), 0, 1)
    with np.errstate(invalid="ignore"):  # inf - inf where a query has no neighbour at all
        return np.asarray(a + part * (c - a))


def _sorted(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """float32 values without NaN, ascending along the last axis, and where each was (int64). Equal ones stay in order.

    A value and its place make one integer, and integers that all differ are sorted alike by the fastest sort there is
    (a stable argsort of floats takes four times as long).
    """
    bits = (np.ascontiguousarray(values) + np.float32(0)).view(np.int32)  # + 0: there is one zero
    keys = (bits ^ ((bits >> 31) & REST)).astype(np.int64)  # of negative floats the larger bits are the smaller number
    keys <<= 32
    keys |= np.arange(values.shape[-1], dtype=np.int64)
    keys.sort(axis=-1)
    order = keys & 0xFFFFFFFF
    bits = (keys >> 32).astype(np.int32)
    return (bits ^ ((bits >> 31) & REST)).view(np.float32), order
