"""The names in a folder of indexes: how they are written, which can be given, what a reference means.

Only names and small files are read here; versions are read in `version.py`. The layout as a whole is told in
indexes/README.md.
"""

from __future__ import annotations

import difflib
import json
import re
import secrets
from collections.abc import Collection
from pathlib import Path

from memory_index import files
from memory_index.errors import NotFoundError, UsageError, VerificationError

LATEST = "latest"
ALIASES = "aliases"
TOMBSTONES = "removed"  # one empty file per number that was once given away
STAGING = ".staging-"
TRASH = ".trash-"
BUILDER_LOCK = ".builder.lock"  # held for as long as a version is built
CATALOG_LOCK = ".catalog.lock"  # held for the moment in which a name changes; only under it is the other one taken

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
NUMBER = re.compile(r"[0-9]{6,}")  # folder of a version
NAME_HINT = "use letters, digits, '.', '_' and '-', beginning with a letter or a digit, at most 100 of them"


def check_name(name: str) -> str:
    """Return the name of an index if it can be one. Raises `UsageError`."""
    if not NAME.fullmatch(name):
        raise UsageError(f"'{name}' cannot be the name of an index", hint=NAME_HINT)
    return name


def check_alias(alias: str) -> str:
    """Return an alias if it can be one. Raises `UsageError`."""
    if not NAME.fullmatch(alias):
        raise UsageError(f"'{alias}' cannot be an alias", hint=NAME_HINT)
    if alias == LATEST or alias.isdecimal():
        reason = "it always means the newest version" if alias == LATEST else "it is the number of a version"
        raise UsageError(f"'{alias}' cannot be an alias: {reason}", hint="choose a word, for example prod")
    return alias


def parse_ref(ref: str) -> tuple[str, str]:
    """Split a reference into name and version: a number, an alias or `latest`. Raises `UsageError`."""
    name, separator, wanted = ref.partition("@")
    wanted = wanted if separator else LATEST
    if not NAME.fullmatch(name) or not NAME.fullmatch(wanted):
        raise UsageError(f"'{ref}' is not a reference to an index", hint="NAME, NAME@3 or NAME@alias")
    return name, wanted


SHOWN = 10  # of what there is, the newest


def unknown(message: str, word: str, known: Collection[str], *, maker: str = "cli index build") -> NotFoundError:
    """The error for a word that is not known, with the nearest one that is, and what there is.

    maker: the command that makes the first one.
    """
    nearest = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    listed = [*known]
    shown = ", ".join(listed[-SHOWN:]) + (f" and {len(listed) - SHOWN} more" if len(listed) > SHOWN else "")
    hint = f"there is {'only ' if len(known) == 1 else ''}{shown}" if known else f"'{maker}' makes one"
    return NotFoundError(message + (f"; did you mean '{nearest[0]}'?" if nearest else ""), hint=hint)


def read_alias(path: Path) -> tuple[int, str]:
    """Number and fingerprint of the version that an alias names. Raises `FileNotFoundError`, `VerificationError`."""
    with files.refusals_named(path):
        text = path.read_text(errors="replace")
    try:
        content = json.loads(text)
        number, fingerprint = content["version"], content["fingerprint"]
        if type(number) is not int or type(fingerprint) is not str or not fingerprint:
            raise ValueError("version or fingerprint of the wrong type")
    except (ValueError, KeyError, TypeError) as error:
        hint = f"set it again: cli index alias {path.parent.parent.name} VERSION {path.name}"
        raise VerificationError(f"the alias {path} is damaged", hint=hint) from error
    return number, fingerprint


def numbers_in(folder: Path) -> tuple[int, ...]:
    """Version numbers among the names in a folder, ascending; none if there is no such folder."""
    with files.refusals_named(folder):
        try:
            return tuple(sorted(int(path.name) for path in folder.iterdir() if NUMBER.fullmatch(path.name)))
        except FileNotFoundError:
            return ()


def hide(path: Path) -> Path:
    """Rename something to where nobody looks for it, in the folder of its name. Returns the new path."""
    if path.name.startswith(TRASH):
        return path
    folder = path.parent.parent if path.parent.name == ALIASES else path.parent
    return path.rename(folder / f"{TRASH}{secrets.token_hex(4)}")
