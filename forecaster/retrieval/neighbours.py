"""From a memory's answer to the tensors that the model reads, in two steps that cache and live queries share.

`condense` keeps of an answer what the model needs of it: the forecast of each key space and the nearest rows over all
of them. It is small, and the same for a model of any lookback, so that is what the neighbour cache stores.
`neighbour_tensors` cuts the windows of those rows from the memory's series. Both work window by window: what comes out
for one does not depend on what else was asked. How neighbours are found is not told here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self

import numpy as np
import torch

from forecaster.bounds import above_zero, at_least
from forecaster.errors import ConfigError
from forecaster.model.types import NeighbourTensors
from memory_index.errors import IncompatibleError
from memory_index.leakage import Policy
from memory_index.neighbours import Neighbours
from memory_index.types import KeySpace
from memory_index.windows import StoredWindows

FAN_LEVELS = (0.05, *(each / 10 for each in range(1, 10)), 0.95)
MAX_WORK = 3e12  # operations: about five minutes on two cores (docs/experiments.md)
SLOTS = 10  # nearest rows kept of each window: the largest `top_k` that the sensitivity runs ask for


@dataclass(frozen=True, kw_only=True)
class RetrievalSettings:
    """Which windows are asked in training, and what for.

    memory_k: neighbours per key space that make the memory's forecast. policy: which windows training may see as
    neighbours; evaluation is always `causal`. train_stride, val_stride: steps between the origins of two training or
    validation windows of a series; None takes the smallest that max_work allows. max_work: operations that finding the
    neighbours of all these windows may take (`training/plan.py`).
    """

    memory_k: int = 50
    policy: Policy = Policy.DISJOINT
    train_stride: int | None = None
    val_stride: int | None = None
    max_work: float = MAX_WORK

    def __post_init__(self) -> None:
        at_least(self, 1, "memory_k")
        above_zero(self, "max_work")
        for name in ("train_stride", "val_stride"):
            if getattr(self, name) is not None:
                at_least(self, 1, name)


class Condensed(NamedTuple):
    """What is kept of the neighbours of n windows; V are all key spaces of the version.

    forecasts: float32 [n, V, H], raw units, each key space's own forecast; 0 where it has none. found: bool [n, V].
    row: int64 [n, S], the nearest distinct rows over all key spaces, nearest first; -1 in unused slots.
    space: int8 [n, S], number of the key space in which the row was nearest; 0 in unused slots.
    logit: float32 [n, S], `-distance^2 / temperature` there; -inf in unused slots. (S slots here, no scales.)
    """

    forecasts: np.ndarray
    found: np.ndarray
    row: np.ndarray
    space: np.ndarray
    logit: np.ndarray

    def take(self, chosen: np.ndarray) -> Self:
        """Some of the windows; out of a memory map, their bytes are read here."""
        return type(self)(*(np.asarray(part[chosen]) for part in self))


class Fans(NamedTuple):
    """The memory's own quantiles for m of n windows, raw units. number: int64 [m], which. levels: float32 [m, H, Q] of
    `FAN_LEVELS`.
    """

    number: np.ndarray
    levels: np.ndarray


def condense(
    neighbours: Neighbours, spaces: Sequence[KeySpace], *, slots: int = SLOTS, horizon: int | None = None
) -> Condensed:
    """The neighbours of B moments of N series as n = B * N windows, moment after moment.

    spaces: all key spaces of the version (`manifest.spaces`), of which the neighbours may have been asked fewer: an
    unseen series has only `pooled`. horizon: first steps of the forecasts to keep, default all.

    Squared distances of different key spaces are comparable in units of their temperatures. The nearest rows are ranked
    by that, then by row id; a row that several key spaces found counts once, where it is nearest.
    """
    place = np.array([list(spaces).index(space) for space in neighbours.spaces])
    b, n, asked, _ = neighbours.row.shape
    by_space = neighbours.space_forecasts().reshape(b * n, asked, -1)[..., :horizon]  # [n, asked, H]
    forecasts = np.zeros((b * n, len(spaces), by_space.shape[-1]), dtype=np.float32)
    forecasts[:, place] = np.where(np.isnan(by_space), 0, by_space)
    found = np.zeros((b * n, len(spaces)), dtype=bool)
    found[:, place] = np.any(neighbours.valid, axis=-1).reshape(b * n, asked)
    # A key space's own rows are distinct and sorted, so none behind its first `slots` can be among the nearest of all.
    row = neighbours.row[..., :slots].reshape(b * n, -1)
    squared = np.square(neighbours.distance[..., :slots].astype(np.float64))
    scaled = (squared / neighbours.temperature.astype(np.float64)[:, None]).reshape(b * n, -1)
    space = np.broadcast_to(np.repeat(place, row.shape[1] // asked), row.shape)
    return Condensed(forecasts, found, *_nearest(row, space, scaled, slots))


def neighbour_tensors(
    condensed: Condensed,
    windows: StoredWindows,
    spaces: Sequence[KeySpace],
    *,
    lookback: int,
    horizon: int,
    top_k: int,
) -> NeighbourTensors:
    """What the model reads of n windows (its B).

    windows: of the memory that the row ids belong to. spaces: as in `condense`. lookback, horizon: the model's, which
    may be shorter than the version's: then the last steps of each context and the first of each future.

    Each neighbour is standardised by its own location and spread under the view of the key space that found it.
    Raises `IncompatibleError` (a model longer than the version's windows), `ConfigError` (more neighbours than slots).
    """
    spec, kept = windows.spec, condensed.row.shape[1]
    if lookback > spec.lookback or horizon > condensed.forecasts.shape[2]:
        raise IncompatibleError(
            f"the model reads windows of {lookback} + {horizon} steps, but the memory answers with "
            f"{spec.lookback} + {condensed.forecasts.shape[2]}",
            hint="choose a shorter lookback and horizon, or build a version with longer ones",
        )
    if top_k > kept:
        raise ConfigError(f"top_k is {top_k}, but only {kept} neighbours of each window were kept")
    row, valid = condensed.row[:, :top_k], condensed.row[:, :top_k] >= 0  # [n, K]
    safe = np.maximum(row, 0)
    view = np.array([windows.views.index(space.view) for space in spaces])[condensed.space[:, :top_k]]
    location, spread = windows.location[safe, view][..., None], windows.spread[safe, view][..., None]
    used, standard = valid[..., None], (windows.filled_windows(safe, lookback, horizon) - location) / spread
    contexts, futures = standard[..., :lookback], standard[..., lookback:]  # [n, K, L], [n, K, H]
    if (missing := np.isnan(futures)).any():  # as little as its location says
        futures = np.where(missing, np.float32(0), futures)
    return NeighbourTensors(
        forecasts=torch.from_numpy(np.ascontiguousarray(condensed.forecasts[..., :horizon])),
        found=torch.from_numpy(np.ascontiguousarray(condensed.found)),
        contexts=torch.from_numpy(np.where(used, contexts, np.float32(0))),
        futures=torch.from_numpy(np.where(used, futures, np.float32(0))),
        similarity=torch.from_numpy(_similarity(condensed.logit[:, :top_k], valid)),
        valid=torch.from_numpy(np.ascontiguousarray(valid)),
    )


def _nearest(
    row: np.ndarray, space: np.ndarray, scaled: np.ndarray, slots: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The first `slots` distinct rows of [n, M] candidates by (scaled distance, row): row, space, logit [n, slots]."""
    by_row = np.lexsort((scaled, row), axis=-1)
    row, space, scaled = (np.take_along_axis(part, by_row, axis=-1) for part in (row, space, scaled))
    again = np.zeros(row.shape, dtype=bool)
    again[:, 1:] = row[:, 1:] == row[:, :-1]
    scaled = np.where(again | (row < 0), np.inf, scaled)
    nearest = np.lexsort((row, scaled), axis=-1)[:, :slots]
    row, space, scaled = (np.take_along_axis(part, nearest, axis=-1) for part in (row, space, scaled))
    used, more = np.isfinite(scaled), ((0, 0), (0, slots - row.shape[1]))
    return (
        np.pad(np.where(used, row, -1), more, constant_values=-1),
        np.pad(np.where(used, space, 0).astype(np.int8), more),
        np.pad(-scaled.astype(np.float32), more, constant_values=-np.inf),
    )


def _similarity(logit: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Softmax over the valid slots, float32 [n, K]; 0 in the others, and everywhere if there are none."""
    logit = np.where(valid, logit.astype(np.float64), -np.inf)
    largest = np.where(valid[:, :1], logit[:, :1], 0)  # slots are sorted
    raw = np.exp(logit - largest)
    total = raw.sum(axis=-1, keepdims=True)
    return (raw / np.where(total > 0, total, 1)).astype(np.float32)
