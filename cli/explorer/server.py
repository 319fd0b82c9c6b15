"""Who is answered, and how: the Dash application, its one callback for every move, exports, and listening on a port.

Nothing is fetched from elsewhere (the browser is told to refuse it), no name but those of this machine is answered, and
one question is asked at a time. So is one picture drawn, which takes longer, and which no question waits for.
"""

from __future__ import annotations

import ipaddress
import socket
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import flask
from dash import ClientsideFunction, Dash, Input, Output, State, ctx, no_update
from werkzeug.serving import BaseWSGIServer, WSGIRequestHandler, make_server

from cli.explorer import state as states
from cli.explorer.drawing import Figure
from cli.explorer.figures import common_limits, empty_figure, gate_figure, history_figure, windows_figure
from cli.explorer.moves import KNOWN, known_value, moved
from cli.explorer.page import BUTTONS, CONTROLS, EXPORTS, SIDE_CONTROLS, SIDES, index_string, layout
from cli.explorer.state import from_address, to_address
from cli.explorer.subject import Answer, Subject
from cli.explorer.words import TEXT_COLUMNS, as_csv, columns, known_name, problem, rows, sentence, warned, what
from cli.reports.conditions import asked_with
from cli.wording import minute
from memory_index.errors import MemoryIndexError
from memory_index.listening import is_loopback, listen_on

# What a page may load: this server only. Dash and plotly write styles and a few scripts into the page itself.
CONTENT_POLICY = (
    "default-src 'self'; img-src 'self' data: blob:; style-src 'self' 'unsafe-inline'; "
    "script-src 'self' 'unsafe-inline'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)
TYPES = {"png": "image/png", "svg": "image/svg+xml", "csv": "text/csv; charset=utf-8"}
_drawing = threading.Lock()  # saving a picture changes settings of matplotlib, which belong to the whole process


@dataclass(frozen=True, kw_only=True, slots=True)
class Shown:
    """What a state looks like. answers, problems: for each side; a side has one of them. message: of the state."""

    state: states.State
    answers: tuple[Answer | None, ...]
    problems: tuple[str, ...]
    message: str


def make_app(subject: Subject, start: states.State, *, host: str) -> flask.Flask:
    """The application as any WSGI server takes it. host: that it will listen on.

    Raises what cannot be shown at the start.
    """
    server = flask.Flask("explore")
    used: Any = server  # what dash says of the type that it takes is narrower than what it takes
    app = Dash(
        "explore",
        server=used,
        title=f"{', '.join(subject.versions)} - explore",
        update_title="",
        assets_folder=str(Path(__file__).with_name("assets")),
        serve_locally=True,
        meta_tags=[{"name": "viewport", "content": "width=device-width, initial-scale=1"}],
        index_string=index_string(),
        add_log_handler=False,
        enable_mcp=False,
    )
    app.layout = layout(subject, start, subject.answer(start, start.sides[0]))
    app.enable_dev_tools(debug=False, dev_tools_disable_version_check=True)
    lock = threading.Lock()
    _guard(server, host)
    _answer_moves(app, subject, start, lock)
    _answer_exports(server, subject, start, lock)
    return server


def look(subject: Subject, state: states.State, message: str = "") -> Shown:
    """Ask for both sides; what cannot be answered becomes its problem."""
    answers: list[Answer | None] = []
    problems = []
    for side in state.sides:
        try:
            answers.append(subject.answer(state, side))
            problems.append("")
        except MemoryIndexError as error:
            answers.append(None)
            problems.append(problem(error))
    return Shown(state=state, answers=tuple(answers), problems=tuple(problems), message=message)


def _answer_moves(app: Dash, subject: Subject, start: states.State, lock: threading.Lock) -> None:
    """Register the callbacks: one on this server for every move, and three that run in the browser."""
    in_browser: Any = app.clientside_callback
    in_browser(ClientsideFunction("explorer", "theme"), Output("dark", "data"), Input("address", "pathname"))
    # A drag says where it is at every pixel; the server is asked when it has paused.
    in_browser(ClientsideFunction("explorer", "drag"), Input("slider", "value"), State("row", "data"))
    for n in SIDES:
        in_browser(ClientsideFunction("explorer", "table"), Input(f"rows-{n}", "data"), State(f"table-{n}", "id"))
    inputs = {
        "address": Input("address", "search"),
        "dark": Input("dark", "data"),
        "history": Input("history", "clickData"),
        "dragged": Input("dragged", "data"),
        **{name: Input(name, "n_clicks") for name in BUTTONS},
        **{name: Input(name, "value") for name in (*CONTROLS, *_known_controls(subject))},
        **{f"{name}-{n}": Input(f"{name}-{n}", "value") for n in SIDES for name in SIDE_CONTROLS},
    }

    @app.callback(output=_outputs(subject), inputs={"values": inputs})
    def move(values: dict[str, Any]) -> dict[str, Any]:
        dark, control = bool(values.pop("dark")), ctx.triggered_id
        state, message = start, ""
        with lock:
            try:
                state = subject.checked(from_address(values["address"] or "", start))
                if control in values and control != "address":
                    state = moved(subject, state, str(control), values)
            except MemoryIndexError as error:
                message = problem(error)
            return _page_of(subject, look(subject, state, message), values, dark=dark)


def _known_controls(subject: Subject) -> list[str]:
    """The names of the controls of known columns."""
    return [f"{KNOWN}{number}" for number in range(len(subject.known))]


def _outputs(subject: Subject) -> dict[str, Any]:
    outputs = {
        "address": Output("address", "search"),
        "history": Output("history", "figure"),
        "clicked": Output("history", "clickData"),
        "said-history": Output("said-history", "children"),
        "message": Output("message", "children"),
        "no-message": Output("message", "hidden"),
        "sides": Output("sides", "className"),
        "slider-max": Output("slider", "max"),
        "slider": Output("slider", "value"),
        "row": Output("row", "data"),
        **{name: Output(name, "value") for name in (*CONTROLS, *_known_controls(subject))},
        **{f"{name}-name": Output(f"{name}-name", "children") for name in _known_controls(subject)},
    }
    for n in SIDES:
        outputs |= {
            f"hidden-{n}": Output(f"side-{n}", "hidden"),
            f"windows-{n}": Output(f"windows-{n}", "figure"),
            f"gate-{n}": Output(f"gate-{n}", "figure"),
            f"ungated-{n}": Output(f"gated-{n}", "hidden"),
            f"said-{n}": Output(f"said-{n}", "children"),
            f"warned-{n}": Output(f"warned-{n}", "children"),
            f"rows-{n}": Output(f"rows-{n}", "data"),
            f"scope-options-{n}": Output(f"scopes-{n}", "options"),
            f"view-options-{n}": Output(f"views-{n}", "options"),
            **{f"{name}-{n}": Output(f"{name}-{n}", "value") for name in SIDE_CONTROLS},
            **{f"{kind}-{n}": Output(f"{kind}-{n}", "href") for kind in EXPORTS},
        }
    return outputs


def _page_of(subject: Subject, shown: Shown, values: dict[str, Any], *, dark: bool) -> dict[str, Any]:
    """Every output of a move. Where something was refused, the field keeps what was typed into it."""
    state, series = shown.state, subject.table[shown.state.series_id]
    row, address = subject.row(state), to_address(state)
    page: dict[str, Any] = {
        "address": no_update if address == values["address"] else address,
        "history": history_figure(subject.table, state, row, shown.answers, dark=dark),
        "clicked": None,  # or a second click at the same place would be none
        "said-history": what(subject, state.series_id, state.at),
        "message": shown.message,
        "no-message": not shown.message,
        "sides": "sides two" if len(state.sides) == len(SIDES) else "sides",
        "slider-max": len(series) - 1,
        "series": state.series_id,
        "typed": no_update if shown.message and ctx.triggered_id == "typed" else minute(state.at),
        "slider": row,
        "row": row,
        "k": state.k,
        "gap": state.min_gap,
        "compare": ["Compare"] if len(state.sides) == len(SIDES) else [],
    }
    for number, column in enumerate(subject.known):
        value = known_value(state, column)
        page |= {f"{KNOWN}{number}": value, f"{KNOWN}{number}-name": known_name(column, value)}
    for n in SIDES:
        page |= _side_of(subject, shown, n, address, dark=dark)
    # What a control shows already is not set again: each part of the page that is costs the browser some of the time.
    shows = {name: value for name, value in values.items() if name in page and name not in ("address", "history")}
    return page | {name: no_update for name, value in shows.items() if value == page[name]}


def _side_of(subject: Subject, shown: Shown, n: int, address: str, *, dark: bool) -> dict[str, Any]:
    """The outputs of one side."""
    if n > len(shown.state.sides):
        names = [name for name in _outputs(subject) if name.endswith(f"-{n}") and name != f"hidden-{n}"]
        return {f"hidden-{n}": True} | dict.fromkeys(names, no_update)
    side, answer = shown.state.sides[n - 1], shown.answers[n - 1]
    version = subject.versions[side.ref]
    figure: Figure = empty_figure(dark=dark)
    gate, said, lines, listed = figure, "", [shown.problems[n - 1]], None
    if answer is not None:
        limits, with_run = common_limits(shown.answers), subject.run is not None
        figure = windows_figure(answer, subject.table.step, limits=limits, dark=dark, with_run=with_run)
        gate = gate_figure(answer, dark=dark)
        said, lines = sentence(answer, subject.run, shown.state.known), warned(answer, subject.run)
        listed = {"columns": columns(answer.found), "text": TEXT_COLUMNS, "rows": rows(answer.found)}
    return {
        f"hidden-{n}": False,
        f"windows-{n}": figure,
        f"gate-{n}": gate,
        f"ungated-{n}": answer is None or answer.explained is None,
        f"said-{n}": said,
        f"warned-{n}": [{"type": "P", "namespace": "dash_html_components",
                         "props": {"children": line, "className": "warning"}} for line in lines],
        f"rows-{n}": listed,
        f"scope-options-{n}": list(version.scopes),
        f"view-options-{n}": list(version.views),
        f"ref-{n}": side.ref,
        f"scopes-{n}": list(version.scopes if side.scopes is None else side.scopes),
        f"views-{n}": list(version.views if side.views is None else side.views),
        **{f"{kind}-{n}": f"export/{n}/neighbours.{kind}{address}" for kind in EXPORTS},
    }  # fmt: skip


def _answer_exports(server: flask.Flask, subject: Subject, start: states.State, lock: threading.Lock) -> None:
    """The picture and the table of one side of the state in the address, as files."""

    @server.get("/export/<int:number>/neighbours.<kind>")
    def export(number: int, kind: str) -> flask.Response:
        if kind not in TYPES:
            flask.abort(404)
        try:
            with lock:
                state = subject.checked(from_address(flask.request.query_string.decode("ascii", "replace"), start))
                if not 1 <= number <= len(state.sides):
                    flask.abort(404)
                answer = subject.answer(state, state.sides[number - 1])
        except MemoryIndexError as error:
            return flask.Response(problem(error) + "\n", status=400, mimetype="text/plain")
        response = flask.Response(_exported(answer, kind, state.known), content_type=TYPES[kind])
        at = "".join(c if c.isalnum() else "-" for c in f"{state.series_id}-{minute(state.at)}")
        response.headers.set("Content-Disposition", "attachment", filename=f"{at}.{kind}")
        return response


def _exported(answer: Answer, kind: str, known: tuple[str, ...]) -> bytes:
    """One side as PNG, SVG (the picture of `cli index neighbours --plot`) or CSV."""
    if kind == "csv":
        return as_csv(answer.found).encode()
    from cli.pictures.look import save
    from cli.pictures.neighbours import draw_neighbours

    name = answer.version.ref + asked_with(known)
    with tempfile.TemporaryDirectory() as folder, _drawing:
        path = Path(folder) / f"neighbours.{kind}"
        save(draw_neighbours(answer.found, answer.version.memory.windows, name), path)
        return path.read_bytes()


def _guard(server: flask.Flask, host: str) -> None:
    """Refuse whoever calls this machine by a foreign name (DNS rebinding), and let pages load from here only."""

    @server.before_request
    def refuse() -> flask.Response | None:
        if host_allowed(flask.request.host, host):
            return None
        return flask.Response("this host name is not answered here\n", status=400, mimetype="text/plain")

    @server.after_request
    def protect(response: flask.Response) -> flask.Response:
        response.headers["Content-Security-Policy"] = CONTENT_POLICY
        response.headers["X-Content-Type-Options"] = "nosniff"
        response.headers["Referrer-Policy"] = "no-referrer"
        return response


def host_allowed(asked: str, bound: str) -> bool:
    """Whether a `Host` header names this machine: by an address, which no foreign name server can give, `localhost`,
    the name that it listens on, or its own.
    """
    name = asked.rpartition(":")[0] if asked.rpartition(":")[2].isdecimal() else asked
    name = name.removeprefix("[").removesuffix("]").rstrip(".").lower()
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return name in {"localhost", bound.lower(), *([] if is_loopback(bound) else [socket.gethostname().lower()])}
    return not is_loopback(bound) or is_loopback(name)


class _Quiet(WSGIRequestHandler):
    """Answers without a line in the log for each request."""

    def log_request(self, *_: Any) -> None:
        """Say nothing."""


def listen(app: flask.Flask, host: str, port: int) -> BaseWSGIServer:
    """A server that is bound, and answers once it is told to `serve_forever`. port 0: any that is free.

    Raises `ServiceError` if it cannot be bound.
    """
    with listen_on(host, port) as listening:  # the server duplicates it
        return make_server(
            host, listening.getsockname()[1], app, threaded=True, request_handler=_Quiet, fd=listening.fileno()
        )
