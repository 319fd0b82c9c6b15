"""What a memory holds and how it is used: coverage along time, hubs and what is never retrieved, usual distances."""

from __future__ import annotations

from textwrap import fill
from typing import TYPE_CHECKING, Any

import numpy as np

from cli.pictures.look import (
    BAND,
    BLUE,
    INK,
    ORANGE,
    PAPER,
    PURPLE,
    SCOPE_COLOURS,
    SOFT,
    WIDTHS,
    date_axis,
    dates,
    figure,
    plain,
)
from cli.wording import short

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

    from cli.pictures.look import Shape
    from cli.reports.usage_document import Findings
    from memory_index.windows import StoredWindows

SHOWN_COVERED, SHOWN_USED = 12, 8  # series with a row of their own; where there are more, some stand for the rest
SHOWN_LABELS = 12  # hubs that say how strong they are
NAME_LENGTH: dict[Shape, int] = {"wide": 28, "narrow": 14}  # characters of a series' name beside its row
TITLE_LENGTH: dict[Shape, int] = {"wide": 124, "narrow": 46}  # characters of a line
CHARACTER = 0.075  # inches that one takes, about, in a label
TIMES = "\N{MULTIPLICATION SIGN}"


def draw_usage(found: Findings, shape: Shape = "wide") -> Figure:
    """All three panels as one picture."""
    heights = [_coverage_height(found), _retrievals_height(found), _distances_height(found)]
    drawn = figure(sum(heights) + 0.4, shape)
    parts: Any = drawn.subfigures(3, 1, height_ratios=heights, hspace=0.03)
    stored, retrieved, close = parts
    _coverage(stored, found, shape)
    _retrievals(retrieved, found, shape)
    _distances(close, found, shape)
    break_or_space = " " if shape == "wide" else "\n"
    drawn.suptitle(f"{found.ref}: what it holds{break_or_space}and how it is used", weight="bold")
    return drawn


def draw_coverage(found: Findings, shape: Shape = "wide") -> Figure:
    """Stored windows of each series along time, with the borders of the split."""
    drawn = figure(_coverage_height(found), shape)
    _coverage(drawn, found, shape)
    return drawn


def draw_retrievals(found: Findings, shape: Shape = "wide") -> Figure:
    """How often stretches are retrieved along time, as a multiple of what chance would give."""
    drawn = figure(_retrievals_height(found), shape)
    _retrievals(drawn, found, shape)
    return drawn


def draw_distances(found: Findings, shape: Shape = "wide") -> Figure:
    """How far away the nearest window usually is, for each key space."""
    drawn = figure(_distances_height(found), shape)
    _distances(drawn, found, shape)
    return drawn


# What is stored


def _coverage_height(found: Findings) -> float:
    return 1.9 + 0.27 * len(_covered_rows(found))


def _covered_rows(found: Findings) -> list[tuple[str, np.ndarray]]:
    """Name and numbers of the series of each row: all one by one, or together and those with the fewest windows."""
    names = found.coverage.series_ids
    if len(names) <= SHOWN_COVERED:
        return [(name, np.array([number])) for number, name in enumerate(names)]
    fewest = np.argsort(found.coverage.num_windows.sum(axis=1), kind="stable")[: SHOWN_COVERED - 1]
    return [(f"all {len(names):,}", np.arange(len(names))), *((names[each], np.array([each])) for each in fewest)]


def _coverage(parent: Figure | SubFigure, found: Findings, shape: Shape) -> None:
    from matplotlib.dates import date2num

    axes, covered, rows = parent.subplots(), found.coverage, _covered_rows(found)
    edges = dates(found.windows.step, covered.edges)
    for place, (_, series) in enumerate(rows):
        known = [dates(found.windows.step, ends) for ends in known_stretches(found.windows, series)]
        first, end = (date2num(each) for each in known)
        stretches = zip(first, end - first, strict=True)
        axes.broken_barh(list(stretches), (place - 0.42, 0.84), color=BAND.light, alpha=0.45, lw=0)
        share = np.append(covered.share[series].mean(axis=0), 0.0)
        axes.fill_between(edges, place + 0.3, place + 0.3 - 0.6 * share, step="post", color=BLUE.light, lw=0)
        num_gaps = _draw_gaps(axes, found, series, place + 0.3)
        text = f"{covered.num_windows[series].sum():,}"
        if num_gaps:
            text += f", {num_gaps:,} gap{'s' if num_gaps > 1 else ''}"
        axes.annotate(
            text, (1, place), xycoords=("axes fraction", "data"), xytext=(5, 0), textcoords="offset points",
            va="center", fontsize=8, color=SOFT.light,
        )  # fmt: skip
    axes.set_yticks(range(len(rows)), [short(name, NAME_LENGTH[shape]) for name, _ in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.margins(x=0)
    plain(axes)
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)
    _draw_borders(axes, found, shape)
    date_axis(axes, found.windows.step, shape)
    _legend(parent, [*_coverage_legend(axes, bool(covered.gaps))], shape)
    some = "" if len(rows) == len(covered.series_ids) else f" All series, and the {len(rows) - 1} with the fewest."
    _title(parent, f"Windows that are stored, by the time of their origin; how many, on the right.{some}", shape)


def known_stretches(windows: StoredWindows, series: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """First step, and the step after the last, of each stretch in which one of these series has values."""
    parts = (slice(*windows.offset[number : number + 2]) for number in series)
    times = np.unique(np.concatenate([windows.times[part][np.isfinite(windows.values[part])] for part in parts]))
    after = windows.step.add(times, 1)
    begins = np.append(True, times[1:] > after[:-1])[: len(times)]
    return times[begins], after[np.roll(begins, -1)]


def _draw_gaps(axes: Axes, found: Findings, series: np.ndarray, place: float) -> int:
    """Mark where windows of a single series are missing; how many gaps the series of a row have."""
    names = {found.coverage.series_ids[number] for number in series}
    gaps = [gap.first for gap in found.coverage.gaps if gap.series_id in names]
    if gaps and len(series) == 1:
        axes.plot(dates(found.windows.step, np.array(gaps)), [place] * len(gaps), "^", color=ORANGE.light, ms=5, mew=0)
    return len(gaps)


def _draw_borders(axes: Axes, found: Findings, shape: Shape) -> None:
    """The end of every part of the split, the parts' names above, and until when anything was fitted."""
    covered = found.coverage
    parts = (("training", covered.train_until), ("validation", covered.val_until), ("test", covered.test_until))
    first = dates(found.windows.step, np.array([np.nanmin(covered.first_value)]))[0]
    ends = {name: dates(found.windows.step, np.array([until]))[0] for name, until in parts if until is not None}
    stored = dates(found.windows.step, np.array([np.nanmax(covered.last_value)]))[0]
    last = max(*ends.values(), stored)
    axes.set_xlim(first, last)
    start = first
    for name, end in ends.items():
        axes.axvline(end, color=INK.light, lw=1.1)
        room = (end - start) / (last - first) * (WIDTHS[shape] - 1.6) / CHARACTER
        shown = next((each for each in (f"{name} part", name, name[:3] + ".") if len(each) <= room), "")
        axes.annotate(
            shown, (start + (end - start) / 2, 1), xycoords=("data", "axes fraction"), xytext=(0, 3), ha="center",
            textcoords="offset points", fontsize=8.5, color=SOFT.light,
        )  # fmt: skip
        start = end
    fitted = dates(found.windows.step, np.array([covered.fitted_until]))[0]
    axes.axvline(fitted, color=PURPLE.light, lw=3.2, ls=(0, (1, 1.5)), label="keys fitted on steps up to here")


def _coverage_legend(axes: Axes, has_gaps: bool) -> list[Any]:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    gap = Line2D([], [], color=ORANGE.light, marker="^", ls="", label="gap: windows are missing")
    return [
        Patch(color=BLUE.light, label="windows stored (full height: none missing)"),
        Patch(color=BAND.light, alpha=0.45, label="values known"),
        *([gap] if has_gaps else []),
        Line2D([], [], color=INK.light, lw=1.1, label="end of a part of the split"),
        *axes.get_legend_handles_labels()[0],
    ]


# What is retrieved


def _retrievals_height(found: Findings) -> float:
    return 1.8 + 0.78 * len(_used_rows(found))


def _used_rows(found: Findings) -> list[int | None]:
    """Number of the series of each row; None for all together, where only some have a row of their own."""
    num = len(found.windows.series_ids)
    if num <= SHOWN_USED:
        return list(range(num))
    series, ratio = found.usage.stretches.series, np.nan_to_num(found.usage.ratio())
    strongest = dict.fromkeys(series[np.argsort(-ratio, kind="stable")].tolist())
    return [None, *sorted(list(strongest)[: SHOWN_USED - 1])]


def _retrievals(parent: Figure | SubFigure, found: Findings, shape: Shape) -> None:
    from matplotlib.ticker import MaxNLocator

    rows, used = _used_rows(found), found.usage
    panels = parent.subplots(len(rows), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
    top = max(2.4, float(np.nan_to_num(used.ratio()).max(initial=0)))
    for axes, series in zip(panels, rows, strict=True):
        plain(axes)
        axes.axhline(1, color=INK.light, lw=1, ls="--", zorder=3)
        if series is None:
            _draw_all(axes, found)
        else:
            _draw_series(axes, found, series, top)
        name = f"all {len(found.windows.series_ids):,} series" if series is None else found.windows.series_ids[series]
        axes.set_title(short(name, 40), loc="left", fontsize=9, pad=2)
        axes.tick_params(axis="y", labelsize=8)
    panels[0].set_ylim(0, top * 1.32)
    panels[0].yaxis.set_major_locator(MaxNLocator(nbins=2, integer=True))
    panels[0].margins(x=0.01)
    _label_hubs(dict(zip(rows, panels, strict=True)), found, shape)
    date_axis(panels[-1], found.windows.step, shape)
    parent.supylabel("retrieved / expected", fontsize=9)
    _legend(parent, _retrievals_legend(found), shape)
    some = "" if rows[0] is not None else f" All series, and the {len(rows) - 1} with the strongest."
    title = (
        f"How often each stretch of {used.stretches.num_steps} steps is among the {used.k} most similar to some other "
        f"window, compared with chance. Far above 1 it answers for everything: a hub.{some}"
    )
    _title(parent, title, shape)


def _draw_all(axes: Axes, found: Findings) -> None:
    """Retrievals of all series together."""
    edges, used, windows = found.coverage.edges, found.usage, found.windows
    place = np.searchsorted(edges, windows.origin(np.arange(len(windows))), side="right") - 1
    retrieved, expected = (
        np.bincount(place, sum(part[space] for space in used.spaces), minlength=len(edges) - 1)
        for part in (used.retrieved, used.expected)
    )
    ratio = np.divide(retrieved, expected, out=np.zeros(len(expected)), where=expected > 0)
    axes.fill_between(
        dates(found.windows.step, edges), np.append(ratio, 0.0), step="post", color=BLUE.light, alpha=0.75, lw=0
    )


def _draw_series(axes: Axes, found: Findings, series: int, top: float) -> None:
    """One bar for each stretch of a series."""
    used = found.usage
    mine = np.flatnonzero(used.stretches.series == series)
    ratio = used.ratio()[mine]
    first = dates(found.windows.step, used.stretches.first[mine])
    end = dates(found.windows.step, found.windows.step.add(used.stretches.last[mine], 1))
    hub, never, unknown = np.isin(mine, used.hubs), np.isin(mine, used.never), np.isnan(ratio)
    for chosen, colour, alpha in ((~hub, BLUE.light, 0.75), (hub, ORANGE.light, 1.0)):
        axes.bar(
            first[chosen], np.nan_to_num(ratio[chosen]), (end - first)[chosen],
            align="edge", color=colour, alpha=alpha, lw=0,
        )  # fmt: skip
    axes.bar(first[unknown], np.full(unknown.sum(), 2 * top), (end - first)[unknown], align="edge",
             color=BAND.light, alpha=0.5, lw=0)  # fmt: skip
    middle = first + (end - first) / 2
    axes.plot(middle[hub], ratio[hub] + 0.05 * top, "v", color=ORANGE.light, ms=5, mew=0)
    axes.plot(middle[never], np.full(never.sum(), 0.08 * top), "x", color=PURPLE.light, ms=6, mew=1.8)


def _label_hubs(panels: dict[int | None, Axes], found: Findings, shape: Shape) -> None:
    """Say of the strongest hubs how strong they are, where there is room beside a stronger one."""
    used, labelled = found.usage, 0
    taken: dict[int, list[float]] = {}
    start, end = (found.coverage.edges[place].astype(np.int64) for place in (0, -1))
    apart = 6 * CHARACTER / (WIDTHS[shape] - 1)
    for hub in used.hubs.tolist():
        series = int(used.stretches.series[hub])
        middle = (used.stretches.first[hub].astype(np.int64) + used.stretches.last[hub].astype(np.int64)) // 2
        place = (middle - start) / (end - start)
        if series not in panels or any(abs(place - other) < apart for other in taken.get(series, [])):
            continue
        at = dates(found.windows.step, np.array([middle], dtype="datetime64[ns]"))[0]
        panels[series].annotate(
            f"{used.ratio()[hub]:.1f}{TIMES}", (at, used.ratio()[hub]), xytext=(0, 6.5), textcoords="offset points",
            ha="center" if 0.03 < place < 0.97 else "left" if place < 0.5 else "right", fontsize=8.5,
        )  # fmt: skip
        taken.setdefault(series, []).append(place)
        labelled += 1
        if labelled == SHOWN_LABELS:
            return


def _retrievals_legend(found: Findings) -> list[Any]:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    from memory_index.usage import HUB

    used = found.usage
    hub = Line2D(
        [], [], color=ORANGE.light, marker="v", ls="", label=f"hub: at least {HUB:g}{TIMES} ({len(used.hubs):,})"
    )
    never = Line2D(
        [], [], color=PURPLE.light, marker="x", mew=1.8, ls="", label=f"never retrieved ({len(used.never):,})"
    )
    unknown = Patch(color=BAND.light, alpha=0.5, label="too seldom within reach to tell")
    return [
        Line2D([], [], color=INK.light, lw=1, ls="--", label="1: as often as expected by chance"),
        hub,
        never,
        *([unknown] if np.isnan(used.ratio()).any() else []),
    ]


# How close the nearest window is


def _distances_height(found: Findings) -> float:
    return 1.6 + 0.24 * len(found.usage.spaces)


def _distances(parent: Figure | SubFigure, found: Findings, shape: Shape) -> None:
    from memory_index.closeness import LEAST_SAMPLE, UNUSUAL

    axes, spaces = parent.subplots(), found.usage.spaces
    for place, space in enumerate(spaces):
        usual, colour = found.distances(space), SCOPE_COLOURS[space.scope]
        if len(usual) < LEAST_SAMPLE:
            axes.annotate("too few windows to tell", (0, place), xytext=(4, 0), textcoords="offset points", fontsize=8)
            continue
        low, quarter, half, three, unusual = np.quantile(usual, (1 - UNUSUAL, 0.25, 0.5, 0.75, UNUSUAL))
        axes.plot([low, unusual], [place, place], color=colour, lw=1.6)
        axes.barh(place, three - quarter, left=quarter, height=0.6, color=colour, lw=0)
        axes.plot([half, half], [place - 0.3, place + 0.3], color=PAPER.light, lw=2.2)
        axes.plot([unusual, unusual], [place - 0.36, place + 0.36], color=INK.light, lw=2.2)
    axes.set_yticks(range(len(spaces)), [f"{space.scope}, {space.view} steps" for space in spaces])
    axes.set_ylim(len(spaces) - 0.5, -0.5)
    axes.set_xlim(left=0)
    plain(axes)
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel(f"distance{' to the nearest window' if shape == 'wide' else ''} (in spreads of a window)")
    _legend(parent, _distances_legend(), shape)
    title = "How far from windows of the memory the nearest one was that was known by then, by what is compared"
    _title(parent, title, shape)


def _distances_legend() -> list[Any]:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    return [
        Line2D([], [], color=SOFT.light, lw=1.6, label="5 to 95% of windows"),
        Patch(color=SOFT.light, label="25 to 75%; gap: the median"),
        Line2D([], [], color=INK.light, marker="|", ms=9, mew=2.2, ls="", label="farther: no close analogue"),
    ]


# What all panels share


def _title(parent: Figure | SubFigure, title: str, shape: Shape) -> None:
    parent.suptitle(fill(title, TITLE_LENGTH[shape]), fontsize=10, x=0.01, ha="left")


def _legend(parent: Figure | SubFigure, entries: list[Any], shape: Shape) -> None:
    columns = len(entries) if shape == "wide" else 1
    parent.legend(handles=entries, loc="outside lower center", ncols=columns, fontsize=8, frameon=False)
