"""What there is to look at (a table, versions, perhaps a run), and asking it for one side of a state.

Questions go to `inspect_window` and `explain` only, which ask under `causal`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from cli.explorer.state import Side, State
from cli.opening import encoder_loader, open_run_with_table, open_with_table
from cli.options import Indexes
from cli.output import note
from memory_index.closeness import UsualDistances, usual_distances
from memory_index.covariate_map import CovariateColumn
from memory_index.errors import NotFoundError, UsageError
from memory_index.inspection import Inspection, inspect_window
from memory_index.memory import Memory
from memory_index.queries import origin_at, require_same_data
from memory_index.references import is_address
from memory_index.scenarios import parse_changes, with_changes
from memory_index.tables.calendar import CALENDAR
from memory_index.tables.columns import ReadOptions
from memory_index.tables.series import SeriesTable
from memory_index.types import Scope
from memory_index.windows import WindowSpec

if TYPE_CHECKING:
    from forecaster.explain import Explanation
    from forecaster.predictor import Predictor

DAY = np.timedelta64(1, "D")
START_K = 3  # neighbours per key space: few enough to be told apart


class Jump(NamedTuple):
    """The longer of the two moves of the origin, in steps, and what it is called."""

    steps: int
    name: str


@dataclass(frozen=True, kw_only=True, slots=True)
class OpenedVersion:
    """An opened version. usual: its distances, asked once. has_run: whether the run can use it."""

    ref: str
    memory: Memory
    usual: UsualDistances
    has_run: bool

    @property
    def scopes(self) -> tuple[Scope, ...]:
        """The scopes that it has keys for."""
        return self.memory.manifest.scopes

    @property
    def views(self) -> tuple[int, ...]:
        """The views that it has keys for."""
        return tuple(sorted({record.space.view for record in self.memory.manifest.spaces}))


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """What one side shows. explained: None without a run, or where the run cannot use the version. plain: float32 [H],
    what the run, or else the memory, forecasts without the changes of the state; None where there are none.
    """

    side: Side
    version: OpenedVersion
    found: Inspection
    explained: Explanation | None
    plain: np.ndarray | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Subject:
    """A table, versions by full reference in the order they were named, and perhaps a run with its model."""

    table: SeriesTable
    versions: Mapping[str, OpenedVersion]
    run: str | None
    predictor: Predictor | None

    @property
    def known(self) -> tuple[CovariateColumn, ...]:
        """The known columns of the first version that can be changed: not those that follow from the time."""
        columns = next(iter(self.versions.values())).memory.manifest.covariates
        return tuple(column for column in columns if column.role == "known" and column.source != CALENDAR)

    def spec(self, state: State) -> WindowSpec:
        """The windows of the first side."""
        return self.versions[state.sides[0].ref].memory.windows.spec

    def jump(self, state: State) -> Jump:
        """A day, or as near to it as whole steps come, or a horizon where a step is that long itself."""
        step, steps = self.table.step, self.spec(state).horizon
        first = self.table.series[0].times[:1]
        length = step.add(first, 1)[0] - first[0]
        if step.is_fixed and length < DAY:
            steps = int(DAY / length)
            if step.add(first, steps)[0] - first[0] == DAY:
                return Jump(steps, "1 day")
        return Jump(steps, f"{steps} step{'' if steps == 1 else 's'}")

    def row(self, state: State) -> int:
        """The row of the origin in its series. Raises `NotFoundError`, `UsageError`."""
        return origin_at(self.table, state.series_id, self.table.step.parse(state.at), self.spec(state))

    def at_row(self, state: State, row: int) -> State:
        """The same state with its origin at a row, or the nearest that has enough history."""
        times = self.table[state.series_id].times
        row = int(np.clip(row, min(self.spec(state).lookback, len(times)) - 1, len(times) - 1))
        return replace(state, at=self.table.step.isoformat(times[row]))

    def checked(self, state: State) -> State:
        """The same state, its time as the table writes it. Raises `NotFoundError`, `UsageError`."""
        for side in state.sides:
            if side.ref not in self.versions:
                raise NotFoundError(f"'{side.ref}' is not open", hint=f"open are {', '.join(self.versions)}")
        row = self.row(state)
        return replace(state, at=self.table.step.isoformat(self.table[state.series_id].times[row]))

    def answer(self, state: State, side: Side) -> Answer:
        """Ask for one side. Raises what `inspect_window` and `explain` raise."""
        version = self.versions[side.ref]
        changes, at = parse_changes(state.known), self.table.step.parse(state.at)
        horizon = version.memory.windows.spec.horizon
        table = with_changes(self.table, changes, version.memory.manifest.covariates, horizon, at=at)
        found = inspect_window(
            version.memory,
            table,
            state.series_id,
            at,
            k=state.k,
            scopes=side.scopes,
            views=side.views,
            min_gap=state.min_gap,
            usual=version.usual,
        )
        explained = self._explained(version, table, state.series_id, at)
        plain = None
        if changes:
            unchanged = self._explained(version, self.table, state.series_id, at) or inspect_window(
                version.memory, self.table, state.series_id, at, k=1, scopes=side.scopes, views=side.views
            )
            plain = unchanged.forecast
        return Answer(side=side, version=version, found=found, explained=explained, plain=plain)

    def _explained(
        self, version: OpenedVersion, table: SeriesTable, series_id: str, at: np.datetime64
    ) -> Explanation | None:
        if self.predictor is None or not version.has_run:
            return None
        from forecaster.explain import explain

        return explain(self.predictor, version.memory, table, series_id, at, usual=version.usual)


def open_subject(
    file: Path,
    refs: Sequence[str],
    run: Path | None,
    indexes: Indexes,
    options: ReadOptions,
    *,
    device: str,
    llm: str | None,
) -> Subject:
    """Open everything. The first version is one that the run can use: its own, if none is named.

    The table is read once, like the first version's own data, and asked of all of them: each is checked against it.

    Raises `UsageError` without any version, `IncompatibleError` for versions of different data, steps or time zones,
    and what opening raises.
    """
    if not refs and run is None:
        raise UsageError("neither --run nor --index is given", hint="--index REF, or --run RUN with its own version")
    opened, predictor = {}, None
    if run is None:
        memory, table, ref = open_with_table(refs[0], file, _indexes_of(refs[0], refs, indexes), options)
    else:
        first = next(iter(refs), None)
        with_run = open_run_with_table(run, first, file, _indexes_of(first, refs, indexes), options, device, llm=llm)
        memory, table, ref, predictor = with_run.memory, with_run.table, with_run.ref, with_run.predictor
        _use_one_torch_thread()
    opened[ref] = _version(ref, memory, has_run=run is not None)
    for each in refs[1:]:
        found = _indexes_of(each, refs, indexes).find(each)
        if found.ref in opened:
            continue
        memory = found.open(load_encoder=encoder_loader(found.manifest))
        require_same_data(table, memory.windows, found.ref)
        has_run = run is not None and _usable(run, memory, found.ref)
        opened[found.ref] = _version(found.ref, memory, has_run=has_run)
    return Subject(table=table, versions=opened, run=None if run is None else run.resolve().name, predictor=predictor)


def _indexes_of(ref: str | None, refs: Sequence[str], indexes: Indexes) -> Indexes:
    """Where one of several versions is found: a token is for those at an address, and not for one beside them."""
    is_beside = ref is not None and not is_address(ref) and any(is_address(each) for each in refs)
    return Indexes(folder=indexes.folder) if is_beside else indexes


def _use_one_torch_thread() -> None:
    """For the rest of this process, which does nothing but explore.

    A window is too small to be shared: on cores that are busy, with the browser for one, several threads mostly wait
    for one another. The threads of a search in the memory stay as they are.
    """
    import torch

    torch.set_num_threads(1)


def _version(ref: str, memory: Memory, *, has_run: bool) -> OpenedVersion:
    return OpenedVersion(ref=ref, memory=memory, usual=usual_distances(memory), has_run=has_run)


def _usable(run: Path, memory: Memory, ref: str) -> bool:
    """Whether a run can use a version; says so if not."""
    from forecaster.errors import RunIncompatibleError
    from forecaster.predictor import require_same_memory
    from forecaster.runs.run import open_run

    try:
        require_same_memory(open_run(run), memory.manifest, ref, newer=True)
    except RunIncompatibleError as error:
        note(f"{ref} is shown without the run: {error}")
        return False
    return True


def start_state(subject: Subject, series: str | None, at: str | None) -> State:
    """What the page shows first: by default the first series, at the last origin whose future is known.

    Raises `NotFoundError` (series, time), `UsageError` (not a time).
    """
    first = next(iter(subject.versions.values()))
    spec = first.memory.windows.spec
    series_id = subject.table.series_ids[0] if series is None else series
    sides = [Side(ref=ref) for ref in subject.versions][:2]
    state = State(
        series_id=series_id,
        at="" if at is None else at,
        k=START_K,
        min_gap=spec.horizon,
        sides=tuple(sides),
    )
    if at is None:
        state = subject.at_row(state, len(subject.table[series_id]) - 1 - spec.horizon)
    return subject.checked(state)
