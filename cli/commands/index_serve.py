"""`cli index serve`: versions of this machine as a service for others."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.opening import encoder_loader
from cli.options import DEFAULT_DIR, Device, IndexesDir, serves
from cli.output import note, print_json

if TYPE_CHECKING:
    from memory_index.service.app import ServedRun
    from memory_index.service.serving import Service
    from memory_index.service.settings import Settings

NEEDED = ("starlette", "uvicorn", "prometheus_client")


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
    runs: Annotated[
        list[Path] | None,
        typer.Option("--run", help="Folder of a run that 'cli train' made: answer forecasts too. May be repeated."),
    ] = None,
    milvus_token_file: Annotated[Path | None, typer.Option(help="Token for a milvus: address.")] = None,
    device: Device = "auto",
    indexes_dir: IndexesDir = DEFAULT_DIR,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON document on stdout when it is ready.")] = False,
) -> None:
    """Let other machines and processes ask versions: http://HOST:PORT/NAME@3 is then a reference wherever one is taken.

    An alias that is switched, or a new latest version, is followed without a restart; whoever opened the old one goes
    on with it. Without a token it answers this machine only. Ctrl-C or SIGTERM end it, after the questions under way
    are answered.
    """
    from memory_index.access import read_access
    from memory_index.errors import ResourceError

    if missing := [each for each in NEEDED if find_spec(each) is None]:
        raise ResourceError(
            f"a service needs {', '.join(missing)}, which is not installed", hint="pip install 'gram-forecaster[serve]'"
        )
    from memory_index.service.serving import Service

    access = None if milvus_token_file is None else read_access(milvus_token_file, None)
    answering = served_runs(runs or [], refs, device)
    refs = [*dict.fromkeys([*refs, *(run.ref for run in answering.values())])]
    place: dict[str, Any] = {"access": access, "loader_for": encoder_loader, "note": note}
    service = Service(indexes_dir, refs, settings, runs=answering, **place)
    with stopped_by_signals(service.stop):
        _tell(service, as_json=as_json)
        service.wait()
    note("ended")
    if service.has_leftovers:
        os._exit(0)


def _tell(service: Service, *, as_json: bool) -> None:
    """Where what is served, once it is."""
    from memory_index.listening import is_loopback

    address, versions, runs = service.address, service.hosting.versions(), service.app.runs
    if as_json:
        told = {name: run.ref for name, run in runs.items()}
        print_json("index-serve", {"address": address, "versions": versions, "runs": told})
        typer.echo(nl=False)
    for name, ref in versions.items():
        note(f"serving {address}/{name.removesuffix('@latest')}" + ("" if name == ref else f", which is {ref} now"))
    for name, run in runs.items():
        note(f"forecasting at {address}/v1/runs/{name}/forecast, from {run.ref}")
    if service.settings.token_file is None:
        note("without a token: this machine only, and everyone on it, can ask")
    elif address.startswith("http://") and not is_loopback(service.settings.host):
        note("without TLS: tokens and data travel as they are; see --tls-cert")
    note(f"what can be asked: {address}/docs; health: {address}/healthz, /readyz, /metrics")
    note("Ctrl-C ends it")


def served_runs(folders: list[Path], refs: list[str], device: str) -> dict[str, ServedRun]:
    """The runs by the names that they are asked by: those of their folders. torch is loaded only if there is one."""
    from memory_index.errors import UsageError

    found: dict[str, ServedRun] = {}
    for folder in folders:
        from forecaster.serving import open_served

        name = folder.resolve().name
        if name in found:
            raise UsageError(f"two runs would have the name '{name}' here", hint="rename a folder")
        found[name] = open_served(folder, refs, device=device)
    return found


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
