"""Normal equations of a linear map, as things that can be added and subtracted.

A map from z [L] to f [H] fitted by squares needs of the windows only

    gram = sum z z^T,     cross = sum z f^T,     square = sum f^2,     num

So the equations of a block of time, of a group of series, or of everything but those, are sums and differences of
others; the error of *any* map over any of them is known without reading a window again; and what has happened since
is one more term.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Self

import numpy as np

from forecaster.retrieval.batches import Fill
from memory_index.windows import cut

CHUNK = 4096  # windows handled at once


@dataclass(frozen=True, kw_only=True, slots=True)
class NormalEquations:
    """Of some windows. gram: float64 [L, L]. cross: [L, H]. square: [H]. num: windows, or the sum of their weights."""

    gram: np.ndarray
    cross: np.ndarray
    square: np.ndarray
    num: float

    @classmethod
    def empty(cls, lookback: int, horizon: int) -> Self:
        """Those of no window."""
        return cls(
            gram=np.zeros((lookback, lookback)),
            cross=np.zeros((lookback, horizon)),
            square=np.zeros(horizon),
            num=0.0,
        )

    @classmethod
    def of(cls, z: np.ndarray, future: np.ndarray, weight: np.ndarray | None = None) -> Self:
        """Those of windows z [n, L] and futures [n, H], NaN where missing; weight: [n], default 1.

        The sums of a step are over the windows whose future has it, scaled up to all of them: one decomposition of
        `gram` then serves every step, as if what is missing were like what is known.
        """
        if (missing := np.isnan(future)).any():
            counted = np.ones(len(z)) if weight is None else weight
            known = counted @ ~missing
            share = np.where(known > 0, counted.sum() / np.where(known > 0, known, 1), 0.0)
            complete = cls.of(z, np.where(missing, 0.0, future), weight)
            return replace(complete, cross=complete.cross * share, square=complete.square * share)
        weighted = z if weight is None else z * weight[:, None]
        squared = np.square(future) if weight is None else np.square(future) * weight[:, None]
        return cls(
            gram=weighted.T @ z,
            cross=weighted.T @ future,
            square=squared.sum(axis=0),
            num=float(len(z) if weight is None else weight.sum()),
        )

    def __add__(self, other: Self) -> Self:
        return self._with(other, 1.0)

    def __sub__(self, other: Self) -> Self:
        return self._with(other, -1.0)

    def scaled(self, factor: float) -> Self:
        """As if each window counted so many times as much."""
        nothing = type(self).empty(*self.cross.shape)
        return nothing._with(self, factor)

    def _with(self, other: Self, sign: float) -> Self:
        return type(self)(
            gram=self.gram + sign * other.gram,
            cross=self.cross + sign * other.cross,
            square=self.square + sign * other.square,
            num=self.num + sign * other.num,
        )

    def squared_error(self, weight: np.ndarray) -> float:
        """`sum |f - z W|^2` over the windows, for a map W [L, H]."""
        moved = self.gram @ weight
        return float(self.square.sum() - 2 * (weight * self.cross).sum() + (weight * moved).sum())

    def solve(self, penalty: float, prior: np.ndarray | None = None, lookback: int | None = None) -> np.ndarray:
        """`argmin_W mean |f - z W|^2 + penalty |W - prior|^2`, float64 [L, H].

        prior: [L, H], default 0. lookback: only the last so many rows may differ from the prior, default all.
        """
        start = np.zeros_like(self.cross) if prior is None else prior
        return next(ridge_path(self, {"": start}, lookback or len(self.gram), [penalty])).weight


class Solution(NamedTuple):
    """A map W [L, H], the name of its prior, and its penalty."""

    prior: str
    penalty: float
    weight: np.ndarray


def ridge_path(
    equations: NormalEquations, priors: Mapping[str, np.ndarray], lookback: int, penalties: Sequence[float]
) -> Iterator[Solution]:
    """`NormalEquations.solve` for every prior and penalty, with one decomposition for all of them."""
    last, num = slice(len(equations.gram) - lookback, None), max(equations.num, 1.0)
    values, vectors = np.linalg.eigh(equations.gram[last, last] / num)
    values = np.maximum(values, 0)  # which rounding makes negative
    for name, prior in priors.items():
        left = vectors.T @ (equations.cross[last] - equations.gram[last] @ prior) / num
        for penalty in penalties:
            weight = prior.copy()
            weight[last] += vectors @ (left / (values + penalty)[:, None])
            yield Solution(name, penalty, weight)


class Normalised(NamedTuple):
    """Windows in their own location and spread, float64. z: [n, L]. future: [n, H]. spread: [n], raw units."""

    z: np.ndarray
    future: np.ndarray
    spread: np.ndarray


def normalised(
    values: np.ndarray,
    position: np.ndarray,
    unit: np.ndarray,
    *,
    lookback: int,
    horizon: int,
    floor: float,
    fill: Fill | None = None,
) -> Normalised:
    """Windows as `patching.instance_norm` has them.

    values: float [T], all series end to end. position: int64 [n], of each window's last context step in `values`.
    unit: [n], the training standard deviation of each window's series; floor: least spread in those. fill: of missing
    cells in contexts; default, the window is all that it looks at. Missing cells of futures are NaN.
    """
    context = (fill or Fill(lookback, None)).contexts(values, position, lookback).astype(np.float64)
    location = context.mean(axis=1, keepdims=True)
    spread = np.maximum(context.std(axis=1, keepdims=True), floor * unit[:, None].astype(np.float64))
    future = cut(values, position + 1, horizon)
    return Normalised((context - location) / spread, (future - location) / spread, spread[:, 0])
