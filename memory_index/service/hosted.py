"""Which versions a service answers for: what its references mean now, and what clients are still pinned to.

An alias that is switched, or a new latest version, is opened beside the old one, and is what the reference means from
then on. The old one stays for those who opened it before, until none of them is left. How questions are answered is
told in `server.py`.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from memory_index.access import Access
from memory_index.errors import MemoryIndexError, NotFoundError, ServiceError, UsageError
from memory_index.references import MILVUS_SCHEMES, SERVICE_SCHEMES, find
from memory_index.types import Memory
from memory_index.versions.layout import parse_ref
from memory_index.versions.manifest import Manifest
from memory_index.versions.opening import ENCODER_FILE, LoadEncoder
from memory_index.versions.segments import SERIES_FILE, WINDOWS_FILE
from memory_index.versions.store import Store
from memory_index.versions.version import Location

KEPT_S = 600.0  # a version that no reference means any more stays so long after its last question

LoaderFor = Callable[[Manifest], LoadEncoder | None]


@dataclass(kw_only=True, eq=False)
class Hosted:
    """One opened version. ref: NAME@3. fingerprint: of its manifest. files: open ones, by path relative to the version.

    Clients fetch those files. They are held open, so that a version that is removed while it is served still has them.
    """

    ref: str
    fingerprint: str
    memory: Memory
    files: dict[str, int]
    num_streams: int = 0
    last_used: float = field(default_factory=time.monotonic)

    def close(self) -> None:
        """Let go of the files."""
        for descriptor in self.files.values():
            os.close(descriptor)
        self.files = {}


class Hosting:
    """The versions of a service. Safe to use from several threads.

    refs: what is served, each NAME, NAME@3, NAME@alias or one of these behind `milvus:`. loader_for: what reads the
    encoder of a version. note: told what a person should know.

    Raises what opening raises, and `UsageError` for the address of another service and for two references that clients
    could not tell apart.
    """

    def __init__(
        self,
        indexes_dir: Path,
        refs: Sequence[str],
        *,
        access: Access | None = None,
        loader_for: LoaderFor = lambda manifest: None,
        threads: int | None = None,
        kept_s: float = KEPT_S,
        note: Callable[[str], None] = lambda text: None,
    ) -> None:
        self._indexes_dir, self._access, self._loader_for, self._threads = indexes_dir, access, loader_for, threads
        self._kept_s, self._note = kept_s, note
        self._lock = threading.Lock()
        self._served: dict[str, str] = {}
        for ref in refs:
            same = self._served.setdefault(_canonical(ref), ref)
            if _origin(same) != _origin(ref):
                raise UsageError(f"'{same}' and '{ref}' would have one name here", hint="serve one, or rename an index")
        self._meant: dict[str, Hosted] = {}
        self._hosted: dict[str, Hosted] = {}  # by fingerprint
        self._troubles: dict[str, str] = {}
        for name in self._served:
            self._meant[name] = self._opened(name, self._locate(name))

    def versions(self) -> dict[str, str]:
        """What each reference means now: NAME@3."""
        with self._lock:
            return {name: hosted.ref for name, hosted in self._meant.items()}

    def troubles(self) -> dict[str, str]:
        """Which references could not be followed the last time, and why: they mean what they meant before."""
        with self._lock:
            return dict(self._troubles)

    def open(self, ref: str) -> Hosted:
        """What a client's reference means now: one that is served, or the number of a version that is open.

        Raises `NotFoundError` that lists what is served, `UsageError` for what is no reference.
        """
        name = _canonical(ref)
        with self._lock:
            hosted = self._meant.get(name)
            if hosted is None:
                hosted = next((each for each in self._hosted.values() if each.ref == name), None)
            if hosted is None:
                served = ", ".join(f"{name} ({each.ref})" for name, each in self._meant.items())
                raise NotFoundError(f"'{ref}' is not served here", hint=f"served are {served}")
            hosted.last_used = time.monotonic()
            return hosted

    def pinned(self, fingerprint: str) -> Hosted:
        """The version that a client has opened before.

        Raises `ServiceError` if it is not open any more: the service was started again, or nobody asked for long.
        """
        with self._lock:
            hosted = self._hosted.get(fingerprint)
            if hosted is None:
                raise ServiceError(
                    f"the version {fingerprint[:12]} that was opened here is no longer served",
                    hint="open the reference again: it may mean a newer version by now",
                )
            hosted.last_used = time.monotonic()
            return hosted

    @contextmanager
    def stream(self, fingerprint: str) -> Iterator[Hosted]:
        """Keep a version open while one stream asks it. Raises as `pinned` does."""
        hosted = self.pinned(fingerprint)
        with self._lock:
            hosted.num_streams += 1
        try:
            yield hosted
        finally:
            with self._lock:
                hosted.num_streams -= 1
                hosted.last_used = time.monotonic()

    def refresh(self) -> None:
        """Follow references that mean another version by now, and close versions that nobody needs any more."""
        for name in self._served:
            try:
                location = self._locate(name)
                if location.ref != self._meant[name].ref:
                    hosted = self._opened(name, location)
                    self._note(f"{name} means {hosted.ref} now, {self._meant[name].ref} before")
                    with self._lock:
                        self._meant[name] = hosted
                trouble = ""
            except (MemoryIndexError, OSError) as error:
                trouble = str(error)
            if trouble and trouble != self._troubles.get(name):
                self._note(f"{name} goes on meaning {self._meant[name].ref}: {trouble}")
            with self._lock:
                self._troubles.pop(name, None)
                if trouble:
                    self._troubles[name] = trouble
        self._close_unused()

    def close(self) -> None:
        """Let go of everything."""
        with self._lock:
            for hosted in self._hosted.values():
                hosted.close()
            self._hosted.clear()

    def _close_unused(self) -> None:
        until = time.monotonic() - self._kept_s
        with self._lock:
            meant = {hosted.fingerprint for hosted in self._meant.values()}
            for fingerprint, hosted in list(self._hosted.items()):
                if fingerprint not in meant and hosted.num_streams == 0 and hosted.last_used < until:
                    hosted.close()
                    del self._hosted[fingerprint]

    def _locate(self, name: str) -> Location:
        return Store(self._indexes_dir).locate(name)

    def _opened(self, name: str, location: Location) -> Hosted:
        """The version at a place, opened unless it is."""
        with self._lock:
            for hosted in self._hosted.values():
                if hosted.ref == location.ref:
                    return hosted
        address = self._served[name].rpartition("/")[0]
        found = find(self._indexes_dir, f"{address}/{location.ref}" if address else location.ref, access=self._access)
        memory = found.open(load_encoder=self._loader_for(found.manifest), threads=self._threads)
        needed = (ENCODER_FILE, SERIES_FILE, WINDOWS_FILE)
        paths = [path for path in found.manifest.files if path.rpartition("/")[2] in needed]
        hosted = Hosted(ref=location.ref, fingerprint=found.manifest.fingerprint, memory=memory, files={})
        try:
            for path in paths:
                hosted.files[path] = os.open(location.path / path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:  # removed at this moment
            hosted.close()
            raise
        with self._lock:
            return self._hosted.setdefault(hosted.fingerprint, hosted)


def _origin(ref: str) -> str:
    """Where a reference is searched: the part before its name, empty for the folder."""
    return ref.rpartition("/")[0] if ref.startswith(MILVUS_SCHEMES) else ""


def _canonical(ref: str) -> str:
    """`NAME@latest`, `NAME@3` or `NAME@alias` of a reference. Raises `UsageError`."""
    if ref.startswith(SERVICE_SCHEMES):
        raise UsageError(f"'{ref}' is served already", hint="let clients ask it there")
    name, wanted = parse_ref(ref.rpartition("/")[2] if ref.startswith(MILVUS_SCHEMES) else ref)
    return f"{name}@{int(wanted) if wanted.isdecimal() else wanted}"
