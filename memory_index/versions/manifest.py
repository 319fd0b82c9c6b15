"""The manifest: one JSON document that says what a version is, and its fingerprint.

This file knows the fields and how they are read and written; which folder they lie in is `store.py`.
"""

from __future__ import annotations

import json
import re
from dataclasses import MISSING, asdict, dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np

from memory_index.covariate_map import CovariateColumn, CovariateLayout
from memory_index.covariates import Covariate
from memory_index.errors import IncompatibleError, VerificationError
from memory_index.files import FileRecord, sha256_of
from memory_index.origins import Schedule, schedule_of_a_version
from memory_index.skipped import Skipped
from memory_index.splits import Split
from memory_index.transforms import NO_TRANSFORM, Transform, transform_from_json
from memory_index.types import KeySpace, Scope
from memory_index.windows import Step, WindowSpec

LFS_POINTER = "version https://git-lfs.github.com/spec/"  # how a file begins that Git LFS has not fetched
FORMAT = 2  # of the version folder; every older number stays readable for ever (tests/golden)


@dataclass(frozen=True, kw_only=True, slots=True)
class SegmentRecord:
    """One immutable part of a version. `folder` is relative to the version; a child version shares it."""

    folder: str
    num_rows: int
    num_steps: int  # over all series
    num_moments: int | None = None  # in moments.parquet; None where there is none
    num_covariates: int | None = None  # rows of covariates.parquet; None where there is none
    num_vintages: int | None = None  # rows of vintages.parquet; None where there is none


@dataclass(frozen=True, kw_only=True, slots=True)
class SpaceRecord:
    """One key space: how it is searched, and what was measured when it was built.

    factory: FAISS factory string, or `Flat` for the exact scan. width: of a key, of which the last `condition_width`
    numbers are the condition part, and the `value_width` before them the value part. temperature: see docs/method.md.
    recall_at_10: against exact search, under the time guard.
    """

    scope: str
    view: int
    width: int
    value_width: int
    factory: str
    reason: str
    temperature: float
    recall_at_10: float
    condition_width: int = 0

    @property
    def space(self) -> KeySpace:
        """Its name: the scope and the view."""
        return KeySpace(self.scope, self.view)  # type: ignore[arg-type]


@dataclass(frozen=True, kw_only=True, slots=True)
class BuildRecord:
    """How the build went. The only part of the manifest that is not in the fingerprint."""

    source: str  # name of the file that the data came from
    created_at: str  # ISO 8601, UTC
    seconds: float
    peak_rss_mb: float
    notes: tuple[str, ...] = ()  # what a person should know of it
    skipped: tuple[Skipped, ...] = ()  # series of the source that it has nothing of


@dataclass(frozen=True, kw_only=True, slots=True)
class BudgetRecord:
    """What a budget of peak memory made of a build (budget.py). choices: one sentence each, for people."""

    budget_bytes: int
    estimated_bytes: int
    choices: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Everything that a version is. Equal data and settings give equal fingerprints.

    A field with a default, here or in `SpaceRecord` and `SegmentRecord`, is stored only where it differs from it, so
    that the fingerprint of a version that was made before there was such a field stays what it is.
    """

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
    data_sha256: str  # of all series stored (SeriesTable.content_hash)
    segments: tuple[SegmentRecord, ...]
    files: dict[str, FileRecord]  # by path relative to the version folder, "/" between parts
    parent: str | None  # fingerprint of the version that this one was appended to
    libraries: dict[str, str]
    built: BuildRecord
    budget: BudgetRecord | None = None  # None where none was set
    transform: Transform = NO_TRANSFORM
    covariates: tuple[CovariateColumn, ...] = ()
    shared_covariates: bool = False  # whether all series have the same ones, which are stored once
    every: str | None = None  # which origins are stored, as `origins.schedule_of_a_version` reads it; None: all
    at: str | None = None

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of the canonical JSON of everything but `built`."""
        document = self.to_document()
        del document["built"]
        return sha256_of(json.dumps(document, sort_keys=True).encode())

    @property
    def key_spaces(self) -> tuple[KeySpace, ...]:
        """Names of `spaces`, in their order."""
        return tuple(record.space for record in self.spaces)

    @property
    def scopes(self) -> tuple[Scope, ...]:
        """The scopes that there are keys for."""
        return tuple(dict.fromkeys(space.scope for space in self.key_spaces))

    @property
    def schedule(self) -> Schedule | None:
        """The origins that it was built for; None for every step, or every `window.stride`-th."""
        return schedule_of_a_version(self.every, self.at)

    @property
    def recorded_covariates(self) -> tuple[Covariate, ...]:
        """The columns with a role that it was built with, as a table is read with them again."""
        return tuple(column.as_covariate() for column in self.covariates)

    @property
    def covariate_layout(self) -> CovariateLayout | None:
        """What stands beside a window; None for a version without covariates."""
        if not self.covariates:
            return None
        return CovariateLayout(columns=self.covariates, lookback=self.window.lookback, horizon=self.window.horizon)

    @property
    def fitted_known_at(self) -> np.datetime64:
        """From when on everything that a fitted part saw is known, datetime64[ns]: earlier origins are in sample."""
        fitted_until = np.array([self.fitted_until], dtype="datetime64[ns]")
        return np.datetime64(self.step.add(fitted_until, self.window.known_delay)[0])

    @property
    def num_bytes(self) -> int:
        """Size of all files that the manifest lists, those that a parent shares included."""
        return sum(record.bytes for record in self.files.values())

    def to_document(self) -> dict[str, Any]:
        """The fields by name, without those that are at their default."""
        window, built = asdict(self.window), asdict(self.built)
        if not self.built.skipped:
            del built["skipped"]
        if self.window.max_missing == 0:  # whole windows only, as before there was a choice
            del window["max_missing"]
        return _without_defaults(self) | {
            "window": window,
            "built": built,
            "spaces": [_without_defaults(record) for record in self.spaces],
            "segments": [_without_defaults(record) for record in self.segments],
            **({"covariates": [column.to_document() for column in self.covariates]} if self.covariates else {}),
        }

    def to_json(self) -> str:
        """The document as it is stored in `manifest.json`."""
        return json.dumps(self.to_document(), indent=1, sort_keys=True) + "\n"


def _without_defaults(record: Manifest | SpaceRecord | SegmentRecord) -> dict[str, Any]:
    document = asdict(record)
    for field in fields(record):
        if field.default is not MISSING and getattr(record, field.name) == field.default:
            del document[field.name]
    return document


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """What two versions do not have in common.

    settings: by dotted name (`window.lookback`), the two values; None where one version has no such setting.
    equal, changed, only_first, only_second: paths of files, compared by hash. shared_segments: folders of
    segments that both have with the same bytes. appended: whether the second was appended to the first.
    """

    settings: dict[str, tuple[Any, Any]]
    equal: tuple[str, ...]
    changed: tuple[str, ...]
    only_first: tuple[str, ...]
    only_second: tuple[str, ...]
    shared_segments: tuple[str, ...]
    appended: bool


def difference(first: Manifest, second: Manifest) -> Difference:
    """Compare two versions, of one index or of two, without opening any of their files."""
    ours, theirs = (flat_settings(manifest) for manifest in (first, second))
    names = sorted(ours.keys() | theirs.keys())
    both = sorted(first.files.keys() & second.files.keys())
    equal = tuple(path for path in both if first.files[path] == second.files[path])
    return Difference(
        settings={name: (ours.get(name), theirs.get(name)) for name in names if ours.get(name) != theirs.get(name)},
        equal=equal,
        changed=tuple(path for path in both if path not in set(equal)),
        only_first=tuple(sorted(first.files.keys() - second.files.keys())),
        only_second=tuple(sorted(second.files.keys() - first.files.keys())),
        shared_segments=tuple(
            segment.folder
            for segment in first.segments
            if segment in second.segments and segment_files(first, segment) == segment_files(second, segment)
        ),
        appended=second.parent == first.fingerprint,
    )


def segment_files(manifest: Manifest, segment: SegmentRecord) -> dict[str, FileRecord]:
    """The files of one segment, by path relative to the version folder."""
    return {path: record for path, record in manifest.files.items() if path.startswith(f"{segment.folder}/")}


def flat_settings(manifest: Manifest) -> dict[str, Any]:
    """Every field but the files and how the build went, by dotted name; key spaces by their own name."""
    document = asdict(manifest)
    for left_out in ("files", "built", "segments"):
        del document[left_out]
    document["series_ids"] = list(document["series_ids"])
    document["spaces"] = {f"{space['scope']}-{space['view']}": space for space in document["spaces"]}
    flat: dict[str, Any] = {}
    pending = list(document.items())
    while pending:
        name, value = pending.pop()
        if isinstance(value, dict):
            pending += [(f"{name}.{key}", inner) for key, inner in value.items()]
        else:
            flat[name] = value
    return flat


def manifest_from_json(text: str, *, where: str) -> Manifest:
    """Read a manifest; `where` names it in messages.

    Raises `IncompatibleError` for a newer format number, `VerificationError` for anything else that is wrong.
    """
    if text.startswith(LFS_POINTER):
        raise VerificationError(f"{where} is a Git LFS pointer, not a manifest", hint="fetch it with 'git lfs pull'")
    try:
        document = json.loads(text)
        number = document["format"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        hint = "restore the version or build it again"
        raise VerificationError(f"{where} is not a manifest: {error!r}", hint=hint) from error
    if not isinstance(number, int) or isinstance(number, bool) or number > FORMAT:
        raise IncompatibleError(
            f"{where} has format {number}, but this program reads formats up to {FORMAT}", hint="upgrade the program"
        )
    try:
        known = {field.name for field in fields(Manifest)}
        required = {field.name for field in fields(Manifest) if field.default is MISSING}
        if not required <= set(document) <= known:
            wrong = (set(document) - known) | (required - set(document))
            raise ValueError(f"fields that differ from format {number}: {sorted(wrong)}")
        return Manifest(
            **{
                **document,
                "window": WindowSpec(**{"max_missing": 0.0, **document["window"]}),
                "step": Step(**document["step"]),
                "series_ids": tuple(document["series_ids"]),
                "spaces": tuple(SpaceRecord(**record) for record in document["spaces"]),
                "split": Split(**document["split"]),
                "segments": tuple(SegmentRecord(**record) for record in document["segments"]),
                "files": {path: file_record(path, record) for path, record in document["files"].items()},
                "built": _build_record(document["built"]),
                "budget": _budget_record(document.get("budget")),
                "transform": transform_from_json(document.get("transform", {})),
                "covariates": tuple(covariate_column(each) for each in document.get("covariates", ())),
            }
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:  # a UsageError of WindowSpec is a ValueError
        raise VerificationError(
            f"{where} cannot be read: {error}", hint="restore the version or build it again"
        ) from error


def covariate_column(document: dict[str, Any]) -> CovariateColumn:
    """A column of what `dataclasses.asdict` made of it."""
    listed = ("categories", "center", "weight")
    return CovariateColumn(**document | {name: tuple(document[name]) for name in listed})


def _build_record(document: dict[str, Any]) -> BuildRecord:
    skipped = tuple(Skipped(**each) for each in document.get("skipped", ()))
    return BuildRecord(**{**document, "notes": tuple(document["notes"]), "skipped": skipped})


def _budget_record(document: dict[str, Any] | None) -> BudgetRecord | None:
    return None if document is None else BudgetRecord(**{**document, "choices": tuple(document["choices"])})


def file_record(path: str, record: dict[str, Any]) -> FileRecord:
    """One entry of `files`, which may come from a stranger's archive: it must stay inside the version folder.

    Raises `ValueError`.
    """
    parts = path.split("/")
    if not all(re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.=@+-]*", part) for part in parts):
        raise ValueError(f"{path!r} is not the path of a file of a version")
    read = FileRecord(**record)
    if not re.fullmatch(r"[0-9a-f]{64}", read.sha256) or type(read.bytes) is not int or read.bytes < 0:
        raise ValueError(f"the entry of {path!r} is not a sha256 and a size")
    return read
