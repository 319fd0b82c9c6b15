"""Fitting the dual key on training windows: scale, ridge, and the PCA of each scope. All closed form.

Only windows that lie whole in the training part are seen. Series are independent of each other but for sums, so they
are handled side by side; of tens of thousands the Gram matrices are made twice, since they would not fit into memory.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np

from memory_index.cores import num_cores
from memory_index.covariate_map import CovariateLayout
from memory_index.encoder import NUM_VALUES, DualKeyEncoder, EncoderConfig
from memory_index.fit_covariates import CovariateFit, FittedView, fit_units, spread_out
from memory_index.key_covariates import KeyNumbers
from memory_index.missing import filled, has_missing
from memory_index.scaling import WindowStatistics, fit_scale
from memory_index.tables.series import SeriesTable
from memory_index.threads import Workers, one_blas_thread
from memory_index.types import Scope
from memory_index.windows import cut

CHUNK = 2048  # windows handled at once
MAX_JOINT_MOMENTS = 20_000  # enough for a PCA, and it bounds its cost
GRAM_BYTES = 1 << 28  # of the Gram matrices of all series that are kept from one pass for the next
AT_ONCE = 16  # series handled at once, or by one task

Parts = Callable[[np.ndarray, np.ndarray | None], tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Moments:
    """Second moments of the training windows of one view, over all series.

    gram: [view, view], mean of z z^T. cross: [view, H], mean of z f^T, where f is the future in the window's own
    location and spread; at each step over the windows whose future has it. z is of filled contexts. own: the mean of
    z z^T of single series, by number, as far as they were kept.
    """

    gram: np.ndarray
    cross: np.ndarray
    own: dict[int, np.ndarray] = field(default_factory=dict)


class _OfSeries(NamedTuple):
    """The same sums of one series: of z z^T [view, view], z f^T [view, H], windows, and known steps of futures [H]."""

    gram: np.ndarray
    cross: np.ndarray
    num_windows: int
    num_known: np.ndarray


def fit_encoder(
    table: SeriesTable,
    origins: list[np.ndarray],
    config: EncoderConfig,
    *,
    lookback: int,
    horizon: int,
    scopes: tuple[Scope, ...],
    target_origins: list[np.ndarray] | None = None,
) -> DualKeyEncoder:
    """Fit every array of the encoder.

    table: the training part. origins: origin rows of its windows, per series, int64 [n_s] each. target_origins: those
    of the windows whose futures may be looked at, default all: what is cross-fitted leaves some out. Only the linear
    maps look at futures.
    """
    scale = fit_scale([series.values for series in table.series])
    encoder = DualKeyEncoder(config=config, horizon=horizon, scale=scale, arrays={})
    if table.covariates is not None and table.covariates.columns:
        columns = fit_units(table, origins, horizon)
        layout = CovariateLayout(columns=columns, lookback=lookback, horizon=horizon)
        encoder = replace(encoder, covariates=layout)
        return _fit_with_covariates(
            table, origins, encoder, lookback=lookback, scopes=scopes, target_origins=target_origins or origins
        )
    for view in config.views:
        second_moments = functools.partial(_second_moments, table, encoder=encoder, view=view, lookback=lookback)
        if target_origins is None:
            moments = targets = second_moments(origins)
        else:
            moments, targets = second_moments(origins, with_futures=False), second_moments(target_origins)
        ridge = _ridge(targets, config.ridge)
        root = _metric_root(ridge, view=view, horizon=horizon, forecast_weight=config.forecast_weight)
        width = min(config.shape_width, view)
        arrays = encoder.arrays
        arrays[f"ridge-{view}"] = ridge.astype(np.float32)
        if "own" in scopes or "joint" in scopes:
            arrays[f"own-{view}"] = _own_principal(
                table, origins, encoder, moments, root, view=view, lookback=lookback, width=width
            )
        if "pooled" in scopes:
            arrays[f"pooled-{view}"] = _principal(moments.gram, root, width).astype(np.float32)
        if "joint" in scopes:
            parts = functools.partial(_parts, encoder, view)
            arrays |= joint_arrays(table, shared_origins(origins), parts, config, view=view, lookback=lookback)
    return encoder


def _fit_with_covariates(
    table: SeriesTable,
    origins: list[np.ndarray],
    encoder: DualKeyEncoder,
    *,
    lookback: int,
    scopes: tuple[Scope, ...],
    target_origins: list[np.ndarray],
) -> DualKeyEncoder:
    """The same where the linear map and the metric read covariates too; see `fit_covariates.py`."""
    fit, config, arrays = (
        CovariateFit(table, target_origins, encoder, lookback=lookback),
        encoder.config,
        encoder.arrays,
    )
    weights, sampled, of_views = {}, spread_out(origins, table.step.season), {}
    for view in sorted(config.views, reverse=True):
        fitted, width = fit.view(view), min(config.shape_width, view)
        of_views[view] = fitted
        weights[view] = fitted.weights
        arrays[f"ridge-{view}"] = fitted.ridge.astype(np.float32)
        arrays[f"beside-{view}"] = fitted.beside.astype(np.float32)
        beside = KeyNumbers(fit.stored, encoder, view, origins if "joint" in scopes else sampled)
        own = "own" in scopes or "joint" in scopes
        of_series, pooled = _principal_parts(fit, fitted, sampled, view, width, beside, own=own)
        arrays |= {f"own-{view}": of_series} if of_series is not None else {}
        arrays |= {f"pooled-{view}": pooled} if "pooled" in scopes else {}
        if "joint" in scopes:
            arrays |= joint_arrays(
                table,
                shared_origins(origins),
                functools.partial(_parts, encoder, view),
                config,
                view=view,
                lookback=lookback,
                beside=beside,
            )
    arrays |= fit.grows_from(of_views)
    assert encoder.covariates is not None, "it has a layout"
    columns = tuple(
        replace(column, weight=tuple(float(weights[view][number]) for view in config.views))
        for number, column in enumerate(encoder.covariates.columns)
    )
    return replace(encoder, covariates=replace(encoder.covariates, columns=columns))


def _principal_parts(
    fit: CovariateFit,
    fitted: FittedView,
    origins: list[np.ndarray],
    view: int,
    width: int,
    beside: KeyNumbers,
    *,
    own: bool,
) -> tuple[np.ndarray | None, np.ndarray]:
    """The PCA of each series, float32 [N, view + r, width], where it is wanted, and that of all of them together.

    Of `x root`, whose length is the forecast-aware distance.
    """
    num_parts, total = len(fitted.root), max(sum(len(rows) for rows in origins), 1)
    result = np.empty((len(origins), len(fitted.root), width), dtype=np.float32) if own else None
    every = np.zeros((num_parts, num_parts))

    def run(number: int) -> np.ndarray:
        gram = np.zeros((num_parts, num_parts))
        for x in fit.compared(number, origins[number], view, beside):
            gram += x.T @ x
        gram = fitted.root.T @ gram @ fitted.root
        if result is not None:
            result[number] = fitted.root @ _leading(gram, width)
        return gram

    with one_blas_thread():
        for gram in Workers(num_cores()).run(run, range(len(origins))):
            every += gram
    return result, (fitted.root @ _leading(every / total, width)).astype(np.float32)


def joint_arrays(
    table: SeriesTable,
    rows: np.ndarray,
    parts: Parts,
    config: EncoderConfig,
    *,
    view: int,
    lookback: int,
    beside: KeyNumbers | None = None,
) -> dict[str, np.ndarray]:
    """PCA over the concatenated own parts of all series of a moment (docs/method.md), shape and value apart.

    rows: origin rows of the moments. parts: contexts [B, N, L] and their covariates -> own shape [B, N, D] and value
    parts [B, N, 5]. beside: of the table, if it has covariates.
    """
    series = np.arange(len(table.series))
    rows = rows[:: max(1, -(-len(rows) // MAX_JOINT_MOMENTS))]

    def parts_of(chunk: np.ndarray) -> list[np.ndarray]:
        context = np.stack([cut(series.values, chunk - lookback + 1, lookback) for series in table.series], axis=1)
        numbers = None if beside is None else beside.of(series, np.repeat(chunk[:, None], len(series), 1))
        return [part.reshape(len(chunk), -1) for part in parts(filled(context, table.step.season), numbers)]

    grams, workers, chunks = [np.zeros(()), np.zeros(())], Workers(num_cores()), list(_chunks(rows))
    for start in range(0, len(chunks), workers.num):
        with one_blas_thread():
            of_chunks = workers.run(parts_of, chunks[start : start + workers.num])
        for flat in of_chunks:
            grams = [gram + part.T @ part for gram, part in zip(grams, flat, strict=True)]
    value_width = min(config.joint_width // 8, NUM_VALUES * len(table.series))
    arrays = {}
    for name, gram, width in (
        (f"joint-{view}", grams[0], config.joint_width - value_width),
        (f"joint-value-{view}", grams[1], value_width),
    ):
        _, vectors = np.linalg.eigh(gram)
        arrays[name] = vectors[:, ::-1][:, :width].astype(np.float32)
    return arrays


def shared_origins(origins: list[np.ndarray]) -> np.ndarray:
    """Origin rows at which every series has a whole window: where values are missing, only some of them have one."""
    return functools.reduce(np.intersect1d, origins)


def _second_moments(
    table: SeriesTable,
    origins: list[np.ndarray],
    encoder: DualKeyEncoder,
    *,
    view: int,
    lookback: int,
    with_futures: bool = True,
) -> Moments:
    """Sums over all series, in their order, whoever is done first. with_futures: without, `cross` stays 0."""
    horizon, total = encoder.horizon, max(sum(len(rows) for rows in origins), 1)
    gram, cross, num_known = np.zeros((view, view)), np.zeros((view, horizon)), np.zeros(horizon)
    own: dict[int, np.ndarray] = {}
    workers = Workers(num_cores())
    of_series = functools.partial(
        _moments_of, table, origins, encoder, view=view, lookback=lookback, with_futures=with_futures
    )
    with one_blas_thread():
        for start in range(0, len(origins), AT_ONCE):
            numbers = range(start, min(start + AT_ONCE, len(origins)))
            for number, found in zip(numbers, workers.run(of_series, numbers), strict=True):
                gram += found.gram
                cross += found.cross
                num_known += found.num_known
                if (len(own) + 1) * found.gram.nbytes <= GRAM_BYTES:
                    own[number] = found.gram / max(found.num_windows, 1)
    return Moments(gram=gram / total, cross=cross / np.maximum(num_known, 1), own=own)


def _moments_of(
    table: SeriesTable,
    origins: list[np.ndarray],
    encoder: DualKeyEncoder,
    number: int,
    *,
    view: int,
    lookback: int,
    with_futures: bool,
) -> _OfSeries:
    """Of one series."""
    horizon = encoder.horizon
    gram, cross, num_known = np.zeros((view, view)), np.zeros((view, horizon)), np.zeros(horizon)
    values, rows = table.series[number].values, origins[number]
    has_holes = has_missing(values)
    for chunk in _chunks(rows):
        context = filled(cut(values, chunk - lookback + 1, lookback), table.step.season)[:, None]
        z, statistics = _normalise(encoder, context, view, np.array([number]))
        gram += z[:, 0].T @ z[:, 0]
        if not with_futures:
            continue
        future = cut(values, chunk + 1, horizon).astype(np.float64)
        future -= statistics.location
        future /= statistics.spread
        if has_holes:
            known = ~np.isnan(future)
            num_known += known.sum(axis=0)
            future[~known] = 0.0
        else:
            num_known += len(chunk)
        cross += z[:, 0].T @ future
    return _OfSeries(gram, cross, len(rows), num_known)


def _own_principal(
    table: SeriesTable,
    origins: list[np.ndarray],
    encoder: DualKeyEncoder,
    moments: Moments,
    root: np.ndarray,
    *,
    view: int,
    lookback: int,
    width: int,
) -> np.ndarray:
    """The PCA of each series, float32 [N, view, width]."""
    result = np.empty((len(origins), view, width), dtype=np.float32)

    def run(start: int) -> None:
        for number in range(start, min(start + AT_ONCE, len(origins))):
            gram = moments.own.get(number)
            if gram is None:
                found = _moments_of(table, origins, encoder, number, view=view, lookback=lookback, with_futures=False)
                gram = found.gram / max(found.num_windows, 1)
            result[number] = _principal(gram, root, width)

    with one_blas_thread():
        Workers(num_cores()).run(run, range(0, len(origins), AT_ONCE))
    return result


def _normalise(
    encoder: DualKeyEncoder, context: np.ndarray, view: int, series: np.ndarray
) -> tuple[np.ndarray, WindowStatistics]:
    """z, float64 [B, N, view], of contexts [B, N, L] under one view, and the statistics [B, N] that made it."""
    windows = context[..., -view:].astype(np.float64, order="C")
    statistics = encoder.statistics(windows, context, series)
    return (windows - statistics.location[..., None]) / statistics.spread[..., None], statistics


def _ridge(moments: Moments, penalty: float) -> np.ndarray:
    """`argmin_W E|f - z W|^2 + penalty * |W|^2` for z of mean square 1; [view, H], one for all series."""
    return np.linalg.solve(moments.gram + penalty * np.eye(len(moments.gram)), moments.cross)


def _metric_root(ridge: np.ndarray, *, view: int, horizon: int, forecast_weight: float) -> np.ndarray:
    """R [view, view] with `R R^T = I / view + f^2 * W W^T / H`, so that |dz R| is the forecast-aware distance."""
    return np.linalg.cholesky(np.eye(view) / view + forecast_weight**2 / horizon * (ridge @ ridge.T))


def _principal(gram: np.ndarray, root: np.ndarray, width: int) -> np.ndarray:
    """[view, width]: z -> the leading principal coordinates of z R, for z with second moments `gram`."""
    return root @ _leading(root.T @ gram @ root, width)


def _leading(gram: np.ndarray, width: int) -> np.ndarray:
    """The leading eigenvectors of second moments, as columns."""
    _, vectors = np.linalg.eigh(gram)
    return np.asarray(vectors[:, ::-1][:, :width])


def _parts(
    encoder: DualKeyEncoder, view: int, context: np.ndarray, covariates: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Own shape and value parts of the contexts [B, N, L] of all series."""
    series = np.arange(context.shape[1])
    x, windows, statistics = encoder.compared(view, context, series, covariates)
    return encoder.own_shape(view, x, series), encoder.value_part(windows, statistics, series)


def _chunks(rows: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, len(rows), CHUNK):
        yield rows[start : start + CHUNK]
