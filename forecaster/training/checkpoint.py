"""Checkpoints: everything that a training needs to go on as if it had never stopped.

`checkpoints/step-00000500/` in a run holds `model.safetensors`, `optimizer.safetensors` and `trainer.json`, which
lists the hashes of the two. A checkpoint is written in a hidden folder beside it and becomes visible, complete, by one
rename; it is never changed. When one is written is `training_loop.py`.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from torch import Tensor

from forecaster.bounds import at_least
from forecaster.errors import RunDamagedError, RunIncompatibleError
from forecaster.runs.records import RESTORE, first_difference, pack, read_recorded, refusals_named, seal, unpack, unseal
from memory_index import files
from memory_index.files import sha256_of

CHECKPOINTS = "checkpoints"
MODEL = "model.safetensors"
OPTIMIZER = "optimizer.safetensors"
TRAINER = "trainer.json"
UNSCORED = "-unscored"  # at the end of an epoch that has not been validated yet
NAME = re.compile(rf"step-(\d{{8,}})({UNSCORED})?")
# What a training belongs to: the parts that are settings, and what the hashes in it are of.
SETTINGS = ("settings", "train")
HASHES = {
    "backbone.fingerprint": "language model",
    "data.sha256": "table (up to the end of the validation part)",
    "index.encoder_fingerprint": "key encoder",
    "index.fingerprint": "version of the index",
}
TRASH = ".old-"  # beginning of the name of a checkpoint that is being deleted


@dataclass(frozen=True, kw_only=True)
class CheckpointSettings:
    """save_steps: optimizer steps between two checkpoints. save_total_limit: how many are kept."""

    save_steps: int = 500
    save_total_limit: int = 3

    def __post_init__(self) -> None:
        at_least(self, 1, "save_steps", "save_total_limit")


# They may differ between a training and its continuation, since they change no result.
FREE_SETTINGS = tuple(field.name for field in fields(CheckpointSettings))


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainerState:
    """Where a training stands.

    step: optimizer steps done. epoch: epochs done, validation included. position: windows of the current epoch that
    were used; with the epoch it is the sampler's whole state. scored: False only between the last step of an epoch
    and the end of its validation. best_step, best_val_mse: of the best model so far, the untrained one included.
    epochs_without_better: for early stopping. num_lines: in `metrics.jsonl`. sums, num_summed: of the losses since
    its last line of losses, and over how many steps. seconds: of training, over all its parts. stopped: why it ended,
    empty before.
    """

    best_val_mse: float
    best_step: int = 0
    step: int = 0
    epoch: int = 0
    position: int = 0
    scored: bool = True
    epochs_without_better: int = 0
    num_lines: int = 0
    sums: tuple[float, ...] = ()
    num_summed: int = 0
    seconds: float = 0.0
    stopped: str = ""

    @property
    def best_score(self) -> float:
        """The best model's score; larger is better."""
        return -self.best_val_mse

    @property
    def checkpoint(self) -> str:
        """Name of the checkpoint of this state."""
        return f"step-{self.step:08d}" + ("" if self.scored else UNSCORED)


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """A training, frozen.

    model: the trainable weights by name. optimizer: its tensors by `parameter/field`; groups: its settings. scheduler:
    the plan that the learning rate follows, for the record: it is a pure function of the step. rng: state of the
    random number generators, one per process. scaler: of mixed precision; None, since bf16 has the range of float32.
    identity: what the training belongs to, the index version among it.
    """

    state: TrainerState
    model: Mapping[str, Tensor]
    optimizer: Mapping[str, Tensor]
    groups: list[dict[str, Any]]
    scheduler: dict[str, Any]
    rng: list[dict[str, Any]]
    identity: Mapping[str, Any]
    scaler: dict[str, Any] | None = None


def save_checkpoint(run: Path, checkpoint: Checkpoint) -> Path:
    """Write a checkpoint and return its folder; one that is there already stays as it is.

    Raises `ResourceError` for a full disk and the like; nothing is then visible.
    """
    folder = run / CHECKPOINTS
    target = folder / checkpoint.state.checkpoint
    if target.exists():
        return target
    contents = {MODEL: pack(checkpoint.model), OPTIMIZER: pack(checkpoint.optimizer)}
    document = {
        "state": {**asdict(checkpoint.state), "best_score": checkpoint.state.best_score},
        "groups": checkpoint.groups,
        "scheduler": checkpoint.scheduler,
        "scaler": checkpoint.scaler,
        "rng": checkpoint.rng,
        "identity": checkpoint.identity,
        "files": {name: sha256_of(content) for name, content in contents.items()},
    }
    with refusals_named(target):
        folder.mkdir(exist_ok=True)
        with files.atomic_folder(folder / f"{files.TEMPORARY}{secrets.token_hex(4)}") as staging:
            for name, content in (contents | {TRAINER: seal(document)}).items():
                files.write_new(staging / name, content)
            files.publish_folder(staging, target)
    return target


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint, every byte of it checked.

    Raises `RunDamagedError` that names the first file that is not what was written, `RunIncompatibleError` for another
    format, `ResourceError` if it may not be read.
    """
    document = _read_trainer(path)
    tensors = {}
    for name in (MODEL, OPTIMIZER):
        file = path / name
        if not file.is_file():
            raise RunDamagedError(f"{file} is missing", hint=RESTORE)
        tensors[name] = unpack(read_recorded(file, document["files"][name]), file)
    return Checkpoint(
        state=_state(document),
        model=tensors[MODEL],
        optimizer=tensors[OPTIMIZER],
        groups=document["groups"],
        scheduler=document["scheduler"],
        rng=document["rng"],
        identity=document["identity"],
        scaler=document["scaler"],
    )


def load_latest(run: Path) -> Checkpoint | None:
    """The newest checkpoint of a run, or None if it has none. Never an older one in its place.

    Raises as `load_checkpoint` does; the hint then says how to go on from the one before.
    """
    paths = checkpoints_in(run)
    if not paths:
        return None
    try:
        return load_checkpoint(paths[-1])
    except RunDamagedError as error:
        hint = "there is none before it: train again into another folder"
        if len(paths) > 1:
            hint = f"to go on from {paths[-2].name}, move {paths[-1].name} out of {paths[-1].parent}"
        raise RunDamagedError(str(error), hint=hint) from error


def checkpoints_in(run: Path) -> list[Path]:
    """Folders of the checkpoints of a run, oldest first."""
    folder = run / CHECKPOINTS
    if not folder.is_dir():
        return []
    with refusals_named(folder):
        found = [(match, path) for path in folder.iterdir() if (match := NAME.fullmatch(path.name))]
    found.sort(key=lambda pair: (int(pair[0][1]), pair[0][2] is None))
    return [path for _, path in found]


def prune(run: Path, limit: int) -> None:
    """Delete all but the newest `limit` checkpoints, and the best model's of each that stays.

    Raises `ResourceError` if one cannot be deleted.
    """
    paths = checkpoints_in(run)
    kept, rest = paths[-limit:], paths[:-limit]
    try:
        best = {f"step-{_state(_read_trainer(path)).best_step:08d}" for path in kept}
    except RunDamagedError:
        return  # it may be the user's way back, and needs a best one that nobody can tell any more
    for path in rest:
        if path.name not in best:
            with refusals_named(path):
                # Out of sight in one step: a kill while its files go must not leave half a checkpoint.
                trash = path.rename(path.with_name(f"{TRASH}{secrets.token_hex(4)}"))
            files.delete_tree(trash)


def clear_leftovers(run: Path) -> None:
    """Delete what a killed training has left half written or half deleted in a run."""
    for path in [*(run / CHECKPOINTS).glob(f"{files.TEMPORARY}*"), *(run / CHECKPOINTS).glob(f"{TRASH}*")]:
        files.delete_tree(path)
    for path in run.glob(f"{files.TEMPORARY}*"):
        files.delete_tree(path)


def require_same(written: Mapping[str, Any], found: Mapping[str, Any], *, where: Path) -> None:
    """Raise `RunIncompatibleError` that names the first difference if this belongs to something else.

    Settings come first: what else differs may follow from them.
    """
    settings = ({name: each[name] for name in SETTINGS if name in each} for each in (written, found))
    difference = first_difference(*settings) or first_difference(written, found)
    if difference is None:
        return
    name, ours, theirs = difference
    if name in HASHES:
        said = f"another {HASHES[name]} ({str(ours)[:12]}, not {str(theirs)[:12]})"
    else:
        part, _, own = name.partition(".")
        said = f"{own if part in SETTINGS else name} {ours!r}, not {theirs!r}"
    raise RunIncompatibleError(
        f"{where} was trained with {said}",
        hint="go on with what it was trained with, or train into another folder (--out)",
    )


def _read_trainer(path: Path) -> dict[str, Any]:
    file = path / TRAINER
    if not file.is_file():
        raise RunDamagedError(f"{file} is missing", hint=RESTORE)
    with refusals_named(file):
        return unseal(file)


def _state(document: dict[str, Any]) -> TrainerState:
    state = {name: value for name, value in document["state"].items() if name != "best_score"}
    return TrainerState(**{**state, "sums": tuple(state["sums"])})
