"""Versions behind a real service on this machine, without the guard in front of it."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from cli.opening import encoder_loader
from memory_index.access import Token
from memory_index.service.hosted import Hosting
from memory_index.service.remote import RemoteMemory
from memory_index.service.server import MemoryServer, Request
from memory_index.service.turns import Turns
from memory_index.service.wire import Limits


@contextmanager
def served(
    indexes_dir: Path,
    refs: Sequence[str],
    *,
    tokens: Sequence[Token] = (),
    limits: Limits | None = None,
    causal_only: bool = False,
    report: Callable[[Request], None] = lambda request: None,
) -> Iterator[str]:
    """The address of a service of these versions, `grpc://127.0.0.1:PORT`, as long as the block runs.

    report: told of every call when it is over. Memories that were opened are closed at the end of the block.
    """
    with ExitStack() as at_end:
        hosting = Hosting(indexes_dir, refs, loader_for=encoder_loader, threads=1)
        at_end.callback(hosting.close)
        turns = Turns(64)
        at_end.callback(turns.close)
        server = MemoryServer(
            "grpc://127.0.0.1:0",
            hosting,
            limits=limits or Limits(),
            tokens=lambda: tokens,
            causal_only=causal_only,
            turns=turns,
            max_streams=64,
            report=report,
        )
        at_end.callback(server.shutdown)
        address = f"grpc://127.0.0.1:{server.port}"
        at_end.callback(close_memories, address)
        yield address


def close_memories(service: str) -> None:
    """Close every memory of a service: it waits for the streams that they keep, before it ends."""
    for each in gc.get_objects():
        if type(each) is RemoteMemory and each.address.service == service:
            each.close()
