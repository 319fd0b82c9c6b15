"""What a training will do, decided before it begins: on which windows, held out how, asked how, at what cost.

Everything here follows from table, version and settings alone, so the same training is planned the same way again, on
any machine and after a kill. Work is counted in operations; minutes are an estimate.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from forecaster.config import Config, ModelConfig
from forecaster.learned_keys.pattern_encoder import PATTERN
from forecaster.retrieval.folds import NO_FOLDS, FoldPlan, plan_folds
from memory_index.baselines import season_length
from memory_index.leakage import Policy
from memory_index.memory import Memory
from memory_index.origins import on_schedule
from memory_index.splits import part_origins, require_origins
from memory_index.tables.series import SeriesTable
from memory_index.versions.factories import MAX_EXACT_ROWS
from memory_index.versions.manifest import Manifest

RATE = 6e9  # operations a second that a busy core does, about (docs/experiments.md)
GATHERED = 12  # operations for each number of a neighbour's window: cut, scale, weigh, add, order
MIN_FOUND = 0.5  # share of training windows that must have neighbours under a policy, or another is taken


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingPlan:
    """What a training does.

    folds: how windows are held out. policy: under which training windows ask. train_stride, val_stride: steps between
    two windows of a series. num_train, num_val: windows then. validates: False where no window lies in the validation
    part; then the last training windows, held out, stand in. work: operations of all searches. notes: what differs from
    what was asked for, or from what a larger table gets.
    """

    folds: FoldPlan
    policy: Policy
    train_stride: int
    val_stride: int
    num_train: int
    num_val: int
    validates: bool
    work: float
    notes: tuple[str, ...] = ()

    def num_networks(self, model: ModelConfig) -> int:
        """One for each fold; one where the network is the whole forecast; none where nothing could judge them."""
        if not model.use_network:
            return 0
        return 1 if model.is_network_alone else self.folds.num

    def made_do(self, config: Config) -> bool:
        """Whether training windows ask with less of a memory than a forecast will have: then their errors make it look
        worse than it is, and its quantiles too wide or too narrow.
        """
        return config.model.use_gram and self.policy is not config.train.policy

    def to_dict(self) -> dict[str, Any]:
        """In terms of JSON."""
        return asdict(self) | {"policy": str(self.policy), "notes": list(self.notes)}

    @property
    def told(self) -> tuple[str, ...]:
        """What is said before it begins: the notes, and how long it will take where that is a minute or more."""
        minutes = self.work / RATE / 60
        if minutes < 1:
            return self.notes
        cost = (
            f"{self.num_train:,} training and {self.num_val:,} validation windows, {self.work:.1e} operations to find "
            f"their neighbours: about {minutes:.0f} min"
        )
        return (*self.notes, cost)


def plan_training(memory: Memory, table: SeriesTable, config: Config) -> TrainingPlan:
    """Decide it. table: of the version's series. Raises `DataError` if there is no training window."""
    manifest, notes = memory.manifest, list[str]()
    spec, views = manifest.window.scored(config.model.horizon), memory.windows.views
    delay, when = manifest.window.known_delay, manifest.schedule
    training = require_origins(table, spec, manifest.split, "train", delay=delay, schedule=when, views=views)
    validation = [np.empty(0, dtype=np.int64)] * len(table.series)
    if manifest.split.val_until is not None:
        validation = part_origins(table, spec, manifest.split, "val", delay=delay, views=views)
        validation = on_schedule(table.step, [series.times for series in table.series], validation, when)
    validates = any(len(rows) for rows in validation)
    if not validates:
        notes.append(
            "no window lies in the validation part: the last training windows, held out, stand in for it (a longer "
            "table, a shorter horizon or a larger validation part would give some)"
        )
    each = work_of_a_window(manifest, [len(rows) for rows in training], config.train.memory_k)
    if not config.model.use_gram:
        each = 0.0
    train_stride, val_stride = _strides(table, training, validation, each, config, notes)
    training = [rows[::train_stride] for rows in training]
    num_train, num_val = _count(training), sum(len(rows[::val_stride]) for rows in validation)
    times = np.concatenate([part.times[rows] for part, rows in zip(table.series, training, strict=True)])
    series = np.repeat(np.arange(len(training)), [len(rows) for rows in training])
    folds = plan_folds(
        times,
        series,
        table.step,
        lookback=manifest.window.lookback,
        horizon=manifest.window.horizon,
        num_folds=config.train.num_folds,
    )
    folds = _with_pattern(folds, manifest, notes)
    _tell_folds(folds, config, notes)
    policy = _policy(times, table, manifest, config, notes) if config.model.use_gram else config.train.policy
    return TrainingPlan(
        folds=folds,
        policy=policy,
        train_stride=train_stride,
        val_stride=val_stride,
        num_train=num_train,
        num_val=num_val,
        validates=validates,
        work=each * (num_train + num_val),
        notes=tuple(notes),
    )


def work_of_a_window(manifest: Manifest, rows: Sequence[int], k: int) -> float:
    """Operations to find the neighbours of one window in all key spaces, and to read them.

    rows: stored windows of each series. A scan takes two for each number of each key; of more keys than are scanned, a
    graph index visits about as many as the largest scan.
    """
    window, total = manifest.window, 0.0
    for record in manifest.spaces:
        scanned = {
            "own": sum(float(num) ** 2 for num in rows) / max(sum(rows), 1),
            "joint": max(rows) / len(rows),
            "pooled": float(sum(rows)),
        }[record.scope] / window.stride
        total += 2 * record.width * min(scanned, MAX_EXACT_ROWS)
        total += GATHERED * k * (record.view + window.horizon) + 2 * record.view * window.horizon
    return total


def _strides(
    table: SeriesTable,
    training: Sequence[np.ndarray],
    validation: Sequence[np.ndarray],
    each: float,
    config: Config,
    notes: list[str],
) -> tuple[int, int]:
    """Of training and of validation windows: those asked for, else the smallest that `max_work` allows."""
    train, whole = config.train, each * (_count(training) + _count(validation))
    chosen = smallest_stride(whole / train.max_work, season_length(table.step))
    strides = train.train_stride or chosen, train.val_stride or chosen
    if chosen > 1 and None in (train.train_stride, train.val_stride):
        notes.append(
            f"every {_nth(chosen)} window of a series is used: all of them would take {whole:.1e} operations, and "
            f"--max-work is {train.max_work:.1e}"
        )
    return strides


def smallest_stride(least: float, season: int | None) -> int:
    """The smallest whole number of at least `least` that shares no divisor with the season.

    Windows that begin at the same few phases of a day would not tell what follows the others.
    """
    stride = max(1, math.ceil(least))
    while season is not None and season > 1 and math.gcd(stride, season) > 1:
        stride += 1
    return stride


def _with_pattern(folds: FoldPlan, manifest: Manifest, notes: list[str]) -> FoldPlan:
    """A learned key is trained again for blocks of time only, and not where few windows would be left to it."""
    if manifest.encoder["kind"] != PATTERN or (folds.kind == "time" and folds.gap == manifest.window.length):
        return folds
    if folds.kind != "none":
        notes.append("too few windows to train the learned key again without some of them: it answers as it is stored")
    return NO_FOLDS


def _tell_folds(folds: FoldPlan, config: Config, notes: list[str]) -> None:
    asked = config.train.num_folds
    if folds.kind == "none" and asked != 1:
        notes.append(
            "too few training windows to hold some of them out: half linear map, half memory, as they are, and "
            "nothing is fitted to their errors"
        )
        if config.model.use_network and not config.model.is_network_alone:
            notes.append("no network is trained: no held-out window could tell how far to trust it")
    elif folds.kind == "series":
        notes.append(f"series too short for blocks of time: cross-fitted over {folds}")


def _policy(times: np.ndarray, table: SeriesTable, manifest: Manifest, config: Config, notes: list[str]) -> Policy:
    """What was asked for, unless it leaves most training windows without a neighbour and the other does not."""
    window, asked = manifest.window, config.train.policy
    first, last = times.min(), times.max()
    disjoint = (table.step.add(times, -window.length) >= first) | (table.step.add(times, window.length) <= last)
    causal = table.step.add(times, -window.horizon - window.known_delay) >= first
    share = {Policy.DISJOINT: float(disjoint.mean()), Policy.CAUSAL: float(causal.mean())}
    other = Policy.CAUSAL if asked is Policy.DISJOINT else Policy.DISJOINT
    if share[asked] >= MIN_FOUND or asked is Policy.CAUSAL or share[other] <= share[asked]:
        return asked
    notes.append(
        f"only {share[asked]:.0%} of the training windows would have neighbours under '{asked}': they ask under "
        f"'{other}'"
    )
    return other


def _count(origins: Sequence[np.ndarray]) -> int:
    return sum(len(rows) for rows in origins)


def _nth(number: int) -> str:
    if number % 100 in (11, 12, 13):
        return f"{number}th"
    return f"{number}{ {1: 'st', 2: 'nd', 3: 'rd'}.get(number % 10, 'th') }"
