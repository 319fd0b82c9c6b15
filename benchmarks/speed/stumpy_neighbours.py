"""Seconds that `stumpy.stump` takes for the nearest windows of a series: run by the Python of the peers' environment.

    .venv-peers/bin/python benchmarks/speed/stumpy_neighbours.py SERIES.npy K WINDOW ...

Prints seconds a window length, without the first call, which compiles.
"""

from __future__ import annotations

import sys
import time

import numpy as np
import stumpy  # type: ignore[import-not-found]


def main() -> None:
    """Measure every window length."""
    values, k = np.load(sys.argv[1]), int(sys.argv[2])
    stumpy.stump(values[:2000], 96, k=k)
    for length in (int(each) for each in sys.argv[3:]):
        started = time.perf_counter()
        stumpy.stump(values, length, k=k)
        print(time.perf_counter() - started, flush=True)


if __name__ == "__main__":
    main()
