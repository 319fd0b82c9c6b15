"""A few versions of small indexes, a run, and the page on them, served by a thread."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
from cli_fixtures import HORIZON, LOOKBACK, frame, make

from cli.explorer.server import listen, make_app
from cli.explorer.state import State
from cli.explorer.subject import Subject, open_subject, start_state
from cli.main import run
from cli.options import Indexes
from memory_index.tables.columns import ReadOptions

AT = "2024-01-19 12:00"  # of the test part, its future known
ZONE, AT_NIGHT = "America/New_York", "2024-03-10 00:00"  # the night in which that zone's clocks go forward


@cache
def indexes(base: Path) -> Path:
    """Two versions of `m`, of which the second knows more, one of `v`, which compares 24 steps too, and one of `z`,
    for which the same times are those of a time zone.

    base: `getbasetemp()` of pytest.
    """
    made, folder = make(base), base / "versions"
    shutil.copytree(made.indexes, folder)
    assert run(["index", "append", "m", str(made.newer), "--indexes-dir", str(folder)]) == 0
    _build(made.file, "v", folder, "--views", "24,48")
    _build(made.file, "z", folder, "--time-zone", ZONE)
    return folder


@cache
def subject(base: Path, with_run: bool = True, refs: tuple[str, ...] = ("m@1", "m@2", "v@1")) -> Subject:
    """The newer table with these versions, and with the run or without."""
    made = make(base)
    run_folder, found = made.run if with_run else None, Indexes(folder=indexes(base))
    return open_subject(made.newer, refs, run_folder, found, ReadOptions(), device="cpu", llm=None)


@cache
def with_known(base: Path) -> Subject:
    """Without a run, on a table whose values follow two known columns."""
    folder, table, random = base / "known", frame(), np.random.default_rng(4)
    folder.mkdir()
    warm = np.repeat(random.normal(10, 6, len(table) // 6 + 1), 6)[: len(table)].round(1)
    holiday = np.repeat(random.random(len(table) // 12 + 1) < 0.2, 12)[: len(table)]
    changed = {name: table[name] + warm - 20 * holiday for name in table.columns.drop("date")}
    table.assign(**changed, temperature=warm, holiday=holiday).to_csv(folder / "known.csv", index=False)
    found = Indexes(folder=folder / "indexes")
    _build(folder / "known.csv", "known", found.folder, "--known", "temperature", "--known", "holiday")
    return open_subject(folder / "known.csv", ["known@1"], None, found, ReadOptions(), device="cpu", llm=None)


@cache
def at_night(base: Path) -> Subject:
    """Without a run, on a table of `ZONE` that goes on beyond `AT_NIGHT`."""
    folder, table = base / "at-night", frame()
    folder.mkdir()
    first = pd.Timestamp("2024-02-23", tz=ZONE)
    table["date"] = [time.isoformat() for time in pd.date_range(first, periods=len(table), freq="h")]
    table.to_csv(folder / "night.csv", index=False)
    _build(folder / "night.csv", "night", folder / "indexes", "--time-zone", ZONE)
    found = Indexes(folder=folder / "indexes")
    return open_subject(folder / "night.csv", ["night@1"], None, found, ReadOptions(), device="cpu", llm=None)


def _build(file: Path, name: str, folder: Path, *more: str) -> None:
    window = ["--lookback", str(LOOKBACK), "--horizon", str(HORIZON), "--indexes-dir", str(folder)]
    assert run(["index", "build", str(file), "--name", name, *window, *more]) == 0


def start(of: Subject, series: str = "north", at: str | None = AT) -> State:
    """What the page begins with: one side."""
    state = start_state(of, series, at)
    return State(series_id=state.series_id, at=state.at, k=state.k, min_gap=state.min_gap, sides=state.sides[:1])


@contextmanager
def served(of: Subject, state: State) -> Iterator[str]:
    """The address of the page, as long as the block runs."""
    server = listen(make_app(of, state, host="127.0.0.1"), "127.0.0.1", 0)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.port}/"
    finally:
        server.shutdown()
        thread.join()
