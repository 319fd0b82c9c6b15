"""The covariates that queries bring: cut from a table in the order of a version, and what must be there of them.

A query may see known values over its context and its horizon, observed ones over its context alone; of a column with
vintages what was issued by its origin. At the latest origin a table may also say plainly what is known by now.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from memory_index.covariate_map import CovariateColumn, CovariateLayout
from memory_index.covariate_tables import matching, require_vintages, vintages_on
from memory_index.errors import DataError
from memory_index.step_vintages import StepVintages
from memory_index.tables.series import SeriesTable
from memory_index.tables.steps_ahead import covariates_ahead
from memory_index.types import Queries
from memory_index.windows import Step

SHOWN = 3  # steps that a message names
FAR = 1.0  # training ranges beyond the training range: another unit rather than an unusual day


class Beside(NamedTuple):
    """Of one series: float32 [C, T + H], what a table says at its steps and a horizon beyond; and its vintages."""

    values: np.ndarray
    vintages: tuple[StepVintages | None, ...]


class QueryCovariates:
    """Cuts the covariates of queries out of a table. layout: those of the version, in its order; None without any.

    Raises what `matching` raises.
    """

    def __init__(self, table: SeriesTable, layout: CovariateLayout | None) -> None:
        self.layout = layout
        self.table = table if layout is None else covariates_ahead(table, layout.horizon)
        self.columns = layout.columns if layout is not None else ()
        self._take = matching(self.table, self.columns)
        self._whole: dict[tuple[int, ...], Beside] = {}

    def of(self, members: np.ndarray, row: np.ndarray) -> np.ndarray | None:
        """float32 [B, N, C, L + H] of series (numbers [N]) at origin rows [B, N]; None for a version without any.

        What the table does not have is missing. Raises what `require_vintages` raises for an earlier origin than the
        last value of a series.
        """
        if self.layout is None:
            return None
        lookback, horizon = self.layout.lookback, self.layout.horizon
        if not self._as_known_now(members, row):
            require_vintages(self.table, self.columns)
        every = [self._series(int(number), horizon) for number in members]
        observed = [number for number, column in enumerate(self.layout.columns) if column.role == "observed"]
        if all(each is every[0] for each in every) and (row == row[:, :1]).all():  # said once for all series
            every, row = every[:1], row[:, :1]
        parts = []
        for place, beside in enumerate(every):
            cells = row[:, place, None] + np.arange(1 - lookback, horizon + 1)
            part = np.moveaxis(beside.values[:, cells], 0, 1)  # [B, C, L + H]
            part[:, observed, lookback:] = np.nan
            for number, vintages in enumerate(beside.vintages):
                if vintages is not None:  # a table of the future and a scenario come first
                    issued = vintages.as_of(cells, row[:, place, None])
                    part[:, number] = np.where(np.isnan(part[:, number]), issued, part[:, number])
            parts.append(part)
        whole = np.stack(parts, axis=1)
        return np.broadcast_to(whole, (len(row), len(members), *whole.shape[2:]))

    def _as_known_now(self, members: np.ndarray, row: np.ndarray) -> bool:
        """Whether all origins are the last values of their series, where what a table says is what is known."""
        if not any(column.vintages for column in self.columns):
            return True
        known = (np.flatnonzero(np.isfinite(self.table.series[number].values)) for number in members)
        last = np.array([places[-1] if len(places) else -1 for places in known])
        return bool((row == last).all())

    def _series(self, number: int, horizon: int) -> Beside:
        """At the steps of a series and a horizon beyond; series that share them share the record."""
        series, given = self.table.series[number], self.table.covariates
        assert given is not None, "it has the columns"
        of_each = given.vintages is not None and bool(given.vintages.series_ids)
        beside = id(given.series[number].values), number if of_each else -1
        name = (*beside, int(series.times[0].view(np.int64)), len(series))
        if name not in self._whole:
            times = self.table.step.range(series.times[0], len(series) + horizon)
            stretch = (series.series_id if of_each else None, times)
            self._whole[name] = Beside(self._take(number, times), vintages_on(self.table, self.columns, [stretch]))
        return self._whole[name]


def require_known_ahead(
    queries: Queries, wanted: np.ndarray, columns: tuple[CovariateColumn, ...], step: Step, source: str
) -> None:
    """Raise `DataError` that names series, column and time unless known covariates are there over the horizon.

    wanted: bool [B, N], which of the queries are forecast.
    """
    if queries.covariates is None:
        return
    lookback = queries.context.shape[2]
    for number, column in enumerate(columns):
        if column.role != "known":
            continue
        missing = np.isnan(queries.covariates[:, :, number, lookback:]) & wanted[..., None]
        if missing.any():
            b, n, _ = (int(i) for i in np.argwhere(missing)[0])
            steps = np.flatnonzero(missing[b, n]) + 1
            times = [step.isoformat(step.add(queries.origin[b : b + 1], int(h))[0]) for h in steps[:SHOWN]]
            more = f" and {len(steps) - SHOWN} more steps" if len(steps) > SHOWN else ""
            others = int(missing.any(axis=-1).sum()) - 1
            of_others = f", nor have {others} other series all of theirs" if others else ""
            whose = f"{source}: known covariate '{column.name}' of series '{queries.series_id[n]}'"
            hint = "fill them in a table of the future (cli data future makes one) and give it with --future"
            if column.vintages:
                by = step.isoformat(queries.origin[b])
                raise DataError(
                    f"{whose} has no value at {', '.join(times)}{more} that was issued by the origin {by}{of_others}",
                    hint=f"add what was issued by then to the table of vintages, or {hint}",
                )
            raise DataError(f"{whose} has no value at {', '.join(times)}{more}{of_others}", hint=hint)


def far_outside(queries: Iterable[Queries], columns: tuple[CovariateColumn, ...]) -> list[str]:
    """A warning for each number whose values over horizons lie far outside the range that the version was fitted on."""
    notes, asked = [], [each for each in queries if each.covariates is not None]
    for number, column in enumerate(columns):
        if column.kind != "number" or column.role == "observed":
            continue
        ahead = [
            each.covariates[:, :, number, each.context.shape[2] :] for each in asked if each.covariates is not None
        ]
        values = np.concatenate([part[np.isfinite(part)] for part in ahead]) if ahead else np.empty(0)
        reach = FAR * max(column.high - column.low, 1e-12)
        if len(values) and (values.min() < column.low - reach or values.max() > column.high + reach):
            notes.append(
                f"covariate '{column.name}' goes from {values.min():g} to {values.max():g}, in the version from "
                f"{column.low:g} to {column.high:g}: another unit?"
            )
    return notes
