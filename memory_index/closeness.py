"""How close is close: the distances that are usual in a memory, and whether a query's are unusual.

The yardstick is a sample of the memory's own windows, each asked under `causal` at its own origin: how far away its
nearest neighbour was then. Nothing here changes a forecast. What is said of a query uses only sampled windows that are
known by its origin, and which are sampled is decided by the training part and earlier windows alone, not by how many
follow or what is missing there. So it cannot tell of later values either.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from memory_index.measure import searches_as_known
from memory_index.memory import Memory
from memory_index.neighbours import Neighbours
from memory_index.types import KeySpace

UNUSUAL = 0.95  # from this share of usual distances below a query's on, it has no close analogue
SAMPLE = 512  # windows of the training part asked in each scope, about; see `searches_as_known`
LEAST_SAMPLE = 20  # sampled windows without which nothing is said


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class UsualDistances:
    """Distances to the nearest neighbour of n sampled windows in each key space.

    known_at: datetime64[ns] [n], ascending. distance: float32 [n], finite. n differs by key space.
    """

    known_at: Mapping[KeySpace, np.ndarray]
    distance: Mapping[KeySpace, np.ndarray]

    def until(self, space: KeySpace, at: np.datetime64) -> np.ndarray:
        """float32 [m], ascending: the distances of the later half of the sampled windows that are known by a time.

        The later half, because early windows had little to be near to.
        """
        num = int(np.searchsorted(self.known_at[space], at, side="right"))
        return np.sort(self.distance[space][num // 2 : num])

    def share_closer(self, space: KeySpace, distance: float, at: np.datetime64) -> float | None:
        """Share of the usual distances up to a time that are smaller; None where too few windows tell."""
        usual = self.until(space, at)
        return float(np.searchsorted(usual, distance) / len(usual)) if len(usual) >= LEAST_SAMPLE else None


def usual_distances(memory: Memory) -> UsualDistances:
    """Ask a sample of a memory's windows: a few hundred searches, so keep the answer where many queries are judged."""
    known_at: dict[KeySpace, list[np.ndarray]] = {record.space: [] for record in memory.manifest.spaces}
    distance: dict[KeySpace, list[np.ndarray]] = {space: [] for space in known_at}
    for rows, neighbours in searches_as_known(memory, 1, SAMPLE):
        when = memory.windows.known_at[rows]
        for number, space in enumerate(neighbours.spaces):
            nearest = neighbours.distance[:, :, number, 0]
            found = np.isfinite(nearest)
            known_at[space].append(when[found])
            distance[space].append(nearest[found])
    joined = {space: (np.concatenate(known_at[space]), np.concatenate(distance[space])) for space in known_at}
    order = {space: np.argsort(when, kind="stable") for space, (when, _) in joined.items()}
    return UsualDistances(
        known_at={space: joined[space][0][order[space]] for space in joined},
        distance={space: joined[space][1][order[space]] for space in joined},
    )


def nearest_distances(neighbours: Neighbours, place: int) -> dict[KeySpace, float]:
    """Distance of the nearest neighbour in each key space that has one, for series number `place` of one moment."""
    nearest = neighbours.distance[0, place, :, 0]
    return {space: float(each) for space, each in zip(neighbours.spaces, nearest, strict=True) if np.isfinite(each)}


def closeness(
    usual: UsualDistances, nearest: Mapping[KeySpace, float], at: np.datetime64
) -> tuple[dict[KeySpace, float | None], bool]:
    """Of each key space the share of usual distances that are smaller, and whether the query has no close analogue.

    It has none if the median of the shares over the key spaces is `UNUSUAL` or more.
    """
    shares = {space: usual.share_closer(space, distance, at) for space, distance in nearest.items()}
    known = [share for share in shares.values() if share is not None]
    return shares, bool(known) and float(np.median(known)) >= UNUSUAL
