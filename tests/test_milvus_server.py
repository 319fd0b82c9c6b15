"""A real Milvus server: loaded, searched, killed while it is loaded and while it is searched, and started again.

`make milvus-server` runs this file, in a network namespace of its own, because that server listens on every interface.
Anywhere else its tests are skipped.
"""

from __future__ import annotations

import platform
import socket
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from memory_fixtures import append, build_until, queries_at, wide_table
from milvus_fixtures import counted, make_small, publish_and_kill, recall, sizes_of

from benchmarks.milvus_server import ADDRESS, PYTHON, TOKEN, Server
from memory_index.access import Access
from memory_index.encoder import EncoderConfig
from memory_index.errors import IncompatibleError, NotFoundError, ResourceError, ServiceError
from memory_index.milvus import collections, lease, loading
from memory_index.milvus.collections import KEY, KNOWN_AT, ROW, SERIES, collection_name
from memory_index.milvus.connection import Connection, parse_address
from memory_index.milvus.publish import publish, remove
from memory_index.milvus.searching import open_milvus
from memory_index.neighbours import Neighbours
from memory_index.versions.store import Store
from memory_index.versions.version import Version
from memory_index.windows import WindowSpec

ACCESS = Access(token=TOKEN, deadline_s=120)
SHORT = WindowSpec(lookback=12, horizon=4)
ONE_VIEW = EncoderConfig(views=(12,), shape_width=8, joint_width=24)


def reason_not_to_run() -> str:
    """Why there can be no server here; empty if there can."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return "the server is for Linux on x86-64"
    if not PYTHON.exists():
        return "no server is installed: make milvus-server"
    if {name for _, name in socket.if_nameindex()} != {"lo"}:
        return "this is not a network namespace of its own: make milvus-server"
    return ""


pytestmark = [
    pytest.mark.milvus_server,
    pytest.mark.skipif(bool(reason_not_to_run()), reason=f"NO MILVUS SERVER: {reason_not_to_run()}"),
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("milvus"))
    print(f"\nstarted in {server.start():.1f} s")
    try:
        yield server
    finally:
        server.kill()


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    make_small(monkeypatch)
    monkeypatch.setattr(lease, "LEASE_S", 3.0)
    monkeypatch.setattr(lease, "BEAT_S", 0.5)


@pytest.fixture(scope="module")
def version(tmp_path_factory: pytest.TempPathFactory) -> Version:
    """Two segments, three scopes, one view: some thousand rows, in a hundred batches."""
    folder, table = tmp_path_factory.mktemp("indexes"), wide_table(1200)
    first = build_until(Store(folder), table, table.series[0].times[899], window=SHORT, encoder=ONE_VIEW)
    return append(Store(folder), first.ref, table)


@pytest.fixture
def cleared(server: Server, version: Version) -> None:
    """Nothing of the version is there."""
    remove(version, ADDRESS, access=ACCESS)


def connect() -> Connection:
    return Connection(parse_address(ADDRESS), ACCESS)


def asked(num: int = 40) -> Any:
    return queries_at(wide_table(1200), np.linspace(100, 1190, num).astype(int), lookback=12)


def assert_same_answers(found: Neighbours, expected: Neighbours) -> None:
    """The same distances, bit for bit; and the same rows in the series that does not repeat itself (ties)."""
    np.testing.assert_array_equal(found.distance, expected.distance)
    np.testing.assert_array_equal(found.row[:, 0], expected.row[:, 0])


def require_whole(version: Version) -> None:
    """Every row is there once, and is found."""
    assert counted(connect(), version) == sizes_of(version)
    assert recall(open_milvus(version, ADDRESS, access=ACCESS)) >= 0.98


def test_a_wrong_token_is_said(server: Server, version: Version) -> None:
    for token in ("root:wrong", ""):
        with pytest.raises(ServiceError, match="refuses the token"):
            publish(version, ADDRESS, access=Access(token=token))


def test_published_searched_and_put_right(server: Server, version: Version, cleared: None) -> None:
    started = time.monotonic()
    published = publish(version, ADDRESS, access=ACCESS)
    print(f"\npublished {published.spaces} in {time.monotonic() - started:.1f} s")
    assert {space.index for space in published.spaces} == {"HNSW"}
    assert all(space.recall_at_10 > 0.9 for space in published.spaces)
    require_whole(version)
    # What an insert of the same row does there, and that it is found.
    space = version.manifest.spaces[0]
    name = collection_name(version.manifest.fingerprint, space.space)
    entity = {ROW: 5, SERIES: 0, KNOWN_AT: 0, KEY: [0.0] * space.width}
    connect().ask("insert", lambda client, s: client.insert(name, [entity], timeout=s))
    with pytest.raises(IncompatibleError, match=f"has {sizes_of(version)[space.space] + 1:,} rows"):
        open_milvus(version, ADDRESS, access=ACCESS)
    again = publish(version, ADDRESS, access=ACCESS)
    assert 0 < again.spaces[0].num_loaded < 300
    require_whole(version)


def test_one_row_twice_and_another_one_missing(server: Server, version: Version) -> None:
    """As many rows as there should be: nothing but the row ids tells."""
    publish(version, ADDRESS, access=ACCESS)
    space = version.manifest.spaces[0]
    name = collection_name(version.manifest.fingerprint, space.space)
    entity = {ROW: 5, SERIES: 0, KNOWN_AT: 0, KEY: [0.0] * space.width}
    connect().ask("insert", lambda client, s: client.insert(name, [entity], timeout=s))
    connect().ask("delete", lambda client, s: client.delete(name, filter=f"{ROW} == 7", timeout=s))
    assert counted(connect(), version) == sizes_of(version)
    again = publish(version, ADDRESS, access=ACCESS)
    assert [0 < each.num_loaded < 300 for each in again.spaces] == [True, False, False]
    np.testing.assert_array_equal(
        collections.row_ids(connect(), name, f"{ROW} >= 0"), np.arange(sizes_of(version)[space.space])
    )
    require_whole(version)


def test_loaded_anew_while_it_is_open(server: Server, version: Version, monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked after every batch of what follows it never answers, nor afterwards; what did not change stays open."""
    publish(version, ADDRESS, access=ACCESS)
    memory = open_milvus(version, ADDRESS, access=ACCESS)
    publish(version, ADDRESS, access=ACCESS)
    started = time.monotonic()
    for _ in range(20):
        memory._require_unchanged()
    print(f"\nreading the mark takes {(time.monotonic() - started) / 20 * 1e3:.1f} ms")
    before = memory.search(asked(2), 5, scopes=("pooled",))
    assert before.valid.any()
    refused: list[str] = []
    insert = loading._insert

    def asking(*words: Any) -> None:
        insert(*words)
        with pytest.raises((ServiceError, NotFoundError)) as caught:
            memory.search(asked(2), 5, scopes=("pooled",))
        refused.append(str(caught.value))

    name = collection_name(version.manifest.fingerprint, version.manifest.spaces[-1].space)
    connect().ask("delete", lambda client, s: client.delete(name, filter=f"{ROW} == 7", timeout=s))
    monkeypatch.setattr(loading, "_insert", asking)
    publish(version, ADDRESS, access=ACCESS)
    assert refused
    with pytest.raises(ServiceError, match="is being loaded anew"):
        memory.search(asked(2), 5, scopes=("pooled",))
    assert open_milvus(version, ADDRESS, access=ACCESS).search(asked(2), 5).valid.any()


def test_killed_while_it_is_loaded_and_back_within_the_deadline(
    server: Server, version: Version, cleared: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent, insert = [], loading._insert

    def killed(*words: Any) -> None:
        sent.append(1)
        if len(sent) == 12:
            server.kill()
            threading.Timer(2, server.start).start()
        insert(*words)

    monkeypatch.setattr(loading, "_insert", killed)
    publish(version, ADDRESS, access=ACCESS)
    assert len(sent) > 12
    require_whole(version)


def test_killed_while_it_is_loaded_and_gone_on_with_later(
    server: Server, version: Version, cleared: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent, insert = [], loading._insert

    def killed(connection: Connection, *words: Any) -> None:
        sent.append(1)
        if len(sent) == 20:
            server.kill()
        insert(connection, *words)

    with monkeypatch.context() as patch:
        patch.setattr(loading, "_insert", killed)
        started = time.monotonic()
        with pytest.raises(ServiceError):
            publish(version, ADDRESS, access=Access(token=ACCESS.token, deadline_s=3))
        assert time.monotonic() - started < 60
    server.start()
    with pytest.raises(IncompatibleError, match="is not complete"):
        open_milvus(version, ADDRESS, access=ACCESS)
    again = publish(version, ADDRESS, access=ACCESS)
    assert 0 < sum(space.num_loaded for space in again.spaces) < sum(sizes_of(version).values())
    require_whole(version)


def test_the_publisher_is_killed(server: Server, version: Version, cleared: None) -> None:
    total = sum(sizes_of(version).values())
    publish_and_kill(version.path.parents[1], version.ref, ADDRESS, at_rows=total // 2, token=ACCESS.token)
    told: list[str] = []
    again = publish(version, ADDRESS, access=ACCESS, report=lambda *words: told.append(words[2]))
    assert any("to see whether process" in said for said in told)
    assert 0 < sum(space.num_loaded for space in again.spaces) <= total - total // 2
    require_whole(version)


def test_of_two_publishers_one_is_told(
    server: Server, version: Version, cleared: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcomes: list[Any] = []
    monkeypatch.setattr(lease, "SETTLE_S", 0.5)

    def attempt() -> None:
        try:
            outcomes.append(publish(version, ADDRESS, access=ACCESS))
        except ResourceError as error:
            outcomes.append(error)

    threads = [threading.Thread(target=attempt) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(type(outcome).__name__ for outcome in outcomes) == ["Published", "ResourceError"]
    require_whole(version)


def test_killed_while_it_is_searched(server: Server, version: Version, cleared: None) -> None:
    # A graph would do as well, but what it misses changes from one question to the next.
    publish(version, ADDRESS, access=ACCESS, index="FLAT")
    memory = open_milvus(version, ADDRESS, access=ACCESS, threads=2)
    before = memory.search(asked(), 5)
    assert_same_answers(memory.search(asked(), 5), before)
    server.kill()
    back = threading.Timer(2, server.start)
    back.start()
    started = time.monotonic()
    during = memory.search(asked(), 5)
    print(f"\nanswered {time.monotonic() - started:.1f} s after the kill")
    back.join()
    assert_same_answers(during, before)
    assert_same_answers(open_milvus(version, ADDRESS, access=ACCESS).search(asked(), 5), before)
    assert recall(memory) >= 0.98


def test_gone_for_good_is_said_within_the_deadline(server: Server, version: Version) -> None:
    publish(version, ADDRESS, access=ACCESS)
    memory = open_milvus(version, ADDRESS, access=Access(token=ACCESS.token, deadline_s=3))
    server.kill()
    try:
        started = time.monotonic()
        with pytest.raises(ServiceError, match="could not search"):
            memory.search(asked(2), 5, scopes=("pooled",))
        assert time.monotonic() - started < 15
    finally:
        server.start()
    assert open_milvus(version, ADDRESS, access=ACCESS).search(asked(2), 5).valid.any()


def test_dropped_while_it_is_open(server: Server, version: Version) -> None:
    publish(version, ADDRESS, access=ACCESS)
    memory = open_milvus(version, ADDRESS, access=Access(token=ACCESS.token, deadline_s=3))
    assert len(remove(version, ADDRESS, access=ACCESS)) == len(version.manifest.spaces)
    with pytest.raises((ServiceError, NotFoundError), match=r"no such collection|could not search"):
        memory.search(asked(2), 5, scopes=("pooled",))
    with pytest.raises(NotFoundError, match="there is no collection"):
        open_milvus(version, ADDRESS, access=ACCESS)
