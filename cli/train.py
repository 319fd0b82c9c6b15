"""`cli train`: train a model against a chosen version of an index."""

from __future__ import annotations

import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.asking import open_with_table
from cli.common_options import AsJson, Device, IndexedFile, NeighboursDir
from cli.memory_options import Indexes, IndexRef, asks_memory
from cli.output import duration, note, print_json, print_table, progress
from cli.table_options import reading_flags, reads_table

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cli.output import Report
    from forecaster.config import Config
    from forecaster.fit import Trained
    from forecaster.train import Progress, TrainResult
    from memory_index.tables.columns import ReadOptions
    from memory_index.types import Memory

SECONDS = 60  # between two lines about a training, where there is no bar
# Settings that only a training by gradient steps has a use for.
OF_STEPS = {"epochs", "max_steps", "batch_size", "accumulation", "patience", "seed", "weight_decay", "clip"}
ENDED_BY = {
    "epochs": "the number of epochs (epochs)",
    "max_steps": "the number of steps (max_steps)",
    "patience": "epochs without a better validation (patience)",
}


@reads_table
@asks_memory
def train(
    file: IndexedFile,
    index: IndexRef,
    out: Annotated[Path, typer.Option(help="Folder of the run, made if missing.", show_default=False)],
    config: Annotated[Path | None, typer.Option(help="TOML file of settings; options on the line win.")] = None,
    preset: Annotated[str | None, typer.Option(help="A network for a GPU: 6gb, 8gb, 12gb or 15gb.")] = None,
    llm: Annotated[
        str | None, typer.Option(help="builtin:tiny, a folder, or ID@REVISION.", show_default="builtin:tiny")
    ] = None,
    llm_layers: Annotated[int | None, typer.Option(help="Use its first so many layers.", show_default="all")] = None,
    lookback: Annotated[
        int | None, typer.Option(help="Steps that the model reads.", show_default="the index's")
    ] = None,
    horizon: Annotated[int | None, typer.Option(help="Steps to forecast.", show_default="the index's")] = None,
    network: Annotated[
        bool, typer.Option("--network", help="Also train the network: TAPR, gating of features, language model.")
    ] = False,
    no_tapr: Annotated[bool, typer.Option("--no-tapr", help="Without the several scales and trend classes.")] = False,
    no_gram: Annotated[bool, typer.Option("--no-gram", help="Without retrieved neighbours.")] = False,
    no_llm: Annotated[bool, typer.Option("--no-llm", help="Without the language model.")] = False,
    no_shortcut: Annotated[bool, typer.Option("--no-shortcut", help="Without linear map and last value.")] = False,
    n_scales: Annotated[int | None, typer.Option(help="Resolutions of TAPR: 2, 3 or 4.", show_default="3")] = None,
    lambda_trend: Annotated[float | None, typer.Option(help="Weight of the trend loss.", show_default="0.1")] = None,
    top_k: Annotated[
        int | None, typer.Option(help="Neighbours that the network looks at one by one.", show_default="5")
    ] = None,
    memory_k: Annotated[
        int | None, typer.Option(help="Neighbours per key space that make its forecast.", show_default="50")
    ] = None,
    lambda_retrieval: Annotated[
        float | None, typer.Option(help="Weight of the retrieval loss.", show_default="0.1")
    ] = None,
    policy: Annotated[
        str | None,
        typer.Option(help="What training windows may retrieve: disjoint or causal.", show_default="disjoint"),
    ] = None,
    prompt_layout: Annotated[
        str | None, typer.Option(help="spec, or cached: text first, much faster.", show_default="spec")
    ] = None,
    vocabulary_mapping: Annotated[
        bool, typer.Option("--vocabulary-mapping", help="Learn text prototypes as the original does: slow.")
    ] = False,
    epochs: Annotated[int | None, typer.Option(help="Passes of the network, at most.", show_default="3")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Windows per step of the network.", show_default="224")] = None,
    seed: Annotated[int | None, typer.Option(help="Of everything random in the network.", show_default="0")] = None,
    save_steps: Annotated[int | None, typer.Option(help="Steps between checkpoints.", show_default="500")] = None,
    save_total_limit: Annotated[int | None, typer.Option(help="Checkpoints to keep.", show_default="3")] = None,
    device: Device = "auto",
    set_: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any setting by name.")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on where the run in --out stopped, with its settings.")
    ] = False,
    neighbours_dir: NeighboursDir = None,
    as_json: AsJson = False,
    *,
    indexes: Indexes,
    table_options: ReadOptions,
) -> None:
    """Train a model on the training part of FILE against one version of an index.

    The neighbours of all training windows are found once and kept. A linear map and the gate between it and the memory
    are fitted in closed form. With --network, or any option of its own (--llm, --preset, --no-tapr, ...), a network is
    trained beside them: the validation part decides when to stop and which weights are kept. The test part is never
    read. Interrupted, it goes on with --resume. The run is a folder that can be moved.
    """
    from forecaster.fit import train_run

    given = {
        "llm": llm,
        "llm_layers": llm_layers,
        "lookback": lookback,
        "horizon": horizon,
        "use_network": True if network else None,
        "use_tapr": False if no_tapr else None,
        "use_gram": False if no_gram else None,
        "use_llm": False if no_llm else None,
        "use_shortcut": False if no_shortcut else None,
        "n_scales": n_scales,
        "lambda_trend": lambda_trend,
        "top_k": top_k,
        "memory_k": memory_k,
        "lambda_retrieval": lambda_retrieval,
        "policy": policy,
        "prompt_layout": prompt_layout,
        "vocabulary_mapping": True if vocabulary_mapping else None,
        "epochs": epochs,
        "batch_size": batch_size,
        "seed": seed,
        "save_steps": save_steps,
        "save_total_limit": save_total_limit,
    }
    stated = {name: value for name, value in given.items() if value is not None}
    memory, table, ref = open_with_table(index, file, indexes, table_options)
    chosen = settings(memory, out if resume else None, config=config, preset=preset, stated=stated, texts=set_ or [])
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
            again = ["cli", "train", str(file), "--index", ref, "--out", str(out), "--resume", *flags]
            again += [] if neighbours_dir is None else ["--neighbours-dir", str(neighbours_dir)]
            again += [] if device == "auto" else ["--device", device]
            raise KeyboardInterrupt(f"go on with: {shlex.join(again)}") from error
    if not trained.is_main:
        return
    if trained.is_new:
        for line in network_notes(chosen, {*stated, *(text.partition("=")[0].strip() for text in set_ or [])}):
            note(line)
    if as_json:
        print_json("train", training_document(out, ref, trained))
    elif not trained.is_new:
        result = trained.result
        note(f"{out} is trained to its end, {result.steps:,} steps, best validation MSE {_best(result)}: nothing to do")
    else:
        _print_training(out, ref, trained)
        note(f"next: {shlex.join(['cli', 'evaluate', str(file), '--run', str(out), *flags])}")


class TrainingShown:
    """What is seen of a training under way: a bar on a terminal, elsewhere a line per epoch and about one a minute."""

    def __init__(self, bar: Report, *, num_epochs: int) -> None:
        self.bar, self.num_epochs, self.before = bar, num_epochs, ""
        self.epoch, self.told_at = 0, time.monotonic()

    def neighbours(self, done: float, total: float | None) -> None:
        """Called while neighbours are found, with windows."""
        self.bar(done, total, f"{self.before}finding neighbours")

    def step(self, progress: Progress) -> None:
        """Called after each step of the training."""
        loss = f"loss {progress.loss:.4f}, best validation MSE {progress.best_val_mse:.4f}"
        epoch = f"{self.before}epoch {progress.epoch + 1} of {self.num_epochs}"
        self.bar(progress.step, progress.total_steps, f"{epoch}, {loss}")
        if sys.stderr.isatty() or (progress.epoch == self.epoch and time.monotonic() - self.told_at < SECONDS):
            return
        self.epoch, self.told_at = progress.epoch, time.monotonic()
        left = f"{duration(progress.eta_s)} left at most"
        note(f"{epoch}, step {progress.step:,} of {progress.total_steps:,}: {loss}, {left}")


def settings(
    memory: Memory,
    resumed: Path | None,
    *,
    config: Path | None,
    preset: str | None,
    stated: Mapping[str, Any],
    texts: list[str],
) -> Config:
    """The settings of a run: those of the run that goes on or the defaults, then preset, file, options, `--set`."""
    from forecaster.config import Config, parse_setting, preset_settings, read_settings
    from forecaster.run import open_run, run_exists

    window = memory.manifest.window
    chosen: dict[str, Any] = {"lookback": window.lookback, "horizon": window.horizon}
    if resumed is not None and run_exists(resumed):
        chosen = open_run(resumed).config.to_dict()
    asked = {} if config is None else read_settings(config)
    asked |= dict(stated) | dict(parse_setting(text) for text in texts)
    if preset is not None:
        chosen |= preset_settings(preset, lookback=window.lookback, llm=asked.get("llm"))
    return Config.from_dict(chosen | asked)


def network_notes(chosen: Config, stated: set[str]) -> list[str]:
    """What a person should know of the network that is, or is not, trained. stated: names of settings, by options."""
    from forecaster.config import OF_NETWORK

    if chosen.model.use_network:
        asked = [] if "use_network" in stated else sorted(stated & OF_NETWORK)
        return [f"a network was trained too, because {asked[0]} is stated"] if asked else []
    idle = sorted(stated & OF_STEPS)
    return [f"{idle[0]} had no effect: without --network nothing is trained in steps"] if idle else []


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
    }


def _best(result: TrainResult) -> str:
    from forecaster.train import CLOSED_FORM

    if result.stopped == CLOSED_FORM:
        return f"{result.best_val_mse:.4f}"
    of = "before training: no epoch made it better" if result.best_step == 0 else f"step {result.best_step:,}"
    return f"{result.best_val_mse:.4f} ({of})"


def _print_training(out: Path, ref: str, trained: Trained) -> None:
    from forecaster.train import CLOSED_FORM

    result = trained.result
    steps = "none: linear map and value gate are fitted in closed form"
    if result.stopped != CLOSED_FORM:
        steps = f"{result.steps:,} in {result.epochs} epochs, ended by {ENDED_BY[result.stopped]}"
    rows = [
        ["run", str(out)],
        ["index", ref],
        ["windows", f"{trained.num_training_windows:,} training, {trained.num_validation_windows:,} validation"],
        ["trained weights", f"{trained.num_parameters:,}"],
        ["steps", steps],
        ["best validation MSE", _best(result)],
        ["time", f"{duration(result.seconds)}, and {duration(trained.neighbour_seconds)} for the neighbours"],
        ["peak memory", f"{result.peak_rss_mb:,.0f} MB"],
    ]
    print_table(["training", ""], rows)
