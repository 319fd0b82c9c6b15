"""The backtest of a run: its forecasts origin after origin, with a memory that grows (`memory_index/backtest/`)."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from forecaster.predictor import Predictor, memory_fan
from forecaster.retrieval.batches import LiveBlock, live_blocks
from forecaster.runs.intervals import MemoryFan
from memory_index.backtest.kept import KeptForecasts
from memory_index.backtest.lived import Forecasts, forecast_all, forecast_blocks
from memory_index.backtest.plan import BacktestPlan
from memory_index.evaluation import MEMORY_ONLY, MODEL
from memory_index.long_tables import forecast_frame
from memory_index.memory import Memory
from memory_index.neighbours import mean_over_spaces
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
    """Implements `lived.AskedBlock`. fan: what the memory says by itself, None without one."""

    predictor: Predictor
    memory: Memory
    block: LiveBlock
    fan: MemoryFan | None
    levels: tuple[float, ...]

    @property
    def asked(self) -> QueryBlock:
        """See `lived.AskedBlock`."""
        return self.block.asked

    def forecast(self, moments: np.ndarray) -> Forecasts:
        """See `lived.AskedBlock`."""
        num_series, horizon = len(self.asked.series), self.predictor.config.model.horizon
        shape = (len(moments), num_series, horizon)
        flat = (moments[:, None] * num_series + np.arange(num_series)).ravel()
        batch = self.block.batch.take(flat)
        predicted = self.predictor.predict(batch)
        by_arm = {MODEL: predicted.forecast.reshape(shape)}
        if predicted.linear is not None:
            by_arm["linear"] = predicted.linear.reshape(shape)
        condensed, num_without = None, 0
        if self.block.condensed is not None:
            condensed = self.block.condensed.take(flat)
            by_space = np.where(condensed.found[..., None], condensed.forecasts, np.nan)[None]
            alone = mean_over_spaces(by_space).reshape(shape)
            last = self.asked.queries.context[moments, :, -1:]
            by_arm[MEMORY_ONLY] = np.where(np.isnan(alone), last, alone)
            without = ~condensed.found.any(axis=1).reshape(shape[:2])
            num_without = int((without & self.asked.wanted[moments]).sum())
        width = self.predictor.width(self.memory, condensed, spread=predicted.spread, unit=batch.unit.numpy())
        series_ids = [*map(str, self.asked.queries.series_id)] * len(moments)
        fan = None if self.fan is None else MemoryFan(self.fan.levels[flat], self.fan.center[flat])
        quantiles = self.predictor.intervals.quantiles(predicted.forecast, width, series_ids, self.levels, fan)
        return Forecasts(by_arm, quantiles.reshape(*shape, len(self.levels)), num_without)

    def note(self, moments: np.ndarray, future: np.ndarray, update: np.ndarray) -> None:
        """Nothing is learned."""


@dataclass(frozen=True, kw_only=True, slots=True)
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

    def ask(self, table: SeriesTable, origins: list[np.ndarray], levels: tuple[float, ...]) -> Iterator[Found]:
        """See `lived.Subject`."""
        config, units = self.predictor.config, self.predictor.units
        for block in live_blocks(self.memory, table, origins, config.model, config.train.memory_k, units):
            fan = None
            if block.found is not None:
                fan = memory_fan(block.found, block.condensed, levels, config.model.horizon)
            yield Found(predictor=self.predictor, memory=self.memory, block=block, fan=fan, levels=levels)

    def advance(self, update: int, at: np.datetime64) -> None:
        """Nothing is learned."""

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Nothing."""
        return {}

    def restore(self, arrays: dict[str, np.ndarray]) -> None:
        """Nothing."""
