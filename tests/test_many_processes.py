"""Several processes that train together: one of them asks the memory, and what becomes of it becomes of all."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from forecaster_fixtures import interrupt, linger, make_small, refuse, token_of, train_at_address_in_one_of, train_small
from killing import PROCESSES, run_together
from service_fixtures import served
from toy_training import free_port

from forecaster.runs.run import open_run
from memory_index.errors import ResourceError, ServiceError

PROCESSES.set_forkserver_preload(["forecaster_fixtures", "torch._dynamo"])
# Without cross-fitting training windows ask the memory itself too.
CHANGED = {"dropout": 0.0, "epochs": 1, "num_folds": 1}


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return make_small(tmp_path_factory.getbasetemp())


@pytest.fixture
def log(tmp_path):
    """The access log of the service."""
    return tmp_path / "access.log"


@pytest.fixture
def address(small, log, tmp_path):
    tokens = tmp_path / "tokens"
    tokens.write_text("".join(f"process-{rank} {token_of(rank)}\n" for rank in range(2)))
    tokens.chmod(0o600)
    with served(small.folder / "indexes", ["m"], token_file=tokens, access_log=log) as address:
        yield address


def train_together(address: str, out: Path, *changed: dict, trouble=None) -> list:
    """What both processes return. changed: settings of both, or of each."""
    port, changed = free_port(), changed if len(changed) == 2 else changed * 2
    return run_together(
        train_at_address_in_one_of,
        *((rank, port, f"{address}/m", out, CHANGED | changed[rank], trouble) for rank in range(2)),
    )


def questions(log: Path) -> dict[str, int]:
    """How many questions each process has asked."""
    calls = [json.loads(line) for line in log.read_text().splitlines()]
    asked = [call["caller"] for call in calls if call["method"] == "search"]
    return {caller: asked.count(caller) for caller in asked}


def arrays(folder: Path) -> dict[str, bytes]:
    """The files of all caches of neighbours in a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.npy")}


def test_one_process_asks_for_all(small, address, log, tmp_path):
    train_small(small.memory, tmp_path / "alone", neighbours_dir=tmp_path / "found-alone", **CHANGED)
    neighbours = {"neighbours_dir": tmp_path / "found"}
    weights, others = train_together(address, tmp_path / "run", neighbours)
    assert weights == others
    for name, value in open_run(tmp_path / "alone").weights()[0].items():
        np.testing.assert_allclose(weights[name], value.flatten(), rtol=1e-3, atol=1e-4, err_msg=name)
    assert questions(log).keys() == {"process-0"}
    assert arrays(tmp_path / "found") == arrays(tmp_path / "found-alone")
    log.write_text("")
    train_together(address, tmp_path / "another", neighbours)
    assert questions(log) == {}


def test_a_folder_that_is_not_shared_is_filled_on_each_side(address, log, tmp_path):
    apart = [{"neighbours_dir": tmp_path / f"neighbours-{rank}"} for rank in range(2)]
    weights, others = train_together(address, tmp_path / "run", *apart)
    assert weights == others
    asked = questions(log)
    assert asked.keys() == {"process-0", "process-1"}
    assert asked["process-0"] == asked["process-1"]


def test_a_slow_service_does_not_end_those_who_wait(address, log, tmp_path):
    weights, others = train_together(address, tmp_path / "run", {}, trouble=linger)
    assert isinstance(weights, dict)
    assert weights == others
    assert questions(log).keys() == {"process-0"}


def test_an_error_in_the_process_that_asks_ends_the_others(address, log, tmp_path):
    first, second = train_together(address, tmp_path / "run", {}, trouble=refuse)
    assert isinstance(first, ServiceError)
    assert isinstance(second, ResourceError)
    assert str(second) == "another process of this training could not find the neighbours"
    assert questions(log) == {}


def test_a_process_that_is_interrupted_ends_the_others(address, tmp_path):
    first, second = train_together(address, tmp_path / "run", {}, trouble=interrupt)
    assert first == "interrupted"
    assert isinstance(second, ResourceError)
    assert "has ended" in str(second)
