"""From tables to queries: blocks of moments that are asked at once, and the check that data and version agree."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from typing import NamedTuple

import numpy as np

from memory_index.covariate_map import CovariateLayout
from memory_index.errors import DataError, IncompatibleError, NotFoundError
from memory_index.leakage import Policy
from memory_index.query_covariates import QueryCovariates
from memory_index.skipped import Skipped, skipped_sentence
from memory_index.tables.ranges import as_typed, outlying_code
from memory_index.tables.series import Series, SeriesTable, differing
from memory_index.tables.steps import infer_step, same_step
from memory_index.types import MAX_JOINT_SERIES, Queries
from memory_index.windows import Step, StoredWindows, WindowSpec, cut, origin_rows

BLOCK = 256  # moments asked at once, of tables of many series fewer
MAX_WINDOWS = 16384  # asked at once: a window's neighbours take some 10 kB


class QueryBlock(NamedTuple):
    """Queries and where they come from.

    series: int [N], numbers in the table. row: int64 [B, N], origin rows. wanted: bool [B, N], which of them were asked
    for; the others are there because the joint scope compares whole moments.
    """

    queries: Queries
    series: np.ndarray
    row: np.ndarray
    wanted: np.ndarray

    def at_moments(self, chosen: np.ndarray) -> QueryBlock:
        """The same of some of the moments. chosen: int64 [b]."""
        return QueryBlock(self.queries.at_moments(chosen), self.series, self.row[chosen], self.wanted[chosen])


def query_blocks(
    table: SeriesTable,
    origins: list[np.ndarray],
    spec: WindowSpec,
    policy: Policy,
    *,
    known: Collection[str],
    views: tuple[int, ...] = (),
    layout: CovariateLayout | None = None,
    block: int = BLOCK,
    max_windows: int = MAX_WINDOWS,
) -> Iterator[QueryBlock]:
    """All windows of a table, in blocks of up to `block` moments and `max_windows` windows, but at least one moment.

    origins: origin rows per series. known: series that the memory has, views and layout: views and covariates of the
    memory; raises `IncompatibleError` where the table does not have those. They are asked together (so that the joint
    scope can answer) at every time at which all of them have a *context* that is usable under a view; all other windows
    are asked by themselves. Nothing later may decide that: a gap in the future of one series, or steps that only some
    of them have yet, would change what is asked for another. Series that are not asked together with all others, or are
    more than the joint scope takes, are asked with those that are asked at the very same times: a few that lag hinder
    nobody. Of thousands so many are asked at once that each is asked at `block` moments: what is done once for a series
    is then done for all of these.
    """
    there = set(known)
    numbers = [n for n, series in enumerate(table.series) if series.series_id in there]
    members_of_moment = set(numbers)
    every = table.rule(spec).scored()
    asked = [series.times[rows] for series, rows in zip(table.series, origins, strict=True)]
    together = np.unique(np.concatenate([asked[n] for n in numbers])) if numbers else np.empty(0, "datetime64[ns]")
    if len(numbers) > MAX_JOINT_SERIES:
        together = together[:0]
    for n in numbers if len(together) else ():
        whole = table.series[n].times[origin_rows(table.series[n].values, every, views=views, with_future=False)]
        together = np.intersect1d(together, whole, assume_unique=True)
    alone = [np.setdiff1d(times, together) if n in members_of_moment else times for n, times in enumerate(asked)]
    groups = [
        (np.array(numbers, dtype=np.int64), together),
        *_in_parts(_asked_alike(alone, members_of_moment), block, max_windows),
    ]
    covariates = QueryCovariates(table, layout)
    values = [series.values.astype(np.float32) for series in table.series]
    is_wanted = [np.isin(np.arange(len(s)), rows) for s, rows in zip(table.series, origins, strict=True)]
    for members, times in groups:
        size = max(1, min(block, max_windows // max(1, len(members))))
        for start in range(0, len(times), size):
            part = times[start : start + size]
            rows = np.stack([np.searchsorted(table.series[n].times, part) for n in members], axis=1)  # [B, N]
            first = rows - spec.lookback + 1
            queries = Queries(
                context=np.stack([cut(values[n], first[:, i], spec.lookback) for i, n in enumerate(members)], axis=1),
                origin=part,
                series_id=np.array([table.series[n].series_id for n in members]),
                policy=policy,
                covariates=covariates.of(members, rows),
            )
            wanted = np.stack([is_wanted[n][rows[:, i]] for i, n in enumerate(members)], axis=1)
            yield QueryBlock(queries, members, rows, wanted)


def _asked_alike(asked: list[np.ndarray], known: Collection[int]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(numbers of series, their times) for the series of a table that are asked at the same times.

    asked: of each series. known: those that the memory has; the others are searched in other scopes.
    """
    alike: dict[tuple[bool, bytes], list[int]] = {}
    for n, times in enumerate(asked):
        alike.setdefault((n in known, times.tobytes()), []).append(n)
    for members in alike.values():
        yield np.array(members), asked[members[0]]


def _in_parts(
    groups: Iterable[tuple[np.ndarray, np.ndarray]], block: int, max_windows: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The same, of so few series each that `block` moments of them are at most `max_windows` windows."""
    for members, times in groups:
        size = max(1, max_windows // max(1, min(block, len(times))))
        for start in range(0, len(members), size):
            yield members[start : start + size], times


def futures_of(table: SeriesTable, block: QueryBlock, horizon: int) -> np.ndarray:
    """What followed the queries of a block, [B, N, H], NaN after the end of a series: only for those who score."""
    step = block.row[..., None] + np.arange(1, horizon + 1)
    members = [table.series[n] for n in block.series]
    future = [each.values[np.minimum(step[:, i], len(each) - 1)] for i, each in enumerate(members)]
    return np.where(step < np.array([len(each) for each in members])[:, None], np.stack(future, axis=1), np.nan)


def latest_origins(
    table: SeriesTable, spec: WindowSpec, *, views: tuple[int, ...] = ()
) -> tuple[list[np.ndarray], tuple[Skipped, ...]]:
    """The last row of each series that holds a value: the origin of a forecast of what comes next.

    views: those of the memory. A series with less than a lookback of steps up to there, or of which too much is missing
    in them, has no origin, and is named with the reason. Raises `DataError` if that are all.
    """
    origins, skipped = [], []
    for series in table.series:
        row, reason = _latest_origin(series, table.rule(spec), views)
        origins.append(np.array([row] if not reason else [], dtype=np.int64))
        if reason:
            skipped.append(Skipped(series_id=series.series_id, reason=reason))
    if len(skipped) == len(table.series):
        raise DataError(
            f"{table.source}: {skipped_sentence(skipped, 'cannot be forecast')}",
            hint="give a longer history, or use a version with a shorter --lookback",
        )
    return origins, tuple(skipped)


def _latest_origin(series: Series, spec: WindowSpec, views: tuple[int, ...]) -> tuple[int, str]:
    """The row of the last value of a series, and why no forecast can be made from there; empty if one can."""
    known = np.flatnonzero(np.isfinite(series.values))
    num = int(known[-1]) + 1 if len(known) else 0
    if num < spec.lookback:
        steps = "1 step" if num == 1 else f"{num} steps" if num else "no value"
        return num - 1, f"has {steps}, but a forecast needs the last {spec.lookback}"
    every = spec.scored()
    if not len(origin_rows(series.values[num - spec.lookback : num], every, views=views, with_future=False)):
        missing = int(np.isnan(series.values[num - spec.lookback : num]).sum())
        return num - 1, f"misses {missing} of the last {spec.lookback} steps, more than --max-missing allows"
    return num - 1, ""


def origin_at(table: SeriesTable, series_id: str, at: np.datetime64, spec: WindowSpec) -> int:
    """The row of a series at a time. at: datetime64[ns], UTC or naive as the table.

    Raises `NotFoundError` for a time that is no step of the series or has too little history before it.
    """
    series, step = table[series_id], table.step
    row = int(np.searchsorted(series.times, at))
    if row >= len(series) or series.times[row] != at:
        near = np.unique(series.times[np.clip([row - 1, row], 0, len(series) - 1)])
        raise NotFoundError(
            f"series '{series_id}' has no step at {step.isoformat(at)}: it goes from {step.isoformat(series.times[0])} "
            f"to {step.isoformat(series.times[-1])}",
            hint=f"nearest to it: {' and '.join(step.isoformat(each) for each in near)}",
        )
    if row + 1 < spec.lookback:
        raise NotFoundError(
            f"series '{series_id}' has {row + 1} steps up to {step.isoformat(at)}, but a query needs {spec.lookback}",
            hint=f"choose {step.isoformat(series.times[min(spec.lookback, len(series)) - 1])} or later",
        )
    return row


def require_same_data(table: SeriesTable, windows: StoredWindows, ref: str) -> None:
    """Raise `IncompatibleError` if a table differs from what a version stores, at the first cell that does.

    Series that the version does not have, and steps for which it stores no value, are not compared.
    """
    if not same_step(table.step, windows.step, table.series[0].times[0]):
        raise other_step(table.source, table.step, ref, windows.step)
    for series in table.series:
        number = windows.series_number.get(series.series_id)
        if number is not None:
            _require_same_series(series, windows, number, table.source, ref)


def require_no_longer_step(table: SeriesTable, ref: str) -> None:
    """Raise `IncompatibleError` if all values of a table lie on a step several times as long as its own.

    So they do in two-hourly data that were read with the step of hourly ones: every other step is missing.
    """
    known = [np.flatnonzero(np.isfinite(series.values)) for series in table.series]
    apart = np.concatenate([np.diff(rows) for rows in known])
    if len(apart) < 2 or np.gcd.reduce(apart) == 1:
        return
    longest = max(range(len(known)), key=lambda number: len(known[number]))
    own = infer_step(table.series[longest].times[known[longest]], table.step.time_zone)
    if own is not None:
        raise other_step(table.source, own, ref, table.step)


def other_step(source: str, step: Step, ref: str, stored: Step) -> IncompatibleError:
    """The error that a table and a version differ in their step, or in its time zone."""
    of_one, of_other = step.frequency, stored.frequency
    if step.time_zone != stored.time_zone:
        of_one, of_other = (
            f"{each.frequency} ({f'time zone {each.time_zone}' if each.time_zone else 'no time zone'})"
            for each in (step, stored)
        )
    return IncompatibleError(
        f"{source} has a step of {of_one}, {ref} of {of_other}",
        hint="use a version that was built on data of this step",
    )


def _require_same_series(series: Series, windows: StoredWindows, number: int, source: str, ref: str) -> None:
    part = slice(windows.offset[number], windows.offset[number + 1])
    times, stored = windows.times[part], windows.values[part]
    row = np.searchsorted(times, series.times)
    both = (row < len(times)) & (times[np.minimum(row, len(times) - 1)] == series.times)
    ours, theirs = stored[row[both]], series.values[both].astype(np.float32)
    differs = differing(ours, theirs)
    if len(differs):
        at = series.times[both][differs[0]]
        raise IncompatibleError(
            f"{source}: series '{series.series_id}' at {windows.step.isoformat(at)} is {theirs[differs[0]]!s}, "
            f"but {ref} was built on {ours[differs[0]]!s} ({len(differs)} of {int(both.sum())} common steps differ)",
            hint="use the data that the version was built on, or build a version on these",
        )
    code = outlying_code(series.values[np.isfinite(series.values)])
    if code is not None and (has_it := np.isnan(ours) & (theirs == np.float32(code))).any():
        at = windows.step.isoformat(series.times[both][has_it.argmax()])
        raise IncompatibleError(
            f"{source}: series '{series.series_id}' at {at} is {as_typed(code)}, but {ref} was built without "
            f"that value ({int(has_it.sum())} steps)",
            hint=f"read the file as it was read then: --missing {as_typed(code)}",
        )
