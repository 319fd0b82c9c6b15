"""`cli forecast` and `cli evaluate`: what a run, or a memory alone, says of the future, and how right it was."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.opening import open_run_with_table, open_with_table, tell_ends, tell_series, updated_ref
from cli.options import REF, AsJson, File, Indexes, RunDevice, RunFolder, RunLlm, asks_memory, reads_table
from cli.output import note, print_json, print_table, progress
from cli.parsing import names, numbers, quantile_levels
from cli.targets import require_targets, write_file

if TYPE_CHECKING:
    import pandas as pd

    from forecaster.evaluate import RunEvaluation
    from memory_index.memory_only import Evaluation, MemoryOptions
    from memory_index.tables.columns import ReadOptions
    from memory_index.tables.series import SeriesTable

Index = Annotated[
    str | None,
    typer.Option(
        "--index",
        metavar="REF",
        help=f"{REF}; with --run a newer version of the run's own, or where that lies now.",
    ),
]
MemoryK = Annotated[
    int | None,
    typer.Option(help="Without --run: neighbours per key space that make the forecast.", min=1, show_default="50"),
]
Scopes = Annotated[str | None, typer.Option(help="Without --run: own,joint,pooled. Default: all that can be asked.")]
Views = Annotated[str | None, typer.Option(help="Without --run: compare only the last so many steps, as 96,336.")]
OnEmpty = Annotated[
    str | None,
    typer.Option(
        help="Without --run: a window without neighbours is an error, or its last-value.", show_default="error"
    ),
]

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
    update_index: UpdateIndex = False,
    memory_k: MemoryK = None,
    scopes: Scopes = None,
    views: Views = None,
    on_empty: OnEmpty = None,
    llm: RunLlm = None,
    device: RunDevice = "auto",
    as_json: AsJson = False,
    *,
    indexes: Indexes,
    table_options: ReadOptions,
) -> None:
    """Forecast the next steps of every series of FILE: by a trained run, or with --index alone from the memory.

    A long table in original units: unique_id, ds, yhat and one column per quantile (q0.1). A series that was never seen
    is forecast from windows of all series (scope pooled). Only windows known by the last step of FILE are used.
    """
    levels = quantile_levels(quantiles)
    require_targets(table=out, picture=plot)
    options = _options(run, index, llm=llm, memory_k=memory_k, scopes=scopes, views=views, on_empty=on_empty)
    if run is None:
        from memory_index import memory_only

        assert index is not None, "checked above"
        ref = updated_ref(index, file, indexes, table_options) if update_index else index
        memory, table, ref = open_with_table(ref, file, indexes, table_options)
        tell_series(table, memory.manifest, ref, memory.manifest.series_ids, to=ref)
        result = memory_only.forecast(memory, table, quantiles=levels, options=options)
        horizon, by = memory.windows.spec.horizon, f"{ref}, memory alone"
    else:
        from forecaster.forecast import forecast as forecast_by_run
        from forecaster.runs.intervals import require_calibrated

        require_calibrated(levels)
        opened = open_run_with_table(run, index, file, indexes, table_options, device, llm=llm, update=update_index)
        memory, table, ref = opened.memory, opened.table, opened.ref
        result = forecast_by_run(opened.predictor, memory, table, quantiles=levels)
        horizon, by = opened.predictor.config.model.horizon, f"{run} with {ref}"
    tell_ends(table, memory)
    # Travels inside a Parquet file.
    result.attrs.update(
        {"ref": ref, "fingerprint": memory.manifest.fingerprint, "run": None if run is None else str(run)}
    )
    if out is not None:
        write_file(out, _as_file(result, out.suffix.lower()))
        note(f"{len(table.series)} series x {horizon} steps by {by}: {out}")
    if plot is not None:
        _draw(plot, table, result, by)
    if as_json:
        print_json("forecast", forecast_document(result, table, file=file, horizon=horizon, out=out))
    elif out is None:
        typer.echo(result.to_csv(index=False), nl=False)


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
        "num_series": len(table.series),
        "forecast": None if out else rows,
    }


def _draw(path: Path, table: SeriesTable, result: pd.DataFrame, by: str) -> None:
    from cli.pictures.forecast import draw_forecast
    from cli.pictures.look import save

    save(draw_forecast(table, result, f"Forecast of {table.source} by {by}"), path)
    note(f"picture: {path}")


@reads_table
@asks_memory
def evaluate(
    file: File,
    run: RunFolder = None,
    index: Index = None,
    split: Annotated[str, typer.Option(help="Part to score: train, val or test.")] = "test",
    baselines: Annotated[bool, typer.Option("--baselines", help="Also score every key space by itself.")] = False,
    memory_k: MemoryK = None,
    scopes: Scopes = None,
    views: Views = None,
    on_empty: OnEmpty = None,
    llm: RunLlm = None,
    device: RunDevice = "auto",
    as_json: AsJson = False,
    *,
    indexes: Indexes,
    table_options: ReadOptions,
) -> None:
    """Score the forecast of every window of a part of the version's split: by a trained run, or by the memory alone.

    MSE and MAE are in standardised units (the training part's mean and standard deviation), over all windows, steps and
    series. Beside it stand last value, seasonal naive, a linear forecast (closed form) and the memory alone.
    """
    options = _options(run, index, llm=llm, memory_k=memory_k, scopes=scopes, views=views, on_empty=on_empty)
    if run is not None:
        from forecaster.evaluate import evaluate as evaluate_run

        opened = open_run_with_table(run, index, file, indexes, table_options, device, llm=llm)
        with progress(f"scoring {split} windows") as report:
            scored = evaluate_run(opened.predictor, opened.memory, opened.table, split, report=report)
        if as_json:
            print_json("evaluate", run_evaluation_document(run, opened.ref, scored))
        else:
            print_run_evaluation(run, opened.ref, scored, baselines)
        return
    from memory_index import memory_only

    assert index is not None, "checked above"
    memory, table, ref = open_with_table(index, file, indexes, table_options)
    tell_series(table, memory.manifest, ref, memory.manifest.series_ids, to=ref)
    with progress(f"scoring {split} windows") as report:
        result = memory_only.evaluate(memory, table, split, options=options, report=report)
    if as_json:
        print_json("evaluate", evaluation_document(ref, result))
    else:
        print_evaluation(ref, result, baselines)


def run_evaluation_document(run: Path, ref: str, result: RunEvaluation) -> dict[str, Any]:
    """The JSON document of `evaluate --run`."""
    return evaluation_document(ref, result) | {
        "run": run,
        "direction_accuracy": result.direction_accuracy,
        "gate": result.gate,
        "feature_gate": result.feature_gate,
        "coverage": result.coverage,
    }


def evaluation_document(ref: str, result: Evaluation | RunEvaluation) -> dict[str, Any]:
    """The JSON document of `evaluate`; of what only a run has, the direction and the gate are null."""
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


BASELINES = {
    "memory_only": "memory alone",
    "linear": "linear (ridge, {})",
    "seasonal_naive": "seasonal naive",
    "last_value": "last value",
}


def _print_scores(
    of: str, rows: list[list[str]], result: Evaluation | RunEvaluation, with_spaces: bool, *, linear: str
) -> None:
    """rows: those above the baselines. linear: whose linear map is one of them."""
    named = [(label.format(linear), result.baselines[name]) for name, label in BASELINES.items()]
    named += [(f"  key space {name}", score) for name, score in result.by_space.items()] if with_spaces else []
    rows += [[name, f"{score.mse:.4f}", f"{score.mae:.4f}"] if score else [name, "-", "-"] for name, score in named]
    title = f"{of}, {result.part}: {result.num_windows:,} origins x {result.num_series} series"
    print_table(["forecast", "MSE", "MAE"], rows, title=title)


def print_evaluation(ref: str, result: Evaluation, with_spaces: bool) -> None:
    """The scores of the memory alone beside those of the baselines."""
    _print_scores(ref, [], result, with_spaces, linear="widest view")
    note(f"standardised units; {result.seconds:.1f} s")
    if result.num_without_neighbours:
        note(
            f"{result.num_without_neighbours} of {result.num_scored} windows had no neighbour: the last value stands in"
        )
    if result.in_sample:
        note("in sample: fitted parts of this version have seen steps later than some origins")


def print_run_evaluation(run: Path, ref: str, result: RunEvaluation, with_spaces: bool) -> None:
    """The scores of a run beside those of the baselines, and what else is known of its forecasts."""
    own = [str(run), f"{result.mse:.4f}", f"{result.mae:.4f}"]
    _print_scores(f"{run} with {ref}", [own], result, with_spaces, linear="the run's own")
    if result.direction_accuracy is not None:
        note(f"direction (up, flat or down) told right: {result.direction_accuracy:.1%} of windows")
    if result.gate is not None:
        gate = result.gate
        spread = f"10% of steps below {gate.p10:.2f}, 10% above {gate.p90:.2f}"
        note(f"gate: {gate.mean:.2f} on average, {spread} (1 trusts the model, 0 the memory)")
    shares = ", ".join(f"{share:.1%} below {name}" for name, share in result.coverage.items())
    note(f"values that the quantiles left below them: {shares}")
    note(f"MSE and MAE in standardised units, {result.num_scored:,} windows, {result.seconds:.1f} s")
    if result.num_without_neighbours:
        note(f"{result.num_without_neighbours:,} of these had no neighbour: the model stands alone there")
    if result.in_sample:
        note("in sample: training or validation used this part, or fitted keys have seen steps later than an origin")


def _options(
    run: Path | None,
    index: str | None,
    *,
    llm: str | None,
    memory_k: int | None,
    scopes: str | None,
    views: str | None,
    on_empty: str | None,
) -> MemoryOptions:
    """How the memory alone is asked. Raises `UsageError` for a missing reference, or options that a run decides."""
    from memory_index.errors import UsageError
    from memory_index.memory_only import MemoryOptions

    if run is None and index is None:
        raise UsageError("neither --run nor --index is given", hint="--run RUN, or --index REF for the memory alone")
    given = {"--memory-k": memory_k, "--scopes": scopes, "--views": views, "--on-empty": on_empty}
    stated = [flag for flag, value in given.items() if value is not None]
    if run is None and llm is not None:
        raise UsageError("--llm goes with --run: the memory alone has no language model", hint="leave it out")
    if run is not None and stated:
        raise UsageError(f"{stated[0]} does not go with --run, which decides it", hint="leave one of them out")
    options: dict[str, Any] = {"scopes": names(scopes), "views": numbers("--views", views)}
    options |= {} if memory_k is None else {"k": memory_k}
    return MemoryOptions(**options | ({} if on_empty is None else {"on_empty": on_empty}))


def _as_file(result: pd.DataFrame, suffix: str) -> bytes:
    return result.to_parquet(index=False) if suffix == ".parquet" else result.to_csv(index=False).encode()
