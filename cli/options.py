"""Every option that more than one command takes, and those of the commands with many: types, defaults and help.

Options that belong together reach a command as one record:

@app.command()
@reads_table
@asks_memory
def evaluate(file: Annotated[Path, ...], *, indexes: Indexes, table_options: ReadOptions) -> None: ...
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from cli.output import note

if TYPE_CHECKING:
    from memory_index.origins import Schedule
    from memory_index.references import FoundVersion
    from memory_index.service.settings import Settings
    from memory_index.tables.columns import ReadOptions


# Options that reach a command as one record


# Types of records, which commands import for the type checker only. typer never sees them.
RECORDS = {"ReadOptions": object, "Settings": object, "KnownAhead": object}


def with_record(
    command: Callable[..., None],
    name: str,
    options: Mapping[str, tuple[Any, Any]],
    record: Callable[[dict[str, Any]], object],
) -> Callable[..., None]:
    """Give a command these options in the place of its argument `name`, which is what `record` makes of them.

    options: by name, type and default of each.
    """

    @wraps(command)
    def with_options(**arguments: Any) -> None:
        given = {each: arguments.pop(each) for each in options}
        command(**arguments, **{name: record(given)})

    # typer reads the signature: the command's own parameters, with the record replaced by its options.
    own = get_type_hints(command, localns=RECORDS, include_extras=True)
    keyword = inspect.Parameter.KEYWORD_ONLY
    taken = [
        inspect.Parameter(each, keyword, default=default, annotation=kind) for each, (kind, default) in options.items()
    ]
    parameters: list[inspect.Parameter] = []
    for each in inspect.signature(command).parameters.values():
        parameters += taken if each.name == name else [each.replace(kind=keyword, annotation=own[each.name])]
    with_options.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    with_options.__annotations__ = {each.name: each.annotation for each in parameters}
    return with_options


# Options that commands share, each by itself


File = Annotated[Path, typer.Argument(help="CSV or Parquet, wide or long.", show_default=False)]
IndexedFile = Annotated[Path, typer.Argument(help="The table that the index was built on.", show_default=False)]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
NeighboursDir = Annotated[
    Path | None, typer.Option(help="Where found neighbours are kept.", show_default=".neighbours beside --out")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]

SetKnown = Annotated[
    list[str] | None,
    typer.Option(
        "--set-known",
        metavar="NAME=VALUE",
        help="A scenario: set a known covariate over the horizon (temperature=5), or change it (temperature+=5); "
        "repeatable.",
    ),
]
Strict = Annotated[
    bool, typer.Option("--strict", help="A series that cannot take part is an error (exit code 3), not a note.")
]

# Of commands that ask a run, or a memory alone.
REF = "NAME, NAME@3, NAME@alias or an address"
RunFolder = Annotated[Path | None, typer.Option("--run", help="Folder of a run that 'cli train' made.")]
RunLlm = Annotated[
    str | None,
    typer.Option(
        help="With --run: where its language model lies now, if it has moved: a folder or ID@REVISION.",
        show_default="where it was",
    ),
]
RunDevice = Annotated[str, typer.Option(help="With --run: auto, cpu or cuda.")]

RunState = Annotated[
    int | None,
    typer.Option(
        "--state",
        min=0,
        help="With --run: use this state of it, 0 as it was trained; 'cli run show' lists them.",
        show_default="the one that it uses",
    ),
]
HalfLife = Annotated[
    str | None,
    typer.Option(
        help="With --run: what is learned counts half after so long (26w, 90d, or a number of steps); none forgets "
        "nothing.",
        show_default="none, or what the run's state has",
    ),
]

Index = Annotated[
    str | None,
    typer.Option(
        "--index",
        metavar="REF",
        help=f"{REF}; with --run a newer version of the run's own, or where that lies now.",
    ),
]
MemoryK = Annotated[
    int | None,
    typer.Option(help="Without --run: neighbours per key space that make the forecast.", min=1, show_default="50"),
]
Scopes = Annotated[str | None, typer.Option(help="Without --run: own,joint,pooled. Default: all that can be asked.")]
Views = Annotated[str | None, typer.Option(help="Without --run: compare only the last so many steps, as 96,336.")]
OnEmpty = Annotated[
    str | None,
    typer.Option(
        help="Without --run: a window without neighbours is an error, or its last-value.", show_default="error"
    ),
]


# Of `cli index`


DEFAULT_DIR = Path("indexes")

Ref = Annotated[str, typer.Argument(metavar="REF", help="NAME, NAME@3 or NAME@alias.", show_default=False)]
IndexesDir = Annotated[Path, typer.Option("--indexes-dir", help="Folder of the indexes.")]


# Where a memory is found


IndexRef = Annotated[str, typer.Option("--index", metavar="REF", help=f"{REF}.", show_default=False)]
TOKEN_FILE = typer.Option("--token-file", help="For an address: file with the token to show.")
TLS_CA = typer.Option("--tls-ca", help="For an address: PEM file of the authority to believe.")

# Type and default by name.
MEMORY_OPTIONS: dict[str, tuple[Any, Any]] = {
    "indexes_dir": (IndexesDir, DEFAULT_DIR),
    "token_file": (Annotated[Path | None, TOKEN_FILE], None),
    "tls_ca": (Annotated[Path | None, TLS_CA], None),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Indexes:
    """Where references lead: a folder of versions, and what is shown to and believed of others."""

    folder: Path
    token_file: Path | None = None
    tls_ca: Path | None = None

    def find(self, ref: str) -> FoundVersion:
        """What a reference means. Raises what `memory_index.references.find` raises, and what reading files does."""
        from memory_index.access import read_access
        from memory_index.references import find

        is_given = self.token_file is not None or self.tls_ca is not None
        access = read_access(self.token_file, self.tls_ca) if is_given else None
        return find(self.folder, ref, access=access, note=note)

    @property
    def flags(self) -> list[str]:
        """The flags that make it, without those that say the default."""
        given = {"--indexes-dir": self.folder, "--token-file": self.token_file, "--tls-ca": self.tls_ca}
        return [part for flag, path in given.items() if path not in (None, DEFAULT_DIR) for part in (flag, str(path))]


def asks_memory(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command these options, and hand them to its keyword argument `indexes` as an `Indexes`."""

    def record(given: dict[str, Any]) -> Indexes:
        return Indexes(folder=given["indexes_dir"], token_file=given["token_file"], tls_ca=given["tls_ca"])

    return with_record(command, "indexes", MEMORY_OPTIONS, record)


# How a data file is read


FILL = (
    "keep (it stays missing and counts for nothing), error, drop (windows that touch it are not used), ffill (the last "
    "value before; knows nothing later) or interpolate (a straight line; a filled cell then knows the NEXT observed "
    "value, flattering scores there)"
)
COLUMNS = "Read only these variates or series: A,B. For a name with a comma in it, --ignore the others."


def _text(flag: str, text: str) -> Any:
    return typer.Option(flag, help=text)


# name: (type, default). Lists become tuples, and an option that is not given leaves the default of ReadOptions.
TABLE_OPTIONS: dict[str, tuple[Any, Any]] = {
    "layout": (Annotated[str | None, _text("--layout", "wide or long; detected if not given.")], None),
    "time_column": (Annotated[str | None, _text("--time-column", "Column of the times.")], None),
    "id_column": (
        Annotated[
            str | None, _text("--id-column", "Long table: column that names the series, or several: store,item.")
        ],
        None,
    ),
    "value_column": (Annotated[str | None, _text("--value-column", "Long table: column of the values.")], None),
    "columns": (Annotated[str | None, _text("--columns", COLUMNS)], None),
    "ignore": (
        Annotated[list[str] | None, _text("--ignore", "Leave out a column or series; may be repeated.")],
        None,
    ),
    "missing": (Annotated[list[str] | None, _text("--missing", "A cell that means no value, such as -999.")], None),
    "decimal": (
        Annotated[
            str | None,
            _text("--decimal", "Decimal mark of a CSV file, ',' or '.'; the other one separates thousands then."),
        ],
        None,
    ),
    "step": (
        Annotated[str | None, _text("--step", "pandas frequency (h, 15min, D, B, MS); found if not given.")],
        None,
    ),
    "time_format": (Annotated[str | None, _text("--time-format", "strptime format, such as %d/%m/%Y %H:%M.")], None),
    "time_zone": (Annotated[str | None, _text("--time-zone", "Zone of the times, such as Europe/Berlin.")], None),
    "time_unit": (
        Annotated[str | None, _text("--time-unit", "Times are numbers: s, ms, us or ns since 1970 (UTC), or excel.")],
        None,
    ),
    "time_start": (
        Annotated[str | None, _text("--time-start", "Times are numbers that count steps: the time of the number 0.")],
        None,
    ),
    "on_gap": (Annotated[str, _text("--on-gap", f"Rows that are not there: {FILL}.")], "keep"),
    "on_nan": (Annotated[str, _text("--on-nan", "Cells without a value: as --on-gap.")], "keep"),
    "on_duplicate": (
        Annotated[
            str, _text("--on-duplicate", "Repeated times: error, same (one of equal rows), first, last or mean.")
        ],
        "error",
    ),
    "max_cells": (Annotated[int | None, _text("--max-cells", "Refuse larger files.")], None),
    "known": (
        Annotated[
            list[str] | None,
            _text("--known", "A covariate whose future is known (price, holiday, weather forecast); may be repeated."),
        ],
        None,
    ),
    "observed": (
        Annotated[list[str] | None, _text("--observed", "A covariate known up to now only; may be repeated.")],
        None,
    ),
    "static": (
        Annotated[list[str] | None, _text("--static", "A covariate with one value per series; may be repeated.")],
        None,
    ),
    "calendar": (
        Annotated[
            str | None,
            _text("--calendar", "Known covariates made of the times: auto, or hour,weekday,day,week,month,quarter."),
        ],
        None,
    ),
    "vintages": (
        Annotated[
            str | None,
            _text("--vintages", "Known covariates as they were issued: a file with ds, issued_at and the values."),
        ],
        None,
    ),
    "holidays": (
        Annotated[str | None, _text("--holidays", "A known covariate 'holiday': of a country (DE) or part (DE-BY).")],
        None,
    ),
}
REPEATED = ("ignore", "missing", "known", "observed", "static")
BY_COMMAS = ("columns", "calendar")


def reads_table(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command these options, and hand them to its keyword argument `table_options` as a `ReadOptions`."""

    def record(given: dict[str, Any]) -> ReadOptions:
        from memory_index.tables.columns import ReadOptions

        given |= {
            name: tuple(each.strip() for each in given[name].split(","))
            for name in BY_COMMAS
            if given[name] is not None
        }
        given |= {name: tuple(given[name]) for name in REPEATED if given[name] is not None}
        return ReadOptions(**{name: value for name, value in given.items() if value is not None})

    return with_record(command, "table_options", TABLE_OPTIONS, record)


@dataclass(frozen=True, kw_only=True, slots=True)
class KnownAhead:
    """What is said of known covariates after the last target value: a table of the future, and a scenario."""

    future: Path | None = None
    set_known: list[str] | None = None


AHEAD_OPTIONS = {
    "future": (
        Annotated[
            Path | None,
            typer.Option(
                help="Table of the known covariates of the next steps ('cli data future' makes one), or of vintages."
            ),
        ],
        None,
    ),
    "set_known": (SetKnown, None),
}


def reads_future(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command these options, and hand them to its keyword argument `ahead` as a `KnownAhead`."""
    return with_record(command, "ahead", AHEAD_OPTIONS, lambda given: KnownAhead(**given))


def reading_flags(options: ReadOptions) -> list[str]:
    """The flags that make these reading options, without those that say the default or that a version remembers."""
    from memory_index.tables.covariate_roles import ROLES
    from memory_index.tables.recorded_roles import NAMING

    remembered, flags = {"recorded", "remembered", *NAMING, *ROLES, "calendar", "holidays"}, []
    for field in fields(options):
        value = getattr(options, field.name)
        if value == field.default or field.name in remembered:
            continue
        values = value if isinstance(value, tuple) else (value,)
        values = (",".join(values),) if field.name in (*BY_COMMAS, "id_column") else values
        flags += [part for each in values for part in (f"--{field.name.replace('_', '-')}", str(each))]
    return flags


# What is scored, and what is shown of it


BY, SCALED_BY = ("series", "step"), ("training", "origin")


def _text_option(default: str | bool, text: str) -> tuple[Any, Any]:
    return Annotated[str | None, typer.Option(help=text, show_default=default)], None


# Type and default by name.
SCORING_OPTIONS: dict[str, tuple[Any, Any]] = {
    "every": _text_option("every step", "Only origins this far apart on the clock, as 24h or 7d."),
    "at": _text_option(False, "And at this time of day, in the table's time zone, as 23:00."),
    "baselines": (
        Annotated[bool, typer.Option("--baselines", help="Also score every key space by itself.")],
        False,
    ),
    "by": (
        Annotated[list[str] | None, typer.Option(help="Also list scores by series or by step; may be repeated.")],
        None,
    ),
    "scaled_by": _text_option("training", "Seasonal naive error that scales MASE: of training, or up to each origin."),
    "quantiles": _text_option(
        "with --run 0.1 to 0.9, else none",
        "Levels to score, or none. Those of the memory alone take three times as long.",
    ),
    "out": (Annotated[Path | None, typer.Option(help="Also write every forecast: a .csv or .parquet file.")], None),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Scoring:
    """Which origins are scored, how, and what is shown. quantiles: as typed, None if nothing was."""

    schedule: Schedule | None
    baselines: bool
    by: tuple[str, ...]
    scaled_by: str
    quantiles: str | None
    out: Path | None


# Of a backtest: each of these differs from the one above, and key spaces by themselves are not scored.
BACKTEST_OPTIONS = {
    **{name: option for name, option in SCORING_OPTIONS.items() if name != "baselines"},
    "every": _text_option("24h; steps of a day or more: every step", "Time from one origin to the next, as 24h or 7d."),
    "quantiles": _text_option("0.1 to 0.9", "Levels to recalibrate and to score, or none."),
    "out": (
        Annotated[
            Path | None,
            typer.Option(
                help="Write every forecast: a .csv or .parquet file. A backtest that was stopped goes on from there."
            ),
        ],
        None,
    ),
}


def scores(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command these options, and hand them to its keyword argument `scoring` as a `Scoring`.

    The command raises `UsageError` for a choice that there is not.
    """
    return with_record(command, "scoring", SCORING_OPTIONS, _scoring)


def scores_backtest(command: Callable[..., None]) -> Callable[..., None]:
    """Likewise, with the options of a backtest."""
    return with_record(command, "scoring", BACKTEST_OPTIONS, _scoring)


def _scoring(given: dict[str, Any]) -> Scoring:
    from memory_index.errors import UsageError
    from memory_index.origins import parse_schedule

    by, scaled_by = tuple(given.pop("by") or ()), given.pop("scaled_by") or SCALED_BY[0]
    for flag, typed, known in (("--by", by, BY), ("--scaled-by", (scaled_by,), SCALED_BY)):
        if unknown := [each for each in typed if each not in known]:
            raise UsageError(f"{flag} {unknown[0]}: there is no such choice", hint=f"choose {' or '.join(known)}")
    schedule = parse_schedule(given.pop("every"), given.pop("at"))
    return Scoring(schedule=schedule, by=by, scaled_by=scaled_by, **{"baselines": False, **given})


# How a service is reached, and what it allows


def _count(default: str, text: str) -> tuple[Any, Any]:
    return Annotated[int | None, typer.Option(help=text, min=1, show_default=default)], None


def _host(default: str, text: str) -> tuple[Any, Any]:
    return Annotated[str | None, typer.Option(help=text, show_default=default)], None


def _port(default: str, text: str) -> tuple[Any, Any]:
    return Annotated[int | None, typer.Option(help=text, min=0, max=65535, show_default=default)], None


def _file(text: str) -> tuple[Any, Any]:
    return Annotated[Path | None, typer.Option(help=text)], None


def _flag(flag: str, text: str) -> tuple[Any, Any]:
    return Annotated[bool, typer.Option(flag, help=text)], False


# Type and default by name, those of `Settings` and of its `Limits`, which keep their defaults for what is not given.
SERVE_OPTIONS: dict[str, tuple[Any, Any]] = {
    "host": _host("127.0.0.1", "Where to listen; beyond this machine only with a token."),
    "port": _port("8815", "0 takes any that is free."),
    "token_file": _file("Who may ask: a token on each line, if you like a name before it."),
    "tls_cert": _file("Certificate (PEM): speak TLS."),
    "tls_key": _file("Its key (PEM)."),
    "causal_only": _flag("--causal-only", "Refuse the policy disjoint, which sees past the origin."),
    "max_windows": _count("8192", "Windows: moments times series."),
    "max_k": _count("1024", "Neighbours per key space."),
    "max_message_mb": _count("32", "Size of a message. Clients ask in parts."),
    "max_seconds": (
        Annotated[
            float | None,
            typer.Option(help="To wait for a turn, and again to search.", min=0.1, show_default="60.0"),
        ],
        None,
    ),
    "max_connections": _count("256", "Connections at once."),
    "max_waiting": _count("64", "Questions that may wait for their turn."),
    "max_memory_mb": _count("1024", "Memory for all questions at once, beside the versions."),
    "access_log": _file("Append a JSON line for every call; no value of the data."),
}


def serves(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command these options, and hand them to its argument `settings` as a `Settings`.

    The command raises what `Settings` and `Limits` do.
    """

    def record(given: dict[str, Any]) -> Settings:
        from memory_index.service.settings import Settings
        from memory_index.wire import Limits

        stated = {name: value for name, value in given.items() if value is not None}
        if "max_message_mb" in stated:
            stated["max_message"] = stated.pop("max_message_mb") << 20
        if "max_memory_mb" in stated:
            stated["max_held"] = stated.pop("max_memory_mb") << 20
        limits = {each.name: stated.pop(each.name) for each in fields(Limits) if each.name in stated}
        return Settings(**stated, limits=Limits(**limits))

    return with_record(command, "settings", SERVE_OPTIONS, record)


# The settings of a training


def _any_setting(config: str, preset: str, set_: str) -> dict[str, tuple[Any, Any]]:
    """The options that can state every setting, described by these texts."""
    return {
        "config": (Annotated[Path | None, typer.Option(help=config)], None),
        "preset": (Annotated[str | None, typer.Option(help=preset)], None),
        "set_": (Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help=set_)], None),
    }


def _value(kind: type, default: str, text: str) -> tuple[Any, Any]:
    """The option of a setting. It is None where it is not given; default: what the setting is then."""
    return Annotated[kind | None, typer.Option(help=text, show_default=default)], None


def _switch(flag: str, value: bool, text: str) -> tuple[Any, Any]:
    """The flag that makes a setting this value. It is None where it is not given."""

    def switched(given: bool) -> bool | None:
        return value if given else None

    return Annotated[bool, typer.Option(flag, callback=switched, help=text)], False


# Type and default by name: settings have the names that they have in the library.
OF_ALL = _any_setting(
    "TOML file of settings; options on the line win.",
    "A network for a GPU: 6gb, 8gb, 12gb or 15gb.",
    "Any setting by name.",
)
OF_FULL_MODEL = _any_setting(
    "TOML file of settings of the full model.",
    "Settings for a GPU: 6gb, 8gb, 12gb or 15gb.",
    "Any setting of the full model by name.",
)
SETTINGS: dict[str, tuple[Any, Any]] = {
    "llm": _value(str, "builtin:tiny", "builtin:tiny, a folder, or ID@REVISION."),
    "llm_layers": _value(int, "all", "Use its first so many layers."),
    "lookback": _value(int, "the index's", "Steps that the model reads."),
    "horizon": _value(int, "the index's", "Steps to forecast."),
    "use_network": _switch("--network", True, "Also train the network: TAPR, gating of features, language model."),
    "use_tapr": _switch("--no-tapr", False, "Without the several scales and trend classes."),
    "use_gram": _switch("--no-gram", False, "Without retrieved neighbours."),
    "use_llm": _switch("--no-llm", False, "Without the language model."),
    "use_shortcut": _switch("--no-shortcut", False, "Without linear map and last value."),
    "n_scales": _value(int, "3", "Resolutions of TAPR: 2, 3 or 4."),
    "lambda_trend": _value(float, "0.1", "Weight of the trend loss."),
    "top_k": _value(int, "5", "Neighbours that the network looks at one by one."),
    "memory_k": _value(int, "50", "Neighbours per key space that make its forecast."),
    "lambda_retrieval": _value(float, "0.1", "Weight of the retrieval loss."),
    "policy": _value(str, "disjoint", "What training windows may retrieve: disjoint or causal."),
    "max_work": _value(float, "3e+12", "Operations to find the neighbours of all windows; more are thinned out."),
    "prompt_layout": _value(str, "spec", "spec, or cached: text first, much faster."),
    "vocabulary_mapping": _switch("--vocabulary-mapping", True, "Learn text prototypes as the original does: slow."),
    "epochs": _value(int, "3", "Passes of the network, at most."),
    "batch_size": _value(int, "224", "Windows per step of the network."),
    "seed": _value(int, "0", "Of everything random in the network."),
    "save_steps": _value(int, "500", "Steps between checkpoints."),
    "save_total_limit": _value(int, "3", "Checkpoints to keep."),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class StatedSettings:
    """What a command line says of the settings of a training.

    config: a file of them. preset: for a GPU. values: of options of their own, by name. texts: of `--set`.
    """

    config: Path | None
    preset: str | None
    values: Mapping[str, Any]
    texts: Sequence[str]

    @property
    def names(self) -> set[str]:
        """Names of the settings that are stated by options."""
        return {*self.values, *(text.partition("=")[0].strip() for text in self.texts)}


def states_settings(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of all settings, and hand them to its argument `stated` as a `StatedSettings`."""
    return with_record(command, "stated", OF_ALL | SETTINGS, _record)


def states_full_model(command: Callable[..., None]) -> Callable[..., None]:
    """Likewise, without options for single settings."""
    return with_record(command, "stated", OF_FULL_MODEL, _record)


def _record(given: dict[str, Any]) -> StatedSettings:
    values = {name: given[name] for name in SETTINGS if given.get(name) is not None}
    return StatedSettings(config=given["config"], preset=given["preset"], values=values, texts=given["set_"] or ())
