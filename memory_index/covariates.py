"""What is known beside the target: columns with a role, and their values on the steps of each series.

A column is **known** (values over context *and* horizon are known at the origin: calendar, price, a weather forecast),
**observed** (its past only) or **static** (one value per series). How columns of files become this record is
`tables/covariate_columns.py`; what a memory makes of it `covariate_map.py`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

import numpy as np

Role = Literal["known", "observed", "static"]
Kind = Literal["number", "boolean", "category"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Covariate:
    """One column beside the target.

    categories: the words of a category, sorted; a code is the place of a word in them. Empty for other kinds. source:
    what makes the values, `calendar` or `holidays DE`: a function of the time alone, known at any time; empty for a
    column of the user's table. vintages: whether its values are known as of their issue (`Vintages`), not at any time.
    """

    name: str
    role: Role
    kind: Kind
    categories: tuple[str, ...] = ()
    source: str = ""
    vintages: bool = field(default=False, repr=False)  # hashes of tables are made of what is shown


@dataclass(frozen=True, kw_only=True, slots=True)
class CovariateValues:
    """The values of one series: those of C columns at the steps of the series and beyond its last target value.

    times: datetime64[ns] [T], consecutive steps, from the first step of the series on. values: float64 [C, T]: numbers
    as they are, booleans as 0 and 1, categories as codes, -1 for a word that is not among them; NaN where missing. A
    static column repeats its value; an observed one is NaN beyond the last target value. Series that share them share
    the arrays.
    """

    times: np.ndarray
    values: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Covariates:
    """The covariates of a table: `columns`, and the values of each series in the table's order.

    vintages: what was issued of the columns that have vintages. The values of such a column in `series` are missing,
    but for what a table of the future or a scenario says: that counts as known at the latest origin.
    """

    columns: tuple[Covariate, ...]
    series: tuple[CovariateValues, ...] = field(repr=False)
    vintages: Vintages | None = field(default=None, repr=False)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all columns, in the order in which they were named."""
        return tuple(column.name for column in self.columns)


@dataclass(frozen=True, kw_only=True)
class Vintages:
    """Values of known columns as they were issued, one after the other: forecasts of the weather, for example.

    n rows in ascending order of (column, series, time, issue). columns: names of the columns that have vintages.
    series_ids: empty where all series share them. column, series: int32 [n], places in these (series is 0 where they
    are shared). time: datetime64[ns] [n], the step that a value is of. issued_at: datetime64[ns] [n], from when on it
    is known. value: float64 [n], as in `CovariateValues`.
    """

    columns: tuple[str, ...]
    series_ids: tuple[str, ...]
    column: np.ndarray = field(repr=False)
    series: np.ndarray = field(repr=False)
    time: np.ndarray = field(repr=False)
    issued_at: np.ndarray = field(repr=False)
    value: np.ndarray = field(repr=False)

    def __len__(self) -> int:
        return len(self.value)

    def as_of(
        self, column: str, series: np.ndarray | int, times: np.ndarray, issued_by: np.ndarray | np.datetime64
    ) -> np.ndarray:
        """float64 [...]: for each time the newest value that was issued by then, NaN where none was.

        series: places in `series_ids`, not looked at where all series share their values. times, issued_by:
        datetime64[ns]. The three are broadcast: origins [B, 1] and the times of their windows [B, S] give [B, S]. A
        value issued at `issued_by` itself is known. Raises `ValueError` for a column without vintages.
        """
        number = self.columns.index(column)
        first, end = np.searchsorted(self.column, [number, number + 1])
        shape = np.broadcast_shapes(np.shape(series), np.shape(times), np.shape(issued_by))
        if first == end:
            return np.full(shape, np.nan)
        key = self._keys[first:end]
        time = np.searchsorted(self._times, times)
        there = self._times[np.minimum(time, len(self._times) - 1)] == times
        issue = np.searchsorted(self._issues, issued_by, side="right")  # so many issues are known
        wanted = self._key(np.zeros_like(series) if not self.series_ids else series, time, issue)
        place = np.maximum(np.searchsorted(key, wanted) - 1, 0)  # the last one before
        found = there & (key[place] < wanted) & (key[place] >= wanted - issue)
        return np.where(found, self.value[first:end][place], np.nan)

    def of_series(self, column: str, series_id: str, times: np.ndarray, issued_by: np.datetime64) -> np.ndarray:
        """`as_of` of a series by its name; NaN where it has none."""
        if self.series_ids and series_id not in self.series_ids:
            return np.full(len(times), np.nan)
        number = self.series_ids.index(series_id) if self.series_ids else 0
        return self.as_of(column, number, times, issued_by)

    def content_of(self, issued_by: np.datetime64) -> bytes:
        """sha256 of what was issued by then."""
        part = self.cut(issued_by)
        digest = hashlib.sha256(repr((part.columns, part.series_ids)).encode())
        for each in (part.column, part.series, part.time.view(np.int64), part.issued_at.view(np.int64), part.value):
            digest.update(np.ascontiguousarray(each).tobytes())
        return digest.digest()

    def cut(self, issued_by: np.datetime64) -> Vintages:
        """Those that were issued by then."""
        return self.take(self.issued_at <= issued_by)

    def of_columns(self, names: Iterable[str]) -> Vintages:
        """Those of some columns, which must be among its own; in the order given."""
        names = tuple(names)
        place = np.array([names.index(name) if name in names else -1 for name in self.columns], dtype=np.int32)
        column = place[self.column]
        order = np.flatnonzero(column >= 0)
        order = order[np.argsort(column[order], kind="stable")]
        return replace(self, columns=names, column=column).take(order)

    @cached_property
    def with_rows(self) -> tuple[str, ...]:
        """The columns of which anything was ever issued."""
        return tuple(self.columns[number] for number in np.unique(self.column))

    def rows_of(self, column: str, series: str | None) -> slice:
        """The rows of a column, and of a series of this name where they have any; None where all share them."""
        number = self.columns.index(column)
        first, end = np.searchsorted(self.column, [number, number + 1])
        if series is None or not self.series_ids:
            return slice(first, end)
        if series not in self.series_ids:
            return slice(first, first)
        low, high = np.searchsorted(self.series[first:end], [place := self.series_ids.index(series), place + 1])
        return slice(first + low, first + high)

    def and_of(self, other: Vintages) -> Vintages:
        """Both, of the same columns and series, in ascending order."""
        column, series, time, issued_at, value = (
            np.concatenate([getattr(each, name) for each in (self, other)])
            for name in ("column", "series", "time", "issued_at", "value")
        )
        whole = replace(self, column=column, series=series, time=time, issued_at=issued_at, value=value)
        return whole.take(np.lexsort((issued_at, time, series, column)))

    def take(self, keep: np.ndarray) -> Vintages:
        """Some of the rows, in ascending order. keep: bool [n] or int64 [m]."""
        return replace(
            self,
            column=self.column[keep],
            series=self.series[keep],
            time=self.time[keep],
            issued_at=self.issued_at[keep],
            value=self.value[keep],
        )

    @cached_property
    def _times(self) -> np.ndarray:
        return np.unique(self.time)

    @cached_property
    def _issues(self) -> np.ndarray:
        return np.unique(self.issued_at)

    @cached_property
    def _keys(self) -> np.ndarray:
        """int64 [n]: one number for (series, time, issue), in ascending order within a column."""
        return self._key(
            self.series, np.searchsorted(self._times, self.time), np.searchsorted(self._issues, self.issued_at)
        )

    def _key(self, series: np.ndarray | int, time: np.ndarray, issue: np.ndarray) -> np.ndarray:
        whole = np.asarray(series, dtype=np.int64) * (len(self._times) + 1) + time
        return whole * (len(self._issues) + 1) + issue
