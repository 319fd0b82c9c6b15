"""Missing cells stay missing: the fill, views, futures, appending, lagging series; and no fill knows the future."""

from __future__ import annotations

from dataclasses import replace

import forecaster_fixtures
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from memory_fixtures import (
    ENCODER,
    NUM_TRAINING,
    WINDOW,
    Store,
    append,
    assert_same,
    between,
    build_until,
    compact,
    open_version,
    part,
    poisoned,
    queries_at,
    wide_table,
    with_missing,
    with_values,
)

from forecaster.evaluate import evaluate as evaluate_run
from forecaster.forecast import forecast as forecast_run
from forecaster.predictor import load_predictor
from forecaster.retrieval.batches import live_blocks
from memory_index import memory_only
from memory_index.bounds import BoundsOf
from memory_index.errors import DataError
from memory_index.leakage import Policy
from memory_index.missing import filled, filled_contexts, last_known
from memory_index.products import project
from memory_index.queries import latest_origins, query_blocks
from memory_index.splits import Split
from memory_index.types import KeySpace

TABLE = wide_table()
TIMES = TABLE.times
LAST = TIMES[NUM_TRAINING - 1]


def holes(share: float = 0.1, *, seed: int = 0, outage: tuple[int, int] | None = (150, 162)):
    """The small table with cells missing at random, and an outage of one series."""
    rng = np.random.default_rng(seed)
    cells = [(s.series_id, int(row)) for s in TABLE.series for row in np.flatnonzero(rng.random(len(s)) < share)]
    return with_missing(TABLE, cells + [("load", row) for row in range(*(outage or (0, 0)))])


HOLES = with_missing(
    forecaster_fixtures.TABLE,
    [
        (series.series_id, int(row))
        for number, series in enumerate(forecaster_fixtures.TABLE.series)
        for row in np.flatnonzero(np.random.default_rng(number).random(len(series)) < 0.08)
        if row < len(series) - 1
    ]
    + [("load", row) for row in range(120, 150)],
)


@pytest.fixture(scope="module")
def version(tmp_path_factory):
    return build_until(Store(tmp_path_factory.mktemp("holes")), holes(), LAST)


@pytest.fixture(scope="module")
def memory(version):
    return open_version(version)


contexts = (
    st.integers(0, 10**6)
    .map(lambda seed: np.random.default_rng(seed))
    .map(lambda rng: np.where(rng.random((5, 30)) < rng.random(), np.nan, rng.normal(size=(5, 30)) + np.arange(30) % 7))
)


@given(contexts, st.sampled_from([None, 1, 7, 24]))
@settings(max_examples=60, deadline=None)
def test_a_fill_has_every_cell_keeps_the_known_ones_and_is_the_same_alone(context, season):
    result = filled(context, season)
    known = ~np.isnan(context)
    assert np.isfinite(result).all()
    assert np.array_equal(result[known], context[known])
    assert np.array_equal(np.stack([filled(row[None], season)[0] for row in context]), result)
    low, high = np.nanmin(context, axis=1, initial=np.inf), np.nanmax(context, axis=1, initial=-np.inf)
    spread = np.where(known.any(axis=1), high - low, 0)
    assert (np.abs(result - np.where(known.any(axis=1), low, 0)[:, None]).max(axis=1) <= 4 * spread + 1e-9).all()


def test_nothing_missing_is_not_even_copied():
    context = np.ones((2, 3, 10), dtype=np.float32)
    assert filled(context, 4) is context


def test_a_season_is_filled_by_its_phase_and_a_line_by_itself():
    season = np.tile(np.array([0.0, 5.0, 1.0, 9.0]), 8)
    gap = np.where(np.isin(np.arange(32), [9, 10, 11, 12, 31]), np.nan, season)
    assert np.allclose(filled(gap[None], 4)[0], season)
    line = np.arange(32.0)
    assert np.allclose(filled(np.where(np.isin(np.arange(32), [7, 20]), np.nan, line)[None], None)[0], line)


def test_a_shorter_lookback_reads_the_same_fill():
    values = np.where(np.random.default_rng(1).random(200) < 0.2, np.nan, np.arange(200) % 12.0)
    position = np.array([80, 120, 199])
    whole = filled(np.stack([values[p - 59 : p + 1] for p in position]), 12)
    assert np.array_equal(filled_contexts(values, position, 20, whole=60, season=12), whole[:, -20:])


def test_the_last_known_value_stands_for_a_missing_last_one():
    context = np.array([[1.0, 2.0, np.nan], [4.0, np.nan, 6.0], [np.nan] * 3])
    assert np.array_equal(last_known(context)[:, 0], [2.0, 6.0, np.nan], equal_nan=True)


def test_windows_with_holes_are_stored_and_a_view_that_misses_too_much_is_left_out(memory):
    windows, whole = memory.windows, build_rows(TABLE)
    assert 0.9 * whole < len(windows) <= whole
    for number, view in enumerate(ENCODER.views):
        context = windows.contexts(np.arange(len(windows)))[:, -view:]
        assert np.array_equal(windows.missing[:, number], np.isnan(context).sum(axis=1))
    hidden = np.flatnonzero(~windows.usable[:, 0])
    assert len(hidden)
    queries = queries_at(holes(), [NUM_TRAINING + 20])
    for space in memory.manifest.key_spaces:
        found = memory.search(queries, len(windows), scopes=(space.scope,), views=(space.view,))
        rows = np.unique(found.row[found.valid])
        assert not np.isin(rows, np.flatnonzero(~windows.usable[:, ENCODER.views.index(space.view)])).any(), space


def build_rows(table) -> int:
    return sum(NUM_TRAINING - WINDOW.length + 1 for _ in table.series)


def test_max_missing_of_nothing_stores_and_asks_whole_windows_only(tmp_path):
    window = replace(WINDOW, max_missing=0.0)
    memory = open_version(build_until(Store(tmp_path), holes(0.005, outage=(100, 104)), LAST, window=window))
    assert memory.windows.missing is None
    assert not np.isnan(memory.windows.contexts(np.arange(len(memory.windows)))).any()
    table = with_missing(TABLE, [("load", NUM_TRAINING + 15)])
    found = memory.search(queries_at(table, [NUM_TRAINING + 20]), 3)
    assert not found.valid[:, 0].any()
    assert found.valid[:, 2].any()


def test_a_missing_step_of_a_future_counts_for_nothing(memory):
    """Against a loop over neighbours and steps."""
    found = memory.search(queries_at(holes(), [NUM_TRAINING + 30, NUM_TRAINING + 60]), 6)
    assert np.isnan(found.futures()[found.valid]).any()
    expected = np.full(found.space_forecasts().shape, np.nan)
    for b, n, v in np.ndindex(*found.row.shape[:3]):
        view, place = found.spaces[v].view, memory.windows.views.index(found.spaces[v].view)
        location, spread = found.query_location[b, n, v], found.query_spread[b, n, v]
        query = (found.queries.context[b, n, -view:].astype(np.float64) - location) / spread
        total, share = np.zeros(WINDOW.horizon), np.zeros(WINDOW.horizon)
        for k, row in enumerate(found.row[b, n, v]):
            if row < 0:
                continue
            of_row = memory.windows.location[row, place], memory.windows.spread[row, place]
            context = (memory.windows.contexts(np.array([row]))[0, -view:] - of_row[0]) / of_row[1]
            future = (memory.windows.futures(np.array([row]))[0] - of_row[0]) / of_row[1]
            difference = np.nan_to_num(query - context)
            moved = location + spread * (future + project(difference[None], found.linear_maps[view])[0])
            weight = np.where(np.isnan(moved), 0, found.weights[b, n, v, k])
            total, share = total + weight * np.nan_to_num(moved), share + weight
        by_map = location + spread * project(np.nan_to_num(query)[None], found.linear_maps[view])[0]
        if found.valid[b, n, v].any():
            expected[b, n, v] = np.where(share > 0, total / np.where(share > 0, share, 1), by_map)
    assert np.allclose(found.space_forecasts(), expected, rtol=1e-4, atol=1e-4, equal_nan=True)
    quantiles = found.quantiles((0.1, 0.5, 0.9))
    assert np.isfinite(quantiles).all()
    assert (np.diff(quantiles, axis=-1) >= 0).all()


def test_what_is_asked_beside_changes_nothing(memory):
    together = queries_at(holes(), [NUM_TRAINING + 10, NUM_TRAINING + 30, NUM_TRAINING + 60])
    found = memory.search(together, 5)
    for b in range(3):
        alone = memory.search(queries_at(holes(), [NUM_TRAINING + (10, 30, 60)[b]]), 5)
        assert np.array_equal(alone.row[0], found.row[b])
        assert np.array_equal(alone.space_forecasts()[0], found.space_forecasts()[b], equal_nan=True)


@pytest.mark.parametrize("seed", range(3))
def test_no_fill_knows_later_values_or_what_is_missing_later(tmp_path, seed):
    """Poisoned future: values, and which of them are missing, after the origin decide nothing."""
    row = NUM_TRAINING + 25 + seed
    dirty = poisoned(holes(), TIMES[row], seed=seed)
    rng = np.random.default_rng(seed)
    dirty = with_values(
        dirty, lambda s: np.where((s.times > TIMES[row]) & (rng.random(len(s)) < 0.4), np.nan, s.values)
    )
    answers = []
    for number, table in enumerate((holes(), dirty)):
        store = Store(tmp_path / str(number))
        grown = append(store, build_until(store, table, LAST).ref, table)
        answers.append(open_version(grown).search(queries_at(table, [row]), 5))
    assert_same(*answers)
    assert np.array_equal(answers[0].forecast(), answers[1].forecast())


def test_stored_windows_encode_at_their_keys_and_compacting_keeps_every_answer(tmp_path):
    store = Store(tmp_path)
    grown = append(store, build_until(store, holes(), LAST).ref, holes())
    queries = queries_at(holes(), [340, 355])
    found = open_version(grown).search(queries, 5)
    merged = open_version(compact(store, grown.ref))
    assert np.array_equal(merged.search(queries, 5).distance, found.distance)
    from memory_index.versions.opening import verify_contents

    assert verify_contents(grown) == []


def test_a_lagging_series_loses_nothing_now_or_later(tmp_path):
    """Appended day by day with one series behind: the windows and moments of a version that was appended at once."""
    store = Store(tmp_path)
    version = build_until(store, lagging(NUM_TRAINING), LAST, name="daily")
    for end in range(NUM_TRAINING + 24, len(TIMES) + 1, 24):
        version = append(store, version.ref, lagging(end))
    at_once = append(store, build_until(store, lagging(NUM_TRAINING), LAST, name="once").ref, lagging(end))
    daily, once = open_version(version), open_version(at_once)
    spans = [sorted(zip(m.windows.series.tolist(), m.windows.origin_row.tolist(), strict=True)) for m in (daily, once)]
    assert spans[0] == spans[1]
    assert any(segment.windows.across is not None for segment in daily.segments)
    joint = KeySpace("joint", 36)
    sizes = [sum(len(segment.groups[joint][0]) for segment in m.segments) for m in (daily, once)]
    assert sizes[0] == sizes[1]
    queries = queries_at(TABLE, [end - 3])
    answers = [m.search(queries, 8, scopes=("joint",)) for m in (daily, once)]
    assert np.array_equal(answers[0].distance, answers[1].distance)
    assert np.array_equal(answers[0].known_at, answers[1].known_at)
    merged = open_version(compact(store, version.ref)).search(queries, 8, scopes=("joint",))
    assert np.array_equal(merged.distance, answers[0].distance)


def lagging(end: int):
    """The first steps of the table, of which one series has the last five not yet."""
    return with_missing(between(TABLE, 0, end), [("flat", row) for row in range(end - 5, end)])


def test_a_series_that_ends_early_or_is_short_is_named_and_stops_no_other(tmp_path, memory):
    short = replace(
        TABLE, layout="long", series=(*TABLE.series, part(replace(TABLE.series[0], series_id="new"), 340, 360))
    )
    result = memory_only.forecast(memory, short, quantiles=(0.5,))
    assert set(result["unique_id"]) == {"load", "flat", "beat"}
    [skipped] = result.attrs["skipped"]
    assert skipped["series_id"] == "new"
    assert "has 20 steps" in skipped["reason"]
    version = build_until(Store(tmp_path), short, LAST)
    assert version.manifest.series_ids == TABLE.series_ids
    assert [each.series_id for each in version.manifest.built.skipped] == ["new"]
    with pytest.raises(DataError, match="'new'"):
        build_until(Store(tmp_path), short, LAST, name="strict", strict=True)
    alone = replace(short, series=short.series[-1:])
    with pytest.raises(DataError, match="has 20 steps"):
        latest_origins(alone, WINDOW)


def test_series_that_the_version_lacks_or_that_have_nothing_new_do_not_stop_an_append(tmp_path):
    store = Store(tmp_path)
    ref = build_until(store, TABLE, LAST).ref
    stranger = replace(TABLE.series[0], series_id="stranger")
    table = replace(TABLE, series=(TABLE.series[0], part(TABLE.series[1], 0, 200), stranger))
    grown = append(store, ref, table)
    assert {each.series_id for each in grown.manifest.built.skipped} == {"flat", "beat", "stranger"}
    assert grown.manifest.segments[-1].num_rows == len(TIMES) - NUM_TRAINING


def test_evaluation_scores_what_is_known_and_names_what_cannot_be_scored(tmp_path):
    table = holes()
    split = Split(name="s", train_until=str(LAST), val_until=str(TIMES[300]), test_until=str(TIMES[-1]))
    from memory_index.versions.build import build

    memory = open_version(build(table, Store(tmp_path), "m", window=WINDOW, split=split, encoder=ENCODER))
    late = replace(TABLE.series[0], series_id="late")
    scored = memory_only.evaluate(memory, replace(table, series=(*table.series, part(late, 300, 360))))
    assert [each.series_id for each in scored.skipped] == ["late"]
    assert np.isfinite(scored.mse)
    squared = []
    origins = [np.arange(300, 352)] * 3
    for block in query_blocks(table, origins, WINDOW, Policy.CAUSAL, known=table.series_ids, views=ENCODER.views):
        made = memory.search(block.queries, memory_only.MEMORY_K).forecast()
        made = BoundsOf(memory).kept(block.queries, made)
        for i, n in enumerate(block.series):
            ahead = block.row[:, i][:, None] + np.arange(1, 9)
            squared.append(np.square((made[:, i] - table.series[n].values[ahead]) / memory.scale.std[n]))
    assert np.isclose(scored.mse, np.nanmean(np.concatenate(squared)), rtol=1e-6)


def test_a_complete_table_has_no_masks_and_the_same_version_whatever_may_be_missing(tmp_path):
    versions = [
        build_until(Store(tmp_path / str(limit)), TABLE, LAST, window=replace(WINDOW, max_missing=limit))
        for limit in (0.0, 0.5, 0.75)
    ]
    memories = [open_version(version) for version in versions]
    assert all(memory.windows.missing is None and memory.windows.usable is None for memory in memories)
    answers = [memory.search(queries_at(TABLE, [NUM_TRAINING + 40]), 5) for memory in memories]
    for answer in answers[1:]:
        assert_same(answer, answers[0])
        assert np.array_equal(answer.forecast(), answers[0].forecast())
    files = [{path: f.sha256 for path, f in version.manifest.files.items()} for version in versions]
    assert files[0] == files[1] == files[2]


# Through a trained run


@pytest.fixture(scope="module")
def small_run(tmp_path_factory):
    """A closed-form run that was trained on a table with holes, and what belongs to it."""
    folder = tmp_path_factory.mktemp("run")
    memory = forecaster_fixtures.memory_of(folder / "indexes", HOLES)
    trained = forecaster_fixtures.train_small(memory, folder / "run", HOLES, **forecaster_fixtures.WITHOUT_NETWORK)
    return memory, load_predictor(trained.run, device="cpu")


def test_a_table_with_holes_trains_evaluates_and_forecasts(small_run):
    memory, predictor = small_run
    scored = evaluate_run(predictor, memory, HOLES, levels=(0.1, 0.5, 0.9))
    assert all(np.isfinite(score.mse) for score in scored.scores.values())
    made = forecast_run(predictor, memory, HOLES, quantiles=(0.1, 0.5, 0.9))
    assert np.isfinite(made[["yhat", "q0.1", "q0.5", "q0.9"]].to_numpy()).all()
    assert made.attrs["skipped"] == []


@pytest.mark.parametrize("seed", range(2))
def test_a_run_knows_nothing_later_than_the_origin(small_run, seed):
    memory, predictor = small_run
    table, row = forecaster_fixtures.TABLE, len(forecaster_fixtures.TABLE.times) - 20 - seed
    assert table.series_ids == HOLES.series_ids
    origins = [np.array([row])] * len(HOLES.series)
    made = []
    for known in (HOLES, poisoned(HOLES, HOLES.times[row], seed=seed), between(HOLES, 0, row + 1)):
        blocks = live_blocks(memory, known, origins, predictor.config.model, 8, predictor.units)
        made.append(np.concatenate([predictor.predict(block.batch).forecast for block in blocks]))
    assert np.array_equal(made[0], made[1])
    assert np.array_equal(made[0], made[2])


def test_a_network_trains_on_windows_with_holes(tmp_path):
    memory = forecaster_fixtures.memory_of(tmp_path / "indexes", HOLES)
    trained = forecaster_fixtures.train_small(memory, tmp_path / "run", HOLES, epochs=1)
    assert np.isfinite(trained.result.best_val_mse)
    predictor = load_predictor(trained.run, device="cpu")
    assert np.isfinite(forecast_run(predictor, memory, HOLES)["yhat"]).all()
