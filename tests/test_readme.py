"""The README does what it says: its snippet runs, its files exist; its commands are run by `test_guide.py`."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import memory_index
from memory_index.tables.catalog import shipped


@pytest.fixture(scope="module")
def readme(repository: Path) -> str:
    return (repository / "README.md").read_text(encoding="utf-8")


def test_the_python_snippet_runs(readme, tmp_path, repository):
    """On less than half of the sample, which takes less than half as long to train on."""
    [snippet] = re.findall(r"```python\n(.*?)```", readme, flags=re.DOTALL)
    lines = shipped("sample.csv").read_text().splitlines(keepends=True)
    (tmp_path / "load.csv").write_text("".join(lines[:3001]))
    (tmp_path / "snippet.py").write_text(f"import sys; sys.path.insert(0, {str(repository)!r})\n{snippet}")
    done = subprocess.run([sys.executable, "snippet.py"], cwd=tmp_path, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    assert 0 < float(done.stdout) < 1


def test_the_two_make_targets_exist(readme, repository):
    makefile = (repository / "Makefile").read_text()
    for target in re.findall(r"^make (\w+)", readme, flags=re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """What GitHub makes of the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_links_between_documents_lead_somewhere(repository):
    for page in [repository / "README.md", *(repository / "docs").glob("*.md")]:
        for link, anchor in re.findall(r"\]\(([^)#]*)#?([^)]*)\)", page.read_text(encoding="utf-8")):
            target = page.parent / link if link else page
            assert link.startswith("http") or target.exists(), f"{page.name}: {link}"
            if anchor and target.suffix == ".md":
                assert anchor in anchors(target), f"{page.name}: {link}#{anchor}"


def test_files_named_in_the_architecture_exist(repository):
    text = (repository / "docs" / "architecture.md").read_text()
    by_name = set(re.findall(r"`(\w+\.py)`", text))
    of_memory = {path.name for path in (repository / "memory_index").rglob("*.py")} - {"__init__.py"}
    assert by_name == of_memory | {"look.py"}  # of cli/pictures
    for package in ("forecaster", "cli"):
        named = set(re.findall(rf"`{package}/(\w+\.py)`", text))
        there = {path.name for path in (repository / package).glob("*.py")}
        assert named == there - {"__init__.py", "__main__.py"}


def test_public_names_are_there_and_documented():
    for name in memory_index.__all__:
        assert getattr(memory_index, name).__doc__ or name == "Scope", name
    assert memory_index.__all__ == sorted(memory_index.__all__)
