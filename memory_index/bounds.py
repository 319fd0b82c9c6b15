"""Bounds of forecasts: no forecast and no quantile leaves them.

Those that somebody gives, and 0 for counts: series whose training values are whole numbers not below zero. That these
are counts is told by the training part and by the window that a forecast is made from, by nothing later. A step of the
season at which a series is always 0 stays at 0 (`closed.py`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from memory_index.baselines import PLAIN
from memory_index.closed import Closed, closed_steps
from memory_index.errors import UsageError
from memory_index.memory import Memory
from memory_index.tables.series import SeriesTable
from memory_index.transforms import may_count
from memory_index.types import Queries

BLOCK = 1 << 22  # values looked at at once


@dataclass(frozen=True, kw_only=True, slots=True)
class Bounds:
    """What no value can be below or above, raw units. lower None: 0 for counts, nothing for others; `-inf`: nothing,
    and no step is held at 0 because it always was.

    Raises `UsageError` for bounds that leave nothing.
    """

    lower: float | None = None
    upper: float | None = None

    def __post_init__(self) -> None:
        for name in ("lower", "upper"):
            if (value := getattr(self, name)) is not None and math.isnan(value):
                raise UsageError(f"{name} is not a number", hint="leave it out for no bound")
        if self.lower is not None and self.upper is not None and self.lower > self.upper:
            raise UsageError(
                f"lower is {self.lower:g}, above upper {self.upper:g}", hint="give the smaller one as lower"
            )


class BoundsOf:
    """Bounds for the series of a memory."""

    def __init__(self, memory: Memory, bounds: Bounds | None = None) -> None:
        self.memory, self.bounds = memory, bounds or Bounds()

    @cached_property
    def counts(self) -> np.ndarray:
        """bool [N_v]: which series of the version are counts, by their training values."""
        windows = self.memory.windows
        until = np.datetime64(self.memory.manifest.fitted_until, "ns")
        other = np.zeros(len(windows.series_ids), dtype=bool)
        for start in range(0, len(windows.values), BLOCK):
            part = slice(start, start + BLOCK)
            found = np.flatnonzero(~may_count(windows.values[part]) & (windows.times[part] <= until)) + start
            other[np.searchsorted(windows.offset, found, side="right") - 1] = True
        return ~other

    def kept(self, queries: Queries, values: np.ndarray) -> np.ndarray:
        """Forecasts [B, N, H] or quantiles [B, N, H, Q] of queries, raw units, within the bounds of each."""
        if (closed := self.closed(queries)) is not None:
            at_zero = closed.zero.reshape(*closed.zero.shape, *(1,) * (values.ndim - 3))
            values = np.where(at_zero, np.zeros((), values.dtype), values)
        return self._clipped(queries, values)

    def kept_arms(self, queries: Queries, by_arm: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Forecasts [B, N, H] by name; no step of plain ones, which others are compared with, is held at 0."""
        return {
            name: (self._clipped if name in PLAIN else self.kept)(queries, values) for name, values in by_arm.items()
        }

    def _clipped(self, queries: Queries, values: np.ndarray) -> np.ndarray:
        upper = math.inf if self.bounds.upper is None else self.bounds.upper
        if self.bounds.lower is not None:
            lower: np.ndarray | float = self.bounds.lower
        elif not (at_zero := self._at_zero(queries)).any():
            lower = -math.inf
        else:
            lower = np.where(at_zero, min(0.0, upper), -math.inf).reshape(*at_zero.shape, *(1,) * (values.ndim - 2))
        if np.ndim(lower) == 0 and lower == -math.inf and upper == math.inf:
            return values
        return np.clip(values, lower, upper).astype(values.dtype)

    def closed(self, queries: Queries) -> Closed | None:
        """Steps at which the series of queries are always 0, or never observed; None where there are none."""
        if self.bounds.lower == -math.inf:
            return None
        known = tuple(n for n, each in enumerate(self.memory.manifest.covariates) if each.role == "known")
        windows = self.memory.windows
        return closed_steps(queries, windows.step.season, windows.spec.horizon, known)

    def said(self, table: SeriesTable) -> str:
        """What a person should know: which series of a table are kept at 0 or above without being asked; or empty."""
        if self.bounds.lower is not None:
            return ""
        numbers = self.memory.windows.numbers_of(np.array(table.series_ids))
        names = [name for name, n in zip(table.series_ids, numbers, strict=True) if n >= 0 and self.counts[n]]
        if not names:
            return ""
        which = f"'{names[0]}'" + (f" and {len(names) - 1} more" if len(names) > 1 else "")
        verb = "are counts" if len(names) > 1 else "is a count"
        return (
            f"{which} {verb} (training values are whole numbers, none below 0): forecasts and quantiles are kept at 0 "
            "or above; --lower=-inf lets them go"
        )

    def _at_zero(self, queries: Queries) -> np.ndarray:
        """bool [B, N]: queries of counts. A series that the version has never seen is told by its context alone."""
        series = self.memory.windows.numbers_of(queries.series_id)
        known = (series < 0) | self.counts[np.maximum(series, 0)]
        if not known.any():
            return np.zeros(queries.context.shape[:2], dtype=bool)
        found: np.ndarray = known & may_count(queries.context).all(axis=-1)
        return found
