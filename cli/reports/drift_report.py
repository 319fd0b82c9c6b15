"""What is said of drift: how far today's windows are from those that a version was fitted on."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from cli.opening import encoder_loader
from cli.output import note, print_table, progress

if TYPE_CHECKING:
    from memory_index.drift import Drift
    from memory_index.versions.version import Version


def find_drift(version: Version) -> Drift | None:
    """Measure it; None for a version that nothing, or too little, was appended to, or, said aloud, cannot be opened."""
    from memory_index.drift import drift
    from memory_index.errors import MemoryIndexError
    from memory_index.versions.opening import open_version

    if len(version.manifest.segments) == 1:
        return None
    try:
        with progress(f"{version.ref}: comparing today's windows with those that it was fitted on"):
            return drift(open_version(version, load_encoder=encoder_loader(version.manifest)))
    except MemoryIndexError as error:
        note(f"drift was not measured: {error}")
        return None


def drift_document(version: Version, found: Drift | None) -> dict[str, Any] | None:
    """In terms of JSON."""
    if found is None:
        return None
    return asdict(found) | {"begins": version.manifest.step.isoformat(found.begins), "rebuild": found.worth}


def print_drift(version: Version, found: Drift) -> None:
    """Tables and a sentence."""
    rows = [[each.view, f"{each.trained:.4g}", f"{each.today:.4g}", f"{each.gain:+.1%}"] for each in found.maps]
    heading = ["view", "MSE, training windows", "MSE, today", "gain of fitting them again"]
    print_table(heading, rows, title="\nDrift: the linear maps behind the keys")
    begins = version.manifest.step.isoformat(found.begins)
    note(
        f"{found.num_since:,} windows since it was fitted. Today's, from {begins} on: mean {found.level:.2f} training "
        f"deviations from the training mean, spread {found.spread:.2f} times that of the training windows"
    )
    worth = "is worth it: cli index build" if found.worth else "is not worth it yet"
    note(f"a new build {worth} (from a gain of 2% in half of the views on)")
