"""One forecast taken apart: what the forward pass computed on its way, named for people.

Every number is the forward pass's own or follows from it and the memory's answer by what is said here: nothing is
computed a second time in another way. How it is shown is the command line's affair.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from forecaster.errors import RunIncompatibleError
from forecaster.model.model import ForecastModel
from forecaster.model.tapr import POOL
from forecaster.model.types import GatingOutput, ModelOutput, TrendOutput
from forecaster.predictor import SMEARED_LEVELS, Predictor, output_of, smeared
from forecaster.retrieval.batches import MODEL_BATCH, live_blocks
from forecaster.retrieval.neighbours import Condensed
from forecaster.runs.intervals import MemoryFan
from memory_index.bounds import BoundsOf
from memory_index.closeness import UsualDistances, closeness, nearest_distances, usual_distances
from memory_index.conditions import ahead_in_words, known_of
from memory_index.inspection import (
    NeighbourRecord,
    actual_after,
    neighbour_records,
    of_series,
    one_origin,
    require_neighbours,
)
from memory_index.memory import Memory
from memory_index.neighbours import Neighbours, mean_over_spaces
from memory_index.query_covariates import require_known_ahead
from memory_index.tables.series import SeriesTable
from memory_index.transforms import Curve
from memory_index.types import KeySpace
from memory_index.windows import Step

DIRECTIONS = ("up", "flat", "down")
MAGNITUDES = ("strong up", "weak up", "weak down", "strong down")
LEVELS = (0.1, 0.5, 0.9)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Part:
    """One of the forecasts that the value gate mixes: a base of the model part, or a key space of the memory.

    name: `linear`, `last_value`, `seasonal_naive`, `network` (`window_mean` where there is none of these), or a key
    space as `own-336`.
    weight: float32 [H], 0 where the key space has no neighbour; over all parts they sum to 1 at each step. forecast:
    float32 [H], raw units; NaN for a key space without neighbours. num_neighbours, nearest: how many made it, and the
    distance of the nearest. share_closer: see `memory_index.closeness`. Of a base these are 0 and None.
    """

    name: str
    of_memory: bool
    weight: np.ndarray
    forecast: np.ndarray
    num_neighbours: int
    nearest: float | None
    share_closer: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class GatedNeighbour:
    """One of the `top_k` neighbours that the network looks at one by one.

    record: as `cli index neighbours` has it, its `weight` being the one within its key space, and its future as long as
    the version's, which may be longer than the model's. similarity: softmax of
    -distance^2 / temperature over the `top_k`. match_score: of GRA-M, in [0, 1]; weight: similarity * match_score, made
    to sum to 1. Both None where the network is off.
    """

    record: NeighbourRecord
    similarity: float
    match_score: float | None
    weight: float | None

    def to_document(self) -> dict[str, Any]:
        """As `index neighbours` has it, but `weight` is the one among these neighbours."""
        own = {
            "similarity": self.similarity,
            "match_score": self.match_score,
            "weight": self.weight,
            "weight_in_space": self.record.weight,
        }
        return self.record.to_dict() | own


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Trend:
    """What TAPR says.

    direction, magnitude: probabilities by class. borders: float32 [5], ascending, raw units: the means of the future at
    which the classes of this window change. Below [1] is down and above [3] up, below [0] strong down and above [4]
    strong up; [2] is between weak down and weak up. scale_shares: how much each scale has in the fusion, finest first,
    the same for every window. scale_steps: so many steps one value of that scale is an average of.
    """

    direction: dict[str, float]
    magnitude: dict[str, float]
    borders: np.ndarray
    scale_shares: tuple[float, ...]
    scale_steps: tuple[int, ...]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Explanation:
    """One forecast and everything that made it. Arrays are float32, raw units unless said otherwise.

    Behind a memory with a transform the parts are mixed in its units: each is shown by what it is in raw ones, where
    their mix is not exactly the forecast, which is a mean there (`Predictor.forecast`).

    times: datetime64[ns] [L + H]. context: [L]. actual: [H], NaN where the table does not know it. forecast: [H] is
    `gate * model_part + (1 - gate) * memory_part`. gate: [H]. networks: [F, H], what each network forecasts, of which
    the part `network` is the mean; F is 0 without networks. levels, quantiles: the calibrated interval, [H, Q]. parts:
    bases of the model part, then key spaces. neighbours: nearest first. feature_gate, confidence: of GRA-M's gating of
    features; None where the network is off. trend: None without TAPR. covariates: the known ones by name, float32, the
    last values those of the horizon; categories: the words of those that have any. no_close_analogue: see
    `memory_index.closeness`. in_sample: whether training or validation used this window, or a fitted part of the
    version has seen steps later than the origin.
    """

    series_id: str
    origin: np.datetime64
    origin_text: str  # ISO 8601
    in_sample: bool
    times: np.ndarray
    context: np.ndarray
    actual: np.ndarray
    forecast: np.ndarray
    levels: tuple[float, ...]
    quantiles: np.ndarray
    gate: np.ndarray
    model_part: np.ndarray
    memory_part: np.ndarray
    networks: np.ndarray
    parts: tuple[Part, ...]
    neighbours: tuple[GatedNeighbour, ...]
    feature_gate: float | None
    confidence: float | None
    trend: Trend | None
    no_close_analogue: bool
    covariates: dict[str, np.ndarray] = field(default_factory=dict)
    categories: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def to_document(self, step: Step) -> dict[str, Any]:
        """The JSON document but for what it was made by: every number, in its own units."""
        beside = ahead_in_words(self.covariates, self.categories, len(self.forecast))
        return {
            "query": {
                "series_id": self.series_id,
                "origin": self.origin_text,
                "context": self.context,
                "actual": self.actual,
                **({"covariates": beside} if beside else {}),
            },
            "in_sample": self.in_sample,
            "no_close_analogue": self.no_close_analogue,
            "times": [step.isoformat(time) for time in self.times[len(self.context) :]],
            "forecast": self.forecast,
            "quantiles": {f"q{level:g}": self.quantiles[:, number] for number, level in enumerate(self.levels)},
            "gate": self.gate,
            "model_part": self.model_part,
            "memory_part": self.memory_part,
            "networks": self.networks,
            "parts": self.parts,
            "neighbours": [each.to_document() for each in self.neighbours],
            "feature_gate": self.feature_gate,
            "confidence": self.confidence,
            "trend": self.trend,
        }


class _Window(NamedTuple):
    """The explained window: what the memory answered for the moment, in which the window is series number `place`, and
    what the model needs of that and made of it, for this window alone ([1, ...]), in units of the memory's transform.
    last: its last value in these. curve: [1], from raw units to them."""

    found: Neighbours
    place: int
    condensed: Condensed
    unit: np.ndarray
    similarity: Tensor
    output: ModelOutput
    last: float
    curve: Curve

    def raw(self, inside: np.ndarray) -> np.ndarray:
        """What is [...] in units of the memory's transform, in raw ones."""
        return self.curve.inverse(inside[None])[0]


def _fan(window: _Window, levels: tuple[float, ...], horizon: int) -> MemoryFan:
    """The memory's own quantiles for the explained window."""
    quantiles = window.found.inside().quantiles(levels, on_empty="last-value")[0, window.place, :horizon][None]
    by_space = np.where(window.condensed.found[..., None], window.condensed.forecasts, np.nan)[None]
    return MemoryFan(quantiles, mean_over_spaces(by_space)[0])


def explain(
    predictor: Predictor,
    memory: Memory,
    table: SeriesTable,
    series_id: str,
    at: np.datetime64,
    *,
    levels: tuple[float, ...] = LEVELS,
    usual: UsualDistances | None = None,
) -> Explanation:
    """The forecast of one series at one time, taken apart. The memory is asked under `causal`, as for any forecast.

    at: datetime64[ns], UTC or naive as the table. levels: of the interval. usual: of this memory, where it is known
    already.

    Raises `RunIncompatibleError` for a model without memory, `NotFoundError` (series, time, or no neighbour at all),
    `UsageError` (a level that is not calibrated).
    """
    config, spec = predictor.config.model, memory.windows.spec
    spaces = memory.manifest.key_spaces
    row, _ = one_origin(table, series_id, at, spec)
    series = table[series_id]
    window = _ask(predictor, memory, table, series_id, at)
    output = window.output
    forecast, quantiles = _forecast(predictor, memory, window, series_id, levels)
    nearest = nearest_distances(window.found, window.place)
    shares, no_close_analogue = closeness(usual or usual_distances(memory), nearest, at)
    actual = actual_after(series, row, config.horizon)
    return Explanation(
        series_id=series_id,
        origin=at,
        origin_text=table.step.isoformat(at),
        in_sample=bool(at < max(predictor.seen_until, memory.manifest.fitted_known_at)),
        times=table.step.range(series.times[row - config.lookback + 1], config.lookback + config.horizon),
        context=series.values[row - config.lookback + 1 : row + 1].astype(np.float32),
        actual=actual,
        forecast=forecast,
        levels=levels,
        quantiles=quantiles,
        gate=_numbers(output.gate),
        model_part=window.raw(_numbers(output.model_part)),
        memory_part=window.raw(_numbers(output.memory_part)),
        networks=window.raw(_numbers(output.networks)),
        parts=tuple(_parts(predictor.model.base_names, spaces if config.mixes_memory else (), window, nearest, shares)),
        neighbours=tuple(_gated(spaces, window, config.top_k, actual)),
        feature_gate=None if output.gating is None else float(output.gating.gate),
        confidence=None if output.gating is None else float(output.gating.confidence),
        trend=_trend(predictor.model, window),
        no_close_analogue=no_close_analogue,
        covariates=known_of(window.found, window.place, config.horizon),
        categories={column.name: column.words for column in memory.manifest.covariates},
    )


def _ask(predictor: Predictor, memory: Memory, table: SeriesTable, series_id: str, at: np.datetime64) -> _Window:
    """Search and forward pass, as for a forecast of all series at that time."""
    config = predictor.config
    if not config.model.use_gram:
        raise RunIncompatibleError(
            "this run was trained without the memory (use_gram is off), so no neighbour is behind its forecasts",
            hint="train one with the memory, or use 'cli forecast'",
        )
    _, origins = one_origin(table, series_id, at, memory.windows.spec)
    [block] = live_blocks(memory, table, origins, config.model, config.train.memory_k, predictor.units)
    columns = memory.manifest.covariates
    require_known_ahead(block.asked.queries, block.asked.wanted, columns, table.step, table.source)
    found, condensed, neighbours = block.found, block.condensed, block.batch.neighbours
    assert found is not None, "a model with GRA-M retrieves"
    assert condensed is not None
    assert neighbours is not None
    # One moment was asked, so that the number of a series in it is the number of its window too.
    place = int(np.flatnonzero(block.asked.series == table.series_ids.index(series_id))[0])
    require_neighbours(found, place)
    # Together with the windows that it is forecast with: a matrix product of another shape would round differently.
    first = place // MODEL_BATCH * MODEL_BATCH
    output = output_of(predictor.model, block.batch.take(slice(first, first + MODEL_BATCH)))
    return _Window(
        found=found,
        place=place,
        condensed=condensed.take(np.array([place])),
        unit=block.batch.unit[place : place + 1].numpy(),
        similarity=neighbours.similarity[place],
        output=_only(output, place - first),
        last=float(block.batch.context[place, -1]),
        curve=block.curve.take(slice(place, place + 1)),
    )


def _forecast(
    predictor: Predictor, memory: Memory, window: _Window, series_id: str, levels: tuple[float, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """Forecast [H] and quantiles [H, Q] of the window as `cli forecast` has them, raw units."""
    spread, inside = window.output.spread.cpu().numpy(), _numbers(window.output.forecast)
    width = predictor.width(memory, window.condensed, spread=spread, unit=window.unit)

    def at(levels: tuple[float, ...]) -> np.ndarray:
        fan = _fan(window, levels, len(inside))
        return predictor.intervals.quantiles(inside[None], width, [series_id], levels, fan)

    forecast = smeared(window.curve, inside[None], at(SMEARED_LEVELS)) if memory.manifest.transform else inside[None]
    queries, within = of_series(window.found, window.place).queries, BoundsOf(memory)
    found = (forecast, window.curve.inverse(at(levels)))
    forecast, quantiles = (within.kept(queries, each[None])[0, 0] for each in found)
    return forecast, quantiles


def _only(output: ModelOutput, place: int) -> ModelOutput:
    """One window of an output, [1, ...]."""
    one = slice(place, place + 1)
    tensors = {name: field[one] for name, field in output._asdict().items() if isinstance(field, Tensor)}
    trend = None if output.trend is None else TrendOutput(*(field[one] for field in output.trend))
    gating = None if output.gating is None else GatingOutput(*(field[one] for field in output.gating))
    return output._replace(**tensors, trend=trend, gating=gating)


def _numbers(of_window: Tensor) -> np.ndarray:
    """[1, ...] -> float32 [...]."""
    numbers: np.ndarray = of_window[0].cpu().numpy()
    return numbers


def _parts(
    base_names: tuple[str, ...],
    spaces: tuple[KeySpace, ...],
    window: _Window,
    nearest: dict[KeySpace, float],
    shares: dict[KeySpace, float | None],
) -> Iterator[Part]:
    weights, bases = _numbers(window.output.weights), _numbers(window.output.bases)
    for name, weight, forecast in zip(base_names, weights, bases, strict=False):
        yield Part(
            name=name,
            of_memory=False,
            weight=weight,
            forecast=window.raw(forecast),
            num_neighbours=0,
            nearest=None,
            share_closer=None,
        )
    num_found = dict(zip(window.found.spaces, window.found.valid[0, window.place].sum(axis=-1), strict=True))
    for v, space in enumerate(spaces):
        yield Part(
            name=str(space),
            of_memory=True,
            weight=weights[len(bases) + v],
            forecast=window.raw(np.where(window.condensed.found[0, v], window.condensed.forecasts[0, v], np.nan)),
            num_neighbours=int(num_found.get(space, 0)),
            nearest=nearest.get(space),
            share_closer=shares.get(space),
        )


def _gated(spaces: tuple[KeySpace, ...], window: _Window, top_k: int, actual: np.ndarray) -> Iterator[GatedNeighbour]:
    """The nearest `top_k` over all key spaces, each out of the slot of the answer that it was nearest in."""
    found, place, gating = window.found, window.place, window.output.gating
    slots = []
    for row, number in zip(window.condensed.row[0, :top_k], window.condensed.space[0, :top_k], strict=True):
        if row >= 0:
            v = found.spaces.index(spaces[number])
            slots.append((v, int(np.flatnonzero(found.row[0, place, v] == row)[0])))
    for i, record in enumerate(neighbour_records(found, place, slots, actual)):
        yield GatedNeighbour(
            record=record,
            similarity=float(window.similarity[i]),
            match_score=None if gating is None else float(gating.match[0, i]),
            weight=None if gating is None else float(gating.weights[0, i]),
        )


def _trend(model: ForecastModel, window: _Window) -> Trend | None:
    """The classes are relative to the window's last value (`tapr.trend_change`)."""
    output, config = window.output, model.config
    trend = output.trend
    thresholds = model.thresholds
    if trend is None or thresholds is None:
        return None
    steps = (config.patch_length + (POOL**s - 1) * config.patch_stride for s in range(config.n_scales))
    return Trend(
        direction=dict(zip(DIRECTIONS, trend.direction[0].softmax(dim=0).tolist(), strict=True)),
        magnitude=dict(zip(MAGNITUDES, trend.magnitude[0].softmax(dim=0).tolist(), strict=True)),
        borders=window.raw(window.last + thresholds.cpu().numpy() * float(output.spread[0])),
        scale_shares=tuple(
            np.mean([each.tapr.decomposition.scale_shares().tolist() for each in model.of_folds if each.tapr], axis=0)
        ),
        scale_steps=tuple(min(each, config.lookback) for each in steps),
    )
