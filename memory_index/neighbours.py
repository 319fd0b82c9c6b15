"""The answer of a memory: `Neighbours`, and how they become a forecast: weights, alignment, mean and quantiles.

The answer checks itself against the leak rule when it is constructed, wherever it came from: a search, a network reply
or a cache. The formulas are in docs/method.md. Sums run over the neighbours of one query in a fixed order, so that a
forecast does not depend on how many queries were asked at once. Work is done in chunks of queries: memory does not grow
with their number.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from memory_index.errors import NotFoundError, UsageError
from memory_index.leakage import TimeSpans, require_admissible
from memory_index.products import project
from memory_index.threads import one_blas_thread
from memory_index.types import KeySpace, Queries
from memory_index.windows import StoredWindows, cut

OnEmpty = Literal["error", "last-value"]  # what becomes of a query that has no neighbour

CHUNK_VALUES = 1 << 20  # values of neighbours' windows handled at once, where a query does not have more
Chunk = tuple[slice, slice]  # of the axes B and N


@dataclass(frozen=True, kw_only=True, slots=True)
class Neighbours:
    """The K nearest admissible windows of each query in each of V key spaces, nearest first.

    row, distance, shape_distance, value_distance: [B, N, V, K]; int64 row ids (-1 in unused slots) and
    float32 distances (+inf there). `distance^2 = w * shape_distance^2 + (1 - w) * value_distance^2`
    (docs/method.md), in units of a window's own spread. query_location, query_spread: float64 [B, N, V], the
    query's own statistics under each view. temperature: float32 [V], stored with the version. linear_maps: of each
    view, float32 [view, H], stored with it too (`KeyEncoder.linear_map`).

    Constructing it raises `LeakError` if any row is not admissible for its query.
    """

    queries: Queries
    spaces: tuple[KeySpace, ...]
    row: np.ndarray
    distance: np.ndarray
    shape_distance: np.ndarray
    value_distance: np.ndarray
    query_location: np.ndarray
    query_spread: np.ndarray
    temperature: np.ndarray
    linear_maps: Mapping[int, np.ndarray]
    windows: StoredWindows
    fingerprint: str

    def __post_init__(self) -> None:
        b, n, _ = self.queries.context.shape
        if self.row.ndim != 4 or self.row.shape[:3] != (b, n, len(self.spaces)):
            raise UsageError(f"row must be [{b}, {n}, {len(self.spaces)}, K], not {self.row.shape}")
        for name in ("distance", "shape_distance", "value_distance"):
            if getattr(self, name).shape != self.row.shape:
                raise UsageError(
                    f"{name} must have the shape of row, {self.row.shape}, not {getattr(self, name).shape}"
                )
        valid = self.valid
        if (self.row >= len(self.windows)).any() or not (np.isfinite(self.distance) == valid).all():
            raise UsageError("row ids and distances do not belong together: unused slots need row -1 and distance +inf")
        spans, step, spec = self.spans, self.windows.step, self.windows.spec
        require_admissible(
            self.queries.policy,
            spans,
            valid,
            origin=self.queries.origin[:, None, None, None],
            query_start=step.add(self.queries.origin, 1 - spec.lookback)[:, None, None, None],
            query_end=step.add(self.queries.origin, spec.horizon)[:, None, None, None],
        )

    @property
    def view_number(self) -> np.ndarray:
        """int64 [V]: which of the windows' views each key space compares."""
        return np.array([self.windows.views.index(space.view) for space in self.spaces], dtype=np.int64)

    @property
    def valid(self) -> np.ndarray:
        """bool [B, N, V, K]: whether the slot holds a neighbour."""
        return self.row >= 0

    @property
    def spans(self) -> TimeSpans:
        """Start, end and known_at of each neighbour, datetime64[ns] [B, N, V, K], NaT in unused slots."""
        spans = self.windows.spans(np.maximum(self.row, 0))
        missing = ~self.valid
        for times in (spans.start_at, spans.end_at, spans.known_at):
            times[missing] = np.datetime64("NaT")
        return spans

    @property
    def known_at(self) -> np.ndarray:
        """datetime64[ns] [B, N, V, K], NaT in unused slots."""
        return self.spans.known_at

    @property
    def series(self) -> np.ndarray:
        """int32 [B, N, V, K]: number of the neighbour's series in the version, -1 in unused slots."""
        return np.where(self.valid, self.windows.series[np.maximum(self.row, 0)], -1).astype(np.int32)

    @property
    def weights(self) -> np.ndarray:
        """float32 [B, N, V, K]: softmax(-distance^2 / temperature) within each (scope, view), 0 in unused slots."""
        return weights(self)

    def contexts(self) -> np.ndarray:
        """float32 [B, N, V, K, L], raw units of each neighbour's own series; NaN in unused slots."""
        return np.where(self.valid[..., None], self.windows.contexts(np.maximum(self.row, 0)), np.float32(np.nan))

    def futures(self) -> np.ndarray:
        """float32 [B, N, V, K, H], raw units of each neighbour's own series; NaN in unused slots."""
        return np.where(self.valid[..., None], self.windows.futures(np.maximum(self.row, 0)), np.float32(np.nan))

    def aligned_futures(self) -> np.ndarray:
        """float32 [B, N, V, K, H]: the futures as they would follow this query; NaN in unused slots.

        In the query's own location and spread, and moved by what the linear map makes of the difference between the
        two contexts (docs/method.md).
        """
        return aligned_futures(self)

    def space_forecasts(self) -> np.ndarray:
        """float32 [B, N, V, H]: the weighted mean of the aligned futures of each key space; NaN where it has none."""
        return space_forecasts(self)

    def forecast(self, *, on_empty: OnEmpty = "error") -> np.ndarray:
        """float32 [B, N, H]: the memory-only forecast, the mean over key spaces, in the query's own units.

        on_empty: a query without any neighbour raises `NotFoundError`, or gets its `last-value`.
        """
        return forecast(self, on_empty)

    def quantiles(self, levels: tuple[float, ...], *, on_empty: OnEmpty = "error") -> np.ndarray:
        """float32 [B, N, H, Q]: weighted quantiles of all aligned futures, each level in (0, 1)."""
        return quantiles(self, levels, on_empty)

    def at_moments(self, chosen: np.ndarray) -> Neighbours:
        """The same of some of the moments. chosen: int [b] or bool [B]."""
        of_moments = ("row", "distance", "shape_distance", "value_distance", "query_location", "query_spread")
        queries = replace(self.queries, context=self.queries.context[chosen], origin=self.queries.origin[chosen])
        return replace(self, queries=queries, **{name: getattr(self, name)[chosen] for name in of_moments})


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
        for chunk in _chunks(neighbours, space):
            result[*chunk, number] = _aligned(neighbours, chunk, number)
    return np.where(neighbours.valid[..., None], result, np.float32(np.nan))


@one_blas_thread()
def space_forecasts(neighbours: Neighbours) -> np.ndarray:
    """Weighted mean of the aligned futures of each key space, float32 [B, N, V, H]; NaN where it has none.

    The map is linear, so the mean of what it makes of K differences is what it makes of their mean.
    """
    b, n, v, _ = neighbours.row.shape
    weight = weights(neighbours)
    result = np.empty((b, n, v, neighbours.windows.spec.horizon), dtype=np.float32)
    for number, space in enumerate(neighbours.spaces):
        for chunk in _chunks(neighbours, space):
            standard = _standard_windows(neighbours, chunk, number)
            # One small sum for each window: what comes out does not depend on how many there are.
            mean = np.einsum("bnk,bnkw->bnw", weight[*chunk, number], standard)
            result[*chunk, number] = _moved(neighbours, chunk, number, mean[:, :, None])[:, :, 0]
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
    for chunk in _chunks(neighbours, *neighbours.spaces):
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


def _chunks(neighbours: Neighbours, *spaces: KeySpace) -> list[Chunk]:
    """Moments, and where one has many series parts of a moment, of at most `CHUNK_VALUES` values each or one query.

    Values of the neighbours' windows in these key spaces.
    """
    b, n, _, k = neighbours.row.shape
    of_query = max(1, k * sum(space.view + neighbours.windows.spec.horizon for space in spaces))
    num_queries = max(1, CHUNK_VALUES // of_query)
    moments, series = max(1, num_queries // max(1, n)), min(max(1, n), num_queries)
    return [
        (slice(moment, moment + moments), slice(first, first + series))
        for moment in range(0, b, moments)
        for first in range(0, n, series)
    ]
