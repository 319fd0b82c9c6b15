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
from typing import Any, NamedTuple

import numpy as np

from benchmarks.report import Figure
from benchmarks.speed.stage import NAME, Sizes, Stage
from benchmarks.speed.turns import in_turns, medians, ratio
from memory_index.leakage import Policy
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
    indexes, sizes = stage.indexes, stage.sizes
    assert stage.memory.fingerprint, "it is built"
    with serving(indexes, f"{NAME}@1") as service:
        return [
            *one_client(indexes, service, batch_of(stage, num_series=1), sizes),
            *one_client(indexes, service, batch_of(stage, num_series=1, stride=7), sizes),
            *one_client(indexes, service, batch_of(stage, num_series=7), sizes),
            *many_clients(indexes, f"{service.address}/{NAME}@1", batch_of(stage, num_series=1), sizes),
        ]


class Serving(NamedTuple):
    """A running service."""

    address: str
    pid: int


@contextmanager
def serving(indexes: Path, *refs: str, options: tuple[str, ...] = ()) -> Iterator[Serving]:
    """`cli index serve` in a process of its own."""
    command = [sys.executable, "-m", "cli", "index", "serve", *refs, "--indexes-dir", str(indexes), "--port", "0"]
    process = subprocess.Popen([*command, "--json", *options], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        text = ""
        while not text.rstrip().endswith("}"):
            line = process.stdout.readline()
            assert line, "the service has ended"
            text += line
        yield Serving(json.loads(text)["address"], process.pid)
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


def processor_seconds(pids: tuple[int, ...]) -> float:
    """What all threads of some processes have computed so far: on a machine that others use too, time to compare."""
    threads = [thread for pid in pids for thread in Path(f"/proc/{pid}/task").iterdir()]
    return sum(int((thread / "schedstat").read_text().split()[0]) for thread in threads) / 1e9


def one_client(indexes: Path, service: Serving, queries: Queries, sizes: Sizes) -> list[Figure]:
    """The same question to both, in turn."""
    local, remote = open_memory(indexes, f"{NAME}@1"), open_memory(indexes, f"{service.address}/{NAME}@1")
    require_same(local.search(queries, K), remote.search(queries, K))
    both = {"local": lambda _: local.search(queries, K), "remote": lambda _: remote.search(queries, K)}
    times = in_turns(both, sizes.service_turns, budget=sizes.service_budget)
    pids = (os.getpid(), service.pid)
    work = in_turns(both, sizes.service_turns, budget=sizes.service_budget, clock=lambda: processor_seconds(pids))
    own, theirs = (median * 1e3 for median in medians(times).values())
    more = float(np.median(np.subtract(times["remote"], times["local"]))) * 1e3
    share = ratio(times, "remote", "local") - 1
    num, moments = queries.context.shape[1], "consecutive" if is_consecutive(queries) else "scattered"
    return [
        Figure(
            f"a service: {len(queries)} {moments} moments of {num} series, k = {K}",
            f"{share:+.1%}, {more:+.1f} ms (medians over {len(times['local'])} turns)",
            "at most +5% or +3 ms",
            f"median {theirs:.0f} ms; in this process {own:.0f} ms; processor time of both processes "
            f"{ratio(work, 'remote', 'local') - 1:+.1%} ({medians(work)['local'] * 1e3:.0f} ms in this process)",
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
    """Throughput and latency under full load, in rounds between which one process asks its own memory for as long.

    Latencies are told in medians of their own round, so that a round in which others took the processor counts alike.
    """
    own, theirs, times = [], [], []
    seconds = sizes.service_seconds / sizes.service_rounds
    for _ in range(sizes.service_rounds):
        own.append(load(indexes, f"{NAME}@1", queries, 1, seconds)[0] * BATCH)
        rate, some = load(indexes, address, queries, CLIENTS, seconds)
        theirs.append(rate * BATCH)
        times.append(some)
    shares = np.divide(theirs, own)
    p99 = np.percentile(np.concatenate([each / np.median(each) for each in times]), 99)
    cores = len(os.sched_getaffinity(0))
    return [
        Figure(
            f"a service: {CLIENTS} clients at once on {cores} cores, {BATCH} windows a question",
            f"p99 {p99:.1f} times p50",
            "under twice",
            f"p50 {np.median(np.concatenate(times)):.0f} ms; {sum(map(len, times)):,} questions in {len(times)} rounds",
        ),
        Figure(
            "throughput of these, beside one process with its own memory",
            f"{np.median(shares):.0%} (median of {len(shares)} rounds)",
            "80%",
            f"{np.median(theirs):,.0f} and {np.median(own):,.0f} windows/s; rounds from {shares.min():.0%} to "
            f"{shares.max():.0%}",
        ),
    ]
