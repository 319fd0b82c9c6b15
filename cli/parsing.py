"""From what was typed to what is meant: lists, numbers, quantile levels, splits, the settings of a training."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cli.options import StatedSettings
    from forecaster.config import Config
    from memory_index.memory import Memory
    from memory_index.memory_only import MemoryOptions
    from memory_index.splits import Split
    from memory_index.tables.series import SeriesTable

# Settings that only a training by gradient steps has a use for.
OF_STEPS = {"epochs", "max_steps", "batch_size", "accumulation", "patience", "seed", "weight_decay", "clip"}


def names(text: str | None) -> tuple[str, ...] | None:
    """`a,b` as a tuple; None stays None."""
    return None if text is None else tuple(part.strip() for part in text.split(","))


def numbers(flag: str, text: str | None) -> tuple[int, ...] | None:
    """`96,336` as a tuple of numbers; None stays None. Raises `UsageError`."""
    from memory_index.errors import UsageError

    parts = names(text)
    for part in parts or ():
        if not (part.isascii() and part.isdecimal()):
            raise UsageError(f"{flag} {text}: '{part}' is not a number of steps", hint=f"for example {flag} 96,336")
    return None if parts is None else tuple(int(part) for part in parts)


def quantile_levels(text: str) -> tuple[float, ...]:
    """`0.1,0.9` as an ascending tuple; `none` is empty. Raises `UsageError`."""
    from memory_index.errors import UsageError

    if text.strip().lower() in ("", "none"):
        return ()
    try:
        levels = tuple(sorted(float(part) for part in text.split(",")))
    except ValueError:
        levels = ()
    if not levels or not all(0 < level < 1 for level in levels) or len(set(levels)) != len(levels):
        raise UsageError(
            f"--quantiles {text}: levels are different numbers between 0 and 1", hint="for example 0.1,0.5,0.9"
        )
    return levels


def choose_split(table: SeriesTable, *, split: str | None, until: str | None, val_until: str | None) -> Split:
    """The split that `--split` or `--until` and `--val-until` ask for; by default the one that the documentation names.

    Raises `UsageError` for options that exclude each other, and what `memory_index.splits` raises.
    """
    from memory_index.errors import UsageError
    from memory_index.splits import DEFAULT_SPLIT, split_by_name, split_until

    if until is None:
        if val_until is not None:
            raise UsageError("--val-until needs --until", hint="or choose the parts by share: --split 70/10/20")
        return split_by_name(split or DEFAULT_SPLIT, table.times)
    if split is not None:
        raise UsageError("--split and --until exclude each other", hint="choose the parts by share or by time")
    return split_until(until, val_until, table.times, table.step)


def settings(memory: Memory, stated: StatedSettings, *, resumed: Path | None = None) -> Config:
    """The settings of a run: those of the run that goes on or the defaults, then preset, file, options, `--set`."""
    from forecaster.config import Config, parse_setting, preset_settings, read_settings
    from forecaster.runs.run import open_run, run_exists

    window = memory.manifest.window
    chosen: dict[str, Any] = {"lookback": window.lookback, "horizon": window.horizon}
    if resumed is not None and run_exists(resumed):
        chosen = open_run(resumed).config.to_dict()
    asked = {} if stated.config is None else read_settings(stated.config)
    asked |= dict(stated.values) | dict(parse_setting(text) for text in stated.texts)
    if stated.preset is not None:
        num_series = len(memory.manifest.series_ids)
        chosen |= preset_settings(stated.preset, lookback=window.lookback, num_series=num_series, llm=asked.get("llm"))
    return Config.from_dict(chosen | asked)


def network_notes(chosen: Config, stated: StatedSettings) -> list[str]:
    """What a person should know of the network that is, or is not, trained."""
    from forecaster.config import OF_NETWORK

    if chosen.model.use_network:
        asked = [] if "use_network" in stated.names else sorted(stated.names & OF_NETWORK)
        return [f"a network was trained too, because {asked[0]} is stated"] if asked else []
    idle = sorted(stated.names & OF_STEPS)
    return [f"{idle[0]} had no effect: without --network nothing is trained in steps"] if idle else []


def memory_options(
    run: Path | None,
    index: str | None,
    *,
    llm: str | None,
    memory_k: int | None,
    scopes: str | None,
    views: str | None,
    on_empty: str | None,
    state: int | None = None,
) -> MemoryOptions:
    """How the memory alone is asked. Raises `UsageError` for a missing reference, or options that a run decides."""
    from memory_index.errors import UsageError
    from memory_index.memory_only import MemoryOptions

    if run is None and index is None:
        raise UsageError("neither --run nor --index is given", hint="--run RUN, or --index REF for the memory alone")
    given = {"--memory-k": memory_k, "--scopes": scopes, "--views": views, "--on-empty": on_empty}
    stated = [flag for flag, value in given.items() if value is not None]
    if run is None and llm is not None:
        raise UsageError("--llm goes with --run: the memory alone has no language model", hint="leave it out")
    if run is None and state is not None:
        raise UsageError("--state goes with --run: the memory alone has versions", hint="name one: --index NAME@3")
    if run is not None and stated:
        raise UsageError(f"{stated[0]} does not go with --run, which decides it", hint="leave one of them out")
    options: dict[str, Any] = {"scopes": names(scopes), "views": numbers("--views", views)}
    options |= {} if memory_k is None else {"k": memory_k}
    return MemoryOptions(**options | ({} if on_empty is None else {"on_empty": on_empty}))
