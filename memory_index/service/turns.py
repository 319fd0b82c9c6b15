"""One search after the other, in the order that they were asked for."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from memory_index.errors import BusyError

T = TypeVar("T")


class Turns:
    """Does one piece of work at a time; others wait in line, at most `max_waiting` of them.

    One search uses all cores well. Several at a time would finish later, each of them, and a short one could be
    overtaken for ever: whoever came first is next.

    All of it is done in one thread. FAISS and NumPy keep a team of threads for each thread that calls them, and a team
    looks around for more work for a while before it sleeps: with the teams of all callers on busy cores a search took
    ten times as long.
    """

    def __init__(self, max_waiting: int) -> None:
        self._max_waiting = max_waiting
        self._lock = threading.Lock()
        self._num_waiting = 0
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="search")

    @property
    def num_waiting(self) -> int:
        """How many wait at this moment."""
        return self._num_waiting

    def take(self, work: Callable[[float], T], wait_s: float) -> T:
        """What the work returns or raises, done when it is its turn. work: is given the seconds that were waited.

        Raises `BusyError` if it would wait longer than `wait_s`, or if too many wait already.
        """
        started, begun = time.monotonic(), threading.Event()

        def do() -> T:
            with self._lock:
                self._num_waiting -= 1
            begun.set()
            return work(time.monotonic() - started)

        with self._lock:
            if self._num_waiting >= self._max_waiting:
                raise BusyError(f"the service is busy: {self._max_waiting} questions wait already", hint="ask later")
            self._num_waiting += 1
            done = self._thread.submit(do)
        if not begun.wait(wait_s) and done.cancel():
            with self._lock:
                self._num_waiting -= 1
            raise BusyError(f"the service is busy: no turn within {wait_s:.1f} s", hint="ask later, or less at once")
        return done.result()

    def close(self) -> None:
        """End the thread when what has begun is done."""
        self._thread.shutdown(wait=False, cancel_futures=True)
