"""Bytes of a CSV or Parquet file -> columns with their row numbers. What the columns mean is `reading.py`.

Nothing is converted here: the cells of a CSV file stay text, so that a cell that cannot be used is later
named with its line.
"""

from __future__ import annotations

import csv
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from memory_index.errors import NotFoundError, ResourceError
from memory_index.tables.frames import frame_table
from memory_index.tables.problems import Problem, ProblemLog

DELIMITERS = ",;\t|"
SEEN_LINES = 200  # of a file whose first line names no columns
COMPRESSED = (b"\x1f\x8b", b"PK\x03\x04", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")


@dataclass(frozen=True, kw_only=True, slots=True)
class RawTable:
    """The columns of a file as they are written, by name and in file order.

    columns: each [n]; text for CSV, any type for Parquet. row_number: int64 [n], line of a CSV file (the
    header is line 1) or row of a Parquet file, counted from 1.
    """

    columns: dict[str, pa.ChunkedArray]
    row_number: np.ndarray

    def __len__(self) -> int:
        return len(self.row_number)


def read_columns(path: Path, log: ProblemLog, *, max_cells: int) -> RawTable:
    """Read a file of either kind, told apart by its first bytes.

    Raises `NotFoundError` (no file), `ResourceError` (not readable, or more than `max_cells` cells) and
    `DataError` (not a table). Ragged rows are noted in the log and left out.
    """
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise NotFoundError(f"the file {path} {what}", hint="give the path of a CSV or Parquet file")
    try:
        with path.open("rb") as file:
            head = file.read(4096)
        if head.startswith(b"PAR1"):
            return _read_parquet(path, log, max_cells)
        if path.suffix.lower() in (".parquet", ".pq") and not head.startswith(b"version https://git-lfs"):
            log.stop(
                Problem(
                    kind="file", message="this is not a Parquet file, whatever its name says", fix="restore the file"
                )
            )
        _refuse_what_is_not_text(head, log)
        return _read_csv(path.read_bytes(), log, max_cells)
    except PermissionError as error:
        raise ResourceError(
            f"the file {path} cannot be read: permission denied", hint="change its permissions"
        ) from error


def _refuse_what_is_not_text(head: bytes, log: ProblemLog) -> None:
    if not head.strip():
        log.stop(
            Problem(kind="empty", message="the file is empty", fix="give a CSV or Parquet file with a header and rows")
        )
    if head.startswith(b"version https://git-lfs"):
        message = "this is a Git LFS pointer, not the data"
        log.stop(Problem(kind="lfs-pointer", message=message, fix="fetch the real file with 'git lfs pull'"))
    if head.startswith(COMPRESSED):
        log.stop(
            Problem(
                kind="binary",
                message="this is a compressed file or a workbook, not text",
                fix="unpack or export it as CSV first",
            )
        )
    if b"\0" in head:
        fix = "save the file as CSV in UTF-8, or as Parquet"
        log.stop(
            Problem(kind="binary", message="this is a binary file or UTF-16 text, not a CSV file in UTF-8", fix=fix)
        )


def _read_parquet(path: Path, log: ProblemLog, max_cells: int) -> RawTable:
    try:
        with pa.parquet.ParquetFile(path) as file:
            # From the footer, before anything is decoded: a small file can claim billions of rows.
            _refuse_too_many(file.metadata.num_rows, file.metadata.num_columns, max_cells, log)
            table = file.read()
    except (pa.ArrowException, OSError) as error:
        message = f"the Parquet file cannot be read: {_one_line(error)}"
        log.stop(Problem(kind="file", message=message, fix="restore the file or write it again"))
    return _raw(table, log)


def frame_columns(frame: pd.DataFrame, log: ProblemLog, *, max_cells: int, needs_time: bool) -> RawTable:
    """The columns of a DataFrame, as of a file, and what its index says. needs_time: an index of times is one of them.

    Raises `DataError`, `ResourceError`.
    """
    _refuse_too_many(len(frame), frame.shape[1], max_cells, log)
    _refuse_repeated([str(name) for name in frame.columns], log)
    return _raw(frame_table(frame, needs_time=needs_time, log=log), log)


def arrow_columns(table: pa.Table, log: ProblemLog, *, max_cells: int) -> RawTable:
    """The columns of an Arrow table. Raises `DataError`, `ResourceError`."""
    _refuse_too_many(table.num_rows, table.num_columns, max_cells, log)
    return _raw(table, log)


def _raw(table: pa.Table, log: ProblemLog) -> RawTable:
    if len(set(table.column_names)) < table.num_columns:
        _refuse_repeated(table.column_names, log)
    if table.num_rows == 0:
        log.stop(Problem(kind="empty", message="there are columns but no rows", fix="give a table with rows"))
    columns = {name: _plain(column) for name, column in zip(table.column_names, table.columns, strict=True)}
    return RawTable(columns=columns, row_number=np.arange(1, table.num_rows + 1))


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """The column as text, numbers or times; other types (lists, bytes) as their name, which is no number."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        return _plain(column.cast(kind.value_type))
    if pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return column.cast(pa.string())
    usable = (pa.types.is_string, pa.types.is_primitive, pa.types.is_decimal, pa.types.is_boolean)
    if any(is_usable(kind) for is_usable in usable) and not (pa.types.is_time(kind) or pa.types.is_duration(kind)):
        return column
    return pa.chunked_array([pa.repeat(f"<{kind}>", len(column))])


def _read_csv(content: bytes, log: ProblemLog, max_cells: int) -> RawTable:
    try:
        content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        message = f"the byte 0x{content[error.start]:02x} is not UTF-8 text"
        log.stop(Problem(kind="encoding", row=line, message=message, fix="save the file as UTF-8"))
    if b"\0" in content:
        line = content.count(b"\n", 0, content.index(b"\0")) + 1
        log.stop(Problem(kind="binary", row=line, message="there are zero bytes in the text", fix="restore the file"))
    names, delimiter, header_line = _header(content, log)
    num_rows = content.count(b"\n") + (not content.endswith(b"\n")) - header_line
    _refuse_too_many(num_rows, len(names), max_cells, log)
    ragged: list[pa.csv.InvalidRow] = []

    def note_ragged(row: pa.csv.InvalidRow) -> str:
        ragged.append(row)
        return "skip"

    try:
        table = pa.csv.read_csv(
            pa.BufferReader(content),
            # One thread: only then are the numbers of ragged lines known. Blank lines are kept, and left out
            # by the caller, so that row numbers are line numbers.
            read_options=pa.csv.ReadOptions(use_threads=False, column_names=names, skip_rows=header_line),
            parse_options=pa.csv.ParseOptions(
                delimiter=delimiter, ignore_empty_lines=False, invalid_row_handler=note_ragged
            ),
            convert_options=pa.csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string())),
        )
    except pa.ArrowException as error:
        log.stop(
            Problem(
                kind="file", message=f"the CSV file cannot be read: {_one_line(error)}", fix="repair or export it again"
            )
        )
    _note_ragged(ragged, log)
    if not content.endswith((b"\n", b"\r")):
        message = "the last line has no line end, as if the file were cut off there or still being written"
        log.add(
            Problem(
                kind="no-line-end",
                row=header_line + num_rows,
                message=message,
                fix="nothing to do if its last number is whole",
                severity="note",
            )
        )
    lines = np.arange(header_line + 1, header_line + 1 + table.num_rows + len(ragged))
    kept = np.setdiff1d(lines, np.array([row.number for row in ragged], dtype=lines.dtype))
    if table.num_rows == 0:
        log.stop(Problem(kind="empty", message="the file has a header but no usable rows", fix="give a file with rows"))
    return RawTable(columns=dict(zip(names, table.columns, strict=True)), row_number=kept)


def _note_ragged(ragged: list[pa.csv.InvalidRow], log: ProblemLog) -> None:
    def problem_at(place: int) -> Problem:
        row = ragged[place]
        message = (
            f"the row has {row.actual_columns} cells, but the header has {row.expected_columns}: '{row.text[:60]}'"
        )
        remark = not any(character.isdigit() for character in row.text.split(",")[0])
        fix = f"remove line {row.number} if it is a remark, such as a source or a total; else write all its cells"
        cut_off = f"repair line {row.number} (a cut-off file ends with such a line)"
        return Problem(kind="ragged", row=row.number, message=message, fix=fix if remark else cut_off)

    log.add_at(range(len(ragged)), len(ragged), problem_at, kind="ragged")


def _header(content: bytes, log: ProblemLog) -> tuple[list[str], str, int]:
    """Column names, delimiter, and the line of the header (1 unless blank lines come first)."""
    lines = content.splitlines()
    number = next(index for index, line in enumerate(lines) if line.strip(b"\xef\xbb\xbf \t"))
    text = lines[number].decode("utf-8-sig")
    delimiter = max(DELIMITERS, key=text.count)  # the first wins a tie
    names = [name.strip() for name in next(csv.reader([text], delimiter=delimiter))]
    if len(names) < 2:
        fix = "the first line must name the columns, separated by commas, semicolons or tabs"
        if (line := _first_of_table(lines)) is not None:
            fix = f"the names of the columns seem to stand in line {line}: remove the lines above it"
        message = f"the header '{text[:60]}' has one column, but a time and at least one value are needed"
        log.stop(Problem(kind="header", row=number + 1, message=message, fix=fix))
    if all(_looks_like_a_value(name) for name in names):
        message = f"the first line '{text[:60]}' is data, not a header"
        log.stop(
            Problem(
                kind="header", row=number + 1, message=message, fix="add a first line with the names of the columns"
            )
        )
    names = [name or f"column {position}" for position, name in enumerate(names, start=1)]
    _refuse_repeated(names, log)
    return names, delimiter, number + 1


def _first_of_table(lines: list[bytes]) -> int | None:
    """The first of many lines with as many cells, below lines with fewer; None where there are no such lines."""
    texts, found = [line.decode("utf-8-sig") for line in lines[:SEEN_LINES]], []
    for mark in DELIMITERS:
        widths = [text.count(mark) for text in texts]
        width, num_lines = Counter(widths).most_common(1)[0]
        if width and 2 * num_lines > len(texts):
            found.append(widths.index(width) + 1)  # of commas inside numbers the names have none
    return min(found, default=None)


def _looks_like_a_value(name: str) -> bool:
    """Whether a header cell is a number or a time. (ETT-like tables do name variates `0`, `1`, ...)"""
    stripped = name.strip("-+ TZ")
    return bool(stripped) and stripped[0].isdigit() and all(c in "0123456789.,:-+/eETZ " for c in stripped)


def _refuse_repeated(names: list[str], log: ProblemLog) -> None:
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        message = f"the column '{repeated[0]}' is there {names.count(repeated[0])} times"
        log.stop(Problem(kind="header", message=message, fix="give each column its own name"))


def _refuse_too_many(rows: int, columns: int, max_cells: int, log: ProblemLog) -> None:
    if rows * columns > max_cells:
        raise ResourceError(
            f"{log.source} has {rows} rows of {columns} columns, more than the limit of {max_cells} cells",
            hint="read a part of it, or raise the limit with --max-cells",
        )


def _one_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
