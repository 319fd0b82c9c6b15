"""Every error that is the forecaster's own. Each is also one of the kinds of `memory_index.errors`, with its exit code.

    UsageError           ConfigError         a setting that does not exist, or makes no sense
    NotFoundError        BackboneNotFound    a language model that is not on this machine
                         RunNotFound         a run, or a checkpoint of it, that is not there
    VerificationError    RunDamaged          files of a run that are not what was written
    IncompatibleError    RunIncompatible     a run and a memory, a table or a setting that do not belong together
    DataError            (as it is)          a table that cannot be used
    ResourceError        (as it is)          memory or disk that was not to be had
"""

from __future__ import annotations

from memory_index.errors import IncompatibleError, NotFoundError, UsageError, VerificationError


class ConfigError(UsageError):
    """A setting that does not exist, or has a value that makes no sense."""


class BackboneNotFound(NotFoundError):
    """A language model that is not on this machine, or a folder that holds none."""


class RunNotFound(NotFoundError):
    """A run folder, or a checkpoint in it, that is not there."""


class RunDamaged(VerificationError):
    """Files of a run that are not what was written."""


class RunIncompatible(IncompatibleError):
    """A run and a memory, a table or a setting that do not belong together."""
