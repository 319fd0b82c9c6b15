"""Small tables with everything that is hard in them, the versions built from them, and the queries to ask.

Everything that the tests of the memory import from the package's inner modules comes through here, so that they
have one place to look when a module moves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from memory_index import search
from memory_index.encoder import EncoderConfig
from memory_index.leakage import Policy
from memory_index.local import LocalMemory
from memory_index.neighbours import Neighbours
from memory_index.splits import Split
from memory_index.tables.series import Series, SeriesTable
from memory_index.types import Queries
from memory_index.versions import factories, key_files
from memory_index.versions.append import append
from memory_index.versions.build import build
from memory_index.versions.compact import compact
from memory_index.versions.opening import open_version, plan_of, read_memory
from memory_index.versions.segments import write_segment
from memory_index.versions.store import Store
from memory_index.versions.version import Version
from memory_index.windows import Step, WindowSpec, origin_rows

__all__ = ["append", "compact", "open_version"]  # handed through

HOURLY = Step(frequency="h")
WINDOW = WindowSpec(lookback=36, horizon=8)
ENCODER = EncoderConfig(views=(12, 36))
NUM_STEPS = 360
NUM_TRAINING = 260  # steps that `built` stores
START = np.datetime64("2021-03-01T00:00", "ns")


def wide_table(
    num_steps: int = NUM_STEPS, *, seed: int = 7, step: Step = HOURLY, start: np.datetime64 = START
) -> SeriesTable:
    """Three series that share their times; a longer table begins with the same values as a shorter one.

    load: daily and weekly season, drift, noise. flat: constant stretches between waves. beat: whole numbers that
    repeat every 12 steps, so that most of its windows are there many times over (ties).
    """
    row = np.arange(num_steps)
    noise = np.random.default_rng(seed).normal(size=2000)[:num_steps]
    load = 50 + 10 * np.sin(row * 2 * np.pi / 24) + 4 * np.sin(row * 2 * np.pi / 168) + 0.01 * row + noise
    flat = np.where((row % 140 >= 60) & (row % 140 < 120), -3.0, 5 * np.cos(row * 2 * np.pi / 24))
    beat = np.array([0, 3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5], dtype=np.float64)[row % 12]
    times = step.range(start, num_steps)
    named = {"load": load, "flat": flat, "beat": beat}
    return SeriesTable(
        step=step,
        layout="wide",
        series=tuple(Series(series_id=name, times=times, values=values) for name, values in named.items()),
        source="wide.csv",
    )


def ragged_table(num_steps: int = NUM_STEPS, *, step: Step = HOURLY) -> SeriesTable:
    """A long table: the series begin and end at different times, none of them later than `num_steps`."""
    whole = wide_table(num_steps, step=step)
    spans = [(0, num_steps), (40, num_steps - 17), (15, num_steps - 5)]
    return replace(
        whole,
        layout="long",
        source="long.csv",
        series=tuple(part(s, *span) for s, span in zip(whole.series, spans, strict=True)),
    )


def with_missing(table: SeriesTable, cells: Iterable[tuple[str, int]]) -> SeriesTable:
    """The table with NaN at (series, row), as the reader leaves it under `drop`."""
    cells = list(cells)

    def values(series: Series) -> np.ndarray:
        rows = [row for name, row in cells if name == series.series_id and row < len(series)]
        return np.where(np.isin(np.arange(len(series)), rows), np.nan, series.values)

    return with_values(table, values)


def poisoned(table: SeriesTable, after: np.datetime64, *, seed: int) -> SeriesTable:
    """The table with garbage of every size in place of all values later than a time."""
    random = np.random.default_rng(seed)

    def values(series: Series) -> np.ndarray:
        garbage = random.normal(size=len(series)) * 10.0 ** random.integers(-3, 6, size=len(series))
        return np.where(series.times > after, garbage, series.values)

    return with_values(table, values)


def with_values(table: SeriesTable, values: Callable[[Series], np.ndarray]) -> SeriesTable:
    return replace(table, series=tuple(replace(series, values=values(series)) for series in table.series))


def part(series: Series, start: int, end: int) -> Series:
    return replace(series, times=series.times[start:end], values=series.values[start:end])


def between(table: SeriesTable, start: int, end: int) -> SeriesTable:
    """The same rows of every series."""
    return replace(table, series=tuple(part(series, start, end) for series in table.series))


def known_until(table: SeriesTable, time: np.datetime64) -> SeriesTable:
    """The steps of every series up to a time."""
    return replace(
        table, series=tuple(part(s, 0, int(np.searchsorted(s.times, time, side="right"))) for s in table.series)
    )


def build_until(
    store: Store,
    table: SeriesTable,
    last: np.datetime64,
    *,
    name: str = "small",
    window: WindowSpec = WINDOW,
    encoder: EncoderConfig = ENCODER,
    **options: object,
) -> Version:
    """Build from all steps up to a time."""
    split = Split(name="until", train_until=str(last), val_until=None, test_until=None)
    return build(table, store, name, window=window, split=split, encoder=encoder, **options)  # type: ignore[arg-type]


def built(folder: Path, **options: object) -> Version:
    """The usual version: the first `NUM_TRAINING` steps of the wide table."""
    return build_until(Store(folder), wide_table(), wide_table().series[0].times[NUM_TRAINING - 1], **options)  # type: ignore[arg-type]


def appended(folder: Path, version: Version, *ends: int, table: SeriesTable | None = None) -> Version:
    """The version grown step by step to each number of steps of a table."""
    for end in ends:
        version = append(Store(folder), version.ref, between(table or wide_table(), 0, end))
    return version


def rebuilt_with_same_encoder(folder: Path, memory: LocalMemory, table: SeriesTable) -> LocalMemory:
    """All windows of a table as one segment, encoded by the parts that a memory was fitted with."""
    manifest = memory.manifest
    origins = [origin_rows(series.values, manifest.window) for series in table.series]
    windows = write_segment(folder / "segment-0", table, origins, memory.encoder, plan_of(manifest))
    num_steps = sum(len(series) for series in table.series)
    record = replace(manifest.segments[0], num_rows=len(windows), num_steps=num_steps)
    return read_memory(folder, replace(manifest, segments=(record,)), memory.encoder, threads=1)


def queries_at(
    table: SeriesTable,
    rows: Iterable[int],
    policy: Policy = Policy.CAUSAL,
    *,
    series: Iterable[str] | None = None,
    lookback: int = WINDOW.lookback,
) -> Queries:
    """One query per origin row for series that share their times (or for one series)."""
    chosen = [table[name] for name in (table.series_ids if series is None else series)]
    rows = np.fromiter(rows, dtype=np.int64)
    span = rows[:, None] + np.arange(1 - lookback, 1)
    return Queries(
        context=np.stack([s.values[span] for s in chosen], axis=1).astype(np.float32),
        origin=chosen[0].times[rows],
        series_id=np.array([s.series_id for s in chosen]),
        policy=policy,
    )


def take(queries: Queries, chosen: slice | np.ndarray) -> Queries:
    """Some of the moments."""
    return replace(queries, context=queries.context[chosen], origin=queries.origin[chosen])


def use_indexes(patch: pytest.MonkeyPatch) -> None:
    """Let groups of a few dozen keys have a FAISS index and be searched through it."""
    for module in (search, factories, key_files):
        patch.setattr(module, "EXACT_ROWS", 40)
    patch.setattr(search, "OVERFETCH", 16)


def assert_same(found: Neighbours, expected: Neighbours, *, rows: bool = True) -> None:
    """Bit for bit the same answer and the same forecast."""
    if rows:
        np.testing.assert_array_equal(found.row, expected.row)
    for name in ("distance", "shape_distance", "value_distance", "known_at", "query_location", "query_spread"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name), err_msg=name)
    np.testing.assert_array_equal(found.space_forecasts(), expected.space_forecasts())


def assert_close(found: Neighbours, expected: Neighbours) -> None:
    """The same answer up to the rounding of float32, which may only swap rows at (almost) the same distance."""
    assert found.spaces == expected.spaces
    np.testing.assert_array_equal(found.valid, expected.valid)
    for name in ("distance", "shape_distance", "value_distance"):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), rtol=1e-4, atol=2e-3, err_msg=name)
    np.testing.assert_array_equal(found.query_location, expected.query_location)
    np.testing.assert_array_equal(found.query_spread, expected.query_spread)
    other = found.row != expected.row
    assert other.mean() < 0.01, f"{other.sum()} of {other.size} rows differ"
    np.testing.assert_allclose(found.distance[other], expected.distance[other], rtol=1e-5)
