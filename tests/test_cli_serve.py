"""`cli index serve` as real processes on this machine: how they begin, what harms them, how they end, what is left."""

from __future__ import annotations

import contextlib
import json
import resource
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pytest
import typer
from guard_fixtures import CERTIFICATES, PATIENCE_S, RawClient, call, frame, message, start, wait_until
from memory_fixtures import NUM_TRAINING, assert_same, built, open_version, queries_at, wide_table
from pyarrow import flight
from serve_fixtures import Serving, cli_serving, http, long_question
from service_fixtures import close_memories

from cli.main import app, run
from cli.options import SERVE_OPTIONS
from memory_index.access import Access
from memory_index.errors import BusyError, ServiceError
from memory_index.leakage import Policy
from memory_index.local import LocalMemory
from memory_index.service import wire
from memory_index.service.guard import DATA
from memory_index.service.remote import RemoteMemory
from memory_index.service.serving import Settings
from memory_index.service.wire import Question
from memory_index.types import Queries
from memory_index.versions.store import Store

MEGABYTE = 1 << 20


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    made = tmp_path_factory.mktemp("serving")
    built(made)
    return made


@pytest.fixture(scope="module")
def local(folder) -> LocalMemory:
    return open_version(Store(folder).resolve("small"), threads=1)


@pytest.fixture(scope="module")
def shared(folder):
    """One service for everything that does not end it."""
    with cli_serving(folder, "--status-port", "0", "--metrics", "--max-memory-mb", "512") as serving:
        yield serving


def some(policy: Policy = Policy.CAUSAL) -> Queries:
    return queries_at(wide_table(), range(NUM_TRAINING - 10, NUM_TRAINING + 20), policy)


def exchange(serving: Serving, local: LocalMemory, batch: pa.RecordBatch, **options: object) -> None:
    """Ask with another batch, as it is given, and read the answer."""
    question = Question(some(), 3, None, None, None, 0, 5.0)
    with flight.FlightClient(serving.address) as client:
        command = flight.FlightDescriptor.for_command(json.dumps({"fingerprint": local.fingerprint}).encode())
        writer, reader = client.do_exchange(command, flight.FlightCallOptions(timeout=PATIENCE_S))
        try:
            writer.begin(batch.schema, **options)
            writer.write_with_metadata(batch, wire.write_question(question).document)
            reader.read_chunk()
        finally:
            reader.cancel()
            with pytest.raises((flight.FlightError, pa.ArrowException)):
                writer.close()


# It works, and ends


def test_from_beginning_to_end(folder, local, tmp_path):
    """Several versions, a log, health; then SIGTERM: exit 0, and nothing is left."""
    log = tmp_path / "access.log"
    with cli_serving(folder, "--access-log", str(log), "--status-port", "0", refs=["small", "small@1"]) as serving:
        assert serving.address.startswith("grpc://127.0.0.1:")
        assert json.loads(http(serving.status_port, "/readyz")[1])["versions"] == {
            "small@latest": "small@1",
            "small@1": "small@1",
        }
        assert_same(serving.memory().search(some(), 3), local.search(some(), 3))
        assert_same(serving.memory("small@1").search(some(), 3), local.search(some(), 3))
        assert psutil.Process(serving.process.pid).rlimit(psutil.RLIMIT_DATA)[0] < 64 << 30
        assert serving.end(signal.SIGINT) == 0
        said = serving.said()
    assert f"serving {serving.address}/small, which is small@1 now" in said
    assert "without a token: this machine only, and everyone on it, can ask" in said
    assert said.endswith("ended\n")
    assert {json.loads(line)["method"] for line in log.read_text().splitlines()} >= {"open", "search"}


def test_a_drain_answers_what_is_under_way(folder, local):
    asked = long_question(some(), 600)
    expected = local.search(asked, 100)
    with cli_serving(folder, "--status-port", "0", "--metrics") as serving, ThreadPoolExecutor(1) as pool:
        memory = serving.memory()
        memory.search(some(), 3)
        answer = pool.submit(memory.search, asked, 100)
        wait_until(lambda: _at_work(serving) or answer.done())
        assert serving.end() == 0
        assert_same(answer.result(PATIENCE_S), expected)


def _at_work(serving: Serving) -> bool:
    """Whether the question has reached the service: it takes processor time."""
    before = psutil.Process(serving.process.pid).cpu_times().user
    time.sleep(0.05)
    return psutil.Process(serving.process.pid).cpu_times().user - before > 0.02


def test_a_second_signal_ends_it_at_once(folder):
    """Also what only the guard is left to clear away."""
    with cli_serving(folder) as serving, ThreadPoolExecutor(1) as pool:
        memory = serving.memory(deadline_s=2)
        memory.search(some(), 3)
        answer = pool.submit(memory.search, long_question(some(), 2700), 80)
        wait_until(lambda: _at_work(serving) or answer.done())
        psutil.Process(serving.process.pid).send_signal(signal.SIGTERM)
        time.sleep(0.3)
        assert serving.process.poll() is None
        assert serving.end() == -signal.SIGTERM
        with pytest.raises(ServiceError, match="gave up after"):
            answer.result(PATIENCE_S)


def test_killed_in_the_middle_of_a_stream(folder, local):
    """A client in the middle of many questions: one clear error, or the same answer from the one that comes after."""
    expected = local.search(some(), 3)
    with cli_serving(folder) as serving, ThreadPoolExecutor(1) as pool:
        port, answers = serving.port, []
        memory, patient = serving.memory(deadline_s=1), serving.memory()
        patient.search(some(), 3)

        def ask_on() -> None:
            while True:
                answers.append(memory.search(some(), 3))

        asking = pool.submit(ask_on)
        wait_until(lambda: len(answers) > 5)
        assert serving.end(signal.SIGKILL) == -signal.SIGKILL
        with pytest.raises(ServiceError, match="gave up after") as gave_up:
            asking.result(PATIENCE_S)
        assert not isinstance(gave_up.value, BusyError)
        for answer in answers:
            assert_same(answer, expected)
        wait_until(lambda: list(serving.folder.iterdir()) == [serving.folder / "stderr"])  # the guard has cleared away
        waiting = pool.submit(patient.search, some(), 3)
        with cli_serving(folder, port=port):
            assert_same(waiting.result(PATIENCE_S), expected)
            close_memories(serving.address)


def test_a_guard_that_is_killed_ends_the_service(folder):
    with cli_serving(folder) as serving:
        serving.memory().search(some(), 3)
        serving.guard.kill()
        assert serving.process.wait(PATIENCE_S) == 8
        assert serving.process.stdout is not None
        told = json.loads(serving.process.stdout.read())
        assert f"the guard in front of {serving.address} has ended" in json.dumps(told)


def test_help_states_the_defaults_that_are():
    settings = Settings()
    defaults = asdict(settings) | asdict(settings.limits) | {"max_message_mb": settings.limits.max_message // MEGABYTE}
    options = {option.name: option for option in typer.main.get_command(app).commands["index"].commands["serve"].params}
    for name in SERVE_OPTIONS:
        stated = options[name].show_default
        if isinstance(stated, str):
            assert stated == str(defaults[name]), name
        else:
            assert options[name].default == defaults[name], name


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["small", "--port", "{taken}"], 8, "port {taken} of 127.0.0.1 is used by another program"),
        (["small", "--port", "0", "--status-port", "{taken}"], 8, "is used by another program"),
        (["smal", "--port", "0"], 4, "there is no index 'smal'"),
        (["small@7", "--port", "0"], 4, "small@7 does not exist"),
        (["grpc://127.0.0.1:1/small", "--port", "0"], 2, "is served already"),
        (["small@1", "milvus://127.0.0.1:1/small", "--port", "0"], 2, "would have one name here"),
        (["small", "--port", "0", "--access-log", "."], 2, ". is a folder"),
        (["small", "--port", "0", "--host", "0.0.0.0"], 2, "listens on this machine only"),
        (["small", "--port", "0", "--max-memory-mb", "100"], 2, "--max-memory-mb 100 is too little for messages of 32"),
        (["small", "--port", "0", "--metrics"], 2, "metrics need a port of their own"),
        (["small", "--port", "0", "--token-file", "nowhere"], 4, "there is no file nowhere"),
        (["small", "--port", "0", "--tls-cert", "{cert}"], 2, "a certificate and its key belong together"),
        (["small", "--port", "0", "--tls-cert", "{expired}", "--tls-key", "{key}"], 2, "expired"),
        (["small", "--port", "0", "--access-log", "/nowhere/at/all"], 4, "no folder /nowhere/at for the access log"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_does_not_begin(folder, capsys, words, code, says):
    """In this process, which the command ends in one line and without a trace."""
    before = psutil.Process().children()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        names = {
            "taken": taken.getsockname()[1],
            "cert": CERTIFICATES / "server.pem",
            "expired": CERTIFICATES / "expired.pem",
            "key": CERTIFICATES / "server.key",
        }
        words = [word.format(**names) for word in words]
        assert run(["index", "serve", *words, "--indexes-dir", str(folder)]) == code
    error = capsys.readouterr().err
    assert says.format(**names) in error
    assert "Traceback" not in error
    assert psutil.Process().children() == before


def test_tls_and_tokens(folder, local, tmp_path):
    tokens, cert = tmp_path / "tokens", CERTIFICATES / "server.pem"
    tokens.write_text("trainer a-token-of-16-characters\n")
    words = ["--token-file", str(tokens), "--tls-cert", str(cert), "--tls-key", str(CERTIFICATES / "server.key")]
    with cli_serving(folder, *words, "--host", "localhost") as serving:
        access = {"token": "a-token-of-16-characters", "tls_ca": cert.read_bytes()}
        assert_same(serving.memory(**access).search(some(), 3), local.search(some(), 3))
        with pytest.raises(ServiceError, match="wants a token"):
            serving.memory(tls_ca=cert.read_bytes())
        said = serving.said()
    assert "without a token" not in said
    assert "a-token-of" not in said


# Whatever clients do, others are answered


def zeros(moments: int) -> pa.RecordBatch:
    """A question of so many moments of a series, none of which takes memory before it is written to."""
    return wire.one_line(wire.QUESTION, [np.zeros(moments * 36, np.float32), np.zeros(moments, np.int64)])


@pytest.mark.parametrize(
    ("gigabytes", "says"),
    [(5, "more memory than the service may use"), (0.5, "bytes in one question, when it is read")],
)
def test_a_batch_that_grows_when_it_is_read_fails_alone(shared, local, gigabytes, says):
    """Zeros that were compressed to less than a message may have. Others are answered in the meantime."""
    expected, memory = local.search(some(), 3), shared.memory()
    assert_same(memory.search(some(), 3), expected)
    bomb, packed = zeros(int(gigabytes * (1 << 30)) // (36 * 4)), pa.ipc.IpcWriteOptions(compression="zstd")
    with ThreadPoolExecutor(1) as pool:
        for _ in range(2):
            thrown = pool.submit(exchange, shared, local, bomb, options=packed)
            while not thrown.done():
                assert_same(memory.search(some(), 3), expected)
            with pytest.raises(flight.FlightServerError, match=says):
                thrown.result()
    wait_until(lambda: shared.resident_bytes() < 1200 * MEGABYTE)
    assert_same(shared.memory().search(some(), 3), expected)


def test_compressed_questions_that_are_not_too_large_are_refused_as_others_are(shared, local):
    """Within the memory that there is, the limits of a question hold."""
    with pytest.raises(flight.FlightServerError, match="windows: 108,000 in one question"):
        exchange(shared, local, zeros(36_000), options=pa.ipc.IpcWriteOptions(compression="zstd"))


def test_clients_that_stand_still_or_vanish(shared, local):
    """Half a message, an answer that nobody reads, a connection that says nothing, one that is cut."""
    close_memories(shared.address)  # those of other tests
    memory, expected = shared.memory(), local.search(some(), 3)
    raw = [RawClient(socket.create_connection(("127.0.0.1", shared.port), timeout=PATIENCE_S)) for _ in range(20)]
    for number, client in enumerate(raw):
        match number % 4:
            case 0:
                client.send(start(), call(1), frame(DATA, 0, 1, message(b"x" * 1000, length=5_000_000)))
            case 1:
                client.send(start()[:10])
            case 2:
                client.send(start(), call(1))
            case _:
                pass
        assert_same(memory.search(some(), 3), expected)
    for client in raw:
        client.sock.close()
    vanishing = [flight.FlightClient(shared.address) for _ in range(5)]
    for client in vanishing:
        command = flight.FlightDescriptor.for_command(json.dumps({"fingerprint": local.fingerprint}).encode())
        writer, reader = client.do_exchange(command)
        writer.begin(wire.QUESTION)
        asked = wire.write_question(Question(some(), 3, None, None, None, 0, 5.0))
        writer.write_with_metadata(asked.batch, asked.document)
        reader.cancel()
        client.close()
        assert_same(memory.search(some(), 3), expected)
    wait_until(lambda: json.loads(http(shared.status_port, "/readyz")[1])["streams"] <= 1)


def test_calls_that_are_only_begun(folder, local):
    """Each costs the service a thread: without a limit for all clients together it runs out of them, and dies."""
    expected = local.search(some(), 3)
    with cli_serving(folder, "--max-memory-mb", "512") as serving, contextlib.ExitStack() as at_end:
        memory = serving.memory()
        assert_same(memory.search(some(), 3), expected)
        for _ in range(40):
            raw = RawClient(socket.create_connection(("127.0.0.1", serving.port), timeout=PATIENCE_S))
            at_end.enter_context(raw)
            raw.send(start(), *[call(1 + 2 * number) for number in range(16)])
        wait_until(lambda: "more than 128 calls at once: ask later" in serving.said())
        assert_same(memory.search(some(), 3), expected)
        assert psutil.Process(serving.process.pid).num_threads() < 350
        at_end.close()
        assert_same(serving.memory().search(some(), 3), expected)


def test_large_questions_of_many_at_once(folder, local):
    """More than the service may hold is told to come again, before it has come as a whole or while it would wait."""
    expected, large = local.search(some(), 3), zeros(51_000)
    with cli_serving(folder, "--max-memory-mb", "128", "--max-message-mb", "8") as serving:
        memory = serving.memory()
        memory.search(some(), 3)

        def ask(_: int) -> str:
            with pytest.raises(flight.FlightError) as refused:
                exchange(serving, local, large)
            return str(refused.value)

        with ThreadPoolExecutor(30) as pool:
            told = list(pool.map(ask, range(60)))
        assert any("windows: 153,000 in one question" in each for each in told), set(told)
        known = ("windows: 153,000", "on their way already: ask later", "MB of questions wait already")
        assert all(any(each in one for each in known) for one in told), told
        assert_same(memory.search(some(), 3), expected)


def test_a_full_disk_under_the_access_log(folder, local, tmp_path):
    """The file may not grow any more: it is said once, questions are answered, and a later line can be written."""
    log = tmp_path / "access.log"
    with cli_serving(folder, "--access-log", str(log)) as serving:
        memory = serving.memory()
        assert_same(memory.search(some(), 3), local.search(some(), 3))
        wait_until(lambda: '"search"' in log.read_text())
        size, hard = log.stat().st_size, resource.prlimit(serving.process.pid, resource.RLIMIT_FSIZE)[1]
        resource.prlimit(serving.process.pid, resource.RLIMIT_FSIZE, (size, hard))
        for _ in range(5):
            assert_same(memory.search(some(), 3), local.search(some(), 3))
        resource.prlimit(serving.process.pid, resource.RLIMIT_FSIZE, (hard, hard))
        memory.search(some(), 3)
        wait_until(lambda: log.stat().st_size > size)
        assert serving.said().count(f"lines of {log} are lost: [Errno 27] File too large") == 1


@pytest.mark.soak
def test_ten_minutes_of_full_load(repository):
    """No error, no wrong answer, and the same memory at the end; the command is that of the benchmark."""
    command = [sys.executable, "-m", "benchmarks.service_soak", "--minutes", "10"]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True, timeout=1500)
    assert done.returncode == 0, done.stdout + done.stderr


def test_many_that_ask_at_once(shared, local):
    """More than may wait in line: the others are told so, ask again, and every answer is the right one."""
    expected = local.search(some(), 3)

    def ask(_: int) -> None:
        memory = RemoteMemory(f"{shared.address}/small", access=Access(deadline_s=PATIENCE_S))
        for _ in range(3):
            assert_same(memory.search(some(), 3), expected)
        memory.close()

    with ThreadPoolExecutor(40) as pool:
        list(pool.map(ask, range(40)))
    code, page = http(shared.status_port, "/metrics")
    assert code == 200
    assert "memory_waiting 0.0" in page
