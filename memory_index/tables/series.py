"""Tables of series: the one typed record that every input goes through. How files become one is `reading.py`."""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from memory_index.covariates import Covariates, CovariateValues
from memory_index.errors import NotFoundError
from memory_index.windows import Step, WindowSpec

MAX_COARSENESS = 0.01  # of a standard deviation: rounding is then a hundred-thousandth of the variance
LAST_BITS = 2.0**-40  # of the largest value: some thousand roundings of float64
COARSE_FIX = "subtract a level from it first, and add that to its forecasts"


Remembered = tuple[tuple[str, str | tuple[str, ...]], ...]  # options that name columns, by name


@dataclass(frozen=True, kw_only=True, slots=True)
class Series:
    """One univariate sequence on a regular grid.

    times: datetime64[ns] [T], consecutive steps without a gap, UTC when the table has a time zone.
    values: float64 [T], raw units; NaN where missing.
    """

    series_id: str
    times: np.ndarray
    values: np.ndarray

    def __len__(self) -> int:
        return len(self.times)


@dataclass(frozen=True, kw_only=True)
class SeriesTable:
    """Series with one step, in file order. Past this record nothing asks what the user's file looked like."""

    step: Step
    layout: str  # "wide" (a time column and one column per variate) or "long" (unique_id, ds, y)
    series: tuple[Series, ...]
    source: str  # file name, for messages
    notes: tuple[str, ...] = ()  # what the reader did on request (sorted, filled, left out), or found worth a look
    covariates: Covariates | None = None  # what is known beside the targets; None where no column has such a role
    reading: Remembered = ()  # how its columns were named, for tables that are read like it
    whole_windows: bool = False  # whether windows that touch a missing cell are left out, as `drop` asks

    def rule(self, spec: WindowSpec) -> WindowSpec:
        """The shape of windows, and how much of one may be missing: nothing where the table was read with `drop`."""
        return replace(spec, max_missing=0.0) if self.whole_windows else spec

    def of_series(self, numbers: Sequence[int]) -> SeriesTable:
        """The same with some of its series only, and their covariates."""
        covariates = self.covariates
        if covariates is not None:
            covariates = replace(covariates, series=tuple(covariates.series[number] for number in numbers))
        return replace(self, series=tuple(self.series[number] for number in numbers), covariates=covariates)

    def with_columns(self, names: Sequence[str]) -> SeriesTable:
        """The same with the covariates of these names only, in this order; with none at all where there are no names.

        Columns that the table does not have are left out.
        """
        given = self.covariates
        if given is None or not names:
            return replace(self, covariates=None)
        place = [given.names.index(name) for name in names if name in given.names]
        if place == list(range(len(given.columns))):
            return self
        kept: dict[int, CovariateValues] = {}
        for each in given.series:  # series that share them go on sharing them
            kept.setdefault(id(each), replace(each, values=each.values[place]))
        series = tuple(kept[id(each)] for each in given.series)
        columns = tuple(given.columns[number] for number in place)
        return replace(self, covariates=replace(given, columns=columns, series=series))

    def __getitem__(self, series_id: str) -> Series:
        """One series. Raises `NotFoundError` that names the nearest known series."""
        found = self._by_name.get(series_id)
        if found is not None:
            return found
        near = difflib.get_close_matches(series_id, self.series_ids, n=1, cutoff=0.0)
        raise NotFoundError(
            f"{self.source} has no series '{series_id}'",
            hint=f"the nearest of {len(self.series)} is '{near[0]}'" if near else "the table has no series at all",
        )

    @cached_property
    def _by_name(self) -> dict[str, Series]:
        return {series.series_id: series for series in reversed(self.series)}

    @cached_property
    def series_ids(self) -> tuple[str, ...]:
        """The names of all series, in file order."""
        return tuple(series.series_id for series in self.series)

    @cached_property
    def times(self) -> np.ndarray:
        """datetime64[ns], ascending: every time stamp that any series has."""
        return self.series[0].times if self.shares_times else np.unique(np.concatenate([s.times for s in self.series]))

    @cached_property
    def shares_times(self) -> bool:
        """Whether all series have the same time stamps (what the joint scope needs)."""
        first = self.series[0].times
        return all(series.times is first or np.array_equal(series.times, first) for series in self.series)

    @property
    def content_hash(self) -> str:
        """sha256 over the names, times and values of all series, whatever file they came from."""
        digest = hashlib.sha256()
        for series in self.series:
            digest.update(series.series_id.encode() + b"\0")
            digest.update(np.ascontiguousarray(series.times).view(np.int64).tobytes())
            digest.update(np.ascontiguousarray(series.values, dtype=np.float64).tobytes())
        return digest.hexdigest()

    @property
    def input_hash(self) -> str:
        """The same with the covariates at the steps of the series; of a table without any its `content_hash`."""
        if self.covariates is None:
            return self.content_hash
        digest, said = hashlib.sha256(self.content_hash.encode()), dict[tuple[int, int], int]()
        digest.update(repr(self.covariates.columns).encode())
        for number, (series, given) in enumerate(zip(self.series, self.covariates.series, strict=True)):
            num = int(np.searchsorted(given.times, series.times[-1], side="right")) if len(series) else 0
            first = said.setdefault((id(given.values), num), number)
            if first == number:
                digest.update(np.ascontiguousarray(given.times[:num]).view(np.int64).tobytes())
                digest.update(np.ascontiguousarray(given.values[:, :num], dtype=np.float64).tobytes())
            digest.update(str(first).encode() + b"\0")
        if self.covariates.vintages is not None and self.series:
            digest.update(self.covariates.vintages.content_of(max(series.times[-1] for series in self.series)))
        return digest.hexdigest()


def coarse(series: Series) -> str:
    """What to know of a series whose level is so high that float32 hardly tells its values apart; empty otherwise.

    Windows are kept and compared in float32, which has 24 binary digits for the level and what moves around it.
    """
    known = series.values[np.isfinite(series.values)]
    deviation = float(known.std()) if len(known) else 0.0
    largest = np.float32(np.abs(known).max(initial=0))
    apart = float(largest - np.nextafter(largest, np.float32(0)))
    if apart <= MAX_COARSENESS * deviation or deviation == 0:
        return ""
    return (
        f"it varies by {deviation:.3g} around {known.mean():.3g}, where float32 numbers, in which windows are kept, "
        f"are {apart:.2g} apart"
    )


def differing(stored: np.ndarray, given: np.ndarray) -> np.ndarray:
    """Places at which a stored value is not the one that is given now. What is missing on either side disagrees with
    nothing: a value may have arrived since, or be missing from this file.

    Windows are kept and compared in float32, so values that are at most one float32 number apart are the same: a sum
    that a database adds in another order, or an export as float32. Where such a sum is zero, what is left of its terms
    counts by the size of the series.
    """
    if np.array_equal(stored, given):
        return np.empty(0, dtype=np.int64)
    known = np.abs(stored[np.isfinite(stored)]).astype(np.float64)
    with np.errstate(over="ignore", invalid="ignore"):  # beyond float32: infinite, and compared as it is
        ours, theirs = stored.astype(np.float32), given.astype(np.float32)
        apart = np.maximum(np.abs(np.spacing(ours)), known.max(initial=0) * LAST_BITS)
        same = np.abs(ours.astype(np.float64) - theirs) <= apart
    return np.flatnonzero(~same & (stored != given) & np.isfinite(stored) & ~np.isnan(given))
