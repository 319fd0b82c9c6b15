"""What is refused, and how it is said in HTTP."""

from __future__ import annotations

import re
import tempfile
import traceback
from collections.abc import Iterable
from pathlib import Path

from memory_index.errors import (
    BusyError,
    IncompatibleError,
    MemoryIndexError,
    NotFoundError,
    ResourceError,
    ServiceError,
    UsageError,
)

STATUS = {  # by class of error, the most special first
    BusyError: 503,
    ServiceError: 500,
    NotFoundError: 404,
    IncompatibleError: 409,
    UsageError: 400,
    ResourceError: 507,
    MemoryIndexError: 422,
}


class RefusedError(Exception):
    """An error that has a status of its own in HTTP."""

    def __init__(self, status: int, error: MemoryIndexError) -> None:
        super().__init__(str(error))
        self.status, self.error = status, error


def too_large(num_bytes: int, most: int) -> RefusedError:
    """What is said of a message of so many bytes."""
    said = f"a message of {num_bytes:,} bytes: at most {most:,} are taken"
    return RefusedError(413, UsageError(said, hint="ask in parts"))


def too_slow() -> RefusedError:
    """What is said when the time of a question is over."""
    said = "the question takes longer than this service allows"
    return RefusedError(504, ServiceError(said, hint="ask for fewer moments or series at once"))


def refusal(raised: Exception) -> tuple[int, MemoryIndexError]:
    """The status and the error of what has failed. What is not ours is told to whoever keeps the service."""
    if isinstance(raised, RefusedError):
        return raised.status, raised.error
    if isinstance(raised, MemoryError):
        raised = ResourceError("the question needs more memory than the service may use", hint="ask in smaller parts")
    elif not isinstance(raised, MemoryIndexError):
        traceback.print_exception(raised)
        raised = ServiceError("the service has failed on this question; its log says how")
    return next(status for kind, status in STATUS.items() if isinstance(raised, kind)), raised


class Places:
    """Where things lie on this machine, which is nothing for clients: taken out of what they are told.

    folders: absolute; what lies in one is told by its path from there. A temporary file is told by its name, a version
    whose keys are in a Milvus file by its reference.
    """

    def __init__(self, folders: Iterable[Path]) -> None:
        longest_first = sorted({f"{folder}/" for folder in folders}, key=len, reverse=True)
        temporary = re.escape(tempfile.gettempdir()) + r"/(?:[^/\s]+/)?"
        self._found = re.compile("|".join([r"milvus:\S+/", *map(re.escape, longest_first), temporary]))

    def without(self, text: str) -> str:
        """The same text without them."""
        return self._found.sub("", text)
