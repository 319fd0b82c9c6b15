"""How many threads there are: of the libraries below, held while a search runs its own, and of our own."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import faiss
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from memory_index import cores
from memory_index.cores import num_cores
from memory_index.threads import Workers, faiss_threads, one_blas_thread


def blas_threads() -> set[int]:
    """Threads of every BLAS whose setting belongs to the whole process, as a new thread (such as ours) sees them."""
    seen: list[set[int]] = []

    def look() -> None:
        loaded = [each for each in threadpool_info() if each["user_api"] == "blas"]
        seen.append({each["num_threads"] for each in loaded if each.get("threading_layer") != "openmp"})

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    return seen[0]


@pytest.fixture
def before() -> Iterator[set[int]]:
    """What it was: two threads, so that one is a difference."""
    with threadpool_limits(limits=2, user_api="blas"):
        assert blas_threads() == {2}
        yield {2}


def test_blas_is_held_to_one_thread_and_put_back(before):
    with one_blas_thread():
        assert blas_threads() == {1}
    assert blas_threads() == before


def test_it_is_put_back_whoever_leaves_last(before):
    inside, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with one_blas_thread():
            inside.set()
            leave.wait()

    other = threading.Thread(target=hold)
    with one_blas_thread():
        other.start()
        inside.wait()
    leave.set()
    other.join()
    assert blas_threads() == before


def test_many_threads_at_once_leave_it_as_it_was(before):
    def hold() -> None:
        for _ in range(500):
            with one_blas_thread():
                pass

    others = [threading.Thread(target=hold) for _ in range(4)]
    for other in others:
        other.start()
    hold()
    for other in others:
        other.join()
    assert blas_threads() == before


def test_blas_is_put_back_after_an_error(before):
    with pytest.raises(ZeroDivisionError), one_blas_thread():
        raise ZeroDivisionError
    assert blas_threads() == before


def test_faiss_threads_are_those_of_the_caller():
    usual = faiss.omp_get_max_threads()
    with faiss_threads(3):
        assert faiss.omp_get_max_threads() == 3
    assert faiss.omp_get_max_threads() == usual


@pytest.fixture
def container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Make the files of control groups, and a process that is bound to eight cores."""
    monkeypatch.setattr(cores, "CGROUPS_OF_PROCESS", tmp_path / "of-process")
    monkeypatch.setattr(cores, "CGROUPS", tmp_path / "mounted")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)

    def make(of_process: str, files: dict[str, str]) -> None:
        (tmp_path / "of-process").write_text(of_process)
        for name, text in files.items():
            path = tmp_path / "mounted" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    return make


PERIOD_V1 = {"cpu/docker/1/cpu.cfs_period_us": "100000\n"}


@pytest.mark.parametrize(
    ("of_process", "files", "expected"),
    [
        pytest.param("0::/\n", {}, 8, id="no limit anywhere"),
        pytest.param("0::/\n", {"cpu.max": "200000 100000\n"}, 2, id="v2, its own group is the root"),
        pytest.param("0::/\n", {"cpu.max": "150000 100000\n"}, 2, id="v2, one and a half cores"),
        pytest.param("0::/\n", {"cpu.max": "20000 100000\n"}, 1, id="v2, a fifth of a core"),
        pytest.param("0::/\n", {"cpu.max": "max 100000\n"}, 8, id="v2, no limit"),
        pytest.param("0::/\n", {"cpu.max": "6400000 100000\n"}, 8, id="v2, more than there are cores"),
        pytest.param("0::/a/b\n", {"a/b/cpu.max": "max 100000\n", "a/cpu.max": "300000 100000\n"}, 3, id="a parent"),
        pytest.param("0::/../../x\n", {"cpu.max": "300000 100000\n"}, 3, id="v2, a group outside of what is seen"),
        pytest.param("0::/a\n", {"unified/a/cpu.max": "300000 100000\n"}, 3, id="v2 beside v1"),
        pytest.param(
            "4:cpu,cpuacct:/docker/1\n0::/\n",
            {"cpu/docker/1/cpu.cfs_quota_us": "250000\n"} | PERIOD_V1,
            3,
            id="v1",
        ),
        pytest.param(
            "4:cpu,cpuacct:/docker/1\n",
            {"cpu,cpuacct/cpu.cfs_quota_us": "100000\n", "cpu,cpuacct/cpu.cfs_period_us": "50000\n"},
            2,
            id="v1, its own group is the root",
        ),
        pytest.param("4:cpu:/docker/1\n", {"cpu/docker/1/cpu.cfs_quota_us": "-1\n"} | PERIOD_V1, 8, id="v1, no limit"),
        pytest.param("4:cpuset:/docker/1\n", {"cpuset/docker/1/cpu.max": "1 1\n"}, 8, id="v1, another controller"),
        pytest.param("0::/\n", {"cpu.max": "x\n"}, 8, id="not a number"),
        pytest.param("0::/\n", {"cpu.max": "0 0\n"}, 8, id="no period"),
        pytest.param("what\n::\n\n", {"cpu.max": ""}, 8, id="nothing that is known"),
    ],
)
def test_quotas_of_control_groups_are_counted(
    container: Callable[..., None], of_process: str, files: dict[str, str], expected: int
) -> None:
    container(of_process, files)
    assert num_cores() == expected


@pytest.mark.parametrize(
    ("asked", "expected"),
    [("3", 3), ("1", 1), (" 2 ", 2), ("2,4", 2), ("100", 6), ("0", 6), ("", 6), ("-1", 6), ("many", 6), ("1.5", 6)],
)
def test_omp_num_threads_is_respected(
    container: Callable[..., None], monkeypatch: pytest.MonkeyPatch, asked: str, expected: int
) -> None:
    container("0::/\n", {"cpu.max": "600000 100000\n"})
    monkeypatch.setenv("OMP_NUM_THREADS", asked)
    assert num_cores() == expected


def test_without_files_of_control_groups_the_affinity_counts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(cores, "CGROUPS_OF_PROCESS", tmp_path / "none")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert num_cores() == len(os.sched_getaffinity(0))


@pytest.mark.parametrize("num", [1, 3])
def test_workers_answer_in_order_and_pass_errors_on(num: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(4)))
    workers = Workers(num)
    assert workers.run(lambda each: each * each, range(20)) == [each * each for each in range(20)]
    assert workers.run(str, []) == []
    with pytest.raises(ZeroDivisionError):
        workers.run(lambda each: 1 // each, [1, 0])
    # A single task may use all threads inside it, one of several only one.
    assert workers.run(lambda _: faiss.omp_get_max_threads(), [0]) == [num]
    assert set(Workers(3).run(lambda _: faiss.omp_get_max_threads(), [0, 0])) == {1}


def test_there_are_no_more_workers_than_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1})
    both = threading.Barrier(2, timeout=30)  # passed only by two at once
    names = Workers(8).run(lambda _: (both.wait(), threading.current_thread().name)[1], range(16))
    assert len(set(names)) == 2
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0})
    assert Workers(8).run(lambda _: threading.current_thread(), range(4)) == [threading.current_thread()] * 4
