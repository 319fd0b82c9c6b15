"""The settings of a training: the options that state them, as one `StatedSettings`, and what becomes of these."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.record_options import with_record

if TYPE_CHECKING:
    from forecaster.config import Config
    from memory_index.types import Memory

# Settings that only a training by gradient steps has a use for.
OF_STEPS = {"epochs", "max_steps", "batch_size", "accumulation", "patience", "seed", "weight_decay", "clip"}


def _any_setting(config: str, preset: str, set_: str) -> dict[str, tuple[Any, Any]]:
    """The options that can state every setting, described by these texts."""
    return {
        "config": (Annotated[Path | None, typer.Option(help=config)], None),
        "preset": (Annotated[str | None, typer.Option(help=preset)], None),
        "set_": (Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help=set_)], None),
    }


def _value(kind: type, default: str, text: str) -> tuple[Any, Any]:
    """The option of a setting. It is None where it is not given; default: what the setting is then."""
    return Annotated[kind | None, typer.Option(help=text, show_default=default)], None


def _switch(flag: str, value: bool, text: str) -> tuple[Any, Any]:
    """The flag that makes a setting this value. It is None where it is not given."""

    def switched(given: bool) -> bool | None:
        return value if given else None

    return Annotated[bool, typer.Option(flag, callback=switched, help=text)], False


# Type and default by name: settings have the names that they have in the library.
OF_ALL = _any_setting(
    "TOML file of settings; options on the line win.",
    "A network for a GPU: 6gb, 8gb, 12gb or 15gb.",
    "Any setting by name.",
)
OF_FULL_MODEL = _any_setting(
    "TOML file of settings of the full model.",
    "Settings for a GPU: 6gb, 8gb, 12gb or 15gb.",
    "Any setting of the full model by name.",
)
SETTINGS: dict[str, tuple[Any, Any]] = {
    "llm": _value(str, "builtin:tiny", "builtin:tiny, a folder, or ID@REVISION."),
    "llm_layers": _value(int, "all", "Use its first so many layers."),
    "lookback": _value(int, "the index's", "Steps that the model reads."),
    "horizon": _value(int, "the index's", "Steps to forecast."),
    "use_network": _switch("--network", True, "Also train the network: TAPR, gating of features, language model."),
    "use_tapr": _switch("--no-tapr", False, "Without the several scales and trend classes."),
    "use_gram": _switch("--no-gram", False, "Without retrieved neighbours."),
    "use_llm": _switch("--no-llm", False, "Without the language model."),
    "use_shortcut": _switch("--no-shortcut", False, "Without linear map and last value."),
    "n_scales": _value(int, "3", "Resolutions of TAPR: 2, 3 or 4."),
    "lambda_trend": _value(float, "0.1", "Weight of the trend loss."),
    "top_k": _value(int, "5", "Neighbours that the network looks at one by one."),
    "memory_k": _value(int, "50", "Neighbours per key space that make its forecast."),
    "lambda_retrieval": _value(float, "0.1", "Weight of the retrieval loss."),
    "policy": _value(str, "disjoint", "What training windows may retrieve: disjoint or causal."),
    "prompt_layout": _value(str, "spec", "spec, or cached: text first, much faster."),
    "vocabulary_mapping": _switch("--vocabulary-mapping", True, "Learn text prototypes as the original does: slow."),
    "epochs": _value(int, "3", "Passes of the network, at most."),
    "batch_size": _value(int, "224", "Windows per step of the network."),
    "seed": _value(int, "0", "Of everything random in the network."),
    "save_steps": _value(int, "500", "Steps between checkpoints."),
    "save_total_limit": _value(int, "3", "Checkpoints to keep."),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class StatedSettings:
    """What a command line says of the settings of a training.

    config: a file of them. preset: for a GPU. values: of options of their own, by name. texts: of `--set`.
    """

    config: Path | None
    preset: str | None
    values: Mapping[str, Any]
    texts: Sequence[str]

    @property
    def names(self) -> set[str]:
        """Names of the settings that are stated by options."""
        return {*self.values, *(text.partition("=")[0].strip() for text in self.texts)}


def states_settings(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of all settings, and hand them to its argument `stated` as a `StatedSettings`."""
    return with_record(command, "stated", OF_ALL | SETTINGS, _record)


def states_full_model(command: Callable[..., None]) -> Callable[..., None]:
    """Likewise, without options for single settings."""
    return with_record(command, "stated", OF_FULL_MODEL, _record)


def _record(given: dict[str, Any]) -> StatedSettings:
    values = {name: given[name] for name in SETTINGS if given.get(name) is not None}
    return StatedSettings(config=given["config"], preset=given["preset"], values=values, texts=given["set_"] or ())


def settings(memory: Memory, stated: StatedSettings, *, resumed: Path | None = None) -> Config:
    """The settings of a run: those of the run that goes on or the defaults, then preset, file, options, `--set`."""
    from forecaster.config import Config, parse_setting, preset_settings, read_settings
    from forecaster.run import open_run, run_exists

    window = memory.manifest.window
    chosen: dict[str, Any] = {"lookback": window.lookback, "horizon": window.horizon}
    if resumed is not None and run_exists(resumed):
        chosen = open_run(resumed).config.to_dict()
    asked = {} if stated.config is None else read_settings(stated.config)
    asked |= dict(stated.values) | dict(parse_setting(text) for text in stated.texts)
    if stated.preset is not None:
        chosen |= preset_settings(stated.preset, lookback=window.lookback, llm=asked.get("llm"))
    return Config.from_dict(chosen | asked)


def network_notes(chosen: Config, stated: StatedSettings) -> list[str]:
    """What a person should know of the network that is, or is not, trained."""
    from forecaster.config import OF_NETWORK

    if chosen.model.use_network:
        asked = [] if "use_network" in stated.names else sorted(stated.names & OF_NETWORK)
        return [f"a network was trained too, because {asked[0]} is stated"] if asked else []
    idle = sorted(stated.names & OF_STEPS)
    return [f"{idle[0]} had no effect: without --network nothing is trained in steps"] if idle else []
