"""How far today's windows are from those that a version's encoder was fitted on, and whether to build it again.

Keys of stored windows never change, nor do the scale and the linear maps behind them. What is appended may have another
level and another spread, and may go on otherwise after the same shape. The last is what counts: the maps move the
futures of neighbours, and decide what is near. So maps are fitted, in memory only, on what the encoder was fitted on,
and on all windows that are known before today's begin, every n-th window of both, and compared on today's. A new build,
which would take over such maps, is worth it where they are better by 2% or more, and by more than the standard error
over four blocks of time.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from memory_index.growing_maps import normalised
from memory_index.local import LocalMemory
from memory_index.windows import StoredWindows

TODAY = 2  # the later half of what is known since fitting
FITTED_ON, COMPARED = 8192, 2048  # windows that are looked at, at most
BLOCKS = 4
LEAST_GAIN = 0.02
LEAST_WINDOWS = 64  # today's windows with fewer say nothing


@dataclass(frozen=True, kw_only=True, slots=True)
class MapDrift:
    """The linear map of a view. trained, today: mean squared errors of the stored map on training windows and on
    today's, in training deviations. gain: how much smaller today's is for a map fitted on all that was known before
    than for one that was fitted on the training windows, as a share. worth: a new build.
    """

    view: int
    trained: float
    today: float
    gain: float
    worth: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Drift:
    """num_since: windows known since fitting. begins: datetime64[ns], first origin of today's, the later half of them.
    level: how far the mean of a window of today lies from the training mean, in training deviations, the median.
    spread: the median of today's, relative to that of the training windows.
    """

    num_since: int
    begins: np.datetime64
    level: float
    spread: float
    maps: tuple[MapDrift, ...]

    @property
    def worth(self) -> bool:
        """Whether to build again: half of the views or more would gain."""
        return 2 * sum(each.worth for each in self.maps) >= len(self.maps)


def drift(memory: LocalMemory) -> Drift | None:
    """Compare; None where too few windows have been appended. A few seconds at most, whatever the size."""
    windows, scale = memory.windows.inside, memory.scale
    known_at, fitted_at = windows.known_at, memory.manifest.fitted_known_at
    since = np.flatnonzero(known_at > fitted_at)
    today = since[len(since) // TODAY :]
    if len(today) < LEAST_WINDOWS:
        return None
    begins = windows.origin(today).min()
    trained, before = np.flatnonzero(known_at <= fitted_at), np.flatnonzero(known_at <= begins)
    compared, then, every = _even(today, COMPARED), _even(trained, COMPARED), -(-len(before) // FITTED_ON)
    unit = scale.std[windows.series]
    level = np.abs(windows.location[compared, -1] - scale.mean[windows.series[compared]]) / unit[compared]
    spreads = (np.median(windows.spread[rows, -1] / unit[rows]) for rows in (compared, then))
    maps = tuple(
        _of_view(memory, view, compared, then, (trained[::every], before[::every]), unit) for view in windows.views
    )
    return Drift(
        num_since=len(since),
        begins=np.datetime64(begins, "ns"),
        level=float(np.median(level)),
        spread=float(next(spreads) / next(spreads)),
        maps=maps,
    )


def _of_view(
    memory: LocalMemory,
    view: int,
    compared: np.ndarray,
    then: np.ndarray,
    fitted_on: tuple[np.ndarray, np.ndarray],
    unit: np.ndarray,
) -> MapDrift:
    """fitted_on: windows of the training part, and of all before today."""
    windows, stored = memory.windows.inside, memory.encoder.linear_map(view).astype(np.float64)
    old, new = (
        _errors(windows, compared, view, _fitted(windows, rows, view, memory.encoder.config.ridge), unit)
        for rows in fitted_on
    )
    pairs = zip(*(np.array_split(each, BLOCKS) for each in (new, old)), strict=True)
    error = float(np.std([1 - after.mean() / before.mean() for after, before in pairs], ddof=1) / np.sqrt(BLOCKS))
    gain = float(1 - new.mean() / old.mean())
    return MapDrift(
        view=view,
        trained=float(_errors(windows, then, view, stored, unit).mean()),
        today=float(_errors(windows, compared, view, stored, unit).mean()),
        gain=gain,
        worth=gain >= max(LEAST_GAIN, error),
    )


def _fitted(windows: StoredWindows, rows: np.ndarray, view: int, ridge: float) -> np.ndarray:
    """float64 [view + P, H]: see `fit_encoder`."""
    width = view + (0 if windows.covariates is None else windows.covariates.layout.width)
    gram, cross = np.zeros((width, width)), np.zeros((width, windows.spec.horizon))
    for _, z, future in normalised(windows, rows, view):
        gram += z.T @ z
        cross += z.T @ np.nan_to_num(future)
    return np.linalg.solve(gram / len(rows) + ridge * np.eye(width), cross / len(rows))


def _errors(windows: StoredWindows, rows: np.ndarray, view: int, weight: np.ndarray, unit: np.ndarray) -> np.ndarray:
    """float64 [n]: of each window, in training deviations; missing steps do not count."""
    errors = []
    for part, z, future in normalised(windows, rows, view):
        missed = (future - z @ weight) * (windows.spread[part, windows.views.index(view)] / unit[part])[:, None]
        known = ~np.isnan(missed)
        errors.append(np.square(np.where(known, missed, 0)).sum(axis=1) / np.maximum(known.sum(axis=1), 1))
    return np.concatenate(errors)


def _even(rows: np.ndarray, at_most: int) -> np.ndarray:
    return rows[np.unique(np.linspace(0, len(rows) - 1, min(len(rows), at_most)).round().astype(np.int64))]
