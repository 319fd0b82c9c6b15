"""The covariates of a version on disk: covariates.parquet of each segment, beside the series that it adds.

One row for each step that a segment adds to a series: its number, the time, and a column for each covariate (`c0` is
the first of the manifest), null where missing. Where all series share their covariates there is one stretch, of number
0. Values end with the last target value: what is known further ahead comes with each query.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from memory_index.covariate_map import CovariateColumn, StoredCovariates
from memory_index.covariate_tables import AlignedValues, aligned_values, matching
from memory_index.covariates import Covariates, CovariateValues
from memory_index.errors import IncompatibleError, VerificationError
from memory_index.tables.series import Series, SeriesTable
from memory_index.versions.manifest import Manifest
from memory_index.versions.version import read_parquet
from memory_index.versions.vintage_files import vintages_on_steps

COVARIATES_FILE = "covariates.parquet"


def write_covariates(folder: Path, values: AlignedValues, new_from: list[int]) -> int:
    """Write the steps that a segment adds. new_from: of each stretch, its first step that no earlier segment stores.

    Returns how many rows they are.
    """
    edges = [*values.first, values.values.shape[1]] if not values.shared else [0, values.values.shape[1]]
    places = [np.arange(start + new, end) for start, new, end in zip(edges[:-1], new_from, edges[1:], strict=True)]
    rows = np.concatenate(places)
    columns = {
        "series": np.repeat(np.arange(len(places), dtype=np.int32), [len(place) for place in places]),
        "time": values.times[rows],
        **{f"c{n}": pa.array(each[rows], from_pandas=True) for n, each in enumerate(values.values)},
    }
    pq.write_table(pa.table(columns), folder / COVARIATES_FILE, compression="zstd")
    return len(rows)


def write_new_covariates(
    folder: Path, stored: SeriesTable, joined: SeriesTable, manifest: Manifest, new_from: list[int]
) -> int | None:
    """Write what a segment adds to a version: the covariates of the steps behind what is stored of each series.

    Returns how many rows they are; None for a version without any.
    """
    if not manifest.covariates:
        return None
    found = aligned_values(joined, manifest.covariates, shared=manifest.shared_covariates)
    if found.shared and stored.covariates is not None:
        new_from = [len(stored.covariates.series[0].times)]
    return write_covariates(folder, found, new_from)


def read_covariates(folder: Path, manifest: Manifest) -> AlignedValues | None:
    """Of all segments, in the order of the series; None for a version without. Hashes must have been checked before."""
    if not manifest.covariates:
        return None
    tables = [
        read_parquet(folder / segment.folder / COVARIATES_FILE, num_rows=segment.num_covariates or 0)
        for segment in manifest.segments
    ]
    whole = pa.concat_tables(tables)
    number = whole.column("series").to_numpy()
    order = np.argsort(number, kind="stable")  # segments follow each other in time
    times = whole.column("time").to_numpy().astype("datetime64[ns]")[order]
    values = np.stack([whole.column(f"c{n}").to_numpy()[order] for n in range(len(manifest.covariates))])
    first = np.searchsorted(number[order], np.arange(len(manifest.series_ids)))
    if not manifest.shared_covariates:
        return AlignedValues(times, values.astype(np.float32), first, False)
    return AlignedValues(times, values.astype(np.float32), np.zeros(len(manifest.series_ids), dtype=np.int64), True)


def stored_covariates(
    folder: Path,
    manifest: Manifest,
    series: Sequence[Series],
    unit: np.ndarray,
    origins: tuple[np.ndarray, np.ndarray],
) -> StoredCovariates | None:
    """As windows are compared with. series: all of the version; unit: float64 [N]; origins: of all windows, the number
    of the series and the origin row.

    Raises `VerificationError` where they do not go with the series.
    """
    found, layout = read_covariates(folder, manifest), manifest.covariate_layout
    if found is None or layout is None:
        return None
    starts = np.array([each.times[0] for each in series])
    first = np.searchsorted(found.times, starts) if found.shared else found.first
    if (first >= len(found.times)).any() or (found.times[first] != starts).any():
        raise VerificationError(
            f"the covariates in {folder} do not begin where its series do", hint="restore the version or build it again"
        )
    return StoredCovariates(
        layout=layout,
        values=found.values,
        first=first,
        unit=unit,
        vintages=vintages_on_steps(folder, manifest, found, series),
        origins=first[origins[0]] + origins[1],
    )


def with_covariates(
    stored: SeriesTable, found: AlignedValues | None, columns: tuple[CovariateColumn, ...]
) -> SeriesTable:
    """The series of a version with the covariates that it stores."""
    if found is None:
        return stored
    plain = tuple(column.as_covariate() for column in columns)
    values = found.values.astype(np.float64)
    if found.shared:
        every = (CovariateValues(times=found.times, values=values),) * len(stored.series)
    else:
        edges = [*found.first, len(found.times)]
        every = tuple(
            CovariateValues(times=found.times[start:end], values=values[:, start:end]) for start, end in pairwise(edges)
        )
    return replace(stored, covariates=Covariates(columns=plain, series=every))


def continued(stored: SeriesTable, joined: SeriesTable, table: SeriesTable, manifest: Manifest) -> SeriesTable:
    """The joined series with what is stored of their covariates, and behind it what a new table has of them.

    Stored values stay. Raises `IncompatibleError` where the table does not have the version's columns, or values of its
    own for each series where the version has the same for all.
    """
    columns, shared = manifest.covariates, manifest.shared_covariates
    if not columns:
        return replace(joined, covariates=None)
    take = matching(table, columns)
    assert stored.covariates is not None, "it has the columns"
    assert table.covariates is not None, "it has the columns"
    if shared and len({id(each.values) for each in table.covariates.series}) > 1:
        raise IncompatibleError(
            f"{table.source} has covariates for each series, but in the version all series share them",
            hint="append a table of the same layout, or build a new version",
        )
    numbers = {name: number for number, name in enumerate(table.series_ids)}
    steps = [series.times for series in joined.series]
    if shared:
        steps = [joined.step.until(min(times[0] for times in steps), max(times[-1] for times in steps))]
    every = []
    for place, times in enumerate(steps):
        old, values = stored.covariates.series[place], np.full((len(columns), len(times)), np.nan)
        given = numbers.get(joined.series_ids[place]) if not shared else 0
        if given is not None:
            values = take(given, times).astype(np.float64)
        values[:, : len(old.times)] = old.values
        every.append(CovariateValues(times=times, values=values))
    series = tuple(every) if not shared else tuple(every) * len(joined.series)
    return replace(joined, covariates=replace(stored.covariates, series=series))
