"""Appending what has happened since: a new version with one more segment. Nothing is fitted or encoded again."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import numpy as np

from memory_index.errors import IncompatibleError, NothingNewError
from memory_index.fit_transform import table_inside
from memory_index.origins import Schedule, on_schedule
from memory_index.skipped import Skipped, require_none_skipped
from memory_index.tables.series import Series, SeriesTable, differing
from memory_index.tables.steps import same_step
from memory_index.versions.build import (
    built_since,
    covariates_of,
    segment_record,
    unissued_notes,
    up_to_last_values,
    with_recall,
)
from memory_index.versions.covariate_files import COVARIATES_FILE, continued, write_new_covariates
from memory_index.versions.factories import EXACT
from memory_index.versions.manifest import FORMAT, Manifest, SegmentRecord
from memory_index.versions.opening import LoadEncoder, plan_of, read_earlier, read_encoder, read_table
from memory_index.versions.segments import (
    MOMENTS_FILE,
    SERIES_FILE,
    WINDOWS_FILE,
    SegmentPlan,
    SegmentWindows,
    write_segment,
)
from memory_index.versions.store import Store
from memory_index.versions.version import Version, check_files, removal_named
from memory_index.versions.vintage_files import VINTAGES_FILE, with_new_vintages, write_vintages
from memory_index.windows import Step, origin_rows

READ_FILES = (SERIES_FILE, WINDOWS_FILE, MOMENTS_FILE, COVARIATES_FILE, VINTAGES_FILE)  # of each segment
NOT_STORED = "is not in the version: the next build stores it"


def append(
    store: Store,
    ref: str,
    table: SeriesTable,
    *,
    until: np.datetime64 | None = None,
    load_encoder: LoadEncoder | None = None,
    strict: bool = False,
) -> Version:
    """A new version with what has happened since.

    table: the whole history or only new rows; where it overlaps what is stored, both must agree. until: use only
    steps that are known by this time (UTC or naive). Each series goes on up to its own last value: one that lags, or is
    not in the table, is named in `built.skipped` if nothing of it is new, and hinders no other; so is one that the
    version does not have. strict: or raises `DataError`. Cost and disk are in proportion to what is new.

    Raises `IncompatibleError` (no common series, step, a gap, or an overlap that differs: names the first cell),
    `DataError` (a value that the version's transform cannot take),
    `NothingNewError`, `NotFoundError` if the version is removed meanwhile.
    """
    started = time.perf_counter()
    with store.staging(store.locate(ref).name) as staging:
        parent = store.resolve(ref)  # under the builder's lock, so that nobody else appends to it meanwhile
        check_files(parent, only=lambda path: path.endswith(READ_FILES) or "/" not in path)
        manifest = parent.manifest
        with removal_named(parent):
            stored = read_table(parent.path, manifest)
        joined, skipped = join_new_rows(stored, table, until=until, delay=manifest.window.known_delay)
        joined = continued(stored, joined, table, manifest)
        joined, new_vintages, late = with_new_vintages(stored, joined, table, manifest)
        if strict:
            require_none_skipped(skipped, table.source, "nothing appended to")
        notes = late_values(stored, table) + late
        with removal_named(parent):
            encoder, plan = read_encoder(parent.path, manifest, load_encoder), plan_of(manifest)
            earlier = read_earlier(parent.path, manifest) if manifest.joint == "built" else None
        staging.adopt(parent, *sorted({path.split("/")[0] for path in manifest.files}))
        folder, new_from = f"segment-{len(manifest.segments)}", [len(series) for series in stored.series]
        origins, inside = new_origins(stored, joined, plan, manifest.schedule), table_inside(manifest.transform, joined)
        how: dict[str, Any] = {"inside": inside, "new_from": new_from, "earlier": earlier}
        how |= {"covariates": covariates_of(joined, encoder, origins)}
        windows = write_segment(staging.path / folder, joined, origins, encoder, plan, **how)
        notes += unissued_notes(how["covariates"], len(windows))
        record = segment_record(folder, windows, sum(map(len, joined.series)) - sum(new_from))
        num_beside = write_new_covariates(staging.path / folder, stored, joined, manifest, new_from)
        num_vintages = write_vintages(staging.path / folder, new_vintages)
        record = dataclasses.replace(record, num_covariates=num_beside, num_vintages=num_vintages)
        child = _with_segment(manifest, record, windows, joined)
        if set(plan.factories.values()) != {EXACT}:  # an exact scan has nothing to measure
            child = with_recall(staging.path, child, encoder)
        built = dataclasses.replace(built_since(started, table.source), notes=notes, skipped=skipped)
        return staging.publish(dataclasses.replace(child, built=built))


def _with_segment(manifest: Manifest, record: SegmentRecord, windows: SegmentWindows, joined: SeriesTable) -> Manifest:
    """The manifest with one more segment."""
    known_at = np.append(
        windows.known_at, [np.datetime64(manifest.first_known_at), np.datetime64(manifest.last_known_at)]
    )
    return dataclasses.replace(
        manifest,
        format=FORMAT,
        num_rows=manifest.num_rows + len(windows),
        first_known_at=str(known_at.min()),
        last_known_at=str(known_at.max()),
        data_sha256=joined.content_hash,
        segments=(*manifest.segments, record),
        parent=manifest.fingerprint,
    )


def join_new_rows(
    stored: SeriesTable, table: SeriesTable, *, until: np.datetime64 | None, delay: int
) -> tuple[SeriesTable, tuple[Skipped, ...]]:
    """The stored series with the new steps of a table behind them, and the series of which nothing is new.

    New are steps up to the last value of each series.
    """
    require_same_kind(stored, table)
    known, named = set(stored.series_ids), set(table.series_ids)
    skipped = [Skipped(series_id=name, reason=NOT_STORED) for name in table.series_ids if name not in known]
    joined, num_new = [], 0
    given = up_to_last_values(table)
    for old in stored.series:
        reason = "" if old.series_id in named else f"is not in {table.source}"
        if not reason and not np.isfinite(table[old.series_id].values).any():
            reason = "has no value"
        if reason:
            joined.append(old)
            skipped.append(Skipped(series_id=old.series_id, reason=reason))
            continue
        new = given[old.series_id]
        require_overlap(old, new, table, stored.step)
        keep = new.times > old.times[-1]
        if until is not None:
            keep &= stored.step.add(new.times, delay) <= until
        if not keep.any():
            reason = f"has no value after {stored.step.isoformat(old.times[-1])}, which the version already has"
            skipped.append(Skipped(series_id=old.series_id, reason=reason))
        num_new += int(keep.sum())
        joined.append(_continued(old, new, keep, stored.step))
    if num_new == 0:
        last = max(series.times[-1] for series in stored.series)
        raise NothingNewError(
            f"{table.source} has no steps after {stored.step.isoformat(last)}, which the version already has"
            + ("" if until is None else f", that are known by {stored.step.isoformat(until)}"),
            hint="append a file with later rows" + ("" if until is None else ", or choose a later --until"),
        )
    return dataclasses.replace(stored, series=tuple(joined), source=table.source), tuple(skipped)


def _continued(old: Series, new: Series, keep: np.ndarray, step: Step) -> Series:
    """A stored series and what follows it; steps between that are not there are missing."""
    times, values = new.times[keep], new.values[keep]
    between = step.until(old.times[-1], times[0])[1:-1] if len(times) else times
    return Series(
        series_id=old.series_id,
        times=np.concatenate([old.times, between, times]),
        values=np.concatenate([old.values, np.full(len(between), np.nan), values]),
    )


def require_same_kind(stored: SeriesTable, table: SeriesTable) -> None:
    """Raise `IncompatibleError` unless a table has the step and some series of a version, and goes on where it ends."""
    if not same_step(table.step, stored.step, table.series[0].times[0]):
        ours, theirs = (
            f"{step.frequency}" + (f" in {step.time_zone}" if step.time_zone else "")
            for step in (stored.step, table.step)
        )
        raise IncompatibleError(
            f"{table.source} has the step {theirs}, the version {ours}",
            hint="append data of the same; where a short file cannot tell, say so: --step, --time-zone",
        )
    if not set(table.series_ids) & set(stored.series_ids):
        raise IncompatibleError(
            f"{table.source} has none of the series of the version, which are {', '.join(stored.series_ids[:8])}"
            + (", ..." if len(stored.series_ids) > 8 else ""),
            hint="append the same series, or build a new version",
        )
    ends, starts = max(s.times[-1] for s in stored.series), min(s.times[0] for s in table.series)
    expected = stored.step.add(np.array([ends]), 1)[0]
    if starts > expected:
        raise IncompatibleError(
            f"{table.source} begins at {stored.step.isoformat(starts)}, but the version ends before "
            f"{stored.step.isoformat(expected)}",
            hint="append the steps between as well",
        )


def require_overlap(old: Series, new: Series, table: SeriesTable, step: Step) -> None:
    """Raise `IncompatibleError` unless a new series continues the stored one and agrees with it.

    They agree if they have the same steps and values wherever both have steps. What follows later goes on from where
    the series ended: steps between that nobody gave are missing.
    """
    where = f"{table.source}: series '{old.series_id}'"
    if new.times[0] > old.times[-1]:
        return  # steps between are missing
    first = int(np.searchsorted(old.times, new.times[0]))
    overlap = min(len(old) - first, len(new))
    if new.times[0] < old.times[0] or not np.array_equal(old.times[first : first + overlap], new.times[:overlap]):
        raise IncompatibleError(
            f"{where} begins at {step.isoformat(new.times[0])}, before or between the steps of the version, "
            f"which begins at {step.isoformat(old.times[0])}",
            hint="append the same history, or only what is new",
        )
    ours, theirs = old.values[first : first + overlap], new.values[:overlap]
    differs = differing(ours, theirs)
    if len(differs):
        at = int(differs[0])
        raise IncompatibleError(
            f"{where} at {step.isoformat(new.times[at])} is {theirs[at]}, but the version has {ours[at]} "
            f"({len(differs)} of {overlap} overlapping steps differ)",
            hint="append data that agree with what was built, or build a new version",
        )


def new_origins(
    stored: SeriesTable, joined: SeriesTable, plan: SegmentPlan, schedule: Schedule | None
) -> list[np.ndarray]:
    """Origin rows of the windows that end in the new steps; only the tail that such windows can touch is looked at."""
    result, window = [], plan.window
    for old, series in zip(stored.series, joined.series, strict=True):
        start = max(0, len(old) - window.length + 1)
        start -= start % window.stride  # so that origins keep falling on every stride-th row
        rows = origin_rows(series.values[start:], window, views=plan.views) + start
        result.append(rows[rows + window.horizon >= len(old)])
    return on_schedule(joined.step, [series.times for series in joined.series], result, schedule)


def late_values(stored: SeriesTable, table: SeriesTable) -> tuple[str, ...]:
    """A note for each series of which a table has values where the version stores that they are missing."""
    notes = []
    for old in stored.series:
        if old.series_id not in table.series_ids:
            continue
        new = table[old.series_id]
        arrived = np.isin(old.times[np.isnan(old.values)], new.times[np.isfinite(new.values)])
        if arrived.any():
            notes.append(
                f"series '{old.series_id}': {int(arrived.sum())} values that were missing have arrived since; "
                "the next build, not append, stores windows with them"
            )
    return tuple(notes)
