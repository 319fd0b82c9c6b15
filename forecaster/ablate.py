"""What each part is worth: the same training with parts switched off or changed, as one resumable table.

An arm is a name and the settings in which it differs. Each arm and seed is a run of its own below the folder; what is
finished is not trained again, what was interrupted goes on. Arms that need no training (memory alone, linear, seasonal
naive, last value) are read off the evaluation of the full model.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

from forecaster.config import Config
from forecaster.errors import ConfigError
from forecaster.evaluate import Distribution, RunEvaluation, evaluate
from forecaster.fit import train_run
from forecaster.predictor import load_predictor
from forecaster.records import refusals_named
from forecaster.run import open_run
from memory_index.metrics import Score
from memory_index.tables.series import SeriesTable
from memory_index.types import Memory
from memory_index.versions import disk

FULL = "full (TAPR + GRA-M)"
EVALUATION = "evaluation.json"  # in the folder of an arm, written when it has been scored


@dataclass(frozen=True, kw_only=True, slots=True)
class Arm:
    """One row of the table. group: `matrix`, `controls` or `sensitivity`."""

    name: str
    group: str
    settings: Mapping[str, Any]

    @property
    def folder(self) -> str:
        """Name of the folder of its runs."""
        return "-".join("".join(c if c.isalnum() else " " for c in self.name.lower()).split())


MATRIX = (
    Arm(name="baseline (neither)", group="matrix", settings={"use_tapr": False, "use_gram": False}),
    Arm(name="+ TAPR", group="matrix", settings={"use_gram": False}),
    Arm(name="+ GRA-M", group="matrix", settings={"use_tapr": False}),
    Arm(name=FULL, group="matrix", settings={}),
)
CONTROLS = (
    Arm(name="no LLM, with memory", group="controls", settings={"use_llm": False}),
    Arm(name="random frozen LLM, with memory", group="controls", settings={"llm": "builtin:tiny", "llm_layers": None}),
    Arm(name="no linear shortcut", group="controls", settings={"use_shortcut": False}),
    Arm(
        name="Time-LLM alone (no TAPR, GRA-M, shortcut)",
        group="controls",
        settings={"use_tapr": False, "use_gram": False, "use_shortcut": False},
    ),
    Arm(
        name="network off (value gate only)",
        group="controls",
        settings={"use_tapr": False, "use_llm": False, "use_network": False},
    ),
)
SENSITIVITY = (
    *(Arm(name=f"n_scales {n}", group="sensitivity", settings={"n_scales": n}) for n in (2, 4)),
    *(Arm(name=f"lambda_trend {v}", group="sensitivity", settings={"lambda_trend": v}) for v in (0.05, 0.2)),
    *(Arm(name=f"top_k {k}", group="sensitivity", settings={"top_k": k}) for k in (3, 10)),
    *(Arm(name=f"lambda_retrieval {v}", group="sensitivity", settings={"lambda_retrieval": v}) for v in (0.05, 0.2)),
    Arm(name="gate_pull -1", group="sensitivity", settings={"gate_pull": -1}),
    Arm(name="policy causal", group="sensitivity", settings={"policy": "causal"}),
)
GROUPS = {"matrix": MATRIX, "controls": CONTROLS, "sensitivity": SENSITIVITY}
UNTRAINED = {
    "memory_only": "memory alone",
    "linear": "linear alone",
    "seasonal_naive": "seasonal naive",
    "last_value": "last value",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One line of the table: means over seeds, and the standard deviation of the MSE over them.

    None: the arm does not have it.
    """

    arm: str
    group: str
    num_seeds: int
    val_mse: float | None
    mse: float
    mse_deviation: float
    mae: float
    direction_accuracy: float | None
    gate: Distribution | None
    seconds: float | None


def choose_arms(groups: Iterable[str]) -> tuple[Arm, ...]:
    """The arms of some groups; the full model is always among them. Raises `ConfigError` for an unknown group."""
    chosen: list[Arm] = []
    for group in groups:
        if group not in GROUPS:
            raise ConfigError(f"there is no group of arms '{group}'", hint=f"choose from {', '.join(GROUPS)}")
        chosen += GROUPS[group]
    full = next(arm for arm in MATRIX if arm.name == FULL)
    return tuple(dict.fromkeys(chosen if full in chosen else [full, *chosen]))


def ablate(
    table: SeriesTable,
    memory: Memory,
    ref: str,
    config: Config,
    out: Path,
    *,
    arms: tuple[Arm, ...],
    seeds: tuple[int, ...],
    neighbours_dir: Path,
    part: str = "test",
    device: str = "auto",
    report: Callable[[str], None] = lambda what: None,
) -> list[Row]:
    """Train and score every arm with every seed; the rows of the table, untrained baselines last.

    part: what is scored, after the choice by validation. report: called with what comes next. Raises what `train_run`
    and `evaluate` raise.
    """
    rows = []
    for arm in arms:
        scored = []
        for seed in seeds:
            folder = out / f"{arm.folder}-seed-{seed}"
            report(f"{arm.name}, seed {seed}")
            settings = config.changed(**{**arm.settings, "seed": seed})
            scored.append(_scored(table, memory, ref, settings, folder, neighbours_dir, part, device))
        rows.append(_row(arm, scored))
        if arm.name == FULL:
            untrained = _untrained_rows(scored[0][1])
    return rows + untrained


def _scored(
    table: SeriesTable,
    memory: Memory,
    ref: str,
    config: Config,
    folder: Path,
    neighbours_dir: Path,
    part: str,
    device: str,
) -> tuple[Mapping[str, Any], RunEvaluation]:
    """The figures of a run's training and its evaluation; trained and scored only if it has not been."""
    train_run(table, memory, ref, config, folder, neighbours_dir=neighbours_dir, resume=folder.exists(), device=device)
    run = open_run(folder)
    path = folder / EVALUATION
    if path.is_file():
        stored = json.loads(path.read_text())
        if (stored["fingerprint"], stored["part"]) == (memory.manifest.fingerprint, part):
            return run.metrics, _evaluation(stored["evaluation"])
    evaluation = evaluate(load_predictor(run, device=device), memory, table, part)
    document = {"fingerprint": memory.manifest.fingerprint, "part": part, "evaluation": dataclasses.asdict(evaluation)}
    with refusals_named(path):
        disk.replace(path, json.dumps(document, indent=1).encode())
    return run.metrics, evaluation


def _row(arm: Arm, scored: list[tuple[Mapping[str, Any], RunEvaluation]]) -> Row:
    metrics, evaluations = zip(*scored, strict=True)
    directions = [each.direction_accuracy for each in evaluations if each.direction_accuracy is not None]
    gates = [each.gate for each in evaluations if each.gate is not None]
    return Row(
        arm=arm.name,
        group=arm.group,
        num_seeds=len(scored),
        val_mse=fmean(each["best_val_mse"] for each in metrics),
        mse=fmean(each.mse for each in evaluations),
        mse_deviation=pstdev(each.mse for each in evaluations),
        mae=fmean(each.mae for each in evaluations),
        direction_accuracy=fmean(directions) if directions else None,
        gate=_mean_distribution(gates) if gates else None,
        seconds=fmean(each["training"]["seconds"] for each in metrics),
    )


def _untrained_rows(evaluation: RunEvaluation) -> list[Row]:
    return [
        Row(
            arm=label,
            group="untrained",
            num_seeds=1,
            val_mse=None,
            mse=score.mse,
            mse_deviation=0.0,
            mae=score.mae,
            direction_accuracy=None,
            gate=None,
            seconds=None,
        )
        for name, label in UNTRAINED.items()
        if (score := evaluation.baselines.get(name)) is not None
    ]


def _mean_distribution(gates: list[Distribution]) -> Distribution:
    names = [field.name for field in dataclasses.fields(Distribution)]
    return Distribution(**{name: fmean(getattr(gate, name) for gate in gates) for name in names})


def _evaluation(document: dict[str, Any]) -> RunEvaluation:
    """What `dataclasses.asdict` made of an evaluation."""
    gates = {name: document[name] and Distribution(**document[name]) for name in ("gate", "feature_gate")}
    scores = {
        name: {key: value and Score(**value) for key, value in document[name].items()}
        for name in ("baselines", "by_space")
    }
    return RunEvaluation(**{**document, **gates, **scores})


def as_markdown(rows: list[Row], title: str) -> str:
    """The table for a person."""
    lines = [
        f"# {title}",
        "",
        "| arm | seeds | val MSE | MSE | +- | MAE | direction | gate mean (10%, 90%) | training s |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        gate = "" if row.gate is None else f"{row.gate.mean:.2f} ({row.gate.p10:.2f}, {row.gate.p90:.2f})"
        direction = "" if row.direction_accuracy is None else f"{row.direction_accuracy:.1%}"
        val = "" if row.val_mse is None else f"{row.val_mse:.4f}"
        seconds = "" if row.seconds is None else f"{row.seconds:.0f}"
        lines.append(
            f"| {row.arm} | {row.num_seeds} | {val} | {row.mse:.4f} | {row.mse_deviation:.4f} | {row.mae:.4f} | "
            f"{direction} | {gate} | {seconds} |"
        )
    return "\n".join([*lines, "", "MSE and MAE in standardised units; differences below .003 are ties.", ""])
