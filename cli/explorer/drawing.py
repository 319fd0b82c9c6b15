"""What the figures of the page are made of: colours, axes, times and arrays as plotly reads them."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping
from html import escape
from typing import Any

import numpy as np

from cli.pictures.look import PALETTE
from memory_index.windows import Step

Figure = dict[str, Any]

SCOPE_NAMES = {"own": "blue", "joint": "orange", "pooled": "green"}  # of colours, as look.SCOPE_COLOURS
SCOPE_DASHES = {"own": "solid", "joint": "dash", "pooled": "dashdot"}
MARGIN = {"l": 64, "r": 12, "t": 10, "b": 40}


def palette(dark: bool) -> Mapping[str, str]:
    """Colours by name."""
    return {colour.name: colour.dark if dark else colour.light for colour in PALETTE}


def base_layout(colours: Mapping[str, str]) -> Figure:
    """What every figure has."""
    return {
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"color": colours["ink"], "family": "system-ui, sans-serif", "size": 12},
        "hoverlabel": {"bgcolor": colours["paper"], "bordercolor": colours["rule"], "font": {"color": colours["ink"]}},
        "margin": MARGIN,
        "showlegend": False,
        "dragmode": False,
    }


def axis(colours: Mapping[str, str], title: str = "", **more: Any) -> Figure:
    """title: as it is to be read; plotly takes it for HTML."""
    return {
        "title": {"text": escape(title, quote=False), "font": {"color": colours["soft"], "size": 12}, "standoff": 10},
        "gridcolor": colours["rule"],
        "linecolor": colours["rule"],
        "tickcolor": colours["rule"],
        "zeroline": False,
        "fixedrange": True,
        "automargin": "height",  # dates may take two lines
    } | more


def time_title(step: Step) -> str:
    """The title of an axis of times."""
    return "time" + (f" ({step.time_zone})" if step.time_zone else "")


def milliseconds(step: Step, times: np.ndarray) -> np.ndarray:
    """Times as plotly counts them, float64, on the clock of the data's own time zone."""
    local = step.local(times).tz_localize(None).to_numpy()
    return local.astype("datetime64[ns]").astype(np.int64) / 1e6


def gapped(bars: np.ndarray) -> list[float | None]:
    """Numbers with None for NaN, where plotly breaks a line."""
    return [None if np.isnan(each) else float(each) for each in bars.ravel()]


def packed(values: np.ndarray) -> dict[str, str]:
    """An array as plotly reads it without parsing numbers."""
    kind = {"float32": "f4", "float64": "f8", "int32": "i4"}[values.dtype.name]
    return {"dtype": kind, "bdata": b64encode(values.tobytes()).decode("ascii")}


def faint(colour: str, opacity: float) -> str:
    """A colour that what is behind it shines through."""
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{opacity})"
