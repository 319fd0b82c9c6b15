"""A model that trains in milliseconds, its windows and its loss: what the tests of the training loop work on."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import socket
from pathlib import Path
from typing import Any

import numpy as np
import torch
from killing import ready
from torch import Tensor, nn

from forecaster.config import TrainConfig
from forecaster.model.losses import LossParts
from forecaster.model.types import Batch
from forecaster.training.train import TrainResult, train
from forecaster.training.training_loop import TrainingProgress

LOOKBACK, HORIZON = 12, 4
CONFIG = TrainConfig(
    epochs=3, batch_size=16, learning_rate=1e-2, save_steps=4, aux_warmup_steps=10, patience=10, precision="float32"
)
IDENTITY = {"index": {"fingerprint": "f" * 64}, "settings": {"lookback": LOOKBACK}}


class ToyModel(nn.Module):
    """A small network beside a frozen one, which `state_dict` leaves out, and a gate."""

    def __init__(self, dropout: float = 0.2, seed: int = 0) -> None:
        super().__init__()
        self.frozen = nn.Linear(LOOKBACK, LOOKBACK)
        self.network = nn.Sequential(
            nn.Linear(LOOKBACK, 16), nn.LayerNorm(16), nn.Dropout(dropout), nn.Linear(16, HORIZON)
        )
        self.value_gate = nn.Linear(1, HORIZON)
        self.unused = nn.Linear(2, 2)  # never in a forecast, and so never given a gradient
        self.register_buffer("threshold", torch.tensor([0.5]))
        generator, same = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(0)
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                chance = same if name.startswith("frozen.") else generator
                parameter.copy_(torch.randn(parameter.shape, generator=chance) / 3)
        self.frozen.requires_grad_(False)
        self.register_state_dict_post_hook(_leave_out_frozen)

    def forward(self, context: Tensor) -> Tensor:
        """[B, L] -> [B, H]."""
        gate = torch.sigmoid(self.value_gate(context[:, -1:]))
        return gate * self.network(self.frozen(context)) + (1 - gate) * context[:, -1:]


def _leave_out_frozen(_model: nn.Module, state: dict[str, Any], prefix: str, _metadata: Any) -> None:
    for name in [name for name in state if name.startswith(f"{prefix}frozen.")]:
        del state[name]


class ToyWindows:
    """Noisy waves."""

    def __init__(self, num_windows: int, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        steps = np.arange(LOOKBACK + HORIZON) + rng.uniform(0, 20, size=(num_windows, 1))
        self.values = (np.sin(steps / 2) + 0.1 * rng.normal(size=steps.shape)).astype(np.float32)
        self.asked: list[int] = []

    def __len__(self) -> int:
        return len(self.values)

    def batch(self, indices: np.ndarray) -> Batch:
        self.asked += indices.tolist()
        values = torch.from_numpy(self.values[indices])
        return Batch(
            context=values[:, :LOOKBACK],
            future=values[:, LOOKBACK:],
            unit=torch.ones(len(indices)),
            neighbours=None,
        )


def toy_loss(model: nn.Module, batch: Batch, aux_weight: float) -> LossParts:
    forecast = model(batch.context)
    mse = ((forecast - batch.future) / batch.unit[:, None]).square().mean()
    trend = forecast.diff(dim=1).square().mean()
    return LossParts(total=mse + aux_weight * 0.1 * trend, mse=mse, trend=trend, retrieval=torch.zeros_like(mse))


def train_toy(folder: Path, model: nn.Module | None = None, **changed: Any) -> tuple[nn.Module, TrainResult]:
    """Train a fresh toy on 100 windows. changed: settings of `TrainConfig`, or arguments of `train`."""
    names = {field.name for field in dataclasses.fields(TrainConfig)}
    settings = {name: changed.pop(name) for name in list(changed) if name in names}
    arguments = {
        "training": ToyWindows(100),
        "validation": ToyWindows(37, seed=1),
        "loss": toy_loss,
        "identity": IDENTITY,
        "device": "cpu",
        **changed,
    }
    model = ToyModel() if model is None else model
    config = dataclasses.replace(CONFIG, **settings)
    return model, train(model, config=config, folder=folder, **arguments)


def weights_of(model: nn.Module) -> dict[str, list[float]]:
    """Bit for bit, in terms that a test can compare and print."""
    return {name: value.flatten().tolist() for name, value in model.state_dict().items()}


def log_of(folder: Path) -> list[dict[str, Any]]:
    """The lines of the log without their times."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        del line["seconds"]
    return lines


def be_one_process_of(rank: int, num_processes: int, port: int) -> None:
    """What `accelerate launch --cpu` tells a process that it starts."""
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(num_processes),
        LOCAL_WORLD_SIZE=str(num_processes),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        ACCELERATE_USE_CPU="true",
        OMP_NUM_THREADS="1",
        GLOO_SOCKET_IFNAME="lo",
    )


def free_port() -> int:
    """A TCP port that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def train_in_one_of(
    rank: int, num_processes: int, port: int, folder: Path, changed: dict[str, Any]
) -> tuple[dict[str, list[float]], TrainResult] | str:
    """An errand: train as one of several processes, each of which begins with other weights."""
    be_one_process_of(rank, num_processes, port)
    try:
        model, result = train_toy(folder, ToyModel(dropout=changed.pop("dropout", 0.0), seed=rank), **changed)
    except KeyboardInterrupt:
        return "interrupted"
    finally:
        torch.distributed.destroy_process_group()
    return weights_of(model), result


@dataclasses.dataclass
class InterruptAt:
    """A report that sends its own process a signal after so many steps."""

    step: int
    number: int = signal.SIGTERM

    def __call__(self, progress: TrainingProgress) -> None:
        if progress.step == self.step:
            os.kill(os.getpid(), self.number)


def train_until_killed(folder: Path, _log: Path, seed: int) -> None:
    """Train with dropout, going on from where a kill stopped it; ready before the first step, or after it."""
    said = False

    def once_ready(*_: TrainingProgress) -> None:
        nonlocal said
        if not said:
            ready()
        said = True

    if seed % 4 == 0:
        once_ready()
    train_toy(folder, resume=True, report=once_ready, **UNTIL_KILLED)
    once_ready()
    while True:
        pass


UNTIL_KILLED = {"epochs": 40, "save_steps": 2, "save_total_limit": 2}
