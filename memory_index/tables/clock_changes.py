"""Which zones show an hour twice, or skip it: what repeated and missing hours of local times may come from."""

from __future__ import annotations

from datetime import datetime
from functools import cache
from zoneinfo import ZoneInfo, available_timezones

import numpy as np

USUAL = (  # asked first: one of each calendar of clock changes
    "Europe/Berlin",
    "Europe/London",
    "Europe/Athens",
    "America/New_York",
    "Australia/Sydney",
    "America/Santiago",
)
NIGHT = 4  # clocks are changed before this hour of the day


@cache
def zone_of_change(hour: np.datetime64) -> str | None:
    """A zone whose clocks show this hour twice or skip it, None where none does. hour: datetime64[h], local time."""
    shown = hour.astype(datetime)
    if shown.hour >= NIGHT:
        return None
    return next((name for name in (*USUAL, *_others()) if _changes(name, shown)), None)


@cache
def _others() -> tuple[str, ...]:
    return tuple(name for name in sorted(available_timezones()) if "/" in name and name not in USUAL)


def _changes(zone: str, hour: datetime) -> bool:
    """Whether the offset of this local time depends on which of two clocks is meant, that before or after a change."""
    shown = hour.replace(tzinfo=ZoneInfo(zone))
    return shown.utcoffset() != shown.replace(fold=1).utcoffset()
