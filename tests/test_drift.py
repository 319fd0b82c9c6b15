"""Drift: today's windows beside those that a version was fitted on, and whether a new build is worth it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from forecaster_fixtures import TABLE, memory_of
from memory_fixtures import Store, append, open_version, wide_table

from memory_index.drift import drift

LONG = wide_table(900)


def found(folder, table):
    memory_of(folder, TABLE)
    return drift(open_version(append(Store(folder), "m", table), threads=1))


def changed(values: np.ndarray, late: np.ndarray) -> np.ndarray:
    """Values that go on upside down, at half the pace, and higher."""
    slow = np.interp(np.arange(len(values)) / 2, np.arange(len(values)), values)
    return np.where(late, 4 * values.std() + 2 * values.mean() - slow, values)


def test_a_version_that_nothing_was_appended_to_has_no_drift(tmp_path):
    assert drift(memory_of(tmp_path, TABLE)) is None


def test_what_goes_on_otherwise_is_worth_a_new_build(tmp_path):
    same = found(tmp_path / "same", LONG)
    series = [replace(s, values=changed(s.values, np.arange(len(s)) >= 420)) for s in LONG.series]
    other = found(tmp_path / "other", replace(LONG, series=tuple(series)))
    assert same.level < 1 < 3 < other.level
    assert all(each.today < 2 * each.trained for each in same.maps)
    assert other.worth
    assert min(each.gain for each in other.maps) > max(each.gain for each in same.maps)
    assert same.num_since == other.num_since
    assert same.begins > np.datetime64(memory_of(tmp_path / "m", TABLE).manifest.fitted_until)


def test_what_is_fitted_again_knows_nothing_of_the_windows_it_is_compared_on(tmp_path):
    """Garbage from today on changes what the maps err, not what they were fitted on."""
    clean = found(tmp_path / "clean", LONG)
    late = [
        replace(s, values=np.where(s.times > clean.begins, np.random.default_rng(1).normal(size=len(s)), s.values))
        for s in LONG.series
    ]
    dirty = found(tmp_path / "dirty", replace(LONG, series=tuple(late)))
    assert dirty.begins == clean.begins
    assert [each.trained for each in dirty.maps] == [each.trained for each in clean.maps]
    assert all(abs(each.gain) < 0.5 for each in dirty.maps)
