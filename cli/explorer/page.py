"""What is where on the page, and what each part of it is called. What it shows is filled in by `server.py`.

Every picture stands beside a sentence that says the same, every control can be reached and used with keys alone, and
the legends are drawn by the page itself, so that they wrap on a phone.
"""

from __future__ import annotations

import math
from typing import Any

from dash import dcc, html

from cli.explorer.figures import SIDE_NAMES, VIEW_PATTERNS, empty_figure, part_label, part_look
from cli.explorer.known_figures import num_panels
from cli.explorer.moves import KNOWN
from cli.explorer.state import State
from cli.explorer.subject import Answer, Subject
from cli.pictures.look import PALETTE
from memory_index.covariate_map import CovariateColumn
from memory_index.types import SCOPES

SIDES = (1, 2)
BUTTONS = ("back_far", "back", "on", "on_far")
CONTROLS = ("series", "typed", "k", "gap", "compare")  # each gives its `value`
SIDE_CONTROLS = ("ref", "scopes", "views")  # likewise, one for each side
EXPORTS = {"png": "PNG", "svg": "SVG", "csv": "CSV"}
CONFIG: Any = {"displayModeBar": False, "responsive": True}
LIVE: dict[str, Any] = {"aria-live": "polite"}
INDEX = """<!doctype html>
<html lang="en">
<head>
{%metas%}
<meta name="color-scheme" content="light dark">
<title>{%title%}</title>
<link rel="icon" href="data:,">
{%css%}
<style>COLOURS</style>
</head>
<body>
{%app_entry%}
<footer>{%config%}{%scripts%}{%renderer%}</footer>
</body>
</html>"""


def index_string() -> str:
    """The frame of the page, with the palette as CSS variables for light and dark."""
    light, dark = (
        " ".join(f"--{colour.name}: {getattr(colour, theme)};" for colour in PALETTE) for theme in ("light", "dark")
    )
    return INDEX.replace("COLOURS", f":root {{ {light} }} @media (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}")


def layout(subject: Subject, start: State, first: Answer) -> html.Div:
    """Everything on the page, still empty. first: what the first side will show at the start."""
    return html.Div(
        [
            dcc.Location(id="address", refresh=False),
            dcc.Store(id="dark"),
            html.Header([html.H1("What the memory remembers"), html.P(_about(subject))]),
            html.Main(
                [
                    _controls(subject, start),
                    *([_known_controls(subject)] if subject.known else []),
                    html.P(id="message", role="alert", className="warning", hidden=True),
                    _picture("history", "history", "said-history"),
                    _slider(),
                    html.P(id="said-history", className="unseen"),
                    html.Div([_side(subject, first, n) for n in SIDES], id="sides", className="sides"),
                ]
            ),
        ],
        id="page",
    )


def _about(subject: Subject) -> str:
    """What is open, in a line."""
    run = "" if subject.run is None else f", with the run {subject.run}"
    return f"{subject.table.source}, remembered in {', '.join(subject.versions)}{run}"


def _controls(subject: Subject, start: State) -> html.Div:
    step, far = "1 step", subject.jump(start).name
    names = {
        "back_far": ("\u2212" + far, f"origin {far} earlier"),
        "back": ("\u2212" + step, f"origin {step} earlier"),
        "on": ("+" + step, f"origin {step} later"),
        "on_far": ("+" + far, f"origin {far} later"),
    }
    buttons = [html.Button(names[b][0], id=b, type="button", **_called(names[b][1])) for b in BUTTONS]
    return html.Div(
        [
            _field(
                "Series",
                "series",
                dcc.Dropdown(
                    id="series", options=list(subject.table.series_ids), value=start.series_id, clearable=False,
                    searchable=len(subject.table.series_ids) > 8,
                ),
            ),
            _field("Origin", "typed", dcc.Input(id="typed", type="text", debounce=True, autoComplete="off")),
            html.Div(buttons, className="buttons", role="group", **_called("Move the origin")),
            _field("Neighbours per key space", "k", _number("k")),
            _field("Steps apart", "gap", _number("gap")),
            dcc.Checklist(id="compare", options=["Compare"], value=[], className="ticks"),
        ],
        className="controls",
        role="group",
        **_called("What to look at"),
    )  # fmt: skip


def _known_controls(subject: Subject) -> html.Div:
    """A slider for each known number, which shifts it over the horizon; for words a choice of one of them."""
    fields = []
    for number, column in enumerate(subject.known):
        control = f"{KNOWN}{number}"
        component: dcc.Slider | dcc.Dropdown
        if column.kind == "number":
            step, most = shift_steps(column)
            component = dcc.Slider(
                id=control, min=-most, max=most, step=step, value=0, updatemode="mouseup",
                marks={-most: f"\u2212{most:g}", 0: "as known", most: f"+{most:g}"}, allow_direct_input=False,
                tooltip={"always_visible": False},
            )  # fmt: skip
        else:
            component = dcc.Dropdown(
                id=control, options=list(column.words), placeholder="as known", clearable=True, searchable=False
            )
        heading = html.Span(id=f"{control}-name", className="label")
        fields.append(
            html.Div([heading, component], className="field known", role="group", **_called_by(f"{control}-name"))
        )
    return html.Div(fields, className="controls", role="group", **_called("Change what is known of the horizon"))


def shift_steps(column: CovariateColumn) -> tuple[float, float]:
    """The step of a slider, one of 1, 2 and 5 times a power of ten, and its end: half of the column's range."""
    span = max(column.high - column.low, 1e-9)
    tens = 10.0 ** math.floor(math.log10(span / 50))
    step = next(tens * each for each in (1, 2, 5, 10) if tens * each * 50 >= span)
    return step, step * max(1, round(span / 2 / step))


def _field(text: str, control: str, component: Any) -> html.Div:
    return html.Div([html.Label(text, htmlFor=control), component], className="field")


def _number(control: str) -> dcc.Input:
    """Without limits of its own: the browser would keep what is outside of them to itself, and nobody would say why."""
    return dcc.Input(id=control, type="number", debounce=True)


def _slider() -> html.Div:
    slider = dcc.Input(id="slider", type="range", min=0, step=1)
    label = html.Label("Drag the origin", htmlFor="slider", className="unseen")
    return html.Div([label, slider, dcc.Store(id="dragged"), dcc.Store(id="row")], className="slider")


def _picture(name: str, kind: str, described_by: str, *, panels: int = 0) -> html.Div:
    """panels: under the plot, for which the style sheet makes room."""
    graph = dcc.Graph(id=name, figure=empty_figure(dark=False), config=CONFIG)
    look = {"--panels": panels}
    return html.Div(graph, role="img", className=f"picture {kind}", style=look, **_called_by(described_by))


def _side(subject: Subject, first: Answer, number: int) -> html.Section:
    """One side: which version and key spaces, what it shows, and its neighbours as a table."""
    links = [
        html.A(
            text,
            id=f"{kind}-{number}",
            href="",
            download="",
            **_called(f"Export as {text}, side {SIDE_NAMES[number - 1]}"),
        )
        for kind, text in EXPORTS.items()
    ]
    return html.Section(
        [
            html.H2(SIDE_NAMES[number - 1], className="name"),
            html.Div(
                [
                    _field("Memory", f"ref-{number}",
                           dcc.Dropdown(id=f"ref-{number}", options=list(subject.versions), clearable=False,
                                        searchable=False)),
                    _ticks("Scopes", f"scopes-{number}", list(first.version.scopes)),
                    _ticks("Views (steps compared)", f"views-{number}", list(first.version.views)),
                    html.Div(["Export ", *links], className="exports"),
                ],
                className="controls",
            ),
            html.Div(id=f"warned-{number}", role="status"),
            _picture(f"windows-{number}", "windows", f"said-{number}", panels=_num_panels(subject)),
            _legend(with_run=subject.run is not None, with_known=bool(subject.known)),
            html.P(id=f"said-{number}", className="said", **LIVE),
            html.Div(
                [
                    html.H2("Gate weights by horizon step"),
                    _picture(f"gate-{number}", "gate", f"said-{number}"),
                    _gate_legend(first),
                ],
                id=f"gated-{number}",
                hidden=subject.run is None,
            ),
            html.H2("Neighbours by key space, nearest first"),
            dcc.Store(id=f"rows-{number}"),
            html.Div(id=f"table-{number}", className="scroll", tabIndex=0, role="region",
                     **_called(f"Neighbours of side {SIDE_NAMES[number - 1]}")),
        ],
        id=f"side-{number}",
        className="side",
        hidden=number != SIDES[0],
        **_called(f"Side {SIDE_NAMES[number - 1]}"),
    )  # fmt: skip


def _ticks(text: str, control: str, options: list[Any]) -> html.Div:
    heading = html.Span(text, id=f"{control}-name", className="label")
    ticks = dcc.Checklist(id=control, options=options, value=options, inline=True, className="ticks")
    return html.Div([heading, ticks], className="field", role="group", **_called_by(f"{control}-name"))


def _num_panels(subject: Subject) -> int:
    """How many panels of known columns there may be under the windows."""
    manifests = [version.memory.manifest for version in subject.versions.values()]
    return max(num_panels(sum(column.role == "known" for column in each.covariates)) for each in manifests)


def _legend(*, with_run: bool, with_known: bool) -> html.Ul:
    """What each line of the windows is. The samples are drawn by the style sheet."""
    lines: dict[str, str] = {
        "query": "known at the origin",
        "actual": "what really followed",
        **{scope: f"neighbours, scope {scope}" for scope in SCOPES},
        "fan": "futures of the neighbours: middle 50 and 80 %",
        ("beside" if with_run else "forecast"): "forecast of the memory alone",
    }
    lines |= {"forecast": "forecast of the run", "interval": "its 80 % interval"} if with_run else {}
    lines |= {"unchanged": "forecast without the changes"} if with_known else {}
    return html.Ul([html.Li([html.Span(className=f"sample {name}"), text]) for name, text in lines.items()],
                   className="legend")  # fmt: skip


def _gate_legend(first: Answer) -> html.Ul:
    """What each area of the gate is: parts of the model, then key spaces."""
    items = []
    for part in () if first.explained is None else first.explained.parts:
        colour, pattern = part_look(part.name, part.of_memory, first.version.views)
        swatch = html.Span(
            className=f"swatch pattern-{VIEW_PATTERNS.index(pattern)}", style={"backgroundColor": f"var(--{colour})"}
        )
        items.append(html.Li([swatch, part_label(part)]))
    return html.Ul(items, className="legend")


def _called(text: str) -> dict[str, Any]:
    """The name of a part of the page for those who hear it."""
    return {"aria-label": text}


def _called_by(name: str) -> dict[str, Any]:
    """The same, where another part of the page says it."""
    return {"aria-labelledby": name}
