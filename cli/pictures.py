"""Pictures for people (matplotlib, the `plot` extra): neighbours around a query, forecasts beside their history,
the arms of an ablation.

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

    from forecaster.ablation_table import Row
    from memory_index.inspection import Inspection
    from memory_index.tables.series import SeriesTable
    from memory_index.windows import StoredWindows

SCOPE_COLOURS = {"own": "#0072B2", "joint": "#D55E00", "pooled": "#009E73"}
SCOPE_STYLES = {"own": "-", "joint": "--", "pooled": "-."}
QUERY_COLOUR, FORECAST_COLOUR = "#000000", "#CC79A7"
MAX_PANELS = 12
FAR = 1.5  # times the MSE of the full model: arms beyond that are not drawn to scale
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


def draw_ablation(rows: list[Row], title: str) -> Figure:
    """The MSE of every arm with its standard deviation over seeds, by group, beside the line of the full model.

    Arms that are far worse stand at the right edge, so that they do not squeeze the others together.
    """
    from forecaster.ablation_table import FULL, TIE, grouped, label_of

    full = next(row.mse for row in rows if row.arm == FULL)
    near = [row for row in rows if row.mse <= FAR * full]
    low, high = min(_reach(row)[0] for row in near), max(_reach(row)[1] for row in near)
    margin = 0.08 * (high - low or full)
    left, right = low - margin, high + 2.5 * margin  # room for the figures
    labels: list[str] = []
    drawn = figure(11, 1.6 + 0.3 * (len(rows) + len(grouped(rows))))
    axes = drawn.subplots()
    axes.axvline(full, color=FORECAST_COLOUR, lw=1.2, ls="--", zorder=0)
    axes.axvspan(full - TIE, full + TIE, color="#EEEEEE", lw=0, zorder=-1)
    for heading, group in grouped(rows).items():
        axes.annotate(
            heading, (-0.01, len(labels)), xycoords=("axes fraction", "data"), ha="right", va="center", weight="bold"
        )
        labels.append("")
        for row in group:
            colour = FORECAST_COLOUR if row.arm == FULL else SCOPE_COLOURS["own"] if row.num_seeds else "#666666"
            _draw_arm(axes, row, len(labels), colour, right, margin)
            labels.append(label_of(row))
    axes.set_yticks(range(len(labels)), labels)
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(labels) - 0.5, -0.7)
    axes.set_xlim(left, right)
    axes.grid(axis="x", color="#DDDDDD", lw=0.6)
    axes.set_axisbelow(True)
    axes.set_xlabel("MSE, standardised units; dashed: the full model; grey: as good as it")
    axes.spines[["top", "right", "left"]].set_visible(False)
    drawn.suptitle(title, fontsize=13)
    return drawn


def _reach(row: Row) -> tuple[float, float]:
    """Both ends of what is drawn of an arm."""
    deviation = row.mse_deviation or 0.0
    return row.mse - deviation, row.mse + deviation


def _draw_arm(axes: Axes, row: Row, place: int, colour: str, right: float, margin: float) -> None:
    shown = f"{row.mse:.4f}"
    if _reach(row)[1] > right:
        axes.plot(right - margin / 4, place, ">", color=colour, clip_on=False)
        axes.annotate(shown, (right - margin / 2, place), ha="right", va="center", fontsize=9)
        return
    axes.errorbar(row.mse, place, xerr=row.mse_deviation or None, fmt="o", color=colour, capsize=3)
    axes.annotate(shown, (_reach(row)[1], place), xytext=(7, 0), textcoords="offset points", va="center", fontsize=9)
