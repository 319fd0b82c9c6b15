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
EXACT = "Flat"  # every key is compared


def choose_factory(requested: str, sizes: np.ndarray) -> tuple[str, str]:
    """(FAISS factory string, the reason for it) of a key space whose groups have so many keys, int [groups]."""
    largest, total = int(sizes.max()), int(sizes.sum())
    if requested == EXACT:
        return EXACT, "asked for"
    if requested != "auto":
        scanned = f"; groups of up to {largest:,} keys are scanned all the same, which is faster and exact"
        return requested, "asked for" + ("" if gains(largest, total, EXACT_ROWS) else scanned)
    if gains(largest, total, MAX_EXACT_ROWS):
        reason = f"{largest:,} keys in a group: above {MAX_EXACT_ROWS:,} a graph index is faster than an exact scan"
        return AUTO_FACTORY, reason
    if largest <= MAX_EXACT_ROWS:
        reason = f"exact scan: at most {largest:,} keys in a group, and up to {MAX_EXACT_ROWS:,} it is fastest"
        return EXACT, reason
    return (
        EXACT,
        f"exact scan: a group has at most {largest:,} of {total:,} keys, too few for one graph over all of them",
    )


def gains(size: int, total: int, scanned: int) -> bool:
    """Whether a group of `size` keys is searched faster through one index over all `total` keys of a key space.

    Were it an index over the group alone, it would be from `scanned` keys on. Of one over `total / size` times as many
    keys that many more candidates are asked, of which the group has its share, while a scan costs the same.
    """
    return size * size > scanned * total


def check_factory(requested: str, widths: dict[KeySpace, int], group_sizes: dict[KeySpace, np.ndarray]) -> None:
    """Raise `UsageError` for a factory string that FAISS cannot build, or cannot train well, for one of the key spaces.

    widths: of a key. group_sizes: int [groups], keys in each group.
    """
    if requested in ("auto", EXACT):
        return
    for space, sizes in group_sizes.items():
        needed = num_training_keys(empty_index(widths[space], requested, where=f" ({space})"), requested)
        total = int(sizes.sum())
        if total < needed:
            raise UsageError(
                f"the factory '{requested}' needs {needed:,} keys to be trained on, but {space} has {total:,}",
                hint="choose auto, HNSW32, which needs no training, or fewer clusters: "
                f"at most {max(total // points_per_cluster(), 1)}",
            )


def can_train(factory: str, num: int, width: int) -> bool:
    """Whether so many keys are enough for an index that a factory string names."""
    return num > 0 and num >= num_training_keys(empty_index(width, factory), factory)


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
    """A FAISS index over keys float32 [n, E]. Raises `UsageError` if it cannot be trained on them or hold them."""
    index = empty_index(keys.shape[1], factory)
    try:
        if not index.is_trained:
            index.train(keys)
        index.add(keys)
    except RuntimeError as error:
        message = f"a FAISS index '{factory}' cannot be made of {len(keys):,} keys: {faiss_message(error)}"
        raise UsageError(message, hint="choose a smaller one, or --factory auto") from error
    return index


def num_training_keys(index: faiss.Index, factory: str) -> int:
    """Keys that an index needs to be trained well, by FAISS's own measure of points per cluster.

    Clusters are the lists of an inverted file, and the codes of a product or residual quantizer (`PQ8x12`: 2^12). What
    is trained without clusters (a scalar quantizer, PCA) needs as many keys as a key has numbers.
    """
    inverted = faiss.try_extract_index_ivf(index)
    if inverted is not None and inverted.nlist < 1:
        raise UsageError(f"the factory '{factory}' has no lists to put keys into", hint="for example IVF1024,SQ8")
    num_codes = [2 ** int(bits or 8) for bits in re.findall(r"(?:PQ|RQ|LSQ)\d+(?:x(\d+))?", factory)]
    num_clusters = max([0 if inverted is None else int(inverted.nlist), *num_codes])
    return max(num_clusters * points_per_cluster(), 0 if index.is_trained else int(index.d))


def points_per_cluster() -> int:
    """Keys per cluster below which FAISS warns that its clusters are poor."""
    return int(faiss.ClusteringParameters().min_points_per_centroid)


def faiss_message(error: Exception) -> str:
    """What FAISS means, without the C++ signature and source line that its messages begin with."""
    text = re.sub(r"(?s)^.*\.(cpp|h):\d+: ", "", str(error))
    return " ".join(re.sub(r"(?s)^Error: '.*' failed: ", "", text).split())
