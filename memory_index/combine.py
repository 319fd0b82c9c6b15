"""How neighbours become a forecast: weights, alignment to the query, mean and quantiles (docs/method.md).

Sums run over the neighbours of one query in a fixed order, so that a forecast does not depend on how many queries
were asked at once. Work is done in chunks of queries: memory does not grow with their number.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Literal

import numpy as np

from memory_index.errors import NotFoundError, UsageError
from memory_index.products import project
from memory_index.threads import Workers, num_cores, one_blas_thread
from memory_index.windows import cut

if TYPE_CHECKING:
    from memory_index.types import KeySpace, Neighbours

OnEmpty = Literal["error", "last-value"]  # what becomes of a query that has no neighbour

CHUNK_VALUES = 1 << 20  # values of neighbours' windows handled at once, where a query does not have more
Chunk = tuple[slice, slice]  # of the axes B and N


def weights(neighbours: Neighbours) -> np.ndarray:
    """`softmax(-distance^2 / temperature)` over the valid slots of each key space, float32 [B, N, V, K]."""
    squared = np.square(neighbours.distance.astype(np.float64))
    scaled = squared / neighbours.temperature.astype(np.float64)[:, None]
    nearest = scaled[..., :1]  # slots are sorted, so this is the smallest
    raw = np.exp(-np.where(neighbours.valid, scaled - np.where(np.isfinite(nearest), nearest, 0), np.inf))
    total = raw.sum(axis=-1, keepdims=True)
    return (raw / np.where(total > 0, total, 1)).astype(np.float32)


@one_blas_thread()
def aligned_futures(neighbours: Neighbours) -> np.ndarray:
    """Futures as they would follow each query, float32 [B, N, V, K, H]; NaN in unused slots.

    In the query's own location and spread, and moved by what the linear map makes of the difference between its window
    and the neighbour's: neighbours are never quite alike, and this much of what follows from it is known.
    """
    b, n, v, k = neighbours.row.shape
    result = np.empty((b, n, v, k, neighbours.windows.spec.horizon), dtype=np.float32)
    for number, space in enumerate(neighbours.spaces):
        for chunk in _chunks(b, n, k * _num_steps(neighbours, space)):
            result[*chunk, number] = _aligned(neighbours, chunk, number)
    return np.where(neighbours.valid[..., None], result, np.float32(np.nan))


@one_blas_thread()
def space_forecasts(neighbours: Neighbours) -> np.ndarray:
    """Weighted mean of the aligned futures of each key space, float32 [B, N, V, H]; NaN where it has none.

    The map is linear, so the mean of what it makes of K differences is what it makes of their mean.
    """
    b, n, v, k = neighbours.row.shape
    weight = weights(neighbours)
    result = np.empty((b, n, v, neighbours.windows.spec.horizon), dtype=np.float32)

    def run(task: tuple[int, Chunk]) -> None:
        number, (moments, series) = task
        num_moments, num_series = moments.stop - moments.start, series.stop - series.start
        width = _num_steps(neighbours, neighbours.spaces[number])
        mean = np.empty((num_moments, num_series, 1, width), dtype=np.float32)
        for inner in _chunks(num_moments, num_series, k * width):
            chunk = _within(moments, inner[0]), _within(series, inner[1])
            # One small sum for each window: what comes out does not depend on how many there are.
            standard = _standard_windows(neighbours, chunk, number)
            mean[*inner, 0] = np.einsum("bnk,bnkw->bnw", weight[*chunk, number], standard)
        result[moments, series, number] = _moved(neighbours, (moments, series), number, mean)[:, :, 0]

    # The map multiplies whole blocks of rows (`products.project`), so many means are moved at once.
    _workers().run(
        run,
        (
            (number, chunk)
            for number, space in enumerate(neighbours.spaces)
            for chunk in _chunks(b, n, _num_steps(neighbours, space))
        ),
    )
    return np.where(np.any(neighbours.valid, axis=3)[..., None], result, np.float32(np.nan))


def forecast(neighbours: Neighbours, on_empty: OnEmpty) -> np.ndarray:
    """Mean over the key spaces that have neighbours, float32 [B, N, H].

    A query without any neighbour gets the last value of its context, or raises `NotFoundError`, as `on_empty` says.
    """
    mean = mean_over_spaces(space_forecasts(neighbours))
    return with_last_value(neighbours, mean, on_empty)


def mean_over_spaces(by_space: np.ndarray) -> np.ndarray:
    """[B, N, V, H], NaN where a key space has no neighbours -> float32 [B, N, H], NaN where none has."""
    found = np.isfinite(by_space[..., :1])
    total = np.where(found, by_space.astype(np.float64), 0).sum(axis=2)
    num = found.sum(axis=2)
    return np.where(num > 0, total / np.maximum(num, 1), np.nan).astype(np.float32)


@one_blas_thread()
def quantiles(neighbours: Neighbours, levels: tuple[float, ...], on_empty: OnEmpty) -> np.ndarray:
    """Weighted quantiles over the aligned futures of all key spaces together, float32 [B, N, H, Q].

    Each key space that has neighbours counts the same. `on_empty` as in `forecast`. The quantile of a level is
    interpolated linearly between the values at the midpoints of the cumulative weights.
    """
    if not levels or not all(0 < level < 1 for level in levels):
        raise UsageError(f"quantile levels must lie between 0 and 1, not {list(levels)}")
    b, n, v, k = neighbours.row.shape
    weight = weights(neighbours).reshape(b, n, v * k)
    result = np.empty((b, n, neighbours.windows.spec.horizon, len(levels)), dtype=np.float32)
    for chunk in _chunks(b, n, k * sum(_num_steps(neighbours, space) for space in neighbours.spaces)):
        values = np.concatenate([_aligned(neighbours, chunk, number) for number in range(v)], axis=2)  # [b, N, V*K, H]
        result[chunk] = _weighted_quantiles(values, weight[chunk][..., None], levels)
    return np.stack([with_last_value(neighbours, result[..., q], on_empty) for q in range(len(levels))], axis=-1)


def with_last_value(neighbours: Neighbours, values: np.ndarray, on_empty: OnEmpty) -> np.ndarray:
    """values [B, N, H] with the last value of the context for queries that have no neighbour, if that is allowed."""
    found = np.any(neighbours.valid, axis=(2, 3))
    if on_empty == "error":
        require_neighbours(neighbours, found)
    return np.where(found[..., None], values, neighbours.queries.context[..., -1:])


def require_neighbours(neighbours: Neighbours, found: np.ndarray) -> None:
    """Raise `NotFoundError` that names the first query without any neighbour. found: bool [B, N]."""
    if found.all():
        return
    b, n = (int(i) for i in np.argwhere(~found)[0])
    queries, windows = neighbours.queries, neighbours.windows
    raise NotFoundError(
        f"no admissible neighbour for {int((~found).sum())} of {found.size} queries: first series "
        f"'{queries.series_id[n]}' at origin {windows.step.isoformat(queries.origin[b])}; "
        f"the memory's first window is known at {windows.step.isoformat(windows.known_at.min())}",
        hint="choose a later origin, fewer filters, or let such queries use the last value (--on-empty last-value)",
    )


def _aligned(neighbours: Neighbours, chunk: Chunk, number: int) -> np.ndarray:
    """See `aligned_futures`: of one key space, float64 [b, N, K, H]; anything in unused slots."""
    return _moved(neighbours, chunk, number, _standard_windows(neighbours, chunk, number))


def _moved(neighbours: Neighbours, chunk: Chunk, number: int, standard: np.ndarray) -> np.ndarray:
    """Futures as they would follow the query, raw units, float64 [b, N, K, H].

    standard: [b, N, K, view + H], as of `_standard_windows`, or means of such windows.
    """
    view = neighbours.spaces[number].view
    location, spread = (
        part[*chunk, number, None, None] for part in (neighbours.query_location, neighbours.query_spread)
    )
    query = neighbours.queries.context[*chunk, None, -view:]
    difference = (query - location) / spread - standard[..., :view]
    return location + spread * (standard[..., view:] + project(difference, neighbours.linear_maps[view]))


def _standard_windows(neighbours: Neighbours, chunk: Chunk, number: int) -> np.ndarray:
    """Each neighbour of one key space in its own location and spread, float32 [b, N, K, view + H].

    The last `view` steps of its context, then its future; 0 in unused slots.
    """
    view, windows = neighbours.spaces[number].view, neighbours.windows
    found, place = neighbours.row[*chunk, number], windows.views.index(view)
    row = np.maximum(found, 0)
    standard = cut(windows.values, windows.origin_position[row] - view + 1, view + windows.spec.horizon)
    standard -= windows.location[row, place][..., None]
    standard /= windows.spread[row, place][..., None]
    standard[found < 0] = 0
    return standard


def _weighted_quantiles(values: np.ndarray, weight: np.ndarray, levels: tuple[float, ...]) -> np.ndarray:
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


def _num_steps(neighbours: Neighbours, space: KeySpace) -> int:
    """Of a neighbour's window in a key space: its view and the horizon."""
    return space.view + neighbours.windows.spec.horizon


def _chunks(b: int, n: int, values: int) -> list[Chunk]:
    """Of b moments of n series: moments, and where one has many series parts of a moment.

    Of at most `CHUNK_VALUES` values each, or one query. values: of one query.
    """
    num_queries = max(1, CHUNK_VALUES // max(1, values))
    moments, series = max(1, num_queries // max(1, n)), min(max(1, n), num_queries)
    return [
        (slice(moment, min(moment + moments, b)), slice(first, min(first + series, n)))
        for moment in range(0, b, moments)
        for first in range(0, n, series)
    ]


def _within(outer: slice, inner: slice) -> slice:
    """A part of a part."""
    return slice(outer.start + inner.start, outer.start + inner.stop)


@cache
def _workers() -> Workers:
    """Threads that make forecasts, as many as can run at once."""
    return Workers(num_cores())
