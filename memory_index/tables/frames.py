"""Tables of Python (pandas, polars, Arrow and whatever speaks its protocols) -> Arrow columns with plain types.

What a DataFrame keeps in its index is a column if it says something: a time, a period, a name of a series.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.interchange

from memory_index.errors import UsageError
from memory_index.tables.problems import Problem, ProblemLog

SERIES_NAME, TIME_NAME = "unique_id", "ds"


def arrow_table(source: Any) -> pa.Table | None:
    """A table of another library than pandas, by what it offers: `to_arrow`, an Arrow stream, the dataframe protocol.

    None if it offers none of them. Raises `UsageError` for what offers one and cannot keep it.
    """
    if isinstance(source, pd.DataFrame):
        return None
    try:
        if isinstance(source, pa.Table):
            return source
        if callable(collect := getattr(source, "collect", None)) and hasattr(source, "collect_schema"):
            source = collect()  # a lazy frame of polars
        if callable(to_arrow := getattr(source, "to_arrow", None)) and hasattr(source, "columns"):
            table = to_arrow()
            return table if isinstance(table, pa.Table) else pa.table(table)
        if isinstance(source, type):
            return None
        if hasattr(source, "__arrow_c_stream__") and hasattr(source, "columns"):
            return pa.table(source)
        if hasattr(source, "__dataframe__"):
            return pa.interchange.from_dataframe(source)
    except (pa.ArrowException, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        message = f"the {type(source).__name__} cannot be read: {error or type(error).__name__}".splitlines()[0]
        raise UsageError(message, hint="give a pandas DataFrame of it (.to_pandas())") from error
    return None


def frame_table(frame: pd.DataFrame, *, needs_time: bool, log: ProblemLog) -> pa.Table:
    """A DataFrame as Arrow columns: its index where that is more than row numbers, periods as their first moment.

    needs_time: whether no column of the frame can be its time, so that an index of times is. Raises `DataError`.
    """
    frame = _with_index(frame, needs_time=needs_time)
    names = [str(name) for name in frame.columns]
    columns = [_column(frame.iloc[:, place], name, log) for place, name in enumerate(names)]
    return pa.Table.from_arrays(columns, names=names)


def _with_index(frame: pd.DataFrame, *, needs_time: bool) -> pd.DataFrame:
    """The levels of an index that say something, as columns in front."""
    levels: list[tuple[str, Any]] = []
    for number in range(frame.index.nlevels):
        level = frame.index.get_level_values(number)
        timely = isinstance(level, pd.DatetimeIndex | pd.PeriodIndex)
        texts = not timely and not pd.api.types.is_numeric_dtype(level.dtype)
        if level.name is not None:
            says = not timely and (frame.index.nlevels > 1 or texts or not level.is_unique or level.name == SERIES_NAME)
            name = str(level.name)
        else:
            says, name = texts and not level.is_unique, TIME_NAME if timely else SERIES_NAME
        if says or (timely and (needs_time or frame.index.nlevels > 1)):
            levels.append((name, level))
    held = [str(name) for name in frame.columns]
    levels = [(name, level) for name, level in levels if name not in held or not _same(frame, held, name, level)]
    if not levels:
        return frame
    added = pd.DataFrame({place: level for place, (_, level) in enumerate(levels)}, index=frame.index)
    joined = pd.concat([added, frame], axis=1)
    joined.columns = pd.Index([*(name for name, _ in levels), *held])
    return joined


def _same(frame: pd.DataFrame, held: list[str], name: str, level: pd.Index) -> bool:
    """Whether a level of the index only repeats a column of its name."""
    column = frame.iloc[:, held.index(name)]
    return bool(np.array_equal(np.asarray(column, dtype=object), np.asarray(level, dtype=object)))


def _column(column: pd.Series, name: str, log: ProblemLog) -> pa.ChunkedArray:
    if isinstance(column.dtype, pd.PeriodDtype):
        column = column.dt.to_timestamp()
    elif isinstance(column.dtype, pd.SparseDtype):
        column = pd.Series(np.asarray(column), index=column.index)
    try:
        array = pa.array(column, from_pandas=True)
    except (pa.ArrowException, OverflowError, TypeError, ValueError):
        array = _of_objects(column, name, log)
    return array if isinstance(array, pa.ChunkedArray) else pa.chunked_array([array])


def _of_objects(column: pd.Series, name: str, log: ProblemLog) -> pa.Array:
    """A column of Python objects of several kinds: numbers of any size as float64, periods and others as text."""
    cells = [None if _is_missing(cell) else cell for cell in column]
    filled = [cell for cell in cells if cell is not None]
    if all(isinstance(cell, int | float | Decimal | np.number) for cell in filled):
        try:
            return pa.array([None if cell is None else float(cell) for cell in cells], pa.float64())
        except OverflowError:
            fix = "correct the cell, or make it empty if it means no value"
            message = f"the column '{name}' holds a whole number that float64 cannot hold"
            log.stop(Problem(kind="column", message=message, fix=fix))
    if all(isinstance(cell, pd.Period) for cell in filled):
        return pa.array([None if cell is None else cell.to_timestamp() for cell in cells], pa.timestamp("ns"))
    plain = (str, int, float, Decimal, np.number, np.datetime64)
    if not all(isinstance(cell, plain) or hasattr(cell, "isoformat") for cell in filled):
        odd = next(cell for cell in filled if not isinstance(cell, plain) and not hasattr(cell, "isoformat"))
        message = (
            f"the column '{name}' holds values of the type {type(odd).__name__}, which are neither numbers nor text"
        )
        log.stop(Problem(kind="column", message=message, fix="convert the column to numbers, times or text"))
    return pa.array([None if cell is None else _text(cell) for cell in cells], pa.string())


def _text(cell: Any) -> str:
    if hasattr(cell, "isoformat"):
        return str(cell.isoformat())
    return repr(float(cell)) if isinstance(cell, np.floating) else str(cell)


def _is_missing(cell: Any) -> bool:
    return cell is None or cell is pd.NaT or cell is pd.NA or (isinstance(cell, float) and cell != cell)
