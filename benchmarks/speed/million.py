"""A memory of a million windows: build, open, and search under the time guard.

Synthetic and self-similar (benchmarks/synthetic.py): 20 series, one view of 96 steps, scope pooled, policy causal,
origins uniform over the last 90% of the time line, k = 10. A graph index proposes candidates; what stands beside it is
the same version without one, every key of which is compared. Each step runs in a process of its own, so that its peak
memory is its own: `python -m benchmarks.speed.million --step ...`, which prints JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.report import Figure, peak_rss_mb, timed
from benchmarks.speed.stage import Stage
from benchmarks.synthetic import SEED, self_similar_table
from memory_index.encoder import EncoderConfig
from memory_index.leakage import Policy
from memory_index.local import LocalMemory
from memory_index.measure import without_indexes
from memory_index.neighbours import Neighbours
from memory_index.references import open_memory
from memory_index.splits import split_until
from memory_index.types import Queries
from memory_index.versions.build import build
from memory_index.versions.store import Store
from memory_index.windows import WindowSpec

SERIES, VIEW = 20, 96
WINDOW = WindowSpec(lookback=96, horizon=24)
K, BATCH = 10, 256
NAME, GRAPH = "million", "HNSW32"  # the index is what `auto` chooses for more than 200,000 windows


def figures(stage: Stage) -> list[Figure]:
    """In the order of the table."""
    with tempfile.TemporaryDirectory(dir=stage.folder) as folder:
        options = argparse.Namespace(windows=stage.sizes.million, indexes_dir=Path(folder), factory=GRAPH)
        built = in_own_process("build", options)
        drop_file_cache(options.indexes_dir)
        cold, warm = in_own_process("open", options)["seconds"], in_own_process("open", options)["seconds"]
        found = in_own_process("search", options)
        shutil.rmtree(folder)
        flat = in_own_process("build", argparse.Namespace(**vars(options) | {"factory": "Flat"}))
    return [
        Figure(
            f"build {built['num_rows']:,} windows ({built['factory']}, {built['width']}-d keys)",
            f"{built['seconds']:.0f} s, {built['peak']:.0f} MB peak, {built['bytes'] / 1e6:.0f} MB on disk",
            "240 s, 3000 MB",
            f"without an index: {flat['seconds']:.0f} s, {flat['peak']:.0f} MB peak, {flat['bytes'] / 1e6:.0f} MB",
        ),
        Figure(
            f"open {built['num_rows']:,} windows, all files hashed",
            f"warm {warm:.2f} s, cold {cold:.2f} s",
            "1 s",
            f"building it again: {built['seconds']:.0f} s, {built['seconds'] / warm:.0f} x slower",
        ),
        Figure(
            f"search {built['num_rows']:,} windows, batches of {BATCH}, k = {K}, 1 thread",
            f"{found['rate']:,.0f} queries/s",
            "2000 queries/s",
            f"exact scan of the same keys: {found['exact_rate']:,.0f} queries/s, "
            f"{found['rate'] / found['exact_rate']:.1f} x slower",
        ),
        Figure(
            "recall@10 under the time guard",
            f"{found['recall']:.4f}, least of ten parts of the time line {found['least_recall']:.4f}",
            ".98",
            "the exact scan: 1",
        ),
    ]


def main() -> None:
    """One step, for whoever wants it in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--step", choices=STEPS, required=True)
    parser.add_argument("--windows", type=int, required=True)
    parser.add_argument("--factory", default="auto")
    parser.add_argument("--indexes-dir", type=Path, required=True)
    options = parser.parse_args()
    print(json.dumps(STEPS[options.step](options)))


def in_own_process(step: str, options: argparse.Namespace) -> dict:
    """One step of this module in a fresh process."""
    command = [sys.executable, "-m", "benchmarks.speed.million", "--step", step, "--windows", str(options.windows)]
    command += ["--indexes-dir", str(options.indexes_dir), "--factory", getattr(options, "factory", "auto")]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout)


def drop_file_cache(folder: Path) -> None:
    """Ask the kernel to forget the cached contents of these files, so that the next open is a cold one."""
    for path in folder.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def build_step(options: argparse.Namespace) -> dict:
    """Make the table and build the version."""
    table = self_similar_table(SERIES, options.windows // SERIES + WINDOW.length - 1)
    split = split_until("end", None, table.series[0].times, table.step)
    seconds, version = timed(
        lambda: build(
            table,
            Store(options.indexes_dir),
            NAME,
            window=WINDOW,
            split=split,
            encoder=EncoderConfig(views=(VIEW,)),
            scopes=("pooled",),
            factory=getattr(options, "factory", "auto"),
        )
    )
    record = version.manifest.spaces[0]
    size = {"num_rows": version.manifest.num_rows, "bytes": version.manifest.num_bytes}
    return {"seconds": seconds, "peak": peak_rss_mb(), "factory": record.factory, "width": record.width, **size}


def open_step(options: argparse.Namespace) -> dict:
    """Open it once."""
    return {"seconds": timed(lambda: open_memory(options.indexes_dir, NAME))[0]}


def search_step(options: argparse.Namespace) -> dict:
    """Rate, memory and recall of the search with one thread, and the rate of the exact scan of the same keys."""
    memory = open_memory(options.indexes_dir, NAME, threads=1)
    batches = [query_batch(memory, seed) for seed in range(24)]
    memory.search(batches[0], K)  # not measured: the first one reads
    seconds, found = timed(lambda: [memory.search(batch, K) for batch in batches])
    peak = peak_rss_mb()
    exact = memory.with_segments(without_indexes(memory))
    exact_seconds, true = timed(lambda: [exact.search(batch, K) for batch in batches[:4]])
    recalls = np.concatenate([hits(f, t) for f, t in zip(found, true, strict=False)])
    order = np.argsort(np.concatenate([batch.origin for batch in batches[:4]]))
    parts = [part.mean() for part in np.array_split(recalls[order], 10)]
    num = len(batches) * BATCH
    return {
        "rate": num / seconds,
        "peak": peak,
        "exact_rate": 4 * BATCH / exact_seconds,
        "recall": float(recalls.mean()),
        "least_recall": float(min(parts)),
    }


def query_batch(memory: LocalMemory, seed: int, *, num: int = BATCH) -> Queries:
    """Windows of the memory's own series with a little noise, at origins uniform over the last 90% of the time line."""
    random, windows = np.random.default_rng(SEED + seed), memory.windows
    num_series = len(windows.series_ids)
    num_moments = len(windows) // num_series
    rows = random.integers(num_moments // 10, num_moments, num) * num_series + random.integers(0, num_series, num)
    context = windows.contexts(rows)
    noise = random.normal(0, 0.1, context.shape) * context.std(axis=1, keepdims=True)
    return Queries(
        context=(context + noise).astype(np.float32)[:, None],
        origin=windows.origin(rows),
        series_id=np.array(["a series never seen"]),
        policy=Policy.CAUSAL,
    )


def hits(found: Neighbours, true: Neighbours) -> np.ndarray:
    """Recall@K of each query."""
    ours, theirs = found.row[:, 0, 0], true.row[:, 0, 0]
    return (theirs[:, :, None] == ours[:, None, :]).any(axis=2).sum(axis=1) / (theirs >= 0).sum(axis=1)


STEPS = {"build": build_step, "open": open_step, "search": search_step}

if __name__ == "__main__":
    main()
