"""Quantiles: as wide as is expected of a window, calibrated so that they cover what they say, and never crossing."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from forecaster_fixtures import TABLE, K, memory_of
from hypothesis import given
from hypothesis import strategies as st
from memory_fixtures import Policy, queries_at

from forecaster.errors import RunDamagedError, RunNotFoundError
from forecaster.retrieval.neighbours import condense
from forecaster.runs.intervals import (
    FILE,
    FLOOR,
    LEAST_PRIOR,
    LEVELS,
    NO_NEIGHBOUR,
    Intervals,
    expected_width,
    neighbour_scale,
    prior_windows,
    read_intervals,
    series_factors,
)
from forecaster.runs.intervals import calibrate as calibrate_series
from forecaster.runs.intervals import write_intervals as write
from memory_index.errors import UsageError


def errors(num: int, steps: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_t(4, size=(num, steps)).astype(np.float32)


def calibrate(made: np.ndarray) -> Intervals:
    """Of one series."""
    return calibrate_series(made, np.zeros(len(made), dtype=np.int64), ["a"], prior=made.shape[1])


@pytest.mark.parametrize("num", [1, 7, 99, 399, 1000])
def test_the_rank_of_each_level_is_the_conformal_one(num):
    found, ordered = calibrate(errors(num, 3)), np.sort(errors(num, 3), axis=0)
    assert found.num == num
    for level, residual in zip(LEVELS, found.residual, strict=True):
        exact = Fraction(f"{level:.3f}") * (num + 1)
        rank = min(max(math.floor(exact) if level < 0.5 else math.ceil(exact), 1), num)
        np.testing.assert_array_equal(residual, ordered[rank - 1], err_msg=f"{level:g}")


@pytest.mark.parametrize("level", [0.05, 0.1, 0.5, 0.9, 0.95])
def test_exchangeable_errors_are_covered_as_promised(level):
    """Every column is a trial of its own: 60 errors calibrate, and a 61st falls below the quantile, or does not."""
    drawn = errors(61, 6000)
    found = calibrate(drawn[:60])
    quantile = found.quantiles(np.zeros((1, 6000)), np.ones((1, 6000)), ["a"], (level,))[0, :, 0]
    covered = (drawn[60] <= quantile).mean()
    rank = math.floor(level * 61) if level < 0.5 else math.ceil(level * 61)
    assert covered == pytest.approx(rank / 61, abs=4 * math.sqrt(level * (1 - level) / 6000))


@given(
    levels=st.lists(st.floats(LEVELS[0], LEVELS[-1]), min_size=2, max_size=9),
    num=st.integers(1, 50),
    seed=st.integers(0, 9),
)
def test_quantiles_never_cross(levels, num, seed):
    rng = np.random.default_rng(seed)
    made = calibrate(errors(num, 4, seed)).quantiles(
        rng.normal(size=(5, 4)), rng.uniform(0.2, 3, (5, 4)), ["a"] * 5, tuple(sorted(levels))
    )
    assert made.shape == (5, 4, len(levels))
    assert made.dtype == np.float32
    assert (np.diff(made, axis=2) >= 0).all()


def test_errors_come_back_in_widths_and_factors():
    residual = np.stack([np.linspace(-3, 3, len(LEVELS)), np.linspace(-1, 2, len(LEVELS))], axis=1)
    found = Intervals(residual=residual.astype(np.float32), factors={"a": 2.5}, num=9)
    forecast, width = np.array([[10.0, 20.0], [-5.0, 0.0]]), np.array([[1.0, 3.0], [4.0, 0.2]])
    between = (0.1 + 0.11) / 2
    made = found.quantiles(forecast, width, ["a", "unseen"], (0.1, between))
    for n, h in np.ndindex(2, 2):
        low, high = residual[list(LEVELS).index(0.1), h], residual[list(LEVELS).index(0.11), h]
        expected = [forecast[n, h] + (2.5, 1)[n] * width[n, h] * at for at in (low, (low + high) / 2)]
        np.testing.assert_allclose(made[n, h], expected, rtol=1e-5)


def test_no_level_is_no_column():
    assert calibrate(errors(5, 2)).quantiles(np.zeros((3, 2)), np.ones((3, 2)), ["a"] * 3, ()).shape == (3, 2, 0)


@pytest.mark.parametrize("level", [0, 0.004, 0.9951, 1, -0.1, 7, math.nan])
def test_a_level_that_is_not_kept_is_refused(level):
    with pytest.raises(UsageError, match="cannot be calibrated"):
        calibrate(errors(5, 2)).quantiles(np.zeros((1, 2)), np.ones((1, 2)), ["a"], (0.5, level))


# A series' own part


def test_a_series_that_errs_more_gets_wider_intervals():
    """Two series of the same errors but for their size: each is covered as promised, as if it were alone."""
    num, size = 4000, np.array([1.0, 9.0])
    series = np.tile([0, 1], num // 2)
    drawn = errors(num, 3) * size[series, None]
    found = calibrate_series(drawn, series, ["calm", "wild"], prior=20)
    assert found.factors["wild"] / found.factors["calm"] == pytest.approx(9, rel=0.1)
    low, high = np.moveaxis(found.quantiles(np.zeros((2, 3)), np.ones((2, 3)), ["calm", "wild"], (0.1, 0.9)), -1, 0)
    for number in (0, 1):
        mine = drawn[series == number]
        assert ((mine >= low[number]) & (mine <= high[number])).mean() == pytest.approx(0.8, abs=0.03)


def test_a_lucky_window_is_not_trusted():
    sizes, series = np.array([0.0, *[2.0] * 99]), np.array([0, *[1] * 99])
    np.testing.assert_allclose(series_factors(sizes, series, 3, prior=24), [24 / 25, 1, 1])
    np.testing.assert_array_equal(series_factors(np.zeros(4), np.array([0, 0, 1, 1]), 2, prior=3), [1, 1])
    assert prior_windows(96, 0.5) == 48
    assert prior_windows(1, 1) == LEAST_PRIOR


def test_one_broken_series_does_not_change_the_others():
    sizes, series = np.tile([0.5, 1.0, 1.0, 2.0, 1e6], 1000), np.tile(np.arange(5), 1000)
    found = series_factors(sizes, series, 5, prior=20)
    np.testing.assert_allclose(found[:4], [0.5, 1, 1, 2], rtol=0.03)
    assert found[4] > 1e5


# The neighbours' part


def test_the_scale_is_the_weighted_deviation_of_what_followed(tmp_path):
    memory = memory_of(tmp_path)
    spaces = memory.manifest.key_spaces
    condensed = condense(memory.search(queries_at(TABLE, [40, 44, 47, 300, 330, 410], Policy.CAUSAL), K), spaces)
    windows, horizon = memory.windows, 6
    found = neighbour_scale(condensed, windows, spaces, num=18, horizon=horizon)
    counts = set()
    for n, (rows, numbers, logits) in enumerate(zip(condensed.row, condensed.space, condensed.logit, strict=True)):
        used = rows >= 0
        counts.add(int(used.sum()))
        if not used.any():
            np.testing.assert_allclose(found[n], [NO_NEIGHBOUR] * horizon)
            continue
        futures = []
        for row, space in zip(rows[used], numbers[used], strict=True):
            view = windows.views.index(spaces[space].view)
            origin = windows.offset[windows.series[row]] + windows.origin_row[row]
            future = windows.values[origin + 1 : origin + 1 + horizon].astype(np.float64)
            futures.append((future - windows.location[row, view]) / windows.spread[row, view])
        weight = np.exp(logits[used].astype(np.float64) - logits[used].max())
        mean = np.average(futures, axis=0, weights=weight)
        variance = np.average((np.array(futures) - mean) ** 2, axis=0, weights=weight)
        np.testing.assert_allclose(found[n], np.sqrt(variance + FLOOR**2), rtol=1e-3)
    assert 0 in counts, "no window was without neighbours"
    assert len(counts) > 1, "no window had some neighbours"
    assert np.isfinite(found).all()


def test_without_a_memory_every_scale_is_the_same(tmp_path):
    memory = memory_of(tmp_path)
    found = neighbour_scale(None, memory.windows, (), num=4, horizon=3)
    np.testing.assert_array_equal(found, np.full((4, 3), np.float32(NO_NEIGHBOUR)))
    spread, unit = np.array([1.0, 2.0, 3.0, 1e30], np.float32), np.array([4.0, 2.0, 0.5, 1e30], np.float32)
    width = expected_width(None, memory.windows, (), spread=spread, unit=unit, horizon=3)
    expected = np.sqrt(NO_NEIGHBOUR * np.array([1.0 * 4, 2 * 2, 3 * 3, 1e60]))  # a larger spread than usual stays
    np.testing.assert_allclose(width, expected[:, None].repeat(3, axis=1), rtol=1e-6)
    assert width.dtype == np.float32


# In a run folder


def test_they_come_back_as_they_were_written(tmp_path):
    before = calibrate_series(errors(40, 5), np.arange(40) % 3, ["a", "b", "s\u00fcd"], prior=5)
    write(tmp_path, before)
    after = read_intervals(tmp_path)
    np.testing.assert_array_equal(after.residual, before.residual, strict=True)
    assert (after.num, after.factors) == (before.num, before.factors)


def test_a_run_that_has_not_ended_has_none(tmp_path):
    with pytest.raises(RunNotFoundError, match="not trained to its end"):
        read_intervals(tmp_path)


def test_a_damaged_file_is_named(tmp_path):
    write(tmp_path, calibrate(errors(40, 5)))
    content = (tmp_path / FILE).read_bytes()
    flipped = bytes([*content[:-1], content[-1] ^ 1])
    for damaged in (flipped, content[:100], b"", b"{" * 200):
        (tmp_path / FILE).write_bytes(damaged)
        with pytest.raises(RunDamagedError, match=FILE):
            read_intervals(tmp_path)
