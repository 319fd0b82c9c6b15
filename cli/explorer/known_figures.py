"""Known covariates under the windows: those of the query and of its neighbours, aligned with the target."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape

import numpy as np

from cli.explorer.drawing import SCOPE_DASHES, SCOPE_NAMES, Figure, axis, faint, packed
from cli.pictures.conditions import LONGEST, MOST, drawn_columns
from cli.reports.conditions import condition_rows
from cli.wording import short
from memory_index.inspection import Inspection, NeighbourRecord
from memory_index.types import SCOPES

TARGET_HEIGHT, PANEL_HEIGHT, TITLE_HEIGHT = 360, 92, 26  # pixels, about; explorer.css makes room for them


@dataclass(frozen=True, kw_only=True, slots=True)
class Panels:
    """What panels add to a figure. height: of all of them, as a share; lowest: the axis that the dates stand under."""

    traces: list[Figure] = field(default_factory=list)
    axes: Figure = field(default_factory=dict)
    shapes: list[Figure] = field(default_factory=list)
    annotations: list[Figure] = field(default_factory=list)
    height: float = 0.0
    lowest: str = "y"


def num_panels(num_columns: int) -> int:
    """How many of the known columns are drawn."""
    return min(num_columns, MOST)


def known_panels(
    found: Inspection, times: np.ndarray, neighbours: Sequence[NeighbourRecord], colours: Mapping[str, str]
) -> Panels:
    """Those that decide most. times: float64 [T], of the steps that are drawn, the last H of which are the horizon:
    shaded, since they alone are compared. neighbours: that are drawn of the target.
    """
    names = drawn_columns(found.covariates, found.neighbours)
    horizon, first = len(found.forecast), len(found.times) - len(times)
    rows = condition_rows(found.covariates, found.categories, found.neighbours, horizon)
    each = PANEL_HEIGHT / (TARGET_HEIGHT + PANEL_HEIGHT * len(names))
    filled = each * (1 - TITLE_HEIGHT / PANEL_HEIGHT)
    made = Panels(height=each * len(names), lowest=f"y{len(names) + 1}")
    for number, (name, (_, _, far, share)) in enumerate(zip(names, rows, strict=False), start=2):
        below, words = each * (len(names) + 1 - number), found.categories.get(name, ())
        made.axes[f"yaxis{number}"] = axis(colours, domain=[below, below + filled], nticks=3) | _of_words(words)
        for scope in reversed(SCOPES):
            if group := [n.covariates[name][first:] for n in neighbours if n.scope == scope]:
                made.traces.append(_neighbours(group, times, scope, colours) | {"yaxis": f"y{number}"})
        made.traces.append(
            _query(name, times, found.covariates[name][first:], words, colours) | {"yaxis": f"y{number}"}
        )
        text = f"{short(name, LONGEST['narrow'])}: {far} ({share} of distances)"
        made.annotations.append(_title(text, below + filled, colours))
        made.shapes.append(
            {"type": "rect", "xref": "x", "yref": "paper", "x0": float(times[-horizon - 1]), "x1": float(times[-1]),
             "y0": below, "y1": below + filled, "line": {"width": 0}, "fillcolor": faint(colours["rule"], 0.4),
             "layer": "below"}
        )  # fmt: skip
    return made


def _of_words(words: Sequence[str]) -> Figure:
    """What an axis of words has instead of numbers."""
    if not words:
        return {}
    shown = [escape(short(word, LONGEST["narrow"]), quote=False) for word in words]
    return {"tickvals": list(range(len(words))), "ticktext": shown, "range": [-0.4, len(words) - 0.6]}


def _query(
    name: str, times: np.ndarray, values: np.ndarray, words: Sequence[str], colours: Mapping[str, str]
) -> Figure:
    said = [escape(words[int(code)], quote=False) if 0 <= code < len(words) else "" for code in values]
    return {
        "x": packed(times),
        "y": packed(values.astype(np.float32)),
        "name": escape(name, quote=False),
        "mode": "lines",
        "line": {"color": colours["ink"], "width": 2, "shape": "hvh"},
        **({"customdata": said, "hovertemplate": "%{customdata}"} if words else {"hovertemplate": "%{y:.4g}"}),
    }


def _neighbours(group: Sequence[np.ndarray], times: np.ndarray, scope: str, colours: Mapping[str, str]) -> Figure:
    """Neighbours of a scope as one broken line, as those of the target are."""
    gap = np.array([np.nan], dtype=np.float32)
    return {
        "x": packed(np.concatenate([part for _ in group for part in (times, times[-1:])])),
        "y": packed(np.concatenate([part for values in group for part in (values, gap)]).astype(np.float32)),
        "mode": "lines",
        "line": {"color": faint(colours[SCOPE_NAMES[scope]], 0.5), "width": 1, "dash": SCOPE_DASHES[scope],
                 "shape": "hvh"},
        "connectgaps": False,
        "hoverinfo": "skip",
    }  # fmt: skip


def _title(text: str, y: float, colours: Mapping[str, str]) -> Figure:
    return {
        "x": 0, "xref": "paper", "xanchor": "left", "y": y, "yref": "paper", "yanchor": "bottom",
        "text": escape(text, quote=False), "showarrow": False, "font": {"color": colours["soft"], "size": 11},
    }  # fmt: skip
