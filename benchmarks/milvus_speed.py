"""A Milvus in place of the FAISS files: loading, memory of the loader, queries a second, and recall.

    python -m benchmarks.milvus_speed                                       200,000 windows into Milvus Lite
    python -m benchmarks.milvus_speed --windows 1000000 --to milvus://127.0.0.1:19530 --token-file TOKEN
    make milvus-speed                                                       a server that is started for it

The same synthetic table as `speed/million.py`: 20 series, one view of 96 steps, scope pooled, policy causal, origins
uniform over the last 90% of the time line, k = 10. Beside each figure is that of the version's own search in the same
run. With --to the server must be empty of it; it is removed at the end.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import numpy as np

from benchmarks.milvus_server import ADDRESS, TOKEN, Server
from benchmarks.report import Figure, peak_rss_mb, show, timed
from benchmarks.speed.million import BATCH, NAME, K, build_step, hits, query_batch
from memory_index.access import Access, read_access
from memory_index.local import LocalMemory
from memory_index.measure import without_indexes
from memory_index.milvus.publish import publish, remove
from memory_index.milvus.searching import open_milvus
from memory_index.neighbours import Neighbours
from memory_index.versions.opening import open_version
from memory_index.versions.store import Store

NUM_BATCHES, NUM_EXACT = 8, 4  # batches of queries asked; of these so many are compared with an exact scan


def main() -> None:
    """Measure and print everything; each step in a process of its own, so that its peak memory is its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--windows", type=int, default=200_000)
    parser.add_argument("--to", help="address of a Milvus server (default: Milvus Lite)")
    parser.add_argument("--token-file", type=Path)
    parser.add_argument("--start", action="store_true", help="start the server of .venv-milvus, and end it afterwards")
    parser.add_argument("--indexes-dir", type=Path, help="keep the index here, and use it if it is there")
    parser.add_argument("--out", type=Path, help="also write the figures as JSON")
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        print(json.dumps(STEPS[options.step](options)))
        return
    with tempfile.TemporaryDirectory() as folder:
        options.indexes_dir = options.indexes_dir or Path(folder)
        options.to = options.to or f"milvus:{folder}/milvus.db"
        if not (options.indexes_dir / NAME).exists():
            in_own_process("build", options)
        with started(Path(folder), options) if options.start else nullcontext() as server:
            loaded, found = in_own_process("load", options), in_own_process("search", options)
            peak = server and server.peak_mb()
            in_own_process("remove", options)
    figures = [
        Figure(
            f"publish {loaded['num_rows']:,} keys of {loaded['width']} numbers ({loaded['index']})",
            f"{loaded['num_rows'] / loaded['seconds']:,.0f} rows/s",
            "",
            f"{loaded['seconds']:.0f} s with indexing and measuring; Milvus {loaded['server']}",
        ),
        Figure(
            "peak memory of the publisher",
            f"{loaded['peak']:,.0f} MB",
            "",
            f"{loaded['opened']:,.0f} MB before the first row" + (", Milvus Lite within" if loaded["lite"] else ""),
        ),
        Figure(
            "open, counting every row", f"{found['open']:.2f} s", "", f"the version alone: {found['open_own']:.2f} s"
        ),
        Figure(
            f"search, batches of {BATCH}, k = {K}, 1 thread",
            f"{found['rate']:,.0f} queries/s",
            "",
            f"the version's own: {found['own_rate']:,.0f}; an exact scan: {found['exact_rate']:,.0f}",
        ),
        Figure("recall@10 under the time guard", f"{found['recall']:.4f}", "", f"its own: {found['own_recall']:.4f}"),
        Figure("one query, p50", f"{found['one_ms']:.1f} ms", "", f"its own: {found['own_one_ms']:.2f} ms"),
    ]
    if peak:
        figures.append(Figure("peak memory of the server", f"{peak:,.0f} MB", ""))
    where = " --start" if options.start else f" --to {options.to}" if options.to.startswith("milvus://") else ""
    show("Milvus", f"python -m benchmarks.milvus_speed --windows {options.windows}{where}", figures, options.out)


@contextmanager
def started(folder: Path, options: argparse.Namespace) -> Iterator[Server]:
    """A server for this measurement alone, and in the options how it is reached."""
    server, options.to, options.token_file = Server(folder / "server"), ADDRESS, folder / "token"
    options.token_file.write_text(TOKEN)
    options.token_file.chmod(0o600)
    server.start()
    try:
        yield server
    finally:
        server.kill()


def in_own_process(step: str, options: argparse.Namespace) -> dict:
    """One step of this script in a fresh process."""
    command = [sys.executable, "-m", "benchmarks.milvus_speed", "--step", step, "--windows", str(options.windows)]
    command += ["--indexes-dir", str(options.indexes_dir), "--to", options.to]
    command += ["--token-file", str(options.token_file)] if options.token_file else []
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def access_of(options: argparse.Namespace) -> Access:
    """What the server is shown."""
    return read_access(options.token_file, None)


def load_step(options: argparse.Namespace) -> dict:
    """Publish, and say how much memory there was before the first row and at the most."""
    version = Store(options.indexes_dir).resolve(NAME)
    opened: list[float] = []

    def first_call(*_: object) -> None:
        if not opened:
            opened.append(peak_rss_mb())

    published = publish(version, options.to, access=access_of(options), report=first_call)
    (space,) = published.spaces
    return {
        "num_rows": space.num_rows,
        "width": version.manifest.spaces[0].width,
        "index": space.index,
        "seconds": published.seconds,
        "server": published.server,
        "opened": opened[0],
        "peak": peak_rss_mb(),
        "lite": "lite" in published.server and not options.to.startswith("milvus://"),
    }


def search_step(options: argparse.Namespace) -> dict:
    """Rate and recall of Milvus, of the version's own search, and of the exact scan of the same keys."""
    version = Store(options.indexes_dir).resolve(NAME)
    open_own, own = timed(lambda: open_version(version, threads=1))
    open_s, memory = timed(lambda: open_milvus(version, options.to, access=access_of(options), threads=1))
    batches = [query_batch(memory, seed) for seed in range(NUM_BATCHES)]
    exact_seconds, true = asked(own.with_segments(without_indexes(own)), batches[:NUM_EXACT])
    seconds, found = asked(memory, batches)
    own_seconds, own_found = asked(own, batches)
    num = NUM_BATCHES * BATCH
    ones = [query_batch(memory, 100, num=1) for _ in range(20)]
    return {
        "open": open_s,
        "open_own": open_own,
        "rate": num / seconds,
        "own_rate": num / own_seconds,
        "exact_rate": NUM_EXACT * BATCH / exact_seconds,
        "recall": recall(found, true),
        "own_recall": recall(own_found, true),
        "one_ms": float(np.median([timed(lambda one=one: memory.search(one, K))[0] for one in ones]) * 1e3),
        "own_one_ms": float(np.median([timed(lambda one=one: own.search(one, K))[0] for one in ones]) * 1e3),
    }


def asked(memory: LocalMemory, batches: list) -> tuple[float, list[Neighbours]]:
    """Seconds for all batches, after the first one has been asked once."""
    memory.search(batches[0], K)
    return timed(lambda: [memory.search(batch, K) for batch in batches])


def recall(found: list[Neighbours], true: list[Neighbours]) -> float:
    """Recall@K over the batches that were scanned."""
    return float(np.concatenate([hits(f, t) for f, t in zip(found, true, strict=False)]).mean())


def remove_step(options: argparse.Namespace) -> dict:
    """Leave nothing behind."""
    return {"removed": remove(Store(options.indexes_dir).resolve(NAME), options.to, access=access_of(options))}


STEPS = {"build": build_step, "load": load_step, "search": search_step, "remove": remove_step}

if __name__ == "__main__":
    main()
