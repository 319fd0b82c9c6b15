"""Small versions made by hand, for the tests of the store: a few files of random bytes and a whole manifest."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from memory_index.splits import Split
from memory_index.versions.manifest import FORMAT, BuildRecord, Manifest, SegmentRecord, SpaceRecord
from memory_index.versions.store import Store
from memory_index.versions.version import Version
from memory_index.windows import Step, WindowSpec

LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"a" * 64 + b"\nsize 12345\n"


def make_manifest(**changes: Any) -> Manifest:
    """A manifest of one segment whose every field is filled; `files` is empty until it is published."""
    fields: dict[str, Any] = {
        "format": FORMAT,
        "window": WindowSpec(lookback=512, horizon=96),
        "step": Step(frequency="h"),
        "layout": "wide",
        "series_ids": ("HUFL", "OT"),
        "joint": "built",
        "encoder": {"kind": "dual", "fingerprint": "e" * 64, "weight": 0.9},
        "spaces": (
            SpaceRecord(
                scope="own",
                view=96,
                width=128,
                value_width=8,
                factory="Flat",
                reason="fewer than 200,000 keys",
                temperature=0.25,
                recall_at_10=1.0,
            ),
        ),
        "split": Split(name="until", train_until="2018-01-01T00:00:00", val_until=None, test_until=None),
        "fitted_until": "2018-01-01T00:00:00",
        "num_rows": 1000,
        "first_known_at": "2016-07-01T00:00:00",
        "last_known_at": "2018-01-01T00:00:00",
        "data_sha256": "c" * 64,
        "segments": (SegmentRecord(folder="segment-0", num_rows=1000, num_steps=900),),
        "files": {},
        "parent": None,
        "libraries": {"numpy": "2.4"},
        "built": BuildRecord(
            source="ETTh1.csv", created_at="2018-01-02T00:00:00+00:00", seconds=1.5, peak_rss_mb=100.0
        ),
    }
    return Manifest(**{**fields, **changes})


def write_files(folder: Path, seed: int, names: tuple[str, ...]) -> None:
    """Files of 1 to 4 kB of seeded random bytes."""
    random_bytes = random.Random(seed)
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(random_bytes.randbytes(random_bytes.randrange(1000, 4000)))


def publish(store: Store, name: str = "etth1", *, seed: int = 0, **changes: Any) -> Version:
    """Publish a small version of one segment."""
    with store.staging(name) as staging:
        write_files(staging.path, seed, ("encoder.safetensors", *segment_files(0)))
        return staging.publish(make_manifest(**changes))


def append(store: Store, parent: Version, *, seed: int = 1) -> Version:
    """Publish a version that takes all segments of its parent over and adds one of its own."""
    with store.staging(parent.name) as staging:
        number = len(parent.manifest.segments)
        staging.adopt(parent, "encoder.safetensors", *(segment.folder for segment in parent.manifest.segments))
        write_files(staging.path, seed, segment_files(number))
        added = SegmentRecord(folder=f"segment-{number}", num_rows=10, num_steps=9)
        return staging.publish(
            make_manifest(
                segments=(*parent.manifest.segments, added),
                parent=parent.manifest.fingerprint,
                num_rows=parent.manifest.num_rows + 10,
            )
        )


def segment_files(number: int) -> tuple[str, ...]:
    """What lies in a segment: tables, keys, an index."""
    return tuple(
        f"segment-{number}/{name}" for name in ("series.parquet", "windows.parquet", "own-96.npy", "own-96.faiss")
    )
