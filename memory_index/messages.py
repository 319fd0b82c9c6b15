"""JSON documents and errors as they travel. Nothing of a document from the other side is believed."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from memory_index import errors
from memory_index.errors import MemoryIndexError, ServiceError, UsageError

MAX_DOCUMENT = 4 << 20  # bytes of JSON; read into Python objects it is many times as large
MAX_TOLD = 300  # characters of an error: what clients have sent may be repeated in it
KINDS = {int: "a whole number", float: "a number", str: "a text", bool: "true or false", list: "a list"}
KINDS |= {dict: "an object"}

T = TypeVar("T")


def read_document(content: bytes) -> dict[str, Any]:
    """A JSON object. Raises `UsageError`."""
    hint = "ask for fewer series, or send the values as Arrow"
    require_at_most("bytes of JSON", len(content), MAX_DOCUMENT, hint=hint)
    try:
        document = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise UsageError("what was sent is not JSON") from error
    if not isinstance(document, dict):
        raise UsageError("what was sent is not a JSON object")
    return document


def value_of(document: Mapping[str, Any], name: str, kind: type[T]) -> T:
    """An entry of a document: a whole number has 63 bits, a float is finite. Raises `UsageError`."""
    value: Any = document.get(name)
    is_right = type(value) in (kind, int) if kind is float else type(value) is kind
    if not is_right or (kind in (int, float) and not abs(value) < 2**62):  # which nan is not
        raise UsageError(f"'{name[:40]}' must be {KINDS[kind]}")
    return kind(value)  # type: ignore[call-arg]


def list_of(document: Mapping[str, Any], name: str, kind: type[T], *, most: int) -> tuple[T, ...] | None:
    """A list of at most so many entries of one kind, or null."""
    if document.get(name) is None:
        return None
    values: list[Any] = value_of(document, name, list)
    require_at_most(f"'{name}'", len(values), most, hint="name fewer")
    return tuple(value_of({name: value}, name, kind) for value in values)


def require_at_most(what: str, found: int, most: int, hint: str = "ask in parts") -> None:
    """Raise `UsageError` for what is beyond a limit."""
    if found > most:
        raise UsageError(f"{what}: {found:,} in one question, but this service allows {most:,}", hint=hint)


def write_error(error: MemoryIndexError, without: Callable[[str], str]) -> bytes:
    """An error as it travels: by the name of its class, or of the nearest one that every client knows.

    without: takes out of a text what is nothing for clients.
    """
    kind = next(each.__name__ for each in type(error).__mro__ if each.__name__ in vars(errors))
    message, hint = (without(text)[:MAX_TOLD] for text in (str(error), error.hint))
    return json.dumps({"error": {"kind": kind, "message": message, "hint": hint}}).encode()


def read_error(content: bytes) -> MemoryIndexError | None:
    """The error in an answer, `ServiceError` for a kind that this program does not have; None if there is none."""
    try:
        told = json.loads(content)["error"]
        kind: Any = vars(errors).get(told["kind"])
        is_known = isinstance(kind, type) and issubclass(kind, MemoryIndexError) and kind is not MemoryIndexError
        error: type[MemoryIndexError] = kind if is_known else ServiceError
        return error(str(told["message"]), hint=str(told["hint"]))
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
