"""Growing a version: what is appended answers as if it had always been there, and what does not fit is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from memory_fixtures import (
    ENCODER,
    HOURLY,
    NUM_STEPS,
    NUM_TRAINING,
    WINDOW,
    LocalMemory,
    Policy,
    SeriesTable,
    Step,
    Store,
    Version,
    append,
    appended,
    assert_close,
    assert_same,
    between,
    build_until,
    built,
    compact,
    known_until,
    open_version,
    part,
    queries_at,
    ragged_table,
    rebuilt_with_same_encoder,
    use_indexes,
    wide_table,
    with_missing,
    with_values,
)

from memory_index.errors import DataError, IncompatibleError, UsageError
from memory_index.queries import require_same_data
from memory_index.tables.columns import ReadOptions
from memory_index.tables.reading import read_frame
from memory_index.tables.series import Series
from memory_index.tables.steps import step_of
from memory_index.versions.opening import verify_contents

HOUR = np.timedelta64(1, "h")
MISSING = with_missing(wide_table(), [("flat", 30), ("load", 250), ("beat", 262), ("flat", 290), ("load", 291)])


def assert_like_a_rebuild(
    folder: Path, memory: LocalMemory, table: SeriesTable, asked: SeriesTable, *, rows: bool = True
) -> None:
    """A memory that has grown to a table answers as one segment of all its windows. asked: without missing values."""
    rebuilt = rebuilt_with_same_encoder(folder / "rebuilt", memory, table)
    assert len(rebuilt.windows) == len(memory.windows)
    for policy in Policy:
        for scopes in dict.fromkeys((record.scope,) for record in memory.manifest.spaces):
            names = [None] if asked.shares_times else [[name] for name in asked.series_ids]
            for series in names:
                queries = queries_at(asked, range(60, min(len(s) for s in asked.series), 7), policy, series=series)
                found, expected = (m.search(queries, 8, scopes=scopes) for m in (memory, rebuilt))
                assert expected.valid.any()
                assert_same(found, expected, rows=rows)


@pytest.mark.parametrize("stride", [1, 5])
@pytest.mark.parametrize("delay", [0, 4])
def test_a_grown_version_answers_like_a_rebuild(stride: int, delay: int, tmp_path: Path) -> None:
    window = replace(WINDOW, stride=stride, known_delay=delay)
    version = built(tmp_path, window=window)
    for end in (262, 263, 300, NUM_STEPS):
        grown = appended(tmp_path, version, end)
        assert len(grown.manifest.segments) == 2
        memory = open_version(grown)
        assert_like_a_rebuild(tmp_path / f"{end}", memory, between(wide_table(), 0, end), wide_table())


def test_three_small_steps_are_one(tmp_path: Path) -> None:
    """With a stride of 5, some of the steps bring no new window at all."""
    version = built(tmp_path, window=replace(WINDOW, stride=5))
    small = open_version(appended(tmp_path, version, 261, 262, 263, 270, 271, 300))
    large = open_version(appended(tmp_path, version, 300))
    assert [len(segment.windows) for segment in small.segments][1:] == [0, 0, 0, 6, 0, 18]
    for scopes in (("own", "joint"), ("pooled",)):
        for policy in Policy:
            queries = queries_at(wide_table(), range(50, NUM_STEPS, 3), policy)
            assert_same(small.search(queries, 7, scopes=scopes), large.search(queries, 7, scopes=scopes))
    assert small.windows.values.shape == large.windows.values.shape
    np.testing.assert_array_equal(small.windows.values, large.windows.values)


def test_windows_with_missing_values_are_those_of_a_rebuild(tmp_path: Path) -> None:
    store, times = Store(tmp_path), MISSING.series[0].times
    version = build_until(store, MISSING, times[NUM_TRAINING - 1])
    memory = open_version(appended(tmp_path, version, 263, NUM_STEPS, table=MISSING))
    assert memory.windows.has_holes.any()
    assert_like_a_rebuild(tmp_path, memory, MISSING, wide_table())


def test_only_the_new_rows_are_needed(tmp_path: Path) -> None:
    version = built(tmp_path)
    whole = append(Store(tmp_path), version.ref, wide_table())
    for start in (NUM_TRAINING, NUM_TRAINING - 3):
        tail = append(Store(tmp_path), version.ref, between(wide_table(), start, NUM_STEPS))
        assert tail.manifest.data_sha256 == whole.manifest.data_sha256
        assert tail.manifest.files == whole.manifest.files


def ends(table: SeriesTable, *rows: int) -> SeriesTable:
    return replace(table, series=tuple(part(series, 0, row) for series, row in zip(table.series, rows, strict=True)))


def test_a_version_of_whole_moments_grows_series_by_series(tmp_path: Path) -> None:
    store, version = Store(tmp_path), built(tmp_path)
    for rows in [(300, 290, 310), (320, NUM_TRAINING, 325), (NUM_STEPS,) * 3]:
        version = append(store, version.ref, ends(wide_table(), *rows))
        assert len(version.manifest.built.skipped) == (NUM_TRAINING in rows)
        stored = open_version(version).windows
        assert [stored.offset[n + 1] - stored.offset[n] for n in range(3)] >= [*rows]
    # Row ids follow the order of appending, so only rows at the same distance may differ.
    assert_like_a_rebuild(tmp_path / "again", open_version(version), wide_table(), wide_table(), rows=False)


def test_ragged_series_grow_apart(tmp_path: Path) -> None:
    table = ragged_table()
    last = table.series[0].times[259]
    version = build_until(Store(tmp_path), known_until(table, last), last)
    assert version.manifest.joint != "built"
    once = append(Store(tmp_path), version.ref, known_until(table, last + 30 * HOUR))
    memory = open_version(append(Store(tmp_path), once.ref, table))
    # Row ids follow the order of appending, so only rows at the same distance may differ.
    assert_like_a_rebuild(tmp_path, memory, table, table, rows=False)


def test_one_series_alone_may_grow(tmp_path: Path) -> None:
    table = wide_table()
    longer = replace(table, series=(table.series[0], *between(table, 0, 280).series[1:]))
    assert open_version(append(Store(tmp_path), built(tmp_path).ref, longer)).windows.times.max() == table.times[-1]
    version = built(tmp_path, name="apart", scopes=("own", "pooled"))
    memory = open_version(append(Store(tmp_path), version.ref, longer))
    assert_like_a_rebuild(tmp_path, memory, longer, between(table, 0, 280), rows=False)


def test_until_stops_and_the_delay_counts(tmp_path: Path) -> None:
    table = wide_table()
    times = table.series[0].times
    version = built(tmp_path, window=replace(WINDOW, known_delay=4))
    assert version.manifest.fitted_until == str(times[NUM_TRAINING - 1 - 4])
    assert version.manifest.last_known_at == str(times[NUM_TRAINING - 1])
    grown = append(Store(tmp_path), version.ref, table, until=times[299])
    assert grown.manifest.last_known_at == str(times[299])
    assert open_version(grown).windows.times.max() == times[295]


def test_nothing_is_fitted_or_encoded_again(tmp_path: Path) -> None:
    version = built(tmp_path)
    grown = appended(tmp_path, version, 300)
    old, new = version.manifest, grown.manifest
    assert new.parent == old.fingerprint
    for path, record in old.files.items():
        assert new.files[path] == record
        assert (grown.path / path).samefile(version.path / path)
    for name in ("encoder", "fitted_until", "split", "window", "first_known_at", "joint", "series_ids"):
        assert getattr(new, name) == getattr(old, name)
    assert [record.temperature for record in new.spaces] == [record.temperature for record in old.spaces]
    assert new.num_rows == old.num_rows + 3 * 40
    assert open_version(version).search(queries_at(wide_table(), [300]), 5).row.max() < old.num_rows


@pytest.mark.parametrize("stride", [1, 5])
def test_compacting_changes_no_answer(stride: int, tmp_path: Path) -> None:
    version = appended(tmp_path, built(tmp_path, window=replace(WINDOW, stride=stride)), 263, 264, NUM_STEPS)
    memory, merged = open_version(version), open_version(compact(Store(tmp_path), version.ref))
    assert len(merged.segments) == 1
    for scopes in (("own", "joint"), ("pooled",)):
        for policy in Policy:
            queries = queries_at(wide_table(), range(50, NUM_STEPS, 3), policy)
            assert_same(merged.search(queries, 9, scopes=scopes), memory.search(queries, 9, scopes=scopes))
    with pytest.raises(UsageError, match="only one segment"):
        compact(Store(tmp_path), "small")


def test_compacting_ragged_series_changes_no_distance(tmp_path: Path) -> None:
    table = ragged_table()
    last = table.series[0].times[259]
    version = append(Store(tmp_path), build_until(Store(tmp_path), known_until(table, last), last).ref, table)
    memory, merged = open_version(version), open_version(compact(Store(tmp_path), version.ref))
    for series in table.series:
        queries = queries_at(table, range(60, len(series), 5), series=[series.series_id])
        for scope in ("own", "pooled"):
            assert_close(merged.search(queries, 5, scopes=(scope,)), memory.search(queries, 5, scopes=(scope,)))


def test_compacting_puts_late_comers_in_their_place(tmp_path: Path) -> None:
    """Two series catch up with the first: the second segment has windows that were known before some of the first's."""
    table = wide_table()
    ahead = replace(table, series=(table.series[0], *between(table, 0, 280).series[1:]))
    version = built(tmp_path, scopes=("own", "pooled"))
    version = append(Store(tmp_path), append(Store(tmp_path), version.ref, ahead).ref, table)
    memory, merged = open_version(version), open_version(compact(Store(tmp_path), version.ref))
    assert (np.diff(memory.windows.known_at) < np.timedelta64(0)).any()
    assert (np.diff(merged.windows.known_at) >= np.timedelta64(0)).all()
    assert_like_a_rebuild(tmp_path / "grown", memory, table, table, rows=False)
    assert_like_a_rebuild(tmp_path / "merged", merged, table, table)


def test_versions_pass_their_own_check(tmp_path: Path) -> None:
    first = built(tmp_path)
    grown = appended(tmp_path, first, 261, 300)
    for version in (first, grown, compact(Store(tmp_path), grown.ref)):
        assert verify_contents(version) == []


def test_an_approximate_version_that_has_grown_keeps_its_recall(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_indexes(monkeypatch)
    version = appended(tmp_path, built(tmp_path, factory="HNSW16"), 330)
    assert any(path.startswith("segment-1/") and path.endswith(".faiss") for path in version.manifest.files)
    assert min(record.recall_at_10 for record in version.manifest.spaces) > 0.9
    memory = open_version(version)
    rebuilt = rebuilt_with_same_encoder(tmp_path / "rebuilt", exact(memory), between(wide_table(), 0, 330))
    queries = queries_at(wide_table(), range(60, NUM_STEPS, 3))
    for scopes in (("own",), ("pooled",)):
        found, expected = (m.search(queries, 10, scopes=scopes) for m in (memory, rebuilt))
        assert np.isclose(found.distance, expected.distance, rtol=1e-5)[expected.valid].mean() > 0.98


def exact(memory: LocalMemory) -> LocalMemory:
    """The same memory, described as scanned exactly."""
    spaces = tuple(replace(record, factory="Flat") for record in memory.manifest.spaces)
    return LocalMemory(replace(memory.manifest, spaces=spaces), memory.encoder, memory.windows, memory.segments)


# What is refused


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, Version]:
    folder = tmp_path_factory.mktemp("refused")
    return Store(folder), built(folder)


def changed(row: int, name: str) -> SeriesTable:
    at = wide_table().series[0].times[row]
    return with_values(
        wide_table(), lambda s: np.where((s.times == at) & (s.series_id == name), s.values + 0.125, s.values)
    )


def test_an_overlap_that_differs_names_the_first_cell(base: tuple[Store, Version]) -> None:
    store, version = base
    table = changed(200, "flat")
    at = table.series[0].times[200].astype("datetime64[s]")
    old, new = wide_table()["flat"].values[200], table["flat"].values[200]
    with pytest.raises(IncompatibleError) as caught:
        append(store, version.ref, table)
    assert f"series 'flat' at {at} is {new}, but the version has {old} (1 of 260 overlapping steps" in str(caught.value)
    holed = append(store, version.ref, with_missing(wide_table(), [("load", 100)]))  # which disagrees with nothing
    assert holed.manifest.data_sha256 == append(store, version.ref, wide_table()).manifest.data_sha256
    assert append(store, version.ref, changed(NUM_TRAINING, "flat")).manifest.parent == version.manifest.fingerprint


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (
            between(wide_table(), NUM_TRAINING + 1, NUM_STEPS),
            r"begins at 2021-03-11T21:00:00, but the version ends before",
        ),
        (wide_table(start=np.datetime64("2021-02-28T22:00", "ns")), "before or between the steps"),
        (wide_table(start=np.datetime64("2021-03-01T00:30", "ns")), "before or between the steps"),
        (replace(wide_table(), series=(replace(wide_table().series[0], series_id="new"),)), "none of the series"),
        (wide_table(step=Step(frequency="30min")), "has the step 30min, the version h"),
        (wide_table(step=replace(HOURLY, time_zone="UTC")), "has the step h in UTC"),
    ],
)
def test_what_does_not_continue_the_version_is_refused(
    base: tuple[Store, Version], table: SeriesTable, message: str
) -> None:
    store, version = base
    numbers = store.numbers("small")
    with pytest.raises(IncompatibleError, match=message) as caught:
        append(store, version.ref, table)
    assert caught.value.hint
    assert store.numbers("small") == numbers


@pytest.mark.parametrize("end", [NUM_TRAINING, NUM_TRAINING - 100])
def test_nothing_new_is_refused(base: tuple[Store, Version], end: int) -> None:
    store, version = base
    with pytest.raises(DataError, match="has no steps after 2021-03-11T19:00:00"):
        append(store, version.ref, between(wide_table(), 0, end))
    with pytest.raises(DataError, match="has no steps after"):
        append(store, version.ref, wide_table(), until=wide_table().series[0].times[NUM_TRAINING - 1])


LAST_BITS = {
    "another order of a sum": lambda values: values * (1 + 4e-16) + 1e-13,
    "float32": lambda values: values.astype(np.float32).astype(np.float64),
    "float32 of other values beside a rounding border": lambda values: np.nextafter(
        values.astype(np.float32), np.float32(np.inf)
    ).astype(np.float64),
}


@pytest.mark.parametrize("how", LAST_BITS)
def test_an_overlap_that_differs_in_the_last_bits_is_the_same_history(base: tuple[Store, Version], how: str) -> None:
    store, version = base
    table = with_values(wide_table(), lambda series: LAST_BITS[how](series.values))
    assert append(store, version.ref, table).manifest.parent == version.manifest.fingerprint
    require_same_data(table, open_version(version).windows, version.ref)
    with pytest.raises(IncompatibleError, match="overlapping steps differ"):
        append(store, version.ref, with_values(table, lambda series: series.values * (1 + 1e-6)))


@pytest.mark.parametrize("name", ["60min", "60T", "H", "hourly"])
def test_a_step_under_another_name_is_the_same_step(base: tuple[Store, Version], name: str) -> None:
    store, version = base
    table = replace(wide_table(), step=step_of(name, None))
    assert append(store, version.ref, table).manifest.parent == version.manifest.fingerprint


def lagging(num: int) -> SeriesTable:
    """The first steps of the wide table as a file would have them: the last two cells of `beat` are still empty."""
    frame = pd.DataFrame({s.series_id: s.values[:num] for s in wide_table().series}, index=wide_table().times[:num])
    frame.loc[frame.index[-2:], "beat"] = np.nan
    return read_frame(frame, ReadOptions(on_nan="drop"))


def test_empty_cells_behind_the_last_value_are_not_there_yet(tmp_path: Path) -> None:
    store, table = Store(tmp_path), lagging(NUM_TRAINING)
    version = build_until(store, table, table.times[-1])
    for end in (280, 300, NUM_STEPS - 2):
        version = append(store, version.ref, lagging(end))
        assert version.manifest.built.notes == ()
    version = append(store, version.ref, wide_table())
    memory = open_version(version)
    assert_like_a_rebuild(tmp_path, memory, wide_table(), wide_table(), rows=False)


@pytest.mark.parametrize("rows", [range(NUM_TRAINING + 20), range(NUM_TRAINING, NUM_TRAINING + 20)])
def test_rows_for_the_future_without_values_are_not_stored(tmp_path: Path, rows: range) -> None:
    """A date with empty cells is no step that has happened; nor is one of a table that was made by hand."""
    store, version = Store(tmp_path), built(tmp_path, scopes=("own", "pooled"))
    times = wide_table().times[rows.start : rows.stop]
    empty = [
        Series(
            series_id=one.series_id,
            times=times,
            values=np.where(times > wide_table().times[NUM_TRAINING + 4], np.nan, one.values[rows.start : rows.stop]),
        )
        for one in wide_table().series
    ]
    version = append(store, version.ref, replace(wide_table(), series=tuple(empty)))
    assert open_version(version).windows.times.max() == wide_table().times[NUM_TRAINING + 4]
    grown = append(store, version.ref, wide_table())
    assert_like_a_rebuild(tmp_path, open_version(grown), wide_table(), wide_table())


def test_series_may_come_in_another_order(base: tuple[Store, Version]) -> None:
    store, version = base
    turned = replace(wide_table(), series=wide_table().series[::-1])
    straight, other = (append(store, version.ref, table) for table in (wide_table(), turned))
    assert other.manifest.files == straight.manifest.files


# What is refused when building


def test_a_joint_key_of_series_that_never_have_a_window_together(tmp_path: Path) -> None:
    """Missing values may leave each series windows, but no moment at which all have one."""
    table = with_missing(
        wide_table(), [("load", row) for row in range(120)] + [("beat", row) for row in range(120, 260)]
    )
    last = table.series[0].times[259]
    version = build_until(Store(tmp_path), table, last)
    assert "missing value" in version.manifest.joint
    assert {record.scope for record in version.manifest.spaces} == {"own", "pooled"}
    with pytest.raises(IncompatibleError, match="'joint'"):
        build_until(Store(tmp_path), table, last, scopes=("own", "joint"))


def test_series_without_a_window_are_named_and_left_out(tmp_path: Path) -> None:
    table = with_missing(wide_table(), [(name, row) for name in ("flat", "beat") for row in range(20, 260, 30)])
    table = replace(table, whole_windows=True)
    version = build_until(Store(tmp_path), table, table.series[0].times[259])
    assert version.manifest.series_ids == ("load",)
    first, second = version.manifest.built.skipped
    assert (first.series_id, second.series_id) == ("flat", "beat")
    assert "260 steps, 8 of them missing, in the training part" in first.reason


def test_a_build_without_any_window_is_refused_with_the_reasons(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"3 series without a window: 'load' has 30 steps .*'flat', 'beat'"):
        build_until(Store(tmp_path), wide_table(), wide_table().series[0].times[29])
    assert Store(tmp_path).names() == ()


def test_equal_data_and_settings_give_equal_fingerprints(tmp_path: Path) -> None:
    first, second = built(tmp_path, name="one"), built(tmp_path, name="two")
    assert first.manifest.fingerprint == second.manifest.fingerprint
    other = built(tmp_path, name="three", encoder=replace(ENCODER, shape_weight=0.8))
    assert other.manifest.fingerprint != first.manifest.fingerprint


def test_values_that_have_arrived_since_are_told_of(tmp_path: Path) -> None:
    store = Store(tmp_path)
    late = with_missing(between(wide_table(), 0, NUM_TRAINING), [("load", NUM_TRAINING - n) for n in (3, 4, 5)])
    version = build_until(store, late, late.series[0].times[-1])
    grown = append(store, version.ref, wide_table())
    [note] = grown.manifest.built.notes
    assert note.startswith("series 'load': 3 values that were missing have arrived since")
    assert verify_contents(grown) == []
