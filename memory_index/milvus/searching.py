"""A version whose candidates Milvus proposes: `search.Index` over a collection, and the memory made of it.

Milvus names row ids and nothing else is believed: which rows a query may see, how far they are and which are the
nearest is decided by `search.py` over the version's own mapped keys, as for every other index. So a Milvus that has
been tampered with can hide neighbours, but cannot bring in one that is not admissible.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from memory_index.access import Access
from memory_index.errors import IncompatibleError, NotFoundError, ServiceError
from memory_index.key_spaces import Segment
from memory_index.local import LocalMemory
from memory_index.milvus import collections
from memory_index.milvus.collections import KEY, ROW, SERIES, Identity, VectorIndex
from memory_index.milvus.connection import Connection, parse_address
from memory_index.search import Within
from memory_index.types import KeySpace
from memory_index.versions.opening import LoadEncoder, open_version
from memory_index.versions.version import Version

MOST = 4096  # candidates of one query: Milvus itself allows 16,384, but each has to travel
MOST_AT_ONCE = 1 << 18  # candidates in one answer, which then has a few MB


def open_milvus(
    version: Version,
    address: str,
    *,
    access: Access | None = None,
    load_encoder: LoadEncoder | None = None,
    threads: int | None = None,
) -> LocalMemory:
    """Open a version on this machine whose keys a Milvus searches; see `open_version` and `parse_address`.

    Its FAISS files are not needed, and not looked at. Groups of keys of which a query may see few are scanned here,
    as ever.

    Raises what `open_version` raises; `NotFoundError` if the version has not been published there,
    `IncompatibleError` if what is there is not all of it, `ServiceError`, `ResourceError`, `UsageError`.
    """
    where = parse_address(address)
    memory = open_version(version, load_encoder=load_encoder, threads=threads, with_indexes=False)
    connection = Connection(where, access or Access())
    sizes = key_space_sizes(memory)

    def checked(space: KeySpace) -> VectorIndex:
        return require_complete(connection, version, space, sizes[space])

    with ThreadPoolExecutor(max_workers=len(sizes)) as pool:
        indexes = dict(zip(sizes, pool.map(checked, sizes), strict=True))
    return asking(memory, connection, indexes)


def key_space_sizes(memory: LocalMemory) -> dict[KeySpace, int]:
    """How many keys each key space has, over all segments."""
    return {
        record.space: sum(len(group) for segment in memory.segments for group in segment.groups[record.space])
        for record in memory.manifest.spaces
    }


def require_complete(connection: Connection, version: Version, space: KeySpace, num: int) -> VectorIndex:
    """The index of a collection that holds all keys of a key space, each once, and says so.

    Raises `NotFoundError`, `IncompatibleError`.
    """
    name = collections.collection_name(version.manifest.fingerprint, space)
    identity = Identity.of(version, space, num)
    publish = f"cli index publish {version.ref} --to {connection.address.shown}"
    if not collections.exists(connection, name):
        raise NotFoundError(
            f"{version.ref} is not at {connection.address.shown}: there is no collection {name}", hint=publish
        )
    found = collections.properties(connection, name)
    collections.require_same(connection, name, found, identity)
    mark = collections.read_mark(found, identity)
    if mark is None:
        raise IncompatibleError(
            f"the collection {name} at {connection.address.shown} is not complete: "
            f"{version.ref} is being published, or that was interrupted",
            hint=f"wait for it, or go on with it: {publish}",
        )
    collections.load(connection, name)
    there = collections.num_rows(connection, name)
    if there != num:
        raise IncompatibleError(
            f"the collection {name} at {connection.address.shown} has {there:,} rows, but {version.ref} has {num:,} "
            f"keys of {space}",
            hint=f"put it right: {publish}",
        )
    return mark.index


def asking(memory: LocalMemory, connection: Connection, indexes: dict[KeySpace, VectorIndex]) -> LocalMemory:
    """The same memory, whose groups of keys ask the collections of these key spaces."""

    def index_of(segment: Segment, space: KeySpace, group: int) -> MilvusIndex:
        local = segment.rows(space.scope, group)
        return MilvusIndex(
            connection=connection,
            collection=collections.collection_name(memory.fingerprint, space),
            index=indexes[space],
            first_row=segment.first_row,
            local=None if isinstance(local, slice) else local,
            num=len(segment.groups[space][group]),
            series=group if space.scope == "own" else None,
            alone=len(memory.segments) == 1,
        )

    return memory.with_segments(
        [
            replace(
                segment,
                groups={
                    space: [replace(group, index=index_of(segment, space, n)) for n, group in enumerate(groups)]
                    for space, groups in segment.groups.items()
                },
            )
            for segment in memory.segments
        ]
    )


@dataclass(frozen=True, kw_only=True)
class MilvusIndex:
    """One group of n keys in a collection. Implements `search.Index`.

    first_row: of its segment. local: int64 [n], rows of the keys in the segment, ascending; None where they are all
    rows in a line. series: whose keys they are, None for keys of all series. alone: whether there is no other segment.
    """

    connection: Connection
    collection: str
    index: VectorIndex
    first_row: int
    local: np.ndarray | None
    num: int
    series: int | None
    alone: bool

    most = MOST
    can_filter = True

    def __len__(self) -> int:
        return self.num

    def propose(self, queries: np.ndarray, num: int, within: Within | None = None) -> np.ndarray:
        """See `search.Index.propose`. Raises `ServiceError`."""
        # What is read need not be the very newest: a complete collection does not change.
        options = {
            "anns_field": KEY,
            "limit": num,
            "output_fields": [ROW],
            "filter": self.expression(within),
            "search_params": {"metric_type": "L2", "params": self.index.search_parameters(num)},
            "consistency_level": "Eventually",
        }
        found = np.full((len(queries), num), -1, dtype=np.int64)
        size = max(1, MOST_AT_ONCE // num)
        for start in range(0, len(queries), size):
            asked = list(queries[start : start + size])
            answer = self.connection.ask("search", self._search(asked, options))
            if len(answer) != len(asked):
                raise ServiceError(
                    f"Milvus at {self.connection.address.shown} answered other questions than were asked"
                )
            for line, hits in zip(found[start : start + size], answer, strict=True):
                line[: len(hits.ids)] = hits.ids[:num]
        return self.positions(found)

    def _search(self, asked: list[np.ndarray], options: dict[str, object]) -> Callable[..., list[Any]]:
        return lambda client, s: client.search(self.collection, data=asked, timeout=s, **options)

    def expression(self, within: Within | None) -> str:
        """What is true of the rows to look at, as Milvus writes it; empty for all that it has."""
        if within is None and not self.alone:
            within = ((0, self.num),)
        parts = [] if self.series is None else [f"{SERIES} == {self.series}"]
        if within is not None:
            ranges = [f"({ROW} >= {self.row(first)} and {ROW} <= {self.row(end - 1)})" for first, end in within]
            parts.append(" or ".join(ranges) if len(ranges) == 1 else f"({' or '.join(ranges)})")
        return " and ".join(parts)

    def row(self, position: int) -> int:
        """The row id of a key of the group."""
        return self.first_row + (position if self.local is None else int(self.local[position]))

    def positions(self, rows: np.ndarray) -> np.ndarray:
        """Where in the group keys with these row ids are, of any shape; -1 for an id that no key of it has."""
        local = rows - self.first_row
        if self.local is None:
            return np.where((local >= 0) & (local < self.num) & (rows >= 0), local, -1)
        place = np.minimum(np.searchsorted(self.local, local), self.num - 1)
        return np.where((self.local[place] == local) & (rows >= 0), place, -1)
