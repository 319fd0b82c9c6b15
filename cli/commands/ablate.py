"""`cli ablate`: what each part of the model is worth, as one table."""

from __future__ import annotations

import time
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.opening import open_with_table
from cli.options import (
    AsJson,
    Device,
    IndexedFile,
    Indexes,
    IndexRef,
    NeighboursDir,
    StatedSettings,
    asks_memory,
    reads_table,
    states_full_model,
)
from cli.output import note, print_json, print_table, progress
from cli.parsing import names, settings
from cli.reports.training_progress import TrainingShown
from cli.targets import write_file

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cli.output import Report
    from forecaster.ablation_table import Row
    from memory_index.evaluation import Evaluation
    from memory_index.tables.columns import ReadOptions

PARTS = ("val", "test")


@reads_table
@asks_memory
@states_full_model
def ablate(
    file: IndexedFile,
    index: IndexRef,
    out: Annotated[Path, typer.Option(help="Folder of the runs and of the table.", show_default=False)],
    groups: Annotated[
        str, typer.Option(help="Which arms to train: matrix, design, controls, sensitivity.")
    ] = "matrix,controls,sensitivity",
    seeds: Annotated[str, typer.Option(help="Every arm is trained with each of them.")] = "0,1,2",
    split: Annotated[str, typer.Option(help="Part to score: val or test.")] = "test",
    *,
    stated: StatedSettings,
    device: Device = "auto",
    neighbours_dir: NeighboursDir = None,
    as_json: AsJson = False,
    indexes: Indexes,
    table_options: ReadOptions,
) -> None:
    """Train and score the model with parts switched off or changed, and tell what each is worth.

    matrix: neither, TAPR, GRA-M, both. design: the same as the design says it, without value gate and shortcut, from
    plain Time-LLM on. controls: without language model, with a random one, without memory, without shortcut.
    sensitivity: scales, neighbours, weights of the losses, retrieval policy. Beside them stands what needs no training:
    memory alone, linear, seasonal naive, last value. Each arm and seed is a run below --out; called again, the command
    goes on where it stopped. Ends in ablation.md, ablation.json and ablation.png.
    """
    from forecaster.ablate import ablate as run_arms
    from forecaster.ablate import choose_arms
    from memory_index.errors import UsageError

    arms, chosen_seeds = choose_arms(names(groups) or ()), _seeds(seeds)
    if split not in PARTS:
        raise UsageError(f"--split {split}: there is no such part to score", hint=f"choose {' or '.join(PARTS)}")
    memory, table, ref = open_with_table(index, file, indexes, table_options)
    # What it tells apart are parts of the network.
    base = settings(memory, replace(stated, values={"use_network": True}))
    with progress("ablate") as report:
        try:
            rows = run_arms(
                table,
                memory,
                ref,
                base,
                out,
                arms=arms,
                seeds=chosen_seeds,
                neighbours_dir=neighbours_dir or out.parent / ".neighbours",
                watch=ArmsShown(report, num_epochs=base.train.epochs),
                part=split,
                device=device,
            )
        except KeyboardInterrupt as error:
            raise KeyboardInterrupt("the same command goes on where it stopped") from error
    title = f"{table.source} with {ref}, {split}: horizon {base.model.horizon}, lookback {base.model.lookback}"
    document = {"ref": ref, "split": split, "seeds": chosen_seeds, "settings": base.to_dict(), "rows": rows}
    _write(out, rows, title, document)
    if as_json:
        print_json("ablate", document)
    else:
        _print(rows, title)
    note(f"written: {', '.join(str(path) for path in sorted(out.glob('ablation.*')))}")


class ArmsShown(TrainingShown):
    """What is seen of an ablation under way: a line for each run that begins and ends, and of its training as usual."""

    def __init__(self, bar: Report, *, num_epochs: int) -> None:
        super().__init__(bar, num_epochs=num_epochs)
        self.place = ""

    def begins(self, what: str, number: int, total: int) -> None:
        """Called before each run."""
        self.place, self.epoch, self.told_at = f"{number} of {total}: {what}", 0, time.monotonic()
        self.before = f"{self.place}: "

    def ends(self, what: str, evaluation: Evaluation) -> None:
        """Called when it is scored."""
        note(f"{self.place}: MSE {evaluation.mse:.4f}, MAE {evaluation.mae:.4f}")

    def note(self, text: str) -> None:
        """Called with what a person should know."""
        note(text)


def _seeds(text: str) -> tuple[int, ...]:
    from memory_index.errors import UsageError

    parts = names(text) or ()
    if not all(part.isascii() and part.isdecimal() for part in parts) or len(set(parts)) != len(parts):
        raise UsageError(f"--seeds {text}: expected different whole numbers", hint="for example --seeds 0,1,2")
    return tuple(int(part) for part in parts)


def _write(out: Path, rows: list[Row], title: str, document: dict[str, Any]) -> None:
    """The table as text, as a document and, where matplotlib is installed, as a picture."""
    from forecaster.ablation_table import as_markdown

    write_file(out / "ablation.md", as_markdown(rows, title).encode())
    write_file(out / "ablation.json", _json(document))
    if find_spec("matplotlib") is None:
        note("no picture: matplotlib is not installed (pip install 'gram-forecaster[plot]')")
        return
    from cli.pictures.ablation import draw_ablation
    from cli.pictures.look import save

    save(draw_ablation(rows, title), out / "ablation.png")


def _print(rows: list[Row], title: str) -> None:
    from forecaster.ablation_table import COLUMNS, NOTE, cells_of, grouped, label_of

    lines: list[list[str | None]] = []
    for heading, group in grouped(rows).items():
        lines.append([heading, *[None] * len(COLUMNS)])
        lines += [[f"  {label_of(row)}", *cells_of(row)] for row in group]
    print_table(["arm", *COLUMNS], lines, title=title)
    note(NOTE)


def _json(document: Mapping[str, object]) -> bytes:
    import json

    from memory_index.documents import jsonable

    return (json.dumps({"schema": "ablate", **jsonable(document)}, indent=1) + "\n").encode()
