"""JSON documents and errors as they travel. Nothing of a document from the other side is believed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, TypeVar

from memory_index import errors
from memory_index.errors import MemoryIndexError, ServiceError, UsageError

MAX_DOCUMENT = 4 << 20  # bytes of JSON; read into Python objects it is many times as large
MAX_TOLD = 300  # characters of an error: what clients have sent may be repeated in it

T = TypeVar("T")


def read_document(content: bytes) -> dict[str, Any]:
    """A JSON object. Raises `UsageError`."""
    require_at_most(
        "bytes of JSON", len(content), MAX_DOCUMENT, hint="ask for fewer series, or send the values as Arrow"
    )
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
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    is_number = is_number and abs(value) < 2**62  # which nan is not
    if not isinstance(value, (int, float) if kind is float else kind) or (kind in (int, float) and not is_number):
        raise UsageError(f"'{name[:40]}' must be {_KINDS[kind]}")
    return kind(value)  # type: ignore[call-arg]


_KINDS = {int: "a whole number", float: "a number", str: "a text", bool: "true or false", list: "a list"} | {
    dict: "an object"
}


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


def write_error(error: MemoryIndexError) -> bytes:
    """An error as it travels: by the name of its class, or of the nearest one that every client knows."""
    kind = next(each.__name__ for each in type(error).__mro__ if each.__name__ in vars(errors))
    told = {"kind": kind, "message": str(error)[:MAX_TOLD], "hint": error.hint[:MAX_TOLD]}
    return json.dumps({"error": told}).encode()


def read_error(content: bytes) -> MemoryIndexError | None:
    """The error in an answer; None if there is none of ours."""
    try:
        told = json.loads(content)["error"]
        kind = vars(errors).get(told["kind"])
        if (
            not (isinstance(kind, type) and issubclass(kind, MemoryIndexError)) or kind is MemoryIndexError
        ):  # one that this program does not have
            kind = ServiceError
        return kind(str(told["message"]), hint=str(told["hint"]))
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
