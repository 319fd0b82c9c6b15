"""Train a model in a run folder: what may be begun there, what may go on, and how it ended.

It sees a model, training windows and validation windows; there is no way to hand it the test split. The steps
themselves are `training_loop.py`, what happens at which of them is `schedule.py`, what a checkpoint holds is
`checkpoint.py`, and the losses are `losses.py`.
"""

from __future__ import annotations

import resource
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import nn

from forecaster.config import TrainConfig
from forecaster.errors import RunNotFoundError
from forecaster.runs.records import refusals_named
from forecaster.runs.weights import WEIGHTS, load_into, read_weights
from forecaster.training import rng
from forecaster.training.checkpoint import (
    FREE_SETTINGS,
    Checkpoint,
    TrainerState,
    checkpoints_in,
    clear_leftovers,
    load_latest,
    require_same,
)
from forecaster.training.devices import make_accelerator, out_of_memory_named
from forecaster.training.interruption import Interruption
from forecaster.training.metrics_log import METRICS_LOG, MetricsLog
from forecaster.training.processes import agree_on_weights
from forecaster.training.training_loop import CLOSED_FORM, Loss, Task, TrainingLoop, TrainingProgress, Windows
from memory_index.errors import DataError, UsageError

__all__ = ["CLOSED_FORM", "TrainResult", "TrainingProgress", "train"]


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainResult:
    """How a training ended.

    epochs: those validated, the last one cut short if `max_steps` ended it. best_step: optimizer steps that the best
    weights have seen, 0 if the untrained model was best. seconds: over all parts of the training. stopped:
    `patience`, `epochs` or `max_steps`, or `closed form` for a model in which nothing is trained by gradient.
    """

    epochs: int
    steps: int
    best_step: int
    best_val_mse: float
    seconds: float
    peak_rss_mb: float
    stopped: str


def train(
    model: nn.Module,
    training: Windows,
    validation: Windows,
    loss: Loss,
    config: TrainConfig,
    folder: Path,
    *,
    identity: Mapping[str, Any],
    resume: bool = False,
    device: str = "auto",
    llm_width: int = 0,
    keeps_last: bool = False,
    report: Callable[[TrainingProgress], None] | None = None,
) -> TrainResult:
    """Train a model in a run folder; afterwards it has the weights of the best validation MSE, or of the last step.

    folder: nobody else may train in it meanwhile (`run.begun_run`). identity: what the training belongs to (index
    version, backbone, model settings), in terms of JSON: it is stored in each checkpoint and must be the same when it
    goes on. resume: go on from the newest checkpoint, or begin if there is none; a training that has ended is not
    trained further. keeps_last: see `training_loop.Task`. device: `auto`, `cpu` or `cuda`. llm_width: see
    `placement.resolve_precision`. report: called after each step, in the main process.

    Raises `UsageError` if there is a training already and `resume` is not asked for, `RunIncompatibleError` for one
    that belongs to something else, `RunDamagedError` for a checkpoint that is not what was written, `ConfigError` for
    a loss that is not finite, `ResourceError` for memory or disk. SIGINT and SIGTERM end in
    `KeyboardInterrupt` after a checkpoint was written.
    """
    for name, windows in (("training", training), ("validation", validation)):
        if not len(windows):
            raise DataError(f"there are no {name} windows", hint="choose a shorter horizon, or a longer part for it")
    accelerator = make_accelerator(device, config.precision, llm_width=llm_width)
    settings = {name: value for name, value in asdict(config).items() if name not in FREE_SETTINGS}
    whole_identity = {**identity, "train": settings, "num_processes": accelerator.num_processes}
    with out_of_memory_named(config), rng.preserved(accelerator.device), ExitStack() as until_done:
        checkpoint = _where_to_begin(folder, whole_identity, accelerator, resume=resume)
        num_lines = 0 if checkpoint is None else checkpoint.state.num_lines
        is_main = accelerator.is_main_process
        loop = TrainingLoop(
            Task(
                model=model.to(accelerator.device),
                training=training,
                validation=validation,
                loss=loss,
                config=config,
                folder=folder,
                identity=whole_identity,
                accelerator=accelerator,
                keeps_last=keeps_last,
                interruption=until_done.enter_context(Interruption()),
                log=until_done.enter_context(MetricsLog(folder, num_lines)) if is_main else None,
                report=report,
            )
        )
        if checkpoint is None:
            agree_on_weights(accelerator, model, where=folder)
        loop.run(checkpoint)
        accelerator.wait_for_everyone()  # until the main process has written the last weights
        load_into(model, read_weights(folder)[0], where=folder / WEIGHTS)
    return _result(loop.state)


def _result(state: TrainerState) -> TrainResult:
    return TrainResult(
        epochs=state.epoch,
        steps=state.step,
        best_step=state.best_step,
        best_val_mse=state.best_val_mse,
        seconds=round(state.seconds, 3),
        peak_rss_mb=round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
        stopped=state.stopped,
    )


def _where_to_begin(
    folder: Path, identity: Mapping[str, Any], accelerator: Accelerator, *, resume: bool
) -> Checkpoint | None:
    """The checkpoint that every process goes on from, or None to begin, in a folder without leftovers."""
    if accelerator.is_main_process:
        with refusals_named(folder):
            folder.mkdir(parents=True, exist_ok=True)
        clear_leftovers(folder)
    accelerator.wait_for_everyone()
    checkpoint = _newest_checkpoint(folder, resume=resume)
    if checkpoint is not None:
        require_same(checkpoint.identity, identity, where=folder)
    accelerator.wait_for_everyone()  # before the main process begins its log, which the others would take for one
    return checkpoint


def _newest_checkpoint(folder: Path, *, resume: bool) -> Checkpoint | None:
    """The checkpoint to go on from, or None to begin. Raises as `train` does, and `RunNotFoundError`."""
    if not resume:
        if checkpoints_in(folder) or (folder / METRICS_LOG).exists() or (folder / WEIGHTS).exists():
            raise UsageError(
                f"{folder} holds a training already", hint="go on with --resume, or choose another folder (--out)"
            )
        return None
    checkpoint = load_latest(folder)
    if checkpoint is None and (folder / WEIGHTS).exists():
        raise RunNotFoundError(
            f"{folder} has weights, but no checkpoint to go on from", hint="train again into another folder (--out)"
        )
    return checkpoint
