"""The manifest: one JSON document that says what a version is, and its fingerprint.

This file knows the fields and how they are read and written; which folder they lie in is `store.py`.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, fields
from typing import Any

from memory_index.errors import IncompatibleError, VerificationError
from memory_index.splits import Split
from memory_index.types import KeySpace
from memory_index.windows import Step, WindowSpec

FORMAT = 1  # of the version folder; every older number stays readable for ever (tests/golden)


@dataclass(frozen=True, kw_only=True, slots=True)
class FileRecord:
    """One file of a version: its hash (sha256, hexadecimal) and its size in bytes."""

    sha256: str
    bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class SegmentRecord:
    """One immutable part of a version. `folder` is relative to the version; a child version shares it."""

    folder: str
    num_rows: int
    num_moments: int


@dataclass(frozen=True, kw_only=True, slots=True)
class SpaceRecord:
    """One key space: how it is searched, and what was measured when it was built.

    factory: FAISS factory string, or `Flat` for the exact scan. width: of a key, of which the last
    `value_width` numbers are the value part. temperature: METHOD 3.1. recall_at_10: against exact search,
    under the time guard.
    """

    scope: str
    view: int
    width: int
    value_width: int
    factory: str
    reason: str
    temperature: float
    recall_at_10: float

    @property
    def space(self) -> KeySpace:
        return KeySpace(self.scope, self.view)  # type: ignore[arg-type]


@dataclass(frozen=True, kw_only=True, slots=True)
class BuildRecord:
    """How the build went. The only part of the manifest that is not in the fingerprint."""

    created_at: str  # ISO 8601, UTC
    seconds: float
    peak_rss_mb: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """Everything that a version is. Equal data and settings give equal fingerprints."""

    format: int
    window: WindowSpec
    step: Step
    layout: str  # "wide" or "long"
    series_ids: tuple[str, ...]
    joint: str  # "built", or why there is no joint scope
    encoder: dict[str, Any]  # kind, settings and fingerprint of the key encoder
    spaces: tuple[SpaceRecord, ...]
    split: Split
    fitted_until: str  # ISO 8601: the last step that any fitted part saw
    num_rows: int
    first_known_at: str
    last_known_at: str
    source: dict[str, Any]  # file name and content hash (series.SeriesTable.content_hash) of all data stored
    segments: tuple[SegmentRecord, ...]
    files: dict[str, FileRecord]  # by path relative to the version folder, "/" between parts
    parent: str | None  # fingerprint of the version that this one was appended to
    libraries: dict[str, str]
    built: BuildRecord

    @property
    def fingerprint(self) -> str:
        """sha256 of the canonical JSON of everything but `built`."""
        document = asdict(self)
        del document["built"]
        return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()

    @property
    def num_bytes(self) -> int:
        return sum(record.bytes for record in self.files.values())

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1, sort_keys=True) + "\n"


def manifest_from_json(text: str, *, where: str) -> Manifest:
    """Read a manifest; `where` names it in messages.

    Raises `IncompatibleError` for a newer format number, `VerificationError` for anything else that is wrong.
    """
    try:
        document = json.loads(text)
        number = document["format"]
    except (ValueError, KeyError, TypeError) as error:
        hint = "fetch the real file with 'git lfs pull'" if text.startswith("version https://git-lfs") else "restore it"
        raise VerificationError(f"{where} is not a manifest: {error}", hint=hint) from error
    if not isinstance(number, int) or number > FORMAT:
        raise IncompatibleError(
            f"{where} has format {number}, but this program reads formats up to {FORMAT}", hint="upgrade the program"
        )
    try:
        known = {field.name for field in fields(Manifest)}
        if set(document) != known:
            raise ValueError(f"fields that differ from format {number}: {sorted(set(document) ^ known)}")
        return Manifest(
            **{
                **document,
                "window": WindowSpec(**document["window"]),
                "step": Step(**document["step"]),
                "series_ids": tuple(document["series_ids"]),
                "spaces": tuple(SpaceRecord(**record) for record in document["spaces"]),
                "split": Split(**document["split"]),
                "segments": tuple(SegmentRecord(**record) for record in document["segments"]),
                "files": {path: FileRecord(**record) for path, record in document["files"].items()},
                "built": BuildRecord(**document["built"]),
            }
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise VerificationError(f"{where} cannot be read: {error}", hint="restore the version or build it again") from error
