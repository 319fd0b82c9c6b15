"""What a second table says of the steps ahead: plainly, or with the times of issue.

A table with a column `issued_at` is one of vintages (`vintages.py`), any other one of the future (`future.py`).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from memory_index.covariates import CovariateValues
from memory_index.tables.columns import ReadOptions
from memory_index.tables.future import opened, read_future
from memory_index.tables.problems import ProblemLog
from memory_index.tables.reading import raw_table
from memory_index.tables.series import SeriesTable
from memory_index.tables.steps_ahead import known_now, stretches
from memory_index.tables.vintages import ISSUED, with_vintages


def read_known_ahead(
    source: Any, table: SeriesTable, options: ReadOptions, *, horizon: int, plain: Collection[str] = ()
) -> SeriesTable:
    """The table with what another table says of the steps ahead. source: a file or a DataFrame, of the future or of
    vintages; options: those that the table was read with.

    plain: columns that count as known at any time, as those of a version without vintages: of these the newest values
    that were issued by the last target value become the future. Raises what `read_future` and `with_vintages` raise.
    """
    log = ProblemLog(source=Path(source).name if isinstance(source, str | Path) else "the table of the future")
    if ISSUED not in raw_table(opened(source), options, log).columns:
        return read_future(source, table, options)
    issued = with_vintages(table, source, options)
    assert issued.covariates is not None, "it has what was issued"
    assert table.covariates is not None, "it has known columns"
    as_future = [name for name in issued.covariates.names if name in plain and name in table.covariates.names]
    if not as_future:
        return issued
    return _as_future(table, issued, as_future, horizon)


def _as_future(table: SeriesTable, issued: SeriesTable, names: list[str], horizon: int) -> SeriesTable:
    """The issued table, in which these columns are plain: the table's own values, then what is known by now."""
    now, before, after = known_now(issued, horizon), table.covariates, issued.covariates
    assert now.covariates is not None, "it has the same columns"
    assert before is not None, "it has the columns"
    assert after is not None, "it has the columns"
    assert after.vintages is not None, "it has vintages"
    rows = [(after.names.index(name), before.names.index(name)) for name in names]
    left = [name for name in after.vintages.columns if name not in names]
    made: dict[int, CovariateValues] = {}
    every = list(after.series)
    for one in stretches(now):
        number = one.numbers[0]
        key = id(before.series[number])
        if key not in made or issued.layout == "long":
            values = np.full((len(after.columns), len(one.covariates.times)), np.nan)
            kept = after.series[number].values
            values[:, : kept.shape[1]] = kept
            plain = before.series[number].values
            for place, own in rows:
                values[place] = one.covariates.values[place]
                values[place, : one.num_target] = plain[own, : one.num_target]
            made[key] = CovariateValues(times=one.covariates.times, values=values)
        for each in one.numbers:
            every[each] = made[key]
    columns = tuple(replace(column, vintages=column.name in left) for column in after.columns)
    vintages = after.vintages.of_columns(left) if left else None
    return replace(issued, covariates=replace(after, columns=columns, series=tuple(every), vintages=vintages))
