"""`Forecaster`: the whole way from a table to a forecast, for use from Python.

    forecaster = Forecaster(horizon=48, lookback=336).fit(history)  # a DataFrame: unique_id, ds, y; or wide
    forecaster.predict(quantiles=(0.1, 0.9))
    forecaster.explain(history, "feeder_north", "2024-09-25 23:00")
    forecaster.save("runs/mine")

It does what `cli index build`, `train`, `evaluate`, `forecast` and `explain` do, through the same functions.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd

from forecaster.backtest import OfRun, cross_validation_frame, growing
from forecaster.config import Config
from forecaster.errors import RunNotFoundError
from forecaster.evaluate import evaluate as evaluate_run
from forecaster.explain import Explanation, explain
from forecaster.forecast import forecast
from forecaster.growth.updates import HalfLife, update_run
from forecaster.learned_keys.pattern_encoder import load_encoder
from forecaster.predictor import Predictor, load_predictor, require_same_memory
from forecaster.runs.run import Run, open_run, run_exists
from forecaster.runs.states import has_states, read_state
from forecaster.training.fit import train_run
from memory_index.backtest.plan import BacktestPlan, last_origins
from memory_index.bounds import Bounds
from memory_index.closeness import UsualDistances, usual_distances
from memory_index.errors import IncompatibleError, NotFoundError, NothingNewError, UsageError
from memory_index.evaluation import Evaluation
from memory_index.local import LocalMemory
from memory_index.origins import parse_schedule, schedule_of_a_version
from memory_index.queries import require_no_longer_step, require_same_data
from memory_index.scenarios import parse_changes, with_changes
from memory_index.splits import split_by_name
from memory_index.tables.columns import ReadOptions, several
from memory_index.tables.known_ahead import read_known_ahead
from memory_index.tables.reading import read_frame
from memory_index.tables.recorded_roles import with_recorded
from memory_index.tables.series import SeriesTable
from memory_index.tables.steps_ahead import make_future as future_table
from memory_index.tables.vintages import with_vintages
from memory_index.versions.append import append
from memory_index.versions.archive import export, import_version
from memory_index.versions.build import build, steps_until
from memory_index.versions.grown import grown
from memory_index.versions.opening import open_version
from memory_index.versions.store import Store
from memory_index.windows import WindowSpec

INDEXES, RUN, NEIGHBOURS, NAME = "indexes", "run", ".neighbours", "memory"
DEFAULT_SPLIT = "80/20/0"  # of the rows: training, validation, test


class Forecaster:
    """A memory and a model that is trained against it.

    horizon, lookback: steps to forecast and to look at. split: shares of training, validation and test rows; the
    default keeps none for a test, `70/10/20` leaves some for `evaluate`. folder: where index and run are written, None
    for a temporary one that goes with the object. device: `auto`, `cpu` or `cuda`. options: how tables are read. known,
    observed, static: names of covariates: columns whose future is known, whose past alone is known, and that have one
    value for each series (docs/covariates.md). transform: units that memory and model work in, `none`, `asinh`, `log1p`
    or `auto` (`memory_index.transforms`). every, at: only the origins that operation has, such as `24h` and `23:00`,
    in the memory, in training and in scores. settings: any setting of `forecaster.config` by name.

    Tables are DataFrames, long (`unique_id, ds, y`) or wide (a time column and one column per series); without a time
    column, an index of times is it. vintages, of any method: known covariates as they were issued, of which each window
    and each forecast sees those that were issued by its origin (`memory_index.read_vintages`). Raises `ConfigError` for
    a setting that does not exist.
    """

    def __init__(
        self,
        *,
        horizon: int,
        lookback: int = 336,
        split: str = DEFAULT_SPLIT,
        folder: Path | str | None = None,
        device: str = "auto",
        options: ReadOptions | None = None,
        transform: str = "none",
        every: str | None = None,
        at: str | None = None,
        known: str | Sequence[str] = (),
        observed: str | Sequence[str] = (),
        static: str | Sequence[str] = (),
        **settings: Any,
    ) -> None:
        self.config = Config.from_dict({"horizon": horizon, "lookback": lookback, **settings})
        self.transform, self.schedule = transform, schedule_of_a_version(every, at)
        options = options or ReadOptions()
        self.options = replace(
            options,
            known=several(known) or options.known,
            observed=several(observed) or options.observed,
            static=several(static) or options.static,
        )
        self.split, self.device = split, device
        self._temporary = tempfile.TemporaryDirectory(prefix="forecaster-") if folder is None else None
        self.folder = Path(self._temporary.name if self._temporary is not None else folder or "")
        self._history: SeriesTable | None = None
        self._predictor: Predictor | None = None
        self._ref = ""
        self._usual: tuple[str, UsualDistances] | None = None

    @property
    def run(self) -> Run:
        """The record of the training. Raises `RunNotFoundError` before `fit`."""
        return open_run(self.folder / RUN)

    @property
    def memory(self) -> LocalMemory:
        """The version that answers now: the one that was trained against, or what has been appended to it."""
        self._require_fitted()
        return self._open(self._ref)

    def fit(self, frame: pd.DataFrame, *, vintages: pd.DataFrame | None = None) -> Self:
        """Build a memory of the training part of a table and train a model against it.

        Raises `UsageError` if this has been done in the folder before, and what `build` and `train_run` raise.
        """
        return self._fit(read_frame(frame, self._with(vintages, self.options)))

    def _fit(self, table: SeriesTable) -> Self:
        if run_exists(self.folder / RUN):  # before a version is built that would not belong to that run
            raise UsageError(
                f"{self.folder} holds a trained model, or the beginning of one",
                hint="make a new Forecaster, with another folder",
            )
        window = WindowSpec(lookback=self.config.model.lookback, horizon=self.config.model.horizon)
        how: dict[str, Any] = {"transform": self.transform, "schedule": self.schedule}
        split = split_by_name(self.split, table.times)
        version = build(table, Store(self.folder / INDEXES), NAME, window=window, split=split, **how)
        how = {"neighbours_dir": self.folder / NEIGHBOURS, "device": self.device}
        train_run(table, open_version(version), version.ref, self.config, self.folder / RUN, **how)
        self._ref, self._history = version.ref, table
        self._predictor = load_predictor(self.run, device=self.device)
        return self

    def predict(
        self,
        frame: pd.DataFrame | None = None,
        future: pd.DataFrame | None = None,
        *,
        vintages: pd.DataFrame | None = None,
        quantiles: tuple[float, ...] = (),
        set_known: str | Sequence[str] | None = None,
        lower: float | None = None,
        upper: float | None = None,
        update_memory: bool = True,
    ) -> pd.DataFrame:
        """The next steps of every series: `unique_id, ds, yhat` and one column per quantile asked for (`q0.1`).

        frame: the history to go on from, default that of `fit`; rows after the last target value are the future.
        future: the known covariates of the next steps, as `make_future` lays out, or vintages. set_known: a scenario,
        `temperature=5` or `temperature+=5` over the whole horizon (`memory_index.scenarios`). update_memory: append
        what it holds that the memory does not yet; nothing is trained again. A table with series that the memory does
        not know needs False. lower, upper: bounds that no forecast and no quantile leaves; without `lower`, counts are
        kept at 0 or above (`memory_index.bounds`).

        Raises what `append` and `forecaster.forecast.forecast` raise.
        """
        predictor, bounds = self._require_fitted(), Bounds(lower=lower, upper=upper)
        if frame is None and self._history is None:
            raise UsageError("a loaded forecaster has no history", hint="give predict the table to go on from")
        table = self._history if frame is None else self._read(frame, vintages)
        assert table is not None, "one of the two is given"
        if frame is None and vintages is not None:
            table = with_vintages(table, vintages, self._options_like())
        if update_memory:
            with suppress(NothingNewError):
                self._grow(table)
        memory = self.memory
        require_same_data(table, memory.windows, self._ref)
        columns, horizon = memory.manifest.covariates, memory.windows.spec.horizon
        if future is not None:
            plain = [column.name for column in columns if not column.vintages]
            table = read_known_ahead(future, table, self._options_like(), horizon=horizon, plain=plain)
        table = with_changes(table, parse_changes(set_known), columns, horizon)
        return forecast(predictor, memory, table, quantiles=quantiles, bounds=bounds)

    def make_future(self, history: pd.DataFrame | None = None, *, vintages: pd.DataFrame | None = None) -> pd.DataFrame:
        """The table of the next steps of every series, to be filled in and given to `predict`: one column for each
        known covariate, with what is known already. history: as for `predict`.

        Raises `UsageError` without a known covariate.
        """
        table = self._history if history is None else self._read(history, vintages)
        if table is None:
            raise UsageError("a loaded forecaster has no history", hint="give make_future the table to go on from")
        return future_table(table, self.memory.windows.spec.horizon, like=self._options_like())

    def evaluate(
        self,
        frame: pd.DataFrame,
        part: str = "test",
        *,
        every: str | None = None,
        at: str | None = None,
        vintages: pd.DataFrame | None = None,
    ) -> Evaluation:
        """Score every window of a part (`train`, `val`, `test`), with the memory that was trained against.

        every, at: only the origins that operation has, such as `24h` and `23:00` (`memory_index.parse_schedule`); by
        default those of the memory.
        """
        predictor, trained = self._require_fitted(), self._trained_ref()
        table, memory = self._read(frame, vintages), self._open(trained)
        require_same_data(table, memory.windows, trained)
        return evaluate_run(predictor, memory, table, part, schedule=parse_schedule(every, at))

    def cross_validation(
        self,
        history: pd.DataFrame,
        n_windows: int = 1,
        step_size: int | None = None,
        *,
        refit: bool = True,
        quantiles: tuple[float, ...] = (),
        vintages: pd.DataFrame | None = None,
    ) -> pd.DataFrame:
        """Forecasts from the last `n_windows` origins beside what came: `unique_id, ds, cutoff, y, yhat` and one column
        per quantile asked for (`q0.1`). `cutoff` is the origin, the last step that a forecast knows.

        The last forecast ends with the table, each one before begins `step_size` steps earlier, default the horizon. A
        forecaster that is not fitted is first fitted on what was known at the first cutoff. refit: at each cutoff the
        memory holds what had become known by then, linear map and gate have learned it, and quantiles are recalibrated
        (`cli backtest`); without, nothing changes after fitting.

        Raises `IncompatibleError` for cutoffs that a fitted forecaster has seen, `UsageError` for more windows than a
        series has, and what `fit` raises.
        """
        fitted = self._predictor is not None
        like = self._options_like() if fitted else self.options
        table = read_frame(history, self._with(vintages, like))
        spec = WindowSpec(lookback=self.config.model.lookback, horizon=self.config.model.horizon)
        views: tuple[int, ...] = ()
        if fitted:
            spec, views = self.memory.windows.spec, self.memory.windows.views
        origins = last_origins(
            table, spec, num_windows=n_windows, step_size=spec.horizon if step_size is None else step_size, views=views
        )
        first = min(series.times[rows[0]] for series, rows in zip(table.series, origins, strict=True))
        if not fitted:
            self._fit(steps_until(table, first))
        predictor, version = self._as_trained(), Store(self.folder / INDEXES).resolve(self._trained_ref())
        fitted_at = max(version.manifest.fitted_known_at, predictor.seen_until)
        if first < fitted_at:
            raise IncompatibleError(
                f"the first cutoff, {table.step.isoformat(first)}, is in sample: the forecaster was fitted on steps up "
                f"to {table.step.isoformat(fitted_at)}",
                hint="ask for fewer windows, or of a new Forecaster, which is fitted on what was known then",
            )
        moments = np.unique(np.concatenate([s.times[rows] for s, rows in zip(table.series, origins, strict=True)]))
        plan = BacktestPlan(origins=origins, updates=moments if refit else moments[:1], in_sample=False)
        with ExitStack() as until_done:
            memory = self._open(version.ref)
            if refit:
                memory = until_done.enter_context(grown(version, table, load_encoder=load_encoder))
            else:
                require_same_data(table, memory.windows, version.ref)
            subject = OfRun(predictor=predictor, memory=memory)
            if refit and has_states(self.folder / RUN):
                subject = growing(self.run, predictor, memory, plan)
            return cross_validation_frame(subject, table, plan, levels=quantiles)

    def update(
        self, frame: pd.DataFrame, *, vintages: pd.DataFrame | None = None, half_life: HalfLife = "same"
    ) -> Self:
        """Learn what has become known, without training: the memory stores it, and linear map and value gate go on from
        their normal equations, as the run's next state (`cli forecast --update`).

        frame: the whole history, or only new rows. half_life: steps after which what was learned counts half; None
        forgets nothing, `same` is what it was before (None at first).

        Raises `NothingNewError` if both have everything, `RunIncompatibleError` for a model with a network, and what
        `append` raises.
        """
        predictor, nothing = self._require_fitted(), None
        read_state(self.folder / RUN)
        try:
            self._grow(self._read(frame, vintages))
        except NothingNewError as error:  # an update that was stopped half way has stored it
            nothing = error
        if update_run(self.run, predictor.model, self.memory, self._ref, half_life=half_life) is None and nothing:
            raise nothing
        self._predictor = load_predictor(self.run, device=self.device)
        return self

    def explain(
        self,
        frame: pd.DataFrame,
        series_id: str,
        at: str | datetime | np.datetime64,
        *,
        vintages: pd.DataFrame | None = None,
    ) -> Explanation:
        """The forecast of one series at one time, taken apart, by the memory that answers now.

        frame: a table that holds the window. at: the last step that the forecast knows, such as `2024-09-25 23:00`
        or a `pd.Timestamp`.

        Raises `NotFoundError` (series, time, no neighbour), `UsageError` (not a time), `RunIncompatibleError` (a model
        without the memory), `IncompatibleError` (another table).
        """
        predictor, table, memory = self._require_fitted(), self._read(frame, vintages), self.memory
        require_same_data(table, memory.windows, self._ref)
        if self._usual is None or self._usual[0] != self._ref:
            self._usual = self._ref, usual_distances(memory)
        return explain(predictor, memory, table, series_id, table.step.parse(at), usual=self._usual[1])

    def save(self, folder: Path | str) -> Path:
        """Copy run and memory into a new folder, which can be moved. Raises `UsageError` if it exists."""
        self._require_fitted()
        target = Path(folder)
        if target.exists():
            raise UsageError(f"{target} exists already", hint="choose another folder")
        shutil.copytree(self.folder / RUN, target / RUN, ignore=shutil.ignore_patterns("checkpoints", ".*"))
        with tempfile.TemporaryDirectory() as between:
            store = Store(self.folder / INDEXES)
            for ref in dict.fromkeys((self._trained_ref(), self._ref)):
                archive = export(store.resolve(ref), Path(between) / f"{ref}.zip")
                import_version(Store(target / INDEXES), archive)
        return target

    @classmethod
    def load(cls, folder: Path | str, *, device: str = "auto", options: ReadOptions | None = None) -> Self:
        """What `save` wrote, or the folder of a `Forecaster`.

        Raises `RunNotFoundError`, `NotFoundError`, `RunDamagedError`.
        """
        folder = Path(folder)
        run = open_run(folder / RUN)
        settings = run.record.config.to_dict()
        loaded = cls(folder=folder, device=device, options=options, split=run.record.data.split["name"], **settings)
        loaded._ref = Store(folder / INDEXES).locate(NAME).ref
        memory = loaded._open(loaded._ref)
        require_same_memory(run, memory.manifest, loaded._ref, newer=True)
        loaded._predictor = load_predictor(run, device=device)
        return loaded

    def _grow(self, table: SeriesTable) -> None:
        """Append to the memory; of all versions only the one that was trained against and the newest are kept."""
        store, before = Store(self.folder / INDEXES), self._ref
        self._ref = append(store, before, table, load_encoder=load_encoder).ref
        if before != self._trained_ref():
            store.remove(before)

    def _as_trained(self) -> Predictor:
        """The model before it learned what has become known since."""
        predictor = self._require_fitted()
        return predictor if predictor.state == 0 else load_predictor(self.run, device=self.device, state=0)

    def _trained_ref(self) -> str:
        """The version that was trained against, whatever number it has in this folder."""
        fingerprint = self.run.record.index.fingerprint
        for entry in Store(self.folder / INDEXES).list_indexes(NAME)[0].versions:
            if entry.fingerprint == fingerprint:
                return f"{NAME}@{entry.version}"
        raise NotFoundError(
            f"{self.folder / INDEXES} does not hold the version that was trained against", hint="fit again"
        )

    @staticmethod
    def _with(vintages: pd.DataFrame | None, options: ReadOptions) -> ReadOptions:
        return options if vintages is None else replace(options, vintages=vintages)

    def _read(self, frame: pd.DataFrame, vintages: pd.DataFrame | None = None) -> SeriesTable:
        table = read_frame(frame, self._with(vintages, self._options_like()))
        if self.options.step is None:
            require_no_longer_step(table, "this forecaster")
        return table

    def _options_like(self) -> ReadOptions:
        """With the step, the time zone and the covariates of the memory: rows alone do not always tell."""
        manifest, options = self.memory.manifest, self.options
        step = options.step or manifest.step.frequency
        like = replace(options, step=step, time_zone=options.time_zone or manifest.step.time_zone)
        return with_recorded(like, manifest.recorded_covariates)

    def _open(self, ref: str) -> LocalMemory:
        return open_version(Store(self.folder / INDEXES).resolve(ref), load_encoder=load_encoder)

    def _require_fitted(self) -> Predictor:
        if self._predictor is None:
            raise RunNotFoundError("this forecaster has not been fitted", hint="call fit first, or Forecaster.load")
        return self._predictor
