"""Vintages from the command line and from Python: built, trained, scored, asked and forecast as of each origin."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from cli.main import run
from forecaster import Forecaster
from memory_index.errors import IncompatibleError

LOOKBACK, HORIZON, NUM_STEPS = 36, 8, 1000
AT = "2024-02-09 05:00"
SETTINGS = {"memory_k": 10, "num_folds": 2, "epochs": 1}
HOURS = pd.date_range("2024-01-01", periods=NUM_STEPS + HORIZON, freq="h")


def tables() -> tuple[pd.DataFrame, pd.DataFrame]:
    """Demand that falls by 3 for each degree, and the temperature as it was forecast every 4 hours, in tenths of a
    degree worse for each hour ahead.
    """
    random, num = np.random.default_rng(2), len(HOURS)
    temperature = 10 + 6 * np.repeat(random.normal(size=num // 6 + 1), 6)[:num]
    demand = 500 + 20 * np.sin(np.arange(num) * 2 * np.pi / 24) - 3 * temperature + random.normal(size=num)
    issue, lead = (each.ravel() for each in np.meshgrid(np.arange(-12, NUM_STEPS, 4), np.arange(1, 13), indexing="ij"))
    issue, lead = issue[(issue + lead >= 0) & (issue + lead < num)], lead[(issue + lead >= 0) & (issue + lead < num)]
    issued = pd.DataFrame({"ds": HOURS[issue + lead], "issued_at": HOURS[0] + pd.to_timedelta(issue, unit="h")})
    value = temperature[issue + lead] + 0.1 * lead * random.normal(size=len(lead))
    return pd.DataFrame({"ds": HOURS, "demand": demand.round(2)}), issued.assign(temperature=value.round(2))


HISTORY, ISSUED = tables()
WINDOW = ("--name", "other", "--lookback", str(LOOKBACK), "--horizon", str(HORIZON))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with history.csv, issued.csv, an index `d` and a run against it; the history has no temperature."""
    folder = tmp_path_factory.mktemp("issued")
    HISTORY.head(NUM_STEPS).to_csv(folder / "history.csv", index=False)
    ISSUED.to_csv(folder / "issued.csv", index=False)
    window = ["--lookback", str(LOOKBACK), "--horizon", str(HORIZON), "--views", str(LOOKBACK), "--split", "60/20/20"]
    known = ["--known", "temperature", "--vintages", str(folder / "issued.csv"), "--indexes-dir", str(folder)]
    assert run(["index", "build", str(folder / "history.csv"), "--name", "d", *window, *known]) == 0
    settings = [part for name, value in SETTINGS.items() for part in ("--set", f"{name}={value}")]
    arguments = ["--index", "d", "--indexes-dir", str(folder), "--out", str(folder / "run"), *settings]
    arguments += ["--vintages", str(folder / "issued.csv")]
    assert run(["train", str(folder / "history.csv"), *arguments]) == 0
    return folder


@pytest.fixture
def call(made: Path, capfd: pytest.CaptureFixture[str]) -> Any:
    """Run a command on the history: (exit code, document or stdout, stderr). `FILE` and `ISSUED` are the two tables."""

    def command(*arguments: str) -> tuple[int, Any, str]:
        capfd.readouterr()
        place = {"FILE": str(made / "history.csv"), "ISSUED": str(made / "issued.csv"), "RUN": str(made / "run")}
        code = run([*(place.get(each, each) for each in arguments), "--indexes-dir", str(made)])
        out, err = capfd.readouterr()
        return code, json.loads(out) if "--json" in arguments else out, err

    return command


def test_a_version_shows_its_vintages(call: Any) -> None:
    code, document, _ = call("index", "show", "d", "--json")
    assert code == 0
    [column] = document["covariates"]
    assert (column["name"], column["vintages"], column["weight"][0] > 0) == ("temperature", True, True)
    until = np.datetime64(document["split"]["train_until"])
    assert document["num_vintages"] == (ISSUED["issued_at"] <= until).sum()
    _, out, _ = call("index", "show", "d")
    assert "temperature (known as of its issue)" in out


@pytest.mark.parametrize("by", [("--index", "d"), ("--run", "RUN")])
def test_a_forecast_takes_what_was_issued_by_the_origin(made: Path, call: Any, by: tuple[str, str]) -> None:
    asked = ["forecast", "FILE", *by, "--json"]
    code, document, _ = call(*asked, "--vintages", "ISSUED")
    assert code == 0
    found = np.array([row["yhat"] for row in document["forecast"]])
    assert np.abs(found - HISTORY["demand"].to_numpy()[NUM_STEPS:]).mean() < 10
    poisoned = ISSUED.copy()
    later = poisoned["issued_at"] > HOURS[NUM_STEPS - 1]
    rows = poisoned[poisoned["ds"] > HOURS[NUM_STEPS - 1]]
    after = rows.assign(issued_at=HOURS[NUM_STEPS], temperature=1e4)
    assert not later.any()
    pd.concat([poisoned, after]).to_csv(made / "poisoned.csv", index=False)
    _, same, _ = call(*asked, "--vintages", str(made / "poisoned.csv"))
    assert same["forecast"] == document["forecast"]
    code, warm, err = call(*asked, "--vintages", "ISSUED", "--set-known", "temperature+=10")
    assert (code, "scenario: temperature+=10" in err) == (0, True)
    assert (found - np.array([row["yhat"] for row in warm["forecast"]])).mean() == pytest.approx(30, abs=12)

    plain = HISTORY.assign(temperature=now()).head(NUM_STEPS)  # what is known now, said plainly
    plain.to_csv(made / "plain.csv", index=False)
    future = pd.DataFrame({"ds": HOURS, "temperature": now()}).tail(HORIZON)
    future.to_csv(made / "future.csv", index=False)
    code, said, _ = call("forecast", str(made / "plain.csv"), *by, "--json", "--future", str(made / "future.csv"))
    assert code == 0
    np.testing.assert_allclose([row["yhat"] for row in said["forecast"]], found, rtol=1e-5)
    code, said, _ = call("forecast", str(made / "plain.csv"), *by, "--json", "--future", "ISSUED")
    assert code == 0
    np.testing.assert_allclose([row["yhat"] for row in said["forecast"]], found, rtol=1e-5)


def now() -> np.ndarray:
    """The newest temperature of each hour that was issued by the last one of the history."""
    newest = ISSUED.sort_values("issued_at").groupby("ds")["temperature"].last()
    return newest.reindex(HOURS).to_numpy()


def test_scores_and_explanations_are_as_of_each_origin(call: Any) -> None:
    scored: dict[str, float] = {}
    for by in ("--index", "--run"):
        code, document, _ = call(
            "evaluate", "FILE", by, "d" if by == "--index" else "RUN", "--vintages", "ISSUED", "--json"
        )
        assert code == 0
        scored[by] = document["mae"]
        assert document["mae"] < 0.5 * document["baselines"]["seasonal_naive"]["mae"]
    code, document, _ = call("backtest", "FILE", "--run", "RUN", "--from", AT, "--vintages", "ISSUED", "--json")
    assert (code, document["num_windows"] > 0) == (0, True)
    ask = ["--series", "demand", "--at", AT, "--vintages", "ISSUED", "--json"]
    code, document, _ = call("index", "neighbours", "d", "FILE", *ask)
    assert code == 0
    known = ISSUED[(ISSUED["issued_at"] <= AT) & (ISSUED["ds"] > AT)].sort_values("issued_at")
    expected = known.groupby("ds")["temperature"].last().head(HORIZON)
    np.testing.assert_allclose(document["query"]["covariates"]["temperature"], expected, rtol=1e-6)
    code, document, _ = call("explain", "FILE", "--run", "RUN", *ask)
    assert code == 0
    np.testing.assert_allclose(document["query"]["covariates"]["temperature"], expected, rtol=1e-6)


def test_an_append_adds_vintages(made: Path, call: Any) -> None:
    code, document, _ = call("index", "append", "d", "FILE", "--vintages", "ISSUED", "--json")
    assert code == 0
    assert document["num_vintages"] == len(ISSUED)
    code, out, _ = call("index", "verify", document["ref"])
    assert (code, "ok" in out) == (0, True)


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (
            ["evaluate", "FILE", "--index", "d"],
            6,
            "has no column 'temperature' (known), which the version was built with",
        ),
        (["index", "append", "d@1", "FILE"], 6, "or its vintages with --vintages"),
        (["evaluate", "PLAIN", "--index", "d"], 6, "does not say when the values of 'temperature' were issued"),
        (
            ["forecast", "FILE", "--index", "d", "--vintages", "OLD"],
            3,
            "that was issued by the origin 2024-02-11T15:00:00",
        ),
        (["forecast", "FILE", "--index", "d", "--vintages", "NO.csv"], 4, "NO.csv"),
        (["index", "build", "FILE", *WINDOW, "--known", "warmth", "--vintages", "ISSUED"], 3, "these are warmth"),
    ],
)
def test_what_is_missing_is_one_line(made: Path, call: Any, arguments: list[str], code: int, said: str) -> None:
    HISTORY.assign(temperature=1.0 * np.arange(len(HISTORY)) % 7).head(NUM_STEPS).to_csv(made / "p.csv", index=False)
    ISSUED[ISSUED["issued_at"] < HOURS[NUM_STEPS - 6]].to_csv(made / "old.csv", index=False)
    place = {"PLAIN": str(made / "p.csv"), "OLD": str(made / "old.csv")}
    found, _, err = call(*(place.get(each, each) for each in arguments))
    assert (found, said in " ".join(err.split())) == (code, True), err


def test_values_issued_after_their_time_build_nothing(made: Path, call: Any) -> None:
    ISSUED.assign(issued_at=ISSUED["ds"]).drop_duplicates("ds").to_csv(made / "measured.csv", index=False)
    known = ["--known", "temperature", "--vintages", str(made / "measured.csv")]
    code, _, err = call("index", "build", "FILE", *WINDOW, *known)
    assert code == 3
    assert "no value of 'temperature' was issued by the origin of any training window" in err


def test_from_python() -> None:
    history = HISTORY.head(NUM_STEPS)
    model = Forecaster(horizon=HORIZON, lookback=LOOKBACK, split="80/20/0", known=["temperature"], **SETTINGS)
    model.fit(history, vintages=ISSUED)
    found = model.predict()
    assert np.abs(found["yhat"].to_numpy() - HISTORY["demand"].to_numpy()[NUM_STEPS:]).mean() < 10
    pd.testing.assert_frame_equal(model.predict(history, vintages=ISSUED), found)
    pd.testing.assert_frame_equal(model.predict(history.assign(temperature=now()[:NUM_STEPS]), future=ISSUED), found)
    filled = model.make_future(history, vintages=ISSUED)
    np.testing.assert_allclose(filled["temperature"], now()[NUM_STEPS:])
    assert len(model.evaluate(history, part="val", vintages=ISSUED).scores) > 0
    explained = model.explain(history, "demand", HOURS[NUM_STEPS - 1], vintages=ISSUED)
    assert np.isfinite(explained.forecast).all()
    with pytest.raises(IncompatibleError, match="no column 'temperature'"):
        model.predict(history)
