"""What the page says in words: a sentence in place of each picture, warnings, and the table of the neighbours."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

import numpy as np

from cli.commands.neighbours import warnings
from cli.explorer.subject import Answer, Subject
from cli.reports.conditions import condition_rows
from cli.wording import IN_SAMPLE, age, minute, short
from memory_index.covariate_map import CovariateColumn
from memory_index.errors import MemoryIndexError
from memory_index.inspection import Inspection, NeighbourRecord

COLUMNS = ["#", "key space", "series", "origin", "age", "distance", "shape", "value", "weight", "match"]
TEXT_COLUMNS = [1, 2, 3]
NAME_LENGTH = 28  # characters of a series
CSV_COLUMNS = ["scope", "view", "rank", "row_id", "series_id", "start", "origin", "known_at", "age_days", "distance"]
CSV_COLUMNS += ["shape_distance", "value_distance", "weight", "match"]


def problem(error: MemoryIndexError) -> str:
    """An error as one line for the page."""
    return f"{error} ({error.hint})" if error.hint else str(error)


def what(subject: Subject, series_id: str, at: str) -> str:
    """The picture of the history in words."""
    series, step = subject.table[series_id], subject.table.step
    first, last = (minute(step.isoformat(time)) for time in series.times[[0, -1]])
    return (
        f"The history of {series_id} from {first} to {last}, the origin at {minute(at)}, "
        "and below it where the neighbours lie. Click to move the origin."
    )


def sentence(answer: Answer, run: str | None, known: Sequence[str] = ()) -> str:
    """The picture of one side in words. known: the changes of the state."""
    found = answer.found
    nearest = min(found.neighbours, key=lambda n: n.distance)
    num_spaces = len({(n.scope, n.view) for n in found.neighbours})
    shown = (
        f"{found.series_id} up to {minute(found.origin_text)}, with {_count(len(found.neighbours), 'neighbour')} from "
        f"{_count(num_spaces, 'key space')} of {answer.version.ref}."
    )
    closest = (
        f"The nearest ({space(nearest)}) is {nearest.series_id} up to {minute(nearest.origin)}, "
        f"{age(nearest.age_days)} earlier, at a distance of {nearest.distance:.3f}."
    )
    ahead = f"Over the next {_count(len(found.forecast), 'step')} the memory alone expects {_span(found.forecast)}"
    if answer.explained is not None:
        ahead += f", the run {run} expects {_span(answer.explained.forecast)}"
    if answer.plain is not None:
        ahead += f" (without the changes {_span(answer.plain)})"
    if np.isfinite(found.actual).any():
        ahead += f", and what really followed was {_span(found.actual)}"
    changed = [f"Changed over the horizon: {', '.join(known)}."] if known else []
    said = [shown, closest, *changed, f"{ahead}."]
    for name, _, far, share in condition_rows(
        found.covariates, found.categories, found.neighbours, len(found.forecast)
    ):
        said.append(f"In {name} the neighbours are {far}: {share} of their squared distances.")
    if answer.explained is not None:
        said.append(f"The gate gives the model {answer.explained.gate.mean():.0%} of the weight, the memory the rest.")
    return " ".join(said)


def known_name(column: CovariateColumn, value: float | str | None) -> str:
    """What the control of a known column is called: the column, and what is changed of it."""
    name = short(column.name, NAME_LENGTH)
    return f"{name}, changed by {value:+g}" if isinstance(value, float) and value else name


def warned(answer: Answer, run: str | None) -> list[str]:
    """What a reader must know before trusting what is shown."""
    found, explained = answer.found, answer.explained
    lines = warnings(found)
    if explained is not None and explained.in_sample and not found.in_sample:
        lines.append(IN_SAMPLE)
    if run is not None and explained is None:
        lines.append(f"{run} was not trained against this version, so that its forecast is not shown")
    return lines


def space(n: NeighbourRecord) -> str:
    """The name of a neighbour's key space."""
    return f"{n.scope}-{n.view}"


def columns(found: Inspection) -> list[str]:
    """Headings of `rows`: with the condition part of the distance where there are covariates."""
    return COLUMNS[:8] + (["cond."] if found.covariates else []) + COLUMNS[8:]


def rows(found: Inspection) -> list[list[str]]:
    """A line of the table for each neighbour, by `columns`."""
    return [
        [
            str(n.rank),
            space(n),
            short(n.series_id, NAME_LENGTH),
            minute(n.origin),
            age(n.age_days),
            *(f"{part:.3f}" for part in (n.distance, n.shape_distance, n.value_distance)),
            *([] if n.condition_distance is None else [f"{n.condition_distance:.3f}"]),
            f"{n.weight:.3f}",
            "" if n.match is None else f"{n.match:+.2f}",
        ]
        for n in found.neighbours
    ]


def as_csv(found: Inspection) -> str:
    """The table in full precision."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    names = CSV_COLUMNS + (["condition_distance"] if found.covariates else [])
    writer.writerow(names)
    writer.writerows([getattr(n, name) for name in names] for n in found.neighbours)
    return buffer.getvalue()


def _count(number: int, name: str) -> str:
    return f"{number} {name}{'' if number == 1 else 's'}"


def _span(values: np.ndarray) -> str:
    low, high = np.nanmin(values), np.nanmax(values)
    return f"{low:.4g}" if low == high else f"{low:.4g} to {high:.4g}"
