"""The windows that a run is trained and validated on, with their neighbours, as its plan says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from forecaster.config import Config
from forecaster.retrieval.batches import CachedWindows, flat_values
from forecaster.retrieval.folds import NO_FOLDS
from forecaster.retrieval.neighbour_cache import (
    AskedWindows,
    NeighbourCache,
    part_neighbours,
    part_windows,
    training_neighbours,
)
from forecaster.runs.run_record import RunRecord
from forecaster.training.plan import TrainingPlan, plan_training
from memory_index.memory import Memory
from memory_index.tables.series import SeriesTable

STANDING_IN = 0.2  # share of the training windows, the last ones, that stand in for a missing validation part

Report = Callable[[float, float | None], None]
Note = Callable[[str], None]


def windows_of(
    table: SeriesTable,
    memory: Memory,
    config: Config,
    record: RunRecord,
    part: str,
    neighbours_dir: Path,
    plan: TrainingPlan | None = None,
    report: Report = lambda done, total: None,
    note: Note = lambda text: None,
) -> CachedWindows:
    """The windows of the training (`train`) or validation part (`val`), with neighbours if the model has a memory.

    plan: default what `plan_training` decides. Training windows are held out in folds; validation windows are asked
    under `causal`. Where there are none, the last training windows stand in, forecast by what was fitted without them.
    """
    plan = plan or plan_training(memory, table, config)
    if part == "val" and not plan.validates:
        training = windows_of(table, memory, config, record, "train", neighbours_dir, plan, report)
        return training.last(max(1, round(STANDING_IN * len(training))))
    model, train = config.model, config.train
    is_training = part == "train"
    found: NeighbourCache | AskedWindows
    stride = plan.train_stride if is_training else plan.val_stride
    if not model.use_gram:
        folds = {"folds": plan.folds} if is_training else {}
        found = part_windows(memory, table, part, horizon=model.horizon, stride=stride, **folds)
    elif is_training:
        found = training_neighbours(
            memory,
            table,
            folder=neighbours_dir,
            policy=plan.policy,
            k=train.memory_k,
            folds=plan.folds,
            stride=stride,
            horizon=model.horizon,
            report=report,
        )
    else:
        found = part_neighbours(
            memory,
            table,
            folder=neighbours_dir,
            part=part,
            k=train.memory_k,
            stride=stride,
            horizon=model.horizon,
            report=report,
        )
    for said in found.notes if isinstance(found, NeighbourCache) else ():
        note(said)
    values, offset = flat_values(table)
    series = np.asarray(found.series)
    units = np.array([record.data.units[name] for name in table.series_ids], dtype=np.float32)
    return CachedWindows(
        config=model,
        values=values,
        position=offset[series] + np.asarray(found.origin_row),
        series=series,
        unit=units[series],
        fold=np.asarray(found.fold).astype(np.int64) if is_training and plan.folds.num else None,
        folds=plan.folds if is_training else NO_FOLDS,
        condensed=found.condensed if isinstance(found, NeighbourCache) else None,
        fans=found.fans if isinstance(found, NeighbourCache) else None,
        windows=memory.windows,
        spaces=tuple(space.space for space in memory.manifest.spaces),
    )
