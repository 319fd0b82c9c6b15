"""Quantiles of a memory alone: as far apart as its own windows say that they should lie, and told by no later one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from memory_fixtures import (
    ENCODER,
    WINDOW,
    Policy,
    Store,
    append,
    build,
    open_version,
    part,
    poisoned,
    queries_at,
    wide_table,
)

from memory_index.calibration import LEAST_SAMPLE, STRETCHES, UsualErrors, stretched, usual_errors
from memory_index.memory_only import MemoryOptions, evaluate, forecast
from memory_index.splits import Split

TABLE = wide_table(420)
TIMES = TABLE.times
SPLIT = Split(name="rows", train_until=str(TIMES[259]), val_until=str(TIMES[309]), test_until=str(TIMES[-1]))
K = 12


def make(folder, table=TABLE, **options):
    return build(table, Store(folder), "m", window=WINDOW, split=SPLIT, encoder=ENCODER, **options)


def errors(best: int, num: int = 4 * LEAST_SAMPLE) -> UsualErrors:
    loss = np.abs(np.arange(len(STRETCHES)) - best)[None] + np.zeros((num, 1))
    return UsualErrors(known_at=TIMES[:num], loss=loss)


@pytest.mark.parametrize("best", [0, 3, STRETCHES.index(1.0), len(STRETCHES) - 1])
def test_the_stretch_of_least_loss_is_taken_where_enough_windows_tell(best):
    found = errors(best)
    assert found.stretch(TIMES[-1:]) == STRETCHES[best]
    assert found.stretch(TIMES[[2 * LEAST_SAMPLE - 3]]) == 1.0
    assert found.stretch(TIMES[[2 * LEAST_SAMPLE - 1]]) == STRETCHES[best]


def test_the_later_half_of_what_is_known_tells():
    num = 4 * LEAST_SAMPLE
    loss = np.where(np.arange(num)[:, None] < num // 2, errors(0).loss, errors(5).loss)
    found = UsualErrors(known_at=TIMES[:num], loss=loss)
    assert found.stretch(TIMES[[num // 2 - 1, num - 1]]).tolist() == [STRETCHES[0], STRETCHES[5]]


def test_quantiles_keep_their_order_and_their_center():
    quantiles, center = np.array([[[[1.0, 2.0, 5.0]]]]), np.array([[[2.0]]])
    np.testing.assert_allclose(stretched(quantiles, center, np.array([2.0])), [[[[0.0, 2.0, 8.0]]]])
    np.testing.assert_allclose(stretched(quantiles, center, np.array([1.0])), quantiles)


@pytest.mark.parametrize("scopes", [None, ("own", "pooled")])
def test_a_forecast_is_the_memorys_fan_stretched(tmp_path, scopes):
    memory = open_version(make(tmp_path, scopes=scopes), threads=1)
    usual = usual_errors(memory, K)
    assert len(usual.known_at) >= LEAST_SAMPLE
    assert (np.diff(usual.known_at) >= np.timedelta64(0)).all()
    table = forecast(memory, TABLE, quantiles=(0.1, 0.9), options=MemoryOptions(k=K))
    found = memory.search(queries_at(TABLE, [len(TIMES) - 1], Policy.CAUSAL), K)
    center, raw = found.forecast()[0], found.quantiles((0.1, 0.9))[0]
    expected = center[..., None] + usual.stretch(TIMES[-1:]) * (raw - center[..., None])
    np.testing.assert_allclose(table[["q0.1", "q0.9"]].to_numpy(), expected.reshape(-1, 2), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(table["yhat"], center.ravel(), rtol=1e-6, atol=1e-6)


def test_what_is_evaluated_is_what_is_forecast(tmp_path):
    """As of each origin, whatever is known later."""
    make(tmp_path)
    memory, kept = open_version(append(Store(tmp_path), "m", TABLE), threads=1), []
    evaluate(memory, TABLE, options=MemoryOptions(k=K), levels=(0.1, 0.9), each=kept.append)
    at = 370
    until = replace(TABLE, series=tuple(part(each, 0, at + 1) for each in TABLE.series))
    expected = forecast(memory, until, quantiles=(0.1, 0.9), options=MemoryOptions(k=K))
    [(block, moment)] = [
        (block, int(np.flatnonzero(block.asked.queries.origin == TIMES[at])[0]))
        for block in kept
        if (block.asked.queries.origin == TIMES[at]).any()
    ]
    found = block.quantiles[moment].reshape(-1, 2)
    np.testing.assert_array_equal(found, expected[["q0.1", "q0.9"]].to_numpy())


def test_no_later_window_tells_of_an_earlier_query(tmp_path):
    """What is appended after an origin, garbage or not, changes nothing that is said of it."""
    at, found = TIMES[300], []
    for name, table in (("clean", TABLE), ("garbage", poisoned(TABLE, at, seed=2))):
        make(tmp_path / name, table)
        grown = append(Store(tmp_path / name), "m", table)
        usual = usual_errors(open_version(grown, threads=1), K)
        num = int(np.searchsorted(usual.known_at, at, side="right"))
        assert LEAST_SAMPLE <= num < len(usual.known_at)
        found.append((usual.known_at[:num], usual.loss[:num], usual.stretch(np.array([at]))))
    for one, other in zip(*found, strict=True):
        np.testing.assert_array_equal(one, other)
