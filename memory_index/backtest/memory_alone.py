"""The backtest of a memory alone: nothing is fitted again, but the memory grows and quantiles are recalibrated."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from memory_index.backtest.lived import Forecasts
from memory_index.bounds import BoundsOf
from memory_index.calibration import calibrated, usual_errors
from memory_index.evaluation import MEMORY_ONLY
from memory_index.leakage import Policy
from memory_index.memory import Memory, raw_units
from memory_index.memory_only import MemoryOptions, block_forecasts
from memory_index.queries import QueryBlock, query_blocks
from memory_index.tables.series import SeriesTable
from memory_index.versions.manifest import Manifest


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """Implements `lived.AskedBlock`: forecasts are there when neighbours are. missing: bool [B, N], without any."""

    asked: QueryBlock
    by_arm: dict[str, np.ndarray]
    quantiles: np.ndarray
    missing: np.ndarray

    def forecast(self, moments: np.ndarray) -> Forecasts:
        """See `lived.AskedBlock`."""
        return Forecasts(
            {name: values[moments] for name, values in self.by_arm.items()},
            self.quantiles[moments],
            int(self.missing[moments].sum()),
        )

    def note(self, moments: np.ndarray, future: np.ndarray, update: np.ndarray) -> None:
        """Nothing is learned."""


@dataclass(frozen=True, kw_only=True)
class MemoryAlone:
    """Implements `lived.Subject`. memory: with all windows that any origin may see (`versions/grown.py`)."""

    memory: Memory
    options: MemoryOptions

    @property
    def arm(self) -> str:
        """See `lived.Subject`."""
        return MEMORY_ONLY

    @property
    def horizon(self) -> int:
        """See `lived.Subject`."""
        return self.memory.windows.spec.horizon

    @property
    def manifest(self) -> Manifest:
        """See `lived.Subject`."""
        return self.memory.manifest

    @property
    def units(self) -> Mapping[str, float]:
        """See `lived.Subject`."""
        return dict(zip(self.manifest.series_ids, map(float, raw_units(self.memory)), strict=True))

    @cached_property
    def bounds(self) -> BoundsOf:
        """See `lived.Subject`."""
        return BoundsOf(self.memory)

    def ask(self, table: SeriesTable, origins: list[np.ndarray], levels: tuple[float, ...]) -> Iterator[Found]:
        """See `lived.Subject`. Where a window has no neighbour, its forecast is the last value."""
        options, spec, known = self.options, self.memory.windows.spec, self.manifest.series_ids
        views, layout = self.memory.windows.views, self.manifest.covariate_layout
        usual = usual_errors(self.memory, options.k, scopes=options.scopes, views=options.views) if levels else None
        for asked in query_blocks(table, origins, spec, Policy.CAUSAL, known=known, views=views, layout=layout):
            found = self.memory.search(asked.queries, options.k, scopes=options.scopes, views=options.views)
            alone = block_forecasts(found)[MEMORY_ONLY]
            linear = self.memory.linear_forecast(asked.queries)
            yield Found(
                asked=asked,
                by_arm={MEMORY_ONLY: alone, "linear": linear},
                quantiles=calibrated(found, alone, levels, usual),
                missing=~np.any(found.valid, axis=(2, 3)) & asked.wanted,
            )

    def advance(self, update: int, at: np.datetime64) -> None:
        """Nothing is learned: which windows are known is a matter of each origin."""

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Nothing."""
        return {}

    def restore(self, arrays: dict[str, np.ndarray]) -> None:
        """Nothing."""
