"""The public sets that benchmarks read: those of the catalogue whose files are there, each with its split."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from memory_index.tables.catalog import find_entry, read_catalog

CHOSEN_ON = ("ETTh1", "ETTh2", "Exchange")  # what defaults are chosen on, docs/method.md


class DataSet(NamedTuple):
    """A file of the catalogue that is there. split: by the protocol of docs/method.md."""

    name: str
    path: Path
    split: str

    @property
    def index(self) -> str:
        """What its indexes are called."""
        return self.name.lower()


def present(data_dir: Path, names: Sequence[str] = CHOSEN_ON) -> list[DataSet]:
    """Those sets of the catalogue whose file lies somewhere below a folder; says which do not.

    Raises `NotFoundError` for a name that the catalogue does not have.
    """
    catalog, found = read_catalog(), []
    for entry in (find_entry(name, catalog) for name in names):
        path = next(iter(sorted(data_dir.rglob(entry.file))), None)
        if path is None:
            print(f"skipped: no {entry.file} below {data_dir} (cli data fetch {entry.name})", file=sys.stderr)
            continue
        hourly_transformer = entry.name.startswith("ETT") and entry.step == "h"
        found.append(DataSet(entry.name, path, "ett-hourly" if hourly_transformer else "70/10/20"))
    return found


def every_name() -> list[str]:
    """All names of the catalogue."""
    return [entry.name for entry in read_catalog()]
