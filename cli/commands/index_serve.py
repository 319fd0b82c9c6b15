"""`cli index serve`: versions of this machine as a service for others."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.opening import encoder_loader
from cli.options import DEFAULT_DIR, IndexesDir, serves
from cli.output import note, print_json

if TYPE_CHECKING:
    from memory_index.service.serving import Service, Settings

MESSAGES_HELD = 16  # on their way, and waiting for their turn


@serves
def serve(
    refs: Annotated[
        list[str],
        typer.Argument(
            metavar="REF...", help="NAME, NAME@3, NAME@alias, or one of these at a milvus: address.", show_default=False
        ),
    ],
    *,
    settings: Settings,
    max_memory_mb: Annotated[int, typer.Option(help="Memory for all questions, beyond the versions.", min=1)] = 4096,
    milvus_token_file: Annotated[Path | None, typer.Option(help="Token for a milvus: address.")] = None,
    indexes_dir: IndexesDir = DEFAULT_DIR,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON document on stdout when it is ready.")] = False,
) -> None:
    """Let other machines and processes ask versions: grpc://HOST:PORT/NAME@3 is then a reference wherever one is taken.

    An alias that is switched, or a new latest version, is followed without a restart; whoever opened the old one goes
    on with it. Without a token it answers this machine only. Ctrl-C or SIGTERM end it, after the questions under way
    are answered.
    """
    from memory_index.access import read_access
    from memory_index.errors import UsageError
    from memory_index.service.process_memory import limit_memory, share_arenas
    from memory_index.service.serving import Service
    from memory_index.service.status import MOST_REQUESTS

    max_message_mb = settings.limits.max_message >> 20
    if max_memory_mb < MESSAGES_HELD * max_message_mb:
        raise UsageError(
            f"--max-memory-mb {max_memory_mb} is too little for messages of {max_message_mb} MB",
            hint=f"{MESSAGES_HELD} of them must find room: lower --max-message-mb, or give it more",
        )
    access = None if milvus_token_file is None else read_access(milvus_token_file, None)
    share_arenas()
    service = Service(indexes_dir, refs, settings, access=access, loader_for=encoder_loader, note=note)
    limit_memory(max_memory_mb, settings.max_calls + MOST_REQUESTS)
    with stopped_by_signals(service.stop):
        _tell(service, as_json=as_json)
        service.wait()
    note("ended")
    if service.has_leftovers:
        os._exit(0)


def _tell(service: Service, *, as_json: bool) -> None:
    """Where what is served, once it is."""
    from memory_index.service.listening import is_loopback

    address, versions, status_port = service.address, service.hosting.versions(), service.status_port
    if as_json:
        print_json("index-serve", {"address": address, "versions": versions, "status_port": status_port})
        typer.echo(nl=False)
    for name, ref in versions.items():
        note(f"serving {address}/{name.removesuffix('@latest')}" + ("" if name == ref else f", which is {ref} now"))
    if service.settings.token_file is None:
        note("without a token: this machine only, and everyone on it, can ask")
    elif address.startswith("grpc://") and not is_loopback(service.settings.host):
        note("without TLS: tokens and data travel as they are; see --tls-cert")
    if status_port is not None:
        note(f"health on port {status_port}: /healthz, /readyz" + (", /metrics" if service.settings.metrics else ""))
    note("Ctrl-C ends it")


@contextmanager
def stopped_by_signals(stop: Callable[[], None]) -> Iterator[None]:
    """SIGTERM and Ctrl-C call `stop` instead of ending the process; a second of either does end it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def first(_number: int, _frame: object) -> None:
        for each in before:
            signal.signal(each, second)
        stop()

    def second(number: int, _frame: object) -> None:
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)  # at once: otherwise a search that is under way would be waited for

    before = {number: signal.signal(number, first) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
