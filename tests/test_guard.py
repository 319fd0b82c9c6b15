"""The relay in front of the Flight server: what it lets through, what it refuses, and that it outlives all of it."""

from __future__ import annotations

import ast
import os
import random
import resource
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.flight as flight
import pytest
from guard_fixtures import (
    ACTION,
    CERTIFICATES,
    LIMITS,
    WINDOW_UPDATE,
    RawClient,
    action,
    call,
    echo_server,
    headers,
    message,
    running_guard,
    start,
    wait_until,
    whole_call,
)

from memory_index.service import guard
from memory_index.service.guard import (
    ACK,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    MAX_HEADER_BLOCK,
    MAX_RESETS,
    PREFACE,
    RST_STREAM,
    SETTINGS,
    Call,
    Calls,
    ClientFrames,
    Limits,
    RefusedError,
    ServerFrames,
    frame,
)

PING = 6
PADDED = 0x8
MEGABYTE = 1 << 20
ALMOST_ALL = MEGABYTE - 1000  # of what LIMITS lets a message have
TLS = ("--tls-cert", str(CERTIFICATES / "server.pem"), "--tls-key", str(CERTIFICATES / "server.key"))
ROOTS = (CERTIFICATES / "server.pem").read_bytes()


@pytest.fixture(scope="module")
def server():
    with echo_server() as path:
        yield path


@pytest.fixture(scope="module")
def shared(server):
    """A guard for the tests that do not need one of their own."""
    with running_guard(server) as running:
        yield running


def echo(client: flight.FlightClient, body: bytes) -> bytes:
    (answer,) = client.do_action(flight.Action("echo", body))
    return answer.body.to_pybytes()


def numbers(count: int) -> pa.RecordBatch:
    return pa.record_batch([pa.array(range(count), type=pa.int64())], ["number"])


@pytest.fixture
def kept(shared):
    """A stream that is open all the time: whatever happens to others, it goes on."""
    with shared.client() as client:
        writer, reader = client.do_exchange(flight.FlightDescriptor.for_command(b""))
        batch = numbers(1000)
        writer.begin(batch.schema)

        def ask() -> None:
            writer.write_batch(batch)
            assert reader.read_chunk().data.equals(batch)

        ask()
        yield ask
        ask()
        writer.close()


# Framing, without sockets


def limits(**changes) -> Limits:
    usual = {"max_message": 1000, "max_connections": 4, "max_streams": 3, "stall_s": 5, "idle_s": 60, "grace_s": 5}
    usual |= {"max_calls": 20, "max_pending": 1 << 40}
    return Limits(**(usual | changes))


def client_frames(**changes) -> ClientFrames:
    return ClientFrames(Calls(limits(**changes)))


def state(frames: ClientFrames) -> tuple:
    calls = frames.calls
    streams = {number: (each.left, bytes(each.prefix), each.client_done) for number, each in calls.open.items()}
    return streams, calls.highest, frames.left, frames.in_headers, bytes(frames.header)


BLOCK = headers(guard_path := b"/service/method")
CONVERSATION = b"".join(
    [
        frame(SETTINGS, 0, 0, b""),
        frame(HEADERS, 0, 1, BLOCK[:20]),
        frame(CONTINUATION, 0, 1, b""),
        frame(CONTINUATION, END_HEADERS, 1, BLOCK[20:]),
        frame(DATA, 0, 1, message(b"a" * 7) + message(b"") + message(b"b" * 300)[:3]),  # cut within a prefix
        frame(PING, 0, 0, b"12345678"),
        call(3, guard_path),
        frame(DATA, 0, 3, message(b"c" * 1000)[:500]),
        frame(DATA, 0, 1, message(b"b" * 300)[3:200]),  # cut within a message
        frame(DATA, 0, 1, b""),
        frame(DATA, END_STREAM, 3, message(b"c" * 1000)[500:]),
        call(5, guard_path),
        frame(RST_STREAM, 0, 5, b"\0\0\0\x08"),
    ]
)


def test_frames_may_be_cut_anywhere():
    whole = client_frames()
    assert whole.feed(memoryview(CONVERSATION)) == len(CONVERSATION)
    assert state(whole) == ({1: (105, b"", False), 3: (0, b"", True)}, 5, 0, 0, b"")
    too_long = frame(DATA, 0, 1, b"b" * 105 + message(b"", length=1001))
    for at in range(1, len(CONVERSATION)):
        cut = client_frames()
        cut.feed(memoryview(CONVERSATION)[:at])
        cut.feed(memoryview(CONVERSATION)[at:])
        assert state(cut) == state(whole)
    single = client_frames()
    for at in range(len(CONVERSATION)):
        single.feed(memoryview(CONVERSATION)[at : at + 1])
    assert state(single) == state(whole)
    # Wherever the end is cut, it is refused with the last byte that says how long the message is, not before.
    for at in range(len(too_long)):
        cut = client_frames()
        cut.feed(memoryview(CONVERSATION))
        cut.feed(memoryview(too_long)[:at])
        with pytest.raises(RefusedError, match="1001 bytes: at most 1000"):
            cut.feed(memoryview(too_long)[at:])


@pytest.mark.parametrize(
    ("sent", "reason"),
    [
        (frame(DATA, 0, 1, message(b"x" * 1001)[:5]), "1001 bytes: at most 1000"),
        (frame(DATA, 0, 1, message(b"", length=0xFFFFFFFF)), "4294967295 bytes"),
        (frame(DATA, 0, 1, message(b"ok") + message(b"", length=2000)), "2000 bytes"),
        (frame(DATA, 0, 1, message(b"x", compressed=1)), "compressed"),
        (frame(DATA, 0, 1, message(b"x", compressed=255)), "compressed"),
        (frame(DATA, PADDED, 1, b"\x02" + message(b"x") + b"\0\0"), "unknown flags"),
        (frame(DATA, 0, 0, message(b"x")), "belongs to no call"),
        (frame(DATA, 0, 3, message(b"x")), "not begun"),
        (frame(DATA, END_STREAM, 1, message(b"x")) + frame(DATA, 0, 1, message(b"x")), "after the end"),
        (frame(DATA, END_STREAM, 1, message(b"x", length=9)), "ends within a message"),
        (frame(DATA, END_STREAM, 1, b"\0\0"), "ends within a message"),
        (call(1), "begun twice"),
        (call(2), "even number"),
        (call(0), "belongs to no call"),
        (frame(HEADERS, 0, 3, BLOCK) + frame(DATA, 0, 3, b""), "interrupted"),
        (frame(HEADERS, 0, 3, BLOCK) + frame(CONTINUATION, END_HEADERS, 1, b""), "interrupted"),
        (frame(HEADERS, 0, 3, BLOCK) + frame(PING, 0, 0, b"12345678"), "interrupted"),
        (frame(CONTINUATION, END_HEADERS, 1, b""), "continuation of nothing"),
        (frame(HEADERS, END_HEADERS, 3, b"x" * MAX_HEADER_BLOCK), "headers of more"),
        (frame(HEADERS, 0, 3, b"") + frame(CONTINUATION, 0, 3, b"x" * 9000) * 8, "headers of more"),
        (frame(HEADERS, 0, 3, b"") + frame(CONTINUATION, 0, 3, b"") * (MAX_HEADER_BLOCK // 9), "headers of more"),
        (frame(PING, 0, 0, b"x" * 16385), "impossible length"),
        (frame(0xAB, 0, 0, b"x" * 16385), "impossible length"),
        (frame(RST_STREAM, 0, 1, b"123"), "impossible length"),
        (call(3) + call(5) + call(7), "more than 3 calls at once"),
    ],
)
def test_what_is_refused(sent, reason):
    frames = client_frames()
    frames.feed(memoryview(call(1)))
    with pytest.raises(RefusedError, match=reason):
        frames.feed(memoryview(sent))


def test_a_call_counts_until_both_sides_have_ended_it():
    ended = frame(HEADERS, END_HEADERS | END_STREAM, 1, b"")
    for ends, is_open in [
        ([("client", frame(DATA, END_STREAM, 1, b""))], True),
        ([("server", ended)], True),
        ([("server", ended), ("client", frame(DATA, END_STREAM, 1, b""))], False),
        ([("client", frame(DATA, END_STREAM, 1, b"")), ("server", frame(DATA, END_STREAM, 1, b""))], False),
        ([("server", frame(RST_STREAM, 0, 1, b"\0\0\0\0"))], False),
        ([("client", frame(RST_STREAM, 0, 1, b"\0\0\0\0"))], False),
    ]:
        calls = Calls(limits())
        sides = {"client": ClientFrames(calls), "server": ServerFrames(calls)}
        sides["client"].feed(memoryview(call(1)))
        for side, sent in ends:
            sides[side].feed(memoryview(sent))
        assert (1 in calls.open) == is_open
    # A server that has ended its side may still read the client's: messages are measured as before.
    calls = Calls(limits())
    client, server = ClientFrames(calls), ServerFrames(calls)
    client.feed(memoryview(call(1)))
    server.feed(memoryview(ended))
    with pytest.raises(RefusedError, match="1001 bytes"):
        client.feed(memoryview(frame(DATA, 0, 1, message(b"", length=1001))))


def test_all_clients_together_have_limits():
    """Calls cost the server threads, and messages that have begun memory: no number of connections gets round that."""
    every: list[Calls] = []
    for _ in range(5):
        every.append(Calls(limits(), lambda: (each for calls in every for each in calls.open.values())))
    for number in range(19):
        every[number % 5].limits = limits(max_streams=10)
        every[number % 5].begin(2 * number + 1)
    every[0].begin(101)
    with pytest.raises(RefusedError, match="more than 20 calls at once: ask later"):
        every[1].begin(103)
    every[2].open[5].server_done = True  # costs nothing any more
    every[1].begin(105)

    senders = [ClientFrames(calls) for calls in every]
    for sender in senders[:4]:
        stream = next(iter(sender.calls.open))
        sender.feed(memoryview(frame(DATA, 0, stream, message(b"x" * 500, length=999))))
    sender = ClientFrames(Calls(limits(max_pending=4000), every[0].of_all))
    sender.calls.open[1], sender.calls.highest = Call(0.0), 1
    with pytest.raises(RefusedError, match="too many messages are on their way already: ask later"):
        sender.feed(memoryview(frame(DATA, 0, 1, message(b"x", length=5))))
    stream = next(iter(senders[0].calls.open))
    senders[0].feed(memoryview(frame(DATA, 0, stream, b"x" * 499)))  # complete: it is no longer on its way
    sender = ClientFrames(sender.calls)
    sender.feed(memoryview(frame(DATA, 0, 1, message(b"x", length=5))))


def test_what_is_under_way_when_the_server_ends_a_call_is_no_fault():
    calls = Calls(limits())
    client, server = ClientFrames(calls), ServerFrames(calls)
    client.feed(memoryview(call(1) + frame(DATA, 0, 1, message(b"x" * 100)[:50])))
    server.feed(memoryview(frame(RST_STREAM, 0, 1, b"\0\0\0\0")))
    client.feed(memoryview(frame(DATA, END_STREAM, 1, b"x" * 50) + call(3)))
    assert list(calls.open) == [3]


def test_only_bytes_of_a_message_keep_it_open():
    frames = client_frames(stall_s=5)
    frames.feed(memoryview(call(1) + frame(DATA, 0, 1, message(b"x" * 100)[:20])))
    frames.calls.now = 4.0
    frames.feed(memoryview(frame(PING, 0, 0, b"12345678")))
    assert frames.calls.stalled() is None
    frames.calls.now = 5.1
    refused = frames.calls.stalled()
    assert refused is not None
    assert (refused.stream, refused.reason) == (1, "a message stood still for 5 s")
    frames.feed(memoryview(frame(DATA, 0, 1, b"x" * 85)))
    frames.calls.now = 1000.0
    assert frames.calls.stalled() is None, "a call without an unfinished message may wait"


def test_a_message_that_trickles_is_refused():
    frames = client_frames(stall_s=5, max_message=65536)
    frames.feed(memoryview(call(1) + frame(DATA, 0, 1, message(b"", length=65536))))
    for second in range(1, 7):
        frames.calls.now = float(second)
        frames.feed(memoryview(frame(DATA, 0, 1, b"x")))
        refused = frames.calls.stalled()
        assert (refused is not None) == (second > 6), second
    frames.calls.now = 6.1
    refused = frames.calls.stalled()
    assert refused is not None
    assert refused.reason == "a message took too long"


def test_calls_that_are_only_begun_and_cancelled_are_refused():
    frames = client_frames()
    for number in range(MAX_RESETS):
        frames.feed(memoryview(call(2 * number + 1) + frame(RST_STREAM, 0, 2 * number + 1, b"\0\0\0\x08")))
    assert frames.calls.open == {}
    with pytest.raises(RefusedError, match="cancelled within a second"):
        frames.feed(memoryview(call(9001) + frame(RST_STREAM, 0, 9001, b"\0\0\0\x08")))
    frames = client_frames()
    for number in range(3 * MAX_RESETS):
        frames.calls.now = number / MAX_RESETS * 1.1
        frames.feed(memoryview(call(2 * number + 1) + frame(RST_STREAM, 0, 2 * number + 1, b"\0\0\0\x08")))


# A real server, and clients as they should be


def test_answers_pass_unchanged(shared):
    with shared.client() as client:
        assert echo(client, b"hello") == b"hello"
        body = random.Random(1).randbytes(ALMOST_ALL)
        assert echo(client, body) == body
        (answer,) = client.do_action(flight.Action("bytes", b"20000000"))
        assert answer.body.to_pybytes() == b"x" * 20_000_000, "answers have no limit"


def test_a_kept_stream_and_many_at_once(shared):
    def exchange(seed: int) -> int:
        with shared.client() as client:
            writer, reader = client.do_exchange(flight.FlightDescriptor.for_command(b""))
            batch = pa.record_batch([pa.array([seed] * 100_000, type=pa.int64())], ["number"])
            writer.begin(batch.schema)
            for _ in range(5):
                writer.write_batch(batch)
                assert reader.read_chunk().data.equals(batch)
            writer.close()
        return seed

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(exchange, range(8))) == list(range(8))


def test_a_message_may_have_exactly_the_limit(shared):
    overhead = len(action(b"echo", b"x" * ALMOST_ALL)) - ALMOST_ALL
    body = b"x" * (LIMITS["max-message"] - overhead)
    assert len(action(b"echo", body)) == LIMITS["max-message"]
    with shared.client() as client:
        assert echo(client, body) == body
        with pytest.raises(pa.ArrowInvalid, match="1048577 bytes: at most 1048576"):
            echo(client, body + b"x")


def test_the_server_sees_who_asks(server, tmp_path_factory):
    folder = tmp_path_factory.mktemp("p")
    with running_guard(server, "--peers", str(folder)) as running:
        with running.client() as client:
            (answer,) = client.do_action(flight.Action("peer", b""))
        host, port = unquote(answer.body.to_pybytes().decode()).rpartition("/")[2].rsplit(":", 1)
        assert host == "127.0.0.1"
        assert port.isdecimal()
        assert list(folder.iterdir()) == []


def test_version_six_of_ip(server, tmp_path_factory):
    if not socket.has_ipv6:
        pytest.skip("NO IPv6 on this machine")
    folder = tmp_path_factory.mktemp("p")
    with running_guard(server, "--peers", str(folder), host="::1") as running, running.client() as client:
        (answer,) = client.do_action(flight.Action("peer", b""))
        assert unquote(answer.body.to_pybytes().decode()).rpartition("/")[2].startswith("[::1]:")


def test_clients_are_told_how_many_calls_they_may_make(server):
    with running_guard(server, max_streams=2) as running, running.client() as client, ThreadPoolExecutor(8) as pool:
        bodies = [f"{number}".encode() for number in range(8)]
        actions = [flight.Action("wait", b"0.05") for _ in bodies]
        assert [len(list(found)) for found in pool.map(client.do_action, actions)] == [1] * 8
        assert running.lines("refused") == []


# What is refused


def test_a_message_that_is_too_long_is_refused_in_words(shared, kept):
    with shared.client() as client:
        with pytest.raises(pa.ArrowInvalid, match=r"a message of [0-9]+ bytes: at most 1048576 are taken"):
            echo(client, b"x" * 2 * MEGABYTE)
        kept()
        assert echo(client, b"again") == b"again", "the client could not come back"
    assert "at most 1048576" in shared.reasons("refused")[-1]


def test_a_long_message_after_an_answer_has_begun_is_refused_in_words(shared, kept):
    with shared.client() as client:
        writer, reader = client.do_exchange(flight.FlightDescriptor.for_command(b""))
        batch = numbers(200_000)
        writer.begin(batch.schema)
        writer.write_batch(batch.slice(0, 10))
        assert reader.read_chunk().data.num_rows == 10
        writer.write_batch(batch)
        with pytest.raises(pa.ArrowInvalid, match=r"a message of 16[0-9]+ bytes: at most 1048576 are taken"):
            reader.read_chunk()
        kept()


def test_a_compressed_message_is_refused_in_words(shared, kept):
    with shared.connect() as client:
        client.send(start(), call(1), frame(DATA, 0, 1, message(b"x" * 10, compressed=1)))
        text, block = client.farewell()
    assert text == "a compressed message: only plain ones are taken"
    assert b"grpc-status\x0212" in block


@pytest.mark.parametrize(("asked", "trailers"), [(3, False), (1, True)], ids=["another call", "the same call"])
def test_a_refusal_waits_for_the_end_of_a_frame(server, asked, trailers):
    # The client reads nothing for so long that the guard is stuck within a frame of the answer when it refuses.
    with running_guard(server) as running, running.connect() as client:
        client.send(start(window=1 << 30), call(1, ACTION), frame(DATA, 0, 1, message(action(b"bytes", b"50000000"))))
        frames = client.frames()
        while next(frames)[0] != DATA:
            pass
        time.sleep(0.3)
        client.send(call(3), frame(DATA, 0, asked, message(b"", length=1 << 30)))
        wait_until(lambda: running.lines("refused"))
        rest = list(frames)
    assert all(payload == b"x" * len(payload) for kind, _, _, payload in rest if kind == DATA)
    assert 10 * 16384 < sum(len(payload) for *_, payload in rest) < 40_000_000, "it does not wait for the whole answer"
    assert [kind for kind, *_ in rest[-2:]] == [HEADERS, GOAWAY]
    assert rest[-2][1:3] == (END_HEADERS | END_STREAM, asked)
    assert (b":status" not in rest[-2][3]) == trailers
    assert {kind for kind, *_ in rest[:-2]} <= {DATA, PING, WINDOW_UPDATE}


def test_nothing_follows_the_frame_that_a_refusal_waits_for(tmp_path_factory):
    path = tmp_path_factory.mktemp("s") / "s"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        with running_guard(str(path)) as running, running.connect() as client:
            client.send(start(), call(1))
            with listener.accept()[0] as accepted:
                answer = frame(HEADERS, 0, 1, BLOCK), frame(CONTINUATION, END_HEADERS, 1, b"")
                accepted.sendall(frame(SETTINGS, 0, 0, b"") + answer[0] + answer[1][:4])
                frames = client.frames()
                assert [next(frames)[0] for _ in range(2)] == [SETTINGS, HEADERS]
                client.send(frame(DATA, 0, 1, message(b"", length=1 << 30)))
                wait_until(lambda: running.lines("refused"))
                accepted.sendall(answer[1][4:] + frame(DATA, 0, 1, b"too late") + frame(DATA, 0, 1, b"")[:5])
                assert [kind for kind, *_ in frames] == [CONTINUATION, HEADERS, GOAWAY]


def test_a_refused_client_may_hang_up_itself(shared):
    # gRPC clients that lose their connection while they send forget the status that has come before.
    with shared.connect() as client:
        client.send(start(), call(1), frame(DATA, 0, 1, message(b"", length=1 << 30)))
        assert client.farewell()[0].startswith("a message of 1073741824 bytes")
        client.sock.settimeout(0.3)
        with pytest.raises(TimeoutError):
            client.sock.recv(1)
        client.sock.settimeout(20)
        assert client.rest() == b"", "but not for ever"


@pytest.mark.parametrize(
    "sent",
    [b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"\x16\x03\x01\x02\x00", b"\0" * 100, PREFACE[:-1] + b"\r", b"\n"],
    ids=["http", "tls", "zeros", "almost", "newline"],
)
def test_another_protocol_gets_no_answer(shared, kept, sent):
    with shared.connect() as client:
        client.send(sent)
        assert client.rest() == b""
    assert shared.reasons("closed")[-1] == "does not speak HTTP/2"


def test_a_length_that_lies_is_not_waited_for(server):
    with running_guard(server, stall_seconds=0.5) as running, running.client() as other:
        with running.connect() as client:
            client.send(start(), call(1), frame(DATA, 0, 1, message(b"x" * 10, length=1000)))
            text, block = client.farewell()
            assert echo(other, b"meanwhile") == b"meanwhile"
        assert text == "a message stood still for 0.5 s"
        assert b"grpc-status\x014" in block


def test_who_says_nothing_is_not_waited_for(server):
    with running_guard(server, stall_seconds=0.3) as running:
        with running.connect() as silent, running.connect() as slow:
            slow.send(PREFACE[:10])
            assert silent.rest() == slow.rest() == b""
        assert running.reasons("closed") == ["no HTTP/2 connection within 0.3 s"] * 2


def test_who_does_nothing_is_told_to_go(server):
    with running_guard(server, idle_seconds=0.5) as running:
        with running.connect() as client:
            client.send(start())
            assert client.farewell() == ("idle for 0.5 s", b"")
        with running.client() as client:
            assert echo(client, b"1") == b"1"
            wait_until(lambda: len(running.lines("refused")) == 2)
            assert echo(client, b"2") == b"2", "a client does not notice: it connects again"


def test_too_many_calls_on_one_connection(shared, kept):
    with shared.connect() as client:
        client.send(start(), *(call(2 * number + 1) for number in range(5)))
        text, block = client.farewell()
    assert text == "more than 4 calls at once on one connection"
    assert b"grpc-status\x018" in block


def test_too_many_connections(server):
    with running_guard(server, max_connections=3) as running:
        with running.client() as client:
            assert echo(client, b"first") == b"first"
            taken = [running.connect() for _ in range(2)]
            wait_until(lambda: running.connect().rest() == b"")
            assert running.reasons("refused") != []
            assert set(running.reasons("refused")) == {"more than 3 connections"}
            assert echo(client, b"goes on") == b"goes on"
            for each in taken:
                each.sock.close()
        with running.client() as client:
            wait_until(lambda: answers(client))


def answers(client: flight.FlightClient) -> bool:
    try:
        return echo(client, b"x") == b"x"
    except flight.FlightUnavailableError:
        return False


def test_a_reader_that_stands_still(server):
    with running_guard(server, stall_seconds=1) as running, running.client() as other:
        before, used = running.resident_bytes(), cpu_seconds(running.process.pid)
        with running.connect() as client:
            client.send(start(window=1 << 30), whole_call(1, b"bytes", b"100000000"))
            wait_until(lambda: running.lines("closed"))
            assert echo(other, b"meanwhile") == b"meanwhile"
        assert running.reasons("closed") == ["did not read its answer for 1 s"]
        assert running.resident_bytes() - before < 4 * MEGABYTE
        assert cpu_seconds(running.process.pid) - used < 0.5, "it spins"


def test_slow_readers_get_what_is_theirs(shared):
    sizes = (4_000_000, 5_000_000)
    with shared.connect() as one, shared.connect() as other, ThreadPoolExecutor(2) as pool:
        for client, size in zip((one, other), sizes, strict=True):
            client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
            client.send(start(window=1 << 30), whole_call(1, b"random", str(size).encode()))
        time.sleep(0.3)  # until nothing more can be sent to either
        bodies = list(pool.map(lambda client: client.answer(1), (one, other)))
    for body, size in zip(bodies, sizes, strict=True):
        assert body[-size:] == random.Random(size).randbytes(size)


def test_a_server_that_stands_still(tmp_path_factory):
    path = tmp_path_factory.mktemp("s") / "s"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        with running_guard(str(path), idle_seconds=1, max_message=1 << 30) as running, running.connect() as client:
            before, used = running.resident_bytes(), cpu_seconds(running.process.pid)
            client.sock.settimeout(0.3)
            client.send(start(), call(1), frame(DATA, 0, 1, message(b"", length=1 << 30)))
            with listener.accept()[0] as accepted:
                accepted.sendall(frame(SETTINGS, 0, 0, b""))
                with suppress(TimeoutError):
                    for _ in range(1000):
                        client.send(frame(DATA, 0, 1, b"x" * 16384))
                wait_until(lambda: running.lines("refused"))
            assert running.reasons("refused") == ["idle for 1 s"]
            assert running.resident_bytes() - before < 4 * MEGABYTE
            assert cpu_seconds(running.process.pid) - used < 0.5, "it spins"


def test_a_server_that_is_not_there(tmp_path):
    with running_guard(str(tmp_path / "nothing")) as running:
        with running.client() as client, pytest.raises(flight.FlightUnavailableError):
            echo(client, b"x")
        assert running.reasons("closed")[0].startswith("the server cannot be reached: ")


def test_a_server_that_goes_away():
    with echo_server() as path:
        context = running_guard(path)
        running = context.__enter__()
        client = running.client()
        assert echo(client, b"x") == b"x"
    with pytest.raises(flight.FlightUnavailableError):
        echo(client, b"x")
    client.close()
    context.__exit__(None, None, None)


# Whatever comes


@pytest.mark.parametrize("num", [60, pytest.param(10_000, marks=pytest.mark.soak)])
def test_garbage_harms_nobody(shared, kept, num):
    """Mutations of good connections, at every level: the guard neither fails nor grows, and answers others."""
    chance = random.Random(7)
    good = start() + whole_call(1, b"echo", b"hello" * 50) + call(3) + frame(DATA, 0, 3, message(b"x" * 50))
    before = 0
    for number in range(num):
        sent = bytearray(good if number % 3 else PREFACE + chance.randbytes(2000))
        for _ in range(chance.randrange(1, 6)):
            at = chance.randrange(len(PREFACE), len(sent))
            match chance.randrange(3):
                case 0:
                    sent[at] = chance.randrange(256)
                case 1:
                    del sent[at : at + chance.randrange(1, 20)]
                case _:
                    sent[at:at] = chance.randbytes(chance.randrange(1, 20))
        with shared.connect() as client:
            client.send(bytes(sent))
            client.sock.settimeout(0.01)
            with suppress(TimeoutError):  # what it got was not wrong enough, or not complete
                client.rest()
        if number == num // 2:
            before = shared.resident_bytes()
    kept()
    assert shared.lines("defect") == []
    wait_until(lambda: shared.process.poll() is None)
    assert shared.resident_bytes() - before < 2 * MEGABYTE


def test_memory_does_not_grow_with_refused_connections(server):
    def refuse_many(num: int) -> None:
        for _ in range(num):
            with running.connect() as client:
                client.send(start(), call(1), frame(DATA, 0, 1, message(b"x" * 10_000, length=1 << 30)))
                assert client.farewell()[0].startswith("a message of 1073741824 bytes")

    with running_guard(server) as running:
        refuse_many(50)
        before = running.resident_bytes()
        refuse_many(300)
        assert running.resident_bytes() - before < MEGABYTE
        said = running.lines("refused")
        assert len(said) < 350
        time.sleep(1.1)
        held_back = sum(int(reason.split()[0]) for reason in running.reasons("held back"))
        assert len(running.lines("refused")) + held_back == 350, "each is either said or counted"


def test_a_log_that_nobody_reads_stops_nothing(server):
    reading, writing = os.pipe()
    parent = os.pipe()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        words = [word for name, value in LIMITS.items() for word in (f"--{name}", str(value))]
        words += ["--listen-fd", str(listener.fileno()), "--parent-fd", str(parent[0]), "--server", server]
        os.write(writing, b" " * 65536)  # full
        process = subprocess.Popen(
            [sys.executable, "-I", guard.__file__, *words], pass_fds=(listener.fileno(), parent[0]), stderr=writing
        )
        address = listener.getsockname()
    try:
        for _ in range(5):
            with RawClient(socket.create_connection(address, timeout=20)) as client:
                client.send(b"GET / HTTP/1.1\r\n\r\n" * 2)
                assert client.rest() == b""
        with flight.connect(f"grpc://127.0.0.1:{address[1]}") as client:
            assert echo(client, b"x") == b"x"
    finally:
        for each in (*parent, reading, writing):
            os.close(each)
        assert process.wait(20) == 3


def test_running_out_of_files_is_survived(server):
    with running_guard(server, max_connections=100) as running, running.client() as client:
        assert echo(client, b"x") == b"x"
        opened = len(list(Path(f"/proc/{running.process.pid}/fd").iterdir()))
        resource.prlimit(running.process.pid, resource.RLIMIT_NOFILE, (opened + 3, opened + 3))
        waiting = [running.connect() for _ in range(10)]
        wait_until(lambda: running.lines("accepting later"))
        used = cpu_seconds(running.process.pid)
        time.sleep(0.5)
        assert cpu_seconds(running.process.pid) - used < 0.25, "it spins"
        assert echo(client, b"goes on") == b"goes on"
        for each in waiting:
            each.sock.close()
        with running.client() as late:
            wait_until(lambda: answers(late))


def cpu_seconds(process: int) -> float:
    return sum(map(int, process_status(process)[11:13])) / os.sysconf("SC_CLK_TCK")


def process_status(process: int) -> list[str]:
    """The fields of /proc/PID/stat from the state on."""
    return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()


# How it ends


def test_it_ends_with_its_parent(server):
    with running_guard(server) as running, running.client() as client:
        assert echo(client, b"x") == b"x"
        os.close(os.dup(running.parent))  # one of two holders: nothing happens
        assert echo(client, b"x") == b"x"
        os.dup2(os.open(os.devnull, os.O_RDONLY), running.parent)
        assert running.process.wait(20) == 3


def test_it_ends_with_a_parent_that_is_killed(server):
    program = f"""
import os, socket, subprocess, sys, time
listener, (reading, writing) = socket.create_server(("127.0.0.1", 0)), os.pipe()
words = {[word for name, value in LIMITS.items() for word in (f"--{name}", str(value))]!r}
words += ["--listen-fd", str(listener.fileno()), "--parent-fd", str(reading), "--server", {server!r}]
process = subprocess.Popen(
    [sys.executable, "-I", {guard.__file__!r}, *words],
    pass_fds=(listener.fileno(), reading), stderr=subprocess.PIPE,
)
process.stderr.readline()
print(process.pid, flush=True)
time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert is_running(child)
        parent.kill()
    wait_until(lambda: not is_running(child))


def is_running(process: int) -> bool:
    try:
        return process_status(process)[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_drain_delivers_what_is_under_way(server):
    with running_guard(server) as running, running.connect() as client:
        client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        client.send(start(window=1 << 30), whole_call(1, b"bytes", b"6000000"))
        body = b""
        for kind, _, _, payload in client.frames():
            if kind != DATA:
                continue
            if not body:
                running.process.send_signal(signal.SIGTERM)
                wait_until(lambda: not can_connect(running.address))
            body += payload
            time.sleep(0.002)
        assert running.process.wait(20) == 0
        assert body.count(b"x") == 6_000_000
        assert running.lines("refused") == []


def can_connect(address: tuple[str, int]) -> bool:
    try:
        socket.create_connection(address, timeout=20).close()
    except ConnectionError:
        return False
    return True


def test_a_drain_does_not_wait_for_ever(server):
    with running_guard(server, grace_seconds=0.5) as running, running.connect() as client:
        client.send(start(window=1 << 30), whole_call(1, b"bytes", b"100000000"))
        next(client.frames())
        running.process.send_signal(signal.SIGTERM)
        assert running.process.wait(20) == 0


def test_a_drained_client_is_told_why(server):
    with running_guard(server) as running, running.client() as client:
        writer, reader = client.do_exchange(flight.FlightDescriptor.for_command(b""))
        batch = numbers(10)
        writer.begin(batch.schema)
        writer.write_batch(batch)
        assert reader.read_chunk().data.equals(batch)
        running.process.send_signal(signal.SIGTERM)
        with pytest.raises(flight.FlightUnavailableError, match="the service is shutting down"):
            reader.read_chunk()
        assert running.process.wait(20) == 0


def test_interrupting_is_left_to_the_parent(server):
    with running_guard(server) as running, running.client() as client:
        running.process.send_signal(signal.SIGINT)
        assert echo(client, b"x") == b"x"


# TLS


@pytest.fixture(scope="module")
def secret(server):
    """A guard that ends TLS."""
    with running_guard(server, *TLS, stall_seconds=1) as running:
        yield running


def test_tls_passes_everything_unchanged(secret):
    with secret.client(tls_root_certs=ROOTS) as client:
        body = random.Random(1).randbytes(ALMOST_ALL)
        assert echo(client, body) == body
        (answer,) = client.do_action(flight.Action("bytes", b"20000000"))
        assert answer.body.to_pybytes() == b"x" * 20_000_000
        writer, reader = client.do_exchange(flight.FlightDescriptor.for_command(b""))
        batch = numbers(100_000)
        writer.begin(batch.schema)
        for _ in range(10):
            writer.write_batch(batch)
            assert reader.read_chunk().data.equals(batch)
        writer.close()


def test_tls_refuses_in_words(secret):
    with secret.client(tls_root_certs=ROOTS) as client:
        with pytest.raises(pa.ArrowInvalid, match=r"a message of [0-9]+ bytes: at most 1048576 are taken"):
            echo(client, b"x" * 2 * MEGABYTE)
        assert echo(client, b"again") == b"again"


def test_tls_of_an_unknown_server_is_not_trusted(secret):
    with secret.client() as plain_roots, pytest.raises(flight.FlightUnavailableError):
        echo(plain_roots, b"x")


def test_tls_is_not_optional(secret):
    with RawClient(socket.create_connection(secret.address, timeout=20)) as client:
        client.send(start())
        assert PREFACE not in client.rest()
    assert any(reason.startswith("TLS: ") for reason in secret.reasons("closed"))
    with RawClient(socket.create_connection(secret.address, timeout=20)) as silent:
        assert silent.rest() == b""
    assert "no HTTP/2 connection within 1 s" in secret.reasons("closed")


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion")
def test_tls_of_old_versions_is_not_spoken(secret):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(CERTIFICATES / "server.pem")
    context.set_alpn_protocols(["h2"])
    with socket.create_connection(secret.address, timeout=20) as sock:
        new = context.wrap_socket(sock, server_hostname="localhost")
        assert (new.selected_alpn_protocol(), new.version()) == ("h2", "TLSv1.3")
        new.close()
    context.minimum_version = ssl.TLSVersion.TLSv1
    context.maximum_version = ssl.TLSVersion.TLSv1_1
    context.set_ciphers("ALL:@SECLEVEL=0")
    with socket.create_connection(secret.address, timeout=20) as sock, pytest.raises(ssl.SSLError):
        context.wrap_socket(sock, server_hostname="localhost")


def test_tls_bytes_that_the_selector_cannot_see_are_read(server):
    # Records that do not fill one read exactly: its end splits one, and no more comes that would wake the guard.
    record, context = 10_000, ssl.create_default_context(cafile=CERTIFICATES / "server.pem")
    with running_guard(server, *TLS, receive_buffer=2 * MEGABYTE) as running:
        sock = context.wrap_socket(socket.create_connection(running.address, timeout=5), server_hostname="localhost")
        with RawClient(sock) as client:
            client.send(start(window=1 << 30))
            next(client.frames())
            # The server grants its large window to those who have acknowledged it.
            sent = frame(SETTINGS, ACK, 0, b"") + whole_call(1, b"echo", b"x" * 267_000)
            assert guard.READ < len(sent) < -(-guard.READ // record) * record
            running.process.send_signal(signal.SIGSTOP)
            for at in range(0, len(sent), record):
                client.send(sent[at : at + record])
            time.sleep(0.3)  # until all of it lies in the guard's kernel
            running.process.send_signal(signal.SIGCONT)
            assert client.answer(1).count(b"x") == 267_000


def test_tls_reader_that_stands_still(secret):
    context = ssl.create_default_context(cafile=CERTIFICATES / "server.pem")
    sock = context.wrap_socket(socket.create_connection(secret.address, timeout=20), server_hostname="localhost")
    with RawClient(sock) as client, secret.client(tls_root_certs=ROOTS) as other:
        client.send(start(window=1 << 30), whole_call(1, b"bytes", b"100000000"))
        used = cpu_seconds(secret.process.pid)
        wait_until(lambda: "did not read its answer for 1 s" in secret.reasons("closed"))
        assert cpu_seconds(secret.process.pid) - used < 0.5, "it spins"
        assert echo(other, b"x") == b"x"


# The program


def test_it_needs_nothing_but_python():
    tree = ast.parse(Path(guard.__file__).read_text())
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name.split(".")[0] for name in imported} <= set(sys.stdlib_module_names)


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ([], "required"),
        (["--max-streams", "0"], "invalid _count value"),
        (["--tls-cert", "x.pem"], "belong together"),
        (["--tls-cert", "x.pem", "--tls-key", "x.key"], "cannot start"),
        (["--peers", "/" + "x" * 60], "longer than"),
        (["--listen-fd", "0"], "cannot start"),
    ],
)
def test_usage(words, complaint):
    options = [word for name, value in LIMITS.items() for word in (f"--{name}", str(value))]
    with socket.create_server(("127.0.0.1", 0)) as listener:
        options += ["--listen-fd", str(listener.fileno()), "--parent-fd", "0", "--server", "x"]
        done = subprocess.run(
            [sys.executable, "-I", guard.__file__, *([*options, *words] if words else [])],
            pass_fds=[listener.fileno()],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert done.returncode == 2, done.stderr
    assert complaint in done.stderr


def test_several_threads_of_one_client_share_its_connection(shared):
    with shared.client() as client:
        found: list[bytes] = []
        threads = [threading.Thread(target=lambda: found.append(echo(client, b"y"))) for _ in range(10)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert found == [b"y"] * 10
