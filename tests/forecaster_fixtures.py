"""A model small enough to be trained in two seconds, the memory that it is trained against, and neighbours made up."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from killing import ready
from memory_fixtures import ENCODER, WINDOW, Store, build, open_version, wide_table
from torch import nn
from toy_training import be_one_process_of

from forecaster.config import Config, ModelConfig
from forecaster.language_models.loading import load_backbone
from forecaster.model.model import ForecastModel
from forecaster.model.types import NeighbourTensors
from forecaster.predictor import Predictor, load_predictor
from forecaster.retrieval.batches import live_blocks
from forecaster.runs.run import begun_run, open_run
from forecaster.training import train
from forecaster.training.fit import Trained, train_run
from memory_index.access import Access
from memory_index.errors import ServiceError
from memory_index.local import LocalMemory
from memory_index.memory import Memory
from memory_index.neighbours import Neighbours
from memory_index.references import open_memory
from memory_index.splits import split_by_name
from memory_index.tables.series import SeriesTable

SHORT_S, LONG_S = 6.0, 600.0  # that a collective waits: other processes may be kept from a busy core
NUM_STEPS = 420  # 252 to train, 84 to validate, 84 to test
TABLE = wide_table(NUM_STEPS)
SPLIT = split_by_name("60/20/20", TABLE.times)
K = 5
# A lookback shorter than the version's; the horizon is the version's, so that the memory can be scored beside it.
SETTINGS: dict[str, Any] = {
    "lookback": 32,
    "horizon": WINDOW.horizon,
    "patch_length": 8,
    "patch_stride": 4,
    "d_model": 8,
    "num_heads": 2,
    "d_ff": 16,
    "num_prototypes": 16,
    "llm_layers": 1,
    "n_scales": 2,
    "top_k": 3,
    "memory_k": K,
    "num_folds": 2,
    "batch_size": 64,
    "learning_rate": 0.01,
    "epochs": 3,
    "patience": 3,
    "aux_warmup_steps": 4,
    "save_steps": 4,
}
WITHOUT_NETWORK = {"use_tapr": False, "use_llm": False, "use_network": False}


def config_of(**changed: Any) -> Config:
    return Config.from_dict(SETTINGS | changed)


def memory_of(folder: Path, table: SeriesTable = TABLE, **options: Any) -> LocalMemory:
    """The usual version of a table, in a store of its own; its reference is `m@1`."""
    arguments = {"window": WINDOW, "split": SPLIT, "encoder": ENCODER} | options
    return open_version(build(table, Store(folder), "m", **arguments), threads=1)


def train_small(memory: Memory, out: Path, table: SeriesTable = TABLE, **changed: Any) -> Trained:
    """Train in the folder `out`. changed: settings, or arguments of `train_run`. Neighbours are kept beside `out`."""
    arguments = {name: changed.pop(name) for name in ("resume", "progress", "note") if name in changed}
    neighbours = changed.pop("neighbours_dir", out.parent / "neighbours")
    return train_run(
        table, memory, "m@1", config_of(**changed), out, neighbours_dir=neighbours, device="cpu", **arguments
    )


@dataclass(frozen=True, kw_only=True, repr=False)
class Small:
    """A trained run and what belongs to it. folder: holds `indexes`, `neighbours` and `run`."""

    folder: Path
    memory: LocalMemory
    trained: Trained
    predictor: Predictor


@cache
def make_small(base: Path) -> Small:
    """Made once for all test files that share a process; nothing may change it. base: `getbasetemp()` of pytest."""
    folder = base / "small"
    memory = memory_of(folder / "indexes")
    trained = train_small(memory, folder / "run")
    return Small(folder=folder, memory=memory, trained=trained, predictor=load_predictor(trained.run, device="cpu"))


def train_small_in_one_of(
    rank: int, num_processes: int, port: int, folder: Path, changed: dict[str, Any]
) -> tuple[dict[str, list[float]], float]:
    """An errand: `train_small` as one of several processes, against the version in `folder`.

    All but the main one are slow to look at what is in the run folder. Returns the weights and the best validation MSE.
    """
    be_one_process_of(rank, num_processes, port)
    look = train._where_to_begin
    train._where_to_begin = lambda *where, **options: (time.sleep(0.5 * rank), look(*where, **options))[1]
    try:
        memory = open_version(Store(folder / "indexes").resolve("m"), threads=1)
        trained = train_small(memory, folder / f"run-of-{num_processes}", **changed)
        weights = {name: value.flatten().tolist() for name, value in trained.run.weights()[0].items()}
        return weights, trained.result.best_val_mse
    finally:
        torch.distributed.destroy_process_group()


def hold_until_killed(run: Path, log: Path, _seed: int) -> None:
    """Be the one who trains in a run, as far as others can see."""
    with begun_run(run, open_run(run).record, resume=True):
        ready()
        while True:
            pass


class Troubled:
    """A memory to which something happens before every answer."""

    def __init__(self, memory: Memory, trouble: Callable[[], None]) -> None:
        self.memory, self.trouble = memory, trouble

    def __getattr__(self, name: str) -> Any:
        return getattr(self.memory, name)

    def search(self, *arguments: Any, **options: Any) -> Neighbours:
        self.trouble()
        return self.memory.search(*arguments, **options)


def token_of(rank: int) -> str:
    """What one of several processes shows to a service."""
    return f"token-of-the-process-{rank}"


def train_at_address_in_one_of(
    rank: int, port: int, ref: str, out: Path, changed: dict[str, Any], trouble: Callable[[], None] | None
) -> dict[str, list[float]] | str:
    """An errand: `train_small` as one of two processes, whose collectives do not wait for long if that is the trouble.

    trouble: happens to the main process before each answer. Returns the weights.
    """
    be_one_process_of(rank, 2, port)
    torch.distributed.init_process_group("gloo", timeout=timedelta(seconds=SHORT_S if trouble is linger else LONG_S))
    try:
        memory = open_memory("", ref, access=Access(token=token_of(rank)))
        if rank == 0 and trouble is not None:
            memory = Troubled(memory, trouble)
        trained = train_small(memory, out, **changed)
        return {name: value.flatten().tolist() for name, value in trained.run.weights()[0].items()}
    except KeyboardInterrupt:
        return "interrupted"
    finally:
        torch.distributed.destroy_process_group()


lingered = False  # in this process


def linger() -> None:
    """Trouble: the first answer takes longer than a collective waits."""
    global lingered
    if not lingered:
        time.sleep(SHORT_S + 0.5)
    lingered = True


def refuse() -> None:
    """Trouble."""
    raise ServiceError("the service refuses")


def interrupt() -> None:
    """Trouble."""
    raise KeyboardInterrupt


def forecasts_at(
    predictor: Predictor, memory: LocalMemory, table: SeriesTable, origins: list[np.ndarray]
) -> dict[tuple[str, int], np.ndarray]:
    """The forecast [H] of every window that is asked for, by series and origin row."""
    found = {}
    config = predictor.config
    for block in live_blocks(memory, table, origins, config.model, config.train.memory_k, predictor.units):
        made = predictor.predict(block.batch).forecast.reshape(*block.asked.wanted.shape, -1)
        for b, n in np.argwhere(block.asked.wanted):
            found[table.series_ids[block.asked.series[n]], int(block.asked.row[b, n])] = made[b, n]
    return found


# A model and neighbours without any data


def make_model(num_spaces: int = 4, *, seed: int = 0, **changed: Any) -> ForecastModel:
    """A model whose every part says something: nothing is left at the zeros that it starts with."""
    config = model_config(**changed)
    torch.manual_seed(seed)
    backbone = load_backbone(config.llm, layers=config.llm_layers) if config.use_llm else None
    num_networks = 1 if config.is_network_alone else 2
    model = ForecastModel(config, num_spaces=num_spaces, backbone=backbone, num_networks=num_networks)
    if model.shortcut is not None:
        weight = torch.randn(config.lookback, config.horizon).numpy() / config.lookback
        model.shortcut.set_weights(weight, [weight, -weight])
    for network in model.networks:
        if network.tapr is not None:
            network.tapr.thresholds.copy_(torch.tensor([-1.0, -0.5, 0.0, 0.5, 1.0]))
    awaken(model)
    return model.eval()


def awaken(module: nn.Module) -> None:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))


def model_config(**changed: Any) -> ModelConfig:
    return config_of(dropout=0.0, **changed).model


def make_neighbours(
    config: ModelConfig,
    num: int,
    *,
    num_spaces: int = 4,
    seed: int = 1,
    valid: torch.Tensor | None = None,
    found: torch.Tensor | None = None,
) -> NeighbourTensors:
    """Random neighbours of `num` windows around 0; all of them are there unless `valid` or `found` say otherwise."""
    generator = torch.Generator().manual_seed(seed)
    slots = config.top_k
    valid = torch.ones(num, slots, dtype=torch.bool) if valid is None else valid
    logit = torch.randn(num, slots, generator=generator).masked_fill(~valid, -torch.inf)
    return NeighbourTensors(
        forecasts=torch.randn(num, num_spaces, config.horizon, generator=generator),
        found=torch.ones(num, num_spaces, dtype=torch.bool) if found is None else found,
        contexts=torch.randn(num, slots, config.lookback, generator=generator),
        futures=torch.randn(num, slots, config.horizon, generator=generator),
        similarity=logit.softmax(dim=1).nan_to_num(0),
        valid=valid,
    )
