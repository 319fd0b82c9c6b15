"""What each part is worth: the same training with parts switched off or changed, as one resumable table.

An arm is a name and the settings in which it differs. Each arm and seed is a run of its own below the folder; what is
finished is not trained again, what was interrupted goes on. Arms whose settings turn out to be those of another (a
random language model, where the built-in one is used anyway) share its runs, and their rows say so. Arms that need no
training (memory alone, linear, seasonal naive, last value) are read off the evaluation of the full model.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any, Protocol

from forecaster.ablation_table import FULL, HEADINGS, Row
from forecaster.config import Config
from forecaster.errors import ConfigError
from forecaster.evaluate import evaluate
from forecaster.model.tapr import require_scales_fit
from forecaster.predictor import load_predictor
from forecaster.retrieval.asked import part_windows
from forecaster.runs.records import refusals_named, seal, unseal
from forecaster.runs.run import open_run
from forecaster.training.fit import check_fits, train_run
from forecaster.training.train import TrainingProgress
from memory_index import files
from memory_index.evaluation import Distribution, Evaluation
from memory_index.memory import Memory
from memory_index.tables.series import SeriesTable
from memory_index.versions.build import steps_until

EVALUATION = "evaluation.json"  # in the folder of an arm, written when it has been scored
FORM = 2  # of what is in it: another form is scored again


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Arm:
    """One row of the table. group: `matrix`, `design`, `controls` or `sensitivity`."""

    name: str
    group: str
    settings: Mapping[str, Any]

    @property
    def folder(self) -> str:
        """Beginning of the names of the folders of its runs."""
        return "-".join("".join(c if c.isalnum() else " " for c in self.name.lower()).split())


# Each arm says all that its name says, whatever the settings are that it is to be compared under.
WHOLE = {"use_tapr": True, "use_gram": True}
MATRIX = (
    Arm(name="baseline (neither)", group="matrix", settings={"use_tapr": False, "use_gram": False}),
    Arm(name="+ TAPR", group="matrix", settings={"use_tapr": True, "use_gram": False}),
    Arm(name="+ GRA-M", group="matrix", settings={"use_tapr": False, "use_gram": True}),
    Arm(name=FULL, group="matrix", settings=WHOLE),
)
CONTROLS = (
    Arm(name="no LLM, with memory", group="controls", settings={"use_llm": False, "use_gram": True}),
    Arm(
        name="random frozen LLM (builtin:tiny), with memory",
        group="controls",
        settings={"use_llm": True, "llm": "builtin:tiny", "llm_layers": None, "use_gram": True},
    ),
    Arm(name="LLM, without memory", group="controls", settings={"use_llm": True, "use_gram": False}),
    Arm(name="covariates in the memory alone", group="controls", settings={"use_covariates": False}),
    Arm(name="no linear shortcut", group="controls", settings={"use_shortcut": False}),
    Arm(
        name="network off (value gate only)",
        group="controls",
        settings={"use_tapr": False, "use_llm": False, "use_network": False},
    ),
)
# Without what is ours: no value gate, no linear shortcut. The baseline is plain Time-LLM.
AS_DESIGNED = {"gram_form": "design", "use_shortcut": False, "use_llm": True}
DESIGN = tuple(
    Arm(name=name, group="design", settings=AS_DESIGNED | {"use_tapr": tapr, "use_gram": gram})
    for name, tapr, gram in (
        ("Time-LLM (neither)", False, False),
        ("Time-LLM + TAPR", True, False),
        ("Time-LLM + GRA-M", False, True),
        ("Time-LLM + TAPR + GRA-M", True, True),
    )
)
SENSITIVITY = (
    *(Arm(name=f"n_scales {n}", group="sensitivity", settings={"n_scales": n}) for n in (2, 4)),
    *(Arm(name=f"lambda_trend {v}", group="sensitivity", settings={"lambda_trend": v}) for v in (0.05, 0.2)),
    *(Arm(name=f"top_k {k}", group="sensitivity", settings={"top_k": k}) for k in (3, 10)),
    *(Arm(name=f"lambda_retrieval {v}", group="sensitivity", settings={"lambda_retrieval": v}) for v in (0.05, 0.2)),
    Arm(name="gate_pull -1", group="sensitivity", settings={"gate_pull": -1}),
    Arm(name="policy causal", group="sensitivity", settings={"policy": "causal"}),
)
GROUPS = {"matrix": MATRIX, "design": DESIGN, "controls": CONTROLS, "sensitivity": SENSITIVITY}
UNTRAINED = {
    "memory_only": "memory alone",
    "linear": "linear alone",
    "seasonal_naive": "seasonal naive",
    "last_value": "last value",
}


def choose_arms(groups: Iterable[str]) -> tuple[Arm, ...]:
    """The arms of some groups, the full model first. Raises `ConfigError` for an unknown group."""
    wanted = set(groups)
    if unknown := sorted(wanted - set(GROUPS)):
        raise ConfigError(f"there is no group of arms '{unknown[0]}'", hint=f"choose from {', '.join(GROUPS)}")
    full = next(arm for arm in MATRIX if arm.name == FULL)
    return full, *(arm for group, arms in GROUPS.items() if group in wanted for arm in arms if arm is not full)


def possible_arms(
    arms: Iterable[Arm], config: Config, *, note: Callable[[str], None] = lambda text: None
) -> dict[Arm, Config]:
    """The settings of each arm, for those arms that these settings allow; `note` is told of each other one and why.

    Raises `ConfigError` if the full model itself is not possible.
    """
    settings = {}
    for arm in arms:
        try:
            changed = config.changed(**arm.settings)
            if changed.model.use_tapr:
                require_scales_fit(changed.model.num_patches, changed.model.n_scales)
        except ConfigError as error:
            if arm.name == FULL:
                raise
            note(f"left out: {arm.name}: {error}")
            continue
        settings[arm] = changed
    return settings


class Watch(Protocol):
    """Who is told how an ablation goes on. Calls come in this order, for every run."""

    def begins(self, what: str, number: int, total: int) -> None:
        """what: arm and seed. number, total: of this run, from 1, and of all."""

    def neighbours(self, done: float, total: float | None) -> None:
        """While the neighbours of its windows are found."""

    def step(self, progress: TrainingProgress) -> None:
        """After each step of its training."""

    def ends(self, what: str, evaluation: Evaluation) -> None:
        """It is trained and scored."""

    def note(self, text: str) -> None:
        """What a person should know."""


def ablate(
    table: SeriesTable,
    memory: Memory,
    ref: str,
    config: Config,
    out: Path | str,
    *,
    arms: tuple[Arm, ...],
    seeds: tuple[int, ...],
    neighbours_dir: Path | str,
    watch: Watch,
    part: str = "test",
    device: str = "auto",
) -> list[Row]:
    """Train and score every arm with every seed; the rows of the table by group, what is not trained last.

    arms: with the full model among them. part: what is scored, after the choice by validation. Before anything is
    trained, whatever can be known to stand in the way is raised. Raises what `train_run` and `evaluate` raise.
    """
    out, neighbours_dir = Path(out), Path(neighbours_dir)
    check_fits(config, memory, table)
    if not memory.manifest.covariates:
        arms = tuple(arm for arm in arms if "use_covariates" not in arm.settings)
    settings = possible_arms(arms, config, note=watch.note)
    part_windows(memory, table, part, horizon=config.model.horizon)
    trained = list(dict.fromkeys(settings.values()))  # arms of the same settings have the same runs
    first = {changed: arm.name for arm, changed in reversed(settings.items())}
    every = {**possible_arms(choose_arms(GROUPS), config), **settings}
    folders = {changed: arm.folder for arm, changed in reversed(every.items())}  # whichever groups are chosen
    scored: dict[Config, list[_Scored]] = {}
    for place, changed in enumerate(trained):
        scored[changed] = []
        for number, seed in enumerate(seeds, start=1 + place * len(seeds)):
            what = f"{first[changed]}, seed {seed}"
            watch.begins(what, number, len(trained) * len(seeds))
            folder = out / f"{folders[changed]}-seed-{seed}"
            each = _scored(table, memory, ref, changed.changed(seed=seed), folder, neighbours_dir, part, device, watch)
            watch.ends(what, each[1])
            scored[changed].append(each)
    full = next(arm for arm in settings if arm.name == FULL)
    reference = fmean(evaluation.mse for _, evaluation in scored[settings[full]])
    rows = [
        _row(arm, scored[changed], reference, same_as=None if first[changed] == arm.name else first[changed])
        for arm, changed in settings.items()
    ]
    rows += _untrained_rows(scored[settings[full]][0][1], reference)
    return sorted(rows, key=lambda row: (list(HEADINGS).index(row.group), row.arm == FULL))


_Scored = tuple[Mapping[str, Any], Evaluation]


def _scored(
    table: SeriesTable,
    memory: Memory,
    ref: str,
    config: Config,
    folder: Path,
    neighbours_dir: Path,
    part: str,
    device: str,
    watch: Watch,
) -> _Scored:
    """The figures of a run's training and its evaluation; trained and scored only if it has not been."""
    trained = train_run(
        table,
        memory,
        ref,
        config,
        folder,
        neighbours_dir=neighbours_dir,
        resume=True,
        device=device,
        report=watch.neighbours,
        progress=watch.step,
        note=watch.note,
    )
    run, path = open_run(folder), folder / EVALUATION
    scored = steps_until(table, memory.manifest.split.bounds(part)[1])  # the run knows the table up to validation only
    what = {"fingerprint": memory.manifest.fingerprint, "part": part, "data": scored.input_hash, "form": FORM}
    if not trained.is_new and path.is_file():
        stored = unseal(path)
        if all(stored.get(name) == value for name, value in what.items()):
            return run.metrics, Evaluation.from_dict(stored["evaluation"])
    evaluation = evaluate(load_predictor(run, device=device), memory, table, part)
    with refusals_named(path):
        files.replace(path, seal({**what, "evaluation": evaluation.to_dict()}))
    return run.metrics, evaluation


def _row(arm: Arm, scored: list[_Scored], reference: float, *, same_as: str | None) -> Row:
    metrics, evaluations = zip(*scored, strict=True)
    directions = [each.direction_accuracy for each in evaluations if each.direction_accuracy is not None]
    trends = [each.trend_accuracy for each in evaluations if each.trend_accuracy is not None]
    gates = [each.gate for each in evaluations if each.gate is not None]
    mse = fmean(each.mse for each in evaluations)
    return Row(
        arm=arm.name,
        group=arm.group,
        same_as=same_as,
        num_seeds=len(scored),
        val_mse=fmean(each["best_val_mse"] for each in metrics),
        mse=mse,
        mse_deviation=pstdev(each.mse for each in evaluations) if len(evaluations) > 1 else None,
        against_full=mse - reference,
        mae=fmean(each.mae for each in evaluations),
        direction_accuracy=fmean(directions) if directions else None,
        trend_accuracy=fmean(trends) if trends else None,
        gate=_mean_distribution(gates) if gates else None,
        seconds=fmean(each["training"]["seconds"] for each in metrics),
    )


def _untrained_rows(evaluation: Evaluation, reference: float) -> list[Row]:
    return [
        Row(
            arm=label,
            group="untrained",
            same_as=None,
            num_seeds=None,
            val_mse=None,
            mse=score.mse,
            mse_deviation=None,
            against_full=score.mse - reference,
            mae=score.mae,
            direction_accuracy=score["direction_accuracy"],
            trend_accuracy=None,
            gate=None,
            seconds=None,
        )
        for name, label in UNTRAINED.items()
        if (score := evaluation.baselines.get(name)) is not None
    ]


def _mean_distribution(gates: list[Distribution]) -> Distribution:
    names = [field.name for field in dataclasses.fields(Distribution)]
    return Distribution(**{name: fmean(getattr(gate, name) for gate in gates) for name in names})
