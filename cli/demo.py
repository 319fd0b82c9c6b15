"""`cli demo`: the main job end to end on the embedded sample, in well under a minute."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cli.asking import require_targets
from cli.output import note, print_table

LOOKBACK, HORIZON, NAME = 336, 48, "demo"
NUM_NEIGHBOURS = 3


def demo(
    out: Annotated[Path, typer.Option(help="Folder for the index, the pictures and the forecast.")] = Path("runs/demo"),
) -> None:
    """Check, index, inspect, score and forecast the embedded sample, with nothing trained by gradient.

    Ends with a table, two pictures, and the commands to try next on data of your own.
    """
    from cli.forecast import print_evaluation
    from cli.neighbours import COLUMNS, rows
    from cli.pictures.forecast import draw_forecast
    from cli.pictures.look import save
    from cli.pictures.neighbours import draw_neighbours
    from memory_index import memory_only
    from memory_index.inspection import inspect_window
    from memory_index.splits import DEFAULT_SPLIT, part_origins, split_by_name, split_until
    from memory_index.tables.catalog import shipped
    from memory_index.tables.checking import check_table
    from memory_index.tables.reading import read_table
    from memory_index.versions.build import build
    from memory_index.versions.opening import open_version
    from memory_index.versions.store import Store
    from memory_index.windows import WindowSpec

    out.mkdir(parents=True, exist_ok=True)
    require_targets(picture=out / "neighbours.png")
    sample = shipped("sample.csv")
    report = check_table(sample)
    note(
        f"1. check     {sample.name}: {report.num_rows:,} rows, {len(report.series)} series, "
        f"step {report.step}, no faults"
    )

    table, store, window = read_table(sample), Store(out / "indexes"), WindowSpec(lookback=LOOKBACK, horizon=HORIZON)
    split = split_by_name(DEFAULT_SPLIT, table.times)
    version = build(table, store, NAME, window=window, split=split)
    built = version.manifest
    note(f"2. build     {version.ref}: {built.num_rows:,} windows of the training part in {built.built.seconds:.1f} s")

    memory = open_version(version)
    series = table.series[0]
    rows_of_test = part_origins(table, window, split, "test")[0]
    at = series.times[rows_of_test[len(rows_of_test) // 2]]
    found = inspect_window(
        memory, table, series.series_id, at, k=NUM_NEIGHBOURS, scopes=("own", "joint"), min_gap=HORIZON
    )
    print_table(
        COLUMNS, rows(found), title=f"Neighbours of {found.series_id} at {found.origin_text}, all known by then"
    )
    save(draw_neighbours(found, memory.windows, version.ref), out / "neighbours.png")
    note(f"3. inspect   {out / 'neighbours.png'}")

    result = memory_only.evaluate(memory, table)
    note(f"4. evaluate  every test window, in {result.seconds:.1f} s")
    print_evaluation(version.ref, result, with_spaces=False)

    full = build(table, store, NAME, window=window, split=split_until("end", None, table.times, table.step))
    forecast = memory_only.forecast(open_version(full), table, quantiles=(0.1, 0.5, 0.9))
    forecast.to_csv(out / "forecast.csv", index=False)
    save(draw_forecast(table, forecast, f"Forecast of {sample.name} by {full.ref}, memory alone"), out / "forecast.png")
    note(
        f"5. forecast  the next {HORIZON} steps with a memory of everything ({full.ref}): "
        f"{out / 'forecast.csv'}, {out / 'forecast.png'}"
    )
    note("\nNow with your own data (a time column and one column per series, or unique_id, ds, y):")
    note("  cli data check FILE.csv")
    note(f"  cli index build FILE.csv --name mine --lookback {LOOKBACK} --horizon {HORIZON} --until end")
    note("  cli forecast FILE.csv --index mine --out forecast.csv --plot forecast.png")
