"""The value gate in closed form: no step of a gradient, no seed, seconds.

Its weights are the same for every window, so the mean squared error of its mix depends on the training windows through
one matrix per step of the horizon only,

    mean (sum_p w_p e_p)^2 = w^T G w,     G = mean e e^T,     e_p = error of part p,     sum_p w_p = 1

and so the windows are read once. What is minimised is that, relative to the parts' mean error, plus a penalty on how
far the logits are from those of half linear map, half memory: the weights that fit one stretch of time best do not fit
the next one, and validation cannot tell by itself (docs/experiments.md). The last value is free: only the data can
tell whether a series repeats at all. The parts of training windows are cross-fitted (`cross_fit.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from forecaster.model.model import ForecastModel
from forecaster.model.patching import instance_norm
from forecaster.retrieval.batches import CachedWindows
from memory_index.windows import cut

CHUNK = 2048  # windows read at once
NUM_STEPS = 96  # of the horizon that are looked at, at most: the weights are linear between their knots
LEAST_SHARE = 0.05  # of the last value before anything is fitted


class Quadratic(NamedTuple):
    """The error of every mix over n windows that have the same parts.

    there: bool [P]. matrix: float64 [S, P, P], sum of e e^T over them, 0 for a part that is not there. num: n.
    """

    there: Tensor
    matrix: Tensor
    num: int


def fit_value_gate(model: ForecastModel, training: CachedWindows, penalty: float) -> None:
    """Fit the gate of a model whose shortcut is fitted, and hold it fixed.

    penalty: of the squared distance of a logit from its prior, relative to the mean error of the parts.
    """
    gate, num_spaces = model.value_gate, len(training.spaces) if training.condensed is not None else 0
    steps = horizon_steps(training.config.horizon)
    prior, free = prior_shares([name == "linear" for name in model.base_names], num_spaces)
    logits = fit_logits(_quadratics(model, training, steps), prior, free, gate.hats[:, steps].double(), penalty)
    with torch.no_grad():
        gate.logits.copy_(logits)
    gate.logits.requires_grad_(False)


def horizon_steps(horizon: int) -> np.ndarray:
    """Steps of the horizon that are looked at, int64, spread evenly."""
    return np.unique(np.linspace(0, horizon - 1, NUM_STEPS).round().astype(np.int64))


def prior_shares(is_linear: Sequence[bool], num_spaces: int) -> tuple[Tensor, Tensor]:
    """What each part has before anything is fitted, float64 [M + V], and which of them no penalty holds there, bool.

    is_linear: of the M bases. Linear maps share a half, key spaces the other.
    """
    linear = torch.tensor(is_linear)
    of_bases = torch.where(linear, 0.5 / max(1, int(linear.sum())), LEAST_SHARE)
    shares = torch.cat([of_bases.double(), torch.full((num_spaces,), 0.5 / max(1, num_spaces), dtype=torch.float64)])
    return shares, torch.cat([~linear, torch.zeros(num_spaces, dtype=torch.bool)])


def fit_logits(quadratics: Sequence[Quadratic], prior: Tensor, free: Tensor, hats: Tensor, penalty: float) -> Tensor:
    """Logits [P, knots], float64: L-BFGS from the prior.

    prior: shares, float64 [P]. free: bool [P]. hats: float64 [knots, S], at the steps of the matrices.
    """
    start = prior.log()[:, None]
    moved = torch.zeros(len(prior), len(hats), dtype=torch.float64, requires_grad=True)
    held = torch.where(free, 0.0, penalty)[:, None]
    num = sum(each.num for each in quadratics)
    error = sum(float(each.matrix.diagonal(dim1=1, dim2=2).sum()) for each in quadratics)
    if not error:
        return start.expand(-1, len(hats)).clone()  # every mix is right, as on a constant table
    scale = error / (num * len(prior) * hats.shape[1])
    optimizer = torch.optim.LBFGS([moved], max_iter=100, line_search_fn="strong_wolfe", tolerance_grad=1e-9)

    def loss() -> Tensor:
        optimizer.zero_grad()
        logits = (start + moved) @ hats  # [P, S]
        value = (held * moved.square()).sum(dim=0).mean()
        for each in quadratics:
            weights = torch.softmax(logits.masked_fill(~each.there[:, None], -torch.inf), dim=0).T[
                ..., None
            ]  # [S, P, 1]
            value = value + (each.matrix @ weights * weights).sum(dim=1).mean() / (num * scale)
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimizer.step(loss)  # type: ignore[no-untyped-call]
    return (start + moved).detach()


def add_errors(errors: Tensor, there: Tensor, sums: dict[bytes, Quadratic]) -> None:
    """Add windows to the sums of those that have the same parts.

    errors: float32 [n, P, S], 0 for a part that is not there. there: bool [n, P].
    """
    kinds, kind = torch.unique(there, dim=0, return_inverse=True)
    for number, each in enumerate(kinds):
        chosen = errors[kind == number].permute(2, 1, 0)  # [S, P, n]
        matrix = torch.matmul(chosen, chosen.transpose(1, 2)).double()
        key = each.numpy().tobytes()
        before = sums.get(key, Quadratic(each, torch.zeros_like(matrix), 0))
        sums[key] = Quadratic(each, before.matrix + matrix, before.num + chosen.shape[2])


@torch.no_grad()
def _quadratics(model: ForecastModel, training: CachedWindows, steps: np.ndarray) -> list[Quadratic]:
    """The errors of the parts over all training windows, in standardised units."""
    config = training.config
    sums: dict[bytes, Quadratic] = {}
    for first in range(0, len(training), CHUNK):
        chosen = slice(first, first + CHUNK)
        position, unit = training.position[chosen], torch.from_numpy(training.unit[chosen])
        context = torch.from_numpy(cut(training.values, position - config.lookback + 1, config.lookback))
        future = torch.from_numpy(cut(training.values, position + 1, config.horizon)[:, steps])
        location, spread = instance_norm(context, unit, config.spread_floor)
        fold = None if training.fold is None else torch.from_numpy(training.fold[chosen])
        parts = model.bases((context - location[:, None]) / spread[:, None], fold)[:, :, steps]
        parts = parts * spread[:, None, None] + location[:, None, None]
        there = torch.ones(parts.shape[:2], dtype=torch.bool)
        if training.condensed is not None:
            forecasts = torch.from_numpy(training.condensed.forecasts[chosen][..., steps])
            parts = torch.cat([parts, forecasts], dim=1)
            there = torch.cat([there, torch.from_numpy(np.array(training.condensed.found[chosen]))], dim=1)
        errors = (parts - future[:, None]) / unit[:, None, None]
        add_errors(torch.where(there[..., None], errors, 0.0), there, sums)
    return list(sums.values())
