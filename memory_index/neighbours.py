"""The answer of a memory: `Neighbours`, and how they become a forecast: weights, alignment, mean and quantiles.

The answer checks itself against the leak rule when it is constructed, wherever it came from. Formulas: docs/method.md.
Sums run over the neighbours of one query in a fixed order: nothing depends on how many queries were asked at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Literal

import numpy as np

from memory_index.cores import num_cores
from memory_index.errors import NotFoundError, UsageError
from memory_index.leakage import TimeSpans, require_admissible
from memory_index.missing import last_known
from memory_index.moved_futures import (
    Chunk,
    GrowingForecasts,
    by_all_maps,
    by_map,
    moved,
    moved_of_space,
    num_values,
    standard_query,
    standard_windows,
)
from memory_index.threads import Workers, one_blas_thread
from memory_index.transforms import NO_TRANSFORM
from memory_index.types import KeySpace, Queries
from memory_index.weighted import as_wide_as_beside, mean_of_known, weighted_quantiles
from memory_index.windows import StoredWindows

ARRAYS = ("row", "distance", "shape_distance", "value_distance", "query_location", "query_spread")
OnEmpty = Literal["error", "last-value"]  # what becomes of a query that has no neighbour

CHUNK_VALUES = 1 << 20  # values of neighbours' windows handled at once, where a query does not have more


@dataclass(frozen=True, kw_only=True, slots=True)
class Neighbours:
    """The K nearest admissible windows of each query in each of V key spaces, nearest first.

    row, distance, shape_distance, value_distance: [B, N, V, K]; int64 row ids (-1 in unused slots) and
    float32 distances (+inf there). `distance^2 = w * shape_distance^2 + (1 - w) * value_distance^2 +
    condition_distance^2` (docs/method.md), in units of a window's own spread; condition_distance is None for a version
    without covariates. query_location, query_spread: float64 [B, N, V], the
    query's own statistics under each view, in units of the version's transform. temperature: float32 [V], stored with
    the version. linear_maps: of each view, float32 [view + P, H], stored with it too (`KeyEncoder.linear_map`).
    growing: what forecasts in their place as of each origin, where the version has covariates (`growing_maps.py`).

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
    condition_distance: np.ndarray | None = None
    growing: GrowingForecasts | None = None

    def __post_init__(self) -> None:
        b, n, _ = self.queries.context.shape
        if self.row.ndim != 4 or self.row.shape[:3] != (b, n, len(self.spaces)):
            raise UsageError(f"row must be [{b}, {n}, {len(self.spaces)}, K], not {self.row.shape}")
        for name in ("distance", "shape_distance", "value_distance"):
            if getattr(self, name).shape != self.row.shape:
                raise UsageError(
                    f"{name} must have the shape of row, {self.row.shape}, not {getattr(self, name).shape}"
                )
        if (self.condition_distance is None) != (self.windows.covariates is None):
            raise UsageError("there is a condition part of distances where the version has covariates, and only there")
        if self.condition_distance is not None and self.condition_distance.shape != self.row.shape:
            raise UsageError(f"condition_distance must have the shape of row, {self.row.shape}")
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

    def inside(self) -> Neighbours:
        """The same with queries and windows in units of the version's transform; itself where there is none.

        What it makes of them, a forecast too, is in those units.
        """
        if not self.windows.transform:
            return self
        return replace(self, queries=self.windows.queries_inside(self.queries), windows=self.windows.inside)

    def at_moments(self, chosen: np.ndarray) -> Neighbours:
        """The same of some of the moments. chosen: int [b] or bool [B]."""
        return replace(
            self, queries=self.queries.at_moments(chosen), **{name: part[chosen] for name, part in self.parts().items()}
        )

    def of_series(self, chosen: slice) -> Neighbours:
        """The same of some of the series."""
        parts: dict[str, Any] = {name: part[:, chosen] for name, part in self.parts().items()}
        return replace(self, queries=self.queries.of_series(chosen), **parts)

    def parts(self) -> dict[str, np.ndarray]:
        """The arrays that each window has a part of, by name, [B, N, V, K] or [B, N, V]."""
        names = [*ARRAYS, *(["condition_distance"] if self.condition_distance is not None else [])]
        return {name: getattr(self, name) for name in names}


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
    """Futures as they would follow each query, float32 [B, N, V, K, H]; NaN in unused slots and where missing.

    In the query's own location and spread, and moved by what the linear map makes of the difference between its window
    and the neighbour's: neighbours are never quite alike, and this much of what follows from it is known. All of that
    in units of the transform, and back.
    """
    b, n, v, k = neighbours.row.shape
    curve, inside = neighbours.windows.curve(neighbours.queries), neighbours.inside()
    result = np.empty((b, n, v, k, neighbours.windows.spec.horizon), dtype=np.float32)
    for number in range(v):
        for chunk in _chunks(b, n, k * num_values(neighbours, number)):
            result[*chunk, number] = curve.take(chunk).inverse(moved_of_space(inside, chunk, number))
    return np.where(neighbours.valid[..., None], result, np.float32(np.nan))


@one_blas_thread()
def space_forecasts(neighbours: Neighbours) -> np.ndarray:
    """Weighted mean of the aligned futures of each key space, float32 [B, N, V, H]; NaN where it has none.

    A missing step of a future has no weight; a step that all of a key space's futures miss is what the linear map makes
    of the query. The map is linear, so the mean of what it makes of K differences is what it makes of their mean.
    Behind a transform it is the mean of the futures in raw units: what comes back from a mean is no mean.
    """
    b, n, v, k = neighbours.row.shape
    weight, curve, inside = weights(neighbours), neighbours.windows.curve(neighbours.queries), neighbours.inside()
    result = np.empty((b, n, v, neighbours.windows.spec.horizon), dtype=np.float32)

    def of_growing(task: tuple[int, Chunk]) -> None:
        number, chunk = task
        back, flat = curve.take(chunk), result[*chunk, number].shape
        each = back.inverse(moved_of_space(inside, chunk, number)).reshape(-1, k, flat[-1])
        known = mean_of_known(each, weight[*chunk, number].reshape(-1, k)).reshape(flat)
        of_map = np.empty(flat)
        if (nothing := np.isnan(known)).any():
            of_map = back.inverse(by_map(standard_query(inside, chunk, number), inside, chunk, number))
        result[*chunk, number] = np.where(nothing, of_map, known)

    def run(task: tuple[int, Chunk]) -> None:
        number, (moments, series) = task
        num_moments, num_series = moments.stop - moments.start, series.stop - series.start
        linear_map, width = neighbours.linear_maps[neighbours.spaces[number].view], num_values(inside, number)
        mean, apart = np.empty((num_moments, num_series, width), dtype=np.float32), []
        for inner in _chunks(num_moments, num_series, k * width):
            chunk = _within(moments, inner[0]), _within(series, inner[1])
            standard = standard_windows(inside, chunk, number)
            # One small sum for each window: what comes out does not depend on how many there are.
            mean[inner] = np.einsum("bnk,bnkw->bnw", weight[*chunk, number], standard)
            each = np.any(np.isnan(mean[inner]), axis=-1) | np.full(1, neighbours.windows.transform != NO_TRANSFORM)
            if each.any():  # each neighbour by itself: steps are means over different ones, or of raw units
                back, asked = curve.take(chunk).take(each), standard_query(inside, chunk, number).take(each)
                each_moved = back.inverse(moved(asked, standard[each], linear_map))
                known = mean_of_known(each_moved, weight[*chunk, number][each])
                of_map = back.inverse(by_map(asked, neighbours, chunk, number))
                apart.append((inner, each, np.where(np.isnan(known), of_map, known)))
        part = moved(standard_query(inside, (moments, series), number), mean[:, :, None], linear_map)[:, :, 0]
        for inner, each, forecasts in apart:
            part[inner][each] = forecasts
        result[moments, series, number] = part

    # The map multiplies whole blocks of rows (`products.project`), so many means are moved at once.
    grows = inside.growing is not None
    size = [k * neighbours.windows.spec.horizon if grows else num_values(inside, number) for number in range(v)]
    tasks = [(number, chunk) for number in range(v) for chunk in _chunks(b, n, size[number])]
    _workers().run(of_growing if grows else run, tasks)
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

    Each key space that has neighbours counts the same. `on_empty` as in `forecast`. A quantile is interpolated linearly
    between the values at the midpoints of the cumulative weights, in units of the transform, which keeps their order. A
    missing step has no weight; where all miss it, quantiles lie around what the linear maps make of the query as they
    do at the steps beside it.
    """
    if not all(0 < level < 1 for level in levels):
        raise UsageError(f"quantile levels must lie between 0 and 1, not {list(levels)}")
    b, n, v, k = neighbours.row.shape
    if not levels:
        return np.empty((b, n, neighbours.windows.spec.horizon, 0), dtype=np.float32)
    weight = weights(neighbours).reshape(b, n, v * k)
    curve, inside = neighbours.windows.curve(neighbours.queries), neighbours.inside()
    result = np.empty((b, n, neighbours.windows.spec.horizon, len(levels)), dtype=np.float32)

    def run(chunk: Chunk) -> None:
        values = np.concatenate(
            [moved_of_space(inside, chunk, number) for number in range(v)], axis=2
        )  # [b, N, V*K, H]
        share = weight[chunk][..., None]
        if not (missing := np.isnan(values)).any():
            result[chunk] = curve.take(chunk).inverse(weighted_quantiles(values, share, levels))
            return
        nothing = ~np.any((known := np.where(missing, np.float32(0), share)) > 0, axis=2, keepdims=True)
        of_maps = by_all_maps(inside, chunk)
        values, share = np.where(nothing, of_maps[:, :, None], values), np.where(nothing, share, known)
        found = as_wide_as_beside(weighted_quantiles(values, share, levels), of_maps, nothing[:, :, 0])
        result[chunk] = curve.take(chunk).inverse(found)

    _workers().run(run, _chunks(b, n, k * sum(num_values(neighbours, number) for number in range(v))))
    return np.stack([with_last_value(neighbours, result[..., q], on_empty) for q in range(len(levels))], axis=-1)


def with_last_value(neighbours: Neighbours, values: np.ndarray, on_empty: OnEmpty) -> np.ndarray:
    """values [B, N, H] with the last value of the context for queries that have no neighbour, if that is allowed."""
    found = np.any(neighbours.valid, axis=(2, 3))
    if on_empty == "error":
        require_neighbours(neighbours, found)
    return np.where(found[..., None], values, last_known(neighbours.queries.context))


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
