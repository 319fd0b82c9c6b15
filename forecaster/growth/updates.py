"""From a trained run to its state 0, and from one state to the next: what `cli forecast --update` does to a run."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Literal

import numpy as np

from forecaster.config import Config
from forecaster.growth.growth import Growth, Trained, packed, unpacked
from forecaster.growth.operation import Report, catch_up, known_until
from forecaster.model.model import ForecastModel
from forecaster.retrieval.batches import CachedWindows
from forecaster.runs.records import refusals_named
from forecaster.runs.run import LOCK, Run
from forecaster.runs.states import StateRecord, current_number, numbers_of, read_arrays, read_state, write_state
from forecaster.training.closed_form import ClosedForm
from forecaster.training.linear_maps import MapChoice
from forecaster.training.weighing import weights_of
from memory_index import files
from memory_index.errors import UsageError
from memory_index.memory import Memory

HalfLife = float | None | Literal["same"]  # steps, None to forget nothing, or that of the state before
FOLD_ARRAYS = ("fold", "there", "matrix", "num")


def begin(
    run: Run,
    closed_form: ClosedForm,
    training: CachedWindows,
    memory: Memory,
    *,
    train_stride: int,
    made_do: bool = False,
) -> StateRecord | None:
    """Write state 0 of a run that has just been trained; None for one that cannot go on.

    A run with networks cannot: they would have to be trained again. Nor can one whose index has covariates: what was
    known ahead of each origin is not stored.
    """
    if run.config.model.use_network or memory.manifest.covariates:
        return None
    if closed_form.equations is None or closed_form.evidence is None:
        return None
    if numbers_of(run.path):
        return read_state(run.path, 0)
    assert closed_form.linear_map is not None, "a map that was fitted was chosen"
    assert closed_form.gate is not None, "whatever has a map has a gate"
    names, record = run.record.data.series_ids, run.record
    weight, counted = weights_of(training), np.ones(len(names))
    counted[training.series] = weight  # the same for all windows of a series
    evidence = closed_form.evidence
    trained = Trained(
        began_at=np.datetime64(memory.manifest.split.train_until, "ns"),
        choice=closed_form.linear_map,
        names=evidence.names,
        num_bases=len(evidence.names) - (len(training.spaces) if training.condensed is not None else 0),
        train_stride=train_stride,
        made_do=made_do,
        series_weight=dict(zip(names, map(float, counted), strict=True)),
        units=record.data.units,
        folds=evidence.folds,
    )
    growth = Growth(config=run.config, trained=trained, equations=closed_form.equations, until=trained.began_at)
    return write_state(
        run.path,
        growth.to_arrays() | _fold_arrays(trained, len(growth.steps)),
        parent=None,
        until=str(growth.until),
        half_life=None,
        num_windows=0,
        kept=closed_form.gate.kept,
        ref=record.index.ref,
        fingerprint=record.index.fingerprint,
        trained=_trained_document(trained),
    )


def read_growth(run: Run, number: int | None = None) -> tuple[StateRecord, Growth]:
    """A state of a run, ready to go on; None is the one that is used. Raises as `states.read_state` does."""
    record, first = read_state(run.path, number), read_state(run.path, 0)
    assert first.trained is not None, "state 0 has it"
    arrays = read_arrays(run.path, first)
    folds: dict[int, list[Any]] = {}
    every = unpacked(*(arrays[f"trained_{name}"] for name in FOLD_ARRAYS[1:]))
    for fold, each in zip(arrays["trained_fold"], every, strict=True):
        folds.setdefault(int(fold), []).append(each)
    told = first.trained
    trained = Trained(
        began_at=np.datetime64(told["began_at"], "ns"),
        choice=MapChoice(**told["choice"]),
        names=tuple(told["names"]),
        num_bases=told["num_bases"],
        train_stride=told["train_stride"],
        made_do=told.get("made_do", False),  # runs of before have none
        series_weight={name: told["series_weight"][name] for name in run.record.data.series_ids},
        units=run.record.data.units,
        folds=tuple(tuple(each) for _, each in sorted(folds.items())),
    )
    growth = growth_of(run.config, trained, arrays if record.number == 0 else read_arrays(run.path, record))
    growth.half_life = record.half_life
    return record, growth


def growth_of(config: Config, trained: Trained, arrays: Mapping[str, np.ndarray]) -> Growth:
    """What `Growth.to_arrays` gave."""
    nothing = np.datetime64("NaT", "ns")
    growth = Growth(config=config, trained=trained, equations=None, until=nothing)  # type: ignore[arg-type]
    growth.restore(arrays)
    return growth


def update_run(
    run: Run,
    model: ForecastModel,
    memory: Memory,
    ref: str,
    *,
    until: np.datetime64 | None = None,
    half_life: HalfLife = "same",
    report: Report = lambda done, total: None,
) -> StateRecord | None:
    """The next state of a run, which it uses from then on; None if there is no beat to learn.

    model: of the run as it is used now; it is left as it is. memory: a version on this machine to which everything has
    been appended; ref: its reference. until: learn only what is known by then, default all that the memory holds.
    half_life: in steps; None forgets nothing.

    Raises `RunIncompatibleError` for a run that cannot go on, `ResourceError` while another process trains or updates.
    """
    if isinstance(half_life, float | int) and not half_life > 0:
        raise UsageError(f"a half-life of {half_life:g} steps", hint="give more than 0 steps")
    with refusals_named(run.path), files.locked(run.path / LOCK, sign=True):
        record, growth = read_growth(run, current_number(run.path))
        growth.half_life = growth.half_life if half_life == "same" else half_life
        model = copy.deepcopy(model)
        growth.take_over(model, gate=False)
        known = known_until(memory.windows, tuple(growth.trained.series_weight), growth.config.model.horizon)
        if not catch_up(growth, model, memory, known if until is None else min(until, known), report):
            return None
        assert model.shortcut is not None, "what grows has a linear map"
        fit = growth.take_over(model)
        assert fit is not None, "the gate was asked for"
        weights = {
            "weight": model.shortcut.weight.cpu().numpy(),
            "logits": model.value_gate.logits.detach().cpu().numpy(),
        }
        return write_state(
            run.path,
            growth.to_arrays() | weights,
            parent=record.number,
            until=str(growth.until),
            half_life=growth.half_life,
            num_windows=growth.num_windows,
            kept=fit.kept,
            ref=ref,
            fingerprint=memory.manifest.fingerprint,
        )


def _fold_arrays(trained: Trained, num_steps: int) -> dict[str, np.ndarray]:
    every = [(number, each) for number, fold in enumerate(trained.folds) for each in fold]
    numbers = np.array([number for number, _ in every], dtype=np.int64)
    parts = (numbers, *packed([each for _, each in every], len(trained.names), num_steps))
    return {f"trained_{name}": array for name, array in zip(FOLD_ARRAYS, parts, strict=True)}


def _trained_document(trained: Trained) -> dict[str, Any]:
    return {
        "began_at": str(trained.began_at),
        "choice": asdict(trained.choice),
        "names": list(trained.names),
        "num_bases": trained.num_bases,
        "train_stride": trained.train_stride,
        "made_do": trained.made_do,
        "series_weight": dict(trained.series_weight),
    }
