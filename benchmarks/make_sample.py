"""Make the sample tables of datasets/: a small, made-up power grid, the same bytes every time.

`sample.csv`: five hourly variates over 300 days: two feeders, solar and wind power, and a price. They have daily and
weekly seasons, a level that drifts (so that a window has to be read relative to its own level) and three kinds of rare
events that come back: each announces itself for a day and then takes its own course for four. What follows an
announcement can be known from the last time, and from nothing inside the lookback but the announcement itself.

`demand.csv`: the hourly demand of a town over 600 days, beside the temperature and the public holidays that drive it:
heating below 18 degrees, cooling above 24, and no work on a holiday, as on a Sunday. The weather changes within days,
so that tomorrow's says more than today's.

`tomorrow.csv`: temperature and holiday of the day after `demand.csv`, which is a holiday, as a table of the future.

    python benchmarks/make_sample.py [FOLDER]
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
DATASETS = Path(__file__).resolve().parent.parent / "datasets"
NUM_DAYS = 600  # of demand
FIRST_DAY = np.datetime64("2022-09-09")
# Public holidays of Bavaria on the days of `demand.csv` and the day after, Sundays left out.
HOLIDAYS = np.array(
    ["2022-10-03", "2022-11-01", "2022-12-26", "2023-01-06", "2023-04-07", "2023-04-10", "2023-05-01", "2023-05-18",
     "2023-05-29", "2023-06-08", "2023-10-03", "2023-11-01", "2023-12-25", "2023-12-26", "2024-01-01", "2024-01-06",
     "2024-03-29", "2024-04-01", "2024-05-01"],
    dtype="datetime64[D]",
)  # fmt: skip
HEATING_BELOW, COOLING_ABOVE = 18.0, 24.0  # degrees Celsius


def random_walk(generator: np.random.Generator, *, memory: float, size: float, num: int = NUM_STEPS) -> np.ndarray:
    """An autoregressive sequence of order one, float64 [num]; `size` is the spread of one step."""
    noise = generator.normal(0.0, size, num)
    walk = np.empty(num)
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
    """The whole of `sample.csv` as text."""
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

    return written(START, dict(zip(COLUMNS, (north, south, solar, wind, price), strict=True)))


def make_demand() -> tuple[str, str]:
    """The whole of `demand.csv` and of `tomorrow.csv` as text."""
    generator = np.random.default_rng(SEED + 1)
    num = (NUM_DAYS + 1) * 24
    hour, day = np.arange(num) % 24, np.arange(num) // 24
    date = FIRST_DAY + day
    holiday, weekday = np.isin(date, HOLIDAYS), (date.astype(np.int64) + 3) % 7  # 1970-01-01 was a Thursday: 3

    season = 9.5 * np.sin(2 * np.pi * (day + 135) / 365)  # coldest at the end of January
    temperature = 9.5 + season + 3.5 * np.sin(2 * np.pi * (hour - 9) / 24)
    weather = random_walk(generator, memory=0.985, size=0.8, num=num)
    temperature += np.convolve(weather, np.ones(5) / 5, mode="same")
    temperature = np.round(temperature, 1)
    felt = 0.5 * temperature + 0.5 * np.concatenate([np.repeat(temperature[0], 6), temperature[:-6]])  # walls are slow
    heating, cooling = np.clip(HEATING_BELOW - felt, 0, None), np.clip(felt - COOLING_ABOVE, 0, None)
    noise = random_walk(generator, memory=0.85, size=0.7, num=num)

    morning = np.exp(-((hour - np.where(weekday < 5, 8, 9.5)) ** 2) / 6)  # when people get up
    evening = np.exp(-((hour - 19) ** 2) / 8)
    work = 14 * np.where(holiday, 0.0, np.array([1, 1, 1, 1, 1, 0.4, 0])[weekday])  # offices and shops
    demand = 40 + 14 * morning + 15 * evening + work + 1.5 * heating + 1.2 * cooling + noise

    known = {"temperature": temperature, "holiday": holiday}
    past = {name: values[:-24] for name, values in ({"demand": demand} | known).items()}
    ahead = {name: values[-24:] for name, values in known.items()}
    return written(FIRST_DAY, past), written(FIRST_DAY + NUM_DAYS, ahead)


def written(first: np.datetime64, columns: dict[str, np.ndarray]) -> str:
    """A wide table of hours as text: truth values as words, temperatures with one decimal, all else with two."""
    times = first.astype("datetime64[m]") + np.arange(len(next(iter(columns.values())))) * np.timedelta64(1, "h")
    cells = [[str(time).replace("T", " ") for time in times]]
    for name, values in columns.items():
        form = ".1f" if name == "temperature" else ".2f"
        plain = [str(value).lower() for value in values] if values.dtype == bool else []
        cells.append(plain or [f"{value + 0.0:{form}}" for value in values])
    rows = [",".join(row) for row in zip(*cells, strict=True)]
    return "\n".join([",".join(["date", *columns]), *rows]) + "\n"


def main(folder: Path) -> None:
    """Write all three."""
    demand, tomorrow = make_demand()
    for name, text in (("sample.csv", make()), ("demand.csv", demand), ("tomorrow.csv", tomorrow)):
        (folder / name).write_text(text, encoding="utf-8", newline="\n")
        print(f"{folder / name}: {(folder / name).stat().st_size} bytes")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else DATASETS)
