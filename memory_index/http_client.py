"""A service, reached by HTTP over connections that are used again, and asked again where that is safe.

The standard library's `http.client` reads an answer of 333 kB in few pieces and with little code, all of which a search
has driven out of the caches: 0.5 ms of processor time for an exchange right after a search, 1.6 ms with httpx.
"""

from __future__ import annotations

import os
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection, IncompleteRead
from typing import BinaryIO
from urllib.parse import quote, urlsplit

from tenacity import RetryCallState, Retrying, retry_if_exception_type, stop_before_delay, wait_random_exponential

from memory_index.access import Access
from memory_index.errors import BusyError, MemoryIndexError, ServiceError
from memory_index.messages import read_error
from memory_index.wire import ARROW

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.05, 2.0  # between two attempts; doubled each time, and drawn
TELL_S = 2.0  # of asking in vain, before it is said that it goes on
MOST_CONNECTIONS = 8  # of one memory at once, however many threads ask: a service searches for one at a time anyway
FORGET_S = 60.0  # a connection that was not used for so long is not used again; a service keeps it for longer
PIECE = 1 << 20  # bytes of an answer that are read at once
MAX_REFUSAL = 1 << 20  # bytes that are read of what is not the answer
IS_IT_OURS = "is it a service of this program?"


class Connections:
    """The connections of one process to one service; safe to use from several threads. make: a new one."""

    def __init__(self, make: Callable[[], HTTPConnection]) -> None:
        self.process, self._make = os.getpid(), make
        self._free, self._lock = threading.BoundedSemaphore(MOST_CONNECTIONS), threading.Lock()
        self._idle: list[tuple[float, HTTPConnection]] = []  # since when

    @contextmanager
    def one(self, within_s: float) -> Iterator[HTTPConnection]:
        """One for a single question and its whole answer. Raises `BusyError`."""
        if not self._free.acquire(timeout=within_s):
            raise BusyError(f"all {MOST_CONNECTIONS} connections are in use", hint="ask with fewer threads")
        try:
            connection = self._kept() or self._make()
            try:
                yield connection
            except BaseException:
                connection.close()
                raise
            if connection.sock is not None:  # it can be asked again
                with self._lock:
                    self._idle.append((time.monotonic(), connection))
        finally:
            self._free.release()

    def close(self) -> None:
        """Close those that idle."""
        with self._lock:
            while self._idle:
                self._idle.pop()[1].close()

    def _kept(self) -> HTTPConnection | None:
        """The one that was used last, unless that is too long ago: then so it is for all."""
        with self._lock:
            if self._idle and time.monotonic() - self._idle[-1][0] < FORGET_S:
                return self._idle.pop()[1]
        self.close()
        return None


class HttpClient:
    """Asks one service. A process that is forked from this one gets connections of its own.

    address: `http://HOST:PORT`, perhaps with a path. note: told when it is asked in vain for long, once per outage.
    No proxy is gone through, which would see the token, no redirect followed, and nothing unpacked.
    """

    def __init__(self, address: str, access: Access, note: Callable[[str], None]) -> None:
        self.address, self.access, self.note = address, access, note
        self._path = quote(urlsplit(address).path, safe="/%")
        self._headers = {"accept-encoding": "identity"}
        self._headers |= {"authorization": f"Bearer {access.token}"} if access.token else {}
        self._connections = Connections(self._new_connection)
        self._is_noted = False

    def ask(
        self,
        path: str,
        *,
        within_s: float,
        most: int,
        body: Callable[[float], bytes] | None = None,
        into: BinaryIO | None = None,
        is_told: bool = True,
    ) -> bytes:
        """The answer to a question that may be asked twice; it is, until it is answered or refused.

        within_s: all tries together. most: bytes of the answer that are read. body: of a POST, given the seconds that
        are left. into: where the answer is written, instead of being returned. is_told: False says nothing while it is
        tried again. Raises `ServiceError` when the time is over, or what the service answered.
        """
        started = time.monotonic()

        def once() -> bytes:
            return self._once(path, max(within_s - (time.monotonic() - started), 0.001), most, body, into)

        def tell(state: RetryCallState) -> None:
            if is_told and not self._is_noted and time.monotonic() - started >= TELL_S and state.outcome:
                self._is_noted = True
                self.note(f"{state.outcome.exception()}; asked again until {within_s:.0f} s are over")

        again = Retrying(
            retry=retry_if_exception_type(BusyError),
            wait=wait_random_exponential(multiplier=FIRST_PAUSE_S, max=LONGEST_PAUSE_S),
            stop=stop_before_delay(within_s),
            before_sleep=tell,
            reraise=True,
        )
        try:
            content: bytes = again(once)
        except BusyError as trouble:
            seconds = time.monotonic() - started
            raise ServiceError(f"{trouble}; gave up after {seconds:.1f} s", hint=trouble.hint) from trouble
        self._is_noted = False
        return content

    def close(self) -> None:
        """Close the connections; the next question opens others."""
        self._connections.close()

    def _once(
        self, path: str, left_s: float, most: int, body: Callable[[float], bytes] | None, into: BinaryIO | None
    ) -> bytes:
        until, read, num_bytes = time.monotonic() + left_s, bytearray(), 0
        if into is not None:
            into.seek(0)
            into.truncate()
        if self._connections.process != os.getpid():
            self._connections = Connections(self._new_connection)
        with self._connections.one(left_s) as connection:
            with self._errors_in_our_terms(connection):
                answer = self._asked(connection, path, max(until - time.monotonic(), 0.001), body)
            is_well = answer.status == 200
            write, room = into.write if into is not None and is_well else read.extend, most if is_well else MAX_REFUSAL
            with answer:
                while num_bytes <= room:
                    with self._errors_in_our_terms(connection):
                        piece = _next_piece(answer, until)
                    if not piece:
                        break
                    num_bytes += len(piece)
                    write(piece)
                else:
                    connection.close()  # the rest is of no use
        if not is_well:
            raise self._refusal(answer.status, bytes(read))
        if num_bytes > most and into is None:
            raise ServiceError(f"{self.address} gave an answer that is too long; it was discarded")
        return bytes(read)

    def _asked(
        self, connection: HTTPConnection, path: str, left_s: float, body: Callable[[float], bytes] | None
    ) -> HTTPResponse:
        connection.timeout = left_s
        if connection.sock is None:
            connection.connect()
        connection.sock.settimeout(left_s)
        if body is None:
            connection.request("GET", self._path + path, headers=self._headers)
        else:
            connection.request("POST", self._path + path, body(left_s), self._headers | {"content-type": ARROW})
        return connection.getresponse()

    def _new_connection(self) -> HTTPConnection:
        parts = urlsplit(self.address)
        assert parts.hostname is not None, "an address has been parsed"
        if parts.scheme == "http":
            return HTTPConnection(parts.hostname, parts.port)
        with self._errors_in_our_terms():
            return HTTPSConnection(parts.hostname, parts.port, context=self._tls)

    @cached_property
    def _tls(self) -> ssl.SSLContext:
        authority = self.access.tls_ca
        return ssl.create_default_context(cadata=authority and authority.decode("ascii", "replace"))

    def _refusal(self, status: int, content: bytes) -> MemoryIndexError:
        told = read_error(content)
        if told is not None:
            return type(told)(f"{self.address}: {told}", hint=told.hint)
        kind = BusyError if status in (429, 502, 503, 504) else ServiceError  # of a proxy
        return kind(f"{self.address} answers with status {status}", hint=IS_IT_OURS)

    @contextmanager
    def _errors_in_our_terms(self, connection: HTTPConnection | None = None) -> Iterator[None]:
        """`BusyError` where another try may help."""
        try:
            yield
        except (OSError, HTTPException) as error:
            is_open = connection is not None and connection.sock is not None
            said = " ".join(str(error).split())[:300] or type(error).__name__
            if isinstance(error, ssl.SSLError):
                raise ServiceError(
                    f"no secure connection to {self.address}: {said}",
                    hint="check its certificate, its host name in it, and --tls-ca; "
                    "without TLS the address begins with http://",
                ) from error
            if isinstance(error, TimeoutError) and is_open:
                hint = "is it overloaded? ask for less at once"
                raise BusyError(f"{self.address} did not answer in time", hint=hint) from error
            hint = "is it running, and is the address right?"
            if self.address.startswith("http://") and (is_open or isinstance(error, HTTPException)):
                hint += " or does it speak TLS: https://?"
            raise BusyError(f"{self.address} cannot be reached: {said}", hint=hint) from error


def _next_piece(answer: HTTPResponse, until: float) -> bytes:
    """Some bytes of an answer, nothing at its end."""
    piece = answer.read1(PIECE)
    if not piece and answer.length:
        raise IncompleteRead(b"", answer.length)
    if time.monotonic() > until:
        raise TimeoutError("the answer takes too long")
    return piece
