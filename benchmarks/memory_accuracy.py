"""Accuracy of the memory alone: every test window, default views and scopes, K = 50, nothing trained by gradient.

    python -m benchmarks.memory_accuracy --data-dir datasets

Scored as docs/method.md says, lookback 512, horizon 96. Data sets whose file is missing are skipped, saying so. The
test part only reports: the defaults were chosen by benchmarks/memory_defaults.py, which does not look at it.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from benchmarks.memory_defaults import DATA_SETS, WINDOW
from benchmarks.report import Figure, show, timed
from memory_index import MemoryOptions, Store, append, build, evaluate, open_memory, read_table, split_by_name

GOALS = {"ETTh1": ".368", "ETTh2": ".280"}  # MSE of the memory alone


def main() -> None:
    """Build, score, and score again with a memory that has grown by the validation part."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-dir", type=Path, default=Path("datasets"))
    parser.add_argument("--out", type=Path, help="also write the figures as JSON")
    options = parser.parse_args()
    figures = []
    for file, split_name in DATA_SETS.items():
        path = next(iter(sorted(options.data_dir.rglob(file))), None)
        if path is None:
            print(f"skipped: no {file} below {options.data_dir}", file=sys.stderr)
            continue
        figures += measure(path, split_name)
    show(
        "Accuracy of the memory alone", "python -m benchmarks.memory_accuracy --data-dir datasets", figures, options.out
    )


def measure(path: Path, split_name: str) -> list[Figure]:
    """The lines of one data set."""
    table = read_table(path)
    split = split_by_name(split_name, table.times)
    with tempfile.TemporaryDirectory() as folder:
        store = Store(folder)
        building, version = timed(lambda: build(table, store, "m", window=WINDOW, split=split))
        memory = open_memory(folder, version.ref)
        result = evaluate(memory, table)
        own = evaluate(memory, table, options=MemoryOptions(scopes=("own",)))
        _, until = split.bounds("val")
        grown = evaluate(open_memory(folder, append(store, "m", table, until=until).ref), table)
    others = {
        "linear": result.baselines.linear,
        "seasonal naive": result.baselines.seasonal_naive,
        "last value": result.baselines.last_value,
    }
    beside = ", ".join(f"{name} {score.mse:.4f}/{score.mae:.4f}" for name, score in others.items() if score)
    return [
        Figure(
            f"{path.stem}, {result.num_windows:,} origins x {result.num_series} series",
            f"**{result.mse:.4f}/{result.mae:.4f}**, {building:.0f} s to build, {result.seconds:.0f} s to score",
            GOALS.get(path.stem, ""),
            beside,
        ),
        Figure("- own series only", f"{own.mse:.4f}/{own.mae:.4f}"),
        Figure("- grown by the validation part (append)", f"{grown.mse:.4f}/{grown.mae:.4f}"),
    ]


if __name__ == "__main__":
    main()
