"""A memory alone: every window scored, whole tables forecast, one query inspected; and none of it sees the future."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from memory_fixtures import (
    ENCODER,
    HOURLY,
    WINDOW,
    Policy,
    Store,
    append,
    between,
    build,
    open_version,
    part,
    ragged_table,
    wide_table,
)

from memory_index import baselines, queries
from memory_index.coverage import coverage
from memory_index.errors import DataError, IncompatibleError, NotFoundError
from memory_index.inspection import inspect_window
from memory_index.memory_only import MemoryOptions, evaluate, forecast
from memory_index.queries import query_blocks, require_same_data
from memory_index.splits import part_origins, split_by_name
from memory_index.tables.series import Series, SeriesTable
from memory_index.windows import Step

SPLIT = "60/20/20"


def memory_of(table: SeriesTable, folder, **options):
    split = split_by_name(SPLIT, np.unique(np.concatenate([series.times for series in table.series])))
    return open_version(build(table, Store(folder), "m", window=WINDOW, split=split, encoder=ENCODER, **options))


@pytest.fixture(scope="module")
def table():
    return wide_table()


@pytest.fixture(scope="module")
def memory(table, tmp_path_factory):
    return memory_of(table, tmp_path_factory.mktemp("memory"))


def test_every_test_window_is_scored(memory, table):
    result = evaluate(memory, table)
    num_test = int(0.2 * len(table.series[0]))
    assert result.num_windows == num_test - WINDOW.horizon + 1
    assert result.num_scored == result.num_windows * 3
    assert result.num_without_neighbours == 0
    assert not result.in_sample


def test_a_forecast_goes_on_across_a_day_without_a_midnight(tmp_path):
    """Of a table that ends before it, and of one to which it was appended."""
    step = Step(frequency="D", time_zone="America/Santiago")
    whole = wide_table(180, step=step, start=step.parse("2024-03-13"))
    change = int(np.searchsorted(whole.times, step.parse("2024-09-08")))
    assert change == 179
    before = between(whole, 0, change)
    memory = memory_of(before, tmp_path)
    expected = ["2024-09-08T01:00:00-03:00", "2024-09-09T00:00:00-03:00", "2024-09-10T00:00:00-03:00"]
    assert [time.isoformat() for time in forecast(memory, before)["ds"][:3]] == expected
    grown = open_version(append(Store(tmp_path), "m", whole))
    after = forecast(grown, whole)["ds"]
    assert [time.isoformat() for time in after[:2]] == expected[1:]
    assert grown.windows.num_steps_spanned == len(whole.times) - WINDOW.lookback - WINDOW.horizon
    assert coverage(grown).most.sum() == grown.windows.num_steps_spanned + 1


def test_scores_are_plain_means_over_windows_steps_and_series(memory, table):
    rows = part_origins(table, WINDOW, memory.manifest.split, "test")[0]
    num_train = int(0.6 * len(table.series[0]))
    squared, absolute = [], []
    for series in table.series:
        unit = series.values[:num_train].std()
        for row in rows:
            error = (series.values[row] - series.values[row + 1 : row + 1 + WINDOW.horizon]) / unit
            squared.append(np.mean(error**2))
            absolute.append(np.mean(np.abs(error)))
    score = evaluate(memory, table).baselines["last_value"]
    assert score.mse == pytest.approx(np.mean(squared), rel=1e-6)
    assert score.mae == pytest.approx(np.mean(absolute), rel=1e-6)


def test_scores_do_not_depend_on_the_block_size(memory, table):
    one, many = evaluate(memory, table, block=1), evaluate(memory, table, block=1000)
    assert (one.mse, one.mae, one.by_space) == (many.mse, many.mae, many.by_space)


def test_the_memory_beats_the_last_value_where_the_past_repeats(memory, table):
    result = evaluate(memory, table)
    assert result.mse < 0.5 * result.baselines["last_value"].mse


def test_scores_of_validation_do_not_see_the_test_part(memory, table):
    clean = evaluate(memory, table, "val")
    first_test = part_origins(table, WINDOW, memory.manifest.split, "test")[0][0] + 1
    poisoned = replace(
        table,
        series=tuple(
            replace(s, values=np.concatenate([s.values[:first_test], np.full(len(s) - first_test, 1e6)]))
            for s in table.series
        ),
    )
    assert evaluate(memory, poisoned, "val").mse == clean.mse


def test_training_windows_are_marked_as_in_sample(memory, table):
    result = evaluate(memory, table, "train", options=MemoryOptions(on_empty="last-value"))
    assert result.in_sample
    assert result.num_without_neighbours > 0  # the first windows have no past that is known


def test_a_window_without_neighbours_is_an_error_unless_asked_otherwise(memory, table):
    with pytest.raises(NotFoundError, match="no admissible neighbour"):
        evaluate(memory, table, "train")


def test_ragged_tables_are_scored_series_by_series(tmp_path):
    table = ragged_table()
    memory = memory_of(table, tmp_path)
    result = evaluate(memory, table)
    origins = part_origins(table, WINDOW, memory.manifest.split, "test")
    assert result.num_scored == sum(len(rows) for rows in origins)
    assert set(result.by_space) == {"own-12", "own-36", "pooled-12", "pooled-36"}


def test_a_gap_in_the_future_of_one_series_does_not_touch_the_forecast_of_another(memory, table):
    """The joint scope needs whole contexts; were it to need whole futures, what is asked would tell what follows."""
    rows = part_origins(table, WINDOW, memory.manifest.split, "test")
    values = table.series[2].values.copy()
    values[rows[0][3] + 5] = np.nan
    holed = replace(table, series=(*table.series[:2], replace(table.series[2], values=values)))

    def forecasts_of_the_first(asked: SeriesTable) -> np.ndarray:
        origins = part_origins(asked, WINDOW, memory.manifest.split, "test")
        found = {}
        for block in query_blocks(asked, origins, WINDOW, Policy.CAUSAL, known=asked.series_ids):
            made = memory.search(block.queries, 5).forecast()
            for b, n in np.argwhere(block.wanted):
                found[int(block.series[n]), int(block.row[b, n])] = made[b, n]
        return np.stack([found[0, int(row)] for row in rows[0][:4]])

    np.testing.assert_array_equal(forecasts_of_the_first(table), forecasts_of_the_first(holed))


def longer(table: SeriesTable) -> SeriesTable:
    """The table when one series has a step that the others do not have yet."""
    first = table.series[0]
    times = table.step.range(first.times[0], len(first) + 1)
    return replace(table, series=(replace(first, times=times, values=np.append(first.values, 1.0)), *table.series[1:]))


def test_a_step_that_one_series_has_first_does_not_touch_what_was_asked_before(memory, table):
    """Whether a moment is compared as a whole is told by its contexts: later rows of one series must not decide it."""
    before, after = evaluate(memory, table), evaluate(memory, longer(table))
    assert "joint-36" in after.by_space
    assert replace(before, seconds=0) == replace(after, seconds=0)
    at = table.times[-WINDOW.horizon - 30]
    one, other = (inspect_window(memory, each, "beat", at) for each in (table, longer(table)))
    np.testing.assert_array_equal(one.forecast, other.forecast)
    assert [each.row_id for each in one.neighbours] == [each.row_id for each in other.neighbours]


def test_a_version_does_not_depend_on_how_far_series_go_beyond_its_training_part(memory, table, tmp_path):
    split = memory.manifest.split
    late = build(longer(table), Store(tmp_path), "m", window=WINDOW, split=split, encoder=ENCODER)
    assert late.manifest.fingerprint == memory.manifest.fingerprint


def test_a_series_that_ends_earlier_is_forecast_in_the_moment_where_it_ends(memory, table):
    first = table.series[0]
    short = replace(table, series=(replace(first, times=first.times[:-9], values=first.values[:-9]), *table.series[1:]))
    whole = forecast(memory, replace(table, series=tuple(part(each, 0, len(each) - 9) for each in table.series)))
    found = forecast(memory, short)
    of_first = [frame[frame.unique_id == first.series_id].reset_index(drop=True) for frame in (whole, found)]
    pd.testing.assert_frame_equal(*of_first)


def test_a_new_series_without_training_values_is_skipped_with_the_reason(memory, table):
    late = table.series[0].values.copy()
    late[: int(0.7 * len(late))] = np.nan
    stranger = Series(series_id="stranger", times=table.series[0].times, values=late)
    found, without = evaluate(memory, replace(table, series=(*table.series, stranger))), evaluate(memory, table)
    assert [each.series_id for each in found.skipped] == ["stranger"]
    assert "is new and has no value" in found.skipped[0].reason
    assert found.mse == without.mse
    with pytest.raises(DataError, match="'stranger' is new and has no value"):
        evaluate(memory, replace(table, series=(stranger,)))


def test_with_a_publication_delay_origins_are_in_sample_for_longer(table, tmp_path):
    split = split_by_name(SPLIT, table.times)
    delayed = replace(WINDOW, known_delay=6)
    version = build(table, Store(tmp_path), "m", window=delayed, split=split, encoder=ENCODER)
    fitted_until = np.datetime64(version.manifest.fitted_until, "ns")
    assert version.manifest.fitted_known_at == fitted_until + np.timedelta64(6, "h")
    row = int(np.flatnonzero(table.times == fitted_until)[0])
    memory = open_version(version)
    assert inspect_window(memory, table, "load", table.times[row + 5]).in_sample
    assert not inspect_window(memory, table, "load", table.times[row + 6]).in_sample


def test_windows_that_touch_a_missing_value_are_left_out_where_that_is_asked(memory, table):
    values = table.series[0].values.copy()
    values[-40] = np.nan
    holed = replace(table, series=(replace(table.series[0], values=values), *table.series[1:]), whole_windows=True)
    whole, some = evaluate(memory, table), evaluate(memory, holed)
    assert some.num_scored < whole.num_scored
    assert some.num_windows == whole.num_windows  # the other series still have all of theirs


@pytest.mark.parametrize(("max_windows", "shapes"), [(10, [(3, 3)] * 6 + [(2, 3)]), (2, [(1, 3)] * 20)])
def test_a_block_of_many_series_has_fewer_moments(table, max_windows, shapes):
    origins, known = [np.arange(40, 60)] * 3, table.series_ids
    blocks = query_blocks(table, origins, WINDOW, Policy.CAUSAL, known=known, max_windows=max_windows)
    assert [block.row.shape for block in blocks] == shapes


def test_more_series_than_the_joint_scope_takes_are_asked_for_nothing_else(table, monkeypatch):
    """Else the last steps of thousands of series that end apart would ask for all of them each."""
    origins = [np.array([60, 70]), np.array([60, 71]), np.array([60, 72])]

    def asked() -> list[tuple[int, ...]]:
        blocks = query_blocks(table, origins, WINDOW, Policy.CAUSAL, known=table.series_ids)
        return [block.row.shape for block in blocks]

    assert asked() == [(4, 3)]
    monkeypatch.setattr(queries, "MAX_JOINT_SERIES", 2)
    assert asked() == [(2, 1), (2, 1), (2, 1)]


def test_query_blocks_ask_every_window_once(table):
    rows = np.arange(40, 100)
    origins = [rows, rows[5:], rows[:-3]]
    asked = {0: [], 1: [], 2: []}
    for block in query_blocks(table, origins, WINDOW, Policy.CAUSAL, known=table.series_ids, block=7):
        for place, number in enumerate(block.series):
            asked[int(number)] += block.row[block.wanted[:, place], place].tolist()
            series = table.series[number]
            for b, row in enumerate(block.row[:, place]):
                expected = series.values[row + 1 - WINDOW.lookback : row + 1].astype(np.float32)
                np.testing.assert_array_equal(block.queries.context[b, place], expected)
                assert block.queries.origin[b] == series.times[row]
    assert [sorted(asked[n]) for n in range(3)] == [origin.tolist() for origin in origins]


# Forecasts


def test_a_forecast_continues_every_series(memory, table):
    result = forecast(memory, table, quantiles=(0.1, 0.5, 0.9))
    assert list(result.columns) == ["unique_id", "ds", "yhat", "q0.1", "q0.5", "q0.9"]
    assert list(result["unique_id"]) == [name for name in table.series_ids for _ in range(WINDOW.horizon)]
    first = result["ds"].iloc[0]
    assert first == pd.Timestamp(table.series[0].times[-1]) + pd.Timedelta(hours=1)
    assert (result["q0.1"] <= result["q0.5"]).all()
    assert (result["q0.5"] <= result["q0.9"]).all()


def test_a_repeating_series_is_forecast_exactly(memory, table):
    result = forecast(memory, table, options=MemoryOptions(k=5, scopes=("own",)))
    beat = result[result["unique_id"] == "beat"]["yhat"].to_numpy()
    truth = wide_table(len(table.series[0]) + WINDOW.horizon)["beat"].values[-WINDOW.horizon :]
    np.testing.assert_allclose(beat, truth, atol=1e-4)


def test_an_unseen_series_is_forecast_and_changes_nothing_for_the_others(memory, table):
    stranger = Series(series_id="stranger", times=table.series[0].times, values=table.series[0].values * 3 + 7)
    mixed = replace(table, series=(*table.series, stranger))
    alone, together = forecast(memory, table), forecast(memory, mixed)
    pd.testing.assert_frame_equal(alone, together[together["unique_id"] != "stranger"].reset_index(drop=True))
    assert np.isfinite(together[together["unique_id"] == "stranger"]["yhat"]).all()


def test_times_of_a_forecast_are_in_the_zone_of_the_table(tmp_path):
    zoned = Step(frequency="h", time_zone="Europe/Berlin")
    table = wide_table(step=zoned)
    result = forecast(memory_of(table, tmp_path), table)
    assert str(result["ds"].dt.tz) == "Europe/Berlin"


def test_a_history_shorter_than_the_lookback_is_refused(memory, table):
    short = replace(
        table,
        series=tuple(Series(series_id=s.series_id, times=s.times[-20:], values=s.values[-20:]) for s in table.series),
    )
    with pytest.raises(DataError, match=r"'load' has 20 steps, but a forecast needs the last 36"):
        forecast(memory, short)


def test_a_missing_value_in_the_context_hinders_no_forecast(memory, table):
    values = table.series[1].values.copy()
    values[-3] = np.nan
    holed = replace(table, series=(table.series[0], replace(table.series[1], values=values), table.series[2]))
    assert np.isfinite(forecast(memory, holed)["yhat"]).all()


def test_a_series_that_ends_early_is_forecast_from_where_it_ends(memory, table):
    values = table.series[1].values.copy()
    values[-5:] = np.nan
    late = replace(table, series=(table.series[0], replace(table.series[1], values=values), table.series[2]))
    result = forecast(memory, late)
    first = result.groupby("unique_id")["ds"].min()
    assert first["load"] - first["flat"] == pd.Timedelta(hours=5)
    assert np.isfinite(result["yhat"]).all()


# Data that belong to a version


def test_data_that_differ_from_the_version_are_refused_at_the_first_cell(memory, table):
    values = table.series[1].values.copy()
    values[[100, 120]] += 1
    changed = replace(table, series=(table.series[0], replace(table.series[1], values=values), table.series[2]))
    with pytest.raises(IncompatibleError, match=r"series 'flat' at 2021-03-05T04:00:00 .*2 of \d+ common steps differ"):
        require_same_data(changed, memory.windows, "m@1")
    require_same_data(table, memory.windows, "m@1")


def test_a_value_that_is_missing_on_either_side_is_no_contradiction(table, tmp_path):
    values = table.series[1].values.copy()
    values[100] = np.nan
    holed = replace(table, series=(table.series[0], replace(table.series[1], values=values), table.series[2]))
    require_same_data(table, memory_of(holed, tmp_path / "holed").windows, "m@1")
    require_same_data(holed, memory_of(table, tmp_path / "whole").windows, "m@1")


@pytest.mark.parametrize("code", [-9999.0, 1e20, 32767.0])
def test_a_code_for_no_value_is_no_value_that_has_arrived(table, tmp_path, code):
    values = [table.series[1].values.copy(), table.series[1].values.copy()]
    values[0][100:103], values[1][100:103] = np.nan, code
    read, forgotten = (
        replace(table, series=(table.series[0], replace(table.series[1], values=each), table.series[2]))
        for each in values
    )
    windows = memory_of(read, tmp_path).windows
    require_same_data(read, windows, "m@1")
    with pytest.raises(IncompatibleError, match=r"series 'flat' at 2021-03-05T04:00:00 is .* \(3 steps\)") as caught:
        require_same_data(forgotten, windows, "m@1")
    assert caught.value.hint.endswith(f"--missing {code:.15g}")


def test_data_of_another_step_are_refused(memory):
    with pytest.raises(IncompatibleError, match=r"a step of D, m@1 of h$"):
        require_same_data(wide_table(step=Step(frequency="D")), memory.windows, "m@1")
    with pytest.raises(IncompatibleError, match=r"a step of h \(time zone UTC\), m@1 of h \(no time zone\)$"):
        require_same_data(wide_table(step=Step(frequency="h", time_zone="UTC")), memory.windows, "m@1")


# One query


def test_inspected_neighbours_are_known_nearest_first_and_weighted_to_one(memory, table):
    at = table.series[0].times[330]
    found = inspect_window(memory, table, "load", at, k=4)
    assert {(n.scope, n.view) for n in found.neighbours} == {
        (s, v) for s in ("own", "joint", "pooled") for v in (12, 36)
    }
    for scope in ("own", "joint"):
        group = [n for n in found.neighbours if (n.scope, n.view) == (scope, 12)]
        assert [n.rank for n in group] == [1, 2, 3, 4]
        assert [n.distance for n in group] == sorted(n.distance for n in group)
        assert sum(n.weight for n in group) == pytest.approx(1, abs=1e-6)
    for n in found.neighbours:
        assert np.datetime64(n.known_at) <= at
        row = int(np.flatnonzero(table.series[0].times == np.datetime64(n.origin))[0])
        np.testing.assert_array_equal(
            n.future, table[n.series_id].values[row + 1 : row + 1 + WINDOW.horizon].astype(np.float32)
        )
    np.testing.assert_array_equal(found.actual, table["load"].values[331 : 331 + WINDOW.horizon].astype(np.float32))


def test_the_actual_future_does_not_touch_the_forecast(memory, table):
    at = table.series[0].times[330]
    poisoned = replace(
        table,
        series=tuple(
            replace(s, values=np.concatenate([s.values[:331], np.full(len(s) - 331, -1e6)])) for s in table.series
        ),
    )
    clean, dirty = (inspect_window(memory, t, "load", at, k=4) for t in (table, poisoned))
    np.testing.assert_array_equal(clean.forecast, dirty.forecast)
    assert [n.row_id for n in clean.neighbours] == [n.row_id for n in dirty.neighbours]


def test_a_time_without_a_step_names_its_neighbours(memory, table):
    with pytest.raises(NotFoundError, match="no step at 2021-03-02T00:30:00"):
        inspect_window(memory, table, "load", np.datetime64("2021-03-02T00:30", "ns"))
    with pytest.raises(NotFoundError, match="a query needs 36"):
        inspect_window(memory, table, "load", table.series[0].times[10])
    with pytest.raises(NotFoundError, match="no admissible neighbour"):
        inspect_window(memory, table, "load", table.series[0].times[40])


def test_another_series_without_neighbours_is_no_hindrance(table, tmp_path):
    load = table["load"]
    dead = replace(load, series_id="dead", values=np.where(np.arange(len(load)) < 250, load.values, 3.0))
    both = replace(table, series=(load, dead))  # dead is constant at last, as it never was in the training part
    memory = memory_of(both, tmp_path)
    assert inspect_window(memory, both, "load", table.times[330]).neighbours
    with pytest.raises(NotFoundError, match="no admissible neighbour for series 'dead'"):
        inspect_window(memory, both, "dead", table.times[330])


# Baselines


@pytest.mark.parametrize(
    ("frequency", "season"),
    [
        ("h", 24),
        ("15min", 96),
        ("D", 7),
        ("B", 5),
        ("W-SUN", 52),
        ("MS", 12),
        ("QS-OCT", 4),
        ("BME", 12),
        ("BMS", 12),
        ("BQE-DEC", 4),
        ("BYE-DEC", None),
        ("3MS", 4),
        ("2W-SUN", 26),
        ("7D", 52),
        ("SMS", 24),
        ("YS-JAN", None),
        ("7h", None),
    ],
)
def test_the_usual_season_of_a_step(frequency, season):
    assert baselines.season_length(Step(frequency=frequency)) == season


def test_seasonal_naive_repeats_the_last_season():
    context = np.arange(10, dtype=np.float32)[None, None]
    np.testing.assert_array_equal(baselines.seasonal_naive(context, 5, 3)[0, 0], [7, 8, 9, 7, 8])
    np.testing.assert_array_equal(baselines.last_value(context, 2)[0, 0], [9, 9])


def test_hourly_steps_are_fixed_and_months_are_not():
    assert HOURLY.is_fixed
    assert not Step(frequency="MS").is_fixed
    assert not Step(frequency="D", time_zone="Europe/Berlin").is_fixed
