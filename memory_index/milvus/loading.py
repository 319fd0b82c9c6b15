"""Filling one collection: in bounded memory, to be gone on with after any failure, and nothing twice.

Rows go in in the order of their ids, and what is there already is found by counting ranges of them: a range that is
complete is left alone, an empty one is loaded, any other is emptied first. That is how a loading that broke off goes
on, and how one whose rows do not add up is put right. What is loaded are the version's own keys, mapped; nothing is
encoded again. Which collections, and when they are complete, is `publish.py`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from memory_index.errors import ServiceError
from memory_index.local import LocalMemory
from memory_index.milvus import collections
from memory_index.milvus.collections import KEY, KNOWN_AT, MARK, ROW, SERIES
from memory_index.milvus.connection import FIRST_PAUSE_S, LONGEST_PAUSE_S, Connection
from memory_index.types import KeySpace
from memory_index.versions.segments import read_keys
from memory_index.versions.version import Version

BATCH_BYTES = 4 << 20  # of keys in one insert: some thousand rows; servers take 64 MiB
REPAIRS = 3  # times that rows which do not add up are loaded again

Report = Callable[[float, float | None, str], None]


class Progress:
    """Rows that are in place, over all collections, for whoever wants to see them grow."""

    def __init__(self, report: Report | None, total: int) -> None:
        self.report, self.total, self.done, self.doing = report, total, 0, ""

    def add(self, num: int) -> None:
        self.done += num
        self.say(self.doing)

    def say(self, doing: str) -> None:
        self.doing = doing
        if self.report is not None:
            self.report(min(self.done, self.total), self.total, doing)


class Rows:
    """The keys of one key space over all segments, in the order of their row ids, mapped and read batch by batch.

    Numbers of rows here count the keys of the key space; `ids` says which rows of the version they are.
    """

    def __init__(self, version: Version, memory: LocalMemory, space: KeySpace, num: int) -> None:
        self.windows = memory.windows
        self.num = num
        self.parts: list[tuple[np.ndarray, np.ndarray | None, np.ndarray | None, int]] = []
        for record, segment in zip(version.manifest.segments, memory.segments, strict=True):
            keys = read_keys(version.path / record.folder, space)
            # The file has the keys of `own` series after series.
            place = np.argsort(segment.own_rows, kind="stable") if space.scope == "own" else None
            moments = segment.moments[:, 0] if space.scope == "joint" else None
            self.parts.append((keys, place, moments, segment.first_row))
        self.starts = np.cumsum([0, *(len(keys) for keys, *_ in self.parts)])
        width = self.parts[0][0].shape[1]
        self.batch = max(1, BATCH_BYTES // (4 * width))

    def taken(self, first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
        """Row ids int64 [n] and keys float32 [n, E] of the keys `first` to `last`."""
        ids, found = [], []
        for (keys, place, moments, first_row), start, end in zip(
            self.parts, self.starts[:-1], self.starts[1:], strict=True
        ):
            low, high = max(first, start), min(last, end)
            if low >= high:
                continue
            here = np.arange(low - start, high - start)
            ids.append(first_row + (here if moments is None else moments[here]))
            found.append(keys[here[0] : here[-1] + 1] if place is None else keys[place[here]])
        return np.concatenate(ids), np.concatenate(found)

    def entities(self, first: int, last: int) -> list[dict[str, Any]]:
        """The keys `first` to `last` as pymilvus takes them."""
        ids, keys = self.taken(first, last)
        series, known_at = self.windows.series[ids].tolist(), self.windows.known_at[ids].astype(np.int64).tolist()
        return [
            {ROW: row, SERIES: number, KNOWN_AT: time_ns, KEY: key}
            for row, number, time_ns, key in zip(ids.tolist(), series, known_at, keys, strict=True)
        ]

    def where(self, first: int, last: int) -> str:
        """What is true of the keys `first` to `last` and of no other, as Milvus writes it."""
        (low,), (high,) = (self.taken(number, number + 1)[0] for number in (first, last - 1))
        return f"{ROW} >= {low} and {ROW} <= {high}"


def fill(connection: Connection, name: str, rows: Rows, still_ours: Callable[[], None], progress: Progress) -> int:
    """Load what is missing until the rows add up; returns how many were loaded."""
    already, loaded = progress.done, 0
    progress.say(f"loading {name}")
    for _ in range(1 + REPAIRS):
        there = collections.num_rows(connection, name)
        if there == rows.num:
            break
        if collections.properties(connection, name).get(MARK):
            collections.set_property(connection, name, MARK, "")  # before anything of it is changed
        progress.done = already
        loaded += _load_missing(connection, name, rows, still_ours, progress)
    else:
        raise ServiceError(
            f"the collection {name} at {connection.address.shown} has {there:,} rows, not {rows.num:,}, "
            "whatever is loaded or deleted",
            hint="is something else writing to it? Remove it with --remove, and publish again",
        )
    if loaded:
        progress.say(f"indexing {name}")
        collections.seal(connection, name, rows.num)
    progress.done = already + rows.num
    progress.say(f"{name} is there")
    return loaded


def _load_missing(
    connection: Connection, name: str, rows: Rows, still_ours: Callable[[], None], progress: Progress
) -> int:
    """One pass over all ranges of rows, halving those that are neither complete nor empty; returns the rows loaded."""
    pending, loaded = [(0, rows.num)], 0
    while pending:
        first, last = pending.pop()
        there = collections.num_rows(connection, name, rows.where(first, last))
        if there == last - first:
            progress.add(there)
        elif there and last - first > rows.batch:
            half = first + max(1, (last - first) // (2 * rows.batch)) * rows.batch
            pending += [(half, last), (first, half)]
        else:
            if there:
                _empty(connection, name, rows.where(first, last))
            for start in range(first, last, rows.batch):
                end = min(start + rows.batch, last)
                still_ours()
                _insert(connection, name, rows, start, end)
                loaded += end - start
                progress.add(end - start)
    return loaded


def _insert(connection: Connection, name: str, rows: Rows, first: int, last: int) -> None:
    """Load one batch. Where it is not known whether it was taken, it is counted, and never just sent again."""
    entities = rows.entities(first, last)
    until, pause = time.monotonic() + connection.access.deadline_s, FIRST_PAUSE_S
    while True:
        try:
            connection.ask("take rows", lambda client, s: client.insert(name, entities, timeout=s), again=False)
            return
        except ServiceError:
            if time.monotonic() + pause > until:
                raise
        time.sleep(pause)
        pause = min(2 * pause, LONGEST_PAUSE_S)
        there = collections.num_rows(connection, name, rows.where(first, last))
        if there == last - first:
            return
        if there:
            _empty(connection, name, rows.where(first, last))


def _empty(connection: Connection, name: str, where: str) -> None:
    connection.ask("delete rows", lambda client, s: client.delete(name, filter=where, timeout=s))
