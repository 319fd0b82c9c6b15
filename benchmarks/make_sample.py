"""Make datasets/sample.csv: a small, made-up power grid, the same bytes every time.

Five hourly variates over 300 days: two feeders, solar and wind power, and a price. They have daily and weekly
seasons, a level that drifts (so that a window has to be read relative to its own level) and three kinds of rare
events that come back: each announces itself for a day and then takes its own course for four. What follows an
announcement can be known from the last time, and from nothing inside the lookback but the announcement itself.

    python benchmarks/make_sample.py [FILE]
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

SEED = 20240101
NUM_STEPS = 300 * 24
START = np.datetime64("2024-01-01T00:00", "m")
COLUMNS = ("feeder_north", "feeder_south", "solar", "wind", "price")
ANNOUNCEMENT, COURSE = 24, 96  # steps
TARGET = Path(__file__).resolve().parent.parent / "datasets" / "sample.csv"


def random_walk(generator: np.random.Generator, *, memory: float, size: float) -> np.ndarray:
    """An autoregressive sequence of order one, float64 [NUM_STEPS]; `size` is the spread of one step."""
    noise = generator.normal(0.0, size, NUM_STEPS)
    walk = np.empty(NUM_STEPS)
    level = 0.0
    for step, shock in enumerate(noise):
        level = memory * level + shock
        walk[step] = level
    return walk


def events(generator: np.random.Generator) -> np.ndarray:
    """float64 [3, NUM_STEPS]: cold spells, outages and storms, in units of their own height, one at a time."""
    announced, unfolding = np.arange(ANNOUNCEMENT), np.arange(COURSE)
    shapes = (
        (
            0.35 * np.sin(np.pi * announced / 12) ** 2,
            np.sin(np.pi * unfolding / COURSE) * (1 + 0.4 * np.cos(unfolding / 6)),
        ),
        (-0.3 * (announced >= 18), np.where(unfolding < 30, -1.0, 0.8 * np.exp(-(unfolding - 30) / 14))),
        (0.3 * announced / ANNOUNCEMENT, np.cos(unfolding / 7) * np.exp(-unfolding / 60)),
    )
    courses = np.zeros((len(shapes), NUM_STEPS))
    step = 150
    while step + ANNOUNCEMENT + COURSE < NUM_STEPS:
        kind = int(generator.integers(len(shapes)))
        course = np.concatenate(shapes[kind]) * generator.uniform(0.85, 1.15)
        courses[kind, step : step + len(course)] = course
        step += len(course) + int(generator.integers(24, 200))
    return courses


def make() -> str:
    """The whole file as text."""
    generator = np.random.default_rng(SEED)
    hour, day = np.arange(NUM_STEPS) % 24, np.arange(NUM_STEPS) // 24
    weekend = ~np.is_busday(START.astype("datetime64[D]") + day)
    cold, outage, storm = events(generator)
    drift = 6 * np.sin(2 * np.pi * day / 300) + random_walk(generator, memory=0.9995, size=0.12)
    daily = np.where(hour < 6, 0.0, np.sin(np.pi * (hour - 6) / 18)) + 0.35 * np.exp(-((hour - 19) ** 2) / 6)
    work = np.where(weekend, 0.6, 1.0)
    cloud = np.clip(0.75 + random_walk(generator, memory=0.97, size=0.05), 0.15, 1.0)
    noise = [random_walk(generator, memory=0.8, size=size) for size in (0.5, 0.4, 0.3, 1.0, 0.8)]

    north = 50 + drift + 16 * daily * work + 14 * cold + 18 * outage + noise[0]
    south = 35 + 0.6 * drift + 11 * daily * work + 9 * cold - 6 * outage + noise[1]
    light = np.clip(np.sin(np.pi * (hour - 6) / 13), 0, None) * (hour < 19)
    solar = np.clip(light * (20 + 6 * np.sin(2 * np.pi * (day - 80) / 365)) * cloud + noise[2] * (light > 0), 0, None)
    wind = np.clip(18 + random_walk(generator, memory=0.98, size=0.9) + 12 * storm + noise[3], 0, None)
    price = 40 + 0.9 * (north + south - 85) - 0.7 * (solar + wind - 25) + 0.5 * drift + noise[4]

    lines = ["date," + ",".join(COLUMNS)]
    for step, row in enumerate(zip(north, south, solar, wind, price, strict=True)):
        moment = str(START + np.timedelta64(step, "h")).replace("T", " ")
        lines.append(moment + "," + ",".join(f"{value + 0.0:.2f}" for value in row))
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else TARGET
    target.write_text(make(), encoding="utf-8", newline="\n")
    print(f"{target}: {target.stat().st_size} bytes")
