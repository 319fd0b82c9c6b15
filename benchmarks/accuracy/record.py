"""From the files of results to what is read: a table for each data set, one JSON document, one picture."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, NamedTuple

from benchmarks.accuracy.arms import ARMS, BESIDE, DEFAULT, GROWN
from benchmarks.accuracy.peers import PEERS
from benchmarks.accuracy.published import MEAN, PUBLISHED
from benchmarks.report import machine

if TYPE_CHECKING:
    from matplotlib.axes import Axes

GROWN_ALONE = "memory only, growing memory"
HORIZONS = (96, 192, 336, 720)
# The must-row of the goals: MSE, MAE.
GOALS = {
    ("ETTh1", 96): (0.354, 0.387),
    ("ETTh1", MEAN): (0.401, 0.420),
    ("ETTh2", 96): (0.269, 0.330),
    ("ETTh2", MEAN): (0.339, 0.384),
    ("Exchange", 96): (0.081, 0.198),
}


class Seeds(NamedTuple):
    """One arm on one data set and horizon: MSE and MAE of each seed."""

    mse: list[float]
    mae: list[float]

    @property
    def mean(self) -> tuple[float, float]:
        """Over seeds."""
        return fmean(self.mse), fmean(self.mae)


Scores = dict[str, dict[tuple[str, int], Seeds]]  # by arm, then by data set and horizon


def scores_of(results: Sequence[dict[str, Any]]) -> Scores:
    """Every arm's scores. What needs no training stands in the result of the value gate."""
    found: Scores = {}

    def add(arm: str, place: tuple[str, int], score: dict[str, float]) -> None:
        seeds = found.setdefault(arm, {}).setdefault(place, Seeds([], []))
        seeds.mse.append(score["mse"])
        seeds.mae.append(score["mae"])

    for result in sorted(results, key=lambda each: int(each["seed"])):
        place = (result["data_set"], int(result["horizon"]))
        add(result["arm"], place, result)
        if result["arm"] == DEFAULT:
            for arm, score in result["beside"].items():
                add(arm, place, score)
        elif result["arm"] == GROWN:
            add(GROWN_ALONE, place, result["beside"]["memory only"])
    return {arm: found[arm] for arm in sorted(found, key=_order)}


def _order(arm: str) -> tuple[int, str]:
    """Ours from the simplest to the whole, then peers."""
    order = [*BESIDE.values(), GROWN_ALONE, *ARMS, GROWN, *PEERS]
    return order.index(arm if arm in order else BESIDE["memory_only"]), arm


def markdown(results: Sequence[dict[str, Any]]) -> Iterator[str]:
    """The lines of all tables: MSE/MAE, means over seeds, and how many those are; most arms have nothing random."""
    scores = scores_of(results)
    yield machine()
    for data_set in dict.fromkeys(result["data_set"] for result in results):
        horizons = [h for h in HORIZONS if any((data_set, h) in places for places in scores.values())]
        with_mean = len(horizons) == len(HORIZONS)
        heads = [*map(str, horizons), *(["mean"] if with_mean else []), "seeds"]
        yield f"\n### {data_set}\n\n| arm | {' | '.join(heads)} |\n|---|{'---|' * len(heads)}"
        for arm, places in scores.items():
            found = {h: places[data_set, h] for h in horizons if (data_set, h) in places}
            if not found:
                continue
            cells = [_cell(found.get(h), data_set, h) for h in horizons]
            if with_mean:
                whole = len(found) == len(horizons)
                cells.append(_mean_cell(list(found.values()), data_set) if whole else "")
            num_seeds = sorted({len(seeds.mse) for seeds in found.values()})
            random = (arm in ARMS and arm != DEFAULT) or arm in PEERS
            cells.append(" to ".join(map(str, {num_seeds[0]: 0, num_seeds[-1]: 0})) if random else "none")
            yield f"| {arm}{' (peer)' if arm in PEERS else ''} | {' | '.join(cells)} |"
        for model, source, figures in PUBLISHED:
            places_shown = [*horizons, *([MEAN] if with_mean else [])]
            cells = [figures.get((data_set, place), "") for place in places_shown]
            if any(cells):
                yield f"| *{model}, published ({source})* | {' | '.join(cells)} | |"


def _cell(seeds: Seeds | None, data_set: str, horizon: int) -> str:
    return "" if seeds is None else _shown(seeds.mean, (data_set, horizon))


def _mean_cell(found: list[Seeds], data_set: str) -> str:
    means = [seeds.mean for seeds in found]
    return _shown((fmean(mse for mse, _ in means), fmean(mae for _, mae in means)), (data_set, MEAN))


def _shown(score: tuple[float, float], place: tuple[str, int | str]) -> str:
    """MSE/MAE; bold where both, in the goal's three decimals, reach it."""
    text = "{:.4f}/{:.4f}".format(*score).replace("0.", ".")
    goal = GOALS.get(place)  # type: ignore[arg-type]
    return f"**{text}**" if goal and all(round(a, 3) <= b for a, b in zip(score, goal, strict=True)) else text


def costs(results: Sequence[dict[str, Any]]) -> Iterator[str]:
    """What training cost at most, by arm, over data sets, horizons and seeds."""
    yield "\n| arm | training, seconds | finding neighbours that were not there | peak memory, MB |\n|---|---|---|---|"
    for arm in [*ARMS, *PEERS]:
        of_arm = [each for each in results if each["arm"] == arm]
        if of_arm:
            seconds, found, peak = (
                max(float(each.get(key, 0) or 0) for each in of_arm)
                for key in ("seconds", "neighbour_seconds", "peak_rss_mb")
            )
            yield f"| {arm} | {seconds:.0f} | {found:.0f} | {f'{peak:,.0f}' if peak else ''} |"


def draw(results: Sequence[dict[str, Any]], target: Path) -> None:
    """A panel for each data set and horizon: every arm's mean, and the range of its seeds. PNG, SVG or PDF."""
    from cli.pictures import look

    scores = scores_of(results)
    sets = list(dict.fromkeys(result["data_set"] for result in results))
    shown = [arm for arm in scores if arm in (*BESIDE.values(), GROWN_ALONE, *ARMS, GROWN, *PEERS)]
    arms = {name: [arm for arm in shown if any(place[0] == name for place in scores[arm])] for name in sets}
    figure = look.figure(0.6 + sum(0.9 + 0.19 * len(each) for each in arms.values()))
    heights = [len(each) + 3 for each in arms.values()]
    panels = figure.subplots(len(sets), len(HORIZONS), squeeze=False, gridspec_kw={"height_ratios": heights})
    for row, data_set in zip(panels, sets, strict=True):
        for axes, horizon in zip(row, HORIZONS, strict=True):
            _draw_panel(axes, {arm: scores[arm].get((data_set, horizon)) for arm in arms[data_set]})
            axes.set_title(f"{data_set}, {horizon} steps", fontsize=9)
            if horizon != HORIZONS[0]:
                axes.set_yticklabels([])
    look.headline(
        figure, "MSE on the test part: mean and range of the seeds. Hollow: the best of a panel. Arrow: farther right"
    )
    figure.savefig(target, dpi=look.DOTS_PER_INCH)


def _draw_panel(axes: Axes, found: dict[str, Seeds | None]) -> None:
    from cli.pictures import look

    look.plain(axes)
    axes.set_yticks(range(len(found)), list(found), fontsize=8)
    axes.set_ylim(len(found) - 0.5, -0.5)
    axes.tick_params(axis="x", labelsize=8)
    there = {arm: seeds for arm, seeds in found.items() if seeds}
    if not there:
        axes.set_xticks([])
        return
    best = min(seeds.mean[0] for seeds in there.values())
    end = 1.3 * best  # a naive forecast may be four times as bad, and would flatten the rest
    axes.set_xlim(best - 0.03 * best, end)
    for place, (arm, seeds) in enumerate(found.items()):
        if seeds is None:
            continue
        colour = look.ORANGE.light if arm in PEERS else look.BLUE.light if arm in (*ARMS, GROWN) else look.SOFT.light
        if seeds.mean[0] > end:
            axes.plot(end * 0.995, place, marker=">", color=colour, clip_on=False)
            continue
        axes.plot([min(seeds.mse), max(seeds.mse)], [place, place], color=colour, lw=2)
        hollow = "white" if seeds.mean[0] == best else colour
        axes.plot(seeds.mean[0], place, marker="o", color=colour, markerfacecolor=hollow, ms=5)


def write_json(results: Sequence[dict[str, Any]], target: Path) -> None:
    """Every result, and on which machine."""
    target.write_text(json.dumps({"machine": machine(), "results": list(results)}, indent=1) + "\n")
