"""`cli forecast`: what a run, or a memory alone, says of the future."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.opening import (
    open_run_with_table,
    open_with_table,
    tell_bounds,
    tell_ends,
    tell_series,
    tell_skipped,
    updated_ref,
    with_known_ahead,
)
from cli.options import (
    AsJson,
    File,
    Future,
    Index,
    Indexes,
    MemoryK,
    OnEmpty,
    RunDevice,
    RunFolder,
    RunLlm,
    Scopes,
    SetKnown,
    Strict,
    Views,
    asks_memory,
    reads_table,
)
from cli.output import note, print_json
from cli.parsing import memory_options, quantile_levels
from cli.targets import require_targets, write_file

if TYPE_CHECKING:
    import pandas as pd

    from memory_index.bounds import Bounds
    from memory_index.memory import Memory
    from memory_index.tables.columns import ReadOptions
    from memory_index.tables.series import SeriesTable

Lower = Annotated[
    float | None,
    typer.Option(
        help="No forecast and no quantile is below it; -inf for no such bound.", show_default="0 for counts, else none"
    ),
]
Upper = Annotated[float | None, typer.Option(help="No forecast and no quantile is above it.", show_default="none")]
UpdateIndex = Annotated[
    bool,
    typer.Option(
        "--update-index",
        help="First append what is new in FILE to the newest version, as the next one. Nothing is trained again.",
    ),
]


@reads_table
@asks_memory
def forecast(
    file: File,
    run: RunFolder = None,
    index: Index = None,
    out: Annotated[Path | None, typer.Option(help="Write a .csv or .parquet file instead of printing CSV.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw it into a PNG, SVG or PDF file.")] = None,
    quantiles: Annotated[str, typer.Option(help="Levels between 0 and 1, or none.")] = "0.1,0.5,0.9",
    lower: Lower = None,
    upper: Upper = None,
    future: Future = None,
    set_known: SetKnown = None,
    update_index: UpdateIndex = False,
    memory_k: MemoryK = None,
    scopes: Scopes = None,
    views: Views = None,
    on_empty: OnEmpty = None,
    strict: Strict = False,
    llm: RunLlm = None,
    device: RunDevice = "auto",
    as_json: AsJson = False,
    *,
    indexes: Indexes,
    table_options: ReadOptions,
) -> None:
    """Forecast the next steps of every series of FILE: by a trained run, or with --index alone from the memory.

    A long table in original units: unique_id, ds, yhat and one column per quantile (q0.1). A series that was never seen
    is forecast from windows of all series (scope pooled); one with too short a history is named, and stops no other.
    """
    from memory_index.bounds import Bounds

    require_targets(table=out, picture=plot)
    bounds, levels = Bounds(lower=lower, upper=upper), quantile_levels(quantiles)
    options = memory_options(run, index, llm=llm, memory_k=memory_k, scopes=scopes, views=views, on_empty=on_empty)
    ahead = partial(with_known_ahead, options=table_options, future=future, set_known=set_known)
    if run is None:
        from memory_index import memory_only

        assert index is not None, "checked above"
        ref = updated_ref(index, file, indexes, table_options) if update_index else index
        memory, table, ref = open_with_table(ref, file, indexes, table_options)
        tell_series(table, memory.manifest, ref, memory.manifest.series_ids, to=ref)
        table = ahead(table, memory)
        result = memory_only.forecast(memory, table, quantiles=levels, options=options, bounds=bounds)
        horizon, by = memory.windows.spec.horizon, f"{ref}, memory alone"
    else:
        from forecaster.forecast import forecast as forecast_by_run
        from forecaster.runs.intervals import require_calibrated

        require_calibrated(levels)
        opened = open_run_with_table(run, index, file, indexes, table_options, device, llm=llm, update=update_index)
        memory, ref, predictor = opened.memory, opened.ref, opened.predictor
        result = forecast_by_run(
            predictor, memory, table := ahead(opened.table, memory), quantiles=levels, bounds=bounds
        )
        horizon, by = predictor.config.model.horizon, f"{run} with {ref}"
    _tell(result, table, memory, bounds, strict=strict)
    result.attrs |= {"ref": ref, "fingerprint": memory.manifest.fingerprint, "run": run and str(run)}
    result.attrs |= {"scenario": set_known} if set_known else {}  # attributes travel inside a Parquet file
    _draw(plot, table, result, by)
    _write(result, f"{horizon} steps by {by}", out, to_stdout=not as_json)
    if as_json:
        print_json("forecast", forecast_document(result, table, file=file, horizon=horizon, out=out))


def _write(result: pd.DataFrame, what: str, out: Path | None, *, to_stdout: bool) -> None:
    """Write the file that is asked for; without one, print it if it is to go to stdout."""
    if out is not None:
        write_file(out, _as_file(result, out.suffix.lower()))
        note(f"{result['unique_id'].nunique()} series x {what}: {out}")
    elif to_stdout:
        typer.echo(result.to_csv(index=False), nl=False)


def _tell(result: pd.DataFrame, table: SeriesTable, memory: Memory, bounds: Bounds, *, strict: bool) -> None:
    """What to know of a forecast beside its numbers."""
    from memory_index.skipped import Skipped

    skipped = [Skipped(**each) for each in result.attrs["skipped"]]
    tell_skipped(skipped, "not forecast", source=table.source, strict=strict)
    for warning in result.attrs.get("warnings", ()):
        note(f"warning: {warning}")
    tell_ends(table, memory)
    tell_bounds(table, memory, bounds)


def forecast_document(
    result: pd.DataFrame, table: SeriesTable, *, file: Path, horizon: int, out: Path | None
) -> dict[str, Any]:
    """The JSON document of `forecast`; the forecast itself is null where it is written to a file."""
    rows = result.assign(ds=[time.isoformat() for time in result["ds"]]).to_dict("records")
    return {
        **{str(name): value for name, value in result.attrs.items()},
        "file": str(file),
        "horizon": horizon,
        "out": out,
        "num_series": int(result["unique_id"].nunique()),
        "forecast": None if out else rows,
    }


def _draw(path: Path | None, table: SeriesTable, result: pd.DataFrame, by: str) -> None:
    """Draw the picture that is asked for."""
    if path is None:
        return
    from cli.pictures.forecast import draw_forecast
    from cli.pictures.look import save

    save(draw_forecast(table, result, f"Forecast of {table.source} by {by}"), path)
    note(f"picture: {path}")


def _as_file(result: pd.DataFrame, suffix: str) -> bytes:
    return result.to_parquet(index=False) if suffix == ".parquet" else result.to_csv(index=False).encode()
