"""`cli index show --plot` and `--html`: what a version covers and how it is used, as table, document, picture, page."""

from __future__ import annotations

import json
import re
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from cli import main
from cli.commands import index
from cli.pictures import usage as pictures
from cli.reports.usage_document import find_usage
from forecaster.learned_keys.fit_pattern import PatternConfig
from memory_index.types import KeySpace
from memory_index.versions.store import Store
from tests.cli_fixtures import HORIZON, LOOKBACK, frame

pytest.importorskip("matplotlib")

SHAPE = ("--lookback", str(LOOKBACK), "--horizon", str(HORIZON))
SIGNATURES = {".png": b"\x89PNG", ".svg": b"<?xml", ".pdf": b"%PDF"}


@pytest.fixture(scope="module")
def template(tmp_path_factory) -> Path:
    """Indexes, built once: `load`; `gaps`, in a time zone, with holes; `many` of 14 series; `quiet`, with hubs."""
    folder = tmp_path_factory.mktemp("template")
    load = frame()
    load.to_csv(folder / "load.csv", index=False)
    gaps = load.assign(date=pd.date_range("2024-06-01", periods=len(load), freq="h", tz="Asia/Kolkata"))
    gaps["date"] = gaps["date"].map(lambda time: time.isoformat())
    gaps.loc[[100, 101, 200], "north"] = np.nan
    gaps.loc[240, "south"] = np.nan
    gaps.to_csv(folder / "gaps.csv", index=False)
    many = pd.concat(
        [
            pd.DataFrame({"unique_id": f"feeder-{n:02d}", "ds": load["date"], "y": load["north"] + n}).iloc[20 * n :]
            for n in range(14)
        ]
    )
    many.to_csv(folder / "many.csv", index=False)
    quiet = np.random.default_rng(5).normal(size=1200)
    quiet[400:460] *= 0.15  # hubs: see test_usage.py
    times = pd.date_range("2024-01-01", periods=len(quiet), freq="h")
    pd.DataFrame({"date": times, "load": quiet}).to_csv(folder / "quiet.csv", index=False)
    end = ("--until", "end")
    for name, more in {"load": (), "gaps": ("--on-nan", "drop"), "many": end, "quiet": end}.items():
        arguments = [str(folder / f"{name}.csv"), "--name", name, *SHAPE, *more]
        assert main.run(["index", "build", *arguments, "--indexes-dir", str(folder / "indexes")]) == 0
    return folder / "indexes"


@pytest.fixture
def show(template, capsys):
    """Run `cli index show ...` -> (exit code, stdout, stderr)."""

    def run(*arguments: str | Path) -> tuple[int, str, str]:
        code = main.run(["index", "show", *map(str, arguments), "--indexes-dir", str(template)])
        shown = capsys.readouterr()
        return code, shown.out, shown.err

    return run


@pytest.fixture
def found(template):
    return lambda name: find_usage(Store(template).resolve(name))


def words(drawn) -> str:
    """All text of a figure."""
    from matplotlib.text import Text

    return "\n".join(text.get_text() for text in drawn.findobj(Text))


# What is told


def test_a_plain_show_asks_nothing(show, monkeypatch):
    monkeypatch.setattr(index, "find_usage", lambda version: pytest.fail("it was opened"))
    code, out, err = show("load")
    assert (code, err) == (0, "")
    assert "Hubs" not in out
    code, out, err = show("load", "--json")
    assert (code, err) == (0, "")
    assert "usage" not in json.loads(out)


@pytest.mark.parametrize("suffix", SIGNATURES)
def test_picture(show, tmp_path, suffix):
    path = tmp_path / f"load{suffix}"
    code, out, err = show("load", "--plot", path)
    assert code == 0
    assert path.read_bytes().startswith(SIGNATURES[suffix])
    assert out.startswith("version")
    assert f"picture: {path}\n" in err
    assert re.search(r"^asked: \d+ of 554 windows in each key space \(3\) for 10 neighbours: ", err, re.MULTILINE)
    assert re.search(r"^hubs: (none|\d+) of 46 stretches (is|are) retrieved at least 2 times", err, re.MULTILINE)
    assert re.search(r"^never retrieved by the windows asked: (none|\d+) of 46 stretches", err, re.MULTILINE)


def test_hubs_are_a_table_beside_the_document(show, found, tmp_path):
    used = found("quiet").usage
    assert len(used.hubs) > 0
    _, out, _ = show("quiet", "--plot", tmp_path / "quiet.png")
    shown = out[out.index("\nHubs\n") :].splitlines()[3:]
    code, text, err = show("quiet", "--plot", tmp_path / "quiet.png", "--json")
    assert (code, err) == (0, f"picture: {tmp_path / 'quiet.png'}\n")
    hubs = json.loads(text)["usage"]["hubs"]
    assert len(shown) == len(hubs) == len(used.hubs)
    for line, hub in zip(shown, hubs, strict=True):
        series, day, hour, *_, times, asked_by = line.split()
        assert (series, f"{day}T{hour}:00") == (hub["series_id"], hub["first_origin"])
        assert (times, int(asked_by)) == (f"{hub['ratio']:.1f}", hub["asked_by"])
        assert hub["first_origin"] <= hub["busiest_origin"] <= hub["last_origin"]


def test_document(show, found, tmp_path):
    document = json.loads(show("load", "--html", tmp_path / "load.html", "--json")[1])
    told, used = document["usage"], found("load").usage
    assert document["ref"] == "load@1"
    assert told["num_asked"] == {f"{scope}-48": 554 for scope in ("own", "joint", "pooled")}
    assert (told["neighbours"], told["policy"]) == (10, "disjoint")
    assert told["num_stretches"] == told["num_judged"] == len(used.stretches)
    assert told["num_never"] == len(told["never"]) == len(used.never)
    assert told["expected_per_window"] == pytest.approx(30, rel=0.01)  # 3 key spaces, 10 each
    assert [KeySpace(space["scope"], space["view"]) for space in told["spaces"]] == list(used.spaces)
    for space in told["spaces"]:
        levels = [space["distances"][f"p{level}"] for level in (5, 25, 50, 75, 95)]
        assert levels == sorted(levels)
        assert 0 < levels[0] < levels[-1]
        assert space["largest_ratio"] > 1
    covered = told["coverage"]
    assert [series["num_windows"] for series in covered["series"]] == [277, 277]
    assert covered["series"][0]["first_origin"] == "2024-01-02T23:00:00"
    assert (covered["num_gaps"], covered["gaps"]) == (0, [])


def test_gaps_and_times_are_in_the_zone_of_the_table(show, tmp_path):
    _, out, _ = show("gaps", "--plot", tmp_path / "gaps.png", "--json")
    covered = json.loads(out)["usage"]["coverage"]
    assert [(gap["series_id"], gap["num_windows"]) for gap in covered["gaps"]] == [
        ("north", LOOKBACK + HORIZON + 1),
        ("north", LOOKBACK + HORIZON),
        ("south", LOOKBACK + HORIZON),
    ]
    assert covered["gaps"][0]["first"] == "2024-06-04T16:00:00+05:30"
    assert [series["num_missing"] for series in covered["series"]] == [121, 60]
    _, out, err = show("gaps", "--plot", tmp_path / "gaps.png")
    assert re.search(r"[a-z]+ 2024-06-\d\d \d\d:00\+05:30 to 2024-06-\d\d \d\d:00\+05:30", err)


def test_page(show, tmp_path):
    path = tmp_path / "quiet.html"
    code, _, err = show("quiet", "--html", path)
    assert code == 0
    assert f"page: {path}" in err
    page = path.read_text()
    assert "quiet@1: what it holds and how it is used" in page
    assert page.count('role="img"') == 6  # three pictures, wide and narrow
    assert page.count("<table") == 3
    assert "there is no gap" in page
    assert not re.search(r"(src|href)=\"(?!#|data:)", page)


def test_a_learned_encoder_is_loaded(template, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("forecaster.learned_keys.fit_pattern.PatternConfig", partial(PatternConfig, num_steps=2))
    folder = ["--indexes-dir", str(tmp_path / "indexes")]
    window = ["--lookback", "24", "--horizon", "12", "--views", "24"]
    file = str(template.parent / "load.csv")
    assert main.run(["index", "build", file, "--name", "learned", "--encoder", "pattern", *window, *folder]) == 0
    capsys.readouterr()
    assert main.run(["index", "show", "learned", "--plot", str(tmp_path / "learned.png"), "--json", *folder]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["encoder"]["kind"] == "pattern"
    assert all(space["num_asked"] > 0 for space in told["usage"]["spaces"])


# What is drawn


@pytest.mark.parametrize("shape", ["wide", "narrow"])
def test_every_series_has_a_row(found, shape):
    drawn = pictures.draw_usage(found("gaps"), shape)
    text = words(drawn)
    for word in ("gaps@1", "north", "south", "test", "time (UTC+05:30)", "own, 48 steps", "2 gaps", "1 gap"):
        assert word in text, word
    assert "(in spreads of a window)" in text
    assert "hub: at least 2" in text
    assert f"never retrieved ({len(found('gaps').usage.never)})" in text


def test_of_many_series_some_stand_for_the_rest(found):
    told = found("many")
    text = words(pictures.draw_usage(told))
    assert "All series, and the 11 with the fewest." in text.replace("\n", " ")
    assert "All series, and the 7 with the strongest." in text.replace("\n", " ")
    assert "feeder-13" in text  # the shortest
    assert "all 14 series" in text
    rows = pictures._used_rows(told)
    assert rows[0] is None
    assert len(rows) == 8
    strongest = told.usage.stretches.series[np.nanargmax(told.usage.ratio())]
    assert strongest in rows


def test_a_bar_is_as_high_as_its_stretch_is_retrieved(found):
    told = found("load")
    panels = pictures.draw_retrievals(told).axes
    for series, axes in enumerate(panels):
        ratio = told.usage.ratio()[told.usage.stretches.series == series]
        heights = sorted(bar.get_height() for bar in axes.patches)
        np.testing.assert_allclose(heights, np.sort(ratio))


# Bad input


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["load", "--plot", "load.jpg"], 2, "load.jpg: a picture is a .png or .svg or .pdf file"),
        (["load", "--html", "load.png"], 2, "a page is a .html file"),
        (["load", "--plot", "nowhere/load.png"], 4, "no folder nowhere"),
        (["laod", "--plot", "load.png"], 4, "did you mean 'load'"),
        (["load@7", "--html", "load.html"], 4, "load@7 does not exist"),
    ],
)
def test_bad_input_is_one_line(show, tmp_path, monkeypatch, arguments, code, words):
    monkeypatch.chdir(tmp_path)
    found, out, err = show(*arguments)
    assert (found, out) == (code, "")
    assert words in err
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
    assert json.loads(show(*arguments, "--json")[1])["error"]["code"] == code


def test_a_damaged_version_is_refused_before_anything_is_drawn(template, tmp_path, capsys):
    shutil.copytree(template, tmp_path / "indexes")
    keys = next((tmp_path / "indexes" / "load" / "000001").rglob("keys-own-48.faiss"))
    keys.chmod(0o644)
    content = bytearray(keys.read_bytes())
    content[-1] ^= 1
    keys.write_bytes(content)
    plot, folder = tmp_path / "load.png", tmp_path / "indexes"
    assert main.run(["index", "show", "load", "--plot", str(plot), "--indexes-dir", str(folder)]) == 5
    assert capsys.readouterr().out == ""
    assert not plot.exists()
