"""Whether what lies back should count less: half-lives of linear map and gate, prequentially, before the test part.

    python -m benchmarks.decay --data-dir datasets --work-dir runs/decay

A run is trained on the first half of what lies before the test part, validated on the next eighth, and then lives
through the rest as in operation: at each weekly update, gate and map learn what is known by then, with one half-life
or another. Origins are --every steps apart. Scored: MSE of the mix and of the linear map in training deviations. The
test part is not read.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.data_sets import CHOSEN_ON, DataSet, present
from forecaster.backtest import OfRun, growing
from forecaster.config import Config
from forecaster.predictor import load_predictor
from forecaster.retrieval.batches import LiveBlock, moments_of
from forecaster.runs.run import open_run, run_exists
from forecaster.training.fit import train_run
from memory_index import SeriesTable, Store, build, open_memory, read_table, split_by_name
from memory_index.backtest.plan import BacktestPlan, parse_update, planned
from memory_index.queries import futures_of
from memory_index.splits import split_until
from memory_index.versions.build import steps_until
from memory_index.versions.grown import grown
from memory_index.windows import WindowSpec

LOOKBACK, STILL = 512, "memory only grows"
HALF_LIVES = (None, 8000.0, 4000.0, 2000.0, 1000.0)


def lived(data_set: DataSet, horizon: int, every: int, folder: Path) -> Iterator[tuple[str, float, float]]:
    """(what, MSE of the mix, MSE of the linear map) for each half-life."""
    whole = read_table(data_set.path)
    table = steps_until(whole, split_by_name(data_set.split, whole.times).bounds("val")[1])
    times, num = table.times, len(table.times)
    split = split_until(str(times[num // 2]), str(times[num * 5 // 8]), times, table.step)
    name, store = f"{data_set.index}-{horizon}", Store(folder / "indexes")
    if name not in store.names():
        build(table, store, name, window=WindowSpec(lookback=LOOKBACK, horizon=horizon), split=split)
    config = Config.from_dict({"lookback": LOOKBACK, "horizon": horizon})
    if not (run_exists(folder / name) and open_run(folder / name).metrics):
        memory = open_memory(folder / "indexes", name)
        train_run(table, memory, f"{name}@1", config, folder / name, neighbours_dir=folder / "near", resume=True)
    rows = np.arange(num * 5 // 8, num - horizon, every)
    plan = planned(table, [rows for _ in table.series], update=parse_update("weekly"), in_sample=False)
    run = open_run(folder / name)
    predictor = load_predictor(run, state=0)
    with grown(store.resolve(f"{name}@1"), table) as memory:
        subject = growing(run, predictor, memory, plan)
        blocks = [found.block for part in plan.parts(table) for found in subject.ask(table, part, ())]
        for half_life in (STILL, *HALF_LIVES):
            growth, used = copy.deepcopy(subject.growth), copy.deepcopy(subject.predictor.model)
            assert growth is not None, "the run keeps its normal equations"
            if isinstance(half_life, str):
                growth, used = None, predictor.model
            else:
                growth.half_life = half_life
            mine = replace(subject, predictor=replace(predictor, model=used), growth=growth, apart=every)
            yield (str(half_life), *_errors(mine, table, plan, blocks))


def _errors(subject: OfRun, table: SeriesTable, plan: BacktestPlan, blocks: list[LiveBlock]) -> tuple[float, float]:
    """Mean squared errors of mix and map over all origins, update after update."""
    total, num = np.zeros(2), 0
    before = [plan.update_before(block.asked.queries.origin) for block in blocks]
    for update, at in enumerate(plan.updates):
        subject.advance(update, at)
        for block, number in zip(blocks, before, strict=True):
            moments = np.flatnonzero(number == update)
            if not len(moments):
                continue
            part = moments_of(block, moments)
            predicted = subject.predictor.predict(part.batch)
            future = futures_of(table, part.asked, subject.horizon).reshape(len(part.batch), -1)
            assert predicted.linear is not None, "what grows has a linear map"
            for place, forecast in enumerate((predicted.forecast, predicted.linear)):
                total[place] += np.square((forecast - future) / part.batch.unit.numpy()[:, None]).sum()
            num += future.size
            if subject.growth is not None:
                subject.growth.note(subject.predictor.model, part, subject.apart)
    return float(total[0] / num), float(total[1] / num)


def main() -> None:
    """Print a table for each data set and horizon."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, default=Path("datasets"))
    parser.add_argument("--work-dir", type=Path, required=True)
    parser.add_argument("--data-sets", nargs="*", default=[*CHOSEN_ON])
    parser.add_argument("--horizons", nargs="*", type=int, default=[96])
    parser.add_argument("--every", type=int, default=25, help="steps between origins, no multiple of a season")
    options = parser.parse_args()
    print("| data set | half-life, steps | mix | linear map |\n|---|---|---|---|")
    for data_set in present(options.data_dir, options.data_sets):
        for horizon in options.horizons:
            for what, mix, linear in lived(data_set, horizon, options.every, options.work_dir):
                print(f"| {data_set.name}-{horizon} | {what} | {mix:.4f} | {linear:.4f} |", flush=True)


if __name__ == "__main__":
    main()
