"""`cli train`: train a model against a chosen version of an index."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.opening import open_with_table
from cli.options import (
    AsJson,
    Device,
    IndexedFile,
    Indexes,
    IndexRef,
    NeighboursDir,
    StatedSettings,
    Strict,
    asks_memory,
    reading_flags,
    reads_table,
    states_settings,
)
from cli.output import duration, note, print_json, print_table, progress
from cli.parsing import network_notes, settings
from cli.reports.training_progress import TrainingShown

if TYPE_CHECKING:
    from forecaster.training.fit import Trained
    from forecaster.training.train import TrainResult
    from memory_index.memory import Memory
    from memory_index.skipped import Skipped
    from memory_index.tables.columns import ReadOptions
    from memory_index.tables.series import SeriesTable

LEAST_SHOWN = 0.005  # share of a part of the mix that is worth a word
MOST_ERRORS = 4  # parts whose held-out errors are shown, the best ones
ENDED_BY = {
    "epochs": "the number of epochs (epochs)",
    "max_steps": "the number of steps (max_steps)",
    "patience": "epochs without a better validation (patience)",
}


@reads_table
@asks_memory
@states_settings
def train(
    file: IndexedFile,
    index: IndexRef,
    out: Annotated[Path, typer.Option(help="Folder of the run, made if missing.", show_default=False)],
    *,
    stated: StatedSettings,
    device: Device = "auto",
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on where the run in --out stopped, with its settings.")
    ] = False,
    neighbours_dir: NeighboursDir = None,
    strict: Strict = False,
    as_json: AsJson = False,
    indexes: Indexes,
    table_options: ReadOptions,
) -> None:
    """Train a model on the training part of FILE against one version of an index.

    The neighbours of as many training windows as --max-work allows are found once and kept. In closed form it is
    decided what forecasts held-out windows best: the memory, a linear map, the last value, the last season, or a mix.
    With --network, or any option of its own, a network is trained too. The test part is never read. Interrupted, it
    goes on with --resume. The run is a folder that can be moved.
    """
    from forecaster.training.fit import train_run

    memory, table, ref = open_with_table(index, file, indexes, table_options)
    skipped = _not_trained_on(table, memory, strict=strict)
    chosen = settings(memory, stated, resumed=out if resume else None)
    flags = [*indexes.flags, *reading_flags(table_options)]
    with progress(out.name) as report:
        shown = TrainingShown(report, num_epochs=chosen.train.epochs)
        try:
            trained = train_run(
                table,
                memory,
                ref,
                chosen,
                out,
                neighbours_dir=neighbours_dir or out.parent / ".neighbours",
                resume=resume,
                device=device,
                report=shown.neighbours,
                progress=shown.step,
                note=note,
            )
        except KeyboardInterrupt as error:
            again = ["train", str(file), "--index", ref, "--out", str(out), *flags]
            raise KeyboardInterrupt(f"go on with: {_go_on(again, neighbours_dir, device)}") from error
    if not trained.is_main:
        return
    for line in network_notes(chosen, stated) if trained.is_new else ():
        note(line)
    if as_json:
        print_json("train", training_document(out, ref, trained) | {"skipped": skipped})
    else:
        _print_training(out, ref, trained, then=["cli", "evaluate", str(file), "--run", str(out), *flags])


def _go_on(again: list[str], neighbours_dir: Path | None, device: str) -> str:
    """The command that goes on with an interrupted training."""
    where = [] if neighbours_dir is None else ["--neighbours-dir", str(neighbours_dir)]
    where += [] if device == "auto" else ["--device", device]
    return shlex.join(["cli", *again[:6], "--resume", *again[6:], *where])


def _not_trained_on(table: SeriesTable, memory: Memory, *, strict: bool) -> list[Skipped]:
    """The series that the index does not have. strict: raise `DataError` for them."""
    from memory_index.skipped import Skipped, require_none_skipped

    skipped = [
        Skipped(series_id=name, reason="is not in the index, so nothing is trained on it")
        for name in table.series_ids
        if name not in memory.windows.series_number
    ]
    if strict:
        require_none_skipped(skipped, table.source, "not trained on")
    return skipped


def training_document(out: Path, ref: str, trained: Trained) -> dict[str, Any]:
    """The JSON document of `train`."""
    result = trained.result
    return {
        "run": out,
        "ref": ref,
        "fingerprint": trained.fingerprint,
        "epochs": result.epochs,
        "steps": result.steps,
        "best_step": result.best_step,
        "best_val_mse": result.best_val_mse,
        "stopped": result.stopped,
        "seconds": result.seconds,
        "neighbour_seconds": trained.neighbour_seconds,
        "peak_rss_mb": result.peak_rss_mb,
        "num_parameters": trained.num_parameters,
        "num_training_windows": trained.num_training_windows,
        "num_validation_windows": trained.num_validation_windows,
        "plan": trained.plan,
        "closed_form": trained.closed_form,
    }


def _best(result: TrainResult) -> str:
    from forecaster.training.train import CLOSED_FORM

    if result.stopped == CLOSED_FORM:
        return f"{result.best_val_mse:.4f}"
    of = "before training: no epoch made it better" if result.best_step == 0 else f"step {result.best_step:,}"
    return f"{result.best_val_mse:.4f} ({of})"


def _kept(closed_form: dict[str, Any]) -> list[list[str]]:
    """Rows of what was fitted in closed form: what is kept of the mix and its parts, and the linear map."""
    rows, gate, chosen = [], closed_form["gate"], closed_form["linear_map"]
    if gate is not None:
        shares = [f"{name} {share:.0%}" for name, share in gate["shares"].items() if share >= LEAST_SHOWN]
        kept = "the mix" if gate["kept"] == "mix" else f"{gate['kept']} alone"
        rows.append(["kept", f"{kept}: {', '.join(shares)}"])
        if gate["errors"]:
            best = sorted(gate["errors"], key=gate["errors"].__getitem__)[:MOST_ERRORS]
            told = ", ".join(f"{name} {gate['errors'][name]:.4f}" for name in best)
            unclear = f": no clear gain of {best[0]} alone" if gate["kept"] == "mix" != best[0] else ""
            rows.append(["held-out error", told + unclear])
    if gate is not None and (verdict := gate.get("network")) is not None:
        rows.append(["network", _network(verdict, gate["shares"]["network"])])
    if chosen is not None:
        shrunk = f"{chosen['lookback']} steps, shrunk to the {chosen['prior']} by {chosen['penalty']:g}"
        rows.append(["linear map", shrunk])
    return rows


def _network(verdict: dict[str, Any], share: float) -> str:
    """What weight the networks got, and why."""
    told = f"held-out error {verdict['with_network']:.4f} with it, {verdict['without']:.4f} without"
    change = f"{'-' if verdict['gain'] > 0 else '+'}{abs(verdict['gain']):.1%}, standard error {verdict['doubt']:.1%}"
    if verdict["kept"]:
        return f"{share:.0%} of the forecast: {told} ({change})"
    return f"no weight: {told} ({change}), which is no clear gain"


def _print_training(out: Path, ref: str, trained: Trained, *, then: list[str]) -> None:
    """How a training ended, with the command to try next, or that it had ended before."""
    from forecaster.training.train import CLOSED_FORM

    result = trained.result
    if not trained.is_new:
        best = f"best validation MSE {_best(result)}"
        note(f"{out} is trained to its end, {result.steps:,} steps, {best}: nothing to do")
        return
    steps = "none: linear map and value gate are fitted in closed form"
    if result.stopped != CLOSED_FORM:
        epochs = "1 epoch" if result.epochs == 1 else f"{result.epochs} epochs"
        steps = f"{result.steps:,} in {epochs}, ended by {ENDED_BY[result.stopped]}"
    rows = [
        ["run", str(out)],
        ["index", ref],
        ["windows", f"{trained.num_training_windows:,} training, {trained.num_validation_windows:,} validation"],
        ["trained weights", f"{trained.num_parameters:,}"],
        *_kept(trained.closed_form),
        ["steps", steps],
        ["best validation MSE", _best(result)],
        ["time", f"{duration(result.seconds)}, and {duration(trained.neighbour_seconds)} for the neighbours"],
        ["peak memory", f"{result.peak_rss_mb:,.0f} MB"],
    ]
    print_table(["training", ""], rows)
    note(f"next: {shlex.join(then)}")
