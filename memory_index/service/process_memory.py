"""The memory of the process of a service: a limit, and free memory that goes back to the system."""

from __future__ import annotations

import ctypes
import resource
from pathlib import Path
from typing import Any

DEFAULT_STACK = 8 << 20  # bytes of a thread's stack where the system sets no limit
M_ARENA_MAX = -8  # the name that glibc's malloc.h gives it
ARENAS = 2


def limit_memory(megabytes: int, max_threads: int) -> None:
    """Let this process take so much memory beyond what it has: a question for more fails, and not the machine.

    It holds for what nobody can foresee, such as a batch that says it is compressed. The stacks of the threads that
    may come are added: they count as a whole, though little of them is ever touched.
    """
    stack = resource.getrlimit(resource.RLIMIT_STACK)[0]
    stacks = max_threads * (DEFAULT_STACK if stack == resource.RLIM_INFINITY else min(stack, 2 * DEFAULT_STACK))
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmData:"):
            most = int(line.split()[1]) * 1024 + (megabytes << 20) + stacks
            hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
            if hard == resource.RLIM_INFINITY or most < hard:
                resource.setrlimit(resource.RLIMIT_DATA, (most, hard))


def share_arenas() -> None:
    """Let the threads of this process share two arenas, where it has glibc.

    By default there are up to eight for each core, and what is freed in one is of no use to a thread that has another:
    calls come in ever new threads, so that a service that needs 40 MB would hold 300 MB and slowly more.
    """
    _libc_call("mallopt", M_ARENA_MAX, ARENAS)


def give_back() -> None:
    """Give the system back what is free, where there is glibc. Takes some milliseconds."""
    _libc_call("malloc_trim", 0)


def _libc_call(name: str, *arguments: int) -> None:
    function: Any = getattr(ctypes.CDLL(None), name, None)
    if function is not None:
        function(*arguments)
