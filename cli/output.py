"""What a command shows: documents and tables on stdout, notes and progress on stderr.

Commands print through these functions only, so that stdout holds data and nothing else. What is worth
printing is the commands' affair; errors are `cli/main.py`'s.
"""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from numbers import Integral, Real
from typing import Any, Protocol


def write_in_full() -> None:
    """Give stdout a buffer of lines if it has none (PYTHONUNBUFFERED).

    Without one, Python does not look at how much of a text was taken: on a full disk the rest is lost in silence.
    """
    raw = getattr(sys.stdout, "buffer", None)
    if isinstance(raw, io.RawIOBase):
        buffer = io.BufferedWriter(raw)
        sys.stdout = io.TextIOWrapper(buffer, sys.stdout.encoding, sys.stdout.errors, line_buffering=True)


def print_json(schema: str, document: Mapping[str, Any]) -> None:
    """Print one JSON document on stdout, on one line, its `schema` first.

    Beside what JSON knows it takes numpy scalars and arrays, times (ISO 8601), paths and dataclasses.
    A missing or infinite number or time becomes null. Raises `TypeError` for anything else.
    """
    from memory_index.documents import jsonable

    print(json.dumps({"schema": schema, **jsonable(document)}, allow_nan=False))


def print_table(
    columns: Sequence[str], rows: Sequence[Sequence[object]], *, title: str | None = None, gap: int = 2
) -> None:
    """Print a table on stdout: fitted to the width of a terminal, in full and unadorned anywhere else.

    columns: one heading each. rows: one cell per column; numbers are right-aligned, `None` is blank. gap: spaces
    between two columns in a terminal.
    """
    numeric = [
        any(row[index] is not None for row in rows) and all(_is_number_or_none(row[index]) for row in rows)
        for index in range(len(columns))
    ]
    cells = [[_cell(value) for value in row] for row in rows]
    if sys.stdout.isatty():
        _print_rich(columns, cells, numeric, title, gap)
    else:
        _print_plain(columns, cells, numeric, title)


def note(message: str) -> None:
    """Print one line for the reader, not for a script: it goes to stderr, after all that went to stdout before it."""
    sys.stdout.flush()
    print(message, file=sys.stderr)


def last_note(message: str) -> None:
    """A `note` that is tried even if stdout takes no more, and that raises nothing if stderr takes no more either."""
    with suppress(OSError):
        sys.stdout.flush()
    with suppress(OSError):
        print(message, file=sys.stderr)


class Report(Protocol):
    """What shows progress."""

    def __call__(self, done: float, total: float | None, doing: str = "") -> None:
        """done: so far, in any unit. total: None where it is not known. doing: what, if there is more to say."""


@contextmanager
def progress(description: str) -> Iterator[Report]:
    """Show a progress bar on stderr while the block runs; nothing at all when stderr is not a terminal."""
    if not sys.stderr.isatty():
        yield lambda done, total, doing="": None
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(escape(description), total=None)

        def report(done: float, total: float | None, doing: str = "") -> None:
            bar.update(task, completed=done, total=total, description=escape(f"{description} {doing}".rstrip()))

        yield report


def duration(seconds: float) -> str:
    """So many seconds as a person says it: 45 s, 12 min, 1 h 05 min."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def _is_number_or_none(value: object) -> bool:
    return value is None or (isinstance(value, Real) and not isinstance(value, bool))


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, Real) and not isinstance(value, Integral):
        return f"{value:.6g}"
    return str(value)


def _print_rich(
    columns: Sequence[str], cells: list[list[str]], numeric: list[bool], title: str | None, gap: int
) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(
        header_style="bold",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=(0, gap - 1, 0, 0),
    )
    for column, is_numeric in zip(columns, numeric, strict=True):
        table.add_column(Text(column), justify="right" if is_numeric else "left", overflow="fold")
    for row in cells:
        table.add_row(*[Text(cell) for cell in row])
    console = Console()
    if title is not None:
        console.print(Text(title))  # not the table's own, which would be wrapped to its width
    console.print(table)


def _print_plain(columns: Sequence[str], cells: list[list[str]], numeric: list[bool], title: str | None) -> None:
    lines = [list(columns), *cells]
    widths = [max(len(line[index]) for line in lines) for index in range(len(columns))]
    if title is not None:
        print(title)
    for line in lines:
        aligned = [
            cell.rjust(width) if is_numeric else cell.ljust(width)
            for cell, width, is_numeric in zip(line, widths, numeric, strict=True)
        ]
        print("  ".join(aligned).rstrip())
