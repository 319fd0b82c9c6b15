"""A version behind a service answers like one on this machine, or says clearly why not; a service that lies is found.

How it is started and ended as a program is tested in `test_cli_serve.py`, what random bytes do to it in
`test_service_fuzz.py`, the guard alone in `test_guard.py`, and what every memory answers in `test_contract.py`.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
from guard_fixtures import CERTIFICATES, PATIENCE_S, RawClient, start, wait_until
from memory_fixtures import (
    NUM_TRAINING,
    append,
    appended,
    assert_same,
    between,
    built,
    open_version,
    poisoned,
    queries_at,
    wide_table,
)
from pyarrow import flight
from serve_fixtures import http, long_question, whole_service
from service_fixtures import served

from memory_index.access import Access, Token, read_access
from memory_index.errors import (
    BusyError,
    DataError,
    IncompatibleError,
    NotFoundError,
    ResourceError,
    ServiceError,
    UsageError,
    VerificationError,
)
from memory_index.leakage import LeakError, Policy
from memory_index.local import LocalMemory
from memory_index.service import remote, serving, status, wire
from memory_index.service.hosted import Hosting
from memory_index.service.remote import RemoteMemory, parse_address
from memory_index.service.server import MemoryServer
from memory_index.service.serving import Service, Settings
from memory_index.service.turns import Turns
from memory_index.service.wire import Limits, Message, Question
from memory_index.types import Filter, Queries
from memory_index.versions.store import Store

ORIGINS = range(NUM_TRAINING - 10, NUM_TRAINING + 30)
SECRET, OTHER = "a-token-of-the-service-1", "another-token-of-it-2"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    made = tmp_path_factory.mktemp("service")
    built(made)
    return made


@pytest.fixture(scope="module")
def local(folder) -> LocalMemory:
    return open_version(Store(folder).resolve("small"), threads=1)


@pytest.fixture(scope="module")
def address(folder):
    with served(folder, ["small"]) as found:
        yield f"{found}/small"


@pytest.fixture
def memory(address) -> RemoteMemory:
    return RemoteMemory(address)


def some(policy: Policy = Policy.CAUSAL, origins: range = ORIGINS) -> Queries:
    return queries_at(wide_table(), origins, policy)


def question(queries: Queries, k: int = 3) -> Question:
    return Question(queries, k, None, None, None, 0, 5.0)


def ask_raw(service: str, fingerprint: str, *sent: Message, schema: pa.Schema = wire.QUESTION) -> None:
    """Send messages that no `RemoteMemory` would, and read the answers."""
    with flight.FlightClient(service) as client:
        command = flight.FlightDescriptor.for_command(json.dumps({"fingerprint": fingerprint}).encode())
        writer, reader = client.do_exchange(command, flight.FlightCallOptions(timeout=PATIENCE_S))
        try:
            writer.begin(schema)
            for message in sent:
                writer.write_with_metadata(message.batch, message.document)
                reader.read_chunk()
        finally:
            reader.cancel()
            with pytest.raises((flight.FlightError, pa.ArrowException)):
                writer.close()


def changed(message: Message, **entries: object) -> Message:
    """The message with another document."""
    return message._replace(document=json.dumps(json.loads(message.document) | entries).encode())


# The same answers


@pytest.mark.parametrize("policy", Policy)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"scopes": ("own",)},
        {"scopes": ("joint", "pooled"), "views": (36,)},
        {"views": (12,), "min_gap": 24},
        {"min_gap": 2**62},
        {"scopes": ("pooled",), "where": Filter(series_id=("load", "beat"))},
        {"where": Filter(after=np.datetime64("2021-03-05", "ns"), before=np.datetime64("2021-03-08", "ns"))},
    ],
    ids=str,
)
def test_an_answer_is_that_of_the_version_bit_for_bit(memory, local, policy, options):
    found, expected = (each.search(some(policy), 5, **options) for each in (memory, local))
    assert found.spaces == expected.spaces
    assert found.fingerprint == expected.fingerprint
    assert_same(found, expected)
    for name in ("temperature", "weights"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
    kept = {"on_empty": "last-value"}
    np.testing.assert_array_equal(found.forecast(**kept), expected.forecast(**kept))
    np.testing.assert_array_equal(found.quantiles((0.1, 0.5), **kept), expected.quantiles((0.1, 0.5), **kept))
    np.testing.assert_array_equal(found.contexts(), expected.contexts())


def test_the_rest_of_a_memory_is_the_same(memory, local):
    np.testing.assert_array_equal(memory.linear_forecast(some()), local.linear_forecast(some()))
    np.testing.assert_array_equal(memory.scale.std, local.scale.std)
    assert memory.manifest == local.manifest
    np.testing.assert_array_equal(memory.windows.values, local.windows.values)


def test_an_unseen_series_is_answered_by_all(memory, local):
    unseen = replace(some(), series_id=np.array(["load", "new", "flat"]))
    assert_same(memory.search(unseen, 4), local.search(unseen, 4))
    for each in (memory, local):
        with pytest.raises(IncompatibleError, match="'new' is not in this memory"):
            each.search(unseen, 4, scopes=("own",))


def test_a_large_batch_is_asked_in_parts(folder, local, monkeypatch):
    asked = []
    monkeypatch.setattr(MemoryServer, "_search", _recording(asked))
    for limits in (Limits(max_windows=21), Limits(max_message=9000), Limits(max_slots=1000)):
        asked.clear()
        with served(folder, ["small"], limits=limits) as service:
            memory = RemoteMemory(f"{service}/small")
            assert_same(memory.search(some(origins=range(100, 200)), 5), local.search(some(origins=range(100, 200)), 5))
            none = some(origins=range(0))
            assert memory.search(none, 5).row.shape == local.search(none, 5).row.shape
        assert len(asked) > 4
        assert max(asked) <= 16


def _recording(asked: list[int]) -> Callable[..., object]:
    original = MemoryServer._search

    def search(self, hosted, question):
        asked.append(len(question.queries))
        return original(self, hosted, question)

    return search


def test_eight_threads_of_one_client(memory, local):
    expected = [local.search(some(origins=range(90 + n, 110 + n)), 4) for n in range(8)]

    def ask(number: int) -> None:
        for _ in range(5):
            assert_same(memory.search(some(origins=range(90 + number, 110 + number)), 4), expected[number])

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(ask, range(8)))


@pytest.mark.parametrize("steps", [0, 25])
def test_what_is_later_than_the_origin_does_not_matter(tmp_path, steps):
    """The future of a version that grows is replaced by garbage; an answer as of before does not change by a bit."""
    origin = wide_table().series[0].times[NUM_TRAINING - 1 + steps]
    answers = []
    for name, table in (("as-it-is", wide_table()), ("poisoned", poisoned(wide_table(), origin, seed=3))):
        appended(tmp_path / name, built(tmp_path / name), NUM_TRAINING + steps + 1, 330, table=table)
        with served(tmp_path / name, ["small"]) as service:
            found = RemoteMemory(f"{service}/small").search(some(origins=range(200, NUM_TRAINING + steps)), 5)
        answers.append((found.distance, found.forecast()))
    for one, other in zip(*answers, strict=True):
        np.testing.assert_array_equal(one, other)


# A service that lies


def _with(name: str, change: Callable[[np.ndarray], None]) -> Callable[[Message], Message]:
    """An answer with one column changed in place."""

    def lie(message: Message) -> Message:
        batch = message.batch
        at = batch.schema.get_field_index(name)
        told = batch[at].flatten().to_numpy().copy()
        change(told)
        column = pa.ListArray.from_arrays(batch[at].offsets, pa.array(told))
        return message._replace(batch=batch.set_column(at, batch.schema.field(at), column))

    return lie


def _set(at: int, value: float) -> Callable[[np.ndarray], None]:
    return lambda values: values.__setitem__(at, value)


def _swap(values: np.ndarray) -> None:
    values[[0, 1]] = values[[1, 0]]


def _half_lists(message: Message) -> Message:
    columns = [
        pa.array([each[: len(each) // 2] for each in column.to_pylist()], column.type)
        for column in message.batch.columns
    ]
    return message._replace(batch=pa.RecordBatch.from_arrays(columns, schema=message.batch.schema))


def _missing(message: Message) -> Message:
    column = pa.array([[None, *message.batch["row"][0].as_py()[1:]]], message.batch["row"].type)
    return message._replace(batch=message.batch.set_column(0, message.batch.schema.field(0), column))


LIES = {
    "another version": lambda message: changed(message, fingerprint="0" * 64),
    "no version": lambda message: message._replace(document=b"{}"),
    "another k": lambda message: changed(message, k=5),
    "other spaces": lambda message: changed(message, spaces=[["own", 12]]),
    "unknown spaces": lambda message: changed(message, spaces=[["own", 13]] * 6),
    "spaces in another order": lambda message: changed(
        message, spaces=[[scope, view] for scope in ("own", "joint", "pooled") for view in (36, 12)]
    ),
    "spaces that are none": lambda message: changed(message, spaces=7),
    "no document": lambda message: message._replace(document=b"[1, 2"),
    "another document": lambda message: message._replace(document=b"3"),
    "no line": lambda message: message._replace(batch=message.batch.slice(0, 0)),
    "half the neighbours": _half_lists,
    "a missing neighbour": _missing,
    "a row that is not there": _with("row", _set(0, 10**6)),
    "a row id below -1": _with("row", _set(0, -2)),
    "a row twice": _with("row", lambda row: row.__setitem__(0, row[1])),
    "NaN for a distance": _with("distance", _set(0, np.nan)),
    "a distance below 0": _with("distance", _set(0, -1)),
    "NaN for a part": _with("shape_distance", _set(0, np.nan)),
    "no distance": _with("value_distance", _set(0, np.inf)),
    "not sorted": _with("distance", _swap),
    "a location that is none": _with("query_location", _set(0, np.nan)),
    "a spread below 0": _with("query_spread", _set(0, -1)),
    "a spread of 0": _with("query_spread", _set(0, 0)),
}


@pytest.mark.parametrize("name", LIES)
def test_an_answer_that_no_memory_gives_is_not_believed(folder, address, monkeypatch, name):
    truth = wire.write_answer
    monkeypatch.setattr(wire, "write_answer", lambda neighbours: LIES[name](truth(neighbours)))
    memory = RemoteMemory(address)
    with pytest.raises((ServiceError, UsageError)) as refused:
        memory.search(some(), 4)
    assert not isinstance(refused.value, BusyError)
    monkeypatch.undo()
    assert memory.search(some(), 4).valid.any()


def test_an_answer_with_a_row_of_the_future_is_never_accepted(address, local, monkeypatch):
    truth = wire.write_answer
    late = _with("row", _set(3, len(local.windows) - 1))
    monkeypatch.setattr(wire, "write_answer", lambda neighbours: late(truth(neighbours)))
    with pytest.raises(LeakError, match="not admissible under 'causal'"):
        RemoteMemory(address).search(some(origins=range(150, 160)), 4)


def test_other_columns_and_half_an_answer(folder, monkeypatch):
    def other_columns(self, context, hosted, message, writer):
        writer.write_metadata(b"{}")

    monkeypatch.setattr(MemoryServer, "_answer", other_columns)
    with served(folder, ["small"]) as service, pytest.raises(ServiceError, match="half an answer"):
        RemoteMemory(f"{service}/small").search(some(), 4)


def test_files_that_are_not_those_of_the_version(folder, monkeypatch):
    """Not even as large a one: what comes beyond the size that the manifest names is not written."""
    remote._windows.clear()
    written = []

    def hash_file(path):
        written.append(path.stat().st_size)

    counted = SimpleNamespace(hash_file=hash_file, refusals_named=remote.files.refusals_named)
    monkeypatch.setattr(remote, "files", counted)

    def endless(self, fingerprint, path):
        for _ in range(100):
            yield pa.RecordBatch.from_arrays([pa.array([b"x" * 100_000], pa.binary())], schema=wire.CHUNK)

    monkeypatch.setattr(MemoryServer, "_pieces", endless)
    with served(folder, ["small"]) as service, pytest.raises(VerificationError, match="is not the one of"):
        RemoteMemory(f"{service}/small").search(some(), 4)
    assert max(written) < 1_000_000


@pytest.mark.parametrize(
    ("told", "error", "says"),
    [
        ({"protocol": 2}, IncompatibleError, "speaks protocol 2, this program 1"),
        ({"manifest": "{}"}, VerificationError, "is not a manifest"),
        ({"manifest": 3}, ServiceError, "cannot be read"),
        ({"limits": {"max_cats": 3}}, ServiceError, "cannot be read"),
        ({"limits": []}, ServiceError, "cannot be read"),
    ],
)
def test_an_opening_that_cannot_be_read(address, monkeypatch, told, error, says):
    answer = MemoryServer.do_action

    def lying(self, context, action):
        [result] = answer(self, context, action)
        return [json.dumps(json.loads(result.body.to_pybytes()) | told).encode()]

    monkeypatch.setattr(MemoryServer, "do_action", lying)
    with pytest.raises(error, match=says):
        RemoteMemory(address)


# Which version


def test_a_client_stays_with_the_version_that_it_opened(tmp_path, local):
    first = built(tmp_path)
    Store(tmp_path).set_alias("small", 1, "prod")
    notes: list[str] = []
    with whole_service(tmp_path, ["small@prod", "small"], notes=notes) as service:
        old = RemoteMemory(f"{service.address}/small@prod")
        second = append(Store(tmp_path), first.ref, between(wide_table(), 0, 300))
        Store(tmp_path).set_alias("small", 2, "prod")
        wait_until(lambda: service.hosting.versions() == {"small@prod": "small@2", "small@latest": "small@2"})
        new = RemoteMemory(f"{service.address}/small@prod")
        assert (old.ref[-7:], new.ref[-7:]) == ("small@1", "small@2")
        assert new.fingerprint == second.manifest.fingerprint
        assert_same(old.search(some(), 4), local.search(some(), 4))
        assert_same(new.search(some(), 4), open_version(second, threads=1).search(some(), 4))
        assert any("small@prod means small@2 now, small@1 before" in note for note in notes)
        # One that names the number still opens the old one.
        assert RemoteMemory(f"{service.address}/small@1").fingerprint == old.fingerprint


def test_a_version_that_is_removed_while_it_is_served(tmp_path, local):
    append(Store(tmp_path), built(tmp_path).ref, between(wide_table(), 0, 300))
    with served(tmp_path, ["small@1"]) as service:
        before = RemoteMemory(f"{service}/small@1")
        Store(tmp_path).remove("small@1")
        remote._windows.clear()
        assert_same(before.search(some(), 4), local.search(some(), 4))
        remote._windows.clear()
        assert_same(RemoteMemory(f"{service}/small@1").search(some(), 4), local.search(some(), 4))


def test_old_versions_are_let_go_when_nobody_asks_them(tmp_path):
    first = built(tmp_path)
    hosting = Hosting(tmp_path, ["small"], threads=1, kept_s=0.1)
    old = hosting.open("small")
    append(Store(tmp_path), first.ref, between(wide_table(), 0, 300))
    with hosting.stream(old.fingerprint):
        time.sleep(0.15)
        hosting.refresh()
        assert hosting.pinned(old.fingerprint) is old
    time.sleep(0.15)
    hosting.refresh()
    assert old.files == {}
    with pytest.raises(ServiceError, match="no longer served"):
        hosting.pinned(old.fingerprint)
    with pytest.raises(NotFoundError, match="'small@1' is not served here"):
        hosting.open("small@1")
    hosting.close()


def test_a_damaged_new_version_changes_nothing(tmp_path, local):
    first, notes = built(tmp_path), []
    with whole_service(tmp_path, notes=notes, status_port=0) as service:
        second = append(Store(tmp_path), first.ref, between(wide_table(), 0, 300))
        keys = next(second.path.rglob("keys*"))
        wait_until(lambda: service.hosting.versions() == {"small@latest": "small@2"})
        append(Store(tmp_path), second.ref, between(wide_table(), 0, 320))
        memory = RemoteMemory(f"{service.address}/small@2")
        wait_until(lambda: service.hosting.versions() == {"small@latest": "small@3"})
        # One that is damaged before it is looked at.
        staged = tmp_path / "small" / "000004"
        shutil.copytree(second.path, tmp_path / "copy")
        (tmp_path / "copy" / keys.relative_to(second.path)).write_bytes(b"nonsense")
        (tmp_path / "copy").rename(staged)
        wait_until(lambda: service.hosting.troubles())
        code, page = http(service.status_port, "/readyz")
        assert code == 200
        assert json.loads(page)["versions"] == {"small@latest": "small@3"}
        assert "small@latest" in json.loads(page)["troubles"]
        assert len([note for note in notes if "goes on meaning small@3" in note]) == 1
        assert memory.search(some(), 4).valid.any()
        assert RemoteMemory(f"{service.address}/small").ref.endswith("small@3")


def test_a_service_that_comes_back_with_another_version(tmp_path):
    first = built(tmp_path)
    port = _free_port()
    with whole_service_at(tmp_path, port) as service:
        memory = RemoteMemory(f"{service.address}/small")
        memory.search(some(), 4)
    append(Store(tmp_path), first.ref, between(wide_table(), 0, 300))
    with whole_service_at(tmp_path, port), pytest.raises(ServiceError, match="is no longer served") as refused:
        memory.search(some(), 4)
    assert not isinstance(refused.value, BusyError)


@contextmanager
def whole_service_at(folder: Path, port: int) -> Iterator[Service]:
    """The service on a port that has been used before. Memories that are open stay open."""
    service = Service(folder, ["small"], Settings(port=port), threads=1)
    try:
        yield service
    finally:
        service.close()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return listening.getsockname()[1]


# Who may ask


def token_file(folder: Path, *lines: str) -> Path:
    (folder / "tokens").write_text("\n".join(lines))
    return folder / "tokens"


def test_tokens(folder, local, tmp_path, capfd):
    notes: list[str] = []
    path, log = token_file(tmp_path, "# ours", f"trainer {SECRET}", OTHER), tmp_path / "access.log"
    with whole_service(folder, notes=notes, token_file=path, access_log=log) as service:
        where = f"{service.address}/small"
        memories = [RemoteMemory(where, access=Access(token=token)) for token in (SECRET, OTHER)]
        for memory in memories:
            assert_same(memory.search(some(), 3), local.search(some(), 3))
        for token, says in ((SECRET + "x", "refuses this token"), ("", "wants a token"), ("x" * 4000, "refuses this")):
            with pytest.raises(ServiceError, match=says) as refused:
                RemoteMemory(where, access=Access(token=token))
            assert refused.value.hint.startswith("--token-file FILE")
            assert not token or token not in str(refused.value) + repr(refused.value.__cause__)
        # A token that is taken out of the file ends the stream that it had begun.
        token_file(tmp_path, f"trainer {SECRET}")
        wait_until(lambda: len(service._tokens.known()) == 1)
        assert_same(memories[0].search(some(), 3), local.search(some(), 3))
        with pytest.raises(ServiceError, match="no longer knows this token"):
            memories[1].search(some(), 3)
        # A file that has become wrong changes nothing.
        token_file(tmp_path, "short")
        wait_until(lambda: any("the tokens stay as they are" in note for note in notes))
        memories[0].search(some(), 3)
        memories[0].close()
    told = (
        log.read_text()
        + "".join(notes)
        + repr(memories[0].access)
        + repr(service.settings)
        + "".join(capfd.readouterr())
    )
    assert not any(token in told for token in (SECRET, OTHER))
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert {line["caller"] for line in lines if line.get("method") == "search"} == {"trainer", "3"}
    assert sum(line.get("status") == "refused" for line in lines) == 3


@pytest.mark.parametrize(
    "headers",
    [
        [(b"authorization", f"Bearer {SECRET}".encode()), (b"authorization", b"Bearer x")],
        [(b"authorization", f"Basic {SECRET}".encode())],
        [(b"authorization", SECRET.encode())],
        [(b"authorization", f"Bearer  {SECRET}".encode())],
        [(b"authorization", b"Bearer")],
        [(b"x-authorization", f"Bearer {SECRET}".encode())],
    ],
)
def test_a_token_in_another_form_lets_nobody_in(folder, headers):
    tokens = (Token(name="1", token=SECRET),)
    with served(folder, ["small"], tokens=tokens) as service, flight.FlightClient(service) as client:
        options = flight.FlightCallOptions(headers=headers, timeout=PATIENCE_S)
        for call in (
            lambda: list(client.do_action(flight.Action("status", b""), options)),
            lambda: list(client.list_actions(options)),
            lambda: client.do_get(flight.Ticket(b"{}"), options).read_all(),
            lambda: list(client.list_flights(options=options)),
        ):
            with pytest.raises(flight.FlightUnauthenticatedError):
                call()


def test_causal_only(folder, local):
    with served(folder, ["small"], causal_only=True) as service:
        memory = RemoteMemory(f"{service}/small")
        assert memory.causal_only
        assert_same(memory.search(some(), 3), local.search(some(), 3))
        with pytest.raises(IncompatibleError, match="answers under 'causal' only, not under 'disjoint'"):
            memory.search(some(Policy.DISJOINT), 3)


def test_tls(folder, local, tmp_path):
    cert, key = CERTIFICATES / "server.pem", CERTIFICATES / "server.key"
    with whole_service(folder, tls_cert=cert, tls_key=key, token_file=token_file(tmp_path, SECRET)) as service:
        where, access = f"{service.address}/small", read_access(tmp_path / "tokens", cert)
        assert where.startswith("grpc+tls://127.0.0.1:")
        assert_same(RemoteMemory(where, access=access).search(some(), 3), local.search(some(), 3))
        for wrong in (Access(token=SECRET), replace(access, tls_ca=(CERTIFICATES / "expired.pem").read_bytes())):
            with pytest.raises(ServiceError) as refused:
                RemoteMemory(where, access=replace(wrong, deadline_s=3))
            _is_readable(refused.value)
        with pytest.raises(ServiceError) as refused:
            RemoteMemory(where.replace("grpc+tls", "grpc"), access=replace(access, deadline_s=1))
        _is_readable(refused.value)
    with whole_service(folder) as service, pytest.raises(ServiceError) as refused:
        RemoteMemory(f"{service.address}/small".replace("grpc", "grpc+tls"), access=replace(access, deadline_s=1))
    _is_readable(refused.value)


def _is_readable(error: ServiceError) -> None:
    """One line that names the service, without what gRPC says of itself, and a hint."""
    assert "127.0.0.1" in str(error)
    assert "\n" not in str(error)
    assert len(str(error)) < 450
    assert "debug context" not in str(error)
    assert error.hint


def test_without_a_token_only_this_machine(tmp_path):
    for host in ("0.0.0.0", "example.org", "", "::"):
        with pytest.raises(UsageError, match="listens on this machine only"):
            Settings(host=host)
    for host in ("127.0.0.1", "localhost", "::1"):
        Settings(host=host)
    Settings(host="0.0.0.0", token_file=tmp_path)
    with pytest.raises(UsageError, match="belong together"):
        Settings(tls_cert=tmp_path)


def test_certificates_are_looked_at_before_the_service_begins(folder):
    key = CERTIFICATES / "server.key"
    for cert, error, says in (
        (CERTIFICATES / "expired.pem", UsageError, "expired"),
        (key, UsageError, "server.key holds no certificate"),
        (CERTIFICATES / "none.pem", NotFoundError, "there is no file .*none.pem"),
    ):
        with pytest.raises(error, match=says):
            Service(folder, ["small"], Settings(port=0, tls_cert=cert, tls_key=key))


@pytest.mark.parametrize(
    "address", ["grpc://h/x@1", "grpc://:1/x", "grpc://h:1/", "http://h:1/x", "grpc://h:1/x/y", "x"]
)
def test_what_is_no_address(address):
    with pytest.raises(UsageError, match="is not the address of a version"):
        parse_address(address)


# Limits


def test_limits_of_one_question(folder, monkeypatch):
    limits = Limits(max_windows=30, max_k=8, max_slots=1000, max_message=20_000)
    with served(folder, ["small"], limits=limits) as service:
        memory = RemoteMemory(f"{service}/small")
        assert memory.limits == limits
        with pytest.raises(UsageError, match=r"k is 9, but grpc://127.0.0.1:.* allows 8"):
            memory.search(some(), 9)
        many = replace(some(), context=np.zeros((40, 60, 36), np.float32), series_id=np.arange(60).astype(str))
        with pytest.raises(UsageError, match="one moment of 60 series, 36 steps each, is more"):
            memory.search(many, 2)
        with pytest.raises(IncompatibleError, match="lookback of 35"):
            memory.search(replace(some(), context=some().context[:, :, 1:]), 2)
        # A client that does not keep to them is refused by the service.
        memory.limits = Limits()
        with pytest.raises(UsageError, match="windows: 120 in one question, but this service allows 30"):
            memory.search(some(), 2)
        with pytest.raises(UsageError, match="k: 9 in one question, but this service allows 8"):
            memory.search(some(origins=range(100, 102)), 9)
        with pytest.raises(UsageError, match="windows x key spaces x k: 1,440 in one question"):
            memory.search(some(origins=range(100, 110)), 8)
        assert memory.search(some(origins=range(100, 104)), 8).valid.any()


def test_a_question_that_takes_too_long(folder):
    limits = Limits(max_seconds=1e-9)
    with served(folder, ["small"], limits=limits) as service, pytest.raises(ServiceError) as refused:
        RemoteMemory(f"{service}/small").search(some(), 2)
    assert "takes longer than the 1e-09 s" in str(refused.value)
    assert not isinstance(refused.value, BusyError)
    assert refused.value.hint


def test_the_size_of_a_message(folder, local):
    """The guard refuses it in words, and the client does not ask again."""
    with whole_service(folder, limits=Limits(max_message=20_000)) as service:
        memory = RemoteMemory(f"{service.address}/small")
        assert_same(memory.search(some(), 3), local.search(some(), 3))
        memory.limits = Limits()
        started = time.monotonic()
        with pytest.raises(ServiceError, match=r"a message of [0-9]+ bytes: at most 20000 are taken") as refused:
            memory.search(some(origins=range(100, 300, 2)), 3)
        assert time.monotonic() - started < 10
        _is_readable(refused.value)


def test_streams_are_counted_whatever_they_are_for(folder, local, monkeypatch):
    """Someone who takes a file slowly holds a thread of the service as well."""
    read, may_go_on = os.pread, threading.Event()
    monkeypatch.setattr(os, "pread", lambda *where: may_go_on.wait(20) and read(*where))
    with whole_service(folder, max_streams=2) as service, flight.FlightClient(service.address) as client:
        path = next(path for path in local.manifest.files if path.endswith("series.parquet"))
        ticket = flight.Ticket(json.dumps({"fingerprint": local.fingerprint, "file": path}).encode())
        readers = [client.do_get(ticket) for _ in range(2)]
        wait_until(lambda: service.status()["streams"] == 2)
        may_go_on.set()
        for reader in readers:
            assert sum(len(chunk.data["bytes"][0].as_py()) for chunk in reader) == local.manifest.files[path].bytes
        wait_until(lambda: service.status()["streams"] == 0)
    with served(folder, ["small"]) as service, flight.FlightClient(service) as client:
        monkeypatch.setattr(MemoryServer, "_counted_stream", _full)
        with pytest.raises(flight.FlightUnavailableError, match="streams open, as many as it may"):
            client.do_get(ticket).read_all()
        with pytest.raises(ServiceError, match="streams open, as many as it may; gave up after"):
            RemoteMemory(f"{service}/small", access=Access(deadline_s=0.3)).search(some(), 3)


def _full(self):
    raise BusyError("the service has 2 streams open, as many as it may", hint="ask later")


def test_the_waiting_line_has_an_end():
    turns, entered, leave = Turns(1), threading.Event(), threading.Event()

    def work(_: float) -> None:
        entered.set()
        leave.wait(PATIENCE_S)

    def hold() -> None:
        turns.take(work, PATIENCE_S)

    with ThreadPoolExecutor(2) as pool:
        holding = pool.submit(hold)
        entered.wait(PATIENCE_S)
        waiting = pool.submit(hold)
        wait_until(lambda: turns.num_waiting == 1)
        with pytest.raises(BusyError, match="1 questions wait already"):
            turns.take(work, PATIENCE_S)
        leave.set()
        holding.result()
        waiting.result()
    entered.clear()
    leave.clear()
    with ThreadPoolExecutor(1) as pool:
        holding = pool.submit(hold)
        entered.wait(PATIENCE_S)
        with pytest.raises(BusyError, match=r"no turn within 0\.1 s"):
            turns.take(work, 0.1)
        assert turns.num_waiting == 0
        leave.set()
        holding.result()
    assert turns.take(lambda waited: waited, PATIENCE_S) < PATIENCE_S


def test_bytes_that_wait_have_an_end(folder, local, monkeypatch):
    """Of the questions that wait for their turn, whatever their number. One alone is always let in."""
    inside, go_on, search = threading.Event(), threading.Event(), MemoryServer._search

    def slow(self, hosted, asked):
        inside.set()
        go_on.wait(PATIENCE_S)
        return search(self, hosted, asked)

    monkeypatch.setattr(MemoryServer, "_search", slow)
    monkeypatch.setattr("memory_index.service.server.QUEUED_MESSAGES", 0)
    with served(folder, ["small"]) as service, ThreadPoolExecutor(1) as pool:
        answer = pool.submit(RemoteMemory(f"{service}/small").search, some(), 3)
        inside.wait(PATIENCE_S)
        with pytest.raises(ServiceError, match="MB of questions wait already; gave up"):
            RemoteMemory(f"{service}/small", access=Access(deadline_s=0.5)).search(some(), 3)
        go_on.set()
        assert_same(answer.result(PATIENCE_S), local.search(some(), 3))
        assert_same(RemoteMemory(f"{service}/small").search(some(), 3), local.search(some(), 3))


def test_turns_are_taken_in_order():
    turns, order, names = Turns(100), [], set()
    begun, leave = threading.Event(), threading.Event()

    def hold(_: float) -> None:
        begun.set()
        leave.wait(PATIENCE_S)

    def take(number: int) -> None:
        turns.take(lambda _: (order.append(number), names.add(threading.current_thread())), PATIENCE_S)

    with ThreadPoolExecutor(21) as pool:
        held = pool.submit(turns.take, hold, PATIENCE_S)
        begun.wait(PATIENCE_S)
        for number in range(20):
            pool.submit(take, number)
            wait_until(lambda number=number: turns.num_waiting == number + 1)
        leave.set()
        held.result(PATIENCE_S)
    assert order == list(range(20))
    assert len(names) == 1  # more than one thread that searches would be slower, each of them


def test_a_failure_belongs_to_who_asked():
    turns = Turns(1)

    def fail(_: float) -> None:
        raise DataError("it has failed")

    with pytest.raises(DataError, match="it has failed"):
        turns.take(fail, PATIENCE_S)
    assert turns.take(lambda _: 3, PATIENCE_S) == 3


DOCUMENTS: list[tuple[bytes | dict[str, object], str]] = [
    (b"", "with a document beside it"),
    (b"\xff\xfe[", "is not JSON"),
    (b"[" * 100_000, "is not JSON"),
    (b"[1]", "is not a JSON object"),
    (b'{"k": ' + b"9" * 5000 + b"}", "is not JSON"),
    (b" " * (wire.MAX_DOCUMENT + 1), "at most 4,194,304 are read"),
    ({"series_id": None}, "'series_id' must be a list"),
    ({"series_id": []}, "at least one series"),
    ({"series_id": ["x" * 1001, "b", "c"]}, "at most 1000 characters"),
    ({"series_id": [1, 2, 3]}, "must be a list of texts"),
    ({"series_id": ["a", "b", "c", "d", "e", "f", "g"]}, "values are not"),
    ({"series_id": [str(n) for n in range(9000)]}, "windows: "),
    ({"policy": "x" * 1000}, "policy must be causal or disjoint"),
    ({"k": 0}, "k must be at least 1"),
    ({"k": -5}, "k must be at least 1"),
    ({"k": True}, "'k' must be a whole number"),
    ({"k": 3.0}, "'k' must be a int"),
    ({"k": 2**70}, "'k' must be a whole number"),
    ({"min_gap": -1}, "min_gap at least 0"),
    ({"wait_s": "soon"}, "'wait_s' must be a number"),
    ({"wait_s": float("nan")}, "'wait_s' must be a number"),
    ({"scopes": []}, "at least one scope"),
    ({"scopes": ["x" * 1_000_000]}, "unknown scope"),
    ({"scopes": "own"}, "'scopes' must be a list"),
    ({"views": [12, 13]}, "no view of 13 steps"),
    ({"views": []}, "no view"),
    ({"views": [True]}, "must be a whole number"),
    ({"where": 3}, "'where' must be a dict"),
    ({"where": {"after": "yesterday"}}, "'after' must be a int"),
    ({"where": {"series_id": ["\ud800"]}}, "filter's series"),
    ({"lookback": None}, "must be a int"),
    ({"lookback": 35}, "values are not"),
    ({"lookback": 0}, "values are not"),
    ({"lookback": -40, "consecutive": False}, "values are not"),
    ({"lookback": 1 << 40}, "bytes of windows"),
    ({"consecutive": 1}, "must be a bool"),
    ({"consecutive": False}, "values are not"),
    ({"series_id": ["\U0001f600" * 900, "\ud800", "c"], "scopes": ["own"]}, "scope 'own' cannot be served"),
]


@pytest.mark.parametrize(("document", "says"), DOCUMENTS, ids=[says for _, says in DOCUMENTS])
def test_documents_that_make_no_sense(address, local, memory, document, says, capfd):
    message = wire.write_question(question(some()))
    message = message._replace(document=document) if isinstance(document, bytes) else changed(message, **document)
    service = address.rpartition("/")[0]
    with pytest.raises(flight.FlightServerError) as refused:
        ask_raw(service, local.fingerprint, message)
    told = wire.read_error(refused.value.extra_info)
    assert told is not None
    assert says in str(told)
    assert len(str(told)) <= 300
    assert "Traceback" not in capfd.readouterr().err
    assert_same(memory.search(some(), 3), local.search(some(), 3))


def test_names_without_windows_are_counted(address, local):
    """Nothing asked, but a million names: as an array of equally long texts they would be gigabytes."""
    message = wire.write_question(question(some(origins=range(0))))
    names = ["x" * 1000, *[""] * 900_000]
    with pytest.raises(flight.FlightServerError, match="windows: 900,001 in one question"):
        ask_raw(address.rpartition("/")[0], local.fingerprint, changed(message, series_id=names))


def test_batches_that_make_no_sense(address, local, capfd):
    service, message = address.rpartition("/")[0], wire.write_question(question(some()))
    batch = message.batch
    for values, says in (
        (pa.array([None], batch["values"].type), "missing value"),
        (pa.array([[None] * 36], batch["values"].type), "missing value"),
    ):
        with pytest.raises(flight.FlightServerError, match=says):
            ask_raw(
                service, local.fingerprint, message._replace(batch=batch.set_column(0, batch.schema.field(0), values))
            )
    nan = pa.array([[float("nan")] * len(batch["values"].flatten())], batch["values"].type)
    fewer = pa.array([batch["origin"][0].as_py()[1:]], batch["origin"].type)
    one_too_few = (batch.set_column(1, batch.schema.field(1), fewer), "values are not")
    no_number = (batch.set_column(0, batch.schema.field(0), nan), "missing or infinite")
    for changed_batch, says in (
        no_number,
        one_too_few,
        (batch.slice(0, 0), "has one line, not 0"),
        (pa.concat_batches([batch, batch]), "has one line, not 2"),
    ):
        wrong = message._replace(batch=changed_batch)
        with pytest.raises(flight.FlightServerError, match=says):
            ask_raw(service, local.fingerprint, wrong)
    nested = pa.list_(pa.float32())
    for _ in range(50):
        nested = pa.list_(nested)
    for schema in (
        wire.ANSWER,
        pa.schema([("values", pa.list_(pa.float64())), wire.QUESTION.field("origin")]),
        pa.schema([("values", pa.list_(pa.float32())), ("origin", pa.timestamp("ns"))]),
        pa.schema([("values", pa.dictionary(pa.int32(), pa.string())), wire.QUESTION.field("origin")]),
        pa.schema([("values", nested)]),
        pa.schema([]),
    ):
        empty = pa.RecordBatch.from_arrays([pa.array([], field.type) for field in schema], schema=schema)
        with pytest.raises(flight.FlightServerError, match="has the columns"):
            ask_raw(service, local.fingerprint, Message(empty, message.document), schema=schema)
    assert "Traceback" not in capfd.readouterr().err


def test_calls_that_make_no_sense(address, local, capfd):
    with flight.FlightClient(address.rpartition("/")[0]) as client:
        for call, says in (
            (lambda: list(client.do_action(flight.Action("x" * 10_000, b""))), "there is no action"),
            (lambda: list(client.do_action(flight.Action("open", b"[]"))), "is not a JSON object"),
            (
                lambda: list(client.do_action(flight.Action("open", b'{"ref": "other"}'))),
                "'other@latest' is not served|'other' is not",
            ),
            (lambda: list(client.do_action(flight.Action("open", b'{"ref": "../../etc"}'))), "etc"),
            (lambda: client.do_get(flight.Ticket(b"")).read_all(), "is not JSON"),
            (lambda: client.do_get(_ticket("0" * 64, "series.parquet")).read_all(), "no longer served"),
            (lambda: client.do_get(_ticket(local.fingerprint, "../manifest.json")).read_all(), "has no file"),
            (lambda: client.do_get(_ticket(local.fingerprint, "manifest.json")).read_all(), "has no file"),
        ):
            with pytest.raises((flight.FlightServerError, flight.FlightError), match=says):
                call()
        with pytest.raises((flight.FlightError, pa.ArrowException, NotImplementedError)):
            list(client.list_flights())
    assert "Traceback" not in capfd.readouterr().err


def _ticket(fingerprint: str, file: str) -> flight.Ticket:
    return flight.Ticket(json.dumps({"fingerprint": fingerprint, "file": file}).encode())


# A client that waits, asks again, or gives up


def test_a_busy_service_is_asked_again(folder, local, monkeypatch):
    answer, calls = MemoryServer._search, []

    def busy(self, hosted, asked):
        calls.append(1)
        if len(calls) < 4:
            raise BusyError("the service is busy", hint="ask later")
        return answer(self, hosted, asked)

    monkeypatch.setattr(MemoryServer, "_search", busy)
    with served(folder, ["small"]) as service:
        assert_same(RemoteMemory(f"{service}/small").search(some(), 3), local.search(some(), 3))
        assert len(calls) == 4
        monkeypatch.setattr(MemoryServer, "_search", _always_busy)
        started = time.monotonic()
        with pytest.raises(ServiceError, match="the service is busy; gave up after") as gave_up:
            RemoteMemory(f"{service}/small", access=Access(deadline_s=1)).search(some(), 3)
        assert not isinstance(gave_up.value, BusyError)
        assert 0.3 < time.monotonic() - started < 10


def _always_busy(self, hosted, asked):
    raise BusyError("the service is busy", hint="ask later")


@pytest.mark.parametrize("error", [ServiceError, IncompatibleError, DataError, LeakError, ResourceError, MemoryError])
def test_a_refusal_is_not_asked_again(folder, monkeypatch, error):
    calls = []

    def refuse(self, hosted, asked):
        calls.append(1)
        raise error("no")

    monkeypatch.setattr(MemoryServer, "_search", refuse)
    with (
        served(folder, ["small"]) as service,
        pytest.raises((ServiceError, DataError, IncompatibleError, ResourceError)),
    ):
        RemoteMemory(f"{service}/small").search(some(), 3)
    assert calls == [1]


def test_a_defect_is_told_to_whoever_keeps_the_service(folder, monkeypatch, capfd):
    def fail(self, hosted, asked):
        raise ZeroDivisionError("of no use to a client")

    monkeypatch.setattr(MemoryServer, "_search", fail)
    with served(folder, ["small"]) as service, pytest.raises(ServiceError, match="its log says how") as refused:
        RemoteMemory(f"{service}/small").search(some(), 3)
    assert "of no use" not in str(refused.value)
    assert "of no use to a client" in capfd.readouterr().err


def test_a_service_that_says_nothing_is_not_waited_for(folder, monkeypatch):
    release = threading.Event()
    search = MemoryServer._search

    def hang(self, hosted, asked):
        release.wait(PATIENCE_S)
        return search(self, hosted, asked)

    monkeypatch.setattr(MemoryServer, "_search", hang)
    with served(folder, ["small"]) as service:
        memory, started = RemoteMemory(f"{service}/small", access=Access(deadline_s=1)), time.monotonic()
        with pytest.raises(ServiceError, match="did not answer in time; gave up after") as gave_up:
            memory.search(some(), 3)
        assert 0.9 < time.monotonic() - started < 10
        _is_readable(gave_up.value)
        release.set()


@pytest.mark.parametrize("accepts", [True, False])
def test_a_port_behind_which_nobody_is(accepts):
    """One that takes connections and says nothing, and one that refuses them."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        if not accepts:
            listening.close()
        started = time.monotonic()
        with pytest.raises(ServiceError, match="gave up after") as gave_up:
            RemoteMemory(f"grpc://127.0.0.1:{port}/small", access=Access(deadline_s=1))
        assert time.monotonic() - started < 10
        _is_readable(gave_up.value)


def test_a_service_that_goes_away_is_waited_for(folder, local):
    port = _free_port()
    with whole_service_at(folder, port) as service:
        memory = RemoteMemory(f"{service.address}/small")
        expected = local.search(some(), 3)
        assert_same(memory.search(some(), 3), expected)
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(memory.search, some(), 3)
        time.sleep(0.5)
        with whole_service_at(folder, port):
            assert_same(answer.result(PATIENCE_S), expected)
            memory.close()


def test_a_new_stream_to_somebody_who_says_nothing(folder):
    """The first stream is gone, and whoever has the port now accepts connections without a word."""
    port = _free_port()
    with whole_service_at(folder, port) as service:
        memory = RemoteMemory(f"{service.address}/small", access=Access(deadline_s=2))
        memory.search(some(), 3)
    with socket.create_server(("127.0.0.1", port)):
        started = time.monotonic()
        with pytest.raises(ServiceError, match="gave up after"):
            memory.search(some(), 3)
        assert time.monotonic() - started < 10
        memory.close()


# Its end


def test_a_drain_answers_what_is_under_way_and_nothing_else(folder, local, monkeypatch):
    inside, go_on, search = threading.Event(), threading.Event(), MemoryServer._search

    def slow(self, hosted, asked):
        inside.set()
        go_on.wait(PATIENCE_S)
        return search(self, hosted, asked)

    monkeypatch.setattr(MemoryServer, "_search", slow)
    with whole_service(folder, status_port=0) as service, ThreadPoolExecutor(2) as pool:
        memory = RemoteMemory(f"{service.address}/small")
        other = RemoteMemory(f"{service.address}/small", access=Access(deadline_s=1))
        assert http(service.status_port, "/readyz")[0] == 200
        answer = pool.submit(memory.search, some(), 3)
        inside.wait(PATIENCE_S)
        closing = pool.submit(service.close)
        wait_until(lambda: service.status()["ready"] is False)
        code, page = http(service.status_port, "/readyz")
        assert (code, json.loads(page)["ready"]) == (503, False)
        assert http(service.status_port, "/healthz") == (200, "ok\n")
        with pytest.raises(ServiceError, match="is about to end; gave up after"):
            other.search(some(), 3)
        go_on.set()
        assert_same(answer.result(PATIENCE_S), local.search(some(), 3))
        closing.result(PATIENCE_S)
    assert not Path(service._folder).exists()


def test_a_port_that_is_taken(folder):
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        pytest.raises(ServiceError, match="is used by another program"),
    ):
        Service(folder, ["small"], Settings(port=taken.getsockname()[1]))
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        pytest.raises(ServiceError, match="is used by another program"),
    ):
        Service(folder, ["small"], Settings(port=0, status_port=taken.getsockname()[1]))


def test_what_cannot_be_served(folder):
    for ref, error in (
        ("nothing", NotFoundError),
        ("small@9", NotFoundError),
        ("grpc://h:1/x", UsageError),
        ("..", UsageError),
    ):
        with pytest.raises(error):
            Service(folder, [ref], Settings(port=0))


# Watching it


def test_metrics_and_health(folder):
    with whole_service(folder, status_port=0, metrics=True, causal_only=True) as service:
        memory = RemoteMemory(f"{service.address}/small")
        memory.search(some(), 3)
        memory.search(some(), 3)
        with pytest.raises(IncompatibleError):
            memory.search(replace(some(Policy.DISJOINT), series_id=np.array(["load", "secret-series", "x"])), 3)
        code, page = http(service.status_port, "/metrics")
        found = dict(line.rsplit(" ", 1) for line in page.splitlines() if not line.startswith("#"))
        assert code == 200
        assert found['memory_calls_total{method="search",status="ok"}'] == "2.0"
        assert found['memory_calls_total{method="search",status="IncompatibleError"}'] == "1.0"
        assert found['memory_calls_total{method="open",status="ok"}'] == "1.0"
        assert found['memory_windows_total{policy="causal",ref="small@1"}'] == str(float(2 * len(some()) * 3))
        assert float(found['memory_bytes_total{direction="in"}']) > 2 * some().origin.nbytes
        assert found["memory_ready"] == "1.0"
        assert "secret-series" not in page
        assert http(service.status_port, "/else")[0] == 404
        assert json.loads(http(service.status_port, "/readyz")[1])["versions"] == {"small@latest": "small@1"}


def test_a_status_page_that_is_read_slowly_holds_nobody_up(folder, monkeypatch):
    """A byte now and then keeps no connection open, for others wait behind it."""
    monkeypatch.setattr(status, "REQUEST_S", 0.5)
    with whole_service(folder, status_port=0) as service:
        assert service.status_port is not None
        with socket.create_connection(("127.0.0.1", service.status_port)) as slow, ThreadPoolExecutor(1) as pool:
            end = time.monotonic() + 4

            def trickle() -> None:
                while time.monotonic() < end:
                    try:
                        slow.sendall(b"x")
                    except OSError:
                        return
                    time.sleep(0.1)

            trickling = pool.submit(trickle)
            time.sleep(0.2)
            started = time.monotonic()
            assert http(service.status_port, "/healthz")[0] == 200
            assert time.monotonic() - started < 3
            end = 0
            trickling.result(PATIENCE_S)


def test_metrics_need_their_extra(folder, monkeypatch):
    monkeypatch.setattr(status, "find_spec", lambda name: None)
    with pytest.raises(ResourceError, match="prometheus-client") as refused:
        Service(folder, ["small"], Settings(port=0, status_port=0, metrics=True))
    assert "gram-forecaster[metrics]" in refused.value.hint
    with pytest.raises(UsageError, match="a port of their own"):
        Settings(metrics=True)


def test_the_log_tells_who_asked_what_without_names_or_values(folder, tmp_path):
    log = tmp_path / "access.log"
    with whole_service(folder, access_log=log, causal_only=True) as service:
        memory = RemoteMemory(f"{service.address}/small")
        memory.search(some(), 3)
        with pytest.raises(IncompatibleError):
            memory.search(replace(some(Policy.DISJOINT), series_id=np.array(["load", "unheard-of", "x"])), 3)
        with RawClient(socket.create_connection(("127.0.0.1", int(service.address.rpartition(":")[2])))) as client:
            client.send(start()[:10], b"nonsense")
            client.rest()
        wait_until(lambda: "does not speak HTTP/2" in log.read_text())
        log.rename(tmp_path / "rotated")
        memory.search(some(), 3)
    lines = [json.loads(line) for line in (tmp_path / "rotated").read_text().splitlines()]
    [asked] = [line for line in lines if line.get("method") == "search" and line["status"] == "ok"]
    assert set(asked) <= {"time", "method", "peer", "ref", "fingerprint", "policy", "moments", "num_series", "k"} | {
        "bytes_in",
        "bytes_out",
        "waited_s",
        "seconds",
        "status",
    }
    assert (asked["ref"], asked["policy"], asked["moments"], asked["num_series"], asked["k"]) == (
        "small@1",
        "causal",
        len(some()),
        3,
        3,
    )
    assert asked["peer"].startswith("127.0.0.1:")
    assert 1000 < asked["bytes_in"] < some().context.nbytes  # consecutive moments: no value twice
    text = (tmp_path / "rotated").read_text()
    assert not any(name in text for name in ('"load"', "unheard-of", "flat", "beat"))
    assert '"status": "IncompatibleError"' in text
    assert json.loads(log.read_text().splitlines()[0])["method"] == "search"


def test_a_question_that_nobody_waits_for_is_not_searched(folder, local, monkeypatch):
    searched, inside, go_on, search = [], threading.Event(), threading.Event(), MemoryServer._search

    def slow(self, hosted, asked):
        searched.append(asked.k)
        inside.set()
        go_on.wait(PATIENCE_S)
        return search(self, hosted, asked)

    monkeypatch.setattr(MemoryServer, "_search", slow)
    with whole_service(folder) as service, ThreadPoolExecutor(2) as pool:
        patient = RemoteMemory(f"{service.address}/small")
        answer = pool.submit(patient.search, some(), 3)
        inside.wait(PATIENCE_S)
        with flight.FlightClient(service.address) as client:
            command = flight.FlightDescriptor.for_command(json.dumps({"fingerprint": local.fingerprint}).encode())
            writer, reader = client.do_exchange(command)
            writer.begin(wire.QUESTION)
            asked = wire.write_question(question(some(), 7)._replace(wait_s=PATIENCE_S))
            writer.write_with_metadata(asked.batch, asked.document)
            wait_until(lambda: service.status()["waiting"] == 1)
            reader.cancel()
            with pytest.raises((flight.FlightError, pa.ArrowException)):
                writer.close()
        time.sleep(0.3)
        go_on.set()
        assert_same(answer.result(PATIENCE_S), local.search(some(), 3))
        patient.search(some(), 4)
    assert searched == [3, 4]


def test_a_guard_that_dies_ends_the_service(folder, monkeypatch):
    monkeypatch.setattr(serving, "LOOK_S", 0.1)
    with whole_service(folder) as service:
        service._guard._process.kill()
        with pytest.raises(ServiceError, match=r"the guard in front of .* has ended"):
            service.wait()
    assert not Path(service._folder).exists()


def test_a_long_question_does_not_make_others_starve(folder, local):
    """Whoever came first is next: eight clients that ask without a pause all get their answers."""
    with whole_service(folder) as service:
        memories = [RemoteMemory(f"{service.address}/small") for _ in range(4)]
        expected = local.search(some(), 3)
        with ThreadPoolExecutor(5) as pool:
            long = pool.submit(memories[0].search, long_question(some(), 1000), 20)
            answers = [pool.submit(memory.search, some(), 3) for memory in memories for _ in range(5)]
            for answer in answers:
                assert_same(answer.result(PATIENCE_S), expected)
            assert long.result(PATIENCE_S).valid.any()
