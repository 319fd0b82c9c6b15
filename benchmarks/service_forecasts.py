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
import numpy as np
import pandas as pd

from benchmarks.report import Figure, run_cli, show, timed
from benchmarks.speed.service import serving
from forecaster.serving import open_served
from memory_index.references import open_memory
from memory_index.service.app import RunQuestion
from memory_index.service.wire import Limits

ROWS, TURNS = 2000, 60


def main() -> None:
    """Train, serve, ask and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-dir", type=Path, default=Path("datasets"))
    parser.add_argument("--turns", type=int, default=TURNS)
    parser.add_argument("--out", type=Path, help="also write the figures as JSON")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        file, indexes, run = Path(folder) / "ETTh1.csv", Path(folder) / "indexes", Path(folder) / "runs" / "etth1"
        pd.read_csv(options.data_dir / "ETTh1.csv").iloc[:14400].tail(9000).to_csv(file, index=False)
        where = ["--indexes-dir", str(indexes)]
        window = ["--lookback", "336", "--horizon", "96"]
        run_cli("index", "build", str(file), "--name", "etth1", *window, *where, "--json")
        run_cli("train", str(file), "--index", "etth1", "--out", str(run), "--set", "max_steps=1", *where, "--json")
        short = Path(folder) / "short.csv"
        pd.read_csv(file).tail(ROWS).to_csv(short, index=False)
        figures = measured(short, indexes, run, options.turns)
    command = f"python -m benchmarks.service_forecasts --turns {options.turns}"
    show("Forecasts of the service", command, figures, options.out)


def measured(file: Path, indexes: Path, run: Path, turns: int) -> list[Figure]:
    """Both in turn."""
    body, run_itself = file.read_bytes(), open_served(run, ["etth1"], device="cpu")
    memory = open_memory(indexes, "etth1@1")
    question = RunQuestion("forecast", "text/csv", body, {}, "text/csv", Limits())
    times: dict[str, list[float]] = {"local": [], "remote": [], "processor": []}
    with serving(indexes, "etth1", options=("--run", str(run), "--device", "cpu")) as address, httpx.Client() as client:

        def ask() -> bytes:
            headers = {"content-type": "text/csv", "accept": "text/csv"}
            answer = client.post(f"{address}/v1/runs/etth1/forecast", content=body, headers=headers, timeout=60)
            return answer.raise_for_status().content

        first = ask()
        assert pd.read_csv(io.BytesIO(first))["unique_id"].nunique() == 7
        for _ in range(turns):
            seconds, found = timed(ask)
            times["remote"].append(seconds * 1e3)
            before = time.process_time()
            seconds, own = timed(lambda: run_itself.answer(question, memory, "etth1@1")[1])
            times["local"].append(seconds * 1e3)
            times["processor"].append((time.process_time() - before) * 1e3)
            if not found == first == own:
                raise SystemExit("the service answers another forecast")
    theirs, own_ms = (np.percentile(times[name], [50, 95]) for name in ("remote", "local"))
    beside = f"in this process p50 {own_ms[0]:.0f} ms, p95 {own_ms[1]:.0f} ms, "
    beside += f"of processor time {np.median(times['processor']):.0f} ms; {turns} turns, CSV of {ROWS:,} rows"
    return [
        Figure(
            "a forecast of 7 series, 96 steps, over HTTP",
            f"p50 {theirs[0]:.0f} ms, p95 {theirs[1]:.0f} ms",
            "p50 under 100 ms",
            beside,
        )
    ]


if __name__ == "__main__":
    main()
