"""`cli forecast --update`, `cli run`, `--state`: a run goes on, is listed, and goes back."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from cli_fixtures import HORIZON, LOOKBACK, NUM_NEWER, NUM_STEPS, frame

from cli.main import run

CLOSED = ("--set", "memory_k=5", "--set", "num_folds=2", "--device", "cpu")


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """load.csv, newer.csv, an index and a run without a network; no test may change it."""
    folder = tmp_path_factory.mktemp("growth")
    frame().to_csv(folder / "load.csv", index=False)
    frame(NUM_STEPS + NUM_NEWER).to_csv(folder / "newer.csv", index=False)
    window = ["--lookback", LOOKBACK, "--horizon", HORIZON, "--indexes-dir", folder / "indexes"]
    assert run([*map(str, ["index", "build", folder / "load.csv", "--name", "m", *window])]) == 0
    train = ["train", folder / "load.csv", "--index", "m", "--out", folder / "run", *CLOSED]
    assert run([*map(str, [*train, "--indexes-dir", folder / "indexes"])]) == 0
    return folder


@pytest.fixture
def place(made, tmp_path) -> Path:
    """A copy that may be changed."""
    return Path(shutil.copytree(made, tmp_path / "place"))


@pytest.fixture
def call(capfd):
    def run_command(folder: Path, *arguments: object):
        capfd.readouterr()
        needs_index = arguments[0] not in ("run",)
        where = ["--indexes-dir", folder / "indexes"] if needs_index else []
        code = run([*map(str, [*arguments, *where])])
        return code, *capfd.readouterr()

    return run_command


def document(result: tuple[int, str, str]) -> dict:
    assert result[0] == 0, result[2]
    return json.loads(result[1])


def test_a_forecast_with_an_update_makes_a_state_that_is_used_from_then_on(call, place):
    forecast = ("forecast", place / "newer.csv", "--run", place / "run", "--json")
    before = document(call(place, *forecast, "--update-index"))
    code, out, told = call(place, *forecast, "--update")
    assert code == 0
    assert "new state 1" in told
    assert "state 1, which has learned up to 2024-01-2" in told
    updated = json.loads(out)
    assert [row["yhat"] for row in updated["forecast"]] != [row["yhat"] for row in before["forecast"]]
    again = document(call(place, *forecast, "--index", "m"))
    assert again["forecast"] == updated["forecast"]
    trained = document(call(place, *forecast, "--index", "m", "--state", "0"))
    assert trained["forecast"] == before["forecast"]
    assert "stays as it is" in call(place, *forecast, "--update")[2]
    shown = document(call(place, "run", "show", place / "run", "--json"))
    assert (shown["state"], shown["can_update"], [each["number"] for each in shown["states"]]) == (1, True, [0, 1])
    assert shown["states"][1]["num_windows"] > 0
    assert "used" in call(place, "run", "show", place / "run")[1]


def test_a_run_goes_back_to_an_earlier_state(call, place):
    forecast = ("forecast", place / "newer.csv", "--run", place / "run", "--index", "m@1", "--json")
    trained = document(call(place, *forecast))
    document(call(place, *forecast[:4], "--update", "--half-life", "200", "--json"))
    assert document(call(place, *forecast))["forecast"] != trained["forecast"]
    assert document(call(place, "run", "use", place / "run", "0", "--json"))["state"] == 0
    assert document(call(place, *forecast))["forecast"] == trained["forecast"]
    states = document(call(place, "run", "show", place / "run", "--json"))["states"]
    assert [each["half_life"] for each in states] == [None, 200.0]


def test_an_evaluation_of_a_state_that_has_seen_the_part_is_in_sample(call, place):
    evaluate = ("evaluate", place / "load.csv", "--run", place / "run", "--json")
    assert not document(call(place, *evaluate))["in_sample"]
    document(call(place, "forecast", place / "load.csv", "--run", place / "run", "--update", "--json"))
    assert document(call(place, *evaluate))["in_sample"]
    assert not document(call(place, *evaluate, "--state", "0"))["in_sample"]


def test_a_backtest_begins_with_the_run_as_trained_and_leaves_it(call, place, tmp_path):
    how = ("backtest", place / "load.csv", "--run", place / "run", "--every", "6h", "--update", "daily", "--json")
    grown = document(call(place, *how, "--out", tmp_path / "rows.parquet"))
    document(call(place, "forecast", place / "newer.csv", "--run", place / "run", "--update", "--json"))
    assert document(call(place, *how))["mse"] == grown["mse"]
    assert document(call(place, *how, "--half-life", "3d"))["mse"] != grown["mse"]
    still = document(call(place, *how[:-3], "--update", "never", "--json"))
    assert still["baselines"]["linear"]["mse"] != grown["baselines"]["linear"]["mse"]
    code, _, told = call(place, *how[:-1], "--state", "1")
    assert code == 6
    assert "everything earlier was there when it was fitted" in told
    assert {*pd.read_parquet(tmp_path / "rows.parquet").columns} >= {"cutoff", "yhat"}


def test_origins_before_the_validation_end_are_refused_unless_every_row_is_marked(call, place, tmp_path):
    end = frame()["date"].iloc[int(0.8 * NUM_STEPS) - 1]
    how = ("backtest", place / "load.csv", "--run", place / "run", "--every", "6h", "--out", tmp_path / "rows.csv")
    assert call(place, *how, "--from", end - pd.Timedelta(hours=1))[0] == 6
    assert call(place, *how, "--from", end - pd.Timedelta(hours=60), "--in-sample")[0] == 0
    assert pd.read_csv(tmp_path / "rows.csv")["in_sample"].all()


@pytest.mark.parametrize("at", [430, 455])
def test_rows_of_a_growing_backtest_do_not_see_what_follows_their_cutoff(call, place, tmp_path, at):
    table, rows = frame(), []
    table.loc[at + 1 :, ["north", "south"]] = np.random.default_rng(at).normal(size=(len(table) - at - 1, 2)) * 1e5
    table.to_csv(place / "poisoned.csv", index=False)
    for name in ("load", "poisoned"):
        out = tmp_path / f"{name}.parquet"
        how = ("--run", place / "run", "--every", "6h", "--update", "12h", "--out", out)
        assert call(place, "backtest", place / f"{name}.csv", *how)[0] == 0
        found = pd.read_parquet(out)
        rows.append(found[found["cutoff"] <= table["date"].iloc[at]].drop(columns="y"))
    assert len(rows[0])
    pd.testing.assert_frame_equal(*rows)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("forecast", "load.csv", "--index", "m", "--update"), 2, "--update goes with --run"),
        (("forecast", "load.csv", "--run", "run", "--half-life", "26w"), 2, "--half-life goes with --update"),
        (("forecast", "load.csv", "--run", "run", "--update", "--state", "0"), 2, "--update goes on from"),
        (("forecast", "load.csv", "--run", "run", "--update", "--half-life", "often"), 2, "--half-life often"),
        (("forecast", "load.csv", "--run", "run", "--state", "9"), 4, "no state 9"),
        (("evaluate", "load.csv", "--index", "m", "--state", "0"), 2, "--state goes with --run"),
        (("backtest", "load.csv", "--index", "m", "--half-life", "1w"), 2, "--half-life goes with --run"),
        (("run", "use", "run", "4"), 4, "no state 4"),
        (("run", "show", "nowhere"), 4, "does not exist"),
    ],
)
def test_mistakes_are_one_line(call, made, arguments, code, message):
    names = {"load.csv", "run", "nowhere"}
    first, *rest = arguments
    found = call(made, first, *(made / each if each in names else each for each in rest))
    assert found[0] == code, found[2]
    assert message in found[2]
    assert found[2].count("error:") == 1
