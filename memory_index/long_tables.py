"""Forecasts as long tables, a row for each step: as a DataFrame, or streamed into a file block by block.

Columns are those of the field: `unique_id, ds, yhat`, one column per quantile (`q0.1`), and with what came `cutoff`
(the origin) and `y`. Times are in the table's own time zone.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import IO, Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet

from memory_index.evaluation import ForecastBlock
from memory_index.queries import QueryBlock
from memory_index.tables.series import SeriesTable
from memory_index.windows import Step

ROWS_AT_ONCE = 1 << 18  # of a file: a row group of Parquet


def forecast_frame(
    table: SeriesTable, block: QueryBlock, values: np.ndarray, quantiles: tuple[float, ...], levels: np.ndarray
) -> pd.DataFrame:
    """The forecasts of the windows that a block was asked for: moment after moment, series in the order of the table.

    values: [B, N, H]; levels: [B, N, H, Q], one for each of `quantiles`; both in raw units. The index is the number of
    the series in the table.
    """
    b, n = np.nonzero(block.wanted)
    steps = _steps_after(table.step, block.queries.origin, values.shape[2])[b]  # [W, H]
    columns = {
        "unique_id": _names(table, block.series[n], steps.shape[1]),
        "ds": table.step.local(steps.ravel()),
        "yhat": values[b, n].ravel(),
    }
    columns |= {f"q{level:g}": levels[b, n, :, q].ravel() for q, level in enumerate(quantiles)}
    return pd.DataFrame(columns, index=np.repeat(block.series[n], steps.shape[1]))


class ForecastWriter:
    """Writes the forecasts of an evaluation as they come: `unique_id, cutoff, ds, y, yhat` and a column per quantile.

    Rows come moment after moment, as the windows were asked: memory does not grow with their number. y: float64, what
    came, missing where nothing was observed.
    """

    def __init__(
        self,
        file: IO[bytes],
        table: SeriesTable,
        *,
        as_parquet: bool,
        made_by: Mapping[str, Any] | None = None,
        marks: Mapping[str, bool] | None = None,
    ) -> None:
        """made_by: kept inside a Parquet file, where pandas finds it as `attrs`; as `cli forecast` does. marks: further
        columns, the same in each row.
        """
        self.file, self.table, self.as_parquet, self.made_by = file, table, as_parquet, dict(made_by or {})
        self.marks = dict(marks or {})
        self.waiting: list[pa.Table] = []
        self.num_waiting = self.num_rows = 0
        self.writer: pa.parquet.ParquetWriter | None = None

    def add(self, block: ForecastBlock) -> None:
        """Write the windows that a block was asked for, or keep them until there are enough."""
        num_windows = int(block.asked.wanted.sum())
        horizon = block.forecast.shape[2]
        at_once = max(1, ROWS_AT_ONCE // horizon)
        b, n = np.nonzero(block.asked.wanted)
        for start in range(0, num_windows, at_once):
            part = slice(start, start + at_once)
            self.waiting.append(self._rows(block, b[part], n[part]))
            self.num_waiting += len(self.waiting[-1])
            if self.num_waiting >= ROWS_AT_ONCE:
                self.flush()

    def flush(self) -> None:
        """Write what waits."""
        if not self.waiting:
            return
        rows = pa.concat_tables(self.waiting)
        self.waiting, self.num_waiting = [], 0
        if self.as_parquet:
            if self.writer is None:
                self.writer = pa.parquet.ParquetWriter(self.file, rows.schema)
            self.writer.write_table(rows)
        else:
            frame = rows.to_pandas()
            self.file.write(frame.to_csv(index=False, header=self.num_rows == 0).encode())
        self.num_rows += len(rows)

    def close(self) -> None:
        """Write what waits, and the end of the file."""
        self.flush()
        if self.writer is not None:
            self.writer.close()

    def _rows(self, block: ForecastBlock, b: np.ndarray, n: np.ndarray) -> pa.Table:
        """The windows at these places [W] of a block."""
        step, horizon = self.table.step, block.forecast.shape[2]
        moments, place = np.unique(b, return_inverse=True)
        origin = block.asked.queries.origin[moments]
        steps = _steps_after(step, origin, horizon)[place]  # [W, H]
        columns = {
            "unique_id": _names(self.table, block.asked.series[n], horizon),
            "cutoff": _times(step, np.repeat(origin[place], horizon), self.as_parquet),
            "ds": _times(step, steps.ravel(), self.as_parquet),
            "y": pa.array(block.future[b, n].ravel(), from_pandas=True),
            "yhat": pa.array(block.forecast[b, n].ravel()),
        }
        for q, level in enumerate(block.levels):
            columns[f"q{level:g}"] = pa.array(block.quantiles[b, n, :, q].ravel())
        columns |= {name: pa.array(np.full(steps.size, value)) for name, value in self.marks.items()}
        return pa.table(columns).replace_schema_metadata({"PANDAS_ATTRS": json.dumps(self.made_by)})


@contextmanager
def writing(
    file: IO[bytes],
    table: SeriesTable,
    *,
    as_parquet: bool,
    made_by: Mapping[str, Any] | None = None,
    marks: Mapping[str, bool] | None = None,
) -> Iterator[ForecastWriter]:
    """A `ForecastWriter` whose file is whole at the end of the block."""
    writer = ForecastWriter(file, table, as_parquet=as_parquet, made_by=made_by, marks=marks)
    try:
        yield writer
    except BaseException:
        if writer.writer is not None:
            writer.writer.close()
        raise
    writer.close()


def _steps_after(step: Step, origin: np.ndarray, horizon: int) -> np.ndarray:
    """The H steps that follow each origin: datetime64[ns] [B] -> [B, H]."""
    return np.stack([step.add(origin, ahead) for ahead in range(1, horizon + 1)], axis=1)


def _names(table: SeriesTable, series: np.ndarray, times: int) -> np.ndarray:
    """The name of each series (numbers [W]), each so many times."""
    return np.repeat(np.array(table.series_ids, dtype=object)[series], times)


def _times(step: Step, times: np.ndarray, as_parquet: bool) -> pa.Array:
    """Times in the table's own zone; for CSV as text, of which each different one is written once."""
    if as_parquet:
        return pa.array(step.local(times))
    different, place = np.unique(times, return_inverse=True)
    text = pd.Series(step.local(different)).astype(str)
    return pa.DictionaryArray.from_arrays(place.astype(np.int32), pa.array(text, type=pa.string())).cast(pa.string())
