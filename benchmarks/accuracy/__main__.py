"""Accuracy of every arm on every data set and horizon, beside peers trained on the same windows.

    python -m benchmarks.accuracy --data-dir datasets --work-dir accuracy

Scored as docs/method.md says: every test window, standardised units, lookback 512. Any set of the catalogue takes part
whose file is there (`--data-sets`). Training chooses by the validation part; the test part is read once for each line,
by `cli evaluate`, or for a peer by the same scoring. Every result is a file below --work-dir/results: called again, the
command goes on where it stopped, and with --only-show prints what there is. Peers need `make peers` once.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.accuracy import arms, peers, record
from benchmarks.accuracy.arms import DEFAULT, GROWN, LLM_GIVEN, Setting
from benchmarks.data_sets import CHOSEN_ON, every_name, present


def main() -> None:
    """Run what is asked for and not there yet, then show all that is there."""
    options = parsed()
    results_dir = options.work_dir / "results"
    results_dir.mkdir(parents=True, exist_ok=True)
    missing = [] if options.only_show else [each for each in settings(options) if not file(results_dir, each).exists()]
    threads = max(1, len(os.sched_getaffinity(0)) // options.jobs)

    def run(setting: Setting) -> None:
        if setting.arm in peers.PEERS:
            found = peers.measure(setting, options.work_dir, threads, core_minutes=options.core_minutes)
        else:
            arms.build_index(setting.data_set, setting.horizon, options.work_dir, threads)
            found = arms.measure(setting, options.work_dir, threads, llm=options.llm)
        where = {"data_set": setting.data_set.name, "horizon": setting.horizon, "arm": setting.arm}
        target = file(results_dir, setting)
        draft = target.with_suffix(".draft")
        draft.write_text(json.dumps(where | {"seed": setting.seed, "threads": threads} | found, indent=1) + "\n")
        draft.replace(target)
        print(f"{time.strftime('%H:%M:%S')} {setting.name}: {found['mse']:.4f}/{found['mae']:.4f}", file=sys.stderr)

    for wave in waves(missing):
        with ThreadPoolExecutor(options.jobs) as pool:
            list(pool.map(run, wave))
    results = [json.loads(path.read_text()) for path in sorted(results_dir.glob("*.json"))]
    if not results:
        raise SystemExit("there is no result yet")
    print("\n".join([*record.markdown(results), *record.costs(results)]))
    if options.out is not None:
        record.write_json(results, options.out)
    if options.plot is not None:
        record.draw(results, options.plot)


def parsed() -> argparse.Namespace:
    """What is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    every_arm = [*arms.ARMS, GROWN, *peers.PEERS]
    parser.add_argument("--data-dir", type=Path, default=Path("datasets"))
    parser.add_argument("--work-dir", type=Path, required=True, help="indexes, neighbours, runs and results")
    parser.add_argument("--data-sets", nargs="*", default=[*CHOSEN_ON], choices=every_name())
    parser.add_argument("--horizons", nargs="*", type=int, default=[*record.HORIZONS])
    parser.add_argument("--arms", nargs="*", default=every_arm, choices=every_arm)
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--core-minutes", type=float, default=10.0, help="of each peer, for a data set and horizon")
    parser.add_argument("--llm", help="a language model on this machine, for the arm that asks for one")
    parser.add_argument("--jobs", type=int, default=1, help="settings run at once; they share the cores")
    parser.add_argument("--only-show", action="store_true", help="run nothing")
    parser.add_argument("--out", type=Path, help="also write all results as one JSON document")
    parser.add_argument("--plot", type=Path, help="also draw them")
    options = parser.parse_args()
    if set(options.arms) & {*peers.PEERS} and not (options.only_show or peers.PYTHON.exists()):
        parser.error(f"there is no {peers.PYTHON} for the peers: run 'make peers', or choose other --arms")
    return options


def settings(options: argparse.Namespace) -> list[Setting]:
    """Everything asked for. The value gate has nothing random in it, so it is run once."""
    return [
        Setting(data_set, horizon, arm, seed)
        for data_set in present(options.data_dir, options.data_sets)
        for horizon in options.horizons
        for arm in options.arms
        for seed in options.seeds
        if (arm not in (DEFAULT, GROWN) or seed == options.seeds[0]) and (arm != LLM_GIVEN or options.llm)
    ]


def waves(missing: list[Setting]) -> Iterator[list[Setting]]:
    """What may run at once: first what others need (indexes, neighbours, the run that grows, a peer's choice)."""
    first = [each for each in missing if each.seed == 0 and each.arm in (DEFAULT, *peers.PEERS)]
    yield first
    yield [each for each in missing if each not in first]


def file(results_dir: Path, setting: Setting) -> Path:
    """Where a result is kept."""
    return results_dir / f"{setting.name}.json"


if __name__ == "__main__":
    main()
