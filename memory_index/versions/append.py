"""Appending what has happened since: a new version with one more segment. Nothing is fitted or encoded again."""

from __future__ import annotations

import dataclasses
import time

import numpy as np

from memory_index.errors import IncompatibleError, NothingNewError
from memory_index.tables.series import Series, SeriesTable, differing
from memory_index.tables.steps import same_step
from memory_index.versions.build import built_since, segment_record, steps_until, with_recall
from memory_index.versions.factories import EXACT
from memory_index.versions.manifest import FORMAT
from memory_index.versions.opening import LoadEncoder, plan_of, read_encoder, read_series
from memory_index.versions.segments import SERIES_FILE, write_segment
from memory_index.versions.store import Store
from memory_index.versions.version import Version, check_files, removal_named
from memory_index.windows import Step, WindowSpec, origin_rows


def append(
    store: Store,
    ref: str,
    table: SeriesTable,
    *,
    until: np.datetime64 | None = None,
    load_encoder: LoadEncoder | None = None,
) -> Version:
    """A new version with what has happened since.

    table: the whole history or only new rows; where it overlaps what is stored, both must agree. until: use only
    steps that are known by this time (UTC or naive). A version with the scope `joint` takes the steps that all series
    have. Cost and disk are in proportion to what is new.

    Raises `IncompatibleError` (other series, step, a gap, or an overlap that differs: names the first cell),
    `NothingNewError`, `NotFoundError` if the version is removed meanwhile.
    """
    started = time.perf_counter()
    with store.staging(store.locate(ref).name) as staging:
        parent = store.resolve(ref)  # under the builder's lock, so that nobody else appends to it meanwhile
        check_files(parent, only=lambda path: path.endswith(SERIES_FILE) or "/" not in path)
        manifest = parent.manifest
        with removal_named(parent):
            stored = read_series(parent.path, manifest)
        joined = join_new_rows(stored, table, until=until, delay=manifest.window.known_delay)
        notes = late_values(stored, table)
        if manifest.joint == "built":
            joined, waiting = whole_moments(stored, joined)
            notes += waiting
        with removal_named(parent):
            encoder, plan = read_encoder(parent.path, manifest, load_encoder), plan_of(manifest)
        staging.adopt(parent, *sorted({path.split("/")[0] for path in manifest.files}))
        folder, new_from = f"segment-{len(manifest.segments)}", [len(series) for series in stored.series]
        origins = new_origins(stored, joined, plan.window)
        windows = write_segment(staging.path / folder, joined, origins, encoder, plan, new_from=new_from)
        num_new = [len(series) - start for series, start in zip(joined.series, new_from, strict=True)]
        known_at = np.append(
            windows.known_at, [np.datetime64(manifest.first_known_at), np.datetime64(manifest.last_known_at)]
        )
        child = dataclasses.replace(
            manifest,
            format=FORMAT,
            num_rows=manifest.num_rows + len(windows),
            first_known_at=str(known_at.min()),
            last_known_at=str(known_at.max()),
            data_sha256=joined.content_hash,
            segments=(*manifest.segments, segment_record(folder, windows, sum(num_new))),
            parent=manifest.fingerprint,
        )
        if set(plan.factories.values()) != {EXACT}:  # an exact scan has nothing to measure
            child = with_recall(staging.path, child, encoder)
        built = dataclasses.replace(built_since(started, table.source), notes=notes)
        return staging.publish(dataclasses.replace(child, built=built))


def join_new_rows(stored: SeriesTable, table: SeriesTable, *, until: np.datetime64 | None, delay: int) -> SeriesTable:
    """The stored series with the new steps of a table behind them."""
    require_same_kind(stored, table)
    joined, num_new = [], 0
    for old in stored.series:
        new = table[old.series_id]
        require_overlap(old, new, table, stored.step)
        held = np.flatnonzero(np.isfinite(new.values))
        keep = new.times > old.times[-1]
        keep[int(held[-1]) + 1 if len(held) else 0 :] = False  # empty cells behind the last value are not there yet
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
        raise NothingNewError(
            f"{table.source} has no steps after {stored.step.isoformat(last)}, which the version already has"
            + ("" if until is None else f", that are known by {stored.step.isoformat(until)}"),
            hint="append a file with later rows" + ("" if until is None else ", or choose a later --until"),
        )
    return dataclasses.replace(stored, series=tuple(joined), source=table.source)


def whole_moments(stored: SeriesTable, joined: SeriesTable) -> tuple[SeriesTable, tuple[str, ...]]:
    """The steps that all series have, and a note if some have more: these wait, or their moments would never be whole.

    Raises `NothingNewError` if no step is new for all of them.
    """
    if joined.shares_times:
        return joined, ()
    behind = min(joined.series, key=lambda series: series.times[-1])
    waiting = (
        f"series '{behind.series_id}' ends at {joined.step.isoformat(behind.times[-1])}: later steps of the others are "
        "appended when it has them too, since this version compares whole moments (scope 'joint')"
    )
    if behind.times[-1] <= stored.times[-1]:
        raise NothingNewError(
            f"{joined.source}: {waiting}", hint="append steps of all series, or build a version without that scope"
        )
    return steps_until(joined, behind.times[-1]), (waiting,)


def require_same_kind(stored: SeriesTable, table: SeriesTable) -> None:
    """Raise `IncompatibleError` unless a table has the step and the series of a version."""
    if not same_step(table.step, stored.step, table.series[0].times[0]):
        ours, theirs = (
            f"{step.frequency}" + (f" in {step.time_zone}" if step.time_zone else "")
            for step in (stored.step, table.step)
        )
        raise IncompatibleError(
            f"{table.source} has the step {theirs}, the version {ours}",
            hint="append data of the same; where a short file cannot tell, say so: --step, --time-zone",
        )
    more = sorted(set(table.series_ids) - set(stored.series_ids))
    less = sorted(set(stored.series_ids) - set(table.series_ids))
    if more or less:
        name, what = (
            (more[0], "is not in the version") if more else (less[0], f"of the version is not in {table.source}")
        )
        raise IncompatibleError(f"series '{name}' {what}", hint="append the same series, or build a new version")


def require_overlap(old: Series, new: Series, table: SeriesTable, step: Step) -> None:
    """Raise `IncompatibleError` unless a new series continues the stored one and agrees with it.

    They agree if they have the same steps and values wherever both have steps.
    """
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
    differs = differing(ours, theirs)
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


def late_values(stored: SeriesTable, table: SeriesTable) -> tuple[str, ...]:
    """A note for each series of which a table has values where the version stores that they are missing."""
    notes = []
    for old in stored.series:
        new = table[old.series_id]
        arrived = np.isin(old.times[np.isnan(old.values)], new.times[np.isfinite(new.values)])
        if arrived.any():
            notes.append(
                f"series '{old.series_id}': {int(arrived.sum())} values that were missing have arrived since; "
                "the next build, not append, stores windows with them"
            )
    return tuple(notes)
