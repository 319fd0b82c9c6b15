"""The store of versions: publish, name, find and remove immutable versions (rule 2 of docs/architecture.md).

A version is built in a staging folder and becomes visible by one rename; from then on nothing in it is ever
written. Its files may be hard links shared with the version that it was appended to, so removing one version
never touches another. The layout on disk is told in indexes/README.md. What is in a version, and whether its
bytes are right, is told in `manifest.py` and `version.py`.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from memory_index import files
from memory_index.errors import IncompatibleError, NotFoundError, ResourceError, UsageError, VerificationError
from memory_index.versions.layout import (
    ALIASES,
    BUILDER_LOCK,
    CATALOG_LOCK,
    LATEST,
    NAME,
    STAGING,
    TOMBSTONES,
    check_alias,
    check_name,
    hide,
    numbers_in,
    parse_ref,
    read_alias,
    unknown,
)
from memory_index.versions.leftovers import GcReport, freed_bytes, is_held, leftovers_in
from memory_index.versions.staging import Staging
from memory_index.versions.version import Location, Version, load

CATALOG_WAIT_S = 10.0  # its holders need milliseconds


@dataclass(frozen=True, kw_only=True, slots=True)
class VersionEntry:
    """One line of a listing. problem: why the manifest cannot be read, and then the other fields are empty."""

    version: int
    aliases: tuple[str, ...]
    fingerprint: str = ""
    num_rows: int = 0
    created_at: str = ""
    problem: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class IndexEntry:
    """One index and its versions, oldest first."""

    name: str
    versions: tuple[VersionEntry, ...]


class Store:
    """All versions below one folder. Keeps no state: any number of processes may work on the same folder."""

    def __init__(self, indexes_dir: Path | str) -> None:
        self.indexes_dir = Path(indexes_dir)

    # Finding

    def names(self) -> tuple[str, ...]:
        """Names that have at least one version, sorted."""
        if not self.indexes_dir.is_dir():
            return ()
        with files.refusals_named(self.indexes_dir):
            found = [path.name for path in self.indexes_dir.iterdir() if NAME.fullmatch(path.name) and path.is_dir()]
        return tuple(sorted(name for name in found if self.numbers(name)))

    def numbers(self, name: str) -> tuple[int, ...]:
        """Numbers of the versions of a name, ascending."""
        return numbers_in(self.indexes_dir / name)

    def aliases(self, name: str) -> dict[str, int]:
        """Alias -> number of the version that it names. Raises `VerificationError` for a damaged alias."""
        folder = self.indexes_dir / name / ALIASES
        with files.refusals_named(folder):
            found = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
        aliases = {}
        for alias in found:
            if NAME.fullmatch(alias):
                try:
                    aliases[alias] = read_alias(folder / alias)[0]
                except FileNotFoundError:  # removed since the folder was listed
                    continue
        return aliases

    def locate(self, ref: str) -> Location:
        """The version that `NAME`, `NAME@3`, `NAME@latest` or `NAME@alias` means, without reading it.

        Raises `UsageError` for what is no reference, `NotFoundError` that names the nearest known name, version or
        alias, `VerificationError` for a damaged alias.
        """
        return self.locate_with_fingerprint(ref)[0]

    def resolve(self, ref: str) -> Version:
        """The version that a reference means, with its manifest. Raises as `locate` and `version.load` do."""
        for attempts_left in reversed(range(10)):
            try:
                location, fingerprint = self.locate_with_fingerprint(ref)
                version = load(location)
            except NotFoundError:
                # An alias may be switched, and the version that it named removed, between our two looks.
                if attempts_left:
                    continue
                raise
            if fingerprint not in ("", version.manifest.fingerprint):
                raise VerificationError(
                    f"{ref} was set to a version with fingerprint {fingerprint[:12]}, but {location.ref} has "
                    f"{version.manifest.fingerprint[:12]}",
                    hint=f"set the alias again: cli index alias {location.name} {location.number} ALIAS",
                )
            return version
        raise AssertionError("the last attempt returns or raises")

    def list_indexes(self, name: str | None = None) -> tuple[IndexEntry, ...]:
        """All versions of all names, or of one. A version that cannot be read is listed with its problem.

        Raises `NotFoundError` if a name is given that has no version.
        """
        entries = []
        for each in self.names() if name is None else [self.locate(name).name]:
            aliases = self.aliases(each)
            versions = []
            for number in self.numbers(each):
                try:
                    versions.append(version_entry(self.location(each, number), aliases))
                except NotFoundError:  # removed since the folder was listed
                    continue
            entries.append(IndexEntry(name=each, versions=tuple(versions)))
        return tuple(entries)

    # Publishing

    @contextmanager
    def staging(self, name: str) -> Iterator[Staging]:
        """A folder to build the next version of a name in; deleted at the end of the block unless published.

        One builder per name at a time. Raises `ResourceError`: at once if another one is at work, and for a full
        disk or a missing permission, whether met here or by the code in the block.
        """
        check_name(name)
        folder = self.indexes_dir / name
        with files.refusals_named(folder), ExitStack() as until_done:
            if not folder.is_dir():
                make_folder(folder)
                files.sync(self.indexes_dir)
            path = folder / f"{STAGING}{secrets.token_hex(4)}"
            with self.catalog(name):
                until_done.enter_context(files.locked(folder / BUILDER_LOCK, sign=True))
                until_done.enter_context(files.atomic_folder(path))
            yield Staging(path=path, commit=lambda staged: self.commit(name, staged))

    def commit(self, name: str, staged: Path) -> Location:
        """Make a complete folder the next version of a name."""
        with self.catalog(name):
            location = self.location(name, self.next_number(name))
            files.publish_folder(staged, location.path)
        return location

    # Naming and removing

    def set_alias(self, name: str, version: int | str, alias: str) -> Version:
        """Let `NAME@alias` mean a version, given by number or by another alias; switches in one step.

        Raises `UsageError` for what cannot be an alias, and as `resolve` does.
        """
        check_alias(alias)
        self.locate(f"{name}@{version}")  # before a lock file is made for a name that is not there
        with self.catalog(name):
            target = self.resolve(f"{name}@{version}")
            path = self.indexes_dir / name / ALIASES / alias
            path.parent.mkdir(exist_ok=True)
            content = {"fingerprint": target.manifest.fingerprint, "version": target.number}
            files.replace(path, (json.dumps(content) + "\n").encode())
        return target

    def remove_alias(self, name: str, alias: str) -> None:
        """Forget an alias; the version stays. Raises `NotFoundError` if there is none of that name."""
        check_alias(alias)
        self.locate(name)
        with self.catalog(name):
            path = self.indexes_dir / name / ALIASES / alias
            if not path.exists():
                maker = f"cli index alias {name} VERSION {alias}"
                raise unknown(f"{name} has no alias '{alias}'", alias, self.aliases(name), maker=maker)
            path.unlink()
            files.sync(path.parent)

    def remove(self, ref: str) -> Location:
        """Delete one version. Its number is never given again. Readers that have it open keep their files.

        Raises `UsageError` unless the reference says which version, `IncompatibleError` if an alias names it.
        """
        location = self.locate(ref)
        if "@" not in ref or ref.endswith(f"@{LATEST}"):
            raise UsageError(f"'{ref}' does not say which version to remove", hint=f"for example {location.ref}")
        with self.catalog(location.name):
            location = self.locate(ref)
            aliases = [alias for alias, number in self.aliases(location.name).items() if number == location.number]
            if aliases:
                raise IncompatibleError(
                    f"{location.ref} is named by the alias {' and '.join(sorted(aliases))}",
                    hint="point the alias to another version, or remove it, first",
                )
            trash = self.hide(location)
        files.delete_tree(trash)
        return location

    def gc(self, name: str | None = None, *, keep: int | None = None, dry_run: bool = False) -> GcReport:
        """Delete what killed builds and removals have left and, with `keep`, all but the newest versions.

        keep: how many of the newest versions of each name stay; one that an alias names always does. Safe beside
        builders and readers. Raises `NotFoundError` for an unknown name, `UsageError` if keep is below 1.
        """
        if keep is not None and keep < 1:
            raise UsageError(f"keep is {keep}, but the latest version always stays", hint="keep at least 1")
        if name is not None and not (self.indexes_dir / check_name(name)).is_dir():
            self.locate(name)
        versions: list[str] = []
        leftovers: list[Path] = []
        busy: list[str] = []
        trash: list[Path] = []
        for each in [name] if name is not None else self.touched_names():
            with self.catalog(each):
                building = is_held(self.indexes_dir / each / BUILDER_LOCK)
                left = leftovers_in(self.indexes_dir / each, building=building)
                old = self.expendable(each, keep)
                trash += left if dry_run else [hide(path) for path in left]
                trash += [location.path if dry_run else self.hide(location) for location in old]
            busy += [each] if building else []
            leftovers += left
            versions += [location.ref for location in old]
        num_bytes = freed_bytes(trash)
        if not dry_run:
            for path in trash:
                files.delete_tree(path)
        return GcReport(
            versions=tuple(versions),
            leftovers=tuple(path.relative_to(self.indexes_dir).as_posix() for path in leftovers),
            bytes=num_bytes,
            busy=tuple(busy),
            dry_run=dry_run,
        )

    # How it is done

    @contextmanager
    def catalog(self, name: str) -> Iterator[None]:
        """Be the only one who gives, switches or removes a number, an alias or the builder's lock of a name."""
        folder = self.indexes_dir / name
        with files.refusals_named(folder), files.locked(folder / CATALOG_LOCK, wait_s=CATALOG_WAIT_S):
            yield

    def location(self, name: str, number: int) -> Location:
        """Where a version is, whether it exists or not."""
        return Location(name=name, number=number, path=self.indexes_dir / name / f"{number:06d}")

    def locate_with_fingerprint(self, ref: str) -> tuple[Location, str]:
        """What `locate` returns, and the fingerprint that an alias was set to (empty if it is no alias)."""
        name, wanted = parse_ref(ref)
        numbers = self.numbers(name)
        if not numbers:
            raise unknown(f"there is no index '{name}' in {self.indexes_dir}", name, self.names())
        if wanted == LATEST:
            return self.location(name, numbers[-1]), ""
        if wanted.isdecimal():
            if int(wanted) not in numbers:
                was = "was removed" if int(wanted) in self.removed_numbers(name) else "does not exist"
                raise unknown(f"{name}@{int(wanted)} {was}", wanted, [str(number) for number in numbers])
            return self.location(name, int(wanted)), ""
        try:
            number, fingerprint = read_alias(self.indexes_dir / name / ALIASES / wanted)
        except FileNotFoundError:
            known = [LATEST, *self.aliases(name)]
            raise unknown(f"{name} has no alias '{wanted}'", wanted, known) from None
        if number not in numbers:
            raise unknown(
                f"{ref} means version {number}, which is not there", wanted, [str(known) for known in numbers]
            )
        return self.location(name, number), fingerprint

    def removed_numbers(self, name: str) -> tuple[int, ...]:
        """Numbers that were given once and whose versions are gone."""
        return numbers_in(self.indexes_dir / name / TOMBSTONES)

    def next_number(self, name: str) -> int:
        """The number of the next version: one that has never been given. Only under the catalog lock."""
        return max([*self.numbers(name), *self.removed_numbers(name)], default=0) + 1

    def touched_names(self) -> list[str]:
        """Names that have a version or once had a builder; other folders beside them are not ours."""
        if not self.indexes_dir.is_dir():
            return []
        names = {path.parent.name for path in self.indexes_dir.glob(f"*/{CATALOG_LOCK}")}
        return sorted(name for name in names | set(self.names()) if NAME.fullmatch(name))

    def expendable(self, name: str, keep: int | None) -> list[Location]:
        """Versions that `gc` removes: not among the newest `keep`, and without an alias."""
        if keep is None:
            return []
        named = set(self.aliases(name).values())
        return [self.location(name, number) for number in self.numbers(name)[:-keep] if number not in named]

    def hide(self, location: Location) -> Path:
        """Take a version out of sight in one step and mark its number as used. Returns the folder to delete."""
        tombstones = location.path.parent / TOMBSTONES
        tombstones.mkdir(exist_ok=True)
        (tombstones / location.path.name).touch()
        files.sync(tombstones)
        trash = hide(location.path)
        files.sync(trash.parent)
        return trash


def make_folder(folder: Path) -> None:
    """Make a folder and those above it. Raises `ResourceError` where there can be none, such as below /proc."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileNotFoundError as error:
        raise ResourceError(
            f"{folder}: the folder cannot be made", hint=f"{files.DENIED}, or choose another place (--indexes-dir)"
        ) from error


def version_entry(location: Location, aliases: dict[str, int]) -> VersionEntry:
    """The line of one version in a listing. Raises `NotFoundError` if it is gone."""
    own = tuple(alias for alias, number in aliases.items() if number == location.number)
    try:
        manifest = load(location).manifest
    except (VerificationError, IncompatibleError, ResourceError) as error:
        return VersionEntry(version=location.number, aliases=own, problem=str(error))
    return VersionEntry(
        version=location.number,
        aliases=own,
        fingerprint=manifest.fingerprint,
        num_rows=manifest.num_rows,
        created_at=manifest.built.created_at,
    )
