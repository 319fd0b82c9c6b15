"""From a table, a memory and settings to a trained run: everything that happens around the training loop.

    check that they belong together -> neighbours of all windows, found once -> closed-form parts (trend thresholds,
    linear shortcut, value gate) -> training of a network, if there is one -> calibration of the intervals on validation
    -> the run's record

The loop itself is `train.py`; what lies in the run folder is `run.py`. Nothing here reads the test part.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from forecaster.config import Config
from forecaster.errors import RunDamagedError, RunIncompatibleError, RunNotFoundError
from forecaster.language_models.backbone import Backbone
from forecaster.language_models.placement import hardware, place_backbone
from forecaster.model.losses import LossParts, total_loss
from forecaster.model.model import ForecastModel
from forecaster.model.patching import instance_norm
from forecaster.model.shortcut import LinearShortcut, fit_linear
from forecaster.model.tapr import fit_thresholds, trend_change
from forecaster.model.types import Batch
from forecaster.predictor import predict
from forecaster.retrieval.batches import CachedWindows, flat_values
from forecaster.retrieval.cross_fit import off_block, time_blocks
from forecaster.retrieval.neighbour_cache import (
    AskedWindows,
    NeighbourCache,
    part_neighbours,
    part_windows,
    training_neighbours,
)
from forecaster.runs.intervals import (
    Intervals,
    calibrate,
    expected_width,
    prior_windows,
    read_intervals,
    write_intervals,
)
from forecaster.runs.run import Run, begun_run, finish_run, open_run
from forecaster.runs.run_record import DataFacts, IndexFacts, RunRecord
from forecaster.training import rng
from forecaster.training.devices import make_accelerator
from forecaster.training.fit_gate import fit_value_gate
from forecaster.training.processes import main_first
from forecaster.training.train import TrainingProgress, TrainResult, train
from memory_index.errors import DataError
from memory_index.leakage import Policy
from memory_index.memory import Memory
from memory_index.queries import require_same_data
from memory_index.scaling import fit_scale
from memory_index.tables.series import SeriesTable
from memory_index.versions.build import steps_until, stored_part
from memory_index.versions.manifest import Manifest
from memory_index.windows import cut

FEW_APART = 5  # validation windows that do not overlap: fewer hardly tell how wide an interval should be
SPLIT_ENDS = ("train_until", "val_until", "test_until")
CHUNK = 4096  # windows handled at once where thresholds and intervals are fitted
MAX_CALIBRATION = 50_000  # validation windows that intervals are calibrated on; more would only take memory

Report = Callable[[float, float | None], None]
Note = Callable[[str], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Trained:
    """A finished training.

    is_main: whether this is the process that has written it, of several that trained together. is_new: False if it had
    ended before it was asked for again. neighbour_seconds: to find the neighbours of all windows, about 0 if they were
    there.
    """

    run: Run
    is_main: bool
    is_new: bool
    result: TrainResult
    fingerprint: str
    neighbour_seconds: float
    num_parameters: int
    num_training_windows: int
    num_validation_windows: int


def train_run(
    table: SeriesTable,
    memory: Memory,
    ref: str,
    config: Config,
    out: Path | str,
    *,
    neighbours_dir: Path | str,
    resume: bool = False,
    device: str = "auto",
    report: Report = lambda done, total: None,
    progress: Callable[[TrainingProgress], None] | None = None,
    note: Note = lambda text: None,
) -> Trained:
    """Train a model on the training part of a table against one version, in the folder `out`.

    ref: the version's full reference, for the record. neighbours_dir: where found neighbours are kept, for all runs.
    resume: go on with a run, or begin it; one that has ended is left as it is. report: called with (windows done, all)
    while neighbours are found; progress: after each step; note: with what a person should know.

    Raises `IncompatibleError` (lookback or horizon longer than the version's; a table that it was not built on; a run
    that belongs to something else), `DataError` (no validation part), and what `begun_run` and `train` raise.
    """
    out, neighbours_dir = Path(out), Path(neighbours_dir)
    check_fits(config, memory, table)
    require_same_data(table, memory.windows, ref)
    backbone = place_backbone(config, device)
    accelerator = make_accelerator(device, config.train.precision, llm_width=backbone.width if backbone else 0)
    if not accelerator.is_main_process:
        note = _unsaid
    table = trained_series(table, memory.manifest, note)
    record = run_record(table, memory, ref, config, backbone, device)
    # Before there is a run: settings that make no model must not leave a folder behind.
    with rng.preserved(accelerator.device):
        torch.manual_seed(config.train.seed)
        model = ForecastModel(config.model, num_spaces=len(memory.manifest.spaces), backbone=backbone)
    with ExitStack() as until_done:
        if accelerator.is_main_process:
            until_done.enter_context(begun_run(out, record, resume=resume))
        accelerator.wait_for_everyone()
        run = open_run(out)
        if (ended := ended_training(run, is_main=accelerator.is_main_process)) is not None:
            return ended
        started = time.perf_counter()
        training, validation = main_first(
            accelerator,
            lambda: [
                windows_of(table, memory, config, record, part, neighbours_dir, report, note)
                for part in ("train", "val")
            ],
            "find the neighbours",
        )
        neighbour_seconds = time.perf_counter() - started
        began = time.perf_counter()
        fit_closed_form(model, training, table, memory, config)
        fit_seconds = time.perf_counter() - began
        result = train(
            model,
            training,
            validation,
            lambda trained, batch, aux_weight: batch_loss(trained, batch, config, aux_weight),  # type: ignore[arg-type]
            config.train,
            out,
            identity=record.identity,
            resume=resume,
            device=device,
            llm_width=backbone.width if backbone else 0,
            report=progress,
        )
        result = dataclasses.replace(result, seconds=round(result.seconds + fit_seconds, 3))
        intervals = fit_intervals(model, validation, table.series_ids)
        if (num := num_apart(validation)) < FEW_APART:
            note(f"intervals rest on {num} validation windows a series that do not overlap: they may be far off")
        if accelerator.is_main_process:
            write_intervals(out, intervals)
        figures: dict[str, Any] = {
            "best_val_mse": result.best_val_mse,
            "training": dataclasses.asdict(result),
            "num_parameters": sum(parameter.numel() for parameter in model.parameters()),
            "num_training_windows": len(training),
            "num_validation_windows": len(validation),
            "neighbour_seconds": round(neighbour_seconds, 3),
        }
        if accelerator.is_main_process:
            run = finish_run(run, figures)
        return _trained(run, figures, is_main=accelerator.is_main_process, is_new=True)


def _unsaid(text: str) -> None:
    """What every process would note is noted by the main one."""


def ended_training(run: Run, *, is_main: bool = True) -> Trained | None:
    """What is written of a training that has ended; None if it has not, or if a file of it was lost since."""
    if not run.metrics:
        return None
    try:
        run.weights()
        read_intervals(run.path)
    except (RunNotFoundError, RunDamagedError):
        return None  # going on makes it good again from the last checkpoint
    return _trained(run, run.metrics, is_main=is_main, is_new=False)


def _trained(run: Run, figures: Mapping[str, Any], *, is_main: bool, is_new: bool) -> Trained:
    """figures: as they are in `metrics.json`."""
    names = ("neighbour_seconds", "num_parameters", "num_training_windows", "num_validation_windows")
    return Trained(
        run=run,
        is_main=is_main,
        is_new=is_new,
        result=TrainResult(**figures["training"]),
        fingerprint=run.record.index.fingerprint,
        **{name: figures[name] for name in names},
    )


def check_fits(config: Config, memory: Memory, table: SeriesTable) -> None:
    """Raise unless the model's windows fit into the version's, and there are some to train and to validate on.

    Likewise for a service that will not answer what training asks.
    """
    window, split = memory.manifest.window, memory.manifest.split
    for name, ours, theirs in (
        ("lookback", config.model.lookback, window.lookback),
        ("horizon", config.model.horizon, window.horizon),
    ):
        if ours > theirs:
            raise RunIncompatibleError(
                f"{name} {ours} is longer than the index's {theirs}",
                hint=f"choose at most {theirs}, or build a version with --{name} {ours}",
            )
    if split.val_until is None:
        raise DataError(
            f"the split '{split.name}' of this version has no validation part, which decides when training stops",
            hint="build with --split 70/10/20, or with --until and --val-until",
        )
    if missing := [name for name in memory.manifest.series_ids if name not in table.series_ids]:
        raise RunIncompatibleError(
            f"{table.source} has no series '{missing[0]}', which the index was built on",
            hint="train on the table that the version was built on",
        )
    for part in ("train", "val"):
        part_windows(memory, table, part, horizon=config.model.horizon)
    # What is cross-fitted asks trial versions on this machine instead. Only a service has a policy of its own.
    asks_itself = config.model.use_gram and config.train.num_folds == 1
    if asks_itself and config.train.policy is not Policy.CAUSAL and memory.causal_only:
        raise RunIncompatibleError(
            f"the service answers under '{Policy.CAUSAL}' only (--causal-only), but with num_folds 1 training windows "
            f"ask it under '{config.train.policy}'",
            hint="raise num_folds (3 by default), choose --policy causal, or ask a service without --causal-only",
        )


def trained_series(table: SeriesTable, manifest: Manifest, note: Note) -> SeriesTable:
    """The series that a version has windows of; of the others, which it names, a run knows nothing.

    One that began after the training part has no training deviation to count its errors in, and would decide when
    training stops.
    """
    others = [name for name in table.series_ids if name not in manifest.series_ids]
    if others:
        more = f" and {len(others) - 1} more" if len(others) > 1 else ""
        note(f"'{others[0]}'{more}: not in the index, so nothing is trained or validated on it")
    known = tuple(series for series in table.series if series.series_id in manifest.series_ids)
    return dataclasses.replace(table, series=known)


def run_record(
    table: SeriesTable, memory: Memory, ref: str, config: Config, backbone: Backbone | None, device: str
) -> RunRecord:
    """What `config.json` says of the run."""
    manifest = memory.manifest
    seen = steps_until(table, manifest.split.bounds("val")[1])
    training = stored_part(table, manifest.split.train_until, manifest.window)
    units = fit_scale([series.values for series in training.series]).std

    def told(end: str | None) -> str | None:
        return None if end is None else table.step.isoformat(np.datetime64(end, "ns"))

    return RunRecord(
        settings=config.to_dict(),
        index=IndexFacts(
            ref=ref,
            fingerprint=manifest.fingerprint,
            encoder_fingerprint=manifest.encoder["fingerprint"],
            window=manifest.window.to_dict(),
            spaces=tuple(str(space.space) for space in manifest.spaces),
        ),
        backbone=None if backbone is None else backbone.reference,
        data=DataFacts(
            source=Path(table.source).name,
            first_at=table.step.isoformat(seen.times[0]),
            last_at=table.step.isoformat(seen.times[-1]),
            step=table.step.frequency,
            series_ids=table.series_ids,
            units={name: float(unit) for name, unit in zip(table.series_ids, units, strict=True)},
            split={"name": manifest.split.name} | {name: told(getattr(manifest.split, name)) for name in SPLIT_ENDS},
            sha256=seen.content_hash,
        ),
        hardware=hardware(config, device, llm_width=backbone.width if backbone else 0),
    )


def windows_of(
    table: SeriesTable,
    memory: Memory,
    config: Config,
    record: RunRecord,
    part: str,
    neighbours_dir: Path,
    report: Report = lambda done, total: None,
    note: Note = lambda text: None,
) -> CachedWindows:
    """The windows of the training (`train`) or validation part (`val`), with neighbours if the model has a memory.

    Training windows are cross-fitted and thinned by `train_stride`; validation windows are asked under `causal`.
    """
    model, train = config.model, config.train
    is_training = part == "train"
    found: NeighbourCache | AskedWindows
    if not model.use_gram:
        found = part_windows(
            memory,
            table,
            part,
            horizon=model.horizon,
            stride=train.train_stride if is_training else 1,
            num_folds=train.num_folds if is_training else 1,
        )
    elif is_training:
        found = training_neighbours(
            memory,
            table,
            folder=neighbours_dir,
            policy=train.policy,
            k=train.memory_k,
            num_folds=train.num_folds,
            stride=train.train_stride,
            horizon=model.horizon,
            report=report,
        )
    else:
        found = part_neighbours(
            memory, table, folder=neighbours_dir, part=part, k=train.memory_k, horizon=model.horizon, report=report
        )
    for said in found.notes if isinstance(found, NeighbourCache) else ():
        note(said)
    values, offset = flat_values(table)
    series = np.asarray(found.series)
    units = np.array([record.data.units[name] for name in table.series_ids], dtype=np.float32)
    cross_fitted = is_training and train.num_folds > 1
    return CachedWindows(
        config=model,
        values=values,
        position=offset[series] + np.asarray(found.origin_row),
        series=series,
        unit=units[series],
        fold=np.asarray(found.fold).astype(np.int64) if cross_fitted else None,
        condensed=found.condensed if isinstance(found, NeighbourCache) else None,
        windows=memory.windows,
        spaces=tuple(space.space for space in memory.manifest.spaces),
    )


def fit_closed_form(
    model: ForecastModel, training: CachedWindows, table: SeriesTable, memory: Memory, config: Config
) -> None:
    """Fit what needs no gradient, on training windows only: trend thresholds, linear shortcut, value gate.

    Where the network is the whole forecast, the gate is left to be trained with it.
    """
    if model.tapr is not None:
        change = torch.cat([_change(training, start, config) for start in range(0, len(training), CHUNK)])
        model.tapr.thresholds.copy_(fit_thresholds(change))
    if model.shortcut is not None:
        _fit_shortcut(model.shortcut, training, table, memory, config)
    if model.shortcut is not None or model.patches is None:
        fit_value_gate(model, training, config.train.gate_shrinkage)


def _fit_shortcut(
    shortcut: LinearShortcut, training: CachedWindows, table: SeriesTable, memory: Memory, config: Config
) -> None:
    """The linear map, on all training windows and for each block of time on the others."""
    settings = config.model
    length = memory.manifest.window.length
    times = np.concatenate([series.times for series in table.series])[training.position]

    def fitted(keep: np.ndarray) -> np.ndarray:
        return fit_linear(
            training.values,
            training.position[keep],
            training.unit[keep],
            lookback=settings.lookback,
            horizon=settings.horizon,
            floor=settings.spread_floor,
            penalty=settings.ridge,
        )

    blocks = [] if training.fold is None else time_blocks(times, config.train.num_folds)
    folds = []
    for first, last in blocks:
        keep = off_block(times, table.step, first=first, last=last, length=length)
        if not keep.any():
            raise DataError(
                f"{table.source} has no training window left to fit the linear shortcut on when the origins from "
                f"{table.step.isoformat(first)} to {table.step.isoformat(last)} and {length} steps around them are "
                "left out",
                hint="lower num_folds (--set num_folds=1 fits on all, which makes the map look better than it is)",
            )
        folds.append(fitted(keep))
    shortcut.set_weights(fitted(np.ones(len(training), dtype=bool)), folds)


def batch_loss(model: ForecastModel, batch: Batch, config: Config, aux_weight: float) -> LossParts:
    """The losses of one batch."""
    output = model(batch.context, batch.neighbours, unit=batch.unit, fold=batch.fold)
    thresholds = None if model.tapr is None else model.tapr.thresholds
    return total_loss(output, batch, thresholds, output.spread, config.train, aux_weight)


def fit_intervals(model: ForecastModel, validation: CachedWindows, series_ids: Sequence[str]) -> Intervals:
    """Calibrate the quantiles on the errors of all validation windows, or `MAX_CALIBRATION` of them.

    Those are spread evenly over the time of each series. series_ids: of the table.
    """
    horizon, errors = validation.config.horizon, []
    num, whole = min(len(validation), MAX_CALIBRATION), len(validation)
    by_series = np.argsort(validation.position)  # series after series, each by time
    chosen = np.sort(by_series[np.linspace(0, whole - 1, num).astype(np.int64)])
    for start in range(0, num, CHUNK):
        indices = chosen[start : start + CHUNK]
        batch = validation.batch(indices)
        predicted = predict(model, batch)
        assert validation.windows is not None, "the windows of the version are known"
        condensed = None if validation.condensed is None else validation.condensed.take(indices)
        width = expected_width(
            condensed,
            validation.windows,
            validation.spaces,
            spread=predicted.spread,
            unit=batch.unit.numpy(),
            horizon=horizon,
        )
        errors.append((batch.future.numpy() - predicted.forecast) / width)
    prior = prior_windows(horizon, num / whole)
    return calibrate(np.concatenate(errors), validation.series[chosen], series_ids, prior=prior)


def num_apart(windows: CachedWindows) -> int:
    """How many windows of the series that has the most of them have futures without a common step, about."""
    return 1 + (int(np.bincount(windows.series).max()) - 1) // windows.config.horizon


def _change(training: CachedWindows, start: int, config: Config) -> Tensor:
    """`trend_change` of the training windows from `start` on, without reading their neighbours."""
    lookback, horizon = config.model.lookback, config.model.horizon
    position = training.position[start : start + CHUNK]
    context = torch.from_numpy(cut(training.values, position - lookback + 1, lookback))
    future = torch.from_numpy(cut(training.values, position + 1, horizon))
    unit = torch.from_numpy(training.unit[start : start + CHUNK])
    return trend_change(context, future, instance_norm(context, unit, config.model.spread_floor)[1])
