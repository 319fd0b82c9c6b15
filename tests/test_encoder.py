"""The dual key: what it weighs, what it is fitted on, and that a window has one key wherever it is encoded."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from memory_fixtures import (
    ENCODER,
    NUM_TRAINING,
    WINDOW,
    EncoderConfig,
    LocalMemory,
    Store,
    between,
    build_until,
    built,
    open_version,
    poisoned,
    queries_at,
    ragged_table,
    wide_table,
    with_missing,
)

from memory_index.encoder import DualKeyEncoder
from memory_index.errors import UsageError
from memory_index.fit_encoder import fit_encoder
from memory_index.scaling import fit_scale, window_statistics
from memory_index.types import SCOPES, KeySpace
from memory_index.windows import origin_rows

EXACT = EncoderConfig(views=(12, 36), shape_width=36, joint_width=200)  # nothing is lost by a PCA


def fitted(config: EncoderConfig = ENCODER, **changes: object) -> DualKeyEncoder:
    table = changes.pop("table", between(wide_table(), 0, NUM_TRAINING))
    origins = [origin_rows(series.values, WINDOW) for series in table.series]
    return fit_encoder(table, origins, config, lookback=36, horizon=8, scopes=changes.pop("scopes", SCOPES))


@pytest.fixture(scope="module")
def memory(tmp_path_factory: pytest.TempPathFactory) -> LocalMemory:
    return open_version(built(tmp_path_factory.mktemp("encoder")))


# One key per window


@given(rows=st.lists(st.integers(35, 350), min_size=1, max_size=150))
@settings(max_examples=20)
def test_a_key_does_not_depend_on_the_batch(memory: LocalMemory, rows: list[int]) -> None:
    context, series = queries_at(wide_table(), rows).context, np.arange(3)
    for view in ENCODER.views:
        together = memory.encoder.encode(view, context, series, SCOPES)
        for b in {0, len(rows) // 2, len(rows) - 1}:
            alone = memory.encoder.encode(view, context[b : b + 1], series, SCOPES)
            for scope in SCOPES:
                np.testing.assert_array_equal(alone.keys[scope][0], together.keys[scope][b], err_msg=scope)
            single = memory.encoder.encode(view, context[b : b + 1, 1:2], series[1:2], ("own", "pooled"))
            for scope in ("own", "pooled"):
                np.testing.assert_array_equal(single.keys[scope][0, 0], together.keys[scope][b, 1], err_msg=scope)


def test_stored_keys_are_what_encoding_again_gives(memory: LocalMemory) -> None:
    segment, windows = memory.segments[0], memory.windows
    for space in segment.groups:
        for number, group in enumerate(segment.groups[space]):
            local = segment.rows(space.scope, number)
            rows = np.arange(len(windows)) if isinstance(local, slice) else local
            if space.scope == "joint":
                rows, series = segment.moments, np.arange(3)
            else:
                rows, series = rows[:, None], np.array([number])
            for chosen in (rows[::17], rows[5:6]):
                if space.scope == "pooled":
                    encoded = [
                        memory.encoder.encode(
                            space.view, windows.contexts(row)[None], windows.series[row], ("pooled",)
                        ).keys["pooled"][0, 0]
                        for row in chosen
                    ]
                    keys = np.stack(encoded)
                else:
                    keys = memory.encoder.encode(space.view, windows.contexts(chosen), series, (space.scope,)).keys[
                        space.scope
                    ]
                position = np.arange(len(group))[::17] if len(chosen) > 1 else np.array([5])
                np.testing.assert_array_equal(keys.reshape(len(chosen), -1), group.keys[position], err_msg=str(space))


def test_no_windows_give_no_keys(memory: LocalMemory) -> None:
    encoded = memory.encoder.encode(12, np.empty((0, 3, 36), dtype=np.float32), np.arange(3), SCOPES)
    for record in memory.manifest.spaces:
        if record.view == 12:
            assert encoded.keys[record.scope].shape == ((0,) if record.scope == "joint" else (0, 3)) + (record.width,)


# What the distance is


@pytest.mark.parametrize("view", EXACT.views)
def test_the_distance_is_the_one_of_the_method(view: int) -> None:
    """docs/method.md, written out: shape under the forecast-aware metric, value in training units."""
    encoder = fitted(EXACT)
    context, series = queries_at(wide_table(), range(40, 260, 9)).context, np.arange(3)
    encoded = encoder.encode(view, context, series, SCOPES)
    w, f = EXACT.shape_weight, EXACT.forecast_weight
    windows = context[..., -view:].astype(np.float64)
    z = (windows - encoded.statistics.location[..., None]) / encoded.statistics.spread[..., None]
    ridge = encoder.arrays[f"ridge-{view}"].astype(np.float64)
    level = [windows.mean(-1), windows.std(-1), windows.max(-1), windows.min(-1), windows[..., -1] - windows[..., 0]]
    level[1] = encoded.statistics.spread
    value = np.stack(level, axis=-1) / encoder.scale.std[:, None]
    parts = []
    for one, other in ((0, 7), (3, 20), (11, 12)):
        dz, dv = z[one] - z[other], value[one] - value[other]
        shape = np.square(dz).sum(-1) / view + f**2 * np.square(dz @ ridge).sum(-1) / 8
        parts.append((shape, np.square(dv).sum(-1) / 5))
        difference = {
            scope: encoded.keys[scope][one].astype(np.float64) - encoded.keys[scope][other] for scope in SCOPES
        }
        squared = {scope: np.square(part).sum(-1) for scope, part in difference.items()}
        np.testing.assert_allclose(squared["own"], w * shape + (1 - w) * parts[-1][1], rtol=1e-3)
        np.testing.assert_allclose(squared["pooled"], shape, rtol=1e-3)
        np.testing.assert_allclose(squared["joint"], (w * shape + (1 - w) * parts[-1][1]).mean(), rtol=1e-3)
        for scope in SCOPES:
            width = encoder.value_width(KeySpace(scope, view))
            last = np.square(difference[scope][..., difference[scope].shape[-1] - width :]).sum(-1)
            expected = {"own": (1 - w) * parts[-1][1], "pooled": 0.0, "joint": (1 - w) * parts[-1][1].mean()}[scope]
            np.testing.assert_allclose(last, expected, rtol=1e-3, atol=1e-9)


def test_the_ridge_is_the_least_squares_forecast() -> None:
    encoder = fitted(replace(EXACT, ridge=1e-9))
    table = between(wide_table(), 0, NUM_TRAINING)
    past, future = [], []
    for number, series in enumerate(table.series):
        for row in origin_rows(series.values, WINDOW):
            window = series.values[row - 11 : row + 1]
            spread = max(window.std(), EXACT.spread_floor * encoder.scale.std[number])
            past.append((window - window.mean()) / spread)
            future.append((series.values[row + 1 : row + 9] - window.mean()) / spread)
    # z always sums to 0, so the problem has a flat direction: compare the forecasts, not the coefficients.
    expected = np.stack(past) @ np.linalg.lstsq(np.stack(past), np.stack(future), rcond=1e-6)[0]
    np.testing.assert_allclose(np.stack(past) @ encoder.arrays["ridge-12"], expected, atol=1e-2)


def test_the_linear_forecast_is_in_raw_units() -> None:
    encoder, table = fitted(), wide_table()
    found = encoder.linear_forecast(12, queries_at(table, [100, 200]).context, np.arange(3))
    assert found.shape == (2, 3, 8)
    assert found.dtype == np.float32
    # `beat` repeats every 12 steps, and a ridge over 12 steps can learn that.
    assert np.abs(found[:, 2] - np.stack([table["beat"].values[row + 1 : row + 9] for row in (100, 200)])).mean() < 1.5
    shifted = encoder.linear_forecast(12, queries_at(table, [100]).context + np.float32(1000), np.arange(3))
    np.testing.assert_allclose(shifted[0] - 1000, found[0], atol=1e-2)


def test_settings_do_what_they_say() -> None:
    context, series = queries_at(wide_table(), range(40, 260, 9)).context, np.arange(3)

    def squared(config: EncoderConfig) -> np.ndarray:
        keys = fitted(config).encode(36, context, series, ("own",)).keys["own"].astype(np.float64)
        return np.square(keys[1:] - keys[:-1]).sum(-1)

    shape = squared(replace(EXACT, shape_weight=1.0))
    value = 2 * squared(replace(EXACT, shape_weight=0.5)) - shape
    np.testing.assert_allclose(
        squared(replace(EXACT, shape_weight=0.25)), 0.25 * shape + 0.75 * value, rtol=1e-3, atol=1e-3
    )
    plain, aware = squared(replace(EXACT, forecast_weight=0.0)), squared(EXACT)
    assert (plain <= aware * (1 + 1e-6)).all()
    assert (plain < 0.9 * aware).mean() > 0.5
    narrow = fitted(replace(EXACT, shape_width=4)).encode(36, context, series, ("own",)).keys["own"]
    assert narrow.shape[-1] == 4 + 5


# What normalises a window


def test_the_spread_has_a_floor_and_flatness_a_limit() -> None:
    windows = np.stack([np.zeros(8), np.arange(8) * 1e-3, np.arange(8) * 0.05, np.arange(8.0)])
    found = window_statistics(windows, floor=np.full(4, 0.3), flat_below=np.full(4, 0.01))
    np.testing.assert_allclose(found.location, windows.mean(axis=-1))
    np.testing.assert_allclose(found.spread, [0.3, 0.3, 0.3, windows[3].std()])
    np.testing.assert_array_equal(found.flat, [True, True, False, False])


def test_the_scale_of_a_series_is_of_its_training_values() -> None:
    scale = fit_scale([np.array([1.0, np.nan, 3.0]), np.full(5, 0.1), np.full(3, np.nan), np.array([1e9, 1e9 + 1])])
    np.testing.assert_allclose(scale.mean, [2, 0.1, 0, 1e9 + 0.5])
    np.testing.assert_array_equal(scale.std, [1, 1, 1, 0.5])


def test_an_unseen_series_is_measured_by_its_own_context(memory: LocalMemory) -> None:
    context = queries_at(wide_table(), [100]).context[:, :1]
    small, large = (memory.encoder.encode(12, context * np.float32(f), np.array([-1]), ("pooled",)) for f in (1, 1024))
    np.testing.assert_allclose(small.keys["pooled"], large.keys["pooled"], rtol=1e-5, atol=1e-6)
    assert large.statistics.spread[0, 0] == pytest.approx(1024 * small.statistics.spread[0, 0])
    flat = memory.encoder.encode(12, np.full((1, 1, 36), 5, dtype=np.float32), np.array([-1]), ("pooled",))
    assert flat.statistics.flat.all()
    assert np.isfinite(flat.keys["pooled"]).all()


# What it is fitted on


def test_only_the_training_part_is_seen(tmp_path: Path) -> None:
    table = wide_table()
    last = table.series[0].times[NUM_TRAINING - 1]
    fingerprints = set()
    for number, each in enumerate((table, poisoned(table, last, seed=5), between(table, 0, NUM_TRAINING))):
        version = build_until(Store(tmp_path / str(number)), each, last)
        fingerprints.add(version.manifest.encoder["fingerprint"])
    assert len(fingerprints) == 1
    earlier = build_until(Store(tmp_path / "earlier"), table, table.series[0].times[NUM_TRAINING - 2])
    assert earlier.manifest.encoder["fingerprint"] not in fingerprints


def test_the_fingerprint_covers_settings_and_arrays() -> None:
    encoder = fitted()
    assert fitted().fingerprint == encoder.fingerprint
    assert fitted(replace(ENCODER, spread_floor=0.2)).fingerprint != encoder.fingerprint
    for name, array in encoder.arrays.items():
        changed = array.copy()
        changed.flat[-1] = np.nextafter(changed.flat[-1], np.float32(9))
        assert replace(encoder, arrays={**encoder.arrays, name: changed}).fingerprint != encoder.fingerprint, name
    moved = encoder.scale._replace(mean=encoder.scale.mean + 1e-9)
    assert replace(encoder, scale=moved).fingerprint != encoder.fingerprint


def test_series_that_miss_values_are_fitted_on_what_they_have() -> None:
    whole = between(wide_table(), 0, NUM_TRAINING)
    encoder = fitted(table=with_missing(whole, [("flat", 50), ("beat", 200)]))
    assert all(np.isfinite(array).all() for array in encoder.arrays.values())
    # The moments of the joint key are those at which no series misses a value; here as without the others' rows.
    assert not np.array_equal(encoder.arrays["joint-12"], fitted().arrays["joint-12"])


def test_ragged_series_are_fitted_without_a_joint_key() -> None:
    encoder = fitted(table=ragged_table(), scopes=("own", "pooled"))
    assert not [name for name in encoder.arrays if name.startswith("joint")]


@pytest.mark.parametrize("views", [(1,), (37,), (12, 12), ()])
def test_views_that_do_not_fit_are_refused(views: tuple[int, ...], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="view"):
        built(tmp_path, encoder=replace(ENCODER, views=views))
