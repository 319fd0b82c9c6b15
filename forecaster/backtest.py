"""The backtest of a run: its forecasts origin after origin, with a memory that grows (`memory_index/backtest/`)."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from forecaster.evaluate import forecasts_of
from forecaster.predictor import Predictor
from forecaster.retrieval.batches import LiveBlock, live_blocks, moments_of
from memory_index.backtest.kept import KeptForecasts
from memory_index.backtest.lived import Forecasts, forecast_all, forecast_blocks
from memory_index.backtest.plan import BacktestPlan
from memory_index.bounds import BoundsOf
from memory_index.evaluation import MEMORY_ONLY, MODEL
from memory_index.long_tables import forecast_frame
from memory_index.memory import Memory
from memory_index.queries import QueryBlock
from memory_index.tables.series import SeriesTable
from memory_index.versions.manifest import Manifest


def cross_validation_frame(
    predictor: Predictor, memory: Memory, table: SeriesTable, plan: BacktestPlan, *, levels: tuple[float, ...] = ()
) -> pd.DataFrame:
    """The forecasts of a backtest as a long table: `unique_id, ds, cutoff, y, yhat` and one column per quantile.

    memory: with all windows that any origin may see. Rows are ordered by series, cutoff and time; times are in the
    table's own time zone. Raises what `lived.forecast_all` raises.
    """
    subject = OfRun(predictor=predictor, memory=memory)
    with tempfile.TemporaryDirectory(prefix="backtest-") as folder:
        kept = KeptForecasts(Path(folder), {})
        forecast_all(subject, table, plan, kept, levels=levels)
        parts = []
        for block in forecast_blocks(subject, table, kept, levels=levels):
            frame = forecast_frame(table, block.asked, block.forecast, levels, block.quantiles)
            b, n = np.nonzero(block.asked.wanted)
            cutoffs = table.step.local(np.repeat(block.asked.queries.origin[b], subject.horizon))
            frame.insert(2, "cutoff", cutoffs)
            frame.insert(3, "y", block.future[b, n].ravel())
            parts.append(frame)
    result = pd.concat(parts).rename_axis("number").reset_index().sort_values(["number", "cutoff", "ds"], kind="stable")
    return result.drop(columns="number").reset_index(drop=True)


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """Implements `lived.AskedBlock`."""

    predictor: Predictor
    memory: Memory
    table: SeriesTable
    block: LiveBlock
    levels: tuple[float, ...]

    @property
    def asked(self) -> QueryBlock:
        """See `lived.AskedBlock`."""
        return self.block.asked

    def forecast(self, moments: np.ndarray) -> Forecasts:
        """See `lived.AskedBlock`."""
        block, levels = moments_of(self.block, moments), self.levels
        predicted = self.predictor.predict(block.batch)
        every = forecasts_of(self.predictor, self.memory, self.table, block, predicted)
        by_arm = {name: every[name] for name in (MODEL, "linear", MEMORY_ONLY) if name in every}
        quantiles = self.predictor.quantiles(self.memory, block, predicted, levels)
        num_without = 0
        if block.condensed is not None:
            without = ~block.condensed.found.any(axis=1).reshape(block.asked.wanted.shape)
            num_without = int((without & block.asked.wanted).sum())
        return Forecasts(by_arm, quantiles.reshape(*every[MODEL].shape, len(levels)), num_without)

    def note(self, moments: np.ndarray, future: np.ndarray, update: np.ndarray) -> None:
        """Nothing is learned."""


@dataclass(frozen=True, kw_only=True)
class OfRun:
    """Implements `lived.Subject`. memory: with all windows that any origin may see (`versions/grown.py`)."""

    predictor: Predictor
    memory: Memory

    @property
    def arm(self) -> str:
        """See `lived.Subject`."""
        return MODEL

    @property
    def horizon(self) -> int:
        """See `lived.Subject`."""
        return self.predictor.config.model.horizon

    @property
    def manifest(self) -> Manifest:
        """See `lived.Subject`."""
        return self.memory.manifest

    @property
    def units(self) -> Mapping[str, float]:
        """See `lived.Subject`."""
        return self.predictor.units

    @cached_property
    def bounds(self) -> BoundsOf:
        """See `lived.Subject`."""
        return BoundsOf(self.memory)

    def ask(self, table: SeriesTable, origins: list[np.ndarray], levels: tuple[float, ...]) -> Iterator[Found]:
        """See `lived.Subject`."""
        config, units = self.predictor.config, self.predictor.units
        for block in live_blocks(self.memory, table, origins, config.model, config.train.memory_k, units):
            yield Found(predictor=self.predictor, memory=self.memory, table=table, block=block, levels=levels)

    def advance(self, update: int, at: np.datetime64) -> None:
        """Nothing is learned."""

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Nothing."""
        return {}

    def restore(self, arrays: dict[str, np.ndarray]) -> None:
        """Nothing."""
