"""The record of accuracy: peers are scored on our windows, in our units, by our code; its tables say what is there."""

from __future__ import annotations

import json

import numpy as np
from forecaster_fixtures import SPLIT, TABLE
from memory_fixtures import WINDOW, Store, build, open_version

from benchmarks.accuracy import peers, record
from benchmarks.accuracy.arms import DEFAULT, GROWN, Setting
from benchmarks.data_sets import DataSet, present
from memory_index import evaluate


def test_a_peer_is_scored_as_our_own_forecasts_are(tmp_path, monkeypatch):
    memory = open_version(build(TABLE, Store(tmp_path), "m", window=WINDOW, split=SPLIT))
    expected = evaluate(memory, TABLE, "test").baselines["last_value"]
    monkeypatch.setattr(peers, "read_table", lambda path: TABLE)
    setting = Setting(DataSet("Toy", tmp_path, "60/20/20"), WINDOW.horizon, "NLinear", 0)
    values, ends = peers.standardised(setting)
    origins = np.arange(ends[1] - 1, ends[2] - WINDOW.horizon)
    found = peers.score(np.repeat(values[origins][..., None], WINDOW.horizon, axis=2), values, ends)
    np.testing.assert_allclose([found["mse"], found["mae"]], [expected.mse, expected.mae], rtol=1e-4)
    assert found["num_windows"] == len(origins)


def result(arm: str, mse: float, *, horizon: int = 96, seed: int = 0, **more: object) -> dict[str, object]:
    where = {"data_set": "ETTh1", "horizon": horizon, "arm": arm, "seed": seed, "seconds": 10 * mse}
    return where | {"mse": mse, "mae": mse + 0.03} | more


RESULTS = [
    result(DEFAULT, 0.35, beside={"memory only": {"mse": 0.36, "mae": 0.39}}),
    result("full", 0.35),
    result("full", 0.37, seed=1),
    result("PatchTST", 0.34),
    result(GROWN, 0.345, beside={"memory only": {"mse": 0.355, "mae": 0.385}}),
]


def test_a_table_has_means_over_seeds_and_tells_peers_and_papers_apart(tmp_path):
    text = "\n".join(record.markdown(RESULTS))
    assert "| full | .3600/.3900 | 2 |" in text
    assert f"| {DEFAULT} | **.3500/.3800** | none |" in text  # reaches the goal, so it is bold
    assert "| memory only | .3600/.3900 | none |" in text
    assert "| memory only, growing memory | .3550/.3850 | none |" in text
    assert "| PatchTST (peer) | **.3400/.3700** | 1 |" in text
    assert "| *Time-LLM, published (Jin et al., ICLR 2024)* | .362/.392 | |" in text
    assert "mean" not in text.split("| seeds |")[0]  # of four horizons, which are not there
    assert "| PatchTST | 3 | 0 |  |" in "\n".join(record.costs(RESULTS))
    record.write_json(RESULTS, tmp_path / "all.json")
    assert json.loads((tmp_path / "all.json").read_text())["results"] == RESULTS


def test_the_mean_of_four_horizons_is_of_arms_that_have_them_all():
    whole = [result(DEFAULT, 0.3 + 0.02 * n, horizon=h, beside={}) for n, h in enumerate(record.HORIZONS)]
    text = "\n".join(record.markdown([*whole, result("DLinear", 0.4)]))
    assert f"| {DEFAULT} | **.3000/.3300** | .3200/.3500 | .3400/.3700 | .3600/.3900 | **.3300/.3600** | none |" in text
    assert "| DLinear (peer) | .4000/.4300 |  |  |  |  | 1 |" in text


def test_the_picture_has_every_arm(tmp_path):
    record.draw(RESULTS, tmp_path / "accuracy.svg")
    drawn = (tmp_path / "accuracy.svg").read_text()
    assert all(f"<!-- {arm} -->" in drawn for arm in (DEFAULT, GROWN, "full", "memory only", "PatchTST"))


def test_sets_of_the_catalogue_take_part_whose_file_is_there(tmp_path, capsys):
    (tmp_path / "deep").mkdir()
    for name in ("ETTh2.csv", "weather.csv"):
        (tmp_path / "deep" / name).touch()
    found = present(tmp_path, ("ETTh1", "ETTh2", "Weather"))
    assert [(each.name, each.split, each.index) for each in found] == [
        ("ETTh2", "ett-hourly", "etth2"),
        ("Weather", "70/10/20", "weather"),
    ]
    assert "skipped: no ETTh1.csv" in capsys.readouterr().err
