"""Options that several commands take, each by itself; those that come together are a record in a file of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

File = Annotated[Path, typer.Argument(help="CSV or Parquet, wide or long.", show_default=False)]
IndexedFile = Annotated[Path, typer.Argument(help="The table that the index was built on.", show_default=False)]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
NeighboursDir = Annotated[
    Path | None, typer.Option(help="Where found neighbours are kept.", show_default=".neighbours beside --out")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]

# Of commands that ask a run, or a memory alone.
RunFolder = Annotated[Path | None, typer.Option("--run", help="Folder of a run that 'cli train' made.")]
RunLlm = Annotated[
    str | None,
    typer.Option(
        help="With --run: where its language model lies now, if it has moved: a folder or ID@REVISION.",
        show_default="where it was",
    ),
]
RunDevice = Annotated[str, typer.Option(help="With --run: auto, cpu or cuda.")]
