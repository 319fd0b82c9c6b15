"""Forecasts and explanations over HTTP: the numbers of the commands, bit for bit, in any form, within limits."""

from __future__ import annotations

import io
import json
import re
import shlex
import shutil
import subprocess
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import httpx
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from cli_fixtures import Made, make
from explore_fixtures import AT
from service_fixtures import PATIENCE_S, page, wait_until, whole_service

from cli.commands.index_serve import served_runs
from cli.main import run
from forecaster.runs.records import seal, unseal
from forecaster.runs.run import CONFIG
from forecaster.serving import Served
from memory_index.errors import ServiceError
from memory_index.service.serving import Service
from memory_index.service.turns import TimedMemory
from memory_index.wire import ARROW, Limits

JSON = "application/json"


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Made:
    return make(tmp_path_factory.getbasetemp())


@contextmanager
def forecasting(made: Made, *refs: str, run: Path | None = None, **settings: object):
    """A service that forecasts with the run, from some references."""
    runs = served_runs([run or made.run], [*refs], "cpu")
    refs = tuple(dict.fromkeys([*refs, *(each.ref for each in runs.values())]))
    with whole_service(made.indexes, refs, runs=runs, **settings) as service:
        yield service


@pytest.fixture(scope="module")
def service(made) -> Service:
    with forecasting(made, "m") as running:
        yield running


def post(service: Service, action: str, content: bytes | dict, kind: str = JSON, accept: str = JSON, **query: str):
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    [name] = service.app.runs
    with httpx.Client(trust_env=False, timeout=PATIENCE_S) as client:
        headers = {"content-type": kind, "accept": accept}
        where = f"{service.address}/v1/runs/{name}/{action}"
        return client.post(where, content=body, headers=headers, params=query)


@pytest.fixture
def printed(made, capfd):
    """What a command prints."""

    def run_command(*words: object) -> str:
        capfd.readouterr()
        assert run([str(word) for word in (*words, "--indexes-dir", made.indexes, "--device", "cpu")]) == 0
        return capfd.readouterr().out

    return run_command


def rows(frame: pd.DataFrame) -> list[dict]:
    return json.loads(frame.to_json(orient="records"))


def arrow(frame: pd.DataFrame) -> bytes:
    table, sink = pa.Table.from_pandas(frame, preserve_index=False), pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def test_a_forecast_is_that_of_the_command_in_every_form(made, service, printed):
    expected = printed("forecast", made.file, "--run", made.run)
    wide = pd.read_csv(made.file)
    long = wide.melt("date", var_name="unique_id", value_name="y").rename(columns={"date": "ds"})
    bodies = [(made.file.read_bytes(), "text/csv"), ({"history": rows(wide)}, JSON), ({"history": rows(long)}, JSON)]
    bodies += [({"history": wide.to_dict("list")}, JSON), (arrow(wide), ARROW)]
    bodies += [(arrow(long.assign(ds=pd.to_datetime(long["ds"]))), ARROW)]
    for body, kind in bodies:
        found = post(service, "forecast", body, kind, "text/csv")
        assert (found.status_code, found.text) == (200, expected)
    document = json.loads(printed("forecast", made.file, "--run", made.run, "--json"))
    told = post(service, "forecast", made.file.read_bytes(), "text/csv").json()
    for name in ("ref", "fingerprint", "horizon", "num_series", "forecast"):
        assert told[name] == document[name]
    frame = pa.ipc.open_stream(post(service, "forecast", {"history": rows(wide)}, accept=ARROW).content).read_pandas()
    pd.testing.assert_frame_equal(
        pd.read_csv(io.StringIO(frame.to_csv(index=False))), pd.read_csv(io.StringIO(expected))
    )


def test_a_missing_cell_is_null_in_json_and_empty_in_csv(service):
    gap = [row | ({"north": None} if 150 <= number < 153 else {}) for number, row in enumerate(HISTORY)]
    csv = pd.DataFrame(gap).to_csv(index=False).encode()
    found = [post(service, "forecast", {"history": gap}), post(service, "forecast", csv, "text/csv")]
    assert [each.status_code for each in found] == [200, 200]
    assert found[0].json()["forecast"] == found[1].json()["forecast"]
    assert found[0].json()["forecast"] != post(service, "forecast", {"history": HISTORY}).json()["forecast"]


def test_levels_may_be_chosen(made, service, printed):
    expected = printed("forecast", made.file, "--run", made.run, "--quantiles", "0.2,0.8")
    csv = made.file.read_bytes()
    assert post(service, "forecast", csv, "text/csv", "text/csv", quantiles="0.2,0.8").text == expected
    asked = {"history": rows(pd.read_csv(made.file)), "quantiles": [0.8, 0.2]}
    assert post(service, "forecast", asked, accept="text/csv").text == expected


def test_an_explanation_is_that_of_the_command(made, service, printed):
    expected = json.loads(printed("explain", made.file, "--run", made.run, "--series", "north", "--at", AT, "--json"))
    asked = {"history": rows(pd.read_csv(made.file)), "series": "north", "at": AT}
    csv = made.file.read_bytes()
    for found in (post(service, "explain", asked), post(service, "explain", csv, "text/csv", series="north", at=AT)):
        assert found.status_code == 200
        told = found.json()
        assert told["run"] == made.run.name
        assert {name: told[name] for name in expected if name not in ("schema", "run", "file")} == {
            name: value for name, value in expected.items() if name not in ("schema", "run", "file")
        }


def test_nothing_later_than_the_origin_is_known(service):
    """What follows the origin in the table is replaced by garbage: the forecast from there is the same, bit for bit."""
    at, num = TIMES[119], 120
    garbage = [row | {"north": 1e6 - number, "south": -1e6} for number, row in enumerate(HISTORY[num:])]
    answers = []
    for history in (HISTORY, [*HISTORY[:num], *garbage], HISTORY[:num]):
        told = post(service, "explain", {"history": history, "series": "north", "at": at}).json()
        answers.append((told["forecast"], told["quantiles"], [each["row_id"] for each in told["neighbours"]]))
    assert answers[0] == answers[1] == answers[2]
    forecast = pd.DataFrame(post(service, "forecast", {"history": HISTORY[:num]}).json()["forecast"])
    assert forecast.loc[forecast["unique_id"] == "north", "yhat"].tolist() == answers[0][0]


def test_a_newer_version_is_followed_or_named(made, tmp_path):
    """By default what the service calls by the run's name; else the one that the run was trained against."""
    indexes = Path(shutil.copytree(made.indexes, tmp_path / "indexes"))
    newer = replace(made, indexes=indexes)
    csv = made.newer.read_bytes()
    with forecasting(newer, "m", "m@1") as service:
        assert post(service, "forecast", csv, "text/csv").json()["ref"] == "m@1"
    with forecasting(newer, "m") as service:
        assert run(["index", "append", "m", str(made.newer), "--indexes-dir", str(indexes)]) == 0
        wait_until(lambda: service.hosting.versions()["m@latest"] == "m@2")
        assert post(service, "forecast", csv, "text/csv").json()["ref"] == "m@2"
        assert post(service, "forecast", csv, "text/csv", index="m@1").json()["ref"] == "m@1"
        assert post(service, "forecast", csv, "text/csv", index="other").status_code == 404
        window = ["--lookback", "24", "--horizon", "6"]
        assert run(["index", "build", str(made.file), "--name", "m", *window, "--indexes-dir", str(indexes)]) == 0
        wait_until(lambda: service.hosting.versions()["m@latest"] == "m@3")
        refused = post(service, "forecast", csv, "text/csv")
        assert (refused.status_code, refused.json()["error"]["kind"]) == (409, "IncompatibleError")
        assert refused.json()["error"]["message"].startswith(
            f"{made.run.name} was trained against m@1, but m@3 has another horizon"
        )


def test_a_run_that_was_trained_through_a_service_is_served_from_the_folder(made, tmp_path):
    config = Path(shutil.copytree(made.run, tmp_path / "remote")) / CONFIG
    content = unseal(config)
    config.write_bytes(seal({**content, "index": {**content["index"], "ref": "grpc://127.0.0.1:1/m@1"}}))
    with forecasting(made, run=tmp_path / "remote") as service:
        assert post(service, "forecast", made.file.read_bytes(), "text/csv").json()["ref"] == "m@1"


# Of another year than the version: it need not have the version's values.
TIMES = [f"2030-01-{day:02d} {hour:02d}:00" for day in range(1, 9) for hour in range(24)]
HISTORY = [{"date": time, "north": 1.0 * number, "south": 2.0} for number, time in enumerate(TIMES)]
MISTAKES = [
    (b"", JSON, 400, "is not JSON"),
    ({}, JSON, 400, "'history' must be a table"),
    ({"history": 3}, JSON, 400, "'history' must be a table"),
    ({"history": []}, JSON, 400, "'history' must be a table"),
    ({"history": {"a": [1, 2], "b": [1]}}, JSON, 400, "'history' is not a table"),
    ({"history": [{"x": 1}]}, JSON, 422, ""),
    ({"history": [1, 2, 3]}, JSON, 422, ""),
    ({"history": HISTORY[:20]}, JSON, 422, "too short|needs|only"),
    ({"history": HISTORY[::2]}, JSON, 409, "has a step of 2h"),
    ({"history": HISTORY, "future": [{"ds": 1}]}, JSON, 400, "columns of the history"),
    ({"history": HISTORY, "static": {}}, JSON, 400, "columns of the history"),
    ({"history": HISTORY, "horizon": 7}, JSON, 400, "'horizon' is not asked here"),
    ({"history": HISTORY, "quantiles": [2]}, JSON, 400, "'quantiles' must be"),
    ({"history": HISTORY, "quantiles": [0.5, 0.5]}, JSON, 400, "'quantiles' must be"),
    ({"history": HISTORY, "quantiles": "x"}, JSON, 400, "'quantiles' must be"),
    ({"history": HISTORY, "quantiles": [0.0001]}, JSON, 400, "cannot be calibrated"),
    ({"history": [*HISTORY[:90], HISTORY[90] | {"north": "x"}, *HISTORY[91:]]}, JSON, 422, "north"),
    (b"a,b\n1\n", "text/csv", 422, "history.csv"),
    (b"\xff\xfe\x00", "text/csv", 422, ""),
    (b"x", ARROW, 400, "is malformed"),
]


@pytest.mark.parametrize(("body", "kind", "status", "says"), MISTAKES, ids=[str(case[0])[:30] for case in MISTAKES])
def test_every_mistake_is_one_clear_error(service, capfd, body, kind, status, says):
    found = post(service, "forecast", body, kind)
    error = found.json()["error"]
    assert found.status_code in (status, 400, 422), found.text
    assert any(each in error["message"] for each in says.split("|")), error
    assert "\n" not in error["message"]
    assert tempfile.gettempdir() not in found.text  # nor any other place of the server
    assert "Traceback" not in capfd.readouterr().err


def test_an_explanation_needs_a_series_and_a_time(service):
    for more, status, says in (
        ({}, 400, "is of one 'series' 'at' one time"),
        ({"series": "west", "at": "2030-01-08 12:00"}, 404, "west"),
        ({"series": "north", "at": "soon"}, 400, "soon"),
        ({"series": "north", "at": "2035-01-08 12:00"}, 404, "2035"),
    ):
        found = post(service, "explain", {"history": HISTORY} | more)
        assert (found.status_code, says in found.text) == (status, True), found.text


def test_tables_that_grow_when_they_are_read_are_refused(made):
    """Columns without values have no bytes, whatever their length; compressed ones and nested ones may be anything."""
    null = pa.RecordBatch.from_arrays([pa.nulls(1 << 26)], names=["y"])
    text = pa.array(["a"]).dictionary_encode()
    nested = pa.RecordBatch.from_arrays([pa.array([[1.0]]), text], names=["y", "id"])
    with forecasting(made, "m", limits=Limits(max_message=1 << 20)) as service:
        for batch in (null, nested):
            sink = pa.BufferOutputStream()
            with pa.ipc.new_stream(sink, batch.schema) as writer:
                writer.write_batch(batch)
            found = post(service, "forecast", sink.getvalue().to_pybytes(), ARROW)
            assert found.status_code == 400, found.text
        assert post(service, "forecast", b"x" * (2 << 20), "text/csv").status_code == 413
    with forecasting(made, "m", limits=Limits(max_windows=1)) as service:
        refused = post(service, "forecast", made.file.read_bytes(), "text/csv")
        assert (refused.status_code, "2 series at once" in refused.text) == (422, True)


def test_a_forecast_has_its_turn_and_its_time(made, monkeypatch):
    """One at a time with the searches; what takes too long ends before the memory is asked again."""
    inside, go_on, answer = threading.Event(), threading.Event(), Served.answer

    def slow(self, question, memory, ref):
        inside.set()
        go_on.wait(PATIENCE_S)
        return answer(self, question, memory, ref)

    monkeypatch.setattr(Served, "answer", slow)
    csv = made.file.read_bytes()
    with forecasting(made, "m") as service, ThreadPoolExecutor(2) as pool:
        first = pool.submit(post, service, "forecast", csv, "text/csv")
        inside.wait(PATIENCE_S)
        second = pool.submit(post, service, "forecast", csv, "text/csv")
        wait_until(lambda: service.app.turns.num_waiting == 1)
        assert page(service.address, "/healthz").status_code == 200
        go_on.set()
        assert first.result(PATIENCE_S).content == second.result(PATIENCE_S).content
    monkeypatch.undo()
    with forecasting(made, "m", limits=Limits(max_seconds=1e-9)) as service:
        refused = post(service, "forecast", csv, "text/csv")
        assert refused.status_code in (503, 504)
    with pytest.raises(Exception, match="takes longer than this service allows"):
        TimedMemory(None, 0.0).search()  # type: ignore[arg-type]


def test_runs_are_told_and_have_names_of_their_own(made, service, capsys):
    assert page(service.address, "/readyz").json()["runs"] == {made.run.name: "m"}
    assert page(service.address, "/v1/indexes").json()["runs"] == {made.run.name: "m"}
    words = ["index", "serve", "m", "--port", "0", "--run", str(made.run), "--run", str(made.run)]
    assert run([*words, "--indexes-dir", str(made.indexes)]) == 2
    assert "two runs would have the name" in capsys.readouterr().err


def test_examples_of_the_documentation_work_as_typed(made, service, tmp_path, repository):
    """Every curl line of docs/service.md, and its client in Python, against this service."""
    text = (repository / "docs/service.md").read_text()
    place = {
        "http://127.0.0.1:8815": service.address,
        "runs/load": f"runs/{made.run.name}",
        "indexes/load": "indexes/m",
    }
    shutil.copy(made.file, tmp_path / "load.csv")
    lines = re.findall(r"^    (curl (?:.*\\\n)*.*)$", text, re.MULTILINE)
    assert len(lines) >= 4
    for line in lines:
        for old, new in place.items():
            line = (
                line.replace(old, new)
                .replace("feeder_north", "north")
                .replace("2024-09-25T23:00", AT.replace(" ", "T"))
            )
        words = shlex.split(line.replace("\\\n", " "))
        done = subprocess.run([*words, "-s", "--fail-with-body"], capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == 0, line + done.stdout + done.stderr
        assert done.stdout
    [client] = re.findall(r"^    import csv.*?(?=^\S)", text, re.MULTILINE | re.DOTALL)
    code = "\n".join(each.removeprefix("    ") for each in client.splitlines())
    for old, new in place.items():
        code = code.replace(old, new)
    assert len(code.strip().splitlines()) <= 10
    done = subprocess.run(["python3", "-I", "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "north" in done.stdout


def test_numbers_are_exact(made, service):
    """A forecast in JSON is every bit of the float32 that was computed."""
    told = post(service, "forecast", made.file.read_bytes(), "text/csv").json()["forecast"]
    frame = pa.ipc.open_stream(
        post(service, "forecast", made.file.read_bytes(), "text/csv", ARROW).content
    ).read_pandas()
    for name in ("yhat", "q0.1", "q0.9"):
        np.testing.assert_array_equal(
            np.array([row[name] for row in told], np.float32), frame[name].to_numpy(np.float32)
        )


def test_a_search_that_fails_elsewhere_is_told(made, service, monkeypatch):
    def fail(*arguments, **options):
        raise ServiceError("Milvus could not search", hint="see its log")

    monkeypatch.setattr(type(service.hosting.open("m").memory), "search", fail)
    found = post(service, "forecast", made.file.read_bytes(), "text/csv")
    assert (found.status_code, found.json()["error"]["message"]) == (500, "Milvus could not search")
