"""Making versions: build from a table, append what has happened since, compact segments into one.

All three write into a staging folder and publish it with one rename (`store.py`).
"""

from __future__ import annotations

import dataclasses
import resource
import time
from datetime import UTC, datetime
from importlib.metadata import version as library_version
from pathlib import Path

import numpy as np

from memory_index.encoder import EncoderConfig, KeyEncoder
from memory_index.errors import DataError, IncompatibleError, UsageError
from memory_index.factories import check_factory, choose_factory
from memory_index.fit_encoder import fit_encoder, shared_origins
from memory_index.manifest import FORMAT, BuildRecord, Manifest, SegmentRecord, SpaceRecord
from memory_index.measure import recall_at_10, temperatures
from memory_index.opening import LoadEncoder, open_version, read_encoder, read_memory, read_series, write_encoder
from memory_index.segments import (
    SegmentWindows,
    index_files,
    keys_file,
    write_index,
    write_segment,
)
from memory_index.series import Series, SeriesTable
from memory_index.splits import Split
from memory_index.staging import Staging
from memory_index.store import Store
from memory_index.types import SCOPES, KeySpace, Scope
from memory_index.version import Version, check_files
from memory_index.windows import Step, WindowSpec, check_views, origin_rows

MAX_JOINT_SERIES = 64  # METHOD 5.1b
DEFAULT_VIEWS = EncoderConfig().views
RECORDED_LIBRARIES = ("numpy", "pandas", "pyarrow", "faiss-cpu", "safetensors")


def default_views(lookback: int) -> tuple[int, ...]:
    """The default views that fit a lookback, or the whole lookback where none does."""
    return tuple(view for view in DEFAULT_VIEWS if view <= lookback) or (lookback,)


def build(
    table: SeriesTable,
    store: Store,
    name: str,
    *,
    window: WindowSpec,
    split: Split,
    encoder: EncoderConfig | None = None,
    scopes: tuple[Scope, ...] | None = None,
    factory: str = "auto",
    fit_origins: list[np.ndarray] | None = None,
) -> Version:
    """Build a version from the training part of a table and publish it.

    encoder: settings of the built-in key; default views are those that fit the lookback. scopes: default all
    that the table allows (`joint` needs 2 to 64 series with shared time stamps). factory: `auto`, `Flat`, or any
    FAISS factory string. fit_origins: origin rows per series of the windows that the encoder is fitted on, where those are
    not all that are stored (cross-fitting, METHOD 5.2).

    Raises `DataError` (series too short), `UsageError` (views, scopes, factory), `IncompatibleError` (a scope
    that this table cannot have), `ResourceError` (disk, lock).
    """
    started = time.perf_counter()
    encoder = encoder or EncoderConfig(views=default_views(window.lookback))
    check_views(encoder.views, window)
    training = stored_part(table, split.train_until, window)
    origins = [origin_rows(series.values, window) for series in training.series]
    require_windows(training, origins, window)
    joint = joint_refusal(table, origins)
    scopes = choose_scopes(scopes, joint)
    spaces = tuple(KeySpace(scope, view) for scope in scopes for view in encoder.views)
    check_factory(
        factory,
        {space: encoder.key_width(space, len(table.series)) for space in spaces},
        {space: group_sizes(space, origins) for space in spaces},
    )
    with store.staging(name) as staging:
        fitted = fit_encoder(
            training, fit_origins or origins, encoder, lookback=window.lookback, horizon=window.horizon, scopes=scopes
        )
        described = write_encoder(staging.path, fitted)
        windows = write_segment(
            staging.path / "segment-0",
            training,
            origins,
            fitted,
            spec=window,
            spaces=spaces,
            views=encoder.views,
            joint_series=fitted.joint_series,
            new_from=[0] * len(training.series),
        )
        records = write_indexes(staging.path / "segment-0", spaces, fitted, windows, factory, fitted.joint_series)
        manifest = Manifest(
            format=FORMAT,
            window=window,
            step=table.step,
            layout=table.layout,
            series_ids=table.series_ids,
            joint="built" if "joint" in scopes else joint or "not asked for",
            encoder=described,
            spaces=records,
            split=split,
            fitted_until=str(max(series.times[-1] for series in training.series)),
            num_rows=len(windows),
            first_known_at=str(windows.known_at[0]),
            last_known_at=str(windows.known_at[-1]),
            source={"file": Path(table.source).name, "sha256": training.content_hash},
            segments=(segment_record("segment-0", windows, [len(s) for s in training.series], fitted.joint_series),),
            files={},
            parent=None,
            libraries={library: library_version(library) for library in RECORDED_LIBRARIES},
            built=built_since(started),
        )
        return publish_measured(staging, manifest, fitted, started)


def append(
    store: Store, ref: str, table: SeriesTable, *, until: np.datetime64 | None = None, load_encoder: LoadEncoder | None = None
) -> Version:
    """A new version with what has happened since; nothing is fitted or encoded again.

    table: the whole history or only new rows; where it overlaps what is stored, both must agree. until: use only
    steps up to this time (UTC or naive). Cost and disk are in proportion to what is new.

    Raises `IncompatibleError` (other series, step, a gap, or an overlap that differs: names the first cell),
    `DataError` (nothing new).
    """
    started = time.perf_counter()
    parent = store.resolve(ref)
    with store.staging(parent.name) as staging:
        parent = store.resolve(parent.name) if "@" not in ref else parent
        check_files(parent, only=lambda path: path.endswith("series.parquet") or "/" not in path)
        manifest = parent.manifest
        stored = read_series(parent.path, manifest)
        joined = join_new_rows(stored, table, until=until, delay=manifest.window.known_delay)
        if manifest.joint == "built" and not joined.shares_times:
            raise IncompatibleError(
                f"{table.source} does not bring all series to the same time, and this version compares whole moments (scope 'joint')",
                hint="append the same steps of every series, or build a version without the scope 'joint'",
            )
        new_from = [len(series) for series in stored.series]
        origins = new_origins(stored, joined, manifest.window)
        encoder = read_encoder(parent.path, manifest, load_encoder)
        spaces = tuple(record.space for record in manifest.spaces)
        staging.adopt(parent, *sorted({path.split("/")[0] for path in manifest.files}))
        folder = f"segment-{len(manifest.segments)}"
        joint_series = tuple(range(len(manifest.series_ids))) if manifest.joint == "built" else ()
        windows = write_segment(
            staging.path / folder,
            joined,
            origins,
            encoder,
            spec=manifest.window,
            spaces=spaces,
            views=tuple(dict.fromkeys(space.view for space in spaces)),
            joint_series=joint_series,
            new_from=new_from,
        )
        for record in manifest.spaces:
            write_group_indexes(staging.path / folder, record.space, record.factory, windows, joint_series, len(new_from))
        num_new = [len(series) - start for series, start in zip(joined.series, new_from, strict=True)]
        known_at = [np.datetime64(manifest.first_known_at, "ns"), np.datetime64(manifest.last_known_at, "ns"), *windows.known_at]
        child = dataclasses.replace(
            manifest,
            num_rows=manifest.num_rows + len(windows),
            first_known_at=str(min(known_at)),
            last_known_at=str(max(known_at)),
            source={"file": Path(table.source).name, "sha256": joined.content_hash},
            segments=(*manifest.segments, segment_record(folder, windows, num_new, joint_series)),
            parent=manifest.fingerprint,
            built=built_since(started),
        )
        if any(record.factory != "Flat" for record in manifest.spaces):
            child = with_recall(staging.path, child, encoder)
        return staging.publish(dataclasses.replace(child, built=built_since(started)))


def compact(store: Store, ref: str, *, load_encoder: LoadEncoder | None = None) -> Version:
    """A new version with the segments of another merged into one; windows, keys and answers stay the same.

    Raises `UsageError` if there is only one segment.
    """
    started = time.perf_counter()
    parent = store.resolve(ref)
    manifest = parent.manifest
    if len(manifest.segments) == 1:
        raise UsageError(f"{parent.ref} has only one segment: there is nothing to merge")
    with store.staging(parent.name) as staging:
        memory = open_version(parent, load_encoder=load_encoder)
        staging.adopt(parent, *[path for path in manifest.files if "/" not in path])
        folder = staging.path / "segment-0"
        windows = merge_segments(folder, memory, read_series(parent.path, manifest))
        joint_series = memory.segments[0].joint_series
        for record in manifest.spaces:
            write_group_indexes(folder, record.space, record.factory, windows, joint_series, len(manifest.series_ids))
        num_steps = [int(n) for n in np.diff(memory.windows.offset)]
        merged = dataclasses.replace(
            manifest,
            segments=(segment_record("segment-0", windows, num_steps, joint_series),),
            parent=manifest.fingerprint,
            built=built_since(started),
        )
        merged = with_recall(staging.path, merged, memory.encoder)
        return staging.publish(dataclasses.replace(merged, built=built_since(started)))


# What a version may be built from


def joint_refusal(table: SeriesTable, origins: list[np.ndarray]) -> str:
    """Why a table with these training windows cannot have the joint scope; empty if it can (METHOD 5.1b)."""
    if not 2 <= len(table.series) <= MAX_JOINT_SERIES:
        return f"it needs 2 to {MAX_JOINT_SERIES} series, and there are {len(table.series)}"
    if not table.shares_times:
        return "it needs series that share all time stamps"
    return "" if len(shared_origins(origins)) else "it needs a time at which no series has a missing value in its window"


def choose_scopes(asked: tuple[Scope, ...] | None, joint: str) -> tuple[Scope, ...]:
    """The scopes to build. joint: why there can be no joint scope, or empty."""
    if asked is None:
        return tuple(scope for scope in SCOPES if scope != "joint" or not joint)
    for scope in asked:
        if scope not in SCOPES:
            raise UsageError(f"unknown scope '{scope}'", hint=f"choose from {', '.join(SCOPES)}")
    if "joint" in asked and joint:
        raise IncompatibleError(f"this table cannot have the scope 'joint': {joint}", hint="leave it out of --scopes")
    if not asked:
        raise UsageError("at least one scope is needed", hint=f"choose from {', '.join(SCOPES)}")
    return tuple(scope for scope in SCOPES if scope in asked)


def group_sizes(space: KeySpace, origins: list[np.ndarray]) -> np.ndarray:
    """Keys in each group of a key space of a version with windows at these origin rows, int64 [groups]."""
    if space.scope == "own":
        return np.array([len(rows) for rows in origins])
    return np.array([len(shared_origins(origins)) if space.scope == "joint" else sum(map(len, origins))])


def stored_part(table: SeriesTable, until: str | np.datetime64, window: WindowSpec) -> SeriesTable:
    """The steps that are known by `until`: with a publication delay, that many steps fewer."""
    limit = np.datetime64(until, "ns")
    return cut_table(table, [
        int(np.searchsorted(table.step.add(series.times, window.known_delay), limit, side="right")) for series in table.series
    ])


def cut_table(table: SeriesTable, rows: list[int]) -> SeriesTable:
    """The first rows of each series; series that shared their time stamps go on sharing them."""
    times = {(id(s.times), n): s.times[:n] for s, n in zip(table.series, rows, strict=True)}
    return dataclasses.replace(
        table,
        series=tuple(
            Series(series_id=s.series_id, times=times[id(s.times), n], values=s.values[:n])
            for s, n in zip(table.series, rows, strict=True)
        ),
    )


def require_windows(table: SeriesTable, origins: list[np.ndarray], window: WindowSpec) -> None:
    """Raise `DataError` for a series without a single whole window in the training part."""
    for series, rows in zip(table.series, origins, strict=True):
        if len(rows) == 0:
            missing = int(np.isnan(series.values).sum())
            raise DataError(
                f"{table.source}: series '{series.series_id}' has no whole window of {window.lookback} + {window.horizon} "
                f"steps in its training part of {len(series)} steps" + (f", {missing} of them missing" if missing else ""),
                hint="choose a shorter --lookback or --horizon, a larger training part, or leave the series out (--ignore)",
            )


# Appending


def join_new_rows(stored: SeriesTable, table: SeriesTable, *, until: np.datetime64 | None, delay: int) -> SeriesTable:
    """The stored series with the new steps of a table behind them."""
    require_same_kind(stored, table)
    joined, num_new = [], 0
    for old in stored.series:
        new = table[old.series_id]
        require_overlap(old, new, table, stored.step)
        keep = new.times > old.times[-1]
        if until is not None:
            keep &= stored.step.add(new.times, delay) <= until
        num_new += int(keep.sum())
        joined.append(
            Series(
                series_id=old.series_id,
                times=np.concatenate([old.times, new.times[keep]]),
                values=np.concatenate([old.values, new.values[keep]]),
            )
        )
    if num_new == 0:
        last = max(series.times[-1] for series in stored.series)
        raise DataError(
            f"{table.source} has no steps after {stored.step.isoformat(last)}, which the version already has"
            + ("" if until is None else f", that are known by {stored.step.isoformat(until)}"),
            hint="append a file with later rows" + ("" if until is None else ", or choose a later --until"),
        )
    return dataclasses.replace(stored, series=tuple(joined), source=table.source)


def require_same_kind(stored: SeriesTable, table: SeriesTable) -> None:
    """Raise `IncompatibleError` unless a table has the step and the series of a version."""
    if table.step != stored.step:
        ours, theirs = (f"{step.frequency}" + (f" in {step.time_zone}" if step.time_zone else "") for step in (stored.step, table.step))
        raise IncompatibleError(f"{table.source} has the step {theirs}, the version {ours}", hint="append data of the same; where a short file cannot tell, say so: --step, --time-zone")
    more = sorted(set(table.series_ids) - set(stored.series_ids))
    less = sorted(set(stored.series_ids) - set(table.series_ids))
    if more or less:
        name, what = (more[0], "is not in the version") if more else (less[0], f"of the version is not in {table.source}")
        raise IncompatibleError(f"series '{name}' {what}", hint="append the same series, or build a new version")


def require_overlap(old: Series, new: Series, table: SeriesTable, step: Step) -> None:
    """Raise `IncompatibleError` unless a new series continues the stored one and agrees with it where both have steps."""
    where = f"{table.source}: series '{old.series_id}'"
    expected = step.add(old.times[-1:], 1)[0]
    if new.times[0] > expected:
        raise IncompatibleError(
            f"{where} begins at {step.isoformat(new.times[0])}, but the version ends before {step.isoformat(expected)}",
            hint="append the steps between as well",
        )
    first = int(np.searchsorted(old.times, new.times[0]))
    overlap = min(len(old) - first, len(new))
    if new.times[0] < old.times[0] or not np.array_equal(old.times[first : first + overlap], new.times[:overlap]):
        raise IncompatibleError(
            f"{where} begins at {step.isoformat(new.times[0])}, before or between the steps of the version, "
            f"which begins at {step.isoformat(old.times[0])}",
            hint="append the same history, or only what is new",
        )
    ours, theirs = old.values[first : first + overlap], new.values[:overlap]
    differs = np.flatnonzero((ours != theirs) & ~(np.isnan(ours) & np.isnan(theirs)))
    if len(differs):
        at = int(differs[0])
        raise IncompatibleError(
            f"{where} at {step.isoformat(new.times[at])} is {theirs[at]}, but the version has {ours[at]} "
            f"({len(differs)} of {overlap} overlapping steps differ)",
            hint="append data that agree with what was built, or build a new version",
        )


def new_origins(stored: SeriesTable, joined: SeriesTable, window: WindowSpec) -> list[np.ndarray]:
    """Origin rows of the windows that end in the new steps; only the tail that such windows can touch is looked at."""
    result = []
    for old, series in zip(stored.series, joined.series, strict=True):
        start = max(0, len(old) - window.length + 1)
        start -= start % window.stride  # so that origins keep falling on every stride-th row
        rows = origin_rows(series.values[start:], window) + start
        result.append(rows[rows + window.horizon >= len(old)])
    return result


# Files and the manifest


def merge_segments(folder: Path, memory, table: SeriesTable) -> SegmentWindows:
    """Write the segments of a memory as one: the same rows and keys, in the order of a single segment."""
    from memory_index.segments import write_series, write_windows

    folder.mkdir(parents=True)
    stored = memory.windows
    order = np.lexsort((stored.series, stored.known_at))
    names = ("series", "origin_row", "known_at", "location", "spread", "flat")
    windows = SegmentWindows(**{name: getattr(stored, name)[order] for name in names})
    write_windows(folder, windows, stored.views)
    write_series(folder, [(series.times, series.values) for series in table.series])
    for space in (record.space for record in memory.manifest.spaces):
        if space.scope == "own":  # grouped by series, and within one the segments follow each other in time
            groups = range(len(stored.series_ids))
            keys = np.concatenate([segment.groups[space][g].keys for g in groups for segment in memory.segments])
        else:
            keys = np.concatenate([segment.groups[space][0].keys for segment in memory.segments])
            keys = keys[order] if space.scope == "pooled" else keys
        np.save(folder / keys_file(space), keys, allow_pickle=False)
    return windows


def write_indexes(
    folder: Path,
    spaces: tuple[KeySpace, ...],
    encoder: KeyEncoder,
    windows: SegmentWindows,
    factory: str,
    joint_series: tuple[int, ...],
) -> tuple[SpaceRecord, ...]:
    """Choose how each key space is searched, write its FAISS files, and return its record (not yet measured)."""
    records = []
    num_series = int(windows.series.max()) + 1
    for space in spaces:
        sizes = np.diff(group_offsets(windows, space, joint_series, num_series))
        chosen, reason = choose_factory(factory, int(sizes.max()))
        width = np.load(folder / keys_file(space), mmap_mode="r", allow_pickle=False).shape[1]
        write_group_indexes(folder, space, chosen, windows, joint_series, num_series)
        records.append(
            SpaceRecord(
                scope=space.scope,
                view=space.view,
                width=width,
                value_width=encoder.value_width(space),
                factory=chosen,
                reason=reason,
                temperature=1.0,
                recall_at_10=1.0,
            )
        )
    return tuple(records)


def group_offsets(
    windows: SegmentWindows, space: KeySpace, joint_series: tuple[int, ...], num_series: int
) -> np.ndarray:
    """Where the groups of a key space begin and end in its keys."""
    if space.scope == "own":
        return np.concatenate([[0], np.cumsum(np.bincount(windows.series, minlength=num_series))])
    return np.array([0, len(windows.moments(joint_series)) if space.scope == "joint" else len(windows)])


def write_group_indexes(
    folder: Path, space: KeySpace, factory: str, windows: SegmentWindows, joint_series: tuple[int, ...], num_series: int
) -> None:
    """The FAISS files of one key space, for its groups that are large enough to need one."""
    offsets = group_offsets(windows, space, joint_series, num_series)
    keys = np.load(folder / keys_file(space), mmap_mode="r", allow_pickle=False)
    for group, file in index_files(space, factory, offsets).items():
        write_index(folder / file, np.ascontiguousarray(keys[offsets[group] : offsets[group + 1]]), factory)


def publish_measured(staging: Staging, manifest: Manifest, encoder: KeyEncoder, started: float) -> Version:
    """Measure temperatures and recall on the finished files, then publish."""
    memory = read_memory(staging.path, manifest, encoder)
    measured = temperatures(memory)
    spaces = tuple(dataclasses.replace(record, temperature=measured[record.space]) for record in manifest.spaces)
    manifest = with_recall(staging.path, dataclasses.replace(manifest, spaces=spaces), encoder)
    return staging.publish(dataclasses.replace(manifest, built=built_since(started)))


def with_recall(folder: Path, manifest: Manifest, encoder: KeyEncoder) -> Manifest:
    """The manifest with the recall that its files have."""
    recall = recall_at_10(read_memory(folder, manifest, encoder))
    spaces = tuple(dataclasses.replace(record, recall_at_10=recall[record.space]) for record in manifest.spaces)
    return dataclasses.replace(manifest, spaces=spaces)


def segment_record(folder: str, windows: SegmentWindows, num_steps: list[int], joint_series: tuple[int, ...]) -> SegmentRecord:
    return SegmentRecord(
        folder=folder, num_rows=len(windows), num_moments=len(windows.moments(joint_series)), num_steps=sum(num_steps)
    )


def built_since(started: float) -> BuildRecord:
    return BuildRecord(
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        seconds=round(time.perf_counter() - started, 3),
        peak_rss_mb=round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
    )
