"""Building a version from the training part of a table; what `append.py` and `compact.py` share with it stands last.

All of them write into a staging folder and publish it with one rename (`store.py`).
"""

from __future__ import annotations

import dataclasses
import resource
import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version as library_version
from pathlib import Path
from typing import Any

import numpy as np

from memory_index.encoder import EncoderConfig, KeyEncoder, default_views
from memory_index.errors import DataError, IncompatibleError, UsageError
from memory_index.fit_encoder import fit_encoder, shared_origins
from memory_index.local import LocalMemory
from memory_index.measure import recall_at_10, temperatures
from memory_index.skipped import Skipped, require_none_skipped, skipped_sentence
from memory_index.splits import Split
from memory_index.tables.series import COARSE_FIX, Series, SeriesTable, coarse
from memory_index.transforms import Transform, fit_transform
from memory_index.types import MAX_JOINT_SERIES, SCOPES, KeySpace, Scope
from memory_index.versions.factories import check_factory, choose_factory
from memory_index.versions.manifest import FORMAT, BuildRecord, Manifest, SegmentRecord, SpaceRecord
from memory_index.versions.opening import read_memory, write_encoder
from memory_index.versions.segments import SegmentPlan, SegmentWindows, write_segment
from memory_index.versions.store import Store
from memory_index.versions.version import Version
from memory_index.windows import WindowSpec, check_views, origin_rows

FIRST_SEGMENT = "segment-0"
FitEncoder = Callable[..., KeyEncoder]  # called like `fit_encoder`
Review = Callable[[LocalMemory], tuple[str, ...]]
RECORDED_LIBRARIES = ("numpy", "pandas", "pyarrow", "faiss-cpu", "safetensors")


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
    fit: FitEncoder = fit_encoder,
    transform: str | Transform = "none",
    review: Review = lambda memory: (),
    strict: bool = False,
) -> Version:
    """Build a version from the training part of a table and publish it.

    encoder: settings of the built-in key; default views are those that fit the lookback. scopes: default all
    that the table allows (`joint` needs 2 to 64 series with shared time stamps). factory: `auto`, `Flat`, or any
    FAISS factory string. fit_origins: origin rows per series of the windows that the encoder is fitted on, where
    those are not all that are stored (cross-fitting). fit: makes the encoder, as `fit_encoder` does; how a learned one
    comes in. transform: kind of the units that windows are compared and averaged in (transforms.py), or `auto`; or one
    whose numbers are known. review: looks at the finished memory before it is published; what it returns becomes the
    version's notes.

    Each series ends with its last value. One without a window is left out and named in the manifest's `built.skipped`.

    Raises `DataError` (every series too short, a value that cannot be transformed), `UsageError` (views, scopes,
    factory, transform), `IncompatibleError` (a scope that this table cannot have), `ResourceError` (disk, lock).
    """
    started = time.perf_counter()
    encoder = encoder or EncoderConfig(views=default_views(window.lookback))
    check_views(encoder.views, window := table.rule(window))
    known = stored_part(table, split.train_until, window)
    training, origins, skipped = with_windows(up_to_last_values(known), window, encoder.views, strict=strict)
    joint = joint_refusal(known, training, origins)
    scopes = choose_scopes(scopes, joint)
    sizes = {KeySpace(scope, view): group_sizes(scope, origins) for scope in scopes for view in encoder.views}
    chosen = {space: choose_factory(factory, each) for space, each in sizes.items()}
    factories = {space: name for space, (name, _) in chosen.items()}
    plan = SegmentPlan(window=window, factories=factories, num_series=len(training.series))
    check_factory(factory, {space: encoder.key_width(space, plan.num_series) for space in plan.spaces}, sizes)
    transform, why = (transform, "") if isinstance(transform, Transform) else fit_transform(transform, training)
    inside = transform.of_table(training)
    fitting = {"lookback": window.lookback, "horizon": window.horizon, "scopes": scopes}
    with store.staging(name) as staging:
        fitted = fit(inside, fit_origins or origins, encoder, **fitting)
        described = write_encoder(staging.path, fitted)
        windows = write_segment(staging.path / FIRST_SEGMENT, training, origins, fitted, plan, inside=inside)
        records = tuple(
            space_record(space, encoder.key_width(space, plan.num_series), fitted.value_width(space), *chosen[space])
            for space in plan.spaces
        )
        manifest = first_manifest(training, windows, plan, records, described, split, joint)
        manifest = measured(staging.path, dataclasses.replace(manifest, transform=transform), fitted)
        notes = coarse_notes(training) + ((why,) if why else ()) + review(read_memory(staging.path, manifest, fitted))
        built = dataclasses.replace(built_since(started, table.source), notes=notes, skipped=skipped)
        return staging.publish(dataclasses.replace(manifest, built=built))


def first_manifest(
    training: SeriesTable,
    windows: SegmentWindows,
    plan: SegmentPlan,
    records: tuple[SpaceRecord, ...],
    encoder: dict[str, Any],
    split: Split,
    joint: str,
) -> Manifest:
    """What a version of one segment says of itself, before anything is measured.

    training: the part that is stored. encoder: as `write_encoder` describes it. joint: why there can be no joint scope,
    or empty.
    """
    return Manifest(
        format=FORMAT,
        window=plan.window,
        step=training.step,
        layout=training.layout,
        series_ids=training.series_ids,
        joint="built" if any(space.scope == "joint" for space in plan.spaces) else joint or "not asked for",
        encoder=encoder,
        spaces=records,
        split=split,
        fitted_until=str(max(series.times[-1] for series in training.series)),
        num_rows=len(windows),
        first_known_at=str(windows.known_at[0]),
        last_known_at=str(windows.known_at[-1]),
        data_sha256=training.content_hash,
        segments=(segment_record(FIRST_SEGMENT, windows, sum(len(series) for series in training.series)),),
        files={},
        parent=None,
        libraries={library: library_version(library) for library in RECORDED_LIBRARIES},
        built=built_since(time.perf_counter(), training.source),
    )


def measured(folder: Path, manifest: Manifest, encoder: KeyEncoder) -> Manifest:
    """The same with the temperatures and the recall of the key spaces, whose files lie in a folder."""
    found = temperatures(read_memory(folder, manifest, encoder))
    spaces = tuple(dataclasses.replace(record, temperature=found[record.space]) for record in manifest.spaces)
    return with_recall(folder, dataclasses.replace(manifest, spaces=spaces), encoder)


def joint_refusal(known: SeriesTable, table: SeriesTable, origins: list[np.ndarray]) -> str:
    """Why a table with these training windows cannot have the joint scope; empty if it can (docs/method.md).

    known: the training part as it was given, before each series was cut after its last value.
    """
    if not 2 <= len(table.series) <= MAX_JOINT_SERIES:
        return f"it needs 2 to {MAX_JOINT_SERIES} series, and there are {len(table.series)}"
    if not known.shares_times:
        return "it needs series that share all time stamps of the training part"
    return (
        "" if len(shared_origins(origins)) else "it needs a time at which no series has a missing value in its window"
    )


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


def group_sizes(scope: Scope, origins: list[np.ndarray]) -> np.ndarray:
    """Keys in each group of a scope's key spaces, in a version with windows at these origin rows, int64 [groups]."""
    if scope == "own":
        return np.array([len(rows) for rows in origins])
    return np.array([len(shared_origins(origins)) if scope == "joint" else sum(map(len, origins))])


def stored_part(table: SeriesTable, until: str | np.datetime64, window: WindowSpec) -> SeriesTable:
    """The steps that are known by `until`: with a publication delay, that many steps fewer."""
    limit = np.datetime64(until, "ns")  # type: ignore[call-overload]  # numpy's stubs have no datetime64 with a unit
    return cut_table(
        table,
        [
            int(np.searchsorted(table.step.add(series.times, window.known_delay), limit, side="right"))
            for series in table.series
        ],
    )


def up_to_last_values(table: SeriesTable) -> SeriesTable:
    """Each series up to its last value: steps behind that are not there yet, and are stored once they are."""
    known = [np.flatnonzero(np.isfinite(series.values)) for series in table.series]
    return cut_table(table, [int(rows[-1]) + 1 if len(rows) else 0 for rows in known])


def steps_until(table: SeriesTable, until: np.datetime64) -> SeriesTable:
    """The steps of each series up to a time."""
    return cut_table(table, [int(np.searchsorted(series.times, until, side="right")) for series in table.series])


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


def with_windows(
    training: SeriesTable, window: WindowSpec, views: tuple[int, ...], *, strict: bool = False
) -> tuple[SeriesTable, list[np.ndarray], tuple[Skipped, ...]]:
    """The series of a training part that have a window, their origin rows, and the other series with the reason.

    Raises `DataError` if no series has one; strict: if some has none.
    """
    origins = [origin_rows(series.values, window, views=views) for series in training.series]
    kept = [number for number, rows in enumerate(origins) if len(rows)]
    skipped = tuple(
        Skipped(series_id=series.series_id, reason=_without_window(series, window))
        for series, rows in zip(training.series, origins, strict=True)
        if not len(rows)
    )
    if not kept:
        raise DataError(
            f"{training.source}: {skipped_sentence(skipped, 'without a window')}",
            hint="choose a shorter --lookback or --horizon, or a larger training part",
        )
    if not skipped:
        return training, origins, ()
    if strict:
        require_none_skipped(skipped, training.source, "without a window")
    series = tuple(training.series[number] for number in kept)
    return dataclasses.replace(training, series=series), [origins[number] for number in kept], skipped


def _without_window(series: Series, window: WindowSpec) -> str:
    """Why a series has no window."""
    missing = int(np.isnan(series.values).sum())
    steps = "1 step" if len(series) == 1 else f"{len(series)} steps"
    of_them = f", {missing} of them missing," if missing else ""
    return (
        f"has {steps}{of_them} in the training part, but no window of {window.lookback} + {window.horizon} of which "
        "enough is known"
        if len(series) >= window.length
        else f"has {steps}{of_them} in the training part, but a window needs {window.lookback} + {window.horizon}"
    )


def coarse_notes(table: SeriesTable) -> tuple[str, ...]:
    """A note for each series that float32 is too coarse for."""
    found = {series.series_id: coarse(series) for series in table.series}
    return tuple(f"series '{name}': {said}; {COARSE_FIX}" for name, said in found.items() if said)


def space_record(space: KeySpace, width: int, value_width: int, factory: str, reason: str) -> SpaceRecord:
    """How a key space will be searched; its temperature and recall are not measured yet."""
    return SpaceRecord(
        scope=space.scope,
        view=space.view,
        width=width,
        value_width=value_width,
        factory=factory,
        reason=reason,
        temperature=1.0,
        recall_at_10=1.0,
    )


# What append and compact do alike


def with_recall(folder: Path, manifest: Manifest, encoder: KeyEncoder) -> Manifest:
    """The manifest with the recall that its files have."""
    recall = recall_at_10(read_memory(folder, manifest, encoder))
    spaces = tuple(dataclasses.replace(record, recall_at_10=recall[record.space]) for record in manifest.spaces)
    return dataclasses.replace(manifest, spaces=spaces)


def segment_record(folder: str, windows: SegmentWindows, num_steps: int) -> SegmentRecord:
    """What the manifest says of a segment. num_steps: of all series."""
    num_moments = None if windows.across is None else len(windows.across)
    return SegmentRecord(folder=folder, num_rows=len(windows), num_steps=num_steps, num_moments=num_moments)


def built_since(started: float, source: str) -> BuildRecord:
    """How a build went that began at `time.perf_counter() == started`."""
    return BuildRecord(
        source=Path(source).name,
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        seconds=round(time.perf_counter() - started, 3),
        peak_rss_mb=round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
    )
