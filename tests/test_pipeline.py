"""`Forecaster`: a DataFrame in, a forecast out, and all that the commands do, from Python."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from forecaster_fixtures import SETTINGS
from memory_fixtures import Store, wide_table

from forecaster.errors import ConfigError, RunDamagedError, RunNotFoundError
from forecaster.pipeline import Forecaster
from memory_index.errors import DataError, IncompatibleError, NotFoundError, UsageError
from memory_index.memory_only import MemoryOptions
from memory_index.memory_only import evaluate as evaluate_memory
from memory_index.tables.reading import read_frame

NUM_STEPS, HORIZON = 320, 8
OPTIONS: dict[str, Any] = SETTINGS | {"epochs": 1, "device": "cpu"}
LONGER = NUM_STEPS + 40


def wide_frame(num_steps: int = NUM_STEPS) -> pd.DataFrame:
    table = wide_table(num_steps)
    return pd.DataFrame({"when": table.times} | {series.series_id: series.values for series in table.series})


def long_frame(num_steps: int = NUM_STEPS) -> pd.DataFrame:
    """The same, with series that end at different times."""
    frame = wide_frame(num_steps).melt(id_vars="when", var_name="unique_id", value_name="y")
    frame = frame.rename(columns={"when": "ds"})
    ends_early = (frame["unique_id"] == "flat") & (frame["ds"] >= wide_frame(num_steps)["when"].iloc[-6])
    return frame[~ends_early].sample(frac=1, random_state=0).reset_index(drop=True)


FRAMES = {"wide": wide_frame, "long": long_frame}


@pytest.fixture(scope="module")
def fitted(tmp_path_factory) -> dict[str, Forecaster]:
    """One of each layout; nothing may change them."""
    return {
        name: Forecaster(folder=tmp_path_factory.mktemp(name), split="60/20/20", **OPTIONS).fit(make())
        for name, make in FRAMES.items()
    }


@pytest.fixture(params=FRAMES)
def forecaster(request, fitted, tmp_path) -> Forecaster:
    """A copy that a test may change."""
    return Forecaster.load(fitted[request.param].save(tmp_path / "copy"), device="cpu")


def frame_of(forecaster: Forecaster, num_steps: int = NUM_STEPS) -> pd.DataFrame:
    return FRAMES[forecaster.memory.manifest.layout](num_steps)


def exactly(found: pd.DataFrame, expected: pd.DataFrame) -> None:
    pd.testing.assert_frame_equal(found, expected, check_exact=True)


# Fit and predict


@pytest.mark.parametrize("name", FRAMES)
def test_fit_then_predict_goes_on_from_the_history(fitted, name):
    result = fitted[name].predict(quantiles=(0.1, 0.9), update_memory=False)
    assert list(result.columns) == ["unique_id", "ds", "yhat", "q0.1", "q0.9"]
    assert len(result) == 3 * HORIZON
    assert np.isfinite(result[["yhat", "q0.1", "q0.9"]].to_numpy()).all()
    frame = FRAMES[name]()
    last = frame.groupby("unique_id")["ds"].max() if name == "long" else None
    for series_id, part in result.groupby("unique_id"):
        end = frame["when"].iloc[-1] if last is None else last[series_id]
        assert list(part["ds"]) == [end + pd.Timedelta(hours=number) for number in range(1, HORIZON + 1)]
    exactly(fitted[name].predict(frame, quantiles=(0.1, 0.9), update_memory=False), result)


def test_a_folder_of_its_own_goes_with_the_object():
    forecaster = Forecaster(**OPTIONS, use_llm=False, use_tapr=False).fit(wide_frame(260))
    folder = forecaster.folder
    assert len(forecaster.predict()) == 3 * HORIZON
    with pytest.raises(DataError, match="no test part"):
        forecaster.evaluate(wide_frame(260))
    assert forecaster.evaluate(wide_frame(260), "val").mse == pytest.approx(
        forecaster.run.metrics["best_val_mse"], rel=1e-3
    )
    assert folder.is_dir()
    del forecaster
    assert not folder.exists()


def test_evaluate_is_that_of_the_version_that_was_trained_against(forecaster):
    frame = frame_of(forecaster)
    before = forecaster.evaluate(frame)
    table = read_frame(frame)
    expected = evaluate_memory(forecaster.memory, table, options=MemoryOptions(k=5, on_empty="last-value"))
    assert before.num_scored == expected.num_scored
    assert before.baselines["memory_only"].mse == pytest.approx(expected.mse, rel=1e-6)
    assert before.mse < before.baselines["last_value"].mse
    daily = forecaster.evaluate(frame, every="24h", at="23:00")
    assert before.num_windows / 24 - 1 < daily.num_windows <= before.num_windows / 24 + 1
    grow(forecaster)
    after = forecaster.evaluate(frame)
    assert (after.mse, after.num_scored) == (before.mse, before.num_scored)


def grow(forecaster: Forecaster) -> pd.DataFrame:
    """Forecast with newer steps, so that the memory takes them in."""
    return forecaster.predict(frame_of(forecaster, LONGER), quantiles=(0.1,))


# A memory that grows


def test_newer_steps_are_taken_in_and_used(forecaster):
    longer = frame_of(forecaster, LONGER)
    without = forecaster.predict(longer, update_memory=False)
    before = forecaster.memory
    assert before.manifest.fingerprint == forecaster.run.record.index.fingerprint
    first = forecaster.predict(longer)
    memory = forecaster.memory
    assert memory.manifest.num_rows > before.manifest.num_rows
    assert memory.windows.times.max() == wide_table(LONGER).times[-1]
    assert (first["yhat"] != without["yhat"]).any()
    exactly(forecaster.predict(longer), first)  # nothing is new any more
    assert forecaster.memory.manifest.fingerprint == memory.manifest.fingerprint


def test_only_the_trained_and_the_newest_version_are_kept(forecaster):
    trained = forecaster.run.record.index.fingerprint
    for num_steps in (NUM_STEPS, NUM_STEPS + 12, LONGER):
        forecaster.predict(frame_of(forecaster, num_steps))
    assert len(Store(forecaster.folder / "indexes").numbers("memory")) == 2
    assert forecaster.memory.manifest.fingerprint != trained
    assert forecaster._open(forecaster._trained_ref()).manifest.fingerprint == trained


def test_a_forecast_does_not_depend_on_steps_of_the_growth(forecaster, tmp_path):
    other = Forecaster.load(forecaster.save(tmp_path / "other"), device="cpu")
    for num_steps in (NUM_STEPS, NUM_STEPS + 7, LONGER):
        stepwise = forecaster.predict(frame_of(forecaster, num_steps))
    at_once = other.predict(frame_of(other, LONGER))
    np.testing.assert_allclose(stepwise["yhat"], at_once["yhat"], rtol=1e-5)


# Save and load


def test_a_forecast_can_be_taken_apart(fitted):
    forecaster, frame = fitted["wide"], wide_frame()
    made = forecaster.predict(update_memory=False).set_index("unique_id")
    told = forecaster.explain(frame.set_index("when"), "beat", frame["when"].iloc[-1])
    np.testing.assert_array_equal(told.forecast, made.loc["beat", "yhat"].to_numpy(np.float32))
    assert len(told.neighbours) == SETTINGS["top_k"]
    with pytest.raises(NotFoundError, match="no series 'bea'"):
        forecaster.explain(frame, "bea", str(frame["when"].iloc[-1]))
    with pytest.raises(UsageError, match="not a time"):
        forecaster.explain(frame, "beat", "soon")


@pytest.mark.parametrize("has_grown", [False, True])
def test_what_was_saved_says_the_same_elsewhere(forecaster, tmp_path, has_grown):
    if has_grown:
        grow(forecaster)
    frame = frame_of(forecaster, LONGER)
    expected = forecaster.predict(frame, quantiles=(0.1, 0.9), update_memory=False)
    saved = forecaster.save(tmp_path / "saved")
    moved = saved.rename(tmp_path / "moved")
    loaded = Forecaster.load(moved, device="cpu")
    exactly(loaded.predict(frame, quantiles=(0.1, 0.9), update_memory=False), expected)
    assert loaded.evaluate(frame_of(forecaster)).mse == forecaster.evaluate(frame_of(forecaster)).mse
    assert loaded.config == forecaster.config
    assert loaded.split == forecaster.split
    assert not (moved / "run" / "checkpoints").exists()
    assert grow(loaded) is not None


def test_a_loaded_one_needs_a_table(forecaster):
    with pytest.raises(UsageError, match="no history"):
        forecaster.predict()


def test_saving_overwrites_nothing(fitted, tmp_path):
    with pytest.raises(UsageError, match="exists already"):
        fitted["wide"].save(tmp_path)


def test_the_folder_of_a_forecaster_can_be_loaded(fitted):
    loaded = Forecaster.load(fitted["wide"].folder, device="cpu")
    frame = wide_frame()
    exactly(loaded.predict(frame, update_memory=False), fitted["wide"].predict(update_memory=False))


def test_what_cannot_be_loaded_is_named(fitted, tmp_path):
    with pytest.raises(RunNotFoundError):
        Forecaster.load(tmp_path / "nowhere", device="cpu")
    saved = fitted["wide"].save(tmp_path / "saved")
    (saved / "run" / "model.safetensors").write_bytes(b"{}")
    with pytest.raises(RunDamagedError):
        Forecaster.load(saved, device="cpu")
    (tmp_path / "saved" / "indexes").rename(tmp_path / "taken")
    with pytest.raises(NotFoundError):
        Forecaster.load(saved, device="cpu")


# Mistakes


def test_nothing_works_before_fit(tmp_path):
    forecaster = Forecaster(folder=tmp_path / "new", **OPTIONS)
    for attempt in (
        lambda: forecaster.predict(wide_frame()),
        lambda: forecaster.evaluate(wide_frame()),
        lambda: forecaster.save(tmp_path / "saved"),
        lambda: forecaster.memory,
        lambda: forecaster.run,
    ):
        with pytest.raises(RunNotFoundError):
            attempt()
    assert not (tmp_path / "saved").exists()


def test_a_second_fit_is_refused_before_anything_is_built(fitted):
    forecaster = fitted["wide"]
    expected = forecaster.predict(update_memory=False)
    with pytest.raises(UsageError, match="holds a trained model"):
        forecaster.fit(wide_frame(300))
    assert Store(forecaster.folder / "indexes").numbers("memory") == (1,)
    exactly(forecaster.predict(update_memory=False), expected)


def test_an_unknown_setting_names_the_nearest():
    with pytest.raises(ConfigError, match="no setting 'learnin_rate'") as caught:
        Forecaster(horizon=8, learnin_rate=0.1)
    assert "learning_rate" in caught.value.hint
    with pytest.raises(ConfigError, match="epochs"):
        Forecaster(horizon=8, epochs="many")


def test_a_table_of_another_past_is_refused(forecaster):
    frame = frame_of(forecaster)
    column = "y" if "y" in frame else "load"
    frame.loc[frame.index[:200], column] += 1
    for attempt in (forecaster.predict, forecaster.evaluate):
        with pytest.raises(IncompatibleError, match=r"\(\d+ of \d+ (common|overlapping) steps differ\)"):
            attempt(frame)


def test_an_unseen_series_is_forecast_whether_the_memory_may_grow_or_not(fitted, tmp_path):
    forecaster = Forecaster.load(fitted["wide"].save(tmp_path / "copy"), device="cpu")
    frame = wide_frame().assign(stranger=lambda each: 5 * each["load"] - 3)
    result = forecaster.predict(frame, update_memory=False)
    assert set(result["unique_id"]) == {"load", "flat", "beat", "stranger"}
    exactly(forecaster.predict(frame, update_memory=False), result)
    grown = forecaster.predict(frame)
    assert [each.series_id for each in forecaster.memory.manifest.built.skipped] == ["stranger"]
    assert set(grown["unique_id"]) == set(result["unique_id"])
    assert np.isfinite(grown["yhat"]).all()


def test_a_short_table_is_read_as_the_one_it_was_fitted_on(fitted, tmp_path):
    """Of 40 rows that end before a gap nobody could tell the step; the memory knows it."""
    forecaster = Forecaster.load(fitted["wide"].save(tmp_path / "copy"), device="cpu")
    tail = wide_frame().iloc[-36:]
    exactly(
        forecaster.predict(tail, update_memory=False),
        forecaster.predict(wide_frame(), update_memory=False),
    )


# Cross-validation


@pytest.mark.parametrize("refit", [True, False])
def test_cross_validation_has_the_columns_and_origins_of_the_field(forecaster, refit):
    table = frame_of(forecaster, LONGER)
    found = forecaster.cross_validation(table, n_windows=3, step_size=6, refit=refit, quantiles=(0.1, 0.9))
    assert list(found.columns) == ["unique_id", "ds", "cutoff", "y", "yhat", "q0.1", "q0.9"]
    assert len(found) == 3 * 3 * HORIZON
    read = read_frame(table)
    for name, rows in found.groupby("unique_id"):
        times = read[name].times
        expected = times[[len(times) - 1 - HORIZON - 6 * back for back in (2, 1, 0)]]
        np.testing.assert_array_equal(rows["cutoff"].unique(), expected)
        np.testing.assert_array_equal(rows["y"].to_numpy()[-HORIZON:], read[name].values[-HORIZON:])
    assert ((found["ds"] - found["cutoff"]) / pd.Timedelta(hours=1)).tolist() == [*range(1, HORIZON + 1)] * 9
    assert forecaster.memory.manifest.parent is None  # nothing was appended to the forecaster's own memory


def test_cross_validation_does_not_see_what_follows_a_cutoff(forecaster):
    table = frame_of(forecaster, LONGER)
    clean = forecaster.cross_validation(table, n_windows=3, step_size=6, quantiles=(0.1, 0.9))
    after = clean["cutoff"].min()
    poisoned, time = table.copy(), "when" if "when" in table else "ds"
    for name in [column for column in table.columns if column not in (time, "unique_id")]:
        poisoned.loc[poisoned[time] > after, name] = 1e4 * np.sin(np.arange((poisoned[time] > after).sum()))
    dirty = forecaster.cross_validation(poisoned, n_windows=3, step_size=6, quantiles=(0.1, 0.9))
    first = clean["cutoff"] == after
    exactly(dirty[first].drop(columns="y"), clean[first].drop(columns="y"))
    assert not clean["yhat"].equals(dirty["yhat"])


def test_cross_validation_fits_first_on_what_was_known_at_the_first_cutoff(tmp_path):
    unfitted = Forecaster(folder=tmp_path / "a", **OPTIONS)
    found = unfitted.cross_validation(wide_frame(), n_windows=2)
    cutoffs = found["cutoff"].unique()
    known = wide_frame()[wide_frame()["when"] <= cutoffs[0]]
    expected = Forecaster(folder=tmp_path / "b", **OPTIONS).fit(known).predict()
    first = found[found["cutoff"] == cutoffs[0]]
    np.testing.assert_array_equal(first["ds"], expected["ds"])
    np.testing.assert_allclose(first["yhat"], expected["yhat"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "error"), [((40, 8), IncompatibleError), ((0, 8), UsageError), ((99, 8), UsageError)]
)
def test_cross_validation_refuses_cutoffs_that_it_cannot_have(fitted, arguments, error):
    with pytest.raises(error):
        fitted["wide"].cross_validation(wide_frame(LONGER), *arguments)
