"""Which device a model is on, and in which precision its frozen language model computes.

Light on purpose: a forecast needs this, and not what training needs (`devices.py`).
"""

from __future__ import annotations

from typing import Literal

import torch

from forecaster.config import Config, Precision
from forecaster.errors import ConfigError
from forecaster.language_models.backbone import Backbone
from forecaster.language_models.loading import load_backbone

WIDE = 256  # numbers; from this width of a language model on, a CPU with bf16 instructions uses them


def resolve_device(device: str) -> torch.device:
    """`auto`, `cpu` or `cuda` as a device of this machine. Raises `ConfigError` for one that is not there."""
    if device not in ("auto", "cpu", "cuda"):
        raise ConfigError(f"unknown device '{device}'", hint="choose auto, cpu or cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("there is no CUDA device that torch can use", hint="choose --device cpu")
    return torch.device("cpu" if device == "cpu" or not torch.cuda.is_available() else "cuda")


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


def place_backbone(config: Config, device: str) -> Backbone | None:
    """The language model of some settings on its device, in the precision that they mean; None without one.

    Raises what `load_backbone` and `resolve_device` raise.
    """
    if not config.model.use_llm:
        return None
    target = resolve_device(device)
    backbone = load_backbone(config.model.llm, layers=config.model.llm_layers)
    precision = resolve_precision(config.train.precision, target.type, llm_width=backbone.width)
    backbone.to(target, torch.bfloat16 if precision == "bf16" else torch.float32)
    return backbone


def hardware(config: Config, device: str, *, llm_width: int) -> dict[str, str | int]:
    """What a training runs on, for its record. llm_width: as in `resolve_precision`."""
    target = resolve_device(device)
    return {
        "device": torch.cuda.get_device_name(target) if target.type == "cuda" else "cpu",
        "num_threads": torch.get_num_threads(),
        "precision": resolve_precision(config.train.precision, target.type, llm_width=llm_width),
    }
