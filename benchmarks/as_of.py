"""As-of rows, beside static ones: forecasts as in operation, with a memory, a linear map and a gate that grow.

    python -m benchmarks.as_of --data-dir datasets --work-dir runs/as-of
    python -m benchmarks.as_of --data-dir datasets --work-dir runs/as-of --tasks etth1-96 etth2-96

Every result is a file below --work-dir/results: called again, the command goes on where it stopped. A static row is
scored by `cli evaluate` of the run as it was trained, an as-of row by `cli backtest` with weekly updates; both on the
same windows where both are there. Two protocols, two rows: they are never mixed.

etth1-96 and so on: every test window of docs/method.md, standardised units. fev-etth1: ETT_1H of fev-bench (horizon
168, 20 cutoffs from 3,360 steps before the end, season 24, nothing fitted after the first cutoff but what the row
says). m4: M4 hourly, 48 steps, one cutoff. price-de, price-np: day-ahead prices, two years, an origin a day, without
covariates.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from benchmarks.accuracy.arms import LOOKBACK, cli
from benchmarks.data_sets import CHOSEN_ON, DataSet, present
from benchmarks.league.tables import m4
from benchmarks.report import machine

HORIZONS = (96, 192, 336, 720)
FEV_HORIZON, FEV_CUTOFFS, FEV_VALIDATION = 168, 20, 2880
PRICES = {"de": ("DE", "2016-01-04", "2018-01-01"), "np": ("NP", "2016-12-27", "2018-12-25")}
PRICE_VALIDATION = pd.Timedelta(days=182)


class Task(NamedTuple):
    """A table, how its version is built, and how a run of it is scored.

    build: options of `cli index build`. backtest: of `cli backtest`. has_static: whether the version has a test part.
    """

    name: str
    file: Path
    build: tuple[str, ...]
    backtest: tuple[str, ...]
    has_static: bool = False


def tasks(data_dir: Path, work_dir: Path) -> Iterator[Task]:
    """All of them whose files are there."""
    for data_set in present(data_dir, CHOSEN_ON):
        for horizon in HORIZONS:
            yield _static_task(data_set, horizon)
    for name in ("ETTh1", "ETTh2"):
        for path in sorted(data_dir.rglob(f"{name}.csv"))[:1]:
            yield _fev_task(name, path)
    for short, (name, first, end) in PRICES.items():
        for path in sorted(data_dir.rglob(f"{name}.csv"))[:1]:
            yield _price_task(short, path, pd.Timestamp(first), pd.Timestamp(end), work_dir)
    for path in sorted(data_dir.rglob("Hourly-train.csv"))[:1]:
        yield _m4_task(path.parent.parent, work_dir)


def _static_task(data_set: DataSet, horizon: int) -> Task:
    """Every test window: the first future starts at the first test row."""
    times = pd.to_datetime(pd.read_csv(data_set.path, usecols=[0]).iloc[:, 0])
    num = len(times)
    ends = (8640 + 2880, 14400) if data_set.split == "ett-hourly" else (num - int(0.2 * num), num)
    first, last = times.iloc[ends[0] - 1], times.iloc[ends[1] - 1 - horizon]
    step = "1h" if data_set.split == "ett-hourly" else "1d"
    return Task(
        f"{data_set.index}-{horizon}",
        data_set.path,
        ("--lookback", str(LOOKBACK), "--horizon", str(horizon), "--split", data_set.split),
        ("--from", str(first), "--to", str(last), "--every", step),
        has_static=True,
    )


def _fev_task(name: str, path: Path) -> Task:
    times = pd.to_datetime(pd.read_csv(path, usecols=[0]).iloc[:, 0])
    first = len(times) - FEV_HORIZON * FEV_CUTOFFS - 1
    sizes = ("--lookback", str(LOOKBACK), "--horizon", str(FEV_HORIZON))
    split = ("--until", str(times.iloc[first - FEV_VALIDATION]), "--val-until", str(times.iloc[first]))
    origins = ("--from", str(times.iloc[first]), "--every", f"{FEV_HORIZON}h", "--scaled-by", "origin")
    return Task(f"fev-{name.lower()}", path, (*sizes, *split), origins)


def _price_task(short: str, path: Path, first: pd.Timestamp, end: pd.Timestamp, work_dir: Path) -> Task:
    """The price alone; the last known hour is 23:00 of the day before."""
    file = work_dir / f"price-{short}.csv"
    frame = pd.read_csv(path, skipinitialspace=True)
    times = pd.to_datetime(frame.iloc[:, 0])
    frame[times < end].iloc[:, :2].to_csv(file, index=False)
    hour = pd.Timedelta(hours=1)
    split = ("--until", str(first - PRICE_VALIDATION - hour), "--val-until", str(first - hour))
    origins = ("--from", str(first - hour), "--every", "24h", "--at", "23:00", "--scaled-by", "origin")
    build = ("--lookback", "336", "--horizon", "24", "--at", "23:00", *split)
    return Task(f"price-{short}", file, build, origins)


def _m4_task(folder: Path, work_dir: Path) -> Task:
    file = work_dir / "m4.parquet"
    table = m4(folder)
    table.to_parquet(file, index=False)
    cutoff = table["ds"].max() - pd.Timedelta(hours=48)
    build = ("--lookback", "168", "--horizon", "48", "--until", str(cutoff))
    return Task("m4", file, build, ("--from", str(cutoff), "--every", "24h", "--scaled-by", "origin"))


def measure(task: Task, work_dir: Path, threads: int, half_life: str | None) -> dict[str, Any]:
    """Build, train and score; what is there already is used."""
    where = ["--indexes-dir", str(work_dir / "indexes")]
    if not (work_dir / "indexes" / task.name).exists():
        cli(threads, "index", "build", str(task.file), "--name", task.name, *task.build, *where)
    run = work_dir / "runs" / task.name
    train = ["--index", f"{task.name}@1", "--out", str(run), "--neighbours-dir", str(work_dir / "neighbours")]
    cli(threads, "train", str(task.file), *train, *(["--resume"] if run.exists() else []), *where)
    scored = [str(task.file), "--run", str(run), *where]
    found: dict[str, Any] = {"task": task.name, "half_life": half_life, "threads": threads}
    if task.has_static:
        found["static"] = _kept(cli(threads, "evaluate", *scored, "--state", "0"))
    forgets = [] if half_life is None else ["--half-life", half_life]
    found["as_of"] = _kept(cli(threads, "backtest", *scored, *task.backtest, "--update", "weekly", *forgets))
    return found


def _kept(document: dict[str, Any]) -> dict[str, Any]:
    names = ("mse", "mae", "num_windows", "coverage", "seconds", "scores")
    return {name: document[name] for name in names}


def markdown(results: Sequence[dict[str, Any]]) -> Iterator[str]:
    """A line for each result, MSE/MAE in standardised units, and scaled errors."""
    yield "| task | static | as of | as of, linear map | as of, memory only | MASE | SQL | MAE, own units |"
    yield "|---|---|---|---|---|---|---|---|"
    for each in results:
        scores = each["as_of"]["scores"]
        arm = scores["model"]
        cells = [_pair(each.get("static", {})), _pair(each["as_of"])]
        cells += [_pair(scores.get(name) or {}) for name in ("linear", "memory_only")]
        cells += [f"{arm[name]:.4g}" if arm.get(name) is not None else "" for name in ("mase", "sql", "mae_original")]
        yield f"| {each['task']} | {' | '.join(cells)} |"


def _pair(score: dict[str, Any]) -> str:
    return "{mse:.4f}/{mae:.4f}".format(**score).replace("0.", ".") if score else ""


def main() -> None:
    """Run what is asked for and not there yet, then show all that is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, default=Path("datasets"))
    parser.add_argument("--work-dir", type=Path, required=True, help="indexes, neighbours, runs and results")
    parser.add_argument("--tasks", nargs="*", help="default all")
    parser.add_argument("--half-life", help="as `cli backtest` takes it, for a try")
    parser.add_argument("--out", type=Path, help="also write all results as one JSON document")
    options = parser.parse_args()
    results_dir = options.work_dir / "results"
    results_dir.mkdir(parents=True, exist_ok=True)
    suffix = "" if options.half_life is None else f"-{options.half_life}"
    for task in tasks(options.data_dir, options.work_dir):
        target = results_dir / f"{task.name}{suffix}.json"
        if (options.tasks and task.name not in options.tasks) or target.exists():
            continue
        found = measure(task, options.work_dir, len(os.sched_getaffinity(0)), options.half_life)
        draft = target.with_suffix(".draft")
        draft.write_text(json.dumps(found, indent=1) + "\n")
        draft.replace(target)
    results = [json.loads(path.read_text()) for path in sorted(results_dir.glob("*.json"))]
    print("\n".join(markdown(results)))
    if options.out is not None:
        options.out.write_text(json.dumps({"machine": machine(), "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
