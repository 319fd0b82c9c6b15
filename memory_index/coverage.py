"""What a memory covers: how many windows it stores of each series along time, where there are none, and its borders.

How often they are retrieved is `usage.py`; what faults a table has that is not stored yet is `tables/checking.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from memory_index.local import LocalMemory
from memory_index.origins import steps_apart
from memory_index.windows import StoredWindows

MAX_STRETCHES = 240  # of time, all of one length: more would not be told apart in a picture


@dataclass(frozen=True, kw_only=True, slots=True)
class Gap:
    """Origins of one series between two stored windows that have none: from `first` to `last`, `num_windows` of them.

    Where no cell of a window may be missing (`WindowSpec.max_missing`), one missing value leaves out every window that
    would contain it: a gap of windows is then longer than that of values.
    """

    series_id: str
    first: np.datetime64
    last: np.datetime64
    num_windows: int


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Coverage:
    """Stored windows of N series in G stretches of time of one length.

    edges: datetime64[ns] [G + 1], stretch g holds origins from edges[g] until before edges[g + 1].
    num_windows: int64 [N, G]. most: int64 [G], the windows of a series that lacks none.
    first_value, last_value, first_origin, last_origin, first_known_at, last_known_at: datetime64[ns] [N], NaT where
    there is nothing. gaps: by series, then in time.
    train_until, val_until, test_until: last step of each part of the split, None where it has none.
    fitted_until: the last step that any fitted part saw.
    """

    series_ids: tuple[str, ...]
    edges: np.ndarray
    num_windows: np.ndarray
    most: np.ndarray
    first_value: np.ndarray
    last_value: np.ndarray
    first_origin: np.ndarray
    last_origin: np.ndarray
    first_known_at: np.ndarray
    last_known_at: np.ndarray
    gaps: tuple[Gap, ...]
    train_until: np.datetime64
    val_until: np.datetime64 | None
    test_until: np.datetime64 | None
    fitted_until: np.datetime64

    @property
    def share(self) -> np.ndarray:
        """float64 [N, G]: stored windows, as a share of those of a series that lacks none."""
        return np.minimum(self.num_windows / self.most, 1.0)


def coverage(memory: LocalMemory) -> Coverage:
    """Count what is stored; nothing is searched."""
    windows, split = memory.windows, memory.manifest.split
    num_series = len(windows.series_ids)
    rows = np.argsort(windows.series, kind="stable")  # by series, each in time order
    origin = windows.origin(rows)
    counts = np.bincount(windows.series, minlength=num_series)
    stride = windows.spec.stride * steps_apart(memory.manifest.schedule, windows.step)
    edges, most = _stretches(windows, origin, stride)
    place = windows.series[rows] * len(most) + np.searchsorted(edges, origin, side="right") - 1
    ends = np.cumsum(counts)
    return Coverage(
        series_ids=windows.series_ids,
        edges=edges,
        num_windows=np.bincount(place, minlength=num_series * len(most)).reshape(num_series, len(most)),
        most=most,
        first_value=_at(windows.times, windows.offset[:-1], np.diff(windows.offset) > 0),
        last_value=_at(windows.times, windows.offset[1:] - 1, np.diff(windows.offset) > 0),
        first_origin=_at(origin, ends - counts, counts > 0),
        last_origin=_at(origin, ends - 1, counts > 0),
        first_known_at=_at(windows.known_at[rows], ends - counts, counts > 0),
        last_known_at=_at(windows.known_at[rows], ends - 1, counts > 0),
        gaps=_gaps(windows, rows, stride),
        train_until=np.datetime64(split.train_until, "ns"),
        val_until=None if split.val_until is None else np.datetime64(split.val_until, "ns"),
        test_until=None if split.test_until is None else np.datetime64(split.test_until, "ns"),
        fitted_until=np.datetime64(memory.manifest.fitted_until, "ns"),
    )


def _stretches(windows: StoredWindows, origin: np.ndarray, stride: int) -> tuple[np.ndarray, np.ndarray]:
    """Edges [G + 1] of stretches that hold all origins, and how many windows of one series fit into each [G]."""
    num_steps = len(windows.step.until(origin.min(), origin.max()))
    width = -(-num_steps // MAX_STRETCHES)
    width += -width % stride
    starts = np.arange(0, num_steps, width)
    times = windows.step.range(origin.min(), num_steps + 1)
    return np.append(times[starts], times[-1]), -(-np.diff(np.append(starts, num_steps)) // stride)


def _at(times: np.ndarray, place: np.ndarray, there: np.ndarray) -> np.ndarray:
    """times at `place` [N], NaT where nothing is there."""
    return np.where(there, times[np.where(there, place, 0)], np.datetime64("NaT", "ns"))


def _gaps(windows: StoredWindows, rows: np.ndarray, stride: int) -> tuple[Gap, ...]:
    """rows: all rows by series, each in time order. stride: steps between two origins; a day on which the clock changes
    has one more or less, which is no gap.
    """
    series, origin_row = windows.series[rows], windows.origin_row[rows]
    before = np.flatnonzero((np.diff(series) == 0) & (np.diff(origin_row) >= 2 * stride))
    return tuple(
        Gap(
            series_id=windows.series_ids[series[place]],
            first=windows.times[windows.offset[series[place]] + origin_row[place] + stride],
            last=windows.times[windows.offset[series[place]] + origin_row[place + 1] - stride],
            num_windows=int((origin_row[place + 1] - origin_row[place]) // stride - 1),
        )
        for place in before
    )
