"""How far the quantiles of a memory alone should lie apart: told by what it would have said of its own windows.

A sample of the stored windows is asked again under `causal`, each at its own origin, and what followed is known: all
quantiles of a window are moved away from its forecast, or towards it, by one factor, that of least quantile loss. As in
`closeness.py`, only windows that are known by a query's origin tell anything of it, and which are sampled is decided by
earlier ones alone. The linear maps behind the keys were fitted on windows of the training part, so that these are
forecast a few percent too well; `cli train` holds windows out and is calibrated better.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from memory_index.leakage import Policy
from memory_index.measure import windows_as_known
from memory_index.memory import Memory
from memory_index.neighbours import Neighbours
from memory_index.types import Queries, Scope

SAMPLE = 256  # windows of the training part that are asked, about
LEAST_SAMPLE = 20  # sampled windows without which nothing is changed
LEVELS = (0.1, 0.25, 0.5, 0.75, 0.9)
STRETCHES = tuple(np.round(np.geomspace(0.5, 2.0, 13), 3).tolist())  # 1 is one of them


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class UsualErrors:
    """What each stretch would have cost n sampled windows. known_at: datetime64[ns] [n], ascending. loss: float64
    [n, len(STRETCHES)], quantile loss in spreads of the window.
    """

    known_at: np.ndarray
    loss: np.ndarray

    def stretch(self, at: np.ndarray) -> np.ndarray:
        """The factor of least loss over the later half of the sampled windows that are known by a time: early ones had
        little to be near to. 1 where too few tell. at: datetime64[ns] [B] -> float64 [B].
        """
        num = np.searchsorted(self.known_at, at, side="right")
        total = np.concatenate([np.zeros((1, len(STRETCHES))), np.cumsum(self.loss, axis=0)])
        least = (total[num] - total[num // 2]).argmin(axis=1)
        return np.where(num - num // 2 >= LEAST_SAMPLE, np.array(STRETCHES)[least], 1.0)


def usual_errors(
    memory: Memory, k: int, *, scopes: tuple[Scope, ...] | None = None, views: tuple[int, ...] | None = None
) -> UsualErrors:
    """Ask a sample of a memory's windows: a few hundred searches, so keep the answer. k, scopes, views: of the forecast
    that is calibrated.
    """
    known_at, losses = [np.empty(0, dtype="datetime64[ns]")], [np.empty((0, len(STRETCHES)))]
    windows = memory.windows
    for series, rows in windows_as_known(memory, SAMPLE):
        queries = Queries(
            context=windows.contexts(rows),
            origin=windows.origin(rows[:, 0]),
            series_id=np.array(windows.series_ids)[series],
            policy=Policy.CAUSAL,
            covariates=windows.covariates_of(rows),
        )
        found = memory.search(queries, k, scopes=scopes, views=views)
        center = found.forecast(on_empty="last-value")[..., None].astype(np.float64)
        apart = found.quantiles(LEVELS, on_empty="last-value") - center
        missed = (windows.futures(rows) - center[..., 0])[..., None]
        spread = windows.spread[rows, 0].astype(np.float64)  # of the window itself: no later one has a say
        whole = np.any(found.valid, axis=(2, 3)) & np.isfinite(missed).any(axis=(2, 3)) & (spread > 0)
        by_stretch = [_pinball(missed - stretch * apart) for stretch in STRETCHES]
        loss = np.stack(by_stretch, axis=-1) / np.where(spread > 0, spread, 1.0)[..., None]
        known_at.append(np.broadcast_to(windows.known_at[rows], whole.shape)[whole])
        losses.append(loss[whole])
    when, loss = np.concatenate(known_at), np.concatenate(losses)
    order = np.argsort(when, kind="stable")
    return UsualErrors(known_at=when[order], loss=loss[order])


def calibrated(
    found: Neighbours, center: np.ndarray, levels: tuple[float, ...], usual: UsualErrors | None
) -> np.ndarray:
    """The quantiles of an answer as of each of its origins, float32 [B, N, H, Q]. center: its forecast, [B, N, H].

    usual: may be None where no levels are asked for.
    """
    if usual is None or not levels:
        return np.empty((*center.shape, 0), dtype=np.float32)
    return stretched(found.quantiles(levels, on_empty="last-value"), center, usual.stretch(found.queries.origin))


def stretched(quantiles: np.ndarray, center: np.ndarray, stretch: np.ndarray) -> np.ndarray:
    """quantiles: [B, N, H, Q]; center: [B, N, H]; stretch: [B] -> float32, quantiles moved away from their center."""
    middle = center[..., None]
    return np.asarray(middle + stretch[:, None, None, None] * (quantiles - middle), dtype=np.float32)


def _pinball(error: np.ndarray) -> np.ndarray:
    """[B, N, H, Q] -> [B, N]: mean quantile loss at `LEVELS`; missing steps do not count."""
    tau, there = np.array(LEVELS), np.isfinite(error)
    loss = np.where(there, np.maximum(tau * error, (tau - 1) * error), 0.0).sum(axis=(2, 3))
    return np.asarray(loss / np.maximum(there.sum(axis=(2, 3)), 1))
