"""Bytes on disk: hashing, syncing, linking and locking, and what the operating system refuses.

This file knows files and folders; what a version is, it does not know (`version.py`, `store.py`).
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from memory_index.cores import num_cores
from memory_index.errors import MemoryIndexError, ResourceError

TEMPORARY = ".new-"  # beginning of the name of a file that is about to replace another
READ_ONLY = ~0o222  # what is published is mapped by its readers: nobody writes into it
READ_BYTES = 1 << 20  # per read: large enough for full speed, small enough for the cache of a core

FULL = "free some disk space ('cli index gc' removes what killed builds have left), then run it again"
DENIED = "check who owns it and its permissions"
ELSEWHERE = {errno.EACCES, errno.EPERM, errno.EROFS, errno.EEXIST, errno.ENOTDIR}  # another folder would do
REFUSALS = {
    errno.ENOSPC: "",  # what to do depends on what was written
    errno.EDQUOT: "the quota of this user is used up",
    errno.EFBIG: "raise the limit on file sizes (ulimit -f), or use another file system",
    errno.EACCES: DENIED,
    errno.EPERM: DENIED,
    errno.EROFS: DENIED,
    errno.EEXIST: "something else is there: move it away",
    errno.ENOTEMPTY: "something else is there: move it away, and run it again",
    errno.ENOTDIR: "a file is where a folder should be: move it away",
    errno.EIO: "the disk or its network connection has failed",
    errno.EMFILE: "raise the limit on open files (ulimit -n)",
    errno.ENFILE: "too many files are open on this machine",
}
CANNOT_LINK = {errno.EXDEV, errno.EPERM, errno.EACCES, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}


@dataclass(frozen=True, kw_only=True, slots=True)
class FileRecord:
    """One file: its hash (sha256, hexadecimal) and its size in bytes."""

    sha256: str
    bytes: int


class LockHeldError(ResourceError):
    """A lock that another process holds."""


@contextmanager
def refusals_named(path: Path, *, option: str = "--indexes-dir", when_full: str = FULL) -> Iterator[None]:
    """Raise what the operating system refuses inside the block as `ResourceError` with the path and a hint.

    path: where the block works, for errors that do not name a file themselves. option: of the command line, that would
    name another place; empty if there is none. when_full: what to do about a disk that is full.
    """
    try:
        yield
    except MemoryIndexError:
        raise
    except Exception as error:
        code = refusal(error)
        if code == 0:
            raise
        where = getattr(error, "filename", None) or path
        raise ResourceError(f"{where}: {os.strerror(code).lower()}", hint=_hint(code, option, when_full)) from error


def _hint(code: int, option: str, when_full: str) -> str:
    if code in (errno.ENOSPC, errno.EDQUOT):
        return ": ".join(filter(None, [REFUSALS[code], when_full]))
    return REFUSALS[code] + (f", or choose another place ({option})" if option and code in ELSEWHERE else "")


def refusal(error: Exception) -> int:
    """The `errno` of a refusal listed in `REFUSALS`, or 0 if the error is none of them."""
    if isinstance(error, OSError) and error.errno in REFUSALS:
        return error.errno
    # FAISS (RuntimeError), safetensors and pyarrow write by themselves, and only their text says what was refused.
    for code in REFUSALS:
        if os.strerror(code) in str(error) and not isinstance(error, OSError):
            return code
    # NumPy loses even that: "100000 requested and 1234 written" has no errno.
    return errno.ENOSPC if isinstance(error, OSError) and re.search(r"requested and \d+ written", str(error)) else 0


def sha256_of(content: bytes) -> str:
    """sha256 of some bytes, hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def hash_file(path: Path) -> FileRecord:
    """sha256 and size of the bytes of one file, read in one pass. Raises `OSError`."""
    digest, num_bytes = hashlib.sha256(), 0
    buffer = memoryview(bytearray(READ_BYTES))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            digest.update(buffer[:count])  # releases the GIL: threads hash in parallel
            num_bytes += count
    return FileRecord(sha256=digest.hexdigest(), bytes=num_bytes)


def hash_files(paths: Iterable[Path]) -> list[FileRecord | OSError]:
    """Hash files in parallel, one thread per core, the largest first; an unreadable one gives its error."""

    def attempt(path: Path) -> FileRecord | OSError:
        try:
            return hash_file(path)
        except OSError as error:
            return error

    paths = list(paths)
    largest_first = sorted(paths, key=size_or_zero, reverse=True)
    with ThreadPoolExecutor(max_workers=num_cores()) as threads:
        by_path = dict(zip(largest_first, threads.map(attempt, largest_first), strict=True))
    return [by_path[path] for path in paths]


def finish_files(folder: Path, paths: Iterable[str]) -> dict[str, FileRecord]:
    """Hash, protect from writing and sync files that are complete: the records to keep beside them.

    paths: relative to the folder. Raises `OSError`.
    """
    paths = list(paths)
    records = {}
    for path, found in zip(paths, hash_files(folder / path for path in paths), strict=True):
        if isinstance(found, OSError):
            raise found
        (folder / path).chmod(READ_ONLY & (folder / path).stat().st_mode)
        sync(folder / path)
        records[path] = found
    return records


def altered_files(folder: Path, records: Mapping[str, FileRecord]) -> dict[str, FileRecord | OSError]:
    """The files that have other bytes than their records say, in the records' order: what they have, or why not."""
    found = zip(records.items(), hash_files(folder / path for path in records), strict=True)
    return {path: hashed for (path, record), hashed in found if hashed != record}


def size_or_zero(path: Path) -> int:
    """Size in bytes; 0 for a file that cannot be asked."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


def files_below(folder: Path) -> list[str]:
    """Everything below a folder that is not itself a folder: relative paths with "/" between parts, sorted."""
    found = []
    for parent, folders, names in os.walk(folder):
        links = [name for name in folders if (Path(parent) / name).is_symlink()]
        found += [(Path(parent) / name).relative_to(folder).as_posix() for name in [*names, *links]]
    return sorted(found)


def sync(path: Path) -> None:
    """Make a file, or the list of names in a folder, survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_new(path: Path, content: bytes) -> None:
    """Write and sync a file that must not exist yet."""
    with path.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def write_array(path: Path, array: np.ndarray) -> None:
    """What `numpy.save` does, but a disk that is full is noticed.

    NumPy writes through a buffer of the C library and does not look whether its last kilobytes fit when it closes
    it: the file ends early, and nothing is raised. `faiss.write_index(index, path)` does the same; give it
    `faiss.PyCallbackIOWriter(file.write)` instead of a path. Raises `OSError`.
    """
    array = np.ascontiguousarray(array)
    with path.open("xb") as file:
        np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(array))
        file.write(array.reshape(-1).view(np.uint8).data)


def replace(path: Path, content: bytes) -> None:
    """Write a small file as `replacing` does."""
    with replacing(path) as file:
        file.write(content)


@contextmanager
def replacing(path: Path, *, in_place_if_busy: bool = False) -> Iterator[BinaryIO]:
    """A file to write, so that a reader, or a crash, sees the old content or the new and nothing between.

    What was there stays if the block fails; its permissions are kept. in_place_if_busy: write over a file that cannot
    be renamed over, because it is mounted by itself.
    """
    temporary = path.with_name(f"{TEMPORARY}{secrets.token_hex(4)}")
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if path.exists():
            shutil.copymode(path, temporary)
        try:
            temporary.replace(path)
        except OSError as error:
            if not in_place_if_busy or error.errno != errno.EBUSY:
                raise
            shutil.copyfile(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    sync(path.parent)


@contextmanager
def atomic_folder(staging: Path) -> Iterator[Path]:
    """A new folder to write in, deleted at the end of the block unless `publish_folder` has renamed it.

    Versions, checkpoints and neighbour caches all appear in this way: whole, or not at all. What a killed process
    leaves has the staging name, by which its owner finds and deletes it.
    """
    staging.mkdir()
    try:
        yield staging
    finally:
        if staging.exists():
            delete_tree(staging)


def publish_folder(staging: Path, target: Path) -> None:
    """Make a folder, whose files are synced, visible under another name: the rename is the commit. Raises `OSError`."""
    sync(staging)
    staging.rename(target)
    sync(target.parent)


def link_or_copy(source: Path, target: Path) -> bool:
    """Give `target` the bytes of `source`: by hard link, or by copy where the file system cannot link.

    Returns whether it is a link. A copy is synced, a link needs no sync.
    """
    try:
        target.hardlink_to(source)
    except OSError as error:
        if error.errno not in CANNOT_LINK:
            raise
        shutil.copyfile(source, target)
        sync(target)
        return False
    return True


def delete_tree(folder: Path) -> None:
    """Delete a folder or file. Someone else may be at it too. Raises `ResourceError` if it stays."""
    if folder.is_dir():
        shutil.rmtree(folder, ignore_errors=True)
    else:
        folder.unlink(missing_ok=True)
    if folder.exists():
        raise ResourceError(f"{folder} could not be deleted", hint=DENIED)


@contextmanager
def locked(path: Path, *, wait_s: float = 0.0, sign: bool = False) -> Iterator[None]:
    """Hold an exclusive lock on a file (made if missing) for the length of the block.

    The kernel releases it when the process ends, however it ends. sign: write our process id into the file,
    for the message of those who find it locked.

    Raises `LockHeldError` if another process or thread still holds it after `wait_s` seconds.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        until = time.monotonic() + wait_s
        while not try_lock(descriptor):
            if time.monotonic() >= until:
                holder = os.pread(descriptor, 20, 0).decode(errors="replace").strip()
                raise LockHeldError(
                    f"{path.parent} is being changed by another process" + (f" (pid {holder})" if holder else ""),
                    hint="wait until it has finished, or stop it",
                )
            time.sleep(0.005)
        if sign:
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)


def try_lock(descriptor: int) -> bool:
    """Take the lock of an open file if it is free."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
