"""What a build takes of memory, and what it leaves out to stay within a budget, by fixed arithmetic.

Bytes are counted for each step of the table, each window, each number of a key and each number of the encoder; the
constants below were measured once (docs/scaling.md has the figures). Equal tables, settings and budgets give equal
choices on every machine. The order: first a longer stride, then fewer views and scopes; how keys are indexed follows
from how many are left. What was asked for by name is never changed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from memory_index.covariate_map import HELD_BYTES
from memory_index.encoder import EncoderConfig
from memory_index.errors import ResourceError, UsageError
from memory_index.fit_covariates import MAX_FORECAST_PARTS
from memory_index.key_covariates import HELD_BYTES as KEY_NUMBERS_BYTES
from memory_index.types import KeySpace, Scope
from memory_index.versions.factories import AUTO_FACTORY, EXACT, MAX_EXACT_ROWS, choose_factory
from memory_index.versions.manifest import BudgetRecord

BASE_BYTES = 400 << 20  # Python and the libraries
READING_BYTES = 80  # of a step, while a long table is read
WRITING_BYTES = 24  # of a step while keys are written: the table
STEP_BYTES = 50  # of a step while the version is measured: also its series as they are stored and as they are opened
WINDOW_BYTES, VIEW_BYTES = 80, 45  # of a window's record, and of each of its views
NUMBER_BYTES = 4  # of a key or the encoder: float32
GRAPH_BYTES = 280  # of a key in a graph: its links
CODE_BYTES = 8  # of a key in an inverted file, beside a byte for each of its numbers
BESIDE_BYTES = 32  # of a covariate's cell while the table is read
READING_VINTAGE_BYTES = 250  # of an issued value likewise
VINTAGE_BYTES = 32  # of an issued value in a table
LOOKED_UP_BYTES = 28  # and as it is looked up
SUMS_AT_ONCE = 12  # of D x D numbers while maps with covariates are fitted
MAX_STRIDE = 16
MIN_WINDOWS = 50  # of the median series, where a longer stride would leave fewer: as many as a forecast asks for


@dataclass(frozen=True, kw_only=True, slots=True)
class Budget:
    """Peak memory that a build may take. keep_views: whether the views were asked for by name, so that all are kept."""

    num_bytes: int
    keep_views: bool = False


@dataclass(frozen=True, kw_only=True)
class Beside:
    """The covariates of a table, and what a build makes of them.

    num_columns, num_channels: columns, and the numbers that they become. num_steps: on which they have values, all
    stretches together (one where all series share them). width: numbers beside a window, condition_width: of a key's
    condition part. num_vintages: issued values; num_issued: channels of columns with vintages, num_near: steps of these
    that are held of each origin.
    """

    num_columns: int = 0
    num_channels: int = 0
    num_steps: int = 0
    width: int = 0
    condition_width: int = 0
    num_vintages: int = 0
    num_issued: int = 0
    num_near: int = 0

    @property
    def reading_bytes(self) -> int:
        """While the tables are read."""
        return BESIDE_BYTES * self.num_columns * self.num_steps + READING_VINTAGE_BYTES * self.num_vintages

    @property
    def table_bytes(self) -> int:
        """As a table."""
        return 8 * self.num_columns * self.num_steps + VINTAGE_BYTES * self.num_vintages

    def stored_bytes(self, num_windows: int, num_views: int) -> int:
        """As windows are compared with (`covariate_map.StoredCovariates`)."""
        near = NUMBER_BYTES * self.num_issued * self.num_near * min(num_windows, self.num_steps)
        means = self.num_issued * (NUMBER_BYTES * num_views * self.num_steps + 8 * (self.num_steps + self.num_vintages))
        plain = (NUMBER_BYTES * self.num_columns + (NUMBER_BYTES + 8) * self.num_channels) * self.num_steps
        keys = NUMBER_BYTES * (self.num_forecast_parts + self.condition_width) * min(num_windows, self.num_steps)
        held = min(near, HELD_BYTES) + num_views * min(keys, KEY_NUMBERS_BYTES)
        return plain + held + means + LOOKED_UP_BYTES * self.num_vintages

    @property
    def num_forecast_parts(self) -> int:
        """Numbers of a window that keys compare beside it, at most."""
        return MAX_FORECAST_PARTS if self.num_columns else 0

    def fitting_bytes(self, view: int) -> int:
        """Sums of the fit of a view, over the blocks of time."""
        return SUMS_AT_ONCE * 8 * (view + self.width) ** 2 if self.num_columns else 0


NOTHING_BESIDE = Beside()


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a build was asked for, and the table that it is made of.

    origins: origin rows of each series at the stride that was asked for, as `first_origin + n * stride`. num_steps: of
    the whole table, all series together. season: see `Step.season`. beside: its covariates. keep_views, keep_scopes,
    keep_stride: whether they were asked for by name; by default fewer will do.
    """

    origins: list[np.ndarray]
    num_steps: int
    first_origin: int
    stride: int
    season: int | None
    encoder: EncoderConfig
    scopes: tuple[Scope, ...]
    factory: str
    keep_views: bool
    keep_scopes: bool
    keep_stride: bool = False
    beside: Beside = NOTHING_BESIDE


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What a build is to do. peak_bytes: what that is estimated to take. factories, reasons: by key space."""

    stride: int
    views: tuple[int, ...]
    scopes: tuple[Scope, ...]
    factories: dict[KeySpace, tuple[str, str]]
    num_windows: int
    peak_bytes: int

    @property
    def spaces(self) -> tuple[KeySpace, ...]:
        """The key spaces, in the version's order."""
        return tuple(KeySpace(scope, view) for scope in self.scopes for view in self.views)


def within_budget(asked: Asked, num_bytes: int) -> tuple[Choice, BudgetRecord]:
    """The first choice, in the order above, that takes at most so many bytes, and what the manifest says of it.

    Raises `ResourceError` if not even the last one does, with what that would take.
    """
    least = None
    for choice in _choices(asked):
        if choice.peak_bytes <= num_bytes:
            record = BudgetRecord(
                budget_bytes=num_bytes, estimated_bytes=choice.peak_bytes, choices=tuple(_told(asked, choice))
            )
            return choice, record
        least = choice if least is None or choice.peak_bytes < least.peak_bytes else least
    assert least is not None, "there is one choice at least"
    raise ResourceError(
        f"a budget of {in_gigabytes(num_bytes)} is too small: with stride {least.stride}, the views "
        f"{', '.join(map(str, least.views))} and the scopes {', '.join(least.scopes)} the build takes about "
        f"{in_gigabytes(least.peak_bytes)}",
        hint="give more, or build from fewer series or steps",
    )


def parse_budget(text: str) -> int:
    """`8GB`, `500 MB` or `7.5GiB` in bytes. Raises `UsageError`."""
    units = {"B": 1, "KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12}
    units |= {"KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30, "TIB": 1 << 40}
    number = text.strip().rstrip("BKMGTIbkmgti").strip()
    unit = text.strip()[len(number) :].strip().upper()
    try:
        num_bytes = float(number) * units[unit]
    except (ValueError, KeyError) as error:
        raise UsageError(f"'{text}' is not a size", hint="for example 8GB, 500MB or 7.5GiB") from error
    if not (math.isfinite(num_bytes) and num_bytes >= 1):
        raise UsageError(f"a budget of {text} leaves nothing", hint="for example 8GB")
    return int(num_bytes)


def peak_bytes(
    *,
    num_series: int,
    num_steps: int,
    num_windows: int,
    encoder: EncoderConfig,
    factories: dict[KeySpace, str],
    beside: Beside = NOTHING_BESIDE,
) -> int:
    """What a build takes at most, estimated. factories: of the key spaces that are built, on all windows each."""
    views = tuple(dict.fromkeys(space.view for space in factories))
    held = BASE_BYTES + num_windows * (WINDOW_BYTES + VIEW_BYTES * len(views)) + beside.table_bytes
    widths = {space: encoder.key_width(space, num_series, beside.condition_width) for space in factories}
    of_series = sum((view + beside.num_forecast_parts) * min(encoder.shape_width, view) for view in views)
    fitted = of_series * num_series * NUMBER_BYTES
    stored = beside.stored_bytes(num_windows, len(views))
    if not any(space.scope in ("own", "joint") for space in factories):
        fitted = 0
    bytes_of = {space: num_windows * NUMBER_BYTES * width for space, width in widths.items()}
    written = [
        bytes_of[space] + (0 if factory == EXACT else num_windows * _index_bytes(factory, widths[space]))
        for space, factory in factories.items()
    ]
    return max(
        BASE_BYTES + READING_BYTES * num_steps + beside.reading_bytes,
        held + WRITING_BYTES * num_steps + fitted + stored + beside.fitting_bytes(max(views)),
        held + WRITING_BYTES * num_steps + 2 * fitted + stored,  # once more while it is written
        held + WRITING_BYTES * num_steps + fitted + stored + max(written),
        # as far as they have been looked at, and covariates also as they are opened
        held + STEP_BYTES * num_steps + fitted + 2 * stored + sum(bytes_of.values()),
    )


def in_gigabytes(num_bytes: int) -> str:
    """For a person."""
    return f"{num_bytes / 1e9:.3g} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.3g} MB"


def _choices(asked: Asked) -> Iterator[Choice]:
    counts = {stride: _num_windows(asked, stride) for stride in _strides(asked)}
    for views, scopes in _variants(asked):
        for stride, of_series in counts.items():
            num_windows = int(of_series.sum())
            factories = {KeySpace(scope, view): _factory(asked, scope, of_series) for scope in scopes for view in views}
            peak = peak_bytes(
                num_series=len(asked.origins),
                num_steps=asked.num_steps,
                num_windows=num_windows,
                encoder=replace(asked.encoder, views=views),
                factories={space: name for space, (name, _) in factories.items()},
                beside=asked.beside,
            )
            yield Choice(
                stride=stride,
                views=views,
                scopes=scopes,
                factories=factories,
                num_windows=num_windows,
                peak_bytes=peak,
            )


def _strides(asked: Asked) -> list[int]:
    """Multiples of what was asked for that fall on every phase of the season, and leave the median series enough."""
    if asked.keep_stride:
        return [asked.stride]
    median = int(np.median([len(rows) for rows in asked.origins]))
    return [asked.stride] + [
        asked.stride * times
        for times in range(2, MAX_STRIDE + 1)
        if math.gcd(asked.stride * times, asked.season or 1) == math.gcd(asked.stride, asked.season or 1)
        and median // times >= MIN_WINDOWS
    ]


def _num_windows(asked: Asked, stride: int) -> np.ndarray:
    """Of each series, int64 [N]."""
    if stride == asked.stride:
        return np.array([len(rows) for rows in asked.origins])
    return np.array([np.count_nonzero((rows - asked.first_origin) % stride == 0) for rows in asked.origins])


def _variants(asked: Asked) -> Iterator[tuple[tuple[int, ...], tuple[Scope, ...]]]:
    """Fewer and fewer views, the longest first, which take most; then own series alone: unseen ones have none."""
    views = asked.encoder.views
    yield views, asked.scopes
    if not asked.keep_views:
        while len(views) > 1:
            views = tuple(view for view in views if view != max(views))
            yield views, asked.scopes
    if not asked.keep_scopes and "own" in asked.scopes and "pooled" in asked.scopes:
        yield views, tuple(scope for scope in asked.scopes if scope != "pooled")


def _factory(asked: Asked, scope: Scope, of_series: np.ndarray) -> tuple[str, str]:
    """The factory of a key space, and the reason for it. of_series: windows of each series, int64 [N]."""
    total = int(of_series.sum())
    if asked.factory != "auto" or scope != "pooled" or total <= MAX_EXACT_ROWS:
        sizes = {"own": of_series, "joint": of_series[:1], "pooled": np.array([total])}
        return choose_factory(asked.factory, sizes[scope])
    num_lists = 2 ** math.ceil(math.log2(math.sqrt(total)))
    reason = (
        f"{total:,} keys in a group, and a graph would take {GRAPH_BYTES} bytes of memory a key and much longer: "
        "candidates come from 8-bit keys in lists, distances from the keys themselves"
    )
    return f"IVF{num_lists},SQ8", reason


def _index_bytes(factory: str, width: int) -> int:
    """Of a key while its index is built: the copy that is written, and what the index adds."""
    return NUMBER_BYTES * width + (GRAPH_BYTES if factory == AUTO_FACTORY else width + CODE_BYTES)


def _told(asked: Asked, choice: Choice) -> Iterator[str]:
    """What was chosen, one sentence each; those that left something out say what."""
    every = sum(len(rows) for rows in asked.origins)
    if choice.stride == asked.stride:
        yield f"stride {choice.stride}: all {every:,} windows"
    else:
        yield f"stride {choice.stride}: {choice.num_windows:,} of {every:,} windows"
    listed = ", ".join(map(str, choice.views))
    dropped = [view for view in asked.encoder.views if view not in choice.views]
    yield f"views {listed}" + (f"; without {', '.join(map(str, dropped))}" if dropped else ": all")
    without = [scope for scope in asked.scopes if scope not in choice.scopes]
    gone = f"; without {', '.join(without)}: series that are new cannot be forecast" if without else ": all"
    yield f"scopes {', '.join(choice.scopes)}{gone}"
    yield "keys float32, 4 bytes a number" + (
        "; candidates from 8 bits a number" if any("SQ8" in name for name, _ in choice.factories.values()) else ""
    )
    named = {space.scope: name for space, (name, _) in choice.factories.items()}
    yield "factory " + ", ".join(f"{scope} {name}" for scope, name in named.items())
