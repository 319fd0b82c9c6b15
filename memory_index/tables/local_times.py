"""Wall-clock times of a zone -> moments. The hour that a clock shows twice is told apart by the order of the rows.

What counts is the order within each series, whichever way its rows run: a table may be sorted by time or by series,
oldest or newest first.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from memory_index.tables.steps import is_coarse, step_of
from memory_index.windows import to_ns


def localized(local: np.ndarray, time_zone: str, step: str | None, groups: np.ndarray) -> np.ndarray:
    """Local times as UTC, NaT where a time is shown twice and its rows do not tell which is meant, or never.

    local: datetime64[ns] [n]. step: a pandas frequency, None if it is yet to be found; steps of a day or more begin as
    `Step` says. groups: int [n], the series of each row.
    """
    if step is None:
        step = "D" if is_coarse(np.unique(local[~np.isnat(local)])) else "h"
    counted, shown = step_of(step, time_zone), pd.DatetimeIndex(local)
    if not counted.is_fixed:
        return counted.named(shown)
    first, second = (
        to_ns(shown.tz_localize(time_zone, ambiguous=np.full(len(local), summer), nonexistent="NaT"))
        for summer in (True, False)
    )
    twice = (first != second) & ~np.isnat(first)
    if not twice.any():
        return first
    return _told_apart(local, first, second, groups)


def _told_apart(local: np.ndarray, first: np.ndarray, second: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Choose between the two moments of each time. All are datetime64[ns] [n] but groups, int [n].

    A run is what one series has of one such hour, in consecutive rows. The rows around it tell whether time runs on or
    back; where time jumps back once within the run, the second hour begins.
    """
    rows = np.flatnonzero(~np.isnat(first))
    rows = rows[np.argsort(groups[rows], kind="stable")]
    time, group, early, late = local[rows], groups[rows], first[rows], second[rows]
    twice, day = early != late, time.astype("datetime64[D]")
    joined = np.zeros(len(rows), dtype=bool)  # with the row before: both in one run
    joined[1:] = twice[1:] & twice[:-1] & (group[1:] == group[:-1]) & (day[1:] == day[:-1])
    start = np.flatnonzero(twice & ~joined)
    run = np.cumsum(twice & ~joined) - 1  # of each row; means nothing where ~twice
    last = np.flatnonzero(twice & ~np.append(joined[1:], False))
    ascending, known = _directions(time, group, start, last)
    sign = np.where(ascending, 1, -1)
    ahead = np.zeros(len(rows), dtype=bool)  # time does not run on from the row before
    moved = np.diff(time.astype(np.int64))
    ahead[1:] = joined[1:] & (moved * sign[run[1:]] <= 0)
    num_back = np.bincount(run[twice], weights=ahead[twice], minlength=len(start)).astype(int)
    back_before = np.cumsum(ahead)
    behind = (back_before - back_before[start][run]) > 0  # rows after the jump of their run
    use_late = np.where(ascending[run], behind, ~behind)
    chosen = np.where(use_late, late, early)
    clear = known & (num_back == 1) & _only_once(group[start], day[start])
    is_late, decided = _by_distance(early, late, group, start, last)
    decided &= known & (num_back == 0) & _only_once(group[start], day[start])
    chosen = np.where(twice & decided[run], np.where(is_late[run], late, early), chosen)
    clear |= decided
    chosen = np.where(twice & ~clear[run], np.datetime64("NaT"), chosen)
    result = first.copy()
    result[rows] = np.where(twice, chosen, early)
    return result


def _directions(
    time: np.ndarray, group: np.ndarray, start: np.ndarray, last: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(whether time runs on, whether that is known) around each run, bool [runs]: by the rows before and behind."""
    before, behind = np.maximum(start - 1, 0), np.minimum(last + 1, len(time) - 1)
    has_before = (start > 0) & (group[before] == group[start])
    has_behind = (last < len(time) - 1) & (group[behind] == group[last])
    on = (has_before & (time[before] < time[start])) | (has_behind & (time[behind] > time[last]))
    back = (has_before & (time[before] > time[start])) | (has_behind & (time[behind] < time[last]))
    return on, on != back


def _only_once(group: np.ndarray, day: np.ndarray) -> np.ndarray:
    """bool [runs]: whether a series has no other run of the same day, as it has where its rows are mixed up."""
    keys = pd.MultiIndex.from_arrays([group, day])
    return ~np.asarray(keys.duplicated(keep=False))


def _by_distance(
    early: np.ndarray, late: np.ndarray, group: np.ndarray, start: np.ndarray, last: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Which hour a run without a jump is of: the one that is a usual step away from the rows beside it.

    With steps of two hours the clock shows 00:00, 02:00, 03:00; or a series begins or ends within the hour.
    Returns (whether it is the second hour, whether only one of the two fits), bool [runs].
    """
    distances, counts = np.unique(np.abs(np.diff(early.astype(np.int64))), return_counts=True)
    usual = distances[counts.argmax()] if len(distances) else 0
    fits = []
    for moment in (early, late):
        fit = np.ones(len(start), dtype=bool)
        for own, beside in ((start, start - 1), (last, last + 1)):
            there = (beside >= 0) & (beside < len(early))
            beside = np.clip(beside, 0, len(early) - 1)
            there &= group[beside] == group[own]
            fit &= ~there | (np.abs((moment[own] - early[beside]).astype(np.int64)) == usual)
        fits.append(fit)
    return fits[1], fits[0] != fits[1]
