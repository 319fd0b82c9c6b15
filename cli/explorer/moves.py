"""From one state to the next: what each control of the page does. What a control is called is `page.py`'s affair."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from cli.explorer.state import MAX_GAP, MAX_K, Side, State, require_between
from cli.explorer.subject import Subject
from memory_index.covariate_map import CovariateColumn
from memory_index.errors import UsageError
from memory_index.scenarios import parse_changes
from memory_index.types import SCOPES

KNOWN = "known_"  # begins the names of the controls of known columns


def moved(subject: Subject, state: State, control: str, values: Mapping[str, Any]) -> State:
    """The state after someone has used a control. values: of all controls, by name.

    Raises `UsageError`, `NotFoundError` for what cannot be looked at.
    """
    return subject.checked(_wanted(subject, state, control, values))


def _wanted(subject: Subject, state: State, control: str, values: Mapping[str, Any]) -> State:
    """What was asked for, whether or not it can be looked at."""
    value: Any = values.get(control)
    if control == "series":
        return _other_series(subject, state, str(value))
    if control == "history":
        return subject.at_row(state, int(value["points"][0]["customdata"]))
    if control == "dragged":
        return subject.at_row(state, int(value))
    if control == "typed":
        return replace(state, at=str(value))
    if control in ("back", "back_far", "on", "on_far"):
        steps = subject.jump(state).steps if control.endswith("far") else 1
        return subject.at_row(state, subject.row(state) + (steps if control.startswith("on") else -steps))
    if control == "k":
        return replace(state, k=require_between("neighbours", _given(value, "neighbours"), least=1, most=MAX_K))
    if control == "gap":
        return replace(
            state, min_gap=require_between("steps apart", _given(value, "steps apart"), least=0, most=MAX_GAP)
        )
    if control == "compare":
        return _compared(subject, state, wanted=bool(value))
    if control.startswith(KNOWN):
        return _changed_known(subject, state, int(control.removeprefix(KNOWN)), value)
    name, _, number = control.partition("-")
    return _changed_side(subject, state, int(number) - 1, name, value)


def _given(value: Any, name: str) -> int:
    """A whole number from a field, which is None where it holds no number."""
    if value is None or int(value) != value:
        raise UsageError(f"{name} must be a whole number")
    return int(value)


def _other_series(subject: Subject, state: State, series_id: str) -> State:
    """Another series, at the same time or the nearest that it has."""
    times = subject.table[series_id].times
    at = subject.table.step.parse(state.at)
    after = int(np.searchsorted(times, at))
    near = min((row for row in (after - 1, after) if 0 <= row < len(times)), key=lambda row: abs(times[row] - at))
    return subject.at_row(replace(state, series_id=series_id), near)


def _compared(subject: Subject, state: State, *, wanted: bool) -> State:
    """With a second side: another version if there is one, else the same version's first scope alone."""
    first = state.sides[0]
    if not wanted:
        return replace(state, sides=(first,))
    other = next((Side(ref=ref) for ref in subject.versions if ref != first.ref), None)
    return replace(state, sides=(first, other or replace(first, scopes=subject.versions[first.ref].scopes[:1])))


def _changed_known(subject: Subject, state: State, number: int, value: Any) -> State:
    """One known column with another value over the horizon: shifted by a number, or set to a word; None leaves it."""
    column = subject.known[number]
    others = tuple(change for change in state.known if parse_changes([change])[0].name != column.name)
    if value in (None, 0, ""):
        return replace(state, known=others)
    change = f"{column.name}+={value:g}" if column.kind == "number" else f"{column.name}={value}"
    return replace(state, known=(*others, change))


def known_value(state: State, column: CovariateColumn) -> float | str | None:
    """What the control of a known column shows: its shift, or the word that it is set to; None for no change."""
    for change in parse_changes(state.known):
        if change.name == column.name and change.how == ("+=" if column.kind == "number" else "="):
            return float(change.value) if column.kind == "number" else change.value
    return 0.0 if column.kind == "number" else None


def _changed_side(subject: Subject, state: State, number: int, name: str, value: Any) -> State:
    """One side with another version, or other key spaces. Everything or nothing ticked is all that can be asked."""
    side = state.sides[number]
    version = subject.versions[side.ref]
    if name == "ref":
        side = Side(ref=str(value))
    elif name == "scopes":
        ticked = tuple(scope for scope in SCOPES if scope in value)
        side = replace(side, scopes=None if len(ticked) in (0, len(version.scopes)) else ticked)
    else:
        steps = tuple(sorted(int(view) for view in value))
        side = replace(side, views=None if len(steps) in (0, len(version.views)) else steps)
    sides = [side if i == number else each for i, each in enumerate(state.sides)]
    return replace(state, sides=tuple(sides))
