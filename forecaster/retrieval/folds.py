"""Cross-fitting: what feeds the model on a window was fitted on windows that tell nothing of its future.

Folds are contiguous blocks of time, or groups of series where a table is a panel too short for blocks. A fit for a
block of time keeps off its windows by `gap` steps between two origins: lookback + horizon, so that no step is shared,
or the horizon alone where a table is too short for that: then no step of a *future* is shared, which is what a fit
could have learned by heart. As many folds are made as the table needs for every fit to keep half of the windows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from memory_index.errors import DataError
from memory_index.windows import Step

Kind = Literal["time", "series", "none"]

ENOUGH = 0.5  # share of the windows that every fit should keep
LEAST = 0.2  # with less than that nothing is fitted that could be trusted
NUM_FOLDS = (3, 5, 10)  # blocks of time to try, the fewest first: each asks the memory keys of its own
NUM_GROUPS = 5  # of series
LEAST_SERIES = 10  # from so many on, groups of series can stand in for blocks of time


@dataclass(frozen=True, kw_only=True, slots=True)
class FoldPlan:
    """How windows are held out. num: folds, 0 for the kind `none`. gap: steps that a fit keeps off a block of time."""

    kind: Kind
    num: int = 0
    gap: int = 0

    def __str__(self) -> str:
        if self.kind == "series":
            return f"{self.num} groups of series"
        return f"{self.num} blocks of time, {self.gap} steps apart" if self.kind == "time" else "no folds"

    def to_dict(self) -> dict[str, Any]:
        """In terms of JSON."""
        return asdict(self)


NO_FOLDS = FoldPlan(kind="none")


@dataclass(frozen=True, kw_only=True)
class Folds:
    """A plan laid over the n windows of a training part.

    number: int8 [n], the fold of each window; -1 without folds. bounds: first and last origin of each block of time.
    """

    plan: FoldPlan
    number: np.ndarray
    bounds: tuple[tuple[np.datetime64, np.datetime64], ...] = ()

    def admitted(self, fold: int, times: np.ndarray, series: np.ndarray | int, step: Step) -> np.ndarray:
        """Which windows what serves a fold may be fitted on: bool [m].

        times: origins of any windows, datetime64[ns] [m]. series: numbers of their series in the table, or one number.
        """
        if self.plan.kind == "series":
            return np.broadcast_to(np.asarray(series) % self.plan.num != fold, times.shape)
        first, last = self.bounds[fold]
        return off_block(times, step, first=first, last=last, length=self.plan.gap)


def plan_folds(
    times: np.ndarray, series: np.ndarray, step: Step, *, lookback: int, horizon: int, num_folds: int | None = None
) -> FoldPlan:
    """How the windows of a training part are best held out.

    times, series: origin and number of the series of each, [n]. num_folds: blocks of time that were asked for, 1 for
    none; None tries what the table allows.
    """
    if num_folds == 1 or len(times) < 2:
        return NO_FOLDS
    distinct = np.unique(times)
    whole = lookback + horizon
    tried = NUM_FOLDS if num_folds is None else (num_folds,)
    plans = [FoldPlan(kind="time", num=num, gap=gap) for gap in (whole, horizon) for num in tried]
    kept = [_share_kept(plan, distinct, times, step) for plan in plans]
    for plan, share in zip(plans, kept, strict=True):
        if share >= (ENOUGH if num_folds is None else LEAST):
            return plan
    if num_folds is None and len(np.unique(series)) >= LEAST_SERIES:
        return FoldPlan(kind="series", num=NUM_GROUPS)
    best = int(np.argmax(kept))
    return plans[best] if kept[best] >= LEAST else NO_FOLDS


def lay_folds(plan: FoldPlan, times: np.ndarray, series: np.ndarray) -> Folds:
    """A plan over windows; see `plan_folds`."""
    number = np.full(len(times), -1, dtype=np.int8)
    if plan.kind == "series":
        return Folds(plan=plan, number=(series % plan.num).astype(np.int8))
    bounds = tuple(time_blocks(times, plan.num)) if plan.kind == "time" else ()
    for fold, (first, last) in enumerate(bounds):
        number[(times >= first) & (times <= last)] = fold
    return Folds(plan=plan, number=number, bounds=bounds)


def _share_kept(plan: FoldPlan, distinct: np.ndarray, times: np.ndarray, step: Step) -> float:
    """Of the windows, that the fit of the fold that keeps the fewest has; 0 for more blocks than times."""
    if len(distinct) < plan.num:
        return 0.0
    return min(
        float(off_block(times, step, first=first, last=last, length=plan.gap).mean())
        for first, last in time_blocks(times, plan.num)
    )


def time_blocks(times: np.ndarray, num_blocks: int) -> list[tuple[np.datetime64, np.datetime64]]:
    """First and last time of each of `num_blocks` contiguous blocks of the distinct times, datetime64[ns].

    Raises `DataError` if there are fewer distinct times than blocks.
    """
    distinct = np.unique(times)
    if len(distinct) < num_blocks:
        raise DataError(
            f"there are windows at {len(distinct)} times only, too few for {num_blocks} blocks to cross-fit over",
            hint="lower num_folds, or give a longer training part",
        )
    return [(block[0], block[-1]) for block in np.array_split(distinct, num_blocks)] if num_blocks else []


def off_block(times: np.ndarray, step: Step, *, first: np.datetime64, last: np.datetime64, length: int) -> np.ndarray:
    """Which origins lie `length` steps or more off the origins of a block: bool, shape of `times`.

    times: of origins, datetime64[ns]. first, last: the block's first and last origin.
    """
    before, after = step.add(np.array([first]), -length)[0], step.add(np.array([last]), length)[0]
    return (times <= before) | (times >= after)


def origins_of(series: Sequence[np.ndarray]) -> np.ndarray:
    """datetime64[ns] [n]: what stands in several arrays of times, end to end."""
    return np.concatenate(list(series)) if series else np.empty(0, dtype="datetime64[ns]")
