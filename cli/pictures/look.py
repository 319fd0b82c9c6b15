"""How every picture looks: colours, sizes, and its three ways out (a file, and light and dark in a page).

The hues are those of Okabe and Ito, *Color universal design* (2008), which the colour-blind tell apart; wherever two
lines lie over each other their styles differ too, for grey print. What is drawn is told in the other files.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from cli.targets import write_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from memory_index.inspection import Inspection
    from memory_index.windows import Step

Shape = Literal["wide", "narrow"]  # for a screen or paper, and for a phone


class Colour(NamedTuple):
    """One colour as pictures use it (`light`), and what it becomes on a dark page. name: of its CSS variable."""

    name: str
    light: str
    dark: str


PALETTE = (
    PAPER := Colour("paper", "#ffffff", "#15181e"),
    INK := Colour("ink", "#111111", "#eeeeee"),
    SOFT := Colour("soft", "#595959", "#b4b4b4"),
    RULE := Colour("rule", "#d9d9d9", "#3a3f48"),
    BAND := Colour("band", "#bdbdbd", "#5c626d"),
    BLUE := Colour("blue", "#0072b2", "#56b4e9"),
    ORANGE := Colour("orange", "#d55e00", "#f08a3c"),
    GREEN := Colour("green", "#009e73", "#35c79c"),
    PURPLE := Colour("purple", "#b3468b", "#e29ac4"),
    YELLOW := Colour("yellow", "#e69f00", "#f0c04a"),
)
SCOPE_COLOURS = {"own": BLUE.light, "joint": ORANGE.light, "pooled": GREEN.light}
SCOPE_STYLES = {"own": "-", "joint": "--", "pooled": "-."}
QUERY_COLOUR, FORECAST_COLOUR = INK.light, PURPLE.light
WIDTHS: dict[Shape, float] = {"wide": 11.0, "narrow": 3.6}  # inches
HEADLINE: dict[Shape, int] = {"wide": 110, "narrow": 36}  # characters
DOTS_PER_INCH = 130
SHOWN_STEPS = 3  # horizons of history that are drawn before the origin,
LEAST_SHOWN = 48  # and so many steps however short the horizon is


def figure(height: float, shape: Shape = "wide") -> Figure:
    """A figure of some height, in inches, that needs no display."""
    from matplotlib.figure import Figure

    return Figure(figsize=(WIDTHS[shape], height), layout="constrained")


def headline(drawn: Figure, text: str, shape: Shape = "wide", *, size: float = 12) -> None:
    """The title of a figure, in as many lines as it takes: it may hold an address."""
    lines = [fill(line, HEADLINE[shape], break_on_hyphens=False) for line in text.splitlines()]
    drawn.suptitle("\n".join(lines), fontsize=size)


def plain(axes: Axes) -> None:
    """Only what is needed to read values off: two spines, and a grid behind the lines."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color=RULE.light, lw=0.6)
    axes.set_axisbelow(True)


def dates(step: Step, times: np.ndarray) -> np.ndarray:
    """Times as matplotlib draws them, on the clock of the data's own time zone."""
    return step.local(times).tz_localize(None).to_numpy()


def date_axis(axes: Axes, step: Step, shape: Shape) -> None:
    """Dates along x, as short as they can be read, and in which time zone they are if that is known."""
    from matplotlib.dates import DAILY, AutoDateLocator, ConciseDateFormatter

    locator = AutoDateLocator(minticks=2, maxticks=9 if shape == "wide" else 5)
    # Whatever the span, one of them gives few enough ticks. They count from the first of each month: 31 is that alone.
    locator.intervald[DAILY] = [1, 2, 4, 7, 14, 31]
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))
    zone = f" ({step.time_zone})" if step.time_zone else ""
    axes.set_xlabel(f"time{zone}", loc="center" if shape == "wide" else "left")  # on the right stands the year


def limits(whole: Sequence[np.ndarray], wild: Sequence[np.ndarray]) -> tuple[float, float]:
    """Limits of values that show all of some lines and most of others: one wild line must not flatten the rest.

    NaN is left out.
    """
    values = np.concatenate([*whole, np.quantile(np.concatenate(wild), [0.02, 0.98])])
    values = values[np.isfinite(values)]
    margin = 0.06 * (float(values.max() - values.min()) or abs(float(values[0])) or 1.0)
    return float(values.min()) - margin, float(values.max()) + margin


def beyond(lines: Sequence[np.ndarray], frame: tuple[float, float]) -> str:
    """What a legend adds of lines that leave the frame: how many do; empty if none does."""
    low, high = frame
    num = sum(bool(((line < low) | (line > high)).any()) for line in lines)
    return f" ({num} beyond the frame)" if num else ""


def num_shown(found: Inspection) -> int:
    """How many steps of a query are drawn before its origin: no more than any neighbour is compared over."""
    wanted = max(SHOWN_STEPS * len(found.forecast), LEAST_SHOWN)
    return min(wanted, len(found.context), max(n.view for n in found.neighbours))


def save(drawn: Figure, path: Path) -> None:
    """Write a figure in the format of the suffix; the same figure gives the same bytes."""
    from matplotlib import rc_context

    form, buffer = path.suffix.lower().removeprefix("."), io.BytesIO()
    undated: dict[str, dict[str, str | None]] = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}
    with rc_context({"svg.hashsalt": path.stem}), literal(drawn):
        drawn.savefig(buffer, format=form, dpi=DOTS_PER_INCH, metadata=undated.get(form))
    write_file(path, buffer.getvalue())


@contextmanager
def literal(drawn: Figure) -> Iterator[None]:
    """While the block runs, a dollar sign in a text of a figure is one, and not the beginning of a formula, and a name
    in letters that the font does not have is drawn without a word.
    """
    from matplotlib import rc_context
    from matplotlib.text import Text

    for text in drawn.findobj(Text):
        assert isinstance(text, Text)
        text.set_parse_math(False)
    with rc_context({"text.parse_math": False}), warnings.catch_warnings():  # for labels that are made only now
        warnings.filterwarnings("ignore", r"Glyph \d+ .*missing", UserWarning)
        yield


def themed_svg(drawn: Figure, name: str, alternative: str) -> str:
    """A figure as an SVG element whose colours are the page's CSS variables, so that it follows the page into the dark.
    Its title is left out, since a page has a heading.

    name: distinct within a page: it keeps the ids of two pictures apart. alternative: what a reader who cannot see
    it is told.
    """
    from html import escape

    from matplotlib import rc_context

    drawn.suptitle("")
    drawn.patch.set_alpha(0.0)
    for axes in drawn.axes:
        axes.patch.set_alpha(0.0)
    buffer = io.StringIO()
    with rc_context({"svg.hashsalt": name}), literal(drawn):
        drawn.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r' (width|height)="[0-9.]+pt"', "", text, count=2)
    text = re.sub(r'( id="|href="#|url\(#)', rf"\g<1>{name}-", text)
    text = text.replace("<svg ", f'<svg role="img" aria-label="{escape(alternative)}" ', 1)
    text = text.replace("#000000", INK.light)  # what is drawn without a colour
    for colour in PALETTE:
        text = re.sub(colour.light, f"var(--{colour.name})", text, flags=re.IGNORECASE)
    return text
