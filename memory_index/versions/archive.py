"""One version as one file, to carry it to another machine: `export` and `import_version`.

The file is a ZIP archive without compression (float keys hardly shrink): its table of contents is at the end, so
a truncated one is found at once, and it cannot grow when it is read. Members are `NAME@3/` and a path of the
version. An archive may come from a stranger: nothing in it decides where a file is written, and nothing is
published before every byte has been compared with the manifest.
"""

from __future__ import annotations

import errno
import hashlib
import secrets
import shutil
import struct
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from memory_index import files
from memory_index.errors import IncompatibleError, MemoryIndexError, NotFoundError, UsageError, VerificationError
from memory_index.files import FileRecord
from memory_index.versions.layout import check_name, parse_ref
from memory_index.versions.manifest import Manifest, manifest_from_json
from memory_index.versions.store import Store
from memory_index.versions.version import (
    MANIFEST,
    MANIFEST_HASH,
    MAX_MANIFEST_BYTES,
    Version,
    check_files,
    first_line,
    load,
    manifest_files,
    require_present,
    verify,
)

SUFFIX = ".zip"
DAMAGED = "copy the archive again, or export it again"


@dataclass(frozen=True, kw_only=True, slots=True)
class Imported:
    """The version that an archive holds. was_present: the index had it already, undamaged; nothing was added."""

    version: Version
    was_present: bool


def export(version: Version, path: Path | str) -> Path:
    """Write a version, with all that it needs, into one file; equal versions and names give equal bytes.

    path: an archive (`.zip`) that does not exist yet, or a folder, where it is called `NAME@3.zip`. Returns the
    archive. Interrupted, it leaves nothing but a `.partial` file beside it.

    Raises `UsageError` for another suffix or an existing file, `VerificationError` if the version is damaged,
    `ResourceError` for a full disk and the like.
    """
    path = Path(path)
    if path.is_dir():
        path = path / f"{version.ref}{SUFFIX}"
    if path.suffix != SUFFIX:
        raise UsageError(f"{path} is not the name of an archive", hint=f"end it in {SUFFIX}")
    if path.exists():
        raise UsageError(f"{path} exists already", hint="choose another name, or remove it")
    check_files(version)
    partial = path.with_name(f".{path.name}-{secrets.token_hex(4)}.partial")
    with files.refusals_named(path, option=""):
        try:
            with zipfile.ZipFile(partial, "x", compression=zipfile.ZIP_STORED) as archive:
                for file in [MANIFEST, MANIFEST_HASH, *sorted(version.manifest.files)]:
                    add(archive, f"{version.ref}/{file}", version.path / file)
            files.sync(partial)
            partial.rename(path)
        except FileNotFoundError:
            require_present(version)
            raise NotFoundError(f"there is no folder {path.parent}", hint="make it first") from None
        finally:
            partial.unlink(missing_ok=True)
        files.sync(path.parent)
    return path


def import_version(store: Store, path: Path | str, name: str | None = None) -> Imported:
    """Publish the version in an archive as the next version of `name` (default: the name that it had).

    Its fingerprint stays what it was. If the index has an undamaged version of this fingerprint, nothing is added.

    Raises `NotFoundError` if there is no archive, `VerificationError` if any byte of it is not what was exported,
    `IncompatibleError` for a newer format, `ResourceError` as `Store.staging` does.
    """
    path = Path(path)
    with files.refusals_named(path, option=""), open_file(path) as file:
        with damage_named(path):
            archive = zipfile.ZipFile(file)
            folder, members = contents(archive, path)
            manifest = archived_manifest(archive, members, path)
        require_members(members, manifest, path)
        name = check_name(parse_ref(folder)[0] if name is None else name)
        with store.staging(name) as staging:
            for present in same_fingerprint(store, name, manifest):
                return Imported(version=present, was_present=True)
            for member, record in manifest.files.items():
                with damage_named(path):
                    extract(archive, members[member], staging.path / member, record, where=f"{path}: {member}")
            return Imported(version=staging.publish(manifest), was_present=False)


def add(archive: zipfile.ZipFile, member: str, source: Path) -> None:
    """Append one file under a fixed date and mode, so that the archive's bytes say nothing of this machine."""
    entry = zipfile.ZipInfo(member, date_time=(1980, 1, 1, 0, 0, 0))
    entry.external_attr = 0o100644 << 16
    entry.file_size = source.stat().st_size
    with source.open("rb") as file, archive.open(entry, "w") as target:
        shutil.copyfileobj(file, target, files.READ_BYTES)


def open_file(path: Path) -> BinaryIO:
    """Open an archive. Raises `NotFoundError`."""
    try:
        return path.open("rb")
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise NotFoundError(f"there is no archive {path}", hint="'cli index export' makes one") from error


@contextmanager
def damage_named(path: Path) -> Iterator[None]:
    """Raise what `zipfile` says of a damaged archive as `VerificationError`.

    It says it in many ways, for it believes every number that it reads: an offset becomes EINVAL, a length
    `struct.error`, a flag "password required" (RuntimeError).
    """
    try:
        yield
    except MemoryIndexError:
        raise
    except (zipfile.BadZipFile, struct.error, EOFError, ValueError, RuntimeError, OverflowError, OSError) as error:
        if isinstance(error, OSError) and error.errno != errno.EINVAL:
            raise
        raise VerificationError(f"{path} is not a whole archive: {first_line(error)}", hint=DAMAGED) from error


def require_members(members: dict[str, zipfile.ZipInfo], manifest: Manifest, path: Path) -> None:
    """Raise `VerificationError` unless an archive holds exactly the files that its manifest lists, in their sizes."""
    expected = {MANIFEST, MANIFEST_HASH, *manifest.files}
    for file in sorted(expected ^ members.keys()):
        state = "is missing" if file in expected else "does not belong there"
        raise VerificationError(f"{path}: {file} {state}", hint=DAMAGED)
    for file, record in manifest.files.items():
        if members[file].file_size != record.bytes:
            message = f"{path}: {file} has {members[file].file_size} bytes, but {record.bytes} were published"
            raise VerificationError(message, hint=DAMAGED)


def contents(archive: zipfile.ZipFile, path: Path) -> tuple[str, dict[str, zipfile.ZipInfo]]:
    """The folder that all members lie in (`NAME@3`), and the members by path below it."""
    folders, members = set(), {}
    for entry in archive.infolist():
        folder, _, file = entry.filename.partition("/")
        if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1 or file in members:
            raise VerificationError(f"{path}: {entry.filename} is compressed, encrypted or there twice", hint=DAMAGED)
        folders.add(folder)
        members[file] = entry
    if len(folders) != 1:
        raise VerificationError(f"{path} does not hold one version of an index", hint=DAMAGED)
    return folders.pop(), members


def archived_manifest(archive: zipfile.ZipFile, members: dict[str, zipfile.ZipInfo], path: Path) -> Manifest:
    """The manifest in an archive, checked against its hash."""
    for file in (MANIFEST, MANIFEST_HASH):
        if file not in members or members[file].file_size > MAX_MANIFEST_BYTES:
            raise VerificationError(f"{path} has no {file} of a sensible size", hint=DAMAGED)
    content = archive.read(members[MANIFEST])
    if archive.read(members[MANIFEST_HASH]) != manifest_files(content)[MANIFEST_HASH]:
        raise VerificationError(f"{path}: {MANIFEST} and {MANIFEST_HASH} do not match", hint=DAMAGED)
    return manifest_from_json(content.decode(errors="replace"), where=f"{path}: {MANIFEST}")


def extract(archive: zipfile.ZipFile, member: zipfile.ZipInfo, target: Path, record: FileRecord, *, where: str) -> None:
    """Write one member to a path that the manifest, not the archive, has chosen, if its bytes are the right ones."""
    target.parent.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    with archive.open(member) as source, target.open("xb") as file:
        while block := source.read(files.READ_BYTES):
            digest.update(block)
            file.write(block)
    if digest.hexdigest() != record.sha256 or target.stat().st_size != record.bytes:
        raise VerificationError(f"{where} has other bytes than were published", hint=DAMAGED)


def same_fingerprint(store: Store, name: str, manifest: Manifest) -> list[Version]:
    """The undamaged versions of a name that are the one in the archive: none or more."""
    found = []
    for number in store.numbers(name):
        try:
            version = load(store.location(name, number))
        except (NotFoundError, VerificationError, IncompatibleError):
            continue
        if version.manifest.fingerprint == manifest.fingerprint and not verify(version):
            found.append(version)
    return found
