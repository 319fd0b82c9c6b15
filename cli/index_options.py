"""Options that the commands of `cli index` share, and how a split is chosen."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from memory_index.splits import Split
    from memory_index.tables.series import SeriesTable

DEFAULT_DIR = Path("indexes")

Ref = Annotated[str, typer.Argument(metavar="REF", help="NAME, NAME@3 or NAME@alias.", show_default=False)]
IndexesDir = Annotated[Path, typer.Option("--indexes-dir", help="Folder of the indexes.")]


def choose_split(table: SeriesTable, *, split: str | None, until: str | None, val_until: str | None) -> Split:
    """The split that `--split` or `--until` and `--val-until` ask for; by default the one that the documentation names.

    Raises `UsageError` for options that exclude each other, and what `memory_index.splits` raises.
    """
    from memory_index.errors import UsageError
    from memory_index.splits import DEFAULT_SPLIT, split_by_name, split_until

    if until is None:
        if val_until is not None:
            raise UsageError("--val-until needs --until", hint="or choose the parts by share: --split 70/10/20")
        return split_by_name(split or DEFAULT_SPLIT, table.times)
    if split is not None:
        raise UsageError("--split and --until exclude each other", hint="choose the parts by share or by time")
    return split_until(until, val_until, table.times, table.step)
