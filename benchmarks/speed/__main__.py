"""How fast everything is, each operation beside its straightforward alternative, and how its cost grows.

    python -m benchmarks.speed --data-dir datasets --plot docs/images/growth.png
    python -m benchmarks.speed --data-dir datasets --quick                 about two minutes, to try it
    python -m benchmarks.speed --data-dir datasets --parts training,service

All parts but `million` and `growth` need ETTh1.csv (`cli data fetch ETTh1`) and are skipped, saying so, without it.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks.report import Figure, show
from benchmarks.speed.stage import FULL, QUICK, Sizes, Stage

PARTS = ("memory", "search", "training", "forecast", "service", "million")  # modules with `figures(stage)`
GROWTH = "growth"
WITHOUT_DATA = ("million", GROWTH)


def main() -> None:
    """Measure, print and draw what was asked for."""
    options = parse()
    source = next(iter(sorted(options.data_dir.rglob("ETTh1.csv"))), None)
    parts = options.parts
    if source is None and set(parts) - set(WITHOUT_DATA):
        print(f"skipped: no ETTh1.csv below {options.data_dir} (cli data fetch ETTh1)", file=sys.stderr)
        parts = [part for part in parts if part in WITHOUT_DATA]
    sizes, points, text = QUICK if options.quick else FULL, [], ""
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory() as folder:
        stage = Stage(source=source or Path(), folder=Path(folder), sizes=sizes)
        for part in parts:
            print(f"measuring: {part}", file=sys.stderr, flush=True)  # it takes minutes
            if part == GROWTH:
                points, text = growth(sizes, stage.folder, options.plot)
            else:
                figures += import_module(f"benchmarks.speed.{part}").figures(stage)
    command = "python -m benchmarks.speed --data-dir datasets" + (" --quick" if options.quick else "")
    if set(parts) != {*PARTS, GROWTH}:
        command += f" --parts {','.join(parts)}"
    show("Speed", command, figures, options.out, more={GROWTH: points})
    print(text)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    every = [*PARTS, GROWTH]
    parser.add_argument("--data-dir", type=Path, default=Path("datasets"))
    parser.add_argument("--parts", type=lambda text: text.split(","), default=every, help=f"of {','.join(every)}")
    parser.add_argument("--quick", action="store_true", help="less of everything: to try it, not to believe it")
    parser.add_argument("--plot", type=Path, help="draw how cost grows: PNG, SVG or PDF")
    parser.add_argument("--out", type=Path, help="also write the figures as JSON")
    options = parser.parse_args()
    if unknown := set(options.parts) - set(every):
        parser.error(f"unknown parts {', '.join(sorted(unknown))}: choose of {', '.join(every)}")
    options.parts = [part for part in every if part in options.parts]  # `memory` first, see `run_cli` about its peak
    return options


def growth(sizes: Sizes, folder: Path, plot: Path | None) -> tuple[list[dict[str, Any]], str]:
    """Points as JSON, and the table of exponents with the memory that it took."""
    from benchmarks.speed.expected import table
    from benchmarks.speed.growth import measure

    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:  # its peak is its own
        points, peak = pool.submit(measure, sizes, folder).result()
    if plot is not None:
        from benchmarks.speed.growth_picture import draw

        draw(points, plot)
    told = f"\n### How cost grows\n\n{table(points)}\n\npeak memory of all of it: {peak:,.0f} MB"
    return [point._asdict() for point in points], told


if __name__ == "__main__":
    main()
