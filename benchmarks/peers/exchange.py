"""Handing windows to a forecaster of another package, and its forecasts back: files between two environments."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from memory_index.tables.series import SeriesTable

PYTHON = Path(".venv-peers/bin/python")
WORKER = Path(__file__).with_name("worker.py")


def long_frame(table: SeriesTable) -> pd.DataFrame:
    """unique_id, ds, y of every step of a table."""
    return pd.concat(
        [pd.DataFrame({"unique_id": each.series_id, "ds": each.times, "y": each.values}) for each in table.series],
        ignore_index=True,
    )


def windows_frame(table: SeriesTable, rows: list[np.ndarray]) -> pd.DataFrame:
    """unique_id, origin of the windows at these origin rows of each series."""
    return pd.concat(
        [
            pd.DataFrame({"unique_id": each.series_id, "origin": each.times[chosen]})
            for each, chosen in zip(table.series, rows, strict=True)
            if len(chosen)
        ],
        ignore_index=True,
    )


def ask(job: dict[str, Any], table: pd.DataFrame, asked: pd.DataFrame, folder: Path) -> tuple[pd.DataFrame, Any]:
    """The forecasts of one forecaster, as `worker.py` writes them, and what it says of itself.

    Raises `SystemExit` where it fails, or there is no environment of the peers.
    """
    if not PYTHON.exists():
        raise SystemExit(f"there is no {PYTHON}: `make peers` makes it")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "job.json").write_text(json.dumps(job))
    table.to_parquet(folder / "table.parquet", index=False)
    asked.to_parquet(folder / "asked.parquet", index=False)
    one = {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1", "PYTHONPATH": ""}
    done = subprocess.run(
        [PYTHON, WORKER, folder], capture_output=True, text=True, check=False, env={**os.environ, **one}
    )
    if done.returncode:
        raise SystemExit(f"{PYTHON} {WORKER} {folder}: {done.stderr}")
    return pd.read_parquet(folder / "forecasts.parquet"), json.loads((folder / "told.json").read_text())
