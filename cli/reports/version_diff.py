"""What `cli index diff` says about two versions: as a JSON document and as text."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from cli.output import note, print_table
from cli.reports.version_report import FINGERPRINT_SHOWN

if TYPE_CHECKING:
    from memory_index.versions.manifest import Difference
    from memory_index.versions.version import Version

CELL_WIDTH = 60  # characters of a setting that the table shows


def difference_document(versions: tuple[Version, Version], found: Difference) -> dict[str, Any]:
    """Every difference; settings by dotted name, with the two values."""
    return {
        "first": versions[0].ref,
        "second": versions[1].ref,
        "same": _same(versions),
        "settings": {name: _setting(name, values, versions) for name, values in found.settings.items()},
        "equal": found.equal,
        "changed": found.changed,
        "only_first": found.only_first,
        "only_second": found.only_second,
        "shared_segments": found.shared_segments,
        "appended": found.appended,
    }


def print_difference(versions: tuple[Version, Version], found: Difference) -> None:
    """The same for a reader: files are counted, long values cut."""
    first, second = (version.ref for version in versions)
    if _same(versions):
        fingerprints = [version.manifest.fingerprint[:FINGERPRINT_SHOWN] for version in versions]
        print_table(["", first, second], [["fingerprint", *fingerprints]])
        note(f"{first} and {second} have the same fingerprint: they are the same version")
        return
    rows = [
        [name, *(_shortened(value) for value in _setting(name, values, versions))]
        for name, values in found.settings.items()
    ]
    rows.append(["files", *(len(version.manifest.files) for version in versions)])
    rows.append(["  only here", len(found.only_first), len(found.only_second)])
    rows.append(["  in both, other bytes", len(found.changed), len(found.changed)])
    rows.append(["  in both, same bytes", len(found.equal), len(found.equal)])
    print_table(["", first, second], rows)
    if found.appended:
        note(f"{second} was made from {first}")
    if found.shared_segments:
        note(f"they have {', '.join(found.shared_segments)} in common")


def _same(versions: tuple[Version, Version]) -> bool:
    return versions[0].manifest.fingerprint == versions[1].manifest.fingerprint


def _setting(name: str, values: tuple[Any, Any], versions: tuple[Version, Version]) -> list[Any]:
    """The two values of a setting; times as the readers of each table know them."""
    import numpy as np

    if not name.endswith(("_until", "known_at")):
        return list(values)
    steps = [version.manifest.step for version in versions]
    return [
        None if at is None else step.isoformat(np.datetime64(at, "ns")) for at, step in zip(values, steps, strict=True)
    ]


def _shortened(value: object) -> object:
    if isinstance(value, (list, tuple)):
        value = ", ".join(str(part) for part in value)
    if not isinstance(value, str):
        return value
    if re.fullmatch("[0-9a-f]{64}", value):
        return value[:FINGERPRINT_SHOWN]
    return value if len(value) <= CELL_WIDTH else f"{value[: CELL_WIDTH - 3]}..."
