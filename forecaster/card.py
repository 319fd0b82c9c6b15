"""The card of a run: its record and its figures in words, for a person who finds the folder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from forecaster.run_record import RunRecord
from forecaster.weights import WeightsRecord


def card_text(record: RunRecord, metrics: Mapping[str, Any], weights: WeightsRecord) -> str:
    """Markdown: what the run was trained on and against, how, with what result, and on what machine."""
    data, index, split = record.data, record.index, record.data.split
    settings = record.settings
    lines = [
        f"# A forecaster of {data.source}",
        "",
        f"It reads the last {settings['lookback']} steps of a series and forecasts the next {settings['horizon']}.",
        "",
        "## Data",
        "",
        f"- source: {data.source}, {len(data.series_ids)} series: {_listed(data.series_ids)}",
        f"- span: {data.first_at} to {data.last_at}, one step is {data.step}",
        f"- split: {', '.join(f'{name} {value}' for name, value in split.items())}",
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
        *([f"- {name}: {value}" for name, value in record.backbone.items()] if record.backbone else ["- none"]),
        "",
        "## Figures",
        "",
        f"- validation MSE {weights.val_mse:.6g} after {weights.step} optimizer steps; these weights were kept",
        *(f"- {name}: {value}" for name, value in _flat(metrics)),
        "",
        "## Settings",
        "",
        *(f"- {name}: {value}" for name, value in sorted(settings.items())),
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


def _listed(names: tuple[str, ...]) -> str:
    return ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")


def _flat(metrics: Mapping[str, Any], before: str = "") -> list[tuple[str, str]]:
    lines: list[tuple[str, str]] = []
    for name, value in metrics.items():
        if isinstance(value, Mapping):
            lines += _flat(value, f"{before}{name}.")
        elif value is not None:
            lines.append((f"{before}{name}", f"{value:.6g}" if isinstance(value, float) else str(value)))
    return lines
