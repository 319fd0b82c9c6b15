"""`cli index neighbours`: the windows that a memory retrieves for one query window."""

from __future__ import annotations

import shlex
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.opening import open_with_table, tell_joint, tell_schedule, with_scenario
from cli.options import REF, AsJson, Indexes, SetKnown, asks_memory, reads_table
from cli.output import note, print_json, print_table
from cli.parsing import names, numbers
from cli.reports.conditions import asked_with, condition_lines, condition_rows, condition_table
from cli.targets import require_targets
from cli.wording import SPARK_WIDTH, age, course, minute, no_close_analogue, sparkline

if TYPE_CHECKING:
    from memory_index.inspection import Inspection
    from memory_index.tables.columns import ReadOptions
    from memory_index.windows import StoredWindows

LEAST_SPARK = 6
COLUMNS = ["#", "series", "origin", "age", "dist.", "shape", "value", "weight", "future", "match"]
OTHER_COLUMNS = 60  # characters of a line of the table beside the series and what followed it
UNDER_IT = (
    "Under it: known columns of the query (thick) and of the same neighbours; what is shaded is compared, and each "
    "title says how much the column makes of the squared distances. "
)


@reads_table
@asks_memory
def neighbours(
    ref: Annotated[str, typer.Argument(metavar="REF", help=f"{REF}.", show_default=False)],
    file: Annotated[Path, typer.Argument(help="The data that hold the query window.", show_default=False)],
    series: Annotated[str, typer.Option(help="Series of the query.", show_default=False)],
    at: Annotated[str, typer.Option(help="Origin: time of the last step that the query knows.", show_default=False)],
    k: Annotated[int, typer.Option("-k", help="Neighbours per key space.", min=1)] = 5,
    scope: Annotated[str | None, typer.Option(help="own, joint or pooled; several as own,joint. Default: all.")] = None,
    view: Annotated[str | None, typer.Option(help="Compare only the last so many steps; several as 96,336.")] = None,
    only_series: Annotated[str | None, typer.Option(help="Pooled: neighbours from these series only, as A,B.")] = None,
    after: Annotated[str | None, typer.Option(help="Only neighbours with an origin at this time or later.")] = None,
    before: Annotated[str | None, typer.Option(help="Only neighbours with an origin at this time or earlier.")] = None,
    min_gap: Annotated[int, typer.Option(help="Steps between neighbours, so that 5 are 5 episodes.", min=0)] = 0,
    set_known: SetKnown = None,
    plot: Annotated[Path | None, typer.Option(help="Draw them into a PNG, SVG or PDF file.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write picture and table as one self-contained page.")] = None,
    as_json: AsJson = False,
    *,
    indexes: Indexes,
    table_options: ReadOptions,
) -> None:
    """Show what a memory retrieves for the window of a series that ends at a time.

    Only windows that were completely known at that time are shown. One group per key space (scope and view), nearest
    first; weights sum to 1 within a group. `future` is what followed there, drawn from low to high within each row;
    `match` is its correlation with what really followed the query, where FILE knows it. The forecast of the memory
    alone is made of 50 neighbours per key space, however many are shown.
    """
    from memory_index.closeness import usual_distances
    from memory_index.inspection import inspect_window
    from memory_index.types import Filter

    require_targets(picture=plot, page=html)
    memory, table, full_ref = open_with_table(ref, file, indexes, table_options)
    table = with_scenario(table, memory, set_known, at=(origin := table.step.parse(at)))
    tell_schedule(memory, origin)
    where = Filter(
        series_id=(only_series,) if only_series in memory.windows.series_number else names(only_series),
        after=None if after is None else table.step.parse(after),
        before=None if before is None else table.step.parse(before),
    )
    found = inspect_window(
        memory,
        table,
        series,
        origin,
        k=k,
        scopes=names(scope),  # type: ignore[arg-type]
        views=numbers("--view", view),
        where=where,
        min_gap=min_gap,
        usual=usual_distances(memory),
    )
    if scope is None:
        tell_joint(memory, {each.scope for each in found.neighbours}, table)
    print_json("index-neighbours", document(full_ref, found)) if as_json else _print(full_ref, found)
    if plot is not None:
        _write_picture(plot, found, memory.windows, full_ref + asked_with(set_known))
    if html is not None:
        _write_page(html, found, memory.windows, full_ref, file, set_known or [])
        note(f"page: {html}")


def document(ref: str, found: Inspection) -> dict[str, Any]:
    """The JSON document: the keys that scripts rely on (docs/cli.md), and the memory's forecast."""
    from memory_index.conditions import ahead_in_words

    covariates = ahead_in_words(found.covariates, found.categories, len(found.forecast))
    beside = {"covariates": covariates} if covariates else {}
    return {
        "ref": ref,
        "query": {
            "series_id": found.series_id,
            "origin": found.origin_text,
            "context": found.context,
            "forecast": found.forecast,
            "actual": found.actual,
            **beside,
        },
        "in_sample": found.in_sample,
        "share_closer": {str(space): share for space, share in found.share_closer.items()},
        "no_close_analogue": found.no_close_analogue,
        "neighbours": [n.to_dict() for n in found.neighbours],
    }


def key_spaces(found: Inspection) -> list[tuple[str, int]]:
    """Scope and view of each group of neighbours, in the memory's order."""
    return list(dict.fromkeys((n.scope, n.view) for n in found.neighbours))


def columns(found: Inspection) -> list[str]:
    """Headings of `rows`: without `match` while what really followed is not known, with `cond.` for covariates."""
    headings = [*COLUMNS[:7], *(["cond."] if found.covariates else []), *COLUMNS[7:]]
    return headings if found.actual_known else headings[:-1]


def rows(found: Inspection, space: tuple[str, int], spark_width: int = SPARK_WIDTH) -> list[list[object]]:
    """One line per neighbour of a key space, for a table."""
    return [
        [
            n.rank,
            n.series_id,
            minute(n.origin),
            age(n.age_days),
            *(f"{part:.3f}" for part in (n.distance, n.shape_distance, n.value_distance)),
            *([] if n.condition_distance is None else [f"{n.condition_distance:.3f}"]),
            f"{n.weight:.3f}",
            sparkline(n.future, spark_width),
            *(["" if n.match is None else f"{n.match:+.2f}"] if found.actual_known else []),
        ]
        for n in found.neighbours
        if (n.scope, n.view) == space
    ]


def _print(ref: str, found: Inspection) -> None:
    note(f"{ref}: neighbours of {found.series_id} at {minute(found.origin_text)}, all known by then")
    width = _spark_width(found)
    for space in key_spaces(found):
        print_table(columns(found), rows(found, space, width), title=_title(found, space), gap=1)
    for line in condition_lines(_conditions(found)):
        note(line)
    num = len(found.forecast)
    ahead = "the next step" if num == 1 else f"the next {num} steps"
    note(f"{ahead}, by the memory alone: {course(found.forecast)}")
    if found.actual_known:
        note(f"{'what really followed:'.rjust(len(ahead) + 22)} {course(found.actual)}")
    for warning in warnings(found):
        note(warning)


def _conditions(found: Inspection) -> list[list[str]]:
    return condition_rows(found.covariates, found.categories, found.neighbours, len(found.forecast))


def warnings(found: Inspection) -> list[str]:
    """What a reader must know before trusting what is shown."""
    told = [no_close_analogue(found.share_closer.values())] if found.no_close_analogue else []
    return told + (
        ["in sample: a fitted part of this version has seen steps later than this origin"] if found.in_sample else []
    )


def _title(found: Inspection, space: tuple[str, int]) -> str:
    share = next((s for key, s in found.share_closer.items() if (key.scope, key.view) == space), None)
    usual = "" if share is None else f": {share:.0%} of the memory's own windows had a nearer neighbour"
    return f"{space[0]}-{space[1]}{usual}"


def _spark_width(found: Inspection) -> int:
    """As wide as the terminal leaves room for; all of it where there is none."""
    if not sys.stdout.isatty():
        return SPARK_WIDTH
    others = OTHER_COLUMNS + max(len(COLUMNS[1]), *(len(n.series_id) for n in found.neighbours))
    return max(LEAST_SPARK, min(SPARK_WIDTH, shutil.get_terminal_size().columns - others))


def _write_picture(path: Path, found: Inspection, windows: StoredWindows, ref: str) -> None:
    from cli.pictures.look import save
    from cli.pictures.neighbours import draw_neighbours

    save(draw_neighbours(found, windows, ref), path)
    note(f"picture: {path}")


def _write_page(
    path: Path, found: Inspection, windows: StoredWindows, ref: str, file: Path, set_known: list[str]
) -> None:
    """The picture and the tables of a query, for people who have no terminal."""
    from cli.pictures.neighbours import draw_neighbours
    from cli.reports.pages import PictureBlock, TableBlock, write_page

    nearest = min(found.neighbours, key=lambda n: n.distance)
    at, asked = minute(found.origin_text), ref + asked_with(set_known)
    scenario = [part for change in set_known for part in ("--set-known", change)]
    picture = PictureBlock(
        draw=lambda shape: draw_neighbours(found, windows, asked, shape),
        caption="Thick line: the query, up to its origin. Thin lines: the nearest window of each similar episode of "
        "the past, in the query's own units, and what followed it, as it would follow here. Band: where most of what "
        "followed the memory's neighbours lies. "
        + (UNDER_IT if found.covariates else "")
        + "Below: the history that the memory holds, and where the neighbours lie in it.",
        alternative=f"{found.series_id} up to {at} with {len(found.neighbours)} similar windows of the "
        f"past laid over it, what followed each of them, and the forecast made from them. The nearest begins at "
        f"{minute(nearest.start)} in series {nearest.series_id}, at a distance of {nearest.distance:.3f}.",
    )
    tables = [
        TableBlock(
            columns=columns(found),
            rows=rows(found, space),
            caption=_title(found, space),
            text=(1, 2, columns(found).index("future")),
            names=(1,),
            heading="Neighbours, nearest first" if number == 0 else "",
        )
        for number, space in enumerate(key_spaces(found))
    ]
    write_page(
        path,
        f"{found.series_id} at {at}",
        [f"What the memory {asked} retrieves for this window. Every neighbour was completely known at the origin."],
        [picture, *([condition_table(_conditions(found))] if found.covariates else []), *tables],
        warnings=warnings(found),
        footer="Distances are in spreads of a window. Match: correlation with what really followed. "
        + ("Cond.: the part of the known covariates over the horizon. " if found.covariates else "")
        + "Made by: "
        + shlex.join(
            ["cli", "index", "neighbours", ref, str(file), "--series", found.series_id, "--at", at, *scenario]
        ),
    )
