"""The leak rule: as arithmetic, as row ranges, as the check of every result, and through the public API.

The poisoned future: whatever is not known yet is replaced by garbage, and not one bit of an answer may change.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from memory_fixtures import (
    HOURLY,
    LocalMemory,
    Neighbours,
    Policy,
    Queries,
    SeriesTable,
    Step,
    Store,
    WindowSpec,
    append,
    assert_same,
    between,
    build_until,
    built,
    known_until,
    open_version,
    poisoned,
    queries_at,
    ragged_table,
    wide_table,
    with_missing,
)

from memory_index.encoder import EncoderConfig
from memory_index.leakage import LeakError, TimeSpans, admissible_ranges, is_admissible, require_admissible

SHORT = WindowSpec(lookback=12, horizon=4)
ONE_VIEW = EncoderConfig(views=(12,), shape_width=8, joint_width=24)
DAYS_IN_BERLIN = Step(frequency="D", time_zone="Europe/Berlin")
STEPS = {
    "hours": (HOURLY, np.datetime64("2021-03-01T00:00", "ns")),
    "months": (Step(frequency="MS"), np.datetime64("1990-01-01", "ns")),
    "working days": (Step(frequency="B"), np.datetime64("2021-01-04", "ns")),
    "days with daylight saving": (DAYS_IN_BERLIN, np.datetime64("2020-12-31T23:00", "ns")),
}


# The rule


def hours(*numbers: int) -> np.ndarray:
    return np.array(numbers, dtype="datetime64[h]").astype("datetime64[ns]")


def spans_of(first: np.ndarray, spec: WindowSpec) -> TimeSpans:
    hour = np.timedelta64(1, "h")
    end = first + (spec.length - 1) * hour
    return TimeSpans(start_at=first, end_at=end, known_at=end + spec.known_delay * hour)


def test_the_border_cases() -> None:
    spec = WindowSpec(lookback=4, horizon=2, known_delay=1)
    query = {"origin": hours(10), "query_start": hours(7), "query_end": hours(12)}
    # Windows that start at 4 and 5 end at 9 and 10, and are known at 10 and 11.
    known = is_admissible(Policy.CAUSAL, spans_of(hours(3, 4, 5), spec), **query)
    np.testing.assert_array_equal(known, [True, True, False])
    # Windows that start at 1 and 2 end at 6 and 7, where the query starts; it ends at 12.
    apart = is_admissible(Policy.DISJOINT, spans_of(hours(1, 2, 7, 12, 13), spec), **query)
    np.testing.assert_array_equal(apart, [True, False, False, False, True])


def test_a_missing_time_is_never_admissible() -> None:
    never = np.full(1, np.datetime64("NaT"), dtype="datetime64[ns]")
    spans = TimeSpans(start_at=never, end_at=never, known_at=never)
    for policy in Policy:
        assert not is_admissible(policy, spans, origin=hours(9), query_start=hours(8), query_end=hours(10)).any()


@given(
    first=st.lists(st.integers(0, 80), max_size=40).map(sorted),
    origins=st.lists(st.integers(-10, 100), min_size=1, max_size=8),
    lookback=st.integers(2, 9),
    horizon=st.integers(1, 9),
    delay=st.integers(0, 5),
    policy=st.sampled_from(Policy),
)
def test_ranges_are_the_rule(
    first: list[int], origins: list[int], lookback: int, horizon: int, delay: int, policy: Policy
) -> None:
    spec = WindowSpec(lookback=lookback, horizon=horizon, known_delay=delay)
    spans = spans_of(hours(*first), spec)
    query = {
        "origin": hours(*origins),
        "query_start": hours(*[o - lookback + 1 for o in origins]),
        "query_end": hours(*[o + horizon for o in origins]),
    }
    before, after = admissible_ranges(policy, spans, **query)
    row = np.arange(len(first))
    ranged = (row < before[:, None]) | (row >= after[:, None])
    np.testing.assert_array_equal(ranged, is_admissible(policy, spans, **{k: v[:, None] for k, v in query.items()}))
    assert (before <= after).all()


def test_the_check_names_what_leaked() -> None:
    spans = spans_of(hours(1, 20), WindowSpec(lookback=4, horizon=2))
    query = {"origin": hours(10), "query_start": hours(7), "query_end": hours(12)}
    require_admissible(Policy.CAUSAL, spans, np.array([True, False]), **query)
    with pytest.raises(LeakError, match=r"1 of 2 neighbours .* slot \(1,\), known at 1970-01-02T01"):
        require_admissible(Policy.CAUSAL, spans, np.array([True, True]), **query)


# The result checks itself


@pytest.fixture(scope="module")
def memory(tmp_path_factory: pytest.TempPathFactory) -> LocalMemory:
    return open_version(built(tmp_path_factory.mktemp("leakage")))


def planted(answer: Neighbours, row: int, slot: tuple[int, ...]) -> Neighbours:
    """The answer with one row exchanged, as a wrong search, reply or cache would give it."""
    rows = answer.row.copy()
    rows[slot] = row
    return replace(answer, row=rows)


# Offsets from the query's origin, in hours, of the time at which a window is known: admissible, and one step too far.
# Under `disjoint` the query covers 35 hours back to 8 ahead, and a window is known 43 hours after it starts.
BORDERS = {
    Policy.CAUSAL: [(0, 1)],
    Policy.DISJOINT: [(-36, -35), (9 + 43, 8 + 43)],
}


@pytest.mark.parametrize("policy", Policy)
def test_an_answer_with_a_planted_row_cannot_be_constructed(memory: LocalMemory, policy: Policy) -> None:
    windows, now, hour = memory.windows, wide_table().series[0].times[150], np.timedelta64(1, "h")
    answer = memory.search(queries_at(wide_table(), [150], policy, series=["load"]), 4)
    assert answer.valid.all()
    for slot in np.ndindex(answer.row.shape):
        for series in range(3):  # a correlated series at the same hour leaks as surely as the same one
            row_at = {windows.known_at[row]: int(row) for row in np.flatnonzero(windows.series == series)}
            for good, bad in BORDERS[policy]:
                assert planted(answer, row_at[now + good * hour], slot).row[slot] == row_at[now + good * hour]
                with pytest.raises(LeakError, match=f"under '{policy}'"):
                    planted(answer, row_at[now + bad * hour], slot)


def test_rows_and_distances_must_belong_together(memory: LocalMemory) -> None:
    answer = memory.search(queries_at(wide_table(), [150]), 4)
    with pytest.raises(ValueError, match="row -1 and distance"):
        planted(answer, -1, (0, 0, 0, 0))
    with pytest.raises(ValueError, match="row -1 and distance"):
        planted(answer, len(memory.windows), (0, 0, 0, 0))
    with pytest.raises(ValueError, match="shape of row"):
        replace(answer, distance=answer.distance[..., :2])


# The poisoned future


def answers(memory: LocalMemory, queries: Queries) -> list[Neighbours]:
    scopes = dict.fromkeys(record.scope for record in memory.manifest.spaces)
    return [memory.search(queries, 6, scopes=(scope,)) for scope in scopes]  # type: ignore[arg-type]


def assert_all_same(found: list[Neighbours], expected: list[Neighbours], *, rows: bool = True) -> None:
    assert any(answer.valid.any() for answer in expected)
    for one, other in zip(found, expected, strict=True):
        assert_same(one, other, rows=rows)


def test_garbage_that_is_known_does_change_the_answer(tmp_path: Path) -> None:
    """So that the tests below could fail."""
    table = wide_table(150)
    times, found = table.series[0].times, []
    for each in (table, poisoned(table, times[89], seed=1)):
        store = Store(tmp_path / str(len(found)))
        version = append(
            store, build_until(store, table, times[80], window=SHORT, encoder=ONE_VIEW).ref, between(each, 0, 150)
        )
        found.append(open_version(version).search(queries_at(table, [94, 140], lookback=12), 6, scopes=("own",)))
    assert not np.array_equal(found[0].row[1], found[1].row[1])
    assert not np.array_equal(found[0].space_forecasts()[1], found[1].space_forecasts()[1])


def check_rebuild(table: SeriesTable, last: int, origin: int, seed: int, window: WindowSpec) -> None:
    """Garbage later than an origin at or after `fitted_until` changes nothing, though the version is built again."""
    times = table.series[0].times
    asked = queries_at(table, [origin], lookback=window.lookback)
    found = []
    for each in (table, poisoned(table, times[origin], seed=seed)):
        with tempfile.TemporaryDirectory() as folder:
            version = build_until(Store(folder), each, times[last], window=window, encoder=ONE_VIEW)
            assert np.datetime64(version.manifest.fitted_until) <= times[origin]
            found.append(answers(open_version(version, threads=1), asked))
    assert_all_same(*found)


REBUILDS = {
    "last": st.integers(40, 110),
    "behind": st.integers(0, 30),
    "seed": st.integers(0, 10**6),
    "delay": st.sampled_from([0, 0, 3]),
    "stride": st.sampled_from([1, 1, 5]),
}


@given(**REBUILDS)
@settings(max_examples=12)
def test_what_is_later_than_the_origin_does_not_matter_to_a_rebuild(
    last: int, behind: int, seed: int, delay: int, stride: int
) -> None:
    window = replace(SHORT, known_delay=delay, stride=stride)
    check_rebuild(wide_table(150), last, last + behind, seed, window)


@pytest.mark.soak
@given(**REBUILDS)
def test_what_is_later_than_the_origin_does_not_matter_to_many_rebuilds(
    last: int, behind: int, seed: int, delay: int, stride: int
) -> None:
    window = replace(SHORT, known_delay=delay, stride=stride)
    check_rebuild(wide_table(150), last, last + behind, seed, window)


@pytest.mark.parametrize("name", STEPS)
def test_a_rebuild_with_other_steps(name: str) -> None:
    step, start = STEPS[name]
    check_rebuild(wide_table(150, step=step, start=start), 88, 91, 1, replace(SHORT, known_delay=2))


def check_append(table: SeriesTable, stored: int, origin: int, seed: int, window: WindowSpec) -> None:
    """Garbage appended later than any origin changes nothing, with the encoder kept."""
    times = table.series[0].times
    with tempfile.TemporaryDirectory() as folder:
        store = Store(folder)
        first = build_until(store, known_until(table, times[stored]), times[stored], window=window, encoder=ONE_VIEW)
        asked = [
            Queries(
                context=series.values[None, None, position - window.lookback + 1 : position + 1].astype(np.float32),
                origin=times[origin : origin + 1],
                series_id=np.array([series.series_id]),
                policy=Policy.CAUSAL,
            )
            for series in table.series
            if (position := int(np.searchsorted(series.times, times[origin]))) >= window.lookback
            and position < len(series)
            and np.isfinite(series.values[position - window.lookback + 1 : position + 1]).all()
        ]
        assert asked
        if table.shares_times and len(asked) == len(table.series):  # the joint scope too
            asked.append(queries_at(table, [origin], lookback=window.lookback))
        found = []
        for each in (table, poisoned(table, max(times[origin], times[stored]), seed=seed)):
            memory = open_version(append(store, first.ref, each), threads=1)
            found.append(
                [memory.search(queries, 6, scopes=scopes) for queries in asked for scopes in (None, ("pooled",))]
            )
        assert_all_same(*found)


APPENDS = {
    "stored": st.integers(70, 100),
    "origin": st.integers(60, 148),
    "seed": st.integers(0, 10**6),
    "delay": st.sampled_from([0, 3]),
}
TABLES = {
    "wide": wide_table(150),
    "ragged": ragged_table(150),
    "missing": with_missing(wide_table(150), [("flat", 20), ("load", 21), ("beat", 90), ("load", 118)]),
}


@given(**APPENDS)
@settings(max_examples=6)
@pytest.mark.parametrize("kind", TABLES)
def test_what_is_appended_later_than_the_origin_does_not_matter(
    kind: str, stored: int, origin: int, seed: int, delay: int
) -> None:
    origin = max(origin, stored) if kind == "missing" else origin
    check_append(
        TABLES[kind], stored, min(origin, 130) if kind == "missing" else origin, seed, replace(SHORT, known_delay=delay)
    )


@pytest.mark.soak
@given(**APPENDS)
@pytest.mark.parametrize("kind", ["wide", "ragged"])
def test_what_is_appended_later_never_matters(kind: str, stored: int, origin: int, seed: int, delay: int) -> None:
    check_append(TABLES[kind], stored, origin, seed, replace(SHORT, known_delay=delay))


@pytest.mark.parametrize("name", STEPS)
def test_appending_with_other_steps(name: str) -> None:
    step, start = STEPS[name]
    table = wide_table(150, step=step, start=start)
    for origin in (75, 90, 130):
        check_append(table, 80, origin, origin, replace(SHORT, known_delay=1))


def test_before_the_delay_has_passed_a_window_is_not_seen(tmp_path: Path) -> None:
    table, delay = wide_table(150), 5
    version = build_until(
        Store(tmp_path), table, table.series[0].times[-1], window=replace(SHORT, known_delay=delay), encoder=ONE_VIEW
    )
    found = open_version(version).search(queries_at(table, range(60, 150), lookback=12), 200, scopes=("own",))
    newest = found.windows.origin(found.row.max(axis=-1))[:, 0, 0]  # rows of one series are in time order
    seen = found.valid[:, 0, 0].all(axis=-1) | (found.row[:, 0, 0] >= 0).any(axis=-1)
    assert seen.all()
    # The last window of `load` that is known has its origin horizon + delay steps before the query's.
    np.testing.assert_array_equal(newest, table.series[0].times[60 - 4 - delay : 150 - 4 - delay])


# Disjoint


@pytest.mark.parametrize("name", STEPS)
def test_no_neighbour_shares_a_step_with_the_query(name: str, tmp_path: Path) -> None:
    step, start = STEPS[name]
    table = wide_table(150, step=step, start=start)
    times = table.series[0].times
    memory = open_version(build_until(Store(tmp_path), table, times[-1], window=SHORT, encoder=ONE_VIEW))
    rows = np.arange(12, 146)
    for answer in answers(memory, queries_at(table, rows, Policy.DISJOINT, lookback=12)):
        origin = np.searchsorted(times, answer.windows.origin(np.maximum(answer.row, 0)))
        distance = np.abs(origin - rows[:, None, None, None])
        assert (distance[answer.valid] >= SHORT.length).all()
        if "own" in {space.scope for space in answer.spaces}:
            load = answer.valid[:, 0, 0]  # no window of `load` is flat: all others but those around are there
            everything = memory.search(queries_at(table, rows, Policy.DISJOINT, lookback=12), 200, scopes=("own",))
            expected = [(np.abs(np.arange(11, 146) - row) >= SHORT.length).sum() for row in rows]
            np.testing.assert_array_equal(everything.valid[:, 0, 0].sum(axis=-1), expected)
            assert load.any()


def test_in_a_ragged_table_time_decides_and_not_the_row(tmp_path: Path) -> None:
    table = ragged_table(150)
    memory = open_version(
        build_until(Store(tmp_path), table, table.series[0].times[-1], window=SHORT, encoder=ONE_VIEW)
    )
    for series in table.series:
        for policy in Policy:
            asked = queries_at(table, range(20, len(series) - 5, 7), policy, series=[series.series_id], lookback=12)
            found = memory.search(asked, 300, scopes=("own", "pooled"))
            spans, origin = found.spans, asked.origin[:, None, None, None]
            if policy is Policy.CAUSAL:
                allowed = spans.end_at <= origin
            else:
                hour = np.timedelta64(1, "h")
                allowed = (spans.end_at < origin - 11 * hour) | (spans.start_at > origin + 4 * hour)
            assert allowed[found.valid].all()
            assert len(np.unique(found.series[found.valid])) == 3
