"""Which distances are usual in a memory: nothing later than the query counts, and few windows say nothing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from memory_fixtures import (
    Store,
    append,
    build_until,
    built,
    open_version,
    part,
    poisoned,
    queries_at,
    wide_table,
    with_values,
)

from memory_index.closeness import LEAST_SAMPLE, UsualDistances, closeness, nearest_distances, usual_distances
from memory_index.local import LocalMemory
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
    """The distance from every stored window of a series to the nearest one that was known at its origin, by origin."""
    windows = memory.windows
    rows = np.flatnonzero(windows.series == number)
    contexts = windows.contexts(rows[:, None])
    keys = memory.encoder.encode(OWN.view, contexts, np.array([number]), ("own",)).keys["own"].reshape(len(rows), -1)
    origin, known_at = windows.origin(rows), windows.spans(rows).known_at
    nearest = {}
    for row, at in enumerate(origin):
        if (known_at <= at).any():
            nearest[at] = np.sqrt(np.square(keys[known_at <= at] - keys[row]).sum(axis=1)).min()
    return nearest


def test_usual_is_how_far_the_nearest_was_at_the_time(tmp_path):
    load = replace(TABLE, series=TABLE.series[:1])
    memory = open_version(build_until(Store(tmp_path), load, TIMES[-1]), threads=1)
    found, expected = usual_distances(memory), nearest_by_hand(memory, 0)
    origin, distance = found.origin[OWN], found.distance[OWN]
    assert len(origin) > 200
    assert (np.diff(origin) > np.timedelta64(0)).all()
    np.testing.assert_allclose(distance, [expected[at] for at in origin], rtol=1e-4, atol=1e-4)
    for row in (180, 300):
        at = TIMES[row]
        for limit in (0.3, 1.0, 3.0):
            by_then = [expected[each] for each in origin if each <= at]
            later_half = np.array(by_then[len(by_then) // 2 :])
            assert found.share_closer(OWN, limit, at) == pytest.approx((later_half < limit).mean(), abs=1e-9)


def test_only_windows_up_to_a_time_count(usual):
    at = TIMES[200]
    garbage = {
        space: np.where(usual.origin[space] > at, np.float32(1e9), usual.distance[space]) for space in usual.origin
    }
    later = UsualDistances(origin=usual.origin, distance=garbage)
    for space in usual.origin:
        np.testing.assert_array_equal(later.until(space, at), usual.until(space, at))
        assert later.until(space, TIMES[-1]).max() == 1e9


def test_too_few_windows_say_nothing(usual):
    for space in usual.origin:
        origins = np.unique(usual.origin[space])
        assert usual.share_closer(space, 1.0, origins[2]) is None
        assert usual.share_closer(space, 1.0, TIMES[-1]) is not None
        first = next(at for at in origins if usual.share_closer(space, 1.0, at) is not None)
        assert len(usual.until(space, first)) >= LEAST_SAMPLE
    shares, unusual = closeness(usual, dict.fromkeys(usual.origin, np.inf), TIMES[36])
    assert set(shares.values()) == {None}
    assert not unusual


def test_at_the_border_it_has_no_close_analogue():
    space = KeySpace("own", 12)
    origin = np.arange(200).astype("datetime64[h]").astype("datetime64[ns]")
    distance = np.arange(200, dtype=np.float32)
    usual = UsualDistances(origin={space: origin}, distance={space: distance})
    for nearest, expected in ((194.5, True), (193.5, False)):  # of the later half, 95 and 94 in 100 are nearer
        assert closeness(usual, {space: nearest}, origin[-1])[1] is expected


@pytest.mark.parametrize(("far", "expected"), [(1, False), (2, True), (3, True)])
def test_most_key_spaces_decide(far, expected):
    spaces = [KeySpace("own", view) for view in (12, 24, 36)]
    origin = np.arange(100).astype("datetime64[h]").astype("datetime64[ns]")
    distance = np.linspace(0, 1, 100, dtype=np.float32)
    usual = UsualDistances(origin=dict.fromkeys(spaces, origin), distance=dict.fromkeys(spaces, distance))
    nearest = {space: 2.0 if number < far else 0.1 for number, space in enumerate(spaces)}
    shares, unusual = closeness(usual, nearest, origin[-1])
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


@settings(max_examples=8)
@given(row=st.integers(150, 350), seed=st.integers(0, 99))
def test_later_values_do_not_change_what_is_usual(memory, tmp_path_factory, row, seed):
    """The appended windows are most of the version here, and the sample is drawn among them."""
    folder = tmp_path_factory.mktemp("grown")
    short = build_until(Store(folder), replace(TABLE, series=tuple(part(s, 0, 110) for s in TABLE.series)), TIMES[109])
    answers = []
    for table in (TABLE, poisoned(TABLE, TIMES[row], seed=seed)):
        version = append(Store(folder), short.ref, table)
        answers.append(usual_distances(open_version(version, threads=1)))
        Store(folder).remove(version.ref)
    clean, late = answers
    for space in clean.origin:
        np.testing.assert_array_equal(late.until(space, TIMES[row]), clean.until(space, TIMES[row]))
        assert len(clean.until(space, TIMES[row])) > 0
