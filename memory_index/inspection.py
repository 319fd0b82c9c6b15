"""The retrieved neighbours of one query window, as records for people: what `cli index neighbours` shows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from memory_index.bounds import BoundsOf
from memory_index.closeness import UsualDistances, closeness, nearest_distances
from memory_index.conditions import condition_parts, known_values
from memory_index.errors import NotFoundError
from memory_index.leakage import Policy
from memory_index.memory import Memory, too_much_missing
from memory_index.memory_only import MEMORY_K
from memory_index.neighbours import Neighbours
from memory_index.queries import origin_at, query_blocks
from memory_index.query_covariates import require_known_ahead
from memory_index.tables.series import Series, SeriesTable
from memory_index.types import Filter, KeySpace, Scope
from memory_index.windows import WindowSpec

OF_CONDITIONS = ("condition_distance", "condition_parts", "covariates")  # fields of a version with covariates
FAN = (0.1, 0.25, 0.75, 0.9)  # quantiles of what followed the neighbours


@dataclass(frozen=True, kw_only=True, slots=True)
class NeighbourRecord:
    """One neighbour. Times: ISO 8601. context [L] and future [H]: its own raw units; aligned: in the query's (float32),
    the future as it would follow the query (`Neighbours.aligned_futures`).

    weight sums to 1 within a (scope, view). match: correlation of its future with what really followed the query,
    None while that is not known or where either is constant. age_days: from its origin to the query's.

    Of a version with covariates: condition_distance, the condition part of the distance; condition_parts, what each
    known column adds to its square; covariates, the known columns by name, float32 [L + H] (`conditions.py`).
    """

    scope: str
    view: int
    rank: int
    row_id: int
    series_id: str
    start: str
    origin: str
    known_at: str
    distance: float
    shape_distance: float
    value_distance: float
    weight: float
    match: float | None
    age_days: float
    context: np.ndarray
    future: np.ndarray
    aligned_context: np.ndarray
    aligned_future: np.ndarray
    condition_distance: float | None = None
    condition_parts: dict[str, float] = field(default_factory=dict)
    covariates: dict[str, np.ndarray] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The fields by name, but for the aligned context, which has the same shape as the context. Covariates are
        those of the horizon; without any, none of the fields that tell of them is there.
        """
        document = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "aligned_context"}
        if self.condition_distance is None:
            return {name: value for name, value in document.items() if name not in OF_CONDITIONS}
        ahead = {name: values[-len(self.future) :] for name, values in self.covariates.items()}
        return document | {"covariates": ahead}


@dataclass(frozen=True, kw_only=True, slots=True)
class Inspection:
    """One query window, its neighbours, and the memory's forecast, in the query's own units.

    The forecast and its fan are made of as many neighbours as every forecast of the memory, not of the few shown.

    context: float32 [L]; times: datetime64[ns] [L + H], of the context and of the future; actual: float32 [H], NaN
    where the table does not know it; forecast [H]; quantiles [H, 4] at `FAN`. in_sample: whether a fitted
    part of the version has seen steps later than the origin. share_closer: for each key space, how many of the memory's
    own windows had a nearer nearest neighbour, as a share; None where too few tell. no_close_analogue: whether most key
    spaces say that this window is unusual for this memory (closeness.py); False if that was not asked. covariates: the
    known ones by name, float32 [L + H]; categories: the words of those that have any.
    """

    series_id: str
    origin: np.datetime64
    origin_text: str  # ISO 8601
    in_sample: bool
    context: np.ndarray
    times: np.ndarray
    actual: np.ndarray
    forecast: np.ndarray
    quantiles: np.ndarray
    neighbours: tuple[NeighbourRecord, ...]
    share_closer: dict[KeySpace, float | None]
    no_close_analogue: bool
    covariates: dict[str, np.ndarray] = field(default_factory=dict)
    categories: dict[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def actual_known(self) -> bool:
        """Whether the table knows what followed, to its last step; steps before may be missing."""
        return bool(np.isfinite(self.actual[-1:]).all())


def inspect_window(
    memory: Memory,
    table: SeriesTable,
    series_id: str,
    at: np.datetime64,
    *,
    k: int = 5,
    scopes: tuple[Scope, ...] | None = None,
    views: tuple[int, ...] | None = None,
    where: Filter | None = None,
    min_gap: int = 0,
    usual: UsualDistances | None = None,
) -> Inspection:
    """The k neighbours per key space of the window of a series that ends at a time, asked under `causal`.

    at: datetime64[ns], UTC or naive as the table. The other series of the table are read for the joint scope, where
    they have a whole context at that time. Filters and choices of key spaces hold for the neighbours that make the
    forecast too (`MEMORY_K` per key space), min_gap does not. usual: of this memory, to say whether the window has a
    close analogue; without it, or with a filter, nothing is said.

    Raises `NotFoundError` (series, time, or no neighbour at all) and what `Memory.search` raises.
    """
    spec = memory.windows.spec
    row, origins = one_origin(table, series_id, at, spec)
    number = table.series_ids.index(series_id)
    known, views_stored = memory.windows.series_ids, memory.windows.views
    layout = memory.manifest.covariate_layout
    [block] = query_blocks(table, origins, spec, Policy.CAUSAL, known=known, views=views_stored, layout=layout)
    require_known_ahead(block.queries, block.wanted, memory.manifest.covariates, table.step, table.source)
    place, beside = int(np.flatnonzero(block.series == number)[0]), block.queries.covariates
    neighbours = memory.search(block.queries, k, scopes=scopes, views=views, where=where, min_gap=min_gap)
    filtered = where not in (None, Filter())
    require_neighbours(neighbours, place, filtered=filtered)
    behind = of_series(memory.search(block.queries, MEMORY_K, scopes=scopes, views=views, where=where), place)
    actual = actual_after(table.series[number], row, spec.horizon)
    shares: dict[KeySpace, float | None] = {}
    within = BoundsOf(memory)
    no_close_analogue = False
    if usual is not None and not filtered:
        shares, no_close_analogue = closeness(usual, nearest_distances(neighbours, place), at)
    every = [tuple(int(i) for i in slot) for slot in np.argwhere(neighbours.valid[0, place])]
    return Inspection(
        series_id=series_id,
        origin=at,
        origin_text=table.step.isoformat(at),
        in_sample=bool(at < memory.manifest.fitted_known_at),
        context=block.queries.context[0, place],
        times=table.step.range(table.series[number].times[row - spec.lookback + 1], spec.length),
        actual=actual,
        covariates=known_values(layout, None if beside is None else beside[0, place]),
        categories={} if layout is None else {column.name: column.words for column in layout.columns},
        forecast=within.kept(behind.queries, behind.forecast(on_empty="last-value"))[0, 0],
        quantiles=within.kept(behind.queries, behind.quantiles(FAN, on_empty="last-value"))[0, 0],
        neighbours=tuple(neighbour_records(neighbours, place, every, actual)),
        share_closer=shares,
        no_close_analogue=no_close_analogue,
    )


def one_origin(table: SeriesTable, series_id: str, at: np.datetime64, spec: WindowSpec) -> tuple[int, list[np.ndarray]]:
    """The row of a series at a time, and the same as origins per series of the table, as `query_blocks` takes them.

    Raises `NotFoundError` (series, time).
    """
    row, number = origin_at(table, series_id, at, spec), table.series_ids.index(series_id)
    return row, [np.array([row] if n == number else [], dtype=np.int64) for n in range(len(table.series))]


def actual_after(series: Series, row: int, horizon: int) -> np.ndarray:
    """What followed an origin row, float32 [H]; NaN where the series does not know it."""
    actual = np.full(horizon, np.nan, dtype=np.float32)
    known = series.values[row + 1 : row + 1 + horizon]
    actual[: len(known)] = known
    return actual


def of_series(neighbours: Neighbours, place: int) -> Neighbours:
    """The answer for series number `place` alone: whatever is made of it is not made for all the others too."""
    return neighbours.of_series(slice(place, place + 1))


def require_neighbours(neighbours: Neighbours, place: int, *, filtered: bool = False) -> None:
    """Raise `NotFoundError` unless series number `place` of the one moment that was asked has a neighbour."""
    if not neighbours.valid[0, place].any():
        windows, step, queries = neighbours.windows, neighbours.windows.step, neighbours.queries
        first, at = windows.known_at.min(), queries.origin[0]
        context = queries.context[0, place]
        if all(too_much_missing(context[None, None], space, windows.spec).all() for space in neighbours.spaces):
            raise NotFoundError(
                f"series '{queries.series_id[place]}' misses {int(np.isnan(context).sum())} of {len(context)} steps up "
                f"to {step.isoformat(at)}, too many to compare that window with others",
                hint="choose another time, or build with a larger --max-missing",
            )
        reason = f"the memory's first window is known at {step.isoformat(first)}"
        if first <= at and filtered:
            reason = f"the filters leave none of {len(windows):,} windows that this query may see"
        elif first <= at:
            reason = "a series that stands still is only compared with windows that do, and none is known by then"
        raise NotFoundError(
            f"no admissible neighbour for series '{queries.series_id[place]}' at {step.isoformat(at)}: {reason}",
            hint="choose fewer filters" if filtered and first <= at else "choose a later time",
        )


def neighbour_records(
    neighbours: Neighbours, place: int, slots: Iterable[tuple[int, ...]], actual: np.ndarray
) -> Iterator[NeighbourRecord]:
    """The neighbours in some slots, (key space number, rank from 0), of series number `place` of the one moment.

    actual: what followed the query, as many steps as are of interest.
    """
    neighbours, place = of_series(neighbours, place), 0
    windows, step = neighbours.windows, neighbours.windows.step
    weight, futures, aligned = (
        neighbours.weights[0, place],
        neighbours.futures()[0, place],
        neighbours.aligned_futures()[0, place],
    )
    curve = windows.curve(neighbours.queries).take((0, place))
    for v, rank in slots:
        space, view, row = neighbours.spaces[v], neighbours.view_number[v], neighbours.row[0, place, v, rank]
        location, spread = neighbours.query_location[0, place, v], neighbours.query_spread[0, place, v]
        spans, context = windows.spans(row), windows.contexts(row)
        standard = (windows.inside.contexts(row) - windows.location[row, view]) / windows.spread[row, view]
        yield NeighbourRecord(
            scope=space.scope,
            view=space.view,
            rank=rank + 1,
            row_id=int(row),
            series_id=windows.series_ids[windows.series[row]],
            start=step.isoformat(spans.start_at),
            origin=step.isoformat(windows.origin(row)),
            known_at=step.isoformat(spans.known_at),
            distance=float(neighbours.distance[0, place, v, rank]),
            shape_distance=float(neighbours.shape_distance[0, place, v, rank]),
            value_distance=float(neighbours.value_distance[0, place, v, rank]),
            weight=float(weight[v, rank]),
            match=_correlation(futures[v, rank, : len(actual)], actual),
            age_days=round(float((neighbours.queries.origin[0] - windows.origin(row)) / np.timedelta64(1, "D")), 2),
            context=context,
            future=futures[v, rank],
            aligned_context=curve.inverse((location + spread * standard).astype(np.float32)),
            aligned_future=aligned[v, rank],
            **_conditions(neighbours, v, rank),
        )


def _conditions(neighbours: Neighbours, v: int, rank: int) -> dict[str, Any]:
    """The fields of a record that tell of covariates, for the one query of `neighbours`."""
    stored, asked, windows = neighbours.windows.covariates, neighbours.queries.covariates, neighbours.windows
    if stored is None or asked is None or neighbours.condition_distance is None:
        return {}
    row = neighbours.row[0, 0, v, rank]
    values = stored.raw(windows.series[row], windows.origin_row[row])
    return {
        "condition_distance": float(neighbours.condition_distance[0, 0, v, rank]),
        "condition_parts": condition_parts(stored.layout, asked[0, 0], values, neighbours.view_number[v]),
        "covariates": known_values(stored.layout, values),
    }


def _correlation(future: np.ndarray, actual: np.ndarray) -> float | None:
    """Pearson correlation of two futures [H]; None where the actual one is not known or either is constant."""
    known = np.isfinite(actual) & np.isfinite(future)
    if not known.any() or not np.isfinite(actual[-1:]).all():
        return None
    actual, future = actual[known], future[known]
    if future.std() == 0 or actual.std() == 0:
        return None
    return float(np.corrcoef(future.astype(np.float64), actual.astype(np.float64))[0, 1])
