"""What one machine holds: build, open and search from ten thousand to millions of windows, as a table and a plot.

    python -m benchmarks.capacity --plot docs/images/capacity.png
    python -m benchmarks.capacity --per-window        what one window more takes in the memory of a process

Each size is built, opened and searched in processes of its own, with one thread; how is told in `speed/million.py`.
Exponents are the slopes of straight lines through the points of a plot with two logarithmic axes.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np

from benchmarks.report import anonymous_bytes, machine
from benchmarks.speed.million import NAME, SERIES, WINDOW, K, in_own_process
from benchmarks.speed.service import serving
from benchmarks.synthetic import self_similar_table
from memory_index.encoder import EncoderConfig
from memory_index.leakage import Policy
from memory_index.references import open_memory
from memory_index.splits import split_until
from memory_index.types import Queries
from memory_index.versions.build import build
from memory_index.versions.store import Store

SIZES = (10_000, 100_000, 1_000_000, 3_000_000)
TWO_SIZES = (150_000, 600_000)  # between which memory is a straight line
THREE_VIEWS = (24, 48, 96)

T = TypeVar("T")


def main() -> None:
    """Measure, print and draw everything."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", default=",".join(map(str, SIZES)), help="windows")
    parser.add_argument("--plot", type=Path, help="draw it: PNG, SVG or PDF")
    parser.add_argument("--out", type=Path, help="also write the figures as JSON")
    parser.add_argument("--per-window", action="store_true", help="only measure what a window takes in memory")
    options = parser.parse_args()
    if options.per_window:
        show_memory_per_window()
        return
    rows = [measure(int(size)) for size in options.sizes.split(",")]
    print(f"## What one machine holds\n\n`python -m benchmarks.capacity`\n\n{machine()}\n")
    print(
        "| windows | index | build | peak of the build | on disk | open | memory of a search | queries/s | recall@10 |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for row in rows:
        print(
            f"| {row['windows']:,} | {row['factory']} | {row['build_s']:.1f} s | {row['build_mb']:,.0f} MB "
            f"| {row['disk_mb']:,.0f} MB | {row['open_s']:.2f} s | {row['search_mb']:,.0f} MB | {row['rate']:,.0f} "
            f"| {row['recall']:.4f} |"
        )
    slopes = {name: exponent(rows, name) for name in ("build_s", "disk_mb", "open_s", "search_mb", "rate")}
    print("\nexponents: " + ", ".join(f"{name} {slope:.2f}" for name, slope in slopes.items()))
    if options.plot:
        draw(rows, options.plot)
    if options.out:
        options.out.write_text(json.dumps({"machine": machine(), "rows": rows, "exponents": slopes}, indent=1) + "\n")


def measure(num_windows: int) -> dict:
    """One size, from nothing."""
    with tempfile.TemporaryDirectory() as folder:
        step = argparse.Namespace(windows=num_windows, indexes_dir=Path(folder))
        built, opened, found = (in_own_process(name, step) for name in ("build", "open", "search"))
    return {
        "windows": built["num_rows"],
        "factory": built["factory"],
        "build_s": built["seconds"],
        "build_mb": built["peak"],
        "disk_mb": built["bytes"] / 1e6,
        "open_s": opened["seconds"],
        "search_mb": found["peak"],
        "rate": found["rate"],
        "recall": found["recall"],
    }


def show_memory_per_window() -> None:
    """Two sizes of one version, three views, `own` and `pooled`, every key compared: the slope between them."""
    taken = np.array([memory_taken(size) for size in TWO_SIZES])
    slopes = np.diff(taken[:, 1:], axis=0)[0] / np.diff(taken[:, 0])[0]
    print(f"## Memory of a window\n\n`python -m benchmarks.capacity --per-window`\n\n{machine()}\n")
    print("| process | bytes a window |\n|---|---|")
    for name, slope in zip(("has opened it", "has asked it", "asks a service"), slopes, strict=True):
        print(f"| {name} | {slope:.0f} |")


def memory_taken(num_windows: int) -> tuple[int, int, int, int]:
    """Windows, and anonymous memory in bytes: opened, after a question for each scope, and of a client after these."""
    with tempfile.TemporaryDirectory() as folder:
        indexes = Path(folder)
        num = in_fresh_process(build_three_views, indexes, num_windows)
        opened, asked = in_fresh_process(memory_of_asking, indexes, NAME)
        with serving(indexes, NAME) as service:
            _, client = in_fresh_process(memory_of_asking, indexes, f"{service}/{NAME}")
    return num, opened, asked, client


def in_fresh_process(function: Callable[..., T], *words: object) -> T:
    """What a function returns there."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *words).result()


def build_three_views(indexes: Path, num_windows: int) -> int:
    """Returns how many windows it has."""
    table = self_similar_table(SERIES, num_windows // SERIES + WINDOW.length - 1)
    split = split_until("end", None, table.series[0].times, table.step)
    encoder = EncoderConfig(views=THREE_VIEWS)
    version = build(
        table,
        Store(indexes),
        NAME,
        window=WINDOW,
        split=split,
        encoder=encoder,
        scopes=("own", "pooled"),
        factory="Flat",
    )
    return version.manifest.num_rows


def memory_of_asking(indexes: Path, ref: str) -> tuple[int, int]:
    """Anonymous memory when a version is open, and after a question for each scope about every series."""
    memory = open_memory(indexes, ref, threads=1)
    windows = memory.windows
    opened = anonymous_bytes()
    rows = np.arange(len(windows) - SERIES, len(windows))
    asked = Queries(
        context=windows.contexts(rows)[None],
        origin=windows.origin(rows[:1]),
        series_id=np.array(windows.series_ids)[windows.series[rows]],
        policy=Policy.CAUSAL,
    )
    for scope in ("own", "pooled"):
        memory.search(asked, K, scopes=(scope,))
    return opened, anonymous_bytes()


def exponent(rows: list[dict], name: str) -> float:
    """Of a power law through all sizes."""
    return float(np.polyfit(np.log([row["windows"] for row in rows]), np.log([row[name] for row in rows]), 1)[0])


def draw(rows: list[dict], path: Path) -> None:
    """Bytes on the left, queries a second on the right, both against the number of windows."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    from cli.pictures.look import BLUE, GREEN, ORANGE, figure, plain, save

    drawn = figure(4.2)
    left, right = drawn.subplots(1, 2)
    windows = [row["windows"] for row in rows]
    lines = (("on disk", "disk_mb", BLUE, "o-"), ("memory of a search", "search_mb", ORANGE, "s--"))
    for label, name, colour, style in (*lines, ("peak of the build", "build_mb", GREEN, "^:")):
        left.loglog(windows, [row[name] for row in rows], style, color=colour.light, label=label)
    left.set(xlabel="windows", ylabel="MB", title="what it takes")
    left.legend(frameon=False)
    right.loglog(windows, [row["rate"] for row in rows], "o-", color=BLUE.light)
    for row in rows:
        kind = "exact scan" if row["factory"] == "Flat" else row["factory"]
        right.annotate(
            f"{kind}\n{row['rate']:,.0f}/s",
            (row["windows"], row["rate"]),
            (7, 5),
            textcoords="offset points",
        )
    right.set(xlabel="windows", ylabel="queries/s, one thread", title="how fast it answers")
    right.margins(x=0.15, y=0.25)
    for axes in (left, right):
        plain(axes)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(LogLocator(numticks=9))
            axis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
            axis.set_minor_formatter(NullFormatter())
    left.set_ylim(bottom=1)
    save(drawn, path)


if __name__ == "__main__":
    main()
