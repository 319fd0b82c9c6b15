"""Splits: which steps are for training, validation and test, as times stored in the version.

A split is made once, when a version is built, and travels with it. It holds the time of the last step of
each part, so that it means the same for a table that has grown since.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from memory_index.errors import DataError, UsageError
from memory_index.origins import Schedule, scheduled
from memory_index.tables.series import SeriesTable
from memory_index.windows import Step, WindowSpec, origin_rows

ETT_HOURLY_ROWS = (8640, 2880, 2880)  # 12, 4 and 4 months of 30 days: the ETT benchmark's convention
DEFAULT_SPLIT = "70/10/20"


@dataclass(frozen=True, kw_only=True, slots=True)
class Split:
    """Times (ISO 8601, UTC or naive) of the last step of each part; None where a part is empty.

    Steps up to `train_until` are for training, then up to `val_until` for validation, then up to
    `test_until` for the test; what comes later is unused.
    """

    name: str
    train_until: str
    val_until: str | None
    test_until: str | None

    def bounds(self, part: str) -> tuple[np.datetime64 | None, np.datetime64]:
        """(last time before the part or None, last time of the part), datetime64[ns].

        Raises `UsageError` for an unknown part and `DataError` for one that this split leaves empty.
        """
        ends = {"train": self.train_until, "val": self.val_until, "test": self.test_until}
        if part not in ends:
            raise UsageError(f"unknown part '{part}' of a split", hint="choose train, val or test")
        until = ends[part]
        if until is None:
            raise DataError(
                f"the split '{self.name}' of this version has no {part} part",
                hint="build with --split, or with --until and --val-until",
            )
        before = {"train": None, "val": self.train_until, "test": self.val_until or self.train_until}[part]
        return (None if before is None else np.datetime64(before, "ns")), np.datetime64(until, "ns")


def split_by_name(name: str, times: np.ndarray) -> Split:
    """A split by rows. times: datetime64[ns] [T], ascending, all time stamps of the table.

    `ett-hourly` takes the first 8640/2880/2880 rows. `A/B/C` are percentages that sum to 100: exactly
    `int(A/100 * T)` training and `int(C/100 * T)` test rows, validation the rest (docs/method.md).
    """
    if name == "ett-hourly":
        num_train, num_val, num_test = ETT_HOURLY_ROWS
        if len(times) < num_train + num_val + num_test:
            raise DataError(
                f"the split 'ett-hourly' needs {sum(ETT_HOURLY_ROWS)} rows, but the table has {len(times)}",
                hint="use --split 70/10/20",
            )
    else:
        match = re.fullmatch(r"(\d+)/(\d+)/(\d+)", name)
        percent = [int(part) for part in match.groups()] if match else []
        if sum(percent) != 100 or percent[0] == 0:
            raise UsageError(
                f"'{name}' is not a split", hint="three percentages that sum to 100 such as 70/10/20, or ett-hourly"
            )
        num_train, num_test = int(percent[0] / 100 * len(times)), int(percent[2] / 100 * len(times))
        num_val = len(times) - num_train - num_test
    ends = np.cumsum([num_train, num_val, num_test])
    if num_train == 0:
        raise DataError(
            f"the split '{name}' leaves no training rows in a table of {len(times)}", hint="use a longer table"
        )
    until = [str(times[end - 1]) for end in ends]
    return Split(
        name=name,
        train_until=until[0],
        val_until=until[1] if num_val else None,
        test_until=until[2] if num_test else None,
    )


def split_until(until: str, val_until: str | None, times: np.ndarray, step: Step) -> Split:
    """Everything known up to a time, or to the `end` of the table, is training.

    until, val_until: `end`, or as `Step.parse` reads them. Without `val_until` there is no validation or test part;
    with it, validation ends there and the rest of the table is the test part. times: as in `split_by_name`. step: the
    table's.
    """
    first, last = times[0], times[-1]
    train = last if until == "end" else step.parse(until)
    if train < first:
        raise DataError(
            f"--until {step.isoformat(train)} is before the table's first step {step.isoformat(first)}",
            hint=f"choose a time up to {step.isoformat(last)}",
        )
    train = min(train, last)
    val = None if val_until is None else last if val_until == "end" else min(step.parse(val_until), last)
    if val is not None and val <= train:
        raise UsageError(
            f"--val-until {val_until} leaves no validation part behind --until {until}",
            hint=f"the training part ends at {step.isoformat(train)}, the table at {step.isoformat(last)}",
        )
    return Split(
        name="until",
        train_until=str(train),
        val_until=None if val is None else str(val),
        test_until=str(last) if val is not None and val < last else None,
    )


def part_origins(
    table: SeriesTable,
    spec: WindowSpec,
    split: Split,
    part: str,
    *,
    delay: int = 0,
    schedule: Schedule | None = None,
    views: tuple[int, ...] = (),
) -> list[np.ndarray]:
    """Origin rows of every window whose whole future lies in one part, per series (int64 arrays).

    Stride 1; the lookback may reach back into the part before (docs/method.md). Windows of which too much is missing
    are left out (`windows.origin_rows`). delay: steps after which a value is published; with it, only windows that are
    known by the part's end. schedule: only the origins that it has; raises as `origins.scheduled` does. views: those of
    the memory.
    """
    before, until = split.bounds(part)
    every = table.rule(spec).scored()
    chosen = []
    for series in table.series:
        rows = origin_rows(series.values, every, views=views)
        future_end, future_start = series.times[rows + spec.horizon], series.times[rows + 1]
        keep = table.step.add(future_end, delay) <= until
        if before is not None:
            keep &= future_start > before
        chosen.append(rows[keep])
    return chosen if schedule is None else scheduled(table, chosen, schedule)


def require_origins(
    table: SeriesTable,
    spec: WindowSpec,
    split: Split,
    part: str,
    *,
    delay: int = 0,
    schedule: Schedule | None = None,
    views: tuple[int, ...] = (),
) -> list[np.ndarray]:
    """What `part_origins` gives. Raises `DataError` if that is no window at all."""
    origins = part_origins(table, spec, split, part, delay=delay, schedule=schedule, views=views)
    if not any(len(rows) for rows in origins):
        raise DataError(
            f"{table.source} has no whole window of {spec.lookback} + {spec.horizon} steps in the {part} part "
            "of the split",
            hint="give the whole table, as it was when the version was built; if it is, build a version with a longer "
            "part (--split, --until, --val-until) or a shorter --horizon",
        )
    return origins


def num_moments(table: SeriesTable, origins: list[np.ndarray]) -> int:
    """How many different times there are among the origins of all series."""
    return len(np.unique(np.concatenate([s.times[rows] for s, rows in zip(table.series, origins, strict=True)])))
