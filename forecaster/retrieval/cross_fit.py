"""Cross-fitting of keys: for each fold (`folds.py`) a trial version whose encoder has not seen its futures.

A trial version stores the same training windows as the memory, under the same settings; only its encoder was fitted on
fewer of them. It lives in a temporary folder and is thrown away after use.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from forecaster.bounds import at_least
from forecaster.errors import ConfigError
from forecaster.learned_keys.fit_pattern import fit_pattern_encoder
from forecaster.learned_keys.pattern_encoder import PATTERN, PatternConfig, load_encoder
from forecaster.retrieval.folds import Folds
from memory_index import files
from memory_index.encoder import BUILT_IN
from memory_index.errors import IncompatibleError
from memory_index.fit_encoder import fit_encoder
from memory_index.local import LocalMemory
from memory_index.origins import on_schedule
from memory_index.splits import Split
from memory_index.tables.series import SeriesTable
from memory_index.versions.build import FitEncoder, build, stored_part, up_to_last_values
from memory_index.versions.manifest import Manifest
from memory_index.versions.opening import encoder_config, open_version
from memory_index.versions.store import Store
from memory_index.windows import origin_rows

MAX_FOLDS = 127  # blocks of time are numbered in int8


@dataclass(frozen=True, kw_only=True)
class CrossFitSettings:
    """num_folds: blocks of time for cross-fitting what feeds the model in training; None takes what the table allows
    (`folds.py`), 1 fits on everything.
    """

    num_folds: int | None = None

    def __post_init__(self) -> None:
        if self.num_folds is None:
            return
        at_least(self, 1, "num_folds")
        if self.num_folds > MAX_FOLDS:
            raise ConfigError(f"num_folds is {self.num_folds}, but must be at most {MAX_FOLDS}")


def admit_origins(manifest: Manifest, table: SeriesTable, folds: Folds, fold: int) -> list[np.ndarray]:
    """Origin rows per series, in the version's order, of the stored windows that what serves a fold is fitted on."""
    window, step = manifest.window, table.step
    training = up_to_last_values(stored_part(_like(manifest, table), manifest.split.train_until, window))
    views = tuple(dict.fromkeys(space.view for space in manifest.key_spaces))
    origins = [origin_rows(series.values, training.rule(window), views=views) for series in training.series]
    origins = on_schedule(step, [series.times for series in training.series], origins, manifest.schedule)
    numbers = {name: number for number, name in enumerate(table.series_ids)}
    return [
        rows[folds.admitted(fold, series.times[rows], numbers[series.series_id], step)]
        for series, rows in zip(training.series, origins, strict=True)
    ]


@contextmanager
def trial_memory(
    manifest: Manifest,
    table: SeriesTable,
    folder: Path,
    *,
    target_origins: list[np.ndarray] | None = None,
    split: Split | None = None,
    fit: FitEncoder | None = None,
) -> Iterator[LocalMemory]:
    """The training part of a table as a memory of the same settings; its files in `folder` are deleted afterwards.

    target_origins: the windows whose futures the encoder may be fitted on, default all that are stored. split, fit: by
    default the version's own, and what fits an encoder of its kind.
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
            fit_origins=target_origins if manifest.encoder["kind"] == PATTERN else None,
            fit=fit or _fit_of(manifest, target_origins),
            transform=manifest.transform if split is None else manifest.transform.kind,
            schedule=manifest.schedule,
        )
        yield open_version(version, load_encoder=load_encoder)
    finally:
        files.delete_tree(folder)


def _fit_of(manifest: Manifest, target_origins: list[np.ndarray] | None) -> FitEncoder:
    """What fits an encoder of the version's kind. Raises `IncompatibleError` for a kind that is not known.

    The built-in one learns from futures by its linear maps alone: those are fitted on the target windows, and its PCA,
    which looks at contexts only, on all.
    """
    kind = manifest.encoder["kind"]
    if kind == BUILT_IN:
        return partial(fit_encoder, target_origins=target_origins)
    if kind == PATTERN:
        return partial(fit_pattern_encoder, pattern=PatternConfig(**manifest.encoder["pattern"]))
    raise IncompatibleError(
        f"an encoder of kind '{kind}' cannot be fitted again, which cross-fitting needs",
        hint="upgrade the program, or set num_folds=1",
    )


def _like(manifest: Manifest, table: SeriesTable) -> SeriesTable:
    """The version's series of a table, in the version's order, with its covariates.

    Raises `NotFoundError` if a series is not there.
    """
    numbers = {name: number for number, name in enumerate(table.series_ids)}
    for name in manifest.series_ids:
        table[name]
    of_version = table.of_series([numbers[name] for name in manifest.series_ids])
    return of_version.with_columns([column.name for column in manifest.covariates])
