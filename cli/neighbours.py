"""`cli index neighbours`: the windows that a memory retrieves for one query window."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.asking import names, numbers, open_with_table, require_targets
from cli.output import note, print_json, print_table
from cli.table_options import reads_table

if TYPE_CHECKING:
    import numpy as np

    from memory_index.inspection import Inspection
    from memory_index.tables.columns import ReadOptions
    from memory_index.windows import StoredWindows

LOWEST_BAR, NUM_BARS = 0x2581, 8  # the Unicode blocks from one eighth to a full one
SPARK_WIDTH = 24


@reads_table
def neighbours(
    ref: Annotated[str, typer.Argument(metavar="REF", help="NAME, NAME@3 or NAME@alias.", show_default=False)],
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
    plot: Annotated[Path | None, typer.Option(help="Draw them into a PNG, SVG or PDF file.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write picture and table as one self-contained page.")] = None,
    indexes_dir: Annotated[Path, typer.Option(help="Folder of the indexes.")] = Path("indexes"),
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")] = False,
    *,
    table_options: ReadOptions,
) -> None:
    """Show what a memory retrieves for the window of a series that ends at a time.

    Only windows that were completely known at that time are shown. One group per scope and view, nearest first;
    weights sum to 1 within a group. `what followed` is drawn from low to high within each row; `match` is its
    correlation with what really followed the query, where FILE knows it.
    """
    from memory_index.inspection import inspect_window
    from memory_index.types import Filter

    require_targets(picture=plot, page=html)
    memory, table, full_ref = open_with_table(ref, file, indexes_dir, table_options)
    where = Filter(
        series_id=(only_series,) if only_series in memory.windows.series_number else names(only_series),
        after=None if after is None else table.step.parse(after),
        before=None if before is None else table.step.parse(before),
    )
    found = inspect_window(
        memory,
        table,
        series,
        table.step.parse(at),
        k=k,
        scopes=names(scope),  # type: ignore[arg-type]
        views=numbers("--view", view),
        where=where,
        min_gap=min_gap,
    )
    if as_json:
        print_json("index-neighbours", document(full_ref, found))
    else:
        _print(full_ref, found)
    if plot is not None:
        from cli.pictures.look import save
        from cli.pictures.neighbours import draw_neighbours

        save(draw_neighbours(found, memory.windows, full_ref), plot)
        note(f"picture: {plot}")
    if html is not None:
        _write_page(html, found, memory.windows, full_ref)
        note(f"page: {html}")


def document(ref: str, found: Inspection) -> dict[str, Any]:
    """The JSON document: the keys that scripts rely on (docs/cli.md), and the memory's forecast."""
    return {
        "ref": ref,
        "query": {
            "series_id": found.series_id,
            "origin": found.origin_text,
            "context": found.context,
            "forecast": found.forecast,
            "actual": found.actual,
        },
        "in_sample": found.in_sample,
        "neighbours": [
            {
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
                "weight": n.weight,
                "match": n.match,
                "context": n.context,
                "future": n.future,
            }
            for n in found.neighbours
        ],
    }


def rows(found: Inspection) -> list[list[object]]:
    """One line per neighbour, for the table."""
    return [
        [
            n.scope,
            n.view,
            n.rank,
            n.series_id,
            _minute(n.origin),
            _minute(n.known_at),
            n.age_days,
            *(f"{part:.3f}" for part in (n.distance, n.shape_distance, n.value_distance, n.weight)),
            sparkline(n.future),
            "" if n.match is None else f"{n.match:+.2f}",
        ]
        for n in found.neighbours
    ]


COLUMNS = ["scope", "view", "#", "series", "origin", "known at", "days ago", "distance", "shape", "value", "weight"]
COLUMNS += ["what followed", "match"]


def _write_page(path: Path, found: Inspection, windows: StoredWindows, ref: str) -> None:
    """The picture and the table of a query, for people who have no terminal."""
    from cli.pages import PictureBlock, TableBlock, write_page
    from cli.pictures.neighbours import draw_neighbours

    nearest = min(found.neighbours, key=lambda n: n.distance)
    picture = PictureBlock(
        draw=lambda shape: draw_neighbours(found, windows, ref, shape),
        caption="The query and its neighbours, each in the query's own units, and where they lie in the history.",
        alternative=f"{found.series_id} up to {found.origin_text} with {len(found.neighbours)} similar windows of the "
        f"past laid over it, what followed each of them, and the forecast made from them. The nearest begins at "
        f"{nearest.start} in series {nearest.series_id}, at a distance of {nearest.distance:.3f}.",
    )
    table = TableBlock(columns=COLUMNS, rows=rows(found), caption="Neighbours, nearest first in each key space")
    write_page(
        path,
        f"{found.series_id} at {found.origin_text}",
        [f"What the memory {ref} retrieves for this window. Every neighbour was completely known at the origin."],
        [picture, table],
        warnings=["A fitted part of this version has seen later steps (in sample)."] if found.in_sample else [],
    )


def _print(ref: str, found: Inspection) -> None:
    sample = "; a fitted part of this version has seen later steps (in sample)" if found.in_sample else ""
    note(f"{ref}: neighbours of {found.series_id} at {found.origin_text}, all known by then{sample}")
    print_table(COLUMNS, rows(found))
    label = f"memory alone, next {len(found.forecast)} steps:"
    note(f"{label} {sparkline(found.forecast)}")
    if found.actual_known:
        note(f"{'what really followed:'.ljust(len(label))} {sparkline(found.actual)}")


def _minute(time: str) -> str:
    """An ISO time for a narrow column: without seconds where they are zero, a space for the T."""
    return time.replace("T", " ").removesuffix(":00")


def sparkline(values: np.ndarray) -> str:
    """Values [n] as a row of bars, from the lowest to the highest of them."""
    import numpy as np

    means = np.array([part.mean() for part in np.array_split(np.asarray(values), min(SPARK_WIDTH, len(values)))])
    span = means.max() - means.min()
    level = (means - means.min()) / span * (NUM_BARS - 1) if span > 0 else np.full(len(means), NUM_BARS // 2)
    return "".join(chr(LOWEST_BAR + round(each)) for each in level)
