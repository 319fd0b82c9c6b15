"""The known covariates of a query and of a neighbour side by side, for people, and what each adds to the distance."""

from __future__ import annotations

import numpy as np

from memory_index.covariate_map import CovariateLayout, CovariateWindows


def known_values(layout: CovariateLayout | None, values: np.ndarray | None) -> dict[str, np.ndarray]:
    """The known columns of a window with covariates [C, L + H], raw: float32 [L + H] each, by name; codes of a
    category.

    Empty for a version without covariates.
    """
    if layout is None or values is None:
        return {}
    return {column.name: values[n] for n, column in enumerate(layout.columns) if column.role == "known"}


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


def in_words(values: np.ndarray, categories: tuple[str, ...]) -> list[str | None] | np.ndarray:
    """Values of a column as they were written: words for the codes of a category, "other" for an unknown word."""
    if not categories:
        return values
    named = [*categories, "other"]
    return [None if np.isnan(code) else named[int(code)] for code in values]  # -1 is the last one
