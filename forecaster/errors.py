"""Every error that is the forecaster's own. Each is also one of the kinds of `memory_index.errors`, with its exit code.

UsageError         ConfigError            a setting that does not exist, or makes no sense
NotFoundError      BackboneNotFoundError  a language model that is not on this machine
                   RunNotFoundError       a run, or a checkpoint of it, that is not there
VerificationError  RunDamagedError        files of a run that are not what was written
IncompatibleError  RunIncompatibleError   a run and a memory, a table or a setting that do not belong together
DataError          (as it is)             a table that cannot be used
ResourceError      (as it is)             memory or disk that was not to be had
"""

from __future__ import annotations

from memory_index.errors import IncompatibleError, NotFoundError, UsageError, VerificationError


class ConfigError(UsageError):
    """A setting that does not exist, or has a value that makes no sense."""


class BackboneNotFoundError(NotFoundError):
    """A language model that is not on this machine, or a folder that holds none."""


class RunNotFoundError(NotFoundError):
    """A run folder, or a checkpoint in it, that is not there."""


class RunDamagedError(VerificationError):
    """Files of a run that are not what was written."""


class RunIncompatibleError(IncompatibleError):
    """A run and a memory, a table or a setting that do not belong together."""
