"""What a file is and everything that is wrong with it, for `cli data check`.

Faults stop every other command; notes (constant series, flat stretches, sorted rows, a few short series, no end of the
last line) do not, because a sensor that stands still or a table that is out of order may be meant.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from memory_index.encoder import default_views
from memory_index.errors import DataError
from memory_index.splits import DEFAULT_SPLIT, split_by_name
from memory_index.tables.columns import ReadOptions
from memory_index.tables.future import assemble_future
from memory_index.tables.problems import Problem, ProblemLog
from memory_index.tables.reading import assemble
from memory_index.tables.series import COARSE_FIX, Series, SeriesTable, coarse
from memory_index.tables.steps_ahead import MissingFuture, known_now, missing_future, stretches
from memory_index.tables.vintages import assemble_vintages, joined_vintages
from memory_index.windows import WindowSpec, origin_rows

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
class CovariateSummary:
    """One column beside the targets, over all series.

    num_missing: steps up to the last target value without a value. known_until: the last time with a value, of the
    series that has the fewest steps ahead; steps_ahead: how many these are, 0 where nothing is known beyond the last
    target value, None for static columns and those that the calendar makes, which end nowhere. minimum, maximum: of
    numbers. words: of a category.
    """

    name: str
    role: str
    kind: str
    source: str
    num_missing: int
    known_until: str | None
    steps_ahead: int | None
    minimum: float | None
    maximum: float | None
    words: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class TableReport:
    """The result of `check_table`. layout and step are None, and series empty, if reading had to stop before.

    covariates: with what a table of the future adds. future_missing: of the steps of `horizon`, or of those that the
    table of the future has. unlisted: how many more problems of a kind there are than `problems` lists.
    """

    file: str
    layout: str | None
    step: str | None
    time_zone: str | None
    num_rows: int | None
    series: tuple[SeriesSummary, ...]
    problems: tuple[Problem, ...]
    unlisted: dict[str, int]
    covariates: tuple[CovariateSummary, ...] = ()
    future_missing: tuple[MissingFuture, ...] = ()

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
            "covariates": [asdict(one) for one in self.covariates],
            "future_missing": [asdict(one) for one in self.future_missing],
            "problems": [asdict(problem) for problem in self.problems],
            "unlisted": self.unlisted,
        }


def check_table(
    path: str | Path,
    options: ReadOptions | None = None,
    *,
    lookback: int | None = None,
    horizon: int | None = None,
    future: str | Path | None = None,
) -> TableReport:
    """Read a file and report every fault and note, at most `problems.MAX_LISTED` of a kind.

    lookback, horizon: steps of the windows that the table is meant for; a series of which `build` with the default
    split would store none is a note, and a fault if that are all. future: a table of the future (`read_future`), whose
    faults are reported as well; with `horizon`, that many steps must be known of each series. Likewise the table of
    vintages that the options name.

    Raises `NotFoundError`, `UsageError` and `ResourceError` as `read_table` does, but not `DataError`.
    """
    log = ProblemLog(source=Path(path).name)
    try:
        table, num_rows = assemble(Path(path), options or ReadOptions(), log)
    except DataError:
        return _report(str(path), None, None, log)
    if lookback is not None and lookback >= 2:
        _note_without_windows(table, lookback, horizon, log)
    for series in table.series:
        _note_flat(series, table, log)
        _note_coarse(series, log)
    options = options or ReadOptions()
    if options.vintages is not None:
        own = ProblemLog(source=Path(options.vintages).name)
        with suppress(DataError):
            found, kinds = assemble_vintages(Path(options.vintages), table, options, own)
            table = joined_vintages(table, found, kinds, options, own)
        _take_over(own, log)
    missing: tuple[MissingFuture, ...] = ()
    if future is not None:
        table, missing = _with_future(Path(future), table, options or ReadOptions(), horizon, log)
    elif horizon is not None:
        missing = missing_future(table, horizon)
    report = _report(str(path), table, num_rows, log)
    return replace(report, covariates=_covariates(table), future_missing=missing)


def _with_future(
    future: Path, table: SeriesTable, options: ReadOptions, horizon: int | None, log: ProblemLog
) -> tuple[SeriesTable, tuple[MissingFuture, ...]]:
    """The table with the covariates of its future, and what is missing of them; what is found goes to the log."""
    own = ProblemLog(source=future.name)
    try:
        joined = assemble_future(future, table, options, own, horizon=horizon)
    except DataError:
        joined = table
    _take_over(own, log)
    ahead = horizon or max((each.steps_ahead or 0 for each in _covariates(joined)), default=0)
    return joined, missing_future(joined, ahead)


def _take_over(own: ProblemLog, log: ProblemLog) -> None:
    """Add what was found in another file, which each message then names."""
    for kind in dict.fromkeys(problem.kind for problem in own.listed):
        found = [replace(each, message=f"{own.source}: {each.message}") for each in own.listed if each.kind == kind]
        log.add_many(own.count[kind], found, kind=kind)


def _covariates(table: SeriesTable) -> tuple[CovariateSummary, ...]:
    table = known_now(table)
    if table.covariates is None:
        return ()
    parts, summaries = list(stretches(table)), []
    for number, column in enumerate(table.covariates.columns):
        lines = [(one, one.covariates.values[number]) for one in parts]
        held = [np.flatnonzero(~np.isnan(line)) for _, line in lines]
        ends = [int(places[-1]) + 1 if len(places) else 0 for places in held]
        least = min(range(len(parts)), key=lambda n: ends[n] - parts[n].num_target)
        number_like = column.kind == "number"
        known = [line[places] for (_, line), places in zip(lines, held, strict=True) if len(places)]
        endless = column.role == "static" or bool(column.source)
        until = parts[least].covariates.times[ends[least] - 1] if ends[least] and not endless else None
        summaries.append(
            CovariateSummary(
                name=column.name,
                role=column.role,
                kind=column.kind,
                source=column.source,
                num_missing=sum(int(np.isnan(line[: one.num_target]).sum()) for one, line in lines),
                known_until=None if until is None else table.step.isoformat(until),
                steps_ahead=None if endless else max(0, ends[least] - parts[least].num_target),
                minimum=min(float(each.min()) for each in known) if number_like and known else None,
                maximum=max(float(each.max()) for each in known) if number_like and known else None,
                words=column.categories,
            )
        )
    return tuple(summaries)


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


def _note_without_windows(table: SeriesTable, lookback: int, horizon: int | None, log: ProblemLog) -> None:
    """Series of which `build` would store nothing: it leaves them out, and is refused if that are all.

    Without a horizon those that have no whole context.
    """
    spec, with_future = WindowSpec(lookback=lookback, horizon=horizon or 1), bool(horizon)
    try:
        until = np.datetime64(split_by_name(DEFAULT_SPLIT, table.times).train_until, "ns")
    except DataError:  # no row is left for training
        until = table.times[0] - np.timedelta64(1, "ns")
    without = []
    for number, series in enumerate(table.series):
        known = np.flatnonzero(np.isfinite(series.values))
        last = min(int(np.searchsorted(series.times, until, side="right")), int(known[-1]) + 1 if len(known) else 0)
        views, rule = default_views(lookback), table.rule(spec)
        if not len(origin_rows(series.values[:last], rule, views=views, with_future=with_future)):
            without.append((number, last))
    nothing_left = len(without) == len(table.series)

    def problem_at(place: int) -> Problem:
        number, num_training = without[place]
        series, steps = table.series[number], lookback + (horizon or 0)
        enough = num_training >= steps
        return Problem(
            kind="short",
            series_id=series.series_id,
            at=table.step.isoformat(series.times[0]),
            message=f"the series has {len(series)} steps, but a window needs {steps}"
            if len(series) < steps
            else f"of {len(series)} steps {num_training} are in the training part of the split {DEFAULT_SPLIT}"
            + (", but too much of every window there is missing" if enough else f", but a window needs {steps}"),
            fix="choose a shorter --lookback or --horizon, or a larger training part (--split, --until)"
            + ("" if nothing_left else f'; else the series is left out, as with --ignore "{series.series_id}"'),
            severity="fault" if nothing_left else "note",
        )

    log.add_at(range(len(without)), len(without), problem_at, kind="short")


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
