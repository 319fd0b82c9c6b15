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
    """MASE, scaled quantile loss of everything on the windows that other packages forecast; means relative to the
    seasonal naive forecast, geometric, over the tables that all of them have.
    """
    names = [*OURS, *OTHERS]
    print(f"\nMASE, SQL\n\n| table | windows | {' | '.join(names)} |\n|{'---|' * (len(names) + 2)}")
    for name, row in rows.items():
        mase, sql = beside(row, "mase"), beside(row, "sql")
        best = {id(each): min(each.values()) for each in (mase, sql)}

        def cell(each: dict[str, float], arm: str, best: dict[int, float] = best) -> str:
            if arm not in each:
                return ""
            return f"**{each[arm]:.3f}**" if each[arm] == best[id(each)] else f"{each[arm]:.3f}"

        cells = [", ".join(filter(None, (cell(mase, arm), cell(sql, arm)))) for arm in names]
        print(f"| {name} | {row['num_few']} | {' | '.join(cells)} |")
    whole = [row for row in rows.values() if all(arm in beside(row, "mase") for arm in names)]
    if whole:

        def relative(measure: str, base: str) -> dict[str, float]:
            found = [beside(row, measure) for row in whole]
            return {arm: _geometric([each[arm] / each[base] for each in found]) for arm in names if arm in found[0]}

        mase, sql = relative("mase", OURS[-1]), relative("sql", MEMORY)
        cells = [f"{mase[arm]:.3f}" + (f", {sql[arm]:.3f}" if arm in sql else "") for arm in names]
        print(f"| relative to seasonal naive (SQL: to the memory alone), {len(whole)} tables | | {' | '.join(cells)} |")


def _geometric(ratios: list[float]) -> float:
    return float(np.exp(np.mean(np.log(ratios))))


def draw(rows: Rows, path: Path) -> None:
    """MASE of every forecaster on every table, relative to the seasonal naive forecast."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    names = [name for name in (*OURS[:2], *OTHERS) if any(name in beside(row, "mase") for row in rows.values())]
    figure, axes = plt.subplots(figsize=(9, 0.34 * len(rows) + 1.4))
    for number, row in enumerate(rows.values()):
        found = beside(row, "mase")
        axes.axhline(number, color="0.92", zorder=0)
        for order, name in enumerate(names):
            if name in found:
                axes.scatter(
                    found[name] / found["seasonal_naive"],
                    number,
                    s=70 if name == TRAINED else 34,
                    marker="D" if name in OURS else "o",
                    color=f"C{order}",
                    zorder=4 if name in OURS else 3,
                    label=name if number == 0 else None,
                )
    axes.axvline(1, color="0.4", lw=1)
    axes.set_xscale("log")
    ticks = (0.5, 0.6, 0.7, 0.8, 0.9, 1, 1.2, 1.5, 2, 3)
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.set_yticks(range(len(rows)), list(rows))
    axes.invert_yaxis()
    axes.set_xlabel("MASE relative to the seasonal naive forecast (lower is better)")
    axes.legend(loc="upper center", bbox_to_anchor=(0.4, -0.12), ncols=4, frameon=False)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    figure.savefig(path, dpi=130, bbox_inches="tight")
