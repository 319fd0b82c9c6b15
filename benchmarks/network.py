"""What the network is worth as a part of the gate, and which rate, epochs and width it should have.

    python -m benchmarks.network --data-dir datasets --tables small

Every arm is trained on every table with every seed; a finished row is kept in `--rows` (JSON) and is not measured
again, so the command goes on where it stopped, on any machine. `blocks` is the held-out error of what is kept over
the blocks of the training part, `val` the validation MSE; choices go by these two. Arms of the group `choice` never
read the test part. Tables whose name ends in `-small` are the first 3,000 rows with lookback 96 and horizon 24,
scored 70/10/20; the others have lookback 512 and horizon 96, and every `--stride`-th window of a series is used to
train and to validate.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.data_sets import CHOSEN_ON, present
from benchmarks.report import machine
from forecaster.config import Config
from forecaster.errors import ConfigError
from forecaster.evaluate import evaluate
from forecaster.predictor import load_predictor
from forecaster.training.fit import train_run
from memory_index import Memory, SeriesTable, Store, WindowSpec, build, open_memory, read_table, split_by_name
from memory_index.files import replace
from memory_index.origins import Schedule

ROWS = Path(__file__).parent / "network.json"
SMALL, ROWS_OF_SMALL = "-small", 3000
PART = {"use_network": True, "use_llm": False}
DESIGN = {"use_network": True, "gram_form": "design", "use_llm": False}
BASE = "TAPR + GRA-M"
ARMS: dict[str, dict[str, dict[str, Any]]] = {
    "choice": {
        "gate alone": {},
        BASE: PART,
        "learning_rate 0.0003": PART | {"learning_rate": 3e-4},
        "learning_rate 0.0001": PART | {"learning_rate": 1e-4},
        "learning_rate 0.003": PART | {"learning_rate": 3e-3},
        "epochs 1": PART | {"epochs": 1},
        "epochs 8": PART | {"epochs": 8},
        "d_model 16": PART | {"d_model": 16},
        "d_model 64": PART | {"d_model": 64},
        "dropout 0.3": PART | {"dropout": 0.3},
        "weight_decay 0.3": PART | {"weight_decay": 0.3},
    },
    "matrix": {
        "gate alone": {},
        "neither": PART | {"use_tapr": False, "use_gram": False},
        "+ TAPR": PART | {"use_gram": False},
        "+ GRA-M": PART | {"use_tapr": False},
        BASE: PART,
        "with builtin:tiny": PART | {"use_llm": True, "prompt_layout": "cached"},
    },
    "design": {
        "design: neither, no LLM": DESIGN | {"use_tapr": False, "use_gram": False},
        "design: + TAPR, no LLM": DESIGN | {"use_gram": False},
        "design: + GRA-M, no LLM": DESIGN | {"use_tapr": False},
        "design: TAPR + GRA-M, no LLM": DESIGN,
        "design: neither (Time-LLM), builtin:tiny": DESIGN
        | {"use_tapr": False, "use_gram": False, "use_llm": True, "prompt_layout": "cached"},
        "design: TAPR + GRA-M, builtin:tiny": DESIGN | {"use_llm": True, "prompt_layout": "cached"},
    },
    "sensitivity": {
        **{f"design, n_scales {n}": DESIGN | {"n_scales": n} for n in (2, 4)},
        **{f"design, lambda_trend {v}": DESIGN | {"lambda_trend": v} for v in (0.05, 0.2)},
        **{f"design, top_k {k}": DESIGN | {"top_k": k} for k in (3, 10)},
        **{f"design, lambda_retrieval {v}": DESIGN | {"lambda_retrieval": v} for v in (0.05, 0.2)},
        "design, gate_pull -1": DESIGN | {"gate_pull": -1},
    },
}
COLUMNS = ("blocks", "val", "MSE", "+-", "MAE", "direction", "trend", "feature gate (10%, 90%)", "weight", "seconds")


def main() -> None:
    """Measure what is missing, and print a table for each group."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, default=Path("datasets"))
    parser.add_argument("--data-sets", nargs="*", default=[*CHOSEN_ON], choices=CHOSEN_ON)
    parser.add_argument("--tables", choices=("small", "whole"), default="small")
    parser.add_argument("--groups", nargs="*", default=[*ARMS], choices=[*ARMS])
    parser.add_argument("--arms", nargs="*", help="only these, default all of a group")
    parser.add_argument("--seeds", nargs="*", type=int, default=[0])
    parser.add_argument("--stride", type=int, default=1, help="of the windows of a whole table")
    parser.add_argument("--rows", type=Path, default=ROWS, help="finished rows, as JSON")
    parser.add_argument("--work-dir", type=Path, help="keep indexes, neighbours and runs here")
    options = parser.parse_args()
    rows: dict[str, dict[str, Any]] = json.loads(options.rows.read_text()) if options.rows.is_file() else {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.work_dir or Path(temporary)
        for data_set in present(options.data_dir, options.data_sets):
            name, table, memory = opened(data_set.path, data_set.index, data_set.split, options.tables, folder)
            stride = 1 if options.tables == "small" else options.stride
            for group, arm, seed in asked(options.groups, options.arms, options.seeds):
                key = f"{name} | {arm} | seed {seed}" + (f" | stride {stride}" if stride > 1 else "")
                if key in rows and (group == "choice" or "mse" in rows[key]):
                    continue
                settings = ARMS[group][arm] | {"seed": seed, "train_stride": stride, "val_stride": stride}
                try:
                    row = measure(
                        table, memory, settings, folder / "runs" / key.replace(" ", "-"), scores=group != "choice"
                    )
                except ConfigError as error:
                    print(f"left out: {key}: {error}", file=sys.stderr, flush=True)
                    continue
                rows[key] = row | {"table": name, "arm": arm, "seed": seed, "stride": stride}
                replace(options.rows, (json.dumps(rows, indent=1, sort_keys=True) + "\n").encode())
                print(f"{time.strftime('%H:%M:%S')} {key}: {row}", file=sys.stderr, flush=True)
    print(f"{machine()}\n")
    for group in options.groups:
        show(group, [row for row in rows.values() if row["arm"] in ARMS[group]])


def asked(groups: Iterable[str], arms: list[str] | None, seeds: list[int]) -> Iterable[tuple[str, str, int]]:
    """Group, arm and seed of every row that is asked for, seed after seed."""
    for seed in seeds:
        for group in groups:
            for arm in ARMS[group]:
                if arms is None or arm in arms:
                    yield group, arm, seed


def opened(path: Path, index: str, split: str, tables: str, folder: Path) -> tuple[str, SeriesTable, Memory]:
    """A table and a version of its training part, built if it is not there."""
    table, name, window = read_table(path), index, WindowSpec(lookback=512, horizon=96)
    if tables == "small":
        cut = folder / f"{index}{SMALL}.csv"
        folder.mkdir(parents=True, exist_ok=True)
        cut.write_text("".join(path.read_text().splitlines(keepends=True)[: ROWS_OF_SMALL + 1]))
        table, name, split = read_table(cut), f"{index}{SMALL}", "70/10/20"
        window = WindowSpec(lookback=96, horizon=24)
    if not (folder / "indexes" / name).exists():
        build(table, Store(folder / "indexes"), name, window=window, split=split_by_name(split, table.times))
    return name, table, open_memory(folder / "indexes", f"{name}@1")


def measure(
    table: SeriesTable, memory: Memory, settings: dict[str, Any], out: Path, *, scores: bool, every: int = 1
) -> dict[str, Any]:
    """One training, and its scores. scores: whether the test part is read. every: steps between two origins of it."""
    window = memory.manifest.window
    config = Config.from_dict({"lookback": window.lookback, "horizon": window.horizon} | settings)
    trained = train_run(
        table, memory, "m", config, out, neighbours_dir=out.parent.parent / "neighbours", resume=True, device="cpu"
    )
    gate = trained.closed_form["gate"]
    row: dict[str, Any] = {
        "val": round(trained.result.best_val_mse, 5),
        "seconds": round(trained.result.seconds, 1),
        "peak_mb": round(trained.result.peak_rss_mb),
    }
    if gate is not None:
        verdict = gate["network"]
        row["blocks"] = round(gate["errors"][gate["kept"]] if verdict is None else verdict["with_network"], 5)
        row["weight"] = round(gate["shares"].get("network", 0.0), 4)
        if verdict is not None:
            row |= {name: round(float(verdict[name]), 5) for name in ("without", "gain", "doubt")}
            row |= {"kept": verdict["kept"], "alone": round(verdict["alone"], 5)}
    if scores:
        schedule = Schedule(every=every * pd.Timedelta(table.times[1] - table.times[0]))
        found = evaluate(load_predictor(trained.run, device="cpu"), memory, table, "test", schedule=schedule)
        row |= {
            "mse": round(found.mse, 5),
            "mae": round(found.mae, 5),
            "direction": found.direction_accuracy,
            "trend": found.trend_accuracy,
            "feature_gate": None if found.feature_gate is None else asdict(found.feature_gate),
        }
    return row


def show(group: str, rows: list[dict[str, Any]]) -> None:
    """The table of one group: means over seeds."""
    print(f"### {group}\n\n| table | arm | seeds | {' | '.join(COLUMNS)} |\n|---|---|---|{'---|' * len(COLUMNS)}")
    for table in dict.fromkeys(row["table"] for row in rows):
        for arm in [arm for arm in ARMS[group] if any((row["table"], row["arm"]) == (table, arm) for row in rows)]:
            same = [row for row in rows if (row["table"], row["arm"]) == (table, arm)]
            print(f"| {table} | {arm} | {len(same)} | {' | '.join(cells(same))} |")
    print()


def cells(rows: list[dict[str, Any]]) -> list[str]:
    """What the table says of some seeds of one arm, by `COLUMNS`."""

    def mean(name: str, form: str) -> str:
        known = [row[name] for row in rows if row.get(name) is not None]
        return format(float(np.mean(known)), form) if known else ""

    scored = [row["mse"] for row in rows if "mse" in row]
    gates = [row["feature_gate"] for row in rows if row.get("feature_gate")]
    gate = ""
    if gates:
        middle, low, high = (np.mean([each[name] for each in gates]) for name in ("mean", "p10", "p90"))
        gate = f"{middle:.2f} ({low:.2f}, {high:.2f})"
    return [
        mean("blocks", ".4f"),
        mean("val", ".4f"),
        mean("mse", ".4f"),
        f"{np.std(scored):.4f}" if len(scored) > 1 else "",
        mean("mae", ".4f"),
        mean("direction", ".1%"),
        mean("trend", ".1%"),
        gate,
        mean("weight", ".0%"),
        mean("seconds", ".0f"),
    ]


if __name__ == "__main__":
    main()
