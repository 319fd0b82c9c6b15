"""The exact search beside FAISS's own, on the same keys in one run, and what the files of keys cost to open.

    python -m benchmarks.exact_search --data-dir datasets

All 8,033 stored windows of one series of ETTh1 (lookback 512, horizon 96) ask the 8,033 keys of their own series for 50
neighbours, each view by itself. FAISS searches keys with keys. Our search is given windows: it encodes them, keeps away
what overlaps the query or its future (policy `disjoint`), sums each distance again in a fixed order, and proves that
nothing nearer was left out. Figures are medians of turns, and ratios of the turns' ratios.

What is compared with each file is the same version as format 1 had it, its keys in NumPy arrays.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import faiss
import numpy as np

from benchmarks.data_sets import DataSet, present
from benchmarks.report import Figure, show
from benchmarks.speed.turns import Times, in_turns, medians, ratio
from memory_index.exact_scan import Ranges
from memory_index.files import write_array
from memory_index.leakage import Policy
from memory_index.local import LocalMemory
from memory_index.search import KeyGroup, search_group
from memory_index.splits import split_by_name
from memory_index.tables.reading import read_table
from memory_index.threads import faiss_threads
from memory_index.types import KeySpace, Queries
from memory_index.versions.build import build
from memory_index.versions.key_files import keys_path, read_keys
from memory_index.versions.opening import open_version
from memory_index.versions.store import Store
from memory_index.versions.version import Version
from memory_index.windows import WindowSpec

WINDOW = WindowSpec(lookback=512, horizon=96)
K, SERIES, THREADS = 50, "OT", 2
LEVELS, BATCHES = (4, 8), (128, 512)  # of Panorama: the quickest of them counts
OPENED = 21  # turns of opening


def main() -> None:
    """Build, search, open and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, required=True, help="holds ETTh1.csv")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--out", type=Path, help="also write the figures as JSON")
    options = parser.parse_args()
    for data_set in present(options.data_dir, ["ETTh1"]):
        with tempfile.TemporaryDirectory() as folder:
            version = built(data_set, Store(Path(folder)))
            figures = [*searches(version, options.turns), *openings(version, Store(Path(folder)))]
        show("Exact search beside FAISS", "python -m benchmarks.exact_search", figures, options.out)


def built(data_set: DataSet, store: Store) -> Version:
    """The version of the training part, own keys only."""
    table = read_table(data_set.path)
    split = split_by_name(data_set.split, table.series[0].times)
    return build(table, store, "exact", window=WINDOW, split=split, scopes=("own",))


def searches(version: Version, turns: int) -> list[Figure]:
    """Two lines for each view: processor time of one thread, which other processes change least, and wall time."""
    memories = {threads: open_version(version, threads=threads) for threads in (1, THREADS)}
    figures = []
    for view in memories[1].windows.views:
        for threads, memory in memories.items():
            with faiss_threads(threads):
                figures.append(beside_faiss(memory, view, turns, threads))
    return figures


def beside_faiss(memory: LocalMemory, view: int, turns: int, threads: int) -> Figure:
    """All windows of the series under one view."""
    number = memory.windows.series_ids.index(SERIES)
    segment = memory.segments[0]
    group, rows = segment.groups[KeySpace("own", view)][number], segment.rows("own", number)
    keys = np.ascontiguousarray(group.keys)
    queries = Queries(
        context=memory.windows.contexts(rows)[:, None],
        origin=memory.windows.origin(rows),
        series_id=np.array([SERIES]),
        policy=Policy.DISJOINT,
    )
    everything = np.full(len(keys), len(keys))
    visible = Ranges(0, everything, everything, len(keys))
    actions: dict[str, Callable[[int], object]] = {
        "ours": lambda _: memory.search(queries, K, scopes=("own",), views=(view,)),
        "knn": lambda _: faiss.knn(keys, keys, K),
    }
    if threads == 1:
        actions["scan"] = lambda _: search_group(group, keys, visible, K)
    for name, index in panoramas(keys).items():
        actions[name] = lambda _, index=index: index.search(keys, K)  # type: ignore[misc]
    times = in_turns(actions, turns, clock=time.process_time if threads == 1 else time.perf_counter)
    beside = [f"`faiss.knn` {told(times, 'knn')}"]
    panorama = [name for name in times if name.startswith("Panorama")]
    best = min(panorama, key=lambda name: medians(times)[name], default="")
    beside += [f"`IndexFlatL2{best}` {told(times, best)}"] if best else ["this faiss has no Panorama"]
    if threads == 1:
        agreed = same_rows(group, keys, visible)
        beside += [
            f"our scan without guard and encoding {told(times, 'scan')}",
            f"{agreed:.2%} of its rows are FAISS's",
        ]
    clock = "one thread, processor time" if threads == 1 else f"{threads} threads, wall time"
    return Figure(
        f"{len(keys):,} windows, as many keys of {keys.shape[1]} numbers, view {view}, K = {K}, {clock}",
        f"{medians(times)['ours']:.2f} s",
        "",
        "; ".join(beside),
    )


def panoramas(keys: np.ndarray) -> dict[str, faiss.Index]:
    """FAISS's flat index that leaves off where a distance is large enough, in several settings, where it has one."""
    kind = getattr(faiss, "IndexFlatL2Panorama", None)
    made = {}
    for levels in LEVELS if kind is not None else ():
        for batch in BATCHES:
            index = kind(keys.shape[1], levels, batch)
            index.add(keys)
            made[f"Panorama({levels} levels, {batch})"] = index
    return made


def told(times: Times, name: str) -> str:
    """Seconds, and how many times as long as ours."""
    return f"{medians(times)[name]:.2f} s ({ratio(times, name, 'ours'):.1f} x)"


def same_rows(group: KeyGroup, keys: np.ndarray, visible: Ranges) -> float:
    """The share of the neighbours that plain FAISS and our scan both find where everything may be seen."""
    asked = np.arange(0, len(keys), 16)
    ours = search_group(group, keys[asked], visible.take(asked), K)[1]
    theirs = faiss.knn(keys[asked], keys, K)[1]
    return float(np.mean([len(np.intersect1d(a, b)) / K for a, b in zip(ours, theirs, strict=True)]))


def openings(version: Version, store: Store) -> list[Figure]:
    """The same version with its keys in NumPy arrays, as format 1 had them, beside it."""
    versions = {"files": version, "arrays": as_arrays(version, store)}
    actions = {name: lambda _, each=each: open_version(each, threads=1) for name, each in versions.items()}
    times = in_turns(actions, OPENED)
    seconds, num_bytes = medians(times), {name: each.manifest.num_bytes for name, each in versions.items()}
    told = {name: f"{1e3 * seconds[name]:.0f} ms, {num_bytes[name]:,} bytes" for name in versions}
    return [
        Figure(
            f"open {version.manifest.num_rows:,} windows, {len(version.manifest.spaces)} key spaces, all files hashed",
            told["files"],
            "",
            f"keys in NumPy arrays (format 1): {told['arrays']} ({ratio(times, 'arrays', 'files'):.2f} x)",
        )
    ]


def as_arrays(version: Version, store: Store) -> Version:
    """A version of format 1 with the same keys."""
    with store.staging("arrays") as staging:
        shutil.copytree(version.path / "segment-0", staging.path / "segment-0")
        shutil.copy(version.path / "encoder.safetensors", staging.path)
        for space in version.manifest.key_spaces:
            keys = read_keys(version.path / "segment-0", space)
            keys_path(staging.path / "segment-0", space).unlink()
            write_array(staging.path / "segment-0" / f"keys-{space}.npy", keys)
        return staging.publish(replace(version.manifest, format=1, files={}))


if __name__ == "__main__":
    main()
