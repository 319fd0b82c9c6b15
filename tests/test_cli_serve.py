"""`cli index serve` as real processes on this machine: how they begin, what harms them, how they end, what is left."""

from __future__ import annotations

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

import psutil
import pytest
import typer
from memory_fixtures import NUM_TRAINING, assert_same, built, open_version, queries_at, wide_table
from service_fixtures import (
    CERTIFICATES,
    PATIENCE_S,
    Serving,
    cli_serving,
    long_question,
    page,
    wait_until,
)

from cli.main import app, run
from cli.options import SERVE_OPTIONS
from memory_index.errors import BusyError, ServiceError
from memory_index.leakage import Policy
from memory_index.local import LocalMemory
from memory_index.service.settings import Settings
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


def some(policy: Policy = Policy.CAUSAL) -> Queries:
    return queries_at(wide_table(), range(NUM_TRAINING - 10, NUM_TRAINING + 20), policy)


# It works, and ends


def test_from_beginning_to_end(folder, local, tmp_path):
    """Several versions, a log, health; then SIGTERM: exit 0, and nothing is left."""
    log = tmp_path / "access.log"
    with cli_serving(folder, "--access-log", str(log), refs=["small", "small@1"]) as serving:
        assert serving.address.startswith("http://127.0.0.1:")
        assert page(serving.address, "/readyz").json()["versions"] == {
            "small@latest": "small@1",
            "small@1": "small@1",
        }
        assert_same(serving.memory().search(some(), 3), local.search(some(), 3))
        assert_same(serving.memory("small@1").search(some(), 3), local.search(some(), 3))
        assert serving.end(signal.SIGINT) == 0
        said = serving.said()
    assert f"serving {serving.address}/small, which is small@1 now" in said
    assert "without a token: this machine only, and everyone on it, can ask" in said
    assert said.endswith("ended\n")
    assert {json.loads(line)["method"] for line in log.read_text().splitlines()} >= {"open", "search"}


def test_a_drain_answers_what_is_under_way(folder, local):
    asked = long_question(some(), 600)
    expected = local.search(asked, 100)
    with cli_serving(folder) as serving, ThreadPoolExecutor(1) as pool:
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


def test_killed_in_the_middle_of_many_questions(folder, local):
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
        waiting = pool.submit(patient.search, some(), 3)
        with cli_serving(folder, port=port):
            assert_same(waiting.result(PATIENCE_S), expected)


def test_help_states_the_defaults_that_are():
    settings = Settings()
    defaults = asdict(settings) | asdict(settings.limits)
    defaults |= {"max_message_mb": settings.limits.max_message // MEGABYTE}
    defaults |= {"max_memory_mb": settings.max_held // MEGABYTE}
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
        (["smal", "--port", "0"], 4, "there is no index 'smal'"),
        (["small@7", "--port", "0"], 4, "small@7 does not exist"),
        (["http://127.0.0.1:1/small", "--port", "0"], 2, "is served already"),
        (["grpc://127.0.0.1:1/small", "--port", "0"], 2, "is served already"),
        (["small", "--port", "0", "--run", "nowhere"], 4, "nowhere"),
        (["small@1", "milvus://127.0.0.1:1/small", "--port", "0"], 2, "would have one name here"),
        (["small", "--port", "0", "--access-log", "."], 2, ". is a folder"),
        (["small", "--port", "0", "--host", "0.0.0.0"], 2, "listens on this machine only"),
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
