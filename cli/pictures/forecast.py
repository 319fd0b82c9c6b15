"""Forecasts beside the history that they come from, one panel a series."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from cli.pictures.look import (
    BAND,
    FORECAST_COLOUR,
    LEAST_SHOWN,
    QUERY_COLOUR,
    SHOWN_STEPS,
    SOFT,
    date_axis,
    dates,
    figure,
    headline,
    plain,
)
from cli.wording import short

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from memory_index.tables.series import SeriesTable

MAX_PANELS = 12
TITLE_LENGTH = 100  # characters, over all panels of a row


def draw_forecast(table: SeriesTable, forecast: pd.DataFrame, title: str) -> Figure:
    """History and forecast of up to 12 series, one panel each, with the band of the outermost quantiles."""
    names = list(dict.fromkeys(forecast["unique_id"]))
    shown = names[:MAX_PANELS]
    columns = 1 if len(shown) == 1 else 2
    num_rows = -(-len(shown) // columns)
    drawn = figure(1.2 + 2.3 * num_rows)
    panels = drawn.subplots(num_rows, columns, squeeze=False).ravel()
    for panel, name in zip(panels, shown, strict=False):
        _draw_series(panel, table, forecast[forecast["unique_id"] == name], name)
        panel.set_title(short(name, TITLE_LENGTH // columns), fontsize=10, loc="left")
    for panel in panels[len(shown) :]:
        panel.set_visible(False)
    drawn.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    more = f" (first {len(shown)} of {len(names)} series)" if len(names) > len(shown) else ""
    headline(drawn, title + more)
    return drawn


def _draw_series(panel: Axes, table: SeriesTable, part: pd.DataFrame, name: str) -> None:
    history, step = table[name], table.step
    shown = np.flatnonzero(np.isfinite(history.values))[-max(SHOWN_STEPS * len(part), LEAST_SHOWN) :]
    times = dates(step, history.times[shown[0] : shown[-1] + 1])
    panel.plot(times, history.values[shown[0] : shown[-1] + 1], color=QUERY_COLOUR, lw=1.2, label="known")
    ahead = part["ds"].dt.tz_localize(None)
    marker = "o" if len(part) == 1 else None
    levels = [column for column in part.columns if column.startswith("q")]
    if len(levels) >= 2:
        low, high = levels[0], levels[-1]
        label = f"{low[1:]} to {high[1:]} quantile"
        if marker:
            panel.vlines(ahead, part[low], part[high], color=BAND.light, lw=6, label=label)
        else:
            panel.fill_between(ahead, part[low], part[high], color=BAND.light, alpha=0.6, lw=0, label=label)
    panel.plot(ahead, part["yhat"], color=FORECAST_COLOUR, lw=2, marker=marker, label="forecast")
    panel.axvline(times[-1], color=SOFT.light, lw=0.8)
    panel.margins(x=0.01)
    plain(panel)
    date_axis(panel, step, "narrow")
    panel.set_ylabel("units of the data", fontsize=9)
