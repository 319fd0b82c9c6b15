"""One call of the service, from its beginning to its end: let in, answered or refused, sent, and told.

What is answered is `app.py`.
"""

from __future__ import annotations

import asyncio
import hmac
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, NamedTuple

from starlette.requests import ClientDisconnect, Request
from starlette.routing import Route, Router

from memory_index import messages
from memory_index.access import Token
from memory_index.errors import ServiceError, UsageError
from memory_index.service.refusals import Places, RefusedError, refusal, too_large
from memory_index.service.settings import Settings
from memory_index.service.turns import Budget
from memory_index.wire import JSON

PIECE = 256 << 10  # bytes that are sent at once
LEAST_RATE = 65536  # bytes per second that a message must come or be read at
LINGER_S, LINGER_BYTES = 1.0, 4 << 20  # for a client to read why it is refused, while it still sends
REFUSED = "refused"  # status of a call that showed no known token
OPEN_TO_ALL = ("healthz", "readyz", "openapi", "docs")

Take = Callable[[int], None]  # counts bytes that are held


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


class Calls:
    """An ASGI application, `asgi`, whose calls are answered by its methods: `_search(request, call, take)`, a `Reply`.

    tokens: who may ask; called for every request, so that they can change; none lets everybody in. report: told of
    every call when it is over. places: not told to clients.
    """

    ROUTES: ClassVar[Mapping[tuple[str, str], str]]  # (verb, path): the method

    def __init__(
        self,
        settings: Settings,
        *,
        tokens: Callable[[], Sequence[Token]],
        report: Callable[[Call], None],
        places: Places,
    ) -> None:
        self.settings, self.tokens, self.report, self.places = settings, tokens, report, places
        self.is_draining, self.num_under_way, self.budget = False, 0, Budget(settings.max_held)
        self.asgi = Router(
            [Route(path, partial(self, verb, name)) for (verb, path), name in self.ROUTES.items()],
            redirect_slashes=False,
        )

    async def __call__(self, verb: str, name: str, scope: Any, receive: Any, send: Any) -> None:
        """One request to one route."""
        request = Request(scope, receive)
        call = Call(method=name, peer=":".join(map(str, scope.get("client") or ())))
        started = time.perf_counter()
        self.num_under_way += 1
        try:
            with self.budget.share() as take:
                await self._send(request, call, await self._answered(verb, request, call, take), send)
        except ClientDisconnect:
            call.status = "gone"
        finally:
            self.num_under_way -= 1
            call.seconds = time.perf_counter() - started
            self.report(call)

    async def _answered(self, verb: str, request: Request, call: Call, take: Take) -> Reply:
        try:
            if call.method not in OPEN_TO_ALL:
                self.admit(request, call)
            if verb not in ("", request.method) and (verb, request.method) != ("GET", "HEAD"):
                said = f"{request.url.path[:100]} is asked with {verb}, not with {request.method[:10]}"
                raise RefusedError(405, UsageError(said))
            answer: Callable[[Request, Call, Take], Awaitable[Reply]] = getattr(self, f"_{call.method}")
            return await answer(request, call, take)
        except ClientDisconnect:
            raise
        except Exception as raised:  # noqa: BLE001 - a client is told of every failure, and the server goes on
            status, error = refusal(raised)
            call.status = call.status if call.status == REFUSED else type(error).__name__
            headers = {503: {"retry-after": "1"}, 401: {"www-authenticate": "Bearer"}}.get(status, {})
            return Reply(JSON, messages.write_error(error, self.places.without), status, headers)

    def admit(self, request: Request, call: Call) -> None:
        """Compare the token of a request with every one that is known, each in constant time.

        Raises `RefusedError`, before anything of the body is read.
        """
        known = self.tokens()
        if not known:
            return
        [shown, *more] = request.headers.getlist("authorization") or [""]
        scheme, _, token = shown.partition(" ")
        matching = [each for each in known if hmac.compare_digest(each.token.encode(), token.encode())]
        if not matching or more or scheme.lower() != "bearer":
            call.status, said = REFUSED, "refuses this token" if token else "wants a token, and none was given"
            hint = "--token-file FILE with a token of the service's own file"
            raise RefusedError(401, ServiceError(f"the service {said}", hint=hint))
        call.caller = matching[0].name

    async def body(self, request: Request, call: Call, take: Take, kinds: Sequence[str]) -> tuple[str, bytes]:
        """What kind of body a request has, and the body. Raises `RefusedError` beyond a limit."""
        kind = request.headers.get("content-type", JSON).partition(";")[0].strip().lower()
        if kind == "application/x-www-form-urlencoded":  # which curl says of any data, unless it is told
            kind = JSON
        if kind not in kinds or request.headers.get("content-encoding", "identity") != "identity":
            raise RefusedError(415, UsageError(f"a body is {' or '.join(kinds)}, and not compressed"))
        most, said = self.settings.limits.max_message, request.headers.get("content-length")
        length = int(said) if said is not None else most  # the server has seen that it is a number
        if length > most:
            raise too_large(length, most)
        take(length)
        body, until = bytearray(), asyncio.get_running_loop().time() + self.settings.stall_s
        try:
            async with asyncio.timeout_at(until) as limit:
                async for chunk in request.stream():
                    body += chunk
                    if len(body) > most:
                        raise too_large(len(body), most)
                    limit.reschedule(until + len(body) / LEAST_RATE)
        except TimeoutError:
            error = ServiceError("the body of the request came too slowly", hint="ask for less at once")
            raise RefusedError(408, error) from None
        call.bytes_in = len(body)
        return kind, bytes(body)

    async def _send(self, request: Request, call: Call, reply: Reply, send: Any) -> None:
        """Send a reply, cutting off whoever does not read it. A body that was not read is read on for a moment."""
        size, pieces = (len(reply.content), None) if isinstance(reply.content, bytes) else reply.content
        call.http, call.bytes_out = reply.status, size
        has_body = request.headers.get("content-length", "0") != "0" or "transfer-encoding" in request.headers
        is_unread = has_body and not call.bytes_in
        headers = {"content-type": reply.kind, "content-length": str(size), **reply.headers}
        headers |= {"connection": "close"} if is_unread or self.is_draining else {}
        raw = [(name.encode(), value.encode()) for name, value in headers.items()]
        now, stall_s = asyncio.get_running_loop().time, self.settings.stall_s
        until = now() + stall_s + size / LEAST_RATE
        try:
            async with asyncio.timeout(stall_s) as limit:
                await send({"type": "http.response.start", "status": reply.status, "headers": raw})
                async for piece in pieces or _pieces(reply.content):
                    await send({"type": "http.response.body", "body": piece, "more_body": True})
                    limit.reschedule(min(now() + stall_s, until))
        except TimeoutError:
            call.status = "unread"
            request.scope["state"]["connection"].cut("")
            return
        if is_unread and "expect" not in request.headers:
            await _linger(request)
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _pieces(content: Any) -> AsyncIterator[memoryview]:
    for start in range(0, len(content), PIECE):
        yield memoryview(content)[start : start + PIECE]


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
