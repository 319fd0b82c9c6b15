"""Filling one collection: in bounded memory, to be gone on with after any failure, and nothing twice.

Rows go in in the order of their ids, and what is there already is found by counting and naming ranges of them: a range
that is complete is left alone, an empty one is loaded, any other is emptied first. That is how a loading that broke off
goes on, and how one whose rows are not the right ones is put right. What is loaded are the version's own keys, mapped;
nothing is encoded again. Which collections, and when they are complete, is `publish.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from tenacity import Retrying, retry_if_exception_type, stop_before_delay

from memory_index.errors import IncompatibleError, ServiceError
from memory_index.local import LocalMemory
from memory_index.milvus import collections
from memory_index.milvus.collections import KEY, KNOWN_AT, ROW, SERIES
from memory_index.milvus.connection import PAUSES, Connection
from memory_index.types import KeySpace
from memory_index.versions.key_files import read_keys
from memory_index.versions.version import Version

BATCH_BYTES = 4 << 20  # of keys in one insert: some thousand rows; servers take 64 MiB
NAMED_AT_ONCE = 1 << 14  # row ids in one answer
REPAIRS = 3  # times that rows which are not right are loaded again

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


class Part(NamedTuple):
    """The keys of one segment, n of width E.

    keys: float32 [n, E], as they are in the file. place: int64 [n], where in it each is, None where they are in the
    order of their rows. moments: int64 [n], local row of each, None where all rows have one. first_row: of the segment.
    """

    keys: np.ndarray
    place: np.ndarray | None
    moments: np.ndarray | None
    first_row: int


class Rows:
    """The keys of one key space over all segments, in the order of their row ids, mapped and read batch by batch.

    Numbers of rows here count the keys of the key space; `ids` says which rows of the version they are.
    """

    def __init__(self, version: Version, memory: LocalMemory, space: KeySpace, num: int) -> None:
        self.windows = memory.windows
        self.num = num
        if space.scope == "joint" and any(segment.windows.across is not None for segment in memory.segments):
            raise IncompatibleError(
                f"{version.ref} has moments whose windows lie in several segments, since some series lagged",
                hint=f"merge them first: cli index compact {version.ref}",
            )
        self.parts: list[Part] = []
        for record, segment in zip(version.manifest.segments, memory.segments, strict=True):
            keys = read_keys(version.path / record.folder, space)
            # The file has the keys of `own` series after series.
            place = np.argsort(segment.own_rows, kind="stable") if space.scope == "own" else None
            moments = segment.moments[:, 0] if space.scope == "joint" else None
            self.parts.append(Part(keys, place, moments, segment.first_row))
        self.starts = np.cumsum([0, *(len(part.keys) for part in self.parts)])
        width = self.parts[0].keys.shape[1]
        self.batch = max(1, BATCH_BYTES // (4 * width))

    def ids(self, first: int, last: int) -> np.ndarray:
        """Row ids of the keys `first` to `last`, int64 [n], ascending."""
        return np.concatenate(
            [
                part.first_row + (here if part.moments is None else part.moments[here])
                for part, here in self._pieces(first, last)
            ]
        )

    def keys(self, first: int, last: int) -> np.ndarray:
        """The keys `first` to `last`, float32 [n, E]."""
        return np.concatenate(
            [
                part.keys[here[0] : here[-1] + 1] if part.place is None else part.keys[part.place[here]]
                for part, here in self._pieces(first, last)
            ]
        )

    def _pieces(self, first: int, last: int) -> Iterator[tuple[Part, np.ndarray]]:
        """The segments that have some of the keys, and which of theirs these are."""
        for part, start, end in zip(self.parts, self.starts[:-1], self.starts[1:], strict=True):
            low, high = max(first, start), min(last, end)
            if low < high:
                yield part, np.arange(low - start, high - start)

    def entities(self, first: int, last: int) -> list[dict[str, Any]]:
        """The keys `first` to `last` as pymilvus takes them."""
        ids, keys = self.ids(first, last), self.keys(first, last)
        series, known_at = self.windows.series[ids].tolist(), self.windows.known_at[ids].astype(np.int64).tolist()
        return [
            {ROW: row, SERIES: number, KNOWN_AT: time_ns, KEY: key}
            for row, number, time_ns, key in zip(ids.tolist(), series, known_at, keys, strict=True)
        ]

    def where(self, first: int, last: int) -> str:
        """What is true of the keys `first` to `last`, as Milvus writes it.

        The ranges of all keys end to end hold every row that there can be, also those that are of no key.
        """
        bounds = [f"{ROW} >= {self.id(first)}"] if first > 0 else []
        bounds += [f"{ROW} < {self.id(last)}"] if last < self.num else []
        return " and ".join(bounds) or f"({ROW} < 0 or {ROW} >= 0)"

    def id(self, number: int) -> int:
        """Row id of a key."""
        return int(self.ids(number, number + 1)[0])


def fill(
    connection: Connection,
    name: str,
    rows: Rows,
    *,
    sealed: bool,
    withdraw: Callable[[], None],
    still_ours: Callable[[], None],
    progress: Progress,
) -> int:
    """Load what is missing until every row is there once; returns how many were loaded.

    sealed: whether all that is there is on disk and under the index. withdraw: called before anything is changed.
    still_ours: called before every insert.
    """
    already, loaded = progress.done, 0
    for _ in range(1 + REPAIRS):
        progress.say(f"checking {name}")
        wrong = list(_wrong_ranges(connection, name, rows))
        progress.done = already + rows.num - sum(last - first for first, last, _ in wrong)
        if wrong:
            withdraw()
            sealed = False
            progress.say(f"loading {name}")
        for first, last, there in wrong:
            if there:
                _empty(connection, name, rows.where(first, last))
            for start in range(first, last, rows.batch):
                end = min(start + rows.batch, last)
                still_ours()
                _insert(connection, name, rows, start, end)
                loaded += end - start
                progress.add(end - start)
        # Before the rows are checked again, because Milvus Lite names those that are on disk ten times as fast.
        if not sealed and collections.num_rows(connection, name) == rows.num:
            progress.say(f"indexing {name}")
            collections.seal(connection, name, rows.num)
            sealed = True
        if not wrong:
            break
    else:
        there = collections.num_rows(connection, name)
        raise ServiceError(
            f"the collection {name} at {connection.address.shown} has {there:,} rows, not {rows.num:,} once each, "
            "whatever is loaded or deleted",
            hint="is something else writing to it? Remove it with --remove, and publish again",
        )
    progress.done = already + rows.num
    progress.say(f"{name} is there")
    return loaded


def _wrong_ranges(connection: Connection, name: str, rows: Rows) -> Iterator[tuple[int, int, int]]:
    """Ranges of rows to be loaded, (first, last, rows that are there): empty ones, and batches with a wrong row."""
    pending = [(0, rows.num)]
    while pending:
        first, last = pending.pop()
        there = collections.num_rows(connection, name, rows.where(first, last))
        if there == last - first and _are_these(connection, name, rows, first, last):
            continue
        if there and last - first > rows.batch:
            half = first + max(1, (last - first) // (2 * rows.batch)) * rows.batch
            pending += [(half, last), (first, half)]
        else:
            yield first, last, there


def _are_these(connection: Connection, name: str, rows: Rows, first: int, last: int) -> bool:
    """Whether as many rows as there are keys are these keys: a row that is there twice can stand for one that is not.

    Milvus counts a row that is there twice as two, but names it once.
    """
    for start in range(first, last, NAMED_AT_ONCE):
        end = min(start + NAMED_AT_ONCE, last)
        if not np.array_equal(collections.row_ids(connection, name, rows.where(start, end)), rows.ids(start, end)):
            return False
    return True


def _insert(connection: Connection, name: str, rows: Rows, first: int, last: int) -> None:
    """Load one batch. Where it is not known whether it was taken, it is counted, and never just sent again."""
    entities = rows.entities(first, last)
    again = retry_if_exception_type(ServiceError)
    for attempt in Retrying(
        retry=again, wait=PAUSES, stop=stop_before_delay(connection.access.deadline_s), reraise=True
    ):
        with attempt:
            if attempt.retry_state.attempt_number > 1:
                there = collections.num_rows(connection, name, rows.where(first, last))
                if there == last - first:
                    return
                if there:
                    _empty(connection, name, rows.where(first, last))
            connection.ask("take rows", lambda client, s: client.insert(name, entities, timeout=s), again=False)


def _empty(connection: Connection, name: str, where: str) -> None:
    connection.ask("delete rows", lambda client, s: client.delete(name, filter=where, timeout=s))
