"""The best weights of a run: `model.safetensors` at its root, and what is known of them in `model.json`.

Two files cannot be replaced in one step. So `model.json` lists, for a moment, the weights that were there and those
that come, and whoever reads the weights finds by their hash which of the two they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from torch import Tensor, nn

from forecaster.errors import RunDamagedError, RunIncompatibleError, RunNotFoundError
from forecaster.runs.records import RESTORE, pack, refusals_named, seal, unpack, unseal
from memory_index import files
from memory_index.files import sha256_of

WEIGHTS = "model.safetensors"
WEIGHTS_RECORD = "model.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class WeightsRecord:
    """Weights and how they scored. sha256: of the file. step: optimizer steps seen. val_mse: of validation."""

    sha256: str
    step: int
    val_mse: float


def publish_weights(folder: Path, tensors: Mapping[str, Tensor], *, step: int, val_mse: float) -> None:
    """Make these the weights of the run; a kill at any moment leaves the old ones or these. Raises `ResourceError`."""
    content = pack(tensors)
    record = WeightsRecord(sha256=sha256_of(content), step=step, val_mse=val_mse)
    with refusals_named(folder):
        before = _records(folder)
        files.replace(folder / WEIGHTS_RECORD, _text([record, *before]))
        files.replace(folder / WEIGHTS, content)
        files.replace(folder / WEIGHTS_RECORD, _text([record]))


def read_weights(folder: Path) -> tuple[dict[str, Tensor], WeightsRecord]:
    """The weights of a run by name, on the CPU, and what is known of them.

    Raises `RunNotFoundError` if there are none yet, `RunDamagedError` if they are not what was written.
    """
    path = folder / WEIGHTS
    with refusals_named(path):
        records = _records(folder)
        if not path.exists():
            raise RunNotFoundError(f"{folder} has no weights yet", hint="go on with 'cli train ... --resume'")
        content = path.read_bytes()
    digest = sha256_of(content)
    for record in records:
        if record.sha256 == digest:
            return unpack(content, path), record
    raise RunDamagedError(f"{path} is not what was written", hint=RESTORE)


def load_into(model: nn.Module, tensors: Mapping[str, Tensor], *, where: Path) -> None:
    """Give a model the weights by name; what its `state_dict` leaves out, it keeps.

    Raises `RunIncompatibleError` that names the first weight that one of them lacks or that has another shape.
    """
    wanted = model.state_dict()
    for name in sorted(wanted.keys() | tensors.keys()):
        ours, theirs = (tuple(each[name].shape) if name in each else "none" for each in (wanted, tensors))
        if ours != theirs:
            raise RunIncompatibleError(
                f"{where} is of another model: '{name}' has shape {theirs} there and {ours} here",
                hint="use the settings that the run was trained with",
            )
    model.load_state_dict(dict(tensors), strict=False)


def _records(folder: Path) -> list[WeightsRecord]:
    path = folder / WEIGHTS_RECORD
    if not path.exists():
        return []
    try:
        return [WeightsRecord(**record) for record in unseal(path)["weights"]]
    except (KeyError, TypeError) as error:
        raise RunDamagedError(f"{path} is not what was written: {error!r}", hint=RESTORE) from error


def _text(records: list[WeightsRecord]) -> bytes:
    return seal({"weights": [asdict(record) for record in records]})
