"""How many threads of this process can run at once."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

CGROUPS_OF_PROCESS, CGROUPS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")


def available_cores() -> int:
    """How many threads of this process can run at once: more would only wait for one another.

    The cores that it is bound to (affinity), or what the CPU quotas of its control groups allow if that is less,
    rounded up: a container with `--cpus 1.5` has two.
    """
    return max(1, min([len(os.sched_getaffinity(0)), *(math.ceil(quota) for quota in cpu_quotas())]))


def num_cores() -> int:
    """How many threads to use where nobody says: the available cores, or OMP_NUM_THREADS if that is less.

    That one may be a list, for nested regions: its first number counts. What is no number of 1 or more is ignored, as
    by OpenMP.
    """
    asked = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    available = available_cores()
    return min(int(asked), available) if asked.isascii() and asked.isdecimal() and int(asked) else available


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
