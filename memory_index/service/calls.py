"""One call of the service, from its beginning to its end: admitted, answered or refused, sent, and told.

What is answered is `app.py`.
"""

from __future__ import annotations

import asyncio
import time
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from starlette.requests import ClientDisconnect, Request

from memory_index.errors import (
    BusyError,
    IncompatibleError,
    MemoryIndexError,
    NotFoundError,
    ResourceError,
    ServiceError,
    UsageError,
)
from memory_index.service import messages
from memory_index.service.wire import JSON

PIECE = 256 << 10  # bytes that are sent at once
LEAST_RATE = 65536  # bytes per second that a message must come or be read at
LINGER_S, LINGER_BYTES = 1.0, 4 << 20  # for a client to read why it is refused, while it still sends
REFUSED = "refused"  # status of a call that showed no known token
OPEN_TO_ALL = ("healthz", "readyz", "openapi", "docs")
STATUS = {  # by class of error, the most special first
    BusyError: 503,
    ServiceError: 500,
    NotFoundError: 404,
    IncompatibleError: 409,
    UsageError: 400,
    ResourceError: 507,
    MemoryIndexError: 422,
}


class RefusedError(Exception):
    """An error that has a status of its own in HTTP."""

    def __init__(self, status: int, error: MemoryIndexError) -> None:
        super().__init__(str(error))
        self.status, self.error = status, error


class Reply(NamedTuple):
    """What is answered. content: bytes, or pieces of them with their total number."""

    kind: str
    content: bytes | tuple[int, AsyncIterator[bytes]]
    status: int = 200
    headers: Mapping[str, str] = {}


@dataclass(kw_only=True, slots=True)
class Call:
    """One call, as the log and the metrics tell it: what was asked, never a value or the name of a series.

    caller: name of the token, empty without one. status: `ok`, or the class of the error; http: the same as a number.
    moments, num_series, k: of a question. waited_s: for a turn. bytes_in, bytes_out: of the bodies.
    """

    method: str
    caller: str = ""
    peer: str = ""
    ref: str = ""
    fingerprint: str = ""
    run: str = ""
    policy: str = ""
    moments: int = 0
    num_series: int = 0
    k: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    waited_s: float = 0.0
    seconds: float = 0.0
    status: str = "ok"
    http: int = 200


Take = Callable[[int], None]  # counts bytes that are held
Answer = Callable[[Request, Call, Take], Awaitable[Reply]]


class Host(Protocol):
    """What all calls of an application share. stall_s: to take an answer, beside the time that its size needs."""

    is_draining: bool
    num_under_way: int
    stall_s: float
    report: Callable[[Call], None]

    def share(self) -> AbstractContextManager[Take]:
        """What a call counts the bytes with that it holds."""

    def admit(self, request: Request, call: Call) -> None:
        """Raises `RefusedError` for whoever may not ask."""


class Endpoint:
    """One kind of call, as an ASGI application: admitted, answered or refused, and told."""

    def __init__(self, app: Host, verb: str, name: str) -> None:
        self.app, self.verb, self.name = app, verb, name

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """One request."""
        request = Request(scope, receive)
        call = Call(method=self.name, peer=":".join(map(str, scope.get("client") or ())))
        started = time.perf_counter()
        self.app.num_under_way += 1
        try:
            with self.app.share() as take:
                try:
                    reply = await self._answered(request, call, take)
                except ClientDisconnect:
                    call.status = "gone"
                    return
                await self._send(request, call, reply, send)
        finally:
            self.app.num_under_way -= 1
            call.seconds = time.perf_counter() - started
            self.app.report(call)

    async def _answered(self, request: Request, call: Call, take: Take) -> Reply:
        try:
            if self.name not in OPEN_TO_ALL:
                self.app.admit(request, call)
            if self.verb not in ("", request.method) and (self.verb, request.method) != ("GET", "HEAD"):
                error = UsageError(
                    f"{request.url.path[:100]} is asked with {self.verb}, not with {request.method[:10]}"
                )
                raise RefusedError(405, error)
            answer: Answer = getattr(self.app, f"_{self.name}")
            return await answer(request, call, take)
        except ClientDisconnect:
            raise
        except Exception as raised:  # noqa: BLE001 - a client is told of every failure, and the server goes on
            return _refusal(raised, call)

    async def _send(self, request: Request, call: Call, reply: Reply, send: Any) -> None:
        """Send a reply, cutting off whoever does not read it. A body that was not read is read on for a moment."""
        size, pieces = (len(reply.content), None) if isinstance(reply.content, bytes) else reply.content
        call.http, call.bytes_out = reply.status, size
        has_body = request.headers.get("content-length", "0") != "0" or "transfer-encoding" in request.headers
        is_unread = has_body and not call.bytes_in
        headers = {"content-type": reply.kind, "content-length": str(size), **reply.headers}
        headers |= {"connection": "close"} if is_unread or self.app.is_draining else {}
        raw = [(name.encode(), value.encode()) for name, value in headers.items()]
        now, stall_s = asyncio.get_running_loop().time, self.app.stall_s
        until = now() + stall_s + size / LEAST_RATE
        try:
            async with asyncio.timeout(stall_s) as limit:
                await send({"type": "http.response.start", "status": reply.status, "headers": raw})
                async for piece in pieces or _pieces(reply.content):
                    await send({"type": "http.response.body", "body": piece, "more_body": True})
                    limit.reschedule(min(now() + stall_s, until))
        except TimeoutError:
            call.status = "unread"
            request.scope["state"]["connection"].cut("an answer was not read", is_told=False)
            return
        if is_unread and "expect" not in request.headers:
            await _linger(request)
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _pieces(content: Any) -> AsyncIterator[bytes]:
    for start in range(0, len(content), PIECE):
        yield content[start : start + PIECE]


async def _linger(request: Request) -> None:
    """Read on for a moment: a connection that is closed on a client that still sends takes the answer with it."""
    num_bytes = 0
    with suppress(TimeoutError):
        async with asyncio.timeout(LINGER_S):
            while num_bytes < LINGER_BYTES:
                message = await request.receive()
                num_bytes += len(message.get("body", b""))
                if not message.get("more_body", False):
                    return


def too_large(num_bytes: int, most: int) -> UsageError:
    """What is said of a message of so many bytes."""
    return UsageError(f"a message of {num_bytes:,} bytes: at most {most:,} are taken", hint="ask in parts")


def _refusal(raised: Exception, call: Call) -> Reply:
    """The reply to what failed. What is not ours is told to whoever keeps the service, not to the client."""
    error: Exception = raised.error if isinstance(raised, RefusedError) else raised
    if isinstance(error, MemoryError):
        error = ResourceError("the question needs more memory than the service may use", hint="ask in smaller parts")
    elif not isinstance(error, MemoryIndexError):
        traceback.print_exception(error)
        error = ServiceError("the service has failed on this question; its log says how")
    call.status = call.status if call.status == REFUSED else type(error).__name__
    status = next(each for kind, each in STATUS.items() if isinstance(error, kind))
    status = raised.status if isinstance(raised, RefusedError) else status
    headers = {"retry-after": "1"} if status == 503 else {"www-authenticate": "Bearer"} if status == 401 else {}
    return Reply(JSON, messages.write_error(error), status, headers)
