"""Quantiles of a forecast: series, spread and neighbours say how wide, held-out errors how far to trust that.

Two fans are blended. The errors of held-out windows, divided by the width that is expected of each, are kept as
empirical quantiles per step (split conformal prediction with a local scale: Lei et al., *Distribution-free predictive
inference for regression*, JASA 2018, section 5.2). The other is the memory's own: what followed the neighbours. Which
share each has, and how far both are stretched, is what had the least quantile loss (`training/fit_intervals.py`). Were
windows exchangeable, an interval would cover what it says, but for the few numbers that are taken from the same errors;
windows in time are not, so `evaluate` reports what was covered. How the width was chosen: docs/experiments.md.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
import safetensors
import safetensors.numpy

from forecaster.errors import RunNotFoundError
from forecaster.retrieval.neighbours import Condensed
from forecaster.runs.records import read_recorded, refusals_named, seal, unseal
from memory_index import files
from memory_index.errors import UsageError
from memory_index.files import sha256_of
from memory_index.types import KeySpace
from memory_index.windows import StoredWindows, cut

LEVELS = np.array([0.005, *np.arange(1, 100) / 100, 0.025, 0.975, 0.995])
LEVELS.sort()
FILE, RECORD = "intervals.safetensors", "intervals.json"
FLOOR = 1.0  # least deviation of the neighbours, in spreads of the window: they may agree by chance
NO_NEIGHBOUR = math.sqrt(FLOOR**2 + 1)  # scale of a window without: as if they lay a spread apart
LEAST_PRIOR = 20  # windows


def expected_width(
    condensed: Condensed | None,
    windows: StoredWindows,
    spaces: Sequence[KeySpace],
    *,
    spread: np.ndarray,
    unit: np.ndarray,
    horizon: int,
) -> np.ndarray:
    """How wide an interval of each window should be, per step, up to a factor: float32 [n, H], raw units.

    spread: [n], of the windows. unit: [n], the training standard deviation of their series. Halfway between what is
    usual for a series and what its window says now, `sqrt(unit * spread * scale)`; a window of a larger spread than
    usual has its own for the unit, because a series that has grown will not shrink again by itself.
    """
    scale = neighbour_scale(condensed, windows, spaces, num=len(spread), horizon=horizon)
    of_window = np.sqrt(np.maximum(unit, spread).astype(np.float64) * spread)[:, None]
    return (of_window * np.sqrt(scale)).astype(np.float32)


def neighbour_scale(
    condensed: Condensed | None, windows: StoredWindows, spaces: Sequence[KeySpace], *, num: int, horizon: int
) -> np.ndarray:
    """How far the futures of each window's kept neighbours lie apart, per step: float32 [n, H].

    In spreads of the window. Their weighted standard deviation, each read in its own location and spread, with
    `FLOOR` added in squares. Where a window has no neighbour, or nothing is retrieved (condensed None; num is n), as if
    they lay a spread apart.
    """
    if condensed is None:
        return np.full((num, horizon), NO_NEIGHBOUR, dtype=np.float32)
    used = condensed.row >= 0
    safe = np.maximum(condensed.row, 0)
    view = np.array([windows.views.index(space.view) for space in spaces])[condensed.space]
    location, spread = windows.location[safe, view][..., None], windows.spread[safe, view][..., None]
    futures = (cut(windows.values, windows.origin_position[safe] + 1, horizon) - location) / spread  # [n, slots, H]
    logit = np.where(used, condensed.logit.astype(np.float64), -np.inf)
    weight = np.exp(logit - np.where(used[:, :1], logit[:, :1], 0))[..., None]  # slots are sorted
    total = np.maximum(weight.sum(axis=1, keepdims=True), np.finfo(np.float64).tiny)
    if (missing := np.isnan(futures)).any():  # each step over the futures that have it
        weight, futures = np.where(missing, 0.0, weight), np.where(missing, 0.0, futures)
        total = np.maximum(weight.sum(axis=1, keepdims=True), np.finfo(np.float64).tiny)
    mean = (weight * futures).sum(axis=1, keepdims=True) / total
    variance = (weight * np.square(futures - mean)).sum(axis=1) / total[:, 0]
    scale = np.where(used[:, :1], np.sqrt(variance + FLOOR**2), NO_NEIGHBOUR)
    return scale.astype(np.float32)


class MemoryFan(NamedTuple):
    """What the memory says by itself of n windows, raw units. levels: [n, H, Q], its quantiles at the levels that are
    asked for. center: [n, H], its forecast. Both NaN for a window without neighbours.
    """

    levels: np.ndarray
    center: np.ndarray


@dataclass(frozen=True, kw_only=True, slots=True)
class Blend:
    """How two fans become one: that of the errors, and the memory's own (docs/method.md).

    share: of the memory's, 0 to 1. moved: whether the memory's is moved to the run's forecast. stretch: how much
    farther from the forecast every quantile then lies.
    """

    share: float = 0.0
    moved: bool = True
    stretch: float = 1.0

    def quantiles(self, own: np.ndarray, forecast: np.ndarray, memory: MemoryFan | None) -> np.ndarray:
        """own: [n, H, Q]; forecast: [n, H] -> [n, H, Q]. A window without neighbours has its own."""
        center, mixed = forecast[..., None], own
        if memory is not None and self.share > 0:
            shift = (forecast - memory.center)[..., None] if self.moved else 0.0
            mixed = np.where(
                np.isnan(memory.center)[..., None], own, (1 - self.share) * own + self.share * (memory.levels + shift)
            )
        return np.asarray(mixed if self.stretch == 1 else center + self.stretch * (mixed - center))


MEMORY_ALONE = Blend(share=1.0, moved=False)  # also where nothing could be calibrated


@dataclass(frozen=True, kw_only=True, slots=True)
class Intervals:
    """Empirical quantiles of held-out errors in expected widths, and how they are blended with the memory's own.

    residual: float32 [len(LEVELS), H]. factors: by series, how much larger its errors were than is usual. num: windows
    behind them, 0 where there were too few: then the memory's own are used.
    """

    residual: np.ndarray
    factors: Mapping[str, float]
    num: int
    blend: Blend = Blend()

    def quantiles(
        self,
        forecast: np.ndarray,
        width: np.ndarray,
        series_ids: Sequence[str],
        levels: tuple[float, ...],
        memory: MemoryFan | None = None,
    ) -> np.ndarray:
        """forecast [n, H], raw units; width [n, H] of `expected_width`; series_ids [n] -> float32 [n, H, Q], raw units.

        memory: at these levels, None for a run without a memory. A series that was not calibrated has the factor 1.
        Levels between those that are kept are interpolated. Raises `UsageError` for one beyond the outermost.
        """
        require_calibrated(levels)
        steps = range(self.residual.shape[1])
        at = np.stack([np.interp(levels, LEVELS, self.residual[:, step]) for step in steps])  # [H, Q]
        factor = np.array([self.factors.get(series_id, 1.0) for series_id in series_ids])
        own = forecast[..., None] + (factor[:, None] * width)[..., None] * at
        return self.blend.quantiles(own, forecast, memory).astype(np.float32)


def no_errors(horizon: int) -> Intervals:
    """Those of a run that no error is known of: the memory's own, and as wide as is expected where it has none."""
    normal = [NormalDist().inv_cdf(float(level)) for level in LEVELS]
    residual = np.repeat(np.array(normal, dtype=np.float32)[:, None], horizon, axis=1)
    return Intervals(residual=residual, factors={}, num=0, blend=MEMORY_ALONE)


def require_calibrated(levels: tuple[float, ...]) -> None:
    """Raise `UsageError` for a quantile beyond the outermost that is calibrated."""
    for level in levels:
        if not LEVELS[0] <= level <= LEVELS[-1]:
            raise UsageError(
                f"quantile {level:g} cannot be calibrated", hint=f"choose between {LEVELS[0]:g} and {LEVELS[-1]:g}"
            )


def calibrate(errors: np.ndarray, series: np.ndarray, series_ids: Sequence[str], *, prior: float) -> Intervals:
    """Errors of n validation windows in expected widths, `(future - forecast) / width` [n, H] -> quantiles per step.

    A missing future's error is NaN, and counts for nothing; a step of which none is known takes its neighbours'
    quantiles. series: int64 [n], number of each window's series in `series_ids`. prior: see `series_factors`. The
    conformal correction for n windows takes the outer one of two neighbouring order statistics: rank `ceil(q (n + 1))`
    above the median, `floor(q (n + 1))` below.
    """
    known = ~np.isnan(errors)
    sizes = np.where(known, np.abs(errors), 0).sum(axis=1) / np.maximum(known.sum(axis=1), 1)
    if known.all():
        sizes = np.abs(errors).mean(axis=1)
    factors = series_factors(sizes, series, len(series_ids), prior=prior)
    ordered = np.sort(errors / factors[series, None].astype(np.float32), axis=0)  # missing ones last
    num, of_step = len(ordered), known.sum(axis=0)
    of_step = np.where(of_step > 0, of_step, num)
    rank = np.round(LEVELS[:, None] * (of_step + 1), 6)  # 0.55 * 100 is a little more than 55
    rank = np.where(LEVELS[:, None] < 0.5, np.floor(rank), np.ceil(rank)).astype(np.int64)
    residual = np.take_along_axis(ordered, np.clip(rank, 1, of_step) - 1, axis=0).astype(np.float32)
    return Intervals(
        residual=_between_steps(residual),
        factors=dict(zip(series_ids, map(float, factors), strict=True)),
        num=num,
    )


def _between_steps(residual: np.ndarray) -> np.ndarray:
    """Quantiles [Q, H], those of steps of which no error is known (NaN) interpolated; 0 where none is known at all."""
    known = ~np.isnan(residual).any(axis=0)
    if known.all() or not known.any():
        return np.nan_to_num(residual)
    steps = np.arange(residual.shape[1])
    return np.stack([np.interp(steps, steps[known], row[known]) for row in residual]).astype(residual.dtype)


def series_factors(sizes: np.ndarray, series: np.ndarray, num_series: int, *, prior: float) -> np.ndarray:
    """How much larger each series' errors are than is usual: float64 [num_series], 1 for a series without a window.

    sizes: [n], mean absolute error of each window in expected widths. prior: windows of the usual size that each series
    is given beforehand, so that one which was met once, and forecast well by luck, is not trusted to the last digit.
    Usual is the median series, so that one of wild errors does not change the others.
    """
    num = np.bincount(series, minlength=num_series)
    summed = np.bincount(series, weights=sizes, minlength=num_series)
    of_series = summed[num > 0] / num[num > 0]
    if not (of_series > 0).any():
        return np.ones(num_series)
    usual = np.median(of_series[of_series > 0])
    return (summed / usual + prior) / (num + prior)


def prior_windows(horizon: int, share: float) -> float:
    """The prior of `series_factors`: what says about as much as a single future does.

    The horizon, because as many consecutive windows share a step, and `LEAST_PRIOR` at least. share: of the windows
    that are looked at.
    """
    return max(horizon, LEAST_PRIOR) * share


def write_intervals(run: Path, intervals: Intervals) -> None:
    """Keep them in a run folder: the numbers, then the record that makes them count. Raises `ResourceError`."""
    content = safetensors.numpy.save({"residual": np.ascontiguousarray(intervals.residual)})
    with refusals_named(run / FILE):
        files.replace(run / FILE, content)
        files.replace(
            run / RECORD,
            seal(
                {
                    "sha256_of_file": sha256_of(content),
                    "num_windows": intervals.num,
                    "factors": dict(intervals.factors),
                    "blend": asdict(intervals.blend),
                }
            ),
        )


def read_intervals(run: Path) -> Intervals:
    """Those of a run folder. Raises `RunNotFoundError` if its training has not ended, `RunDamagedError`."""
    with refusals_named(run / FILE):
        if not ((run / RECORD).is_file() and (run / FILE).is_file()):
            raise RunNotFoundError(f"{run} is not trained to its end", hint="go on with 'cli train ... --resume'")
        record = unseal(run / RECORD)
    residual = safetensors.numpy.load(read_recorded(run / FILE, record["sha256_of_file"]))["residual"]
    return Intervals(
        residual=residual,
        factors=record["factors"],
        num=int(record["num_windows"]),
        blend=Blend(**record["blend"]),
    )
