"""`cli forecast`, `evaluate`, `index neighbours`, `demo`: documents, files, pictures, and one line for each mistake."""

from __future__ import annotations

import errno
import io
import json
import os
import re
import resource
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from cli.main import run
from cli.targets import write_file
from memory_index.tables.catalog import shipped

AT = "2024-09-25 23:00"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with an index of the sample named `grid`."""
    path = tmp_path_factory.mktemp("cli")
    arguments = ["--name", "grid", "--lookback", "168", "--horizon", "24", "--views", "96,168", "--stride", "2"]
    assert run(["index", "build", str(shipped("sample.csv")), *arguments, "--indexes-dir", str(path)]) == 0
    return path


@pytest.fixture
def call(folder, capfd):
    """Run a command on the sample: (exit code, stdout, stderr)."""

    def run_command(*arguments: str):
        capfd.readouterr()
        code = run([*arguments, "--indexes-dir", str(folder)])
        return code, *capfd.readouterr()

    return run_command


SAMPLE = str(shipped("sample.csv"))
NEIGHBOURS = ("index", "neighbours", "grid", SAMPLE, "--series", "feeder_north", "--at", AT)


def test_evaluate_has_the_promised_keys(call):
    code, out, _ = call("evaluate", SAMPLE, "--index", "grid", "--json")
    document = json.loads(out)
    assert code == 0
    assert next(iter(document)) == "schema"
    keys = {
        "run",
        "ref",
        "split",
        "num_windows",
        "num_series",
        "mse",
        "mae",
        "direction_accuracy",
        "gate",
        "baselines",
        "seconds",
    }
    assert keys <= set(document)
    assert (document["ref"], document["split"], document["run"], document["gate"]) == ("grid@1", "test", None, None)
    assert document["num_windows"] == int(0.2 * 7200) - 24 + 1
    baselines = document["baselines"]
    assert set(baselines) == {"last_value", "seasonal_naive", "linear", "memory_only"}
    assert baselines["memory_only"] == {"mse": document["mse"], "mae": document["mae"]}
    assert document["mse"] < baselines["seasonal_naive"]["mse"] < baselines["last_value"]["mse"]


def test_evaluate_prints_a_table_with_the_baselines(call):
    code, out, err = call("evaluate", SAMPLE, "--index", "grid", "--split", "val", "--baselines")
    assert code == 0
    for name in ("memory alone", "linear (ridge, widest view)", "seasonal naive", "last value", "key space joint-96"):
        assert name in out
    assert "standardised units" in err


def test_forecast_prints_a_long_table(call):
    code, out, _ = call("forecast", SAMPLE, "--index", "grid@1")
    lines = out.splitlines()
    assert code == 0
    assert lines[0] == "unique_id,ds,yhat,q0.1,q0.5,q0.9"
    assert len(lines) == 1 + 5 * 24


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_forecast_writes_the_format_of_the_suffix(call, tmp_path, suffix):
    out, picture = tmp_path / f"forecast{suffix}", tmp_path / "forecast.png"
    code, text, _ = call(
        "forecast", SAMPLE, "--index", "grid", "--out", str(out), "--plot", str(picture), "--quantiles", "none"
    )
    assert (code, text) == (0, "")
    table = pd.read_csv(out) if suffix == ".csv" else pd.read_parquet(out)
    assert list(table.columns) == ["unique_id", "ds", "yhat"]
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.fixture
def almost_full():
    """A limit on file sizes, for a block: it stops any file after so many bytes, as a full disk would."""

    @contextmanager
    def limited(num_bytes: int):
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return limited


FORECAST = ("forecast", SAMPLE, "--index", "grid", "--columns", "wind")
EVALUATE = ("evaluate", SAMPLE, "--index", "grid", "--columns", "wind", "--every", "24h")


@pytest.mark.parametrize(
    ("command", "name"),
    [
        ((*FORECAST, "--out"), "f.csv"),
        ((*FORECAST, "--out"), "f.parquet"),
        ((*EVALUATE, "--out"), "e.csv"),
        ((*EVALUATE, "--out"), "e.parquet"),
        ((*FORECAST, "--plot"), "f.svg"),
        ((*NEIGHBOURS, "--html"), "n.html"),
    ],
)
def test_what_was_there_stays_whole_when_the_disk_is_full(call, almost_full, tmp_path, command, name):
    made = tmp_path / name
    assert call(*command, str(made))[0] == 0
    before = made.read_bytes()
    with almost_full(len(before) // 2):
        code, _, err = call(*command, str(made))
    assert code == 7
    assert f"error: {made}: file too large (" in err
    assert made.read_bytes() == before
    assert list(tmp_path.iterdir()) == [made]


def test_a_file_is_replaced_where_it_lies_and_keeps_its_permissions(tmp_path):
    (tmp_path / "kept").mkdir()
    file, link = tmp_path / "kept" / "f.csv", tmp_path / "f.csv"
    file.write_bytes(b"old")
    file.chmod(0o640)
    link.symlink_to(file)
    with file.open("rb") as reader:
        write_file(link, b"new")
        assert reader.read() == b"old"  # whoever reads it has all of the old one
    assert (link.is_symlink(), file.read_bytes(), file.stat().st_mode & 0o777) == (True, b"new", 0o640)
    assert [path.name for path in file.parent.iterdir()] == ["f.csv"]


def test_what_cannot_be_replaced_is_written_in_place(tmp_path, monkeypatch):
    pipe, mounted = tmp_path / "p.csv", tmp_path / "m.csv"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDWR | os.O_NONBLOCK)
    write_file(pipe, b"new")
    assert os.read(reader, 10) == b"new"
    os.close(reader)
    mounted.write_bytes(b"old")

    def busy(*_):
        raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))

    monkeypatch.setattr(Path, "replace", busy)
    write_file(mounted, b"new")
    assert mounted.read_bytes() == b"new"


def test_forecast_as_json(call):
    code, out, _ = call("forecast", SAMPLE, "--index", "grid", "--json")
    document = json.loads(out)
    assert code == 0
    assert document["horizon"] == 24
    assert set(document["forecast"][0]) == {"unique_id", "ds", "yhat", "q0.1", "q0.5", "q0.9"}


def test_neighbours_have_the_promised_keys(call):
    code, out, _ = call(*NEIGHBOURS, "-k", "3", "--json")
    document = json.loads(out)
    assert code == 0
    assert (document["query"]["series_id"], document["query"]["origin"]) == ("feeder_north", "2024-09-25T23:00:00")
    assert document["in_sample"] is False
    assert len(document["neighbours"]) == 3 * 3 * 2  # three scopes, two views
    about = "scope view rank row_id series_id start origin known_at"
    measured = "distance shape_distance value_distance weight context future"
    assert {*about.split(), *measured.split()} <= set(document["neighbours"][0])
    groups: dict[tuple, float] = {}
    for each in document["neighbours"]:
        groups[each["scope"], each["view"]] = groups.get((each["scope"], each["view"]), 0) + each["weight"]
        assert each["known_at"] <= document["query"]["origin"]
    assert all(total == pytest.approx(1, abs=1e-5) for total in groups.values())


def test_neighbours_far_apart_and_from_chosen_times(call):
    options = (
        "--scope",
        "own",
        "--view",
        "96",
        "--min-gap",
        "100",
        "--after",
        "2024-02-01",
        "--before",
        "2024-06-01",
        "--json",
    )
    code, out, _ = call(*NEIGHBOURS, *options)
    found = json.loads(out)["neighbours"]
    origins = sorted(pd.Timestamp(each["origin"]) for each in found)
    assert code == 0
    assert len(found) == 5
    assert all(late - early >= pd.Timedelta(hours=100) for early, late in pairwise(origins))
    assert pd.Timestamp("2024-02-01") <= origins[0]
    assert origins[-1] <= pd.Timestamp("2024-06-01")


def test_neighbours_of_other_series(call):
    code, out, _ = call(*NEIGHBOURS, "--scope", "pooled", "--only-series", "feeder_south", "--json")
    assert code == 0
    assert {each["series_id"] for each in json.loads(out)["neighbours"]} == {"feeder_south"}


def test_a_picture_and_a_page_that_needs_nothing_else(call, tmp_path):
    picture, page = tmp_path / "n.svg", tmp_path / "n.html"
    code, out, _ = call(*NEIGHBOURS, "--plot", str(picture), "--html", str(page))
    html = page.read_text()
    assert code == 0
    assert re.search(r"own-168: \d+% of the memory's own windows had a nearer neighbour", out)
    assert "<svg" in picture.read_text()
    assert 'aria-label="feeder_north up to 2024-09-25' in html
    assert "prefers-color-scheme: dark" in html
    assert not re.search(r'(src|href)="(?!data:|#)', html)
    assert not re.search(r"url\((?!#)", html)


def test_the_forecast_shown_is_the_one_that_the_memory_makes(call, tmp_path):
    known = tmp_path / "known.csv"
    pd.read_csv(SAMPLE, parse_dates=["date"]).set_index("date").loc[:AT].reset_index().to_csv(known, index=False)
    _, out, _ = call(*NEIGHBOURS, "-k", "2", "--json")
    _, forecast, _ = call("forecast", str(known), "--index", "grid", "--quantiles", "none")
    table = pd.read_csv(io.StringIO(forecast))
    wanted = table.loc[table["unique_id"] == "feeder_north", "yhat"]
    np.testing.assert_allclose(json.loads(out)["query"]["forecast"], wanted, rtol=1e-6)


def test_a_window_like_no_other_is_told(call, tmp_path):
    table = pd.read_csv(SAMPLE)
    at = int(np.flatnonzero(table["date"].str.startswith(AT))[0])
    noise = np.random.default_rng(0).normal(size=168) * 20
    table.loc[at - 167 : at, "feeder_north"] = (60 + noise).round(2)
    strange = tmp_path / "strange.csv"
    table.to_csv(strange, index=False)
    arguments = ("index", "neighbours", "grid", str(strange), "--series", "feeder_north", "--at", AT)
    code, _, err = call(*arguments)
    assert code == 0
    assert "no close analogue" in err
    assert json.loads(call(*arguments, "--json")[1])["no_close_analogue"] is True
    # Of a filter it would say nothing: the yardstick is the whole memory.
    filtered = json.loads(call(*arguments, "--before", "2024-03-01", "--json")[1])
    assert filtered["no_close_analogue"] is False
    assert filtered["share_closer"] == {}
    assert "no close analogue" not in call(*NEIGHBOURS)[2]


MISTAKES = {
    "unknown series": (("--series", "feeder_nort", "--at", AT), 4, "feeder_north"),
    "no such time": (("--series", "wind", "--at", "2024-09-25 23:30"), 4, "no step at"),
    "not a time": (("--series", "wind", "--at", "soon"), 2, "not a time"),
    "nothing known yet": (("--series", "wind", "--at", "2024-01-08 00:00"), 4, "no admissible neighbour"),
    "too early for a context": (("--series", "wind", "--at", "2024-01-02 00:00"), 4, "a query needs 168"),
    "unknown view": (("--series", "wind", "--at", AT, "--view", "50"), 6, "no view of 50"),
    "view that is no number": (("--series", "wind", "--at", AT, "--view", "long"), 2, "--view"),
    "unknown scope": (("--series", "wind", "--at", AT, "--scope", "mine"), 2, "unknown scope"),
    "picture of no kind": (("--series", "wind", "--at", AT, "--plot", "x.bmp"), 2, ".png"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_of_neighbours_are_one_line(call, name):
    options, expected, text = MISTAKES[name]
    code, out, err = call("index", "neighbours", "grid", SAMPLE, *options)
    assert code == expected
    assert out == ""
    assert text in err
    assert len(err.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("command", "expected", "text"),
    [
        (("forecast", SAMPLE, "--index", "gird"), 4, "grid"),
        (("forecast", "nowhere.csv", "--index", "grid"), 4, "nowhere.csv"),
        (("forecast", SAMPLE, "--index", "grid", "--out", "x.txt"), 2, ".csv or .parquet"),
        (("forecast", SAMPLE, "--index", "grid", "--out", "no/such/folder.csv"), 4, "no folder"),
        (("forecast", SAMPLE, "--index", "grid", "--out", "folder.csv"), 2, "is a folder"),
        (("forecast", SAMPLE, "--index", "grid", "--quantiles", "0.1,2"), 2, "--quantiles"),
        (("forecast", SAMPLE, "--index", "grid", "--on-empty", "zero"), 2, "last-value"),
        (("evaluate", SAMPLE, "--index", "grid", "--split", "tset"), 2, "train, val or test"),
        (("evaluate", SAMPLE, "--index", "grid", "--split", "train"), 4, "no admissible neighbour"),
        (("evaluate", SAMPLE, "--index", "grid", "--out", "x.txt"), 2, ".csv or .parquet"),
        (("evaluate", SAMPLE, "--index", "grid", "--by", "day"), 2, "choose series or step"),
        (("evaluate", SAMPLE, "--index", "grid", "--scaled-by", "test"), 2, "choose training or origin"),
        (("evaluate", SAMPLE, "--index", "grid", "--quantiles", "0.1,2"), 2, "--quantiles"),
        (("evaluate", SAMPLE, "--index", "grid", "--every", "90min"), 2, "--every 1h"),
        (("evaluate", SAMPLE, "--index", "grid", "--at", "23:30"), 2, "choose --at"),
        (("evaluate", SAMPLE, "--index", "grid", "--at", "late"), 2, "for example --at 23:00"),
    ],
)
def test_mistakes_of_forecast_and_evaluate_are_one_line(call, command, expected, text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.csv").mkdir()
    code, out, err = call(*command)
    assert (code, out) == (expected, "")
    assert text in err
    assert len(err.strip().splitlines()) == 1


def test_data_that_differ_are_incompatible(call, tmp_path):
    lines = shipped("sample.csv").read_text().splitlines()
    cells = lines[50].split(",")
    cells[1] = "99.9"
    changed = tmp_path / "changed.csv"
    changed.write_text("\n".join([*lines[:50], ",".join(cells), *lines[51:]]) + "\n")
    for command in (("forecast",), ("evaluate",)):
        code, _, err = call(*command, str(changed), "--index", "grid")
        assert code == 6
        assert "feeder_north" in err
        assert "99.9" in err


@pytest.mark.parametrize(("step", "flags", "code"), [("D", (), 6), ("30min", (), 6), ("D", ("--step", "h"), 6)])
def test_data_of_another_step_are_told_by_their_step(call, tmp_path, step, flags, code):
    frame = pd.read_csv(SAMPLE).head(400)
    frame["date"] = pd.date_range("2024-01-01", periods=len(frame), freq=step)
    frame.to_csv(tmp_path / "other.csv", index=False)
    found, _, err = call("forecast", str(tmp_path / "other.csv"), "--index", "grid", *flags)
    assert found == code
    assert ("common steps differ" if flags else f"other.csv has a step of {step}, grid@1 of h (use") in err


def test_gaps_are_gaps_where_a_file_has_no_other_step(call, tmp_path):
    frame = pd.read_csv(SAMPLE).drop(index=range(40, 50))
    frame.to_csv(tmp_path / "holed.csv", index=False)
    code, _, err = call("forecast", str(tmp_path / "holed.csv"), "--index", "grid", "--on-gap", "error")
    assert (code, "10 steps are missing" in err) == (3, True)
    code, _, err = call("forecast", str(tmp_path / "holed.csv"), "--index", "grid")
    assert (code, "10 steps without a row stay missing" in err) == (0, True)


def test_too_short_a_history_is_bad_data(call, tmp_path):
    short = tmp_path / "short.csv"
    short.write_text("\n".join(shipped("sample.csv").read_text().splitlines()[:100]) + "\n")
    code, _, err = call("forecast", str(short), "--index", "grid")
    assert code == 3
    assert "has 99 steps" in err


@pytest.fixture
def sales(tmp_path):
    """A file of two series of counts with many zeros."""
    random, hours = np.random.default_rng(0), np.arange(600)
    table = pd.DataFrame({"date": pd.date_range("2024-01-01", periods=600, freq="h")})
    for name in ("north", "south"):
        busy = np.maximum(0, np.sin(hours * 2 * np.pi / 24)) * random.gamma(0.3, 6, 600)
        table[name] = random.poisson(busy)
    table.to_csv(tmp_path / "sales.csv", index=False)
    return tmp_path / "sales.csv"


def test_a_transform_is_chosen_and_told_and_counts_keep_above_zero(sales, capfd):
    where = ("--indexes-dir", str(sales.parent))
    build = ("index", "build", str(sales), "--lookback", "48", "--horizon", "12", *where)
    assert run([*build, "--name", "s", "--transform", "auto", "--json"]) == 0
    document = json.loads(capfd.readouterr().out)
    assert document["transform"] == "log1p"
    assert any("chosen by auto" in each for each in document["notes"])

    def forecast(*flags: str) -> tuple[pd.DataFrame, str]:
        assert run(["forecast", str(sales), "--index", "s", *flags, *where]) == 0
        out, said = capfd.readouterr()
        return pd.read_csv(io.StringIO(out)).drop(columns=["unique_id", "ds"]), said

    kept, said = forecast()
    assert (kept >= 0).all(axis=None)
    assert "'north' and 1 more are counts" in said
    free, said = forecast("--lower=-inf")
    assert "counts" not in said
    np.testing.assert_allclose(kept, free.clip(lower=0), atol=1e-6)
    within, _ = forecast("--lower", "0.5", "--upper", "1")
    assert within.min(axis=None) >= 0.5
    assert within.max(axis=None) <= 1


@pytest.mark.parametrize(
    ("flags", "code", "said"),
    [
        (("forecast", SAMPLE, "--index", "grid", "--lower", "2", "--upper", "1"), 2, "lower is 2, above upper 1"),
        (
            ("index", "build", SAMPLE, "--name", "x", "--lookback", "48", "--horizon", "12", "--transform", "box"),
            2,
            "box",
        ),
    ],
)
def test_a_wrong_transform_or_bound_is_one_line(flags, code, said, call):
    found, _, error = call(*flags)
    assert found == code
    assert said in error


def test_a_cell_that_has_no_logarithm_is_code_3(sales, capfd):
    table = pd.read_csv(sales)
    table.loc[77, "south"] = -5
    table.to_csv(sales, index=False)
    flags = ("--name", "s", "--lookback", "48", "--horizon", "12", "--transform", "log1p")
    assert run(["index", "build", str(sales), *flags, "--indexes-dir", str(sales.parent)]) == 3
    assert "series 'south' at 2024-01-04T05:00:00 is -5, but log1p needs values above -1" in capfd.readouterr().err
