"""What a build will store: which windows of which series, under which views and scopes, as asked for or in a budget."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np

from memory_index.covariate_map import CovariateLayout
from memory_index.encoder import EncoderConfig
from memory_index.errors import DataError, IncompatibleError, UsageError
from memory_index.fit_covariates import fit_units
from memory_index.fit_encoder import shared_origins
from memory_index.origins import Schedule, scheduled
from memory_index.skipped import Skipped, require_none_skipped, skipped_sentence
from memory_index.tables.series import Series, SeriesTable
from memory_index.types import MAX_JOINT_SERIES, SCOPES, KeySpace, Scope
from memory_index.versions.budget import NOTHING_BESIDE, Asked, Beside, Budget, within_budget
from memory_index.versions.factories import choose_factory
from memory_index.versions.manifest import BudgetRecord
from memory_index.versions.segments import SegmentPlan
from memory_index.windows import WindowSpec, origin_rows


class Contents(NamedTuple):
    """What a version will hold: which windows of which series, under which views and scopes, and how each is searched.

    given: all series of the training part, each up to its last value. training: those that are stored. origins: origin
    rows of each of them. joint: why there can be no joint scope, or empty. factories: FAISS factory string, and the
    reason for it. budget: what one made of all this.
    """

    given: SeriesTable
    training: SeriesTable
    origins: list[np.ndarray]
    skipped: tuple[Skipped, ...]
    window: WindowSpec
    encoder: EncoderConfig
    scopes: tuple[Scope, ...]
    joint: str
    factories: dict[KeySpace, tuple[str, str]]
    schedule: Schedule | None
    budget: BudgetRecord | None = None

    @property
    def plan(self) -> SegmentPlan:
        """What all segments of the version will have in common."""
        factories = {space: name for space, (name, _) in self.factories.items()}
        return SegmentPlan(window=self.window, factories=factories, num_series=len(self.training.series))

    @property
    def layout(self) -> CovariateLayout | None:
        """What will stand beside a window; None without covariates."""
        given, window = self.training.covariates, self.window
        if given is None or not given.columns:
            return None
        columns = fit_units(self.training, self.origins, window.horizon)
        return CovariateLayout(columns=columns, lookback=window.lookback, horizon=window.horizon)

    @property
    def widths(self) -> dict[KeySpace, int]:
        """Numbers of a key, by key space."""
        layout, num = self.layout, len(self.training.series)
        condition = 0 if layout is None else layout.condition_width
        return {space: self.encoder.key_width(space, num, condition) for space in self.factories}

    def beside(self) -> Beside:
        """The covariates, as a budget counts them."""
        layout, given = self.layout, self.training.covariates
        if layout is None or given is None:
            return NOTHING_BESIDE
        distinct = {id(each.values): len(each.times) for each in given.series}
        issued = np.isin(layout.column_of_channel, [n for n, c in enumerate(layout.columns) if c.vintages])
        return Beside(
            num_columns=len(layout.columns),
            num_channels=len(layout.column_of_channel),
            num_steps=sum(distinct.values()),
            width=layout.width,
            condition_width=layout.condition_width,
            num_vintages=0 if given.vintages is None else len(given.vintages),
            num_issued=int(issued.sum()),
            num_near=layout.context_steps + layout.horizon,
        )


def contents_of(
    known: SeriesTable,
    given: SeriesTable,
    window: WindowSpec,
    encoder: EncoderConfig,
    scopes: tuple[Scope, ...] | None,
    factory: str,
    schedule: Schedule | None,
    *,
    strict: bool,
) -> Contents:
    """All that was asked for. Raises what `build` raises.

    known: the training part as it was given. given: the same, each series up to its last value.
    """
    training, origins, skipped = with_windows(given, window, encoder.views, schedule, strict=strict)
    joint = joint_refusal(known, training, origins)
    scopes = choose_scopes(scopes, joint)
    factories = {
        KeySpace(scope, view): choose_factory(factory, group_sizes(scope, origins))
        for scope in scopes
        for view in encoder.views
    }
    return Contents(given, training, origins, skipped, window, encoder, scopes, joint, factories, schedule)


def contents_within(
    budget: Budget, contents: Contents, table: SeriesTable, factory: str, *, keep_scopes: bool, strict: bool
) -> Contents:
    """The same, or as much of it as a budget has room for."""
    asked = Asked(
        origins=contents.origins,
        num_steps=sum(len(series) for series in table.series),
        first_origin=contents.window.lookback - 1,
        stride=contents.window.stride,
        keep_stride=contents.schedule is not None,
        season=table.step.season,
        encoder=contents.encoder,
        scopes=contents.scopes,
        factory=factory,
        keep_views=budget.keep_views,
        keep_scopes=keep_scopes,
        beside=contents.beside(),
    )
    choice, record = within_budget(asked, budget.num_bytes)
    window = dataclasses.replace(contents.window, stride=choice.stride)
    encoder = dataclasses.replace(contents.encoder, views=choice.views)
    training, origins, skipped = with_windows(contents.given, window, encoder.views, contents.schedule, strict=strict)
    return contents._replace(
        training=training,
        origins=origins,
        skipped=skipped,
        window=window,
        encoder=encoder,
        scopes=choice.scopes,
        factories=choice.factories,
        budget=record,
    )


def joint_refusal(known: SeriesTable, table: SeriesTable, origins: list[np.ndarray]) -> str:
    """Why a table with these training windows cannot have the joint scope; empty if it can (docs/method.md).

    known: the training part as it was given, before each series was cut after its last value.
    """
    if not 2 <= len(table.series) <= MAX_JOINT_SERIES:
        return f"it needs 2 to {MAX_JOINT_SERIES} series, and there are {len(table.series)}"
    if not known.shares_times:
        return "it needs series that share all time stamps of the training part"
    return (
        "" if len(shared_origins(origins)) else "it needs a time at which no series has a missing value in its window"
    )


def choose_scopes(asked: tuple[Scope, ...] | None, joint: str) -> tuple[Scope, ...]:
    """The scopes to build. joint: why there can be no joint scope, or empty."""
    if asked is None:
        return tuple(scope for scope in SCOPES if scope != "joint" or not joint)
    for scope in asked:
        if scope not in SCOPES:
            raise UsageError(f"unknown scope '{scope}'", hint=f"choose from {', '.join(SCOPES)}")
    if "joint" in asked and joint:
        raise IncompatibleError(f"this table cannot have the scope 'joint': {joint}", hint="leave it out of --scopes")
    if not asked:
        raise UsageError("at least one scope is needed", hint=f"choose from {', '.join(SCOPES)}")
    return tuple(scope for scope in SCOPES if scope in asked)


def group_sizes(scope: Scope, origins: list[np.ndarray]) -> np.ndarray:
    """Keys in each group of a scope's key spaces, in a version with windows at these origin rows, int64 [groups]."""
    if scope == "own":
        return np.array([len(rows) for rows in origins])
    return np.array([len(shared_origins(origins)) if scope == "joint" else sum(map(len, origins))])


def with_windows(
    training: SeriesTable,
    window: WindowSpec,
    views: tuple[int, ...],
    schedule: Schedule | None = None,
    *,
    strict: bool = False,
) -> tuple[SeriesTable, list[np.ndarray], tuple[Skipped, ...]]:
    """The series of a training part that have a window, their origin rows, and the other series with the reason.

    Raises `DataError` if no series has one; strict: if some has none; `UsageError` if the schedule has none of all.
    """
    origins = [origin_rows(series.values, window, views=views) for series in training.series]
    origins = origins if schedule is None else scheduled(training, origins, schedule)
    kept = [number for number, rows in enumerate(origins) if len(rows)]
    skipped = tuple(
        Skipped(series_id=series.series_id, reason=_without_window(series, window))
        for series, rows in zip(training.series, origins, strict=True)
        if not len(rows)
    )
    if not kept:
        raise DataError(
            f"{training.source}: {skipped_sentence(skipped, 'without a window')}",
            hint="choose a shorter --lookback or --horizon, or a larger training part",
        )
    if not skipped:
        return training, origins, ()
    if strict:
        require_none_skipped(skipped, training.source, "without a window")
    return training.of_series(kept), [origins[number] for number in kept], skipped


def _without_window(series: Series, window: WindowSpec) -> str:
    """Why a series has no window."""
    missing = int(np.isnan(series.values).sum())
    steps = "1 step" if len(series) == 1 else f"{len(series)} steps"
    of_them = f", {missing} of them missing," if missing else ""
    return (
        f"has {steps}{of_them} in the training part, but no window of {window.lookback} + {window.horizon} of which "
        "enough is known"
        if len(series) >= window.length
        else f"has {steps}{of_them} in the training part, but a window needs {window.lookback} + {window.horizon}"
    )
