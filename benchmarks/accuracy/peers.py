"""Peers on the same windows: each trained in its own environment, its forecasts scored here by the project's code."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.accuracy.arms import LOOKBACK, Setting
from memory_index import read_table, split_by_name
from memory_index.metrics import Actual, ScoreSum
from memory_index.scaling import fit_scale
from memory_index.windows import cut

PEERS = ("DLinear", "NLinear", "PatchTST", "iTransformer", "TimeMixer")
WORKER = Path(__file__).with_name("peer_worker.py")
PYTHON = Path(".venv-peers/bin/python")
BLOCK = 256  # moments scored at once


def measure(setting: Setting, work_dir: Path, threads: int, *, core_minutes: float) -> dict[str, Any]:
    """Train a peer and score its forecast of every test window. Returns what the results' file keeps.

    core_minutes: what it may use on one data set and horizon, the choice of its learning rate included; only seed 0
    chooses, the others train with its choice for as long as one of its trainings took at most.
    """
    folder = work_dir / "peers"
    folder.mkdir(parents=True, exist_ok=True)
    values, ends = standardised(setting)
    source, job = folder / f"{setting.name}-values.npy", folder / f"{setting.name}.json"
    np.save(source, values)
    asked: dict[str, Any] = {
        "peer": setting.arm,
        "values": str(source),
        "ends": ends,
        "lookback": LOOKBACK,
        "horizon": setting.horizon,
        "seed": setting.seed,
        "threads": threads,
        "budget_s": core_minutes * 60 / threads,
    }
    if setting.seed:
        chosen = folder / f"{setting._replace(seed=0).name}.told"
        asked |= {"learning_rate": json.loads(chosen.read_text())["learning_rate"], "budget_s": asked["budget_s"] / 2}
    job.write_text(json.dumps(asked))
    done = subprocess.run([PYTHON, WORKER, job], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{PYTHON} {WORKER} {job}: {done.stderr}")
    told = json.loads(job.with_suffix(".told").read_text())
    forecasts = np.load(job.with_suffix(".npy"))
    scored = score(forecasts, values, ends)
    for each in (source, job.with_suffix(".npy")):
        each.unlink()
    names = {"val_mse": "best_val_mse", "seconds": "seconds", "parameters": "num_parameters"}
    return scored | {ours: told[theirs] for theirs, ours in names.items()} | {"tuning": told["tried"]}


def standardised(setting: Setting) -> tuple[np.ndarray, list[int]]:
    """All series of a table side by side, float32 [T, N] in units of the training part, and where each part ends."""
    table = read_table(setting.data_set.path)
    split = split_by_name(setting.data_set.split, table.times)
    values = np.stack([series.values for series in table.series], axis=1)
    ends = [int(np.searchsorted(table.times, split.bounds(part)[1], side="right")) for part in ("train", "val", "test")]
    scale = fit_scale([column[: ends[0]] for column in values.T])
    return ((values - scale.mean) / scale.std).astype(np.float32), ends


def score(forecasts: np.ndarray, values: np.ndarray, ends: list[int]) -> dict[str, Any]:
    """forecasts: [moments, N, H], standardised, of every moment of the test part. Raises `SystemExit` for others."""
    moments, num_series, horizon = forecasts.shape
    origins = np.arange(ends[1] - 1, ends[2] - horizon)
    if moments != len(origins):
        raise SystemExit(f"{moments} moments were forecast, but the test part has {len(origins)}")
    total = ScoreSum(num_series, horizon)
    for start in range(0, moments, BLOCK):
        rows = origins[start : start + BLOCK]
        future = np.stack([cut(np.ascontiguousarray(column), rows + 1, horizon) for column in values.T], axis=1)
        series = np.tile(np.arange(num_series), len(rows))
        none, unit = np.full(len(series), np.nan), np.ones(len(series))
        actual = Actual(
            future=future.reshape(-1, horizon).astype(np.float64),
            weight=np.ones((len(series), horizon)),
            series=series,
            last=values[rows].ravel(),
            unit=unit,
            naive_absolute=none,
            naive_squared=none,
        )
        total.add(actual, forecasts[start : start + BLOCK].reshape(-1, horizon))
    found = total.score()
    return {"mse": found.mse, "mae": found.mae, "num_windows": moments}
