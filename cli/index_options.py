"""Options that the commands of `cli index` share, and how their text becomes values."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from memory_index.splits import Split
    from memory_index.tables.series import SeriesTable
    from memory_index.types import Scope

DEFAULT_DIR = Path("indexes")

Ref = Annotated[str, typer.Argument(metavar="REF", help="NAME, NAME@3 or NAME@alias.", show_default=False)]
IndexesDir = Annotated[Path, typer.Option("--indexes-dir", help="Folder of the indexes.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]


def parse_views(text: str | None) -> tuple[int, ...] | None:
    """`96,168` as numbers. Raises `UsageError`."""
    from memory_index.errors import UsageError

    parts = split_names(text)
    if parts is None:
        return None
    for part in parts:
        if not (part.isascii() and part.isdecimal()):
            raise UsageError(
                f"--views {text}: '{part}' is not a number of steps", hint="for example --views 96,168,336"
            )
    return tuple(int(part) for part in parts)


def parse_scopes(text: str | None) -> tuple[Scope, ...] | None:
    """`own,joint` as a tuple; the names are judged by the library."""
    return split_names(text)  # type: ignore[return-value]


def split_names(text: str | None) -> tuple[str, ...] | None:
    """The parts of `A,B,C`; None stays None."""
    return None if text is None else tuple(part.strip() for part in text.split(","))


def choose_split(table: SeriesTable, *, split: str | None, until: str | None, val_until: str | None) -> Split:
    """The split that `--split` or `--until` and `--val-until` ask for; by default the one that the documentation names.

    Raises `UsageError` for options that exclude each other, and what `memory_index.splits` raises.
    """
    import numpy as np

    from memory_index.errors import UsageError
    from memory_index.splits import DEFAULT_SPLIT, split_by_name, split_until

    times = table.series[0].times if table.shares_times else np.unique(np.concatenate([s.times for s in table.series]))
    if until is None:
        if val_until is not None:
            raise UsageError("--val-until needs --until", hint="or choose the parts by share: --split 70/10/20")
        return split_by_name(split or DEFAULT_SPLIT, times)
    if split is not None:
        raise UsageError("--split and --until exclude each other", hint="choose the parts by share or by time")
    return split_until(until, val_until, times, table.step)
