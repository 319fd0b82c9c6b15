"""`cli explain`: one forecast of a run taken apart, for a terminal, a script, a picture or a page.

What there is to say of a forecast is computed in `forecaster/explain.py`; here it is put into words. Its picture is
`pictures/explanation.py`.
"""

from __future__ import annotations

from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.asking import open_run_with_table, quantile_levels, require_targets
from cli.output import note, print_json, print_table
from cli.table_options import reads_table
from cli.wording import BASE_NAMES, age, minute, sparkline

if TYPE_CHECKING:
    import numpy as np

    from cli.pages import TableBlock
    from forecaster.explain import Explanation, GatedNeighbour, Part
    from memory_index.tables.columns import ReadOptions
    from memory_index.windows import Step

FULL_BAR, BAR_WIDTH = chr(0x2588), 20  # characters of a bar of 100%
LINE, SPARK_WIDTH = 80, 10  # characters of a line, and of a small drawing in it
SCALE_NAMES = ("micro", "meso", "macro", "widest")  # finest first
NUM_DIGITS = 4  # of the range of the values that are shown


@reads_table
def explain(
    file: Annotated[Path, typer.Argument(help="The data that hold the window.", show_default=False)],
    run: Annotated[Path, typer.Option("--run", help="Folder of a run that 'cli train' made.", show_default=False)],
    series: Annotated[str, typer.Option(help="Series of the forecast.", show_default=False)],
    at: Annotated[str, typer.Option(help="Origin: time of the last step that it knows.", show_default=False)],
    index: Annotated[
        str | None, typer.Option("--index", metavar="REF", help="A newer version of the run's own index.")
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw it into a PNG, SVG or PDF file.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write picture and tables as one self-contained page.")] = None,
    quantiles: Annotated[str, typer.Option(help="Levels of the interval, between 0 and 1, or none.")] = "0.1,0.5,0.9",
    llm: Annotated[
        str | None,
        typer.Option(
            help="Where the run's language model lies now, if it has moved: a folder or ID@REVISION.",
            show_default="where it was",
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    indexes_dir: Annotated[Path, typer.Option(help="Folder of the indexes.")] = Path("indexes"),
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")] = False,
    *,
    table_options: ReadOptions,
) -> None:
    """Take one forecast of a run apart: what it is made of, which past it rests on, and what the network says.

    The numbers are those of the forward pass that makes the forecast of that time. `t+1` is the first step after the
    origin. `nearest` is the distance of the nearest neighbour, and `closer` for how many of the memory's own windows
    it was farther away. Small drawings go from low to high within each row. Of a neighbour, `score` is the network's
    match score, `future` is what followed it, and `match` the correlation of that with what really followed, where FILE
    knows it.
    """
    levels = quantile_levels(quantiles)
    require_targets(picture=plot, page=html)
    from forecaster import explain as explaining
    from forecaster.intervals import require_calibrated

    require_calibrated(levels)
    opened = open_run_with_table(run, index, file, indexes_dir, table_options, device, llm=llm)
    step = opened.table.step
    found = explaining.explain(opened.predictor, opened.memory, opened.table, series, step.parse(at), levels=levels)
    made_by = f"{run} with {opened.ref}"
    if as_json:
        made = {"run": run, "ref": opened.ref, "fingerprint": opened.memory.manifest.fingerprint, "file": str(file)}
        print_json("explain", made | document(found, step))
    else:
        _print(found, made_by)
    if plot is not None:
        from cli.pictures.explanation import draw_explanation
        from cli.pictures.look import save

        save(draw_explanation(found, step, made_by), plot)
        note(f"picture: {plot}")
    if html is not None:
        _write_page(html, found, step, made_by)
        note(f"page: {html}")


def document(found: Explanation, step: Step) -> dict[str, Any]:
    """The JSON document but for what it was made by: every number of an explanation, in its own units."""
    return {
        "query": {
            "series_id": found.series_id,
            "origin": found.origin_text,
            "context": found.context,
            "actual": found.actual,
        },
        "in_sample": found.in_sample,
        "no_close_analogue": found.no_close_analogue,
        "times": [step.isoformat(time) for time in found.times[len(found.context) :]],
        "forecast": found.forecast,
        "quantiles": {f"q{level:g}": found.quantiles[:, number] for number, level in enumerate(found.levels)},
        "gate": found.gate,
        "model_part": found.model_part,
        "memory_part": found.memory_part,
        "network": found.network,
        "parts": found.parts,
        "neighbours": [_neighbour_document(each) for each in found.neighbours],
        "feature_gate": found.feature_gate,
        "confidence": found.confidence,
        "trend": found.trend,
    }


def _neighbour_document(gated: GatedNeighbour) -> dict[str, Any]:
    """As `index neighbours` has it, but `weight` is the one among these neighbours."""
    n = gated.record
    return {
        "scope": n.scope,
        "view": n.view,
        "rank": n.rank,
        "row_id": n.row_id,
        "series_id": n.series_id,
        "start": n.start,
        "origin": n.origin,
        "known_at": n.known_at,
        "distance": n.distance,
        "shape_distance": n.shape_distance,
        "value_distance": n.value_distance,
        "similarity": gated.similarity,
        "match_score": gated.match_score,
        "weight": gated.weight,
        "weight_in_space": n.weight,
        "match": n.match,
        "context": n.context,
        "future": n.future,
    }


# In words


def headline(found: Explanation) -> str:
    """What is forecast, and out of what: one sentence."""
    number = _numbers_like(found)
    within = f"{number(found.forecast.min())} to {number(found.forecast.max())}"
    if len(found.levels) > 1:
        low, high = number(found.quantiles.min()), number(found.quantiles.max())
        within += f" ({interval_name(found.levels)}: {low} to {high})"
    model = found.gate.mean()
    return (
        f"{found.series_id} at {minute(found.origin_text)}, {_next_steps(found)}: {within}, "
        f"memory {1 - model:.0%}, model {model:.0%} on average"
    )


def interval_name(levels: tuple[float, ...]) -> str:
    """What the band between the outermost levels is called."""
    low, high = levels[0], levels[-1]
    return f"{high - low:.0%} interval" if abs(low + high - 1) < 1e-9 else f"q{low:g} to q{high:g}"


def warnings(found: Explanation) -> list[str]:
    """What a reader must know before trusting the forecast, a sentence each."""
    told = []
    shares = sorted(part.share_closer for part in found.parts if part.share_closer is not None)
    if found.no_close_analogue:
        told.append(
            f"no close analogue: in most key spaces the nearest neighbour is farther away than it was for "
            f"{shares[len(shares) // 2]:.0%} of the memory's own windows"
        )
    if found.in_sample:
        told.append(
            "in sample: training or validation may have used this window, or a fitted part of the version has seen "
            "steps later than its origin"
        )
    if empty := [part.name for part in found.parts if part.of_memory and not part.num_neighbours]:
        told.append(f"no neighbour in {', '.join(empty)}: the other parts have their share")
    return told


def network_effect(found: Explanation) -> str:
    """How much of the forecast is the network's, in words."""
    most, span = abs(found.added_by_network).max(), float(found.forecast.max() - found.forecast.min())
    share = most / span if span > 0 else 0.0
    told = f", {share:.0%} of its range" if share >= 0.005 else ""
    return f"it adds at most {_numbers_like(found)(most)} to the forecast{told}"


def _next_steps(found: Explanation) -> str:
    return f"next {len(found.forecast)} steps" if len(found.forecast) > 1 else "next step"


def _numbers_like(found: Explanation) -> Any:
    """How values of this size are written: so many digits as tell apart what the picture shows."""
    import math

    shown = [found.forecast.min(), found.forecast.max(), found.context.min(), found.context.max()]
    span = float(max(shown) - min(shown)) or abs(float(shown[0])) or 1.0
    digits = min(max(NUM_DIGITS - 1 - math.floor(math.log10(span)), 0), 12)
    return lambda value: f"{value:,.{digits}f}"


# Tables


def part_columns(found: Explanation) -> list[str]:
    """Headings of `part_rows`."""
    return ["part", *(f"t+{step + 1}" for step in _some_steps(found)), "mean", "forecast", "found", "nearest", "closer"]


def part_rows(found: Explanation, spark_width: int = SPARK_WIDTH) -> list[list[object]]:
    """The forecast, its two parts and theirs, a line each: shares, its own forecast, and for a key space how many
    neighbours it has and how close they are.
    """
    steps = _some_steps(found)

    def line(name: str, weight: np.ndarray | None, forecast: np.ndarray | None, of: Part | None = None) -> list[object]:
        shares = [""] * (len(steps) + 1) if weight is None else [f"{weight[step]:.0%}" for step in steps]
        shares += [] if weight is None else [f"{weight.mean():.0%}"]
        drawn = "" if forecast is None else sparkline(forecast, spark_width)
        if of is None or not of.of_memory:
            return [name, *shares, drawn, "", "", ""]
        nearest = "" if of.nearest is None else f"{of.nearest:.3f}"
        closer = "" if of.share_closer is None else f"{1 - of.share_closer:.0%}"
        return [name, *shares, drawn, str(of.num_neighbours), nearest, closer]

    def lines(of_memory: bool) -> list[list[object]]:
        return [
            line(f"  {BASE_NAMES.get(part.name, part.name)}", part.weight, _finite(part.forecast), part)
            for part in found.parts
            if part.of_memory == of_memory
        ]

    rows = [line("forecast", None, found.forecast), line("model", found.gate, found.model_part), *lines(False)]
    rows += [line("  network adds", None, found.network)] if found.network.any() else []
    rows += [line("memory", 1 - found.gate, found.memory_part), *lines(True)]
    known = _finite(found.actual)
    return rows + ([] if known is None else [line("what followed", None, known)])


def neighbour_columns(found: Explanation) -> list[str]:
    """Headings of `neighbour_rows`: without what the network or the future would have to tell."""
    gated = [] if found.feature_gate is None else ["score", "weight"]
    return ["series", "origin", "age", "similar", *gated, "future", *(["match"] if _knows_actual(found) else [])]


def neighbour_rows(found: Explanation, spark_width: int = SPARK_WIDTH) -> list[list[object]]:
    """The neighbours that the network looks at one by one, a line each, nearest first."""
    rows: list[list[object]] = []
    for each in found.neighbours:
        n = each.record
        row: list[object] = [n.series_id, minute(n.origin), age(n.age_days), f"{each.similarity:.0%}"]
        if each.match_score is not None and each.weight is not None:
            row += [f"{each.match_score:.2f}", f"{each.weight:.0%}"]
        row.append(sparkline(n.future[: len(found.forecast)], spark_width))
        if _knows_actual(found):
            row.append("" if n.match is None else f"{n.match:+.2f}")
        rows.append(row)
    return rows


def trend_classes(found: Explanation) -> list[tuple[str, float, str]]:
    """Name, probability and what it stands for in this window, of the trend classes: three directions, then four
    strengths. Empty without TAPR.
    """
    if found.trend is None:
        return []
    border = [_numbers_like(found)(each) for each in found.trend.borders]
    means = [f"mean above {border[3]}", f"{border[1]} to {border[3]}", f"mean below {border[1]}"]
    means += [f"mean above {border[4]}", f"{border[2]} to {border[4]}"]
    means += [f"{border[0]} to {border[2]}", f"mean below {border[0]}"]
    shares = {**found.trend.direction, **found.trend.magnitude}
    return [(name, share, each) for (name, share), each in zip(shares.items(), means, strict=True)]


def scales(found: Explanation) -> list[tuple[str, float, int]]:
    """Name, share and steps of each scale, finest first. Empty without TAPR."""
    if found.trend is None:
        return []
    return list(zip(SCALE_NAMES, found.trend.scale_shares, found.trend.scale_steps, strict=False))


NETWORK_COLUMNS = ["network", "share", "", "which is"]


def network_rows(found: Explanation) -> list[list[object]]:
    """What the network says: trend classes, scales, and the gate over features; empty where there is no network."""
    told: list[tuple[str, float, str]] = []
    if found.trend is not None:
        told += [(f"trend {name}", share, means) for name, share, means in trend_classes(found)]
        told += [(f"scale {name}", share, f"averages of {steps} steps") for name, share, steps in scales(found)]
    if found.feature_gate is not None and found.confidence is not None:
        told.append(("feature gate", found.feature_gate, "1 looks at the window, 0 at its neighbours"))
        told.append(("confidence", found.confidence, "sum of similarity x score"))
    return [[name, f"{share:.0%}", FULL_BAR * round(share * BAR_WIDTH), meaning] for name, share, meaning in told]


def _some_steps(found: Explanation) -> list[int]:
    """The first, the middle and the last step."""
    horizon = len(found.forecast)
    return sorted({0, (horizon - 1) // 2, horizon - 1})


def _finite(values: np.ndarray) -> np.ndarray | None:
    """The values if all of them are known."""
    import numpy as np

    return values if np.isfinite(values).all() else None


def _knows_actual(found: Explanation) -> bool:
    return _finite(found.actual) is not None


def _print(found: Explanation, made_by: str) -> None:
    note(f"{made_by}:")
    print_table(part_columns(found), part_rows(found), title=fill(headline(found), LINE))
    typer.echo()
    print_table(neighbour_columns(found), neighbour_rows(found), title="the nearest neighbours, one by one")
    if rows := network_rows(found):
        typer.echo()
        print_table(NETWORK_COLUMNS, rows, title=f"the network: {network_effect(found)}")
    for warning in warnings(found):
        note(warning)


# The page


def _write_page(path: Path, found: Explanation, step: Step, made_by: str) -> None:
    """The picture and the tables of an explanation, for people who have no terminal."""
    from cli.pages import PictureBlock, TableBlock, write_page
    from cli.pictures.explanation import draw_explanation

    picture = PictureBlock(
        draw=lambda shape: draw_explanation(found, step, made_by, shape),
        caption="Yellow is the model, blue the memory, purple the forecast that is mixed of both. The shares of the "
        "forecast are learned in training: they are the same for every window that has neighbours in the same key "
        "spaces.",
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
            caption="The nearest neighbours of all key spaces, nearest first",
            text=(0, 1),
            heading="Which past it looks at",
        ),
    ]
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
    write_page(
        path,
        f"{found.series_id} at {minute(found.origin_text)}: how the forecast is made",
        [f"{headline(found)}."],
        [picture, *tables, _steps_table(found, step)],
        warnings=[f"{warning[0].upper()}{warning[1:]}." for warning in warnings(found)],
        footer=f"t+1 is the first step after the origin. Nearest: distance of the nearest neighbour; closer: for how "
        f"many of the memory's own windows it was farther away. Score: the network's match score. Match: correlation "
        f"with what really followed. Made by cli explain with {made_by}.",
    )


def _steps_table(found: Explanation, step: Step) -> TableBlock:
    """Every step of the forecast in numbers."""
    from cli.pages import TableBlock

    number = _numbers_like(found)
    columns = {
        "forecast": found.forecast,
        **{f"q{level:g}": found.quantiles[:, place] for place, level in enumerate(found.levels)},
        "model": found.model_part,
        "memory": found.memory_part,
        "network": found.network,
    }
    columns |= {"what followed": found.actual} if _knows_actual(found) else {}
    times = found.times[len(found.context) :]
    return TableBlock(
        columns=["time", *columns, "share of the model"],
        rows=[
            [minute(step.isoformat(times[h])), *(number(values[h]) for values in columns.values()), f"{gate:.0%}"]
            for h, gate in enumerate(found.gate)
        ],
        caption=f"{found.series_id}, units of the data; network: what it adds to the model's part",
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
