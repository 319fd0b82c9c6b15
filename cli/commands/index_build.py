"""`cli index build`, `append` and `compact`: the commands that make a version."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.opening import encoder_loader, read_like, tell_skipped
from cli.options import DEFAULT_DIR, AsJson, File, IndexesDir, Ref, Strict, reading_flags, reads_table
from cli.output import note, print_json, progress
from cli.parsing import choose_split, names, numbers
from cli.reports.version_report import describe_bytes, parent_ref, print_version, version_document

if TYPE_CHECKING:
    from memory_index.encoder import EncoderConfig
    from memory_index.origins import Schedule
    from memory_index.tables.columns import ReadOptions
    from memory_index.tables.series import SeriesTable
    from memory_index.versions.budget import Budget
    from memory_index.versions.version import Version
    from memory_index.windows import WindowSpec

DUAL, PATTERN = "dual", "pattern"  # kinds of encoders
MANY_SEGMENTS = 16  # every search visits each of them
UNTIL = "ISO 8601; without a UTC offset it is in the table's own time zone"


# Options of `build`

MaxMissing = Annotated[
    float | None,
    typer.Option(
        help="Share of a view's steps that may be missing in a window; 0 stores and asks whole windows only.",
        show_default="0.75",
    ),
]
Name = Annotated[
    str, typer.Option(help="Name of the index; a name that exists gets a new version.", show_default=False)
]
Lookback = Annotated[
    int,
    typer.Option(
        help="Steps of a window that a forecast is made from; how many of them are compared, --views says.",
        show_default=False,
    ),
]
Horizon = Annotated[int, typer.Option(help="Steps after them that are kept as what followed.", show_default=False)]
SplitName = Annotated[
    str | None,
    typer.Option(
        help="Shares of training, validation and test rows, or ett-hourly. Only the training part is stored.",
        show_default="70/10/20",
    ),
]
Until = Annotated[str | None, typer.Option(help=f"Store what is known by this time, or `end`: all. {UNTIL}.")]
ValUntil = Annotated[str | None, typer.Option(help="With --until: end of the validation part.")]
Stride = Annotated[int, typer.Option(help="Steps between the origins of two stored windows.")]
Every = Annotated[
    str | None,
    typer.Option(
        help="Store only windows with origins this far apart on the clock, as 24h: train and evaluate then do too.",
        show_default="every step",
    ),
]
At = Annotated[
    str | None,
    typer.Option(help="And at this time of day, in the table's time zone, as 23:00.", show_default=False),
]
Memory = Annotated[
    str | None,
    typer.Option(
        "--budget",
        help="Peak memory, such as 8GB. A longer stride, then fewer views and scopes, are chosen to stay within it, "
        "and told; what is asked for by its own option stays.",
    ),
]
Views = Annotated[
    str | None,
    typer.Option(
        help="Compare the last so many steps of the lookback, each by itself; those before the largest are not.",
        show_default="those of 96,168,336 that fit, or the lookback",
    ),
]
Scopes = Annotated[
    str | None,
    typer.Option(help="Whose windows are searched: own, joint, pooled.", show_default="all that the table allows"),
]
KnownDelay = Annotated[
    int, typer.Option(help="Steps until a stored value is published; queries know their own context.")
]
Factory = Annotated[str, typer.Option(help="auto, Flat (exact), or a FAISS factory string, as HNSW32 or IVF1024,SQ8.")]
ShapeWeight = Annotated[
    float | None,
    typer.Option(help="Weight of the shape against level and spread, 0 to 1.", show_default="0.9"),
]
SpreadFloor = Annotated[
    float | None,
    typer.Option(help="Least spread of a window, in its series' training deviations.", show_default="0.3"),
]
Transform = Annotated[
    str,
    typer.Option(
        help="Units in which windows are compared and averaged: none, asinh (spikes on both sides), log1p (counts; "
        "values above -1), or auto, by the tails of the training values. Files and forecasts keep their own units."
    ),
]
Encoder = Annotated[
    str,
    typer.Option(
        help="How windows become keys: dual (closed form), or pattern (a network; trained now, which takes "
        "minutes, and compared with dual)."
    ),
]


@reads_table
def build(
    file: File,
    name: Name,
    lookback: Lookback,
    horizon: Horizon,
    split: SplitName = None,
    until: Until = None,
    val_until: ValUntil = None,
    stride: Stride = 1,
    every: Every = None,
    at: At = None,
    views: Views = None,
    scopes: Scopes = None,
    known_delay: KnownDelay = 0,
    factory: Factory = "auto",
    shape_weight: ShapeWeight = None,
    spread_floor: SpreadFloor = None,
    encoder: Encoder = DUAL,
    budget: Memory = None,
    transform: Transform = "none",
    max_missing: MaxMissing = None,
    strict: Strict = False,
    indexes_dir: IndexesDir = DEFAULT_DIR,
    as_json: AsJson = False,
    *,
    table_options: ReadOptions,
) -> None:
    """Build a version from the training part of a table.

    A window is LOOKBACK steps and the HORIZON steps that followed. A killed build leaves nothing behind that can be
    seen; a version never changes once it is published. Missing cells stay missing. A series without a window is named.
    """
    from memory_index.tables.reading import read_table
    from memory_index.versions import build as building
    from memory_index.versions.store import Store

    window = window_spec(lookback, horizon, stride=stride, known_delay=known_delay, max_missing=max_missing)
    how: dict[str, Any] = {"schedule": stored_schedule(every, at, stride), "factory": factory, "transform": transform}
    settings = encoder_config(numbers("--views", views), lookback, shape_weight=shape_weight, spread_floor=spread_floor)
    how["budget"] = memory_budget(budget, encoder, keep_views=views is not None)
    with progress(f"{name}: reading {file.name}, fitting and encoding its windows"):
        table = read_table(file, table_options)
        version = building.build(
            table,
            Store(indexes_dir),
            name,
            window=window,
            split=choose_split(table, split=split, until=until, val_until=val_until),
            encoder=settings,
            scopes=names(scopes),  # type: ignore[arg-type]  # judged by the library
            strict=strict,
            **(how | learned(encoder, table)),
        )
    show_notes(table)
    tell_skipped(version.manifest.built.skipped, "left out", source=file.name, strict=False)
    if as_json:
        print_json("index-build", version_document(version) | {"notes": version.manifest.built.notes})
        return
    print_version(version)
    note(f"next: {next_command(version, table, file, indexes_dir, table_options)}")


@reads_table
def append(
    ref: Annotated[str, typer.Argument(metavar="REF", help="NAME (its latest version) or NAME@3.", show_default=False)],
    file: Annotated[Path, typer.Argument(help="The whole history, or only new rows.", show_default=False)],
    until: Annotated[str | None, typer.Option(help=f"Use only what is known by this time. {UNTIL}.")] = None,
    strict: Strict = False,
    indexes_dir: IndexesDir = DEFAULT_DIR,
    as_json: AsJson = False,
    *,
    table_options: ReadOptions,
) -> None:
    """Make a new version with what has happened since.

    Nothing is fitted or encoded again, so its cost is in proportion to what is new. The version appended to stays as
    it is. Where FILE overlaps what is stored, both must agree. Each series is stored up to its own last value: one that
    lags goes on from there next time. Series of one only are named, and stop no other.
    """
    from memory_index.references import require_local
    from memory_index.versions import append as appending
    from memory_index.versions.manifest import segment_files
    from memory_index.versions.store import Store

    require_local(ref, "to append to it")
    store = Store(indexes_dir)
    manifest = store.resolve(ref).manifest
    with progress(f"{ref}: reading {file.name} and encoding its new windows"):
        table = read_like(file, manifest, ref, table_options)
        limit = None if until is None else table.step.parse(until)
        version = appending.append(store, ref, table, until=limit, load_encoder=encoder_loader(manifest), strict=strict)
    added = version.manifest.segments[-1]
    num_bytes = sum(record.bytes for record in segment_files(version.manifest, added).values())
    show_notes(table)
    if as_json:
        more = {"num_new_rows": added.num_rows, "new_bytes": num_bytes}
        print_json("index-append", version_document(version) | more)
    else:
        new = f"{added.num_rows:,} windows, {describe_bytes(num_bytes)}"
        print_version(version, ("made from", parent_ref(store, version)), ("new", new))
        tell_skipped(version.manifest.built.skipped, "nothing appended to", source=file.name, strict=False)
    suggest_compact(version, indexes_dir)


def compact(ref: Ref, indexes_dir: IndexesDir = DEFAULT_DIR, as_json: AsJson = False) -> None:
    """Merge the segments of a version into one, as a new version.

    Its windows and answers stay the same. Every append adds a segment, and every search visits all of them. The
    version that was compacted stays as it is: to free its space, remove it.
    """
    from memory_index.references import require_local
    from memory_index.versions import compact as compacting
    from memory_index.versions.store import Store

    require_local(ref, "to merge its segments")
    store = Store(indexes_dir)
    parent = store.resolve(ref)
    with progress(f"{parent.ref}: merging {len(parent.manifest.segments)} segments"):
        version = compacting.compact(store, parent.ref, load_encoder=encoder_loader(parent.manifest))
    if as_json:
        print_json("index-compact", version_document(version) | {"compacted_from": parent.ref})
    else:
        print_version(version, ("compacted from", f"{parent.ref}, {len(parent.manifest.segments)} segments"))


def stored_schedule(every: str | None, at: str | None, stride: int) -> Schedule | None:
    """Which origins are stored, by --every and --at; None for all. Raises `UsageError`."""
    from memory_index.errors import UsageError
    from memory_index.origins import schedule_of_a_version

    if (every or at) and stride > 1:
        raise UsageError("--stride and --every both say which windows are stored", hint="give one of them")
    return schedule_of_a_version(every, at)


def window_spec(lookback: int, horizon: int, *, stride: int, known_delay: int, max_missing: float | None) -> WindowSpec:
    """The shape of windows. max_missing: None for the default."""
    from memory_index.windows import WindowSpec

    window = WindowSpec(lookback=lookback, horizon=horizon, stride=stride, known_delay=known_delay)
    return window if max_missing is None else replace(window, max_missing=max_missing)


def require_encoder(kind: str) -> None:
    """Raise `UsageError` for a kind of encoder that there is not."""
    from memory_index.errors import UsageError

    if kind not in (DUAL, PATTERN):
        raise UsageError(f"unknown encoder '{kind}'", hint=f"choose {DUAL} or {PATTERN}")


def memory_budget(text: str | None, encoder: str, *, keep_views: bool) -> Budget | None:
    """What `--budget` asks for.

    Raises `UsageError` for what is no size, for keys that it cannot count, and for an encoder that there is not.
    """
    from memory_index.errors import UsageError
    from memory_index.versions.budget import Budget, parse_budget

    require_encoder(encoder)
    if text is None:
        return None
    if encoder != DUAL:
        raise UsageError(f"--budget does not know what an encoder of kind '{encoder}' takes", hint="leave one out")
    return Budget(num_bytes=parse_budget(text), keep_views=keep_views)


def learned(kind: str, table: SeriesTable) -> dict[str, Any]:
    """How `build` makes a learned encoder, as its options; none for the built-in one, which needs no torch."""
    if kind == DUAL:
        return {}
    from functools import partial

    from forecaster.learned_keys.compare_encoders import compare_with_built_in
    from forecaster.learned_keys.fit_pattern import fit_pattern_encoder

    return {"fit": fit_pattern_encoder, "review": partial(compare_with_built_in, table)}


def encoder_config(
    views: tuple[int, ...] | None, lookback: int, *, shape_weight: float | None, spread_floor: float | None
) -> EncoderConfig:
    """The settings of the key that were given; the others stay at their defaults."""
    from memory_index.encoder import EncoderConfig, default_views

    config = EncoderConfig(views=views or default_views(lookback))
    if shape_weight is not None:
        config = replace(config, shape_weight=shape_weight)
    return config if spread_floor is None else replace(config, spread_floor=spread_floor)


def show_notes(table: SeriesTable) -> None:
    """Say what the reader did to the file on request, and what it found worth a look."""
    for each in table.notes:
        note(f"note: {each}")


def suggest_compact(version: Version, indexes_dir: Path) -> None:
    """Say when a version has been appended to so often that searching it gets slow."""
    num_segments = len(version.manifest.segments)
    if num_segments > MANY_SEGMENTS:
        command = ["cli", "index", "compact", version.ref, *dir_flags(indexes_dir)]
        note(f"{version.ref} has {num_segments} segments, and every search visits them all: {shlex.join(command)}")


def next_command(version: Version, table: SeriesTable, file: Path, indexes_dir: Path, options: ReadOptions) -> str:
    """What to try next: the neighbours of the last window of the last series that is stored."""
    skipped = {each.series_id for each in version.manifest.built.skipped}
    series = next(each for each in reversed(table.series) if each.series_id not in skipped)
    command = ["cli", "index", "neighbours", version.ref, str(file), "--series", series.series_id]
    command += ["--at", table.step.isoformat(series.times[-1]), "-k", "5"]
    return shlex.join([*command, *dir_flags(indexes_dir), *reading_flags(options)])


def dir_flags(indexes_dir: Path) -> list[str]:
    """`--indexes-dir` where it is needed."""
    return [] if indexes_dir == DEFAULT_DIR else ["--indexes-dir", str(indexes_dir)]
