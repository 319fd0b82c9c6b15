"""What several processes of one training have to tell each other. With a single process all of it costs nothing.

No DistributedDataParallel: trainable weights are few, a process may have no window of a batch, and which parameters are
used may differ between processes. So the gradients of a step are summed once, as one flat vector.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import Tensor, nn

from forecaster import rng
from forecaster.weights import load_into

RNG_BYTES = 1 << 15  # room for the generators of one process as JSON, which take about 20 kB


def agree_on_weights(accelerator: Accelerator, model: nn.Module, *, where: Path) -> None:
    """Give every process the weights of the main one."""
    if accelerator.num_processes > 1:
        load_into(model, {name: broadcast(value.clone()) for name, value in model.state_dict().items()}, where=where)


def any_process(accelerator: Accelerator, flag: bool) -> bool:
    """Whether the flag is set in any process; the same answer in all."""
    if accelerator.num_processes == 1:
        return flag
    return float(accelerator.reduce(torch.tensor(float(flag), device=accelerator.device), reduction="sum")) > 0


def sum_gradients(accelerator: Accelerator, model: nn.Module, losses: Tensor) -> Tensor:
    """Sum the gradients of all parameters over all processes, in place; returns the sum of `losses`, float32 [any].

    A parameter that no process used keeps no gradient, as in a single process.
    """
    if accelerator.num_processes == 1:
        return losses
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    used = torch.tensor([float(parameter.grad is not None) for parameter in parameters], device=losses.device)
    flat = [(torch.zeros_like(each) if each.grad is None else each.grad).flatten() for each in parameters]
    sizes = [len(losses), len(used), *(len(each) for each in flat)]
    losses, used, *sums = accelerator.reduce(torch.cat([losses, used, *flat]), reduction="sum").split(sizes)
    for parameter, is_used, gradient in zip(parameters, used.tolist(), sums, strict=True):
        parameter.grad = gradient.view_as(parameter).clone() if is_used else None
    return losses


def gather_generators(accelerator: Accelerator) -> list[dict[str, Any]]:
    """The state of the random number generators of every process, in all of them."""
    mine = rng.capture(accelerator.device)
    if accelerator.num_processes == 1:
        return [mine]
    text = json.dumps(mine).encode().ljust(RNG_BYTES)  # all must have one length
    assert len(text) == RNG_BYTES
    packed = torch.frombuffer(bytearray(text), dtype=torch.uint8)[None].to(accelerator.device)
    return [json.loads(row.cpu().numpy().tobytes()) for row in accelerator.gather(packed)]
