"""What retrieval costs in a training step, and where the time of a cold `cli forecast` goes.

    python -m benchmarks.training_step --data-dir datasets

A training step of the default model on ETTh1 (lookback 512, horizon 96, 224 windows), its parts timed in the same loop:
to read a batch without and with its neighbours from the cache, and to compute it. Then `cli forecast` on a run, each
time in a new process, and the seconds of that which are imports. The model is trained for two steps only: a forecast
takes as long whatever the weights are.
"""

from __future__ import annotations

import argparse
import dataclasses
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
import torch

from benchmarks.memory_defaults import WINDOW
from benchmarks.report import Figure, show
from forecaster.config import Config
from forecaster.fit import batch_loss, fit_closed_form, run_record, train_run, windows_of
from forecaster.model import ForecastModel
from forecaster.placement import place_backbone
from memory_index import Store, build, open_memory, read_table, split_by_name

NUM_STEPS, NUM_FORECASTS = 20, 5
IMPORTS = "import cli.main, cli.asking, forecaster.forecast, forecaster.predictor, memory_index.versions.opening"


def main() -> None:
    """Measure both, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, default=Path("datasets"))
    parser.add_argument("--out", type=Path, help="also write the figures as JSON")
    options = parser.parse_args()
    path = next(iter(sorted(options.data_dir.rglob("ETTh1.csv"))), None)
    if path is None:
        raise SystemExit(f"no ETTh1.csv below {options.data_dir}")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        table = read_table(path)
        split = split_by_name("ett-hourly", table.times)
        version = build(table, Store(folder / "indexes"), "m", window=WINDOW, split=split)
        memory = open_memory(folder / "indexes", version.ref)
        settings = {"lookback": WINDOW.lookback, "horizon": WINDOW.horizon, "train_stride": 8}
        config = Config.from_dict(settings | {"max_steps": 2})
        train_run(table, memory, version.ref, config, folder / "run", neighbours_dir=folder / "neighbours")
        figures = [step_figure(table, memory, version.ref, config, folder), forecast_figure(path, folder)]
    command = "python -m benchmarks.training_step --data-dir datasets"
    show("A training step and a cold forecast", command, figures, options.out)


def step_figure(table, memory, ref: str, config: Config, folder: Path) -> Figure:  # type: ignore[no-untyped-def]
    """Seconds of the parts of a step, medians."""
    backbone = place_backbone(config, "cpu")
    record = run_record(table, memory, ref, config, backbone, "cpu")
    with_memory = windows_of(table, memory, config, record, "train", folder / "neighbours")
    without = dataclasses.replace(with_memory, condensed=None)
    model = ForecastModel(config.model, num_spaces=len(memory.manifest.spaces), backbone=backbone)
    fit_closed_form(model, with_memory, table, memory, config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    order = np.random.default_rng(0).permutation(len(with_memory))
    times: list[tuple[float, float, float]] = []
    for step in range(NUM_STEPS + 3):
        rows = order[step * config.train.batch_size :][: config.train.batch_size]
        began = time.perf_counter()
        without.batch(rows)
        plain = time.perf_counter()
        batch = with_memory.batch(rows)
        read = time.perf_counter()
        batch_loss(model, batch, config, 1.0).total.backward()
        optimizer.step()
        optimizer.zero_grad()
        times.append((plain - began, read - plain, time.perf_counter() - read))
    plain_s, read_s, compute_s = (median(part) for part in zip(*times[3:], strict=True))
    share = (read_s - plain_s) / (plain_s + compute_s)
    return Figure(
        "neighbours of a batch from the cache, of a training step",
        f"**{share:.2%}** ({1000 * (read_s - plain_s):.1f} ms of {1000 * (read_s + compute_s):.0f} ms)",
        "at most 5%",
        f"the same batch without neighbours {1000 * plain_s:.1f} ms",
    )


def forecast_figure(path: Path, folder: Path) -> Figure:
    """Seconds of `cli forecast` from the start of the process to the written file, and of its imports alone."""
    arguments = ["forecast", str(path), "--run", str(folder / "run"), "--indexes-dir", str(folder / "indexes")]
    command = [sys.executable, "-m", "cli", *arguments, "--out", str(folder / "forecast.csv")]
    whole, imports = [], []
    for _ in range(NUM_FORECASTS):
        for times, each in ((whole, command), (imports, [sys.executable, "-c", IMPORTS])):
            began = time.perf_counter()
            subprocess.run(each, check=True, stderr=subprocess.DEVNULL)
            times.append(time.perf_counter() - began)
    return Figure(
        "`cli forecast` of 7 series by a run, process start to file",
        f"**{median(whole):.2f} s**",
        "at most 5 s",
        f"of which imports {median(imports):.2f} s",
    )


if __name__ == "__main__":
    main()
