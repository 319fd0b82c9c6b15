"""`cli demo`: the main job end to end on the embedded sample, in about a minute on two cores.

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

BACKTEST_FROM = "2024-10-01 23:00"  # the last weeks of it
SERIES, AT = "feeder_north", "2024-09-25 23:00"  # a forecast in the test part


def demo(
    context: typer.Context,
    out: Annotated[Path, typer.Option(help="Folder for index, run, forecast and picture.")] = Path("runs/demo"),
    *,
    network: Annotated[bool, typer.Option("--network", help="Also train the networks: minutes more.")] = False,
) -> None:
    """Check, index, train, forecast, explain, score and backtest the embedded sample, in about a minute on two cores.

    The sample is ten months of a small grid, made up: two feeders, sun, wind and a price, an hour a step. Every command
    is shown as it would be typed. Ends with the scores beside plain baselines, a picture of one forecast taken apart,
    and the commands to try next on data of your own.
    """
    from memory_index.tables.catalog import shipped

    out.mkdir(parents=True, exist_ok=True)
    picture, along, forecast = out / "explanation.png", out / "backtest.png", out / "forecast.csv"
    require_targets(picture=picture)
    sample, run = str(shipped("sample.csv")), str(_new_folder(out / "run"))
    indexes = ["--indexes-dir", str(out / "indexes")]
    _run(context, "data", "check", sample)
    _run(context, "index", "build", sample, "--name", "demo", "--lookback", "336", "--horizon", "48", *indexes)
    brief = ["--set", "train_stride=2", "--device", "cpu"]  # every other window
    _run(context, "train", sample, "--index", "demo", "--out", run, *brief, *indexes)
    _run(context, "forecast", sample, "--run", run, "--update-index", "--out", str(forecast), *indexes)
    _run(context, "explain", sample, "--run", run, "--series", SERIES, "--at", AT, "--plot", str(picture), *indexes)
    _run(context, "evaluate", sample, "--run", run, *indexes)
    weeks = ["--from", BACKTEST_FROM, "--at", "23:00", "--plot", str(along)]
    if network:
        with_network = str(_new_folder(out / "run-network"))
        few = ["--set", "train_stride=5", "--device", "cpu"]
        arguments = ["--out", with_network, "--network", "--no-llm", *few, *indexes]
        _run(context, "train", sample, "--index", "demo", *arguments)
        _run(context, "evaluate", sample, "--run", with_network, *indexes)
    _run(context, "backtest", sample, "--run", run, *weeks, *indexes)
    note(f"\nThe picture of one forecast taken apart is {picture}, that of the backtest {along}.")
    note(f"The next two days of every series are {forecast}.")
    if not network:
        note("Networks as one more part take minutes, and say what they are worth: cli demo --network")
    note("Now your own data (a time column and one column per series, or unique_id, ds, y):")
    note("  cli index build FILE.csv --name mine --lookback 336 --horizon 48")
    note("  cli train FILE.csv --index mine --out runs/mine")
    note("  cli forecast FILE.csv --run runs/mine --update-index --plot forecast.png")


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
