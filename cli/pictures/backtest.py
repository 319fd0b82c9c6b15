"""A backtest along time: errors beside those of plain forecasts, and what the intervals covered."""

from __future__ import annotations

from itertools import cycle
from typing import TYPE_CHECKING

import numpy as np

from cli.pictures.look import (
    BLUE,
    FORECAST_COLOUR,
    GREEN,
    ORANGE,
    SOFT,
    YELLOW,
    beyond,
    date_axis,
    dates,
    figure,
    headline,
    plain,
)
from cli.reports.evaluation_report import BASELINES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from memory_index.backtest.lived import Backtest
    from memory_index.windows import Step

BESIDE = (BLUE, ORANGE, GREEN, YELLOW)
HIGHEST = 3  # times the largest error of its own: what errs more leaves the frame
STYLES = ("--", "-.", ":", (0, (5, 1)))


def draw_backtest(step: Step, result: Backtest, title: str) -> Figure:
    """MAE by stretch of origins for every arm, and below it the share that the outermost quantiles covered."""
    has_coverage = result.stretches[0].coverage is not None
    drawn = figure(6.4 if has_coverage else 4.2)
    panels = drawn.subplots(2, 1, sharex=True, height_ratios=(2, 1)) if has_coverage else [drawn.subplots()]
    times = dates(step, np.array([each.first for each in result.stretches]))
    _draw_errors(panels[0], times, result)
    if has_coverage:
        _draw_coverage(panels[1], times, result)
    date_axis(panels[-1], step, "wide")
    drawn.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=5, frameon=False)
    headline(drawn, title)
    return drawn


def _draw_errors(panel: Axes, times: np.ndarray, result: Backtest) -> None:
    marker, arm = ("o" if len(times) == 1 else None), result.evaluation.arm
    looks = cycle(zip(BESIDE, STYLES, strict=True))
    own = np.array([each.mae[arm] for each in result.stretches])
    whole = max(max(each.mae.values()) for each in result.stretches)
    frame = (0.0, float(min(1.05 * whole, HIGHEST * own.max())) or 1.0)
    for name in (name for name in BASELINES if name != arm and name in result.stretches[0].mae):
        colour, style = next(looks)
        errors = np.array([each.mae[name] for each in result.stretches])
        label = BASELINES[name].partition(" (")[0] + beyond([errors], frame)
        panel.plot(times, errors, color=colour.light, ls=style, lw=1.1, marker=marker, label=label)
    label = "run" if arm == "model" else "memory alone"
    panel.plot(times, own, color=FORECAST_COLOUR, lw=2, marker=marker, label=label)
    panel.set_ylim(*frame)
    panel.set_ylabel("MAE, standardised", fontsize=9)
    plain(panel)


def _draw_coverage(panel: Axes, times: np.ndarray, result: Backtest) -> None:
    marker, levels = ("o" if len(times) == 1 else None), result.evaluation.levels
    promised = levels[-1] - levels[0]
    covered = [each.coverage for each in result.stretches if each.coverage is not None]
    panel.plot(times, covered, color=FORECAST_COLOUR, lw=1.5, marker=marker)
    panel.axhline(promised, color=SOFT.light, lw=1, ls="--")
    panel.set_ylim(0, 1.02)
    panel.set_ylabel(f"share inside\n{levels[0]:g} to {levels[-1]:g} ({promised:.0%})", fontsize=9)
    plain(panel)
