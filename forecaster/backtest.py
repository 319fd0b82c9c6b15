"""The backtest of a run: its forecasts origin after origin, with a memory, a linear map and a gate that grow
(`memory_index/backtest/`, `growth/`).
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from forecaster.evaluate import forecasts_of
from forecaster.growth.growth import Growth
from forecaster.growth.operation import catch_up
from forecaster.growth.updates import read_growth
from forecaster.predictor import Predictor
from forecaster.retrieval.batches import LiveBlock, live_blocks, moments_of
from forecaster.runs.run import Run
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
    subject: OfRun, table: SeriesTable, plan: BacktestPlan, *, levels: tuple[float, ...] = ()
) -> pd.DataFrame:
    """The forecasts of a backtest as a long table: `unique_id, ds, cutoff, y, yhat` and one column per quantile.

    Rows are ordered by series, cutoff and time; times are in the table's own time zone. Raises what
    `lived.forecast_all` raises.
    """
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


def growing(
    run: Run,
    predictor: Predictor,
    memory: Memory,
    plan: BacktestPlan,
    *,
    half_life: float | None = None,
    report: Callable[[float, float | None], None] = lambda done, total: None,
) -> OfRun:
    """The backtest of a run of which linear map and gate go on too: at first, what is known by the first origin.

    predictor: of the run, as of the state that it begins with. memory: see `OfRun`. half_life: in steps, None forgets
    nothing. Raises `RunIncompatibleError` for a run that cannot go on.
    """
    _, growth = read_growth(run, predictor.state)
    growth.half_life = half_life
    predictor = replace(predictor, model=copy.deepcopy(predictor.model))
    growth.take_over(predictor.model, gate=False)
    catch_up(growth, predictor.model, memory, plan.updates[0], report)
    return OfRun(predictor=predictor, memory=memory, growth=growth, apart=_apart(plan))


def _apart(plan: BacktestPlan) -> float:
    """Steps between two origins of a series, as is usual in a plan."""
    between = np.concatenate([np.diff(rows) for rows in plan.origins])
    return float(np.median(between)) if len(between) else 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """Implements `lived.AskedBlock`."""

    predictor: Predictor
    memory: Memory
    table: SeriesTable
    block: LiveBlock
    levels: tuple[float, ...]
    growth: Growth | None = None
    apart: float = 1.0

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
        """See `lived.AskedBlock`: what the parts said is kept; what came is read from the memory when it is known."""
        if self.growth is not None:
            self.growth.note(self.predictor.model, moments_of(self.block, moments), self.apart)


@dataclass(frozen=True, kw_only=True)
class OfRun:
    """Implements `lived.Subject`. memory: with all windows that any origin may see (`versions/grown.py`).

    growth: of linear map and gate, None where they stand still. apart: see `Growth.note`.
    """

    predictor: Predictor
    memory: Memory
    growth: Growth | None = None
    apart: float = 1.0

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
            yield Found(
                predictor=self.predictor,
                memory=self.memory,
                table=table,
                block=block,
                levels=levels,
                growth=self.growth,
                apart=self.apart,
            )

    def advance(self, update: int, at: np.datetime64) -> None:
        """See `lived.Subject`: first the gate learns, then the map."""
        if self.growth is not None:
            if at > self.growth.until:
                self.growth.advance(self.memory, at)
            self.growth.take_over(self.predictor.model)

    def to_arrays(self) -> dict[str, np.ndarray]:
        """See `lived.Subject`."""
        return {} if self.growth is None else self.growth.to_arrays()

    def restore(self, arrays: dict[str, np.ndarray]) -> None:
        """See `lived.Subject`."""
        if self.growth is not None:
            self.growth.restore(arrays)
            self.growth.take_over(self.predictor.model)
