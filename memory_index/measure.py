"""Figures that a version records about itself: its temperatures and its recall, on a sample of its own windows.

The sample is spread evenly over series and rows. These figures ask under `disjoint`, so that a window never finds
itself or its overlapping neighbours. `closeness.py` and `usage.py` ask samples for other ends.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

import numpy as np

from memory_index.key_spaces import Segment
from memory_index.leakage import Policy
from memory_index.local import LocalMemory
from memory_index.memory import Memory
from memory_index.missing import filled
from memory_index.neighbours import Neighbours
from memory_index.types import KeySpace, Queries, Scope
from memory_index.windows import StoredWindows

SAMPLE = 256  # windows asked per scope
MAX_SERIES = 64  # from so many series at the most
MAX_DRAWN_SERIES = 256  # likewise where the sample is larger
LEAST_MOMENTS = 64  # drawn for the scope `joint`, however many series a moment has
TEMPERATURE_K = 50  # neighbours per key space that make the memory's forecast (docs/experiments.md)
LEAST_TEMPERATURE = 1e-12

Draw = Callable[[np.ndarray, int], np.ndarray]  # when windows become known [n], how many -> places in 0 .. n - 1


def temperatures(memory: LocalMemory) -> dict[KeySpace, float]:
    """The median squared distance of the K-th neighbour, or of the last one where fewer are admissible.

    1.0 for a key space in which no sampled window has any neighbour: then there is nothing to weigh.
    """
    squared: dict[KeySpace, list[np.ndarray]] = {record.space: [] for record in memory.manifest.spaces}
    for neighbours in sample_searches(memory, TEMPERATURE_K, Policy.DISJOINT):
        last = np.maximum(neighbours.valid.sum(axis=-1) - 1, 0)[..., None]
        farthest = np.take_along_axis(neighbours.distance, last, axis=-1)[..., 0].astype(np.float64)
        for number, space in enumerate(neighbours.spaces):
            squared[space].append(np.square(farthest[:, :, number].ravel()))
    result = {}
    for space, parts in squared.items():
        found = np.concatenate([part[np.isfinite(part)] for part in parts])
        result[space] = max(float(np.median(found)), LEAST_TEMPERATURE) if len(found) else 1.0
    return result


def recall_at_10(memory: LocalMemory) -> dict[KeySpace, float]:
    """Share of the ten nearest admissible windows that the search finds, for each key space.

    Which ten are the nearest is told by the exact scan of the same keys. 1.0 where no sampled window has any neighbour,
    and where there is no index, so that the search is that scan.
    """
    every = (group for segment in memory.segments for groups in segment.groups.values() for group in groups)
    if all(group.index is None for group in every):
        return dict.fromkeys((record.space for record in memory.manifest.spaces), 1.0)
    exact = memory.with_segments(without_indexes(memory))
    hits: dict[KeySpace, int] = {record.space: 0 for record in memory.manifest.spaces}
    wanted = dict(hits)
    for found, true in zip(*(sample_searches(each, 10, Policy.DISJOINT) for each in (memory, exact)), strict=True):
        for number, space in enumerate(found.spaces):
            ours, theirs = found.row[:, :, number], true.row[:, :, number]
            hits[space] += int(((theirs[..., None] == ours[..., None, :]).any(axis=-1) & (theirs >= 0)).sum())
            wanted[space] += int((theirs >= 0).sum())
    return {space: hits[space] / wanted[space] if wanted[space] else 1.0 for space in hits}


def without_indexes(memory: LocalMemory) -> list[Segment]:
    """The segments of a memory without their FAISS indexes, so that a search scans the same keys exactly."""
    return [
        dataclasses.replace(
            segment,
            groups={
                space: [dataclasses.replace(group, index=None) for group in groups]
                for space, groups in segment.groups.items()
            },
        )
        for segment in memory.segments
    ]


def self_distances(memory: LocalMemory) -> dict[KeySpace, float]:
    """How far sampled stored windows, encoded again, lie from their stored keys.

    The largest difference of any one number of a key, for each key space; about 0 if all is well.
    """
    worst = {record.space: 0.0 for record in memory.manifest.spaces}
    for segment in memory.segments:
        for scope in dict.fromkeys(space.scope for space in worst):
            for series, rows in _sample_rows(segment, scope):
                context = filled(memory.windows.inside.contexts(segment.first_row + rows), memory.windows.step.season)
                beside = memory.windows.covariates_of(segment.first_row + rows)
                for space in (space for space in worst if space.scope == scope):
                    covariates = None
                    if memory.encoder.covariates is not None and beside is not None:
                        windows = memory.encoder.covariates.of_values(beside, (space.view,))
                        covariates = memory.encoder.key_numbers(space.view, windows)
                    keys = memory.encoder.encode(space.view, context, series, (scope,), covariates).keys[scope]
                    stored = _stored_keys(segment, space, series, rows)
                    worst[space] = max(worst[space], float(np.abs(keys.reshape(stored.shape) - stored).max(initial=0)))
    return worst


def _stored_keys(segment: Segment, space: KeySpace, series: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """The keys of the windows (or, for `joint`, moments) at local rows [n, 1] or [n, N]; [n, E]."""
    group = int(series[0]) if space.scope == "own" else 0
    local = segment.rows(space.scope, group)
    position = rows[:, 0] if isinstance(local, slice) else np.searchsorted(local, rows[:, 0])
    return segment.groups[space][group].keys[position]


def _sample_rows(segment: Segment, scope: Scope) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(series numbers [N], local rows [n, N]) of windows spread evenly over a segment; N is 1 but for `joint`."""
    if scope == "joint":
        yield np.arange(segment.num_series), segment.moments[_even(len(segment.moments), SAMPLE)]
        return
    for series in _even(segment.num_series, MAX_SERIES):
        rows = segment.rows("own", int(series))
        assert isinstance(rows, np.ndarray), "only the scope pooled has a slice"
        yield np.array([series]), rows[_even(len(rows), max(4, SAMPLE // min(segment.num_series, MAX_SERIES)))][:, None]


def sample_searches(memory: LocalMemory, k: int, policy: Policy) -> Iterator[Neighbours]:
    """Sampled windows of the largest segment, asked at their own origin under a policy, one scope at a time."""
    segment = max(memory.segments, key=lambda segment: len(segment.windows))
    for scope in memory.manifest.scopes:
        for series, rows in _sample_rows(segment, scope):
            yield _asked_again(memory, series, segment.first_row + rows, k, policy, scope)


def drawn_searches(memory: Memory, k: int, policy: Policy, num: int) -> Iterator[tuple[np.ndarray, Neighbours]]:
    """Windows drawn from the whole of any memory, `num` for each scope, asked at their own origin.

    Each window is as likely as any other, but that at most `MAX_DRAWN_SERIES` series are asked. Yields the row ids of
    the windows, [n, N], with the answers.
    """
    return _searches(memory, k, policy, lambda known_at, num: _drawn(len(known_at), num), num)


def searches_as_known(memory: Memory, k: int, num: int) -> Iterator[tuple[np.ndarray, Neighbours]]:
    """Likewise under `causal`, but no later window has a say in whether one is drawn.

    The r-th window that became known is drawn with the chance num / r, or num / m if that is less, where m were known
    when the version was fitted. These give about `num`, and each doubling of the memory 0.7 `num` more.
    """
    fitted_known_at = memory.manifest.fitted_known_at
    return _searches(
        memory, k, Policy.CAUSAL, lambda known_at, num: _drawn_as_known(known_at, num, fitted_known_at), num
    )


def windows_as_known(memory: Memory, num: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(series numbers [N], row ids [n, N]) of windows drawn in the same way; whole moments where the version has the
    scope `joint`, so that every scope can be asked.
    """
    fitted_known_at = memory.manifest.fitted_known_at
    scope: Scope = "joint" if "joint" in memory.manifest.scopes else "own"
    yield from _drawn_rows(
        memory.windows, scope, lambda known_at, num: _drawn_as_known(known_at, num, fitted_known_at), num
    )


def _searches(memory: Memory, k: int, policy: Policy, draw: Draw, num: int) -> Iterator[tuple[np.ndarray, Neighbours]]:
    for scope in memory.manifest.scopes:
        for series, rows in _drawn_rows(memory.windows, scope, draw, num):
            yield rows, _asked_again(memory, series, rows, k, policy, scope)


def _asked_again(
    memory: Memory, series: np.ndarray, rows: np.ndarray, k: int, policy: Policy, scope: Scope
) -> Neighbours:
    """What a memory answers to its own windows, of series [N] at rows [n, N]."""
    queries = Queries(
        context=memory.windows.contexts(rows),
        origin=memory.windows.origin(rows[:, 0]),
        series_id=np.array(memory.windows.series_ids)[series],
        policy=policy,
        covariates=memory.windows.covariates_of(rows),
    )
    return memory.search(queries, k, scopes=(scope,))


def _drawn_rows(windows: StoredWindows, scope: Scope, draw: Draw, num: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(series numbers [N], row ids [n, N]) of windows drawn from a whole version; N is 1 but for `joint`.

    That one draws moments with as many windows together.
    """
    if scope == "joint":
        num_series, moments = len(windows.series_ids), windows.moments()
        drawn = draw(windows.known_at[moments[:, 0]], max(num // num_series, LEAST_MOMENTS))
        yield np.arange(num_series), moments[drawn]
        return
    wanted = _even(len(windows.series_ids), MAX_DRAWN_SERIES)
    rows = np.argsort(windows.series, kind="stable")
    rows = rows[np.isin(windows.series[rows], wanted)]
    rows = rows[draw(windows.known_at[rows], num)]
    for number in wanted:
        if (windows.series[rows] == number).any():
            yield np.array([number]), rows[windows.series[rows] == number][:, None]


def _even(num: int, at_most: int) -> np.ndarray:
    """Up to `at_most` of the numbers 0 .. num - 1, evenly spread."""
    return (
        np.unique(np.linspace(0, num - 1, min(num, at_most)).astype(np.int64)) if num else np.empty(0, dtype=np.int64)
    )


def _drawn(num: int, at_most: int) -> np.ndarray:
    """Up to `at_most` of the numbers 0 .. num - 1, one drawn from each of as many equal stretches; always the same.

    Drawn, since even steps can fall in with a season: a sample of nothing but midnights.
    """
    if num <= at_most:
        return np.arange(num)
    edges = np.linspace(0, num, at_most + 1).astype(np.int64)
    return np.random.default_rng(0).integers(edges[:-1], edges[1:])


def _drawn_as_known(known_at: np.ndarray, num: int, fitted_known_at: np.datetime64) -> np.ndarray:
    """The places that `searches_as_known` draws, ascending. known_at: datetime64[ns] [n]."""
    order = np.argsort(known_at, kind="stable")
    among = np.maximum(np.arange(len(order)) + 1, (known_at <= fitted_known_at).sum())
    lots = np.random.default_rng(0).random(len(order))  # each is the same however many follow
    return np.sort(order[lots * among < num])
