"""What four known columns cost: a build and the neighbours of many windows, beside the same table without them.

    python -m benchmarks.covariate_cost --data-dir datasets

ETTh1 (7 series, three views, every scope) with four columns that all series share, made here: two that move the series,
and two of noise. Processor time with one BLAS thread, both forms in turn in one run, the better of the turns of each.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import typer

from memory_index.encoder import EncoderConfig
from memory_index.leakage import Policy
from memory_index.queries import query_blocks
from memory_index.splits import split_by_name
from memory_index.tables.columns import ReadOptions
from memory_index.tables.reading import read_frame
from memory_index.tables.series import SeriesTable
from memory_index.threads import one_blas_thread
from memory_index.versions.build import build
from memory_index.versions.opening import open_version
from memory_index.versions.store import Store
from memory_index.windows import WindowSpec

WINDOW = WindowSpec(lookback=336, horizon=96)
NAMES = ("mean", "first", "noise", "more_noise")
ASKED, K = 512, 50


def table_with(path: Path) -> SeriesTable:
    """ETTh1 and four known columns: two that say something of the series, and two that do not."""
    random, frame = np.random.default_rng(0), pd.read_csv(path)
    series = frame.columns[1:]
    values = frame[series].to_numpy()
    beside = (values - values.mean(axis=0)) / values.std(axis=0)
    noise = random.normal(size=(len(frame), len(NAMES)))
    frame["mean"] = beside.mean(axis=1) + 0.3 * noise[:, 0]
    frame["first"] = beside[:, 0] + 0.3 * noise[:, 1]
    frame[["noise", "more_noise"]] = noise[:, 2:]
    return read_frame(frame, ReadOptions(known=NAMES))


def measured(table: SeriesTable, folder: Path) -> np.ndarray:
    """Processor seconds of a build; of the neighbours of so many moments of all series; and of their forecasts."""
    began, split = time.process_time(), split_by_name("ett-hourly", table.times)
    version = build(table, Store(folder), "m", window=WINDOW, split=split, encoder=EncoderConfig())
    built = time.process_time() - began
    memory = open_version(version)
    last = len(table.times) - WINDOW.horizon
    blocks = query_blocks(
        table,
        [np.arange(last - ASKED, last)] * len(table.series),
        WINDOW,
        Policy.CAUSAL,
        known=table.series_ids,
        views=memory.windows.views,
        layout=memory.manifest.covariate_layout,
    )
    began = time.process_time()
    found = [memory.search(block.queries, K) for block in blocks]
    asked, began = time.process_time() - began, time.process_time()
    for each in found:
        each.forecast()
    return np.array([built, asked, time.process_time() - began])


def main(data_dir: Path = Path("datasets"), turns: int = 3) -> None:
    """Measure and print."""
    table = table_with(next(data_dir.rglob("ETTh1.csv")))
    forms = {"without": table.with_columns(()), "with": table}
    found: dict[str, list[np.ndarray]] = {name: [] for name in forms}
    with one_blas_thread():
        for _ in range(turns):
            for name, each in forms.items():
                with tempfile.TemporaryDirectory() as folder:
                    found[name].append(measured(each, Path(folder)))
    best = {name: np.min(each, axis=0) for name, each in found.items()}
    for place, what in enumerate(("build", f"neighbours of {ASKED} moments", "their forecasts")):
        without, with_columns = best["without"][place], best["with"][place]
        print(f"{what}: {with_columns:.2f} s, {without:.2f} s without, {with_columns / without:.2f} times as long")


if __name__ == "__main__":
    typer.run(main)
