"""Self-contained HTML pages: one file, no request to anywhere, readable on a phone and in dark mode."""

from __future__ import annotations

import base64
import io
from html import escape
from typing import TYPE_CHECKING

from cli.neighbours import COLUMNS, rows
from cli.pictures import draw_neighbours

if TYPE_CHECKING:
    from memory_index.inspection import Inspection
    from memory_index.windows import StoredWindows

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark"><title>{title}</title><style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 0 auto; padding: 1rem; }}
img {{ max-width: 100%; background: #fff; border-radius: 6px; }}
.wide {{ overflow-x: auto; }}
table {{ border-collapse: collapse; font-size: 0.85rem; font-variant-numeric: tabular-nums; }}
caption {{ text-align: left; font-weight: 600; padding: 0.5rem 0; }}
th, td {{ padding: 0.2rem 0.6rem; text-align: right; border-bottom: 1px solid #8886; white-space: nowrap; }}
</style></head><body><h1>{title}</h1><p>{summary}</p>
<img alt="{alternative}" src="data:image/png;base64,{image}">
<div class="wide"><table><caption>{caption}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>
</body></html>
"""


def neighbours_page(found: Inspection, windows: StoredWindows, ref: str) -> str:
    """The picture and the table of `cli index neighbours` as one page."""
    image = io.BytesIO()
    draw_neighbours(found, windows, ref).savefig(image, format="png", dpi=130)
    nearest = min(found.neighbours, key=lambda n: n.distance)
    return PAGE.format(
        title=escape(f"{found.series_id} at {found.origin_text}"),
        summary=escape(
            f"What the memory {ref} retrieves for this window. Every neighbour was completely known at the origin."
            + (" A fitted part of this version has seen later steps (in sample)." if found.in_sample else "")
        ),
        alternative=escape(
            f"{found.series_id} up to {found.origin_text} with {len(found.neighbours)} similar windows of the past "
            f"laid over it, what followed each of them, and the forecast made from them. "
            f"The nearest begins at {nearest.start} in series {nearest.series_id}, "
            f"at a distance of {nearest.distance:.3f}."
        ),
        image=base64.b64encode(image.getvalue()).decode(),
        caption=escape("Neighbours, nearest first within each scope and view"),
        head="".join(f"<th scope=col>{escape(column)}</th>" for column in COLUMNS),
        body="".join(
            "<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in row) + "</tr>" for row in rows(found)
        ),
    )
