"""From a table, a memory and settings to a trained run: everything that happens around the training loop.

    check that they belong together -> plan (`plan.py`) -> neighbours of all windows, found once (`windows.py`) ->
    linear map (`closed_form.py`) -> training of the networks, if there are any (`fit_networks.py`) -> value gate
    (`fit_gate.py`) -> calibration of the intervals -> the run's record

The loop itself is `train.py`; what lies in the run folder is `run.py`. Nothing here reads the test part.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from forecaster.config import Config
from forecaster.errors import RunDamagedError, RunIncompatibleError, RunNotFoundError
from forecaster.growth.updates import begin as begin_growth
from forecaster.language_models.backbone import Backbone
from forecaster.language_models.placement import hardware, place_backbone
from forecaster.model.model import ForecastModel
from forecaster.retrieval.batches import CachedWindows
from forecaster.retrieval.beside import num_beside
from forecaster.runs.intervals import Intervals, read_intervals, write_intervals
from forecaster.runs.run import Run, begun_run, finish_run, open_run
from forecaster.runs.run_record import DataFacts, IndexFacts, RunRecord
from forecaster.training import rng
from forecaster.training.closed_form import ClosedForm, admitted_windows, fit_closed_form
from forecaster.training.devices import make_accelerator
from forecaster.training.fit_intervals import fit_intervals
from forecaster.training.fit_networks import batch_loss, with_gate
from forecaster.training.plan import TrainingPlan, plan_training
from forecaster.training.processes import main_first
from forecaster.training.train import TrainingProgress, TrainResult, train
from forecaster.training.windows import Note, Report, windows_of
from memory_index.baselines import season_length
from memory_index.leakage import Policy
from memory_index.memory import Memory
from memory_index.origins import steps_apart
from memory_index.queries import require_same_data
from memory_index.scaling import fit_scale
from memory_index.tables.series import SeriesTable
from memory_index.versions.build import steps_until, stored_part
from memory_index.versions.manifest import Manifest

SPLIT_ENDS = ("train_until", "val_until", "test_until")


@dataclass(frozen=True, kw_only=True, slots=True)
class Trained:
    """A finished training.

    is_main: whether this is the process that has written it, of several that trained together. is_new: False if it had
    ended before it was asked for again. neighbour_seconds: to find the neighbours of all windows, about 0 if they were
    there. plan, closed_form: of `TrainingPlan` and `ClosedForm`, in terms of JSON.
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
    plan: dict[str, Any]
    closed_form: dict[str, Any]


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
    that belongs to something else), `DataError` (no training window), and what `begun_run` and `train` raise.
    """
    out, neighbours_dir = Path(out), Path(neighbours_dir)
    check_fits(config, memory, table)
    job = _job(table, memory, ref, with_season(config, table), out, device, note)
    with ExitStack() as until_done:
        if job.is_main:
            until_done.enter_context(begun_run(out, job.record, resume=resume))
        job.accelerator.wait_for_everyone()
        run = open_run(out)
        if (ended := ended_training(run, is_main=job.is_main)) is not None:
            return ended
        for said in job.plan.told:
            job.note(said)
        started = time.perf_counter()
        training, validation = job.windows(neighbours_dir, report)
        neighbour_seconds = time.perf_counter() - started
        closed_form, training, result = job.fit(training, validation, resume=resume, progress=progress)
        intervals = job.intervals(training, validation)
        if job.is_main:
            write_intervals(out, intervals)
            made_do = job.plan.made_do(job.config)
            apart = job.plan.train_stride * steps_apart(memory.manifest.schedule, table.step)
            begin_growth(run, closed_form, training, memory, train_stride=apart, made_do=made_do)
        figures: dict[str, Any] = {
            "best_val_mse": result.best_val_mse,
            "training": dataclasses.asdict(result),
            "plan": job.plan.to_dict(),
            "closed_form": closed_form.to_dict(),
            "num_parameters": sum(parameter.numel() for parameter in job.model.parameters()),
            "num_training_windows": len(training),
            "num_validation_windows": len(validation),
            "neighbour_seconds": round(neighbour_seconds, 3),
        }
        if job.is_main:
            run = finish_run(run, figures)
        return _trained(run, figures, is_main=job.is_main, is_new=True)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Job:
    """What is trained where: settings, data and an untrained model that belong together, in one of the processes."""

    table: SeriesTable
    memory: Memory
    config: Config
    record: RunRecord
    plan: TrainingPlan
    model: ForecastModel
    out: Path
    accelerator: Accelerator
    device: str
    llm_width: int
    note: Note

    @property
    def is_main(self) -> bool:
        return bool(self.accelerator.is_main_process)

    def windows(self, neighbours_dir: Path, report: Report) -> list[CachedWindows]:
        """The training and the validation windows with their neighbours."""
        asked = (self.table, self.memory, self.config, self.record)
        return main_first(
            self.accelerator,
            lambda: [
                windows_of(*asked, part, neighbours_dir, self.plan, report, self.note) for part in ("train", "val")
            ],
            "find the neighbours",
        )

    def fit(
        self,
        training: CachedWindows,
        validation: CachedWindows,
        *,
        resume: bool,
        progress: Callable[[TrainingProgress], None] | None,
    ) -> tuple[ClosedForm, CachedWindows, TrainResult]:
        """Fit the parts in closed form, train the networks, if there are any, and weigh all of it by the gate.

        Gives the training windows back with those named that each fold's network was trained on.
        """
        model, config = self.model, self.config
        has_gate = len(model.networks) > 0 and not config.model.is_network_alone
        began = time.perf_counter()
        made_do = self.plan.made_do(config)
        closed_form = fit_closed_form(model, training, self.table, config, made_do=made_do)
        seconds = time.perf_counter() - began
        if has_gate and training.fold is not None:
            training = dataclasses.replace(training, admitted=admitted_windows(training, self.table))
        result = train(
            model,
            training,
            validation,
            lambda trained, batch, aux_weight: batch_loss(trained, batch, config, aux_weight),  # type: ignore[arg-type]
            config.train,
            self.out,
            identity=self.record.identity,
            resume=resume,
            device=self.device,
            llm_width=self.llm_width,
            keeps_last=training.admitted is not None,
            report=progress,
        )
        if has_gate:
            closed_form, result = with_gate(
                model, training, validation, config, closed_form, result, self.out, self.accelerator, made_do=made_do
            )
        return closed_form, training, dataclasses.replace(result, seconds=round(result.seconds + seconds, 3))

    def intervals(self, training: CachedWindows, validation: CachedWindows) -> Intervals:
        """The calibrated intervals of what `fit` has fitted."""
        return fit_intervals(
            self.model,
            training,
            validation,
            self.table.series_ids,
            validates=self.plan.validates,
            made_do=self.plan.made_do(self.config),
            note=self.note,
        )


def _job(table: SeriesTable, memory: Memory, ref: str, config: Config, out: Path, device: str, note: Note) -> _Job:
    """Check that all of it belongs together, and plan. There is no run yet: settings that make no model leave none."""
    require_same_data(table, memory.windows, ref)
    backbone = place_backbone(config, device)
    llm_width = backbone.width if backbone else 0
    accelerator = make_accelerator(device, config.train.precision, llm_width=llm_width)
    if not accelerator.is_main_process:
        note = _unsaid
    table = trained_series(table, memory.manifest, note)
    for said in covariate_notes(memory.manifest, config):
        note(said)
    record = run_record(table, memory, ref, config, backbone, device)
    with rng.preserved(accelerator.device):
        torch.manual_seed(config.train.seed)
        plan = plan_training(memory, table, config)
        model = ForecastModel(
            config.model,
            num_spaces=len(memory.manifest.spaces),
            backbone=backbone,
            num_networks=plan.num_networks(config.model),
            num_beside=num_beside(memory.manifest, config.model),
        )
    return _Job(
        table=table,
        memory=memory,
        config=config,
        record=record,
        plan=plan,
        model=model,
        out=out,
        accelerator=accelerator,
        device=device,
        llm_width=llm_width,
        note=note,
    )


def covariate_notes(manifest: Manifest, config: Config) -> list[str]:
    """Which parts of a run do not read the covariates of its version."""
    model = config.model
    if not manifest.covariates:
        return []
    if not (model.use_gram or model.reads_covariates):
        return ["covariates are not read: without memory and linear map a run reads the target alone"]
    return ["covariates are read by linear map and memory: the networks read the target"] if model.use_network else []


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
        **{name: figures[name] for name in (*names, "plan", "closed_form")},
    )


def check_fits(config: Config, memory: Memory, table: SeriesTable) -> None:
    """Raise unless the model's windows fit into the version's, and it will answer what training asks."""
    window = memory.manifest.window
    for name, ours, theirs in (
        ("lookback", config.model.lookback, window.lookback),
        ("horizon", config.model.horizon, window.horizon),
    ):
        if ours > theirs:
            raise RunIncompatibleError(
                f"{name} {ours} is longer than the index's {theirs}",
                hint=f"choose at most {theirs}, or build a version with --{name} {ours}",
            )
    if missing := [name for name in memory.manifest.series_ids if name not in table.series_ids]:
        raise RunIncompatibleError(
            f"{table.source} has no series '{missing[0]}', which the index was built on",
            hint="train on the table that the version was built on",
        )
    # What is cross-fitted asks trial versions on this machine instead. Only a service has a policy of its own.
    asks_itself = config.model.use_gram and config.train.num_folds == 1
    if asks_itself and config.train.policy is not Policy.CAUSAL and memory.causal_only:
        raise RunIncompatibleError(
            f"the service answers under '{Policy.CAUSAL}' only (--causal-only), but with num_folds 1 training windows "
            f"ask it under '{config.train.policy}'",
            hint="leave num_folds out, choose --policy causal, or ask a service without --causal-only",
        )


def with_season(config: Config, table: SeriesTable) -> Config:
    """The settings with the season of the table's step, unless they say one. 1 is none."""
    if config.model.season is not None:
        return config
    season = season_length(table.step) or 1
    return config.changed(season=season if season <= config.model.lookback else 1)


def trained_series(table: SeriesTable, manifest: Manifest, note: Note) -> SeriesTable:
    """The series that a version has windows of; of the others, which it names, a run knows nothing.

    One that began after the training part has no training deviation to count its errors in, and would decide when
    training stops.
    """
    others = [name for name in table.series_ids if name not in manifest.series_ids]
    if others:
        more = f" and {len(others) - 1} more" if len(others) > 1 else ""
        note(f"'{others[0]}'{more}: not in the index, so nothing is trained or validated on it")
    return table.of_series([n for n, name in enumerate(table.series_ids) if name in manifest.series_ids])


def run_record(
    table: SeriesTable, memory: Memory, ref: str, config: Config, backbone: Backbone | None, device: str
) -> RunRecord:
    """What `config.json` says of the run."""
    manifest = memory.manifest
    seen = steps_until(table, manifest.split.bounds("train" if manifest.split.val_until is None else "val")[1])
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
            sha256=seen.input_hash,
        ),
        hardware=hardware(config, device, llm_width=backbone.width if backbone else 0),
    )
