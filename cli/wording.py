"""How times, ages, courses of values and parts of a forecast are written in tables, titles and sentences."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    import numpy as np

LOWEST_BAR, NUM_BARS = 0x2581, 8  # the Unicode blocks from one eighth to a full one
SPARK_WIDTH = 24
BASE_NAMES = {
    "linear": "linear map",
    "last_value": "last value",
    "seasonal_naive": "last season",
    "network": "network",
    "window_mean": "window's mean",
}
IN_SAMPLE = (
    "in sample: training or validation may have used this window, or a fitted part of the version has seen "
    "steps later than its origin"
)


def minute(time: str) -> str:
    """An ISO time for a narrow column: without seconds where they are zero, a space for the T."""
    return re.sub(r"T(\d\d:\d\d)(:00(?![.\d]))?", r" \1", time)


def age(days: float) -> str:
    """How long ago, in the unit that a person would use."""
    if days < 2:
        return f"{days * 24:.0f} h"
    return f"{days:.0f} d" if days < 1000 else f"{days / 365.25:.1f} y"


def sparkline(values: np.ndarray, width: int = SPARK_WIDTH) -> str:
    """Values [n] as a row of at most so many bars, from the lowest to the highest of them."""
    import numpy as np

    means = np.array([part.mean() for part in np.array_split(np.asarray(values), min(width, len(values)))])
    span = means.max() - means.min()
    level = (means - means.min()) / span * (NUM_BARS - 1) if span > 0 else np.full(len(means), NUM_BARS // 2)
    return "".join(chr(LOWEST_BAR + round(each)) for each in level)


def short(name: str, most: int) -> str:
    """A name in at most so many characters, without its middle if it is longer: series end in what tells them apart."""
    half = (most - 2) // 2
    return name if len(name) <= most else f"{name[:half]}..{name[-half:]}"


def no_close_analogue(shares: Iterable[float | None]) -> str:
    """The warning for a window that a memory has seen nothing like. shares: see `memory_index.closeness`."""
    known = sorted(share for share in shares if share is not None)
    share = known[len(known) // 2]
    told = "every one" if share == 1 else f"{int(100 * share)}%"
    return (
        "no close analogue: in most key spaces the nearest neighbour is farther away than it was for "
        f"{told} of the memory's own windows"
    )


def course(values: np.ndarray) -> str:
    """From where to where values [H] go, and how."""
    low, high = float(values.min()), float(values.max())
    return f"{low:.4g}" if len(values) == 1 else f"{low:.4g} to {high:.4g} {sparkline(values)}"
