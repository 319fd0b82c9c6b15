"""Quantiles that follow what they cover: adaptive conformal inference, by series and interval.

    q'_l = q_l + offset_l * (q_0.9 - q_0.1),     offset_(1-l) = -offset_l
    offset_l <- offset_l + rate * w * (promised - covered) / 2,     l > 0.5

promised = 2l - 1, and covered is the share of values between q'_(1-l) and q'_l. So an interval widens while it covers
less than it says, and in the long run it covers its share, however the data drift. This is Gibbs and Candes, *Adaptive
conformal inference under distribution shift*, NeurIPS 2021, on the scale of the values, where it cannot saturate, as in
Angelopoulos, Candes and Tibshirani, *Conformal PID control for time series prediction*, NeurIPS 2023. Both ends move
alike: single levels that each follow their own share chase a level that is about to return, and lose more than they
gain (docs/experiments.md). The unit is the forecast's own width at that step. w: how many horizons of new targets an
update has seen, so that the many forecasts of one step, which err alike, count once.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from memory_index.metrics import uncertain

RATE = 0.05  # of a step, in widths for each horizon that has passed (docs/experiments.md)
OUTER = (0.1, 0.9)  # whose distance is the width
NEVER = -1  # number of the update that knows what none knows
LEAST_WIDTH = 1e-3  # in units of the series: agreeing neighbours have none


def levels_with(levels: tuple[float, ...]) -> tuple[float, ...]:
    """Levels, ascending, with what recalibrating them needs: the other end of each interval, and the outer ones."""
    return tuple(sorted({round(each, 12) for level in (*levels, *OUTER) for each in (level, 1 - level)}))


class Seen(NamedTuple):
    """What one update learns from, of each series: values at or below each level [N, Q], cells [N], and the first and
    last row of the table [N] that they are at.
    """

    below: np.ndarray
    num: np.ndarray
    first: np.ndarray
    last: np.ndarray


@dataclass(slots=True)
class Recalibration:
    """The offsets of N series at Q levels, float64 [N, Q], and what later updates will learn.

    levels: of all quantiles that it is given, made by `levels_with`. rate: see above; 0 leaves them as they are.
    """

    levels: tuple[float, ...]
    num_series: int
    horizon: int
    rate: float = RATE
    offset: np.ndarray = field(init=False)
    waiting: dict[int, Seen] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.offset = np.zeros((self.num_series, len(self.levels)))

    def applied(self, quantiles: np.ndarray, series: np.ndarray, unit: np.ndarray) -> np.ndarray:
        """Recalibrated quantiles, float32 [B, N, H, Q], ascending in each cell.

        quantiles: [B, N, H, Q], at all `levels`. series: int [N], their numbers. unit: float64 [N].
        """
        if not self.rate or not self.offset.any():
            return quantiles
        low, high = (self.levels.index(level) for level in OUTER)
        width = np.maximum(quantiles[..., high] - quantiles[..., low], LEAST_WIDTH * unit[:, None])
        moved = quantiles + width[..., None] * self.offset[series][:, None]
        return np.sort(moved, axis=-1).astype(np.float32)

    def observe(
        self,
        quantiles: np.ndarray,
        future: np.ndarray,
        wanted: np.ndarray,
        series: np.ndarray,
        row: np.ndarray,
        update: np.ndarray,
    ) -> None:
        """Note what was forecast, for the updates that will know what came.

        quantiles: [B, N, H, Q], as issued. future: [B, N, H], NaN where nothing was observed. wanted: bool [B, N].
        row: int64 [B, N], origin rows. update: int64 [B, H], number of the first that knows each step, or `NEVER`.
        """
        known = np.isfinite(future) & wanted[..., None] & uncertain(quantiles, future)
        below = (future[..., None] <= quantiles) & known[..., None]
        target = row[..., None] + np.arange(1, future.shape[2] + 1)
        for number in np.unique(update[update != NEVER]):
            cells = known & (update == number)[:, None]
            there = cells.any(axis=(0, 2))
            if not there.any():
                continue
            seen = self.waiting.setdefault(int(number), self._nothing())
            seen.below[series] += (below & cells[..., None]).sum(axis=(0, 2))
            seen.num[series] += cells.sum(axis=(0, 2))
            first = np.where(cells, target, np.iinfo(np.int64).max).min(axis=(0, 2))
            last = np.where(cells, target, -1).max(axis=(0, 2))
            seen.first[series] = np.minimum(seen.first[series], first)
            seen.last[series] = np.maximum(seen.last[series], last)

    def advance(self, update: int) -> None:
        """Learn, one after another, what all updates up to this one know."""
        for number in sorted(number for number in self.waiting if number <= update):
            seen = self.waiting.pop(number)
            there = seen.num > 0
            share = seen.below[there] / seen.num[there, None]
            span = np.minimum(seen.last[there] - seen.first[there] + 1, seen.num[there])
            missed = np.array(self.levels) - share
            step = self.rate * span[:, None] / self.horizon
            self.offset[there] += step * (missed - missed[:, ::-1]) / 2

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Everything, to go on from."""
        numbers = sorted(self.waiting)
        waiting = [self.waiting[number] for number in numbers] or [self._nothing()]
        parts = {name: np.stack([getattr(seen, name) for seen in waiting]) for name in Seen._fields}
        return {"offset": self.offset, "numbers": np.array(numbers, dtype=np.int64), **parts}

    def restore(self, arrays: dict[str, np.ndarray]) -> None:
        """Go on from what `to_arrays` gave."""
        self.offset = arrays["offset"].copy()
        self.waiting = {
            int(number): Seen(*(arrays[name][place].copy() for name in Seen._fields))
            for place, number in enumerate(arrays["numbers"])
        }

    def _nothing(self) -> Seen:
        below = np.zeros((self.num_series, len(self.levels)), dtype=np.int64)
        num, last = np.zeros(self.num_series, dtype=np.int64), np.full(self.num_series, -1)
        return Seen(below, num, np.full(self.num_series, np.iinfo(np.int64).max), last)
