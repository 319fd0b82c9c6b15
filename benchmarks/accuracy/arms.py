"""The arms of our own: how each is trained and scored, in processes of its own, as anybody would from the shell.

One file of results per data set, horizon, arm and seed is what makes the benchmark resumable. Forecasts that need no
training are scored in the same evaluation as the arm that they stand beside, on the same windows.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.data_sets import DataSet

LOOKBACK = 512


class Arm(NamedTuple):
    """A model to train. flags: of `cli train`, where it differs from the defaults. says: what it is, in a few words."""

    flags: tuple[str, ...]
    says: str


class Setting(NamedTuple):
    """What is scored: one arm, or a peer, on one data set and horizon with one seed."""

    data_set: DataSet
    horizon: int
    arm: str
    seed: int

    @property
    def name(self) -> str:
        """Of its file of results."""
        return f"{self.data_set.index}-{self.horizon}-{self.arm.replace(' ', '-')}-{self.seed}"


DEFAULT = "value gate"
LLM_GIVEN = "full, language model given"
NETWORK = ("--network",)
ARMS = {
    DEFAULT: Arm((), "linear map, last value and memory, mixed by the value gate"),
    "no LLM": Arm((*NETWORK, "--no-llm"), "with TAPR and GRA-M's gating of features, no language model"),
    "full": Arm(NETWORK, "with TAPR, GRA-M and a frozen language model of random weights (builtin:tiny)"),
    "no TAPR": Arm((*NETWORK, "--no-tapr"), "GRA-M and the frozen language model"),
    LLM_GIVEN: Arm(NETWORK, "the same with the language model of --llm"),
    "no memory": Arm((*NETWORK, "--no-gram"), "TAPR and the frozen language model, no neighbours"),
}
GROWN = "value gate, growing memory"  # the default's run, asked of a version to which everything has been appended
BESIDE = {  # scored in the evaluation of the default
    "last_value": "last value",
    "seasonal_naive": "seasonal naive",
    "linear": "linear map",
    "memory_only": "memory only",
}


def measure(setting: Setting, work_dir: Path, threads: int, *, llm: str | None) -> dict[str, Any]:
    """Train and score one arm with one seed; what is there already is used. Returns what the results' file keeps.

    llm: the language model of the arm that asks for one.
    """
    data_set, horizon, arm, seed = setting
    name, shared = f"{data_set.index}-{horizon}", ["--indexes-dir", str(work_dir / "indexes")]
    if arm == GROWN:
        run = work_dir / "runs" / setting._replace(arm=DEFAULT).name
        if not run.exists():
            measure(setting._replace(arm=DEFAULT), work_dir, threads, llm=None)
        if not (work_dir / "indexes" / name / "000002").exists():
            cli(threads, "index", "append", name, str(data_set.path), *shared)
        return kept(
            {}, cli(threads, "evaluate", str(data_set.path), "--run", str(run), "--index", f"{name}@2", *shared)
        )
    run = work_dir / "runs" / setting.name
    resume = ["--resume"] if run.exists() else []
    target = [str(data_set.path), "--index", f"{name}@1", "--out", str(run), "--seed", str(seed)]
    flags = [*ARMS[arm].flags, *(["--llm", str(llm)] if arm == LLM_GIVEN else [])]
    found = ["--neighbours-dir", str(work_dir / "neighbours")]
    trained = cli(threads, "train", *target, *flags, *resume, *shared, *found)
    return kept(trained, cli(threads, "evaluate", str(data_set.path), "--run", str(run), *shared))


def kept(trained: dict[str, Any], scored: dict[str, Any]) -> dict[str, Any]:
    """What is kept of the two commands' documents."""
    names = ("best_val_mse", "steps", "seconds", "neighbour_seconds", "peak_rss_mb", "num_parameters")
    beside = {BESIDE[key]: score for key, score in scored["baselines"].items() if score}
    beside |= {f"memory only, {space}": score for space, score in scored["key_spaces"].items()}
    return {
        "mse": scored["mse"],
        "mae": scored["mae"],
        "num_windows": scored["num_windows"],
        "direction_accuracy": scored["direction_accuracy"],
        "scores": scored["scores"][scored["arm"]],
        "coverage": scored["coverage"],
        "gate": scored["gate"],
        "beside": beside,
    } | {name: trained[name] for name in names if name in trained}


def build_index(data_set: DataSet, horizon: int, work_dir: Path, threads: int) -> None:
    """Build the version that every arm of a data set and horizon is trained against, if it is not there."""
    name = f"{data_set.index}-{horizon}"
    if not (work_dir / "indexes" / name).exists():
        sizes = ["--lookback", str(LOOKBACK), "--horizon", str(horizon), "--split", data_set.split]
        where = ["--indexes-dir", str(work_dir / "indexes")]
        cli(threads, "index", "build", str(data_set.path), "--name", name, *sizes, *where)


def cli(threads: int, *arguments: str) -> dict[str, Any]:
    """One command in a process of its own: its document. Raises `SystemExit` if it fails."""
    command = [sys.executable, "-m", "cli", *arguments, "--json"]
    limited = os.environ | {"OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(command, capture_output=True, text=True, env=limited, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}: {done.stderr or done.stdout}")
    document: dict[str, Any] = json.loads(done.stdout)
    return document
