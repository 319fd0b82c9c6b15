"""A service from its beginning to its end: the port, the HTTP server, and what is looked at meanwhile.

It ends on SIGTERM: new questions are refused, those under way are answered, then the connections are closed.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from memory_index.access import Access, Certificate, KnownTokens
from memory_index.errors import MemoryIndexError, ServiceError
from memory_index.listening import listen_on, shown
from memory_index.service.app import App, ServedRun
from memory_index.service.calls import Call
from memory_index.service.connections import Server
from memory_index.service.hosted import Hosting, LoaderFor
from memory_index.service.settings import Settings
from memory_index.service.status import AccessLog, Metrics

LOOK_S = 2.0  # how often tokens, aliases and the certificate are looked at
PROBES = ("healthz", "readyz", "metrics")  # asked all the time: not told in the log unless they fail
END_S = 10.0  # for connections and calls to end that have been told to

Note = Callable[[str], None]


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
        note: Note = lambda text: None,
    ) -> None:
        def note_if_heard(text: str) -> None:
            with suppress(OSError, ValueError):  # nobody reads it any more; that must not end anything
                note(text)

        self.settings, self.note = settings, note_if_heard
        self.tokens = KnownTokens(settings.token_file)
        self._certificate = None
        if settings.tls_cert is not None and settings.tls_key is not None:
            self._certificate = Certificate(settings.tls_cert, settings.tls_key)
        self._stop, self._troubles = threading.Event(), dict[str, str]()  # of the last look
        with ExitStack() as until_begun:
            self._log = None if settings.access_log is None else AccessLog(settings.access_log, self.note)
            if self._log is not None:
                until_begun.callback(self._log.close)
            listening = until_begun.enter_context(listen_on(settings.host, settings.port))
            scheme = "http" if self._certificate is None else "https"
            self.address = f"{scheme}://{shown(settings.host, listening.getsockname()[1])}"
            place: dict[str, Any] = {"access": access, "loader_for": loader_for, "threads": threads}
            self.hosting = Hosting(indexes_dir, refs, kept_s=settings.kept_s, note=self.note, **place)
            until_begun.callback(self.hosting.close)
            gauges: dict[str, tuple[str, Callable[[], float]]] = {
                "waiting": ("Questions that wait for their turn", lambda: self.app.turns.num_waiting),
                "connections": ("Open connections", lambda: len(self._server.server_state.connections)),
                "ready": ("1 while questions are answered", lambda: not self.app.is_draining),
            }
            self._metrics = Metrics(gauges)
            self.app = App(
                self.hosting,
                settings,
                tokens=self.tokens,
                report=self._report,
                runs=runs or {},
                status=self.status,
                metrics=self._metrics.page,
            )
            until_begun.callback(self.app.close)
            context = self._certificate and self._certificate.context
            bounds: dict[str, Any] = {"most": settings.max_connections, "stall_s": settings.stall_s}
            self._server = Server(self.app, says=self._cut_off, idle_s=settings.idle_s, ssl=context, **bounds)
            self._http = threading.Thread(
                target=lambda: asyncio.run(self._server.serve([listening])), name="http", daemon=True
            )
            self._http.start()
            while not self._server.started and self._http.is_alive():
                time.sleep(0.005)
            threading.Thread(target=self._look, name="look", daemon=True).start()
            self._end = until_begun.pop_all()

    def status(self) -> dict[str, Any]:
        """What is served, whether questions are answered, and what is wrong."""
        return {
            "ready": not self.app.is_draining,
            "versions": self.hosting.versions(),
            "runs": {name: run.ref for name, run in self.app.runs.items()},
            "troubles": self.hosting.troubles() | {name: text for name, text in self._troubles.items() if text},
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

    def _cut_off(self, peer: str, reason: str) -> None:
        if self._log is not None:
            self._log.line({"event": "cut off", "peer": peer, "reason": reason})

    def _look(self) -> None:
        """Follow tokens, versions and the certificate, until the end."""
        steps: dict[str, Callable[[], str | None]] = {"tokens": self.tokens.refresh, "versions": self.hosting.refresh}
        if self._certificate is not None:
            steps["certificate"] = self._certificate.refresh
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
