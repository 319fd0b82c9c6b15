"""What is said of a backtest: its JSON document, and its tables and notes for a person."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from cli.output import note
from cli.reports.evaluation_report import evaluation_document, print_evaluation

if TYPE_CHECKING:
    from cli.options import Scoring
    from memory_index.backtest.lived import Backtest
    from memory_index.windows import Step


def backtest_document(
    result: Backtest, scoring: Scoring, step: Step, *, run: Path | None, ref: str, update: str
) -> dict[str, Any]:
    """The JSON document of `backtest`: that of `evaluate`, and what a backtest has beside it."""
    document = evaluation_document(result.evaluation, scoring, run=run, ref=ref)
    along = [
        {
            "first": step.isoformat(each.first),
            "last": step.isoformat(each.last),
            "num_windows": each.num_windows,
            "mae": each.mae,
            "coverage": each.coverage,
        }
        for each in result.stretches
    ]
    return document | {
        "first_origin": step.isoformat(result.first),
        "last_origin": step.isoformat(result.last),
        "update": update,
        "num_updates": result.num_updates,
        "num_resumed": result.num_resumed,
        "along_time": along,
    }


def print_backtest(result: Backtest, scoring: Scoring, step: Step, *, run: Path | None, ref: str, update: str) -> None:
    """The scores as `evaluate` prints them, and how the origins were lived through."""
    print_evaluation(result.evaluation, scoring, run=run, ref=ref)
    grown = "nothing grew (--update never)" if update == "never" else f"{result.num_updates:,} updates ({update})"
    note(f"origins from {step.isoformat(result.first)} to {step.isoformat(result.last)}, {grown}")
    if result.num_resumed:
        note(f"{result.num_resumed:,} windows had been forecast before: the backtest went on from them")
