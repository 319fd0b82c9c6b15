"""What is known beside the target: columns with a role, and their values on the steps of each series.

A column is **known** (values over context *and* horizon are known at the origin: calendar, price, a weather forecast),
**observed** (its past only) or **static** (one value per series). How columns of files become this record is
`tables/covariate_columns.py`; what a memory makes of it `covariate_map.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np

Role = Literal["known", "observed", "static"]
Kind = Literal["number", "boolean", "category"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Covariate:
    """One column beside the target.

    categories: the words of a category, sorted; a code is the place of a word in them. Empty for other kinds. source:
    what makes the values, `calendar` or `holidays DE`: a function of the time alone, known at any time; empty for a
    column of the user's table.
    """

    name: str
    role: Role
    kind: Kind
    categories: tuple[str, ...] = ()
    source: str = ""


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
    """The covariates of a table: `columns`, and the values of each series in the table's order."""

    columns: tuple[Covariate, ...]
    series: tuple[CovariateValues, ...] = field(repr=False)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all columns, in the order in which they were named."""
        return tuple(column.name for column in self.columns)
