"""The training loop: resuming changes nothing, splitting the work changes nothing, and what it refuses."""

from __future__ import annotations

import os
import random
import signal
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from killing import PROCESSES, kill_one, run_together
from torch import nn
from toy_training import (
    CONFIG,
    IDENTITY,
    UNTIL_KILLED,
    InterruptAt,
    ToyModel,
    ToyWindows,
    free_port,
    log_of,
    toy_loss,
    train_in_one_of,
    train_toy,
    train_until_killed,
    weights_of,
)

from forecaster.config import TrainConfig
from forecaster.errors import ConfigError, RunIncompatibleError, RunNotFoundError
from forecaster.runs.weights import read_weights
from forecaster.training.checkpoint import checkpoints_in, load_latest
from forecaster.training.devices import resolve_precision
from forecaster.training.interruption import Interruption
from forecaster.training.optimizer import parameter_groups
from forecaster.training.schedule import Schedule, aux_weight, batches_of, epoch_order, share_of
from forecaster.training.training_loop import TrainingProgress
from memory_index.errors import DataError, ResourceError, UsageError

# The second is what an optimizer loads when it is made: seconds, once instead of in every process.
PROCESSES.set_forkserver_preload(["forecaster.training.train", "torch._dynamo"])
STEPS_PER_EPOCH = 7  # 100 windows, 16 at a time


class StopError(Exception):
    """A training that dies where a test wants it to."""


def stop_at(step: int):
    """A report that ends the training, unprepared, after so many steps."""

    def report(progress: TrainingProgress) -> None:
        if progress.step == step:
            raise StopError

    return report


# What it learns


def test_it_learns_and_keeps_the_best_weights(tmp_path):
    seen: list[TrainingProgress] = []
    model, result = train_toy(tmp_path / "run", epochs=5, report=seen.append)
    log = log_of(tmp_path / "run")
    scores = {line["step"]: line["val_mse"] for line in log if "val_mse" in line}
    assert result.stopped == "epochs"
    assert (result.epochs, result.steps) == (5, 5 * STEPS_PER_EPOCH)
    assert result.best_val_mse == min(scores.values()) < 0.7 * scores[0]
    assert scores[result.best_step] == result.best_val_mse
    tensors, record = read_weights(tmp_path / "run")
    assert (record.step, record.val_mse) == (result.best_step, result.best_val_mse)

    assert set(tensors) == set(model.state_dict())
    assert all(torch.equal(tensors[name], value) for name, value in model.state_dict().items())
    assert [progress.step for progress in seen] == list(range(1, 36))
    assert seen[-1].total_steps == 35
    assert seen[-1].eta_s == 0
    assert result.peak_rss_mb > 0


def test_why_it_ended_is_told(tmp_path):
    cut, whole = ({"epochs": 1, "max_steps": STEPS_PER_EPOCH + extra} for extra in (-1, 1))
    assert train_toy(tmp_path / "cut", **cut)[1].stopped == "max_steps"
    assert train_toy(tmp_path / "whole", **whole)[1].stopped == "epochs"


def test_every_window_is_used_once_an_epoch_and_validation_counts_all(tmp_path):
    training, validation = ToyWindows(100), ToyWindows(37, seed=1)
    train_toy(tmp_path / "run", training=training, validation=validation, epochs=2)
    assert sorted(training.asked[:100]) == sorted(training.asked[100:]) == list(range(100))
    assert training.asked[:100] != training.asked[100:]
    assert validation.asked == [*range(37)] * 3


def test_an_untrained_model_that_is_best_stays(tmp_path):
    before = weights_of(ToyModel())
    model, result = train_toy(tmp_path / "run", loss=_loss_that_unlearns, epochs=9, patience=2)
    assert (result.stopped, result.epochs, result.best_step) == ("patience", 2, 0)
    assert weights_of(model) == before


def _loss_that_unlearns(model, batch, aux_weight):
    parts = toy_loss(model, batch, aux_weight)
    return parts._replace(total=-parts.mse)


def test_max_steps_ends_in_the_middle_of_an_epoch(tmp_path):
    _, result = train_toy(tmp_path / "run", max_steps=10)
    assert (result.stopped, result.steps, result.epochs) == ("max_steps", 10, 2)
    assert log_of(tmp_path / "run")[-1]["step"] == 10


def test_seed_decides(tmp_path):
    one, same, other = (
        weights_of(train_toy(tmp_path / name, seed=seed)[0]) for name, seed in zip("abc", (1, 1, 2), strict=True)
    )
    assert one == same != other


def test_the_callers_generators_are_left_alone(tmp_path):
    model = ToyModel()
    before = torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
    train_toy(tmp_path / "run", model, epochs=1)
    assert before == (torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist())  # noqa: NPY002


# Splitting the work


def test_accumulating_two_halves_is_one_batch(tmp_path):
    whole, _ = train_toy(tmp_path / "whole", ToyModel(dropout=0))
    halves, _ = train_toy(tmp_path / "halves", ToyModel(dropout=0), batch_size=8, accumulation=2)
    _assert_close(weights_of(whole), weights_of(halves))
    _assert_close_logs(log_of(tmp_path / "whole"), log_of(tmp_path / "halves"))


@pytest.mark.parametrize("num_windows", [100, 97])  # a last batch of 4 and of 1: then one process has none
def test_two_processes_are_one(tmp_path, num_windows):
    one, result = train_toy(tmp_path / "one", ToyModel(dropout=0), training=ToyWindows(num_windows))
    port, both = free_port(), tmp_path / "both"
    changed = {"training": ToyWindows(num_windows)}
    answers = run_together(train_in_one_of, *((rank, 2, port, both, dict(changed)) for rank in range(2)))
    for answer in answers:
        if isinstance(answer, Exception):
            raise answer
    (weights, found), (others, _) = answers
    assert weights == others
    assert found.best_val_mse == pytest.approx(result.best_val_mse, rel=1e-4)
    _assert_close(weights, weights_of(one))
    _assert_close_logs(log_of(both), log_of(tmp_path / "one"))


def test_two_processes_resume_as_if_never_stopped(tmp_path):
    def run(name: str, **changed) -> list:
        port, folder = free_port(), tmp_path / name
        return run_together(
            train_in_one_of, *((rank, 2, port, folder, {"dropout": 0.3, **changed}) for rank in range(2))
        )

    whole = run("whole")
    assert run("parts", report=InterruptAt(9)) == ["interrupted"] * 2  # only the main process was told
    assert load_latest(tmp_path / "parts").state.step == 9
    parts = run("parts", resume=True)
    assert parts[0][0] == parts[1][0] == whole[0][0]
    assert log_of(tmp_path / "parts") == log_of(tmp_path / "whole")


def test_shares_of_a_batch_are_all_of_it():
    rows = np.arange(10)
    assert [len(part) for part in batches_of(rows, 4)] == [4, 4, 2]
    for num in (1, 3, 16):
        assert np.concatenate([share_of(rows, process, num) for process in range(num)]).tolist() == rows.tolist()


def _assert_close(one, other) -> None:
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_allclose(one[name], other[name], rtol=1e-3, atol=1e-5, err_msg=name)


def _assert_close_logs(one, other) -> None:
    assert [line.keys() for line in one] == [line.keys() for line in other]
    for ours, theirs in zip(one, other, strict=True):
        np.testing.assert_allclose(list(ours.values()), list(theirs.values()), rtol=1e-4, atol=1e-6)


# Going on


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """Weights, result and log of a training with dropout that was never stopped."""
    folder = tmp_path_factory.mktemp("unbroken") / "run"
    model, result = train_toy(folder)
    return weights_of(model), result, log_of(folder)


def _same(unbroken, folder: Path, model: nn.Module, result) -> None:
    weights, wanted, log = unbroken
    assert weights_of(model) == weights
    assert log_of(folder) == log
    assert (result.epochs, result.steps, result.best_step, result.best_val_mse) == (
        wanted.epochs,
        wanted.steps,
        wanted.best_step,
        wanted.best_val_mse,
    )


@pytest.mark.parametrize("step", [1, 4, 6, 7, 8, 10, 14, 20, 21])
def test_dying_at_any_step_and_going_on_is_bitwise_the_same(tmp_path, unbroken, step):
    folder = tmp_path / "run"
    with pytest.raises(StopError):
        train_toy(folder, report=stop_at(step))
    assert load_latest(folder).state.step == max(
        mark for mark in (0, 4, 7, 8, 12, 14, 16, 20) if mark <= step - 1 or mark == 0
    )
    model, result = train_toy(folder, ToyModel(seed=9), resume=True)  # its own first weights do not matter
    _same(unbroken, folder, model, result)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("step", [3, 7, 18])
def test_an_interruption_loses_nothing(tmp_path, unbroken, step, number):
    folder, before = tmp_path / "run", signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt):
        train_toy(folder, report=InterruptAt(step, number))
    assert signal.getsignal(number) is before
    assert load_latest(folder).state.step == step
    model, result = train_toy(folder, resume=True)
    _same(unbroken, folder, model, result)


def test_an_interruption_while_validating_loses_nothing(tmp_path, unbroken):
    class Validation(ToyWindows):
        def batch(self, indices):
            if len(self.asked) == 37 + 16:  # the second batch of the first epoch's validation
                os.kill(os.getpid(), signal.SIGINT)
            return super().batch(indices)

    folder = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        train_toy(folder, validation=Validation(37, seed=1))
    assert checkpoints_in(folder)[-1].name == "step-00000007-unscored"
    model, result = train_toy(folder, resume=True)
    _same(unbroken, folder, model, result)


def test_a_second_interruption_does_not_wait():
    reached = []

    def press_twice():
        with Interruption() as interruption:
            os.kill(os.getpid(), signal.SIGINT)
            reached.append(interruption.requested)
            os.kill(os.getpid(), signal.SIGINT)
            reached.append("the end")

    with pytest.raises(KeyboardInterrupt):
        press_twice()
    assert reached == [True]


def test_an_interruption_that_comes_too_late_is_not_forgotten(tmp_path, unbroken):
    class Validation(ToyWindows):
        def batch(self, indices):
            if len(self.asked) == 3 * 37 + 32:  # the last batch of the last validation
                os.kill(os.getpid(), signal.SIGINT)
            return super().batch(indices)

    folder = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        train_toy(folder, validation=Validation(37, seed=1))
    assert checkpoints_in(folder)[-1].name == "step-00000021"
    model, result = train_toy(folder, resume=True)
    _same(unbroken, folder, model, result)


def test_it_trains_outside_the_main_thread(tmp_path, unbroken):
    found = []
    thread = threading.Thread(target=lambda: found.append(train_toy(tmp_path / "run")))
    thread.start()
    thread.join()
    _same(unbroken, tmp_path / "run", *found[0])


def test_what_has_ended_is_not_trained_further(tmp_path, unbroken):
    train_toy(tmp_path / "run")
    training = ToyWindows(100)
    model, result = train_toy(tmp_path / "run", ToyModel(seed=9), training=training, resume=True)
    _same(unbroken, tmp_path / "run", model, result)
    assert training.asked == []


def test_a_moved_run_goes_on(tmp_path, unbroken):
    with pytest.raises(StopError):
        train_toy(tmp_path / "run", report=stop_at(10))
    (tmp_path / "run").rename(tmp_path / "moved")
    _same(unbroken, tmp_path / "moved", *train_toy(tmp_path / "moved", resume=True))


def kill_trainings(tmp_path: Path, *, num_kills: int, seed: int) -> None:
    chance, folder, log = random.Random(seed), tmp_path / "run", tmp_path / "log"
    steps = []
    for _ in range(num_kills):
        kill_one(folder, log, chance, work=train_until_killed, within_s=0.35)
        newest = load_latest(folder)
        steps.append(0 if newest is None else newest.state.step)
        if steps[-1]:
            read_weights(folder)
    assert steps == sorted(steps), "a kill lost a checkpoint"
    assert len(set(steps)) > 2, "hardly any kill hit the training: the test proves nothing"
    whole, result = train_toy(tmp_path / "whole", **UNTIL_KILLED)
    model, found = train_toy(folder, resume=True, **UNTIL_KILLED)
    assert weights_of(model) == weights_of(whole)
    assert log_of(folder) == log_of(tmp_path / "whole")
    assert found.best_step == result.best_step
    assert list(folder.rglob(".*")) == []


def test_a_kill_at_any_moment_loses_at_most_what_came_after_the_last_checkpoint(tmp_path):
    kill_trainings(tmp_path, num_kills=5, seed=1)


@pytest.mark.soak
def test_sixty_kills_of_trainings_lose_nothing(tmp_path):
    for seed in range(6):
        (tmp_path / str(seed)).mkdir()
        kill_trainings(tmp_path / str(seed), num_kills=10, seed=seed)


# What it refuses


def test_a_training_is_not_overwritten(tmp_path):
    train_toy(tmp_path / "run", epochs=1)
    with pytest.raises(UsageError, match="holds a training already") as caught:
        train_toy(tmp_path / "run", epochs=1)
    assert "--resume" in caught.value.hint


def test_weights_without_a_checkpoint_are_not_overwritten(tmp_path):
    train_toy(tmp_path / "run", epochs=1)
    (tmp_path / "run" / "checkpoints").rename(tmp_path / "elsewhere")
    with pytest.raises(RunNotFoundError, match="no checkpoint"):
        train_toy(tmp_path / "run", epochs=1, resume=True)


@pytest.mark.parametrize(
    ("changed", "name"),
    [
        ({"identity": {**IDENTITY, "index": {"fingerprint": "e" * 64}}}, "another version of the index"),
        ({"identity": {"index": IDENTITY["index"]}}, "lookback 12, not None"),
        ({"learning_rate": 0.5}, "learning_rate 0.01, not 0.5"),
        ({"seed": 3}, "seed 0, not 3"),
    ],
)
def test_a_training_of_something_else_does_not_go_on(tmp_path, changed, name):
    train_toy(tmp_path / "run", max_steps=2)
    with pytest.raises(RunIncompatibleError, match=name):
        train_toy(tmp_path / "run", **{"max_steps": 2, **changed}, resume=True)


def test_how_often_to_save_may_change(tmp_path, unbroken):
    with pytest.raises(StopError):
        train_toy(tmp_path / "run", report=stop_at(10))
    found = train_toy(tmp_path / "run", resume=True, save_steps=3, save_total_limit=1)
    _same(unbroken, tmp_path / "run", *found)


def test_a_model_of_other_shape_does_not_go_on(tmp_path):
    train_toy(tmp_path / "run", max_steps=2)
    other = ToyModel()
    other.network[3] = nn.Linear(16, 5)
    with pytest.raises(RunIncompatibleError, match=r"network\.3\.bias"):
        train_toy(tmp_path / "run", other, max_steps=2, resume=True)


def test_a_loss_that_is_not_finite_names_step_and_rate(tmp_path):
    with pytest.raises(ConfigError, match=r"nan.* step 3, at learning_rate 0\.0") as caught:
        train_toy(tmp_path / "run", loss=_loss_that_breaks(after=3))
    assert "learning_rate" in caught.value.hint
    assert load_latest(tmp_path / "run").state.step == 0


def _loss_that_breaks(after: int):
    calls = []

    def loss(model, batch, aux_weight):
        parts = toy_loss(model, batch, aux_weight)
        calls.extend([1] if model.training else [])
        return parts._replace(total=parts.total * float("nan")) if len(calls) >= after else parts

    return loss


def test_a_gradient_that_is_not_finite_is_refused(tmp_path):
    def loss(model, batch, aux_weight):
        parts = toy_loss(model, batch, aux_weight)
        return parts._replace(total=parts.total + (parts.mse - parts.mse).sqrt())

    with pytest.raises(ConfigError, match="gradient nan in step 1"):
        train_toy(tmp_path / "run", loss=loss)


def test_a_validation_that_is_not_finite_is_refused(tmp_path):
    validation = ToyWindows(37)
    validation.values[3, 0] = np.nan
    with pytest.raises(ConfigError, match="validation MSE before training is nan"):
        train_toy(tmp_path / "run", validation=validation)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory."),
        RuntimeError("[enforce fail at alloc_cpu.cpp:118] . DefaultCPUAllocator: can't allocate memory: you tried"),
    ],
)
def test_out_of_memory_names_what_to_lower(tmp_path, error):
    def loss(*_arguments):
        raise error

    with pytest.raises(ResourceError, match="out of memory with batch_size 16") as caught:
        train_toy(tmp_path / "run", loss=loss)
    assert all(name in caught.value.hint for name in ("batch_size", "lookback", "llm_layers"))


def test_another_runtime_error_passes(tmp_path):
    def loss(*_arguments):
        raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes differ"):
        train_toy(tmp_path / "run", loss=loss)


def test_a_real_allocation_that_fails_is_named(tmp_path):
    def loss(*_arguments):
        return torch.empty(1 << 60)

    with pytest.raises(ResourceError, match="out of memory"):
        train_toy(tmp_path / "run", loss=loss)


@pytest.mark.parametrize("name", ["training", "validation"])
def test_no_windows_is_an_error(tmp_path, name):
    with pytest.raises(DataError, match=f"no {name} windows"):
        train_toy(tmp_path / "run", **{name: ToyWindows(0)})


def test_a_device_that_is_not_there(tmp_path):
    with pytest.raises(ConfigError, match="unknown device 'gpu'"):
        train_toy(tmp_path / "run", device="gpu")
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="no CUDA"):
            train_toy(tmp_path / "run", device="cuda")


def test_an_environment_variable_changes_nothing(tmp_path, unbroken, monkeypatch):
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    _same(unbroken, tmp_path / "run", *train_toy(tmp_path / "run"))


# Precision, groups, schedule


def test_bf16_trains_beside_float32(tmp_path):
    _, low = train_toy(tmp_path / "low", precision="bf16")
    _, high = train_toy(tmp_path / "high")
    assert low.best_val_mse != high.best_val_mse
    assert low.best_val_mse == pytest.approx(high.best_val_mse, rel=0.1)


def test_auto_precision_of_a_narrow_model_on_a_cpu_is_float32():
    assert resolve_precision("auto", "cpu", llm_width=64) == "float32"
    assert resolve_precision("bf16", "cpu", llm_width=0) == "bf16"


def test_groups_are_all_trainable_parameters_once():
    model = ToyModel()
    groups = {group["name"]: group for group in parameter_groups(model, CONFIG)}
    found = [parameter for group in groups.values() for parameter in group["params"]]
    assert len(found) == len({id(parameter) for parameter in found})
    assert {id(each) for each in found} == {id(each) for each in model.parameters() if each.requires_grad}
    assert groups["plain"]["weight_decay"] == 0
    assert groups["decayed"]["weight_decay"] == CONFIG.weight_decay
    assert all(parameter.ndim == 1 for parameter in groups["plain"]["params"])
    assert [group["name"] for group in parameter_groups(nn.Linear(2, 2), CONFIG)] == ["decayed", "plain"]


def test_the_schedule_rises_then_falls():
    plan = Schedule.of(TrainConfig(epochs=10, batch_size=4, accumulation=2), 81)
    assert (plan.steps_per_epoch, plan.planned_steps, plan.warmup_steps) == (11, 110, 6)
    factors = [plan.learning_rate_factor(step) for step in range(110)]
    assert factors[:6] == pytest.approx([1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6, 1])
    assert factors[6] == 1
    assert factors[6:] == sorted(factors[6:], reverse=True)
    assert factors[-1] == pytest.approx(0.01)
    assert Schedule.of(TrainConfig(max_steps=1), 10).learning_rate_factor(0) == 1


def test_auxiliary_losses_warm_up():
    config = TrainConfig(aux_warmup_steps=500)
    assert [aux_weight(config, step) for step in (0, 250, 500, 900)] == [0, 0.5, 1, 1]
    assert aux_weight(TrainConfig(aux_warmup_steps=0), 0) == 1


def test_the_order_of_an_epoch_is_a_function_of_seed_and_epoch():
    orders = [epoch_order(seed, epoch, 50).tolist() for seed, epoch in ((1, 0), (1, 0), (1, 1), (2, 0))]
    assert orders[0] == orders[1]
    assert len({tuple(order) for order in orders}) == 3
    assert sorted(orders[0]) == list(range(50))
