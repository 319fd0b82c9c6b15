"""Training beside what it is made of, over many kinds of table; resumable.

    python -m benchmarks.league --data-dir DATA --work-dir WORK

Every table is built, trained and scored with nothing but lookback and horizon given. Scored are what training made,
each of its parts by itself, and the memory alone: mean squared error in standardised units, MASE, scaled quantile
loss, and what the 10 and 90% quantiles cover. Tables that `decide` are those by which defaults were chosen; the
others only report. What is measured already in --work-dir is not measured again.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.league.scoring import score
from benchmarks.league.tables import TABLES, Entry
from benchmarks.report import machine
from forecaster.config import Config
from forecaster.predictor import load_predictor
from forecaster.training.fit import train_run
from memory_index import Store, WindowSpec, append, build, open_memory, read_frame, split_by_name
from memory_index.splits import Split, require_origins
from memory_index.tables.series import SeriesTable

COLUMNS = (
    *("table", "role", "kept", "trained", "best part", "cross-validation's", "memory alone"),
    *("MASE, memory's", "SQL, memory's", "covered, memory's"),
)
RELATIVE_TO = ("best part", "cross-validation's part", "memory alone", "SQL of the memory")
PARTS = ("linear", "last_value", "seasonal_naive", "memory alone", "own", "joint", "pooled")


def main() -> None:
    """Measure what is missing, print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, default=Path("datasets"))
    parser.add_argument("--work-dir", type=Path, required=True, help="results are kept here")
    parser.add_argument("--tables", nargs="*", default=[entry.name for entry in TABLES], help="default: all")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="settings of the training")
    options = parser.parse_args()
    options.work_dir.mkdir(parents=True, exist_ok=True)
    settings = {name: json.loads(value) for name, value in (each.split("=") for each in options.set)}
    results = {}
    for entry in TABLES:
        if entry.name in options.tables:
            kept = options.work_dir / f"{entry.slug}.json"
            if not kept.exists():
                kept.write_text(json.dumps(measured(entry, options.data_dir, options.work_dir, settings), indent=1))
            results[entry.name] = json.loads(kept.read_text())
    show(results)


def measured(entry: Entry, data_dir: Path, work_dir: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Build, train and score one table."""
    folder = work_dir / f"{entry.slug}.work"
    shutil.rmtree(folder, ignore_errors=True)
    table = read_frame(entry.make(data_dir))
    split = split_of(entry, table)
    window = WindowSpec(lookback=entry.lookback, horizon=entry.horizon)
    notes: list[str] = []
    began = time.perf_counter()
    seen = table if entry.test_stride else without_last(table, entry.horizon)
    build(seen, Store(folder / "indexes"), "table", window=window, split=split)
    memory = open_memory(folder / "indexes", "table@1")
    config = Config.from_dict({"lookback": entry.lookback, "horizon": entry.horizon} | settings)
    built = time.perf_counter() - began
    trained = train_run(
        seen, memory, "table@1", config, folder / "run", neighbours_dir=folder / "neighbours", note=notes.append
    )
    seconds = time.perf_counter() - began - built
    if entry.test_stride:
        spec = WindowSpec(lookback=entry.lookback, horizon=entry.horizon)
        origins = [rows[:: entry.test_stride] for rows in require_origins(table, spec, split, "test")]
    else:
        append(Store(folder / "indexes"), "table", seen)
        memory = open_memory(folder / "indexes", "table@2")
        origins = [np.array([len(series) - entry.horizon - 1]) for series in table.series]
    scores = score(load_predictor(trained.run, device="cpu"), memory, table, origins, entry, split)
    shutil.rmtree(folder)
    print(f"{time.strftime('%H:%M:%S')} {entry.name}: {seconds:.0f} s of training", file=sys.stderr, flush=True)
    return {
        "role": entry.role,
        "scores": scores,
        "closed_form": trained.closed_form,
        "plan": trained.plan,
        "notes": notes,
        "build_seconds": round(built, 1),
        "train_seconds": round(seconds, 1),
    }


def split_of(entry: Entry, table: SeriesTable) -> Split:
    """The default split, of all rows or, where only the last window is scored, of those before it."""
    times = table.times if entry.test_stride else table.times[: -entry.horizon]
    return split_by_name("70/10/20", times)


def without_last(table: SeriesTable, num: int) -> SeriesTable:
    """The table as it was so many steps before its end."""
    from memory_index.versions.build import cut_table

    return cut_table(table, [len(series) - num for series in table.series])


def show(results: dict[str, dict[str, Any]]) -> None:
    """One row a table: errors relative to the best part, then MASE and scaled quantile loss beside the memory's."""
    print(f"{machine()}\n\nMean squared error; in brackets relative to the part that turned out best.\n")
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}")
    ratios: dict[str, list[list[float]]] = {"decides": [], "reports": []}
    for name, result in results.items():
        scores, gate = result["scores"], result["closed_form"]["gate"]
        mse = {part: scores[part]["mse"] for part in PARTS if part in scores}
        best, trained = min(mse, key=mse.__getitem__), scores["trained"]
        chosen = chosen_part(gate["errors"], mse)
        memory = scores["memory alone"]
        row = [trained["mse"] / mse[best], trained["mse"] / mse[chosen], trained["mse"] / memory["mse"]]
        ratios[result["role"]].append([*row, trained["sql"] / memory["sql"]])
        print(
            f"| {name} | {result['role']} | {gate['kept']} | {trained['mse']:.4f} ({row[0]:.3f}) "
            f"| {best} {mse[best]:.4f} | {chosen} {mse[chosen]:.4f} ({row[1]:.3f}) "
            f"| {memory['mse']:.4f} ({row[2]:.3f}) "
            f"| {trained['mase']:.3f}, {memory['mase']:.3f} | {trained['sql']:.3f}, {memory['sql']:.3f} "
            f"| {trained['q0.1']:.3f} {trained['q0.9']:.3f}, {memory['q0.1']:.3f} {memory['q0.9']:.3f} |"
        )
    print()
    for role, rows in ratios.items():
        if rows:
            means, worst = np.mean(rows, axis=0), np.max(rows, axis=0)
            told = ", ".join(
                f"{what} {mean:.4f} (at most {most:.3f})"
                for what, mean, most in zip(RELATIVE_TO, means, worst, strict=True)
            )
            print(f"{role}: trained relative to {told}")


def chosen_part(errors: dict[str, float], mse: dict[str, float]) -> str:
    """The part of the least cross-validated error; the linear map where nothing could be held out."""
    names = {"memory": "memory alone"}
    found = {names.get(name, name): error for name, error in errors.items() if names.get(name, name) in mse}
    return min(found, key=found.__getitem__) if found else "linear"


if __name__ == "__main__":
    main()
