"""Versions of the origins that operation has: what they store, and that training, scores and updates follow them."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from forecaster_fixtures import WITHOUT_NETWORK, K, memory_of, train_small
from memory_fixtures import START, between, poisoned, wide_table

from cli.main import run as command
from forecaster import Forecaster
from forecaster.evaluate import evaluate
from forecaster.forecast import forecast
from forecaster.growth.operation import catch_up
from forecaster.growth.updates import read_growth
from forecaster.predictor import load_predictor
from forecaster.runs.run import open_run
from memory_index import append, memory_only
from memory_index.coverage import coverage
from memory_index.errors import UsageError
from memory_index.inspection import inspect_window
from memory_index.origins import parse_schedule, schedule_of_a_version
from memory_index.splits import split_by_name
from memory_index.versions.opening import open_version
from memory_index.versions.store import Store
from memory_index.windows import Step

BERLIN = Step(frequency="h", time_zone="Europe/Berlin")
NUM_STEPS, START_OF_BERLIN = 24 * 80, np.datetime64("2021-01-31T23:00", "ns")  # midnight there; 28 March has 23 hours
TABLE = wide_table(NUM_STEPS, step=BERLIN, start=START_OF_BERLIN)
SPLIT = split_by_name("60/20/20", TABLE.times)
AT_23 = schedule_of_a_version("24h", "23:00")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("scheduled")


@pytest.fixture(scope="module")
def memory(folder):
    return memory_of(folder, TABLE, split=SPLIT, schedule=AT_23)


@pytest.fixture(scope="module")
def trained(memory, folder):
    return train_small(memory, folder / "run", TABLE, **WITHOUT_NETWORK)


def hours(memory) -> list[str]:
    local = BERLIN.local(np.unique(memory.windows.origin(np.arange(len(memory.windows)))))
    return [f"{each:%H:%M}" for each in local]


def test_only_windows_of_the_schedule_are_stored_and_an_append_goes_on_with_it(memory, tmp_path):
    assert set(hours(memory)) == {"23:00"}
    assert coverage(memory).gaps == ()  # the day of 23 hours is none
    store, half = Store(tmp_path), between(TABLE, 0, 24 * 50 + 2)
    first = memory_of(tmp_path, half, split=split_by_name("100/0/0", half.times), schedule=AT_23)
    appended = open_version(append(store, "m@1", between(TABLE, 0, 24 * 50 + 5)))  # the next window is not over
    assert len(appended.windows) == len(first.windows)
    appended = open_version(append(store, "m@2", TABLE))
    assert set(hours(appended)) == {"23:00"}
    assert appended.manifest.schedule == memory.manifest.schedule == AT_23
    whole = memory_of(tmp_path / "whole", TABLE, split=split_by_name("100/0/0", TABLE.times), schedule=AT_23)
    assert hours(appended) == hours(whole)


def test_training_scores_and_updates_follow_it(memory, trained, folder):
    num_days = len(hours(memory))
    assert trained.num_training_windows == 3 * num_days
    predictor = load_predictor(trained.run, device="cpu")
    for scored in (evaluate(predictor, memory, TABLE), memory_only.evaluate(memory, TABLE)):
        assert scored.num_windows == 15
    every = memory_only.evaluate(memory, TABLE, schedule=parse_schedule("1h", None))
    assert every.num_windows > 20 * scored.num_windows
    grown = open_version(append(Store(folder), "m@1", TABLE))
    _, growth = read_growth(open_run(trained.run.path))
    assert growth.trained.train_stride == 24
    assert catch_up(growth, predictor.model, grown, TABLE.times[-1])
    num_new = len(hours(grown)) - num_days
    assert 3 * (num_new - 7) <= growth.num_windows <= 3 * num_new  # up to the last week that is over


def test_an_origin_beside_it_is_noted(memory, trained):
    predictor = load_predictor(trained.run, device="cpu")
    for at, said in (
        (NUM_STEPS - 1, ""),
        (NUM_STEPS - 5, "is none that the version was built for (every 24h at 23:00)"),
    ):
        table = between(TABLE, 0, at)
        for result in (memory_only.forecast(memory, table), forecast(predictor, memory, table)):
            assert (said in " ".join(result.attrs["notes"])) if said else "built for" not in str(result.attrs["notes"])


def test_a_later_value_changes_nothing(memory):
    at = TABLE.times[24 * 60 - 2]
    before = inspect_window(memory, TABLE, "load", at)
    after = inspect_window(memory, poisoned(TABLE, at, seed=5), "load", at)
    np.testing.assert_array_equal(before.forecast, after.forecast)


def test_what_cannot_be_stored_is_told(tmp_path, capsys):
    for every, at in (("24h", None), ("5h", "23:00"), ("7d", "23:00")):
        with pytest.raises(UsageError, match="windows cannot be stored every"):
            schedule_of_a_version(every, at)
    with pytest.raises(UsageError, match="is every 24h at 23:30: its steps"):
        memory_of(tmp_path, TABLE, split=SPLIT, schedule=schedule_of_a_version("24h", "23:30"))
    file = tmp_path / "t.csv"
    pd.DataFrame({"date": pd.date_range("2024-01-01", periods=200, freq="h"), "load": range(200)}).to_csv(file)
    asked = ["index", "build", str(file), "--name", "x", "--lookback", "36", "--horizon", "8", "--every", "24h"]
    assert command([*asked, "--at", "23:00", "--stride", "2", "--indexes-dir", str(tmp_path)]) == 2
    assert "--stride and --every both say" in capsys.readouterr().err


def test_from_python_and_the_command_line(tmp_path, capsys):
    times = pd.date_range(str(START), periods=24 * 60, freq="h")
    frame = pd.DataFrame({"date": times, "load": wide_table(24 * 60).series[0].values})
    settings = {"memory_k": K, "num_folds": 2, **WITHOUT_NETWORK}
    model = Forecaster(horizon=8, lookback=36, split="60/20/20", every="12h", at="11:00", device="cpu", **settings)
    assert model.fit(frame).evaluate(frame).num_windows == 24
    frame.to_csv(tmp_path / "load.csv", index=False)
    where = ["--indexes-dir", str(tmp_path / "indexes")]
    asked = ["index", "build", str(tmp_path / "load.csv"), "--name", "x", "--lookback", "36", "--horizon", "8"]
    assert command([*asked, "--every", "12h", "--at", "11:00", *where]) == 0
    assert "every 12h at 11:00" in capsys.readouterr().out
    assert command(["evaluate", str(tmp_path / "load.csv"), "--index", "x", *where]) == 0
    assert "every 12h at 11:00" in capsys.readouterr().out
    for hour, is_noted in (("11:00", False), ("12:00", True)):
        asked = [str(tmp_path / "load.csv"), "--series", "load", "--at", f"2021-04-20 {hour}"]
        assert command(["index", "neighbours", "x", *asked, *where]) == 0
        assert ("none that the version was built for" in capsys.readouterr().err) == is_noted
