"""What a reference may be, and finding what it means.

    NAME, NAME@3, NAME@alias          a version in a folder of indexes
    http://HOST:PORT/NAME@3           the same behind a service (`cli index serve`); https:// with TLS
    milvus://HOST:PORT/NAME@3         a version in the folder whose keys are searched by a Milvus server
    milvus:PATH.db/NAME@3             likewise, by Milvus Lite inside this process

Whoever asks a memory finds it here and cannot tell which kind it is. Commands that change versions work on a folder
only, and take no address (`require_local`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from memory_index.access import Access
from memory_index.errors import NotFoundError, UsageError
from memory_index.memory import Memory
from memory_index.versions.manifest import Manifest
from memory_index.versions.opening import LoadEncoder, open_version
from memory_index.versions.store import Store

SERVICE_SCHEMES = ("http://", "https://")
OLD_SCHEMES = ("grpc://", "grpc+tls://")  # of a service before it spoke HTTP
MILVUS_SCHEMES = ("milvus:", "milvus+tls:")

Note = Callable[[str], None]
T = TypeVar("T")


class Open(Protocol):
    """Opens what was found; see `open_memory` for the arguments."""

    def __call__(self, *, load_encoder: LoadEncoder | None = None, threads: int | None = None) -> Memory: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class FoundVersion:
    """A version that a reference means now. ref: in full, so that it will never mean another one.

    open: searches it; a service has loaded the encoder and chosen the threads itself.
    """

    ref: str
    manifest: Manifest
    open: Open


def find(
    indexes_dir: Path | str, ref: str, *, access: Access | None = None, note: Note = lambda text: None
) -> FoundVersion:
    """What a reference means, with its manifest and a way to open it.

    access: how an address is reached; for a version in a folder it must be None. note: told when a service cannot be
    reached any more and is asked again and again.

    Raises `UsageError` (no reference), `NotFoundError`, `VerificationError`, and for an address `ServiceError`
    (unreachable, refused) or `ResourceError` (an extra that is not installed).
    """
    if ref.startswith(SERVICE_SCHEMES):
        from memory_index.remote import RemoteMemory

        memory = RemoteMemory(ref, access=access or Access(), note=note)
        return FoundVersion(ref=memory.ref, manifest=memory.manifest, open=lambda **_: memory)
    if ref.startswith(OLD_SCHEMES):
        scheme, _, place = ref.partition("://")
        now = f"{'https' if 'tls' in scheme else 'http'}://{place}"
        raise UsageError(
            f"'{ref}': a service speaks HTTP by now, and is not reached at {scheme}:// any more",
            hint=f"where 'cli index serve' of this program runs there, it is {now}",
        )
    if ref.startswith(MILVUS_SCHEMES):
        from memory_index.milvus.searching import open_milvus

        address, _, name = ref.rpartition("/")
        version = Store(indexes_dir).resolve(name)

        def searched(*, load_encoder: LoadEncoder | None = None, threads: int | None = None) -> Memory:
            return open_milvus(version, address, access=access or Access(), load_encoder=load_encoder, threads=threads)

        return FoundVersion(ref=f"{address}/{version.ref}", manifest=version.manifest, open=searched)
    if "/" in ref:
        raise UsageError(
            f"'{ref}' is neither a reference to an index nor an address",
            hint="NAME, NAME@3 or NAME@alias, or http://HOST:PORT/NAME of a service (https:// with TLS)",
        )
    if access not in (None, Access()):
        raise UsageError(
            f"'{ref}' is a version in {indexes_dir}: no token or certificate is needed for it",
            hint="leave --token-file and --tls-ca out, or give the address of a service",
        )
    version = Store(indexes_dir).resolve(ref)

    def opened(*, load_encoder: LoadEncoder | None = None, threads: int | None = None) -> Memory:
        return open_version(version, load_encoder=load_encoder, threads=threads)

    return FoundVersion(ref=version.ref, manifest=version.manifest, open=opened)


def use_found(found: Callable[[], FoundVersion], use: Callable[[FoundVersion], T]) -> T:
    """Do something with what a reference means; once more if that is removed meanwhile and it means another one now.

    found: finds it. Raises what the two raise: a number never means another version, and then is not there any more.
    """
    first = found()
    try:
        return use(first)
    except NotFoundError:
        now = found()
        if now.ref == first.ref:
            raise
        return use(now)


def open_memory(
    indexes_dir: Path | str,
    ref: str,
    *,
    load_encoder: LoadEncoder | None = None,
    threads: int | None = None,
    access: Access | None = None,
    note: Note = lambda text: None,
) -> Memory:
    """Open what a reference means.

    Every file that is read is hashed before; keys and FAISS files are then mapped, not read. load_encoder: reads an
    encoder that is not built in, given the version's folder and manifest (that is how a learned encoder comes in
    without this package importing torch). threads: used by one search. access, note: see `find`.

    Raises what `find` raises, and `IncompatibleError` (newer format, unknown encoder).
    """
    return use_found(
        lambda: find(indexes_dir, ref, access=access, note=note),
        lambda found: found.open(load_encoder=load_encoder, threads=threads),
    )


def is_address(ref: str) -> bool:
    """Whether a reference leads out of the folder of indexes."""
    return ref.startswith((*SERVICE_SCHEMES, *OLD_SCHEMES, *MILVUS_SCHEMES))


def require_local(ref: str, what: str) -> None:
    """Raise `UsageError` for an address where only a version in a folder will do. what: such as `to append`."""
    if is_address(ref):
        raise UsageError(
            f"'{ref}' is an address: {what}, name the version in its folder",
            hint=f"for example {ref.rpartition('/')[2]}, on the machine that holds it",
        )
