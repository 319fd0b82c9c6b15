"""The client of a service by itself: what it believes, how it reaches one, what it says and what it leaves behind.

That its answers are those of the version, and most of the lies that it finds, is tested in `test_service.py`.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from memory_fixtures import NUM_TRAINING, assert_same, built, open_version, queries_at, wide_table
from service_fixtures import CERTIFICATES, PATIENCE_S, served, whole_service

from cli.options import Indexes
from memory_index import http_client, wire
from memory_index.access import Access
from memory_index.errors import BusyError, NotFoundError, ServiceError, UsageError
from memory_index.http_client import HttpClient
from memory_index.leakage import Policy
from memory_index.local import LocalMemory
from memory_index.remote import Address, RemoteMemory, parse_address
from memory_index.service.app import App
from memory_index.types import Filter, Queries
from memory_index.versions.store import Store
from memory_index.wire import Limits, Question

ORIGINS = range(NUM_TRAINING - 10, NUM_TRAINING + 20)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    made = tmp_path_factory.mktemp("remote")
    built(made)
    return made


@pytest.fixture(scope="module")
def local(folder) -> LocalMemory:
    return open_version(Store(folder).resolve("small"), threads=1)


@pytest.fixture(scope="module")
def service(folder) -> Iterator[str]:
    with served(folder, ["small", "small@1"]) as address:
        yield address


def some() -> Queries:
    return queries_at(wide_table(), ORIGINS, Policy.CAUSAL)


# A forked process


def in_a_fork(what: Callable[[], None]) -> str:
    """What a process that is forked from this one says: `done`, an error, or `hangs`."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        said = "done"
        try:
            what()
        except BaseException as error:  # noqa: BLE001  # whatever it is, it must be told
            said = f"{type(error).__name__}: {error} ({getattr(error, 'hint', '')})"
        os.write(writing, said.encode())
        os._exit(0)
    os.close(writing)
    ready, _, _ = select.select([reading], [], [], PATIENCE_S)
    said = os.read(reading, 4096).decode() if ready else "hangs"
    os.close(reading)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return said


def test_a_forked_process_has_connections_of_its_own(service, local):
    memory = RemoteMemory(f"{service}/small")
    expected = local.search(some(), 4)
    assert_same(memory.search(some(), 4), expected)

    def ask() -> None:
        for each in (memory, RemoteMemory(f"{service}/small")):
            assert_same(each.search(some(), 4), expected)
        memory.close()

    assert in_a_fork(ask) == "done"
    assert_same(memory.search(some(), 4), expected)


# A service that lies


@pytest.mark.parametrize("asked", [{"scopes": ("own",)}, {"views": (36,)}, {"scopes": ("own", "pooled")}], ids=str)
def test_an_answer_from_a_part_of_the_key_spaces_is_not_believed(folder, monkeypatch, asked):
    """Though nobody has named any: what there is to answer from, the client knows itself."""
    search = App._found
    monkeypatch.setattr(
        App, "_found", lambda self, memory, question, write: search(self, memory, question._replace(**asked), write)
    )
    with served(folder, ["small"]) as service, pytest.raises(ServiceError, match="an answer to another question"):
        RemoteMemory(f"{service}/small").search(some(), 4)


def test_what_decides_the_answers_beside_the_version_is_told(service, monkeypatch):
    assert RemoteMemory(f"{service}/small").answered_by == ""
    monkeypatch.setattr(LocalMemory, "answered_by", "milvus HNSW 7")
    assert RemoteMemory(f"{service}/small").answered_by == "milvus HNSW 7"


@pytest.mark.parametrize("kind", ["gzip", "redirect", "endless", "trickle", "page"])
def test_an_answer_that_is_none(kind):
    """Nothing is unpacked, followed, or read beyond what the answer may have."""
    long = "HTTP/1.1 200 OK\r\nContent-Length: 100000000000\r\n\r\n"
    heads = {
        "gzip": "HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 4\r\n\r\nabcd",
        "redirect": "HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n",
        "endless": long,
        "trickle": long,
        "page": "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n<html>",
    }
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def answer() -> None:
            while True:
                try:
                    client, _ = listening.accept()
                    with client:
                        client.recv(65536)
                        client.sendall(heads[kind].encode())
                        while kind in ("endless", "trickle"):
                            client.sendall(b"x" * (1 << 20 if kind == "endless" else 1))
                            time.sleep(0.1 if kind == "trickle" else 0)
                except OSError:
                    if listening.fileno() < 0:
                        return

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        started = time.monotonic()
        with pytest.raises(ServiceError) as refused:
            RemoteMemory(f"http://127.0.0.1:{listening.getsockname()[1]}/small", access=Access(deadline_s=1))
        assert time.monotonic() - started < 10
        assert not isinstance(refused.value, BusyError)
        assert refused.value.hint or kind == "endless"
        listening.shutdown(socket.SHUT_RDWR)
    thread.join(PATIENCE_S)


# A question on its way


@pytest.mark.parametrize("origins", [range(200, 240), range(200, 240, 2), range(200, 201), range(0)], ids=str)
def test_a_question_arrives_as_it_was_asked(origins):
    """Bit for bit; of consecutive moments with every value once."""
    queries = queries_at(wide_table(), origins, Policy.DISJOINT)
    message = wire.write_question(Question(queries, 3, None, None, None, 0, 5.0))
    arrived = wire.read_question(message, Limits(), 6).queries
    for name in ("context", "origin", "series_id"):
        assert getattr(arrived, name).tobytes() == getattr(queries, name).tobytes()
    assert arrived.policy is queries.policy
    _, num_series, lookback = queries.context.shape
    steps = 39 + lookback if origins == range(200, 240) else len(origins) * lookback
    (values, _), _ = wire.unpack(message, wire.QUESTION)
    assert len(values) == num_series * steps


def test_windows_that_differ_in_the_sign_of_zero_are_not_consecutive():
    queries = queries_at(wide_table(), range(200, 240), Policy.CAUSAL)
    context = queries.context.copy()
    context[7, 1, 5] = 0.0
    context[8, 1, 4] = -0.0
    message = wire.write_question(Question(replace(queries, context=context), 3, None, None, None, 0, 5.0))
    assert wire.read_question(message, Limits(), 6).queries.context.tobytes() == context.tobytes()


def test_what_is_named_twice_is_asked_once(service, local):
    memory, twice = RemoteMemory(f"{service}/small"), {"scopes": ("pooled",) * 9, "views": (12,) * 9}
    twice["where"] = Filter(series_id=("load",) * 9000)
    assert_same(memory.search(some(), 4, **twice), local.search(some(), 4, **twice))


# How it is reached


@pytest.mark.parametrize("name", ["http_proxy", "https_proxy", "all_proxy"])
def test_a_proxy_is_not_gone_through(service, monkeypatch, name):
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.getsockname()[1]}")
        memory = RemoteMemory(f"{service}/small", access=Access(token="not-for-a-proxy", deadline_s=5))
        assert memory.search(some(), 3).valid.any()
        assert select.select([proxy], [], [], 0) == ([], [], [])


@contextmanager
def tls_port(certificate: Path) -> Iterator[int]:
    """A port that shows a certificate to whoever comes, and says nothing more."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, CERTIFICATES / "server.key")
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def accept() -> None:
            while True:
                try:
                    connection, _ = listening.accept()
                except OSError:
                    return
                with connection:
                    try:
                        context.wrap_socket(connection, server_side=True).close()
                    except OSError:
                        continue

        thread = threading.Thread(target=accept)
        thread.start()
        yield listening.getsockname()[1]
        listening.shutdown(socket.SHUT_RDWR)
        thread.join()


@pytest.mark.parametrize(
    ("certificate", "words"),
    [("server.pem", []), ("server.pem", ["--tls-ca", "expired.pem"]), ("expired.pem", ["--tls-ca", "expired.pem"])],
    ids=["no authority", "another authority", "expired"],
)
def test_a_certificate_that_is_not_believed_is_one_line(certificate, words):
    with tls_port(CERTIFICATES / certificate) as port:
        ended = subprocess.run(
            [sys.executable, "-m", "cli", "index", "show", f"https://127.0.0.1:{port}/small"]
            + [str(CERTIFICATES / word) if word.endswith(".pem") else word for word in words],
            cwd=Path(__file__).parents[1],
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
        )
    assert (ended.returncode, ended.stdout) == (8, "")
    assert len(ended.stderr.splitlines()) == 1, ended.stderr
    assert f"no secure connection to https://127.0.0.1:{port}: " in ended.stderr


ADDRESSES = {
    "http://127.0.0.1:8815/load": Address("http://127.0.0.1:8815", "load"),
    "https://[::1]:8815/load@1": Address("https://[::1]:8815", "load@1"),
    "https://memory.example.org/load@prod": Address("https://memory.example.org", "load@prod"),
    "https://example.org/behind/a/proxy/load": Address("https://example.org/behind/a/proxy", "load"),
}
NO_ADDRESSES = [
    "http://",
    "http://h",
    "http://h/",
    "http://:1/x",
    "http://h:/x",
    "http://h:0/x",
    "http://h:65536/x",
    "http://h:99999/x",
    f"http://h:{'9' * 5000}/x",
    "http://h:+1/x",
    "http://h:\u0661/x",
    "http://user:secret@h:1/x",
    "http://h:1?a=b/x",
    "http://h:1#a/x",
    "ftp://h:1/x",
    "x",
]


def test_addresses():
    for address, parts in ADDRESSES.items():
        assert parse_address(address) == parts


@pytest.mark.parametrize("address", NO_ADDRESSES, ids=lambda value: value[:40])
def test_what_is_no_address(address):
    with pytest.raises(UsageError, match="is not the address of a version"):
        parse_address(address)


# What it says


def test_every_error_says_which_service(service, monkeypatch):
    with pytest.raises(NotFoundError, match="'smallx' is not served here") as refused:
        RemoteMemory(f"{service}/smallx")
    assert str(refused.value).startswith(f"{service}: ")
    memory = RemoteMemory(f"{service}/small")
    memory.limits = Limits(max_k=10_000)
    with pytest.raises(UsageError, match="k: 2,000 in one question") as refused:
        memory.search(some(), 2000)
    assert str(refused.value).startswith(f"{service}: ")


def _asking(notes: list[str]) -> HttpClient:
    return HttpClient("http://127.0.0.1:1", Access(), notes.append)


def test_one_note_for_each_time_that_it_cannot_be_reached(monkeypatch):
    monkeypatch.setattr(http_client, "TELL_S", 0.0)
    notes: list[str] = []
    service, fails = _asking(notes), [1] * 3

    def once(*arguments: object) -> bytes:
        if fails:
            fails.pop()
            raise BusyError("http://127.0.0.1:1 cannot be reached: nobody is there")
        return b"done"

    monkeypatch.setattr(service, "_once", once)
    for num in (1, 2):
        assert service.ask("/", within_s=60, most=1) == b"done"
        assert len(notes) == num
        fails[:] = [1] * 3
    fails[:] = [1] * 100
    with pytest.raises(ServiceError, match="gave up after"):
        service.ask("/", within_s=0.2, most=1)
    assert len(notes) == 3
    assert notes[0] == "http://127.0.0.1:1 cannot be reached: nobody is there; asked again until 60 s are over"


@pytest.mark.parametrize(("tell_s", "is_told", "num"), [(0.0, True, 1), (0.0, False, 0), (2.0, True, 0)])
def test_what_ends_soon_is_not_worth_a_note(monkeypatch, tell_s, is_told, num):
    monkeypatch.setattr(http_client, "TELL_S", tell_s)
    notes: list[str] = []
    with pytest.raises(ServiceError, match="gave up after"):
        _asking(notes).ask("/", within_s=0.3, most=1, is_told=is_told)
    assert len(notes) == num


def test_a_command_says_that_its_service_is_gone(folder, monkeypatch, capfd):
    monkeypatch.setattr(http_client, "TELL_S", 0.0)
    with served(folder, ["small"]) as service:
        memory = Indexes(folder=folder).find(f"{service}/small").open()
        memory.search(some(), 3)
    assert capfd.readouterr().err == ""
    memory.access = replace(memory.access, deadline_s=0.3)
    with pytest.raises(ServiceError, match="gave up after"):
        memory.search(some(), 3)
    [line] = capfd.readouterr().err.splitlines()
    assert line.startswith(f"{service} cannot be reached: ")
    assert "asked again until 0 s are over" in line


def test_connections_are_used_again(folder, local):
    with whole_service(folder) as service:
        memory = RemoteMemory(f"{service.address}/small")
        for _ in range(5):
            memory.search(some(), 3)
        assert service.status()["connections"] == 1
        memory.close()
        memory.search(some(), 3)
