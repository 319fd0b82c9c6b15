"""Covariates from the command line and from Python: built, asked, forecast, explained, and asked what if."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pandas as pd
import pytest
from covariate_fixtures import built_with, covariate_table
from pandas.testing import assert_frame_equal
from service_fixtures import PATIENCE_S, whole_service

from cli.commands.index_serve import served_runs
from cli.main import run
from cli.pictures.neighbours import draw_neighbours, episodes
from forecaster import Forecaster
from forecaster.runs.states import numbers_of
from memory_index.errors import DataError, UsageError
from memory_index.inspection import inspect_window
from memory_index.versions.opening import open_version
from memory_index.versions.store import Store

LOOKBACK, HORIZON, NUM_STEPS = 36, 8, 1200
AT = "2024-02-15 05:00"
SETTINGS = {"memory_k": 10, "num_folds": 2, "epochs": 1}


def frame() -> pd.DataFrame:
    """Demand that falls by 3 for each degree and by 40 on holidays, and what is known of the next steps."""
    random, num = np.random.default_rng(2), NUM_STEPS + HORIZON
    hours = np.arange(num)
    temperature = 10 + 6 * np.repeat(random.normal(size=num // 6 + 1), 6)[:num]
    holiday = np.repeat(random.random(num // 12 + 1) < 0.2, 12)[:num]
    demand = 500 + 20 * np.sin(hours * 2 * np.pi / 24) - 3 * temperature - 40 * holiday + random.normal(size=num)
    table = pd.DataFrame({"time": pd.date_range("2024-01-01", periods=num, freq="h")})
    return table.assign(demand=demand.round(2), temperature=temperature.round(2), holiday=holiday)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with history.csv, future.csv, an index `d` and a run against it."""
    folder = tmp_path_factory.mktemp("known")
    frame().head(NUM_STEPS).to_csv(folder / "history.csv", index=False)
    frame().tail(HORIZON).drop(columns="demand").to_csv(folder / "future.csv", index=False)
    window = ["--lookback", str(LOOKBACK), "--horizon", str(HORIZON), "--views", str(LOOKBACK), "--split", "60/20/20"]
    known = ["--known", "temperature", "--known", "holiday", "--indexes-dir", str(folder)]
    assert run(["index", "build", str(folder / "history.csv"), "--name", "d", *window, *known]) == 0
    settings = [part for name, value in SETTINGS.items() for part in ("--set", f"{name}={value}")]
    arguments = ["--index", "d", "--indexes-dir", str(folder), "--out", str(folder / "run"), *settings]
    assert run(["train", str(folder / "history.csv"), *arguments]) == 0
    return folder


@pytest.fixture
def call(made: Path, capfd: pytest.CaptureFixture[str]) -> Any:
    """Run a command on the history: (exit code, document or stdout, stderr)."""

    def command(*arguments: str) -> tuple[int, Any, str]:
        capfd.readouterr()
        code = run([*arguments, "--indexes-dir", str(made)])
        out, err = capfd.readouterr()
        return code, json.loads(out) if "--json" in arguments else out, err

    return command


@pytest.mark.parametrize("by", ["memory", "run"])
def test_a_forecast_reads_a_table_of_the_future(made: Path, call: Any, by: str) -> None:
    subject = ["--index", "d"] if by == "memory" else ["--run", str(made / "run")]
    asked = ["forecast", str(made / "history.csv"), *subject, "--json"]
    code, document, _ = call(*asked, "--future", str(made / "future.csv"))
    assert code == 0
    assert "scenario" not in document
    really = frame()["demand"].to_numpy()[NUM_STEPS:]
    found = np.array([row["yhat"] for row in document["forecast"]])
    assert np.abs(found - really).mean() < 10

    whole = made / "whole.csv"  # the future in the same file
    frame().assign(demand=lambda table: table["demand"].where(table.index < NUM_STEPS)).to_csv(whole, index=False)
    _, same, _ = call("forecast", str(whole), *subject, "--json")
    np.testing.assert_allclose([row["yhat"] for row in same["forecast"]], found, rtol=1e-5)

    code, document, err = call(*asked, "--future", str(made / "future.csv"), "--set-known", "temperature+=10")
    colder = np.array([row["yhat"] for row in document["forecast"]])
    assert document["scenario"] == ["temperature+=10"]
    assert "scenario: temperature+=10 over the horizon" in err
    assert (found - colder).mean() == pytest.approx(30, abs=12)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (["--set-known", "wind=1"], "'wind' is no known covariate of this version"),
        (["--set-known", "temperature"], "'temperature' is no change of a known covariate"),
        (["--set-known", "temperature=warm"], "'warm' is not a finite number"),
        (["--set-known", "holiday+=1"], "'holiday' is a boolean"),
        (["--set-known", "holiday=2"], "'2' is not true or false"),
    ],
)
def test_a_scenario_that_cannot_be_asked_is_one_line(made: Path, call: Any, wrong: list[str], said: str) -> None:
    code, _, err = call("forecast", str(made / "history.csv"), "--index", "d", *wrong)
    assert code == 2
    assert said in err
    assert "scenario:" not in err


def test_what_is_missing_of_the_future_is_named(made: Path, call: Any) -> None:
    code, _, err = call("forecast", str(made / "history.csv"), "--index", "d")
    assert code == 3
    assert "known covariate 'temperature' of series 'demand' has no value at 2024-02-20T00:00:00" in err
    code, _, err = call("forecast", str(made / "history.csv"), "--index", "d", "--set-known", "temperature=3")
    assert code == 3
    assert "'holiday'" in err
    both = ["--set-known", "temperature=3", "--set-known", "holiday=true"]
    assert call("forecast", str(made / "history.csv"), "--index", "d", *both)[0] == 0


def test_a_service_forecasts_from_a_history_with_its_future(made: Path, call: Any) -> None:
    whole = frame().assign(demand=lambda table: table["demand"].where(table.index < NUM_STEPS))
    whole.to_csv(made / "served.csv", index=False)
    later = pd.date_range(whole["time"].iloc[-1], periods=30, freq="h")[1:]  # known values behind the horizon
    beyond = pd.DataFrame({"time": later, "temperature": np.linspace(-1e6, 1e6, 29), "holiday": True})
    _, expected, _ = call("forecast", str(made / "served.csv"), "--run", str(made / "run"), "--json")
    runs = served_runs([made / "run"], ["d"], "cpu")
    with whole_service(made, ("d",), runs=runs) as service, httpx.Client(trust_env=False, timeout=PATIENCE_S) as client:
        where = f"{service.address}/v1/runs/run/forecast"
        asked = [
            client.post(where, content=table.to_csv(index=False), headers={"content-type": "text/csv"})
            for table in (whole, whole.head(NUM_STEPS), pd.concat([whole, beyond]))
        ]
    assert [each.status_code for each in asked] == [200, 422, 200]
    assert asked[0].json()["forecast"] == asked[2].json()["forecast"] == expected["forecast"]
    assert "'temperature'" in asked[1].json()["error"]["message"]


def test_a_run_with_covariates_goes_on(made: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(made, tmp_path / "made")
    folder, history = tmp_path / "made", str(tmp_path / "made" / "history.csv")
    where = ["--run", str(folder / "run"), "--indexes-dir", str(folder)]
    assert run(["forecast", history, *where, "--future", str(folder / "future.csv"), "--update", "--json"]) == 0
    assert Store(folder).numbers("d") == (1, 2)
    assert numbers_of(folder / "run") == [0, 1]
    capfd.readouterr()
    assert run(["backtest", history, *where, "--from", AT, "--at", "05:00"]) == 0
    assert "only the memory grows" not in capfd.readouterr().err


def test_neighbours_tell_the_condition_part(made: Path, call: Any) -> None:
    asked = ["index", "neighbours", "d", str(made / "history.csv"), "--series", "demand", "--at", AT]
    code, document, _ = call(*asked, "--json")
    assert code == 0
    assert {*document["query"]["covariates"]} == {"temperature", "holiday"}
    assert set(document["query"]["covariates"]["holiday"]) <= {"true", "false"}
    for each in document["neighbours"]:
        assert each["condition_distance"] ** 2 == pytest.approx(
            sum(each["condition_parts"].values()), rel=0.05, abs=1e-3
        )
        assert len(each["covariates"]["temperature"]) == HORIZON
    picture, page = made / "n.png", made / "n.html"
    code, out, err = call(*asked, "--plot", str(picture), "--html", str(page))
    assert code == 0
    assert "cond." in out
    assert "temperature over the horizon" in err
    assert picture.stat().st_size > 10_000
    assert "temperature" in page.read_text()
    svg = made / "n.svg"
    _, warm, _ = call(*asked, "--json", "--set-known", "temperature+=10", "--plot", str(svg), "--html", str(page))
    assert warm["query"]["forecast"] != document["query"]["forecast"]
    assert "--set-known temperature+=10" in page.read_text()


def test_shares_of_the_distances_say_what_the_conditions_decide(made: Path, call: Any) -> None:
    """They add up to the condition part, and a temperature that no neighbour had makes more of the distances."""

    def told(*more: str) -> dict[str, str]:
        _, _, said = call(*asked, *more)
        return dict(re.findall(r"^(\w+) over the horizon: .*: (\d+)% of their", said, re.MULTILINE))

    asked = ["index", "neighbours", "d", str(made / "history.csv"), "--series", "demand", "--at", AT]
    _, document, _ = call(*asked, "--json")
    whole, part = (
        sum(each[name] ** 2 for each in document["neighbours"]) for name in ("distance", "condition_distance")
    )
    plain = told()
    assert plain.keys() == {"temperature", "holiday"}
    assert sum(map(int, plain.values())) == pytest.approx(100 * part / whole, abs=2)
    assert int(told("--set-known", "temperature=-40")["temperature"]) > int(plain["temperature"])


@pytest.mark.parametrize("shape", ["wide", "narrow"])
def test_pictures_show_known_columns_under_the_target(tmp_path: Path, shape: Any) -> None:
    """Those that decide most, aligned with it; what is not drawn is said."""
    memory, table = open_version(built_with(tmp_path)), covariate_table()
    at = table.series[0].times[600]
    found = inspect_window(memory, table, "north", at, k=3)
    names = [*found.covariates]
    many = [f"more {number}" for number in range(3)]
    more = dict.fromkeys(many, found.covariates["temperature"])
    neighbours = tuple(replace(n, covariates=n.covariates | more) for n in found.neighbours)
    for each, num_panels in (
        (found, 3),
        (replace(found, covariates=found.covariates | more, neighbours=neighbours), 4),
    ):
        drawn = draw_neighbours(each, memory.windows, "d@1", shape)
        target, *panels = drawn.axes[: num_panels + 1]
        assert len(drawn.axes) == num_panels + 3
        titles = [axes.get_title(loc="left") for axes in panels]
        assert {title.partition(":")[0] for title in titles} >= {*names}
        for axes in panels:
            assert axes.get_xlim() == target.get_xlim()
            assert len(axes.lines) == 2 + len(episodes(each.neighbours, table.step))
        assert panels[-1].get_title(loc="right") == ("2 more columns decide less" if each is not found else "")


def test_explain_shows_a_scenario_beside_the_plain_forecast(made: Path, call: Any) -> None:
    asked = ["explain", str(made / "history.csv"), "--run", str(made / "run"), "--series", "demand", "--at", AT]
    code, plain, _ = call(*asked, "--json")
    assert code == 0
    code, scenario, _ = call(*asked, "--json", "--set-known", "holiday=true", "--set-known", "temperature=0")
    assert code == 0
    assert scenario["plain_forecast"] == plain["forecast"]
    assert scenario["scenario"] == ["holiday=true", "temperature=0"]
    assert scenario["forecast"] != plain["forecast"]
    _, _, err = call(*asked, "--set-known", "temperature+=10")
    assert "the scenario's forecast is" in err


def test_from_python() -> None:
    history, future = frame().head(NUM_STEPS), frame().tail(HORIZON).drop(columns="demand")
    model = Forecaster(
        horizon=HORIZON, lookback=LOOKBACK, split="80/20/0", known=["temperature", "holiday"], **SETTINGS
    ).fit(history)
    empty = model.make_future()
    assert [*empty.columns[1:]] == ["temperature", "holiday"]
    assert empty["temperature"].isna().all()
    with pytest.raises(DataError, match="known covariate 'temperature'"):
        model.predict()
    filled = empty.assign(temperature=future["temperature"].to_numpy(), holiday=future["holiday"].to_numpy())
    found = model.predict(future=filled)
    assert np.abs(found["yhat"].to_numpy() - frame()["demand"].to_numpy()[NUM_STEPS:]).mean() < 10
    cold = model.predict(future=filled, set_known="temperature+=-10")
    assert_frame_equal(cold, model.predict(future=filled, set_known=["temperature+=-10"]))
    assert_frame_equal(found, model.predict(future=filled, set_known=None))
    assert (cold["yhat"] - found["yhat"]).mean() == pytest.approx(30, abs=12)
    with pytest.raises(UsageError, match="is no known covariate"):
        model.predict(future=filled, set_known=["wind=1"])
