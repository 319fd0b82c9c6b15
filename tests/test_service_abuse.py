"""Whatever clients do, others are answered meanwhile, and the service neither falls nor grows."""

from __future__ import annotations

import json
import random
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import numpy as np
import pyarrow as pa
import pytest
from memory_fixtures import NUM_TRAINING, assert_same, built, open_version, queries_at, wide_table
from service_fixtures import CERTIFICATES, PATIENCE_S, Serving, cli_serving, page, raw, wait_until, whole_service

from memory_index import wire
from memory_index.local import LocalMemory
from memory_index.remote import RemoteMemory
from memory_index.service import connections
from memory_index.service.serving import Service
from memory_index.types import Queries
from memory_index.versions.store import Store
from memory_index.wire import Question

MEGABYTE = 1 << 20
SEARCH = "POST /v1/indexes/small/search HTTP/1.1\r\nHost: x\r\nContent-Type: application/vnd.apache.arrow.stream\r\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    made = tmp_path_factory.mktemp("abuse")
    built(made)
    return made


@pytest.fixture(scope="module")
def local(folder) -> LocalMemory:
    return open_version(Store(folder).resolve("small"), threads=1)


def some() -> Queries:
    return queries_at(wide_table(), range(NUM_TRAINING - 10, NUM_TRAINING + 10))


def message(queries: Queries | None = None) -> bytes:
    return wire.write_question(Question(queries or some(), 3, None, None, None, 0, 5.0))


@contextmanager
def others_are_answered(service: Service, local: LocalMemory) -> Iterator[None]:
    """Before, after, and over and over while the block runs."""
    expected, is_over, asked = local.search(some(), 3), [], []

    def ask() -> None:
        memory = RemoteMemory(f"{service.address}/small")
        while not is_over or len(asked) < 2:
            assert_same(memory.search(some(), 3), expected)
            assert page(service.address, "/healthz").status_code == 200
            asked.append(1)

    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(ask)
        try:
            yield
        finally:
            is_over.append(True)
            asking.result(PATIENCE_S)


def ended(client: socket.socket) -> bytes:
    """What a client is told until its connection ends, which it must."""
    told = b""
    try:
        while piece := client.recv(65536):
            told += piece
    except ConnectionError:
        pass
    return told


@pytest.mark.parametrize("part", ["head", "body", "nothing"])
def test_a_byte_now_and_then_keeps_no_connection(folder, local, monkeypatch, part):
    monkeypatch.setattr(connections, "HEADER_S", 0.6)
    monkeypatch.setattr(connections, "LOOK_S", 0.1)
    with (
        whole_service(folder, stall_s=0.6) as service,
        others_are_answered(service, local),
        raw(service.address) as slow,
    ):
        if part == "body":
            slow.sendall(f"{SEARCH}Content-Length: 5000\r\n\r\n".encode())
        trickle = iter(SEARCH.encode() * 100)
        until = time.monotonic() + PATIENCE_S
        slow.settimeout(0.05)
        told = b""
        while time.monotonic() < until:
            try:
                if part != "nothing":
                    slow.sendall(bytes([next(trickle)]))
                piece = slow.recv(65536)
            except TimeoutError:
                continue
            except ConnectionError:
                break
            if not piece:
                break
            told += piece
        assert time.monotonic() < until
        assert (b"408" in told and b"came too slowly" in told) == (part == "body")


def test_an_answer_that_nobody_reads_is_given_up(folder, local, monkeypatch):
    """A client that asks much and never reads, again and again, until the service would be full of its answers."""
    monkeypatch.setattr(connections, "LOOK_S", 0.1)
    with whole_service(folder, stall_s=0.6) as service, others_are_answered(service, local):
        many = queries_at(wide_table(), range(40, 300))
        content = wire.write_question(Question(many, 100, None, None, None, 0, 5.0))
        with socket.socket() as deaf:
            deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            deaf.connect(("127.0.0.1", int(service.address.rpartition(":")[2])))
            deaf.sendall(f"{SEARCH}Content-Length: {len(content)}\r\n\r\n".encode() + content)
            wait_until(lambda: _num_connections(service, deaf.getsockname()[1]) == 1)
            wait_until(lambda: _num_connections(service, deaf.getsockname()[1]) == 0)
        wait_until(lambda: service.app.budget._held < MEGABYTE)


def _num_connections(service: Service, port: int) -> int:
    return sum(
        each.client is not None and each.client[1] == port for each in set(service._server.server_state.connections)
    )


def test_a_thousand_idle_connections(folder, local):
    """More than there may be: those that are idle longest make room."""
    with (
        whole_service(folder, max_connections=50) as service,
        ExitStack() as at_end,
        others_are_answered(service, local),
    ):
        for _ in range(1000):
            at_end.enter_context(raw(service.address))
        wait_until(lambda: len(service._server.server_state.connections) <= 50)


def test_handshakes_that_are_only_begun(folder, local, monkeypatch):
    monkeypatch.setattr(connections, "HEADER_S", 0.5)
    cert, key = CERTIFICATES / "server.pem", CERTIFICATES / "server.key"
    with whole_service(folder, tls_cert=cert, tls_key=key) as service, ExitStack() as at_end:
        silent = [at_end.enter_context(raw(service.address)) for _ in range(100)]
        trusting = ssl.create_default_context(cafile=str(cert))
        assert httpx.get(f"{service.address}/healthz", verify=trusting, trust_env=False).text == "ok\n"
        for each in silent:
            ended(each)


@pytest.mark.parametrize("expects", [False, True])
def test_ten_gigabytes_are_refused_when_they_are_announced(folder, local, expects):
    more = "Expect: 100-continue\r\n" if expects else ""
    with whole_service(folder) as service, others_are_answered(service, local), raw(service.address) as client:
        client.sendall(f"{SEARCH}{more}Content-Length: 10000000000\r\n\r\n".encode())
        if not expects:
            client.sendall(b"x" * MEGABYTE)
        told = ended(client)
        assert told.startswith(b"HTTP/1.1 413")
        assert b"a message of 10,000,000,000 bytes: at most 33,554,432 are taken" in told


def test_pieces_without_an_end_are_refused(folder, local):
    with whole_service(folder) as service, others_are_answered(service, local), raw(service.address) as client:
        client.sendall(f"{SEARCH}Transfer-Encoding: chunked\r\n\r\n".encode())
        piece = b"100000\r\n" + b"x" * MEGABYTE + b"\r\n"
        with pytest.raises(OSError):  # noqa: PT011, PT012 - however it notices
            for _ in range(500):
                client.sendall(piece)
        assert service.app.budget._held <= 40 * MEGABYTE


@pytest.mark.parametrize("part", ["address", "name", "values", "chunks", "trailers"])
def test_what_stands_beside_a_body_has_an_end(folder, local, part):
    """The parser keeps a head, and what stands behind the pieces of a body, however long they are."""
    before = {"address": "GET /", "name": "GET / HTTP/1.1\r\n", "values": "GET / HTTP/1.1\r\n"}
    chunked = f"{SEARCH}Transfer-Encoding: chunked\r\n\r\n"
    begun = before.get(part, chunked + ("0\r\n" if part == "trailers" else "1"))
    more = {"values": "a: b\r\n", "trailers": "a: b\r\n", "chunks": ";x=" + "y" * 50}.get(part, "a") * 10_000
    with whole_service(folder) as service, others_are_answered(service, local), raw(service.address) as client:
        client.sendall(begun.encode())
        with pytest.raises(OSError):  # noqa: PT011, PT012 - however it notices
            for _ in range(2000):
                client.sendall(more.encode())


def zeros(moments: int) -> pa.RecordBatch:
    """A question of so many moments of a series."""
    lists = [np.zeros(moments * 36, np.float32), np.zeros(moments, "datetime64[ns]")]
    return pa.RecordBatch.from_arrays([pa.array([each]) for each in lists], schema=wire.QUESTION)


@pytest.mark.parametrize("packing", ["zstd", "lz4"])
def test_what_grows_when_it_is_read_is_refused_before(folder, local, packing):
    """Hundreds of megabytes of zeros in a few kilobytes."""
    batch, sink = zeros(2_000_000), pa.BufferOutputStream()
    schema = batch.schema.with_metadata({wire.BESIDE: b"{}"})
    with pa.ipc.new_stream(sink, schema, options=pa.ipc.IpcWriteOptions(compression=packing)) as writer:
        writer.write_batch(pa.RecordBatch.from_arrays(batch.columns, schema=schema))
    bomb = sink.getvalue().to_pybytes()
    assert len(bomb) < 4 * MEGABYTE < batch.nbytes // 50
    with whole_service(folder) as service, others_are_answered(service, local), httpx.Client(trust_env=False) as client:
        for path, headers in (
            ("/v1/indexes/small/search", {"content-type": wire.ARROW}),
            ("/v1/indexes/small/search", {"content-type": wire.ARROW, "content-encoding": "gzip"}),
        ):
            found = client.post(service.address + path, content=bomb, headers=headers)
            assert found.status_code in (400, 415)
            assert "compressed" in found.text


# Damage


def damaged(content: bytes, chance: random.Random) -> bytes:
    """Some bytes changed, left out, doubled or put elsewhere."""
    made = bytearray(content)
    for _ in range(chance.choice((1, 1, 2, 5, 50))):
        at, num = chance.randrange(len(made) + 1), chance.choice((1, 1, 2, 4, 8, 64, 1000))
        match chance.randrange(5):
            case 0:
                made[at : at + num] = chance.randbytes(min(num, len(made[at:])))
            case 1:
                del made[at : at + num]
            case 2:
                made[at:at] = made[at : at + num]
            case 3 if at < len(made):
                made[at] ^= 1 << chance.randrange(8)
            case _:
                made[at : at + num] = chance.choice((b"\x00", b"\xff", b"\r\n", b"9" * 20, b"-1", b"\x80\x00"))
    return bytes(made)


def requests(local: LocalMemory) -> list[bytes]:
    """Whole requests of every kind, as bytes."""
    one = queries_at(wide_table(), range(NUM_TRAINING, NUM_TRAINING + 1))
    document = {"series_id": ["load", "beat", "flat"], "context": one.context[0].tolist(), "policy": "causal", "k": 2}
    document |= {"origin": "2021-03-11T20:00", "where": {"before": "2021-03-09"}, "views": [12]}
    told, asked = json.dumps(document).encode(), message()
    run = b"POST /v1/runs/x/forecast HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}"
    path = next(path for path in local.manifest.files if path.endswith("series.parquet"))
    return [
        f"{SEARCH}Content-Length: {len(asked)}\r\n\r\n".encode() + asked,
        f"{SEARCH}Content-Length: {len(told)}\r\n\r\n".replace(wire.ARROW, wire.JSON).encode() + told,
        b"GET /v1/indexes/small HTTP/1.1\r\nHost: x\r\nAccept: */*\r\n\r\n",
        f"GET /v1/indexes/{local.fingerprint}/files/{path} HTTP/1.1\r\nHost: x\r\n\r\n".encode(),
        b"GET /readyz HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer x\r\n\r\n",
        run,
    ]


def _thrown(serving: Serving, content: bytes) -> bytes:
    """What comes back within a moment."""
    with raw(serving.address) as client:
        client.settimeout(2)
        told = b""
        try:
            client.sendall(content)
            client.shutdown(socket.SHUT_WR)
            while piece := client.recv(65536):
                told += piece
        except OSError:
            pass
        return told


@pytest.mark.parametrize("num", [500, pytest.param(10_000, marks=pytest.mark.soak)])
def test_damaged_requests_harm_nobody(folder, local, num):
    """Of the bytes of a request anything may be wrong, and of the body alone too."""
    chance, expected, kinds = random.Random(num), local.search(some(), 3), requests(local)
    with cli_serving(folder) as serving:
        memory, before, answers = serving.memory(), 0, 0
        for number in range(num):
            content = chance.choice(kinds)
            head, _, body = content.partition(b"\r\n\r\n")
            if body and number % 2:
                body = damaged(body, chance)
                length = f"Content-Length: {len(body)}".encode()
                content = head.rpartition(b"Content-Length")[0] + length + b"\r\n\r\n" + body
            else:
                content = damaged(content, chance)
            answers += _thrown(serving, content).startswith(b"HTTP/1.1 ")
            if number % 100 == 99:
                assert_same(memory.search(some(), 3), expected)
            if number == num // 2:
                before = serving.resident_bytes()
        assert answers > num // 4
        assert serving.resident_bytes() < before + 64 * MEGABYTE
        assert_same(serving.memory().search(some(), 3), expected)


@pytest.mark.parametrize("throw", [message, lambda: b"{}", lambda: b"x" * 100_000], ids=["question", "empty", "junk"])
def test_clients_that_vanish(folder, local, throw: Callable[[], bytes]):
    """In the middle of a head, of a body, or before the answer."""
    content = throw()
    whole = f"{SEARCH}Content-Length: {len(content)}\r\n\r\n".encode() + content
    with whole_service(folder) as service, others_are_answered(service, local):
        for share in (0.01, 0.5, 1.0) * 5:
            with raw(service.address) as client:
                client.sendall(whole[: int(len(whole) * share)])
        wait_until(lambda: service.app.num_under_way <= 2)
