"""The wheel, installed somewhere else: it carries all that the program needs, the sample and the catalogue too."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

from cli import __version__


def _run(*command: str | Path, **options) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, timeout=600, check=False, **options
    )
    assert done.returncode == 0, f"{command}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


@pytest.fixture(scope="module")
def wheel(repository, tmp_path_factory) -> Path:
    """Built by way of the source archive, so that it is complete as well."""
    folder = tmp_path_factory.mktemp("dist")
    _run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, repository)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def elsewhere(wheel, tmp_path_factory) -> dict:
    """Options that run a program on the installed wheel, out of sight of the source tree."""
    site = tmp_path_factory.mktemp("site")
    _run(sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--target", site, wheel)
    environment = {**os.environ, "PYTHONPATH": str(site)}
    return {"env": environment, "cwd": tmp_path_factory.mktemp("elsewhere")}


def test_wheel_holds_the_packages_and_the_data(wheel, repository):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        top_level = {name.split("/")[0] for name in names if ".dist-info/" not in name}
        assert top_level == {"cli", "forecaster", "memory_index"}
        assert {f"{package}/py.typed" for package in top_level} <= names
        assert "cli/templates/page.html" in names
        assert [name for name in names if name.startswith("cli/explorer/assets/")]
        for name in ("sample.csv", "demand.csv", "tomorrow.csv", "catalog.toml"):
            assert archive.read(f"memory_index/shipped/{name}") == (repository / "datasets" / name).read_bytes()
        assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)


def test_wheel_metadata(wheel):
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        metadata = Parser().parsestr(archive.read(name).decode())
    assert metadata["Version"] == __version__
    assert metadata["License-Expression"] == "Apache-2.0"
    assert {requirement.split(">")[0] for requirement in metadata.get_all("Requires-Dist")} >= {"torch", "faiss-cpu"}


def test_installed_wheel_is_the_one_that_runs(elsewhere, repository):
    program = "import cli, memory_index, forecaster; print(cli.__file__, memory_index.__file__, forecaster.__file__)"
    files = _run(sys.executable, "-c", program, **elsewhere).stdout.split()
    site = Path(elsewhere["env"]["PYTHONPATH"])
    assert all(Path(file).is_relative_to(site) for file in files)
    assert _run(sys.executable, "-m", "cli", "--version", **elsewhere).stdout == f"cli {__version__}\n"


def test_catalogue_is_found(elsewhere, repository):
    catalogue = tomllib.loads((repository / "datasets" / "catalog.toml").read_text())
    listed = _run(sys.executable, "-m", "cli", "data", "list", "--json", **elsewhere).stdout
    assert json.loads(listed)
    assert "ETTh1" in listed
    assert catalogue


def test_the_shipped_sample_gives_a_page(elsewhere):
    # A page needs the sample, the template and every package. The whole way is `make demo`.
    cli = [sys.executable, "-m", "cli"]
    program = "from memory_index.tables.catalog import shipped; print(shipped('sample.csv'))"
    sample = _run(sys.executable, "-c", program, **elsewhere).stdout.strip()
    size = ["--lookback", "96", "--horizon", "24", "--views", "96", "--stride", "4"]
    _run(*cli, "index", "build", sample, "--name", "load", *size, **elsewhere)
    window = ["--series", "wind", "--at", "2024-09-25 23:00"]
    _run(*cli, "index", "neighbours", "load", sample, *window, "--html", "page.html", **elsewhere)
    assert "<svg" in (elsewhere["cwd"] / "page.html").read_text()
    assert not (Path(elsewhere["env"]["PYTHONPATH"]) / "memory_index" / "shipped" / "indexes").exists()


def test_constraints_cover_every_dependency(repository):
    project = tomllib.loads((repository / "pyproject.toml").read_text())["project"]
    wanted = [
        *project["dependencies"],
        *(name for extra in project["optional-dependencies"].values() for name in extra),
    ]
    lines = (repository / "constraints.txt").read_text().splitlines()
    pins = [line.split("==") for line in lines if line and not line.startswith("#")]
    pinned = {_normalised(name): version for name, version in pins}
    assert pinned["torch"] == "2.13.0"
    for requirement in wanted:
        name, lowest = requirement.split(">=")
        assert _normalised(name) in pinned, f"{name} is not pinned"
        assert _numbers(pinned[_normalised(name)]) >= _numbers(lowest), f"{name} is pinned below its lower bound"


def _normalised(name: str) -> str:
    """Of two spellings of a distribution's name that mean the same one (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())
