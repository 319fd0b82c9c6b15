"""Transforms: raw units in and out, between them units of the transform, whose numbers are the training part's."""

from __future__ import annotations

import json
from dataclasses import replace
from statistics import NormalDist

import numpy as np
import pandas as pd
import pytest
from forecaster_fixtures import TABLE, WITHOUT_NETWORK, memory_of, train_small
from hypothesis import given, settings
from hypothesis import strategies as st
from memory_fixtures import (
    NUM_TRAINING,
    Store,
    append,
    appended,
    built,
    compact,
    open_version,
    poisoned,
    queries_at,
    wide_table,
    with_missing,
)
from service_fixtures import served

from forecaster.evaluate import evaluate as evaluate_run
from forecaster.explain import explain
from forecaster.forecast import forecast as forecast_by_run
from forecaster.predictor import SMEARED_LEVELS, load_predictor, smeared
from memory_index import memory_only
from memory_index.errors import DataError, UsageError, VerificationError
from memory_index.fit_transform import fit_transform, table_inside
from memory_index.inspection import inspect_window
from memory_index.neighbours import mean_over_spaces
from memory_index.remote import RemoteMemory
from memory_index.tables.series import Series, SeriesTable
from memory_index.transforms import AUTO, KINDS, NO_TRANSFORM, Transform, transform_from_json
from memory_index.versions.manifest import manifest_from_json

KINDS_WITH_NUMBERS = ("asinh", "log1p")


def above_zero(table: SeriesTable) -> SeriesTable:
    """The table moved so far up that log1p takes it."""
    return replace(table, series=tuple(replace(s, values=s.values + 6) for s in table.series))


RAISED = above_zero(TABLE)


def spiky(num_steps: int = 420) -> SeriesTable:
    """Prices, as it were: a daily season times a level that jumps, and now and then far below zero."""
    random, whole = np.random.default_rng(3), wide_table(num_steps)
    level = np.exp(random.normal(scale=0.5, size=num_steps)) * np.where(random.random(num_steps) < 0.02, 12, 1)
    values = 20 * level * (1.5 + np.sin(np.arange(num_steps) * 2 * np.pi / 24)) - 15
    return replace(whole, series=(replace(whole.series[0], values=values), whole.series[1]))


# The function and its numbers


@given(
    kind=st.sampled_from(KINDS_WITH_NUMBERS),
    seed=st.integers(0, 10**6),
    size=st.sampled_from([1e-3, 1.0, 1e5]),
    holes=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_what_goes_in_comes_back_in_order_and_beyond_the_training_part_too(kind, seed, size, holes):
    random = np.random.default_rng(seed)
    training = np.abs(random.standard_t(2, size=200)) * size
    if holes:
        training[random.random(200) < 0.2] = np.nan
    transform, _ = fit_transform(kind, table_of(training))
    beyond = np.sort(np.concatenate([training[~np.isnan(training)], np.nanmax(training) * np.array([1.5, 10, 1e4])]))
    curve = transform.curves.take(0)
    inside = curve.forward(beyond)
    np.testing.assert_allclose(curve.inverse(inside), beyond, rtol=1e-9, atol=1e-9 * size)
    assert (np.diff(inside) >= 0).all()
    assert np.isnan(curve.forward(np.array([np.nan]))).all()
    assert np.isfinite(curve.inverse(np.array([-1e30, 1e30], dtype=np.float32))).all()  # an overshoot stays a number
    np.testing.assert_allclose(
        transform.curves.take(np.zeros(3, dtype=int)).forward(np.tile(beyond, (3, 1)))[1], inside, rtol=0
    )


def table_of(*values: np.ndarray) -> SeriesTable:
    times = TABLE.step.range(TABLE.times[0], len(values[0]))
    series = tuple(Series(series_id=f"s{n}", times=times, values=each) for n, each in enumerate(values))
    return replace(TABLE, series=series)


@pytest.mark.parametrize(
    ("values", "center", "width"),
    [
        ([1.0, 2.0, 3.0, 4.0, 100.0], 3.0, 1.4826),
        ([0.0, 0.0, 0.0, 0.0, 5.0], 0.0, 2.0),  # no median deviation: the standard deviation
        ([7.0, 7.0, np.nan, 7.0, 7.0], 7.0, 1.0),
        ([np.nan] * 5, 0.0, 1.0),
    ],
)
def test_asinh_is_centred_and_scaled_by_median_and_mad(values, center, width):
    transform, _ = fit_transform("asinh", table_of(np.array(values)))
    assert (transform.center, transform.width) == (pytest.approx([center]), pytest.approx([width]))
    inner = transform.curves.take(0).forward(np.array([center + 0.5 * width]))
    if max(values) > center:
        assert inner == pytest.approx(np.arcsinh(0.5))


def test_a_manifest_keeps_it_and_one_without_is_as_it_was(tmp_path):
    version = built(tmp_path / "a", transform="asinh")
    text = version.manifest.to_json()
    read = manifest_from_json(text, where="here")
    assert read == version.manifest
    assert read.fingerprint == version.manifest.fingerprint
    assert transform_from_json(json.loads(text)["transform"]) == read.transform
    plain = built(tmp_path / "b")
    assert "transform" not in json.loads(plain.manifest.to_json())
    assert plain.manifest.transform == NO_TRANSFORM
    document = json.loads(text) | {"transform": {"kind": "cube"}}
    with pytest.raises(VerificationError, match="cube"):
        manifest_from_json(json.dumps(document), where="here")


def test_without_a_transform_nothing_is_copied(tmp_path):
    memory = open_version(built(tmp_path))
    queries = queries_at(wide_table(), [300])
    assert memory.windows.inside is memory.windows
    assert memory.windows.queries_inside(queries) is queries
    found = memory.search(queries, 3)
    assert found.inside() is found


def test_an_unknown_one_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"unknown transform 'box'.*"):
        built(tmp_path, transform="box")
    assert Transform.__dataclass_fields__["kind"].default == KINDS[0]


# What is stored and found


@pytest.mark.parametrize("kind", KINDS_WITH_NUMBERS)
def test_a_version_finds_what_one_of_the_transformed_table_finds(tmp_path, kind):
    raw, inside = (memory_of(tmp_path / name, **options) for name, options in twins(kind))
    queries = queries_at(RAISED, range(300, 410, 7))
    transformed = replace(queries, context=raw.windows.queries_inside(queries).context)
    found, expected = raw.search(queries, 5), inside.search(transformed, 5)
    np.testing.assert_array_equal(found.row, expected.row)
    np.testing.assert_array_equal(found.distance, expected.distance)
    np.testing.assert_array_equal(found.inside().space_forecasts(), expected.space_forecasts())
    # Quantiles come back one by one; of a mean the futures do, each by itself.
    curve = raw.windows.curve(queries)
    np.testing.assert_allclose(
        found.quantiles((0.1, 0.5)), curve.inverse(expected.quantiles((0.1, 0.5))), rtol=1e-5, atol=1e-5
    )
    np.testing.assert_allclose(found.aligned_futures(), curve.inverse(expected.aligned_futures()), rtol=1e-5, atol=1e-5)
    by_hand = np.nansum(found.weights[..., None] * found.aligned_futures(), axis=3)
    np.testing.assert_allclose(found.space_forecasts(), by_hand, rtol=1e-4, atol=1e-3)
    np.testing.assert_array_equal(found.forecast(), mean_over_spaces(found.space_forecasts()))
    assert not np.allclose(found.forecast(), curve.inverse(expected.forecast()), rtol=1e-4)
    np.testing.assert_array_equal(found.contexts()[0, 0, 0, 0], raw.windows.contexts(found.row[0, 0, 0, 0]))
    np.testing.assert_array_equal(raw.linear_forecast(queries), curve.inverse(inside.linear_forecast(transformed)))


def twins(kind: str) -> list[tuple[str, dict]]:
    """The same version, made of raw values and of values that were transformed before."""
    transform, _ = fit_transform(kind, first_rows(RAISED, 252))
    return [("raw", {"table": RAISED, "transform": kind}), ("inside", {"table": table_inside(transform, RAISED)})]


def test_holes_stay_holes_and_are_filled_inside(tmp_path):
    table = with_missing(RAISED, [("load", row) for row in range(100, 420, 9)])
    memory = memory_of(tmp_path, table, transform="asinh")
    result = memory_only.forecast(memory, table, quantiles=(0.1, 0.9))
    assert np.isfinite(result[["yhat", "q0.1", "q0.9"]]).all(axis=None)
    whole = memory_only.forecast(memory_of(tmp_path / "whole", RAISED, transform="asinh"), RAISED)
    assert np.abs(result["yhat"] - whole["yhat"]).mean() < 2


def test_a_series_that_was_never_seen_takes_the_numbers_of_its_context(tmp_path):
    memory = memory_of(tmp_path, spiky(), transform="asinh")
    new = replace(TABLE, series=(replace(TABLE.series[0], series_id="new"),))
    small, large = (
        memory_only.forecast(memory, with_factor(new, factor), quantiles=(0.1, 0.5, 0.9)) for factor in (1, 1000)
    )
    for column in ("yhat", "q0.1", "q0.5", "q0.9"):
        np.testing.assert_allclose(large[column], 1000 * small[column], rtol=1e-3)


def with_factor(table: SeriesTable, factor: float) -> SeriesTable:
    return replace(table, series=tuple(replace(s, values=factor * s.values) for s in table.series))


def test_append_and_compact_keep_it_and_append_adds_what_a_build_would_store(tmp_path):
    version = built(tmp_path, transform="asinh")
    grown = appended(tmp_path, version, 300, 340)
    assert grown.manifest.transform == version.manifest.transform
    merged = compact(Store(tmp_path), grown.ref)
    queries = queries_at(wide_table(), [350, 355])
    found, expected = (open_version(each).search(queries, 5) for each in (merged, grown))
    np.testing.assert_array_equal(found.forecast(), expected.forecast())
    assert (found.known_at > wide_table().times[NUM_TRAINING]).any()  # of what was appended


def test_a_service_answers_a_raw_question_alike(tmp_path):
    local = open_version(built(tmp_path, transform="asinh"))
    queries = queries_at(wide_table(), [300, 310])
    with served(tmp_path, ["small"]) as address:
        remote = RemoteMemory(f"{address}/small")
        found, expected = (memory.search(queries, 5) for memory in (remote, local))
        np.testing.assert_array_equal(found.quantiles((0.1, 0.9)), expected.quantiles((0.1, 0.9)))
        np.testing.assert_array_equal(found.forecast(), expected.forecast())
        np.testing.assert_array_equal(remote.linear_forecast(queries), local.linear_forecast(queries))


def test_errors_are_counted_in_raw_training_deviations(tmp_path):
    plain, other = (memory_of(tmp_path / kind, transform=kind) for kind in ("none", "asinh"))
    first, second = (memory_only.evaluate(memory, TABLE) for memory in (plain, other))
    for name in ("last_value", "seasonal_naive"):
        assert second.scores[name].metrics == first.scores[name].metrics
    assert second.mse != first.mse


# Leak safety and bad values


@pytest.mark.parametrize("kind", KINDS_WITH_NUMBERS)
def test_nothing_later_decides_its_numbers(tmp_path, kind):
    until = RAISED.times[251]
    garbage = poisoned(RAISED, until, seed=5)
    clean, other = (memory_of(tmp_path / str(n), t, transform=kind) for n, t in enumerate((RAISED, garbage)))
    assert clean.fingerprint == other.fingerprint
    auto, again = (memory_of(tmp_path / f"auto-{n}", t, transform=AUTO) for n, t in enumerate((RAISED, garbage)))
    assert auto.manifest.built.notes == again.manifest.built.notes
    # A forecast does not see what was appended later.
    history = first_rows(RAISED, 300)
    garbage = poisoned(RAISED, RAISED.times[299], seed=6)
    positive = replace(garbage, series=tuple(replace(s, values=np.abs(s.values)) for s in garbage.series))
    first, second = (
        memory_only.forecast(open_version(append(Store(tmp_path / name), "m@1", table)), history, quantiles=(0.1, 0.9))
        for name, table in (("0", RAISED), ("1", positive))
    )
    pd.testing.assert_frame_equal(first, second)
    assert np.isfinite(first[["yhat", "q0.1", "q0.9"]]).all(axis=None)


def first_rows(table: SeriesTable, num: int) -> SeriesTable:
    return replace(table, series=tuple(replace(s, times=s.times[:num], values=s.values[:num]) for s in table.series))


def test_the_first_cell_that_has_no_logarithm_is_named(tmp_path):
    def with_bad(**rows: int) -> SeriesTable:
        bad = (np.where(np.arange(420) == rows.get(s.series_id, -1), -1.0, s.values) for s in RAISED.series)
        return replace(RAISED, series=tuple(replace(s, values=v) for s, v in zip(RAISED.series, bad, strict=True)))

    late, early = with_bad(load=400, beat=410), with_bad(load=400, flat=200, beat=210)
    with pytest.raises(DataError, match=r"series 'flat' at 2021-03-09T08:00:00 is -1, but log1p needs values above -1"):
        memory_of(tmp_path / "a", early, transform="log1p")
    memory = memory_of(tmp_path / "b", late, transform="log1p")
    with pytest.raises(DataError, match=r"series 'load' at 2021-03-17T16:00:00 is -1"):
        memory_only.forecast(memory, late)
    with pytest.raises(DataError, match=r"series 'load' at 2021-03-17T16:00:00 is -1"):
        append(Store(tmp_path / "b"), "m@1", late)


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        (TABLE, "none"),
        (replace(spiky(), series=spiky().series[:1]), "asinh"),
        (
            table_of(*np.random.default_rng(0).poisson(np.random.default_rng(1).gamma(0.2, 5, (2, 420))).astype(float)),
            "log1p",
        ),
    ],
)
def test_auto_chooses_by_the_tails_of_the_training_part_and_says_so(tmp_path, table, expected):
    memory = memory_of(tmp_path, table, transform=AUTO)
    assert memory.manifest.transform.kind == expected
    [note] = [note for note in memory.manifest.built.notes if "auto" in note]
    assert note.startswith(f"transform {expected}: chosen by auto, the kurtosis of the training values is ")


# A run


@pytest.fixture(scope="module")
def run_of_prices(tmp_path_factory):
    folder, table = tmp_path_factory.mktemp("prices"), spiky()
    memory = memory_of(folder / "indexes", table, transform="asinh")
    trained = train_small(memory, folder / "run", table, **WITHOUT_NETWORK)
    return table, memory, load_predictor(trained.run, device="cpu")


def test_a_run_mixes_inside_and_forecasts_raw_values(run_of_prices):
    table, memory, predictor = run_of_prices
    result = forecast_by_run(predictor, memory, table, quantiles=(0.1, 0.5, 0.9))
    assert (result["q0.1"] <= result["q0.5"]).all()
    assert (result["q0.5"] <= result["q0.9"]).all()
    scores = evaluate_run(predictor, memory, table, "val")
    alone = memory_only.evaluate(memory, table, "val", options=memory_only.MemoryOptions(k=5))
    for name in ("last_value", "seasonal_naive", "memory_only"):
        assert scores.scores[name].mse == pytest.approx(alone.scores[name].mse, rel=1e-6)
    assert scores.mse < 1.5 * scores.scores["last_value"].mse
    assert 0.6 < scores.coverage["q0.9"] <= 1


def test_its_explanation_is_of_the_same_forecast(run_of_prices):
    table, memory, predictor = run_of_prices
    result = forecast_by_run(predictor, memory, table, quantiles=(0.1, 0.5, 0.9))
    found = explain(predictor, memory, table, "load", table.times[-1])
    mine = result[result["unique_id"] == "load"]
    np.testing.assert_allclose(found.forecast, mine["yhat"], rtol=1e-5)
    np.testing.assert_allclose(found.quantiles, mine[["q0.1", "q0.5", "q0.9"]], rtol=1e-5)
    for part in found.parts:
        assert np.isfinite(part.forecast).all()
        assert np.abs(part.forecast).max() < 20 * np.abs(table.series[0].values).max()
    last = next(part for part in found.parts if part.name == "last_value")
    np.testing.assert_allclose(last.forecast, table.series[0].values[-1], rtol=1e-4)


def test_smearing_gives_the_mean_of_a_log_normal_future():
    transform, _ = fit_transform("log1p", table_of(np.arange(5000.0)))
    curve = transform.curves.take(np.array([0]))
    deviation = 0.5
    quantiles = np.array([3 + deviation * NormalDist().inv_cdf(level) for level in SMEARED_LEVELS])[None, None]
    mean = smeared(curve, np.full((1, 1), 3.0), quantiles)
    assert mean == pytest.approx(np.exp(3 + deviation**2 / 2) - 1, rel=0.01)
    assert curve.inverse(np.full((1, 1), 3.0)) == pytest.approx(np.exp(3) - 1)


def test_an_inspected_window_is_shown_in_its_own_units(tmp_path):
    table = spiky()
    memory = memory_of(tmp_path, table, transform="asinh")
    found = inspect_window(memory, table, "load", table.times[-1])
    np.testing.assert_allclose(found.context, table.series[0].values[-36:], rtol=1e-6)
    for each in found.neighbours:
        row = int(np.searchsorted(table.times, np.datetime64(each.origin)))
        np.testing.assert_allclose(each.future, table[each.series_id].values[row + 1 : row + 9], rtol=1e-5)
        assert np.abs(each.aligned_context).max() < 50 * np.abs(found.context).max()
