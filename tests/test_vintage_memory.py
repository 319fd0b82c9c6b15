"""Versions with vintages: what they store and refuse, and what each window and each query sees."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from covariate_fixtures import ENCODER, WINDOW, built_with, covariate_table
from hypothesis import given, settings
from hypothesis import strategies as st
from memory_fixtures import Store, append, assert_close, assert_same, between, compact, open_version, use_indexes
from service_fixtures import served
from test_covariate_memory import queries_of
from vintage_fixtures import issued_steps, vintage_table, with_values, with_vintages_of

from memory_index import memory_only
from memory_index.covariates import Vintages
from memory_index.errors import DataError, IncompatibleError
from memory_index.local import LocalMemory
from memory_index.milvus.publish import publish
from memory_index.milvus.searching import open_milvus
from memory_index.remote import RemoteMemory
from memory_index.scenarios import parse_changes, with_changes
from memory_index.step_vintages import on_steps
from memory_index.tables.series import SeriesTable
from memory_index.versions.archive import export, import_version
from memory_index.versions.opening import verify_contents
from memory_index.versions.version import verify


@pytest.fixture(scope="module", params=[True, False], ids=["shared", "each its own"])
def table(request: pytest.FixtureRequest) -> SeriesTable:
    return vintage_table(shared=request.param)


@pytest.fixture(scope="module")
def memory(table: SeriesTable, tmp_path_factory: pytest.TempPathFactory) -> LocalMemory:
    return open_version(built_with(tmp_path_factory.mktemp("issued"), table))


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_steps_and_means_are_what_plain_loops_find(data: st.DataObject) -> None:
    """Two stretches of 9 and 7 steps; issues before, between and after the steps."""
    start, hour = np.datetime64("2024-01-01", "ns"), np.timedelta64(1, "h")
    lengths, view = (9, 7), data.draw(st.integers(1, 6))
    keys = st.tuples(st.integers(0, 1), st.integers(-2, 10), st.integers(-4, 24))
    drawn = data.draw(st.dictionaries(keys, st.integers(-5, 5), min_size=1, max_size=40))
    rows = sorted(drawn)
    vintages = Vintages(
        columns=("t",),
        series_ids=("a", "b"),
        column=np.zeros(len(rows), dtype=np.int32),
        series=np.array([series for series, _, _ in rows], dtype=np.int32),
        time=np.array([start + step * hour for _, step, _ in rows]),
        # half of them between two steps
        issued_at=np.array([start + issue * np.timedelta64(30, "m") for _, _, issue in rows]),
        value=np.array([float(drawn[row]) for row in rows]),
    )
    stretches = [(name, start + np.arange(num) * hour) for name, num in zip(("a", "b"), lengths, strict=True)]
    found = on_steps(vintages, "t", stretches)  # type: ignore[arg-type]
    means = found.means(found.value[:, None], view)[:, 0]
    for series, first in ((0, 0), (1, lengths[0])):
        for origin in range(lengths[series]):
            known = np.full(lengths[series], np.nan)
            for step in range(lengths[series]):
                issues = [row for row in rows if row[:2] == (series, step) and row[2] <= 2 * origin]
                known[step] = drawn[issues[-1]] if issues else np.nan
            steps = first + np.arange(lengths[series])
            np.testing.assert_array_equal(found.as_of(steps, np.array(first + origin)), known)
            if origin + 1 >= view:
                mean = np.nan_to_num(known[origin + 1 - view : origin + 1]).mean()
                assert means[first + origin] == pytest.approx(mean, abs=1e-6)


def test_a_window_sees_what_was_issued_by_its_origin(memory: LocalMemory, table: SeriesTable) -> None:
    stored, windows = memory.windows.covariates, memory.windows
    rows = np.arange(0, len(windows), 41)
    raw = stored.raw(windows.series[rows], windows.origin_row[rows])
    for place, row in enumerate(rows):
        series, origin = windows.series[row], windows.origin_row[row]
        times = table.series[series].times[origin - WINDOW.lookback + 1 : origin + WINDOW.horizon + 1]
        issued = table.covariates.vintages.of_series("temperature", table.series_ids[series], times, times[23])
        np.testing.assert_array_equal(raw[place, 0], issued.astype(np.float32))
    for view in windows.views:
        beside = stored.windows(windows.series[rows], windows.origin_row[rows], (view,))
        plain = stored.layout.of_values(raw, (view,))
        np.testing.assert_array_equal(beside.near, plain.near)
        np.testing.assert_allclose(beside.means[view], plain.means[view], atol=1e-6)
        unheld = replace(stored, origins=None).windows(windows.series[rows], windows.origin_row[rows], (view,))
        np.testing.assert_array_equal(unheld.near, beside.near)


def test_a_version_says_and_verifies_its_vintages(tmp_path: Path, table: SeriesTable) -> None:
    version = built_with(tmp_path, table)
    by_name = {column.name: column for column in version.manifest.covariates}
    assert [name for name, column in by_name.items() if column.vintages] == ["temperature", "sky"]
    assert by_name["temperature"].weight[0] > 0
    [segment] = version.manifest.segments
    shown = issued_steps(table)[1] <= 559
    assert segment.num_vintages == shown.sum()
    assert verify(version) == ()
    assert verify_contents(version) == []
    copy = import_version(Store(tmp_path / "copy"), export(version, tmp_path / "m.zip")).version
    assert verify_contents(copy) == []
    assert copy.manifest.fingerprint == version.manifest.fingerprint
    (version.path / "segment-0" / "vintages.parquet").write_bytes(b"other")
    assert [problem.file for problem in verify(version)] == ["segment-0/vintages.parquet"]


def test_a_grown_or_compacted_version_answers_as_one_that_was_built_so(
    tmp_path: Path, table: SeriesTable, memory: LocalMemory
) -> None:
    store = Store(tmp_path)
    version = built_with(tmp_path, table, num_training=500)
    grown = append(store, append(store, version.ref, between(table, 0, 530)).ref, between(table, 300, 640))
    merged = compact(store, grown.ref)
    once = append(store, version.ref, between(table, 0, 640))
    assert [verify_contents(each) for each in (grown, merged, once)] == [[], [], []]
    queries = queries_of(memory, table)
    assert_same(open_version(merged).search(queries, 7), open_version(grown).search(queries, 7), rows=False)
    assert_same(open_version(once).search(queries, 7), open_version(merged).search(queries, 7), rows=False)
    sizes = [sum(each.num_vintages for each in version.manifest.segments) for version in (grown, merged, once)]
    assert sizes == [(issued_steps(table)[1] <= 639).sum()] * 3


def test_appended_vintages_agree_with_those_that_are_stored(tmp_path: Path, table: SeriesTable) -> None:
    store = Store(tmp_path)
    version = built_with(tmp_path, table, num_training=500)
    issue = issued_steps(table)[1]
    with pytest.raises(IncompatibleError, match=r"'temperature' at 2021-03-\S+, issued at 2021-\S+, is \S+, but the"):
        append(store, version.ref, with_values(table, (issue == 400) & (table.covariates.vintages.column == 0), seed=1))
    with pytest.raises(IncompatibleError, match="does not say when the values of 'temperature', 'sky' were issued"):
        append(store, version.ref, covariate_table(shared=version.manifest.shared_covariates))
    only_new = table.covariates.vintages.take(issue > 499)
    grown = append(store, version.ref, with_vintages_of(table, only_new))
    assert verify_contents(grown) == []
    vintages = table.covariates.vintages
    fewer = with_vintages_of(table, vintages.take(issue != 400))
    built = built_with(tmp_path, fewer, num_training=500, name="fewer")
    notes = append(store, built.ref, table).manifest.built.notes
    assert any(
        f"{(issue == 400).sum()} values of vintages were issued before the version's last step" in n for n in notes
    )


def test_every_memory_answers_alike(tmp_path: Path, table: SeriesTable) -> None:
    version = append(Store(tmp_path), built_with(tmp_path, table).ref, between(table, 0, 600))
    local = open_version(version)
    queries = queries_of(local, table)
    with ExitStack() as stack:
        address = stack.enter_context(served(tmp_path, ["weather"]))
        remote = RemoteMemory(f"{address}/weather")
        assert_same(remote.search(queries, 6), local.search(queries, 6))
        np.testing.assert_array_equal(remote.search(queries, 6).forecast(), local.search(queries, 6).forecast())
        np.testing.assert_array_equal(remote.linear_forecast(queries), local.linear_forecast(queries))


def test_milvus_proposes_candidates_for_keys_made_of_vintages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_indexes(monkeypatch)
    table = vintage_table()
    version = built_with(tmp_path, table, encoder=replace(ENCODER, views=(12,)), scopes=("own",))
    address = f"milvus:{tmp_path / 'milvus.db'}"
    publish(version, address, index="FLAT")
    local = open_version(version, with_indexes=False)
    queries = queries_of(local, table).at_moments(slice(0, 3))
    found = open_milvus(version, address, threads=1).search(queries, 5)
    assert_close(found, local.search(queries, 5))
    np.testing.assert_allclose(found.forecast(), local.search(queries, 5).forecast(), rtol=1e-5)


def test_a_query_without_vintages_is_refused_but_at_the_latest_origin(memory: LocalMemory, table: SeriesTable) -> None:
    plain = covariate_table(shared=memory.manifest.shared_covariates)
    with pytest.raises(IncompatibleError, match="does not say when the values of 'temperature', 'sky' were issued"):
        queries_of(memory, plain)
    assert len(memory_only.forecast(memory, plain)) == 2 * WINDOW.horizon  # what it says is what is known now


def test_a_version_of_plain_columns_refuses_vintages(tmp_path: Path, table: SeriesTable) -> None:
    plain = open_version(built_with(tmp_path, covariate_table(shared=table.layout == "wide")))
    with pytest.raises(IncompatibleError, match="'temperature' has vintages, but the version was built on what is"):
        queries_of(plain, table)


def test_what_was_not_issued_by_the_origin_is_named(memory: LocalMemory, table: SeriesTable) -> None:
    vintages, (step, issue) = table.covariates.vintages, issued_steps(table)
    late = (vintages.column == 0) & (step > 701) & (issue < 700)
    short = with_vintages_of(table, vintages.take(~late))
    said = r"'temperature' of series 'north' has no value at 2021-03-30T06.* that was issued by the origin 2021-03"
    with pytest.raises(DataError, match=said) as told:
        memory_only.forecast(memory, short)
    assert "vintages" in told.value.hint


def test_windows_before_the_first_issue_are_counted_and_none_at_all_is_refused(tmp_path: Path) -> None:
    table = vintage_table()
    vintages, (step, issue) = table.covariates.vintages, issued_steps(table)
    version = built_with(tmp_path, with_vintages_of(table, vintages.take(issue >= 100)))
    [note] = [each for each in version.manifest.built.notes if each.startswith("'temperature'")]
    assert note.startswith(f"'temperature': {2 * (100 - 23)} of {version.manifest.num_rows:,} windows have steps ahead")
    with pytest.raises(DataError, match="no value of 'temperature' was issued by the origin of any training window"):
        built_with(tmp_path, with_vintages_of(table, vintages.take(issue >= step)), name="late")


def test_a_scenario_changes_what_was_issued(memory: LocalMemory, table: SeriesTable) -> None:
    at = table.series[0].times[620]
    changes = parse_changes(["temperature+=5"])
    warm = with_changes(table, changes, memory.manifest.covariates, WINDOW.horizon, at=at)
    plain, changed = (queries_of(memory, each, np.array([620])).covariates for each in (table, warm))
    np.testing.assert_allclose(changed[0, 1, 0, 24:], plain[0, 1, 0, 24:] + 5, rtol=1e-5)
    np.testing.assert_array_equal(changed[0, 1, 0, :24], plain[0, 1, 0, :24])
