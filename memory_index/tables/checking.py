"""What a file is and everything that is wrong with it, for `cli data check`.

Faults stop every other command; notes (constant series, flat stretches, sorted rows, a few short series, no end of the
last line) do not, because a sensor that stands still or a table that is out of order may be meant.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from memory_index.errors import DataError
from memory_index.splits import DEFAULT_SPLIT, split_by_name
from memory_index.tables.columns import ReadOptions
from memory_index.tables.problems import Problem, ProblemLog
from memory_index.tables.reading import assemble
from memory_index.tables.series import COARSE_FIX, Series, SeriesTable, coarse

FLAT_STEPS = 48  # so many equal values in a row are worth a note: two days of an hourly table


@dataclass(frozen=True, kw_only=True, slots=True)
class SeriesSummary:
    """One series: first and last time (ISO 8601), steps on the grid, how many of them miss a value, range."""

    series_id: str
    start: str
    end: str
    num_steps: int
    num_missing: int
    minimum: float | None
    maximum: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class TableReport:
    """The result of `check_table`. layout and step are None, and series empty, if reading had to stop before.

    unlisted: how many more problems of a kind there are than `problems` lists.
    """

    file: str
    layout: str | None
    step: str | None
    time_zone: str | None
    num_rows: int | None
    series: tuple[SeriesSummary, ...]
    problems: tuple[Problem, ...]
    unlisted: dict[str, int]

    @property
    def ok(self) -> bool:
        """Whether there is no fault."""
        return all(problem.severity == "note" for problem in self.problems)

    def to_dict(self) -> dict[str, Any]:
        """The report as a JSON document: `series` are names, `summary` has their spans."""
        return {
            "file": self.file,
            "ok": self.ok,
            "layout": self.layout,
            "step": self.step,
            "time_zone": self.time_zone,
            "num_rows": self.num_rows,
            "series": [one.series_id for one in self.series],
            "summary": [asdict(one) for one in self.series],
            "problems": [asdict(problem) for problem in self.problems],
            "unlisted": self.unlisted,
        }


def check_table(
    path: str | Path,
    options: ReadOptions | None = None,
    *,
    lookback: int | None = None,
    horizon: int | None = None,
) -> TableReport:
    """Read a file and report every fault and note, at most `problems.MAX_LISTED` of a kind.

    lookback, horizon: steps of the windows that the table is meant for; a series with fewer steps is a
    note, and a fault if no series is long enough; one with fewer in the training part of the default split is a note.

    Raises `NotFoundError`, `UsageError` and `ResourceError` as `read_table` does, but not `DataError`.
    """
    log = ProblemLog(source=Path(path).name)
    try:
        table, num_rows = assemble(Path(path), options or ReadOptions(), log)
    except DataError:
        return _report(str(path), None, None, log)
    _note_short(table, (lookback or 0) + (horizon or 0), log)
    for series in table.series:
        _note_flat(series, table, log)
        _note_coarse(series, log)
    return _report(str(path), table, num_rows, log)


def _report(file: str, table: SeriesTable | None, num_rows: int | None, log: ProblemLog) -> TableReport:
    faults_first = sorted(log.listed, key=lambda problem: problem.severity == "note")  # stable
    return TableReport(
        file=file,
        layout=None if table is None else table.layout,
        step=None if table is None else table.step.frequency,
        time_zone=None if table is None else table.step.time_zone,
        num_rows=num_rows,
        series=() if table is None else _summaries(table),
        problems=tuple(faults_first),
        unlisted=log.unlisted,
    )


def _summaries(table: SeriesTable) -> tuple[SeriesSummary, ...]:
    isoformat = cache(table.step.isoformat)  # thousands of series share a few ends
    summaries = []
    for series in table.series:
        known = series.values[~np.isnan(series.values)]
        summaries.append(
            SeriesSummary(
                series_id=series.series_id,
                start=isoformat(series.times[0]),
                end=isoformat(series.times[-1]),
                num_steps=len(series),
                num_missing=len(series) - len(known),
                minimum=float(known.min()) if len(known) else None,
                maximum=float(known.max()) if len(known) else None,
            )
        )
    return tuple(summaries)


def _note_short(table: SeriesTable, length: int, log: ProblemLog) -> None:
    short = [series for series in table.series if len(series) < length]
    nothing_left = len(short) == len(table.series)

    def problem_at(place: int) -> Problem:
        series = short[place]
        return Problem(
            kind="short",
            series_id=series.series_id,
            at=table.step.isoformat(series.times[0]),
            message=f"the series has {len(series)} steps, but a window needs {length}",
            fix="choose a shorter --lookback or --horizon, or leave the series out",
            severity="fault" if nothing_left else "note",
        )

    log.add_at(range(len(short)), len(short), problem_at, kind="short")
    _note_late(table, length, log)


def _note_late(table: SeriesTable, length: int, log: ProblemLog) -> None:
    """A version stores windows of the training part alone, and is refused where a series has none there."""
    if length == 0 or all(len(series) < max(length, 2) for series in table.series):
        return
    until = np.datetime64(split_by_name(DEFAULT_SPLIT, table.times).train_until, "ns")
    num_training = [int(np.searchsorted(series.times, until, side="right")) for series in table.series]
    late = [n for n, series in enumerate(table.series) if num_training[n] < length <= len(series)]

    def problem_at(place: int) -> Problem:
        series = table.series[late[place]]
        return Problem(
            kind="short",
            series_id=series.series_id,
            at=table.step.isoformat(series.times[0]),
            message=f"of {len(series)} steps {num_training[late[place]]} are in the training part of the split "
            f"{DEFAULT_SPLIT}, but a window needs {length}",
            fix=f'leave it out with --ignore "{series.series_id}", or choose a larger training part (--split, --until)',
            severity="note",
        )

    log.add_at(range(len(late)), len(late), problem_at, kind="short")


def _note_flat(series: Series, table: SeriesTable, log: ProblemLog) -> None:
    known = series.values[~np.isnan(series.values)]
    if len(known) > 1 and (known == known[0]).all():
        fix = f'leave it out with --ignore "{series.series_id}" if it says nothing: all its windows are alike'
        message = f"the series is constant: {known[0]:g}"
        log.add(Problem(kind="constant", series_id=series.series_id, message=message, fix=fix, severity="note"))
        return
    runs = list(_flat_runs(series.values))

    def problem_at(place: int) -> Problem:
        first, length = runs[place]
        return Problem(
            kind="flat",
            series_id=series.series_id,
            at=table.step.isoformat(series.times[first]),
            message=f"{length} steps in a row have the value {series.values[first]:g}",
            fix="nothing to do if this is real; else make these cells empty and use --on-nan",
            severity="note",
        )

    log.add_at(range(len(runs)), len(runs), problem_at, kind="flat")


def _note_coarse(series: Series, log: ProblemLog) -> None:
    if message := coarse(series):
        log.add(Problem(kind="coarse", series_id=series.series_id, message=message, fix=COARSE_FIX, severity="note"))


def _flat_runs(values: np.ndarray) -> Iterator[tuple[int, int]]:
    """(first row, length) of every stretch of at least `FLAT_STEPS` equal values."""
    change = np.flatnonzero(values[1:] != values[:-1]) + 1  # NaN differs from everything
    edges = np.concatenate([[0], change, [len(values)]])
    lengths = np.diff(edges)
    for place in np.flatnonzero(lengths >= FLAT_STEPS):
        yield int(edges[place]), int(lengths[place])
