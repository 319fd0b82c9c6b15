"""Every error that a caller of `memory_index` can meet.

    MemoryIndexError
    |- UsageError          an argument or option that makes no sense (also a ValueError)
    |- DataError           a table that cannot be read or used as it is
    |  `- NothingNewError  a table without a step that the version does not have
    |- NotFoundError       a file, index, version, alias, series or admissible neighbour that is not there
    |- VerificationError   bytes on disk that are not the bytes that were published
    |- IncompatibleError   two things that do not belong together (version and query, version and data)
    |- ResourceError       disk, memory or a lock that was not to be had
    `- ServiceError        another machine that cannot be reached, refuses or breaks off
       `- BusyError        one that has no time now and may have later

A message says what is wrong and where; `hint` says what to do about it. Exit codes are not known here:
only `cli/main.py` maps these classes to them.
"""

from __future__ import annotations


class MemoryIndexError(Exception):
    """Base of the tree; `str(error)` is one line, `error.hint` is one line or empty."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class UsageError(MemoryIndexError, ValueError):
    """An argument or option that makes no sense."""


class DataError(MemoryIndexError):
    """A table that cannot be read, or cannot be used as it is."""


class NothingNewError(DataError):
    """A table to be appended has no step that the version does not have already."""


class NotFoundError(MemoryIndexError):
    """A file, index, version, alias, series or neighbour that is not there."""


class VerificationError(MemoryIndexError):
    """Bytes on disk that are not the bytes that were published."""


class IncompatibleError(MemoryIndexError):
    """Two things that do not belong together, such as a version and a query of another lookback."""


class ResourceError(MemoryIndexError):
    """Disk space, memory, permission or a lock that was not to be had."""


class ServiceError(MemoryIndexError):
    """Another machine that cannot be reached, refuses, or breaks off."""


class BusyError(ServiceError):
    """A service that has no time now: it is full, or about to end. Asking again later is safe."""
