"""Write the golden version of the present format: `python tests/make_golden.py`. Run once per format number.

A version of every format that was ever published lies in tests/golden and must open, verify and answer for ever.
So the files of an old version are never written again: this refuses one that is there, unless it is of the present
format and `--replace` says that this format has not been published yet. `--forecasts` writes only the forecasts that
the versions are expected to make, where a memory is meant to forecast otherwise: the rows that it finds must stay.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
from memory_fixtures import (
    ENCODER,
    WINDOW,
    LocalMemory,
    Policy,
    SeriesTable,
    Store,
    append,
    between,
    build_until,
    open_version,
    queries_at,
    wide_table,
    with_missing,
)

from memory_index.versions.manifest import FORMAT

GOLDEN = Path(__file__).parent / "golden"
NAME = "golden"
INDEXED = {"graph": "HNSW8", "quantised": "SQ8"}  # further names, and the factory of each: what their keys lie in
HOLES = "holes"  # the name of one whose table misses cells
ANSWERS, ANSWERS_OF_HOLES = "answers.json", "answers-holes.json"
NUM_STEPS, NUM_STORED, NUM_APPENDED = 200, 120, 140


def answers(memory: LocalMemory) -> dict[str, object]:
    """What the version answers to the same queries, for both policies and all scopes, as JSON."""
    found: dict[str, object] = {}
    for policy in Policy:
        for scope in ("own", "joint", "pooled"):
            table = wide_table(NUM_STEPS) if memory.windows.missing is None else table_with_holes()
            asked = queries_at(table, range(80, NUM_STEPS, 23), policy)
            neighbours = memory.search(asked, 3, scopes=(scope,))  # type: ignore[arg-type]
            found[f"{policy}-{scope}"] = {
                "row": neighbours.row.tolist(),
                "distance": np.where(neighbours.valid, neighbours.distance, -1).round(5).tolist(),
                "forecast": np.nan_to_num(neighbours.space_forecasts(), nan=-1e6).round(3).tolist(),
            }
    return found


def write(folder: Path) -> None:
    """Versions of two segments, the same but for the index that their keys lie in, and what each of them answers."""
    table = wide_table(NUM_STEPS)
    encoder = replace(ENCODER, views=(12,), shape_width=8, joint_width=24)
    for name, factory in {NAME: "auto", **INDEXED}.items():
        with tempfile.TemporaryDirectory() as scratch:
            store = Store(Path(scratch))
            until = table.series[0].times[NUM_STORED - 1]
            first = build_until(store, table, until, name=name, window=WINDOW, encoder=encoder, factory=factory)
            grown = append(store, first.ref, between(table, 0, NUM_APPENDED))
            shutil.copytree(grown.path, folder / name / "000001")
            if name == NAME:  # so few keys are scanned, whatever index there is
                (folder / ANSWERS).write_text(json.dumps(answers(open_version(grown)), sort_keys=True) + "\n")
    with tempfile.TemporaryDirectory() as scratch:
        store, table = Store(Path(scratch)), table_with_holes()
        first = build_until(store, table, until, name=HOLES, window=WINDOW, encoder=encoder)
        grown = append(store, first.ref, between(table, 0, NUM_APPENDED))
        shutil.copytree(grown.path, folder / HOLES / "000001")
        (folder / ANSWERS_OF_HOLES).write_text(json.dumps(answers(open_version(grown)), sort_keys=True) + "\n")


def table_with_holes() -> SeriesTable:
    """The small table with cells missing at random, and one outage."""
    table, rng = wide_table(NUM_STEPS), np.random.default_rng(0)
    cells = [(s.series_id, int(row)) for s in table.series for row in np.flatnonzero(rng.random(NUM_STEPS) < 0.08)]
    return with_missing(table, [*cells, *(("load", row) for row in range(70, 78))])


def write_forecasts(folder: Path) -> None:
    """The forecasts of a version that is there, beside the rows and distances that it always had."""
    path = folder / ANSWERS
    before, found = json.loads(path.read_text()), answers(open_version(Store(folder).resolve(NAME)))
    for asked, answer in before.items():
        assert answer["row"] == found[asked]["row"], asked  # type: ignore[index]
        answer["forecast"] = found[asked]["forecast"]  # type: ignore[index]
    path.write_text(json.dumps(before, sort_keys=True) + "\n")


def main(arguments: list[str]) -> None:
    if arguments == ["--forecasts"]:
        for each in GOLDEN.glob("format-*"):
            write_forecasts(each)
        return
    folder = GOLDEN / f"format-{FORMAT}"
    if folder.exists() and arguments != ["--replace"]:
        sys.exit(f"error: {folder} is there already; formats that were published are never written again")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    write(folder)
    print(f"{folder}: {sum(path.stat().st_size for path in folder.rglob('*') if path.is_file()):,} bytes")


if __name__ == "__main__":
    main(sys.argv[1:])
