"""The memory as an Arrow Flight server: who may ask, what they may ask, and the answers.

    action "open"      a reference -> NAME@3, manifest, limits; the client is pinned to the fingerprint from then on
    action "status"    what is served, and whether the service is about to end
    get                one file of a version (series, windows, encoder) in pieces: what a client reads neighbours from
    exchange           a stream of questions to one fingerprint, and of their answers

Which versions there are is `hosted.py`, how questions travel is `wire.py`, and how all of it is started and ended is
`serving.py`. Nothing here believes what it is told; the size of messages is limited in front (`guard.py`).
"""

from __future__ import annotations

import hmac
import json
import os
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import flight

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
from memory_index.neighbours import Neighbours
from memory_index.queries import BLOCK
from memory_index.service import wire
from memory_index.service.hosted import Hosted, Hosting
from memory_index.service.turns import Turns
from memory_index.service.wire import Document, Limits, Message, Question

FILE_PIECE = 1 << 20  # bytes of a file in one batch
QUEUED_MESSAGES = 8  # of the largest size that may wait for their turn
ACCESS = "access"  # the middleware that says who asks
REFUSED = "refused"  # status of a call that showed no known token
TOKEN_HINT = "--token-file FILE with a token of the service's own file"
MAX_TOLD = 300  # characters of an error: what travels beside a status is limited to a few kB


@dataclass(kw_only=True, slots=True)
class Request:
    """One call, as the log and the metrics tell it: what was asked, never a value or the name of a series.

    method: open, status, get or search. caller: name of the token, empty without one. status: `ok`, or the class of the
    error. moments, num_series, k: of a question. waited_s: for a turn. bytes_in, bytes_out: of the batches.
    """

    method: str
    caller: str
    peer: str
    ref: str = ""
    fingerprint: str = ""
    policy: str = ""
    moments: int = 0
    num_series: int = 0
    k: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    waited_s: float = 0.0
    seconds: float = 0.0
    status: str = "ok"


class MemoryServer(flight.FlightServerBase):  # type: ignore[misc]  # pyarrow has no types
    """Answers for the versions of a `Hosting`; begins as soon as it is made.

    location: where it listens. tokens: who may ask; called for every call, so that they can change; none lets everybody
    in. causal_only: refuse `disjoint`. max_streams: calls at the same time. report: told of every call when it is over.
    """

    def __init__(
        self,
        location: str,
        hosting: Hosting,
        *,
        limits: Limits,
        tokens: Callable[[], Sequence[Token]],
        causal_only: bool,
        turns: Turns,
        max_streams: int,
        report: Callable[[Request], None],
    ) -> None:
        self.hosting, self.limits, self.causal_only, self.turns = hosting, limits, causal_only, turns
        self.max_streams, self.report, self.tokens = max_streams, report, tokens
        self.is_draining = False
        self._lock = threading.Lock()
        self._num_streams = self._num_under_way = self._bytes_under_way = 0
        self._idle = threading.Condition(self._lock)
        super().__init__(location, middleware={ACCESS: _Admission(tokens, report)})

    # What it does

    def do_action(self, context: flight.ServerCallContext, action: flight.Action) -> Iterator[flight.Result]:
        """Answer `open` and `status`."""
        with self._call(context, action.type[:40]) as request:
            if action.type == wire.STATUS:
                return iter([flight.Result(json.dumps(self.status()).encode())])
            if action.type != wire.OPEN:
                raise UsageError(f"there is no action '{action.type[:40]}'", hint=f"{wire.OPEN} or {wire.STATUS}")
            hosted = self.hosting.open(Document.read(action.body.to_pybytes()).string("ref"))
            request.ref, request.fingerprint = hosted.ref, hosted.fingerprint
            opened = {
                "protocol": wire.PROTOCOL,
                "ref": hosted.ref,
                "manifest": hosted.memory.manifest.to_json(),
                "limits": asdict(self.limits),
                "causal_only": self.causal_only,
                "answered_by": hosted.memory.answered_by,
            }
            return iter([flight.Result(json.dumps(opened).encode())])

    def list_actions(self, context: flight.ServerCallContext) -> list[tuple[str, str]]:
        """What `do_action` knows."""
        return [(wire.OPEN, "a reference -> the version it means"), (wire.STATUS, "what is served")]

    def do_get(self, context: flight.ServerCallContext, ticket: flight.Ticket) -> flight.GeneratorStream:
        """One file of a version."""
        with self._call(context, "get") as request:
            asked = Document.read(ticket.ticket)
            hosted = self.hosting.pinned(asked.string("fingerprint"))
            request.ref, request.fingerprint = hosted.ref, hosted.fingerprint
            path = asked.string("file")
            if path not in hosted.files:
                raise NotFoundError(f"{hosted.ref} has no file '{path[:200]}' that a client needs")
            request.bytes_out = hosted.memory.manifest.files[path].bytes
            return flight.GeneratorStream(wire.CHUNK, self._pieces(hosted.fingerprint, path))

    def do_exchange(
        self,
        context: flight.ServerCallContext,
        descriptor: flight.FlightDescriptor,
        reader: flight.MetadataRecordBatchReader,
        writer: flight.MetadataRecordBatchWriter,
    ) -> None:
        """Answer one question after the other, until the client ends the stream."""
        with self._call(context, "stream", is_told=False) as request:
            command = Document.read(descriptor.command or b"{}")
            with self.hosting.stream(command.string("fingerprint")) as hosted, self._counted_stream():
                request.ref, request.fingerprint = hosted.ref, hosted.fingerprint
                with _malformed_refused():
                    found = reader.schema
                if found != wire.QUESTION:
                    raise IncompatibleError(f"a question has the columns {', '.join(wire.QUESTION.names)}")
                writer.begin(wire.ANSWER)
                while (message := _next(reader)) is not None:
                    self._answer(context, hosted, message, writer)

    def status(self) -> dict[str, Any]:
        """What is served, in terms of JSON."""
        return {
            "ready": not self.is_draining,
            "versions": self.hosting.versions(),
            "troubles": self.hosting.troubles(),
            "causal_only": self.causal_only,
            "waiting": self.turns.num_waiting,
            "streams": self._num_streams,
        }

    def drain(self, wait_s: float) -> bool:
        """Refuse new questions, and wait until those under way are answered. Returns whether they all are."""
        with self._idle:
            self.is_draining = True
            return self._idle.wait_for(lambda: self._num_under_way == 0, wait_s)

    # How it does it

    def _answer(
        self,
        context: flight.ServerCallContext,
        hosted: Hosted,
        message: Message,
        writer: flight.MetadataRecordBatchWriter,
    ) -> None:
        num_bytes = message.batch.nbytes
        with self._call(context, "search") as request, self._under_way(min(num_bytes, self.limits.max_message)):
            request.ref, request.fingerprint, request.bytes_in = hosted.ref, hosted.fingerprint, num_bytes
            if num_bytes > self.limits.max_message:
                raise UsageError(
                    f"{num_bytes:,} bytes in one question, when it is read, but this service allows "
                    f"{self.limits.max_message:,}",
                    hint="ask in parts",
                )
            question = wire.read_question(message, self.limits, len(hosted.memory.manifest.spaces))
            queries = question.queries
            request.policy, request.k = queries.policy.value, question.k
            request.moments, request.num_series = len(queries), len(queries.series_id)
            if self.causal_only and queries.policy is not Policy.CAUSAL:
                raise IncompatibleError(
                    f"this service answers under '{Policy.CAUSAL}' only, not under '{queries.policy}'",
                    hint="a training asks so with --set num_folds=1 only; by default it asks its own table",
                )

            def found(waited_s: float) -> Neighbours:
                request.waited_s = waited_s
                if context.is_cancelled():
                    raise flight.FlightCancelledError("nobody waits for the answer any more")
                return self._search(hosted, question)

            wait_s = min(max(question.wait_s, 0), self.limits.max_seconds)
            answer = wire.write_answer(self.turns.take(found, wait_s))
            request.bytes_out = answer.batch.nbytes
            writer.write_with_metadata(answer.batch, answer.document)

    def _search(self, hosted: Hosted, question: Question) -> Neighbours:
        """In blocks of moments, between which the time is looked at."""
        until, parts = time.monotonic() + self.limits.max_seconds, []
        for start in range(0, max(len(question.queries), 1), BLOCK):
            if time.monotonic() > until:
                raise ServiceError(
                    f"the question takes longer than the {self.limits.max_seconds:g} s that this service allows",
                    hint="ask for fewer moments at once",
                )
            part = slice(start, start + BLOCK)
            # Windows that share their memory become windows of their own, for the same sums in the same order.
            context = np.ascontiguousarray(question.queries.context[part])
            some = replace(question.queries, context=context, origin=question.queries.origin[part])
            try:
                found = hosted.memory.search(
                    some,
                    question.k,
                    scopes=question.scopes,
                    views=question.views,
                    where=question.where,
                    min_gap=question.min_gap,
                )
            except ServiceError:
                self.hosting.doubt(hosted)
                raise
            parts.append(found)
        return wire.joined(parts, question.queries)

    def _pieces(self, fingerprint: str, path: str) -> Iterator[pa.RecordBatch]:
        """Whoever takes a file slowly counts as a stream, and the file stays open until the last piece."""
        try:
            with self.hosting.stream(fingerprint) as hosted, self._counted_stream():
                descriptor, offset = hosted.files[path], 0
                while piece := os.pread(descriptor, FILE_PIECE, offset):
                    yield pa.RecordBatch.from_arrays([pa.array([piece], pa.binary())], schema=wire.CHUNK)
                    offset += len(piece)
        except ServiceError as error:
            raise _as_flight_error(error) from error

    @contextmanager
    def _call(self, context: flight.ServerCallContext, method: str, *, is_told: bool = True) -> Iterator[Request]:
        """Turn errors inside into those of Flight, and report the call when it is over.

        is_told: False reports it only if it fails.
        """
        token = context.get_middleware(ACCESS).token
        request = Request(method=method, caller=token.name if token else "", peer=_peer(context.peer()))
        started = time.perf_counter()
        try:
            if token is not None and token not in self.tokens():  # taken out of the file since the stream began
                raise ServiceError("the service no longer knows this token", hint=TOKEN_HINT)
            yield request
        except flight.FlightError as error:
            is_told, request.status = False, type(error).__name__  # reported where it was raised, or the client is gone
            raise
        except Exception as error:
            is_told, request.status = True, type(error).__name__
            raise _as_flight_error(error) from error
        finally:
            request.seconds = time.perf_counter() - started
            if is_told:
                self.report(request)

    @contextmanager
    def _counted_stream(self) -> Iterator[None]:
        with self._lock:
            if self._num_streams >= self.max_streams:
                raise BusyError(
                    f"the service has {self._num_streams} streams open, as many as it may", hint="ask later"
                )
            self._num_streams += 1
        try:
            yield
        finally:
            with self._lock:
                self._num_streams -= 1

    @contextmanager
    def _under_way(self, num_bytes: int) -> Iterator[None]:
        """Count a question, and its bytes: those that wait for their turn are held meanwhile."""
        with self._lock:
            if self.is_draining:
                raise BusyError("the service is about to end", hint="ask again in a moment, or another one")
            if self._num_under_way and self._bytes_under_way + num_bytes > QUEUED_MESSAGES * self.limits.max_message:
                raise BusyError(
                    f"the service is busy: {self._bytes_under_way >> 20} MB of questions wait already", hint="ask later"
                )
            self._num_under_way += 1
            self._bytes_under_way += num_bytes
        try:
            yield
        finally:
            with self._idle:
                self._num_under_way -= 1
                self._bytes_under_way -= num_bytes
                self._idle.notify_all()


class _Caller(flight.ServerMiddleware):  # type: ignore[misc]
    """Who asks. token: None where nobody needs one."""

    def __init__(self, token: Token | None) -> None:
        super().__init__()
        self.token = token


class _Admission(flight.ServerMiddlewareFactory):  # type: ignore[misc]
    """Refuses a call without a token that is known, before anything of it is read."""

    def __init__(self, tokens: Callable[[], Sequence[Token]], report: Callable[[Request], None]) -> None:
        super().__init__()
        self.tokens, self.report = tokens, report

    def start_call(self, info: flight.CallInfo, headers: dict[str, list[str]]) -> _Caller:
        """Compare with every token, each in constant time."""
        known = self.tokens()
        if not known:
            return _Caller(None)
        [shown, *more] = headers.get("authorization", []) or [""]
        scheme, _, token = shown.partition(" ") if isinstance(shown, str) else ("", "", "")
        matching = [each for each in known if hmac.compare_digest(each.token.encode(), token.encode())]
        if scheme.lower() == "bearer" and matching and not more:
            return _Caller(matching[0])
        self.report(Request(method="admission", caller="", peer="", status=REFUSED))
        error = ServiceError(
            "the service refuses this token" if token else "the service wants a token, and none was given",
            hint=TOKEN_HINT,
        )
        raise flight.FlightUnauthenticatedError(str(error), wire.write_error(error))


def _next(reader: flight.MetadataRecordBatchReader) -> Message | None:
    """The next question of a stream; None when the client has ended it. Raises `UsageError` for what is malformed."""
    with _malformed_refused():
        try:
            chunk = reader.read_chunk()
        except StopIteration:
            return None
    if chunk.data is None or chunk.app_metadata is None:
        raise UsageError("a question is a batch of windows with a document beside it")
    return Message(chunk.data, chunk.app_metadata.to_pybytes())


@contextmanager
def _malformed_refused() -> Iterator[None]:
    """Raise `UsageError` for what Arrow cannot read inside the block."""
    try:
        yield
    except (flight.FlightError, MemoryError):  # the client is gone; there is no room for what it sent
        raise
    except (pa.ArrowException, OSError, ValueError) as error:
        raise UsageError("the message is malformed") from error


def _as_flight_error(error: Exception) -> flight.FlightError:
    """An error as it travels. What is not ours is told to whoever keeps the service, not to the client."""
    if isinstance(error, MemoryError):
        error = ResourceError("the question needs more memory than the service may use", hint="ask in smaller parts")
    elif not isinstance(error, MemoryIndexError):
        traceback.print_exception(error)
        error = ServiceError("the service has failed on this question; its log says how")
    # What clients have sent may be repeated in it: at any length, and not always as text that can travel.
    said = str(error).encode("ascii", "backslashreplace").decode()
    short = type(error)(str(error)[:MAX_TOLD], hint=error.hint[:MAX_TOLD])
    kind = flight.FlightUnavailableError if isinstance(error, BusyError) else flight.FlightServerError
    return kind(" ".join(said.split())[:MAX_TOLD], wire.write_error(short))


def _peer(text: str) -> str:
    """The address of a client, as the guard has told it: the name of its end of the socket between them."""
    return text.rpartition("/")[2]
