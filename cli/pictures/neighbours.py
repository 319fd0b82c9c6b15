"""The neighbours of one query window, aligned at its origin, and where they lie on the time line."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from cli.pictures.conditions import draw_condition, drawn_columns, legend_below, panel_height, title_conditions
from cli.pictures.look import (
    BAND,
    FORECAST_COLOUR,
    QUERY_COLOUR,
    SCOPE_COLOURS,
    SCOPE_STYLES,
    SOFT,
    beyond,
    date_axis,
    dates,
    figure,
    headline,
    limits,
    num_shown,
    plain,
)
from cli.reports.conditions import condition_rows
from cli.wording import minute, short

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from cli.pictures.look import Shape
    from memory_index.inspection import Inspection, NeighbourRecord
    from memory_index.windows import Step, StoredWindows

SHORT = 14  # characters of a name beside an axis


def draw_neighbours(found: Inspection, windows: StoredWindows, ref: str, shape: Shape = "wide") -> Figure:
    """The query and its neighbours, aligned at the origin in the query's own units; futures as they would follow it.

    Below them the history that the memory holds, and for each scope where its neighbours lie in it.
    """
    scopes = [scope for scope in SCOPE_COLOURS if any(n.scope == scope for n in found.neighbours)]
    lanes = 0.22 * len(scopes)
    decided = drawn_columns(found.covariates, found.neighbours)
    under = [panel_height(name, found.categories) for name in decided]
    drawn = figure((6.4 if shape == "wide" else 6.6) + lanes + sum(under), shape)
    ratios = (4.0, *under, 1.0, lanes)
    top, *beside, history, lane = drawn.subplots(len(ratios), 1, height_ratios=ratios)
    history.sharex(lane)
    panels = dict(zip(decided, beside, strict=True))
    below = legend_below(decided[-1], found.categories) if decided else -0.14
    _draw_windows(top, found, windows.step, shape, legend=([top, *beside][-1], below))
    _draw_conditions(panels, found, windows.step)
    title_conditions(
        panels, condition_rows(found.covariates, found.categories, found.neighbours, len(found.forecast)), shape
    )
    for panel in beside:
        panel.sharex(top)
    for panel in [top, *beside][:-1]:
        panel.tick_params(labelbottom=False)
    if beside:
        top.set_xlabel("")
        date_axis(beside[-1], windows.step, shape)
    _draw_history(history, lane, found, windows, scopes, shape)
    known = f"what {ref} remembers of it"
    name = short(found.series_id, 60 if shape == "wide" else 20)
    headline(drawn, f"{name} at {minute(found.origin_text)}:{' ' if shape == 'wide' else chr(10)}{known}", shape)
    return drawn


def episodes(neighbours: Iterable[NeighbourRecord], step: Step) -> list[NeighbourRecord]:
    """The nearest neighbour of each episode in each scope, nearest last.

    Windows a few steps apart are one episode, found many times over, and drawn once: those whose origins are less than
    a horizon apart.
    """
    kept: list[tuple[str, str, np.datetime64]] = []
    drawn = []
    for n in sorted(neighbours, key=lambda n: n.distance):
        origin, horizon = np.array([step.parse(n.origin)]), len(n.future)
        low, high = step.add(origin, 1 - horizon)[0], step.add(origin, horizon - 1)[0]
        if not any((n.scope, n.series_id) == (scope, series) and low <= at <= high for scope, series, at in kept):
            kept.append((n.scope, n.series_id, origin[0]))
            drawn.append(n)
    return drawn[::-1]


def _draw_conditions(panels: dict[str, Axes], found: Inspection, step: Step) -> None:
    """Known covariates of the query and of its neighbours, under the target and aligned with it."""
    first, horizon = len(found.context) - num_shown(found), len(found.forecast)
    for name, axes in panels.items():
        lines = [
            (n.covariates[name][first:], {**_look_of(n), "lw": 0.8, "alpha": 0.45})
            for n in episodes(found.neighbours, step)
        ]
        times, query = dates(step, found.times)[first:], found.covariates[name][first:]
        draw_condition(axes, times, horizon, query, lines, found.categories.get(name, ()))


def _look_of(n: NeighbourRecord) -> dict[str, Any]:
    return {"color": SCOPE_COLOURS[n.scope], "ls": SCOPE_STYLES[n.scope]}


def _draw_windows(axes: Axes, found: Inspection, step: Step, shape: Shape, *, legend: tuple[Axes, float]) -> None:
    """legend: below which panel it is, and how far, as a share of that panel's height."""
    horizon = len(found.forecast)
    shown = num_shown(found)
    times = dates(step, found.times)
    now = len(found.context)
    after, before = times[now:], times[now - shown : now]
    # A single step ahead has no course: it is drawn as long as one step.
    ahead = after if horizon > 1 else np.append(times[now - 1 :], after[-1] + (after[-1] - times[now - 1]) / 2)[1:]

    def held(values: np.ndarray) -> np.ndarray:
        return values if horizon > 1 else np.repeat(values, 2)

    outer, inner = found.quantiles[:, [0, -1]], found.quantiles[:, [1, -2]]
    for band, alpha, share in ((outer, 0.35, "10 to 90% of what followed"), (inner, 0.7, "25 to 75%")):
        low, high = (held(edge) for edge in band.T)
        axes.fill_between(ahead, low, high, color=BAND.light, alpha=alpha, lw=0, label=share)
    lines = [found.context[-shown:], found.forecast, found.quantiles.ravel(), found.actual]
    frame = limits(lines, [n.aligned_future for n in found.neighbours])
    drawn, labelled = episodes(found.neighbours, step), set[str]()
    for n in drawn:
        look = _look_of(n) | {"lw": 0.9, "alpha": 0.55}
        seen = min(n.view, shown)
        axes.plot(times[now - seen : now], n.aligned_context[-seen:], **look)
        alike = [each.aligned_future for each in drawn if each.scope == n.scope]
        label = None if n.scope in labelled else f"neighbours, scope {n.scope}{beyond(alike, frame)}"
        axes.plot(ahead, held(n.aligned_future), **look, label=label)
        labelled.add(n.scope)
    axes.plot(before, found.context[-shown:], color=QUERY_COLOUR, lw=1.8, label="the query: known at the origin")
    if np.isfinite(found.actual).any():
        really = "what really followed"
        axes.plot(ahead, held(found.actual), color=QUERY_COLOUR, lw=1.8, ls=(0, (1, 1.2)), label=really)
    axes.plot(ahead, held(found.forecast), color=FORECAST_COLOUR, lw=2.2, label="forecast of the memory alone")
    axes.axvline(times[now - 1], color=SOFT.light, lw=1)
    axes.annotate(
        "origin", (times[now - 1], 1), xycoords=("data", "axes fraction"), xytext=(0, 3), ha="center",
        textcoords="offset points", fontsize=9, color=SOFT.light,
    )  # fmt: skip
    axes.set_ylim(*frame)
    axes.set_xlim(before[0], ahead[-1])
    plain(axes)
    date_axis(axes, step, shape)
    axes.set_ylabel(f"{short(found.series_id, SHORT)} (units of the data)")
    columns = 3 if shape == "wide" else 1
    panel, below = legend
    panel.legend(
        *axes.get_legend_handles_labels(),
        fontsize=8,
        ncols=columns,
        loc="upper center",
        bbox_to_anchor=(0.5, below),
        frameon=False,
    )


def _draw_history(
    history: Axes, lane: Axes, found: Inspection, windows: StoredWindows, scopes: list[str], shape: Shape
) -> None:
    """The stored history of the query's series, and below it one lane for each scope with its neighbours."""
    step = windows.step
    name = found.series_id if found.series_id in windows.series_number else windows.series_ids[0]
    part = slice(*windows.offset[windows.series_number[name] : windows.series_number[name] + 2])
    history.plot(dates(step, windows.times[part]), windows.values[part], color=SOFT.light, lw=0.5)
    for n in episodes(found.neighbours, step):
        place = scopes.index(n.scope)
        start, origin, end = (dates(step, np.array([step.parse(time)]))[0] for time in _compared(n, step))
        colour = SCOPE_COLOURS[n.scope]
        lane.barh(place, origin - start, left=start, height=0.55, color=colour, alpha=0.35, lw=0)
        lane.barh(place, end - origin, left=origin, height=0.55, color=colour, alpha=0.8, lw=0)
    now = dates(step, np.array([found.origin]))[0]
    first = dates(step, windows.times[part][:1])[0]
    for axes in (history, lane):
        axes.axvline(now, color=QUERY_COLOUR, lw=1.2)
        axes.set_xlim(first, now + (now - first) * 0.01)
        plain(axes)
    history.tick_params(labelbottom=False, bottom=False)
    history.set_ylabel(short(name, SHORT if len(name) <= SHORT else SHORT // 2))
    history.set_title(
        f"The history of {short(name, 30)} in the memory; right: the origin. Bars: neighbours, darker what followed"
        if shape == "wide"
        else "The history in the memory; right: the origin.\nBars: neighbours, darker what followed them",
        fontsize=9,
        loc="left",
        color=SOFT.light,
    )
    lane.set_yticks(range(len(scopes)), scopes)
    lane.set_ylim(len(scopes) - 0.5, -0.5)
    lane.grid(visible=False, axis="y")
    lane.tick_params(axis="y", length=0)
    date_axis(lane, step, shape)


def _compared(n: NeighbourRecord, step: Step) -> tuple[str, str, str]:
    """The stretch of a neighbour that its view compares, and what followed: start, origin, end."""
    start = step.add(np.array([step.parse(n.origin)]), 1 - n.view)[0]
    end = step.add(np.array([step.parse(n.origin)]), len(n.future))[0]
    return step.isoformat(start), n.origin, step.isoformat(end)
