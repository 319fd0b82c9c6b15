"""Which FAISS index serves a key space: the choice of `auto`, and whether one that was asked for can be built.

A FAISS factory string (`IVF256,SQ8`) is checked before anything is built, because what FAISS itself says of it
comes late, in terms of C++, or only as a warning on stderr.
"""

from __future__ import annotations

import re

import faiss
import numpy as np

from memory_index.errors import UsageError
from memory_index.search import EXACT_ROWS
from memory_index.types import KeySpace

MAX_EXACT_ROWS = 200_000  # `auto` scans groups of up to this many keys exactly (docs/benchmarks.md)
AUTO_FACTORY = "HNSW32"


def choose_factory(requested: str, largest_group: int) -> tuple[str, str]:
    """(FAISS factory string, the reason for it) of a key space whose largest group has so many keys."""
    if requested != "auto":
        unused = f", but not used yet: groups of up to {EXACT_ROWS:,} keys are scanned exactly"
        return requested, "asked for" + (unused if requested != "Flat" and largest_group <= EXACT_ROWS else "")
    if largest_group <= MAX_EXACT_ROWS:
        reason = f"exact scan: at most {largest_group:,} keys in a group, and up to {MAX_EXACT_ROWS:,} it is fastest"
        return "Flat", reason
    reason = f"{largest_group:,} keys in a group: above {MAX_EXACT_ROWS:,} a graph index is faster than an exact scan"
    return AUTO_FACTORY, reason


def check_factory(requested: str, widths: dict[KeySpace, int], group_sizes: dict[KeySpace, np.ndarray]) -> None:
    """Raise `UsageError` for a factory string that FAISS cannot build, or cannot train well, for one of the key spaces.

    widths: of a key. group_sizes: int [groups], keys in each group. Groups that are small enough to be scanned need no
    training; but a factory that not even the largest group of all could train is refused rather than never used.
    """
    if requested in ("auto", "Flat"):
        return
    largest = max(int(sizes.max()) for sizes in group_sizes.values())
    for space, sizes in group_sizes.items():
        needed = num_training_keys(empty_index(widths[space], requested, where=f" ({space})"), requested)
        indexed = sizes[sizes > EXACT_ROWS]
        fewest = int(indexed.min()) if len(indexed) else largest
        if fewest < needed:
            whose = f"a group of {space}" if len(indexed) else "the largest group"
            most = fewest // points_per_cluster()
            raise UsageError(
                f"the factory '{requested}' needs {needed:,} keys to be trained on, but {whose} has {fewest:,}",
                hint=f"choose auto, HNSW32, which needs no training, or fewer clusters: at most {max(most, 1)}",
            )


def empty_index(width: int, factory: str, *, where: str = "") -> faiss.Index:
    """A FAISS index for keys of a width, without any. Raises `UsageError` for a factory string that does not fit it."""
    try:
        return faiss.index_factory(width, factory, faiss.METRIC_L2)
    except RuntimeError as error:
        raise UsageError(
            f"'{factory}' is not a FAISS factory string for keys of {width} numbers{where}: {faiss_message(error)}",
            hint="for example Flat, HNSW32 or IVF1024,SQ8, or auto",
        ) from error


def trained_index(keys: np.ndarray, factory: str) -> faiss.Index:
    """A FAISS index over keys float32 [n, E]. Raises `UsageError` if they are too few to train it."""
    index = empty_index(keys.shape[1], factory)
    if not index.is_trained:
        try:
            index.train(keys)
        except RuntimeError as error:
            message = f"{len(keys):,} keys cannot train a FAISS index '{factory}'"
            raise UsageError(message, hint="choose a smaller one, or --factory auto") from error
    index.add(keys)
    return index


def num_training_keys(index: faiss.Index, factory: str) -> int:
    """Keys that an index needs to be trained well, by FAISS's own measure of points per cluster; 0 without clusters.

    Clusters are the lists of an inverted file, and the codes of a product or residual quantizer (`PQ8x12`: 2^12).
    """
    inverted = faiss.try_extract_index_ivf(index)
    if inverted is not None and inverted.nlist < 1:
        raise UsageError(f"the factory '{factory}' has no lists to put keys into", hint="for example IVF1024,SQ8")
    num_codes = [2 ** int(bits or 8) for bits in re.findall(r"(?:PQ|RQ|LSQ)\d+(?:x(\d+))?", factory)]
    return max([0 if inverted is None else int(inverted.nlist), *num_codes]) * points_per_cluster()


def points_per_cluster() -> int:
    """Keys per cluster below which FAISS warns that its clusters are poor."""
    return int(faiss.ClusteringParameters().min_points_per_centroid)


def faiss_message(error: Exception) -> str:
    """What FAISS means, without the C++ signature and source line that its messages begin with."""
    text = re.sub(r"(?s)^.*\.(cpp|h):\d+: ", "", str(error))
    return " ".join(re.sub(r"(?s)^Error: '.*' failed: ", "", text).split())
