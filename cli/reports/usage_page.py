"""The page of `cli index show --html`: what a version covers and how it is used."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from cli.reports.usage_document import (
    HUB_COLUMNS,
    asked_line,
    gaps_by_series,
    hub_line,
    hub_rows,
    minutes,
    never_line,
    space_document,
)

if TYPE_CHECKING:
    from cli.reports.pages import PictureBlock
    from cli.reports.usage_document import Findings
    from memory_index.types import KeySpace

SPACE_COLUMNS = ["key space", "asked", "skewness", "most, times", "never", "distance: 5%", "median", "95%"]
SERIES_COLUMNS = ["series", "windows", "first origin", "last origin", "all known at", "gaps", "missing"]
SHOWN_SERIES = 50  # rows of a page's table of series


def write_usage_page(path: Path, found: Findings) -> None:
    """Pictures and tables of one version, for people who have no terminal."""
    from cli.reports.pages import TableBlock, write_page

    stored, retrieved, close = _pictures(found)
    hubs = TableBlock(
        columns=HUB_COLUMNS, rows=hub_rows(found), caption=_sentence(hub_line(found)), text=(0, 1, 2), names=(0,)
    )
    write_page(
        path,
        f"{found.ref}: what it holds and how it is used",
        [_stored_line(found), _sentence(hub_line(found)), _sentence(never_line(found))],
        [
            stored,
            retrieved,
            *([hubs] if len(found.usage.hubs) else []),
            close,
            TableBlock(columns=SPACE_COLUMNS, rows=_space_rows(found), caption="Key spaces", text=(0,)),
            TableBlock(
                columns=SERIES_COLUMNS, rows=_series_rows(found), caption=_series_caption(found), text=(0,), names=(0,)
            ),
        ],
        footer=f"{_sentence(asked_line(found))} No window is retrieved by one that shares a step with it. Skewness: "
        "third standardised moment of retrieved over expected, over stretches; 0 where as many are retrieved too often "
        "as too seldom (Radovanovic et al., Hubs in space, JMLR 2010). "
        f"Made by cli index show {found.ref} --html {path.name}.",
    )


def _pictures(found: Findings) -> tuple[PictureBlock, PictureBlock, PictureBlock]:
    from cli.pictures import usage as pictures
    from cli.reports.pages import PictureBlock

    distances = "; ".join(_distance_words(found, space) for space in found.usage.spaces)
    return (
        PictureBlock(
            draw=lambda shape: pictures.draw_coverage(found, shape),
            heading="What is stored",
            caption="A window lies where its origin is, the last step that it knows. Blue: windows, in full height "
            "where none is missing. Behind them: values, also those before the first and after the last origin.",
            alternative=f"Stored windows of each series along time. {_stored_line(found)}",
        ),
        PictureBlock(
            draw=lambda shape: pictures.draw_retrievals(found, shape),
            heading="What is retrieved",
            caption="Bars: how often the windows of a stretch are retrieved by other windows of the memory, as a "
            "multiple of what chance would give. What lies far above 1 is a hub: it is found similar to too much.",
            alternative=f"{_sentence(hub_line(found))} {_sentence(never_line(found))}",
        ),
        PictureBlock(
            draw=lambda shape: pictures.draw_distances(found, shape),
            heading="How close the nearest window is",
            caption="Windows of the later half of the memory, each asked for the nearest window that was known at its "
            "origin. A query whose nearest neighbour lies right of the mark has no close analogue there.",
            alternative=f"Distances to the nearest window by key space: {distances}.",
        ),
    )


def _stored_line(found: Findings) -> str:
    covered, num = found.coverage, len(found.coverage.series_ids)
    missing = sum(gap.num_windows for gap in covered.gaps)
    gaps = f"{missing:,} are missing in {len(covered.gaps):,} gaps" if missing else "there is no gap"
    return f"{len(found.windows):,} windows of {num:,} series; {gaps}."


def _space_rows(found: Findings) -> list[list[object]]:
    rows: list[list[object]] = []
    for space in found.usage.spaces:
        told = space_document(found, space)
        low, middle, high = (told["distances"][name] for name in ("p5", "p50", "p95"))
        rows.append(
            [
                str(space),
                f"{told['num_asked']:,}",
                _number(told["skewness"], ".2f"),
                _number(told["largest_ratio"], ".1f"),
                _number(told["share_never"], ".1%"),
                *(_number(each, ".3f") for each in (low, middle, high)),
            ]
        )
    return rows


def _series_rows(found: Findings) -> list[list[object]]:
    covered = found.coverage
    gaps = gaps_by_series(found)
    first, last, known = (
        minutes(found, times) for times in (covered.first_origin, covered.last_origin, covered.last_known_at)
    )
    return [
        [
            name,
            f"{covered.num_windows[number].sum():,}",
            first[number],
            last[number],
            known[number],
            len(gaps.get(name, ())),
            sum(gaps.get(name, ())),
        ]
        for number, name in list(enumerate(covered.series_ids))[:SHOWN_SERIES]
    ]


def _series_caption(found: Findings) -> str:
    num = len(found.coverage.series_ids)
    return f"Series (first {SHOWN_SERIES} of {num:,})" if num > SHOWN_SERIES else "Series"


def _sentence(line: str) -> str:
    return f"{line[0].upper()}{line[1:]}."


def _distance_words(found: Findings, space: KeySpace) -> str:
    import numpy as np

    usual = found.distances(space)
    return f"{space} {np.median(usual):.2f} in the median" if len(usual) else f"{space} none"


def _number(value: float | None, form: str) -> str | None:
    return None if value is None or value != value else format(value, form)
