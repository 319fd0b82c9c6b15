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
from typing import Any, NamedTuple

import numpy as np

from memory_index.encoder import EncoderConfig, KeyEncoder, default_views
from memory_index.errors import DataError, IncompatibleError, UsageError
from memory_index.fit_encoder import fit_encoder, shared_origins
from memory_index.local import LocalMemory
from memory_index.measure import recall_at_10, temperatures
from memory_index.skipped import Skipped, require_none_skipped, skipped_sentence
from memory_index.splits import Split
from memory_index.tables.series import COARSE_FIX, Series, SeriesTable, coarse
from memory_index.types import MAX_JOINT_SERIES, SCOPES, KeySpace, Scope
from memory_index.versions.budget import Asked, Budget, within_budget
from memory_index.versions.factories import check_factory, choose_factory
from memory_index.versions.manifest import FORMAT, BudgetRecord, BuildRecord, Manifest, SegmentRecord, SpaceRecord
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
    review: Review = lambda memory: (),
    strict: bool = False,
    budget: Budget | None = None,
) -> Version:
    """Build a version from the training part of a table and publish it.

    encoder: settings of the built-in key; default views are those that fit the lookback. scopes: default all
    that the table allows (`joint` needs 2 to 64 series with shared time stamps). factory: `auto`, `Flat`, or any
    FAISS factory string. fit_origins: origin rows per series of the windows that the encoder is fitted on, where
    those are not all that are stored (cross-fitting). fit: makes the encoder, as `fit_encoder` does; how a learned one
    comes in. review: looks at the finished memory before it is published; what it returns becomes the version's notes.

    budget: peak memory; then stride, views, scopes and factories are chosen to stay within it (budget.py), and the
    manifest says which. Those that were asked for stay.

    Each series ends with its last value. One without a window in the training part is left out, and named in the
    manifest's `built.skipped`; strict: or raises `DataError`.

    Raises `DataError` (every series too short), `UsageError` (views, scopes, factory), `IncompatibleError` (a scope
    that this table cannot have), `ResourceError` (disk, lock, or a budget that nothing fits).
    """
    started = time.perf_counter()
    encoder = encoder or EncoderConfig(views=default_views(window.lookback))
    check_views(encoder.views, window)
    contents = contents_of(table, split, window=table.rule(window), encoder=encoder, scopes=scopes, factory=factory)
    if budget is not None:
        contents = contents_within(contents, budget, table, factory=factory, keep_scopes=scopes is not None)
    if strict:
        require_none_skipped(contents.skipped, table.source, "without a window")
    plan = SegmentPlan(
        window=contents.window,
        factories={space: name for space, (name, _) in contents.factories.items()},
        num_series=len(contents.training.series),
    )
    encoder, training, origins = contents.encoder, contents.training, contents.origins
    widths = {space: encoder.key_width(space, plan.num_series) for space in plan.spaces}
    check_factory(factory, widths, {space: group_sizes(space.scope, origins) for space in plan.spaces})
    with store.staging(name) as staging:
        shape = {"lookback": window.lookback, "horizon": window.horizon}
        fitted = fit(training, fit_origins or origins, encoder, scopes=contents.scopes, **shape)
        described = write_encoder(staging.path, fitted)
        windows = write_segment(staging.path / FIRST_SEGMENT, training, origins, fitted, plan)
        records = tuple(
            space_record(space, widths[space], fitted.value_width(space), *contents.factories[space])
            for space in plan.spaces
        )
        manifest = first_manifest(training, windows, plan, records, described, split, contents.joint)
        manifest = measured(staging.path, dataclasses.replace(manifest, budget=contents.budget), fitted)
        notes = coarse_notes(training) + review(read_memory(staging.path, manifest, fitted))
        built = dataclasses.replace(built_since(started, table.source), notes=notes, skipped=contents.skipped)
        return staging.publish(dataclasses.replace(manifest, built=built))


class Contents(NamedTuple):
    """What a version will hold: which windows of which series, under which views and scopes, and how each is searched.

    training: the series that are stored. origins: origin rows of each of them. joint: why there can be no joint scope,
    or empty. factories: FAISS factory string, and the reason for it. budget: what one made of all this.
    """

    known: SeriesTable
    training: SeriesTable
    origins: list[np.ndarray]
    skipped: tuple[Skipped, ...]
    window: WindowSpec
    encoder: EncoderConfig
    scopes: tuple[Scope, ...]
    joint: str
    factories: dict[KeySpace, tuple[str, str]]
    budget: BudgetRecord | None = None


def contents_of(
    table: SeriesTable,
    split: Split,
    *,
    window: WindowSpec,
    encoder: EncoderConfig,
    scopes: tuple[Scope, ...] | None,
    factory: str,
) -> Contents:
    """All that was asked for. Raises what `build` raises."""
    known = stored_part(table, split.train_until, window)
    training, origins, skipped = with_windows(up_to_last_values(known), window, encoder.views)
    joint = joint_refusal(known, training, origins)
    scopes = choose_scopes(scopes, joint)
    factories = {
        KeySpace(scope, view): choose_factory(factory, group_sizes(scope, origins))
        for scope in scopes
        for view in encoder.views
    }
    return Contents(known, training, origins, skipped, window, encoder, scopes, joint, factories)


def contents_within(
    contents: Contents, budget: Budget, table: SeriesTable, *, factory: str, keep_scopes: bool
) -> Contents:
    """The same, or as much of it as a budget has room for."""
    asked = Asked(
        origins=contents.origins,
        num_steps=sum(len(series) for series in table.series),
        first_origin=contents.window.lookback - 1,
        stride=contents.window.stride,
        season=table.step.season,
        encoder=contents.encoder,
        scopes=contents.scopes,
        factory=factory,
        keep_views=budget.keep_views,
        keep_scopes=keep_scopes,
    )
    choice, record = within_budget(asked, budget.num_bytes)
    window = dataclasses.replace(contents.window, stride=choice.stride)
    encoder = dataclasses.replace(contents.encoder, views=choice.views)
    training, origins, skipped = with_windows(up_to_last_values(contents.known), window, encoder.views)
    return contents._replace(
        training=training,
        origins=origins,
        skipped=skipped,
        window=window,
        encoder=encoder,
        scopes=choice.scopes,
        factories=choice.factories,
        budget=record,
    )


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


def asked_of(
    table: SeriesTable,
    origins: list[np.ndarray],
    window: WindowSpec,
    encoder: EncoderConfig,
    scopes: tuple[Scope, ...],
    factory: str,
    budget: Budget,
    *,
    keep_scopes: bool,
) -> Asked:
    """What a budget is spent on."""
    return Asked(
        origins=origins,
        num_steps=sum(len(series) for series in table.series),
        first_origin=window.lookback - 1,
        stride=window.stride,
        season=table.step.season,
        encoder=encoder,
        scopes=scopes,
        factory=factory,
        keep_views=budget.keep_views,
        keep_scopes=keep_scopes,
    )


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
    training: SeriesTable, window: WindowSpec, views: tuple[int, ...]
) -> tuple[SeriesTable, list[np.ndarray], tuple[Skipped, ...]]:
    """The series of a training part that have a window, their origin rows, and the other series with the reason.

    Raises `DataError` if no series has one.
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
