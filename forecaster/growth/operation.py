"""Growth as in operation: what has become known since is forecast as it would have been, and then learned.

Time is cut into beats, a season or a quarter of the horizon, whichever is shorter, counted from the end of the training
part. On each beat the gate learns from the forecasts of origins that it knows by then, then the map from all windows.
Origins between two beats are forecast with the map of the first of them. So a state depends on its time alone: seven
daily updates go through the same beats as one weekly, in the same order.

The gate is told by every few origins (`gate_stride`): a window of H steps looks much like the one a step later. Behind
a memory with covariates no origin tells it here: what was known ahead of the last ones is not stored, and a state would
depend on how often it was updated. There the gate learns in backtests alone, whose tables have it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import numpy as np

from forecaster.growth.growth import Growth
from forecaster.model.model import ForecastModel
from forecaster.retrieval.batches import LiveBlock, live_blocks, moments_of
from forecaster.training.plan import smallest_stride
from memory_index.memory import Memory
from memory_index.origins import steps_apart
from memory_index.tables.series import Series, SeriesTable
from memory_index.windows import StoredWindows, origin_rows

Report = Callable[[float, float | None], None]

FORECASTS_A_HORIZON = 24  # origins that tell the gate, about, in the length of a horizon
MOMENTS, WINDOWS = 256, 4096  # asked at once: at most so many
GATE_SERIES = 64  # of a panel with more, each moment asks as many of them in turn


def beat_steps(horizon: int, season: int | None) -> int:
    """Steps between two beats."""
    return max(1, min(season if season is not None and season > 1 else horizon, horizon // 4))


def gate_stride(horizon: int, season: int | None) -> int:
    """Steps between two origins that tell the gate."""
    return smallest_stride(horizon / FORECASTS_A_HORIZON, season)


def catch_up(
    growth: Growth,
    model: ForecastModel,
    memory: Memory,
    until: np.datetime64,
    report: Report = lambda done, total: None,
) -> bool:
    """Learn everything up to the last beat that is not after a time; returns whether there was any beat.

    model: whose linear map is that of the growth, before and after; its gate is not touched. memory: which stores all
    that has happened by then; it is asked under `causal`. report: called with (beats done, all).
    """
    settings, step = growth.config.model, memory.windows.step
    beats = step.until(growth.trained.began_at, until)[:: beat_steps(settings.horizon, settings.season)]
    beats = beats[beats >= growth.until]
    if len(beats) < 2:
        return False
    table, done = table_of(memory.windows, tuple(growth.trained.series_weight)), 0
    stride = gate_stride(settings.horizon, settings.season)
    if (apart := steps_apart(memory.manifest.schedule, step)) > 1:
        stride = apart * -(-stride // apart)
    for stretch, blocks in _asked(growth, memory, table, beats, stride):
        for begin, end in itertools.pairwise(stretch):
            for block in blocks:
                origin = block.asked.queries.origin
                moments = np.flatnonzero((origin >= begin) & (origin < end))
                if len(moments):
                    growth.note(model, moments_of(block, moments), stride)
            growth.advance(memory, end)
            growth.take_over(model, gate=False)
            done += 1
            report(done, len(beats) - 1)
    return True


def table_of(windows: StoredWindows, series_ids: tuple[str, ...]) -> SeriesTable:
    """Some of the series that a memory stores."""
    numbers = [windows.series_number[name] for name in series_ids]
    parts = [slice(windows.offset[number], windows.offset[number + 1]) for number in numbers]
    return SeriesTable(
        step=windows.step,
        layout="long",
        series=tuple(
            Series(series_id=name, times=windows.times[part], values=windows.values[part].astype(np.float64))
            for name, part in zip(series_ids, parts, strict=True)
        ),
        source="the memory",
        whole_windows=windows.spec.max_missing == 0,
    )


def known_until(windows: StoredWindows, series_ids: tuple[str, ...], horizon: int) -> np.datetime64:
    """Up to when a memory holds these series, datetime64[ns]: the earliest of their last values.

    A series that is a horizon or more behind the newest has ended, and holds up nobody.
    """
    table = table_of(windows, series_ids)
    ends = np.array([each.times[np.flatnonzero(np.isfinite(each.values))[-1]] for each in table.series])
    behind = windows.step.add(np.array([ends.max()]), -horizon)[0]
    return np.datetime64(ends[ends > behind].min(), "ns")


def _asked(
    growth: Growth, memory: Memory, table: SeriesTable, beats: np.ndarray, stride: int
) -> Iterator[tuple[np.ndarray, list[LiveBlock]]]:
    """Consecutive beats, and the origins between them that tell the gate, asked at once."""
    settings = growth.config.model
    num = min(len(table.series), GATE_SERIES)
    origins = [np.empty(0, dtype=np.int64) for _ in table.series]
    if not memory.manifest.covariates:
        origins = [_telling(growth, memory, each, n, stride, beats) for n, each in enumerate(table.series)]
    moments = max(1, min(MOMENTS, WINDOWS // num))
    size = max(1, moments * stride // beat_steps(settings.horizon, settings.season))
    for start in range(0, len(beats) - 1, size):
        stretch = beats[start : start + size + 1]
        asked = []
        for rows, each in zip(origins, table.series, strict=True):
            times = each.times[rows]
            asked.append(rows[(times >= stretch[0]) & (times < stretch[-1])])
        blocks: list[LiveBlock] = []
        if any(len(rows) for rows in asked):
            k, units = growth.config.train.memory_k, growth.trained.units
            blocks = list(live_blocks(memory, table, asked, settings, k, units))
        yield stretch, blocks


def _telling(growth: Growth, memory: Memory, series: Series, number: int, stride: int, beats: np.ndarray) -> np.ndarray:
    """Rows of origins from the first beat to the last that tell the gate. number: of the series."""
    spec = memory.windows.spec.scored(growth.config.model.horizon)
    first, last = np.searchsorted(series.times, [beats[0], beats[-1]])
    low = max(0, int(first) - spec.lookback + 1)
    rows = low + origin_rows(series.values[low:last], spec, views=memory.windows.views, with_future=False)
    rows = growth.trained.thinned(rows[series.times[rows] >= beats[0]], series.times, memory, stride)
    moment = (rows - np.searchsorted(series.times, growth.trained.began_at)) // stride
    turns = -(-len(growth.trained.series_weight) // GATE_SERIES)
    return rows[(moment + number) % turns == 0]
