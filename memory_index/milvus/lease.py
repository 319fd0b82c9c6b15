"""One publisher at a time: a signature in Milvus, which has no locks.

The publisher signs the version's first collection and keeps changing the signature; one that does not change any more
is of a publisher that is gone. Should two overlap for a moment all the same, rows that are there twice are found by
counting (`loading.py`).
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable
from types import TracebackType

from memory_index.errors import MemoryIndexError, ResourceError
from memory_index.milvus import collections
from memory_index.milvus.connection import Connection

LEASE = "gram.publisher"  # property of the first collection: who is publishing
LEASE_S = 20.0  # a publisher that has not moved for so long is gone
BEAT_S = 3.0  # how often one that is there says so
SETTLE_S = 0.5  # two that begin at once have both signed by then, and one of them sees that it was overwritten


class Lease:
    """A signature under a collection, renewed by a thread for as long as it is held.

    say: told what is waited for.
    """

    def __init__(self, connection: Connection, collection: str, say: Callable[[str], None]) -> None:
        self.connection, self.collection, self.say = connection, collection, say
        self.holder = f"process {os.getpid()} on {socket.gethostname()}"
        self.token = secrets.token_hex(8)
        self.num_beats = 0
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> Lease:
        """Sign, unless somebody else is at it: raises `ResourceError`."""
        before, until = self._read(), time.monotonic() + LEASE_S
        if before and self._may_be_alive(before):
            self.say(f"waiting {LEASE_S:.0f} s to see whether {_holder(before)} is still publishing")
            while time.monotonic() < until:
                time.sleep(min(SETTLE_S, LEASE_S))
                if not (now := self._read()):
                    break
                if now != before:
                    raise self._taken(now)
        self._sign(lasting=True)
        time.sleep(SETTLE_S)
        self.require()
        self.thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.ended.set()
        self.thread.join()
        try:
            if self.token in self._read():
                collections.set_property(self.connection, self.collection, LEASE, "")
        except MemoryIndexError:
            if error is None:  # else it is the same trouble, told better
                raise

    def require(self) -> None:
        """Raise `ResourceError` if the signature is not ours any more."""
        if self.token not in (now := self._read()):
            raise self._taken(now)

    def _beat(self) -> None:
        while not self.ended.wait(BEAT_S):
            try:
                if self.token not in self._read():
                    return
                self._sign(lasting=False)  # a restart brings the one before back, which is ours too
            except MemoryIndexError:  # whoever loads meets it too, and reports it
                continue

    def _may_be_alive(self, said: str) -> bool:
        """Milvus Lite serves one process at a time, so that another one's signature there is of one that is gone."""
        return not self.connection.address.embedded or _holder(said) == self.holder

    def _read(self) -> str:
        return collections.properties(self.connection, self.collection).get(LEASE, "")

    def _sign(self, *, lasting: bool) -> None:
        self.num_beats += 1
        said = {"holder": self.holder, "token": self.token, "beat": self.num_beats}
        collections.set_property(self.connection, self.collection, LEASE, json.dumps(said), lasting=lasting)

    def _taken(self, said: str) -> ResourceError:
        return ResourceError(
            f"this version is being published to {self.connection.address.shown} by {_holder(said)}",
            hint="wait until it is there",
        )


def _holder(said: str) -> str:
    """Who signed."""
    try:
        return str(json.loads(said)["holder"])
    except (ValueError, KeyError, TypeError):
        return "somebody else"
