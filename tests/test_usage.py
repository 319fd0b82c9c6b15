"""What a memory covers, and which of its windows are retrieved too often or never, against plain counts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from memory_index import measure, usage
from memory_index.coverage import coverage
from memory_index.encoder import EncoderConfig
from memory_index.leakage import Policy, is_admissible
from memory_index.local import LocalMemory
from memory_index.measure import drawn_searches
from memory_index.tables.series import Series, SeriesTable
from memory_index.types import KeySpace, Queries
from memory_index.usage import NEIGHBOURS, Stretches, Usage, stretches_of
from memory_index.versions.store import Store
from memory_index.windows import Step, WindowSpec
from tests.memory_fixtures import (
    HOURLY,
    NUM_STEPS,
    NUM_TRAINING,
    START,
    WINDOW,
    appended,
    build_until,
    built,
    compact,
    open_version,
    ragged_table,
    wide_table,
    with_missing,
)

SHORT = WindowSpec(lookback=12, horizon=6)


@pytest.fixture(scope="module")
def memory(tmp_path_factory) -> LocalMemory:
    return open_version(built(tmp_path_factory.mktemp("small")))


@pytest.fixture(scope="module")
def used(memory) -> Usage:
    return usage.usage(memory)


def one_series(folder: Path, values: np.ndarray, window: WindowSpec = SHORT) -> LocalMemory:
    """A memory of all windows of one series, compared over their whole lookback."""
    series = Series(series_id="load", times=HOURLY.range(START, len(values)), values=values)
    table = SeriesTable(step=HOURLY, layout="wide", series=(series,), source="one.csv")
    encoder = EncoderConfig(views=(window.lookback,))
    return open_version(build_until(Store(folder), table, series.times[-1], window=window, encoder=encoder))


def noise(num_steps: int) -> np.ndarray:
    return np.random.default_rng(5).normal(size=num_steps)


def season(num_steps: int) -> np.ndarray:
    return 20 + 5 * np.sin(np.arange(num_steps) * 2 * np.pi / 12)


def stretches_within(found: Usage, first_row: int, last_row: int) -> list[int]:
    """Stretches whose origins all lie between two rows of a series that begins at `START`."""
    inside = (found.stretches.first >= HOURLY.range(START, first_row + 1)[-1]) & (
        found.stretches.last <= HOURLY.range(START, last_row + 1)[-1]
    )
    return np.flatnonzero(inside).tolist()


# How often each window is retrieved


def every_answer(memory: LocalMemory, space: KeySpace) -> list[tuple[int, np.ndarray]]:
    """Each window, asked by itself (for `joint` with the others of its moment), and the rows that it finds."""
    windows, answers = memory.windows, []
    moments: dict[np.datetime64, list[int]] = {}
    for row in range(len(windows)):
        moments.setdefault(windows.origin(np.array(row))[()], []).append(row)
    groups = list(moments.values()) if space.scope == "joint" else [[row] for row in range(len(windows))]
    for rows in groups:
        if space.scope == "joint" and len(rows) < len(windows.series_ids):
            continue
        queries = Queries(
            context=windows.contexts(np.array([rows])),
            origin=windows.origin(np.array(rows[:1])),
            series_id=np.array(windows.series_ids)[windows.series[rows]],
            policy=Policy.DISJOINT,
        )
        found = memory.search(queries, NEIGHBOURS, scopes=(space.scope,), views=(space.view,)).row[0, :, 0]
        answers += [(row, each[each >= 0]) for row, each in zip(rows, found, strict=True)]
    return answers


def visible_rows(memory: LocalMemory, space: KeySpace, row: int) -> np.ndarray:
    """Rows that a window may see: the rule itself, pair by pair."""
    windows, every = memory.windows, np.arange(len(memory.windows))
    mine = windows.spans(np.array(row))
    seen = is_admissible(
        Policy.DISJOINT,
        windows.spans(every),
        origin=windows.origin(np.array(row)),
        query_start=mine.start_at,
        query_end=mine.end_at,
    )
    flat = windows.flat[:, windows.views.index(space.view)]
    seen &= flat == flat[row]
    if space.scope == "joint":
        complete = [
            len({*windows.series[windows.known_at == at]}) == len(windows.series_ids) for at in windows.known_at
        ]
        seen &= np.array(complete)
    return every[seen & ((windows.series == windows.series[row]) | (space.scope == "pooled"))]


@pytest.mark.parametrize("table", [wide_table(), ragged_table()], ids=["wide", "ragged"])
def test_counts_agree_with_asking_every_window_by_itself(tmp_path, table):
    last = wide_table().series[0].times[149]
    memory = open_version(build_until(Store(tmp_path), table, last, window=SHORT, encoder=EncoderConfig(views=(4, 12))))
    found = usage.usage(memory)
    asked_by = [set() for _ in range(len(found.stretches))]
    assert found.spaces == memory.manifest.key_spaces
    for space in found.spaces:
        answers = every_answer(memory, space)
        retrieved, expected = np.zeros(len(memory.windows), dtype=int), np.zeros(len(memory.windows))
        for row, rows in answers:
            np.add.at(retrieved, rows, 1)
            seen = visible_rows(memory, space, row)
            assert np.isin(rows, seen).all()
            expected[seen] += len(rows) / max(len(seen), 1)
            for stretch in found.stretches.of_row[rows]:
                asked_by[stretch].add(row)
        assert found.num_asked[space] == len(answers)
        np.testing.assert_array_equal(found.retrieved[space], retrieved, err_msg=str(space))
        np.testing.assert_allclose(found.expected[space], expected, atol=1e-9, err_msg=str(space))
    np.testing.assert_array_equal(found.asked_by, [len(each) for each in asked_by])


def test_every_retrieval_is_expected_of_something(used):
    assert any(space.scope == "joint" for space in used.spaces)
    for space in used.spaces:
        retrieved, expected = used.in_space(space)
        assert retrieved.sum() == used.retrieved[space].sum() > 0
        assert expected.sum() == pytest.approx(retrieved.sum())
    retrieved, expected = used.by_stretch
    np.testing.assert_array_equal(retrieved, sum(used.in_space(space)[0] for space in used.spaces))
    np.testing.assert_allclose(used.ratio(), retrieved / expected)


def test_what_no_window_may_see_is_not_called_never_retrieved(tmp_path):
    # A window in the middle shares a step with every other one.
    found = usage.usage(one_series(tmp_path, season(47) + noise(47)))
    unseen = found.by_stretch[1] == 0
    assert unseen.any()
    assert np.isnan(found.ratio()[unseen]).all()
    assert not np.isin(np.flatnonzero(unseen), found.never).any()


# Hubs, and what is never retrieved


def test_a_planted_hub_is_found(tmp_path):
    # A quiet window is divided by the floor of the spread, not by its own. So its shape is almost nothing, and noise is
    # nearer to nothing than to other noise.
    long = WindowSpec(lookback=48, horizon=6)
    values = noise(1200)
    even = usage.usage(one_series(tmp_path / "even", values, long))
    values[400:460] *= 0.15
    found = usage.usage(one_series(tmp_path / "quiet", values, long))
    planted = stretches_within(found, 440, 465)
    assert set(stretches_within(found, 447, 459)) <= set(found.hubs.tolist()) <= set(planted)
    assert found.ratio()[found.hubs[0]] == found.ratio().max() > 10
    assert found.skewness() > 5 > 1 > abs(even.skewness())
    assert len(even.hubs) == 0
    mine = np.flatnonzero(found.stretches.of_row == found.hubs[0])
    total = sum(found.retrieved[space] for space in found.spaces)
    busiest = found.busiest_row(int(found.hubs[0]))
    assert busiest in mine
    assert total[busiest] == total[mine].max()


def test_a_stretch_that_is_never_retrieved_is_found(tmp_path):
    # Short enough for all windows that touch it to share a step.
    values = season(900) + 0.5 * noise(900)
    values[400:412] = 20 + 15 * (-1.0) ** np.arange(12)
    found = usage.usage(one_series(tmp_path, values))
    planted = stretches_within(found, 403, 420)
    assert planted
    assert set(planted) <= set(found.never.tolist()) <= set(stretches_within(found, 393, 429))
    assert (found.asked_by[found.never] == 0).all()
    assert (found.by_stretch[1][found.never] > 100).all()


def test_many_slots_of_few_windows_make_no_hub(used):
    one_asks = replace(used, asked_by=np.minimum(used.asked_by, usage.LEAST_ASKING - 1))
    used = replace(used, retrieved={space: 1000 * each for space, each in used.retrieved.items()})
    one_asks = replace(one_asks, retrieved=used.retrieved)
    assert len(used.hubs) > 0
    assert len(one_asks.hubs) == 0


def counted(retrieved: list[int], expected: list[float]) -> Usage:
    """Usage of windows that are a stretch each."""
    num, times, space = len(retrieved), HOURLY.range(START, len(retrieved)), KeySpace("own", 12)
    stretches = Stretches(
        num_steps=1,
        series=np.zeros(num, dtype=np.int64),
        first=times,
        last=times,
        num_windows=np.ones(num, dtype=np.int64),
        of_row=np.arange(num),
    )
    return Usage(
        k=NEIGHBOURS,
        num_asked={space: 100},
        stretches=stretches,
        retrieved={space: np.array(retrieved)},
        expected={space: np.array(expected)},
        asked_by=np.array(retrieved),
    )


def test_ratio_skewness_and_order_by_hand():
    found = counted([10, 20, 0, 60, 40, 0, 3], [20.0, 20.0, 20.0, 20.0, 20.0, 5.0, 5.0])
    np.testing.assert_array_equal(found.ratio(), [0.5, 1.0, 0.0, 3.0, 2.0, np.nan, np.nan])
    assert found.hubs.tolist() == [3, 4]
    assert found.never.tolist() == [2]
    assert found.skewness() == pytest.approx(0.504 / 1.16**1.5)  # of 0.5, 1, 0, 3, 2: mean 1.3
    assert np.isnan(counted([7, 7], [10.0, 10.0]).skewness())
    assert np.isnan(counted([1, 2], [1.0, 1.0]).skewness())


# Several segments, and samples


def test_segments_count_as_one_memory(tmp_path):
    grown = appended(tmp_path, built(tmp_path), 300, NUM_STEPS)
    parts, whole = open_version(grown), open_version(compact(Store(tmp_path), grown.ref))
    assert (len(parts.segments), len(whole.segments)) == (3, 1)
    found, expected = usage.usage(parts), usage.usage(whole)
    for space in expected.spaces:
        np.testing.assert_array_equal(found.retrieved[space], expected.retrieved[space], err_msg=str(space))
        np.testing.assert_allclose(found.expected[space], expected.expected[space], err_msg=str(space))
        assert found.num_asked[space] == len(parts.windows)
    np.testing.assert_array_equal(found.asked_by, expected.asked_by)
    later = parts.segments[1].first_row
    assert all(found.retrieved[space][later:].sum() > 0 for space in found.spaces)
    np.testing.assert_array_equal(coverage(parts).num_windows, coverage(whole).num_windows)


def test_a_large_memory_is_asked_a_bounded_sample(memory, monkeypatch):
    monkeypatch.setattr(usage, "ASKED", 60)
    monkeypatch.setattr(measure, "LEAST_MOMENTS", 10)
    found = usage.usage(memory)
    assert {space: num for space, num in found.num_asked.items() if space.scope != "joint"} == {
        space: 60 for space in found.spaces if space.scope != "joint"
    }
    assert {found.num_asked[space] for space in found.spaces if space.scope == "joint"} == {60}
    again = usage.usage(memory)
    assert all((found.retrieved[space] == again.retrieved[space]).all() for space in found.spaces)
    for space in found.spaces:
        assert found.retrieved[space].sum() == pytest.approx(found.expected[space].sum())
        assert found.retrieved[space].sum() <= 60 * NEIGHBOURS


def test_a_drawn_sample_is_spread_over_all_series_and_all_times(memory):
    answers = [found for _, found in drawn_searches(memory, 1, Policy.DISJOINT, 90)]
    own = [found for found in answers if found.spaces[0].scope == "own"]
    assert [str(found.queries.series_id[0]) for found in own] == list(memory.windows.series_ids)
    assert sum(len(found.queries) for found in own) == 90
    first, last = coverage(memory).first_origin[0], coverage(memory).last_origin[0]
    for found in own:
        assert 28 <= len(found.queries) <= 32
        assert len(np.unique(found.queries.origin)) == len(found.queries)
        place = (found.queries.origin - first) / (last - first)
        assert (np.histogram(place, bins=5, range=(0, 1))[0] >= 4).all()


def test_of_very_many_series_some_are_asked(memory, monkeypatch):
    monkeypatch.setattr(measure, "MAX_DRAWN_SERIES", 2)
    monkeypatch.setattr(usage, "ASKED", 200)
    found = usage.usage(memory)
    own = next(space for space in found.spaces if space.scope == "own")
    pooled = next(space for space in found.spaces if space.scope == "pooled")
    assert found.num_asked[own] == found.num_asked[pooled] == 200
    mine = np.isin(memory.windows.series, [0, 2])
    assert found.expected[own][~mine].sum() == found.retrieved[own][~mine].sum() == 0
    assert (found.expected[own][mine] > 0).all()
    assert (found.expected[pooled] > 0).sum() > mine.sum()


def test_stretches_are_about_a_horizon_and_bounded_in_number(memory, monkeypatch):
    windows = memory.windows
    found = stretches_of(windows)
    assert (found.num_steps, len(found)) == (9, 3 * (217 // WINDOW.horizon))
    np.testing.assert_array_equal(found.num_windows, np.bincount(found.of_row))
    for number in range(len(found)):
        rows = np.flatnonzero(found.of_row == number)
        assert set(windows.series[rows]) == {found.series[number]}
        assert (windows.origin(rows).min(), windows.origin(rows).max()) == (found.first[number], found.last[number])
    assert (found.first[1:] > found.last[:-1])[np.diff(found.series) == 0].all()
    monkeypatch.setattr(usage, "MAX_STRETCHES", 10)
    assert len(stretches_of(windows)) == 9
    monkeypatch.setattr(usage, "MAX_STRETCHES", 1)
    assert len(stretches_of(windows)) == 3


# Coverage


def test_coverage_of_a_whole_table(memory):
    found, windows = coverage(memory), memory.windows
    assert found.series_ids == ("load", "flat", "beat")
    assert found.num_windows.sum() == len(windows)
    assert (found.share == 1).all()
    assert found.gaps == ()
    times = wide_table().series[0].times
    assert (found.first_value == times[0]).all()
    assert (found.last_value == times[NUM_TRAINING - 1]).all()
    assert (found.first_origin == times[WINDOW.lookback - 1]).all()
    assert (found.last_known_at == times[NUM_TRAINING - 1]).all()
    assert (found.first_known_at == times[WINDOW.length - 1]).all()
    assert (found.train_until, found.val_until, found.test_until) == (times[NUM_TRAINING - 1], None, None)
    assert found.fitted_until == times[NUM_TRAINING - 1]


def test_a_gap_is_every_window_that_would_hold_the_missing_value(tmp_path):
    table = with_missing(wide_table(), [("flat", 100), ("beat", 180), ("beat", 181)])
    times, whole = table.series[0].times, replace(WINDOW, max_missing=0.0)
    found = coverage(open_version(build_until(Store(tmp_path), table, times[NUM_TRAINING - 1], window=whole)))
    assert [(gap.series_id, gap.first, gap.last, gap.num_windows) for gap in found.gaps] == [
        ("flat", times[100 - WINDOW.horizon], times[100 + WINDOW.lookback - 1], WINDOW.length),
        ("beat", times[180 - WINDOW.horizon], times[181 + WINDOW.lookback - 1], WINDOW.length + 1),
    ]
    most = found.num_windows[0]
    np.testing.assert_array_equal(most, found.most)
    np.testing.assert_array_equal((most - found.num_windows).sum(axis=1), [0, 44, 45])
    assert found.share.min() == 0


def test_there_is_no_gap_from_one_series_to_the_next(tmp_path):
    # The first ends before the row at which the second begins.
    table = with_missing(wide_table(), [("flat", 20), *(("load", row) for row in range(60, NUM_TRAINING))])
    last, whole = table.series[0].times[NUM_TRAINING - 1], replace(WINDOW, max_missing=0.0)
    found = coverage(open_version(build_until(Store(tmp_path), table, last, window=whole)))
    assert found.last_origin[0] < found.first_origin[1]
    assert found.gaps == ()


@pytest.mark.parametrize("step", [Step(frequency="MS"), Step(frequency="D", time_zone="Europe/Berlin")], ids=str)
def test_coverage_counts_calendar_steps(tmp_path, step):
    table = ragged_table(step=step)
    last = table.series[0].times[-1]
    window = WindowSpec(lookback=24, horizon=6, stride=4)
    version = build_until(Store(tmp_path), table, last, window=window, encoder=EncoderConfig(views=(24,)))
    found = coverage(open_version(version))
    np.testing.assert_array_equal(found.num_windows.sum(axis=1), [83, 69, 78])
    assert (found.share[0] == 1).all()
    assert found.gaps == ()
    assert found.edges[0] == found.first_origin.min()
    assert found.edges[-1] > found.last_origin.max()
    assert (np.diff(found.edges) > 0).all()
