"""The border between a memory and whoever asks it: `Queries` in, `Neighbours` out, `Memory` between.

Read this file first. A query is a context *plus the time at which we stand* and a policy; there is no
way to ask without them. The answer checks itself against the leak rule when it is constructed, wherever
it came from: a search, a network reply or a cache. How rows are found is not told here (`local.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol, get_args

import numpy as np

from memory_index import combine
from memory_index.errors import DataError, UsageError
from memory_index.leakage import Policy, TimeSpans, require_admissible
from memory_index.scaling import SeriesScale
from memory_index.windows import StoredWindows

if TYPE_CHECKING:
    from memory_index.versions.manifest import Manifest

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

    context: float32 [B, N, L], raw units, oldest step first, no missing value.
    origin: datetime64[ns] [B], time of the last context step ("now"); UTC if the memory has a time zone.
    series_id: str [N].
    policy: which windows may be seen (leakage.Policy). Required: there is no default.

    Raises `UsageError` for a wrong shape, dtype or policy, `DataError` for a missing value or time.
    """

    context: np.ndarray
    origin: np.ndarray
    series_id: np.ndarray
    policy: Policy

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
        if not np.isfinite(self.context).all():
            b, n, step = (int(i) for i in np.argwhere(~np.isfinite(self.context))[0])
            at = np.datetime_as_string(self.origin[b], unit="auto")
            raise DataError(
                f"context of series '{self.series_id[n]}' at origin {at} has a missing or infinite value "
                f"{self.context.shape[2] - 1 - step} steps before the origin",
                hint="fill the gap first (--on-nan ffill repeats the last value), or choose another origin",
            )

    def __len__(self) -> int:
        return len(self.origin)


@dataclass(frozen=True, kw_only=True, slots=True)
class Neighbours:
    """The K nearest admissible windows of each query in each of V key spaces, nearest first.

    row, distance, shape_distance, value_distance: [B, N, V, K]; int64 row ids (-1 in unused slots) and
    float32 distances (+inf there). `distance^2 = w * shape_distance^2 + (1 - w) * value_distance^2`
    (docs/method.md), in units of a window's own spread. query_location, query_spread: float64 [B, N, V], the
    query's own statistics under each view. temperature: float32 [V], stored with the version. linear_maps: of each
    view, float32 [view, H], stored with it too (`KeyEncoder.linear_map`).

    Constructing it raises `LeakError` if any row is not admissible for its query.
    """

    queries: Queries
    spaces: tuple[KeySpace, ...]
    row: np.ndarray
    distance: np.ndarray
    shape_distance: np.ndarray
    value_distance: np.ndarray
    query_location: np.ndarray
    query_spread: np.ndarray
    temperature: np.ndarray
    linear_maps: Mapping[int, np.ndarray]
    windows: StoredWindows
    fingerprint: str

    def __post_init__(self) -> None:
        b, n, _ = self.queries.context.shape
        if self.row.ndim != 4 or self.row.shape[:3] != (b, n, len(self.spaces)):
            raise UsageError(f"row must be [{b}, {n}, {len(self.spaces)}, K], not {self.row.shape}")
        for name in ("distance", "shape_distance", "value_distance"):
            if getattr(self, name).shape != self.row.shape:
                raise UsageError(
                    f"{name} must have the shape of row, {self.row.shape}, not {getattr(self, name).shape}"
                )
        valid = self.valid
        if (self.row >= len(self.windows)).any() or not (np.isfinite(self.distance) == valid).all():
            raise UsageError("row ids and distances do not belong together: unused slots need row -1 and distance +inf")
        spans, step, spec = self.spans, self.windows.step, self.windows.spec
        require_admissible(
            self.queries.policy,
            spans,
            valid,
            origin=self.queries.origin[:, None, None, None],
            query_start=step.add(self.queries.origin, 1 - spec.lookback)[:, None, None, None],
            query_end=step.add(self.queries.origin, spec.horizon)[:, None, None, None],
        )

    @property
    def view_number(self) -> np.ndarray:
        """int64 [V]: which of the windows' views each key space compares."""
        return np.array([self.windows.views.index(space.view) for space in self.spaces], dtype=np.int64)

    @property
    def valid(self) -> np.ndarray:
        """bool [B, N, V, K]: whether the slot holds a neighbour."""
        return self.row >= 0

    @property
    def spans(self) -> TimeSpans:
        """Start, end and known_at of each neighbour, datetime64[ns] [B, N, V, K], NaT in unused slots."""
        spans = self.windows.spans(np.maximum(self.row, 0))
        missing = ~self.valid
        for times in (spans.start_at, spans.end_at, spans.known_at):
            times[missing] = np.datetime64("NaT")
        return spans

    @property
    def known_at(self) -> np.ndarray:
        """datetime64[ns] [B, N, V, K], NaT in unused slots."""
        return self.spans.known_at

    @property
    def series(self) -> np.ndarray:
        """int32 [B, N, V, K]: number of the neighbour's series in the version, -1 in unused slots."""
        return np.where(self.valid, self.windows.series[np.maximum(self.row, 0)], -1).astype(np.int32)

    @property
    def weights(self) -> np.ndarray:
        """float32 [B, N, V, K]: softmax(-distance^2 / temperature) within each (scope, view), 0 in unused slots."""
        return combine.weights(self)

    def contexts(self) -> np.ndarray:
        """float32 [B, N, V, K, L], raw units of each neighbour's own series; NaN in unused slots."""
        return np.where(self.valid[..., None], self.windows.contexts(np.maximum(self.row, 0)), np.float32(np.nan))

    def futures(self) -> np.ndarray:
        """float32 [B, N, V, K, H], raw units of each neighbour's own series; NaN in unused slots."""
        return np.where(self.valid[..., None], self.windows.futures(np.maximum(self.row, 0)), np.float32(np.nan))

    def aligned_futures(self) -> np.ndarray:
        """float32 [B, N, V, K, H]: the futures as they would follow this query; NaN in unused slots.

        In the query's own location and spread, and moved by what the linear map makes of the difference between the
        two contexts (docs/method.md).
        """
        return combine.aligned_futures(self)

    def space_forecasts(self) -> np.ndarray:
        """float32 [B, N, V, H]: the weighted mean of the aligned futures of each key space; NaN where it has none."""
        return combine.space_forecasts(self)

    def forecast(self, *, on_empty: combine.OnEmpty = "error") -> np.ndarray:
        """float32 [B, N, H]: the memory-only forecast, the mean over key spaces, in the query's own units.

        on_empty: a query without any neighbour raises `NotFoundError`, or gets its `last-value`.
        """
        return combine.forecast(self, on_empty)

    def quantiles(self, levels: tuple[float, ...], *, on_empty: combine.OnEmpty = "error") -> np.ndarray:
        """float32 [B, N, H, Q]: weighted quantiles of all aligned futures, each level in (0, 1)."""
        return combine.quantiles(self, levels, on_empty)


@dataclass(frozen=True, kw_only=True, slots=True)
class Filter:
    """Which stored windows may answer, beside the leak rule: by series, and by the time of their origin.

    series_id: only these series (`own` and `pooled`). after, before: datetime64[ns], both inclusive.
    """

    series_id: tuple[str, ...] | None = None
    after: np.datetime64 | None = None
    before: np.datetime64 | None = None


class Memory(Protocol):
    """Anything that can be asked: a local version, a remote one, a vector database, a fake in a test."""

    @property
    def manifest(self) -> Manifest:
        """What the version is and how it was built."""
        ...

    @property
    def windows(self) -> StoredWindows:
        """The windows of the version by row id, and the series that they are cut from."""
        ...

    @property
    def scale(self) -> SeriesScale:
        """The training scale of each series of the version, float64 [N_v]: the units of its keys and of errors."""
        ...

    @property
    def causal_only(self) -> bool:
        """Whether it answers under no other policy than `causal`."""
        ...

    @property
    def answered_by(self) -> str:
        """What decides its answers beside the version, such as an approximate index; empty for the version's own files.

        Answers that are kept for later belong to the version and to this.
        """
        ...

    def linear_forecast(self, queries: Queries) -> np.ndarray:
        """A baseline: what the closed-form linear map behind the widest view forecasts, float32 [B, N, H], raw units.

        Raises `IncompatibleError` for another lookback.
        """
        ...

    def search(
        self,
        queries: Queries,
        k: int,
        *,
        scopes: tuple[Scope, ...] | None = None,
        views: tuple[int, ...] | None = None,
        where: Filter | None = None,
        min_gap: int = 0,
    ) -> Neighbours:
        """The k nearest admissible windows per query and key space, by (squared distance, row id).

        `joint` finds the k nearest moments; a series has no neighbour at a moment where it was flat and now is not, or
        the other way round.

        scopes: default is all that the version has and the query can ask (only `pooled`, where a series is not of the
        version); a scope asked for by name that cannot be served is an error.
        views: default all. where: see `Filter`. min_gap: neighbours of one key space have origins at least
        so many steps apart (whichever series they come from), so that five neighbours are five episodes.

        Raises `UsageError` (k or an option out of range), `IncompatibleError` (lookback, views or scope that
        the version does not have), `NotFoundError` (unknown series).
        """
        ...
