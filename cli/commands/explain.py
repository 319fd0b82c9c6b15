"""`cli explain`: one forecast of a run taken apart, for a terminal, a script, a picture or a page."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Annotated

import typer

from cli.opening import open_run_with_table, tell_joint, tell_schedule, with_scenario
from cli.options import REF, AsJson, Device, Indexes, RunState, SetKnown, asks_memory, reads_table
from cli.output import note, print_json, print_table
from cli.parsing import quantile_levels
from cli.reports.conditions import asked_with, condition_lines
from cli.reports.explanation_page import write_explanation_page
from cli.reports.explanation_report import (
    NETWORK_COLUMNS,
    explained_conditions,
    headline,
    neighbour_columns,
    neighbour_rows,
    network_effect,
    network_rows,
    part_columns,
    part_rows,
    warnings,
)
from cli.targets import require_targets

if TYPE_CHECKING:
    from forecaster.explain import Explanation
    from memory_index.tables.columns import ReadOptions
    from memory_index.windows import Step

LINE = 80  # characters


@reads_table
@asks_memory
def explain(
    file: Annotated[Path, typer.Argument(help="The data that hold the window.", show_default=False)],
    run: Annotated[Path, typer.Option("--run", help="Folder of a run that 'cli train' made.", show_default=False)],
    series: Annotated[str, typer.Option(help="Series of the forecast.", show_default=False)],
    at: Annotated[str, typer.Option(help="Origin: time of the last step that it knows.", show_default=False)],
    index: Annotated[
        str | None,
        typer.Option(
            "--index", metavar="REF", help=f"A newer version of the run's own, or where that lies now: {REF}."
        ),
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw it into a PNG, SVG or PDF file.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write picture and tables as one self-contained page.")] = None,
    quantiles: Annotated[str, typer.Option(help="Levels of the interval, between 0 and 1, or none.")] = "0.1,0.5,0.9",
    set_known: SetKnown = None,
    llm: Annotated[
        str | None,
        typer.Option(
            help="Where the run's language model lies now, if it has moved: a folder or ID@REVISION.",
            show_default="where it was",
        ),
    ] = None,
    state: RunState = None,
    device: Device = "auto",
    as_json: AsJson = False,
    *,
    indexes: Indexes,
    table_options: ReadOptions,
) -> None:
    """Take one forecast of a run apart: what it is made of, which past it rests on, and what a network says of it.

    The numbers are those of the forward pass that makes the forecast of that time. `t+1` is the first step after the
    origin. `nearest` is the distance of the nearest neighbour, and `nearer` how many of the memory's own windows had
    one nearer than that. Small drawings go from low to high in each row. Of a neighbour, `future` is what followed it,
    and `match` the correlation of that with what really followed, where FILE knows it. Of a run with a network, `score`
    is its match score of a neighbour, and `in net` how much that has in what the network reads of all of them (not in
    the forecast); directions and strengths of the trend are told apart: each adds up to 100%.
    """
    require_targets(picture=plot, page=html)
    from forecaster import explain as explaining
    from forecaster.runs.intervals import require_calibrated

    require_calibrated(levels := quantile_levels(quantiles))
    opened = open_run_with_table(run, index, file, indexes, table_options, device, llm=llm, state=state)
    tell_schedule(opened.memory, origin := (step := opened.table.step).parse(at))
    explained = partial(explaining.explain, opened.predictor, opened.memory, series_id=series, at=origin, levels=levels)
    found = explained(with_scenario(opened.table, opened.memory, set_known, at=origin))
    plain = explained(opened.table) if set_known else None
    made_by = f"{run} with {opened.ref}{asked_with(set_known)}"
    tell_joint(opened.memory, {part.name.split("-")[0] for part in found.parts if part.num_neighbours}, opened.table)
    if as_json:
        made = {"run": run, "ref": opened.ref, "fingerprint": opened.memory.manifest.fingerprint, "file": str(file)}
        print_json("explain", made | found.to_document(step) | _scenario(set_known, plain))
    else:
        _print(found, made_by, plain)
    if plot is not None:
        _draw(plot, found, step, made_by)
    if html is not None:
        write_explanation_page(html, found, step, made_by)
        note(f"page: {html}")


def _scenario(set_known: list[str] | None, plain: Explanation | None) -> dict[str, object]:
    """What the document says of a scenario; nothing without one."""
    return {} if plain is None else {"scenario": set_known, "plain_forecast": plain.forecast}


def _compare(found: Explanation, plain: Explanation) -> None:
    """The forecast of a scenario beside the one without it."""
    change = found.forecast - plain.forecast
    note(
        f"the scenario's forecast is {float(found.forecast.mean()):.4g} on average, without it "
        f"{float(plain.forecast.mean()):.4g}: {float(change.min()):+.4g} to {float(change.max()):+.4g} by step"
    )


def _draw(path: Path, found: Explanation, step: Step, made_by: str) -> None:
    from cli.pictures.explanation import draw_explanation
    from cli.pictures.look import save

    save(draw_explanation(found, step, made_by), path)
    note(f"picture: {path}")


def _print(found: Explanation, made_by: str, plain: Explanation | None) -> None:
    note(f"{made_by}:")
    print_table(part_columns(found), part_rows(found), title=fill(headline(found), LINE))
    typer.echo()
    print_table(neighbour_columns(found), neighbour_rows(found), title="the nearest neighbours, one by one", gap=1)
    for line in condition_lines(explained_conditions(found)):
        note(line)
    if rows := network_rows(found):
        typer.echo()
        print_table(NETWORK_COLUMNS, rows, title=f"the network: {network_effect(found)}")
    if plain is not None:
        _compare(found, plain)
    for warning in warnings(found):
        note(warning)
