"""A service, reached by HTTP over connections that are used again, and asked again where that is safe."""

from __future__ import annotations

import os
import ssl
import threading
import time
from collections.abc import Callable
from typing import Any, BinaryIO

import httpx
from tenacity import RetryCallState, Retrying, retry_if_exception_type, stop_before_delay, wait_random_exponential

from memory_index.access import Access
from memory_index.errors import BusyError, MemoryIndexError, ServiceError
from memory_index.messages import read_error
from memory_index.wire import ARROW

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.05, 2.0  # between two attempts; doubled each time, and drawn
TELL_S = 2.0  # of asking in vain, before it is said that it goes on
MOST_CONNECTIONS = 8  # of one memory at once, however many threads ask: a service searches for one at a time anyway
FORGET_S = 60.0  # a connection that was not used for so long is not used again; a service keeps it for longer
MAX_REFUSAL = 1 << 20  # bytes that are read of what is not the answer
IS_IT_OURS = "is it a service of this program?"


class HttpClient:
    """Asks one service. A process that is forked from this one gets connections of its own.

    address: `http://HOST:PORT`, perhaps with a path. note: told when it is asked in vain for long, once per outage.
    """

    def __init__(self, address: str, access: Access, note: Callable[[str], None]) -> None:
        self.address, self.access, self.note = address, access, note
        self._lock = threading.Lock()
        self._clients: dict[int, httpx.Client] = {}  # by process; those of others must not be let go of
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
        with self._lock:
            client = self._clients.pop(os.getpid(), None)
        if client is not None:
            client.close()

    def _once(
        self, path: str, left_s: float, most: int, body: Callable[[float], bytes] | None, into: BinaryIO | None
    ) -> bytes:
        until, read, num_bytes = time.monotonic() + left_s, bytearray(), 0
        if into is not None:
            into.seek(0)
            into.truncate()
        question: dict[str, Any] = {} if body is None else {"content": body(left_s), "headers": {"content-type": ARROW}}
        method = "GET" if body is None else "POST"
        try:
            with self._http().stream(method, self.address + path, timeout=left_s, **question) as answer:
                is_well = answer.status_code == 200
                for chunk in answer.iter_raw():  # raw: what says that it is compressed is not unpacked
                    num_bytes += len(chunk)
                    (into.write if into is not None and is_well else read.extend)(chunk)
                    if time.monotonic() > until:
                        raise httpx.ReadTimeout("the answer takes too long")
                    if num_bytes > (most if is_well else MAX_REFUSAL):
                        break
        except (httpx.HTTPError, httpx.InvalidURL, ssl.SSLError) as error:
            raise self._in_our_terms(error) from error
        if not is_well:
            raise self._refusal(answer.status_code, bytes(read))
        if num_bytes > most and into is None:
            raise ServiceError(f"{self.address} gave an answer that is too long; it was discarded")
        return bytes(read)

    def _http(self) -> httpx.Client:
        """The client of this process. No proxy is gone through, which would see the token, and no redirect followed."""
        with self._lock:
            if os.getpid() not in self._clients:
                authority = self.access.tls_ca
                context: ssl.SSLContext | bool = False
                if self.address.startswith("https://"):
                    context = ssl.create_default_context(cadata=authority and authority.decode("ascii", "replace"))
                headers = {"accept-encoding": "identity"}
                headers |= {"authorization": f"Bearer {self.access.token}"} if self.access.token else {}
                kept = httpx.Limits(max_connections=MOST_CONNECTIONS, keepalive_expiry=FORGET_S)
                client = httpx.Client(headers=headers, verify=context, trust_env=False, limits=kept)
                self._clients[os.getpid()] = client
            return self._clients[os.getpid()]

    def _refusal(self, status: int, content: bytes) -> MemoryIndexError:
        told = read_error(content)
        if told is not None:
            return type(told)(f"{self.address}: {told}", hint=told.hint)
        kind = BusyError if status in (429, 502, 503, 504) else ServiceError  # of a proxy
        return kind(f"{self.address} answers with status {status}", hint=IS_IT_OURS)

    def _in_our_terms(self, error: Exception) -> ServiceError:
        """`BusyError` where another try may help."""
        causes: list[BaseException] = [error]
        while (cause := causes[-1].__cause__ or causes[-1].__context__) is not None:
            causes.append(cause)
        said = " ".join(str(error).split())[:300] or type(error).__name__
        if any(isinstance(each, ssl.SSLError) for each in causes):
            return ServiceError(
                f"no secure connection to {self.address}: {said}",
                hint="check its certificate, its host name in it, and --tls-ca; without TLS the address begins with http://",
            )
        if isinstance(error, (httpx.ReadTimeout, httpx.WriteTimeout, httpx.PoolTimeout)):
            return BusyError(f"{self.address} did not answer in time", hint="is it overloaded? ask for less at once")
        hint = "is it running, and is the address right?"
        if self.address.startswith("http://") and isinstance(error, (httpx.RemoteProtocolError, httpx.ReadError)):
            hint += " or does it speak TLS: https://?"
        return BusyError(f"{self.address} cannot be reached: {said}", hint=hint)
