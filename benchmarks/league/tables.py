"""The tables of the league, made from public sets: full and cut short, hourly to weekly, single, joint and in panels.

Half of them decide, chosen before the first run; the others only report.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd

Role = Literal["decides", "reports"]
M4_START = "2020-01-01"  # M4 has no dates: ends are aligned, steps are hours


class Entry(NamedTuple):
    """A table and how it is used. season: steps, of the naive forecast and of scaled errors. num_test: last rows of
    each series that are the test part, None for 20%: rows before are split 7 to 1 into training and validation.
    test_stride: steps between two scored origins; 0 scores the last window of each series only, with a memory that
    has grown until then.
    """

    name: str
    role: Role
    make: Callable[[Path], pd.DataFrame]
    lookback: int
    horizon: int
    season: int
    test_stride: int = 1
    num_test: int | None = None

    @property
    def slug(self) -> str:
        """Of its files."""
        return self.name.lower().replace(",", "").replace(" ", "-")


def _wide(path: Path, rows: slice = slice(None), columns: list[str] | None = None, every: str = "") -> pd.DataFrame:
    """A wide table as a long one; every: mean over stretches of this pandas frequency, whole ones only."""
    frame = pd.read_csv(path, skipinitialspace=True)
    frame.insert(0, "ds", pd.to_datetime(frame.pop(frame.columns[0])))
    frame = (frame if columns is None else frame[["ds", *columns]]).iloc[rows]
    if every:
        frame = frame.set_index("ds").resample(every).mean().iloc[1:-1].reset_index()
    return frame.melt("ds", var_name="unique_id", value_name="y")[["unique_id", "ds", "y"]]


def m4(folder: Path, last: int | None = None, num_series: int | None = None) -> pd.DataFrame:
    """M4 hourly, training and test rows end to end; ends are aligned. last: steps to keep of each series."""
    train, test = (pd.read_csv(folder / "m4" / f"Hourly-{part}.csv").set_index("V1") for part in ("train", "test"))
    times = pd.date_range(M4_START, periods=train.shape[1] + test.shape[1], freq="h")
    frames = []
    for name in train.index[:num_series]:
        values = np.concatenate([train.loc[name].dropna().to_numpy(float), test.loc[name].dropna().to_numpy(float)])
        values = values[-(last or 0) :]
        frames.append(pd.DataFrame({"unique_id": name, "ds": times[len(times) - len(values) :], "y": values}))
    return pd.concat(frames, ignore_index=True)


def _ett(name: str, rows: slice = slice(None), every: str = "") -> Callable[[Path], pd.DataFrame]:
    return lambda folder: _wide(folder / "ETT-small" / f"{name}.csv", rows, every=every)


TABLES = (
    Entry("ETTh1, 3,000 rows", "decides", _ett("ETTh1", slice(3000)), 96, 24, 24),
    Entry("ETTh2 by days", "decides", _ett("ETTh2", every="D"), 56, 14, 7),
    Entry(
        "exchange by weeks",
        "decides",
        lambda folder: _wide(folder / "exchange_rate" / "exchange_rate.csv", every="W"),
        104,
        24,
        1,
    ),
    Entry("M4 hourly, 168 steps", "decides", lambda folder: m4(folder, 168), 48, 24, 24, 0, 24),
    Entry("M4 hourly, 40 steps", "decides", lambda folder: m4(folder, 46), 12, 6, 1, 0, 6),
    Entry(
        "DE price, 3,000 rows",
        "decides",
        lambda folder: _wide(folder / "epf" / "DE.csv", slice(3000), ["Price"]),
        168,
        24,
        24,
    ),
    Entry("M4 hourly", "reports", m4, 168, 48, 24, 0, 48),
    Entry("ETTh1 by days", "reports", _ett("ETTh1", every="D"), 56, 14, 7),
    Entry("ETTh2, 3,000 rows", "reports", _ett("ETTh2", slice(3000)), 96, 24, 24),
    Entry(
        "exchange, 1,200 days",
        "reports",
        lambda folder: _wide(folder / "exchange_rate" / "exchange_rate.csv", slice(1200)),
        96,
        24,
        1,
    ),
    Entry(
        "demand by days",
        "reports",
        lambda folder: _wide(folder / "vic_elec" / "vic_elec.csv", columns=["demand"], every="D"),
        56,
        14,
        7,
    ),
    Entry(
        "NP price by days",
        "reports",
        lambda folder: _wide(folder / "epf" / "NP.csv", columns=["Price"], every="D"),
        56,
        14,
        7,
    ),
    Entry("M4 hourly, 96 steps", "reports", lambda folder: m4(folder, 96), 24, 12, 24, 0, 12),
    Entry(
        "60 rows",
        "reports",
        lambda folder: _wide(folder / "ETT-small" / "ETTh1.csv", slice(24 * 60), ["OT"], every="D"),
        14,
        7,
        7,
    ),
    Entry(
        "300 rows",
        "reports",
        lambda folder: _wide(folder / "epf" / "NP.csv", slice(24 * 302), ["Price"], every="D"),
        28,
        7,
        7,
    ),
)
