"""What to know of forecasts beside their numbers: steps at which a series is closed, and values below 0."""

from __future__ import annotations

import numpy as np
import pandas as pd

from memory_index.bounds import BoundsOf
from memory_index.queries import QueryBlock
from memory_index.versions.manifest import Manifest

SHOWN = 3  # steps that a note names


def off_schedule(manifest: Manifest, origins: np.ndarray) -> np.ndarray:
    """Those of some origins, datetime64[ns], that a version was not built for; none of one that has every origin."""
    if manifest.schedule is None or not len(origins):
        return origins[:0]
    return origins[~np.isin(origins, manifest.schedule.moments(manifest.step, origins.min(), origins.max()))]


def off_schedule_note(manifest: Manifest, origin: np.datetime64) -> str:
    """What to know of an origin beside the schedule."""
    return (
        f"the origin {manifest.step.isoformat(origin)} is none that the version was built for ({manifest.schedule}): "
        "linear maps and neighbours do not fit it; ask for such an origin, or build without --at"
    )


class ForecastNotes:
    """Gathers notes while blocks are forecast. within: the bounds that the forecasts are kept in."""

    def __init__(self, within: BoundsOf) -> None:
        self.within = within
        self.zero: dict[str, np.ndarray] = {}  # by series: steps that are held at 0
        self.unobserved: dict[str, np.ndarray] = {}  # and steps of the season that were never observed
        self.not_below: set[str] = set()  # series whose context has nothing below 0
        self.off_schedule: set[np.datetime64] = set()  # origins that the version has no windows with

    def add(self, block: QueryBlock) -> None:
        """What the contexts of a block tell."""
        queries, step = block.queries, self.within.memory.windows.step
        self.off_schedule.update(off_schedule(self.within.memory.manifest, queries.origin))
        above = ~(queries.context < 0).any(axis=2) & block.wanted
        self.not_below.update(map(str, queries.series_id[above.any(axis=0)]))
        if (closed := self.within.closed(queries)) is None:
            return
        for found, steps in ((self.zero, closed.zero), (self.unobserved, closed.unobserved)):
            for b, n in np.argwhere(steps.any(axis=2) & block.wanted):
                times = [step.add(queries.origin[b : b + 1], int(h) + 1)[0] for h in np.flatnonzero(steps[b, n])]
                found[str(queries.series_id[n])] = np.array(times)

    def said(self, forecast: pd.DataFrame) -> list[str]:
        """The notes, a sentence each. forecast: `unique_id`, `yhat` and quantiles."""
        notes = []
        if self.off_schedule:
            notes.append(off_schedule_note(self.within.memory.manifest, min(self.off_schedule)))
        if self.zero:
            notes.append(
                f"{self._named(self.zero)} always 0 at a step of the season: forecasts there are 0 "
                f"({self._times(self.zero)}); --lower=-inf lets them go"
            )
        if self.unobserved:
            notes.append(
                f"{self._named(self.unobserved)} never observed at a step of the season, so what is forecast there is "
                f"a guess from the steps beside it ({self._times(self.unobserved)}); if no value means 0, write 0"
            )
        if below := self._below_zero(forecast):
            count = f"'{below[0]}'" + (f" and {len(below) - 1} more" if len(below) > 1 else "")
            were = "were" if len(below) > 1 else "was"
            notes.append(
                f"{count} {were} never below 0, but forecasts or quantiles are: if nothing below 0 can be, --lower 0"
            )
        return notes

    def _below_zero(self, forecast: pd.DataFrame) -> list[str]:
        """Series that have something below 0 here, and nothing in the training part and the context."""
        if self.within.bounds.lower is not None:
            return []
        below = (forecast.drop(columns=["unique_id", "ds"]).to_numpy() < 0).any(axis=1)
        names = [name for name in map(str, pd.unique(forecast["unique_id"].array[below])) if name in self.not_below]
        windows = self.within.memory.windows
        until = np.datetime64(self.within.memory.manifest.fitted_until, "ns")
        found = []
        for name, number in zip(names, windows.numbers_of(np.array(names)), strict=True):
            part = slice(windows.offset[number], windows.offset[number + 1]) if number >= 0 else slice(0)
            values, times = windows.values[part], windows.times[part]
            if not (values[times <= until] < 0).any():
                found.append(name)
        return found

    @staticmethod
    def _named(found: dict[str, np.ndarray]) -> str:
        first = next(iter(found))
        return f"'{first}' and {len(found) - 1} more are" if len(found) > 1 else f"'{first}' is"

    def _times(self, found: dict[str, np.ndarray]) -> str:
        times = next(iter(found.values()))
        shown = ", ".join(self.within.memory.windows.step.isoformat(each) for each in times[:SHOWN])
        return shown + (f" and {len(times) - SHOWN} more" if len(times) > SHOWN else "")
