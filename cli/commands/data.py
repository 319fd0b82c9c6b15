"""`cli data`: what is in a file, and public benchmark sets by name."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.options import AsJson, File, reads_table
from cli.output import note, print_json, print_table, progress

if TYPE_CHECKING:
    from collections.abc import Sequence

    from memory_index.tables.checking import SeriesSummary, TableReport
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
    horizon: Annotated[int | None, typer.Option(help="Likewise.")] = None,
    as_json: AsJson = False,
    *,
    table_options: ReadOptions,
) -> None:
    """Say what a file is (series, step, span) and everything that is wrong with it.

    Each fault comes with its series, time and row, and with the flag that resolves it. Exit code 3 if there is any;
    notes (flat stretches, rows out of order, no end of the last line) do not count. A row is a line of a CSV file.
    """
    from memory_index.tables.checking import check_table

    report = check_table(file, table_options, lookback=lookback, horizon=horizon)
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
