"""What holds for every test: nothing is downloaded, cores are shared fairly, and a failure can be repeated."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from browser_fixtures import find_browser, launched
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from playwright.sync_api import Browser

# Before anything loads OpenMP or a BLAS. With one worker per core, more threads in each would only wait for one
# another.
for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(variable, "1")
# A test that would reach for a model hub fails at once, on every machine alike.
os.environ["HF_HUB_OFFLINE"] = "1"

# No test cuts the power, so none waits for the disk. Processes that are killed lose nothing that was written.
os.fsync = lambda descriptor: None

# Started in the background (`nohup make test &`), a process ignores SIGINT, and so would all that tests start and
# interrupt.
if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Machines differ in speed, so no example has a deadline. `make test` tries the same examples every time;
# `make soak` looks for new ones.
settings.register_profile("default", deadline=None, derandomize=True)
settings.register_profile(
    "soak", deadline=None, max_examples=1000, print_blob=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("default")


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the source tree."""
    return Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A headless chromium; without one the tests that need it are skipped."""
    path = find_browser()
    if path is None:
        pytest.skip("NO BROWSER: no chromium on the PATH, so that no page is tested ('make browser' installs it)")
    with launched(path) as opened:
        yield opened
