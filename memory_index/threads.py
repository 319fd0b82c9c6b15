"""Threads of our own, how many there should be, and how many the libraries below us use meanwhile.

A search that runs blocks of queries side by side gains nothing from matrix products that want all cores as well: their
threads wait for one another.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TypeVar

import faiss
from threadpoolctl import LibController, ThreadpoolController  # type: ignore[import-untyped]

T = TypeVar("T")
R = TypeVar("R")
CGROUPS_OF_PROCESS, CGROUPS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")

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


def num_cores() -> int:
    """How many threads of this process can run at once: more would only wait for one another.

    The least of three counts, as far as each is there: the cores that it is bound to (affinity), what the CPU quotas of
    its control groups allow, rounded up (a container with `--cpus 1.5` has two), and OMP_NUM_THREADS. That one may be a
    list, for nested regions: its first number counts. What is no number of 1 or more is ignored, as by OpenMP.
    """
    counts = [len(os.sched_getaffinity(0)), *(math.ceil(quota) for quota in cpu_quotas())]
    asked = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    if asked.isascii() and asked.isdecimal():
        counts.append(int(asked) or counts[0])
    return max(1, min(counts))


def cpu_quotas() -> list[float]:
    """The cores' time that each control group of this process may use, for those that have a limit.

    Of both versions of control groups, and of every group from the process's own up to the root, since the least of
    them holds. A container may see its own group as the root. What cannot be read has no limit.
    """
    quotas = []
    for line in (_read(CGROUPS_OF_PROCESS) or "").splitlines():
        _, _, named = line.partition(":")  # "4:cpu,cpuacct:/a/b" in version 1, "0::/a/b" in version 2
        controllers, _, path = named.partition(":")
        if controllers and "cpu" not in controllers.split(","):
            continue
        for mount in (controllers, "cpu") if controllers else ("", "unified"):
            folders = _up_from(CGROUPS / mount, path)
            quotas += [quota for quota in map(_quota, folders) if quota is not None]
    return quotas


class Workers:
    """A number of threads that run tasks side by side, begun when they are first needed, and anew in a forked process.

    Safe to use from several threads, which then share them.
    """

    def __init__(self, num: int) -> None:
        self.num = num
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


def _up_from(base: Path, path: str) -> Iterator[Path]:
    """The folders of a control group and of those around it, as far as they are there."""
    parts = [part for part in path.split("/") if part and part != ".."]
    for depth in range(len(parts), -1, -1):
        folder = base.joinpath(*parts[:depth])
        if folder.is_dir():
            yield folder


def _quota(folder: Path) -> float | None:
    """Cores' time that a control group may use: version 2 (`cpu.max`) or 1 (`cpu.cfs_quota_us`)."""
    text = _read(folder / "cpu.max")
    if text is None:
        quota, period = _read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us")
        text = f"{quota} {period}"
    try:
        allowed, per = (int(each) for each in text.split())
    except ValueError:  # "max 100000", or no such file
        return None
    return allowed / per if allowed > 0 and per > 0 else None  # -1 is no limit in version 1


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
