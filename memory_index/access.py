"""How a service or a database is reached: tokens and certificates, as files hold them.

A token file has one token a line, each with a name before it if you like (`trainer-1 6f1ed002ab55...`); empty lines and
those that begin with # do not count. A service lets every token of its file in and writes the name into its log; a
client shows the first one of its own. What a service was given it follows: `KnownTokens`, `Certificate`.
"""

from __future__ import annotations

import ssl
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from memory_index.errors import MemoryIndexError, NotFoundError, UsageError
from memory_index.files import refusals_named

LEAST_TOKEN = 16  # characters
MAX_FILE_BYTES = 1 << 20
DEADLINE_S = 60.0
SOON_S = 7 * 86400.0  # a certificate that ends earlier is a trouble

Stamp = tuple[int, int, int]


@dataclass(frozen=True, kw_only=True, slots=True)
class Access:
    """What a client brings along.

    token: shown to whoever answers, empty for none. tls_ca: PEM bytes of the authority whose certificates are believed,
    None for those that the machine believes. deadline_s: how long one question may take, with all its retries.
    """

    token: str = field(default="", repr=False)
    tls_ca: bytes | None = field(default=None, repr=False)
    deadline_s: float = DEADLINE_S


@dataclass(frozen=True, kw_only=True, slots=True)
class Token:
    """One line of a token file. name: for the log, and not compared; the line's number where the file names none."""

    name: str = field(compare=False)
    token: str = field(repr=False)


def read_access(token_file: Path | str | None, tls_ca: Path | str | None) -> Access:
    """The first token of a file and the certificate of an authority, where they are given.

    Raises `NotFoundError`, `UsageError` (not a token, not a certificate), `ResourceError`.
    """
    return Access(
        token="" if token_file is None else read_tokens(Path(token_file), least=1)[0].token,
        tls_ca=None if tls_ca is None else read_pem(Path(tls_ca), "CERTIFICATE"),
    )


def read_tokens(path: Path, *, least: int = LEAST_TOKEN) -> tuple[Token, ...]:
    """The tokens of a file, at least one. least: characters of each, for whoever checks them to say.

    Raises `NotFoundError`, `UsageError`, `ResourceError`.
    """
    found = []
    for number, line in enumerate(_read(path).decode("utf-8", errors="replace").splitlines(), start=1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        name, token = (str(number), words[0]) if len(words) == 1 else (words[0], words[1])
        if len(words) > 2 or len(token) < least or not (token.isascii() and token.isprintable()):
            raise UsageError(
                f"{path}, line {number}: a token is one word of at least {least} ASCII characters, "
                "with a name before it if you like",
                hint="make one: python3 -c 'import secrets; print(secrets.token_urlsafe())'",
            )
        found.append(Token(name=name, token=token))
    if not found:
        raise UsageError(f"{path} holds no token", hint="write one into it, on a line of its own")
    return tuple(found)


def read_pem(path: Path, what: str) -> bytes:
    """The bytes of a PEM file. what: `CERTIFICATE` or `PRIVATE KEY`. Raises as `read_tokens` does."""
    content = _read(path)
    if b"-----BEGIN " not in content or f"{what}-----".encode() not in content:
        raise UsageError(f"{path} holds no {what.lower()} in PEM form", hint=f"it would have a line BEGIN {what}")
    return content


class KnownTokens:
    """The tokens of a file, read again when it changes; a file that has become wrong changes nothing.

    path: None for a service that wants none. Raises as `read_tokens` does.
    """

    def __init__(self, path: Path | None) -> None:
        self._path, self._stamp = path, _stamp(path)
        self._tokens = () if path is None else read_tokens(path)

    def __call__(self) -> tuple[Token, ...]:
        """Who may ask."""
        return self._tokens

    def refresh(self) -> str:
        """Look whether the file has changed; returns what a person should know of that, or nothing."""
        stamp = _stamp(self._path)
        if self._path is None or stamp == self._stamp:
            return ""
        self._stamp = stamp
        try:
            self._tokens = read_tokens(self._path)
        except MemoryIndexError as error:
            return f"the tokens stay as they are: {error}"
        return f"{self._path} has changed: {len(self._tokens)} tokens are known now"


class Certificate:
    """A certificate and its key for a TLS server, shown again from the files when they change.

    context: for the server; each handshake takes the newest one from there. One that handshakes use must not be
    changed: OpenSSL crashes. Raises what `require_valid` does.
    """

    def __init__(self, cert: Path, key: Path) -> None:
        self._cert, self._key, self._stamps = cert, key, (_stamp(cert), _stamp(key))
        self._until = require_valid(cert, key)
        self.context = self._newest = self._loaded()
        self.context.sni_callback = self._show

    def refresh(self) -> str:
        """Show another one from the next connection on, if there is one; returns what to say of that, or nothing.

        Raises `UsageError` for one that is wrong, which is not shown, or that ends soon.
        """
        said, stamps = "", (_stamp(self._cert), _stamp(self._key))
        if stamps != self._stamps:
            self._until = require_valid(self._cert, self._key)
            self._newest = self._loaded()
            self._stamps, said = stamps, f"{self._cert} has changed: the new one is shown from now on"
        if self._until - time.time() < SOON_S:
            day = datetime.fromtimestamp(self._until, UTC).strftime("%Y-%m-%d %H:%M")
            raise UsageError(f"{self._cert} is valid until {day} UTC only", hint="renew it")
        return said

    def _loaded(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.options |= ssl.OP_NO_RENEGOTIATION
        context.load_cert_chain(self._cert, self._key, password=lambda: "")
        return context

    def _show(self, connection: ssl.SSLObject, name: str | None, context: ssl.SSLContext) -> None:
        """Called in every handshake, also where the client names no server."""
        connection.context = self._newest


def require_valid(cert: Path, key: Path) -> float:
    """Require that a certificate and its key belong together and are valid today. Returns until when, in Unix time.

    A handshake with ourselves tells: the certificate is trusted for it, so that nothing but its dates can be wrong.

    Raises `UsageError`, and what `read_pem` does.
    """
    for path, what in ((cert, "CERTIFICATE"), (key, "PRIVATE KEY")):
        read_pem(path, what)
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        server.load_cert_chain(cert, key, password=lambda: "")
        client.load_verify_locations(cert)
    except (ssl.SSLError, OSError) as error:
        raise UsageError(
            f"{cert} and {key} are not a certificate and its key: {error}",
            hint="both are PEM files, without a password",
        ) from error
    client.check_hostname = False
    client.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [client.wrap_bio(to_client, to_server), server.wrap_bio(to_server, to_client, server_side=True)]
    for _ in range(4):
        for end in ends:
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
            except ssl.SSLCertVerificationError as error:
                raise UsageError(f"{cert}: {error.verify_message}", hint="renew it") from error
            except ssl.SSLError:  # the other end has been told why
                continue
    shown_cert = ends[0].getpeercert()
    if not shown_cert:
        raise UsageError(f"{cert} and {key} are not a certificate that a client could believe")
    return ssl.cert_time_to_seconds(str(shown_cert["notAfter"]))


def _stamp(path: Path | None) -> Stamp:
    """What changes with a file."""
    try:
        found = None if path is None else path.stat()
    except OSError:
        found = None
    return (0, 0, 0) if found is None else (found.st_mtime_ns, found.st_size, found.st_ino)


def _read(path: Path) -> bytes:
    if not path.is_file():
        raise NotFoundError(f"there is no file {path}", hint="check the path")
    with refusals_named(path, option=""), path.open("rb") as file:
        content = file.read(MAX_FILE_BYTES + 1)
    if len(content) > MAX_FILE_BYTES:
        raise UsageError(f"{path} is larger than {MAX_FILE_BYTES:,} bytes", hint="is it another file?")
    return content
