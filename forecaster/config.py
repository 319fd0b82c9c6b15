"""The settings of the model and of its training, composed of those of their parts, and how they are read.

A setting is defined, with its default and what is allowed, in the file of what it sets: `n_scales` in `model/tapr.py`,
`learning_rate` in `training/optimizer.py`. All are flat names, unique over both records, so that
`--set learning_rate=0.001`, a TOML file and a run's `config.json` say the same thing. A name that does not exist is an
error that tells the nearest one.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Self, get_args, get_origin, get_type_hints

from forecaster.bounds import at_least, one_of
from forecaster.errors import ConfigError
from forecaster.language_models.backbone import BackboneSettings
from forecaster.model.gram import GramSettings
from forecaster.model.llm_path import LlmPathSettings
from forecaster.model.losses import LossSettings
from forecaster.model.shortcut import ShortcutSettings
from forecaster.model.tapr import TaprSettings
from forecaster.model.value_gate import GateSettings
from forecaster.retrieval.cross_fit import CrossFitSettings
from forecaster.retrieval.neighbours import RetrievalSettings
from forecaster.training.checkpoint import CheckpointSettings
from forecaster.training.optimizer import OptimizerSettings
from forecaster.training.schedule import ScheduleSettings
from memory_index.errors import NotFoundError
from memory_index.leakage import Policy
from memory_index.types import MAX_JOINT_SERIES

# Settings of the network alone: to state one is to ask for the network, which is off otherwise.
# fmt: off
OF_NETWORK = frozenset((
    "use_tapr", "n_scales", "use_llm", "llm", "llm_layers", "prompt_layout", "vocabulary_mapping", "description",
    "use_shortcut", "top_k", "d_repr", "gram_form", "patch_length", "patch_stride", "d_model", "d_ff", "num_heads",
    "num_prototypes", "dropout", "learning_rate", "lambda_trend", "lambda_dir", "lambda_mag", "lambda_hcl",
    "lambda_retrieval", "lambda_ref", "gate_pull", "aux_warmup_steps",
))
# fmt: on
WITH_NETWORK = {"use_network": True, "use_tapr": True, "use_llm": True}

Precision = Literal["auto", "float32", "bf16"]


@dataclass(frozen=True, kw_only=True)
class ModelConfig(LlmPathSettings, BackboneSettings, TaprSettings, GramSettings, ShortcutSettings):
    """What the model is: the settings of its parts. Defaults follow docs/method.md.

    use_network: train networks too, one for each fold, whose mean is one more part of the mix; off, because it does not
    earn its place (docs/experiments.md). use_tapr, use_llm: parts of the network, on where it is (`Config.from_dict`).
    """

    use_network: bool = False

    @property
    def mixes_memory(self) -> bool:
        """Whether the key spaces' own forecasts are read and mixed: not in the design's form of GRA-M."""
        return self.use_gram and self.gram_form == "full"

    @property
    def is_network_alone(self) -> bool:
        """Whether the network is the whole forecast: one network then, trained on all training windows."""
        return self.use_network and not (self.use_shortcut or self.mixes_memory)

    def __post_init__(self) -> None:
        _check_parts(self, ModelConfig)
        if self.gram_form == "design" and self.use_shortcut:
            raise ConfigError(
                "the design has no linear shortcut", hint="leave use_shortcut out, or set gram_form to full"
            )
        if self.use_network:
            self._check_network()
            return
        if self.gram_form == "design":
            raise ConfigError("gram_form=design is a form of the network, which is off", hint="set use_network=true")
        for name in ("use_tapr", "use_llm"):
            if getattr(self, name):
                raise ConfigError(
                    f"{name} is part of the network, which is off", hint=f"set use_network=true, or {name}=false"
                )
        if not (self.use_shortcut or self.use_gram):
            raise ConfigError("nothing is left that could forecast", hint="keep use_gram or use_shortcut")

    def _check_network(self) -> None:
        if self.d_model % self.num_heads:
            raise ConfigError(
                f"d_model {self.d_model} is not a multiple of num_heads {self.num_heads}", hint="change one of them"
            )
        self.require_a_patch()


@dataclass(frozen=True, kw_only=True)
class TrainConfig(
    RetrievalSettings,
    CrossFitSettings,
    GateSettings,
    ScheduleSettings,
    OptimizerSettings,
    LossSettings,
    CheckpointSettings,
):
    """How the model is trained: the settings of what takes part in it. seed: of everything random."""

    precision: Precision = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        _check_parts(self, TrainConfig)
        at_least(self, 0, "seed")
        one_of(self, "precision", Precision)


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """Both records together: everything that a run was asked to do."""

    model: ModelConfig
    train: TrainConfig

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> Self:
        """Flat settings by name; a network is made if one is asked for, or any of its settings is stated.

        Raises `ConfigError` for an unknown name (telling the nearest) or a wrong type.
        """
        parts: dict[str, dict[str, Any]] = {"model": {}, "train": {}}
        for name, value in settings.items():
            part = _owner(name)
            parts[part][name] = _typed(_RECORDS[part], name, value)
        if parts["model"].get("use_network", bool(OF_NETWORK & settings.keys())):
            parts["model"] = WITH_NETWORK | parts["model"]
        if parts["model"].get("gram_form") == "design":
            parts["model"] = {"use_shortcut": False} | parts["model"]
        missing = [name for name in ("lookback", "horizon") if name not in parts["model"]]
        if missing:
            raise ConfigError(f"the settings do not say {' and '.join(missing)}")
        return cls(model=ModelConfig(**parts["model"]), train=TrainConfig(**parts["train"]))

    def to_dict(self) -> dict[str, Any]:
        """Flat settings by name, in terms of JSON."""
        return asdict(self.model) | asdict(self.train) | {"policy": str(self.train.policy)}

    def changed(self, **settings: Any) -> Self:
        """The same with some settings changed."""
        return type(self).from_dict(self.to_dict() | settings)


# By the memory of a GPU in GB (docs/method.md). A batch there is one of moments: each has a window of every variate.
PRESETS: dict[str, dict[str, Any]] = {
    "6gb": {"batch_size": 8, "lookback": 256, "llm_layers": 4, "d_model": 32},
    "8gb": {"batch_size": 12, "lookback": 384, "llm_layers": 6, "d_model": 48},
    "12gb": {"batch_size": 24, "lookback": 512, "llm_layers": 8, "d_model": 64},
    "15gb": {"batch_size": 32, "lookback": 512, "llm_layers": 12, "d_model": 64},
}


VARIATES = 7  # of ETT


def preset_settings(name: str, *, lookback: int, num_series: int, llm: str | None = None) -> dict[str, Any]:
    """Settings for a GPU of so much memory. Raises `ConfigError`.

    lookback: the version's, caps the preset's. num_series: of the table; a batch of so many moments has a window of
    each. Series of a panel, of more than the scope `joint` takes, are not variates of one table: it counts as seven,
    like the tables that the design was made for. llm: the language model, None for the default. The built-in one is
    smaller than any preset allows, and all of its layers are used.
    """
    if name not in PRESETS:
        raise ConfigError(f"unknown preset '{name}'", hint=f"choose {', '.join(PRESETS)}")
    settings = PRESETS[name] | {"lookback": min(PRESETS[name]["lookback"], lookback)}
    settings["batch_size"] *= num_series if num_series <= MAX_JOINT_SERIES else VARIATES
    if llm is None or llm.startswith("builtin:"):
        del settings["llm_layers"]
    return settings


def read_settings(path: Path | str) -> dict[str, Any]:
    """The flat settings of a TOML file.

    Raises `ConfigError` (not TOML, unknown name, wrong type), `NotFoundError`, `OSError` (may not be read).
    """
    path = Path(path)
    if not path.is_file():
        raise NotFoundError(f"there is no file of settings {path}", hint="--config takes a TOML file")
    try:
        settings = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not TOML: {error}", hint="lines like: learning_rate = 0.001") from error
    for name, value in settings.items():
        if isinstance(value, dict):
            raise ConfigError(f"{path}: settings have no sections, but there is [{name}]", hint="delete that line")
        try:
            _typed(_RECORDS[_owner(name)], name, value)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}", hint=error.hint) from error
    return settings


def parse_setting(text: str) -> tuple[str, Any]:
    """`KEY=VALUE` as a person types it. The value is read as TOML, or else as text. Raises `ConfigError`."""
    name, equals, value = text.partition("=")
    name = name.strip()
    if not equals or not name:
        raise ConfigError(f"--set {text}: expected KEY=VALUE", hint="for example --set learning_rate=0.0005")
    _owner(name)
    try:
        return name, tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return name, {"True": True, "False": False, "None": None, "none": None}.get(value.strip(), value.strip())


_RECORDS: dict[str, type] = {"model": ModelConfig, "train": TrainConfig}


def _check_parts(record: ModelConfig | TrainConfig, kind: type) -> None:
    for part in kind.__bases__:
        part.__post_init__(record)  # type: ignore[attr-defined]


def _owner(name: str) -> str:
    """Which record a setting belongs to. Raises `ConfigError` that names the nearest one."""
    known = {field.name: part for part, record in _RECORDS.items() for field in fields(record)}
    if name in known:
        return known[name]
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
    raise ConfigError(f"there is no setting '{name}'", hint=f"the nearest is '{near}'")


def _typed(record: type, name: str, value: Any) -> Any:
    """A value as the type of its field. Raises `ConfigError`."""
    annotation = get_type_hints(record)[name]
    kinds = get_args(annotation) if isinstance(annotation, UnionType) else (annotation,)
    if get_origin(annotation) is Literal:
        kinds = (str,)
    if value is None and type(None) in kinds:
        return None
    kind = next(kind for kind in kinds if kind is not type(None))
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind is Policy:
        if value not in tuple(Policy):
            raise ConfigError(f"unknown policy '{value}'", hint=f"choose {' or '.join(Policy)}")
        return Policy(value)
    if type(value) is not kind:
        raise ConfigError(f"{name} is {value!r}, but must be {_called(kind)}")
    return value


def _called(kind: type) -> str:
    return {int: "a whole number", float: "a number", bool: "true or false", str: "text"}[kind]
