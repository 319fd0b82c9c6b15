"""How the defaults of training were chosen: once for all data sets, by validation alone.

    python -m benchmarks.training_defaults --data-dir datasets

For every setting, the best validation MSE of a training (lookback 512, horizon 96, seed 0), shown relative to the first
setting of its group as a mean over the data sets. The group `gate` trains the value gate alone, which takes seconds;
the group `network` trains the network without its language model. The test part is not read. Data sets whose file is
missing are skipped, saying so.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.memory_defaults import DATA_SETS, WINDOW
from benchmarks.report import machine
from forecaster.config import Config
from forecaster.fit import train_run
from memory_index import Store, build, open_memory, read_table, split_by_name

GATE_ALONE = {"use_network": False, "use_tapr": False, "use_llm": False}
NO_LLM = {"use_llm": False}
SETTINGS: dict[str, dict[str, dict[str, Any]]] = {
    "gate": {
        "defaults": {},
        **{f"gate_learning_rate {v}": {"gate_learning_rate": v} for v in (0.01, 0.1)},
        **{f"ridge {v}": {"ridge": v} for v in (0.01, 1.0)},
        "policy causal": {"policy": "causal"},
        "num_folds 1 (no cross-fitting)": {"num_folds": 1},
        "train_stride 4": {"train_stride": 4},
        "no memory": {"use_gram": False},
        "no shortcut": {"use_shortcut": False},
    },
    "network": {
        "value gate alone": GATE_ALONE,
        "defaults": {},
        "head_wait 0": {"head_wait": 0.0},
        "learning_rate 0.001": {"learning_rate": 1e-3},
        "head_learning_rate 0.0001": {"head_learning_rate": 1e-4},
        "gate_pull -1": {"gate_pull": -1},
    },
}


def main() -> None:
    """Train with every setting on every data set, and print a table for each group."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, default=Path("datasets"))
    parser.add_argument("--groups", nargs="*", default=[*SETTINGS], choices=[*SETTINGS])
    parser.add_argument("--out", type=Path, help="also write the figures as JSON")
    options = parser.parse_args()
    results: dict[str, dict[str, dict[str, float]]] = {group: {} for group in options.groups}
    for file, split_name in DATA_SETS.items():
        path = next(iter(sorted(options.data_dir.rglob(file))), None)
        if path is None:
            print(f"skipped: no {file} below {options.data_dir}", file=sys.stderr)
            continue
        with tempfile.TemporaryDirectory() as folder:
            for group, setting, val_mse in measure(path, split_name, options.groups, Path(folder)):
                results[group].setdefault(setting, {})[path.stem] = val_mse
                print(f"{time.strftime('%H:%M:%S')} {path.stem} {group}: {setting} {val_mse:.4f}", file=sys.stderr)
    print(f"{machine()}\n")
    for group, measured in results.items():
        show(group, measured)
    if options.out is not None:
        options.out.write_text(json.dumps(results, indent=1) + "\n")


def measure(path: Path, split_name: str, groups: list[str], folder: Path) -> list[tuple[str, str, float]]:
    """Group, setting and best validation MSE of every training on one data set."""
    table = read_table(path)
    split = split_by_name(split_name, table.times)
    version = build(table, Store(folder / "indexes"), "m", window=WINDOW, split=split)
    memory = open_memory(folder / "indexes", version.ref)
    found = []
    for group in groups:
        base = {"lookback": WINDOW.lookback, "horizon": WINDOW.horizon} | (GATE_ALONE if group == "gate" else NO_LLM)
        for number, (setting, changes) in enumerate(SETTINGS[group].items()):
            config = Config.from_dict(base | changes)
            out = folder / f"{group}-{number}"
            trained = train_run(table, memory, version.ref, config, out, neighbours_dir=folder / "neighbours")
            found.append((group, setting, trained.result.best_val_mse))
    return found


def show(group: str, measured: dict[str, dict[str, float]]) -> None:
    """The table of one group, best first."""
    base = next(iter(measured.values()))
    relative = {name: float(np.mean([mse[each] / base[each] for each in base])) for name, mse in measured.items()}
    print(f"### {group}\n\n| setting | relative MSE | {' | '.join(base)} |\n|---|---|{'---|' * len(base)}")
    for name in sorted(relative, key=relative.__getitem__):
        cells = " | ".join(f"{measured[name][each]:.4f}" for each in base)
        print(f"| {name} | {relative[name]:.4f} | {cells} |")
    print()


if __name__ == "__main__":
    main()
