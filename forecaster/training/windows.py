"""The windows that a run is trained and validated on, with their neighbours, as its plan says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from forecaster.config import Config
from forecaster.retrieval.asked import AskedWindows, part_windows
from forecaster.retrieval.batches import CachedWindows, flat_values, units_inside
from forecaster.retrieval.beside import TableCovariates, layout_of
from forecaster.retrieval.folds import NO_FOLDS
from forecaster.retrieval.neighbour_cache import NeighbourCache, part_neighbours, training_neighbours
from forecaster.runs.run_record import RunRecord
from forecaster.training.plan import TrainingPlan, plan_training
from memory_index.fit_transform import table_inside
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
    is_training = part == "train"
    found = _asked(table, memory, config, part, neighbours_dir, plan, report)
    for said in found.notes if isinstance(found, NeighbourCache) else ():
        note(said)
    numbers = memory.windows.numbers_of(np.array(table.series_ids))
    values, offset = flat_values(table_inside(memory.manifest.transform, table, numbers))
    series = np.asarray(found.series)
    of_series = units_inside(memory, record.data.units)
    units = np.array([of_series[name] for name in table.series_ids], dtype=np.float32)
    layout = layout_of(memory.manifest, config.model)
    return CachedWindows(
        config=config.model,
        covariates=None if layout is None else TableCovariates(table, layout),
        first=offset,
        values=values,
        position=offset[series] + np.asarray(found.origin_row),
        series=series,
        unit=units[series],
        fold=np.asarray(found.fold).astype(np.int64) if is_training and plan.folds.num else None,
        folds=plan.folds if is_training else NO_FOLDS,
        condensed=found.condensed if isinstance(found, NeighbourCache) else None,
        fans=found.fans if isinstance(found, NeighbourCache) else None,
        windows=memory.windows.inside,
        spaces=tuple(space.space for space in memory.manifest.spaces),
    )


def _asked(
    table: SeriesTable,
    memory: Memory,
    config: Config,
    part: str,
    neighbours_dir: Path,
    plan: TrainingPlan,
    report: Report,
) -> NeighbourCache | AskedWindows:
    """Which windows there are, with what the memory answered if it is asked at all."""
    horizon, k = config.model.horizon, config.train.memory_k
    is_training = part == "train"
    stride, folds = (plan.train_stride, plan.folds) if is_training else (plan.val_stride, NO_FOLDS)
    if not config.model.use_gram:
        return part_windows(memory, table, part, horizon=horizon, stride=stride, folds=folds)
    asked = {"folder": neighbours_dir, "k": k, "stride": stride, "horizon": horizon, "report": report}
    if is_training:
        return training_neighbours(memory, table, policy=plan.policy, folds=folds, **asked)  # type: ignore[arg-type]
    return part_neighbours(memory, table, part=part, **asked)  # type: ignore[arg-type]
