"""Alternating turns: several actions timed one after the other, again and again, so that noise meets all of them alike.

What is timed is told in the other files; how it is printed in `report.py`.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

Times = dict[str, list[float]]  # seconds of each action in each turn


def in_turns(
    actions: Mapping[str, Callable[[int], Any]],
    num: int,
    *,
    warm: int = 1,
    budget: float = math.inf,
    clock: Callable[[], float] = time.perf_counter,
) -> Times:
    """Time every action once a turn, every other turn backwards.

    actions: called with the number of the turn, counted from 0 through warm and measured ones. warm: turns before
    that, which are not measured. budget: seconds after which no further turn begins; one is always measured. clock:
    wall time, or the processor time of this process.
    """
    times: Times = {name: [] for name in actions}
    began = time.perf_counter()
    for turn in range(warm + num):
        if turn > warm and time.perf_counter() - began > budget:
            break
        for name, action in list(actions.items())[:: -1 if turn % 2 else 1]:
            started = clock()
            action(turn)
            if turn >= warm:
                times[name].append(clock() - started)
    return times


def medians(times: Times) -> dict[str, float]:
    """Median seconds of each action."""
    return {name: statistics.median(each) for name, each in times.items()}


def ratio(times: Times, slow: str, quick: str) -> float:
    """Median over the turns of how many times as long one action took as another."""
    return statistics.median(a / b for a, b in zip(times[slow], times[quick], strict=True))
