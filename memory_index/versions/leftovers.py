"""What `Store.gc` finds to delete: the leftovers of killed processes, and the space that they take.

All of it is to be called under the catalog lock of a name, where nobody can begin a build or switch an alias.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from memory_index import files
from memory_index.versions.layout import ALIASES, STAGING, TRASH


@dataclass(frozen=True, kw_only=True, slots=True)
class GcReport:
    """What `gc` has deleted, or would delete (`dry_run`).

    versions: references. leftovers: folders of killed builds and unfinished removals, relative to the folder of
    indexes. bytes: disk space that this frees (files shared with a version that stays free nothing).
    busy: names that are being built at this moment, whose leftovers stay until a later time.
    """

    versions: tuple[str, ...]
    leftovers: tuple[str, ...]
    bytes: int
    busy: tuple[str, ...]
    dry_run: bool


def is_held(lock: Path) -> bool:
    """Whether a builder is at work. Under the catalog lock the answer stays true: nobody can begin meanwhile."""
    try:
        with files.locked(lock):
            return False
    except files.LockHeldError:
        return True


def leftovers_in(folder: Path, *, building: bool) -> list[Path]:
    """What killed processes have left in the folder of a name. Only under the catalog lock.

    building: then the folders of builds stay, for one of them is in use.
    """
    kinds = [f"{TRASH}*", f"{ALIASES}/{files.TEMPORARY}*"] + ([] if building else [f"{STAGING}*"])
    return sorted(path for kind in kinds for path in folder.glob(kind))


def freed_bytes(folders: list[Path]) -> int:
    """Bytes that deleting these folders gives back: of each file, if all of its hard links are in them."""
    links: dict[tuple[int, int], int] = {}
    num_bytes = 0
    for folder in folders:
        for path in files.files_below(folder) if folder.is_dir() else [""]:
            try:
                status = (folder / path).lstat()
            except FileNotFoundError:  # someone else is deleting it
                continue
            inode = (status.st_dev, status.st_ino)
            links[inode] = links.get(inode, 0) + 1
            num_bytes += status.st_size if links[inode] == status.st_nlink else 0
    return num_bytes
