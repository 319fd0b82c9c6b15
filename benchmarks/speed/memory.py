"""The memory on ETTh1: build, open and append, in this process and from a cold start.

What stands beside them: raw windows, normalised and written to one file for each view, which is the least that a search
by brute force needs; and building again, which is how a version would be opened or grow if it could not be. How it is
searched is `search.py`.
"""

from __future__ import annotations

import shutil
import subprocess
import sys

import numpy as np

from benchmarks.report import Figure, run_cli
from benchmarks.speed.brute_force import RawWindows
from benchmarks.speed.stage import NAME, WINDOW, Stage
from benchmarks.speed.turns import Times, in_turns, medians, ratio
from memory_index.references import open_memory
from memory_index.splits import part_origins, split_by_name, split_until
from memory_index.versions.append import append
from memory_index.versions.build import build, cut_table
from memory_index.versions.store import Store

WEEK = 168


def figures(stage: Stage) -> list[Figure]:
    """In the order of the table."""
    cold, peak, document = stage.build_cold()
    times, raw_bytes = building(stage)
    seconds, num_bytes = medians(times), document["bytes"]
    append_cold, appended = append_by_cli(stage)
    nothing = [sys.executable, "-c", "pass"]
    starting = in_turns(
        {"help": lambda _: run_cli("--help"), "none": lambda _: subprocess.run(nothing, check=True)},
        max(3, stage.sizes.turns),
    )
    return [
        Figure(
            f"build, {document['num_rows']:,} windows in 9 key spaces",
            f"{cold:.1f} s from a cold start, {peak:.0f} MB peak; {seconds['build']:.2f} s in process, "
            f"{num_bytes / 1e6:.0f} MB",
            "15 s, 1 GB",
            f"raw windows of the 3 views, normalised and written: {seconds['raw']:.2f} s, {raw_bytes / 1e6:.0f} MB "
            f"({ratio(times, 'build', 'raw'):.1f} x quicker)",
        ),
        Figure(
            "open, all files hashed",
            f"{1e3 * seconds['open']:.0f} ms",
            "",
            f"building it again: {seconds['build']:.2f} s, {ratio(times, 'build', 'open'):.0f} x slower",
        ),
        Figure(
            f"append {WEEK} steps x {len(stage.table.series)} series",
            f"{1e3 * seconds['append']:.0f} ms in process, {append_cold:.2f} s from a cold start; "
            f"{appended / 1e6:.2f} MB of new bytes, {appended / num_bytes:.1%} of the version",
            "2 s, 5%",
            f"building all of it again: {seconds['again']:.2f} s, {ratio(times, 'again', 'append'):.0f} x slower",
        ),
        Figure(
            "`cli --help`",
            f"{medians(starting)['help']:.2f} s",
            "0.5 s",
            f"a Python that does nothing: {medians(starting)['none']:.2f} s",
        ),
    ]


def building(stage: Stage) -> tuple[Times, int]:
    """Building, opening and appending in turns with what stands beside them; and the bytes of the raw windows."""
    table, folder = stage.table, stage.folder / "building"
    longer = cut_table(table, [num_training_steps(stage) + WEEK] * len(table.series))
    store, split = Store(stage.indexes), split_by_name(stage.sizes.split, table.times)
    rows = part_origins(table, WINDOW, split, "train")[0]
    views, raw_bytes = stage.memory.windows.views, 0

    def build_new(some, split, name: str) -> None:  # type: ignore[no-untyped-def]
        build(some, Store(folder), name, window=WINDOW, split=split)
        shutil.rmtree(folder)

    def write_raw(_: int) -> None:
        nonlocal raw_bytes
        folder.mkdir()
        for view in views:
            np.save(folder / f"{view}.npy", RawWindows(table, rows, view).windows.numpy())
        raw_bytes = sum(path.stat().st_size for path in folder.iterdir())
        shutil.rmtree(folder)

    everything = split_until("end", None, longer.times, longer.step)
    actions = {
        "build": lambda _: build_new(table, split, "whole"),
        "raw": write_raw,
        "open": lambda _: open_memory(stage.indexes, f"{NAME}@1"),
        "append": lambda _: append(store, f"{NAME}@1", longer),
        "again": lambda _: build_new(longer, everything, "longer"),
    }
    return in_turns(actions, stage.sizes.turns, warm=0), raw_bytes


def num_training_steps(stage: Stage) -> int:
    """Of every series."""
    until = split_by_name(stage.sizes.split, stage.table.times).bounds("train")[1]
    return int(np.searchsorted(stage.table.times, until, side="right"))


def append_by_cli(stage: Stage) -> tuple[float, int]:
    """Seconds of `cli index append` of a week from a cold start, and bytes that the version before does not have."""
    longer = stage.first_rows(num_training_steps(stage) + WEEK)
    seconds, _, document = run_cli(
        "index", "append", f"{NAME}@1", str(longer), "--indexes-dir", str(stage.indexes), "--json"
    )
    version = stage.indexes / NAME / f"{document['version']:06d}"
    return seconds, sum(
        path.stat().st_size for path in version.rglob("*") if path.is_file() and path.stat().st_nlink == 1
    )
