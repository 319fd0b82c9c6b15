"""Where a memory is found: the options that every command that asks one takes, as one `Indexes`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.index_options import DEFAULT_DIR, IndexesDir
from cli.output import note
from cli.record_options import with_record

if TYPE_CHECKING:
    from memory_index.references import Found

REF = "NAME, NAME@3, NAME@alias or an address"
IndexRef = Annotated[str, typer.Option("--index", metavar="REF", help=f"{REF}.", show_default=False)]
TOKEN_FILE = typer.Option("--token-file", help="For an address: file with the token to show.")
TLS_CA = typer.Option("--tls-ca", help="For an address: PEM file of the authority to believe.")

# Type and default by name.
OPTIONS: dict[str, tuple[Any, Any]] = {
    "indexes_dir": (IndexesDir, DEFAULT_DIR),
    "token_file": (Annotated[Path | None, TOKEN_FILE], None),
    "tls_ca": (Annotated[Path | None, TLS_CA], None),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Indexes:
    """Where references lead: a folder of versions, and what is shown to and believed of others."""

    folder: Path
    token_file: Path | None = None
    tls_ca: Path | None = None

    def find(self, ref: str) -> Found:
        """What a reference means. Raises what `memory_index.references.find` raises, and what reading files does."""
        from memory_index.access import read_access
        from memory_index.references import find

        is_given = self.token_file is not None or self.tls_ca is not None
        access = read_access(self.token_file, self.tls_ca) if is_given else None
        return find(self.folder, ref, access=access, note=note)

    @property
    def flags(self) -> list[str]:
        """The flags that make it, without those that say the default."""
        given = {"--indexes-dir": self.folder, "--token-file": self.token_file, "--tls-ca": self.tls_ca}
        return [part for flag, path in given.items() if path not in (None, DEFAULT_DIR) for part in (flag, str(path))]


def asks_memory(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command these options, and hand them to its keyword argument `indexes` as an `Indexes`."""

    def record(given: dict[str, Any]) -> Indexes:
        return Indexes(folder=given["indexes_dir"], token_file=given["token_file"], tls_ca=given["tls_ca"])

    return with_record(command, "indexes", OPTIONS, record)
