"""How a version is used: what it covers, what is retrieved too often or never, and the document of it.

How it is printed is `usage_report.py`; what is measured, and how, is `coverage.py`, `closeness.py` and `usage.py` of
`memory_index`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cli.opening import encoder_loader
from cli.output import progress
from cli.wording import minute

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

    from memory_index.closeness import UsualDistances
    from memory_index.coverage import Coverage
    from memory_index.types import KeySpace
    from memory_index.usage import Usage
    from memory_index.versions.version import Version
    from memory_index.windows import StoredWindows

SHOWN_HUBS = 10  # in the terminal and in a page; the document has all
SHOWN_GAPS = 1000  # in the document
HUB_COLUMNS = ["series", "origins from", "to", "retrieved", "expected", "times", "by windows"]
LEVELS = (0.05, 0.25, 0.5, 0.75, 0.95)  # of the usual distances that are told


@dataclass(frozen=True, kw_only=True, slots=True)
class Findings:
    """Everything that is told of one version."""

    ref: str
    windows: StoredWindows
    coverage: Coverage
    usual: UsualDistances
    usage: Usage

    def distances(self, space: KeySpace) -> np.ndarray:
        """The usual distances of a key space at the end of the memory, ascending; empty if it has none."""
        last = self.usual.known_at[space][-1:]
        return self.usual.until(space, last[0]) if len(last) else self.usual.distance[space]

    def stretch(self, number: int) -> str:
        """A stretch for a reader: its series, and its first and last origin."""
        first, last = (minutes(self, times[number : number + 1])[0] for times in self.origins)
        return f"{self.series(number)} {first} to {last}"

    def series(self, number: int) -> str:
        """The series of a stretch."""
        return self.windows.series_ids[self.usage.stretches.series[number]]

    @property
    def origins(self) -> tuple[np.ndarray, np.ndarray]:
        """First and last origin of every stretch."""
        return self.usage.stretches.first, self.usage.stretches.last


def find_usage(version: Version) -> Findings:
    """Open a version and ask a sample of its own windows."""
    from memory_index.closeness import usual_distances
    from memory_index.coverage import coverage
    from memory_index.usage import usage
    from memory_index.versions.opening import open_version

    with progress(f"{version.ref}: asking a sample of its own windows"):
        memory = open_version(version, load_encoder=encoder_loader(version.manifest))
        return Findings(
            ref=version.ref,
            windows=memory.windows,
            coverage=coverage(memory),
            usual=usual_distances(memory),
            usage=usage(memory),
        )


def usage_document(found: Findings) -> dict[str, Any]:
    """The object `usage` of the document (docs/cli.md). Times are ISO 8601 in the table's own zone."""
    import numpy as np

    used, stretches = found.usage, found.usage.stretches
    return {
        "neighbours": used.k,
        "policy": "disjoint",
        "num_asked": {str(space): num for space, num in used.num_asked.items()},
        "stretch_steps": stretches.num_steps,
        "num_stretches": len(stretches),
        "num_judged": int(np.isfinite(used.ratio()).sum()),
        "num_never": len(used.never),
        "expected_per_window": float(used.by_stretch[1].sum() / len(found.windows)),
        "skewness": used.skewness(),
        "spaces": [space_document(found, space) for space in used.spaces],
        "hubs": [
            _stretch_document(found, number)
            | {"busiest_origin": _times(found, found.windows.origin(np.array([used.busiest_row(number)])))[0]}
            for number in used.hubs.tolist()
        ],
        "never": [_stretch_document(found, number) for number in used.never.tolist()],
        "coverage": _coverage_document(found),
    }


def hub_rows(found: Findings) -> list[list[object]]:
    """The strongest hubs, one a line."""
    used = found.usage
    retrieved, expected = used.by_stretch
    return [
        [
            found.series(number),
            *(minutes(found, times[number : number + 1])[0] for times in found.origins),
            int(retrieved[number]),
            f"{expected[number]:.0f}",
            f"{used.ratio()[number]:.1f}",
            int(used.asked_by[number]),
        ]
        for number in used.hubs[:SHOWN_HUBS].tolist()
    ]


def asked_line(found: Findings) -> str:
    """How much was asked, without which no count can be read."""
    used = found.usage
    asked = sorted(set(used.num_asked.values()))
    each = f"{asked[0]:,}" if len(asked) == 1 else f"{asked[0]:,} to {asked[-1]:,}"
    expected = used.by_stretch[1]
    return (
        f"asked: {each} of {len(found.windows):,} windows in each key space ({len(used.spaces)}) for {used.k} "
        f"neighbours: on average {expected.sum() / len(found.windows):.3g} retrievals of a window, "
        f"{expected.mean():.3g} of a stretch of {used.stretches.num_steps} steps"
    )


def hub_line(found: Findings) -> str:
    """How many hubs there are, and what they draw."""
    from memory_index.usage import HUB

    used = found.usage
    retrieved, _ = used.by_stretch
    criterion = f"retrieved at least {HUB:g} times as often as by chance"
    if len(used.hubs) == 0:
        return f"hubs: none of {len(used.stretches):,} stretches is {criterion}"
    share = retrieved[used.hubs].sum() / retrieved.sum()
    shown = f", the strongest {SHOWN_HUBS} shown" if len(used.hubs) > SHOWN_HUBS else ""
    return (
        f"hubs: {len(used.hubs):,} of {len(used.stretches):,} stretches {'is' if len(used.hubs) == 1 else 'are'} "
        f"{criterion}: {share:.1%} of all retrievals{shown}"
    )


def never_line(found: Findings) -> str:
    """What is never retrieved, by those who were asked."""
    import numpy as np

    used, ratio = found.usage, found.usage.ratio()
    judged = int(np.isfinite(ratio).sum())
    if judged == 0:
        return "never retrieved: nothing can be said, since so few windows may see one another"
    unknown = f"; {len(ratio) - judged:,} were too seldom within reach to tell" if judged < len(ratio) else ""
    if len(used.never):
        return (
            f"never retrieved by the windows asked: {len(used.never):,} of {judged:,} stretches "
            f"({len(used.never) / judged:.1%}), the first {found.stretch(int(used.never[0]))}{unknown}"
        )
    least = int(np.nanargmin(ratio))
    retrieved, expected = used.by_stretch
    return (
        f"never retrieved by the windows asked: none of {judged:,} stretches; least often {found.stretch(least)}, "
        f"{retrieved[least]:,} where {expected[least]:.0f} are expected{unknown}"
    )


def gaps_by_series(found: Findings) -> dict[str, list[int]]:
    """How many windows every gap of a series lacks; a series without one is left out."""
    gaps: dict[str, list[int]] = {}
    for gap in found.coverage.gaps:
        gaps.setdefault(gap.series_id, []).append(gap.num_windows)
    return gaps


def space_document(found: Findings, space: KeySpace) -> dict[str, Any]:
    """One key space in the document: how unevenly its windows are retrieved, and its usual distances."""
    import numpy as np

    ratio, usual = found.usage.ratio(space), found.distances(space)
    ratio = ratio[np.isfinite(ratio)]
    levels = np.quantile(usual, LEVELS) if len(usual) else [None] * len(LEVELS)
    return {
        "scope": space.scope,
        "view": space.view,
        "num_asked": found.usage.num_asked[space],
        "skewness": found.usage.skewness(space),
        "largest_ratio": float(ratio.max()) if len(ratio) else None,
        "share_never": float((ratio == 0).mean()) if len(ratio) else None,
        "distances": {"num": len(usual)} | {f"p{level * 100:g}": at for level, at in zip(LEVELS, levels, strict=True)},
    }


def _stretch_document(found: Findings, number: int) -> dict[str, Any]:
    used = found.usage
    retrieved, expected = used.by_stretch
    first, last = (_times(found, times[number : number + 1])[0] for times in found.origins)
    return {
        "series_id": found.series(number),
        "first_origin": first,
        "last_origin": last,
        "num_windows": int(used.stretches.num_windows[number]),
        "retrieved": int(retrieved[number]),
        "expected": float(expected[number]),
        "ratio": float(used.ratio()[number]),
        "asked_by": int(used.asked_by[number]),
    }


def _coverage_document(found: Findings) -> dict[str, Any]:
    import numpy as np

    covered, gaps = found.coverage, gaps_by_series(found)
    names = ("first_origin", "last_origin", "first_known_at", "last_known_at")
    times = {name: _times(found, getattr(covered, name)) for name in names}
    series = [
        {"series_id": name, "num_windows": int(covered.num_windows[number].sum())}
        | {each: times[each][number] for each in names}
        | {"num_gaps": len(gaps.get(name, ())), "num_missing": sum(gaps.get(name, ()))}
        for number, name in enumerate(covered.series_ids)
    ]
    shown = covered.gaps[:SHOWN_GAPS]
    first, last = (
        _times(found, np.array([getattr(gap, each) for gap in shown], "M8[ns]")) for each in ("first", "last")
    )
    return {
        "series": series,
        "num_gaps": len(covered.gaps),
        "gaps": [
            {"series_id": gap.series_id, "first": first[n], "last": last[n], "num_windows": gap.num_windows}
            for n, gap in enumerate(shown)
        ],
    }


def _times(found: Findings, times: np.ndarray) -> list[str | None]:
    """ISO 8601 in the table's own zone; None for NaT."""
    return [None if time != time else time.isoformat() for time in found.windows.step.local(times)]


def minutes(found: Findings, times: np.ndarray) -> Sequence[str]:
    """Times [n] for narrow columns: without seconds where they are zero, a space for the T."""
    return [minute(time or "") for time in _times(found, times)]
