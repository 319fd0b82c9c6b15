"""`cli forecast`: what a run, or a memory alone, says of the future."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.opening import (
    open_run_with_table,
    open_with_table,
    tell_bounds,
    tell_ends,
    tell_few,
    tell_series,
    tell_skipped,
    updated_ref,
    with_known_ahead,
)
from cli.options import (
    AsJson,
    File,
    HalfLife,
    Index,
    Indexes,
    KnownAhead,
    MemoryK,
    OnEmpty,
    RunDevice,
    RunFolder,
    RunLlm,
    RunState,
    Scopes,
    Strict,
    Views,
    asks_memory,
    reads_future,
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
Update = Annotated[
    bool,
    typer.Option(
        "--update",
        help="With --run: as --update-index, and the run learns what has become known, as its next state.",
    ),
]


@reads_table
@reads_future
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
    update_index: UpdateIndex = False,
    update: Update = False,
    half_life: HalfLife = None,
    state: RunState = None,
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
    ahead: KnownAhead,
) -> None:
    """Forecast the next steps of every series of FILE: by a trained run, or with --index alone from the memory.

    A long table in original units: unique_id, ds, yhat and one column per quantile (q0.1). A series that was never seen
    is forecast from windows of all series (scope pooled); one with too short a history is named, and stops no other.
    """
    bounds, levels = _bounds(lower, upper), quantile_levels(quantiles)
    require_targets(table=out, picture=plot)
    how: dict[str, Any] = {"memory_k": memory_k, "scopes": scopes, "views": views, "on_empty": on_empty}
    options = memory_options(run, index, llm=llm, state=state, **how)
    grow = _growth(run, update=update, half_life=half_life, state=state)
    if run is None:
        from memory_index import memory_only

        memory, table, ref = _opened_memory(index or "", file, indexes, table_options, update=update_index)
        table = with_known_ahead(table, memory, table_options, ahead)
        result = memory_only.forecast(memory, table, quantiles=levels, options=options, bounds=bounds)
        horizon, by = memory.windows.spec.horizon, f"{ref}, memory alone"
    else:
        from forecaster.forecast import forecast as forecast_by_run
        from forecaster.runs.intervals import require_calibrated

        require_calibrated(levels)
        how = {"llm": llm, "update": update_index or update, "grow": grow, "state": state}
        opened = open_run_with_table(run, index, file, indexes, table_options, device, **how)
        memory, ref = opened.memory, opened.ref
        table = with_known_ahead(opened.table, memory, table_options, ahead)
        result = forecast_by_run(opened.predictor, memory, table, quantiles=levels, bounds=bounds)
        horizon, by = opened.predictor.config.model.horizon, f"{run} with {ref}"
    _tell(result, table, memory, bounds, strict=strict)
    _mark(result, ref, memory, run, ahead)
    _draw(plot, table, result, by)
    _write(result, f"{horizon} steps by {by}", out, as_json=as_json)
    if as_json:
        print_json("forecast", forecast_document(result, table, file=file, horizon=horizon, out=out))


def _bounds(lower: float | None, upper: float | None) -> Bounds:
    from memory_index.bounds import Bounds

    return Bounds(lower=lower, upper=upper)


def _opened_memory(
    index: str, file: Path, indexes: Indexes, options: ReadOptions, *, update: bool
) -> tuple[Memory, SeriesTable, str]:
    """The memory that answers alone; update: after FILE was appended to it."""
    ref = updated_ref(index, file, indexes, options) if update else index
    memory, table, ref = open_with_table(ref, file, indexes, options)
    tell_series(table, memory.manifest, ref, memory.manifest.series_ids, to=ref)
    tell_few(memory, ref)
    return memory, table, ref


def _growth(run: Path | None, *, update: bool, half_life: str | None, state: int | None) -> str | None:
    """How the run is to go on: a half-life, `same` for that of the state before; None where it is not asked to."""
    from memory_index.errors import UsageError

    if update and run is None:
        raise UsageError("--update goes with --run", hint="--update-index updates the memory alone")
    if update and state is not None:
        raise UsageError("--update goes on from the state that the run uses", hint="'cli run use' chooses it")
    if half_life is not None and not update:
        raise UsageError("--half-life goes with --update", hint="without an update nothing is forgotten")
    return (half_life or "same") if update else None


def _mark(result: pd.DataFrame, ref: str, memory: Memory, run: Path | None, ahead: KnownAhead) -> None:
    """What made it, which travels inside a Parquet file."""
    made_by = {"ref": ref, "fingerprint": memory.manifest.fingerprint, "run": None if run is None else str(run)}
    result.attrs |= made_by | ({"scenario": ahead.set_known} if ahead.set_known else {})


def _write(result: pd.DataFrame, what: str, out: Path | None, *, as_json: bool) -> None:
    """Write the file that is asked for, or print CSV where nothing else is."""
    if out is None and not as_json:
        typer.echo(result.to_csv(index=False), nl=False)
    elif out is not None:
        write_file(out, _as_file(result, out.suffix.lower()))
        note(f"{result['unique_id'].nunique()} series x {what}: {out}")


def _tell(result: pd.DataFrame, table: SeriesTable, memory: Memory, bounds: Bounds, *, strict: bool) -> None:
    """What to know of a forecast beside its numbers."""
    from memory_index.skipped import Skipped

    skipped = [Skipped(**each) for each in result.attrs["skipped"]]
    tell_skipped(skipped, "not forecast", source=table.source, strict=strict)
    for warning in result.attrs.get("warnings", ()):
        note(f"warning: {warning}")
    for line in result.attrs["notes"]:
        note(f"note: {line}")
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
