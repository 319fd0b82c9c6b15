"""How a service or a database is reached: tokens and certificates, as files hold them.

A token file has one token a line, each with a name before it if you like (`trainer-1 6f1ed002ab55...`); empty lines and
those that begin with # do not count. A service lets every token of its file in and writes the name into its log; a
client shows the first one of its own.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from memory_index.errors import NotFoundError, UsageError
from memory_index.files import refusals_named

LEAST_TOKEN = 16  # characters
MAX_FILE_BYTES = 1 << 20
DEADLINE_S = 60.0


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


def _read(path: Path) -> bytes:
    if not path.is_file():
        raise NotFoundError(f"there is no file {path}", hint="check the path")
    with refusals_named(path, option=""), path.open("rb") as file:
        content = file.read(MAX_FILE_BYTES + 1)
    if len(content) > MAX_FILE_BYTES:
        raise UsageError(f"{path} is larger than {MAX_FILE_BYTES:,} bytes", hint="is it another file?")
    return content
