"""The rows of a file or table of Python, before anything is made of them, and which series each is of."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from memory_index.tables.columns import ReadOptions, time_candidates
from memory_index.tables.problems import Problem, ProblemLog
from memory_index.tables.table_files import RawTable, arrow_columns, frame_columns, read_columns


def raw_table(source: Path | pd.DataFrame | pa.Table, options: ReadOptions, log: ProblemLog) -> RawTable:
    """The columns of a file or table; a DataFrame's index of times is one of them if no other can be the time."""
    if isinstance(source, Path):
        return read_columns(source, log, max_cells=options.max_cells)
    if isinstance(source, pa.Table):
        return arrow_columns(source, log, max_cells=options.max_cells)
    raw = frame_columns(source, log, max_cells=options.max_cells, needs_time=False)
    named = options.time_column
    names = [name for name in raw.columns if name not in options.ignore]
    if named in raw.columns or (named is None and time_candidates(raw, names)):
        return raw
    return frame_columns(source, log, max_cells=options.max_cells, needs_time=True)


def without_blank_rows(raw: RawTable, log: ProblemLog) -> RawTable:
    """The rows that have any cell. Raises `DataError` if none has."""
    first = next(iter(raw.columns.values()))
    if not pa.types.is_string(first.type):
        return raw
    blank = pc.equal(first, "")
    for column in raw.columns.values():
        if not pc.any(blank).as_py():
            return raw
        blank = pc.and_(blank, pc.equal(column, ""))
    keep = ~blank.to_numpy(zero_copy_only=False) if isinstance(blank, pa.Array) else ~np.asarray(blank.to_numpy())
    if not keep.any():
        log.stop(
            Problem(kind="empty", message="the file has a header but only blank lines", fix="give a file with rows")
        )
    mask = pa.array(keep)
    return RawTable(
        columns={name: column.filter(mask) for name, column in raw.columns.items()}, row_number=raw.row_number[keep]
    )


def series_codes(raw: RawTable, ids: tuple[str, ...], log: ProblemLog) -> tuple[np.ndarray, list[str]]:
    """(number of the series of each row, -1 without a name; names in order of appearance). All 0 in a wide table."""
    if not ids:
        return np.zeros(len(raw), dtype=np.int64), []
    parts = [_text_codes(raw.columns[name]) for name in ids]
    codes, names = parts[0]
    if len(parts) > 1:
        codes, names = _joined(parts)
        if len(set(names)) < len(names):
            message = f"names of series made of {' and '.join(ids)} with a / between them are not different"
            log.stop(Problem(kind="series", message=message, fix="join these columns into one that names each series"))
    unnamed = np.flatnonzero(codes < 0)

    def problem_at(place: int) -> Problem:
        column = "' and '".join(ids)
        fix = "fill in the name"
        return Problem(
            kind="unnamed", row=int(raw.row_number[place]), message=f"the row names no series in '{column}'", fix=fix
        )

    log.add_at(unnamed, len(unnamed), problem_at, kind="unnamed")
    return codes, names


def _text_codes(column: pa.ChunkedArray) -> tuple[np.ndarray, list[str]]:
    """(number of the text of each cell, int32 [n], -1 where it is empty; the texts in order of appearance).

    Each different text is handled once, however many rows have it.
    """
    coded = column.cast(pa.string()).dictionary_encode().unify_dictionaries()
    place = np.concatenate([chunk.indices.fill_null(-1).to_numpy(zero_copy_only=False) for chunk in coded.chunks])
    texts = pc.utf8_trim_whitespace(coded.chunk(0).dictionary).to_pandas().astype(object)
    number, names = pd.factorize(texts.mask(texts == ""))
    return np.append(number, -1).astype(np.int32)[place], [str(each) for each in names]


def _joined(parts: list[tuple[np.ndarray, list[str]]]) -> tuple[np.ndarray, list[str]]:
    """The same of rows that several columns name together: their texts with a / between them."""
    nameless = np.any([codes < 0 for codes, _ in parts], axis=0)
    together = np.zeros(len(nameless), dtype=np.int64)
    for codes, texts in parts:
        together = together * max(len(texts), 1) + codes
    result = np.full(len(nameless), -1, dtype=np.int32)
    result[~nameless], distinct = pd.factorize(together[~nameless])
    columns = []
    for _, texts in reversed(parts):
        distinct, place = np.divmod(distinct, max(len(texts), 1))
        columns.append([texts[each] for each in place])
    return result, ["/".join(row) for row in zip(*reversed(columns), strict=True)]
