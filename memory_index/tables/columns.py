"""Which column of a file is what: wide (a time column and one per variate) or long (`unique_id, ds, y`).

Detected, and overridable by `ReadOptions`. A column that is in neither role is a fault until the user says
that it is to be left out.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from memory_index.covariates import Covariate, Role
from memory_index.errors import NotFoundError, UsageError
from memory_index.tables.calendar import require_features
from memory_index.tables.covariate_roles import ROLES, note_unused, require_recorded, single_roles
from memory_index.tables.keys import refuse_rows_of_series
from memory_index.tables.number_times import EXCEL, UNITS, TimeOptions, are_numbers, told_by_size
from memory_index.tables.problems import Problem, ProblemLog
from memory_index.tables.series import Remembered
from memory_index.tables.table_files import RawTable
from memory_index.tables.timestamps import looks_like_times

TIME_NAMES = ("ds", "date", "time", "timestamp", "datetime", "date_time", "time_stamp")
ID_NAMES = ("unique_id", "series_id", "item_id")
VALUE_NAMES = ("y", "value", "target")
UNNAMED = re.compile(r"column \d+|Unnamed: \d+|__index_level_\d+__")  # ours, pandas' in CSV, pandas' in Parquet
TIME_OF_DAY = re.compile(r"\d{1,2}:\d\d(:\d\d(\.\d+)?)?(\s*[AaPp]\.?[Mm]\.?)?|<time(32|64)\[\w+\]>")
DATE_ONLY = re.compile(r"[^:]+|[^:]+ 00:00(:00)?")
ACROSS = 4  # columns that are named by times
MISSING = ("", "NA", "N/A", "#N/A", "NaN", "nan", "null", "NULL", "None")  # cells that hold no value

FillPolicy = Literal["keep", "error", "interpolate", "ffill", "drop"]
DuplicatePolicy = Literal["error", "same", "first", "last", "mean"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ReadOptions:
    """How a file is to be read. Every default is "detect it" or "stop and say so".

    layout: `wide` or `long`. time_column, id_column, value_column: the roles (the last two: long tables). Several id
    columns (`("store", "item")`, or `"store,item"`) name a series together: `1/7`.
    columns: the variates (long: the series) to read, the others being left out on purpose. ignore: columns (long:
    also series) to leave out. missing: cells that mean "no value", beside the usual ones. decimal: `,` or `.`, the
    decimal mark of a text file whose numbers may have separators of thousands too; None: a point, and no separators.

    step: a pandas frequency. time_format: strptime format of the times. time_zone: what naive times are in, or what
    times with several UTC offsets are to be shown in. time_unit: the time column holds numbers, `s`, `ms`, `us` or `ns`
    since 1970 in UTC, or `excel`, the days of a spreadsheet. time_start: it holds numbers that count steps; this is the
    time of the number 0.

    on_gap (rows that are not there) and on_nan (cells that hold no finite value):
    `keep`: they stay missing in the regular grid, and count for nothing wherever windows are stored, compared, forecast
    or scored; `error`; `drop`: they stay missing, and no window that touches one is used;
    `ffill`: the last value before is repeated, which never knows more than was known at that time;
    `interpolate`: a straight line in time between the values before and after. **A filled cell then knows the
    next observed value**: a window whose last steps were interpolated has seen a little of its own future, so
    scores can be flattered where an origin falls into such a stretch. None of them reaches past the first or
    the last value of a series: missing cells there stay missing. An infinite cell, or one too large for float32, is a
    fault under `keep`: it may be a mistake, and `missing` or another choice says that it means no value.

    on_duplicate (several rows of one series with one time): `error`; `same`: keep one of those that say the same, and
    stop at others; or keep the `first`, the `last`, the `mean`.

    known, observed, static: names of columns that are no targets but stand beside them (covariates): known ahead, known
    up to now, and the same for all times of a series. In a wide table all series share them. Rows after the last target
    value are then the future. What is missing of a covariate stays missing. calendar: features that the calendar makes
    (`tables/calendar.py`), or `auto`; holidays: a country, as `DE` or `DE-BY`. recorded: columns whose kinds and words
    are known already (`with_recorded`). vintages: a file or DataFrame with known columns as they were issued
    (`read_vintages`): they take the place of what the table itself says of these columns, which it need not have.
    remembered: how a version's own table was read (`recorded_roles.remembered_of`), for what is not said here.

    max_cells: larger files are refused, Parquet by its footer before anything is decoded.

    Raises `UsageError` for a choice that there is not.
    """

    layout: Literal["wide", "long"] | None = None
    time_column: str | None = None
    id_column: str | tuple[str, ...] | None = None
    value_column: str | None = None
    columns: tuple[str, ...] | None = None
    ignore: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    decimal: Literal[",", "."] | None = None
    step: str | None = None
    time_format: str | None = None
    time_zone: str | None = None
    time_unit: Literal["s", "ms", "us", "ns", "excel"] | None = None
    time_start: str | None = None
    on_gap: FillPolicy = "keep"
    on_nan: FillPolicy = "keep"
    on_duplicate: DuplicatePolicy = "error"
    max_cells: int = 200_000_000
    known: tuple[str, ...] = ()
    observed: tuple[str, ...] = ()
    static: tuple[str, ...] = ()
    calendar: tuple[str, ...] = ()
    holidays: str | None = None
    recorded: tuple[Covariate, ...] = ()
    vintages: Any = field(default=None, compare=False)
    remembered: Remembered = ()

    def __post_init__(self) -> None:
        fill, duplicate = get_args(FillPolicy), get_args(DuplicatePolicy)
        choices = {"layout": (None, "wide", "long"), "on_gap": fill, "on_nan": fill, "on_duplicate": duplicate}
        choices |= {"decimal": (None, ",", "."), "time_unit": (None, *UNITS, EXCEL)}
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                known = ", ".join(str(choice) for choice in allowed if choice)
                raise UsageError(
                    f"--{name.replace('_', '-')} is '{getattr(self, name)}'", hint=f"choose one of {known}"
                )
        if self.time_unit is not None and self.time_start is not None:
            raise UsageError(
                "--time-unit and --time-start read the numbers of a time column in two ways", hint="give one of them"
            )
        for name in ("columns", "ignore", "calendar", "missing"):
            if isinstance(text := getattr(self, name), str):
                raise UsageError(f"{name} is the text '{text}', not a list of names", hint=f'give {name}=("{text}",)')
        if self.max_cells < 1:
            raise UsageError(f"--max-cells is {self.max_cells}, but must be at least 1")
        require_features(self.calendar)
        _ = self.roles  # raises for a name that is used twice

    @property
    def roles(self) -> dict[str, Role]:
        """The role of each column that was named for one. Raises `UsageError` for a name that is used twice."""
        ids = self.id_column or ()
        used = {
            "--ignore": self.ignore,
            "--columns": self.columns or (),
            "--time-column": (self.time_column,),
            "--value-column": (self.value_column,),
            "--id-column": (ids,) if isinstance(ids, str) else ids,
        }
        return single_roles({role: getattr(self, role) for role in ROLES}, used)

    @property
    def of_times(self) -> TimeOptions:
        """Those that say how the time column is to be read."""
        return TimeOptions(
            time_format=self.time_format,
            time_zone=self.time_zone,
            time_unit=self.time_unit,
            time_start=self.time_start,
            step=self.step,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Roles:
    """What the columns of a file are. id is empty in a wide table; a long one has a single value column.

    covariates: name and role of each column beside the target, in the order known, observed, static.
    """

    time: str
    id: tuple[str, ...]
    values: tuple[str, ...]
    covariates: tuple[tuple[str, Role], ...] = ()

    @property
    def layout(self) -> Literal["wide", "long"]:
        """The layout that these roles make."""
        return "long" if self.id else "wide"


def find_roles(raw: RawTable, options: ReadOptions, log: ProblemLog) -> Roles:
    """Decide the roles. Raises `NotFoundError` for a named column that is not there and `DataError` if unclear."""
    given_ids = id_columns(raw, options)
    for name in (name for name in (options.time_column, *given_ids, options.value_column) if name):
        require_known(name, raw.columns, log, what="column")
    covariates = options.roles
    if options.vintages is not None:
        covariates = {name: role for name, role in covariates.items() if name in raw.columns or role != "known"}
    require_recorded(raw.columns, covariates, options.recorded, log.source)
    for name in covariates:
        require_known(name, raw.columns, log, what="column")
    names = [name for name in raw.columns if name not in options.ignore and name not in covariates]
    _refuse_times_of_day(raw, names, options, log)
    time = options.time_column or find_time(raw, names, options, log)
    names = [name for name in names if name != time]
    if _is_long(raw, time, names, options):
        return replace(_long_roles(raw, names, time, options, log), covariates=tuple(covariates.items()))
    if options.layout is None:
        beside = [name for name in raw.columns if name != time]  # what is ignored may still be what names the series
        refuse_rows_of_series(raw, time, beside, resolved=options.on_duplicate not in ("error", "same"), log=log)
    if options.id_column or options.value_column:
        raise UsageError(
            "--id-column and --value-column belong to long tables, and this one is wide",
            hint="add --layout long if it is not, or choose variates with --columns",
        )
    for name in (*(options.columns or ()), *options.ignore):
        require_known(name, raw.columns, log, what="column")
    values = tuple(name for name in names if options.columns is None or name in options.columns)
    if not values:
        message = "there is no column of values beside the time column"
        log.stop(Problem(kind="column", message=message, fix="give a file with at least one numeric column"))
    _note_unnamed(values, options, log)
    if covariates:
        note_unused((name for name in names if name not in values), "--columns names the targets", log)
    return Roles(time=time, id=(), values=values, covariates=tuple(covariates.items()))


def several(names: str | Iterable[str] | None) -> tuple[str, ...]:
    """One name, several, or none, as Python callers give them."""
    return (names,) if isinstance(names, str) else tuple(names or ())


def id_columns(raw: RawTable, options: ReadOptions) -> tuple[str, ...]:
    """The columns that were named for the series: one, or several with commas between them."""
    given = options.id_column
    if given is None or not isinstance(given, str):
        return given or ()
    return (given,) if given in raw.columns else tuple(name.strip() for name in given.split(","))


def _note_unnamed(values: tuple[str, ...], options: ReadOptions, log: ProblemLog) -> None:
    """Row numbers that were saved along with a table are no variate, unless they are asked for by name."""
    for name in values:
        if options.columns is None and UNNAMED.fullmatch(name):
            message = f"the column '{name}' has no name of its own, as if row numbers had been saved along"
            fix = f'leave it out with --ignore "{name}", or give it a name'
            log.add(Problem(kind="column", series_id=name, message=message, fix=fix))


def require_known(name: str, known: Collection[str], log: ProblemLog, *, what: str) -> None:
    """Raise `NotFoundError` for a column or series that is not there, naming the nearest, or that it is several."""
    if name not in known:
        parts = [part.strip() for part in name.split(",")]
        if len(parts) > 1 and all(part in known for part in parts):
            several = " and ".join(f"'{part}'" for part in parts)
            raise NotFoundError(
                f"{log.source} has no {what} '{name}'", hint=f"it has {several}: give the option once for each"
            )
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
        hint = f"the nearest of {len(known)} is '{near[0]}'" if near else f"it has no {what} with a name at all"
        raise NotFoundError(f"{log.source} has no {what} '{name}'", hint=hint)


def _refuse_times_of_day(raw: RawTable, names: list[str], options: ReadOptions, log: ProblemLog) -> None:
    """Stop if dates that repeat stand beside times of day: each alone reads as something that it is not."""
    clocks = [
        name
        for name in names
        if name not in (*id_columns(raw, options), *ID_NAMES) and _all_match(TIME_OF_DAY, raw.columns[name])
    ]
    dates = [
        name
        for name in ([options.time_column] if options.time_column else names if clocks else [])
        if looks_like_times(raw.columns[name])
        and _all_match(DATE_ONLY, raw.columns[name])
        and pc.count_distinct(raw.columns[name]).as_py() < len(raw)
    ]
    if clocks and dates:
        message = f"the column '{clocks[0]}' holds times of day, and '{dates[0]}' dates that repeat"
        fix = f"join '{dates[0]}' and '{clocks[0]}' into one column, with times such as 2024-01-01 00:00"
        log.stop(Problem(kind="time", message=message, fix=fix))


def _all_match(pattern: re.Pattern[str], column: pa.ChunkedArray) -> bool:
    """Whether all of the first filled cells of a column are of this form."""
    cells = [text for cell in column.slice(0, 200).to_pylist() if cell is not None and (text := str(cell).strip())]
    return bool(cells) and all(pattern.fullmatch(cell) for cell in cells)


def time_candidates(raw: RawTable, names: list[str]) -> list[str]:
    """The columns that could be the time: by name, else the first if it reads as times, else by type."""
    known = [name for name in names if name.strip().lower().replace(" ", "_").replace("-", "_") in TIME_NAMES]
    if known:
        return known
    if names and looks_like_times(raw.columns[names[0]]):
        return names[:1]
    return [name for name in names if pa.types.is_temporal(raw.columns[name].type)]


def find_time(raw: RawTable, names: list[str], options: ReadOptions, log: ProblemLog) -> str:
    """The column of the times. Raises `DataError` where none or several could be it."""
    candidates = time_candidates(raw, names)
    numeric = [
        name for name in names if name not in (*ID_NAMES, *id_columns(raw, options)) and are_numbers(raw.columns[name])
    ]
    if not candidates and options.of_times.as_numbers:
        candidates = numeric[:1]
    if len(candidates) > 1:
        message = f"several columns could be the time: {', '.join(candidates)}"
        fix = "say which with --time-column, and leave out the others with --ignore"
        guess = (("time_column", candidates[0]), ("ignore", (*options.ignore, *candidates[1:])))
        log.stop(Problem(kind="time", message=message, fix=fix, guess=guess))
    if not candidates:
        message = f"there is no time column among {', '.join(list(raw.columns)[:6])}"
        fix, told = "name it with --time-column", dict[str, object]()
        if len(across := [name for name in raw.columns if looks_like_times(pa.chunked_array([[name]]))]) >= ACROSS:
            message = f"times stand in the first line, from {across[0]} to {across[-1]}: each series is a row"
            fix = "turn the table round, so that each time is a row and each series a column"
        elif (line := _header_below(raw)) is not None:
            fix = f"the names of the columns seem to stand in row {line}: remove the rows above it"
        elif numeric and (said := told_by_size(raw.columns[numeric[0]])):
            fix += f'; {said[0]}: --time-column "{numeric[0]}" {said[1]}'
            told = {"time_column": numeric[0], **dict(said[2])}
        log.stop(Problem(kind="time", message=message, fix=fix, guess=tuple(told.items())))
    return candidates[0]


def _header_below(raw: RawTable) -> int | None:
    """The row of a file with a preamble that holds the names of its columns: times begin below it."""
    first = next(iter(raw.columns.values())).slice(0, 40)
    if not pa.types.is_string(first.type):
        return None
    timely = [looks_like_times(pa.chunked_array([[cell or ""]])) for cell in first.to_pylist()]
    begin = next((place for place, is_time in enumerate(timely) if is_time and all(timely[place:])), 0)
    return int(raw.row_number[begin - 1]) if begin else None


def _is_long(raw: RawTable, time: str, names: list[str], options: ReadOptions) -> bool:
    if options.layout is not None or options.id_column is not None:
        return options.layout != "wide"
    if any(name in ID_NAMES for name in names):
        return True
    if options.columns is not None or len(names) != 2:
        return False
    text = [name for name in names if not _starts_numeric(raw.columns[name])]
    if len(text) != 1:
        return False
    # One text and one numeric column: long if times repeat because few names share them, else a column of remarks.
    num_ids = pc.count_distinct(raw.columns[text[0]]).as_py()
    num_times = pc.count_distinct(raw.columns[time]).as_py()
    return bool(num_ids * 2 <= len(raw) and num_times < len(raw))


def _long_roles(raw: RawTable, names: list[str], time: str, options: ReadOptions, log: ProblemLog) -> Roles:
    by_name = [name for name in names if name in ID_NAMES]
    text = [name for name in names if not _starts_numeric(raw.columns[name])]
    ids = id_columns(raw, options) or (_only(by_name or text, "names the series", "--id-column", log),)
    rest = [name for name in names if name not in ids]
    values = [options.value_column] if options.value_column else [name for name in rest if name in VALUE_NAMES] or rest
    value = _only(values, "holds the values", "--value-column", log)
    beside = (name for name in rest if name != value)
    note_unused(beside, f"a long table has one column of values, here '{value}'", log)
    return Roles(time=time, id=ids, values=(value,))


def _only(candidates: list[str], role: str, flag: str, log: ProblemLog) -> str:
    if len(candidates) != 1:
        found = f"several could be it: {', '.join(candidates)}" if candidates else "none was found"
        message = f"a long table needs one column that {role}; {found}"
        guess = ((flag.removeprefix("--").replace("-", "_"), candidates[0]),) if candidates else ()
        log.stop(Problem(kind="column", message=message, fix=f"name it with {flag}", guess=guess))
    return candidates[0]


def _starts_numeric(column: pa.ChunkedArray) -> bool:
    """Whether at least half of the first filled cells of a column are numbers (one typing error is no text column)."""
    if not pa.types.is_string(column.type):
        return not pa.types.is_temporal(column.type)
    cells = pd.Series([cell.strip() for cell in column.slice(0, 200).to_pylist() if cell is not None], dtype=object)
    filled = cells[~cells.isin(MISSING)]
    return len(filled) == 0 or bool(pd.to_numeric(filled, errors="coerce").notna().mean() >= 0.5)
