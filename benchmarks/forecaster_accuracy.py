"""Accuracy and cost of trained models: the full model beside what is left when a part is switched off.

    python -m benchmarks.forecaster_accuracy --data-dir datasets

For every data set that is there: `cli index build`, then `cli train` and `cli evaluate` for every arm and seed, each
in a process of its own, with default settings, lookback 512, horizon 96. The validation part decides when training
stops and which weights are kept; the test part is read once, by `cli evaluate`. Times are those of this machine with
nothing else running, from the start of the process: neighbours of the first arm are found in it, the others find them
there.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.memory_defaults import DATA_SETS
from benchmarks.report import Figure, show

ARMS: dict[str, list[str]] = {
    "full": [],
    "no memory": ["--no-gram"],
    "no TAPR": ["--no-tapr"],
    "no LLM": ["--no-llm"],
    "value gate alone": ["--no-tapr", "--no-llm", "--set", "use_network=false"],
    "no shortcut": ["--no-shortcut"],
}
GOALS = {"ETTh1": ".362/.392", "ETTh2": ".268/.328", "exchange_rate": ".081/.196"}  # published; see docs/benchmarks.md


def main() -> None:
    """Train and score every arm on every data set."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, default=Path("datasets"))
    parser.add_argument("--data-sets", nargs="*", default=[*DATA_SETS], choices=[*DATA_SETS])
    parser.add_argument("--arms", nargs="*", default=[*ARMS], choices=[*ARMS])
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--horizon", type=int, default=96)
    parser.add_argument("--work-dir", type=Path, help="keep indexes and runs here, and go on with what is there")
    parser.add_argument("--out", type=Path, help="also write the figures as JSON")
    options = parser.parse_args()
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory() as temporary:
        for file in options.data_sets:
            path = next(iter(sorted(options.data_dir.rglob(file))), None)
            if path is None:
                print(f"skipped: no {file} below {options.data_dir}", file=sys.stderr)
                continue
            figures += measure(path, options, options.work_dir or Path(temporary))
    show(
        "Accuracy of trained models",
        "python -m benchmarks.forecaster_accuracy --data-dir datasets",
        figures,
        options.out,
    )


def measure(path: Path, options: argparse.Namespace, folder: Path) -> list[Figure]:
    """The lines of one data set."""
    name, indexes = f"{path.stem.lower()}-{options.horizon}", ["--indexes-dir", str(folder / "indexes")]
    if not (folder / "indexes" / name).exists():
        sizes = ["--lookback", "512", "--horizon", str(options.horizon), "--split", DATA_SETS[path.name]]
        cli("index", "build", str(path), "--name", name, *sizes, *indexes)
    figures = []
    for arm in options.arms:
        runs = []
        for seed in options.seeds:
            out = folder / "runs" / f"{name}-{arm.replace(' ', '-')}-{seed}"
            resume = ["--resume"] if out.exists() else []
            target = [str(path), "--index", f"{name}@1", "--out", str(out), "--seed", str(seed)]
            trained = cli("train", *target, *ARMS[arm], *resume, *indexes)
            scored = cli("evaluate", str(path), "--run", str(out), *indexes)
            runs.append({"trained": trained, "scored": scored})
            figure = f"{scored['mse']:.4f}/{scored['mae']:.4f}"
            print(f"{time.strftime('%H:%M:%S')} {name} {arm} seed {seed}: {figure}", file=sys.stderr, flush=True)
        figures.append(line(path.stem, arm, runs))
        if arm == "full":
            figures += baselines(path.stem, runs[0]["scored"])
    return figures


def line(name: str, arm: str, runs: list[dict[str, Any]]) -> Figure:
    """Means over seeds of one arm."""
    mse, mae = (fmean(run["scored"][key] for run in runs) for key in ("mse", "mae"))
    val = fmean(run["trained"]["best_val_mse"] for run in runs)
    single = ", ".join(f"{run['scored']['mse']:.4f}" for run in runs)
    wall = max(run["trained"]["wall_seconds"] for run in runs)
    peak = max(run["trained"]["peak_rss_mb"] for run in runs)
    gate = runs[0]["scored"]["gate"]
    return Figure(
        f"{name}, {arm}",
        f"**{mse:.4f}/{mae:.4f}** (seeds {single}), validation {val:.4f}",
        GOALS.get(name, "") if arm == "full" else "",
        f"`cli train` at most {wall:.0f} s, {peak:,.0f} MB" + (f"; gate {gate['mean']:.2f}" if gate else ""),
    )


def baselines(name: str, scored: dict[str, Any]) -> list[Figure]:
    """What needs no training, of the same evaluation."""
    named = {"memory_only": "memory alone", "linear": "linear alone", "last_value": "last value"}
    found = {label: scored["baselines"][key] for key, label in named.items()}
    coverage = ", ".join(f"{level} {share:.1%}" for level, share in scored["coverage"].items())
    return [
        *(Figure(f"{name}, {label}", f"{s['mse']:.4f}/{s['mae']:.4f}") for label, s in found.items() if s),
        Figure(f"{name}, full: values at or below each quantile", coverage, "the level itself"),
        Figure(f"{name}, full: direction told right", f"{scored['direction_accuracy']:.1%}", "", "chance: about 33%"),
    ]


def cli(*arguments: str) -> dict[str, Any]:
    """One command in a process of its own: its document, with the seconds of the whole process."""
    started = time.perf_counter()
    command = [sys.executable, "-m", "cli", *arguments, "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    document: dict[str, Any] = json.loads(done.stdout)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}: {document}")
    return document | {"wall_seconds": time.perf_counter() - started}


if __name__ == "__main__":
    main()
