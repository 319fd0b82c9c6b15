"""Which parameter learns how fast, and the optimizer's state as tensors by name.

How the learning rates change with the step is `schedule.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from forecaster.bounds import above_zero, at_least


@dataclass(frozen=True, kw_only=True)
class OptimizerSettings:
    """How fast the networks learn. clip: largest norm of the gradient of one network."""

    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    clip: float = 1.0

    def __post_init__(self) -> None:
        at_least(self, 0, "weight_decay")
        above_zero(self, "learning_rate", "clip")


def parameter_groups(model: nn.Module, config: OptimizerSettings) -> list[dict[str, Any]]:
    """The trainable parameters of a model in groups, as torch's optimizers take them; empty groups are left out.

    `decayed`: matrices and the like. `plain`: whatever has one dimension, which are biases, norms and scale weights:
    decay would pull them towards something that is not simpler. `initial_lr` is the rate that a schedule multiplies.
    """
    groups: dict[str, list[nn.Parameter]] = {"decayed": [], "plain": []}
    for parameter in model.parameters():
        if parameter.requires_grad:
            groups["plain" if parameter.ndim < 2 else "decayed"].append(parameter)
    return [
        {
            "name": kind,
            "params": parameters,
            "lr": config.learning_rate,
            "initial_lr": config.learning_rate,
            "weight_decay": config.weight_decay if kind == "decayed" else 0.0,
        }
        for kind, parameters in groups.items()
        if parameters
    ]


def trained_apart(model: nn.Module) -> list[list[nn.Parameter]]:
    """The parameters of each of the networks that learn side by side and must not know of each other; else one list."""
    networks = list(getattr(model, "networks", ())) or [model]
    return [list(network.parameters()) for network in networks]


def make_optimizer(model: nn.Module, config: OptimizerSettings) -> torch.optim.AdamW:
    """AdamW over the groups of a model; one without parameters if nothing of it is trained."""
    return torch.optim.AdamW(parameter_groups(model, config) or [{"name": "plain", "params": [], "initial_lr": 0.0}])


def set_rates(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Multiply the initial learning rate of every group."""
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor


def optimizer_state(
    model: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """Tensors by `parameter/field`, and the groups' settings in terms of JSON with the names of their parameters."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    tensors = {
        f"{names[id(parameter)]}/{field}": value
        for parameter, fields in optimizer.state.items()
        for field, value in fields.items()
    }
    groups = [
        {**group, "params": [names[id(parameter)] for parameter in group["params"]]} for group in optimizer.param_groups
    ]
    return tensors, groups


def restore_optimizer(
    model: nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], groups: list[dict[str, Any]]
) -> None:
    """Put an optimizer of the same model back to what `optimizer_state` found. Raises `KeyError`, `ValueError`."""
    places = {name: place for place, name in enumerate(name for group in groups for name in group["params"])}
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        parameter, _, field = name.rpartition("/")
        state.setdefault(places[parameter], {})[field] = value
    ours = [name for group in optimizer_state(model, optimizer)[1] for name in group["params"]]
    if ours != list(places):
        raise ValueError("the optimizer's parameters are others than the model's")
    numbered = [
        {
            # JSON has no tuples, and AdamW's betas are one.
            **{name: tuple(value) if isinstance(value, list) else value for name, value in group.items()},
            "params": [places[name] for name in group["params"]],
        }
        for group in groups
    ]
    optimizer.load_state_dict({"state": state, "param_groups": numbered})
