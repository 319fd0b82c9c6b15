"""A seeded table like a retailer's: tens of thousands of daily series of counts, as a long Parquet file.

    python -m benchmarks.retail retail.parquet                     # 30,490 series, 59,181,090 rows
    python -m benchmarks.retail small.parquet --series 1000 --days 400
    python -m benchmarks.retail next.parquet --days 1942 --first-day 1941   # one more day, to append

Every series sells in whole units: a level of its own, from less than one a week to some hundred a day, a weekly season
whose strength differs, a yearly one, weeks of promotion, stretches without stock, and a negative binomial spread, so
that many days have none. Items come into the range at random days; a row before that is there and empty, as in the
melted grids that retailers publish (the M5 competition's has as many series and days). The rows of a day do not depend
on how many days are asked for, nor those of a series on how many series.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

NUM_SERIES, NUM_DAYS = 30_490, 1_941  # of the M5 competition
LONGEST = 4_096  # days that are drawn at a time, whatever is asked for
START = np.datetime64("2011-01-29", "ns")
SERIES_AT_ONCE = 500
SHARE_LATE = 0.6  # of series that come into the range after the first day
SEED = 20261130


def sales(number: int, num_days: int, *, seed: int = SEED) -> np.ndarray:
    """Units sold of one series, float64 [num_days]; NaN before it came into the range."""
    random = np.random.default_rng((seed, number))
    day = np.arange(LONGEST)
    level = np.exp(random.normal(0.0, 1.4))
    strength, peak = random.uniform(0.0, 0.6), random.integers(0, 7)
    week = 1 + strength * np.cos(2 * np.pi * (day - peak) / 7)
    year = 1 + random.uniform(0.0, 0.4) * np.cos(2 * np.pi * (day - random.integers(0, 365)) / 365.25)
    drift = np.exp(np.cumsum(random.normal(0, 0.01, LONGEST)))
    promoted = np.repeat(random.random(LONGEST // 7 + 1) < 0.06, 7)[:LONGEST]
    in_stock = np.repeat(random.random(LONGEST // 8 + 1) > 0.03, 8)[:LONGEST]
    mean = level * week * year * drift * np.where(promoted, random.uniform(1.5, 3.0), 1.0)
    spread = random.uniform(0.5, 4.0)
    units = random.negative_binomial(spread, spread / (spread + mean)) * in_stock
    launched = int(random.integers(1, NUM_DAYS)) if random.random() < SHARE_LATE else 0
    return np.where(day < launched, np.nan, units)[:num_days]


def write_retail(
    path: Path, *, num_series: int = NUM_SERIES, num_days: int = NUM_DAYS, first_day: int = 0, seed: int = SEED
) -> int:
    """Write the table, series after series; returns its number of rows."""
    times = START + np.arange(first_day, num_days) * np.timedelta64(1, "D")
    schema = pa.schema([("unique_id", pa.dictionary(pa.int32(), pa.string())), ("ds", pa.timestamp("us")), ("y", "f8")])
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for first in range(0, num_series, SERIES_AT_ONCE):
            numbers = range(first, min(first + SERIES_AT_ONCE, num_series))
            names = pa.array([f"item{number:05d}" for number in numbers])
            places = pa.array(np.repeat(np.arange(len(numbers), dtype=np.int32), len(times)))
            units = np.concatenate([sales(number, num_days, seed=seed)[first_day:] for number in numbers])
            columns = [
                pa.DictionaryArray.from_arrays(places, names),
                pa.array(np.tile(times, len(numbers)).astype("datetime64[us]")),
                pa.array(units, from_pandas=True),
            ]
            writer.write_table(pa.table(columns, schema=schema))
    return num_series * len(times)


def main() -> None:
    """Write a file, and say how large it is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--series", type=int, default=NUM_SERIES)
    parser.add_argument("--days", type=int, default=NUM_DAYS)
    parser.add_argument("--first-day", type=int, default=0, help="leave out the days before")
    parser.add_argument("--seed", type=int, default=SEED)
    asked = parser.parse_args()
    num_rows = write_retail(
        asked.file, num_series=asked.series, num_days=asked.days, first_day=asked.first_day, seed=asked.seed
    )
    print(f"{asked.file}: {num_rows:,} rows, {asked.file.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
