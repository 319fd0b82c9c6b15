"""How wide a forecast's intervals should be for one window and not for another: chosen without a test figure.

    python -m benchmarks.interval_width --data-dir datasets

An interval is the forecast plus an expected width times the quantiles of past errors divided by theirs
(docs/method.md). For every width and calibration below: the quantile loss (mean over `LEVELS`, standardised units) of
the validation part, quantiles taken from one half of its time and scored on the other and the other way round, and that
of the training part, quantiles taken from two of its three blocks of time and scored on the third. Forecasts of
training windows are cross-fitted and their neighbours asked under `disjoint`, as `cli train` has them; windows at the
edge of a block share steps with the next. Shown relative to what `cli train` does, as a mean over data sets and
horizons of both, and how far a series' coverage by the central 80% is from that, in the mean over series. Every 5th
validation and every 23rd training window is asked. The test part is not read.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from benchmarks.data_sets import CHOSEN_ON, DataSet, present
from benchmarks.report import machine
from forecaster.config import Config
from forecaster.model.model import ForecastModel
from forecaster.retrieval.batches import CachedWindows
from forecaster.runs.intervals import FLOOR, expected_width, neighbour_scale, prior_windows, series_factors
from forecaster.training.closed_form import fit_closed_form
from forecaster.training.fit import run_record
from forecaster.training.windows import windows_of
from memory_index import Store, WindowSpec, build, open_memory, read_table, split_by_name

LOOKBACK = 512
HORIZONS = (96, 336)
STRIDE = {"val": 5, "train": 23}  # windows from one that is asked to the next
BATCH = 1024
LEVELS = np.array([0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95])
CENTRAL = slice(1, 6, 4)  # of the levels: 0.1 and 0.9


class Errors(NamedTuple):
    """Of n windows. error: [n, H], future minus forecast; spread: [n, 1]; both in units of the training part.

    scale: [n, H], see `neighbour_scale`; chosen: [n, H], `expected_width`, in the same units. part: [n], of the time
    line. series: [n], numbers. prior: of `series_factors`.
    """

    error: np.ndarray
    spread: np.ndarray
    scale: np.ndarray
    chosen: np.ndarray
    part: np.ndarray
    series: np.ndarray
    prior: float

    def floored(self, floor: float) -> np.ndarray:
        """The scale with another floor under the neighbours' deviation."""
        return np.sqrt(np.maximum(np.square(self.scale.astype(np.float64)) - FLOOR**2, 0) + floor**2)


WIDTHS: dict[str, Callable[[Errors], np.ndarray]] = {
    "sqrt(max(unit, spread) x spread x scale), floor 1": lambda errors: errors.chosen,
    "the series' unit": lambda errors: np.ones_like(errors.spread),
    "spread": lambda errors: errors.spread,
    **{f"spread x scale, floor {f:g}": lambda errors, f=f: errors.spread * errors.floored(f) for f in (0.2, 0.4, 1.0)},
    "sqrt(unit x spread)": lambda errors: np.sqrt(errors.spread),
    **{
        f"sqrt(unit x spread x scale), floor {f:g}": lambda errors, f=f: np.sqrt(errors.spread * errors.floored(f))
        for f in (0.2, 0.4, 1.0)
    },
}
CALIBRATIONS = ("all series together", "a factor for each series", "each series by itself")
CHOSEN = next(iter(WIDTHS)), CALIBRATIONS[1]  # what `cli train` does


def main() -> None:
    """Measure every width on every data set and horizon, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, default=Path("datasets"))
    parser.add_argument("--data-sets", nargs="*", default=[*CHOSEN_ON], choices=CHOSEN_ON)
    parser.add_argument("--horizons", nargs="*", type=int, default=[*HORIZONS])
    parser.add_argument("--work-dir", type=Path, help="keep indexes and neighbours here")
    options = parser.parse_args()
    results: dict[tuple[str, str], list[tuple[float, float]]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        for data_set in present(options.data_dir, options.data_sets):
            for horizon in options.horizons:
                for errors in errors_of(data_set, horizon, options.work_dir or Path(temporary)):
                    for name, width in WIDTHS.items():
                        for calibration in CALIBRATIONS:
                            found = scored(errors, np.broadcast_to(width(errors), errors.error.shape), calibration)
                            results.setdefault((name, calibration), []).append(found)
    show(results)


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
    fit_closed_form(model, train, table, config)
    times = np.concatenate([series.times for series in table.series])
    found = []
    for windows, stride in ((train, STRIDE["train"]), (val, STRIDE["val"])):
        chosen = np.arange(0, len(windows), stride)
        moments = times[windows.position[chosen]]
        half = moments >= np.sort(moments)[len(moments) // 2]
        part = half if windows.fold is None else windows.fold[chosen]
        prior = prior_windows(horizon, len(chosen) / len(windows))
        found.append(Errors(*asked(model, windows, chosen), part, windows.series[chosen], prior))
    return found


@torch.no_grad()
def asked(
    model: ForecastModel, windows: CachedWindows, chosen: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Error, spread, scale and chosen width of some windows, as `Errors` has them."""
    assert windows.condensed is not None, "the gate has a memory"
    assert windows.windows is not None, "the gate has a memory"
    found = []
    for numbers in np.split(chosen, range(BATCH, len(chosen), BATCH)):
        batch = windows.batch(numbers)
        output = model(batch.context, batch.neighbours, unit=batch.unit, fold=batch.fold)
        condensed, unit, horizon = windows.condensed.take(numbers), batch.unit.numpy(), windows.config.horizon
        behind = condensed, windows.windows, windows.spaces
        width = expected_width(*behind, spread=output.spread.numpy(), unit=unit, horizon=horizon)
        found.append(
            (
                (batch.future - output.forecast).numpy() / unit[:, None],
                (output.spread.numpy() / unit)[:, None],
                neighbour_scale(*behind, num=len(numbers), horizon=horizon),
                width / unit[:, None],
            )
        )
    error, spread, scale, chosen_width = (np.concatenate(part) for part in zip(*found, strict=True))
    return error, spread, scale, chosen_width


def scored(errors: Errors, width: np.ndarray, calibration: str) -> tuple[float, float]:
    """Quantile loss of all windows, and how far the series' coverage by the central 80% is from it, in the mean."""
    num_series = int(errors.series.max()) + 1
    loss, covered = 0.0, np.zeros(num_series)
    for part in np.unique(errors.part):
        mine = errors.part == part
        used = width.copy()
        if calibration == CALIBRATIONS[1]:
            sizes = np.abs(errors.error[~mine] / width[~mine]).mean(axis=1)
            used *= series_factors(sizes, errors.series[~mine], num_series, prior=errors.prior)[errors.series, None]
        scaled = errors.error / used
        quantile = np.quantile(scaled[~mine], LEVELS, axis=0).T[None]  # [1, H, Q]
        if calibration == CALIBRATIONS[2]:
            by_series = [scaled[~mine & (errors.series == number)] for number in range(num_series)]
            quantile = np.stack([np.quantile(each, LEVELS, axis=0).T for each in by_series])[errors.series[mine]]
        missed = scaled[mine][..., None] - quantile
        of_level = np.maximum(LEVELS * missed, (LEVELS - 1) * missed) * used[mine][..., None]
        low, high = np.moveaxis(missed[..., CENTRAL], -1, 0)
        loss += float(of_level.mean()) * mine.mean()
        covered += np.bincount(errors.series[mine], ((low >= 0) & (high <= 0)).mean(axis=1), minlength=num_series)
    return loss, float(np.abs(covered / np.bincount(errors.series) - 0.8).mean())


def show(results: dict[tuple[str, str], list[tuple[float, float]]]) -> None:
    """The table: a width a line, a calibration a column."""
    base = [loss for loss, _ in results[CHOSEN]]
    print(f"{machine()}\n\n| width | {' | '.join(CALIBRATIONS)} |\n|---|{'---|' * len(CALIBRATIONS)}")
    for name in WIDTHS:
        cells = []
        for calibration in CALIBRATIONS:
            found = results[name, calibration]
            relative = np.mean([loss / one for (loss, _), one in zip(found, base, strict=True)])
            cells.append(f"{relative:.4f}, {np.mean([off for _, off in found]):.1%} off")
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
