"""Training beside what it is made of and beside other packages, over many kinds of table; resumable.

    python -m benchmarks.league --data-dir DATA --work-dir WORK
    python -m benchmarks.league --data-dir DATA --work-dir WORK --others --plot docs/images/league.png

Every table is built, trained and scored with nothing but lookback and horizon given. Scored are what training made,
each of its parts by itself, and the memory alone: mean squared error in standardised units, MASE, scaled quantile
loss, and what the 10 and 90% quantiles cover. Tables that `decide` are those by which defaults were chosen; the
others only report. --others asks forecasters of other packages too (`make peers`), for about 48 windows of a table,
spread evenly over series and time, and shows what ours scores on the same ones. A finished row is kept in --rows
(JSON) and is not measured again: the command goes on where it stopped, on any machine.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.league.others import OTHERS, others_score
from benchmarks.league.scoring import score
from benchmarks.league.showing import draw, show, show_others
from benchmarks.league.tables import TABLES, Entry
from forecaster.config import Config
from forecaster.predictor import load_predictor
from forecaster.training.fit import train_run
from memory_index import Store, WindowSpec, append, build, open_memory, read_frame, split_by_name
from memory_index.files import replace
from memory_index.splits import Split, require_origins
from memory_index.tables.series import SeriesTable
from memory_index.versions.build import cut_table

ROWS = Path(__file__).parent.with_suffix(".json")


def main() -> None:
    """Measure what is missing, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, default=Path("datasets"))
    parser.add_argument("--work-dir", type=Path, required=True, help="indexes and runs, while they are needed")
    parser.add_argument("--rows", type=Path, default=ROWS, help="finished tables, as JSON")
    parser.add_argument("--tables", nargs="*", default=[entry.name for entry in TABLES], help="default: all")
    parser.add_argument("--others", nargs="*", choices=OTHERS, help="ask these forecasters too, default: all of them")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="settings of the training")
    parser.add_argument("--plot", type=Path, help="also draw the picture")
    options = parser.parse_args()
    settings = {name: json.loads(value) for name, value in (each.split("=") for each in options.set)}
    others = OTHERS if options.others == [] else options.others or ()
    rows: dict[str, dict[str, Any]] = json.loads(options.rows.read_text()) if options.rows.is_file() else {}

    def keep() -> None:
        replace(options.rows, (json.dumps(rows, indent=1) + "\n").encode())

    for entry in (entry for entry in TABLES if entry.name in options.tables):
        if entry.name not in rows:
            rows[entry.name] = measured(entry, options.data_dir, options.work_dir, settings)
            keep()
    for peer in others:
        for entry in (entry for entry in TABLES if entry.name in options.tables):
            if peer not in (found := rows[entry.name].setdefault("others", {})):
                table, split, origins = windows_of(entry, options.data_dir)
                folder = options.work_dir / f"{entry.slug}-{peer.lower()}"
                found[peer] = others_score(peer, table, origins, entry, split, folder)
                print(f"{time.strftime('%H:%M:%S')} {entry.name}: {peer} {found[peer]}", file=sys.stderr, flush=True)
                keep()
    kept = {entry.name: rows[entry.name] for entry in TABLES if entry.name in rows}
    show(kept)
    show_others(kept)
    if options.plot is not None:
        draw(kept, options.plot)


def windows_of(entry: Entry, data_dir: Path) -> tuple[SeriesTable, Split, list[np.ndarray]]:
    """A table, the default split of all rows or, where only the last window is scored, of those before it, and the
    scored origin rows of each series.
    """
    table = read_frame(entry.make(data_dir))
    split = split_by_name("70/10/20", table.times if entry.test_stride else table.times[: -entry.horizon])
    if not entry.test_stride:
        return table, split, [np.array([len(series) - entry.horizon - 1]) for series in table.series]
    spec = WindowSpec(lookback=entry.lookback, horizon=entry.horizon)
    return table, split, [rows[:: entry.test_stride] for rows in require_origins(table, spec, split, "test")]


def measured(entry: Entry, data_dir: Path, work_dir: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Build, train and score one table."""
    folder = work_dir / f"{entry.slug}.work"
    shutil.rmtree(folder, ignore_errors=True)
    table, split, origins = windows_of(entry, data_dir)
    window = WindowSpec(lookback=entry.lookback, horizon=entry.horizon)
    notes: list[str] = []
    began = time.perf_counter()
    seen = table if entry.test_stride else cut_table(table, [len(series) - entry.horizon for series in table.series])
    build(seen, Store(folder / "indexes"), "table", window=window, split=split)
    memory = open_memory(folder / "indexes", "table@1")
    config = Config.from_dict({"lookback": entry.lookback, "horizon": entry.horizon} | settings)
    built = time.perf_counter() - began
    trained = train_run(
        seen, memory, "table@1", config, folder / "run", neighbours_dir=folder / "neighbours", note=notes.append
    )
    seconds = time.perf_counter() - began - built
    if not entry.test_stride:
        append(Store(folder / "indexes"), "table", seen)
        memory = open_memory(folder / "indexes", "table@2")
    scored = score(load_predictor(trained.run, device="cpu"), memory, table, origins, entry, split)
    shutil.rmtree(folder)
    print(f"{time.strftime('%H:%M:%S')} {entry.name}: {seconds:.0f} s of training", file=sys.stderr, flush=True)
    return {
        "role": entry.role,
        **scored,
        "closed_form": trained.closed_form,
        "plan": trained.plan,
        "notes": notes,
        "build_seconds": round(built, 1),
        "train_seconds": round(seconds, 1),
    }


if __name__ == "__main__":
    main()
