"""Versions published to a Milvus in the tests, with everything so small that a few hundred rows are many batches.

Run as a program it publishes and tells how far it is, so that a test can kill it:

    python tests/milvus_fixtures.py INDEXES_DIR REF ADDRESS TOKEN
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from fake_memory import FakeMemory
from memory_fixtures import queries_at, use_indexes, wide_table

from memory_index.access import Access
from memory_index.leakage import Policy
from memory_index.memory import Memory
from memory_index.milvus import collections, lease, loading
from memory_index.milvus.connection import Connection
from memory_index.milvus.publish import publish
from memory_index.milvus.searching import key_space_sizes
from memory_index.types import KeySpace
from memory_index.versions.opening import open_version
from memory_index.versions.store import Store
from memory_index.versions.version import Version

SMALL_BATCH = 4 * 16 * 100  # bytes: some hundred rows of a small version


def make_small(patch: pytest.MonkeyPatch, *, batch_bytes: int = SMALL_BATCH) -> None:
    """Let Milvus be asked for groups of a few dozen keys, in small batches, and nobody wait for a publisher."""
    use_indexes(patch)
    patch.setattr(loading, "BATCH_BYTES", batch_bytes)
    patch.setattr(lease, "SETTLE_S", 0.02)
    patch.setattr(lease, "LEASE_S", 0.3)
    patch.setattr(lease, "BEAT_S", 0.05)


def sizes_of(version: Version) -> dict[KeySpace, int]:
    """Keys in each key space."""
    return key_space_sizes(open_version(version, with_indexes=False))


def counted(connection: Connection, version: Version) -> dict[KeySpace, int]:
    """Rows that are in each collection, loaded before they are counted."""
    found = {}
    for space in sizes_of(version):
        name = collections.collection_name(version.manifest.fingerprint, space)
        collections.load(connection, name)
        found[space] = collections.num_rows(connection, name)
    return found


def recall(memory: Memory) -> float:
    """Share of the neighbours of brute force that a memory finds, or others as near, over all that can be asked."""
    exact, hits, num = FakeMemory.of(memory), 0, 0  # type: ignore[arg-type]
    lookback, built = memory.manifest.window.lookback, {record.scope for record in memory.manifest.spaces}
    for policy in Policy:
        asked = queries_at(wide_table(), range(60, 360, 20), policy, lookback=lookback)
        for scope in built:
            found, expected = (each.search(asked, 5, scopes=(scope,)) for each in (memory, exact))
            there = (expected.row[..., None] == found.row[..., None, :]).any(axis=-1)
            there |= np.isclose(found.distance, expected.distance, rtol=1e-5)
            hits, num = hits + int(there[expected.valid].sum()), num + int(expected.valid.sum())
    return hits / num


def publish_and_kill(indexes_dir: Path, ref: str, address: str, *, at_rows: int, token: str = "") -> None:
    """Publish in a process of its own, and kill that with SIGKILL once so many rows are in place."""
    program = [sys.executable, __file__, str(indexes_dir), ref, address, token]
    process = subprocess.Popen(program, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        done = next((line for line in process.stdout if int(line.split()[0]) >= at_rows), None)
        assert done is not None, "it ended before it was killed"
    finally:
        process.kill()
        process.wait()


def _main() -> None:
    indexes_dir, ref, address, token = sys.argv[1:]
    make_small(pytest.MonkeyPatch())

    def tell(done: float, total: float | None, doing: str) -> None:
        print(int(done), total, doing, flush=True)

    publish(Store(indexes_dir).resolve(ref), address, access=Access(token=token), report=tell)


if __name__ == "__main__":
    _main()
