"""The states of a run that goes on: numbered, immutable, each with the hash of its bytes. 0 is what training made.

    states/000000/   state.json, growth.safetensors    normal equations of the training part
    states/000001/   the same after an update, and the linear map and gate weights that it gave
    states/current.json                                which of them is used

A state appears by one rename, and counts from when `current.json` names it: a killed update leaves the old one. Going
back is naming an earlier one. What is in the arrays is told in `growth/growth.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from forecaster.errors import RunDamagedError, RunIncompatibleError
from forecaster.runs.records import RESTORE, read_recorded, refusals_named, seal, unseal
from forecaster.runs.run_record import now
from memory_index import files
from memory_index.errors import NotFoundError

STATES, CURRENT = "states", "current.json"
RECORD, ARRAYS = "state.json", "growth.safetensors"
STAGING = ".staging-"
KEPT = 10  # states are kept beside 0 and the one that is used; each is a few MB


@dataclass(frozen=True, kw_only=True, slots=True)
class StateRecord:
    """One state. until: ISO 8601, up to when everything has been learned. parent: the state that it went on from.

    half_life: steps, None where nothing is forgotten. num_windows: that the map has taken in since training. kept: what
    the gate is, see `GateFit`. ref, fingerprint: the version that told it. trained: what all states share, in 0 only.
    """

    number: int
    parent: int | None
    until: str
    half_life: float | None
    num_windows: int
    kept: str
    ref: str
    fingerprint: str
    sha256_of_file: str
    trained: dict[str, Any] | None = None
    created_at: str = field(default_factory=now)

    def to_document(self) -> dict[str, Any]:
        """In terms of JSON."""
        return asdict(self)


def has_states(run: Path) -> bool:
    """Whether a run can go on."""
    return (_folder(run, 0) / RECORD).is_file()


def numbers_of(run: Path) -> list[int]:
    """The states that there are, ascending."""
    folder = run / STATES
    found = folder.iterdir() if folder.is_dir() else ()
    return sorted(int(path.name) for path in found if path.name.isdigit() and (path / RECORD).is_file())


def current_number(run: Path) -> int:
    """The state that is used. Raises `RunDamagedError`."""
    path = run / STATES / CURRENT
    with refusals_named(path):
        return int(unseal(path)["number"]) if path.is_file() else 0


def read_state(run: Path, number: int | None = None) -> StateRecord:
    """What a state is; None is the one that is used.

    Raises `RunIncompatibleError` for a run without states, `NotFoundError`, `RunDamagedError`.
    """
    if not has_states(run):
        raise RunIncompatibleError(
            f"{run} cannot go on: it keeps no normal equations, as runs with networks or of an earlier program do not",
            hint="its memory can grow (--update-index); train again for a run that goes on",
        )
    number = current_number(run) if number is None else number
    path = _folder(run, number) / RECORD
    if not path.is_file():
        there = ", ".join(map(str, numbers_of(run)))
        raise NotFoundError(f"{run} has no state {number}", hint=f"it has {there}")
    with refusals_named(path):
        document = unseal(path)
    try:
        return StateRecord(**document)
    except TypeError as error:
        raise RunDamagedError(f"{path} cannot be read: {error}", hint=RESTORE) from error


def read_arrays(run: Path, record: StateRecord) -> dict[str, np.ndarray]:
    """The arrays of a state. Raises `RunDamagedError`."""
    content = read_recorded(_folder(run, record.number) / ARRAYS, record.sha256_of_file)
    return dict(safetensors.numpy.load(content))


def write_state(run: Path, arrays: Mapping[str, np.ndarray], **told: Any) -> StateRecord:
    """Publish the next state and use it. Only under the run's lock. told: of `StateRecord`. Raises `ResourceError`."""
    content = safetensors.numpy.save({name: np.ascontiguousarray(array) for name, array in arrays.items()})
    numbers = numbers_of(run)
    record = StateRecord(number=max(numbers, default=-1) + 1, sha256_of_file=files.sha256_of(content), **told)
    folder = run / STATES
    with refusals_named(folder):
        folder.mkdir(exist_ok=True)
        for left in folder.glob(f"{STAGING}*"):
            files.delete_tree(left)
        target = _folder(run, record.number)
        with files.atomic_folder(folder / f"{STAGING}{target.name}") as staging:
            files.write_new(staging / ARRAYS, content)
            files.write_new(staging / RECORD, seal(record.to_document()))
            files.publish_folder(staging, target)
    use_state(run, record.number)
    _remove_old(run, record.number)
    return record


def use_state(run: Path, number: int) -> None:
    """From now on the run is as of this state. Raises as `read_state` does."""
    record = read_state(run, number)
    read_arrays(run, record)
    with refusals_named(run):
        files.replace(run / STATES / CURRENT, seal({"number": number}))


def _remove_old(run: Path, used: int) -> None:
    for number in [each for each in numbers_of(run) if each not in (0, used)][:-KEPT]:
        files.delete_tree(_folder(run, number))


def _folder(run: Path, number: int) -> Path:
    return run / STATES / f"{number:06d}"
