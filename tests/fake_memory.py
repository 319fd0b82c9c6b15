"""A memory in plain numpy: what `Memory.search` promises, without any of the ways in which it is made fast.

Everything but the keys is its own: the leak rule is written out again, distances are float64 sums, and nothing
is searched in blocks, by threads or through an index. So it can check the real memories, and stand in for one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from memory_index.encoder import KeyEncoder
from memory_index.errors import IncompatibleError, NotFoundError, UsageError
from memory_index.leakage import Policy
from memory_index.local import LocalMemory
from memory_index.neighbours import Neighbours
from memory_index.scaling import SeriesScale
from memory_index.types import SCOPES, Filter, KeySpace, Queries, Scope
from memory_index.versions.manifest import Manifest
from memory_index.windows import StoredWindows


@dataclass(frozen=True, kw_only=True)
class Candidates:
    """All keys of one key space in the order of their rows. rows: int64 [n], or [n, N] for a moment's N series."""

    keys: np.ndarray
    rows: np.ndarray


class FakeMemory:
    """Implements `Memory` by brute force over given keys."""

    def __init__(
        self, manifest: Manifest, encoder: KeyEncoder, windows: StoredWindows, candidates: dict[KeySpace, Candidates]
    ) -> None:
        self.manifest = manifest
        self.encoder = encoder
        self.windows = windows
        self.candidates = candidates
        self.records = {record.space: record for record in manifest.spaces}

    @classmethod
    def of(cls, memory: LocalMemory) -> FakeMemory:
        """Over the keys of an opened version."""
        candidates = {record.space: stored_keys(memory, record.space) for record in memory.manifest.spaces}
        return cls(memory.manifest, memory.encoder, memory.windows, candidates)

    @property
    def scale(self) -> SeriesScale:
        """See `Memory.scale`."""
        return self.encoder.scale

    @property
    def causal_only(self) -> bool:
        """See `Memory.causal_only`."""
        return False

    @property
    def answered_by(self) -> str:
        """See `Memory.answered_by`."""
        return ""

    def linear_forecast(self, queries: Queries) -> np.ndarray:
        """See `Memory.linear_forecast`."""
        series = self.windows.numbers_of(queries.series_id)
        return self.encoder.linear_forecast(max(self.windows.views), queries.context, series)

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
        """See `Memory.search`."""
        if k < 1 or min_gap < 0:
            raise UsageError("k or min_gap")
        where = where or Filter()
        number = self.windows.series_number
        series = np.array([number.get(str(name), -1) for name in queries.series_id])
        spaces = self.asked(queries, series, scopes, views, where)
        shape = (len(queries), len(series), len(spaces), k)
        row, parts = np.full(shape, -1), np.full((3, *shape), np.inf, dtype=np.float32)
        location, spread = np.empty(shape[:3]), np.empty(shape[:3])
        for v, space in enumerate(spaces):
            for b in range(len(queries)):
                keys, statistics = self.encode(space, queries.context[b], series)
                location[b, :, v], spread[b, :, v] = statistics[:2]
                for n in range(len(series)):
                    key, is_flat = keys[0 if space.scope == "joint" else n], bool(statistics.flat[n])
                    found, found_parts = self.nearest(space, key, series[n], is_flat, queries, b, k, where, min_gap)
                    row[b, n, v, : len(found)], parts[:, b, n, v, : len(found)] = found, found_parts
        return Neighbours(
            queries=queries,
            spaces=spaces,
            row=row,
            distance=parts[0],
            shape_distance=parts[1],
            value_distance=parts[2],
            query_location=location,
            query_spread=spread,
            temperature=np.array([self.records[space].temperature for space in spaces], dtype=np.float32),
            linear_maps={space.view: self.encoder.linear_map(space.view) for space in spaces},
            windows=self.windows,
            fingerprint=self.manifest.fingerprint,
        )

    def nearest(
        self,
        space: KeySpace,
        key: np.ndarray,
        series: int,
        is_flat: bool,
        queries: Queries,
        b: int,
        k: int,
        where: Filter,
        min_gap: int,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Rows [m] and (distance, shape, value) [3, m] of one query in one key space, m <= k."""
        keys, rows = self.candidates[space].keys, self.candidates[space].rows
        first = rows[:, 0] if space.scope == "joint" else rows
        kept = self.may_be_seen(first, queries, b)
        flat = self.windows.flat[:, self.windows.views.index(space.view)]
        if space.scope != "joint":
            kept &= flat[first] == is_flat
        if space.scope == "own":
            kept &= self.windows.series[first] == series
        if where.series_id is not None:
            kept &= np.isin(np.array(self.windows.series_ids)[self.windows.series[first]], where.series_id)
        origin = self.windows.origin(first)
        kept &= (origin >= where.after) if where.after is not None else True
        kept &= (origin <= where.before) if where.before is not None else True

        squares = np.square(keys[kept].astype(np.float64) - key)
        width = squares.shape[1] - self.records[space].value_width
        w = self.encoder.config.shape_weight if width < squares.shape[1] else 1.0
        total = squares.sum(axis=1)
        order = np.lexsort((first[kept], total.astype(np.float32)))
        order = order[apart(self.windows, origin[kept][order], k, min_gap)]
        value = squares[:, width:].sum(axis=1)[order] / ((1 - w) if w < 1 else 1.0)
        shape = squares[:, :width].sum(axis=1)[order] / w
        chosen = rows[kept][order]
        if space.scope == "joint":  # the windows of the queried series at those moments, where they are as flat
            chosen = chosen[:, series]
            fits = flat[chosen] == is_flat
            order, chosen, shape, value = order[fits], chosen[fits], shape[fits], value[fits]
        return chosen, np.sqrt(np.stack([total[order], shape, value]))

    def may_be_seen(self, rows: np.ndarray, queries: Queries, b: int) -> np.ndarray:
        """The leak rule, written out: bool [n]."""
        spec, times = self.windows.spec, self.windows.times
        last = self.windows.origin_position[rows]
        if queries.policy is Policy.CAUSAL:
            return self.windows.known_at[rows] <= queries.origin[b]
        own = self.windows.step.add(queries.origin[b : b + 1], 1 - spec.lookback)[0]
        end = self.windows.step.add(queries.origin[b : b + 1], spec.horizon)[0]
        return (times[last + spec.horizon] < own) | (times[last - spec.lookback + 1] > end)

    def encode(self, space: KeySpace, context: np.ndarray, series: np.ndarray):
        """Keys [N, E] ([1, E] for `joint`) and statistics [3 of N] of one moment."""
        order = np.argsort(series) if space.scope == "joint" else np.arange(len(series))
        encoded = self.encoder.encode(space.view, context[None, order], series[order], (space.scope,))
        keys = encoded.keys[space.scope]
        statistics = type(encoded.statistics)(*(part[0][np.argsort(order)] for part in encoded.statistics))
        return keys.reshape(-1, keys.shape[-1]), statistics

    def asked(
        self,
        queries: Queries,
        series: np.ndarray,
        scopes: tuple[Scope, ...] | None,
        views: tuple[int, ...] | None,
        where: Filter,
    ) -> tuple[KeySpace, ...]:
        """The key spaces to search."""
        if queries.context.shape[2] != self.windows.spec.lookback:
            raise IncompatibleError("lookback")
        if not set(where.series_id or ()) <= set(self.windows.series_ids):
            raise NotFoundError("series of the filter")
        can: dict[str, bool] = {"pooled": True, "own": bool((series >= 0).all()) and where.series_id is None}
        can["joint"] = can["own"] and sorted(series) == list(range(len(self.windows.series_ids)))
        built = {space.scope for space in self.records}
        if scopes is None:
            scopes = tuple(s for s in SCOPES if s in built and can[s])
        if not scopes or not set(scopes) <= set(SCOPES):
            raise UsageError("scopes")
        if not all(scope in built and can[scope] for scope in scopes) or not set(views or ()) <= set(
            self.windows.views
        ):
            raise IncompatibleError("scope or view")
        return tuple(s for s in self.records if s.scope in scopes and s.view in (views or self.windows.views))


def apart(windows: StoredWindows, origin: np.ndarray, k: int, min_gap: int) -> list[int]:
    """Positions of the first k origins that are at least `min_gap` steps from every one taken before."""
    if min_gap == 0:
        return list(range(min(k, len(origin))))
    grid = windows.step.range(windows.times.min(), len(np.unique(windows.times)))
    step = np.searchsorted(grid, origin)
    taken: list[int] = []
    for place, number in enumerate(step):
        if len(taken) < k and all(abs(int(number) - int(step[other])) >= min_gap for other in taken):
            taken.append(place)
    return taken


def stored_keys(memory: LocalMemory, space: KeySpace) -> Candidates:
    """The keys of one key space over all segments, with the rows that they belong to."""
    keys, rows = [], []
    for segment in memory.segments:
        for group, stored in enumerate(segment.groups[space]):
            local = segment.moments if space.scope == "joint" else np.arange(len(segment.windows))
            if space.scope == "own":
                local = np.flatnonzero(segment.windows.series == group)
            keys.append(stored.keys)
            rows.append(local + segment.first_row)
    return Candidates(keys=np.concatenate(keys), rows=np.concatenate(rows))
