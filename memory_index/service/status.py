"""How a service does: health, readiness and metrics over HTTP, and a log of who asked what.

Neither the log nor the metrics hold a value of the data or the name of a series. Metrics are those of the library
prometheus-client, an optional extra.
"""

from __future__ import annotations

import json
import logging
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from logging.handlers import WatchedFileHandler
from pathlib import Path
from typing import Any

from memory_index.errors import NotFoundError, ResourceError, UsageError
from memory_index.files import refusals_named
from memory_index.service.listening import listen_on
from memory_index.service.server import REFUSED, Request

REQUEST_S = 2.0  # a client of the status page that takes longer is let go
MOST_REQUESTS = 32  # of the status page at once
REFUSED_PER_S = 20  # lines of the log on calls without a known token; more would let anybody fill the disk
SECONDS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)  # borders of the histograms

Status = Callable[[], dict[str, Any]]


class AccessLog:
    """One JSON object a line, appended to a file; a file that is moved away (rotated) is begun anew.

    note: told when lines begin to be lost, because the disk is full for example; the service goes on.

    Raises `NotFoundError` without its folder, `UsageError` for a folder, `ResourceError` if it cannot be opened.
    """

    def __init__(self, path: Path, note: Callable[[str], None] = lambda text: None) -> None:
        if not path.parent.is_dir():
            raise NotFoundError(f"there is no folder {path.parent} for the access log", hint="make it first")
        if path.is_dir():
            raise UsageError(f"{path} is a folder", hint="--access-log FILE")
        with refusals_named(path, option="--access-log"):
            self._handler = _Appending(path, note)
        self._handler.setFormatter(logging.Formatter("%(message)s"))
        self._lock = threading.Lock()
        self._second = self._num_refused = 0

    def request(self, request: Request) -> None:
        """A call that is over. Of those that were refused so many a second; a later one says how many were left out."""
        told = {name: value for name, value in asdict(request).items() if value != ""}
        told |= {name: round(told[name], 6) for name in ("waited_s", "seconds")}
        if request.status == REFUSED:
            with self._lock:
                second = int(time.monotonic())
                if second != self._second:
                    told |= {"left_out": max(self._num_refused - REFUSED_PER_S, 0)}
                    self._second, self._num_refused = second, 0
                self._num_refused += 1
                if self._num_refused > REFUSED_PER_S:
                    return
        self.line(told)

    def line(self, told: dict[str, Any]) -> None:
        """Any other line."""
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        text = json.dumps({"time": now} | told)
        self._handler.handle(logging.LogRecord("access", logging.INFO, "", 0, text, None, None))

    def close(self) -> None:
        """Close the file."""
        self._handler.close()


class _Appending(WatchedFileHandler):
    """Says once that it cannot write, and again after it could."""

    def __init__(self, path: Path, note: Callable[[str], None]) -> None:
        super().__init__(path, encoding="utf-8")
        self._note, self._is_well = note, True

    def emit(self, record: logging.LogRecord) -> None:
        self._failed = False
        try:
            super().emit(record)
        except OSError:  # its folder is gone, so that it cannot be begun anew
            self.handleError(record)
        self._is_well = not self._failed

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - the name that logging calls
        self._failed = True
        if self._is_well:
            self._note(f"lines of {self.baseFilename} are lost: {sys.exc_info()[1]}")


class Metrics:
    """Counts calls for Prometheus. status: what the gauges read.

    Raises `ResourceError` if prometheus-client is not installed.
    """

    def __init__(self, status: Status) -> None:
        if find_spec("prometheus_client") is None:
            raise ResourceError(
                "metrics need prometheus-client, which is not installed",
                hint="pip install 'gram-forecaster[metrics]'",
            )
        from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

        self.registry = CollectorRegistry()
        own: dict[str, Any] = {"registry": self.registry, "namespace": "memory"}
        self._calls = Counter("calls", "Calls, by method and how they ended", ["method", "status"], **own)
        self._windows = Counter("windows", "Windows asked", ["ref", "policy"], **own)
        self._bytes = Counter("bytes", "Bytes of the batches", ["direction"], **own)
        self._seconds = Histogram("call_seconds", "Time of a call", ["method"], buckets=SECONDS, **own)
        self._waited = Histogram("turn_seconds", "Time that a question waited for its turn", buckets=SECONDS, **own)
        Gauge("waiting", "Questions that wait for their turn", **own).set_function(lambda: float(status()["waiting"]))
        Gauge("streams", "Open streams", **own).set_function(lambda: float(status()["streams"]))
        Gauge("ready", "1 while questions are answered", **own).set_function(lambda: float(status()["ready"]))

    def request(self, request: Request) -> None:
        """A call that is over."""
        method = request.method if request.method in ("open", "status", "get", "search", "stream", "admission") else "?"
        self._calls.labels(method, request.status).inc()
        self._seconds.labels(method).observe(request.seconds)
        self._bytes.labels("in").inc(request.bytes_in)
        self._bytes.labels("out").inc(request.bytes_out)
        if request.method == "search":
            self._waited.observe(request.waited_s)
            self._windows.labels(request.ref, request.policy).inc(request.moments * request.num_series)

    def page(self) -> bytes:
        """In the text format of Prometheus."""
        from prometheus_client import generate_latest

        return generate_latest(self.registry)


class _Pages(ThreadingHTTPServer):
    """Answers so many at once; whoever comes beyond that is hung up on."""

    daemon_threads = True

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> None:
        super().__init__(address, handler, bind_and_activate=False)
        self._places = threading.BoundedSemaphore(MOST_REQUESTS)

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._places.acquire(blocking=False):
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except BaseException:  # no thread can be had
            self._places.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._places.release()


class StatusServer:
    """`/healthz` (the process lives), `/readyz` (questions are answered), `/metrics`, over HTTP in threads.

    Few requests at once, each with little time: it is for those who watch the service. Raises `ServiceError` if the
    port cannot be had.
    """

    def __init__(self, host: str, port: int, status: Status, metrics: Metrics | None) -> None:
        class Handler(BaseHTTPRequestHandler):
            timeout = REQUEST_S  # of one read; of the whole request, the timer

            def handle(self) -> None:
                timer = threading.Timer(REQUEST_S, self._hang_up)
                timer.start()
                try:
                    super().handle()
                except OSError:  # gone
                    pass
                finally:
                    timer.cancel()

            def _hang_up(self) -> None:
                with suppress(OSError):
                    self.connection.shutdown(socket.SHUT_RDWR)

            def do_GET(self) -> None:
                code, kind, body = _page(self.path, status, metrics)
                self.send_response(code)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *arguments: Any) -> None:  # noqa: A002 - likewise
                """Say nothing."""

        with listen_on(host, port, option="--status-port") as listening:
            self.port: int = listening.getsockname()[1]
            self._server = _Pages((host, self.port), Handler)
            self._server.socket.close()
            self._server.socket = listening.dup()
        self._thread = threading.Thread(target=self._server.serve_forever, name="status", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop answering."""
        self._server.shutdown()
        self._server.server_close()


def _page(path: str, status: Status, metrics: Metrics | None) -> tuple[int, str, bytes]:
    if path == "/healthz":
        return 200, "text/plain; charset=utf-8", b"ok\n"
    if path == "/readyz":
        found = status()
        return 200 if found["ready"] else 503, "application/json", json.dumps(found).encode()
    if path == "/metrics" and metrics is not None:
        return 200, "text/plain; version=0.0.4; charset=utf-8", metrics.page()
    return 404, "text/plain; charset=utf-8", b"/healthz, /readyz" + (b"" if metrics is None else b", /metrics") + b"\n"
