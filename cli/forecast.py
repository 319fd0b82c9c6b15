"""`cli forecast` and `cli evaluate`: what a memory says of the future, and how right it would have been."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.asking import names, numbers, open_with_table, require_targets
from cli.output import note, print_json, print_table, progress
from cli.table_options import reads_table

if TYPE_CHECKING:
    import pandas as pd

    from memory_index.memory_only import Evaluation, MemoryOptions
    from memory_index.tables.columns import ReadOptions

Index = Annotated[str, typer.Option("--index", metavar="REF", help="NAME, NAME@3 or NAME@alias.", show_default=False)]
File = Annotated[Path, typer.Argument(help="CSV or Parquet, wide or long.", show_default=False)]
MemoryK = Annotated[int, typer.Option(help="Neighbours per key space that make the forecast.", min=1)]
Scopes = Annotated[
    str | None, typer.Option(help="own,joint,pooled: search only these. Default: all that can be asked.")
]
Views = Annotated[str | None, typer.Option(help="Compare only the last so many steps, as 96,336. Default: all views.")]
OnEmpty = Annotated[str, typer.Option(help="A window that nothing is known about yet: error, or its last-value.")]
IndexesDir = Annotated[Path, typer.Option(help="Folder of the indexes.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]


@reads_table
def forecast(
    file: File,
    index: Index,
    out: Annotated[Path | None, typer.Option(help="Write a .csv or .parquet file instead of printing CSV.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw it into a PNG, SVG or PDF file.")] = None,
    quantiles: Annotated[str, typer.Option(help="Levels between 0 and 1, or none.")] = "0.1,0.5,0.9",
    memory_k: MemoryK = 50,
    scopes: Scopes = None,
    views: Views = None,
    on_empty: OnEmpty = "error",
    indexes_dir: IndexesDir = Path("indexes"),
    as_json: AsJson = False,
    *,
    table_options: ReadOptions,
) -> None:
    """Forecast the next steps of every series of FILE from the memory alone; nothing is trained.

    A long table in original units: unique_id, ds, yhat and one column per quantile (q0.1). A series that the index has
    never seen is forecast from windows of all series (scope pooled). Only windows known by the last step of FILE are
    used.
    """
    import pandas as pd

    from memory_index import memory_only

    levels = _levels(quantiles)
    require_targets(table=out, picture=plot)
    memory, table, ref = open_with_table(index, file, indexes_dir, table_options)
    options = _options(memory_k, scopes, views, on_empty)
    result = memory_only.forecast(memory, table, quantiles=levels, options=options)
    if out is not None:
        _write(result, out)
        note(f"{len(table.series)} series x {memory.windows.spec.horizon} steps: {out}")
    if plot is not None:
        from cli.pictures import draw_forecast, save

        save(draw_forecast(table, result, f"Forecast of {table.source} by {ref}, memory alone"), plot)
        note(f"picture: {plot}")
    if as_json:
        document = {"ref": ref, "run": None, "file": str(file), "horizon": memory.windows.spec.horizon, "out": out}
        rows = result.assign(ds=[time.isoformat() for time in result["ds"]]).to_dict("records")
        print_json("forecast", document | {"num_series": len(table.series), "forecast": None if out else rows})
    elif out is None:
        typer.echo(pd.DataFrame(result).to_csv(index=False), nl=False)


@reads_table
def evaluate(
    file: File,
    index: Index,
    split: Annotated[str, typer.Option(help="Part to score: train, val or test.")] = "test",
    baselines: Annotated[bool, typer.Option("--baselines", help="Also score every key space by itself.")] = False,
    memory_k: MemoryK = 50,
    scopes: Scopes = None,
    views: Views = None,
    on_empty: OnEmpty = "error",
    indexes_dir: IndexesDir = Path("indexes"),
    as_json: AsJson = False,
    *,
    table_options: ReadOptions,
) -> None:
    """Score the memory's forecast of every window of a part of the version's split; nothing is trained.

    MSE and MAE are in standardised units (the training part's mean and standard deviation), over all windows, steps and
    series. Beside it stand last value, seasonal naive and a linear forecast (the ridge of the index's longest view).
    """
    from memory_index import memory_only

    memory, table, ref = open_with_table(index, file, indexes_dir, table_options)
    with progress(f"scoring {split} windows") as report:
        result = memory_only.evaluate(
            memory, table, split, options=_options(memory_k, scopes, views, on_empty), report=report
        )
    if as_json:
        print_json("evaluate", evaluation_document(ref, result))
    else:
        _print_evaluation(ref, result, baselines)


def evaluation_document(ref: str, result: Evaluation) -> dict[str, Any]:
    """The JSON document of `evaluate`; what the memory alone does not have is null."""
    return {
        "run": None,
        "ref": ref,
        "split": result.part,
        "num_windows": result.num_windows,
        "num_series": result.num_series,
        "num_scored": result.num_scored,
        "num_without_neighbours": result.num_without_neighbours,
        "mse": result.mse,
        "mae": result.mae,
        "direction_accuracy": None,
        "gate": None,
        "baselines": result.baselines,
        "key_spaces": result.by_space,
        "in_sample": result.in_sample,
        "seconds": round(result.seconds, 3),
    }


def _print_evaluation(ref: str, result: Evaluation, with_spaces: bool) -> None:
    named = [
        ("memory alone", result.baselines.memory_only),
        ("linear (ridge)", result.baselines.linear),
        ("seasonal naive", result.baselines.seasonal_naive),
        ("last value", result.baselines.last_value),
    ]
    named += [(f"  key space {name}", score) for name, score in result.by_space.items()] if with_spaces else []
    rows = [[name, f"{score.mse:.4f}", f"{score.mae:.4f}"] if score else [name, "-", "-"] for name, score in named]
    title = f"{ref}, {result.part}: {result.num_windows:,} origins x {result.num_series} series"
    print_table(["forecast", "MSE", "MAE"], rows, title=title)
    note(f"standardised units; {result.seconds:.1f} s")
    if result.num_without_neighbours:
        note(
            f"{result.num_without_neighbours} of {result.num_scored} windows had no neighbour: the last value stands in"
        )
    if result.in_sample:
        note("in sample: fitted parts of this version have seen steps later than some origins")


def _options(memory_k: int, scopes: str | None, views: str | None, on_empty: str) -> MemoryOptions:
    from memory_index.memory_only import MemoryOptions

    return MemoryOptions(k=memory_k, scopes=names(scopes), views=numbers("--views", views), on_empty=on_empty)  # type: ignore[arg-type]


def _levels(text: str) -> tuple[float, ...]:
    from memory_index.errors import UsageError

    if text.strip().lower() in ("", "none"):
        return ()
    try:
        levels = tuple(sorted(float(part) for part in text.split(",")))
    except ValueError:
        levels = ()
    if not levels or not all(0 < level < 1 for level in levels) or len(set(levels)) != len(levels):
        raise UsageError(
            f"--quantiles {text}: levels are different numbers between 0 and 1", hint="for example 0.1,0.5,0.9"
        )
    return levels


def _write(result: pd.DataFrame, out: Path) -> None:
    if out.suffix.lower() == ".parquet":
        result.to_parquet(out, index=False)
    else:
        result.to_csv(out, index=False)
