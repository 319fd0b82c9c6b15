"""Scoring a trained model: every window of a part of the split, asked live under `causal`, beside plain baselines."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch

from forecaster.model.tapr import labels, trend_change
from forecaster.predictor import Predicted, Predictor
from forecaster.retrieval.batches import LiveBlock, live_blocks
from memory_index.baselines import baseline_forecasts
from memory_index.memory import Memory
from memory_index.memory_only import BASELINES, standard_units
from memory_index.metrics import Score, ScoreSum
from memory_index.neighbours import mean_over_spaces
from memory_index.queries import futures_of
from memory_index.splits import num_moments, require_origins
from memory_index.tables.series import SeriesTable
from memory_index.windows import WindowSpec

COVERAGE_LEVELS = (0.1, 0.5, 0.9)
GATE_BINS = 1000

Report = Callable[[float, float | None], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Distribution:
    """How a number in [0, 1] is distributed, to a thousandth."""

    mean: float
    p10: float
    p50: float
    p90: float


@dataclass(frozen=True, kw_only=True, slots=True)
class RunEvaluation:
    """Scores of every window of one part of a split, in standardised units; see `memory_index.memory_only.Evaluation`.

    direction_accuracy: share of windows whose direction (up, flat, down) TAPR told; None without TAPR. gate: of all
    windows and steps, 1 trusts the model, 0 the memory. feature_gate: of GRA-M's gating of features, one per window.
    coverage: share of values at or below each quantile (`q0.1`). baselines: None where one cannot be made. in_sample:
    whether the part is one of training or validation, or what was fitted has seen steps later than some origin.
    """

    part: str
    num_windows: int
    num_series: int
    num_scored: int
    num_without_neighbours: int
    mse: float
    mae: float
    direction_accuracy: float | None
    gate: Distribution | None
    feature_gate: Distribution | None
    coverage: dict[str, float]
    baselines: dict[str, Score | None]
    by_space: dict[str, Score]
    in_sample: bool
    seconds: float


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
class _Tally:
    """What is added up over the blocks of an evaluation."""

    scores: dict[str, ScoreSum] = field(default_factory=dict)
    gate: Histogram = field(default_factory=Histogram)
    feature_gate: Histogram = field(default_factory=Histogram)
    below: np.ndarray = field(default_factory=lambda: np.zeros(len(COVERAGE_LEVELS), dtype=np.int64))
    num_values: int = 0
    num_right: int = 0
    num_without: int = 0
    done: int = 0


def evaluate(
    predictor: Predictor,
    memory: Memory,
    table: SeriesTable,
    part: str = "test",
    *,
    report: Report = lambda done, total: None,
) -> RunEvaluation:
    """Score the model's forecast of every window of a part (`train`, `val`, `test`) of the version's split.

    Bounded memory: one block of moments at a time. The windows are those of the memory's lookback, so that models of
    any lookback are scored on the same ones. Raises `DataError` (no such part, no window in it).
    """
    started, config = time.perf_counter(), predictor.config
    spec, manifest = memory.windows.spec, memory.manifest
    whole = WindowSpec(lookback=spec.lookback, horizon=config.model.horizon)
    origins = require_origins(table, whole, manifest.split, part)
    total = sum(len(rows) for rows in origins)
    unit = standard_units(predictor.units, table, manifest.split)
    tally, first_origin = _Tally(), np.datetime64("NaT", "ns")
    for block in live_blocks(memory, table, origins, config.model, config.train.memory_k, predictor.units):
        _add(tally, predictor, memory, table, block, unit)
        first_origin = np.fmin(first_origin, block.asked.queries.origin.min())
        report(tally.done, total)
    scores = {name: added.score() for name, added in tally.scores.items()}
    own = scores.pop("model")
    return RunEvaluation(
        part=part,
        num_windows=num_moments(table, origins),
        num_series=sum(len(rows) > 0 for rows in origins),
        num_scored=total,
        num_without_neighbours=tally.num_without,
        mse=own.mse,
        mae=own.mae,
        direction_accuracy=tally.num_right / total if config.model.use_tapr else None,
        gate=tally.gate.distribution(),
        feature_gate=tally.feature_gate.distribution(),
        coverage={
            f"q{level:g}": int(n) / tally.num_values for level, n in zip(COVERAGE_LEVELS, tally.below, strict=True)
        },
        baselines={name: scores.pop(name, None) for name in BASELINES},
        by_space=scores,
        in_sample=part != "test" or bool(first_origin < max(manifest.fitted_known_at, predictor.seen_until)),
        seconds=time.perf_counter() - started,
    )


def _add(
    tally: _Tally, predictor: Predictor, memory: Memory, table: SeriesTable, block: LiveBlock, unit: np.ndarray
) -> None:
    asked, horizon = block.asked, predictor.config.model.horizon
    context, wanted = asked.queries.context, asked.wanted
    shape = (*wanted.shape, horizon)
    future = futures_of(table, asked, horizon)
    predicted = predictor.predict(block.batch)
    forecasts = {"model": predicted.forecast.reshape(shape), **baseline_forecasts(context, horizon, table.step)}
    if predicted.linear is not None:
        forecasts["linear"] = predicted.linear.reshape(shape)
    if block.condensed is not None and block.found is not None:
        by_space = np.where(block.condensed.found[..., None], block.condensed.forecasts, np.nan)
        by_space = by_space.reshape(*wanted.shape, *by_space.shape[1:])  # [B, N, V, H]
        alone = mean_over_spaces(by_space)
        forecasts["memory_only"] = np.where(np.isnan(alone), context[..., -1:], alone)
        for number, record in enumerate(memory.manifest.spaces):
            if record.space in block.found.spaces:
                each = by_space[:, :, number]
                forecasts[str(record.space)] = np.where(np.isnan(each), context[..., -1:], each)
        tally.num_without += int((~block.condensed.found.any(axis=1).reshape(wanted.shape) & wanted).sum())
        tally.gate.add(predicted.gate[wanted.ravel()])
    for name, values in forecasts.items():
        tally.scores.setdefault(name, ScoreSum()).add(values, future, unit[asked.series], wanted)
    if predicted.feature_gate is not None:
        tally.feature_gate.add(predicted.feature_gate[wanted.ravel()])
    _add_coverage(tally, predictor, memory, block, predicted, future)
    if predicted.direction is not None:
        tally.num_right += _num_right(predictor, block, predicted, future)
    tally.done += int(wanted.sum())


def _add_coverage(
    tally: _Tally, predictor: Predictor, memory: Memory, block: LiveBlock, predicted: Predicted, future: np.ndarray
) -> None:
    horizon, wanted = future.shape[2], block.asked.wanted.ravel()
    levels = predictor.quantiles(memory, block, predicted, COVERAGE_LEVELS)
    inside = future.reshape(-1, horizon)[wanted][..., None] <= levels[wanted]
    tally.below += inside.sum(axis=(0, 1))
    tally.num_values += inside.shape[0] * horizon


def _num_right(predictor: Predictor, block: LiveBlock, predicted: Predicted, future: np.ndarray) -> int:
    """Windows whose direction TAPR told."""
    assert predictor.model.tapr is not None, "asked only with TAPR"
    thresholds = predictor.model.tapr.thresholds.cpu()
    change = trend_change(
        block.batch.context,
        torch.from_numpy(future.reshape(len(block.batch), -1).astype(np.float32)),
        torch.from_numpy(predicted.spread),
    )
    direction, _ = labels(change, thresholds)
    return int(((direction.numpy() == predicted.direction) & block.asked.wanted.ravel()).sum())
