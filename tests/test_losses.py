"""Losses against numbers worked out by hand, and at the edges where logarithms end."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from forecaster.config import TrainConfig
from forecaster.model.losses import expected_magnitude, forecast_error, retrieval_loss, total_loss, trend_loss
from forecaster.model.types import Batch, GatingOutput, ModelOutput, NeighbourTensors, TrendOutput

L, H, D, K = 6, 2, 3, 2
THRESHOLDS = torch.tensor([-2.0, -1.0, 0.0, 1.0, 2.0])


def trend(direction: Tensor, magnitude: Tensor) -> TrendOutput:
    b = len(direction)
    return TrendOutput(direction, magnitude, forecast=torch.zeros(b, H), embedding=torch.zeros(b, D))


def gate_of(gate: Tensor, confidence: Tensor | None = None) -> GatingOutput:
    b = len(gate)
    confidence = torch.zeros(b) if confidence is None else confidence
    zeros = torch.zeros(b, K)
    return GatingOutput(context=torch.zeros(b, D), gate=gate, match=zeros, weights=zeros, confidence=confidence)


def output_of(forecast: Tensor, trend: TrendOutput | None = None, gating: GatingOutput | None = None) -> ModelOutput:
    b = len(forecast)
    return ModelOutput(
        forecast=forecast,
        model_part=forecast,
        memory_part=forecast,
        gate=torch.ones(b, H),
        weights=torch.ones(b, 1, H),
        bases=forecast[:, None],
        networks=torch.zeros(b, 0, H),
        location=torch.zeros(b),
        spread=torch.ones(b),
        trend=trend,
        gating=gating,
    )


def batch_of(future: Tensor, *, unit: Tensor | None = None, valid: Tensor | None = None) -> Batch:
    """Windows that were last seen at 0."""
    b = len(future)
    neighbours = None
    if valid is not None:
        neighbours = NeighbourTensors(
            forecasts=torch.zeros(b, 1, H),
            found=torch.ones(b, 1, dtype=torch.bool),
            contexts=torch.zeros(b, K, L),
            futures=torch.zeros(b, K, H),
            similarity=torch.zeros(b, K),
            valid=valid,
        )
    unit = torch.ones(b) if unit is None else unit
    return Batch(context=torch.zeros(b, L), future=future, unit=unit, neighbours=neighbours)


def entropy(gate: float) -> float:
    return -sum(p * math.log(p) for p in (gate, 1 - gate) if p > 0)


# The error of the forecast


def test_errors_are_counted_in_the_unit_of_each_series() -> None:
    forecast, future = torch.tensor([[3.0, 0.0], [100.0, 50.0]]), torch.tensor([[1.0, 1.0], [50.0, 50.0]])
    assert forecast_error(forecast, future, torch.tensor([2.0, 50.0])) == pytest.approx((1 + 0.25 + 1 + 0) / 4)


# L_trend


@pytest.mark.parametrize(
    ("probability", "expected"),
    [
        ((1, 0, 0), (0.5, 0.5, 0, 0)),
        ((0, 1, 0), (0, 0.5, 0.5, 0)),
        ((0, 0, 1), (0, 0, 0.5, 0.5)),
        ((1 / 3, 1 / 3, 1 / 3), (1 / 6, 1 / 3, 1 / 3, 1 / 6)),
        ((0.5, 0.3, 0.2), (0.25, 0.4, 0.25, 0.1)),
    ],
)
def test_magnitudes_expected_of_directions(probability: tuple[float, ...], expected: tuple[float, ...]) -> None:
    logarithm = torch.tensor([probability]).log()
    np.testing.assert_allclose(expected_magnitude(logarithm).exp()[0], expected, rtol=1e-6, atol=1e-12)


@given(st.lists(st.floats(-20, 20, width=32), min_size=3, max_size=3))
def test_expected_magnitudes_are_a_distribution(logits: list[float]) -> None:
    expected = expected_magnitude(torch.tensor([logits]).log_softmax(dim=-1)).exp()
    assert expected.sum() == pytest.approx(1, abs=1e-5)


def test_the_trend_loss_by_hand() -> None:
    direction, magnitude = torch.tensor([[0.5, 0.3, 0.2]]), torch.tensor([[0.1, 0.2, 0.3, 0.4]])
    loss = trend_loss(trend(direction.log(), magnitude.log()), torch.tensor([2]), torch.tensor([3]))
    divergence = sum(p * math.log(p / q) for p, q in zip((0.1, 0.2, 0.3, 0.4), (0.25, 0.4, 0.25, 0.1), strict=True))
    assert loss == pytest.approx(-math.log(0.2) - math.log(0.4) + divergence, rel=1e-5)


def test_a_consistent_head_pays_nothing_for_consistency() -> None:
    direction = torch.tensor([[0.5, 0.3, 0.2], [0.98, 0.01, 0.01]]).log()
    consistent = trend(direction, expected_magnitude(direction) + 3)  # logits may be shifted
    taught = -(
        direction[0, 0] + expected_magnitude(direction)[0, 1] + direction[1, 1] + expected_magnitude(direction)[1, 2]
    )
    loss = trend_loss(consistent, torch.tensor([0, 1]), torch.tensor([1, 2]))
    assert loss == pytest.approx(float(taught) / 2, rel=1e-5)


def test_contradiction_costs_more_than_agreement() -> None:
    up = torch.tensor([[4.0, 0.0, 0.0]])
    label = (torch.tensor([0]), torch.tensor([1]))
    agrees = trend_loss(trend(up, torch.tensor([[4.0, 4.0, 0.0, 0.0]])), *label)
    contradicts = trend_loss(trend(up, torch.tensor([[0.0, 4.0, 0.0, 4.0]])), *label)  # the same chance of weak up
    assert contradicts > agrees + 1


def test_certainty_costs_no_nan() -> None:
    direction = torch.tensor([[1e4, 0.0, -1e4], [-300.0, 300.0, 0.0]], requires_grad=True)
    magnitude = torch.tensor([[-1e4, 0.0, 0.0, 1e4], [0.0, 0.0, 0.0, 0.0]], requires_grad=True)
    loss = trend_loss(trend(direction, magnitude), torch.tensor([2, 0]), torch.tensor([0, 3]))
    loss.backward()
    assert loss.isfinite()
    assert direction.grad.isfinite().all()
    assert magnitude.grad.isfinite().all()


# L_ret


@pytest.mark.parametrize("gate_pull", [1, -1])
def test_the_retrieval_loss_by_hand(gate_pull: int) -> None:
    gating = gate_of(torch.tensor([0.5, 0.9, 0.2]), torch.tensor([1.0, 0.5, 0.25]))
    loss = retrieval_loss(gating, torch.ones(3, dtype=torch.bool), lambda_ref=2.0, gate_pull=gate_pull)
    pull = gate_pull * 2.0 * (0 * 1.0 + 0.4 * 0.5 + 0.3 * 0.25)
    assert loss == pytest.approx((pull - 0.01 * sum(map(entropy, (0.5, 0.9, 0.2)))) / 3, rel=1e-5)


@pytest.mark.parametrize(("gate_pull", "towards"), [(1, -1.0), (-1, 1.0)])
def test_which_way_a_confident_gate_is_pulled(gate_pull: int, towards: float) -> None:
    gate = torch.tensor([0.8], requires_grad=True)
    gating = gate_of(gate, torch.ones(1))
    retrieval_loss(gating, torch.ones(1, dtype=torch.bool), lambda_ref=1.0, gate_pull=gate_pull).backward()
    assert -gate.grad.sign() == towards  # the way that a step of descent goes


@pytest.mark.parametrize("value", [0.0, 1.0, 1e-30, 1 - 2**-24])
@pytest.mark.parametrize("found", [True, False])
def test_a_gate_at_its_end_costs_no_nan(value: float, found: bool) -> None:
    gate = torch.tensor([value, 0.5], requires_grad=True)
    gating = gate_of(gate, torch.ones(2))
    loss = retrieval_loss(gating, torch.tensor([found, True]), lambda_ref=1.0, gate_pull=1)
    loss.backward()
    assert loss.item() == pytest.approx((found * 0.5 - 0.01 * math.log(2)) / 2, abs=1e-6)
    assert gate.grad.isfinite().all()
    assert (gate.grad[0] != 0) == found


def test_windows_without_neighbours_do_not_count() -> None:
    found, options = torch.tensor([True, False]), {"lambda_ref": 1.0, "gate_pull": 1}
    losses = [
        retrieval_loss(gate_of(torch.tensor([0.7, gate]), torch.tensor([0.5, confidence])), found, **options)
        for gate, confidence in ((1.0, 0.0), (0.1, 0.9))
    ]
    assert losses[0] == losses[1]
    assert retrieval_loss(gate_of(torch.ones(2)), torch.zeros(2, dtype=torch.bool), **options) == 0


# All together


def everything(valid: Tensor) -> tuple[ModelOutput, Batch]:
    generator = torch.Generator().manual_seed(0)
    b = len(valid)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, requires_grad=True)

    gating = gate_of(torch.rand(b, generator=generator), torch.rand(b, generator=generator))
    output = output_of(normal(b, H), trend(normal(b, 3), normal(b, 4)), gating)
    return output, batch_of(torch.randn(b, H, generator=generator), unit=torch.linspace(1, 2, b), valid=valid)


def test_the_total_is_the_weighted_sum_of_its_parts() -> None:
    output, batch = everything(torch.tensor([[True, False], [False, False], [True, True]]))
    config = TrainConfig(lambda_trend=0.3, lambda_retrieval=0.7)
    for aux_weight in (0.0, 0.25, 1.0):
        loss = total_loss(output, batch, THRESHOLDS, torch.ones(3), config, aux_weight)
        assert loss.mse == forecast_error(output.forecast, batch.future, batch.unit)
        expected = loss.mse + aux_weight * (0.3 * loss.trend + 0.7 * loss.retrieval)
        assert loss.total.item() == pytest.approx(expected.item(), rel=1e-6)
        assert loss.trend > 0
        assert loss.retrieval != 0


def test_labels_are_in_spreads_of_the_window() -> None:
    # Changes 3 and -1.5 in raw units; at a spread of 6 and 1, that is weak up of the flat third, and weak down.
    output = output_of(torch.zeros(2, H), trend(torch.eye(3)[:2] * 5, torch.eye(4)[:2] * 5))
    batch = batch_of(torch.tensor([[2.0, 4.0], [-1.0, -2.0]]))
    loss = total_loss(output, batch, THRESHOLDS, torch.tensor([6.0, 1.0]), TrainConfig(), 1.0)
    assert loss.trend == trend_loss(output.trend, torch.tensor([1, 2]), torch.tensor([1, 2]))


def test_parts_of_modules_that_are_off_are_zero() -> None:
    output, batch = everything(torch.ones(4, K, dtype=torch.bool))
    bare = total_loss(output._replace(trend=None, gating=None), batch, None, torch.ones(4), TrainConfig(), 1.0)
    assert bare.trend == bare.retrieval == 0
    assert bare.total == bare.mse
    full = total_loss(output, batch, THRESHOLDS, torch.ones(4), TrainConfig(), 1.0)
    assert (
        total_loss(output._replace(gating=None), batch, THRESHOLDS, torch.ones(4), TrainConfig(), 1.0).trend
        == full.trend
    )
    assert (
        total_loss(output._replace(trend=None), batch, None, torch.ones(4), TrainConfig(), 1.0).retrieval
        == full.retrieval
    )


def test_a_batch_split_in_two_has_the_same_loss() -> None:
    valid = torch.tensor([[True, True], [True, False], [False, False], [False, False]])  # neighbours in one half only
    output, batch = everything(valid)

    def half(part: slice) -> Tensor:
        piece = output._replace(
            forecast=output.forecast[part],
            trend=TrendOutput(*(field[part] for field in output.trend)),
            gating=GatingOutput(*(field[part] for field in output.gating)),
        )
        return total_loss(piece, batch.take(part), THRESHOLDS, torch.ones(2), TrainConfig(), 1.0).total

    whole = total_loss(output, batch, THRESHOLDS, torch.ones(4), TrainConfig(), 1.0).total
    torch.testing.assert_close((half(slice(2)) + half(slice(2, 4))) / 2, whole)


def test_losses_are_float32_whatever_the_network_ran_in() -> None:
    output, batch = everything(torch.ones(4, K, dtype=torch.bool))
    low = TrendOutput(*(part.bfloat16() for part in output.trend))
    rounded = output._replace(trend=TrendOutput(*(part.float() for part in low)))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = total_loss(output._replace(trend=low), batch, THRESHOLDS, torch.ones(4), TrainConfig(), 1.0)
    assert {part.dtype for part in loss} == {torch.float32}
    exact = total_loss(rounded, batch, THRESHOLDS, torch.ones(4), TrainConfig(), 1.0)
    for part, expected in zip(loss, exact, strict=True):
        torch.testing.assert_close(part, expected)
