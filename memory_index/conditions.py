"""The known covariates of a query and of a neighbour side by side, for people, and what each adds to the distance."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from memory_index.covariate_map import CovariateLayout, CovariateWindows
from memory_index.neighbours import Neighbours


def known_values(layout: CovariateLayout | None, values: np.ndarray | None) -> dict[str, np.ndarray]:
    """The known columns of a window with covariates [C, L + H], raw: float32 [L + H] each, by name; codes of a
    category.

    Empty for a version without covariates.
    """
    if layout is None or values is None:
        return {}
    return {column.name: values[n] for n, column in enumerate(layout.columns) if column.role == "known"}


def known_of(found: Neighbours, place: int, horizon: int) -> dict[str, np.ndarray]:
    """Those of the query number `place` of the one moment that was asked, up to a horizon that may be shorter."""
    stored, asked = found.windows.covariates, found.queries.covariates
    if stored is None or asked is None:
        return {}
    known = known_values(stored.layout, asked[0, place])
    return {name: values[: len(values) + horizon - stored.layout.horizon] for name, values in known.items()}


def condition_parts(layout: CovariateLayout, query: np.ndarray, other: np.ndarray, view: int) -> dict[str, float]:
    """What each known column adds to the squared distance of two windows, covariates [C, L + H] each.

    Their sum is the square of the condition part, but for what its key leaves out (`CONDITION_WIDTH`). The weights of
    columns are in the order of the version's views, of which `view` is the number.
    """
    beside: list[CovariateWindows] = [layout.of_values(each, ()) for each in (query, other)]
    numbers = [layout.horizon_numbers(each).astype(np.float64) for each in beside]
    squared = np.square(numbers[0] - numbers[1]) / layout.num_bins
    of_column = layout.column_of_number[len(layout.column_of_number) - layout.num_horizon :]
    return {
        column.name: float(column.weight[view] * squared[of_column == n].sum())
        for n, column in enumerate(layout.columns)
        if column.role == "known"
    }


def ahead_in_words(
    covariates: Mapping[str, np.ndarray], categories: Mapping[str, tuple[str, ...]], horizon: int
) -> dict[str, list[str | None] | np.ndarray]:
    """The last `horizon` values of each covariate, as they were written."""
    return {name: in_words(each[len(each) - horizon :], categories.get(name, ())) for name, each in covariates.items()}


def in_words(values: np.ndarray, categories: tuple[str, ...]) -> list[str | None] | np.ndarray:
    """Values of a column as they were written: words for codes, "other" for a word that the version does not know."""
    if not categories:
        return values
    named = [*categories, "other"]
    return [None if np.isnan(code) else named[int(code)] for code in values]  # -1 is the last one
