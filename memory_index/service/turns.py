"""So many searches at once, in the order that they were asked for."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from memory_index.errors import BusyError


class Turns:
    """Lets `num` callers in at once; others wait in line, at most `max_waiting` of them.

    One search uses all cores well. Several at a time would finish later, each of them, and a short one could be
    overtaken for ever: whoever came first is next.
    """

    def __init__(self, num: int, max_waiting: int) -> None:
        self._free, self._max_waiting = num, max_waiting
        self._lock = threading.Lock()
        self._line: deque[threading.Event] = deque()

    @property
    def num_waiting(self) -> int:
        """How many wait at this moment."""
        return len(self._line)

    @contextmanager
    def taken(self, wait_s: float) -> Iterator[float]:
        """Have a turn; gives the seconds that were waited. Raises `BusyError` if it would take longer."""
        started = time.monotonic()
        self._begin(wait_s)
        try:
            yield time.monotonic() - started
        finally:
            with self._lock:
                if self._line:
                    self._line.popleft().set()  # the turn is handed on, nobody can get in between
                else:
                    self._free += 1

    def _begin(self, wait_s: float) -> None:
        with self._lock:
            if self._free > 0:
                self._free -= 1
                return
            if len(self._line) >= self._max_waiting:
                raise BusyError(f"the service is busy: {len(self._line)} questions wait already", hint="ask later")
            mine = threading.Event()
            self._line.append(mine)
        if mine.wait(wait_s):
            return
        with self._lock:
            if mine.is_set():  # it came at the last moment
                return
            self._line.remove(mine)
        raise BusyError(f"the service is busy: no turn within {wait_s:.1f} s", hint="ask later, or less at once")
