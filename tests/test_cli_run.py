"""`cli evaluate` and `cli forecast` with a run: documents, files, newer versions, and one line for each mistake."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import pandas as pd
import pytest
from cli_fixtures import HORIZON, LOOKBACK, NUM_NEWER, NUM_STEPS, NUM_TEST, frame, make

from cli.main import run
from forecaster.learned_keys.pattern_encoder import PatternConfig
from memory_index.versions.store import Store


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return make(tmp_path_factory.getbasetemp())


@pytest.fixture
def call(made, capfd):
    """Run a command with the run and its indexes: (exit code, stdout, stderr)."""

    def run_command(*arguments: object, folder: Path = made.run, indexes: Path = made.indexes):
        capfd.readouterr()
        code = run([*(str(each) for each in arguments), "--run", str(folder), "--indexes-dir", str(indexes)])
        return code, *capfd.readouterr()

    return run_command


@pytest.fixture
def indexes(made, tmp_path):
    """A copy of the indexes, to append to."""
    shutil.copytree(made.indexes, tmp_path / "indexes")
    return tmp_path / "indexes"


def one_line(err: str) -> str:
    assert len(err.strip().splitlines()) == 1, err
    return err


def test_evaluate_has_the_promised_keys(made, call):
    code, out, _ = call("evaluate", made.file, "--json")
    document = json.loads(out)
    assert code == 0
    promised = "run ref split num_windows num_series mse mae direction_accuracy gate baselines seconds"
    assert set(promised.split()) <= set(document)
    assert (document["run"], document["ref"], document["split"]) == (str(made.run), "m@1", "test")
    assert (document["num_windows"], document["num_series"]) == (NUM_TEST, 2)
    assert set(document["gate"]) == {"mean", "p10", "p50", "p90"}
    assert set(document["baselines"]) == {"last_value", "seasonal_naive", "linear", "memory_only"}
    assert document["mse"] < document["baselines"]["last_value"]["mse"]


def test_evaluate_prints_the_run_beside_the_baselines(made, call):
    code, out, err = call("evaluate", made.file, "--baselines", "--split", "val")
    assert code == 0
    for name in (
        str(made.run),
        "memory alone",
        "linear (ridge, the run's own)",
        "seasonal naive",
        "last value",
        "key space joint-48",
    ):
        assert name in out
    for words in ("trend class", "gate: ", "below q0.1", "standardised units"):
        assert words in err


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_forecast_writes_a_table_and_a_picture(made, call, tmp_path, suffix):
    out, picture = tmp_path / f"forecast{suffix}", tmp_path / "forecast.png"
    code, text, err = call("forecast", made.file, "--out", out, "--plot", picture, "--quantiles", "0.2,0.8")
    table = pd.read_csv(out, parse_dates=["ds"]) if suffix == ".csv" else pd.read_parquet(out)
    assert (code, text) == (0, "")
    assert list(table.columns) == ["unique_id", "ds", "yhat", "q0.2", "q0.8"]
    assert len(table) == 2 * HORIZON
    assert table["ds"].min() == frame()["date"].max() + pd.Timedelta(hours=1)
    assert (table["q0.2"] < table["q0.8"]).all()
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "2 series x 12 steps" in err


def test_a_forecast_loads_nothing_that_it_does_not_need(made):
    """Most of its time is imports; what trains, draws, or reads other language models must not be among them."""
    unwanted = [
        "accelerate",
        "transformers",
        "matplotlib",
        "forecaster.training.fit",
        "forecaster.training.train",
        "forecaster.language_models.pretrained",
    ]
    program = (
        "import sys; from cli.main import run; code = run(sys.argv[1:]); "
        f"print(code, [name for name in {unwanted} if name in sys.modules], file=sys.stderr)"
    )
    arguments = ["forecast", made.file, "--run", made.run, "--indexes-dir", made.indexes]
    command = [sys.executable, "-c", program, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=True)
    assert done.stderr.splitlines()[-1] == "0 []"
    assert done.stdout.startswith("unique_id,ds,yhat")


def test_forecast_as_json_says_what_it_was_made_by(made, call):
    code, out, _ = call("forecast", made.file, "--json", "--quantiles", "none")
    document = json.loads(out)
    assert code == 0
    assert (document["run"], document["ref"], document["horizon"]) == (str(made.run), "m@1", HORIZON)
    assert set(document["forecast"][0]) == {"unique_id", "ds", "yhat"}


def test_what_is_new_is_appended_once(made, call, indexes, tmp_path):
    """A run can be asked every day: each time the newest version that it can use grows, and not its own again."""
    out = tmp_path / "forecast.csv"
    code, _, err = call("forecast", made.newer, "--update-index", "--out", out, indexes=indexes)
    assert code == 0
    assert f"appended {made.newer} to m@1: m@2" in err
    assert "with m@2" in err
    code, _, err = call("forecast", made.newer, "--update-index", "--out", out, indexes=indexes)
    assert code == 0
    assert "m@2 stays as it is: " in err
    assert Store(indexes).numbers("m") == (1, 2)
    assert "line end" not in err
    cut = tmp_path / "cut.csv"
    cut.write_bytes(made.newer.read_bytes()[:-1])
    _, _, err = call("forecast", cut, "--update-index", "--out", out, indexes=indexes)
    assert "cut.csv, row 511: the last line has no line end" in err
    code, text, _ = call("evaluate", made.newer, "--index", "m@2", "--json", indexes=indexes)
    assert code == 0
    assert (json.loads(text)["ref"], json.loads(text)["num_windows"]) == ("m@2", NUM_TEST)


def test_a_memory_with_a_learned_encoder_grows_too(made, indexes, tmp_path, monkeypatch):
    monkeypatch.setattr("forecaster.learned_keys.fit_pattern.PatternConfig", partial(PatternConfig, num_steps=2))
    folder, window = ["--indexes-dir", str(indexes)], ["--lookback", "24", "--horizon", "12", "--views", "24"]
    build = ["index", "build", str(made.file), "--name", "learned", "--encoder", "pattern", *window, *folder]
    assert run(build) == 0
    out = ["--out", str(tmp_path / "forecast.csv")]
    assert run(["forecast", str(made.newer), "--index", "learned@1", "--update-index", *out, *folder]) == 0
    assert Store(indexes).numbers("learned") == (1, 2)


def test_a_version_that_the_run_cannot_use_is_passed_over(made, call, indexes, tmp_path):
    other = ["--lookback", "24", "--horizon", "12", "--indexes-dir", str(indexes)]
    assert run(["index", "build", str(made.file), "--name", "m", *other]) == 0
    out = tmp_path / "forecast.csv"
    code, _, err = call("forecast", made.newer, "--update-index", "--out", out, indexes=indexes)
    assert code == 0
    assert "to m@1: m@3" in err
    code, _, err = call("forecast", made.file, "--index", "m@2", indexes=indexes)
    assert code == 6
    assert "lookback: 24, not 48" in one_line(err)
    code, _, err = call("forecast", made.newer, "--index", "m@2", "--update-index", indexes=indexes)
    assert code == 6
    assert Store(indexes).numbers("m") == (1, 2, 3)


def test_nothing_is_appended_for_a_run_that_cannot_forecast(made, call, indexes, tmp_path):
    damaged = tmp_path / "damaged"
    shutil.copytree(made.run, damaged)
    (damaged / "model.safetensors").write_bytes(b"torn")
    code, _, err = call("forecast", made.newer, "--update-index", folder=damaged, indexes=indexes)
    assert code == 5
    assert "not what was written" in one_line(err)
    assert Store(indexes).numbers("m") == (1,)


def test_series_that_nobody_needs_are_not_missed(made, call, indexes, tmp_path):
    folder, out = ["--indexes-dir", str(indexes)], tmp_path / "run"
    window = ["--lookback", "24", "--horizon", "12", "--scopes", "own,pooled"]
    assert run(["index", "build", str(made.file), "--name", "apart", *window, *folder]) == 0
    fast = ["--no-llm", "--set", "max_steps=1", "--config", str(made.toml), "--device", "cpu"]
    assert run(["train", str(made.file), "--index", "apart@1", "--out", str(out), *fast, *folder]) == 0
    frame().drop(columns="south").to_csv(tmp_path / "north.csv", index=False)
    code, _, err = call("forecast", tmp_path / "north.csv", folder=out, indexes=indexes)
    assert (code, err) == (0, "")


def test_other_series_than_the_run_knows_are_told(made, call, tmp_path):
    table = frame().assign(west=frame()["north"] * 3 + 1).drop(columns="south")
    table.to_csv(tmp_path / "others.csv", index=False)
    code, out, err = call("forecast", tmp_path / "others.csv")
    assert code == 0
    assert "west: new to the run" in err
    assert "others.csv has no south" in err
    assert {line.partition(",")[0] for line in out.splitlines()[1:]} == {"north", "west"}


def test_a_language_model_that_has_moved(made, call):
    code, _, err = call("forecast", made.file, "--llm", "./moved/here")
    assert code == 4
    assert "./moved/here" in one_line(err)
    assert call("forecast", made.file, "--llm", "builtin:tiny")[0] == 0


def with_hole() -> pd.DataFrame:
    table = frame()
    table.loc[NUM_STEPS - 5, "south"] = None
    return table


BAD_TABLES = {
    "a missing value": (with_hole, ["--on-nan", "error"], 3, "row 477"),
    "a short history": (lambda: frame(LOOKBACK - 1), [], 3, f"the last {LOOKBACK}"),
    "another value": (lambda: frame().assign(north=1.0), [], 6, "is 1.0, but m@1 was built on"),
    "another step": (lambda: frame().iloc[::2], [], 6, "has a step of 2h, m@1 of h"),
}


@pytest.mark.parametrize("name", BAD_TABLES)
def test_a_table_that_cannot_be_used(call, tmp_path, name):
    make_table, options, expected, words = BAD_TABLES[name]
    make_table().to_csv(tmp_path / "bad.csv", index=False)
    code, out, err = call("forecast", tmp_path / "bad.csv", *options)
    assert (code, out) == (expected, "")
    assert words in err.strip().splitlines()[-1]
    assert "bad.csv" in err


MISTAKES = {
    "unknown index": (["--index", "n"], 4, "there is only m"),
    "an option of the memory alone": (["--scopes", "own"], 2, "--scopes"),
    "a quantile that cannot be": (["--quantiles", "0.999"], 2, "0.995"),
    "unknown device": (["--device", "tpu"], 2, "cpu"),
    "another file type": (["--out", "x.xlsx"], 2, ".csv or .parquet"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line(made, call, name):
    options, expected, words = MISTAKES[name]
    code, out, err = call("forecast", made.file, *options)
    assert (code, out) == (expected, "")
    assert words in one_line(err)


def test_a_part_that_is_not_there(made, call):
    code, _, err = call("evaluate", made.file, "--split", "tset")
    assert code == 2
    assert "train, val or test" in one_line(err)


def test_a_run_that_is_not_there_names_the_nearest(made, call):
    code, _, err = call("forecast", made.file, folder=made.run.with_name("smal"))
    assert code == 4
    assert "did you mean 'small'?" in one_line(err)


def test_a_run_whose_version_is_gone(made, call, tmp_path):
    code, _, err = call("forecast", made.file, indexes=tmp_path / "nowhere")
    assert code == 4
    assert "no index 'm'" in one_line(err)


def test_a_moved_run_forecasts_the_same(made, call, tmp_path):
    shutil.copytree(made.run, tmp_path / "moved")
    first, second = (call("forecast", made.file, folder=folder)[1] for folder in (made.run, tmp_path / "moved"))
    assert first == second
    assert first.count("\n") == 1 + 2 * HORIZON


def test_newer_rows_need_no_newer_version(made, call):
    """The run's own version still answers for a table that has grown."""
    code, out, _ = call("forecast", made.newer)
    assert code == 0
    assert out.splitlines()[1].split(",")[1] == str(frame(NUM_STEPS + NUM_NEWER)["date"].max() + pd.Timedelta(hours=1))
