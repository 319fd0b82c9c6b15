"""What keys read of the covariates of stored windows, made once for each distinct origin.

Windows of one origin are encoded in several scopes, and of series that share their covariates once each: what stands
beside them is the same. With P numbers beside a window, R of a key: 2 P R flops and 4 R bytes for each distinct origin.
"""

from __future__ import annotations

import numpy as np

from memory_index.covariate_map import StoredCovariates
from memory_index.encoder import KeyEncoder

HELD_BYTES = 64 << 20  # of one view, at most; else they are made whenever they are asked for
CHUNK = 1024  # origins at once


class KeyNumbers:
    """Of windows of one table under one view. Safe to use from several threads.

    origins: origin rows, per series, of the windows that will be asked for.
    """

    def __init__(
        self, stored: StoredCovariates, encoder: KeyEncoder, view: int, origins: list[np.ndarray] | None = None
    ) -> None:
        self.stored, self.encoder, self.view = stored, encoder, view
        positions = stored.origins if origins is None else stored.positions(origins)
        self.origins = np.unique(positions) if positions is not None else np.empty(0, dtype=np.int64)
        self.held = self._made() if 4 * len(self.origins) * encoder.num_key_numbers(view) <= HELD_BYTES else None

    def of(self, series: np.ndarray, row: np.ndarray) -> np.ndarray:
        """float32 [..., R] of windows with origins at rows of series (int [...] each); see `KeyEncoder.key_numbers`."""
        position = self.stored.first[series] + row
        if self.held is not None and len(self.origins):
            place = np.minimum(np.searchsorted(self.origins, position), len(self.origins) - 1)
            if (self.origins[place] == position).all():
                return self.held[place]
        return self.encoder.key_numbers(self.view, self.stored.windows(series, row, (self.view,)))

    def _made(self) -> np.ndarray:
        found = np.empty((len(self.origins), self.encoder.num_key_numbers(self.view)), dtype=np.float32)
        for start in range(0, len(self.origins), CHUNK):
            rows = self.origins[start : start + CHUNK] - self.stored.first[0]
            beside = self.stored.windows(np.zeros(len(rows), dtype=np.int64), rows, (self.view,))
            found[start : start + CHUNK] = self.encoder.key_numbers(self.view, beside)
        return found
