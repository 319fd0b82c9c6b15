"""How a service is reached, and what it allows: the options of `cli index serve`, as one `Settings`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.record_options import with_record

if TYPE_CHECKING:
    from memory_index.service.serving import Settings


def _count(default: str, text: str) -> tuple[Any, Any]:
    return Annotated[int | None, typer.Option(help=text, min=1, show_default=default)], None


def _host(default: str, text: str) -> tuple[Any, Any]:
    return Annotated[str | None, typer.Option(help=text, show_default=default)], None


def _port(default: str, text: str) -> tuple[Any, Any]:
    return Annotated[int | None, typer.Option(help=text, min=0, max=65535, show_default=default)], None


def _file(text: str) -> tuple[Any, Any]:
    return Annotated[Path | None, typer.Option(help=text)], None


def _flag(flag: str, text: str) -> tuple[Any, Any]:
    return Annotated[bool, typer.Option(flag, help=text)], False


# Type and default by name, those of `Settings` and of its `Limits`, which keep their defaults for what is not given.
OPTIONS: dict[str, tuple[Any, Any]] = {
    "host": _host("127.0.0.1", "Where to listen; beyond this machine only with a token."),
    "port": _port("8815", "0 takes any that is free."),
    "token_file": _file("Who may ask: a token on each line, if you like a name before it."),
    "tls_cert": _file("Certificate (PEM): speak TLS."),
    "tls_key": _file("Its key (PEM)."),
    "causal_only": _flag("--causal-only", "Refuse the policy disjoint, which sees past the origin."),
    "max_windows": _count("8192", "Windows: moments times series."),
    "max_k": _count("1024", "Neighbours per key space."),
    "max_message_mb": _count("32", "Size of a message. Clients ask in parts."),
    "max_seconds": (
        Annotated[
            float | None,
            typer.Option(help="To wait for a turn, and again to search.", min=0.1, show_default="60.0"),
        ],
        None,
    ),
    "max_connections": _count("256", "Connections at once."),
    "max_waiting": _count("64", "Questions that may wait for their turn."),
    "max_memory_mb": _count("1024", "Memory for all questions at once, beside the versions."),
    "access_log": _file("Append a JSON line for every call; no value of the data."),
}


def serves(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command these options, and hand them to its argument `settings` as a `Settings`.

    The command raises what `Settings` and `Limits` do.
    """

    def record(given: dict[str, Any]) -> Settings:
        from memory_index.service.serving import Settings
        from memory_index.service.wire import Limits

        stated = {name: value for name, value in given.items() if value is not None}
        if "max_message_mb" in stated:
            stated["max_message"] = stated.pop("max_message_mb") << 20
        if "max_memory_mb" in stated:
            stated["max_held"] = stated.pop("max_memory_mb") << 20
        limits = {each.name: stated.pop(each.name) for each in fields(Limits) if each.name in stated}
        return Settings(**stated, limits=Limits(**limits))

    return with_record(command, "settings", OPTIONS, record)
