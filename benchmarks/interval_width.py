"""How wide a forecast's intervals should be for one window and not for another: chosen without a test figure.

    python -m benchmarks.interval_width --data-dir datasets

An interval is the forecast plus a width times the quantiles of past errors divided by theirs (docs/method.md). For
every width below: the quantile loss (mean over the levels of `LEVELS`, standardised units) of the validation part,
quantiles taken from one half of its time and scored on the other and the other way round, and that of the training
part, quantiles taken from two of its three blocks of time and scored on the third. Forecasts of training windows are
cross-fitted and their neighbours asked under `disjoint`, as `cli train` has them; windows at the edge of a block share
steps with the next. Shown relative to the first width, as a mean over data sets and horizons of both, with what the
central 80% covered. Every 5th validation and every 23rd training window is asked. The test part is not read.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from benchmarks.data_sets import CHOSEN_ON, DataSet, present
from benchmarks.report import machine
from forecaster.batches import CachedWindows
from forecaster.config import Config
from forecaster.fit import fit_closed_form, run_record, windows_of
from forecaster.intervals import FLOOR, neighbour_scale
from forecaster.model import ForecastModel
from memory_index import Store, WindowSpec, build, open_memory, read_table, split_by_name

LOOKBACK = 512
HORIZONS = (96, 336)
STRIDE = {"val": 5, "train": 23}  # windows from one that is asked to the next
BATCH = 1024
LEVELS = np.array([0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95])
CENTRAL = slice(1, 6, 4)  # of the levels: 0.1 and 0.9


class Errors(NamedTuple):
    """Of n windows. error: [n, H], future minus forecast; spread: [n, 1]; both in units of the training part.

    variance: [n, H], of the neighbours' futures, in spreads of the window. part: [n], of the time line.
    """

    error: np.ndarray
    spread: np.ndarray
    variance: np.ndarray
    part: np.ndarray


def widths(errors: Errors) -> dict[str, np.ndarray]:
    """Every width by name, [n, H] or [n, 1]; the first is what `cli train` does."""
    spread, variance = errors.spread, errors.variance
    floors = [FLOOR, *(floor for floor in (0.2, 0.4, 0.6, 0.8, 1.0, 1.5) if floor != FLOOR)]
    return {
        **{f"spread x sqrt(variance + {floor:g}^2)": spread * np.sqrt(variance + floor**2) for floor in floors},
        "spread": spread,
        "sqrt(spread)": np.sqrt(spread),
        "the same for every window": np.ones_like(spread),
        "sqrt(spread x sqrt(variance + 0.4^2))": np.sqrt(spread * np.sqrt(variance + 0.4**2)),
    }


def main() -> None:
    """Measure every width on every data set and horizon, and print the table, best first."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, default=Path("datasets"))
    parser.add_argument("--data-sets", nargs="*", default=[*CHOSEN_ON], choices=CHOSEN_ON)
    parser.add_argument("--horizons", nargs="*", type=int, default=[*HORIZONS])
    parser.add_argument("--work-dir", type=Path, help="keep indexes and neighbours here")
    options = parser.parse_args()
    results: dict[str, list[tuple[float, float]]] = {}
    heads = []
    with tempfile.TemporaryDirectory() as temporary:
        for data_set in present(options.data_dir, options.data_sets):
            for horizon in options.horizons:
                heads.append(f"{data_set.name}-{horizon}")
                for errors in errors_of(data_set, horizon, options.work_dir or Path(temporary)):
                    for name, width in widths(errors).items():
                        results.setdefault(name, []).append(scored(errors, width))
    show(results, heads)


def errors_of(data_set: DataSet, horizon: int, folder: Path) -> list[Errors]:
    """Of training windows and of validation windows, by the value gate."""
    table = read_table(data_set.path)
    name, window = f"{data_set.index}-{horizon}", WindowSpec(lookback=LOOKBACK, horizon=horizon)
    if not (folder / "indexes" / name).exists():
        split = split_by_name(data_set.split, table.times)
        build(table, Store(folder / "indexes"), name, window=window, split=split)
    memory = open_memory(folder / "indexes", f"{name}@1")
    config = Config.from_dict({"lookback": LOOKBACK, "horizon": horizon})
    record = run_record(table, memory, name, config, None, "cpu")
    train, val = (windows_of(table, memory, config, record, part, folder / "neighbours") for part in ("train", "val"))
    model = ForecastModel(config.model, num_spaces=len(memory.manifest.spaces), backbone=None).eval()
    fit_closed_form(model, train, table, memory, config)
    times = np.concatenate([series.times for series in table.series])
    found = []
    for windows, stride in ((train, STRIDE["train"]), (val, STRIDE["val"])):
        chosen = np.arange(0, len(windows), stride)
        moments = times[windows.position[chosen]]
        half = moments >= np.sort(moments)[len(moments) // 2]
        part = half if windows.fold is None else windows.fold[chosen]
        found.append(Errors(*asked(model, windows, chosen), part))
    return found


@torch.no_grad()
def asked(
    model: ForecastModel, windows: CachedWindows, chosen: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Error, spread and variance of some windows, as `Errors` has them."""
    assert windows.condensed is not None, "the gate has a memory"
    assert windows.windows is not None, "the gate has a memory"
    found = []
    for numbers in np.split(chosen, range(BATCH, len(chosen), BATCH)):
        batch = windows.batch(numbers)
        output = model(batch.context, batch.neighbours, unit=batch.unit, fold=batch.fold)
        scale = neighbour_scale(
            windows.condensed.take(numbers),
            windows.windows,
            windows.spaces,
            num=len(numbers),
            horizon=windows.config.horizon,
        )
        found.append(
            (
                ((batch.future - output.forecast) / batch.unit[:, None]).numpy(),
                (output.spread / batch.unit).numpy()[:, None],
                np.maximum(np.square(scale.astype(np.float64)) - FLOOR**2, 0),
            )
        )
    error, spread, variance = (np.concatenate(part) for part in zip(*found, strict=True))
    return error, spread, variance


def scored(errors: Errors, width: np.ndarray) -> tuple[float, float]:
    """Quantile loss of all windows, and the share that the central 80% covered."""
    scaled, loss, covered = errors.error / width, 0.0, 0.0
    for part in np.unique(errors.part):
        mine = errors.part == part
        quantile = np.quantile(scaled[~mine], LEVELS, axis=0).T  # [H, Q]
        missed = scaled[mine][..., None] - quantile
        of_level = np.maximum(LEVELS * missed, (LEVELS - 1) * missed) * width[mine][..., None]
        low, high = np.moveaxis(missed[..., CENTRAL], -1, 0)
        loss += float(of_level.mean()) * mine.mean()
        covered += float(((low >= 0) & (high <= 0)).mean()) * mine.mean()
    return loss, covered


def show(results: dict[str, list[tuple[float, float]]], heads: list[str]) -> None:
    """The table: quantile loss of training / validation, and what was covered."""
    base = next(iter(results.values()))
    relative = {
        name: float(np.mean([loss / one for (loss, _), (one, _) in zip(found, base, strict=True)]))
        for name, found in results.items()
    }
    print(f"{machine()}\n\n| width | relative loss | {' | '.join(heads)} |\n|---|---|{'---|' * len(heads)}")
    for name in sorted(relative, key=relative.__getitem__):
        pairs = zip(results[name][::2], results[name][1::2], strict=True)
        cells = " | ".join(f"{t:.4f} / {v:.4f} ({ct:.0%} / {cv:.0%})" for (t, ct), (v, cv) in pairs)
        print(f"| {name} | {relative[name]:.4f} | {cells} |")


if __name__ == "__main__":
    main()
