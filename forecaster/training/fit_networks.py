"""The networks as a part of the mix: what they are trained to do, and how the gate judges them afterwards.

One network for each fold, all trained side by side in one training: each learns from the windows that are not in its
fold nor near it, so that its forecasts of its own fold are as fair as a forecast of the future. None of it is stopped
or chosen by a held-out window or by validation: the number of epochs is fixed, and the last weights count. Where the
network is the whole forecast there is one, and validation stops it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator

from forecaster.config import Config
from forecaster.model.losses import LossParts, forecast_error, total_loss
from forecaster.model.model import ForecastModel
from forecaster.model.types import Batch
from forecaster.retrieval.batches import CachedWindows
from forecaster.runs.weights import WEIGHTS, load_into, publish_weights, read_weights
from forecaster.training.closed_form import ClosedForm
from forecaster.training.fit_gate import fit_value_gate
from forecaster.training.train import TrainResult


def batch_loss(model: ForecastModel, batch: Batch, config: Config, aux_weight: float) -> LossParts:
    """The losses of one batch: in training of every network on the windows that it may learn from, else of what is
    forecast, or of the networks' mean where the gate that mixes it is not fitted yet.
    """
    if not (model.training and len(model.networks)):
        output = model(batch.context, batch.neighbours, unit=batch.unit, fold=batch.fold)
        forecast = output.networks.mean(dim=1) if len(model.networks) else output.forecast
        mse = forecast_error(forecast, batch.future, batch.unit)
        return LossParts(total=mse, mse=mse, trend=torch.zeros_like(mse), retrieval=torch.zeros_like(mse))
    sums = torch.zeros(len(LossParts._fields), device=batch.context.device)
    for number in range(len(model.networks)):
        mine = batch
        if batch.admitted is not None:
            mine = batch.take(torch.nonzero(batch.admitted[:, number])[:, 0])
        if len(mine):
            output, spread = model.of_network(number, mine)
            losses = total_loss(output, mine, model.thresholds, spread, config.train, aux_weight)
            sums = sums + torch.stack(losses) * (len(mine) / len(batch))
    return LossParts(*(sums / max(1, len(model.networks) - 1)))  # each window serves all networks but one


def with_gate(
    model: ForecastModel,
    training: CachedWindows,
    validation: CachedWindows,
    config: Config,
    closed_form: ClosedForm,
    result: TrainResult,
    folder: Path,
    accelerator: Accelerator,
    *,
    made_do: bool = False,
) -> tuple[ClosedForm, TrainResult]:
    """Fit the gate of a model whose networks are trained, and make all of it the weights of the run.

    made_do: see `choose_gate`.
    """
    gate, _ = fit_value_gate(model, training, config.train.gate_shrinkage, made_do=made_do)
    closed_form = dataclasses.replace(closed_form, gate=gate)
    val_mse = mean_error(model, validation, config)
    if accelerator.is_main_process:
        publish_weights(folder, model.state_dict(), step=result.steps, val_mse=val_mse)
    accelerator.wait_for_everyone()
    load_into(model, read_weights(folder)[0], where=folder / WEIGHTS)
    return closed_form, dataclasses.replace(result, best_val_mse=val_mse)


@torch.no_grad()
def mean_error(model: ForecastModel, windows: CachedWindows, config: Config) -> float:
    """MSE of a model's forecasts of some windows, standardised."""
    model.eval()
    device, total = next(model.parameters()).device, 0.0
    for start in range(0, len(windows), config.train.batch_size):
        rows = np.arange(start, min(len(windows), start + config.train.batch_size))
        batch = windows.batch(rows).to(device)
        output = model(batch.context, batch.neighbours, unit=batch.unit, fold=batch.fold)
        total += float(forecast_error(output.forecast, batch.future, batch.unit)) * len(rows)
    return total / len(windows)
