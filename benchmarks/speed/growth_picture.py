"""The plot of `growth.py`: a panel for each thing that grows, a line for each operation, its exponent in the legend."""

from __future__ import annotations

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, LogLocator, NullFormatter, NullLocator, StrMethodFormatter

from benchmarks.speed.growth import Point, exponents
from cli.pictures.look import BLUE, GREEN, INK, ORANGE, PURPLE, SOFT, YELLOW, Colour, figure, plain, save

STYLES: dict[str, tuple[Colour, str]] = {
    "build": (INK, "o-"),
    "build, graph": (SOFT, "o--"),
    "append": (YELLOW, "s-"),
    "search, own": (BLUE, "^-"),
    "search, pooled": (GREEN, "v-"),
    "search, graph": (GREEN, "v:"),
    "brute force": (ORANGE, "D--"),
    "forecast": (PURPLE, "P-."),
}
COLUMNS, PANEL_HEIGHT = 2, 3.4  # inches


def draw(points: list[Point], path: Path) -> None:
    """Write it: PNG, SVG or PDF."""
    slopes, variables = exponents(points), list(dict.fromkeys(point.variable for point in points))
    num_rows = -(-len(variables) // COLUMNS)
    drawn = figure(PANEL_HEIGHT * num_rows)
    panels = drawn.subplots(num_rows, COLUMNS, squeeze=False).ravel()
    for axes, variable in zip(panels, variables, strict=False):
        draw_panel(axes, variable, [point for point in points if point.variable == variable], slopes)
    for axes in panels[len(variables) :]:
        axes.set_axis_off()
    save(drawn, path)


def draw_panel(axes: Axes, variable: str, points: list[Point], slopes: dict[tuple[str, str], float]) -> None:
    """All curves over one variable."""
    for operation, (colour, style) in STYLES.items():
        curve = [point for point in points if point.operation == operation]
        slope = slopes.get((variable, operation))
        if slope is None:
            continue
        label = f"{operation}: {slope:.2f}"
        axes.loglog([p.value for p in curve], [p.seconds for p in curve], style, color=colour.light, ms=4, label=label)
    axes.set(xlabel=variable, ylabel="seconds")
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1), title="exponent", alignment="left")
    plain(axes)
    axes.xaxis.set_major_locator(FixedLocator(sorted({point.value for point in points})))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.yaxis.set_major_locator(LogLocator(numticks=9))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
