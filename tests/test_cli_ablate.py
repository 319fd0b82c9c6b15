"""`cli ablate`: the table in its three forms, arms that share their runs, mistakes, and going on."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path

import pytest
from cli_fixtures import frame, make, write_settings

import forecaster.ablate
import forecaster.training.fit
import forecaster.training.train
from cli.main import run

# One arm of each kind: the rest differ from these in their settings only.
MATRIX = ["baseline (neither)", "+ TAPR", "+ GRA-M", "full (TAPR + GRA-M)"]
UNTRAINED = ["memory alone", "linear alone", "seasonal naive", "last value"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return make(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="module")
def ablated(made, tmp_path_factory):
    """Arguments of an ablation of small models, and the folder in which it was done."""
    folder = tmp_path_factory.mktemp("ablation")
    toml = write_settings(folder / "small.toml", max_steps=2, llm_layers=2)
    arguments = ["ablate", str(made.file), "--index", "m@1", "--indexes-dir", str(made.indexes), "--device", "cpu"]
    arguments += ["--config", str(toml), "--seeds", "0", "--set", "llm_layers=none"]
    arguments += ["--neighbours-dir", str(made.run.parent / ".neighbours")]
    assert run([*arguments, "--groups", "matrix,controls", "--out", str(folder / "out")]) == 0
    return arguments, folder / "out"


def rows_in(folder: Path) -> list[dict]:
    return json.loads((folder / "ablation.json").read_text())["rows"]


@pytest.fixture(scope="module")
def once(ablated):
    """The rows of that ablation, as they were at first."""
    return rows_in(ablated[1])


def strip(row: dict, *names: str) -> dict:
    return {name: value for name, value in row.items() if name not in names}


@pytest.fixture
def call(capfd):
    """Run a command: (exit code, stdout, stderr)."""

    def run_command(*arguments: object):
        capfd.readouterr()
        code = run([str(each) for each in arguments])
        return code, *capfd.readouterr()

    return run_command


def test_the_table_is_whole_in_every_form(ablated, once):
    _, out = ablated
    document = json.loads((out / "ablation.json").read_text())
    assert (document["schema"], document["ref"], document["split"], document["seeds"]) == ("ablate", "m@1", "test", [0])
    by_group: dict[str, list[str]] = {}
    assert document["rows"] == once
    for row in once:
        by_group.setdefault(row["group"], []).append(row["arm"])
    assert list(by_group) == ["matrix", "controls", "untrained"]
    assert (by_group["matrix"], by_group["untrained"]) == (MATRIX, UNTRAINED)
    text = (out / "ablation.md").read_text()
    for row in document["rows"]:
        assert f"| {row['arm']}" in text
        assert f" {row['mse']:.4f} |" in text
    for heading in ("## matrix", "## controls", "## nothing trained"):
        assert heading in text
    assert (out / "ablation.png").read_bytes().startswith(b"\x89PNG")


def test_rows_say_what_an_arm_is_worth(once):
    rows = {row["arm"]: row for row in once}
    full = rows["full (TAPR + GRA-M)"]
    for row in rows.values():
        assert row["against_full"] == pytest.approx(row["mse"] - full["mse"], abs=1e-12)
    assert full["gate"] is not None
    assert full["trend_accuracy"] is not None
    assert rows["+ TAPR"]["gate"] is None
    assert rows["+ GRA-M"]["trend_accuracy"] is None
    assert all(0 <= row["direction_accuracy"] <= 1 for row in rows.values())  # every forecast has a direction
    assert rows["last value"]["num_seeds"] is None
    assert {row["mse_deviation"] for row in rows.values()} == {None}, "a single seed deviates from nothing"


def test_arms_of_the_same_settings_are_trained_once_and_say_so(ablated, once):
    out, rows = ablated[1], {row["arm"]: row for row in once}
    random = rows["random frozen LLM (builtin:tiny), with memory"]
    assert random["same_as"] == "full (TAPR + GRA-M)"
    assert random["mse"] == rows["full (TAPR + GRA-M)"]["mse"]
    assert rows["LLM, without memory"]["same_as"] == "+ TAPR"
    assert "random frozen LLM (builtin:tiny), with memory [= full (TAPR + GRA-M)]" in (out / "ablation.md").read_text()
    folders = {path.name for path in out.iterdir() if path.is_dir()}
    assert len(folders) == sum(row["same_as"] is None and row["num_seeds"] is not None for row in rows.values()) == 7


def test_what_is_done_is_not_done_again(ablated, call, monkeypatch):
    arguments, out = ablated
    before = (out / "ablation.md").read_text()

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("trained or scored again")

    monkeypatch.setattr(forecaster.training.fit, "batch_loss", refuse)
    monkeypatch.setattr(forecaster.ablate, "evaluate", refuse)
    code, shown, err = call(*arguments, "--groups", "matrix,controls", "--out", out)
    assert code == 0, err
    assert (out / "ablation.md").read_text() == before
    for word in ("matrix: what TAPR and GRA-M add", "controls: the model without a part", "nothing trained", "vs full"):
        assert word in shown
    # Fewer groups find the same runs, whichever arm gave its name to the folder.
    code, shown, _ = call(*arguments, "--groups", "controls", "--out", out, "--json")
    assert code == 0
    assert {row["group"] for row in json.loads(shown)["rows"]} == {"matrix", "controls", "untrained"}
    assert [row["arm"] for row in json.loads(shown)["rows"] if row["group"] == "matrix"] == MATRIX[-1:]


def test_another_test_part_is_scored_again(ablated, once, call, tmp_path, monkeypatch):
    """Everything up to the end of validation is the same, so that no run has to be trained again."""
    (_, file, *arguments), out = ablated
    corrected = frame()
    corrected.loc[len(corrected) - 40 :, "north"] += 3
    corrected.to_csv(tmp_path / "corrected.csv", index=False)
    shutil.copytree(out, tmp_path / "out")
    arguments = [*arguments, "--groups", "matrix", "--out", tmp_path / "out"]
    with monkeypatch.context() as patched:
        patched.setattr(forecaster.training.train, "TrainingLoop", None)
        code, _, err = call("ablate", tmp_path / "corrected.csv", *arguments)
        assert code == 0, err
    for row, before in zip(rows_in(tmp_path / "out")[:4], once[:4], strict=True):
        assert row["mse"] > before["mse"]
        assert row["val_mse"] == before["val_mse"]
    code, _, err = call("ablate", file, *arguments)
    assert code == 0, err
    assert rows_in(tmp_path / "out")[:4] == once[:4]


@pytest.mark.parametrize("at", [10, 12])  # the last step of the second arm, and the end of its validation
def test_interrupted_it_goes_on_where_it_stopped(ablated, once, call, tmp_path, monkeypatch, at):
    arguments, _ = ablated
    real, calls = forecaster.training.fit.batch_loss, []

    def pressing(model, *rest):
        calls.append(1)
        if len(calls) == at:
            os.kill(os.getpid(), signal.SIGINT)
        return real(model, *rest)

    with monkeypatch.context() as patched:
        patched.setattr(forecaster.training.fit, "batch_loss", pressing)
        code, _, err = call(*arguments, "--groups", "matrix", "--out", tmp_path / "out")
    assert code == 130
    assert "the same command goes on" in err.strip().splitlines()[-1]
    assert not (tmp_path / "out" / "ablation.md").exists()
    code, _, err = call(*arguments, "--groups", "matrix", "--out", tmp_path / "out")
    assert code == 0, err
    again = rows_in(tmp_path / "out")[:4]
    assert [row["arm"] for row in again] == MATRIX
    assert [strip(row, "seconds") for row in again] == [strip(row, "seconds") for row in once[:4]]


def test_arms_that_cannot_be_are_left_out_and_named(made, ablated, call, tmp_path):
    arguments, _ = ablated
    options = ["--groups", "sensitivity", "--set", "max_steps=1", "--set", "use_llm=false", "--split", "val"]
    code, shown, err = call(*arguments, *options, "--out", tmp_path / "out", "--json")
    assert code == 0, err
    assert "left out: n_scales 4: n_scales 4 is too many" in err
    arms = [row["arm"] for row in json.loads(shown)["rows"] if row["group"] == "sensitivity"]
    assert "n_scales 4" not in arms
    assert {"n_scales 2", "lambda_trend 0.05", "top_k 10", "policy causal"} <= set(arms)


@pytest.mark.parametrize(
    ("options", "expected", "words"),
    [
        (["--groups", "matrix,contrls"], 2, "contrls"),
        (["--seeds", "one"], 2, "--seeds"),
        (["--seeds", "0,0"], 2, "different"),
        (["--seeds", ""], 2, "0,1,2"),
        (["--split", "train"], 2, "val or test"),
        (["--set", "n_scale=3"], 2, "'n_scales'"),
        (["--set", "n_scales=4"], 2, "lower n_scales"),
        (["--set", "horizon=99"], 6, "at most 12"),
        (["--index", "m@9"], 4, "m"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(ablated, call, tmp_path, options, expected, words):
    code, out, err = call(*ablated[0], *options, "--out", tmp_path / "out")
    assert (code, out) == (expected, "")
    assert len(err.strip().splitlines()) == 1, err
    assert words in err
    assert not (tmp_path / "out").exists()


def test_other_settings_than_those_that_were_trained_are_refused(ablated, call):
    arguments, out = ablated
    code, _, err = call(*arguments, "--groups", "matrix", "--set", "top_k=2", "--out", out)
    assert code == 6
    assert "top_k 3, not 2" in err
