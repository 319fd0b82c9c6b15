"""What a picture does not show, it says."""

from __future__ import annotations

import re
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from memory_fixtures import built, wide_table

from cli.explorer.figures import BASE_LOOKS
from cli.pictures.explanation import BAND_OF, BANDS
from cli.pictures.forecast import draw_forecast
from cli.pictures.look import beyond, save
from cli.pictures.neighbours import draw_neighbours, episodes
from cli.pictures.usage import known_stretches
from cli.reports.pages import TableBlock, write_page
from forecaster.model.shortcut import NO_BASE, base_names
from memory_index.inspection import Inspection, inspect_window
from memory_index.local import LocalMemory
from memory_index.types import SCOPES
from memory_index.versions.opening import open_version


@pytest.fixture(scope="module")
def memory(tmp_path_factory: pytest.TempPathFactory) -> LocalMemory:
    return open_version(built(tmp_path_factory.mktemp("indexes")), threads=1)


@pytest.fixture(scope="module")
def found(memory: LocalMemory) -> Inspection:
    table = wide_table()
    return inspect_window(memory, table, "load", table.series[0].times[280], k=5, scopes=("own",))


def legend(found: Inspection, memory: LocalMemory) -> list[str]:
    drawn = draw_neighbours(found, memory.windows, "small@1")
    return [text.get_text() for text in drawn.axes[0].get_legend().get_texts()]


def test_every_part_that_a_gate_can_mix_has_a_look() -> None:
    bases = {*base_names(season=24, lookback=48), *NO_BASE, "network"}
    assert bases <= BASE_LOOKS.keys()
    assert {BAND_OF[name] for name in {*bases, *SCOPES}} == BANDS.keys()


def test_lines_that_leave_the_frame_are_counted(found: Inspection, memory: LocalMemory) -> None:
    """One wild line must not flatten the rest, so it is cut off; how many are is in the legend."""
    assert all(np.ptp(n.aligned_future) > 0 for n in found.neighbours)
    wild = episodes(found.neighbours, memory.windows.step)[0]
    others = [
        replace(n, aligned_future=1000 * n.aligned_future) if n is wild else replace(n, aligned_future=found.forecast)
        for n in found.neighbours
        for _ in range(1 if n is wild else 20)
    ]
    told = [each for each in legend(replace(found, neighbours=others), memory) if "scope own" in each]
    assert [re.search(r"\((\d+) beyond the frame\)", each)[1] for each in told] == ["1"]
    calm = [replace(n, aligned_future=found.forecast) for n in found.neighbours]
    assert not any("beyond" in each for each in legend(replace(found, neighbours=calm), memory))


def test_a_line_is_beyond_where_any_of_it_is() -> None:
    lines = [np.array([0.0, 1.0]), np.array([0.0, 1.1]), np.array([-0.1, 0.5]), np.array([0.0, np.nan])]
    assert beyond(lines, (0.0, 1.0)) == " (2 beyond the frame)"
    assert beyond(lines[:1], (0.0, 1.0)) == ""


LONG = "Umspannwerk S\u00fcd Transformator 2 Abgang Industriegebiet Nordost (110 kV, gepr\u00fcft) \u5909\u96fb\u6240"


def test_a_long_name_stays_in_its_panel_and_a_missing_glyph_is_no_warning(tmp_path: Path) -> None:
    table = wide_table()
    named = replace(table, series=tuple(replace(each, series_id=f"{each.series_id} {LONG}") for each in table.series))
    ahead = table.step.range(table.series[0].times[-1], 4)[1:]
    forecast = pd.DataFrame({"unique_id": np.repeat(named.series_ids, 3), "ds": np.tile(ahead, len(named.series))})
    drawn = draw_forecast(named, forecast.assign(yhat=1.0), "title")
    assert all(len(axes.get_title(loc="left")) <= 50 for axes in drawn.axes)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        save(drawn, tmp_path / "named.png")


def test_a_hole_in_the_history_is_not_drawn_as_known(memory: LocalMemory) -> None:
    windows, step = memory.windows, memory.windows.step
    values = windows.values.copy()
    values[10:40] = np.nan
    first, end = known_stretches(replace(windows, values=values), np.array([0]))
    assert first.tolist() == windows.times[[0, 40]].tolist()
    assert end.tolist() == step.add(windows.times[[9, windows.offset[1] - 1]], 1).tolist()
    assert len(known_stretches(replace(windows, values=values), np.arange(2))[0]) == 1  # the other one has them


def test_long_names_of_series_leave_the_table_on_its_page(tmp_path: Path) -> None:
    table = TableBlock(columns=["series", "what"], rows=[[LONG, LONG]], caption="", text=(0, 1), names=(0,))
    write_page(tmp_path / "page.html", "title", [], [table])
    assert (tmp_path / "page.html").read_text().count(LONG) == 1
