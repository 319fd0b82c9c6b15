"""The vintages of a version on disk: vintages.parquet of each segment, beside its covariates.

One row for each value that was issued since the segment before, up to the last step that is stored: number of the
covariate (its place among those of the manifest with vintages), of the series (0 where all share their covariates),
time, time of issue, value.
Rows of later steps are stored too, since they had been issued: windows that are appended later see them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from memory_index.covariate_map import CovariateColumn
from memory_index.covariate_tables import AlignedValues, vintages_of
from memory_index.covariates import Vintages
from memory_index.errors import IncompatibleError, VerificationError
from memory_index.step_vintages import StepVintages, on_steps
from memory_index.tables.series import Series, SeriesTable
from memory_index.versions.manifest import Manifest
from memory_index.versions.version import read_parquet

VINTAGES_FILE = "vintages.parquet"


def issued_in(table: SeriesTable, columns: tuple[CovariateColumn, ...]) -> Vintages | None:
    """What a version of a table stores: the values that were issued up to its last step, of its series."""
    found = vintages_of(table, columns)
    if found is None:
        return None
    found = found.cut(max(series.times[-1] for series in table.series))
    return found if not found.series_ids else _of_series(found, table.series_ids)


def _of_series(vintages: Vintages, series_ids: tuple[str, ...]) -> Vintages:
    """Those of some series, which become its own ones in this order."""
    number = {name: place for place, name in enumerate(series_ids)}
    place = np.array([number.get(name, -1) for name in vintages.series_ids], dtype=np.int32)[vintages.series]
    found = replace(vintages, series=place, series_ids=series_ids)
    order = np.lexsort((found.issued_at, found.time, found.series, found.column))
    return found.take(order[place[order] >= 0])


def write_vintages(folder: Path, vintages: Vintages | None) -> int | None:
    """Write those that a segment adds; returns how many, None for a version without any."""
    if vintages is None:
        return None
    columns = {
        "column": vintages.column,
        "series": vintages.series,
        "time": vintages.time,
        "issued_at": vintages.issued_at,
        "value": vintages.value.astype(np.float32),
    }
    pq.write_table(pa.table(columns), folder / VINTAGES_FILE, compression="zstd")
    return len(vintages)


def stored_vintages(folder: Path, manifest: Manifest) -> Vintages | None:
    """Of all segments; None for a version without. Hashes must have been checked before."""
    names = tuple(column.name for column in manifest.covariates if column.vintages)
    if not names:
        return None
    parts = [
        read_parquet(folder / segment.folder / VINTAGES_FILE, num_rows=segment.num_vintages or 0)
        for segment in manifest.segments
    ]
    whole = {name: pa.concat_tables(parts).column(name).to_numpy() for name in parts[0].column_names}
    series_ids = () if manifest.shared_covariates else manifest.series_ids
    if len(whole["column"]) and (whole["column"].max() >= len(names) or whole["series"].max() > len(series_ids)):
        raise VerificationError(
            f"the vintages in {folder} are of columns or series that the version does not have",
            hint="restore the version or build it again",
        )
    found = Vintages(
        columns=names,
        series_ids=series_ids,
        column=whole["column"],
        series=whole["series"],
        time=whole["time"].astype("datetime64[ns]"),
        issued_at=whole["issued_at"].astype("datetime64[ns]"),
        value=whole["value"].astype(np.float64),
    )
    if len(parts) == 1:
        return found
    return found.take(np.lexsort((found.issued_at, found.time, found.series, found.column)))


def vintages_on_steps(
    folder: Path, manifest: Manifest, values: AlignedValues, series: Sequence[Series]
) -> tuple[StepVintages | None, ...]:
    """Of each covariate of a version, its vintages on the steps that are stored."""
    found = stored_vintages(folder, manifest)
    if found is None:
        return (None,) * len(manifest.covariates)
    stretches: list[tuple[str | None, np.ndarray]] = [(each.series_id, each.times) for each in series]
    if values.shared:
        stretches = [(None, values.times)]
    return tuple(on_steps(found, column.name, stretches) if column.vintages else None for column in manifest.covariates)


def with_new_vintages(
    stored: SeriesTable, joined: SeriesTable, table: SeriesTable, manifest: Manifest
) -> tuple[SeriesTable, Vintages | None, tuple[str, ...]]:
    """The joined series with what was issued of their covariates; what is new of it; and notes.

    New is what was issued after the last step that was stored. What a table says of issues before must agree with what
    is stored: windows that are stored have seen it. Raises `IncompatibleError` for the first value that differs, and
    for a table without vintages.
    """
    before = stored.covariates.vintages if stored.covariates is not None else None
    if before is None or joined.covariates is None:
        return joined, None, ()
    given = vintages_of(table, manifest.covariates)
    assert given is not None, "the version has some"
    given = given.cut(max(series.times[-1] for series in joined.series))
    if before.series_ids:
        given = _of_series(given, before.series_ids)
    is_new = given.issued_at > max(series.times[-1] for series in stored.series)
    new, old = given.take(is_new), given.take(~is_new)
    notes = _compared(before, old, table)
    return replace(joined, covariates=replace(joined.covariates, vintages=before.and_of(new))), new, notes


def _compared(before: Vintages, old: Vintages, table: SeriesTable) -> tuple[str, ...]:
    """A note of issues that were not there when their time was stored. Raises `IncompatibleError` for other values."""
    every = [
        np.concatenate([getattr(each, name) for each in (before, old)])
        for name in ("column", "series", "time", "issued_at")
    ]
    is_given = np.repeat([False, True], [len(before), len(old)])
    value = np.concatenate([before.value, old.value])
    order = np.lexsort((is_given, *every[::-1]))
    again = np.append(False, np.all([each[order[1:]] == each[order[:-1]] for each in every], axis=0))
    apart = np.abs(value[order] - value[np.roll(order, 1)])
    differs = np.flatnonzero(again & (apart > np.spacing(np.abs(value[order]).astype(np.float32))))
    if len(differs):
        place = order[differs[0]]
        column, series, time, issue = (each[place] for each in every)
        whose = f"series '{before.series_ids[series]}': " if before.series_ids else ""
        at, by = (table.step.isoformat(each) for each in (time, issue))
        raise IncompatibleError(
            f"{table.source}: {whose}'{before.columns[column]}' at {at}, issued at {by}, is {value[place]:g}, but the "
            f"version has {value[order[differs[0] - 1]]:g} ({len(differs)} values differ)",
            hint="give the vintages that the version was built on, with later ones behind them, or build a new version",
        )
    late = int((is_given[order] & ~again).sum())
    if not late:
        return ()
    values = "1 value" if late == 1 else f"{late:,} values"
    return (
        f"{values} of vintages were issued before the version's last step but are not in it; the next build has them",
    )
