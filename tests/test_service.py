"""A version behind a service answers like one on this machine, or says clearly why not; a service that lies is found.

How it is started and ended as a program is tested in `test_cli_serve.py`, what hostile clients do to it in
`test_service_abuse.py`, forecasts in `test_service_runs.py`, and what every memory answers in `test_contract.py`.
"""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import httpx
import numpy as np
import pyarrow as pa
import pytest
from memory_fixtures import (
    NUM_TRAINING,
    append,
    appended,
    assert_same,
    between,
    built,
    open_version,
    poisoned,
    queries_at,
    wide_table,
)
from service_fixtures import CERTIFICATES, PATIENCE_S, page, refresh, served, wait_until, whole_service
from starlette.requests import ClientDisconnect

from memory_index import messages, remote, wire
from memory_index.access import Access, read_access
from memory_index.errors import (
    BusyError,
    DataError,
    IncompatibleError,
    NotFoundError,
    ResourceError,
    ServiceError,
    UsageError,
    VerificationError,
)
from memory_index.leakage import LeakError, Policy
from memory_index.local import LocalMemory
from memory_index.remote import RemoteMemory
from memory_index.service.app import App
from memory_index.service.hosted import Hosting
from memory_index.service.refusals import Places
from memory_index.service.serving import Service
from memory_index.service.settings import Settings
from memory_index.service.turns import Budget, Turns
from memory_index.types import Filter, Queries
from memory_index.versions.store import Store
from memory_index.wire import Limits, Question

ORIGINS = range(NUM_TRAINING - 10, NUM_TRAINING + 30)
OTHER_REFS = ["small@2", "other@1", "small", "small@latest", "small@1@1", "", "small@" + "9" * 90_000]
SECRET, OTHER = "a-token-of-the-service-1", "another-token-of-it-2"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    made = tmp_path_factory.mktemp("service")
    built(made)
    return made


@pytest.fixture(scope="module")
def local(folder) -> LocalMemory:
    return open_version(Store(folder).resolve("small"), threads=1)


@pytest.fixture(scope="module")
def address(folder):
    with served(folder, ["small"]) as found:
        yield f"{found}/small"


@pytest.fixture
def memory(address) -> RemoteMemory:
    return RemoteMemory(address)


def some(policy: Policy = Policy.CAUSAL, origins: range = ORIGINS) -> Queries:
    return queries_at(wide_table(), origins, policy)


def question(queries: Queries, k: int = 3) -> Question:
    return Question(queries, k, None, None, None, 0, 5.0)


def message(queries: Queries, **entries: object) -> bytes:
    """A question as it travels, with other entries in its document."""
    return changed(wire.write_question(question(queries)), **entries)


def parts(content: bytes) -> tuple[pa.RecordBatch, dict]:
    """The batch of a message, and its document."""
    batch = next(iter(pa.ipc.open_stream(content)))
    return batch, json.loads(batch.schema.metadata[wire.BESIDE])


def whole(batch: pa.RecordBatch, document: object) -> bytes:
    """A message of a batch and a document, whatever they are."""
    told = document if isinstance(document, bytes) else json.dumps(document).encode()
    schema = batch.schema.with_metadata({wire.BESIDE: told})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, schema) as writer:
        writer.write_batch(pa.RecordBatch.from_arrays(batch.columns, schema=schema))
    return sink.getvalue().to_pybytes()


def changed(content: bytes, **entries: object) -> bytes:
    """The message with another document."""
    batch, document = parts(content)
    return whole(batch, document | entries)


def post(address: str, content: bytes, kind: str = wire.ARROW, **headers: str) -> httpx.Response:
    """A question asked without a client of ours. address: of a version."""
    service, _, ref = address.rpartition("/")
    with httpx.Client(trust_env=False, timeout=PATIENCE_S) as client:
        return client.post(
            f"{service}/v1/indexes/{ref}/search", content=content, headers={"content-type": kind, **headers}
        )


class Held(NamedTuple):
    """Searches of a service: what is asked, that one is under way, and what lets it go on."""

    asked: list[int]
    inside: threading.Event
    go_on: threading.Event


@pytest.fixture
def held(monkeypatch) -> Held:
    """Every search waits until it is let go."""
    held, search = Held([], threading.Event(), threading.Event()), App._found

    def slow(self, memory, question, write):
        held.asked.append(question.k)
        held.inside.set()
        held.go_on.wait(PATIENCE_S)
        return search(self, memory, question, write)

    monkeypatch.setattr(App, "_found", slow)
    return held


# The same answers


@pytest.mark.parametrize("policy", Policy)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"scopes": ("own",)},
        {"scopes": ("joint", "pooled"), "views": (36,)},
        {"views": (12,), "min_gap": 24},
        {"min_gap": 2**62},
        {"scopes": ("pooled",), "where": Filter(series_id=("load", "beat"))},
        {"where": Filter(after=np.datetime64("2021-03-05", "ns"), before=np.datetime64("2021-03-08", "ns"))},
    ],
    ids=str,
)
def test_an_answer_is_that_of_the_version_bit_for_bit(memory, local, policy, options):
    found, expected = (each.search(some(policy), 5, **options) for each in (memory, local))
    assert found.spaces == expected.spaces
    assert found.fingerprint == expected.fingerprint
    assert_same(found, expected)
    for name in ("temperature", "weights"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
    kept = {"on_empty": "last-value"}
    np.testing.assert_array_equal(found.forecast(**kept), expected.forecast(**kept))
    np.testing.assert_array_equal(found.quantiles((0.1, 0.5), **kept), expected.quantiles((0.1, 0.5), **kept))
    np.testing.assert_array_equal(found.contexts(), expected.contexts())


def test_the_rest_of_a_memory_is_the_same(memory, local):
    np.testing.assert_array_equal(memory.linear_forecast(some()), local.linear_forecast(some()))
    np.testing.assert_array_equal(memory.scale.std, local.scale.std)
    assert memory.manifest == local.manifest
    np.testing.assert_array_equal(memory.windows.values, local.windows.values)


@pytest.mark.parametrize("gaps", [(0, slice(None), 3), (slice(None), 1, slice(5, 9)), (4, 0, slice(None))], ids=str)
def test_missing_cells_travel(memory, local, gaps):
    """Of all series at one moment, of one series at all, and a window of which nothing is left."""
    context = some().context.copy()
    context[gaps] = np.nan
    queries = replace(some(), context=context)
    try:
        expected = local.search(queries, 4)
    except DataError as refused:
        with pytest.raises(DataError, match=re.escape(str(refused)[:60])):
            memory.search(queries, 4)
    else:
        assert_same(memory.search(queries, 4), expected)


def test_an_unseen_series_is_answered_by_all(memory, local):
    unseen = replace(some(), series_id=np.array(["load", "new", "flat"]))
    assert_same(memory.search(unseen, 4), local.search(unseen, 4))
    for each in (memory, local):
        with pytest.raises(IncompatibleError, match="'new' is not in this memory"):
            each.search(unseen, 4, scopes=("own",))


def test_a_large_batch_is_asked_in_parts(folder, local, monkeypatch):
    asked = []
    monkeypatch.setattr(App, "_found", _recording(asked))
    for limits in (Limits(max_windows=21), Limits(max_message=9000), Limits(max_slots=1000)):
        asked.clear()
        with served(folder, ["small"], limits=limits) as service:
            memory = RemoteMemory(f"{service}/small")
            assert_same(memory.search(some(origins=range(100, 200)), 5), local.search(some(origins=range(100, 200)), 5))
            none = some(origins=range(0))
            assert memory.search(none, 5).row.shape == local.search(none, 5).row.shape
        assert len(asked) > 4
        assert max(asked) <= 16


def _recording(asked: list[int]) -> Callable[..., object]:
    original = App._found

    def search(self, memory, question, write):
        asked.append(len(question.queries))
        return original(self, memory, question, write)

    return search


def test_eight_threads_of_one_client(memory, local):
    expected = [local.search(some(origins=range(90 + n, 110 + n)), 4) for n in range(8)]

    def ask(number: int) -> None:
        for _ in range(5):
            assert_same(memory.search(some(origins=range(90 + number, 110 + number)), 4), expected[number])

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(ask, range(8)))


@pytest.mark.parametrize("steps", [0, 25])
def test_what_is_later_than_the_origin_does_not_matter(tmp_path, steps):
    """The future of a version that grows is replaced by garbage; an answer as of before does not change by a bit."""
    origin = wide_table().series[0].times[NUM_TRAINING - 1 + steps]
    answers = []
    for name, table in (("as-it-is", wide_table()), ("poisoned", poisoned(wide_table(), origin, seed=3))):
        appended(tmp_path / name, built(tmp_path / name), NUM_TRAINING + steps + 1, 330, table=table)
        with served(tmp_path / name, ["small"]) as service:
            found = RemoteMemory(f"{service}/small").search(some(origins=range(200, NUM_TRAINING + steps)), 5)
        answers.append((found.distance, found.forecast()))
    for one, other in zip(*answers, strict=True):
        np.testing.assert_array_equal(one, other)


# A service that lies


Lie = Callable[[pa.RecordBatch, dict], bytes]


def _with(name: str, change: Callable[[np.ndarray], None]) -> Lie:
    """An answer with one column changed in place."""

    def lie(batch: pa.RecordBatch, document: dict) -> bytes:
        at = batch.schema.get_field_index(name)
        told = batch[at].flatten().to_numpy().copy()
        change(told)
        column = pa.ListArray.from_arrays(batch[at].offsets, pa.array(told))
        return whole(batch.set_column(at, batch.schema.field(at), column), document)

    return lie


def _set(at: int, value: float) -> Callable[[np.ndarray], None]:
    return lambda values: values.__setitem__(at, value)


def _swap(values: np.ndarray) -> None:
    values[[0, 1]] = values[[1, 0]]


def _half_lists(batch: pa.RecordBatch, document: dict) -> bytes:
    columns = [
        pa.array([each[: len(each) // 2] for each in column.to_pylist()], column.type) for column in batch.columns
    ]
    return whole(pa.RecordBatch.from_arrays(columns, schema=batch.schema), document)


def _missing(batch: pa.RecordBatch, document: dict) -> bytes:
    column = pa.array([[None, *batch["row"][0].as_py()[1:]]], batch["row"].type)
    return whole(batch.set_column(0, batch.schema.field(0), column), document)


def _telling(**entries: object) -> Lie:
    return lambda batch, document: whole(batch, document | entries)


LIES: dict[str, Lie] = {
    "another version": _telling(fingerprint="0" * 64),
    "no version": lambda batch, document: whole(batch, {}),
    "another k": _telling(k=5),
    "other spaces": _telling(spaces=[["own", 12]]),
    "no spaces": lambda batch, document: whole(
        pa.RecordBatch.from_arrays([pa.array([[]], each.type) for each in batch.schema], schema=batch.schema),
        document | {"spaces": []},
    ),
    "unknown spaces": _telling(spaces=[["own", 13]] * 6),
    "spaces in another order": _telling(
        spaces=[[scope, view] for scope in ("own", "joint", "pooled") for view in (36, 12)]
    ),
    "spaces that are none": _telling(spaces=7),
    "no document": lambda batch, document: whole(batch, b"[1, 2"),
    "nothing but brackets": lambda batch, document: whole(batch, b"[" * 100_000),
    "another document": lambda batch, document: whole(batch, b"3"),
    "no line": lambda batch, document: whole(batch.slice(0, 0), document),
    "no answer at all": lambda batch, document: b"<html>",
    "other columns": lambda batch, document: whole(batch.select([0, 1]), document),
    "half the neighbours": _half_lists,
    "a missing neighbour": _missing,
    "far too much": lambda batch, document: whole(batch, document) + b"x" * 1_000_000,
    "two answers": lambda batch, document: whole(pa.concat_batches([batch, batch]), document),
    "a row that is not there": _with("row", _set(0, 10**6)),
    "a row id below -1": _with("row", _set(0, -2)),
    "a row twice": _with("row", lambda row: row.__setitem__(0, row[1])),
    "NaN for a distance": _with("distance", _set(0, np.nan)),
    "a distance below 0": _with("distance", _set(0, -1)),
    "NaN for a part": _with("shape_distance", _set(0, np.nan)),
    "no distance": _with("value_distance", _set(0, np.inf)),
    "not sorted": _with("distance", _swap),
    "a location that is none": _with("query_location", _set(0, np.nan)),
    "a spread below 0": _with("query_spread", _set(0, -1)),
    "a spread of 0": _with("query_spread", _set(0, 0)),
}


@pytest.mark.parametrize("name", LIES)
def test_an_answer_that_no_memory_gives_is_not_believed(folder, address, monkeypatch, name):
    truth = wire.write_answer
    monkeypatch.setattr(wire, "write_answer", lambda neighbours: LIES[name](*parts(truth(neighbours))))
    memory = RemoteMemory(address)
    with pytest.raises((ServiceError, UsageError)) as refused:
        memory.search(some(), 4)
    assert not isinstance(refused.value, BusyError)
    monkeypatch.undo()
    assert memory.search(some(), 4).valid.any()


def test_an_answer_with_a_row_of_the_future_is_never_accepted(address, local, monkeypatch):
    truth = wire.write_answer
    late = _with("row", _set(3, len(local.windows) - 1))
    monkeypatch.setattr(wire, "write_answer", lambda neighbours: late(*parts(truth(neighbours))))
    with pytest.raises(LeakError, match="not admissible under 'causal'"):
        RemoteMemory(address).search(some(origins=range(150, 160)), 4)


def test_files_that_are_not_those_of_the_version(folder, monkeypatch):
    """Not even as large a one: what comes beyond the size that the manifest names is not written."""
    remote._windows.clear()
    written = []

    def hash_file(path):
        written.append(path.stat().st_size)

    counted = SimpleNamespace(hash_file=hash_file, refusals_named=remote.files.refusals_named)
    monkeypatch.setattr(remote, "files", counted)

    file = App._get

    async def endless(self, request, call, take):
        async def pieces():
            for _ in range(100):
                yield b"x" * 100_000

        return (await file(self, request, call, take))._replace(content=(10_000_000, pieces()))

    monkeypatch.setattr(App, "_get", endless)
    with served(folder, ["small"]) as service, pytest.raises(VerificationError, match="is not the one of"):
        RemoteMemory(f"{service}/small").search(some(), 4)
    assert max(written) < 1_000_000


@pytest.mark.parametrize(
    ("told", "error", "says"),
    [
        ({"protocol": 3}, IncompatibleError, "speaks protocol 3, this program 2"),
        ({"manifest": {}}, VerificationError, "is not a manifest"),
        ({"manifest": 3}, VerificationError, "is not a manifest"),
        ({"limits": {"max_cats": 3}}, ServiceError, "cannot be read"),
        ({"limits": []}, ServiceError, "cannot be read"),
        (b"[" * 100_000, ServiceError, "cannot be read"),
        (b"<html>hello</html>", ServiceError, "cannot be read"),
        *[({"ref": ref}, ServiceError, "was asked for small@1 and has opened") for ref in OTHER_REFS],
    ],
    ids=lambda value: str(value)[:30],
)
def test_an_opening_that_cannot_be_read(address, monkeypatch, told, error, says):
    answer = App._open

    async def lying(self, request, call, take):
        reply = await answer(self, request, call, take)
        content = told if isinstance(told, bytes) else json.dumps(json.loads(reply.content) | told).encode()
        return reply._replace(content=content)

    monkeypatch.setattr(App, "_open", lying)
    with pytest.raises(error, match=says) as refused:
        RemoteMemory(f"{address}@1")
    assert len(str(refused.value)) < 300


@pytest.mark.parametrize("asked", ["small", "small@latest", "small@1", "small@0001"])
def test_a_version_may_be_asked_for_in_any_form(address, asked):
    service = address.rpartition("/")[0]
    assert RemoteMemory(f"{service}/{asked}").ref == f"{service}/small@1"


# Which version


def test_a_client_stays_with_the_version_that_it_opened(tmp_path, local, monkeypatch):
    first = built(tmp_path)
    Store(tmp_path).set_alias("small", 1, "prod")
    notes: list[str] = []
    with whole_service(tmp_path, ["small@prod", "small"], notes=notes) as service:
        old = RemoteMemory(f"{service.address}/small@prod")
        second = append(Store(tmp_path), first.ref, between(wide_table(), 0, 300))
        Store(tmp_path).set_alias("small", 2, "prod")
        wait_until(lambda: service.hosting.versions() == {"small@prod": "small@2", "small@latest": "small@2"})
        new = RemoteMemory(f"{service.address}/small@prod")
        assert (old.ref[-7:], new.ref[-7:]) == ("small@1", "small@2")
        assert new.fingerprint == second.manifest.fingerprint
        assert_same(old.search(some(), 4), local.search(some(), 4))
        assert_same(new.search(some(), 4), open_version(second, threads=1).search(some(), 4))
        assert any("small@prod means small@2 now, small@1 before" in note for note in notes)
        # One that names the number still opens the old one.
        assert RemoteMemory(f"{service.address}/small@1").fingerprint == old.fingerprint


def test_a_version_that_is_removed_while_it_is_served(tmp_path, local):
    append(Store(tmp_path), built(tmp_path).ref, between(wide_table(), 0, 300))
    with served(tmp_path, ["small@1"]) as service:
        before = RemoteMemory(f"{service}/small@1")
        Store(tmp_path).remove("small@1")
        for memory in (before, RemoteMemory(f"{service}/small@1")):
            remote._windows.clear()
            assert_same(memory.search(some(), 4), local.search(some(), 4))


def test_old_versions_are_let_go_when_nobody_asks_them(tmp_path):
    first = built(tmp_path)
    hosting = Hosting(tmp_path, ["small"], threads=1, kept_s=0.1)
    old = hosting.open("small")
    append(Store(tmp_path), first.ref, between(wide_table(), 0, 300))
    with hosting.using(old):
        time.sleep(0.15)
        refresh(hosting)
        assert hosting.open(old.fingerprint) is old
    time.sleep(0.15)
    refresh(hosting)
    assert old.files == {}
    with pytest.raises(ServiceError, match="no longer served"):
        hosting.open(old.fingerprint)
    with pytest.raises(NotFoundError, match="'small@1' is not served here"):
        hosting.open("small@1")
    hosting.close()


def test_a_damaged_new_version_changes_nothing(tmp_path, local):
    first, notes = built(tmp_path), []
    second = append(Store(tmp_path), first.ref, between(wide_table(), 0, 300))
    with whole_service(tmp_path, notes=notes) as service:
        keys = next(second.path.rglob("keys*"))
        shutil.copytree(second.path, tmp_path / "copy")
        (tmp_path / "copy" / keys.relative_to(second.path)).write_bytes(b"nonsense")
        (tmp_path / "copy").rename(tmp_path / "small" / "000003")
        wait_until(lambda: service.status()["troubles"])
        found = page(service.address, "/readyz")
        assert (found.status_code, found.json()["versions"]) == (200, {"small@latest": "small@2"})
        assert "small@latest" in found.json()["troubles"]
        assert len([note for note in notes if "goes on meaning small@2" in note]) == 1
        assert RemoteMemory(f"{service.address}/small").ref.endswith("small@2")


def test_a_service_that_comes_back(tmp_path, local):
    """It is waited for if it has the same version, and refused if not."""
    first, port = built(tmp_path), _free_port()
    with whole_service(tmp_path, port=port) as service:
        memory = RemoteMemory(f"{service.address}/small")
        expected = local.search(some(), 3)
        assert_same(memory.search(some(), 3), expected)
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(memory.search, some(), 3)
        time.sleep(0.5)
        with whole_service(tmp_path, port=port):
            assert_same(answer.result(PATIENCE_S), expected)
    append(Store(tmp_path), first.ref, between(wide_table(), 0, 300))
    with whole_service(tmp_path, port=port), pytest.raises(ServiceError, match="is no longer served") as refused:
        memory.search(some(), 4)
    assert not isinstance(refused.value, BusyError)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return listening.getsockname()[1]


# Who may ask


def token_file(folder: Path, *lines: str) -> Path:
    (folder / "tokens").write_text("\n".join(lines))
    return folder / "tokens"


def test_tokens(folder, local, tmp_path, capfd):
    notes: list[str] = []
    path, log = token_file(tmp_path, "# ours", f"trainer {SECRET}", OTHER), tmp_path / "access.log"
    with whole_service(folder, notes=notes, token_file=path, access_log=log) as service:
        where = f"{service.address}/small"
        memories = [RemoteMemory(where, access=Access(token=token)) for token in (SECRET, OTHER)]
        for memory in memories:
            assert_same(memory.search(some(), 3), local.search(some(), 3))
        for token, says in ((SECRET + "x", "refuses this token"), ("", "wants a token"), ("x" * 4000, "refuses this")):
            with pytest.raises(ServiceError, match=says) as refused:
                RemoteMemory(where, access=Access(token=token))
            assert refused.value.hint.startswith("--token-file FILE")
            assert not token or token not in str(refused.value) + repr(refused.value.__cause__)
        # A token that is taken out of the file is refused from the next question on.
        token_file(tmp_path, f"trainer {SECRET}")
        wait_until(lambda: len(service.tokens()) == 1)
        assert_same(memories[0].search(some(), 3), local.search(some(), 3))
        with pytest.raises(ServiceError, match="refuses this token"):
            memories[1].search(some(), 3)
        # A file that has become wrong changes nothing.
        token_file(tmp_path, "short")
        wait_until(lambda: any("the tokens stay as they are" in note for note in notes))
        memories[0].search(some(), 3)
        # Probes need no token; what is served, and what is asked, is for those who have one.
        assert page(service.address, "/healthz").text == "ok\n"
        assert page(service.address, "/readyz").json() == {"ready": True}
        assert page(service.address, "/metrics").status_code == 401
        shown = {"authorization": f"Bearer {SECRET}"}
        assert "versions" in page(service.address, "/readyz", headers=shown).json()
        assert page(service.address, "/metrics", headers=shown).status_code == 200
    told = log.read_text() + "".join(notes) + repr(memories[0].access) + repr(service.settings)
    told += "".join(capfd.readouterr())
    assert not any(token in told for token in (SECRET, OTHER))
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    asked = [line for line in lines if line["method"] == "search" and line["status"] == "ok"]
    assert {line["caller"] for line in asked} == {"trainer", "3"}
    assert sum(line["status"] == "refused" for line in lines) == 5


@pytest.mark.parametrize(
    "headers",
    [
        [("authorization", f"Bearer {SECRET}"), ("authorization", "Bearer x")],
        [("authorization", f"Basic {SECRET}")],
        [("authorization", SECRET)],
        [("authorization", f"Bearer  {SECRET}")],
        [("authorization", "Bearer")],
        [("authorization", b"Bearer \xff\xfe")],
        [("x-authorization", f"Bearer {SECRET}")],
        [],
    ],
)
def test_a_token_in_another_form_lets_nobody_in(folder, tmp_path, headers):
    with whole_service(folder, token_file=token_file(tmp_path, SECRET)) as service:
        for path in ("/metrics", "/v1/indexes", "/v1/indexes/small", "/v1/indexes/small/files/x", "/v1/runs", "/x"):
            found = page(service.address, path, headers=headers)
            assert (found.status_code, found.headers["www-authenticate"]) == (401, "Bearer"), path
        with httpx.Client(trust_env=False) as client:
            for path in ("/v1/indexes/small/search", "/v1/runs/any/forecast"):
                assert client.post(service.address + path, headers=headers, content=b"x" * 1000).status_code == 401


def test_causal_only(folder, local):
    with served(folder, ["small"], causal_only=True) as service:
        memory = RemoteMemory(f"{service}/small")
        assert memory.causal_only
        assert_same(memory.search(some(), 3), local.search(some(), 3))
        with pytest.raises(IncompatibleError, match="answers under 'causal' only, not under 'disjoint'"):
            memory.search(some(Policy.DISJOINT), 3)


def test_tls(folder, local, tmp_path):
    cert, key = CERTIFICATES / "server.pem", CERTIFICATES / "server.key"
    with whole_service(folder, tls_cert=cert, tls_key=key, token_file=token_file(tmp_path, SECRET)) as service:
        where, access = f"{service.address}/small", read_access(tmp_path / "tokens", cert)
        assert where.startswith("https://127.0.0.1:")
        assert_same(RemoteMemory(where, access=access).search(some(), 3), local.search(some(), 3))
        for wrong in (Access(token=SECRET), replace(access, tls_ca=(CERTIFICATES / "expired.pem").read_bytes())):
            with pytest.raises(ServiceError, match="no secure connection") as refused:
                RemoteMemory(where, access=replace(wrong, deadline_s=3))
            _is_readable(refused.value)
        with pytest.raises(ServiceError) as refused:
            RemoteMemory(where.replace("https", "http"), access=replace(access, deadline_s=1))
        _is_readable(refused.value)
        assert "https://" in refused.value.hint
    with whole_service(folder) as service, pytest.raises(ServiceError, match="no secure connection") as refused:
        RemoteMemory(f"{service.address}/small".replace("http", "https"), access=replace(access, deadline_s=1))
    _is_readable(refused.value)


def _is_readable(error: ServiceError) -> None:
    """One line that names the service, and a hint."""
    assert "127.0.0.1" in str(error)
    assert "\n" not in str(error)
    assert len(str(error)) < 450
    assert error.hint


def test_without_a_token_only_this_machine(tmp_path):
    for host in ("0.0.0.0", "example.org", "", "::"):
        with pytest.raises(UsageError, match="listens on this machine only"):
            Settings(host=host)
    for host in ("127.0.0.1", "localhost", "::1"):
        Settings(host=host)
    Settings(host="0.0.0.0", token_file=tmp_path)
    with pytest.raises(UsageError, match="belong together"):
        Settings(tls_cert=tmp_path)


def test_certificates_are_looked_at_before_the_service_begins(folder):
    key = CERTIFICATES / "server.key"
    for cert, error, says in (
        (CERTIFICATES / "expired.pem", UsageError, "expired"),
        (key, UsageError, "server.key holds no certificate"),
        (CERTIFICATES / "none.pem", NotFoundError, "there is no file .*none.pem"),
    ):
        with pytest.raises(error, match=says):
            Service(folder, ["small"], Settings(port=0, tls_cert=cert, tls_key=key))


# Limits


def test_limits_of_one_question(folder):
    limits = Limits(max_windows=30, max_k=8, max_slots=1000, max_message=20_000)
    with served(folder, ["small"], limits=limits) as service:
        memory = RemoteMemory(f"{service}/small")
        assert memory.limits == limits
        with pytest.raises(UsageError, match=r"k is 9, but http://127.0.0.1:.* allows 8"):
            memory.search(some(), 9)
        many = replace(some(), context=np.zeros((40, 60, 36), np.float32), series_id=np.arange(60).astype(str))
        with pytest.raises(UsageError, match="one moment of 60 series, 36 steps each, is more"):
            memory.search(many, 2)
        with pytest.raises(IncompatibleError, match="lookback of 35"):
            memory.search(replace(some(), context=some().context[:, :, 1:]), 2)
        # A client that does not keep to them is refused by the service.
        memory.limits = Limits()
        for origins, k, says in (
            (ORIGINS, 2, "windows: 120 in one question, but this service allows 30"),
            (range(100, 102), 9, "k: 9 in one question, but this service allows 8"),
            (range(100, 110), 8, "windows x key spaces x k: 1,440 in one question"),
            (range(100, 300, 2), 3, "a message of [0-9,]+ bytes: at most 20,000 are taken"),
        ):
            with pytest.raises(UsageError, match=says):
                memory.search(some(origins=origins), k)
        assert memory.search(some(origins=range(100, 104)), 8).valid.any()


def test_a_question_that_takes_too_long(folder):
    with served(folder, ["small"], limits=Limits(max_seconds=1e-9)) as service:
        memory = RemoteMemory(f"{service}/small", access=Access(deadline_s=1))
        with pytest.raises(ServiceError, match=r"no turn within 0\.0 s; gave up after|takes longer than") as refused:
            memory.search(some(), 2)
    assert refused.value.hint


def test_turns_have_an_order_and_an_end():
    """Whoever came first is next; a line that is full, and a time that is over, are said; all is done in one thread."""

    async def play() -> None:
        turns, order, names, go_on = Turns(3), [], set(), threading.Event()

        def is_here() -> bool:
            return False

        def is_gone() -> bool:
            return True

        def hold(waited: float) -> None:
            go_on.wait(PATIENCE_S)

        def note(number: int) -> Callable[[float], None]:
            return lambda waited: (order.append(number), names.add(threading.current_thread()))

        held = asyncio.create_task(turns.take(hold, PATIENCE_S, is_here))
        while not turns.is_at_work:  # noqa: ASYNC110 - it is for others to say
            await asyncio.sleep(0.01)
        with pytest.raises(BusyError, match=r"no turn within 0\.1 s"):
            await turns.take(note(-1), 0.1, is_here)
        waiting = [asyncio.create_task(turns.take(note(n), PATIENCE_S, is_here)) for n in range(2)]
        vanished = asyncio.create_task(turns.take(note(-2), PATIENCE_S, is_gone))
        while turns.num_waiting < 3:  # noqa: ASYNC110 - likewise
            await asyncio.sleep(0.01)
        with pytest.raises(BusyError, match="3 questions wait already"):
            await turns.take(note(-3), PATIENCE_S, is_here)
        go_on.set()
        await asyncio.gather(held, *waiting)
        with pytest.raises(ClientDisconnect):
            await vanished

        def fail(waited: float) -> None:
            raise DataError("it has failed")

        with pytest.raises(DataError, match="it has failed"):
            await turns.take(fail, PATIENCE_S, is_here)
        assert await turns.take(lambda waited: 3, PATIENCE_S, is_here) == 3
        assert (order, len(names), turns.num_waiting) == ([0, 1], 1, 0)
        turns.close()

    asyncio.run(play())


def test_bytes_that_are_held_have_an_end():
    """Of all questions together. One alone is always let in: what it needs has limits of its own."""
    budget = Budget(100)
    with budget.share() as one:
        one(500)
        one(500)
        with budget.share() as other, pytest.raises(BusyError, match="are held already"):
            other(1)
    with budget.share() as one, budget.share() as other:
        one(60)
        other(40)
        with pytest.raises(BusyError):
            other(1)
    assert budget._held == 0


def test_a_question_too_many_is_asked_again(folder, local, held):
    with served(folder, ["small"], max_held=1) as service, ThreadPoolExecutor(1) as pool:
        answer = pool.submit(RemoteMemory(f"{service}/small").search, some(), 3)
        held.inside.wait(PATIENCE_S)
        with pytest.raises(ServiceError, match="MB of questions are held already; gave up"):
            RemoteMemory(f"{service}/small", access=Access(deadline_s=0.5)).search(some(), 3)
        assert page(service, "/healthz").status_code == 200  # answered while there is a search
        held.go_on.set()
        assert_same(answer.result(PATIENCE_S), local.search(some(), 3))
        assert_same(RemoteMemory(f"{service}/small").search(some(), 3), local.search(some(), 3))


# What makes no sense


DOCUMENTS: list[tuple[bytes | dict[str, object], str]] = [
    (b"", "is not JSON"),
    (b"\xff\xfe[", "is not JSON"),
    (b"[" * 100_000, "is not JSON"),
    (b"[1]", "is not a JSON object"),
    (b'{"k": ' + b"9" * 5000 + b"}", "is not JSON"),
    (b" " * (messages.MAX_DOCUMENT + 1), "bytes of JSON: 4,194,305 in one question"),
    ({"series_id": None}, "'series_id' must be a list"),
    ({"series_id": []}, "at least one series"),
    ({"series_id": ["x" * 1001, "b", "c"]}, "at most 1000 characters"),
    ({"series_id": [1, 2, 3]}, "'series_id' must be a text"),
    ({"series_id": ["a", "b", "c", "d", "e", "f", "g"]}, "values are not"),
    ({"series_id": [str(n) for n in range(9000)]}, "windows: "),
    ({"policy": "x" * 1000}, "policy must be causal or disjoint"),
    ({"policy": None}, "'policy' must be a text"),
    ({"k": 0}, "k must be at least 1"),
    ({"k": -5}, "k must be at least 1"),
    ({"k": True}, "'k' must be a whole number"),
    ({"k": 3.0}, "'k' must be a whole number"),
    ({"k": 2**70}, "'k' must be a whole number"),
    ({"min_gap": -1}, "min_gap at least 0"),
    ({"wait_s": "soon"}, "'wait_s' must be a number"),
    ({"wait_s": float("nan")}, "'wait_s' must be a number"),
    ({"scopes": []}, "at least one scope"),
    ({"scopes": ["x" * 1_000_000]}, "unknown scope"),
    ({"scopes": "own"}, "'scopes' must be a list"),
    ({"scopes": ["own"] * 7}, "'scopes': 7 in one question, but this service allows 6"),
    ({"views": [12, 13]}, "no view of 13 steps"),
    ({"views": []}, "no view"),
    ({"views": [True]}, "must be a whole number"),
    ({"views": ["x"] * 100_000}, "'views': 100,000 in one question"),
    ({"where": 3}, "'where' must be an object"),
    ({"where": {"after": "yesterday"}}, "'after' must be a whole number"),
    ({"where": {"series_id": ["\ud800"]}}, "filter's series"),
    ({"where": {"series_id": [1] * 100_000}}, "'series_id': 100,000 in one question"),
    ({"lookback": None}, "'lookback' must be a whole number"),
    ({"lookback": 35}, "values are not"),
    ({"lookback": 0}, "values are not"),
    ({"lookback": -40, "consecutive": False}, "values are not"),
    ({"lookback": 1 << 40}, "bytes of windows"),
    ({"consecutive": 1}, "must be true or false"),
    ({"consecutive": False}, "values are not"),
    ({"series_id": ["\U0001f600" * 900, "\ud800", "c"], "scopes": ["own"]}, "scope 'own' cannot be served"),
]


@pytest.mark.parametrize(("document", "says"), DOCUMENTS, ids=[says for _, says in DOCUMENTS])
def test_documents_that_make_no_sense(address, local, memory, document, says, capfd):
    content = wire.write_question(question(some()))
    batch, told = parts(content)
    found = post(address, whole(batch, document if isinstance(document, bytes) else told | document))
    assert found.status_code in (400, 404, 409, 422)
    error = found.json()["error"]
    assert says in error["message"]
    assert len(error["message"]) <= 300
    assert "Traceback" not in capfd.readouterr().err
    assert_same(memory.search(some(), 3), local.search(some(), 3))


def test_batches_that_make_no_sense(address, capfd):
    content = wire.write_question(question(some()))
    batch, told = parts(content)
    infinite = pa.array([[float("inf")] * len(batch["values"].flatten())], batch["values"].type)
    null, hole = pa.array([None], batch["values"].type), pa.array([[None] * 36], batch["values"].type)
    fewer = pa.array([batch["origin"][0].as_py()[1:]], batch["origin"].type)
    cases = [
        (whole(batch.set_column(0, batch.schema.field(0), null), told), "missing value"),
        (whole(batch.set_column(0, batch.schema.field(0), hole), told), "missing value"),
        (whole(batch.set_column(0, batch.schema.field(0), infinite), told), "has an infinite value"),
        (whole(batch.set_column(1, batch.schema.field(1), fewer), told), "values are not"),
        (whole(batch.slice(0, 0), told), "has one line, not 0"),
        (whole(pa.concat_batches([batch, batch]), told), "has one line, not 2"),
        (content[: len(content) // 2], "is malformed"),
        (b"", "is malformed"),
    ]
    nested = pa.list_(pa.float32())
    for _ in range(50):
        nested = pa.list_(nested)
    for schema in (
        wire.ANSWER,
        pa.schema([("values", pa.list_(pa.float64())), wire.QUESTION.field("origin")]),
        pa.schema([("values", pa.list_(pa.float32())), ("origin", pa.timestamp("ns"))]),
        pa.schema([("values", pa.dictionary(pa.int32(), pa.string())), wire.QUESTION.field("origin")]),
        pa.schema([("values", nested)]),
        pa.schema([]),
    ):
        empty = pa.RecordBatch.from_arrays([pa.array([], field.type) for field in schema], schema=schema)
        cases.append((whole(empty, told), "has the columns"))
    for sent, says in cases:
        found = post(address, sent)
        assert found.status_code in (400, 409, 422)
        assert any(each in found.json()["error"]["message"] for each in says.split("|")), says
    assert "Traceback" not in capfd.readouterr().err


def test_calls_that_make_no_sense(address, local, capfd):
    service = address.rpartition("/")[0]
    for path, status, says in (
        ("/", 404, "/docs says what there is"),
        ("/v1/indexes/other", 404, "'other' is not served here"),
        ("/v1/indexes/..%2F..%2Fetc", 404, "/docs says"),
        ("/v1/indexes/a@b@c", 400, "a@b@c"),
        (f"/v1/indexes/{'0' * 64}", 500, "no longer served"),
        ("/v1/indexes/small/files/manifest.json", 404, "has no file"),
        (f"/v1/indexes/{local.fingerprint}/files/..%2fmanifest.json", 404, "has no file"),
        ("/v1/indexes/small/search", 405, "is asked with POST, not with GET"),
        ("/v1/runs/any/forecast", 405, "is asked with POST"),
    ):
        found = page(service, path)
        assert (found.status_code, says in found.text) == (status, True), found.text
    for kind, headers, status in (
        ("text/plain", {}, 415),
        ("application/json", {"content-encoding": "gzip"}, 415),
        ("application/json", {}, 400),
    ):
        assert post(address, b"{}", kind, **headers).status_code == status
    assert "'any' is served here" in httpx.post(f"{service}/v1/runs/any/forecast", content=b"{}").text
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("/data/runs/load was trained against load@1", "load was trained against load@1"),
        ("/data/indexes/load/000001/keys.faiss: no space", "load/000001/keys.faiss: no space"),
        (f"{tempfile.gettempdir()}/forecast-x1y2/history.csv, line 3", "history.csv, line 3"),
        ("trained against milvus:/srv/keys.db/load@1", "trained against load@1"),
        ("there is nothing at /v1/indexes/load/x", "there is nothing at /v1/indexes/load/x"),
    ],
)
def test_an_error_names_no_place_of_the_server(said, told):
    places = Places([Path("/data/indexes"), Path("/data/runs"), Path("/data")])
    [error] = json.loads(messages.write_error(UsageError(said, hint=said), places.without)).values()
    assert (error["message"], error["hint"]) == (told, told)


def test_a_few_windows_may_be_asked_in_json(address, local):
    """The same neighbours; null is a missing cell."""
    queries = some(origins=range(NUM_TRAINING, NUM_TRAINING + 1))
    origin = np.datetime_as_string(queries.origin[0], unit="s")
    document = {"series_id": list(map(str, queries.series_id)), "origin": str(origin), "policy": "causal", "k": 3}
    document |= {"context": queries.context[0].tolist()}
    asked = json.dumps(document).encode()
    found, expected = post(address, asked, "application/json").json(), local.search(queries, 3)
    assert found["fingerprint"] == local.fingerprint
    for place, series in enumerate(found["series"]):
        rows = expected.row[0, place]
        assert [each["row_id"] for each in series["neighbours"]] == rows[rows >= 0].tolist()
        distances = np.array([each["distance"] for each in series["neighbours"]], dtype=np.float32)
        np.testing.assert_array_equal(distances, expected.distance[0, place][rows >= 0])
    one = document | {"series_id": ["load"], "context": queries.context[0, 0].tolist(), "scopes": ["own"]}
    one |= {"where": {"before": "2021-03-08"}}
    told = post(address, json.dumps(one).encode(), "application/json").json()["series"][0]["neighbours"]
    assert told
    assert all(each["start"] < "2021-03-08" for each in told)
    one["context"][3] = None
    context = queries.context[:, :1].copy()
    context[0, 0, 3] = np.nan
    with_gap = replace(queries, context=context, series_id=queries.series_id[:1])
    where = Filter(before=np.datetime64("2021-03-08", "ns"))
    expected = local.search(with_gap, 3, scopes=("own",), where=where)
    told = post(address, json.dumps(one).encode(), "application/json").json()["series"][0]["neighbours"]
    assert [each["row_id"] for each in told] == expected.row[expected.row >= 0].tolist()
    one["context"][3] = 1e39  # beyond float32
    refused = post(address, json.dumps(one).encode(), "application/json")
    assert (refused.status_code, "has an infinite value" in refused.text) == (422, True)
    for entries, says in (
        ({"context": [[1], [1, 2]]}, "'context' must be numbers"),
        ({"context": "x"}, "'context' must be numbers"),
        ({"context": None}, "context"),
        ({"context": [1, 2]}, "lookback of 2"),
        ({"origin": "soon"}, "soon"),
        ({"origin": None}, "'origin' must be a text"),
        ({"policy": None}, "'policy' must be a text"),
        ({"where": {"after": "soon"}}, "soon"),
    ):
        refused = post(address, json.dumps(document | {"series_id": ["load"]} | entries).encode(), "application/json")
        assert (refused.status_code in (400, 409, 422), says in refused.text) == (True, True), refused.text


# A client that waits, asks again, or gives up


def test_a_busy_service_is_asked_again(folder, local, monkeypatch):
    answer, calls = App._found, []

    def busy(self, memory, question, write):
        calls.append(1)
        if len(calls) < 4:
            raise BusyError("the service is busy", hint="ask later")
        return answer(self, memory, question, write)

    monkeypatch.setattr(App, "_found", busy)
    with served(folder, ["small"]) as service:
        assert_same(RemoteMemory(f"{service}/small").search(some(), 3), local.search(some(), 3))
        assert len(calls) == 4
        monkeypatch.setattr(App, "_found", _raising(BusyError("the service is busy", hint="ask later")))
        started = time.monotonic()
        with pytest.raises(ServiceError, match="the service is busy; gave up after") as gave_up:
            RemoteMemory(f"{service}/small", access=Access(deadline_s=1)).search(some(), 3)
        assert not isinstance(gave_up.value, BusyError)
        assert time.monotonic() - started < 10


def _raising(error: Exception, calls: list[int] | None = None) -> Callable[..., object]:
    def refuse(self, memory, question, write):
        if calls is not None:
            calls.append(1)
        raise error

    return refuse


@pytest.mark.parametrize("error", [ServiceError, IncompatibleError, DataError, LeakError, ResourceError, MemoryError])
def test_a_refusal_is_not_asked_again(folder, monkeypatch, error):
    calls: list[int] = []
    monkeypatch.setattr(App, "_found", _raising(error("no"), calls))
    with (
        served(folder, ["small"]) as service,
        pytest.raises((ServiceError, DataError, IncompatibleError, ResourceError)),
    ):
        RemoteMemory(f"{service}/small").search(some(), 3)
    assert calls == [1]


def test_a_defect_is_told_to_whoever_keeps_the_service(folder, monkeypatch, capfd):
    monkeypatch.setattr(App, "_found", _raising(ZeroDivisionError("of no use to a client")))
    with served(folder, ["small"]) as service, pytest.raises(ServiceError, match="its log says how") as refused:
        RemoteMemory(f"{service}/small").search(some(), 3)
    assert "of no use" not in str(refused.value)
    assert "of no use to a client" in capfd.readouterr().err


def test_a_service_that_says_nothing_is_not_waited_for(folder, held):
    with served(folder, ["small"]) as service:
        memory, started = RemoteMemory(f"{service}/small", access=Access(deadline_s=1)), time.monotonic()
        with pytest.raises(ServiceError, match="did not answer in time; gave up after") as gave_up:
            memory.search(some(), 3)
        assert 0.9 < time.monotonic() - started < 10
        _is_readable(gave_up.value)
        held.go_on.set()


@pytest.mark.parametrize("accepts", [True, False])
def test_a_port_behind_which_nobody_is(accepts):
    """One that takes connections and says nothing, and one that refuses them."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        if not accepts:
            listening.close()
        started = time.monotonic()
        with pytest.raises(ServiceError, match="gave up after") as gave_up:
            RemoteMemory(f"http://127.0.0.1:{port}/small", access=Access(deadline_s=1))
        assert time.monotonic() - started < 10
        _is_readable(gave_up.value)


# Its end


def test_a_drain_answers_what_is_under_way_and_nothing_else(folder, local, held):
    with whole_service(folder) as service, ThreadPoolExecutor(2) as pool:
        memory = RemoteMemory(f"{service.address}/small")
        other = RemoteMemory(f"{service.address}/small", access=Access(deadline_s=1))
        other.windows, other.scale  # noqa: B018 - fetched before
        assert page(service.address, "/readyz").status_code == 200
        answer = pool.submit(memory.search, some(), 3)
        held.inside.wait(PATIENCE_S)
        closing = pool.submit(service.close)
        wait_until(lambda: service.app.is_draining)
        found = page(service.address, "/readyz")
        assert (found.status_code, found.json()["ready"]) == (503, False)
        assert page(service.address, "/healthz").status_code == 200
        with pytest.raises(ServiceError, match="is about to end; gave up after"):
            other.search(some(), 3)
        held.go_on.set()
        assert_same(answer.result(PATIENCE_S), local.search(some(), 3))
        closing.result(PATIENCE_S)
        assert not service.has_leftovers


def test_a_search_without_end_does_not_hold_the_end_up(folder, held):
    notes: list[str] = []
    with ThreadPoolExecutor(2) as pool, whole_service(folder, grace_s=0.2, notes=notes) as service:
        asked = pool.submit(RemoteMemory(f"{service.address}/small", access=Access(deadline_s=3)).search, some(), 3)
        held.inside.wait(PATIENCE_S)
        service.close()
        assert service.has_leftovers
        assert any("they are given up" in note for note in notes)
        held.go_on.set()
        with pytest.raises(ServiceError):
            asked.result(PATIENCE_S)


def test_what_cannot_be_served(folder):
    for ref, error in (
        ("nothing", NotFoundError),
        ("small@9", NotFoundError),
        ("http://h:1/x", UsageError),
        ("grpc://h:1/x", UsageError),
        ("..", UsageError),
    ):
        with pytest.raises(error):
            Service(folder, [ref], Settings(port=0))


# Watching it


def test_metrics_and_health(folder):
    with whole_service(folder, causal_only=True) as service:
        memory = RemoteMemory(f"{service.address}/small")
        memory.search(some(), 3)
        memory.search(some(), 3)
        with pytest.raises(IncompatibleError):
            memory.search(replace(some(Policy.DISJOINT), series_id=np.array(["load", "secret-series", "x"])), 3)
        found = page(service.address, "/metrics")
        told = dict(line.rsplit(" ", 1) for line in found.text.splitlines() if not line.startswith("#"))
        assert found.status_code == 200
        assert told['memory_calls_total{method="search",status="ok"}'] == "2.0"
        assert told['memory_calls_total{method="search",status="IncompatibleError"}'] == "1.0"
        assert told['memory_calls_total{method="open",status="ok"}'] == "1.0"
        assert told['memory_windows_total{policy="causal",ref="small@1"}'] == str(float(2 * len(some()) * 3))
        assert float(told['memory_bytes_total{direction="in"}']) > 2 * some().origin.nbytes
        assert (told["memory_ready"], told["memory_waiting"]) == ("1.0", "0.0")
        assert "secret-series" not in found.text
        assert page(service.address, "/readyz").json()["versions"] == {"small@latest": "small@1"}


def test_every_route_is_documented(address):
    service = address.rpartition("/")[0]
    document = page(service, "/openapi.json").json()
    assert document["openapi"].startswith("3.")
    assert document["info"]["version"] == str(wire.PROTOCOL)
    documented = {(verb.upper(), path) for path, verbs in document["paths"].items() for verb in verbs}
    assert documented == {(verb, path.replace(":path", "")) for verb, path in App.ROUTES if verb}
    shown = page(service, "/docs")
    assert "text/html" in shown.headers["content-type"]
    assert "http://" not in shown.text.replace("http://127.0.0.1:8815", "")  # nothing is fetched from elsewhere
    assert "https://" not in shown.text


def test_the_log_tells_who_asked_what_without_names_or_values(folder, tmp_path):
    log = tmp_path / "access.log"
    remote._windows.clear()  # so that it is fetched
    with whole_service(folder, access_log=log, causal_only=True) as service:
        memory = RemoteMemory(f"{service.address}/small")
        memory.search(some(), 3)
        with pytest.raises(IncompatibleError):
            memory.search(replace(some(Policy.DISJOINT), series_id=np.array(["load", "unheard-of", "x"])), 3)
        host, port = service.address.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as client:
            client.sendall(b"nonsense\r\n\r\n")
            assert b"400" in client.recv(1000)
        wait_until(lambda: "does not speak HTTP" in log.read_text())
        assert page(service.address, "/readyz").status_code == page(service.address, "/metrics").status_code == 200
        log.rename(tmp_path / "rotated")
        memory.search(some(), 3)
    lines = [json.loads(line) for line in (tmp_path / "rotated").read_text().splitlines()]
    [asked] = [line for line in lines if line.get("method") == "search" and line["status"] == "ok"]
    known = {"time", "method", "peer", "ref", "fingerprint", "policy", "moments", "num_series", "k"}
    assert set(asked) <= known | {"bytes_in", "bytes_out", "waited_s", "seconds", "status", "http"}
    told = [asked[name] for name in ("ref", "policy", "moments", "num_series", "k", "http")]
    assert told == ["small@1", "causal", len(some()), 3, 3, 200]
    assert asked["peer"].startswith("127.0.0.1:")
    assert {line["method"] for line in lines if "method" in line} == {"open", "get", "search"}
    assert 1000 < asked["bytes_in"] < some().context.nbytes  # consecutive moments: no value twice
    text = (tmp_path / "rotated").read_text()
    assert not any(name in text for name in ('"load"', "unheard-of", "flat", "beat"))
    assert '"status": "IncompatibleError"' in text
    assert json.loads(log.read_text().splitlines()[0])["method"] == "search"


def test_a_question_that_nobody_waits_for_is_not_searched(folder, local, held):
    with whole_service(folder) as service, ThreadPoolExecutor(2) as pool:
        patient = RemoteMemory(f"{service.address}/small")
        answer = pool.submit(patient.search, some(), 3)
        held.inside.wait(PATIENCE_S)
        asked = wire.write_question(question(some(), 7)._replace(wait_s=PATIENCE_S))
        with httpx.Client(trust_env=False, timeout=0.5) as client, pytest.raises(httpx.ReadTimeout):
            client.post(
                f"{service.address}/v1/indexes/small/search", content=asked, headers={"content-type": wire.ARROW}
            )
        time.sleep(0.3)
        held.go_on.set()
        assert_same(answer.result(PATIENCE_S), local.search(some(), 3))
        patient.search(some(), 4)
    assert held.asked == [3, 4]


def test_many_that_ask_at_once(folder, local):
    """Some of them much, and more than may wait in line: every answer is the right one."""
    expected = local.search(some(), 3)
    with whole_service(folder, max_waiting=4) as service:

        def ask(number: int) -> None:
            memory = RemoteMemory(f"{service.address}/small", access=Access(deadline_s=2 * PATIENCE_S))
            for _ in range(3):
                assert_same(memory.search(some(), 3), expected)
            if number == 0:
                assert memory.search(some(origins=range(100, 300)), 20).valid.any()

        with ThreadPoolExecutor(12) as pool:
            list(pool.map(ask, range(12)))
