"""What a version is in a Milvus: one collection for each key space, and a mark on it once it is complete.

    gram_FINGERPRINT_SCOPE_VIEW    row (primary key), series, known_at (ns), key (float32 [E], metric L2)

`row` is the row id of the version (for `joint` that of the moment's first series), so what is found means something
only together with the version's own files. A collection without its mark is being loaded, or was left unfinished, and
is never searched. The mark of the version's first collection stands for all of them: it is the first to be taken off,
before anything of any collection is changed, and the last to be put on. Loading is `publish.py`, asking `searching.py`.
"""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import numpy as np
from tenacity import RetryError, Retrying, retry_if_result, stop_after_delay, wait_fixed

from memory_index.errors import IncompatibleError, ServiceError, UsageError
from memory_index.milvus.connection import Connection
from memory_index.search import MIN_EFFORT
from memory_index.types import KeySpace
from memory_index.versions.version import Version

IndexKind = Literal["HNSW", "IVF_FLAT", "IVF_SQ8", "FLAT"]
INDEX_KINDS: tuple[IndexKind, ...] = get_args(IndexKind)

PREFIX = "gram"
FINGERPRINT_SHOWN = 24  # of 64 hexadecimal digits, in the name of a collection; its properties have them all
ROW, SERIES, KNOWN_AT, KEY = "row", "series", "known_at", "key"
IDENTITY, INDEX, MARK = "gram.version", "gram.index", "gram.complete"  # properties of a collection, JSON
POINTS_PER_LIST = 64  # of an inverted file
LITE_LISTS = 128  # in each of its segments; what it is told (`nlist`) it does not read
POLL_S = 0.2
_changing = threading.Lock()  # Milvus Lite writes what two threads say of a collection through one file
PATIENCE_S = 3600.0  # for what Milvus does by itself: sealing, indexing and loading a whole collection


@dataclass(frozen=True, kw_only=True, slots=True)
class Identity:
    """Whose keys a collection holds. Two equal ones hold the same rows."""

    fingerprint: str
    space: str
    num_rows: int
    width: int
    encoder: str

    @classmethod
    def of(cls, version: Version, space: KeySpace, num_rows: int) -> Identity:
        """That of a key space with so many keys."""
        manifest = version.manifest
        (width,) = (record.width for record in manifest.spaces if record.space == space)
        return cls(
            fingerprint=manifest.fingerprint,
            space=str(space),
            num_rows=num_rows,
            width=width,
            encoder=manifest.encoder["fingerprint"],
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class VectorIndex:
    """The index of a collection. lists: of an inverted file, 0 for the other kinds."""

    kind: IndexKind
    lists: int

    @classmethod
    def chosen(cls, kind: str, num_rows: int, *, embedded: bool) -> VectorIndex:
        """`auto` is a graph on a server; Milvus Lite builds one too slowly, and gets an inverted file where that pays.

        Raises `UsageError` for a kind that there is not.
        """
        if kind == "auto":
            kind = "HNSW" if not embedded else "IVF_FLAT" if num_rows >= POINTS_PER_LIST * LITE_LISTS else "FLAT"
        if kind not in INDEX_KINDS:
            raise UsageError(f"unknown kind of Milvus index '{kind}'", hint=f"choose auto, {', '.join(INDEX_KINDS)}")
        lists = min(4 * math.isqrt(num_rows), num_rows // POINTS_PER_LIST, 65536)
        lists = LITE_LISTS if embedded else max(lists, 1)
        return cls(kind=kind, lists=lists if kind.startswith("IVF") else 0)

    @property
    def build_parameters(self) -> dict[str, int]:
        """What Milvus is told when it builds it. The graph has as many edges as the one in FAISS files."""
        return {"M": 32, "efConstruction": 200} if self.kind == "HNSW" else {"nlist": self.lists} if self.lists else {}

    def search_parameters(self, num: int) -> dict[str, int]:
        """Search effort in proportion to how many candidates are wanted."""
        if self.kind == "HNSW":
            return {"ef": max(MIN_EFFORT, num)}
        return {"nprobe": max(min(self.lists, 8), self.lists // 16)} if self.lists else {}


@dataclass(frozen=True, kw_only=True, slots=True)
class Mark:
    """What a complete collection says of itself.

    publication: the same for all collections of a version, and another one after anything of them was changed.
    recall_at_10: None where every group of keys is so small that it is scanned by whoever asks.
    """

    identity: Identity
    index: VectorIndex
    publication: str
    recall_at_10: float | None


def collection_name(fingerprint: str, space: KeySpace) -> str:
    """Of the collection of a key space."""
    return f"{PREFIX}_{fingerprint[:FINGERPRINT_SHOWN]}_{space.scope}_{space.view}"


def exists(connection: Connection, name: str) -> bool:
    """Whether there is such a collection, complete or not."""
    return connection.ask("look for a collection", lambda client, s: client.has_collection(name, timeout=s))


def create(connection: Connection, name: str, identity: Identity, index: VectorIndex) -> None:
    """Make an empty collection with its index, unless another publisher is faster."""
    from pymilvus import DataType, MilvusClient

    schema = MilvusClient.create_schema(auto_id=False, enable_dynamic_field=False)
    schema.add_field(ROW, DataType.INT64, is_primary=True)
    schema.add_field(SERIES, DataType.INT64)
    schema.add_field(KNOWN_AT, DataType.INT64)
    schema.add_field(KEY, DataType.FLOAT_VECTOR, dim=identity.width)
    said = {IDENTITY: as_json(identity), INDEX: as_json(index)}
    try:
        connection.ask(
            "make a collection",
            lambda client, s: client.create_collection(name, schema=schema, properties=said, timeout=s),
            again=False,
        )
    except ServiceError:
        if not exists(connection, name):
            raise


def build_index(connection: Connection, name: str, index: VectorIndex) -> None:
    """Tell Milvus which index to keep over the keys, unless it knows; it builds it while rows come."""
    from pymilvus import MilvusClient

    if connection.ask("list indexes", lambda client, s: client.list_indexes(name, timeout=s)):
        return
    wanted = MilvusClient.prepare_index_params()
    wanted.add_index(KEY, index_type=index.kind, metric_type="L2", params=index.build_parameters)
    connection.ask("make an index", lambda client, s: client.create_index(name, wanted, timeout=s, sync=False))


def load(connection: Connection, name: str) -> None:
    """Bring a collection into the memory of Milvus, where it can be asked; at once if it is there."""
    connection.ask("load a collection", lambda client, s: client.load_collection(name, timeout=s, _async=True))
    wait_until("load a collection", lambda: _is_loaded(connection, name))


def release(connection: Connection, name: str) -> None:
    """Let a collection go from the memory of Milvus."""
    connection.ask("release a collection", lambda client, s: client.release_collection(name, timeout=s))


def seal(connection: Connection, name: str, num: int) -> None:
    """Put all rows on disk and under the index, and wait for it."""
    # Milvus Lite says that an index is there before it is. It builds at once only what is loaded anew; what is released
    # meanwhile it does not begin to build behind our back as well, into the same file.
    if connection.address.embedded:
        release(connection, name)
    # It waits for the rows by itself, but there is no telling how long that takes.
    connection.ask("put rows on disk", lambda client, _: client.flush(name, timeout=PATIENCE_S))
    wait_until("index a collection", lambda: _is_indexed(connection, name, num))
    if connection.address.embedded:
        wait_until("load a collection", lambda: _is_loaded_at_last(connection, name))


def _is_loaded_at_last(connection: Connection, name: str) -> bool:
    """A file that Milvus Lite had begun to write before can be met unfinished."""
    try:
        load(connection, name)
    except ServiceError as error:
        if "No data left in file" not in str(error) and "Error in" not in str(error):
            raise
        return False
    return True


def wait_until(doing: str, done: Callable[[], bool]) -> None:
    """Raises `ServiceError` if it is not done in the end."""
    again = retry_if_result(lambda is_done: not is_done)
    try:
        Retrying(retry=again, wait=wait_fixed(POLL_S), stop=stop_after_delay(PATIENCE_S))(done)
    except RetryError:
        raise ServiceError(
            f"Milvus took more than {PATIENCE_S:.0f} s to {doing}", hint="see the server's own log"
        ) from None


def _is_loaded(connection: Connection, name: str) -> bool:
    from pymilvus.client.types import LoadState

    state = connection.ask("say what is loaded", lambda client, s: client.get_load_state(name, timeout=s))
    return bool(state["state"] == LoadState.Loaded)


def _is_indexed(connection: Connection, name: str, num: int) -> bool:
    said = connection.ask("say what is indexed", lambda client, s: client.describe_index(name, KEY, timeout=s))
    if said["state"] == "Failed":
        raise ServiceError(f"Milvus at {connection.address.shown} cannot index {name}: {said}", hint="see its log")
    return bool(said["state"] == "Finished" and said["pending_index_rows"] == 0 and said["total_rows"] >= num)


def drop(connection: Connection, name: str) -> None:
    """Delete a collection, if it is there."""
    connection.ask("drop a collection", lambda client, s: client.drop_collection(name, timeout=s))


def properties(connection: Connection, name: str) -> dict[str, str]:
    """What is said about a collection. Raises `NotFoundError`."""
    described: dict[str, Any] = connection.ask(
        "describe a collection", lambda client, s: client.describe_collection(name, timeout=s)
    )
    return dict(described.get("properties") or {})


def set_property(connection: Connection, name: str, key: str, value: str, *, lasting: bool = True) -> None:
    """Say something about a collection; an empty text takes it back. lasting: whether a restart must not undo it."""
    # Milvus 2.3.5 answers with the new properties and keeps those before them on disk: the second time makes it last.
    for _ in range(2 if lasting else 1):
        with _changing if connection.address.embedded else nullcontext():
            connection.ask(
                "mark a collection", lambda client, s: client.alter_collection_properties(name, {key: value}, timeout=s)
            )


def num_rows(connection: Connection, name: str, where: str = "") -> int:
    """Exactly how many rows a loaded collection has, rows that are there twice counted twice."""
    answer = connection.ask(
        "count rows",
        lambda client, s: client.query(
            name, filter=where, output_fields=["count(*)"], consistency_level="Strong", timeout=s
        ),
    )
    return int(answer[0]["count(*)"])


def row_ids(connection: Connection, name: str, where: str) -> np.ndarray:
    """Row ids of a loaded collection, int64 [n], ascending; one that is there twice comes once."""
    answer = connection.ask(
        "name rows",
        lambda client, s: client.query(name, filter=where, output_fields=[ROW], consistency_level="Strong", timeout=s),
    )
    return np.unique(np.array([entity[ROW] for entity in answer], dtype=np.int64))


def as_json(said: Identity | VectorIndex | Mark) -> str:
    """As it is stored in a property."""
    return json.dumps(asdict(said), sort_keys=True)


def require_same(connection: Connection, name: str, found: dict[str, str], identity: Identity) -> None:
    """Raise `IncompatibleError` for a collection of that name that holds something else."""
    if found.get(IDENTITY) != as_json(identity):
        raise IncompatibleError(
            f"the collection {name} at {connection.address.shown} was not made for these keys: "
            f"{found.get(IDENTITY) or 'it says nothing of itself'}",
            hint="drop it, if it is nobody else's, and publish again",
        )


def publication_of(marks: Iterable[Mark | None]) -> str:
    """Which publication all collections of a version belong to; empty if one is not complete, or of another one."""
    found = {mark.publication if mark else "" for mark in marks}
    return found.pop() if len(found) == 1 else ""


def read_mark(found: dict[str, str], identity: Identity) -> Mark | None:
    """The mark of a complete collection; None if there is none, or not one for these keys."""
    try:
        document = json.loads(found.get(MARK) or "null")
        mark = Mark(
            identity=Identity(**document["identity"]),
            index=VectorIndex(**document["index"]),
            publication=str(document["publication"]),
            recall_at_10=None if document["recall_at_10"] is None else float(document["recall_at_10"]),
        )
    except (ValueError, TypeError, KeyError):
        return None
    return mark if mark.identity == identity else None
