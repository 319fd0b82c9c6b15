"""Cross-fitting in time: contiguous blocks, and for each a trial version whose encoder has not seen it.

A trial version stores the same training windows as the memory, under the same settings; only its encoder was fitted on
fewer of them. It lives in a temporary folder and is thrown away after use.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from forecaster.bounds import at_least
from forecaster.errors import ConfigError
from forecaster.learned_keys.fit_pattern import fit_pattern_encoder
from forecaster.learned_keys.pattern_encoder import PATTERN, PatternConfig, load_encoder
from memory_index import files
from memory_index.encoder import BUILT_IN
from memory_index.errors import DataError, IncompatibleError
from memory_index.fit_encoder import fit_encoder, shared_origins
from memory_index.local import LocalMemory
from memory_index.splits import Split
from memory_index.tables.series import SeriesTable
from memory_index.versions.build import FitEncoder, build, stored_part
from memory_index.versions.manifest import Manifest
from memory_index.versions.opening import encoder_config, open_version
from memory_index.versions.store import Store
from memory_index.windows import Step, origin_rows

MAX_FOLDS = 127  # blocks of time are numbered in int8


@dataclass(frozen=True, kw_only=True)
class CrossFitSettings:
    """num_folds: contiguous blocks of time for cross-fitting what feeds the model in training; 1 fits on everything."""

    num_folds: int = 3

    def __post_init__(self) -> None:
        at_least(self, 1, "num_folds")
        if self.num_folds > MAX_FOLDS:
            raise ConfigError(f"num_folds is {self.num_folds}, but must be at most {MAX_FOLDS}")


def time_blocks(times: np.ndarray, num_blocks: int) -> list[tuple[np.datetime64, np.datetime64]]:
    """First and last time of each of `num_blocks` contiguous blocks of the distinct times, datetime64[ns].

    Raises `DataError` if there are fewer distinct times than blocks.
    """
    distinct = np.unique(times)
    if len(distinct) < num_blocks:
        raise DataError(
            f"there are windows at {len(distinct)} times only, too few for {num_blocks} blocks to cross-fit over",
            hint="lower num_folds, or give a longer training part",
        )
    return [(block[0], block[-1]) for block in np.array_split(distinct, num_blocks)] if num_blocks else []


def off_block(times: np.ndarray, step: Step, *, first: np.datetime64, last: np.datetime64, length: int) -> np.ndarray:
    """Which origins share no step with the windows of a block: bool, shape of `times`.

    times: of origins, datetime64[ns]. first, last: the block's first and last origin. length: steps of a whole window,
    which origins on both sides have to keep off.
    """
    before, after = step.add(np.array([first]), -length)[0], step.add(np.array([last]), length)[0]
    return (times <= before) | (times >= after)


def admit_origins(
    manifest: Manifest, table: SeriesTable, *, first: np.datetime64, last: np.datetime64
) -> list[np.ndarray]:
    """Origin rows per series of the stored training windows that lie lookback + horizon steps or more off a block.

    first, last: the block's first and last origin. Raises `DataError` if that leaves a series, or the joint scope,
    nothing to be fitted on.
    """
    window, step = manifest.window, table.step
    training = stored_part(_like(manifest, table), manifest.split.train_until, window)
    origins = []
    for series in training.series:
        rows = origin_rows(series.values, window)
        origins.append(rows[off_block(series.times[rows], step, first=first, last=last, length=window.length)])
    empty = [series.series_id for series, rows in zip(training.series, origins, strict=True) if not len(rows)]
    if empty or (manifest.joint == "built" and not len(shared_origins(origins))):
        raise DataError(
            f"{table.source}: {f'series {empty[0]!r}' if empty else 'the joint scope'} has no training window left to "
            f"fit keys on when the origins from {step.isoformat(first)} to {step.isoformat(last)} and "
            f"{window.length} steps around them are left out",
            hint="lower num_folds (--set num_folds=1 fits on all, which makes neighbours look better than they are)",
        )
    return origins


@contextmanager
def trial_memory(
    manifest: Manifest,
    table: SeriesTable,
    folder: Path,
    *,
    fit_origins: list[np.ndarray] | None = None,
    split: Split | None = None,
    fit: FitEncoder | None = None,
) -> Iterator[LocalMemory]:
    """The training part of a table as a memory of the same settings; its files in `folder` are deleted afterwards.

    fit_origins: the windows that the encoder is fitted on, default all that are stored. split, fit: by default the
    version's own, and what fits an encoder of its kind.
    """
    try:
        version = build(
            _like(manifest, table),
            Store(folder),
            "trial",
            window=manifest.window,
            split=split or manifest.split,
            encoder=encoder_config(manifest),
            scopes=manifest.scopes,
            fit_origins=fit_origins,
            fit=fit or _fit_of(manifest),
        )
        yield open_version(version, load_encoder=load_encoder)
    finally:
        files.delete_tree(folder)


def _fit_of(manifest: Manifest) -> FitEncoder:
    """What fits an encoder of the version's kind. Raises `IncompatibleError` for a kind that is not known."""
    kind = manifest.encoder["kind"]
    if kind == BUILT_IN:
        return fit_encoder
    if kind == PATTERN:
        return partial(fit_pattern_encoder, pattern=PatternConfig(**manifest.encoder["pattern"]))
    raise IncompatibleError(
        f"an encoder of kind '{kind}' cannot be fitted again, which cross-fitting needs",
        hint="upgrade the program, or set num_folds=1",
    )


def _like(manifest: Manifest, table: SeriesTable) -> SeriesTable:
    """The version's series of a table, in the version's order. Raises `NotFoundError` if one is not there."""
    return replace(table, series=tuple(table[series_id] for series_id in manifest.series_ids))
