"""Large self-similar tables from a seed: what a memory of a million windows is measured on.

Windows of one series that begin a step apart are nearly equal and crowd together, which is what makes real
histories hard for approximate indexes; independent random vectors would flatter them.
"""

from __future__ import annotations

import numpy as np

from memory_index.tables.series import Series, SeriesTable
from memory_index.windows import Step

SEED = 20261123


def self_similar_table(num_series: int, num_steps: int, *, seed: int = SEED) -> SeriesTable:
    """Hourly series with daily and weekly seasons of drifting strength, a wandering level, bursts and noise."""
    random = np.random.default_rng(seed)
    hour = np.arange(num_steps)
    times = Step(frequency="h").range(np.datetime64("2000-01-01", "ns"), num_steps)
    series = []
    for number in range(num_series):
        drift = np.exp(0.3 * np.cumsum(random.normal(0, 0.01, (2, num_steps)), axis=1))
        phase = random.uniform(0, 24)
        day = np.sin(2 * np.pi * (hour + phase) / 24) + random.uniform(0.2, 0.8) * np.sin(
            4 * np.pi * (hour + phase) / 24
        )
        week = np.where((hour // 24) % 7 >= 5, -random.uniform(0.3, 1.0), 0.0)
        level = np.cumsum(random.normal(0, 0.05, num_steps))
        bursts = np.convolve(random.random(num_steps) < 0.004, np.exp(-np.arange(24) / 6), mode="same") * random.normal(
            1.5, 0.5
        )
        noise = random.normal(0, 0.25, num_steps)
        values = 10 + day * drift[0] + week * drift[1] + 0.3 * level + bursts + noise
        series.append(Series(series_id=f"s{number}", times=times, values=values))
    return SeriesTable(step=Step(frequency="h"), layout="wide", series=tuple(series), source=f"synthetic, seed {seed}")
