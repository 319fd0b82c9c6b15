"""How a service is reached, and what it allows."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from memory_index.errors import UsageError
from memory_index.listening import is_loopback
from memory_index.service.hosted import KEPT_S
from memory_index.wire import Limits

DEFAULT_PORT = 8815


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """How a service is reached, and what it allows.

    host, port: where it listens; port 0 is any that is free. token_file: who may ask; without one, only this machine.
    tls_cert, tls_key: PEM files; with them TLS is spoken, and nothing else. causal_only: refuse the policy `disjoint`.
    limits: of one question. max_connections: of all clients. max_waiting: questions that may wait for their turn.
    max_held: bytes that all questions together may hold. stall_s: for a body to come or an answer to be taken, beside
    the time that its size needs; idle_s: a connection on which nothing is asked is closed then. grace_s: to answer what
    is under way at the end. kept_s: how long a version stays that no reference means any more.
    """

    host: str = "127.0.0.1"
    port: int = DEFAULT_PORT
    token_file: Path | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None
    causal_only: bool = False
    limits: Limits = field(default_factory=Limits)
    max_connections: int = 256
    max_waiting: int = 64
    max_held: int = 1 << 30
    stall_s: float = 30.0
    idle_s: float = 120.0
    grace_s: float = 30.0
    access_log: Path | None = None
    kept_s: float = KEPT_S

    def __post_init__(self) -> None:
        if self.token_file is None and not is_loopback(self.host):
            raise UsageError(
                f"without a token a service listens on this machine only, not on {self.host}",
                hint="--token-file FILE, with a token on a line of its own",
            )
        if (self.tls_cert is None) != (self.tls_key is None):
            raise UsageError("a certificate and its key belong together", hint="--tls-cert FILE --tls-key FILE")
