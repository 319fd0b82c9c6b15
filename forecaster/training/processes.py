"""What several processes of one training have to tell each other. With a single process all of it costs nothing.

No DistributedDataParallel: trainable weights are few, a process may have no window of a batch, and which parameters are
used may differ between processes. So the gradients of a step are summed once, as one flat vector.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import Tensor, nn

from forecaster.runs.weights import load_into
from forecaster.training import rng
from memory_index.errors import ResourceError

RNG_BYTES = 1 << 15  # room for the generators of one process as JSON, which take about 20 kB
PATIENCE = timedelta(days=1)  # for what one process does while the others wait
LOOK_S = 0.05  # how often a process that waits looks up, for Ctrl-C too

T = TypeVar("T")


def main_first(accelerator: Accelerator, work: Callable[[], T], what: str) -> T:
    """Do something in the main process, then in all others, which find what it has left; all go on together.

    They wait in a group of their own: elsewhere a process that waits for minutes is taken for one that hangs.
    what: such as `find the neighbours`, for messages.

    Raises what `work` raises, and in all other processes `ResourceError`.
    """
    if accelerator.num_processes == 1:
        return work()
    group = torch.distributed.new_group(timeout=PATIENCE, backend="gloo")
    done: list[T] = []
    for is_mine in (accelerator.is_main_process, not accelerator.is_main_process):
        failure = None
        if is_mine:
            try:
                done.append(work())
            except Exception as error:  # noqa: BLE001 - raised below, when the others know
                failure = error
        failed_elsewhere = _any_waiting(group, failure is not None)
        if failure is not None:
            raise failure
        if failed_elsewhere:
            raise ResourceError(f"another process of this training could not {what}", hint="its message says why")
    torch.distributed.destroy_process_group(group)
    return done[0]


def _any_waiting(group: torch.distributed.ProcessGroup, flag: bool) -> bool:
    """Whether the flag is set in any process of a group, when all have come here."""
    flags = torch.tensor(float(flag))
    try:
        waiting = torch.distributed.all_reduce(flags, group=group, async_op=True)
        while not waiting.is_completed():
            time.sleep(LOOK_S)
        waiting.wait()
    except RuntimeError as error:  # torch has no type of its own for a connection that is gone
        raise ResourceError(
            "another process of this training has ended", hint="its message says why, unless it was killed"
        ) from error
    return float(flags) > 0


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
