"""The arms of an ablation beside the full model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cli.pictures.look import FORECAST_COLOUR, SCOPE_COLOURS, figure, headline

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from forecaster.ablation_table import Row

FAR = 1.5  # times the MSE of the full model: arms beyond that are not drawn to scale


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
    drawn = figure(1.6 + 0.3 * (len(rows) + len(grouped(rows))))
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
    headline(drawn, title, size=13)
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
