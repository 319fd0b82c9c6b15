"""Threads of the libraries below: held while a search runs its own, and put back after."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import faiss
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from memory_index.threads import faiss_threads, one_blas_thread


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
