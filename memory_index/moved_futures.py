"""Neighbours' futures as they would follow a query: both windows in their own location and spread, and what the linear
map makes of how they differ. Sums over neighbours and what becomes of them: `neighbours.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Protocol

import numpy as np

from memory_index.missing import filled
from memory_index.products import project
from memory_index.scaling import units_of
from memory_index.types import KeySpace, Queries
from memory_index.windows import StoredWindows, cut

Chunk = tuple[slice, slice]  # of the axes B and N


class Answer(Protocol):
    """What is read of an answer, in units of the version's transform: see `Neighbours`."""

    @property
    def queries(self) -> Queries: ...

    @property
    def spaces(self) -> tuple[KeySpace, ...]: ...

    @property
    def row(self) -> np.ndarray: ...

    @property
    def query_location(self) -> np.ndarray: ...

    @property
    def query_spread(self) -> np.ndarray: ...

    @property
    def linear_maps(self) -> Mapping[int, np.ndarray]: ...

    @property
    def windows(self) -> StoredWindows: ...

    @property
    def growing(self) -> GrowingForecasts | None: ...


class GrowingForecasts(Protocol):
    """Maps that go on: `growing_maps.GrowingMaps`, which is made of what is here."""

    def of_queries(self, view: int, origin: np.ndarray, z: np.ndarray) -> np.ndarray:
        """See `GrowingMaps.of_queries`."""
        ...

    def residuals(self, view: int, rows: np.ndarray) -> np.ndarray:
        """See `GrowingMaps.residuals`."""
        ...


class StandardQuery(NamedTuple):
    """Queries in their own location and spread under one view, and their covariates as the linear map reads them:
    z [..., 1, view + P], location and spread [..., 1, 1].

    z is NaN where a cell is missing, but for a memory whose maps grow: these read filled contexts, as they were fitted.
    """

    z: np.ndarray
    location: np.ndarray
    spread: np.ndarray

    def take(self, chosen: np.ndarray) -> StandardQuery:
        """Some of the queries. chosen: bool [b, N]."""
        return StandardQuery(*(part[chosen] for part in self))


def standard_query(neighbours: Answer, chunk: Chunk, number: int) -> StandardQuery:
    """The queries of a chunk in the location and spread that they have in one key space."""
    location, spread = (
        part[*chunk, number, None, None] for part in (neighbours.query_location, neighbours.query_spread)
    )
    queries, windows, view = neighbours.queries, neighbours.windows, neighbours.spaces[number].view
    context = queries.context[chunk]
    if neighbours.growing is not None:
        context = filled(context, windows.step.season)
    window = context[..., None, -view:]
    z = (window - location) / spread
    if windows.covariates is not None and queries.covariates is not None:
        layout = windows.covariates.layout
        series = windows.numbers_of(queries.series_id[chunk[1]])
        unit = units_of(windows.covariates.unit, series, filled(context, windows.step.season))[..., None, None]
        x = np.empty((*z.shape[:-1], view + layout.width))
        x[..., :view] = z
        beside = layout.of_values(queries.covariates[chunk], (view,))
        layout.numbers(beside, view, (unit / spread)[..., 0, 0], x[..., 0, view:])
        z = x
    return StandardQuery(z, location, spread)


def moved_of_space(neighbours: Answer, chunk: Chunk, number: int) -> np.ndarray:
    """See `aligned_futures`: of one key space, float64 [b, N, K, H]; anything in unused slots."""
    query, view = standard_query(neighbours, chunk, number), neighbours.spaces[number].view
    if neighbours.growing is not None:
        own = of_growing(query, neighbours, chunk, view)[..., None, :]
        missed = neighbours.growing.residuals(view, np.maximum(neighbours.row[*chunk, number], 0))
        return query.location + query.spread * (own + missed)
    return moved(query, standard_windows(neighbours, chunk, number), neighbours.linear_maps[view])


def of_growing(query: StandardQuery, neighbours: Answer, chunk: Chunk, view: int) -> np.ndarray:
    """What the maps as of the queries' origins make of them, float64 [b, N, H], in their own location and spread."""
    assert neighbours.growing is not None, "its maps grow"
    z = np.where(np.isnan(query.z), 0.0, query.z)[..., 0, :]
    return neighbours.growing.of_queries(view, neighbours.queries.origin[chunk[0]], z)


def moved(query: StandardQuery, standard: np.ndarray, linear_map: np.ndarray) -> np.ndarray:
    """Futures as they would follow the query, in its units, float64 [..., K, H].

    standard: [..., K, view + P + H], as of `standard_windows`, or means of such windows. A cell that either misses
    moves nothing: there is no difference to be told.
    """
    width = query.z.shape[-1]
    difference = query.z - standard[..., :width]
    if (missing := np.isnan(difference)).any():
        difference = np.where(missing, 0.0, difference)
    return query.location + query.spread * (standard[..., width:] + project(difference, linear_map))


def by_all_maps(neighbours: Answer, chunk: Chunk) -> np.ndarray:
    """What the linear maps of all key spaces make of the queries of a chunk, on average: float64 [b, N, H]."""
    of_maps = [
        by_map(standard_query(neighbours, chunk, n), neighbours, chunk, n) for n in range(len(neighbours.spaces))
    ]
    return np.mean(of_maps, axis=0)


def by_map(query: StandardQuery, neighbours: Answer, chunk: Chunk, number: int) -> np.ndarray:
    """What the linear map of one key space makes of the queries of a chunk, float64 [b, N, H], in their units."""
    view = neighbours.spaces[number].view
    if neighbours.growing is not None:
        own = of_growing(query, neighbours, chunk, view)
    else:
        own = project(np.where(np.isnan(query.z), 0.0, query.z), neighbours.linear_maps[view])[..., 0, :]
    return query.location[..., 0, :] + query.spread[..., 0, :] * own


def standard_windows(neighbours: Answer, chunk: Chunk, number: int) -> np.ndarray:
    """Each neighbour of one key space in its own location and spread, float32 [b, N, K, view + P + H].

    The last `view` steps of its context, its covariates as the linear map reads them, then its future; NaN where
    missing, 0 in unused slots.
    """
    view, windows = neighbours.spaces[number].view, neighbours.windows
    found, place = neighbours.row[*chunk, number], windows.views.index(view)
    row = np.maximum(found, 0)
    standard = cut(windows.values, windows.origin_position[row] - view + 1, view + windows.spec.horizon)
    standard -= windows.location[row, place][..., None]
    standard /= windows.spread[row, place][..., None]
    if windows.covariates is not None:
        beside = numbers_beside(windows, row, view)
        standard = np.concatenate([standard[..., :view], beside, standard[..., view:]], axis=-1)
    standard[found < 0] = 0
    return standard


def numbers_beside(windows: StoredWindows, row: np.ndarray, view: int) -> np.ndarray:
    """float32 [..., P]: the covariates of stored windows as the linear map of a view reads them; P = 0 without any."""
    if windows.covariates is None:
        return np.empty((*row.shape, 0), dtype=np.float32)
    stored, series = windows.covariates, windows.series[row]
    beside = np.empty((*row.shape, stored.layout.width), dtype=np.float32)
    scale = stored.unit[series] / windows.spread[row, windows.views.index(view)]
    stored.layout.numbers(stored.windows(series, windows.origin_row[row], (view,)), view, scale, beside)
    return beside


def num_values(neighbours: Answer, number: int) -> int:
    """Of a neighbour's window in a key space: its view and the horizon, and what stands beside them."""
    beside = neighbours.windows.covariates.layout.width if neighbours.windows.covariates is not None else 0
    return neighbours.spaces[number].view + beside + neighbours.windows.spec.horizon
