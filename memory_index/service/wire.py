"""What client and service say to each other, as Arrow batches with a JSON document beside each.

Each batch is one line of whole arrays. A question has the raw values of windows [B, N, L] and their origins [B]; of
consecutive moments each value is said once, not once for every window that it lies in. An answer has the neighbours
[B, N, V, K] and the query's statistics [B, N, V]. A stream asks one version, named by its fingerprint, and every answer
repeats it. What a service is told is not believed: each question is checked here before anything is made of it.
Vectors never travel, and no object is unpickled.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple, Self

import numpy as np
import pyarrow as pa
from numpy.lib.stride_tricks import sliding_window_view

from memory_index import errors
from memory_index.errors import MemoryIndexError, ServiceError, UsageError
from memory_index.leakage import Policy
from memory_index.neighbours import Neighbours
from memory_index.types import Filter, KeySpace, Queries, Scope
from memory_index.windows import StoredWindows

PROTOCOL = 1
OPEN, STATUS = "open", "status"  # actions
CHUNK = pa.schema([pa.field("bytes", pa.binary())])  # a file travels as such pieces
MAX_NAME = 1000  # characters of the name of a series
MAX_DOCUMENT = 4 << 20  # bytes; read into Python objects it is many times as large
QUESTION = pa.schema([pa.field("values", pa.list_(pa.float32())), pa.field("origin", pa.list_(pa.timestamp("ns")))])
ANSWER = pa.schema(
    [
        pa.field("row", pa.list_(pa.int64())),
        pa.field("distance", pa.list_(pa.float32())),
        pa.field("shape_distance", pa.list_(pa.float32())),
        pa.field("value_distance", pa.list_(pa.float32())),
        pa.field("query_location", pa.list_(pa.float64())),
        pa.field("query_spread", pa.list_(pa.float64())),
    ]
)
SLOT_COLUMNS = ("row", "distance", "shape_distance", "value_distance")


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """What one question may ask at the most; a client keeps to them by asking in parts.

    max_message: bytes of one message. max_windows: B x N. max_k: neighbours per key space. max_slots: B x N x V x K.
    max_seconds: to wait for a turn, and again to search.
    """

    max_message: int = 32 << 20
    max_windows: int = 8192
    max_k: int = 1024
    max_slots: int = 4 << 20
    max_seconds: float = 60.0

    def __post_init__(self) -> None:
        for field in fields(self):
            if not getattr(self, field.name) > 0:
                raise UsageError(f"{field.name} is {getattr(self, field.name)}, but must be above 0")

    def moments(self, *, num_series: int, lookback: int, slots_per_window: int) -> int:
        """How many moments of so many series one question may have; 0 if not even one."""
        window_bytes = 4 * lookback + 16
        room = self.max_message // 8 * 7  # what is left for the document beside the windows
        return min(
            self.max_windows // num_series,
            room // (window_bytes * num_series),
            self.max_slots // (slots_per_window * num_series),
        )


class Question(NamedTuple):
    """The arguments of one `Memory.search`. wait_s: how long whoever asks will wait."""

    queries: Queries
    k: int
    scopes: tuple[Scope, ...] | None
    views: tuple[int, ...] | None
    where: Filter | None
    min_gap: int
    wait_s: float


class Message(NamedTuple):
    """A batch and the bytes of the document beside it."""

    batch: pa.RecordBatch
    document: bytes


def write_question(question: Question) -> Message:
    """A question as it travels."""
    queries = question.queries
    stretch, where = _stretch(queries.context), question.where
    document: dict[str, Any] = {
        "series_id": [str(name) for name in queries.series_id],
        "lookback": queries.context.shape[2],
        "consecutive": stretch is not None,
        "policy": queries.policy.value,
        "k": int(question.k),
        "scopes": _each_once(question.scopes),
        "views": _each_once(question.views and [int(view) for view in question.views]),
        "where": None if where is None else {"series_id": _each_once(where.series_id)} | _times(where),
        "min_gap": int(question.min_gap),
        "wait_s": question.wait_s,
    }
    values = queries.context if stretch is None else stretch
    return Message(one_line(QUESTION, [values, queries.origin]), json.dumps(document).encode())


def _stretch(context: np.ndarray) -> np.ndarray | None:
    """The values that windows [B, N, L] of consecutive moments have between them, [N, B + L - 1]; None for others.

    256 consecutive moments with a lookback of 512 are 767 values of a series instead of 131,072.
    """
    bits = context.view(np.int32)  # so that 0 and -0 differ
    older, newer = bits[:-1, :, 1:], bits[1:, :, :-1]
    if len(context) < 2 or not np.array_equal(older[0], newer[0]) or not np.array_equal(older, newer):
        return None
    return np.concatenate([context[0], context[1:, :, -1].T], axis=1)


def _each_once(entries: Sequence[Any] | None) -> list[Any] | None:
    return None if entries is None else list(dict.fromkeys(entries))


def _times(where: Filter) -> dict[str, Any]:
    times = {"after": where.after, "before": where.before}
    return {
        name: None if time is None else int(time.astype("datetime64[ns]").astype(np.int64))
        for name, time in times.items()
    }


def read_question(message: Message, limits: Limits, num_spaces: int) -> Question:
    """The question in a message, checked; its batch has the columns of `QUESTION`.

    num_spaces: key spaces of the version. Windows of consecutive moments share their memory. Raises `UsageError` for
    what is malformed or beyond a limit, and what `Queries` raises.
    """
    document = Document.read(message.document)
    values, origin = _read_columns(message.batch)
    num_series = document.length("series_id")  # before they are gone through, as all lists here: that takes time
    _require_at_most("windows", num_series * max(len(origin), 1), limits.max_windows)
    names = document.strings("series_id", most=limits.max_windows)
    if not names or max(len(name) for name in names) > MAX_NAME:
        raise UsageError(f"a question names at least one series, each with at most {MAX_NAME} characters")
    k, shape = document.integer("k"), (len(origin), len(names), document.integer("lookback"))
    _require_at_most("k", k, limits.max_k)
    _require_at_most("windows x key spaces x k", math.prod(shape[:2]) * num_spaces * max(k, 0), limits.max_slots)
    _require_at_most("bytes of windows", 4 * math.prod(shape), limits.max_message)
    policy = document.string("policy")
    if policy not in set(Policy):
        raise UsageError(f"policy must be {' or '.join(Policy)}, not '{policy[:40]}'")
    queries = Queries(
        context=_contexts(values, shape, is_consecutive=document.boolean("consecutive")),
        origin=origin,
        series_id=np.array(names),
        policy=Policy(policy),
    )
    return Question(
        queries=queries,
        k=k,
        scopes=document.strings_or_none("scopes", most=num_spaces),  # type: ignore[arg-type]  # the memory says which
        views=document.integers_or_none("views", most=num_spaces),
        where=document.filter("where", most=limits.max_windows),
        min_gap=document.integer("min_gap"),
        wait_s=document.number("wait_s"),
    )


def _contexts(values: np.ndarray, shape: tuple[int, int, int], *, is_consecutive: bool) -> np.ndarray:
    """The windows [B, N, L] in the values of a question."""
    num_moments, num_series, lookback = shape
    length = num_moments + lookback - 1
    expected = num_series * length if is_consecutive else math.prod(shape)
    if lookback < 1 or len(values) != expected or (is_consecutive and not num_moments):
        raise UsageError(f"{len(values)} values are not {num_moments} moments of {num_series} series")
    if not is_consecutive:
        return values.reshape(shape)
    return sliding_window_view(values.reshape(num_series, length), lookback, axis=1).swapaxes(0, 1)


def write_answer(neighbours: Neighbours) -> Message:
    """An answer as it travels."""
    document = {
        "fingerprint": neighbours.fingerprint,
        "spaces": [list(space) for space in neighbours.spaces],
        "k": neighbours.row.shape[3],
    }
    columns = [getattr(neighbours, name) for name in ANSWER.names]
    return Message(one_line(ANSWER, columns), json.dumps(document).encode())


def read_answer(
    message: Message,
    question: Question,
    spaces: tuple[KeySpace, ...],
    temperature: Mapping[KeySpace, float],
    linear_maps: Mapping[int, np.ndarray],
    fingerprint: str,
    windows: StoredWindows,
) -> Neighbours:
    """The neighbours in an answer, which check themselves against the leak rule.

    spaces: what must be answered, in order; a service does not decide it. Raises `ServiceError` for an answer that is
    not one to this question, of this version; `LeakError`.
    """
    try:
        document = json.loads(message.document)
        found, k = str(document["fingerprint"]), document["k"]
        answered = tuple((scope, view) for scope, view in document["spaces"])
        columns = dict(zip(message.batch.schema.names, _read_columns(message.batch), strict=True))
    except (ValueError, KeyError, TypeError, UsageError, RecursionError) as error:
        raise ServiceError("the service gave an answer that cannot be read; it was discarded") from error
    if found != fingerprint:
        raise ServiceError(
            f"the service answered from another version ({found[:12]}, not "
            f"{fingerprint[:12]}); the answer was discarded"
        )
    queries = question.queries
    shape = (*queries.context.shape[:2], len(spaces))
    if k != question.k or answered != spaces or message.batch.schema != ANSWER:
        raise ServiceError("the service gave an answer to another question; it was discarded")
    for name in ANSWER.names:
        expected = (*shape, k) if name in SLOT_COLUMNS else shape
        if len(columns[name]) != math.prod(expected):
            raise ServiceError("the service gave half an answer; it was discarded")
        columns[name] = columns[name].reshape(expected)
    _require_an_answer(columns)
    return Neighbours(
        queries=queries,
        spaces=spaces,
        temperature=np.array([temperature[space] for space in spaces], dtype=np.float32),
        linear_maps=linear_maps,
        windows=windows,
        fingerprint=fingerprint,
        **columns,
    )


def _require_an_answer(columns: Mapping[str, np.ndarray]) -> None:
    """Raise `ServiceError` unless neighbours are in order, each there once, with nothing but numbers."""
    row, distance = columns["row"], columns["distance"]
    used, ascending = row >= 0, np.sort(row, axis=-1)
    with np.errstate(invalid="ignore"):  # inf - inf
        is_sorted = (distance[..., 1:] >= distance[..., :-1]).all()
    is_answer = (
        is_sorted
        and not ((ascending[..., 1:] == ascending[..., :-1]) & (ascending[..., 1:] >= 0)).any()
        and ((row == -1) == ~used).all()
        and all((np.isfinite(columns[name]) == used).all() for name in SLOT_COLUMNS[1:])
        and all(np.isfinite(columns[name]).all() for name in ("query_location", "query_spread"))
        and not any((columns[name] < 0).any() for name in SLOT_COLUMNS[1:])
        and (columns["query_spread"] > 0).all()
    )
    if not is_answer:
        raise ServiceError("the service gave an answer that no search gives; it was discarded")


def one_line(schema: pa.Schema, columns: Sequence[np.ndarray]) -> pa.RecordBatch:
    """Whole arrays as a batch. What is contiguous is not copied."""
    lines = []
    for values, field in zip(columns, schema, strict=True):
        kind = field.type.value_type
        entries = pa.Array.from_buffers(kind, values.size, [None, pa.py_buffer(np.ascontiguousarray(values))])
        ends = pa.py_buffer(np.array([0, values.size], dtype=np.int32))
        lines.append(pa.Array.from_buffers(field.type, 1, [None, ends], children=[entries]))
    return pa.RecordBatch.from_arrays(lines, schema=schema)


def _read_columns(batch: pa.RecordBatch) -> Iterator[np.ndarray]:
    """The arrays in a batch, each of one axis. Raises `UsageError`."""
    try:
        batch.validate(full=True)
    except pa.ArrowException as error:
        raise UsageError("the message is malformed") from error
    if batch.num_rows != 1:
        raise UsageError(f"a message has one line, not {batch.num_rows}")
    for column in batch.columns:
        values = column.flatten()
        if column.null_count or values.null_count:
            raise UsageError("a message has a missing value (null)")
        yield values.to_numpy(zero_copy_only=True)


def joined(parts: list[Neighbours], queries: Queries) -> Neighbours:
    """The answers to some moments after the other, as the answer to all of them."""
    if len(parts) == 1:
        return parts[0]
    names = (*SLOT_COLUMNS, "query_location", "query_spread")
    arrays: dict[str, Any] = {name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
    return replace(parts[0], queries=queries, **arrays)


def some_of(queries: Queries, moments: slice) -> Queries:
    """The queries of some moments."""
    return replace(queries, context=queries.context[moments], origin=queries.origin[moments])


def _require_at_most(what: str, found: int, most: int, hint: str = "ask in parts") -> None:
    if found > most:
        raise UsageError(f"{what}: {found:,} in one question, but this service allows {most:,}", hint=hint)


class Document(NamedTuple):
    """A JSON object from the other side, nothing of which is believed. Its methods raise `UsageError`."""

    entries: Mapping[str, Any]

    @classmethod
    def read(cls, content: bytes) -> Self:
        """Parse it."""
        if len(content) > MAX_DOCUMENT:
            raise UsageError(
                f"what was sent beside the windows has {len(content):,} bytes: at most {MAX_DOCUMENT:,} are read",
                hint="ask for fewer series at once",
            )
        try:
            entries = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise UsageError("what was sent beside the windows is not JSON") from error
        if not isinstance(entries, dict):
            raise UsageError("what was sent beside the windows is not a JSON object")
        return cls(entries)

    def string(self, name: str) -> str:
        """A text."""
        return self._of(name, str)

    def integer(self, name: str) -> int:
        """A whole number that fits into 63 bits."""
        return _integer(name, self._of(name, int))

    def number(self, name: str) -> float:
        """A finite number."""
        value = self.entries.get(name)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < 1e18:
            raise UsageError(f"'{name}' must be a number")
        return float(value)

    def length(self, name: str) -> int:
        """How long a list is, whatever is in it."""
        return len(self._of(name, list))

    def boolean(self, name: str) -> bool:
        """True or false."""
        return bool(self._of(name, bool))

    def strings(self, name: str, *, most: int) -> list[str]:
        """A list of at most so many texts."""
        values = self._list(name, most)
        if not all(isinstance(value, str) for value in values):
            raise UsageError(f"'{name}' must be a list of texts")
        return values

    def strings_or_none(self, name: str, *, most: int) -> tuple[str, ...] | None:
        """A list of at most so many texts, or null."""
        return None if self.entries.get(name) is None else tuple(self.strings(name, most=most))

    def integers_or_none(self, name: str, *, most: int) -> tuple[int, ...] | None:
        """A list of at most so many whole numbers, or null."""
        if self.entries.get(name) is None:
            return None
        return tuple(_integer(name, value) for value in self._list(name, most))

    def filter(self, name: str, *, most: int) -> Filter | None:
        """A filter by at most so many series, or null."""
        if self.entries.get(name) is None:
            return None
        inner = Document(self._of(name, dict))

        def time(which: str) -> np.datetime64 | None:
            return None if inner.entries.get(which) is None else np.datetime64(inner.integer(which), "ns")

        series_id = inner.strings_or_none("series_id", most=most)
        return Filter(series_id=series_id, after=time("after"), before=time("before"))

    def _list(self, name: str, most: int) -> list[Any]:
        values: list[Any] = self._of(name, list)
        _require_at_most(f"'{name}'", len(values), most, hint="name fewer")
        return values

    def _of(self, name: str, kind: type) -> Any:
        value = self.entries.get(name)
        if not isinstance(value, kind):
            raise UsageError(f"'{name}' must be a {kind.__name__}")
        return value


def _integer(name: str, value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not -(2**62) < value < 2**62:
        raise UsageError(f"'{name}' must be a whole number")
    return value


def write_error(error: MemoryIndexError) -> bytes:
    """An error as it travels beside the status of a call."""
    return json.dumps({"error": type(error).__name__, "message": str(error), "hint": error.hint}).encode()


def read_error(content: bytes) -> MemoryIndexError | None:
    """The error in what travelled beside a status; None if there is none of ours."""
    try:
        document = json.loads(content)
        kind = vars(errors).get(document["error"])
        if not (isinstance(kind, type) and issubclass(kind, MemoryIndexError)):  # one that this program does not have
            kind = ServiceError
        return kind(str(document["message"]), hint=str(document["hint"]))
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
