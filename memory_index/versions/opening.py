"""Opening a version: check its bytes, read its tables, map its keys, and hand out a `LocalMemory`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import safetensors.numpy

from memory_index.encoder import BUILT_IN, DualKeyEncoder, EncoderConfig, KeyEncoder
from memory_index.errors import IncompatibleError, MemoryIndexError, NotFoundError, VerificationError
from memory_index.key_spaces import Segment
from memory_index.local import LocalMemory
from memory_index.scaling import SeriesScale
from memory_index.tables.series import SeriesTable
from memory_index.versions.covariate_files import read_covariates, stored_covariates, with_covariates
from memory_index.versions.key_files import is_index_alone, keys_path, read_groups
from memory_index.versions.manifest import Manifest
from memory_index.versions.segments import (
    MOMENTS_FILE,
    SERIES_FILE,
    WINDOWS_FILE,
    EarlierWindows,
    SegmentPlan,
    SegmentWindows,
    join_series,
    read_windows,
)
from memory_index.versions.version import Damage, Version, check_files, read_parquet, removal_named
from memory_index.versions.vintage_files import stored_vintages
from memory_index.windows import StoredWindows

ENCODER_FILE = "encoder.safetensors"
CANARY_TOLERANCE = 1e-4  # another processor may round the last bits of a key otherwise

LoadEncoder = Callable[[Path, Manifest], KeyEncoder]


def open_version(
    version: Version, *, load_encoder: LoadEncoder | None = None, threads: int | None = None, with_indexes: bool = True
) -> LocalMemory:
    """Open a version that a `Store` has resolved; see `references.open_memory`.

    with_indexes: without them every key is compared, whatever index is in the files.

    Raises what `check_files` and `read_encoder` raise.
    """
    check_files(version, only=lambda path: with_indexes or not is_index_alone(path))
    with removal_named(version):
        encoder = read_encoder(version.path, version.manifest, load_encoder)
        return read_memory(version.path, version.manifest, encoder, threads=threads, with_indexes=with_indexes)


def read_encoder(folder: Path, manifest: Manifest, load_encoder: LoadEncoder | None = None) -> KeyEncoder:
    """The version's own encoder.

    Raises `IncompatibleError` for an unknown kind, `VerificationError` if it is not the one that made the keys.
    """
    if load_encoder is not None and manifest.encoder["kind"] != BUILT_IN:
        encoder = load_encoder(folder, manifest)
    elif manifest.encoder["kind"] == BUILT_IN:
        encoder = read_arrays(folder, manifest)
    else:
        raise IncompatibleError(
            f"this version's keys were made by an encoder of kind '{manifest.encoder['kind']}'",
            hint="open it through the forecaster, which can load it",
        )
    if encoder.fingerprint != manifest.encoder["fingerprint"]:
        raise VerificationError(
            f"the encoder in {folder} is not the one that made this version's keys", hint="restore the version"
        )
    return encoder


def read_arrays(folder: Path, manifest: Manifest) -> DualKeyEncoder:
    """The settings, the scale and the arrays of a version's encoder; a learned one takes them from here."""
    arrays = safetensors.numpy.load_file(folder / ENCODER_FILE)
    return DualKeyEncoder(
        config=encoder_config(manifest),
        horizon=manifest.window.horizon,
        scale=SeriesScale(mean=arrays.pop("scale-mean"), std=arrays.pop("scale-std")),
        arrays=arrays,
        covariates=manifest.covariate_layout,
    )


def encoder_config(manifest: Manifest) -> EncoderConfig:
    """The settings of a version's encoder."""
    settings = manifest.encoder["settings"]
    return EncoderConfig(**{**settings, "views": tuple(settings["views"])})


def write_encoder(folder: Path, encoder: KeyEncoder) -> dict[str, object]:
    """Write an encoder of any kind; returns what the manifest says of it."""
    arrays = encoder.arrays | {"scale-mean": encoder.scale.mean, "scale-std": encoder.scale.std}
    content = safetensors.numpy.save({name: np.ascontiguousarray(array) for name, array in arrays.items()})
    (folder / ENCODER_FILE).write_bytes(content)  # not save_file: its file would be its owner's alone
    return encoder.describe()


def plan_of(manifest: Manifest) -> SegmentPlan:
    """What all segments of a version have in common."""
    factories = {record.space: record.factory for record in manifest.spaces}
    return SegmentPlan(window=manifest.window, factories=factories, num_series=len(manifest.series_ids))


def read_series(folder: Path, manifest: Manifest) -> SeriesTable:
    """All steps that a version stores, as a table. Hashes must have been checked before."""
    tables = [
        read_parquet(folder / segment.folder / SERIES_FILE, num_rows=segment.num_steps) for segment in manifest.segments
    ]
    return SeriesTable(
        step=manifest.step,
        layout=manifest.layout,
        series=tuple(join_series(tables, manifest.series_ids)),
        source=manifest.built.source,
    )


def read_table(folder: Path, manifest: Manifest) -> SeriesTable:
    """The same with the covariates that are stored beside them."""
    table = with_covariates(read_series(folder, manifest), read_covariates(folder, manifest), manifest.covariates)
    vintages = stored_vintages(folder, manifest)
    if vintages is None or table.covariates is None:
        return table
    return replace(table, covariates=replace(table.covariates, vintages=vintages))


def read_memory(
    folder: Path,
    manifest: Manifest,
    encoder: KeyEncoder,
    *,
    threads: int | None = None,
    with_indexes: bool = True,
) -> LocalMemory:
    """Read and map the files of a version; see `open_version`. Hashes must have been checked before."""
    segments, first_row = [], 0
    for record, part in zip(manifest.segments, _segment_windows(folder, manifest), strict=True):
        segment = Segment(
            windows=part,
            first_row=first_row,
            groups={},
            num_series=len(manifest.series_ids),
        )
        for space in manifest.spaces:
            offsets = segment.windows.group_offsets(space.space, segment.num_series)
            segment.groups[space.space] = read_groups(
                folder / record.folder, space.space, space.factory, offsets, with_indexes=with_indexes
            )
        segments.append(segment)
        first_row += record.num_rows
    windows = stored_windows(folder, manifest, encoder.scale.std, [segment.windows for segment in segments])
    return LocalMemory(manifest, encoder, windows, segments, threads=threads)


def _segment_windows(folder: Path, manifest: Manifest) -> list[SegmentWindows]:
    views, parts = plan_of(manifest).views, []
    for segment in manifest.segments:
        part = read_windows(read_parquet(folder / segment.folder / WINDOWS_FILE, num_rows=segment.num_rows), views)
        if segment.num_moments is not None:
            moments = read_parquet(folder / segment.folder / MOMENTS_FILE, num_rows=segment.num_moments)
            across = np.stack([moments.column(f"row_{n}").to_numpy() for n in range(len(manifest.series_ids))], axis=1)
            part = replace(part, across=across)
        parts.append(part)
    return parts


def read_earlier(folder: Path, manifest: Manifest) -> EarlierWindows:
    """Which windows a version has. Hashes must have been checked before."""
    parts = _segment_windows(folder, manifest)
    return EarlierWindows(*(np.concatenate([getattr(part, name) for part in parts]) for name in EarlierWindows._fields))


def stored_windows(
    folder: Path, manifest: Manifest, unit: np.ndarray, parts: list[SegmentWindows] | None = None
) -> StoredWindows:
    """The windows of a version, and its series: what a search is not needed for. Hashes must have been checked before.

    unit: training deviation of each series, float64 [N]. parts: the windows of each segment, where they have been read.
    """
    series, parts = read_series(folder, manifest).series, parts or _segment_windows(folder, manifest)
    names = ("series", "origin_row", "known_at", "location", "spread", "flat")
    joined = {name: _joined([getattr(part, name) for part in parts]) for name in names}
    windows = StoredWindows(
        spec=manifest.window,
        step=manifest.step,
        series_ids=manifest.series_ids,
        views=plan_of(manifest).views,
        values=np.concatenate([part.values for part in series]).astype(np.float32),
        times=np.concatenate([part.times for part in series]),
        offset=np.cumsum([0, *(len(part) for part in series)]),
        missing=_joined_missing([part.missing for part in parts], [len(part) for part in parts]),
        transform=manifest.transform,
        covariates=stored_covariates(folder, manifest, series, unit, origins=(joined["series"], joined["origin_row"])),
        **joined,
    )
    del series
    pa.default_memory_pool().release_unused()  # decoding took as much again, which Arrow would hold for the next time
    return windows


def _joined(arrays: list[np.ndarray]) -> np.ndarray:
    """End to end; a single one as it is, since a copy of every window would be held for nothing."""
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


def _joined_missing(parts: list[np.ndarray | None], lengths: list[int]) -> np.ndarray | None:
    """Missing cells of the windows of all segments; None where no segment counts any."""
    num_views = next((part.shape[1] for part in parts if part is not None), None)
    if num_views is None:
        return None
    nothing = [np.zeros((length, num_views), dtype=np.int32) for length in lengths]
    return _joined([zeros if part is None else part for part, zeros in zip(parts, nothing, strict=True)])


def verify_contents(version: Version, *, load_encoder: LoadEncoder | None = None) -> list[Damage]:
    """What hashes cannot tell: counts, widths, and a canary that encodes stored windows again and searches them.

    For a version whose bytes are as published. Returns what is wrong, empty if nothing is.

    Raises `NotFoundError` if the version has been removed meanwhile.
    """
    try:
        memory = open_version(version, load_encoder=load_encoder)
    except NotFoundError:
        raise
    except MemoryIndexError as error:
        return [Damage(file="manifest.json", kind="unknown", message=str(error), hint=error.hint)]
    problems = []
    for record in version.manifest.spaces:
        for segment, where in zip(memory.segments, version.manifest.segments, strict=True):
            file = keys_path(version.path / where.folder, record.space).relative_to(version.path).as_posix()
            for group in segment.groups[record.space]:
                if group.keys.shape[1] != record.width:
                    problems.append(
                        Damage(
                            file=file,
                            kind="unknown",
                            message=f"has keys of width {group.keys.shape[1]}, not {record.width}",
                        )
                    )
                if group.index is not None and len(group.index) != len(group):
                    problems.append(
                        Damage(
                            file=file,
                            kind="unknown",
                            message=f"has {len(group)} keys, its FAISS index {len(group.index)}",
                        )
                    )
    if not problems:
        problems += _canary(memory, version)
    return problems


def _canary(memory: LocalMemory, version: Version) -> list[Damage]:
    """Encode some stored windows again: each must come out at its stored key.

    And the search must find what it found when the version was built. Returns what is wrong, empty if nothing is.
    """
    from memory_index.measure import recall_at_10, self_distances

    problems, first = [], version.path / version.manifest.segments[0].folder
    for space, distance in self_distances(memory).items():
        if distance > CANARY_TOLERANCE:
            problems.append(
                Damage(
                    file=keys_path(first, space).name,
                    kind="unknown",
                    message=f"stored windows encode {distance:.3g} away from their keys",
                )
            )
    for space, recall in recall_at_10(memory).items():
        promised = next(record.recall_at_10 for record in memory.manifest.spaces if record.space == space)
        if recall < promised - 0.02:
            problems.append(
                Damage(
                    file=keys_path(first, space).name,
                    kind="unknown",
                    message=f"recall@10 is {recall:.3f}, {promised:.3f} when it was built",
                )
            )
    return problems
