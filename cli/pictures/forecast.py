"""Forecasts beside the history that they come from, one panel a series."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cli.pictures.look import FORECAST_COLOUR, QUERY_COLOUR, SHOWN_STEPS, figure

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from memory_index.tables.series import SeriesTable

MAX_PANELS = 12


def draw_forecast(table: SeriesTable, forecast: pd.DataFrame, title: str) -> Figure:
    """History and forecast of up to 12 series, one panel each, with the band of the outermost quantiles."""
    names = list(dict.fromkeys(forecast["unique_id"]))
    shown = names[:MAX_PANELS]
    columns = 1 if len(shown) == 1 else 2
    num_rows = -(-len(shown) // columns)
    drawn = figure(2 + 2.2 * num_rows)
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
