"""A training under way: its steps, validations and decisions to stop, and the moments at which it writes.

What `train.py` gives it is complete: a model on its device, a folder that is locked, a checkpoint that belongs to it.
Every process computes its share of every batch, weighed by its number of windows, and the gradients are summed over
processes. So the gradient of a step does not depend on the number of processes or on how its windows are
split into batches, uneven last ones included.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn

from forecaster.config import TrainConfig
from forecaster.errors import ConfigError, RunDamagedError, RunIncompatibleError, RunNotFoundError
from forecaster.model.losses import LossParts
from forecaster.model.types import Batch
from forecaster.runs.records import RESTORE
from forecaster.runs.weights import load_into, publish_weights, read_weights
from forecaster.training import rng
from forecaster.training.checkpoint import (
    CHECKPOINTS,
    Checkpoint,
    TrainerState,
    load_checkpoint,
    prune,
    save_checkpoint,
)
from forecaster.training.interruption import Interrupted, Interruption
from forecaster.training.metrics_log import MetricsLog
from forecaster.training.optimizer import make_optimizer, optimizer_state, restore_optimizer, set_rates, trained_apart
from forecaster.training.processes import any_process, gather_generators, sum_gradients
from forecaster.training.schedule import Schedule, aux_weight, batches_of, epoch_order, share_of

LOG_STEPS = 50  # optimizer steps between two lines of the log
CLOSED_FORM = "closed form"  # why a training without a gradient has ended
LOSSES = ("loss", "mse", "trend", "retrieval")


class Windows(Protocol):
    """Windows with what followed them, by number: a training or a validation split."""

    def __len__(self) -> int:
        """Number of windows."""
        ...

    def batch(self, indices: np.ndarray) -> Batch:
        """The windows of these numbers, int64 [B], as tensors on the CPU; the same numbers give the same batch."""
        ...


# Model, batch and weight of the auxiliary losses -> losses, each a mean over the windows of the batch.
Loss = Callable[[nn.Module, Batch, float], LossParts]


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingProgress:
    """Where a training is. step, total_steps: optimizer steps. loss: of this step. eta_s: to the last planned step."""

    step: int
    total_steps: int
    epoch: int
    loss: float
    best_val_mse: float
    eta_s: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """What is trained on what, and where it is written. log: None in every process but the main one.

    keeps_last: whether the last weights are kept and nothing stops the training early, instead of those of the best
    validation MSE. identity: what the training belongs to, in terms of JSON. report: called after each step in the
    main process.
    """

    model: nn.Module
    training: Windows
    validation: Windows
    loss: Loss
    config: TrainConfig
    folder: Path
    identity: Mapping[str, Any]
    accelerator: Accelerator
    interruption: Interruption
    keeps_last: bool
    log: MetricsLog | None
    report: Callable[[TrainingProgress], None] | None


class TrainingLoop:
    """A training under way. `state` changes only when a step or a validation is complete."""

    state: TrainerState

    def __init__(self, task: Task) -> None:
        """Nothing is computed yet, until `run`."""
        self.task = task
        self.model, self.config, self.accelerator = task.model, task.config, task.accelerator
        self.schedule = Schedule.of(task.config, len(task.training))
        self.optimizer = make_optimizer(task.model, task.config)
        self.order = np.zeros(0, dtype=np.int64)
        self.epoch_of_order = -1
        self.began_at = time.monotonic()
        self.seconds_before = 0.0
        self.steps_before = 0

    def begin(self) -> None:
        """The state before the first step. The untrained model is a candidate for the best, or all that there is."""
        rng.seed_all(self.config.seed, self.accelerator.process_index)
        self.state = TrainerState(best_val_mse=self.validate(), sums=(0.0,) * len(LOSSES))
        if not any(parameter.requires_grad for parameter in self.model.parameters()):
            self.state = replace(self.state, stopped=CLOSED_FORM)
        self.write_line(val_mse=self.state.best_val_mse, best_val_mse=self.state.best_val_mse)
        self.save(is_best=True)

    def go_on(self, checkpoint: Checkpoint) -> None:
        """The state of a checkpoint, and the best weights that belong to it."""
        self.state = checkpoint.state
        self.seconds_before, self.steps_before = checkpoint.state.seconds, checkpoint.state.step
        where = self.task.folder / CHECKPOINTS / checkpoint.state.checkpoint
        load_into(self.model, checkpoint.model, where=where)
        try:
            restore_optimizer(self.model, self.optimizer, checkpoint.optimizer, checkpoint.groups)
        except (KeyError, ValueError) as error:
            raise RunIncompatibleError(f"{where} is of another optimizer: {error}", hint=RESTORE) from error
        rng.restore(checkpoint.rng[self.accelerator.process_index], self.accelerator.device)
        if self.accelerator.is_main_process:
            self.restore_best()

    def restore_best(self) -> None:
        """Put the best weights that the state knows to the root of the run, unless they are there.

        What is there may come from before, or from a part of the training that a kill has undone.
        """
        folder, state = self.task.folder, self.state
        try:
            found = read_weights(folder)[1]
            if (found.step, found.val_mse) == (state.best_step, state.best_val_mse):
                return
        except (RunNotFoundError, RunDamagedError):
            pass  # made good from the checkpoint, whose bytes are checked
        name = replace(state, step=state.best_step, scored=True).checkpoint
        best = load_checkpoint(folder / CHECKPOINTS / name)
        publish_weights(folder, best.model, step=state.best_step, val_mse=state.best_val_mse)

    def run(self, checkpoint: Checkpoint | None) -> None:
        """Train to the end, from a checkpoint or from the first step.

        Raises `Interrupted` after a checkpoint was written, and what `train` says.
        """
        if checkpoint is None:
            self.begin()
        else:
            self.go_on(checkpoint)
        try:
            while not self.state.stopped:
                self.obey()
                if self.epoch_is_over():
                    self.finish_epoch()
                else:
                    self.step()
                    if self.state.step % self.config.save_steps == 0:
                        self.save()
        except Interrupted:
            self.save()
            raise

    # A step

    def step(self) -> None:
        """One optimizer step, and its line in the log if one is due."""
        factor = self.schedule.learning_rate_factor(self.state.step)
        set_rates(self.optimizer, factor)
        rows = self.rows_of_step()
        losses = self.gradients(rows)
        norms = [
            float(self.accelerator.clip_grad_norm_(parameters, self.config.clip))
            for parameters in trained_apart(self.model)
        ]
        norm = math.hypot(*norms)
        if not (math.isfinite(losses[0]) and math.isfinite(norm)):
            where = f"in step {self.state.step + 1}, at learning_rate {factor * self.config.learning_rate:.3g}"
            raise ConfigError(
                f"the loss is {losses[0]} and its gradient {norm} {where}",
                hint="lower learning_rate, or set precision to float32",
            )
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.state = replace(
            self.state,
            step=self.state.step + 1,
            position=self.state.position + len(rows),
            sums=tuple(before + loss for before, loss in zip(self.state.sums, losses, strict=True)),
            num_summed=self.state.num_summed + 1,
        )
        self.state = replace(self.state, scored=not self.epoch_is_over())
        if self.state.step % LOG_STEPS == 0:
            self.write_losses()
        self.report_progress(losses[0])

    def rows_of_step(self) -> np.ndarray:
        """The training windows of the next optimizer step, over all processes, int64."""
        if self.epoch_of_order != self.state.epoch:
            self.order = epoch_order(self.config.seed, self.state.epoch, len(self.task.training))
            self.epoch_of_order = self.state.epoch
        return self.order[self.state.position : self.state.position + self.schedule.windows_per_step]

    def gradients(self, rows: np.ndarray) -> list[float]:
        """Put the gradient of the mean loss of these windows into the parameters; returns the losses (`LOSSES`)."""
        self.model.train()
        weight = aux_weight(self.config, self.state.step)
        losses = torch.zeros(len(LOSSES), device=self.accelerator.device)
        for batch_rows in batches_of(rows, self.config.batch_size):
            mine = self.share(batch_rows)
            if len(mine):
                parts = self.losses_of(self.task.training, mine, weight)
                share = len(mine) / len(rows)
                self.accelerator.backward(parts.total * share)
                losses += share * torch.stack([parts.total, parts.mse, parts.trend, parts.retrieval]).detach()
        return [float(loss) for loss in sum_gradients(self.accelerator, self.model, losses).tolist()]

    def losses_of(self, windows: Windows, rows: np.ndarray, weight: float) -> LossParts:
        """The losses of some windows, in the precision of this training."""
        batch = windows.batch(rows).to(self.accelerator.device)
        with self.accelerator.autocast():
            return self.task.loss(self.model, batch, weight)

    def share(self, rows: np.ndarray) -> np.ndarray:
        """This process's part of a batch; it may be empty."""
        return share_of(rows, self.accelerator.process_index, self.accelerator.num_processes)

    # The end of an epoch

    def epoch_is_over(self) -> bool:
        """Whether all windows, or all planned steps, are used."""
        return self.state.position >= len(self.task.training) or self.state.step >= self.schedule.planned_steps

    def finish_epoch(self) -> None:
        """Validate, keep the best, decide whether to stop, write a checkpoint."""
        self.write_losses()
        val_mse = self.validate()
        is_best = self.task.keeps_last or val_mse < self.state.best_val_mse
        self.state = replace(
            self.state,
            epoch=self.state.epoch + 1,
            position=0,
            scored=True,
            best_val_mse=val_mse if is_best else self.state.best_val_mse,
            best_step=self.state.step if is_best else self.state.best_step,
            epochs_without_better=0 if is_best else self.state.epochs_without_better + 1,
        )
        self.state = replace(self.state, stopped=self.why_stop())
        self.write_line(val_mse=val_mse, best_val_mse=self.state.best_val_mse)
        self.save(is_best=is_best)

    def why_stop(self) -> str:
        """Why the training ends after this epoch, or nothing."""
        if self.state.step >= self.schedule.planned_steps:
            whole = self.config.epochs * self.schedule.steps_per_epoch
            return "epochs" if self.state.step >= whole else "max_steps"
        return "patience" if self.state.epochs_without_better >= self.config.patience else ""

    @torch.no_grad()
    def validate(self) -> float:
        """MSE over all validation windows, each counted once. Raises `Interrupted`, and `ConfigError` if not finite."""
        self.model.eval()
        windows, total = self.task.validation, 0.0
        for rows in batches_of(np.arange(len(windows)), self.config.batch_size):
            self.obey()
            mine = self.share(rows)
            if len(mine):
                total += len(mine) * float(self.losses_of(windows, mine, 0.0).mse)
        summed = torch.tensor(total, dtype=torch.float64, device=self.accelerator.device)
        val_mse = float(self.accelerator.reduce(summed, reduction="sum")) / len(windows)
        if not math.isfinite(val_mse):
            when = f"after step {self.step_number}" if self.step_number else "before training"
            raise ConfigError(
                f"the validation MSE {when} is {val_mse}", hint=f"lower learning_rate ({self.config.learning_rate})"
            )
        return val_mse

    @property
    def step_number(self) -> int:
        """Optimizer steps done; 0 before there is a state."""
        return self.state.step if hasattr(self, "state") else 0

    def obey(self) -> None:
        """Raise `Interrupted`, in all processes, if any of them was asked to stop."""
        if any_process(self.accelerator, self.task.interruption.requested):
            raise Interrupted

    # What is written

    def save(self, *, is_best: bool = False) -> None:
        """Write a checkpoint. is_best: its model then becomes the run's; `go_on` makes good a kill between the two."""
        generators = gather_generators(self.accelerator)  # of all processes, so all have to ask
        if self.task.log is None:
            return
        self.task.log.sync()
        self.state = replace(self.state, seconds=self.seconds())
        tensors, groups = optimizer_state(self.model, self.optimizer)
        checkpoint = Checkpoint(
            state=self.state,
            model=self.model.state_dict(),
            optimizer=tensors,
            groups=groups,
            scheduler={**asdict(self.schedule), "warmup_steps": self.schedule.warmup_steps},
            rng=generators,
            identity=self.task.identity,
        )
        save_checkpoint(self.task.folder, checkpoint)
        if is_best:
            step, val_mse = self.state.best_step, self.state.best_val_mse
            publish_weights(self.task.folder, checkpoint.model, step=step, val_mse=val_mse)
        prune(self.task.folder, self.config.save_total_limit)

    def write_losses(self) -> None:
        """A line with the mean losses of the steps since the last such line, if there were any."""
        num = self.state.num_summed
        if num == 0:
            return
        means: dict[str, float] = {name: total / num for name, total in zip(LOSSES, self.state.sums, strict=True)}
        self.state = replace(self.state, sums=(0.0,) * len(LOSSES), num_summed=0)
        last = self.state.step - 1
        rate = self.config.learning_rate * self.schedule.learning_rate_factor(last)
        self.write_line(**means, learning_rate=rate, aux_weight=aux_weight(self.config, last))

    def write_line(self, **numbers: float) -> None:
        """A line of the log: where the training is, and these numbers."""
        self.state = replace(self.state, num_lines=self.state.num_lines + 1)
        if self.task.log is not None:
            where = {"step": self.state.step, "epoch": self.state.epoch}
            self.task.log.write({**where, **numbers, "seconds": round(self.seconds(), 3)})

    def report_progress(self, loss: float) -> None:
        """Tell the caller, if this is the main process."""
        if self.task.report is None or not self.accelerator.is_main_process:
            return
        pace = (time.monotonic() - self.began_at) / (self.state.step - self.steps_before)
        self.task.report(
            TrainingProgress(
                step=self.state.step,
                total_steps=self.schedule.planned_steps,
                epoch=self.state.epoch,
                loss=loss,
                best_val_mse=self.state.best_val_mse,
                eta_s=pace * (self.schedule.planned_steps - self.state.step),
            )
        )

    def seconds(self) -> float:
        """Of training so far, over all its parts."""
        return self.seconds_before + time.monotonic() - self.began_at
