"""What stands beside a model's windows: the numbers of their covariates that its linear map reads.

They are those of `memory_index.covariate_map`, laid out for the model's own lookback and horizon, in training units;
the model scales them as it does the window. P numbers; a model that reads no covariates has none.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from forecaster.config import ModelConfig
from memory_index.covariate_map import CovariateLayout, CovariateWindows
from memory_index.query_covariates import QueryCovariates
from memory_index.tables.series import SeriesTable
from memory_index.types import Queries
from memory_index.versions.manifest import Manifest
from memory_index.windows import StoredWindows


def layout_of(manifest: Manifest, config: ModelConfig) -> CovariateLayout | None:
    """How covariates stand beside the windows of a model; None where its version has none, or it reads none."""
    if not (manifest.covariates and config.reads_covariates):
        return None
    return CovariateLayout(columns=manifest.covariates, lookback=config.lookback, horizon=config.horizon)


def num_beside(manifest: Manifest, config: ModelConfig) -> int:
    """P of a model that is trained against a version."""
    layout = layout_of(manifest, config)
    return 0 if layout is None else layout.width


class TableCovariates:
    """Those of windows of a table, whose series may have any order. Raises what `QueryCovariates` raises."""

    def __init__(self, table: SeriesTable, layout: CovariateLayout) -> None:
        self.layout, self._of = layout, QueryCovariates(table, layout)

    def at(self, series: np.ndarray, row: np.ndarray) -> np.ndarray:
        """float32 [n, P] of windows with origins at rows of series (int [n] each)."""
        result = np.empty((len(series), self.layout.width), dtype=np.float32)
        for number in np.unique(series):
            mine = np.flatnonzero(series == number)
            values = self._of.of(np.array([number]), row[mine, None])
            assert values is not None, "there is a layout"
            result[mine] = numbers(self.layout, self.layout.of_values(values[:, 0], (self.layout.lookback,)))
        return result


def of_queries(layout: CovariateLayout | None, queries: Queries) -> np.ndarray | None:
    """float32 [B * N, P] of queries, moment after moment; None for a model that reads none."""
    if layout is None:
        return None
    assert queries.covariates is not None, "a version with covariates refuses queries without"
    first = queries.context.shape[2] - layout.lookback
    values = queries.covariates[..., first : first + layout.lookback + layout.horizon]
    return numbers(layout, layout.of_values(values, (layout.lookback,))).reshape(-1, layout.width)


def of_stored(layout: CovariateLayout, windows: StoredWindows, series: np.ndarray, row: np.ndarray) -> np.ndarray:
    """float32 [n, P] of the windows of a version with origins at rows of its series (int [n] each)."""
    assert windows.covariates is not None, "the version has them"
    stored = replace(windows.covariates, layout=layout)
    return numbers(layout, stored.windows(series, row, (layout.lookback,)))


def numbers(layout: CovariateLayout, windows: CovariateWindows) -> np.ndarray:
    """float32 [..., P], in training units."""
    lead = windows.near.shape[:-2]
    out = np.empty((*lead, layout.width), dtype=np.float32)
    layout.numbers(windows, layout.lookback, np.ones(lead, dtype=np.float32), out)
    return out
