"""`cli explain`: the document, the words, the picture and the page, and one line for each mistake."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from cli_fixtures import HORIZON, LOOKBACK, NUM_NEWER, NUM_STEPS, frame, make, write_settings
from forecaster_fixtures import TABLE, make_small

from cli.main import run
from cli.options import Indexes

ROW = 450
AT = str(frame()["date"].iloc[ROW])
KEYS = (
    "schema run ref fingerprint file query in_sample no_close_analogue times forecast quantiles gate model_part "
    "memory_part networks parts neighbours feature_gate confidence trend"
)
NEIGHBOUR_KEYS = (
    "scope view rank row_id series_id start origin known_at distance shape_distance value_distance weight match "
    "age_days context future aligned_future similarity match_score weight_in_space"
)


KINDS = ["no network", "no shortcut", "as designed", "one step", "constant", "unseen", "early"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return make(tmp_path_factory.getbasetemp())


@pytest.fixture
def call(made, capfd):
    """Explain the run's forecast of `north`: (exit code, stdout, stderr)."""

    def run_command(*arguments: object, file=made.file, folder=made.run, series="north", at=AT, indexes=made.indexes):
        capfd.readouterr()
        named = ["--run", folder, "--series", series, "--at", at, "--indexes-dir", indexes]
        code = run([str(each) for each in ("explain", file, *named, *arguments)])
        return code, *capfd.readouterr()

    return run_command


@pytest.fixture(scope="module")
def without(made, tmp_path_factory):
    """Train a run with parts switched off, in seconds -> its folder."""

    def train(*options: str, **changed: object):
        folder = tmp_path_factory.mktemp("without")
        toml = write_settings(folder / "small.toml", epochs=1, max_steps=2, **changed)
        arguments = [str(toml) if each == str(made.toml) else each for each in made.train]
        assert run([*arguments, *options, "--out", str(folder / "run")]) == 0
        return folder / "run"

    return train


def one_line(err: str) -> str:
    assert len(err.strip().splitlines()) == 1, err
    return err


# The document


def test_the_document_has_the_promised_keys(call):
    code, out, err = call("--json")
    found = json.loads(out)
    assert (code, err) == (0, "")
    assert list(found) == KEYS.split()
    assert (found["schema"], found["ref"], found["query"]["series_id"]) == ("explain", "m@1", "north")
    assert found["query"]["origin"] == AT.replace(" ", "T")
    assert len(found["query"]["context"]) == LOOKBACK
    assert found["times"][0] == frame()["date"].iloc[ROW + 1].isoformat()
    for name in ("times", "forecast", "gate", "model_part", "memory_part"):
        assert len(found[name]) == HORIZON
    np.testing.assert_allclose(found["query"]["actual"], frame()["north"].iloc[ROW + 1 : ROW + 1 + HORIZON], rtol=1e-6)
    assert list(found["quantiles"]) == ["q0.1", "q0.5", "q0.9"]
    names = [part["name"] for part in found["parts"]]
    assert names[:5] == ["linear", "last_value", "seasonal_naive", "network", "own-48"]
    assert [list(each) for each in found["neighbours"]] == [NEIGHBOUR_KEYS.split()] * 3
    assert list(found["trend"]) == ["direction", "magnitude", "borders", "scale_shares", "scale_steps"]


def test_the_numbers_of_the_document_make_the_forecast(call):
    found = {
        name: np.array(value) if isinstance(value, list) and name != "parts" else value
        for name, value in json.loads(call("--json")[1]).items()
    }
    gate = found["gate"]
    mixed = gate * found["model_part"] + (1 - gate) * found["memory_part"]
    np.testing.assert_allclose(mixed, found["forecast"], rtol=1e-5)
    products = [each["similarity"] * each["match_score"] for each in found["neighbours"]]
    expected = np.array(products) / sum(products)
    np.testing.assert_allclose([each["weight"] for each in found["neighbours"]], expected, rtol=1e-5)
    parts = sum(np.array(part["weight"]) * np.array(part["forecast"]) for part in found["parts"])
    np.testing.assert_allclose(parts, found["forecast"], rtol=1e-5)


def test_it_explains_what_is_forecast(made, call, tmp_path, capfd):
    """Of the last origin of the file, and by a newer version too."""
    shutil.copytree(made.indexes, tmp_path / "indexes")
    out = tmp_path / "forecast.csv"
    arguments = ["forecast", str(made.newer), "--run", str(made.run), "--indexes-dir", str(tmp_path / "indexes")]
    assert run([*arguments, "--update-index", "--out", str(out)]) == 0
    last, options = frame(NUM_STEPS + NUM_NEWER)["date"].iloc[-1], {"file": made.newer, "indexes": tmp_path / "indexes"}
    code, text, _ = call("--index", "m@2", "--json", at=last, **options)
    found, expected = json.loads(text), pd.read_csv(out, parse_dates=["ds"]).query("unique_id == 'north'")
    assert (code, found["ref"]) == (0, "m@2")
    assert [pd.Timestamp(each) for each in found["times"]] == list(expected["ds"])
    np.testing.assert_allclose(found["forecast"], expected["yhat"], rtol=1e-6)
    for name, values in found["quantiles"].items():
        np.testing.assert_allclose(values, expected[name], rtol=1e-6)
    assert found["query"]["actual"] == [None] * HORIZON
    older = json.loads(call("--json", at=last, **options)[1])
    assert older["ref"] == "m@1"
    assert older["parts"] != found["parts"]


# The words


@pytest.fixture
def told(call):
    """The document, and every line of the same explanation in words, by its first cell; of two the first."""
    lines = call()[1].splitlines()[::-1]
    return json.loads(call("--json")[1]), {line.strip().split("  ")[0]: line.strip() for line in lines}


def test_it_begins_with_a_sentence_and_fits_a_terminal(made, call, told):
    code, out, err = call()
    lines, model = out.splitlines(), np.mean(told[0]["gate"])
    assert code == 0
    assert one_line(err) == f"{made.run} with m@1:\n"
    assert lines[0].startswith(f"north at {AT[:-3]}, next 12 steps: ")
    assert "80% interval" in lines[0]
    assert f"memory {1 - model:.0%}, model {model:.0%} on average" in " ".join(lines[:2])
    assert max(map(len, lines)) <= 80, max(lines, key=len)


def test_the_parts_are_told(told):
    found, lines = told
    gate = np.array(found["gate"])
    shares = {"model": gate, "memory": 1 - gate}
    shares |= {part["name"].replace("_", " "): np.array(part["weight"]) for part in found["parts"]}
    shares["linear map"], shares["last season"] = shares.pop("linear"), shares.pop("seasonal naive")
    for name, share in shares.items():
        expected = [f"{each:.0%}" for each in (share[0], share[5], share[11], share.mean())]
        assert lines[name].removeprefix(name).split()[:4] == expected
    for part in found["parts"]:
        if part["of_memory"]:
            expected = ["5", f"{part['nearest']:.3f}", f"{part['share_closer']:.0%}"]
            assert lines[part["name"]].split()[-3:] == expected


def test_the_neighbours_are_told(call, told):
    listed = call()[1].partition("key space")[2].splitlines()[1:]
    rows = [line.split() for line in listed[: len(told[0]["neighbours"])]]
    for n, row in zip(told[0]["neighbours"], rows, strict=True):
        assert row[:2] == [f"{n['scope']}-{n['view']}", n["series_id"]]
        assert " ".join(row[2:4]) == n["origin"].replace("T", " ").removesuffix(":00")
        assert row[6:9] == [f"{n['distance']:.3f}", f"{n['match_score']:.2f}", f"{n['weight']:.0%}"]
        assert row[10] == f"{n['match']:+.2f}"


def test_what_the_network_says_is_told(told):
    found, lines = told
    trend = found["trend"]
    border = [f"{each:.2f}" for each in trend["borders"]]
    means = {
        "up": f"mean ahead above {border[3]}",
        "flat": f"{border[1]} to {border[3]}",
        "down": f"mean ahead below {border[1]}",
        "strong up": f"mean ahead above {border[4]}",
        "weak up": f"{border[2]} to {border[4]}",
        "weak down": f"{border[0]} to {border[2]}",
        "strong down": f"mean ahead below {border[0]}",
    }
    for name, share in {**trend["direction"], **trend["magnitude"]}.items():
        assert lines[f"trend {name}"].endswith(f"  {means[name]}")
        assert f" {share:.0%} " in lines[f"trend {name}"]
    for name, share in zip(("micro", "meso"), trend["scale_shares"], strict=True):
        assert f" {share:.0%} " in lines[f"scale {name}"]
    assert lines["scale micro"].endswith("averages of 8 steps")
    assert f" {found['feature_gate']:.0%} " in lines["feature gate"]
    assert f" {found['confidence']:.0%} " in lines["confidence"]


def test_what_followed_is_left_out_where_nobody_knows_it(call):
    _, out, _ = call(at=frame()["date"].iloc[-1])
    assert "what followed" not in out
    assert "match" not in out
    assert "what followed" in call()[1]


def test_no_quantiles_no_interval(call):
    code, out, _ = call("--quantiles", "none")
    assert code == 0
    assert "interval" not in out
    assert "q0.05 to q0.5" in call("--quantiles", "0.05,0.5")[1].replace("\n", " ")


def test_a_window_that_was_trained_on_is_told(call):
    code, _, err = call(at=frame()["date"].iloc[300])
    assert code == 0
    assert "in sample: " in err


def test_a_window_like_no_other_has_a_warning(made, call, tmp_path):
    table = frame()
    recent = slice(NUM_STEPS - 60, NUM_STEPS)
    table.loc[table.index[recent], "north"] = 20 + 8.0 * (-1) ** np.arange(60)
    table.to_csv(tmp_path / "odd.csv", index=False)
    code, _, err = call(file=tmp_path / "odd.csv", at=table["date"].iloc[-1])
    assert code == 0
    assert "no close analogue: " in err
    assert "no close analogue" not in call(at=frame()["date"].iloc[-1])[2]


# The picture and the page


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
def test_a_picture(call, tmp_path, suffix):
    picture = tmp_path / f"explained.{suffix}"
    code, out, err = call("--plot", picture)
    assert code == 0
    assert f"picture: {picture}" in err
    assert f"{picture}" not in out
    assert picture.stat().st_size > 10_000


@pytest.mark.parametrize("levels", ["none", "0.5"])
def test_a_picture_without_an_interval(call, tmp_path, levels):
    picture = tmp_path / "explained.svg"
    assert call("--plot", picture, "--quantiles", levels)[0] == 0
    assert "interval -->" not in picture.read_text()
    assert call("--plot", picture)[0] == 0
    assert "interval -->" in picture.read_text()


def test_a_page_says_what_the_terminal_says(made, call, tmp_path):
    page = tmp_path / "explained.html"
    code, out, _ = call("--html", page)
    text = page.read_text(encoding="utf-8")
    assert code == 0
    assert "http://www.w3.org" not in text.split("<svg")[0]
    assert not re.search(r"<script|https?://(?!www\.w3\.org)", text)
    assert text.count("<svg role=") == 2
    for words in (out.splitlines()[0][:60], "feature gate", "own-48", "Every step", f"{made.run} with m@1"):
        assert words in text
    assert 'aria-label="north at' in text


@pytest.mark.parametrize("shape", ["wide", "narrow"])
@pytest.mark.parametrize("kind", [*KINDS, "whole", "long name"])
def test_every_kind_of_explanation_can_be_drawn(kinds, kind, shape, tmp_path):
    """Nothing hangs over the edge, and no two texts of a panel lie over each other."""
    from cli.pictures.explanation import draw_explanation

    found, step = kinds[kind]
    drawn = draw_explanation(found, step, f"{'long/' * 30}run with m@1", shape)
    drawn.draw_without_rendering()
    page = drawn.bbox
    for text in (drawn._suptitle, drawn._supxlabel):
        assert page.x0 <= text.get_window_extent().x0 < text.get_window_extent().x1 <= page.x1
    for axes in drawn.axes:
        texts = [axes.xaxis.label, axes.yaxis.label, axes.title, axes._left_title, *axes.texts]
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            texts += [tick.label1 for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
        boxes = [
            (each.get_text(), each.get_window_extent()) for each in texts if each.get_text() and each.get_visible()
        ]
        for text, box in boxes:
            assert page.x0 <= box.x0, f"{text!r} is cut at the left"
            assert box.x1 <= page.x1, f"{text!r} is cut at the right"
        for number, (text, box) in enumerate(boxes):
            for other, other_box in boxes[:number]:
                assert not box.overlaps(other_box), f"{text!r} lies over {other!r}"
        assert axes.get_xlabel()
        beside = shape == "wide" and found.trend is not None and axes is not drawn.axes[0]
        assert axes.get_window_extent().width > (0.3 if beside else 0.65) * page.width


@pytest.fixture(scope="module")
def kinds(made, without, tmp_path_factory):
    """Explanations of every kind, with the step of their table."""
    from cli.opening import open_run_with_table
    from forecaster.explain import explain
    from memory_index.tables.columns import ReadOptions

    odd = made.folder / "odd.csv"
    frame().assign(west=frame()["north"] * -3000 + 7).to_csv(odd, index=False)
    runs = {
        "whole": made.run,
        "no network": without("--set", "use_network=false", "--no-tapr", "--no-llm"),
        "no shortcut": without("--no-shortcut", "--no-llm"),
        "as designed": without("--set", "gram_form=design", "--no-llm"),
        "one step": without("--horizon", "1", "--no-llm"),
    }
    chosen = {
        "whole": ("whole", made.file, "north", ROW),
        "no network": ("no network", made.file, "north", ROW),
        "no shortcut": ("no shortcut", made.file, "north", ROW),
        "as designed": ("as designed", made.file, "north", ROW),
        "one step": ("one step", made.file, "north", ROW),
        "unseen": ("whole", odd, "west", 460),
        "early": ("whole", made.file, "north", LOOKBACK + HORIZON),
    }
    small = make_small(tmp_path_factory.getbasetemp())
    still = explain(small.predictor, small.memory, TABLE, "flat", TABLE.times[397])
    found = {"constant": (still, TABLE.step)}
    for kind, (name, file, series, row) in chosen.items():
        opened = open_run_with_table(runs[name], None, file, Indexes(folder=made.indexes), ReadOptions(), "cpu")
        at = opened.table[series].times[row]
        found[kind] = explain(opened.predictor, opened.memory, opened.table, series, at), opened.table.step
    whole, step = found["whole"]
    name = "substation_north_of_the_river_transformer_12_active_power_mw"
    renamed = tuple(replace(each, record=replace(each.record, series_id=name)) for each in whole.neighbours)
    found["long name"] = replace(whole, series_id=name, neighbours=renamed), step
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_explanation_can_be_told(kinds, kind):
    from cli.reports import explanation_report as explain
    from memory_index.documents import jsonable

    found, step = kinds[kind]
    assert json.dumps(jsonable(found.to_document(step)), allow_nan=False)
    assert explain.headline(found)
    rows = explain.part_rows(found)
    assert {len(row) for row in rows} == {len(explain.part_columns(found))}
    assert {len(row) for row in explain.neighbour_rows(found)} == {len(explain.neighbour_columns(found))}
    assert bool(explain.network_rows(found)) == (kind != "no network")
    empty = "no neighbour in own-48, joint-48: the other parts have their share"
    assert (empty in explain.warnings(found)) == (kind == "unseen")


# Mistakes

MISTAKES = {
    "unknown series": ({"series": "nroth"}, [], 4, "the nearest of 2 is 'north'"),
    "a time outside the data": ({"at": "2031-01-01"}, [], 4, "it goes from 2024-01-01T00:00:00 to"),
    "a time between two steps": ({"at": "2024-01-19 08:30"}, [], 4, "nearest to it"),
    "a time without a lookback before it": ({"at": "2024-01-01 05:00"}, [], 4, "choose 2024-01-02T23:00:00 or later"),
    "a time before anything is known": ({"at": "2024-01-03 00:00"}, [], 4, "choose a later time"),
    "not a time": ({"at": "tomorrow"}, [], 2, "'tomorrow' is not a time"),
    "a level that is not calibrated": ({}, ["--quantiles", "0.999"], 2, "0.995"),
    "a level that is none": ({}, ["--quantiles", "2"], 2, "between 0 and 1"),
    "another picture": ({}, ["--plot", "x.gif"], 2, ".png or .svg or .pdf"),
    "another page": ({}, ["--html", "x.txt"], 2, ".html"),
    "a folder that is not there": ({}, ["--html", "nowhere/x.html"], 4, "there is no folder nowhere"),
    "an unknown index": ({}, ["--index", "n"], 4, "there is only m"),
    "an unknown device": ({}, ["--device", "tpu"], 2, "cpu"),
    "a language model that is not there": ({}, ["--llm", "./moved"], 4, "./moved"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line(call, name):
    changed, options, expected, words = MISTAKES[name]
    code, out, err = call(*options, **changed)
    assert (code, out) == (expected, "")
    assert words in one_line(err)


def test_a_level_is_refused_before_anything_is_opened(call, tmp_path):
    code, _, err = call("--quantiles", "0.999", folder=tmp_path)
    assert code == 2
    assert "0.995" in one_line(err)


def test_a_window_that_stands_still_where_none_ever_did(call, tmp_path):
    table = frame()
    table.loc[table.index[-LOOKBACK:], "south"] = 12.0
    table.to_csv(tmp_path / "still.csv", index=False)
    code, _, err = call(file=tmp_path / "still.csv", series="south", at=table["date"].iloc[-1])
    assert code == 4
    assert "a series that stands still is only compared with windows that do" in one_line(err)


def test_a_run_that_is_not_there_names_the_nearest(made, call):
    code, _, err = call(folder=made.run.with_name("smal"))
    assert code == 4
    assert "did you mean 'small'?" in one_line(err)


def test_a_run_without_a_memory_is_refused(call, without):
    code, out, err = call(folder=without("--no-gram", "--no-llm"))
    assert (code, out) == (6, "")
    assert "without the memory" in one_line(err)


def test_a_version_of_other_windows_is_refused(made, call, tmp_path):
    indexes = tmp_path / "indexes"
    shutil.copytree(made.indexes, indexes)
    window = ["--lookback", "24", "--horizon", "12", "--indexes-dir", str(indexes)]
    assert run(["index", "build", str(made.file), "--name", "m", *window]) == 0
    code, _, err = call("--index", "m@2", indexes=indexes)
    assert code == 6
    assert "lookback: 24, not 48" in one_line(err)


def test_without_matplotlib_it_says_which_extra_to_install(call, monkeypatch):
    import importlib.util

    found = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "matplotlib" else found(name))
    code, out, err = call("--plot", "x.png")
    assert (code, out) == (7, "")
    assert "gram-forecaster[plot]" in one_line(err)


def test_a_mistake_as_a_document(call):
    code, out, _ = call("--json", series="nroth")
    assert code == json.loads(out)["error"]["code"] == 4


def test_an_explanation_in_words_loads_nothing_that_draws(made):
    program = (
        "import sys; from cli.main import run; code = run(sys.argv[1:]); "
        "heavy = ('matplotlib', 'jinja2', 'forecaster.training.train'); "
        "print(code, [n for n in heavy if n in sys.modules], file=sys.stderr)"
    )
    arguments = [
        "explain",
        made.file,
        "--run",
        made.run,
        "--indexes-dir",
        made.indexes,
        "--series",
        "north",
        "--at",
        AT,
    ]
    command = [sys.executable, "-c", program, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=True)
    assert done.stderr.splitlines()[-1] == "0 []"
