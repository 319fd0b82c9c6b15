"""Compacting a version: its segments become one. Windows and keys stay the same, and so do answers wherever
the search is exact; an approximate index is built anew, and its recall measured again.
"""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

import numpy as np

from memory_index.errors import UsageError
from memory_index.local import LocalMemory
from memory_index.tables.series import SeriesTable
from memory_index.versions.build import FIRST_SEGMENT, built_since, segment_record, with_recall
from memory_index.versions.covariate_files import read_covariates, write_covariates
from memory_index.versions.key_files import write_keys
from memory_index.versions.manifest import FORMAT
from memory_index.versions.opening import LoadEncoder, open_version, plan_of, read_series
from memory_index.versions.segments import SegmentPlan, SegmentWindows, write_series, write_windows
from memory_index.versions.store import Store
from memory_index.versions.version import Version, removal_named
from memory_index.versions.vintage_files import stored_vintages, write_vintages


def compact(store: Store, ref: str, *, load_encoder: LoadEncoder | None = None) -> Version:
    """A new version with the segments of another merged into one.

    Raises `UsageError` if there is only one segment, `NotFoundError` if the version is removed meanwhile.
    """
    started = time.perf_counter()
    with store.staging(store.locate(ref).name) as staging:
        parent = store.resolve(ref)
        manifest = parent.manifest
        if len(manifest.segments) == 1:
            raise UsageError(f"{parent.ref} has only one segment: there is nothing to merge")
        memory, plan = open_version(parent, load_encoder=load_encoder), plan_of(manifest)
        staging.adopt(parent, *[path for path in manifest.files if "/" not in path])
        folder = staging.path / FIRST_SEGMENT
        with removal_named(parent):
            table = read_series(parent.path, manifest)
            covariates, vintages = read_covariates(parent.path, manifest), stored_vintages(parent.path, manifest)
        windows = merge_segments(folder, memory, table, plan)
        record = segment_record(FIRST_SEGMENT, windows, len(memory.windows.values))
        if covariates is not None:
            num_stretches = 1 if covariates.shared else len(table.series)
            num_rows = write_covariates(folder, covariates, [0] * num_stretches)
            num_vintages = write_vintages(folder, vintages)
            record = dataclasses.replace(record, num_covariates=num_rows, num_vintages=num_vintages)
        merged = dataclasses.replace(
            manifest,
            format=FORMAT,
            segments=(record,),
            parent=manifest.fingerprint,
        )
        merged = with_recall(staging.path, merged, memory.encoder)
        return staging.publish(dataclasses.replace(merged, built=built_since(started, manifest.built.source)))


def _in_time_order(memory: LocalMemory) -> np.ndarray:
    """The joint keys of all segments in the order of their moments: a later segment may complete an earlier one's."""
    known_at = [memory.windows.known_at[segment.first_row + segment.moments[:, 0]] for segment in memory.segments]
    return np.argsort(np.concatenate(known_at), kind="stable")


def merge_segments(folder: Path, memory: LocalMemory, table: SeriesTable, plan: SegmentPlan) -> SegmentWindows:
    """Write the segments of a memory as one: the same rows and keys, in the order of a single segment."""
    folder.mkdir(parents=True)
    stored = memory.windows
    order = np.lexsort((stored.series, stored.known_at))
    names = ("series", "origin_row", "known_at", "location", "spread", "flat")
    missing = None if stored.missing is None else stored.missing[order]
    windows = SegmentWindows(**{name: getattr(stored, name)[order] for name in names}, missing=missing)
    write_windows(folder, windows, stored.views)
    write_series(folder, [(series.times, series.values) for series in table.series])
    for space in memory.manifest.key_spaces:
        if space.scope == "own":  # grouped by series, and within one the segments follow each other in time
            groups = range(len(stored.series_ids))
            keys = np.concatenate([segment.groups[space][g].keys for g in groups for segment in memory.segments])
        else:
            keys = np.concatenate([segment.groups[space][0].keys for segment in memory.segments])
            keys = keys[order] if space.scope == "pooled" else keys[_in_time_order(memory)]
        write_keys(folder, space, keys, plan.factories[space])
    return windows
