"""What arithmetic expects of the exponents of `growth.py`, and the table in which both stand.

n windows, S series, L lookback (which is the view), E = min(48, L) numbers a key (5 more for `own`), H horizon. An
expectation is a range where a cost has two terms, neither of which is negligible at the sizes that are measured.
"""

from __future__ import annotations

from benchmarks.speed.growth import Point, exponents

Expected = tuple[str, str]  # the exponent, and why

SAME: Expected = ("0", "does not occur in the cost")
EXPECTED: dict[str, dict[str, Expected]] = {
    "windows": {
        "build": ("1", "each window is encoded (2 n L E flops), written and hashed once"),
        "build, graph": ("1 to 1.1", "n insertions that each walk a graph of n: n log n"),
        "append": ("0 to 1", "what is new is encoded; the series that are there (24 bytes a step) are read and hashed"),
        "search, own": ("1", "2 (n / S) E flops a query, as many distances looked through"),
        "search, pooled": ("1", "2 n E flops a query, as many distances looked through"),
        "search, graph": ("0 to 0.3", "a walk of log n steps, ever farther apart in memory"),
        "brute force": ("1", "2 n L flops a query, n distances masked and sorted"),
        "forecast": SAME,
    },
    "lookback": {
        "build": ("1 to 2", "2 n L E flops to encode, 2 n L^2 for the Gram matrices, S L^3 for their axes"),
        "append": ("0 to 1", "2 L E flops for each of 24 S windows, beside files that are written and synced"),
        "search, own": ("0 to 1", "keys are as wide; 2 L E flops to encode a query, beside 2 (n / S) E to compare it"),
        "search, pooled": ("0", "keys are as wide from L = 48 on"),
        "brute force": ("0 to 1", "2 n L flops a query, beside n distances masked and sorted"),
        "forecast": ("0 to 1", "k windows of L + H values are read and weighed, and L H flops move their mean"),
    },
    "horizon": {
        "build": ("0", "2 n L H flops for the map behind the metric, beside 2 n L (L + E)"),
        "append": SAME,
        "search, own": SAME,
        "search, pooled": SAME,
        "brute force": SAME,
        "forecast": ("0 to 1", "k windows of L + H values are read and weighed"),
    },
    "k": {
        "search, own": ("0 to 1", "the product does not change; k + 14 candidates are measured, sorted and checked"),
        "search, pooled": ("0", "as `own`, but the product is S times as large"),
        "brute force": ("0", "a partial sort of n distances, whatever k is"),
        "forecast": ("0 to 1", "k windows of L + H values are read and weighed, beside what moves their mean"),
    },
    "series": {
        "build": ("1", "as many more windows"),
        "append": ("0 to 1", "24 windows for each series, beside files that are written and synced"),
        "search, own": ("0", "a query is compared with its own series"),
        "search, pooled": ("1", "a query is compared with every series"),
        "brute force": ("1", "a query is compared with every series"),
        "forecast": SAME,
    },
}


def table(points: list[Point]) -> str:
    """A line for each curve: first and last point, exponent, also of the last two points, and what was expected."""
    lines = ["| what grows | operation | seconds | exponent | at the end | expected | because |"]
    lines.append("|---|---|---|---|---|---|---|")
    for (variable, operation), slope in exponents(points).items():
        curve = [point for point in points if (point.variable, point.operation) == (variable, operation)]
        expected, reason = EXPECTED[variable][operation]
        span = f"{variable}, {curve[0].value:,} to {curve[-1].value:,}"
        took = f"{curve[0].seconds:.2g} to {curve[-1].seconds:.2g}"
        end = exponents(curve[-2:])[variable, operation]
        lines.append(f"| {span} | {operation} | {took} | {slope:.2f} | {end:.2f} | {expected} | {reason} |")
    return "\n".join(lines)
