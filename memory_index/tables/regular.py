"""Rows of a series -> values on a regular grid: order, duplicates, stray times, gaps, missing cells, filling.

Whatever is found is noted as a fault unless `ReadOptions` says how to resolve it; what was then done is counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd

from memory_index.covariates import Covariate, CovariateValues
from memory_index.errors import ResourceError
from memory_index.tables.clock_changes import zone_of_change
from memory_index.tables.columns import ReadOptions
from memory_index.tables.covariate_columns import on_grid
from memory_index.tables.problems import Problem, ProblemLog
from memory_index.tables.ranges import LARGEST
from memory_index.tables.series import Series
from memory_index.tables.steps import grid_positions
from memory_index.windows import Step

FILL_FIX = "keep, ffill or interpolate"
NO_VALUE_FIX = "drop, ffill or interpolate"
KEPT = "nothing to do, since what is missing counts for nothing; or fill it: {} ffill"
DONE = {  # what becomes of missing cells
    "keep": "stay missing",
    "drop": "stay missing, and no window that touches one is used",
    "ffill": "to be filled by ffill",
    "interpolate": "to be filled by interpolate",
}


@dataclass(kw_only=True)
class Grid:
    """What the passes over the blocks of one file share: the step, the options, the log, counts of changes."""

    step: Step
    options: ReadOptions
    log: ProblemLog
    changes: Counter[str] = field(default_factory=Counter)
    columns: tuple[Covariate, ...] = ()  # beside the targets
    shared_times: dict[tuple[int, int], np.ndarray] = field(default_factory=dict)
    seen: np.ndarray | None = None  # datetime64[ns] [n], ascending: all times of all series
    position: np.ndarray | None = None  # int64 [n]: of each of them on the grid, -1 beside it

    @classmethod
    def over(
        cls,
        blocks: Sequence[Block],
        step: Step,
        options: ReadOptions,
        log: ProblemLog,
        columns: tuple[Covariate, ...] = (),
    ) -> Grid:
        """The grid of several series: the times of all are placed on it at once, so that each is only looked up."""
        grid = cls(step=step, options=options, log=log, columns=columns)
        if len(blocks) > 1:
            seen = np.sort(pd.unique(np.concatenate([block.times for block in blocks])))
            position = grid_positions(seen, step)
            return replace(grid, seen=seen, position=position)
        return grid

    def positions(self, times: np.ndarray) -> np.ndarray:
        """int64 [n]: steps from the first of these times on the grid, -1 beside it. times: ascending, distinct."""
        if self.seen is not None and self.position is not None:
            position = self.position[np.searchsorted(self.seen, times)]
            if position[0] >= 0 and position.min() >= 0:
                return position - position[0]
        return grid_positions(times, self.step)  # a series may lie on a grid of its own, half a step beside the others

    def times(self, start: np.datetime64, num_steps: int) -> np.ndarray:
        """`num_steps` times from a time on, one array for all series that have the same."""
        key = int(start.astype(np.int64)), num_steps
        if key not in self.shared_times:
            self.shared_times[key] = self.step.range(start, num_steps)
        return self.shared_times[key]


@dataclass(frozen=True, kw_only=True, slots=True)
class Block:
    """Series that share their rows: all of a wide table, one of a long one.

    times: datetime64[ns] [n]. values: float64 [num_series, n], NaN where missing. row_number: int64 [n].
    unreadable: bool [num_series, n], missing cells that are noted already (text that is no number). covariates: float64
    [C, n], what stands beside the targets, NaN where missing; None where nothing does.
    """

    series_ids: tuple[str, ...]
    times: np.ndarray
    values: np.ndarray
    row_number: np.ndarray
    unreadable: np.ndarray
    covariates: np.ndarray | None = None

    def take(self, rows: np.ndarray | slice) -> Block:
        """The same series at some of the rows, in their order."""
        return replace(
            self,
            times=self.times[rows],
            values=self.values[:, rows],
            row_number=self.row_number[rows],
            unreadable=self.unreadable[:, rows],
            covariates=None if self.covariates is None else self.covariates[:, rows],
        )


def regular(block: Block, grid: Grid) -> Iterator[tuple[Series, CovariateValues | None]]:
    """The series of a block on the regular grid from its first to its last time, and what stands beside each.

    Where covariates stand beside them, rows after the last target value are the future: of the covariates alone.
    """
    block = _one_row_per_time(_sorted(block, grid), grid)
    position = grid.positions(block.times)
    stray = np.flatnonzero(position < 0)
    if len(stray):
        what = f"the time is not on the grid of the step '{grid.step.frequency}'"
        fix = "correct the time, or name another step with --step"
        if grid.log.count["mixed-offsets"] and not grid.step.is_fixed:
            fix = f"if days begin by local time, name its zone: --time-zone Europe/Berlin; else {fix}"
        _note_rows(block, stray, grid, "off-step", what, fix)
        block, position = block.take(position >= 0), position[position >= 0]
    if len(position) == 0:
        return
    beside, start = None, block.times[0]
    if block.covariates is not None:
        beside = _beside(block, position, grid)
        num_rows = _num_target_rows(block)
        block, position = block.take(slice(num_rows)), position[:num_rows]
    num_steps = int(position[-1]) + 1
    _refuse_too_long(block, num_steps, len(block.series_ids), grid)
    if num_steps == len(position):
        values, absent = block.values, np.zeros(num_steps, dtype=bool)
    else:
        _note_gaps(block, position, grid)
        values = np.full((len(block.series_ids), num_steps), np.nan)
        values[:, position] = block.values
        absent = np.ones(num_steps, dtype=bool)
        absent[position] = False
    times = grid.times(start, num_steps)
    values = _note_missing(block, values, position, grid)
    for series_id, row in zip(block.series_ids, values, strict=True):
        filled = _filled(times, row, absent, grid)
        held = np.flatnonzero(~np.isnan(filled[::-1]))  # what is empty behind the last value is not there yet
        num_held = num_steps - int(held[0]) if len(held) else num_steps
        yield Series(series_id=series_id, times=grid.times(start, num_held), values=filled[:num_held]), beside


def _refuse_too_long(block: Block, num_steps: int, num_columns: int, grid: Grid) -> None:
    if num_steps * num_columns > grid.options.max_cells:
        start, end = grid.step.isoformat(block.times[0]), grid.step.isoformat(block.times[-1])
        raise ResourceError(
            f"{grid.log.source}: from {start} to {end} there are {num_steps} steps of '{grid.step.frequency}', "
            f"more than the limit of {grid.options.max_cells} cells",
            hint="correct a stray time stamp, or name a longer step with --step",
        )


def _num_target_rows(block: Block) -> int:
    """Rows up to the last one with a target value; all of them where there is none."""
    held = np.flatnonzero((~np.isnan(block.values) | block.unreadable).any(axis=0))
    return int(held[-1]) + 1 if len(held) else len(block.times)


def _beside(block: Block, position: np.ndarray, grid: Grid) -> CovariateValues:
    """The covariates of a block on the grid; several values of a static column are noted."""
    assert block.covariates is not None, "there are some"
    num_target = int(position[_num_target_rows(block) - 1]) + 1
    _refuse_too_long(block, int(position[-1]) + 1, len(grid.columns), grid)
    laid, several = on_grid(grid.columns, block.covariates, position, num_target)
    for number in several:
        values = block.covariates[number]
        held = np.flatnonzero(~np.isnan(values))
        name, place = grid.columns[number].name, int(held[values[held] != values[held[0]]][0])
        message = f"the static column '{name}' has several values in this series"
        fix = "give it one value; if it changes with time, it is known or observed, not static"
        _note_rows(block, np.array([place]), grid, "static", message, fix, column=name)
    return CovariateValues(times=grid.times(block.times[0], laid.shape[1]), values=laid)


def _sorted(block: Block, grid: Grid) -> Block:
    back = np.flatnonzero(np.diff(block.times) < np.timedelta64(0, "ns")) + 1
    if len(back) == 0:
        return block
    message = f"times go back here (rows where they do: {len(back)}); the rows were sorted"
    _note_rows(block, back[:1], grid, "unsorted", message, "nothing to do", note=True)
    return block.take(np.argsort(block.times, kind="stable"))


def _one_row_per_time(block: Block, grid: Grid) -> Block:
    """Resolve rows with the same time as `on_duplicate` says; keep the first where it says `error`."""
    first = np.flatnonzero(np.concatenate([[True], block.times[1:] != block.times[:-1]]))
    if len(first) == len(block.times):
        return block
    extra = np.setdiff1d(np.arange(len(block.times)), first)
    policy = grid.options.on_duplicate
    values = block.values if block.covariates is None else np.concatenate([block.values, block.covariates])
    later, earlier = values[:, extra], values[:, extra - 1]
    same = ((later == earlier) | (np.isnan(later) & np.isnan(earlier))).all(axis=0)
    if policy in ("error", "same"):
        _note_twice(block, extra, same, grid)
    if policy == "same" and same.any():
        grid.changes["rows that say the same as one before were left out (--on-duplicate same)"] += int(same.sum())
    elif policy not in ("error", "same"):
        resolved = f"rows with a time that was there already{{}} were resolved by --on-duplicate {policy}"
        for what, num in (("", int(same.sum())), (", but with another value,", int((~same).sum()))):
            if num:
                grid.changes[resolved.format(what)] += num
    if policy == "mean":
        mean = _mean_of_rows(block.values, first)
        kept = block.take(first)
        if block.covariates is not None:
            kept = replace(kept, covariates=_means(block.covariates, first, grid))
        return replace(kept, values=mean)
    return block.take(np.append(first[1:] - 1, len(block.times) - 1) if policy == "last" else first)


def _note_twice(block: Block, extra: np.ndarray, same: np.ndarray, grid: Grid) -> None:
    """Note rows (numbers `extra`) whose time an earlier row has, unless they are resolved.

    Those that say the same have an advice of their own, which resolves no others: these may be an hour that clocks show
    twice.
    """
    twice = block.times[extra]
    what = "the time is there twice, with {} values (before in row {})"
    kinds = [
        ("conflict", extra[~same], "different", "correct the time, or keep one: --on-duplicate first, last or mean")
    ]
    if grid.options.on_duplicate == "error":
        kinds.insert(0, ("duplicate", extra[same], "the same", "one of both says all: --on-duplicate same"))
    for kind, chosen, word, todo in kinds:

        def message_at(place: int, word: str = word) -> str:
            return what.format(word, block.row_number[place - 1])

        def fix_at(place: int, todo: str = todo) -> str:
            same_hour = twice[twice.astype("datetime64[h]") == block.times[place].astype("datetime64[h]")]
            return _clocks_fix(same_hour, grid) + todo

        _note_rows(block, chosen, grid, kind, message_at, fix_at)


def _mean_of_rows(values: np.ndarray, first: np.ndarray) -> np.ndarray:
    """values: [N, n] -> [N, len(first)]: means of the rows from each first one to the next, missing ones left out."""
    num = np.add.reduceat((~np.isnan(values)).astype(np.int64), first, axis=1)
    total = np.add.reduceat(np.nan_to_num(values, nan=0.0, posinf=np.inf, neginf=-np.inf), first, axis=1)
    return np.divide(total, num, out=np.full(total.shape, np.nan), where=num > 0)


def _means(covariates: np.ndarray, first: np.ndarray, grid: Grid) -> np.ndarray:
    """The mean of numbers, the first of booleans and categories, which have none."""
    are_numbers = np.array([column.kind == "number" for column in grid.columns])[:, None]
    return np.where(are_numbers, _mean_of_rows(covariates, first), covariates[:, first])


def _note_rows(
    block: Block,
    places: np.ndarray,
    grid: Grid,
    kind: str,
    message: str | Callable[[int], str],
    fix: str | Callable[[int], str],
    *,
    note: bool = False,
    column: str | None = None,
) -> None:
    series_id = block.series_ids[0] if len(block.series_ids) == 1 else None

    def problem_at(place: int) -> Problem:
        return Problem(
            kind=kind,
            series_id=series_id,
            at=grid.step.isoformat(block.times[place]),
            row=int(block.row_number[place]),
            message=message if isinstance(message, str) else message(place),
            fix=fix if isinstance(fix, str) else fix(place),
            severity="note" if note else "fault",
            column=column,
        )

    grid.log.add_at(places, len(places), problem_at, kind=kind, series=block.series_ids[:1] if series_id else ())


def _note_gaps(block: Block, position: np.ndarray, grid: Grid) -> None:
    jump = np.diff(position)
    before = np.flatnonzero(jump > 1)
    policy = grid.options.on_gap
    if policy != "error":
        grid.changes[f"steps without a row {DONE[policy]} (--on-gap {policy})"] += int((jump[before] - 1).sum())
    if policy not in ("error", "keep"):
        return
    series_id = block.series_ids[0] if len(block.series_ids) == 1 else None

    def problem_at(place: int) -> Problem:
        missing = grid.step.range(block.times[place], int(jump[place]) + 1)[1:-1]
        at, until = grid.step.isoformat(missing[0]), grid.step.isoformat(missing[-1])
        count = "1 step is" if len(missing) == 1 else f"{len(missing)} steps are"
        message = f"{count} missing after this row" + ("" if len(missing) == 1 else f", up to {until}")
        return Problem(
            kind="gap",
            series_id=series_id,
            at=at,
            row=int(block.row_number[place]),
            message=message,
            fix=_clocks_fix(missing, grid) + (KEPT.format("--on-gap") if policy == "keep" else f"--on-gap {FILL_FIX}"),
            severity="note" if policy == "keep" else "fault",
        )

    grid.log.add_at(before, len(before), problem_at, kind="gap", series=block.series_ids)


def _clocks_fix(times: np.ndarray, grid: Grid) -> str:
    """What to do first about times that are there twice or not at all, if they may be the hour of a clock change.

    times: datetime64[ns] [n], ascending. Empty unless they are the whole steps of an hour that some zone changes.
    """
    if grid.step.time_zone is not None:
        return ""
    hour = times[0].astype("datetime64[h]")
    whole = grid.step.range(hour.astype("datetime64[ns]"), len(times) + 1)
    if whole[-1] - whole[0] != np.timedelta64(1, "h") or not np.array_equal(times, whole[:-1]):
        return ""
    zone = zone_of_change(hour)
    return (
        f"if these are local times, clocks were changed then in {zone}: --time-zone {zone}; otherwise " if zone else ""
    )


def _note_missing(block: Block, values: np.ndarray, position: np.ndarray, grid: Grid) -> np.ndarray:
    """Note cells of existing rows without a value that float32 can hold, and make them missing. values: [N, T]."""
    policy = grid.options.on_nan
    finite = np.isfinite(block.values)
    if finite.all() and np.abs(block.values).max(initial=0) <= LARGEST:
        return values
    infinite = np.isinf(block.values)
    too_large = np.abs(block.values, where=finite, out=np.zeros_like(block.values)) > LARGEST
    kinds = {"missing": ~finite & ~infinite & ~block.unreadable, "infinite": infinite, "too large": too_large}
    for kind, cells in kinds.items():
        number, place = np.nonzero(cells)
        if len(number) and policy != "error" and (policy != "keep" or kind == "missing"):
            grid.changes[f"{kind} cells {DONE[policy]} (--on-nan {policy})"] += len(number)
            if policy != "keep":
                continue

        def problem_at(each: int, kind: str = kind, number: np.ndarray = number, place: np.ndarray = place) -> Problem:
            at, row = grid.step.isoformat(block.times[place[each]]), int(block.row_number[place[each]])
            message, fix = (
                f"the value is {kind}",
                KEPT.format("--on-nan") if policy == "keep" else f"--on-nan {FILL_FIX}",
            )
            if kind == "infinite":
                value = repr(float(block.values[number[each], place[each]]))
                fix = f"if it means no value: --missing {value}, or --on-nan {NO_VALUE_FIX} for all such cells"
            if kind == "too large":
                value = repr(float(block.values[number[each], place[each]]))
                message = f"the value {value} is too large for float32 ({LARGEST:.3g}), in which windows are kept"
                fix = f"if it means no value: --missing {value}, or --on-nan {NO_VALUE_FIX} for all such cells"
            return Problem(
                kind=kind.replace(" ", "-"),
                series_id=block.series_ids[number[each]],
                at=at,
                row=row,
                message=message,
                fix=fix,
                severity="note" if policy == "keep" and kind == "missing" else "fault",
            )

        series = [block.series_ids[each] for each in np.unique(number)]
        grid.log.add_at(range(len(number)), len(number), problem_at, kind=kind.replace(" ", "-"), series=series)
    return np.where(np.abs(values) > LARGEST, np.nan, values)


def _filled(times: np.ndarray, values: np.ndarray, absent: np.ndarray, grid: Grid) -> np.ndarray:
    """values with gaps and missing cells filled as asked for. absent: bool [T], steps that had no row."""
    missing = np.isnan(values)
    observed = np.flatnonzero(~missing)
    if not missing.any() or len(observed) == 0:
        return np.ascontiguousarray(values)
    inside = np.zeros(len(values), dtype=bool)
    inside[observed[0] : observed[-1]] = True
    asked = np.zeros(len(values), dtype=bool)
    filled = values.copy()
    for policy in ("interpolate", "ffill"):
        cells = missing & ((absent & (grid.options.on_gap == policy)) | (~absent & (grid.options.on_nan == policy)))
        asked |= cells
        cells &= inside
        if policy == "interpolate":
            ticks = (times - times[0]).astype(np.float64)
            filled[cells] = np.interp(ticks[cells], ticks[observed], values[observed])
        else:
            last = np.maximum.accumulate(np.where(missing, 0, np.arange(len(values))))
            filled[cells] = values[last[cells]]
    if (asked & ~inside).any():
        grid.changes["of these cells lie before the first or after the last value of a series and stay missing"] += int(
            (asked & ~inside).sum()
        )
    return filled
