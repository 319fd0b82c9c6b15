"""`cli demo`: a grid operator's day on the embedded sample, in about a minute on two cores.

It runs the commands that a person would type, one after another, and shows each before what it says.
"""

from __future__ import annotations

import shlex
from itertools import count
from pathlib import Path
from typing import Annotated

import typer

from cli.output import note
from cli.targets import require_targets

KNOWN = ("--known", "temperature", "--known", "holiday")
SERIES, AT = "demand", "2024-01-17 23:00"  # a forecast in the test part, of a cold day
BACKTEST_FROM = "2024-04-01 23:00"  # the last weeks of it
ON_CPU = ("--device", "cpu")
ONCE_A_DAY = ("--at", "23:00")  # when a town's demand of the next day is forecast


def demo(
    context: typer.Context,
    out: Annotated[Path, typer.Option(help="Folder for index, runs, forecasts and pictures.")] = Path("runs/demo"),
) -> None:
    """Check, index, train, forecast, explain, score and backtest the embedded sample, in about a minute on two cores.

    The sample is made up: twenty months of the hourly demand of a town, beside the temperature and the public holidays
    that drive it. Every command is shown as it would be typed. First the model in closed form: the forecast of tomorrow
    with tomorrow's weather, the same if it is five degrees colder, and one forecast taken apart. Then networks as one
    more part, which say what weight they got. Ends with the commands to try next on data of your own.
    """
    from memory_index.tables.catalog import shipped

    out.mkdir(parents=True, exist_ok=True)
    picture, along = out / "explanation.png", out / "backtest.png"
    require_targets(picture=picture)
    sample, tomorrow, run = str(shipped("demand.csv")), str(shipped("tomorrow.csv")), str(_new_folder(out / "run"))
    indexes = ["--indexes-dir", str(out / "indexes")]
    window = ["--lookback", "168", "--horizon", "24"]
    of_run = [sample, "--run", run]
    _run(context, "data", "check", sample, *KNOWN)
    _run(context, "index", "build", sample, "--name", "demo", *window, *ONCE_A_DAY, *KNOWN, *indexes)
    _run(context, "train", sample, "--index", "demo", "--out", run, *ON_CPU, *indexes)
    _run(context, "evaluate", *of_run, *indexes)
    ahead = ["--update-index", "--future", tomorrow]
    _run(context, "forecast", *of_run, *ahead, "--out", str(out / "forecast.csv"), *indexes)
    colder = ["--set-known", "temperature+=-5", "--out", str(out / "colder.csv")]
    _run(context, "forecast", *of_run, *ahead, *colder, *indexes)
    _told(out)
    _run(context, "explain", *of_run, "--series", SERIES, "--at", AT, "--plot", str(picture), *indexes)
    weeks = ["--from", BACKTEST_FROM, "--plot", str(along)]
    _run(context, "backtest", *of_run, *weeks, *indexes)
    network = ["--out", str(_new_folder(out / "run-network")), "--network", "--no-llm"]
    _run(context, "train", sample, "--index", "demo@1", *network, *ON_CPU, *indexes)
    note(f"\nThe picture of one forecast taken apart is {picture}, that of the backtest {along}.")
    note("Now your own data (a time column and one column per series, or unique_id, ds, y; weather by --known):")
    note("  cli index build FILE.csv --name mine --lookback 168 --horizon 24  (--at 23:00: a forecast a day)")
    note("  cli train FILE.csv --index mine --out runs/mine")
    note("  cli forecast FILE.csv --run runs/mine --update-index --plot forecast.png")


def _told(out: Path) -> None:
    """Both forecasts of tomorrow, side by side."""
    import pandas as pd

    plain, colder = (pd.read_csv(out / name)["yhat"].mean() for name in ("forecast.csv", "colder.csv"))
    note(f"tomorrow's mean demand: {plain:.1f}, and {colder:.1f} if it is five degrees colder")


def _run(context: typer.Context, *arguments: str) -> None:
    """Show a command and run it. Ends the demo, with the command's own error, if it fails.

    The context's object is what runs commands (`main.run`): this module does not know the program that it is part of.
    """
    note(f"\n$ cli {shlex.join(arguments)}")
    if code := context.obj(arguments):
        raise typer.Exit(code)


def _new_folder(path: Path) -> Path:
    """The path, or the first of path-2, path-3 ... that is free: a run is never written over."""
    if not path.exists():
        return path
    return next(each for number in count(2) if not (each := path.with_name(f"{path.name}-{number}")).exists())
