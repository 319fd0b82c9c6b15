"""Half-hourly electricity demand of Victoria with temperature and holidays: one forecast of a day, made at 23:30.

    python -m benchmarks.demand_victoria vic_elec.csv

The table vic_elec of the R package tsibbledata, as ds, demand, temperature, holiday in the time of Melbourne. The last
year is the test, the memory is built on the years before and grows with each day. Temperature is what was measured
later: an upper bound of what a forecast of it allows. Arms: with temperature, holiday and calendar, with the calendar
alone, and without covariates. MAE in MW.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import numpy as np
import typer

from memory_index import memory_only
from memory_index.encoder import EncoderConfig
from memory_index.origins import parse_schedule
from memory_index.splits import Split
from memory_index.tables.columns import ReadOptions
from memory_index.tables.reading import read_table
from memory_index.versions.build import build
from memory_index.versions.grown import grown
from memory_index.versions.store import Store
from memory_index.windows import WindowSpec

LOOKBACK, HORIZON = 336, 48
KNOWN = ("temperature", "holiday")
COLUMNS = ("demand",)
YEAR = np.timedelta64(365, "D")


def main(file: Path) -> None:
    """Measure, and print a line for each arm."""
    options = ReadOptions(known=KNOWN, calendar=("weekday", "week"), time_zone="Australia/Melbourne", columns=COLUMNS)
    table = read_table(file, options)
    times = table.series[0].times
    until = times[-1] - YEAR
    split = Split(name="until", train_until=str(until), val_until=None, test_until=str(times[-1]))
    window = WindowSpec(lookback=LOOKBACK, horizon=HORIZON, stride=HORIZON)
    names = table.covariates.names if table.covariates is not None else ()
    for label, kept in (
        ("temperature, holiday, calendar", names),
        ("calendar alone", tuple(name for name in names if name not in KNOWN)),
        ("without covariates", ()),
    ):
        began, with_these = time.perf_counter(), table.with_columns(kept)
        with tempfile.TemporaryDirectory() as place:
            encoder = EncoderConfig(views=(LOOKBACK,))
            version = build(with_these, Store(place), "demand", window=window, split=split, encoder=encoder)
            with grown(version, with_these) as memory:
                schedule = parse_schedule("24h", "23:30")
                scores = memory_only.evaluate(memory, with_these, "test", schedule=schedule).scores
        errors = {name: scores[name].metrics["mae_original"] for name in ("memory_only", "linear", "seasonal_naive")}
        told = ", ".join(f"{name} {error:.1f}" for name, error in errors.items())
        print(f"{label}: {told} ({time.perf_counter() - began:.0f} s)", flush=True)


if __name__ == "__main__":
    typer.run(main)
