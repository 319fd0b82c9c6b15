"""A whole service on this machine, `cli index serve` in a process of its own, and what clients do to it."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

from cli.opening import encoder_loader
from memory_index.access import Access
from memory_index.remote import RemoteMemory
from memory_index.service.hosted import Hosting
from memory_index.service.serving import Service
from memory_index.service.settings import Settings
from memory_index.types import Queries

CERTIFICATES = Path(__file__).parent / "certificates"
PATIENCE_S = 30  # until what must happen counts as not happening: other tests need the cores too


def wait_until(is_so: Callable[[], object], seconds: float = PATIENCE_S) -> None:
    """Until something is so; fails if it is not for long."""
    until = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < until, "it has not happened"
        time.sleep(0.02)


@contextmanager
def whole_service(
    indexes_dir: Path,
    refs: Sequence[str] = ("small",),
    *,
    notes: list[str] | None = None,
    port: int = 0,
    runs: dict | None = None,
    **settings: object,
) -> Iterator[Service]:
    """A service, ended with the block. notes: what it told a person."""
    service = Service(
        indexes_dir,
        refs,
        Settings(port=port, **settings),  # type: ignore[arg-type]
        runs=runs,
        loader_for=encoder_loader,
        threads=1,
        note=(notes if notes is not None else []).append,
    )
    try:
        yield service
    finally:
        service.close()


@contextmanager
def served(indexes_dir: Path, refs: Sequence[str], **settings: object) -> Iterator[str]:
    """The address of such a service, `http://127.0.0.1:PORT`."""
    with whole_service(indexes_dir, refs, **settings) as service:
        yield service.address


@dataclass
class Serving:
    """A running `cli index serve`. folder: where its stderr goes (`said`)."""

    process: subprocess.Popen[str]
    folder: Path
    address: str

    @property
    def port(self) -> int:
        return int(self.address.rpartition(":")[2])

    def said(self) -> str:
        return (self.folder / "stderr").read_text()

    def memory(self, ref: str = "small", **access: object) -> RemoteMemory:
        return RemoteMemory(f"{self.address}/{ref}", access=Access(**access))  # type: ignore[arg-type]

    def resident_bytes(self) -> int:
        return psutil.Process(self.process.pid).memory_info().rss

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal; the exit code that follows."""
        self.process.send_signal(number)
        return self.process.wait(PATIENCE_S)


@contextmanager
def cli_serving(indexes_dir: Path, *words: str, refs: Sequence[str] = ("small",), port: int = 0) -> Iterator[Serving]:
    """`cli index serve` until the block ends. Nothing of it may be left then: no process, no temporary file."""
    folder = Path(tempfile.mkdtemp(prefix="serve-"))
    command = [sys.executable, "-m", "cli", "index", "serve", *refs, "--port", str(port), "--json"]
    with (folder / "stderr").open("w") as errors:
        process = subprocess.Popen(
            [*command, "--indexes-dir", str(indexes_dir), *words],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            cwd=Path(__file__).parents[1],
        )
    try:
        assert process.stdout is not None
        first = process.stdout.readline()
        assert first, (folder / "stderr").read_text()
        serving = Serving(process=process, folder=folder, address=json.loads(first)["address"])
        yield serving
        if process.poll() is None:
            assert serving.end() == 0, serving.said()
        assert "Traceback" not in serving.said(), serving.said()
        assert [path.name for path in folder.iterdir()] == ["stderr"]
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(PATIENCE_S)
        assert process.stdout is not None
        process.stdout.close()
        shutil.rmtree(folder)


def refresh(hosting: Hosting) -> list[str]:
    """One look of a service at its versions: what it says."""
    said = [hosting.follow(name) for name in hosting.versions()]
    hosting.close_unused()
    return [each for each in said if each]


def page(address: str, path: str, **options: object) -> httpx.Response:
    """What a service answers to a GET, without a memory between."""
    with httpx.Client(trust_env=False, timeout=PATIENCE_S) as client:
        return client.get(f"{address}{path}", **options)  # type: ignore[arg-type]


def raw(address: str) -> socket.socket:
    """A connection of one's own to a service."""
    host, _, port = address.rpartition("//")[2].rpartition(":")
    return socket.create_connection((host, int(port)), timeout=PATIENCE_S)


def long_question(queries: Queries, num: int = 2700) -> Queries:
    """So many moments, so that the answer takes a while: the same ones again and again."""
    again = [number % len(queries) for number in range(num)]
    return Queries(
        context=queries.context[again], origin=queries.origin[again], series_id=queries.series_id, policy=queries.policy
    )
