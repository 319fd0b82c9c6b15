"""One forecast taken apart: what it is mixed of, how the mix changes, what the network says, which past it looks at.

Two colours carry the meaning everywhere: yellow is the model, blue the memory; the purple forecast is mixed of both.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from cli.pictures.conditions import draw_condition, drawn_columns, legend_below, panel_height, title_conditions
from cli.pictures.look import (
    BAND,
    BLUE,
    FORECAST_COLOUR,
    INK,
    LEAST_SHOWN,
    ORANGE,
    PAPER,
    QUERY_COLOUR,
    SOFT,
    YELLOW,
    beyond,
    date_axis,
    dates,
    figure,
    limits,
    plain,
)
from cli.reports.explanation_report import explained_conditions, interval_name, scales, trend_classes
from cli.wording import age, minute, short

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from cli.pictures.look import Shape
    from forecaster.explain import Explanation
    from memory_index.windows import Step

SHOWN_HORIZONS = 1.5  # of history that is drawn
HEIGHTS: dict[Shape, tuple[float, ...]] = {"wide": (3.9, 3.2, 3.2, 0.9, 1.7), "narrow": (4.6, 4.2, 2.9, 1.0, 1.7)}
LEAST_NAMED = 0.2  # share that has room for its name
LEFT_WIDTHS: dict[Shape, float] = {"wide": 5.5, "narrow": 2.9}  # of a panel, about, in inches
RIGHT_WIDTHS: dict[Shape, float] = {"wide": 3.4, "narrow": 2.9}
CHARACTER = 0.08  # inches that one takes, about, in what is written beside bars
MODEL, MEMORY = YELLOW.light, BLUE.light
# What is stacked, bottom first: colour, opacity, and a hatch for grey print. Key spaces are drawn by scope.
BANDS = {
    "linear map": (MODEL, 0.75, ""),
    "last value": (MODEL, 0.35, "..."),
    "last season": (MODEL, 0.55, "xx"),
    "network": (MODEL, 0.9, "++"),
    "window's mean": (MODEL, 0.75, ""),
    "own: its own past": (MEMORY, 0.8, ""),
    "joint: all series at once": (MEMORY, 0.5, "///"),
    "pooled: any series' past": (MEMORY, 0.25, "\\\\\\"),
}
BAND_OF = {
    "linear": "linear map",
    "last_value": "last value",
    "seasonal_naive": "last season",
    "network": "network",
    "window_mean": "window's mean",
    "own": "own: its own past",
    "joint": "joint: all series at once",
    "pooled": "pooled: any series' past",
}


def draw_explanation(found: Explanation, step: Step, made_by: str, shape: Shape = "wide") -> Figure:
    """History, forecast and its two parts, and the known covariates under them; below, the shares over the horizon, the
    trend classes, the neighbours and the scales. Panels for which there is nothing are not there. In one column where
    it is narrow.
    """
    decided = drawn_columns(found.covariates, [each.record for each in found.neighbours])
    places = {name: f"condition {number}" for number, name in enumerate(decided)}
    heights = dict(zip(("forecast", "shares", "trend", "neighbours", "scales"), HEIGHTS[shape], strict=True))
    heights["neighbours"] += (0.3 if shape == "wide" else 0.4) * len(found.neighbours)
    rows = [["forecast"], ["shares"], ["trend"], ["neighbours"], ["scales"]]
    if shape == "wide":
        rows = [["forecast", "forecast"], ["shares", "trend"], ["neighbours", "scales"]]
    if found.trend is None:
        rows = [["forecast"], ["shares"], ["neighbours"]]
    heights |= {place: panel_height(name, found.categories) for name, place in places.items()}
    rows[1:1] = [[place] * len(rows[0]) for place in places.values()]
    tall = [max(heights[name] for name in row) for row in rows]
    drawn = figure(sum(tall) + 0.9, shape)
    panels: dict[str, Axes] = drawn.subplot_mosaic(
        rows, height_ratios=tall, width_ratios=(1.5, 1) if len(rows[0]) == 2 else (1,)
    )
    beside = {name: panels[place] for name, place in places.items()}
    below = legend_below(decided[-1], found.categories) if decided else -0.16
    lowest = [panels["forecast"], *beside.values()][-1]
    _draw_forecast(panels["forecast"], found, step, shape, legend=(lowest, below))
    _draw_conditions(beside, panels["forecast"], found, step, shape)
    title_conditions(beside, explained_conditions(found), shape)
    _draw_shares(panels["shares"], found, step, shape)
    _draw_neighbours(panels["neighbours"], found, shape)
    if found.trend is not None:
        for name, draw in (("trend", _draw_trend), ("scales", _draw_scales)):
            draw(panels[name], found, shape)
    name = short(found.series_id, 60 if shape == "wide" else 14)
    title = f"{name} at {minute(found.origin_text)}: how the forecast is made"
    drawn.supxlabel(short(made_by, 150 if shape == "wide" else 50), fontsize=7.5, color=SOFT.light, x=0.99, ha="right")
    drawn.suptitle(title if shape == "wide" else title.replace(": ", ":\n"), fontsize=13)
    return drawn


def _num_shown(found: Explanation) -> int:
    """How many steps before the origin are drawn."""
    return min(len(found.context), max(round(SHOWN_HORIZONS * len(found.forecast)), LEAST_SHOWN))


def _draw_forecast(axes: Axes, found: Explanation, step: Step, shape: Shape, *, legend: tuple[Axes, float]) -> None:
    """legend: below which panel it is, and how far, as a share of that panel's height."""
    horizon, now = len(found.forecast), len(found.context)
    times, shown = dates(step, found.times), _num_shown(found)
    before, after = times[now - shown : now], times[now:]
    marked: dict[str, Any] = {"marker": "_", "ms": 12} if horizon == 1 else {}
    if len(found.levels) > 1:
        low, high, name = found.quantiles[:, 0], found.quantiles[:, -1], interval_name(found.levels)
        if horizon == 1:
            axes.vlines(after, low, high, color=BAND.light, lw=8, alpha=0.6, label=name)
        else:
            axes.fill_between(after, low, high, color=BAND.light, alpha=0.5, lw=0, label=name)
    lines = [found.context[-shown:], found.forecast, found.model_part, found.memory_part, found.quantiles.ravel()]
    wild = [each.record.aligned_future[:horizon] for each in found.neighbours]
    frame = limits([*lines, found.actual], wild)
    label = f"what followed the nearest neighbours{beyond(wild, frame)}"
    label = label if shape == "wide" else label.replace(" (", "\n(")
    for number, future in enumerate(wild):
        named = label if number == 0 else None
        axes.plot(after, future, color=MEMORY, lw=0.8, alpha=0.5, label=named, **marked)
    axes.plot(before, found.context[-shown:], color=QUERY_COLOUR, lw=1.5, label="known at the origin")
    if np.isfinite(found.actual).any():
        axes.plot(after, found.actual, color=QUERY_COLOUR, lw=1.5, ls=(0, (1, 1.2)), label="what followed", **marked)
    axes.plot(
        after, found.memory_part, color=MEMORY, lw=1.8, ls=(0, (5, 1.5, 1, 1.5)), label="the memory by itself", **marked
    )
    axes.plot(after, found.model_part, color=MODEL, lw=1.8, ls=(0, (4, 1.5)), label="the model by itself", **marked)
    axes.plot(
        after,
        found.forecast,
        color=FORECAST_COLOUR,
        lw=2.4,
        label="forecast: mixed of both",
        marker="o" if horizon == 1 else None,
    )
    axes.axvline(times[now - 1], color=SOFT.light, lw=1)
    axes.annotate(
        "origin", (times[now - 1], 1), xycoords=("data", "axes fraction"), xytext=(0, 3), ha="center",
        textcoords="offset points", fontsize=9, color=SOFT.light,
    )  # fmt: skip
    if found.no_close_analogue:
        warning = "No close analogue in the memory"
        axes.set_title(warning, fontsize=10, loc="left", pad=16, weight="bold", color=ORANGE.light)
    axes.set_ylim(*frame)
    axes.set_xlim(before[0], after[-1] + (after[-1] - before[0]) * (0.01 if horizon == 1 else 0))
    plain(axes)
    date_axis(axes, step, shape)
    axes.set_ylabel(f"{short(found.series_id, 14)} (units of the data)")
    panel, below = legend
    panel.legend(
        *axes.get_legend_handles_labels(),
        fontsize=8,
        ncols=4 if shape == "wide" else 1,
        loc="upper center",
        bbox_to_anchor=(0.5, below),
        frameon=False,
    )


def _draw_conditions(panels: dict[str, Axes], top: Axes, found: Explanation, step: Step, shape: Shape) -> None:
    """Known covariates of the window and of its nearest neighbours, under the forecast and aligned with it."""
    first, end, horizon = len(found.context) - _num_shown(found), len(found.times), len(found.forecast)
    times = dates(step, found.times)[first:]
    for name, axes in panels.items():
        look = {"color": MEMORY, "lw": 0.8, "alpha": 0.5}
        lines = [(each.record.covariates[name][first:end], look) for each in found.neighbours]
        draw_condition(axes, times, horizon, found.covariates[name][first:], lines, found.categories.get(name, ()))
        axes.sharex(top)
    if panels:
        top.set_xlabel("")
        for axes in [top, *panels.values()][:-1]:
            axes.tick_params(labelbottom=False)
        date_axis(list(panels.values())[-1], step, shape)


def _draw_shares(axes: Axes, found: Explanation, step: Step, shape: Shape) -> None:
    """Each part's share, stacked; the gate is the border between model and memory."""
    stacked: dict[str, np.ndarray] = {}
    for part in found.parts:
        if part.num_neighbours or not part.of_memory:
            band = BAND_OF[part.name.split("-")[0]]
            stacked[band] = stacked.get(band, 0) + part.weight
    edges = dates(step, found.times[len(found.context) - 1 :])  # from the origin on
    below = np.zeros(len(edges))
    for name, share in stacked.items():
        colour, alpha, hatch = BANDS[name]
        above = below + 100 * _held(share)
        axes.fill_between(
            edges, below, above, facecolor=colour, alpha=alpha, lw=0, hatch=hatch, edgecolor=PAPER.light,
            label=f"{name}, {share.mean():.0%}",
        )  # fmt: skip
        below = above
    axes.plot(
        edges, 100 * _held(found.gate), color=INK.light, lw=2, label=f"gate: model below, {found.gate.mean():.0%}"
    )
    for text, x, y, room in (("memory", 0.03, 0.93, 1 - found.gate[0]), ("model", 0.97, 0.07, found.gate[-1])):
        if room > LEAST_NAMED:
            axes.annotate(
                text, (x, y), xycoords="axes fraction", ha="left" if x < 0.5 else "right", va="center", fontsize=10,
                bbox={"facecolor": PAPER.light, "edgecolor": "none", "alpha": 0.85, "pad": 2},
            )  # fmt: skip
    axes.set_ylim(0, 100)
    axes.set_xlim(edges[0], edges[-1])
    plain(axes)
    date_axis(axes, step, shape)
    axes.set_ylabel("share of the forecast (%)")
    _title(axes, "What the forecast is mixed of")
    axes.legend(
        fontsize=8, ncols=3 if shape == "wide" else 1, loc="upper center", bbox_to_anchor=(0.5, -0.2), frameon=False
    )


def _draw_trend(axes: Axes, found: Explanation, shape: Shape) -> None:
    names, shares, means = zip(*trend_classes(found), strict=True)
    places = [place + (0.6 if place > 2 else 0) for place in range(len(names))]  # strengths apart from directions
    _draw_bars(axes, names, shares, means, MODEL, RIGHT_WIDTHS[shape], places)
    axes.set_xlabel("probability (%)")
    _title(axes, "Trend that the network expects")


def _draw_scales(axes: Axes, found: Explanation, shape: Shape) -> None:
    names, shares, steps = zip(*scales(found), strict=True)
    _draw_bars(axes, names, shares, [f"means of {each} steps" for each in steps], MODEL, RIGHT_WIDTHS[shape])
    axes.set_xlabel("share of each scale (%)")
    _title(axes, "Scales that the network reads")


def _draw_neighbours(axes: Axes, found: Explanation, shape: Shape) -> None:
    records = [each.record for each in found.neighbours]
    at = " {}, {} ago, {}" if shape == "wide" else ", {1} ago\n{0}, {2}"
    most = 24 if shape == "wide" else 14
    told = [
        short(n.series_id, most) + at.format(minute(n.origin), age(n.age_days), f"{n.scope}-{n.view}") for n in records
    ]
    shares = [each.similarity if each.weight is None else each.weight for each in found.neighbours]
    _draw_bars(axes, [f"{n + 1}" for n in range(len(told))], shares, told, MEMORY, LEFT_WIDTHS[shape])
    gated = "weight: similarity x match score (%)"
    axes.set_xlabel("similarity (%)" if found.feature_gate is None else gated)
    _title(axes, "The nearest neighbours" if found.feature_gate is None else "Neighbours that the network looks at")


def _draw_bars(
    axes: Axes,
    names: Sequence[str],
    shares: Sequence[float],
    told: Sequence[str],
    colour: str,
    width: float,
    places: Sequence[float] | None = None,
) -> None:
    """Horizontal bars of shares, first on top, each with its number and what is told of it beside it.

    width: of the panel, about, in inches.
    """
    from matplotlib.ticker import MaxNLocator

    places = range(len(names)) if places is None else places
    axes.barh(places, [100 * share for share in shares], height=0.7, color=colour, alpha=0.75)
    labels = [f"{share:.0%}  {text}" for share, text in zip(shares, told, strict=True)]
    for place, share, label in zip(places, shares, labels, strict=True):
        axes.annotate(label, (100 * share, place), xytext=(4, 0), textcoords="offset points", va="center", fontsize=8.5)
    axes.set_yticks(places, names, fontsize=9)
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(places[-1] + 0.6, places[0] - 0.6)
    longest = max(len(line) for label in labels for line in label.split("\n"))
    room = max(1 - CHARACTER * longest / width, 0.15)
    axes.set_xlim(0, 100 * max(shares) / room)
    # As many ticks as there is room for beside what is written.
    axes.set_xticks(MaxNLocator(min(max(int(room * width / 0.45), 1), 4)).tick_values(0, 100 * max(shares)))
    plain(axes)
    axes.grid(visible=False, axis="y")


def _title(axes: Axes, text: str) -> None:
    axes.set_title(text, fontsize=10, loc="left")


def _held(shares: np.ndarray) -> np.ndarray:
    """[H] -> [H + 1]: the share of the first step holds from the origin on."""
    return np.concatenate([shares[:1], shares])
