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
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol, TypeVar

from starlette.requests import Request
from starlette.routing import Route, Router

from memory_index.access import Token
from memory_index.errors import (
    BusyError,
    IncompatibleError,
    NotFoundError,
    ServiceError,
    UsageError,
)
from memory_index.leakage import Policy
from memory_index.memory import Memory
from memory_index.neighbours import Neighbours
from memory_index.queries import BLOCK
from memory_index.service import wire
from memory_index.service.calls import LEAST_RATE, PIECE, REFUSED, Call, Endpoint, RefusedError, Reply, Take, too_large
from memory_index.service.hosted import Hosted, Hosting
from memory_index.service.settings import Settings
from memory_index.service.turns import Budget, TimedMemory, Turns, require_time
from memory_index.service.wire import ARROW, CSV, JSON, Limits, Question

TOKEN_HINT = "--token-file FILE with a token of the service's own file"
TIMES_AS_LARGE = 16  # a table that is read, beside the bytes that it came as

T = TypeVar("T")


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
        self.is_draining, self.stall_s = False, settings.stall_s
        self.num_under_way = 0
        self.turns, self.budget = Turns(settings.max_waiting), Budget(settings.max_held)
        self._reading = ThreadPoolExecutor(2, thread_name_prefix="read")
        routes = [Route(path, Endpoint(self, verb, name)) for (verb, path), name in self.ROUTES.items()]
        self.asgi = Router(routes, redirect_slashes=False)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """One request."""
        await self.asgi(scope, receive, send)

    def share(self) -> AbstractContextManager[Take]:
        """See `Budget.share`."""
        return self.budget.share()

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
            "manifest": hosted.memory.manifest.to_document(),
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
            raise RefusedError(413, too_large(length, most))
        take(length)
        body, until = bytearray(), asyncio.get_running_loop().time() + self.settings.stall_s
        try:
            async with asyncio.timeout_at(until) as limit:
                async for chunk in request.stream():
                    body += chunk
                    if len(body) > most:
                        raise RefusedError(413, too_large(len(body), most))
                    limit.reschedule(until + len(body) / LEAST_RATE)
        except TimeoutError:
            error = ServiceError("the body of the request came too slowly", hint="ask for less at once")
            raise RefusedError(408, error) from None
        call.bytes_in = len(body)
        return kind, bytes(body)


def _document(found: Mapping[str, Any], status: int = 200) -> Reply:
    return Reply(JSON, json.dumps(found).encode(), status)
