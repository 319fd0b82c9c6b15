"""Scores of one table: what training made, each of its parts, and the memory alone, on the same windows."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from benchmarks.league.tables import Entry
from forecaster.predictor import Predictor
from forecaster.retrieval.batches import LiveBlock, live_blocks
from memory_index.evaluation import standard_units
from memory_index.memory import Memory
from memory_index.neighbours import mean_over_spaces
from memory_index.queries import futures_of
from memory_index.splits import Split
from memory_index.tables.series import SeriesTable

LEVELS = tuple(np.round(np.arange(1, 10) / 10, 1).tolist())
OUTER = (0, 8)  # of `LEVELS`: what coverage is told of


@dataclass(slots=True)
class Tally:
    """Per-window errors of each forecast, to be averaged at the end; scaled ones leave out what has no scale."""

    squared: dict[str, list[np.ndarray]] = field(default_factory=dict)
    scaled: dict[str, list[np.ndarray]] = field(default_factory=dict)
    pinball: dict[str, list[np.ndarray]] = field(default_factory=dict)
    below: dict[str, list[np.ndarray]] = field(default_factory=dict)

    def add(self, name: str, forecast: np.ndarray, future: np.ndarray, unit: np.ndarray, scale: np.ndarray) -> None:
        """forecast, future: [n, H], raw units. unit, scale: [n], 0 or less where a series has no scale."""
        error = forecast.astype(np.float64) - future
        self.squared.setdefault(name, []).append(np.square(error / unit[:, None]).mean(axis=1))
        self.scaled.setdefault(name, []).append((np.abs(error).mean(axis=1) / scale)[scale > 0])

    def add_quantiles(self, name: str, levels: np.ndarray, future: np.ndarray, scale: np.ndarray) -> None:
        """levels: [n, H, Q] of `LEVELS`."""
        tau, error = np.array(LEVELS), future[..., None] - levels.astype(np.float64)
        loss = 2 * np.maximum(tau * error, (tau - 1) * error).mean(axis=(1, 2))
        self.pinball.setdefault(name, []).append((loss / scale)[scale > 0])
        self.below.setdefault(name, []).append((error <= 0).mean(axis=1))

    def scores(self) -> dict[str, dict[str, float]]:
        """By forecast: mse (standardised), mase, and where there are quantiles sql and coverage of the outer two."""
        found = {
            name: {"mse": float(np.concatenate(parts).mean()), "mase": float(np.concatenate(self.scaled[name]).mean())}
            for name, parts in self.squared.items()
        }
        for name, parts in self.pinball.items():
            covered = np.concatenate(self.below[name]).mean(axis=0)
            found[name] |= {"sql": float(np.concatenate(parts).mean())}
            found[name] |= {f"q{LEVELS[number]:g}": float(covered[number]) for number in OUTER}
        return found


def score(
    predictor: Predictor, memory: Memory, table: SeriesTable, origins: list[np.ndarray], entry: Entry, split: Split
) -> dict[str, dict[str, float]]:
    """Score everything at these origin rows of each series, asked live under `causal`."""
    tally, model = Tally(), predictor.config.model
    unit = standard_units(predictor.units, table, split)
    scales = naive_scales(table, entry, split)
    for block in live_blocks(memory, table, origins, model, predictor.config.train.memory_k, predictor.units):
        wanted = block.asked.wanted.ravel()
        future = futures_of(table, block.asked, entry.horizon).reshape(-1, entry.horizon)[wanted]
        of_series = np.broadcast_to(block.asked.series, block.asked.wanted.shape).ravel()[wanted]
        for name, forecast in forecasts_of(predictor, block).items():
            tally.add(name, forecast[wanted], future, unit[of_series], scales[of_series])
        predicted = predictor.predict(block.batch)
        quantiles = predictor.quantiles(memory, block, predicted, LEVELS)[wanted]
        tally.add_quantiles("trained", quantiles, future, scales[of_series])
        if block.found is not None:
            alone = block.found.quantiles(LEVELS, on_empty="last-value").reshape(-1, entry.horizon, len(LEVELS))
            tally.add_quantiles("memory alone", alone[wanted], future, scales[of_series])
    return tally.scores()


def forecasts_of(predictor: Predictor, block: LiveBlock) -> dict[str, np.ndarray]:
    """float32 [n, H] by name: trained, each base, the memory alone, and each of its scopes alone."""
    predicted = predictor.predict(block.batch)
    found = {"trained": predicted.forecast}
    found |= {name: predicted.bases[:, number] for number, name in enumerate(predictor.model.base_names)}
    if block.condensed is None or block.found is None:
        return found
    last = block.batch.context.numpy()[:, -1:]
    by_space = np.where(block.condensed.found[..., None], block.condensed.forecasts, np.nan)[None]  # [1, n, V, H]
    scopes = [space.scope for space in memory_spaces(block)]
    groups = {"memory alone": list(range(len(scopes)))}
    for number, scope in enumerate(scopes):
        groups.setdefault(scope, []).append(number)
    for name, group in groups.items():
        alone = mean_over_spaces(by_space[:, :, group])[0]
        found[name] = np.where(np.isnan(alone), last, alone)
    return found


def memory_spaces(block: LiveBlock) -> list[object]:
    """The key spaces of a block's answer, in the order of its forecasts."""
    assert block.found is not None, "asked only of a run with a memory"
    return list(block.found.spaces)


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
