"""How a service does: metrics, and a log of who asked what. Neither has a value of the data or a series' name."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from logging.handlers import WatchedFileHandler
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from memory_index.errors import NotFoundError, UsageError
from memory_index.files import refusals_named
from memory_index.service.calls import REFUSED, Call

LINES_PER_S = 20  # of the log on who was not let in, or cut off; more would let anybody fill the disk
SECONDS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)  # borders of the histograms


class AccessLog(WatchedFileHandler):
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
            super().__init__(path, encoding="utf-8")
        self.setFormatter(logging.Formatter("%(message)s"))
        self._note, self._is_well, self._failed = note, True, False
        self._second = self._num_limited = 0

    def call(self, call: Call) -> None:
        """A call that is over."""
        told = {name: value for name, value in asdict(call).items() if value != ""}
        told |= {name: round(told[name], 6) for name in ("waited_s", "seconds")}
        self.line(told, is_limited=call.status == REFUSED)

    def line(self, told: dict[str, Any], *, is_limited: bool = True) -> None:
        """Any line. is_limited: only so many a second; a later one says how many were left out."""
        if is_limited:
            second = int(time.monotonic())
            if second != self._second:
                told = told | {"left_out": max(self._num_limited - LINES_PER_S, 0)}
                self._second, self._num_limited = second, 0
            self._num_limited += 1
            if self._num_limited > LINES_PER_S:
                return
        text = json.dumps({"time": datetime.now(UTC).isoformat(timespec="milliseconds")} | told)
        self.handle(logging.LogRecord("access", logging.INFO, "", 0, text, None, None))

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line, and say once that it cannot be written; again only after one could."""
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
    """Counts calls for Prometheus. gauges: by name, what each says and reads."""

    def __init__(self, **gauges: tuple[str, Callable[[], float]]) -> None:
        self.registry = CollectorRegistry()
        own: dict[str, Any] = {"registry": self.registry, "namespace": "memory"}
        self._calls = Counter("calls", "Calls, by method and how they ended", ["method", "status"], **own)
        self._windows = Counter("windows", "Windows asked", ["ref", "policy"], **own)
        self._bytes = Counter("bytes", "Bytes of the bodies", ["direction"], **own)
        self._seconds = Histogram("call_seconds", "Time of a call", ["method"], buckets=SECONDS, **own)
        self._waited = Histogram("turn_seconds", "Time that a question waited for its turn", buckets=SECONDS, **own)
        for name, (says, value) in gauges.items():
            Gauge(name, says, **own).set_function(value)

    def call(self, call: Call) -> None:
        """A call that is over."""
        self._calls.labels(call.method, call.status).inc()
        self._seconds.labels(call.method).observe(call.seconds)
        self._bytes.labels("in").inc(call.bytes_in)
        self._bytes.labels("out").inc(call.bytes_out)
        if call.waited_s:
            self._waited.observe(call.waited_s)
        if call.policy:
            self._windows.labels(call.ref, call.policy).inc(call.moments * call.num_series)

    def page(self) -> bytes:
        """In the text format of Prometheus."""
        return generate_latest(self.registry)
