"""The maps of a memory with covariates go on: as of each origin, from what was known by then."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
from covariate_fixtures import ENCODER, TEMPERATURE, WINDOW, built_with, covariate_table
from memory_fixtures import Store, append, assert_same, between, open_version, poisoned
from test_covariate_leakage import poison
from test_covariate_memory import queries_of

from memory_index.covariate_ridge import Sums, solve
from memory_index.fit_covariates import numbers_blocks
from memory_index.fit_encoder import fit_encoder
from memory_index.growing_maps import GrowingMaps, growing_maps, normalised
from memory_index.local import LocalMemory
from memory_index.tables.series import SeriesTable
from memory_index.versions.grown import grown
from memory_index.windows import origin_rows

NUM_STEPS, FITTED, ORIGIN = 1400, 500, 1100
VIEW = 24


@pytest.fixture(scope="module")
def table() -> SeriesTable:
    return covariate_table(NUM_STEPS, columns=(TEMPERATURE,))


@pytest.fixture
def memory(table: SeriesTable, tmp_path: Path) -> LocalMemory:
    """Built on the first 500 steps, with all of the table appended."""
    with grown(built_with(tmp_path, table, FITTED), table) as found:
        return found


def maps_of(memory: LocalMemory) -> GrowingMaps:
    assert memory.growing is not None
    return memory.growing


def test_a_map_as_of_a_beat_is_made_of_what_was_known_by_then(memory: LocalMemory) -> None:
    """The mean of two ridges, one of which halves what lies a third of the training part back."""
    maps, windows, arrays = maps_of(memory), memory.windows, memory.encoder.arrays
    assert len(maps.beats) == 6  # the end of the training part, then a week apart
    layout = windows.covariates.layout
    for number, beat in enumerate(maps.beats):
        both = []
        for kind, forgets in (("", False), ("recent-", True)):
            gram, cross = (arrays[f"{kind}{name}-{VIEW}"].astype(np.float64) for name in ("gram", "cross"))
            kept = 0.5 ** (float(beat - maps.beats[0]) / float(arrays["half-life"][0])) if forgets else 1.0
            total = Sums(gram=kept * gram, cross=kept * cross, square=0.0, num=0)
            for place in range(number):
                edges = maps.beats[place : place + 2]
                rows = np.flatnonzero((windows.known_at > edges[0]) & (windows.known_at <= edges[1]))
                kept = 0.5 ** (float(beat - edges[1]) / float(arrays["half-life"][0])) if forgets else 1.0
                for _, x, future in normalised(windows, rows, VIEW):
                    total += Sums(gram=x.T @ x, cross=x.T @ future, square=0.0, num=len(x)).scaled(kept)
            both.append(solve(total, arrays["penalties"], numbers_blocks(layout, VIEW)))
        asked = int(maps.number(beat.reshape(1))[0])
        assert asked == maps.num_folds + 1 + number
        np.testing.assert_allclose(maps._views[VIEW].map(asked), np.mean(both, axis=0), atol=1e-5)


def test_the_map_of_a_time_never_saw_its_window(table: SeriesTable, memory: LocalMemory) -> None:
    maps, windows = maps_of(memory), memory.windows
    origin = windows.origin(np.arange(len(windows)))
    number = maps.number(origin)
    within = origin < maps.fitted_at
    assert set(number[within].tolist()) == {0, 1, 2}
    beat = number[~within] - maps.num_folds - 1
    assert (maps.beats[beat] <= origin[~within]).all()
    assert (beat[1:] >= beat[:-1]).all()


def test_stored_residuals_are_as_large_as_fresh_ones(memory: LocalMemory) -> None:
    maps, windows = maps_of(memory), memory.windows
    rows = np.arange(len(windows))
    stored = np.square(maps.residuals(VIEW, rows)).mean(axis=1)
    fresh = windows.known_at > maps.fitted_at
    ratio = stored[~fresh].mean() / stored[fresh].mean()
    assert 0.8 < ratio < 1.25
    seen = [
        np.square(future - x @ memory.encoder.linear_map(VIEW)).mean(axis=1)
        for _, x, future in normalised(windows, rows[~fresh], VIEW)
    ]
    assert np.concatenate(seen).mean() < stored[~fresh].mean()  # those of the map that was fitted on them


def test_a_stretch_that_was_held_out_is_asked_of_the_map_of_all_others(table: SeriesTable, tmp_path: Path) -> None:
    rows = origin_rows(table.series[0].values[:FITTED], WINDOW)
    kept = rows[(rows < 200) | (rows > 330)]
    version = built_with(tmp_path, table, FITTED, fit=partial(fit_encoder, target_origins=[kept, kept]))
    maps = maps_of(open_version(version))
    number = maps.number(table.series[0].times)
    assert (number[201:330] == maps.num_folds).all()
    assert (number[30:120] == 0).all()
    assert (number[332:400] < maps.num_folds).all()


@pytest.mark.parametrize("seed", [1, 2])
def test_what_comes_later_changes_no_forecast(table: SeriesTable, tmp_path: Path, seed: int) -> None:
    """Values after the origin, known ones too: what is appended later has no say in the map of the origin."""
    times = table.series[0].times
    dirty = poisoned(
        poison(table, known_after=times[ORIGIN], observed_after=times[ORIGIN], seed=seed), times[ORIGIN], seed=seed
    )
    answers = []
    for name, later in (("clean", table), ("dirty", dirty)):
        version = built_with(tmp_path / name, table, FITTED)
        version = append(Store(tmp_path / name), version.ref, between(table, 0, ORIGIN + 1))
        version = append(Store(tmp_path / name), version.ref, later)
        memory = open_version(version)
        asked = queries_of(memory, table, np.array([ORIGIN]))
        answers.append((memory.search(asked, 10), memory.linear_forecast(asked)))
    (clean, clean_map), (found, found_map) = answers
    assert_same(found, clean)
    np.testing.assert_array_equal(found.forecast(), clean.forecast())
    np.testing.assert_array_equal(found.quantiles((0.1, 0.9)), clean.quantiles((0.1, 0.9)))
    np.testing.assert_array_equal(found_map, clean_map)


def test_forecasts_do_not_depend_on_what_was_asked_before_or_beside(table: SeriesTable, memory: LocalMemory) -> None:
    rows = np.arange(900, 1300, 7)
    asked = queries_of(memory, table, rows)
    together = memory.search(asked, 5).forecast()
    fresh = memory.with_segments(memory.segments)
    for place in (50, 3):
        alone = fresh.search(queries_of(fresh, table, rows[place : place + 1]), 5)
        np.testing.assert_array_equal(alone.forecast()[0], together[place])
        means = (alone.aligned_futures() * alone.weights[..., None]).sum(axis=3).mean(axis=2)
        np.testing.assert_allclose(means, alone.forecast(), rtol=1e-4)


def test_a_version_of_an_earlier_program_keeps_its_one_map(memory: LocalMemory) -> None:
    arrays = {name: array for name, array in memory.encoder.arrays.items() if name != "penalties"}
    assert growing_maps(memory.windows, arrays, memory.manifest.fitted_known_at) is None
    assert set(ENCODER.views) == set(memory.windows.views)
