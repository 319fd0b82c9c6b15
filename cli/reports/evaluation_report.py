"""What is said of an evaluation: its JSON document, and its tables and notes for a person."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from cli.output import note, print_table

if TYPE_CHECKING:
    from collections.abc import Iterable

    from cli.options import Scoring
    from memory_index.evaluation import Evaluation
    from memory_index.metrics import Score

BASELINES = {
    "memory_only": "memory alone",
    "linear": "linear (ridge, {})",
    "seasonal_naive": "seasonal naive",
    "last_value": "last value",
}
# In tables, where an arm has them; those of each series; those that are shares.
COLUMNS = {
    "mse": "MSE",
    "mae": "MAE",
    "mase": "MASE",
    "rmsse": "RMSSE",
    "smape": "sMAPE",
    "wql": "WQL",
    "sql": "SQL",
    "direction_accuracy": "direction",
}
OF_SERIES = ("mse", "mae", "mase", "wql")
SHARES = ("direction_accuracy",)
EXTREMES = 5  # worst, and as many best, of the series
COVERAGE_SHOWN = ("q0.1", "q0.5", "q0.9")


def evaluation_document(result: Evaluation, scoring: Scoring, *, run: Path | None, ref: str) -> dict[str, Any]:
    """The JSON document of `evaluate`. What an arm does not have is null."""

    def plain(score: Score | None) -> dict[str, float] | None:
        return None if score is None else {"mse": score.mse, "mae": score.mae}

    document: dict[str, Any] = {
        "run": run,
        "ref": ref,
        "split": result.part,
        "schedule": None if scoring.schedule is None else str(scoring.schedule),
        "num_windows": result.num_windows,
        "num_series": result.num_series,
        "num_scored": result.num_scored,
        "num_without_neighbours": result.num_without_neighbours,
        "mse": result.mse,
        "mae": result.mae,
        "direction_accuracy": result.direction_accuracy,
        "trend_accuracy": result.trend_accuracy,
        "gate": result.gate,
        "feature_gate": result.feature_gate,
        "coverage": result.coverage or None,
        "arm": result.arm,
        "scores": {name: score.metrics for name, score in result.scores.items()},
        "left_out": result.score.left_out,
        "scaled_by": result.scaled_by,
        "season": result.season,
        "baselines": {name: plain(score) for name, score in result.baselines.items()},
        "key_spaces": {name: plain(score) for name, score in result.by_space.items()},
        "out": scoring.out,
        "skipped": result.skipped,
        "in_sample": result.in_sample,
        "seconds": round(result.seconds, 3),
    }
    if "series" in scoring.by:
        document["by_series"] = list(_series_records(result))
    if "step" in scoring.by:
        document["by_step"] = {name: list(values) for name, values in result.score.by_step.items()}
    return document


def _series_records(result: Evaluation) -> Iterable[dict[str, Any]]:
    """Of every series with a window, in the order of the table: its metrics, and MSE and MAE of what stands beside."""
    own = result.score.by_series
    beside = {name: score.by_series for name, score in result.baselines.items() if score and name != result.arm}
    for n, (series_id, num) in enumerate(zip(result.series_ids, result.windows_by_series, strict=True)):
        if num:
            yield {
                "series_id": series_id,
                "num_windows": num,
                **{name: float(values[n]) for name, values in own.items()},
                "baselines": {
                    name: {"mse": float(each["mse"][n]), "mae": float(each["mae"][n])} for name, each in beside.items()
                },
            }


def print_evaluation(result: Evaluation, scoring: Scoring, *, run: Path | None, ref: str) -> None:
    """The scores beside those of the baselines, the worst and best series, and what else is known of the forecasts."""
    of = ref if run is None else f"{run} with {ref}"
    rows: list[tuple[str, Score | None]] = [] if run is None else [(str(run), result.score)]
    linear = "widest view" if run is None else "the run's own"
    rows += [(label.format(linear), result.scores.get(name)) for name, label in BASELINES.items()]
    rows += [(f"  key space {name}", score) for name, score in result.by_space.items()] if scoring.baselines else []
    columns = _columns(result.score)
    when = "" if scoring.schedule is None else f", {scoring.schedule}"
    title = f"{of}, {result.part}{when}: {result.num_windows:,} origins x {result.num_series} series"
    cells = [[name, *_cells(score.metrics if score else {}, columns)] for name, score in rows]
    print_table(["forecast", *columns.values()], cells, title=title)
    if result.num_series > 1:
        _print_series(result, whole="series" in scoring.by)
    if "step" in scoring.by:
        _print_steps(result)
    if run is not None:
        _tell_run(result)
    _tell_units(result)


def _columns(score: Score) -> dict[str, str]:
    return {name: heading for name, heading in COLUMNS.items() if score.metrics.get(name) is not None}


def _cells(metrics: dict[str, float | None], columns: Iterable[str]) -> list[str]:
    return [_cell(name, metrics.get(name)) for name in columns]


def _cell(name: str, value: float | None) -> str:
    if value is None or value != value:
        return "-"
    return f"{value:.1%}" if name in SHARES else f"{value:.4f}"


def _print_series(result: Evaluation, *, whole: bool) -> None:
    """A table of series, the worst first. Ordered by MASE, which compares series; by MAE where no series has one."""
    import numpy as np

    own, scored = result.score.by_series, np.flatnonzero(np.array(result.windows_by_series) > 0)
    by = "mase" if np.isfinite(own["mase"][scored]).any() else "mae"
    order = scored[np.argsort(-own[by][scored], kind="stable")]  # NaN last
    known = int(np.isfinite(own[by][order]).sum())
    few = whole or len(order) <= 2 * EXTREMES
    groups = [order] if few else [order[: min(EXTREMES, known)], order[max(known - EXTREMES, 0) : known]]
    naive_name = "seasonal_naive" if "seasonal_naive" in result.scores else "last_value"
    naive, label = result.scores[naive_name].by_series[by], BASELINES[naive_name]
    columns = {name: heading for name, heading in _columns(result.score).items() if name in OF_SERIES}
    rows: list[list[str | None]] = []
    for number, group in enumerate(groups):
        if number:
            rows.append(["...", *[None] * (len(columns) + 2)])
        rows += [_series_row(result, int(n), columns, _cell(by, float(naive[n]))) for n in group]
    heading = COLUMNS[by]
    what = f"by series, the highest {heading} first" if few else f"series with the highest and the lowest {heading}"
    print_table(["series", "windows", *columns.values(), f"{label} {heading}"], rows, title=f"\n{what}")
    worse = int((own[by][order[:known]] > naive[order[:known]]).sum())
    note(f"{worse:,} of {known:,} series are forecast worse than by {label} ({heading})")
    if not few:
        note("--by series lists all of them, --json with it as a document")


def _series_row(result: Evaluation, n: int, columns: Iterable[str], naive: str) -> list[str | None]:
    metrics = {name: float(result.score.by_series[name][n]) for name in columns}
    return [result.series_ids[n], f"{result.windows_by_series[n]:,}", *_cells({**metrics}, columns), naive]


def _print_steps(result: Evaluation) -> None:
    columns, by_step = _columns(result.score), result.score.by_step
    rows = [
        [str(step + 1), *_cells({name: by_step[name][step] for name in columns}, columns)]
        for step in range(len(by_step["mse"]))
    ]
    print_table(["step", *columns.values()], rows, title="\nby steps ahead")


def _tell_run(result: Evaluation) -> None:
    if result.trend_accuracy is not None:
        note(f"trend class (up, flat or down) told right by TAPR: {result.trend_accuracy:.1%} of windows")
    if result.gate is not None:
        gate = result.gate
        low, high = f"{gate.p10:.2f}", f"{gate.p90:.2f}"
        shares = f"{gate.mean:.2f} on average, 10% of steps below {low}, 10% above {high}"
        note(f"gate: {f'{low} at every step' if low == high else shares} (1 trusts the model, 0 the memory)")


def _tell_units(result: Evaluation) -> None:
    """How the figures are to be read, and what they leave out."""
    if coverage := result.coverage:
        shown = [name for name in COVERAGE_SHOWN if name in coverage] or list(coverage)
        shares = ", ".join(f"{coverage[name]:.1%} below {name}" for name in shown)
        certain = next((num for name, num in result.score.left_out.items() if name.startswith("coverage_")), 0)
        but = f" (without {certain:,} that all quantiles were equal to)" if certain else ""
        note(f"values that the quantiles left below them: {shares}{but}")
    note(f"MSE and MAE in standardised units, {result.num_scored:,} windows, {result.seconds:.1f} s")
    until = "over the training part" if result.scaled_by == "training" else "up to each origin"
    note(f"MASE, RMSSE and SQL are scaled by the seasonal naive error {until}, season {result.season}")
    if scaled := [f"{num:,} of {COLUMNS[name]}" for name, num in result.score.left_out.items() if name in COLUMNS]:
        note(f"steps left out, since they have nothing to divide by or did not move: {', '.join(scaled)}")
    if result.num_without_neighbours:
        instead = "the last value stands in" if result.arm == "memory_only" else "the model stands alone there"
        note(f"{result.num_without_neighbours:,} of {result.num_scored:,} windows had no neighbour: {instead}")
    if result.in_sample:
        used = "" if result.arm == "memory_only" else "training or validation used this part, or "
        note(f"in sample: {used}fitted parts of this version have seen steps later than some origins")
