"""Bytes of a run: JSON documents that know their own hash, tensors as safetensors, and what the disk refuses.

Which documents there are, and what is in them, is told in `run.py`, `checkpoint.py` and `weights.py`. Nothing here, or
in any file of a run, is a pickle.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from forecaster.errors import RunDamagedError, RunIncompatibleError
from memory_index import files
from memory_index.files import sha256_of

# Of all documents of a run together. 2: fitted to neighbours' futures that the linear map has moved; 3: intervals have
# a factor for each series; 4: intervals are blended with the memory's own.
FORMAT = 4
RESTORE = "restore it from a copy, or train again into another folder"


def seal(document: Mapping[str, Any]) -> bytes:
    """A document as JSON, with its format number and the hash of everything else in it as `sha256`.

    The text is the only one that `unseal` takes: each of its bytes is checked.
    """
    assert "sha256" not in document
    assert "format" not in document
    whole = {**document, "format": FORMAT}
    return _text({**whole, "sha256": sha256_of(_text(whole))})


def unseal(path: Path) -> dict[str, Any]:
    """Read a document that `seal` made, without its format number and hash.

    Raises `RunDamagedError` if it is not what was written, `RunIncompatibleError` for another format, `OSError`.
    """
    try:
        content = path.read_bytes()
        document = json.loads(content)
        number, digest = document.pop("format"), document.pop("sha256")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise RunDamagedError(f"{path} is not what was written: {error!r}", hint=RESTORE) from error
    if type(number) is int and number > FORMAT:
        raise RunIncompatibleError(
            f"{path} has format {number}, but this program reads formats up to {FORMAT}", hint="upgrade the program"
        )
    whole = {**document, "format": number}
    if digest != sha256_of(_text(whole)) or content != _text({**whole, "sha256": digest}):
        raise RunDamagedError(f"{path} is not what was written", hint=RESTORE)
    if type(number) is not int or number < FORMAT:
        raise RunIncompatibleError(
            f"{path} has format {number}: runs before format {FORMAT} were fitted otherwise",
            hint="train again into another folder, or use the version that wrote it",
        )
    return document


def read_recorded(path: Path, sha256: str) -> bytes:
    """The bytes of a file whose hash a sealed document holds. Raises `RunDamagedError`, `ResourceError`."""
    with refusals_named(path):
        content = path.read_bytes()
    if sha256_of(content) != sha256:
        raise RunDamagedError(f"{path} is not what was written", hint=RESTORE)
    return content


def pack(tensors: Mapping[str, Tensor]) -> bytes:
    """Tensors by name as the bytes of a safetensors file; the same tensors give the same bytes."""
    # A copy each: safetensors refuses tensors that share their storage, as tied weights do.
    return safetensors.torch.save({name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()})


def unpack(content: bytes, path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, on the CPU; `path` names it in messages. Raises `RunDamagedError`."""
    try:
        return safetensors.torch.load(content)
    except safetensors.SafetensorError as error:
        raise RunDamagedError(f"{path} is not a safetensors file: {error}", hint=RESTORE) from error


def refusals_named(path: Path) -> AbstractContextManager[None]:
    """Raise what the operating system refuses inside the block as `ResourceError` with the path and a hint."""
    return files.refusals_named(path, option="--out", when_full="free some disk space, then go on with --resume")


def first_difference(written: Mapping[str, Any], found: Mapping[str, Any]) -> tuple[str, Any, Any] | None:
    """Dotted name and both values of the first thing that two nested documents do not have in common, by name.

    Compared as JSON: a tuple equals a list. A value that one of them lacks is given as None.
    """
    ours, theirs = (_flat(json.loads(json.dumps(document))) for document in (written, found))
    for name in sorted(ours.keys() | theirs.keys()):
        if ours.get(name) != theirs.get(name):
            return name, ours.get(name), theirs.get(name)
    return None


def _flat(document: dict[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in document.items():
        if isinstance(value, dict):
            flat |= {f"{name}.{key}": inner for key, inner in _flat(value).items()}
        else:
            flat[name] = value
    return flat


def _text(document: Mapping[str, Any]) -> bytes:
    return (json.dumps(document, indent=1, sort_keys=True, allow_nan=False) + "\n").encode()
