"""A guard in a process of its own, a Flight server behind it, and clients that speak HTTP/2 as badly as they like."""

from __future__ import annotations

import json
import os
import random
import socket
import ssl
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import pyarrow.flight as flight

from memory_index.service import guard
from memory_index.service.guard import DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, PREFACE, SETTINGS, frame

CERTIFICATES = Path(__file__).parent / "certificates"
PATIENCE_S = 30  # until what must happen counts as not happening: other tests need the cores too
LIMITS = {"max-message": 1 << 20, "max-connections": 16, "max-streams": 4}
LIMITS |= {"max-calls": 50, "max-pending": 1 << 40}
LIMITS |= {"stall-seconds": 20, "idle-seconds": 60, "grace-seconds": 20}
EXCHANGE, ACTION = (f"/arrow.flight.protocol.FlightService/{name}".encode() for name in ("DoExchange", "DoAction"))
WINDOW_UPDATE, INITIAL_WINDOW = 8, 4


class EchoServer(flight.FlightServerBase):
    """Sends back what it gets; actions tell who asks, wait, and answer at length."""

    def do_exchange(self, context, descriptor, reader, writer):
        begun = False
        for chunk in reader:
            if chunk.data is not None:
                if not begun:
                    writer.begin(chunk.data.schema)
                    begun = True
                writer.write_batch(chunk.data)

    def do_action(self, context, action):
        body = action.body.to_pybytes()
        if action.type == "peer":
            body = context.peer().encode()
        elif action.type == "wait":
            time.sleep(float(body))
        elif action.type == "bytes":
            body = b"x" * int(body)
        elif action.type == "random":
            body = random.Random(int(body)).randbytes(int(body))
        return [body]


@contextmanager
def echo_server() -> Iterator[str]:
    """The unix socket of an `EchoServer` in this process."""
    # pytest's own folders may have longer names than a unix socket can.
    with tempfile.TemporaryDirectory(prefix="guard-") as folder:
        path = f"{folder}/server"
        server = EchoServer(f"grpc+unix://{path}")
        try:
            yield path
        finally:
            server.shutdown()


@dataclass
class RunningGuard:
    """A guard's process and what it is reached by."""

    process: subprocess.Popen[bytes]
    address: tuple[str, int]
    parent: int  # the end of the pipe whose closing means that the parent is gone
    log: IO[str]

    @property
    def location(self) -> str:
        host, port = self.address
        return f"{f'[{host}]' if ':' in host else host}:{port}"

    def lines(self, event: str = "") -> list[dict[str, str]]:
        """What it has said on stderr, or only what it said of one kind of event."""
        self.log.seek(0)
        return [line for line in map(json.loads, self.log.read().splitlines()) if event in ("", line["event"])]

    def reasons(self, event: str) -> list[str]:
        return [line["reason"] for line in self.lines(event)]

    def client(self, **options) -> flight.FlightClient:
        return flight.connect(f"grpc{'+tls' if options else ''}://{self.location}", **options)

    def connect(self) -> RawClient:
        return RawClient(socket.create_connection(self.address, timeout=PATIENCE_S))

    def resident_bytes(self) -> int:
        return int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


@contextmanager
def running_guard(
    server: str, *more: str, host: str = "127.0.0.1", receive_buffer: int = 0, **limits: float
) -> Iterator[RunningGuard]:
    """A guard in front of a unix socket; its limits are `LIMITS` and what is given here (`stall_seconds=1`).

    receive_buffer: bytes that the kernel keeps of each client, if not as many as it likes.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    reading, writing = os.pipe()
    with socket.create_server((host, 0), family=family) as listener, tempfile.TemporaryFile("w+") as log:
        if receive_buffer:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        options = LIMITS | {name.replace("_", "-"): value for name, value in limits.items()}
        words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
        words += ["--listen-fd", str(listener.fileno()), "--parent-fd", str(reading), "--server", server, *more]
        command = [sys.executable, "-I", guard.__file__, *words]
        process = subprocess.Popen(command, pass_fds=(listener.fileno(), reading), stderr=log)
        os.close(reading)
        address = listener.getsockname()[:2]
        listener.close()
        running = RunningGuard(process=process, address=address, parent=writing, log=log)
        try:
            wait_until(lambda: process.poll() is not None or running.log.seek(0, 2) > 0)
            yield running
            assert running.lines("defect") == []
        finally:
            process.kill()  # how it ends is tested; here it must not take its server's socket with it
            process.wait(PATIENCE_S)
            os.close(writing)


def wait_until(holds: Callable[[], object]) -> None:
    until = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < until, "it has not happened"
        time.sleep(0.01)


class RawClient:
    """Sends any bytes, and reads frames."""

    def __init__(self, sock: socket.socket | ssl.SSLSocket) -> None:
        self.sock = sock
        self.read = b""

    def send(self, *parts: bytes) -> None:
        """Send; that the guard has hung up meanwhile shows when reading."""
        with suppress(ConnectionError):
            self.sock.sendall(b"".join(parts))

    def frames(self) -> Iterator[tuple[int, int, int, bytes]]:
        """Type, flags, stream and payload of each frame, until the connection ends."""
        while True:
            while len(self.read) < 9 or len(self.read) < 9 + int.from_bytes(self.read[:3], "big"):
                try:
                    more = self.sock.recv(1 << 20)
                except ConnectionError:
                    return
                if not more:
                    return
                self.read += more
            length = int.from_bytes(self.read[:3], "big")
            kind, flags, stream = struct.unpack(">BBI", self.read[3:9])
            payload, self.read = self.read[9 : 9 + length], self.read[9 + length :]
            yield kind, flags, stream, payload

    def farewell(self) -> tuple[str, bytes]:
        """The text of the GOAWAY that comes, and the last header block before it (may be empty)."""
        block = b""
        for kind, _, _, payload in self.frames():
            if kind == HEADERS:
                block = payload
            elif kind == GOAWAY:
                return payload[8:].decode(), block
        raise AssertionError("the connection ended without a farewell")

    def answer(self, stream: int) -> bytes:
        """The bytes of a call's answer."""
        body = b""
        for kind, flags, asked, payload in self.frames():
            if asked == stream and kind == DATA:
                body += payload
            if asked == stream and flags & END_STREAM and kind in (DATA, HEADERS):
                return body
        raise AssertionError("the connection ended before the answer")

    def rest(self) -> bytes:
        """All bytes until the connection ends."""
        found = self.read
        while True:
            try:
                more = self.sock.recv(1 << 20)
            except ConnectionError:
                more = b""
            if not more:
                return found
            found += more

    def __enter__(self) -> RawClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()


def start(window: int = 65535) -> bytes:
    """How a connection begins. window: bytes that the server may send of one answer before it is told to go on."""
    more = frame(WINDOW_UPDATE, 0, 0, (window - 65535).to_bytes(4, "big")) if window > 65535 else b""
    return PREFACE + frame(SETTINGS, 0, 0, struct.pack(">HI", INITIAL_WINDOW, window)) + more


def headers(path: bytes) -> bytes:
    """The header block of a call."""
    fields = [(b":path", path), (b":authority", b"x"), (b"content-type", b"application/grpc"), (b"te", b"trailers")]
    return b"\x83\x86" + b"".join(
        bytes([0, len(name)]) + name + bytes([len(value)]) + value for name, value in fields
    )  # POST, http


def call(stream: int, path: bytes = EXCHANGE) -> bytes:
    """The frame that begins a call."""
    return frame(HEADERS, END_HEADERS, stream, headers(path))


def message(body: bytes, *, length: int | None = None, compressed: int = 0) -> bytes:
    """A gRPC message. length: what it says of itself, if that is not the truth."""
    return struct.pack(">BI", compressed, len(body) if length is None else length) + body


def action(kind: bytes, body: bytes) -> bytes:
    """The body of DoAction: the two fields of its protocol buffer."""
    return b"\x0a" + varint(len(kind)) + kind + b"\x12" + varint(len(body)) + body


def varint(number: int) -> bytes:
    low, rest = number & 0x7F, number >> 7
    return bytes([low | 0x80]) + varint(rest) if rest else bytes([low])


def whole_call(stream: int, kind: bytes, body: bytes) -> bytes:
    """All frames of one action."""
    sent, cut = message(action(kind, body)), 16384
    parts = [sent[at : at + cut] for at in range(0, len(sent), cut)]
    frames = [frame(DATA, END_STREAM if part is parts[-1] else 0, stream, part) for part in parts]
    return call(stream, ACTION) + b"".join(frames)
