"""`cli backtest`: its table, document and picture, going on after Ctrl-C, and one line for each mistake."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from cli_fixtures import HORIZON, frame, make

from cli.main import run
from memory_index.backtest import kept

EVERY = ("--every", "6h", "--update", "daily", "--quantiles", "0.1,0.5,0.9")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return make(tmp_path_factory.getbasetemp())


@pytest.fixture(params=["run", "memory"])
def of(request, made) -> list[object]:
    """The run, or the memory alone."""
    return ["--run", made.run, "--device", "cpu"] if request.param == "run" else ["--index", "m@1"]


@pytest.fixture
def call(made, capfd):
    """Backtest with these arguments: (exit code, stdout, stderr)."""

    def run_command(*arguments: object, file: Path = made.file):
        capfd.readouterr()
        code = run(["backtest", *map(str, [file, *arguments]), "--indexes-dir", str(made.indexes)])
        return code, *capfd.readouterr()

    return run_command


def document(result: tuple[int, str, str]) -> dict:
    assert result[0] == 0, result[2]
    return json.loads(result[1])


def test_the_table_holds_every_forecast_and_its_scores_are_those_that_are_told(call, of, tmp_path):
    out = tmp_path / "rows.parquet"
    told = document(call(*of, *EVERY, "--out", out, "--json"))
    table = pd.read_parquet(out)
    assert list(table.columns) == ["unique_id", "cutoff", "ds", "y", "yhat", "q0.1", "q0.5", "q0.9"]
    assert told["schema"] == "backtest"
    assert len(table) == told["num_scored"] * HORIZON > 0
    came = frame().melt(id_vars="date", var_name="unique_id", value_name="value").rename(columns={"date": "ds"})
    joined = table.merge(came, on=["unique_id", "ds"])
    np.testing.assert_array_equal(joined["y"], joined["value"])
    training = frame().drop(columns="date").head(int(0.7 * len(frame()))).std(ddof=0)
    error = (table["yhat"].astype(float) - table["y"]) / table["unique_id"].map(training)
    assert told["mse"] == pytest.approx(np.square(error).mean())
    assert told["coverage"]["q0.9"] == pytest.approx((table["y"] <= table["q0.9"]).mean())
    assert (table["q0.1"] <= table["q0.9"]).all()
    cutoffs = table["cutoff"].drop_duplicates().sort_values()
    assert told["first_origin"] == cutoffs.iloc[0].isoformat()
    assert told["last_origin"] == cutoffs.iloc[-1].isoformat()
    assert set(cutoffs.diff().dropna()) == {pd.Timedelta(hours=6)}
    assert told["num_updates"] == (cutoffs.iloc[-1] - cutoffs.iloc[0]) // pd.Timedelta(days=1)
    assert sum(each["num_windows"] for each in told["along_time"]) == told["num_scored"]
    beside = {"linear", "memory_only", "seasonal_naive", "last_value"}
    assert {name for name, scores in told["baselines"].items() if scores} == beside
    assert not [*tmp_path.glob(".rows*")]


@pytest.mark.parametrize("at", [430, 455])
def test_rows_do_not_see_what_follows_their_cutoff(call, of, tmp_path, at):
    table, poisoned = frame(), tmp_path / "poisoned.csv"
    table.loc[at + 1 :, ["north", "south"]] = np.random.default_rng(at).normal(size=(len(table) - at - 1, 2)) * 1e5
    table.to_csv(poisoned, index=False)
    clean, dirty = tmp_path / "clean.parquet", tmp_path / "dirty.parquet"
    assert call(*of, *EVERY, "--out", clean)[0] == call(*of, *EVERY, "--out", dirty, file=poisoned)[0] == 0
    before, after = (
        rows[rows["cutoff"] <= table["date"][at]].drop(columns="y") for rows in map(pd.read_parquet, (clean, dirty))
    )
    assert len(before)
    pd.testing.assert_frame_equal(before, after)
    assert not pd.read_parquet(clean)["yhat"].equals(pd.read_parquet(dirty)["yhat"])


def test_a_day_apart_by_default_with_updates_each_week(call, tmp_path):
    told = document(call("--index", "m@1", "--json"))
    assert (told["schedule"], told["update"]) == ("every 24h", "weekly")
    assert len(told["scores"]["memory_only"]) > len(told["coverage"]) == 9
    monthly = tmp_path / "monthly.csv"
    months = pd.date_range("2000-01-01", periods=140, freq="MS")
    values = np.sin(np.arange(140) * np.pi / 6) + np.random.default_rng(0).normal(size=140) / 9
    pd.DataFrame({"date": months, "y": values}).to_csv(monthly, index=False)
    where = ["--indexes-dir", str(tmp_path / "i")]
    window = ["--lookback", "24", "--horizon", "3", "--views", "12,24"]
    assert run(["index", "build", str(monthly), "--name", "y", *window, *where]) == 0
    assert run(["backtest", str(monthly), "--index", "y", "--out", str(tmp_path / "y.csv"), *where]) == 0
    cutoffs = pd.read_csv(tmp_path / "y.csv", parse_dates=["cutoff"])["cutoff"].drop_duplicates()
    assert [*cutoffs] == [*months[97:137]]  # every month from the last of the training part on


def test_after_ctrl_c_the_same_command_goes_on(call, of, tmp_path, monkeypatch):
    whole, stopped = tmp_path / "whole.parquet", tmp_path / "stopped.parquet"
    assert call(*of, *EVERY, "--out", whole)[0] == 0
    add, monkey = kept.KeptForecasts.add, {"left": 2}

    def add_and_stop(self: kept.KeptForecasts, *arguments: object) -> None:
        monkey["left"] -= 1
        if not monkey["left"]:
            raise KeyboardInterrupt
        add(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr("memory_index.backtest.plan.MOMENTS", 4)
        patch.setattr(kept.KeptForecasts, "add", add_and_stop)
        code, _, err = call(*of, *EVERY, "--out", stopped)
        assert code == 130
        assert "goes on from the forecasts that are kept" in err
        assert not stopped.exists()
        monkey["left"] = 99
        other = call(*of, "--every", "12h", "--out", stopped)
        assert other[0] == 6
        assert "beginning of another backtest" in other[2]
        told = document(call(*of, *EVERY, "--out", stopped, "--json"))
    assert told["num_resumed"] == 8
    pd.testing.assert_frame_equal(pd.read_parquet(stopped), pd.read_parquet(whole))
    assert not [*tmp_path.glob(".*")]


def test_origins_in_sample_are_refused_unless_they_are_asked_for(call, of, tmp_path):
    early = ("--from", "2024-01-10 00:00", *EVERY)
    code, _, err = call(*of, *early)
    assert code == 6
    assert "are in sample" in err
    out = tmp_path / "marked.csv"
    told = document(call(*of, *early, "--in-sample", "--out", out, "--json"))
    assert told["in_sample"]
    assert told["first_origin"] == "2024-01-10T00:00:00"
    assert pd.read_csv(out)["in_sample"].all()
    assert "in sample" in call(*of, *early, "--in-sample")[2]


def test_a_table_and_a_picture_for_a_person(call, of, tmp_path):
    picture = tmp_path / "along.svg"
    code, out, err = call(*of, *EVERY, "--plot", picture, "--by", "step")
    assert code == 0
    assert "backtest, every 6h" in out
    assert len(out.split("by steps ahead")[1].splitlines()) == 1 + 1 + HORIZON
    assert "updates (daily)" in err
    assert picture.read_bytes().startswith(b"<?xml")
    assert "nothing grew" in call(*of, *EVERY[:2], "--update", "never", "--quantiles", "none")[2]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ((), 2, "neither --run nor --index"),
        (("--index", "m@1", "--update", "often"), 2, "--update often"),
        (("--index", "m@1", "--to", "2024-01-02"), 6, "are in sample"),
        (("--index", "m@1", "--from", "2024-01-20 20:00"), 2, "no origin between"),
        (("--index", "m@1", "--every", "90min"), 2, "no whole number of steps"),
        (("--index", "m@1", "--out", "rows.txt"), 2, ".csv or .parquet"),
        (("--index", "m@1", "--quantiles", "2"), 2, "between 0 and 1"),
        (("--index", "http://127.0.0.1:9/m"), 8, ""),
    ],
)
def test_mistakes_get_one_line(call, arguments, code, message):
    found, out, err = call(*arguments)
    assert (found, out) == (code, "")
    assert message in err
