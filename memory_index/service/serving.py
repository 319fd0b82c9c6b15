"""A service from its beginning to its end: the port, the Flight server, the guard in front of it, what watches it.

    client --TCP or TLS--> guard (its own process, guard.py) --unix socket--> Flight server (this process, server.py)

It ends on SIGTERM: new questions are refused, those under way are answered, then the connections are closed.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from memory_index.access import Access, Token, read_tokens
from memory_index.errors import MemoryIndexError, ServiceError, UsageError
from memory_index.service import guard
from memory_index.service.hosted import KEPT_S, Hosting, LoaderFor
from memory_index.service.listening import is_loopback, listen_on, shown
from memory_index.service.server import MemoryServer, Request
from memory_index.service.status import AccessLog, Metrics, StatusServer
from memory_index.service.turns import Turns
from memory_index.service.wire import Limits

DEFAULT_PORT = 8815
PENDING_MESSAGES = 8  # of the largest size that may be on their way at once
LOOK_S = 2.0  # how often aliases and tokens are looked at
DEFAULT_STACK = 8 << 20  # bytes of a thread's stack where the system sets no limit
END_S = 10.0  # for processes to end that have been told to

Note = Callable[[str], None]


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
        self.settings, self.note, self.refs = settings, note, tuple(refs)
        self._tokens = _Tokens(settings.token_file, note)
        self._stop = threading.Event()
        self._failure = ""
        with ExitStack() as until_begun:
            self._log = AccessLog(settings.access_log, note) if settings.access_log else None
            if self._log is not None:
                until_begun.callback(self._log.close)
            if settings.tls_cert is not None and settings.tls_key is not None:
                require_valid(settings.tls_cert, settings.tls_key)
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
                note=note,
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
            until_begun.callback(self.server.shutdown)
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
        """What is served, and whether questions are answered."""
        return self.server.status()

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
        """Answer what is under way, and end."""
        self._stop.set()
        if not self.server.drain(self.settings.grace_s):
            self.note(f"questions under way were not answered within {self.settings.grace_s:g} s: they are given up")
        self._guard.drain()
        self._end.close()

    def _report(self, request: Request) -> None:
        if self._log is not None:
            self._log.request(request)
        if self._metrics is not None:
            self._metrics.request(request)

    def _guard_says(self, line: dict[str, str]) -> None:
        if self._log is not None:
            self._log.line(line)
        else:
            self.note(
                " ".join(word for word in ("connection", line["peer"], f"{line['event']}: {line['reason']}") if word)
            )

    def _look(self) -> None:
        """Follow aliases and tokens, and notice if the guard has ended."""
        while not self._stop.wait(LOOK_S):
            self._tokens.refresh()
            self.hosting.refresh()
            if not self._guard.lives:
                self._failure = f"the guard in front of {self.address} has ended"
                self._stop.set()


class _Tokens:
    """The tokens of a file, read again when it changes; a file that has become wrong changes nothing."""

    def __init__(self, path: Path | None, note: Note) -> None:
        self.path, self.note = path, note
        self._tokens = () if path is None else read_tokens(path)
        self._stamp = self._stamp_now()

    def known(self) -> tuple[Token, ...]:
        """Who may ask."""
        return self._tokens

    def refresh(self) -> None:
        """Look whether the file has changed."""
        stamp = self._stamp_now()
        if self.path is None or stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self._tokens = read_tokens(self.path)
            self.note(f"{self.path} has changed: {len(self._tokens)} tokens are known now")
        except MemoryIndexError as error:
            self.note(f"the tokens stay as they are: {error}")

    def _stamp_now(self) -> tuple[int, int, int] | None:
        if self.path is None:
            return None
        try:
            found = self.path.stat()
        except OSError:
            return (0, 0, 0)
        return found.st_mtime_ns, found.st_size, found.st_ino


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
            "grace-seconds": settings.grace_s,
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


def require_valid(cert: Path, key: Path) -> None:
    """Raise `UsageError` unless a certificate and its key belong together and are valid today.

    A handshake with ourselves tells: the certificate is trusted for it, so that nothing but its dates can be wrong.
    """
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


def _private_folder() -> Path:
    """A folder that only this user can look into, with a short name: those of unix sockets are limited."""
    folder = tempfile.mkdtemp(prefix="memory-")
    if len(os.fsencode(folder)) > guard.MAX_PEERS - 4:
        Path(folder).rmdir()
        folder = tempfile.mkdtemp(prefix="memory-", dir="/tmp")
    return Path(folder)


def limit_memory(megabytes: int, max_calls: int) -> None:
    """Let this process take so much memory beyond what it has: a question for more fails, and not the machine.

    It holds for what nobody can foresee, such as a batch that says it is compressed. The stacks of the threads that
    calls may need are added: they count as a whole, though little of them is ever touched.
    """
    stack = resource.getrlimit(resource.RLIMIT_STACK)[0]
    stacks = max_calls * (DEFAULT_STACK if stack == resource.RLIM_INFINITY else min(stack, 2 * DEFAULT_STACK))
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmData:"):
            most = int(line.split()[1]) * 1024 + (megabytes << 20) + stacks
            hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
            if hard == resource.RLIM_INFINITY or most < hard:
                resource.setrlimit(resource.RLIMIT_DATA, (most, hard))
