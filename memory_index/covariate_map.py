"""What a version makes of covariates: channels in training units, and the numbers beside a window that its map reads.

A **channel** is a column as numbers: a number less its training mean in training deviations, a boolean as 0 or 1, each
word of a category by itself. L lookback, H horizon, C columns, J channels, P numbers beside a window. How a map and its
weights are fitted is `fit_covariates.py`; how tables have the values `covariate_tables.py`, how versions do
`versions/covariate_files.py`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from memory_index.covariates import Covariate, Kind, Role
from memory_index.step_vintages import StepVintages

MAX_NUMBERS = 512  # beside a window, at most: the cost of a fit grows with the square, of a key in proportion
CONDITION_WIDTH = 24  # numbers of the condition part of a key, at most
HELD_BYTES = 256 << 20  # of vintages near the origins of windows, at most
LOOKED_UP = 1 << 19  # steps of vintages at once
MAX_CLASSES = 31  # words of a category by themselves, the most frequent ones; all others are one more, "other"


@dataclass(frozen=True, kw_only=True, slots=True)
class CovariateColumn:
    """A column as a version stores it, with its training units.

    categories: its words, of which a code is the place; -1 is any other word. center: mean of each channel over the
    training part. unit: of a number its training standard deviation, 1 for a constant one; of a boolean 1; of a
    category the square root of 2, so that two different words lie 1 apart. low, high: training range of a number.
    weight: its weight in the condition part of a distance, by view (docs/method.md). source, vintages: see `Covariate`.
    """

    name: str
    role: Role
    kind: Kind
    categories: tuple[str, ...]
    center: tuple[float, ...]
    unit: float
    low: float
    high: float
    weight: tuple[float, ...] = ()
    source: str = ""
    vintages: bool = False

    @property
    def words(self) -> tuple[str, ...]:
        """What its codes are called: those of a category, and of a boolean; none for a number."""
        return ("false", "true") if self.kind == "boolean" else self.categories

    def as_covariate(self) -> Covariate:
        """The column as tables have it."""
        return Covariate(
            name=self.name,
            role=self.role,
            kind=self.kind,
            categories=self.categories,
            source=self.source,
            vintages=self.vintages,
        )

    def to_document(self) -> dict[str, Any]:
        """As it is stored and hashed: `vintages` only where there are any, so that older versions keep their hashes."""
        document = asdict(self)
        if not self.vintages:
            del document["vintages"]
        return document

    def channels(self, values: np.ndarray) -> np.ndarray:
        """values: [..., S], raw, NaN where missing -> float32 [..., S, channels], 0 (the training mean) where missing.

        Codes of a category count as its words.
        """
        values = np.asarray(values, dtype=np.float64)
        known = np.isfinite(values)[..., None]
        each = values[..., None]
        if self.kind == "category":
            code = np.where(known[..., 0] & (values >= 0), values, len(self.categories)).astype(np.int64)
            each = (code[..., None] == np.arange(len(self.center))).astype(np.float64)
        return np.where(known, (each - np.array(self.center)) / self.unit, 0.0).astype(np.float32)


class CovariateWindows(NamedTuple):
    """The covariates of windows [...]: what their map reads, before it is scaled.

    near: float32 [..., S, J], the last `context_steps` of the context and the horizon. means: float32 [..., J] by view,
    over its steps.
    """

    near: np.ndarray
    means: dict[int, np.ndarray]

    def take(self, chosen: slice | np.ndarray) -> CovariateWindows:
        """Some of the windows, along the first axis."""
        return CovariateWindows(self.near[chosen], {view: mean[chosen] for view, mean in self.means.items()})


@dataclass(frozen=True, kw_only=True)
class CovariateLayout:
    """Which numbers of covariates stand beside a window, in this order:

    known and observed channels over the last `context_steps` steps of the context; every channel's mean over the view
    (of a static column its value); known channels over the horizon, in `num_bins` means of consecutive steps where the
    horizon is too long for each to count by itself.
    """

    columns: tuple[CovariateColumn, ...]
    lookback: int
    horizon: int

    @cached_property
    def column_of_channel(self) -> np.ndarray:
        """int64 [J]: the column that each channel is of."""
        return np.repeat(np.arange(len(self.columns)), [len(column.center) for column in self.columns])

    @cached_property
    def ahead(self) -> np.ndarray:
        """bool [J]: channels of known columns."""
        return np.array([self.columns[c].role == "known" for c in self.column_of_channel], dtype=bool)

    @cached_property
    def behind(self) -> np.ndarray:
        """bool [J]: channels whose single steps of the context are read."""
        return np.array([self.columns[c].role != "static" for c in self.column_of_channel], dtype=bool)

    @property
    def num_bins(self) -> int:
        """Means that a horizon is read in."""
        num = max(1, int(self.ahead.sum()))
        return max(1, min(self.horizon, (MAX_NUMBERS - len(self.ahead)) // num))

    @property
    def context_steps(self) -> int:
        """Last steps of the context whose covariates are read one by one."""
        left = MAX_NUMBERS - len(self.ahead) - int(self.ahead.sum()) * self.num_bins
        return max(0, min(self.lookback, self.horizon, left // max(1, int(self.behind.sum()))))

    @cached_property
    def bin_edges(self) -> np.ndarray:
        """int64 [num_bins]: where each bin of the horizon begins."""
        return np.arange(self.num_bins) * self.horizon // self.num_bins

    @property
    def num_horizon(self) -> int:
        """Numbers of the horizon, which come last."""
        return int(self.ahead.sum()) * self.num_bins

    @property
    def width(self) -> int:
        """P: numbers beside a window."""
        return self.context_steps * int(self.behind.sum()) + len(self.ahead) + self.num_horizon

    @property
    def condition_width(self) -> int:
        """Numbers of the condition part of a key; 0 without a known column."""
        return min(CONDITION_WIDTH, self.num_horizon)

    @cached_property
    def column_of_number(self) -> np.ndarray:
        """int64 [P]: the column that each number is of."""
        column = self.column_of_channel
        return np.concatenate(
            [np.tile(column[self.behind], self.context_steps), column, np.tile(column[self.ahead], self.num_bins)]
        )

    def channels(self, values: np.ndarray) -> np.ndarray:
        """values: [..., C, S], raw -> float32 [..., S, J]."""
        parts = [column.channels(values[..., number, :]) for number, column in enumerate(self.columns)]
        return np.concatenate(parts, axis=-1)

    def of_values(self, values: np.ndarray, views: tuple[int, ...]) -> CovariateWindows:
        """Of windows with values [..., C, L + H], raw. Observed values of the horizon are not looked at."""
        channels = self.channels(values)
        channels[..., self.lookback :, ~self.ahead] = 0
        means = {
            view: channels[..., self.lookback - view : self.lookback, :].mean(axis=-2, dtype=np.float64)
            for view in views
        }
        first = self.lookback - self.context_steps
        return CovariateWindows(
            channels[..., first:, :], {view: mean.astype(np.float32) for view, mean in means.items()}
        )

    def numbers(self, windows: CovariateWindows, view: int, scale: np.ndarray, out: np.ndarray) -> None:
        """What stands beside windows under a view: training units times `scale` [...], into `out` [..., P].

        Written in place: these are most of the bytes that a build and a forecast move.
        """
        near, steps, factor = windows.near, self.context_steps, np.asarray(scale, dtype=out.dtype)[..., None]
        context = near[..., :steps, :] if self.behind.all() else near[..., :steps, self.behind]
        lead, num_behind = near.shape[:-2], context.shape[-1] * steps
        middle = num_behind + near.shape[-1]
        np.multiply(context, factor[..., None], out=out[..., :num_behind].reshape(*lead, steps, context.shape[-1]))
        np.multiply(windows.means[view], factor, out=out[..., num_behind:middle])
        np.multiply(self.horizon_numbers(windows), factor, out=out[..., middle:])

    def horizon_numbers(self, windows: CovariateWindows) -> np.ndarray:
        """float32 [..., num_bins * known channels]: those of the horizon alone."""
        horizon = windows.near[..., self.context_steps :, :]
        horizon = horizon if self.ahead.all() else horizon[..., self.ahead]
        if self.num_bins < self.horizon and horizon.shape[-1]:
            length = np.diff(np.append(self.bin_edges, self.horizon)).astype(np.float32)
            horizon = np.add.reduceat(horizon, self.bin_edges, axis=-2) / length[:, None]
        return horizon.reshape(*windows.near.shape[:-2], self.num_horizon)


@dataclass(frozen=True, kw_only=True)
class StoredCovariates:
    """The covariates of all series of a version, or of a table.

    values: float32 [C, T'], raw, NaN where missing: of all series end to end, or of one stretch that all share. first:
    int64 [N], where each series begins in them. unit: float64 [N], its training standard deviation in units of the
    version's transform. vintages: of each column that has any; each window sees what was issued by its origin.
    origins: int64, positions of the windows that are asked for most, whose vintages are looked up once.

    Of the vintages of a column with j channels, the steps near all n distinct origins are held, 4 j S bytes each, for
    S = context_steps + H, where they fit into `HELD_BYTES`; else they are looked up whenever they are asked for.
    """

    layout: CovariateLayout
    values: np.ndarray
    first: np.ndarray
    unit: np.ndarray
    vintages: tuple[StepVintages | None, ...] = ()
    origins: np.ndarray | None = field(default=None, repr=False)

    @cached_property
    def channels(self) -> np.ndarray:
        """float32 [T', J]; 0 in the channels of columns with vintages."""
        return np.ascontiguousarray(self.layout.channels(self.values))

    @cached_property
    def _sums(self) -> np.ndarray:
        """float64 [T' + 1, J]: sums over the steps before each."""
        total = np.zeros((len(self.channels) + 1, self.channels.shape[1]))
        np.cumsum(self.channels, axis=0, dtype=np.float64, out=total[1:])
        return total

    def positions(self, origins: list[np.ndarray]) -> np.ndarray:
        """int64: those of origin rows, per series."""
        return np.concatenate([start + rows for start, rows in zip(self.first, origins, strict=True)])

    def windows(self, series: np.ndarray, row: np.ndarray, views: tuple[int, ...]) -> CovariateWindows:
        """Of windows with origins at rows of series (int [...] each)."""
        layout, position = self.layout, self.first[series] + row
        steps, width = layout.context_steps + layout.horizon, self.channels.shape[1]
        if self._num_issued == width:
            return CovariateWindows(
                self._near_as_issued(position), {view: self._means_as_issued(view)[position] for view in views}
            )
        flat = np.lib.stride_tricks.sliding_window_view(self.channels.reshape(-1), steps * width)
        near = flat[(position - layout.context_steps + 1) * width].reshape(*position.shape, steps, width)
        if not layout.ahead.all():
            near[..., layout.context_steps :, ~layout.ahead] = 0
        end = self._sums[position + 1]
        means = {view: ((end - self._sums[position + 1 - view]) / view).astype(np.float32) for view in views}
        if self._num_issued:
            near[..., self._issued_channels] = self._near_as_issued(position)
            for view, mean in means.items():
                mean[..., self._issued_channels] = self._means_as_issued(view)[position]
        return CovariateWindows(near, means)

    def raw(self, series: np.ndarray, row: np.ndarray) -> np.ndarray:
        """float32 [..., C, L + H]: as a query brings them; observed values of the horizon are missing."""
        layout, position = self.layout, self.first[series] + row
        cells = position[..., None] + np.arange(1 - layout.lookback, layout.horizon + 1)
        values = np.moveaxis(self.values[:, cells], 0, -2)
        observed = [number for number, column in enumerate(layout.columns) if column.role == "observed"]
        values[..., observed, layout.lookback :] = np.nan
        for number, vintages in self._issued:
            values[..., number, :] = vintages.as_of(cells, position[..., None])
        return values

    def num_unissued(self) -> dict[str, int]:
        """Of each column with vintages, how many of the windows at `origins` miss a value over their horizon."""
        origins, counts = np.unique(self.origins if self.origins is not None else [], return_counts=True)
        ahead, found = np.arange(1, self.layout.horizon + 1), {}
        size = max(1, LOOKED_UP // len(ahead))
        for number, vintages in self._issued:
            missing = np.zeros(len(origins), dtype=bool)
            for start in range(0, len(origins), size):
                part = origins[start : start + size, None].astype(np.int64)
                missing[start : start + size] = (vintages.rows(part + ahead, part) < 0).any(axis=1)
            found[self.layout.columns[number].name] = int(counts[missing].sum())
        return found

    @cached_property
    def _issued(self) -> tuple[tuple[int, StepVintages], ...]:
        """The columns with vintages: their number, and these."""
        return tuple((number, each) for number, each in enumerate(self.vintages) if each is not None)

    @cached_property
    def _issued_channels(self) -> slice | np.ndarray:
        """The j channels of all columns with vintages: int64, or a slice where they are side by side."""
        channels = np.flatnonzero(np.isin(self.layout.column_of_channel, [number for number, _ in self._issued]))
        if len(channels) and channels[-1] - channels[0] + 1 == len(channels):
            return slice(channels[0], channels[-1] + 1)
        return channels

    @cached_property
    def _num_issued(self) -> int:
        """j."""
        return sum(len(self.layout.columns[number].center) for number, _ in self._issued)

    def _near_as_issued(self, position: np.ndarray) -> np.ndarray:
        """float32 [..., S, j]: the steps near origins at some positions, as of these."""
        if self._held is not None:
            origins, near = self._held
            place = np.minimum(np.searchsorted(origins, position), len(origins) - 1)
            if (origins[place] == position).all():
                return near[place]
        distinct, place = np.unique(position, return_inverse=True)
        return self._looked_up(distinct)[place.reshape(position.shape)]

    @cached_property
    def _held(self) -> tuple[np.ndarray, np.ndarray] | None:
        """The distinct origins, and what they see near them; None where that would take too much."""
        if self.origins is None:
            return None
        origins = np.unique(self.origins)
        num = (self.layout.context_steps + self.layout.horizon) * self._num_issued
        if not len(origins) or 4 * num * len(origins) > HELD_BYTES:
            return None
        return origins, self._looked_up(origins)

    def _looked_up(self, origins: np.ndarray) -> np.ndarray:
        """float32 [n, S, j] of origins at positions [n]."""
        steps = np.arange(1 - self.layout.context_steps, self.layout.horizon + 1)
        near = np.empty((len(origins), len(steps), self._num_issued), dtype=np.float32)
        size = max(1, LOOKED_UP // len(steps))
        for start in range(0, len(origins), size):
            part = origins[start : start + size, None]
            found = [
                self.layout.columns[number].channels(vintages.as_of(part + steps, part))
                for number, vintages in self._issued
            ]
            near[start : start + size] = np.concatenate(found, axis=-1)
        return near

    def _means_as_issued(self, view: int) -> np.ndarray:
        """float32 [T', j]: at each origin, the mean over its view."""
        if view not in self._means_of_view:
            found = [
                vintages.means(self.layout.columns[number].channels(vintages.value), view)
                for number, vintages in self._issued
            ]
            self._means_of_view[view] = np.concatenate(found, axis=-1)
        return self._means_of_view[view]

    @cached_property
    def _means_of_view(self) -> dict[int, np.ndarray]:
        return {}
