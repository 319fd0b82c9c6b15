"""Columns beside the targets -> `Covariates`: numbers, booleans and categories, on the steps of each series.

Cells are read once for the whole file (`read_cells`), then laid on the grid of each series (`on_grid`). What is missing
stays missing: neither is a covariate filled from a neighbouring step, nor does a later value stand in for an earlier.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from memory_index.covariates import Covariate, Covariates, Kind
from memory_index.tables.columns import MISSING, ReadOptions, Roles
from memory_index.tables.numbers import NUMBER_WITH_MARKS, SEEN, Cells, converted, named_series, numbers
from memory_index.tables.problems import Problem, ProblemLog
from memory_index.tables.ranges import LARGEST, note_column
from memory_index.tables.table_files import RawTable

TRUE, FALSE = frozenset(("true", "yes")), frozenset(("false", "no"))
MOST_WORDS = 1000  # of a category; a column with more is free text


class CovariateCells(NamedTuple):
    """The columns of a file beside its targets, and their values: float64 [C, n], NaN where missing."""

    columns: tuple[Covariate, ...]
    values: np.ndarray


def read_cells(raw: RawTable, roles: Roles, cells: Cells) -> CovariateCells | None:
    """The covariates of all rows of a file; None where no column has such a role. Faults go to the log of `cells`.

    Columns that `cells.options.recorded` has keep their kind and their words.
    """
    if not roles.covariates:
        return None
    recorded = {column.name: column for column in cells.options.recorded if not column.source}
    columns, lines = [], []
    for name, role in roles.covariates:
        before = recorded.get(name)
        kind = before.kind if before is not None else _kind_of(raw, name, cells)
        words: tuple[str, ...] = ()
        if kind == "category":
            line, words = _codes(raw, name, roles, cells, before)
        elif kind == "boolean":
            line = _booleans(raw, name, roles, cells)
        else:
            line = _numbers(raw, name, roles, cells)
            if before is None and _are_flags(line):
                kind = "boolean"
        columns.append(Covariate(name=name, role=role, kind=kind, categories=words))
        lines.append(line)
    return CovariateCells(tuple(columns), np.stack(lines))


def _kind_of(raw: RawTable, name: str, cells: Cells) -> Kind:
    column, log = raw.columns[name], cells.log
    if pa.types.is_temporal(column.type):
        message = f"the column '{name}' holds times, which are no covariate"
        log.stop(Problem(kind="column", column=name, message=message, fix="make a number or a word of them"))
    if pa.types.is_boolean(column.type):
        return "boolean"
    if not pa.types.is_string(column.type):
        return "number"
    words = _without_missing(pc.unique(column).slice(0, SEEN), cells.options)
    if not words:
        return "number"
    if {word.lower() for word in words} <= TRUE | FALSE:
        return "boolean"
    unreadable = converted(pa.chunked_array([pa.array(words, pa.string())]), cells.options)[1]
    marked = sum(NUMBER_WITH_MARKS.fullmatch(word) is not None for word in words)
    return "number" if 2 * unreadable.sum() <= len(words) or 2 * marked >= len(words) else "category"


def _words(column: pa.ChunkedArray, options: ReadOptions) -> list[str]:
    """The different texts of a column, sorted, without those that mean no value."""
    return sorted(_without_missing(pc.unique(column.cast(pa.string())), options))


def _without_missing(texts: pa.Array, options: ReadOptions) -> list[str]:
    trimmed = pc.unique(pc.utf8_trim_whitespace(texts)).to_pylist()
    return [text for text in trimmed if text is not None and text not in MISSING and text not in options.missing]


def _are_flags(line: np.ndarray) -> bool:
    known = line[~np.isnan(line)]
    return len(known) > 0 and bool(((known == 0) | (known == 1)).all())


def _numbers(raw: RawTable, name: str, roles: Roles, cells: Cells) -> np.ndarray:
    found = numbers(raw, name, roles, cells)
    if found is None:
        return np.full(len(raw), np.nan)
    values = found[0]
    bad = np.abs(values) > LARGEST
    if bad.any():

        def problem_at(place: int) -> Problem:
            value = float(values[place])
            what = "is infinite" if np.isinf(value) else f"{value!r} is too large for float32 ({LARGEST:.3g})"
            return Problem(
                kind="infinite" if np.isinf(value) else "too-large",
                series_id=named_series(raw, name, roles, place),
                at=cells.moment(place),
                row=int(raw.row_number[place]),
                message=f"the value of '{name}' {what}",
                fix=f"correct the cell; if it means no value: --missing {value!r}",
                column=name,
            )

        _note(cells.log, bad, problem_at, kind="infinite" if np.isinf(values[bad]).all() else "too-large")
        values = np.where(bad, np.nan, values)
    return values


def _booleans(raw: RawTable, name: str, roles: Roles, cells: Cells) -> np.ndarray:
    """float64 [n]: 0 and 1, of a column of booleans, of the words for them or of the numbers 0 and 1."""
    column = raw.columns[name]
    if not pa.types.is_string(column.type):
        values = _numbers(raw, name, roles, cells)
    else:
        text = pc.utf8_lower(pc.utf8_trim_whitespace(column)).to_pandas()
        values = converted(column, cells.options)[0]
        values = np.where(text.isin(TRUE), 1.0, np.where(text.isin(FALSE), 0.0, values))
        original = pc.utf8_trim_whitespace(column).to_pandas()
        filled = ~(original.isna() | original.isin((*MISSING, *cells.options.missing))).to_numpy()
        values = np.where(np.isnan(values) & filled, np.inf, values)
    bad = ~np.isnan(values) & (values != 0) & (values != 1)

    def problem_at(place: int) -> Problem:
        return Problem(
            kind="dtype",
            series_id=named_series(raw, name, roles, place),
            at=cells.moment(place),
            row=int(raw.row_number[place]),
            message=f"'{column[place].as_py()}' in the column '{name}' is neither true nor false",
            fix="write true and false, yes and no, or 1 and 0, as in the other rows",
            column=name,
        )

    _note(cells.log, bad, problem_at, kind="dtype")
    return np.where(bad, np.nan, values)


def _codes(
    raw: RawTable, name: str, roles: Roles, cells: Cells, before: Covariate | None
) -> tuple[np.ndarray, tuple[str, ...]]:
    """(float64 [n], places of the words, -1 for a word that was not there before; the words)."""
    column, options = raw.columns[name], cells.options
    found = _words(column, options)
    words = tuple(found) if before is None else before.categories
    if len(words) > MOST_WORDS:
        message = f"the column '{name}' holds {len(words)} different texts, too many for a category"
        fix = f'leave it out with --ignore "{name}", or write numbers or fewer words'
        cells.log.add(Problem(kind="column", column=name, message=message, fix=fix))
    if before is not None and found and not set(found) & set(words) and _read_as_numbers(found, words, options):
        message = f"the column '{name}' holds numbers (the first is {found[0]}), but words such as '{words[0]}' before"
        fix = "write the words that the history has"
        cells.log.add(Problem(kind="dtype", column=name, message=message, fix=fix))
        return np.full(len(raw), np.nan), words
    text = pc.utf8_trim_whitespace(column.cast(pa.string())).combine_chunks()
    place = pc.index_in(text, value_set=pa.array(words, pa.string()))
    values = place.to_numpy(zero_copy_only=False).astype(np.float64)
    known = pc.index_in(text, value_set=pa.array(found, pa.string())).is_valid().to_numpy(zero_copy_only=False)
    values[np.isnan(values) & known] = -1
    for word in (word for word in found if before is not None and word not in words):
        first = pc.index(text, word).as_py()
        problem = Problem(
            kind="unseen",
            series_id=named_series(raw, name, roles, first),
            at=cells.moment(first),
            row=int(raw.row_number[first]),
            message=f"'{word}' in the column '{name}' was never seen before: it counts as the class \"other\"",
            fix=f"nothing to do if it is new; known are {', '.join(words[:12])}",
            severity="note",
            column=name,
        )
        cells.log.add(problem)
    return values, words


def _read_as_numbers(found: list[str], words: Sequence[str], options: ReadOptions) -> bool:
    """Whether texts are numbers, and the words before were not."""
    theirs, ours = (converted(pa.chunked_array([pa.array(each, pa.string())]), options)[1] for each in (found, words))
    return not theirs.any() and bool(ours.all())


def _note(log: ProblemLog, bad: np.ndarray, problem_at: Callable[[int], Problem], *, kind: str) -> None:
    if bad.any():
        log.add_at(np.flatnonzero(bad), int(bad.sum()), problem_at, kind=kind)


def on_grid(
    columns: Sequence[Covariate], values: np.ndarray, position: np.ndarray, num_target: int
) -> tuple[np.ndarray, list[int]]:
    """The covariates of a series on its grid, and the numbers of static columns that have several values.

    values: float64 [C, n] of its rows; position: int64 [n], their steps on the grid, ascending; num_target: steps up to
    its last target value. Returns float64 [C, T]: T reaches to the last value of a known column, and at least to the
    last target value.
    """
    num_steps = int(position[-1]) + 1
    laid = values
    if num_steps > len(position) or num_target > num_steps:
        laid = np.full((len(columns), max(num_steps, num_target)), np.nan)
        laid[:, position] = values
    roles = np.array([column.role for column in columns])
    reach = num_target
    if laid.shape[1] > num_target:
        ahead = np.flatnonzero(~np.isnan(laid[roles == "known", num_target:]).all(axis=0))
        reach += int(ahead[-1]) + 1 if len(ahead) else 0
    laid = laid[:, :reach]
    changing = [*np.flatnonzero(roles == "observed"), *np.flatnonzero(roles == "static")]
    if not changing:
        return laid, []
    laid, several = laid.copy(), []
    laid[roles == "observed", num_target:] = np.nan
    for number in np.flatnonzero(roles == "static"):
        known = values[number][~np.isnan(values[number])]
        laid[number] = known[0] if len(known) else np.nan
        if len(known) and (known != known[0]).any():
            several.append(int(number))
    return laid, several


def note_values(covariates: Covariates, log: ProblemLog) -> None:
    """Note columns of the table that are constant, so that they tell nothing apart, and codes for missing values."""
    distinct = list({id(each.values): each.values for each in covariates.series}.values())
    for number, column in enumerate(covariates.columns):
        if column.source or (column.role == "static" and len(distinct) == 1):
            continue
        known = np.concatenate([values[number] for values in distinct])
        known = known[~np.isnan(known)]
        if not len(known):
            continue
        low, high = float(known.min()), float(known.max())
        if column.kind == "number":
            note_column(known, log, column.name)
        if low == high:
            value = column.categories[int(low)] if column.kind == "category" and low >= 0 else f"{low:g}"
            message = f"the column '{column.name}' is constant: {value}"
            fix = "nothing to do, since it counts for nothing; or give it no role"
            log.add(Problem(kind="constant", column=column.name, message=message, fix=fix, severity="note"))
