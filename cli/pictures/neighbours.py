"""The neighbours of one query window, aligned at its origin, and where they lie on the time line."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from cli.pictures.look import FORECAST_COLOUR, QUERY_COLOUR, SCOPE_COLOURS, SCOPE_STYLES, SHOWN_STEPS, figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from cli.pictures.look import Shape
    from memory_index.inspection import Inspection
    from memory_index.windows import StoredWindows


def draw_neighbours(found: Inspection, windows: StoredWindows, ref: str, shape: Shape = "wide") -> Figure:
    """The query and its neighbours, aligned at the origin in the query's own units.

    Below them the time line, with where the neighbours lie on it.
    """
    drawn = figure(7, shape)
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
