"""Searching the memory of ETTh1: the neighbours of every window, and one question at a time, beside brute force.

What limits a search, in numbers. One query is compared with n keys of E numbers: 2 n E flops, and n distances of 4
bytes to be looked through. With own keys of ETTh1 (n = 8,033, E = 53) these are 0.85 MFLOP and 32 KB a view. All 95,221
windows under three views take 243 GFLOP; their distances would be 9.2 GB, but never leave the cache, since a block of
them is used at once (`search.BLOCK_VALUES`), and the keys are read once a block: 1.7 MB for some 65 queries. In a
profile of one thread the product took 30% and the selection (`search._smallest`) 37%. No exact search of these keys can
be quicker than its products, and how far this one is from them is a line of the table. Brute force over raw windows has
96, 168 and 336 numbers where a key has 53: 918 GFLOP, and the same 9.2 GB of distances, masked and sorted in memory.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from benchmarks.report import Figure
from benchmarks.speed.brute_force import Keys, RawWindows, brute_force, normalised
from benchmarks.speed.stage import WINDOW, Stage
from benchmarks.speed.turns import Times, in_turns, medians, ratio
from memory_index.exact_scan import squared_distances
from memory_index.leakage import Policy
from memory_index.local import LocalMemory
from memory_index.queries import query_blocks
from memory_index.splits import part_origins
from memory_index.tables.series import SeriesTable
from memory_index.threads import one_blas_thread
from memory_index.types import KeySpace, Queries, Scope
from memory_index.windows import cut

K, K_ONE, WIDEST = 50, 10, 96  # neighbours of all windows, and of one question; the view of a question of one view
POLICIES = {"train": Policy.DISJOINT, "val": Policy.CAUSAL, "test": Policy.CAUSAL}
PRODUCT_ROWS = 64  # queries of one product, so that its distances stay in the cache


def figures(stage: Stage) -> list[Figure]:
    """In the order of the table."""
    memory = stage.memory
    assert isinstance(memory, LocalMemory), "a version on this machine"
    return [*of_all(memory, stage), *one_question(memory, stage)]


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
    times = in_turns(actions, stage.sizes.turns, warm=0)
    seconds = medians(times)
    n, width = memory.segments[0].groups[KeySpace("own", WIDEST)][0].keys.shape
    flops = 2 * n * width * num * len(memory.windows.views)
    agreed, compared = agreement(memory, table)
    return [
        Figure(
            f"neighbours of {num:,} windows, 3 views, own, K = {K}",
            f"{seconds['own']:.1f} s, {num / seconds['own']:,.0f} windows/s",
            "2 x brute force",
            f"torch brute force (matmul, mask, topk): {seconds['brute']:.1f} s, "
            f"{ratio(times, 'brute', 'own'):.2f} x slower",
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

    def multiply(keys: np.ndarray) -> None:
        distances = np.empty((PRODUCT_ROWS, len(keys)), dtype=np.float32)
        for start in range(0, num, PRODUCT_ROWS):
            part = min(PRODUCT_ROWS, num - start)
            np.matmul(keys[:part], keys.T, out=distances[:part])

    groups = [group for view in memory.windows.views for group in memory.segments[0].groups[KeySpace("own", view)]]
    with one_blas_thread(), ThreadPoolExecutor(memory.threads) as pool:  # as the search does it
        list(pool.map(lambda group: multiply(np.ascontiguousarray(group.keys)), groups))


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
