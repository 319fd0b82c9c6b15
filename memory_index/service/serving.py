"""A service from its beginning to its end: the port, the HTTP server, and what is looked at meanwhile.

It ends on SIGTERM: new questions are refused, those under way are answered, then the connections are closed.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Any

from memory_index.access import Access, Certificate, KnownTokens
from memory_index.errors import MemoryIndexError, ServiceError
from memory_index.listening import listen_on, shown
from memory_index.service.app import App, ServedRun
from memory_index.service.calls import Call
from memory_index.service.connections import Server
from memory_index.service.hosted import Hosting, LoaderFor
from memory_index.service.refusals import Places
from memory_index.service.settings import Settings
from memory_index.service.status import AccessLog, Metrics

LOOK_S = 2.0  # how often tokens, aliases and the certificate are looked at
PROBES = ("healthz", "readyz", "metrics")  # asked all the time: not told in the log unless they fail
END_S = 10.0  # for connections and calls to end that have been told to


class Service:
    """A running service; begins when it is made. address: `http://HOST:PORT`. runs: what forecasts, by name.

    Raises what `Hosting` raises, `ServiceError` (a port that is taken), `UsageError` (tokens, certificates).
    """

    def __init__(
        self,
        indexes_dir: Path,
        refs: Sequence[str],
        settings: Settings,
        *,
        runs: Mapping[str, ServedRun] | None = None,
        access: Access | None = None,
        loader_for: LoaderFor = lambda manifest: None,
        threads: int | None = None,
        note: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.settings, self._note, self._runs = settings, note, runs or {}
        self._stop, self._troubles, self._log = threading.Event(), dict[str, str](), None  # troubles: of the last look
        self.tokens, certificate = KnownTokens(settings.token_file), None
        if settings.tls_cert is not None and settings.tls_key is not None:
            certificate = Certificate(settings.tls_cert, settings.tls_key)
        with ExitStack() as until_begun:
            if settings.access_log is not None:
                self._log = AccessLog(settings.access_log, self.note)
                until_begun.callback(self._log.close)
            listening = until_begun.enter_context(listen_on(settings.host, settings.port))
            place = shown(settings.host, listening.getsockname()[1])
            self.address = f"http://{place}" if certificate is None else f"https://{place}"
            how: dict[str, Any] = {"access": access, "loader_for": loader_for, "threads": threads}
            self.hosting = Hosting(indexes_dir, refs, kept_s=settings.kept_s, **how)
            until_begun.callback(self.hosting.close)
            self._metrics = Metrics(
                waiting=("Questions that wait for their turn", lambda: self.app.turns.num_waiting),
                connections=("Open connections", lambda: len(self._server.server_state.connections)),
                ready=("1 while questions are answered", lambda: not self.app.is_draining),
            )
            folders = [indexes_dir.absolute(), *(run.folder.absolute().parent for run in self._runs.values())]
            told: dict[str, Any] = {"status": self.status, "metrics": self._metrics.page, "report": self._report}
            how = {"tokens": self.tokens, "runs": self._runs, "places": Places(folders)}
            self.app = App(self.hosting, settings, **how, **told)
            until_begun.callback(self.app.close)
            bounds: dict[str, Any] = {"most": settings.max_connections, "stall_s": settings.stall_s}
            bounds |= {"says": self._cut_off, "idle_s": settings.idle_s}
            self._server = Server(self.app.asgi, ssl=certificate and certificate.context, **bounds)
            serve = lambda: asyncio.run(self._server.serve([listening]))  # noqa: E731 - the loop begins in the thread
            self._http = threading.Thread(target=serve, name="http", daemon=True)
            self._http.start()
            while not self._server.started and self._http.is_alive():
                time.sleep(0.005)
            steps: dict[str, Callable[[], str | None]] = {"tokens": self.tokens.refresh}
            steps |= {name: partial(self.hosting.follow, name) for name in self.hosting.versions()}
            steps |= {"versions": self.hosting.close_unused}
            steps |= {} if certificate is None else {"certificate": certificate.refresh}
            threading.Thread(target=self._look, args=(steps,), name="look", daemon=True).start()
            self._end = until_begun.pop_all()

    def note(self, text: str) -> None:
        """Tell a person something; that nobody reads it any more must not end anything."""
        with suppress(OSError, ValueError):
            self._note(text)

    def status(self) -> dict[str, Any]:
        """What is served, whether questions are answered, and what is wrong."""
        return {
            "ready": not self.app.is_draining,
            "versions": self.hosting.versions(),
            "runs": {name: run.ref for name, run in self._runs.items()},
            "troubles": {name: text for name, text in self._troubles.items() if text},
            "causal_only": self.settings.causal_only,
            "waiting": self.app.turns.num_waiting,
            "connections": len(self._server.server_state.connections),
        }

    def stop(self) -> None:
        """Let `wait` end. May be called from a signal handler."""
        self._stop.set()

    def wait(self) -> None:
        """Serve until `stop`; then answer what is under way, and end. Raises `ServiceError` if it could not go on."""
        while not self._stop.wait(0.2) and self._http.is_alive():  # not for ever: a signal could not be handled
            pass
        is_broken = not self._http.is_alive()
        self.close()
        if is_broken:
            raise ServiceError(f"the HTTP server of {self.address} has ended", hint="start it again")

    def close(self) -> None:
        """Answer what is under way, and end. What takes longer than the grace is given up, see `has_leftovers`."""
        self._stop.set()
        self.app.is_draining = True
        until = time.monotonic() + self.settings.grace_s
        while self.app.num_under_way and time.monotonic() < until:
            time.sleep(0.02)
        if self.app.num_under_way:
            self.note(f"questions under way were not answered within {self.settings.grace_s:g} s: they are given up")
        self._server.should_exit = True
        self._http.join(END_S)
        self._end.close()

    @property
    def has_leftovers(self) -> bool:
        """Whether a search goes on after `close`, which nothing can break off but the end of the process."""
        return self.app.turns.is_at_work

    def _report(self, call: Call) -> None:
        self._metrics.call(call)
        if self._log is not None and not (call.method in PROBES and call.status == "ok"):
            self._log.call(call)

    def _cut_off(self, client: Sequence[Any] | None, reason: str) -> None:
        if self._log is not None:
            self._log.line({"event": "cut off", "peer": ":".join(map(str, client or ())), "reason": reason})

    def _look(self, steps: Mapping[str, Callable[[], str | None]]) -> None:
        """Follow tokens, versions and the certificate, until the end. A step says what has changed, or raises."""
        while not self._stop.wait(LOOK_S):
            for name, step in steps.items():
                trouble = ""
                try:
                    if said := step():
                        self.note(said)
                except MemoryIndexError as error:
                    trouble = str(error)
                except Exception as error:  # noqa: BLE001 - it may go well the next time; other steps must go on
                    trouble = f"cannot look at the {name}: {type(error).__name__}: {error}"
                if trouble and trouble != self._troubles.get(name) and not self._stop.is_set():
                    self.note(trouble)
                self._troubles = self._troubles | {name: trouble}
