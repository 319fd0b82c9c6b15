"""`cli data`: what is in a file, and public benchmark sets by name."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.options import AsJson, File, reads_table
from cli.output import note, print_json, print_table, progress
from cli.targets import require_targets, write_file

if TYPE_CHECKING:
    from collections.abc import Sequence

    from memory_index.tables.checking import CovariateSummary, SeriesSummary, TableReport
    from memory_index.tables.columns import ReadOptions

app = typer.Typer(
    help="Check a data file; list and fetch public benchmark sets.", no_args_is_help=True, rich_markup_mode=None
)

BAD_DATA = 3
MANY_SERIES = 100  # of more, the worst are shown
WORST = 10


@app.command(epilog="Example: cli data check load.csv --time-column date --ignore remark")
@reads_table
def check(
    file: File,
    lookback: Annotated[int | None, typer.Option(help="Say which series are too short for it.")] = None,
    horizon: Annotated[
        int | None, typer.Option(help="Likewise; and say what is missing of so many steps ahead.", min=1)
    ] = None,
    future: Annotated[
        Path | None, typer.Option(help="Table with the known covariates of the next steps, to be checked too.")
    ] = None,
    as_json: AsJson = False,
    *,
    table_options: ReadOptions,
) -> None:
    """Say what a file is (series, step, span) and everything that is wrong with it.

    Each fault comes with its series, time and row, and with the flag that resolves it. Exit code 3 if there is any;
    notes (flat stretches, rows out of order, no end of the last line) do not count. A row is a line of a CSV file.
    With --known, --observed, --static: also what these columns hold, and how far beyond the last target value.
    """
    from memory_index.tables.checking import check_table

    report = check_table(file, table_options, lookback=lookback, horizon=horizon, future=future)
    if as_json:
        print_json("data-check", report.to_dict())
    else:
        _print_report(report)
    if not report.ok:
        raise typer.Exit(BAD_DATA)


def _print_report(report: TableReport) -> None:
    zone = f", time zone {report.time_zone}" if report.time_zone else ""
    layout = "cannot be read as a table" if report.layout is None else f"{report.layout} table"
    rows = "" if report.num_rows is None else f" of {report.num_rows} rows and {len(report.series)} series"
    step = "" if report.step is None else f", one step is {report.step}{zone}"
    shown = _worth_a_look(report.series)
    summary = [[s.series_id, s.start, s.end, s.num_steps, s.num_missing, s.minimum, s.maximum] for s in shown]
    if summary:
        columns = ["series", "first step", "last step", "steps", "missing", "minimum", "maximum"]
        print_table(columns, summary, title=f"{report.file}: {layout}{rows}{step}")
    if len(shown) < len(report.series):
        note(_of_all(report.series, len(shown)))
    _print_covariates(report)
    if report.problems:
        title = f"{report.file}: {layout}{rows}{step}" if not summary else "Findings"
        problems = [[p.severity, p.kind, p.series_id, p.at, p.row, p.message, p.fix] for p in report.problems]
        print_table(["", "kind", "series", "at", "row", "what", "what to do"], problems, title=title)
    for kind, count in report.unlisted.items():
        note(f"and {count} more of the kind '{kind}'")
    num_faults = sum(problem.severity == "fault" for problem in report.problems)
    hidden = sum(report.unlisted.get(kind, 0) for kind in {p.kind for p in report.problems if p.severity == "fault"})
    num_faults += hidden
    note("no faults" if report.ok else "1 fault" if num_faults == 1 else f"{num_faults} faults")


def _print_covariates(report: TableReport) -> None:
    if report.covariates:
        rows = [
            [c.name, c.role, c.source or c.kind, c.num_missing, c.known_until, c.steps_ahead, _span(c)]
            for c in report.covariates
        ]
        columns = ["covariate", "role", "kind", "missing", "known until", "steps ahead", "range"]
        print_table(columns, rows, title="Covariates")
    if report.future_missing:
        shown = report.future_missing[:MANY_SERIES]
        rows = [[m.series_id, m.column, m.at, m.until, m.num_steps] for m in shown]
        print_table(["series", "column", "from", "until", "steps"], rows, title="Missing of the future")
        if len(shown) < len(report.future_missing):
            note(f"and {len(report.future_missing) - len(shown)} more, which --json lists")


def _span(covariate: CovariateSummary) -> str:
    if covariate.words:
        return ", ".join(covariate.words[:8]) + (", ..." if len(covariate.words) > 8 else "")
    return "" if covariate.minimum is None else f"{covariate.minimum:g} to {covariate.maximum:g}"


def _worth_a_look(series: Sequence[SeriesSummary]) -> list[SeriesSummary]:
    """All series of a table of few; of many the shortest and those of which most is missing, in the table's order."""
    if len(series) <= MANY_SERIES:
        return list(series)
    places = range(len(series))
    shortest = sorted(places, key=lambda n: series[n].num_steps)[:WORST]
    missing = sorted(places, key=lambda n: -series[n].num_missing / series[n].num_steps)[:WORST]
    return [series[n] for n in sorted({*shortest, *missing})]


def _of_all(series: Sequence[SeriesSummary], num_shown: int) -> str:
    """All series in a sentence."""
    steps = sorted(one.num_steps for one in series)
    missing, holes = sum(one.num_missing for one in series), sum(one.num_missing > 0 for one in series)
    return (
        f"{num_shown} of {len(series):,} series are shown: the shortest, and those of which most is missing (--json "
        f"has all). Steps {steps[0]:,} to {steps[-1]:,}, half of the series at most {steps[len(steps) // 2]:,}; "
        f"{missing:,} missing cells in {holes:,} series"
    )


@app.command("future", epilog="Example: cli data future load.csv --horizon 48 --known temperature --out future.csv")
@reads_table
def write_future(
    file: File,
    horizon: Annotated[int, typer.Option(help="Steps ahead.", min=1, show_default=False)],
    out: Annotated[Path, typer.Option(help="The table: a .csv or .parquet file.", show_default=False)],
    as_json: AsJson = False,
    *,
    table_options: ReadOptions,
) -> None:
    """Write the table of the next steps of every series, for the known covariates to be filled in.

    Cells are empty but for what is known already: rows of FILE after the last target value, --calendar and --holidays.
    Give the filled table to other commands with --future; 'cli data check --future' says what is missing of it.
    """
    from memory_index.tables.reading import read_table
    from memory_index.tables.steps_ahead import make_future, missing_future

    require_targets(table=out)
    table = read_table(file, table_options)
    for line in table.notes:
        note(line)
    frame = make_future(table, horizon, like=table_options)
    as_csv = out.suffix.lower() == ".csv"
    write_file(out, frame.to_csv(index=False).encode() if as_csv else frame.to_parquet(index=False))
    empty = sorted({each.column for each in missing_future(table, horizon)})
    if as_json:
        print_json("data-future", {"path": str(out), "rows": len(frame), "columns": list(frame), "empty": empty})
    else:
        print_table(["file", "rows", "to be filled in"], [[str(out), len(frame), ", ".join(empty) or "nothing"]])


@app.command("list", epilog="Example: cli data list --json")
def list_sets(as_json: AsJson = False) -> None:
    """List the public benchmark sets that `cli data fetch` knows, with licence and address."""
    from dataclasses import asdict

    from memory_index.tables.catalog import read_catalog

    catalog = read_catalog()
    if as_json:
        print_json("data-list", {"sets": [asdict(entry) for entry in catalog]})
        return
    rows = [
        [entry.name, entry.rows, entry.variates, entry.step, entry.licence, entry.sha256 or "unknown", entry.url]
        for entry in catalog
    ]
    print_table(["name", "rows", "variates", "step", "licence", "sha256", "address"], rows)


@app.command(epilog="Example: cli data fetch ETTh1")
def fetch(
    name: Annotated[str, typer.Argument(help="A set of `cli data list`.", show_default=False)],
    datasets_dir: Annotated[Path, typer.Option(help="Folder for the file.")] = Path("datasets"),
    as_json: AsJson = False,
) -> None:
    """Download a public set, going on where an earlier try broke off, and check its sha256."""
    from memory_index.tables import catalog

    entry = catalog.find_entry(name, catalog.read_catalog())
    note(f"{entry.name}: {entry.licence}; cite {entry.citation}")
    with progress(f"{entry.name} from {entry.url}") as report:
        fetched = catalog.fetch(entry, datasets_dir, report=report)
    if not fetched.verified:
        note(f"not verified: the catalogue has no sha256 for {entry.name}; this file has {fetched.sha256}")
    if as_json:
        document = {"name": fetched.name, "path": str(fetched.path), "sha256": fetched.sha256, "bytes": fetched.bytes}
        print_json("data-fetch", document | {"verified": fetched.verified, "downloaded": fetched.downloaded})
    else:
        verified = "verified" if fetched.verified else "not verified"
        print_table(["file", "bytes", "sha256", ""], [[str(fetched.path), fetched.bytes, fetched.sha256, verified]])
