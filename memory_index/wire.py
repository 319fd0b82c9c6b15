"""What client and service say to each other: Arrow IPC streams, each with a JSON document in its schema.

Each stream is one line of whole arrays. A question has the raw values of windows [B, N, L] and their origins [B]; of
consecutive moments each value is said once, not once for every window that it lies in. An answer has the neighbours
[B, N, V, K] and the query's statistics [B, N, V], and names the version that it is of. What a service is told is not
believed: each question is checked here before anything is made of it. Vectors never travel, and no object is unpickled.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.lib.stride_tricks import sliding_window_view

from memory_index.arrow_streams import read_batches
from memory_index.documents import jsonable
from memory_index.errors import UsageError
from memory_index.inspection import neighbour_records
from memory_index.leakage import Policy
from memory_index.messages import list_of, read_document, require_at_most, value_of
from memory_index.neighbours import Neighbours
from memory_index.types import Filter, Queries, Scope
from memory_index.windows import Step

PROTOCOL = 2
ARROW, JSON, CSV = "application/vnd.apache.arrow.stream", "application/json", "text/csv"
END_OF_STREAM = b"\xff\xff\xff\xff\0\0\0\0"  # of Arrow IPC: a message of no length
BESIDE = b"document"  # key of the JSON document in the metadata of a schema
MAX_NAME = 1000  # characters of the name of a series
SLOT_BYTES, SPACE_BYTES = 24, 16  # of an answer, per neighbour and per key space
SLOT_COLUMNS = ("row", "distance", "shape_distance", "value_distance", "condition_distance")
ANSWER_TYPES = dict.fromkeys(SLOT_COLUMNS[:-1], pa.float32()) | {"row": pa.int64()}
ANSWER_TYPES |= dict.fromkeys(("query_location", "query_spread"), pa.float64())
QUESTION = pa.schema([("values", pa.list_(pa.float32())), ("origin", pa.list_(pa.timestamp("ns")))])
ANSWER = pa.schema([(name, pa.list_(kind)) for name, kind in ANSWER_TYPES.items()])
# Of a version with covariates:
QUESTION_BESIDE = QUESTION.append(pa.field("covariates", pa.list_(pa.float32())))
ANSWER_BESIDE = ANSWER.append(pa.field("condition_distance", pa.list_(pa.float32())))


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


class Question(NamedTuple):
    """The arguments of one `Memory.search`. wait_s: how long whoever asks will wait."""

    queries: Queries
    k: int
    scopes: tuple[Scope, ...] | None
    views: tuple[int, ...] | None
    where: Filter | None
    min_gap: int
    wait_s: float


# Questions


def write_question(question: Question) -> bytes:
    """A question as it travels. What is named twice is said once."""
    queries, where = question.queries, question.where
    stretch = _stretch(queries.context)
    document: dict[str, Any] = {
        "series_id": [str(name) for name in queries.series_id],
        "lookback": queries.context.shape[2],
        "consecutive": stretch is not None,
        "covariates": 0 if queries.covariates is None else queries.covariates.shape[2],
        "policy": queries.policy.value,
        "k": int(question.k),
        "scopes": question.scopes and list(dict.fromkeys(question.scopes)),
        "views": question.views and list(dict.fromkeys(map(int, question.views))),
        "where": where and {"series_id": where.series_id and list(dict.fromkeys(where.series_id))},
        "min_gap": int(question.min_gap),
        "wait_s": question.wait_s,
    }
    for name in ("after", "before"):
        if (time := getattr(where, name, None)) is not None:
            document["where"] |= {name: int(time.astype("datetime64[ns]").astype(np.int64))}
    columns = [queries.context if stretch is None else stretch, queries.origin]
    if queries.covariates is None:
        return pack(QUESTION, columns, document)
    return pack(QUESTION_BESIDE, [*columns, _written_covariates(queries.covariates, document)], document)


def _written_covariates(covariates: np.ndarray, document: dict[str, Any]) -> np.ndarray:
    """The covariates [B, N, C, L + H] as they travel: once for all series that share them, each value of consecutive
    moments once. How they are is told in the document.
    """
    bits = covariates.view(np.int32)
    shared = covariates.strides[1] == 0 or bool((bits == bits[:, :1]).all())
    part = np.ascontiguousarray(covariates[:, :1] if shared else covariates)
    b, n, num_columns, length = part.shape
    document |= {"shared": shared, "steps": length}
    stretch = _stretch(part.reshape(b, n * num_columns, length)) if document["consecutive"] else None
    document["covariates_consecutive"] = stretch is not None
    return part if stretch is None else stretch


def _stretch(context: np.ndarray) -> np.ndarray | None:
    """The values that windows [B, N, L] of consecutive moments have between them, [N, B + L - 1]; None for others.

    256 consecutive moments with a lookback of 512 are 767 values of a series instead of 131,072.
    """
    bits = context.view(np.int32)  # so that 0 and -0 differ
    older, newer = bits[:-1, :, 1:], bits[1:, :, :-1]
    if len(context) < 2 or not np.array_equal(older[0], newer[0]) or not np.array_equal(older, newer):
        return None
    return np.concatenate([context[0], context[1:, :, -1].T], axis=1)


def read_question(content: bytes, limits: Limits, num_spaces: int, *, with_covariates: bool = False) -> Question:
    """The question in an Arrow stream, checked. Windows of consecutive moments share their memory.

    num_spaces: key spaces of the version, with_covariates: whether it has any. Raises `UsageError` for what is
    malformed or beyond a limit, `IncompatibleError` for other columns, and what `Queries` raises.
    """
    (values, origin, *beside), document = unpack(content, QUESTION_BESIDE if with_covariates else QUESTION)

    def contexts(num_series: int) -> np.ndarray:
        lookback, is_consecutive = value_of(document, "lookback", int), value_of(document, "consecutive", bool)
        shape, length = (len(origin), num_series, lookback), len(origin) + lookback - 1
        require_at_most("bytes of windows", 4 * math.prod(shape), limits.max_message)
        expected = num_series * length if is_consecutive else math.prod(shape)
        if lookback < 1 or len(values) != expected or (is_consecutive and not len(origin)):
            raise UsageError(f"{len(values)} values are not {len(origin)} moments of {num_series} series")
        if not is_consecutive:
            return values.reshape(shape)
        return sliding_window_view(values.reshape(num_series, length), lookback, axis=1).swapaxes(0, 1)

    def covariates(num_series: int) -> np.ndarray | None:
        return _read_covariates(beside[0], document, len(origin), num_series, limits) if beside else None

    return _question(document, origin, contexts, limits, num_spaces, covariates)


def _read_covariates(
    values: np.ndarray, document: Mapping[str, Any], num_moments: int, num_series: int, limits: Limits
) -> np.ndarray:
    """What `_written_covariates` made, [B, N, C, L + H]; windows and series share their memory where they did."""
    num_columns, length = value_of(document, "covariates", int), value_of(document, "steps", int)
    shared, consecutive = value_of(document, "shared", bool), value_of(document, "covariates_consecutive", bool)
    num = 1 if shared else num_series
    require_at_most("bytes of covariates", 4 * num_moments * num * num_columns * max(length, 1), limits.max_message)
    steps = num_moments + length - 1
    expected = num * num_columns * (steps if consecutive else num_moments * length)
    if num_columns < 1 or length < 1 or len(values) != expected or (consecutive and not num_moments):
        raise UsageError(f"{len(values)} values are not {num_columns} covariates of {num_moments} moments")
    shape = (num_moments, num, num_columns, length)
    if consecutive:
        windows = sliding_window_view(values.reshape(num * num_columns, steps), length, axis=1).swapaxes(0, 1)
        values = np.ascontiguousarray(windows)
    whole = values.reshape(shape)
    return np.broadcast_to(whole, (num_moments, num_series, num_columns, length))


def read_json_question(content: bytes, limits: Limits, num_spaces: int, step: Step) -> Question:
    """One moment asked in JSON: `context` is a list of numbers for each series, or the numbers of the only one, null
    for a missing cell; `covariates`, where the version has any, likewise with a list for each column in each of them;
    times are ISO 8601, as a person types them. Raises as `read_question` does.
    """
    document = {"k": 10, "min_gap": 0, "wait_s": limits.max_seconds} | read_document(content)

    def contexts(num_series: int) -> np.ndarray:
        try:
            with np.errstate(over="ignore"):  # which is then infinite, and refused as such
                context = np.array(document.get("context"), dtype=np.float32)
        except (ValueError, TypeError) as error:
            raise UsageError("'context' must be numbers, for each series as many") from error
        return context.reshape((1,) * (3 - context.ndim) + context.shape) if context.ndim in (1, 2) else context

    def covariates(num_series: int) -> np.ndarray | None:
        if document.get("covariates") is None:
            return None
        try:
            values = np.array(document["covariates"], dtype=np.float32)
        except (ValueError, TypeError) as error:
            raise UsageError("'covariates' must be numbers, for each series and column as many") from error
        return values.reshape((1,) * (4 - values.ndim) + values.shape) if values.ndim in (2, 3) else values

    origin = np.array([step.parse(value_of(document, "origin", str))])
    if isinstance(where := document.get("where"), dict):
        times = {name: step.parse(where[name]) for name in ("after", "before") if isinstance(where.get(name), str)}
        document["where"] = where | {name: int(time.astype(np.int64)) for name, time in times.items()}
    return _question(document, origin, contexts, limits, num_spaces, covariates)


def _question(
    document: Mapping[str, Any],
    origin: np.ndarray,
    contexts: Callable[[int], np.ndarray],
    limits: Limits,
    num_spaces: int,
    covariates: Callable[[int], np.ndarray | None],
) -> Question:
    """The question of a document. contexts, covariates: the windows of so many series and what stands beside them,
    asked once all is known to be in limits.

    How long a list is comes before what is in it, which takes time to go through.
    """
    num_windows = len(value_of(document, "series_id", list)) * max(len(origin), 1)
    require_at_most("windows", num_windows, limits.max_windows)
    names = list_of(document, "series_id", str, most=limits.max_windows) or ()
    if not names or max(map(len, names)) > MAX_NAME:
        raise UsageError(f"a question names at least one series, each with at most {MAX_NAME} characters")
    k, policy, where = value_of(document, "k", int), value_of(document, "policy", str), None
    require_at_most("k", k, limits.max_k)
    require_at_most("windows x key spaces x k", num_windows * num_spaces * max(k, 0), limits.max_slots)
    if policy not in set(Policy):
        raise UsageError(f"policy must be {' or '.join(Policy)}, not '{policy[:40]}'")
    if document.get("where") is not None:
        asked = value_of(document, "where", dict)
        times = {
            name: np.datetime64(value_of(asked, name, int), "ns")
            for name in ("after", "before")
            if asked.get(name) is not None
        }
        where = Filter(series_id=list_of(asked, "series_id", str, most=max(len(names), 8192)), **times)
    return Question(
        Queries(
            context=contexts(len(names)),
            origin=origin,
            series_id=np.array(names),
            policy=Policy(policy),
            covariates=covariates(len(names)),
        ),
        k,
        list_of(document, "scopes", str, most=num_spaces),  # type: ignore[arg-type]  # the memory says which
        list_of(document, "views", int, most=num_spaces),
        where,
        value_of(document, "min_gap", int),
        value_of(document, "wait_s", float),
    )


def some_of(queries: Queries, moments: slice) -> Queries:
    """The queries of some moments. Windows that share their memory become windows of their own, for the same sums in
    the same order."""
    some = queries.at_moments(moments)
    return replace(some, context=np.ascontiguousarray(some.context))


# Answers


def answer_bytes(num_windows: int, num_spaces: int, k: int) -> int:
    """How large an answer is, but for what stands beside it."""
    return num_windows * num_spaces * (k * SLOT_BYTES + SPACE_BYTES)


def write_answer(neighbours: Neighbours) -> bytes:
    """An answer as it travels. How it is read is told in `memory_index/remote.py`."""
    spaces, k = [list(space) for space in neighbours.spaces], neighbours.row.shape[3]
    document = {"fingerprint": neighbours.fingerprint, "spaces": spaces, "k": k}
    schema = answer_schema(with_covariates=neighbours.condition_distance is not None)
    return pack(schema, [getattr(neighbours, name) for name in schema.names], document)


def answer_schema(*, with_covariates: bool) -> pa.Schema:
    """The columns of an answer of a version."""
    return ANSWER_BESIDE if with_covariates else ANSWER


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


def joined(parts: list[Neighbours], queries: Queries) -> Neighbours:
    """The answers to some moments after the other, as the answer to all of them."""
    if len(parts) == 1:
        return parts[0]
    names = parts[0].parts()
    arrays: dict[str, Any] = {name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
    return replace(parts[0], queries=queries, **arrays)


# Their form


def pack(schema: pa.Schema, columns: Sequence[np.ndarray], document: Mapping[str, Any]) -> bytes:
    """Whole arrays as the one line of an Arrow stream, with a document beside them.

    Arrays are taken as they lie, and the parts of the stream put together here, which copies the values twice: a
    writer that does not know how long the stream will be takes half as long again.
    """
    lines = []
    for values, field in zip(columns, schema, strict=True):
        kind = field.type.value_type
        whole = np.ascontiguousarray(values, dtype=kind.to_pandas_dtype())
        ends = np.array([0, whole.size], dtype=np.int32)
        entries = pa.Array.from_buffers(kind, whole.size, [None, pa.py_buffer(whole)])
        lines.append(pa.Array.from_buffers(field.type, 1, [None, pa.py_buffer(ends)], children=[entries]))
    beside = schema.with_metadata({BESIDE: json.dumps(document)})
    batch = pa.RecordBatch.from_arrays(lines, schema=beside)
    return b"".join((beside.serialize(), batch.serialize(), END_OF_STREAM))


def unpack(content: bytes, schema: pa.Schema) -> tuple[list[np.ndarray], dict[str, Any]]:
    """The arrays, each of one axis, and the document of what `pack` made. Nothing is copied.

    Raises `UsageError` for what is malformed, `IncompatibleError` for other columns.
    """
    batches = list(read_batches(content, schema))
    if len(batches) != 1 or batches[0].num_rows != 1:
        raise UsageError(f"a message has one line, not {sum(batch.num_rows for batch in batches)}")
    arrays = []
    for column in batches[0].columns:
        values = column.values
        if column.null_count or values.null_count:
            raise UsageError("a message has a missing value (null)")
        arrays.append(values.to_numpy(zero_copy_only=True))
    return arrays, read_document((batches[0].schema.metadata or {}).get(BESIDE, b""))
