"""What a memory forecasts alone, with nothing trained by gradient: evaluation and forecast of whole tables."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from memory_index.baselines import baseline_forecasts
from memory_index.errors import DataError, UsageError
from memory_index.leakage import Policy
from memory_index.memory import Memory
from memory_index.metrics import Score, ScoreSum
from memory_index.neighbours import OnEmpty, mean_over_spaces, require_neighbours, with_last_value
from memory_index.queries import BLOCK, QueryBlock, futures_of, latest_origins, query_blocks
from memory_index.scaling import fit_scale
from memory_index.splits import Split, num_moments, require_origins
from memory_index.tables.series import SeriesTable
from memory_index.types import Scope

BASELINES = ("last_value", "seasonal_naive", "linear", "memory_only")  # what a forecast is scored beside
MEMORY_K = 50  # neighbours per key space that make the memory's forecast (docs/experiments.md)

Report = Callable[[float, float | None], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryOptions:
    """How a memory is asked for a forecast.

    k: neighbours per key space. scopes, views: default as in `Memory.search`. on_empty: what a query without any
    admissible neighbour gets: `error`, or the `last-value` of its context (counted and reported).
    """

    k: int = MEMORY_K
    scopes: tuple[Scope, ...] | None = None
    views: tuple[int, ...] | None = None
    on_empty: OnEmpty = "error"

    def __post_init__(self) -> None:
        if self.on_empty not in ("error", "last-value"):
            raise UsageError(f"on_empty is '{self.on_empty}'", hint="choose error or last-value")


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """Scores of every window of one part of a split, in standardised units.

    num_windows: origins. num_scored: windows, that is origins times series. num_without_neighbours: those of them that
    got the last value because no neighbour was admissible. baselines: `last_value`, `seasonal_naive`, `linear` and
    `memory_only`; None where one cannot be made (no usual season in the lookback). by_space: each key space by itself.
    in_sample: whether a fitted part has seen steps later than some origin.
    """

    part: str
    num_windows: int
    num_series: int
    num_scored: int
    num_without_neighbours: int
    mse: float
    mae: float
    baselines: dict[str, Score | None]
    by_space: dict[str, Score]
    in_sample: bool
    seconds: float


def evaluate(
    memory: Memory,
    table: SeriesTable,
    part: str = "test",
    *,
    options: MemoryOptions | None = None,
    block: int = BLOCK,
    report: Report = lambda done, total: None,
) -> Evaluation:
    """Score the memory's forecast of every window of a part (`train`, `val`, `test`), asked under `causal`.

    Bounded memory: so many moments (`block`) at a time; the scores do not depend on it. report: called with
    (windows done, all windows).

    Raises `DataError` (no such part, no window in it), `NotFoundError` (no neighbours, unless on_empty allows).
    """
    started, options = time.perf_counter(), options or MemoryOptions()
    spec, manifest = memory.windows.spec, memory.manifest
    origins = require_origins(table, spec, manifest.split, part)
    total = sum(len(rows) for rows in origins)
    unit = standard_units(dict(zip(manifest.series_ids, memory.scale.std, strict=True)), table, manifest.split)
    sums: dict[str, ScoreSum] = {}
    without, done, first_origin = 0, 0, np.datetime64("NaT", "ns")
    for asked in query_blocks(table, origins, spec, Policy.CAUSAL, known=manifest.series_ids, block=block):
        future = futures_of(table, asked, spec.horizon)
        forecasts, empty = block_forecasts(memory, asked, options)
        forecasts |= baseline_forecasts(asked.queries.context, spec.horizon, table.step)
        forecasts["linear"] = memory.linear_forecast(asked.queries)
        for name, values in forecasts.items():
            sums.setdefault(name, ScoreSum()).add(values, future, unit[asked.series], asked.wanted)
        without, done = without + empty, done + int(asked.wanted.sum())
        first_origin = np.fmin(first_origin, asked.queries.origin.min())
        report(done, total)
    scores = {name: part_sum.score() for name, part_sum in sums.items()}
    own = scores["memory_only"]
    return Evaluation(
        part=part,
        num_windows=num_moments(table, origins),
        num_series=sum(len(rows) > 0 for rows in origins),
        num_scored=total,
        num_without_neighbours=without,
        mse=own.mse,
        mae=own.mae,
        baselines={name: scores.pop(name, None) for name in BASELINES},
        by_space=scores,
        in_sample=bool(first_origin < manifest.fitted_known_at),
        seconds=time.perf_counter() - started,
    )


def block_forecasts(memory: Memory, block: QueryBlock, options: MemoryOptions) -> tuple[dict[str, np.ndarray], int]:
    """The memory's forecast (`memory_only`) and that of each key space, float32 [B, N, H], by name.

    Where one key space is empty, its own score counts the last value. Returns with them how many of the wanted windows
    had no neighbour in any key space. Raises `NotFoundError` for the first of those, unless `on_empty` allows them.
    """
    neighbours = memory.search(block.queries, options.k, scopes=options.scopes, views=options.views)
    found = np.any(neighbours.valid, axis=(2, 3)) | ~block.wanted
    if options.on_empty == "error":
        require_neighbours(neighbours, found)
    by_space = neighbours.space_forecasts()
    filled = np.where(np.isnan(by_space), block.queries.context[:, :, None, -1:], by_space)
    forecasts = {str(space): filled[:, :, number] for number, space in enumerate(neighbours.spaces)}
    forecasts["memory_only"] = with_last_value(neighbours, mean_over_spaces(by_space), "last-value")
    return forecasts, int((~found).sum())


def standard_units(units: Mapping[str, float], table: SeriesTable, split: Split) -> np.ndarray:
    """In what the errors of each series of a table are counted, float64 [N]: its training standard deviation.

    units: by series. One that they do not have is counted in that of its own values over the same stretch of time.
    Raises `DataError` if it has none there.
    """
    until, found = np.datetime64(split.train_until, "ns"), []
    for series in table.series:
        unit = units.get(series.series_id)
        training = series.values[series.times <= until]
        if unit is None and not np.isfinite(training).any():
            raise DataError(
                f"{table.source}: series '{series.series_id}' is new and has no value up to "
                f"{table.step.isoformat(until)}, the end of the training part, to standardise its errors by",
                hint="leave the series out (--ignore), or build on a table that has it",
            )
        found.append(fit_scale([training]).std[0] if unit is None else unit)
    return np.array(found)


def forecast(
    memory: Memory, table: SeriesTable, *, quantiles: tuple[float, ...] = (), options: MemoryOptions | None = None
) -> pd.DataFrame:
    """The next H steps of every series: a long table `unique_id, ds, yhat` and one column per quantile (`q0.1`).

    Original units; times in the table's own time zone. Asked under `causal` at the last value of each series: one that
    ends earlier than the others is forecast from where it ends.

    Raises `DataError` (history too short or missing values in it), `NotFoundError` (no neighbours).
    """
    options = options or MemoryOptions()
    spec = memory.windows.spec
    origins, known = latest_origins(table, spec), memory.manifest.series_ids
    parts: dict[int, pd.DataFrame] = {}
    for block in query_blocks(table, origins, spec, Policy.CAUSAL, known=known):
        neighbours = memory.search(block.queries, options.k, scopes=options.scopes, views=options.views)
        if options.on_empty == "error":
            require_neighbours(neighbours, np.any(neighbours.valid, axis=(2, 3)) | ~block.wanted)
        values = neighbours.forecast(on_empty="last-value")
        no_levels = np.empty((*values.shape, 0), dtype=np.float32)
        levels = neighbours.quantiles(quantiles, on_empty="last-value") if quantiles else no_levels
        parts |= forecast_rows(table, block, values, quantiles, levels)
    return pd.concat([parts[number] for number in sorted(parts)], ignore_index=True)


def forecast_rows(
    table: SeriesTable, block: QueryBlock, values: np.ndarray, quantiles: tuple[float, ...], levels: np.ndarray
) -> dict[int, pd.DataFrame]:
    """The forecasts of a block as parts of a long table, by number of the series.

    values: [B, N, H]; levels: [B, N, H, Q], one for each of `quantiles`; both in raw units.
    """
    parts = {}
    for b, n in np.argwhere(block.wanted):
        number = int(block.series[n])
        times = table.step.local(table.step.range(block.queries.origin[b], values.shape[2] + 1)[1:])
        columns = {"unique_id": table.series[number].series_id, "ds": times, "yhat": values[b, n]}
        columns |= {f"q{level:g}": levels[b, n, :, q] for q, level in enumerate(quantiles)}
        parts[number] = pd.DataFrame(columns)
    return parts
