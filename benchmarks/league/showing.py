"""The tables and the picture of the league, from its finished rows."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.league.others import OTHERS
from benchmarks.league.scoring import MEMORY, TRAINED
from benchmarks.report import machine

Rows = Mapping[str, dict[str, Any]]

PARTS = ("linear", "last_value", "seasonal_naive", MEMORY, "own", "joint", "pooled")
COLUMNS = (
    *("table", "role", "kept", "trained", "best part", "cross-validation's", "memory alone"),
    *("MASE, memory's", "SQL, memory's", "covered, memory's"),
)
COLOURS = ("C0", "0.55", "C2", "C3", "C4", "C5", "C6", "C8", "C9", "C1")  # of others than the trained run
RELATIVE_TO = ("best part", "cross-validation's part", "memory alone", "SQL of the memory")
OURS = (TRAINED, MEMORY, "seasonal_naive")  # beside other packages


def show(rows: Rows) -> None:
    """One row a table: errors relative to the best part, then MASE and scaled quantile loss beside the memory's."""
    print(f"{machine()}\n\nMean squared error; in brackets that of the trained relative to it, with a 90% interval.\n")
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}")
    ratios: dict[str, list[list[float]]] = {"decides": [], "reports": []}
    for name, row in rows.items():
        scores, gate = row["scores"], row["closed_form"]["gate"]
        mse = {part: scores[part]["mse"] for part in PARTS if part in scores}
        best, chosen = min(mse, key=mse.__getitem__), chosen_part(gate["errors"], mse)
        trained, memory = scores[TRAINED], scores[MEMORY]
        ratios[row["role"]].append(
            [trained["mse"] / mse[part] for part in (best, chosen, MEMORY)] + [trained["sql"] / memory["sql"]]
        )
        cells = [f"{part} {mse[part]:.4f} ({_relative(row, part, 'mse')})" for part in (best, chosen)]
        print(
            f"| {name} | {row['role']} | {gate['kept']} | {trained['mse']:.4f} | {' | '.join(cells)} "
            f"| {memory['mse']:.4f} ({_relative(row, MEMORY, 'mse')}) "
            f"| {trained['mase']:.3f}, {memory['mase']:.3f} "
            f"| {trained['sql']:.3f}, {memory['sql']:.3f} ({_relative(row, MEMORY, 'sql')}) "
            f"| {trained['q0.1']:.3f} {trained['q0.9']:.3f}, {memory['q0.1']:.3f} {memory['q0.9']:.3f} |"
        )
    print()
    for role, found in ratios.items():
        if found:
            means, worst = np.mean(found, axis=0), np.max(found, axis=0)
            told = ", ".join(
                f"{what} {mean:.4f} (at most {most:.3f})"
                for what, mean, most in zip(RELATIVE_TO, means, worst, strict=True)
            )
            print(f"{role}: trained relative to {told}")


def _relative(row: dict[str, Any], part: str, measure: str) -> str:
    ratio = row["scores"][TRAINED][measure] / row["scores"][part][measure]
    bounds = row["intervals"].get(part, {}).get(measure)
    return f"{ratio:.3f}" + (f", {bounds[0]:.2f} to {bounds[1]:.2f}" if bounds else "")


def chosen_part(errors: dict[str, float], mse: dict[str, float]) -> str:
    """The part of the least cross-validated error; the linear map where nothing could be held out."""
    names = {"memory": MEMORY}
    found = {names.get(name, name): error for name, error in errors.items() if names.get(name, name) in mse}
    return min(found, key=found.__getitem__) if found else "linear"


def beside(row: dict[str, Any], measure: str) -> dict[str, float]:
    """Scores of ours and of other packages on the same windows."""
    every = {name: row["few"][name] for name in OURS if name in row["few"]} | row.get("others", {})
    return {name: scores[measure] for name, scores in every.items() if measure in scores}


def show_others(rows: Rows) -> None:
    """MASE and scaled quantile loss of everything on the windows that other packages forecast. Last their geometric
    means relative to what training made, over the tables that all have.
    """
    names = others_in(rows)
    print(f"\nMASE, SQL\n\n| table | windows | {' | '.join(names)} |\n|{'---|' * (len(names) + 2)}")
    for name, row in rows.items():
        mase, sql = beside(row, "mase"), beside(row, "sql")
        cells = [", ".join(_marked(each, arm) for each in (mase, sql) if arm in each) for arm in names]
        print(f"| {name} | {row['num_few']} | {' | '.join(cells)} |")
    whole = [row for row in rows.values() if set(names) <= beside(row, "mase").keys()]
    if not whole:
        return
    cells = []
    for arm in names:
        found = [[beside(row, measure) for row in whole] for measure in ("mase", "sql")]
        means = [_geometric([each[arm] / each[TRAINED] for each in of]) for of in found if arm in of[0]]
        cells.append(", ".join(f"{mean:.3f}" for mean in means))
    print(f"| relative to trained, {len(whole)} tables | | {' | '.join(cells)} |")


def others_in(rows: Rows) -> list[str]:
    """Ours, and those of other packages that any table has."""
    return [*OURS, *(name for name in OTHERS if any(name in row.get("others", {}) for row in rows.values()))]


def _marked(scores: dict[str, float], arm: str) -> str:
    """A score, bold where none is better."""
    return f"**{scores[arm]:.3f}**" if scores[arm] == min(scores.values()) else f"{scores[arm]:.3f}"


def _geometric(ratios: list[float]) -> float:
    return float(np.exp(np.mean(np.log(ratios))))


def draw(rows: Rows, path: Path) -> None:
    """MASE of everything on every table, relative to what training made."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(9, 0.34 * len(rows) + 1.4))
    for order, name in enumerate(others_in(rows)[1:]):
        at = [number for number, row in enumerate(rows.values()) if name in beside(row, "mase")]
        ratios = [beside(row, "mase") for row in rows.values()]
        axes.scatter(
            [ratios[number][name] / ratios[number][TRAINED] for number in at],
            at,
            s=36,
            marker="D" if name in OURS else "o",
            color=COLOURS[order],
            zorder=3,
            label=name.replace("_", " "),
        )
    axes.hlines(range(len(rows)), *axes.get_xlim(), color="0.92", zorder=0)
    axes.axvline(1, color="0.2", lw=1.5, label=TRAINED)
    axes.set_xscale("log")
    ticks = (0.7, 0.8, 0.9, 1, 1.2, 1.5, 2, 3, 5, 8)
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.set_yticks(range(len(rows)), list(rows))
    axes.invert_yaxis()
    axes.set_xlabel("MASE relative to the trained run's (right of the line: worse than it)")
    axes.legend(loc="upper center", bbox_to_anchor=(0.4, -0.13), ncols=5, frameon=False)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    figure.savefig(path, dpi=130, bbox_inches="tight")
