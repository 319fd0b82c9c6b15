"""How many threads the libraries below us use, while we use threads of our own.

A search that runs blocks of queries side by side gains nothing from matrix products that want all cores as well: their
threads wait for one another.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import faiss
from threadpoolctl import ThreadpoolController  # type: ignore[import-untyped]

_lock = threading.Lock()
_num_holding = 0


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Ask the BLAS of this process for one thread as long as any thread is inside; then everything is as before.

    The setting belongs to the whole process, so it is counted: the last one out puts it back. It is a matter of speed
    only: OpenBLAS may not listen to a thread other than the one that set it before.
    """
    global _num_holding
    with _lock:
        _num_holding += 1
        if _num_holding == 1:
            _limiter().hold()
    try:
        yield
    finally:
        with _lock:
            _num_holding -= 1
            if _num_holding == 0:
                _limiter().release()


@contextmanager
def faiss_threads(num: int) -> Iterator[None]:
    """Let FAISS use so many threads when called from this one; the setting belongs to the calling thread."""
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(num)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


class _Limiter:
    """The BLAS libraries that are loaded, found once: looking for them takes milliseconds.

    Those that run on OpenMP (FAISS brings one) follow the setting of each calling thread, and are left alone.
    """

    def __init__(self) -> None:
        loaded = ThreadpoolController().select(user_api="blas").lib_controllers
        self.libraries = [library for library in loaded if getattr(library, "threading_layer", "") != "openmp"]
        self.before: list[int] = []

    def hold(self) -> None:
        self.before = [library.num_threads for library in self.libraries]
        for library in self.libraries:
            library.set_num_threads(1)

    def release(self) -> None:
        for library, num in zip(self.libraries, self.before, strict=True):
            library.set_num_threads(num)


@cache
def _limiter() -> _Limiter:
    return _Limiter()
