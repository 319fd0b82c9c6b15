"""`cli evaluate`: every forecast as a file, by series and by step, origins by a schedule, the worst and the best."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from cli_fixtures import HORIZON, LOOKBACK, NUM_TEST, frame, make

from cli.main import run
from memory_index import long_tables

METRICS = {"mse", "mae", "mse_original", "mae_original", "mase", "rmsse", "smape", "direction_accuracy"}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return make(tmp_path_factory.getbasetemp())


@pytest.fixture(params=["run", "memory"])
def of(request, made) -> list[object]:
    """The run, or the memory alone."""
    return ["--run", made.run, "--device", "cpu"] if request.param == "run" else ["--index", "m@1"]


@pytest.fixture
def call(made, capfd):
    """Evaluate with these arguments: (exit code, stdout, stderr)."""

    def run_command(*arguments: object, file: Path = made.file):
        capfd.readouterr()
        code = run(["evaluate", *map(str, [file, *arguments]), "--indexes-dir", str(made.indexes)])
        return code, *capfd.readouterr()

    return run_command


def document(result: tuple[int, str, str]) -> dict:
    assert result[0] == 0, result[2]
    return json.loads(result[1])


def units() -> pd.Series:
    """Training standard deviations."""
    return frame().drop(columns="date").head(int(0.7 * len(frame()))).std(ddof=0)


def test_the_file_holds_every_forecast_and_its_scores_are_those_that_are_told(call, of, tmp_path):
    out = tmp_path / "forecasts.parquet"
    told = document(call(*of, "--quantiles", "0.1,0.9", "--out", out, "--json"))
    table = pd.read_parquet(out)
    assert list(table.columns) == ["unique_id", "cutoff", "ds", "y", "yhat", "q0.1", "q0.9"]
    assert len(table) == told["num_scored"] * HORIZON == 2 * NUM_TEST * HORIZON
    assert not table.duplicated(["unique_id", "cutoff", "ds"]).any()
    ahead = (table["ds"] - table["cutoff"]) / pd.Timedelta(hours=1)
    np.testing.assert_array_equal(ahead, np.tile(np.arange(1, HORIZON + 1), 2 * NUM_TEST))
    came = frame().melt(id_vars="date", var_name="unique_id", value_name="value").rename(columns={"date": "ds"})
    joined = table.merge(came, on=["unique_id", "ds"])
    np.testing.assert_array_equal(joined["y"], joined["value"])
    error = (table["yhat"].astype(float) - table["y"]) / table["unique_id"].map(units())
    assert told["mse"] == pytest.approx(np.square(error).mean())
    assert told["coverage"] == pytest.approx({name: (table["y"] <= table[name]).mean() for name in ("q0.1", "q0.9")})
    assert table.attrs["ref"] == "m@1"


def test_csv_and_parquet_say_the_same_and_come_in_pieces(call, of, tmp_path, monkeypatch):
    whole, pieces, text = (tmp_path / name for name in ("whole.parquet", "pieces.parquet", "f.csv"))
    assert call(*of, "--out", whole)[0] == 0
    monkeypatch.setattr(long_tables, "ROWS_AT_ONCE", 300)
    assert call(*of, "--out", pieces)[0] == call(*of, "--out", text)[0] == 0
    assert pq.ParquetFile(whole).num_row_groups == 1
    groups = pq.ParquetFile(pieces)
    assert max(groups.metadata.row_group(n).num_rows for n in range(groups.num_row_groups)) < 300 + HORIZON
    pd.testing.assert_frame_equal(pd.read_parquet(whole), pd.read_parquet(pieces))
    read = pd.read_csv(text, parse_dates=["cutoff", "ds"])
    pd.testing.assert_frame_equal(read, pd.read_parquet(whole), check_dtype=False, rtol=1e-6)


@pytest.mark.parametrize("at", [20, 60])
def test_forecasts_in_the_file_do_not_see_what_follows_their_cutoff(call, of, tmp_path, at):
    """Garbage in place of all later values of the test part."""
    clean, dirty, poisoned = tmp_path / "clean.parquet", tmp_path / "dirty.parquet", tmp_path / "poisoned.csv"
    table = frame()
    last = len(table) - (NUM_TEST + HORIZON - 1) - 1 + at
    garbage = table.copy()
    wild = np.random.default_rng(at).normal(size=(len(table) - last - 1, 2)) * 1e5
    garbage.loc[last + 1 :, ["north", "south"]] = wild
    garbage.to_csv(poisoned, index=False)
    levels = ("--quantiles", "0.1,0.9")
    assert call(*of, *levels, "--out", clean)[0] == call(*of, *levels, "--out", dirty, file=poisoned)[0] == 0
    before, after = (
        pd.read_parquet(path).query("cutoff <= @until")
        for path, until in ((p, table["date"][last]) for p in (clean, dirty))
    )
    assert len(before) == 2 * (at + 1) * HORIZON
    columns = ["unique_id", "cutoff", "ds", "yhat", "q0.1", "q0.9"]
    pd.testing.assert_frame_equal(before[columns], after[columns])
    assert not before["y"].equals(after["y"])


def test_scores_by_series_and_by_step(call, of):
    told = document(call(*of, "--by", "series", "--by", "step", "--json"))
    assert told["scores"][told["arm"]].keys() >= METRICS
    assert [each["series_id"] for each in told["by_series"]] == ["north", "south"]
    assert {each["num_windows"] for each in told["by_series"]} == {NUM_TEST}
    for name in ("mse", "mae", "mase"):
        assert np.mean([each[name] for each in told["by_series"]]) == pytest.approx(told["scores"][told["arm"]][name])
        assert np.mean(told["by_step"][name]) == pytest.approx(told["scores"][told["arm"]][name])
        assert len(told["by_step"][name]) == HORIZON
    naive = [each["baselines"]["seasonal_naive"]["mse"] for each in told["by_series"]]
    assert np.mean(naive) == pytest.approx(told["baselines"]["seasonal_naive"]["mse"])
    assert {"by_series", "by_step"}.isdisjoint(document(call(*of, "--json")))


def test_a_schedule_scores_its_origins_alone(call, of, tmp_path):
    out = tmp_path / "daily.parquet"
    told = document(call(*of, "--every", "24h", "--at", "23:00", "--out", out, "--json"))
    cutoffs = pd.read_parquet(out)["cutoff"].drop_duplicates()
    assert told["schedule"] == "every 24h at 23:00"
    assert told["num_windows"] == len(cutoffs) == NUM_TEST // 24 + 1
    assert {(each.hour, each.minute) for each in cutoffs} == {(23, 0)}


def test_times_of_the_file_are_in_the_zone_of_the_table_through_a_change_of_its_clock(tmp_path, capfd):
    table = frame()
    table["date"] = pd.date_range("2024-03-13", periods=len(table), freq="h", tz="Europe/Berlin")
    table.to_csv(tmp_path / "zoned.csv", index=False)
    where = ["--indexes-dir", str(tmp_path / "indexes")]
    window = ["--lookback", str(LOOKBACK), "--horizon", str(HORIZON), "--time-zone", "Europe/Berlin"]
    assert run(["index", "build", str(tmp_path / "zoned.csv"), "--name", "z", *window, *where]) == 0
    for name in ("f.parquet", "f.csv"):
        asked = ["--index", "z", "--every", "24h", "--at", "05:00", "--split", "test", "--out", str(tmp_path / name)]
        assert run(["evaluate", str(tmp_path / "zoned.csv"), *asked, *where]) == 0
    parquet = pd.read_parquet(tmp_path / "f.parquet")
    assert str(parquet["cutoff"].dt.tz) == "Europe/Berlin"
    assert {*parquet["cutoff"].dt.hour} == {5}
    text = pd.read_csv(tmp_path / "f.csv")["ds"]
    assert {each[-6:] for each in text} == {"+01:00", "+02:00"}  # the clock is put forward on 31 March
    assert (pd.to_datetime(text, utc=True) == parquet["ds"].dt.tz_convert("UTC")).all()
    capfd.readouterr()


def test_of_many_series_the_worst_and_the_best_are_shown_and_all_on_request(tmp_path, capfd):
    hours, random = np.arange(400), np.random.default_rng(1)
    table = pd.DataFrame({"date": pd.date_range("2024-01-01", periods=len(hours), freq="h")})
    for n in range(14):  # the higher its number, the noisier; the last does not move before the test part
        table[f"s{n:02}"] = np.sin(hours * 2 * np.pi / 24) + (0.02 + 0.1 * n) * random.normal(size=len(hours))
    table.loc[:300, "s13"] = 1.0
    table.to_csv(tmp_path / "many.csv", index=False)
    where = ["--indexes-dir", str(tmp_path / "indexes")]
    window = ["--lookback", "24", "--horizon", "6", "--views", "12,24"]
    assert run(["index", "build", str(tmp_path / "many.csv"), "--name", "many", *window, *where]) == 0
    command = ["evaluate", str(tmp_path / "many.csv"), "--index", "many", *where]
    capfd.readouterr()
    assert run(command) == 0
    out, err = capfd.readouterr()
    shown = [line.split()[0] for line in out.split("series with the highest and the lowest MASE")[1].splitlines()[2:]]
    assert len(shown) == 11
    assert shown[5] == "..."
    assert "s13" not in shown  # has no MASE: its seasonal naive error in training is 0
    assert "of 13 series are forecast worse than by seasonal naive (MASE)" in err
    assert "450 of MASE, 450 of RMSSE" in err  # 75 origins of 6 steps
    assert run([*command, "--by", "series"]) == 0
    listed = capfd.readouterr().out.split("highest MASE first")[1].splitlines()[2:]
    assert len(listed) == 14
    assert listed[-1].split()[0] == "s13"
    assert [line.split()[0] for line in listed[:5]] == shown[:5]


def test_a_table_for_a_person(call, made):
    code, out, err = call("--run", made.run, "--device", "cpu", "--by", "step")
    assert code == 0
    for heading in ("MASE", "sMAPE", "WQL", "SQL", "direction"):
        assert heading in out.splitlines()[1]
    assert len(out.split("by steps ahead")[1].splitlines()) == 1 + 1 + HORIZON
    assert "scaled by the seasonal naive error over the training part, season 24" in err
    assert "up to each origin" in call("--index", "m@1", "--scaled-by", "origin")[2]
