"""Which windows of a part are asked: every one that is known by its end, thinned, with its fold."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from forecaster.retrieval.folds import NO_FOLDS, FoldPlan, Folds, lay_folds
from memory_index.memory import Memory
from memory_index.splits import require_origins
from memory_index.tables.series import SeriesTable

FAN_CELLS = 250_000  # steps of windows whose quantiles are kept, about: intervals are calibrated on them


@dataclass(frozen=True, kw_only=True, slots=True)
class AskedWindows:
    """n windows of a part, in time order. origins: their origin rows per series. series, origin_row: [n]. folds: over
    them.
    """

    origins: list[np.ndarray]
    series: np.ndarray
    origin_row: np.ndarray
    folds: Folds

    def __len__(self) -> int:
        return len(self.series)

    @property
    def fold(self) -> np.ndarray:
        """int8 [n], of each window."""
        return self.folds.number


class Places:
    """Which of the asked windows lies where."""

    def __init__(self, table: SeriesTable, asked: AskedWindows) -> None:
        """Room for every step of the table."""
        self.offset = np.cumsum([0, *(len(series) for series in table.series)])
        self.number = np.full(self.offset[-1], -1, dtype=np.int64)
        self.number[self.offset[asked.series] + asked.origin_row] = np.arange(len(asked))

    def numbers(self, series: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """int64 [B, N]: the window of each series (int [N]) at each origin row ([B, N]); -1 for what is not asked."""
        return self.number[self.offset[series] + rows]


def part_windows(
    memory: Memory, table: SeriesTable, part: str, *, horizon: int, stride: int = 1, folds: FoldPlan = NO_FOLDS
) -> AskedWindows:
    """Every window that is known by the end of a part, on the version's schedule, thinned by the stride, with its fold;
    in time order (origin, then series).

    horizon: the model's. Raises `DataError` if there is no window.
    """
    window, split = memory.manifest.window, memory.manifest.split
    when, views = memory.manifest.schedule, memory.windows.views
    spec, delay = window.scored(horizon), window.known_delay
    every = require_origins(table, spec, split, part, delay=delay, schedule=when, views=views)
    origins = [rows[::stride] for rows in every]
    counts = [len(rows) for rows in origins]
    series = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
    times = np.concatenate([part.times[rows] for part, rows in zip(table.series, origins, strict=True)])
    order = np.lexsort((series, times))
    return AskedWindows(
        origins=origins,
        series=series[order],
        origin_row=np.concatenate(origins)[order].astype(np.int64),
        folds=lay_folds(folds, times[order], series[order]),
    )


def fan_windows(times: np.ndarray, horizon: int) -> np.ndarray:
    """Which windows' quantiles are kept, int64 ascending: all windows of moments that are spread evenly over time.

    times: origins of the windows, [n].
    """
    distinct, moment = np.unique(times, return_inverse=True)
    wanted = max(1, FAN_CELLS * len(distinct) // max(1, len(times) * horizon))
    kept = np.unique(np.linspace(0, len(distinct) - 1, min(wanted, len(distinct))).round().astype(np.int64))
    return np.flatnonzero(np.isin(moment, kept))


def origin_times(table: SeriesTable, series: np.ndarray, origin_row: np.ndarray) -> np.ndarray:
    """datetime64[ns] [n]: origin of each window."""
    offset = np.cumsum([0, *(len(each) for each in table.series)])
    times = np.concatenate([each.times for each in table.series])
    return times[offset[series] + origin_row]
