"""The client of a service by itself: what it believes, how it reaches one, what it says and what it leaves behind.

That its answers are those of the version, and most of the lies that it finds, is tested in `test_service.py`.
"""

from __future__ import annotations

import gc
import json
import os
import select
import signal
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from guard_fixtures import CERTIFICATES, PATIENCE_S, wait_until
from memory_fixtures import NUM_TRAINING, assert_same, built, open_version, queries_at, wide_table
from pyarrow import flight
from serve_fixtures import cli_serving, whole_service
from service_fixtures import served

from cli.options import Indexes
from memory_index.access import Access
from memory_index.errors import NotFoundError, ServiceError, UsageError
from memory_index.leakage import Policy
from memory_index.local import LocalMemory
from memory_index.service import remote, wire
from memory_index.service.remote import RemoteMemory, parse_address
from memory_index.service.server import MemoryServer
from memory_index.service.wire import Limits, Message, Question
from memory_index.types import Filter, Queries
from memory_index.versions.store import Store

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


def test_a_forked_process_is_refused_at_once(service, local):
    memory = RemoteMemory(f"{service}/small")
    expected = local.search(some(), 4)
    assert_same(memory.search(some(), 4), expected)
    for what in (lambda: memory.search(some(), 4), lambda: RemoteMemory(f"{service}/small")):
        said = in_a_fork(what)
        assert said.startswith(f"ServiceError: {service} cannot be asked: a service was opened before a fork"), said
        assert "start processes with spawn" in said
    assert in_a_fork(memory.close) == "done"
    assert_same(memory.search(some(), 4), expected)


def test_a_forked_process_may_drop_what_its_parent_has_opened(service, local):
    held = [RemoteMemory(f"{service}/small")]
    expected = local.search(some(), 4)
    assert_same(held[0].search(some(), 4), expected)

    def drop() -> None:
        held.clear()
        gc.collect()

    assert in_a_fork(drop) == "done"
    assert_same(held[0].search(some(), 4), expected)


# A memory that is dropped, not closed


DROPPING = """
import gc, os, signal, sys
from memory_fixtures import queries_at, wide_table
from memory_index.service.remote import RemoteMemory

memory = RemoteMemory(sys.argv[1])
memory.search(queries_at(wide_table(), [200]), 3)
os.kill(int(sys.argv[2]), signal.SIGSTOP)
if sys.argv[3] == "collected":
    memory.itself = memory
    del memory
    gc.collect()
print("done")
"""


@pytest.mark.parametrize("how", ["collected", "at the end"])
def test_a_memory_that_is_dropped_waits_for_nobody(folder, how):
    """Left to Arrow, it would wait for the service, and with it every thread of the process."""
    with cli_serving(folder) as serving:
        words = [sys.executable, "-c", DROPPING, f"{serving.address}/small", str(serving.process.pid), how]
        try:
            ended = subprocess.run(
                words, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=PATIENCE_S, check=False
            )
        finally:
            serving.process.send_signal(signal.SIGCONT)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "done\n", "")


# A service that lies


@pytest.mark.parametrize("asked", [{"scopes": ("own",)}, {"views": (36,)}, {"scopes": ("own", "pooled")}], ids=str)
def test_an_answer_from_a_part_of_the_key_spaces_is_not_believed(folder, monkeypatch, asked):
    """Though nobody has named any: what there is to answer from, the client knows itself."""
    search = MemoryServer._search
    monkeypatch.setattr(
        MemoryServer, "_search", lambda self, hosted, each: search(self, hosted, each._replace(**asked))
    )
    with served(folder, ["small"]) as service, pytest.raises(ServiceError, match="an answer to another question"):
        RemoteMemory(f"{service}/small").search(some(), 4)


def test_an_answer_from_no_key_space_is_not_believed(folder, monkeypatch):
    write = wire.write_answer

    def nothing(neighbours):
        message = write(neighbours)
        document = json.loads(message.document) | {"spaces": []}
        batch = wire.one_line(wire.ANSWER, [column.flatten().to_numpy()[:0] for column in message.batch.columns])
        return Message(batch, json.dumps(document).encode())

    monkeypatch.setattr(wire, "write_answer", nothing)
    with served(folder, ["small"]) as service, pytest.raises(ServiceError, match="an answer to another question"):
        RemoteMemory(f"{service}/small").search(some(), 4)


def opening(monkeypatch, told: dict[str, object]) -> None:
    """Let services tell this when they are opened."""
    answer = MemoryServer.do_action

    def lying(self, context, action):
        [result] = answer(self, context, action)
        return [json.dumps(json.loads(result.body.to_pybytes()) | told).encode()]

    monkeypatch.setattr(MemoryServer, "do_action", lying)


@pytest.mark.parametrize(
    "ref", ["small@2", "other@1", "small", "small@latest", "small@1@1", "", "small@" + "9" * 90_000]
)
def test_a_version_that_was_not_asked_for_is_not_taken(service, monkeypatch, ref):
    opening(monkeypatch, {"ref": ref})
    with pytest.raises(ServiceError, match="was asked for small@1 and has opened") as refused:
        RemoteMemory(f"{service}/small@1")
    assert len(str(refused.value)) < 300


@pytest.mark.parametrize("asked", ["small", "small@latest", "small@1", "small@0001"])
def test_a_version_may_be_asked_for_in_any_form(service, asked):
    assert RemoteMemory(f"{service}/{asked}").ref == f"{service}/small@1"


def test_what_decides_the_answers_beside_the_version_is_told(service, monkeypatch):
    assert RemoteMemory(f"{service}/small").answered_by == ""
    opening(monkeypatch, {"answered_by": "milvus HNSW 7"})
    assert RemoteMemory(f"{service}/small").answered_by == "milvus HNSW 7"


def test_nothing_but_brackets_cannot_be_read(service, monkeypatch):
    """The parser of JSON has an error of its own for it."""
    assert wire.read_error(b"[" * 100_000) is None
    monkeypatch.setattr(MemoryServer, "do_action", lambda self, context, action: [b"[" * 100_000])
    with pytest.raises(ServiceError, match="gave an answer that cannot be read"):
        RemoteMemory(f"{service}/small")


# A client that lies


@pytest.mark.parametrize(
    ("document", "says"),
    [
        ({"views": [12] * 7}, "'views': 7 in one question, but this service allows 6"),
        ({"scopes": ["own"] * 7}, "'scopes': 7 in one question, but this service allows 6"),
        ({"where": {"series_id": ["load"] * 31}}, "'series_id': 31 in one question, but this service allows 30"),
        # Not gone through: otherwise it would be said first that these are not texts, and not numbers.
        ({"views": ["x"] * 700_000}, "'views': 700,000 in one question"),
        ({"scopes": [1] * 1_000_000}, "'scopes': 1,000,000 in one question"),
        ({"series_id": [1] * 900_000}, "windows: 4,500,000 in one question"),
        ({"where": {"series_id": [1] * 900_000}}, "'series_id': 900,000 in one question"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_lists_that_are_too_long_are_not_gone_through(document, says):
    question = Question(queries_at(wide_table(), range(100, 105), Policy.CAUSAL), 3, None, None, None, 0, 5.0)
    message = wire.write_question(question)
    message = message._replace(document=json.dumps(json.loads(message.document) | document).encode())
    with pytest.raises(UsageError, match=says):
        wire.read_question(message, Limits(max_windows=30), 6)


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
    assert len(message.batch["values"].flatten()) == num_series * steps


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


@pytest.mark.parametrize("name", ["http_proxy", "https_proxy", "grpc_proxy"])
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
    context.set_alpn_protocols(["h2"])
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
    """Not one more by gRPC, which writes past Python: only another process shows it."""
    with tls_port(CERTIFICATES / certificate) as port:
        ended = subprocess.run(
            [sys.executable, "-m", "cli", "index", "show", f"grpc+tls://127.0.0.1:{port}/small"]
            + [str(CERTIFICATES / word) if word.endswith(".pem") else word for word in words],
            cwd=Path(__file__).parents[1],
            env={name: value for name, value in os.environ.items() if name != "GRPC_VERBOSITY"},
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
        )
    assert (ended.returncode, ended.stdout) == (8, "")
    assert len(ended.stderr.splitlines()) == 1, ended.stderr
    assert f"no secure connection to grpc+tls://127.0.0.1:{port}: " in ended.stderr


@pytest.mark.parametrize("said", ["recvmsg: Connection reset by peer", "Socket closed"])
def test_a_service_that_speaks_tls_may_be_the_cause(said):
    error = flight.FlightUnavailableError(said)
    plain, secure = (
        remote._Connection(parse_address(f"{scheme}://127.0.0.1:1/small"), Access(), print)._in_our_terms(error)
        for scheme in ("grpc", "grpc+tls")
    )
    assert plain.hint.endswith("or does it speak TLS: grpc+tls://?")
    assert "TLS" not in secure.hint


def test_plain_to_a_service_with_tls(folder, monkeypatch):
    monkeypatch.setattr(remote, "OPEN_S", 0.5)
    with (
        whole_service(folder, tls_cert=CERTIFICATES / "server.pem", tls_key=CERTIFICATES / "server.key") as service,
        pytest.raises(ServiceError, match="cannot be reached") as refused,
    ):
        RemoteMemory(f"{service.address}/small".replace("grpc+tls", "grpc"))
    assert "grpc+tls://" in refused.value.hint


@pytest.mark.parametrize("port", ["0", "65536", "99999", "9" * 5000, "+1", "\u0661"])
def test_a_port_that_there_is_not(port):
    with pytest.raises(UsageError, match="is not the address of a version"):
        parse_address(f"grpc://127.0.0.1:{port}/small")


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


def test_one_note_for_each_time_that_it_cannot_be_reached(monkeypatch):
    monkeypatch.setattr(remote, "TELL_S", 0.0)
    notes: list[str] = []
    connection = remote._Connection(parse_address("grpc://127.0.0.1:1/small"), Access(), notes.append)
    fails: list[int] = []

    def once(left_s: float) -> str:
        if not fails:
            return "done"
        fails.pop()
        raise flight.FlightUnavailableError("nobody is there")

    for num, expected in ((0, 0), (3, 1), (1, 2)):
        fails[:] = [1] * num
        assert connection.attempt(once, 60) == "done"
        assert len(notes) == expected
    for _ in range(2):  # it goes on where it began
        fails[:] = [1] * 100
        with pytest.raises(ServiceError, match="gave up after"):
            connection.attempt(once, 0.2)
    assert len(notes) == 3
    assert notes[0] == "grpc://127.0.0.1:1 cannot be reached: nobody is there; asked again until 60 s are over"


@pytest.mark.parametrize(("tell_s", "is_told", "num"), [(0.0, True, 1), (0.0, False, 0), (2.0, True, 0)])
def test_what_ends_soon_is_not_worth_a_note(monkeypatch, tell_s, is_told, num):
    monkeypatch.setattr(remote, "TELL_S", tell_s)
    notes: list[str] = []
    connection = remote._Connection(parse_address("grpc://127.0.0.1:1/small"), Access(), notes.append)

    def once(left_s: float) -> str:
        raise flight.FlightUnavailableError("nobody is there")

    with pytest.raises(ServiceError, match="gave up after"):
        connection.attempt(once, 0.2, is_told=is_told)
    assert len(notes) == num


def test_a_command_says_that_its_service_is_gone(folder, monkeypatch, capfd):
    monkeypatch.setattr(remote, "TELL_S", 0.0)
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


# What it leaves behind


def test_one_stream_is_kept_when_none_is_in_use(folder, local, tmp_path, monkeypatch):
    """The places of a service are for all of its clients. What is closed is no error in its log."""
    together, answer = threading.Barrier(8, timeout=PATIENCE_S), MemoryServer._answer

    def all_at_once(self, *arguments):
        together.wait()
        answer(self, *arguments)

    monkeypatch.setattr(MemoryServer, "_answer", all_at_once)
    expected = local.search(some(), 3)
    with whole_service(folder, access_log=tmp_path / "log") as service:
        memory = RemoteMemory(f"{service.address}/small")
        for _ in range(2):
            with ThreadPoolExecutor(8) as pool:
                for found in [pool.submit(memory.search, some(), 3) for _ in range(8)]:
                    assert_same(found.result(PATIENCE_S), expected)
            wait_until(lambda: service.status()["streams"] == 1)
        memory.close()
        wait_until(lambda: service.status()["streams"] == 0)
    lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert sum(line.get("method") == "search" for line in lines) == 16
    assert [line for line in lines if line.get("status", "ok") != "ok" or "event" in line] == []


def test_the_stream_that_is_kept_is_forgotten_after_a_while(folder, monkeypatch):
    begun = []
    exchange = MemoryServer.do_exchange
    monkeypatch.setattr(MemoryServer, "do_exchange", lambda *call: begun.append(1) or exchange(*call))
    with served(folder, ["small"]) as service:
        memory = RemoteMemory(f"{service}/small")
        for _ in range(3):
            memory.search(some(), 3)
        assert len(begun) == 1
        monkeypatch.setattr(remote, "FORGET_S", 0.0)
        memory.search(some(), 3)
        assert len(begun) == 2
