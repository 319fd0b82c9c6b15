"""What the commands of `cli index` say about one version: as a JSON document and as text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from cli.output import print_table

if TYPE_CHECKING:
    from memory_index.covariate_map import CovariateColumn
    from memory_index.references import FoundVersion
    from memory_index.versions.manifest import Manifest, SpaceRecord
    from memory_index.versions.store import Store
    from memory_index.versions.version import Version

FINGERPRINT_SHOWN = 12  # hexadecimal digits, as in error messages
MANY_SERIES = 10  # more are counted, not listed


def version_document(version: Version | FoundVersion) -> dict[str, Any]:
    """The keys that scripts rely on (docs/cli.md), then the rest. Times are ISO 8601 in the table's own zone.

    `factory` is `mixed` where the key spaces differ, `recall_at_10` the least of theirs; `spaces` has them one by one.
    `path` is null for a version at an address.
    """
    from memory_index.versions.layout import parse_ref

    manifest, (name, number) = version.manifest, parse_ref(version.ref.rpartition("/")[2])
    spaces, window, split = manifest.spaces, manifest.window, manifest.split
    factories = sorted({space.factory for space in spaces})
    return {
        "ref": version.ref,
        "name": name,
        "version": int(number),
        "fingerprint": manifest.fingerprint,
        "num_rows": manifest.num_rows,
        "num_series": len(manifest.series_ids),
        "lookback": window.lookback,
        "horizon": window.horizon,
        "views": _distinct(space.view for space in spaces),
        "factory": factories[0] if len(factories) == 1 else "mixed",
        "first_known_at": _at(manifest, manifest.first_known_at),
        "last_known_at": _at(manifest, manifest.last_known_at),
        "bytes": manifest.num_bytes,
        "recall_at_10": min(space.recall_at_10 for space in spaces),
        "seconds": manifest.built.seconds,
        "peak_rss_mb": manifest.built.peak_rss_mb,
        "created_at": manifest.built.created_at,
        "scopes": _distinct(space.scope for space in spaces),
        "spaces": spaces,
        "joint": manifest.joint,
        "stride": window.stride,
        **({"every": manifest.every, "at": manifest.at} if manifest.every else {}),
        "budget": manifest.budget,
        "max_missing": window.max_missing,
        "transform": manifest.transform.kind,
        **({"covariates": [asdict(column) for column in manifest.covariates]} if manifest.covariates else {}),
        **({"num_vintages": num_vintages} if (num_vintages := _num_vintages(manifest)) else {}),
        "skipped": manifest.built.skipped,
        "known_delay": window.known_delay,
        "step": manifest.step.frequency,
        "time_zone": manifest.step.time_zone,
        "layout": manifest.layout,
        "series": manifest.series_ids,
        "split": {
            "name": split.name,
            "train_until": _at(manifest, split.train_until),
            "val_until": _at(manifest, split.val_until),
            "test_until": _at(manifest, split.test_until),
        },
        "fitted_until": _at(manifest, manifest.fitted_until),
        "encoder": manifest.encoder,
        "num_segments": len(manifest.segments),
        "source": manifest.built.source,
        "data_sha256": manifest.data_sha256,
        "parent": manifest.parent,
        "libraries": manifest.libraries,
        "path": getattr(version, "path", None),
    }


def print_version(version: Version | FoundVersion, *more: tuple[str, str]) -> None:
    """The same for a reader: what the version holds, and how each of its key spaces is searched.

    more: further lines, each a name and a text.
    """
    manifest = version.manifest
    rows = [(name, text) for name, text in [*_lines(version), *more] if text]
    print_table(["version", version.ref], rows)
    print_table(
        ["scope", "views", "factory", "recall@10", "why it was chosen"], _space_rows(manifest), title="\nKey spaces"
    )


def _covariate(column: CovariateColumn) -> str:
    """A column, its role, and whether it has a say in the distance."""
    unused = column.role == "known" and not any(column.weight)
    issued = " as of its issue" if column.vintages else ""
    return f"{column.name} ({column.role}{issued}{', of no use' if unused else ''})"


def _num_vintages(manifest: Manifest) -> int:
    return sum(segment.num_vintages or 0 for segment in manifest.segments)


def parent_ref(store: Store, version: Version) -> str:
    """The version that this one was made from, as far as it is still there; empty if it was built from a table."""
    parent = version.manifest.parent
    if parent is None:
        return ""
    for entry in store.list_indexes(version.name):
        for each in entry.versions:
            if each.fingerprint == parent:
                return f"{entry.name}@{each.version}"
    return f"a version that is not here, with fingerprint {parent[:FINGERPRINT_SHOWN]}"


def describe_bytes(num_bytes: int) -> str:
    """A size for a reader, in decimal units."""
    if num_bytes < 1000:
        return f"{num_bytes} bytes"
    size, unit = num_bytes / 1e9, "GB"
    if num_bytes < 1e6:
        size, unit = num_bytes / 1e3, "kB"
    elif num_bytes < 1e9:
        size, unit = num_bytes / 1e6, "MB"
    return f"{size:.3g} {unit}" if size < 100 else f"{size:.0f} {unit}"


def _lines(version: Version | FoundVersion) -> list[tuple[str, str]]:
    manifest = version.manifest
    window, split, built = manifest.window, manifest.split, manifest.built
    names = ", ".join(manifest.series_ids) if len(manifest.series_ids) <= MANY_SERIES else ""
    num_segments = len(manifest.segments)
    last, num_vintages = _at(manifest, manifest.last_known_at), _num_vintages(manifest)
    grown = last is not None and manifest.last_known_at > manifest.split.train_until
    return [
        ("windows", f"{manifest.num_rows:,}, known {_at(manifest, manifest.first_known_at)} to {last}"),
        ("series", f"{len(manifest.series_ids)}" + (f": {names}" if names else "")),
        ("step", manifest.step.frequency + (f" in {manifest.step.time_zone}" if manifest.step.time_zone else "")),
        ("lookback, horizon", f"{window.lookback} + {window.horizon} steps"),
        ("stride", f"every {window.stride}. step is an origin" if window.stride > 1 else ""),
        ("origins", str(manifest.schedule) if manifest.schedule else ""),
        *(("budget" if n == 0 else "", text) for n, text in enumerate(_budget_lines(manifest))),
        ("known delay", f"{window.known_delay} steps" if window.known_delay else ""),
        ("transform", manifest.transform.kind if manifest.transform else ""),
        ("covariates", ", ".join(_covariate(column) for column in manifest.covariates)),
        ("vintages", f"{num_vintages:,} issued values" if num_vintages else ""),
        ("split", split.name),
        ("  train until", f"{_at(manifest, split.train_until)}" + (" (appended to since)" if grown else "")),
        ("  val until", _at(manifest, split.val_until) or ""),
        ("  test until", _at(manifest, split.test_until) or ""),
        ("source", manifest.built.source),
        ("size", f"{describe_bytes(manifest.num_bytes)} in {num_segments} segment{'s' if num_segments > 1 else ''}"),
        ("fingerprint", manifest.fingerprint[:FINGERPRINT_SHOWN]),
        *(("note", each) for each in built.notes),
        ("built", f"{built.created_at} in {built.seconds:.1f} s, {built.peak_rss_mb:.0f} MB of memory at most"),
    ]


def _budget_lines(manifest: Manifest) -> list[str]:
    """What a budget of memory made of the build; none where none was set."""
    budget = manifest.budget
    if budget is None:
        return []
    size, estimate = describe_bytes(budget.budget_bytes), describe_bytes(budget.estimated_bytes)
    return [f"{size} of memory at most; what was chosen takes about {estimate}:", *budget.choices]


def _space_rows(manifest: Manifest) -> list[tuple[object, ...]]:
    """Key spaces of one scope that are searched alike share a line; a missing joint scope has one that says why."""
    alike: dict[tuple[str, str, str], list[SpaceRecord]] = {}
    for space in manifest.spaces:
        alike.setdefault((space.scope, space.factory, space.reason), []).append(space)
    rows: list[tuple[object, ...]] = []
    for (scope, factory, reason), spaces in alike.items():
        views = ", ".join(str(space.view) for space in spaces)
        rows.append((scope, views, factory, f"{min(space.recall_at_10 for space in spaces):.3f}", reason))
    if manifest.joint != "built":
        rows.append(("joint", "", "", "", f"not built: {manifest.joint}"))
    return rows


def _at(manifest: Manifest, time: str | None) -> str | None:
    """A time of a manifest as the table's readers know it."""
    import numpy as np

    return None if time is None else manifest.step.isoformat(np.datetime64(time, "ns"))


def _distinct(values: Any) -> Sequence[Any]:
    return list(dict.fromkeys(values))
