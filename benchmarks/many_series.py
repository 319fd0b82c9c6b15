"""What tables of many series take: growth with their number, and a retailer's whole table under a budget of memory.

    python -m benchmarks.many_series                       # 500 to 4,000 series of 400 days: time for each series
    python -m benchmarks.many_series --full --work DIR     # 30,490 series, 59,181,090 rows, --budget 8GB

Every command of `cli` runs as a process of its own; what is kept of each is its processor time, its wall time and its
peak memory. The table is `benchmarks/retail.py`'s. With `--work` files and figures stay in that folder: a run that was
stopped goes on with the first step that is not there yet.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.report import machine
from benchmarks.retail import NUM_DAYS, NUM_SERIES, write_retail

GROWTH = (500, 1_000, 2_000, 4_000)
GROWTH_DAYS = 400
WINDOW = ("--lookback", "112", "--horizon", "28")
FULL_BUDGET = "8GB"


def measured(command: list[str], log: Path) -> dict[str, Any]:
    """Run `python -m cli` with arguments; its seconds of processor and wall time, peak memory and exit code."""
    started = time.perf_counter()
    with log.open("wb") as file:
        process = subprocess.Popen([sys.executable, "-m", "cli", *command], stdout=file, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
    return {
        "command": " ".join(["cli", *command]),
        "cpu_s": round(usage.ru_utime + usage.ru_stime, 2),
        "wall_s": round(time.perf_counter() - started, 2),
        "peak_mb": round(usage.ru_maxrss / 1024),
        "exit": os.waitstatus_to_exitcode(status),
    }


def steps_of(folder: Path, *build_options: str) -> dict[str, list[str]]:
    """The commands, by name, in their order."""
    table, later, indexes = str(folder / "table.parquet"), str(folder / "later.parquet"), str(folder / "indexes")
    of_index = ["--indexes-dir", indexes]
    asked = ["--index", "retail", *of_index]
    return {
        "check": ["data", "check", table],
        "build": ["index", "build", table, "--name", "retail", *WINDOW, "--until", "end", *build_options, *of_index],
        "forecast": ["forecast", table, *asked, "--out", str(folder / "forecast.parquet")],
        "append a day": ["index", "append", "retail@1", later, *of_index],
        "build, 70/10/20": ["index", "build", table, "--name", "split", *WINDOW, *build_options, *of_index],
        "evaluate": ["evaluate", table, "--index", "split", "--every", "14D", *of_index],
    }


def run(
    folder: Path, *, num_series: int, first_day: int, build_options: tuple[str, ...], only: set[str]
) -> list[dict[str, Any]]:
    """All steps that have not been done yet; what was measured of all."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "later.parquet").exists():
        write_retail(folder / "table.parquet", num_series=num_series, num_days=NUM_DAYS, first_day=first_day)
        write_retail(folder / "later.parquet", num_series=num_series, num_days=NUM_DAYS + 1, first_day=NUM_DAYS)
    results = []
    for name, command in steps_of(folder, *build_options).items():
        kept = folder / f"{name.replace(' ', '-').replace(',', '').replace('/', '-')}.json"
        if only and name not in only:
            continue
        if not kept.exists():
            result = {"step": name, "series": num_series} | measured(command, kept.with_suffix(".log"))
            if result["exit"] != 0:
                sys.exit(f"{result['command']}: exit {result['exit']}, see {kept.with_suffix('.log')}")
            kept.write_text(json.dumps(result))
        results.append(json.loads(kept.read_text()))
    return results


def print_table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    """In Markdown, below what it was measured on."""
    print(f"{machine()}\n")
    for cells in (header, ("---",) * len(header), *rows):
        print(f"| {' | '.join(cells)} |")


def main() -> None:
    """Print a table for docs/benchmarks.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="the whole table instead of growth")
    parser.add_argument("--work", type=Path, help="folder that keeps files and figures")
    parser.add_argument("--steps", help="only these, separated by ;")
    asked = parser.parse_args()
    only = set(asked.steps.split(";")) if asked.steps else set()
    with tempfile.TemporaryDirectory() as scratch:
        work = asked.work or Path(scratch)
        if asked.full:
            options = ("--budget", FULL_BUDGET)
            results = run(work, num_series=NUM_SERIES, first_day=0, build_options=options, only=only)
            rows = [(r["step"], f"{r['cpu_s']:,}", f"{r['wall_s']:,}", f"{r['peak_mb']:,}") for r in results]
            print_table(("step", "processor s", "wall s", "peak MB"), rows)
            return
        by_step: dict[str, list[str]] = {}
        for num in GROWTH:
            first_day = NUM_DAYS - GROWTH_DAYS
            options = ("--stride", "4", "--budget", FULL_BUDGET)
            for result in run(work / str(num), num_series=num, first_day=first_day, build_options=options, only=only):
                shown = f"{result['cpu_s']:.1f} s, {1000 * result['cpu_s'] / num:.2f} ms each"
                by_step.setdefault(result["step"], []).append(shown)
        print_table(("step", *(f"{num:,} series" for num in GROWTH)), [(step, *v) for step, v in by_step.items()])


if __name__ == "__main__":
    main()
