"""Where training computes: the accelerator, and what is said when memory runs out. Which device is `placement.py`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from accelerate.utils import DistributedType, GradientAccumulationPlugin

from forecaster.config import Precision, TrainConfig
from forecaster.errors import ConfigError
from forecaster.language_models.placement import resolve_device, resolve_precision
from memory_index.errors import ResourceError

DISTRIBUTED = {DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU}
OUT_OF_MEMORY = ("can't allocate memory", "not enough memory", "out of memory")


def make_accelerator(device: str, precision: Precision, *, llm_width: int = 0) -> Accelerator:
    """The devices and processes that a training runs on.

    device: `auto`, `cpu` or `cuda`. Under `accelerate launch` each process gets one of its own.

    Raises `ConfigError` for a device that is not there, or a kind of distribution that the training loop does not know.
    """
    kind = resolve_device(device).type
    mixed = {"float32": "no", "bf16": "bf16"}[resolve_precision(precision, kind, llm_width=llm_width)]
    _forget_other_state(kind, mixed)
    accelerator = Accelerator(
        cpu=kind == "cpu",
        mixed_precision=mixed,
        # Said outright, because otherwise an environment variable decides. Accumulation is in `training_loop.py`.
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
    )
    if accelerator.distributed_type not in DISTRIBUTED:
        raise ConfigError(
            f"training does not run under {accelerator.distributed_type}",
            hint="use several GPUs or CPUs, without sharding",
        )
    return accelerator


@contextmanager
def out_of_memory_named(config: TrainConfig) -> Iterator[None]:
    """Raise running out of memory inside the block as `ResourceError` that names the settings to lower."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:  # torch.OutOfMemoryError is a RuntimeError
        if not _is_out_of_memory(error):
            raise
        raise ResourceError(
            f"out of memory with batch_size {config.batch_size}",
            hint="lower batch_size (and raise accumulation as much), lookback or llm_layers",
        ) from error


def _is_out_of_memory(error: Exception) -> bool:
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    # The CPU allocator raises a plain RuntimeError, and only its text says what it is.
    return "DefaultCPUAllocator" in str(error) and any(words in str(error) for words in OUT_OF_MEMORY)


def _forget_other_state(kind: str, mixed: str) -> None:
    """Let accelerate start over if this process has used it for another kind of device or precision.

    It keeps one state per process and refuses to change it; there is no public way, and its own launchers do this too.
    """
    if not AcceleratorState._shared_state:
        return
    state = AcceleratorState()
    if PartialState().device.type != kind or state.mixed_precision != mixed:
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
