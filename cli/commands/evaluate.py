"""`cli evaluate`: how right a run, or a memory alone, was about a part of the split."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.opening import open_run_with_table, open_with_table, tell_bounds, tell_series, tell_skipped
from cli.options import (
    AsJson,
    File,
    Index,
    Indexes,
    MemoryK,
    OnEmpty,
    RunDevice,
    RunFolder,
    RunLlm,
    RunState,
    Scopes,
    Scoring,
    Strict,
    Views,
    asks_memory,
    reads_table,
    scores,
)
from cli.output import note, print_json, progress
from cli.parsing import memory_options, quantile_levels
from cli.reports.evaluation_report import evaluation_document, print_evaluation
from cli.targets import require_targets, writing_file

if TYPE_CHECKING:
    from memory_index.evaluation import Evaluation, ForecastBlock
    from memory_index.memory import Memory
    from memory_index.tables.columns import ReadOptions
    from memory_index.tables.series import SeriesTable


@reads_table
@asks_memory
@scores
def evaluate(
    file: File,
    run: RunFolder = None,
    index: Index = None,
    split: Annotated[str, typer.Option(help="Part to score: train, val or test.")] = "test",
    *,
    scoring: Scoring,
    memory_k: MemoryK = None,
    scopes: Scopes = None,
    views: Views = None,
    on_empty: OnEmpty = None,
    strict: Strict = False,
    llm: RunLlm = None,
    state: RunState = None,
    device: RunDevice = "auto",
    as_json: AsJson = False,
    indexes: Indexes,
    table_options: ReadOptions,
) -> None:
    """Score the forecast of every window of a part of the version's split: by a trained run, or by the memory alone.

    MSE and MAE are in standardised units (the training part's mean and standard deviation), over all windows, steps and
    series. Beside it stand last value, seasonal naive, a linear forecast (closed form) and the memory alone. Of many
    series the worst and the best are shown. --every and --at score only the origins that operation has.
    """
    from memory_index.metrics import DECILES

    options = memory_options(
        run, index, llm=llm, state=state, memory_k=memory_k, scopes=scopes, views=views, on_empty=on_empty
    )
    typed = scoring.quantiles
    levels = (DECILES if run else ()) if typed is None else quantile_levels(typed)
    require_targets(table=scoring.out)
    score: Callable[..., Evaluation]
    if run is not None:
        from forecaster.evaluate import evaluate as evaluate_run
        from forecaster.runs.intervals import require_calibrated

        require_calibrated(levels)
        opened = open_run_with_table(run, index, file, indexes, table_options, device, llm=llm, state=state)
        memory, table, ref = opened.memory, opened.table, opened.ref
        score = partial(evaluate_run, opened.predictor, memory)
    else:
        from memory_index import memory_only

        assert index is not None, "checked above"
        memory, table, ref = open_with_table(index, file, indexes, table_options)
        tell_series(table, memory.manifest, ref, memory.manifest.series_ids, to=ref)
        score = partial(memory_only.evaluate, memory, options=options)
    tell_bounds(table, memory)
    scoring = replace(scoring, schedule=scoring.schedule or memory.manifest.schedule)
    how = {"schedule": scoring.schedule, "levels": levels, "scaled_by": scoring.scaled_by}
    with progress(f"scoring {split} windows") as report, _written(scoring.out, table, memory, ref, run) as each:
        result = score(table, split, **how, each=each, report=report)
    tell_skipped(result.skipped, "not scored", source=table.source, strict=strict)
    if as_json:
        print_json("evaluate", evaluation_document(result, scoring, run=run, ref=ref))
    else:
        print_evaluation(result, scoring, run=run, ref=ref)


@contextmanager
def _written(
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
