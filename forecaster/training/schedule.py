"""What happens at which step of a training: which windows, what learning rate, what weight of the auxiliary losses.

All of it is a pure function of settings, epoch and step, so the state of sampler and scheduler is a few numbers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self

import numpy as np

from forecaster.bounds import at_least

WARMUP_SHARE = 0.05  # of the planned steps
MAX_WARMUP_STEPS = 100
FINAL_FACTOR = 0.01  # of the learning rate, at the last planned step


@dataclass(frozen=True, kw_only=True)
class ScheduleSettings:
    """How long it is trained, in which portions.

    batch_size: windows of one optimizer step, over all processes, before accumulation. patience: epochs without a
    better validation MSE before it stops. aux_warmup_steps: the auxiliary losses' weight rises from 0 to 1 over so
    many.
    """

    epochs: int = 3
    max_steps: int | None = None
    batch_size: int = 224
    accumulation: int = 1
    patience: int = 1
    aux_warmup_steps: int = 500

    def __post_init__(self) -> None:
        at_least(self, 1, "epochs", "batch_size", "accumulation", "patience")
        at_least(self, 0, "aux_warmup_steps")
        if self.max_steps is not None:
            at_least(self, 1, "max_steps")


@dataclass(frozen=True, kw_only=True, slots=True)
class Schedule:
    """The plan of a whole training.

    num_windows: of the training split. windows_per_step: of one optimizer step, over all processes and all batches
    that are accumulated. steps_per_epoch, planned_steps: optimizer steps; early stopping may take fewer.
    """

    num_windows: int
    windows_per_step: int
    steps_per_epoch: int
    planned_steps: int

    @classmethod
    def of(cls, config: ScheduleSettings, num_windows: int) -> Self:
        """The plan that the settings make for so many training windows."""
        windows_per_step = config.batch_size * config.accumulation
        steps_per_epoch = math.ceil(num_windows / windows_per_step)
        planned_steps = config.epochs * steps_per_epoch
        if config.max_steps is not None:
            planned_steps = min(planned_steps, config.max_steps)
        return cls(
            num_windows=num_windows,
            windows_per_step=windows_per_step,
            steps_per_epoch=steps_per_epoch,
            planned_steps=planned_steps,
        )

    @property
    def warmup_steps(self) -> int:
        """Steps over which the learning rate rises."""
        return min(MAX_WARMUP_STEPS, math.ceil(WARMUP_SHARE * self.planned_steps))

    def learning_rate_factor(self, step: int) -> float:
        """By what the learning rates are multiplied in step 0, 1, ...: a linear rise, then half a cosine to 1%."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        progress = (step - self.warmup_steps) / max(1, self.planned_steps - 1 - self.warmup_steps)
        return FINAL_FACTOR + (1 - FINAL_FACTOR) * (1 + math.cos(math.pi * min(1.0, progress))) / 2


def aux_weight(config: ScheduleSettings, step: int) -> float:
    """Weight of the auxiliary losses in step 0, 1, ...: from 0 to 1 over the warm-up steps."""
    return min(1.0, step / config.aux_warmup_steps) if config.aux_warmup_steps else 1.0


def epoch_order(seed: int, epoch: int, num_windows: int) -> np.ndarray:
    """The order of the training windows in an epoch: int64 [num_windows], a permutation that the seed decides."""
    return np.random.default_rng([seed, epoch]).permutation(num_windows)


def batches_of(rows: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """The windows of one optimizer step in batches, of which the last may be smaller."""
    return [rows[begin : begin + batch_size] for begin in range(0, len(rows), batch_size)]


def share_of(rows: np.ndarray, process: int, num_processes: int) -> np.ndarray:
    """The part of a batch that one of several processes computes; with few windows some parts are empty."""
    return np.array_split(rows, num_processes)[process]
