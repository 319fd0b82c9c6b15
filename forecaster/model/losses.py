"""What training minimises: the forecast's error, L_trend of TAPR and L_ret of GRA-M (docs/method.md).

All of it is computed in float32, whatever precision the network ran in. Every loss is a mean over the B windows of
a batch, those to which it does not apply counting as zero: a step that is split over processes or accumulated
from several smaller batches then has the same loss as one that is not. How the weight of the auxiliary losses rises is
in `schedule.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from forecaster.bounds import at_least
from forecaster.errors import ConfigError
from forecaster.model.tapr import labels, trend_change
from forecaster.model.types import Batch, GatingOutput, ModelOutput, NetworkOutput, TrendOutput

ENTROPY_WEIGHT = 0.01
GATE_MARGIN = 1e-6  # a gate of exactly 0 or 1 has an entropy, but no finite gradient of it

# Magnitudes (strong up, weak up, weak down, strong down) expected of each direction (up, flat, down).
EXPECTED_MAGNITUDE = ((0.5, 0.5, 0.0, 0.0), (0.0, 0.5, 0.5, 0.0), (0.0, 0.0, 0.5, 0.5))


@dataclass(frozen=True, kw_only=True)
class LossSettings:
    """Weights of the auxiliary losses of the network.

    lambda_dir, lambda_mag, lambda_hcl: of the three terms of L_trend. gate_pull: sign of the confident-gate term of
    L_ret; +1 pulls a confident gate towards 0.5, -1 away from it.
    """

    lambda_trend: float = 0.1
    lambda_retrieval: float = 0.1
    lambda_ref: float = 1.0
    lambda_dir: float = 1.0
    lambda_mag: float = 1.0
    lambda_hcl: float = 1.0
    gate_pull: int = 1

    def __post_init__(self) -> None:
        at_least(self, 0, "lambda_trend", "lambda_retrieval", "lambda_ref", "lambda_dir", "lambda_mag", "lambda_hcl")
        if self.gate_pull not in (-1, 1):
            raise ConfigError(f"gate_pull is {self.gate_pull}, but must be 1 or -1")


class LossParts(NamedTuple):
    """The loss and what it is made of, float32 scalars: `total = mse + aux_weight * (lambda_trend * trend +
    lambda_retrieval * retrieval)`. A part whose module is switched off is 0.
    """

    total: Tensor
    mse: Tensor
    trend: Tensor
    retrieval: Tensor


def total_loss(
    output: ModelOutput | NetworkOutput,
    batch: Batch,
    thresholds: Tensor | None,
    spread: Tensor,
    config: LossSettings,
    aux_weight: float,
) -> LossParts:
    """The loss of a batch whose future is known.

    thresholds: [5], of the trend labels; needed where the model has TAPR. spread: [B], raw units, by which the model
    standardised the windows. aux_weight: 0 to 1, how far the auxiliary losses have warmed up.
    """
    mse = forecast_error(output.forecast, batch.future, batch.unit)
    trend = retrieval = torch.zeros_like(mse)
    if output.trend is not None:
        assert thresholds is not None, "a model with TAPR has thresholds"
        change = trend_change(batch.context, batch.future, spread)
        shares = (config.lambda_dir, config.lambda_mag, config.lambda_hcl)
        trend = trend_loss(output.trend, *labels(change, thresholds), shares=shares)
    if output.gating is not None:
        assert batch.neighbours is not None, "a model with GRA-M is given neighbours"
        found = batch.neighbours.valid.any(dim=1)
        retrieval = retrieval_loss(output.gating, found, lambda_ref=config.lambda_ref, gate_pull=config.gate_pull)
    auxiliary = config.lambda_trend * trend + config.lambda_retrieval * retrieval
    return LossParts(total=mse + aux_weight * auxiliary, mse=mse, trend=trend, retrieval=retrieval)


def forecast_error(forecast: Tensor, future: Tensor, unit: Tensor) -> Tensor:
    """Mean square of `(forecast - future) / unit`: every series counts the same. [B, H], [B, H], [B] -> scalar.

    A missing step (NaN) counts as zero: its window then weighs by what is known of it.
    """
    error = (forecast.float() - future) / unit[:, None]
    return error.where(~future.isnan(), 0.0).square().mean()


def trend_loss(
    trend: TrendOutput,
    direction: Tensor,
    magnitude: Tensor,
    *,
    shares: tuple[float, float, float] = (1.0, 1.0, 1.0),
) -> Tensor:
    """`L_trend = l_dir CE(direction) + l_mag CE(magnitude) + l_hcl KL(p(magnitude) || magnitudes expected of
    p(direction))`, a scalar. shares: the three l.

    direction, magnitude: int64 [B], labels of `forecaster.model.tapr.labels`. The last term is the hierarchical
    consistency: a head that says up and strong down contradicts itself.
    """
    direction_logits, magnitude_logits = trend.direction.float(), trend.magnitude.float()
    l_dir, l_mag, l_hcl = shares
    taught = l_dir * functional.cross_entropy(direction_logits, direction)
    taught = taught + l_mag * functional.cross_entropy(magnitude_logits, magnitude)
    said = magnitude_logits.log_softmax(dim=-1)  # [B, 4]
    expected = expected_magnitude(direction_logits.log_softmax(dim=-1))
    return taught + l_hcl * (said.exp() * (said - expected)).sum(dim=-1).mean()


def expected_magnitude(direction: Tensor) -> Tensor:
    """Log probabilities of the magnitudes that directions make expected: [B, 3], log probabilities -> [B, 4].

    `EXPECTED_MAGNITUDE` mixed by p(direction); in logarithms, in which a probability of 10^-50 is still a number.
    """
    table = torch.tensor(EXPECTED_MAGNITUDE, device=direction.device).log()  # [3, 4], -inf where nothing is expected
    return (direction[:, :, None] + table).logsumexp(dim=1)


def retrieval_loss(gating: GatingOutput, found: Tensor, *, lambda_ref: float, gate_pull: int) -> Tensor:
    """`L_ret = -0.01 * entropy(gate) + gate_pull * lambda_ref * |gate - 0.5| * confidence`, a scalar.

    found: bool [B]; windows without any neighbour count as zero, their gate is not a choice. gate_pull: +1, as the
    method has it, pulls the gate of confident retrieval towards 0.5 (neither side may be ignored); -1 pushes it away.
    The entropy, in nats, is that of a coin that shows "trust the model" with probability `gate`.
    """
    gate = gating.gate.float()
    pull = gate_pull * lambda_ref * (gate - 0.5).abs() * gating.confidence.float()
    inner = gate.clamp(GATE_MARGIN, 1 - GATE_MARGIN)
    entropy = -(inner * inner.log() + (1 - inner) * (1 - inner).log())
    return (pull - ENTROPY_WEIGHT * entropy).where(found, 0.0).mean()
