"""Self-contained HTML pages: one file, no script, no request to anywhere, for a phone, for the dark and for paper.

A page is a title, a few sentences and blocks, each a picture or a table. What they say is told by whoever makes the
page (`neighbours.py`, `explanation_page.py`, `usage_page.py`); how it looks is `templates/page.html`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cli.targets import write_file
from cli.wording import short

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from cli.pictures.look import Shape

NAME_LENGTH = 32  # characters


@dataclass(frozen=True, kw_only=True, slots=True)
class PictureBlock:
    """A picture, drawn once for wide and once for narrow screens. caption: below it. alternative: in its place for
    those who cannot see it. heading: above it, may be empty.
    """

    draw: Callable[[Shape], Figure]
    caption: str
    alternative: str
    heading: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class TableBlock:
    """A table. rows: one cell per column; None is blank. text: numbers of the columns that are left-aligned. names:
    of those with names of series, which are shortened where they would push the others off the page.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[object]]
    caption: str
    text: tuple[int, ...] = ()
    names: tuple[int, ...] = ()
    heading: str = ""


def write_page(
    path: Path,
    title: str,
    summary: Sequence[str],
    blocks: Sequence[PictureBlock | TableBlock],
    *,
    warnings: Sequence[str] = (),
    footer: str = "",
) -> None:
    """Write a page. summary, warnings: a paragraph each. footer: what it was made from, small, at the end."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    from cli.pictures.look import PALETTE

    environment = Environment(
        loader=PackageLoader("cli"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    text = environment.get_template("page.html").render(
        title=title,
        summary=summary,
        warnings=warnings,
        blocks=[_rendered(block, number) for number, block in enumerate(blocks)],
        footer=footer,
        palette=PALETTE,
    )
    write_file(path, text.encode())


def _rendered(block: PictureBlock | TableBlock, number: int) -> dict[str, object]:
    """A block as the template reads it; every picture of a page has another name."""
    from cli.pictures.look import themed_svg

    if isinstance(block, TableBlock):
        rows = [
            ["" if cell is None else short(str(cell), NAME_LENGTH) if place in block.names else cell
             for place, cell in enumerate(row)]
            for row in block.rows
        ]  # fmt: skip
        return {
            "svgs": {},
            "heading": block.heading,
            "caption": block.caption,
            "columns": block.columns,
            "rows": rows,
            "text": block.text,
        }
    shapes: tuple[Shape, ...] = ("wide", "narrow")
    svgs = {shape: themed_svg(block.draw(shape), f"p{number}{shape}", block.alternative) for shape in shapes}
    return {"svgs": svgs, "heading": block.heading, "caption": block.caption}
