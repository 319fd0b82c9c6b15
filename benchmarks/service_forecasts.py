"""Forecasts over HTTP: how long a warm service takes for the seven series of ETTh1, beside the same in this process.

    python -m benchmarks.service_forecasts --data-dir datasets

A client posts the last rows of the file as CSV, again and again; the same table is forecast in this process in turn, by
the functions that the service calls. Every answer of both is compared with the first.
"""

from __future__ import annotations

import argparse
import io
import tempfile
import time
from pathlib import Path

import httpx
import pandas as pd

from benchmarks.report import Figure, run_cli, show
from benchmarks.speed.service import serving
from benchmarks.speed.turns import in_turns, medians, ratio
from forecaster.serving import open_served
from memory_index.references import open_memory
from memory_index.service.app import RunQuestion
from memory_index.wire import Limits

ROWS, TURNS = 2000, 60
BUDGET = 60.0  # seconds after which no further turn begins


def main() -> None:
    """Train, serve, ask and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-dir", type=Path, default=Path("datasets"))
    parser.add_argument("--turns", type=int, default=TURNS)
    parser.add_argument("--out", type=Path, help="also write the figures as JSON")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        file, indexes, run = Path(folder) / "ETTh1.csv", Path(folder) / "indexes", Path(folder) / "runs" / "etth1"
        pd.read_csv(next(options.data_dir.rglob("ETTh1.csv"))).iloc[:14400].tail(6000).to_csv(file, index=False)
        where = ["--indexes-dir", str(indexes)]
        window = ["--lookback", "336", "--horizon", "96"]
        run_cli("index", "build", str(file), "--name", "etth1", *window, *where, "--json")
        # A step on few windows: a forecast takes as long whatever the weights are.
        quick = [word for each in ("max_steps=1", "num_folds=2", "train_stride=64") for word in ("--set", each)]
        run_cli("train", str(file), "--index", "etth1", "--out", str(run), *quick, *where, "--json")
        short = Path(folder) / "short.csv"
        pd.read_csv(file).tail(ROWS).to_csv(short, index=False)
        figures = measured(short, indexes, run, options.turns)
    command = f"python -m benchmarks.service_forecasts --data-dir datasets --turns {options.turns}"
    show("Forecasts of the service", command, figures, options.out)


def measured(file: Path, indexes: Path, run: Path, turns: int) -> list[Figure]:
    """Both in turn."""
    body, run_itself = file.read_bytes(), open_served(run, ["etth1"], device="cpu")
    memory = open_memory(indexes, "etth1@1")
    question = RunQuestion("forecast", "text/csv", body, {}, "text/csv", Limits())
    with serving(indexes, "etth1", options=("--run", str(run), "--device", "cpu")) as service, httpx.Client() as client:

        def ask() -> bytes:
            headers = {"content-type": "text/csv", "accept": "text/csv"}
            answer = client.post(f"{service.address}/v1/runs/etth1/forecast", content=body, headers=headers, timeout=60)
            return answer.raise_for_status().content

        def ask_itself() -> bytes:
            return run_itself.answer(question, memory, "etth1@1")[1]

        def same(found: bytes) -> None:
            if found != first:
                raise SystemExit("the service answers another forecast")

        first = ask()
        assert pd.read_csv(io.BytesIO(first))["unique_id"].nunique() == 7
        both = {"remote": lambda _: same(ask()), "local": lambda _: same(ask_itself())}
        times = in_turns(both, turns, budget=BUDGET)
        alone = medians(in_turns({"": lambda _: ask_itself()}, 10, clock=time.process_time))[""] * 1e3
    p50, own = (median * 1e3 for median in medians(times).values())
    beside = f"in this process p50 {own:.0f} ms, of processor time {alone:.0f} ms; "
    beside += f"{len(times['local'])} turns, CSV of {ROWS:,} rows"
    return [
        Figure("a forecast of 7 series, 96 steps, over HTTP", f"p50 {p50:.0f} ms", "p50 under 100 ms", beside),
        Figure(
            "the same beside this process",
            f"{ratio(times, 'remote', 'local') - 1:+.0%} (median over the turns)",
            "",
            "each turn asks both; every answer is the same, byte for byte",
        ),
    ]


if __name__ == "__main__":
    main()
