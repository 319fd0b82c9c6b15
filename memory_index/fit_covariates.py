"""Fitting what a version makes of covariates: training units, one map with a penalty for each column, weights.

All in closed form, from sums over windows of the training part. With D = view + P numbers of a window and n windows,
at most `MAX_WINDOWS`: the sums cost 2 n D^2 flops for each view; each try of a penalty 2/3 D^3. Keys do not read the P
numbers but the r that the map's forecast is made of, so encoding a window costs as much as one of view + r steps.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from memory_index.covariate_map import MAX_CLASSES, CovariateColumn, CovariateLayout
from memory_index.covariate_ridge import NUM_FOLDS, Sums, choose, of_folds, recent, solve
from memory_index.covariate_tables import aligned_values, stored_in
from memory_index.covariates import Covariate
from memory_index.encoder import DualKeyEncoder
from memory_index.errors import DataError
from memory_index.key_covariates import KeyNumbers
from memory_index.missing import filled
from memory_index.step_vintages import StepVintages
from memory_index.tables.series import SeriesTable
from memory_index.threads import one_blas_thread
from memory_index.windows import cut

MAX_WINDOWS = 8192  # that is fitted on, spread evenly: windows overlap, so that more change little
LEAST_WINDOWS = 512  # of a series, if it has so many
CHUNK = 1024  # windows handled at once
GROWS_FROM = "penalties"  # the array without which a version's maps stand still (`growing_maps.py`)
MAX_FORECAST_PARTS = 32  # principal parts of the map's forecast that keys are made of


def fit_units(table: SeriesTable, origins: list[np.ndarray], horizon: int) -> tuple[CovariateColumn, ...]:
    """Columns with their training units; table: the training part, whose rows alone are looked at.

    origins: origin rows of its windows, per series. Of a column with vintages those values count which some of them
    (`spread_out`) see in their horizon, each once. Raises `DataError` for a column without any value there.
    """
    if table.covariates is None:
        return ()
    named = table.covariates.columns
    plain = tuple(
        CovariateColumn(
            name=c.name,
            role=c.role,
            kind=c.kind,
            categories=c.categories,
            center=(0.0,),
            unit=1.0,
            low=0.0,
            high=0.0,
            vintages=c.vintages,
        )
        for c in named
    )
    found = aligned_values(table, plain)
    sampled = spread_out(origins, table.step.season) if any(found.vintages) else []
    return tuple(
        _units(column, found.values[number] if issued is None else _seen(issued, found.first, sampled, horizon), table)
        for number, (column, issued) in enumerate(zip(named, found.vintages, strict=True))
    )


def _seen(vintages: StepVintages, first: np.ndarray, origins: list[np.ndarray], horizon: int) -> np.ndarray:
    """float32: the values that windows see in their horizon, each once."""
    seen = np.zeros(len(vintages.value) + 1, dtype=bool)  # the last one is of steps of which nothing was issued
    for start, rows in zip(first, origins, strict=True):
        for part in range(0, len(rows), CHUNK):
            origin = start + rows[part : part + CHUNK, None]
            seen[vintages.rows(origin + np.arange(1, horizon + 1), origin)] = True
    return vintages.value[seen[:-1]]


def _units(column: Covariate, values: np.ndarray, table: SeriesTable) -> CovariateColumn:
    values = values[np.isfinite(values)].astype(np.float64)
    if not len(values) and column.vintages:
        raise DataError(
            f"{table.source}: no value of '{column.name}' was issued by the origin of any training window that it is "
            "in the horizon of",
            hint="give vintages that were issued before the times that they are of, or leave out --vintages",
        )
    if not len(values):
        raise DataError(
            f"{table.source}: covariate '{column.name}' has no value in the training part",
            hint=f"leave out --{column.role} {column.name}, or choose a later end of the training part",
        )
    categories: tuple[str, ...] = ()
    center: tuple[float, ...] = (float(values.mean()),)
    unit = 1.0
    if column.kind == "number":
        deviation = float(values.std())
        unit = deviation if deviation > 1e-9 * max(abs(center[0]), 1e-300) else 1.0
    elif column.kind == "category":
        count = np.bincount(values[values >= 0].astype(np.int64), minlength=len(column.categories))
        kept = np.sort(np.argsort(-count, kind="stable")[:MAX_CLASSES])
        kept = kept[count[kept] > 0]
        categories = tuple(column.categories[code] for code in kept)
        share = count[kept] / len(values)
        center, unit = (*map(float, share), float(1 - share.sum())), math.sqrt(2)
    return CovariateColumn(
        name=column.name,
        role=column.role,
        kind=column.kind,
        categories=categories,
        center=center,
        unit=unit,
        low=float(values.min()),
        high=float(values.max()),
        source=column.source,
        vintages=column.vintages,
    )


@dataclass(frozen=True, kw_only=True)
class FittedView:
    """ridge: [D, H]. folds: [F, D, H], of each block of time the map of the others; none where the table is too short.
    total: what ridge was solved from. recent: the same with the weight of a window halved for each block of time that
    it lies back. weights: float64 [C], of each column in the condition part. beside: [P, R], from the numbers beside a
    window to those r that the map's forecast is made of, and the condition part of its key. root: [view + r, view + r],
    whose product with a difference of two windows and these r has the length of the forecast-aware distance.
    """

    ridge: np.ndarray
    folds: np.ndarray
    total: Sums
    recent: Sums
    weights: np.ndarray
    beside: np.ndarray
    root: np.ndarray


class CovariateFit:
    """The fit of one version: penalties chosen once, under the widest view, and a map for every view.

    table: the training part in units of the transform. origins: origin rows per series of windows whose futures may be
    looked at.
    """

    def __init__(
        self, table: SeriesTable, origins: list[np.ndarray], encoder: DualKeyEncoder, *, lookback: int
    ) -> None:
        assert encoder.covariates is not None, "it has a layout"
        self.table, self.encoder, self.lookback = table, encoder, lookback
        self.layout: CovariateLayout = encoder.covariates
        found = aligned_values(table, self.layout.columns)
        self.strides = strides(origins, table.step.season)
        self.origins = spread_out(origins, table.step.season)
        self.stored = stored_in(found, self.layout, encoder.scale.std, self.origins)
        self.edges = _edges([series.times[rows] for series, rows in zip(table.series, self.origins, strict=True)])
        self.penalties: np.ndarray | None = None  # of the window, then of each column

    @one_blas_thread()
    def view(self, view: int) -> FittedView:
        """The map of one view; the widest must be the first."""
        by_fold, horizon = self._sums(view)
        total = by_fold[0]
        for each in by_fold[1:]:
            total = total + each
        block = numbers_blocks(self.layout, view)
        if self.penalties is None:
            self.penalties = choose(by_fold, total, block, 1 + len(self.layout.columns))
        ridge, folds = solve(total, self.penalties, block), of_folds(by_fold, self.penalties, block)
        forecast_weight, config = self.encoder.config.forecast_weight, self.encoder.config
        _, vectors = np.linalg.eigh(ridge.T @ (total.gram / max(total.num, 1)) @ ridge)
        parts = ridge @ vectors[:, ::-1][:, :MAX_FORECAST_PARTS]
        parts *= forecast_weight / math.sqrt(self.encoder.horizon)
        root = np.eye(view + parts.shape[1])
        root[:view, :view] /= math.sqrt(view)
        root[:view, view:] = parts[:view]
        worth = self._worth(ridge, total)
        weights = config.condition_weight**2 * worth
        return FittedView(
            ridge=ridge,
            folds=folds,
            total=total,
            recent=recent(by_fold),
            weights=weights,
            beside=np.concatenate([parts[view:], self._condition(horizon, weights)], axis=1),
            root=root,
        )

    def grows_from(self, fitted: Mapping[int, FittedView]) -> dict[str, np.ndarray]:
        """What the maps of the views go on from, by name (`growing_maps.py`): of each view the maps of blocks of time
        and the sums, and which map is asked at what time of the training part.
        """
        assert self.penalties is not None, "the views have been fitted"
        arrays = {GROWS_FROM: self.penalties, "strides": np.array(self.strides, dtype=np.int64)}
        for view, each in fitted.items():
            arrays |= {f"folds-{view}": each.folds, f"gram-{view}": each.total.gram, f"cross-{view}": each.total.cross}
            arrays |= {f"recent-gram-{view}": each.recent.gram, f"recent-cross-{view}": each.recent.cross}
        arrays = {name: a.astype(np.float32) if a.ndim > 1 else a for name, a in arrays.items()}
        num_folds = len(arrays[f"folds-{min(fitted)}"])
        every = np.unique(np.concatenate([s.times[r] for s, r in zip(self.table.series, self.origins, strict=True)]))
        starts, numbers = [every[0], *self.edges], [*range(NUM_FOLDS)]
        if not num_folds:
            starts, numbers = starts[:1], [0]
        # A stretch that was left out, windows on both sides of it aside: it is new to the map of all others.
        after = self.table.step.add(every[:-1], self.lookback + self.encoder.horizon)
        apart = np.diff(every)
        for gap in np.flatnonzero((every[1:] > after) & (apart > 3 * np.median(apart) if len(apart) else False)):
            fold = int(np.searchsorted(self.edges, every[gap + 1], side="right")) if num_folds else 0
            starts += [every[gap] + 1, every[gap + 1]]
            numbers += [num_folds, fold]
        order = np.argsort(np.array(starts), kind="stable")
        arrays["half-life"] = np.array([max(1, int((every[-1] - every[0]) // np.timedelta64(NUM_FOLDS, "ns")))])
        arrays["map-starts"] = np.array(starts)[order].astype("datetime64[ns]").view(np.int64)
        arrays["map-numbers"] = np.array(numbers, dtype=np.int64)[order]
        return arrays

    def windows(self, number: int, rows: np.ndarray, view: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """x [n, D], futures [n, H] in the windows' own units, and the numbers of the horizon, in training units."""
        values, horizon = self.table.series[number].values, self.encoder.horizon
        context = filled(cut(values, rows - self.lookback + 1, self.lookback), self.table.step.season)[:, None]
        series = np.array([number])
        beside = self.stored.windows(series, rows[:, None], (view,))
        x, _, statistics = self.encoder.explanatory(view, context, series, beside)
        future = (cut(values, rows + 1, horizon) - statistics.location) / statistics.spread
        return x[:, 0], future, self.layout.horizon_numbers(beside)[:, 0]

    def compared(self, number: int, rows: np.ndarray, view: int, beside: KeyNumbers) -> Iterator[np.ndarray]:
        """What keys compare of the windows of a series, [n, view + r] each; see `DualKeyEncoder.compared`."""
        values, series = self.table.series[number].values, np.array([number])
        for start in range(0, len(rows), CHUNK):
            chunk = rows[start : start + CHUNK]
            context = filled(cut(values, chunk - self.lookback + 1, self.lookback), self.table.step.season)[:, None]
            yield self.encoder.compared(view, context, series, beside.of(series, chunk[:, None]))[0][:, 0]

    def _sums(self, view: int) -> tuple[list[Sums], np.ndarray]:
        """Of each block of time, and of the windows that reach over an edge of them, which come last; and the second
        moments of the numbers of the horizon.
        """
        width, horizon = view + self.layout.width, self.encoder.horizon
        by_fold = [Sums.zero(width, horizon) for _ in range(NUM_FOLDS + 1)]
        moments, num = np.zeros((self.layout.num_horizon, self.layout.num_horizon)), 0
        for number, rows in enumerate(self.origins):
            fold = _folds(self.table.series[number].times, rows, self.edges, self.lookback, horizon)
            for start in range(0, len(rows), CHUNK):
                x, future, beside = self.windows(number, rows[start : start + CHUNK], view)
                moments += beside.T.astype(np.float64) @ beside
                num += len(beside)
                whole = np.isfinite(future).all(axis=1)
                for each in np.unique(fold[start : start + CHUNK]):
                    chosen = whole & (fold[start : start + CHUNK] == each)
                    a, b = x[chosen], future[chosen]
                    by_fold[each] += Sums(gram=a.T @ a, cross=a.T @ b, square=float(np.square(b).sum()), num=len(a))
        return by_fold, moments / max(num, 1)

    def _worth(self, ridge: np.ndarray, total: Sums) -> np.ndarray:
        """float64 [C]: the mean square of what each column's values over the horizon move a forecast by, per step."""
        first = len(ridge) - self.layout.num_horizon
        column, worth = self.layout.column_of_number[-self.layout.num_horizon :], []
        for number in range(len(self.layout.columns)):
            rows = first + np.flatnonzero(column == number) if self.layout.num_horizon else np.empty(0, dtype=np.int64)
            part = ridge[rows]
            worth.append(np.sum(part * (total.gram[np.ix_(rows, rows)] @ part)) / max(total.num, 1) / part.shape[1])
        return np.array(worth)

    def _condition(self, moments: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """[P, condition_width]: the leading principal parts of the weighted numbers of the horizon."""
        column = self.layout.column_of_number[len(self.layout.column_of_number) - self.layout.num_horizon :]
        scale = np.sqrt(weights[column] / self.layout.num_bins)
        _, vectors = np.linalg.eigh(scale[:, None] * moments * scale)
        result = np.zeros((self.layout.width, self.layout.condition_width))
        result[self.layout.width - self.layout.num_horizon :] = (
            scale[:, None] * vectors[:, ::-1][:, : self.layout.condition_width]
        )
        return result


def numbers_blocks(layout: CovariateLayout, view: int) -> np.ndarray:
    """int64 [D]: the block that each number a map reads is of: 0 is the window, then the columns."""
    return np.concatenate([np.zeros(view, dtype=np.int64), 1 + layout.column_of_number])


def spread_out(origins: list[np.ndarray], season: int | None) -> list[np.ndarray]:
    """Some `MAX_WINDOWS` of the windows, at every phase of the season; of each series as many as suffice for a PCA."""
    return [rows[::stride] for rows, stride in zip(origins, strides(origins, season), strict=True)]


def strides(origins: list[np.ndarray], season: int | None) -> list[int]:
    """Of each series, every how many windows are looked at."""
    stride = -(-sum(len(rows) for rows in origins) // MAX_WINDOWS)
    while stride > 1 and math.gcd(stride, season or 1) > 1:
        stride += 1
    return [max(1, min(stride, len(rows) // LEAST_WINDOWS)) for rows in origins]


def _edges(times: list[np.ndarray]) -> np.ndarray:
    """datetime64[ns] [NUM_FOLDS - 1]: where blocks of time with about as many windows begin."""
    every = np.sort(np.concatenate(times))
    return every[np.arange(1, NUM_FOLDS) * len(every) // NUM_FOLDS]


def _folds(times: np.ndarray, rows: np.ndarray, edges: np.ndarray, lookback: int, horizon: int) -> np.ndarray:
    """The block that each window lies in whole; `NUM_FOLDS` for one that reaches over an edge."""
    first = np.searchsorted(edges, times[rows - lookback + 1], side="right")
    last = np.searchsorted(edges, times[rows + horizon], side="right")
    return np.where(first == last, first, NUM_FOLDS)
