"""What a memory is asked: `Queries`, and the names of key spaces.

Read this file first. A query is a context *plus the time at which we stand* and a policy; there is no
way to ask without them. The answer is `neighbours.py`, who answers `memory.py`; how rows are found `local.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, get_args

import numpy as np

from memory_index.errors import DataError, UsageError
from memory_index.leakage import Policy

Scope = Literal["own", "joint", "pooled"]
SCOPES: tuple[Scope, ...] = get_args(Scope)
MAX_JOINT_SERIES = 64  # of the scope joint: beyond, whole moments are hardly ever alike


class KeySpace(NamedTuple):
    """One searchable set of keys: whose windows are compared (`scope`) over how many last steps (`view`)."""

    scope: Scope
    view: int

    def __str__(self) -> str:
        return f"{self.scope}-{self.view}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Queries:
    """B moments of N series that share them. Callers hand over raw windows, never vectors.

    context: float32 [B, N, L], raw units, oldest step first; NaN where a cell is missing.
    origin: datetime64[ns] [B], time of the last context step ("now"); UTC if the memory has a time zone.
    series_id: str [N].
    policy: which windows may be seen (leakage.Policy). Required: there is no default.
    covariates: float32 [B, N, C, L + H], the version's covariates in its order, raw, over the context and the horizon;
    NaN where missing, as observed ones are over the horizon. None for a version without covariates.

    Raises `UsageError` for a wrong shape, dtype or policy, `DataError` for an infinite value or a missing time.
    """

    context: np.ndarray
    origin: np.ndarray
    series_id: np.ndarray
    policy: Policy
    covariates: np.ndarray | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.policy, Policy):
            raise UsageError(f"policy must be a Policy, not {self.policy!r}", hint="Policy.CAUSAL or Policy.DISJOINT")
        if self.context.ndim != 3 or self.context.dtype != np.float32:
            raise UsageError(f"context must be float32 [B, N, L], not {self.context.dtype} {self.context.shape}")
        if self.origin.dtype != np.dtype("datetime64[ns]") or self.origin.shape != self.context.shape[:1]:
            raise UsageError(
                f"origin must be datetime64[ns] [{len(self.context)}], not {self.origin.dtype} {self.origin.shape}"
            )
        if self.series_id.shape != self.context.shape[1:2]:
            raise UsageError(f"series_id must be str [{self.context.shape[1]}], not {self.series_id.shape}")
        if np.isnat(self.origin).any():
            raise DataError(f"query {int(np.isnat(self.origin).argmax())} has no origin (NaT)")
        if np.isinf(self.context).any():
            b, n, step = (int(i) for i in np.argwhere(np.isinf(self.context))[0])
            at = np.datetime_as_string(self.origin[b], unit="auto")
            raise DataError(
                f"context of series '{self.series_id[n]}' at origin {at} has an infinite value "
                f"{self.context.shape[2] - 1 - step} steps before the origin",
                hint="correct it, or give NaN: a missing value",
            )

        if self.covariates is not None:
            self._check_covariates(self.covariates)

    def _check_covariates(self, covariates: np.ndarray) -> None:
        b, n, lookback = self.context.shape
        if (
            covariates.dtype != np.float32
            or covariates.ndim != 4
            or covariates.shape[:2] != (b, n)
            or covariates.shape[3] <= lookback
        ):
            raise UsageError(
                f"covariates must be float32 [{b}, {n}, C, more than {lookback}], not {covariates.dtype} "
                f"{covariates.shape}"
            )
        if np.isinf(covariates).any():
            b, n, c, place = (int(i) for i in np.argwhere(np.isinf(covariates))[0])
            at = np.datetime_as_string(self.origin[b], unit="auto")
            raise DataError(
                f"covariate number {c + 1} of series '{self.series_id[n]}' at origin {at} has an infinite value "
                f"{place + 1 - lookback:+d} steps from the origin",
                hint="correct it, or give NaN: a missing value",
            )

    def __len__(self) -> int:
        return len(self.origin)

    def at_moments(self, chosen: slice | np.ndarray) -> Queries:
        """The same of some of the moments. chosen: slice, int [b] or bool [B]."""
        covariates = None if self.covariates is None else self.covariates[chosen]
        return replace(self, context=self.context[chosen], origin=self.origin[chosen], covariates=covariates)

    def of_series(self, chosen: slice | np.ndarray) -> Queries:
        """The same of some of the series."""
        covariates = None if self.covariates is None else self.covariates[:, chosen]
        return replace(self, context=self.context[:, chosen], series_id=self.series_id[chosen], covariates=covariates)


@dataclass(frozen=True, kw_only=True, slots=True)
class Filter:
    """Which stored windows may answer, beside the leak rule: by series, and by the time of their origin.

    series_id: only these series (`own` and `pooled`). after, before: datetime64[ns], both inclusive.
    """

    series_id: tuple[str, ...] | None = None
    after: np.datetime64 | None = None
    before: np.datetime64 | None = None
