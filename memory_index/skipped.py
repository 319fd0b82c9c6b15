"""Series that a command could do nothing for, each with its reason: one of them never stops the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from memory_index.errors import DataError

SHOWN = 5  # series that a sentence names


@dataclass(frozen=True, kw_only=True, slots=True)
class Skipped:
    """One series that was left out. reason: half a sentence about it, such as `has 12 steps, but ...`."""

    series_id: str
    reason: str


def require_none_skipped(skipped: Sequence[Skipped], source: str, done: str) -> None:
    """Raise `DataError` if a series was left out, for whoever wants all or nothing (`--strict`)."""
    if skipped:
        raise DataError(
            f"{source}: {skipped_sentence(skipped, done)}", hint="leave them out with --ignore, or --strict itself"
        )


def skipped_sentence(skipped: Sequence[Skipped], done: str) -> str:
    """What a person reads of skipped series: how many, the first of each reason; empty if there are none.

    done: what was not done for them, such as `not forecast`.
    """
    if not skipped:
        return ""
    first = f"'{skipped[0].series_id}' {skipped[0].reason}"
    others = [f"'{each.series_id}'" for each in skipped[1:SHOWN]]
    more = f" and {len(skipped) - SHOWN} more" if len(skipped) > SHOWN else ""
    counted = "1 series" if len(skipped) == 1 else f"{len(skipped)} series"
    return f"{counted} {done}: {first}" + (f"; likewise {', '.join(others)}{more}" if others else "")
