"""The card of a run: its record and its figures in words, for a person who finds the folder."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from forecaster.config import OF_NETWORK
from forecaster.runs.run_record import DataFacts, RunRecord
from forecaster.runs.weights import WeightsRecord
from memory_index.references import is_address

PARTS = {"train_until": "training", "val_until": "validation", "test_until": "test"}


def card_text(record: RunRecord, metrics: Mapping[str, Any], weights: WeightsRecord) -> str:
    """Markdown: what the run was trained on and against, how, with what result, on what machine, and how to use it."""
    data, index = record.data, record.index
    settings = record.settings
    how, idle = f"after {weights.step:,} optimizer steps; these weights were kept", frozenset[str]()
    if not settings["use_network"]:
        how, idle = "linear map and value gate fitted in closed form", OF_NETWORK
    lines = [
        f"# A forecaster of {data.source}",
        "",
        f"It reads the last {settings['lookback']} steps of a series and forecasts the next {settings['horizon']}.",
        "",
        "## Use",
        "",
        f"RUN is this folder, wherever it lies; {_place(index.ref)}.",
        "",
        *(f"    {command}" for command in _commands(data.source, index.ref)),
        "",
        "## Data",
        "",
        f"- source: {data.source}, {len(data.series_ids)} series: {_listed(data.series_ids)}",
        f"- span: {data.first_at} to {data.last_at}, one step is {data.step}",
        f"- split: {_split(data)}",
        f"- sha256 of the series: {data.sha256}",
        "",
        "## Memory",
        "",
        f"- version: {index.ref}, fingerprint {index.fingerprint}",
        f"- key encoder: {index.encoder_fingerprint}",
        f"- key spaces: {', '.join(index.spaces)}",
        "",
        "## Language model",
        "",
        *([f"- {name}: {_told(value)}" for name, value in record.backbone.items()] if record.backbone else ["- none"]),
        "",
        "## Figures",
        "",
        f"- MSE on validation: {weights.val_mse:.6g}, {how}",
        *_figures(metrics),
        "",
        "## Settings",
        "",
        *(f"- {name}: {_told(value)}" for name, value in sorted(settings.items()) if name not in idle),
        "",
        "## Machine",
        "",
        f"- begun: {record.created_at}",
        *(f"- {name}: {value}" for name, value in sorted(record.hardware.items())),
        *(f"- {name}: {value}" for name, value in sorted(record.libraries.items())),
        "",
    ]
    # Names of files and series are the user's, and may hold anything.
    return "\n".join(" ".join(line.splitlines()) for line in lines)


def _place(ref: str) -> str:
    if is_address(ref):
        return f"it asks {ref}, or the same version where `--index` says (`--token-file` where a token is wanted)"
    return f"`--indexes-dir` says where {ref} lies, if not in `indexes`"


def _commands(source: str, ref: str) -> list[str]:
    file = shlex.quote(source)
    update = f"cli forecast {file} --run RUN --update-index   # after new rows: nothing is trained again"
    return [
        f"cli forecast {file} --run RUN --out forecast.csv --plot forecast.png",
        *([] if is_address(ref) else [update]),
        f"cli evaluate {file} --run RUN",
    ]


def _listed(names: tuple[str, ...]) -> str:
    return ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")


def _split(data: DataFacts) -> str:
    ends = [f"{PARTS[name]} until {data.split[name]}" for name in PARTS if data.split.get(name) is not None]
    return ", ".join([str(data.split["name"]), *ends])


def _figures(metrics: Mapping[str, Any]) -> list[str]:
    """Single figures, then those that belong together, each group under its name. Missing ones are left out."""
    groups = {name: value for name, value in metrics.items() if isinstance(value, Mapping)}
    alone = {name: value for name, value in metrics.items() if name not in groups}
    lines = [f"- {name}: {_told(value)}" for name, value in alone.items() if value is not None]
    for name, group in groups.items():
        lines += ["", f"### {name}", "", *_figures(group)]
    return lines


def _told(value: Any) -> str:
    """A value as a setting of a TOML file has it, or as near as words come."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.6g}" if isinstance(value, float) else str(value)
