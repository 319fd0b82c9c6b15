"""Where training computes: the accelerator, the precision, and what is said when memory runs out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from accelerate.utils import DistributedType, GradientAccumulationPlugin

from forecaster.config import Precision, TrainConfig
from forecaster.errors import ConfigError
from memory_index.errors import ResourceError

WIDE = 256  # numbers; from this width of a language model on, a CPU with bf16 instructions uses them
DISTRIBUTED = {DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU}
OUT_OF_MEMORY = ("can't allocate memory", "not enough memory", "out of memory")


def make_accelerator(device: str, precision: Precision, *, llm_width: int = 0) -> Accelerator:
    """The devices and processes that a training runs on.

    device: `auto`, `cpu` or `cuda`. Under `accelerate launch` each process gets one of its own.

    Raises `ConfigError` for a device that is not there, or a kind of distribution that the training loop does not know.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise ConfigError(f"unknown device '{device}'", hint="choose auto, cpu or cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("there is no CUDA device that torch can use", hint="choose --device cpu")
    kind = "cpu" if device == "cpu" or not torch.cuda.is_available() else "cuda"
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


def resolve_precision(precision: Precision, kind: str, *, llm_width: int) -> Literal["float32", "bf16"]:
    """What `auto` means: bf16 on a GPU that has it, and on a CPU that has it if the language model is wide.

    kind: of device, `cpu` or `cuda`. llm_width: of the frozen language model in numbers, 0 without one.

    Forward and backward through a frozen block of width 768 take a quarter of the time in bf16 on a CPU with
    AVX512-BF16. A narrow model is fast anyway, and keeps float32.
    """
    if precision != "auto":
        return precision
    if kind == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    return "bf16" if llm_width >= WIDE and cpu_has_bf16() else "float32"


def cpu_has_bf16() -> bool:
    """Whether this CPU multiplies bf16 numbers in hardware."""
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def hardware(accelerator: Accelerator) -> dict[str, str | int]:
    """What the training runs on, for the record."""
    on_gpu = accelerator.device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(accelerator.device) if on_gpu else "cpu",
        "num_processes": accelerator.num_processes,
        "num_threads": torch.get_num_threads(),
        "precision": {"no": "float32"}.get(accelerator.mixed_precision, accelerator.mixed_precision),
    }


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
