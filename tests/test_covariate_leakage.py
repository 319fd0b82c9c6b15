"""No covariate from after the origin has a say, but known ones up to the horizon: of queries and of stored windows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from covariate_fixtures import WINDOW, built_with, covariate_table, with_covariates
from memory_fixtures import Store, append, assert_same, between, open_version, poisoned
from test_covariate_memory import queries_of

from memory_index import memory_only
from memory_index.covariate_map import CovariateLayout, CovariateWindows
from memory_index.covariates import CovariateValues
from memory_index.local import LocalMemory
from memory_index.tables.series import SeriesTable

ORIGIN = 600


def poison(table: SeriesTable, *, known_after: np.datetime64, observed_after: np.datetime64, seed: int) -> SeriesTable:
    """Garbage of every size in place of the covariates that are later than a time, by role."""
    roles = [column.role for column in table.covariates.columns]
    kinds = [column.kind for column in table.covariates.columns]

    def garbage(each: CovariateValues) -> np.ndarray:
        random, values = np.random.default_rng(seed), each.values.copy()
        for number, (role, kind) in enumerate(zip(roles, kinds, strict=True)):
            later = each.times > (observed_after if role == "observed" else known_after)
            wild = random.normal(size=len(each.times)) * 10.0 ** random.integers(-3, 6, size=len(each.times))
            wild = np.where(random.random(len(wild)) < 0.2, np.nan, wild)
            fits = wild if kind == "number" else random.integers(-1, 3, size=len(wild)).astype(np.float64)
            values[number] = np.where(later, fits, values[number])
        return values

    return with_covariates(table, garbage)


def poisoned_around(table: SeriesTable, seed: int) -> SeriesTable:
    """All that a query at `ORIGIN` must not see is garbage: targets and observed values after it, known ones beyond
    the horizon.
    """
    times = table.series[0].times
    dirty = poison(table, known_after=times[ORIGIN + WINDOW.horizon], observed_after=times[ORIGIN], seed=seed)
    return poisoned(dirty, times[ORIGIN], seed=seed)


def numbers(layout: CovariateLayout, windows: CovariateWindows, view: int) -> np.ndarray:
    """What stands beside windows [n], in training units."""
    out = np.empty((len(windows.near), layout.width), dtype=np.float32)
    layout.numbers(windows, view, np.ones(len(out)), out)
    return out


def asked_at_origin(memory: LocalMemory, table: SeriesTable) -> object:
    return memory.search(queries_of(memory, table, np.array([ORIGIN])), 10)


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("seed", [1, 2])
def test_what_a_query_must_not_see_changes_nothing(tmp_path: Path, shared: bool, seed: int) -> None:
    table = covariate_table(shared=shared)
    memory = open_version(built_with(tmp_path, table))
    dirty = poisoned_around(table, seed)
    clean, found = asked_at_origin(memory, table), asked_at_origin(memory, dirty)
    assert_same(found, clean)
    np.testing.assert_array_equal(found.queries.covariates, clean.queries.covariates)
    np.testing.assert_array_equal(found.quantiles((0.1, 0.9)), clean.quantiles((0.1, 0.9)))
    seen = poison(
        table, known_after=table.series[0].times[ORIGIN], observed_after=table.series[0].times[ORIGIN], seed=3
    )
    changed = asked_at_origin(memory, seen)
    assert not np.array_equal(changed.forecast(), clean.forecast()), "known values of the horizon do have a say"


@pytest.mark.parametrize("shared", [True, False])
def test_what_is_appended_later_changes_no_earlier_answer(tmp_path: Path, shared: bool) -> None:
    table = covariate_table(shared=shared)
    dirty = poisoned_around(table, 4)
    dirty = poison(
        dirty, known_after=table.series[0].times[ORIGIN], observed_after=table.series[0].times[ORIGIN], seed=5
    )
    answers = []
    for number, later in enumerate((table, dirty)):
        store = Store(tmp_path / str(number))
        version = append(store, built_with(tmp_path / str(number), table).ref, between(table, 0, ORIGIN + 1))
        version = append(store, version.ref, later)
        answers.append(asked_at_origin(open_version(version), table))
    assert_same(answers[1], answers[0])
    for answer in answers:
        assert (answer.known_at[answer.valid] <= table.series[0].times[ORIGIN]).all()


@pytest.mark.parametrize("shared", [True, False])
def test_nothing_after_the_training_part_is_fitted_or_stored(tmp_path: Path, shared: bool) -> None:
    table = covariate_table(shared=shared)
    last = table.series[0].times[559]
    dirty = poisoned(poison(table, known_after=last, observed_after=last, seed=6), last, seed=6)
    clean, built = (built_with(tmp_path / name, each) for name, each in (("a", table), ("b", dirty)))
    assert built.manifest.fingerprint == clean.manifest.fingerprint


def test_observed_values_over_the_horizon_of_a_stored_window_are_not_read(tmp_path: Path) -> None:
    table = covariate_table()
    memory = open_version(built_with(tmp_path, table))
    stored = memory.windows.covariates
    assert stored is not None
    rows = np.arange(50, 80)
    series, origin = memory.windows.series[rows], memory.windows.origin_row[rows]
    observed = [number for number, column in enumerate(stored.layout.columns) if column.role == "observed"]
    values = stored.values.copy()
    values[observed, origin.max() + 1 :] = 1e6
    other = replace(stored, values=values)
    last = origin == origin.max()
    for view in memory.windows.views:
        for one, two in (
            (stored.windows(series, origin, (view,)), other.windows(series, origin, (view,))),
            (stored.layout.of_values(stored.raw(series, origin), (view,)), stored.windows(series, origin, (view,))),
        ):
            first, second = (numbers(stored.layout, each, view) for each in (one, two))
            np.testing.assert_allclose(first[last], second[last], rtol=1e-5, atol=1e-5)


def test_a_forecast_of_the_latest_origin_sees_no_observed_value_behind_it(tmp_path: Path) -> None:
    table = covariate_table()
    memory = open_version(built_with(tmp_path, table))
    last = table.series[0].times[-1]
    dirty = poison(table, known_after=last + np.timedelta64(WINDOW.horizon, "h"), observed_after=last, seed=8)
    assert memory_only.forecast(memory, dirty).equals(memory_only.forecast(memory, table))
