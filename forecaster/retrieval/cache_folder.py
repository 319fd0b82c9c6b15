"""Folders of arrays that can be made again: locked while they are made, published by one rename, hashed when opened.

What is in the arrays is told in `neighbour_cache.py`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from memory_index import files

RECORD = "cache.json"
STAGING = ".staging-"
WHEN_FULL = "free some disk space, then run it again"
WAIT_S = 24 * 3600.0  # for another process that makes the same cache


@contextmanager
def making(path: Path) -> Iterator[None]:
    """Be the only process that looks for, or makes, the cache at `path`; whoever comes second waits.

    What killed processes have left beside it is deleted. Raises `ResourceError` for what the disk refuses.
    """
    with files.refusals_named(path.parent, option="--neighbours-dir", when_full=WHEN_FULL):
        path.parent.mkdir(parents=True, exist_ok=True)
        _clean(path.parent)
        with files.locked(_lock_of(path), wait_s=WAIT_S, sign=True):
            yield


def new_array(path: Path, shape: tuple[int, ...], dtype: type[np.generic]) -> np.ndarray:
    """A mapped array of zeros to be filled. Its bytes are claimed first: a full disk is an error, not a signal.

    Raises `OSError`.
    """
    array = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
    with path.open("r+b") as file:
        os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return array


@contextmanager
def staged(path: Path) -> Iterator[Path]:
    """A folder to write a cache in; deleted at the end of the block unless published. Only under the cache's lock."""
    staging = path.with_name(f"{STAGING}{path.name}")
    files.delete_tree(staging)
    with files.atomic_folder(staging):
        yield staging


def publish(staging: Path, path: Path, names: Collection[str], settings: dict[str, Any]) -> None:
    """Hash, protect and sync the arrays, and make the folder visible by one rename. settings: noted beside them."""
    hashes = files.finish_files(staging, (f"{array}.npy" for array in names))
    record = {"settings": settings, "files": {name: asdict(hashed) for name, hashed in hashes.items()}}
    files.write_new(staging / RECORD, (json.dumps(record, indent=1, sort_keys=True) + "\n").encode())
    files.delete_tree(path)  # one that is damaged; whoever has it open keeps its files
    try:
        files.publish_folder(staging, path)
    except OSError:
        # Where locks do not reach (some network file systems) another process may have been faster, with the same.
        if not path.exists() or damage_of(path, names):
            raise


def _lock_of(path: Path) -> Path:
    return path.with_name(f".{path.name}.lock")


def _clean(folder: Path) -> None:
    """Delete what killed processes have left behind."""
    for staging in folder.glob(f"{STAGING}*"):
        try:
            with files.locked(_lock_of(folder / staging.name.removeprefix(STAGING))):
                files.delete_tree(staging)
        except files.LockHeldError:  # it is being made at this moment
            continue


def damage_of(path: Path, names: Collection[str]) -> str:
    """What is wrong with the arrays of a cache; empty if nothing is."""
    try:
        hashes = json.loads((path / RECORD).read_text(encoding="utf-8"))["files"]
        if not isinstance(hashes, dict) or set(hashes) != {f"{name}.npy" for name in names}:
            return f"{RECORD} does not list its files"
        records = {name: files.FileRecord(**record) for name, record in hashes.items()}
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        return f"{RECORD} cannot be read: {error}"
    for name, hashed in files.altered_files(path, records).items():
        return f"{name} {'cannot be read' if isinstance(hashed, OSError) else 'has other bytes than were written'}"
    return ""
