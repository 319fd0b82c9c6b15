"""The keys of a segment on disk: one FAISS index file for each key space, whose keys are mapped and read in place.

keys-SCOPE-VIEW.faiss holds all n keys of a key space, float32 [n, E]; its groups are ranges of rows. `own` is grouped
by series, `joint` has one key per moment, and each group is in time order. `faiss.read_index` opens every such file:

- `Flat`: an `IndexFlatL2`, nothing else. The exact scan multiplies straight from the file.
- Any other factory: the index that it names, over all rows. A graph (`HNSW32`) holds the keys itself; an index that
  does not, or only in an order of its own (quantised, IVF), is the first half of an `IndexRefineFlat`, and the keys are
  the second. So no file has them twice in row order, and plain FAISS ranks by exact distances.

One index serves all groups: it is asked for as many times more candidates as it has more keys than the group, and the
group keeps its share; where that would take longer than to scan the group (`factories.gains`), it is scanned.

Before the index stand a few `IndexPreTransform` headers without any transform. They do nothing but move the keys, which
FAISS would put at an odd byte (45 of a flat file), to a multiple of 4: NumPy copies an array that begins elsewhere
before each product (56,231 keys and one query: 13 ms in place of 0.7).

Segments of format 1 have keys-SCOPE-VIEW.npy, and SCOPE-VIEW-GROUP.faiss for each group that was too large to be
scanned.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO

import faiss
import numpy as np

from memory_index.errors import VerificationError
from memory_index.search import EXACT_ROWS, FaissIndex, KeyGroup
from memory_index.types import KeySpace
from memory_index.versions.factories import EXACT, can_train, gains, trained_index

SUFFIX, ARRAY_SUFFIX = ".faiss", ".npy"
FLAT_INDEX, NO_TRANSFORM = b"IxF2", b"IxPT"  # how FAISS calls its IndexFlatL2 and its IndexPreTransform in a file
UNUSED = 1 << 20  # what FAISS writes into two fields that it does not read
HEADER = struct.Struct("<4siqqq?i")  # kind, E, n, two unused fields, is_trained, metric
COUNT = struct.Struct("<i")  # of transforms
LENGTH = struct.Struct("<Q")  # of the array that follows, in float32
NUMBER = 4  # bytes of a float32, and what its address should be a multiple of


@dataclass(frozen=True, kw_only=True, slots=True)
class KeyFile:
    """An opened file. keys: float32 [n, E], mapped. index: over all of them, None where they are scanned.

    whole: what the index is a part of, and lives as long as.
    """

    keys: np.ndarray
    index: faiss.Index | None = None
    whole: faiss.Index | None = None


def keys_path(folder: Path, space: KeySpace) -> Path:
    """The file of a key space's keys in a segment of any format."""
    path = folder / f"keys-{space}{SUFFIX}"
    older = path.with_suffix(ARRAY_SUFFIX)
    return older if older.exists() else path


def is_index_alone(path: str) -> bool:
    """Whether a file of a version holds an index and not the keys: only segments of format 1 have such files."""
    return path.endswith(SUFFIX) and not path.split("/")[-1].startswith("keys-")


# Writing


def write_keys(folder: Path, space: KeySpace, keys: np.ndarray, factory: str) -> None:
    """Write the file of a key space's keys, float32 [n, E], with the index that a factory string names.

    Keys that are too few to train such an index are written as `Flat`: a later segment may be small. Raises
    `UsageError` for a factory that cannot be built, `OSError`.
    """
    path = folder / f"keys-{space}{SUFFIX}"
    if factory == EXACT or not can_train(factory, *keys.shape):
        with flat_keys(folder, space, len(keys)) as file:
            file.write(keys)
        return
    index = trained_index(keys, factory)
    if _storage(index) is None:
        index = faiss.IndexRefineFlat(index, faiss.swig_ptr(np.ascontiguousarray(keys, dtype=np.float32)))
    # The keys are the last array of the file; only the number of an IndexRefine may follow.
    num_moves = _moves(_size(index))
    with path.open("xb") as file:
        file.write(num_moves * _no_transform(*keys.shape))
        faiss.write_index(index, faiss.PyCallbackIOWriter(file.write))  # into Python's file, which notices a full disk


@contextmanager
def flat_keys(folder: Path, space: KeySpace, num: int) -> Iterator[FlatKeys]:
    """The file of a key space's keys as `Flat`, `num` of them, to be written in parts in the order of their rows."""
    with (folder / f"keys-{space}{SUFFIX}").open("xb") as file:
        keys = FlatKeys(file=file, num=num)
        yield keys
    assert keys.written == num, "as many keys as were said"


@dataclass(kw_only=True, slots=True)
class FlatKeys:
    """Writes keys one part after the other. num: of all parts; there must be one part, even if it is empty."""

    file: BinaryIO
    num: int
    written: int = 0
    begun: bool = False

    def write(self, keys: np.ndarray) -> None:
        """Write the next keys, float32 [n, E]."""
        if not self.begun:
            self.file.write(_flat_start(self.num, keys.shape[1]))
            self.begun = True
        self.written += len(keys)
        self.file.write(np.ascontiguousarray(keys, dtype=np.float32).reshape(-1).view(np.uint8).data)


def _flat_start(num: int, width: int) -> bytes:
    """All of a flat file but its keys, byte for byte as FAISS writes it."""
    start = _header(FLAT_INDEX, num, width) + LENGTH.pack(num * width)
    return _moves(len(start)) * _no_transform(num, width) + start


def _header(kind: bytes, num: int, width: int) -> bytes:
    return HEADER.pack(kind, width, num, UNUSED, UNUSED, True, faiss.METRIC_L2)


def _no_transform(num: int, width: int) -> bytes:
    """What makes an IndexPreTransform of the index that follows it: one that applies no transform."""
    return _header(NO_TRANSFORM, num, width) + COUNT.pack(0)


def _moves(start: int) -> int:
    """How many of these bring keys at a byte of a file to a multiple of `NUMBER`."""
    return next(num for num in range(NUMBER) if (start + num * (HEADER.size + COUNT.size)) % NUMBER == 0)


def _size(index: faiss.Index) -> int:
    """Bytes that FAISS would write, counted and thrown away."""
    sizes: list[int] = []
    faiss.write_index(index, faiss.PyCallbackIOWriter(lambda part: sizes.append(len(part))))
    return sum(sizes)


# Reading


def read_keys(folder: Path, space: KeySpace) -> np.ndarray:
    """The keys of a key space, float32 [n, E], mapped from disk; of a segment of any format.

    Hashes must have been checked before. Raises `VerificationError` for a file that does not hold keys.
    """
    return _open(folder, space).keys


def read_groups(
    folder: Path, space: KeySpace, factory: str, offsets: np.ndarray, *, with_indexes: bool = True
) -> list[KeyGroup]:
    """The key groups of one key space, mapped from disk; `read_keys` says what must have been checked, and raises.

    factory: of the key space. offsets: int64 [groups + 1], where they begin and end. with_indexes: without them all
    keys are compared.
    """
    file = _open(folder, space)
    if len(file.keys) != offsets[-1]:
        raise VerificationError(
            f"the keys of {space} in {folder} are {len(file.keys):,}, but its windows have {offsets[-1]:,}",
            hint="restore the version or build it again",
        )
    groups = []
    for number, (start, end) in enumerate(pairwise(offsets.tolist())):
        index = None
        if with_indexes and file.index is not None and gains(end - start, len(file.keys), EXACT_ROWS):
            index = FaissIndex(file.index, start, end, file.whole)
        elif with_indexes and factory != EXACT and end - start > EXACT_ROWS:
            index = _index_of_format_1(folder / f"{space}-{number}{SUFFIX}")
        groups.append(KeyGroup(keys=file.keys[start:end], index=index))
    return groups


def _index_of_format_1(path: Path) -> FaissIndex | None:
    """The index over one group of keys, where the segment is of format 1 and has one."""
    return FaissIndex(faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)) if path.exists() else None


def _open(folder: Path, space: KeySpace) -> KeyFile:
    path = keys_path(folder, space)
    if path.suffix == ARRAY_SUFFIX:
        return KeyFile(keys=np.load(path, mmap_mode="r", allow_pickle=False).view(np.ndarray))
    flat = _open_flat(path)
    return _open_index(path) if flat is None else KeyFile(keys=flat)


def _open_flat(path: Path) -> np.ndarray | None:
    """The keys of a flat file, float32 [n, E], mapped without FAISS; None if it is not one, byte for byte."""
    longest = len(_flat_start(0, 0))
    with path.open("rb") as file:
        start = file.read(longest)
    if len(start) < longest:
        return None
    width, num = struct.unpack_from("<iq", start, len(FLAT_INDEX))
    if width < 1 or num < 0 or num * width >= 1 << 60 or start != _flat_start(num, width):
        return None
    if path.stat().st_size != longest + NUMBER * num * width:
        return None
    return np.memmap(path, np.float32, "r", longest, (num, width)).view(np.ndarray)


def _open_index(path: Path) -> KeyFile:
    """The index of a file, and the keys that it holds, both mapped. Raises `VerificationError`."""
    hint = "restore the version or build it again"
    try:
        whole = faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)
    except RuntimeError as error:
        raise VerificationError(f"{path} is not a FAISS index file", hint=hint) from error
    index = whole
    while isinstance(index, faiss.IndexPreTransform) and index.chain.size() == 0:
        index = faiss.downcast_index(index.index)
    storage = _storage(index)
    if storage is None:
        raise VerificationError(f"{path} holds an index, but not its keys", hint=hint)
    if isinstance(index, faiss.IndexRefine):
        index = faiss.downcast_index(index.base_index)
    return KeyFile(keys=np.asarray(_InPlace(whole, storage)), index=index, whole=whole)


def _storage(index: faiss.Index) -> faiss.Index | None:
    """The part of an index that is its keys, in the order of their rows; None if none is."""
    part = index.refine_index if isinstance(index, faiss.IndexRefine) else getattr(index, "storage", None)
    part = None if part is None else faiss.downcast_index(part)
    return part if type(part) in (faiss.IndexFlat, faiss.IndexFlatL2) else None


class _InPlace:
    """The vectors of a flat index where they are, for `np.asarray`; the array holds on to the index that has them."""

    def __init__(self, whole: faiss.Index, storage: faiss.Index) -> None:
        self.whole = whole
        self.__array_interface__: dict[str, Any] = {
            "data": (int(storage.get_xb()), True),
            "shape": (int(storage.ntotal), int(storage.d)),
            "typestr": "<f4",
            "version": 3,
        }
