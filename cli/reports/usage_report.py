"""What `cli index show --plot` says of a version beside its manifest: lines and tables, a picture, a page.

What is said is found in `usage_document.py`; the picture is `pictures/usage.py`, the page `usage_page.py`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from cli.output import note, print_table

if TYPE_CHECKING:
    pass

from cli.reports.usage_document import HUB_COLUMNS, Findings, asked_line, hub_line, hub_rows, never_line


def print_usage(found: Findings) -> None:
    """The hubs as a table, and what is never retrieved in a line."""
    if len(found.usage.hubs):
        print_table(HUB_COLUMNS, hub_rows(found), title="\nHubs")
    for line in (asked_line(found), hub_line(found), never_line(found)):
        note(line)


def write_pictures(found: Findings, plot: Path | None, html: Path | None) -> None:
    """Draw into the files that are asked for."""
    if plot is not None:
        from cli.pictures.look import save
        from cli.pictures.usage import draw_usage

        save(draw_usage(found), plot)
        note(f"picture: {plot}")
    if html is not None:
        from cli.reports.usage_page import write_usage_page

        write_usage_page(html, found)
        note(f"page: {html}")
