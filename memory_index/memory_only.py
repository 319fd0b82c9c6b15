"""What a memory forecasts alone, with nothing trained by gradient: evaluation and forecast of whole tables."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd

from memory_index.baselines import baseline_forecasts
from memory_index.bounds import Bounds, BoundsOf
from memory_index.calibration import UsualErrors, calibrated, usual_errors
from memory_index.errors import UsageError
from memory_index.evaluation import MEMORY_ONLY, Evaluation, ForecastBlock, Report, scored_origins, tally
from memory_index.forecast_notes import ForecastNotes
from memory_index.leakage import Policy
from memory_index.long_tables import forecast_frame
from memory_index.memory import Memory, raw_units
from memory_index.missing import last_known
from memory_index.neighbours import Neighbours, OnEmpty, mean_over_spaces, require_neighbours, with_last_value
from memory_index.origins import Schedule
from memory_index.queries import BLOCK, QueryBlock, latest_origins, query_blocks
from memory_index.query_covariates import far_outside, require_known_ahead
from memory_index.scaling import ScaledBy
from memory_index.skipped import Skipped
from memory_index.splits import require_origins
from memory_index.tables.series import SeriesTable
from memory_index.types import Queries, Scope

NO_NEIGHBOUR = "has no admissible neighbour (--on-empty last-value repeats its last value)"
MEMORY_K = 50  # neighbours per key space that make the memory's forecast (docs/experiments.md)


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


def evaluate(
    memory: Memory,
    table: SeriesTable,
    part: str = "test",
    *,
    options: MemoryOptions | None = None,
    schedule: Schedule | None = None,
    levels: tuple[float, ...] = (),
    scaled_by: ScaledBy = "training",
    each: Callable[[ForecastBlock], None] = lambda block: None,
    block: int = BLOCK,
    report: Report = lambda done, total: None,
) -> Evaluation:
    """Score the memory's forecast of every window of a part (`train`, `val`, `test`), asked under `causal`.

    Bounded memory: so many moments (`block`) at a time; the scores do not depend on it. schedule: only the origins that
    it has, by default those of the version. levels: of the quantiles that are scored too, calibrated as those of
    `forecast` as of each origin; the neighbours' futures are sorted for them, which takes about as long as everything
    else. scaled_by: see `scaling.naive_errors`. each: called with every block of forecasts.
    report: called with (windows done, all windows).

    Raises `DataError` (no such part, no window in it), `NotFoundError` (no neighbours, unless on_empty allows),
    `UsageError` (a schedule that the table does not go with).
    """
    options, spec, manifest = options or MemoryOptions(), memory.windows.spec, memory.manifest
    views = memory.windows.views
    units = dict(zip(manifest.series_ids, raw_units(memory), strict=True))
    every = require_origins(table, spec, manifest.split, part, schedule=schedule or manifest.schedule, views=views)
    origins, skipped = scored_origins(table, every, manifest.split, units, part)
    counted = tally(
        table,
        origins,
        manifest.split,
        units,
        arm=MEMORY_ONLY,
        horizon=spec.horizon,
        scaled_by=scaled_by,
        levels=levels,
    )
    first_origin, within = np.datetime64("NaT", "ns"), BoundsOf(memory)
    usual = _usual(memory, options, levels)
    known = manifest.series_ids
    for asked in query_blocks(
        table, origins, spec, Policy.CAUSAL, known=known, views=views, layout=manifest.covariate_layout, block=block
    ):
        neighbours, empty = _search(memory, asked, options)
        forecasts = block_forecasts(neighbours)
        forecasts |= baseline_forecasts(asked.queries.context, spec.horizon, table.step)
        forecasts["linear"] = memory.linear_forecast(asked.queries)
        forecasts = within.kept_arms(asked.queries, forecasts)
        quantiles = within.kept(asked.queries, calibrated(neighbours, forecasts[MEMORY_ONLY], levels, usual))
        counted.num_without += empty
        each(counted.add(asked, forecasts, quantiles if levels else None))
        first_origin = np.fmin(first_origin, asked.queries.origin.min())
        report(counted.done, counted.total)
    return counted.evaluation(part, in_sample=bool(first_origin < manifest.fitted_known_at), skipped=skipped)


def _usual(memory: Memory, options: MemoryOptions, levels: tuple[float, ...]) -> UsualErrors | None:
    return usual_errors(memory, options.k, scopes=options.scopes, views=options.views) if levels else None


def _search(memory: Memory, block: QueryBlock, options: MemoryOptions) -> tuple[Neighbours, int]:
    """The neighbours of a block, and how many of its wanted windows have none in any key space.

    Raises `NotFoundError` for the first of those, unless `on_empty` allows them.
    """
    neighbours = memory.search(block.queries, options.k, scopes=options.scopes, views=options.views)
    found = np.any(neighbours.valid, axis=(2, 3)) | ~block.wanted
    if options.on_empty == "error":
        require_neighbours(neighbours, found)
    return neighbours, int((~found).sum())


def block_forecasts(neighbours: Neighbours) -> dict[str, np.ndarray]:
    """The memory's forecast (`memory_only`) and that of each key space, float32 [B, N, H], by name.

    Where one key space is empty, its own score counts the last value.
    """
    by_space = neighbours.space_forecasts()
    filled = np.where(np.isnan(by_space), last_known(neighbours.queries.context)[:, :, None], by_space)
    forecasts = {str(space): filled[:, :, number] for number, space in enumerate(neighbours.spaces)}
    forecasts[MEMORY_ONLY] = with_last_value(neighbours, mean_over_spaces(by_space), "last-value")
    return forecasts


def forecast(
    memory: Memory,
    table: SeriesTable,
    *,
    quantiles: tuple[float, ...] = (),
    options: MemoryOptions | None = None,
    bounds: Bounds | None = None,
) -> pd.DataFrame:
    """The next H steps of every series: a long table `unique_id, ds, yhat` and one column per quantile (`q0.1`).

    Original units; times in the table's own time zone. Asked under `causal` at the last value of each series: one that
    ends earlier than the others is forecast from where it ends. Series that cannot be forecast are named in
    `attrs["skipped"]`, a list of `{"series_id", "reason"}`; known covariates that lie far outside what the version was
    fitted on in `attrs["warnings"]`, what is to be known of the numbers in `attrs["notes"]` (`forecast_notes.py`).
    Quantiles are calibrated on what the memory would have said of its own windows (`calibration.py`). bounds: that no
    forecast and no quantile leaves; without, those of counts are kept at 0 or above (`bounds.py`).

    Raises `DataError` (every history too short), `NotFoundError` (no neighbours for any series).
    """
    options = options or MemoryOptions()
    spec, views = memory.windows.spec, memory.windows.views
    origins, skipped = latest_origins(table, spec, views=views)
    parts, alone, asked, within = [], [], [], BoundsOf(memory, bounds)
    noted, usual = ForecastNotes(within), _usual(memory, options, quantiles)
    known, layout = memory.manifest.series_ids, memory.manifest.covariate_layout
    for block in query_blocks(table, origins, spec, Policy.CAUSAL, known=known, views=views, layout=layout):
        require_known_ahead(block.queries, block.wanted, memory.manifest.covariates, table.step, table.source)
        asked.append(block.queries)
        neighbours = memory.search(block.queries, options.k, scopes=options.scopes, views=options.views)
        if options.on_empty == "error":
            found = np.any(neighbours.valid, axis=(2, 3)) | ~block.wanted
            alone += [(neighbours, found)] if not found.all() else []
            block = block._replace(wanted=block.wanted & found)
        if not block.wanted.any():
            continue
        values = neighbours.forecast(on_empty="last-value")
        levels = calibrated(neighbours, values, quantiles, usual)
        values, levels = (within.kept(block.queries, each) for each in (values, levels))
        noted.add(block)
        parts.append(forecast_frame(table, block, values, quantiles, levels))
    if not parts:
        require_neighbours(*alone[0])
    skipped += tuple(
        Skipped(series_id=str(neighbours.queries.series_id[n]), reason=NO_NEIGHBOUR)
        for neighbours, found in alone
        for n in np.flatnonzero(~found.all(axis=0))
    )
    result = pd.concat(parts).sort_index(kind="stable").reset_index(drop=True)
    result.attrs["skipped"] = [asdict(each) for each in skipped]
    result.attrs |= warnings_of(asked, memory) | {"notes": noted.said(result)}
    return result


def warnings_of(queries: list[Queries], memory: Memory) -> dict[str, list[str]]:
    """The attribute `warnings` of a forecast; none where there is nothing to warn of."""
    found = far_outside(queries, memory.manifest.covariates)
    return {"warnings": found} if found else {}
