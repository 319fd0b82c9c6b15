"""Transforms of values: windows may be compared, averaged and mixed in other units than raw ones.

A version carries its transform. Raw units come in (tables, queries) and go out (forecasts, quantiles, neighbours for
people); in between everything is in units of the transform, fills and spreads included. Its numbers come from the
training part alone. Without one nothing is computed: raw units are the units inside, bit for bit.

    asinh   asinh((x - center) / width)   center: median, width: 1.4826 times the median absolute deviation; where that
                                          is 0 the standard deviation, and 1 where that is 0 too
    log1p   log(1 + x)                    only for values above -1

Beyond the least and the largest training value (log1p: the largest) both go on straight, with the slope that they have
there: a forecast that overshoots inside would otherwise come back exponentially too large.

asinh by median and MAD: Uniejewski, Weron and Ziel, *Variance stabilizing transformations for electricity spot price
forecasting*, IEEE Transactions on Power Systems 2018.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

from memory_index.errors import DataError, UsageError

Kind = Literal["none", "asinh", "log1p"]
KINDS: tuple[Kind, ...] = get_args(Kind)
AUTO = "auto"
MAD_TO_DEVIATION = 1.4826  # of a normal distribution
LARGEST = float(np.finfo(np.float32).max)  # what comes out stays within float32
ALL_WHOLE = 2.0**24  # from here on every float32 is a whole number, which tells nothing
LEAST = -1 + 1e-9  # of log1p, whose forecasts end there
BLOCK = 1 << 20  # values transformed at once


class Curve(NamedTuple):
    """A transform with the numbers of some series: float64, any shape; values have that and more axes behind it.

    low, high: values between which it is curved, in units of `(x - center) / width`.
    """

    kind: Kind
    center: np.ndarray
    width: np.ndarray
    low: np.ndarray
    high: np.ndarray

    def forward(self, values: np.ndarray) -> np.ndarray:
        """From raw units, float32 or float64; NaN stays NaN."""
        if self.kind == "none":
            return values
        center, width, low, high = self._beside(values)
        x = (values - center) / width
        inner = np.clip(x, low, high)
        if self.kind == "log1p":
            result = np.log1p(inner) + (x - inner) / (1 + inner)
        else:
            result = np.arcsinh(inner) + (x - inner) / np.sqrt(1 + np.square(inner))
        return result.astype(values.dtype)

    def inverse(self, values: np.ndarray) -> np.ndarray:
        """Back to raw units."""
        if self.kind == "none":
            return values
        center, width, low, high = self._beside(values)
        curved = np.log1p if self.kind == "log1p" else np.arcsinh
        inner = np.clip(values, curved(low), curved(high))  # float64: the bounds are
        if self.kind == "log1p":
            x = np.expm1(inner) + (values - inner) * np.exp(inner)
        else:
            x = np.sinh(inner) + (values - inner) * np.cosh(inner)
        return np.clip(center + width * x, -LARGEST, LARGEST).astype(values.dtype)

    def take(self, chosen: Any) -> Curve:
        """Of some of the series."""
        return Curve(self.kind, *(part[chosen] for part in self[1:]))

    def _beside(self, values: np.ndarray) -> tuple[np.ndarray, ...]:
        more = (1,) * (values.ndim - self.center.ndim)
        return tuple(part.reshape(part.shape + more) for part in self[1:])


@dataclass(frozen=True, kw_only=True)
class Transform:
    """The transform of a version; numbers of its N_v series, all of them empty for `none`.

    center, width: see above. low, high: least and largest training value in units of `(x - center) / width`. unit: raw
    training standard deviation, in which errors are counted whatever the transform.
    """

    kind: Kind = "none"
    center: tuple[float, ...] = ()
    width: tuple[float, ...] = ()
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()
    unit: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UsageError(f"unknown transform '{self.kind}'", hint=f"choose {', '.join(KINDS)} or {AUTO}")

    def __bool__(self) -> bool:
        return self.kind != "none"

    @cached_property
    def curves(self) -> Curve:
        """With the numbers of all series, [N_v]."""
        return Curve(self.kind, *(np.array(getattr(self, name)) for name in ("center", "width", "low", "high")))

    def of_queries(self, series: np.ndarray, context: np.ndarray) -> Curve:
        """Of queries, [B, N]. series: int [N]; context: float32 [B, N, L], raw units.

        A series that the version has never seen (-1) takes the numbers of its own context.
        """
        shape, new = context.shape[:2], series < 0
        if not self:
            return Curve(self.kind, *[np.zeros(shape)] * 4)
        curve = self.curves.take(np.maximum(series, 0))
        curve = Curve(self.kind, *(np.array(np.broadcast_to(part, shape)) for part in curve[1:]))
        if new.any():
            for ours, theirs in zip(curve[1:], fit_curve(self.kind, context[:, new])[1:], strict=True):
                ours[:, new] = theirs
        return curve

    def of_values(self, values: np.ndarray, offset: np.ndarray) -> np.ndarray:
        """All series of the version end to end, float32 [T], which begin at `offset`, from raw units."""
        if not self:
            return values
        result = np.empty_like(values)
        for start in range(0, len(values), BLOCK):
            part = slice(start, min(start + BLOCK, len(values)))
            number = np.searchsorted(offset, np.arange(part.start, part.stop), side="right") - 1
            result[part] = self.curves.take(number).forward(values[part])
        return result


NO_TRANSFORM = Transform()


def out_of_domain(where: str) -> DataError:
    """The error that a value has no logarithm. where: which cell, and what it is."""
    return DataError(
        f"{where}, but log1p needs values above -1",
        hint="build with --transform asinh or none, or mark what is no value: --missing",
    )


def transform_from_json(document: dict[str, Any]) -> Transform:
    """As a manifest has it. Raises `ValueError` or `TypeError`."""
    numbers = {name: tuple(float(each) for each in value) for name, value in document.items() if name != "kind"}
    return Transform(**{**document, **numbers})


def fit_curve(kind: Kind, values: np.ndarray) -> Curve:
    """The numbers of series whose values are given along the last axis, NaN where missing; as of one 0 without any."""
    values = values.astype(np.float64)
    values = np.where(np.isnan(values).all(axis=-1, keepdims=True), 0.0, values)
    if kind == "log1p":
        shape = values.shape[:-1]
        return Curve(kind, np.zeros(shape), np.ones(shape), np.full(shape, LEAST), np.nanmax(values, axis=-1))
    center = np.nanmedian(values, axis=-1)
    width = MAD_TO_DEVIATION * np.nanmedian(np.abs(values - center[..., None]), axis=-1)
    width = np.where(width > 0, width, np.nanstd(values, axis=-1))
    width = np.where(width > 0, width, 1.0)
    low, high = (np.nanmin(values, axis=-1) - center) / width, (np.nanmax(values, axis=-1) - center) / width
    return Curve(kind, center, width, low, high)


def may_count(values: np.ndarray) -> np.ndarray:
    """bool: values that counts can have, whole numbers that are not below zero; or missing."""
    return np.isnan(values) | ((values >= 0) & (values < ALL_WHOLE) & (values == np.floor(values)))
