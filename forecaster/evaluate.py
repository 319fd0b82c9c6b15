"""Scoring a trained model: every window of a part of the split, asked live under `causal`, beside plain baselines."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch

from forecaster.model.tapr import labels, trend_change
from forecaster.predictor import Predicted, Predictor
from forecaster.retrieval.batches import LiveBlock, live_blocks
from memory_index.baselines import baseline_forecasts
from memory_index.bounds import BoundsOf
from memory_index.evaluation import (
    MEMORY_ONLY,
    MODEL,
    Distribution,
    Evaluation,
    ForecastBlock,
    Report,
    scored_origins,
    tally,
)
from memory_index.memory import Memory
from memory_index.metrics import DECILES
from memory_index.missing import last_known
from memory_index.neighbours import mean_over_spaces
from memory_index.origins import Schedule
from memory_index.scaling import ScaledBy
from memory_index.splits import require_origins
from memory_index.tables.series import SeriesTable

GATE_BINS = 1000


@dataclass(slots=True)
class Histogram:
    """Counts of numbers in [0, 1], so that millions of them take no room."""

    counts: np.ndarray = field(default_factory=lambda: np.zeros(GATE_BINS + 1, dtype=np.int64))
    total: float = 0.0

    def add(self, values: np.ndarray) -> None:
        """values: any shape."""
        self.counts += np.bincount(np.rint(values.ravel() * GATE_BINS).astype(np.int64), minlength=GATE_BINS + 1)
        self.total += float(values.sum(dtype=np.float64))

    def distribution(self) -> Distribution | None:
        """None if nothing was added."""
        num = int(self.counts.sum())
        if num == 0:
            return None
        p10, p50, p90 = np.searchsorted(np.cumsum(self.counts), np.array([0.1, 0.5, 0.9]) * num) / GATE_BINS
        return Distribution(mean=self.total / num, p10=float(p10), p50=float(p50), p90=float(p90))


@dataclass(slots=True)
class _OfRun:
    """What is added up over the blocks beside the scores: the gates, and what TAPR's head told."""

    gate: Histogram = field(default_factory=Histogram)
    feature_gate: Histogram = field(default_factory=Histogram)
    num_right: int = 0
    num_told: int = 0


def evaluate(
    predictor: Predictor,
    memory: Memory,
    table: SeriesTable,
    part: str = "test",
    *,
    schedule: Schedule | None = None,
    levels: tuple[float, ...] = DECILES,
    scaled_by: ScaledBy = "training",
    each: Callable[[ForecastBlock], None] = lambda block: None,
    report: Report = lambda done, total: None,
) -> Evaluation:
    """Score the model's forecast of every window of a part (`train`, `val`, `test`) of the version's split.

    Bounded memory: one block of moments at a time. The windows are those of the memory's lookback, so that models of
    any lookback are scored on the same ones. The arguments are those of `memory_index.evaluate`. Raises `DataError` (no
    such part, no window in it), `UsageError` (a schedule that the table does not go with, or a level that is not
    calibrated).
    """
    config, spec, manifest = predictor.config, memory.windows.spec, memory.manifest
    whole, views = spec.scored(config.model.horizon), memory.windows.views
    every = require_origins(table, whole, manifest.split, part, schedule=schedule or manifest.schedule, views=views)
    origins, skipped = scored_origins(table, every, manifest.split, predictor.units, part)
    counted = tally(
        table,
        origins,
        manifest.split,
        predictor.units,
        arm=MODEL,
        horizon=config.model.horizon,
        scaled_by=scaled_by,
        levels=levels,
    )
    within = BoundsOf(memory)
    of_run, first_origin = _OfRun(), np.datetime64("NaT", "ns")
    for block in live_blocks(memory, table, origins, config.model, config.train.memory_k, predictor.units):
        predicted = predictor.predict(block.batch)
        wanted = block.asked.wanted
        quantiles = predictor.quantiles(memory, block, predicted, levels)
        quantiles = within.kept(
            block.asked.queries, quantiles.reshape(*wanted.shape, config.model.horizon, len(levels))
        )
        forecasts = within.kept_arms(block.asked.queries, forecasts_of(predictor, memory, table, block, predicted))
        scored = counted.add(block.asked, forecasts, quantiles if levels else None)
        each(scored)
        if block.condensed is not None:
            counted.num_without += int((~block.condensed.found.any(axis=1).reshape(wanted.shape) & wanted).sum())
        _add(of_run, predictor, block, predicted, scored.future)
        first_origin = np.fmin(first_origin, block.asked.queries.origin.min())
        report(counted.done, counted.total)
    return counted.evaluation(
        part,
        in_sample=part != "test" or bool(first_origin < max(manifest.fitted_known_at, predictor.seen_until)),
        gate=of_run.gate.distribution(),
        feature_gate=of_run.feature_gate.distribution(),
        skipped=skipped,
        trend_accuracy=of_run.num_right / of_run.num_told if of_run.num_told else None,
    )


def forecasts_of(
    predictor: Predictor, memory: Memory, table: SeriesTable, block: LiveBlock, predicted: Predicted
) -> dict[str, np.ndarray]:
    """The run's forecast and what stands beside it, [B, N, H] by arm."""
    context, horizon = block.asked.queries.context, predictor.config.model.horizon
    shape = (*block.asked.wanted.shape, horizon)
    forecasts = {
        MODEL: predictor.forecast(memory, block, predicted).reshape(shape),
        **baseline_forecasts(context, horizon, table.step),
    }
    if predicted.linear is not None:
        forecasts["linear"] = block.curve.inverse(predicted.linear).reshape(shape)
    if block.condensed is not None and block.found is not None:
        by_space = np.where(block.condensed.found[..., None], block.condensed.forecasts, np.nan)
        by_space = by_space.reshape(*shape[:2], *by_space.shape[1:])  # [B, N, V, H]
        if memory.manifest.transform:  # means of raw values, which are not those that the model mixes
            asked = [memory.manifest.key_spaces.index(space) for space in block.found.spaces]
            by_space[:, :, asked] = block.found.space_forecasts()[..., :horizon]
        alone = mean_over_spaces(by_space)
        forecasts[MEMORY_ONLY] = np.where(np.isnan(alone), last_known(context), alone)
        for number, record in enumerate(memory.manifest.spaces):
            if record.space in block.found.spaces:
                of_space = by_space[:, :, number]
                forecasts[str(record.space)] = np.where(np.isnan(of_space), last_known(context), of_space)
    return forecasts


def _add(of_run: _OfRun, predictor: Predictor, block: LiveBlock, predicted: Predicted, future: np.ndarray) -> None:
    """future: [B, N, H]."""
    wanted = block.asked.wanted.ravel()
    if block.condensed is not None:
        of_run.gate.add(predicted.gate[wanted])
    if predicted.feature_gate is not None:
        of_run.feature_gate.add(predicted.feature_gate[wanted])
    if predicted.direction is not None:
        right = _told_right(predictor, block, predicted, future)
        whole = wanted & np.isfinite(future).all(axis=2).ravel()  # the class is of the mean of the whole horizon
        of_run.num_right += int((right & whole).sum())
        of_run.num_told += int(whole.sum())


def _told_right(predictor: Predictor, block: LiveBlock, predicted: Predicted, future: np.ndarray) -> np.ndarray:
    """bool [B * N]: windows whose class TAPR's head told."""
    thresholds = predictor.model.thresholds
    assert thresholds is not None, "asked only with TAPR"
    thresholds = thresholds.cpu()
    change = trend_change(
        block.batch.context,
        torch.from_numpy(block.curve.forward(future.reshape(len(block.batch), -1).astype(np.float32))),
        torch.from_numpy(predicted.spread),
    )
    direction, _ = labels(change, thresholds)
    right: np.ndarray = direction.numpy() == predicted.direction
    return right
