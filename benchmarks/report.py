"""What every benchmark prints: the machine it ran on, and its figures as a Markdown table and as JSON."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple


class Figure(NamedTuple):
    """One line of the table. goal: what it should reach, or empty. beside: the comparison from the same run."""

    what: str
    measured: str
    goal: str = ""
    beside: str = ""


def machine() -> str:
    """Processor, cores and library versions, in one line."""
    described = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next((line.split(":")[1].strip() for line in described if line.startswith("model name")), "")
    libraries = ", ".join(f"{name} {version(name)}" for name in ("numpy", "faiss-cpu", "torch", "pyarrow"))
    cores = f"{len(os.sched_getaffinity(0))} cores"
    return f"{cpu or platform.machine()}, {cores}, Python {platform.python_version()}, {libraries}"


def show(
    title: str, command: str, figures: list[Figure], out: Path | None, *, more: Mapping[str, Any] | None = None
) -> None:
    """Print the table; with `out`, also write it as JSON, and `more` beside it."""
    print(f"## {title}\n\n`{command}`\n\n{machine()}\n")
    print("| what | measured | goal | beside it, in the same run |\n|---|---|---|---|")
    for figure in figures:
        print("| " + " | ".join(figure) + " |")
    if out is not None:
        document = {"title": title, "command": command, "machine": machine(), "figures": [f._asdict() for f in figures]}
        out.write_text(json.dumps(document | dict(more or {}), indent=1) + "\n")


def peak_rss_mb() -> float:
    """Peak resident memory of this process so far: `getrusage` would count that of whoever started it too."""
    return int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024  # type: ignore[index]


def anonymous_bytes() -> int:
    """Resident memory of this process that is not mapped from a file, so that it cannot be given back."""
    return int(re.search(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024  # type: ignore[index]


def timed(action: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds that an action took, and what it returned."""
    started = time.perf_counter()
    result = action()
    return time.perf_counter() - started, result


def run_cli(*arguments: str) -> tuple[float, float, dict[str, Any]]:
    """A command in a process of its own: wall seconds from a cold start, its peak memory in MB, its JSON document.

    The peak is at least what this process has had: the kernel counts that of whoever starts a process.
    """
    before = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "cli", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stderr is not None
    text, problems = process.stdout.read(), process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - before
    if status != 0:
        raise SystemExit(f"cli {' '.join(arguments)} failed: {problems.decode()}{text.decode()}")
    return seconds, usage.ru_maxrss / 1024, json.loads(text) if text.startswith(b"{") else {}
