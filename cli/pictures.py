"""Pictures for people (matplotlib, the `plot` extra): neighbours around a query, forecasts beside their history.

Colours are those of Okabe and Ito (2008), told apart by the colour-blind; line styles differ too, for grey print.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from memory_index.inspection import Inspection
    from memory_index.tables.series import SeriesTable
    from memory_index.windows import StoredWindows

SCOPE_COLOURS = {"own": "#0072B2", "joint": "#D55E00", "pooled": "#009E73"}
SCOPE_STYLES = {"own": "-", "joint": "--", "pooled": "-."}
QUERY_COLOUR, FORECAST_COLOUR = "#000000", "#CC79A7"
MAX_PANELS = 12
SHOWN_STEPS = 3  # horizons of history that are drawn before the origin


def figure(width: float, height: float) -> Figure:
    """A figure that needs no display."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def save(drawn: Figure, path: Path) -> None:
    """Write a figure in the format of the suffix."""
    drawn.savefig(path, dpi=130)


def draw_neighbours(found: Inspection, windows: StoredWindows, ref: str) -> Figure:
    """The query and its neighbours, aligned at the origin in the query's own units.

    Below them the time line, with where the neighbours lie on it.
    """
    drawn = figure(11, 7)
    top, bottom = drawn.subplots(2, 1, height_ratios=(3, 1))
    _draw_windows(top, found)
    _draw_timeline(bottom, found, windows)
    drawn.suptitle(f"{found.series_id} at {found.origin_text}: what {ref} remembers", fontsize=13)
    return drawn


def _draw_windows(axes: Axes, found: Inspection) -> None:
    horizon = len(found.forecast)
    longest = max(n.view for n in found.neighbours)
    shown = min(longest, max(SHOWN_STEPS * horizon, 48), len(found.context))
    before, after = np.arange(1 - shown, 1), np.arange(1, horizon + 1)
    axes.fill_between(
        after,
        found.quantiles[:, 0],
        found.quantiles[:, 1],
        color="#BBBBBB",
        alpha=0.5,
        lw=0,
        label="10 to 90 % of neighbours",
    )
    labelled: set[str] = set()
    for n in sorted(found.neighbours, key=lambda n: n.rank, reverse=True):
        look: dict[str, Any] = {"color": SCOPE_COLOURS[n.scope], "ls": SCOPE_STYLES[n.scope], "lw": 0.8, "alpha": 0.45}
        seen = min(n.view, shown)
        axes.plot(np.arange(1 - seen, 1), n.aligned_context[-seen:], **look)
        axes.plot(
            after, n.aligned_future, **look, label=None if n.scope in labelled else f"neighbours, scope {n.scope}"
        )
        labelled.add(n.scope)
    axes.plot(before, found.context[-shown:], color=QUERY_COLOUR, lw=1.8, label="query: known at the origin")
    if np.isfinite(found.actual).any():
        axes.plot(after, found.actual, color=QUERY_COLOUR, lw=1.8, ls=":", label="what really followed")
    axes.plot(after, found.forecast, color=FORECAST_COLOUR, lw=2.2, label="forecast of the memory alone")
    axes.axvline(0.5, color="#666666", lw=1)
    axes.annotate(
        "origin", (0.5, 1), xycoords=("data", "axes fraction"), xytext=(4, -12), textcoords="offset points", fontsize=9
    )
    low, high = _limits(found, shown)
    axes.set_ylim(low, high)
    axes.set_xlim(before[0], horizon)
    axes.set_xlabel("steps from the origin")
    axes.set_ylabel(f"{found.series_id}, units of the data")
    axes.legend(fontsize=8, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.12), frameon=False)


def _limits(found: Inspection, shown: int) -> tuple[float, float]:
    """Limits that show the query, the truth, the forecast and most of each neighbour.

    Not all of each: one wild line must not flatten the rest.
    """
    lines = [found.context[-shown:], found.forecast, found.quantiles.ravel(), found.actual[np.isfinite(found.actual)]]
    futures = np.concatenate([n.aligned_future for n in found.neighbours])
    lines.append(np.quantile(futures, [0.02, 0.98]))
    values = np.concatenate(lines)
    margin = 0.06 * (values.max() - values.min() or 1.0)
    return float(values.min() - margin), float(values.max() + margin)


def _draw_timeline(axes: Axes, found: Inspection, windows: StoredWindows) -> None:
    """The stored history of the query's series, with the stretch of every neighbour marked by scope."""
    step = windows.step
    name = found.series_id if found.series_id in windows.series_number else windows.series_ids[0]
    part = slice(*windows.offset[windows.series_number[name] : windows.series_number[name] + 2])
    axes.plot(_dates(windows, windows.times[part]), windows.values[part], color="#888888", lw=0.5)
    scopes = [scope for scope in SCOPE_COLOURS if any(n.scope == scope for n in found.neighbours)]
    for n in found.neighbours:
        start, end = (_dates(windows, np.array([step.parse(time)]))[0] for time in (n.start, n.known_at))
        place = scopes.index(n.scope) / len(scopes)
        axes.axvspan(
            start, end, ymin=place, ymax=place + 1 / len(scopes), color=SCOPE_COLOURS[n.scope], alpha=0.18, lw=0
        )
    axes.axvline(_dates(windows, np.array([found.origin]))[0], color=QUERY_COLOUR, lw=1.2)
    axes.set_xlabel(f"where the neighbours lie in the history of {name} (black line: the origin)")
    axes.set_ylabel(name)
    axes.margins(x=0.01)


def _dates(windows: StoredWindows, times: np.ndarray) -> np.ndarray:
    """Times for matplotlib, in the data's own time zone."""
    return windows.step.local(times).tz_localize(None).to_numpy()


def draw_forecast(table: SeriesTable, forecast: pd.DataFrame, title: str) -> Figure:
    """History and forecast of up to 12 series, one panel each, with the band of the outermost quantiles."""
    names = list(dict.fromkeys(forecast["unique_id"]))
    shown = names[:MAX_PANELS]
    columns = 1 if len(shown) == 1 else 2
    num_rows = -(-len(shown) // columns)
    drawn = figure(11, 2 + 2.2 * num_rows)
    panels = drawn.subplots(num_rows, columns, squeeze=False, sharex=False).ravel()
    levels = [name for name in forecast.columns if name.startswith("q")]
    for panel, name in zip(panels, shown, strict=False):
        part = forecast[forecast["unique_id"] == name]
        history = table[name]
        steps = SHOWN_STEPS * len(part)
        times = table.step.local(history.times[-steps:]).tz_localize(None)
        ahead = part["ds"].dt.tz_localize(None)
        panel.plot(times, history.values[-steps:], color=QUERY_COLOUR, lw=1.2, label="history")
        if len(levels) >= 2:
            label = f"{levels[0][1:]} to {levels[-1][1:]} quantile"
            panel.fill_between(ahead, part[levels[0]], part[levels[-1]], color="#BBBBBB", alpha=0.6, lw=0, label=label)
        panel.plot(ahead, part["yhat"], color=FORECAST_COLOUR, lw=2, label="forecast")
        panel.axvline(times[-1], color="#666666", lw=0.8)
        panel.set_ylabel(f"{name}, units of the data")
        panel.tick_params(axis="x", labelrotation=20, labelsize=8)
    for panel in panels[len(shown) :]:
        panel.set_visible(False)
    panels[0].legend(fontsize=8, loc="best")
    more = f" (first {len(shown)} of {len(names)} series)" if len(names) > len(shown) else ""
    drawn.suptitle(title + more, fontsize=13)
    return drawn


def draw_ablation(arms: dict[str, tuple[float, float]], title: str) -> Figure:
    """The MSE of every arm, best first, with its standard deviation over seeds. arms: (MSE, deviation) by name."""
    names = sorted(arms, key=arms.__getitem__, reverse=True)  # barh draws from below
    mse, deviation = zip(*(arms[name] for name in names), strict=True)
    drawn = figure(9, 1.2 + 0.32 * len(names))
    axes = drawn.subplots()
    axes.barh(names, mse, xerr=deviation, color=SCOPE_COLOURS["own"], capsize=3)
    for place, value in enumerate(mse):
        axes.annotate(
            f"{value:.4f}", (value, place), xytext=(6, 0), textcoords="offset points", va="center", fontsize=9
        )
    axes.set_xlim(left=0, right=max(mse) * 1.15)
    axes.set_xlabel("MSE, standardised units")
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(title, loc="left")
    return drawn
