"""Files that a user asked for: whether they could be written, before any work is done, and how they are."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

WHEN_FULL = "free some disk space, then run it again"
TABLE_SUFFIXES, PICTURE_SUFFIXES, PAGE_SUFFIXES = (".csv", ".parquet"), (".png", ".svg", ".pdf"), (".html",)


def require_targets(*, table: Path | None = None, picture: Path | None = None, page: Path | None = None) -> None:
    """Raise before any work is done if a file could not be written in the end.

    Raises `UsageError` (suffix), `NotFoundError` (folder), `ResourceError` (drawing without matplotlib).
    """
    from importlib.util import find_spec

    from memory_index.errors import NotFoundError, ResourceError, UsageError

    wanted = (
        (table, TABLE_SUFFIXES, "a table"),
        (picture, PICTURE_SUFFIXES, "a picture"),
        (page, PAGE_SUFFIXES, "a page"),
    )
    for path, suffixes, what in wanted:
        if path is None:
            continue
        if path.suffix.lower() not in suffixes:
            raise UsageError(
                f"{path}: {what} is a {' or '.join(suffixes)} file", hint=f"for example {path.stem}{suffixes[0]}"
            )
        if path.is_dir():
            raise UsageError(f"{path} is a folder, not {what}", hint="choose another name, or move it away")
        if not path.parent.is_dir():
            raise NotFoundError(f"there is no folder {path.parent} for {path.name}", hint="make it first")
        if what != "a table" and find_spec("matplotlib") is None:
            raise ResourceError(
                f"{path}: drawing needs matplotlib, which is not installed", hint="pip install 'gram-forecaster[plot]'"
            )


def write_file(path: Path, content: bytes) -> None:
    """Write a file that a user asked for; see `writing_file`."""
    with writing_file(path) as file:
        file.write(content)


@contextmanager
def writing_file(path: Path) -> Iterator[BinaryIO]:
    """A file that a user asked for, to write in the block. One that is there stays as it is until the new one is whole.

    A link stays a link. A device, a pipe, a file that is mounted by itself and one in a folder that takes no other are
    written in place. Raises `ResourceError` for what the disk refuses.
    """
    from memory_index import files

    with files.refusals_named(path, option="", when_full=WHEN_FULL):
        target = path.resolve()
        replaceable = not path.exists() or (path.is_file() and os.access(path, os.W_OK))
        if replaceable and os.access(target.parent, os.W_OK):
            with files.replacing(target, in_place_if_busy=True) as file:
                yield file
        else:
            with path.open("wb") as file:
                yield file
