"""The guide and the README do what they say: their commands run in order and draw pictures. So does the notebook."""

from __future__ import annotations

import contextlib
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pandas as pd
import pytest

from benchmarks import pictures
from cli.main import run
from forecaster.retrieval import asked
from memory_index.tables.catalog import shipped

# A part of the samples: the origin of the pictures stays in the test part, and training takes a sixth as long.
NUM_ROWS, LEFT_OUT = 4320, ["wind", "price"]
# Calibrating intervals on a tenth of what it takes by default: these tests are of words and files, not of figures.
FEW_CELLS = "import forecaster.retrieval.asked as asked; asked.FAN_CELLS = 25_000"


@contextlib.contextmanager
def quickly() -> Iterator[None]:
    """As `FEW_CELLS` says, in this process."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(asked, "FAN_CELLS", 25_000)
        yield


def run_commands(folder: Path, page: Path) -> None:
    """Run the commands of a page as `make pictures` does, but on a part of the sample and all in this process."""
    for name, of in pictures.SAMPLES.items():
        whole = pd.read_csv(shipped(of), dtype=str).drop(columns=LEFT_OUT, errors="ignore")
        whole.tail(NUM_ROWS).to_csv(folder / name, index=False)
    with contextlib.chdir(folder):
        for command in pictures.commands(page):
            program, *arguments = shlex.split(command)
            if program == "cli":
                assert run(arguments) == 0, command
            else:
                subprocess.run([program, *arguments], check=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Where the commands of the guide have run."""
    path = tmp_path_factory.mktemp("guide")
    with quickly():
        run_commands(path, pictures.GUIDE)
    return path


def test_the_commands_of_the_guide_draw_its_pictures(folder):
    assert len(pictures.commands()) > 10
    drawn = {name for name in pictures.images() if name != "explore.png"}  # the page's: see test_explore_browser.py
    assert drawn == {path.name for path in folder.glob("*.png")}
    for name in drawn:
        assert (folder / name).read_bytes().startswith(b"\x89PNG")
        assert (pictures.IMAGES / name).is_file(), f"{name}: run 'make pictures'"
    assert (folder / "explanation.html").stat().st_size > 100_000
    assert (folder / "elsewhere" / "run" / "card.md").is_file()


def test_the_commands_of_the_readme_run_in_order(folder, tmp_path, repository):
    """On the same data as the guide's, so that the neighbours of its windows need not be found again."""
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / ".neighbours").symlink_to(folder / "runs" / ".neighbours")
    found = {path.name for path in (folder / "runs" / ".neighbours").iterdir()}
    assert len(pictures.commands(repository / "README.md")) == 7
    with quickly():
        run_commands(tmp_path, repository / "README.md")
    for made in ("forecast.csv", "forecast.png", "colder.csv", "explanation.png"):
        assert (tmp_path / made).stat().st_size > 1000
    assert {path.name for path in (tmp_path / "runs" / ".neighbours").iterdir()} == found


def test_the_notebook_runs(tmp_path):
    read = f"whole(path).tail({NUM_ROWS}).drop(columns={LEFT_OUT}, errors='ignore')"
    part = f"import pandas as pd; whole = pd.read_csv; pd.read_csv = lambda path: {read}"
    notebook = pictures.run_notebook(tmp_path, first=f"{part}; {FEW_CELLS}")
    nbformat.validate(notebook)
    shown = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    assert sum("image/png" in output.get("data", {}) for output in shown) == 2
    assert [output for output in shown if output.output_type == "error"] == []
    assert list(pictures.ROOT.glob("kernel-*")) == []
