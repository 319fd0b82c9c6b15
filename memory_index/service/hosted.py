"""Which versions a service answers for: what its references mean now, and what clients are still pinned to.

An alias that is switched, or a new latest version, is opened beside the old one, and is what the reference means from
then on. The old one stays for those who opened it before, until none of them is left.
"""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from memory_index.access import Access
from memory_index.errors import MemoryIndexError, NotFoundError, ServiceError, UsageError
from memory_index.memory import Memory
from memory_index.references import MILVUS_SCHEMES, OLD_SCHEMES, SERVICE_SCHEMES, find
from memory_index.versions.covariate_files import COVARIATES_FILE
from memory_index.versions.layout import parse_ref
from memory_index.versions.manifest import Manifest
from memory_index.versions.opening import ENCODER_FILE, LoadEncoder
from memory_index.versions.segments import SERIES_FILE, WINDOWS_FILE
from memory_index.versions.store import Store
from memory_index.versions.version import MANIFEST, Location
from memory_index.versions.vintage_files import VINTAGES_FILE

FETCHED = (ENCODER_FILE, SERIES_FILE, WINDOWS_FILE, COVARIATES_FILE, VINTAGES_FILE)  # by clients
KEPT_S = 600.0  # a version that no reference means any more stays so long after its last question

LoaderFor = Callable[[Manifest], LoadEncoder | None]


@dataclass(kw_only=True, eq=False)
class Hosted:
    """One opened version. ref: NAME@3. fingerprint: of its manifest. stamp: of its manifest's file, which tells whether
    another version lies there by now. files: open ones, by path relative to the version.

    Clients fetch those files. They are held open, so that a version that is removed while it is served still has them.
    """

    ref: str
    fingerprint: str
    stamp: tuple[int, ...]
    memory: Memory
    files: dict[str, int] = field(default_factory=dict)
    num_users: int = 0
    last_used: float = field(default_factory=time.monotonic)

    def close(self) -> None:
        """Let go of the files."""
        while self.files:
            os.close(self.files.popitem()[1])


class Hosting:
    """The versions of a service. Safe to use from several threads.

    refs: what is served, each NAME, NAME@3, NAME@alias or one of these behind `milvus:`. loader_for: what reads the
    encoder of a version. `follow` and `close_unused` are for whoever looks now and then.

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
    ) -> None:
        self._indexes_dir, self._access, self._loader_for, self._threads = indexes_dir, access, loader_for, threads
        self._kept_s, self._lock, self._is_closed = kept_s, threading.Lock(), False
        self._meant: dict[str, Hosted] = {}  # by reference
        self._hosted: list[Hosted] = []  # what is meant, and what clients are pinned to
        self._served: dict[str, str] = {}  # by name of the index: a reference
        served = {_canonical(ref): ref for ref in refs}
        for name, ref in served.items():
            first = self._served.setdefault(name.rpartition("@")[0], ref)
            if first.rpartition("/")[0] != ref.rpartition("/")[0]:
                raise UsageError(
                    f"'{first}' and '{ref}' would have one name here", hint="serve one, or rename an index"
                )
        try:
            for name in served:
                self._follow(name)
        except BaseException:
            self.close()
            raise

    def versions(self) -> dict[str, str]:
        """What each reference means now: NAME@3."""
        with self._lock:
            return {name: hosted.ref for name, hosted in self._meant.items()}

    def open(self, ref: str) -> Hosted:
        """What a client's reference means now: one that is served, or the number of a version that is open, or the
        fingerprint of one that was opened before.

        Raises `NotFoundError` that lists what is served, `UsageError` for what is no reference, and `ServiceError` for
        a fingerprint that is not open any more: the service was started again, or nobody asked for long.
        """
        is_pinned = re.fullmatch(r"[0-9a-f]{64}", ref) is not None
        name = ref if is_pinned else _canonical(ref)
        with self._lock:
            open_ones = [each for each in self._hosted if name in (each.ref, each.fingerprint)]
            hosted = self._meant.get(name, open_ones[-1] if open_ones else None)
            if hosted is not None:
                hosted.last_used = time.monotonic()
                return hosted
            served = ", ".join(f"{name} ({each.ref})" for name, each in self._meant.items())
        if is_pinned:
            raise ServiceError(
                f"the version {ref[:12]} that was opened here is no longer served",
                hint="open the reference again: it may mean a newer version by now",
            )
        raise NotFoundError(f"'{ref[:200]}' is not served here", hint=f"served are {served}")

    @contextmanager
    def using(self, hosted: Hosted) -> Iterator[None]:
        """Keep a version open while somebody asks it."""
        with self._lock:
            hosted.num_users += 1
        try:
            yield
        finally:
            with self._lock:
                hosted.num_users -= 1
                hosted.last_used = time.monotonic()

    def doubt(self, hosted: Hosted) -> None:
        """Open a version anew at the next look: what it asks elsewhere, a Milvus, has failed or was loaded anew."""
        hosted.stamp = ()

    def follow(self, name: str) -> str:
        """Open what a reference means now, if that is not what it meant before; returns what to say of that, or
        nothing. Raises `ServiceError` if it cannot be opened: then the reference means what it meant.
        """
        before = self._meant[name]
        try:
            now = self._follow(name)
        except (MemoryIndexError, OSError) as error:
            raise ServiceError(f"{name} goes on meaning {before.ref}: {error}") from error
        if now.ref != before.ref:
            return f"{name} means {now.ref} now, {before.ref} before"
        if now.fingerprint != before.fingerprint:
            return f"{name} is another version by now: somebody has removed the index and built it anew"
        return ""

    def close_unused(self) -> None:
        """Close versions that no reference means and nobody has asked for long."""
        until = time.monotonic() - self._kept_s
        with self._lock:
            for each in list(self._hosted):
                if each not in self._meant.values() and each.num_users == 0 and each.last_used < until:
                    each.close()
                    self._hosted.remove(each)

    def close(self) -> None:
        """Let go of everything."""
        with self._lock:
            self._is_closed = True
            for hosted in self._hosted:
                hosted.close()
            self._hosted.clear()
            self._meant.clear()

    def _follow(self, name: str) -> Hosted:
        location = Store(self._indexes_dir).locate(name)
        found = (location.path / MANIFEST).stat()
        stamp = (found.st_ino, found.st_mtime_ns, found.st_size)  # changes when another manifest lies there
        with self._lock:
            same = [each for each in self._hosted if (each.ref, each.stamp) == (location.ref, stamp)]
        hosted = same[0] if same else self._opened(location, stamp)
        with self._lock:
            self._meant[name] = hosted
        return hosted

    def _opened(self, location: Location, stamp: tuple[int, ...]) -> Hosted:
        place = self._served[location.ref.rpartition("@")[0]].rpartition("/")[0]  # empty for the folder
        ref, access = (f"{place}/{location.ref}", self._access) if place else (location.ref, None)
        found = find(self._indexes_dir, ref, access=access)
        memory = found.open(load_encoder=self._loader_for(found.manifest), threads=self._threads)
        hosted = Hosted(ref=location.ref, fingerprint=found.manifest.fingerprint, stamp=stamp, memory=memory)
        try:
            for path in found.manifest.files:
                if path.rpartition("/")[2] in FETCHED:
                    hosted.files[path] = os.open(location.path / path, os.O_RDONLY | os.O_CLOEXEC)
            with self._lock:
                if self._is_closed:
                    raise ServiceError("the service is about to end")
                self._hosted.append(hosted)
        except (OSError, ServiceError):  # removed at this moment, or nobody wants it any more
            hosted.close()
            raise
        return hosted


def _canonical(ref: str) -> str:
    """`NAME@latest`, `NAME@3` or `NAME@alias` of a reference. Raises `UsageError`."""
    if ref.startswith((*SERVICE_SCHEMES, *OLD_SCHEMES)):
        raise UsageError(f"'{ref}' is served already", hint="let clients ask it there")
    name, wanted = parse_ref(ref.rpartition("/")[2] if ref.startswith(MILVUS_SCHEMES) else ref)
    return f"{name}@{int(wanted) if wanted.isdecimal() else wanted}"
