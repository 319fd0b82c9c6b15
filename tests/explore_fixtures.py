"""Three versions of small indexes, a run, and the page on them, served by a thread."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from cli_fixtures import HORIZON, LOOKBACK, make

from cli.explorer.server import listen, make_app
from cli.explorer.state import State
from cli.explorer.subject import Subject, open_subject, start_state
from cli.main import run
from memory_index.tables.columns import ReadOptions

AT = "2024-01-19 12:00"  # of the test part, its future known


@cache
def indexes(base: Path) -> Path:
    """Two versions of `m`, of which the second knows more, and one of `v`, which compares 24 steps too.

    base: `getbasetemp()` of pytest.
    """
    made, folder = make(base), base / "versions"
    shutil.copytree(made.indexes, folder)
    assert run(["index", "append", "m", str(made.newer), "--indexes-dir", str(folder)]) == 0
    build = ["index", "build", str(made.file), "--name", "v", "--views", "24,48", "--indexes-dir", str(folder)]
    assert run([*build, "--lookback", str(LOOKBACK), "--horizon", str(HORIZON)]) == 0
    return folder


@cache
def subject(base: Path, with_run: bool = True, refs: tuple[str, ...] = ("m@1", "m@2", "v@1")) -> Subject:
    """The newer table with these versions, and with the run or without."""
    made = make(base)
    run_folder = made.run if with_run else None
    return open_subject(made.newer, refs, run_folder, indexes(base), ReadOptions(), device="cpu", llm=None)


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
