"""A version behind a service, asked like one on this machine.

Manifest and limits come when it is opened; windows, series and linear maps (hashed, as when a version on disk is
opened) with the first answer, once per fingerprint and process. From then on row ids and distances travel, nothing
else. What a service answers checks itself against the leak rule here, as every answer does. How questions travel is
told in `wire.py`.
"""

from __future__ import annotations

import json
import os
import ssl
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple
from urllib.parse import quote, urlsplit

import httpx
import numpy as np
from tenacity import RetryCallState, Retrying, retry_if_exception_type, stop_before_delay, wait_random_exponential

from memory_index import files
from memory_index.access import Access
from memory_index.encoder import DualKeyEncoder
from memory_index.errors import BusyError, IncompatibleError, ServiceError, UsageError, VerificationError
from memory_index.memory import require_counts, require_lookback, spaces_asked
from memory_index.neighbours import Neighbours
from memory_index.scaling import SeriesScale
from memory_index.service import wire
from memory_index.service.messages import read_error
from memory_index.service.wire import Limits, Question
from memory_index.types import Filter, KeySpace, Queries, Scope
from memory_index.versions.layout import parse_ref
from memory_index.versions.manifest import Manifest, manifest_from_json
from memory_index.versions.opening import ENCODER_FILE, read_arrays, stored_windows
from memory_index.versions.segments import SERIES_FILE, WINDOWS_FILE
from memory_index.windows import StoredWindows

OPEN_S = 5.0  # to reach a service for the first time: longer is a wrong address
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.05, 2.0  # between two attempts; doubled each time, and drawn
TELL_S = 2.0  # of asking in vain, before it is said that it goes on
MOST_CONNECTIONS = 8  # of one memory at once, however many threads ask: a service searches for one at a time anyway
FORGET_S = 60.0  # a connection that was not used for so long is not used again; a service keeps it for longer
BESIDE_BYTES = 64 << 10  # of an answer, beside its arrays
MAX_OPENING = 64 << 20  # bytes: a manifest of very many segments
WHEN_FULL = "free some disk space where temporary files are kept, or set TMPDIR to another place"
ADDRESS_HINT = "http://HOST:PORT/NAME@3, or https:// with TLS"

_windows: weakref.WeakValueDictionary[str, StoredWindows] = weakref.WeakValueDictionary()  # by fingerprint
_maps: weakref.WeakValueDictionary[str, DualKeyEncoder] = weakref.WeakValueDictionary()  # by fingerprint
_shared_lock = threading.Lock()  # of both


class Address(NamedTuple):
    """The address of a version behind a service, in parts."""

    service: str
    ref: str


def parse_address(address: str) -> Address:
    """`http://HOST:PORT/REF` or `https://HOST:PORT/REF` in parts; before the reference may stand the path of a proxy.

    Raises `UsageError`.
    """
    service, _, ref = address.rpartition("/")
    with suppress(ValueError, httpx.InvalidURL):
        parts, url = urlsplit(service), httpx.URL(service)
        is_plain = not (
            parts.username or parts.query or parts.fragment or parts.netloc.endswith(":") or "@" in parts.netloc
        )
        if parts.scheme in ("http", "https") and parts.hostname and parts.port != 0 and url.host and is_plain and ref:
            return Address(service, ref)
    raise UsageError(f"'{address}' is not the address of a version", hint=ADDRESS_HINT)


class RemoteMemory:
    """A version behind a service. Implements `Memory`; safe to use from several threads.

    address: `http://HOST:PORT/REF` or `https://HOST:PORT/REF`. What REF means is asked once: `ref` says it in full,
    and every answer must be of that version. A question that fails on the way is asked again, with growing pauses,
    until `access.deadline_s`; a service that refuses is not. note: told when that has taken a while, once per outage.

    Raises `ServiceError` (unreachable, refused), `NotFoundError` (not served), `UsageError` (address),
    `VerificationError` (files that are not those of the version).
    """

    def __init__(
        self, address: str, *, access: Access | None = None, note: Callable[[str], None] = lambda text: None
    ) -> None:
        self.address, self.access = parse_address(address), access or Access()
        self._service = _Service(self.address.service, self.access, note)
        opened = self._opened()
        try:
            self.manifest: Manifest = manifest_from_json(json.dumps(opened["manifest"]), where=self.address.service)
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
        series = self.windows.numbers_of(queries.series_id)
        return self._linear.linear_forecast(max(self.windows.views), queries.context, series)

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
        self._service.close()

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
        num_windows = len(question.queries) * len(question.queries.series_id)
        most = wire.answer_bytes(num_windows, len(spaces), question.k) + BESIDE_BYTES
        answer = self._service.ask(
            f"/v1/indexes/{self.fingerprint}/search",
            within_s=until - time.monotonic(),
            most=most,
            body=lambda left_s: wire.write_question(question._replace(wait_s=left_s)),
        )
        return wire.read_answer(
            answer, question, spaces, self._temperature, linear_maps, self.fingerprint, self.windows
        )

    def _opened(self) -> dict[str, Any]:
        path = f"/v1/indexes/{quote(self.address.ref)}"
        within_s = min(OPEN_S, self.access.deadline_s)
        content = self._service.ask(path, within_s=within_s, most=MAX_OPENING, is_told=False)
        try:
            opened = dict(json.loads(content))
        except (ValueError, TypeError, RecursionError) as error:
            raise ServiceError(
                f"{self.address.service} gave an answer that cannot be read", hint="is it a service of this program?"
            ) from error
        if opened.get("protocol") != wire.PROTOCOL:
            raise IncompatibleError(
                f"{self.address.service} speaks protocol {opened.get('protocol')}, this program {wire.PROTOCOL}",
                hint="use the same version of the program on both sides",
            )
        return opened

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
                        with target.open("wb") as file:
                            self._service.ask(
                                f"/v1/indexes/{self.fingerprint}/files/{quote(path)}",
                                within_s=self.access.deadline_s,
                                most=record.bytes,
                                into=file,
                            )
                        if files.hash_file(target) != record:
                            raise VerificationError(
                                f"{self.address.service} sent a {path} that is not the one of {self.ref}",
                                hint="check the service: cli index verify, where its folder is",
                            )
            yield folder


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


class _Service:
    """A service, reached over connections that are used again, and asked again where that is safe.

    A process that was forked from this one gets connections of its own.
    """

    def __init__(self, address: str, access: Access, note: Callable[[str], None]) -> None:
        self.address, self.access, self.note = address, access, note
        self._lock = threading.Lock()
        self._client: httpx.Client | None = None
        self._of_parent: list[httpx.Client | None] = []  # which must not be let go of in a forked process
        self._process = 0
        self._is_noted = False  # that it is asked in vain

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
            raise ServiceError(
                f"{trouble}; gave up after {time.monotonic() - started:.1f} s", hint=trouble.hint
            ) from trouble
        self._is_noted = False
        return content

    def close(self) -> None:
        """Close the connections; the next question opens others."""
        with self._lock:
            client, self._client = self._client, None
        if client is not None and self._process == os.getpid():
            client.close()

    def _once(
        self, path: str, left_s: float, most: int, body: Callable[[float], bytes] | None, into: BinaryIO | None
    ) -> bytes:
        until, read = time.monotonic() + left_s, bytearray()
        if into is not None:
            into.seek(0)
            into.truncate()
        content = None if body is None else body(left_s)
        headers = {} if content is None else {"content-type": wire.ARROW}
        try:
            with self._http().stream(
                "GET" if content is None else "POST",
                self.address + path,
                content=content,
                headers=headers,
                timeout=left_s,
            ) as answer:
                num_bytes = 0
                is_well = answer.status_code == 200
                for chunk in answer.iter_raw():  # raw: what says that it is compressed is not unpacked
                    num_bytes += len(chunk)
                    (into.write if into is not None and is_well else read.extend)(chunk)
                    if time.monotonic() > until:
                        raise httpx.ReadTimeout("the answer takes too long")
                    if (num_bytes > most and is_well) or num_bytes > MAX_OPENING:  # not the answer
                        break
                status = answer.status_code
        except (httpx.HTTPError, httpx.InvalidURL, ssl.SSLError) as error:
            raise self._in_our_terms(error) from error
        if status != 200:
            raise self._refusal(status, bytes(read))
        if num_bytes > most and into is None:
            raise ServiceError(f"{self.address} gave an answer that is too long; it was discarded")
        return bytes(read)

    def _http(self) -> httpx.Client:
        """The client of this process. No proxy is gone through, which would see the token, and no redirect followed."""
        with self._lock:
            if self._client is None or self._process != os.getpid():
                self._of_parent.append(self._client)
                context: ssl.SSLContext | bool = False
                if self.address.startswith("https://"):
                    authority = self.access.tls_ca
                    context = ssl.create_default_context(cadata=authority and authority.decode("ascii", "replace"))
                headers = {"accept-encoding": "identity"}
                headers |= {"authorization": f"Bearer {self.access.token}"} if self.access.token else {}
                kept = httpx.Limits(max_connections=MOST_CONNECTIONS, keepalive_expiry=FORGET_S)
                self._client = httpx.Client(headers=headers, verify=context, trust_env=False, limits=kept)
                self._process = os.getpid()
            return self._client

    def _refusal(self, status: int, content: bytes) -> Exception:
        told = read_error(content)
        if told is not None:
            return type(told)(f"{self.address}: {told}", hint=told.hint)
        kind = BusyError if status in (429, 502, 503, 504) else ServiceError  # of a proxy
        return kind(f"{self.address} answers with status {status}", hint="is it a service of this program?")

    def _in_our_terms(self, error: Exception) -> ServiceError:
        """`BusyError` where another try may help."""
        causes = [error]
        while (cause := causes[-1].__cause__ or causes[-1].__context__) is not None:
            causes.append(cause)  # type: ignore[arg-type]
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
