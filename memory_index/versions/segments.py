"""One segment of a version: its files, how they are written, and how they are read back.

series.parquet    the steps that this segment adds: series, time, value (null where missing)
windows.parquet   its windows, ordered by (known_at, series): where they are, what normalised them, and, where some of
                  them miss cells, how many under each view
moments.parquet   only where some series lagged: the windows of each moment of all series, which may lie in
                  earlier segments
keys-SCOPE-VIEW.faiss   the keys of one key space, as a FAISS index (key_files.py)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from memory_index.cores import num_cores
from memory_index.covariate_map import StoredCovariates
from memory_index.encoder import KeyEncoder
from memory_index.key_covariates import KeyNumbers
from memory_index.missing import filled, missing_before
from memory_index.tables.series import Series, SeriesTable
from memory_index.threads import Workers, one_blas_thread
from memory_index.types import KeySpace, Scope
from memory_index.versions.factories import EXACT
from memory_index.versions.key_files import flat_keys, write_keys
from memory_index.windows import WindowSpec, complete_moments, cut

SERIES_FILE, WINDOWS_FILE, MOMENTS_FILE = "series.parquet", "windows.parquet", "moments.parquet"
STATISTICS = ("location", "spread", "flat")  # columns of windows.parquet for each view
CHUNK = 2048  # windows encoded at once
LOT = 16 * CHUNK  # windows whose keys are held before they are written

Encoding = tuple[dict[Scope, np.ndarray], np.ndarray]  # see `_encode_series`


@dataclass(frozen=True, kw_only=True, slots=True)
class SegmentPlan:
    """What all segments of a version have in common.

    The shape of windows, the key spaces with the FAISS factory string of each, and the number of series.
    """

    window: WindowSpec
    factories: dict[KeySpace, str]
    num_series: int

    @property
    def spaces(self) -> tuple[KeySpace, ...]:
        """The key spaces, in the version's order."""
        return tuple(self.factories)

    @property
    def views(self) -> tuple[int, ...]:
        """The views of all key spaces, in their order."""
        return tuple(dict.fromkeys(space.view for space in self.spaces))


@dataclass(frozen=True, kw_only=True)
class SegmentWindows:
    """The windows of one segment in row order (known_at, series); n rows, V views."""

    series: np.ndarray  # int32 [n]
    origin_row: np.ndarray  # int64 [n], within the series
    known_at: np.ndarray  # datetime64[ns] [n]
    location: np.ndarray  # float32 [n, V]
    spread: np.ndarray  # float32 [n, V]
    flat: np.ndarray  # bool [n, V]
    missing: np.ndarray | None = None  # int32 [n, V], see windows.StoredWindows
    across: np.ndarray | None = None  # int64 [M, N], row ids of the version; see `moments_across`

    def __len__(self) -> int:
        return len(self.series)

    def by_series(self) -> np.ndarray:
        """int64 [n]: rows grouped by series, each group in time order; the order of `own` keys."""
        return np.argsort(self.series, kind="stable")

    def moments(self, num_series: int) -> np.ndarray:
        """int64 [M, N]: rows of each moment at which all N series have a window; the order of `joint` keys."""
        return complete_moments(self.known_at, num_series)

    def group_offsets(self, space: KeySpace, num_series: int) -> np.ndarray:
        """int64 [groups + 1]: where the groups of a key space begin and end in its keys."""
        if space.scope == "own":
            return np.concatenate([[0], np.cumsum(np.bincount(self.series, minlength=num_series))])
        if space.scope == "joint":
            return np.array([0, len(self.moments(num_series) if self.across is None else self.across)])
        return np.array([0, len(self)])


class EarlierWindows(NamedTuple):
    """Of all windows of the segments before, end to end: see `SegmentWindows`."""

    series: np.ndarray
    origin_row: np.ndarray
    known_at: np.ndarray


def write_segment(
    folder: Path,
    table: SeriesTable,
    origins: list[np.ndarray],
    encoder: KeyEncoder,
    plan: SegmentPlan,
    *,
    inside: SeriesTable | None = None,
    new_from: list[int] | None = None,
    earlier: EarlierWindows | None = None,
    covariates: StoredCovariates | None = None,
) -> SegmentWindows:
    """Encode the windows at `origins` and write every file of the segment.

    table: whole series, from where the version's series begin. origins: origin rows per series, ascending. inside: the
    table in units of the version's transform, which is what is encoded (default: the table, there is none).
    new_from: per series, the first row of `table` that no earlier segment stores (default: all are new). earlier: the
    version's windows before, where moments of all series are compared. covariates: of the table, if any; they have a
    file of their own (covariate_files.py).
    """
    folder.mkdir(parents=True)
    inside = inside or table
    spec, counts = plan.window, [len(rows) for rows in origins]
    series = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
    ends = [part.times[rows + spec.horizon] for part, rows in zip(table.series, origins, strict=True)]
    known_at = table.step.add(np.concatenate(ends), spec.known_delay)
    order = np.lexsort((series, known_at))
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = np.arange(len(order))
    statistics = np.empty((len(plan.views), 3, len(series)), dtype=np.float32)
    beside = {view: KeyNumbers(covariates, encoder, view) if covariates is not None else None for view in plan.views}
    for number, view in enumerate(plan.views):
        _write_view(folder, inside, origins, encoder, plan, view, rank, statistics[number], beside[view])
    windows = SegmentWindows(
        series=series[order],
        origin_row=np.concatenate(origins)[order],
        known_at=known_at[order],
        location=statistics[:, 0, order].T,
        spread=statistics[:, 1, order].T,
        flat=(statistics[:, 2] > 0)[:, order].T,
        missing=_missing_cells(table, origins, plan, order),
    )
    if earlier is not None:
        windows = replace(windows, across=moments_across(earlier, windows, plan.num_series))
    for space in plan.spaces:
        if space.scope == "joint":
            rows = windows.origin_row[windows.moments(plan.num_series)]
            if earlier is not None and windows.across is not None:
                rows = np.concatenate([earlier.origin_row, windows.origin_row])[windows.across]
            keys_of_moments = _encode_moments(inside, rows, encoder, space.view, spec, beside[space.view])
            write_keys(folder, space, keys_of_moments, plan.factories[space])
    write_windows(folder, windows, plan.views)
    if windows.across is not None:
        columns = {f"row_{number}": windows.across[:, number] for number in range(plan.num_series)}
        pq.write_table(pa.table(columns), folder / MOMENTS_FILE, compression="zstd")
    new_from = new_from or [0] * len(table.series)
    write_series(folder, [(s.times[start:], s.values[start:]) for s, start in zip(table.series, new_from, strict=True)])
    return windows


def moments_across(earlier: EarlierWindows, windows: SegmentWindows, num_series: int) -> np.ndarray | None:
    """int64 [M, N], row ids of the version: the moments that are complete with a segment, in time order.

    None where all of them are made of its own windows. Else some series lagged, and its windows complete moments of
    which an earlier segment has the others.
    """
    first, own = len(earlier.series), windows.moments(num_series)
    alone = np.ones(len(windows), dtype=bool)
    alone[own.ravel()] = False
    times = np.unique(windows.known_at[alone])
    stored = np.flatnonzero(np.isin(earlier.known_at, times))
    if not len(stored):
        return None
    rows = np.concatenate([stored, first + np.flatnonzero(alone)])
    known_at = np.concatenate([earlier.known_at, windows.known_at])
    series = np.concatenate([earlier.series, windows.series])
    rows = rows[np.lexsort((series[rows], known_at[rows]))]
    found = rows[complete_moments(known_at[rows], num_series)]
    if not len(found):
        return None
    every = np.concatenate([own + first, found])
    return every[np.argsort(known_at[every[:, 0]], kind="stable")]


def _missing_cells(
    table: SeriesTable, origins: list[np.ndarray], plan: SegmentPlan, order: np.ndarray
) -> np.ndarray | None:
    """Missing cells of each window under each view, int32 [n, V] in row order; None where no window misses any cell."""
    spec, counts, any_missing = plan.window, [], False
    for series, rows in zip(table.series, origins, strict=True):
        before = missing_before(series.values)
        counts.append(np.stack([before[rows + 1] - before[rows + 1 - view] for view in plan.views], axis=1))
        any_missing |= bool((before[rows + 1 + spec.horizon] > before[rows + 1 - spec.lookback]).any())
    return np.concatenate(counts)[order].astype(np.int32) if any_missing else None


def _write_view(
    folder: Path,
    table: SeriesTable,
    origins: list[np.ndarray],
    encoder: KeyEncoder,
    plan: SegmentPlan,
    view: int,
    rank: np.ndarray,
    statistics: np.ndarray,
    covariates: KeyNumbers | None,
) -> None:
    """Encode every window under one view, and write the keys of its scopes but `joint`.

    rank: int64 [n], row of each window, series after series. statistics: float32 [3, n], set here, in that order. Keys
    of `own` go straight into their file where they are not indexed: they are made in its order.
    """
    scopes = tuple(space.scope for space in plan.spaces if space.view == view and space.scope != "joint")
    first = np.concatenate([[0], np.cumsum([len(rows) for rows in origins])])
    held: dict[Scope, np.ndarray] = {}
    with ExitStack() as files:
        straight = None
        if "own" in scopes and plan.factories[KeySpace("own", view)] == EXACT:
            straight = files.enter_context(flat_keys(folder, KeySpace("own", view), len(rank)))
        encode = partial(_encode_series, table, origins, encoder, view, scopes, plan.window, covariates)
        for part in _side_by_side(encode, origins):
            for number, (keys, found) in part:
                place = slice(first[number], first[number + 1])
                statistics[:, place] = found
                for scope, rows in keys.items():
                    if scope == "own" and straight is not None:
                        straight.write(rows)
                        continue
                    if scope not in held:
                        held[scope] = np.empty((len(rank), rows.shape[1]), dtype=np.float32)
                    held[scope][place if scope == "own" else rank[place]] = rows
    for scope in [*held]:
        write_keys(folder, KeySpace(scope, view), held.pop(scope), plan.factories[KeySpace(scope, view)])


def _side_by_side(
    encode: Callable[[int], Encoding], origins: list[np.ndarray]
) -> Iterator[Iterator[tuple[int, Encoding]]]:
    """What `encode` makes of the number of each series, a lot of series of some `LOT` windows after the other."""
    workers = Workers(num_cores())
    lot = np.cumsum([len(rows) for rows in origins]) // LOT
    edges = [0, *(np.flatnonzero(np.diff(lot)) + 1).tolist(), len(origins)]
    with one_blas_thread():
        for start, end in pairwise(edges):
            yield zip(range(start, end), workers.run(encode, range(start, end)), strict=True)


def _encode_series(
    table: SeriesTable,
    origins: list[np.ndarray],
    encoder: KeyEncoder,
    view: int,
    scopes: tuple[Scope, ...],
    spec: WindowSpec,
    covariates: KeyNumbers | None,
    number: int,
) -> Encoding:
    """Keys of every window of one series, {scope: float32 [n, E]}, and statistics float32 [3, n]."""
    season, values = table.step.season, table.series[number].values.astype(np.float32)
    keys: dict[Scope, list[np.ndarray]] = {scope: [] for scope in scopes}
    statistics = []
    for chunk in _chunks(origins[number]):
        context = filled(cut(values, chunk - spec.lookback + 1, spec.lookback), season)[:, None]
        numbers = np.array([number])
        beside = None if covariates is None else covariates.of(numbers, chunk[:, None])
        encoded = encoder.encode(view, context, numbers, scopes, beside)
        statistics.append(np.stack([part[:, 0] for part in encoded.statistics]).astype(np.float32))
        for scope, part in encoded.keys.items():
            keys[scope].append(part[:, 0])
    return {scope: np.concatenate(parts) for scope, parts in keys.items()}, np.concatenate(statistics, axis=1)


def _encode_moments(
    table: SeriesTable,
    origin_row: np.ndarray,
    encoder: KeyEncoder,
    view: int,
    spec: WindowSpec,
    covariates: KeyNumbers | None,
) -> np.ndarray:
    """Joint keys, float32 [M, E]; origin_row: int64 [M, N]."""
    values = [series.values.astype(np.float32) for series in table.series]
    numbers = np.arange(len(values))
    parts = []
    for chunk in _chunks(origin_row):
        first = chunk - spec.lookback + 1
        context = np.stack([cut(v, first[:, n], spec.lookback) for n, v in enumerate(values)], axis=1)
        beside = None if covariates is None else covariates.of(numbers, chunk)
        encoded = encoder.encode(view, filled(context, table.step.season), numbers, ("joint",), beside)
        parts.append(encoded.keys["joint"])
    return np.concatenate(parts)


def write_windows(folder: Path, windows: SegmentWindows, views: tuple[int, ...]) -> None:
    """Write windows.parquet."""
    columns = {"series": windows.series, "origin_row": windows.origin_row, "known_at": windows.known_at}
    for number, view in enumerate(views):
        for name in STATISTICS if windows.missing is None else (*STATISTICS, "missing"):
            columns[f"{name}_{view}"] = getattr(windows, name)[:, number]
    pq.write_table(pa.table(columns), folder / WINDOWS_FILE, compression="zstd")


def read_windows(table: pa.Table, views: tuple[int, ...]) -> SegmentWindows:
    """windows.parquet, decoded."""
    column = {name: table.column(name).to_numpy() for name in table.column_names}
    names = (*STATISTICS, "missing") if f"missing_{views[0]}" in column else STATISTICS
    stack = {name: np.stack([column[f"{name}_{view}"] for view in views], axis=1) for name in names}
    return SegmentWindows(
        series=column["series"],
        origin_row=column["origin_row"],
        known_at=column["known_at"].astype("datetime64[ns]"),
        **stack,
    )


def write_series(folder: Path, parts: list[tuple[np.ndarray, np.ndarray]]) -> None:
    """Write series.parquet: for each series, in the version's order, the (times, values) that the segment adds."""
    number = np.repeat(np.arange(len(parts), dtype=np.int32), [len(times) for times, _ in parts])
    columns = {
        "series": number,
        "time": np.concatenate([times for times, _ in parts]),
        "value": pa.array(np.concatenate([values for _, values in parts]), from_pandas=True),  # null where missing
    }
    pq.write_table(pa.table(columns), folder / SERIES_FILE, compression="zstd")


def join_series(tables: list[pa.Table], series_ids: tuple[str, ...]) -> list[Series]:
    """series.parquet of all segments, oldest first, as whole series."""
    parts: list[list[tuple[np.ndarray, np.ndarray]]] = [[] for _ in series_ids]
    for table in tables:
        number = table.column("series").to_numpy()
        times = table.column("time").to_numpy().astype("datetime64[ns]")
        values = table.column("value").to_numpy()
        bounds = np.searchsorted(number, np.arange(len(series_ids) + 1))
        for series, (start, end) in enumerate(pairwise(bounds)):
            parts[series].append((times[start:end], values[start:end]))
    return [
        Series(series_id=name, times=np.concatenate([t for t, _ in part]), values=np.concatenate([v for _, v in part]))
        for name, part in zip(series_ids, parts, strict=True)
    ]


def _chunks(rows: np.ndarray) -> Iterator[np.ndarray]:
    """At least one chunk, so that a segment without windows still gets (empty) keys of the right width."""
    for start in range(0, max(len(rows), 1), CHUNK):
        yield rows[start : start + CHUNK]
