"""`cli explore` without a browser: its address, its moves, its numbers, who is answered, and how it fails."""

from __future__ import annotations

import csv
import io
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from base64 import b64decode
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
import torch
from cli_fixtures import HORIZON, LOOKBACK, make
from explore_fixtures import AT, AT_NIGHT, ZONE, at_night, indexes, start, subject, with_known
from hypothesis import given
from hypothesis import strategies as st

from cli.explorer.drawing import palette
from cli.explorer.figures import (
    common_limits,
    empty_figure,
    gate_figure,
    history_figure,
    thinned,
    windows_figure,
)
from cli.explorer.moves import known_value, moved
from cli.explorer.server import host_allowed, listen, look, make_app
from cli.explorer.state import MAX_GAP, MAX_K, SCOPES, Side, State, from_address, to_address
from cli.explorer.subject import open_subject
from cli.explorer.words import as_csv, columns, known_name, problem, rows, sentence, warned
from cli.main import run
from cli.options import Indexes
from cli.pictures.look import PALETTE
from cli.wording import IN_SAMPLE
from forecaster.explain import explain
from memory_index.errors import IncompatibleError, NotFoundError, ServiceError, UsageError
from memory_index.inspection import inspect_window
from memory_index.scenarios import parse_changes, with_changes
from memory_index.tables.columns import ReadOptions
from memory_index.windows import Step

START = State(series_id="a", at="2024-01-01T00:00:00", k=3, min_gap=12, sides=(Side(ref="m@1"),))


@pytest.fixture
def base(tmp_path_factory):
    return tmp_path_factory.getbasetemp()


@pytest.fixture
def small(base):
    return subject(base)


@pytest.fixture
def client(small):
    return make_app(small, start(small), host="127.0.0.1").test_client()


# The address


def subsets(values):
    return st.none() | st.sets(st.sampled_from(values), min_size=1).map(
        lambda chosen: tuple(v for v in values if v in chosen)
    )


SIDES = st.builds(Side, ref=st.text(), scopes=subsets(SCOPES), views=subsets((8, 96, 336)))


@given(
    st.builds(
        State,
        series_id=st.text(),
        at=st.text(),
        k=st.integers(1, MAX_K),
        min_gap=st.integers(0, MAX_GAP),
        sides=st.tuples(SIDES) | st.tuples(SIDES, SIDES),
        known=st.lists(st.text()).map(tuple),
    )
)
def test_an_address_restores_its_state(state):
    assert from_address(to_address(state), START) == state


def test_an_address_that_says_nothing_is_the_start():
    assert from_address("", START) == START


def test_a_second_side_is_the_first_version_unless_it_is_named():
    state = from_address("?scope=own&scope2=pooled", START)
    assert state.sides == (Side(ref="m@1", scopes=("own",)), Side(ref="m@1", scopes=("pooled",)))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("?k=0", "from 1 to 50"),
        ("?k=51", "from 1 to 50"),
        ("?k=many", "not a whole number"),
        ("?k=-1", "not a whole number"),
        ("?gap=1.5", "not a whole number"),
        ("?gap=999999999", "from 0 to 1,000,000"),
        ("?view=96,x", "not a whole number"),
        ("?scope=mine", "'mine'"),
        ("?series=a&series=b", "twice"),
        ("?colour=red", "'colour'"),
    ],
)
def test_what_an_address_cannot_mean_is_refused(text, said):
    with pytest.raises(UsageError, match=re.escape(said)):
        from_address(text, START)


# Moves


def test_moves_of_the_origin(small):
    state = start(small)
    row = small.row(state)
    for control, steps in (("on", 1), ("back", -1), ("on_far", 24), ("back_far", -24)):
        assert small.row(moved(small, state, control, {control: 1})) == row + steps, control
    clicked = moved(small, state, "history", {"history": {"points": [{"customdata": 300}]}})
    assert small.row(clicked) == 300
    assert small.row(moved(small, state, "dragged", {"dragged": 301})) == 301
    assert moved(small, state, "typed", {"typed": "2024-01-10 06:00"}).at == "2024-01-10T06:00:00"


def test_the_origin_stays_where_there_is_enough_history(small):
    state = start(small)
    assert small.row(moved(small, state, "dragged", {"dragged": 0})) == LOOKBACK - 1
    last = len(small.table["north"]) - 1
    assert small.row(moved(small, small.at_row(state, last), "on_far", {"on_far": 1})) == last


@pytest.mark.parametrize(
    ("typed", "error"),
    [("yesterday", UsageError), ("2024-01-10 06:30", NotFoundError), ("2031-01-01", NotFoundError)],
)
def test_a_time_that_cannot_be_is_refused(small, typed, error):
    with pytest.raises(error):
        moved(small, start(small), "typed", {"typed": typed})


def with_short_series(small):
    """Also a series `short` that has too little history at its end."""
    north = small.table["north"]
    short = replace(north, series_id="short", times=north.times[: LOOKBACK - 1], values=north.values[: LOOKBACK - 1])
    return replace(small, table=replace(small.table, series=(*small.table.series, short)))


def test_a_series_without_enough_history_is_refused(small):
    short = with_short_series(small)
    with pytest.raises(NotFoundError, match=f"has {LOOKBACK - 1} steps"):
        moved(short, start(short), "series", {"series": "short"})


@pytest.mark.parametrize(
    ("frequency", "steps", "name"),
    [
        ("h", 24, "1 day"),
        ("30min", 48, "1 day"),
        ("7h", 3, "3 steps"),
        ("D", HORIZON, f"{HORIZON} steps"),
        ("MS", HORIZON, f"{HORIZON} steps"),
    ],
)
def test_the_longer_move_is_a_day_where_steps_are_shorter(small, frequency, steps, name):
    step = Step(frequency=frequency)
    series = tuple(
        replace(each, times=step.range(np.datetime64("2024-01-01", "ns"), 60), values=each.values[:60])
        for each in small.table.series
    )
    of = replace(small, table=replace(small.table, step=step, series=series))
    assert of.jump(start(small)) == (steps, name)


def test_the_choice_of_a_series_keeps_the_time(small):
    state = moved(small, start(small), "series", {"series": "south"})
    assert (state.series_id, state.at) == ("south", start(small).at)


def test_comparing_begins_with_the_other_version(small, base):
    state = moved(small, start(small), "compare", {"compare": ["Compare"]})
    assert [side.ref for side in state.sides] == ["m@1", "m@2"]
    assert moved(small, state, "compare", {"compare": []}) == start(small)
    only = subject(base, False, ("m@1",))
    state = moved(only, start(only), "compare", {"compare": ["Compare"]})
    assert state.sides == (Side(ref="m@1"), Side(ref="m@1", scopes=("own",)))


def test_key_spaces_of_one_side(small):
    state = moved(small, start(small), "compare", {"compare": ["Compare"]})
    state = moved(small, state, "scopes-2", {"scopes-2": ["pooled", "own"]})
    assert state.sides == (Side(ref="m@1"), Side(ref="m@2", scopes=("own", "pooled")))
    for everything in (["own", "joint", "pooled"], []):
        assert moved(small, state, "scopes-2", {"scopes-2": everything}).sides[1].scopes is None
    other = moved(small, state, "ref-1", {"ref-1": "v@1"})
    assert moved(small, other, "views-1", {"views-1": ["24"]}).sides[0] == Side(ref="v@1", views=(24,))
    assert moved(small, other, "views-1", {"views-1": [48, 24]}).sides[0] == Side(ref="v@1")
    assert moved(small, state, "ref-1", {"ref-1": "m@2"}).sides[0] == Side(ref="m@2")


@pytest.mark.parametrize(
    ("control", "value"), [("k", 0), ("k", 51), ("k", None), ("k", 1.5), ("gap", -1), ("gap", MAX_GAP + 1)]
)
def test_numbers_out_of_range_are_refused(small, control, value):
    with pytest.raises(UsageError):
        moved(small, start(small), control, {control: value})


# Numbers


def unpacked(packed):
    return np.frombuffer(b64decode(packed["bdata"]), dtype=packed["dtype"])


def by_name(figure):
    return {trace["name"]: trace for trace in figure["data"] if "name" in trace}


def pictures(of, state):
    """Everything that is shown of a state, light and dark."""
    shown = look(of, state)
    limits, step, row = common_limits(shown.answers), of.table.step, of.row(state)
    for dark in (False, True):
        yield history_figure(of.table, state, row, shown.answers, dark=dark)
        for answer in shown.answers:
            yield windows_figure(answer, step, limits=limits, dark=dark, with_run=True)
            yield gate_figure(answer, dark=dark)


def test_the_pictures_show_what_the_library_says(small):
    state = start(small)
    version, at = small.versions["m@1"], small.table.step.parse(AT)
    found = inspect_window(
        version.memory, small.table, "north", at, k=state.k, min_gap=state.min_gap, usual=version.usual
    )
    explained = explain(small.predictor, version.memory, small.table, "north", at, usual=version.usual)
    [answer] = look(small, state).answers
    drawn = by_name(windows_figure(answer, small.table.step, limits=(0, 1), dark=False, with_run=True))
    assert np.array_equal(unpacked(drawn["memory alone"]["y"]), found.forecast)
    assert np.array_equal(unpacked(drawn["what really followed"]["y"]), found.actual)
    assert np.array_equal(unpacked(drawn["run"]["y"]), explained.forecast)
    assert np.array_equal(unpacked(drawn["run, 10% quantile"]["y"]), explained.quantiles[:, 0])
    assert np.array_equal(unpacked(drawn["run, 90% quantile"]["y"]), explained.quantiles[:, -1])
    shown = unpacked(drawn["known at the origin"]["y"])
    assert np.array_equal(shown, found.context[-len(shown) :])
    nearest = min((n for n in found.neighbours if n.scope == "own"), key=lambda n: n.distance)
    line = unpacked(drawn["neighbours, scope own"]["y"])
    last = line[:-1][-HORIZON:]  # the nearest is drawn last, over the others
    assert np.array_equal(last, nearest.aligned_future)
    for part, trace in zip(explained.parts, gate_figure(answer, dark=False)["data"], strict=True):
        assert np.array_equal(unpacked(trace["y"]), part.weight)
    assert [row[3] for row in rows(found)] == [row[3] for row in rows(answer.found)]


def clock(times, zone):
    """Times as the clocks of a zone show them, in milliseconds; UTC in, or naive without a zone."""
    index = pd.DatetimeIndex(times)
    local = index if zone is None else index.tz_localize("UTC").tz_convert(zone).tz_localize(None)
    return local.to_numpy().astype("datetime64[ms]").astype(np.int64).astype(np.float64)


def in_zone(base, small, zone):
    """A subject of a zone, or of none, and an answer whose future begins there."""
    of, at = (small, AT) if zone is None else (at_night(base), AT_NIGHT)
    state = start(of, at=at)
    [answer] = look(of, state).answers
    return of, state, answer


@pytest.mark.parametrize("zone", [None, ZONE])
def test_every_line_is_drawn_at_its_times(base, small, zone):
    of, _, answer = in_zone(base, small, zone)
    found = answer.found
    times = clock(found.times, zone)
    before, after = times[:LOOKBACK], times[LOOKBACK:]
    figure = windows_figure(answer, of.table.step, limits=(0, 1), dark=False, with_run=zone is None)
    for trace in figure["data"]:
        name, x = trace["name"], unpacked(trace["x"])
        if name == "known at the origin":
            assert np.array_equal(x, before)
        elif name == "futures of the neighbours":
            assert np.array_equal(x, [*after, *after[::-1]])
        elif name.startswith("neighbours"):
            one = [*times, after[-1]]  # the views are as long as the lookback
            assert np.array_equal(x, one * (len(x) // len(one)))
            assert np.array_equal(
                np.isnan(unpacked(trace["y"])), ([False] * len(times) + [True]) * (len(x) // len(one))
            )
        else:
            assert np.array_equal(x, after), name
    assert figure["layout"]["shapes"][0]["x0"] == before[-1]
    assert before[-1] == clock([np.datetime64(AT if zone is None else AT_NIGHT)], None)[0]
    assert (np.diff(after) == 3_600_000).all() == (zone is None)  # an hour is missing on the clocks of that night


@pytest.mark.parametrize("zone", [None, ZONE])
def test_the_lanes_show_where_each_neighbour_lies(base, small, zone):
    of, state, answer = in_zone(base, small, zone)
    drawn = history_figure(of.table, state, of.row(state), [answer], dark=False)
    [history, *lanes] = drawn["data"]
    assert np.array_equal(unpacked(history["x"]), clock(of.table["north"].times[history["customdata"]], zone))
    assert drawn["layout"]["shapes"][1]["x0"] == clock([answer.found.origin], zone)[0]

    def moment(text, hours=0):
        at = pd.Timestamp(text) + pd.Timedelta(hours=hours)
        return clock([at if zone is None else at.tz_convert("UTC").tz_localize(None)], zone)[0]

    names = drawn["layout"]["yaxis2"]["ticktext"]
    assert len(lanes) == 2 * len(names) > 2
    for place, scope in enumerate(names):
        bars, marks = lanes[2 * place : 2 * place + 2]
        group = [n for n in answer.found.neighbours if n.scope == scope]
        wanted = [[moment(n.origin, 1 - n.view), moment(n.known_at), None] for n in group]
        assert bars["x"] == [each for bar in wanted for each in bar]
        assert list(unpacked(marks["x"])) == [moment(n.origin) for n in group]
        assert {*bars["y"], *marks["y"]} == {place}


def test_names_of_series_are_no_html(small):
    state = replace(start(small), series_id="<b>a</b> & b")
    [answer] = look(small, start(small)).answers
    named = replace(small.table, series=(replace(small.table["north"], series_id=state.series_id),))
    answer = replace(answer, found=replace(answer.found, series_id=state.series_id))
    history = history_figure(named, state, 300, [answer], dark=False)
    windows = windows_figure(answer, small.table.step, limits=(0, 1), dark=False, with_run=True)
    assert history["layout"]["yaxis"]["title"]["text"] == "&lt;b&gt;a&lt;/b&gt; &amp; b"
    assert windows["layout"]["yaxis"]["title"]["text"].startswith("&lt;b&gt;a&lt;/b&gt; &amp; b (")


def test_long_names_of_series_leave_room(small):
    name = "Umspannwerk Transformator 2 Abgang Industriegebiet Nordost"
    state = replace(start(small), series_id=name)
    [answer] = look(small, start(small)).answers
    named = replace(small.table, series=(replace(small.table["north"], series_id=name),))
    neighbours = [replace(n, series_id=name) for n in answer.found.neighbours]
    answer = replace(answer, found=replace(answer.found, series_id=name, neighbours=neighbours))
    history = history_figure(named, state, 300, [answer], dark=False)
    windows = windows_figure(answer, small.table.step, limits=(0, 1), dark=False, with_run=True)
    assert history["layout"]["yaxis"]["title"]["text"] == "Umspan..ordost"
    assert windows["layout"]["yaxis"]["title"]["text"] == "Umspan..ordost (units of the data)"
    assert {row[2] for row in rows(answer.found)} == {"Umspannwerk T..ebiet Nordost"}
    assert name in as_csv(answer.found)


def test_the_fan_is_nested(small):
    [answer] = look(small, start(small)).answers
    outer, inner = (unpacked(trace["y"]) for trace in windows_figure(
        answer, small.table.step, limits=(0, 1), dark=False, with_run=True)["data"][:2])  # fmt: skip
    assert np.array_equal(outer[:HORIZON], answer.found.quantiles[:, 0])
    assert np.array_equal(inner[HORIZON:][::-1], answer.found.quantiles[:, 2])


def test_every_picture_is_one_that_plotly_takes(small):
    state = moved(small, start(small), "compare", {"compare": ["Compare"]})
    for figure in [*pictures(small, state), empty_figure(dark=False)]:
        go.Figure(figure)  # raises ValueError for any property that it does not know


def test_dark_pictures_use_dark_colours_only(small):
    shown = list(pictures(small, start(small)))
    light, dark = repr(shown[: len(shown) // 2]), repr(shown[len(shown) // 2 :])
    for colour in PALETTE:
        assert colour.dark not in light
        assert colour.light not in dark
    assert palette(True)["ink"] in dark


def test_nothing_later_than_the_origin_is_shown_but_what_followed(small):
    state = start(small)
    row = small.row(state)
    series = tuple(
        replace(each, values=np.where(np.arange(len(each)) > row, 1e6, each.values)) for each in small.table.series
    )
    poisoned = replace(small, table=replace(small.table, series=series))
    [before], [after] = look(small, state).answers, look(poisoned, state).answers
    for draw in (
        lambda answer: windows_figure(answer, small.table.step, limits=(0, 1), dark=False, with_run=True),
        lambda answer: gate_figure(answer, dark=False),
    ):
        one, other = draw(before), draw(after)
        kept = [[t for t in each["data"] if t["name"] != "what really followed"] for each in (one, other)]
        assert kept[0] == kept[1]
    lanes = [
        history_figure(of.table, state, row, [a], dark=False)["data"][1:]
        for of, a in ((small, before), (poisoned, after))
    ]
    assert lanes[0] == lanes[1]
    assert [line[:-1] for line in rows(before.found)] == [line[:-1] for line in rows(after.found)]
    assert warned(before, "small") == warned(after, "small")
    assert not np.array_equal(before.found.actual, after.found.actual)


# Known covariates


def test_known_columns_are_changed_one_by_one(base):
    of = with_known(base)
    state = start(of)
    assert [column.name for column in of.known] == ["temperature", "holiday"]
    colder = moved(of, state, "known_0", {"known_0": -5})
    assert colder.known == ("temperature+=-5",)
    both = moved(of, colder, "known_1", {"known_1": "true"})
    assert both.known == ("temperature+=-5", "holiday=true")
    assert [known_value(both, column) for column in of.known] == [-5, "true"]
    assert known_name(of.known[0], -5.0) == "temperature, changed by -5"
    assert moved(of, both, "known_0", {"known_0": 0}).known == ("holiday=true",)
    assert moved(of, both, "known_1", {"known_1": None}).known == ("temperature+=-5",)
    assert from_address(to_address(both), state) == both
    for wrong in ("wind+=1", "temperature", "holiday+=1"):
        [told] = look(of, replace(state, known=(wrong,))).problems
        assert wrong in told


def test_a_change_of_what_is_known_moves_neighbours_fan_and_forecast(base):
    of = with_known(base)
    version, at, state = of.versions["known@1"], of.table.step.parse(AT), replace(start(of), known=("temperature+=-8",))
    plain, changed = (look(of, each).answers[0] for each in (start(of), state))
    table = with_changes(
        of.table,
        parse_changes(state.known),
        version.memory.manifest.covariates,
        version.memory.windows.spec.horizon,
        at=at,
    )
    found = inspect_window(version.memory, table, "north", at, k=state.k, min_gap=state.min_gap)
    assert np.array_equal(changed.found.forecast, found.forecast)
    assert np.array_equal(changed.plain, plain.found.forecast)
    assert plain.plain is None
    assert found.forecast.mean() < plain.found.forecast.mean() - 2
    assert not np.array_equal(changed.found.quantiles, plain.found.quantiles)
    assert [n.row_id for n in changed.found.neighbours] != [n.row_id for n in plain.found.neighbours]
    said = sentence(changed, None, state.known)
    assert "Changed over the horizon: temperature+=-8." in said
    assert "without the changes" in said
    assert "cond." in columns(found)
    assert "condition_distance" in as_csv(found).splitlines()[0]


def test_known_columns_stand_under_the_windows(base):
    """Aligned with the target, the query's own and those of its neighbours, in figures that plotly takes."""
    of = with_known(base)
    [answer] = look(of, replace(start(of), known=("holiday=true",))).answers
    figure = windows_figure(answer, of.table.step, limits=(0, 1), dark=False, with_run=False)
    go.Figure(figure)
    drawn, found = by_name(figure), answer.found
    target = drawn["known at the origin"], drawn["memory alone"]
    for name in ("temperature", "holiday"):
        times, values = (unpacked(drawn[name][axis]) for axis in "xy")
        assert np.array_equal(times, np.concatenate([unpacked(each["x"]) for each in target]))
        assert np.array_equal(values, found.covariates[name][-len(times) :])
    assert drawn["holiday"]["customdata"][-HORIZON:] == ["true"] * HORIZON
    domains = [figure["layout"][f"yaxis{end}"]["domain"] for end in ("", "2", "3")]
    assert domains[0][0] > domains[1][1] > domains[1][0] > domains[2][1] > domains[2][0] == 0
    beside = [each for each in figure["data"] if each.get("yaxis") == "y2" and "name" not in each]
    assert len(beside) == len({n.scope for n in found.neighbours})


def test_both_sides_have_the_same_limits(small):
    state = replace(start(small), sides=(Side(ref="m@1", scopes=("own",)), Side(ref="v@1", scopes=("pooled",))))
    shown = look(small, state)
    low, high = common_limits(shown.answers)
    each = [common_limits([answer]) for answer in shown.answers]
    assert (low, high) == (min(e[0] for e in each), max(e[1] for e in each))
    assert each[0] != each[1]
    for answer in shown.answers:
        drawn = windows_figure(answer, small.table.step, limits=(low, high), dark=False, with_run=True)
        assert drawn["layout"]["yaxis"]["range"] == [low, high]


@given(st.lists(st.floats(-1e6, 1e6) | st.just(np.nan), min_size=1, max_size=400), st.integers(1, 30))
def test_a_thinned_series_keeps_its_extremes(values, num_bins):
    values = np.array(values)
    kept = thinned(values, num_bins)
    assert (np.diff(kept) > 0).all()
    assert kept[0] == 0
    assert kept[-1] == len(values) - 1
    assert len(kept) <= 2 * num_bins + 2
    if np.isfinite(values).any():
        assert np.nanmax(values[kept]) == np.nanmax(values)
        assert np.nanmin(values[kept]) == np.nanmin(values)


def test_words_say_what_is_unusual(small):
    [answer] = look(small, start(small)).answers
    far = replace(answer, found=replace(answer.found, no_close_analogue=True, in_sample=True))
    lines = warned(far, "small")
    assert any(line.startswith("no close analogue") for line in lines)
    assert any(line.startswith("in sample") for line in lines)
    used = replace(answer, explained=replace(answer.explained, in_sample=True))
    assert not answer.explained.in_sample
    assert (IN_SAMPLE in warned(used, "small"), IN_SAMPLE in warned(answer, "small")) == (True, False)
    text = sentence(answer, "small")
    assert "north up to 2024-01-19 12:00" in text
    assert "the run small expects" in text


def test_a_side_that_cannot_be_answered_says_why(small):
    early = replace(start(small), at=small.table.step.isoformat(small.table["north"].times[LOOKBACK - 1]))
    shown = look(small, early)
    assert shown.answers == (None,)
    assert "no admissible neighbour" in shown.problems[0]
    assert history_figure(small.table, early, LOOKBACK - 1, shown.answers, dark=False)["data"]


# Who is answered


def use(client, control, **values):
    """What the page shows after a control was used. values: what others hold, by their names with `_` for `-`."""
    [callback] = [each for each in client.get("/_dash-dependencies").json if "history.figure" in each["output"]]
    outputs = [each.rsplit(".", 1) for each in callback["output"].strip(".").split("...")]
    inputs = [each | {"value": values.get(each["id"].replace("-", "_"))} for each in callback["inputs"]]
    [changed] = [f"{each['id']}.{each['property']}" for each in callback["inputs"] if each["id"] == control]
    answered = client.post(
        "/_dash-update-component",
        json={
            "output": callback["output"],
            "outputs": [{"id": name, "property": each} for name, each in outputs],
            "inputs": inputs,
            "changedPropIds": [changed],
        },
    )
    assert answered.status_code == 200
    return answered.json["response"]


def test_what_is_refused_is_said_and_undone(small):
    short = with_short_series(small)
    client = make_app(short, start(short), host="127.0.0.1").test_client()
    shown = use(client, "series", series="short", k=3)
    assert f"has {LOOKBACK - 1} steps" in shown["message"]["children"]
    assert shown["series"]["value"] == "north"
    shown = use(client, "gap", series="north", gap=999_999_999)
    assert shown["message"]["children"] == "steps apart is 999,999,999, but must be from 0 to 1,000,000"
    assert shown["gap"]["value"] == HORIZON
    assert use(client, "gap", series="north", gap=MAX_GAP)["message"]["children"] == ""


def side_by_side(*tasks):
    """Do them in threads; whether each has ended in time."""
    threads = [threading.Thread(target=task, daemon=True) for task in tasks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=600)
    return [not thread.is_alive() for thread in threads]


class Alone:
    """Calls a function, slowly, and notes whether it was called while it was at it. Used from threads."""

    def __init__(self, function):
        self.function, self.busy, self.calls = function, threading.Lock(), []

    def __call__(self, *arguments, **named):
        alone = self.busy.acquire(blocking=False)
        self.calls.append(alone)
        try:
            time.sleep(0.3)
            return self.function(*arguments, **named)
        finally:
            if alone:
                self.busy.release()


def test_one_question_is_asked_at_a_time(small, monkeypatch):
    app = make_app(small, start(small), host="127.0.0.1")
    asked = Alone(inspect_window)
    monkeypatch.setattr("cli.explorer.subject.inspect_window", asked)
    tables = [lambda: app.test_client().get("/export/1/neighbours.csv")] * 2
    assert all(side_by_side(*tables, *[lambda: use(app.test_client(), "k", k=2)] * 2))
    assert asked.calls == [True] * 4


def test_one_picture_is_drawn_at_a_time(client, small, monkeypatch):
    from cli.pictures.look import save

    app, saved = make_app(small, start(small), host="127.0.0.1"), Alone(save)
    monkeypatch.setattr("cli.pictures.look.save", saved)
    assert all(side_by_side(*[lambda: app.test_client().get("/export/1/neighbours.png")] * 2))
    assert saved.calls == [True] * 2


def test_no_question_waits_for_a_picture(small, monkeypatch):
    app = make_app(small, start(small), host="127.0.0.1")
    drawing, asked = threading.Event(), threading.Event()

    def save_late(drawn, path):
        drawing.set()
        path.write_bytes(b"late" if asked.wait(timeout=600) else b"never")

    monkeypatch.setattr("cli.pictures.look.save", save_late)
    pictures = []

    def ask():
        assert drawing.wait(timeout=600)
        assert app.test_client().get("/export/1/neighbours.csv").status_code == 200
        use(app.test_client(), "k", k=2)
        asked.set()

    side_by_side(lambda: pictures.append(app.test_client().get("/export/1/neighbours.png").data), ask)
    assert pictures == [b"late"]


@pytest.mark.parametrize(
    ("asked", "bound", "allowed"),
    [
        ("127.0.0.1:8765", "127.0.0.1", True),
        ("localhost:8765", "127.0.0.1", True),
        ("LOCALHOST", "127.0.0.1", True),
        ("[::1]:8765", "127.0.0.1", True),
        ("attacker.example:8765", "127.0.0.1", False),
        ("127.0.0.1.attacker.example", "127.0.0.1", False),
        ("192.168.1.5:8765", "127.0.0.1", False),
        ("", "127.0.0.1", False),
        ("192.168.1.5:8765", "0.0.0.0", True),
        ("attacker.example", "0.0.0.0", False),
        (socket.gethostname(), "0.0.0.0", True),
        ("box.lan:8765", "box.lan", True),
    ],
)
def test_only_names_of_this_machine_are_answered(asked, bound, allowed):
    assert host_allowed(asked, bound) is allowed


@pytest.mark.parametrize("path", ["/", "/_dash-layout", "/_dash-dependencies", "/export/1/neighbours.csv"])
def test_every_path_refuses_a_foreign_host(client, path):
    assert client.get(path, headers={"Host": "attacker.example"}).status_code == 400
    answered = client.get(path, headers={"Host": "127.0.0.1"})
    assert answered.status_code == 200
    assert "default-src 'self'" in answered.headers["Content-Security-Policy"]


def test_the_page_names_no_other_server(client):
    text = client.get("/").text
    tags = re.findall(r"""<(?:script|link|img)[^>]*(?:src|href)=["']([^"']+)""", text)
    assert len(tags) > 5
    assert [tag for tag in tags if not tag.startswith(("/", "data:"))] == []


# Exports


def test_the_table_is_exported_in_full(client, small):
    answered = client.get(f"/export/1/neighbours.csv{to_address(start(small))}")
    assert answered.status_code == 200
    assert "north-2024-01-19" in answered.headers["Content-Disposition"]
    read = list(csv.DictReader(io.StringIO(answered.text)))
    [answer] = look(small, start(small)).answers
    assert [float(row["distance"]) for row in read] == [n.distance for n in answer.found.neighbours]
    assert [row["origin"] for row in read] == [n.origin for n in answer.found.neighbours]


@pytest.mark.parametrize(("kind", "begins"), [("png", b"\x89PNG"), ("svg", b"<?xml")])
def test_the_picture_is_that_of_the_command(client, small, base, tmp_path, kind, begins):
    answered = client.get(f"/export/1/neighbours.{kind}{to_address(start(small))}")
    file = tmp_path / f"neighbours.{kind}"
    command = ["index", "neighbours", "m@1", str(make(base).newer), "--series", "north", "--at", AT, "-k", "3"]
    command += ["--min-gap", str(HORIZON), "--plot", str(file), "--indexes-dir", str(indexes(base))]
    assert run(command) == 0
    assert answered.data.startswith(begins)
    assert answered.data == file.read_bytes()


def test_an_export_of_what_is_not_there(client):
    assert client.get("/export/1/neighbours.exe").status_code == 404
    assert client.get("/export/2/neighbours.csv").status_code == 404
    refused = client.get("/export/1/neighbours.csv?series=nroth")
    assert refused.status_code == 400
    assert "'north'" in refused.text


# The command


def command(base, *arguments):
    return ["explore", str(make(base).newer), "--indexes-dir", str(indexes(base)), "--port", "0", *arguments]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ([], 2, "neither --run nor --index"),
        (["--index", "m@1", "--series", "nroth"], 4, "'north'"),
        (["--index", "m@1", "--at", "soon"], 2, "not a time"),
        (["--index", "m@1", "--at", "2031-01-01"], 4, "it goes from"),
        (["--index", "m@1", "--at", "2024-01-02 23:00"], 4, "choose a later time"),
        (["--index", "m@7"], 4, "m@7"),
        (["--index", "m@1", "--host", "no.such.host.invalid"], 8, "no.such.host.invalid"),
    ],
)
def test_what_cannot_be_shown_is_said_in_one_line(base, capsys, arguments, code, said):
    assert run(command(base, *arguments)) == code
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("error: ")
    assert said in line


@pytest.mark.parametrize("refs", [("z@1", "m@1"), ("m@1", "z@1"), ("m@2", "m@1", "z@1")])
def test_versions_of_different_time_zones_are_not_shown_together(base, capsys, monkeypatch, refs):
    # A table read like one of them would ask the other about hours that are still to come.
    monkeypatch.setattr("werkzeug.serving.BaseWSGIServer.serve_forever", lambda self: self.server_close())
    assert run(command(base, *(each for ref in refs for each in ("--index", ref)))) == 6
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("error: ")
    assert ZONE in line


def test_a_version_that_is_named_twice_is_shown_once(base):
    assert list(subject(base, False, ("m@1", "m@2", "m@1")).versions) == ["m@1", "m@2"]


def test_versions_of_other_data_are_not_shown_together(base, tmp_path):
    other = pd.read_csv(make(base).file)
    other["north"] += 1
    other.to_csv(tmp_path / "other.csv", index=False)
    build = ["index", "build", str(tmp_path / "other.csv"), "--name", "o", "--indexes-dir", str(tmp_path)]
    assert run([*build, "--lookback", str(LOOKBACK), "--horizon", str(HORIZON)]) == 0
    (tmp_path / "m").symlink_to(indexes(base) / "m")
    with pytest.raises(IncompatibleError, match="o@1"):
        open_subject(
            make(base).newer, ["m@1", "o@1"], None, Indexes(folder=tmp_path), ReadOptions(), device="cpu", llm=None
        )


def test_a_run_has_a_name_wherever_one_stands_and_one_thread(base, monkeypatch):
    made, before = make(base), torch.get_num_threads()
    monkeypatch.chdir(made.run)
    torch.set_num_threads(2)
    try:
        of = open_subject(made.newer, [], Path(), Indexes(folder=indexes(base)), ReadOptions(), device="cpu", llm=None)
        assert (of.run, torch.get_num_threads()) == ("small", 1)
    finally:
        torch.set_num_threads(before)


def test_a_run_without_memory_is_refused(base, capsys, tmp_path):
    made = make(base)
    assert run([*made.train, "--no-gram", "--set", "epochs=1", "--out", str(tmp_path / "alone")]) == 0
    assert run(command(base, "--run", str(tmp_path / "alone"))) == 6
    assert "trained without the memory" in capsys.readouterr().err


def test_a_busy_port_is_told(base, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert run([*command(base, "--index", "m@1"), "--port", port]) == 8
    line = capsys.readouterr().err.splitlines()[-1]
    assert port in line
    assert "--port" in line


def test_a_busy_port_leaves_no_other_exception(small):
    app = make_app(small, start(small), host="127.0.0.1")
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(ServiceError):
        listen(app, "127.0.0.1", taken.getsockname()[1])


@pytest.mark.parametrize("missing", ["dash", "matplotlib"])
def test_without_the_extra_it_says_what_to_install(base, capsys, monkeypatch, missing):
    import importlib.util

    found = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == missing else found(name))
    assert run(command(base, "--index", "m@1")) == 7
    assert "pip install 'gram-forecaster[explore]'" in capsys.readouterr().err


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM])
def test_it_ends_cleanly_when_told_to(base, repository, ending):
    program = [sys.executable, "-m", "cli", *command(base, "--index", "m@1")]
    with subprocess.Popen(
        program, cwd=repository, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        lines = []
        for line in process.stderr:
            lines.append(line)
            if "http://127.0.0.1:" in line:
                break
        process.send_signal(ending)
        out, rest = process.communicate(timeout=600)
    assert process.returncode == 0, lines
    assert out == ""
    assert rest == "ended\n"


def test_a_page_for_others_says_so(base, capsys, monkeypatch):
    monkeypatch.setattr("werkzeug.serving.BaseWSGIServer.serve_forever", lambda self: self.server_close())
    assert run(command(base, "--index", "m@1")) == 0
    assert "everyone who can reach" not in capsys.readouterr().err
    assert run(command(base, "--index", "m@1", "--host", "0.0.0.0")) == 0
    assert "everyone who can reach" in capsys.readouterr().err


def test_a_version_that_the_run_cannot_use_is_shown_without_it(small):
    state = replace(start(small), sides=(Side(ref="m@2"), Side(ref="v@1")))
    with_run, without = look(small, state).answers
    assert with_run.explained is not None
    assert without.explained is None
    assert "not trained against this version" in " ".join(warned(without, "small"))
    assert gate_figure(without, dark=False)["data"] == []


def test_problems_are_one_line():
    assert problem(UsageError("what", hint="do")) == "what (do)"
    assert problem(UsageError("what")) == "what"
