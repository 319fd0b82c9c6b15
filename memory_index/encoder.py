"""From windows to keys: the dual key (shape + value), its forecast-aware metric, views and scopes.

See docs/method.md. A key is a row of numbers whose Euclidean distance to another key is the dual distance

    d^2 = w * d_shape^2 + (1 - w) * d_value^2.

Shape part: the window of a view after instance normalisation, z, under the metric
`|dz|^2 / view + f^2 * |ridge(dz)|^2 / H` (two windows are near when they look alike *and* point the same
way), reduced by a PCA. Value part: what normalisation removed, in units of the training split. Where a version has
covariates, ridge reads them too, and a third part, condition, tells how the known ones of the horizon differ.
Encoding is independent of batching, bit for bit: every product has the same fixed shape. This file does
not search and does not know files; fitting is `fit_encoder.py`.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass, field, replace
from typing import Any, NamedTuple, Protocol

import numpy as np

from memory_index.covariate_map import CovariateLayout, CovariateWindows
from memory_index.errors import UsageError
from memory_index.products import project
from memory_index.scaling import SeriesScale, WindowStatistics, units_of, window_statistics
from memory_index.types import KeySpace, Scope

BUILT_IN = "dual"  # the kind of `DualKeyEncoder`
NUM_VALUES = 5  # numbers of the value part of one series: location, spread, max, min, last - first
CONDITION_WEIGHT = 1.0  # default, see `EncoderConfig`


@dataclass(frozen=True, kw_only=True, slots=True)
class EncoderConfig:
    """Settings of the dual key. The defaults were chosen once for all data sets (docs/experiments.md).

    views: how many last steps each key space compares. shape_weight: w of docs/method.md. shape_width: PCA
    dimensions of the shape part of one series. joint_width: width of a joint key (d_repr). forecast_weight:
    f above; 0 switches the forecast-aware metric off. ridge: penalty relative to the mean square of z.
    spread_floor: least spread of a window, relative to its series' training standard deviation. flat_below:
    windows below this spread (same unit) are flat, and match flat windows only. condition_weight: how much the known
    covariates of the horizon count beside the shape, as f for the forecast; of no effect without any.
    """

    views: tuple[int, ...] = (96, 168, 336)
    shape_weight: float = 0.9
    shape_width: int = 48
    joint_width: int = 128
    forecast_weight: float = 3.0
    ridge: float = 0.01
    spread_floor: float = 0.3
    flat_below: float = 0.01
    condition_weight: float = CONDITION_WEIGHT

    def __post_init__(self) -> None:
        for name, above, most in (("shape_weight", 0.0, 1.0), ("spread_floor", 0.0, math.inf)):
            if not above < getattr(self, name) <= most:
                bounds = "above 0" + (f" and at most {most:g}" if math.isfinite(most) else "")
                raise UsageError(f"{name} is {getattr(self, name):g}, but must be {bounds}")

    def key_width(self, space: KeySpace, num_series: int, condition_width: int = 0) -> int:
        """Numbers of a key of a table of so many series. condition_width: of its condition part."""
        shape = min(self.shape_width, space.view)
        if space.scope != "joint":
            return shape + (NUM_VALUES if space.scope == "own" else 0) + condition_width
        value = min(self.joint_width // 8, NUM_VALUES * num_series)
        return value + min(self.joint_width - value, shape * num_series) + condition_width

    def to_dict(self) -> dict[str, Any]:
        """The settings in terms of JSON, by name; those that came later only where they are not at their default."""
        settings = asdict(self) | {"views": list(self.views)}
        if self.condition_weight == CONDITION_WEIGHT:
            del settings["condition_weight"]
        return settings


def default_views(lookback: int) -> tuple[int, ...]:
    """The default views that fit a lookback, or the whole lookback where none does."""
    return tuple(view for view in EncoderConfig().views if view <= lookback) or (lookback,)


class Encoded(NamedTuple):
    """Keys of B moments of N series under one view, and the statistics that normalised them.

    keys: float32, `own` and `pooled` [B, N, E], `joint` [B, E]. statistics: of each window, [B, N].
    """

    keys: dict[Scope, np.ndarray]
    statistics: WindowStatistics


class KeyEncoder(Protocol):
    """Turns windows into keys. A version carries its encoder; a mismatch is an error."""

    @property
    def config(self) -> EncoderConfig:
        """The settings that keys were made with; a search reads the shape weight from it."""
        ...

    @property
    def scale(self) -> SeriesScale:
        """The training scale of each series of the version, float64 [N_v]."""
        ...

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """Everything fitted but the scale, by name: the version stores it, and the encoder is made of it again."""
        ...

    @property
    def covariates(self) -> CovariateLayout | None:
        """The covariates that windows are encoded with; None without any."""
        ...

    @property
    def fingerprint(self) -> str:
        """Hash of everything that decides a key."""
        ...

    def describe(self) -> dict[str, Any]:
        """What the manifest says of it, in terms of JSON: `kind`, `settings` (the config's), `fingerprint`, more."""
        ...

    def encode(
        self,
        view: int,
        context: np.ndarray,
        series: np.ndarray,
        scopes: tuple[Scope, ...],
        covariates: np.ndarray | None = None,
    ) -> Encoded:
        """context: [B, N, L], units of the transform; series: int [N], number in the version, -1 for an unseen one.

        covariates: of the same windows, `key_numbers` [B, N, R]; None for a version without any.
        """
        ...

    def key_numbers(self, view: int, covariates: CovariateWindows) -> np.ndarray:
        """What keys of a view read of covariates of windows [...]: float32 [..., R]."""
        ...

    def num_key_numbers(self, view: int) -> int:
        """R."""
        ...

    def value_width(self, space: KeySpace) -> int:
        """How many numbers of a key are its value part, which comes last but for the condition part."""
        ...

    def linear_map(self, view: int) -> np.ndarray:
        """From a normalised window of a view, and the P numbers of its covariates, to its normalised future, fitted in
        closed form: float32 [view + P, H].
        """
        ...

    def linear_forecast(
        self, view: int, context: np.ndarray, series: np.ndarray, covariates: CovariateWindows | None = None
    ) -> np.ndarray:
        """A linear baseline: context [B, N, L] -> float32 [B, N, H], units of the transform; else as in `encode`."""
        ...


@dataclass(frozen=True, kw_only=True)
class DualKeyEncoder:
    """The built-in encoder: closed-form, torch-free. N_v series of the version, D = shape_width, P numbers of
    covariates, of which keys read R: r that the forecast of the map is made of, and their condition part.

    arrays (float32), by name: `own-VIEW` [N_v, view + r, D], `pooled-VIEW` [view + r, D], `joint-VIEW`
    [N_j * D, E_shape], `joint-value-VIEW` [N_j * 5, E_value], `ridge-VIEW` [view + P, H], `beside-VIEW` [P, R];
    a scope that the version does not have has no arrays. With covariates also what its maps go on from
    (`growing_maps.py`), some of it in whole numbers.
    """

    config: EncoderConfig
    horizon: int
    scale: SeriesScale
    arrays: dict[str, np.ndarray] = field(repr=False)
    covariates: CovariateLayout | None = None

    @property
    def fingerprint(self) -> str:
        """sha256, hexadecimal, of the settings, every array, the training scale and the units of covariates."""
        digest = hashlib.sha256(json.dumps(self.config.to_dict(), sort_keys=True).encode())
        if self.covariates is not None:
            digest.update(json.dumps([column.to_document() for column in self.covariates.columns]).encode())
        for name in sorted(self.arrays):
            digest.update(name.encode() + np.ascontiguousarray(self.arrays[name]).tobytes())
        digest.update(np.stack(self.scale).tobytes())
        return digest.hexdigest()

    def describe(self) -> dict[str, Any]:
        """See `KeyEncoder.describe`."""
        return {"kind": BUILT_IN, "settings": self.config.to_dict(), "fingerprint": self.fingerprint}

    def value_width(self, space: KeySpace) -> int:
        """See `KeyEncoder.value_width`."""
        if space.scope == "pooled":
            return 0  # an unseen series has no training level to compare with
        return NUM_VALUES if space.scope == "own" else self.arrays[f"joint-value-{space.view}"].shape[1]

    def encode(
        self,
        view: int,
        context: np.ndarray,
        series: np.ndarray,
        scopes: tuple[Scope, ...],
        covariates: np.ndarray | None = None,
    ) -> Encoded:
        """See `KeyEncoder.encode`. `joint` needs the series of the joint group, in its order."""
        x, windows, statistics = self.compared(view, context, series, covariates)
        w = self.config.shape_weight
        keys: dict[Scope, list[np.ndarray]] = {}
        if "pooled" in scopes:
            keys["pooled"] = [project(x, self.arrays[f"pooled-{view}"])]
        if "own" in scopes or "joint" in scopes:
            shape = self.own_shape(view, x, series)
            value = self.value_part(windows, statistics, series)
            if "own" in scopes:
                keys["own"] = [np.sqrt(w) * shape, np.sqrt(1 - w) * value]
            if "joint" in scopes:
                keys["joint"] = [joint_key(self.arrays, view, shape, value, shape_weight=w)]
        if self.covariates is not None and covariates is not None and self.covariates.condition_width:
            condition = covariates[..., -self.covariates.condition_width :].astype(np.float64)
            for scope, parts in keys.items():  # what all series of a moment have in common is the condition of that
                parts.append(condition.mean(axis=1) if scope == "joint" else condition)
        whole = {
            scope: (parts[0] if len(parts) == 1 else np.concatenate(parts, axis=-1)).astype(np.float32)
            for scope, parts in keys.items()
        }
        return Encoded(keys=whole, statistics=statistics)

    def key_numbers(self, view: int, covariates: CovariateWindows) -> np.ndarray:
        """See `KeyEncoder.key_numbers`."""
        assert self.covariates is not None, "it has a layout"
        lead = covariates.near.shape[:-2]
        numbers = np.empty((*lead, self.covariates.width), dtype=np.float32)
        self.covariates.numbers(covariates, view, np.ones(lead, dtype=np.float32), numbers)
        return project(numbers, self._beside(view)).astype(np.float32)

    def num_key_numbers(self, view: int) -> int:
        """See `KeyEncoder.num_key_numbers`."""
        return self._beside(view).shape[1]

    def _beside(self, view: int) -> np.ndarray:
        """float32 [P, R]. Keys of versions of an earlier program read all P numbers, and `condition-VIEW` [numbers of
        the horizon, condition width].
        """
        if (found := self.arrays.get(f"beside-{view}")) is not None:
            return found
        assert self.covariates is not None, "it has a layout"
        condition = self.arrays[f"condition-{view}"]
        earlier = np.zeros((self.covariates.width - len(condition), condition.shape[1]), dtype=np.float32)
        every = np.eye(self.covariates.width, dtype=np.float32)
        return np.concatenate([every, np.concatenate([earlier, condition])], axis=1)

    def compared(
        self, view: int, context: np.ndarray, series: np.ndarray, covariates: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray, WindowStatistics]:
        """What the shape part is made of, float64 [B, N, view + r]: windows in their own location and spread, and what
        the map makes of the covariates, by their `key_numbers`, in the same units. Beside it the windows and their
        statistics.
        """
        num = 0
        if self.covariates is not None and covariates is not None:
            num = covariates.shape[-1] - self.covariates.condition_width
        x, windows, statistics = self._standard(view, context, series, num)
        if covariates is not None and num:
            unit = units_of(self.scale.std, series, context) / statistics.spread
            np.multiply(covariates[..., :num], unit[..., None], out=x[..., view:])
        return x, windows, statistics

    def explanatory(
        self, view: int, context: np.ndarray, series: np.ndarray, covariates: CovariateWindows | None
    ) -> tuple[np.ndarray, np.ndarray, WindowStatistics]:
        """What the linear map reads, float64 [B, N, view + P]: windows in their own location and spread, and the
        numbers of their covariates, whose effect is in the target's units: in training units times the deviation of the
        series, divided by the window's spread as the window itself is. Beside it the windows [B, N, view] and their
        statistics.
        """
        num = 0 if self.covariates is None or covariates is None else self.covariates.width
        x, windows, statistics = self._standard(view, context, series, num)
        if self.covariates is not None and covariates is not None:
            unit = units_of(self.scale.std, series, context) / statistics.spread
            self.covariates.numbers(covariates, view, unit, x[..., view:])
        return x, windows, statistics

    def _standard(
        self, view: int, context: np.ndarray, series: np.ndarray, num: int
    ) -> tuple[np.ndarray, np.ndarray, WindowStatistics]:
        """Windows in their own location and spread, with room for `num` more numbers: float64 [B, N, view + num]."""
        windows = context[..., -view:].astype(np.float64, order="C")
        statistics = self.statistics(windows, context, series)
        x = np.empty((*windows.shape[:-1], view + num))
        np.subtract(windows, statistics.location[..., None], out=x[..., :view])
        x[..., :view] /= statistics.spread[..., None]
        return x, windows, statistics

    def statistics(self, windows: np.ndarray, context: np.ndarray, series: np.ndarray) -> WindowStatistics:
        """Location, spread and flatness of windows [B, N, view]; floors follow the training scale of the series.

        For an unseen series (number -1) the standard deviation of its whole context takes that place.
        """
        unit = units_of(self.scale.std, series, context)
        return window_statistics(
            windows, floor=self.config.spread_floor * unit, flat_below=self.config.flat_below * unit
        )

    def own_shape(self, view: int, x: np.ndarray, series: np.ndarray) -> np.ndarray:
        """x [B, N, view + r] -> each series' own PCA of it, float64 [B, N, D], whose distance is d_shape."""
        projection = self.arrays[f"own-{view}"]
        return np.stack([project(x[:, n], projection[s]) for n, s in enumerate(series)], axis=1)

    def value_part(self, windows: np.ndarray, statistics: WindowStatistics, series: np.ndarray) -> np.ndarray:
        """Windows [B, N, view] -> float64 [B, N, 5] in training-split units, whose distance is d_value."""
        mean, std = self.scale.mean[series], self.scale.std[series]
        parts = [
            statistics.location - mean,
            statistics.spread,
            windows.max(axis=-1) - mean,
            windows.min(axis=-1) - mean,
        ]
        parts.append(windows[..., -1] - windows[..., 0])
        return np.stack([part / std for part in parts], axis=-1) / np.sqrt(NUM_VALUES)

    def without_keys(self) -> DualKeyEncoder:
        """Scale and linear maps alone, which are small: it makes linear forecasts, and no key."""
        makes_keys = ("own-", "pooled-", "joint-", "beside-", "condition-")
        return replace(self, arrays={name: a for name, a in self.arrays.items() if not name.startswith(makes_keys)})

    def linear_map(self, view: int) -> np.ndarray:
        """See `KeyEncoder.linear_map`."""
        return self.arrays[f"ridge-{view}"]

    def linear_forecast(
        self, view: int, context: np.ndarray, series: np.ndarray, covariates: CovariateWindows | None = None
    ) -> np.ndarray:
        """The ridge forecast that the metric uses, as a baseline: context [B, N, L] -> float32 [B, N, H]."""
        x, _, statistics = self.explanatory(view, context, series, covariates)
        future = project(x, self.linear_map(view))
        return (future * statistics.spread[..., None] + statistics.location[..., None]).astype(np.float32)


def joint_key(
    arrays: dict[str, np.ndarray], view: int, shape: np.ndarray, value: np.ndarray, *, shape_weight: float
) -> np.ndarray:
    """Own shape [B, N, D] and value parts [B, N, 5] of a moment's N series -> one key [B, E], a mean over the series.

    arrays: with `joint-VIEW` and `joint-value-VIEW`, see `DualKeyEncoder`.
    """
    w, (b, n, width) = shape_weight, shape.shape
    joint_shape = project(shape.reshape(b, n * width), arrays[f"joint-{view}"])
    joint_value = project(value.reshape(b, n * NUM_VALUES), arrays[f"joint-value-{view}"])
    return np.concatenate([np.sqrt(w / n) * joint_shape, np.sqrt((1 - w) / n) * joint_value], axis=-1)
