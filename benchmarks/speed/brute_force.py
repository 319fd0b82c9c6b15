"""The straightforward search: raw windows, normalised, one matrix product, a mask for the time guard, `topk`.

What `search.py`, `memory.py` and `growth.py` compare the memory with. Nothing in the product uses this file.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from memory_index.leakage import Policy
from memory_index.tables.series import SeriesTable
from memory_index.types import Scope
from memory_index.windows import WindowSpec

QUERIES, PRODUCT = 256, 1 << 25  # of one product, at most: queries, and numbers of its matrix of distances (128 MiB)


class Keys(NamedTuple):
    """What one question is compared with. keys: float32 [n, E]; lengths: [n], squared; origin: int32 [n], rows."""

    keys: Tensor
    lengths: Tensor
    origin: Tensor


def normalised(values: np.ndarray, rows: np.ndarray, view: int) -> Tensor:
    """The last `view` steps up to each of these rows of a series, standardised: float32 [n, view]."""
    windows = torch.from_numpy(values.astype(np.float32)).unfold(0, view, 1)[torch.from_numpy(rows) - view + 1]
    return (windows - windows.mean(1, keepdim=True)) / (windows.std(1, keepdim=True) + 1e-5)


class RawWindows:
    """Windows of all series of a table at the same origin rows, under one view."""

    def __init__(self, table: SeriesTable, rows: np.ndarray, view: int) -> None:
        self.windows = torch.stack([normalised(series.values, rows, view) for series in table.series])  # [N, n, view]
        self.origin = torch.from_numpy(rows.astype(np.int32))

    def keys(self, scope: Scope, series: int = 0) -> Keys:
        """What a scope compares: windows of one series, of all moments, or of all series."""
        num_series, num, view = self.windows.shape
        if scope == "own":
            keys, origin = self.windows[series], self.origin
        elif scope == "joint":
            keys, origin = self.windows.transpose(0, 1).reshape(num, num_series * view), self.origin
        else:
            keys, origin = self.windows.reshape(num_series * num, view), self.origin.repeat(num_series)
        return Keys(keys, keys.square().sum(1), origin)


def brute_force(
    within: Keys, queries: Tensor, origin: np.ndarray, k: int, spec: WindowSpec, policy: Policy
) -> tuple[Tensor, Tensor]:
    """The k nearest admissible keys of queries [q, E] with these origin rows [q]: distances and places [q, k].

    A distance is squared, less the query's own length; +inf where fewer are admissible.
    """
    parts, at = [], torch.from_numpy(origin.astype(np.int32))[:, None]
    size = min(QUERIES, max(1, PRODUCT // len(within.keys)))
    for start in range(0, len(queries), size):
        distance = within.lengths - 2 * queries[start : start + size] @ within.keys.T
        gap = within.origin - at[start : start + size]
        hidden = gap > -spec.horizon if policy is Policy.CAUSAL else gap.abs() < spec.length
        distance[hidden] = torch.inf
        parts.append(distance.topk(k, dim=1, largest=False))
    distances, places = zip(*parts, strict=True)
    return torch.cat(distances), torch.cat(places)
