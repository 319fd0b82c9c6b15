"""A service under full load for a while: every answer checked against a local memory, and what the service holds.

    python -m benchmarks.service_soak --minutes 10

8 clients, each a process of its own, ask `cli index serve` as fast as they can: questions of 1 to 256 moments, both
policies, all scopes, now and then on a new connection. Ends with an error if one question fails, one answer differs by
a bit, or the memory of the service grows by more than 5% after a fifth of the time.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.report import Figure, run_cli, show
from benchmarks.speed.service import require_same
from memory_index.leakage import Policy
from memory_index.memory import Memory
from memory_index.neighbours import Neighbours
from memory_index.queries import query_blocks
from memory_index.references import open_memory
from memory_index.tables.catalog import shipped
from memory_index.tables.reading import read_table
from memory_index.types import Queries
from memory_index.windows import origin_rows

LOOKBACK, HORIZON, CLIENTS = 96, 24, 8
MOST_GROWTH = 0.05  # of what the service holds, after `WARM_UP` of the time
WARM_UP, SHARE = 0.2, 0.3  # shares of the time
LOOK_S = 0.5
NEW_CONNECTION = 500  # questions


class Asked(NamedTuple):
    """One question and its answer from the memory in this process. options: of `Memory.search`."""

    queries: Queries
    options: dict[str, Any]
    expected: Neighbours


def main() -> None:
    """Load the service and print what was seen."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--clients", type=int, default=CLIENTS)
    parser.add_argument("--out", type=Path, help="also write the figures as JSON")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        file, indexes = Path(folder) / "sample.csv", Path(folder) / "indexes"
        file.write_bytes(shipped("sample.csv").read_bytes())
        window = ["--lookback", str(LOOKBACK), "--horizon", str(HORIZON)]
        run_cli("index", "build", str(file), "--name", "sample", *window, "--indexes-dir", str(indexes), "--json")
        with serving(indexes) as (process, address):
            num, held = loaded(file, indexes, f"{address}/sample@1", process, options.minutes * 60, options.clients)
    command = f"python -m benchmarks.service_soak --minutes {options.minutes:g}"
    show("The service under load", command, figures(num, held, options.minutes, options.clients), options.out)
    if growth(held) > MOST_GROWTH:
        raise SystemExit(f"the service has grown by {growth(held):.1%}")


@contextmanager
def serving(indexes: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`cli index serve` in a process of its own, and its address. It must end well."""
    command = [sys.executable, "-m", "cli", "index", "serve", "sample", "--indexes-dir", str(indexes), "--port", "0"]
    process = subprocess.Popen([*command, "--json"], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield process, json.loads(process.stdout.readline())["address"]
    finally:
        process.send_signal(signal.SIGTERM)
        code = process.wait(60)
    if code:
        raise SystemExit(f"the service has ended with exit code {code}")


def loaded(
    file: Path, indexes: Path, address: str, process: subprocess.Popen[str], seconds: float, clients: int
) -> tuple[int, np.ndarray]:
    """Have so many clients ask for so long: how many questions, and the bytes that the service held meanwhile."""
    context = multiprocessing.get_context("spawn")
    begin, counts = context.Barrier(clients + 1), context.Queue()
    asking = [
        context.Process(target=ask_for, args=(file, indexes, address, seed, seconds, begin, counts))
        for seed in range(clients)
    ]
    for each in asking:
        each.start()
    begin.wait(600)
    held, until = [], time.monotonic() + seconds
    while time.monotonic() < until:
        held.append(resident_bytes(process.pid))
        time.sleep(LOOK_S)
        if any(each.exitcode for each in asking):
            break
    for each in asking:
        each.join(600)
    if any(each.exitcode != 0 for each in asking):
        raise SystemExit("a client has failed: see above")
    return sum(counts.get(timeout=60) for _ in asking), np.array(held)


def ask_for(file: Path, indexes: Path, address: str, seed: int, seconds: float, begin: Any, counts: Any) -> None:
    """In a process of its own: ask and compare, until the time is over or something is wrong."""
    chance = random.Random(seed)
    asked = questions(file, open_memory(indexes, "sample@1", threads=1), chance)
    memory, num = open_memory(indexes, address), 0
    begin.wait(600)
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if num % NEW_CONNECTION == NEW_CONNECTION - 1:
            memory = open_memory(indexes, address)
        each = chance.choice(asked)
        require_same(each.expected, memory.search(each.queries, **each.options))
        num += 1
    counts.put(num)


def questions(file: Path, local: Memory, chance: random.Random) -> list[Asked]:
    """Questions of many kinds, with their answers."""
    table, found = read_table(file), []
    origins = [origin_rows(series.values, local.windows.spec) for series in table.series]
    blocks = list(query_blocks(table, origins, local.windows.spec, Policy.CAUSAL, known=local.manifest.series_ids))
    for _ in range(60):
        whole = chance.choice(blocks).queries
        start, num = chance.randrange(len(whole)), chance.choice((1, 1, 8, 32, 256))
        part = slice(start, start + num)
        queries = replace(
            whole, context=whole.context[part], origin=whole.origin[part], policy=chance.choice(list(Policy))
        )
        options: dict[str, Any] = {"k": chance.choice((1, 5, 10, 40))}
        options |= chance.choice(({}, {}, {"scopes": ("own",)}, {"scopes": ("pooled",)}, {"min_gap": 24}))
        found.append(Asked(queries, options, local.search(queries, **options)))
    return found


def resident_bytes(process: int) -> int:
    """Of a process and its children."""
    children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    pages = sum(int(Path(f"/proc/{each}/statm").read_text().split()[1]) for each in (str(process), *children))
    return pages * os.sysconf("SC_PAGESIZE")


def growth(held: np.ndarray) -> float:
    """By how much the service has grown from after the warm-up to the end.

    Means over a share of the time each: a large question holds as much again while it is answered.
    """
    num, warm = max(int(len(held) * SHARE), 1), int(len(held) * WARM_UP)
    return float(held[-num:].mean() / held[warm : warm + num].mean() - 1)


def figures(num: int, held: np.ndarray, minutes: float, clients: int) -> list[Figure]:
    """What was seen."""
    return [
        Figure(f"questions of {clients} clients in {minutes:g} minutes, each answer compared", f"{num:,}", "no error"),
        Figure(
            "growth of both processes of the service after a fifth of the time",
            f"{growth(held):+.1%}",
            f"at most {MOST_GROWTH:.0%}",
            f"{held[0] / 1e6:.0f} MB first, {np.median(held) / 1e6:.0f} MB mostly, {held.max() / 1e6:.0f} MB at most",
        ),
    ]


if __name__ == "__main__":
    main()
