"""What all commands that ask a memory share: opening it, or a run, together with the data."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from cli.output import note, progress

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    import numpy as np

    from cli.options import Indexes, KnownAhead
    from forecaster.predictor import Predictor
    from forecaster.runs.run import Run
    from memory_index.bounds import Bounds
    from memory_index.encoder import KeyEncoder
    from memory_index.memory import Memory
    from memory_index.references import FoundVersion
    from memory_index.skipped import Skipped
    from memory_index.tables.columns import ReadOptions
    from memory_index.tables.series import SeriesTable
    from memory_index.versions.manifest import Manifest
    from memory_index.versions.opening import LoadEncoder
    from memory_index.windows import Step

UPDATING = "to append to it"  # for messages
FEW_APART = 10  # windows that do not overlap: fewer hardly tell how far apart futures lie


def open_with_table(ref: str, file: Path, indexes: Indexes, options: ReadOptions) -> tuple[Memory, SeriesTable, str]:
    """The memory, the table, and the full reference (`NAME@3`, or one behind an address), checked to belong together.

    The table is read like the version's own data (`read_like`).
    """
    from memory_index.references import use_found

    return use_found(lambda: indexes.find(ref), lambda found: _open_found(found, file, options))


def _open_found(found: FoundVersion, file: Path, options: ReadOptions) -> tuple[Memory, SeriesTable, str]:
    from memory_index.queries import require_same_data

    table = read_like(file, found.manifest, found.ref, options)
    for done in table.notes:
        note(done)
    memory = found.open(load_encoder=encoder_loader(found.manifest))
    require_same_data(table, memory.windows, found.ref)
    return memory, table, found.ref


@dataclass(frozen=True, kw_only=True, slots=True)
class OpenedRun:
    """A trained model with the memory that it asks, the full reference of that, and a table."""

    predictor: Predictor
    memory: Memory
    ref: str
    table: SeriesTable


def open_run_with_table(
    run: Path,
    index: str | None,
    file: Path,
    indexes: Indexes,
    options: ReadOptions,
    device: str,
    *,
    llm: str | None = None,
    update: bool = False,
    state: int | None = None,
    grow: str | None = None,
) -> OpenedRun:
    """A run, and the version it was trained against or a newer one, checked to belong together with the table.

    llm: where the run's language model lies now, None for where it was. update: append the table first, to the newest
    version that the run can use, unless one is named. That comes last, when nothing else stands in the way. state: of
    the run, None for the one that it uses. grow: with `update`, the run goes on too; a half-life as typed, or `same`.
    """
    from forecaster.predictor import load_predictor, require_same_memory
    from forecaster.runs.run import open_run
    from forecaster.runs.states import read_state
    from memory_index.errors import NotFoundError, ServiceError, UsageError
    from memory_index.references import OLD_SCHEMES, is_address, require_local

    opened = open_run(run)
    ref, newer = index or opened.record.index.ref, update or index is not None
    if update:
        require_local(ref, UPDATING)
    predictor = load_predictor(opened, device=device, llm=llm, state=state)
    if grow is not None:
        read_state(opened.path)  # refuses a run that cannot go on, before anything is appended
    if update:
        ref = index or newest_ref(opened, indexes)
        require_same_memory(opened, indexes.find(ref).manifest, ref, newer=newer)
        ref = updated_ref(ref, file, indexes, options)
    try:
        found = indexes.find(ref)
    except (NotFoundError, ServiceError, UsageError) as error:
        if index is None and is_address(ref) and (ref.startswith(OLD_SCHEMES) or not isinstance(error, UsageError)):
            between = "" if not error.hint else " " if error.hint.endswith("?") else "; "
            error.hint += f"{between}--index REF names the run's version where it lies now, or a newer one"
        raise
    memory, table, ref = _open_found(found, file, options)
    require_same_memory(opened, memory.manifest, ref, newer=newer)
    tell_series(table, memory.manifest, ref, opened.record.data.series_ids, to="the run")
    if grow is not None:
        predictor = _grown(opened, predictor, memory, ref, grow)
    if predictor.intervals.num == 0:
        note("intervals of this run are not calibrated: too few windows were held out when it was trained")
    if predictor.state:
        seen = memory.windows.step.isoformat(predictor.seen_until)
        note(f"{run}: state {predictor.state}, which has learned up to {seen}")
    return OpenedRun(predictor=predictor, memory=memory, ref=ref, table=table)


def _grown(run: Run, predictor: Predictor, memory: Memory, ref: str, half_life: str) -> Predictor:
    """The run after it has learned what a memory holds; says what came of it."""
    from forecaster.growth.updates import HalfLife, update_run
    from forecaster.predictor import load_predictor
    from memory_index.origins import num_steps

    steps: HalfLife = "same" if half_life == "same" else None
    if half_life not in ("same", "none"):
        steps = num_steps(half_life, memory.windows.step, flag="--half-life")
    with progress("updating the run") as report:
        state = update_run(run, predictor.model, memory, ref, half_life=steps, report=report)
    if state is None:
        note(f"{run.path} stays as it is: nothing to learn has become known")
        return predictor
    took = f"its linear map has taken in {state.num_windows:,} windows since training, its gate is {state.kept}"
    note(f"{run.path}: new state {state.number}; {took}")
    return load_predictor(
        run, device=str(next(predictor.model.parameters()).device.type), llm=predictor.config.model.llm
    )


def newest_ref(run: Run, indexes: Indexes) -> str:
    """The newest version, of the index that a run was trained against, that the run can use."""
    from forecaster.errors import RunIncompatibleError
    from forecaster.predictor import require_same_memory
    from memory_index.versions.store import Store

    store, trained = Store(indexes.folder), run.record.index.ref
    name = trained.partition("@")[0]
    for number in sorted(store.numbers(name), reverse=True):
        version = store.resolve(f"{name}@{number}")
        try:
            require_same_memory(run, version.manifest, version.ref, newer=True)
        except RunIncompatibleError:
            continue
        return version.ref
    return trained  # whoever opens it says what is wrong with it


def updated_ref(ref: str, file: Path, indexes: Indexes, options: ReadOptions) -> str:
    """Append a file to an index, unless it has nothing new; returns the reference of the version to use.

    A file that is too short to forecast from is refused before it is appended. Raises `UsageError` for an address.
    """
    from memory_index.errors import NothingNewError
    from memory_index.queries import latest_origins
    from memory_index.references import require_local
    from memory_index.versions.append import append
    from memory_index.versions.store import Store

    require_local(ref, UPDATING)
    store, manifest = Store(indexes.folder), indexes.find(ref).manifest
    table = read_like(file, manifest, ref, options)
    latest_origins(table, manifest.window, views=tuple(dict.fromkeys(space.view for space in manifest.key_spaces)))
    try:
        version = append(store, ref, table, load_encoder=encoder_loader(manifest))
    except NothingNewError as error:
        note(f"{ref} stays as it is: {error}")
        return ref
    note(f"appended {file} to {ref}: {version.ref}, {version.manifest.segments[-1].num_rows:,} new windows")
    for said in version.manifest.built.notes:
        note(f"note: {said}")
    return version.ref


def tell_series(table: SeriesTable, manifest: Manifest, ref: str, known: Collection[str], *, to: str) -> None:
    """Say which series are new `to` a run or version, and which a table lacks that whole moments are made of."""
    there, trained = set(table.series_ids), set(known)
    if new := [name for name in table.series_ids if name not in trained]:
        note(f"{_some(new)}: new to {to}, compared with windows of all series")
    lacking = [name for name in manifest.series_ids if name not in there]
    if lacking and manifest.joint == "built":
        note(
            f"{table.source} has no {_some(lacking)}, so moments of all series of {ref} are not compared (scope joint)"
        )


def tell_ends(table: SeriesTable, memory: Memory) -> None:
    """Say which series end before the others, and are forecast from there."""
    from memory_index.queries import latest_origins

    origins, _ = latest_origins(table, memory.windows.spec, views=memory.windows.views)
    asked = [(series, rows) for series, rows in zip(table.series, origins, strict=True) if len(rows)]
    ends = {series.series_id: series.times[rows[0]] for series, rows in asked}
    last = max(ends.values())
    if early := [name for name, end in ends.items() if end < last]:
        whole = memory.manifest.joint == "built" and not {*early}.isdisjoint(memory.manifest.series_ids)
        others = "; the others without moments of all series (scope joint), which end there" if whole else ""
        first = table.step.isoformat(min(ends.values()))
        where = f"forecast from where it ends (the earliest at {first}), before the last step of the table"
        note(f"{_some(early)}: {where}{others}")


def tell_few(memory: Memory, ref: str) -> None:
    """Say that quantiles of the memory alone rest on few windows, where they do."""
    num, horizon = memory.manifest.num_rows, memory.manifest.window.horizon
    if num < FEW_APART * horizon:
        windows = "1 window" if num == 1 else f"{num} windows"
        apart = max(1, num // horizon)
        note(f"{ref} stores {windows}, of which {apart} do not overlap: its quantiles may be far too narrow")


def with_known_ahead(table: SeriesTable, memory: Memory, options: ReadOptions, ahead: KnownAhead) -> SeriesTable:
    """The table with the known covariates of a table of the future, and a scenario over the horizon; said aloud."""
    from memory_index.tables.known_ahead import read_known_ahead

    if ahead.future is not None:
        notes = len(table.notes)
        like, columns = options_like(memory.manifest, options), memory.manifest.covariates
        plain = [column.name for column in columns if not column.vintages]
        horizon = memory.windows.spec.horizon
        table = read_known_ahead(ahead.future, table, like, horizon=horizon, plain=plain)
        for done in table.notes[notes:]:
            note(done)
    return with_scenario(table, memory, ahead.set_known)


def with_scenario(
    table: SeriesTable, memory: Memory, set_known: Sequence[str] | None, *, at: np.datetime64 | None = None
) -> SeriesTable:
    """The table with the changes of `--set-known` over the horizon after each series' end, or `at`, said aloud."""
    from memory_index.scenarios import parse_changes, with_changes

    changes = parse_changes(set_known)
    changed = with_changes(table, changes, memory.manifest.covariates, memory.windows.spec.horizon, at=at)
    if changes:
        note(f"scenario: {', '.join(map(str, changes))} over the horizon")
    return changed


def tell_bounds(table: SeriesTable, memory: Memory, bounds: Bounds | None = None) -> None:
    """Say which series are counts, and so kept at 0 or above without being asked."""
    from memory_index.bounds import BoundsOf

    if said := BoundsOf(memory, bounds).said(table):
        note(said)


def tell_schedule(memory: Memory, origin: np.datetime64) -> None:
    """Say that a version was built for other origins, if it was."""
    from memory_index.forecast_notes import off_schedule, off_schedule_note

    if len(off_schedule(memory.manifest, origin.reshape(1))):
        note(off_schedule_note(memory.manifest, origin))


def tell_skipped(skipped: Sequence[Skipped], done: str, *, source: str, strict: bool) -> None:
    """Say which series were left out and why. strict: raise `DataError` for them instead."""
    from memory_index.skipped import require_none_skipped, skipped_sentence

    if strict:
        require_none_skipped(skipped, source, done)
    if skipped:
        note(f"note: {skipped_sentence(skipped, done)}")


def tell_joint(memory: Memory, scopes: Collection[str], table: SeriesTable) -> None:
    """Say that moments of all series were not compared, because one of them lags or misses too much. scopes: asked."""
    if (
        memory.manifest.joint == "built"
        and "joint" not in scopes
        and set(memory.manifest.series_ids) <= set(table.series_ids)
    ):
        note("not every series has a usable window at that time: whole moments are not compared (scope joint)")


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def encoder_loader(manifest: Manifest) -> LoadEncoder | None:
    """What reads a version's encoder if it is a learned one: torch is loaded only where it is needed."""
    from memory_index.encoder import BUILT_IN

    if manifest.encoder["kind"] == BUILT_IN:
        return None

    def load(folder: Path, manifest: Manifest) -> KeyEncoder:
        from forecaster.learned_keys.pattern_encoder import load_encoder

        return load_encoder(folder, manifest)

    return load


def read_like(file: Path, manifest: Manifest, ref: str, options: ReadOptions) -> SeriesTable:
    """A table, read like a version's own data (`options_like`).

    Raises `IncompatibleError` for rows that lie whole on another step (they would be told as so many gaps), and what
    `read_table` raises.
    """
    from memory_index.errors import DataError
    from memory_index.queries import other_step, require_no_longer_step
    from memory_index.tables.reading import read_table

    like = options_like(manifest, options)
    try:
        table = read_table(file, like)
    except DataError:
        own = None if options.step else _own_step(file, like)
        if own is None:
            raise
        raise other_step(file.name, own, ref, manifest.step) from None
    if options.step is None:
        require_no_longer_step(table, ref)
    return table


def _own_step(file: Path, options: ReadOptions) -> Step | None:
    """The step of a file that has gaps, or rows beside the grid, on the step that is asked for, but not on its own."""
    from memory_index.tables.checking import check_table
    from memory_index.windows import Step

    asked, own = check_table(file, options), check_table(file, replace(options, step=None))
    misfit, own_misfit = ({each.kind for each in report.problems} & {"gap", "off-step"} for report in (asked, own))
    if own.step is None or own.step == options.step or own_misfit or not misfit:
        return None
    return Step(frequency=own.step, time_zone=own.time_zone)


def options_like(manifest: Manifest, options: ReadOptions) -> ReadOptions:
    """Reading options with the step and the time zone of a version, unless others are asked for: rows do not tell; and
    with the covariates that it was built with.
    """
    from memory_index.tables.recorded_roles import with_recorded

    step = manifest.step
    if options.time_zone is None and step.time_zone is not None:
        note(f"times without a UTC offset are read in {step.time_zone}, the time zone of the version")
    like = replace(options, step=options.step or step.frequency, time_zone=options.time_zone or step.time_zone)
    return with_recorded(like, manifest.recorded_covariates)
