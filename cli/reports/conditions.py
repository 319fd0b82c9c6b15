"""What is said of known covariates: their values over the horizon of a query, and what they decide of the distances.

The squared distance of a neighbour is a sum of parts, of which the known columns over the horizon make one (the
condition part, docs/method.md). A column's share is what it adds, of the sum over all neighbours that are shown: it is
small where they are like the query in that column, or where the column has little weight.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from cli.wording import course

if TYPE_CHECKING:
    import numpy as np

    from cli.reports.pages import TableBlock
    from memory_index.inspection import NeighbourRecord

COLUMNS = ["known column", "over the horizon", "neighbours", "of the squared distances"]


def shares(covariates: Mapping[str, np.ndarray], neighbours: Sequence[NeighbourRecord]) -> dict[str, float]:
    """What each known column makes of the squared distances of neighbours, the largest share first."""
    whole = sum(n.distance**2 for n in neighbours)
    made = {name: sum(n.condition_parts.get(name, 0.0) for n in neighbours) for name in covariates}
    return {name: made[name] / whole if whole > 0 else 0.0 for name in sorted(made, key=made.__getitem__, reverse=True)}


def apart(query: np.ndarray, neighbours: Sequence[np.ndarray], words: Sequence[str], horizon: int) -> str:
    """How far neighbours are from the query in one column over the horizon.

    query: its values, the last of them those of the horizon; neighbours: values of the same steps, and perhaps later.
    words: of a category or boolean.
    """
    import numpy as np

    asked = query[len(query) - horizon :]
    differs = np.array([np.abs(values[len(query) - horizon : len(query)] - asked) for values in neighbours])
    differs = differs[np.isfinite(differs)]
    if not len(differs):
        return "not known"
    return f"alike at {(differs == 0).mean():.0%} of steps" if words else f"{differs.mean():.3g} away on average"


def condition_rows(
    covariates: Mapping[str, np.ndarray],
    categories: Mapping[str, tuple[str, ...]],
    neighbours: Sequence[NeighbourRecord],
    horizon: int,
) -> list[list[str]]:
    """A row for each known column, by `COLUMNS`. covariates: by name, the last values are those of the horizon."""
    from memory_index.conditions import in_words

    rows = []
    for name, share in shares(covariates, neighbours).items():
        values = covariates[name]
        words = in_words(values[len(values) - horizon :], categories.get(name, ()))
        text = ", ".join(dict.fromkeys(map(str, words))) if isinstance(words, list) else course(words)
        far = apart(values, [n.covariates[name] for n in neighbours], categories.get(name, ()), horizon)
        rows.append([name, text, far, f"{share:.0%}"])
    return rows


def asked_with(set_known: Sequence[str] | None) -> str:
    """What is added to the name of what was asked where it was asked a scenario."""
    return f", scenario {', '.join(set_known)}" if set_known else ""


def condition_lines(rows: Sequence[Sequence[str]]) -> list[str]:
    """The same rows as sentences."""
    return [
        f"{name} over the horizon: {text}; neighbours are {far}: {share} of their squared distances"
        for name, text, far, share in rows
    ]


def condition_table(rows: Sequence[Sequence[str]]) -> TableBlock:
    """The same rows as a table of a page."""
    from cli.reports.pages import TableBlock

    return TableBlock(
        columns=COLUMNS,
        rows=rows,
        caption="Values of the query, and how much each column decides which windows count as near",
        text=(0, 1, 2),
        names=(0,),
        heading="What is known of the horizon",
    )
