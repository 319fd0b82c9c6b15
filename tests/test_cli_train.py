"""`cli train`: what it prints and writes, one line for each mistake, and going on after it was stopped."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from cli_fixtures import HORIZON, LOOKBACK, frame, make, write_settings

import forecaster.training.fit
from cli.main import app, run
from cli.options import SETTINGS
from cli.reports import training_progress as training_shown
from forecaster.config import Config
from forecaster.language_models.tiny import TinyBackbone
from forecaster.runs.run import open_run


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return make(tmp_path_factory.getbasetemp())


@pytest.fixture
def call(made, capfd):
    """Run a command: (exit code, stdout, stderr)."""

    def run_command(*arguments: str | Path):
        capfd.readouterr()
        code = run([str(each) for each in arguments])
        return code, *capfd.readouterr()

    return run_command


def weights_of(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def one_line(err: str) -> str:
    assert len(err.strip().splitlines()) == 1, err
    return err


# What is said


def test_json_has_the_promised_keys(made, call, tmp_path):
    code, out, _ = call(*made.train, "--out", tmp_path / "one", "--epochs", "1", "--json")
    document = json.loads(out)
    assert code == 0
    assert next(iter(document)) == "schema"
    assert {"run", "ref", "epochs", "steps", "best_val_mse", "seconds", "peak_rss_mb"} <= set(document)
    assert (document["run"], document["ref"], document["epochs"]) == (str(tmp_path / "one"), "m@1", 1)
    assert document["best_val_mse"] == open_run(tmp_path / "one").metrics["best_val_mse"]


def test_a_training_says_how_it_goes_and_what_is_next(made, call, tmp_path):
    code, out, err = call(*made.train, "--out", tmp_path / "one")
    assert code == 0
    for word in ("278 training, 74 validation", "best validation MSE", "15 in 3 epochs", "m@1"):
        assert word in out
    assert "epoch 2 of 3, step 6 of 15: loss 0." in err
    assert "left at most" in err
    following = next(line for line in err.splitlines() if line.startswith("next: cli evaluate"))
    assert run(following.removeprefix("next: cli ").split()) == 0


def test_lines_about_a_training_are_sparse_but_not_absent(monkeypatch):
    class Progress:
        epoch, loss, best_val_mse, step, total_steps, eta_s = 0, 0.5, 0.25, 1, 10, 4000.0

    told: list[str] = []
    monkeypatch.setattr(training_shown, "note", told.append)
    shown = training_shown.TrainingShown(lambda done, total, doing="": None, num_epochs=3)
    shown.step(Progress)
    assert told == []
    monkeypatch.setattr(training_shown, "SECONDS", 0)
    shown.step(Progress)
    assert told == ["epoch 1 of 3, step 1 of 10: loss 0.5000, best validation MSE 0.2500, 1 h 07 min left at most"]


def test_later_settings_win(made, call, tmp_path):
    toml = write_settings(tmp_path / "s.toml", n_scales=2, top_k=2, max_steps=1, memory_k=7)
    options = ["--config", toml, "--n-scales", "3", "--set", "top_k=1", "--preset", "8gb", "--no-llm", "--set"]
    code, _, err = call(*made.train, *options, "llm_layers=none", "--out", tmp_path / "one")
    assert code == 0, err
    settings = open_run(tmp_path / "one").config.to_dict()
    chosen = {name: settings[name] for name in ("n_scales", "top_k", "memory_k", "lookback", "use_llm", "d_model")}
    assert chosen == {"n_scales": 3, "top_k": 1, "memory_k": 7, "lookback": LOOKBACK, "use_llm": False, "d_model": 8}


def test_help_states_the_defaults_that_are():
    settings = Config.from_dict({"lookback": 2 * LOOKBACK, "horizon": HORIZON}).to_dict()
    options = {option.name: option for option in typer.main.get_command(app).commands["train"].params}
    assert set(SETTINGS) <= set(settings) & set(options)
    compared = 0
    for name, value in settings.items():
        stated = getattr(options.get(name), "show_default", None)
        if isinstance(stated, str) and value is not None and name not in ("lookback", "horizon"):
            assert stated in (str(value), f"{value:g}" if isinstance(value, float) else ""), name
            compared += 1
    assert compared >= 10


def test_damaged_neighbours_are_told_and_found_again(made, call, tmp_path):
    neighbours = tmp_path / "neighbours"
    shutil.copytree(made.run.parent / ".neighbours", neighbours)
    for path in neighbours.glob("*/row.npy"):
        path.chmod(0o644)
        path.write_bytes(path.read_bytes()[:-1] + b"x")
    code, _, err = call(*made.train, "--out", tmp_path / "one", "--neighbours-dir", neighbours)
    assert code == 0
    assert err.count("are damaged (row.npy") == 2
    assert weights_of(tmp_path / "one") == weights_of(made.run)


# Mistakes: the options, the exit code, words of the one line

MISTAKES = {
    "unknown setting": (["--set", "learning_rat=1"], 2, "'learning_rate'"),
    "no value": (["--set", "top_k"], 2, "KEY=VALUE"),
    "wrong type": (["--set", "top_k=many"], 2, "top_k"),
    "unknown preset": (["--preset", "7gb"], 2, "6gb"),
    "unknown policy": (["--policy", "future"], 2, "causal or disjoint"),
    "unknown device": (["--device", "tpu"], 2, "cpu"),
    "no such settings": (["--config", "nowhere.toml"], 4, "nowhere.toml"),
    "longer horizon": (["--horizon", str(HORIZON + 1)], 6, f"at most {HORIZON}"),
    "longer lookback": (["--lookback", str(LOOKBACK + 1)], 6, f"at most {LOOKBACK}"),
    "too many scales": (["--lookback", "16", "--n-scales", "4"], 2, "lower n_scales"),
    "model that is not here": (["--llm", "gpt2"], 4, "hf download"),
    "folder that is not there": (["--llm", "./models/mine"], 4, "no folder"),
    "folder that is no model": (["--llm", "."], 4, "config.json"),
    "too many layers": (["--llm-layers", "9"], 2, "1 to 2"),
    "unknown index": (["--index", "n"], 4, "there is only m"),
    "unknown version": (["--index", "m@7"], 4, "m"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line_and_leaves_no_run(made, call, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    options, expected, words = MISTAKES[name]
    code, out, err = call(*made.train, *options, "--out", "runs/new")
    assert (code, out) == (expected, "")
    assert words in one_line(err)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("text", "words"),
    [("learning_rat = 1", "'learning_rate'"), ("top_k = 'x'", "top_k"), ("top_k 1", "TOML"), ("[train]", "sections")],
)
def test_a_mistake_in_a_file_of_settings_names_the_file(made, call, tmp_path, text, words):
    (tmp_path / "mine.toml").write_text(text + "\n")
    code, _, err = call(*made.train, "--config", tmp_path / "mine.toml", "--out", tmp_path / "new")
    assert code == 2
    assert "mine.toml" in one_line(err)
    assert words in err


def test_an_error_is_a_document_with_json(made, call, tmp_path):
    code, out, err = call(*made.train, "--horizon", "99", "--out", tmp_path / "new", "--json")
    error = json.loads(out)["error"]
    assert (code, error["code"], err) == (6, 6, "")
    assert "horizon 99" in error["message"]


def test_the_cached_layout_needs_a_causal_model(made, call, tmp_path, monkeypatch):
    monkeypatch.setattr(TinyBackbone, "is_causal", False)
    code, _, err = call(*made.train, "--prompt-layout", "cached", "--out", tmp_path / "new")
    assert code == 2
    assert "prompt_layout" in one_line(err)
    assert not (tmp_path / "new").exists()


def test_other_data_than_the_index_was_built_on(made, call, tmp_path):
    changed = frame()
    changed.loc[50, "north"] = 29.9
    changed.to_csv(tmp_path / "changed.csv", index=False)
    frame()[["date", "north"]].to_csv(tmp_path / "fewer.csv", index=False)
    for file, words in (("changed.csv", "2024-01-03T02:00:00 is 29.9, but m@1"), ("fewer.csv", "no series 'south'")):
        code, _, err = call("train", tmp_path / file, *made.train[2:], "--out", tmp_path / "new")
        assert code == 6
        assert words in one_line(err)
    assert not (tmp_path / "new").exists()


def test_a_version_without_validation(made, call, tmp_path):
    build = ["index", "build", made.file, "--name", "all", "--lookback", LOOKBACK, "--horizon", HORIZON]
    assert call(*build, "--until", "end", "--indexes-dir", tmp_path)[0] == 0
    code, _, err = call(*made.train, "--index", "all", "--indexes-dir", tmp_path, "--out", tmp_path / "new")
    assert code == 0
    assert "the last training windows, held out, stand in for it" in err


def test_out_that_holds_something_else(made, call, tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "one.md").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for out, expected, words in (
        (made.run, 2, "--resume"),
        (tmp_path / "thesis", 2, "one.md"),
        (tmp_path / "file", 7, "not a directory"),
    ):
        code, _, err = call(*made.train, "--out", out)
        assert code == expected
        assert words in one_line(err)


def test_out_of_memory_names_the_setting_to_lower(made, call, tmp_path, monkeypatch):
    def too_much(*_: object) -> None:
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:118] . DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(forecaster.training.fit, "batch_loss", too_much)
    code, _, err = call(*made.train, "--out", tmp_path / "one")
    assert code == 7
    assert "batch_size 64" in one_line(err)
    assert "lower batch_size" in err


# Going on


def interrupted_at(step: int, monkeypatch) -> None:
    """Let Ctrl-C be pressed during a step of the next training."""
    real, calls = forecaster.training.fit.batch_loss, []

    def pressing(model, *arguments):
        if model.training:
            calls.append(1)
            if len(calls) == step:
                os.kill(os.getpid(), signal.SIGINT)
        return real(model, *arguments)

    monkeypatch.setattr(forecaster.training.fit, "batch_loss", pressing)


def test_interrupted_it_says_how_to_go_on_and_nothing_is_lost(made, call, tmp_path, monkeypatch):
    neighbours = ["--neighbours-dir", tmp_path / "neighbours"]
    with monkeypatch.context() as patched:
        interrupted_at(7, patched)
        code, out, err = call(*made.train, "--out", tmp_path / "one", *neighbours)
    assert (code, out) == (130, "")
    said = err.strip().splitlines()[-1]
    assert said.startswith("error: interrupted (go on with: cli train ")

    for command in ("forecast", "evaluate"):  # an unfinished run is not used
        code, _, err = call(command, made.file, "--run", tmp_path / "one", "--indexes-dir", made.indexes)
        assert code == 4
        assert "--resume" in one_line(err)

    shutil.rmtree(tmp_path / "neighbours")  # they are found again
    again = said.removeprefix("error: interrupted (go on with: cli ").removesuffix(")").split()
    code, out, err = call(*again)
    assert code == 0, err
    assert "15 in 3 epochs" in out
    assert weights_of(tmp_path / "one") == weights_of(made.run)


def test_ended_while_neighbours_are_found_it_leaves_nothing_half_made(made, call, tmp_path):
    """SIGTERM, as a scheduler sends it, outside the steps of a training."""
    program = (
        "import os, signal, forecaster.retrieval.neighbour_cache as cache, cli.main as m\n"
        "cache._make = lambda *_, **__: os.kill(os.getpid(), signal.SIGTERM)\n"
        "m.main()"
    )
    arguments = [*made.train, "--out", str(tmp_path / "one"), "--neighbours-dir", str(tmp_path / "neighbours")]
    ended = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (130, "")
    said = one_line(ended.stderr)
    assert said.startswith("error: interrupted (go on with: cli train ")
    assert [path for path in (tmp_path / "neighbours").iterdir() if path.is_dir()] == []
    again = said.strip().removeprefix("error: interrupted (go on with: cli ").removesuffix(")").split()
    assert call(*again)[0] == 0


def test_a_run_that_has_ended_says_so_in_one_line(made, call):
    before = {path: path.stat().st_mtime_ns for path in made.run.rglob("*") if path.name != ".lock"}
    for options in ((), ("--save-steps", "7"), ("--save-total-limit", "1")):
        code, out, err = call(*resume_of(made), *options)
        assert (code, out) == (0, "")
        assert "trained to its end" in one_line(err)
    code, out, err = call(*resume_of(made), "--json")
    assert (code, err) == (0, "")
    assert json.loads(out)["steps"] == 15
    assert {path: path.stat().st_mtime_ns for path in made.run.rglob("*") if path.name != ".lock"} == before


def resume_of(made) -> list[str]:
    """Without any setting: they come from the run."""
    start = ["train", str(made.file), "--index", "m@1", "--indexes-dir", str(made.indexes), "--device", "cpu"]
    return [*start, "--out", str(made.run), "--resume"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--batch-size", "7"], "batch_size 64, not 7"),
        (["--set", "d_model=16"], "d_model 8, not 16"),
        (["--no-llm"], "use_llm True, not False"),
        (["--epochs", "9"], "epochs 3, not 9"),
    ],
)
def test_a_run_does_not_go_on_with_another_setting(made, call, options, words):
    code, _, err = call(*resume_of(made), *options)
    assert code == 6
    assert words in one_line(err)


def test_a_run_does_not_go_on_with_another_version(made, call, tmp_path):
    shutil.copytree(made.indexes, tmp_path / "indexes")
    assert call("index", "append", "m@1", made.newer, "--indexes-dir", tmp_path / "indexes")[0] == 0
    code, _, err = call(*resume_of(made), "--index", "m@2", "--indexes-dir", tmp_path / "indexes")
    assert code == 6
    assert "another version of the index" in one_line(err)


def test_what_was_lost_of_an_ended_run_is_made_again(made, call, tmp_path):
    folder = tmp_path / "one"
    shutil.copytree(made.run, folder)
    intervals = (folder / "intervals.safetensors").read_bytes()
    (folder / "intervals.safetensors").unlink()
    (folder / "model.safetensors").write_bytes(b"torn")
    neighbours = ["--neighbours-dir", made.run.parent / ".neighbours"]
    assert call(*resume_of(dataclasses.replace(made, run=folder)), *neighbours)[0] == 0
    assert weights_of(folder) == weights_of(made.run)
    assert (folder / "intervals.safetensors").read_bytes() == intervals


def test_the_card_has_times_without_nanoseconds_and_commands(made):
    card = (made.run / "card.md").read_text()
    assert "training until 2024-01-14T23:00:00, validation until 2024-01-16T23:00:00" in card
    assert "cli forecast load.csv --run RUN" in card
    assert "### training\n\n- epochs: 3\n- steps: 15\n" in card
    assert ".000000000" not in card
    assert str(made.folder) not in card


def plain_settings(tmp_path):
    """Settings of everything but a network."""
    path = tmp_path / "plain.toml"
    path.write_text("memory_k = 5\nnum_folds = 2\ntrain_stride = 2\n")
    return path


def test_without_a_network_nothing_is_trained_in_steps_and_it_says_so(made, call, tmp_path):
    plain = ["train", made.file, "--index", "m@1", "--indexes-dir", made.indexes, "--config", plain_settings(tmp_path)]
    code, out, err = call(*plain, "--out", tmp_path / "one", "--epochs", "2")
    assert code == 0, err
    assert "epochs had no effect: without --network nothing is trained in steps" in err
    assert "none: linear map and value gate are fitted in closed form" in out
    card = (tmp_path / "one" / "card.md").read_text()
    assert "linear map and value gate fitted in closed form" in card
    assert "n_scales" not in card
    assert "- memory_k: 5" in card
    code, out, _ = call(*plain, "--out", tmp_path / "two", "--json")
    told = json.loads(out)
    assert (told["steps"], told["stopped"]) == (0, "closed form")
    assert weights_of(tmp_path / "one") == weights_of(tmp_path / "two")
    code, _, err = call(*plain, "--out", tmp_path / "two", "--resume")
    assert code == 0
    assert "trained to its end" in err


def test_a_setting_of_the_network_asks_for_it_and_that_is_told(made, call, tmp_path):
    plain = ["train", made.file, "--index", "m@1", "--indexes-dir", made.indexes, "--config", plain_settings(tmp_path)]
    brief = ["--set", "max_steps=1", "--device", "cpu"]
    code, _, err = call(*plain, *brief, "--no-llm", "--out", tmp_path / "one")
    assert code == 0, err
    assert "a network was trained too, because use_llm is stated" in err
    code, _, err = call(*plain, *brief, "--network", "--no-llm", "--out", tmp_path / "two")
    assert code == 0, err
    assert "a network" not in err
    assert weights_of(tmp_path / "one") == weights_of(tmp_path / "two")
