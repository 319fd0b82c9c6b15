"""Threads of our own, and how many the libraries below us use meanwhile.

A search that runs blocks of queries side by side gains nothing from matrix products that want all cores as well: their
threads wait for one another.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from typing import TypeVar

import faiss
from threadpoolctl import LibController, ThreadpoolController  # type: ignore[import-untyped]

from memory_index.cores import available_cores

T = TypeVar("T")
R = TypeVar("R")
_lock = threading.Lock()
_num_inside = 0
_before: list[int] = []


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Ask the BLAS of this process for one thread while inside; afterwards it has as many as before.

    The setting belongs to the process, and threadpoolctl lets only one thread at a time control it: what others ask is
    ignored. So each thread puts back, on its way out, what there was when nobody was inside. Were another one still
    inside, it would be slower for it, never wrong.
    """
    global _num_inside, _before
    with _lock:
        if _num_inside == 0:
            _before = [library.num_threads for library in _libraries()]
        _num_inside += 1
        for library in _libraries():
            library.set_num_threads(1)
    try:
        yield
    finally:
        with _lock:
            _num_inside -= 1
            for library, num in zip(_libraries(), _before, strict=True):
                library.set_num_threads(num)


@contextmanager
def faiss_threads(num: int) -> Iterator[None]:
    """Let FAISS use so many threads when called from this one; the setting belongs to the calling thread."""
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(num)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


@cache
def _libraries() -> list[LibController]:
    """The BLAS libraries that are loaded, found once: looking for them takes milliseconds.

    Those that run on OpenMP (FAISS brings one) follow the setting of each calling thread, and are left alone.
    """
    loaded = ThreadpoolController().select(user_api="blas").lib_controllers
    return [library for library in loaded if getattr(library, "threading_layer", "") != "openmp"]


class Workers:
    """A number of threads that run tasks side by side, begun when they are first needed, and anew in a forked process.

    No more than there are cores when they are made: what further ones do is to take one another's place in the caches.
    Safe to use from several threads, which then share them.
    """

    def __init__(self, num: int) -> None:
        self.num = min(num, available_cores())
        self._pool: tuple[int, ThreadPoolExecutor] | None = None

    def run(self, run: Callable[[T], R], tasks: Iterable[T]) -> list[R]:
        """What each task gives, in their order: several side by side, a single one with all threads inside it."""
        tasks = list(tasks)
        if len(tasks) > 1 and self.num > 1:
            return list(self._threads().map(run, tasks))
        with faiss_threads(self.num):
            return [run(task) for task in tasks]

    def _threads(self) -> ThreadPoolExecutor:
        if self._pool is None or self._pool[0] != os.getpid():
            pool = ThreadPoolExecutor(self.num, initializer=faiss.omp_set_num_threads, initargs=(1,))
            self._pool = (os.getpid(), pool)
        return self._pool[1]
