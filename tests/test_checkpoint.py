"""Checkpoints, weights and sealed documents: written whole, refused when a byte differs, never deleted too early."""

from __future__ import annotations

import dataclasses
import json
import os
import random

import numpy as np
import pytest
import torch
from toy_training import ToyModel, train_toy, weights_of

from forecaster.errors import RunDamagedError, RunIncompatibleError, RunNotFoundError
from forecaster.runs import weights
from forecaster.runs.records import FORMAT, first_difference, pack, seal, sha256_of, unpack, unseal
from forecaster.runs.weights import WeightsRecord, load_into, publish_weights, read_weights
from forecaster.training import checkpoint as checkpoints
from forecaster.training import rng
from forecaster.training.checkpoint import (
    Checkpoint,
    TrainerState,
    checkpoints_in,
    clear_leftovers,
    load_checkpoint,
    load_latest,
    prune,
    save_checkpoint,
)
from forecaster.training.metrics_log import MetricsLog
from forecaster.training.optimizer import make_optimizer, optimizer_state, restore_optimizer
from memory_index import files
from memory_index.errors import ResourceError

CPU = torch.device("cpu")


def checkpoint_at(step: int, *, best_step: int = 0, scored: bool = True) -> Checkpoint:
    return Checkpoint(
        state=TrainerState(
            step=step, best_step=best_step, best_val_mse=0.1 + 0.2, scored=scored, sums=(1.5, 0.1, 1 / 3, 0.0)
        ),
        model={"weight": torch.arange(6.0).view(2, 3), "count": torch.tensor(3)},
        optimizer={"weight/exp_avg": torch.ones(2, 3) / 3, "weight/step": torch.tensor(4.0)},
        groups=[{"lr": 1e-3, "betas": [0.9, 0.999], "foreach": None, "params": ["weight"]}],
        scheduler={"planned_steps": 10},
        rng=[rng.capture(CPU)],
        identity={"index": {"fingerprint": "f"}},
    )


def names(run) -> list[str]:
    return [path.name for path in checkpoints_in(run)]


# Writing and reading


def test_what_is_read_is_what_was_written(tmp_path):
    written = checkpoint_at(500)
    path = save_checkpoint(tmp_path, written)
    found = load_checkpoint(path)
    assert path.name == "step-00000500"
    assert sorted(each.name for each in path.iterdir()) == [
        "model.safetensors",
        "optimizer.safetensors",
        "trainer.json",
    ]
    for field in dataclasses.fields(Checkpoint):
        ours, theirs = getattr(written, field.name), getattr(found, field.name)
        if field.name in ("model", "optimizer"):
            assert ours.keys() == theirs.keys()
            assert all(torch.equal(ours[name], theirs[name]) for name in ours)
        else:
            assert ours == theirs, field.name


def test_a_real_checkpoint_says_all_that_it_must(tmp_path):
    train_toy(tmp_path, max_steps=5)
    document = json.loads((tmp_path / "checkpoints" / "step-00000005" / "trainer.json").read_text())
    assert {"step", "epoch", "position", "best_score", "best_val_mse", "epochs_without_better"} <= set(
        document["state"]
    )
    assert set(document["rng"][0]) == {"python", "numpy", "torch"}
    assert document["scheduler"]["planned_steps"] == 5
    assert document["scaler"] is None
    assert document["identity"]["index"]["fingerprint"] == "f" * 64
    assert set(document["files"]) == {"model.safetensors", "optimizer.safetensors"}
    assert document["state"]["best_score"] == -document["state"]["best_val_mse"]


def test_the_same_checkpoint_is_not_written_again(tmp_path):
    path = save_checkpoint(tmp_path, checkpoint_at(5))
    before = (path / "trainer.json").stat().st_mtime_ns
    assert save_checkpoint(tmp_path, checkpoint_at(5)) == path
    assert (path / "trainer.json").stat().st_mtime_ns == before


def test_a_write_that_fails_leaves_nothing(tmp_path, monkeypatch):
    save_checkpoint(tmp_path, checkpoint_at(1))

    def full(_path, _content):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(files, "write_new", full)
    with pytest.raises(ResourceError, match="no space left") as caught:
        save_checkpoint(tmp_path, checkpoint_at(2))
    assert "--resume" in caught.value.hint
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000001"]


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "trainer.json"])
def test_any_flipped_byte_is_refused_by_name(tmp_path, name):
    path = save_checkpoint(tmp_path, checkpoint_at(5))
    content = bytearray((path / name).read_bytes())
    places = range(len(content)) if len(content) < 400 else random.Random(0).sample(range(len(content)), 200)
    for place in places:
        flipped = bytearray(content)
        flipped[place] ^= 1 << (place % 8)
        (path / name).write_bytes(flipped)
        with pytest.raises((RunDamagedError, RunIncompatibleError), match=name):
            load_checkpoint(path)
    (path / name).write_bytes(content[:-1])
    with pytest.raises(RunDamagedError, match=name):
        load_checkpoint(path)
    (path / name).unlink()
    with pytest.raises(RunDamagedError, match=f"{name} is missing"):
        load_checkpoint(path)


def test_a_damaged_checkpoint_is_never_replaced_in_silence(tmp_path):
    wanted = weights_of(train_toy(tmp_path / "whole")[0])
    train_toy(tmp_path / "run")
    newest, before = reversed(checkpoints_in(tmp_path / "run")[-2:])
    file = newest / "optimizer.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(RunDamagedError, match=r"optimizer\.safetensors is not what was written") as caught:
        train_toy(tmp_path / "run", resume=True)
    assert before.name in caught.value.hint
    newest.rename(tmp_path / newest.name)  # as the hint says
    assert weights_of(train_toy(tmp_path / "run", resume=True)[0]) == wanted


def test_the_only_checkpoint_damaged_has_no_way_back(tmp_path):
    path = save_checkpoint(tmp_path, checkpoint_at(5))
    (path / "trainer.json").write_text("{}")
    with pytest.raises(RunDamagedError) as caught:
        load_latest(tmp_path)
    assert "there is none before it" in caught.value.hint


@pytest.mark.parametrize(
    ("number", "hint"), [(FORMAT + 1, "upgrade the program"), (FORMAT - 1, "train again into another folder")]
)
def test_another_format_says_what_to_do(tmp_path, monkeypatch, number, hint):
    path = tmp_path / "document.json"
    monkeypatch.setattr("forecaster.runs.records.FORMAT", number)
    path.write_bytes(seal({"a": 1}))
    monkeypatch.undo()
    with pytest.raises(RunIncompatibleError, match=f"format {number}") as caught:
        unseal(path)
    assert hint in caught.value.hint


def test_sealed_numbers_are_exact(tmp_path):
    numbers = [0.1 + 0.2, 1e-5, 1 / 3, -0.0, 5e-324, 1e300]
    (tmp_path / "document.json").write_bytes(seal({"numbers": numbers}))
    found = unseal(tmp_path / "document.json")["numbers"]
    assert np.array(found).tobytes() == np.array(numbers).tobytes()
    with pytest.raises(ValueError, match="not JSON compliant"):
        seal({"a": float("nan")})


# Which stay


def test_the_newest_stay_and_the_best_of_each(tmp_path):
    for step, best in ((0, 0), (1, 1), (2, 1), (3, 3), (4, 3), (5, 3), (6, 3)):
        save_checkpoint(tmp_path, checkpoint_at(step, best_step=best))
        prune(tmp_path, 2)
    assert names(tmp_path) == ["step-00000003", "step-00000005", "step-00000006"]


def test_the_best_of_an_older_one_that_stays_stays_too(tmp_path):
    for step, best in ((0, 0), (1, 1), (2, 1), (3, 3)):
        save_checkpoint(tmp_path, checkpoint_at(step, best_step=best))
    prune(tmp_path, 2)
    assert names(tmp_path) == ["step-00000001", "step-00000002", "step-00000003"]


def test_a_run_keeps_so_many(tmp_path):
    _, result = train_toy(tmp_path, save_total_limit=2)
    newest = checkpoints_in(tmp_path)[-2:]
    assert [path.name for path in newest] == ["step-00000020", "step-00000021"]
    best = {f"step-{load_checkpoint(path).state.best_step:08d}" for path in newest}
    assert set(names(tmp_path)) == {path.name for path in newest} | best
    assert f"step-{result.best_step:08d}" in best


def test_nothing_is_deleted_that_no_training_made(tmp_path):
    folder = tmp_path / "checkpoints"
    for step in range(4):
        save_checkpoint(tmp_path, checkpoint_at(step))
    (folder / "mine").mkdir()
    (folder / "notes.txt").write_text("mine")
    (tmp_path / "thesis.md").write_text("mine")
    (folder / ".new-1234abcd").mkdir()
    (folder / ".old-1234abcd").mkdir()
    clear_leftovers(tmp_path)
    prune(tmp_path, 1)
    assert {path.name for path in folder.iterdir()} == {"mine", "notes.txt", "step-00000000", "step-00000003"}
    assert (tmp_path / "thesis.md").exists()


def test_nothing_is_deleted_while_the_newest_is_damaged(tmp_path):
    for step in range(4):
        path = save_checkpoint(tmp_path, checkpoint_at(step))
    (path / "trainer.json").write_text("{}")
    prune(tmp_path, 1)
    assert len(names(tmp_path)) == 4


def test_order_is_by_step_then_by_score(tmp_path):
    for step, scored in ((100000000, True), (7, True), (7, False), (12, True)):
        save_checkpoint(tmp_path, checkpoint_at(step, scored=scored))
    wanted = ["step-00000007-unscored", "step-00000007", "step-00000012", "step-100000000"]
    assert names(tmp_path) == wanted


def test_no_checkpoints(tmp_path):
    assert checkpoints_in(tmp_path / "nowhere") == []
    assert load_latest(tmp_path) is None


# The best weights


@pytest.mark.parametrize("kill_at", range(1, 4))
def test_weights_and_their_record_are_never_mixed(tmp_path, monkeypatch, kill_at):
    old, new = {"w": torch.zeros(3)}, {"w": torch.ones(3)}
    publish_weights(tmp_path, old, step=1, val_mse=0.5)
    writes = []

    def replace(path, content):
        writes.append(path)
        if len(writes) == kill_at:
            raise KeyboardInterrupt
        write(path, content)

    write = files.replace
    monkeypatch.setattr(weights.files, "replace", replace)
    with pytest.raises(KeyboardInterrupt):
        publish_weights(tmp_path, new, step=2, val_mse=0.25)
    monkeypatch.undo()
    tensors, record = read_weights(tmp_path)
    assert (tensors["w"][0].item(), record.step, record.val_mse) in ((0, 1, 0.5), (1, 2, 0.25))
    publish_weights(tmp_path, new, step=2, val_mse=0.25)
    assert read_weights(tmp_path)[1] == WeightsRecord(sha256=sha256_of(pack(new)), step=2, val_mse=0.25)


@pytest.mark.parametrize("name", ["model.safetensors", "model.json"])
def test_damaged_weights_are_refused(tmp_path, name):
    publish_weights(tmp_path, {"w": torch.zeros(3)}, step=1, val_mse=0.5)
    content = bytearray((tmp_path / name).read_bytes())
    for place in range(len(content)):
        flipped = bytearray(content)
        flipped[place] ^= 4
        (tmp_path / name).write_bytes(flipped)
        with pytest.raises((RunDamagedError, RunIncompatibleError), match="model"):
            read_weights(tmp_path)


def test_no_weights_yet(tmp_path):
    with pytest.raises(RunNotFoundError, match="no weights yet"):
        read_weights(tmp_path)


def test_lost_weights_come_back_from_the_best_checkpoint(tmp_path):
    wanted = weights_of(train_toy(tmp_path)[0])
    (tmp_path / "model.safetensors").write_bytes(b"not these")
    assert weights_of(train_toy(tmp_path, ToyModel(seed=3), resume=True)[0]) == wanted
    assert {name: value.flatten().tolist() for name, value in read_weights(tmp_path)[0].items()} == wanted


def test_weights_of_a_lost_part_give_way_to_those_of_the_checkpoint(tmp_path):
    wanted = weights_of(train_toy(tmp_path)[0])
    best = read_weights(tmp_path)[1]
    publish_weights(tmp_path, ToyModel(seed=3).state_dict(), step=best.step, val_mse=best.val_mse / 2)
    assert weights_of(train_toy(tmp_path, resume=True)[0]) == wanted
    assert read_weights(tmp_path)[1] == best


def test_weights_of_another_model_are_refused(tmp_path):
    state = ToyModel().state_dict()
    for changed in ({**state, "more": torch.zeros(1)}, {name: state[name] for name in list(state)[1:]}):
        with pytest.raises(RunIncompatibleError, match="of another model"):
            load_into(ToyModel(), changed, where=tmp_path)


def test_tied_and_transposed_weights_are_packed(tmp_path):
    weight = torch.arange(6.0).view(2, 3)
    found = unpack(pack({"one": weight, "same": weight, "turned": weight.T}), tmp_path)
    assert torch.equal(found["one"], weight)
    assert torch.equal(found["same"], weight)
    assert torch.equal(found["turned"], weight.T)
    with pytest.raises(RunDamagedError, match="not a safetensors file"):
        unpack(b"\x00" * 20, tmp_path)


# Parts


def test_generators_go_on_where_they_were():
    random.gauss(0, 1), np.random.normal()  # noqa: NPY002 - half of a pair is kept for the next call
    state = json.loads(json.dumps(rng.capture(CPU)))

    def draw() -> list[float]:
        return [random.gauss(0, 1), random.random(), np.random.normal(), np.random.rand(), torch.randn(1).item()]  # noqa: NPY002

    wanted = draw()
    assert draw() != wanted
    rng.restore(state, CPU)
    assert draw() == wanted


def test_processes_draw_different_numbers():
    with rng.preserved(CPU):
        drawn = []
        for process in (0, 1, 0):
            rng.seed_all(7, process)
            drawn.append(torch.rand(1).item())
    assert drawn[0] == drawn[2] != drawn[1]


def test_the_optimizer_goes_on_where_it_was(tmp_path):
    from toy_training import CONFIG, ToyWindows, toy_loss

    def step(model, optimizer):
        toy_loss(model, ToyWindows(8).batch(np.arange(8)), 0).total.backward()
        optimizer.step()
        optimizer.zero_grad()

    one = ToyModel(dropout=0)
    optimizer = make_optimizer(one, CONFIG)
    step(one, optimizer)
    other = ToyModel(dropout=0)
    load_into(other, {name: value.clone() for name, value in one.state_dict().items()}, where=tmp_path)
    tensors, groups = optimizer_state(one, optimizer)
    again = make_optimizer(other, CONFIG)
    restore_optimizer(
        other, again, {name: value.clone() for name, value in tensors.items()}, json.loads(json.dumps(groups))
    )
    assert "network.0.weight/exp_avg" in tensors
    assert not any(name.startswith("unused") for name in tensors)
    for _ in range(3):
        step(one, optimizer)
        step(other, again)
    assert weights_of(one) == weights_of(other)
    with pytest.raises((KeyError, ValueError)):
        restore_optimizer(torch.nn.Linear(2, 2), make_optimizer(torch.nn.Linear(2, 2), CONFIG), tensors, groups)


def test_the_log_keeps_what_the_checkpoint_counts(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"ste')
    with MetricsLog(tmp_path, 2) as log:
        log.write({"step": 9})
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n{"step": 9}\n'
    with pytest.raises(RunDamagedError, match="3 lines, but the checkpoint was written after 4"):
        MetricsLog(tmp_path, 4)


def test_the_first_difference_has_a_dotted_name():
    one = {"b": {"c": (1, 2), "d": 3}, "a": 1}
    assert first_difference(one, {"a": 1, "b": {"c": [1, 2], "d": 3}}) is None
    assert first_difference(one, {"a": 1, "b": {"c": [1, 2], "d": 4}}) == ("b.d", 3, 4)
    assert first_difference(one, {"b": {"c": [1, 2], "d": 3}}) == ("a", 1, None)
    assert first_difference({"a": None}, {"a": {"b": 1}}) is not None
    assert checkpoints.TrainerState(best_val_mse=2.0).best_score == -2.0
