"""What vintages cost, beside the same columns known at any time: a build, and the neighbours of many windows.

    python -m benchmarks.vintages

Seven hourly series of 17,420 steps (the size of ETTh1) and four known columns that all share, made here. Every 6 hours
each column is issued for the next 108. Processor time, one thread; both forms in one run, and the ratio of one to the
other. Then one look-up of an issued value.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from memory_index.encoder import EncoderConfig
from memory_index.leakage import Policy
from memory_index.queries import query_blocks
from memory_index.splits import split_by_name
from memory_index.step_vintages import on_steps
from memory_index.tables.columns import ReadOptions
from memory_index.tables.reading import read_frame
from memory_index.tables.series import SeriesTable
from memory_index.versions.build import build
from memory_index.versions.opening import open_version
from memory_index.versions.store import Store
from memory_index.windows import WindowSpec

NUM_STEPS, NUM_SERIES, NUM_COLUMNS = 17_420, 7, 4
EVERY, REACH = 6, 108
WINDOW, VIEWS = WindowSpec(lookback=336, horizon=96), (96, 336)
ASKED, REPEATS = 1024, 3


def tables() -> tuple[SeriesTable, SeriesTable]:
    """The same columns, known at any time and as they were issued."""
    random, hours = np.random.default_rng(0), pd.date_range("2020-01-01", periods=NUM_STEPS, freq="h")
    weather = np.repeat(random.normal(size=(NUM_COLUMNS, NUM_STEPS // 6 + 1)), 6, axis=1)[:, :NUM_STEPS]
    season = np.sin(np.arange(NUM_STEPS) * 2 * np.pi / 24)
    frame = pd.DataFrame({"ds": hours})
    for number in range(NUM_SERIES):
        weight = random.normal(size=NUM_COLUMNS)
        frame[f"s{number}"] = 10 * season + weight @ weather + random.normal(size=NUM_STEPS)
    names = [f"known{number}" for number in range(NUM_COLUMNS)]
    frame[names] = weather.T
    issue, lead = (each.ravel() for each in np.meshgrid(np.arange(0, NUM_STEPS, EVERY), np.arange(1, REACH + 1)))
    issue, lead = issue[issue + lead < NUM_STEPS], lead[issue + lead < NUM_STEPS]
    issued = pd.DataFrame({"ds": hours[issue + lead], "issued_at": hours[issue]})
    issued[names] = weather.T[issue + lead] + 0.01 * lead[:, None] * random.normal(size=(len(lead), NUM_COLUMNS))
    options = ReadOptions(known=tuple(names))
    return read_frame(frame, options), read_frame(frame, replace(options, vintages=issued))


def measured(table: SeriesTable, folder: Path) -> tuple[float, float]:
    """Processor seconds of a build, and of the neighbours and forecasts of so many moments of all series."""
    began, split = time.process_time(), split_by_name("70/10/20", table.times)
    version = build(table, Store(folder), "m", window=WINDOW, split=split, encoder=EncoderConfig(views=VIEWS))
    built = time.process_time() - began
    memory = open_version(version)
    rows = np.arange(NUM_STEPS - ASKED - WINDOW.horizon, NUM_STEPS - WINDOW.horizon)
    began, layout = time.process_time(), memory.manifest.covariate_layout
    how = {"known": table.series_ids, "views": VIEWS, "layout": layout}
    for block in query_blocks(table, [rows] * NUM_SERIES, WINDOW, Policy.CAUSAL, **how):  # type: ignore[arg-type]
        memory.search(block.queries, 10).forecast()
    return built, time.process_time() - began


def main() -> None:
    """Measure and print."""
    plain, issued = tables()
    best: dict[str, np.ndarray] = {}
    for _ in range(REPEATS):
        for name, table in (("known at any time", plain), ("as issued", issued), ("none", plain.with_columns(()))):
            with tempfile.TemporaryDirectory() as folder:
                found = np.array(measured(table, Path(folder)))
            best[name] = np.minimum(best.get(name, found), found)
    for name, (built, asked) in best.items():
        ratio = best[name] / best["known at any time"]
        print(f"{name}: build {built:.1f} s ({ratio[0]:.2f}), {ASKED} moments {asked:.1f} s ({ratio[1]:.2f})")
    assert issued.covariates is not None
    assert issued.covariates.vintages is not None
    stretch: tuple[None, np.ndarray] = (None, issued.series[0].times)
    vintages = on_steps(issued.covariates.vintages, "known0", [stretch])
    origin = np.arange(WINDOW.lookback, NUM_STEPS - WINDOW.horizon)[:, None]
    cells, began = origin + np.arange(1 - WINDOW.horizon, WINDOW.horizon + 1), time.process_time()
    vintages.as_of(cells, origin)
    took = time.process_time() - began
    print(f"a look-up among {len(vintages.value):,}: {1e9 * took / cells.size:.0f} ns")


if __name__ == "__main__":
    main()
