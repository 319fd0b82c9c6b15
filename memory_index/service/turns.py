"""One search after the other, in the order that they were asked for."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from memory_index.errors import BusyError

T = TypeVar("T")


class Turns:
    """Does one piece of work at a time; others wait in line, at most `max_waiting` of them.

    One search uses all cores well. Several at a time would finish later, each of them, and a short one could be
    overtaken for ever: whoever came first is next.

    All of it is done in one thread. FAISS and NumPy keep a team of threads for each thread that calls them, and a team
    looks around for more work for a while before it sleeps: with the teams of all callers on busy cores a search took
    ten times as long. Nothing waits for that thread when the program ends: a search cannot be broken off.
    """

    def __init__(self, max_waiting: int) -> None:
        self._max_waiting = max_waiting
        self._line: deque[_Turn] = deque()
        self._changed = threading.Condition()
        self._is_closed = False
        threading.Thread(target=self._work, name="search", daemon=True).start()

    @property
    def num_waiting(self) -> int:
        """How many wait at this moment."""
        return len(self._line)

    def take(self, work: Callable[[float], T], wait_s: float) -> T:
        """What the work returns or raises, done when it is its turn. work: is given the seconds that were waited.

        Raises `BusyError` if it would wait longer than `wait_s`, if too many wait already, or after `close`.
        """
        turn = _Turn(work)
        with self._changed:
            if self._is_closed:
                raise _ending()
            if len(self._line) >= self._max_waiting:
                raise BusyError(f"the service is busy: {self._max_waiting} questions wait already", hint="ask later")
            self._line.append(turn)
            self._changed.notify()
        try:
            turn.begun.wait(wait_s)
        finally:
            with self._changed:
                is_given_up = turn in self._line
                if is_given_up:
                    self._line.remove(turn)
        if is_given_up:
            raise BusyError(f"the service is busy: no turn within {wait_s:.1f} s", hint="ask later, or less at once")
        result: T = turn.ended.result()
        return result

    def close(self) -> None:
        """Refuse all who wait, and end the thread when what has begun is done."""
        with self._changed:
            self._is_closed = True
            for turn in self._line:
                turn.ended.set_exception(_ending())
                turn.begun.set()
            self._line.clear()
            self._changed.notify()

    def _work(self) -> None:
        while (turn := self._next()) is not None:
            turn.begun.set()
            try:
                turn.ended.set_result(turn.work(time.monotonic() - turn.since))
            except BaseException as error:  # noqa: BLE001 - raised where it was asked for
                turn.ended.set_exception(error)
            del turn  # and its result

    def _next(self) -> _Turn | None:
        with self._changed:
            self._changed.wait_for(lambda: self._line or self._is_closed)
            return self._line.popleft() if self._line else None


class _Turn:
    """One piece of work, from when it is asked for until it has ended."""

    def __init__(self, work: Callable[[float], Any]) -> None:
        self.work = work
        self.since = time.monotonic()
        self.begun = threading.Event()
        self.ended: Future[Any] = Future()


def _ending() -> BusyError:
    return BusyError("the service is about to end", hint="ask again in a moment, or another one")
