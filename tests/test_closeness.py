"""Which distances are usual in a memory: nothing later than the query counts, and few windows say nothing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from memory_fixtures import (
    NUM_STEPS,
    Store,
    append,
    between,
    build_until,
    built,
    open_version,
    poisoned,
    queries_at,
    wide_table,
    with_missing,
    with_values,
)

from memory_index.closeness import LEAST_SAMPLE, UsualDistances, closeness, nearest_distances, usual_distances
from memory_index.local import LocalMemory
from memory_index.measure import _drawn_as_known
from memory_index.types import KeySpace

TABLE = wide_table()
TIMES = TABLE.series[0].times
OWN = KeySpace("own", 36)


@pytest.fixture(scope="module")
def memory(tmp_path_factory) -> LocalMemory:
    return open_version(built(tmp_path_factory.mktemp("usual")), threads=1)


@pytest.fixture(scope="module")
def usual(memory) -> UsualDistances:
    return usual_distances(memory)


def nearest_by_hand(memory: LocalMemory, number: int) -> dict[np.datetime64, float]:
    """The distance from every stored window of a series to the nearest one known at its origin, by its own known_at."""
    windows = memory.windows
    rows = np.flatnonzero(windows.series == number)
    contexts = windows.contexts(rows[:, None])
    keys = memory.encoder.encode(OWN.view, contexts, np.array([number]), ("own",)).keys["own"].reshape(len(rows), -1)
    origin, known_at = windows.origin(rows), windows.spans(rows).known_at
    nearest = {}
    for row, at in enumerate(origin):
        if (known_at <= at).any():
            nearest[known_at[row]] = np.sqrt(np.square(keys[known_at <= at] - keys[row]).sum(axis=1)).min()
    return nearest


def test_usual_is_how_far_the_nearest_was_at_the_time(tmp_path):
    load = replace(TABLE, series=TABLE.series[:1])
    memory = open_version(build_until(Store(tmp_path), load, TIMES[-1]), threads=1)
    found, expected = usual_distances(memory), nearest_by_hand(memory, 0)
    known_at, distance = found.known_at[OWN], found.distance[OWN]
    assert len(known_at) > 200
    assert (np.diff(known_at) > np.timedelta64(0)).all()
    np.testing.assert_allclose(distance, [expected[at] for at in known_at], rtol=1e-4, atol=1e-4)
    for row in (180, 300):
        at = TIMES[row]
        for limit in (0.3, 1.0, 3.0):
            by_then = [expected[each] for each in known_at if each <= at]
            later_half = np.array(by_then[len(by_then) // 2 :])
            assert found.share_closer(OWN, limit, at) == pytest.approx((later_half < limit).mean(), abs=1e-9)


def test_only_windows_that_are_known_by_a_time_count(usual):
    at = TIMES[200]
    garbage = {
        space: np.where(usual.known_at[space] > at, np.float32(1e9), usual.distance[space]) for space in usual.known_at
    }
    later = UsualDistances(known_at=usual.known_at, distance=garbage)
    for space in usual.known_at:
        np.testing.assert_array_equal(later.until(space, at), usual.until(space, at))
        assert later.until(space, TIMES[-1]).max() == 1e9


def test_too_few_windows_say_nothing(usual):
    for space in usual.known_at:
        times = np.unique(usual.known_at[space])
        assert usual.share_closer(space, 1.0, times[2]) is None
        assert usual.share_closer(space, 1.0, TIMES[-1]) is not None
        first = next(at for at in times if usual.share_closer(space, 1.0, at) is not None)
        assert len(usual.until(space, first)) >= LEAST_SAMPLE
    shares, unusual = closeness(usual, dict.fromkeys(usual.known_at, np.inf), TIMES[36])
    assert set(shares.values()) == {None}
    assert not unusual


def test_at_the_border_it_has_no_close_analogue():
    space = KeySpace("own", 12)
    known_at = np.arange(200).astype("datetime64[h]").astype("datetime64[ns]")
    distance = np.arange(200, dtype=np.float32)
    usual = UsualDistances(known_at={space: known_at}, distance={space: distance})
    for nearest, expected in ((194.5, True), (193.5, False)):  # of the later half, 95 and 94 in 100 are nearer
        assert closeness(usual, {space: nearest}, known_at[-1])[1] is expected


@pytest.mark.parametrize(("far", "expected"), [(1, False), (2, True), (3, True)])
def test_most_key_spaces_decide(far, expected):
    spaces = [KeySpace("own", view) for view in (12, 24, 36)]
    known_at = np.arange(100).astype("datetime64[h]").astype("datetime64[ns]")
    distance = np.linspace(0, 1, 100, dtype=np.float32)
    usual = UsualDistances(known_at=dict.fromkeys(spaces, known_at), distance=dict.fromkeys(spaces, distance))
    nearest = {space: 2.0 if number < far else 0.1 for number, space in enumerate(spaces)}
    shares, unusual = closeness(usual, nearest, known_at[-1])
    assert list(shares.values()) == [1.0] * far + [0.0] * (3 - far)
    assert unusual is expected


def test_a_shape_that_never_was_has_no_close_analogue(memory, usual):
    def asked(table):
        found = memory.search(queries_at(table, [340]), 5)
        return closeness(usual, nearest_distances(found, TABLE.series_ids.index("load")), TIMES[340])[1]

    def zigzag(series):
        recent = np.arange(len(series)) > 340 - 36
        return np.where(recent, 50 + 10 * (-1.0) ** np.arange(len(series)), series.values)

    assert not asked(TABLE)
    assert asked(with_values(TABLE, zigzag))


@pytest.mark.parametrize("row", [150, 231, 350])
def test_what_comes_later_does_not_change_what_is_usual(tmp_path, row):
    """Neither its values, nor that some are missing, nor how much it is; here that is most of the version."""
    short = build_until(Store(tmp_path), between(TABLE, 0, 110), TIMES[109])

    def usual_then(table):
        found = usual_distances(open_version(append(Store(tmp_path), short.ref, table), threads=1))
        return {space: found.until(space, TIMES[row]) for space in found.known_at}

    clean = usual_then(TABLE)
    assert all(len(distances) >= LEAST_SAMPLE for distances in clean.values())
    gaps = with_missing(TABLE, [("load", row + 1), *(("flat", later) for later in range(row + 3, NUM_STEPS, 30))])
    for table in (poisoned(TABLE, TIMES[row], seed=row), gaps, between(TABLE, 0, row + 1), between(TABLE, 0, row + 9)):
        for space, distances in usual_then(table).items():
            np.testing.assert_array_equal(distances, clean[space])


def test_a_memory_that_grows_is_asked_little_more():
    """About as many of the training part as are wanted, and as many times the logarithm of its growth."""
    known_at = np.repeat(np.arange(50_000), 2).astype("datetime64[h]").astype("datetime64[ns]")
    drawn = _drawn_as_known(known_at, 500, known_at[9_999])
    np.testing.assert_array_equal(np.unique(drawn), drawn)
    for start, end in ((0, 10_000), (10_000, 30_000), (30_000, 100_000)):
        expected = 500 if start == 0 else 500 * np.log(end / start)
        assert ((drawn >= start) & (drawn < end)).sum() == pytest.approx(expected, rel=0.1)
    np.testing.assert_array_equal(_drawn_as_known(known_at[:40_000], 500, known_at[9_999]), drawn[drawn < 40_000])
    np.testing.assert_array_equal(_drawn_as_known(known_at[:300], 500, known_at[9_999]), np.arange(300))
