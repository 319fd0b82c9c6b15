"""What is wrong with a file, as records: one `Problem` per finding, gathered in a `ProblemLog`.

The reader goes on after a fault where it can, so that all of them are found in one pass. `read_table`
then raises the first as a `DataError`; `check_table` reports every one.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from itertools import islice
from typing import Any, Literal, NoReturn

from memory_index.errors import DataError

Guess = tuple[tuple[str, Any], ...]  # names and values of `ReadOptions`
COUNTED = ("gap", "missing")  # kinds of which a note of the kind `changed` says how many there are
MAX_LISTED = 20  # problems of one kind that are listed; the rest is counted
MAX_NOTES = 3  # of a kind that are said in full beside a result


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """One finding in a file.

    kind: a word that scripts can rely on, such as `gap`, `missing`, `duplicate`, `not-a-number`.
    at: ISO 8601 with the table's own offset. row: line of a CSV file (the header is line 1), row of a
    Parquet file (the first is 1). fix: what to do, with the flag that does it. severity: a `fault` stops
    every command, a `note` does not. column: the covariate that it is about, which the message names as well.
    guess: of a fault after which nothing more can be read, options to read on with and find the others.
    """

    kind: str
    message: str
    fix: str
    series_id: str | None = None
    at: str | None = None
    row: int | None = None
    severity: Literal["fault", "note"] = "fault"
    column: str | None = None
    guess: Guess = ()

    def to_dict(self) -> dict[str, Any]:
        """The finding as a JSON document."""
        return {name: value for name, value in asdict(self).items() if name != "guess"}

    def sentence(self, source: str) -> str:
        """The finding with its place, as one line."""
        row = None if self.row is None else f"row {self.row}"
        series = None if self.series_id is None else f"series '{self.series_id}'"
        return ", ".join(part for part in (source, series, self.at, row) if part) + ": " + self.message


@dataclass(kw_only=True)
class ProblemLog:
    """The problems of one file in the order in which they were found, at most `MAX_LISTED` of a kind."""

    source: str  # file name, for messages
    listed: list[Problem] = field(default_factory=list)
    count: Counter[str] = field(default_factory=Counter)  # by kind, the unlisted ones too
    series: defaultdict[str, set[str]] = field(default_factory=lambda: defaultdict(set))  # that have one, by kind
    stopped_at: Problem | None = None  # the fault after which nothing more could be read

    def add(self, problem: Problem) -> None:
        """Note one problem."""
        self.add_many(1, [problem], kind=problem.kind, series=[problem.series_id] if problem.series_id else [])

    def add_many(self, count: int, problems: Iterable[Problem], *, kind: str, series: Iterable[str] = ()) -> None:
        """Note `count` problems of one kind. `problems` may be lazy: no more of it is consumed than listed.

        series: which have any of these, as far as that is known.
        """
        self.listed.extend(islice(problems, max(0, MAX_LISTED - self.count[kind])))
        self.count[kind] += count
        if count:
            self.series[kind].update(series)

    def add_at(
        self,
        places: Iterable[int],
        count: int,
        problem_at: Callable[[int], Problem],
        *,
        kind: str,
        series: Iterable[str] = (),
    ) -> None:
        """Note `count` problems of one kind, each made from its place only if it is listed."""
        self.add_many(count, (problem_at(int(place)) for place in places), kind=kind, series=series)

    def stop(self, problem: Problem) -> NoReturn:
        """Note a fault after which nothing more can be read, and raise it."""
        self.add(problem)
        self.stopped_at = problem
        raise self.error()

    @property
    def faults(self) -> tuple[Problem, ...]:
        """The listed problems that stop every command."""
        return tuple(problem for problem in self.listed if problem.severity == "fault")

    @property
    def notes(self) -> tuple[str, ...]:
        """The problems that stop no command, a sentence each, the first `MAX_NOTES` of a kind; the
        others are counted. Those that another note counts are left out.
        """
        notes = [problem for problem in self.listed if problem.severity == "note" and problem.kind not in COUNTED]
        said, more = list[str](), Counter(self.unlisted)
        seen = Counter[str]()
        for problem in notes:
            seen[problem.kind] += 1
            if seen[problem.kind] > MAX_NOTES:
                more[problem.kind] += 1
                continue
            todo = "" if not problem.fix or problem.fix.startswith("nothing to do") else f"; {problem.fix}"
            said.append(problem.sentence(self.source) + todo)
        hidden = ", ".join(f"{more[kind]} of the kind '{kind}'" for kind in seen if more[kind])
        return (*said, *([f"{self.source}: and more notes: {hidden}; 'cli data check' lists them"] if hidden else []))

    @property
    def unlisted(self) -> dict[str, int]:
        """How many more of each kind there are than are listed."""
        listed = Counter(problem.kind for problem in self.listed)
        return {kind: count - listed[kind] for kind, count in self.count.items() if count > listed[kind]}

    def error(self) -> DataError:
        """The first fault, with the number of the others."""
        first = self.faults[0]
        kinds = {problem.kind for problem in self.faults}
        others = sum(count for kind, count in self.count.items() if kind in kinds) - 1
        more = f" (and {others} more; 'cli data check' lists them)" if others else ""
        return DataError(first.sentence(self.source) + more, hint=first.fix)

    def raise_faults(self) -> None:
        """Raise `DataError` if there is any fault."""
        if self.faults:
            raise self.error()
