"""A service that goes on for long: what it follows, what may go wrong beside it, and what it leaves behind."""

from __future__ import annotations

import gc
import json
import shutil
import socket
import ssl
import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from memory_fixtures import append, between, built, queries_at, wide_table
from service_fixtures import CERTIFICATES, refresh, wait_until, whole_service

from memory_index import access
from memory_index.access import Access, Certificate, KnownTokens, Token
from memory_index.errors import NotFoundError, ServiceError, UsageError
from memory_index.local import LocalMemory
from memory_index.remote import RemoteMemory
from memory_index.service import serving, status
from memory_index.service.calls import REFUSED, Call
from memory_index.service.hosted import Hosting
from memory_index.service.serving import Service
from memory_index.service.settings import Settings
from memory_index.service.status import LINES_PER_S, AccessLog
from memory_index.types import Queries
from memory_index.versions.store import Store

SECRET, OTHER = "a-token-of-the-service-1", "another-token-of-it-2"


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "LOOK_S", 0.05)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("serving")
    built(folder)
    return folder


def some() -> Queries:
    return queries_at(wide_table(), range(320, 360, 4))


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


# What is followed


def test_versions_with_one_fingerprint(tmp_path):
    """Two numbers of the same data: the newer one is opened once, and told by its own number."""
    built(tmp_path)
    hosting = Hosting(tmp_path, ["small", "small@1"])
    second = built(tmp_path)
    assert second.ref == "small@2"
    assert refresh(hosting) == ["small@latest means small@2 now, small@1 before"]
    before = open_files()
    for _ in range(3):
        assert refresh(hosting) == []
    assert open_files() == before
    assert hosting.versions() == {"small@latest": "small@2", "small@1": "small@1"}
    assert hosting.open("small@1").fingerprint == hosting.open("small@2").fingerprint
    assert [hosting.open(ref).ref for ref in ("small@1", "small@2", "small")] == ["small@1", "small@2", "small@2"]
    hosting.close()
    assert hosting.versions() == {}


def test_an_index_that_is_removed_and_built_anew(tmp_path):
    built(tmp_path)
    hosting = Hosting(tmp_path, ["small"])
    first = hosting.open("small")
    shutil.rmtree(tmp_path / "small")
    again = append(Store(tmp_path), built(tmp_path).ref, between(wide_table(), 0, 300))
    (tmp_path / "small" / "000001").rename(tmp_path / "old")
    again.path.rename(tmp_path / "small" / "000001")
    said = refresh(hosting)
    assert said == ["small@latest is another version by now: somebody has removed the index and built it anew"]
    assert hosting.versions() == {"small@latest": "small@1"}
    assert hosting.open("small").fingerprint != first.fingerprint
    assert hosting.open(first.fingerprint) is first
    hosting.close()


def test_a_memory_that_fails_is_opened_anew(folder, monkeypatch):
    """A Milvus that was loaded anew has to be opened again."""
    search, is_well = LocalMemory.search, threading.Event()

    def stale(self, *args, **options):
        if not is_well.is_set():
            raise ServiceError("it is being loaded anew", hint="open it again")
        return search(self, *args, **options)

    with whole_service(folder) as service:
        memory, before = RemoteMemory(f"{service.address}/small"), service.hosting.open("small")
        monkeypatch.setattr(LocalMemory, "search", stale)
        with pytest.raises(ServiceError, match="it is being loaded anew"):
            memory.search(some(), 3)
        wait_until(lambda: service.hosting.open("small") is not before)
        is_well.set()
        assert memory.search(some(), 3).valid.any()


def test_a_token_is_known_by_itself(folder, tmp_path):
    """Not by its name, which is the number of its line where it has none: clients go on."""
    path = tmp_path / "tokens"
    path.write_text(SECRET)
    notes: list[str] = []
    with whole_service(folder, token_file=path, notes=notes) as service:
        memory = RemoteMemory(f"{service.address}/small", access=Access(token=SECRET))
        memory.search(some(), 3)
        path.write_text(f"# new since today\ntrainer {OTHER}\n{SECRET}\n")
        wait_until(lambda: any("2 tokens are known now" in note for note in notes))
        assert memory.search(some(), 3).valid.any()
    assert Token(name="1", token=SECRET) == Token(name="3", token=SECRET)


def test_tokens_are_followed_whatever_else_fails(folder, tmp_path, monkeypatch):
    """Nobody reads what is said any more, and the folder cannot be looked at: a token that is taken out is refused."""

    def unheard(text: str) -> None:
        raise BrokenPipeError(text)

    def fail(self) -> None:
        raise MemoryError

    monkeypatch.setattr(Hosting, "close_unused", fail)
    path = tmp_path / "tokens"
    path.write_text(f"{SECRET}\n{OTHER}")
    service = Service(folder, ["small"], Settings(port=0, token_file=path), threads=1, note=unheard)
    try:
        wait_until(lambda: "versions" in service.status()["troubles"])
        path.write_text(SECRET)
        wait_until(lambda: len(service.tokens()) == 1)
        with pytest.raises(ServiceError, match="refuses this token"):
            RemoteMemory(f"{service.address}/small", access=Access(token=OTHER))
        assert service.status()["troubles"]["versions"] == "cannot look at the versions: MemoryError: "
    finally:
        service.close()


def test_a_renewed_certificate_is_shown(folder, tmp_path, monkeypatch):
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    shutil.copy(CERTIFICATES / "server.key", key)
    shutil.copy(CERTIFICATES / "server.pem", cert)
    with whole_service(folder, tls_cert=cert, tls_key=key) as service:
        where = ("127.0.0.1", int(service.address.rpartition(":")[2]))

        def shown() -> bytes:
            return ssl.PEM_cert_to_DER_cert(ssl.get_server_certificate(where))

        def holds(name: str) -> bytes:
            return ssl.PEM_cert_to_DER_cert((CERTIFICATES / name).read_text())

        assert shown() == holds("server.pem")
        # One that is wrong changes nothing and is said; the next one is taken.
        shutil.copy(CERTIFICATES / "expired.pem", cert)
        wait_until(lambda: "expired" in service.status()["troubles"].get("certificate", ""))
        assert shown() == holds("server.pem")
        shutil.copy(CERTIFICATES / "renewed.pem", cert)
        wait_until(lambda: shown() == holds("renewed.pem"))
        wait_until(lambda: service.status()["troubles"] == {})
        monkeypatch.setattr(access, "SOON_S", 200 * 365 * 86400.0)
        wait_until(lambda: "is valid until 2121-01-01" in service.status()["troubles"].get("certificate", ""))


def test_what_handshakes_use_is_not_changed(tmp_path, monkeypatch):
    """OpenSSL lets nobody change a context while another thread shakes hands with it: the process would end."""
    cert, key, load, changed = tmp_path / "cert.pem", tmp_path / "key.pem", ssl.SSLContext.load_cert_chain, []
    shutil.copy(CERTIFICATES / "server.key", key)
    shutil.copy(CERTIFICATES / "server.pem", cert)
    certificate = Certificate(cert, key)

    def noted(context: ssl.SSLContext, *arguments: object, **options: object) -> None:
        changed.append(context)
        load(context, *arguments, **options)

    monkeypatch.setattr(ssl.SSLContext, "load_cert_chain", noted)
    shutil.copy(CERTIFICATES / "renewed.pem", cert)
    assert "has changed" in certificate.refresh()
    assert changed
    assert certificate.context not in changed


def test_questions_leave_nothing_behind(folder):
    """Neither objects nor buffers of Arrow, once what is kept has been made."""
    with whole_service(folder) as service:
        memory = RemoteMemory(f"{service.address}/small")

        def held_after(num: int) -> tuple[int, int]:
            for n in range(num):
                memory.search(queries_at(wide_table(), range(60, 61 + n % 30)), 1 + n % 5, min_gap=n % 3)
            gc.collect()
            return len(gc.get_objects()), pa.total_allocated_bytes()

        (objects, num_bytes), (more_objects, more_bytes) = held_after(30), held_after(150)
    assert more_objects - objects < 230  # the first ones make what is kept
    assert more_bytes - num_bytes < 100_000


# What goes wrong beside it


def test_a_log_whose_folder_goes_away(folder, tmp_path):
    notes: list[str] = []
    (tmp_path / "logs").mkdir()
    with whole_service(folder, access_log=tmp_path / "logs" / "access.log", notes=notes) as service:
        memory = RemoteMemory(f"{service.address}/small", access=Access(deadline_s=5))
        shutil.rmtree(tmp_path / "logs")
        for _ in range(2):
            assert memory.search(some(), 3).valid.any()
        assert len([note for note in notes if "access.log are lost" in note]) == 1
    with pytest.raises(UsageError, match="is a folder"):
        AccessLog(tmp_path)


def test_calls_without_a_token_do_not_fill_the_log(tmp_path, monkeypatch):
    seconds = iter(np.repeat([5.0, 6.0], [100, 30]))
    monkeypatch.setattr(status, "time", type("Clock", (), {"monotonic": staticmethod(lambda: next(seconds))}))
    log = AccessLog(tmp_path / "access.log")
    for _ in range(130):
        log.call(Call(method="open", status=REFUSED))
    log.close()
    lines = [json.loads(line) for line in (tmp_path / "access.log").read_text().splitlines()]
    assert len(lines) == 2 * LINES_PER_S
    assert lines[LINES_PER_S]["left_out"] == 100 - LINES_PER_S


# What is left behind


def test_what_cannot_begin_leaves_nothing(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    Hosting(folder, ["small"]).close()
    before = open_files()
    with pytest.raises(NotFoundError):
        Hosting(folder, ["small", "small@9"])
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ServiceError, match="is used by another program") as refused:
            Service(folder, ["small"], Settings(port=port))
    assert refused.value.hint == "choose another with --port, or --port 0 for any that is free"
    assert list(tmp_path.iterdir()) == []
    wait_until(lambda: open_files() <= before)


def test_what_ends_leaves_nothing(folder):
    names = {thread.name for thread in threading.enumerate()}
    with whole_service(folder) as service:
        before = open_files()
        RemoteMemory(f"{service.address}/small").search(some(), 3)
    wait_until(lambda: not {thread.name for thread in threading.enumerate()} - names - {"read_0", "search_0"})
    wait_until(lambda: open_files() < before)


def test_a_file_of_tokens_that_is_gone_changes_nothing(tmp_path):
    path = tmp_path / "tokens"
    path.write_text(SECRET)
    known = KnownTokens(path)
    path.unlink()
    assert "the tokens stay as they are" in known.refresh()
    assert known() == (Token(name="1", token=SECRET),)
    assert known.refresh() == ""
