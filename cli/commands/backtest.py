"""`cli backtest`: how right a run, or a memory alone, would have been, day after day."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from cli.opening import (
    encoder_loader,
    open_run_with_table,
    open_with_table,
    tell_bounds,
    tell_series,
    tell_skipped,
)
from cli.options import (
    AsJson,
    File,
    HalfLife,
    Index,
    Indexes,
    MemoryK,
    RunDevice,
    RunFolder,
    RunLlm,
    Scopes,
    Scoring,
    Strict,
    Views,
    asks_memory,
    reads_table,
    scores_backtest,
)
from cli.output import note, print_json, progress
from cli.parsing import memory_options, quantile_levels
from cli.reports.backtest_report import backtest_document, print_backtest
from cli.targets import require_targets, writing_file

if TYPE_CHECKING:
    import pandas as pd

    from forecaster.predictor import Predictor
    from memory_index.backtest.kept import KeptForecasts
    from memory_index.backtest.lived import Backtest, Subject
    from memory_index.backtest.plan import BacktestPlan
    from memory_index.evaluation import ForecastBlock
    from memory_index.memory import Memory
    from memory_index.memory_only import MemoryOptions
    from memory_index.origins import Schedule
    from memory_index.tables.columns import ReadOptions
    from memory_index.tables.series import SeriesTable

GROWING = "a memory that grows is built on this machine. With an address say --update never, or"
GOES_ON = "run the same command again: it goes on from the forecasts that are kept"
KEPT = ".backtest"  # behind the name of the file of forecasts: the folder in which they are kept until it is whole


@reads_table
@asks_memory
@scores_backtest
def backtest(
    file: File,
    run: RunFolder = None,
    index: Index = None,
    begin: Annotated[
        str | None, typer.Option("--from", help="First origin.", show_default="when all that was fitted on is known")
    ] = None,
    end: Annotated[
        str | None, typer.Option("--to", help="Last origin.", show_default="the last with a whole horizon")
    ] = None,
    update: Annotated[
        str, typer.Option(help="Time between updates: weekly, daily, 12h, ...; with never nothing grows.")
    ] = "weekly",
    half_life: HalfLife = None,
    state: Annotated[
        int | None, typer.Option(min=0, help="With --run: the state of it to begin with.", show_default="0, as trained")
    ] = None,
    in_sample: Annotated[
        bool, typer.Option("--in-sample", help="Allow origins that were fitted on, and mark every row.")
    ] = False,
    plot: Annotated[Path | None, typer.Option(help="Draw scores along time into a PNG, SVG or PDF file.")] = None,
    *,
    scoring: Scoring,
    memory_k: MemoryK = None,
    scopes: Scopes = None,
    views: Views = None,
    strict: Strict = False,
    llm: RunLlm = None,
    device: RunDevice = "auto",
    as_json: AsJson = False,
    indexes: Indexes,
    table_options: ReadOptions,
) -> None:
    """Forecast origin after origin as in operation, and score it: nothing later than an origin is known there.

    The memory grows with every origin: a window is seen from when its future is known. At each update quantiles are
    recalibrated, so that they keep covering what they say (adaptive conformal inference), and the linear map and the
    gate of a run learn what has become known; a run begins as it was trained, unless --state says otherwise. Origins
    that something was fitted on are refused. Beside the scores stand last value, seasonal naive, a linear forecast and
    the memory alone.
    """
    from memory_index.backtest.plan import parse_update
    from memory_index.errors import UsageError

    if run is None and half_life is not None:
        raise UsageError("--half-life goes with --run", hint="the memory alone forgets nothing")
    how = {"memory_k": memory_k, "scopes": scopes, "views": views, "state": state}
    how |= {"on_empty": "last-value" if run is None else None}  # counted, and told
    options = memory_options(run, index, llm=llm, **how)  # type: ignore[arg-type]
    interval = parse_update(update)
    require_targets(table=scoring.out, picture=plot)
    opened = _opened(run, index, file, indexes, table_options, device, llm, state or 0)
    asked = _Asked(scoring, begin, end, update=interval, in_sample=in_sample, strict=strict, half_life=half_life)
    result, scoring = _backtest(opened, asked, indexes, options)
    _tell(result, scoring, opened, update=update, plot=plot, as_json=as_json)


class _Opened(NamedTuple):
    """What forecasts, and of what. identity: of the run, for forecasts that are kept."""

    run: Path | None
    predictor: Predictor | None
    memory: Memory
    table: SeriesTable
    ref: str
    identity: dict[str, Any]

    @property
    def by(self) -> str:
        """For titles."""
        return f"{self.ref}, memory alone" if self.run is None else f"{self.run} with {self.ref}"


class _Asked(NamedTuple):
    """What was typed of origins and scores. update: time between two updates, None for never."""

    scoring: Scoring
    begin: str | None
    end: str | None
    update: pd.Timedelta | None
    in_sample: bool
    strict: bool
    half_life: str | None


def _tell(
    result: Backtest, scoring: Scoring, opened: _Opened, *, update: str, plot: Path | None, as_json: bool
) -> None:
    step = opened.table.step
    if plot is not None:
        from cli.pictures.backtest import draw_backtest
        from cli.pictures.look import save

        save(draw_backtest(step, result, f"Backtest of {opened.table.source} by {opened.by}"), plot)
        note(f"picture: {plot}")
    if as_json:
        document = backtest_document(result, scoring, step, run=opened.run, ref=opened.ref, update=update)
        print_json("backtest", document | {"plot": plot})
    else:
        print_backtest(result, scoring, step, run=opened.run, ref=opened.ref, update=update)


def _opened(
    run: Path | None,
    index: str | None,
    file: Path,
    indexes: Indexes,
    table_options: ReadOptions,
    device: str,
    llm: str | None,
    state: int,
) -> _Opened:
    if run is None:
        assert index is not None, "checked before"
        memory, table, ref = open_with_table(index, file, indexes, table_options)
        tell_series(table, memory.manifest, ref, memory.manifest.series_ids, to=ref)
        return _Opened(None, None, memory, table, ref, {})
    from forecaster.runs.run import open_run

    with_run = open_run_with_table(run, index, file, indexes, table_options, device, llm=llm, state=state)
    identity = {"run": open_run(run).weights()[1].sha256, "--state": state}
    return _Opened(run, with_run.predictor, with_run.memory, with_run.table, with_run.ref, identity)


def _backtest(opened: _Opened, asked: _Asked, indexes: Indexes, options: MemoryOptions) -> tuple[Backtest, Scoring]:
    """The result, and the scoring with the schedule that it has."""
    from memory_index.backtest.lived import identity_of, run_backtest
    from memory_index.metrics import DECILES

    table, memory, scoring = opened.table, opened.memory, asked.scoring
    levels = DECILES if scoring.quantiles is None else quantile_levels(scoring.quantiles)
    if opened.predictor is not None:
        from forecaster.runs.intervals import require_calibrated

        require_calibrated(levels)
    scoring = replace(scoring, schedule=scoring.schedule or memory.manifest.schedule or _usual_schedule(table))
    plan = _plan(opened, asked, scoring)
    tell_bounds(table, memory)
    tell_skipped(plan.skipped, "not backtested", source=table.source, strict=asked.strict)
    half_life = _half_life(opened, asked)
    identity = opened.identity | {"levels": list(levels), "options": repr(options), "--half-life": half_life}
    identity = identity_of(table, plan, memory.manifest, **identity)
    with _growing(opened, indexes, grows=asked.update is not None) as grown, _kept(scoring.out, identity) as kept:
        subject = _subject(opened, grown, options)
        if opened.run is not None and asked.update is not None:
            subject = _growing_run(opened, grown, plan, half_life) or subject
        with progress("forecasting") as report, _written(scoring.out, opened, plan) as each:
            how: dict[str, Any] = {"levels": levels, "scaled_by": scoring.scaled_by}
            result = run_backtest(subject, table, plan, kept, **how, each=each, report=report)
    return result, scoring


def _usual_schedule(table: SeriesTable) -> Schedule | None:
    """A forecast a day of steps below a day; of others every step."""
    from memory_index.origins import DAY, Schedule, step_length

    length = step_length(table.step)
    return Schedule(every=DAY) if length is not None and length < DAY and not DAY % length else None


def _plan(opened: _Opened, asked: _Asked, scoring: Scoring) -> BacktestPlan:
    from memory_index.backtest.plan import plan_backtest
    from memory_index.memory_only import MemoryOptions

    manifest, table, predictor = opened.memory.manifest, opened.table, opened.predictor
    fitted_at = manifest.fitted_known_at
    subject = _subject(opened, opened.memory, MemoryOptions())
    return plan_backtest(
        table,
        manifest,
        subject.units,
        horizon=subject.horizon,
        fitted_at=fitted_at if predictor is None else max(fitted_at, predictor.seen_until),
        schedule=scoring.schedule,
        first=None if asked.begin is None else table.step.parse(asked.begin),
        last=None if asked.end is None else table.step.parse(asked.end),
        update=asked.update,
        in_sample=asked.in_sample,
    )


@contextmanager
def _growing(opened: _Opened, indexes: Indexes, *, grows: bool) -> Iterator[Memory]:
    """The memory with everything that the table holds, which each origin sees as far as it is known; or as it is."""
    if not grows:
        yield opened.memory
        return
    from memory_index.references import require_local
    from memory_index.versions.grown import grown
    from memory_index.versions.store import Store

    require_local(opened.ref, GROWING)
    version = Store(indexes.folder).resolve(opened.ref)
    with grown(version, opened.table, load_encoder=encoder_loader(version.manifest), note=note) as memory:
        yield memory


def _subject(opened: _Opened, memory: Memory, options: MemoryOptions) -> Subject:
    if opened.predictor is None:
        from memory_index.backtest.memory_alone import MemoryAlone

        return MemoryAlone(memory=memory, options=options)
    from forecaster.backtest import OfRun

    return OfRun(predictor=opened.predictor, memory=memory)


def _half_life(opened: _Opened, asked: _Asked) -> float | None:
    """In steps; None forgets nothing."""
    from memory_index.origins import num_steps

    typed = asked.half_life
    return None if typed in (None, "none") else num_steps(typed, opened.table.step, flag="--half-life")


def _growing_run(opened: _Opened, memory: Memory, plan: BacktestPlan, half_life: float | None) -> Subject | None:
    """The run with a linear map and a gate that go on; None, said aloud, where they cannot."""
    from forecaster.backtest import growing
    from forecaster.runs.run import open_run
    from forecaster.runs.states import has_states

    assert opened.run is not None, "asked of a run"
    assert opened.predictor is not None, "a run was opened"
    if not has_states(opened.run):
        note("only the memory grows: this run keeps no normal equations (networks, or an earlier program)")
        return None
    with progress("catching up") as report:
        run = open_run(opened.run)
        return growing(run, opened.predictor, memory, plan, half_life=half_life, report=report)


@contextmanager
def _kept(out: Path | None, identity: dict[str, Any]) -> Iterator[KeptForecasts]:
    """Where forecasts are kept until all are made: beside `out`, for whoever goes on, or in a temporary folder."""
    from memory_index import files
    from memory_index.backtest.kept import KeptForecasts

    if out is None:
        with tempfile.TemporaryDirectory(prefix="backtest-") as temporary:
            yield KeptForecasts(Path(temporary), identity)
        return
    folder = out.with_name(f".{out.name}{KEPT}")
    with files.refusals_named(folder, option="--out"):
        folder.mkdir(exist_ok=True)
        with files.locked(folder / ".lock", sign=True):
            try:
                yield KeptForecasts(folder, identity)
            except KeyboardInterrupt:
                raise KeyboardInterrupt(GOES_ON) from None
            files.delete_tree(folder)


@contextmanager
def _written(out: Path | None, opened: _Opened, plan: BacktestPlan) -> Iterator[Callable[[ForecastBlock], None]]:
    """What takes every block of forecasts: the file that is asked for, whole at the end, or nobody."""
    if out is None:
        yield lambda block: None
        return
    from memory_index.long_tables import writing

    made_by = {
        "ref": opened.ref,
        "fingerprint": opened.memory.manifest.fingerprint,
        "run": None if opened.run is None else str(opened.run),
    }
    how: dict[str, Any] = {"as_parquet": out.suffix.lower() == ".parquet", "made_by": made_by}
    how["marks"] = {"in_sample": True} if plan.in_sample else {}
    with writing_file(out) as file, writing(file, opened.table, **how) as writer:
        yield writer.add
    note(f"{writer.num_rows:,} rows of forecasts: {out}")
