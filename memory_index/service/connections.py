"""Connections of the HTTP server: how many there may be, and how long one may stand still.

uvicorn bounds what is idle after an answer. What it does not bound is here: connections on which no request comes, or
comes a byte at a time, answers that nobody reads, and how many there are.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from memory_index.listening import allow_open_files

HEAD_BYTES = 65536  # of a head, and of what stands between and behind pieces of a body
HEADER_S = 10.0  # for the head of a request to come, and for a TLS handshake
LOOK_S = 0.5


class Connection(HttpToolsProtocol):
    """One connection. says: told its address and why it was cut off. most: of all. stall_s: for an answer to be read.

    Idle from `idle_since` on; while the head of a request comes, it began to `coming_since`.
    """

    def __init__(self, *, says: Callable[[Any, str], None], most: int, stall_s: float, **of_uvicorn: Any) -> None:
        super().__init__(app_state={"connection": self}, **of_uvicorn)  # requests find it in their scope
        self._says, self._most, self._stall_s = says, most, stall_s
        self.idle_since, self._beside = self.loop.time(), 0  # bytes that have come since an answer, or some of a body
        self.coming_since: float | None = self.idle_since

    @property
    def is_answering(self) -> bool:
        """Whether a request is being read or answered: then whoever does that looks at the time."""
        return self.cycle is not None and not self.cycle.response_complete

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Count it; beyond the limit the one that has been idle longest makes room."""
        super().connection_made(transport)
        if len(self.connections) > self._most:
            idle = [each for each in self.connections if isinstance(each, Connection) and not each.is_answering]
            min(idle, key=lambda each: each.idle_since).cut("")

    def data_received(self, data: bytes) -> None:
        """Note when a request begins to come, and bound its head, which the parser does not."""
        if not self.is_answering and self.coming_since is None:
            self.coming_since = self.loop.time()
        self._beside += len(data)
        super().data_received(data)
        if self._beside > HEAD_BYTES:
            self.cut(f"a head of more than {HEAD_BYTES:,} bytes")

    def on_body(self, body: bytes) -> None:
        """Some of a body has come."""
        self._beside = 0
        super().on_body(body)

    def on_response_complete(self) -> None:
        """Note that it is idle from now on."""
        self.idle_since, self.coming_since, self._beside = self.loop.time(), None, 0
        super().on_response_complete()

    def send_400_response(self, msg: str) -> None:
        """Answer what is not HTTP, and tell it."""
        self._says(self.client, "it does not speak HTTP")
        super().send_400_response(msg)

    def look(self) -> None:
        """Cut it off if it has stood still for too long."""
        now = self.loop.time()
        if self.is_answering:
            return
        if self.coming_since is not None and now - self.coming_since > HEADER_S:
            self.cut(f"no request came within {HEADER_S:g} s")
        elif self.transport.get_write_buffer_size() and now - self.idle_since > self._stall_s:
            self.cut(f"an answer was not read for {self._stall_s:g} s")

    def cut(self, why: str) -> None:
        """End it at once, whatever it has not sent or read. why: for the log; empty where the log has it already."""
        if why:
            self._says(self.client, why)
        self.transport.abort()


class Server(uvicorn.Server):
    """uvicorn with such connections, on a socket that listens. bounds: of each connection."""

    def __init__(self, app: Any, *, idle_s: float, ssl: Any = None, **bounds: Any) -> None:
        config = uvicorn.Config(
            app,
            loop="asyncio",
            http=Connection,
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="critical",  # what goes wrong is told by us
            access_log=False,
            server_header=False,
            date_header=False,
            proxy_headers=False,
            timeout_keep_alive=idle_s,  # type: ignore[arg-type]  # any number will do
            timeout_graceful_shutdown=5,
        )
        super().__init__(config)
        self._ssl: dict[str, Any] = {"ssl": ssl, "ssl_handshake_timeout": HEADER_S, "ssl_shutdown_timeout": 1.0}
        self._ssl = self._ssl if ssl else {}
        self._made = partial(Connection, config=config, server_state=self.server_state, **bounds)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, with little time for a TLS handshake: connections are counted only after it."""
        await super().startup(sockets=[])
        allow_open_files()
        loop = asyncio.get_running_loop()
        loop.set_default_executor(ThreadPoolExecutor(2, thread_name_prefix="read"))
        for each in sockets or ():
            self.servers.append(await loop.create_server(self._made, sock=each, backlog=1024, **self._ssl))
        self._looking = loop.create_task(self._look())

    async def _look(self) -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            for each in list(self.server_state.connections):
                if isinstance(each, Connection):
                    each.look()
