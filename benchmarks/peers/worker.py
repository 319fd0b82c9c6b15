"""One forecaster of another package, asked for the forecasts of some windows of a table.

It runs in the environment of the peers (`make peers`) and imports nothing of this project. What it is asked comes as
files, and what it says goes back as files, so that the caller scores every forecaster with the same code:

    .venv-peers/bin/python benchmarks/peers/worker.py FOLDER

FOLDER holds `job.json`, `table.parquet` (unique_id, ds, y) and `asked.parquet` (unique_id, origin); written are
`forecasts.parquet` (unique_id, origin, step, yhat, q0.1 to q0.9) and `told.json`. Local models are fitted anew at each
origin, on the values of the series up to it; MLForecast is fitted once, on the rows until `job["fit_until"]`.
"""

from __future__ import annotations

import json
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

LEVELS = tuple(np.round(np.arange(1, 10) / 10, 1).tolist())
SIDES = (80, 60, 40, 20)  # per cent between quantiles .1 and .9, .2 and .8, and so on
SAMPLES = 200  # paths of flaircast: its own default
# What each local model sees at most, in seasons and at least in steps: chosen by time alone, before any score.
HISTORY = {"AutoARIMA": (8, 192), "AutoETS": (20, 480), "AutoTheta": (20, 480), "MSTL": (42, 1000)}
MAX_ROWS = 100_000  # that LightGBM is fitted on: the last ones of each series
ALIASES = {"h": "H", "D": "D", "W": "W"}
# What LightGBM is tuned over, on the validation part: differences of the series, then its own settings.
CANDIDATES: tuple[tuple[int, dict[str, Any]], ...] = (
    (0, {"num_leaves": 31, "n_estimators": 200, "learning_rate": 0.05}),
    (0, {"num_leaves": 7, "n_estimators": 200, "learning_rate": 0.1}),
    (1, {"num_leaves": 31, "n_estimators": 200, "learning_rate": 0.05}),
    (1, {"num_leaves": 7, "n_estimators": 200, "learning_rate": 0.1}),
)
VALIDATED = 8  # origins of the validation part on which a candidate is compared, at most

Forecast = tuple[np.ndarray, np.ndarray]  # yhat [H], quantiles [H, 9]


def main(folder: Path) -> None:
    """Read the job, forecast, write."""
    warnings.filterwarnings("ignore")
    job = json.loads((folder / "job.json").read_text())
    table, asked = (pd.read_parquet(folder / f"{name}.parquet") for name in ("table", "asked"))
    began = time.process_time()
    told: dict[str, Any] = {}
    if job["peer"] == "LightGBM":
        parts = [*boosted(job, table, asked, told)]
    else:
        parts = [*locally(job, table, asked)]
    pd.concat(parts).to_parquet(folder / "forecasts.parquet", index=False)
    told |= {"cpu_seconds": round(time.process_time() - began, 1), "version": version_of(job["peer"])}
    (folder / "told.json").write_text(json.dumps(told) + "\n")


def version_of(peer: str) -> str:
    """The packages behind a forecaster, with their versions."""
    from importlib.metadata import version

    names = {"LightGBM": ("mlforecast", "lightgbm"), "flaircast": ("flaircast",)}.get(peer, ("statsforecast",))
    return ", ".join(f"{name} {version(name)}" for name in names)


def locally(job: dict[str, Any], table: pd.DataFrame, asked: pd.DataFrame) -> Iterator[pd.DataFrame]:
    """Window by window: a model of one series, fitted on its values up to the origin."""
    of_series = {name: (part["ds"].to_numpy(), part["y"].to_numpy(float)) for name, part in table.groupby("unique_id")}
    forecast = flaircast_of(job) if job["peer"] == "flaircast" else statsforecast_of(job)
    for name, origin in asked.itertuples(index=False):
        times, values = of_series[name]
        known = values[: np.searchsorted(times, np.datetime64(origin), side="right")]
        yhat, quantiles = forecast(known)
        yield frame_of(name, origin, yhat, quantiles)


def frame_of(name: str, origin: pd.Timestamp, yhat: np.ndarray, quantiles: np.ndarray) -> pd.DataFrame:
    """The rows of one window."""
    head = {"unique_id": name, "origin": origin, "step": np.arange(1, len(yhat) + 1), "yhat": yhat}
    return pd.DataFrame(head | {f"q{level:g}": quantiles[:, number] for number, level in enumerate(LEVELS)})


def statsforecast_of(job: dict[str, Any]) -> Callable[[np.ndarray], Forecast]:
    """A model of statsforecast with its own settings, but for the season."""
    from statsforecast.models import MSTL, AutoARIMA, AutoETS, AutoTheta

    season, horizon, peer = job["season"], job["horizon"], job["peer"]
    seasons, least = HISTORY[peer]
    longest = max(least, seasons * season)
    weekly = [season, 7 * season] if season == 24 else [season]

    def forecast(known: np.ndarray) -> Forecast:
        seen = known[-longest:]
        kinds = {"AutoARIMA": AutoARIMA, "AutoETS": AutoETS, "AutoTheta": AutoTheta}
        if peer == "MSTL":  # one season less than two of it cannot be told from a trend
            lengths = [each for each in weekly if each > 1 and len(seen) >= 2 * each + 1]
            model = MSTL(season_length=lengths) if lengths else AutoETS(season_length=1)
        else:
            model = kinds[peer](season_length=season if len(seen) >= 2 * season + 1 else 1)
        found = model.forecast(y=seen, h=horizon, level=[*SIDES])
        low = [found[f"lo-{side}"] for side in SIDES]
        high = [found[f"hi-{side}"] for side in reversed(SIDES)]
        return np.asarray(found["mean"]), np.stack([*low, found["mean"], *high], axis=1)

    return forecast


def flaircast_of(job: dict[str, Any]) -> Callable[[np.ndarray], Forecast]:
    """flaircast with its own settings."""
    from flaircast import forecast as flair

    def forecast(known: np.ndarray) -> Forecast:
        paths = np.asarray(flair(known, horizon=job["horizon"], freq=ALIASES[job["step"]], n_samples=SAMPLES, seed=0))
        return paths.mean(axis=0), np.quantile(paths, LEVELS, axis=0).T

    return forecast


def boosted(
    job: dict[str, Any], table: pd.DataFrame, asked: pd.DataFrame, told: dict[str, Any]
) -> Iterator[pd.DataFrame]:
    """mlforecast with LightGBM on the lags of the lookback, the calendar and `job["known"]`, columns of the table that
    are known ahead. Series come in units of their training deviation.

    The candidate of least error on the validation part is fitted again on that too. Quantiles are those of the
    validation errors by step.
    """
    times = np.sort(table["ds"].unique())
    until = times[times <= np.datetime64(job["fit_until"])]
    train_until = min(np.datetime64(job["train_until"]), until[-job["horizon"] - 1])
    mean, scale = level_and_scale(table[table["ds"] <= train_until])
    table = table.assign(y=(table["y"] - table["unique_id"].map(mean)) / table["unique_id"].map(scale))
    training, fitting = table[table["ds"] <= train_until], table[table["ds"] <= until[-1]]
    inside = until[until >= train_until][: -job["horizon"]]
    inside = inside[:: job.get("stride", 1)]
    windows = inside[np.unique(np.linspace(0, len(inside) - 1, job.get("validated", VALIDATED)).round().astype(int))]
    asked_then = pd.MultiIndex.from_product([training["unique_id"].unique(), windows], names=["unique_id", "origin"])
    validated = asked_then.to_frame(index=False)
    tried = []
    for candidate in CANDIDATES:
        found = predicted(job, fitted(job, training, candidate), fitting, validated)
        errors = np.stack([future_of(fitting, name, origin, job["horizon"]) - yhat for name, origin, yhat in found])
        tried.append((float(np.abs(errors).mean()), candidate, errors))
    _, candidate, errors = min(tried, key=lambda each: each[0])
    told |= {"chosen": candidate, "tried": [round(each[0], 4) for each in tried]}
    spread = np.quantile(errors, LEVELS, axis=0).T  # [H, 9]
    for fit_until, part in batches(job, asked, until[-1]):
        model = fitted(job, table[table["ds"] <= fit_until], candidate)
        for name, origin, yhat in predicted(job, model, table, part):
            values = mean[name] + scale[name] * yhat
            yield frame_of(name, origin, values, values[:, None] + spread * scale[name])


def level_and_scale(training: pd.DataFrame) -> tuple[pd.Series, pd.Series]:
    """Mean and deviation of each series, by name; 1 for a constant one."""
    of_series = training.groupby("unique_id")["y"]
    return of_series.mean(), of_series.std(ddof=0).replace(0.0, 1.0)


def batches(
    job: dict[str, Any], asked: pd.DataFrame, fit_until: np.datetime64
) -> Iterator[tuple[np.datetime64, pd.DataFrame]]:
    """Up to when a model is fitted, and the windows that it forecasts: one fit or, with `job["refit_days"]`, one every
    so many days of what is asked.
    """
    if not job.get("refit_days"):
        yield fit_until, asked
        return
    number = (asked["origin"] - asked["origin"].min()) // pd.Timedelta(days=job["refit_days"])
    for _, part in asked.groupby(number):
        yield part["origin"].min().to_datetime64(), part


def fitted(job: dict[str, Any], rows: pd.DataFrame, candidate: tuple[int, dict[str, Any]]) -> Any:
    """An MLForecast on some rows."""
    from lightgbm import LGBMRegressor
    from mlforecast import MLForecast
    from mlforecast.target_transforms import Differences

    difference, settings = candidate
    features = {"h": ["hour", "dayofweek"], "D": ["dayofweek", "month"], "W": ["month"]}.get(job["step"], [])
    forecaster = MLForecast(
        models={"yhat": LGBMRegressor(**settings, random_state=0, n_jobs=1, verbosity=-1)},
        freq=job["freq"],
        lags=[*range(1, job["lookback"] + 1)],
        date_features=[] if job["dateless"] else features,
        target_transforms=[Differences([1])] if difference else [],
    )
    most = max(MAX_ROWS // rows["unique_id"].nunique(), job["lookback"] + 3)
    return forecaster.fit(rows.groupby("unique_id").tail(most), static_features=[])


def predicted(
    job: dict[str, Any], model: Any, table: pd.DataFrame, asked: pd.DataFrame
) -> list[tuple[str, pd.Timestamp, np.ndarray]]:
    """Series, origin and forecast [H] of every window, in units of the table. All windows are forecast at once, each as
    a series of its own that ends at its origin.
    """
    known, horizon, past, ahead = job.get("known", []), job["horizon"], [], []
    rows = dict(iter(table.groupby("unique_id")))
    windows = [*asked[["unique_id", "origin"]].itertuples(index=False)]
    for number, (name, origin) in enumerate(windows):
        whole = rows[name]
        at = int(np.searchsorted(whole["ds"].to_numpy(), np.datetime64(origin), side="right"))
        past.append(whole.iloc[max(0, at - job["lookback"] - 2) : at].assign(unique_id=f"{number:06d}"))
        ahead.append(whole.iloc[at : at + horizon].assign(unique_id=f"{number:06d}"))
    more = {"X_df": pd.concat(ahead)[["unique_id", "ds", *known]]} if known else {}
    said = model.predict(h=horizon, new_df=pd.concat(past)[["unique_id", "ds", "y", *known]], **more)
    values = said.sort_values(["unique_id", "ds"])["yhat"].to_numpy().reshape(len(windows), horizon)
    return [(name, origin, yhat) for (name, origin), yhat in zip(windows, values, strict=True)]


def future_of(table: pd.DataFrame, name: str, origin: pd.Timestamp, horizon: int) -> np.ndarray:
    """What came, [H], in units of the table."""
    rows = table[(table["unique_id"] == name) & (table["ds"] > origin)]
    return np.asarray(rows["y"].to_numpy()[:horizon])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
