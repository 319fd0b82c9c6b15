"""`metrics.jsonl` of a run: one JSON object per line, in the order of the steps.

A checkpoint counts the lines, so that a training that goes on from it cuts off what came later and writes it anew: the
file is then that of a training that was never stopped, apart from the times.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from forecaster.errors import RunDamagedError
from forecaster.runs.records import RESTORE, refusals_named
from memory_index import files

METRICS_LOG = "metrics.jsonl"


class MetricsLog:
    """The file, open at its end. Use as a context."""

    def __init__(self, run: Path, num_lines: int) -> None:
        """Keep the first so many lines of the file. Raises `RunDamagedError` if it has fewer, `ResourceError`."""
        path = run / METRICS_LOG
        with refusals_named(path):
            lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
            if len(lines) < num_lines:
                raise RunDamagedError(
                    f"{path} has {len(lines)} lines, but the checkpoint was written after {num_lines}", hint=RESTORE
                )
            files.replace(path, b"".join(lines[:num_lines]))
            self._file = path.open("a", encoding="ascii")
        self.path = path

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write(self, line: dict[str, Any]) -> None:
        """Add a line; anyone who reads the file sees it at once."""
        with refusals_named(self.path):
            self._file.write(json.dumps(line, allow_nan=False) + "\n")
            self._file.flush()

    def sync(self) -> None:
        """Make all lines survive a power cut: before a checkpoint that counts them."""
        with refusals_named(self.path):
            os.fsync(self._file.fileno())
