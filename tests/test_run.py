"""The run folder: what is made, what is refused, what moves, and what its card says."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys

import pytest
import torch
from toy_training import ToyModel, train_toy, weights_of

from forecaster.config import Config
from forecaster.errors import RunDamagedError, RunIncompatibleError, RunNotFoundError
from forecaster.runs.records import FORMAT, seal
from forecaster.runs.run import LOCK, begun_run, create_run, finish_run, open_run
from forecaster.runs.run_record import DataFacts, IndexFacts, RunRecord
from memory_index import files
from memory_index.errors import DataError, ResourceError, UsageError

SETTINGS = Config.from_dict({"lookback": 96, "horizon": 24, "use_network": True}).to_dict()
RECORD = RunRecord(
    settings=SETTINGS,
    index=IndexFacts(
        ref="etth1@1",
        fingerprint="f" * 64,
        encoder_fingerprint="e" * 64,
        window={"lookback": 96, "horizon": 24},
        spaces=("own-96", "pooled-96"),
    ),
    backbone={"id": "builtin:tiny", "revision": "1", "layers": 2, "fingerprint": "b" * 64},
    data=DataFacts(
        source="ETTh1.csv",
        first_at="2016-07-01T00:00:00",
        last_at="2018-06-26T19:00:00",
        step="h",
        series_ids=("HUFL", "OT"),
        units={"HUFL": 5.8, "OT": 8.5},
        split={"name": "ett-hourly", "train_until": "2017-06-25T23:00:00"},
        sha256="d" * 64,
    ),
    hardware={"device": "cpu", "num_processes": 1},
)


def changed(**settings) -> RunRecord:
    return dataclasses.replace(RECORD, settings={**SETTINGS, **settings})


def test_opening_a_run_does_not_load_what_trains_it(repository):
    program = "import sys, forecaster.runs.run; print('accelerate' in sys.modules, 'transformers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], cwd=repository, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


def test_a_run_is_what_was_recorded(tmp_path):
    run = create_run(tmp_path / "runs" / "one", RECORD)
    assert run.record == RECORD
    assert run == open_run(tmp_path / "runs" / "one")
    assert run.record.config == Config.from_dict(SETTINGS)
    assert run.metrics == {}
    assert {"python", "torch", "numpy"} <= set(run.record.libraries)
    with pytest.raises(RunNotFoundError, match="no weights yet"):
        run.weights()


def test_a_whole_run_can_be_moved(tmp_path):
    run = create_run(tmp_path / "one", RECORD)
    model, result = train_toy(run.path, identity=run.record.identity)
    run = finish_run(run, {"epochs": result.epochs, "test": {"mse": 0.123456789, "mae": None}})
    assert sorted(path.name for path in run.path.iterdir()) == [
        "card.md",
        "checkpoints",
        "config.json",
        "metrics.json",
        "metrics.jsonl",
        "model.json",
        "model.safetensors",
    ]
    run.path.rename(tmp_path / "moved")
    moved = open_run(tmp_path / "moved")
    tensors, record = moved.weights()
    assert record.val_mse == result.best_val_mse
    assert moved.metrics == {"epochs": result.epochs, "test": {"mse": 0.123456789, "mae": None}}
    other = ToyModel(seed=4)
    other.load_state_dict(tensors, strict=False)
    assert weights_of(other) == weights_of(model)
    for path in (tmp_path / "moved").rglob("*"):
        if path.is_file():
            assert str(tmp_path).encode() not in path.read_bytes(), path


def test_the_card_says_what_the_run_is(tmp_path):
    run = create_run(
        tmp_path / "one", dataclasses.replace(RECORD, data=dataclasses.replace(RECORD.data, source="a\n# b"))
    )
    train_toy(run.path, identity=run.record.identity, max_steps=1)
    finish_run(run, {"test": {"mse": 0.123456789, "mae": None}, "seed": 0})
    card = (run.path / "card.md").read_text()
    for said in (
        "last 96 steps",
        "next 24",
        "2016-07-01T00:00:00 to 2018-06-26T19:00:00",
        "HUFL, OT",
        "ett-hourly",
        f"etth1@1, fingerprint {'f' * 64}",
        "training until 2017-06-25T23:00:00",
        "id: builtin:tiny",
        "MSE on validation",
        "### test\n\n- mse: 0.123457",
        "use_tapr: true",
        "cli evaluate 'a # b' --run RUN",
        "seed: 0",
        "device: cpu",
        f"torch: {torch.__version__.partition('+')[0]}",
    ):
        assert said in card
    assert "mae" not in card
    assert "\n# b" not in card, "a file's name is not a heading"


def test_a_run_without_language_model_has_a_card(tmp_path):
    record = dataclasses.replace(RECORD, backbone=None)
    run = create_run(tmp_path / "one", record)
    assert run.record == record
    train_toy(run.path, identity=run.record.identity, max_steps=1)
    finish_run(run, {})
    assert (run.path / "card.md").read_text().count("- none") == 1


@pytest.mark.parametrize("is_finished", [False, True])
def test_a_run_is_not_overwritten(tmp_path, is_finished):
    run = create_run(tmp_path / "one", RECORD)
    if is_finished:
        train_toy(run.path, identity=run.record.identity, max_steps=1)
        finish_run(run, {"epochs": 1})
    with pytest.raises(UsageError, match="is finished" if is_finished else "is not finished") as caught:
        create_run(tmp_path / "one", RECORD)
    assert "--resume" in caught.value.hint


def test_going_on_keeps_the_first_record(tmp_path):
    run = create_run(tmp_path / "one", RECORD)
    later = dataclasses.replace(
        changed(save_steps=7),
        created_at="later",
        hardware={},
        data=dataclasses.replace(RECORD.data, source="renamed.csv"),
        index=dataclasses.replace(RECORD.index, ref="etth1@prod"),
    )
    assert create_run(tmp_path / "one", later, resume=True) == run
    assert create_run(tmp_path / "new", RECORD, resume=True).record == RECORD


@pytest.mark.parametrize(
    ("other", "name"),
    [
        (dataclasses.replace(changed(use_llm=False), backbone=None), "trained with use_llm True, not False"),
        (changed(d_model=64), "trained with d_model 32, not 64"),
        (
            dataclasses.replace(RECORD, index=dataclasses.replace(RECORD.index, fingerprint="c")),
            "another version",
        ),
        (dataclasses.replace(RECORD, backbone={**RECORD.backbone, "fingerprint": "c"}), "another language model"),
        (dataclasses.replace(RECORD, data=dataclasses.replace(RECORD.data, sha256="c")), "another table"),
    ],
)
def test_a_run_of_something_else_does_not_go_on(tmp_path, other, name):
    create_run(tmp_path / "one", RECORD)
    with pytest.raises(RunIncompatibleError, match=name):
        create_run(tmp_path / "one", other, resume=True)


@pytest.mark.parametrize("resume", [False, True])
def test_a_foreign_folder_is_left_alone(tmp_path, resume):
    (tmp_path / "thesis.md").write_text("mine")
    with pytest.raises(UsageError, match=r"not a run.*thesis\.md"), begun_run(tmp_path, RECORD, resume=resume):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.md"]


@pytest.mark.parametrize("resume", [False, True])
def test_of_two_begun_at_once_the_second_writes_nothing(tmp_path, resume):
    """The first has not written its record yet, so that only the lock can tell."""
    with files.locked(tmp_path / LOCK, sign=True):
        with (
            pytest.raises(ResourceError, match=r"another process \(pid \d+\)"),
            begun_run(tmp_path, RECORD, resume=resume),
        ):
            pass
        assert [path.name for path in tmp_path.iterdir()] == [LOCK]
    with begun_run(tmp_path, RECORD, resume=resume) as run:
        assert run.record == RECORD


def test_a_file_in_the_way_is_named(tmp_path):
    (tmp_path / "one").write_text("mine")
    with pytest.raises(ResourceError, match="one: not a directory"):
        create_run(tmp_path / "one", RECORD)


def test_an_empty_folder_and_what_a_kill_has_left_become_a_run(tmp_path):
    (tmp_path / ".new-12345678").write_text("half of a con")
    assert create_run(tmp_path, RECORD).record == RECORD


def test_a_run_that_is_not_there_names_those_beside_it(tmp_path):
    create_run(tmp_path / "etth1", RECORD)
    create_run(tmp_path / "exchange", RECORD)
    with pytest.raises(RunNotFoundError, match="does not exist; did you mean 'etth1'") as caught:
        open_run(tmp_path / "eth1")
    assert "etth1, exchange" in caught.value.hint
    (tmp_path / "etth1" / "checkpoints").mkdir()
    with pytest.raises(RunNotFoundError, match="holds no run") as caught:
        open_run(tmp_path / "etth1" / "checkpoints")
    assert "cli train" in caught.value.hint


@pytest.mark.parametrize("name", ["config.json", "metrics.json"])
def test_a_damaged_record_is_refused(tmp_path, name):
    run = create_run(tmp_path, RECORD)
    train_toy(run.path, identity=run.record.identity, max_steps=1)
    finish_run(run, {"epochs": 1})
    content = (tmp_path / name).read_bytes()
    for place in range(0, len(content), 7):
        flipped = bytearray(content)
        flipped[place] ^= 2
        (tmp_path / name).write_bytes(flipped)
        with pytest.raises((RunDamagedError, RunIncompatibleError), match=name):
            open_run(tmp_path)


def test_records_of_other_programs(tmp_path):
    create_run(tmp_path, RECORD)
    path = tmp_path / "config.json"
    document = json.loads(path.read_text())
    plain = {name: value for name, value in document.items() if name not in ("format", "sha256")}
    path.write_text(json.dumps({**document, "format": FORMAT + 1}))
    with pytest.raises(RunIncompatibleError, match=f"format {FORMAT + 1}"):
        open_run(tmp_path)
    path.write_bytes(seal({**plain, "settings": {**SETTINGS, "warp": 9}}))
    with pytest.raises(RunIncompatibleError, match="no setting 'warp'"):
        open_run(tmp_path)
    path.write_bytes(seal({**plain, "more": 1}))
    with pytest.raises(RunDamagedError, match="more"):
        open_run(tmp_path)


def test_a_run_that_fails_before_anything_is_trained_is_not_in_the_way(tmp_path):
    out = tmp_path / "run"
    with pytest.raises(DataError), begun_run(out, RECORD):
        raise DataError("no window to fit on")
    with begun_run(out, RECORD) as run:
        (out / "metrics.jsonl").write_text("")
    with pytest.raises(DataError), begun_run(out, RECORD, resume=True):
        raise DataError("no disk")
    assert open_run(out).record == run.record
    with pytest.raises(KeyboardInterrupt), begun_run(tmp_path / "other", RECORD):
        raise KeyboardInterrupt  # it is told how to go on
    assert open_run(tmp_path / "other").record == run.record


def test_a_run_of_before_the_networks_were_parts_is_what_it_was(tmp_path):
    """Its settings name rates that are gone, and lack those that came; in closed form neither has a say."""
    before = Config.from_dict({"lookback": 96, "horizon": 24}).to_dict()
    for name in ("gram_form", "d_repr", "lambda_dir", "lambda_mag", "lambda_hcl"):
        del before[name]
    rates = {"head_learning_rate": 2e-5, "gate_learning_rate": 0.03}
    create_run(tmp_path / "run", dataclasses.replace(RECORD, settings=before | rates, backbone=None))
    opened = open_run(tmp_path / "run").record
    assert opened.settings == before
    assert not opened.config.model.use_network
