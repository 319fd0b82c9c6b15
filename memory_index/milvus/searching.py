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
from memory_index.milvus.collections import KEY, ROW, SERIES, Identity, Mark, VectorIndex
from memory_index.milvus.connection import Connection, parse_address
from memory_index.neighbours import Neighbours
from memory_index.search import Within
from memory_index.types import Filter, KeySpace, Queries, Scope
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
) -> MilvusMemory:
    """Open a version on this machine whose keys a Milvus searches; see `open_version` and `parse_address`.

    The keys are read from its files for the final distance; whatever index is in them is not asked. Groups of keys of
    which a query may see few are scanned here, as ever.

    Raises what `open_version` raises; `NotFoundError` if the version has not been published there,
    `IncompatibleError` if what is there is not all of it, `ServiceError`, `ResourceError`, `UsageError`.
    """
    where = parse_address(address)
    memory = open_version(version, load_encoder=load_encoder, threads=threads, with_indexes=False)
    connection = Connection(where, access or Access())
    sizes = key_space_sizes(memory)

    def checked(space: KeySpace) -> Mark:
        return require_complete(connection, version, space, sizes[space])

    with ThreadPoolExecutor(max_workers=len(sizes)) as pool:
        marks = dict(zip(sizes, pool.map(checked, sizes), strict=True))
    if not collections.publication_of(marks.values()):
        raise _incomplete(connection, version, next(iter(sizes)))
    return MilvusMemory(memory, connection, marks)


class MilvusMemory(LocalMemory):
    """A version whose keys a Milvus searches. Implements `Memory`; safe to use from several threads.

    marks: of its collections, all of one publication.
    """

    def __init__(self, memory: LocalMemory, connection: Connection, marks: dict[KeySpace, Mark]) -> None:
        self.connection, self.marks = connection, marks
        self.asked: set[KeySpace] = set()
        indexes = {space: mark.index for space, mark in marks.items()}
        segments = asking(memory, connection, indexes, self.asked)
        super().__init__(memory.manifest, memory.encoder, memory.windows, segments, threads=memory.threads)

    @property
    def answered_by(self) -> str:
        """See `Memory.answered_by`."""
        kinds = "+".join(sorted({mark.index.kind for mark in self.marks.values()}))
        return f"milvus {kinds} {collections.publication_of(self.marks.values())}"

    def search(
        self,
        queries: Queries,
        k: int,
        *,
        scopes: tuple[Scope, ...] | None = None,
        views: tuple[int, ...] | None = None,
        where: Filter | None = None,
        min_gap: int = 0,
    ) -> Neighbours:
        """See `Memory.search`. Raises `ServiceError` too, also if the collections are not those that were opened."""
        found = super().search(queries, k, scopes=scopes, views=views, where=where, min_gap=min_gap)
        if not self.asked.isdisjoint(found.spaces):
            self._require_unchanged()
        return found

    def _require_unchanged(self) -> None:
        """To be called when Milvus has answered everything, once for all its collections.

        Nothing of any collection is changed before the mark of the first one is off, and it is never the same mark that
        is put on again. So if it is still there now, no answer before now was of anything else.
        """
        space, mark = next(iter(self.marks.items()))
        name = collections.collection_name(self.fingerprint, space)
        try:
            now = collections.read_mark(collections.properties(self.connection, name), mark.identity)
        except NotFoundError:
            now = None
        if now is None or now.publication != mark.publication:
            raise ServiceError(
                f"what was opened at {self.connection.address.shown} is being loaded anew, or was removed: "
                f"the mark of {name} is another one",
                hint="open it again, when it is complete",
            )


def key_space_sizes(memory: LocalMemory) -> dict[KeySpace, int]:
    """How many keys each key space has, over all segments."""
    return {
        record.space: sum(len(group) for segment in memory.segments for group in segment.groups[record.space])
        for record in memory.manifest.spaces
    }


def require_complete(connection: Connection, version: Version, space: KeySpace, num: int) -> Mark:
    """The mark of a collection that holds as many rows as a key space has keys, and says that it is complete.

    Raises `NotFoundError`, `IncompatibleError`.
    """
    name = collections.collection_name(version.manifest.fingerprint, space)
    identity = Identity.of(version, space, num)
    if not collections.exists(connection, name):
        raise NotFoundError(
            f"{version.ref} is not at {connection.address.shown}: there is no collection {name}",
            hint=_to_publish(connection, version),
        )
    found = collections.properties(connection, name)
    collections.require_same(connection, name, found, identity)
    mark = collections.read_mark(found, identity)
    if mark is None:
        raise _incomplete(connection, version, space)
    collections.load(connection, name)
    there = collections.num_rows(connection, name)
    if there != num:
        raise IncompatibleError(
            f"the collection {name} at {connection.address.shown} has {there:,} rows, but {version.ref} has {num:,} "
            f"keys of {space}",
            hint=f"put it right: {_to_publish(connection, version)}",
        )
    return mark


def _incomplete(connection: Connection, version: Version, space: KeySpace) -> IncompatibleError:
    return IncompatibleError(
        f"the collection {collections.collection_name(version.manifest.fingerprint, space)} at "
        f"{connection.address.shown} is not complete: {version.ref} is being published, or that was interrupted",
        hint=f"wait for it, or go on with it: {_to_publish(connection, version)}",
    )


def _to_publish(connection: Connection, version: Version) -> str:
    return f"cli index publish {version.ref} --to {connection.address.shown}"


def asking(
    memory: LocalMemory, connection: Connection, indexes: dict[KeySpace, VectorIndex], asked: set[KeySpace]
) -> list[Segment]:
    """The segments of a memory, whose groups of keys ask the collections of these key spaces.

    asked: gets every key space that Milvus is asked about, before it is.
    """

    def index_of(segment: Segment, space: KeySpace, group: int) -> MilvusIndex:
        local = segment.rows(space.scope, group)
        return MilvusIndex(
            connection=connection,
            space=space,
            asked=asked,
            collection=collections.collection_name(memory.fingerprint, space),
            index=indexes[space],
            first_row=segment.first_row,
            local=None if isinstance(local, slice) else local,
            num=len(segment.groups[space][group]),
            series=group if space.scope == "own" else None,
            alone=len(memory.segments) == 1,
        )

    return [
        replace(
            segment,
            groups={
                space: [replace(group, index=index_of(segment, space, n)) for n, group in enumerate(groups)]
                for space, groups in segment.groups.items()
            },
        )
        for segment in memory.segments
    ]


@dataclass(frozen=True, kw_only=True)
class MilvusIndex:
    """One group of n keys in a collection. Implements `search.Index`.

    space: of the keys. asked: see `asking`.
    first_row: of its segment. local: int64 [n], rows of the keys in the segment, ascending; None where they are all
    rows in a line. series: whose keys they are, None for keys of all series. alone: whether there is no other segment.
    """

    connection: Connection
    space: KeySpace
    asked: set[KeySpace]
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
        self.asked.add(self.space)
        # What is read need not be the very newest: a complete collection does not change, or is found to have changed.
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
        def search(client: Any, timeout_s: float) -> list[Any]:
            with self.connection.searching():
                found: list[Any] = client.search(self.collection, data=asked, timeout=timeout_s, **options)
            return found

        return search

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
