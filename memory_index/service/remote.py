"""A version behind a service, asked like one on this machine.

Manifest and limits come when it is opened; windows, series and linear maps (hashed, as when a version on disk is
opened) with the first answer, once per fingerprint and process. From then on row ids and distances travel, nothing
else. What a service answers checks itself against the leak rule here, as every answer does. How questions travel is
told in `wire.py`.
"""

from __future__ import annotations

import json
import math
import os
import random
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import pyarrow as pa
from pyarrow import flight

from memory_index import files
from memory_index.access import Access
from memory_index.encoder import DualKeyEncoder
from memory_index.errors import BusyError, IncompatibleError, ServiceError, UsageError, VerificationError
from memory_index.memory import linear_forecast, require_counts, require_lookback, spaces_asked
from memory_index.neighbours import Neighbours
from memory_index.scaling import SeriesScale
from memory_index.service import wire
from memory_index.service.wire import Limits, Message, Question
from memory_index.types import Filter, KeySpace, Queries, Scope
from memory_index.versions.layout import parse_ref
from memory_index.versions.manifest import Manifest, manifest_from_json
from memory_index.versions.opening import ENCODER_FILE, read_arrays, stored_windows
from memory_index.versions.segments import SERIES_FILE, WINDOWS_FILE
from memory_index.windows import StoredWindows

OPEN_S = 5.0  # to reach a service for the first time: longer is a wrong address
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.05, 2.0  # between two attempts; doubled each time, and drawn
TELL_S = 2.0  # of asking in vain, before it is said that it goes on
MOST_STREAMS = 8  # of one memory at once, however many threads ask: a service searches for one at a time anyway
FORGET_S = 300.0  # a stream that nobody has used for so long is not used again
END_S = 1.0  # for a service to end a stream of which nothing more is wanted
WHEN_FULL = "free some disk space where temporary files are kept, or set TMPDIR to another place"
SCHEMES = {"grpc://": "grpc+tcp://", "grpc+tls://": "grpc+tls://"}

T = TypeVar("T")

_windows: weakref.WeakValueDictionary[str, StoredWindows] = weakref.WeakValueDictionary()  # by fingerprint
_maps: weakref.WeakValueDictionary[str, DualKeyEncoder] = weakref.WeakValueDictionary()  # by fingerprint
_shared_lock = threading.Lock()  # of both
_connections: weakref.WeakSet[_Connection] = weakref.WeakSet()
_of_the_parent: list[_Connection] = []  # in a forked process, those that there were
_asking_process: int | None = None  # where the first connection was made; gRPC works in no process forked from it


class Address(NamedTuple):
    """The address of a version behind a service, in parts. location: as Arrow wants it."""

    location: str
    service: str
    ref: str


def parse_address(address: str) -> Address:
    """`grpc://HOST:PORT/REF` or `grpc+tls://HOST:PORT/REF` in parts. Raises `UsageError`."""
    for scheme, theirs in SCHEMES.items():
        host, _, ref = address.removeprefix(scheme).partition("/")
        name, _, port = host.rpartition(":")
        if address.startswith(scheme) and name and _is_port(port) and ref and "/" not in ref:
            return Address(f"{theirs}{host}", f"{scheme}{host}", ref)
    raise UsageError(
        f"'{address}' is not the address of a version", hint="grpc://HOST:PORT/NAME@3, or grpc+tls:// with TLS"
    )


def _is_port(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) <= 5 and 1 <= int(text) <= 65535


class RemoteMemory:
    """A version behind a service. Implements `Memory`; safe to use from several threads.

    address: `grpc://HOST:PORT/REF` or `grpc+tls://HOST:PORT/REF`. What REF means is asked once: `ref` says it in full,
    and every answer must be of that version. A question that fails on the way is asked again, with growing pauses,
    until `access.deadline_s`; a service that refuses is not. note: told when that has taken a while, once per outage.
    A process that was forked after this one has asked a service cannot ask any: gRPC does not work there.

    Raises `ServiceError` (unreachable, refused, forked), `NotFoundError` (not served), `UsageError` (address),
    `VerificationError` (files that are not those of the version).
    """

    def __init__(
        self, address: str, *, access: Access | None = None, note: Callable[[str], None] = lambda text: None
    ) -> None:
        self.address, self.access = parse_address(address), access or Access()
        self._connection = _Connection(self.address, self.access, note)
        opened = self._connection.attempt(self._open, min(OPEN_S, self.access.deadline_s), is_told=False)
        if opened.get("protocol") != wire.PROTOCOL:
            raise IncompatibleError(
                f"{self.address.service} speaks protocol {opened.get('protocol')}, this program {wire.PROTOCOL}",
                hint="use the same version of the program on both sides",
            )
        try:
            self.manifest: Manifest = manifest_from_json(opened["manifest"], where=self.address.service)
            self.ref = f"{self.address.service}/{_meant(self.address, opened['ref'])}"
            self.limits = Limits(**opened["limits"])
            self.causal_only = bool(opened["causal_only"])
            self.answered_by = str(opened["answered_by"])
        except (KeyError, TypeError, AttributeError) as error:
            raise ServiceError(f"{self.address.service} gave an answer that cannot be read") from error
        self.fingerprint = self.manifest.fingerprint
        self._temperature = {record.space: record.temperature for record in self.manifest.spaces}

    @cached_property
    def windows(self) -> StoredWindows:
        """See `Memory.windows`; fetched when first needed."""
        with _shared_lock:
            windows = _windows.get(self.fingerprint)
            if windows is None:
                with self._fetched(SERIES_FILE, WINDOWS_FILE) as folder:
                    windows = _windows[self.fingerprint] = stored_windows(folder, self.manifest)
            return windows

    @property
    def scale(self) -> SeriesScale:
        """See `Memory.scale`."""
        return self._linear.scale

    def linear_forecast(self, queries: Queries) -> np.ndarray:
        """See `Memory.linear_forecast`."""
        require_lookback(queries, self.windows)
        return linear_forecast(self._linear, self.windows, queries)

    def search(
        self,
        queries: Queries,
        k: int,
        *,
        scopes: tuple[Scope, ...] | None = None,
        views: tuple[int, ...] | None = None,
        where: Filter | None = None,
        min_gap: int = 0,
    ) -> Neighbours:
        """See `Memory.search`. More than the service allows at once is asked in parts."""
        require_counts(k, min_gap)
        require_lookback(queries, self.windows)
        min_gap = min(min_gap, self.windows.num_steps_spanned + 1)
        spaces = spaces_asked(self.manifest, self.windows, queries, scopes, views, where)
        linear_maps = {space.view: self._linear.linear_map(space.view) for space in spaces}
        until = time.monotonic() + self.access.deadline_s
        parts = []
        for moments in self._parts(queries, k):
            some = wire.some_of(queries, moments)
            question = Question(some, k, scopes, views, where, min_gap, 0)
            parts.append(self._asked(question, spaces, linear_maps, until))
        return wire.joined(parts, queries)

    def close(self) -> None:
        """Close the connection; the next question opens another one."""
        self._connection.close()

    def _parts(self, queries: Queries, k: int) -> Iterator[slice]:
        num_moments, num_series, lookback = queries.context.shape
        slots = len(self.manifest.spaces) * k
        most = min(self.limits.max_k, self.limits.max_slots // len(self.manifest.spaces))
        if k > most:
            raise UsageError(f"k is {k:,}, but {self.address.service} allows {most:,}", hint="ask for fewer")
        size = self.limits.moments(num_series=num_series, lookback=lookback, slots_per_window=slots)
        if size == 0:
            raise UsageError(
                f"one moment of {num_series:,} series, {lookback} steps each, is more than "
                f"{self.address.service} allows in one question",
                hint="ask for fewer series or neighbours at once, or let it be served with higher limits",
            )
        for start in range(0, max(num_moments, 1), size):
            yield slice(start, start + size)

    def _asked(
        self, question: Question, spaces: tuple[KeySpace, ...], linear_maps: dict[int, np.ndarray], until: float
    ) -> Neighbours:
        def once(left_s: float) -> Message:
            message = wire.write_question(question._replace(wait_s=left_s))
            with self._connection.stream(self.fingerprint, left_s) as stream:
                return stream.ask(message, left_s)

        answer = self._connection.attempt(once, until - time.monotonic())
        return wire.read_answer(
            answer, question, spaces, self._temperature, linear_maps, self.fingerprint, self.windows
        )

    def _open(self, left_s: float) -> dict[str, Any]:
        action = flight.Action(wire.OPEN, json.dumps({"ref": self.address.ref}).encode())
        with self._connection.client() as client:
            results = list(client.do_action(action, self._connection.options(left_s)))
        try:
            return dict(json.loads(results[0].body.to_pybytes()))
        except (ValueError, TypeError, IndexError, RecursionError) as error:
            raise ServiceError(f"{self.address.service} gave an answer that cannot be read") from error

    @cached_property
    def _linear(self) -> DualKeyEncoder:
        """Scale and linear maps of the version; what encodes queries stays with the service."""
        with _shared_lock:
            linear = _maps.get(self.fingerprint)
            if linear is None:
                with self._fetched(ENCODER_FILE) as folder:
                    linear = _maps[self.fingerprint] = read_arrays(folder, self.manifest).without_keys()
            return linear

    @contextmanager
    def _fetched(self, *names: str) -> Iterator[Path]:
        """A temporary folder with some files of the version, each hashed while it came."""
        with tempfile.TemporaryDirectory(prefix="memory-") as temporary:
            folder = Path(temporary)
            for path, record in self.manifest.files.items():
                if path.rpartition("/")[2] in names:
                    target = folder / path
                    target.parent.mkdir(parents=True, exist_ok=True)
                    with files.refusals_named(target, option="", when_full=WHEN_FULL):
                        self._connection.attempt(
                            partial(self._fetch, path, target, record.bytes),
                            self.access.deadline_s,
                        )
                        if files.hash_file(target) != record:
                            raise VerificationError(
                                f"{self.address.service} sent a {path} that is not the one of {self.ref}",
                                hint="check the service: cli index verify, where its folder is",
                            )
            yield folder

    def _fetch(self, path: str, target: Path, num_bytes: int, left_s: float) -> None:
        ticket = flight.Ticket(json.dumps({"fingerprint": self.fingerprint, "file": path}).encode())
        with self._connection.client() as client, target.open("wb") as file:
            for chunk in client.do_get(ticket, self._connection.options(left_s)):
                if chunk.data.schema != wire.CHUNK or chunk.data["bytes"].null_count:
                    raise ServiceError(f"{self.address.service} sent something else than the file {path}")
                for piece in chunk.data["bytes"]:
                    file.write(piece.as_buffer())
                if file.tell() > num_bytes:  # whatever it is, it is not the file
                    break


def _meant(address: Address, opened: str) -> str:
    """The version that a service says it has opened: NAME@3. Raises `ServiceError` if it is another than was asked."""
    (name, wanted), (found, number) = parse_ref(address.ref), ("", "")
    with suppress(UsageError):
        found, number = parse_ref(opened)
    if found != name or not number.isdecimal() or (wanted.isdecimal() and number.lstrip("0") != wanted.lstrip("0")):
        raise ServiceError(
            f"{address.service} was asked for {address.ref} and has opened {opened[:100]!r}",
            hint="is it a service of this program?",
        )
    return opened


class _Stream:
    """One kept stream of questions and answers; it is asked one question at a time."""

    def __init__(self, client: flight.FlightClient, fingerprint: str, options: flight.FlightCallOptions) -> None:
        descriptor = flight.FlightDescriptor.for_command(json.dumps({"fingerprint": fingerprint}).encode())
        self.writer, self.reader = client.do_exchange(descriptor, options)
        self.writer.begin(wire.QUESTION)
        self.last_used = time.monotonic()

    def ask(self, message: Message, within_s: float) -> Message:
        """The answer to one question. The stream is of no use any more if this raises."""
        try:
            with _watch.broken_off_after(within_s, self.reader.cancel):
                self.writer.write_with_metadata(message.batch, message.document)
                chunk = self.reader.read_chunk()
        except StopIteration as error:
            raise flight.FlightUnavailableError("the service has ended the stream") from error
        if chunk.data is None or chunk.app_metadata is None:
            raise ServiceError("the service gave half an answer; it was discarded")
        self.last_used = time.monotonic()
        return Message(chunk.data, chunk.app_metadata.to_pybytes())

    def end(self) -> None:
        """Say that nothing more will be asked, and wait a moment until the service has ended it as well."""
        with suppress(Exception), _watch.broken_off_after(END_S, self.reader.cancel):
            self.writer.done_writing()
            for _ in self.reader:
                pass
        self.cancel()

    def cancel(self) -> None:
        """Give it up, whatever state it is in."""
        for end in (self.reader.cancel, self.writer.close):  # Arrow complains on stderr of what is not closed
            with suppress(Exception):
                end()


class _Watch:
    """Breaks off what takes too long, with one thread for everything that is watched in this process."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._watched: dict[object, tuple[float, Callable[[], None]]] = {}  # until when, and how to break it off
        self._looks_at = math.inf  # when the thread wakes by itself
        self._is_started = False

    @contextmanager
    def broken_off_after(self, seconds: float, break_off: Callable[[], None]) -> Iterator[None]:
        """Call `break_off`, in the thread, unless the block has ended by then."""
        until, key = time.monotonic() + seconds, object()
        with self._changed:
            self._watched[key] = until, break_off
            if not self._is_started:
                threading.Thread(target=self._watch, name="watch", daemon=True).start()
                self._is_started = True
            elif until < self._looks_at:
                self._changed.notify()
        try:
            yield
        finally:
            with self._changed:
                self._watched.pop(key, None)

    def _watch(self) -> None:
        while True:
            with self._changed:
                now = time.monotonic()
                late = [key for key, (until, _) in self._watched.items() if until <= now]
                to_break_off = [self._watched.pop(key)[1] for key in late]
                if not late:
                    self._looks_at = min((until for until, _ in self._watched.values()), default=math.inf)
                    self._changed.wait(None if self._looks_at == math.inf else self._looks_at - now)
            for break_off in to_break_off:
                break_off()


_watch = _Watch()


class _Connection:
    """A connection to a service with streams that are used again, and another try where one is safe.

    No more streams are kept than are in use, and one when none is: a service has places for 64, of all its clients.
    """

    def __init__(self, address: Address, access: Access, note: Callable[[str], None]) -> None:
        self.address, self.access, self.note = address, access, note
        self._lock = threading.Lock()
        self._client: flight.FlightClient | None = None
        self._idle: list[_Stream] = []  # always this very list
        self._num_in_use = 0
        self._is_noted = False  # that it is asked in vain
        self._places = threading.BoundedSemaphore(MOST_STREAMS)
        _connections.add(self)
        weakref.finalize(self, _cancel, self._idle)

    def options(self, timeout_s: float | None = None) -> flight.FlightCallOptions:
        """With the token, and perhaps a time after which the call is given up."""
        headers = [(b"authorization", f"Bearer {self.access.token}".encode())] if self.access.token else []
        return flight.FlightCallOptions(timeout=timeout_s, headers=headers)

    @contextmanager
    def client(self) -> Iterator[flight.FlightClient]:
        """The connection, opened if there is none; given up if the block fails, so that the next try begins anew."""
        with self._lock:
            if self._client is None:
                self._client = _connected(self.address, self.access)
            client = self._client
        try:
            yield client
        except Exception:
            self._give_up(client)
            raise

    @contextmanager
    def stream(self, fingerprint: str, within_s: float) -> Iterator[_Stream]:
        """A stream that nobody else uses at the moment; given up if the block fails."""
        if not self._places.acquire(timeout=within_s):
            raise BusyError(f"{MOST_STREAMS} questions to {self.address.service} are under way already")
        try:
            with self._stream(fingerprint, within_s) as stream:
                yield stream
        finally:
            self._places.release()

    @contextmanager
    def _stream(self, fingerprint: str, within_s: float) -> Iterator[_Stream]:
        with self.client() as client:
            stream = self._kept()
            if stream is None:
                # Beginning a stream waits for a connection as long as gRPC likes; this call does not.
                list(client.list_actions(self.options(within_s)))
                stream = _Stream(client, fingerprint, self.options())
            try:
                with self._in_use():
                    yield stream
            except BaseException:
                stream.cancel()
                raise
            surplus = self._taken_back(stream, client)
        for each in surplus:
            each.end()

    def _taken_back(self, stream: _Stream, client: flight.FlightClient) -> list[_Stream]:
        """Keep a stream of a client; returns those that are not kept any more, the longest unused first."""
        with self._lock:
            if self._client is not client:
                return [stream]
            streams = [*self._idle, stream]
            num_surplus = max(len(streams) - max(self._num_in_use, 1), 0)
            self._idle[:] = streams[num_surplus:]
            return streams[:num_surplus]

    @contextmanager
    def _in_use(self) -> Iterator[None]:
        with self._lock:
            self._num_in_use += 1
        try:
            yield
        finally:
            with self._lock:
                self._num_in_use -= 1

    def _kept(self) -> _Stream | None:
        """The stream that was used last; those that have not been used for long are given up."""
        since = time.monotonic() - FORGET_S
        with self._lock:
            forgotten = [stream for stream in self._idle if stream.last_used < since]
            self._idle[:] = [stream for stream in self._idle if stream.last_used >= since]
            kept = self._idle.pop() if self._idle else None
        for stream in forgotten:
            stream.cancel()
        return kept

    def _give_up(self, client: flight.FlightClient) -> None:
        with self._lock:
            if self._client is not client:
                return
            idle, self._client = list(self._idle), None
            self._idle.clear()
        for stream in idle:
            stream.cancel()

    def attempt(self, once: Callable[[float], T], within_s: float, *, is_told: bool = True) -> T:
        """Do something that may be done twice, until it succeeds or is refused. once: is given the seconds left.

        is_told: False says nothing while it is tried again. Raises `ServiceError` when the time is over, or in a forked
        process, or what the service answered.
        """
        self._require_own_process()
        started, pause = time.monotonic(), FIRST_PAUSE_S
        while True:
            left_s = max(within_s - (time.monotonic() - started), 0.001)
            try:
                done = once(left_s)
                self._is_noted = False
                return done
            except (flight.FlightError, pa.ArrowException, OSError) as error:
                trouble = self._in_our_terms(error)
                if not isinstance(trouble, BusyError):
                    raise trouble from error
            left_s = within_s - (time.monotonic() - started)
            if left_s < pause:
                raise ServiceError(
                    f"{trouble}; gave up after {time.monotonic() - started:.1f} s", hint=trouble.hint
                ) from trouble
            if is_told and not self._is_noted and time.monotonic() - started >= TELL_S:
                self._is_noted = True
                self.note(f"{trouble}; asked again until {within_s:.0f} s are over")
            time.sleep(pause * random.uniform(0.5, 1.0))
            pause = min(2 * pause, LONGEST_PAUSE_S)

    def _in_our_terms(self, error: Exception) -> Exception:
        """`BusyError` where another try may help."""
        service = self.address.service
        told = wire.read_error(getattr(error, "extra_info", b"") or b"")
        if told is not None:
            return type(told)(f"{service}: {told}", hint=told.hint)
        said = str(error).partition(". gRPC client debug context")[0].partition(". Detail:")[0]
        said = said.rpartition("with message: ")[2].rpartition("last error: ")[2]  # before it, only that it failed
        said = " ".join(said.split())[:300]
        if isinstance(error, flight.FlightUnauthenticatedError):
            return ServiceError(f"{service} refuses: {said}", hint="--token-file FILE")
        if isinstance(error, (pa.ArrowInvalid, pa.ArrowNotImplementedError)):  # beyond a limit, or not to be read
            return ServiceError(
                f"{service} refuses, or cannot be understood: {said}",
                hint="ask for less at once; is it a service of this program?",
            )
        if isinstance(error, (flight.FlightTimedOutError, flight.FlightCancelledError)):
            return BusyError(f"{service} did not answer in time", hint="is it overloaded? ask for less at once")
        if "certificate" in said.lower() or "ssl" in said.lower() or "handshake" in said.lower():
            return ServiceError(
                f"no secure connection to {service}: {said}",
                hint="check its certificate, its host name in it, and --tls-ca; without TLS the address begins with grpc://",
            )
        hint = "is it running, and is the address right?"
        if service.startswith("grpc://") and any(word in said.lower() for word in ("reset by peer", "socket closed")):
            hint += " or does it speak TLS: grpc+tls://?"
        return BusyError(f"{service} cannot be reached: {said}", hint=hint)

    def _require_own_process(self) -> None:
        """Raise in a forked process. What its parent has opened must not be let go of there either: that hangs."""
        if _asking_process not in (None, os.getpid()):
            raise ServiceError(
                f"{self.address.service} cannot be asked: a service was opened before a fork, in the process that "
                "this one was forked from",
                hint="start processes with spawn, or open nothing before the fork",
            )

    def close(self) -> None:
        """End the streams that are kept; in a forked process nothing, for they are its parent's."""
        if _asking_process != os.getpid():
            return
        with self._lock:
            idle, client, self._client = list(self._idle), self._client, None
            self._idle.clear()
        for stream in idle:
            stream.end()
        if client is not None:
            with suppress(Exception):
                client.close()


def _cancel(streams: list[_Stream]) -> None:
    """Give up the streams of a connection that nobody has any more, or at the end of the program.

    Left to Arrow, each would wait for the service, and the whole process with it: Python's lock is held meanwhile.
    """
    if _asking_process == os.getpid():
        for stream in streams:
            stream.cancel()


# In a forked process nothing of its parent's connections may be let go of: that waits for ever.
os.register_at_fork(after_in_child=lambda: _of_the_parent.extend(_connections))


def _connected(address: Address, access: Access) -> flight.FlightClient:
    """A client of gRPC, which says nothing on stderr and goes through no proxy, which would see the token."""
    global _asking_process
    _asking_process = os.getpid()
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # it is read when the first client of a process is made
    options = {"tls_root_certs": access.tls_ca} if access.tls_ca else {}
    return flight.FlightClient(address.location, generic_options=[("grpc.enable_http_proxy", 0)], **options)
