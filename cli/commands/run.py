"""`cli run`: the states of a run that goes on, and which of them is used."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.options import AsJson
from cli.output import note, print_json, print_table

if TYPE_CHECKING:
    from forecaster.runs.states import StateRecord

app = typer.Typer(help="See what a run has learned since it was trained, and go back.", no_args_is_help=False)

Folder = Annotated[
    Path, typer.Argument(metavar="RUN", help="Folder of a run that 'cli train' made.", show_default=False)
]


@app.command(epilog="Example: cli run show runs/load")
def show(run: Folder, as_json: AsJson = False) -> None:
    """List the states of a run. 0 is as it was trained; each update ('cli forecast --update') adds one.

    The newest ten are kept, state 0, and the one that is used.
    """
    from forecaster.runs.run import open_run
    from forecaster.runs.states import current_number, has_states, numbers_of, read_state

    opened = open_run(run)
    used = current_number(run)
    states = [read_state(run, number) for number in numbers_of(run)]
    if as_json:
        document: dict[str, Any] = {"run": run, "ref": opened.record.index.ref, "can_update": has_states(run)}
        print_json("run-show", document | {"state": used, "states": [_document(each) for each in states]})
        return
    if not states:
        note(f"{run} cannot go on: it keeps no normal equations (networks, or an earlier program)")
        return
    rows = [_row(each, used) for each in states]
    print_table(["state", "", "learned up to", "windows since training", "half-life", "gate", "index", "made"], rows)


@app.command(epilog="Example: cli run use runs/load 0")
def use(
    run: Folder,
    state: Annotated[int, typer.Argument(min=0, help="Number of a state.", show_default=False)],
    as_json: AsJson = False,
) -> None:
    """Use another state of a run from now on: go back, or forward again. Nothing is deleted."""
    from forecaster.runs.run import LOCK, open_run
    from forecaster.runs.states import read_state, use_state
    from memory_index.files import locked

    open_run(run)
    read_state(run, state)
    with locked(run / LOCK, sign=True):
        use_state(run, state)
    if as_json:
        print_json("run-use", {"run": run, "state": state})
    else:
        print_table(["run", "state"], [[str(run), state]])


def _document(state: StateRecord) -> dict[str, Any]:
    document = asdict(state)
    del document["trained"]
    return document


def _row(state: StateRecord, used: int) -> list[Any]:
    half_life = "none" if state.half_life is None else f"{state.half_life:g} steps"
    until = state.until.removesuffix(".000000000")
    mark = "used" if state.number == used else ""
    return [state.number, mark, until, state.num_windows, half_life, state.kept, state.ref, state.created_at]
