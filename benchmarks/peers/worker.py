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
HISTORY = {"AutoARIMA": (8, 192), "AutoETS": (42, 1000), "AutoTheta": (42, 1000), "MSTL": (84, 2000)}
ALIASES = {"h": "H", "D": "D", "W": "W"}
CANDIDATES = (
    {"num_leaves": 31, "n_estimators": 100, "learning_rate": 0.05},
    {"num_leaves": 31, "n_estimators": 300, "learning_rate": 0.05},
    {"num_leaves": 7, "n_estimators": 100, "learning_rate": 0.1},
    {"num_leaves": 7, "n_estimators": 300, "learning_rate": 0.1},
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
    """mlforecast with LightGBM on the lags of the lookback, hour and weekday, each series divided by its deviation.

    The candidate of least scaled error on the validation part is fitted again on that too. Quantiles are those of the
    validation errors by step, in deviations of the series.
    """
    times = np.sort(table["ds"].unique())
    until = times[times <= np.datetime64(job["fit_until"])]
    train_until = min(np.datetime64(job["train_until"]), until[-job["horizon"] - 1])
    training, fitting = table[table["ds"] <= train_until], table[table["ds"] <= until[-1]]
    scale = training.groupby("unique_id")["y"].std().replace(0.0, 1.0).fillna(1.0)
    inside = until[until >= train_until][: -job["horizon"]]
    windows = inside[np.unique(np.linspace(0, len(inside) - 1, VALIDATED).round().astype(int))]
    tried = []
    for candidate in CANDIDATES:
        model = fitted(job, training, candidate)
        errors = scaled_errors(job, model, fitting, windows, scale)
        tried.append((float(np.abs(errors).mean()), candidate, errors))
    best, candidate, errors = min(tried, key=lambda each: each[0])
    told |= {"chosen": candidate, "tried": [round(each[0], 4) for each in tried], "val_error": best}
    spread = np.quantile(errors, LEVELS, axis=0).T  # [H, 9], in deviations
    model = fitted(job, fitting, candidate)
    for origin, part in asked.groupby("origin"):
        yhat = predicted(job, model, table, origin, part["unique_id"])
        for name, values in yhat.items():
            yield frame_of(name, origin, values, values[:, None] + spread * scale[name])


def fitted(job: dict[str, Any], rows: pd.DataFrame, candidate: dict[str, Any]) -> Any:
    """An MLForecast on some rows."""
    from lightgbm import LGBMRegressor
    from mlforecast import MLForecast
    from mlforecast.target_transforms import LocalStandardScaler

    model = LGBMRegressor(**candidate, random_state=0, n_jobs=1, verbosity=-1, min_child_samples=20)
    features = {"h": ["hour", "dayofweek"], "D": ["dayofweek", "month"], "W": ["month"]}[job["step"]]
    forecaster = MLForecast(
        models={"yhat": model},
        freq=job["freq"],
        lags=[*range(1, job["lookback"] + 1)],
        date_features=[] if job["dateless"] else features,
        target_transforms=[LocalStandardScaler()],
    )
    return forecaster.fit(rows, static_features=[])


def scaled_errors(
    job: dict[str, Any], model: Any, known: pd.DataFrame, origins: np.ndarray, scale: pd.Series
) -> np.ndarray:
    """Errors of every series at every origin in its deviations, [windows, H]."""
    found = []
    rows = {name: part.set_index("ds")["y"] for name, part in known.groupby("unique_id")}
    for origin in origins:
        for name, yhat in predicted(job, model, known, origin, pd.Series([*rows])).items():
            actual = rows[name][rows[name].index > origin].to_numpy()[: job["horizon"]]
            found.append((actual - yhat) / scale[name])
    return np.array(found)


def predicted(
    job: dict[str, Any], model: Any, table: pd.DataFrame, origin: pd.Timestamp, names: pd.Series
) -> dict[str, np.ndarray]:
    """What a fitted MLForecast says at an origin of some series, [H] by name."""
    seen = table[(table["ds"] <= origin) & table["unique_id"].isin(names)][["unique_id", "ds", "y"]]
    seen = seen.groupby("unique_id").tail(job["lookback"] + 1)
    said = model.predict(h=job["horizon"], new_df=seen)
    return {name: part["yhat"].to_numpy() for name, part in said.groupby("unique_id")}


if __name__ == "__main__":
    main(Path(sys.argv[1]))
