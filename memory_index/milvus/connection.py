"""One Milvus, reached: its address, how long it may take, and its errors in our terms.

    milvus://HOST:PORT, milvus+tls://HOST:PORT    a server
    milvus:PATH.db                                Milvus Lite, inside this process, in a folder of that name

What is kept in it is `collections.py`. pymilvus is an extra: nothing here loads it before a connection is made.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from tenacity import Retrying, retry_if_exception, stop_before_delay, wait_exponential

from memory_index.access import Access
from memory_index.errors import (
    IncompatibleError,
    MemoryIndexError,
    NotFoundError,
    ResourceError,
    ServiceError,
    UsageError,
)

if TYPE_CHECKING:
    from pymilvus import MilvusClient

T = TypeVar("T")

SERVER, SERVER_TLS, EMBEDDED = "milvus://", "milvus+tls://", "milvus:"
PAUSES = wait_exponential(multiplier=0.1, max=3.0)  # seconds between two tries: 0.1, then twice as long each time
LEAST_TIMEOUT_S = 1.0  # a try gets at least so long
CONNECT_S = 10.0  # a server that is there answers sooner
NEVER_MS = 2**31 - 1  # Milvus Lite breaks off a connection that is idle and pinged, as pymilvus does every 10 s
OLDEST = (2, 3)  # it counts rows exactly, and keeps properties of a collection
NO_COLLECTION = 100  # Milvus's code
NOT_AUTHENTICATED = 1800  # likewise; older servers say it in words only
REFUSED = re.compile(r"auth check failure|missing authorization|unauthenticated|permission deny", re.IGNORECASE)
ADDRESS_HINT = "milvus://HOST:PORT for a server, or milvus:PATH.db for Milvus Lite"
EXTRA_HINT = "pip install 'gram-forecaster[milvus]'"

# Milvus Lite keeps the effort of a search (`ef`, `nprobe`) in the index that all searches share, so that of two at a
# time one would search with the other's effort, and answer otherwise than alone.
_LITE_SEARCH = threading.Lock()


class Address(NamedTuple):
    """Where a Milvus is. shown: as its user wrote it. uri: as pymilvus wants it. embedded: in this process."""

    shown: str
    uri: str
    embedded: bool


def parse_address(text: str) -> Address:
    """The address of a Milvus, without a reference behind it. Raises `UsageError`."""
    for scheme, protocol in ((SERVER, "http"), (SERVER_TLS, "https")):
        if text.startswith(scheme):
            host, separator, port = text.removeprefix(scheme).rstrip("/").rpartition(":")
            named = separator and re.fullmatch(r"[\w.-]+|\[[0-9a-fA-F:.]+\]", host)
            if not (named and re.fullmatch(r"[0-9]{1,5}", port) and 1 <= int(port) <= 65535):
                raise UsageError(f"'{text}' is not the address of a Milvus server", hint=ADDRESS_HINT)
            return Address(text, f"{protocol}://{host}:{port}", False)
    path = text.removeprefix(EMBEDDED)
    if not text.startswith(EMBEDDED) or not path.endswith(".db") or path == ".db":
        raise UsageError(f"'{text}' is not the address of a Milvus", hint=ADDRESS_HINT)
    return Address(text, str(Path(path).absolute()), True)


class Connection:
    """A Milvus that has answered. Safe to use from several threads.

    may_create: whether Milvus Lite may make its folder; else it must be there.

    Raises `ResourceError` (pymilvus or Milvus Lite is not installed, or another process has the folder open, or the
    disk is full), `NotFoundError` (no such folder), `ServiceError` (unreachable, or refuses), `IncompatibleError`
    (too old).
    """

    def __init__(self, address: Address, access: Access, *, may_create: bool = False) -> None:
        self.address = address
        self.access = access
        self.may_create = may_create
        self._authority: tempfile._TemporaryFileWrapper[bytes] | None = None  # kept as long as it may be read again
        self._client = self._connected()
        self.server_version = self.ask("tell its version", lambda client, s: client.get_server_version(timeout=s))
        self._require_supported()

    def ask(
        self,
        doing: str,
        action: Callable[[MilvusClient, float], T],
        *,
        again: bool = True,
        deadline_s: float | None = None,
    ) -> T:
        """Let Milvus do something, and try again while it is not there, until the deadline.

        doing: for messages. action: given the client and the seconds it may take. again: whether it may be done twice.

        Raises `ServiceError`, or `NotFoundError` for a collection that is not there.
        """
        again = again and not self.address.embedded  # what is in this process does not come back
        within_s = self.access.deadline_s if deadline_s is None else deadline_s
        until = time.monotonic() + within_s
        tries = Retrying(
            retry=retry_if_exception(lambda error: again and isinstance(error, _failures()) and not _is_final(error)),
            wait=PAUSES,
            stop=stop_before_delay(within_s),
            reraise=True,
        )
        try:
            return tries(lambda: action(self._client, max(until - time.monotonic(), LEAST_TIMEOUT_S)))
        except _failures() as error:
            raise self._in_our_terms(doing, error) from error

    def searching(self) -> AbstractContextManager[object]:
        """To be held by whoever searches: a server takes many searches at a time, Milvus Lite one."""
        return _LITE_SEARCH if self.address.embedded else nullcontext()

    def close(self) -> None:
        """Let go of a server. Milvus Lite goes on until this process ends: other memories may be using it."""
        if not self.address.embedded:
            self._client.close()

    def _connected(self) -> MilvusClient:
        try:
            from pymilvus import MilvusClient

            if self.address.embedded:
                import milvus_lite  # noqa: F401 - pymilvus loads it too, and hides why it cannot
        except ImportError as error:
            raise ResourceError(
                f"{self.address.shown}: {error.name} is not installed, which speaks with Milvus", hint=EXTRA_HINT
            ) from error
        # Both write a traceback to stderr for every error that they also raise.
        for name in ("pymilvus", "milvus_lite"):
            logging.getLogger(name).setLevel(logging.CRITICAL + 1)
        options: dict[str, Any] = {}
        if self.address.embedded:
            self._require_folder()
            options["grpc_options"] = {"grpc.keepalive_time_ms": NEVER_MS}
        elif self.access.tls_ca is not None:
            self._authority = tempfile.NamedTemporaryFile(suffix=".pem")  # noqa: SIM115 - pymilvus reads a path
            self._authority.write(self.access.tls_ca)
            self._authority.flush()
            options["server_pem_path"] = self._authority.name
        try:
            timeout = min(self.access.deadline_s, CONNECT_S)
            return MilvusClient(self.address.uri, token=self.access.token, timeout=timeout, **options)
        except _failures() as error:
            raise self._not_connected(error) from error

    def _require_folder(self) -> None:
        path = Path(self.address.uri)
        if not path.parent.is_dir():
            raise NotFoundError(f"there is no folder {path.parent} for {path.name}", hint="make it first")
        if not (path.exists() or self.may_create):
            raise NotFoundError(
                f"there is no Milvus Lite at {path}", hint=f"cli index publish REF --to {self.address.shown} makes it"
            )
        if path.exists() and not path.is_dir():
            raise UsageError(f"{path} is a file, but Milvus Lite keeps a folder", hint="choose another name")

    def _require_supported(self) -> None:
        """Milvus Lite has numbers of its own, and its version is that of the installed package."""
        numbers = re.search(r"(\d+)\.(\d+)", self.server_version)
        if self.address.embedded or numbers is None:
            return
        if (int(numbers[1]), int(numbers[2])) < OLDEST:
            oldest = ".".join(map(str, OLDEST))
            raise IncompatibleError(
                f"Milvus at {self.address.shown} has version {self.server_version}", hint=f"{oldest} or newer is needed"
            )

    def _not_connected(self, error: Exception) -> MemoryIndexError:
        if self._is_full(error):
            return self._in_our_terms("open its folder", error)
        if self.address.embedded:
            return ResourceError(
                f"{self.address.uri} cannot be opened: {_said(error)}",
                hint="Milvus Lite serves one process at a time; end the other one, or use a Milvus server",
            )
        # pymilvus says of every failure that it could not connect; why, the error behind it tells.
        cause = error.__cause__ if isinstance(error.__cause__, Exception) else error
        if REFUSED.search(_said(cause)):
            return self._in_our_terms("let us in", cause)
        return ServiceError(
            f"no Milvus answers at {self.address.shown}: {_said(cause)}",
            hint="is it running, and are host, port and TLS right?",
        )

    def _is_full(self, error: Exception) -> bool:
        """Whether the disk is full, which is ours to see to where Milvus runs in this process."""
        return self.address.embedded and os.strerror(errno.ENOSPC) in _said(error)

    def _in_our_terms(self, doing: str, error: Exception) -> MemoryIndexError:
        said, where = _said(error), f"Milvus at {self.address.shown}"
        if self._is_full(error):
            return ResourceError(
                f"{where} could not {doing}: {said}",
                hint=f"make room on the disk of {self.address.uri}, then do it again: it goes on where it was",
            )
        if _code(error) == NO_COLLECTION:
            return NotFoundError(f"{where} has no such collection: {said}", hint="cli index publish REF --to ...")
        if _code(error) == NOT_AUTHENTICATED or REFUSED.search(said):
            return ServiceError(
                f"{where} refuses the token", hint="--token-file with a line that holds USER:PASSWORD, or its API key"
            )
        return ServiceError(f"{where} could not {doing}: {said}", hint="see the server's own log, and try again")


def _failures() -> tuple[type[Exception], ...]:
    """What pymilvus raises: its own errors, and those of gRPC that it lets through."""
    import grpc
    from pymilvus.exceptions import MilvusException

    return (MilvusException, grpc.RpcError, grpc.FutureTimeoutError)


def _is_final(error: Exception) -> bool:
    """Whether the same question would be answered alike later. Milvus rarely says so: a restart has many errors."""
    import grpc
    from pymilvus.exceptions import ParamError

    if isinstance(error, ParamError) or _code(error) in (NO_COLLECTION, NOT_AUTHENTICATED):
        return True
    if isinstance(error, grpc.RpcError):
        status = error.code()
        return status not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED)
    return bool(REFUSED.search(_said(error)))


def _code(error: Exception) -> object:
    """Milvus's own code of an error; gRPC has a method of that name."""
    code = getattr(error, "code", None)
    return None if callable(code) else code


def _said(error: Exception) -> str:
    """What the other side said, in one line without the names of classes around it."""
    details = getattr(error, "details", None)
    text = str(details() if callable(details) else getattr(error, "message", "") or error)
    return " ".join(text.split())[:300] or type(error).__name__
