"""How the defaults of training were chosen: once for all data sets, never by a test figure.

    python -m benchmarks.training_defaults --data-dir datasets

For every setting (lookback 512, horizon 96, seed 0): (a) the best validation MSE of a training on the whole training
part, and (b) the MSE of the training part, cross-validated over its three blocks of time: trained on two of them, the
windows that share a step with the third left out, stopped by the validation part, scored on the third. In both, what
feeds the model is cross-fitted and neighbours are asked under `disjoint`, as `cli train` has them. Shown relative to
the first setting of its group, as a mean over the data sets of both. Nothing is
trained by gradient: the networks have `benchmarks/network.py`. The test part is not read. Data sets whose file
is missing are skipped, saying so.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.data_sets import CHOSEN_ON, DataSet, present
from benchmarks.memory_defaults import WINDOW
from benchmarks.report import machine
from forecaster.config import Config
from forecaster.language_models.placement import place_backbone
from forecaster.model.model import ForecastModel
from forecaster.retrieval.batches import CachedWindows
from forecaster.retrieval.folds import off_block
from forecaster.training.closed_form import fit_closed_form
from forecaster.training.fit import run_record
from forecaster.training.fit_gate import fit_value_gate
from forecaster.training.fit_networks import batch_loss
from forecaster.training.train import train
from forecaster.training.windows import windows_of
from memory_index import Memory, SeriesTable, Store, build, open_memory, read_table, split_by_name

SETTINGS: dict[str, dict[str, dict[str, Any]]] = {
    "gate": {
        "value gate alone": {},
        **{f"gate_shrinkage {v}": {"gate_shrinkage": v} for v in (0.0, 0.001, 0.1)},
        **{f"ridge {v}": {"ridge": v} for v in (0.01, 1.0)},
        "policy causal": {"policy": "causal"},
        "train_stride 4": {"train_stride": 4},
        "no memory": {"use_gram": False},
        "no shortcut": {"use_network": False, "use_shortcut": False},
    },
}
MSE = tuple[float, float]  # of the training part, cross-validated, and of the validation part


def main() -> None:
    """Train with every setting on every data set, and print a table for each group."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, default=Path("datasets"))
    parser.add_argument("--data-sets", nargs="*", default=[*CHOSEN_ON], choices=CHOSEN_ON)
    parser.add_argument("--groups", nargs="*", default=[*SETTINGS], choices=[*SETTINGS])
    every = [setting for group in SETTINGS.values() for setting in group]
    parser.add_argument("--settings", nargs="*", choices=every, help="only these, default all of a group")
    parser.add_argument("--work-dir", type=Path, help="keep indexes and neighbours here")
    parser.add_argument("--out", type=Path, help="also write the figures as JSON")
    options = parser.parse_args()
    results: dict[str, dict[str, dict[str, MSE]]] = {group: {} for group in options.groups}
    with tempfile.TemporaryDirectory() as temporary:
        for data_set in present(options.data_dir, options.data_sets):
            memory = memory_of(data_set, options.work_dir or Path(temporary))
            for group in options.groups:
                for setting in [each for each in SETTINGS[group] if each in (options.settings or every)]:
                    mse = measure(data_set.path, memory, SETTINGS[group][setting], options.work_dir or Path(temporary))
                    results[group].setdefault(setting, {})[data_set.name] = mse
                    said = f"{data_set.name} {group}: {setting} {mse[0]:.4f} / {mse[1]:.4f}"
                    print(f"{time.strftime('%H:%M:%S')} {said}", file=sys.stderr, flush=True)
    print(f"{machine()}\n")
    for group, measured in results.items():
        if measured:
            show(group, measured)
    if options.out is not None:
        options.out.write_text(json.dumps(results, indent=1) + "\n")


def memory_of(data_set: DataSet, folder: Path) -> Memory:
    """A version of the table's training part, built if it is not there."""
    name = f"{data_set.index}-{WINDOW.horizon}"
    if not (folder / "indexes" / name).exists():
        table = read_table(data_set.path)
        split = split_by_name(data_set.split, table.times)
        build(table, Store(folder / "indexes"), name, window=WINDOW, split=split)
    return open_memory(folder / "indexes", f"{name}@1")


def measure(path: Path, memory: Memory, setting: dict[str, Any], folder: Path) -> MSE:
    """Train as often as the rule asks, and score."""
    table = read_table(path)
    config = Config.from_dict({"lookback": WINDOW.lookback, "horizon": WINDOW.horizon} | setting)
    record = run_record(table, memory, path.stem, config, None, "cpu")
    training, validation = (
        windows_of(table, memory, config, record, part, folder / "neighbours") for part in ("train", "val")
    )
    squared, num = 0.0, 0
    for rest, block in blocks(table, memory, training):
        model, _ = trained(table, memory, config, training, rest, validation)
        squared, num = squared + squared_error(model, block, config) * len(block), num + len(block)
    _, best = trained(table, memory, config, training, training, validation)
    return squared / num, best


def blocks(
    table: SeriesTable, memory: Memory, training: CachedWindows
) -> Iterator[tuple[CachedWindows, CachedWindows]]:
    """Of each block of time: the windows that share no step with it, and its own."""
    assert training.fold is not None, "training windows are cross-fitted"
    length = memory.manifest.window.length
    times = np.concatenate([series.times for series in table.series])[training.position]
    for number in np.unique(training.fold):
        mine = training.fold == number
        rest = off_block(times, table.step, first=times[mine].min(), last=times[mine].max(), length=length)
        yield some(training, rest), some(training, mine)


def some(windows: CachedWindows, chosen: np.ndarray) -> CachedWindows:
    """Some of the windows. chosen: bool [n]."""
    assert windows.fold is not None, "training windows are cross-fitted"
    return dataclasses.replace(
        windows,
        position=windows.position[chosen],
        series=windows.series[chosen],
        unit=windows.unit[chosen],
        fold=windows.fold[chosen],
        condensed=None if windows.condensed is None else windows.condensed.take(np.flatnonzero(chosen)),
    )


def trained(
    table: SeriesTable,
    memory: Memory,
    config: Config,
    training: CachedWindows,
    used: CachedWindows,
    validation: CachedWindows,
) -> tuple[ForecastModel, float]:
    """A model that has seen some of the training windows, and its best validation MSE."""
    torch.manual_seed(config.train.seed)
    model = ForecastModel(
        config.model, num_spaces=len(memory.manifest.spaces), backbone=place_backbone(config, device="cpu")
    )
    fit_closed_form(model, training, table, config)
    fit_value_gate(model, used, config.train.gate_shrinkage)  # the maps have a fold for each block, the gate has none
    with tempfile.TemporaryDirectory() as folder:
        result = train(
            model,
            used,
            validation,
            lambda model, batch, aux_weight: batch_loss(model, batch, config, aux_weight),  # type: ignore[arg-type]
            config.train,
            Path(folder) / "run",
            identity={},
            device="cpu",
        )
    return model, result.best_val_mse


@torch.no_grad()
def squared_error(model: ForecastModel, windows: CachedWindows, config: Config) -> float:
    """Mean squared error of a model's forecasts, in standardised units."""
    model.eval()
    total = 0.0
    for start in range(0, len(windows), config.train.batch_size):
        batch = windows.batch(np.arange(start, min(len(windows), start + config.train.batch_size)))
        total += float(batch_loss(model, batch, config, 0.0).mse) * len(batch)
    return total / len(windows)


def show(group: str, measured: dict[str, dict[str, MSE]]) -> None:
    """The table of one group, best first."""
    base = next(iter(measured.values()))
    relative = {
        name: float(np.mean([np.divide(mse[each], base[each]) for each in base])) for name, mse in measured.items()
    }
    print(f"### {group}\n\n| setting | relative MSE | {' | '.join(base)} |\n|---|---|{'---|' * len(base)}")
    for name in sorted(relative, key=relative.__getitem__):
        cells = " | ".join("{:.4f} / {:.4f}".format(*measured[name][each]) for each in base)
        print(f"| {name} | {relative[name]:.4f} | {cells} |")
    print()


if __name__ == "__main__":
    main()
