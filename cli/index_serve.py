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

from cli.asking import encoder_loader
from cli.index_options import DEFAULT_DIR, IndexesDir
from cli.output import note, print_json

if TYPE_CHECKING:
    from memory_index.service.serving import Service

PORT = 8815
MESSAGES_HELD = 16  # on their way, and waiting for their turn
REQUEST, PROTECTION, WATCHING = "What one question may ask", "Who may ask", "Watching it"


def _count(text: str, panel: str = REQUEST) -> typer.models.OptionInfo:
    return typer.Option(help=text, min=1, rich_help_panel=panel)


def serve(
    refs: Annotated[
        list[str],
        typer.Argument(
            metavar="REF...", help="NAME, NAME@3, NAME@alias, or one of these at a milvus: address.", show_default=False
        ),
    ],
    host: Annotated[str, typer.Option(help="Where to listen; beyond this machine only with a token.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 takes any that is free.", min=0, max=65535)] = PORT,
    token_file: Annotated[
        Path | None,
        typer.Option(
            help="Who may ask: a token on each line, if you like a name before it.", rich_help_panel=PROTECTION
        ),
    ] = None,
    tls_cert: Annotated[
        Path | None, typer.Option(help="Certificate (PEM): speak TLS.", rich_help_panel=PROTECTION)
    ] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Its key (PEM).", rich_help_panel=PROTECTION)] = None,
    causal_only: Annotated[
        bool,
        typer.Option(
            "--causal-only",
            help="Refuse the policy disjoint, which sees past the origin.",
            rich_help_panel=PROTECTION,
        ),
    ] = False,
    max_windows: Annotated[int, _count("Windows: moments times series.")] = 8192,
    max_k: Annotated[int, _count("Neighbours per key space.")] = 1024,
    max_message_mb: Annotated[int, _count("Size of a message. Clients ask in parts.")] = 32,
    max_seconds: Annotated[
        float, typer.Option(help="To wait for a turn, and again to search.", min=0.1, rich_help_panel=REQUEST)
    ] = 60.0,
    max_connections: Annotated[int, _count("Connections at once.", PROTECTION)] = 64,
    max_waiting: Annotated[int, _count("Questions that may wait for their turn.", PROTECTION)] = 64,
    max_memory_mb: Annotated[int, _count("Memory for all questions, beyond the versions.", PROTECTION)] = 4096,
    status_port: Annotated[
        int | None,
        typer.Option(help="Also answer /healthz and /readyz over HTTP.", min=0, max=65535, rich_help_panel=WATCHING),
    ] = None,
    status_host: Annotated[str, typer.Option(help="Where; no token is asked.", rich_help_panel=WATCHING)] = "127.0.0.1",
    metrics: Annotated[
        bool, typer.Option("--metrics", help="And /metrics, for Prometheus.", rich_help_panel=WATCHING)
    ] = False,
    access_log: Annotated[
        Path | None,
        typer.Option(help="Append a JSON line for every call; no value of the data.", rich_help_panel=WATCHING),
    ] = None,
    milvus_token_file: Annotated[
        Path | None, typer.Option(help="Token for a milvus: address.", rich_help_panel=PROTECTION)
    ] = None,
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
    from memory_index.service.serving import Service, Settings
    from memory_index.service.status import MOST_REQUESTS
    from memory_index.service.wire import Limits

    if max_memory_mb < MESSAGES_HELD * max_message_mb:
        raise UsageError(
            f"--max-memory-mb {max_memory_mb} is too little for messages of {max_message_mb} MB",
            hint=f"{MESSAGES_HELD} of them must find room: lower --max-message-mb, or give it more",
        )
    settings = Settings(
        host=host,
        port=port,
        token_file=token_file,
        tls_cert=tls_cert,
        tls_key=tls_key,
        causal_only=causal_only,
        limits=Limits(max_message=max_message_mb << 20, max_windows=max_windows, max_k=max_k, max_seconds=max_seconds),
        max_connections=max_connections,
        max_waiting=max_waiting,
        status_host=status_host,
        status_port=status_port,
        metrics=metrics,
        access_log=access_log,
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
