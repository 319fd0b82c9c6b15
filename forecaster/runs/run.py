"""The run folder as a record: what was trained on what, where its weights are, and how good it turned out.

    config.json         what the run is: settings, index version, backbone, data; written once, before training
    model.safetensors   the best weights, and model.json beside it (weights.py)
    metrics.jsonl       how training went (metrics_log.py), checkpoints/ to go on from (checkpoint.py)
    metrics.json        the figures at the end, and card.md, which tells all of it to a person

Nothing in a run depends on where it lies: it can be moved, and its weights load on any device. Training itself
is `train.py`, the fields of the record are `run_record.py`, the words of the card are `card.py`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from forecaster.config import Config
from forecaster.errors import ConfigError, RunDamagedError, RunIncompatibleError, RunNotFoundError
from forecaster.runs.card import card_text
from forecaster.runs.records import RESTORE, refusals_named, seal, unseal
from forecaster.runs.run_record import RunRecord
from forecaster.runs.weights import WeightsRecord, read_weights
from forecaster.training.checkpoint import require_same
from memory_index import files
from memory_index.errors import UsageError

CONFIG = "config.json"
METRICS = "metrics.json"
CARD = "card.md"
LOCK = ".lock"  # held by the process that trains


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """A run folder whose record has been read and is the one that was written. metrics: empty before the end."""

    path: Path
    record: RunRecord
    metrics: Mapping[str, Any]

    @property
    def config(self) -> Config:
        """The settings of the run, checked."""
        return self.record.config

    def weights(self) -> tuple[dict[str, Tensor], WeightsRecord]:
        """The best weights by name, on the CPU, and how they scored. Raises `RunNotFoundError`, `RunDamagedError`."""
        return read_weights(self.path)


@contextmanager
def begun_run(folder: Path, record: RunRecord, *, resume: bool = False) -> Iterator[Run]:
    """Begin a run as `create_run` does, and be the only process that trains in it for the length of the block.

    One that fails before anything is trained is not begun: its record would be in the way of the next try. Raises what
    `create_run` raises, and `ResourceError` while another process trains there; then nothing is written.
    """
    _run_there(folder, record, resume=resume)  # so that no lock is left in a folder that is something else
    with ExitStack() as until_done:
        with refusals_named(folder):
            folder.mkdir(parents=True, exist_ok=True)
            until_done.enter_context(files.locked(folder / LOCK, sign=True))
        was_there = run_exists(folder)
        run = create_run(folder, record, resume=resume)
        try:
            yield run
        except Exception:
            if not was_there and {path.name for path in folder.iterdir()} <= {CONFIG, LOCK}:
                (folder / CONFIG).unlink()
            raise


def create_run(folder: Path, record: RunRecord, *, resume: bool = False) -> Run:
    """Make a run folder, or with `resume` take the one that is there; nothing that is there is changed.

    A run that goes on keeps its own record, so free settings may differ. With `resume` and no folder a run begins.

    Raises `UsageError` for a folder that holds something else, or a run that is not to go on; `RunIncompatibleError`
    with the first difference for a run of something else; `ResourceError`.
    """
    if (run := _run_there(folder, record, resume=resume)) is not None:
        return run
    with refusals_named(folder):
        folder.mkdir(parents=True, exist_ok=True)
        files.replace(folder / CONFIG, seal(record.to_document()))
    return open_run(folder)


def _run_there(folder: Path, record: RunRecord, *, resume: bool) -> Run | None:
    """The run that is to go on in a folder; None for a folder in which one can begin. Raises as `create_run` does."""
    with refusals_named(folder):
        there = sorted(path.name for path in folder.iterdir()) if folder.exists() else []
    if CONFIG in there:
        run = open_run(folder)
        if not resume:
            state = "finished" if run.metrics else "not finished"
            raise UsageError(
                f"{folder} holds a run already, which is {state}",
                hint="go on with --resume, or choose another folder (--out)",
            )
        require_same(run.record.identity, record.identity, where=folder)
        return run
    if foreign := [name for name in there if name != LOCK and not name.startswith(files.TEMPORARY)]:
        raise UsageError(
            f"{folder} is not a run, and not empty: it holds {foreign[0]}", hint="choose another folder (--out)"
        )
    return None


def run_exists(folder: Path | str) -> bool:
    """Whether a folder holds a run, begun or finished; its record is not read."""
    return (Path(folder) / CONFIG).is_file()


def open_run(folder: Path | str) -> Run:
    """Read what a run is; its weights are read, and their hash is checked, by `Run.weights`.

    Raises `RunNotFoundError` with the runs beside it, `RunDamagedError` for a record that is not what was written,
    `RunIncompatibleError` for another format.
    """
    folder = Path(folder)
    path = folder / CONFIG
    with refusals_named(path):
        if not path.is_file():
            raise _unknown(folder)
        document = unseal(path)
        metrics_path = folder / METRICS
        metrics = unseal(metrics_path) if metrics_path.is_file() else {}
    try:
        record = RunRecord.from_document(document)
    except (KeyError, TypeError, ValueError) as error:
        raise RunDamagedError(f"{path} cannot be read: {error}", hint=RESTORE) from error
    try:
        _ = record.config
    except ConfigError as error:
        raise RunIncompatibleError(
            f"{path} has settings that this program does not know: {error}", hint="use the version that wrote it"
        ) from error
    return Run(path=folder, record=record, metrics=metrics)


def finish_run(run: Run, metrics: Mapping[str, Any]) -> Run:
    """Write the figures at the end, and the card. metrics: in terms of JSON. Raises `ResourceError`."""
    weights = run.weights()[1]
    with refusals_named(run.path):
        files.replace(run.path / METRICS, seal(metrics))
        files.replace(run.path / CARD, card_text(run.record, metrics, weights).encode())
    return open_run(run.path)


def _unknown(folder: Path) -> RunNotFoundError:
    """The error for a folder that holds no run, with the nearest beside it that do."""
    parent = folder.parent
    beside = sorted(path.parent.name for path in parent.glob(f"*/{CONFIG}")) if parent.is_dir() else []
    nearest = difflib.get_close_matches(folder.name, beside, n=1, cutoff=0.5)
    what = "holds no run" if folder.exists() else "does not exist"
    hint = f"in {parent} there is {', '.join(beside[-10:])}" if beside else "'cli train' makes one"
    return RunNotFoundError(f"{folder} {what}" + (f"; did you mean '{nearest[0]}'?" if nearest else ""), hint=hint)
