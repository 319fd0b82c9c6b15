"""`cli index`: what a user types, what is printed, the documents that scripts read, and one line for every mistake."""

from __future__ import annotations

import errno
import json
import os
import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from cli import main
from cli.commands import index_build
from cli.reports.version_report import describe_bytes
from memory_index import files as bytes_on_disk
from memory_index.encoder import EncoderConfig
from memory_index.errors import UsageError
from memory_index.splits import split_until
from memory_index.tables.columns import ReadOptions
from memory_index.types import KeySpace
from memory_index.versions import factories, key_files
from memory_index.versions.store import Store
from memory_index.versions.version import load
from memory_index.windows import Step

VERSION_KEYS = {
    "schema",
    "ref",
    "name",
    "version",
    "fingerprint",
    "num_rows",
    "num_series",
    "lookback",
    "horizon",
    "views",
    "factory",
    "first_known_at",
    "last_known_at",
    "bytes",
    "recall_at_10",
    "seconds",
    "peak_rss_mb",
}
NUM_STEPS = 400
SHAPE = ("--lookback", "48", "--horizon", "12")


def write_table(path: Path, num_steps: int = NUM_STEPS, *, start: str = "2024-01-01", zone: str | None = None) -> Path:
    """A wide table of two hourly series; a longer one begins with the same values as a shorter one."""
    rows = np.arange(num_steps)
    noise = np.random.default_rng(3).normal(size=(2000, 2))[:num_steps]
    table = pd.DataFrame(
        {
            "date": pd.date_range(start, periods=num_steps, freq="h", tz=zone).map(lambda time: time.isoformat()),
            "north": np.round(20 + 5 * np.sin(rows * 2 * np.pi / 24) + noise[:, 0], 3),
            "south": np.round(10 + 2 * np.cos(rows * 2 * np.pi / 24) + noise[:, 1], 3),
        }
    )
    table.to_csv(path, index=False)
    return path


@pytest.fixture
def cli(tmp_path, capsys):
    """Run `cli index ...` in a folder of indexes of its own -> (exit code, stdout, stderr)."""

    def run(*arguments: str | Path) -> tuple[int, str, str]:
        code = main.run(["index", *map(str, arguments), "--indexes-dir", str(tmp_path / "indexes")])
        shown = capsys.readouterr()
        return code, shown.out, shown.err

    return run


@pytest.fixture
def document(cli):
    """Run with `--json`, expect success, and return the document."""

    def run(*arguments: str | Path) -> dict:
        code, out, err = cli(*arguments, "--json")
        assert (code, err) == (0, "")
        return json.loads(out)

    return run


@pytest.fixture
def refused(cli):
    """Run what must fail -> (exit code, the one line on stderr); with --json the same is a document."""

    def run(*arguments: str | Path) -> tuple[int, str]:
        code, out, err = cli(*arguments)
        assert out == ""
        assert err.startswith("error: ")
        assert err.count("\n") == 1
        again, out, _ = cli(*arguments, "--json")
        error = json.loads(out)["error"]
        assert (again, error["code"]) == (code, code)
        assert error["message"] in err
        assert error["hint"] in err
        return code, err

    return run


@pytest.fixture
def table(tmp_path) -> Path:
    return write_table(tmp_path / "load.csv")


@pytest.fixture(scope="module")
def template(tmp_path_factory) -> Path:
    """A folder of indexes with `load@1`, built once."""
    folder = tmp_path_factory.mktemp("template")
    table = write_table(folder / "load.csv")
    assert (
        main.run(["index", "build", str(table), "--name", "load", *SHAPE, "--indexes-dir", str(folder / "indexes")])
        == 0
    )
    return folder / "indexes"


@pytest.fixture
def built(template, table, tmp_path, capsys) -> Path:
    """The table, after `load@1` was built from it."""
    shutil.copytree(template, tmp_path / "indexes")
    capsys.readouterr()  # what building the template has printed
    return table


# Building


def test_build_document(document, table):
    found = document("build", table, "--name", "load", *SHAPE, "--views", "12,48")
    assert set(found) >= VERSION_KEYS
    assert found["schema"] == "index-build"
    assert (found["ref"], found["name"], found["version"]) == ("load@1", "load", 1)
    # 280 training rows of 400 hold 280 - 60 + 1 windows of each series.
    assert (found["num_rows"], found["num_series"]) == (2 * 221, 2)
    assert (found["lookback"], found["horizon"], found["views"]) == (48, 12, [12, 48])
    assert (found["first_known_at"], found["last_known_at"]) == ("2024-01-03T11:00:00", "2024-01-12T15:00:00")
    assert found["split"] == {
        "name": "70/10/20",
        "train_until": "2024-01-12T15:00:00",
        "val_until": "2024-01-14T07:00:00",
        "test_until": "2024-01-17T15:00:00",
    }
    assert (found["factory"], found["recall_at_10"]) == ("Flat", 1.0)
    assert [(space["scope"], space["view"]) for space in found["spaces"]] == [
        (scope, view) for scope in ("own", "joint", "pooled") for view in (12, 48)
    ]
    assert found["bytes"] == sum(
        path.stat().st_size for path in Path(found["path"]).rglob("*") if path.is_file()
    ) - sum((Path(found["path"]) / name).stat().st_size for name in ("manifest.json", "manifest.sha256"))


def test_build_prints_what_was_built_and_what_to_try_next(cli, table):
    code, out, err = cli("build", table, "--name", "load", *SHAPE)
    assert code == 0
    lines = {line.strip().split("  ")[0]: line for line in out.splitlines()}
    assert "load@1" in lines["version"]
    assert "442, known 2024-01-03T11:00:00 to 2024-01-12T15:00:00" in lines["windows"]
    assert "2: north, south" in lines["series"]
    assert "48 + 12 steps" in lines["lookback, horizon"]
    assert "70/10/20" in lines["split"]
    assert "2024-01-12T15:00:00" in lines["train until"]
    assert "exact scan: at most 221 keys in a group" in lines["own"]
    assert "1.000" in lines["pooled"]
    (last,) = err.splitlines()
    assert last.startswith("next: cli index neighbours load@1 ")


def test_the_next_command_works(cli, table, capsys):
    gap = table.with_name("with gap.csv")
    lines = table.read_text().splitlines()
    gap.write_text("\n".join([*lines[:50], *lines[52:]]) + "\n")
    _, _, err = cli("build", gap, "--name", "load", *SHAPE, "--on-gap", "ffill", "--ignore", "south")
    command = shlex.split(err.splitlines()[-1].removeprefix("next: cli "))
    assert "--on-gap" in command
    assert main.run(command) == 0, capsys.readouterr().err
    assert "neighbours of north" in capsys.readouterr().err


def test_reading_flags_say_the_options_again_that_no_version_remembers():
    options = ReadOptions(columns=("a", "b"), ignore=("c", "d"), on_gap="drop", step="h", max_cells=10)
    assert index_build.reading_flags(options) == ["--step", "h", "--on-gap", "drop", "--max-cells", "10"]
    assert index_build.reading_flags(ReadOptions()) == []


def test_build_until_end_stores_everything(document, table):
    found = document("build", table, "--name", "load", *SHAPE, "--until", "end")
    assert found["last_known_at"] == "2024-01-17T15:00:00"
    assert found["split"] | {"name": ""} == {
        "name": "",
        "train_until": "2024-01-17T15:00:00",
        "val_until": None,
        "test_until": None,
    }


def test_build_until_a_time(document, table):
    arguments = ("build", table, "--name", "load", *SHAPE, "--until", "2024-01-10", "--val-until", "2024-01-12 12:00")
    found = document(*arguments, "--known-delay", "3", "--stride", "2")
    # The last window's values must be published by then, three steps after its last step.
    assert found["last_known_at"] <= "2024-01-10T00:00:00"
    assert found["split"]["train_until"] == "2024-01-10T00:00:00"
    assert found["split"]["val_until"] == "2024-01-12T12:00:00"
    assert found["split"]["test_until"] == "2024-01-17T15:00:00"
    assert (found["known_delay"], found["stride"]) == (3, 2)


@pytest.mark.parametrize("until", ["2024-01-10 01:00", "2024-01-10T00:00Z", "2024-01-10T02:00+02:00"])
def test_until_in_the_zone_of_the_table_or_with_an_offset(until, document, tmp_path):
    table = write_table(tmp_path / "zoned.csv", zone="Europe/Berlin")
    found = document("build", table, "--name", "load", *SHAPE, "--time-zone", "Europe/Berlin", "--until", until)
    assert found["last_known_at"] == "2024-01-10T01:00:00+01:00"
    assert found["time_zone"] == "Europe/Berlin"


def test_settings_of_the_key_are_stored(document, table):
    found = document("build", table, "--name", "load", *SHAPE, "--shape-weight", "0.7", "--spread-floor", "0.2")
    settings = found["encoder"]["settings"]
    assert (settings["shape_weight"], settings["spread_floor"]) == (0.7, 0.2)
    assert settings["views"] == [48]
    assert (
        document("build", table, "--name", "load", *SHAPE)["encoder"]["settings"]
        == EncoderConfig(views=(48,)).to_dict()
    )


def test_scopes_and_a_missing_joint_scope(cli, document, table):
    assert document("build", table, "--name", "load", *SHAPE, "--scopes", "pooled,own")["scopes"] == ["own", "pooled"]
    _, out, _ = cli("build", table, "--name", "one", *SHAPE, "--ignore", "north")
    assert "not built: it needs 2 to 64 series, and there are 1" in out


def test_the_sample_can_be_built(document, repository):
    sample = repository / "datasets" / "sample.csv"
    found = document("build", sample, "--name", "sample", "--lookback", "336", "--horizon", "96", "--stride", "8")
    assert (found["num_series"], found["views"]) == (5, [96, 168, 336])


@pytest.mark.parametrize(
    ("flags", "code", "said"),
    [
        (["--split", "70/10/20", "--until", "end"], 2, "--split and --until"),
        (["--val-until", "2024-01-10"], 2, "--val-until needs --until"),
        (["--split", "70/10/30"], 2, "'70/10/30' is not a split"),
        (["--split", "ett-hourly"], 3, "needs 14400 rows"),
        (["--until", "01/10/2024"], 2, "'01/10/2024' is not a time"),
        (["--until", "2024-01-10T00:00+01:00"], 2, "UTC offset"),
        (["--until", "2023-01-01"], 3, "before the table's first step 2024-01-01T00:00:00"),
        (["--until", "2024-01-02"], 3, "has 25 steps in the training part, but a window needs 48 + 12"),
        (["--until", "2024-01-10", "--val-until", "2024-01-09"], 2, "no validation part"),
        (["--views", "48,96"], 2, "view 96 does not fit a lookback of 48 steps"),
        (["--views", "48,x"], 2, "'x' is not a number"),
        (["--views", "48,48"], 2, "distinct"),
        (["--scopes", "own,all"], 2, "unknown scope 'all'"),
        (["--scopes", "joint", "--columns", "north"], 6, "cannot have the scope 'joint'"),
        (["--lookback", "1"], 2, "lookback is 1"),
        (["--lookback", "500"], 3, "but a window needs 500 + 12"),
        (["--horizon", "0"], 2, "horizon is 0"),
        (["--stride", "0"], 2, "stride is 0"),
        (["--known-delay", "-1"], 2, "known_delay is -1"),
        (["--shape-weight", "1.5"], 2, "shape_weight is 1.5"),
        (["--shape-weight", "nan"], 2, "shape_weight is nan"),
        (["--spread-floor", "0"], 2, "spread_floor is 0"),
        (["--factory", "banana"], 2, "'banana' is not a FAISS factory string"),
        (["--factory", ""], 2, "'' is not a FAISS factory string"),
        (["--factory", "PQ7"], 2, "multiple of the number of subquantizers"),
        (["--factory", "IVF0,Flat"], 2, "no lists"),
        (["--factory", "IVF4096,Flat"], 2, "needs 159,744 keys to be trained on, but own-48 has 442"),
        (["--factory", "IVF2,PQ4x12", "--scopes", "pooled"], 2, "needs 159,744 keys to be trained on"),
        (["--name", "a/b"], 2, "cannot be the name of an index"),
        (["--columns", "nroth"], 4, "nroth"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_what_cannot_be_built(flags, code, said, refused, table, tmp_path):
    found, line = refused("build", table, "--name", "load", *SHAPE, *flags)
    assert said in line
    assert found == code
    assert "/project/faiss" not in line
    assert Store(tmp_path / "indexes").names() == ()
    assert list(tmp_path.glob("indexes/*/.staging-*")) == []


def test_a_folder_that_cannot_be_made_is_code_7(table, capsys):
    for folder in ("/proc/nothing", str(table)):
        assert main.run(["index", "build", str(table), "--name", "load", *SHAPE, "--indexes-dir", folder]) == 7
        assert capsys.readouterr().err.startswith(f"error: {folder}")


def test_a_factory_that_is_asked_for_is_built_and_says_where_it_is_not_used(document, table, tmp_path):
    found = document("build", table, "--name", "load", *SHAPE, "--factory", "HNSW32")
    assert found["factory"] == "HNSW32"
    scanned = "asked for; groups of up to {} keys are scanned all the same, which is faster and exact"
    assert {space["reason"] for space in found["spaces"] if space["scope"] == "own"} == {scanned.format(221)}
    assert {space["reason"] for space in found["spaces"] if space["scope"] == "pooled"} == {scanned.format(442)}
    folder = tmp_path / "indexes" / "load" / "000001" / "segment-0"
    assert len(list(folder.glob("keys-*.faiss"))) == len(found["spaces"]) > 2
    for path in folder.glob("keys-*.faiss"):
        assert b"IHNf" in path.read_bytes()[:200]  # how FAISS begins a graph over plain keys


def test_training_keys_are_asked_of_a_whole_key_space():
    own, pooled = KeySpace("own", 96), KeySpace("pooled", 96)
    widths, sizes = {own: 53, pooled: 48}, {own: np.array([8_000] * 5), pooled: np.array([56_000])}
    factories.check_factory("IVF1024,Flat", widths, sizes)  # 39,936 keys: one index over all groups
    with pytest.raises(UsageError, match=r"own-96 has 35,000"):
        factories.check_factory("IVF1024,Flat", widths, sizes | {own: np.array([5_000, 30_000])})


def test_auto_chooses_one_graph_where_it_is_faster_than_scanning_the_group():
    sizes = {(200_000,): "Flat", (200_001,): "HNSW32", (250_000, 1_000): "HNSW32", (250_000,) * 7: "Flat"}
    for groups, factory in sizes.items():
        assert factories.choose_factory("auto", np.array(groups))[0] == factory, groups
    assert "250,000 of 1,750,000 keys" in factories.choose_factory("auto", np.array([250_000] * 7))[1]


@pytest.mark.parametrize("views", ["4,24,48", "48"])
def test_key_width_is_known_before_anything_is_fitted(views, document, table):
    found = document("build", table, "--name", "load", *SHAPE, "--views", views)
    settings = found["encoder"]["settings"]
    config = EncoderConfig(**settings | {"views": tuple(settings["views"])})
    for space in found["spaces"]:
        assert config.key_width(KeySpace(space["scope"], space["view"]), 2) == space["width"]


def test_split_until_can_be_stored():
    times = np.arange("2024-01-01", "2024-01-05", dtype="datetime64[h]").astype("datetime64[ns]")
    split = split_until("2024-01-02", "2024-01-03", times, Step(frequency="h"))
    ends = [split.train_until, split.val_until, split.test_until]
    assert [str(end)[:13] for end in ends] == ["2024-01-02T00", "2024-01-03T00", "2024-01-04T23"]
    assert all(type(end) is str for end in ends)


# Appending and compacting


def test_append_document(document, built, tmp_path):
    longer = write_table(tmp_path / "longer.csv", 500)
    found = document("append", "load", longer)
    assert set(found) >= VERSION_KEYS
    assert found["schema"] == "index-append"
    assert (found["ref"], found["num_rows"]) == ("load@2", 2 * (500 - 60 + 1))
    assert found["num_new_rows"] == found["num_rows"] - 2 * 221
    assert found["last_known_at"] == "2024-01-21T19:00:00"
    assert found["parent"] == document("show", "load@1")["fingerprint"]
    assert found["new_bytes"] < found["bytes"]


def test_append_prints_what_is_new(cli, built, tmp_path):
    code, out, err = cli("append", "load", write_table(tmp_path / "longer.csv", 500), "--until", "2024-01-20")
    assert (code, err) == (0, "")
    assert "load@2" in out
    assert "(appended to since)" in out
    assert "load@1" in out.split("made from")[1].splitlines()[0]
    assert "to 2024-01-20T00:00:00" in out


@pytest.mark.parametrize("as_json", [(), ("--json",)])
def test_append_tells_of_a_last_line_without_an_end(as_json, cli, built, tmp_path):
    cut = write_table(tmp_path / "cut.csv", NUM_STEPS + 50)
    cut.write_bytes(cut.read_bytes()[:-2])  # a line end, and a digit
    code, _, err = cli("append", "load", cut, *as_json)
    assert code == 0
    assert "note: cut.csv, row 451: the last line has no line end" in err


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["load", "SAME", "--until", "2024-01-10"], 3, "known by 2024-01-10T00:00:00"),
        (["load@9", "SAME"], 4, "load@9 does not exist"),
        (["laod", "SAME"], 4, "did you mean 'load'"),
        (["load", "CHANGED"], 6, "series 'south' at 2024-01-01T07:00:00 is 99.5"),
        (["load", "LATER"], 6, "begins at 2025-01-01T00:00:00"),
        (["load", "NONE"], 4, "does not exist"),
        (["load", "SAME", "--until", "tomorrow"], 2, "'tomorrow' is not a time"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_what_cannot_be_appended(arguments, code, said, refused, built, tmp_path):
    changed = built.read_text().splitlines()
    changed[8] = changed[8].rpartition(",")[0] + ",99.5"
    files = {
        "SAME": built,
        "CHANGED": tmp_path / "changed.csv",
        "LATER": write_table(tmp_path / "later.csv", start="2025-01-01"),
        "NONE": tmp_path / "none.csv",
    }
    files["CHANGED"].write_text("\n".join(changed) + "\n")
    found, line = refused("append", *(str(files.get(each, each)) for each in arguments))
    assert said in line
    assert found == code


def test_many_segments_are_said_and_compact_merges_them(cli, document, built, tmp_path, monkeypatch):
    monkeypatch.setattr(index_build, "MANY_SEGMENTS", 2)
    _, _, err = cli("append", "load", write_table(tmp_path / "a.csv", 420))
    assert "compact" not in err
    _, _, err = cli("append", "load", write_table(tmp_path / "b.csv", 440))
    assert "load@3 has 3 segments" in err
    assert "cli index compact load@3" in err
    before = document("show", "load@3")
    merged = document("compact", "load@3")
    assert (merged["schema"], merged["ref"], merged["num_segments"]) == ("index-compact", "load@4", 1)
    assert merged["num_rows"] == before["num_rows"]
    code, out, err = cli("compact", "load@4")
    assert (code, out) == (2, "")
    assert "only one segment" in err


# The registry


def test_an_empty_folder_says_how_to_build(cli):
    code, out, err = cli("list")
    assert (code, out) == (0, "")
    assert "cli index build FILE" in err
    assert json.loads(cli("list", "--json")[1]) == {"schema": "index-list", "indexes": []}


def test_list_document(document, built):
    document("build", built, "--name", "other", *SHAPE)
    document("alias", "load", "1", "prod")
    found = document("list")
    assert [entry["name"] for entry in found["indexes"]] == ["load", "other"]
    (version,) = found["indexes"][0]["versions"]
    assert set(version) >= {"version", "fingerprint", "num_rows", "created_at", "aliases"}
    assert (version["version"], version["num_rows"], version["aliases"]) == (1, 442, ["prod"])
    assert [entry["name"] for entry in document("list", "other")["indexes"]] == ["other"]


def test_list_shows_a_damaged_version_and_goes_on(cli, document, built, tmp_path):
    document("build", built, "--name", "load", *SHAPE, "--horizon", "6")
    manifest = tmp_path / "indexes" / "load" / "000001" / "manifest.json"
    manifest.chmod(0o644)
    manifest.write_text("{}")
    code, out, err = cli("list")
    assert code == 0
    assert "load@2" in out
    assert "load@1 cannot be used" in err


def test_show(cli, document, built):
    found = document("show", "load")
    assert set(found) >= VERSION_KEYS
    assert (found["schema"], found["aliases"]) == ("index-show", [])
    document("alias", "load", "1", "prod")
    code, out, err = cli("show", "load@prod")
    assert (code, err) == (0, "")
    assert "load@1" in out
    assert "prod" in out


def test_diff(cli, document, built, tmp_path):
    document("append", "load", write_table(tmp_path / "longer.csv", 500))
    found = document("diff", "load@1", "load@2")
    assert (found["first"], found["second"], found["same"], found["appended"]) == ("load@1", "load@2", False, True)
    assert found["settings"]["num_rows"] == [442, 882]
    assert found["settings"]["last_known_at"] == ["2024-01-12T15:00:00", "2024-01-21T19:00:00"]
    assert found["shared_segments"] == ["segment-0"]
    _, out, err = cli("diff", "load@1", "load@2")
    assert "2024-01-21T19:00:00" in out
    assert "load@2 was made from load@1" in err
    assert document("diff", "load@1", "load@1")["same"] is True
    assert "the same version" in cli("diff", "load@1", "load@1")[2]


def test_verify(cli, document, built):
    found = document("verify", "load")
    assert {name: found[name] for name in ("schema", "ref", "ok", "problems")} == {
        "schema": "index-verify",
        "ref": "load@1",
        "ok": True,
        "problems": [],
    }
    assert "ok" in cli("verify", "load")[1]


def test_verify_finds_a_flipped_byte(cli, built, tmp_path):
    path = tmp_path / "indexes" / "load" / "000001" / "segment-0" / "keys-own-48.faiss"
    damage(path)
    code, out, _ = cli("verify", "load", "--json")
    found = json.loads(out)
    assert (code, found["ok"]) == (5, False)
    assert [problem["file"] for problem in found["problems"]] == ["segment-0/keys-own-48.faiss"]
    assert set(found["problems"][0]) >= {"file", "message"}
    code, out, err = cli("verify", "load")
    assert code == 5
    assert "segment-0/keys-own-48.faiss" in out
    assert "load@1 is damaged" in err


def test_a_version_is_read_by_other_users_or_verify_says_that_it_may_not_be(cli, built, tmp_path, monkeypatch):
    paths = [path for path in (tmp_path / "indexes" / "load" / "000001").rglob("*") if path.is_file()]
    assert len({path.stat().st_mode for path in paths}) == 1

    def refused(path: Path) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(bytes_on_disk, "hash_file", refused)
    code, out, _ = cli("verify", "load", "--json")
    assert (code, json.loads(out)["ok"]) == (7, False)
    code, out, err = cli("verify", "load")
    assert (code, "permission denied" in out) == (7, True)
    assert "load@1 cannot be checked" in err
    next(path for path in paths if path.suffix == ".safetensors").unlink()
    assert cli("verify", "load")[0] == 5


def test_verify_finds_keys_that_were_not_made_by_the_encoder(cli, built, tmp_path):
    """Every byte as published, and yet wrong: what only reading the version can tell."""
    store = Store(tmp_path / "indexes")
    good = store.resolve("load")
    with store.staging("wrong") as staging:
        for file in good.manifest.files:
            path = staging.path / file
            path.parent.mkdir(exist_ok=True)
            path.write_bytes((good.path / file).read_bytes())
        keys = key_files.read_keys(good.path / "segment-0", KeySpace("own", 48))
        (staging.path / "segment-0" / "keys-own-48.faiss").unlink()
        key_files.write_keys(staging.path / "segment-0", KeySpace("own", 48), keys + np.float32(0.5), "Flat")
        staging.publish(replace(good.manifest, files={}))
    code, out, _ = cli("verify", "wrong", "--json")
    problems = json.loads(out)["problems"]
    assert code == 5
    assert [problem["file"] for problem in problems] == ["keys-own-48.faiss"]


def damage(path: Path) -> None:
    """Flip the bits of every byte in the second half of a file."""
    path.chmod(0o644)
    content = bytearray(path.read_bytes())
    half = len(content) // 2
    content[half:] = bytes(byte ^ 0x55 for byte in content[half:])
    path.write_bytes(bytes(content))


def test_alias_and_unalias(cli, document, built):
    document("build", built, "--name", "load", *SHAPE, "--stride", "2")
    assert document("alias", "load", "1", "prod") == {"schema": "index-alias", "alias": "load@prod", "ref": "load@1"}
    assert document("alias", "load", "latest", "prod")["ref"] == "load@2"
    assert cli("alias", "load", "prod", "stable")[1].splitlines()[-1].split() == ["load@stable", "load@2"]
    assert document("unalias", "load", "stable") == {"schema": "index-unalias", "alias": "load@stable"}
    assert document("show", "load@2")["aliases"] == ["prod"]
    document("unalias", "load", "prod")
    assert "'cli index alias load VERSION prod' makes one" in cli("unalias", "load", "prod")[2]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["show", "laod"], 4, "did you mean 'load'"),
        (["show", "load@2"], 4, "load@2 does not exist"),
        (["show", "load@prdo"], 4, "did you mean 'prod'"),
        (["show", "load@"], 2, "not a reference"),
        (["verify", "../load"], 2, "not a reference"),
        (["diff", "load", "other"], 4, "no index 'other'"),
        (["list", "other"], 4, "no index 'other'"),
        (["alias", "load", "9", "prod"], 4, "load@9 does not exist"),
        (["alias", "load", "1", "latest"], 2, "cannot be an alias"),
        (["alias", "load@1", "prod"], 2, "Missing argument"),
        (["unalias", "load", "prdo"], 4, "did you mean 'prod'"),
        (["remove", "load"], 2, "does not say which version"),
        (["remove", "load@1"], 6, "named by the alias prod"),
        (["gc", "other"], 4, "no index 'other'"),
        (["gc", "--keep", "0"], 2, "keep is 0"),
        (["compact", "load"], 2, "only one segment"),
        (["export", "load", "x.tar"], 2, "end it in .zip"),
        (["export", "load", "/proc/none/x.zip"], 4, "no folder"),
        (["import", "none.zip"], 4, "no archive"),
        ([], 2, "Missing command"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_wrong_references_and_arguments(arguments, code, said, cli, document, built):
    document("alias", "load", "1", "prod")
    found, out, line = cli(*arguments) if arguments else run_bare()
    assert said in line
    assert (found, out) == (code, "")
    assert line.count("\n") == 1


def run_bare() -> tuple[int, str, str]:
    """`cli index` without a command."""
    import contextlib
    import io

    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main.run(["index"])
    return code, out.getvalue(), err.getvalue()


def test_remove(document, refused, built):
    document("build", built, "--name", "load", *SHAPE, "--stride", "2")
    assert document("remove", "load@1") == {"schema": "index-remove", "ref": "load@1"}
    code, line = refused("show", "load@1")
    assert code == 4
    assert "load@1 was removed" in line


def test_gc(cli, document, built, tmp_path):
    for stride in ("2", "3"):
        document("build", built, "--name", "load", *SHAPE, "--stride", stride)
    left = tmp_path / "indexes" / "load" / ".staging-0123abcd"
    left.mkdir()
    (left / "half").write_bytes(b"x" * 5000)
    document("alias", "load", "1", "prod")
    planned = document("gc", "--keep", "1", "--dry-run")
    assert (planned["versions"], planned["leftovers"]) == (["load@2"], ["load/.staging-0123abcd"])
    assert planned["bytes"] > 5000
    assert left.exists()
    code, out, err = cli("gc", "--keep", "1")
    assert code == 0
    assert out.split() == ["deleted", "load@2", "load/.staging-0123abcd"]
    assert err.strip().endswith("freed")
    assert Store(tmp_path / "indexes").numbers("load") == (1, 3)
    assert "nothing to delete" in cli("gc")[2]


def test_export_and_import(cli, document, built, tmp_path):
    written = document("export", "load", tmp_path / "load.zip")
    assert (written["schema"], written["ref"]) == ("index-export", "load@1")
    assert written["bytes"] == (tmp_path / "load.zip").stat().st_size
    again = document("import", tmp_path / "load.zip")
    assert (again["ref"], again["was_present"]) == ("load@1", True)
    assert "nothing was added" in cli("import", tmp_path / "load.zip")[2]
    other = document("import", tmp_path / "load.zip", "--name", "copy")
    assert (other["schema"], other["ref"], other["was_present"]) == ("index-import", "copy@1", False)
    assert other["fingerprint"] == written["fingerprint"]
    assert document("verify", "copy")["ok"] is True


@pytest.mark.parametrize("harm", ["torn", "flipped", "other"])
def test_a_damaged_archive_is_code_5(harm, document, refused, built, tmp_path):
    archive = tmp_path / "load.zip"
    document("export", "load", archive)
    content = bytearray(archive.read_bytes())
    if harm == "torn":
        del content[len(content) // 2 :]
    elif harm == "flipped":
        content[len(content) // 2] ^= 1
    else:
        content = bytearray(b"date,y\n2024-01-01,1\n")
    archive.write_bytes(bytes(content))
    code, line = refused("import", archive, "--name", "copy")
    assert code == 5
    assert str(archive) in line
    assert Store(tmp_path / "indexes").names() == ("load",)


# Words


@pytest.mark.parametrize(
    ("num_bytes", "said"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (1500, "1.5 kB"),
        (84_195_388, "84.2 MB"),
        (174_372_070, "174 MB"),
        (3 * 10**9, "3 GB"),
    ],
)
def test_sizes_for_readers(num_bytes, said):
    assert describe_bytes(num_bytes) == said


def test_every_time_shown_has_the_offset_of_the_table(document, tmp_path):
    table = write_table(tmp_path / "zoned.csv", zone="Asia/Kolkata")
    found = document("build", table, "--name", "load", *SHAPE)
    shown = [found["first_known_at"], found["last_known_at"], found["fitted_until"], *list(found["split"].values())[1:]]
    assert [time[-6:] for time in shown] == ["+05:30"] * 6
    stored = load(Store(tmp_path / "indexes").locate("load")).manifest
    assert pd.Timestamp(found["last_known_at"]) == pd.Timestamp(stored.last_known_at, tz="UTC")
