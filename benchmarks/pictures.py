"""The pictures of the docs: runs every command of docs/guide.md on the samples, in its order, and keeps what they draw.

    python -m benchmarks.pictures                 # into docs/images, and docs/tour.ipynb with its outputs
    python -m benchmarks.pictures --out FOLDER    # somewhere else, and nothing in docs is changed

Needs the extras `plot`, `explore` and `dev`, and a chromium on the PATH for the page of `cli explore`.
"""

from __future__ import annotations

import argparse
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import nbclient
import nbformat
from jupyter_client import AsyncKernelManager

ROOT = Path(__file__).resolve().parents[1]
GUIDE, IMAGES, NOTEBOOK = ROOT / "docs" / "guide.md", ROOT / "docs" / "images", ROOT / "docs" / "tour.ipynb"
AT = "2024-01-17 23:00"  # the origin of the page: in the test part
COLDER = "?known=temperature%2B%3D-5"
SAMPLES = {"load.csv": "sample.csv", "demand.csv": "demand.csv", "tomorrow.csv": "tomorrow.csv"}
TIMEOUT = 600  # seconds for one command


def commands(page: Path = GUIDE) -> list[str]:
    """Every command of a page's console blocks, but for `make`, which is not for a copy of the samples."""
    blocks = re.findall(r"```console\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if not line.startswith("make ")]


def images(page: Path = GUIDE) -> list[str]:
    """File names of the pictures that a page shows."""
    return re.findall(r"\]\(images/([^)]+)\)", page.read_text(encoding="utf-8"))


def run_commands(folder: Path, page: Path = GUIDE) -> None:
    """Run a page's commands in a folder that gets the samples (`SAMPLES`). Raises `CalledProcessError`."""
    for name, of in SAMPLES.items():
        shutil.copy(ROOT / "datasets" / of, folder / name)
    start = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from cli.main import main; main()"
    program = shlex.join([sys.executable, "-c", start])
    for command in commands(page):
        line = re.sub("^cli ", lambda _: f"{program} ", command)
        # In a shell, because the commands quote their arguments.
        subprocess.run(line, shell=True, cwd=folder, check=True, timeout=TIMEOUT, capture_output=True, text=True)  # noqa: S602


def run_notebook(folder: Path, *, first: str = "") -> nbformat.NotebookNode:
    """The notebook with the outputs of a fresh run in a folder. Raises `CellExecutionError` that shows the cell.

    first: code that runs before its cells.
    """
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    start = f"import os, sys; os.chdir({str(folder)!r}); sys.path.insert(0, {str(ROOT)!r})\n{first}"
    notebook.cells.insert(0, nbformat.v4.new_code_cell(start))
    # By files, not by ports that others on this machine could reach.
    kernel = AsyncKernelManager(kernel_name="python3", transport="ipc", connection_file=str(folder / "kernel.json"))
    nbclient.NotebookClient(notebook, km=kernel, timeout=TIMEOUT).execute()
    del notebook.cells[0]
    for cell in notebook.cells:
        if cell.cell_type == "code":  # what libraries say of themselves is not worth keeping
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    return notebook


def photograph(folder: Path, target: Path) -> None:
    """The page of `cli explore` on the guide's run with weather, five degrees colder, as a picture."""
    from playwright.sync_api import sync_playwright

    browsers = [found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))]
    if not browsers:
        raise SystemExit("no chromium on the PATH: 'make browser' installs one")
    program = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from cli.main import main; main()"
    explore = ["explore", "demand.csv", "--run", "runs/demand", "--series", "demand", "--at", AT, "--port", "0"]
    server = subprocess.Popen([sys.executable, "-c", program, *explore], cwd=folder, stderr=subprocess.PIPE, text=True)
    try:
        assert server.stderr is not None
        address = next(found[0] for line in server.stderr if (found := re.search(r"http://\S+", line)))
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=browsers[0], args=["--no-sandbox", "--disable-gpu"])
            page = browser.new_page(viewport={"width": 1280, "height": 900})
            page.goto(address + COLDER)
            page.wait_for_load_state("networkidle")
            page.screenshot(path=target, full_page=True)
            browser.close()
    finally:
        server.terminate()
        server.wait(timeout=30)


def main() -> None:
    """Make them all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=IMAGES)
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        folder, started = Path(temporary), time.perf_counter()
        run_commands(folder)
        photograph(folder, out / "explore.png")
        for name in images():
            if name != "explore.png":
                shutil.copy(folder / name, out / name)
        if out == IMAGES:
            nbformat.write(run_notebook(folder), NOTEBOOK)
        print(f"{len(images())} pictures in {out}, {time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
