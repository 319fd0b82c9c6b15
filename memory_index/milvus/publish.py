"""Publishing a version to a Milvus: every key space loaded, measured and marked complete; and taking it away again.

The marks come last, so nobody searches anything that is not complete. A publishing that was killed is gone on with by
calling it again. How one collection is filled is `loading.py`.
"""

from __future__ import annotations

import json
import secrets
import time
from dataclasses import dataclass
from functools import partial

from memory_index.access import Access
from memory_index.errors import IncompatibleError
from memory_index.measure import recall_at_10
from memory_index.milvus import collections
from memory_index.milvus.collections import INDEX, MARK, Identity, Mark, VectorIndex
from memory_index.milvus.connection import Connection, parse_address
from memory_index.milvus.lease import Lease
from memory_index.milvus.loading import Progress, Report, Rows, fill
from memory_index.milvus.searching import asking, key_space_sizes
from memory_index.types import KeySpace
from memory_index.versions.opening import LoadEncoder, open_version
from memory_index.versions.version import Version


@dataclass(frozen=True, kw_only=True, slots=True)
class PublishedSpace:
    """One collection. num_loaded: rows that were not there before.

    recall_at_10: against exact search; None where a query never sees so many keys at once that Milvus is asked.
    """

    space: KeySpace
    collection: str
    num_rows: int
    num_loaded: int
    index: str
    seconds: float
    recall_at_10: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Published:
    """A version that can now be asked there. server: its version, as it tells it."""

    ref: str
    fingerprint: str
    address: str
    server: str
    num_rows: int
    spaces: tuple[PublishedSpace, ...]
    seconds: float


def publish(
    version: Version,
    address: str,
    *,
    access: Access | None = None,
    load_encoder: LoadEncoder | None = None,
    index: str = "auto",
    report: Report | None = None,
) -> Published:
    """Load every key space of a version into a Milvus and mark it complete, or go on with that.

    index: `auto`, HNSW, IVF_FLAT, IVF_SQ8 or FLAT. report: called with the rows that are there, all rows of all
    collections, and what is being done.

    Raises `ResourceError` if another publisher is at it, `IncompatibleError` if a collection holds something else or
    has another index than is asked for, and as `open_milvus` does.
    """
    started = time.perf_counter()
    where = parse_address(address)
    memory = open_version(version, load_encoder=load_encoder, with_indexes=False)
    connection = Connection(where, access or Access(), may_create=True)
    try:
        sizes = key_space_sizes(memory)
        progress = Progress(report, sum(sizes.values()))
        filled: list[tuple[KeySpace, str, VectorIndex, int, float]] = []
        first, num = next(iter(sizes.items()))
        signed = _prepared(connection, version, first, num, index)[0]
        with Lease(connection, signed, progress.say) as lease:
            marks = _Marks(connection, version, sizes)
            for space, num in sizes.items():
                before = time.perf_counter()
                name, chosen = _prepared(connection, version, space, num, index)
                loaded = fill(
                    connection,
                    name,
                    Rows(version, memory, space, num),
                    sealed=marks.found[space] is not None,
                    withdraw=partial(marks.withdraw, space),
                    still_ours=lease.require,
                    progress=progress,
                )
                filled.append((space, name, chosen, loaded, time.perf_counter() - before))
            progress.say("measuring recall")
            asked: set[KeySpace] = set()
            indexes = {space: chosen for space, _, chosen, *_ in filled}
            measured = recall_at_10(memory.with_segments(asking(memory, connection, indexes, asked)))
            recall = {space: measured[space] if space in asked else None for space in sizes}
            lease.require()
            marks.put(indexes, recall)
    finally:
        connection.close()
    return Published(
        ref=version.ref,
        fingerprint=version.manifest.fingerprint,
        address=where.shown,
        server=connection.server_version,
        num_rows=version.manifest.num_rows,
        spaces=tuple(
            PublishedSpace(
                space=space,
                collection=name,
                num_rows=sizes[space],
                num_loaded=loaded,
                index=chosen.kind,
                seconds=seconds,
                recall_at_10=recall[space],
            )
            for space, name, chosen, loaded, seconds in filled
        ),
        seconds=time.perf_counter() - started,
    )


def remove(version: Version, address: str, *, access: Access | None = None) -> tuple[str, ...]:
    """Drop every collection of a version, complete or not; returns their names.

    Whoever has it open gets a `ServiceError` or `NotFoundError` at the next search. Raises as `publish` does, and
    `NotFoundError` if there is no Milvus Lite.
    """
    connection = Connection(parse_address(address), access or Access())
    try:
        names = [_name(version, record.space) for record in version.manifest.spaces]
        there = [name for name in names if collections.exists(connection, name)]
        if names[0] in there:  # before anything is gone, as `_Marks` tells
            collections.set_property(connection, names[0], MARK, "")
        # The first one last: it says who is publishing.
        for name in reversed(there):
            collections.drop(connection, name)
    finally:
        connection.close()
    return tuple(there)


class _Marks:
    """The marks of all collections of a version while it is published.

    That of the first collection stands for all: it is taken off before anything of any of them is changed, and put on
    last. So whoever searched, and reads it *after* the answers have come, knows that all of them were whole till then;
    and marks of one publication are never of collections from different times.
    """

    def __init__(self, connection: Connection, version: Version, sizes: dict[KeySpace, int]) -> None:
        self.connection, self.version, self.sizes = connection, version, sizes
        self.found = {space: self._read(space) for space in sizes}
        self.first = next(iter(sizes))
        self.publication = collections.publication_of(self.found.values())
        if not self.publication:
            self.withdraw(self.first)

    def withdraw(self, space: KeySpace) -> None:
        """Take the mark off a collection that is about to be changed."""
        self.publication = ""
        for each in (self.first, space):
            if self.found[each] is not None:
                collections.set_property(self.connection, _name(self.version, each), MARK, "")
                self.found[each] = None

    def put(self, indexes: dict[KeySpace, VectorIndex], recall: dict[KeySpace, float | None]) -> None:
        """Mark all collections complete, unless they are as they were: then whoever has them open may go on."""
        if self.publication:
            return
        publication = secrets.token_hex(8)
        for space, num in reversed(self.sizes.items()):
            mark = Mark(
                identity=Identity.of(self.version, space, num),
                index=indexes[space],
                publication=publication,
                recall_at_10=recall[space],
            )
            collections.set_property(self.connection, _name(self.version, space), MARK, collections.as_json(mark))

    def _read(self, space: KeySpace) -> Mark | None:
        name = _name(self.version, space)
        if not collections.exists(self.connection, name):
            return None
        found = collections.properties(self.connection, name)
        return collections.read_mark(found, Identity.of(self.version, space, self.sizes[space]))


def _name(version: Version, space: KeySpace) -> str:
    return collections.collection_name(version.manifest.fingerprint, space)


def _prepared(
    connection: Connection, version: Version, space: KeySpace, num: int, kind: str
) -> tuple[str, VectorIndex]:
    """A collection with its index, loaded, so that its rows can be counted; made if it is not there."""
    name, identity = _name(version, space), Identity.of(version, space, num)
    wanted = VectorIndex.chosen(kind, num, embedded=connection.address.embedded)
    if not collections.exists(connection, name):
        collections.create(connection, name, identity, wanted)
    found = collections.properties(connection, name)
    collections.require_same(connection, name, found, identity)
    index = VectorIndex(**json.loads(found[INDEX]))
    if kind not in ("auto", index.kind):
        raise IncompatibleError(
            f"the collection {name} at {connection.address.shown} has an index {index.kind}, not {kind}",
            hint="leave --index-type out, or remove it first: cli index publish ... --remove",
        )
    collections.build_index(connection, name, index)
    collections.load(connection, name)
    return name, index
