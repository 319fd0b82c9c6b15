"""How a memory is used by its own windows: which stretches of it are retrieved far too often (hubs), and which never.

Windows drawn from all that is stored ask at their own origin under `disjoint`, as training does. Under `causal` an
early window could be found by all that came later and a late one by hardly any, so the counts would tell age. Nothing
here changes a search or a forecast. Which windows are asked is `measure.py`; what is stored is `coverage.py`.

Windows that begin a step apart are almost the same, so single windows share their retrievals by chance. Therefore they
are counted by *stretch*: the windows of one series whose origins lie within so many steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from memory_index.leakage import Policy, admissible_ranges
from memory_index.local import LocalMemory
from memory_index.measure import drawn_searches
from memory_index.types import KeySpace
from memory_index.windows import StoredWindows

ASKED = 4096  # windows asked in each key space, or all that there are
NEIGHBOURS = 10  # k: retrieved by each of them, as in most of the literature on hubs
MAX_STRETCHES = 1000  # so that each is expected about 40 times in each key space
LEAST_EXPECTED = 10.0  # retrievals of a stretch below which it is not judged
HUB = 2.0  # a hub is retrieved at least so many times as often as expected,
LEAST_ASKING = 5  # and by so many windows: the k slots of one may all lie in one stretch


@dataclass(frozen=True, kw_only=True, eq=False)
class Stretches:
    """The S stretches of a memory's windows, by series, then in time; a stretch without a window is left out.

    num_steps: origins of a stretch lie within so many steps. series, num_windows: int64 [S].
    first, last: datetime64[ns] [S], first and last origin. of_row: int64 [R], the stretch of each window.
    """

    num_steps: int
    series: np.ndarray
    first: np.ndarray
    last: np.ndarray
    num_windows: np.ndarray
    of_row: np.ndarray

    def __len__(self) -> int:
        return len(self.series)


@dataclass(frozen=True, kw_only=True, eq=False)
class Usage:
    """How often each of R stored windows is among the k nearest of the windows asked, in each key space.

    num_asked: by key space. retrieved: int64 [R], the k-occurrences N_k of Radovanovic et al., *Hubs in space*, JMLR
    2010, of a sample. expected: float64 [R], the same if every asked window drew its neighbours by chance from all that
    it may see. asked_by: int64 [S], by how many asked windows a stretch is retrieved in any key space.
    """

    k: int
    num_asked: Mapping[KeySpace, int]
    stretches: Stretches
    retrieved: Mapping[KeySpace, np.ndarray]
    expected: Mapping[KeySpace, np.ndarray]
    asked_by: np.ndarray

    @property
    def spaces(self) -> tuple[KeySpace, ...]:
        """All key spaces, in the version's order."""
        return tuple(self.num_asked)

    @cached_property
    def by_stretch(self) -> tuple[np.ndarray, np.ndarray]:
        """int64 [S], float64 [S]: retrieved and expected, over all key spaces."""
        parts = [self.in_space(space) for space in self.spaces]
        return sum(part[0] for part in parts), sum(part[1] for part in parts)  # type: ignore[return-value]

    def in_space(self, space: KeySpace) -> tuple[np.ndarray, np.ndarray]:
        """int64 [S], float64 [S]: retrieved and expected, in one key space."""
        stretch, num = self.stretches.of_row, len(self.stretches)
        retrieved = np.bincount(stretch, self.retrieved[space], minlength=num).astype(np.int64)
        return retrieved, np.bincount(stretch, self.expected[space], minlength=num)

    def ratio(self, space: KeySpace | None = None) -> np.ndarray:
        """float64 [S]: retrieved over expected, in one key space or over all; NaN where too few are expected."""
        retrieved, expected = self.by_stretch if space is None else self.in_space(space)
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(expected >= LEAST_EXPECTED, retrieved / expected, np.nan)

    def skewness(self, space: KeySpace | None = None) -> float:
        """Third standardised moment of the ratio over stretches, their measure of hubness (equation 1); NaN if equal.

        0 if all are retrieved alike; the larger, the more is drawn by a few.
        """
        ratio = self.ratio(space)
        ratio = ratio[np.isfinite(ratio)]
        spread = ratio.std() if len(ratio) else 0.0
        return float(np.mean(((ratio - ratio.mean()) / spread) ** 3)) if spread > 0 else float("nan")

    @cached_property
    def hubs(self) -> np.ndarray:
        """int64: stretches that are retrieved at least `HUB` times as often as expected, the strongest first."""
        ratio = np.nan_to_num(self.ratio())
        found = np.flatnonzero((ratio >= HUB) & (self.asked_by >= LEAST_ASKING))
        return found[np.argsort(-ratio[found], kind="stable")]

    @cached_property
    def never(self) -> np.ndarray:
        """int64: stretches that none of the windows asked retrieves, of those where it could be expected."""
        return np.flatnonzero(self.ratio() == 0)

    def busiest_row(self, stretch: int) -> int:
        """The row of a stretch that is retrieved most often over all key spaces."""
        rows = np.flatnonzero(self.stretches.of_row == stretch)
        return int(rows[np.argmax(sum(self.retrieved[space][rows] for space in self.spaces))])


def usage(memory: LocalMemory) -> Usage:
    """Ask up to `ASKED` windows in each key space. It takes seconds, so keep the answer."""
    windows, spaces = memory.windows, memory.manifest.key_spaces
    stretches, chances = stretches_of(windows), _Chances(memory)
    retrieved = {space: np.zeros(len(windows), dtype=np.int64) for space in spaces}
    pairs = []
    for asked, found in drawn_searches(memory, NEIGHBOURS, Policy.DISJOINT, ASKED):
        valid = found.valid
        for number, space in enumerate(found.spaces):
            np.add.at(retrieved[space], found.row[:, :, number][valid[:, :, number]], 1)
            chances.add(space, asked, valid[:, :, number].sum(axis=-1))
        pair = asked[:, :, None, None] * len(stretches) + stretches.of_row[np.maximum(found.row, 0)]
        pairs.append(np.unique(pair[valid]))
    distinct = np.unique(np.concatenate(pairs))
    return Usage(
        k=NEIGHBOURS,
        num_asked={space: chances.num_asked(space) for space in spaces},
        stretches=stretches,
        retrieved=retrieved,
        expected={space: chances.expected(space) for space in spaces},
        asked_by=np.bincount(distinct % len(stretches), minlength=len(stretches)),
    )


def stretches_of(windows: StoredWindows) -> Stretches:
    """Cut a memory into stretches of about one horizon, longer where there would be more than `MAX_STRETCHES`.

    All are equally long, to a step, and those of series whose rows begin together do so together.
    """
    first = int(windows.origin_row.min())
    longest = int(windows.origin_row.max()) - first + 1
    allowed = max(1, MAX_STRETCHES // len(windows.series_ids))
    per_series = min(max(1, longest // windows.spec.horizon), allowed)
    block = windows.series * np.int64(per_series) + (windows.origin_row - first) * per_series // longest
    blocks, of_row, num_windows = np.unique(block, return_inverse=True, return_counts=True)
    rows = np.lexsort((windows.origin_row, of_row))
    ends = np.cumsum(num_windows)
    return Stretches(
        num_steps=-(-longest // per_series),
        series=blocks // per_series,
        first=windows.origin(rows[ends - num_windows]),
        last=windows.origin(rows[ends - 1]),
        num_windows=num_windows,
        of_row=of_row,
    )


class _Chances:
    """Collects who was asked and how many slots were filled, to tell what each window could expect by chance.

    A window that is asked and fills n slots gives each window that it may see an equal share of them. It may see what
    the leak rule admits, and only windows that are as flat as itself.
    """

    def __init__(self, memory: LocalMemory) -> None:
        self.windows, self.segments = memory.windows, memory.segments
        self.by_series = np.lexsort((self.windows.origin_row, self.windows.series))
        self.ends = np.cumsum(np.bincount(self.windows.series, minlength=len(self.windows.series_ids)))
        self.answers: dict[KeySpace, dict[int, list[np.ndarray]]] = {}

    def add(self, space: KeySpace, asked: np.ndarray, slots: np.ndarray) -> None:
        """asked: rows [B, N]. slots: int64 [B, N], how many neighbours each has found in a key space."""
        groups = self.answers.setdefault(space, {})
        for rows, num in zip(asked.T, slots.T, strict=True):
            group = 0 if space.scope == "pooled" else int(self.windows.series[rows[0]])
            groups.setdefault(group, []).append(np.stack([rows, num]))

    def num_asked(self, space: KeySpace) -> int:
        """Windows asked in a key space."""
        return sum(part.shape[1] for parts in self.answers.get(space, {}).values() for part in parts)

    def expected(self, space: KeySpace) -> np.ndarray:
        """float64 [R]: how often each window would be retrieved by chance."""
        result = np.zeros(len(self.windows))
        for group, parts in self.answers.get(space, {}).items():
            rows = self._visible(space, group)
            result[rows] += self._shares(space, rows, *np.concatenate(parts, axis=1))
        return result

    def _of_series(self, number: int) -> np.ndarray:
        """Rows of one series, in time order."""
        return self.by_series[self.ends[number - 1] if number else 0 : self.ends[number]]

    def _visible(self, space: KeySpace, group: int) -> np.ndarray:
        """Rows that a key space looks through for windows of a series (for `pooled`, of any), in time order."""
        if space.scope == "own":
            return self._of_series(group)
        if space.scope == "joint":
            return np.concatenate([segment.first_row + segment.moments[:, group] for segment in self.segments])
        return np.argsort(self.windows.known_at, kind="stable")

    def _shares(self, space: KeySpace, rows: np.ndarray, asked: np.ndarray, slots: np.ndarray) -> np.ndarray:
        """float64 [n]: what the n visible rows get of the slots of the windows asked."""
        windows, spec, add = self.windows, self.windows.spec, self.windows.step.add
        origin = windows.origin(asked)
        before, after = admissible_ranges(
            Policy.DISJOINT,
            windows.spans(rows),
            origin=origin,
            query_start=add(origin, 1 - spec.lookback),
            query_end=add(origin, spec.horizon),
        )
        flat, num, shares = windows.flat[:, windows.views.index(space.view)], len(rows), np.zeros(len(rows))
        for kind in (False, True):
            alike, mine = flat[rows] == kind, flat[asked] == kind
            until = np.concatenate([[0], np.cumsum(alike)])
            visible = until[before[mine]] + until[-1] - until[after[mine]]
            share = slots[mine] / np.maximum(visible, 1)
            change = np.bincount(after[mine], share, num + 1) - np.bincount(before[mine], share, num + 1)
            shares[alike] = (share.sum() + np.cumsum(change)[:num])[alike]
        return np.maximum(shares, 0.0)  # sums that cancel may end just below
