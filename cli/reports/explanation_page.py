"""The page of `cli explain --html`: one forecast taken apart, for people who have no terminal."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from cli.reports.conditions import condition_table
from cli.reports.explanation_report import (
    NETWORK_COLUMNS,
    SPARK_WIDTH,
    explained_conditions,
    headline,
    knows_actual,
    neighbour_columns,
    neighbour_rows,
    network_effect,
    network_rows,
    numbers_like,
    part_columns,
    part_rows,
    warnings,
)
from cli.wording import BASE_NAMES, age, minute

if TYPE_CHECKING:
    from cli.reports.pages import TableBlock
    from forecaster.explain import Explanation
    from memory_index.windows import Step

UNDER_IT = (
    " Under the forecast: known columns of the query (thick) and of the neighbours (thin); what is shaded is compared, "
    "and each title says how much the column makes of the squared distances."
)


def write_explanation_page(path: Path, found: Explanation, step: Step, made_by: str) -> None:
    """The picture and the tables of an explanation, for people who have no terminal."""
    from cli.pictures.explanation import draw_explanation
    from cli.reports.pages import PictureBlock, TableBlock, write_page

    picture = PictureBlock(
        draw=lambda shape: draw_explanation(found, step, made_by, shape),
        caption="Yellow is the model, blue the memory, purple the forecast that is mixed of both. The shares of the "
        "forecast are learned in training: they are the same for every window that has neighbours in the same key "
        "spaces." + (UNDER_IT if found.covariates else ""),
        alternative=_alternative(found),
    )
    tables = [
        TableBlock(
            columns=part_columns(found),
            rows=part_rows(found, 2 * SPARK_WIDTH),
            caption="Share of each part in the forecast, its own forecast, and how close its neighbours are",
            text=(0,),
            heading="What the forecast is made of",
        ),
        TableBlock(
            columns=neighbour_columns(found),
            rows=neighbour_rows(found, 2 * SPARK_WIDTH),
            caption="The nearest neighbours of all key spaces, nearest first in units of their key space",
            text=(0, 1, 2),
            names=(1,),
            heading="Which past it looks at",
        ),
    ]
    if found.covariates:
        tables.insert(1, condition_table(explained_conditions(found)))
    if rows := network_rows(found):
        tables.append(
            TableBlock(
                columns=NETWORK_COLUMNS,
                rows=rows,
                caption=f"Trend classes, scales and gates: {network_effect(found)}",
                text=(0, 2, 3),
                heading="What the network says",
            )
        )
    of_network = ""
    if found.feature_gate is not None:
        of_network = (
            "Score: the network's match score. In net: how much a neighbour has in what the network reads of all of "
            "them, not in the forecast. Directions and strengths of the trend each add up to 100%. "
        )
    write_page(
        path,
        f"{found.series_id} at {minute(found.origin_text)}: how the forecast is made",
        [f"{headline(found)}."],
        [picture, *tables, _steps_table(found, step)],
        warnings=[f"{warning[0].upper()}{warning[1:]}." for warning in warnings(found)],
        footer=f"t+1 is the first step after the origin. Nearest: distance of the nearest neighbour; nearer: how "
        f"many of the memory's own windows had one nearer than that. {of_network}"
        "Match: correlation with what really followed. "
        f"Made by cli explain with {made_by}.",
    )


def _steps_table(found: Explanation, step: Step) -> TableBlock:
    """Every step of the forecast in numbers."""
    from cli.reports.pages import TableBlock

    number = numbers_like(found)
    columns = {
        "forecast": found.forecast,
        **{f"q{level:g}": found.quantiles[:, place] for place, level in enumerate(found.levels)},
        "model": found.model_part,
        "memory": found.memory_part,
        **{f"network {number}": values for number, values in enumerate(found.networks, start=1)},
    }
    columns |= {"what followed": found.actual} if knows_actual(found) else {}
    times = found.times[len(found.context) :]
    return TableBlock(
        columns=["time", *columns, "share of the model"],
        rows=[
            [minute(step.isoformat(times[h])), *(number(values[h]) for values in columns.values()), f"{gate:.0%}"]
            for h, gate in enumerate(found.gate)
        ],
        caption=f"{found.series_id}, units of the data",
        text=(0,),
        heading="Every step",
    )


def _alternative(found: Explanation) -> str:
    """The picture for those who cannot see it."""
    parts = ", ".join(f"{BASE_NAMES.get(p.name, p.name)} {p.weight.mean():.0%}" for p in found.parts)
    nearest = found.neighbours[0].record
    text = (
        f"{headline(found)}. Mean shares: {parts}. The nearest neighbour is {nearest.series_id} at "
        f"{minute(nearest.origin)}, {age(nearest.age_days)} earlier."
    )
    if found.trend is not None:
        share, likely = max((share, name) for name, share in found.trend.direction.items())
        text += f" The network gives the trend {likely} a probability of {share:.0%}."
    return text
