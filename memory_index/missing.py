"""Missing cells: how much of a window may be missing, and the fill that keys and linear maps read instead.

A missing cell stays missing (NaN) in series, queries and futures. What compares windows reads `filled` contexts: each
missing cell is the mean of its phase of the season in the context, plus how far the known cells at both edges of the
gap are from theirs, interpolated in between. Everything in it is a cell of the context itself, so that a stored window
and a query are filled alike and no fill knows anything later than its window's origin (docs/method.md).
"""

from __future__ import annotations

import numpy as np

MAX_MISSING = 0.75  # of a view, above which it is left out for that window (docs/experiments.md)


def has_missing(windows: np.ndarray) -> bool:
    """Whether any cell is missing (NaN)."""
    return bool(np.isnan(windows).any())


def filled(context: np.ndarray, season: int | None) -> np.ndarray:
    """Contexts [..., L] with a value in every cell; the array itself where nothing is missing.

    season: steps of the usual season (`Step.season`); without one, or with less than two of it in the
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


def filled_contexts(
    values: np.ndarray, position: np.ndarray, lookback: int, *, whole: int, season: int | None
) -> np.ndarray:
    """The last `lookback` cells of contexts of `whole` cells, filled: [..., lookback].

    values: [T], NaN where missing. position: of each context's last cell. A model that reads fewer cells than a memory
    stores reads the same fill.
    """
    contexts = np.lib.stride_tricks.sliding_window_view(values, lookback)[position - lookback + 1]
    holes = np.isnan(contexts).any(axis=-1)
    if holes.any():
        read = np.lib.stride_tricks.sliding_window_view(values, whole)[position[holes] - whole + 1]
        contexts[holes] = filled(read, season)[:, -lookback:]
    return contexts


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
    return np.where(missing, usual + _between_edges(np.where(missing, 0.0, known - usual), missing, season), known)


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


def _between_edges(away: np.ndarray, missing: np.ndarray, season: int | None) -> np.ndarray:
    """A straight line over each gap from what is usual at its one edge to what is at the other; [n, L], 0 elsewhere.

    At an edge that is the mean of the known cells on a stretch as long as the gap, at most a season: one cell says
    little of three days. A gap without an edge on one side keeps the other's. away: [n, L], 0 where missing.
    """
    num, length = away.shape
    step = np.arange(length)
    before = np.maximum.accumulate(np.where(missing, -1, step), axis=1)
    after = np.minimum.accumulate(np.where(missing, length, step)[:, ::-1], axis=1)[:, ::-1]
    row, cell = np.nonzero(missing)
    first, last = before[row, cell], after[row, cell]  # the known cells next to the gap
    reach = np.minimum(last - first - 1, season or 1)
    total = np.concatenate([np.zeros((num, 1)), np.cumsum(away, axis=1)], axis=1)
    count = np.concatenate([np.zeros((num, 1), dtype=np.int64), np.cumsum(~missing, axis=1)], axis=1)

    def mean(start: np.ndarray, end: np.ndarray) -> np.ndarray:
        start, end = np.clip(start, 0, length), np.clip(end, 0, length)
        return (total[row, end] - total[row, start]) / np.maximum(count[row, end] - count[row, start], 1)

    low, high = mean(first + 1 - reach, first + 1), mean(last, last + reach)
    low, high = np.where(first < 0, high, low), np.where(last >= length, low, high)
    part = (cell - first) / (last - first)
    result = np.zeros_like(away)
    result[row, cell] = low * (1 - part) + high * part
    return result
