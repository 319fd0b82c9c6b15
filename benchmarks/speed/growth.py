"""How cost grows with the number of windows, lookback, horizon, k and the number of series.

Synthetic histories (benchmarks/synthetic.py), one view as long as the lookback, one thread on both sides. A point is
the median of alternating turns of all operations at one size; an exponent is the slope of a straight line through the
points of a plot with two logarithmic axes. What arithmetic expects of each is in `expected.py`, the plot in
`growth_picture.py`.

    build             `own` and `pooled`, every key compared
    build, graph      `pooled` with a graph index, from 100,000 windows (below, hardly a search would use it)
    append            24 steps of every series
    search, own       256 windows of one series
    search, pooled    256 windows of a series never seen, every key compared
    search, graph     the same by a graph index, from 100,000 windows
    brute force       the same, straightforwardly: raw windows in torch
    forecast          256 forecasts from the neighbours that were found
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from benchmarks.report import peak_rss_mb
from benchmarks.speed.brute_force import RawWindows, brute_force, normalised
from benchmarks.speed.million import GRAPH, query_batch
from benchmarks.speed.stage import Sizes
from benchmarks.speed.turns import in_turns, medians
from benchmarks.synthetic import self_similar_table
from memory_index.encoder import EncoderConfig
from memory_index.leakage import Policy
from memory_index.local import LocalMemory
from memory_index.measure import without_indexes
from memory_index.splits import split_until
from memory_index.tables.series import Series, SeriesTable
from memory_index.types import Queries
from memory_index.versions.append import append
from memory_index.versions.build import build, cut_table
from memory_index.versions.opening import open_version
from memory_index.versions.store import Store
from memory_index.versions.version import Version
from memory_index.windows import WindowSpec, origin_rows

APPENDED = 24  # steps of every series
LEAST_GRAPH = 100_000  # windows
SIZES = (10_000, 30_000, 100_000, 300_000, 1_000_000)
QUICK_WINDOWS = 100_000  # a largest memory of fewer makes the other curves short too


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """One point of every curve of a panel."""

    windows: int = 20_000
    series: int = 20
    lookback: int = 96
    horizon: int = 24
    k: int = 10

    @property
    def spec(self) -> WindowSpec:
        """The shape of a window."""
        return WindowSpec(lookback=self.lookback, horizon=self.horizon)

    @property
    def num_steps(self) -> int:
        """Of each series, those that are appended not counted."""
        return self.windows // self.series + self.spec.length - 1


class Point(NamedTuple):
    """What one operation took. variable: what grew, a field of `Case`; value: how large it was."""

    variable: str
    value: int
    operation: str
    seconds: float


def cases(sizes: Sizes) -> dict[str, list[Case]]:
    """By what grows. Where the number of series grows, each has as many windows."""
    quick = sizes.growth_windows < QUICK_WINDOWS
    fixed = Case(windows=4_000) if quick else Case()
    windows = [num for num in (1_000, 3_000, *SIZES) if num <= sizes.growth_windows and (quick or num >= SIZES[0])]
    long, many = slice(3 if quick else None), fixed.windows // fixed.series
    return {
        "windows": [dataclasses.replace(fixed, windows=num) for num in windows],
        "lookback": [dataclasses.replace(fixed, lookback=num) for num in (48, 96, 192, 384, 768)[long]],
        "horizon": [dataclasses.replace(fixed, horizon=num) for num in (12, 24, 48, 96, 192)[long]],
        "k": [dataclasses.replace(fixed, k=num) for num in (5, 10, 20, 50, 100)[long]],
        "series": [dataclasses.replace(fixed, series=num, windows=many * num) for num in (5, 10, 20, 50, 100)[long]],
    }


def measure(sizes: Sizes, folder: Path) -> tuple[list[Point], float]:
    """Every point of every curve, and the peak memory in MB. For a process of its own: it keeps one thread."""
    torch.set_num_threads(1)  # as the memories that are measured have
    with tempfile.TemporaryDirectory(dir=folder) as inside:
        points = [
            Point(variable, getattr(case, variable), operation, seconds)
            for variable, all_of_it in cases(sizes).items()
            for case in all_of_it
            for operation, seconds in measure_case(case, sizes, Path(inside), with_build=variable != "k").items()
        ]
    return points, peak_rss_mb()


def measure_case(case: Case, sizes: Sizes, folder: Path, *, with_build: bool) -> dict[str, float]:
    """Seconds of every operation at one size. with_build: whether building and appending are measured too."""
    whole = self_similar_table(case.series, case.num_steps + APPENDED)
    old, new = cut_table(whole, [case.num_steps] * case.series), last_steps(whole, APPENDED)

    def built(name: str, factory: str) -> Version:
        return build(
            old,
            store,
            name,
            window=case.spec,
            split=split_until("end", None, old.times, old.step),
            encoder=EncoderConfig(views=(case.lookback,)),
            scopes=("own", "pooled") if factory == "Flat" else ("pooled",),
            factory=factory,
        )

    with tempfile.TemporaryDirectory(dir=folder) as inside:
        store, found = Store(Path(inside)), {}
        builds = {"build": lambda turn: built(f"flat-{turn}", "Flat")}
        if case.windows >= LEAST_GRAPH:
            builds["build, graph"] = lambda turn: built(f"graph-{turn}", GRAPH)
        num, budget = (sizes.growth_turns, sizes.growth_budget) if with_build else (1, 0.0)
        found |= medians(in_turns(builds, num, warm=0, budget=budget)) if with_build else {}
        version = store.resolve("flat-0") if with_build else built("flat-0", "Flat")
        asked = searches(case, open_version(version, threads=1), old)
        if "build, graph" in builds:
            graph = open_version(store.resolve("graph-0"), threads=1)
            asked["search, graph"] = ask(graph, pooled_batch(graph), case.k)
        if with_build:
            asked["append"] = lambda _: append(store, "flat-0@1", new)
        return found | medians(in_turns(asked, sizes.growth_turns, budget=sizes.growth_budget))


def searches(case: Case, memory: LocalMemory, table: SeriesTable) -> dict[str, Callable[[int], Any]]:
    """What is asked of a version of which every key is compared, and the same by brute force."""
    memory = memory.with_segments(without_indexes(memory))
    pooled = pooled_batch(memory)
    found = memory.search(pooled, case.k, scopes=("pooled",))
    rows = origin_rows(table.series[0].values, case.spec)
    within = RawWindows(table, rows, case.lookback).keys("pooled")
    asked_at = np.searchsorted(table.times, pooled.origin)
    context = pooled.context[:, 0]

    def straightforward(_: int) -> None:
        shape = normalised(context.ravel(), np.arange(1, len(context) + 1) * case.lookback - 1, case.lookback)
        brute_force(within, shape, asked_at, case.k, case.spec, Policy.CAUSAL)

    return {
        "search, own": ask(memory, own_batch(memory), case.k, scopes=("own",)),
        "search, pooled": ask(memory, pooled, case.k, scopes=("pooled",)),
        "brute force": straightforward,
        "forecast": lambda _: found.forecast(on_empty="last-value"),
    }


def ask(memory: LocalMemory, queries: Queries, k: int, **options: Any) -> Callable[[int], Any]:
    """A search, to be measured."""
    return lambda _: memory.search(queries, k, **options)


def pooled_batch(memory: LocalMemory) -> Queries:
    """256 windows at origins over the last 90% of the time line, as if of a series never seen."""
    return query_batch(memory, 0)


def own_batch(memory: LocalMemory) -> Queries:
    """256 windows of the first series, at the same origins."""
    windows, like = memory.windows, pooled_batch(memory)
    first = np.flatnonzero(windows.series == 0)
    rows = first[np.searchsorted(windows.origin(first), like.origin)]
    return dataclasses.replace(
        like, context=windows.contexts(rows)[:, None], series_id=np.array(windows.series_ids[:1])
    )


def last_steps(table: SeriesTable, num: int) -> SeriesTable:
    """The last steps of every series."""
    series = (Series(series_id=s.series_id, times=s.times[-num:], values=s.values[-num:]) for s in table.series)
    return dataclasses.replace(table, series=tuple(series))


def exponents(points: list[Point]) -> dict[tuple[str, str], float]:
    """By what grew and operation: the slope of log(seconds) over log(value)."""
    curves: dict[tuple[str, str], list[Point]] = {}
    for point in points:
        curves.setdefault((point.variable, point.operation), []).append(point)
    return {
        name: float(np.polyfit(np.log([p.value for p in curve]), np.log([p.seconds for p in curve]), 1)[0])
        for name, curve in curves.items()
        if len({point.value for point in curve}) > 1
    }
