"""The memory over HTTP: what can be asked (`App.ROUTES`), and the answers.

In place of a reference may stand the fingerprint of a version that was opened before: a client is pinned to it. Nothing
here believes what it is told. Requests are handled in one thread; what takes time, in few others: one that searches,
and two that read large questions and files.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol, TypeVar

from starlette.requests import Request

from memory_index import wire
from memory_index.errors import BusyError, IncompatibleError, NotFoundError, ServiceError
from memory_index.leakage import Policy
from memory_index.memory import Memory
from memory_index.neighbours import Neighbours
from memory_index.queries import BLOCK
from memory_index.service.calls import PIECE, Call, Calls, Reply, Take
from memory_index.service.hosted import Hosted, Hosting
from memory_index.service.refusals import RefusedError
from memory_index.service.settings import Settings
from memory_index.service.turns import TimedMemory, Turns
from memory_index.wire import ARROW, CSV, JSON, Limits, Question

TIMES_AS_LARGE = 16  # a table that is read, beside the bytes that it came as
HERE = Path(__file__).parent

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
    """A trained run; `forecaster/serving.py` has them. ref: the version that it asks unless another is named."""

    @property
    def ref(self) -> str: ...

    @property
    def folder(self) -> Path: ...

    def answer(self, question: RunQuestion, memory: Memory, ref: str) -> tuple[str, bytes]:
        """What kind of answer, and the answer. memory, ref: the version to be asked. Raises `MemoryIndexError`."""


class App(Calls):
    """The calls over the versions of a `Hosting`.

    runs: what forecasts, by name. status, metrics: what `/readyz` and `/metrics` show. others: of `Calls`.
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
        runs: Mapping[str, ServedRun],
        status: Callable[[], dict[str, Any]],
        metrics: Callable[[], bytes],
        **others: Any,
    ) -> None:
        super().__init__(settings, **others)
        self.hosting, self.runs, self.status, self.metrics = hosting, runs, status, metrics
        self.turns = Turns(settings.max_waiting)

    def close(self) -> None:
        """Begin nothing any more."""
        self.turns.close()

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
        return Reply(JSON, self.places.without(json.dumps(found)).encode(), 200 if found["ready"] else 503)

    async def _metrics(self, request: Request, call: Call, take: Take) -> Reply:
        return Reply("text/plain; version=0.0.4; charset=utf-8", self.metrics())

    async def _openapi(self, request: Request, call: Call, take: Take) -> Reply:
        return Reply(JSON, (HERE / "openapi.json").read_bytes())

    async def _docs(self, request: Request, call: Call, take: Take) -> Reply:
        return Reply("text/html; charset=utf-8", (HERE / "docs.html").read_bytes())

    async def _unknown(self, request: Request, call: Call, take: Take) -> Reply:
        raise NotFoundError(f"there is nothing at {request.url.path[:100]}", hint="/docs says what there is")

    async def _list(self, request: Request, call: Call, take: Take) -> Reply:
        runs = {name: run.ref for name, run in self.runs.items()}
        return Reply(JSON, json.dumps({"indexes": self.hosting.versions(), "runs": runs}).encode())

    async def _open(self, request: Request, call: Call, take: Take) -> Reply:
        hosted = self._hosted(request.path_params["ref"], call)
        opened = {
            "protocol": wire.PROTOCOL,
            "ref": hosted.ref,
            "fingerprint": hosted.fingerprint,
            "limits": asdict(self.settings.limits),
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
                while piece := await asyncio.to_thread(os.pread, hosted.files[path], PIECE, offset):
                    yield piece
                    offset += len(piece)

        size = hosted.memory.manifest.files[path].bytes
        return Reply("application/octet-stream", (size, pieces()), headers={"etag": f'"{hosted.fingerprint}"'})

    async def _search(self, request: Request, call: Call, take: Take) -> Reply:
        hosted = self._hosted(request.path_params["ref"], call)
        kind, body = await self.body(request, call, take, (ARROW, JSON))
        manifest, limits = hosted.memory.manifest, self.settings.limits
        write = wire.write_answer if kind == ARROW else wire.write_json_answer
        read: partial[Question] = partial(wire.read_json_question, step=manifest.step)
        if kind == ARROW:
            read = partial(wire.read_question, with_covariates=bool(manifest.covariates))
        given = body, limits, len(manifest.spaces)
        question = read(*given) if len(body) <= PIECE else await asyncio.to_thread(read, *given)
        queries = question.queries
        call.policy, call.k = queries.policy.value, question.k
        call.moments, call.num_series = len(queries), len(queries.series_id)
        if self.settings.causal_only and queries.policy is not Policy.CAUSAL:
            raise IncompatibleError(
                f"this service answers under '{Policy.CAUSAL}' only, not under '{queries.policy}'",
                hint="a training asks so with --set num_folds=1 only; by default it asks its own table",
            )
        take(3 * wire.answer_bytes(call.moments * call.num_series, len(manifest.spaces), question.k))
        work = partial(self._found, question=question, write=write)
        return Reply(kind, await self._in_turn(request, call, hosted, work, question.wait_s))

    async def _forecast(self, request: Request, call: Call, take: Take) -> Reply:
        name, query = request.path_params["run"], dict(request.query_params)
        run = self.runs.get(name)
        if run is None:
            served = f"served are {', '.join(self.runs)}" if self.runs else "cli index serve ... --run RUN"
            raise NotFoundError(f"no run '{name[:100]}' is served here", hint=served)
        call.run, hosted = name, self._hosted(query.get("index") or run.ref, call)
        kind, body = await self.body(request, call, take, (JSON, ARROW, CSV))
        take(TIMES_AS_LARGE * len(body))
        accept, limits = request.headers.get("accept", ""), self.settings.limits
        work = partial(run.answer, RunQuestion(call.method, kind, body, query, accept, limits), ref=hosted.ref)
        return Reply(*await self._in_turn(request, call, hosted, work, limits.max_seconds))

    _explain = _forecast

    # How it is done

    def _hosted(self, ref: str, call: Call) -> Hosted:
        hosted = self.hosting.open(ref)
        call.ref, call.fingerprint = hosted.ref, hosted.fingerprint
        return hosted

    async def _in_turn(
        self, request: Request, call: Call, hosted: Hosted, work: Callable[[Memory], T], wait_s: float
    ) -> T:
        """The work done when it is its turn, with a memory that it may ask until its time is over."""
        if self.is_draining:
            raise BusyError("the service is about to end", hint="ask again in a moment, or another one")
        max_seconds, connection = self.settings.limits.max_seconds, request.scope["state"]["connection"]

        def begun(waited_s: float) -> T:
            call.waited_s = waited_s
            try:
                return work(TimedMemory(hosted.memory, time.monotonic() + max_seconds))
            except ServiceError:
                self.hosting.doubt(hosted)
                raise

        with self.hosting.using(hosted):
            return await self.turns.take(begun, min(max(wait_s, 0), max_seconds), lambda: connection.cycle.disconnected)

    def _found(self, memory: Memory, question: Question, write: Callable[[Neighbours], bytes]) -> bytes:
        """In blocks of moments, between which the time is looked at."""
        parts = []
        for start in range(0, max(len(question.queries), 1), BLOCK):
            some = wire.some_of(question.queries, slice(start, start + BLOCK))
            options: dict[str, Any] = {"scopes": question.scopes, "views": question.views, "where": question.where}
            parts.append(memory.search(some, question.k, min_gap=question.min_gap, **options))
        return write(wire.joined(parts, question.queries))
