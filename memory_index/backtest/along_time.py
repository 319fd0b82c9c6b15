"""Scores along time: how right forecasts were, and what their intervals covered, stretch after stretch of origins."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from memory_index.evaluation import ForecastBlock
from memory_index.metrics import uncertain

STRETCHES = 60  # at most


class Stretch(NamedTuple):
    """first, last: origins, datetime64[ns]. num_windows: of them with an observed value. mae: by arm, standardised.
    coverage: share of values between the outermost quantiles, without those that all quantiles were equal to; None if
    there is none.
    """

    first: np.datetime64
    last: np.datetime64
    num_windows: int
    mae: dict[str, float]
    coverage: float | None


@dataclass(slots=True)
class AlongTime:
    """Adds up blocks of forecasts. moments: datetime64[ns], all origins, ascending. unit: float64 [N]."""

    moments: np.ndarray
    unit: np.ndarray
    error: dict[str, np.ndarray] = field(default_factory=dict)
    num: np.ndarray = field(init=False)
    windows: np.ndarray = field(init=False)
    inside: np.ndarray = field(init=False)
    num_open: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.num, self.windows, self.inside, self.num_open = np.zeros((4, self.num_stretches), dtype=np.int64)

    @property
    def num_stretches(self) -> int:
        """Of about as many origins each."""
        return min(STRETCHES, len(self.moments))

    def add(self, block: ForecastBlock, forecasts: Mapping[str, np.ndarray]) -> None:
        """forecasts: by arm, [B, N, H]."""
        place = np.searchsorted(self.moments, block.asked.queries.origin)
        stretch = place * self.num_stretches // len(self.moments)
        known = np.isfinite(block.future) & block.asked.wanted[..., None]
        np.add.at(self.num, stretch, known.sum(axis=(1, 2)))
        np.add.at(self.windows, stretch, known.any(axis=2).sum(axis=1))
        unit = self.unit[block.asked.series][:, None]
        for name, values in forecasts.items():
            error = np.where(known, np.abs(values - block.future) / unit, 0.0)
            sums = self.error.setdefault(name, np.zeros(self.num_stretches))
            np.add.at(sums, stretch, error.sum(axis=(1, 2)))
        if len(block.levels) > 1:
            is_open = known & uncertain(block.quantiles, block.future)
            np.add.at(self.num_open, stretch, is_open.sum(axis=(1, 2)))
            inside = (block.future >= block.quantiles[..., 0]) & (block.future <= block.quantiles[..., -1]) & is_open
            np.add.at(self.inside, stretch, inside.sum(axis=(1, 2)))

    def stretches(self) -> list[Stretch]:
        """Those in which something was observed."""
        bounds = -(-np.arange(self.num_stretches + 1) * len(self.moments) // self.num_stretches)
        return [
            Stretch(
                first=self.moments[bounds[n]],
                last=self.moments[bounds[n + 1] - 1],
                num_windows=int(self.windows[n]),
                mae={name: float(sums[n] / self.num[n]) for name, sums in self.error.items()},
                coverage=float(self.inside[n] / self.num_open[n]) if self.num_open[n] else None,
            )
            for n in np.flatnonzero(self.num)
        ]
