"""The table of an ablation: its rows, and how they are told. Where they come from is `ablate.py`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from memory_index.evaluation import Distribution

FULL = "full (TAPR + GRA-M)"
# Above the groups of arms, in the order of the table.
HEADINGS = {
    "matrix": "matrix: what TAPR and GRA-M add",
    "design": "design: the same without what is ours (no value gate, no linear shortcut)",
    "controls": "controls: the model without a part",
    "sensitivity": "sensitivity: one setting changed",
    "untrained": "nothing trained",
}
TIE = 0.003  # in MSE
NOTE = (
    "MSE and MAE in standardised units, means over seeds; +- is the standard deviation of the MSE over them. "
    "vs full: the MSE minus that of the full model, so what is above 0 is worse. Differences below .003 are ties. "
    "direction: steps that moved up or down as forecast; trend: windows whose class TAPR's head told. "
    "[= ...]: the same settings as that arm, and so the same runs."
)
COLUMNS = ("seeds", "val MSE", "MSE", "+-", "vs full", "MAE", "direction", "trend", "gate (10%, 90%)", "training s")


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One line of the table: means over seeds, and the standard deviation of the MSE over them.

    same_as: the arm whose runs these are, since it has the same settings. against_full: MSE minus that of the full
    model; above 0, the full model is better. None: the arm does not have it.
    """

    arm: str
    group: str
    same_as: str | None
    num_seeds: int | None
    val_mse: float | None
    mse: float
    mse_deviation: float | None
    against_full: float
    mae: float
    direction_accuracy: float | None
    trend_accuracy: float | None
    gate: Distribution | None
    seconds: float | None


def cells_of(row: Row) -> list[str]:
    """What the table says of an arm, one text per column of `COLUMNS`; empty where it has nothing to say."""

    def told(value: float | None, form: str) -> str:
        return "" if value is None else format(value, form)

    gate = "" if row.gate is None else f"{row.gate.mean:.2f} ({row.gate.p10:.2f}, {row.gate.p90:.2f})"
    return [
        "" if row.num_seeds is None else str(row.num_seeds),
        told(row.val_mse, ".4f"),
        told(row.mse, ".4f"),
        told(row.mse_deviation, ".4f"),
        "" if row.arm == FULL else told(round(row.against_full, 4) + 0.0, "+.4f"),  # no -0.0000
        told(row.mae, ".4f"),
        told(row.direction_accuracy, ".1%"),
        told(row.trend_accuracy, ".1%"),
        gate,
        told(row.seconds, ".0f"),
    ]


def label_of(row: Row) -> str:
    """The name of an arm, and whose runs it shares."""
    return row.arm if row.same_as is None else f"{row.arm} [= {row.same_as}]"


def grouped(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """Rows by the heading above them."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(HEADINGS[row.group], []).append(row)
    return groups


def as_markdown(rows: list[Row], title: str) -> str:
    """The tables for a person, one per group."""
    lines = [f"# {title}", "", NOTE, ""]
    for heading, group in grouped(rows).items():
        lines += [f"## {heading}", "", f"| arm | {' | '.join(COLUMNS)} |", "|---" * (1 + len(COLUMNS)) + "|"]
        lines += [f"| {label_of(row)} | {' | '.join(cells_of(row))} |" for row in group]
        lines.append("")
    return "\n".join(lines)
