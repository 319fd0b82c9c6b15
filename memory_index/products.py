"""Matrix products whose result for one row does not depend on what else is in the batch, bit for bit."""

from __future__ import annotations

import math

import numpy as np

BLOCK = 64  # rows of every matrix product


def project(rows: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """rows [..., A] @ matrix [A, E] -> float64 [..., E], in blocks of one fixed shape; no rows give no rows.

    A matrix product picks its kernel, and with it the order of its sums, by the shape of its operands: the
    same window would get a slightly different key alone and in a batch. Padding to whole blocks of `BLOCK`
    rows costs microseconds and makes results independent of batching.
    """
    num_values, width = matrix.shape
    num_rows = math.prod(rows.shape[:-1])
    whole = num_rows // BLOCK * BLOCK
    flat = np.ascontiguousarray(rows.reshape(num_rows, num_values), dtype=np.float64)
    weight = np.ascontiguousarray(matrix, dtype=np.float64)
    result = np.empty((num_rows, width))
    if whole:
        of_blocks = result[:whole].reshape(-1, BLOCK, width)
        np.matmul(flat[:whole].reshape(-1, BLOCK, num_values), weight, out=of_blocks)
    if whole < num_rows:
        last = np.zeros((BLOCK, num_values))
        last[: num_rows - whole] = flat[whole:]
        result[whole:] = (last @ weight)[: num_rows - whole]
    return result.reshape(*rows.shape[:-1], width)
