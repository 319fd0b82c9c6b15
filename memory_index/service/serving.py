"""A service from its beginning to its end: the port, the Flight server, the guard in front of it, what watches it.

    client --TCP or TLS--> guard (its own process, guard.py) --unix socket--> Flight server (this process, server.py)

It ends on SIGTERM: new questions are refused, those under way are answered, then the connections are closed.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

from memory_index.access import Access, Token, read_pem, read_tokens
from memory_index.errors import MemoryIndexError, ServiceError, UsageError
from memory_index.service import guard
from memory_index.service.hosted import KEPT_S, Hosting, LoaderFor
from memory_index.service.listening import is_loopback, listen_on, shown
from memory_index.service.process_memory import give_back
from memory_index.service.server import MemoryServer, Request
from memory_index.service.status import AccessLog, Metrics, StatusServer
from memory_index.service.turns import Turns
from memory_index.service.wire import Limits

DEFAULT_PORT = 8815
PENDING_MESSAGES = 8  # of the largest size that may be on their way at once
LOOK_S = 2.0  # how often tokens, aliases and the certificate are looked at
END_S = 10.0  # for processes and calls to end that have been told to
SOON_S = 7 * 86400.0  # a certificate that ends earlier is a trouble

Note = Callable[[str], None]
Stamp = tuple[int, int, int]


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """How a service is reached, and what it allows.

    host, port: where it listens; port 0 is any that is free. token_file: who may ask; without one, only this machine.
    tls_cert, tls_key: PEM files; with them TLS is spoken, and nothing else. causal_only: refuse the policy `disjoint`.
    limits: of one question. max_connections, max_streams: at once, of all clients; max_calls_of_one: at once on one
    connection. max_waiting: questions that may wait for their turn.
    stall_s: a message that does not come on, or an answer that is not taken, ends its connection; idle_s: so does a
    connection on which nothing is asked. grace_s: to answer what is under way at the end. status_port: of health,
    readiness and metrics, None for none. kept_s: how long a version stays that no reference means any more.
    """

    host: str = "127.0.0.1"
    port: int = DEFAULT_PORT
    token_file: Path | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None
    causal_only: bool = False
    limits: Limits = field(default_factory=Limits)
    max_connections: int = 64
    max_streams: int = 64
    max_calls_of_one: int = 16
    max_waiting: int = 64
    stall_s: float = 30.0
    idle_s: float = 900.0
    grace_s: float = 30.0
    status_host: str = "127.0.0.1"
    status_port: int | None = None
    metrics: bool = False
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
        if self.metrics and self.status_port is None:
            raise UsageError("metrics need a port of their own", hint="--status-port PORT")

    @property
    def max_calls(self) -> int:
        """Calls of all clients at once, each of which costs a thread: streams, and short ones beside them."""
        return 2 * self.max_streams


class Service:
    """A running service; begins when it is made. address: `grpc://HOST:PORT`. status_port: None without one.

    Raises what `Hosting` raises, `ServiceError` (a port that is taken), `UsageError` (tokens, certificates).
    """

    def __init__(
        self,
        indexes_dir: Path,
        refs: Sequence[str],
        settings: Settings,
        *,
        access: Access | None = None,
        loader_for: LoaderFor = lambda manifest: None,
        threads: int | None = None,
        note: Note = lambda text: None,
    ) -> None:
        self.settings, self.refs = settings, tuple(refs)

        def note_if_heard(text: str) -> None:
            with suppress(OSError, ValueError):  # nobody reads it any more; that must not end anything
                note(text)

        self.note = note_if_heard
        self._tokens = _Tokens(settings.token_file, self.note)
        self._stop = threading.Event()
        self._failure = ""
        self._troubles: dict[str, str] = {}  # of the last look
        with ExitStack() as until_begun:
            self._log = AccessLog(settings.access_log, self.note) if settings.access_log else None
            if self._log is not None:
                until_begun.callback(self._log.close)
            self._certificate = None
            if settings.tls_cert is not None and settings.tls_key is not None:
                self._certificate = _Certificate(settings.tls_cert, settings.tls_key)
            listening = until_begun.enter_context(listen_on(settings.host, settings.port))
            scheme = "grpc" if settings.tls_cert is None else "grpc+tls"
            self.address = f"{scheme}://{shown(settings.host, listening.getsockname()[1])}"
            self.hosting = Hosting(
                indexes_dir,
                refs,
                access=access,
                loader_for=loader_for,
                threads=threads,
                kept_s=settings.kept_s,
                note=self.note,
            )
            until_begun.callback(self.hosting.close)
            self._folder = _private_folder()
            until_begun.callback(shutil.rmtree, self._folder, ignore_errors=True)
            self._turns = Turns(settings.max_waiting)
            until_begun.callback(self._turns.close)
            self._metrics: Metrics | None = Metrics(self.status) if settings.metrics else None
            self.server = MemoryServer(
                f"grpc+unix://{self._folder}/server",
                self.hosting,
                limits=settings.limits,
                tokens=self._tokens.known,
                causal_only=settings.causal_only,
                turns=self._turns,
                max_streams=settings.max_streams,
                report=self._report,
            )
            until_begun.callback(self._shut_down)
            self._guard = _Guard(listening, self._folder, settings, self._guard_says)
            until_begun.callback(self._guard.kill)
            self._status = None
            if settings.status_port is not None:
                self._status = StatusServer(settings.status_host, settings.status_port, self.status, self._metrics)
                until_begun.callback(self._status.close)
            self.status_port = None if self._status is None else self._status.port
            self._looking = threading.Thread(target=self._look, name="look", daemon=True)
            self._looking.start()
            self._end = until_begun.pop_all()

    def status(self) -> dict[str, object]:
        """What is served, whether questions are answered, and what is wrong."""
        status = self.server.status()
        return status | {"troubles": status["troubles"] | {name: text for name, text in self._troubles.items() if text}}

    def stop(self) -> None:
        """Let `wait` end. May be called from a signal handler."""
        self._stop.set()

    def wait(self) -> None:
        """Serve until `stop`; then answer what is under way, and end. Raises `ServiceError` if it could not go on."""
        while not self._stop.wait(0.2):  # not for ever: a signal could not be handled meanwhile
            pass
        self.close()
        if self._failure:
            raise ServiceError(self._failure, hint="start it again")

    def close(self) -> None:
        """Answer what is under way, and end. What takes longer than the grace is given up, see `has_leftovers`."""
        self._stop.set()
        if not self.server.drain(self.settings.grace_s):
            self.note(f"questions under way were not answered within {self.settings.grace_s:g} s: they are given up")
        self._guard.drain()
        self._looking.join(END_S)
        self._end.close()

    @property
    def has_leftovers(self) -> bool:
        """Whether a search goes on after `close`, which nothing can break off but the end of the process."""
        return self._ending.is_alive()

    def _shut_down(self) -> None:
        """Wait for the calls that are open, but not for ever."""
        self._turns.close()
        self._ending = threading.Thread(target=self.server.shutdown, name="shut down", daemon=True)
        self._ending.start()
        self._ending.join(END_S)

    def _report(self, request: Request) -> None:
        if self._log is not None:
            self._log.request(request)
        if self._metrics is not None:
            self._metrics.request(request)

    def _guard_says(self, line: dict[str, str]) -> None:
        if self._log is not None:
            self._log.line(line)
        else:
            where = f"connection {line['peer']} " if line["peer"] else ""
            self.note(f"{where}{line['event']}: {line['reason']}")

    def _look(self) -> None:
        """Follow tokens, versions and the certificate, notice if the guard has ended, and tidy up, until the end."""
        steps: dict[str, Callable[[], None]] = {
            "guard": self._look_at_guard,
            "tokens": self._tokens.refresh,
            "certificate": self._look_at_certificate,
            "versions": self.hosting.refresh,
            "memory": give_back,
        }
        while not self._stop.wait(LOOK_S):
            for name, step in steps.items():
                trouble = ""
                try:
                    step()
                except MemoryIndexError as error:
                    trouble = str(error)
                except Exception as error:  # noqa: BLE001 - it may go well the next time; other steps must go on
                    trouble = f"cannot look at the {name}: {type(error).__name__}: {error}"
                if trouble and trouble != self._troubles.get(name) and not self._stop.is_set():
                    self.note(trouble)
                self._troubles = self._troubles | {name: trouble}

    def _look_at_guard(self) -> None:
        if not self._guard.lives and not self._stop.is_set():
            self._failure = f"the guard in front of {self.address} has ended"
            self._stop.set()

    def _look_at_certificate(self) -> None:
        if self._certificate is not None:
            if self._certificate.refresh():
                self._guard.read_certificate()
                self.note(f"{self._certificate.cert} has changed: the new one is shown from now on")
            self._certificate.require_lasting()


class _Tokens:
    """The tokens of a file, read again when it changes; a file that has become wrong changes nothing."""

    def __init__(self, path: Path | None, note: Note) -> None:
        self.path, self.note = path, note
        self._stamp = _stamp(path)
        self._tokens = () if path is None else read_tokens(path)

    def known(self) -> tuple[Token, ...]:
        """Who may ask."""
        return self._tokens

    def refresh(self) -> None:
        """Look whether the file has changed."""
        stamp = _stamp(self.path)
        if self.path is None or stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self._tokens = read_tokens(self.path)
            self.note(f"{self.path} has changed: {len(self._tokens)} tokens are known now")
        except MemoryIndexError as error:
            self.note(f"the tokens stay as they are: {error}")


class _Certificate:
    """A certificate and its key, looked at again when they change. Raises what `require_valid` does."""

    def __init__(self, cert: Path, key: Path) -> None:
        self.cert, self.key = cert, key
        self._stamps = self._stamps_now()
        self._until = require_valid(cert, key)

    def refresh(self) -> bool:
        """Whether there is another valid one by now."""
        stamps = self._stamps_now()
        if stamps == self._stamps:
            return False
        self._until = require_valid(self.cert, self.key)
        self._stamps = stamps
        return True

    def require_lasting(self) -> None:
        """Raise `UsageError` if it ends soon, or has ended."""
        if self._until - time.time() < SOON_S:
            day = datetime.fromtimestamp(self._until, UTC).strftime("%Y-%m-%d %H:%M")
            raise UsageError(f"{self.cert} is valid until {day} UTC only", hint="renew it")

    def _stamps_now(self) -> tuple[Stamp | None, ...]:
        return _stamp(self.cert), _stamp(self.key)


def _stamp(path: Path | None) -> Stamp | None:
    """What changes with a file."""
    try:
        found = None if path is None else path.stat()
    except OSError:
        return (0, 0, 0)
    return found and (found.st_mtime_ns, found.st_size, found.st_ino)


class _Guard:
    """The process in front. says: told of each connection that it ended for a cause."""

    def __init__(
        self, listening: socket.socket, folder: Path, settings: Settings, says: Callable[[dict[str, str]], None]
    ) -> None:
        (folder / "p").mkdir()
        reading, self._alive = os.pipe()  # it ends when nobody holds the other end any more, however we end
        options = {
            "listen-fd": listening.fileno(),
            "parent-fd": reading,
            "server": folder / "server",
            "peers": folder / "p",
            "max-message": settings.limits.max_message,
            "max-connections": settings.max_connections,
            "max-streams": settings.max_calls_of_one,
            "max-calls": settings.max_calls,
            "max-pending": PENDING_MESSAGES * settings.limits.max_message,
            "stall-seconds": settings.stall_s,
            "idle-seconds": settings.idle_s,
            "grace-seconds": END_S,
        }
        if settings.tls_cert is not None:
            options |= {"tls-cert": settings.tls_cert, "tls-key": settings.tls_key}
        words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-I", guard.__file__, *words],
                pass_fds=(listening.fileno(), reading),
                stdin=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
        finally:
            os.close(reading)
        assert self._process.stderr is not None
        self._says, self._listens = says, threading.Event()
        threading.Thread(target=self._listen_to, args=(self._process.stderr,), name="guard", daemon=True).start()
        if not self._listens.wait(END_S):
            self.kill()
            raise ServiceError(f"the guard in front of the service did not begin (exit code {self._process.poll()})")

    @property
    def lives(self) -> bool:
        """Whether it still relays."""
        return self._process.poll() is None

    def read_certificate(self) -> None:
        """Let it read the certificate again."""
        self._process.send_signal(signal.SIGHUP)

    def drain(self) -> None:
        """Let it pass on what is left, and end."""
        self._process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(END_S)

    def kill(self) -> None:
        """End it now."""
        self._process.kill()
        self._process.wait()
        if self._alive >= 0:
            os.close(self._alive)
            self._alive = -1

    def _listen_to(self, lines: IO[str]) -> None:
        for text in lines:
            try:
                line = json.loads(text)
            except ValueError:  # a traceback
                sys.stderr.write(text)
                continue
            if line["event"] == "listening":
                self._listens.set()
            else:
                self._says(line)
        lines.close()


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


def _private_folder() -> Path:
    """A folder that only this user can look into, with a short name: those of unix sockets are limited."""
    folder = tempfile.mkdtemp(prefix="memory-")
    if len(os.fsencode(folder)) > guard.MAX_PEERS - 4:
        Path(folder).rmdir()
        folder = tempfile.mkdtemp(prefix="memory-", dir="/tmp")
    return Path(folder)
