"""The catalogue, and downloads from a server in this process: resumed, checked, and never half under the final name."""

from __future__ import annotations

import hashlib
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from memory_index.errors import DataError, NotFoundError, ResourceError, ServiceError, UsageError, VerificationError
from memory_index.tables.catalog import CatalogEntry, fetch, find_entry, read_catalog, shipped

CONTENT = b"date,a\n" + b"".join(b"2024-01-01 00:%02d,%d\n" % (minute, minute) for minute in range(60)) * 400
DIGEST = hashlib.sha256(CONTENT).hexdigest()


@dataclass
class Server:
    """What the server sends, and what it was asked."""

    url: str = ""
    content: bytes = CONTENT
    etag: str | None = '"one"'
    break_after: int | None = None  # bytes of one answer after which the connection is cut
    ranges: list[str | None] = field(default_factory=list)


@pytest.fixture
def server():
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            wanted = self.headers.get("Range")
            state.ranges.append(wanted)
            if self.path != "/set.csv":
                self.send_error(404)
                return
            if self.headers.get("If-Range") not in (None, state.etag):
                wanted = None
            start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1]) if wanted else 0
            if start >= len(state.content):
                self.send_error(416)
                return
            body = state.content[start:]
            self.send_response(206 if wanted else 200)
            self.send_header("Content-Length", str(len(body)))
            if state.etag:
                self.send_header("ETag", state.etag)
            self.end_headers()
            self.wfile.write(body[: state.break_after])

        def log_message(self, *arguments):
            pass

    http_server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=http_server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    state.url = f"http://127.0.0.1:{http_server.server_port}/set.csv"
    yield state
    http_server.shutdown()
    thread.join()
    http_server.server_close()


def entry(url: str, sha256: str | None = DIGEST) -> CatalogEntry:
    return CatalogEntry(
        name="Set",
        file="set.csv",
        url=url,
        licence="none",
        citation="none",
        description="",
        step="min",
        rows=1,
        variates=1,
        sha256=sha256,
    )


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_shipped_catalogue():
    catalog = read_catalog()
    assert {"ETTh1", "ETTh2", "ETTm1", "ETTm2", "Weather", "Exchange", "ILI", "Electricity", "Traffic"} == {
        e.name for e in catalog
    }
    for each in catalog:
        assert each.url.startswith("https://")
        assert each.licence
        assert each.citation
        assert each.rows > 0
        assert each.sha256 is None or re.fullmatch("[0-9a-f]{64}", each.sha256)
    assert find_entry("etth1", catalog).sha256.startswith("f18de3ad")
    with pytest.raises(NotFoundError, match="no set 'ETTh3'") as caught:
        find_entry("ETTh3", catalog)
    assert "ETTh" in caught.value.hint


def test_a_catalogue_that_is_none(tmp_path):
    for text in ("[a", "[a]\nfile = 'x'\n"):
        (tmp_path / "catalog.toml").write_text(text)
        with pytest.raises(DataError, match="not a catalogue"):
            read_catalog(tmp_path / "catalog.toml")


def test_shipped_files_are_found():
    assert shipped("sample.csv").read_text().startswith("date,")
    with pytest.raises(NotFoundError, match=r"'other\.csv' is in neither"):
        shipped("other.csv")


def test_fetch_and_fetch_again(server, tmp_path):
    seen = []
    first = fetch(entry(server.url), tmp_path / "new", report=lambda done, total: seen.append((done, total)))
    assert (first.verified, first.downloaded, first.sha256, first.bytes) == (True, True, DIGEST, len(CONTENT))
    assert first.path.read_bytes() == CONTENT
    assert seen[0] == (0, len(CONTENT))
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    assert names(tmp_path / "new") == ["set.csv"]
    again = fetch(entry(server.url), tmp_path / "new")
    assert (again.verified, again.downloaded) == (True, False)
    assert len(server.ranges) == 1


def test_an_unknown_hash_is_reported_and_not_called_verified(server, tmp_path):
    fetched = fetch(entry(server.url, None), tmp_path)
    assert (fetched.verified, fetched.sha256) == (False, DIGEST)


@pytest.mark.parametrize("sha256", [DIGEST, None])
def test_a_download_that_broke_off_goes_on_where_it_stopped(server, tmp_path, sha256):
    server.break_after = 1000
    with pytest.raises(ServiceError, match="cannot be fetched"):
        fetch(entry(server.url, sha256), tmp_path)
    assert "set.csv" not in names(tmp_path)
    assert (tmp_path / "set.csv.part").read_bytes() == CONTENT[:1000]
    server.break_after = None
    assert fetch(entry(server.url, sha256), tmp_path).path.read_bytes() == CONTENT
    assert server.ranges == [None, "bytes=1000-"]
    assert names(tmp_path) == ["set.csv"]


def test_two_versions_of_a_file_are_not_spliced(server, tmp_path):
    server.break_after = 1000
    with pytest.raises(ServiceError):
        fetch(entry(server.url, None), tmp_path)
    server.content, server.etag, server.break_after = CONTENT[::-1], '"two"', None
    assert fetch(entry(server.url, None), tmp_path).path.read_bytes() == CONTENT[::-1]


def test_without_hash_and_tag_a_download_starts_again(server, tmp_path):
    server.etag = None
    (tmp_path / "set.csv.part").write_bytes(b"something else")
    assert fetch(entry(server.url, None), tmp_path).path.read_bytes() == CONTENT
    assert server.ranges == [None]


def test_a_part_longer_than_the_file_starts_again(server, tmp_path):
    (tmp_path / "set.csv.part").write_bytes(CONTENT + b"more")
    assert fetch(entry(server.url), tmp_path).path.read_bytes() == CONTENT


def test_a_wrong_hash_leaves_nothing_behind(server, tmp_path):
    with pytest.raises(VerificationError, match="nothing was kept"):
        fetch(entry(server.url, "0" * 64), tmp_path)
    assert names(tmp_path) == []


def test_a_wrong_file_that_is_there_is_not_overwritten(server, tmp_path):
    (tmp_path / "set.csv").write_text("mine")
    with pytest.raises(VerificationError, match="is there already"):
        fetch(entry(server.url), tmp_path)
    assert (tmp_path / "set.csv").read_text() == "mine"
    assert server.ranges == []


def test_addresses_that_do_not_answer(server, tmp_path):
    with pytest.raises(ServiceError, match="answers 404"):
        fetch(entry(server.url + "x"), tmp_path)
    with pytest.raises(ServiceError, match="cannot be fetched"):
        fetch(entry("http://127.0.0.1:9/set.csv"), tmp_path)
    with pytest.raises(UsageError, match="not a web address"):
        fetch(entry("file:///etc/hostname"), tmp_path)
    assert names(tmp_path) == []


def test_a_folder_that_cannot_be_made(server, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ResourceError, match=r"cannot write set\.csv") as caught:
        fetch(entry(server.url), tmp_path / "file")
    assert "--datasets-dir" in caught.value.hint
