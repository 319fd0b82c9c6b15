"""The neighbours of all windows of a part of a table, found once in bulk and memory-mapped: an epoch pays no search.

For a version they never change. A cache is a folder that is named after everything that decides what is in it, is
published by one rename, and is hashed before it is opened. One that is damaged is made again, and says so.

What feeds the model in training is cross-fitted: the windows of each fold (`retrieval/folds.py`) ask a trial version of
the training part whose encoder has not seen what followed them. What is kept of an answer is told in `neighbours.py`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from forecaster.retrieval.asked import AskedWindows, Places, fan_windows, origin_times, part_windows
from forecaster.retrieval.cache_folder import damage_of, making, new_array, publish, staged
from forecaster.retrieval.cross_fit import admit_origins, trial_memory
from forecaster.retrieval.folds import NO_FOLDS, FoldPlan
from forecaster.retrieval.neighbours import FAN_LEVELS, SLOTS, Condensed, Fans, condense
from memory_index import files
from memory_index.errors import IncompatibleError
from memory_index.evaluation import Report
from memory_index.leakage import LeakError, Policy, require_admissible
from memory_index.memory import Memory
from memory_index.queries import query_blocks, require_same_data
from memory_index.tables.series import SeriesTable
from memory_index.types import Filter, KeySpace
from memory_index.versions.build import steps_until
from memory_index.windows import StoredWindows

# 2: neighbours' futures are moved by the linear map. 3: moments are asked as a whole wherever their contexts allow it.
# 4: folds of more kinds, whose keys differ in what they know of futures only; quantiles of some windows.
FORMAT = 4
ARRAYS = (*Condensed._fields, "series", "origin_row", "fold", "fan_number", "fan_levels")
CHECKED = 65536  # windows whose neighbours are checked against the leak rule at once


@dataclass(frozen=True, kw_only=True)
class NeighbourCache:
    """Neighbours of n windows in time order (origin, then series), mapped from disk.

    condensed: see `neighbours.Condensed`; its row ids are those of the memory. spaces: the V key spaces. series: int32
    [n], number in the table. origin_row: int64 [n], within that series. fold: int8 [n], the fold that was left out of
    the fit of the keys that answered; -1 where nothing was. fans: of some moments, spread evenly over time. path: its
    folder. notes: what a person should know, such as that it was damaged and has been made again.
    """

    condensed: Condensed
    spaces: tuple[KeySpace, ...]
    series: np.ndarray
    origin_row: np.ndarray
    fold: np.ndarray
    fans: Fans
    path: Path
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.series)


@dataclass(frozen=True, kw_only=True, slots=True)
class CacheSettings:
    """Everything that decides what is in a cache; its name is the hash of it.

    memory: fingerprint of the version. table_sha256: of the steps up to the end of the part. horizon: the model's.
    folds: how it is cross-fitted, in terms of JSON. answered_by: what beside the version decides what is found, see
    `Memory.answered_by`; empty where the memory itself is not asked.
    """

    memory: str
    table_sha256: str
    lookback: int
    horizon: int
    part: str
    policy: Policy
    k: int
    slots: int
    folds: dict[str, Any]
    stride: int
    answered_by: str = ""
    format: int = FORMAT

    @property
    def name(self) -> str:
        """The folder of the cache."""
        deciding = asdict(self)
        if not self.answered_by:  # what a version itself answers has the name that it always had
            del deciding["answered_by"]
        return files.sha256_of(json.dumps(deciding, sort_keys=True).encode())[:32]


def training_neighbours(
    memory: Memory,
    table: SeriesTable,
    *,
    folder: Path,
    policy: Policy,
    k: int,
    folds: FoldPlan,
    stride: int,
    horizon: int,
    slots: int = SLOTS,
    report: Report = lambda done, total: None,
) -> NeighbourCache:
    """The neighbours of the training windows, cross-fitted over folds; without any the memory itself is asked.

    folder: where caches lie. k: neighbours per key space that make the forecasts. stride: steps between the origins of
    two windows of a series. horizon: the model's, at most the memory's. report: called with (windows done, all).

    No neighbour is known later than the end of the training part, whatever has been appended to the memory.

    Raises `IncompatibleError` (horizon, or a table that the memory was not built on), `DataError` (no training window),
    `ResourceError` (disk).
    """
    settings = _settings(memory, table, "train", policy, k, folds, stride, horizon, slots)
    return _opened_or_made(memory, table, settings, folder, report)


def part_neighbours(
    memory: Memory,
    table: SeriesTable,
    *,
    folder: Path,
    part: str = "val",
    k: int,
    stride: int = 1,
    horizon: int,
    slots: int = SLOTS,
    report: Report = lambda done, total: None,
) -> NeighbourCache:
    """The neighbours of the windows of a part under `causal`, asked of the memory itself; see `training_neighbours`."""
    settings = _settings(memory, table, part, Policy.CAUSAL, k, NO_FOLDS, stride, horizon, slots)
    return _opened_or_made(memory, table, settings, folder, report)


def _settings(
    memory: Memory,
    table: SeriesTable,
    part: str,
    policy: Policy,
    k: int,
    folds: FoldPlan,
    stride: int,
    horizon: int,
    slots: int,
) -> CacheSettings:
    window = memory.manifest.window
    if horizon > window.horizon:
        raise IncompatibleError(
            f"a horizon of {horizon} steps is longer than the memory's {window.horizon}",
            hint="choose a shorter horizon, or build a version with a longer one",
        )
    return CacheSettings(
        memory=memory.manifest.fingerprint,
        table_sha256=steps_until(table, memory.manifest.split.bounds(part)[1]).input_hash,
        lookback=window.lookback,
        horizon=horizon,
        part=part,
        policy=policy,
        k=k,
        slots=slots,
        folds=folds.to_dict(),
        stride=stride,
        # Folds ask trial versions, which are searched here whoever searches the memory.
        answered_by="" if folds.num else memory.answered_by,
    )


def _opened_or_made(
    memory: Memory, table: SeriesTable, settings: CacheSettings, folder: Path, report: Report
) -> NeighbourCache:
    """The cache on disk, made first if it is not there or not as it was made.

    Whoever comes second while it is made waits for it. One that is whole needs no lock, and a folder that cannot be
    written will do.
    """
    path = folder / settings.name
    if not damage_of(path, ARRAYS):
        return _open(memory, table, settings, path)
    with making(path):
        notes: tuple[str, ...] = ()
        if path.exists():
            damage = damage_of(path, ARRAYS)
            if not damage:
                return _open(memory, table, settings, path)
            notes = (f"the neighbours in {path} are damaged ({damage}): they were found again",)
        asked = part_windows(
            memory,
            table,
            settings.part,
            horizon=settings.horizon,
            stride=settings.stride,
            folds=FoldPlan(**settings.folds),
        )
        with staged(path) as staging:
            _make(memory, table, settings, asked, staging, report)
            publish(staging, path, ARRAYS, asdict(settings))
        return _open(memory, table, settings, path, notes=notes)


def _make(
    memory: Memory, table: SeriesTable, settings: CacheSettings, asked: AskedWindows, staging: Path, report: Report
) -> None:
    """Write every array, block by block."""
    require_same_data(table, memory.windows, "the memory")
    spaces = memory.manifest.key_spaces
    num, slots = len(asked.series), settings.slots
    arrays = Condensed(
        forecasts=new_array(staging / "forecasts.npy", (num, len(spaces), settings.horizon), np.float32),
        found=new_array(staging / "found.npy", (num, len(spaces)), np.bool_),
        row=new_array(staging / "row.npy", (num, slots), np.int64),
        space=new_array(staging / "space.npy", (num, slots), np.int8),
        logit=new_array(staging / "logit.npy", (num, slots), np.float32),
    )
    fan_number = fan_windows(origin_times(table, asked.series, asked.origin_row), settings.horizon)
    shape = (len(fan_number), settings.horizon, len(FAN_LEVELS))
    fan_levels = new_array(staging / "fan_levels.npy", shape, np.float32)
    files.write_array(staging / "fan_number.npy", fan_number)
    for name in ("series", "origin_row", "fold"):
        files.write_array(staging / f"{name}.npy", getattr(asked, name))
    done = 0
    for memory_asked, fold, row_of in _memories(memory, table, settings, asked, staging / "trial"):
        for answer in _answers(memory_asked, memory, table, settings, asked, fold, fan_number):
            part = answer.part._replace(row=np.where(answer.part.row >= 0, row_of[answer.part.row], -1))
            for array, values in zip(arrays, part, strict=True):
                array[answer.number] = values
            fan_levels[np.searchsorted(fan_number, answer.fans.number)] = answer.fans.levels
            done += len(answer.number)
            report(done, num)
    for array in (*arrays, fan_levels):
        array.flush()  # type: ignore[attr-defined]  # they are memory maps


def _memories(
    memory: Memory, table: SeriesTable, settings: CacheSettings, asked: AskedWindows, folder: Path
) -> Iterator[tuple[Memory, int, np.ndarray]]:
    """Who answers which fold, and the memory's row id of each of its rows; one trial version at a time."""
    if not asked.folds.plan.num:
        yield memory, -1, np.arange(len(memory.windows))
        return
    for fold in range(asked.folds.plan.num):
        admitted = admit_origins(memory.manifest, table, asked.folds, fold)
        with trial_memory(memory.manifest, table, folder, target_origins=admitted) as trial:
            yield trial, fold, _same_rows(trial.windows, memory.windows)


class Answer(NamedTuple):
    """What answers m of the windows. number: int64 [m], which. fans: of those of them whose quantiles are kept."""

    number: np.ndarray
    part: Condensed
    fans: Fans


def _answers(
    answering: Memory,
    memory: Memory,
    table: SeriesTable,
    settings: CacheSettings,
    asked: AskedWindows,
    fold: int,
    fan_number: np.ndarray,
) -> Iterator[Answer]:
    """The windows of one fold and what answers them, a block of queries at a time."""
    spaces = memory.manifest.key_spaces
    mine = asked.fold == fold
    place = Places(table, asked)
    has_fan = np.isin(np.arange(len(asked)), fan_number)
    origins = [asked.origin_row[mine & (asked.series == number)] for number in range(len(table.series))]
    where = _training_only(memory) if settings.part == "train" else None
    spec, known, views = (
        memory.manifest.window.scored(settings.horizon),
        memory.manifest.series_ids,
        memory.windows.views,
    )
    layout = memory.manifest.covariate_layout
    for block in query_blocks(table, origins, spec, settings.policy, known=known, views=views, layout=layout):
        neighbours = answering.search(block.queries, settings.k, where=where).inside()
        part = condense(neighbours, spaces, slots=settings.slots, horizon=settings.horizon)
        number = place.numbers(block.series, block.row)  # [B, N]
        drawn = block.wanted & has_fan[number]
        moments = drawn.any(axis=1)
        fans = Fans(number[drawn], np.empty((0, settings.horizon, len(FAN_LEVELS)), dtype=np.float32))
        if moments.any():
            levels = neighbours.at_moments(moments).quantiles(FAN_LEVELS, on_empty="last-value")
            fans = fans._replace(levels=levels[drawn[moments]][:, : settings.horizon])
        yield Answer(number[block.wanted], part.take(block.wanted.ravel()), fans)


def _training_only(memory: Memory) -> Filter:
    """Only windows that are known by the end of the training part: more may have been appended since.

    Known times rise with origins, so the last origin of those windows tells them apart.
    """
    windows = memory.windows
    known = windows.known_at <= memory.manifest.split.bounds("train")[1]
    return Filter(before=windows.origin(np.flatnonzero(known)).max())


def _same_rows(trial: StoredWindows, memory: StoredWindows) -> np.ndarray:
    """int64 [R]: the memory's row id of every row of a trial version.

    Raises `IncompatibleError` if a window of the trial is not in the memory, or is normalised in another way there.
    """
    assert (trial.series_ids, trial.views) == (memory.series_ids, memory.views), "a trial is made like its memory"
    order = np.argsort(memory.origin_position)
    wanted = memory.offset[trial.series] + trial.origin_row
    place = np.searchsorted(memory.origin_position, wanted, sorter=order)
    row = order[np.minimum(place, len(order) - 1)]
    same = (
        np.array_equal(memory.series[row], trial.series)
        and np.array_equal(memory.origin_row[row], trial.origin_row)
        and np.array_equal(memory.known_at[row], trial.known_at)
        and np.allclose(memory.location[row], trial.location, rtol=1e-5, atol=0)
        and np.allclose(memory.spread[row], trial.spread, rtol=1e-5, atol=0)
    )
    if not same:
        raise IncompatibleError(
            "the training windows of the table are not those that the memory stores",
            hint="give the table that the version was built on, as it was then",
        )
    return row


def _open(
    memory: Memory, table: SeriesTable, settings: CacheSettings, path: Path, *, notes: tuple[str, ...] = ()
) -> NeighbourCache:
    """Map the arrays of a cache whose bytes are right, and check its rows against the leak rule once more."""

    def mapped(name: str) -> np.ndarray:
        return np.load(path / f"{name}.npy", mmap_mode="r", allow_pickle=False)

    cache = NeighbourCache(
        condensed=Condensed(*(mapped(name) for name in Condensed._fields)),
        spaces=memory.manifest.key_spaces,
        series=mapped("series"),
        origin_row=mapped("origin_row"),
        fold=mapped("fold"),
        fans=Fans(np.asarray(mapped("fan_number")), mapped("fan_levels")),
        path=path,
        notes=notes,
    )
    _require_admissible(memory, table, settings, cache)
    return cache


def _require_admissible(memory: Memory, table: SeriesTable, settings: CacheSettings, cache: NeighbourCache) -> None:
    """Raise `LeakError` if any row is one that its window must not see."""
    windows, until = memory.windows, memory.manifest.split.bounds("train")[1]
    for start in range(0, len(cache), CHECKED):
        part = slice(start, start + CHECKED)
        row = np.asarray(cache.condensed.row[part])
        origin = origin_times(table, cache.series[part], cache.origin_row[part])
        spans, valid = windows.spans(np.maximum(row, 0)), row >= 0
        require_admissible(
            settings.policy,
            spans,
            valid,
            origin=origin[:, None],
            query_start=windows.step.add(origin, 1 - windows.spec.lookback)[:, None],
            query_end=windows.step.add(origin, windows.spec.horizon)[:, None],
        )
        if settings.part == "train" and (spans.known_at[valid] > until).any():
            raise LeakError(
                f"training neighbours in {cache.path} are known after the training part, which ends at {until}",
                hint="this is a defect of the cache, please report it",
            )
