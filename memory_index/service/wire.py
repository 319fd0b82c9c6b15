"""What client and service say to each other: Arrow IPC streams, each with a JSON document in its schema.

Each stream is one line of whole arrays. A question has the raw values of windows [B, N, L] and their origins [B]; of
consecutive moments each value is said once, not once for every window that it lies in. An answer has the neighbours
[B, N, V, K] and the query's statistics [B, N, V], and names the version that it is of. What a service is told is not
believed: each question is checked here before anything is made of it. Vectors never travel, and no object is unpickled.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.lib.stride_tricks import sliding_window_view

from memory_index.arrow_streams import read_batches
from memory_index.documents import jsonable
from memory_index.errors import MemoryIndexError, ServiceError, UsageError
from memory_index.inspection import neighbour_records
from memory_index.leakage import Policy
from memory_index.neighbours import Neighbours
from memory_index.service.messages import list_of, read_document, require_at_most, value_of
from memory_index.types import Filter, KeySpace, Queries, Scope
from memory_index.windows import Step, StoredWindows

PROTOCOL = 2
ARROW, JSON, CSV = "application/vnd.apache.arrow.stream", "application/json", "text/csv"
BESIDE = b"document"  # key of the JSON document in the metadata of a schema
MAX_NAME = 1000  # characters of the name of a series
SLOT_BYTES, SPACE_BYTES = 20, 16  # of an answer, per neighbour and per key space
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


def answer_bytes(num_windows: int, num_spaces: int, k: int) -> int:
    """How large an answer is, but for what stands beside it."""
    return num_windows * num_spaces * (k * SLOT_BYTES + SPACE_BYTES)


# Questions


def write_question(question: Question) -> bytes:
    """A question as it travels."""
    queries = question.queries
    stretch, where = _stretch(queries.context), question.where
    document = {
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
    return pack(QUESTION, [queries.context if stretch is None else stretch, queries.origin], document)


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


def read_question(content: bytes, limits: Limits, num_spaces: int) -> Question:
    """The question in an Arrow stream, checked. Windows of consecutive moments share their memory.

    num_spaces: key spaces of the version. Raises `UsageError` for what is malformed or beyond a limit,
    `IncompatibleError` for other columns, and what `Queries` raises.
    """
    (values, origin), document = unpack(content, QUESTION)
    num_series = len(value_of(document, "series_id", list))  # before they are gone through, as all lists: it takes time
    shape = (len(origin), num_series, value_of(document, "lookback", int))
    require_at_most("bytes of windows", 4 * math.prod(shape), limits.max_message)
    names, k, policy = _asked(document, max(len(origin), 1), limits, num_spaces)
    context = _contexts(values, shape, is_consecutive=value_of(document, "consecutive", bool))
    return _question(document, Queries(context=context, origin=origin, series_id=names, policy=policy), k, num_spaces)


def read_json_question(content: bytes, limits: Limits, num_spaces: int, step: Step) -> Question:
    """One moment asked in JSON: `context` is a list of numbers for each series, or the numbers of the only one, null
    for a missing cell; `origin` is ISO 8601, as a person types it. Raises as `read_question` does.
    """
    document = {"k": 10, "min_gap": 0, "wait_s": limits.max_seconds} | read_document(content)
    names, k, policy = _asked(document, 1, limits, num_spaces)
    try:
        context = np.array(document.get("context"), dtype=np.float32)
    except (ValueError, TypeError) as error:
        raise UsageError("'context' must be numbers, for each series as many") from error
    context = context.reshape((1,) * (3 - context.ndim) + context.shape) if context.ndim in (1, 2) else context
    origin = np.array([step.parse(value_of(document, "origin", str))])
    where = document.get("where")
    if isinstance(where, dict):
        times = {name: step.parse(where[name]) for name in ("after", "before") if isinstance(where.get(name), str)}
        document["where"] = where | {name: int(time.astype(np.int64)) for name, time in times.items()}
    return _question(document, Queries(context=context, origin=origin, series_id=names, policy=policy), k, num_spaces)


def _asked(
    document: Mapping[str, Any], num_moments: int, limits: Limits, num_spaces: int
) -> tuple[np.ndarray, int, Policy]:
    """The names of the series, k and the policy, within the limits."""
    num_windows = len(value_of(document, "series_id", list)) * num_moments
    require_at_most("windows", num_windows, limits.max_windows)
    names = list_of(document, "series_id", str, most=limits.max_windows) or ()
    if not names or max(len(name) for name in names) > MAX_NAME:
        raise UsageError(f"a question names at least one series, each with at most {MAX_NAME} characters")
    k = value_of(document, "k", int)
    require_at_most("k", k, limits.max_k)
    require_at_most("windows x key spaces x k", num_windows * num_spaces * max(k, 0), limits.max_slots)
    policy = value_of(document, "policy", str)
    if policy not in set(Policy):
        raise UsageError(f"policy must be {' or '.join(Policy)}, not '{policy[:40]}'")
    return np.array(names), k, Policy(policy)


def _question(document: Mapping[str, Any], queries: Queries, k: int, num_spaces: int) -> Question:
    where = None
    if document.get("where") is not None:
        asked = value_of(document, "where", dict)
        times = {
            name: None if asked.get(name) is None else np.datetime64(value_of(asked, name, int), "ns")
            for name in ("after", "before")
        }
        where = Filter(
            series_id=list_of(asked, "series_id", str, most=max(num_spaces, len(queries.series_id), 8192)), **times
        )
    return Question(
        queries=queries,
        k=k,
        scopes=list_of(document, "scopes", str, most=num_spaces),  # type: ignore[arg-type]  # the memory says which
        views=list_of(document, "views", int, most=num_spaces),
        where=where,
        min_gap=value_of(document, "min_gap", int),
        wait_s=value_of(document, "wait_s", float),
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


# Answers


def write_answer(neighbours: Neighbours) -> bytes:
    """An answer as it travels."""
    document = {
        "fingerprint": neighbours.fingerprint,
        "spaces": [list(space) for space in neighbours.spaces],
        "k": neighbours.row.shape[3],
    }
    return pack(ANSWER, [getattr(neighbours, name) for name in ANSWER.names], document)


def write_json_answer(neighbours: Neighbours) -> bytes:
    """The answer to one moment asked in JSON: the neighbours of each series one by one, and what followed them."""
    queries, told = neighbours.queries, []
    unknown = np.full(neighbours.windows.spec.horizon, np.nan)  # what really followed
    for place, series_id in enumerate(queries.series_id):
        slots = [(int(v), int(rank)) for v, rank in np.argwhere(neighbours.valid[0, place])]
        found = [jsonable(each.to_dict()) for each in neighbour_records(neighbours, place, slots, unknown)]
        told.append({"series_id": str(series_id), "neighbours": found})
    origin = neighbours.windows.step.isoformat(queries.origin[0])
    document = {"fingerprint": neighbours.fingerprint, "origin": origin, "policy": queries.policy.value}
    return json.dumps(document | {"series": told}).encode()


def read_answer(
    content: bytes,
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
        arrays, document = unpack(content, ANSWER)
        found, k = str(document["fingerprint"]), document["k"]
        answered = tuple((scope, view) for scope, view in document["spaces"])
    except (ValueError, KeyError, TypeError, MemoryIndexError) as error:
        raise ServiceError("the service gave an answer that cannot be read; it was discarded") from error
    if found != fingerprint:
        raise ServiceError(
            f"the service answered from another version ({found[:12]}, not "
            f"{fingerprint[:12]}); the answer was discarded"
        )
    queries, columns = question.queries, dict(zip(ANSWER.names, arrays, strict=True))
    shape = (*queries.context.shape[:2], len(spaces))
    if k != question.k or answered != spaces:
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


def joined(parts: list[Neighbours], queries: Queries) -> Neighbours:
    """The answers to some moments after the other, as the answer to all of them."""
    if len(parts) == 1:
        return parts[0]
    names = (*SLOT_COLUMNS, "query_location", "query_spread")
    arrays: dict[str, Any] = {name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
    return replace(parts[0], queries=queries, **arrays)


def some_of(queries: Queries, moments: slice) -> Queries:
    """The queries of some moments. Windows that share their memory become windows of their own, for the same sums in
    the same order."""
    return replace(queries, context=np.ascontiguousarray(queries.context[moments]), origin=queries.origin[moments])


# Their form


def pack(schema: pa.Schema, columns: Sequence[np.ndarray], document: Mapping[str, Any]) -> bytes:
    """Whole arrays as the one line of an Arrow stream, with a document beside them."""
    lines = []
    for values, field in zip(columns, schema, strict=True):
        entries = pa.Array.from_buffers(
            field.type.value_type, values.size, [None, pa.py_buffer(np.ascontiguousarray(values))]
        )
        ends = pa.py_buffer(np.array([0, values.size], dtype=np.int32))
        lines.append(pa.Array.from_buffers(field.type, 1, [None, ends], children=[entries]))
    batch = pa.RecordBatch.from_arrays(lines, schema=schema.with_metadata({BESIDE: json.dumps(document)}))
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    content: bytes = sink.getvalue().to_pybytes()
    return content


def unpack(content: bytes, schema: pa.Schema) -> tuple[list[np.ndarray], dict[str, Any]]:
    """The arrays, each of one axis, and the document of what `pack` made. Nothing is copied.

    Raises `UsageError` for what is malformed, `IncompatibleError` for other columns.
    """
    batches = list(read_batches(content, schema))
    if len(batches) != 1 or batches[0].num_rows != 1:
        raise UsageError(f"a message has one line, not {sum(batch.num_rows for batch in batches)}")
    arrays = []
    for column in batches[0].columns:
        values = column.flatten()
        if column.null_count or values.null_count:
            raise UsageError("a message has a missing value (null)")
        arrays.append(values.to_numpy(zero_copy_only=True))
    return arrays, read_document((batches[0].schema.metadata or {}).get(BESIDE, b""))
