"""What a picture does not show, it says."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
from memory_fixtures import built, wide_table

from cli.pictures.look import beyond
from cli.pictures.neighbours import draw_neighbours, episodes
from memory_index.inspection import Inspection, inspect_window
from memory_index.local import LocalMemory
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
