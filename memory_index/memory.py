"""Who answers: the `Memory` protocol, and what every memory refuses in the same words.

A version opened on this machine is `local.py`, one behind a service or in a Milvus `service/` and `milvus/`.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from memory_index.covariate_tables import require_columns
from memory_index.encoder import DualKeyEncoder, KeyEncoder
from memory_index.errors import IncompatibleError, NotFoundError, UsageError
from memory_index.growing_maps import GrowingMaps
from memory_index.missing import filled
from memory_index.neighbours import Neighbours
from memory_index.scaling import SeriesScale
from memory_index.types import SCOPES, Filter, KeySpace, Queries, Scope
from memory_index.versions.manifest import Manifest
from memory_index.windows import StoredWindows, WindowSpec


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
        """The training scale of each series, float64 [N_v]: that of the keys, in units of the version's transform."""
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
        """A baseline: what the closed-form linear map behind the widest view forecasts, float32 [B, N, H], raw units;
        of a version with covariates, the map as of each origin (`growing_maps.py`).

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


def raw_units(memory: Memory) -> np.ndarray:
    """The raw training standard deviation of each series of a version, float64 [N_v]: what errors are counted in."""
    transform = memory.manifest.transform
    return np.array(transform.unit) if transform else memory.scale.std


def linear_forecast(
    encoder: KeyEncoder, windows: StoredWindows, queries: Queries, growing: GrowingMaps | None
) -> np.ndarray:
    """See `Memory.linear_forecast`. Out of a transform it comes by its inverse alone, so it is rather a median."""
    context = filled(windows.queries_inside(queries).context, windows.step.season)
    view, beside, series = max(windows.views), None, windows.numbers_of(queries.series_id)
    if encoder.covariates is not None and queries.covariates is not None:
        beside = encoder.covariates.of_values(queries.covariates, (view,))
    if growing is None or not isinstance(encoder, DualKeyEncoder):
        return windows.curve(queries).inverse(encoder.linear_forecast(view, context, series, beside))
    x, _, statistics = encoder.explanatory(view, context, series, beside)
    own = growing.of_queries(view, queries.origin, x)
    inside = own * statistics.spread[..., None] + statistics.location[..., None]
    return windows.curve(queries).inverse(inside.astype(np.float32))


def spaces_asked(
    manifest: Manifest,
    windows: StoredWindows,
    queries: Queries,
    scopes: tuple[Scope, ...] | None,
    views: tuple[int, ...] | None,
    where: Filter | None,
) -> tuple[KeySpace, ...]:
    """The key spaces that a question is answered from, in the version's order; see `Memory.search`.

    Raises if one that was asked for cannot be served. Whoever asks another machine knows by it what must come back.
    """
    where = where or Filter()
    for name in where.series_id or ():
        if name not in windows.series_number:
            known = ", ".join(windows.series_ids[:8])
            raise NotFoundError(f"the filter's series '{name}' is not in this memory", hint=f"it has {known}")
    built = manifest.scopes
    series = windows.numbers_of(queries.series_id)
    refused = {scope: _refusal(scope, manifest, windows, queries, series, where) for scope in SCOPES}
    if scopes is None:
        scopes = tuple(scope for scope in built if not refused[scope])
        if not scopes:
            raise NotFoundError(next(reason for scope in built if (reason := refused[scope])))
    if not scopes:
        raise UsageError("at least one scope is needed", hint=f"choose {', '.join(SCOPES)}")
    for scope in scopes:
        if scope not in SCOPES:
            raise UsageError(f"unknown scope '{scope}'", hint=f"choose {', '.join(SCOPES)}")
        if refused[scope]:
            raise IncompatibleError(f"scope '{scope}' cannot be served: {refused[scope]}")
    if views == ():
        raise UsageError("no view is asked for", hint=f"choose from {list(windows.views)}, or leave views out")
    for view in views or ():
        if view not in windows.views:
            raise IncompatibleError(f"this memory has no view of {view} steps", hint=f"it has {list(windows.views)}")
    chosen = views or windows.views
    return tuple(space for space in manifest.key_spaces if space.scope in scopes and space.view in chosen)


def _refusal(
    scope: Scope, manifest: Manifest, windows: StoredWindows, queries: Queries, series: np.ndarray, where: Filter
) -> str:
    """Why a scope cannot answer these queries; empty if it can."""
    known = windows.series_ids
    unseen = [str(queries.series_id[n]) for n in np.flatnonzero(series < 0)]
    if scope not in manifest.scopes:
        return (
            f"this memory was built without it ({manifest.joint})"
            if scope == "joint"
            else "this memory was built without it"
        )
    if scope != "pooled" and unseen:
        listed = ", ".join(known[:8]) + (", ..." if len(known) > 8 else "")
        return f"series '{unseen[0]}' is not in this memory, which has {listed}"
    if scope == "joint" and not np.array_equal(np.sort(series), np.arange(len(known))):
        return f"it compares all {len(known)} series of a moment, but the query has {len(series)}"
    if scope != "pooled" and where.series_id is not None:
        return "a filter by series needs the scope 'pooled'"
    return ""


def require_lookback(queries: Queries, windows: StoredWindows) -> None:
    """Raise `IncompatibleError` unless the queries are as long as the stored windows' contexts."""
    lookback = windows.spec.lookback
    if queries.context.shape[2] != lookback:
        raise IncompatibleError(
            f"the query has a lookback of {queries.context.shape[2]} steps, but this memory's windows have {lookback}",
            hint=f"give the last {lookback} steps, or build a version with another --lookback",
        )


def require_covariates(queries: Queries, manifest: Manifest) -> None:
    """Raise `IncompatibleError` unless queries bring the version's covariates, over context and horizon."""
    columns, given = manifest.covariates, queries.covariates
    if given is None and columns:
        require_columns("the query", (), columns)
    if given is not None and not columns:
        raise IncompatibleError(
            "the query brings covariates, but this version was built without any",
            hint="ask without them, or build a version with --known, --observed or --static",
        )
    expected = (len(columns), manifest.window.length)
    if given is not None and given.shape[2:] != expected:
        names = ", ".join(column.name for column in columns)
        raise IncompatibleError(
            f"the query's covariates are {given.shape[2]} columns over {given.shape[3]} steps, but this version has "
            f"{expected[0]} ({names}) over {expected[1]}, its context and its horizon",
        )


def require_counts(k: int, min_gap: int) -> None:
    """Raise `UsageError` unless these can be searched with; see `Memory.search`."""
    if k < 1 or min_gap < 0:
        raise UsageError(f"k must be at least 1 and min_gap at least 0, not {k} and {min_gap}")


def too_much_missing(context: np.ndarray, space: KeySpace, spec: WindowSpec) -> np.ndarray:
    """Which queries have no answer from a key space, bool [B, N]: more than `max_missing` of the view is missing.

    context: [B, N, L], NaN where missing. Whoever compares whole moments (`joint`) counts the cells of all series
    together as well. Where only whole windows are taken (`max_missing` 0), the whole context has to be there.
    """
    if spec.max_missing == 0:
        hidden = np.isnan(context).any(axis=-1)
        return hidden | (hidden.any(axis=1, keepdims=True) & (space.scope == "joint"))
    num = np.isnan(context[..., -space.view :]).sum(axis=-1)
    hidden = num > spec.most_missing(space.view)
    if space.scope == "joint":
        hidden |= (num.mean(axis=1) > spec.most_missing(space.view))[:, None]
    return hidden
