"""What is said of one forecast taken apart: sentences and table rows.

What there is to say is computed in `forecaster/explain.py`; where it is shown is the affair of `explain.py` (terminal),
`explanation_page.py` and `pictures/explanation.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cli.reports.conditions import condition_rows
from cli.wording import BASE_NAMES, IN_SAMPLE, age, minute, no_close_analogue, sparkline

if TYPE_CHECKING:
    import numpy as np

    from forecaster.explain import Explanation, Part

FULL_BAR, BAR_WIDTH = chr(0x2588), 20  # characters of a bar of 100%
SPARK_WIDTH = 10  # characters of a small drawing in a line of 80
SCALE_NAMES = ("micro", "meso", "macro", "widest")  # finest first
NUM_DIGITS = 4  # of the range of the values that are shown


def headline(found: Explanation) -> str:
    """What is forecast, and out of what: one sentence."""
    number = numbers_like(found)
    within = f"{number(found.forecast.min())} to {number(found.forecast.max())}"
    if len(found.levels) > 1:
        low, high = number(found.quantiles.min()), number(found.quantiles.max())
        within += f" ({interval_name(found.levels)}: {low} to {high})"
    model = found.gate.mean()
    return (
        f"{found.series_id} at {minute(found.origin_text)}, {_next_steps(found)}: {within}, "
        f"memory {1 - model:.0%}, model {model:.0%} on average"
    )


def interval_name(levels: tuple[float, ...]) -> str:
    """What the band between the outermost levels is called."""
    low, high = levels[0], levels[-1]
    return f"{high - low:.0%} interval" if abs(low + high - 1) < 1e-9 else f"q{low:g} to q{high:g}"


def warnings(found: Explanation) -> list[str]:
    """What a reader must know before trusting the forecast, a sentence each."""
    told = [no_close_analogue(part.share_closer for part in found.parts)] if found.no_close_analogue else []
    told += [IN_SAMPLE] if found.in_sample else []
    if empty := [part.name for part in found.parts if part.of_memory and not part.num_neighbours]:
        told.append(f"no neighbour in {', '.join(empty)}: the other parts have their share")
    return told


def explained_conditions(found: Explanation) -> list[list[str]]:
    """Known covariates over the horizon, and what they decide of the distances of the neighbours that are shown."""
    records = [each.record for each in found.neighbours]
    return condition_rows(found.covariates, found.categories, records, len(found.forecast))


def network_effect(found: Explanation) -> str:
    """How much of the forecast is the network's, in words."""
    share = next((float(part.weight.mean()) for part in found.parts if part.name == "network"), 0.0)
    num = len(found.networks)
    if num < 2:
        return f"{share:.0%} of the forecast"
    apart = numbers_like(found)((found.networks.max(axis=0) - found.networks.min(axis=0)).mean())
    return f"{share:.0%} of the forecast, mean of {num} that are {apart} apart"


def _next_steps(found: Explanation) -> str:
    return f"next {len(found.forecast)} steps" if len(found.forecast) > 1 else "next step"


def numbers_like(found: Explanation) -> Any:
    """How values of this size are written: so many digits as tell apart what the picture shows."""
    import math

    shown = [found.forecast.min(), found.forecast.max(), found.context.min(), found.context.max()]
    span = float(max(shown) - min(shown)) or abs(float(shown[0])) or 1.0
    digits = min(max(NUM_DIGITS - 1 - math.floor(math.log10(span)), 0), 12)
    return lambda value: f"{round(float(value), digits) + 0.0:,.{digits}f}"  # which leaves no "-0.00"


def part_columns(found: Explanation) -> list[str]:
    """Headings of `part_rows`."""
    return ["part", *(f"t+{step + 1}" for step in _some_steps(found)), "mean", "forecast", "found", "nearest", "nearer"]


def part_rows(found: Explanation, spark_width: int = SPARK_WIDTH) -> list[list[object]]:
    """The forecast, its two parts and theirs, a line each: shares, its own forecast, and for a key space how many
    neighbours it has and how close they are.
    """
    steps = _some_steps(found)

    def line(name: str, weight: np.ndarray | None, forecast: np.ndarray | None, of: Part | None = None) -> list[object]:
        shares = [""] * (len(steps) + 1) if weight is None else [f"{weight[step]:.0%}" for step in steps]
        shares += [] if weight is None else [f"{weight.mean():.0%}"]
        drawn = "" if forecast is None else sparkline(forecast, spark_width)
        if of is None or not of.of_memory:
            return [name, *shares, drawn, "", "", ""]
        nearest = "" if of.nearest is None else f"{of.nearest:.3f}"
        nearer = "" if of.share_closer is None else f"{of.share_closer:.0%}"
        return [name, *shares, drawn, str(of.num_neighbours), nearest, nearer]

    def lines(of_memory: bool) -> list[list[object]]:
        return [
            line(f"  {BASE_NAMES.get(part.name, part.name)}", part.weight, finite(part.forecast), part)
            for part in found.parts
            if part.of_memory == of_memory
        ]

    rows = [line("forecast", None, found.forecast), line("model", found.gate, found.model_part), *lines(False)]
    rows += [line("memory", 1 - found.gate, found.memory_part), *lines(True)]
    known = finite(found.actual)
    return rows + ([] if known is None else [line("what followed", None, known)])


def neighbour_columns(found: Explanation) -> list[str]:
    """Headings of `neighbour_rows`: without what the network or the future would have to tell."""
    gated = [] if found.feature_gate is None else ["score", "in net"]
    return [
        "key space",
        "series",
        "origin",
        "age",
        "dist.",
        *gated,
        "future",
        *(["match"] if knows_actual(found) else []),
    ]


def neighbour_rows(found: Explanation, spark_width: int = SPARK_WIDTH) -> list[list[object]]:
    """The neighbours that the network looks at one by one, a line each, nearest first in units of the key
    space that found each: distances of different key spaces are not comparable as they stand.

    `in net` is how much each has in what the network reads of them all, not in the forecast.
    """
    rows: list[list[object]] = []
    for each in found.neighbours:
        n = each.record
        row: list[object] = [f"{n.scope}-{n.view}", n.series_id, minute(n.origin), age(n.age_days), f"{n.distance:.3f}"]
        if each.match_score is not None and each.weight is not None:
            row += [f"{each.match_score:.2f}", f"{each.weight:.0%}"]
        row.append(sparkline(n.future[: len(found.forecast)], spark_width - 2))
        if knows_actual(found):
            row.append("" if n.match is None else f"{n.match:+.2f}")
        rows.append(row)
    return rows


def trend_classes(found: Explanation) -> list[tuple[str, float, str]]:
    """Name, probability and what it stands for in this window, of the trend classes: three directions, then four
    strengths. Empty without TAPR.
    """
    if found.trend is None:
        return []
    border = [numbers_like(found)(each) for each in found.trend.borders]
    means = [f"mean ahead above {border[3]}", f"{border[1]} to {border[3]}", f"mean ahead below {border[1]}"]
    means += [f"mean ahead above {border[4]}", f"{border[2]} to {border[4]}"]
    means += [f"{border[0]} to {border[2]}", f"mean ahead below {border[0]}"]
    shares = {**found.trend.direction, **found.trend.magnitude}
    return [(name, share, each) for (name, share), each in zip(shares.items(), means, strict=True)]


def scales(found: Explanation) -> list[tuple[str, float, int]]:
    """Name, share and steps of each scale, finest first. Empty without TAPR."""
    if found.trend is None:
        return []
    return list(zip(SCALE_NAMES, found.trend.scale_shares, found.trend.scale_steps, strict=False))


NETWORK_COLUMNS = ["network", "share", "", "which is"]


def network_rows(found: Explanation) -> list[list[object]]:
    """What the network says: trend classes, scales, and the gate over features; empty where there is no network."""
    told: list[tuple[str, float, str]] = []
    if found.trend is not None:
        told += [(f"trend {name}", share, means) for name, share, means in trend_classes(found)]
        told += [(f"scale {name}", share, f"averages of {steps} steps") for name, share, steps in scales(found)]
    if found.feature_gate is not None and found.confidence is not None:
        told.append(("feature gate", found.feature_gate, "1 is the window, 0 its neighbours"))
        told.append(("confidence", found.confidence, "sum of similarity x score"))
    return [[name, f"{share:.0%}", FULL_BAR * round(share * BAR_WIDTH), meaning] for name, share, meaning in told]


def _some_steps(found: Explanation) -> list[int]:
    """The first, the middle and the last step."""
    horizon = len(found.forecast)
    return sorted({0, (horizon - 1) // 2, horizon - 1})


def finite(values: np.ndarray) -> np.ndarray | None:
    """The values if all of them are known."""
    import numpy as np

    return values if np.isfinite(values).all() else None


def knows_actual(found: Explanation) -> bool:
    """Whether all that really followed is known."""
    return finite(found.actual) is not None
