"""`cli evaluate`: how right a run, or a memory alone, was about a part of the split."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.opening import open_run_with_table, open_with_table, tell_series
from cli.options import (
    AsJson,
    At,
    Every,
    File,
    Index,
    Indexes,
    MemoryK,
    OnEmpty,
    RunDevice,
    RunFolder,
    RunLlm,
    Scopes,
    Views,
    asks_memory,
    reads_table,
)
from cli.output import note, print_json, progress
from cli.parsing import memory_options, quantile_levels
from cli.reports.evaluation_report import Shown, evaluation_document, print_evaluation
from cli.targets import require_targets, writing_file

if TYPE_CHECKING:
    from memory_index.evaluation import Evaluation, ForecastBlock
    from memory_index.memory import Memory
    from memory_index.tables.columns import ReadOptions
    from memory_index.tables.series import SeriesTable

BY = ("series", "step")
SCALED_BY = ("training", "origin")


@reads_table
@asks_memory
def evaluate(
    file: File,
    run: RunFolder = None,
    index: Index = None,
    split: Annotated[str, typer.Option(help="Part to score: train, val or test.")] = "test",
    every: Every = None,
    at: At = None,
    baselines: Annotated[bool, typer.Option("--baselines", help="Also score every key space by itself.")] = False,
    by: Annotated[
        list[str] | None, typer.Option(help="Also list scores by series or by step; may be repeated.")
    ] = None,
    scaled_by: Annotated[
        str, typer.Option(help="Seasonal naive error that scales MASE: of training, or up to each origin.")
    ] = "training",
    quantiles: Annotated[
        str | None,
        typer.Option(
            help="Levels to score, or none. Those of the memory alone take three times as long.",
            show_default="with --run 0.1 to 0.9, else none",
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Also write every forecast: a .csv or .parquet file.")] = None,
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
    series. Beside it stand last value, seasonal naive, a linear forecast (closed form) and the memory alone. Of many
    series the worst and the best are shown. --every and --at score only the origins that operation has.
    """
    from memory_index.metrics import DECILES
    from memory_index.origins import parse_schedule

    options = memory_options(run, index, llm=llm, memory_k=memory_k, scopes=scopes, views=views, on_empty=on_empty)
    _require_known("--by", by or (), BY)
    _require_known("--scaled-by", [scaled_by], SCALED_BY)
    schedule = parse_schedule(every, at)
    levels = (DECILES if run else ()) if quantiles is None else quantile_levels(quantiles)
    require_targets(table=out)
    asked: dict[str, Any] = {"schedule": schedule, "levels": levels, "scaled_by": scaled_by}

    def scored(memory: Memory, table: SeriesTable, ref: str, score: Callable[..., Evaluation]) -> None:
        with progress(f"scoring {split} windows") as report, _forecasts_into(out, table, memory, ref, run) as each:
            result = score(table, split, **asked, each=each, report=report)
        shown = Shown(run=run, ref=ref, schedule=schedule, by=tuple(by or ()), with_spaces=baselines, out=out)
        if as_json:
            print_json("evaluate", evaluation_document(result, shown))
        else:
            print_evaluation(result, shown)

    if run is not None:
        from forecaster.evaluate import evaluate as evaluate_run
        from forecaster.runs.intervals import require_calibrated

        require_calibrated(levels)
        opened = open_run_with_table(run, index, file, indexes, table_options, device, llm=llm)
        scored(
            opened.memory,
            opened.table,
            opened.ref,
            lambda *given, **options: evaluate_run(opened.predictor, opened.memory, *given, **options),
        )
        return
    from memory_index import memory_only

    assert index is not None, "checked above"
    memory, table, ref = open_with_table(index, file, indexes, table_options)
    tell_series(table, memory.manifest, ref, memory.manifest.series_ids, to=ref)
    scored(memory, table, ref, lambda *given, **asked: memory_only.evaluate(memory, *given, options=options, **asked))


@contextmanager
def _forecasts_into(
    out: Path | None, table: SeriesTable, memory: Memory, ref: str, run: Path | None
) -> Iterator[Callable[[ForecastBlock], None]]:
    """What takes every block of forecasts: the file that is asked for, whole at the end, or nobody."""
    if out is None:
        yield lambda block: None
        return
    from memory_index.long_tables import writing

    made_by = {"ref": ref, "fingerprint": memory.manifest.fingerprint, "run": None if run is None else str(run)}
    as_parquet = out.suffix.lower() == ".parquet"
    with writing_file(out) as file, writing(file, table, as_parquet=as_parquet, made_by=made_by) as writer:
        yield writer.add
    note(f"{writer.num_rows:,} rows of forecasts: {out}")


def _require_known(flag: str, given: list[str] | tuple[str, ...], known: tuple[str, ...]) -> None:
    from memory_index.errors import UsageError

    for each in given:
        if each not in known:
            raise UsageError(f"{flag} {each}: there is no such choice", hint=f"choose {' or '.join(known)}")
