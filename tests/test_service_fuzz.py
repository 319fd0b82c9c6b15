"""Thousands of damaged messages to a real service: no crash, no hang, no growth, and others get the right answers.

Two kinds. Bytes: what a good client sent is recorded, damaged anywhere (HTTP/2, gRPC, protocol buffer, Arrow, JSON) and
sent through the guard. Calls: whole Flight calls with documents, schemas and batches that nobody would ask with. A
failure names its seed, which alone decides what was sent.
"""

from __future__ import annotations

import contextlib
import json
import random
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from guard_fixtures import PATIENCE_S, PREFACE, frame
from memory_fixtures import NUM_TRAINING, assert_same, built, open_version, queries_at, wide_table
from pyarrow import flight
from serve_fixtures import Serving, cli_serving, small_stacks

from memory_index.leakage import Policy
from memory_index.local import LocalMemory
from memory_index.service import wire
from memory_index.service.guard import DATA
from memory_index.service.remote import RemoteMemory
from memory_index.service.wire import Question
from memory_index.types import Queries
from memory_index.versions.store import Store

NUM_SHORT, NUM_LONG = 250, 6000  # of each kind, in `make test` and in `make soak`
GROWTH = 48 << 20  # bytes that both processes may grow by after a quarter of the messages
MOST_S = 5.0  # that one message may keep a good client waiting
NUMBERS = (0, 1, 2, 7, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 1 << 40, (1 << 63) - 1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    made = tmp_path_factory.mktemp("fuzzed")
    built(made)
    return made


@pytest.fixture(scope="module")
def local(folder) -> LocalMemory:
    return open_version(Store(folder).resolve("small"), threads=1)


@pytest.fixture(scope="module")
def shared(folder) -> Iterator[Serving]:
    with cli_serving(folder, "--max-memory-mb", "512", "--access-log", str(folder / "access.log")) as serving:
        yield serving


def some() -> Queries:
    return queries_at(wide_table(), range(NUM_TRAINING, NUM_TRAINING + 6), Policy.CAUSAL)


class Good:
    """A client that must not notice anything of what others send."""

    def __init__(self, serving: Serving, local: LocalMemory) -> None:
        self.serving = serving
        self.memory = serving.memory()
        self.expected = local.search(some(), 3)
        self.warm = 0
        self.check()

    def check(self) -> None:
        started = time.monotonic()
        assert_same(self.memory.search(some(), 3), self.expected)
        assert time.monotonic() - started < MOST_S
        assert self.serving.process.poll() is None

    def grown(self) -> int:
        """Bytes since it was asked first."""
        now = self.serving.resident_bytes()
        self.warm = self.warm or now
        return now - self.warm


def throw(good: Good, num: int, seed: int, one: Callable[[random.Random], object]) -> None:
    """Send so many, each decided by its own seed, and look after a good client every few."""
    for number in range(num):
        try:
            one(random.Random(f"{seed}-{number}"))
            if number % 5 == 0:
                good.check()
        except Exception as error:
            raise AssertionError(f"seed '{seed}-{number}': {error!r}") from error
        if number == num // 4:
            good.grown()
    good.check()
    assert good.grown() < GROWTH
    assert "Traceback" not in good.serving.said(), good.serving.said()
    assert '"event": "defect"' not in (good.serving.folder / "stderr").read_text()


# Bytes


def recorded(serving: Serving, local: LocalMemory) -> bytes:
    """What a client sends that opens a version, asks twice, and fetches a file."""
    sent = bytearray()
    with socket.create_server(("127.0.0.1", 0)) as listening, ThreadPoolExecutor(3) as pool:
        ends: list[socket.socket] = []

        def relay(one: socket.socket, other: socket.socket, kept: bytearray | None) -> None:
            with contextlib.suppress(OSError):
                while found := one.recv(1 << 16):
                    if kept is not None:
                        kept += found
                    other.sendall(found)
            with contextlib.suppress(OSError):
                other.shutdown(socket.SHUT_WR)

        def accept() -> None:
            theirs, _ = listening.accept()
            ours = socket.create_connection(("127.0.0.1", serving.port))
            ends.extend((theirs, ours))
            pool.submit(relay, ours, theirs, None)
            relay(theirs, ours, sent)

        pool.submit(accept)
        with flight.FlightClient(f"grpc://127.0.0.1:{listening.getsockname()[1]}") as client:
            list(client.do_action(flight.Action(wire.OPEN, b'{"ref": "small"}')))
            command = flight.FlightDescriptor.for_command(json.dumps({"fingerprint": local.fingerprint}).encode())
            writer, reader = client.do_exchange(command)
            writer.begin(wire.QUESTION)
            for k in (2, 3):
                asked = wire.write_question(Question(some(), k, None, None, None, 0, 1.0))
                writer.write_with_metadata(asked.batch, asked.document)
                reader.read_chunk()
            path = next(path for path in local.manifest.files if path.endswith("series.parquet"))
            ticket = json.dumps({"fingerprint": local.fingerprint, "file": path}).encode()
            client.do_get(flight.Ticket(ticket)).read_all()
            writer.done_writing()
            writer.close()
        for end in ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
    assert sent.startswith(PREFACE)
    return bytes(sent)


def frames_of(sent: bytes) -> list[bytes]:
    """The frames behind the preface."""
    found, at = [], len(PREFACE)
    while at + 9 <= len(sent):
        length = int.from_bytes(sent[at : at + 3], "big")
        found.append(sent[at : at + 9 + length])
        at += 9 + length
    return found


def damaged(chance: random.Random, text: bytes) -> bytes:
    """Some bytes flipped, cut, repeated, put in, exchanged, or replaced by a number that is a border of something."""
    found = bytearray(text)
    for _ in range(chance.randrange(1, 5)):
        if not found:
            break
        at, num = chance.randrange(len(found)), chance.randrange(1, 40)
        match chance.randrange(7):
            case 0:
                found[at] ^= 1 << chance.randrange(8)
            case 1:
                del found[at : at + num]
            case 2:
                found[at:at] = found[at : at + num]
            case 3:
                found[at:at] = chance.randbytes(num)
            case 4:
                other = chance.randrange(len(found))
                found[at], found[other] = found[other], found[at]
            case 5:
                form = chance.choice(("<i", ">i", "<q"))
                number = chance.choice(NUMBERS) & (0x7FFFFFFF if form != "<q" else (1 << 63) - 1)
                found[at : at + struct.calcsize(form)] = struct.pack(form, chance.choice((number, -number)))
            case _:
                del found[at:]
    return bytes(found)


def damaged_stream(chance: random.Random, frames: list[bytes]) -> bytes:
    """A connection with damage at one level: its bytes, its frames, or inside a message with lengths that are right."""
    frames = list(frames)
    match chance.randrange(5):
        case 0:
            return PREFACE + damaged(chance, b"".join(frames))
        case 1:  # whole frames lost, repeated, exchanged
            for _ in range(chance.randrange(1, 4)):
                one, other = chance.randrange(len(frames)), chance.randrange(len(frames))
                match chance.randrange(3):
                    case 0:
                        frames[one], frames[other] = frames[other], frames[one]
                    case 1:
                        frames.insert(other, frames[one])
                    case _ if len(frames) > 1:
                        del frames[one]
            return PREFACE + b"".join(frames)
        case _:  # so that it passes the guard, and reaches protocol buffer, Arrow and JSON
            chosen = [number for number, each in enumerate(frames) if each[3] == DATA and len(each) > 9 + 5]
            number = chance.choice(chosen)
            flags, stream, payload = frames[number][4], int.from_bytes(frames[number][5:9], "big"), frames[number][9:]
            inside = damaged(chance, payload[5:])[: (1 << 24) - 6]
            sent = b"\0" + len(inside).to_bytes(4, "big") + inside if payload[:1] == b"\0" else inside
            frames[number] = frame(DATA, flags, stream, sent)
            return PREFACE + b"".join(frames)


@pytest.mark.parametrize("num", [NUM_SHORT, pytest.param(NUM_LONG, marks=pytest.mark.soak)])
def test_damaged_bytes_harm_nobody(folder, shared, local, num):
    good, frames = Good(shared, local), frames_of(recorded(shared, local))
    log = folder / "access.log"

    def send(chance: random.Random) -> None:
        with (
            contextlib.suppress(ConnectionError, TimeoutError),
            socket.create_connection(("127.0.0.1", shared.port), timeout=PATIENCE_S) as raw,
        ):
            raw.sendall(damaged_stream(chance, frames))
            raw.settimeout(0.02)  # what is not wrong enough is not ended by the service: hang up
            while raw.recv(1 << 20):
                pass

    throw(good, num, 1, send)
    # They have come as far as that: told apart from those that the guard or gRPC has refused.
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert sum(line.get("status") == "UsageError" for line in lines) > num // 20
    assert sum(line.get("event") == "refused" for line in lines) > num // 20


# Calls


def any_json(chance: random.Random, depth: int = 0) -> Any:
    """Anything that JSON can be."""
    kinds: list[Callable[[], Any]] = [
        lambda: None,
        lambda: chance.choice((True, False)),
        lambda: chance.choice((1, -1)) * chance.choice((*NUMBERS, 1 << 70, 10**400)),
        lambda: chance.choice((0.5, -1e308, 1e-300, float("nan"), float("inf"))),
        lambda: "".join(chance.choices("a\0\ud800\U0001f600'\"\\/%{}\n", k=chance.randrange(30))),
        lambda: chance.choice(("own", "pooled", "joint", "causal", "disjoint", "load", "flat", "beat", "x" * 5000)),
    ]
    if depth < 4:
        kinds.append(lambda: [any_json(chance, depth + 1) for _ in range(chance.randrange(5))])
        kinds.append(lambda: {str(any_json(chance, 9))[:20]: any_json(chance, depth + 1) for _ in range(3)})
    return chance.choice(kinds)()


def wrong_document(chance: random.Random) -> bytes:
    """The document of a good question with some of it replaced, or something else altogether."""
    queries = some()
    entries = json.loads(wire.write_question(Question(queries, 3, None, None, None, 0, 1.0)).document)
    for _ in range(chance.randrange(1, 4)):
        entries[chance.choice([*entries, "more"])] = any_json(chance)
    if chance.random() < 0.2:
        entries["where"] = {name: any_json(chance) for name in ("series_id", "after", "before")}
    text = json.dumps(entries if chance.random() < 0.9 else any_json(chance)).encode()
    if chance.random() < 0.2:
        text = damaged(chance, text)
    if chance.random() < 0.02:
        text = chance.choice((b"[" * 200_000, b'{"a":' * 100_000, b"9" * 100_000, b" " * 5_000_000))
    return text


def any_type(chance: random.Random, depth: int = 0) -> pa.DataType:
    """Any type of a column."""
    plain = [pa.float32(), pa.float64(), pa.int64(), pa.string(), pa.binary(), pa.null(), pa.bool_(), pa.date32()]
    plain += [pa.timestamp("s"), pa.timestamp("ns", "UTC"), pa.decimal128(20, 3), pa.dictionary(pa.int8(), pa.string())]
    if depth > 5 or chance.random() < 0.5:
        return chance.choice(plain)
    inner = any_type(chance, depth + 1)
    if pa.types.is_dictionary(inner):
        return inner
    return chance.choice(
        (pa.list_(inner), pa.large_list(inner), pa.list_(inner, chance.randrange(1, 40)), pa.struct([("a", inner)]))
    )


def wrong_batch(chance: random.Random) -> pa.RecordBatch:
    """The batch of a question with other columns, lines, values or nulls."""
    batch = wire.write_question(Question(some(), 3, None, None, None, 0, 1.0)).batch
    values, origin = (column.flatten().to_pylist() for column in batch.columns)
    match chance.randrange(6):
        case 0:
            schema = pa.schema([(name, any_type(chance)) for name in chance.choices([*wire.QUESTION.names, ""], k=3)])
            arrays = [pa.nulls(chance.choice((0, 3)), field.type) for field in schema]
            rows = min(len(array) for array in arrays)
            return pa.RecordBatch.from_arrays([array.slice(0, rows) for array in arrays], schema=schema)
        case 1:
            lines = [wire.QUESTION.field(0).type, wire.QUESTION.field(1).type]
            cut = [values[chance.randrange(len(values)) :], origin[: chance.randrange(len(origin))]]
            return pa.RecordBatch.from_arrays(
                [pa.array([part], kind) for part, kind in zip(cut, lines, strict=True)], schema=wire.QUESTION
            )
        case 2:
            odd = [chance.choice((0.0, np.nan, np.inf, -np.inf, 1e38)) for _ in values]
            return batch.set_column(0, batch.schema.field(0), pa.array([odd], batch["values"].type))
        case 3:
            odd = [chance.choice((0, 1, -1)) * chance.choice(NUMBERS) for _ in origin]
            return batch.set_column(1, batch.schema.field(1), pa.array([odd], batch["origin"].type))
        case 4:
            gone = [None if chance.random() < 0.3 else time for time in origin]
            return batch.set_column(1, batch.schema.field(1), pa.array([gone], batch["origin"].type))
        case _:
            return pa.concat_batches([batch] * chance.choice((2, 60))).slice(0, chance.randrange(60))


def wrong_call(chance: random.Random, client: flight.FlightClient, local: LocalMemory) -> None:
    """One call of a kind that there is, with something wrong in it. Raises what the service answers."""
    options = flight.FlightCallOptions(
        timeout=MOST_S, headers=[(b"x-more", chance.choice((b"", b"x" * 8000, b"Bearer x")))] * chance.randrange(3)
    )
    fingerprint = chance.choice((local.fingerprint, local.fingerprint, local.fingerprint, "0" * 64, any_json(chance)))
    match chance.randrange(10):
        case 0:
            action = flight.Action(
                chance.choice((wire.OPEN, wire.STATUS, "", "\u00e9" * 300)),
                chance.choice((json.dumps({"ref": any_json(chance)}).encode(), chance.randbytes(50), b"")),
            )
            list(client.do_action(action, options))
        case 1:
            path = chance.choice((*local.manifest.files, "../x", "", any_json(chance)))
            ticket = json.dumps({"fingerprint": fingerprint, "file": path}).encode()
            client.do_get(flight.Ticket(chance.choice((ticket, damaged(chance, ticket)))), options).read_all()
        case 2:
            descriptor = chance.choice(
                (flight.FlightDescriptor.for_path("a"), flight.FlightDescriptor.for_command(b"x"))
            )
            match chance.randrange(4):
                case 0:
                    client.get_flight_info(descriptor, options)
                case 1:
                    list(client.list_flights(b"x", options))
                case 2:
                    client.get_schema(descriptor, options)
                case _:
                    writer, _ = client.do_put(descriptor, wire.ANSWER, options)
                    writer.close()
        case _:
            command = chance.choice((json.dumps({"fingerprint": fingerprint}).encode(), chance.randbytes(20)))
            wanted = json.dumps({"fingerprint": local.fingerprint}).encode()
            descriptor = flight.FlightDescriptor.for_command(chance.choice((wanted, wanted, wanted, command)))
            _wrong_questions(chance, *client.do_exchange(descriptor, options))


def _wrong_questions(chance: random.Random, writer: Any, reader: Any) -> None:
    batch = wrong_batch(chance)
    packed = pa.ipc.IpcWriteOptions(compression=chance.choice((None, None, "zstd", "lz4")))
    try:
        writer.begin(batch.schema, options=packed)
        for _ in range(chance.randrange(1, 3)):
            match chance.randrange(4):
                case 0:
                    writer.write_metadata(wrong_document(chance))
                case 1:
                    writer.write_batch(batch)
                case _:
                    writer.write_with_metadata(batch, wrong_document(chance))
            reader.read_chunk()
    finally:
        reader.cancel()
        with contextlib.suppress(flight.FlightError, pa.ArrowException, OSError):
            writer.close()


REFUSALS = (flight.FlightError, pa.ArrowException, OSError, StopIteration, NotImplementedError)


@pytest.mark.parametrize("num", [NUM_SHORT, pytest.param(NUM_LONG, marks=pytest.mark.soak)])
def test_calls_that_make_no_sense_harm_nobody(shared, local, num):
    good, answered, refused = Good(shared, local), [], []

    def send(chance: random.Random) -> None:
        with flight.FlightClient(shared.address) as client:
            try:
                wrong_call(chance, client, local)
                answered.append(1)
            except flight.FlightTimedOutError as error:
                raise AssertionError("no answer in time") from error
            except REFUSALS as error:
                refused.append(str(error))

    throw(good, num, 2, send)
    assert len(answered) < num / 2
    # What is refused for a reason says it; nothing has failed for an unknown one.
    assert not [each for each in refused if "its log says how" in each]


def test_many_damage_it_at_once(shared, local):
    """Four at a time, beside a good client."""
    good, frames, end = Good(shared, local), frames_of(recorded(shared, local)), threading.Event()

    def send(seed: int) -> None:
        number = 0
        while not end.is_set():
            number += 1
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", shared.port)) as raw:
                raw.settimeout(0.05)
                raw.sendall(damaged_stream(random.Random(f"{seed}-{number}"), frames))
                while raw.recv(1 << 20):
                    pass

    with ThreadPoolExecutor(4) as pool:
        throwing = [pool.submit(send, seed) for seed in range(4)]
        try:
            for _ in range(60):
                good.check()
        finally:
            end.set()
        for each in throwing:
            each.result(PATIENCE_S)


def test_sizes_that_lie_in_many_at_once(folder, local):
    """Batches of a few kB that are 300 MB or 900 MB when they are read, of four clients at once, and little memory."""
    body = pa.ipc.IpcWriteOptions(compression="zstd")
    bombs = []
    for megabytes in (300, 900):
        zeros = np.zeros((megabytes << 20) // 4, np.float32)
        bombs.append(wire.one_line(wire.QUESTION, [zeros, np.zeros(len(zeros) // 36, np.int64)]))

    words = ("--max-memory-mb", "128", "--max-message-mb", "8")
    with small_stacks(), cli_serving(folder, *words) as serving, ThreadPoolExecutor(4) as pool:
        memory: RemoteMemory = serving.memory()
        expected = local.search(some(), 3)

        def throw_one(number: int) -> str:
            bomb = bombs[number % 2]
            with flight.FlightClient(serving.address) as client:
                command = flight.FlightDescriptor.for_command(json.dumps({"fingerprint": local.fingerprint}).encode())
                writer, reader = client.do_exchange(command, flight.FlightCallOptions(timeout=PATIENCE_S))
                try:
                    writer.begin(bomb.schema, options=body)
                    writer.write_with_metadata(bomb, b"{}")
                    reader.read_chunk()
                except REFUSALS as error:
                    return str(error)
                finally:
                    reader.cancel()
                    with contextlib.suppress(*REFUSALS):
                        writer.close()
            return ""

        told = {each[:300] for each in pool.map(throw_one, range(12))}
        assert serving.process.poll() is None, serving.said()
        assert_same(memory.search(some(), 3), expected)
        assert any("more memory than the service may use" in each for each in told), "\n".join(told)
        assert all("more memory" in each or "when it is read" in each for each in told), "\n".join(told)
