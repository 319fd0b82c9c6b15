"""`cli index serve` in a process of its own, and the whole service in this one."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
from guard_fixtures import PATIENCE_S, wait_until
from service_fixtures import close_memories

from cli.opening import encoder_loader
from memory_index.access import Access
from memory_index.service.remote import RemoteMemory
from memory_index.service.serving import Service, Settings
from memory_index.types import Queries


@contextmanager
def whole_service(
    indexes_dir: Path, refs: Sequence[str] = ("small",), *, notes: list[str] | None = None, **settings: object
) -> Iterator[Service]:
    """A service with its guard, on a free port; ended with the block. notes: what it told a person."""
    service = Service(
        indexes_dir,
        refs,
        Settings(port=0, **settings),  # type: ignore[arg-type]
        loader_for=encoder_loader,
        threads=1,
        note=(notes if notes is not None else []).append,
    )
    try:
        yield service
    finally:
        close_memories(service.address)
        service.close()


@dataclass
class Serving:
    """A running `cli index serve`. folder: where it puts temporary files, and its stderr (`said`)."""

    process: subprocess.Popen[str]
    folder: Path
    address: str
    status_port: int | None

    @property
    def port(self) -> int:
        return int(self.address.rpartition(":")[2])

    @property
    def guard(self) -> psutil.Process:
        [child] = psutil.Process(self.process.pid).children()
        return child

    def said(self) -> str:
        return (self.folder / "stderr").read_text()

    def memory(self, ref: str = "small", **access: object) -> RemoteMemory:
        return RemoteMemory(f"{self.address}/{ref}", access=Access(**access))  # type: ignore[arg-type]

    def resident_bytes(self) -> int:
        """Of both processes."""
        return psutil.Process(self.process.pid).memory_info().rss + self.guard.memory_info().rss

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal; the exit code that follows."""
        self.process.send_signal(number)
        return self.process.wait(PATIENCE_S)


@contextmanager
def cli_serving(indexes_dir: Path, *words: str, refs: Sequence[str] = ("small",), port: int = 0) -> Iterator[Serving]:
    """`cli index serve` until the block ends. Nothing of it may be left then: no process, no socket, no folder."""
    folder = Path(tempfile.mkdtemp(prefix="serve-", dir="/tmp"))  # short: a name of a unix socket has little room
    process = start_serving(indexes_dir, folder, *words, refs=refs, port=port)
    children: list[psutil.Process] = []
    try:
        assert process.stdout is not None
        first = process.stdout.readline()
        assert first, (folder / "stderr").read_text()
        ready = json.loads(first)
        children = psutil.Process(process.pid).children()
        serving = Serving(process=process, folder=folder, address=ready["address"], status_port=ready["status_port"])
        yield serving
        if process.poll() is None:
            assert serving.end() == 0, serving.said()
        close_memories(serving.address)
        assert "Traceback" not in serving.said(), serving.said()
        wait_until(lambda: not any(child.is_running() for child in children))
        assert [path.name for path in folder.iterdir()] == ["stderr"]
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(PATIENCE_S)
        assert process.stdout is not None
        process.stdout.close()
        shutil.rmtree(folder)


def start_serving(
    indexes_dir: Path, folder: Path, *words: str, refs: Sequence[str] = ("small",), port: int = 0
) -> subprocess.Popen[str]:
    """The process; its stderr goes into a file in the folder."""
    command = [sys.executable, "-m", "cli", "index", "serve", *refs, "--port", str(port), "--json"]
    with (folder / "stderr").open("w") as errors:
        return subprocess.Popen(
            [*command, "--indexes-dir", str(indexes_dir), *words],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            cwd=Path(__file__).parents[1],
            env={**os.environ, "TMPDIR": str(folder)},
        )


@contextmanager
def small_stacks() -> Iterator[None]:
    """Processes that are started now give their threads little, so that the limit on memory is near."""
    soft, hard = resource.getrlimit(resource.RLIMIT_STACK)
    resource.setrlimit(resource.RLIMIT_STACK, (1 << 20, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_STACK, (soft, hard))


def http(port: int | None, path: str) -> tuple[int, str]:
    """Status and body of a page of the status port."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=PATIENCE_S) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def long_question(queries: Queries, num: int = 2700) -> Queries:
    """So many moments, so that the answer takes a while: the same ones again and again."""
    again = [number % len(queries) for number in range(num)]
    return Queries(
        context=queries.context[again], origin=queries.origin[again], series_id=queries.series_id, policy=queries.policy
    )
