"""What a run is, as it is written in its `config.json`: settings, index version, backbone, data.

How a run folder is made and opened is `run.py`.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Self

import numpy as np
import pandas as pd

from forecaster.config import Config
from forecaster.training.checkpoint import FREE_SETTINGS
from memory_index.windows import to_ns

LIBRARIES = ("torch", "transformers", "accelerate", "safetensors", "numpy", "pandas", "faiss-cpu")

# Settings of the network when it was a residual on the mix: runs in closed form that name them are what they were.
RETIRED = ("head_learning_rate", "gate_learning_rate")


def library_versions() -> dict[str, str]:
    """Versions of what a result may depend on."""
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # such as another build of FAISS
            continue
    return found


def now() -> str:
    """The time in ISO 8601, UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")


@dataclass(frozen=True, kw_only=True, slots=True)
class IndexFacts:
    """The version that a run was trained against.

    window: of the version, as in its manifest. spaces: names of its key spaces, in the order of the model's weights.
    """

    ref: str
    fingerprint: str
    encoder_fingerprint: str
    window: dict[str, Any]
    spaces: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class DataFacts:
    """The table that a run was trained on.

    source: name of the file. first_at, last_at: ISO 8601, up to the end of the validation part. split: its name, and
    where its parts end (ISO 8601, as the table tells its times). step: pandas frequency. units: training standard
    deviation of each series, in which errors are counted. sha256: of all series up to the end of the validation part.
    """

    source: str
    first_at: str
    last_at: str
    step: str
    series_ids: tuple[str, ...]
    units: dict[str, float]
    split: dict[str, Any]
    sha256: str

    @property
    def seen_until(self) -> np.datetime64:
        """datetime64[ns], UTC or naive: up to when training may have read, the end of the validation part if there is
        one.
        """
        until = self.split["val_until"] or self.split["train_until"]
        return np.datetime64(to_ns(pd.DatetimeIndex([pd.Timestamp(until)]))[0], "ns")


@dataclass(frozen=True, kw_only=True, slots=True)
class RunRecord:
    """What a run is. Its `identity` must be the same when it goes on.

    backbone: reference and fingerprint of the frozen language model, None without one.
    hardware: what it was begun on.
    """

    settings: dict[str, Any]
    index: IndexFacts
    backbone: dict[str, Any] | None
    data: DataFacts
    hardware: dict[str, Any] = field(default_factory=dict)
    libraries: dict[str, str] = field(default_factory=library_versions)
    created_at: str = field(default_factory=now)

    @property
    def config(self) -> Config:
        """The settings, checked."""
        return Config.from_dict(self.settings)

    @property
    def identity(self) -> dict[str, Any]:
        """What a training belongs to, for `train`: settings that change its result, index, backbone and data.

        Without the names of version, file and language model: their fingerprints say more, and what was moved or
        renamed is still the same.
        """
        index, data, backbone = asdict(self.index), asdict(self.data), self.backbone
        del index["ref"], data["source"]
        return {
            "settings": {name: value for name, value in self.settings.items() if name not in (*FREE_SETTINGS, "llm")},
            "index": index,
            "backbone": backbone and {name: backbone[name] for name in ("layers", "fingerprint")},
            "data": data,
        }

    def to_document(self) -> dict[str, Any]:
        """In terms of JSON."""
        return asdict(self)

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> Self:
        """What `to_document` made. Raises `KeyError`, `TypeError`, `ValueError`."""
        known = {each.name for each in fields(cls)}
        if set(document) != known:
            raise ValueError(f"fields that differ from this format: {sorted(set(document) ^ known)}")
        index, data = document["index"], document["data"]
        settings = {name: value for name, value in document["settings"].items() if name not in RETIRED}
        return cls(
            **{
                **document,
                "settings": settings,
                "index": IndexFacts(**{**index, "spaces": tuple(index["spaces"])}),
                "data": DataFacts(**{**data, "series_ids": tuple(data["series_ids"])}),
            }
        )
