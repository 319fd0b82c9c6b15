"""What the page looks at, and its address: `?series=OT&at=2018-02-01T00:00:00&k=5&gap=96&index=etth1@1` and back.

The address is all the state there is: the server keeps none, so that a link restores a page. Whether there are such a
series, time and version is asked in `subject.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import parse_qsl, urlencode

from memory_index.errors import UsageError
from memory_index.types import SCOPES, Scope

MAX_K = 50  # neighbours per key space; a picture of more tells nobody anything
MAX_GAP = 1_000_000  # steps between neighbours; of minutes almost two years
KNOWN = "known"  # may stand in an address more than once
SECOND = "2"  # ends the names of what belongs to the second side


@dataclass(frozen=True, kw_only=True, slots=True)
class Side:
    """One version by its full reference, and which of its key spaces are asked; None: all that can be."""

    ref: str
    scopes: tuple[Scope, ...] | None = None
    views: tuple[int, ...] | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class State:
    """One series at one origin (ISO 8601), k neighbours per key space, at least min_gap steps apart, by each side.

    sides: one, or two that are compared. known: changes of known covariates over the horizon, as `--set-known` takes
    them.
    """

    series_id: str
    at: str
    k: int
    min_gap: int
    sides: tuple[Side, ...]
    known: tuple[str, ...] = ()


def to_address(state: State) -> str:
    """The query string of a state, with its question mark."""
    pairs = [("series", state.series_id), ("at", state.at), ("k", str(state.k)), ("gap", str(state.min_gap))]
    pairs += [(KNOWN, change) for change in state.known]
    for end, side in zip(("", SECOND), state.sides, strict=False):
        pairs.append((f"index{end}", side.ref))
        if side.scopes is not None:
            pairs.append((f"scope{end}", ",".join(side.scopes)))
        if side.views is not None:
            pairs.append((f"view{end}", ",".join(str(view) for view in side.views)))
    return "?" + urlencode(pairs, safe=":,@")


def from_address(text: str, start: State) -> State:
    """The state of a query string; what it does not say is as in `start`. Raises `UsageError`."""
    given: dict[str, str] = {}
    known: list[str] = []
    for name, value in parse_qsl(text.removeprefix("?"), keep_blank_values=True):
        if name == KNOWN:
            known.append(value)
            continue
        if name in given:
            raise UsageError(f"the address has '{name}' twice", hint="leave one of them out")
        given[name] = value
    first = _side("", given, start.sides[0].ref)
    second = f"index{SECOND}" in given or f"scope{SECOND}" in given or f"view{SECOND}" in given
    state = State(
        series_id=given.pop("series", start.series_id),
        at=given.pop("at", start.at),
        k=_number(given, "k", start.k, least=1, most=MAX_K),
        min_gap=_number(given, "gap", start.min_gap, least=0, most=MAX_GAP),
        sides=(first, _side(SECOND, given, first.ref)) if second else (first,),
        known=tuple(known),
    )
    if given:
        raise UsageError(f"the address has '{next(iter(given))}', which means nothing here")
    return state


def _side(end: str, given: dict[str, str], ref: str) -> Side:
    """One side out of what the address says, which is taken from `given`."""
    scopes, views = given.pop(f"scope{end}", None), given.pop(f"view{end}", None)
    for scope in [] if scopes is None else scopes.split(","):
        if scope not in SCOPES:
            raise UsageError(f"'{scope}' in the address is no scope", hint=f"one of {', '.join(SCOPES)}")
    return Side(
        ref=given.pop(f"index{end}", ref),
        scopes=None if scopes is None else tuple(scope for scope in SCOPES if scope in scopes.split(",")),
        views=None if views is None else tuple(sorted({_whole("view", view) for view in views.split(",")})),
    )


def _number(given: dict[str, str], name: str, default: int, *, least: int, most: int) -> int:
    number = default if name not in given else _whole(name, given.pop(name))
    return require_between(name, number, least=least, most=most)


def require_between(name: str, number: int, *, least: int, most: int) -> int:
    """The number itself. Raises `UsageError` if it is out of range."""
    if not least <= number <= most:
        raise UsageError(f"{name} is {number:,}, but must be from {least} to {most:,}")
    return number


def _whole(name: str, text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < 10):
        raise UsageError(f"{name} is '{text}' in the address, which is not a whole number of steps or neighbours")
    return int(text)
