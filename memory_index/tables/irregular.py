"""Times without a step that can be counted on: what to call them, what to do. Gaps of a regular step are `regular.py`.

A step that was found, and not named, must fill half of its grid: months stamped on the 15th are not days with thirty
gaps after each.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

import numpy as np
import pandas as pd

from memory_index.errors import DataError
from memory_index.tables.problems import Guess, Problem, ProblemLog
from memory_index.tables.regular import Block
from memory_index.tables.steps import ONE_DAY, Fit, best_fit, grid_positions, is_coarse, step_of
from memory_index.windows import Step, to_ns

SPARSE = 0.1  # share of a grid from which on it is worth naming, although most of it is empty
LONGER = 2  # times as far apart as the others' rows: then a series may have a step of its own


def inferred_step(blocks: Sequence[Block], time_zone: str | None, log: ProblemLog) -> Step:
    """The step of the longest series, if it is regular and no other series has another. Raises `DataError`."""
    longest = max(blocks, key=lambda block: len(block.times))
    distinct = np.unique(longest.times)
    fit = best_fit(distinct, time_zone)
    series_id = longest.series_ids[0] if len(longest.series_ids) == 1 else None
    if fit is None or not fit.is_regular:
        message, fix = _described(distinct, time_zone, fit)
        guess = _any_step(distinct, fit)
        log.stop(Problem(kind="step", series_id=series_id, message=message, fix=fix, guess=guess))
    _refuse_mixed(blocks, longest, distinct, fit.step, log)
    return fit.step


def named_step(name: str, blocks: Sequence[Block], time_zone: str | None, log: ProblemLog) -> Step:
    """The step that a user named. Raises `DataError` if half of the longest series' times do not lie on its grid."""
    step, num_off = step_of(name, time_zone), 0
    longest = max(blocks, key=lambda block: len(block.times))
    times = np.unique(longest.times)
    with suppress(DataError):  # a moment that the zone does not have: told where the grid is made
        num_off = int((grid_positions(times, step) < 0).sum())
    if num_off and 2 * num_off >= len(times):
        _refuse_off_grid(longest, times, num_off, step, log)
    return step


def _refuse_off_grid(block: Block, times: np.ndarray, num_off: int, step: Step, log: ProblemLog) -> None:
    shown, frequency = step.isoformat(times[0]), step.frequency
    message = f"{num_off} of {len(times)} times, such as {shown}, are not on the grid of the step '{frequency}'"
    fit, fix = best_fit(times, step.time_zone), "correct the times, or name another step with --step"
    if (calendar := _calendar(step.clock(times))) is not None:
        message, fix = f"{message}: {calendar[0]}", calendar[1]
    elif fit is not None and fit.is_regular:
        fix = f"name the step that they have: --step {fit.step.frequency}; or correct the times"
    series_id = block.series_ids[0] if len(block.series_ids) == 1 else None
    guess = _any_step(times, fit)
    log.stop(Problem(kind="off-step", series_id=series_id, message=message, fix=fix, guess=guess))


def _any_step(times: np.ndarray, fit: Fit | None) -> Guess:
    """A step to read on with, on whose grid these times lie."""
    return () if fit is None else (("step", "D" if is_coarse(times) else fit.step.frequency),)


def _described(times: np.ndarray, time_zone: str | None, fit: Fit | None) -> tuple[str, str]:
    """(what is known of the step of these times, what to do)."""
    clock = Step(frequency="D", time_zone=time_zone)
    first, last = clock.isoformat(times[0]), clock.isoformat(times[-1])
    if fit is None:
        fix = "name the step with --step (a pandas frequency), or give more rows"
        return f"the time column has one time stamp only, {first}", fix
    calendar = _calendar(clock.clock(times))
    none = f"the time column has no regular step, from {first} to {last}"
    if calendar is not None:
        return f"{none}: {calendar[0]}", calendar[1]
    apart = np.diff(times.astype(np.float64))
    widest, frequency = int(apart.argmax()), fit.step.frequency
    if apart[widest] > apart.sum() / 2 and fit.on_grid >= 0.5 and len(times) > 2:
        gap = f"from {clock.isoformat(times[widest])} to {clock.isoformat(times[widest + 1])} there is no row"
        fix = f"correct a stray time stamp; or, if '{frequency}' is the step, say so: --step {frequency}"
        return f"most of the time has no row: {gap}", fix
    if fit.filled >= SPARSE and fit.on_grid >= 0.5:
        on = grid_positions(times, fit.step)
        num = int(on.max()) + 1
        return (
            f"{none}: '{frequency}' fits best, but {int((on >= 0).sum())} of its {num} steps have a row",
            f"if that is the step, say so: --step {frequency}; else name another with --step, or resample the data",
        )
    return none, "name the step with --step (a pandas frequency), or resample the data to one"


def _calendar(wall: pd.DatetimeIndex) -> tuple[str, str] | None:
    """(the name of a calendar that people use and pandas does not find, what to do); None for others.

    wall: local times, ascending, distinct.
    """
    if len(wall) < 4:
        return None
    days = np.unique(np.round(np.diff(to_ns(wall).astype(np.float64)) / ONE_DAY)).astype(int)
    shortest, longest = int(days.min()), int(days.max())
    of_month = np.unique(wall.day)
    if shortest >= 28 and longest <= 31 and len(of_month) == 1:
        such = f"{wall[0]:%Y-%m}-01 for {wall[0]:%Y-%m-%d}"
        todo = f"write the first day of each month instead ({such}) and read it with --step MS, or resample the data"
        return f"they are months that are stamped on day {of_month[0]}", todo
    if shortest >= 28 and longest <= 35 and (days % 7 == 0).all():
        return (
            "they are periods of 4 and 5 weeks, as in a 4-4-5 calendar",
            "resample the data to weeks or months, and name these with --step if they are not found",
        )
    per_month = pd.Series(wall.year * 12 + wall.month).value_counts().max()
    if shortest >= 13 and longest <= 18 and per_month == 2:
        found = _half_months(wall)
        named = f"name it: --step {found}" if found else "name it with --step (SMS or SME)"
        return "they are half months", f"{named}, or resample the data to a step"
    if shortest >= 8 and longest <= 11 and len(of_month) == 3 and per_month == 3:
        shown = ", ".join(str(day) for day in of_month)
        return f"they are thirds of months, stamped on the days {shown}", "resample the data to days, weeks or months"
    return None


def _half_months(wall: pd.DatetimeIndex) -> str | None:
    """The pandas frequency of half months on whose grid all of these times lie."""
    days = [int(day) for day in np.unique(wall.day)]
    middle = [day for day in days if 2 <= day <= 27]
    for frequency in ("SMS", "SME", *(f"{kind}-{day}" for kind in ("SMS", "SME") for day in middle)):
        if (grid_positions(to_ns(wall), Step(frequency=frequency)) == np.arange(len(wall))).all():
            return frequency
    return None


def _refuse_mixed(blocks: Sequence[Block], longest: Block, distinct: np.ndarray, step: Step, log: ProblemLog) -> None:
    """Raise `DataError` for a series that is regular by itself, but on another step than the longest."""
    usual = float(np.median(np.diff(distinct).astype(np.int64)))
    for block in blocks:
        if block is longest or len(block.times) < 4:
            continue
        own = float(np.median(np.diff(block.times).astype(np.int64)))  # a hint; rows out of order are sorted below
        if usual / LONGER < own < LONGER * usual:
            continue
        fit = best_fit(np.unique(block.times), step.time_zone)
        if fit is not None and fit.is_regular and fit.step != step:
            ids = [each.series_ids[0] for each in (longest, block)]
            message = f"its step is '{fit.step.frequency}', but that of series '{ids[0]}' is '{step.frequency}'"
            fix = (
                f"give series of one step each: leave out the others with --ignore, or resample; --step "
                f"{step.frequency} reads '{ids[1]}' with missing steps"
            )
            guess = (("step", step.frequency),)
            log.stop(Problem(kind="step", series_id=ids[1], message=message, fix=fix, guess=guess))
