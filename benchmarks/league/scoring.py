"""Scores of one table: what training made, each of its parts, and the memory alone, on the same windows.

Other packages forecast some of those windows only (`few_windows`), so everything is scored on these by themselves too.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from benchmarks.league.tables import Entry
from forecaster.predictor import Predictor
from forecaster.retrieval.batches import LiveBlock, live_blocks
from memory_index.calibration import calibrated, usual_errors
from memory_index.evaluation import standard_units
from memory_index.memory import Memory
from memory_index.neighbours import mean_over_spaces
from memory_index.queries import futures_of
from memory_index.splits import Split
from memory_index.tables.series import SeriesTable

LEVELS = tuple(np.round(np.arange(1, 10) / 10, 1).tolist())
OUTER = (0, 8)  # of `LEVELS`: what coverage is told of
TRAINED, MEMORY = "trained", "memory alone"
FEW = 48  # windows that other packages forecast, about
RESAMPLES, OUTSIDE = 1000, (5, 95)  # of the block bootstrap: per cent outside of an interval


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """n windows. future: [n, H], raw units. series: int [n]. origin: datetime64[ns] [n]. unit, scale: [n], training
    deviation and error of the seasonal naive forecast of the series, 0 or less where it has none.
    """

    future: np.ndarray
    series: np.ndarray
    origin: np.ndarray
    unit: np.ndarray
    scale: np.ndarray


@dataclass(slots=True)
class Tally:
    """Errors of each forecast by window, float64: squared in standardised units, absolute and quantile loss over the
    error of the seasonal naive forecast (NaN where that has none), share of steps below each level.
    """

    asked: list[Asked] = field(default_factory=list)
    squared: dict[str, list[np.ndarray]] = field(default_factory=dict)
    scaled: dict[str, list[np.ndarray]] = field(default_factory=dict)
    pinball: dict[str, list[np.ndarray]] = field(default_factory=dict)
    below: dict[str, list[np.ndarray]] = field(default_factory=dict)

    def add(self, name: str, asked: Asked, forecast: np.ndarray, quantiles: np.ndarray | None = None) -> None:
        """forecast: [n, H]; quantiles: [n, H, Q] of `LEVELS`; raw units."""
        error = forecast.astype(np.float64) - asked.future
        scale = np.where(asked.scale > 0, asked.scale, np.nan)
        self.squared.setdefault(name, []).append(np.square(error / asked.unit[:, None]).mean(axis=1))
        self.scaled.setdefault(name, []).append(np.abs(error).mean(axis=1) / scale)
        if quantiles is not None:
            tau, off = np.array(LEVELS), asked.future[..., None] - quantiles.astype(np.float64)
            loss = 2 * np.maximum(tau * off, (tau - 1) * off).mean(axis=(1, 2))
            self.pinball.setdefault(name, []).append(loss / scale)
            self.below.setdefault(name, []).append((off <= 0).mean(axis=1))

    def scores(self, among: np.ndarray | None = None) -> dict[str, dict[str, float]]:
        """By forecast: mse (standardised), mase, and where there are quantiles sql and coverage of the outer two.

        among: bool [n] over all windows, default all of them.
        """

        def mean(parts: list[np.ndarray]) -> np.ndarray:
            whole = np.concatenate(parts)
            return np.asarray(np.nanmean(whole if among is None else whole[among], axis=0))

        found = {
            name: {"mse": float(mean(parts)), "mase": float(mean(self.scaled[name]))}
            for name, parts in self.squared.items()
        }
        for name, parts in self.pinball.items():
            covered = mean(self.below[name])
            found[name] |= {"sql": float(mean(parts))}
            found[name] |= {f"q{LEVELS[number]:g}": float(covered[number]) for number in OUTER}
        return found

    def intervals(self, length: int) -> dict[str, dict[str, list[float]]]:
        """90% intervals of the mse (and sql) of what training made relative to each other forecast, by moving-block
        bootstrap over origins, or over series where each has one. length: origins of a block; none of fewer than two
        blocks.
        """
        origin, series = (np.concatenate([getattr(each, name) for each in self.asked]) for name in ("origin", "series"))
        group = np.unique(origin, return_inverse=True)[1]
        if group.max() < len(np.unique(series)):
            group, length = series, 1
        found: dict[str, dict[str, list[float]]] = {}
        if group.max() + 1 < 2 * length:
            return found
        for measure, kept in (("mse", self.squared), ("sql", self.pinball)):
            sums = {name: np.bincount(group, np.nan_to_num(np.concatenate(parts))) for name, parts in kept.items()}
            for name in sums.keys() - {TRAINED}:
                bounds = np.percentile(_ratios(sums[TRAINED], sums[name], length), OUTSIDE)
                found.setdefault(name, {})[measure] = [round(float(each), 4) for each in bounds]
        return found


def _ratios(ours: np.ndarray, theirs: np.ndarray, length: int) -> np.ndarray:
    """Ratios of sums over resampled blocks of consecutive groups, float64 [RESAMPLES]. ours, theirs: [groups]."""
    num, rng = len(ours), np.random.default_rng(0)
    starts = rng.integers(0, num, (RESAMPLES, -(-num // length)))
    rows = ((starts[..., None] + np.arange(length)) % num).reshape(RESAMPLES, -1)[:, :num]
    return np.asarray(ours[rows].sum(axis=1) / np.maximum(theirs[rows].sum(axis=1), np.finfo(np.float64).tiny))


def score(
    predictor: Predictor, memory: Memory, table: SeriesTable, origins: list[np.ndarray], entry: Entry, split: Split
) -> dict[str, Any]:
    """Score everything at these origin rows of each series, asked live under `causal`.

    Quantiles of the memory alone are calibrated, as `cli forecast` of an index gives them.
    """
    tally, settings = Tally(), predictor.config
    unit = standard_units(predictor.units, table, split)
    scales = naive_scales(table, entry, split)
    usual = usual_errors(memory, settings.train.memory_k)
    for block in live_blocks(memory, table, origins, settings.model, settings.train.memory_k, predictor.units):
        wanted = block.asked.wanted.ravel()
        future = futures_of(table, block.asked, entry.horizon).reshape(-1, entry.horizon)[wanted]
        of_series = np.broadcast_to(block.asked.series, block.asked.wanted.shape).ravel()[wanted]
        origin = np.broadcast_to(block.asked.queries.origin[:, None], block.asked.wanted.shape).ravel()[wanted]
        asked = Asked(future=future, series=of_series, origin=origin, unit=unit[of_series], scale=scales[of_series])
        tally.asked.append(asked)
        predicted = predictor.predict(block.batch)
        quantiles = {TRAINED: predictor.quantiles(memory, block, predicted, LEVELS)}
        if block.found is not None:
            center = block.found.forecast(on_empty="last-value")
            alone = calibrated(block.found, center, LEVELS, usual)
            quantiles[MEMORY] = alone.reshape(-1, entry.horizon, len(LEVELS))
        for name, forecast in forecasts_of(predictor, block).items():
            levels = quantiles.get(name)
            tally.add(name, asked, forecast[wanted], None if levels is None else levels[wanted])
    among = _among(tally, table, few_windows(origins))
    return {
        "scores": tally.scores(),
        "intervals": tally.intervals(-(-entry.horizon // max(1, entry.test_stride))),
        "num_windows": len(among),
        "few": tally.scores(among),
        "num_few": int(among.sum()),
    }


def few_windows(origins: list[np.ndarray]) -> list[np.ndarray]:
    """About `FEW` of the origin rows of all series, spread evenly over series, then over time."""
    num = len(origins)
    series = set(np.unique(np.linspace(0, num - 1, min(num, FEW)).round().astype(int)).tolist())
    each = max(1, FEW // num)
    return [
        rows[np.unique(np.linspace(0, len(rows) - 1, min(each, len(rows))).round().astype(int))]
        if number in series and len(rows)
        else rows[:0]
        for number, rows in enumerate(origins)
    ]


def _among(tally: Tally, table: SeriesTable, rows: list[np.ndarray]) -> np.ndarray:
    """Which of the windows are at these origin rows of each series: bool [n]."""
    found = []
    for asked in tally.asked:
        kept = np.zeros(len(asked.series), dtype=bool)
        for number in np.unique(asked.series):
            mine = asked.series == number
            kept[mine] = np.isin(asked.origin[mine], table.series[number].times[rows[number]])
        found.append(kept)
    return np.concatenate(found)


def forecasts_of(predictor: Predictor, block: LiveBlock) -> dict[str, np.ndarray]:
    """float32 [n, H] by name: trained, each base, the memory alone, and each of its scopes alone."""
    predicted = predictor.predict(block.batch)
    found = {TRAINED: predicted.forecast}
    found |= {name: predicted.bases[:, number] for number, name in enumerate(predictor.model.base_names)}
    if block.condensed is None or block.found is None:
        return found
    last = block.batch.context.numpy()[:, -1:]
    by_space = np.where(block.condensed.found[..., None], block.condensed.forecasts, np.nan)[None]  # [1, n, V, H]
    scopes = [space.scope for space in block.found.spaces]
    groups = {MEMORY: list(range(len(scopes)))}
    for number, scope in enumerate(scopes):
        groups.setdefault(scope, []).append(number)
    for name, group in groups.items():
        alone = mean_over_spaces(by_space[:, :, group])[0]
        found[name] = np.where(np.isnan(alone), last, alone)
    return found


def naive_scales(table: SeriesTable, entry: Entry, split: Split) -> np.ndarray:
    """In-sample error of the seasonal naive forecast of each series, float64 [N]: of its training part, or of all
    before the last window where only that is scored.
    """
    until, found = np.datetime64(split.train_until, "ns"), []
    for series in table.series:
        seen = series.values[: -entry.horizon] if entry.test_stride == 0 else series.values[series.times <= until]
        found.append(
            np.nanmean(np.abs(seen[entry.season :] - seen[: -entry.season])) if len(seen) > entry.season else 0
        )
    return np.array(found, dtype=np.float64)
