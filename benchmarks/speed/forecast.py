"""`cli forecast` by a run: a new process each time, and straightforwardly kept, one that has everything open.

How much of the cold one is imports is measured beside it: most of that is torch. A forecast loads neither accelerate
nor transformers nor what trains.
"""

from __future__ import annotations

import subprocess
import sys

from benchmarks.report import Figure
from benchmarks.speed.stage import Stage
from benchmarks.speed.turns import in_turns, medians
from forecaster.forecast import forecast
from forecaster.predictor import load_predictor
from forecaster.runs.run import open_run
from memory_index import memory_only

IMPORTS = "import cli.main, cli.opening, forecaster.forecast, forecaster.predictor, memory_index.versions.opening"


def figures(stage: Stage) -> list[Figure]:
    """By a run and by the memory alone."""
    cli = [sys.executable, "-m", "cli", "forecast", str(stage.file), "--indexes-dir", str(stage.indexes)]
    to_file = ["--out", str(stage.folder / "forecast.csv")]
    predictor, memory = load_predictor(open_run(stage.run), device="cpu"), stage.memory

    def run(*command: str) -> None:
        subprocess.run(command, check=True, stderr=subprocess.DEVNULL)

    actions = {
        "run": lambda _: run(*cli, "--run", str(stage.run), *to_file),
        "imports": lambda _: run(sys.executable, "-c", IMPORTS),
        "memory": lambda _: run(*cli, "--index", "etth1@1", *to_file),
        "warm run": lambda _: forecast(predictor, memory, stage.table),
        "warm memory": lambda _: memory_only.forecast(memory, stage.table),
    }
    seconds = medians(in_turns(actions, stage.sizes.turns))
    num = len(stage.table.series)
    return [
        Figure(
            f"`cli forecast` of {num} series by a run, process start to file",
            f"**{seconds['run']:.2f} s**, of which imports {seconds['imports']:.2f} s",
            "at most 5 s",
            f"in a process that has everything open: {1e3 * seconds['warm run']:.0f} ms",
        ),
        Figure(
            "the same by the memory alone",
            f"{seconds['memory']:.2f} s",
            "",
            f"in a process that has everything open: {1e3 * seconds['warm memory']:.0f} ms",
        ),
    ]
