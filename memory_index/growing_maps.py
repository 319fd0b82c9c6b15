"""The linear maps of a version with covariates as of a time: fitted without what they are asked about.

A map has seen the windows that it was fitted on, and misses less of them than of others. So a version keeps three kinds
of them beside its map of the whole training part, and a time decides which one is asked (docs/method.md):

    in the training part    the map of the other blocks of time (`fit_covariates.py`)
    after it                the map as of the last beat before: of the training part, and of all that was known by then

Beats are weeks of a daily season (or whatever seven seasons are), and lie further apart as the history gets longer, so
that a version that has grown tenfold has some hundred. Maps of beats are made when they are needed, from the sums of
the training part and the stored windows; nothing of them is stored. What a map as of the origin of a stored window
missed of its future, its **residual**, is what the window says to a query.

D = view + P numbers, see `covariate_map.py`. Cost: 2 D^2 flops for each window known since, 2/3 D^3 for each beat.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from functools import cached_property

import numpy as np

from memory_index.covariate_map import CovariateLayout
from memory_index.fit_covariates import GROWS_FROM, Sums, numbers_blocks, solve
from memory_index.moved_futures import numbers_beside
from memory_index.products import project
from memory_index.threads import one_blas_thread
from memory_index.windows import StoredWindows

SEASONS_APART = 7  # between two beats
SHARE_APART = 200  # or so small a part of the steps before: 1 / SHARE_APART
CHUNK = 1024  # windows handled at once
TABLE_BYTES = 1 << 27  # of the residuals of one view that are kept


class GrowingMaps:
    """Maps and residuals of one version, in units of its transform. Safe to use from several threads.

    windows: with values inside the transform. arrays: of the version's encoder. fitted_at: from when on everything that
    a fitted part saw is known.
    """

    def __init__(self, windows: StoredWindows, arrays: Mapping[str, np.ndarray], fitted_at: np.datetime64) -> None:
        assert windows.covariates is not None, "a version without covariates has one map"
        self.windows, self.arrays, self.fitted_at = windows, arrays, fitted_at
        self._views = {view: _ViewMaps(self, view, windows.covariates.layout) for view in windows.views}

    def of_queries(self, view: int, origin: np.ndarray, z: np.ndarray) -> np.ndarray:
        """What the maps of a view make of queries: z [B, N, D] at origins [B] -> float64 [B, N, H], their own units."""
        number, result = self.number(origin), np.empty((*z.shape[:-1], self.windows.spec.horizon))
        for each in np.unique(number):
            chosen = number == each
            result[chosen] = project(z[chosen], self._views[view].map(int(each)))
        return result

    def residuals(self, view: int, rows: np.ndarray) -> np.ndarray:
        """float32 [..., H]: of stored windows, in their own spread; NaN where the future is missing. rows: int [...]"""
        return self._views[view].residuals(rows)

    def number(self, times: np.ndarray) -> np.ndarray:
        """int64 [...]: which map is asked at origins. times: datetime64[ns]."""
        starts, numbers = self.arrays["map-starts"].view("datetime64[ns]"), self.arrays["map-numbers"]
        inside = numbers[np.maximum(np.searchsorted(starts, times, side="right") - 1, 0)]
        after = self.num_folds + np.searchsorted(self.beats, times, side="right")
        return np.where(times < self.fitted_at, inside, after)

    @property
    def num_folds(self) -> int:
        """Maps of the training part without a block of it; the next number is the map of all of it, then come beats."""
        return len(self.arrays[f"folds-{self.windows.views[0]}"])

    @cached_property
    def beats(self) -> np.ndarray:
        """datetime64[ns] [M], ascending: when the maps go on, as far as windows are known."""
        windows, last = self.windows, self.windows.known_at.max()
        if last <= self.fitted_at:
            return np.empty(0, dtype="datetime64[ns]")
        before = len(windows.step.until(windows.times.min(), self.fitted_at))
        grid = windows.step.until(self.fitted_at, last)
        season = windows.step.season
        apart = SEASONS_APART * season if season is not None else windows.spec.horizon
        places, place = [], 0
        while (place := place + max(apart, (before + place) // SHARE_APART)) < len(grid):
            places.append(place)
        return grid[places]


class _ViewMaps:
    """Maps of one view by number, made one after the other; and the residuals that have been asked for."""

    def __init__(self, whole: GrowingMaps, view: int, layout: CovariateLayout) -> None:
        self.whole, self.view, self.lock = whole, view, threading.RLock()
        self.maps = [*whole.arrays[f"folds-{view}"], whole.arrays[f"ridge-{view}"]]
        self.block = numbers_blocks(layout, view)
        self.sums: Sums | None = None
        horizon = whole.windows.spec.horizon
        is_kept = 4 * len(whole.windows) * horizon <= TABLE_BYTES
        self.table = np.empty((len(whole.windows), horizon), dtype=np.float32) if is_kept else None
        self.there = np.zeros(len(whole.windows) if is_kept else 0, dtype=bool)

    def map(self, number: int) -> np.ndarray:
        """float32 [D, H]."""
        with self.lock:
            while len(self.maps) <= number:
                self._go_on()
            return self.maps[number]

    @one_blas_thread()
    def _go_on(self) -> None:
        """Make the map of the next beat."""
        arrays, whole, view = self.whole.arrays, self.whole, self.view
        if self.sums is None:
            gram, cross = (arrays[f"{name}-{view}"].astype(np.float64) for name in ("gram", "cross"))
            self.sums = Sums(gram=gram, cross=cross, square=0.0, num=int(arrays["num-windows"][0]))
        beat = len(self.maps) - whole.num_folds - 1
        edges = [whole.fitted_at if beat == 0 else whole.beats[beat - 1], whole.beats[beat]]
        first, end = np.searchsorted(self._known_at, edges, side="right")
        for _, x, future in normalised(whole.windows, self._rows[first:end], view):
            known = np.isfinite(future).all(axis=1)
            x, future = x[known], future[known]
            self.sums += Sums(gram=x.T @ x, cross=x.T @ future, square=0.0, num=len(x))
        self.maps.append(solve(self.sums, arrays["penalties"], self.block).astype(np.float32))

    @cached_property
    def _rows(self) -> np.ndarray:
        """int64: windows known since fitting, by when they were, as densely as the training part was looked at."""
        windows = self.whole.windows
        since = windows.known_at > self.whole.fitted_at
        number = (windows.origin_row - (windows.spec.lookback - 1)) // windows.spec.stride
        since &= number % self.whole.arrays["strides"][windows.series] == 0
        if windows.usable is not None:
            since &= windows.usable[:, windows.views.index(self.view)]
        rows = np.flatnonzero(since)
        return rows[np.lexsort((windows.series[rows], windows.known_at[rows]))]

    @cached_property
    def _known_at(self) -> np.ndarray:
        return self.whole.windows.known_at[self._rows]

    def residuals(self, rows: np.ndarray) -> np.ndarray:
        """See `GrowingMaps.residuals`."""
        if self.table is None:
            distinct, place = np.unique(rows, return_inverse=True)
            return self._made(distinct)[place.reshape(rows.shape)]
        with self.lock:
            missing = np.unique(rows[~self.there[rows]])
            if len(missing):
                self.table[missing] = self._made(missing)
                self.there[missing] = True
        return self.table[rows]

    def _made(self, rows: np.ndarray) -> np.ndarray:
        """float32 [n, H], whatever else is asked for."""
        windows, result = self.whole.windows, np.empty((len(rows), self.whole.windows.spec.horizon), dtype=np.float32)
        number = self.whole.number(windows.origin(rows))
        for each in np.unique(number):
            weight, chosen = self.map(int(each)), np.flatnonzero(number == each)
            first = 0
            for part, x, future in normalised(windows, rows[chosen], self.view):
                result[chosen[first : first + len(part)]] = future - project(x, weight)
                first += len(part)
        return result


def growing_maps(
    windows: StoredWindows, arrays: Mapping[str, np.ndarray], fitted_at: np.datetime64
) -> GrowingMaps | None:
    """Those of a version; None for one without covariates, or of a program that did not keep what they go on from."""
    if windows.covariates is None or GROWS_FROM not in arrays:
        return None
    return GrowingMaps(windows.inside, arrays, fitted_at)


def normalised(
    windows: StoredWindows, rows: np.ndarray, view: int
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """(rows [n], x [n, view + P], future [n, H]) in the windows' own location and spread under the view, with what
    stands beside them (`moved_futures.numbers_beside`).
    """
    number = windows.views.index(view)
    for start in range(0, len(rows), CHUNK):
        part = rows[start : start + CHUNK]
        whole = windows.filled_windows(part, view, windows.spec.horizon).astype(np.float64)
        whole = (whole - windows.location[part, number][:, None]) / windows.spread[part, number][:, None]
        yield part, np.concatenate([whole[:, :view], numbers_beside(windows, part, view)], axis=1), whole[:, view:]
