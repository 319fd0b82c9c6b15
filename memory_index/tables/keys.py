"""Tables whose rows belong to several series although no column is called `unique_id`: which columns tell them apart.

Such a table must not be taken for a wide one: its rows would look like repeated times, and resolving these would throw
series away.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import combinations

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from memory_index.tables.problems import Problem, ProblemLog
from memory_index.tables.table_files import RawTable

PART_OF_TIME = re.compile(r"(calendar|iso)?[ _]?(year|quarter|month|week|day|hour|minute|mo|dy|hr)s?", re.IGNORECASE)
MAX_KEYS = 3  # columns that name a series together
MAX_TIMES = 200  # times whose rows are looked at
MAX_CANDIDATES = 12
MOST = 0.9  # share of times that are there several times, and of rows that keys must tell apart


def refuse_rows_of_series(raw: RawTable, time: str, names: list[str], *, resolved: bool, log: ProblemLog) -> None:
    """Raise `DataError` if most times are there several times and the rows are not the same: these are several series.

    names: the columns beside the time. resolved: whether the user has said what to do about repeated times, which does
    if no column tells the rows apart.
    """
    num_rows, num_times = len(raw), pc.count_distinct(raw.columns[time]).as_py()
    if num_rows < 2 * MOST * num_times or num_times < 2:
        return
    frame = _sample(raw, time, names)
    per_time = frame.groupby(time, sort=False).size()
    if (per_time > 1).mean() < MOST or frame.drop_duplicates().groupby(time).size().max() == 1:
        return
    number = int(per_time.median())
    keys = next(_keys(frame, time, names, int(per_time.max())), None)
    if keys is not None and (parts := [key for key in keys if PART_OF_TIME.fullmatch(key)]):
        message = f"every time is there {number} times, as if it were spread over '{time}' and '{', '.join(parts)}'"
        fix = "join these columns into one column of times, such as 2024-01-31, 2024-W05 or 2024-01-31 00:00"
        log.stop(Problem(kind="time", message=message, fix=fix))
    if keys is not None:
        rest = [name for name in names if name not in keys and _is_numeric(raw.columns[name])]
        named = " and ".join(f"'{key}'" for key in keys)
        flag = ",".join(keys)
        value = "" if len(rest) == 1 else " --value-column NAME" if rest else ""
        message = f"every time is there {number} times, as if {named} named the series"
        fix = (
            f'read the rows as series with --id-column "{flag}"{value}'
            + (f" (one of {', '.join(rest)}; leave the others out)" if value else "")
            + ("" if len(keys) == 1 else ", or join these columns into one")
        )
        guess = (("id_column", tuple(keys)), *([("value_column", rest[0])] if rest else []))
        log.stop(Problem(kind="series", message=message, fix=fix, guess=guess))
    if not resolved:
        message = f"every time is there {number} times, and no column tells the series of these rows apart"
        fix = (
            "add a column that names the series of each row, such as unique_id; if they are readings of one series, "
            "keep one of each time with --on-duplicate first or last, or their --on-duplicate mean"
        )
        log.stop(Problem(kind="series", message=message, fix=fix))


def _sample(raw: RawTable, time: str, names: list[str]) -> pd.DataFrame:
    """All rows of some of the times, so that what tells rows of one time apart can be seen."""
    times = pc.unique(raw.columns[time])
    some = times.take(pa.array(np.unique(np.linspace(0, len(times) - 1, MAX_TIMES).astype(np.int64))))
    rows = pc.is_in(raw.columns[time], value_set=some)
    return pd.DataFrame({name: raw.columns[name].filter(rows).to_pandas() for name in (time, *names)})


def _keys(frame: pd.DataFrame, time: str, names: list[str], per_time: int) -> Iterator[tuple[str, ...]]:
    """Combinations of columns that may name the series, those of the fewest columns and names first."""
    candidates = {
        name: frame[name].nunique()
        for name in names
        if _names_things(frame[name]) and 1 < frame[name].nunique() <= max(2, len(frame) // 2)
    }
    short = sorted(candidates, key=lambda name: candidates[name])[:MAX_CANDIDATES]
    order = [name for name in names if name in short]
    for size in range(1, MAX_KEYS + 1):
        found = []
        for keys in combinations(order, size):
            num_series = len(frame[list(keys)].drop_duplicates())
            if 2 <= num_series <= 2 * per_time and 2 * num_series <= len(frame):
                apart = 1 - frame.duplicated([time, *keys]).mean()
                if apart >= MOST:
                    found.append((num_series, keys))
        yield from (keys for _, keys in sorted(found, key=lambda each: each[0]))


def _names_things(column: pd.Series) -> bool:
    """Whether a column could hold names or numbers of things: whole numbers or text, none missing."""
    if column.isna().any() or (column == "").any():
        return False
    numeric = pd.to_numeric(column, errors="coerce")
    return bool(numeric.isna().all() or (numeric.notna().all() and (numeric % 1 == 0).all()))


def _is_numeric(column: pa.ChunkedArray) -> bool:
    if not pa.types.is_string(column.type):
        return not pa.types.is_temporal(column.type)
    cells = pd.Series(column.slice(0, 200).to_pylist(), dtype=object)
    return bool(pd.to_numeric(cells, errors="coerce").notna().any())
