"""What one machine holds: build, open and search from ten thousand to millions of windows, as a table and a plot.

    python -m benchmarks.capacity --plot docs/images/capacity.png

Each size is built, opened and searched in processes of its own, with one thread; how is told in `million_windows.py`.
Exponents are the slopes of straight lines through the points of a plot with two logarithmic axes.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.million_windows import in_own_process
from benchmarks.report import machine

SIZES = (10_000, 100_000, 1_000_000, 3_000_000)


def main() -> None:
    """Measure, print and draw everything."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", default=",".join(map(str, SIZES)), help="windows")
    parser.add_argument("--plot", type=Path, help="draw it: PNG, SVG or PDF")
    parser.add_argument("--out", type=Path, help="also write the figures as JSON")
    options = parser.parse_args()
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
