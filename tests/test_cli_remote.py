"""Commands with the address of a service in place of a reference: the same documents, and one line for each mistake."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from cli_fixtures import make, write_settings
from explore_fixtures import AT
from matplotlib.backends.backend_agg import FigureCanvasAgg
from service_fixtures import served

from cli.explorer.state import Side
from cli.explorer.subject import open_subject, start_state
from cli.main import run
from cli.options import Indexes
from cli.pictures.look import WIDTHS, figure, headline
from forecaster.runs.records import seal, unseal
from forecaster.runs.run import CONFIG
from memory_index import remote
from memory_index.documents import jsonable
from memory_index.tables.columns import ReadOptions

TOKEN = "a-token-of-the-tests"
WINDOW = ["--series", "north", "--at", AT]
OF_THE_PLACE = ("ref", "run", "seconds", "neighbour_seconds", "peak_rss_mb", "path", "aliases")
NO_INDEXES = ["--indexes-dir", "not-there"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return make(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="module")
def address(made, token):
    """Of the version that the run was trained against."""
    with served(made.indexes, ["m"], token_file=Path(token[1])) as service:
        yield f"{service}/m@1"


@pytest.fixture(scope="module")
def token(tmp_path_factory):
    """What an address needs beside itself."""
    path = tmp_path_factory.mktemp("token") / "token"
    path.write_text(f"{TOKEN}\n")
    return ["--token-file", str(path)]


@pytest.fixture
def call(capfd):
    """Run a command: (exit code, stdout, stderr)."""

    def run_command(*arguments: object):
        capfd.readouterr()
        code = run([str(each) for each in arguments])
        return code, *capfd.readouterr()

    return run_command


@pytest.fixture
def document(call):
    """Run a command that succeeds: its document."""

    def run_command(*arguments: object):
        code, out, err = call(*arguments, "--json")
        assert code == 0, out + err
        return json.loads(out)

    return run_command


@pytest.fixture(scope="module")
def trained(made, address, token, tmp_path_factory):
    """A run like the one that there is, trained against the address."""
    out = tmp_path_factory.mktemp("trained") / "run"
    arguments = ["train", str(made.file), "--index", address, "--config", str(made.toml), "--device", "cpu"]
    assert run([*arguments, "--out", str(out), *token, *NO_INDEXES]) == 0
    return out


def but_the_place(document: dict) -> dict:
    return {name: value for name, value in document.items() if name not in OF_THE_PLACE}


# The same as with a version of this machine


COMMANDS = {
    "evaluate": ["evaluate", "FILE", "--index", "REF", "--baselines"],
    "evaluate a run": ["evaluate", "FILE", "--run", "RUN", "--index", "REF", "--device", "cpu"],
    "forecast": ["forecast", "FILE", "--index", "REF"],
    "forecast by a run": ["forecast", "FILE", "--run", "RUN", "--index", "REF", "--device", "cpu"],
    "explain": ["explain", "FILE", "--run", "RUN", "--index", "REF", "--device", "cpu", *WINDOW],
    "neighbours": ["index", "neighbours", "REF", "FILE", *WINDOW, "--min-gap", "3", "-k", "4"],
    "show": ["index", "show", "REF"],
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_document_is_that_of_the_version_in_its_folder(made, address, token, document, name):
    words = {"FILE": made.file, "RUN": made.run}
    command = [words.get(each, each) for each in COMMANDS[name]]
    local = document(*(("m@1" if each == "REF" else each) for each in command), "--indexes-dir", made.indexes)
    remote = document(*((address if each == "REF" else each) for each in command), *token, *NO_INDEXES)
    assert (local["ref"], remote["ref"]) == ("m@1", address)
    assert but_the_place(remote) == but_the_place(local)


def test_a_training_is_the_same_bit_for_bit(made, address, trained):
    for name in ("model.safetensors", "intervals.safetensors"):
        assert (trained / name).read_bytes() == (made.run / name).read_bytes()
    ours, theirs = (json.loads((folder / "config.json").read_text()) for folder in (trained, made.run))
    assert ours["index"].pop("ref") == address
    assert theirs["index"].pop("ref") == "m@1"
    assert ours["index"] == theirs["index"]
    card = (trained / "card.md").read_text()
    assert f"it asks {address}, or the same version where `--index` says" in card
    assert "--update-index" not in card


def test_a_run_goes_where_it_was_trained_or_where_it_is_sent(made, address, token, trained, document):
    evaluate = ["evaluate", made.file, "--device", "cpu", "--run"]
    expected = but_the_place(document(*evaluate, made.run, "--indexes-dir", made.indexes))
    there = document(*evaluate, trained, *token, *NO_INDEXES)
    here = document(*evaluate, trained, "--index", "m@1", "--indexes-dir", made.indexes)
    assert (there["ref"], here["ref"]) == (address, "m@1")
    assert but_the_place(there) == but_the_place(here) == expected


def test_a_run_that_was_trained_through_the_old_service_is_sent_to_an_index(made, address, token, call, tmp_path):
    config = Path(shutil.copytree(made.run, tmp_path / "old")) / CONFIG
    content = unseal(config)
    config.write_bytes(seal({**content, "index": {**content["index"], "ref": "grpc://127.0.0.1:1/m@1"}}))
    evaluate = ["evaluate", made.file, "--device", "cpu", "--run", tmp_path / "old"]
    code, _, err = call(*evaluate, *NO_INDEXES)
    assert code == 2
    assert "a service speaks HTTP by now" in err
    assert "--index REF names the run's version where it lies now" in err
    for words in (["--index", "m@1", "--indexes-dir", made.indexes], ["--index", address, *token, *NO_INDEXES]):
        assert call(*evaluate, *words)[0] == 0


def test_what_to_do_next_names_the_token(made, address, token, call, tmp_path):
    arguments = ["train", made.file, "--index", address, "--config", made.toml, "--device", "cpu", "--epochs", "1"]
    code, _, err = call(*arguments, "--out", tmp_path / "run", *token, *NO_INDEXES)
    assert code == 0
    command = f"cli evaluate {made.file} --run {tmp_path / 'run'} --indexes-dir not-there {' '.join(token)}"
    assert f"next: {command}" in err


def test_an_ablation_asks_the_address(made, address, token, document, tmp_path):
    toml = write_settings(tmp_path / "small.toml", max_steps=1)
    arguments = ["ablate", made.file, "--index", address, "--config", toml, "--groups", "matrix", "--seeds", "0"]
    found = document(*arguments, "--out", tmp_path / "out", "--device", "cpu", *token, *NO_INDEXES)
    scores = {row["arm"]: row["mse"] for row in found["rows"]}
    alone = document("evaluate", made.file, "--index", "m@1", "--memory-k", "5", "--indexes-dir", made.indexes)
    assert found["ref"] == address
    assert scores["memory alone"] == alone["mse"]


def test_the_page_shows_a_version_here_beside_one_at_an_address(made, address, token):
    found = Indexes(folder=made.indexes, token_file=Path(token[1]))
    subject = open_subject(made.file, [address, "m@1"], None, found, ReadOptions(), device="cpu", llm=None)
    assert list(subject.versions) == [address, "m@1"]
    state = start_state(subject, "north", AT)
    ours, theirs = (jsonable(subject.answer(state, Side(ref=ref)).found.neighbours) for ref in subject.versions)
    assert ours
    assert ours == theirs


# Mistakes


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["index", "show", "ADDRESS"], 8, "none was given"),
        (["index", "show", "ADDRESS", "--token-file", "WRONG"], 8, "refuses this token"),
        (["index", "show", "ADDRESS", "--token-file", "not-there"], 4, "there is no file not-there"),
        (["index", "show", "ADDRESS", "TOKEN", "--plot", "m.png"], 2, "to see how it is used, name the version"),
        (["index", "show", "SERVICE/other@1", "TOKEN"], 4, "'other@1' is not served here"),
        (["index", "show", "m@1", "TOKEN"], 2, "no token or certificate is needed"),
        (["index", "verify", "ADDRESS"], 2, "to check it, name the version in its folder"),
        (["index", "diff", "m@1", "ADDRESS"], 2, "to compare it"),
        (["index", "export", "ADDRESS", "m.zip"], 2, "to export it"),
        (["index", "append", "ADDRESS", "FILE"], 2, "to append to it"),
        (["index", "compact", "ADDRESS"], 2, "to merge its segments"),
        (["index", "publish", "ADDRESS", "--to", "milvus:m.db"], 2, "to publish it"),
        (["index", "remove", "ADDRESS"], 2, "to remove it"),
        (["index", "alias", "ADDRESS", "1", "prod"], 2, "to give it an alias"),
        (["index", "unalias", "ADDRESS", "prod"], 2, "to forget an alias"),
        (["forecast", "FILE", "--index", "ADDRESS", "TOKEN", "--update-index"], 2, "to append to it"),
        (["forecast", "FILE", "--run", "TRAINED", "TOKEN", "--update-index"], 2, "to append to it"),
        (
            ["forecast", "FILE", "--run", "TRAINED"],
            8,
            "own file; --index REF names the run's version",
        ),
        (
            ["forecast", "FILE", "--run", "GONE"],
            8,
            "is the address right? --index REF names the run's",
        ),
        (["train", "FILE", "--index", "ftp://127.0.0.1:1/m", "--out", "run"], 2, "http://HOST:PORT/NAME"),
        (["train", "FILE", "--index", "grpc://127.0.0.1:1/m", "--out", "run"], 2, "it is http://127.0.0.1:1/m"),
        (["index", "show", "grpc+tls://127.0.0.1:1/m"], 2, "it is https://127.0.0.1:1/m"),
        (["evaluate", "FILE", "--index", "http://127.0.0.1:99999/m"], 2, "is not the address of a version"),
        (["evaluate", "FILE", "--index", "http://127.0.0.1:1/m"], 8, "http://127.0.0.1:1 cannot be reached"),
        (["evaluate", "FILE", "--index", "http://:1/m"], 2, "is not the address of a version"),
        (["evaluate", "FILE", "--index", "ADDRESS", "TOKEN", "--tls-ca", "FILE"], 2, "holds no certificate"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else None,
)
def test_every_mistake_is_one_line(made, address, token, trained, call, tmp_path, monkeypatch, words, code, says):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(remote, "OPEN_S", 0.3)
    (tmp_path / "wrong").write_text("another-token-of-the-tests")
    config = Path(shutil.copytree(trained, tmp_path / "gone")) / CONFIG
    content = unseal(config)
    config.write_bytes(seal({**content, "index": {**content["index"], "ref": "http://127.0.0.1:1/m@1"}}))
    stand_for = {"FILE": str(made.file), "ADDRESS": address, "TRAINED": str(trained), "WRONG": "wrong", "GONE": "gone"}
    words = [each.replace("SERVICE", address.rpartition("/")[0]) for each in words]
    arguments = [part for each in words for part in (token if each == "TOKEN" else [stand_for.get(each, each)])]
    found, out, err = call(*arguments, "--indexes-dir", made.indexes)
    assert (found, out) == (code, "")
    assert len(err.strip().splitlines()) == 1, err
    assert says in err
    assert TOKEN not in err


def test_training_needs_what_the_service_answers(made, call, tmp_path):
    """Only with one fold it asks the service under `disjoint`, which is refused before there is a folder."""
    with served(made.indexes, ["m"], causal_only=True) as service:
        train = ["train", made.file, "--index", f"{service}/m", "--config", made.toml, "--device", "cpu", *NO_INDEXES]
        train += ["--out", tmp_path / "run", "--set", "max_steps=1"]
        ablate = ["ablate", *train[1:-4], "--out", tmp_path / "out", "--groups", "matrix", "--seeds", "0"]
        for words in (train, train, ablate):
            code, _, err = call(*words, "--set", "num_folds=1")
            assert code == 6, err
            assert "with num_folds 1 training windows ask it under 'disjoint'" in err
            assert list(tmp_path.iterdir()) == []
        code, _, err = call(*train)
        assert code == 0, err


# What it looks like


@pytest.mark.parametrize("shape", WIDTHS)
def test_a_long_address_fits_into_the_title_of_a_picture(shape):
    drawn = figure(3, shape)
    ref = "https://memory-of-the-grid.forecasting.internal.example.org:8815/grid-load-2024@12"
    headline(drawn, f"a-series at 2024-01-19 12:00: what {ref} remembers of it", shape)
    FigureCanvasAgg(drawn).draw()
    [title] = drawn.texts
    box = title.get_window_extent()
    assert box.x0 >= 0
    assert box.x1 <= drawn.bbox.width
    assert title.get_text().replace("\n", "").count("grid-load") == 1
