"""One published version: read its manifest, check its bytes, read its tables.

Nothing here changes a version; publishing, naming and removing are in `store.py`. Counts, widths and
recall are checked by whoever opens the version (`opening.py`); here it is bytes only.
"""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq

from memory_index.errors import MemoryIndexError, NotFoundError, ResourceError, VerificationError
from memory_index.files import FileRecord, altered_files, files_below, refusals_named, sha256_of
from memory_index.versions.manifest import LFS_POINTER, Manifest, manifest_from_json

MANIFEST = "manifest.json"
MANIFEST_HASH = "manifest.sha256"
MAX_MANIFEST_BYTES = 64 << 20  # some hundred thousand series; more is not a manifest

RESTORE = "restore it from a copy ('cli index import'), or build it again"


@dataclass(frozen=True, kw_only=True, slots=True)
class Location:
    """Where a version is; nothing of it has been read."""

    name: str
    number: int
    path: Path

    @property
    def ref(self) -> str:
        """`NAME@3`: what means this version and will never mean another."""
        return f"{self.name}@{self.number}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Version(Location):
    """A version whose manifest has been read and is the one that was published."""

    manifest: Manifest


@dataclass(frozen=True, kw_only=True, slots=True)
class Damage:
    """One thing that is wrong with a version. file: relative to its folder. message: continues the file's name."""

    file: str
    kind: Literal["missing", "extra", "size", "bytes", "pointer", "unreadable", "unknown"]
    message: str
    hint: str = RESTORE


def load(location: Location) -> Version:
    """Read the manifest of a version. Its other files are not touched: see `check_files`.

    Raises `NotFoundError` if the version is gone, `VerificationError` if its manifest is not the one that was
    published, `ResourceError` if it may not be read, `IncompatibleError` for a newer format.
    """
    content, problems = read_manifest(location)
    if problems:
        raise as_error(location, problems[0])
    manifest = manifest_from_json(content.decode(errors="replace"), where=str(location.path / MANIFEST))
    return Version(name=location.name, number=location.number, path=location.path, manifest=manifest)


def verify(location: Location) -> tuple[Damage, ...]:
    """Every difference between a version on disk and what was published, by file; empty if there is none.

    Without its manifest nothing else can be judged, so a damaged one is then the only problem.

    Raises `NotFoundError` if the version is gone, `IncompatibleError` for a newer format.
    """
    content, problems = read_manifest(location)
    if problems:
        return tuple(problems)
    try:
        manifest = manifest_from_json(content.decode(errors="replace"), where="it")
    except VerificationError as error:
        return (Damage(file=MANIFEST, kind="unknown", message=f"is of no use: {error}", hint=error.hint),)
    problems = file_problems(location.path, manifest)
    for path in files_below(location.path):
        if path not in {*manifest.files, MANIFEST, MANIFEST_HASH}:
            problems.append(Damage(file=path, kind="extra", message="is not part of the version", hint="move it away"))
    require_present(location)
    return tuple(sorted(problems, key=lambda problem: problem.file))


def check_files(version: Version, *, only: Callable[[str], bool] = lambda path: True) -> None:
    """Hash every file of a version, in parallel, before any of them is opened.

    only: which files will be opened, by path relative to the version; the others are not looked at. A file that
    does not belong to the version is left alone: nobody will open it (`verify` reports it).

    Raises `VerificationError` for the first file that is not what was published, `ResourceError` if one may not be
    read, `NotFoundError` if the version has been removed meanwhile.
    """
    if load(version).manifest.fingerprint != version.manifest.fingerprint:
        raise VerificationError(f"{version.path / MANIFEST} has changed since it was read", hint=RESTORE)
    files = {path: record for path, record in version.manifest.files.items() if only(path)}
    problems = file_problems(version.path, replace(version.manifest, files=files))
    if problems:
        require_present(version)
        raise as_error(version, *problems)


def read_parquet(path: Path, *, num_rows: int) -> pa.Table:
    """Read a table whose number of rows is known, refusing another number before a single value is decoded.

    Raises `VerificationError` for another number of rows, or what is not Parquet.
    """
    try:
        with refusals_named(path), pq.ParquetFile(path) as file:
            metadata = file.metadata
            promised = [metadata.num_rows, sum(metadata.row_group(i).num_rows for i in range(metadata.num_row_groups))]
            if promised != [num_rows, num_rows]:
                raise VerificationError(
                    f"{path} says it has {max(promised)} rows, but {num_rows} were published", hint=RESTORE
                )
            table = file.read(use_threads=True)
    except (pa.ArrowException, OSError) as error:
        raise VerificationError(f"{path} cannot be read as Parquet: {first_line(error)}", hint=RESTORE) from error
    if table.num_rows != num_rows:
        raise VerificationError(f"{path} has {table.num_rows} rows, but {num_rows} were published", hint=RESTORE)
    return table


def manifest_files(content: bytes) -> dict[str, bytes]:
    """The two files that hold a manifest: itself and its hash, as `sha256sum -c manifest.sha256` reads it."""
    return {MANIFEST: content, MANIFEST_HASH: f"{sha256_of(content)}  {MANIFEST}\n".encode()}


def read_manifest(location: Location) -> tuple[bytes, list[Damage]]:
    """The bytes of the manifest, and what is wrong with them or with their hash.

    Raises `NotFoundError` if the version is gone.
    """
    found = {}
    for name in (MANIFEST, MANIFEST_HASH):
        try:
            with (location.path / name).open("rb") as file:
                found[name] = file.read(MAX_MANIFEST_BYTES)
        except OSError as error:
            require_present(location)
            return b"", [unreadable(name, error)]
        if found[name].startswith(LFS_POINTER.encode()):
            return b"", [pointer(name)]
    if found[MANIFEST_HASH] != manifest_files(found[MANIFEST])[MANIFEST_HASH]:
        return b"", [Damage(file=MANIFEST, kind="bytes", message=f"and {MANIFEST_HASH} do not match")]
    return found[MANIFEST], []


def file_problems(folder: Path, manifest: Manifest) -> list[Damage]:
    """What is wrong with the files that a manifest lists, in its order."""
    problems = {path: size_problems(folder, path, record) for path, record in manifest.files.items()}
    to_hash = [path for path, found in problems.items() if not found]
    for path, hashed in altered_files(folder, {path: manifest.files[path] for path in to_hash}).items():
        if isinstance(hashed, OSError):
            problems[path] = [unreadable(path, hashed)]
        else:
            changed = Damage(file=path, kind="bytes", message="has other bytes than were published (sha256 differs)")
            problems[path] = [pointer(path) if is_pointer(folder / path) else changed]
    return [problem for found in problems.values() for problem in found]


def size_problems(folder: Path, path: str, record: FileRecord) -> list[Damage]:
    """What can be seen to be wrong with a file without reading it: at most one problem."""
    try:
        status = (folder / path).stat()
        if not stat.S_ISREG(status.st_mode):
            return [Damage(file=path, kind="unreadable", message="is not a file")]
        if status.st_size == record.bytes:
            return []
        if is_pointer(folder / path):
            return [pointer(path)]
    except OSError as error:
        return [unreadable(path, error)]
    return [Damage(file=path, kind="size", message=f"has {status.st_size} bytes, but {record.bytes} were published")]


def is_pointer(path: Path) -> bool:
    """Whether Git LFS has left its pointer where the file should be. Raises `OSError`."""
    with path.open("rb") as file:
        return file.read(len(LFS_POINTER)) == LFS_POINTER.encode()


def pointer(file: str) -> Damage:
    """The problem of a file that Git LFS has not fetched."""
    message = "is a Git LFS pointer, not the file itself"
    return Damage(file=file, kind="pointer", message=message, hint="fetch it with 'git lfs pull'")


def unreadable(file: str, error: OSError) -> Damage:
    """The problem of a file that is not there or cannot be read."""
    if isinstance(error, (FileNotFoundError, NotADirectoryError)):
        return Damage(file=file, kind="missing", message="is missing")
    message = f"cannot be read: {(error.strerror or str(error)).lower()}"
    return Damage(file=file, kind="unreadable", message=message, hint="check who owns it and its permissions")


def as_error(location: Location, first: Damage, *more: Damage) -> MemoryIndexError:
    """The error for a caller that cannot go on: the first problem, and how many more there are."""
    others = f" (and {len(more)} more: 'cli index verify {location.ref}')" if more else ""
    kind = ResourceError if first.kind == "unreadable" else VerificationError
    return kind(f"{location.path / first.file} {first.message}{others}", hint=first.hint)


@contextmanager
def removal_named(location: Location) -> Iterator[None]:
    """Raise `NotFoundError` for whatever fails inside the block if the version has been removed meanwhile."""
    try:
        yield
    except Exception:
        require_present(location)
        raise


def require_present(location: Location) -> None:
    """Raise `NotFoundError` if the version is not there (any more)."""
    if not location.path.is_dir():
        raise NotFoundError(f"{location.ref} is not there: {location.path}", hint="'cli index list' shows what is")


def first_line(error: Exception) -> str:
    """The first line of a library's message, which may have many."""
    return str(error).partition("\n")[0]
