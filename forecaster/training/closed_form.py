"""What is fitted without a gradient, on training windows only: trend thresholds and linear map, then the value gate.

Between the two the networks are trained, if there are any: the gate judges their out-of-fold forecasts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from forecaster.config import Config
from forecaster.model.model import ForecastModel
from forecaster.model.patching import instance_norm
from forecaster.model.shortcut import LinearShortcut
from forecaster.model.tapr import fit_thresholds, trend_change
from forecaster.retrieval.batches import CachedWindows
from forecaster.retrieval.folds import lay_folds
from forecaster.training.fit_gate import Evidence, GateFit, fit_value_gate
from forecaster.training.linear_maps import FittedMaps, MapChoice, Windows, fit_maps
from forecaster.training.normal_equations import NormalEquations
from forecaster.training.weighing import weights_of
from memory_index.tables.series import SeriesTable

CHUNK = 4096  # windows handled at once where thresholds are fitted


@dataclass(frozen=True, kw_only=True, slots=True)
class ClosedForm:
    """How the closed form was chosen; None for what there is not.

    equations, evidence: what map and gate were fitted to, from which they can go on (`growth/`).
    """

    linear_map: MapChoice | None
    gate: GateFit | None
    equations: NormalEquations | None = None
    evidence: Evidence | None = None

    def to_dict(self) -> dict[str, Any]:
        """In terms of JSON."""
        return {
            "linear_map": None if self.linear_map is None else self.linear_map.to_dict(),
            "gate": None if self.gate is None else self.gate.to_dict(),
        }


def fit_closed_form(
    model: ForecastModel, training: CachedWindows, table: SeriesTable, config: Config, *, made_do: bool = False
) -> ClosedForm:
    """Fit it. table: of the training windows, which know how they are held out. made_do: see `choose_gate`.

    The gate of a model with networks waits for them (`fit_value_gate`).
    """
    maps = gate = evidence = None
    if model.thresholds is not None:
        change = torch.cat([_change(training, start, config) for start in range(0, len(training), CHUNK)])
        thresholds = fit_thresholds(change)
        for network in model.of_folds:
            if network.tapr is not None:
                network.tapr.thresholds.copy_(thresholds)
    if model.shortcut is not None:
        maps = _fit_shortcut(model.shortcut, training, table, config)
    if not len(model.networks):
        gate, evidence = fit_value_gate(model, training, config.train.gate_shrinkage, made_do=made_do)
    if maps is None:
        return ClosedForm(linear_map=None, gate=gate)
    return ClosedForm(linear_map=maps.choice, gate=gate, equations=maps.equations, evidence=evidence)


def admitted_windows(training: CachedWindows, table: SeriesTable) -> np.ndarray:
    """Which windows the network of each fold may be trained on: bool [n, F]."""
    times = np.concatenate([series.times for series in table.series])[training.position]
    folds = lay_folds(training.folds, times, training.series)
    return np.stack(
        [folds.admitted(number, times, training.series, table.step) for number in range(training.folds.num)], axis=1
    )


def _fit_shortcut(
    shortcut: LinearShortcut,
    training: CachedWindows,
    table: SeriesTable,
    config: Config,
) -> FittedMaps:
    """The linear map, on all training windows and for each fold on the others."""
    settings = config.model
    times = np.concatenate([series.times for series in table.series])[training.position]
    fitted = fit_maps(
        Windows(
            values=training.values,
            position=training.position,
            unit=training.unit,
            times=times,
            series=training.series,
            weight=weights_of(training),
            folds=lay_folds(training.folds, times, training.series),
            fill=training.fill,
            step=table.step,
        ),
        lookback=settings.lookback,
        horizon=settings.horizon,
        floor=settings.spread_floor,
        season=settings.season,
        penalty=settings.ridge,
    )
    shortcut.set_weights(fitted.weight, fitted.fold_weights)
    return fitted


def _change(training: CachedWindows, start: int, config: Config) -> Tensor:
    """`trend_change` of the training windows from `start` on, without reading their neighbours."""
    chosen = slice(start, start + CHUNK)
    context, future = torch.from_numpy(training.contexts(chosen)), torch.from_numpy(training.futures(chosen))
    unit = torch.from_numpy(training.unit[start : start + CHUNK])
    return trend_change(context, future, instance_norm(context, unit, config.model.spread_floor)[1])
