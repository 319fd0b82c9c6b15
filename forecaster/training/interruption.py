"""Ctrl-C and SIGTERM during a training: asked for at any moment, obeyed between two steps."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any


class Interrupted(KeyboardInterrupt):
    """The training was asked to stop, at a moment at which its state is whole."""


class Interruption:
    """While inside, the first SIGINT or SIGTERM only sets `requested`; a second one interrupts at once.

    One that came too late to be obeyed inside is obeyed on the way out.

    Outside the main thread, where Python allows no handlers, signals keep what they did before.
    """

    def __init__(self) -> None:
        self.requested = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._request)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self.requested and kind is None:
            raise Interrupted

    def _request(self, _number: int, _frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
