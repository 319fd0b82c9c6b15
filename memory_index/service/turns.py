"""One search after the other, in the order that they were asked for, and what all requests may hold meanwhile."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect

from memory_index.errors import BusyError
from memory_index.memory import Memory
from memory_index.neighbours import Neighbours
from memory_index.service.refusals import too_slow

T = TypeVar("T")


class Turns:
    """One piece of work at a time, in one thread, in the order it was asked for; at most `max_waiting` wait.

    One search uses all cores well; several at a time would finish later, each of them. All is done in one thread:
    FAISS and NumPy keep a team of threads for each thread that calls them, and the teams of many callers on busy cores
    made a search ten times as long.
    """

    def __init__(self, max_waiting: int) -> None:
        self._max_waiting, self._free = max_waiting, asyncio.Lock()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="search")
        self.num_waiting, self.is_at_work = 0, False

    async def take(self, work: Callable[[float], T], wait_s: float, is_gone: Callable[[], bool]) -> T:
        """What the work returns or raises. work: is given the seconds that were waited.

        Raises `BusyError` if it would wait longer than `wait_s`, or if too many wait already, and `ClientDisconnect`
        if nobody waits for the answer any more when its turn has come.
        """
        if self._free.locked() and self.num_waiting >= self._max_waiting:
            raise BusyError(f"the service is busy: {self.num_waiting} questions wait already", hint="ask later")
        since = time.monotonic()
        self.num_waiting += 1
        try:
            async with asyncio.timeout(wait_s):
                await self._free.acquire()
        except TimeoutError:
            said = f"the service is busy: no turn within {wait_s:.1f} s"
            raise BusyError(said, hint="ask later, or less at once") from None
        finally:
            self.num_waiting -= 1

        def done() -> T:
            try:
                return work(time.monotonic() - since)
            finally:
                self.is_at_work = False  # not before, though nobody may wait for it any more

        try:
            if is_gone():
                raise ClientDisconnect
            self.is_at_work = True
            return await asyncio.get_running_loop().run_in_executor(self._thread, done)
        finally:
            self._free.release()

    def close(self) -> None:
        """Begin nothing any more. What has begun goes on: a search cannot be broken off."""
        self._thread.shutdown(wait=False, cancel_futures=True)


class Budget:
    """Bytes that all requests together may hold; what one needs beyond that is told to come again.

    A single request is always let in: what it may need is bounded by `Limits`.
    """

    def __init__(self, most: int) -> None:
        self._most, self._held = most, 0

    @contextmanager
    def share(self) -> Iterator[Callable[[int], None]]:
        """A function that counts so many bytes more, until the block ends. Raises `BusyError`."""
        mine = 0

        def take(num_bytes: int) -> None:
            nonlocal mine
            if self._held > mine and self._held + num_bytes > self._most:
                said = f"the service is busy: {self._held >> 20} MB of questions are held already"
                raise BusyError(said, hint="ask later")
            self._held += num_bytes
            mine += num_bytes

        try:
            yield take
        finally:
            self._held -= mine


class TimedMemory:
    """A memory that is not asked any more once the time of a request is over (`time.monotonic`)."""

    def __init__(self, memory: Memory, until: float) -> None:
        self._memory, self._until = memory, until

    def __getattr__(self, name: str) -> Any:
        return getattr(self._memory, name)

    def search(self, *arguments: Any, **options: Any) -> Neighbours:
        """See `Memory.search`. Raises `RefusedError` when it is later."""
        if time.monotonic() > self._until:
            raise too_slow()
        return self._memory.search(*arguments, **options)
