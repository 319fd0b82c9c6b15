"""What missing cells cost: forecasts from tables with holes beside those from the complete table, on the same cells.

    python -m benchmarks.missing_cells --data-dir datasets

Cells of the whole table are blanked: 1%, 5% and 20% of them at random, or an outage of three days a month in each
series, at a time of its own. From either table a memory is built (lookback 336, horizon 96) and, with `--run`, a run is
trained with default settings. Both forecast every window of the test part that the table with holes can ask, and both
are scored on the cells that it has, in the complete table's units. `--part val` is what the choices were made on.
Beside that: how many of the complete table's windows are stored, and asked, where cells are missing.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.data_sets import DataSet, present
from benchmarks.report import machine
from memory_index.leakage import Policy
from memory_index.local import LocalMemory
from memory_index.memory_only import MEMORY_K
from memory_index.queries import query_blocks
from memory_index.scaling import fit_scale
from memory_index.splits import Split, part_origins, split_by_name
from memory_index.tables.reading import read_table
from memory_index.tables.series import SeriesTable
from memory_index.versions.build import build, stored_part
from memory_index.versions.opening import open_version
from memory_index.versions.store import Store
from memory_index.windows import WindowSpec

LOOKBACK, HORIZON = 336, 96
MONTH, OUTAGE = 30, 3  # days
SHARES = {"1%": 0.01, "5%": 0.05, "20%": 0.2}
OUTAGES = "outages"
PATTERNS = (*SHARES, OUTAGES)

Forecast = Callable[[SeriesTable, list[np.ndarray]], dict[tuple[int, int], np.ndarray]]


TRAINED: dict[str, Forecast] = {}  # what has been trained against a version: the complete table's serves every pattern


class Side(NamedTuple):
    """A table and the memory that was built from it."""

    table: SeriesTable
    memory: LocalMemory


def main() -> None:
    """Measure every pattern on every data set that is there, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-dir", type=Path, default=Path("datasets"))
    parser.add_argument("--sets", nargs="*", default=["ETTh1"])
    parser.add_argument("--patterns", nargs="*", default=[*PATTERNS], choices=PATTERNS)
    parser.add_argument("--part", default="test", choices=("val", "test"))
    parser.add_argument("--every", type=int, default=1, help="ask every so many-th moment")
    parser.add_argument("--run", action="store_true", help="also train a run with default settings on each table")
    parser.add_argument("--train-stride", type=int, help="train the runs on every so many-th window (a quicker look)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--max-missing", type=float, nargs="*", default=[WindowSpec(lookback=2, horizon=1).max_missing])
    parser.add_argument("--out", type=Path, help="also write the figures as JSON")
    options = parser.parse_args()
    print(machine())
    rows = []
    for data_set in present(options.data_dir, options.sets):
        with tempfile.TemporaryDirectory() as folder:
            rows += measure(data_set, options, Path(folder))
    if options.out is not None:
        options.out.write_text(json.dumps(rows, indent=1) + "\n")


def measure(data_set: DataSet, options: argparse.Namespace, folder: Path) -> list[dict[str, object]]:
    """All patterns and limits on one data set; prints a line for each."""
    table = read_table(data_set.path)
    split = split_by_name(data_set.split, table.times)
    whole = built(table, split, folder, "whole", options.max_missing[0])
    rows = []
    for pattern in options.patterns:
        holes = with_holes(table, pattern, options.seed)
        for limit in options.max_missing:
            found = built(holes, split, folder, f"{pattern.strip('%')}-{limit:g}".replace(".", "-"), limit)
            row: dict[str, object] = {
                "set": data_set.name,
                "pattern": pattern,
                "max_missing": limit,
                "part": options.part,
            }
            row |= compared(whole, found, split, options, folder)
            rows.append(row)
            print(", ".join(f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
                            for name, value in row.items()), flush=True)  # fmt: skip
    return rows


def with_holes(table: SeriesTable, pattern: str, seed: int) -> SeriesTable:
    """The table with cells blanked, series by series."""
    rng, day = np.random.default_rng(seed), 24
    series = []
    for each in table.series:
        values = each.values.copy()
        if pattern == OUTAGES:
            for start in range(0, len(values), MONTH * day):
                first = start + int(rng.integers(0, (MONTH - OUTAGE) * day))
                values[first : first + OUTAGE * day] = np.nan
        else:
            values[rng.random(len(values)) < SHARES[pattern]] = np.nan
        series.append(dataclasses.replace(each, values=values))
    return dataclasses.replace(table, series=tuple(series))


def built(table: SeriesTable, split: Split, folder: Path, name: str, max_missing: float) -> Side:
    """A memory of the training part of a table."""
    window = WindowSpec(lookback=LOOKBACK, horizon=HORIZON, max_missing=max_missing)
    return Side(table, open_version(build(table, Store(folder), name, window=window, split=split)))


def compared(whole: Side, holes: Side, split: Split, options: argparse.Namespace, folder: Path) -> dict[str, object]:
    """Both sides on the same windows and cells: MSE in standardised units, and what the holes cost."""
    spec, views = holes.memory.windows.spec, holes.memory.windows.views
    complete = part_origins(whole.table, spec, split, options.part)
    asked = part_origins(holes.table, spec, split, options.part, views=views)
    origins = [rows[rows % options.every == 0] for rows in asked]
    unit = fit_scale([s.values for s in stored_part(whole.table, split.train_until, spec).series]).std
    result: dict[str, object] = {
        "stored": len(holes.memory.windows) / len(whole.memory.windows),
        "asked": sum(map(len, asked)) / sum(map(len, complete)),
    }
    arms: dict[str, Callable[[Side], Forecast]] = {"memory": memory_forecasts}
    if options.run:
        arms["run"] = lambda side: run_forecasts(side, folder, options.train_stride)
    for arm, forecasts in arms.items():
        scores = [scored(forecasts(side)(side.table, origins), holes.table, origins, unit) for side in (whole, holes)]
        result |= {
            f"{arm} whole": scores[0],
            f"{arm} holes": scores[1],
            f"{arm} worse %": 100 * (scores[1] / scores[0] - 1),
        }
    return result


def scored(
    forecasts: dict[tuple[int, int], np.ndarray], table: SeriesTable, origins: list[np.ndarray], unit: np.ndarray
) -> float:
    """MSE over the cells that a table has. forecasts: [H] by (series, origin row)."""
    squared = []
    for number, rows in enumerate(origins):
        ahead = rows[:, None] + np.arange(1, HORIZON + 1)
        made = np.stack([forecasts[number, int(row)] for row in rows])
        squared.append(np.square((made - table.series[number].values[ahead]) / unit[number]).ravel())
    return float(np.nanmean(np.concatenate(squared)))


def memory_forecasts(side: Side) -> Forecast:
    """What a memory forecasts alone."""

    def forecasts(table: SeriesTable, origins: list[np.ndarray]) -> dict[tuple[int, int], np.ndarray]:
        windows, made = side.memory.windows, {}
        blocks = query_blocks(
            table, origins, windows.spec, Policy.CAUSAL, known=windows.series_ids, views=windows.views
        )
        for block in blocks:
            values = side.memory.search(block.queries, MEMORY_K).forecast(on_empty="last-value")
            for b, n in np.argwhere(block.wanted):
                made[int(block.series[n]), int(block.row[b, n])] = values[b, n]
        return made

    return forecasts


def run_forecasts(side: Side, folder: Path, stride: int | None) -> Forecast:
    """What a run with default settings forecasts that was trained on a table and against its memory."""
    from forecaster.config import Config
    from forecaster.predictor import load_predictor
    from forecaster.retrieval.batches import live_blocks
    from forecaster.training.fit import train_run

    strides = {} if stride is None else {"train_stride": stride, "val_stride": stride}
    config = Config.from_dict({"lookback": LOOKBACK, "horizon": HORIZON, **strides})
    if (known := TRAINED.get(side.memory.fingerprint)) is not None:
        return known
    with tempfile.TemporaryDirectory(dir=folder) as out:
        trained = train_run(
            side.table, side.memory, "memory@1", config, Path(out) / "run", neighbours_dir=Path(out) / "neighbours"
        )
        predictor = load_predictor(trained.run)

    def forecasts(table: SeriesTable, origins: list[np.ndarray]) -> dict[tuple[int, int], np.ndarray]:
        made = {}
        for block in live_blocks(side.memory, table, origins, config.model, config.train.memory_k, predictor.units):
            values = predictor.predict(block.batch).forecast.reshape(*block.asked.wanted.shape, -1)
            for b, n in np.argwhere(block.asked.wanted):
                made[int(block.asked.series[n]), int(block.asked.row[b, n])] = values[b, n]
        return made

    TRAINED[side.memory.fingerprint] = forecasts
    return forecasts


if __name__ == "__main__":
    main()
