"""How the defaults of the memory were chosen: once for all data sets, never by a test figure.

    python -m benchmarks.memory_defaults --data-dir datasets

For every setting, the memory-only MSE on (a) validation windows, asked under `causal`, and (b) training windows, asked
under `disjoint` with a cross-fitted encoder: three contiguous blocks of time, each asked of keys whose encoder was
fitted on the others, lookback + horizon steps purged. Shown relative to the defaults, as a mean over data sets of both.
Every 4th validation and every 8th training moment is asked. Data sets whose file is missing are skipped, saying so.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.data_sets import present
from benchmarks.report import machine
from memory_index.encoder import EncoderConfig
from memory_index.leakage import Policy
from memory_index.local import LocalMemory
from memory_index.queries import futures_of, query_blocks
from memory_index.splits import Split, part_origins, split_by_name
from memory_index.tables.reading import read_table
from memory_index.tables.series import SeriesTable
from memory_index.versions.build import build, stored_part
from memory_index.versions.opening import open_version
from memory_index.versions.store import Store
from memory_index.windows import WindowSpec, origin_rows

WINDOW = WindowSpec(lookback=512, horizon=96)
NUM_BLOCKS, VAL_STRIDE, TRAIN_STRIDE = 3, 4, 8

DEFAULTS = EncoderConfig()
MORE_VIEWS = "views 48, 96, 168, 336"
BUILT: dict[str, dict[str, object]] = {  # settings that need other keys
    "defaults": {},
    **{f"spread_floor {v}": {"spread_floor": v} for v in (0.05, 0.1, 0.2, 0.4)},
    **{f"flat_below {v}": {"flat_below": v} for v in (0.0, 0.05, 0.1)},
    **{f"shape_weight {v}": {"shape_weight": v} for v in (0.5, 0.8, 0.95, 1.0)},
    **{f"forecast_weight {v}": {"forecast_weight": v} for v in (0.0, 1.0, 2.0, 4.0)},
    **{f"shape_width {v}": {"shape_width": v} for v in (24, 32, 96)},
    **{f"joint_width {v}": {"joint_width": v} for v in (64, 256)},
    **{f"ridge {v}": {"ridge": v} for v in (0.001, 0.1)},
    MORE_VIEWS: {"views": (48, 96, 168, 336)},
    "views 96, 168, 336, 512": {"views": (96, 168, 336, 512)},
}
ASKED: dict[str, dict[str, object]] = {  # settings of the search, asked of the default keys
    **{f"K {v}": {"k": v} for v in (5, 10, 25, 100, 200)},
    **{f"scope {s} only": {"scopes": (s,)} for s in ("own", "joint", "pooled")},
    "scopes own, joint": {"scopes": ("own", "joint")},
    "scopes own, pooled": {"scopes": ("own", "pooled")},
    "scopes joint, pooled": {"scopes": ("joint", "pooled")},
    "scopes own, joint, pooled": {"scopes": ("own", "joint", "pooled")},
    "scopes own, joint, pooled, K 100": {"scopes": ("own", "joint", "pooled"), "k": 100},
    "scopes own, joint, pooled, K 25": {"scopes": ("own", "joint", "pooled"), "k": 25},
    **{f"view {v} only": {"views": (v,)} for v in DEFAULTS.views},
    "equal weights": {"equal": True},
    "futures moved by nothing": {"moved": 0.0},
    "futures moved by half": {"moved": 0.5},
}


def main() -> None:
    """Measure every setting on every data set that is there, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-dir", type=Path, default=Path("datasets"))
    parser.add_argument("--out", type=Path, help="also write the figures as JSON")
    parser.add_argument("--settings", nargs="*", default=[*BUILT], choices=[*BUILT], help="only these kinds of keys")
    options = parser.parse_args()
    results: dict[str, dict[str, float]] = {}  # setting -> "ETTh1 val" -> MSE
    for data_set in present(options.data_dir):
        table = read_table(data_set.path)
        split = split_by_name(data_set.split, table.series[0].times)
        for setting in options.settings:
            config = dataclasses.replace(DEFAULTS, **BUILT[setting])  # type: ignore[arg-type]
            measured = measure(table, split, config, ASKED if setting in ("defaults", MORE_VIEWS) else {})
            for name, parts in measured.items():
                label = setting if name == "" else name if setting == "defaults" else f"{setting}; {name}"
                results.setdefault(label, {}).update({f"{data_set.name} {part}": mse for part, mse in parts.items()})
            print(f"{time.strftime('%H:%M:%S')} {data_set.name} {setting}", file=sys.stderr)
    show(results, options.out)


def measure(
    table: SeriesTable, split: Split, config: EncoderConfig, asked: dict[str, dict[str, object]]
) -> dict[str, dict[str, float]]:
    """MSE of one kind of keys, by way of asking ("" is the default way) and part."""
    training = stored_part(table, split.train_until, WINDOW)
    origins = [origin_rows(series.values, WINDOW) for series in training.series]
    squared: dict[str, dict[str, list[np.ndarray]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        store = Store(folder)

        def memory(fit_origins: list[np.ndarray] | None) -> LocalMemory:
            return open_version(
                build(table, store, "trial", window=WINDOW, split=split, encoder=config, fit_origins=fit_origins)
            )

        val = [rows[::VAL_STRIDE] for rows in part_origins(table, WINDOW, split, "val")]
        ask(memory(None), table, val, Policy.CAUSAL, asked, "val", squared)
        for number in range(NUM_BLOCKS):
            block = [np.array_split(rows, NUM_BLOCKS)[number] for rows in origins]
            others = [
                rows[(rows <= own[0] - WINDOW.length) | (rows >= own[-1] + WINDOW.length)]
                for rows, own in zip(origins, block, strict=True)
            ]
            thinned = [rows[::TRAIN_STRIDE] for rows in block]
            ask(memory(others), table, thinned, Policy.DISJOINT, asked, "train", squared)
    return {
        name: {part: float(np.concatenate(values).mean()) for part, values in parts.items()}
        for name, parts in squared.items()
    }


def ask(
    memory: LocalMemory,
    table: SeriesTable,
    origins: list[np.ndarray],
    policy: Policy,
    asked: dict[str, dict[str, object]],
    part: str,
    squared: dict[str, dict[str, list[np.ndarray]]],
) -> None:
    """Add the standardised squared error of each window to `squared[way][part]`."""
    unit = memory.encoder.scale.std
    for block in query_blocks(table, origins, WINDOW, policy, known=table.series_ids):
        future = futures_of(table, block, WINDOW.horizon)
        for name, way in {"": {}, **asked}.items():
            search = {key: value for key, value in way.items() if key not in ("k", "equal", "moved")}
            neighbours = memory.search(block.queries, int(way.get("k", 50)), **search)  # type: ignore[arg-type, call-overload]
            if way.get("equal"):
                neighbours = dataclasses.replace(neighbours, temperature=np.full_like(neighbours.temperature, 1e9))
            if "moved" in way:
                maps = {view: way["moved"] * each for view, each in neighbours.linear_maps.items()}
                neighbours = dataclasses.replace(neighbours, linear_maps=maps)
            error = (neighbours.forecast(on_empty="last-value") - future) / unit[:, None]
            squared.setdefault(name, {}).setdefault(part, []).append(np.square(error).mean(axis=2).ravel())


def show(results: dict[str, dict[str, float]], out: Path | None) -> None:
    """The table, best first."""
    base = results["defaults"]
    relative = {name: float(np.mean([parts[c] / base[c] for c in base])) for name, parts in results.items()}
    print(f"{machine()}\n\n| setting | relative MSE | {' | '.join(base)} |\n|---|---|{'---|' * len(base)}")
    for name in sorted(relative, key=relative.__getitem__):
        print(f"| {name} | {relative[name]:.4f} | {' | '.join(f'{results[name][c]:.4f}' for c in base)} |")
    if out is not None:
        out.write_text(json.dumps({"relative": relative, "mse": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
