"""The error of every mix of parts as one matrix per step of the horizon, and the mix that is best by it.

What windows and parts there are, how a fit is held and whether its mix is kept is told in `fit_gate.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

MAX_ITERATIONS = 100
FLAT, STUCK = 1e-10, 1e12  # a gradient that is none; a damping at which no step is one


class Quadratic(NamedTuple):
    """The error of every mix over n windows that have the same parts.

    there: bool [P]. matrix: float64 [S, P, P], sum of e e^T over them, 0 for a part that is not there. num: n, or the
    sum of their weights.
    """

    there: Tensor
    matrix: Tensor
    num: float

    def at(self, steps: np.ndarray) -> Quadratic:
        """At some of the steps."""
        return Quadratic(self.there, self.matrix[torch.from_numpy(steps)], self.num)

    def scaled(self, factor: float) -> Quadratic:
        """As if each window counted so many times as much."""
        return Quadratic(self.there, factor * self.matrix, factor * self.num)


def fit_logits(quadratics: Sequence[Quadratic], prior: Tensor, held: Tensor, hats: Tensor) -> Tensor:
    """Logits [P, knots], float64: Newton's method from the prior, damped as Levenberg and Marquardt do.

    prior: shares, float64 [P]. held: penalties, float64 [P]. hats: float64 [knots, S], at the steps of the matrices.
    (Not an optimizer of torch: loading one takes longer than all of this.)
    """
    start = prior.log()[:, None]
    moved = torch.zeros(len(prior), len(hats), dtype=torch.float64)
    together = _together(quadratics)
    scale = mean_error(together, start.expand(-1, hats.shape[1])) if together else 0.0
    if not scale:
        return start.expand(-1, len(hats)).clone()  # the prior is right already, as on a constant table
    damping, unit = 1e-3, torch.eye(moved.numel(), dtype=torch.float64)

    def value_of(each: Tensor) -> float:
        return mean_error(together, (start + each) @ hats) / scale + float((held @ each.square()).mean())

    value = value_of(moved)
    for _ in range(MAX_ITERATIONS):
        slope, curve = _derivatives(together, (start + moved) @ hats, hats, scale)
        slope = slope + 2 * (held[:, None] * moved).ravel() / len(hats)
        curve = curve + torch.diag(2 * held.repeat_interleave(len(hats)) / len(hats))
        if float(slope.abs().max()) < FLAT:
            break
        while damping < STUCK:
            tried = moved - torch.linalg.solve(curve + damping * unit, slope).view_as(moved)
            if (reached := value_of(tried)) < value:
                break
            damping *= 10
        else:
            break
        moved, value, damping = tried, reached, max(damping / 10, 1e-9)
    return start + moved


def _derivatives(quadratics: Sequence[Quadratic], logits: Tensor, hats: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Gradient [P knots] and Hessian of the mean squared error of logits [P, S], in units of `scale`, by the knots'.

    With w the softmax, g = 2 G w and v = w (g - w.g): the gradient by a step's logits is v, and the Hessian
    D 2 G D + diag(v) - v w^T - w v^T, where D = diag(w) - w w^T.
    """
    num, steps = sum(each.num for each in quadratics), logits.shape[1]
    slope, curve = torch.zeros(steps, len(logits)).double(), torch.zeros(steps, len(logits), len(logits)).double()
    for each in quadratics:
        w = torch.softmax(logits.masked_fill(~each.there[:, None], -torch.inf), dim=0).T  # [S, P]
        g = 2 * (each.matrix @ w[..., None])[..., 0]
        v = w * (g - (w * g).sum(dim=1, keepdim=True))
        d = torch.diag_embed(w) - w[:, :, None] * w[:, None]
        crossed = v[:, :, None] * w[:, None]
        slope += v
        curve += d @ (2 * each.matrix) @ d + torch.diag_embed(v) - crossed - crossed.transpose(1, 2)
    count, size = max(num, 1) * steps * scale, len(logits) * len(hats)
    by_knot = torch.einsum("spq,ks,ls->pkql", curve, hats, hats).reshape(size, size)
    return (slope.T @ hats.T).ravel() / count, by_knot / count


def _together(quadratics: Sequence[Quadratic]) -> list[Quadratic]:
    """Those that have the same parts as one."""
    sums: dict[bytes, Quadratic] = {}
    for each in quadratics:
        key = each.there.numpy().tobytes()
        before = sums.get(key)
        sums[key] = (
            each if before is None else Quadratic(each.there, before.matrix + each.matrix, before.num + each.num)
        )
    return list(sums.values())


def _mean_error_of(quadratics: Sequence[Quadratic], logits: Tensor) -> Tensor:
    """The mean squared error of the mix of logits [P, S] over all windows: a number that has a gradient."""
    num, total = sum(each.num for each in quadratics), torch.zeros((), dtype=torch.float64)
    for each in quadratics:
        weights = torch.softmax(logits.masked_fill(~each.there[:, None], -torch.inf), dim=0).T[..., None]  # [S, P, 1]
        total = total + (each.matrix @ weights * weights).sum(dim=1).mean()
    return total / max(num, 1)


def mean_error(quadratics: Sequence[Quadratic], logits: Tensor) -> float:
    """The mean squared error of the mix of logits [P, S] over all windows."""
    return float(_mean_error_of(quadratics, logits))
