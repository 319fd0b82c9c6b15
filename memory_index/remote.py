"""A version behind a service, asked like one on this machine.

Manifest and limits come when it is opened; windows, series and linear maps (hashed, as when a version on disk is
opened) with the first answer, once per fingerprint and process. From then on row ids and distances travel, nothing
else. What a service answers checks itself against the leak rule here, as every answer does. How questions travel is
told in `wire.py`, how a service is reached in `http_client.py`.
"""

from __future__ import annotations

import json
import math
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote, urlsplit

import httpx
import numpy as np

from memory_index import files, wire
from memory_index.access import Access
from memory_index.encoder import DualKeyEncoder
from memory_index.errors import IncompatibleError, MemoryIndexError, ServiceError, UsageError, VerificationError
from memory_index.growing_maps import GrowingMaps, growing_maps
from memory_index.http_client import IS_IT_OURS, HttpClient
from memory_index.memory import linear_forecast, require_counts, require_covariates, require_lookback, spaces_asked
from memory_index.neighbours import Neighbours
from memory_index.scaling import SeriesScale
from memory_index.types import Filter, KeySpace, Queries, Scope
from memory_index.versions.covariate_files import COVARIATES_FILE
from memory_index.versions.layout import parse_ref
from memory_index.versions.manifest import Manifest, manifest_from_json
from memory_index.versions.opening import ENCODER_FILE, read_arrays, stored_windows
from memory_index.versions.segments import SERIES_FILE, WINDOWS_FILE
from memory_index.versions.vintage_files import VINTAGES_FILE
from memory_index.windows import StoredWindows
from memory_index.wire import Limits, Question

OPEN_S = 5.0  # to reach a service for the first time: longer is a wrong address
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
        self._service = HttpClient(self.address.service, self.access, note)
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
                unit = self._fetched_linear().scale.std if self.manifest.covariates else np.empty(0)
                with self._fetched(SERIES_FILE, WINDOWS_FILE, COVARIATES_FILE, VINTAGES_FILE) as folder:
                    windows = _windows[self.fingerprint] = stored_windows(folder, self.manifest, unit)
            return windows

    @cached_property
    def _growing(self) -> GrowingMaps | None:
        return growing_maps(self.windows, self._linear.arrays, self.manifest.fitted_known_at)

    @property
    def scale(self) -> SeriesScale:
        """See `Memory.scale`."""
        return self._linear.scale

    def linear_forecast(self, queries: Queries) -> np.ndarray:
        """See `Memory.linear_forecast`."""
        require_lookback(queries, self.windows)
        require_covariates(queries, self.manifest)
        return linear_forecast(self._linear, self.windows, queries, self._growing)

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
        require_covariates(queries, self.manifest)
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
        room = self.limits.max_message // 8 * 7  # what is left for the document beside the windows
        beside = 0 if queries.covariates is None else math.prod(queries.covariates.shape[2:])
        windows = min(self.limits.max_windows, room // (4 * (lookback + beside) + 16), self.limits.max_slots // slots)
        size = windows // num_series  # moments
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
        return Neighbours(
            queries=question.queries,
            spaces=spaces,
            temperature=np.array([self._temperature[space] for space in spaces], dtype=np.float32),
            linear_maps=linear_maps,
            windows=self.windows,
            fingerprint=self.fingerprint,
            growing=self._growing,
            **self._columns(answer, question, spaces),
        )

    def _columns(self, answer: bytes, question: Question, spaces: tuple[KeySpace, ...]) -> dict[str, np.ndarray]:
        """The arrays of an answer. spaces: what must be answered, in order; a service does not decide it.

        Raises `ServiceError` for an answer that is not one to this question, of this version.
        """
        try:
            schema = wire.answer_schema(with_covariates=bool(self.manifest.covariates))
            arrays, document = wire.unpack(answer, schema)
            found, k = str(document["fingerprint"]), document["k"]
            answered = tuple((scope, view) for scope, view in document["spaces"])
        except (ValueError, KeyError, TypeError, MemoryIndexError) as error:
            raise ServiceError("the service gave an answer that cannot be read; it was discarded") from error
        if found != self.fingerprint:
            raise ServiceError(
                f"the service answered from another version ({found[:12]}, not "
                f"{self.fingerprint[:12]}); the answer was discarded"
            )
        if k != question.k or answered != spaces:
            raise ServiceError("the service gave an answer to another question; it was discarded")
        columns, shape = (
            dict(zip(schema.names, arrays, strict=True)),
            (*question.queries.context.shape[:2], len(spaces)),
        )
        for name, values in columns.items():
            expected = (*shape, k) if name in wire.SLOT_COLUMNS else shape
            if len(values) != math.prod(expected):
                raise ServiceError("the service gave half an answer; it was discarded")
            columns[name] = values.reshape(expected)
        require_an_answer(columns)
        return columns

    def _opened(self) -> dict[str, Any]:
        path = f"/v1/indexes/{quote(self.address.ref)}"
        within_s = min(OPEN_S, self.access.deadline_s)
        content = self._service.ask(path, within_s=within_s, most=MAX_OPENING, is_told=False)
        try:
            opened = dict(json.loads(content))
        except (ValueError, TypeError, RecursionError) as error:
            raise ServiceError(f"{self.address.service} gave an answer that cannot be read", hint=IS_IT_OURS) from error
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
            return self._fetched_linear()

    def _fetched_linear(self) -> DualKeyEncoder:
        """The same, for one who holds the lock."""
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
            hint=IS_IT_OURS,
        )
    return opened


def require_an_answer(columns: Mapping[str, np.ndarray]) -> None:
    """Raise `ServiceError` unless neighbours are in order, each there once, with nothing but numbers."""
    row, distance = columns["row"], columns["distance"]
    used, ascending = row >= 0, np.sort(row, axis=-1)
    distances = [name for name in wire.SLOT_COLUMNS[1:] if name in columns]
    with np.errstate(invalid="ignore"):  # inf - inf
        is_sorted = (distance[..., 1:] >= distance[..., :-1]).all()
    is_answer = (
        is_sorted
        and not ((ascending[..., 1:] == ascending[..., :-1]) & (ascending[..., 1:] >= 0)).any()
        and ((row == -1) == ~used).all()
        and all((np.isfinite(columns[name]) == used).all() for name in distances)
        and all(np.isfinite(columns[name]).all() for name in ("query_location", "query_spread"))
        and not any((columns[name] < 0).any() for name in distances)
        and (columns["query_spread"] > 0).all()
    )
    if not is_answer:
        raise ServiceError("the service gave an answer that no search gives; it was discarded")
