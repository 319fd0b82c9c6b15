"""The guide does what it says: its commands run in their order and draw its pictures, and so does the notebook."""

from __future__ import annotations

import nbformat

from benchmarks import pictures


def test_the_commands_of_the_guide_draw_its_pictures(tmp_path):
    assert len(pictures.commands()) > 10
    pictures.run_commands(tmp_path)
    drawn = {name for name in pictures.images() if name != "explore.png"}  # the page's: see test_explore_browser.py
    assert drawn == {path.name for path in tmp_path.glob("*.png")}
    for name in drawn:
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
        assert (pictures.IMAGES / name).is_file(), f"{name}: run 'make pictures'"
    assert (tmp_path / "explanation.html").stat().st_size > 100_000
    assert (tmp_path / "elsewhere" / "run" / "card.md").is_file()


def test_the_notebook_runs(tmp_path):
    notebook = pictures.run_notebook(tmp_path)
    nbformat.validate(notebook)
    shown = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    assert sum("image/png" in output.get("data", {}) for output in shown) == 2
    assert [output for output in shown if output.output_type == "error"] == []
    assert list(pictures.ROOT.glob("kernel-*")) == []
