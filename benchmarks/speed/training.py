"""A training step and the neighbours of its batch: from the cache, and straightforwardly, asked of the memory live.

The live form is given the best batch that it could have: 32 moments of all 7 series, 224 windows, so that whole moments
are asked at once. A shuffled batch holds some 200 moments, and would ask for seven times as many windows. Both forms
read the same windows.

What has to be done, in numbers: B = 224 windows of a step, n = 75,726 of ETTh1's training part, L = 512, H = 96, V = 9
key spaces, M = 2 bases, F = 3 folds.

    a step of the network   33 GFLOP, 19 of them the attention of patches over prototypes and within the language model,
                            forward and backward, the rest matrices
    fit of the value gate   the linear map of every fold, 2 n F L H = 22 GFLOP; the matrices of errors,
                            2 n (M + V)^2 H = 1.8 GFLOP; forecasts read, 4 n V H = 0.26 GB, once
    its straightforward     gradient steps, three epochs: the same maps and forecasts three times, and in each step
                            dozens of passes over [B, M + V, H], 0.9 MB each

So a step of the network is limited by products and attention, and the fit of the gate by the product with the maps and
by reading the forecasts. The table says how many operations a step has by the count of `torch.utils.flop_counter`, how
quick they went beside the quickest product of this machine, and in which operators `torch.profiler` saw most of the
time.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from statistics import median
from typing import NamedTuple

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from benchmarks.report import Figure, timed
from benchmarks.speed.stage import NAME, WINDOW, Stage
from benchmarks.speed.turns import in_turns, medians, ratio
from forecaster.config import Config
from forecaster.language_models.placement import place_backbone
from forecaster.model.model import ForecastModel
from forecaster.model.types import Batch
from forecaster.retrieval.batches import CachedWindows
from forecaster.retrieval.neighbours import condense, neighbour_tensors
from forecaster.training.closed_form import fit_closed_form
from forecaster.training.fit import run_record
from forecaster.training.fit_gate import fit_value_gate
from forecaster.training.fit_networks import batch_loss
from forecaster.training.optimizer import make_optimizer
from forecaster.training.windows import windows_of
from memory_index.leakage import Policy
from memory_index.queries import query_blocks

MOMENTS = 32
PARTS = ("use_network", "use_tapr", "use_llm")
SQUARE, PRODUCTS = 1024, 5  # of the product whose speed is this machine's best
PROFILED, SHOWN = 3, 3  # steps, and operators of them
ATTENTION = {  # which the count of torch does not know on a processor
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: (
        lambda grad, q, k, v, *_, **__: sdpa_backward_flop_count(grad, q, k, v)
    ),
}


class Trainee(NamedTuple):
    """A model in training. windows: with neighbours from the cache. step: forward, backward and optimizer."""

    config: Config
    model: ForecastModel
    windows: CachedWindows
    step: Callable[[Batch], None]


def figures(stage: Stage) -> list[Figure]:
    """In the order of the table."""
    assert stage.run.is_dir(), "its training has left the neighbours of all windows"
    network, gate = (trainee(stage, stage.config(**dict.fromkeys(PARTS, on))) for on in (True, False))
    return [*step_figures(stage, network, fastest_product()), *gate_figures(gate)]


def trainee(stage: Stage, config: Config) -> Trainee:
    """A model with all that its training would have, before the first step."""
    backbone = place_backbone(config, "cpu")
    table, memory = stage.table, stage.memory
    record = run_record(table, memory, f"{NAME}@1", config, backbone, "cpu")
    windows = windows_of(table, memory, config, record, "train", stage.neighbours)
    model = ForecastModel(config.model, num_spaces=len(memory.manifest.spaces), backbone=backbone)
    fit_closed_form(model, windows, table, config)
    if not config.model.use_network:
        model.value_gate.logits.requires_grad_(True)  # for the straightforward form
    optimizer = make_optimizer(model, config.train)

    def step(batch: Batch) -> None:
        batch_loss(model, batch, config, 1.0).total.backward()
        optimizer.step()
        optimizer.zero_grad()

    return Trainee(config, model, windows, step)


def gate_figures(gate: Trainee) -> list[Figure]:
    """The value gate in closed form, and an epoch of gradient steps on the same windows."""
    size, num = gate.config.train.batch_size, len(gate.windows)

    def epoch() -> None:
        for start in range(0, num, size):
            gate.step(gate.windows.batch(np.arange(start, min(num, start + size))))

    by_steps, _ = timed(epoch)
    closed, _ = timed(lambda: fit_value_gate(gate.model, gate.windows, gate.config.train.gate_shrinkage))
    return [
        Figure(
            f"value gate of {num:,} training windows, in closed form",
            f"{closed:.1f} s",
            "",
            f"one epoch of gradient steps: {by_steps:.1f} s, {by_steps / closed:.1f} x slower, and it takes several",
        )
    ]


def step_figures(stage: Stage, model: Trainee, fastest: float) -> list[Figure]:
    """The network's step, and what its batch takes of it, from the cache and live."""
    without = dataclasses.replace(model.windows, condensed=None)
    num_series = len(stage.table.series)
    moments = np.random.default_rng(0).permutation(len(model.windows) // num_series)

    def batch_of(turn: int) -> np.ndarray:
        """Windows of the moments of a turn: they are in time order, then by series."""
        first = turn * MOMENTS % max(1, len(moments) - MOMENTS)
        return (moments[first : first + MOMENTS, None] * num_series + np.arange(num_series)).ravel()

    actions = {
        "plain": lambda turn: without.batch(batch_of(turn)),
        "cached": lambda turn: model.windows.batch(batch_of(turn)),
        "live": lambda turn: live(stage, model, without, batch_of(turn)),
        "step cached": lambda turn: model.step(model.windows.batch(batch_of(turn))),
        "step live": lambda turn: model.step(live(stage, model, without, batch_of(turn))),
    }
    times = in_turns(actions, stage.sizes.steps, warm=2)
    seconds = {name: 1e3 * each for name, each in medians(times).items()}
    read = 1e3 * median(a - b for a, b in zip(times["cached"], times["plain"], strict=True))
    batch = model.windows.batch(batch_of(0))
    flops, operators = counted(lambda: model.step(batch))
    compute = seconds["step cached"] - seconds["cached"]
    return [
        Figure(
            f"neighbours of a batch of {len(batch)} from the cache",
            f"{read:.1f} ms, **{read / seconds['step cached']:.2%}** of a training step",
            "at most 5%",
            f"asked of the memory: {seconds['live']:.0f} ms, {ratio(times, 'live', 'cached'):.0f} x slower",
        ),
        Figure(
            "training step with the network",
            f"{seconds['step cached']:.1f} ms",
            "",
            f"searching in each step: {seconds['step live']:.0f} ms, "
            f"{ratio(times, 'step live', 'step cached'):.1f} x slower",
        ),
        Figure(
            "what that step has to do",
            f"{flops / 1e9:.2f} GFLOP at {flops / compute / 1e6:.0f} GFLOP/s; {operators}",
            "",
            f"a product of {SQUARE} x {SQUARE}: {fastest / 1e9:.0f} GFLOP/s",
        ),
    ]


def live(stage: Stage, model: Trainee, without: CachedWindows, indices: np.ndarray) -> Batch:
    """The same batch, its neighbours asked of the memory under the policy of training."""
    memory, table, settings = stage.memory, stage.table, model.config
    spaces = memory.manifest.key_spaces
    rows = np.unique(model.windows.position[indices] % len(table.series[0]))  # all series have as many steps
    origins = [rows] * len(table.series)
    [asked] = query_blocks(table, origins, WINDOW, Policy.DISJOINT, known=table.series_ids, block=MOMENTS)
    found = condense(memory.search(asked.queries, settings.train.memory_k), spaces, horizon=WINDOW.horizon)
    order = np.argsort(np.argsort(model.windows.position[indices] % len(table.series[0]), kind="stable"))
    neighbours = neighbour_tensors(
        found.take(order),
        memory.windows,
        spaces,
        lookback=WINDOW.lookback,
        horizon=WINDOW.horizon,
        top_k=settings.model.top_k,
    )
    return dataclasses.replace(without.batch(indices), neighbours=neighbours)


def counted(step: Callable[[], None]) -> tuple[int, str]:
    """Floating point operations of a step's products, and the operators that took most of the processor's time."""
    with FlopCounterMode(display=False, custom_mapping=ATTENTION) as counter:
        step()
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        for _ in range(PROFILED):
            step()
    averages = profiled.key_averages()
    total = sum(event.self_cpu_time_total for event in averages)
    most = sorted(averages, key=lambda event: -event.self_cpu_time_total)[:SHOWN]
    named = ", ".join(f"`{event.key}` {event.self_cpu_time_total / total:.0%}" for event in most)
    return counter.get_total_flops(), named


def fastest_product() -> float:
    """Floating point operations a second of a large float32 product."""
    matrix = torch.rand(SQUARE, SQUARE)
    return 2 * SQUARE**3 / min(timed(lambda: matrix @ matrix)[0] for _ in range(PRODUCTS))
