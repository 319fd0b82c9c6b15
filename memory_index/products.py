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
    num_blocks = -(-num_rows // BLOCK)
    padded = np.zeros((num_blocks * BLOCK, num_values))
    padded[:num_rows] = rows.reshape(num_rows, num_values)
    weight = np.ascontiguousarray(matrix, dtype=np.float64)
    product = np.matmul(padded.reshape(num_blocks, BLOCK, num_values), weight)
    return product.reshape(num_blocks * BLOCK, width)[:num_rows].reshape(*rows.shape[:-1], width)
