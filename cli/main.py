"""The program: which commands there are, and how an error becomes one line and an exit code.

No command is written here. Modules of commands import numpy, pandas, faiss and torch inside their functions,
never at the top, so that `--help` answers at once.

Exit codes: 0 done, 1 unexpected (with its traceback), 2 usage, 3 bad data, 4 not found, 5 verification failed,
6 incompatible, 7 out of resources, 8 service, 130 interrupted, 141 the reader of the output went away.
With `--json` an error is a document on stdout, `{"error": {"code", "message", "hint"}}`, instead of a line on stderr;
where stdout takes no more, it is that line.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Annotated

import typer

from cli import __version__
from cli.commands import data, index
from cli.commands import run as runs
from cli.commands.ablate import ablate
from cli.commands.backtest import backtest
from cli.commands.demo import demo
from cli.commands.evaluate import evaluate
from cli.commands.explain import explain
from cli.commands.explore import explore
from cli.commands.forecast import forecast
from cli.commands.train import train
from cli.output import last_note, print_json, write_in_full

app = typer.Typer(
    name="cli",
    help="Forecast time series from similar stretches of their past, without ever looking into the future.",
    epilog="Example: cli demo",
    add_completion=False,
    pretty_exceptions_enable=False,
    # Plain help: brackets in a text stay brackets, and rich is not loaded for it.
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)

# By name, because the error classes are not loaded unless there is an error.
EXIT_CODES = {
    "UsageError": 2,
    "DataError": 3,
    "NotFoundError": 4,
    "VerificationError": 5,
    "IncompatibleError": 6,
    "ResourceError": 7,
    "ServiceError": 8,
}
USAGE = 2
OUT_OF_RESOURCES = 7
INTERRUPTED = 130
READER_GONE = 141  # what a shell reports for a program that SIGPIPE ended

RESOURCE_ERRNOS = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.EMFILE,
    errno.EFBIG,
    errno.ENOMEM,
}

# Options by which retrieval forecasting is often asked for, and what does the same here.
OTHER_NAMES = {
    "use-tapr": "'cli train ... --network' trains TAPR too, and --no-tapr leaves it out of the network",
    "use-gram": "'cli train' uses the memory unless --no-gram is given; --network adds gating inside it, GRA-M",
    "build-memory": "'cli index build FILE --name NAME --lookback L --horizon H' builds a memory, "
    "'cli train FILE --index NAME ...' uses it",
}


def main() -> None:
    """Run the command line on this process's arguments, and exit. SIGTERM is Ctrl-C: what is half written goes."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    # Before torch loads OpenMP: on cores that others use too, threads that wait for one another in a loop take four
    # times the processor time of the work itself.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    write_in_full()
    code = run(sys.argv[1:])
    for stream in filter(None, (sys.stdout, sys.stderr)):
        try:
            stream.flush()
        except OSError:
            # Already told, or nobody is left to tell. The interpreter would try again on its way out, and complain.
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    sys.exit(code)


def run(arguments: Sequence[str]) -> int:
    """Run one command and return its exit code. Unknown exceptions pass through, with their traceback."""
    as_json = "--json" in arguments
    try:
        code = _invoke(list(arguments) or ["--help"])
        typer.echo(nl=False)  # flushes here, where a full disk or a closed pipe can still be told
        return code
    except typer.TyperException as error:
        return _report(USAGE, _usage_message(error), _usage_hint(error), as_json=as_json)
    except (KeyboardInterrupt, typer.Abort) as error:
        # A command that can go on says how in its text.
        return _report(INTERRUPTED, "interrupted", str(error), as_json=as_json)
    except BrokenPipeError:
        return READER_GONE
    except Exception as error:
        known = _known(error)
        if known is None:
            raise
        code, message, hint = known
        return _report(code, message, hint, as_json=as_json)


def _invoke(arguments: list[str]) -> int:
    """Parse and run. Not `app()`: it would turn errors into output and exit codes of its own."""
    command = typer.main.get_command(app)
    try:
        with command.make_context("cli", arguments, obj=run) as context:
            command.invoke(context)
    except typer.Exit as error:
        return error.exit_code
    return 0


def _known(error: Exception) -> tuple[int, str, str] | None:
    """Exit code, message and hint of an error that is ours or the machine's; None for any other."""
    from memory_index.errors import MemoryIndexError

    if isinstance(error, MemoryIndexError):
        for ancestor in type(error).__mro__:
            if ancestor.__name__ in EXIT_CODES:
                return EXIT_CODES[ancestor.__name__], str(error), error.hint
    # torch has no type of its own for what its allocator of the CPU says, and a RuntimeError of another name for a GPU.
    if (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or (isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error))
    ):
        return (
            OUT_OF_RESOURCES,
            f"out of memory: {error}".removesuffix(": "),
            "use less data, or a machine with more memory (a GPU's may be too small: --device cpu)",
        )
    if isinstance(error, OSError) and error.errno in RESOURCE_ERRNOS:
        where = "" if error.filename is None else f": {error.filename}"
        return OUT_OF_RESOURCES, f"{os.strerror(error.errno)}{where}", "check free space and permissions"
    return None


def _usage_message(error: typer.TyperException) -> str:
    """Without the list of similar names where the hint tells what does it here."""
    return getattr(error, "message", "") if _other_name(error) else error.format_message()


def _usage_hint(error: typer.TyperException) -> str:
    context = getattr(error, "ctx", None)
    return _other_name(error) or f"see '{context.command_path if context else 'cli'} --help'"


def _other_name(error: typer.TyperException) -> str:
    return OTHER_NAMES.get(getattr(error, "option_name", "").lstrip("-").replace("_", "-"), "")


def _report(code: int, message: str, hint: str, *, as_json: bool) -> int:
    """Show one error where it belongs, or where it still can be shown, and return its exit code."""
    message, hint = (" ".join(text.splitlines()) for text in (message, hint))
    if as_json:
        with suppress(OSError):
            print_json("error", {"error": {"code": code, "message": message, "hint": hint}})
            sys.stdout.flush()
            return code
    last_note(f"error: {message} ({hint})" if hint else f"error: {message}")
    return code


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"cli {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    show_version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Options that come before the command."""


# A group called without a command is a usage error like any other, in one line.
app.add_typer(data.app, name="data", epilog="Example: cli data check load.csv", no_args_is_help=False)
app.add_typer(index.app, name="index", epilog="Example: cli index list", no_args_is_help=False)
app.add_typer(runs.app, name="run", epilog="Example: cli run show runs/load", no_args_is_help=False)
app.command(epilog="Example: cli train load.csv --index load@1 --out runs/load")(train)
app.command(epilog="Example: cli evaluate load.csv --run runs/load --baselines")(evaluate)
app.command(epilog="Example: cli backtest load.csv --run runs/load --at 23:00 --out backtest.parquet")(backtest)
app.command(epilog="Example: cli forecast load.csv --run runs/load --out forecast.csv --plot forecast.png")(forecast)
app.command(
    epilog='Example: cli explain load.csv --run runs/load --series north --at "2024-09-25 23:00" --html explained.html'
)(explain)
app.command(epilog="Example: cli explore load.csv --run runs/load")(explore)
app.command(epilog="Example: cli ablate load.csv --index load@1 --out runs/ablation --groups matrix --seeds 0")(ablate)
app.command(epilog="Example: cli demo --out runs/demo")(demo)
