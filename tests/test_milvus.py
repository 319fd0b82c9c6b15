"""A version whose candidates Milvus proposes, on Milvus Lite: publishing, its failures, and what is believed of it.

The same on a server: `test_milvus_server.py`. What every memory must answer: `test_contract.py`.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from fake_memory import FakeMemory
from hypothesis import given, settings
from hypothesis import strategies as st
from memory_fixtures import (
    NUM_STEPS,
    append,
    appended,
    assert_same,
    build_until,
    built,
    open_version,
    poisoned,
    queries_at,
    take,
    wide_table,
)
from milvus_fixtures import counted, make_small, publish_and_kill, recall, sizes_of

from cli.main import run
from memory_index import search
from memory_index.access import Access
from memory_index.encoder import EncoderConfig
from memory_index.errors import (
    IncompatibleError,
    NotFoundError,
    ResourceError,
    ServiceError,
    UsageError,
)
from memory_index.leakage import Policy
from memory_index.memory import Memory
from memory_index.milvus import collections, lease, loading
from memory_index.milvus.collections import KEY, KNOWN_AT, MARK, ROW, SERIES, collection_name
from memory_index.milvus.connection import Connection, parse_address
from memory_index.milvus.publish import publish, remove
from memory_index.milvus.searching import MilvusIndex, MilvusMemory, open_milvus
from memory_index.types import Filter, KeySpace
from memory_index.versions.store import Store
from memory_index.versions.version import Version
from memory_index.windows import WindowSpec

SHORT = WindowSpec(lookback=12, horizon=4)
SOON_S = 50.0  # before the deadline of those who state none
ONE_VIEW = EncoderConfig(views=(12,), shape_width=8, joint_width=24)


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    make_small(monkeypatch)


@pytest.fixture(scope="module")
def version(tmp_path_factory: pytest.TempPathFactory) -> Version:
    """Two segments, three scopes, two views."""
    folder = tmp_path_factory.mktemp("indexes")
    return appended(folder, built(folder), 300)


@pytest.fixture(scope="module")
def smaller(tmp_path_factory: pytest.TempPathFactory) -> Version:
    """Two segments, two scopes, one view: for tests that publish it again and again."""
    folder, table = tmp_path_factory.mktemp("smaller"), wide_table(200)
    version = build_until(
        Store(folder), table, table.series[0].times[149], window=SHORT, encoder=ONE_VIEW, scopes=("own", "joint")
    )
    return append(Store(folder), version.ref, table)


@pytest.fixture(scope="module")
def address(version: Version, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where that version is published, once for the tests that only ask it."""
    with pytest.MonkeyPatch.context() as patch:
        make_small(patch)
        there = f"milvus:{tmp_path_factory.mktemp('milvus') / 'shared.db'}"
        publish(version, there)
        yield there


def connect(address: str) -> Connection:
    return Connection(parse_address(address), Access(), may_create=True)


def first_name(version: Version) -> str:
    return collection_name(version.manifest.fingerprint, version.manifest.spaces[0].space)


def through_milvus(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Counts the questions that reach Milvus from now on."""
    asked: list[int] = []
    ask = MilvusIndex._search

    def counting(self: MilvusIndex, keys: list[np.ndarray], options: dict[str, object]) -> Any:
        asked.append(len(keys))
        return ask(self, keys, options)

    monkeypatch.setattr(MilvusIndex, "_search", counting)
    return asked


# Asking


def test_what_is_published_is_said_and_found(version: Version, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[float, float | None, str]] = []
    published = publish(version, address, report=lambda *words: told.append(words))
    sizes = sizes_of(version)
    assert {space.space: space.num_rows for space in published.spaces} == sizes
    assert {space.num_loaded for space in published.spaces} == {0}  # it was there
    assert all(space.recall_at_10 > 0.97 for space in published.spaces)
    assert (published.ref, published.num_rows) == (version.ref, len(open_version(version).windows))
    assert told[-1][:2] == (sum(sizes.values()), sum(sizes.values()))
    assert [done for done, *_ in told] == sorted(done for done, *_ in told)
    assert counted(connect(address), version) == sizes
    memory = open_milvus(version, address, threads=2)
    asked = through_milvus(monkeypatch)
    assert recall(memory) >= 0.98
    assert asked
    assert memory.fingerprint == version.manifest.fingerprint


def test_rows_are_what_the_version_says(version: Version, address: str) -> None:
    memory, connection = open_version(version), connect(address)

    def everything(name: str) -> list[dict[str, Any]]:
        fields = [ROW, SERIES, KNOWN_AT, KEY]
        found = connection.ask("ask", lambda client, _: client.query(name, f"{ROW} >= 0", fields, limit=2000))
        return sorted(found, key=lambda entity: entity[ROW])

    for record in version.manifest.spaces:
        name = collection_name(version.manifest.fingerprint, record.space)
        collections.load(connection, name)
        stored = FakeMemory.of(memory).candidates[record.space]
        ids = stored.rows[:, 0] if record.scope == "joint" else stored.rows
        order, rows = np.argsort(ids), everything(name)
        np.testing.assert_array_equal([entity[ROW] for entity in rows], ids[order])
        np.testing.assert_array_equal(np.array([entity[KEY] for entity in rows], dtype=np.float32), stored.keys[order])
        np.testing.assert_array_equal([entity[SERIES] for entity in rows], memory.windows.series[ids[order]])
        known = memory.windows.known_at[ids[order]].astype(np.int64)
        np.testing.assert_array_equal([entity[KNOWN_AT] for entity in rows], known)


def test_taking_part_of_a_group(version: Version, address: str) -> None:
    """Row ids and positions of a group are the same rows."""
    memory = open_milvus(version, address)
    for segment in memory.segments:
        for space, groups in segment.groups.items():
            for group in groups:
                index = group.index
                assert isinstance(index, MilvusIndex)
                rows = np.array([index.row(position) for position in range(len(group))])
                np.testing.assert_array_equal(index.positions(rows), np.arange(len(group)))
                others = np.setdiff1d(np.arange(-5, len(memory.windows) + 5), rows)
                assert (index.positions(others) == -1).all()
                assert space.scope != "own" or f"{SERIES} == " in index.expression(None)
    asked = queries_at(wide_table(), range(60, NUM_STEPS, 30))
    alone, together = memory.search(take(asked, slice(3, 4)), 4), memory.search(asked, 4)
    np.testing.assert_array_equal(alone.valid[0], together.valid[3])


def test_groups_that_show_little_are_scanned_here(
    version: Version, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = open_milvus(version, address)
    monkeypatch.setattr(search, "EXACT_ROWS", 20_000)
    asked = through_milvus(monkeypatch)
    queries = queries_at(wide_table(), range(60, NUM_STEPS, 8))
    assert_same(memory.search(queries, 5), open_version(version).search(queries, 5))
    assert not asked


def test_the_filter_of_a_second_question_spares_the_scan(
    version: Version, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the nearest are all hidden, Milvus is told what may be seen; only then would everything be scanned."""
    memory = open_milvus(version, address, threads=1)
    memory = memory.with_segments(memory.segments[:1])
    monkeypatch.setattr(search, "SPARE", 0)
    monkeypatch.setattr(search, "OVERFETCH", 0)
    filters: list[str] = []
    expression = MilvusIndex.expression

    def noting(self: MilvusIndex, within: search.Within | None) -> str:
        filters.append(expression(self, within))
        return filters[-1]

    monkeypatch.setattr(MilvusIndex, "expression", noting)
    monkeypatch.setattr(search, "scan", lambda *_, **__: pytest.fail("scanned"))
    asked = queries_at(wide_table(), range(100, 140), Policy.DISJOINT, series=["load"])
    found = memory.search(asked, 1, scopes=("own",))
    assert found.valid.all()
    assert any(" or " in said for said in filters)
    monkeypatch.undo()
    make_small(monkeypatch)
    exact = open_version(version).with_segments(open_version(version).segments[:1])
    np.testing.assert_array_equal(found.row, exact.search(asked, 1, scopes=("own",)).row)


@pytest.mark.parametrize("lie", ["late", "unknown", "twice", "nothing", "negative"])
def test_a_milvus_that_lies_brings_nothing_in(
    lie: str, version: Version, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory, random = open_milvus(version, address, threads=1), np.random.default_rng(1)
    num_rows = len(memory.windows)

    class Liar:
        def search(self, name: str, data: list[np.ndarray], limit: int, **_: Any) -> list[SimpleNamespace]:
            ids = {
                "late": np.arange(num_rows - limit, num_rows),
                "unknown": random.integers(num_rows, 1 << 62, limit),
                "twice": np.full(limit, random.integers(num_rows)),
                "nothing": np.empty(0, dtype=np.int64),
                "negative": -random.integers(1, 1 << 62, limit),
            }[lie]
            return [SimpleNamespace(ids=ids.tolist()) for _ in data]

        def describe_collection(self, name: str, **_: Any) -> dict[str, Any]:
            return {"properties": collections.properties(connect(address), name)}

    connection = memory.segments[0].groups[KeySpace("own", 12)][0].index.connection
    monkeypatch.setattr(connection, "_client", Liar())
    exact = open_version(version, threads=1)
    for policy in Policy:
        asked = queries_at(wide_table(), range(60, NUM_STEPS, 10), policy)
        for scopes in (("own",), ("pooled",)):
            found, expected = (each.search(asked, 5, scopes=scopes) for each in (memory, exact))
            np.testing.assert_array_equal(found.valid, expected.valid)  # what it withheld was found all the same
            for rows in found.row.reshape(-1, 5):
                assert len(set(rows[rows >= 0])) == (rows >= 0).sum()
            if lie != "late":  # those that are not late any more at a later origin are honest, if poor, answers
                np.testing.assert_array_equal(found.row, expected.row)


def test_too_few_answers_are_an_error(version: Version, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = open_milvus(version, address, threads=1)
    connection = memory.segments[0].groups[KeySpace("pooled", 12)][0].index.connection
    monkeypatch.setattr(connection, "_client", SimpleNamespace(search=lambda *_, **__: []))
    with pytest.raises(ServiceError, match="answered other questions"):
        memory.search(queries_at(wide_table(), [250, 251]), 3)


def test_milvus_lite_searches_for_one_at_a_time(
    version: Version, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its searches share one effort: two at a time would search with one another's."""
    memory = open_milvus(version, address, threads=2)
    client, inside, most = memory.connection._client, [], []
    whole = client.search

    def watched(*args: object, **options: object) -> object:
        inside.append(1)
        most.append(len(inside))
        time.sleep(0.02)
        try:
            return whole(*args, **options)
        finally:
            inside.pop()

    monkeypatch.setattr(client, "search", watched)
    memory.search(queries_at(wide_table(), list(range(200, 260))), 3, scopes=("pooled",))
    assert len(most) > 1
    assert max(most) == 1


@given(stored=st.integers(70, 100), origin=st.integers(60, 148), seed=st.integers(0, 10**6))
@settings(max_examples=3)
def test_what_is_appended_later_than_the_origin_does_not_matter(
    tmp_path_factory: pytest.TempPathFactory, stored: int, origin: int, seed: int
) -> None:
    """The poisoned future, with the poison lying in the same collections."""
    with pytest.MonkeyPatch.context() as patch:
        make_small(patch, batch_bytes=1 << 20)
        folder, table = tmp_path_factory.mktemp("poisoned"), wide_table(150)
        store, times = Store(folder / "indexes"), table.series[0].times
        first = build_until(store, table, times[stored], window=SHORT, encoder=ONE_VIEW)
        found = []
        for each in (table, poisoned(table, max(times[origin], times[stored]), seed=seed)):
            grown = append(store, first.ref, each)
            publish(grown, f"milvus:{folder / 'm.db'}")
            memory = open_milvus(grown, f"milvus:{folder / 'm.db'}", threads=1)
            asked = queries_at(table, [origin], lookback=12)
            found.append([memory.search(asked, 6, scopes=scopes) for scopes in (("own", "joint"), ("pooled",))])
        for before, after in zip(*found, strict=True):
            assert_same(before, after)


def test_filters_and_gaps(version: Version, address: str) -> None:
    memory = open_milvus(version, address)
    exact: Memory = FakeMemory.of(memory)
    times, asked = wide_table().series[0].times, queries_at(wide_table(), range(150, NUM_STEPS, 12))
    for options in (
        {"where": Filter(series_id=("beat",)), "scopes": ("pooled",)},
        {"where": Filter(after=times[90], before=times[200]), "scopes": ("own",)},
        {"min_gap": 13, "scopes": ("own", "joint")},
    ):
        found, expected = (each.search(asked, 4, **options) for each in (memory, exact))  # type: ignore[arg-type]
        np.testing.assert_array_equal(found.valid, expected.valid)
        assert np.isclose(found.distance, expected.distance, rtol=1e-4, atol=2e-3)[found.valid].mean() > 0.98


@pytest.mark.parametrize("kind", ["HNSW", "IVF_FLAT", "IVF_SQ8", "FLAT"])
def test_every_kind_of_index_answers(kind: str, tmp_path: Path) -> None:
    whole = wide_table(2000)
    table = replace(whole, series=whole.series[:1])  # the others repeat themselves: of ties none is the right one
    version = build_until(Store(tmp_path), table, table.series[0].times[-1], encoder=ONE_VIEW, scopes=("pooled",))
    published = publish(version, f"milvus:{tmp_path / 'm.db'}", index=kind)
    assert [space.index for space in published.spaces] == [kind]
    assert published.spaces[0].recall_at_10 > 0.9
    with pytest.raises(IncompatibleError, match=f"has an index {kind}, not"):
        publish(version, f"milvus:{tmp_path / 'm.db'}", index="FLAT" if kind != "FLAT" else "HNSW")


def test_the_index_of_a_collection_suits_it() -> None:
    chosen = collections.VectorIndex.chosen
    assert chosen("auto", 10**8, embedded=False) == collections.VectorIndex(kind="HNSW", lists=0)
    assert chosen("auto", 1000, embedded=True).kind == "FLAT"
    assert chosen("auto", 10**5, embedded=True).kind == "IVF_FLAT"
    inverted = chosen("IVF_SQ8", 10**6, embedded=False)
    assert inverted.build_parameters == {"nlist": 4000}
    assert inverted.search_parameters(100) == {"nprobe": 250}
    assert chosen("HNSW", 10**6, embedded=False).search_parameters(1000) == {"ef": 1000}
    with pytest.raises(UsageError, match="unknown kind of Milvus index 'hnsw'"):
        chosen("hnsw", 1000, embedded=False)


def test_an_index_in_the_files_is_not_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    version = built(tmp_path, factory="HNSW16")
    publish(version, f"milvus:{tmp_path / 'm.db'}")
    memory = open_milvus(version, f"milvus:{tmp_path / 'm.db'}")
    monkeypatch.setattr(search.FaissIndex, "propose", lambda *_: pytest.fail("asked"))
    assert memory.search(queries_at(wide_table(), [200]), 3).valid.any()


# Complete or not at all


def test_what_is_not_published_is_not_found(smaller: Version, tmp_path: Path) -> None:
    connect(f"milvus:{tmp_path / 'empty.db'}")
    with pytest.raises(NotFoundError, match="there is no collection gram_") as caught:
        open_milvus(smaller, f"milvus:{tmp_path / 'empty.db'}")
    assert caught.value.hint == f"cli index publish {smaller.ref} --to milvus:{tmp_path / 'empty.db'}"


def unmarked(connection: Connection, version: Version) -> None:
    collections.set_property(connection, first_name(version), MARK, "")


def marked_for_another_encoder(connection: Connection, version: Version) -> None:
    mark = json.loads(collections.properties(connection, first_name(version))[MARK])
    mark["identity"]["encoder"] = "0" * 64
    collections.set_property(connection, first_name(version), MARK, json.dumps(mark))


def with_a_damaged_mark(connection: Connection, version: Version) -> None:
    collections.set_property(connection, first_name(version), MARK, "{")


def with_rows_lost(connection: Connection, version: Version) -> None:
    connection.ask("delete", lambda client, s: client.delete(first_name(version), filter=f"{ROW} in [3, 444]"))


def insert(connection: Connection, version: Version, space: KeySpace, row: int) -> None:
    """A row that is of no key."""
    (width,) = (record.width for record in version.manifest.spaces if record.space == space)
    entity = {ROW: row, SERIES: 0, KNOWN_AT: 0, KEY: [0.0] * width}
    name = collection_name(version.manifest.fingerprint, space)
    connection.ask("insert", lambda client, s: client.insert(name, [entity]))


@pytest.mark.parametrize(
    ("damage", "message", "num_loaded"),
    [
        (unmarked, "is not complete", 0),
        (marked_for_another_encoder, "is not complete", 0),
        (with_a_damaged_mark, "is not complete", 0),
        (with_rows_lost, r"has 553 rows, but small@2 has 555", 2 * 123),  # two batches
    ],
)
def test_what_is_not_complete_is_refused_and_put_right(
    damage: Callable[[Connection, Version], None],
    message: str,
    num_loaded: int,
    smaller: Version,
    tmp_path: Path,
) -> None:
    address = f"milvus:{tmp_path / 'm.db'}"
    publish(smaller, address)
    damage(connect(address), smaller)
    with pytest.raises(IncompatibleError, match=message) as caught:
        open_milvus(smaller, address)
    assert f"cli index publish {smaller.ref} --to {address}" in caught.value.hint
    again = publish(smaller, address)
    assert again.spaces[0].num_loaded == num_loaded
    assert counted(connect(address), smaller) == sizes_of(smaller)
    assert open_milvus(smaller, address).search(queries_at(wide_table(), [180], lookback=12), 3).valid.any()


@pytest.mark.parametrize("row", [10**6, -3])
def test_a_row_too_many_is_refused_and_put_right(row: int, smaller: Version, tmp_path: Path) -> None:
    address = f"milvus:{tmp_path / 'm.db'}"
    publish(smaller, address)
    insert(connect(address), smaller, smaller.manifest.spaces[0].space, row)
    with pytest.raises(IncompatibleError, match="has 556 rows"):
        open_milvus(smaller, address)
    assert 0 < publish(smaller, address).spaces[0].num_loaded < 300
    assert counted(connect(address), smaller) == sizes_of(smaller)
    assert open_milvus(smaller, address)
    assert len(remove(smaller, address)) == len(smaller.manifest.spaces)
    assert remove(smaller, address) == ()
    assert {space.num_loaded for space in publish(smaller, address).spaces} == set(sizes_of(smaller).values())


def test_a_row_in_another_one_s_place_is_put_right(smaller: Version, tmp_path: Path) -> None:
    """As many rows as there should be, but not those: moments have every third row id."""
    address, space = f"milvus:{tmp_path / 'm.db'}", KeySpace("joint", 12)
    publish(smaller, address)
    name, connection = collection_name(smaller.manifest.fingerprint, space), connect(address)
    ids = collections.row_ids(connection, name, f"{ROW} >= 0")
    gone = int(ids[150])
    connection.ask("delete", lambda client, s: client.delete(name, filter=f"{ROW} == {gone}"))
    insert(connection, smaller, space, gone + 1)
    assert counted(connection, smaller) == sizes_of(smaller)
    published = publish(smaller, address)
    assert [each.num_loaded > 0 for each in published.spaces] == [each.space == space for each in published.spaces]
    np.testing.assert_array_equal(collections.row_ids(connection, name, f"{ROW} >= 0"), ids)


@pytest.mark.parametrize("more", [1, -1])
def test_rows_that_are_never_right_are_said(
    more: int, smaller: Version, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody waits for an index over rows that are not there."""
    address, space = f"milvus:{tmp_path / 'm.db'}", smaller.manifest.spaces[0].space
    load = loading._insert

    def disturbed(connection: Connection, name: str, *words: Any) -> None:
        load(connection, name, *words)
        if more > 0:
            insert(connection, smaller, space, 10**6)
        else:
            connection.ask("delete", lambda client, s: client.delete(name, filter=f"{ROW} == 3"))

    monkeypatch.setattr(loading, "_insert", disturbed)
    monkeypatch.setattr(collections, "PATIENCE_S", 5.0)
    with pytest.raises(ServiceError, match=f"has {555 + more} rows, not 555 once each, whatever is loaded") as caught:
        publish(smaller, address)
    assert "--remove" in caught.value.hint


# What is open, and changes


def after(monkeypatch: pytest.MonkeyPatch, owner: object, name: str, then: Callable[[], object]) -> None:
    """Something happens after every call of a function."""
    function = getattr(owner, name)

    def both(*words: Any, **options: Any) -> Any:
        result = function(*words, **options)
        then()
        return result

    monkeypatch.setattr(owner, name, both)


def test_what_is_published_again_without_a_change_stays_open(smaller: Version, tmp_path: Path) -> None:
    address, asked = f"milvus:{tmp_path / 'm.db'}", queries_at(wide_table(), [180], lookback=12)
    publish(smaller, address)
    memory = open_milvus(smaller, address)
    before = memory.search(asked, 3)
    publish(smaller, address)
    assert_same(memory.search(asked, 3), before)
    assert memory.answered_by == open_milvus(smaller, address).answered_by
    assert memory.answered_by.startswith("milvus FLAT ")
    assert open_version(smaller).answered_by == ""


def lost_at_the_end(version: Version, address: str) -> None:
    """A row of the last collection."""
    name = collection_name(version.manifest.fingerprint, version.manifest.spaces[-1].space)
    connect(address).ask("delete", lambda client, s: client.delete(name, filter=f"{ROW} in [300]"))


@pytest.mark.parametrize("change", [remove, lost_at_the_end])
def test_what_is_open_is_never_answered_from_a_loading(
    change: Callable[[Version, str], object], smaller: Version, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asked after every insert, deletion and drop of what follows, it never answers, nor afterwards."""
    address, asked = f"milvus:{tmp_path / 'm.db'}", queries_at(wide_table(), [180], lookback=12)
    publish(smaller, address)
    memory, num_refused = open_milvus(smaller, address), 0
    assert memory.search(asked, 3, scopes=("own",)).valid.any()

    def refused() -> None:
        nonlocal num_refused
        with pytest.raises((ServiceError, NotFoundError)):
            memory.search(asked, 3, scopes=("own",))
        num_refused += 1

    with monkeypatch.context() as patch:
        for owner, name in ((loading, "_insert"), (loading, "_empty"), (collections, "drop"), (collections, "create")):
            after(patch, owner, name, refused)
        change(smaller, address)
        publish(smaller, address)
    assert num_refused > 1
    with pytest.raises(ServiceError, match="is being loaded anew, or was removed") as caught:
        memory.search(asked, 3)
    assert "open it again" in caught.value.hint
    again = open_milvus(smaller, address)
    assert again.search(asked, 3).valid.any()
    assert again.answered_by != memory.answered_by


def test_a_change_in_the_middle_of_a_search_is_noticed(
    version: Version, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mark was there when the search began. It is read once for all key spaces, and not if Milvus is not asked."""
    address, asked = f"milvus:{tmp_path / 'm.db'}", queries_at(wide_table(), [250])
    publish(version, address)
    memory, read = open_milvus(version, address, threads=1), []
    after(monkeypatch, collections, "properties", lambda: read.append(1))
    assert memory.search(asked, 3).valid.any()
    assert len(read) == 1
    after(monkeypatch, MilvusIndex, "propose", lambda: unmarked(connect(address), version))
    with pytest.raises(ServiceError, match="is being loaded anew"):
        memory.search(asked, 3, scopes=("pooled",))
    monkeypatch.setattr(search, "EXACT_ROWS", 20_000)
    scanning = MilvusMemory(open_version(version), memory.connection, memory.marks)
    assert_same(scanning.search(asked, 3), open_version(version).search(asked, 3))


def test_collections_of_two_publications_are_not_complete(smaller: Version, tmp_path: Path) -> None:
    address = f"milvus:{tmp_path / 'm.db'}"
    publish(smaller, address)
    mark = json.loads(collections.properties(connect(address), first_name(smaller))[MARK])
    mark["publication"] = "another"
    collections.set_property(connect(address), first_name(smaller), MARK, json.dumps(mark))
    with pytest.raises(IncompatibleError, match="is not complete"):
        open_milvus(smaller, address)
    assert {space.num_loaded for space in publish(smaller, address).spaces} == {0}
    assert open_milvus(smaller, address)


def test_what_was_loaded_but_not_indexed_is_indexed(
    smaller: Version, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A publisher that ended between the last row of a collection and its index."""
    address, sealed, seal = f"milvus:{tmp_path / 'm.db'}", [], collections.seal

    def ending(connection: Connection, name: str, num: int) -> None:
        sealed.append(name)
        if len(sealed) == 2:
            raise ServiceError("ended")
        seal(connection, name, num)

    monkeypatch.setattr(collections, "seal", ending)
    with pytest.raises(ServiceError, match="ended"):
        publish(smaller, address)
    publish(smaller, address)
    assert sealed[1] in sealed[2:]
    assert set(sealed) == {space.collection for space in publish(smaller, address).spaces}
    num_sealed = len(sealed)
    publish(smaller, address)
    assert len(sealed) == num_sealed


def test_recall_is_not_told_of_what_is_not_asked(
    smaller: Version, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(search, "EXACT_ROWS", 20_000)
    address = f"milvus:{tmp_path / 'm.db'}"
    assert {space.recall_at_10 for space in publish(smaller, address).spaces} == {None}
    command = ["index", "publish", smaller.ref, "--to", address, "--indexes-dir", str(smaller.path.parents[1])]
    assert run([*command, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["recall_at_10"] is None
    assert {space["recall_at_10"] for space in document["spaces"]} == {None}
    assert run(command) == 0
    assert "at most 20,000 of these keys" in capsys.readouterr().err


def test_a_collection_of_something_else_is_left_alone(smaller: Version, tmp_path: Path) -> None:
    address = f"milvus:{tmp_path / 'm.db'}"
    record = smaller.manifest.spaces[0]
    other = replace(collections.Identity.of(smaller, record.space, 5), fingerprint="f" * 64)
    index = collections.VectorIndex(kind="FLAT", lists=0)
    collections.create(connect(address), first_name(smaller), other, index)
    for action in (publish, open_milvus):
        with pytest.raises(IncompatibleError, match="was not made for these keys"):
            action(smaller, address)  # type: ignore[operator]


# Failures while loading


@pytest.mark.parametrize("taken", [False, True])
@pytest.mark.parametrize("at", [0, 1, 4, 7])
def test_a_loading_that_broke_off_goes_on(
    at: int, taken: bool, smaller: Version, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """taken: whether Milvus had taken the batch of which it then said that it had not."""
    address, kept = f"milvus:{tmp_path / 'm.db'}", []
    insert = loading._insert

    def broken(connection: Connection, name: str, rows: loading.Rows, first: int, last: int) -> None:
        breaks = len(kept) == at
        if taken or not breaks:
            insert(connection, name, rows, first, last)
            kept.append(last - first)
        if breaks:
            raise ServiceError("broke off")

    with monkeypatch.context() as patch:
        patch.setattr(loading, "_insert", broken)
        with pytest.raises(ServiceError, match="broke off"):
            publish(smaller, address)
    with pytest.raises((IncompatibleError, NotFoundError)):
        open_milvus(smaller, address)
    again = publish(smaller, address)
    assert sum(space.num_loaded for space in again.spaces) == sum(sizes_of(smaller).values()) - sum(kept)
    assert counted(connect(address), smaller) == sizes_of(smaller)
    assert recall(open_milvus(smaller, address)) >= 0.98


@pytest.mark.parametrize("taken", [False, True])
def test_an_insert_of_unknown_fate_is_counted_and_not_sent_again_blindly(
    taken: bool, smaller: Version, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address, connection = f"milvus:{tmp_path / 'm.db'}", None
    calls: list[int] = []
    ask = Connection.ask

    def unsure(self: Connection, doing: str, action: Callable[..., Any], **options: Any) -> Any:
        if doing == "take rows":
            calls.append(1)
            if len(calls) == 3:
                if taken:
                    ask(self, doing, action, **options)
                raise ServiceError("deadline exceeded")
        return ask(self, doing, action, **options)

    monkeypatch.setattr(Connection, "ask", unsure)
    published = publish(smaller, address)
    num_batches = len(calls)
    monkeypatch.undo()
    make_small(monkeypatch)
    connection = connect(address)
    assert counted(connection, smaller) == sizes_of(smaller)
    assert sum(space.num_loaded for space in published.spaces) == sum(sizes_of(smaller).values())
    remove(smaller, address)
    expected: list[int] = []
    insert = loading._insert
    monkeypatch.setattr(loading, "_insert", lambda *words: expected.append(1) or insert(*words))
    publish(smaller, address)
    assert num_batches == len(expected) + (0 if taken else 1)


@pytest.mark.parametrize("share", [0.2, 0.7])
def test_a_publisher_that_was_killed_is_gone_on_from(share: float, smaller: Version, tmp_path: Path) -> None:
    address, total = f"milvus:{tmp_path / 'm.db'}", sum(sizes_of(smaller).values())
    publish_and_kill(smaller.path.parents[1], smaller.ref, address, at_rows=int(share * total))
    with pytest.raises((IncompatibleError, NotFoundError)):
        open_milvus(smaller, address)
    again = publish(smaller, address)
    assert 0 < sum(space.num_loaded for space in again.spaces) <= (1 - share) * total
    assert counted(connect(address), smaller) == sizes_of(smaller)
    memory = open_milvus(smaller, address)
    assert recall(memory) >= 0.98


def test_of_two_publishers_one_is_told(smaller: Version, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    address, outcomes = f"milvus:{tmp_path / 'm.db'}", []
    connection = connect(address)
    monkeypatch.setattr(lease, "BEAT_S", 0.05)
    monkeypatch.setattr(lease, "LEASE_S", 120.0)

    def attempt() -> None:
        try:
            outcomes.append(sum(space.num_loaded for space in publish(smaller, address).spaces))
        except ResourceError as error:
            outcomes.append(str(error))

    threads = [threading.Thread(target=attempt) for _ in range(2)]
    for thread in threads:
        thread.start()
        while thread.is_alive() and not collections.exists(connection, first_name(smaller)):
            time.sleep(0.01)
    for thread in threads:
        thread.join()
    loaded = [outcome for outcome in outcomes if isinstance(outcome, int)]
    refused = [outcome for outcome in outcomes if isinstance(outcome, str)]
    assert loaded == [sum(sizes_of(smaller).values())]
    assert len(refused) == 1
    assert "is being published" in refused[0]
    assert f"on {socket.gethostname()}" in refused[0]
    assert counted(connect(address), smaller) == sizes_of(smaller)


def test_who_may_still_be_publishing_is_waited_for(
    smaller: Version, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Milvus Lite serves one process at a time: there another one is gone."""
    address = f"milvus:{tmp_path / 'm.db'}"
    publish(smaller, address)
    monkeypatch.setattr(lease, "LEASE_S", 1.0)

    def told(holder: str, *, embedded: bool) -> list[str]:
        connection, said = connect(address), []
        signature = json.dumps({"holder": holder, "token": "x", "beat": 1})
        collections.set_property(connection, first_name(smaller), lease.LEASE, signature)
        connection.address = connection.address._replace(embedded=embedded)
        with lease.Lease(connection, first_name(smaller), said.append):
            return said

    assert told("process 1 on elsewhere", embedded=True) == []
    for holder, embedded in (
        ("process 1 on elsewhere", False),
        (f"process {os.getpid()} on {socket.gethostname()}", True),
    ):
        assert told(holder, embedded=embedded) == [f"waiting 1 s to see whether {holder} is still publishing"]


def test_a_publisher_that_was_overtaken_stops(
    smaller: Version, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address, sent = f"milvus:{tmp_path / 'm.db'}", []
    insert = loading._insert

    def overtaken(connection: Connection, *words: Any) -> None:
        insert(connection, *words)
        sent.append(1)
        if len(sent) == 3:
            said = json.dumps({"holder": "process 1 on elsewhere", "token": "x", "beat": 1})
            collections.set_property(connection, first_name(smaller), lease.LEASE, said)

    monkeypatch.setattr(loading, "_insert", overtaken)
    with pytest.raises(ResourceError, match="process 1 on elsewhere"):
        publish(smaller, address)
    assert len(sent) == 3


# Errors


@pytest.mark.parametrize(
    "address",
    [
        *(
            "milvus://",
            "milvus://host",
            "milvus://host:1a",
            "milvus://a/b:19530",
            "milvus:x",
            "milvus:.db",
            "http://a:1",
        ),
        *("milvus://host:0", "milvus://host:65536", "milvus+tls://host:99999", "milvus://host:\u0661"),
    ],
)
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(UsageError, match="is not the address of a Milvus"):
        parse_address(address)


def test_addresses() -> None:
    assert parse_address("milvus://db.example.org:19530").uri == "http://db.example.org:19530"
    assert parse_address("milvus+tls://[::1]:1/").uri == "https://[::1]:1"
    assert parse_address("milvus:some/a.db") == ("milvus:some/a.db", str(Path("some/a.db").absolute()), True)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_a_server_that_is_not_there_is_said_soon(smaller: Version, capfd: pytest.CaptureFixture[str]) -> None:
    address, started = f"milvus://127.0.0.1:{free_port()}", time.monotonic()
    for action in (publish, open_milvus):
        with pytest.raises(ServiceError, match=f"no Milvus answers at {address}"):
            action(smaller, address, access=Access(deadline_s=1))  # type: ignore[operator]
    assert time.monotonic() - started < SOON_S
    assert capfd.readouterr().err == ""


def test_a_server_that_is_something_else_is_said_soon(smaller: Version) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address, started = f"milvus://127.0.0.1:{listener.getsockname()[1]}", time.monotonic()
        with pytest.raises(ServiceError, match="no Milvus answers"):
            open_milvus(smaller, address, access=Access(deadline_s=1))
        assert time.monotonic() - started < SOON_S


def test_without_the_extra_it_is_said_what_to_install(smaller: Version, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pymilvus", None)
    with pytest.raises(ResourceError, match="pymilvus is not installed") as caught:
        open_milvus(smaller, "milvus://127.0.0.1:1")
    assert caught.value.hint == "pip install 'gram-forecaster[milvus]'"
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "milvus_lite", None)
    with pytest.raises(ResourceError, match="milvus_lite is not installed"):
        open_milvus(smaller, "milvus:some.db")


def test_a_folder_that_another_process_has_open_is_said(smaller: Version, tmp_path: Path) -> None:
    path = tmp_path / "m.db"
    program = f"from milvus_lite.db import MilvusLite; MilvusLite({str(path)!r}); print(flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        try:
            with pytest.raises(ResourceError, match="cannot be opened") as caught:
                publish(smaller, f"milvus:{path}")
        finally:
            other.kill()
    assert "one process at a time" in caught.value.hint


def test_only_publishing_makes_a_folder(smaller: Version, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "typing-error.db"
    for action in (remove, open_milvus):
        with pytest.raises(NotFoundError, match="there is no Milvus Lite at"):
            action(smaller, f"milvus:{path}")  # type: ignore[operator]
    folder = ["--indexes-dir", str(smaller.path.parents[1])]
    assert run(["index", "publish", smaller.ref, "--to", f"milvus:{path}", "--remove", *folder]) == 4
    assert "there is no Milvus Lite" in capsys.readouterr().err
    assert not path.exists()


def test_a_full_disk_is_not_the_server_s_fault(
    smaller: Version, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from milvus_lite.storage.wal import WAL

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    address = f"milvus:{tmp_path / 'm.db'}"
    with monkeypatch.context() as patch:
        patch.setattr(WAL, "write_insert", full)
        with pytest.raises(ResourceError, match="No space left on device") as caught:
            publish(smaller, address)
    assert f"make room on the disk of {tmp_path / 'm.db'}" in caught.value.hint
    publish(smaller, address)


def test_a_file_in_its_place_is_said(smaller: Version, tmp_path: Path) -> None:
    (tmp_path / "m.db").write_text("")
    with pytest.raises(UsageError, match="is a file"):
        publish(smaller, f"milvus:{tmp_path / 'm.db'}")
    with pytest.raises(NotFoundError, match="there is no folder"):
        publish(smaller, f"milvus:{tmp_path / 'no' / 'm.db'}")


class Stub:
    """A client without a server behind it."""

    def __init__(self, version: str = "v2.6.0") -> None:
        self.version = version

    def get_server_version(self, timeout: float) -> str:
        return self.version


def stubbed(monkeypatch: pytest.MonkeyPatch, stub: Stub, deadline_s: float = 5) -> Connection:
    monkeypatch.setattr(Connection, "_connected", lambda self: stub)
    return Connection(parse_address("milvus://127.0.0.1:1"), Access(deadline_s=deadline_s))


def test_an_old_server_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(IncompatibleError, match=r"has version v2\.2\.16"):
        stubbed(monkeypatch, Stub("v2.2.16"))
    for supported in ("v2.3.5-lite", "2.6.1", "v3.0.0"):
        assert stubbed(monkeypatch, Stub(supported)).server_version == supported


def test_a_server_that_comes_back_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    from pymilvus.exceptions import MilvusException

    connection, tries = stubbed(monkeypatch, Stub()), []

    def restarting(client: object, left_s: float) -> str:
        tries.append(left_s)
        if len(tries) < 4:
            raise MilvusException(code=503, message="channel not available")
        return "here"

    assert connection.ask("search", restarting) == "here"
    assert tries == sorted(tries, reverse=True)
    tries.clear()
    with pytest.raises(ServiceError, match="could not search: channel not available"):
        connection.ask("search", restarting, again=False)
    assert len(tries) == 1
    tries.clear()
    started = time.monotonic()
    with pytest.raises(ServiceError, match="could not search"):
        connection.ask("search", lambda *_: restarting(*_) if tries.clear() is None else "", deadline_s=1)
    assert time.monotonic() - started < SOON_S


@pytest.mark.parametrize(
    ("code", "message"), [(1800, "auth check failure"), (65535, "rpc error: Unauthenticated desc = auth check failure")]
)
def test_a_token_that_is_refused_is_not_tried_again(code: int, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from pymilvus.exceptions import MilvusException

    connection, tries = stubbed(monkeypatch, Stub()), []

    def refused(client: object, left_s: float) -> None:
        tries.append(1)
        raise MilvusException(code=code, message=message)

    with pytest.raises(ServiceError, match="refuses the token") as caught:
        connection.ask("search", refused)
    assert len(tries) == 1
    assert "--token-file" in caught.value.hint


# The command


def test_the_command(tmp_path: Path, smaller: Version, capsys: pytest.CaptureFixture[str]) -> None:
    address = f"milvus:{tmp_path / 'm.db'}"
    command = ["index", "publish", smaller.ref, "--to", address, "--indexes-dir", str(smaller.path.parents[1])]
    assert run([*command, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["schema"], document["ref"]) == ("index-publish", smaller.ref)
    assert document["num_loaded"] == sum(space["num_rows"] for space in document["spaces"]) > document["num_rows"]
    assert document["recall_at_10"] == min(space["recall_at_10"] for space in document["spaces"])
    assert run(command) == 0
    shown = capsys.readouterr()
    assert first_name(smaller) in shown.out
    assert f"next: name it {address}/{smaller.ref}" in shown.err
    assert run([*command, "--remove", "--json"]) == 0
    assert first_name(smaller) in json.loads(capsys.readouterr().out)["removed"]
    assert run([*command, "--remove"]) == 0
    assert "there is nothing of small@2" in capsys.readouterr().err
    assert run([*command[:4], f"milvus://127.0.0.1:{free_port()}", *command[5:]]) == 8
    assert capsys.readouterr().err.startswith("error: no Milvus answers at")
    for wrong in ("somewhere", "milvus://127.0.0.1:99999"):
        assert run([*command[:4], wrong, *command[5:]]) == 2
