"""Settings of the model and of its training: their defaults, what is allowed, and how they are read.

Settings are flat names, unique over both records, so that `--set learning_rate=0.001`, a TOML file and a run's
`config.json` say the same thing. A name that does not exist is an error that tells the nearest one.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Self, get_args, get_origin, get_type_hints

from forecaster.errors import ConfigError
from memory_index.errors import NotFoundError
from memory_index.leakage import Policy

# Defaults where the network is the whole forecast and not a residual on the shortcut.
ALONE: dict[str, Any] = {"learning_rate": 1e-3, "head_learning_rate": 1e-3}

# Settings of the network alone: to state one is to ask for the network, which is off otherwise.
# fmt: off
OF_NETWORK = frozenset((
    "use_tapr", "n_scales", "use_llm", "llm", "llm_layers", "prompt_layout", "vocabulary_mapping", "description",
    "use_shortcut", "top_k", "patch_length", "patch_stride", "d_model", "d_ff", "num_heads", "num_prototypes",
    "dropout", "learning_rate", "head_learning_rate", "gate_learning_rate",
    "lambda_trend", "lambda_retrieval", "lambda_ref", "gate_pull", "aux_warmup_steps",
))
# fmt: on
WITH_NETWORK = {"use_network": True, "use_tapr": True, "use_llm": True}

MAX_FOLDS = 127  # blocks of time are numbered in int8
MAX_WORK = 3e12  # operations: about five minutes on two cores (docs/experiments.md)
LEAST_WHERE_STATED = {"num_folds": 1, "train_stride": 1, "val_stride": 1, "gate_shrinkage": 0, "max_steps": 1}

PromptLayout = Literal["spec", "cached"]
Precision = Literal["auto", "float32", "bf16"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """What the model is. Names and defaults follow docs/method.md; widths in numbers, lookback and horizon in steps.

    use_gram, use_shortcut: switch a part off; its module, tokens and losses go with it. use_network: train a network
    too, whose forecast is added to the mix of shortcuts and memory; off, because it does not earn its place
    (docs/experiments.md). use_tapr, use_llm: parts of the network, on where it is (`Config.from_dict`). n_scales: S of
    TAPR. top_k: neighbours that enter the gating and the prompt. d_ff: features of the language model's output that the
    head reads, at most the model's own width. llm: `builtin:tiny`, a folder, or `ID@REVISION`. llm_layers: its first so
    many layers, None for all. prompt_layout: `spec` (trend, retrieval, text, patches) or `cached` (text first).
    vocabulary_mapping: learn prototypes as a map over the whole vocabulary, as the original does. description: of the
    data, for the prompt. spread_floor: least spread of a window, relative to its series' training standard deviation.
    ridge: penalty of the linear shortcut, relative to the mean square of a normalised window; None chooses it by
    cross-validation (`training/linear_maps.py`). season: steps of the seasonal naive part; None takes the usual one of
    the table's step, 1 leaves the part out.
    """

    lookback: int
    horizon: int
    patch_length: int = 16
    patch_stride: int = 8
    d_model: int = 32
    d_ff: int = 128
    num_heads: int = 8
    num_prototypes: int = 1000
    dropout: float = 0.1
    use_tapr: bool = False
    n_scales: int = 3
    use_gram: bool = True
    top_k: int = 5
    use_shortcut: bool = True
    use_llm: bool = False
    use_network: bool = False
    llm: str = "builtin:tiny"
    llm_layers: int | None = None
    prompt_layout: PromptLayout = "spec"
    vocabulary_mapping: bool = False
    description: str = ""
    spread_floor: float = 0.3
    ridge: float | None = None
    season: int | None = None

    def __post_init__(self) -> None:
        _at_least(self, 1, "horizon", "patch_length", "patch_stride", "d_model", "d_ff", "num_heads", "num_prototypes")
        _at_least(self, 2, "lookback")
        _at_least(self, 1, "top_k")
        if self.llm_layers is not None:
            _at_least(self, 1, "llm_layers")
        if self.season is not None:
            _at_least(self, 1, "season")
        for name in ("spread_floor", "ridge"):
            if (value := getattr(self, name)) is not None and not value > 0:
                raise ConfigError(f"{name} is {value}, but must be above 0")
        if not 2 <= self.n_scales <= 4:
            raise ConfigError(f"n_scales is {self.n_scales}, but must be 2, 3 or 4")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout is {self.dropout}, but must be at least 0 and below 1")
        if self.prompt_layout not in get_args(PromptLayout):
            raise ConfigError(f"unknown prompt_layout '{self.prompt_layout}'", hint="choose spec or cached")
        if self.use_network:
            self._check_network()
            return
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
        if self.lookback < self.patch_length:
            raise ConfigError(
                f"lookback {self.lookback} is shorter than a patch of {self.patch_length} steps",
                hint=f"lower patch_length to {self.lookback} or less",
            )

    @property
    def num_patches(self) -> int:
        """P: patches of a window that is padded by one stride at its end."""
        return (self.lookback - self.patch_length) // self.patch_stride + 2


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """How the model is trained.

    memory_k: neighbours per key space that make the memory's forecast. policy: which windows training may see as
    neighbours; evaluation is always `causal`. num_folds: blocks of time for cross-fitting what feeds the model in
    training; None takes what the table allows (`retrieval/folds.py`), 1 fits on everything. train_stride, val_stride:
    steps between the origins of two training or validation windows; None takes what `max_work` allows. max_work:
    operations that finding the neighbours of all these windows may take (`training/plan.py`).
    batch_size: windows of one optimizer step, over all processes, before accumulation. learning_rate: inside the
    network; head_learning_rate: of the last step from the network to its forecast, so much slower because the
    forecast is a residual on the shortcut (docs/experiments.md); gate_learning_rate: of the value gate of a network
    without shortcut; everywhere else it is fitted in closed form. gate_shrinkage: how strongly that fit is
    held at half linear map, half memory; None chooses it by cross-validation (`training/fit_gate.py`). patience: epochs
    without a better validation MSE before it stops.
    aux_warmup_steps: the auxiliary losses' weight rises from 0 to 1 over so many. gate_pull: sign of the confident-gate
    term of L_ret; +1 pulls a confident gate towards 0.5, -1 away from it. save_steps: optimizer steps between two
    checkpoints.
    """

    memory_k: int = 50
    policy: Policy = Policy.DISJOINT
    num_folds: int | None = None
    train_stride: int | None = None
    val_stride: int | None = None
    max_work: float = MAX_WORK
    epochs: int = 3
    max_steps: int | None = None
    batch_size: int = 224
    accumulation: int = 1
    learning_rate: float = 2e-4
    head_learning_rate: float = 2e-5
    gate_learning_rate: float = 0.03
    gate_shrinkage: float | None = None
    weight_decay: float = 0.01
    clip: float = 1.0
    patience: int = 1
    lambda_trend: float = 0.1
    lambda_retrieval: float = 0.1
    lambda_ref: float = 1.0
    gate_pull: int = 1
    aux_warmup_steps: int = 500
    precision: Precision = "auto"
    save_steps: int = 500
    save_total_limit: int = 3
    seed: int = 0

    def __post_init__(self) -> None:
        _at_least(self, 1, "memory_k", "epochs", "batch_size", "accumulation", "patience")
        _at_least(self, 1, "save_steps", "save_total_limit")
        _at_least(self, 0, "aux_warmup_steps", "seed", "weight_decay", "lambda_trend", "lambda_retrieval", "lambda_ref")
        for name, least in LEAST_WHERE_STATED.items():
            if getattr(self, name) is not None:
                _at_least(self, least, name)
        if self.num_folds is not None and self.num_folds > MAX_FOLDS:
            raise ConfigError(f"num_folds is {self.num_folds}, but must be at most {MAX_FOLDS}")
        for name in ("learning_rate", "head_learning_rate", "gate_learning_rate", "clip", "max_work"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} is {getattr(self, name)}, but must be above 0")
        if self.gate_pull not in (-1, 1):
            raise ConfigError(f"gate_pull is {self.gate_pull}, but must be 1 or -1")
        if self.precision not in get_args(Precision):
            raise ConfigError(f"unknown precision '{self.precision}'", hint="choose auto, float32 or bf16")


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
        if parts["model"].get("use_shortcut") is False:
            parts["train"] = ALONE | parts["train"]
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


# By the memory of a GPU in GB (docs/method.md). Batches there are of ETT's seven variates: 8 x 7 = 56 windows.
PRESETS: dict[str, dict[str, Any]] = {
    "6gb": {"batch_size": 56, "lookback": 256, "llm_layers": 4, "d_model": 32},
    "8gb": {"batch_size": 84, "lookback": 384, "llm_layers": 6, "d_model": 48},
    "12gb": {"batch_size": 168, "lookback": 512, "llm_layers": 8, "d_model": 64},
    "15gb": {"batch_size": 224, "lookback": 512, "llm_layers": 12, "d_model": 64},
}


def preset_settings(name: str, *, lookback: int, llm: str | None = None) -> dict[str, Any]:
    """Settings for a GPU of so much memory. Raises `ConfigError`.

    lookback: the version's, caps the preset's. llm: the language model, None for the default. The built-in one is
    smaller than any preset allows, and all of its layers are used.
    """
    if name not in PRESETS:
        raise ConfigError(f"unknown preset '{name}'", hint=f"choose {', '.join(PRESETS)}")
    settings = PRESETS[name] | {"lookback": min(PRESETS[name]["lookback"], lookback)}
    if llm is None or llm.startswith("builtin:"):
        del settings["llm_layers"]
    return settings


def read_settings(path: Path) -> dict[str, Any]:
    """The flat settings of a TOML file.

    Raises `ConfigError` (not TOML, unknown name, wrong type), `NotFoundError`, `OSError` (may not be read).
    """
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


def _at_least(record: ModelConfig | TrainConfig, least: int, *names: str) -> None:
    for name in names:
        if not getattr(record, name) >= least:
            raise ConfigError(f"{name} is {getattr(record, name)}, but must be at least {least}")
