"""A memory of a million windows: build, open, and search under the time guard.

    python -m benchmarks.million_windows

Synthetic and self-similar (benchmarks/synthetic.py): 20 series, one view of 96 steps, scope pooled, policy causal,
origins uniform over the last 90% of the time line, k = 10.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.report import Figure, peak_rss_mb, show, timed
from benchmarks.synthetic import SEED, self_similar_table
from memory_index.encoder import EncoderConfig
from memory_index.leakage import Policy
from memory_index.local import LocalMemory
from memory_index.measure import without_indexes
from memory_index.references import open_memory
from memory_index.splits import split_until
from memory_index.types import Neighbours, Queries
from memory_index.versions.build import build
from memory_index.versions.store import Store
from memory_index.windows import WindowSpec

SERIES, VIEW = 20, 96
WINDOW = WindowSpec(lookback=96, horizon=24)
K, BATCH = 10, 256
NAME = "million"


def main() -> None:
    """Measure and print everything; each step in a process of its own, so that its peak memory is its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--windows", type=int, default=1_000_000)
    parser.add_argument("--indexes-dir", type=Path, help="keep the index here, and use it if it is there")
    parser.add_argument("--out", type=Path, help="also write the figures as JSON")
    parser.add_argument("--step", choices=["build", "open", "search"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        print(json.dumps({"build": build_step, "open": open_step, "search": search_step}[options.step](options)))
        return
    with tempfile.TemporaryDirectory() as folder:
        options.indexes_dir = options.indexes_dir or Path(folder)
        figures = []
        if not (options.indexes_dir / NAME).exists():
            built = in_own_process("build", options)
            figures.append(
                Figure(
                    f"build {built['num_rows']:,} windows ({built['factory']}, {built['width']}-d keys)",
                    f"{built['seconds']:.0f} s, {built['peak']:.0f} MB peak",
                    "240 s, 3000 MB",
                    f"{built['bytes'] / 1e6:.0f} MB on disk",
                )
            )
        drop_file_cache(options.indexes_dir)
        cold, warm = in_own_process("open", options)["seconds"], in_own_process("open", options)["seconds"]
        figures.append(Figure("open, all files hashed", f"warm {warm:.2f} s", "1 s", f"cold {cold:.2f} s"))
        found = in_own_process("search", options)
        figures += [
            Figure(
                f"search, batches of {BATCH}, k = {K}, 1 thread",
                f"{found['rate']:,.0f} queries/s",
                "2000 queries/s",
                f"exact scan of the same keys: {found['exact_rate']:,.0f} queries/s",
            ),
            Figure(
                "recall@10 under the time guard",
                f"{found['recall']:.4f}",
                ".98",
                f"least over ten parts of the time line: {found['least_recall']:.4f}",
            ),
        ]
    show("A million windows", "python -m benchmarks.million_windows", figures, options.out)


def in_own_process(step: str, options: argparse.Namespace) -> dict:
    """One step of this script in a fresh process."""
    command = [sys.executable, "-m", "benchmarks.million_windows", "--step", step, "--windows", str(options.windows)]
    done = subprocess.run(
        [*command, "--indexes-dir", str(options.indexes_dir)], check=True, stdout=subprocess.PIPE, text=True
    )
    return json.loads(done.stdout)


def drop_file_cache(folder: Path) -> None:
    """Ask the kernel to forget the cached contents of these files, so that the next open is a cold one."""
    import os

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
    memory.search(batches[0], K)
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
    random = np.random.default_rng(SEED + seed)
    windows = memory.windows
    moments = random.integers(len(windows) // SERIES // 10, len(windows) // SERIES, num)
    rows = moments * SERIES + random.integers(0, SERIES, num)
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


if __name__ == "__main__":
    main()
