"""The next steps of every series of a table, by a trained model and its memory."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
import pandas as pd

from forecaster.predictor import Predictor
from forecaster.retrieval.batches import live_blocks
from memory_index.bounds import Bounds, BoundsOf
from memory_index.forecast_notes import ForecastNotes
from memory_index.long_tables import forecast_frame
from memory_index.memory import Memory
from memory_index.memory_only import warnings_of
from memory_index.queries import latest_origins
from memory_index.query_covariates import require_known_ahead
from memory_index.tables.series import SeriesTable


def forecast(
    predictor: Predictor,
    memory: Memory,
    table: SeriesTable,
    *,
    quantiles: tuple[float, ...] = (),
    bounds: Bounds | None = None,
) -> pd.DataFrame:
    """A long table `unique_id, ds, yhat` and one column per quantile (`q0.1`), original units.

    Times are in the table's own time zone. The memory is asked under `causal` at the last value of each series: one
    that ends earlier than the others is forecast from where it ends. A series that neither the model nor the memory
    has seen is forecast from windows of all series (scope `pooled`).

    bounds: that no forecast and no quantile leaves; without, those of counts are kept at 0 or above (`bounds.py`).

    Series that cannot be forecast are named in `attrs["skipped"]`, a list of `{"series_id", "reason"}`; known
    covariates that lie far outside what the version was fitted on in `attrs["warnings"]`, what is to be known of the
    numbers in `attrs["notes"]` (`forecast_notes.py`).

    Raises `DataError` (every history too short), `UsageError` (a quantile that is not calibrated).
    """
    config = predictor.config.model
    origins, skipped = latest_origins(table, memory.windows.spec, views=memory.windows.views)
    parts, asked, within = [], [], BoundsOf(memory, bounds)
    noted = ForecastNotes(within)
    for block in live_blocks(memory, table, origins, config, predictor.config.train.memory_k, predictor.units):
        queries = block.asked.queries
        require_known_ahead(queries, block.asked.wanted, memory.manifest.covariates, table.step, table.source)
        asked.append(queries)
        predicted = predictor.predict(block.batch)
        levels = predictor.quantiles(memory, block, predicted, quantiles)
        shape = (*block.asked.wanted.shape, config.horizon)
        values = predictor.forecast(memory, block, predicted).reshape(shape)
        values, levels = (
            within.kept(block.asked.queries, each) for each in (values, levels.reshape(*shape, len(quantiles)))
        )
        noted.add(block.asked)
        parts.append(forecast_frame(table, block.asked, values, quantiles, levels))
    result = pd.concat(parts).sort_index(kind="stable").reset_index(drop=True)
    assert np.isfinite(result["yhat"]).all(), "a finite context and a finite model give a finite forecast"
    result.attrs["skipped"] = [asdict(each) for each in skipped]
    result.attrs |= warnings_of(asked, memory) | {"notes": noted.said(result)}
    return result
