"""What is seen of a training under way."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

from cli.output import duration, note

if TYPE_CHECKING:
    from cli.output import Report
    from forecaster.training.train import TrainingProgress

SECONDS = 60  # between two lines about a training, where there is no bar


class TrainingShown:
    """What is seen of a training under way: a bar on a terminal, elsewhere a line per epoch and about one a minute."""

    def __init__(self, bar: Report, *, num_epochs: int) -> None:
        self.bar, self.num_epochs, self.before = bar, num_epochs, ""
        self.epoch, self.told_at = 0, time.monotonic()

    def neighbours(self, done: float, total: float | None) -> None:
        """Called while neighbours are found, with windows."""
        self.bar(done, total, f"{self.before}finding neighbours")

    def step(self, progress: TrainingProgress) -> None:
        """Called after each step of the training."""
        loss = f"loss {progress.loss:.4f}, best validation MSE {progress.best_val_mse:.4f}"
        epoch = f"{self.before}epoch {progress.epoch + 1} of {self.num_epochs}"
        self.bar(progress.step, progress.total_steps, f"{epoch}, {loss}")
        if sys.stderr.isatty() or (progress.epoch == self.epoch and time.monotonic() - self.told_at < SECONDS):
            return
        self.epoch, self.told_at = progress.epoch, time.monotonic()
        left = f"{duration(progress.eta_s)} left at most"
        note(f"{epoch}, step {progress.step:,} of {progress.total_steps:,}: {loss}, {left}")
