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

from memory_index.covariate_map import StoredCovariates
from memory_index.covariate_tables import aligned_values, stored_in
from memory_index.encoder import EncoderConfig, KeyEncoder, default_views
from memory_index.fit_encoder import fit_encoder
from memory_index.fit_transform import fit_transform, table_inside
from memory_index.local import LocalMemory
from memory_index.measure import recall_at_10, temperatures
from memory_index.origins import Schedule, typed
from memory_index.splits import Split
from memory_index.tables.series import COARSE_FIX, Series, SeriesTable, coarse
from memory_index.transforms import Transform
from memory_index.types import KeySpace, Scope
from memory_index.versions.budget import Budget
from memory_index.versions.contents import contents_of, contents_within, group_sizes
from memory_index.versions.covariate_files import write_covariates
from memory_index.versions.factories import check_factory
from memory_index.versions.manifest import FORMAT, BuildRecord, Manifest, SegmentRecord, SpaceRecord
from memory_index.versions.opening import read_memory, write_encoder
from memory_index.versions.segments import SegmentPlan, SegmentWindows, write_segment
from memory_index.versions.store import Store
from memory_index.versions.version import Version
from memory_index.versions.vintage_files import issued_in, write_vintages
from memory_index.windows import WindowSpec, check_views

FIRST_SEGMENT = "segment-0"
NOTED = 10  # series that are too coarse, by name
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
    budget: Budget | None = None,
    schedule: Schedule | None = None,
) -> Version:
    """Build a version from the training part of a table and publish it.

    encoder: settings of the built-in key; default views are those that fit the lookback. scopes: default all
    that the table allows (`joint` needs 2 to 64 series with shared time stamps). factory: `auto`, `Flat`, or any
    FAISS factory string. fit_origins: origin rows per series of the windows that the encoder is fitted on, where
    those are not all that are stored (cross-fitting). fit: makes the encoder, as `fit_encoder` does; how a learned one
    comes in. transform: units that windows are compared and averaged in (`transforms.py`), by kind or `auto`. review:
    looks at the finished memory before it is published; what it returns becomes the version's notes. budget: peak
    memory; stride, views, scopes and factories are chosen for it (budget.py), and told. schedule: only windows with the
    origins that operation has (`origins.schedule_of_a_version`), which training and scoring then have too.

    Each series ends with its last value. One without a window in the training part is left out, and named in the
    manifest's `built.skipped`; strict: or raises `DataError`.

    Raises `DataError` (every series too short, a value that cannot be transformed), `UsageError` (views, scopes,
    factory, transform), `IncompatibleError` (a scope that it cannot have), `ResourceError` (disk, lock, budget).
    """
    started, window = time.perf_counter(), table.rule(window)
    check_views((encoder := encoder or EncoderConfig(views=default_views(window.lookback))).views, window)
    known = stored_part(table, split.train_until, window)
    contents = contents_of(known, up_to_last_values(known), window, encoder, scopes, factory, schedule, strict=strict)
    if budget is not None:
        contents = contents_within(budget, contents, table, factory, keep_scopes=scopes is not None, strict=strict)
    plan, training, origins, widths = contents.plan, contents.training, contents.origins, contents.widths
    check_factory(factory, widths, {space: group_sizes(space.scope, origins) for space in plan.spaces})
    transform, chosen_transform = fit_transform(transform, training)
    inside, when = table_inside(transform, training), typed(schedule)
    with store.staging(name) as staging:
        how = {"lookback": window.lookback, "horizon": window.horizon, "scopes": contents.scopes}
        fitted = fit(inside, fit_origins or origins, contents.encoder, **how)
        described = write_encoder(staging.path, fitted)
        beside: dict[str, Any] = {"inside": inside, "covariates": covariates_of(training, fitted, origins)}
        windows = write_segment(staging.path / FIRST_SEGMENT, training, origins, fitted, plan, **beside)
        records = tuple(space_record(space, widths[space], fitted, *contents.factories[space]) for space in plan.spaces)
        manifest = first_manifest(training, windows, plan, records, described, split, contents.joint)
        manifest = with_first_covariates(staging.path, manifest, training, fitted)
        manifest = dataclasses.replace(manifest, transform=transform, budget=contents.budget, **when)
        manifest = measured(staging.path, manifest, fitted)
        notes = coarse_notes(training) + chosen_transform + unissued_notes(beside["covariates"], len(windows))
        notes += review(read_memory(staging.path, manifest, fitted))
        built = dataclasses.replace(built_since(started, table.source), notes=notes, skipped=contents.skipped)
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


def coarse_notes(table: SeriesTable) -> tuple[str, ...]:
    """A note for each series that float32 is too coarse for; of many for the first ones, and how many more."""
    found = {series.series_id: coarse(series) for series in table.series}
    notes = [f"series '{name}': {said}; {COARSE_FIX}" for name, said in found.items() if said]
    more = [f"and {len(notes) - NOTED:,} more series of this kind"] if len(notes) > NOTED else []
    return (*notes[:NOTED], *more)


def unissued_notes(covariates: StoredCovariates | None, num_windows: int) -> tuple[str, ...]:
    """A note for each column with vintages of which windows miss something over their horizon."""
    counts = {} if covariates is None else covariates.num_unissued()
    return tuple(
        f"'{name}': {num:,} of {num_windows:,} windows have steps ahead of which nothing was issued by their origin; "
        "the training mean stands for it"
        for name, num in counts.items()
        if num
    )


def covariates_of(table: SeriesTable, encoder: KeyEncoder, origins: list[np.ndarray]) -> StoredCovariates | None:
    """The covariates of a table as windows of it, with these origins, are encoded with; None for an encoder without."""
    if encoder.covariates is None:
        return None
    found = aligned_values(table, encoder.covariates.columns)
    return stored_in(found, encoder.covariates, encoder.scale.std, origins)


def with_first_covariates(folder: Path, manifest: Manifest, training: SeriesTable, encoder: KeyEncoder) -> Manifest:
    """The manifest with the covariates of its first segment, whose file is written."""
    if encoder.covariates is None:
        return manifest
    found = aligned_values(training, encoder.covariates.columns)
    num_stretches = 1 if found.shared else len(training.series)
    num_rows = write_covariates(folder / FIRST_SEGMENT, found, [0] * num_stretches)
    num_vintages = write_vintages(folder / FIRST_SEGMENT, issued_in(training, encoder.covariates.columns))
    [segment] = manifest.segments
    return dataclasses.replace(
        manifest,
        covariates=encoder.covariates.columns,
        shared_covariates=found.shared,
        segments=(dataclasses.replace(segment, num_covariates=num_rows, num_vintages=num_vintages),),
    )


def space_record(space: KeySpace, width: int, encoder: KeyEncoder, factory: str, reason: str) -> SpaceRecord:
    """How a key space will be searched; its temperature and recall are not measured yet."""
    return SpaceRecord(
        scope=space.scope,
        view=space.view,
        width=width,
        value_width=encoder.value_width(space),
        factory=factory,
        reason=reason,
        temperature=1.0,
        recall_at_10=1.0,
        condition_width=encoder.covariates.condition_width if encoder.covariates is not None else 0,
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
