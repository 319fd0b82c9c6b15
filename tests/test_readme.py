"""The README does what it says: its snippet runs, its files exist; its commands are run by `test_guide.py`."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import memory_index
from forecaster.config import ModelConfig, TrainConfig
from memory_index.tables.catalog import shipped


@pytest.fixture(scope="module")
def readme(repository: Path) -> str:
    return (repository / "README.md").read_text(encoding="utf-8")


def test_the_python_snippet_runs(readme, tmp_path, repository):
    """On the last fifth of the sample, with intervals that are calibrated on a tenth of what it takes by default."""
    [snippet] = re.findall(r"```python\n(.*?)```", readme, flags=re.DOTALL)
    for name in ("demand.csv", "tomorrow.csv"):
        head, *lines = shipped(name).read_text().splitlines(keepends=True)
        (tmp_path / name).write_text("".join([head, *lines[-3000:]]))
    few = "import forecaster.retrieval.asked as asked; asked.FAN_CELLS = 25_000"
    (tmp_path / "snippet.py").write_text(f"import sys; sys.path.insert(0, {str(repository)!r})\n{few}\n{snippet}")
    done = subprocess.run([sys.executable, "snippet.py"], cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    mse, plain, colder = (float(line) for line in done.stdout.splitlines())
    assert 0 < mse < 1
    assert 40 < plain < colder


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


def rooms(repository: Path) -> dict[str, set[str]]:
    """The folders of the packages that hold modules, and the modules in each."""
    found: dict[str, set[str]] = {}
    for package in ("memory_index", "forecaster", "cli"):
        for path in (repository / package).rglob("*.py"):
            folder = path.parent.relative_to(repository).as_posix()
            found.setdefault(folder, set()).update({path.name} - {"__init__.py", "__main__.py"})
    return found


def test_the_tree_in_the_readme_is_the_folder_tree(readme, repository):
    [tree] = re.findall(r"```\n(memory_index/.*?)```", readme, flags=re.DOTALL)
    named: list[str] = []
    for inner, folder in re.findall(r"^( *)(\w+)/ +\S", tree, flags=re.MULTILINE):
        named.append(f"{named[-1].partition('/')[0]}/{folder}" if inner else folder)
    assert len(named) == len(tree.splitlines())
    assert [folder for folder in named if not (repository / folder).is_dir()] == []
    for package in ("memory_index", "forecaster", "cli", "benchmarks"):
        below = {path.name for path in (repository / package).iterdir() if path.is_dir()} - {"__pycache__"}
        assert {folder.partition("/")[2] for folder in named if folder.startswith(f"{package}/")} == below


def test_the_architecture_lists_the_files_of_every_folder(repository):
    text = (repository / "docs" / "architecture.md").read_text()
    sections = re.findall(r"^### `([\w/]+)/`\n(.*?)(?=^##)", text, flags=re.MULTILINE | re.DOTALL)
    listed = {
        folder: re.findall(r"`(\w+\.py)`", "".join(re.findall(r"^\|([^|]*)\|", section, flags=re.MULTILINE)))
        for folder, section in sections
    }
    assert {folder: sorted(names) for folder, names in listed.items()} == {
        folder: sorted(names) for folder, names in rooms(repository).items() if names
    }


def test_files_named_in_the_architecture_are_there(repository):
    text = (repository / "docs" / "architecture.md").read_text()
    paths = set(re.findall(r"`((?:memory_index|forecaster|cli)/[\w/]+\.py)`", text))
    assert len(paths) > 30
    assert [path for path in sorted(paths) if not (repository / path).is_file()] == []


def test_the_architecture_says_where_every_setting_is_defined(repository):
    text = (repository / "docs" / "architecture.md").read_text()
    rows = re.findall(r"^\| (`\w+`[^|]*) \| ([^|]*`forecaster/[^|]*) \|$", text, flags=re.MULTILINE)
    told = {
        name: path
        for names, paths in rows
        for group, path in zip(names.split("; "), re.findall(r"`([^`]+)`", paths), strict=True)
        for name in re.findall(r"`(\w+)`", group)
    }
    defined = {
        name: each.__module__.replace(".", "/") + ".py"
        for record in (ModelConfig, TrainConfig)
        for each in record.__mro__[:-1]
        for name in each.__annotations__
    }
    assert told == defined


def test_public_names_are_there_and_documented():
    for name in memory_index.__all__:
        assert getattr(memory_index, name).__doc__ or name == "Scope", name
    assert memory_index.__all__ == sorted(memory_index.__all__)
