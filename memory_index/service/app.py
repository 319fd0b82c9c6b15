"""The memory over HTTP: who may ask, what they may ask, and the answers.

    GET  /v1/indexes                        what is served
    GET  /v1/indexes/{ref}                  NAME@3, manifest, limits; a client is pinned to the fingerprint from then on
    GET  /v1/indexes/{ref}/files/{path}     one file of a version (series, windows, encoder)
    POST /v1/indexes/{ref}/search           neighbours: Arrow or JSON
    POST /v1/runs/{run}/forecast, /explain  a table in, a table or a document out (what answers is mounted here)
    GET  /healthz, /readyz, /metrics, /openapi.json, /docs

In place of a reference stands the fingerprint of a version that was opened before. Which versions there are is
`hosted.py`, how questions travel is `wire.py`, and how all of it is started and ended is `serving.py`. Nothing here
believes what it is told. Requests are handled in one thread; what takes time, in few others: one that searches, and two
that read questions.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import os
import time
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.routing import Route, Router

from memory_index.access import Token
from memory_index.errors import (
    BusyError,
    IncompatibleError,
    MemoryIndexError,
    NotFoundError,
    ResourceError,
    ServiceError,
    UsageError,
)
from memory_index.leakage import Policy
from memory_index.queries import BLOCK
from memory_index.service import wire
from memory_index.service.hosted import Hosted, Hosting
from memory_index.service.wire import ARROW, CSV, JSON, Limits, Question
from memory_index.types import Memory, Neighbours

if TYPE_CHECKING:
    from memory_index.service.serving import Settings

PIECE = 256 << 10  # bytes that are sent at once
LEAST_RATE = 65536  # bytes per second that a message must come or be read at
LINGER_S, LINGER_BYTES = 1.0, 4 << 20  # for a client to read why it is refused, while it still sends
REFUSED = "refused"  # status of a call that showed no known token
TOKEN_HINT = "--token-file FILE with a token of the service's own file"
TIMES_AS_LARGE = 16  # a table that is read, beside the bytes that it came as
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

T = TypeVar("T")


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


class RunQuestion(NamedTuple):
    """What is asked of a run, as it came. action: `forecast` or `explain`. query: of the address. accept: what kind of
    answer is wanted. limits: what may be asked at once.
    """

    action: str
    kind: str
    body: bytes
    query: Mapping[str, str]
    accept: str
    limits: Limits


class ServedRun(Protocol):
    """A trained run; `forecaster/serving.py` has them."""

    @property
    def ref(self) -> str:
        """The version that it asks unless another is named."""

    def answer(self, question: RunQuestion, memory: Memory, ref: str) -> tuple[str, bytes]:
        """What kind of answer, and the answer. memory, ref: the version to be asked. Raises `MemoryIndexError`."""


class TimedMemory:
    """A memory that is not asked any more once the time of a request is over."""

    def __init__(self, memory: Memory, until: float) -> None:
        self._memory, self._until = memory, until

    def __getattr__(self, name: str) -> Any:
        return getattr(self._memory, name)

    def search(self, *arguments: Any, **options: Any) -> Neighbours:
        """See `Memory.search`."""
        require_time(self._until)
        return self._memory.search(*arguments, **options)


def require_time(until: float) -> None:
    """Raise `RefusedError` when it is later (`time.monotonic`)."""
    if time.monotonic() > until:
        error = ServiceError(
            "the question takes longer than this service allows", hint="ask for fewer moments or series at once"
        )
        raise RefusedError(504, error)


class Turns:
    """One piece of work at a time, in one thread, in the order it was asked for; at most `max_waiting` wait.

    One search uses all cores well; several at a time would finish later, each of them. All is done in one thread:
    FAISS and NumPy keep a team of threads for each thread that calls them, and the teams of many callers on busy cores
    made a search ten times as long.
    """

    def __init__(self, max_waiting: int) -> None:
        self._max_waiting, self._free = max_waiting, asyncio.Lock()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="search")
        self.num_waiting, self.is_at_work = 0, False

    async def take(self, work: Callable[[float], T], wait_s: float, is_gone: Callable[[], Awaitable[bool]]) -> T:
        """What the work returns or raises. work: is given the seconds that were waited.

        Raises `BusyError` if it would wait longer than `wait_s`, or if too many wait already, and `ClientDisconnect`
        if nobody waits for the answer any more when its turn has come.
        """
        if self._free.locked() and self.num_waiting >= self._max_waiting:
            raise BusyError(f"the service is busy: {self.num_waiting} questions wait already", hint="ask later")
        since = time.monotonic()
        self.num_waiting += 1
        try:
            async with asyncio.timeout(wait_s):
                await self._free.acquire()
        except TimeoutError:
            raise BusyError(
                f"the service is busy: no turn within {wait_s:.1f} s", hint="ask later, or less at once"
            ) from None
        finally:
            self.num_waiting -= 1
        try:
            if await is_gone():
                raise ClientDisconnect
            self.is_at_work = True
            return await asyncio.get_running_loop().run_in_executor(self._thread, self._done, work, since)
        finally:
            self._free.release()

    def _done(self, work: Callable[[float], T], since: float) -> T:
        try:
            return work(time.monotonic() - since)
        finally:
            self.is_at_work = False  # not before, though nobody may wait for it any more

    def close(self) -> None:
        """Begin nothing any more. What has begun goes on: a search cannot be broken off."""
        self._thread.shutdown(wait=False, cancel_futures=True)


class Budget:
    """Bytes that all requests together may hold; what one needs beyond that is told to come again.

    A single request is always let in: what it may need is bounded by `Limits`.
    """

    def __init__(self, most: int) -> None:
        self._most, self._held = most, 0

    @contextmanager
    def share(self) -> Iterator[Callable[[int], None]]:
        """A function that counts so many bytes more, until the block ends. Raises `BusyError`."""
        mine = 0

        def take(num_bytes: int) -> None:
            nonlocal mine
            if self._held > mine and self._held + num_bytes > self._most:
                raise BusyError(
                    f"the service is busy: {self._held >> 20} MB of questions are held already", hint="ask later"
                )
            self._held += num_bytes
            mine += num_bytes

        try:
            yield take
        finally:
            self._held -= mine


class App:
    """An ASGI application over the versions of a `Hosting`.

    tokens: who may ask; called for every request, so that they can change; none lets everybody in. runs: by name.
    report: told of every call when it is over. page: of the metrics.
    """

    ROUTES: ClassVar = {
        ("GET", "/healthz"): "healthz",
        ("GET", "/readyz"): "readyz",
        ("GET", "/metrics"): "metrics",
        ("GET", "/openapi.json"): "openapi",
        ("GET", "/docs"): "docs",
        ("GET", "/v1/indexes"): "list",
        ("GET", "/v1/indexes/{ref}"): "open",
        ("GET", "/v1/indexes/{ref}/files/{path:path}"): "get",
        ("POST", "/v1/indexes/{ref}/search"): "search",
        ("POST", "/v1/runs/{run}/forecast"): "forecast",
        ("POST", "/v1/runs/{run}/explain"): "explain",
        ("", "/{path:path}"): "unknown",
    }

    def __init__(
        self,
        hosting: Hosting,
        settings: Settings,
        *,
        tokens: Callable[[], Sequence[Token]],
        report: Callable[[Call], None],
        runs: Mapping[str, ServedRun],
        status: Callable[[], dict[str, Any]],
        metrics: Callable[[], bytes],
    ) -> None:
        self.hosting, self.settings, self.limits = hosting, settings, settings.limits
        self.tokens, self.report, self.runs, self.metrics, self.status = tokens, report, runs, metrics, status
        self.is_draining = False
        self.num_under_way = 0
        self.turns, self.budget = Turns(settings.max_waiting), Budget(settings.max_held)
        self._reading = ThreadPoolExecutor(2, thread_name_prefix="read")
        routes = [Route(path, Endpoint(self, verb, name)) for (verb, path), name in self.ROUTES.items()]
        self.asgi = Router(routes, redirect_slashes=False)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """One request."""
        await self.asgi(scope, receive, send)

    def close(self) -> None:
        """Begin nothing any more."""
        self.turns.close()
        self._reading.shutdown(wait=False, cancel_futures=True)

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
            said = "refuses this token" if token else "wants a token, and none was given"
            call.status = REFUSED
            raise RefusedError(401, ServiceError(f"the service {said}", hint=TOKEN_HINT))
        call.caller = matching[0].name

    # What is asked

    async def _healthz(self, request: Request, call: Call, take: Take) -> Reply:
        return Reply("text/plain; charset=utf-8", b"ok\n")

    async def _readyz(self, request: Request, call: Call, take: Take) -> Reply:
        """Whoever shows no token where one is wanted is told only whether, not what."""
        found = self.status()
        try:
            self.admit(request, call)
        except RefusedError:
            call.status, found = "ok", {"ready": found["ready"]}
        return _document(found, status=200 if found["ready"] else 503)

    async def _metrics(self, request: Request, call: Call, take: Take) -> Reply:
        return Reply("text/plain; version=0.0.4; charset=utf-8", self.metrics())

    async def _openapi(self, request: Request, call: Call, take: Take) -> Reply:
        return Reply(JSON, (Path(__file__).parent / "openapi.json").read_bytes())

    async def _docs(self, request: Request, call: Call, take: Take) -> Reply:
        return Reply("text/html; charset=utf-8", (Path(__file__).parent / "docs.html").read_bytes())

    async def _unknown(self, request: Request, call: Call, take: Take) -> Reply:
        raise NotFoundError(f"there is nothing at {request.url.path[:100]}", hint="/docs says what there is")

    async def _list(self, request: Request, call: Call, take: Take) -> Reply:
        return _document(
            {"indexes": self.hosting.versions(), "runs": {name: run.ref for name, run in self.runs.items()}}
        )

    async def _open(self, request: Request, call: Call, take: Take) -> Reply:
        hosted = self._hosted(request.path_params["ref"], call)
        opened = {
            "protocol": wire.PROTOCOL,
            "ref": hosted.ref,
            "fingerprint": hosted.fingerprint,
            "limits": asdict(self.limits),
            "causal_only": self.settings.causal_only,
            "answered_by": hosted.memory.answered_by,
            "manifest": asdict(hosted.memory.manifest),
        }
        return Reply(JSON, json.dumps(opened).encode())

    async def _get(self, request: Request, call: Call, take: Take) -> Reply:
        hosted, path = self._hosted(request.path_params["ref"], call), request.path_params["path"]
        if path not in hosted.files:
            raise NotFoundError(f"{hosted.ref} has no file '{path[:200]}' that a client needs")
        take(2 * PIECE)

        async def pieces() -> AsyncIterator[bytes]:
            with self.hosting.using(hosted):
                offset = 0
                while piece := await self._read(os.pread, hosted.files[path], PIECE, offset):
                    yield piece
                    offset += len(piece)

        size = hosted.memory.manifest.files[path].bytes
        return Reply("application/octet-stream", (size, pieces()), headers={"etag": f'"{hosted.fingerprint}"'})

    async def _search(self, request: Request, call: Call, take: Take) -> Reply:
        hosted = self._hosted(request.path_params["ref"], call)
        kind, body = await self._body(request, call, take, (ARROW, JSON))
        manifest = hosted.memory.manifest
        if kind == ARROW:
            question = await self._read(wire.read_question, body, self.limits, len(manifest.spaces))
        else:
            question = await self._read(wire.read_json_question, body, self.limits, len(manifest.spaces), manifest.step)
        queries = question.queries
        call.policy, call.k = queries.policy.value, question.k
        call.moments, call.num_series = len(queries), len(queries.series_id)
        if self.settings.causal_only and queries.policy is not Policy.CAUSAL:
            raise IncompatibleError(
                f"this service answers under '{Policy.CAUSAL}' only, not under '{queries.policy}'",
                hint="a training asks so with --set num_folds=1 only; by default it asks its own table",
            )
        take(3 * wire.answer_bytes(call.moments * call.num_series, len(manifest.spaces), question.k))
        write = wire.write_answer if kind == ARROW else wire.write_json_answer

        def answered(until: float) -> bytes:
            return write(self._found(hosted, question, until))

        return Reply(kind, await self._in_turn(request, call, hosted, answered, question.wait_s))

    async def _forecast(self, request: Request, call: Call, take: Take) -> Reply:
        return await self._by_run(request, call, take)

    _explain = _forecast

    async def _by_run(self, request: Request, call: Call, take: Take) -> Reply:
        run = self.runs.get(request.path_params["run"])
        if run is None:
            served = f"served are {', '.join(self.runs)}" if self.runs else "cli index serve ... --run RUN"
            raise NotFoundError(f"no run '{request.path_params['run'][:100]}' is served here", hint=served)
        call.run, query = request.path_params["run"], dict(request.query_params)
        hosted = self._hosted(query.get("index") or run.ref, call)
        kind, body = await self._body(request, call, take, (JSON, ARROW, CSV))
        take(TIMES_AS_LARGE * len(body))
        asked = RunQuestion(call.method, kind, body, query, request.headers.get("accept", ""), self.limits)

        def answered(until: float) -> tuple[str, bytes]:
            return run.answer(asked, TimedMemory(hosted.memory, until), hosted.ref)

        return Reply(*await self._in_turn(request, call, hosted, answered, self.limits.max_seconds))

    # How it is done

    def _hosted(self, ref: str, call: Call) -> Hosted:
        hosted = self.hosting.open(ref)
        call.ref, call.fingerprint = hosted.ref, hosted.fingerprint
        return hosted

    async def _read(self, function: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._reading, function, *arguments)

    async def _in_turn(
        self, request: Request, call: Call, hosted: Hosted, work: Callable[[float], T], wait_s: float
    ) -> T:
        """The work done when it is its turn. work: is given until when (`time.monotonic`) it may search."""
        if self.is_draining:
            raise BusyError("the service is about to end", hint="ask again in a moment, or another one")

        def begun(waited_s: float) -> T:
            call.waited_s = waited_s
            try:
                return work(time.monotonic() + self.limits.max_seconds)
            except ServiceError:
                self.hosting.doubt(hosted)
                raise

        with self.hosting.using(hosted):
            return await self.turns.take(begun, min(max(wait_s, 0), self.limits.max_seconds), request.is_disconnected)

    def _found(self, hosted: Hosted, question: Question, until: float) -> Neighbours:
        """In blocks of moments, between which the time is looked at."""
        parts = []
        for start in range(0, max(len(question.queries), 1), BLOCK):
            require_time(until)
            some = wire.some_of(question.queries, slice(start, start + BLOCK))
            options: dict[str, Any] = {"scopes": question.scopes, "views": question.views, "where": question.where}
            parts.append(hosted.memory.search(some, question.k, min_gap=question.min_gap, **options))
        return wire.joined(parts, question.queries)

    async def _body(self, request: Request, call: Call, take: Take, kinds: Sequence[str]) -> tuple[str, bytes]:
        """What kind of body a request has, and the body. Raises `RefusedError` beyond a limit."""
        kind = request.headers.get("content-type", JSON).partition(";")[0].strip().lower()
        if kind == "application/x-www-form-urlencoded":  # which curl says of any data, unless it is told
            kind = JSON
        encoding = request.headers.get("content-encoding", "identity")
        if kind not in kinds or encoding != "identity":
            raise RefusedError(415, UsageError(f"a body is {' or '.join(kinds)}, and not compressed"))
        most, said = self.limits.max_message, request.headers.get("content-length")
        length = int(said) if said is not None else most  # the server has seen that it is a number
        if length > most:
            raise RefusedError(413, _too_large(length, most))
        take(length)
        body, until = bytearray(), asyncio.get_running_loop().time() + self.settings.stall_s
        try:
            async with asyncio.timeout_at(until) as limit:
                async for chunk in request.stream():
                    body += chunk
                    if len(body) > most:
                        raise RefusedError(413, _too_large(len(body), most))
                    limit.reschedule(until + len(body) / LEAST_RATE)
        except TimeoutError:
            error = ServiceError("the body of the request came too slowly", hint="ask for less at once")
            raise RefusedError(408, error) from None
        call.bytes_in = len(body)
        return kind, bytes(body)


Take = Callable[[int], None]
Answer = Callable[[Request, Call, Take], Awaitable[Reply]]


class Endpoint:
    """One kind of call, as an ASGI application: admitted, answered or refused, and told."""

    def __init__(self, app: App, verb: str, name: str) -> None:
        self.app, self.verb, self.name = app, verb, name

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """One request."""
        request = Request(scope, receive)
        call = Call(method=self.name, peer=":".join(map(str, scope.get("client") or ())))
        started = time.perf_counter()
        self.app.num_under_way += 1
        try:
            with self.app.budget.share() as take:
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
        now, stall_s = asyncio.get_running_loop().time, self.app.settings.stall_s
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


def _document(found: Mapping[str, Any], status: int = 200) -> Reply:
    return Reply(JSON, json.dumps(found).encode(), status)


def _too_large(num_bytes: int, most: int) -> UsageError:
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
    return Reply(JSON, wire.write_error(error), status, headers)
