"""From windows of a table to the batches that the model reads: out of the neighbour cache, or asked of a memory live.

Both ways go through `neighbours.condense`, so a cached window and a live one are the same, bit for bit. Which windows
there are is decided by `memory_index.splits`; how a batch is used by `train.py`, `evaluate.py` and `forecast.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Self

import numpy as np
import torch

from forecaster.config import ModelConfig
from forecaster.model.types import Batch
from forecaster.retrieval.beside import TableCovariates, layout_of, of_queries
from forecaster.retrieval.folds import NO_FOLDS, FoldPlan
from forecaster.retrieval.neighbours import Condensed, Fans, condense, neighbour_tensors
from memory_index.leakage import Policy
from memory_index.memory import Memory
from memory_index.missing import filled, filled_contexts
from memory_index.neighbours import Neighbours
from memory_index.queries import QueryBlock, query_blocks
from memory_index.tables.series import SeriesTable
from memory_index.transforms import Curve
from memory_index.types import KeySpace
from memory_index.windows import StoredWindows, cut

MODEL_BATCH = 512  # windows that go through the model at once where nothing is trained
LIVE_WINDOWS = 4096  # asked of a memory at once: a window's neighbours take some 20 kB, and series may be hundreds


class Fill(NamedTuple):
    """How missing cells are filled (`memory_index.missing`). lookback: of the windows whose cells are looked at."""

    lookback: int
    season: int | None

    def contexts(self, values: np.ndarray, position: np.ndarray, lookback: int) -> np.ndarray:
        """The last `lookback` cells up to positions in `values`, filled: [n, lookback]."""
        return filled_contexts(values, position, lookback, whole=self.lookback, season=self.season)


def fill_of(windows: StoredWindows) -> Fill:
    """That of a memory, so that a model reads what its keys are made of."""
    return Fill(windows.spec.lookback, windows.step.season)


@dataclass(frozen=True, kw_only=True)
class CachedWindows:
    """n windows of one part of a table with their neighbours; training needs `len()` and `batch(indices)` only.

    All in units of the memory's transform. values: float32 [T], all series of the table end to end. position: int64
    [n], where each window's last context step is in `values`. series: int [n], numbers in the table. unit: float32
    [n]. fold: int64 [n] or None, admitted: bool [n, F] or None, see `Batch`. folds: how they were made. condensed,
    fans: memory-mapped, of the `windows` of the memory that answered; None without GRA-M. covariates: of the table, for
    a model that reads them. first: int64 [N], where each series of the table begins in `values`.
    """

    config: ModelConfig
    values: np.ndarray
    position: np.ndarray
    series: np.ndarray
    unit: np.ndarray
    fold: np.ndarray | None = None
    admitted: np.ndarray | None = None
    folds: FoldPlan = NO_FOLDS
    condensed: Condensed | None = None
    fans: Fans | None = None
    windows: StoredWindows | None = None
    spaces: Sequence[KeySpace] = ()
    covariates: TableCovariates | None = None
    first: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.position)

    @property
    def fill(self) -> Fill:
        """How missing cells of a context are filled."""
        lookback = self.config.lookback
        return Fill(lookback, None) if self.windows is None else fill_of(self.windows)

    def contexts(self, indices: np.ndarray | slice) -> np.ndarray:
        """float32 [n, L], filled where a cell is missing."""
        return self.fill.contexts(self.values, self.position[indices], self.config.lookback)

    def futures(self, indices: np.ndarray | slice) -> np.ndarray:
        """float32 [n, H], NaN where a cell is missing."""
        return cut(self.values, self.position[indices] + 1, self.config.horizon)

    def beside(self, indices: np.ndarray | slice) -> torch.Tensor | None:
        """See `Batch.beside`."""
        if self.covariates is None or self.first is None:
            return None
        series = self.series[indices]
        return torch.from_numpy(self.covariates.at(series, self.position[indices] - self.first[series]))

    def last(self, num: int) -> Self:
        """The last so many windows; they are in time order."""
        first = len(self) - num
        condensed = None if self.condensed is None else self.condensed.take(np.arange(first, len(self)))
        fans = self.fans
        if fans is not None:
            there = fans.number >= first
            fans = Fans(fans.number[there] - first, fans.levels[there])
        return replace(
            self,
            position=self.position[first:],
            series=self.series[first:],
            unit=self.unit[first:],
            fold=None if self.fold is None else self.fold[first:],
            admitted=None if self.admitted is None else self.admitted[first:],
            condensed=condensed,
            fans=fans,
        )

    def batch(self, indices: np.ndarray) -> Batch:
        """The windows at these numbers, in this order."""
        neighbours = None
        if self.condensed is not None and self.windows is not None:
            neighbours = neighbour_tensors(
                self.condensed.take(indices),
                self.windows,
                self.spaces,
                lookback=self.config.lookback,
                horizon=self.config.horizon,
                top_k=self.config.top_k,
            )
        return Batch(
            context=torch.from_numpy(self.contexts(indices)),
            future=torch.from_numpy(self.futures(indices)),
            unit=torch.from_numpy(self.unit[indices]),
            neighbours=neighbours,
            fold=None if self.fold is None else torch.from_numpy(self.fold[indices]),
            admitted=None if self.admitted is None else torch.from_numpy(self.admitted[indices]),
            beside=self.beside(indices),
        )


def flat_values(table: SeriesTable) -> tuple[np.ndarray, np.ndarray]:
    """All series of a table end to end, float32 [T], and where each begins, int64 [N]."""
    values = np.concatenate([series.values for series in table.series]).astype(np.float32)
    return values, np.cumsum([0, *(len(series) for series in table.series)])[:-1]


class LiveBlock(NamedTuple):
    """Moments that were asked of a memory at once, and the same as flat windows, moment after moment (n = B * N).

    batch: its `future` is empty ([n, 0]): what follows is not known here. found: the memory's whole answer, of which
    `condensed` is what the model needs; its key spaces are fewer than all for a series that the memory does not have.
    Both are None for a model without GRA-M. Batch and `condensed` are in units of the memory's transform, `asked` and
    `found` in raw ones; curve: [n], from the one to the other.
    """

    asked: QueryBlock
    batch: Batch
    condensed: Condensed | None
    found: Neighbours | None
    curve: Curve


def moments_of(block: LiveBlock, moments: np.ndarray) -> LiveBlock:
    """Some of the moments of a block. moments: int64 [b]."""
    num_series = len(block.asked.series)
    flat = (moments[:, None] * num_series + np.arange(num_series)).ravel()
    return LiveBlock(
        asked=block.asked.at_moments(moments),
        batch=block.batch.take(flat),
        condensed=None if block.condensed is None else block.condensed.take(flat),
        found=None if block.found is None else block.found.at_moments(moments),
        curve=block.curve.take(flat),
    )


def units_inside(memory: Memory, units: Mapping[str, float]) -> Mapping[str, float]:
    """Training standard deviations by series in units of a memory's transform. units: raw."""
    if not memory.manifest.transform:
        return units
    return dict(zip(memory.manifest.series_ids, map(float, memory.scale.std), strict=True))


def live_blocks(
    memory: Memory,
    table: SeriesTable,
    origins: list[np.ndarray],
    config: ModelConfig,
    k: int,
    units: Mapping[str, float],
) -> Iterator[LiveBlock]:
    """Ask a memory, under `causal`, for the neighbours of windows of a table, and make batches of them.

    origins: origin rows per series. units: raw training standard deviation by series; one that it does not have is
    unseen, and takes the standard deviation of its own context, as its keys do.
    """
    spec, manifest = memory.windows.spec, memory.manifest
    spaces = manifest.key_spaces
    whole, views = spec.scored(config.horizon), memory.windows.views
    layout = layout_of(manifest, config)
    known_ids, units = manifest.series_ids, units_inside(memory, units)
    for asked in query_blocks(
        table,
        origins,
        whole,
        Policy.CAUSAL,
        known=known_ids,
        views=views,
        layout=manifest.covariate_layout,
        max_windows=LIVE_WINDOWS,
    ):
        inside = memory.windows.queries_inside(asked.queries)
        context = filled(inside.context, memory.windows.step.season)  # [B, N, L of the version]
        found = memory.search(asked.queries, k) if config.use_gram else None
        condensed = None if found is None else condense(found.inside(), spaces, horizon=config.horizon)
        known = [units.get(str(series_id), np.nan) for series_id in asked.queries.series_id]
        own = context.std(axis=-1, dtype=np.float64)
        unit = np.where(np.isnan(known), np.where(own > 0, own, 1.0), known).astype(np.float32)  # [B, N]
        flat = np.ascontiguousarray(context.reshape(-1, spec.lookback)[:, -config.lookback :])
        neighbours = condensed and neighbour_tensors(
            condensed,
            memory.windows.inside,
            spaces,
            lookback=config.lookback,
            horizon=config.horizon,
            top_k=config.top_k,
        )
        batch = Batch(
            context=torch.from_numpy(flat),
            future=torch.empty(len(flat), 0),
            unit=torch.from_numpy(unit.ravel()),
            neighbours=neighbours,
            beside=None if layout is None else torch.from_numpy(of_queries(layout, asked.queries)),
        )
        curve = memory.windows.curve(asked.queries)
        yield LiveBlock(asked, batch, condensed, found, Curve(curve.kind, *(part.ravel() for part in curve[1:])))


def parts_of(batch: Batch, size: int = MODEL_BATCH) -> Iterator[Batch]:
    """A batch in pieces of at most `size` windows."""
    for start in range(0, len(batch), size):
        yield batch.take(slice(start, start + size))
