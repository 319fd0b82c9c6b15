"""mlforecast with LightGBM where covariates are known: day-ahead prices, and the demand of Victoria.

    python -m benchmarks.peers.boosted --data-dir datasets --work-dir runs/boosted

The rows that `benchmarks.day_ahead` and `benchmarks.demand_victoria` have for ours: the same days and origins, the same
columns (at the hour itself, a day and a week before), hour and weekday, lags of the same lookback, and nothing that is
not known at the origin. Differences of the series and LightGBM's settings (four candidates) are chosen on 52 days of
the year before what is scored; then it is fitted on everything before that, and twice a year again. `make peers` first.
A finished row is kept in --rows (JSON) and is not measured again.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.day_ahead import ENDS, KNOWN, diebold_mariano, published
from benchmarks.peers.exchange import ask
from benchmarks.report import machine
from memory_index.files import replace

ROWS = Path(__file__).with_name("boosted.json")
ZONE, VICTORIA_LOOKBACK, VICTORIA_HORIZON = "Australia/Melbourne", 336, 48
COMMON = {"peer": "LightGBM", "refit_days": 182, "validated": 52, "dateless": False}


def main() -> None:
    """Measure what is missing, print a line for each row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, default=Path("datasets"))
    parser.add_argument("--work-dir", type=Path, required=True, help="files that are handed over")
    parser.add_argument("--rows", type=Path, default=ROWS)
    parser.add_argument("--tasks", nargs="*", choices=TASKS, default=[*TASKS])
    options = parser.parse_args()
    rows: dict[str, Any] = json.loads(options.rows.read_text()) if options.rows.is_file() else {}
    for covariates in (True, False):
        for name in options.tasks:
            label = f"{name}, {'with' if covariates else 'without'} covariates"
            if label not in rows:
                rows[label] = TASKS[name](options.data_dir, options.work_dir / name, covariates)
                replace(options.rows, (json.dumps(rows, indent=1) + "\n").encode())
                print(f"{time.strftime('%H:%M:%S')} {label}", file=sys.stderr, flush=True)
    print(f"{machine()}\n")
    for label, row in rows.items():
        print(f"{label}: {json.dumps(row)}")


def price(market: str) -> Callable[[Path, Path, bool], dict[str, Any]]:
    """The task of a market."""

    def measured(data_dir: Path, folder: Path, covariates: bool) -> dict[str, Any]:
        place = data_dir / "epf"
        frame = pd.read_csv(place / f"{market}.csv", skipinitialspace=True, parse_dates=[0])
        known = [*KNOWN[market]] if covariates else []
        frame = frame.set_axis(["ds", "y", *KNOWN[market]], axis=1)[["ds", "y", *known]]
        train_until, fit_until, last = (pd.Timestamp(each) for each in ENDS[market])
        frame = frame[frame["ds"] <= last]
        origins = pd.date_range(fit_until, last - pd.Timedelta(hours=24), freq="D")
        job = COMMON | {"horizon": 24, "lookback": 336, "freq": "h", "step": "h", "stride": 24}
        errors, told = absolute_errors(job, frame, known, (24, 168), origins, (train_until, fit_until), folder)
        dates = [str(each + pd.Timedelta(hours=1))[:10] for each in origins]
        against = {
            name: {"mae": float(theirs.mean()), "p": round(diebold_mariano(errors, theirs), 4)}
            for name, theirs in published(place, market, dates).items()
        }
        return {"mae": float(errors.mean()), "days": len(origins), "beside": against} | told

    return measured


def victoria(data_dir: Path, folder: Path, covariates: bool) -> dict[str, Any]:
    """Half-hourly demand; the last year is scored. Steps are regular in UTC, hour and weekday are local."""
    frame = pd.read_csv(data_dir / "vic_elec" / "vic_elec.csv", parse_dates=["ds"])
    local = frame["ds"].dt.tz_localize(ZONE, ambiguous="infer")
    known = ["temperature", "holiday"] if covariates else []
    frame = frame.assign(
        ds=local.dt.tz_convert("UTC").dt.tz_localize(None),
        y=frame["demand"],
        half_hour=local.dt.hour * 2 + local.dt.minute // 30,
        weekday=local.dt.weekday,
        week=local.dt.isocalendar().week.astype(int),
    )
    calendar = ["half_hour", "weekday", "week"]
    frame, local = frame[["ds", "y", *known, *calendar]], local.reset_index(drop=True)
    last = frame["ds"].iloc[-1]
    fit_until, train_until = last - pd.Timedelta(days=365), last - pd.Timedelta(days=730)
    at_evening = frame["ds"][(local.dt.hour == 23) & (local.dt.minute == 30)]
    origins = pd.DatetimeIndex(at_evening[(at_evening >= fit_until) & (at_evening <= last - pd.Timedelta(hours=24))])
    job = COMMON | {"horizon": VICTORIA_HORIZON, "lookback": VICTORIA_LOOKBACK, "freq": "30min", "step": "30min"}
    job |= {"stride": 48}
    errors, told = absolute_errors(job, frame, known, (48, 336), origins, (train_until, fit_until), folder, calendar)
    return {"mae": float(errors.mean()), "days": len(origins)} | told


def absolute_errors(
    job: dict[str, Any],
    frame: pd.DataFrame,
    known: list[str],
    back: tuple[int, ...],
    origins: pd.DatetimeIndex,
    ends: tuple[pd.Timestamp, pd.Timestamp],
    folder: Path,
    calendar: list[str] | None = None,
) -> tuple[np.ndarray, dict[str, Any]]:
    """Absolute errors [days, H] of a series at its origins, and what the forecaster says of itself.

    frame: ds, y and the known columns, which are also given as they were so many steps before (`back`).
    """
    before = {f"{name} {steps}": frame[name].shift(steps) for name in known for steps in back}
    frame = frame.assign(unique_id="y", **before).iloc[max(back) if known else 0 :]
    job = job | {
        "known": [*known, *before, *(calendar or [])],
        "train_until": str(ends[0]),
        "fit_until": str(ends[1]),
    }
    asked = pd.DataFrame({"unique_id": "y", "origin": origins})
    said, told = ask(job, frame, asked, folder)
    yhat = said.sort_values(["origin", "step"])["yhat"].to_numpy().reshape(len(origins), job["horizon"])
    first = np.searchsorted(frame["ds"].to_numpy(), origins.to_numpy()) + 1
    future = np.stack([frame["y"].to_numpy()[at : at + job["horizon"]] for at in first])
    return np.abs(yhat - future), told


TASKS = {"DE": price("DE"), "NP": price("NP"), "Victoria": victoria}

if __name__ == "__main__":
    main()
