"""The pictures of the page, as plotly figures: the history, one side's windows, the gate.

Figures are plain dicts, since plotly's own classes check every property each time they are made (a test does that
instead), and arrays travel as base64. Colours are those of `cli/pictures/look.py`, light or dark.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from cli.explorer.drawing import (
    MARGIN,
    SCOPE_DASHES,
    SCOPE_NAMES,
    Figure,
    axis,
    base_layout,
    faint,
    gapped,
    milliseconds,
    packed,
    palette,
    time_title,
)
from cli.explorer.known_figures import Panels, known_panels
from cli.explorer.state import State
from cli.explorer.subject import Answer
from cli.pictures.look import limits, num_shown
from cli.pictures.neighbours import SHORT, episodes
from cli.wording import BASE_NAMES, short
from memory_index.inspection import Inspection, NeighbourRecord
from memory_index.tables.series import SeriesTable
from memory_index.types import SCOPES
from memory_index.windows import Step

if TYPE_CHECKING:
    from forecaster.explain import Part

BINS = 700  # of the history: two points each, fewer than a screen has columns
BASE_LOOKS = {
    "linear": ("yellow", ""),
    "last_value": ("yellow", "."),
    "seasonal_naive": ("yellow", "x"),
    "network": ("yellow", "/"),
    "window_mean": ("yellow", ""),
}
SIDE_NAMES = ("A", "B")
VIEW_PATTERNS = ("", "/", "x", ".", "-")


def history_figure(
    table: SeriesTable, state: State, row: int, answers: Sequence[Answer | None], *, dark: bool
) -> Figure:
    """A whole series, thinned, with its origin, and below it a lane for each side and scope with its neighbours.

    A click anywhere is one on the nearest drawn point, whose `customdata` is its row.
    """
    colours, series, step = palette(dark), table[state.series_id], table.step
    shown = thinned(series.values, BINS)
    times = milliseconds(step, series.times[shown])
    line = {
        "x": packed(times),
        "y": packed(series.values[shown].astype(np.float32)),
        "customdata": shown.tolist(),
        "mode": "lines",
        "line": {"color": colours["soft"], "width": 1},
        "hovertemplate": "%{x|%Y-%m-%d %H:%M}<br>%{y:.4g}<extra></extra>",
    }
    traces, lanes = [line], list[str]()
    for number, answer in enumerate(answers):
        neighbours = () if answer is None else answer.found.neighbours
        for scope in SCOPES:
            if group := [n for n in neighbours if n.scope == scope]:
                traces += _lane(group, len(lanes), step, colours)
                lanes.append(scope if len(answers) == 1 else f"{SIDE_NAMES[number]} {scope}")
    now, end = (float(ms) for ms in milliseconds(step, series.times[[row, -1]]))
    layout = base_layout(colours) | {
        "hovermode": "x",
        "hoverdistance": -1,
        "xaxis": axis(colours, type="date", range=[times[0], end], anchor="y2", title=time_title(step)),
        "yaxis": axis(colours, domain=[0.4, 1], title=short(state.series_id, SHORT), nticks=5),
        "yaxis2": axis(
            colours,
            domain=[0, 0.34],
            tickvals=list(range(len(lanes))),
            ticktext=lanes,
            range=[max(len(lanes), 1) - 0.4, -0.6],
            showgrid=False,
        ),
        "shapes": [
            # What comes after the origin is there, but not known at it.
            {"type": "rect", "xref": "x", "yref": "paper", "x0": now, "x1": end, "y0": 0.4, "y1": 1,
             "line": {"width": 0}, "fillcolor": faint(colours["paper"], 0.65)},
            {"type": "line", "xref": "x", "yref": "paper", "x0": now, "x1": now, "y0": 0, "y1": 1,
             "line": {"color": colours["ink"], "width": 2}},
        ],
    }  # fmt: skip
    return {"data": traces, "layout": layout}


def windows_figure(answer: Answer, step: Step, *, limits: tuple[float, float], dark: bool, with_run: bool) -> Figure:
    """The query and its neighbours, aligned at the origin in the query's units, and what is expected to follow. Under
    them the known covariates, of the query and of the same neighbours.

    limits: of the values, see `common_limits`. with_run: whether the page is on a run, whose forecast then has the
    colour of the forecast, and the memory's that of the memory, as in the picture of `cli explain`.
    """
    colours, found = palette(dark), answer.found
    lookback, shown = len(found.context), num_shown(found)
    times = milliseconds(step, found.times)
    before, after = times[lookback - shown : lookback], times[lookback:]
    traces = [*_fan(found, after, colours)]
    drawn = episodes(found.neighbours, step)
    for scope in reversed(SCOPES):
        group = [n for n in drawn if n.scope == scope]
        if group:
            traces.append(_neighbours(group, before, after, scope, colours))
    traces.append(_line("known at the origin", before, found.context[-shown:], colours["ink"], width=2.4))
    if np.isfinite(found.actual).any():
        traces.append(_line("what really followed", after, found.actual, colours["ink"], dash="dot", width=2.4))
    colour, dash = ("blue", "dashdot") if with_run else ("purple", "solid")
    traces.append(_line("memory alone", after, found.forecast, colours[colour], width=2.6, dash=dash))
    if answer.plain is not None:
        traces.append(_line("without the changes", after, answer.plain, colours["soft"], width=1.8, dash="dash"))
    if answer.explained is not None:
        traces += _of_run(answer, step, colours)
    now = float(times[lookback - 1])
    under = known_panels(found, times[lookback - shown :], drawn, colours) if found.covariates else Panels()
    layout = base_layout(colours) | {
        "hovermode": "x unified",
        "xaxis": axis(
            colours, type="date", range=[before[0], after[-1]], title=time_title(step), anchor=under.lowest
        ),
        "yaxis": axis(
            colours,
            range=list(limits),
            title=f"{short(found.series_id, SHORT)} (units of the data)",
            domain=[under.height, 1],
        ),
        "shapes": [
            *under.shapes,
            {"type": "line", "xref": "x", "yref": "paper", "x0": now, "x1": now, "y0": 0, "y1": 1,
             "line": {"color": colours["soft"], "width": 1}}
        ],
        "annotations": [
            *under.annotations,
            {"x": now, "xref": "x", "y": 1, "yref": "paper", "yanchor": "bottom", "text": "origin", "showarrow": False,
             "font": {"color": colours["soft"], "size": 12}}
        ],
        "margin": MARGIN | {"t": 24},
    } | under.axes  # fmt: skip
    return {"data": traces + under.traces, "layout": layout}


def common_limits(answers: Iterable[Answer | None]) -> tuple[float, float]:
    """The same limits of values for all sides, so that they can be compared by eye."""
    each = [_limits(answer) for answer in answers if answer is not None]
    return min(low for low, _ in each), max(high for _, high in each)


def gate_figure(answer: Answer, *, dark: bool) -> Figure:
    """How much of each step ahead comes from which part: areas that sum to 1."""
    colours, explained = palette(dark), answer.explained
    if explained is None:
        return empty_figure(dark=dark)
    ahead = np.arange(1, len(explained.gate) + 1, dtype=np.int32)
    traces = []
    for part in explained.parts:
        colour, pattern = part_look(part.name, part.of_memory, answer.version.views)
        look = {
            "line": {"width": 0.5, "color": colours["paper"]},
            "fillcolor": colours[colour],
            "fillpattern": {
                "shape": pattern,
                "bgcolor": colours[colour],
                "fgcolor": colours["paper"],
                "size": 6,
                "solidity": 0.25,
            },
        }
        traces.append(
            {
                "x": packed(ahead),
                "y": packed(part.weight),
                "name": part_label(part),
                "stackgroup": "parts",
                "mode": "lines",
                "hovertemplate": "%{y:.1%}",
            }
            | look
        )
    layout = base_layout(colours) | {
        "hovermode": "x unified",
        "xaxis": axis(colours, range=[1, len(ahead)], title="steps ahead"),
        "yaxis": axis(colours, range=[0, 1], tickformat=".0%", title="weight of each part"),
    }
    return {"data": traces, "layout": layout}


def empty_figure(*, dark: bool) -> Figure:
    """Where there is nothing to show; why is said beside it."""
    hidden = {"visible": False, "fixedrange": True}
    return {"data": [], "layout": base_layout(palette(dark)) | {"xaxis": hidden, "yaxis": hidden}}


def part_look(name: str, of_memory: bool, views: Sequence[int]) -> tuple[str, str]:
    """Name of the colour and pattern of a part of the gate: a key space has its scope's colour, its view's pattern."""
    if not of_memory:
        return BASE_LOOKS[name]
    scope, _, view = name.rpartition("-")
    return SCOPE_NAMES[scope], VIEW_PATTERNS[list(views).index(int(view)) % len(VIEW_PATTERNS)]


def part_label(part: Part) -> str:
    """A part of the gate as people call it."""
    return part.name if part.of_memory else BASE_NAMES[part.name]


def thinned(values: np.ndarray, num_bins: int) -> np.ndarray:
    """Rows of the least and greatest value in each of so many stretches, int64, ascending; all of a short series.

    The first and the last row are always there, so that a click can reach them, and so is a stretch without values.
    """
    num = len(values)
    if num <= 2 * num_bins:
        return np.arange(num)
    width = -(-num // num_bins)
    padded = np.full(-(-num // width) * width, np.nan)
    padded[:num] = values
    bins = padded.reshape(-1, width)
    first = np.arange(len(bins)) * width
    lowest = first + np.where(np.isfinite(bins), bins, np.inf).argmin(axis=1)
    highest = first + np.where(np.isfinite(bins), bins, -np.inf).argmax(axis=1)
    return np.unique(np.concatenate([[0], lowest, highest, [num - 1]]))


def _lane(group: Sequence[NeighbourRecord], place: int, step: Step, colours: Mapping[str, str]) -> list[Figure]:
    """Bars of a scope's neighbours: from where the comparison starts to the end of what followed, the origin marked."""
    origin = np.array([step.parse(n.origin) for n in group])
    view = np.array([n.view for n in group])
    start = origin.copy()
    for each in np.unique(view):
        start[view == each] = step.add(origin[view == each], 1 - int(each))
    ends = np.array([step.parse(n.known_at) for n in group])
    bars = np.stack([milliseconds(step, start), milliseconds(step, ends), np.full(len(group), np.nan)], axis=1)
    colour = colours[SCOPE_NAMES[group[0].scope]]
    common = {"yaxis": "y2", "hoverinfo": "skip"}
    return [
        common | {"x": gapped(bars), "y": [place] * bars.size, "mode": "lines",
                  "line": {"color": faint(colour, 0.5), "width": 7}, "connectgaps": False},
        common | {"x": packed(milliseconds(step, origin)), "y": [place] * len(group), "mode": "markers",
                  "marker": {"symbol": "line-ns-open", "size": 12, "line": {"width": 2}, "color": colour}},
    ]  # fmt: skip


def _fan(found: Inspection, after: np.ndarray, colours: Mapping[str, str]) -> list[Figure]:
    """Bands between the outermost quantiles of what followed, then between the next ones."""
    bands = []
    num = found.quantiles.shape[1]
    for i in range(num // 2):
        edges = np.concatenate([found.quantiles[:, i], found.quantiles[::-1, num - 1 - i]])
        bands.append(
            {
                "x": packed(np.concatenate([after, after[::-1]])),
                "y": packed(edges.astype(np.float32)),
                "mode": "lines",
                "line": {"width": 0},
                "fill": "toself",
                "fillcolor": faint(colours["band"], 0.4),
                "hoverinfo": "skip",
                "name": "futures of the neighbours",
            }
        )
    return bands


def _neighbours(
    group: Sequence[NeighbourRecord], before: np.ndarray, after: np.ndarray, scope: str, colours: Mapping[str, str]
) -> Figure:
    """Neighbours of a scope as one broken line: a trace each would take most of the time of a move."""
    x, y = [], []
    for n in group:
        seen = min(n.view, len(before))
        x += [before[len(before) - seen :], after, after[-1:]]
        y += [n.aligned_context[-seen:], n.aligned_future, np.array([np.nan], dtype=np.float32)]
    return {
        "x": packed(np.concatenate(x)),
        "y": packed(np.concatenate(y).astype(np.float32)),
        "mode": "lines",
        "line": {"color": faint(colours[SCOPE_NAMES[scope]], 0.5), "width": 1, "dash": SCOPE_DASHES[scope]},
        "connectgaps": False,
        "hoverinfo": "skip",
        "name": f"neighbours, scope {scope}",
    }


def _of_run(answer: Answer, step: Step, colours: Mapping[str, str]) -> list[Figure]:
    """The forecast of the run, within the outermost of its calibrated quantiles."""
    explained = answer.explained
    assert explained is not None
    after = milliseconds(step, explained.times[len(explained.context) :])
    edges = [
        _line(f"run, {level:.0%} quantile", after, explained.quantiles[:, q], colours["purple"], dash="dot", width=1.4)
        for level, q in zip(explained.levels[:: len(explained.levels) - 1], (0, -1), strict=True)
    ]
    return [*edges, _line("run", after, explained.forecast, colours["purple"], width=3)]


def _line(name: str, x: np.ndarray, y: np.ndarray, colour: str, *, width: float, dash: str = "solid") -> Figure:
    return {
        "x": packed(x),
        "y": packed(y.astype(np.float32)),
        "name": name,
        "mode": "lines" if len(x) > 1 else "lines+markers",
        "line": {"color": colour, "width": width, "dash": dash},
        "hovertemplate": "%{y:.4g}",
    }


def _limits(answer: Answer) -> tuple[float, float]:
    found, explained = answer.found, answer.explained
    lines = [found.context[-num_shown(found) :], found.forecast, found.quantiles.ravel(), found.actual]
    if explained is not None:
        lines += [explained.forecast, explained.quantiles.ravel()]
    return limits(lines, [n.aligned_future for n in found.neighbours])
