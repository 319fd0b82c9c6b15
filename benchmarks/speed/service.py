"""A memory behind `cli index serve` beside the same memory in this process: time of a question, and throughput.

One client asks both in turn, so that what else the machine does meets both alike. Then 8 clients, each a process of its
own, ask the service as fast as they can, in turn with one process that asks its own memory. Every client checks a
sample of what it gets against the memory in its own process, bit for bit.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.report import Figure, timed
from benchmarks.speed.stage import NAME, Sizes, Stage
from memory_index.leakage import Policy
from memory_index.memory import Memory
from memory_index.neighbours import Neighbours
from memory_index.queries import query_blocks
from memory_index.references import open_memory
from memory_index.splits import part_origins
from memory_index.types import Queries

K, BATCH = 10, 256
CLIENTS = 8
ARRAYS = ("row", "distance", "shape_distance", "value_distance", "query_location", "query_spread", "temperature")


def figures(stage: Stage) -> list[Figure]:
    """In the order of the table."""
    indexes, turns = stage.indexes, stage.sizes.service_turns
    assert stage.memory.fingerprint, "it is built"
    with serving(indexes, f"{NAME}@1") as service:
        address = f"{service}/{NAME}@1"
        return [
            *one_client(indexes, address, batch_of(stage, num_series=1), turns),
            *one_client(indexes, address, batch_of(stage, num_series=1, stride=7), turns),
            *one_client(indexes, address, batch_of(stage, num_series=7), max(turns // 4, 3)),
            *many_clients(indexes, address, batch_of(stage, num_series=1), stage.sizes),
        ]


@contextmanager
def serving(indexes: Path, *refs: str, options: tuple[str, ...] = ()) -> Iterator[str]:
    """The address of `cli index serve` in a process of its own."""
    command = [sys.executable, "-m", "cli", "index", "serve", *refs, "--indexes-dir", str(indexes), "--port", "0"]
    process = subprocess.Popen([*command, "--json", *options], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        text = ""
        while not text.rstrip().endswith("}"):
            line = process.stdout.readline()
            assert line, "the service has ended"
            text += line
        yield json.loads(text)["address"]
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def batch_of(stage: Stage, *, num_series: int, stride: int = 1) -> Queries:
    """The first test windows: `BATCH` moments of all series, or of the last one. stride: steps between two moments."""
    table, memory = stage.table, stage.memory
    origins = part_origins(table, memory.windows.spec, memory.manifest.split, "test")
    block = next(
        query_blocks(
            table,
            [rows[: BATCH * stride : stride] for rows in origins],
            memory.windows.spec,
            Policy.CAUSAL,
            known=memory.manifest.series_ids,
        )
    )
    queries = block.queries
    if num_series == 1:
        queries = replace(queries, context=queries.context[:, -1:].copy(), series_id=queries.series_id[-1:])
    return queries


def require_same(first: Neighbours, second: Neighbours) -> None:
    """Fail unless two answers are the same, bit for bit."""
    for name in ARRAYS:
        if getattr(first, name).tobytes() != getattr(second, name).tobytes():
            raise SystemExit(f"the service answers another {name} than the memory in this process")


def is_consecutive(queries: Queries) -> bool:
    """Whether each window is the one before, a step later: then its values travel once."""
    return np.array_equal(queries.context[1:, :, :-1], queries.context[:-1, :, 1:])


def one_client(indexes: Path, address: str, queries: Queries, turns: int) -> list[Figure]:
    """The same question to both, in turn."""
    local, remote = open_memory(indexes, f"{NAME}@1"), open_memory(indexes, address)
    require_same(local.search(queries, K), remote.search(queries, K))
    times: dict[str, list[float]] = {"local": [], "remote": []}
    for turn in range(turns):
        both: list[tuple[str, Memory]] = [("local", local), ("remote", remote)]
        for name, memory in both if turn % 2 else reversed(both):
            times[name].append(timed(lambda memory=memory: memory.search(queries, K))[0] * 1e3)
    own, theirs = (float(np.median(times[name])) for name in ("local", "remote"))
    more = float(np.median(np.subtract(times["remote"], times["local"])))
    num, moments = queries.context.shape[1], "consecutive" if is_consecutive(queries) else "scattered"
    return [
        Figure(
            f"a service: {len(queries)} {moments} moments of {num} series, k = {K}",
            f"{theirs:.1f} ms",
            f"at most {own + max(3.0, 0.05 * own):.1f} ms",
            f"in this process {own:.1f} ms; median difference {more:+.2f} ms ({more / own:+.1%}), {turns} turns",
        )
    ]


def ask_for(indexes: Path, ref: str, queries: Queries, seconds: float, begin: Any, times: Any) -> None:
    """In a process of its own: ask again and again, and tell when each question began and ended."""
    memory, local = open_memory(indexes, ref), open_memory(indexes, f"{NAME}@1")
    expected = local.search(queries, K)
    memory.search(queries, K)
    begin.wait()
    until, asked = time.perf_counter() + seconds, []
    while time.perf_counter() < until:
        started = time.perf_counter()
        found = memory.search(queries, K)
        asked.append((started, time.perf_counter()))
        if len(asked) % 16 == 1:
            require_same(expected, found)
    times.put(asked)


def load(indexes: Path, ref: str, queries: Queries, num: int, seconds: float) -> tuple[float, np.ndarray]:
    """Questions per second of so many processes together, and the time of each in ms."""
    context = multiprocessing.get_context("spawn")
    begin, times = context.Barrier(num), context.Queue()
    asking = [context.Process(target=ask_for, args=(indexes, ref, queries, seconds, begin, times)) for _ in range(num)]
    for each in asking:
        each.start()
    found = np.concatenate([np.array(times.get()) for _ in asking])
    for each in asking:
        each.join()
    return len(found) / (found[:, 1].max() - found[:, 0].min()), (found[:, 1] - found[:, 0]) * 1e3


def many_clients(indexes: Path, address: str, queries: Queries, sizes: Sizes) -> list[Figure]:
    """Throughput and latency under full load, in rounds between which one process asks its own memory for as long."""
    own, theirs, times = [], [], []
    seconds = sizes.service_seconds / sizes.service_rounds
    for _ in range(sizes.service_rounds):
        own.append(load(indexes, f"{NAME}@1", queries, 1, seconds)[0] * BATCH)
        rate, some = load(indexes, address, queries, CLIENTS, seconds)
        theirs.append(rate * BATCH)
        times.append(some)
    shares = np.divide(theirs, own)
    p50, p99 = np.percentile(np.concatenate(times), [50, 99])
    cores = len(os.sched_getaffinity(0))
    return [
        Figure(
            f"a service: {CLIENTS} clients at once on {cores} cores, {BATCH} windows a question",
            f"p50 {p50:.0f} ms, p99 {p99:.0f} ms",
            f"p99 under {2 * p50:.0f} ms",
            f"the throughput beside one process with its own memory, below; {sum(map(len, times)):,} questions",
        ),
        Figure(
            "throughput of these",
            f"{np.median(shares):.0%} ({np.median(theirs):,.0f} windows/s)",
            "80%",
            f"one process with its own memory: {np.median(own):,.0f} windows/s; "
            f"{len(shares)} rounds, from {shares.min():.0%} to {shares.max():.0%}",
        ),
    ]
