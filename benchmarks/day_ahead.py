"""Day-ahead prices with load and wind forecasts: one forecast of 24 hours a day, made at 23:00 of the day before.

    python -m benchmarks.day_ahead FOLDER [--market DE] [--out day-ahead.json]

FOLDER holds DE.csv, NP.csv and the published forecasts published_forecasts_DE.csv, published_forecasts_NP.csv of Lago
et al., *Forecasting day-ahead electricity prices*, Applied Energy 2021. Versions are built on everything before the
test years; in these the memory grows with each day, its linear map, where it has covariates, each week. Settings are
the defaults but for one window a day and the calendar; --choose scores the year before the test years, on which choices
are made. Arms: the memory with and without covariates, the linear map of each alone, a trained run whose map and gate
go on each week, and what is published. MAE in euros; Diebold-Mariano test of the mean absolute error of a day against
the published models. A market whose arms --out holds already is not made again.
"""

from __future__ import annotations

import json
import math
import tempfile
import time
from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
import typer

from forecaster.backtest import cross_validation_frame, growing
from forecaster.config import Config
from forecaster.predictor import load_predictor
from forecaster.training.fit import train_run
from memory_index import memory_only
from memory_index.backtest.plan import parse_update, plan_backtest
from memory_index.evaluation import ForecastBlock
from memory_index.origins import parse_schedule
from memory_index.splits import Split
from memory_index.tables.columns import ReadOptions
from memory_index.tables.reading import read_table
from memory_index.tables.series import SeriesTable
from memory_index.versions.build import build, steps_until
from memory_index.versions.grown import grown
from memory_index.versions.opening import open_version
from memory_index.versions.store import Store
from memory_index.versions.version import Version
from memory_index.windows import WindowSpec

HORIZON, LOOKBACK = 24, 336
UPDATE, HALF_LIFE = "weekly", 8760.0  # of the run's map and gate; steps, a year
KNOWN = {
    "DE": ("Ampirion Load Forecast", "PV+Wind Forecast"),
    "NP": ("Grid load forecast", "Wind power forecast"),
}
# Last hours of what is built on when choosing, of the year that choices are made on, and of the test years.
ENDS = {
    "DE": ("2014-12-31T23:00", "2016-01-03T23:00", "2017-12-31T23:00"),
    "NP": ("2015-12-27T23:00", "2016-12-26T23:00", "2018-12-24T23:00"),
}
PUBLISHED = {"LEAR": "LEAR Ensemble", "DNN": "DNN Ensemble"}
SCHEDULE = parse_schedule("24h", "23:00")


def read(folder: Path, market: str, *, with_covariates: bool) -> SeriesTable:
    """The prices of a market, with or without its forecasts of load and wind and the weekday."""
    options = ReadOptions(known=KNOWN[market], calendar=("weekday",))
    table = read_table(folder / f"{market}.csv", options)
    return table if with_covariates else table.with_columns(())


def days(
    table: SeriesTable, built_until: str, scored_until: str, *, grow: bool
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Absolute errors [days, 24] of the memory (`memory`) and its linear map (`map`), and the days.

    Built on all before `built_until`, scored until `scored_until`.
    """
    table = steps_until(table, np.datetime64(scored_until, "ns"))
    errors: dict[str, list[np.ndarray]] = {"memory": [], "map": []}
    origins: list[np.ndarray] = []
    with tempfile.TemporaryDirectory() as place:
        version = built(table, Path(place), built_until, scored_until)
        part = table if grow else steps_until(table, np.datetime64(built_until, "ns"))
        with grown(version, part) as memory:

            def each(block: ForecastBlock) -> None:
                asked = block.asked
                forecasts = {"memory": block.forecast, "map": memory.linear_forecast(asked.queries)}
                for name, forecast in forecasts.items():
                    errors[name].append(np.abs(forecast - block.future)[:, 0])
                origins.append(asked.queries.origin)

            memory_only.evaluate(memory, table, "test", schedule=SCHEDULE, each=each)
    order = np.argsort(np.concatenate(origins))
    dates = np.concatenate(origins)[order] + np.timedelta64(1, "h")
    return {name: np.concatenate(parts)[order] for name, parts in errors.items()}, [str(d)[:10] for d in dates]


def built(table: SeriesTable, folder: Path, built_until: str, scored_until: str) -> Version:
    """A version of all before `built_until`."""
    split = Split(name="until", train_until=built_until, val_until=None, test_until=scored_until)
    window = WindowSpec(lookback=LOOKBACK, horizon=HORIZON, stride=HORIZON)
    return build(table, Store(folder), "prices", window=window, split=split)


def days_of_run(table: SeriesTable, built_until: str, scored_until: str) -> np.ndarray:
    """Absolute errors [days, 24] of a run that is trained on all before `built_until`, and goes on."""
    table = steps_until(table, np.datetime64(scored_until, "ns"))
    config = Config.from_dict({"lookback": LOOKBACK, "horizon": HORIZON, "train_stride": HORIZON})
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        version = built(table, place, built_until, scored_until)
        memory = open_version(version)
        trained = train_run(table, memory, version.ref, config, place / "run", neighbours_dir=place / "neighbours")
        predictor = load_predictor(trained.run)
        with grown(version, table) as memory:
            plan = plan_backtest(
                table,
                version.manifest,
                predictor.units,
                horizon=HORIZON,
                fitted_at=max(version.manifest.fitted_known_at, predictor.seen_until),
                schedule=SCHEDULE,
                update=parse_update(UPDATE),
            )
            frame = cross_validation_frame(
                growing(trained.run, predictor, memory, plan, half_life=HALF_LIFE), table, plan
            )
    return np.abs((frame["y"] - frame["yhat"]).to_numpy()).reshape(-1, HORIZON)


def published(folder: Path, market: str, dates: list[str]) -> dict[str, np.ndarray]:
    """Absolute errors [days, 24] of the published forecasts, and of the mean of both."""
    table = pd.read_csv(folder / f"published_forecasts_{market}.csv", index_col=0, parse_dates=True)
    table = table[table.index.normalize().isin(pd.to_datetime(dates))]
    actual = table["Real price"].to_numpy()
    found = {name: table[column].to_numpy() for name, column in PUBLISHED.items()}
    found["mean of both"] = np.mean([*found.values()], axis=0)
    return {name: np.abs(values - actual).reshape(-1, HORIZON) for name, values in found.items()}


def diebold_mariano(ours: np.ndarray, theirs: np.ndarray) -> float:
    """One-sided p-value that our mean absolute errors of a day are not smaller (normal, days as independent)."""
    difference = theirs.mean(axis=1) - ours.mean(axis=1)
    statistic = difference.mean() / (difference.std(ddof=1) / math.sqrt(len(difference)))
    return 0.5 * math.erfc(statistic / math.sqrt(2))


def main(
    folder: Path,
    market: Annotated[list[str] | None, typer.Option()] = None,
    out: Annotated[Path | None, typer.Option()] = None,
    *,
    choose: Annotated[bool, typer.Option(help="Score the year before the test years.")] = False,
) -> None:
    """Measure, and print a line for each arm."""
    kept: dict[str, float] = json.loads(out.read_text()) if out is not None and out.exists() else {}
    for name in market or [*KNOWN]:
        if f"{name} run without covariates" in kept:
            continue
        before, chosen_until, last = ENDS[name]
        built_until, scored_until = (before, chosen_until) if choose else (chosen_until, last)
        every: dict[str, np.ndarray] = {}
        dates: list[str] = []
        for label, with_covariates, grow in (
            ("without covariates", False, True),
            ("with covariates", True, True),
            ("with covariates, memory as built", True, False),
        ):
            began = time.perf_counter()
            found, dates = days(
                read(folder, name, with_covariates=with_covariates), built_until, scored_until, grow=grow
            )
            every |= {f"{what}, {label}": errors for what, errors in found.items()}
            kept |= {f"{name} {what} {label}": float(errors.mean()) for what, errors in found.items()}
            print(
                f"{name} {label}: memory {found['memory'].mean():.3f}, map {found['map'].mean():.3f} "
                f"({len(dates)} days, {time.perf_counter() - began:.0f} s)",
                flush=True,
            )
        for label, with_covariates in (("with covariates", True), ("without covariates", False)):
            began = time.perf_counter()
            errors = days_of_run(read(folder, name, with_covariates=with_covariates), built_until, scored_until)
            every[f"run, {label}"] = errors
            kept[f"{name} run {label}"] = float(errors.mean())
            print(f"{name} {label}: run {errors.mean():.3f} ({time.perf_counter() - began:.0f} s)", flush=True)
        if out is not None:
            out.write_text(json.dumps(kept, indent=1))
        if choose or not dates:
            continue
        for other, errors in published(folder, name, dates).items():
            told = [
                f"{arm} p={diebold_mariano(every[arm], errors):.3f}"
                for arm in every
                if arm in ("memory, with covariates", "run, with covariates")
            ]
            print(f"{name} {other}: {errors.mean():.3f}; smaller errors than it: {'; '.join(told)}", flush=True)


if __name__ == "__main__":
    typer.run(main)
