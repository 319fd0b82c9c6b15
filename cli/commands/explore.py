"""`cli explore`: a local web page on which the memory, and perhaps a run, can be watched while the origin moves."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from cli.options import REF, File, Indexes, RunDevice, RunFolder, RunLlm, asks_memory, reads_table
from cli.output import note

if TYPE_CHECKING:
    from memory_index.tables.columns import ReadOptions

PORT = 8765


@reads_table
@asks_memory
def explore(
    file: File,
    index: Annotated[
        list[str] | None,
        typer.Option(
            "--index",
            metavar="REF",
            help=f"{REF}; twice to compare two. Default with --run: the run's own.",
        ),
    ] = None,
    run: RunFolder = None,
    series: Annotated[str | None, typer.Option(help="Series to begin with.", show_default="the first")] = None,
    at: Annotated[
        str | None, typer.Option(help="Origin to begin with.", show_default="the last whose future is known")
    ] = None,
    host: Annotated[str, typer.Option(help="Where to listen. Anything but this machine lets others in.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 takes any that is free.", min=0, max=65535)] = PORT,
    open_browser: Annotated[bool, typer.Option("--open", help="Open the page in the default browser.")] = False,
    llm: RunLlm = None,
    device: RunDevice = "auto",
    *,
    indexes: Indexes,
    table_options: ReadOptions,
) -> None:
    """Look at a memory in a web page on this machine: click into the history, and see what is remembered there.

    Neighbours, their futures and the memory's forecast follow the origin; with --run also the model's forecast and the
    gate between both. Two versions, or two choices of key spaces, can be compared. The address of the page is the
    state of it, so that a link shows the same again. Nothing is loaded from the internet. Ctrl-C ends it.
    """
    require_dash()
    from cli.explorer.server import listen, make_app
    from cli.explorer.subject import open_subject, start_state
    from memory_index.listening import is_loopback

    subject = open_subject(file, index or [], run, indexes, table_options, device=device, llm=llm)
    start = start_state(subject, series, at)
    server = listen(make_app(subject, start, host=host), host, port)
    shown = f"[{host}]" if ":" in host else host
    address = f"http://{shown}:{server.port}/"
    with ended_by_signals():
        if not is_loopback(host):
            note(f"everyone who can reach port {server.port} of this machine can read {file}: no password is asked for")
        note(f"exploring {', '.join(subject.versions)} at {address} (Ctrl-C ends it)")
        if open_browser:
            import webbrowser

            webbrowser.open(address)
        server.serve_forever()
    note("ended")


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """Ctrl-C and SIGTERM end the block, which is how a server is meant to end."""
    before = None
    if threading.current_thread() is threading.main_thread():
        before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    except KeyboardInterrupt:
        pass
    finally:
        if before is not None:
            signal.signal(signal.SIGTERM, before)


def require_dash() -> None:
    """Raise `ResourceError` if what the page is made with is not installed."""
    from importlib.util import find_spec

    from memory_index.errors import ResourceError

    for name in ("dash", "matplotlib"):
        if find_spec(name) is None:
            raise ResourceError(
                f"the page needs {name}, which is not installed", hint="pip install 'gram-forecaster[explore]'"
            )
