"""What a memory forecasts alone, with nothing trained by gradient: evaluation and forecast of whole tables."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from memory_index.baselines import last_value, season_length, seasonal_naive
from memory_index.combine import OnEmpty, mean_over_spaces, require_neighbours, with_last_value
from memory_index.errors import DataError, UsageError
from memory_index.leakage import Policy
from memory_index.metrics import Score, ScoreSum
from memory_index.queries import BLOCK, QueryBlock, latest_origins, query_blocks
from memory_index.scaling import fit_scale
from memory_index.splits import part_origins
from memory_index.tables.series import SeriesTable
from memory_index.types import Memory, Scope
from memory_index.windows import cut

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
class Baselines:
    """Scores beside the memory's own; None where a baseline cannot be made (no usual season in the lookback)."""

    last_value: Score
    seasonal_naive: Score | None
    linear: Score | None
    memory_only: Score


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """Scores of every window of one part of a split, in standardised units.

    num_windows: origins. num_scored: windows, that is origins times series. num_without_neighbours: those of them that
    got the last value because no neighbour was admissible. by_space: each key space by itself. in_sample: whether a
    fitted part has seen steps later than some origin.
    """

    part: str
    num_windows: int
    num_series: int
    num_scored: int
    num_without_neighbours: int
    mse: float
    mae: float
    baselines: Baselines
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
    origins = part_origins(table, spec, manifest.split, part)
    total = sum(len(rows) for rows in origins)
    if total == 0:
        raise DataError(
            f"{table.source} has no whole window of {spec.lookback} + {spec.horizon} steps "
            f"in the {part} part of the split",
            hint="give the whole table, as it was when the version was built",
        )
    unit = standard_units(memory, table)
    sums: dict[str, ScoreSum] = {}
    season = season_length(table.step)
    without, done, first_origin = 0, 0, np.datetime64("NaT", "ns")
    for asked in query_blocks(table, origins, spec, Policy.CAUSAL, known=manifest.series_ids, block=block):
        future = np.stack(
            [cut(table.series[s].values, asked.row[:, n] + 1, spec.horizon) for n, s in enumerate(asked.series)], axis=1
        )
        forecasts, empty = block_forecasts(memory, asked, options)
        context = asked.queries.context
        forecasts["last_value"] = last_value(context, spec.horizon)
        forecasts["linear"] = memory.linear_forecast(asked.queries)
        if season is not None and season <= spec.lookback:
            forecasts["seasonal_naive"] = seasonal_naive(context, spec.horizon, season)
        for name, values in forecasts.items():
            sums.setdefault(name, ScoreSum()).add(values, future, unit[asked.series], asked.wanted)
        without, done = without + empty, done + int(asked.wanted.sum())
        first_origin = np.fmin(first_origin, asked.queries.origin.min())
        report(done, total)
    scores = {name: part_sum.score() for name, part_sum in sums.items()}
    baselines = Baselines(
        last_value=scores.pop("last_value"),
        seasonal_naive=scores.pop("seasonal_naive", None),
        linear=scores.pop("linear", None),
        memory_only=scores.pop("memory_only"),
    )
    origin_times = [series.times[rows] for series, rows in zip(table.series, origins, strict=True)]
    return Evaluation(
        part=part,
        num_windows=len(np.unique(np.concatenate(origin_times))),
        num_series=sum(len(rows) > 0 for rows in origins),
        num_scored=total,
        num_without_neighbours=without,
        mse=baselines.memory_only.mse,
        mae=baselines.memory_only.mae,
        baselines=baselines,
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


def standard_units(memory: Memory, table: SeriesTable) -> np.ndarray:
    """Training standard deviation of each series of a table, float64 [N].

    The version's, or for a series that it has never seen the series' own over the same stretch of time.
    """
    until = np.datetime64(memory.manifest.split.train_until, "ns")
    units = []
    for series in table.series:
        number = memory.windows.series_number.get(series.series_id, -1)
        training = series.values[series.times <= until]
        if number < 0 and not np.isfinite(training).any():
            raise DataError(
                f"{table.source}: series '{series.series_id}' is not in the version and has no value up to "
                f"{table.step.isoformat(until)}, the end of the training part, to standardise its errors by",
                hint="leave the series out (--ignore), or build a version that has it",
            )
        units.append(memory.scale.std[number] if number >= 0 else fit_scale([training]).std[0])
    return np.array(units)


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
