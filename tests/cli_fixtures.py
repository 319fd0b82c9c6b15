"""A small table as a file, an index of it and a run against that, made by the commands themselves."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd

from cli.main import run

LOOKBACK, HORIZON, NUM_STEPS, NUM_NEWER = 48, 12, 480, 30
NUM_TEST = int(0.2 * NUM_STEPS) - HORIZON + 1  # origins of the test part
SETTINGS = {
    "patch_length": 8,
    "patch_stride": 4,
    "d_model": 8,
    "num_heads": 2,
    "d_ff": 16,
    "num_prototypes": 16,
    "llm_layers": 1,
    "n_scales": 2,
    "top_k": 3,
    "memory_k": 5,
    "num_folds": 2,
    "train_stride": 2,
    "batch_size": 64,
    "epochs": 3,
    "patience": 3,
    "save_steps": 2,
}


def frame(num_steps: int = NUM_STEPS) -> pd.DataFrame:
    """Two series with a day in them; a longer table begins with a shorter one."""
    noise = np.random.default_rng(0).normal(size=(2, NUM_STEPS + NUM_NEWER))
    hours = np.arange(NUM_STEPS + NUM_NEWER)
    table = pd.DataFrame({"date": pd.date_range("2024-01-01", periods=len(hours), freq="h")})
    for name, phase, each in zip(("north", "south"), (0, 1), noise, strict=True):
        table[name] = (20 + 5 * np.sin(hours * 2 * np.pi / 24 + phase) + each).round(3)
    return table.head(num_steps)


@dataclass(frozen=True, kw_only=True)
class Made:
    """folder: holds everything below. file, newer: tables, the second with more rows. run: trained against `m@1`."""

    folder: Path
    file: Path
    newer: Path
    indexes: Path
    toml: Path
    run: Path

    @property
    def train(self) -> list[str]:
        """The arguments of a training with these settings, but for `--out`."""
        arguments = ["train", str(self.file), "--index", "m@1", "--config", str(self.toml), "--device", "cpu"]
        return [*arguments, "--indexes-dir", str(self.indexes)]


def write_settings(path: Path, **changed: object) -> Path:
    """A TOML file of the settings of a small model."""
    lines = [f"{name} = {json.dumps(value)}\n" for name, value in {**SETTINGS, **changed}.items()]
    path.write_text("".join(lines))
    return path


@cache
def make(base: Path) -> Made:
    """Made once for all test files that share a process; nothing may change it. base: `getbasetemp()` of pytest."""
    folder = base / "made-by-commands"
    folder.mkdir()
    made = Made(
        folder=folder,
        file=folder / "load.csv",
        newer=folder / "newer.csv",
        indexes=folder / "indexes",
        toml=write_settings(folder / "small.toml"),
        run=folder / "runs" / "small",
    )
    frame().to_csv(made.file, index=False)
    frame(NUM_STEPS + NUM_NEWER).to_csv(made.newer, index=False)
    window = ["--lookback", str(LOOKBACK), "--horizon", str(HORIZON), "--indexes-dir", str(made.indexes)]
    assert run(["index", "build", str(made.file), "--name", "m", *window]) == 0
    assert run([*made.train, "--out", str(made.run)]) == 0
    return made
