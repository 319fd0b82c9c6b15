"""What the value of a setting may be; each record of settings checks its own with these (`config.py`)."""

from __future__ import annotations

from typing import Any, get_args

from forecaster.errors import ConfigError


def at_least(record: object, least: int, *names: str) -> None:
    """Raise `ConfigError` for the first of these settings that is below `least`, or not a number."""
    for name in names:
        if not getattr(record, name) >= least:
            raise ConfigError(f"{name} is {getattr(record, name)}, but must be at least {least}")


def above_zero(record: object, *names: str) -> None:
    """Raise `ConfigError` for the first of these settings that is not above 0."""
    for name in names:
        if not getattr(record, name) > 0:
            raise ConfigError(f"{name} is {getattr(record, name)}, but must be above 0")


def one_of(record: object, name: str, choices: Any) -> None:
    """Raise `ConfigError` if a setting is none of the values of a `Literal`."""
    *some, last = get_args(choices)
    if getattr(record, name) not in get_args(choices):
        raise ConfigError(f"unknown {name} '{getattr(record, name)}'", hint=f"choose {', '.join(some)} or {last}")
