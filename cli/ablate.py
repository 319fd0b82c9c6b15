"""`cli ablate`: what each part of the model is worth, as one table."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.asking import names, numbers, open_with_table
from cli.output import note, print_json, print_table
from cli.table_options import reads_table
from cli.train import settings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from memory_index.tables.columns import ReadOptions


@reads_table
def ablate(
    file: Annotated[Path, typer.Argument(help="The table that the index was built on.", show_default=False)],
    index: Annotated[
        str, typer.Option("--index", metavar="REF", help="NAME, NAME@3 or NAME@alias.", show_default=False)
    ],
    out: Annotated[Path, typer.Option(help="Folder of the runs and of the table.", show_default=False)],
    groups: Annotated[str, typer.Option(help="Of matrix, controls, sensitivity.")] = "matrix,controls,sensitivity",
    seeds: Annotated[str, typer.Option(help="Every arm is trained with each of them.")] = "0,1,2",
    split: Annotated[str, typer.Option(help="Part to score: val or test.")] = "test",
    config: Annotated[Path | None, typer.Option(help="TOML file of settings of the full model.")] = None,
    preset: Annotated[str | None, typer.Option(help="Settings for a GPU: 6gb, 8gb, 12gb or 15gb.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any setting by name.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    indexes_dir: Annotated[Path, typer.Option(help="Folder of the indexes.")] = Path("indexes"),
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")] = False,
    *,
    table_options: ReadOptions,
) -> None:
    """Train and score the model with parts switched off or changed, and tell what each is worth.

    matrix: neither, TAPR, GRA-M, both. controls: no language model, a random one, no shortcut, and what needs no
    training. sensitivity: scales, neighbours, weights of the losses, retrieval policy. Each arm and seed is a run below
    OUT; called again, the command goes on where it stopped. Ends in ablation.md, ablation.json and ablation.png.
    """
    from forecaster.ablate import ablate as run_arms
    from forecaster.ablate import as_markdown, choose_arms

    arms, chosen_seeds = choose_arms(names(groups) or ()), numbers("--seeds", seeds) or ()
    memory, table, ref = open_with_table(index, file, indexes_dir, table_options)
    base = settings(memory, None, config=config, preset=preset, stated={}, texts=set_ or [])
    out.mkdir(parents=True, exist_ok=True)
    rows = run_arms(
        table,
        memory,
        ref,
        base,
        out,
        arms=arms,
        seeds=chosen_seeds,
        neighbours_dir=out.parent / ".neighbours",
        part=split,
        device=device,
        report=note,
    )
    title = f"{table.source} with {ref}, {split}: horizon {base.model.horizon}, lookback {base.model.lookback}"
    document: dict[str, object] = {
        "ref": ref,
        "split": split,
        "seeds": chosen_seeds,
        "settings": base.to_dict(),
        "rows": rows,
    }
    (out / "ablation.md").write_text(as_markdown(rows, title), encoding="utf-8")
    _write_document(out / "ablation.json", document)
    if find_spec("matplotlib") is None:
        note("no picture: matplotlib is not installed (pip install 'gram-forecaster[plot]')")
    else:
        from cli.pictures import draw_ablation, save

        save(draw_ablation({row.arm: (row.mse, row.mse_deviation) for row in rows}, title), out / "ablation.png")
    if as_json:
        print_json("ablate", document)
        return
    cells = [[row.arm, row.num_seeds, row.val_mse, row.mse, row.mae, row.direction_accuracy] for row in rows]
    print_table(["arm", "seeds", "val MSE", "MSE", "MAE", "direction"], _rounded(cells), title=title)
    note(f"tables and picture: {out}/ablation.md, .json, .png")


def _rounded(cells: Sequence[Sequence[object]]) -> list[list[object]]:
    return [["-" if c is None else f"{c:.4f}" if isinstance(c, float) else c for c in row] for row in cells]


def _write_document(path: Path, document: dict[str, object]) -> None:
    import json

    from cli.output import jsonable

    path.write_text(json.dumps({"schema": "ablate", **jsonable(document)}, indent=1) + "\n", encoding="utf-8")
