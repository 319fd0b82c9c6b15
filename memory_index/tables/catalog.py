"""Public benchmark sets by name (`datasets/catalog.toml`), their download, and the files that ship with the package.

A download gets its final name only when it is complete and, where the catalogue knows its sha256, checked.
"""

from __future__ import annotations

import difflib
import http.client
import ssl
import tomllib
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from memory_index.errors import DataError, NotFoundError, ResourceError, ServiceError, UsageError, VerificationError
from memory_index.files import hash_file

CHUNK = 1 << 18  # bytes read at a time
TIMEOUT = 30.0  # seconds without a byte


@dataclass(frozen=True, kw_only=True, slots=True)
class CatalogEntry:
    """One public set. step: a pandas frequency. sha256: None where it is not known, then nothing is verified."""

    name: str
    file: str
    url: str
    licence: str
    citation: str
    description: str
    step: str
    rows: int
    variates: int
    sha256: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Fetched:
    """A file of the catalogue on disk. verified: its sha256 is the one in the catalogue."""

    name: str
    path: Path
    sha256: str
    bytes: int
    verified: bool
    downloaded: bool  # False: it was there already


def shipped(name: str) -> Path:
    """The path of a file that ships with the package: a sample table (datasets/README.md), or `catalog.toml`.

    In an installed wheel it lies inside the package, in a checkout in `datasets/` beside it.
    Raises `NotFoundError` if it is in neither place.
    """
    package = Path(__file__).resolve().parents[1]
    places = (package / "shipped" / name, package.parent / "datasets" / name)
    for place in places:
        if place.is_file():
            return place
    raise NotFoundError(
        f"'{name}' is in neither {places[0].parent} nor {places[1].parent}", hint="install the program again"
    )


def read_catalog(path: Path | str | None = None) -> tuple[CatalogEntry, ...]:
    """The entries of the catalogue in file order; by default of the one that ships with the package.

    Raises `DataError` if the file is not a catalogue.
    """
    path = Path(path or shipped("catalog.toml"))
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
        return tuple(CatalogEntry(name=name, **fields) for name, fields in document.items())
    except (tomllib.TOMLDecodeError, TypeError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is not a catalogue: {error}", hint="restore the file") from error


def find_entry(name: str, catalog: tuple[CatalogEntry, ...]) -> CatalogEntry:
    """One entry; case does not matter. Raises `NotFoundError` that names the nearest."""
    names = {entry.name.lower(): entry for entry in catalog}
    if name.lower() not in names:
        near = difflib.get_close_matches(name.lower(), names, n=1, cutoff=0.0)
        hint = (
            f"the nearest is '{names[near[0]].name}'; 'cli data list' shows all" if near else "the catalogue is empty"
        )
        raise NotFoundError(f"the catalogue has no set '{name}'", hint=hint)
    return names[name.lower()]


def fetch(
    entry: CatalogEntry, into: Path | str, *, report: Callable[[float, float | None], None] | None = None
) -> Fetched:
    """Download a set into a folder, going on where an earlier try broke off; no network if it is there already.

    report: called with the bytes on disk and the size of the whole, None where the server does not say.

    Raises `ServiceError` (not reachable, refused, broke off: what came is kept in `FILE.part` for the next
    try), `VerificationError` (wrong sha256: nothing is kept), `ResourceError` (folder not writable, disk full).
    """
    into = Path(into)
    target = into / entry.file
    if target.exists():
        return _already_there(entry, target)
    if not entry.url.startswith(("https://", "http://")):
        raise UsageError(
            f"the address of '{entry.name}' is not a web address: {entry.url}", hint="correct the catalogue"
        )
    part, tag = into / f"{entry.file}.part", into / f"{entry.file}.part.etag"
    try:
        into.mkdir(parents=True, exist_ok=True)
        _download(entry, part, tag, report or (lambda done, total: None))
        digest = hash_file(part).sha256
        if entry.sha256 is not None and digest != entry.sha256:
            part.unlink()
            tag.unlink(missing_ok=True)
            raise VerificationError(
                f"the download of '{entry.name}' has sha256 {digest}, not the {entry.sha256} of the catalogue; "
                "nothing was kept",
                hint=f"try again; if it stays so, the file at {entry.url} has changed",
            )
        part.replace(target)
        tag.unlink(missing_ok=True)
    except OSError as error:
        message = f"cannot write {entry.file} to {into}: {error.strerror or error}"
        raise ResourceError(
            message, hint="check free space and permissions, or choose another --datasets-dir"
        ) from error
    return _fetched(entry, target, digest, downloaded=True)


def _already_there(entry: CatalogEntry, target: Path) -> Fetched:
    digest = hash_file(target).sha256
    if entry.sha256 is not None and digest != entry.sha256:
        raise VerificationError(
            f"{target} is there already, but its sha256 is {digest} and not the {entry.sha256} of '{entry.name}'",
            hint="move it away and fetch again",
        )
    return _fetched(entry, target, digest, downloaded=False)


def _fetched(entry: CatalogEntry, target: Path, digest: str, *, downloaded: bool) -> Fetched:
    return Fetched(
        name=entry.name,
        path=target,
        sha256=digest,
        bytes=target.stat().st_size,
        verified=digest == entry.sha256,
        downloaded=downloaded,
    )


def _download(entry: CatalogEntry, part: Path, tag: Path, report: Callable[[float, float | None], None]) -> None:
    """Bring `part` up to the whole file."""
    done = part.stat().st_size if part.exists() else 0
    known_tag = tag.read_text(encoding="utf-8") if tag.exists() else ""
    if done and not (known_tag or entry.sha256):
        done = 0  # nothing would tell whether the rest belongs to the same file
    headers = {"User-Agent": "gram-forecaster", "Accept-Encoding": "identity"}
    if done:
        headers |= {"Range": f"bytes={done}-"} | ({"If-Range": known_tag} if known_tag else {})
    try:
        with urllib.request.urlopen(urllib.request.Request(entry.url, headers=headers), timeout=TIMEOUT) as response:
            resumed = response.status == http.client.PARTIAL_CONTENT
            done = done if resumed else 0
            left = response.headers.get("Content-Length")
            total = None if left is None else done + int(left)
            if not response.headers.get("ETag", "").startswith("W/"):  # a weak tag does not promise equal bytes
                tag.write_text(response.headers.get("ETag", ""), encoding="utf-8")
            _copy(response, part, done, total, report)
    except urllib.error.HTTPError as error:
        if error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
            part.unlink()  # longer than the file is now, or already whole: start again
            tag.unlink(missing_ok=True)
            _download(entry, part, tag, report)
            return
        raise ServiceError(
            f"{entry.url} answers {error.code} {error.reason}", hint="see whether the address is still right"
        ) from error
    except (urllib.error.URLError, TimeoutError, ConnectionError, ssl.SSLError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        raise ServiceError(
            f"{entry.url} cannot be fetched: {reason}", hint="check the network and run the command again"
        ) from error


def _copy(
    response: http.client.HTTPResponse,
    part: Path,
    done: int,
    total: int | None,
    report: Callable[[float, float | None], None],
) -> None:
    with part.open("ab" if done else "wb") as file:
        report(done, total)
        while block := response.read(CHUNK):
            file.write(block)
            done += len(block)
            report(done, total)
    if total is not None and done < total:
        raise http.client.IncompleteRead(b"", total - done)
