"""Forecasters of other packages on some windows of each table, scored as ours are."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.league.scoring import LEVELS, Asked, Tally, few_windows, naive_scales
from benchmarks.league.tables import Entry
from benchmarks.peers.exchange import ask, long_frame, windows_frame
from memory_index.evaluation import standard_units
from memory_index.splits import Split
from memory_index.tables.series import SeriesTable

OTHERS = ("AutoETS", "AutoTheta", "AutoARIMA", "MSTL", "LightGBM", "flaircast")


def others_score(
    peer: str, table: SeriesTable, origins: list[np.ndarray], entry: Entry, split: Split, folder: Path
) -> dict[str, Any]:
    """Ask one forecaster for the windows of `few_windows`; its scores, and what it says of itself."""
    rows = few_windows(origins)
    times, horizon = table.times, entry.horizon
    last_only = entry.test_stride == 0  # then everything before the last window is there to be fitted on
    train_until = times[-2 * horizon - 1] if last_only else np.datetime64(split.train_until)
    fit_until = times[-horizon - 1] if last_only else np.datetime64(split.val_until or split.train_until)
    frequency = pd.infer_freq(pd.DatetimeIndex(times))
    job = {
        "peer": peer,
        "horizon": horizon,
        "lookback": entry.lookback,
        "season": entry.season,
        "freq": frequency,
        "step": frequency[0] if frequency else None,
        "dateless": entry.name.startswith("M4"),
        "train_until": str(train_until),
        "fit_until": str(fit_until),
    }
    asked = windows_frame(table, rows)
    said, told = ask(job, long_frame(table), asked, folder)
    scores = scored(said, asked, table, entry, split)
    shutil.rmtree(folder)
    return scores | told


def scored(said: pd.DataFrame, asked: pd.DataFrame, table: SeriesTable, entry: Entry, split: Split) -> dict[str, float]:
    """Scores of forecasts of windows, all of which have to be there."""
    numbers = {series_id: number for number, series_id in enumerate(table.series_ids)}
    series = asked["unique_id"].map(numbers).to_numpy()
    origin = asked["origin"].to_numpy(dtype="datetime64[ns]")
    future = np.stack(
        [
            table.series[number].values[at + 1 : at + 1 + entry.horizon]
            for number, at in zip(
                series,
                (np.searchsorted(table.series[n].times, t) for n, t in zip(series, origin, strict=True)),
                strict=True,
            )
        ]
    )
    whole = asked.merge(said, on=["unique_id", "origin"], how="left", sort=False)
    if len(whole) != future.size or whole.isna().any(axis=None):
        raise SystemExit(f"{entry.name}: {len(said)} forecasts of steps came back, {future.size} were asked for")
    levels = whole[[f"q{level:g}" for level in LEVELS]].to_numpy().reshape(*future.shape, len(LEVELS))
    windows = Asked(
        future=future,
        series=series,
        origin=origin,
        unit=standard_units({}, table, split)[series],
        scale=naive_scales(table, entry, split)[series],
    )
    tally = Tally()
    tally.add("it", windows, whole["yhat"].to_numpy().reshape(future.shape), levels)
    return tally.scores()["it"]
