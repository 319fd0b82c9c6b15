"""One segment of a version: its files, how they are written, and how they are read back.

series.parquet    the steps that this segment adds: series, time, value
windows.parquet   its windows, ordered by (known_at, series): where they are and what normalised them
keys-SCOPE-VIEW.npy   keys, float32 [n, E]; `own` grouped by series, `joint` one per moment; each in time order
SCOPE-VIEW-GROUP.faiss   an index over one group of keys, only where it is faster than an exact scan
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from memory_index.encoder import KeyEncoder
from memory_index.files import write_array
from memory_index.search import EXACT_ROWS, FaissIndex, KeyGroup
from memory_index.tables.series import Series, SeriesTable
from memory_index.types import KeySpace, Scope
from memory_index.versions.factories import trained_index
from memory_index.windows import WindowSpec, complete_moments, cut

SERIES_FILE, WINDOWS_FILE = "series.parquet", "windows.parquet"
CHUNK = 2048  # windows encoded at once
EXACT = "Flat"  # factory of a key space without FAISS files
INDEX_SUFFIX = ".faiss"


@dataclass(frozen=True, kw_only=True, slots=True)
class SegmentPlan:
    """What all segments of a version have in common: the shape of windows, the key spaces, the number of series."""

    window: WindowSpec
    spaces: tuple[KeySpace, ...]
    num_series: int

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
        return np.array([0, len(self.moments(num_series)) if space.scope == "joint" else len(self)])


def write_segment(
    folder: Path,
    table: SeriesTable,
    origins: list[np.ndarray],
    encoder: KeyEncoder,
    plan: SegmentPlan,
    *,
    new_from: list[int] | None = None,
) -> SegmentWindows:
    """Encode the windows at `origins` and write every file but the FAISS indexes.

    table: whole series, from where the version's series begin. origins: origin rows per series, ascending.
    new_from: per series, the first row of `table` that no earlier segment stores (default: all are new).
    """
    folder.mkdir(parents=True)
    spec, counts = plan.window, [len(rows) for rows in origins]
    series = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
    ends = [part.times[rows + spec.horizon] for part, rows in zip(table.series, origins, strict=True)]
    known_at = table.step.add(np.concatenate(ends), spec.known_delay)
    order = np.lexsort((series, known_at))
    statistics = np.empty((len(plan.views), 3, len(series)), dtype=np.float32)
    for number, view in enumerate(plan.views):
        scopes = tuple(space.scope for space in plan.spaces if space.view == view and space.scope != "joint")
        keys, statistics[number] = _encode_series(table, origins, encoder, view, scopes, spec)
        for scope, rows in keys.items():
            write_array(folder / keys_file(KeySpace(scope, view)), rows if scope == "own" else rows[order])
    windows = SegmentWindows(
        series=series[order],
        origin_row=np.concatenate(origins)[order],
        known_at=known_at[order],
        location=statistics[:, 0, order].T,
        spread=statistics[:, 1, order].T,
        flat=statistics[:, 2, order].T > 0,
    )
    for space in plan.spaces:
        if space.scope == "joint":
            rows = windows.origin_row[windows.moments(plan.num_series)]
            write_array(folder / keys_file(space), _encode_moments(table, rows, encoder, space.view, spec))
    write_windows(folder, windows, plan.views)
    new_from = new_from or [0] * len(table.series)
    write_series(folder, [(s.times[start:], s.values[start:]) for s, start in zip(table.series, new_from, strict=True)])
    return windows


def keys_file(space: KeySpace) -> str:
    """The file of a key space's keys, in its segment."""
    return f"keys-{space}.npy"


def _encode_series(
    table: SeriesTable,
    origins: list[np.ndarray],
    encoder: KeyEncoder,
    view: int,
    scopes: tuple[Scope, ...],
    spec: WindowSpec,
) -> tuple[dict[Scope, np.ndarray], np.ndarray]:
    """Keys of every window, series after series, {scope: float32 [n, E]}, and statistics float32 [3, n]."""
    total = sum(len(rows) for rows in origins)
    keys: dict[Scope, np.ndarray] = {}
    statistics = np.empty((3, total), dtype=np.float32)
    done = 0
    for number, rows in enumerate(origins):
        values = table.series[number].values.astype(np.float32)
        for chunk in _chunks(rows):
            context = cut(values, chunk - spec.lookback + 1, spec.lookback)[:, None]
            encoded = encoder.encode(view, context, np.array([number]), scopes)
            place = slice(done, done + len(chunk))
            statistics[:, place] = [part[:, 0] for part in encoded.statistics]
            for scope, part in encoded.keys.items():
                keys.setdefault(scope, np.empty((total, part.shape[-1]), dtype=np.float32))[place] = part[:, 0]
            done += len(chunk)
    return keys, statistics


def _encode_moments(
    table: SeriesTable, origin_row: np.ndarray, encoder: KeyEncoder, view: int, spec: WindowSpec
) -> np.ndarray:
    """Joint keys, float32 [M, E]; origin_row: int64 [M, N]."""
    values = [series.values.astype(np.float32) for series in table.series]
    numbers = np.arange(len(values))
    parts = []
    for chunk in _chunks(origin_row):
        first = chunk - spec.lookback + 1
        context = np.stack([cut(v, first[:, n], spec.lookback) for n, v in enumerate(values)], axis=1)
        parts.append(encoder.encode(view, context, numbers, ("joint",)).keys["joint"])
    return np.concatenate(parts)


def write_windows(folder: Path, windows: SegmentWindows, views: tuple[int, ...]) -> None:
    """Write windows.parquet."""
    columns = {"series": windows.series, "origin_row": windows.origin_row, "known_at": windows.known_at}
    for number, view in enumerate(views):
        for name in ("location", "spread", "flat"):
            columns[f"{name}_{view}"] = getattr(windows, name)[:, number]
    pq.write_table(pa.table(columns), folder / WINDOWS_FILE, compression="zstd")


def read_windows(table: pa.Table, views: tuple[int, ...]) -> SegmentWindows:
    """windows.parquet, decoded."""
    column = {name: table.column(name).to_numpy() for name in table.column_names}
    stack = {
        name: np.stack([column[f"{name}_{view}"] for view in views], axis=1) for name in ("location", "spread", "flat")
    }
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
        "value": np.concatenate([values for _, values in parts]),
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


def read_keys(folder: Path, space: KeySpace) -> np.ndarray:
    """The keys of a key space, float32 [n, E], mapped from disk."""
    return np.load(folder / keys_file(space), mmap_mode="r", allow_pickle=False).view(np.ndarray)


def write_indexes(folder: Path, windows: SegmentWindows, plan: SegmentPlan, factories: dict[KeySpace, str]) -> None:
    """Write the FAISS files of a segment, for the groups of keys that are large enough to need one."""
    for space in plan.spaces:
        offsets, keys = windows.group_offsets(space, plan.num_series), read_keys(folder, space)
        for group, file in index_files(space, factories[space], offsets).items():
            index = trained_index(keys[offsets[group] : offsets[group + 1]], factories[space])
            # By way of Python's file, because FAISS's own does not notice a disk that is full when it closes it.
            with (folder / file).open("xb") as target:
                faiss.write_index(index, faiss.PyCallbackIOWriter(target.write))


def index_files(space: KeySpace, factory: str, offsets: np.ndarray) -> dict[int, str]:
    """Which groups of a key space have a FAISS file: {group number: file name}. Small groups are scanned."""
    if factory == EXACT:
        return {}
    return {group: f"{space}-{group}{INDEX_SUFFIX}" for group, size in enumerate(np.diff(offsets)) if size > EXACT_ROWS}


def read_groups(folder: Path, space: KeySpace, factory: str, offsets: np.ndarray) -> list[KeyGroup]:
    """The key groups of one key space, mapped from disk. Hashes must have been checked before."""
    keys, files = read_keys(folder, space), index_files(space, factory, offsets)
    flags = faiss.IO_FLAG_MMAP_IFC
    return [
        KeyGroup(
            keys=keys[start:end],
            index=FaissIndex(faiss.read_index(str(folder / files[group]), flags)) if group in files else None,
        )
        for group, (start, end) in enumerate(pairwise(offsets))
    ]


def _chunks(rows: np.ndarray) -> Iterator[np.ndarray]:
    """At least one chunk, so that a segment without windows still gets (empty) keys of the right width."""
    for start in range(0, max(len(rows), 1), CHUNK):
        yield rows[start : start + CHUNK]
