"""From a table to a run: it sees nothing that it must not see, goes on as if never stopped, and can be moved."""

from __future__ import annotations

import json
import random
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from forecaster_fixtures import (
    SETTINGS,
    SPLIT,
    TABLE,
    WITHOUT_NETWORK,
    Troubled,
    config_of,
    hold_until_killed,
    make_small,
    memory_of,
    train_small,
    train_small_in_one_of,
)
from killing import PROCESSES, kill_one, run_together
from memory_fixtures import ENCODER, WINDOW, Store, append, between, open_version, poisoned
from toy_training import InterruptAt, free_port, log_of

from forecaster.errors import RunIncompatibleError, RunNotFoundError
from forecaster.evaluate import evaluate
from forecaster.forecast import forecast
from forecaster.model.model import ForecastModel
from forecaster.predictor import load_predictor, require_same_memory
from forecaster.retrieval.batches import CachedWindows, live_blocks
from forecaster.retrieval.neighbours import FAN_LEVELS
from forecaster.runs import intervals
from forecaster.runs.run import open_run
from forecaster.training import fit_intervals
from forecaster.training.checkpoint import load_latest
from forecaster.training.closed_form import fit_closed_form
from forecaster.training.fit import train_run
from forecaster.training.windows import windows_of
from memory_index.errors import IncompatibleError, ResourceError, UsageError
from memory_index.splits import split_by_name, split_until
from memory_index.tables.series import SeriesTable

PROCESSES.set_forkserver_preload(["forecaster_fixtures", "torch._dynamo"])
PARTS = ("train", "val")
END_OF_TRAINING, END_OF_VALIDATION = TABLE.times[251], TABLE.times[335]


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return make_small(tmp_path_factory.getbasetemp())


ALONE = {"gram_form": "design", "use_llm": False}  # the network is the whole forecast


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return open_run(folder).weights()[0]


def assert_same_weights(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


def forecasts_of(folder: Path, memory, table=TABLE) -> pd.DataFrame:
    predictor = load_predictor(open_run(folder), device="cpu")
    return forecast(predictor, memory, table, quantiles=(0.1, 0.9))


# Intervals


def test_each_series_has_the_factor_of_its_own_errors(small, monkeypatch):
    """Those of the validation windows, asked live and measured in expected widths."""
    _, errors = held_out(small, fit_intervals.MAX_CALIBRATION, monkeypatch)
    fan = fit_intervals.calibrated(errors, TABLE.series_ids, WINDOW.horizon)
    predictor, memory, sizes = small.predictor, small.memory, []
    config, spaces = predictor.config, memory.manifest.key_spaces
    rows = np.arange(251, 336 - WINDOW.horizon)
    for number, series in enumerate(TABLE.series):
        origins = [rows if n == number else rows[:0] for n in range(3)]
        found = []
        for block in live_blocks(memory, TABLE, origins, config.model, config.train.memory_k, predictor.units):
            mine = np.flatnonzero(block.asked.wanted.ravel())
            predicted = predictor.predict(block.batch)
            unit = np.full(len(mine), series.values[:252].std(), dtype=np.float32)
            behind = block.condensed.take(mine), memory.windows, spaces
            width = intervals.expected_width(*behind, spread=predicted.spread[mine], unit=unit, horizon=WINDOW.horizon)
            origin = rows[len(found) :][: len(mine)]
            future = np.stack([series.values[row + 1 : row + 1 + WINDOW.horizon] for row in origin])
            found += [*np.abs((future - predicted.forecast[mine]) / width).mean(axis=1)]
        assert len(found) == len(rows)
        sizes.append(np.sum(found))
    prior, usual = max(WINDOW.horizon, 20), np.median(sizes) / len(rows)
    expected = (np.array(sizes) / usual + prior) / (len(rows) + prior)
    assert np.ptp(np.log(expected)) > 1, "the series err alike"
    np.testing.assert_allclose([fan.factors[name] for name in TABLE.series_ids], expected, rtol=1e-3)


def held_out(small, most: int, monkeypatch) -> tuple[CachedWindows, fit_intervals.Errors]:
    record = open_run(small.folder / "run").record
    windows = windows_of(TABLE, small.memory, small.predictor.config, record, "val", small.folder / "neighbours")
    monkeypatch.setattr(fit_intervals, "MAX_CALIBRATION", most)
    windows = replace(windows, fans=None)
    return windows, fit_intervals.errors_of(small.predictor.model, windows, np.zeros(len(windows), dtype=np.int64))


@pytest.mark.parametrize("most", [30, 31, 100])
def test_where_not_all_windows_calibrate_each_series_has_its_share_of_all_of_time(small, monkeypatch, most):
    windows, found = held_out(small, most, monkeypatch)
    assert len(found.error) == most
    assert found.share == pytest.approx(most / len(windows))
    for number in range(3):
        assert abs((found.series == number).sum() - most / 3) < 2


def test_a_blend_is_never_worse_than_the_memory_alone_on_what_it_was_chosen_on(small):
    """Without a network the held-out training windows calibrate too, and the memory's own fan is a candidate."""
    config = config_of(**WITHOUT_NETWORK)
    record = open_run(small.folder / "run").record
    parts = [windows_of(TABLE, small.memory, config, record, part, small.folder / "neighbours") for part in PARTS]
    model = ForecastModel(config.model, num_spaces=len(small.memory.manifest.spaces), backbone=None)
    fit_closed_form(model, parts[0], TABLE, config)
    errors = fit_intervals.errors_of(model, parts[0], parts[0].fold)
    assert 0 < len(errors.fan) <= len(errors.error)
    assert errors.memory.levels.shape == (len(errors.fan), WINDOW.horizon, len(FAN_LEVELS))
    found = fit_intervals.fit_intervals(model, *parts, TABLE.series_ids, validates=True)
    assert found.num == len(parts[0]) + len(parts[1])
    for blend in (found.blend, intervals.MEMORY_ALONE):
        made = blend.quantiles(errors.memory.levels, errors.forecast, errors.memory)
        assert (np.diff(made, axis=2) >= -1e-5).all()
    with_none = fit_intervals.fit_intervals(
        model, replace(parts[0], fold=None), parts[1], TABLE.series_ids, validates=False
    )
    assert (with_none.blend, with_none.num) == (intervals.MEMORY_ALONE, 0)


# What a training makes


def test_it_learns(small, tmp_path):
    neighbours = small.folder / "neighbours"
    trained = train_small(small.memory, tmp_path / "run", neighbours_dir=neighbours, **ALONE)
    log = [line["val_mse"] for line in log_of(tmp_path / "run") if "val_mse" in line]
    assert min(log) < 0.9 * log[0]
    assert trained.result.best_val_mse == min(log)


def test_the_last_weights_of_the_networks_are_kept_with_the_gate_and_counted(small):
    last, kept = load_latest(small.folder / "run").model, weights_of(small.folder / "run")
    changed = {name for name in last if not torch.equal(last[name], kept[name])}
    assert changed == {"value_gate.logits"}
    result = small.trained.result
    assert (result.epochs, result.best_step, result.stopped) == (SETTINGS["epochs"], result.steps, "epochs")
    assert small.trained.closed_form["gate"]["network"] is not None
    assert small.trained.num_training_windows == 3 * (252 - WINDOW.length + 1)
    assert small.trained.num_validation_windows == 3 * (84 - WINDOW.horizon + 1)
    assert small.trained.num_parameters == sum(each.numel() for each in small.predictor.model.parameters())


def test_the_record_says_what_it_was_trained_on(small):
    run = open_run(small.folder / "run")
    record, manifest = run.record, small.memory.manifest
    assert record.settings == config_of(season=24).to_dict()
    assert (record.index.ref, record.index.fingerprint) == ("m@1", manifest.fingerprint)
    assert record.index.spaces == tuple(str(space.space) for space in manifest.spaces)
    for series in TABLE.series:
        assert record.data.units[series.series_id] == pytest.approx(series.values[:252].std(), rel=1e-12)
    assert np.datetime64(record.data.split["val_until"]) == END_OF_VALIDATION
    assert run.metrics["best_val_mse"] == small.trained.result.best_val_mse
    text = json.dumps(record.to_document()) + (small.folder / "run" / "card.md").read_text()
    assert str(small.folder) not in text, "a run does not say where it was made"


@pytest.mark.parametrize(
    "changed",
    [
        {"use_tapr": False, "use_gram": False},
        {"use_llm": False, "lookback": 36},
        {"use_shortcut": False, "prompt_layout": "cached", "horizon": 3},
        {**WITHOUT_NETWORK, "num_folds": 1, "train_stride": 3},
        {"use_gram": False, "policy": "causal", "accumulation": 2},
    ],
)
def test_every_kind_of_model_is_trained_kept_and_used(small, tmp_path, changed):
    trained = train_small(
        small.memory, tmp_path / "run", neighbours_dir=small.folder / "neighbours", max_steps=3, **changed
    )
    predictor = load_predictor(open_run(tmp_path / "run"), device="cpu")
    assert_same_weights(predictor.model.state_dict(), trained.run.weights()[0])
    found = evaluate(predictor, small.memory, TABLE, "val")
    assert found.mse == pytest.approx(trained.result.best_val_mse, rel=1e-4)
    assert len(forecast(predictor, small.memory, TABLE)) == 3 * predictor.config.model.horizon


def test_neighbours_are_found_once_for_all_runs(small, tmp_path, monkeypatch):
    monkeypatch.setattr(type(small.memory), "search", None)
    trained = train_small(
        small.memory, tmp_path / "run", neighbours_dir=small.folder / "neighbours", d_model=4, max_steps=1
    )
    assert trained.result.steps == 1


def test_a_seed_decides(small, tmp_path):
    options = {"neighbours_dir": small.folder / "neighbours", "max_steps": 3}
    for name, seed in (("one", 1), ("same", 1), ("other", 2)):
        train_small(small.memory, tmp_path / name, seed=seed, **options)
    assert_same_weights(weights_of(tmp_path / "one"), weights_of(tmp_path / "same"))
    one, other = weights_of(tmp_path / "one"), weights_of(tmp_path / "other")
    assert not all(torch.equal(one[name], other[name]) for name in one)


def test_the_callers_generators_are_left_alone(small, tmp_path):
    before = torch.get_rng_state().tolist()
    train_small(small.memory, tmp_path / "run", neighbours_dir=small.folder / "neighbours", max_steps=1)
    assert torch.get_rng_state().tolist() == before


# The future


def test_training_does_not_see_the_test_part(small, tmp_path):
    """Weights, thresholds, shortcut and quantiles are the same bit for bit when all of it is garbage."""
    garbage = poisoned(TABLE, END_OF_VALIDATION, seed=5)
    train_small(memory_of(tmp_path / "indexes", garbage), tmp_path / "run", garbage)
    for name in ("model.safetensors", intervals.FILE):
        assert (tmp_path / "run" / name).read_bytes() == (small.folder / "run" / name).read_bytes(), name
    assert log_of(tmp_path / "run") == log_of(small.folder / "run")
    ours, theirs = open_run(tmp_path / "run").record, open_run(small.folder / "run").record
    assert ours.identity == theirs.identity


def test_validation_decides_how_wide_quantiles_are_and_nothing_else(small, tmp_path):
    garbage = poisoned(TABLE, END_OF_TRAINING, seed=5)
    train_small(memory_of(tmp_path / "indexes", garbage), tmp_path / "run", garbage)
    ours, theirs = tmp_path / "run", small.folder / "run"
    one, other = load_latest(ours), load_latest(theirs)
    assert one.state.step == other.state.step
    assert_same_weights(one.model, other.model)
    assert {"networks.1.tapr.thresholds", "shortcut.weight"} <= one.model.keys()
    learned = [[{k: v for k, v in line.items() if "val" not in k} for line in log_of(each)] for each in (ours, theirs)]
    assert learned[0] == learned[1]
    assert [line.get("val_mse") for line in log_of(ours)] != [line.get("val_mse") for line in log_of(theirs)]
    assert (ours / intervals.FILE).read_bytes() != (theirs / intervals.FILE).read_bytes()


def test_training_does_not_see_what_has_been_appended(small, tmp_path):
    """A memory that has grown knows the validation part, and is another version; training windows see no more of it."""
    memory = memory_of(tmp_path / "indexes")
    grown = open_version(append(Store(tmp_path / "indexes"), "m@1", TABLE), threads=1)
    for name, each in (("before", memory), ("after", grown)):
        train_small(each, tmp_path / name, epochs=1, num_folds=1)  # so that the memory itself is asked
    one, other = (load_latest(tmp_path / name).model for name in ("before", "after"))
    assert_same_weights(one, other)


# Going on


@pytest.mark.parametrize("step", [3, 12, 25])
def test_an_interrupted_run_goes_on_as_if_never_stopped(small, tmp_path, step):
    options = {"neighbours_dir": small.folder / "neighbours"}
    with pytest.raises(KeyboardInterrupt):
        train_small(small.memory, tmp_path / "run", progress=InterruptAt(step), **options)
    with pytest.raises(RunNotFoundError, match="not trained to its end"):
        load_predictor(open_run(tmp_path / "run"), device="cpu")
    random = torch.rand(9)  # whatever happened in between does not matter
    trained = train_small(small.memory, tmp_path / "run", resume=True, **options)
    assert len(random) == 9
    assert_same_weights(weights_of(tmp_path / "run"), weights_of(small.folder / "run"))
    assert log_of(tmp_path / "run") == log_of(small.folder / "run")
    for name in ("model.safetensors", intervals.FILE):
        assert (tmp_path / "run" / name).read_bytes() == (small.folder / "run" / name).read_bytes()
    timed = ("seconds", "peak_rss_mb")
    ours, theirs = (vars_of(each.result) for each in (trained, small.trained))
    assert {name: value for name, value in ours.items() if name not in timed} == {
        name: value for name, value in theirs.items() if name not in timed
    }


def vars_of(result) -> dict:
    return {name: getattr(result, name) for name in type(result).__dataclass_fields__}


def test_a_run_that_has_ended_stays_as_it_is(small, tmp_path):
    shutil.copytree(small.folder / "run", tmp_path / "run")
    trained = train_small(small.memory, tmp_path / "run", neighbours_dir=small.folder / "neighbours", resume=True)
    assert trained.result.steps == small.trained.result.steps
    for name in ("model.safetensors", intervals.FILE, "config.json"):
        assert (tmp_path / "run" / name).read_bytes() == (small.folder / "run" / name).read_bytes()
    with pytest.raises(UsageError, match="holds a run already"):
        train_small(small.memory, tmp_path / "run", neighbours_dir=small.folder / "neighbours")


def test_a_run_does_not_go_on_with_other_settings_or_data(small, tmp_path):
    shutil.copytree(small.folder / "run", tmp_path / "run")
    options = {"neighbours_dir": small.folder / "neighbours", "resume": True}
    with pytest.raises(RunIncompatibleError, match="d_model"):
        train_small(small.memory, tmp_path / "run", d_model=4, **options)
    garbage = poisoned(TABLE, END_OF_TRAINING, seed=5)  # the version stores the training part only
    with pytest.raises(RunIncompatibleError, match="another table"):
        train_small(small.memory, tmp_path / "run", garbage, **options)


@pytest.mark.parametrize("while_", ["neighbours are found", "it is trained"])
def test_two_trainings_of_one_run_do_not_meet(small, tmp_path, while_):
    def begin_another(*_) -> None:
        with pytest.raises(ResourceError, match="another process"):
            train_small(small.memory, tmp_path / "run", num_folds=3, resume=True)
        with pytest.raises(UsageError, match="not finished"):
            train_small(small.memory, tmp_path / "run", memory_k=3)
        raise KeyboardInterrupt

    memory = Troubled(small.memory, begin_another) if while_ == "neighbours are found" else small.memory
    with pytest.raises(KeyboardInterrupt):
        train_small(memory, tmp_path / "run", num_folds=3, progress=begin_another)
    assert open_run(tmp_path / "run").config.train.num_folds == 3


def test_a_kill_leaves_the_run_free(small, tmp_path):
    shutil.copytree(small.folder / "run", tmp_path / "run")
    kill_one(tmp_path / "run", tmp_path / "log", random.Random(0), work=hold_until_killed, within_s=0.0)
    assert not train_small(small.memory, tmp_path / "run", resume=True).is_new


def test_two_processes_are_one(small, tmp_path):
    """The whole model with its memory: both find the same neighbours, and one of them writes."""
    shutil.copytree(small.folder / "indexes", tmp_path / "indexes")
    changed = {"dropout": 0.0, "epochs": 1, "neighbours_dir": tmp_path / "neighbours"}
    train_small(small.memory, tmp_path / "alone", **changed)
    port = free_port()
    answers = run_together(train_small_in_one_of, *((rank, 2, port, tmp_path, changed) for rank in range(2)))
    assert not [answer for answer in answers if isinstance(answer, Exception)]
    (weights, score), (others, _) = answers
    assert weights == others
    for name, value in weights_of(tmp_path / "alone").items():
        np.testing.assert_allclose(weights[name], value.flatten(), rtol=1e-3, atol=1e-4, err_msg=name)
    assert score == pytest.approx(open_run(tmp_path / "alone").metrics["best_val_mse"], rel=1e-3)
    together = forecasts_of(tmp_path / "run-of-2", small.memory)
    expected = forecasts_of(tmp_path / "alone", small.memory)
    np.testing.assert_allclose(together["yhat"], expected["yhat"], rtol=1e-3, atol=1e-3)


def test_few_validation_windows_that_do_not_overlap_are_said(small, tmp_path):
    """84 steps of validation hold ten windows of 8 steps, 33 steps four."""
    said: list[str] = []
    for number, val_until in enumerate((END_OF_VALIDATION, TABLE.times[284])):
        memory = memory_of(tmp_path / f"{number}", split=replace(SPLIT, val_until=str(val_until)))
        out, config = tmp_path / f"run-{number}", config_of(max_steps=1, **ALONE)
        train_run(TABLE, memory, "m@1", config, out, neighbours_dir=tmp_path / "n", device="cpu", note=said.append)
    assert said == ["intervals rest on 4 windows a series that do not overlap: they may be far off"]


# What it must not know


def test_what_is_not_published_by_the_end_of_its_part_fits_nothing(tmp_path):
    """With a delay of 24 steps the last day of each part is not known yet when the part ends."""
    memory = memory_of(tmp_path / "indexes", window=replace(WINDOW, known_delay=24))
    steps = np.arange(len(TABLE.times))
    hidden = ((steps > 252 - 24 - 1) & (steps <= 251)) | ((steps > 336 - 24 - 1) & (steps <= 335))

    def garbled(start: int, end: int) -> SeriesTable:
        changed = hidden & (steps >= start) & (steps < end)
        return replace(
            TABLE, series=tuple(replace(s, values=np.where(changed, s.values + 9.0, s.values)) for s in TABLE.series)
        )

    plain = train_small(memory, tmp_path / "plain", **WITHOUT_NETWORK)
    late = train_small(
        memory, tmp_path / "late", garbled(252, 336), neighbours_dir=tmp_path / "others", **WITHOUT_NETWORK
    )
    assert plain.num_validation_windows == late.num_validation_windows == 3 * (336 - 24 - 252 - WINDOW.horizon + 1)
    assert plain.result.best_val_mse == late.result.best_val_mse
    factors = [(run / "intervals.safetensors").read_bytes() for run in (tmp_path / "plain", tmp_path / "late")]
    assert factors[0] == factors[1]
    assert plain.num_training_windows == 3 * (252 - 24 - WINDOW.length + 1)
    train_small(memory, tmp_path / "early", garbled(0, 252), neighbours_dir=tmp_path / "more", **WITHOUT_NETWORK)
    assert_same_weights(weights_of(tmp_path / "early"), weights_of(tmp_path / "plain"))


def test_a_series_that_the_version_does_not_have_is_not_trained_on(small, tmp_path):
    late = replace(TABLE["load"], series_id="late", times=TABLE.times[260:], values=1e6 * TABLE["load"].values[260:])
    said: list[str] = []
    table = replace(TABLE, series=(*TABLE.series, late))
    config, out = config_of(), tmp_path / "run"
    trained = train_run(
        table, small.memory, "m@1", config, out, neighbours_dir=tmp_path / "n", device="cpu", note=said.append
    )
    assert trained.result.best_val_mse == small.trained.result.best_val_mse
    assert said == ["'late': not in the index, so nothing is trained or validated on it"]
    assert set(trained.run.record.data.units) == {*TABLE.series_ids}
    frame = forecasts_of(out, small.memory, table)
    pd.testing.assert_frame_equal(frame[frame.unique_id != "late"], forecasts_of(small.folder / "run", small.memory))


# Where it is used


def test_a_moved_run_and_a_moved_memory_say_the_same_bit_for_bit(small, tmp_path):
    expected = forecasts_of(small.folder / "run", small.memory)
    shutil.copytree(small.folder / "run", tmp_path / "elsewhere" / "renamed")
    shutil.copytree(small.folder / "indexes", tmp_path / "moved")
    memory = open_version(Store(tmp_path / "moved").resolve("m@1"), threads=1)
    run = open_run(tmp_path / "elsewhere" / "renamed")
    require_same_memory(run, memory.manifest, "m@1", newer=False)
    pd.testing.assert_frame_equal(forecasts_of(run.path, memory), expected, check_exact=True)


OTHERS = {
    "horizon": {"window": replace(WINDOW, horizon=7)},
    "key encoder": {"encoder": replace(ENCODER, shape_weight=0.5)},
    "key spaces": {"scopes": ("own", "pooled")},
}


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("newer", [True, False])
def test_another_memory_is_refused(small, tmp_path, name, newer):
    other = memory_of(tmp_path, **OTHERS[name])
    # The encoder is fitted for its scopes, so a memory without one of them may have another encoder, too.
    with pytest.raises(RunIncompatibleError, match=f"another ({name}|key encoder)"):
        require_same_memory(open_run(small.folder / "run"), other.manifest, "m@1", newer=newer)


def test_a_memory_that_has_grown_is_accepted_when_asked_for(small, tmp_path):
    shutil.copytree(small.folder / "indexes", tmp_path / "indexes")
    grown = append(Store(tmp_path / "indexes"), "m@1", TABLE)
    run = open_run(small.folder / "run")
    require_same_memory(run, grown.manifest, grown.ref, newer=True)
    with pytest.raises(RunIncompatibleError, match="another content") as caught:
        require_same_memory(run, grown.manifest, grown.ref, newer=False)
    assert grown.ref in caught.value.hint


def test_a_run_needs_its_language_model_and_its_weights(small, tmp_path):
    shutil.copytree(small.folder / "run", tmp_path / "run")
    (tmp_path / "run" / "model.safetensors").unlink()
    with pytest.raises(RunNotFoundError, match="no weights"):
        load_predictor(open_run(tmp_path / "run"), device="cpu")


# What is refused before anything is trained


def test_windows_longer_than_those_of_the_version_are_refused(small, tmp_path):
    for changed, text in (
        ({"lookback": 40}, "lookback 40 is longer than the index's 36"),
        ({"horizon": 9}, "horizon 9 is longer than the index's 8"),
    ):
        with pytest.raises(RunIncompatibleError, match=text):
            train_small(small.memory, tmp_path / "run", **changed)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("network", [WITHOUT_NETWORK, {}], ids=["closed form", "network"])
def test_a_version_without_validation_is_trained_and_says_what_stands_in(tmp_path, network):
    split = split_until(str(END_OF_TRAINING), None, TABLE.times, TABLE.step)
    memory, said = memory_of(tmp_path / "indexes", split=split), []
    trained = train_small(memory, tmp_path / "run", note=said.append, max_steps=2, **network)
    assert any("stand in" in text for text in said)
    assert not trained.plan["validates"]
    assert np.isfinite(trained.result.best_val_mse)
    predictor = load_predictor(trained.run, device="cpu")
    assert predictor.seen_until == END_OF_TRAINING
    assert np.isfinite(forecast(predictor, memory, TABLE, quantiles=(0.1, 0.9)).iloc[:, 2:].to_numpy()).all()


def test_a_table_without_a_series_of_the_version_is_refused(small, tmp_path):
    with pytest.raises(RunIncompatibleError, match="no series 'beat'"):
        train_small(small.memory, tmp_path / "run", replace(TABLE, series=TABLE.series[:2]))


@pytest.mark.parametrize("use_gram", [True, False])
def test_a_table_of_other_values_is_refused(small, tmp_path, use_gram):
    other = poisoned(TABLE, TABLE.times[100], seed=1)
    with pytest.raises(IncompatibleError, match="but m@1 was built on"):
        train_small(small.memory, tmp_path / "run", other, use_gram=use_gram)


@pytest.mark.parametrize("rows", [80, 110, 180])
@pytest.mark.parametrize("use_gram", [True, False])
def test_no_training_part_is_too_short(tmp_path, rows, use_gram):
    """Whatever the index was built on is trained on, and what was changed to make do is said."""
    table, said = between(TABLE, 0, rows), []
    memory = memory_of(tmp_path / "indexes", table, split=split_by_name(SPLIT.name, table.times))
    changed = {**WITHOUT_NETWORK, "use_gram": use_gram, "num_folds": None}
    trained = train_small(memory, tmp_path / "run", table, note=said.append, **changed)
    assert trained.plan["notes"] == [text for text in said if text in trained.plan["notes"]]
    if trained.plan["folds"]["kind"] == "none":
        assert any("too few training windows" in text for text in said)
        assert trained.closed_form["gate"]["errors"] == {}
    found = forecast(load_predictor(trained.run, device="cpu"), memory, table, quantiles=(0.1, 0.5, 0.9))
    assert np.isfinite(found.iloc[:, 2:].to_numpy()).all()
    assert (np.diff(found[["q0.1", "q0.5", "q0.9"]].to_numpy(), axis=1) >= 0).all()
