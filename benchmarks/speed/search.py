"""Searching the memory of ETTh1: the neighbours of every window, and one question at a time, beside brute force.

What limits a search, in numbers. One query is compared with n keys of E numbers: 2 n E flops, and n distances of 4
bytes to be looked through. With own keys of ETTh1 (n = 8,033, E = 53) these are 0.85 MFLOP and 32 KB a view. All 95,221
windows under three views take 243 GFLOP, 14 us a query at 60 GFLOP/s; their distances would be 9.2 GB, but at most
4 MiB are there at once (`exact_scan.BLOCK_VALUES`), and are read three times: 3 us a query at 30 GB/s. No exact search
of these keys can be quicker than its products, and how far this one is from them is a line of the table. Brute force
over raw windows has 96, 168 and 336 numbers where a key has 53: 918 GFLOP, and the same 9.2 GB of distances, masked and
sorted in memory. `faiss.knn` multiplies the same keys and keeps a heap for each query; `stumpy.stump` needs a few flops
a pair whatever the length of a window, and keeps a sorted list.
"""

from __future__ import annotations

import dataclasses
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import faiss
import numpy as np
import torch

from benchmarks.report import Figure
from benchmarks.speed.brute_force import Keys, RawWindows, brute_force, normalised
from benchmarks.speed.stage import NAME, WINDOW, Stage
from benchmarks.speed.turns import Times, in_turns, medians, ratio
from memory_index.exact_scan import squared_distances
from memory_index.leakage import Policy
from memory_index.local import LocalMemory
from memory_index.queries import query_blocks
from memory_index.references import open_memory
from memory_index.splits import part_origins
from memory_index.tables.series import SeriesTable
from memory_index.threads import one_blas_thread
from memory_index.types import KeySpace, Queries, Scope
from memory_index.windows import cut

K, K_ONE, WIDEST = 50, 10, 96  # neighbours of all windows, and of one question; the view of a question of one view
POLICIES = {"train": Policy.DISJOINT, "val": Policy.CAUSAL, "test": Policy.CAUSAL}
PRODUCT_ROWS = 256  # queries of one product, and keys: its distances stay in the cache
PRODUCT_KEYS = 2048
PEERS = Path(".venv-peers/bin/python")  # made by `make peers`


def figures(stage: Stage) -> list[Figure]:
    """In the order of the table."""
    memory = stage.memory
    assert isinstance(memory, LocalMemory), "a version on this machine"
    return [*of_all(memory, stage), *of_one_series(memory, stage), *by_threads(stage), *one_question(memory, stage)]


def origins_of(memory: LocalMemory, table: SeriesTable, part: str, every: int) -> list[np.ndarray]:
    """Every so manieth window of a part."""
    return [rows[::every] for rows in part_origins(table, WINDOW, memory.manifest.split, part)]


def of_all(memory: LocalMemory, stage: Stage) -> list[Figure]:
    """Every training, validation and test window, with brute force and the products alone beside it."""
    table, every = stage.table, stage.sizes.every
    num = sum(len(rows) for part in POLICIES for rows in origins_of(memory, table, part, every))

    def search_all(scopes: tuple[Scope, ...]) -> None:
        for part, policy in POLICIES.items():
            origins = origins_of(memory, table, part, every)
            for block in query_blocks(table, origins, WINDOW, policy, known=table.series_ids):
                memory.search(block.queries, K, scopes=scopes)

    actions = {
        "own": lambda _: search_all(("own",)),
        "brute": lambda _: brute_force_all(memory, table, every),
        "products": lambda _: products_alone(memory, num // len(table.series)),
        "joint": lambda _: search_all(("own", "joint")),
    }
    processor: Times = {name: [] for name in actions}
    actions = {name: counted(action, processor[name]) for name, action in actions.items()}
    times = in_turns(actions, stage.sizes.turns, warm=0)
    seconds = medians(times)
    n, width = memory.segments[0].groups[KeySpace("own", WIDEST)][0].keys.shape
    flops = 2 * n * width * num * len(memory.windows.views)
    agreed, compared = agreement(memory, table)
    return [
        Figure(
            f"neighbours of {num:,} windows, 3 views, own, K = {K}",
            f"{seconds['own']:.1f} s, {num / seconds['own']:,.0f} windows/s",
            "3 x brute force",
            f"torch brute force (matmul, mask, topk): {seconds['brute']:.1f} s, "
            f"{ratio(times, 'brute', 'own'):.2f} x slower",
        ),
        Figure(
            "the same in processor time",
            f"{medians(processor)['own']:.1f} s",
            "",
            f"brute force: {medians(processor)['brute']:.1f} s, {ratio(processor, 'brute', 'own'):.2f} x as much",
        ),
        Figure(
            "of which the matrix products alone",
            f"{seconds['products']:.1f} s, {flops / 1e9:,.0f} GFLOP, {flops / seconds['products'] / 1e9:.0f} GFLOP/s",
            "",
            f"the search takes {ratio(times, 'own', 'products'):.1f} x as long",
        ),
        Figure("the same neighbours, own and joint", f"{seconds['joint']:.1f} s", "30 s", "own alone, see above"),
        Figure(
            "equal to an exact search of the same keys",
            f"{agreed:,} of {compared:,} rows",
            "all",
            "every stored window compared, every 97th query",
        ),
    ]


def counted(action: Callable[[int], None], seconds: list[float]) -> Callable[[int], None]:
    """The same action, which also keeps the processor time that it took, of all threads."""

    def run(turn: int) -> None:
        started = time.process_time()
        action(turn)
        seconds.append(time.process_time() - started)

    return run


def of_one_series(memory: LocalMemory, stage: Stage) -> list[Figure]:
    """All training windows of the first series, beside what finds the same or like neighbours without a guard."""
    table = dataclasses.replace(stage.table, series=stage.table.series[:1])
    views = memory.windows.views
    keys = [np.ascontiguousarray(memory.segments[0].groups[KeySpace("own", view)][0].keys) for view in views]

    def knn(_: int) -> None:
        faiss.omp_set_num_threads(memory.threads)
        for each in keys:
            faiss.knn(each, each, K)

    actions = {
        "ours": lambda _: ask_training_windows(memory, table, stage.sizes.every),
        "products": lambda _: products_of([each[:: stage.sizes.every] for each in keys], keys, memory.threads),
        "knn": knn,
    }
    times = in_turns(actions, stage.sizes.turns)
    seconds = medians(times)
    stumpy = stumpy_seconds(table, memory) if stage.sizes.every == 1 else None
    beside = (
        "`stumpy.stump(k=50)` of the raw series: not measured (make peers; not with --quick)"
        if stumpy is None
        else f"`stumpy.stump(k=50)` of the raw series: {stumpy:.1f} s, {stumpy / seconds['ours']:.1f} x slower"
    )
    return [
        Figure(
            f"neighbours of the {len(keys[0]) // stage.sizes.every:,} training windows of one series, 3 views, K = {K}",
            f"{seconds['ours']:.2f} s",
            "",
            f"products alone: {seconds['products']:.2f} s; plain `faiss.knn` of all the keys, no guard, nothing "
            f"encoded: {seconds['knn']:.2f} s, {ratio(times, 'knn', 'ours'):.1f} x slower",
        ),
        Figure("the same", f"{seconds['ours']:.2f} s", "", beside),
    ]


def ask_training_windows(memory: LocalMemory, table: SeriesTable, every: int) -> None:
    """Every so manieth training window of a table, own scope."""
    origins = origins_of(memory, table, "train", every)
    for block in query_blocks(table, origins, WINDOW, Policy.DISJOINT, known=memory.manifest.series_ids):
        memory.search(block.queries, K, scopes=("own",))


def stumpy_seconds(table: SeriesTable, memory: LocalMemory) -> float | None:
    """What `stumpy.stump` takes for the training part of the first series, all views together; None without it."""
    if (
        not PEERS.exists()
        or subprocess.run([PEERS, "-c", "import stumpy"], capture_output=True, check=False).returncode
    ):
        return None
    last = origins_of(memory, table, "train", 1)[0][-1] + WINDOW.horizon
    with tempfile.TemporaryDirectory() as folder:
        np.save(f"{folder}/series.npy", table.series[0].values[: last + 1])
        script = Path(__file__).with_name("stumpy_neighbours.py")
        command = [PEERS, script, f"{folder}/series.npy", str(K), *map(str, memory.windows.views)]
        printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return sum(float(line) for line in printed.split())


def by_threads(stage: Stage) -> list[Figure]:
    """A search with more threads than cores beside one with a single thread, on all cores and bound to one."""
    table = dataclasses.replace(stage.table, series=stage.table.series[:1])
    cores = len(os.sched_getaffinity(0))
    result = []
    for bound in (cores, 1):
        with bound_to(bound):
            actions = {}
            for threads in sorted({1, bound, 4 * cores}):
                memory = open_memory(stage.indexes, f"{NAME}@1", threads=threads)
                assert isinstance(memory, LocalMemory), "a version on this machine"
                actions[f"{threads}"] = lambda _, memory=memory: ask_training_windows(memory, table, stage.sizes.every)
            times = in_turns(actions, stage.sizes.turns)
        beside = ", ".join(f"{name} threads: {statistics.median(each):.2f} s" for name, each in times.items())
        most = f"{4 * cores}"
        result.append(
            Figure(
                f"that with {most} threads on {bound} core{'s' * (bound > 1)}",
                f"{ratio(times, most, '1'):.2f} x the time of one thread",
                "at most 1 x",
                beside,
            )
        )
    return result


@contextmanager
def bound_to(num: int) -> Iterator[None]:
    """Bind this thread, and those that it begins, to so many of its cores."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(before)[:num])
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def brute_force_all(memory: LocalMemory, table: SeriesTable, every: int) -> None:
    """The same by brute force: own scope, with the same K and policies as the memory."""
    stored = origins_of(memory, table, "train", 1)[0]
    for view in memory.windows.views:
        raw = RawWindows(table, stored, view)
        for number, series in enumerate(table.series):
            keys = raw.keys("own", number)
            for part, policy in POLICIES.items():
                rows = origins_of(memory, table, part, every)[number]
                queries = normalised(series.values, rows, view)
                brute_force(keys, queries, rows, K, WINDOW, policy)


def products_alone(memory: LocalMemory, num: int) -> None:
    """So many queries of each series times all its keys, under every view; the least that an exact search can do."""
    groups = [group for view in memory.windows.views for group in memory.segments[0].groups[KeySpace("own", view)]]
    keys = [np.ascontiguousarray(group.keys) for group in groups]
    products_of([each[np.arange(num) % len(each)] for each in keys], keys, memory.threads)


def products_of(queries: list[np.ndarray], keys: list[np.ndarray], threads: int) -> None:
    """The products of queries and keys, each [n, E], in blocks whose distances stay in the cache."""

    def multiply(asked: np.ndarray, among: np.ndarray) -> None:
        for start in range(0, len(asked), PRODUCT_ROWS):
            for first in range(0, len(among), PRODUCT_KEYS):
                asked[start : start + PRODUCT_ROWS] @ among[first : first + PRODUCT_KEYS].T

    with one_blas_thread(), ThreadPoolExecutor(threads) as pool:  # as the search does it
        list(pool.map(multiply, queries, keys))


def agreement(memory: LocalMemory, table: SeriesTable) -> tuple[int, int]:
    """How many of the retrieved rows a full scan of the same keys has at the same rank, on a sample of windows."""
    stored, agreed, compared = origins_of(memory, table, "train", 1)[0], 0, 0
    segment = memory.segments[0]
    for part, policy in POLICIES.items():
        origins = origins_of(memory, table, part, 97)
        for block in query_blocks(table, origins, WINDOW, policy, known=table.series_ids):
            found = memory.search(block.queries, K, scopes=("own",))
            gap = stored - block.row[:, :1]
            visible = gap <= -WINDOW.horizon if policy is Policy.CAUSAL else np.abs(gap) >= WINDOW.length
            for v, space in enumerate(found.spaces):
                encoded = memory.encoder.encode(
                    space.view, block.queries.context, np.arange(len(table.series)), ("own",)
                )
                for n in range(len(table.series)):
                    keys, rows = segment.groups[KeySpace("own", space.view)][n].keys, segment.rows("own", n)
                    alike = segment.windows.flat[rows, v] == encoded.statistics.flat[:, n, None]
                    every = np.where(visible & alike, np.arange(len(stored)), -1)
                    distance = squared_distances(keys, encoded.keys["own"][:, n], every)
                    best = np.lexsort((every, distance), axis=-1)[:, :K]
                    nearest = np.where(np.isfinite(np.take_along_axis(distance, best, axis=1)), rows[best], -1)
                    agreed += int((nearest == found.row[:, n, v]).sum())
                    compared += nearest.size
    return agreed, compared


def one_question(memory: LocalMemory, stage: Stage) -> list[Figure]:
    """One moment at a time, in process: of one series or of all, in one key space or in all of them."""
    table, num_series = stage.table, len(stage.table.series)
    rows = part_origins(table, WINDOW, memory.manifest.split, "test")[0]
    values = [series.values.astype(np.float32) for series in table.series]
    contexts = np.stack([cut(each, rows - WINDOW.lookback + 1, WINDOW.lookback) for each in values], axis=1)
    stored = origins_of(memory, table, "train", 1)[0]
    raw = {view: RawWindows(table, stored, view) for view in memory.windows.views}
    keys: dict[tuple[Scope, int, int], Keys] = {
        (scope, view, number): raw[view].keys(scope, number)
        for view in raw
        for scope, count in (("own", num_series), ("joint", 1), ("pooled", 1))
        for number in range(count)
    }  # type: ignore[misc]

    def ask(i: int, num: int, **search) -> None:  # type: ignore[no-untyped-def]
        queries = Queries(
            context=contexts[i][None, :num],
            origin=table.series[0].times[rows[i] : rows[i] + 1],
            series_id=np.array(table.series_ids[:num]),
            policy=Policy.CAUSAL,
        )
        memory.search(queries, K_ONE, **search)

    def straightforward(i: int, num: int, scopes: tuple[Scope, ...], views: tuple[int, ...]) -> None:
        origin = rows[i : i + 1]
        for view in views:
            shape = torch.stack([normalised(each, rows[i : i + 1], view) for each in values[:num]])  # [N, 1, view]
            for scope in scopes:
                if scope == "joint":
                    asked = shape.reshape(1, -1)
                    brute_force(keys[scope, view, 0], asked, origin, K_ONE, WINDOW, Policy.CAUSAL)
                    continue
                for number in range(num):
                    within = keys[scope, view, number if scope == "own" else 0]
                    brute_force(within, shape[number], origin, K_ONE, WINDOW, Policy.CAUSAL)

    every_view, goal = memory.windows.views, "p50 2 ms, p99 5 ms"
    all_scopes: tuple[Scope, ...] = ("own", "joint", "pooled")
    questions: list[tuple[str, int, tuple[Scope, ...], tuple[int, ...], str]] = [
        (f"one query, one view, pooled, {len(memory.windows):,} keys", 1, ("pooled",), (WIDEST,), goal),
        ("one query of one series, own, 3 views", 1, ("own",), every_view, ""),
        (f"one moment of {num_series} series, own and joint, 3 views", num_series, ("own", "joint"), every_view, ""),
        (
            f"one moment of {num_series} series, all 9 key spaces",
            num_series,
            all_scopes,
            every_view,
            "",
        ),
    ]
    result = []
    for what, num, scopes, views, goal in questions:
        actions = {
            "ours": lambda i, num=num, scopes=scopes, views=views: ask(i, num, scopes=scopes, views=views),
            "brute": lambda i, num=num, scopes=scopes, views=views: straightforward(i, num, scopes, views),
        }
        times = in_turns(actions, max(5, stage.sizes.repeats // num), warm=3)
        result.append(Figure(what, percentiles(times, "ours"), goal, f"brute force: {percentiles(times, 'brute')}"))
    return result


def percentiles(times: Times, name: str) -> str:
    """p50 and p99 of an action."""
    p50, p99 = np.percentile(times[name], [50, 99]) * 1e3
    return f"p50 {p50:.2f} ms, p99 {p99:.2f} ms"
