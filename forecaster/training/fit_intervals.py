"""Calibrating the intervals of a run: on the errors of held-out training windows, and of validation windows.

First the errors of each series and step, in expected widths, become a fan (`runs/intervals.py`). Then it is decided how
that fan is blended with the memory's own: the blend of least quantile loss, cross-validated over the folds of training
and the halves of validation. The memory's own fan is one of the candidates.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from forecaster.model.model import ForecastModel
from forecaster.predictor import predict
from forecaster.retrieval.batches import CachedWindows
from forecaster.retrieval.neighbours import FAN_LEVELS
from forecaster.runs.intervals import (
    MEMORY_ALONE,
    Blend,
    Intervals,
    MemoryFan,
    calibrate,
    expected_width,
    no_errors,
    prior_windows,
)
from forecaster.training.weighing import weights_of
from memory_index.neighbours import mean_over_spaces

CHUNK = 4096  # windows handled at once
MAX_CALIBRATION = 20_000  # windows of each part that are looked at; more would only take memory
FEW_APART = 5  # windows of a series that do not overlap: fewer hardly tell how wide an interval should be
SCORED_STEPS = 12  # of the horizon that blends are compared on, at most
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
UNCALIBRATED = "intervals are the memory's own, not calibrated"
STRETCHES = (0.7, 0.8, 0.9, 1.0, 1.1, 1.25, 1.5)


@dataclass(frozen=True, kw_only=True)
class Errors:
    """Held-out windows of one part and how they were forecast; raw units.

    error, width: [n, H]. series: [n]. weight: float64 [n], how much each counts (`weighing.py`). group: int [n], what
    is left out together. fan: numbers [m] of those whose memory quantiles are known; forecast, future: [m, H] of these,
    and memory: their fan. share: of all windows of the part that are looked at.
    """

    error: np.ndarray
    width: np.ndarray
    series: np.ndarray
    weight: np.ndarray
    group: np.ndarray
    fan: np.ndarray
    forecast: np.ndarray
    future: np.ndarray
    memory: MemoryFan | None
    share: float


def fit_intervals(
    model: ForecastModel,
    training: CachedWindows,
    validation: CachedWindows,
    series_ids: Sequence[str],
    *,
    validates: bool,
    made_do: bool = False,
    note: Callable[[str], None] = lambda text: None,
) -> Intervals:
    """Calibrate the quantiles.

    validates: whether validation windows are ones, not training windows that stand in. made_do: whether training
    windows were asked with less of a memory than a forecast will have: then they do not tell what its quantiles are
    worth, and those are taken as they are. series_ids: of the table.
    """
    horizon, parts = training.config.horizon, []
    held = training.fold is not None and not model.config.is_network_alone  # one network has seen every window
    if held:
        assert training.fold is not None, "windows are held out in folds"
        parts.append(errors_of(model, training, training.fold))
    if validates or not parts:
        halves = (np.arange(len(validation)) >= len(validation) // 2).astype(np.int64)
        parts.append(errors_of(model, validation, halves + 1000))
    held_out = parts[0] if len(parts) == 1 else _joined(parts)
    is_fair = validates or held
    if training.condensed is not None and (not is_fair or len(held_out.error) < len(set(held_out.series.tolist()))):
        note(f"no window whose error is held out: {UNCALIBRATED}")
        return no_errors(horizon)
    if (num := num_apart(held_out.series, horizon)) < FEW_APART:
        note(f"intervals rest on {num} windows a series that do not overlap: they may be far off")
    found = calibrated(held_out, series_ids, horizon)
    if made_do and training.condensed is not None:
        note(f"too few held-out windows tell how wide intervals should be: {UNCALIBRATED}")
        return replace(found, blend=MEMORY_ALONE, num=0)
    return replace(found, blend=choose_blend(held_out, series_ids, horizon))


def errors_of(model: ForecastModel, windows: CachedWindows, group: np.ndarray) -> Errors:
    """Forecast the windows, or `MAX_CALIBRATION` of them, spread evenly over the time of each series. group: [n]."""
    horizon = windows.config.horizon
    num, whole = min(len(windows), MAX_CALIBRATION), len(windows)
    by_series = np.lexsort((windows.position, windows.series))
    chosen = np.sort(by_series[np.linspace(0, whole - 1, num).astype(np.int64)])
    if windows.fans is not None:
        chosen = np.union1d(chosen, windows.fans.number)
    error, width, forecast = (np.empty((len(chosen), horizon), dtype=np.float32) for _ in range(3))
    for start in range(0, len(chosen), CHUNK):
        part = slice(start, start + CHUNK)
        batch = windows.batch(chosen[part])
        predicted = predict(model, batch)
        assert windows.windows is not None, "the windows of the version are known"
        condensed = None if windows.condensed is None else windows.condensed.take(chosen[part])
        width[part] = expected_width(
            condensed,
            windows.windows,
            windows.spaces,
            spread=predicted.spread,
            unit=batch.unit.numpy(),
            horizon=horizon,
        )
        forecast[part], error[part] = predicted.forecast, batch.future.numpy() - predicted.forecast
    weight = weights_of(windows)
    fan, memory = np.empty(0, dtype=np.int64), None
    if windows.fans is not None and windows.condensed is not None:
        fan = np.searchsorted(chosen, windows.fans.number)
        kept = windows.condensed.take(windows.fans.number)
        by_space = np.where(kept.found[..., None], kept.forecasts, np.nan)[None]  # [1, m, V, H]
        memory = MemoryFan(np.asarray(windows.fans.levels), mean_over_spaces(by_space)[0])
    return Errors(
        error=error,
        width=width,
        series=windows.series[chosen],
        weight=weight[chosen] / windows.unit[chosen],
        group=group[chosen],
        fan=fan,
        forecast=forecast[fan],
        future=(forecast + error)[fan],
        memory=memory,
        share=len(chosen) / whole,
    )


def calibrated(errors: Errors, series_ids: Sequence[str], horizon: int, keep: np.ndarray | None = None) -> Intervals:
    """The fan of the errors alone. keep: bool [n], which of them."""
    used = np.ones(len(errors.error), dtype=bool) if keep is None else keep
    prior = prior_windows(horizon, errors.share)
    return calibrate(errors.error[used] / errors.width[used], errors.series[used], series_ids, prior=prior)


def choose_blend(errors: Errors, series_ids: Sequence[str], horizon: int) -> Blend:
    """The blend of least quantile loss over the groups, each with a fan of the others' errors."""
    if errors.memory is None or not len(errors.fan):
        return Blend()
    steps = np.unique(np.linspace(0, horizon - 1, SCORED_STEPS).round().astype(np.int64))
    own = np.empty((len(errors.fan), len(steps), len(FAN_LEVELS)), dtype=np.float32)
    for group in np.unique(errors.group):
        mine = errors.group[errors.fan] == group
        others = errors.group != group
        if not mine.any():
            continue
        fitted = calibrated(errors, series_ids, horizon, others if others.any() else None)
        names = [series_ids[number] for number in errors.series[errors.fan][mine]]
        wide = errors.width[errors.fan][mine]
        own[mine] = fitted.quantiles(errors.forecast[mine], wide, names, FAN_LEVELS)[:, steps]
    forecast, future = errors.forecast[:, steps], errors.future[:, steps]
    memory = MemoryFan(errors.memory.levels[:, steps], errors.memory.center[:, steps])
    weight = errors.weight[errors.fan]
    candidates = [
        Blend(share=share, moved=moved, stretch=stretch)
        for share, moved, stretch in itertools.product(SHARES, (True, False), STRETCHES)
        if moved or share > 0
    ]
    losses = {each: quantile_loss(each.quantiles(own, forecast, memory), future, weight) for each in candidates}
    best = min(losses, key=losses.__getitem__)
    alone = losses[MEMORY_ALONE]
    return best if losses[best] < alone else MEMORY_ALONE


def quantile_loss(quantiles: np.ndarray, future: np.ndarray, weight: np.ndarray) -> float:
    """Mean pinball loss at `FAN_LEVELS`. quantiles: [m, H, Q]; future: [m, H]; weight: [m]."""
    error, tau = future[..., None] - quantiles, np.array(FAN_LEVELS)
    losses = np.maximum(tau * error, (tau - 1) * error).mean(axis=2)
    if not (known := ~np.isnan(future)).all():  # a window counts by what is known of it
        by_step, shares = np.where(known, losses, 0.0), known.mean(axis=1)
        return float(by_step.mean(axis=1) @ weight / max(float(shares @ weight), np.finfo(np.float64).tiny))
    return float(losses.mean(axis=1) @ weight / weight.sum())


def num_apart(series: np.ndarray, horizon: int) -> int:
    """How many windows of the series that has the most of them have futures without a common step, about."""
    return 1 + (int(np.bincount(series).max()) - 1) // horizon


def _joined(parts: Sequence[Errors]) -> Errors:
    offset = np.cumsum([0, *(len(part.error) for part in parts)])[:-1]

    def all_of(name: str) -> np.ndarray:
        return np.concatenate([getattr(part, name) for part in parts])

    memories = [part.memory for part in parts if part.memory is not None]
    return Errors(
        **{name: all_of(name) for name in ("error", "width", "series", "weight", "group", "forecast", "future")},
        fan=np.concatenate([part.fan + first for part, first in zip(parts, offset, strict=True)]),
        memory=MemoryFan(*(np.concatenate(each) for each in zip(*memories, strict=True))) if memories else None,
        share=float(np.average([part.share for part in parts], weights=[len(part.error) for part in parts])),
    )
