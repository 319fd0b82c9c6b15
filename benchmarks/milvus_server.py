"""The Milvus server of the wheel in `.venv-milvus`, started here, killed and started again on what it has on disk.

It listens on every interface: only for a network namespace of its own (`make milvus-server`, `make milvus-speed`).
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from pathlib import Path

from memory_index.access import Access
from memory_index.errors import ServiceError
from memory_index.milvus.connection import Connection, parse_address

ROOT = Path(__file__).resolve().parents[1]
PYTHON = ROOT / ".venv-milvus" / "bin" / "python"
ADDRESS = "milvus://127.0.0.1:19530"
TOKEN = "root:Milvus"  # the one that such a server begins with
STARTING_S = 300  # on a machine that others keep busy; 30 s are usual


class Server:
    """The server of one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> float:
        """Returns the seconds until it answered."""
        started = time.monotonic()
        self.process = subprocess.Popen([PYTHON, ROOT / "tests" / "start_milvus.py", self.folder])
        while True:
            assert self.process.poll() is None, (self.folder / "logs" / "out.log").read_text()[-2000:]
            assert time.monotonic() - started < STARTING_S
            try:
                Connection(parse_address(ADDRESS), Access(token=TOKEN)).ask(
                    "list", lambda client, s: client.list_collections(timeout=s), deadline_s=1
                )
            except ServiceError:
                time.sleep(0.2)
            else:
                return time.monotonic() - started

    def peak_mb(self) -> float:
        """The most memory that it has held so far."""
        assert self.process is not None
        [found] = re.findall(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{self.process.pid}/status").read_text())
        return int(found) / 1000

    def kill(self) -> None:
        """SIGKILL, by its id."""
        assert self.process is not None
        os.kill(self.process.pid, signal.SIGKILL)
        assert self.process.wait() == -signal.SIGKILL

    def restart(self) -> None:
        """Kill it and start it."""
        self.kill()
        self.start()
