"""Fitting a transform on the training part of a table, and tables in its units. What it is, is `transforms.py`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from memory_index.scaling import fit_scale
from memory_index.tables.series import SeriesTable
from memory_index.transforms import AUTO, NO_TRANSFORM, Transform, fit_curve, may_count, out_of_domain

HEAVY_TAILS = 9.0  # kurtosis above which `auto` takes a transform; 3 is that of a normal distribution


def fit_transform(kind: str | Transform, training: SeriesTable) -> tuple[Transform, tuple[str, ...]]:
    """A transform with the numbers of a training part, and of `auto` a note that says what was chosen and why.

    One that has its numbers is left as it is. Raises `UsageError` for an unknown kind, `DataError` for a cell that it
    cannot transform.
    """
    if isinstance(kind, Transform):
        return kind, ()
    chosen, notes = _choose(training) if kind == AUTO else (kind, ())
    transform = Transform(kind=chosen)  # type: ignore[arg-type]  # it judges that itself
    if not transform:
        return NO_TRANSFORM, notes
    _require_in_domain(transform, training)
    fitted = [fit_curve(transform.kind, series.values) for series in training.series]
    center, width, low, high = (tuple(float(each) for each in part) for part in list(zip(*fitted, strict=True))[1:])
    unit = tuple(float(each) for each in fit_scale([series.values for series in training.series]).std)
    return Transform(kind=transform.kind, center=center, width=width, low=low, high=high, unit=unit), notes


def table_inside(transform: Transform, table: SeriesTable, numbers: Iterable[int] | None = None) -> SeriesTable:
    """A table of series of a version in units of its transform; itself where there is none.

    numbers: of the series, default in the version's order. Of the values as float32, in which a version keeps them.
    Raises `DataError` for a cell that cannot be transformed.
    """
    if not transform:
        return table
    _require_in_domain(transform, table)
    series = (
        replace(each, values=transform.curves.take(number).forward(each.values.astype(np.float32)).astype(np.float64))
        for each, number in zip(table.series, range(len(table.series)) if numbers is None else numbers, strict=True)
    )
    return replace(table, series=tuple(series))


def _require_in_domain(transform: Transform, table: SeriesTable) -> None:
    """Raise `DataError` that names the first cell of a table that cannot be transformed."""
    for series in table.series if transform.kind == "log1p" else ():
        outside = np.flatnonzero(series.values.astype(np.float32) <= -1)
        if len(outside):
            at, value = table.step.isoformat(series.times[outside[0]]), series.values[outside[0]]
            raise out_of_domain(f"{table.source}: series '{series.series_id}' at {at} is {value:g}")


def _choose(training: SeriesTable) -> tuple[str, tuple[str, ...]]:
    """What `auto` takes by the tails of the training values, and why (docs/method.md)."""
    standard = []
    for series in training.series:
        values = series.values[np.isfinite(series.values)]
        deviation = values.std() if len(values) else 0.0
        standard.append((values - values.mean()) / deviation if deviation > 0 else np.zeros(1))
    kurtosis = float(np.median([np.mean(z**4) for z in standard]))
    whole = all(may_count(series.values).all() for series in training.series)
    chosen = "none" if kurtosis <= HEAVY_TAILS else "log1p" if whole else "asinh"
    values = "whole numbers, none below 0" if whole else "not all whole numbers of 0 or more"
    note = (
        f"transform {chosen}: chosen by auto, the kurtosis of the training values is {kurtosis:.1f} (median over the "
        f"series; above {HEAVY_TAILS:g} they get one), and they are {values}"
    )
    return chosen, (note,)
