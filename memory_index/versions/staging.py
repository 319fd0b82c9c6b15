"""The folder in which one version is built, and how it becomes a version.

Who may build when, and what becomes of a folder that was not published, is decided in `store.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from memory_index import files
from memory_index.errors import VerificationError
from memory_index.files import FileRecord
from memory_index.versions.manifest import Manifest, manifest_from_json
from memory_index.versions.version import MANIFEST, RESTORE, Location, Version, manifest_files, require_present


class Staging:
    """The folder in which one version is being built. Write files below `path`, then `publish`."""

    def __init__(self, *, path: Path, commit: Callable[[Path], Location]) -> None:
        self.path = path
        self.commit = commit  # gives a folder the next number, and its place
        self.adopted: dict[str, FileRecord] = {}
        self.linked: set[str] = set()

    def adopt(self, parent: Version, *paths: str) -> None:
        """Take files, or folders with all their files, over from a published version under the same paths.

        They are hard links, which cost neither space nor time; where the file system cannot link, copies. The
        parent's bytes are taken to be checked (`version.check_files`).

        Raises `NotFoundError` if the parent was removed meanwhile, `VerificationError` if a file is not as it was.
        """
        for wanted in paths:
            found = [path for path in parent.manifest.files if path == wanted or path.startswith(f"{wanted}/")]
            assert found, f"{parent.ref} has no '{wanted}'"
            for path in found:
                self.adopt_file(parent, path)

    def adopt_file(self, parent: Version, path: str) -> None:
        """Take one file over: see `adopt`."""
        record, target = parent.manifest.files[path], self.path / path
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            if files.link_or_copy(parent.path / path, target):
                self.linked.add(path)
        except FileNotFoundError as error:
            require_present(parent)
            raise VerificationError(f"{parent.path / path} is missing", hint=RESTORE) from error
        if target.stat().st_size != record.bytes:
            raise VerificationError(f"{parent.path / path} is not as it was published", hint=RESTORE)
        self.adopted[path] = record

    def publish(self, manifest: Manifest) -> Version:
        """Make the folder the next version of its name; `manifest.files` is filled in here.

        Hashes and syncs every file that is not linked, then renames: the rename is the commit.

        Raises `ResourceError` for a full disk and the like; the version is then not visible.
        """
        records = self.finished_files()
        for segment in manifest.segments:
            assert any(path.startswith(f"{segment.folder}/") for path in records), f"nothing in {segment.folder}"
        content = replace(manifest, files=records).to_json()
        published = manifest_from_json(content, where=str(self.path / MANIFEST))  # as every reader will see it
        for path, text in manifest_files(content.encode()).items():
            files.write_new(self.path / path, text)
            (self.path / path).chmod(files.READ_ONLY & (self.path / path).stat().st_mode)
        for folder in {(self.path / path).parent for path in records}:
            files.sync(folder)
        location = self.commit(self.path)
        return Version(name=location.name, number=location.number, path=location.path, manifest=published)

    def finished_files(self) -> dict[str, FileRecord]:
        """Hash, protect and sync what was written; linked files are known, synced and protected already."""
        paths = files.files_below(self.path)
        written = [path for path in paths if path not in self.linked]
        records = dict(self.adopted)
        for path, found in files.finish_files(self.path, written).items():
            if records.setdefault(path, found) != found:
                raise VerificationError(f"the copy of {path} has other bytes than its original", hint=RESTORE)
        return {path: records[path] for path in paths}
