"""Training the learned key, which happens when an index is built.

The loss is what the key is for: within a batch of windows of one series, the futures of all windows that are disjoint
in time, weighted by `softmax(-d^2 / temperature)`, should forecast each window's own future (docs/method.md).
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from forecaster.learned_keys.pattern_encoder import (
    PatternConfig,
    PatternKeyEncoder,
    ViewNetwork,
    frozen,
    one_torch_thread,
    view_network,
)
from memory_index.encoder import DualKeyEncoder, EncoderConfig
from memory_index.errors import DataError, IncompatibleError
from memory_index.fit_encoder import fit_encoder, joint_arrays, shared_origins
from memory_index.missing import filled
from memory_index.tables.series import SeriesTable
from memory_index.types import Scope
from memory_index.windows import cut


class PatternBatch(NamedTuple):
    """M windows of one or two series, float32. z: [M, view]. value: [M, 5]. future: [M, H], in the window's own
    location and spread. weight: [M], squared spread in training deviations: errors then count as they do in a score.
    pooled: bool [M, M], which windows share no step in time; own: bool [M, M], which of those are of one series.
    """

    z: Tensor
    value: Tensor
    future: Tensor
    weight: Tensor
    pooled: Tensor
    own: Tensor


def fit_pattern_encoder(
    table: SeriesTable,
    origins: list[np.ndarray],
    config: EncoderConfig,
    *,
    lookback: int,
    horizon: int,
    scopes: tuple[Scope, ...],
    pattern: PatternConfig | None = None,
) -> PatternKeyEncoder:
    """Train the encoder; called like `memory_index.fit_encoder.fit_encoder`. Seeded: equal windows give equal weights.

    Raises `DataError` if no two windows of a series are disjoint in time, `IncompatibleError` for covariates.
    """
    if table.covariates is not None:
        raise IncompatibleError(
            "the encoder 'pattern' does not read covariates", hint="use the built-in one, or leave out their roles"
        )
    pattern = pattern or PatternConfig()
    base = fit_encoder(table, origins, config, lookback=lookback, horizon=horizon, scopes=())
    with one_torch_thread():
        networks = {
            view: train_view(table, origins, base, pattern, view=view, lookback=lookback) for view in config.views
        }
    encoder = PatternKeyEncoder(base=base, pattern=pattern, networks=frozen(networks))
    if "joint" in scopes:
        for view in config.views:
            parts = functools.partial(encoder.parts, view)
            rows = shared_origins(origins)
            base.arrays.update(joint_arrays(table, rows, parts, config, view=view, lookback=lookback))
    return encoder


def train_view(
    table: SeriesTable,
    origins: list[np.ndarray],
    base: DualKeyEncoder,
    pattern: PatternConfig,
    *,
    view: int,
    lookback: int,
) -> ViewNetwork:
    """Train the network of one view."""
    length = lookback + base.horizon
    usable = [n for n, rows in enumerate(origins) if len(rows) > 1 and rows[-1] - rows[0] >= length]
    if not usable:
        raise DataError(
            f"{table.source} has no two training windows of {length} steps that do not overlap, "
            "which the encoder 'pattern' learns from",
            hint="choose --encoder dual, shorter windows, or a longer training part",
        )
    network = view_network(view, base.config, pattern)
    random = np.random.default_rng(pattern.seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(pattern.seed)
        decoder = nn.Linear(min(base.config.shape_width, view), base.horizon)
    log_temperature = nn.Parameter(torch.full((2,), math.log(0.1)))  # own, pooled
    parameters = [*network.parameters(), *decoder.parameters(), log_temperature]
    optimizer = torch.optim.AdamW(parameters, lr=pattern.learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=pattern.learning_rate, total_steps=pattern.num_steps + 1, pct_start=0.1
    )
    share = np.array([len(origins[n]) for n in usable]) / sum(len(origins[n]) for n in usable)
    for _ in range(pattern.num_steps):
        chosen = random.choice(usable, size=min(2, len(usable)), replace=False, p=share)
        size = pattern.batch_size // len(chosen)
        rows = {
            int(n): random.choice(origins[n], size=min(size, len(origins[n])), replace=False) for n in sorted(chosen)
        }
        batch = pattern_batch(table, base, rows, view=view, lookback=lookback)
        if not batch.own.any():
            continue
        loss = pattern_loss(network, decoder, log_temperature.exp(), batch, base.config.shape_weight, pattern)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
    return network


def pattern_batch(
    table: SeriesTable, base: DualKeyEncoder, rows: dict[int, np.ndarray], *, view: int, lookback: int
) -> PatternBatch:
    """The windows of some series, by number, at origin rows."""
    parts: list[tuple[np.ndarray, ...]] = []
    for series, origin in rows.items():
        steps, number = table.series[series].values, np.array([series])
        context = filled(cut(steps, origin - lookback + 1, lookback), table.step.season)[:, None]  # [m, 1, L]
        windows = context[..., -view:].astype(np.float64, order="C")
        statistics = base.statistics(windows, context, number)
        location, spread = statistics.location, statistics.spread  # [m, 1]
        future = (cut(steps, origin + 1, base.horizon) - location) / spread
        value = base.value_part(windows, statistics, number)[:, 0]
        weight = np.square(spread[:, 0] / base.scale.std[series])
        parts.append(((windows[:, 0] - location) / spread, value, future, weight))
    earliest = min((table.series[series].times for series in rows), key=lambda times: times[0])
    place = np.concatenate([origin + _steps_after(earliest, table.series[n].times) for n, origin in rows.items()])
    of = np.repeat(list(rows), [len(origin) for origin in rows.values()])
    pooled = np.abs(place[:, None] - place) >= lookback + base.horizon
    z, value_parts, futures, weights = (_float32(np.concatenate(part)) for part in zip(*parts, strict=True))
    own = pooled & (of[:, None] == of)
    return PatternBatch(z, value_parts, futures, weights, torch.from_numpy(pooled), torch.from_numpy(own))


def pattern_loss(
    network: ViewNetwork,
    decoder: nn.Linear,
    temperature: Tensor,
    batch: PatternBatch,
    shape_weight: float,
    pattern: PatternConfig,
) -> Tensor:
    """Errors of the neighbours' forecast by own key and by shape alone, and of a linear forecast from the shape.

    Each is the mean over windows of `mean_H (forecast - future)^2`, weighted so that it is a score in deviations.
    """
    shape = network.shape(batch.z)
    squared = squared_distances(shape)
    own = shape_weight * squared + (1 - shape_weight) * squared_distances(network.value(batch.value))
    loss = torch.zeros(())
    for scaled, seen in ((own / temperature[0], batch.own), (squared / temperature[1], batch.pooled)):
        loss = loss + _error(neighbour_forecast(scaled, batch.future, seen), batch, seen.any(dim=1))
    linear = decoder(shape * math.sqrt(shape.shape[1]))
    return loss + pattern.forecast_weight * _error(linear, batch, torch.ones_like(batch.weight))


def squared_distances(parts: Tensor) -> Tensor:
    """[M, E] -> squared Euclidean distances [M, M]."""
    norm = parts.square().sum(dim=1)
    return (norm[:, None] + norm - 2 * parts @ parts.T).clamp_min(0)


def neighbour_forecast(scaled: Tensor, future: Tensor, seen: Tensor) -> Tensor:
    """`softmax(-scaled)`-weighted mean of the futures of all windows that are seen, [M, H]; 0 where none is.

    scaled: [M, M], squared distances over the temperature. future: [M, H]. seen: bool [M, M].
    """
    logit = (-scaled).masked_fill(~seen, -1e9)
    weight = torch.softmax(logit, dim=1) * seen
    if not bool((missing := future.isnan()).any()):
        return weight @ future
    share = weight @ (~missing).to(weight)  # each step over the futures that have it
    return (weight @ future.where(~missing, 0.0)) / share.where(share > 0, 1.0)


def _steps_after(earlier: np.ndarray, times: np.ndarray) -> int:
    """How many steps after the first series another begins: all of its steps if it begins only after its end."""
    return int(np.searchsorted(earlier, times[0]))


def _error(forecast: Tensor, batch: PatternBatch, counted: Tensor) -> Tensor:
    weight = batch.weight * counted
    if bool((missing := batch.future.isnan()).any()):
        error = (forecast - batch.future).where(~missing, 0.0)
        return (weight * error.square().mean(dim=1)).sum() / weight.sum().clamp_min(1e-12)
    return (weight * (forecast - batch.future).square().mean(dim=1)).sum() / weight.sum().clamp_min(1e-12)


def _float32(values: np.ndarray) -> Tensor:
    return torch.from_numpy(values.astype(np.float32))
