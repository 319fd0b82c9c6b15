"""Which versions a service answers for: what its references mean now, and what clients are still pinned to.

An alias that is switched, or a new latest version, is opened beside the old one, and is what the reference means from
then on. The old one stays for those who opened it before, until none of them is left. How questions are answered is
told in `app.py`.
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
from memory_index.versions.layout import parse_ref
from memory_index.versions.manifest import Manifest
from memory_index.versions.opening import ENCODER_FILE, LoadEncoder
from memory_index.versions.segments import SERIES_FILE, WINDOWS_FILE
from memory_index.versions.store import Store
from memory_index.versions.version import MANIFEST, Location

KEPT_S = 600.0  # a version that no reference means any more stays so long after its last question

Stamp = tuple[int, int, int]
DOUBTED: Stamp = (0, 0, 0)  # of no file
LoaderFor = Callable[[Manifest], LoadEncoder | None]


@dataclass(kw_only=True, eq=False)
class Hosted:
    """One opened version. ref: NAME@3. fingerprint: of its manifest. stamp: of its manifest's file, which tells whether
    another version lies there by now. files: open ones, by path relative to the version.

    Clients fetch those files. They are held open, so that a version that is removed while it is served still has them.
    """

    ref: str
    fingerprint: str
    stamp: Stamp
    memory: Memory
    files: dict[str, int]
    num_users: int = 0
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
        self._served = {_canonical(ref): ref for ref in refs}
        self._require_one_place_each()
        self._is_closed = False
        self._meant: dict[str, Hosted] = {}
        self._hosted: list[Hosted] = []  # what is meant, and what clients are pinned to
        self._troubles: dict[str, str] = {}
        try:
            for name in self._served:
                self._meant[name] = self._opened(name, self._locate(name))
        except BaseException:
            self.close()
            raise

    def versions(self) -> dict[str, str]:
        """What each reference means now: NAME@3."""
        with self._lock:
            return {name: hosted.ref for name, hosted in self._meant.items()}

    def troubles(self) -> dict[str, str]:
        """Which references could not be followed the last time, and why: they mean what they meant before."""
        with self._lock:
            return dict(self._troubles)

    def open(self, ref: str) -> Hosted:
        """What a client's reference means now: one that is served, or the number of a version that is open, or the
        fingerprint of one that was opened before.

        Raises `NotFoundError` that lists what is served, `UsageError` for what is no reference, and `ServiceError` for
        a fingerprint that is not open any more: the service was started again, or nobody asked for long.
        """
        is_pinned = re.fullmatch(r"[0-9a-f]{64}", ref) is not None
        name = ref if is_pinned else _canonical(ref)
        with self._lock:
            hosted = self._meant.get(name)
            if hosted is None:
                candidates = reversed(self._hosted)
                hosted = next((each for each in candidates if name in (each.ref, each.fingerprint)), None)
            if hosted is None and is_pinned:
                raise ServiceError(
                    f"the version {ref[:12]} that was opened here is no longer served",
                    hint="open the reference again: it may mean a newer version by now",
                )
            if hosted is None:
                served = ", ".join(f"{name} ({each.ref})" for name, each in self._meant.items())
                raise NotFoundError(f"'{ref[:200]}' is not served here", hint=f"served are {served}")
            hosted.last_used = time.monotonic()
            return hosted

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
        with self._lock:
            hosted.stamp = DOUBTED

    def refresh(self) -> None:
        """Follow references that mean another version by now, and close versions that nobody needs any more."""
        for name in self._served:
            try:
                self._follow(name)
                trouble = ""
            except (MemoryIndexError, OSError) as error:
                trouble = str(error)
            with self._lock:
                is_new = trouble != self._troubles.pop(name, "")
                if trouble:
                    self._troubles[name] = trouble
            if trouble and is_new:
                self._note(f"{name} goes on meaning {self._meant[name].ref}: {trouble}")
        self._close_unused()

    def close(self) -> None:
        """Let go of everything."""
        with self._lock:
            self._is_closed = True
            for hosted in self._hosted:
                hosted.close()
            self._hosted.clear()
            self._meant.clear()

    def _follow(self, name: str) -> None:
        """Open what a reference means now, if that is not what it meant before."""
        before, location = self._meant[name], self._locate(name)
        if (location.ref, _stamp(location)) == (before.ref, before.stamp):
            return
        hosted = self._opened(name, location)
        with self._lock:
            self._meant[name] = hosted
        if hosted.ref != before.ref:
            self._note(f"{name} means {hosted.ref} now, {before.ref} before")
        elif hosted.fingerprint != before.fingerprint:
            self._note(f"{name} is another version by now: somebody has removed the index and built it anew")

    def _close_unused(self) -> None:
        until = time.monotonic() - self._kept_s
        with self._lock:
            meant = list(self._meant.values())
            for hosted in list(self._hosted):
                if hosted not in meant and hosted.num_users == 0 and hosted.last_used < until:
                    hosted.close()
                    self._hosted.remove(hosted)

    def _require_one_place_each(self) -> None:
        places: dict[str, str] = {}
        for name, ref in self._served.items():
            same = places.setdefault(name.rpartition("@")[0], ref)
            if _place(same) != _place(ref):
                raise UsageError(f"'{same}' and '{ref}' would have one name here", hint="serve one, or rename an index")

    def _locate(self, name: str) -> Location:
        return Store(self._indexes_dir).locate(name)

    def _opened(self, name: str, location: Location) -> Hosted:
        """The version at a place, opened unless it is."""
        stamp = _stamp(location)
        with self._lock:
            for hosted in self._hosted:
                if (hosted.ref, hosted.stamp) == (location.ref, stamp):
                    return hosted
        place = _place(self._served[name])
        found = find(
            self._indexes_dir,
            f"{place}/{location.ref}" if place else location.ref,
            access=self._access if place else None,
        )
        memory = found.open(load_encoder=self._loader_for(found.manifest), threads=self._threads)
        needed = (ENCODER_FILE, SERIES_FILE, WINDOWS_FILE)
        paths = [path for path in found.manifest.files if path.rpartition("/")[2] in needed]
        hosted = Hosted(ref=location.ref, fingerprint=found.manifest.fingerprint, stamp=stamp, memory=memory, files={})
        try:
            for path in paths:
                hosted.files[path] = os.open(location.path / path, os.O_RDONLY | os.O_CLOEXEC)
            with self._lock:
                if self._is_closed:
                    raise ServiceError("the service is about to end")
                self._hosted.append(hosted)
        except (OSError, ServiceError):  # removed at this moment, or nobody wants it any more
            hosted.close()
            raise
        return hosted


def _stamp(location: Location) -> Stamp:
    """Changes when another manifest lies at a place. Raises `OSError` if there is none."""
    found = (location.path / MANIFEST).stat()
    return found.st_ino, found.st_mtime_ns, found.st_size


def _place(ref: str) -> str:
    """Where a reference is searched: the part before its name, empty for the folder."""
    return ref.rpartition("/")[0] if ref.startswith(MILVUS_SCHEMES) else ""


def _canonical(ref: str) -> str:
    """`NAME@latest`, `NAME@3` or `NAME@alias` of a reference. Raises `UsageError`."""
    if ref.startswith((*SERVICE_SCHEMES, *OLD_SCHEMES)):
        raise UsageError(f"'{ref}' is served already", hint="let clients ask it there")
    name, wanted = parse_ref(ref.rpartition("/")[2] if ref.startswith(MILVUS_SCHEMES) else ref)
    return f"{name}@{int(wanted) if wanted.isdecimal() else wanted}"
