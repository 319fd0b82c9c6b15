"""Opening a version: check its bytes, read its tables, map its keys, and hand out a `LocalMemory`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import safetensors.numpy

from memory_index.encoder import BUILT_IN, DualKeyEncoder, EncoderConfig, KeyEncoder
from memory_index.errors import IncompatibleError, MemoryIndexError, VerificationError
from memory_index.key_spaces import Segment
from memory_index.local import LocalMemory
from memory_index.scaling import SeriesScale
from memory_index.tables.series import Series, SeriesTable
from memory_index.versions.manifest import Manifest
from memory_index.versions.segments import SegmentPlan, join_series, keys_file, read_groups, read_windows
from memory_index.versions.store import Store
from memory_index.versions.version import Problem, Version, check_files, read_parquet
from memory_index.windows import StoredWindows

ENCODER_FILE = "encoder.safetensors"
CANARY_TOLERANCE = 1e-4  # another processor may round the last bits of a key otherwise

LoadEncoder = Callable[[Path, Manifest], KeyEncoder]


def open_memory(
    indexes_dir: Path | str, ref: str, *, load_encoder: LoadEncoder | None = None, threads: int | None = None
) -> LocalMemory:
    """Open `NAME`, `NAME@3` or `NAME@alias` below a folder of indexes.

    Every file is hashed before it is opened; keys and FAISS files are then mapped, not read. load_encoder:
    reads an encoder that is not built in, given the version's folder and manifest (that is how a learned
    encoder comes in without this package importing torch). threads: used by one search.

    Raises `NotFoundError`, `VerificationError` (bytes), `IncompatibleError` (newer format, unknown encoder).
    """
    return open_version(Store(indexes_dir).resolve(ref), load_encoder=load_encoder, threads=threads)


def open_version(
    version: Version, *, load_encoder: LoadEncoder | None = None, threads: int | None = None
) -> LocalMemory:
    """Open a version that a `Store` has resolved; see `open_memory`."""
    check_files(version)
    encoder = read_encoder(version.path, version.manifest, load_encoder)
    return read_memory(version.path, version.manifest, encoder, threads=threads)


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
    )


def encoder_config(manifest: Manifest) -> EncoderConfig:
    """The settings of a version's encoder."""
    settings = manifest.encoder["settings"]
    return EncoderConfig(**{**settings, "views": tuple(settings["views"])})


def write_encoder(folder: Path, encoder: KeyEncoder) -> dict[str, object]:
    """Write an encoder of any kind; returns what the manifest says of it."""
    arrays = encoder.arrays | {"scale-mean": encoder.scale.mean, "scale-std": encoder.scale.std}
    safetensors.numpy.save_file(
        {name: np.ascontiguousarray(array) for name, array in arrays.items()}, folder / ENCODER_FILE
    )
    return encoder.describe()


def plan_of(manifest: Manifest) -> SegmentPlan:
    """What all segments of a version have in common."""
    spaces = tuple(record.space for record in manifest.spaces)
    return SegmentPlan(window=manifest.window, spaces=spaces, num_series=len(manifest.series_ids))


def read_series(folder: Path, manifest: Manifest) -> SeriesTable:
    """All steps that a version stores, as a table. Hashes must have been checked before."""
    tables = [
        read_parquet(folder / segment.folder / "series.parquet", num_rows=segment.num_steps)
        for segment in manifest.segments
    ]
    return SeriesTable(
        step=manifest.step,
        layout=manifest.layout,
        series=tuple(join_series(tables, manifest.series_ids)),
        source=manifest.built.source,
    )


def read_memory(folder: Path, manifest: Manifest, encoder: KeyEncoder, *, threads: int | None = None) -> LocalMemory:
    """Read and map the files of a version. Hashes must have been checked before."""
    views = plan_of(manifest).views
    segments, first_row = [], 0
    for record in manifest.segments:
        table = read_parquet(folder / record.folder / "windows.parquet", num_rows=record.num_rows)
        segment = Segment(
            windows=read_windows(table, views),
            first_row=first_row,
            groups={},
            num_series=len(manifest.series_ids),
        )
        for space in manifest.spaces:
            offsets = segment.windows.group_offsets(space.space, segment.num_series)
            segment.groups[space.space] = read_groups(folder / record.folder, space.space, space.factory, offsets)
        segments.append(segment)
        first_row += record.num_rows
    windows = _stored_windows(read_series(folder, manifest).series, manifest, segments, views)
    return LocalMemory(manifest, encoder, windows, segments, threads=threads)


def _stored_windows(
    series: tuple[Series, ...], manifest: Manifest, segments: list[Segment], views: tuple[int, ...]
) -> StoredWindows:
    def joined(name: str) -> np.ndarray:
        return np.concatenate([getattr(segment.windows, name) for segment in segments])

    return StoredWindows(
        spec=manifest.window,
        step=manifest.step,
        series_ids=manifest.series_ids,
        views=views,
        values=np.concatenate([part.values for part in series]).astype(np.float32),
        times=np.concatenate([part.times for part in series]),
        offset=np.cumsum([0, *(len(part) for part in series)]),
        **{name: joined(name) for name in ("series", "origin_row", "known_at", "location", "spread", "flat")},
    )


def verify_contents(version: Version, *, load_encoder: LoadEncoder | None = None) -> list[Problem]:
    """What hashes cannot tell: counts, widths, and a canary that encodes stored windows again and searches them.

    For a version whose bytes are as published. Returns what is wrong, empty if nothing is.
    """
    try:
        memory = open_version(version, load_encoder=load_encoder)
    except MemoryIndexError as error:
        return [Problem(file="manifest.json", kind="unknown", message=str(error), hint=error.hint)]
    problems = []
    for record in version.manifest.spaces:
        for segment, where in zip(memory.segments, version.manifest.segments, strict=True):
            file = f"{where.folder}/{keys_file(record.space)}"
            for group in segment.groups[record.space]:
                if group.keys.shape[1] != record.width:
                    problems.append(
                        Problem(
                            file=file,
                            kind="unknown",
                            message=f"has keys of width {group.keys.shape[1]}, not {record.width}",
                        )
                    )
                if group.index is not None and group.index.ntotal != len(group):
                    problems.append(
                        Problem(
                            file=file,
                            kind="unknown",
                            message=f"has {len(group)} keys, its FAISS index {group.index.ntotal}",
                        )
                    )
    if not problems:
        problems += _canary(memory)
    return problems


def _canary(memory: LocalMemory) -> list[Problem]:
    """Encode some stored windows again: each must come out at its stored key.

    And the search must find what it found when the version was built. Returns what is wrong, empty if nothing is.
    """
    from memory_index.measure import recall_at_10, self_distances

    problems = []
    for space, distance in self_distances(memory).items():
        if distance > CANARY_TOLERANCE:
            problems.append(
                Problem(
                    file=keys_file(space),
                    kind="unknown",
                    message=f"stored windows encode {distance:.3g} away from their keys",
                )
            )
    for space, recall in recall_at_10(memory).items():
        promised = next(record.recall_at_10 for record in memory.manifest.spaces if record.space == space)
        if recall < promised - 0.02:
            problems.append(
                Problem(
                    file=keys_file(space),
                    kind="unknown",
                    message=f"recall@10 is {recall:.3f}, {promised:.3f} when it was built",
                )
            )
    return problems
