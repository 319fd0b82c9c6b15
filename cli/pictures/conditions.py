"""Known covariates under the target: those of the query and of its neighbours, aligned with it at the origin."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from cli.pictures.look import QUERY_COLOUR, RULE, SOFT, plain
from cli.reports.conditions import shares
from cli.wording import short

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from cli.pictures.look import Shape
    from memory_index.inspection import NeighbourRecord

MOST = 4  # columns that are drawn: those that decide most
HEIGHT, HEIGHT_OF_WORDS = 0.95, 0.7  # inches, of numbers and of words
TITLE: dict[str, Any] = {"fontsize": 8.5, "color": SOFT.light, "pad": 3}
LONGEST = {"wide": 40, "narrow": 14}  # characters of a name


def drawn_columns(covariates: Mapping[str, np.ndarray], neighbours: Sequence[NeighbourRecord]) -> list[str]:
    """The columns that have a panel: those that make most of the squared distances."""
    return list(shares(covariates, neighbours))[:MOST]


def panel_height(name: str, categories: Mapping[str, tuple[str, ...]]) -> float:
    """In inches: a line of words needs less room than one of numbers."""
    return HEIGHT_OF_WORDS if 0 < len(categories.get(name, ())) <= 2 else HEIGHT


def draw_condition(
    axes: Axes,
    times: np.ndarray,
    horizon: int,
    query: np.ndarray,
    neighbours: Iterable[tuple[np.ndarray, Mapping[str, Any]]],
    words: Sequence[str],
) -> None:
    """One column over the steps that are drawn of the target.

    times: of these steps, the last `horizon` of which are the horizon, shaded: they alone are compared. query: its
    values, as many; neighbours: theirs, and how each is drawn. words: of a category, whose values are codes.
    """
    origin = len(times) - horizon - 1
    axes.axvspan(times[origin], times[-1], color=RULE.light, alpha=0.35, lw=0)
    for values, look in neighbours:
        axes.plot(times, values, drawstyle="steps-mid", **look)
    axes.plot(times, query, color=QUERY_COLOUR, lw=1.6, drawstyle="steps-mid")
    axes.axvline(times[origin], color=SOFT.light, lw=1)
    plain(axes)
    if words:
        axes.set_yticks(range(len(words)), [short(word, LONGEST["narrow"]) for word in words])
        axes.set_ylim(-0.35, len(words) - 0.65)


def title_conditions(panels: Mapping[str, Axes], rows: Sequence[Sequence[str]], shape: Shape) -> None:
    """What each panel shows, and what its column decides. rows: of all known columns, drawn or not."""
    for name, _, far, share in rows:
        if name in panels:
            told = f"neighbours are {far}: {share} of their squared distances" if shape == "wide" else far
            panels[name].set_title(f"{short(name, LONGEST[shape])}: {told}", loc="left", **TITLE)
    if panels and len(rows) > len(panels):
        rest = f"{len(rows) - len(panels)} more columns decide less"
        list(panels.values())[-1].set_title(rest, loc="right", **TITLE)


def legend_below(name: str, categories: Mapping[str, tuple[str, ...]]) -> float:
    """How far below the panel of a column a legend begins, as a share of the panel's height: the dates are between."""
    return -0.62 / panel_height(name, categories)
