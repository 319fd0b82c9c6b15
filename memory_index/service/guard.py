"""The relay between clients and the Flight server: it passes on no message larger than is allowed.

The gRPC server inside pyarrow takes messages of any size, and Python has no say in it. So this program holds the
port, follows HTTP/2 and gRPC framing just far enough to know how long each message says it will be, and ends the
connection of whoever announces too much before the server sees that message. It also bounds connections, open calls
and waiting, and it may end TLS. It does not look into messages, check tokens or keep them: what it holds of a
connection is at most what two reads brought, and what it knows of it is a few numbers for each open call.
What a message grows to when it is read (Arrow buffers may be compressed) is for the server to bound.

It is started as `python -I guard.py OPTIONS` and imports nothing of this project, so that it starts at once and holds
little memory. Both of a call's sides are parsed for frame boundaries, so that a refusal can be put between two frames
of the server: the client reads a gRPC status, not a broken connection. Where the server's own rules already refuse
something (frames larger than it announced, header lists, pings), they are left to it.

Exit codes: 0 drained after SIGTERM, 1 a defect, 2 usage (options, certificate), 3 the parent is gone.
On stderr, one JSON line once it listens and one per connection that it ended for a cause; none per other connection.

Sources: RFC 9113 (HTTP/2), RFC 7541 (HPACK), the gRPC document "gRPC over HTTP2".
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import resource
import select
import selectors
import signal
import socket
import ssl
import struct
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
HEADER = 9  # bytes of a frame's header
PREFIX = 5  # bytes before a gRPC message: compressed or not, and its length
DATA, HEADERS, RST_STREAM, SETTINGS, GOAWAY, CONTINUATION = 0, 1, 3, 4, 7, 9  # types of frames
END_STREAM, ACK, END_HEADERS = 0x1, 0x1, 0x4  # flags
MAX_CONCURRENT_STREAMS = 3  # a setting
NO_ERROR, PROTOCOL_ERROR, ENHANCE_YOUR_CALM = 0, 1, 11  # HTTP/2 codes of a GOAWAY
INVALID_ARGUMENT, DEADLINE_EXCEEDED, RESOURCE_EXHAUSTED, UNIMPLEMENTED, UNAVAILABLE = 3, 4, 8, 12, 14  # of gRPC

MAX_HEADER_BLOCK = 65536  # bytes; the server announces that it takes 16 KiB
MAX_CONTROL_FRAME = 16384  # bytes of a frame that is neither DATA nor headers: what every HTTP/2 peer must take
MAX_RESETS = 200  # calls that a connection may begin and cancel within a second: each has cost the server a thread
LEAST_RATE = 65536  # bytes per second that a message must come at, so that nobody keeps one open byte by byte
READ = 262144  # bytes of one read
SEND_BUFFER = 1048576  # bytes that the kernel keeps for the server, so that a large message passes in few steps
TICK_S = 0.1  # how often waiting connections are looked at
QUIET_S = 0.3  # draining: a server that has been silent for so long has nothing more to say
LINGER_S = 1.0  # for a client to read why it was refused; closing at once would discard that on its side
REST_S = 1.0  # before accepting again after running out of files
LINES_PER_S = 20  # on stderr
MAX_PEERS = 50  # bytes of a folder for names of clients: a unix socket has 107 for the whole path
PARENT_GONE = 3  # exit code


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What clients may do.

    A call costs the server a thread, and a message that has begun to come its whole length: of both there is a limit
    for all clients together, because the server cannot go on without either.
    """

    max_message: int  # bytes
    max_connections: int
    max_streams: int  # open calls of one connection
    max_calls: int  # open calls of all connections
    max_pending: int  # bytes of all messages that have begun and are not complete
    stall_s: float
    idle_s: float
    grace_s: float


class RefusedError(Exception):
    """Why a connection is ended, and the call that is answered with it (0: none)."""

    def __init__(self, reason: str, *, stream: int = 0, status: int = INVALID_ARGUMENT, code: int = PROTOCOL_ERROR):
        super().__init__(reason)
        self.reason, self.stream, self.status, self.code = reason, stream, status, code


# HTTP/2 and gRPC framing: no sockets here


class Call:
    """One open HTTP/2 stream."""

    __slots__ = ("answered", "client_done", "due_at", "left", "moved_at", "prefix", "server_done", "size")

    def __init__(self, now: float) -> None:
        self.prefix = bytearray()  # of a message of which not even the length is known yet
        self.size = self.left = 0  # bytes of the current message, and those of it that have not come
        self.moved_at = now  # when bytes of it last came
        self.due_at = 0.0  # when the current message must be complete
        self.client_done = self.server_done = self.answered = False


class Calls:
    """The open calls of one connection, as both directions know them."""

    def __init__(self, limits: Limits, of_all: Callable[[], Iterable[Call]] | None = None) -> None:
        self.limits = limits
        self.open: dict[int, Call] = {}  # at most max_streams
        self.of_all = of_all or self.open.values  # the open calls of every connection
        self.highest = 0  # stream that the client has begun
        self.now = 0.0
        self.resets_since = 0.0
        self.num_resets = 0

    def begin(self, stream: int) -> None:
        """The client begins a call.

        Raises `RefusedError` for one too many.
        """
        if stream % 2 == 0:
            raise RefusedError("a call with an even number")
        self.highest = stream
        if len(self.open) == self.limits.max_streams:
            raise RefusedError(
                f"more than {self.limits.max_streams} calls at once on one connection",
                stream=stream,
                status=RESOURCE_EXHAUSTED,
                code=ENHANCE_YOUR_CALM,
            )
        if sum(not call.server_done for call in self.of_all()) >= self.limits.max_calls:
            reason = f"more than {self.limits.max_calls} calls at once: ask later"
            raise RefusedError(reason, stream=stream, status=UNAVAILABLE, code=ENHANCE_YOUR_CALM)
        self.open[stream] = Call(self.now)

    def reset_by_client(self, stream: int) -> None:
        """The client cancels a call; one that does little else is refused, for the server goes on for a while.

        Raises `RefusedError` for that.
        """
        if self.open.pop(stream, None) is None:
            return
        if self.now - self.resets_since > 1:
            self.resets_since, self.num_resets = self.now, 0
        self.num_resets += 1
        if self.num_resets > MAX_RESETS:
            raise RefusedError(f"more than {MAX_RESETS} calls cancelled within a second", code=ENHANCE_YOUR_CALM)

    def done(self, stream: int) -> None:
        """Forget a call once both sides have ended it."""
        call = self.open.get(stream)
        if call is not None and call.client_done and call.server_done:
            del self.open[stream]

    def stalled(self) -> RefusedError | None:
        """A refusal for the first call whose message stands still or takes too long, if there is one.

        Only bytes of that message count: pings would keep it open for ever.
        """
        for stream, call in self.open.items():
            still = self.now - call.moved_at > self.limits.stall_s
            if (call.left or call.prefix) and (still or self.now > call.due_at):
                reason = f"a message stood still for {self.limits.stall_s:g} s" if still else "a message took too long"
                return RefusedError(reason, stream=stream, status=DEADLINE_EXCEEDED, code=ENHANCE_YOUR_CALM)
        return None


class Frames:
    """Cuts one direction into frames, however it was cut into reads. Payloads are looked at, never kept."""

    def __init__(self, calls: Calls) -> None:
        self.calls = calls
        self.header = bytearray()  # of the next frame
        self.kind = self.flags = self.stream = 0  # of this frame
        self.left = 0  # bytes of this frame that have not come
        self.in_headers = 0  # stream of a header block that has not ended, or 0

    @property
    def between_frames(self) -> bool:
        """Whether another frame may be put in here."""
        return not (self.header or self.left or self.in_headers)

    def feed(self, view: memoryview, *, until_between: bool = False) -> int:
        """Follow what was read; returns how much was looked at. until_between: no further than the next boundary.

        Raises `RefusedError` (for what clients send).
        """
        at = 0
        while at < len(view) and not (until_between and self.between_frames):
            if self.left:
                num = min(self.left, len(view) - at)
                self.payload(view[at : at + num])
                self.left -= num
                if not self.left:
                    self.end()
            else:
                num = min(HEADER - len(self.header), len(view) - at)
                self.header += view[at : at + num]
                if len(self.header) == HEADER:
                    self._begin_frame()
            at += num
        return at

    def _begin_frame(self) -> None:
        high, low, self.kind, self.flags, stream = struct.unpack(">BHBBI", self.header)
        self.left, self.stream = high << 16 | low, stream & 0x7FFFFFFF
        self.header.clear()
        self.begin()
        if self.kind in (HEADERS, CONTINUATION):
            self.in_headers = 0 if self.flags & END_HEADERS else self.stream
        if not self.left:
            self.end()

    def begin(self) -> None:
        """A frame's header has come."""

    def payload(self, view: memoryview) -> None:
        """A part of a frame's payload has come."""

    def end(self) -> None:
        """A frame has come to its end."""


class ServerFrames(Frames):
    """What the server sends, only to know which calls it has answered and ended."""

    def begin(self) -> None:
        """Note an answer that begins."""
        if self.kind == HEADERS and self.stream in self.calls.open:
            self.calls.open[self.stream].answered = True

    def end(self) -> None:
        """Note a call that the server has ended. From then on it takes no more of it."""
        if self.kind == RST_STREAM:
            self.calls.open.pop(self.stream, None)
        elif self.kind in (DATA, HEADERS) and self.flags & END_STREAM and self.stream in self.calls.open:
            self.calls.open[self.stream].server_done = True
            self.calls.done(self.stream)


class ClientFrames(Frames):
    """What a client sends: here is decided what the server gets to see."""

    def __init__(self, calls: Calls) -> None:
        super().__init__(calls)
        self.block = 0  # bytes of the current header block, with the headers of its frames

    def begin(self) -> None:
        """Refuse what a frame's header alone shows to be wrong."""
        if self.in_headers and (self.kind != CONTINUATION or self.stream != self.in_headers):
            raise RefusedError("a header block that is interrupted")
        if self.kind in (DATA, HEADERS, RST_STREAM) and not self.stream:
            raise RefusedError("a frame that belongs to no call")
        if self.kind == DATA:
            self._begin_data()
        elif self.kind == HEADERS:
            self._begin_headers()
        elif self.kind == CONTINUATION:
            self._continue_headers()
        elif self.left > MAX_CONTROL_FRAME or (self.kind == RST_STREAM and self.left != 4):
            raise RefusedError("a frame of an impossible length")

    def _begin_data(self) -> None:
        # gRPC does not pad, and its server refuses who does.
        if self.flags & ~END_STREAM:
            raise RefusedError("a DATA frame with unknown flags", stream=self.stream)
        if self.stream > self.calls.highest:
            raise RefusedError("a message of a call that was not begun")
        call = self.calls.open.get(self.stream)
        if call is not None and call.client_done:
            raise RefusedError("a message after the end of a call", stream=self.stream)

    def _begin_headers(self) -> None:
        self.block = 0
        self._continue_headers(first=True)
        if self.stream > self.calls.highest:
            self.calls.begin(self.stream)
        elif self.stream in self.calls.open and not self.flags & END_STREAM:
            raise RefusedError("a call that is begun twice", stream=self.stream)

    def _continue_headers(self, *, first: bool = False) -> None:
        if not first and not self.in_headers:
            raise RefusedError("the continuation of nothing")
        self.block += HEADER + self.left  # empty frames count as well
        if self.block > MAX_HEADER_BLOCK:
            raise RefusedError(f"headers of more than {MAX_HEADER_BLOCK} bytes", code=ENHANCE_YOUR_CALM)

    def payload(self, view: memoryview) -> None:
        """Follow the messages in a DATA frame: several may lie in it, and each may be spread over many."""
        # A call that is not open has been ended by the server, or by the client itself: the server discards the rest.
        if self.kind != DATA or (call := self.calls.open.get(self.stream)) is None:
            return
        call.moved_at = self.calls.now
        at = 0
        while at < len(view):
            num = min(call.left or PREFIX - len(call.prefix), len(view) - at)
            if call.left:
                call.left -= num
            else:
                if not call.prefix:
                    call.due_at = self.calls.now + self.calls.limits.stall_s
                call.prefix += view[at : at + num]
                if len(call.prefix) == PREFIX:
                    self._begin_message(call)
            at += num

    def _begin_message(self, call: Call) -> None:
        compressed, length = struct.unpack(">BI", call.prefix)
        if compressed:
            reason = "a compressed message: only plain ones are taken"
            raise RefusedError(reason, stream=self.stream, status=UNIMPLEMENTED)
        if length > self.calls.limits.max_message:
            raise RefusedError(
                f"a message of {length} bytes: at most {self.calls.limits.max_message} are taken",
                stream=self.stream,
                status=RESOURCE_EXHAUSTED,
                code=ENHANCE_YOUR_CALM,
            )
        if length + sum(each.size for each in self.calls.of_all() if each.left) > self.calls.limits.max_pending:
            reason = "too many messages are on their way already: ask later"
            raise RefusedError(reason, stream=self.stream, status=UNAVAILABLE, code=ENHANCE_YOUR_CALM)
        call.prefix.clear()
        call.left = call.size = length
        call.due_at += length / LEAST_RATE

    def end(self) -> None:
        """Note a call that the client has cancelled, or to which it has nothing to add."""
        if self.kind == RST_STREAM:
            self.calls.reset_by_client(self.stream)
        elif self.kind in (DATA, HEADERS) and self.flags & END_STREAM:
            call = self.calls.open.get(self.stream)
            if call is not None:
                if call.left or call.prefix:
                    raise RefusedError("a call that ends within a message", stream=self.stream)
                call.client_done = True
                self.calls.done(self.stream)


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """One HTTP/2 frame."""
    return struct.pack(">BHBBI", len(payload) >> 16, len(payload) & 0xFFFF, kind, flags, stream) + payload


def farewell(refusal: RefusedError, calls: Calls) -> bytes:
    """What the client of a refused connection is told: a status for the call that is at fault, and GOAWAY."""
    told = b""
    call = calls.open.get(refusal.stream)
    if refusal.stream and not (call and call.server_done):
        # Literals without indexing: they leave the state of header compression as it was. A call whose answer has
        # begun gets trailers; any other gets the whole of its answer.
        fields = [] if call and call.answered else [(b":status", b"200"), (b"content-type", b"application/grpc")]
        fields += [(b"grpc-status", b"%d" % refusal.status), (b"grpc-message", refusal.reason.encode()[:126])]
        block = b"".join(bytes([0, len(name)]) + name + bytes([len(value)]) + value for name, value in fields)
        told = frame(HEADERS, END_STREAM | END_HEADERS, refusal.stream, block)
    # The highest call, not the last that was let through: clients silently repeat those above the number given here.
    return told + frame(GOAWAY, 0, 0, struct.pack(">II", calls.highest, refusal.code) + refusal.reason.encode())


# Sockets


class End:
    """One of the two sockets of a connection. It never blocks; what cannot be sent at once waits, and nothing is read
    for it meanwhile.
    """

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.sock = sock
        self.waiting = b""
        self.moved_at = time.monotonic()  # when bytes were last sent
        self.watched = 0  # events that the selector waits for
        self.write_first = False  # TLS: nothing can be read before something of its own is sent

    def read(self, buffer: memoryview) -> int | None:
        """Bytes read into a buffer; 0 at the end, None if there is nothing now.

        Raises `OSError` for a broken connection.
        """
        num, secret = 0, isinstance(self.sock, ssl.SSLSocket)
        try:
            while num < len(buffer):
                more = self.sock.recv_into(buffer[num:])
                num += more
                if not secret or not more:  # TLS gives one record at a time
                    return num
        except (BlockingIOError, ssl.SSLWantReadError):
            pass
        except ssl.SSLWantWriteError:
            self.write_first = True
        return num or None

    def write(self, view: memoryview | bytes) -> None:
        """Send, or keep a copy of what cannot be sent now.

        Raises `OSError` for a broken connection.
        """
        if self.waiting:
            self.waiting += view
            return
        self.waiting = bytes(view[self._send(view) :])
        if self.waiting:
            self.moved_at = time.monotonic()

    def flush(self) -> None:
        """Send what waits.

        Raises `OSError` for a broken connection.
        """
        self.write_first = False
        if self.waiting:
            self.waiting = self.waiting[self._send(self.waiting) :]

    def _send(self, view: memoryview | bytes) -> int:
        if not len(view):
            return 0
        try:
            num = self.sock.send(view)
        except (BlockingIOError, ssl.SSLWantWriteError):
            return 0
        self.moved_at = time.monotonic()
        return num

    @property
    def has_unread(self) -> bool:
        """Whether TLS holds bytes that were read from the socket already, of which the selector knows nothing."""
        return isinstance(self.sock, ssl.SSLSocket) and self.sock.pending() > 0


class Connection:
    """One client, its own connection to the server, and what is known of both."""

    def __init__(self, guard: Guard, client: socket.socket, peer: str) -> None:
        self.guard = guard
        self.peer = peer
        self.client = End(client)
        self.server: End | None = None  # connected once the client has shown that it speaks HTTP/2
        self.shaking = isinstance(client, ssl.SSLSocket)
        self.preface = PREFACE  # what is still to come of it
        self.settings: bytes | None = b""  # the first bytes of the server, until its settings are complete; then None
        self.calls = Calls(guard.limits, guard.calls)
        self.from_client = ClientFrames(self.calls)
        self.from_server = ServerFrames(self.calls)
        self.refusal: RefusedError | None = None  # waits for a place between two frames of the server
        self.closing = self.closed = False  # closing: the client is only given time to read
        self.since = self.moved_at = self.server_moved_at = guard.now
        self.close_at = float("inf")

    # What the selector calls

    def client_ready(self, events: int) -> None:
        """The client's socket can be read or written."""
        if self.closed:  # earlier in this round
            return
        with self._contained():
            if self.shaking:
                self._shake_hands()
            if self.shaking:
                return
            if events & selectors.EVENT_WRITE:
                self.client.flush()
                self._half_close()
            if events & selectors.EVENT_READ and not (self.server and self.server.waiting):
                self._read_client()

    def server_ready(self, events: int) -> None:
        """The socket to the server can be read or written."""
        if self.server is None:  # left earlier in this round
            return
        with self._contained():
            if events & selectors.EVENT_WRITE:
                self.server.flush()
            if events & selectors.EVENT_READ and not self.client.waiting:
                self._read_server()

    def look(self) -> None:
        """End what has waited too long."""
        now, limits = self.guard.now, self.guard.limits
        with self._contained():
            if now > self.close_at:
                self.close()
            elif self.closing or self.refusal:
                pass
            elif (self.shaking or self.preface) and now - self.since > limits.stall_s:
                self.close(f"no HTTP/2 connection within {limits.stall_s:g} s")
            elif self.client.waiting and now - self.client.moved_at > limits.stall_s:
                self.close(f"did not read its answer for {limits.stall_s:g} s")
            elif now - self.moved_at > limits.idle_s:
                self.refuse(RefusedError(f"idle for {limits.idle_s:g} s", code=NO_ERROR))
            elif not (self.server and self.server.waiting) and (stalled := self.calls.stalled()) is not None:
                self.refuse(stalled)
            elif self.guard.draining and not self.client.waiting and now - self.server_moved_at > QUIET_S:
                self.refuse(RefusedError("the service is shutting down", code=NO_ERROR), silently=True)

    @contextlib.contextmanager
    def _contained(self) -> Iterator[None]:
        """Whatever goes wrong ends this connection only; afterwards the selector is told what to wait for."""
        self.calls.now = self.guard.now
        try:
            yield
        except OSError as error:
            # Clients come and go; what is worth a line is a hand-shake that fails.
            reason = f"TLS: {error.reason or error}" if self.shaking and isinstance(error, ssl.SSLError) else ""
            self.close(reason)
        except Exception:  # noqa: BLE001 - a defect that one client has found must not cost the others theirs
            self.guard.log.say("defect", self.peer, traceback.format_exc(limit=-2))
            self.close()
        self._watch()

    def _shake_hands(self) -> None:
        assert isinstance(self.client.sock, ssl.SSLSocket)
        self.client.write_first = False
        try:
            self.client.sock.do_handshake()
            self.shaking = False
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLWantWriteError:
            self.client.write_first = True

    def _read_client(self) -> None:
        num = self.client.read(self.guard.buffer)
        if num is None:
            return
        if not num:  # HTTP/2 has no use for a client that cannot send: it is gone
            self.close()
            return
        self.moved_at = self.guard.now
        if self.closing or self.refusal:
            return
        view = self.guard.buffer[:num]
        if self.preface:
            view = self._take_preface(view)
        if self.server and len(view):
            try:
                self.from_client.feed(view)
            except RefusedError as refusal:
                self.refuse(refusal)
            else:
                self.server.write(view)

    def _take_preface(self, view: memoryview) -> memoryview:
        """Compare what every HTTP/2 client sends first, and connect to the server once it is complete."""
        num = min(len(self.preface), len(view))
        if view[:num] != self.preface[:num]:
            self.close("does not speak HTTP/2")
            return view[:0]
        self.preface = self.preface[num:]
        if not self.preface:
            try:
                self.server = End(self.guard.connect(self.peer))
            except OSError as error:
                self.close(f"the server cannot be reached: {error.strerror or error}")
            else:
                self.server.write(PREFACE)
        return view[num:]

    def _read_server(self) -> None:
        assert self.server
        num = self.server.read(self.guard.buffer)
        if num is None:
            return
        if not num:
            self._finish()
            return
        self.moved_at = self.server_moved_at = self.guard.now
        view, is_first = self.guard.buffer[:num], self.settings is not None
        if is_first:
            view = self._with_setting(view)
        # The settings come before anything else, a farewell too.
        used = self.from_server.feed(view, until_between=self.refusal is not None and not is_first)
        self.client.write(view[:used])
        self._say_farewell()

    def _with_setting(self, view: memoryview) -> memoryview:
        """Add the number of calls that are taken at once to the server's settings, its first frame.

        Clients keep to it: they hold back further calls, and only those that do not are refused.
        """
        assert self.settings is not None
        self.settings += view
        if len(self.settings) < HEADER:
            return view[:0]
        first, self.settings = self.settings, None
        if first[3] != SETTINGS or first[4] & ACK:
            raise ConnectionError("the server does not speak HTTP/2")
        length = int.from_bytes(first[:3], "big") + 6
        setting = struct.pack(">HI", MAX_CONCURRENT_STREAMS, self.guard.limits.max_streams)
        return memoryview(length.to_bytes(3, "big") + first[3:HEADER] + setting + first[HEADER:])

    # How a connection ends

    def refuse(self, refusal: RefusedError, *, silently: bool = False) -> None:
        """Pass nothing on any more, and tell the client why as soon as the server is between two frames."""
        if not silently:
            self.guard.log.say("refused", self.peer, refusal.reason)
        self.refusal = refusal
        self.close_at = self.guard.now + LINGER_S
        if self.server is None:
            self.close()
        self._say_farewell()

    def _say_farewell(self) -> None:
        if self.refusal and not self.closing and self.settings is None and self.from_server.between_frames:
            self.client.write(farewell(self.refusal, self.calls))
            self._finish()

    def _finish(self) -> None:
        """Leave the server, and give the client time to read what waits for it."""
        self._leave_server()
        self.closing = True
        self.close_at = self.guard.now + self.guard.limits.stall_s
        self._half_close()

    def _half_close(self) -> None:
        if not self.closing or self.client.waiting:
            return
        self.close_at = self.guard.now + LINGER_S
        # A gRPC client that loses its connection while it sends forgets the status that has come before: it hangs up.
        if self.refusal and self.refusal.stream:
            return
        if isinstance(self.client.sock, ssl.SSLSocket):
            with contextlib.suppress(OSError):  # it would like to wait for the client's part
                self.client.sock.unwrap()
        self.client.sock.shutdown(socket.SHUT_WR)

    def _leave_server(self) -> None:
        if self.server:
            self.guard.watch(self.server, 0, self.server_ready)
            self.server.sock.close()
            self.server = None

    def close(self, reason: str = "") -> None:
        """End both sides at once. A reason is worth a line."""
        if self.closed:
            return
        if reason:
            self.guard.log.say("closed", self.peer, reason)
        self.closed = True
        self._leave_server()
        self.guard.watch(self.client, 0, self.client_ready)
        self.client.sock.close()
        self.guard.connections.discard(self)

    def _watch(self) -> None:
        """Wait for what can be done next: a side is read only when nothing of it waits to be sent on."""
        if self.closed:
            return
        client, server = self.client, self.server
        wanted = selectors.EVENT_WRITE if client.waiting or client.write_first else 0
        if not client.write_first and not (server and server.waiting):
            wanted |= selectors.EVENT_READ
            if client.has_unread:
                self.guard.again.add(self)
        self.guard.watch(client, wanted, self.client_ready)
        if server:
            wanted = selectors.EVENT_WRITE if server.waiting else 0
            if not client.waiting:
                wanted |= selectors.EVENT_READ
            self.guard.watch(server, wanted, self.server_ready)


class Log:
    """Lines on stderr: so many a second, then only how many more there would have been."""

    def __init__(self) -> None:
        self.second = self.num_said = self.num_held_back = 0

    def say(self, event: str, peer: str, reason: str) -> None:
        """One line, unless there are too many or nobody reads them: writing must not wait."""
        self.catch_up()
        if self.num_said < LINES_PER_S and self._write(event, peer, reason):
            self.num_said += 1
        else:
            self.num_held_back += 1

    def catch_up(self) -> None:
        """In a new second, say how many lines were held back in those before."""
        second = int(time.monotonic())
        if second != self.second:
            self.second, self.num_said = second, 0
            if self.num_held_back and self._write("held back", "", f"{self.num_held_back} lines like these"):
                self.num_held_back = 0

    def _write(self, event: str, peer: str, reason: str) -> bool:
        line = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "event": event}
        line |= {"peer": peer, "reason": reason[:2000]}
        try:
            # A pipe that is ready takes as much as one line has without blocking (PIPE_BUF).
            if not select.select([], [2], [], 0)[1]:
                return False
            os.write(2, json.dumps(line).encode() + b"\n")
        except (OSError, ValueError):
            return False
        return True


class Guard:
    """The listening socket and every connection, in one thread."""

    def __init__(
        self,
        listener: socket.socket,
        server: Path,
        parent: int,
        *,
        limits: Limits,
        peers: Path | None,
        tls: Callable[[], ssl.SSLContext] | None,
    ) -> None:
        self.listener, self.server, self.parent, self.limits = listener, server, parent, limits
        self.peers = peers
        self.read_tls, self.tls = tls, tls() if tls else None
        self.log = Log()
        self.now = time.monotonic()  # of this round
        self.selector = selectors.DefaultSelector()
        self.connections: set[Connection] = set()  # at most max_connections
        self.again: set[Connection] = set()  # have more to read than the selector knows
        self.buffer = memoryview(bytearray(READ))  # every read goes here; what cannot be sent on at once is copied
        self.draining = self.orphaned = self.renewed = False
        self.accept_at = self.now  # not before

    def run(self) -> int:
        """Relay until SIGTERM has been obeyed or the parent is gone. Returns the exit code.

        SIGHUP: the certificate is read again.
        """
        self.listener.setblocking(False)
        self.selector.register(self.parent, selectors.EVENT_READ, self._parent_ready)
        signal.signal(signal.SIGTERM, lambda *_: setattr(self, "draining", True))
        signal.signal(signal.SIGHUP, lambda *_: setattr(self, "renewed", True))
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
        self.log.say("listening", "", "{}:{}".format(*self.listener.getsockname()[:2]))
        accepting, look_at, drained_at = False, 0.0, float("inf")
        while not self.orphaned:
            accept = not self.draining and self.now >= self.accept_at
            if accept != accepting:
                accepting = accept
                if accept:
                    self.selector.register(self.listener, selectors.EVENT_READ, self._accept)
                else:
                    self.selector.unregister(self.listener)
            if self.draining and drained_at == float("inf"):
                drained_at = self.now + self.limits.grace_s
                self.listener.shutdown(socket.SHUT_RDWR)  # whoever has not been accepted is told, whoever holds it
            if self.draining and (not self.connections or self.now > drained_at):
                return 0
            self._work()
            if self.now >= look_at:
                look_at = self.now + TICK_S
                for connection in list(self.connections):
                    connection.look()
                self.log.catch_up()
                self._renew()
        return PARENT_GONE

    def _renew(self) -> None:
        """Read the certificate again, if we were told to; connections that are open keep the one they began with."""
        if self.renewed and self.read_tls:
            try:
                self.tls = self.read_tls()
            except (OSError, ssl.SSLError) as error:
                self.log.say("keeps its certificate", "", str(error))
        self.renewed = False

    def calls(self) -> Iterator[Call]:
        """The open calls of all connections."""
        return (call for connection in self.connections for call in connection.calls.open.values())

    def _work(self) -> None:
        ready = self.selector.select(0 if self.again else TICK_S)
        self.now = time.monotonic()
        again, self.again = self.again, set()
        for key, events in ready:
            key.data(events)
        for connection in again:
            connection.client_ready(selectors.EVENT_READ)

    def _accept(self, _: int) -> None:
        """Take every client that waits; what cannot be taken is closed at once."""
        for _ in range(self.limits.max_connections):
            try:
                sock, address = self.listener.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            except OSError as error:  # out of files or memory: asking again at once would only spin
                self.log.say("accepting later", "", error.strerror or str(error))
                self.accept_at = self.now + REST_S
                return
            host = f"[{address[0]}]" if ":" in address[0] else address[0]
            peer = f"{host}:{address[1]}"
            if len(self.connections) >= self.limits.max_connections:
                self.log.say("refused", peer, f"more than {self.limits.max_connections} connections")
                sock.close()
                continue
            try:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                if self.tls:
                    sock = self.tls.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
            except OSError:  # it is gone already
                sock.close()
                continue
            connection = Connection(self, sock, peer)
            self.connections.add(connection)
            connection.client_ready(0)

    def _parent_ready(self, _: int) -> None:
        self.orphaned = not os.read(self.parent, 4096)

    def connect(self, peer: str) -> socket.socket:
        """A connection to the server, whose name of it ends with the client's address.

        Raises `OSError`.
        """
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.setblocking(False)  # a server that is not accepting is an error, not a reason to wait
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
            if self.peers is None:
                sock.connect(str(self.server))
                return sock
            # The kernel keeps the name; the file is needed no longer than until the server is connected.
            name = self.peers / peer
            name.unlink(missing_ok=True)
            sock.bind(str(name))
            try:
                sock.connect(str(self.server))
            finally:
                name.unlink(missing_ok=True)
        except OSError:
            sock.close()
            raise
        return sock

    def watch(self, end: End, events: int, ready: Callable[[int], None]) -> None:
        """Have the selector wait for these events of a socket."""
        if events == end.watched:
            return
        if not end.watched:
            self.selector.register(end.sock, events, ready)
        elif not events:
            self.selector.unregister(end.sock)
        else:
            self.selector.modify(end.sock, events, ready)
        end.watched = events


# The program


def main(words: Sequence[str] | None = None) -> int:
    """Read the options and relay. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="guard", description="Relay between gRPC clients and a server, with limits.")
    parser.add_argument("--listen-fd", type=int, required=True, help="bound and listening TCP socket")
    parser.add_argument("--parent-fd", type=int, required=True, help="pipe; at its end this program ends too")
    parser.add_argument("--server", type=Path, required=True, help="unix socket of the server")
    parser.add_argument("--peers", type=Path, help="private folder: the server sees clients as paths in it")
    parser.add_argument("--tls-cert", type=Path, help="PEM; with --tls-key, TLS ends here")
    parser.add_argument("--tls-key", type=Path)
    for name in ("--max-message", "--max-connections", "--max-streams", "--max-calls", "--max-pending"):
        parser.add_argument(name, type=_count, required=True)
    for name in ("--stall-seconds", "--idle-seconds", "--grace-seconds"):
        parser.add_argument(name, type=float, required=True)
    asked = parser.parse_args(words)
    limits = Limits(
        max_message=asked.max_message,
        max_connections=asked.max_connections,
        max_streams=asked.max_streams,
        max_calls=asked.max_calls,
        max_pending=asked.max_pending,
        stall_s=asked.stall_seconds,
        idle_s=asked.idle_seconds,
        grace_s=asked.grace_seconds,
    )
    if (asked.tls_cert is None) != (asked.tls_key is None):
        parser.error("--tls-cert and --tls-key belong together")
    if asked.peers and len(os.fsencode(asked.peers)) > MAX_PEERS:
        parser.error(f"--peers: longer than {MAX_PEERS} bytes, so that no address fits behind it")
    try:
        listener = socket.socket(fileno=asked.listen_fd)
        if not listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            parser.error("--listen-fd: does not listen")
        tls = functools.partial(_tls, asked.tls_cert, asked.tls_key) if asked.tls_cert else None
        guard = Guard(listener, asked.server, asked.parent_fd, limits=limits, peers=asked.peers, tls=tls)
    except (OSError, ssl.SSLError) as error:
        parser.error(f"cannot start: {error}")
    _allow_files(2 * limits.max_connections + 32)
    code = guard.run()
    if asked.peers:
        _remove_private(asked.server, asked.peers)
    return code


def _remove_private(server: Path, peers: Path) -> None:
    """Remove what a parent that was killed cannot: the socket and the private folder around it."""
    with contextlib.suppress(OSError):  # never more than is certainly its own: a folder with more in it stays
        server.unlink(missing_ok=True)
        peers.rmdir()
        server.parent.rmdir()


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def _tls(cert: Path, key: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.set_alpn_protocols(["h2"])
    context.load_cert_chain(cert, key, password=lambda: "")
    return context


def _allow_files(num: int) -> None:
    """Ask for so many open files, as far as the system lets us; beyond that, clients wait."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = num if hard == resource.RLIM_INFINITY else min(num, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


if __name__ == "__main__":
    sys.exit(main())
